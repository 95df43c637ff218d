# SPDX-License-Identifier: Apache-2.0
"""The simulation room: a serial port at whose other end is the RTL of a board without a processor.

`SimulatedSerialPort` has the interface of pyserial's `Serial`, as far as `host.SerialBoard` uses
it, so that the code that runs here is the code that runs on a real line. Every bit goes through the
pins of the Verilated design. Time is the design's: a read with a timeout waits for so many of its
cycles.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from hwgen.arch.bundle import Bundle
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.link import LinkConfig
from sim.simulator import build_library, cache_folder, kept_verilog

SOC_HARNESS = Path(__file__).with_name("soc_harness.cpp")

#: A line that is quick to simulate: 4 cycles a bit, and a millisecond of 1000 cycles.
FAST_LINK = LinkConfig(clock_hz=1_000_000, baud=250_000, memory_bytes=192 << 10, quiet_cycles=2_000)

Wire = Callable[[bytes], bytes]


class SimulatedSerialPort:
    """One end of a serial line; the other is an accelerator with memory, simulated.

    Parameters
    ----------
    design
        A bundle, for the machine that it was compiled for; or a configuration.
    link
        Clock, bits a second, memory. The default is the quickest to simulate.
    timeout
        Seconds that `read` waits, of the simulated clock; None waits for ever, which a simulation
        refuses.
    cache_dir
        Folder of finished builds, see `sim.simulator.cache_folder`.

    Attributes
    ----------
    on_write, on_read
        Called with bytes on their way to or from the board; what they return goes on. Faults for
        tests: flip a bit, lose a byte, add some.
    pulled_out
        While it is true, every access raises what pyserial raises when the cable is out.

    Raises
    ------
    BuildError
        When the simulator cannot be built.
    """

    def __init__(
        self,
        design: Bundle | AcceleratorConfig,
        link: LinkConfig = FAST_LINK,
        *,
        timeout: float | None = 0.5,
        cache_dir: Path | str | None = None,
    ) -> None:
        from rtl.soc import SOC_NAME, emit_soc

        config = design.config if isinstance(design, Bundle) else design
        self.config, self.link, self.timeout = config, link, timeout
        self.port = self.name = "simulated"
        self.baudrate = link.baud
        self.on_write: Wire = bytes
        self.on_read: Wire = bytes
        self.pulled_out = False
        self._lock = threading.RLock()
        cache = Path(cache_dir) if cache_dir is not None else cache_folder()
        key = f"soc {config.digest():x} {sorted(vars(link).items())}"
        verilog = kept_verilog(key, lambda: emit_soc(config, link), cache)
        library = build_library(verilog, cache, top=SOC_NAME, harness=SOC_HARNESS)
        self._library = _load(library)
        self._handle: int | None = self._library.soc_create(link.divider)

    # What pyserial's Serial has.

    @property
    def is_open(self) -> bool:
        """Whether `close` has not been called."""
        return self._handle is not None

    @property
    def in_waiting(self) -> int:
        """Bytes that came and were not read."""
        with self._lock:
            return int(self._library.soc_waiting(self._open()))

    def write(self, data: Any) -> int:
        """Put bytes on the line; returns how many. They leave while the clock runs."""
        given = bytes(data)
        with self._lock:
            handle = self._open()
            sent = self.on_write(given)
            self._library.soc_send(handle, sent, len(sent))
        return len(given)

    def flush(self) -> None:
        """Let the clock run until all bytes have left."""
        with self._lock:
            self._library.soc_drain(self._open())

    def read(self, size: int = 1) -> bytes:
        """Return `size` bytes, or fewer when `timeout` has passed."""
        if self.timeout is None:
            raise ValueError("timeout must be a number in a simulation, not None")
        with self._lock:
            handle = self._open()
            self._library.soc_run(handle, round(self.timeout * self.link.clock_hz), size)
            buffer = ctypes.create_string_buffer(size)
            count = self._library.soc_receive(handle, buffer, size)
        return self.on_read(buffer.raw[:count])

    def reset_input_buffer(self) -> None:
        """Throw away what came."""
        with self._lock:
            handle = self._open()
            while self._library.soc_receive(handle, ctypes.create_string_buffer(4096), 4096):
                pass

    def reset_output_buffer(self) -> None:
        """Do nothing: what was written is on its way."""

    def close(self) -> None:
        """End the simulation; a second time does nothing."""
        with self._lock:
            if self._handle is not None:
                self._library.soc_destroy(self._handle)
                self._handle = None

    def __enter__(self) -> SimulatedSerialPort:
        """Return the port; leaving the block closes it."""
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

    # What only a simulation has.

    def run(self, cycles: int) -> None:
        """Let the clock run while the line is left alone."""
        with self._lock:
            self._library.soc_run(self._open(), cycles, 1 << 62)

    def hold_low(self, cycles: int) -> None:
        """Hold the line to the board low, as a loose plug does; bytes are broken by it."""
        with self._lock:
            self._library.soc_hold_low(self._open(), cycles)

    def reset(self) -> None:
        """Do what loading the bitstream anew does, except that memory keeps its bits."""
        with self._lock:
            self._library.soc_reset(self._open())

    @property
    def leds(self) -> int:
        """The board's LEDs, the first in bit 0."""
        with self._lock:
            return int(self._library.soc_leds(self._open()))

    @property
    def cycles(self) -> int:
        """Clock cycles simulated so far."""
        with self._lock:
            return int(self._library.soc_cycles(self._open()))

    @property
    def bad_stops(self) -> int:
        """Bytes of the board that came without a stop bit."""
        with self._lock:
            return int(self._library.soc_bad_stops(self._open()))

    def _open(self) -> int:
        if self.pulled_out:
            raise OSError(5, "device reports readiness to read but returned no data")
        if self._handle is None:
            raise OSError(9, "the simulated port is closed")
        return self._handle


@functools.cache
def _load(path: Path) -> Any:
    """Load a simulator and declare its functions."""
    library = ctypes.CDLL(str(path))
    handle, text = ctypes.c_void_p, ctypes.c_char_p
    u32, u64 = ctypes.c_uint32, ctypes.c_uint64
    functions: dict[str, tuple[Any, list[Any]]] = {
        "create": (handle, [u32]),
        "destroy": (None, [handle]),
        "reset": (None, [handle]),
        "send": (None, [handle, text, u64]),
        "hold_low": (None, [handle, u64]),
        "run": (u64, [handle, u64, u64]),
        "drain": (None, [handle]),
        "receive": (u64, [handle, text, u64]),
        "waiting": (u64, [handle]),
        "leds": (u32, [handle]),
        "cycles": (u64, [handle]),
        "bad_stops": (u64, [handle]),
    }
    for name, (result, arguments) in functions.items():
        function = getattr(library, f"soc_{name}")
        function.restype, function.argtypes = result, arguments
    return library
