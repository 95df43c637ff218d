# SPDX-License-Identifier: Apache-2.0
"""The simulation room: how an interrupt gets from the accelerator to pynq's `Interrupt`.

On a board the accelerator's line goes into an AXI interrupt controller (PG099), its output to the
processor's IRQ_F2P, and Linux hands that out as a UIO device. Here are the controller's registers
and the UIO device; everything above them is pynq's own: its `Interrupt` looks the pin up in the
overlay, reads and writes the controller, and waits for the UIO device in an event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

CONTROLLER_BYTES = 32
_IDLE_S = 0.02

# Registers of the AXI interrupt controller, PG099 table 2-2.
ISR, IPR, IER, IAR, SIE, CIE, IVR, MER = range(0x00, 0x20, 4)
_MASTER_ENABLE = 0b11  # hardware interrupt enable, and master IRQ enable


class InterruptController:
    """An AXI interrupt controller whose inputs are active while high (level).

    Parameters
    ----------
    lines
        Input number -> what its line is now.
    """

    def __init__(self, lines: Mapping[int, Callable[[], bool]]) -> None:
        self._lines = dict(lines)
        self._pending = self._enabled = self._master = 0

    def _sample(self) -> None:
        """Take the lines in: one that is high sets its bit, and only IAR clears it."""
        for number, line in self._lines.items():
            self._pending |= int(line()) << number

    @property
    def output(self) -> bool:
        """The interrupt to the processor."""
        self._sample()
        return self._master & _MASTER_ENABLE == _MASTER_ENABLE and self._ready != 0

    @property
    def _ready(self) -> int:
        return self._pending & self._enabled

    def read(self, offset: int) -> int:
        """Read a register."""
        self._sample()
        vector = (self._ready & -self._ready).bit_length() - 1
        found = {ISR: self._pending, IPR: self._ready, IER: self._enabled, MER: self._master}
        return found.get(offset, vector if offset == IVR else 0) & 0xFFFFFFFF

    def write(self, offset: int, value: int) -> None:
        """Write a register."""
        if offset == IAR:
            self._pending &= ~value
        elif offset == IER:
            self._enabled = value
        elif offset == SIE:
            self._enabled |= value
        elif offset == CIE:
            self._enabled &= ~value
        elif offset == MER:
            self._master = value & _MASTER_ENABLE


class UioDevice:
    """A UIO device of an interrupt, in the place of pynq's `UioController`.

    The kernel's part of it: `add_event` enables the interrupt, and when it fires it is disabled
    and the events are set, in the event loop that added them.
    """

    def __init__(self, controller: InterruptController, enabled: Callable[[], None]) -> None:
        self.controller = controller
        self._enabled = enabled
        self._events: list[Any] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def armed(self) -> bool:
        """Whether somebody waits for it."""
        return bool(self._events)

    def add_event(self, event: Any, number: int) -> None:
        """Set `event` when the interrupt fires next; pynq calls this from the waiting loop."""
        self._loop = asyncio.get_running_loop()
        self._events.append(event)
        self._enabled()

    def fire(self) -> None:
        """Disable the interrupt and set the events."""
        events, self._events = self._events, []
        assert self._loop is not None  # there are events
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: [event.set() for event in events])


class Interrupts:
    """The interrupt controllers of a device's overlay, and the UIO devices behind them.

    A thread lets the device's time pass while somebody waits for a UIO device.

    Parameters
    ----------
    level
        The accelerator's interrupt line; called with `lock` held.
    advance
        Lets some time pass and says whether it did: False while the accelerator does nothing.
        Called with `lock` held.
    lock
        Guards the device.
    """

    def __init__(
        self,
        level: Callable[[], bool],
        advance: Callable[[], bool],
        lock: AbstractContextManager[Any],
    ) -> None:
        self._level, self._advance, self._lock = level, advance, lock
        self._controllers: dict[int, InterruptController] = {}
        self._uio: dict[int, UioDevice] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def configure(self, overlay: Any) -> None:
        """Build what an overlay's metadata says (`interrupt_controllers`, `interrupt_pins`)."""
        self.disconnect()
        controllers, uio = {}, {}
        for name, entry in overlay.interrupt_controllers.items():
            pins = [pin for pin in overlay.interrupt_pins.values() if pin["controller"] == name]
            controller = InterruptController({int(pin["index"]): self._level for pin in pins})
            controllers[int(overlay.ip_dict[name]["phys_addr"])] = controller
            if not entry["parent"]:
                uio[int(entry["raw_irq"])] = UioDevice(controller, self.notify)
        self._controllers, self._uio = controllers, uio

    def controller_at(self, address: int) -> tuple[InterruptController, int] | None:
        """Return the controller that has an address, and the offset of its register."""
        for base, controller in self._controllers.items():
            if base <= address < base + CONTROLLER_BYTES:
                return controller, address - base
        return None

    def connect(self) -> None:
        """Give pynq the UIO devices, where it keeps those that it has opened."""
        _forget(self._uio)
        _controller_class()._uio_devices.update(self._uio)

    def disconnect(self) -> None:
        """Take them back."""
        known = _controller_class()._uio_devices
        ours = {irq: device for irq, device in self._uio.items() if known.get(irq) is device}
        if ours:
            _forget(ours)

    def notify(self) -> None:
        """Look again: a register was written, or somebody waits."""
        with self._changed:
            if self._thread is None and not self._closed:
                if any(device.armed for device in self._uio.values()):
                    self._thread = threading.Thread(
                        target=self._serve, name="shears-simulated-interrupts", daemon=True
                    )
                    self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread and take the UIO devices back; a second time does nothing."""
        self.disconnect()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _serve(self) -> None:
        try:
            self._watch()
        except RuntimeError:  # the simulation stopped: who reads a register next is told
            return

    def _watch(self) -> None:
        while not self._closed:
            armed = [device for device in self._uio.values() if device.armed]
            moved = False
            if armed:
                with self._lock:
                    if self._closed:
                        return
                    moved = self._advance()
                    ready = [device for device in armed if device.controller.output]
                for device in ready:
                    device.fire()
                moved = moved or bool(ready)
            if not moved:
                with self._changed:
                    if not self._closed:
                        self._changed.wait(_IDLE_S)


def _controller_class() -> Any:
    from pynq.interrupt import _InterruptController

    return _InterruptController


def _forget(devices: Mapping[int, UioDevice]) -> None:
    """Make pynq forget its controllers, which keep the UIO devices that they were made with."""
    kind = _controller_class()
    for irq in devices:
        kind._uio_devices.pop(irq, None)
    kind._controllers.clear()
