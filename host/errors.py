# SPDX-License-Identifier: Apache-2.0
"""The host room: everything that can go wrong with a board, as types.

::

    AcceleratorError
      DeviceNotFound      no board, or no Shears accelerator in the overlay
      WrongHardware       something answers, but it is not what the bundle needs
        DigestMismatch    it was built for another configuration
      AllocationError     no DMA memory for the bundle
      AcceleratorClosed   used after close()
      BoardBusy           another thread keeps the board
      TransportError      the way to the board failed: pulled out, no power, no permission
        LinkError         of a serial link
          LinkLost        the port is gone, or cannot be opened
          LinkTimeout     the board does not answer
          LinkDamaged     too many bytes come damaged
          LinkRefused     the board understood and refused
          WrongLink       what answers is no board of this version
      InterruptUnavailable  wait='interrupt', and pynq gives none
      AcceleratorTimeout  neither END nor an error in time
      RunStopped          the hardware stopped the run and says why
        BusError          SLVERR, DECERR          (transient: tried once more)
        ChecksumError     CRC-32 does not match   (transient: tried once more)
        NoProgress        the watchdog barked     (transient: tried once more)
        ProgramError      the program itself is wrong
"""

from __future__ import annotations

from hwgen.arch import isa
from hwgen.arch.registers import ERROR_HINTS, QUEUE_NAMES, ErrorCode


class AcceleratorError(RuntimeError):
    """Base of every error that the driver raises about the board."""


class DeviceNotFound(AcceleratorError):
    """There is no board, or the overlay holds no (or no single) Shears accelerator."""


class WrongHardware(AcceleratorError):
    """What answers at the base address is no Shears accelerator of this version."""


class DigestMismatch(WrongHardware):
    """The bitstream was built for another configuration than the bundle.

    Attributes
    ----------
    hardware, bundle
        The two 64 bit digests.
    """

    def __init__(self, hardware: int, bundle: int) -> None:
        self.hardware, self.bundle = hardware, bundle
        super().__init__(
            f"the accelerator's digest must be {bundle:016x} (the bundle's), not {hardware:016x}; "
            "load the bitstream this bundle was compiled for, or compile the bundle for this one"
        )


class AllocationError(AcceleratorError):
    """The board gave no DMA memory, or memory the accelerator cannot address."""


class AcceleratorClosed(AcceleratorError):
    """The accelerator was used after close()."""


class BoardBusy(AcceleratorError):
    """Another thread of this process keeps the board.

    Attributes
    ----------
    holder
        Name of that thread.
    """

    def __init__(self, what: str, seconds: float, holder: str) -> None:
        self.holder = holder
        super().__init__(
            f"{what} must get the board within {seconds:g} s, but thread {holder!r} keeps it; wait "
            "for its run, leave its `with accelerator.locked()`, or give a larger timeout_s"
        )


class TransportError(AcceleratorError):
    """The way to the board failed in the middle of something; `__cause__` is the OSError.

    What the board was at is unknown then. The next run finds out, resets it and copies programs
    and constants anew, so that it works once the board answers again.
    """

    def __init__(self, what: str, error: OSError) -> None:
        super().__init__(
            f"{what} failed: {type(error).__name__}: {error}; look at the cable and the power, and "
            "whether this process may use the device (on a PYNQ image: root); the next run works "
            "once the board answers again"
        )


class LinkError(TransportError, OSError):
    """The serial link to a board failed, after as many attempts as it makes."""

    def __init__(self, message: str) -> None:
        RuntimeError.__init__(self, message)


class LinkLost(LinkError):
    """The serial port is gone or cannot be opened; `__cause__` has the system's words."""


class LinkTimeout(LinkError):
    """Nothing came back from the board in time."""


class LinkDamaged(LinkError):
    """What came back was damaged, again and again."""


class LinkRefused(LinkError):
    """The board understood a request and refused it.

    Attributes
    ----------
    status
        The `hwgen.arch.link.Status`, or a bare number that this version does not know.
    """

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)


class WrongLink(LinkError):
    """What answers at the serial port is no Shears board of this version."""


class InterruptUnavailable(AcceleratorError):
    """A run is to wait for an interrupt, and there is none that pynq can take."""


class AcceleratorTimeout(AcceleratorError):
    """A run neither ended nor stopped in time.

    Attributes
    ----------
    status
        Fields of STATUS when time was up.
    code, queue
        Fields of ERROR then.
    instruction
        Index of the faulting instruction where there is an error code, else of the last one that
        was dispatched; None when none was.
    text
        That instruction, disassembled from the bundle.
    counters
        Every counter register then, by name; INSTRUCTIONS is how far the dispatcher came.
    recovered
        Whether the soft reset afterwards finished. If not, load the bitstream again.
    how
        How the run's end was waited for.
    """

    def __init__(
        self,
        what: str,
        seconds: float,
        status: dict[str, int],
        error: dict[str, int],
        instruction: int,
        counters: dict[str, int],
        program: bytes,
        recovered: bool,
        how: str,
    ) -> None:
        self.status, self.counters, self.recovered, self.how = status, counters, recovered, how
        self.code, self.queue = error["code"], error["queue"]
        dispatched = counters["INSTRUCTIONS"]
        self.instruction = instruction if self.code else dispatched - 1 if dispatched else None
        if self.instruction is None:
            self.text = "none was dispatched: is the program's address right, does the bus answer?"
            where = f"instruction: {self.text}"
        else:
            known = bool(program)
            self.text = instruction_text(program, self.instruction) if known else "of another run"
            which = "faulting" if self.code else "last dispatched"
            where = f"{which} instruction {self.instruction} [{self.text}]"
        bits = ", ".join(name for name, value in status.items() if value) or "none set"
        counts = ", ".join(f"{name}={value}" for name, value in counters.items())
        after = (
            "a soft reset brought it back"
            if recovered
            else "a soft reset did not finish either; load the bitstream again"
        )
        super().__init__(
            f"{what} did not end within {seconds:g} s ({how}): STATUS {bits}; ERROR code "
            f"{self.code}, queue {QUEUE_NAMES[self.queue]}; {where}; {counts}; {after}"
        )


class RunStopped(AcceleratorError):
    """The hardware stopped a run and reported why.

    Attributes
    ----------
    code
        The `ErrorCode`, or the bare number when this version does not know it.
    queue
        "load", "compute", "store" or "dispatcher".
    instruction
        Index of the faulting instruction in the program that ran.
    text
        That instruction, disassembled from the bundle.
    hint
        What usually causes this.
    """

    transient = False

    def __init__(
        self, what: str, code: int, queue: int, instruction: int, program: bytes, detail: str = ""
    ) -> None:
        known = code in ErrorCode.__members__.values()
        self.code = ErrorCode(code) if known else code
        self.queue = QUEUE_NAMES[queue]
        self.instruction = instruction
        self.text = instruction_text(program, instruction)
        self.hint = ERROR_HINTS[ErrorCode(code)] if known else "this driver does not know the code"
        name = ErrorCode(code).name if known else "unknown"
        super().__init__(
            f"{what} stopped with error {code} ({name}) in the {self.queue} queue at instruction "
            f"{instruction}: {self.hint} [{self.text}]" + (f"; {detail}" if detail else "")
        )


class BusError(RunStopped):
    """The memory answered with SLVERR or DECERR."""

    transient = True


class ChecksumError(RunStopped):
    """An instruction or a constant did not have its CRC-32."""

    transient = True


class NoProgress(RunStopped):
    """Nothing moved for WATCHDOG cycles."""

    transient = True


class ProgramError(RunStopped):
    """The program asks for what does not exist; trying again would not help."""


FAMILIES: dict[int, type[RunStopped]] = {
    ErrorCode.BAD_OPCODE: ProgramError,
    ErrorCode.INSTRUCTION_CHECKSUM: ChecksumError,
    ErrorCode.DATA_CHECKSUM: ChecksumError,
    ErrorCode.READ_SLVERR: BusError,
    ErrorCode.READ_DECERR: BusError,
    ErrorCode.WRITE_SLVERR: BusError,
    ErrorCode.WRITE_DECERR: BusError,
    ErrorCode.ADDRESS_RANGE: ProgramError,
    ErrorCode.NO_PROGRESS: NoProgress,
    ErrorCode.TOKEN_OVERFLOW: ProgramError,
    ErrorCode.BANK_CONFLICT: ProgramError,
    ErrorCode.PROGRAM_OVERRUN: ProgramError,
    ErrorCode.BAD_FIELD: ProgramError,
}
"""Class of each error code; a code that is not here raises plain `RunStopped`."""


def instruction_text(program: bytes, index: int) -> str:
    """Disassemble instruction `index` on one line; says so when it is none."""
    start = index * isa.INSTRUCTION_BYTES
    data = program[start : start + isa.INSTRUCTION_BYTES]
    if len(data) < isa.INSTRUCTION_BYTES:
        return f"behind the program's {len(program) // isa.INSTRUCTION_BYTES} instructions"
    try:
        return " ".join(isa.disassemble(data).split()[1:])
    except isa.DecodeError as error:
        return str(error)
