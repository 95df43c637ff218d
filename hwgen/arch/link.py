# SPDX-License-Identifier: Apache-2.0
"""The contract room: the packets of the serial link between a host and a board without a processor.

The host asks, the board answers, one packet at a time each way; all numbers are little-endian.

A request is ``REQUEST``, the CRC-32 of its bytes and, for the commands that write, ``length`` bytes
of data and their CRC-32. The header has a checksum of its own because data go to memory as they
come: a damaged address would be found too late. A register is written after all checksums.

An answer is ``ANSWER``, ``length`` bytes of data, a `Status` byte and the CRC-32 of everything in
front. The status comes last because it is known last; data count only where it is OK. Where the
request is refused before anything was done, and for commands that write, `length` is 0. There is
an answer to every request whose header was read, and to no other.

A repeated request keeps its tag, and each new one has another than the one before it. A register
write that the board has done, and that comes again as the next request with the same tag, gets the
same answer and is not done twice: its answer was lost.

Whatever is wrong with what came (a byte that does not begin a packet, a stop bit missing, a
checksum, a gap of ``quiet_cycles`` in mid-packet), the board throws away what follows until the
line has been quiet for ``quiet_cycles``, and is then ready for a packet. The host waits as long
before it repeats.
"""

from __future__ import annotations

import enum
import zlib
from dataclasses import dataclass

from hwgen.arch.fields import Field, Layout
from hwgen.arch.registers import ADDRESS_SPACE_BYTES

LINK_VERSION = 1
LINK_MAGIC = 0x4B4C4853  # "SHLK" as little-endian bytes
REQUEST_SYNC = 0xA5
ANSWER_SYNC = 0x5A

#: What a host assumes. A board file may say otherwise.
DEFAULT_BAUD = 2_000_000

#: Most bytes of data in a packet: 20 ms of line at 2 Mbaud, and little to repeat.
PAYLOAD_BYTES_MOST = 4096
#: Registers and memory are addressed in whole units of this many bytes.
REGISTER_BYTES = 4
MEMORY_BYTES = 8
CRC_BYTES = 4

#: Address of the first byte of the board's memory, for host and accelerator. Not 0: a pointer that
#: was never set then gets DECERR.
MEMORY_BASE = 0x1000_0000
MEMORY_PAGE_BYTES = 4096


class Command(enum.IntEnum):
    """What the host asks for."""

    PING = 0
    READ_REGISTERS = 1
    WRITE_REGISTER = 2
    READ_MEMORY = 3
    WRITE_MEMORY = 4


WRITES = (Command.WRITE_REGISTER, Command.WRITE_MEMORY)


class Status(enum.IntEnum):
    """How a request went."""

    OK = 0
    BAD_CHECKSUM = 1
    BAD_COMMAND = 2
    BAD_ADDRESS = 3
    BUS_ERROR = 4
    TRUNCATED = 5


STATUS_HINTS = {
    Status.OK: "done",
    Status.BAD_CHECKSUM: "the data were damaged on the line",
    Status.BAD_COMMAND: "the board does not know the command",
    Status.BAD_ADDRESS: "nothing is there, or address or length are no multiple of the unit",
    Status.BUS_ERROR: "the accelerator has no such register",
    Status.TRUNCATED: "the packet stopped in the middle",
}

#: What is wrong with the line and not with the request: worth trying again.
TRANSIENT = (Status.BAD_CHECKSUM, Status.TRUNCATED)

REQUEST = Layout(
    "REQUEST",
    (
        Field("sync", 8, "0xA5."),
        Field("command", 8, "A `Command`."),
        Field("tag", 8, "Comes back in the answer; another one than the request's before."),
        Field("length", 16, "Bytes to read or to write; for PING, those of IDENTITY."),
        Field("address", 32, "Offset of a register, or address in memory; for PING, 0."),
    ),
)

ANSWER = Layout(
    "ANSWER",
    (
        Field("sync", 8, "0x5A."),
        Field("command", 8, "The request's."),
        Field("tag", 8, "The request's."),
        Field("length", 16, "Bytes of data that follow."),
    ),
)

IDENTITY = Layout(
    "IDENTITY",
    (
        Field("magic", 32, "0x4B4C4853, SHLK."),
        Field("version", 16, "Of these packets."),
        Field("payload_bytes_most", 16, "Most bytes of data in a packet."),
        Field("memory_base", 32, "Address of the memory's first byte."),
        Field("memory_bytes", 32, "Bytes of memory."),
        Field("clock_hz", 32, "The accelerator's clock."),
        Field("quiet_cycles", 32, "Cycles of silence after which the board gives a packet up."),
    ),
)

REQUEST_BYTES = REQUEST.bits // 8
ANSWER_BYTES = ANSWER.bits // 8
IDENTITY_BYTES = IDENTITY.bits // 8


@dataclass(frozen=True)
class LinkConfig:
    """What a build of the link fixes.

    Parameters
    ----------
    clock_hz
        Clock of accelerator, memory and link.
    baud
        Bits a second on the line (8N1). The clock divided by it must be near a whole number.
    memory_bytes
        Memory of accelerator and host, a multiple of 4096.
    quiet_cycles
        Silence after which the board gives a packet up; 0 is 50 ms, which the gaps of a USB line
        on a busy PC do not reach.
    """

    clock_hz: int
    baud: int
    memory_bytes: int
    quiet_cycles: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        for name in ("clock_hz", "baud", "memory_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)!r}")
        if self.memory_bytes % MEMORY_PAGE_BYTES or self.memory_bytes > 1 << 28:
            raise ValueError(
                f"memory_bytes must be a multiple of {MEMORY_PAGE_BYTES}, at most {1 << 28}, not "
                f"{self.memory_bytes!r}"
            )
        divider = self.divider
        off = abs(self.clock_hz / divider / self.baud - 1) if divider else 1.0
        if divider < 4 or off > 0.02:
            better = [self.clock_hz // d for d in (divider, divider + 1) if d >= 4]
            raise ValueError(
                f"baud must be clock_hz ({self.clock_hz}) divided by a whole number, 4 or more, "
                f"within 2 %, not {self.baud!r}; try {better or self.clock_hz // 4}"
            )
        if self.quiet_cycles < 0 or 0 < self.quiet_cycles < 20 * divider:
            raise ValueError(
                f"quiet_cycles must be 0, or two bytes' time ({20 * divider}) or more, not "
                f"{self.quiet_cycles!r}"
            )

    @property
    def divider(self) -> int:
        """Clock cycles a bit."""
        return round(self.clock_hz / self.baud)

    @property
    def quiet(self) -> int:
        """Cycles of silence after which the board gives a packet up."""
        return self.quiet_cycles or self.clock_hz // 20

    def identity(self) -> dict[str, int]:
        """Return the fields of IDENTITY."""
        return {
            "magic": LINK_MAGIC,
            "version": LINK_VERSION,
            "payload_bytes_most": PAYLOAD_BYTES_MOST,
            "memory_base": MEMORY_BASE,
            "memory_bytes": self.memory_bytes,
            "clock_hz": self.clock_hz,
            "quiet_cycles": self.quiet,
        }


class PacketError(ValueError):
    """Bytes that are no answer: the message says what is wrong with them."""


@dataclass(frozen=True)
class Answer:
    """An answer, checked."""

    command: int
    tag: int
    status: int
    data: bytes


def checksum(data: bytes) -> bytes:
    """Return the CRC-32 (zlib's) of `data` as it is sent."""
    return zlib.crc32(data).to_bytes(CRC_BYTES, "little")


def request(command: int, tag: int, address: int, length: int, data: bytes = b"") -> bytes:
    """Return the bytes of a request; `data` follows the header when the command writes."""
    fields = {"command": command, "tag": tag, "address": address, "length": length}
    header = REQUEST.pack({"sync": REQUEST_SYNC, **fields}).to_bytes(REQUEST_BYTES, "little")
    body = data + checksum(data) if command in WRITES else b""
    return header + checksum(header) + body


def answer(command: int, tag: int, status: int, data: bytes = b"") -> bytes:
    """Return the bytes of an answer, as a board sends them."""
    fields = {"sync": ANSWER_SYNC, "command": command, "tag": tag, "length": len(data)}
    front = ANSWER.pack(fields).to_bytes(ANSWER_BYTES, "little") + data + bytes([status])
    return front + checksum(front)


def answer_length(head: bytes) -> int:
    """Return how many bytes an answer has that begins with `head` (`ANSWER_BYTES` or more).

    Raises
    ------
    PacketError
        When `head` begins no answer.
    """
    fields = ANSWER.unpack(int.from_bytes(head[:ANSWER_BYTES], "little"))
    if fields["sync"] != ANSWER_SYNC or fields["length"] > PAYLOAD_BYTES_MOST:
        raise PacketError(f"no answer begins with {head[:ANSWER_BYTES].hex(' ')}")
    return ANSWER_BYTES + fields["length"] + 1 + CRC_BYTES


def parse_answer(packet: bytes) -> Answer:
    """Check an answer and take it apart.

    Raises
    ------
    PacketError
        When it is too short or damaged.
    """
    if len(packet) < ANSWER_BYTES or len(packet) != answer_length(packet):
        raise PacketError(f"{len(packet)} bytes are no whole answer: {packet[:16].hex(' ')}")
    front, found = packet[:-CRC_BYTES], packet[-CRC_BYTES:]
    if checksum(front) != found:
        raise PacketError(
            f"an answer of {len(packet)} bytes has CRC-32 {checksum(front).hex()} and says "
            f"{found.hex()}"
        )
    fields = ANSWER.unpack(int.from_bytes(front[:ANSWER_BYTES], "little"))
    return Answer(fields["command"], fields["tag"], front[-1], front[ANSWER_BYTES:-1])


def fault_of(command: int, address: int, length: int, memory_bytes: int) -> Status | None:
    """Return what a board answers to such a request before it does anything; None is nothing."""
    if command not in Command.__members__.values():
        return Status.BAD_COMMAND
    if command == Command.PING:
        return None if (address, length) == (0, IDENTITY_BYTES) else Status.BAD_ADDRESS
    memory = command in (Command.READ_MEMORY, Command.WRITE_MEMORY)
    unit = MEMORY_BYTES if memory else REGISTER_BYTES
    first, size = (MEMORY_BASE, memory_bytes) if memory else (0, ADDRESS_SPACE_BYTES)
    most = REGISTER_BYTES if command == Command.WRITE_REGISTER else PAYLOAD_BYTES_MOST
    fits = 0 < length <= most and first <= address and address + length <= first + size
    return None if fits and not address % unit and not length % unit else Status.BAD_ADDRESS
