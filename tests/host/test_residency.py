# SPDX-License-Identifier: Apache-2.0
"""Room tests: several bundles on one board. Setup runs only when constants were overwritten."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import host
from hwgen.arch.registers import ErrorCode
from tests.host.fake_device import FakeDevice
from tests.host.small_bundle import CONFIG, expected, linear_bundle


@pytest.fixture
def weights(rng):
    return rng.integers(-128, 128, (2, 3, 3, 4, 4)).astype(np.int8)


@pytest.fixture
def codes(rng):
    return rng.integers(-128, 128, (4, 4, 3)).astype(np.int8)


@pytest.fixture
def device():
    return FakeDevice(CONFIG)


def starts_of(device, accelerator, weight, codes) -> int:
    """Run once, check the result, and return how many programs it took."""
    before = device.starts
    np.testing.assert_array_equal(accelerator.run_int8(codes), expected(weight, codes))
    return device.starts - before


def test_setup_runs_once(device, weights, codes) -> None:
    with host.Accelerator(linear_bundle(weights[0]), device) as accelerator:
        assert device.starts == 1
        assert [starts_of(device, accelerator, weights[0], codes) for _ in range(3)] == [1, 1, 1]
        assert accelerator.last_run.setup_seconds < accelerator.last_run.total_seconds
        accelerator.load()
        assert device.starts == 5


def test_bundles_side_by_side_stay_resident(device, weights, codes) -> None:
    a = host.Accelerator(linear_bundle(weights[0], "a"), device)
    b = host.Accelerator(linear_bundle(weights[1], "b", synapse_row=32, tap_entry=32), device)
    for _ in range(3):
        assert starts_of(device, a, weights[0], codes) == 1
        assert starts_of(device, b, weights[1], codes) == 1
    a.close()
    assert starts_of(device, b, weights[1], codes) == 1
    b.close()
    assert not device.allocated


@pytest.mark.parametrize("place", [{"synapse_row": 32}, {"tap_entry": 32}, {}])
def test_overlapping_bundles_take_turns(device, weights, codes, place) -> None:
    a = host.Accelerator(linear_bundle(weights[0], "a"), device)
    b = host.Accelerator(linear_bundle(weights[1], "b", **place), device)
    assert starts_of(device, b, weights[1], codes) == 1
    assert starts_of(device, a, weights[0], codes) == 2
    assert starts_of(device, a, weights[0], codes) == 1
    assert starts_of(device, b, weights[1], codes) == 2
    assert b.last_run.setup_cycles > 0
    assert starts_of(device, b, weights[1], codes) == 1 and b.last_run.setup_cycles == 0
    a.close()
    b.close()


def test_a_bundle_that_streams_its_weights_evicts(device, weights, codes) -> None:
    a = host.Accelerator(linear_bundle(weights[0], "a"), device)
    resident = linear_bundle(weights[1], "b")
    no_end = resident.setup[:-64]
    # Setup in front of each image: its tokens are none, so the image program follows on.
    b = host.Accelerator(
        dataclasses.replace(resident, setup=b"", program=no_end + resident.program), device
    )
    for _ in range(2):
        assert starts_of(device, b, weights[1], codes) == 1
        assert starts_of(device, a, weights[0], codes) == 2
    a.close()
    b.close()


def test_the_same_bundle_twice_shares_its_constants(device, weights, codes) -> None:
    a = host.Accelerator(linear_bundle(weights[0]), device)
    b = host.Accelerator(linear_bundle(weights[0]), device)
    assert starts_of(device, a, weights[0], codes) == starts_of(device, b, weights[0], codes) == 1
    a.close()
    b.close()


def test_a_bitstream_loaded_anew_is_noticed(device, weights, codes) -> None:
    with host.Accelerator(linear_bundle(weights[0]), device) as accelerator:
        device.reset_registers()
        device.machine.synapse[:] = 0
        device.machine.taps[:] = 0
        assert starts_of(device, accelerator, weights[0], codes) == 2


def test_another_bitstream_in_between_is_refused(device, weights, codes) -> None:
    with host.Accelerator(linear_bundle(weights[0]), device) as accelerator:
        device.reset_registers()
        device.registers["DIGEST_LOW"] ^= 1
        with pytest.raises(host.DigestMismatch):
            accelerator.run_int8(codes)
        device.reset_registers()
        assert starts_of(device, accelerator, weights[0], codes) == 2


def test_after_an_error_nothing_counts_as_resident(device, weights, codes) -> None:
    a = host.Accelerator(linear_bundle(weights[0], "a"), device)
    b = host.Accelerator(linear_bundle(weights[1], "b", synapse_row=32, tap_entry=32), device)
    device.faults.append(ErrorCode.BAD_FIELD)
    with pytest.raises(host.ProgramError):
        a.run_int8(codes)
    device.machine.synapse[:] = 0
    assert starts_of(device, b, weights[1], codes) == 2
    assert starts_of(device, a, weights[0], codes) == 2
    a.close()
    b.close()


def test_two_accelerators_of_one_overlay_are_told_apart(device, weights, codes) -> None:
    with host.Accelerator(linear_bundle(weights[0]), device) as accelerator:
        assert starts_of(device, accelerator, weights[0], codes) == 1
        other = FakeDevice(CONFIG, base_address=0x4000_0000)
        with host.Accelerator(linear_bundle(weights[1]), other, base_address=0x4000_0000) as second:
            assert starts_of(other, second, weights[1], codes) == 1
        assert starts_of(device, accelerator, weights[0], codes) == 1
