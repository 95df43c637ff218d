# SPDX-License-Identifier: Apache-2.0
"""The host room: a board without a processor at the other end of a serial line, as a pynq Device.

`pynq.MMIO` and `pynq.allocate` work on a `SerialBoard`, so `host.Accelerator` takes it as it takes
a Zynq. Registers are read and written over the line; buffers are arrays of this computer, and
`flush` and `invalidate` copy them to the board's memory and back. `hwgen.arch.link` has the
packets. Nothing here waits without a limit.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import threading
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device

from host.driver import DEFAULT_BASE_ADDRESS
from host.errors import (
    AllocationError,
    DeviceNotFound,
    LinkDamaged,
    LinkLost,
    LinkRefused,
    LinkTimeout,
    WrongLink,
)
from hwgen.arch import isa, link
from hwgen.arch.link import Command, PacketError, Status
from hwgen.arch.registers import ADDRESS_SPACE_BYTES

LOG = logging.getLogger("shears.host")

#: Buffers lie at multiples of this, as programs must.
_GRANULE_BYTES = isa.INSTRUCTION_BYTES
#: How long the line is listened to before the board has told how long it waits itself.
_QUIET_S = 0.06
#: A board's silence is counted by its clock; ours must be a little longer.
_QUIET_MARGIN = 1.25
#: Reads of 4096 bytes after which a line that never falls silent is given up.
_BABBLE_MOST = 64
_BITS_A_BYTE = 10

_tags = itertools.count()


class _BufferObject:
    """Memory of one buffer: `offset` in the board's memory, and this computer's copy."""

    def __init__(self, offset: int, host: NDArray[np.uint8]) -> None:
        self.offset, self.host = offset, host
        self.freed = False


class SerialBoard(Device):
    """A board with one accelerator, its own memory and a serial line.

    Use it as a context manager, or call `close`. Several threads may use it; they take turns.

    After an error the next access starts afresh: it waits until the line is quiet, opens the port
    again if it was gone, and asks the board who it is.

    Parameters
    ----------
    port
        Name of a serial port (``/dev/ttyUSB0``, ``COM3``), which pyserial opens; or an object with
        `read`, `write` and `timeout` as pyserial's `Serial`, a `sim.SimulatedSerialPort` among
        them. `close` leaves such an object open.
    baud
        Bits a second, as the board file says; by default 2,000,000, or what `port` is set to.
    timeout_s
        Longest wait for an answer to begin.
    retries
        How often a request is repeated when the answer does not come or is damaged.
    register_base
        Address under which `pynq.MMIO` finds the accelerator's registers; the default is that of
        `host.Accelerator`.

    Attributes
    ----------
    identity
        What the board said of itself: the fields of `hwgen.arch.link.IDENTITY`.
    packets, repeated
        Requests so far, and how many of them were repetitions.

    Raises
    ------
    DeviceNotFound
        When a port is named and pyserial is not installed.
    LinkLost, LinkTimeout, LinkDamaged, WrongLink
        When the port cannot be opened, or no Shears board answers there.
    """

    def __init__(
        self,
        port: Any,
        *,
        baud: int | None = None,
        timeout_s: float = 0.5,
        retries: int = 3,
        register_base: int = DEFAULT_BASE_ADDRESS,
    ) -> None:
        if baud is None:
            baud = int(getattr(port, "baudrate", link.DEFAULT_BAUD))
        if not timeout_s > 0 or retries < 0 or baud < 1:
            raise ValueError(
                "timeout_s and baud must be above 0 and retries 0 or more, not "
                f"{timeout_s!r}, {baud!r} and {retries!r}"
            )
        super().__init__(f"shears-serial-{next(_tags)}")
        self.capabilities = {"REGISTER_RW": True}
        self.name = "shears-serial"
        self.baud, self.timeout_s, self.retries = baud, timeout_s, retries
        self.register_base = register_base
        self.identity: dict[str, int] = {}
        self.packets = self.repeated = 0
        self._lock = threading.RLock()
        self._buffers: dict[int, _BufferObject] = {}
        self._tag = 0
        self._name = port if isinstance(port, str) else None
        self._port: Any = None if self._name else port
        self._known = self._clean = False
        self._closed = False
        with self._lock:
            try:
                self._connect()
            except BaseException:
                self._drop_port()
                raise

    # Who is there.

    @property
    def clock_hz(self) -> int:
        """The accelerator's clock."""
        return self.identity["clock_hz"]

    @property
    def memory_bytes(self) -> int:
        """Bytes of the board's memory."""
        return self.identity["memory_bytes"]

    def ping(self) -> dict[str, int]:
        """Ask the board who it is; returns `identity`. Raises as the constructor."""
        with self._lock:
            self._known = False
            self._connect()
            return dict(self.identity)

    def _connect(self) -> None:
        """Have an open port and a board that has told who it is."""
        if self._closed:
            raise LinkLost(f"the link at {self._where} was closed; make another SerialBoard")
        if self._port is None:
            self._port = _open_port(self._name, self.baud, self.timeout_s)
            self._clean = False
        if self._known:
            return
        data = self._exchange(Command.PING, 0, link.IDENTITY_BYTES)
        found = link.IDENTITY.unpack(int.from_bytes(data, "little"))
        if (found["magic"], found["version"]) != (link.LINK_MAGIC, link.LINK_VERSION):
            raise WrongLink(
                f"the board at {self._where} must have a link of magic {link.LINK_MAGIC:#010x}, "
                f"version {link.LINK_VERSION}, not {found['magic']:#010x}, {found['version']}; "
                "use the bitstream and the driver of one release"
            )
        place = ("memory_base", "memory_bytes")
        if self._buffers and any(found[name] != self.identity[name] for name in place):
            raise WrongLink(
                f"another board answers at {self._where}: its memory is {found['memory_bytes']} "
                f"bytes, not {self.identity['memory_bytes']}; close this link and make another"
            )
        self.identity = found
        self._known = True

    @property
    def _where(self) -> str:
        return self._name or str(getattr(self._port, "name", None) or "the serial port")

    # Registers: what pynq.MMIO calls on a device with REGISTER_RW.

    def read_registers(self, address: int, length: int) -> bytes:
        """Read `length` bytes, a multiple of 4, from the accelerator's registers.

        Raises
        ------
        ValueError
            Outside of the registers.
        LinkRefused
            When no register is there.
        LinkLost, LinkTimeout, LinkDamaged
            When the line fails.
        """
        return self._ask(Command.READ_REGISTERS, self._offset(address, length), length)

    def write_registers(self, address: int, data: bytes) -> None:
        """Write whole 32 bit words to the accelerator's registers; raises as `read_registers`."""
        words, offset = bytes(data), self._offset(address, len(data))
        for at in range(0, len(words), link.REGISTER_BYTES):
            word = words[at : at + link.REGISTER_BYTES]
            self._ask(Command.WRITE_REGISTER, offset + at, len(word), word)

    def _offset(self, address: int, length: int) -> int:
        offset, unit = address - self.register_base, link.REGISTER_BYTES
        if offset < 0 or offset + length > ADDRESS_SPACE_BYTES or offset % unit or length % unit:
            raise ValueError(
                f"registers are whole words from {self.register_base:#010x} to "
                f"{self.register_base + ADDRESS_SPACE_BYTES - 1:#010x}, not {length} bytes at "
                f"{address:#010x}"
            )
        return offset

    # Memory: what pynq.allocate and PynqBuffer call.

    def allocate(self, shape: Any, dtype: Any, **options: Any) -> PynqBuffer:
        """Allocate a buffer in the board's memory; `pynq.allocate(..., target=board)` ends here.

        Its content there is undefined until `flush`.

        Raises
        ------
        AllocationError
            When no gap is large enough; says what was asked for and what is free.
        """
        if unknown := set(options) - {"cacheable"}:
            raise TypeError(f"allocate takes shape, dtype and cacheable, not {sorted(unknown)}")
        dimensions = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        if any(d < 1 for d in dimensions):
            raise ValueError(f"shape must be positive, not {shape!r}")
        size = int(np.prod(dimensions, dtype=np.int64)) * np.dtype(dtype).itemsize
        with self._lock:
            offset = self._place(size)
            host = np.zeros(_whole(size), np.uint8)
            bo = self._buffers[offset] = _BufferObject(offset, host)
            address = self.identity["memory_base"] + offset
        buffer = PynqBuffer(
            dimensions,
            dtype,
            buffer=host.data,
            bo=bo,
            device=self,
            device_address=address,
            coherent=False,
        )
        # pynq gives `pointer` back to `return_to` once; `freed` keeps it from unmapping after that.
        buffer.memory, buffer.pointer, buffer.return_to, buffer.freed = self, bo, self, True
        return buffer

    def _place(self, size: int) -> int:
        """Return the offset of the first gap of `size` bytes."""
        gaps, start, end = [], 0, self.memory_bytes
        for offset, bo in sorted(self._buffers.items()):
            gaps.append((start, offset - start))
            start = offset + len(bo.host)
        gaps.append((start, end - start))
        for start, room in gaps:
            if room >= _whole(size):
                return start
        free, largest = sum(room for _, room in gaps), max(room for _, room in gaps)
        raise AllocationError(
            f"{size} bytes asked for, {free} of the board's {end} bytes free, the largest gap has "
            f"{largest}; close another accelerator, compile a smaller network, or build the board "
            "with more memory_bytes"
        )

    def return_pointer(self, bo: _BufferObject) -> None:
        """Take a buffer's memory back; `PynqBuffer.freebuffer` calls it."""
        with self._lock:
            bo.freed = True
            self._buffers.pop(bo.offset, None)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all buffers that are not freed."""
        with self._lock:
            return sum(len(bo.host) for bo in self._buffers.values())

    def flush(self, bo: _BufferObject, offset: int, pointer: int, size: int) -> None:
        """Copy part of a buffer to the board, in whole 8 bytes; `PynqBuffer.flush` calls it.

        Raises
        ------
        LinkLost, LinkTimeout, LinkDamaged
            When the line fails. What was copied until then is there.
        """
        for first, last in self._pieces(bo, offset, size):
            data = bo.host[first:last].tobytes()
            self._ask(Command.WRITE_MEMORY, self._address(bo, first), len(data), data)

    def invalidate(self, bo: _BufferObject, offset: int, pointer: int, size: int) -> None:
        """Copy part of a buffer from the board; raises as `flush`."""
        for first, last in self._pieces(bo, offset, size):
            data = self._ask(Command.READ_MEMORY, self._address(bo, first), last - first)
            piece = np.frombuffer(data, np.uint8)
            low, high = max(first, offset), min(last, offset + size)
            bo.host[low:high] = piece[low - first : high - first]

    def _address(self, bo: _BufferObject, offset: int) -> int:
        return self.identity["memory_base"] + bo.offset + offset

    def _pieces(self, bo: _BufferObject, offset: int, size: int) -> list[tuple[int, int]]:
        """Cut a part of a buffer into packets: (first byte, byte behind the last)."""
        if bo.freed:
            raise ValueError("a buffer that was freed must not be used any more")
        unit, most = link.MEMORY_BYTES, self.identity["payload_bytes_most"]
        first, last = offset // unit * unit, -(-(offset + size) // unit) * unit
        return [(at, min(at + most, last)) for at in range(first, last, most)]

    # The line.

    def _ask(self, command: Command, address: int, length: int, data: bytes = b"") -> bytes:
        """Have the board carry out a request; returns the answer's data."""
        with self._lock:
            self._connect()
            return self._exchange(command, address, length, data)

    def _exchange(self, command: Command, address: int, length: int, data: bytes = b"") -> bytes:
        """Send a request until its answer comes, `retries` times more than once."""
        self._tag = (self._tag + 1) % 256
        packet = link.request(command, self._tag, address, length, data)
        what = f"{command.name} of {length} bytes at {address:#x}"
        faults: list[str] = []
        silent = True
        for attempt in range(1 + self.retries):
            try:
                if not self._clean:
                    self._settle()
                self._clean = False  # until the answer is whole
                self.packets += 1
                self.repeated += attempt > 0
                self._port.write(packet)
                answer = self._receive(command, len(packet) + length)
            except OSError as error:
                self._drop_port()
                raise LinkLost(
                    f"the serial port {self._where} failed in {what}: {error}; look at the cable "
                    "and the power, and load the bitstream again if the board was without; the "
                    "next access opens the port again"
                ) from error
            except PacketError as error:
                faults.append(str(error))
                silent = False
                continue
            if answer is None:
                faults.append(f"no answer within {self.timeout_s:g} s")
                continue
            silent = False
            if answer.status in link.TRANSIENT:
                faults.append(f"the board says: {link.STATUS_HINTS[Status(answer.status)]}")
                continue
            self._clean = True
            if answer.status != Status.OK:
                raise self._refusal(what, answer.status)
            if faults:
                LOG.warning("%s worked after %s", what, "; ".join(faults))
            return answer.data
        self._known = False  # ask again who is there
        tries = f"{1 + self.retries} attempts" if self.retries else "one attempt"
        if silent:
            raise LinkTimeout(
                f"nothing at {self._where} answers {what} ({tries}, {self.timeout_s:g} s each); "
                "check that the Shears bitstream is loaded, that it is the right port, and that "
                f"the bitstream was built for {self.baud} baud"
            )
        raise LinkDamaged(
            f"{what} at {self._where} failed in {tries}: {'; '.join(faults)}; try a shorter "
            "cable, no hub, or a bitstream with a lower baud"
        )

    def _refusal(self, what: str, status: int) -> LinkRefused:
        known = status in Status.__members__.values()
        hint = link.STATUS_HINTS[Status(status)] if known else "this version knows no such status"
        return LinkRefused(f"the board refuses {what}: status {status}, {hint}", status)

    def _receive(self, command: Command, line_bytes: int) -> link.Answer | None:
        """Read an answer; None when nothing came at all.

        Raises
        ------
        PacketError
            When it is cut short, damaged, or answers something else.
        """
        line_s = line_bytes * _BITS_A_BYTE / self.baud
        self._port.timeout = self.timeout_s + line_s
        head = bytes(self._port.read(link.ANSWER_BYTES))
        if not head:
            return None
        if len(head) < link.ANSWER_BYTES:
            raise PacketError(f"an answer stopped after {len(head)} bytes")
        size = link.answer_length(head)
        rest = bytes(self._port.read(size - len(head)))
        if len(head) + len(rest) < size:
            raise PacketError(f"an answer stopped after {len(head) + len(rest)} of {size} bytes")
        answer = link.parse_answer(head + rest)
        if (answer.command, answer.tag) != (command, self._tag):
            raise PacketError(
                f"an answer to request {answer.tag} (command {answer.command}) came in place of "
                f"one to {self._tag} ({command.value})"
            )
        return answer

    def _settle(self) -> None:
        """Read until the line is quiet for so long that the board waits for a packet."""
        quiet_s = _QUIET_S
        if self.identity:
            quiet_s = self.identity["quiet_cycles"] / self.identity["clock_hz"] * _QUIET_MARGIN
        self._port.timeout = quiet_s
        for _ in range(_BABBLE_MOST):
            if not self._port.read(4096):
                return
        raise PacketError("the line never falls silent")

    def _drop_port(self) -> None:
        """Forget the board; close the port, if it is ours, so that it can be opened again."""
        self._known = self._clean = False
        if self._name is not None and self._port is not None:
            port, self._port = self._port, None
            try:
                port.close()
            except OSError as error:
                LOG.info("closing %s failed: %s", self._name, error)

    def close(self) -> None:
        """Close the port, if it was opened here. A second time does nothing."""
        with self._lock:
            self._closed = True
            self._drop_port()

    def __enter__(self) -> SerialBoard:
        """Return the board; leaving the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()


def _open_port(name: str | None, baud: int, timeout_s: float) -> Any:
    """Open a port with pyserial, for nobody else, with the least latency that it offers."""
    try:
        serial = importlib.import_module("serial")
    except ModuleNotFoundError as error:
        raise DeviceNotFound(
            f"pyserial must be installed to open {name} ({error}); pip install 'shears[serial]'"
        ) from error
    try:
        port = serial.Serial(name, baud, timeout=timeout_s, write_timeout=10.0, exclusive=True)
    except (OSError, ValueError) as error:
        raise LinkLost(
            f"the serial port {name} cannot be opened: {error}; python -m serial.tools.list_ports "
            "lists those that are there; on Linux the user must be in the group dialout"
        ) from error
    try:
        # An FTDI chip keeps a few bytes back for 16 ms, else; not every system can change that.
        port.set_low_latency_mode(True)
    except (AttributeError, NotImplementedError, OSError, ValueError) as error:
        LOG.info("%s stays with its latency: %s", name, error)
    return port


def _whole(size: int) -> int:
    """Round up to whole granules."""
    return -(-size // _GRANULE_BYTES) * _GRANULE_BYTES
