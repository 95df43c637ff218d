# SPDX-License-Identifier: Apache-2.0
"""Room tests: waiting for an interrupt through pynq's own `Interrupt`, and threads that share.

The device is the golden interpreter behind the interrupt controller and UIO device of
`sim.interrupts`; `test_overlay` does the same with the RTL and a .hwh.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Iterator
from threading import RLock
from types import SimpleNamespace

import numpy as np
import pynq
import pytest

import host
from hwgen.arch.package import IP_VLNV
from hwgen.arch.registers import ErrorCode
from sim import interrupts
from sim.interrupts import InterruptController, Interrupts
from tests.host.fake_device import HANG, FakeDevice
from tests.host.small_bundle import CONFIG, expected, linear_bundle

CONTROLLER = 0x4180_0000
PIN, RAW_IRQ = "accelerator/irq", 61
_stamps = itertools.count()


class InterruptDevice(FakeDevice):
    """A board whose accelerator reaches pynq's Interrupt.

    Attributes
    ----------
    connected
        The accelerator's line goes to the controller.
    """

    def __init__(self) -> None:
        super().__init__(CONFIG, polls=6)
        self.connected = True
        self.lock = RLock()
        self.timestamp = f"loaded {next(_stamps)}"
        self.interrupt_pins = {PIN: {"controller": "axi_intc", "index": 2, "fullpath": PIN}}
        self.interrupt_controllers = {"axi_intc": {"parent": "", "index": 0, "raw_irq": RAW_IRQ}}
        self.ip_dict = {
            "axi_intc": {"type": "xilinx.com:ip:axi_intc:4.1", "phys_addr": CONTROLLER},
            "accelerator": {
                "type": IP_VLNV,
                "phys_addr": self.base_address,
                "interrupts": {"irq": self.interrupt_pins[PIN]},
            },
        }
        self.interrupts = Interrupts(self._level, self._work, self.lock)
        self.interrupts.configure(self)

    @property
    def overlay(self) -> SimpleNamespace:
        return SimpleNamespace(device=self, ip_dict=self.ip_dict)

    def _level(self) -> bool:
        raised = self.registers["IRQ_STATUS"] & self.registers["IRQ_ENABLE"]
        return self.connected and raised != 0

    def _work(self) -> bool:
        busy = bool(self.status["running"]) and not self._level()
        self._advance()
        return busy

    def read_registers(self, address: int, length: int) -> bytes:
        with self.lock:
            if found := self.interrupts.controller_at(address):
                return found[0].read(found[1]).to_bytes(4, "little")
            return super().read_registers(address, length)

    def write_registers(self, address: int, data: bytes) -> None:
        with self.lock:
            if found := self.interrupts.controller_at(address):
                found[0].write(found[1], int.from_bytes(bytes(data), "little"))
                return
            super().write_registers(address, data)
        self.interrupts.notify()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[InterruptDevice]:
    made = InterruptDevice()
    monkeypatch.setattr(pynq.Device, "_active_device", made, raising=False)
    made.interrupts.connect()
    yield made
    made.interrupts.close()


@pytest.fixture
def weight(rng):
    return rng.integers(-128, 128, (3, 3, 4, 4)).astype(np.int8)


@pytest.fixture
def codes(rng):
    return rng.integers(-128, 128, (4, 4, 3)).astype(np.int8)


def works(accelerator, weight, codes) -> bool:
    return np.array_equal(accelerator.run_int8(codes), expected(weight, codes))


def test_the_controller_is_the_product_guides() -> None:
    """A level input sets its bit again until the source is cleared; SIE, CIE, MER gate it."""
    high = [False]
    controller = InterruptController({3: lambda: high[0]})
    controller.write(interrupts.MER, 3)
    high[0] = True
    assert controller.read(interrupts.ISR) == 8 and not controller.output
    controller.write(interrupts.SIE, 8)
    assert controller.output and controller.read(interrupts.IPR) == 8
    assert controller.read(interrupts.IVR) == 3
    controller.write(interrupts.IAR, 8)
    assert controller.output  # the line is high still
    controller.write(interrupts.CIE, 8)
    assert not controller.output and controller.read(interrupts.IVR) == 0xFFFFFFFF
    high[0] = False
    assert controller.read(interrupts.ISR) == 8  # latched
    controller.write(interrupts.IAR, 8)
    controller.write(interrupts.IER, 8)
    assert controller.read(interrupts.ISR) == 0 and not controller.output
    assert controller.read(interrupts.IER) == 8 and controller.read(interrupts.MER) == 3


def test_runs_wait_for_the_interrupt(device, weight, codes) -> None:
    with host.Accelerator(linear_bundle(weight), overlay=device.overlay) as accelerator:
        line = accelerator._waiting.line
        for count in range(2, 6):  # the setup program was the first
            assert works(accelerator, weight, codes)
            assert accelerator.last_run.waited == f"interrupt {PIN!r}"
            assert line.interrupts >= count
    with host.Accelerator(linear_bundle(weight), overlay=device.overlay, wait="poll") as polling:
        assert works(polling, weight, codes) and polling.last_run.waited == "polling"
        assert device.registers["IRQ_ENABLE"] == 0


def test_an_error_raises_the_interrupt_too(device, weight, codes) -> None:
    with host.Accelerator(linear_bundle(weight), overlay=device.overlay) as accelerator:
        device.faults.append(ErrorCode.BAD_FIELD)
        started = time.monotonic()
        with pytest.raises(host.ProgramError):
            accelerator.run_int8(codes)
        assert time.monotonic() - started < 5
        assert works(accelerator, weight, codes)


def test_a_hang_ends_in_a_timeout_that_tells(device, weight, codes) -> None:
    with host.Accelerator(
        linear_bundle(weight), overlay=device.overlay, timeout_s=0.2
    ) as accelerator:
        device.faults.append(HANG)
        device.registers["INSTRUCTIONS"] = 2
        with pytest.raises(host.AcceleratorTimeout) as caught:
            accelerator.run_int8(codes)
        error = caught.value
        assert error.how == f"interrupt {PIN!r}" and error.how in str(error)
        assert error.instruction == 1 and error.text.startswith("COMPUTE wait_load=1")
        assert f"last dispatched instruction 1 [{error.text}]" in str(error)
        assert works(accelerator, weight, codes)


def test_a_faulting_instruction_is_named_in_a_timeout(device, weight, codes) -> None:
    with host.Accelerator(
        linear_bundle(weight), overlay=device.overlay, timeout_s=0.1, wait="poll"
    ) as accelerator:
        device.faults.append(HANG)
        device._set_error(5, 0, 2)
        with pytest.raises(host.AcceleratorTimeout, match=r"faulting instruction 2 \[STORE"):
            accelerator.run_int8(codes)
        device.faults.append(HANG)
        with pytest.raises(host.AcceleratorTimeout, match="none was dispatched") as caught:
            accelerator.run_int8(codes)
        assert caught.value.instruction is None and caught.value.how == "polling"


def test_an_interrupt_that_never_comes_is_given_up(device, weight, codes, caplog) -> None:
    """STATUS tells that the run is over; after three of them, runs poll."""
    accelerator = host.Accelerator(linear_bundle(weight), overlay=device.overlay)
    insisting = host.Accelerator(linear_bundle(weight), overlay=device.overlay, wait="interrupt")
    device.connected = False
    with caplog.at_level(logging.WARNING, "shears.host"):
        for _ in range(3):
            assert works(accelerator, weight, codes)
    assert caplog.text.count("did not come") == 2 and "polling from here on" in caplog.text
    assert works(accelerator, weight, codes) and accelerator.last_run.waited == "polling"
    for _ in range(4):
        assert works(insisting, weight, codes)
    assert insisting.last_run.waited == f"interrupt {PIN!r}"
    accelerator.load()  # tries anew
    device.connected = True
    assert works(accelerator, weight, codes)
    assert accelerator.last_run.waited == f"interrupt {PIN!r}"
    accelerator.close()
    insisting.close()


def test_where_there_is_none(device, weight, codes, monkeypatch) -> None:
    bundle = linear_bundle(weight)
    with pytest.raises(host.InterruptUnavailable, match="no interrupt is known; give overlay="):
        host.Accelerator(bundle, device, wait="interrupt")
    with pytest.raises(ValueError, match="wait must be one of"):
        host.Accelerator(bundle, device, wait="irq")
    with host.Accelerator(bundle, device) as accelerator:
        assert works(accelerator, weight, codes) and accelerator.last_run.waited == "polling"
    device.interrupts.disconnect()  # a kernel without a UIO device for it
    monkeypatch.setattr("pynq.interrupt.get_uio_irq", lambda irq: None)
    with pytest.raises(host.InterruptUnavailable, match="Could not find UIO device"):
        host.Accelerator(bundle, overlay=device.overlay, wait="interrupt")
    with host.Accelerator(bundle, overlay=device.overlay) as accelerator:
        assert works(accelerator, weight, codes) and accelerator.last_run.waited == "polling"
    monkeypatch.setattr(pynq.Device, "_active_device", FakeDevice(CONFIG), raising=False)
    with pytest.raises(host.InterruptUnavailable, match="of its active device alone"):
        host.Accelerator(bundle, overlay=device.overlay, wait="interrupt")
    assert not device.allocated


def test_loading_anew_takes_a_new_interrupt(device, weight, codes) -> None:
    with host.Accelerator(linear_bundle(weight), overlay=device.overlay) as accelerator:
        device.reset_registers()
        device.timestamp = f"loaded {next(_stamps)}"
        device.interrupts.configure(device)
        device.interrupts.connect()
        accelerator.load()
        assert works(accelerator, weight, codes)
        assert accelerator.last_run.waited == f"interrupt {PIN!r}"


@pytest.mark.parametrize("wait", ["interrupt", "poll"])
def test_async_runs_leave_the_loop_alone(wait, device, rng) -> None:
    weights = rng.integers(-128, 128, (2, 3, 3, 4, 4)).astype(np.int8)
    pictures = rng.integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
    accelerators = [
        host.Accelerator(linear_bundle(w, f"net{i}"), overlay=device.overlay, wait=wait)
        for i, w in enumerate(weights)
    ]
    ticks = []

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0)

    async def main() -> list[np.ndarray]:
        ticking = asyncio.create_task(tick())
        runs = [accelerators[i % 2].run_async(picture) for i, picture in enumerate(pictures)]
        found = await asyncio.gather(*runs)
        ticking.cancel()
        return found

    for _ in range(2):  # asyncio.run makes a loop each time
        found = asyncio.run(main())
        for i, (picture, logits) in enumerate(zip(pictures, found, strict=True)):
            bundle = accelerators[i % 2].bundle
            right = expected(weights[i % 2], bundle.quantize_input(bundle.preprocess(picture)))
            np.testing.assert_array_equal(logits, bundle.dequantize_output(0, right))
    assert len(ticks) > 10
    for accelerator in accelerators:
        accelerator.close()


def test_errors_of_async_runs_reach_the_caller(device, weight, codes) -> None:
    with host.Accelerator(linear_bundle(weight), overlay=device.overlay) as accelerator:
        with pytest.raises(ValueError, match="must have shape"):
            asyncio.run(accelerator.run_async(np.zeros((1, 1, 3), np.uint8)))
        device.faults.append(ErrorCode.BAD_FIELD)
        with pytest.raises(host.ProgramError):
            asyncio.run(accelerator.run_async(np.zeros((4, 4, 3), np.uint8)))
        assert works(accelerator, weight, codes)


def test_a_board_that_another_thread_keeps(device, weight, codes) -> None:
    accelerator = host.Accelerator(linear_bundle(weight), overlay=device.overlay, timeout_s=0.2)
    held, release = threading.Event(), threading.Event()

    def keep() -> None:
        with accelerator.locked():
            assert works(accelerator, weight, codes)  # the thread itself may go on
            held.set()
            release.wait(30)

    thread = threading.Thread(target=keep, name="keeper")
    thread.start()
    assert held.wait(30)
    for action in (lambda: accelerator.run_int8(codes), accelerator.load, accelerator.close):
        with pytest.raises(host.BoardBusy, match="'keeper' keeps it") as caught:
            action()
        assert caught.value.holder == "keeper"
    release.set()
    thread.join(30)
    assert works(accelerator, weight, codes)
    accelerator.close()
    assert not device.allocated


def test_awaiting_inside_locked_is_refused_and_no_deadlock(device, weight, codes) -> None:
    async def wrong(accelerator) -> None:
        with accelerator.locked():
            await accelerator.run_async(np.zeros((4, 4, 3), np.uint8))

    with host.Accelerator(linear_bundle(weight), device, timeout_s=0.2) as accelerator:
        with pytest.raises(host.BoardBusy, match="leave its `with accelerator.locked"):
            asyncio.run(wrong(accelerator))
        assert works(accelerator, weight, codes)


def test_an_interrupted_wait_stops_the_hardware(device, weight, codes, monkeypatch) -> None:
    with host.Accelerator(linear_bundle(weight), overlay=device.overlay) as accelerator:
        device.faults.append(HANG)
        line = accelerator._waiting.line

        def interrupt(timeout_s: float) -> bool:
            monkeypatch.undo()
            raise KeyboardInterrupt

        active = pynq.Device.active_device
        monkeypatch.setattr(line, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            accelerator.run_int8(codes)
        assert not device.status["running"]
        monkeypatch.setattr(pynq.Device, "_active_device", active, raising=False)
        assert works(accelerator, weight, codes)
