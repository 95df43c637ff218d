# SPDX-License-Identifier: Apache-2.0
"""The simulation room: `SimulatedBoard`, a pynq Device whose programmable logic is the RTL.

The installed package's own `pynq.MMIO` and `pynq.allocate` work on it, so the driver that runs
here is the driver that runs on the board. Time passes only while somebody looks: a register access
takes its bus cycles, reading STATUS of a busy machine lets it work for a while first, and it works
on while somebody waits for its interrupt (`sim.interrupts`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device

from hwgen.arch.bundle import Bundle
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.registers import ADDRESS_SPACE_BYTES, BY_NAME
from sim.harness import DDR_BASE, DDR_BYTES, BusCounts, Harness, SimulationError
from sim.interrupts import Interrupts

REGISTER_BASE = 0x43C0_0000
"""Where Vivado puts the first slave on a Zynq-7000's GP0."""

CLOCK_HZ = 150_000_000
PAGE_BYTES = 4096

# What buffers hold before anything is written: one pattern in DDR and another in the CPU's cache,
# so that a driver that forgets to flush or to invalidate reads rubbish here too.
_DDR_RUBBISH, _CACHE_RUBBISH = 0xA5, 0x5A

_STATUS = BY_NAME["STATUS"]

# Clock registers of a Zynq-7000 (UG585, B.28), as its boot loader leaves them with a crystal of
# 50 MHz: multipliers of the ARM, DDR and IO PLLs, and the divisors of FCLK0 to FCLK3. Before it
# loads a bitstream, pynq sets the clocks that the bitstream wants.
_SLCR_BASE, _SLCR_BYTES = 0xF800_0000, 0x200
_SLCR_RESET = {
    0x100: 26 << 12,
    0x104: 21 << 12,
    0x108: 20 << 12,
    **dict.fromkeys((0x170, 0x180, 0x190, 0x1A0), 1 << 20 | 10 << 8),
}
_tags = itertools.count()


class OutOfDeviceMemoryError(RuntimeError):
    """`pynq.allocate` asked for more than there is; the message says how much of each."""


class _BufferObject:
    """Memory of one buffer: `offset` in DDR, and the CPU's view of it."""

    def __init__(self, offset: int, size: int, host: NDArray[np.uint8]) -> None:
        self.offset, self.size, self.host = offset, size, host
        self.freed = False


class SimulatedBoard(Device):
    """A board with one accelerator, simulated cycle by cycle.

    Use it as a context manager, or call `close`. Every board has its own simulation and memory.

    Parameters
    ----------
    design
        A bundle, for the machine that it was compiled for; or a configuration.
    memory_latency_cycles
        From an address on the bus to the first beat, and from the last beat written to the
        response.
    clock_hz
        Clock of the simulated machine, for `seconds` and timeouts.
    memory_bytes, memory_base
        DDR window of the accelerator's buffers.
    register_base
        Address of the accelerator's registers.
    cycles_per_poll
        Cycles that pass when STATUS is read while the machine is busy. More is faster to simulate;
        the machine's own counters do not depend on it.
    strict_cache
        Buffers are copies until they are flushed or invalidated, like a CPU cache at its worst.
    stall_percent, seed, threads, trace, cache_dir
        See `sim.Harness`.

    Attributes
    ----------
    harness
        The simulation underneath.
    arch
        What pynq takes the board's processor for: a Zynq-7000's.

    Raises
    ------
    BuildError
        When the simulator cannot be built.
    """

    arch = "armv7l"

    def __init__(
        self,
        design: Bundle | AcceleratorConfig,
        *,
        memory_latency_cycles: int = 30,
        clock_hz: float = CLOCK_HZ,
        memory_bytes: int = DDR_BYTES,
        memory_base: int = DDR_BASE,
        register_base: int = REGISTER_BASE,
        cycles_per_poll: int = 1000,
        strict_cache: bool = True,
        stall_percent: int = 0,
        seed: int = 1,
        threads: int = 1,
        trace: bool = False,
        cache_dir: Path | str | None = None,
    ) -> None:
        config = design.config if isinstance(design, Bundle) else design
        if not isinstance(config, AcceleratorConfig):
            raise TypeError(
                f"design must be a Bundle or an AcceleratorConfig, not {type(design).__name__}"
            )
        if cycles_per_poll < 1 or not clock_hz > 0:
            raise ValueError(
                f"cycles_per_poll and clock_hz must be positive, not {cycles_per_poll!r} and "
                f"{clock_hz!r}"
            )
        super().__init__(f"shears-simulated-{next(_tags)}")
        self.capabilities = {"REGISTER_RW": True}
        self.name = "shears-simulated"
        self.config, self.clock_hz = config, clock_hz
        self.register_base, self.cycles_per_poll = register_base, cycles_per_poll
        self.strict_cache = strict_cache
        self._lock = RLock()
        self._buffers: dict[int, _BufferObject] = {}
        self._busy_seconds = 0.0
        self._slcr = dict(_SLCR_RESET)
        self._interrupts = Interrupts(lambda: self.harness.irq, self._work, self._lock)
        self.harness = Harness(
            config,
            memory_base=memory_base,
            memory_bytes=memory_bytes,
            read_latency_cycles=memory_latency_cycles,
            write_latency_cycles=memory_latency_cycles,
            stall_percent=stall_percent,
            seed=seed,
            threads=threads,
            trace=trace,
            cache_dir=cache_dir,
        )

    # Registers: what pynq.MMIO calls on a device with REGISTER_RW.

    def read_registers(self, address: int, length: int) -> bytes:
        """Read `length` bytes, a multiple of 4, from the accelerator's registers.

        The processing system's clock registers are there too, and hold what is written to them;
        and those of an overlay's interrupt controllers.

        Raises
        ------
        RegisterAccessError
            When no register is there.
        """
        if _SLCR_BASE <= address < _SLCR_BASE + _SLCR_BYTES:
            return self._slcr.get(address - _SLCR_BASE, 0).to_bytes(4, "little")[:length]
        with self._lock:
            if found := self._interrupts.controller_at(address):
                return found[0].read(found[1]).to_bytes(4, "little")[:length]
        words = [self._read(self._offset(address + i)) for i in range(0, length, 4)]
        return b"".join(word.to_bytes(4, "little") for word in words)[:length]

    def write_registers(self, address: int, data: bytes) -> None:
        """Write whole 32 bit words to the accelerator's registers; raises as `read_registers`."""
        if len(data) % 4:
            raise SimulationError(f"registers are 4 bytes wide, {len(data)} bytes do not fit")
        if _SLCR_BASE <= address < _SLCR_BASE + _SLCR_BYTES:
            self._slcr[address - _SLCR_BASE] = int.from_bytes(data[:4], "little")
            return
        with self._lock:
            if found := self._interrupts.controller_at(address):
                found[0].write(found[1], int.from_bytes(data[:4], "little"))
                return
            started = time.perf_counter()
            for i in range(0, len(data), 4):
                value = int.from_bytes(data[i : i + 4], "little")
                self.harness.write_register(self._offset(address + i), value)
            self._busy_seconds += time.perf_counter() - started
        self._interrupts.notify()

    def _read(self, offset: int) -> int:
        with self._lock:
            started = time.perf_counter()
            value = self.harness.read_register(offset)
            if offset == _STATUS.offset:
                status = _STATUS.layout.unpack(value)
                if status["running"] or status["resetting"]:
                    self._let_pass()
                    value = self.harness.read_register(offset)
            self._busy_seconds += time.perf_counter() - started
            return value

    def _let_pass(self) -> None:
        """Let `cycles_per_poll` pass, or less, up to the interrupt."""
        # An interrupt that is high already must not stop the clock for a poller.
        if self.harness.irq:
            self.harness.run(self.cycles_per_poll)
        else:
            self.harness.run_until_irq(self.cycles_per_poll)

    def _work(self) -> bool:
        """Let a busy machine work for a while; returns whether it was busy."""
        if self.harness.irq:
            return False  # who waits for it is told at once
        started = time.perf_counter()
        status = _STATUS.layout.unpack(self.harness.read_register(_STATUS.offset))
        if status["running"]:
            self._let_pass()
        self._busy_seconds += time.perf_counter() - started
        return bool(status["running"])

    def _offset(self, address: int) -> int:
        offset = address - self.register_base
        if not 0 <= offset < ADDRESS_SPACE_BYTES or offset % 4:
            last = self.register_base + ADDRESS_SPACE_BYTES - 1
            raise SimulationError(
                f"no register is at {address:#010x}; the accelerator's are at "
                f"{self.register_base:#010x} to {last:#010x}"
            )
        return offset

    # Interrupt and time.

    @property
    def irq(self) -> bool:
        """The accelerator's interrupt line."""
        return self.harness.irq

    def wait_interrupt(self, timeout_s: float) -> bool:
        """Advance until the interrupt is high, at most `timeout_s` of simulated time.

        Returns
        -------
        Whether it is high. The line stays so until IRQ_STATUS is cleared.
        """
        with self._lock:
            started = time.perf_counter()
            high = self.harness.run_until_irq(max(1, round(timeout_s * self.clock_hz)))
            self._busy_seconds += time.perf_counter() - started
            return high

    @property
    def cycles(self) -> int:
        """Clock cycles simulated so far."""
        return self.harness.cycles

    @property
    def seconds(self) -> float:
        """Simulated time so far: `cycles` / `clock_hz`."""
        return self.cycles / self.clock_hz

    @property
    def sim_cycles_per_second(self) -> float:
        """Cycles simulated a second of this computer, over all register accesses so far."""
        return self.cycles / self._busy_seconds if self._busy_seconds else 0.0

    @property
    def bus_counts(self) -> BusCounts:
        """What went over the memory bus so far."""
        return self.harness.counts

    # Memory: what pynq.allocate and PynqBuffer call.

    def allocate(self, shape: Any, dtype: Any, **options: Any) -> PynqBuffer:
        """Allocate a buffer in the simulated DDR; `pynq.allocate(..., target=board)` ends here.

        Its content is undefined, like the real one's. `flush` and `invalidate` move data between
        it and the DDR.

        Raises
        ------
        OutOfDeviceMemoryError
            When no gap is large enough.
        """
        unknown = set(options) - {"cacheable"}
        if unknown:
            raise TypeError(f"allocate takes shape, dtype and cacheable, not {sorted(unknown)}")
        dimensions = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        if any(d < 1 for d in dimensions):
            raise ValueError(f"shape must be positive, not {shape!r}")
        size = int(np.prod(dimensions, dtype=np.int64)) * np.dtype(dtype).itemsize
        with self._lock:
            offset = self._place(size)
            window = self.harness.memory[offset : offset + size]
            window[:] = _DDR_RUBBISH
            host = np.full(size, _CACHE_RUBBISH, np.uint8) if self.strict_cache else window
            bo = self._buffers[offset] = _BufferObject(offset, size, host)
        buffer = PynqBuffer(
            dimensions,
            dtype,
            buffer=host.data,
            bo=bo,
            device=self,
            device_address=self.harness.memory_base + offset,
            coherent=False,
        )
        # pynq gives `pointer` back to `return_to` once; `freed` keeps it from unmapping after that.
        buffer.memory, buffer.pointer, buffer.return_to, buffer.freed = self, bo, self, True
        return buffer

    def _place(self, size: int) -> int:
        """Return the offset of the first gap of `size` bytes, in whole pages."""
        end = len(self.harness.memory)
        gaps, start = [], 0
        for offset, taken in sorted((b.offset, _pages(b.size)) for b in self._buffers.values()):
            gaps.append((start, offset - start))
            start = offset + taken
        gaps.append((start, end - start))
        for start, room in gaps:
            if room >= _pages(size):
                return start
        free, largest = sum(room for _, room in gaps), max(room for _, room in gaps)
        raise OutOfDeviceMemoryError(
            f"{size} bytes asked for, {free} bytes of {end} free, the largest gap has {largest}; "
            "free a buffer, or give the board more memory_bytes"
        )

    def return_pointer(self, bo: _BufferObject) -> None:
        """Take a buffer's memory back; `PynqBuffer.freebuffer` calls it."""
        with self._lock:
            bo.freed = True
            self._buffers.pop(bo.offset, None)

    def flush(self, bo: _BufferObject, offset: int, pointer: int, size: int) -> None:
        """Copy part of a buffer to DDR; `PynqBuffer.flush` calls it."""
        cpu, ddr = self._sides(bo, offset, size)
        ddr[:] = cpu

    def invalidate(self, bo: _BufferObject, offset: int, pointer: int, size: int) -> None:
        """Copy DDR to part of a buffer; `PynqBuffer.invalidate` calls it."""
        cpu, ddr = self._sides(bo, offset, size)
        cpu[:] = ddr

    def _sides(
        self, bo: _BufferObject, offset: int, size: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        if bo.freed:
            raise SimulationError("a buffer that was freed must not be used any more")
        start = bo.offset + offset
        return bo.host[offset : offset + size], self.harness.memory[start : start + size]

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all buffers that are not freed, in whole pages."""
        with self._lock:
            return sum(_pages(bo.size) for bo in self._buffers.values())

    def read_memory(self, address: int, size: int) -> NDArray[np.uint8]:
        """Return a copy of what the DDR holds, past every cache."""
        return self._memory(address, size).copy()

    def write_memory(self, address: int, data: ArrayLike) -> None:
        """Write uint8 `data` to the DDR, past every cache."""
        raw = np.asarray(data, dtype=np.uint8).reshape(-1)
        self._memory(address, len(raw))[:] = raw

    def _memory(self, address: int, size: int) -> NDArray[np.uint8]:
        start = address - self.harness.memory_base
        if start < 0 or start + size > len(self.harness.memory):
            raise SimulationError(
                f"{size} bytes at {address:#010x} must lie in the DDR, {len(self.harness.memory)} "
                f"bytes from {self.harness.memory_base:#010x}"
            )
        return self.harness.memory[start : start + size]

    # Faults, for tests.

    def inject_fault(self, kind: str, address: int, size_bytes: int = 8, count: int = 0) -> None:
        """Make bus accesses to a range of DDR fail; see `sim.Harness.inject_fault`."""
        self.harness.inject_fault(kind, address, size_bytes, count)

    def clear_faults(self) -> None:
        """Forget every fault; accesses that hang are answered now."""
        self.harness.clear_faults()

    def corrupt(self, address: int, mask: int = 0xFF) -> None:
        """Flip the bits of `mask` in one byte of DDR."""
        self._memory(address, 1)[0] ^= np.uint8(mask)

    # Overlays: what pynq.Overlay calls.

    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> Any:
        """Parse the .hwh file beside a bitstream as pynq does on a board, with its own parser."""
        from pynq.pl_server.hwh_parser import get_hwh_name
        from pynqmetadata.frontends import Metadata
        from pynqmetadata.views.runtime import RuntimeMetadataParser

        parser = RuntimeMetadataParser(Metadata(input=get_hwh_name(bitfile_name)))
        with self._lock:
            self._interrupts.configure(parser)
        if getattr(Device, "_active_device", None) is self:
            self._interrupts.connect()
        return parser

    @contextmanager
    def as_active(self) -> Iterator[SimulatedBoard]:
        """Make this pynq's active device, the one that it takes interrupts of; restore at the end.

        On a board there is one device, and it is the active one.
        """
        before = getattr(Device, "_active_device", None)
        Device.active_device = self
        self._interrupts.connect()
        try:
            yield self
        finally:
            self._interrupts.disconnect()
            if before is None:
                del Device._active_device
            else:
                Device.active_device = before

    def download(self, bitstream: Any, parser: Any = None) -> None:
        """Load a bitstream: the machine comes out of reset as after configuration."""
        with self._lock:
            self.harness.reset()
        self.post_download(bitstream, parser)

    def gen_cache(self, bitstream: Any, parser: Any = None) -> None:
        """Do nothing: pynq's cache of metadata is for boards with a file system of their own."""

    def reset_hardware(self) -> None:
        """Pull the machine's reset, as loading the bitstream anew does."""
        with self._lock:
            self.harness.reset()

    def close(self) -> None:
        """End the simulation; a second time does nothing. Buffers keep what the CPU saw."""
        self._interrupts.close()
        with self._lock:
            self.harness.close()

    def __enter__(self) -> SimulatedBoard:
        """Return the board; leaving the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _pages(size: int) -> int:
    """Round up to whole pages."""
    return -(-size // PAGE_BYTES) * PAGE_BYTES
