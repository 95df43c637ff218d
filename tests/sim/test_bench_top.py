# SPDX-License-Identifier: Apache-2.0
"""The tests room: a network with every operation on the whole top, in cocotb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.interpreter import GoldenRun
from hwgen.backends import program
from hwgen.ir.graph import Graph
from hwgen.ir.quantized import QAvgPool, QInput
from sim.runner import available_simulators
from tests.support.quantized_graphs import (
    centre_mask,
    conv,
    every_operation,
    requantization,
    tensor_type,
)

CONFIG = AcceleratorConfig(
    tn=4, ti=8, scratchpad_bank_words=1024, synapse_rows=512, tap_entries=256, max_burst_beats=8
)


def small_network(rng: np.random.Generator) -> Graph:
    """Two convolutions, the second with reduced kernels and a residual, and an average pool."""
    source = QInput(name="x", type=tensor_type((2, 4, 3), -5))
    a = conv(rng, "a", source, 6)
    b = conv(rng, "b", a, 6, keep=centre_mask(6, 3, rng.random(6) < 0.5), residual="a")
    pool = QAvgPool(
        name="v",
        inputs=("b",),
        type=tensor_type((6, 1, 1), 7),
        kernel=(4, 3),
        stride=(1, 1),
        bias=0,
        requantization=requantization(rng, 6, 7),
    )
    return Graph((source, a, b, pool), ("x",), ("v",), "quantized")


def check(
    graph: Graph, simulator: str, rng: np.random.Generator, seed: int, **options: Any
) -> None:
    """Compare two images with the interpreter, here as well as in the bench."""
    bundle = program.emit(graph, CONFIG)
    codes = rng.integers(-128, 128, (2, *bundle.input.shape))
    scale = np.float32(bundle.input.scale)
    images = ((codes - bundle.input.zero_point) * scale).astype(np.float32)
    run = sim.run_bundle_in_cocotb(bundle, images, simulator, seed=seed % 1000, **options)
    golden = GoldenRun(bundle)
    for image, outputs in zip(images, run.outputs, strict=True):
        for got, want in zip(outputs, golden.run(bundle.quantize_input(image)), strict=True):
            assert np.array_equal(got, want)
    assert [counters["STEPS"] for counters in run.counters] == [golden.machine.steps] * 2


# Icarus first, where there is one: it builds at once, and runs a hundred cycles a second.
@pytest.mark.parametrize(
    "simulator",
    [
        pytest.param(s, marks=[pytest.mark.slow] * i)
        for i, s in enumerate(available_simulators()[::-1])
    ],
)
def test_a_small_network(
    simulator: str, tmp_path: Path, rng: np.random.Generator, seed: int
) -> None:
    check(small_network(rng), simulator, rng, seed, build_dir=tmp_path)


@pytest.mark.slow
def test_every_operation_and_bus_errors(
    tmp_path: Path, rng: np.random.Generator, seed: int
) -> None:
    graph = every_operation(rng, 3, 6, 5)
    check(graph, "verilator", rng, seed, build_dir=tmp_path, faults=True)
