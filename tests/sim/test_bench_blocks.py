# SPDX-License-Identifier: Apache-2.0
"""The test room: cocotb benches of the blocks of fixed timing around the array."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwgen.arch import AcceleratorConfig
from rtl.addresses import InputAddresses, OutputAddresses
from rtl.layouts import TAP
from rtl.pe_array import Accumulators
from rtl.sequencer import Sequencer
from rtl.streams import StreamFifo
from rtl.synapse_buffer import SynapseBuffer
from rtl.tap_buffer import TapBuffer
from sim.runner import run_bench
from tests.support.simulators import each_simulator

SHAPES = (
    ("4x8x2", {"tn": 4, "ti": 8, "tp": 2}),
    ("8x8", {"tn": 8, "ti": 8}),
    ("4x16x4", {"tn": 4, "ti": 16, "tp": 4}),
)
SHAPE = pytest.mark.parametrize(
    "shape",
    [pytest.param(v, id=k, marks=pytest.mark.slow if i else ()) for i, (k, v) in enumerate(SHAPES)],
)


def small(shape: dict[str, int]) -> AcceleratorConfig:
    """Return a configuration with memories whose ends are soon reached."""
    return AcceleratorConfig(**shape, scratchpad_bank_words=64, synapse_rows=64, tap_entries=32)


@each_simulator
@pytest.mark.parametrize("block", ["synapse", "tap"])
def test_buffers(simulator: str, block: str, tmp_path: Path) -> None:
    """Reads and writes of every row, many of them of the same row at once."""
    config = AcceleratorConfig(tn=4, ti=8, synapse_rows=16, tap_entries=16)
    synapse = block == "synapse"
    parameters = {
        "rows": 16,
        "slots": config.tn if synapse else 1,
        "bits": 8 * config.ti if synapse else TAP.size,
        "row_port": "write__row" if synapse else "write__address",
        "latency": SynapseBuffer.LATENCY if synapse else TapBuffer.LATENCY,
        "seed": 21,
        "count": 1500,
    }
    component = SynapseBuffer(config) if synapse else TapBuffer(config)
    run_bench(component, "sim.benches.bench_buffers", simulator, tmp_path, parameters)


@each_simulator
@pytest.mark.parametrize("depth", [5, pytest.param(2, marks=pytest.mark.slow)])
def test_stream_fifo(simulator: str, depth: int, tmp_path: Path) -> None:
    """Stalls at either end and at both."""
    parameters = {"depth": depth, "seed": 22, "count": 400}
    component = StreamFifo(19, depth)
    run_bench(component, "sim.benches.bench_stream_fifo", simulator, tmp_path, parameters)


@each_simulator
@SHAPE
def test_accumulators(simulator: str, shape: dict[str, int], tmp_path: Path) -> None:
    """Accumulation and hand-over, a step a cycle."""
    config = small(shape)
    parameters = {"config": config.to_dict(), "seed": 23, "count": 500}
    run_bench(
        Accumulators(config), "sim.benches.bench_accumulators", simulator, tmp_path, parameters
    )


@each_simulator
@SHAPE
@pytest.mark.parametrize("block", ["input", "output"])
def test_addresses(simulator: str, block: str, shape: dict[str, int], tmp_path: Path) -> None:
    """A random step every cycle, close to the edges of the input and of the scratchpad."""
    config = small(shape)
    parameters = {"config": config.to_dict(), "block": block, "seed": 24, "count": 2000}
    component = InputAddresses(config) if block == "input" else OutputAddresses(config)
    run_bench(component, "sim.benches.bench_addresses", simulator, tmp_path, parameters)


@each_simulator
@SHAPE
def test_sequencer(simulator: str, shape: dict[str, int], tmp_path: Path) -> None:
    """Every issue of random instructions, every refusal, to the cycle."""
    config = small(shape)
    parameters = {"config": config.to_dict(), "seed": 25, "count": 8}
    run_bench(Sequencer(config), "sim.benches.bench_sequencer", simulator, tmp_path, parameters)
