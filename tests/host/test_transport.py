# SPDX-License-Identifier: Apache-2.0
"""Room tests: a board that is pulled out, or whose bitstream is changed, while the driver uses it.

Each ends in a typed error in time, and the next run works once the right board is there again.
"""

from __future__ import annotations

import itertools
import logging
import time
from typing import Any

import numpy as np
import pytest

import host
from hwgen.arch.registers import BY_NAME
from tests.host.fake_device import HANG, FakeDevice
from tests.host.small_bundle import CONFIG, expected, linear_bundle


class Cable(FakeDevice):
    """A board on a cable: every access counts, and none gets through once it is pulled.

    Attributes
    ----------
    left
        Accesses that get through before the cable is pulled; None is all of them.
    """

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.left: int | None = None
        self.failures = 0

    def allocate(self, shape: Any, dtype: Any, **kwargs: Any) -> Any:
        buffer = super().allocate(shape, dtype, **kwargs)
        buffer.coherent = False  # flush and invalidate go over the cable too
        return buffer

    def read_registers(self, address: int, length: int) -> bytes:
        self._access()
        return super().read_registers(address, length)

    def write_registers(self, address: int, data: bytes) -> None:
        self._access()
        super().write_registers(address, data)

    def flush(self, *where: Any) -> None:
        self._access()

    def invalidate(self, *where: Any) -> None:
        self._access()

    def _access(self) -> None:
        if self.left is not None:
            if self.left == 0:
                self.failures += 1
                raise OSError(5, "Input/output error")
            self.left -= 1

    def lose_power(self) -> None:
        """Forget everything, as without power."""
        self.reset_registers()
        self.machine.synapse[:] = self.machine.taps[:] = 0
        self.ddr[:] = 0xA5


@pytest.fixture
def weight(rng):
    return rng.integers(-128, 128, (3, 3, 4, 4)).astype(np.int8)


@pytest.fixture
def codes(rng):
    return rng.integers(-128, 128, (4, 4, 3)).astype(np.int8)


def works(accelerator, weight, codes) -> bool:
    return np.array_equal(accelerator.run_int8(codes), expected(weight, codes))


@pytest.mark.parametrize("power", [True, False], ids=["keeps power", "loses power"])
def test_pulled_out_at_any_access_of_a_run(power: bool, weight, codes) -> None:
    """At each access in turn: a TransportError, and the next run is right at the first attempt."""
    device = Cable()
    with host.Accelerator(linear_bundle(weight), device, timeout_s=2) as accelerator:
        for accesses in itertools.count():
            device.reset_registers()  # so that the run does the setup first
            device.left = accesses
            try:
                accelerator.run_int8(codes)
            except host.TransportError as error:
                assert isinstance(error.__cause__, OSError) and "Input/output" in str(error)
            else:
                break
            device.left = None
            if not power:
                device.lose_power()
            assert works(accelerator, weight, codes)
            assert accelerator.last_run.attempts == 1
        assert accesses > 30 and device.failures >= accesses
        device.left = None
    assert not device.allocated


def test_pulled_out_at_any_access_while_loading(weight, codes) -> None:
    """The constructor raises and keeps no memory; the next one works."""
    device = Cable()
    for accesses in itertools.count():
        device.left = accesses
        try:
            accelerator = host.Accelerator(linear_bundle(weight), device, timeout_s=2)
        except host.TransportError:
            device.left = None
            assert not device.allocated
            with host.Accelerator(linear_bundle(weight), device) as again:
                assert works(again, weight, codes)
        else:
            break
    assert accesses > 15
    accelerator.close()  # without a cable
    assert not device.allocated


def test_pulled_out_while_it_hangs(weight, codes) -> None:
    """What still runs when the board comes back is stopped before anything is written."""
    device = Cable()
    with host.Accelerator(linear_bundle(weight), device, timeout_s=5) as accelerator:
        device.faults.append(HANG)
        device.left = 40  # the run has begun by then, and does not end
        started = time.monotonic()
        with pytest.raises(host.TransportError, match="reading STATUS"):
            accelerator.run_int8(codes)
        assert time.monotonic() - started < 1 and device.status["running"]
        device.left = None
        assert works(accelerator, weight, codes)


def test_an_interrupted_run_without_a_cable_stays_an_interrupt(
    weight, codes, monkeypatch, caplog
) -> None:
    """KeyboardInterrupt is not replaced by the error of the reset that did not get through."""
    device = Cable()
    read = device.read_registers

    def interrupt(address: int, length: int) -> bytes:
        if device.status["running"]:
            device.left = 0
            monkeypatch.setattr(device, "read_registers", read)
            raise KeyboardInterrupt
        return read(address, length)

    with host.Accelerator(linear_bundle(weight), device, timeout_s=5) as accelerator:
        monkeypatch.setattr(device, "read_registers", interrupt)
        with caplog.at_level(logging.WARNING, "shears.host"), pytest.raises(KeyboardInterrupt):
            accelerator.run_int8(codes)
        assert "can't be stopped: writing CONTROL failed" in caplog.text
        device.left = None
        assert works(accelerator, weight, codes)


def test_registers_that_may_not_be_opened(weight, monkeypatch) -> None:
    """Whoever is not root is refused by pynq with an EnvironmentError."""

    class Locked:
        def __init__(self, *where: Any, **how: Any) -> None:
            raise OSError("Root permissions required.")

    monkeypatch.setattr("pynq.MMIO", Locked)
    with pytest.raises(host.TransportError, match=r"opening the registers at 0x43c00000 .*Root"):
        host.Accelerator(linear_bundle(weight), Cable())


@pytest.mark.parametrize(
    ("register", "error"),
    [
        ("ID", host.WrongHardware),
        ("VERSION", host.WrongHardware),
        ("DIGEST_LOW", host.DigestMismatch),
        ("DIGEST_HIGH", host.DigestMismatch),
    ],
)
@pytest.mark.parametrize("when", ["between runs", "in a run"])
def test_another_bitstream_under_a_resident_bundle(
    when: str, register: str, error: type[Exception], weight, codes, monkeypatch
) -> None:
    """It never gets a program: not even after the soft reset that ends the run it interrupted."""
    device = FakeDevice(CONFIG)
    with host.Accelerator(linear_bundle(weight), device, timeout_s=0.1) as accelerator:
        assert works(accelerator, weight, codes)

        def swap() -> None:
            device.reset_registers()
            device.registers[register] ^= 4

        if when == "in a run":
            read = device.read_registers

            def swap_then_read(address: int, length: int) -> bytes:
                status = address - device.base_address == BY_NAME["STATUS"].offset
                if status and device.status["running"]:
                    monkeypatch.setattr(device, "read_registers", read)
                    swap()
                return read(address, length)

            monkeypatch.setattr(device, "read_registers", swap_then_read)
            with pytest.raises(host.AcceleratorTimeout, match="did not end within"):
                accelerator.run_int8(codes)
        else:
            swap()
        starts = device.starts
        for _ in range(2):
            with pytest.raises(error):
                accelerator.run_int8(codes)
        assert device.starts == starts
        device.reset_registers()
        device.machine.synapse[:] = device.machine.taps[:] = 0
        assert works(accelerator, weight, codes)
    assert not device.allocated
