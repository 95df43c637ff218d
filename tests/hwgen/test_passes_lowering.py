# SPDX-License-Identifier: Apache-2.0
"""The tests room: order, tile, place, schedule, and the whole of them against the integer graph."""

from __future__ import annotations

import numpy as np
import pytest

from hwgen.arch import AcceleratorConfig, GoldenRun, isa
from hwgen.arch.isa import Opcode
from hwgen.backends import program
from hwgen.ir import evaluate_integer
from hwgen.ir.graph import Graph
from hwgen.ir.quantized import QInput
from hwgen.passes.order_channels import order_channels
from hwgen.passes.place import PlacementError, place
from hwgen.passes.schedule import CapacityError
from hwgen.passes.tile import tile
from tests.support.quantized_graphs import centre_mask, conv, every_operation, tensor_type

SMALL = AcceleratorConfig(tn=8, ti=8, scratchpad_bank_words=1024, synapse_rows=256, tap_entries=256)


def chain(*layers: tuple[int, np.ndarray | None], channels: int = 16) -> Graph:
    """Return a chain of 3x3 convolutions, each (filters, mask or None)."""
    rng = np.random.default_rng(7)
    nodes: list = [QInput(name="x", type=tensor_type((channels, 8, 8)))]
    for index, (out, keep) in enumerate(layers):
        nodes.append(conv(rng, f"c{index}", nodes[-1], out, keep=keep))
    return Graph(tuple(nodes), ("x",), (nodes[-1].name,), "quantized")


def test_order_puts_equal_kernels_together() -> None:
    """Every second filter reduced: the 3x3 ones come first, each kind in its old order."""
    reduced = np.arange(32) % 2 == 1
    graph = chain((32, centre_mask(32, 3, reduced)))
    assert order_channels(graph, 16)["c0"] == (*range(0, 32, 2), *range(1, 32, 2))
    assert order_channels(graph, 16)["x"] == tuple(range(16))


def test_order_ties_residuals() -> None:
    """A residual and the layer that adds it share one order."""
    rng = np.random.default_rng(0)
    source = QInput(name="x", type=tensor_type((16, 8, 8)))
    a = conv(rng, "a", source, 32, keep=centre_mask(32, 3, np.arange(32) % 2 == 0))
    b = conv(rng, "b", a, 16)
    c = conv(rng, "c", b, 32, residual="a")
    orders = order_channels(Graph((source, a, b, c), ("x",), ("c",), "quantized"), 16)
    assert orders["a"] == orders["c"] != tuple(range(32))


def test_tile_walks_only_used_taps() -> None:
    """Half of the groups reduced from 3x3 to 1x1: 9 steps and 1 step a pixel, MACs alike."""
    graph = chain((32, centre_mask(32, 3, np.arange(32) % 2 == 1)))
    config = AcceleratorConfig()
    layer = tile(graph, order_channels(graph, 16), config).layers[0]
    assert [len(group.taps) for group in layer.groups] == [9, 1]
    assert layer.macs == 64 * (16 * 9 * 16 + 16 * 1 * 16)
    only = layer.groups[1].taps[0]
    assert (only.dy, only.dx) == (1, 1)


def test_tile_drops_unused_input_slices() -> None:
    """A slice of 16 input channels that a group does not use costs it no step."""
    rng = np.random.default_rng(0)
    source = QInput(name="x", type=tensor_type((32, 8, 8)))
    node = conv(rng, "c", source, 16)
    weight = node.weight.copy()
    weight[..., 16:] = 0
    graph = Graph((source, node.updated(weight=weight)), ("x",), ("c",), "quantized")
    layer = tile(graph, order_channels(graph, 16), AcceleratorConfig()).layers[0]
    assert len(layer.groups[0].taps) == 9


def test_input_folds_neighbours() -> None:
    """A 3-channel picture takes 3 steps for a 3x3 kernel, its padding inside the words."""
    graph = chain((16, None), channels=3)
    machine = tile(graph, order_channels(graph, 16), AcceleratorConfig())
    assert machine.input_load.fold == 3
    assert len(machine.layers[0].groups[0].taps) == 3
    assert machine.input_load.lead_bytes == 3
    assert machine.layouts["x"].row_words == 8


def test_place_separates_what_lives_together() -> None:
    """Maps alive at once never overlap; input and residual never share a bank."""
    config = AcceleratorConfig(scratchpad_bank_words=1024)
    graph = every_operation(np.random.default_rng(0), 3, 13, 11)
    machine = tile(graph, order_channels(graph, 16), config)
    placed = place(machine, config)
    alive: dict[str, tuple[int, int]] = {machine.input: (-1, -1)}
    for index, layer in enumerate(machine.layers):
        alive[layer.output] = (index, index)
        for name in (layer.input, layer.residual):
            if name:
                alive[name] = (alive[name][0], index)
    for name in machine.outputs:
        alive[name] = (alive[name][0], len(machine.layers))
    words = {
        name: set(range(placed.regions[name].address, placed.regions[name].address + layout.words))
        for name, layout in machine.layouts.items()
    }
    assert not placed.scratch_bytes
    for a, (a0, a1) in alive.items():
        for b, (b0, b1) in alive.items():
            if a < b and a0 <= b1 and b0 <= a1:
                assert not words[a] & words[b], (a, b)
    for layer in machine.layers:
        if layer.residual:
            banks = [{config.bank_of(w) for w in words[n]} for n in (layer.input, layer.residual)]
            assert not banks[0] & banks[1]


def test_place_names_the_layer_that_does_not_fit() -> None:
    """Too large a map is refused with the numbers."""
    config = AcceleratorConfig(scratchpad_banks=2, scratchpad_bank_words=8)
    with pytest.raises(PlacementError, match=r"layer 'c0' needs 32 scratchpad words.*has 16"):
        program.emit(chain((16, None)), config)


def test_capacity_names_the_layer() -> None:
    """An SB too small for two parts of a group is refused with the numbers."""
    with pytest.raises(CapacityError, match=r"layer 'c0' needs 4 of synapse_rows.*2 free of 2"):
        program.emit(chain((16, None)), AcceleratorConfig(synapse_rows=2))


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("kernel", [3, 7])
def test_groups_larger_than_sb_go_in_parts(kernel: int, tp: int) -> None:
    """The sums of a group whose weights do not fit SB are held from part to part."""
    rng = np.random.default_rng(kernel)
    source = QInput(name="x", type=tensor_type((40, 7, 7), 9))
    a = conv(rng, "a", source, 40)
    b = conv(rng, "b", a, 40, kernel=kernel, residual="a")
    graph = Graph((source, a, b), ("x",), ("b",), "quantized")
    config = AcceleratorConfig(tp=tp, scratchpad_bank_words=256, synapse_rows=16, tap_entries=64)
    bundle = program.emit(graph, config)
    computes = [
        isa.decode(bundle.program[i : i + isa.INSTRUCTION_BYTES])
        for i in range(0, len(bundle.program), isa.INSTRUCTION_BYTES)
    ]
    assert any(f["hold"] and f["resume"] for opcode, f in computes if opcode == Opcode.COMPUTE)
    codes = rng.integers(-128, 128, (7, 7, 40)).astype(np.int8)
    expected = evaluate_integer(graph, codes[None])["b"][0]
    assert np.array_equal(GoldenRun(bundle).run(codes)[0], expected)


@pytest.mark.parametrize("channels", [1, 3, 5, 8, 17])
@pytest.mark.parametrize(
    "config",
    [
        AcceleratorConfig(scratchpad_bank_words=1024),
        SMALL,
        AcceleratorConfig(tn=8, ti=16, scratchpad_bank_words=512, synapse_rows=64, tap_entries=32),
        AcceleratorConfig(tn=8, ti=8, tp=4, scratchpad_bank_words=1024, synapse_rows=64),
    ],
    ids=["resident-16x16", "8x8", "streamed-8x16", "streamed-tp4"],
)
def test_program_equals_integer_graph(channels: int, config: AcceleratorConfig) -> None:
    """The interpreter's bits are the integer graph's, resident or streamed."""
    rng = np.random.default_rng(channels)
    graph = every_operation(rng, channels, 13, 11)
    bundle = program.emit(graph, config)
    golden = GoldenRun(bundle)
    for _ in range(2):
        codes = rng.integers(-128, 128, (13, 11, channels)).astype(np.int8)
        expected = evaluate_integer(graph, codes[None])
        for got, name in zip(golden.run(codes), graph.outputs, strict=True):
            assert np.array_equal(got.reshape(-1), expected[name].reshape(-1))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("channels", [3, 17])
@pytest.mark.parametrize(
    "config",
    [
        AcceleratorConfig(tp=2, scratchpad_banks=4, scratchpad_bank_words=128),
        AcceleratorConfig(tn=8, ti=16, scratchpad_banks=3, scratchpad_bank_words=128),
        AcceleratorConfig(
            tn=8, ti=8, tp=2, scratchpad_bank_words=512, synapse_rows=64, tap_entries=256
        ),
    ],
    ids=["resident-tp2", "resident-8x16", "streamed-tp2"],
)
def test_strips_and_batches_equal_the_integer_graph(
    channels: int, config: AcceleratorConfig, batch: int
) -> None:
    """Maps larger than the scratchpad go through in strips, images in batches: same bits."""
    rng = np.random.default_rng(channels)
    graph = every_operation(rng, channels, 23, 14)
    bundle = program.emit(graph, config, batch=batch)
    assert bundle.scratch_bytes > 0 and bundle.batch == batch
    codes = rng.integers(-128, 128, (batch, 23, 14, channels)).astype(np.int8)
    expected = evaluate_integer(graph, codes)
    got = GoldenRun(bundle).run(codes if batch > 1 else codes[0])
    for out, name in zip(got, graph.outputs, strict=True):
        assert np.array_equal(out.reshape(batch, -1), expected[name].reshape(batch, -1))


def test_edge_rows_leave_out_the_taps_of_padding() -> None:
    """The first and last rows of a 3x3 layer walk 6 of 9 taps, and the padding's sum is a bias."""
    rng = np.random.default_rng(5)
    source = QInput(name="x", type=tensor_type((16, 8, 32), -31))
    graph = Graph((source, conv(rng, "c", source, 16)), ("x",), ("c",), "quantized")
    bundle = program.emit(graph, AcceleratorConfig())
    taps = {}
    for start in range(0, len(bundle.program), isa.INSTRUCTION_BYTES):
        opcode, f = isa.decode(bundle.program[start : start + isa.INSTRUCTION_BYTES])
        if opcode == Opcode.COMPUTE:
            taps[f["tap_count"]] = taps.get(f["tap_count"], 0) + f["output_height"]
    assert taps == {6: 2, 9: 6}
    codes = rng.integers(-128, 128, (8, 32, 16)).astype(np.int8)
    assert np.array_equal(
        GoldenRun(bundle).run(codes)[0], evaluate_integer(graph, codes[None])["c"][0]
    )


@pytest.mark.parametrize("stride", [4, 8])
def test_strides_that_share_a_slice_go_column_by_column(stride: int) -> None:
    """With two pixels a step, a stride of 4 puts both into one slice: one column at a time."""
    rng = np.random.default_rng(stride)
    source = QInput(name="x", type=tensor_type((16, 17, 33), 3))
    node = conv(rng, "c", source, 20, kernel=5, stride=stride)
    graph = Graph((source, node), ("x",), ("c",), "quantized")
    bundle = program.emit(graph, AcceleratorConfig(tp=2))
    codes = rng.integers(-128, 128, (17, 33, 16)).astype(np.int8)
    assert np.array_equal(
        GoldenRun(bundle).run(codes)[0], evaluate_integer(graph, codes[None])["c"][0]
    )


def test_two_networks_stay_resident() -> None:
    """A second network placed behind the first leaves it intact."""
    rng = np.random.default_rng(3)
    graphs = [every_operation(rng, 3, 9, 9), every_operation(rng, 5, 9, 9)]
    config = AcceleratorConfig(scratchpad_bank_words=1024)
    first = program.emit(graphs[0], config)
    second = program.emit(
        graphs[1],
        config,
        synapse_row=first.placement.synapse_rows,
        tap_entry=first.placement.tap_entries,
    )
    assert not first.placement.overlaps(second.placement)
    golden = GoldenRun(first)
    other = GoldenRun(second, golden.machine)
    for graph, run, channels in ((graphs[0], golden, 3), (graphs[1], other, 5)) * 2:
        codes = rng.integers(-128, 128, (9, 9, channels)).astype(np.int8)
        want = evaluate_integer(graph, codes[None])["f"]
        assert np.array_equal(run.run(codes)[0], want.reshape(-1))


def test_streamed_tokens_balance() -> None:
    """Every token given is taken, so the next image starts from zero."""
    graph = every_operation(np.random.default_rng(0), 5, 13, 11)
    config = AcceleratorConfig(tn=8, ti=16, scratchpad_bank_words=512, synapse_rows=64)
    bundle = program.emit(graph, config)
    assert bundle.metadata["resident"] is False
    balance = {"load": 0, "compute": 0, "store": 0}
    for start in range(0, len(bundle.program), isa.INSTRUCTION_BYTES):
        opcode, f = isa.decode(bundle.program[start : start + isa.INSTRUCTION_BYTES])
        if opcode != Opcode.END:
            for queue in balance:
                balance[queue] += f[f"signal_{queue}"]
            own = opcode.name.lower()
            balance[own] -= f["wait_load"] + f["wait_compute"] + f["wait_store"]
    assert balance == {"load": 0, "compute": 0, "store": 0}
