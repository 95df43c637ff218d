# SPDX-License-Identifier: Apache-2.0
"""The tests room: hls4ml models give the bits of the quantized graph, or are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import host
import sim
from hwgen import models
from hwgen.arch import GoldenRun
from hwgen.arch.hls_bundle import HlsBundle
from hwgen.backends import hls4ml, program
from hwgen.backends.hls4ml import project as project_module
from hwgen.backends.hls4ml.lower import kernel_groups, lower
from hwgen.backends.hls4ml.refusal import refusals
from hwgen.backends.hls4ml.reuse import COPIED_DEPTH, fifo_depths
from hwgen.backends.hls4ml.types import IoType
from hwgen.boards import load_board
from hwgen.cli import main
from hwgen.compress import ApproximationConfig, approximate_maps
from hwgen.ir import (
    Graph,
    QAdd,
    QAvgPool,
    QConv,
    QDepthwise,
    QInput,
    QMaxPool,
    QuantParams,
    Requantization,
    TensorType,
    evaluate_integer,
    verify,
)
from hwgen.models import ForegroundPredictor
from hwgen.quantize import Calibration, quantize_model
from tests.support.hls_streams import run_streams
from tests.support.random_networks import random_network, reduce_kernels

BOARD = load_board("pynq-z2")
NO_LIMIT = 1e9


def images_for(graph: Graph, rng: np.random.Generator, count: int = 32) -> np.ndarray:
    """Random codes, the extremes among them, int8 (N, H, W, C)."""
    channels, height, width = graph[graph.inputs[0]].type.shape
    codes = rng.integers(-128, 128, (count, height, width, channels)).astype(np.int8)
    codes[0], codes[1] = -128, 127
    return codes


def check(
    graph: Graph,
    folder: Path,
    rng: np.random.Generator,
    io_type: IoType = "io_stream",
    backend: str = "Vitis",
    target: str | int = "latency",
    limit: float = NO_LIMIT,
    rtl: bool = False,
) -> hls4ml.HlsProject:
    """Quantized graph, hls4ml's C++ model, golden model (and RTL) give the same codes."""
    project = hls4ml.emit(
        graph, folder / "hls", io_type=io_type, backend=backend, target=target, limit=limit
    )
    assert not folder.joinpath("hls").exists(), "nothing is written before"
    codes = images_for(graph, rng)
    expected = evaluate_integer(graph, codes)[graph.outputs[0]]
    assert len(np.unique(expected)) > 1
    project.compile()
    np.testing.assert_array_equal(project.predict(codes), expected)
    assert project.verify(codes[:1]) == expected[0].size
    bundle = program.emit(graph, BOARD.config)
    golden = GoldenRun(bundle)
    ours = np.stack([golden.run(one)[0] for one in codes])
    np.testing.assert_array_equal(ours.reshape(expected.shape), expected)
    if rtl:
        with sim.SimulatedBoard(bundle) as board:
            with host.Accelerator(bundle, device=board) as accelerator:
                run = np.stack([accelerator.run_int8(one) for one in codes])
        np.testing.assert_array_equal(run.reshape(expected.shape), expected)
    return project


def power_of_two(model: nn.Module, shape: tuple[int, int, int], seed: int = 0) -> Graph:
    """Quantize with normally distributed images."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(16, *shape, generator=generator)
    return quantize_model(model.eval(), images[:1], images, scheme="power_of_two")


def with_statistics(model: nn.Module, rng: np.random.Generator) -> nn.Module:
    """Give batch norms the statistics of a network that was trained."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            n = layer.num_features
            layer.running_mean = torch.from_numpy(rng.normal(0, 0.3, n).astype(np.float32))
            layer.running_var = torch.from_numpy(rng.uniform(0.3, 2, n).astype(np.float32))
            layer.bias.data = torch.from_numpy(rng.normal(0, 0.3, n).astype(np.float32))
    return model


class _Builder:
    """Quantized graphs of the power-of-two scheme, node by node."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
        self.rng = rng
        self.nodes: list = []
        self._keep(QInput(name="x", inputs=(), type=self._type(shape, -5)))

    @staticmethod
    def _type(shape: tuple[int, int, int], log2: int) -> TensorType:
        return TensorType(shape, "int8", QuantParams(2.0**log2))

    def _keep(self, node):
        self.nodes.append(node)
        return node

    def shape(self, node) -> tuple[int, int, int]:
        return node.infer_shape(*(self[name].type.shape for name in node.inputs))

    def __getitem__(self, name: str):
        return next(node for node in self.nodes if node.name == name)

    def add(self, kind, name, inputs, *, lo=-128, hi=127, log2=-5, shift=7, extra=None, **fields):
        """Add a node; `shift` is the requantization's, one more for every third channel."""
        placeholder = self._type((1, 1, 1), log2)
        channels = fields["weight"].shape[0] if "weight" in fields else None
        channels = channels or self[inputs[0]].type.shape[0]
        residual = None
        shifts = np.full(channels, shift)
        if kind in (QConv, QDepthwise):
            shifts += np.arange(channels) % 3
            fields["bias"] = self.rng.integers(-3000, 3000, channels)
            fields["weight_scale"] = np.ones(channels)
        if kind is QMaxPool:
            shifts[:] = 0
            placeholder = self._type((1, 1, 1), self[inputs[0]].type.quant.scale_log2)
        if len(inputs) > 1:
            r = self[inputs[1]].type.quant.scale_log2
            residual = 2 ** (shifts + r - log2)
        if kind is QAdd:
            fields["bias"] = 0
        multiplier = np.ones(channels, np.int64)
        if kind is QAdd:
            multiplier = 2 ** (shifts + self[inputs[0]].type.quant.scale_log2 - log2)
        node = kind(
            name=name,
            inputs=tuple(inputs),
            type=placeholder,
            requantization=Requantization(
                multiplier=multiplier, shift=shifts, lo=lo, hi=hi, residual_multiplier=residual
            ),
            **fields,
        )
        return self._keep(node.updated(type=TensorType(self.shape(node), "int8", node.type.quant)))

    def weight(self, *shape: int) -> np.ndarray:
        return self.rng.integers(-127, 128, shape).astype(np.int8)

    def graph(self, output: str) -> Graph:
        return verify(Graph(tuple(self.nodes), ("x",), (output,), "quantized"))


def every_operation(rng: np.random.Generator) -> Graph:
    """Every kind of node that both io types take, with clamps that are no type's range."""
    b = _Builder(rng, (3, 9, 11))
    pad = ((1, 1), (1, 1))
    weight = b.weight(12, 3, 3, 3)
    weight[1::2, [0, 0, 0, 2, 2, 2], [0, 1, 2] * 2] = 0  # one row
    b.add(QConv, "a", ["x"], weight=weight, padding=pad, lo=0, hi=96, shift=8)
    b.add(
        QDepthwise, "b", ["a"], weight=b.weight(12, 1, 3), padding=((0, 0), (1, 1)), lo=-77, hi=50
    )
    b.add(QConv, "c", ["b", "a"], weight=b.weight(12, 3, 3, 12), padding=pad, lo=0, hi=77, shift=10)
    b.add(QMaxPool, "m", ["c"], kernel=(2, 2), stride=(2, 2), padding=((1, 0), (1, 0)), lo=3, hi=60)
    b.add(QConv, "d", ["m"], weight=b.weight(8, 1, 3, 12), stride=(2, 2), shift=9, lo=-127)
    b.add(QConv, "e", ["m"], weight=b.weight(8, 1, 3, 12), stride=(2, 2), shift=9, log2=-4)
    b.add(QAdd, "f", ["d", "e"], hi=63, lo=-64, log2=-4, shift=1)
    b.add(QAdd, "g", ["f", "f"], hi=100, log2=-4, shift=0)
    b.add(QConv, "h", ["g"], weight=b.weight(9, 3, 2, 8), dilation=(1, 1), padding=pad, shift=9)
    shape = b["h"].type.shape[1:]
    b.add(QAvgPool, "p", ["h"], kernel=(2, 2), stride=(1, 2), padding=((1, 0), (0, 0)), bias=0,
          shift=2, hi=90)  # fmt: skip
    b.add(QAvgPool, "q", ["p"], kernel=b["p"].type.shape[1:], stride=(1, 1), bias=0, shift=4)
    b.add(QConv, "y", ["q"], weight=b.weight(5, 1, 1, 9), shift=8)
    assert min(shape) > 1
    return b.graph("y")


# Bits.


def test_every_operation_streamed(tmp_path, rng):
    """Clamps, kernels of one row, dilation, x + x, padded pools: one network has them all."""
    project = check(every_operation(rng), tmp_path, rng)
    kinds = {op.kind for op in project.ops}
    assert kinds >= {"Conv2D", "DepthwiseConv2D", "Dense", "Merge", "BatchNormalization"}


@pytest.mark.slow
@pytest.mark.parametrize("backend", hls4ml.BACKENDS)
def test_every_operation_at_once(tmp_path, rng, backend):
    """The same with io_parallel, for each of hls4ml's back ends."""
    check(every_operation(rng), tmp_path, rng, io_type="io_parallel", backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["Vivado", "VivadoAccelerator"])
@pytest.mark.parametrize("target", ["latency", "resource"])
def test_every_operation_by_other_tools(tmp_path, rng, backend, target):
    """The same streamed, with reuse factors from one end to the other."""
    check(every_operation(rng), tmp_path, rng, backend=backend, target=target)


QUICK_SEEDS = (4, 6, 19)


@pytest.mark.parametrize(
    "number",
    [n if n in QUICK_SEEDS else pytest.param(n, marks=pytest.mark.slow) for n in range(24)],
)
def test_random_networks(number, tmp_path, rng):
    """Random networks, streamed where hls4ml can, else at once; 20 of them at least."""
    net = random_network(number)
    graph = quantize_model(net.module, net.example, net.calibration, scheme="power_of_two")
    io_type: IoType = "io_parallel" if refusals(graph, "io_stream") else "io_stream"
    assert not refusals(graph, io_type)
    check(graph, tmp_path, rng, io_type=io_type)


def test_small_lenet(tmp_path, rng):
    """5x5 kernels, pools, linear layers."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10),
    )  # fmt: skip
    torch.manual_seed(0)
    project = check(power_of_two(model, (1, 16, 16)), tmp_path, rng, limit=0.85)
    assert project.estimate.dsp <= 0.85 * BOARD.budget.dsp


def _reduced_network(rng: np.random.Generator) -> nn.Module:
    model = with_statistics(models.resnet8(width=16), rng)
    for conv in (
        m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ):
        reduce_kernels(conv, rng)
    return model


def _approximated_network(rng: np.random.Generator) -> nn.Module:
    model = with_statistics(models.demo_classifier(), rng)
    images = rng.integers(0, 256, (16, 32, 32, 3)).astype(np.uint8)
    config = ApproximationConfig(fraction=0.3, form="explicit", retrain="none", align=1)
    found, report = approximate_maps(model, images, config)
    assert report.spaces
    return found


NETWORKS = {
    "demo classifier": (lambda rng: with_statistics(models.demo_classifier(), rng), 32, True),
    "demo predictor": (lambda rng: with_statistics(ForegroundPredictor(), rng), 32, True),
    "resnet8": (lambda rng: with_statistics(models.resnet8(), rng), 32, True),
    "lenet": (lambda rng: models.lenet(), 32, True),
    "reduced kernels": (_reduced_network, 32, True),
    "explicit approximation": (_approximated_network, 32, True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, tmp_path, rng):
    """Quantized graph, hls4ml's model, golden model and RTL agree, within the board's budget."""
    torch.manual_seed(0)
    build, side, fits = NETWORKS[name]
    graph = power_of_two(build(rng), (3, side, side))
    project = check(graph, tmp_path, rng, limit=0.85 if fits else NO_LIMIT, rtl=True)
    if name == "reduced kernels":
        assert any(op.kind == "Concatenate" for op in project.ops)


# Groups and streams.


def test_groups_are_runs_of_equal_kernels():
    """Neighbours of one kernel share a convolution; a box goes no further than the padding."""
    kernel = np.ones((10, 3, 3, 4), np.int64)
    kernel[4:, [0, 2]] = 0
    kernel[4:, :, [0, 2]] = 0
    padding = ((1, 1), (1, 1))
    whole, centre = ((0, 2), (0, 2)), ((1, 1), (1, 1))
    assert kernel_groups(kernel, padding) == [(slice(0, 4), whole), (slice(4, 10), centre)]
    assert kernel_groups(kernel, ((0, 0), (0, 0))) == [(slice(0, 10), whole)]
    kernel[7] = 0  # a filter without weights fits any
    assert kernel_groups(kernel, padding) == [(slice(0, 4), whole), (slice(4, 10), centre)]
    kernel[:] = 1
    kernel[9, 0] = 0  # too little to pay for a convolution of its own
    assert kernel_groups(kernel, padding) == [(slice(0, 10), whole)]


@pytest.mark.parametrize("number", range(24))
def test_streams_never_wait_for_ever(number):
    """With the chosen FIFO depths two images come through; a residual without room stands still."""
    net = random_network(number)
    graph = quantize_model(net.module, net.example, net.calibration, scheme="power_of_two")
    if refusals(graph, "io_stream"):
        return
    ops = lower(graph, "io_stream")
    assert run_streams(ops, fifo_depths(ops), COPIED_DEPTH) == ""


def test_streams_of_a_residual_network(rng):
    """Shortcuts hold whole maps, everything else a row; less than that stands still."""
    graph = power_of_two(_reduced_network(rng), (3, 32, 32))
    ops = lower(graph, "io_stream")
    depths = fifo_depths(ops)
    assert run_streams(ops, depths, COPIED_DEPTH) == ""
    assert run_streams(ops, {k: (2,) * len(v) for k, v in depths.items()}, COPIED_DEPTH)
    by_name = {op.name: op for op in ops}
    read = [
        (by_name[n], d) for op in ops[1:] for n, d in zip(op.inputs, depths[op.name], strict=True)
    ]
    rows = sum(len(op.shape) == 3 and op.shape[1] == depth for op, depth in read)
    assert rows > len(ops) / 2


# Reuse.


@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (27, 16), (144, 16), (72, 10), (7, 13)])
def test_reuse_factors_are_those_of_hls4ml(n_in, n_out):
    """Our rule and hls4ml's own agree on every factor."""
    with project_module._quiet():
        from hls4ml.backends import get_backend

        theirs = get_backend("Vitis").get_valid_reuse_factors(n_in, n_out)
    assert list(hls4ml.legal_reuse_factors(n_in, n_out)) == theirs


def _resnet(rng: np.random.Generator) -> Graph:
    return power_of_two(with_statistics(models.resnet8(), rng), (3, 32, 32))


def test_targets(tmp_path, rng):
    """Fewer cycles cost more multipliers, and a target in cycles is kept."""
    graph = _resnet(rng)
    found = {
        target: hls4ml.emit(graph, tmp_path, target=target).estimate
        for target in ("latency", 300_000, "resource")
    }
    cycles = [e.cycles for e in found.values()]
    dsp = [e.dsp for e in found.values()]
    assert cycles == sorted(cycles) and dsp == sorted(dsp, reverse=True)
    assert found[300_000].cycles <= 300_000
    assert all(e.dsp <= 0.85 * BOARD.budget.dsp for e in found.values())
    assert json.loads(json.dumps(found["latency"].to_dict()))["what"].startswith("estimates")
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_says_why(tmp_path, rng):
    """The layer, what it needs, of how much, and what to try."""
    graph = _resnet(rng)
    with pytest.raises(hls4ml.DoesNotFit, match="does not fit: .* 1,000, because layer 'conv2d"):
        hls4ml.emit(graph, tmp_path, target=1000)
    with pytest.raises(hls4ml.DoesNotFit) as error:
        hls4ml.emit(graph, tmp_path, limit=0.01)
    text = str(error.value)
    assert "does not fit pynq-z2" in text and "because layer '" in text and "; try " in text
    with pytest.raises(hls4ml.DoesNotFit, match="try io_stream"):
        hls4ml.emit(graph, tmp_path, io_type="io_parallel")


# Refusals.


def test_refusals_name_every_node(tmp_path, rng):
    """All of them at once, each with its reason and what to do."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.MaxPool2d(3, 2), nn.Conv2d(8, 8, 3), nn.MaxPool2d(2, 2, 1)
    )
    graph = power_of_two(model, (3, 16, 16))
    with pytest.raises(hls4ml.HlsRefusal) as error:
        hls4ml.emit(graph, tmp_path / "hls")
    assert len(error.value.refused) == 2
    text = str(error.value)
    assert "kernel (3, 3) and stride (2, 2)" in text and "its input can be negative" in text
    assert "try io_parallel, or --backend amaranth" in text and not list(tmp_path.iterdir())
    assert not refusals(graph, "io_parallel")


def test_affine_graphs_are_refused(tmp_path, rng):
    """Scales and zero points have no ap_fixed."""
    images = torch.rand(8, 3, 8, 8)
    graph = quantize_model(nn.Conv2d(3, 4, 3).eval(), images[:1], images, scheme="affine")
    with pytest.raises(hls4ml.HlsRefusal, match="no power of two.*try --scheme power_of_two"):
        hls4ml.emit(graph, tmp_path)


def test_lost_bits_and_outputs_are_refused(rng):
    """A residual that is scaled down before the sum; an output that others read."""
    b = _Builder(rng, (3, 6, 6))
    b.add(QConv, "a", ["x"], weight=b.weight(3, 1, 1, 3))
    b.add(QConv, "y", ["a", "x"], weight=b.weight(3, 1, 1, 3))
    graph = b.graph("y")
    assert not refusals(graph, "io_stream")
    wrong = graph["y"].requantization.residual_multiplier * 2
    requantization = Requantization(
        multiplier=graph["y"].requantization.multiplier,
        shift=graph["y"].requantization.shift,
        residual_multiplier=wrong,
    )
    bad = graph.rewrite({"y": graph["y"].updated(requantization=requantization)})
    assert "loses bits" in refusals(bad, "io_stream")[0][1]
    read = Graph(graph.nodes, graph.inputs, ("a",), "quantized")
    assert "read by other nodes" in refusals(read, "io_stream")[0][1]
    two = Graph(graph.nodes, graph.inputs, ("a", "y"), "quantized")
    assert any(
        "must have one of its outputs" in reason for _, reason, _ in refusals(two, "io_stream")
    )


def test_wrong_options(tmp_path, rng, monkeypatch):
    """Each says what is accepted."""
    graph = power_of_two(nn.Conv2d(3, 4, 3), (3, 8, 8))
    for option, text in (
        ({"io_type": "stream"}, "io_type must be 'io_stream' or 'io_parallel'"),
        ({"backend": "Quartus"}, "backend must be one of Vitis"),
        ({"name": "my net"}, "name must be a C identifier"),
        ({"target": "speed"}, "target must be 'latency', 'resource' or a number"),
        ({"backend": "VivadoAccelerator", "board": "ulx3s-85f"}, "knows pynq-z2"),
    ):
        with pytest.raises(hls4ml.HlsError, match=text):
            hls4ml.emit(graph, tmp_path, **option)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.0.0")
    with pytest.raises(hls4ml.HlsError, match=r"hls4ml 2.0.0 was never tested.*hls4ml>=1.2,<1.4"):
        hls4ml.emit(graph, tmp_path)


def test_a_pass_that_rewrites_is_noticed(tmp_path, rng, monkeypatch):
    """Types that hls4ml does not have as they were asked for are an error, not other bits."""
    graph = power_of_two(nn.Conv2d(3, 4, 3), (3, 8, 8))
    real = project_module._layer_config

    def narrower(op, estimate):
        config = real(op, estimate)
        if op.kind == "Conv2D":
            config["Precision"]["accum"] = "fixed<16,6>"
        return config

    monkeypatch.setattr(project_module, "_layer_config", narrower)
    with pytest.raises(hls4ml.HlsError, match="changed the accum type of layer n1_conv2d"):
        hls4ml.emit(graph, tmp_path)


def test_a_differing_bit_is_named(tmp_path, rng, monkeypatch):
    """`verify` says where and which codes."""
    graph = power_of_two(nn.Conv2d(3, 4, 3), (3, 8, 8))
    project = hls4ml.emit(graph, tmp_path)
    codes = images_for(graph, rng)
    wrong = evaluate_integer(graph, codes)[graph.outputs[0]].copy()
    wrong[3, 1, 2, 0] ^= 1
    monkeypatch.setattr(hls4ml.HlsProject, "predict", lambda self, images: wrong)
    with pytest.raises(hls4ml.HlsMismatch, match=r"1 of .* codes, first at .* = \(3, 1, 2, 0\)"):
        project.verify(codes)


# Command.

NET = """
from torch import nn

model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
"""


def test_commands(tmp_path, rng, monkeypatch, capsys):
    """`shears emit --backend hls4ml` compiles and compares; `shears compare` prints both."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET, encoding="utf-8")
    images, labels = rng.normal(size=(8, 3, 8, 8)).astype(np.float32), tuple("abcd")
    Calibration(images, ((0.5,) * 3, (0.25,) * 3), labels).save("images.npz")
    network = ["net.py:model", "--calibration", "images.npz"]
    emit = ["emit", *network, "--backend", "hls4ml", "--hls", "VivadoAccelerator"]
    assert main([*emit, "--json", "emit.json"]) == 0
    bundle = HlsBundle.load("build/hls4ml/bundle.json")
    assert (bundle.mean, bundle.std, bundle.labels) == ((0.5,) * 3, (0.25,) * 3, labels)
    report = json.loads(Path("emit.json").read_text(encoding="utf-8"))
    assert report["images"] == 8 and report["mismatches"] == 0
    assert len(Path("build/hls4ml/tb_data/tb_input_features.dat").read_text().splitlines()) == 8
    assert main(["compare", *network, "--json", "compare.json"]) == 0
    report = json.loads(Path("compare.json").read_text(encoding="utf-8"))
    assert report["hls4ml"]["equal"] and report["amaranth"]["equal"] and report["images"] == 8
    assert "estimate" in report["what"] and "estimates" in capsys.readouterr().out
    assert main(["emit", *network]) == 1 and "--backend hls4ml" in capsys.readouterr().err
    assert main(["emit", *network, "--backend", "hls4ml", "--scheme", "affine"]) == 1
    assert "try --scheme power_of_two" in capsys.readouterr().err
