# SPDX-License-Identifier: Apache-2.0
"""The test room: cocotb benches of the array, lanes, NFU-3 and scratchpad on both simulators."""

from __future__ import annotations

import pytest

from hwgen.arch.config import AcceleratorConfig
from rtl.lanes import Lanes
from rtl.pe_array import PEArray
from rtl.requantizer import Requantizer
from rtl.scratchpad import Scratchpad
from sim.runner import SIMULATORS, available_simulators, run_bench

SHAPES = {"8x8": {"tn": 8, "ti": 8, "tp": 1}, "4x8x2": {"tn": 4, "ti": 8, "tp": 2}}
BOTH = [
    pytest.param("icarus", id="icarus"),
    pytest.param("verilator", id="verilator", marks=pytest.mark.slow),
]
assert {p.values[0] for p in BOTH} == set(SIMULATORS)


def _needs(simulator: str) -> None:
    if simulator not in available_simulators():
        pytest.skip(f"{simulator} is not installed")


@pytest.mark.parametrize("simulator", BOTH)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("block", ["array", "lanes"])
def test_products_and_lanes(block, shape, simulator, tmp_path):
    """A new step every cycle."""
    _needs(simulator)
    config = AcceleratorConfig(**shape)
    component = PEArray(config) if block == "array" else Lanes(config)
    latency = PEArray.latency(config) if block == "array" else Lanes.LATENCY
    parameters = {"block": block, "latency": latency, "seed": 11, "count": 300, **shape}
    run_bench(component, "sim.benches.bench_datapath", simulator, tmp_path, parameters)


@pytest.mark.parametrize("simulator", BOTH)
def test_requantizer(simulator, tmp_path):
    """A new word with new parameters every cycle."""
    _needs(simulator)
    parameters = {"block": "requantizer", "latency": Requantizer.LATENCY, "seed": 12}
    run_bench(
        Requantizer(4),
        "sim.benches.bench_datapath",
        simulator,
        tmp_path,
        {**parameters, "count": 1500, "lanes": 4},
    )


@pytest.mark.parametrize("simulator", BOTH)
@pytest.mark.parametrize(
    "shape",
    [{"tn": 8, "ti": 8}, {"tn": 4, "ti": 8, "tp": 2}, {"tn": 4, "ti": 16, "scratchpad_banks": 1}],
    ids=["one-block", "two-blocks-two-pixels", "one-bank"],
)
def test_scratchpad(shape, simulator, tmp_path):
    """Random traffic on every port."""
    _needs(simulator)
    config = AcceleratorConfig(**shape, scratchpad_bank_words=16)
    parameters = {"config": config.to_dict(), "latency": Scratchpad.LATENCY, "seed": 13}
    run_bench(
        Scratchpad(config),
        "sim.benches.bench_scratchpad",
        simulator,
        tmp_path,
        {**parameters, "count": 1500},
    )
