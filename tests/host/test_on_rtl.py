# SPDX-License-Identifier: Apache-2.0
"""Room tests: the driver against the real registers, masters and engines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import host
from hwgen.arch import isa
from hwgen.arch.registers import ErrorCode
from rtl.axi import Response
from tests.host.rtl_device import RtlDevice
from tests.host.small_bundle import CONFIG, expected, linear_bundle

# The same is asked of a compiled network in tests/sim, on a simulator a hundred times as fast.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def device() -> RtlDevice:
    """One machine for all tests: whatever one of them did to it, the next must work."""
    return RtlDevice(CONFIG)


@pytest.fixture
def weight(rng):
    return rng.integers(-128, 128, (3, 3, 4, 4)).astype(np.int8)


@pytest.fixture
def codes(rng):
    return rng.integers(-128, 128, (4, 4, 3)).astype(np.int8)


def works(accelerator, weight, codes) -> bool:
    return np.array_equal(accelerator.run_int8(codes), expected(weight, codes))


def test_codes_equal_and_counters_count(device, weight, codes) -> None:
    with host.Accelerator(linear_bundle(weight), device) as accelerator:
        assert works(accelerator, weight, codes)
        counters = accelerator.last_run.counters
    assert counters["STEPS"] == 16 and counters["INSTRUCTIONS"] == 4
    assert counters["BYTES_READ"] == 4 * 64 + 128 and counters["BYTES_WRITTEN"] == 8
    assert 16 < counters["CYCLES_TOTAL"] < 1000
    assert not device.allocated


def test_two_bundles_stay_resident(device, rng, codes) -> None:
    weights = rng.integers(-128, 128, (2, 3, 3, 4, 4)).astype(np.int8)
    a = host.Accelerator(linear_bundle(weights[0], "a"), device)
    b = host.Accelerator(linear_bundle(weights[1], "b", synapse_row=32, tap_entry=32), device)
    assert works(a, weights[0], codes) and works(b, weights[1], codes)
    assert works(a, weights[0], codes)
    a.close()
    b.close()


def test_another_configuration_is_refused(device, weight) -> None:
    bundle = dataclasses.replace(
        linear_bundle(weight), config=dataclasses.replace(CONFIG, queue_depth=4)
    )
    with pytest.raises(host.DigestMismatch):
        host.Accelerator(bundle, device)


def test_bus_errors(device, weight, codes) -> None:
    with host.Accelerator(linear_bundle(weight), device) as accelerator:
        for side, response in (("read", Response.DECERR), ("write", Response.SLVERR)):
            setattr(device, f"{side}_response", response)
            with pytest.raises(host.BusError) as caught:
                accelerator.run_int8(codes)
            assert caught.value.code is ErrorCode[f"{side.upper()}_{response.name}"]
            setattr(device, f"{side}_response", Response.OKAY)
        assert works(accelerator, weight, codes)


@pytest.mark.parametrize("region", ["program", "constants"])
def test_damage_in_ddr_is_retried(device, weight, codes, region) -> None:
    with host.Accelerator(linear_bundle(weight), device) as accelerator:
        accelerator._board.resident.clear()  # so that the constants are read again
        accelerator._buffers[region][5] ^= 4
        assert works(accelerator, weight, codes)
        (message,) = accelerator.last_run.errors
        assert "CHECKSUM" in message and f"{region} in DDR" in message


def test_a_token_that_never_comes(device, weight, codes) -> None:
    bundle = linear_bundle(weight)
    stuck = isa.encode(isa.Opcode.STORE, base=2, rows=1, words_per_row=1, wait_load=1)
    program = stuck + isa.encode(isa.Opcode.END)
    wild = dataclasses.replace(bundle, program=program)
    with host.Accelerator(wild, device, watchdog_cycles=100) as accelerator:
        with pytest.raises(host.NoProgress, match="wait_load=1") as caught:
            accelerator.run_int8(codes)
        assert caught.value.queue == "store" and caught.value.instruction == 0
        accelerator.watchdog_cycles, accelerator.timeout_s = 0, 0.2
        with pytest.raises(host.AcceleratorTimeout, match="STATUS running") as late:
            accelerator.run_int8(codes)
        assert late.value.recovered
    with host.Accelerator(bundle, device) as accelerator:
        assert works(accelerator, weight, codes)


@pytest.mark.parametrize(
    ("program", "code"),
    [
        (isa.encode(isa.Opcode.STORE, base=2, rows=1, words_per_row=1), ErrorCode.PROGRAM_OVERRUN),
        (isa.encode(isa.Opcode.STORE, base=2, rows=1), ErrorCode.BAD_FIELD),
        (
            isa.encode(isa.Opcode.STORE, base=2, rows=1, words_per_row=1, source=60000),
            ErrorCode.ADDRESS_RANGE,
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_wrong_programs_are_not_retried(device, weight, codes, program, code) -> None:
    bundle = linear_bundle(weight)
    end = b"" if code is ErrorCode.PROGRAM_OVERRUN else isa.encode(isa.Opcode.END)
    with host.Accelerator(dataclasses.replace(bundle, program=program + end), device) as wrong:
        with pytest.raises(host.ProgramError) as caught:
            wrong.run_int8(codes)
        assert caught.value.code is code
    with host.Accelerator(bundle, device) as accelerator:
        assert works(accelerator, weight, codes)
