# SPDX-License-Identifier: Apache-2.0
"""The host room: `Accelerator`, a bundle on a board. Give it an image, get logits."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import operator
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from host.board import Board, Waiting, active_device, board_at, import_pynq
from host.errors import (
    AcceleratorClosed,
    AcceleratorError,
    AllocationError,
    ChecksumError,
    DeviceNotFound,
    InterruptUnavailable,
    RunStopped,
)
from host.frames import ADDRESS_LIMIT, Frame
from host.interrupts import InterruptLine
from hwgen.arch import isa
from hwgen.arch.bundle import (
    BASE_CONSTANTS,
    BASE_FRAME,
    BASE_INPUT,
    BASE_OUTPUT,
    BASE_SCRATCH,
    BASE_TABLES,
    Bundle,
)
from hwgen.arch.frames import FrameProgram, code_table, frame_program
from hwgen.arch.package import IP_VLNV
from hwgen.arch.registers import BY_NAME, WATCHDOG_DEFAULT_CYCLES

LOG = logging.getLogger("shears.host")

DEFAULT_BASE_ADDRESS = 0x43C0_0000
"""Where Vivado puts the first slave on a Zynq-7000's GP0."""

WAITS = ("auto", "interrupt", "poll")
FRAME_PROGRAMS_MOST = 8
"""Programs for boxes of different sizes that an accelerator keeps in DMA memory."""

MEMORY_INFO = "/proc/meminfo"

_BUSY = BY_NAME["STATUS"].layout.pack({"running": 1, "resetting": 1})


@dataclass(frozen=True)
class RunRecord:
    """What the last run took.

    Attributes
    ----------
    counters
        Every counter register after the run, by name.
    pack_seconds, device_seconds, unpack_seconds
        Quantizing and copying in, from start to done (all attempts), copying out.
    setup_seconds
        Reloading constants that another bundle had overwritten; 0 when they were resident.
    total_seconds
        From the call to the output's codes.
    attempts
        1, or 2 when a transient error was retried.
    errors
        Messages of the attempts that failed.
    waited
        How the end was waited for: ``polling``, or the interrupt by its name.
    setup_cycles
        Clock cycles of that reloading.
    """

    counters: dict[str, int]
    pack_seconds: float
    setup_seconds: float
    device_seconds: float
    unpack_seconds: float
    total_seconds: float
    attempts: int
    errors: tuple[str, ...] = ()
    waited: str = "polling"
    setup_cycles: int = 0

    @property
    def cycles(self) -> int:
        """Clock cycles from start to END; those of a reloading before are `setup_cycles`."""
        return self.counters["CYCLES_TOTAL"]


class Accelerator:
    """A bundle, loaded on a board and ready to run.

    Several accelerators may share a board: they take turns under one lock, and their constants
    stay resident side by side where their placements allow. All methods may be called from
    several threads; one that does not get the board within `timeout_s` raises BoardBusy.

    Parameters
    ----------
    bundle
        The compiled network.
    device
        A pynq Device, a simulated board among them; None is the board this runs on.
    overlay
        A `pynq.Overlay`, or the path of a bitstream to load; its ip_dict gives the base address
        and the interrupt.
    ip
        Name of the accelerator in the overlay, where it holds several.
    base_address
        Address of the registers; by default the overlay's, or 0x43C00000 without one.
    timeout_s
        Longest wait for one program. A hung machine stops itself much earlier (`watchdog_cycles`).
    watchdog_cycles
        Cycles without progress after which the hardware stops a run.
    wait
        How to wait for a run's end. ``poll`` reads STATUS: quickest for runs below a millisecond,
        and one processor core is busy. ``interrupt`` sleeps until pynq's `Interrupt` comes.
        ``auto`` takes the interrupt where the overlay has one that pynq can wait for, else polls.
    interrupt_pin
        Full name of the interrupt in the overlay; by default the one that the overlay tells.

    Raises
    ------
    TypeError, ValueError
        For arguments that make no sense.
    InterruptUnavailable
        With ``wait="interrupt"``, when there is none.
    DeviceNotFound, WrongHardware, DigestMismatch, AllocationError, RunStopped, AcceleratorTimeout,
    TransportError
        See `host.errors`; nothing stays allocated.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Any = None,
        *,
        overlay: Any = None,
        ip: str | None = None,
        base_address: int | None = None,
        timeout_s: float = 30.0,
        watchdog_cycles: int = WATCHDOG_DEFAULT_CYCLES,
        wait: str = "auto",
        interrupt_pin: str | None = None,
    ) -> None:
        if not isinstance(bundle, Bundle):
            raise TypeError(
                f"bundle must be a Bundle, not {type(bundle).__name__}; try Bundle.load(folder)"
            )
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, not {timeout_s!r}")
        if not 0 <= watchdog_cycles < ADDRESS_LIMIT:
            raise ValueError(f"watchdog_cycles must fit 32 bits, not {watchdog_cycles!r}")
        if wait not in WAITS:
            raise ValueError(f"wait must be one of {WAITS}, not {wait!r}")
        if overlay is not None:
            if isinstance(overlay, (str, os.PathLike)):
                # Only its ip_dict is read: it matters not which drivers pynq binds.
                overlay = import_pynq().Overlay(os.fspath(overlay), device=device)
            device = overlay.device
            if base_address is None:
                entry = find_ip(overlay.ip_dict, ip)
                base_address = int(entry["phys_addr"])
                interrupt_pin = interrupt_pin or pin_of(entry)
        self.bundle = bundle
        self.timeout_s = timeout_s
        self.watchdog_cycles = watchdog_cycles
        self._device = active_device() if device is None else device
        address = DEFAULT_BASE_ADDRESS if base_address is None else base_address
        self._board: Board = board_at(self._device, address)
        self._wait, self._interrupt_pin = wait, interrupt_pin
        self._waiting = Waiting()
        self._buffers: dict[str, Any] = {}
        self._last_run: RunRecord | None = None
        self._open = True
        self._copied = -1
        self._lookup = code_table(bundle)
        # What the buffers that a run does not write must hold, by their names.
        self._contents = {name: getattr(bundle, name) for name in ("setup", "program", "constants")}
        self._frame_programs: dict[str, FrameProgram] = {}
        self._resident_key = hashlib.sha256(
            bundle.setup + bundle.constants + repr(bundle.placement).encode()
        ).hexdigest()
        try:
            self.load()
        except BaseException:
            self.close()
            raise

    @property
    def device(self) -> Any:
        """The pynq Device that it is on."""
        return self._device

    @property
    def last_run(self) -> RunRecord | None:
        """Counters and times of the last run that succeeded; None before the first."""
        return self._last_run

    def load(self) -> None:
        """Check the hardware, copy programs and constants, run the setup program.

        The constructor calls it. Call it again after loading a bitstream anew.

        Raises
        ------
        WrongHardware, DigestMismatch
            When the accelerator is not the one the bundle was compiled for.
        AllocationError
            When the board has no memory for it.
        RunStopped, AcceleratorTimeout
            When the setup program fails (after one retry, for transient errors).
        TransportError
            When the device does not answer.
        """
        with self._held("loading"):
            self._check_open()
            self._board.check_identity(self.bundle.config.digest())
            # Before any memory is written: a run that a killed process left may still write to it.
            self._board.claim(self.bundle.config.digest())
            self._waiting = self._choose_waiting()
            if not self._buffers:
                self._allocate(
                    {
                        **{name: len(content) for name, content in self._contents.items()},
                        "input": self.bundle.input_bytes,
                        "output": self.bundle.output_bytes,
                        "scratch": self.bundle.scratch_bytes,
                    }
                )
            self._copy_constants()
            self._board.resident.pop(self._resident_key, None)
            self._attempt(self._ensure_setup)

    def locked(self) -> AbstractContextManager[Any]:
        """Keep the board for this thread: ``with accelerator.locked(): ...``.

        Raises
        ------
        BoardBusy
            When another thread keeps it for all of `timeout_s`.
        """
        return self._held("locking")

    def _held(self, doing: str) -> AbstractContextManager[Any]:
        return self._board.hold(self.timeout_s, f"{doing} {self.bundle.name!r}")

    def _choose_waiting(self) -> Waiting:
        """Open the interrupt, or poll, as `wait` says."""
        if self._wait == "poll":
            return Waiting()
        try:
            if self._interrupt_pin is None:
                raise InterruptUnavailable(
                    "no interrupt is known; give overlay= or load through overlay.accelerator, "
                    "or use wait='poll'"
                )
            if active_device() is not self._device:  # pynq looks interrupts up there alone
                raise InterruptUnavailable(
                    "pynq takes interrupts of its active device alone, which this one is not; "
                    "set pynq.Device.active_device, or use wait='poll'"
                )
            return Waiting(InterruptLine(self._interrupt_pin), fall_back=self._wait == "auto")
        except (InterruptUnavailable, DeviceNotFound) as error:
            if self._wait == "interrupt":
                raise
            LOG.info("%r is polled: %s", self.bundle.name, error)
            return Waiting()

    def run(self, image: ArrayLike) -> NDArray[np.float32]:
        """Run one image through the network.

        Parameters
        ----------
        image
            float32 (C, H, W) or (1, C, H, W); or uint8 (H, W, C), when the bundle was compiled
            with mean and std.

        Returns
        -------
        numpy.ndarray
            float32, a copy: (classes,) for a network that ends in a vector, else (H, W, C).

        Raises
        ------
        ValueError
            For another shape or dtype, NaN or infinity, or a bundle with several outputs or of
            several images.
        RunStopped, AcceleratorTimeout, TransportError, AcceleratorClosed
            See `host.errors`. The board is usable afterwards.
        """
        self._check_single_output("run")
        if self.bundle.batch != 1:
            raise ValueError(
                f"run takes one image, and {self.bundle.name!r} runs {self.bundle.batch} at once; "
                "try run_batch, or compile with batch=1"
            )
        started = time.perf_counter()
        codes = self._execute(self._quantize(image), started)[0]
        return self.bundle.dequantize_output(0, codes)

    def run_box(
        self, frame: Frame, y0: int, x0: int, height: int, width: int
    ) -> NDArray[np.float32]:
        """Run the network on a box of a frame that lies in DMA memory.

        The accelerator reads the box, resizes it to the network's input as `hwgen.arch.crop.resize`
        does, and turns bytes into codes: the processor touches no pixel. The result equals
        ``run(resize(box))``, bit for bit. A box of another size than those before gets a program of
        its own, once; where in the frame the box lies costs nothing.

        Parameters
        ----------
        frame
            Flushed, if the processor wrote it.
        y0, x0, height, width
            The box in pixels: ``frame.pixels[y0 : y0 + height, x0 : x0 + width]``.

        Returns
        -------
        numpy.ndarray
            As `run`.

        Raises
        ------
        ValueError
            For a box that is not inside the frame, or a frame with other channels or on another
            device.
        TypeError
            For a box that is no integers.
        hwgen.arch.frames.FrameError
            When the machine has no resampler, or the box is too large for it, or the bundle takes
            no pictures.
        RunStopped, AcceleratorTimeout, AcceleratorClosed, AllocationError
            As `run`.
        """
        self._check_single_output("run_box")
        started = time.perf_counter()
        rows, columns, channels = frame.shape
        if channels != self.bundle.input.shape[0]:
            raise ValueError(
                f"a frame for {self.bundle.name!r} must have {self.bundle.input.shape[0]} "
                f"channels, not {channels}"
            )
        if frame.device is not self._device:
            raise ValueError(
                f"a frame for {self.bundle.name!r} must be on its device, not on another; make it "
                "with device=accelerator.device"
            )
        y0, x0, height, width = map(operator.index, (y0, x0, height, width))
        inside = 0 <= y0 and 0 <= x0 and y0 + height <= rows and x0 + width <= columns
        if not inside or height < 1 or width < 1:
            raise ValueError(
                f"a box must lie inside the frame of {rows} x {columns} pixels, not at "
                f"y {y0}, x {x0} with {height} x {width}"
            )
        address = frame.address + y0 * frame.pitch_bytes + x0 * channels

        def ready() -> Callable[[], None]:
            name = self._frame_program(height, width, frame.pitch_bytes)
            program = self._frame_programs[name].program
            tables = int(self._buffers[name].device_address) + len(program)
            bases = {BASE_TABLES: tables, BASE_FRAME: address}
            return lambda: self._program(name, program, bases)

        codes = self._run(ready, started, 0.0)[0]
        return self.bundle.dequantize_output(0, codes)

    def _frame_program(self, height: int, width: int, pitch: int) -> str:
        """Return the name of the program for boxes of this size; make it, if it is not here."""
        name = f"program for boxes of {height} x {width} pixels, {pitch} bytes a row"
        if name in self._frame_programs:
            self._frame_programs[name] = self._frame_programs.pop(name)  # the newest, again
            return name
        program = frame_program(self.bundle, height, width, pitch)
        while len(self._frame_programs) >= FRAME_PROGRAMS_MOST:
            oldest = next(iter(self._frame_programs))
            del self._frame_programs[oldest]
            self._release(oldest)
        self._contents[name] = program.program + program.tables
        try:
            self._allocate({name: len(self._contents[name])})
        except BaseException:
            del self._contents[name]
            raise
        self._frame_programs[name] = program
        self._copy(name)
        return name

    def _release(self, name: str) -> None:
        """Give one buffer back whose content is ours."""
        bundle, held = self._board.allocated[self]
        self._board.allocated[self] = bundle, held - len(self._contents.pop(name))
        self._buffers.pop(name).freebuffer()

    async def run_async(self, image: ArrayLike) -> NDArray[np.float32]:
        """Run one image as `run` does, while the caller's event loop goes on.

        Runs of a board take place one after the other, in a thread of the board's own. Cancelling
        the task of one that has begun gives its result up; the run goes on to its end.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._board.worker(), self.run, image)

    def run_int8(self, codes: NDArray[np.int8]) -> NDArray[np.int8]:
        """Run int8 codes (H, W, C); returns the output's int8 codes, a copy. Raises as `run`.

        Both have a leading axis of `bundle.batch` where that is above 1.
        """
        self._check_single_output("run_int8")
        return self.run_outputs_int8(codes)[0]

    def run_outputs_int8(self, codes: NDArray[np.int8]) -> tuple[NDArray[np.int8], ...]:
        """Run int8 codes as `run_int8`; returns every output's int8 codes. Raises as `run`."""
        return self._execute(codes, time.perf_counter())

    def run_batch(self, images: Iterable[ArrayLike]) -> NDArray[np.float32]:
        """Run images, `bundle.batch` at once; float32 (N, ...), one row each. Raises as `run`.

        `images` may be an array (N, C, H, W) or any iterable of what `run` takes; none at all is
        a ValueError. A last batch that is not full is filled up with its own last image. `last_run`
        is the last batch's.
        """
        self._check_single_output("run_batch")
        count = self.bundle.batch
        results, waiting = [], iter(images)
        while True:
            started = time.perf_counter()
            batch = [self._quantize(image) for image in itertools.islice(waiting, count)]
            if not batch:
                break
            codes = np.stack(batch + batch[-1:] * (count - len(batch)))
            out = self._execute(codes if count > 1 else codes[0], started)[0]
            rows = self.bundle.dequantize_output(0, out)
            results.append(rows[: len(batch)] if count > 1 else rows[None])
        if not results:
            raise ValueError("images must hold at least one image, not none")
        return np.concatenate(results)

    def close(self) -> None:
        """Free the DMA memory. Closing again does nothing."""
        with self._held("closing"):
            if not self._open:
                return
            self._open = False
            buffers, self._buffers = self._buffers, {}
            self._board.let_go(self, buffers, self._stopped, "accelerator")

    def _stopped(self) -> bool:
        """Tell whether nothing writes to DDR any more, after a soft reset if need be."""
        try:
            return self._board.read("STATUS") & _BUSY == 0 or self._board.soft_reset()
        except (OSError, RuntimeError) as error:
            # A register of a Zynq can always be read; a device that went away took its DDR along.
            LOG.warning("the device does not answer while it is closed: %s", error)
            return True

    def __enter__(self) -> Accelerator:
        """Return the accelerator; leaving the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _check_open(self) -> None:
        if not self._open:
            raise AcceleratorClosed(
                f"the accelerator of {self.bundle.name!r} must not be used after close(); "
                "make another"
            )

    def _check_single_output(self, method: str) -> None:
        count = len(self.bundle.outputs)
        if count != 1:
            raise ValueError(
                f"{method} must be used with one output, not {count}; try run_outputs_int8"
            )

    def _allocate(self, sizes: Mapping[str, int]) -> None:
        """Allocate a buffer for each region that is not empty; all of them, or none."""
        bundle, alignment = self.bundle, isa.INSTRUCTION_BYTES
        made: dict[str, Any] = {}
        allocate = import_pynq().allocate
        try:
            for name, size in sizes.items():
                if not size:
                    continue
                try:
                    made[name] = allocate((size,), dtype="u1", target=self._device)
                except Exception as error:
                    asked = ", ".join(f"{key} {value}" for key, value in sizes.items() if value)
                    reason = str(error).rstrip(".") or type(error).__name__
                    _free(made)
                    raise AllocationError(
                        f"no DMA memory for the {name} of {bundle.name!r}: {size} bytes refused "
                        f"({reason}); it needs {sum(sizes.values())} bytes in all ({asked}); "
                        f"{self._memory_state()}; close other accelerators, or enlarge the "
                        "board's CMA"
                    ) from error
                address = int(made[name].device_address)
                if address % alignment or address + size > ADDRESS_LIMIT:
                    raise AllocationError(
                        f"the {name} buffer of {bundle.name!r} must lie below 4 GiB at a multiple "
                        f"of {alignment} bytes, not at {address:#x}"
                    )
        except BaseException:
            _free(made)
            raise
        self._buffers |= made
        _, held = self._board.allocated.get(self, ("", 0))
        self._board.allocated[self] = (bundle.name, held + sum(sizes.values()))

    def _memory_state(self) -> str:
        """Say what DMA memory is free, where the kernel tells, and who has some here."""
        held = [f"{name!r} {size}" for name, size in self._board.allocated.values()]
        others = f"bundles loaded here hold {', '.join(held) or 'nothing'}"
        free = cma_bytes()
        return others if free is None else f"CMA has {free[0]} of {free[1]} bytes free; {others}"

    def _copy_constants(self) -> None:
        """Write programs and constants to DDR, whatever is there."""
        self._copied = self._board.losses
        for name in self._contents:
            if name in self._buffers:
                self._copy(name)

    def _copy(self, name: str) -> None:
        """Write what a buffer must hold."""
        self._buffers[name][:] = np.frombuffer(self._contents[name], dtype=np.uint8)
        with self._board.answering(f"copying the {name} of {self.bundle.name!r}"):
            self._buffers[name].flush()

    def _damage(self) -> str:
        """Say where DDR differs from the bundle, for a checksum error."""
        for name, content in self._contents.items():
            if name in self._buffers:
                with self._board.answering(f"reading the {name} of {self.bundle.name!r}"):
                    self._buffers[name].invalidate()
                good = np.frombuffer(content, dtype=np.uint8)
                wrong = np.flatnonzero(np.asarray(self._buffers[name]) != good)
                if len(wrong):
                    return (
                        f"{name} in DDR differs from the bundle in {len(wrong)} bytes, "
                        f"first at {wrong[0]}"
                    )
        return "programs and constants in DDR equal the bundle's, so the bus read them wrongly"

    def _program(self, name: str, program: bytes, more: Mapping[int, int]) -> None:
        """Run a program that lies in the buffer `name`, with `more` bases than the bundle's own."""
        used = {
            BASE_CONSTANTS: "constants",
            BASE_INPUT: "input",
            BASE_OUTPUT: "output",
            BASE_SCRATCH: "scratch",
        }
        bases = {
            index: int(self._buffers[region].device_address) if region in self._buffers else 0
            for index, region in used.items()
        }
        self._board.execute(
            f"{name} of {self.bundle.name!r}",
            int(self._buffers[name].device_address),
            program,
            bases | dict(more),
            self.watchdog_cycles,
            self.timeout_s,
            self._waiting,
        )

    def _ensure_setup(self) -> int:
        """Make our constants the resident ones of their region; return the cycles that it took."""
        board, placement = self._board, self.bundle.placement
        board.claim(self.bundle.config.digest())
        if self._copied != board.losses:  # the board may have been without power since
            self._copy_constants()
        if self._resident_key in board.resident:
            return 0
        # Also without a setup program: then each run streams weights through the region.
        for key in [k for k, other in board.resident.items() if other.overlaps(placement)]:
            del board.resident[key]
        if not self.bundle.setup:
            return 0
        self._program("setup", self.bundle.setup, {})
        board.resident[self._resident_key] = placement
        return board.read("CYCLES_TOTAL")

    def _attempt(self, action: Callable[[], object]) -> tuple[str, ...]:
        """Do `action`, once more after a transient error; returns the messages of failures."""
        try:
            action()
            return ()
        except RunStopped as error:  # the board has been reset
            if not error.transient:
                raise
            first = error
        message = f"{first}; {self._damage()}" if isinstance(first, ChecksumError) else str(first)
        LOG.warning("%s; trying once more", message)
        self._copy_constants()
        try:
            action()
        except AcceleratorError as error:
            LOG.error("the second attempt failed too: %s", error)
            raise error from first
        return (message,)

    def _execute(self, codes: NDArray[np.int8], started: float) -> tuple[NDArray[np.int8], ...]:
        """Pack, run, unpack, and keep the record."""
        raw = self.bundle.pack_input(np.asarray(codes))

        def ready() -> Callable[[], None]:
            self._buffers["input"][:] = raw
            with self._board.answering(f"copying the input of {self.bundle.name!r}"):
                self._buffers["input"].flush()
            return lambda: self._program("program", self.bundle.program, {})

        return self._run(ready, started, time.perf_counter() - started)

    def _run(
        self, ready: Callable[[], Callable[[], None]], started: float, pack_seconds: float
    ) -> tuple[NDArray[np.int8], ...]:
        """Make `ready`, do what it returns, unpack, and keep the record."""
        with self._held("running"):
            self._check_open()
            copying = time.perf_counter()
            go = ready()
            copied = time.perf_counter()
            setup_seconds, setup_cycles = 0.0, 0

            def action() -> None:
                nonlocal setup_seconds, setup_cycles
                before = time.perf_counter()
                setup_cycles += self._ensure_setup()
                setup_seconds += time.perf_counter() - before
                go()

            errors = self._attempt(action)
            ran = time.perf_counter()
            counters = self._board.counters()
            unpacking = time.perf_counter()
            output = self._buffers["output"]
            with self._board.answering(f"reading the output of {self.bundle.name!r}"):
                output.invalidate()
            outputs = self.bundle.unpack_outputs(np.array(output, dtype=np.uint8))
            ended = time.perf_counter()
            self._last_run = RunRecord(
                counters=counters,
                pack_seconds=pack_seconds + copied - copying,
                setup_seconds=setup_seconds,
                setup_cycles=setup_cycles,
                device_seconds=ran - copied - setup_seconds,
                unpack_seconds=ended - unpacking,
                total_seconds=ended - started,
                attempts=1 + len(errors),
                errors=errors,
                waited=self._waiting.how,
            )
            return outputs

    def _quantize(self, image: ArrayLike) -> NDArray[np.int8]:
        """Turn an image into codes (H, W, C); pictures through a table, to the same bits."""
        array = np.asarray(image)
        if array.dtype != np.uint8:
            return self.bundle.quantize_input(array)
        channels, height, width = self.bundle.input.shape
        if array.shape != (height, width, channels):
            raise ValueError(
                f"a picture for {self.bundle.name!r} must have shape {(height, width, channels)} "
                f"(H, W, C), not {array.shape}"
            )
        if self._lookup is None:
            raise ValueError(
                f"an image for {self.bundle.name!r} must be float32 (C, H, W), not uint8: the "
                "bundle has no mean and std; compile with preprocess=(mean, std)"
            )
        return self._lookup[np.arange(channels), array]


def _free(buffers: dict[str, Any]) -> None:
    """Give DMA buffers back, and forget them."""
    while buffers:
        buffers.popitem()[1].freebuffer()


def find_base_address(ip_dict: dict[str, Any], name: str | None = None) -> int:
    """Return the base address of the Shears accelerator in an overlay; raises as `find_ip`."""
    return int(find_ip(ip_dict, name)["phys_addr"])


def find_ip(ip_dict: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    """Return the entry of the Shears accelerator in an overlay's ip_dict.

    Raises
    ------
    DeviceNotFound
        When `name` is not there, or without a name when not exactly one is a Shears IP.
    """
    if name is not None:
        if name not in ip_dict:
            raise DeviceNotFound(f"the overlay must hold {name!r}, not only {sorted(ip_dict)}")
        return ip_dict[name]
    kind = IP_VLNV.rpartition(":")[0]
    found = [
        key for key, entry in ip_dict.items() if str(entry.get("type")).rpartition(":")[0] == kind
    ]
    if len(found) != 1:
        raise DeviceNotFound(
            f"the overlay must hold one Shears accelerator, not {len(found)} {found} among "
            f"{sorted(ip_dict)}; name it with ip=, or pass base_address="
        )
    return ip_dict[found[0]]


def pin_of(entry: dict[str, Any]) -> str | None:
    """Return the full name of an IP's interrupt; None where the overlay does not connect it."""
    pins = entry.get("interrupts", {})
    return str(pins["irq"]["fullpath"]) if "irq" in pins else None


def cma_bytes() -> tuple[int, int] | None:
    """Return how many bytes of the kernel's contiguous memory are free, and how many there are.

    None where it has none or does not tell, as on a PC.
    """
    try:
        with open(MEMORY_INFO, encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        free, total = (int(lines[name].split()[0]) << 10 for name in ("CmaFree", "CmaTotal"))
    except (OSError, KeyError, ValueError, IndexError):
        return None
    return (free, total) if total else None
