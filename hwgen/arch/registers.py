# SPDX-License-Identifier: Apache-2.0
"""The contract room: the AXI4-Lite register map. Offset, fields, access and reset value."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from hwgen.arch.fields import Field, Layout
from hwgen.arch.trace import INDEX_BITS, TRACE_WORDS

ID_VALUE = 0x53524853  # "SHRS" read as little-endian bytes
BASE_COUNT = 8
ADDRESS_SPACE_BYTES = 4096
WATCHDOG_DEFAULT_CYCLES = 1_000_000


class Access(enum.Enum):
    """How software may touch a register."""

    READ = "read only"
    READ_WRITE = "read and write"
    WRITE_PULSE = "write 1 to act; reads 0"
    WRITE_CLEAR = "read; write 1 to clear"


class ErrorCode(enum.IntEnum):
    """Why a run stopped. The first error of a run is kept."""

    NONE = 0
    BAD_OPCODE = 1
    INSTRUCTION_CHECKSUM = 2
    DATA_CHECKSUM = 3
    READ_SLVERR = 4
    READ_DECERR = 5
    WRITE_SLVERR = 6
    WRITE_DECERR = 7
    ADDRESS_RANGE = 8
    NO_PROGRESS = 9
    TOKEN_OVERFLOW = 10
    BANK_CONFLICT = 11
    PROGRAM_OVERRUN = 12
    BAD_FIELD = 13


ERROR_HINTS = {
    ErrorCode.NONE: "no error",
    ErrorCode.BAD_OPCODE: "the program holds an instruction that does not exist",
    ErrorCode.INSTRUCTION_CHECKSUM: "an instruction was damaged in DDR or its address is wrong",
    ErrorCode.DATA_CHECKSUM: "weights or taps were damaged in DDR or their address is wrong",
    ErrorCode.READ_SLVERR: "the memory answered a read with SLVERR",
    ErrorCode.READ_DECERR: "a read went to an address where no memory is (DECERR)",
    ErrorCode.WRITE_SLVERR: "the memory answered a write with SLVERR",
    ErrorCode.WRITE_DECERR: "a write went to an address where no memory is (DECERR)",
    ErrorCode.ADDRESS_RANGE: "an instruction reaches past the end of an on-chip memory, or of "
    "the 4 GiB of addresses",
    ErrorCode.NO_PROGRESS: "nothing moved for WATCHDOG cycles: a token that never came, or a bus "
    "that does not answer",
    ErrorCode.TOKEN_OVERFLOW: "an instruction signals more tokens than the counter holds",
    ErrorCode.BANK_CONFLICT: "a convolution's input and its residual lie in one scratchpad bank",
    ErrorCode.PROGRAM_OVERRUN: "the program has no END within PROGRAM_LENGTH instructions",
    ErrorCode.BAD_FIELD: "an instruction's count is zero, or a size or an alignment is not allowed",
}


@dataclass(frozen=True)
class Register:
    """One 32 bit register."""

    name: str
    offset: int
    access: Access
    doc: str
    fields: tuple[Field, ...] = ()
    reset: int = 0

    @property
    def layout(self) -> Layout:
        """Bit layout; a register without fields is one field called `value`."""
        return Layout(self.name, self.fields or (Field("value", 32, self.doc),), 32)


_R, _RW = Access.READ, Access.READ_WRITE

REGISTERS = (
    Register("ID", 0x00, _R, "Reads 0x53524853: this is a Shears accelerator.", reset=ID_VALUE),
    Register("VERSION", 0x04, _R, "Version of the instruction set."),
    Register("DIGEST_LOW", 0x08, _R, "Low half of the configuration's digest."),
    Register("DIGEST_HIGH", 0x0C, _R, "High half of the configuration's digest."),
    Register(
        "CONTROL",
        0x10,
        Access.WRITE_PULSE,
        "Commands.",
        (
            Field("start", 1, "Start the program; ignored unless idle, done or stopped."),
            Field("soft_reset", 1, "Drain the bus, forget the run, its error, tokens, counters."),
        ),
    ),
    Register(
        "STATUS",
        0x14,
        _R,
        "What the machine is doing.",
        (
            Field("idle", 1, "No run in progress."),
            Field("running", 1, "A run is in progress."),
            Field("done", 1, "The last run reached END."),
            Field("error", 1, "The last run stopped with ERROR; a soft reset clears it."),
            Field("resetting", 1, "A soft reset waits for the bus to drain."),
        ),
        reset=1,
    ),
    Register(
        "ERROR",
        0x18,
        _R,
        "Why the last run stopped.",
        (
            Field("code", 8, "See the error codes."),
            Field("queue", 2, "0 load, 1 compute, 2 store, 3 dispatcher."),
        ),
    ),
    Register("ERROR_INSTRUCTION", 0x1C, _R, "Index of the instruction that stopped the run."),
    Register("PROGRAM_ADDRESS", 0x20, _RW, "DDR address of instruction 0; a multiple of 64."),
    Register("PROGRAM_LENGTH", 0x24, _RW, "Instructions the program has."),
    Register(
        "WATCHDOG",
        0x28,
        _RW,
        "Cycles without progress after which a run stops; 0 turns it off.",
        reset=WATCHDOG_DEFAULT_CYCLES,
    ),
    Register(
        "IRQ_ENABLE",
        0x2C,
        _RW,
        "Which events raise the interrupt.",
        (Field("done", 1, "A run reached END."), Field("error", 1, "A run stopped.")),
    ),
    Register(
        "IRQ_STATUS",
        0x30,
        Access.WRITE_CLEAR,
        "Events since they were cleared.",
        (Field("done", 1, "A run reached END."), Field("error", 1, "A run stopped.")),
    ),
    *(
        Register(f"BASE{i}", 0x40 + 4 * i, _RW, f"DDR address added to offsets with base = {i}.")
        for i in range(BASE_COUNT)
    ),
    Register("CYCLES_TOTAL", 0x80, _R, "Cycles in which STATUS.running was 1."),
    Register("CYCLES_COMPUTING", 0x84, _R, "Cycles in which the compute engine had work in it."),
    Register("STEPS", 0x88, _R, "Steps of the array: tn x ti x tp multiply-accumulates each."),
    Register(
        "CYCLES_WAIT_LOAD", 0x8C, _R, "Cycles an idle compute engine waited for a load token."
    ),
    Register(
        "CYCLES_WAIT_STORE", 0x90, _R, "Cycles an idle compute engine waited for a store token."
    ),
    Register("CYCLES_LOADING", 0x94, _R, "Cycles in which the load engine had an instruction."),
    Register("CYCLES_STORING", 0x98, _R, "Cycles in which the store engine had an instruction."),
    Register("BYTES_READ", 0x9C, _R, "Bytes read from DDR, instructions included."),
    Register("BYTES_WRITTEN", 0xA0, _R, "Bytes written to DDR."),
    Register("INSTRUCTIONS", 0xA4, _R, "Instructions dispatched."),
    Register(
        "CYCLES_WAIT_BANK",
        0xA8,
        _R,
        "Cycles in which a word to load or to store waited because its scratchpad bank was busy.",
    ),
    Register(
        "TRACE_FIRST",
        0xC0,
        _RW,
        "Which instructions leave a record: this one and the next, as many as the buffer holds.",
        (Field("index", INDEX_BITS, "Index of the first; keep it during a run."),),
    ),
    Register("TRACE_COUNT", 0xC4, _R, "Records of this run, or of the last one."),
    Register(
        "TRACE_DROPPED", 0xC8, _R, "Instructions complete, from TRACE_FIRST on, without a record."
    ),
    Register(
        "TRACE_INDEX",
        0xCC,
        _RW,
        "Which record TRACE_DATA shows, from 0; order of completion. Read it back before the data.",
    ),
    *(
        Register(f"TRACE_DATA{i}", 0xD0 + 4 * i, _R, f"Bits {32 * i + 31}:{32 * i} of the record.")
        for i in range(TRACE_WORDS)
    ),
)

BY_NAME = {register.name: register for register in REGISTERS}
COUNTERS = tuple(r.name for r in REGISTERS if 0x80 <= r.offset < 0xC0)
QUEUE_NAMES = ("load", "compute", "store", "dispatcher")
