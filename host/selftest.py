# SPDX-License-Identifier: Apache-2.0
"""The host room: the self test of a board, from the first register to a network.

``python -m host.selftest --overlay shears.bit`` on a board. Each line needs those before it: the
first that fails says where to look. Nothing is needed but the accelerator: the test vectors are
random numbers of a seed, the answers come from the golden model in `hwgen.arch`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from host import selftest_programs as programs
from host.board import LOST_INTERRUPTS_MOST, Board, Waiting, active_device, board_at, import_pynq
from host.driver import DEFAULT_BASE_ADDRESS, find_ip, pin_of
from host.errors import (
    AcceleratorError,
    AcceleratorTimeout,
    AllocationError,
    InterruptUnavailable,
    ProgramError,
)
from host.interrupts import InterruptLine
from host.profile import decode, read_window
from hwgen.arch import isa
from hwgen.arch.bundle import BASE_CONSTANTS, BASE_INPUT, BASE_OUTPUT, Bundle
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.files import write_json
from hwgen.arch.isa import BEAT_BYTES, ISA_VERSION
from hwgen.arch.package import config_of
from hwgen.arch.registers import (
    ID_VALUE,
    REGISTERS,
    WATCHDOG_DEFAULT_CYCLES,
    Access,
    ErrorCode,
)

PASS, FAIL, SKIP = "pass", "fail", "skip"
TIMEOUT_S = 30.0
_GUARD_BYTES = 64
_READS_MOST = 256
_PATTERNS = (0x00000000, 0xFFFFFFFF, 0x55555555, 0xAAAAAAAA, *(1 << bit for bit in range(32)))

HINTS = {
    "identity": "is the Shears bitstream loaded, is this the base address that the overlay has, "
    "does the accelerator's clock run (FCLK_CLK0, clock wizard)?",
    "digest": "load the bitstream that was built for this configuration, with the .hwh of the same "
    "build; shears build makes both",
    "reset": "transfers on the bus must be able to end: does the memory port answer, does its "
    "clock run? Load the bitstream again",
    "registers": "the control bus (GP0, SmartConnect) or timing: look at the build's timing report "
    "and at the clock that runs",
    "fetch": "the memory bus: is HP0 enabled, 64 bits wide and in the accelerator's address map "
    "over all of DDR, does its clock run? pynq sets the port's width from the .hwh",
    "interrupt": "accelerator/irq through the AXI interrupt controller to IRQ_F2P, and a UIO "
    "device for it in the kernel's device tree; without it, runs poll",
    "errors": "the bitstream is of another version, or timing is not met: look at its report",
    "lines": "a data line of the memory bus: the port's width must be 64 bits on both sides (the "
    ".hwh, AFI registers); else timing",
    "loopback": "bursts and byte lanes of the memory bus: port width, SmartConnect settings; the "
    "buffers must not be cached differently from what pynq believes",
    "memory": "a block RAM or the wires to it: look at the build's timing report, at the clock "
    "that runs and at the supply; load the bitstream again",
    "resampler": "its multipliers or its line memories: timing, first of all; pictures that the "
    "host resizes (resize='host') do without it",
    "layer": "the multipliers or the requantizer: timing, first of all; memories that passed rule "
    "them out",
    "network": "what layers hand to each other: timing, first of all",
}
"""What to look at when a line fails."""


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes
    ----------
    name
        What was tested.
    status
        ``pass``, ``fail`` or ``skip``.
    detail
        What was found; for a skipped line, why.
    hint
        What to look at; empty unless it failed.
    seconds
        How long it took.
    """

    name: str
    status: str
    detail: str
    hint: str
    seconds: float

    def __str__(self) -> str:
        """One line, and the hint on one below it."""
        line = f"{self.status:4s}  {self.name:24s} {self.detail}"
        return f"{line}\n      look at: {self.hint}" if self.hint else line


class _Wrong(Exception):
    """Internal: a check found something else than it should."""


class _Skip(Exception):
    """Internal: a check does not apply here."""


@dataclass
class _Line:
    """A check that is to be made, and the lines that must have passed before."""

    name: str
    hint: str
    action: Callable[[], str]
    needs: tuple[str, ...] = ()


class SelfTest:
    """The self test of one accelerator.

    Parameters
    ----------
    config
        What the bitstream should be built for.
    device
        A pynq Device, a simulated board among them; None is the board this runs on.
    base_address
        Address of the registers.
    interrupt_pin
        Its interrupt in the overlay; without one that line is skipped.
    seed
        Of every random number.
    timeout_s
        Longest wait for one program.
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        device: Any = None,
        *,
        base_address: int = DEFAULT_BASE_ADDRESS,
        interrupt_pin: str | None = None,
        seed: int = 0,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.config, self.seed, self.timeout_s = config, seed, timeout_s
        self._device = active_device() if device is None else device
        self._pin = interrupt_pin
        self._board: Board = board_at(self._device, base_address)
        self._buffers: dict[str, Any] = {}

    def run(self, progress: Callable[[Check], None] | None = None) -> list[Check]:
        """Make every check, in order; `progress` gets each when it is done.

        Raises
        ------
        BoardBusy
            When another thread runs something on the accelerator all the time.
        """
        results: dict[str, Check] = {}
        with self._board.hold(self.timeout_s, "the self test"):
            try:
                for line in self._lines():
                    results[line.name] = self._check(line, results)
                    if progress is not None:
                        progress(results[line.name])
            finally:
                self._leave(results)
        return list(results.values())

    def _lines(self) -> list[_Line]:
        """List the checks; each but the first builds on others."""
        start = ("identity", "digest", "soft reset")
        bus = (*start, "program fetch")
        moved = (*bus, "data lines", "dma loopback")
        banks = tuple(f"scratchpad bank {i}" for i in range(self.config.scratchpad_banks))
        found = self._scratchpad()
        memories = (*moved, *banks, "synapse buffer", "tap buffer")
        return [
            _Line("identity", "identity", self._identity),
            _Line("digest", "digest", self._digest, start[:1]),
            _Line("soft reset", "reset", self._soft_reset, start[:2]),
            _Line("registers hold values", "registers", self._hold_values, start),
            _Line("registers are read only", "registers", self._read_only, start),
            _Line("program fetch", "fetch", self._fetch, start),
            _Line("interrupt", "interrupt", self._interrupt, bus),
            _Line("errors stop a run", "errors", self._errors, bus),
            _Line("data lines", "lines", self._data_lines, bus),
            _Line("dma loopback", "loopback", self._loopback, bus),
            *(
                # Not behind `moved`: what one bank does alone is no fault of the bus.
                _Line(name, "memory", partial(found, bank), bus)
                for bank, name in enumerate(banks)
            ),
            _Line("synapse buffer", "memory", self._synapse, (*moved, *banks)),
            _Line("tap buffer", "memory", self._taps, (*moved, *banks)),
            _Line("resampler", "resampler", self._boxes, (*moved, *banks)),
            _Line("trace buffer", "memory", self._trace, bus),
            _Line("known-answer layer", "layer", self._layer, memories),
            _Line("known-answer network", "network", self._network, memories),
        ]

    def _check(self, line: _Line, before: dict[str, Check]) -> Check:
        started = time.perf_counter()
        missing = [name for name in line.needs if before[name].status != PASS]
        status, hint = PASS, ""
        if missing:
            status, detail = SKIP, f"needs {missing[0]!r}"
        else:
            try:
                detail = line.action()
            except _Skip as reason:
                status, detail = SKIP, str(reason)
            except _Wrong as error:
                status, detail, hint = FAIL, str(error), HINTS[line.hint]
            except (AcceleratorError, OSError, RuntimeError) as error:
                status, hint = FAIL, HINTS[line.hint]
                detail = f"{type(error).__name__}: {error}"
        return Check(line.name, status, detail, hint, time.perf_counter() - started)

    def _leave(self, results: dict[str, Check]) -> None:
        """Leave the board idle, with nothing that anybody could take for resident."""
        self._board.forget()
        stopped = True
        if "soft reset" in results and results["soft reset"].status == PASS:
            try:
                stopped = self._board.soft_reset()
            except (OSError, RuntimeError):  # the device went away, and its memory with it
                stopped = True
        if stopped:
            for buffer in self._buffers.values():
                buffer.freebuffer()
        else:
            self._board.quarantine.extend(self._buffers.values())
        self._buffers = {}

    # Registers.

    def _identity(self) -> str:
        found = self._board.read("ID")
        if found != ID_VALUE:
            raise _Wrong(
                f"ID at {self._board.base_address:#010x} must read {ID_VALUE:#010x}, not "
                f"{found:#010x}"
            )
        version = self._board.read("VERSION")
        if version != ISA_VERSION:
            raise _Wrong(f"VERSION must read {ISA_VERSION}, as this software's, not {version}")
        return f"a Shears accelerator, instruction set {version}"

    def _digest(self) -> str:
        found = self._board.read("DIGEST_LOW") | self._board.read("DIGEST_HIGH") << 32
        if found != self.config.digest():
            raise _Wrong(f"DIGEST must read {self.config.digest():016x}, not {found:016x}")
        return f"{found:016x}"

    def _soft_reset(self) -> str:
        if not self._board.soft_reset():
            status = self._board.read_fields("STATUS")
            raise _Wrong(f"a soft reset must end; STATUS is {status}")
        return "idle"

    def _hold_values(self) -> str:
        """Write every pattern to every register, then another value to each at once."""
        board = self._board
        masks = {
            register.name: sum(field.maximum << place for field, place in register.layout.placed())
            for register in REGISTERS
            if register.access is Access.READ_WRITE
        }
        try:
            for name, mask in masks.items():
                for pattern in _PATTERNS:
                    board.write(name, pattern & mask)
                    self._reads(name, pattern & mask)
            # Different values, so that registers that share an address do not pass.
            for number, (name, mask) in enumerate(masks.items()):
                board.write(name, (0x01010101 * (number + 1)) & mask)
            for number, (name, mask) in enumerate(masks.items()):
                self._reads(name, (0x01010101 * (number + 1)) & mask)
        finally:
            for register in REGISTERS:
                if register.access is Access.READ_WRITE:
                    board.write(register.name, register.reset)
            self._soft_reset()  # sets our mark again
        return f"{len(masks)} registers, {len(_PATTERNS)} patterns"

    def _reads(self, name: str, wanted: int) -> None:
        """See that a register reads as `wanted`. Reads may overtake the write for a while."""
        for _ in range(_READS_MOST):
            found = self._board.read(name)
            if found == wanted:
                return
        raise _Wrong(
            f"{name} must read {wanted:#010x} after writing it, not {found:#010x} (bits "
            f"{found ^ wanted:#010x})"
        )

    def _read_only(self) -> str:
        board = self._board
        fixed = [r.name for r in REGISTERS if r.access is Access.READ]
        before = {name: board.read(name) for name in fixed}
        for name in fixed:
            board.write(name, ~before[name] & 0xFFFFFFFF)
        for name in fixed:
            found = board.read(name)
            if found != before[name]:
                raise _Wrong(
                    f"{name} must not change when written, but went from {before[name]:#010x} to "
                    f"{found:#010x}"
                )
        if board.read("CONTROL"):
            raise _Wrong(f"CONTROL must read 0, not {board.read('CONTROL'):#010x}")
        return f"{len(fixed)} registers"

    # Runs.

    def _buffer(self, name: str, size: int) -> Any:
        """Return a DMA buffer of at least `size` bytes, kept for later runs."""
        if name not in self._buffers or len(self._buffers[name]) < size:
            if name in self._buffers:
                self._buffers.pop(name).freebuffer()
            try:
                self._buffers[name] = import_pynq().allocate(
                    (size,), dtype="u1", target=self._device
                )
            except Exception as error:
                raise AllocationError(
                    f"no DMA memory for the self test's {name}: {size} bytes refused ({error}); "
                    "close accelerators that are open, or enlarge the board's CMA"
                ) from error
        return self._buffers[name]

    def _make_room(self, sizes: Mapping[str, int]) -> None:
        """Free all buffers if one has to grow: a board's memory may not have room for both."""
        if any(len(self._buffers.get(name, ())) < size for name, size in sizes.items()):
            buffers, self._buffers = self._buffers, {}
            for buffer in buffers.values():
                buffer.freebuffer()

    def _execute(self, what: str, job: programs.Job, waiting: Waiting | None = None) -> Any:
        """Run a job; returns its output region with the guard behind it, uint8."""
        self._board.claim(self.config.digest())
        bases = {}
        size = len(job.wanted) + _GUARD_BYTES
        given = {"constants": job.constants, "input": job.inputs.tobytes()}
        sizes = {name: len(data) for name, data in given.items()}
        self._make_room({**sizes, "output": size, "program": len(job.program)})
        for base, name in ((BASE_CONSTANTS, "constants"), (BASE_INPUT, "input")):
            if given[name]:
                bases[base] = self._fill(name, given[name])
        bases[BASE_OUTPUT] = self._fill("output", bytes([programs.UNTOUCHED]) * size)
        self._board.execute(
            f"the self test's {what}",
            self._fill("program", job.program),
            job.program,
            bases,
            WATCHDOG_DEFAULT_CYCLES,
            self.timeout_s,
            waiting,
        )
        output = self._buffers["output"]
        output.invalidate()
        return np.array(output[:size], dtype=np.uint8)

    def _fill(self, name: str, data: bytes) -> int:
        """Write data to a buffer; returns its address for the accelerator."""
        buffer = self._buffer(name, len(data))
        buffer[: len(data)] = np.frombuffer(data, np.uint8)
        buffer.flush()
        return int(buffer.device_address)

    def _run(self, what: str, job: programs.Job) -> None:
        """Run a job and insist on its answer."""
        found = self._execute(what, job)
        guard = np.full(_GUARD_BYTES, programs.UNTOUCHED, np.uint8)
        _compare(found[: len(job.wanted)], job.wanted, job.compared, what)
        _compare(found[len(job.wanted) :], guard, None, f"the bytes behind {what}")

    def _rng(self, number: int) -> np.random.Generator:
        """Return a generator of its own for each check, so that none depends on another."""
        return np.random.default_rng([self.seed, number])

    def _fetch(self) -> str:
        self._execute("empty program", programs.nothing())
        return "a program of one instruction ran to its END"

    def _interrupt(self) -> str:
        if self._pin is None:
            raise _Skip("no overlay was given that tells the pin")
        try:
            if active_device() is not self._device:
                raise _Skip("pynq takes interrupts of its active device alone")
            waiting = Waiting(InterruptLine(self._pin), fall_back=False)
        except InterruptUnavailable as error:
            raise _Wrong(str(error)) from error
        for number in range(LOST_INTERRUPTS_MOST):
            self._execute("empty program", programs.nothing(), waiting)
            if waiting.lost:
                raise _Wrong(f"run {number + 1} ended, and no interrupt came")
        return f"{self._pin!r} came {LOST_INTERRUPTS_MOST} times"

    def _errors(self) -> str:
        try:
            self._execute("bad program", programs.bad_opcode())
        except ProgramError as error:
            if error.code != ErrorCode.BAD_OPCODE:
                raise _Wrong(f"the error must be BAD_OPCODE, not {error}") from error
        except AcceleratorTimeout as error:
            raise _Wrong(f"a bad instruction must stop the run: {error}") from error
        else:
            raise _Wrong("a bad instruction must stop the run, but it ended well")
        self._execute("empty program", programs.nothing())
        return "a bad instruction did, and the next run worked"

    def _data_lines(self) -> str:
        self._run("the pattern on the bus", programs.bus_patterns(self.config))
        return "64, high alone and low alone"

    def _loopback(self) -> str:
        job = programs.loopback(self.config, self._rng(1))
        self._run("what was loaded and stored", job)
        transfers = len(job.program) // isa.INSTRUCTION_BYTES // 2
        return f"{transfers} sizes and alignments, {len(job.wanted):,} bytes"

    def _scratchpad(self) -> Callable[[int], str]:
        """Return a check of one bank; all of them are filled before the first is read."""
        size = self.config.scratchpad_bank_words * self.config.ti
        pairs: list[tuple[Any, Any]] = []

        def check(bank: int) -> str:
            if not pairs:
                data = programs.random_bytes(self._rng(2), size * self.config.scratchpad_banks)
                for one in (data, ~data):  # every bit is 0 once and 1 once
                    job = programs.scratchpad(self.config, one)
                    pairs.append((self._execute("scratchpad", job), one))
            for found, wanted in pairs:
                place = slice(bank * size, (bank + 1) * size)
                _compare(found[place], wanted[place], None, f"bank {bank}")
            return f"{size:,} bytes, every bit as 0 and as 1"

        return check

    def _synapse(self) -> str:
        for low in (False, True):
            for inverted in (False, True):
                jobs = programs.synapse(self.config, self._rng(3), inverted, low)
                for job in jobs:
                    self._run("a row of the synapse buffer", job)
        return f"{self.config.synapse_rows:,} rows, every bit as 0 and as 1"

    def _taps(self) -> str:
        for inverted in (False, True):
            for job in programs.taps(self.config, self._rng(4), inverted):
                self._run("the word that a tap points to", job)
        return f"{self.config.tap_entries:,} entries, every bit as 0 and as 1"

    def _boxes(self) -> str:
        if not self.config.resampler_row_bytes:
            raise _Skip("the configuration has none")
        jobs = programs.boxes(self.config, self._rng(7))
        for job in jobs:
            self._run("a box, resized", job)
        return f"{len(jobs)} boxes equal to those resized here"

    def _trace(self) -> str:
        job = programs.taps(self.config, self._rng(4), inverted=False)[0]
        program = decode(job.program)
        self._board.write("TRACE_FIRST", 0)
        self._execute("program to trace", job)
        last = min(self.config.trace_entries, len(program))
        read_window(self._board, program, 0, last)
        return f"one record of each of {last} instructions"

    def _layer(self) -> str:
        return self._known("layer", programs.known_layer(self.config, self._rng(5)))

    def _network(self) -> str:
        return self._known("network", programs.known_network(self.config, self._rng(6)))

    def _known(self, what: str, job: programs.Job | None) -> str:
        if job is None:
            raise _Skip(f"the configuration's memories are too small for the {what}")
        self._run(f"the {what}'s result", job)
        layers = sum(isa.Opcode.COMPUTE is opcode for opcode, _ in decode(job.program))
        return f"{layers} COMPUTEs, {len(job.wanted):,} bytes equal to the golden model's"


def _compare(found: Any, wanted: Any, compared: Any, what: str) -> None:
    """Insist on equal bytes; say which differ, where on the bus, and in which bits."""
    different = found != wanted
    if compared is not None:
        different &= compared
    wrong = np.flatnonzero(different)
    if len(wrong):
        first = int(wrong[0])
        bits = int(np.bitwise_or.reduce(found[wrong] ^ wanted[wrong]))
        lanes = sorted({int(place) % BEAT_BYTES for place in wrong})
        raise _Wrong(
            f"{what}: {len(wrong)} of {len(wanted)} bytes differ, the first is byte {first}, "
            f"{int(found[first]):#04x} in place of {int(wanted[first]):#04x}; bits {bits:#04x} in "
            f"byte lanes {lanes}"
        )


def report(test: SelfTest, checks: Sequence[Check]) -> dict[str, Any]:
    """Return the result as plain data."""
    return {
        "passed": all(check.status != FAIL for check in checks),
        "config": test.config.to_dict(),
        "digest": f"{test.config.digest():016x}",
        "base_address": test._board.base_address,
        "seed": test.seed,
        "checks": [asdict(check) for check in checks],
    }


def make_selftest(
    device: Any,
    overlay: str | None,
    ip: str | None,
    bundle: str | None,
    base_address: int | None,
    **options: Any,
) -> SelfTest:
    """Make the self test of an overlay's accelerator, or of the one that a bundle is for.

    Raises
    ------
    ValueError
        When neither an overlay nor a bundle tells the configuration, or the .hwh is damaged.
    AcceleratorError
        When there is no board or no accelerator in the overlay.
    """
    config, pin = None, None
    if overlay is not None:
        loaded = import_pynq().Overlay(overlay, device=device)
        device, entry = loaded.device, find_ip(loaded.ip_dict, ip)
        base_address = int(entry["phys_addr"]) if base_address is None else base_address
        config, pin = config_of(entry["parameters"]), pin_of(entry)
    if bundle is not None:
        config = Bundle.load(bundle).config
    if config is None:
        raise ValueError(
            "--overlay FILE.bit or --bundle FOLDER must be given, which tell the configuration"
        )
    place = DEFAULT_BASE_ADDRESS if base_address is None else base_address
    return SelfTest(config, device, base_address=place, interrupt_pin=pin, **options)


def main(argv: Sequence[str] | None = None, device: Any = None) -> int:
    """Run the self test as a command; returns 1 when a line failed."""
    parser = argparse.ArgumentParser(
        prog="python -m host.selftest", description="Test the accelerator of this board."
    )
    add_arguments(parser)
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON; - prints it")
    arguments = parser.parse_args(argv)
    try:
        result = run_and_print(selftest_of(arguments, device), quiet=arguments.json == "-")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"selftest: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if arguments.json == "-":
        print(json.dumps(result, indent=1))
    elif arguments.json:
        write_json(arguments.json, result)
    return 0 if result["passed"] else 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what to test."""
    parser.add_argument("--overlay", metavar="FILE.bit", help="bitstream to load, beside its .hwh")
    parser.add_argument("--ip", help="name of the accelerator, where the overlay holds several")
    parser.add_argument("--bundle", metavar="FOLDER", help="test for this bundle's configuration")
    parser.add_argument("--base-address", type=lambda text: int(text, 0), metavar="ADDRESS")
    parser.add_argument("--seed", type=int, default=0, help="of all test data")
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT_S, metavar="SECONDS", help="for one program"
    )


def selftest_of(arguments: argparse.Namespace, device: Any = None) -> SelfTest:
    """Make the self test that the options ask for; raises as `make_selftest`."""
    where = (arguments.overlay, arguments.ip, arguments.bundle, arguments.base_address)
    return make_selftest(device, *where, seed=arguments.seed, timeout_s=arguments.timeout)


def run_and_print(test: SelfTest, quiet: bool = False) -> dict[str, Any]:
    """Run a self test, print each line when it is known, and return the report."""
    checks = test.run(None if quiet else lambda check: print(check, flush=True))
    result = report(test, checks)
    if not quiet:
        counts = {status: sum(c.status == status for c in checks) for status in (PASS, FAIL, SKIP)}
        print(
            f"{counts[PASS]} passed, {counts[FAIL]} failed, {counts[SKIP]} skipped; configuration "
            f"{result['digest']}, seed {test.seed}"
        )
    return result


if __name__ == "__main__":
    sys.exit(main())
