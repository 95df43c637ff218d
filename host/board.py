# SPDX-License-Identifier: Apache-2.0
"""The host room: one accelerator on one device. Registers, start, wait, reset, what is resident.

Every access goes through `pynq.MMIO`, so a Zynq's /dev/mem and a simulated board's registers are
the same to this file. Nothing here waits without a deadline.
"""

from __future__ import annotations

import importlib
import logging
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from host.errors import (
    FAMILIES,
    AcceleratorTimeout,
    BoardBusy,
    DeviceNotFound,
    DigestMismatch,
    RunStopped,
    TransportError,
    WrongHardware,
)
from host.interrupts import InterruptLine
from hwgen.arch import isa
from hwgen.arch.bundle import Placement
from hwgen.arch.isa import ISA_VERSION
from hwgen.arch.registers import (
    ADDRESS_SPACE_BYTES,
    BASE_COUNT,
    BY_NAME,
    COUNTERS,
    ID_VALUE,
    Access,
)

LOG = logging.getLogger("shears.host")

RESET_TIMEOUT_S = 1.0
_LAYOUTS = {name: register.layout for name, register in BY_NAME.items()}
_ALL_EVENTS = _LAYOUTS["IRQ_STATUS"].pack({"done": 1, "error": 1})
_SPIN_POLLS = 256
_SLEEP_FIRST_S = 20e-6
_SLEEP_MOST_S = 1e-3

# Where a run waits for its interrupt, STATUS is looked at this often all the same: an interrupt
# that gets lost (another program on the UIO device, a wrong pin in the .hwh) costs this, no hang.
CHECK_S = 0.05
LOST_INTERRUPTS_MOST = 3

# Programs use the first six base registers. The last holds a random mark of this process: if it
# reads otherwise, another process or a new bitstream has been there and nothing is resident.
MARK_REGISTER = f"BASE{BASE_COUNT - 1}"

_boards_lock = threading.Lock()


def import_pynq() -> Any:
    """Import pynq on first use, so that `import host` needs numpy alone.

    Raises
    ------
    DeviceNotFound
        When pynq is not installed.
    """
    try:
        return importlib.import_module("pynq")
    except ModuleNotFoundError as error:
        raise DeviceNotFound(
            f"pynq must be installed to reach a board ({error}); a PYNQ image has it, elsewhere "
            "install the [board] extra"
        ) from error


@contextmanager
def answering(what: str, lost: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn an OSError of the device into a TransportError about `what`; call `lost` first."""
    try:
        yield
    except TransportError:  # it says already what failed
        lost()
        raise
    except OSError as error:
        lost()
        raise TransportError(what, error) from error


@dataclass
class Waiting:
    """How a run waits for its end, and how it went.

    Attributes
    ----------
    line
        The interrupt; None is polling.
    fall_back
        Whether to poll from then on when interrupts get lost.
    lost
        Runs on end that ended without their interrupt.
    """

    line: InterruptLine | None = None
    fall_back: bool = True
    lost: int = 0

    @property
    def how(self) -> str:
        """What to call it in a record and in a message."""
        return "polling" if self.line is None else f"interrupt {self.line.pin!r}"

    def ended(self, by_interrupt: bool) -> None:
        """Note how a run's end was found; give an interrupt up that never comes."""
        if self.line is None:
            return
        self.lost = 0 if by_interrupt else self.lost + 1
        if self.lost == 1:
            LOG.warning("a run ended and %s did not come; STATUS told", self.how)
        if self.lost >= LOST_INTERRUPTS_MOST and self.fall_back:
            LOG.warning("%s did not come %d times; polling from here on", self.how, self.lost)
            self.line = None


class Board:
    """One accelerator at one base address of one device; get it with `board_at`.

    Attributes
    ----------
    resident
        Placement of the constants that are in SB and tap buffer now, by their digest.
    quarantine
        DMA buffers that may still be written because a soft reset did not finish; kept alive.
    allocated
        Name and bytes of DMA memory of each bundle loaded here, by its accelerator.
    losses
        How often the way to the board failed: what DDR holds since the last time is unknown.
    """

    def __init__(self, device: Any, base_address: int) -> None:
        self.base_address = base_address
        self.allocated: WeakKeyDictionary[Any, tuple[str, int]] = WeakKeyDictionary()
        self._lock = threading.RLock()
        self._holder = ""
        self._worker: ThreadPoolExecutor | None = None
        self.resident: dict[str, Placement] = {}
        self.quarantine: list[Any] = []
        self.losses = 0
        mmio = import_pynq().MMIO
        with answering(f"opening the registers at {base_address:#010x}"):
            self._mmio = mmio(base_address, ADDRESS_SPACE_BYTES, device=device)
        self._mark = secrets.randbits(31) | 1
        self._written: dict[str, int] = {}

    @contextmanager
    def hold(self, timeout_s: float, what: str) -> Iterator[None]:
        """Keep the board for this thread. A thread that holds it may hold it again.

        Raises
        ------
        BoardBusy
            When another thread has it for all of `timeout_s`.
        """
        if not self._lock.acquire(timeout=min(timeout_s, threading.TIMEOUT_MAX)):
            raise BoardBusy(what, timeout_s, self._holder)
        before, self._holder = self._holder, threading.current_thread().name
        try:
            yield
        finally:
            self._holder = before
            self._lock.release()

    def let_go(
        self, owner: Any, buffers: Mapping[str, Any], stopped: Callable[[], bool], what: str
    ) -> None:
        """Free an owner's DMA buffers; keep them where `what` does not stop writing to them."""
        self.allocated.pop(owner, None)
        if buffers and not stopped():
            LOG.error(
                "the %s does not stop: %d buffers are kept, since it may still write to them; "
                "load the bitstream again",
                what,
                len(buffers),
            )
            self.quarantine.extend(buffers.values())
            return
        for buffer in buffers.values():
            buffer.freebuffer()

    def worker(self) -> ThreadPoolExecutor:
        """Return the one thread in which this board's asynchronous runs take place, in order."""
        with _boards_lock:
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, f"shears-{self.base_address:#x}")
            return self._worker

    def read(self, name: str) -> int:
        """Read a register; raises TransportError when the device does not answer."""
        try:
            return int(self._mmio.read(BY_NAME[name].offset)) & 0xFFFFFFFF
        except TransportError:
            self._lost()
            raise
        except OSError as error:
            self._lost()
            raise TransportError(f"reading {name}", error) from error

    def read_fields(self, name: str) -> dict[str, int]:
        """Read a register, split into its fields."""
        return _LAYOUTS[name].unpack(self.read(name))

    def write(self, name: str, value: int) -> None:
        """Write a register; one that keeps its value and has it already is left alone.

        Raises TransportError when the device does not answer.
        """
        register = BY_NAME[name]
        keeps = register.access is Access.READ_WRITE
        if keeps and self._written.get(name) == value:
            return
        self._written.pop(name, None)  # unknown, should the write fail
        try:
            self._mmio.write(register.offset, int(value))
        except TransportError:
            self._lost()
            raise
        except OSError as error:
            self._lost()
            raise TransportError(f"writing {name}", error) from error
        if keeps:
            self._written[name] = value

    def answering(self, what: str) -> AbstractContextManager[None]:
        """Turn an OSError of the device inside the block into a TransportError about `what`."""
        return answering(what, self._lost)

    def _lost(self) -> None:
        """Note that the way to the board failed."""
        self.losses += 1
        self.forget()

    def command(self, name: str) -> None:
        """Pulse one bit of CONTROL."""
        self.write("CONTROL", _LAYOUTS["CONTROL"].pack({name: 1}))

    def counters(self) -> dict[str, int]:
        """Read every counter."""
        return {name: self.read(name) for name in COUNTERS}

    def check_identity(self, digest: int) -> None:
        """Compare ID, VERSION and DIGEST with what a bundle needs.

        Raises
        ------
        WrongHardware
            When no Shears accelerator of this instruction set version answers.
        DigestMismatch
            When it has another configuration.
        """
        found = self.read("ID")
        if found != ID_VALUE:
            raise WrongHardware(
                f"ID at {self.base_address:#010x} must read {ID_VALUE:#010x}, not {found:#010x}; "
                "check that the Shears bitstream is loaded and the base address is its own"
            )
        version = self.read("VERSION")
        if version != ISA_VERSION:
            raise WrongHardware(
                f"the accelerator's instruction set version must be {ISA_VERSION}, not {version}; "
                "use the bitstream and the driver of one release"
            )
        hardware = self.read("DIGEST_LOW") | self.read("DIGEST_HIGH") << 32
        if hardware != digest:
            raise DigestMismatch(hardware, digest)

    def forget(self) -> None:
        """Trust nothing that was known of registers and on-chip memories."""
        self._written.clear()
        self.resident.clear()

    def claim(self, digest: int) -> None:
        """Make the accelerator ours and ready: undo what another process or a crash left.

        Where the mark is gone a new bitstream may be there: raises as `check_identity`.
        """
        if self.read(MARK_REGISTER) != self._mark:
            self.forget()
            self.check_identity(digest)
            self.write(MARK_REGISTER, self._mark)
        status = self.read_fields("STATUS")
        if status["error"] or not status["idle"]:
            LOG.warning("the accelerator was left in STATUS %s; soft reset", status)
            if not self.soft_reset():
                raise self._timeout("the soft reset before a run", RESET_TIMEOUT_S)
        self.quarantine.clear()

    def soft_reset(self) -> bool:
        """Stop whatever runs; returns whether the accelerator came back idle in time.

        On-chip memories keep their contents, but a load may have been cut short, so nothing counts
        as resident any more. Buffers in quarantine are let go on success. The mark is not written
        here: where it is gone, another bitstream may be there, and the next `claim` must see it.
        """
        self.forget()
        self.command("soft_reset")
        deadline = time.monotonic() + RESET_TIMEOUT_S
        polls = 0
        while True:
            late = time.monotonic() >= deadline
            status = self.read_fields("STATUS")
            if status["idle"] and not (status["running"] or status["error"] or status["resetting"]):
                self.quarantine.clear()
                return True
            if late:
                return False
            polls += 1
            _pause(polls)

    def execute(
        self,
        what: str,
        address: int,
        program: bytes,
        bases: Mapping[int, int],
        watchdog_cycles: int,
        timeout_s: float,
        waiting: Waiting | None = None,
    ) -> None:
        """Run the program whose copy lies at DDR `address` to its END.

        `waiting` is how to wait for it; by default, polling.

        Raises
        ------
        RunStopped
            Of the error code's family. The accelerator has been reset and is usable.
        AcceleratorTimeout
            After `timeout_s`; a reset has been tried.
        TransportError
            When the device does not answer; the next `claim` stops what still runs.
        """
        self.write("PROGRAM_ADDRESS", address)
        self.write("PROGRAM_LENGTH", len(program) // isa.INSTRUCTION_BYTES)
        self.write("WATCHDOG", watchdog_cycles)
        waiting = Waiting() if waiting is None else waiting
        self.write("IRQ_ENABLE", 0 if waiting.line is None else _ALL_EVENTS)
        for index, base in bases.items():
            self.write(f"BASE{index}", base)
        try:
            self._clear_events()
            self.command("start")
            finished = self._wait(timeout_s, waiting)
        except BaseException:  # KeyboardInterrupt too: nothing may go on writing to our buffers
            try:
                self.soft_reset()
            except TransportError as lost:  # the next run resets it
                LOG.warning("%s was broken off and can't be stopped: %s", what, lost)
            raise
        if not finished:
            raise self._timeout(what, timeout_s, program, waiting.how, self.soft_reset)
        if finished["error"]:
            error, instruction = self.read_fields("ERROR"), self.read("ERROR_INSTRUCTION")
            back = self.soft_reset()
            detail = "" if back else "a soft reset did not finish; load the bitstream again"
            family = FAMILIES.get(error["code"], RunStopped)
            raise family(what, error["code"], error["queue"], instruction, program, detail)

    def _clear_events(self) -> None:
        """Clear IRQ_STATUS and see that it is clear: an event after this is the next run's.

        Reads and writes take separate ways to the accelerator. A STATUS read that overtakes the
        start would otherwise find the previous run done, and hand out its result.
        """
        self.write("IRQ_STATUS", _ALL_EVENTS)
        for _ in range(_SPIN_POLLS):
            if not self.read("IRQ_STATUS"):
                return
        raise WrongHardware("IRQ_STATUS must read 0 after clearing it; load the bitstream again")

    def _timeout(
        self,
        what: str,
        timeout_s: float,
        program: bytes = b"",
        how: str = "polling",
        reset: Callable[[], bool] = lambda: False,
    ) -> AcceleratorTimeout:
        """Read what the accelerator is at, then reset it; returns the error to raise."""
        status, error = self.read_fields("STATUS"), self.read_fields("ERROR")
        instruction, counters = self.read("ERROR_INSTRUCTION"), self.counters()
        return AcceleratorTimeout(
            what, timeout_s, status, error, instruction, counters, program, reset(), how
        )

    def _wait(self, timeout_s: float, waiting: Waiting) -> dict[str, int]:
        """Wait until this run is done or stopped; returns STATUS, or {} when time is up."""
        deadline = time.monotonic() + timeout_s
        polls = 0
        came = False
        while True:
            # The clock first: a process that was suspended still looks once after the deadline.
            left = deadline - time.monotonic()
            if waiting.line is not None and left > 0:
                came = waiting.line.wait(min(left, CHECK_S))
            status = self.read_fields("STATUS")
            over = not status["running"] and (status["done"] or status["error"])
            if over and self.read("IRQ_STATUS"):
                if waiting.line is not None:
                    # It may have ended between the wait and the look: then it comes now.
                    waiting.ended(came or waiting.line.wait(CHECK_S))
                return status
            if left <= 0:
                return {}
            polls += 1
            if waiting.line is None:
                _pause(polls)


def _pause(polls: int) -> None:
    """Spin for the first polls, then sleep a little, then a little longer."""
    if polls > _SPIN_POLLS:
        time.sleep(min(_SLEEP_FIRST_S * (polls - _SPIN_POLLS), _SLEEP_MOST_S))


def board_at(device: Any, base_address: int) -> Board:
    """Return the one `Board` of a device and base address; it lives as long as the device.

    `device` None is pynq's active device: the real board.

    Raises
    ------
    DeviceNotFound
        When pynq finds no board.
    """
    if device is None:
        device = active_device()
    with _boards_lock:
        # Kept on the device itself: a table of ours would keep devices alive, or needs weak
        # references to objects that refer back to their key.
        boards = device.__dict__.setdefault("_shears_boards", {})
        if base_address not in boards:
            boards[base_address] = Board(device, base_address)
        return boards[base_address]


def active_device() -> Any:
    """Return pynq's active device.

    Raises
    ------
    DeviceNotFound
        When there is none.
    """
    pynq = import_pynq()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says it
            return pynq.Device.active_device
    except RuntimeError as error:
        raise DeviceNotFound(
            f"pynq finds no board ({error}); run this on the board, or pass device= a "
            "sim.SimulatedBoard"
        ) from error
