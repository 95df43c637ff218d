# SPDX-License-Identifier: Apache-2.0
"""Room tests: reading the trace, on a device whose records are made up."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import host
from host.profile import layer_of
from hwgen.arch import isa
from hwgen.arch.bundle import Bundle
from hwgen.arch.trace import Profile
from tests.host.fake_device import FakeDevice
from tests.host.small_bundle import CONFIG, linear_bundle


@pytest.fixture
def codes(rng):
    return rng.integers(-128, 128, (4, 4, 3)).astype(np.int8)


@pytest.fixture
def long_bundle(rng) -> Bundle:
    """Return the linear bundle with 40 stores more, for a trace of 16 entries: three windows."""
    bundle = linear_bundle(rng.integers(-128, 128, (3, 3, 4, 4)).astype(np.int8))
    end = bundle.program[-isa.INSTRUCTION_BYTES :]
    store = isa.encode(isa.Opcode.STORE, base=2, rows=1, words_per_row=1)
    program = bundle.program[: -isa.INSTRUCTION_BYTES] + 40 * store + end
    config = dataclasses.replace(CONFIG, trace_entries=16)
    return dataclasses.replace(bundle, program=program, config=config)


def test_windows_are_joined(long_bundle, codes) -> None:
    device = FakeDevice(long_bundle.config)
    with host.Accelerator(long_bundle, device) as accelerator:
        before = device.starts
        result = host.profile(accelerator, codes)
        assert device.starts == before + 3
        assert result.counters == accelerator.last_run.counters
    assert [r.index for r in result.records] == list(range(43))
    assert [r.start for r in result.records] == [10 * i + 5 for i in range(43)]
    assert [r.opcode for r in result.records][:4] == ["LOAD", "COMPUTE", "STORE", "STORE"]
    assert [r.layer for r in result.records][:3] == [None, "linear", None]
    assert result.records[2].wait_load == 2 and result.records[2].head == 23
    assert result.records[3].fields["words_per_row"] == 1
    assert result.window_cycles == (result.counters["CYCLES_TOTAL"],) * 3


def test_images_are_taken_as_run_takes_them(long_bundle, codes, rng) -> None:
    with host.Accelerator(long_bundle, FakeDevice(long_bundle.config)) as accelerator:
        want = host.profile(accelerator, codes)
        image = rng.normal(size=(3, 4, 4)).astype(np.float32)
        assert host.profile(accelerator, image).records == want.records
        with pytest.raises(ValueError, match="shape"):
            host.profile(accelerator, image[:2])


def test_a_lost_record_is_noticed(long_bundle, codes) -> None:
    device = FakeDevice(long_bundle.config)
    device.trace_lost = 1
    with host.Accelerator(long_bundle, device) as accelerator:
        with pytest.raises(host.WrongHardware, match="hold 16 records .* not 15 and 28"):
            host.profile(accelerator, codes)


def test_a_record_of_another_instruction_is_noticed(long_bundle, codes, monkeypatch) -> None:
    device = FakeDevice(long_bundle.config)
    record = device._record

    def twice() -> None:
        record()
        device.trace[:1] = device.trace[-1:]

    monkeypatch.setattr(device, "_record", twice)
    with host.Accelerator(long_bundle, device) as accelerator:
        with pytest.raises(host.WrongHardware, match="one record of each instruction from 0 to 15"):
            host.profile(accelerator, codes)


def test_plain_data_gives_the_profile_back(long_bundle, codes) -> None:
    with host.Accelerator(long_bundle, FakeDevice(long_bundle.config)) as accelerator:
        result = host.profile(accelerator, codes)
    assert Profile.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_the_narrowest_layer_around_an_instruction(long_bundle) -> None:
    (layer,) = long_bundle.layers
    outer = dataclasses.replace(layer, name="outer", first_instruction=0, last_instruction=9)
    inner = dataclasses.replace(layer, name="inner", first_instruction=2, last_instruction=3)
    found = [layer_of((outer, inner), i) for i in (0, 2, 3, 4, 10)]
    assert found == ["outer", "inner", "inner", "outer", None]
