# SPDX-License-Identifier: Apache-2.0
"""The test room: cocotb benches of the array, lanes, NFU-3 and scratchpad on both simulators."""

from __future__ import annotations

import pytest

from hwgen.arch.config import AcceleratorConfig
from rtl.lanes import Lanes
from rtl.pe_array import PEArray
from rtl.requantizer import Requantizer
from rtl.scratchpad import Scratchpad
from sim.runner import run_bench
from tests.support.simulators import each_simulator

SHAPES = {
    "8x8": {"tn": 8, "ti": 8, "tp": 1},
    "4x8x2": {"tn": 4, "ti": 8, "tp": 2},
    "4x8x2-five": {"tn": 4, "ti": 8, "tp": 2, "dsp_lanes": 5},
    "4x8-none": {"tn": 4, "ti": 8, "tp": 1, "dsp_lanes": 0},
}


@each_simulator
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("block", ["array", "lanes"])
def test_products_and_lanes(block, shape, simulator, tmp_path):
    """A new step every cycle, in DSP slices and in LUTs."""
    config = AcceleratorConfig(**shape)
    component = PEArray(config) if block == "array" else Lanes(config)
    latency = PEArray.latency(config) if block == "array" else Lanes.LATENCY
    lead = 0 if block == "array" else Lanes.LEAD
    parameters = {"block": block, "latency": latency, "lead": lead, "seed": 11, "count": 300}
    run_bench(component, "sim.benches.bench_datapath", simulator, tmp_path, {**parameters, **shape})


@each_simulator
def test_requantizer(simulator, tmp_path):
    """A new word with new parameters every cycle."""
    parameters = {"block": "requantizer", "latency": Requantizer.LATENCY, "seed": 12}
    run_bench(
        Requantizer(4),
        "sim.benches.bench_datapath",
        simulator,
        tmp_path,
        {**parameters, "count": 1500, "lanes": 4},
    )


@each_simulator
@pytest.mark.parametrize(
    "shape",
    [{"tn": 8, "ti": 8}, {"tn": 4, "ti": 8, "tp": 2}, {"tn": 4, "ti": 16, "scratchpad_banks": 1}],
    ids=["one-block", "two-blocks-two-pixels", "one-bank"],
)
def test_scratchpad(shape, simulator, tmp_path):
    """Random traffic on every port."""
    config = AcceleratorConfig(**shape, scratchpad_bank_words=16)
    parameters = {"config": config.to_dict(), "latency": Scratchpad.LATENCY, "seed": 13}
    run_bench(
        Scratchpad(config),
        "sim.benches.bench_scratchpad",
        simulator,
        tmp_path,
        {**parameters, "count": 1500},
    )
