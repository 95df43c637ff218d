# SPDX-License-Identifier: Apache-2.0
"""The tests room: maps larger than the scratchpad and batches of images, on the RTL."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import host
from hwgen.arch import AcceleratorConfig, Bundle, estimate
from hwgen.backends import program
from hwgen.ir import evaluate_integer
from hwgen.ir.graph import Graph
from hwgen.ir.quantized import QInput
from sim import SimulatedBoard
from tests.support.quantized_graphs import conv, every_operation, tensor_type

CONFIG = AcceleratorConfig(
    tn=8, ti=8, tp=2, scratchpad_bank_words=512, synapse_rows=512, tap_entries=512, queue_depth=8
)


@pytest.fixture(scope="module")
def board() -> Iterator[SimulatedBoard]:
    """Give one small board for the whole module."""
    with SimulatedBoard(CONFIG) as simulated:
        yield simulated


def run(board: SimulatedBoard, graph: Graph, batch: int, rng: np.random.Generator) -> Bundle:
    """Compile a graph, run a batch on the RTL, compare with the quantized graph; return it."""
    bundle = program.emit(graph, CONFIG, batch=batch)
    channels, height, width = bundle.input.shape
    codes = rng.integers(-128, 128, (batch, height, width, channels)).astype(np.int8)
    expected = evaluate_integer(graph, codes)
    with host.Accelerator(bundle, board) as accelerator:
        outputs = accelerator.run_outputs_int8(codes if batch > 1 else codes[0])
        assert accelerator.last_run is not None
        cycles = accelerator.last_run.cycles
    for out, name in zip(outputs, graph.outputs, strict=True):
        assert np.array_equal(out.reshape(batch, -1), expected[name].reshape(batch, -1)), name
    predicted = estimate(bundle).cycles
    print(f"batch {batch}: {cycles} cycles, {predicted} predicted, {bundle.metadata}")
    return bundle


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("side", [9, 40])
def test_every_operation(
    board: SimulatedBoard, rng: np.random.Generator, side: int, batch: int
) -> None:
    """With maps on chip and in strips, one image and three: every code is right."""
    bundle = run(board, every_operation(rng, 3, side, side + 1), batch, rng)
    if batch == 1:
        assert (bundle.scratch_bytes > 0) == (side == 40)


@pytest.mark.parametrize("batch", [1, 4])
def test_streamed_weights(board: SimulatedBoard, rng: np.random.Generator, batch: int) -> None:
    """A batch fetches the weights once: layer by layer, in fewer bytes than image by image."""
    source = QInput(name="x", type=tensor_type((16, 6, 6), 5))
    a = conv(rng, "a", source, 64)
    b = conv(rng, "b", a, 64, residual="a", kernel=5)
    graph = Graph((source, a, b, conv(rng, "c", b, 32, stride=2)), ("x",), ("c",), "quantized")
    bundle = run(board, graph, batch, rng)
    assert not bundle.metadata["resident"]
    assert bundle.metadata["layer_major"] == (batch > 1)
    if batch > 1:
        alone = estimate(program.emit(graph, CONFIG)).bytes_read
        assert estimate(bundle).bytes_read < 0.6 * batch * alone


def test_images_overlap(board: SimulatedBoard, rng: np.random.Generator) -> None:
    """With resident weights the next image is loaded while one computes: a batch saves cycles."""
    source = QInput(name="x", type=tensor_type((3, 16, 16), 5))
    a = conv(rng, "a", source, 16)
    graph = Graph((source, a, conv(rng, "b", a, 16)), ("x",), ("b",), "quantized")
    bundle = run(board, graph, 4, rng)
    assert bundle.metadata["resident"] and not bundle.metadata["layer_major"]
    alone = estimate(program.emit(graph, CONFIG)).cycles
    assert estimate(bundle).cycles < 4 * alone - 3 * 200


def test_a_last_batch_is_filled_up(board: SimulatedBoard, rng: np.random.Generator) -> None:
    """`run_batch` takes any number of images and gives as many rows; `run` names the batch."""
    graph = every_operation(rng, 3, 9, 10)
    graph = Graph(graph.nodes, graph.inputs, graph.outputs[:1], "quantized")
    one, three = (program.emit(graph, CONFIG, batch=batch) for batch in (1, 3))
    images = rng.normal(size=(4, 3, 9, 10)).astype(np.float32)
    with host.Accelerator(one, board) as accelerator:
        expected = accelerator.run_batch(images)
    with host.Accelerator(three, board) as accelerator:
        assert np.array_equal(accelerator.run_batch(images), expected)
        with pytest.raises(ValueError, match="run takes one image, and 'network' runs 3 at once"):
            accelerator.run(images[0])


def test_groups_larger_than_sb(board: SimulatedBoard, rng: np.random.Generator) -> None:
    """A group with more weights than SB has rows is computed in parts, its sums held between."""
    source = QInput(name="x", type=tensor_type((64, 9, 9), 5))
    a = conv(rng, "a", source, 16, kernel=9, stride=4)
    graph = Graph((source, a, conv(rng, "b", a, 8)), ("x",), ("b",), "quantized")
    assert 9 * 9 * 64 // CONFIG.ti > CONFIG.synapse_rows
    run(board, graph, 1, rng)
