# SPDX-License-Identifier: Apache-2.0
"""The tests room: what the machine promises, in the RTL's own counters, through the real driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

import host
from hwgen import models
from hwgen.arch import Bundle, GoldenRun, estimate
from hwgen.backends import program
from hwgen.boards import load_board
from hwgen.ir import evaluate_integer
from hwgen.ir.graph import Graph
from hwgen.ir.quantized import QInput
from hwgen.quantize import quantize_model
from sim import SimulatedBoard
from tests.support.quantized_graphs import centre_mask, conv, tensor_type

CONFIG = load_board("pynq-z2").config


@pytest.fixture(scope="module")
def board() -> Iterator[SimulatedBoard]:
    """Give one board of the PYNQ-Z2's configuration for the whole module."""
    with SimulatedBoard(CONFIG) as simulated:
        yield simulated


def run(board: SimulatedBoard, bundle: Bundle, rng: np.random.Generator) -> dict[str, int]:
    """Run one random image, check its bits and its predicted cycles, return the counters."""
    channels, height, width = bundle.input.shape
    codes = rng.integers(-128, 128, (height, width, channels)).astype(np.int8)
    with host.Accelerator(bundle, board) as accelerator:
        assert np.array_equal(accelerator.run_int8(codes), GoldenRun(bundle).run(codes)[0])
        assert accelerator.last_run is not None
        counters = accelerator.last_run.counters
    expected = estimate(bundle)
    assert expected.steps == counters["STEPS"]
    assert abs(expected.cycles - counters["CYCLES_TOTAL"]) <= 0.01 * counters["CYCLES_TOTAL"]
    return counters


def chain(rng: np.random.Generator, *layers: dict, channels: int = 16, side: int = 16) -> Bundle:
    """Compile a chain of convolutions on `side` x `side` maps."""
    nodes: list = [QInput(name="x", type=tensor_type((channels, side, side)))]
    for index, layer in enumerate(layers):
        nodes.append(conv(rng, f"c{index}", nodes[-1], **layer))
    graph = Graph(tuple(nodes), ("x",), (nodes[-1].name,), "quantized")
    return program.emit(graph, CONFIG)


@pytest.mark.parametrize(
    ("channels", "out", "kernel", "side"),
    [(16, 16, 3, 32), (16, 16, 3, 16), (32, 64, 3, 16), (64, 64, 3, 8), (64, 128, 1, 16)],
)
def test_multipliers_are_busy(
    board: SimulatedBoard,
    rng: np.random.Generator,
    channels: int,
    out: int,
    kernel: int,
    side: int,
) -> None:
    """Multiples of 16 channels keep 97 % of the MACs busy, the pipeline's filling included."""
    bundle = chain(rng, {"out": out, "kernel": kernel}, channels=channels, side=side)
    counters = run(board, bundle, rng)
    busy = bundle.macs / (CONFIG.macs_per_cycle * counters["CYCLES_COMPUTING"])
    print(f"{channels}->{out} {kernel}x{kernel} on {side}x{side}: {100 * busy:.2f} % busy")
    assert busy >= 0.97


def test_layers_follow_without_a_gap(board: SimulatedBoard, rng: np.random.Generator) -> None:
    """Six layers in a row: the array waits less than 1 % of the time between them."""
    bundle = chain(rng, *({"out": 32} for _ in range(6)), channels=32)
    counters = run(board, bundle, rng)
    assert counters["STEPS"] >= 0.99 * counters["CYCLES_COMPUTING"]


def test_reduced_kernels_cost_their_taps(board: SimulatedBoard, rng: np.random.Generator) -> None:
    """Half of the groups reduced from 3x3 to 1x1 take 5/9 of the cycles, within 2 %."""
    reduced = np.zeros(64, dtype=bool)
    reduced[rng.permutation(64)[:32]] = True
    # Two tiles of input channels: a group of one tap would take a cycle for each of tp pixels.
    full = run(board, chain(rng, {"out": 64}, channels=32), rng)
    keep = centre_mask(64, 3, reduced)
    half = run(board, chain(rng, {"out": 64, "keep": keep}, channels=32), rng)
    ratio = half["CYCLES_COMPUTING"] / full["CYCLES_COMPUTING"]
    print(f"cycles: {ratio:.4f} of the full layer, {5 / 9:.4f} wanted")
    assert abs(ratio / (5 / 9) - 1) <= 0.02


@pytest.mark.parametrize(
    ("name", "make", "most_cycles"),
    [
        ("ResNet-8", models.resnet8, 27_000),
        ("ResNet-20", lambda: models.resnet_cifar(20), 88_000),
    ],
)
def test_published_networks(
    board: SimulatedBoard,
    rng: np.random.Generator,
    name: str,
    make: Callable[[], nn.Module],
    most_cycles: int,
) -> None:
    """A frame within its bar of cycles, 90 % of the MACs busy, bits of the integer graph.

    The same frame takes the integer graph 0.1 s at most.
    """
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    graph = quantize_model(make().eval(), images[:1], images, observer="minmax")
    bundle = program.emit(graph, CONFIG, name=name)
    counters = run(board, bundle, rng)
    cycles = counters["CYCLES_TOTAL"]
    busy = (bundle.macs - bundle.padding_macs) / (CONFIG.macs_per_cycle * cycles)
    codes = rng.integers(-128, 128, (1, 32, 32, 3)).astype(np.int8)
    taken = []
    for _ in range(3):
        start = time.process_time()
        integers = evaluate_integer(graph, codes)[graph.outputs[0]]
        taken.append(time.process_time() - start)
    seconds = min(taken)
    assert np.array_equal(GoldenRun(bundle).run(codes[0])[0].reshape(-1), integers.reshape(-1))
    print(f"{name}: {cycles} cycles, {100 * busy:.1f} % busy, integer graph {seconds:.4f} s")
    assert cycles <= most_cycles and busy >= 0.9
    assert seconds <= 0.1
