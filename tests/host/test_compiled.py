# SPDX-License-Identifier: Apache-2.0
"""Room tests: compiled bundles through the driver equal the golden model and the integer graph."""

from __future__ import annotations

import numpy as np
import pytest

import host
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.interpreter import GoldenRun
from hwgen.backends import program
from tests.host.fake_device import FakeDevice
from tests.support.quantized_graphs import every_operation

CONFIGS = {
    "resident": AcceleratorConfig(),
    "small": AcceleratorConfig(tn=8, ti=8, scratchpad_bank_words=1024, synapse_rows=2048),
    "streamed": AcceleratorConfig(synapse_rows=32, tap_entries=32),
}


def emit(graph, config: AcceleratorConfig, *placement):
    return program.emit(graph, config, "net", ((0.5,) * 3, (0.25,) * 3), None, *placement)


@pytest.mark.parametrize("name", CONFIGS)
def test_driver_equals_the_golden_model(name, rng) -> None:
    bundle = emit(every_operation(rng, 3, 9, 8), CONFIGS[name])
    assert bool(bundle.setup) == (name != "streamed")
    golden = GoldenRun(bundle)
    with host.Accelerator(bundle, FakeDevice(CONFIGS[name])) as accelerator:
        for _ in range(3):
            codes = rng.integers(-128, 128, (9, 8, 3)).astype(np.int8)
            found, right = accelerator.run_outputs_int8(codes), golden.run(codes)
            assert len(found) == len(right)
            for mine, theirs in zip(found, right, strict=True):
                np.testing.assert_array_equal(mine, theirs)


def test_two_networks_side_by_side_and_one_that_streams(rng) -> None:
    config = CONFIGS["resident"]
    graphs = [every_operation(rng, 3, 9, 8) for _ in range(2)]
    first = emit(graphs[0], config)
    second = emit(graphs[1], config, first.placement.synapse_rows, first.placement.tap_entries)
    streamed = emit(graphs[1], config, config.synapse_rows - 32, config.tap_entries - 32)
    assert not streamed.setup and not first.placement.overlaps(second.placement)
    device = FakeDevice(config)
    codes = rng.integers(-128, 128, (9, 8, 3)).astype(np.int8)
    right = {id(bundle): GoldenRun(bundle).run(codes) for bundle in (first, second, streamed)}
    accelerators = [host.Accelerator(bundle, device) for bundle in (first, second, streamed)]
    assert device.starts == 2
    for choice in rng.integers(0, 3, 12):
        accelerator = accelerators[choice]
        found = accelerator.run_outputs_int8(codes)
        for mine, theirs in zip(found, right[id(accelerator.bundle)], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert device.starts == 2 + 12
    for accelerator in accelerators:
        accelerator.close()
    assert not device.allocated
