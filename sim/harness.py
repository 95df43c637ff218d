# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the whole machine as a fast simulator, with DDR and a register master.

The Verilated top and `harness.cpp` run as one library inside this process: Python sets registers,
asks for so many cycles, and shares the DDR's bytes.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.arch.config import AcceleratorConfig
from sim.simulator import build_library, cache_folder, verilog_for

DDR_BASE = 0x1000_0000
DDR_BYTES = 64 << 20
REGISTER_CYCLES_MAX = 10_000

_OK, _TIMEOUT, _VIOLATION = 0, 1, 2
_RESPONSES = {"slverr": 2, "decerr": 3, "hang": 4}
_RESPONSE_NAMES = {1: "EXOKAY", 2: "SLVERR", 3: "DECERR"}


class SimulationError(RuntimeError):
    """The simulation cannot go on, or an access made no sense."""


class ProtocolViolation(SimulationError):
    """The machine broke a rule of AXI; the message says which and in which cycle."""


class RegisterAccessError(SimulationError):
    """A register access was answered with an error, or not at all."""


@dataclass(frozen=True)
class BusCounts:
    """What went over the memory bus since the harness was made."""

    cycles: int
    read_beats: int
    write_beats: int
    read_bursts: int
    write_bursts: int


class Harness:
    """The RTL of one configuration, with clock, reset, DDR and a register master.

    The memory answers a burst's first beat `read_latency_cycles` after its address was taken, then
    one beat of 8 bytes a cycle, in order and pipelined; a write's response comes
    `write_latency_cycles` after its last beat. Up to 16 bursts each way wait at once. An address
    outside of the memory gets DECERR. Every AXI rule the machine could break is checked in every
    cycle.

    Methods may be called from several threads, one of them at a time.

    Parameters
    ----------
    design
        The configuration; or Verilog text of a module `shears` with the same ports.
    memory_base, memory_bytes
        The window of addresses where memory is; bases are multiples of 4096.
    read_latency_cycles, write_latency_cycles
        1 or more.
    stall_percent
        Chance that a channel does nothing in a cycle, 0 to 99, drawn from `seed`.
    threads
        Threads of the simulation.
    trace
        Use the variant that can write VCD; see `trace_to`.
    cache_dir
        Folder of finished builds; by default the user's, see `sim.simulator.cache_folder`.

    Attributes
    ----------
    memory
        uint8 (memory_bytes,): the DDR, shared with the simulation.

    Raises
    ------
    BuildError
        When the simulator cannot be built.
    """

    def __init__(
        self,
        design: AcceleratorConfig | str,
        *,
        memory_base: int = DDR_BASE,
        memory_bytes: int = DDR_BYTES,
        read_latency_cycles: int = 30,
        write_latency_cycles: int = 30,
        stall_percent: int = 0,
        seed: int = 1,
        threads: int = 1,
        trace: bool = False,
        cache_dir: Path | str | None = None,
    ) -> None:
        for name, value in (("read", read_latency_cycles), ("write", write_latency_cycles)):
            if not 1 <= value < 1 << 31:
                raise ValueError(f"{name}_latency_cycles must be 1 or more, not {value!r}")
        if not 0 <= stall_percent <= 99:
            raise ValueError(f"stall_percent must be 0 to 99, not {stall_percent!r}")
        if memory_base % 4096 or memory_bytes % 4096 or memory_bytes < 1:
            raise ValueError(
                f"memory_base and memory_bytes must be multiples of 4096, not {memory_base:#x} "
                f"and {memory_bytes!r}"
            )
        if memory_base < 0 or memory_base + memory_bytes > 1 << 32:
            raise ValueError(f"memory must lie below 4 GiB, not at {memory_base:#x}")
        if threads < 1:
            raise ValueError(f"threads must be 1 or more, not {threads!r}")
        cache = Path(cache_dir) if cache_dir is not None else cache_folder()
        verilog = design if isinstance(design, str) else verilog_for(design, cache)
        self.library_path = build_library(verilog, cache, threads=threads, trace=trace)
        self._library = _load(self.library_path)
        self._lock = threading.RLock()
        self._traces = trace
        self.memory_base = memory_base
        # Pages of zeros cost nothing until they are written.
        self.memory: NDArray[np.uint8] = np.zeros(memory_bytes, dtype=np.uint8)
        self._handle: int | None = self._library.shears_create(
            self.memory.ctypes.data,
            memory_base,
            memory_bytes,
            read_latency_cycles,
            write_latency_cycles,
            stall_percent,
            seed,
        )
        self._checked(_OK)

    def reset(self) -> None:
        """Pull aresetn for 16 cycles: what loading the bitstream does. Memories keep their bits."""
        with self._lock:
            self._checked(self._library.shears_reset(self._open()))

    def run(self, cycles: int) -> None:
        """Advance by `cycles` clock cycles.

        Raises
        ------
        ProtocolViolation
            As soon as the machine breaks a rule of the bus; from then on, always.
        """
        with self._lock:
            self._checked(self._library.shears_run(self._open(), cycles, 0))

    def run_until_irq(self, max_cycles: int) -> bool:
        """Advance until the interrupt is high, at most `max_cycles`; returns whether it is."""
        with self._lock:
            return self._checked(self._library.shears_run(self._open(), max_cycles, 1)) == _OK

    def read_register(self, offset: int) -> int:
        """Read a register over AXI4-Lite; takes the cycles that this takes.

        Raises
        ------
        RegisterAccessError
            When the machine answers with an error or not within 10,000 cycles.
        """
        data, response = ctypes.c_uint32(), ctypes.c_uint32()
        with self._lock:
            status = self._library.shears_read(
                self._open(), offset, REGISTER_CYCLES_MAX, data, response
            )
            self._check_access("read", offset, self._checked(status), response.value)
        return data.value

    def write_register(self, offset: int, value: int) -> None:
        """Write 32 bits to a register over AXI4-Lite; raises as `read_register`."""
        response = ctypes.c_uint32()
        with self._lock:
            status = self._library.shears_write(
                self._open(), offset, value & 0xFFFFFFFF, REGISTER_CYCLES_MAX, response
            )
            self._check_access("write", offset, self._checked(status), response.value)

    def inject_fault(self, kind: str, address: int, size_bytes: int, count: int = 0) -> None:
        """Make bursts that touch a range of addresses fail.

        Parameters
        ----------
        kind
            ``read_`` or ``write_`` with ``slverr``, ``decerr`` or ``hang``: the beats inside the
            range get this response, or the burst is not answered until `clear_faults`.
        address, size_bytes
            The range.
        count
            Bursts it hits before it is gone; 0 is no limit.
        """
        side, _, response = kind.partition("_")
        if side not in ("read", "write") or response not in _RESPONSES:
            raise ValueError(
                f"kind must be read_ or write_ with one of {sorted(_RESPONSES)}, not {kind!r}"
            )
        if size_bytes < 1 or count < 0:
            raise ValueError(
                f"size_bytes must be 1 or more and count 0 or more, not {size_bytes!r}, {count!r}"
            )
        with self._lock:
            self._library.shears_inject(
                self._open(),
                side == "write",
                _RESPONSES[response],
                address,
                size_bytes,
                count or -1,
            )

    def clear_faults(self) -> None:
        """Forget every fault; bursts that hang are answered now."""
        with self._lock:
            self._library.shears_clear_faults(self._open())

    def trace_to(self, path: Path | str | None) -> None:
        """Start writing a VCD file, or stop with None; needs ``trace=True``."""
        with self._lock:
            if not self._traces:
                raise ValueError("this harness must be made with trace=True to write a trace")
            if path is None:
                self._library.shears_trace_close(self._open())
            elif not self._library.shears_trace_open(self._open(), str(path).encode()):
                raise OSError(f"{path} cannot be written")

    @property
    def irq(self) -> bool:
        """The interrupt line."""
        with self._lock:
            return bool(self._library.shears_irq(self._open()))

    @property
    def counts(self) -> BusCounts:
        """Cycles so far, and what went over the memory bus."""
        values = (ctypes.c_uint64 * 5)()
        with self._lock:
            self._library.shears_counts(self._open(), values)
        return BusCounts(*values)

    @property
    def cycles(self) -> int:
        """Clock cycles so far, resets and register accesses included."""
        return self.counts.cycles

    def close(self) -> None:
        """End the simulation; a second time does nothing."""
        with self._lock:
            if self._handle is not None:
                self._library.shears_destroy(self._handle)
                self._handle = None

    def __enter__(self) -> Harness:
        """Return the harness; leaving the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def _open(self) -> int:
        if self._handle is None:
            raise SimulationError("the simulation is closed; make another one")
        return self._handle

    def _checked(self, status: int) -> int:
        """Return `status`, or raise what it stands for."""
        message = self._library.shears_message(self._open())
        if status == _VIOLATION or message:
            raise ProtocolViolation(f"the machine broke an AXI rule in {message.decode()}")
        return status

    @staticmethod
    def _check_access(what: str, offset: int, status: int, response: int) -> None:
        if status == _TIMEOUT:
            raise RegisterAccessError(
                f"the {what} of register {offset:#05x} was not answered in {REGISTER_CYCLES_MAX} "
                "cycles"
            )
        if response:
            raise RegisterAccessError(
                f"the {what} of register {offset:#05x} was answered with "
                f"{_RESPONSE_NAMES[response]}; there is no such register"
            )


@functools.cache
def _load(path: Path) -> Any:
    """Load a simulator and declare its functions."""
    library = ctypes.CDLL(str(path))
    handle, text = ctypes.c_void_p, ctypes.c_char_p
    u32, u64, i64 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64
    out32 = ctypes.POINTER(u32)
    functions: dict[str, tuple[Any, list[Any]]] = {
        "create": (handle, [handle, u64, u64, u32, u32, u32, u64]),
        "destroy": (None, [handle]),
        "reset": (ctypes.c_int, [handle]),
        "run": (ctypes.c_int, [handle, u64, ctypes.c_int]),
        "write": (ctypes.c_int, [handle, u32, u32, u32, out32]),
        "read": (ctypes.c_int, [handle, u32, u32, out32, out32]),
        "inject": (None, [handle, ctypes.c_int, u32, u64, u64, i64]),
        "clear_faults": (None, [handle]),
        "irq": (ctypes.c_int, [handle]),
        "message": (text, [handle]),
        "counts": (None, [handle, ctypes.POINTER(u64)]),
        "trace_open": (ctypes.c_int, [handle, text]),
        "trace_close": (None, [handle]),
    }
    for name, (result, arguments) in functions.items():
        function = getattr(library, f"shears_{name}")
        function.restype, function.argtypes = result, arguments
    return library
