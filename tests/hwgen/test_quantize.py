# SPDX-License-Identifier: Apache-2.0
"""Room tests: post-training quantization, its promises about the integers and its refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwgen.frontend import from_torch
from hwgen.ir import (
    Graph,
    IRError,
    QAvgPool,
    QConv,
    QDepthwise,
    QInput,
    QMaxPool,
    evaluate,
    evaluate_integer,
    quantize_input,
    run_quantized,
)
from hwgen.passes.pipeline import to_fused
from hwgen.quantize import QuantizationError, quantize, quantize_model
from hwgen.quantize.equalize import equalize, pad_divisors
from tests.support.random_networks import random_network


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.c = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.g, self.l = nn.Conv2d(6, 8, 1, groups=2), nn.Linear(8, 5)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(torch.relu(self.n(self.a(x))))
        y = torch.relu(self.b(y) + y)
        y = nn.functional.relu6(self.c(y)) + y
        return self.l(torch.relu(self.g(y)).mean((2, 3)))


def sqnr_db(found: np.ndarray, wanted: np.ndarray) -> float:
    return 10 * math.log10((wanted**2).mean() / ((found - wanted) ** 2).mean())


def fused_residual(seed: int) -> tuple[Graph, np.ndarray]:
    torch.manual_seed(seed)
    images = torch.randn(64, 3, 12, 12)
    return to_fused(from_torch(Residual(), images[:1])), images.numpy()


OPERATIONS = {
    "conv": nn.Conv2d(3, 8, 3, padding=1),
    "strided dilated conv": nn.Conv2d(3, 8, (3, 2), (2, 1), (1, 0), (1, 2)),
    "depthwise": nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3)),
    "grouped": nn.Sequential(nn.Conv2d(3, 6, 3, groups=3)),
    "relu": nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()),
    "relu6": nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU6()),
    "max pool": nn.MaxPool2d(3, 2, 1),
    "avg pool": nn.AvgPool2d(2),
    "avg pool padded": nn.AvgPool2d(4, 2, 2),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 10)),
    "clamp of the input": nn.ReLU(),
}


@pytest.mark.parametrize("scheme, margin_db", [("affine", 0.0), ("power_of_two", 7.0)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_one_operation_is_accurate(name: str, scheme: str, margin_db: float, seed: int) -> None:
    """Eight bits over uniform data have 10 log10(12 * 256**2 / 12) = 48 dB.

    An input, weights and a result of 8 bits each, over ranges a few times the deviation of the
    values (a peak-to-RMS ratio of 4 costs 13 dB, three sources of noise 5 dB), leave 30 dB.
    Powers of two waste up to one bit (6 dB) an edge.
    """
    torch.manual_seed(seed)
    x = torch.rand(32, 3, 12, 12) * 2 - 1
    fused = to_fused(from_torch(OPERATIONS[name], x[:1]))
    graph = quantize(fused, x, scheme=scheme, observer="minmax")  # type: ignore[arg-type]
    codes = evaluate_integer(graph, quantize_input(graph, x.numpy()))
    last = graph.outputs[0]
    code = graph[last].type.quant
    assert code is not None
    real = (codes[last].astype(np.float64) - code.zero_point) * code.scale
    wanted = evaluate(fused, x.numpy())[fused.outputs[0]].transpose(0, 2, 3, 1)
    assert sqnr_db(real, wanted) > 30 - margin_db


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("options", [{}, {"bias_correction": True}, {"equalization": True}])
def test_network_is_accurate(observer: str, options: dict[str, bool], seed: int) -> None:
    fused, x = fused_residual(seed)
    wanted = evaluate(fused, x)[fused.outputs[0]][:, :, 0, 0]
    affine = run_quantized(quantize(fused, x, observer=observer, **options), x)
    assert sqnr_db(affine, wanted) > 25
    binary = quantize(fused, x, scheme="power_of_two", observer=observer, **options)
    assert sqnr_db(run_quantized(binary, x), wanted) > 15


def test_level_three_as_promised(seed: int) -> None:
    fused, x = fused_residual(seed)
    graph = quantize(fused, x)
    kinds = [node.op for node in graph.nodes]
    assert kinds == ["QInput", "QConv", "QMaxPool", "QConv", "QDepthwise", "QAdd"] + [
        "QConv",
        "QAvgPool",
        "QConv",
    ]
    relu, pool, residual, depthwise = graph.nodes[1:5]
    assert relu.type.quant is not None and relu.type.quant.zero_point == -128
    assert pool.type.quant == relu.type.quant
    assert isinstance(residual, QConv) and residual.residual == pool.name
    assert residual.requantization.residual_zero_point == -128
    assert isinstance(depthwise, QDepthwise) and depthwise.weight.shape == (6, 3, 3)
    grouped = graph.nodes[6]
    assert isinstance(grouped, QConv) and grouped.weight.shape == (8, 1, 1, 6)
    assert not grouped.weight[:4, ..., 3:].any() and not grouped.weight[4:, ..., :3].any()
    for node in graph.nodes:
        if isinstance(node, QConv) and not isinstance(node, QDepthwise):
            # 16 significant bits of multiplier wherever no residual shares the shift
            if node.residual is None:
                assert node.requantization.multiplier.min() >= 2**15
            source = graph[node.inputs[0]].type.quant
            assert source is not None and node.type.quant is not None
            real = source.scale * node.weight_scale / node.type.quant.scale
            kept = node.requantization.multiplier / 2.0**node.requantization.shift
            np.testing.assert_allclose(kept, real, rtol=2**-7)


def test_power_of_two_is_all_powers_of_two(seed: int) -> None:
    fused, x = fused_residual(seed)  # its mean is over 36 pixels, no power of two
    graph = quantize(fused, x, scheme="power_of_two")
    pools = [node for node in graph.nodes if isinstance(node, QAvgPool)]
    assert len(pools) == 1
    for node in graph.nodes:
        assert node.type.quant is not None and node.type.quant.zero_point == 0
        assert node.type.quant.scale == 2.0**node.type.quant.scale_log2
        if isinstance(node, QInput):
            continue
        requant = node.requantization  # type: ignore[attr-defined]
        for array in (requant.multiplier, requant.residual_multiplier):
            if array is not None:
                assert (array > 0).all() and not (array & (array - 1)).any()
        if isinstance(node, QConv):
            assert (np.frexp(node.weight_scale)[0] == 0.5).all()


@pytest.mark.parametrize("scheme", ["affine", "power_of_two"])
def test_zeros_stay_zero(scheme: str, rng: np.random.Generator) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 5), nn.BatchNorm2d(8), nn.ReLU())
    mask = rng.random((8, 3, 5, 5)) < 0.5
    mask[0] = False  # a whole filter
    module[0].weight.data *= torch.from_numpy(mask)  # type: ignore[operator]
    x = rng.standard_normal((8, 3, 9, 9)).astype(np.float32)
    graph = quantize_model(module, torch.from_numpy(x[:1]), x, scheme=scheme)  # type: ignore[arg-type]
    conv = graph.nodes[1]
    assert isinstance(conv, QConv)
    assert not conv.weight[~mask.transpose(0, 2, 3, 1)].any()
    assert np.abs(conv.weight[1:]).reshape(7, -1).max(axis=1).min() > 60


def test_dead_and_tiny_channels_are_held(seed: int) -> None:
    """Channels whose weights are zero, or far smaller than the residual beside them."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(3, 3, 1)
            self.c.weight.data[0] = 0
            self.c.weight.data[1] *= 1e-9
            self.c.bias.data = torch.tensor([0.5, 0.0, -20.0])

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.c(x) + x)

    torch.manual_seed(seed)
    x = torch.randn(16, 3, 6, 6)
    module = Net()
    wanted = module(x).detach().numpy()
    for scheme, step in (("affine", 0.04), ("power_of_two", 0.09)):
        found = run_quantized(
            quantize_model(module, x[:1], x, scheme=scheme, observer="minmax"),  # type: ignore[arg-type]
            x.numpy(),
        )
        assert np.abs(found - wanted).max() < step  # about one step of the input, of the output


def test_an_edge_that_is_always_zero() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    module[0].bias.data.fill_(-100.0)  # type: ignore[union-attr,operator]
    x = torch.randn(8, 3, 5, 5)
    found = run_quantized(quantize_model(module, x[:1], x), x.numpy())
    wanted = module(x).detach().numpy()
    assert np.abs(found - wanted).max() <= np.abs(wanted).max() / 100


def test_outputs_are_never_clipped(seed: int) -> None:
    fused, x = fused_residual(seed)
    x[0] *= 4  # an outlier that mse clips elsewhere
    graph = quantize(fused, x, observer="percentile")
    code = graph[graph.outputs[0]].type.quant
    assert code is not None
    logits = evaluate(fused, x)[fused.outputs[0]]
    assert (127 - code.zero_point) * code.scale >= logits.max() - code.scale
    assert (-128 - code.zero_point) * code.scale <= logits.min() + code.scale


def test_several_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.relu(self.a(x))
            return y, self.b(y)

    x = torch.randn(8, 3, 6, 6)
    graph = quantize_model(Two(), x[:1], x)
    found = evaluate_integer(graph, quantize_input(graph, x.numpy()))
    assert [found[name].shape for name in graph.outputs] == [(8, 4, 4, 4), (8, 4, 4, 2)]


@pytest.mark.parametrize("number", range(12))
def test_random_networks(number: int, seed: int) -> None:
    """Both schemes accept every network, and the batch size does not matter."""
    network = random_network(seed + number)
    fused = to_fused(from_torch(network.module, network.example))
    x = network.calibration.numpy()
    wanted = evaluate(fused, x)[fused.outputs[0]]
    for scheme, least_db in (("affine", 15), ("power_of_two", 5)):
        graph = quantize(fused, x, scheme=scheme, observer="minmax")  # type: ignore[arg-type]
        codes = quantize_input(graph, x)
        a, b = (evaluate_integer(graph, codes, batch=n)[graph.outputs[0]] for n in (1, 8))
        assert np.array_equal(a, b)
        found = run_quantized(graph, x).reshape(wanted.shape)
        if (wanted**2).mean() > 0:
            assert sqnr_db(found, wanted) > least_db, scheme


def test_equalization_leaves_the_function(seed: int) -> None:
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1, groups=2),
        nn.ReLU6(),
        nn.Conv2d(6, 4, 1),
    )
    module[0].weight.data *= torch.logspace(-1, 1, 8).reshape(-1, 1, 1, 1)  # type: ignore[operator]
    x = torch.randn(4, 3, 9, 9)
    fused = to_fused(from_torch(module, x[:1]))
    balanced = equalize(fused)
    a, b = (evaluate(g, x.numpy())[g.outputs[0]] for g in (fused, balanced))
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert not np.array_equal(fused.nodes[1].weight, balanced.nodes[1].weight)  # type: ignore[attr-defined]


def test_padded_divisors_leave_the_function(seed: int) -> None:
    fused, x = fused_residual(seed)
    padded = pad_divisors(fused)
    assert [n.divisor for n in padded.nodes if n.op == "AvgPool"] == [64]  # type: ignore[attr-defined]
    a, b = (evaluate(g, x)[g.outputs[0]] for g in (fused, padded))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_divisor_that_nobody_can_take_becomes_a_convolution(seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(16, 3, 12, 12)
    for module in (nn.AvgPool2d(3), nn.Sequential(nn.AvgPool2d(3), nn.AvgPool2d(3, 1))):
        graph = quantize_model(module, x[:1], x, scheme="power_of_two")
        assert {node.op for node in graph.nodes} == {"QInput", "QDepthwise"}
        assert sqnr_db(run_quantized(graph, x.numpy()), module(x).numpy()) > 25
        assert "QAvgPool" in {node.op for node in quantize_model(module, x[:1], x).nodes}


def test_max_pool_keeps_codes() -> None:
    x = torch.randn(8, 3, 6, 6)
    graph = quantize_model(nn.MaxPool2d(2), x[:1], x)
    pool = graph.nodes[1]
    assert isinstance(pool, QMaxPool)
    codes = quantize_input(graph, x.numpy())
    found = evaluate_integer(graph, codes)[pool.name]
    assert np.array_equal(found, codes.reshape(8, 3, 2, 3, 2, 3).max(axis=(2, 4)))


def test_refusals() -> None:
    fused = to_fused(from_torch(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 6, 6)))
    good = np.random.default_rng(0).standard_normal((8, 3, 6, 6)).astype(np.float32)
    bad = good.copy()
    bad[5, 1] = np.nan
    for calibration, text in (
        (bad, r"finite, but 1 of its images \(the first is number 5\) hold NaN"),
        (good[:3], "calibration must hold 4 images or more, not 3"),
        (good[:, :2], r"calibration must be float32 \(N, 3, 6, 6\), not float32 \(8, 2, 6, 6\)"),
        (good.astype(np.float64), "not float64"),
        ((good * 50).astype(np.uint8), "not uint8"),
    ):
        with pytest.raises(ValueError, match=text):
            quantize(fused, calibration)
    with pytest.raises(ValueError, match="scheme must be 'affine' or 'power_of_two', not 'int4'"):
        quantize(fused, good, scheme="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="observer must be one of minmax, percentile, mse"):
        quantize(fused, good, observer="best")
    unfused = from_torch(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 6, 6))
    with pytest.raises(IRError, match="must be at the fused level, not float; run to_fused"):
        quantize(unfused, good)


def test_overflowing_calibration_is_named() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    for part in module:
        part.weight.data.fill_(1e30)  # type: ignore[union-attr,operator]
    x = torch.rand(8, 3, 4, 4) + 1
    with pytest.raises(QuantizationError, match=r"Conv2d .*: calibration images give NaN or inf"):
        quantize_model(module, x[:1], x)
