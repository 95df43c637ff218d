# SPDX-License-Identifier: Apache-2.0
"""Room tests: torch networks become float graphs that compute the same, or are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hwgen.frontend import UnsupportedOperation, from_torch
from hwgen.ir import evaluate
from hwgen.passes.pipeline import to_fused


def randomized(module: nn.Module, seed: int) -> nn.Module:
    """Give every normalisation non-trivial statistics, so that folding is really tested."""
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            if part.affine:
                nn.init.normal_(part.weight)
                nn.init.normal_(part.bias)
    return module


def check_equal(module: nn.Module, shape: tuple[int, int, int], seed: int) -> None:
    """Float and fused graph compute what torch computes."""
    randomized(module, seed)
    x = torch.randn(3, *shape)
    graph = from_torch(module, x[:1])
    wanted = module.eval()(x)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for level in (graph, to_fused(graph)):
        found = evaluate(level, x.numpy())
        for name, tensor in zip(level.outputs, wanted, strict=True):
            target = tensor.detach().numpy()
            np.testing.assert_allclose(
                found[name].reshape(target.shape), target, rtol=1e-4, atol=1e-4
            )


class Functional(nn.Module):
    """A network of one function."""

    def __init__(self, function: object, **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.w = nn.Parameter(torch.ones(2))
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)  # type: ignore[operator]


def conv(*arguments: object, **options: object) -> nn.Conv2d:
    return nn.Conv2d(*arguments, **options)  # type: ignore[arg-type]


MODULES = {
    "conv": lambda: conv(3, 5, 3),
    "conv 7x2 stride padding": lambda: conv(3, 5, (7, 2), (2, 3), (3, 1)),
    "conv dilated": lambda: conv(3, 5, 3, dilation=(2, 3), padding=2, bias=False),
    "conv same, even kernel": lambda: conv(3, 5, (4, 3), padding="same"),
    "conv valid": lambda: conv(3, 5, 3, padding="valid"),
    "conv grouped": lambda: nn.Sequential(conv(3, 6, 1), conv(6, 9, 3, groups=3)),
    "depthwise, multiplier 2": lambda: conv(3, 6, 3, groups=3),
    "batch norm behind conv": lambda: nn.Sequential(conv(3, 5, 3), nn.BatchNorm2d(5)),
    "batch norm alone": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), conv(3, 2, 3)),
    "batch norm, not affine": lambda: nn.Sequential(conv(3, 5, 3), nn.BatchNorm2d(5, affine=False)),
    "two batch norms": lambda: nn.Sequential(conv(3, 5, 1), nn.BatchNorm2d(5), nn.BatchNorm2d(5)),
    "relu6 hardtanh": lambda: nn.Sequential(
        conv(3, 5, 3), nn.ReLU6(), conv(5, 5, 1), nn.Hardtanh()
    ),
    "relu in place": lambda: nn.Sequential(conv(3, 5, 3), nn.ReLU(inplace=True)),
    "clamps in a row": lambda: nn.Sequential(
        conv(3, 5, 3), nn.ReLU(), nn.Hardtanh(-1, 0.5), nn.Hardtanh(0.1, 9)
    ),
    "max pool": lambda: nn.MaxPool2d(3, 2, 1),
    "max pool ceil": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "max pool ceil, padded": lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "max pool dilated": lambda: nn.MaxPool2d(2, 1, dilation=3),
    "avg pool": lambda: nn.AvgPool2d((3, 2), 2),
    "avg pool padded": lambda: nn.AvgPool2d(3, 2, 1),
    "avg pool divisor": lambda: nn.AvgPool2d(3, 2, 1, divisor_override=8),
    "adaptive": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)),
    "flatten of a map": lambda: nn.Sequential(
        nn.AvgPool2d(3), nn.Flatten(), nn.ReLU(), nn.Linear(36, 7), nn.ReLU(), nn.Linear(7, 2)
    ),
    "batch norm of features": lambda: nn.Sequential(
        nn.AvgPool2d(3), nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 7), nn.BatchNorm1d(7)
    ),
    "dropout identity": lambda: nn.Sequential(conv(3, 5, 3), nn.Dropout2d(), nn.Identity()),
    "zero pad": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), conv(3, 4, 3, padding=1)),
}
FUNCTIONS = {
    "relu functional": lambda m, x: F.relu(torch.relu(m.c(x))),
    "clamp": lambda m, x: m.c(x).clamp(min=-0.5).clamp_(max=1.0),
    "relu6 functional": lambda m, x: F.relu6(m.c(x)),
    "x + x": lambda m, x: m.c(x) + m.c(x),
    "doubled": lambda m, x: (lambda y: y + y)(m.c(x)),
    "input shortcut left": lambda m, x: F.relu(x + m.c(x)),
    "input shortcut right": lambda m, x: F.relu(m.c(x) + x),
    "add in place": lambda m, x: m.c(x).add_(x),
    "two branches": lambda m, x: F.relu(m.c(x) + m.d(x)),
    "clamped branches": lambda m, x: F.relu(m.c(x)) + F.relu(m.d(x)),
    "three branches": lambda m, x: m.c(x) + m.d(x) + x,
    "conv read twice": lambda m, x: (lambda y: F.relu(y) + y)(m.c(x)),
    "relu changes what others read": lambda m, x: (lambda y: m.d(F.relu_(y)) + y)(m.c(x)),
    "mean": lambda m, x: m.c(x).mean((-1, -2)),
    "mean keepdim": lambda m, x: m.c(x).mean((2, 3), keepdim=True),
    "view": lambda m, x: F.adaptive_avg_pool2d(m.c(x), 1).view(x.size(0), -1),
    "squeeze": lambda m, x: F.adaptive_avg_pool2d(m.c(x), 1).squeeze(-1).squeeze(-1),
    "two outputs": lambda m, x: (m.c(x), F.relu(m.d(x))),
    "output also read": lambda m, x: (lambda y: (y, m.d(y)))(m.c(x)),
    "clamped input": lambda m, x: m.c(F.relu(x)),
}


@pytest.mark.parametrize("name", MODULES)
def test_module(name: str, seed: int) -> None:
    check_equal(MODULES[name](), (3, 12, 11), seed)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str, seed: int) -> None:
    parts = {"c": conv(3, 3, 3, padding=1), "d": conv(3, 3, 1)}
    function = FUNCTIONS[name]
    parts = {k: v for k, v in parts.items() if f"m.{k}" in _source_of(function)}
    check_equal(Functional(function, **parts), (3, 8, 8), seed)


def _source_of(function: object) -> str:
    return " ".join(f"m.{name}" for name in _names(function.__code__))  # type: ignore[attr-defined]


def _names(code: object) -> list[str]:
    inner = [_names(c) for c in code.co_consts if hasattr(c, "co_names")]  # type: ignore[attr-defined]
    return [*code.co_names, *sum(inner, [])]  # type: ignore[attr-defined]


def test_module_is_not_changed() -> None:
    module = nn.Sequential(conv(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    from_torch(module, torch.randn(1, 3, 8, 8))
    assert module.training and all(part.training for part in module)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_source_names_module_and_line() -> None:
    graph = from_torch(Functional(lambda m, x: m.c(x), c=conv(3, 2, 1)), torch.randn(1, 3, 4, 4))
    source = graph[graph.outputs[0]].source
    assert source.module == "c"
    assert "test_frontend_torch.py" in source.line and "self.function(self, x)" in source.line


REFUSED = {
    "softmax": (lambda m, x: F.softmax(x.mean((2, 3)), 1), "remove it", "argmax is unchanged"),
    "gelu": (lambda m, x: F.gelu(x), "GELU is not piecewise linear", "use ReLU"),
    "cat": (lambda m, x: torch.cat([x, x], 1), "concatenation", "add the branches"),
    "constant": (lambda m, x: x + 1, "an operand is the constant 1", "bias or weights"),
    "alpha": (lambda m, x: torch.add(x, x, alpha=2), "scales an operand by 2", "weights"),
    "broadcast": (
        lambda m, x: x + x.mean((2, 3), keepdim=True),
        "needs broadcasting",
        "feature maps of one shape",
    ),
    "mean over channels": (lambda m, x: x.mean(1), "mean over the axes [1]", "(2, 3)"),
    "flattened output": (lambda m, x: x.flatten(1), "an output of the network", "pool it"),
    "flatten read by add": (
        lambda m, x: (lambda f: f + f)(F.relu(x).flatten(1)),
        "read by Add",
        "only go",
    ),
    "unused": (lambda m, x: (F.relu(x), x.mean((2, 3)))[0], "never used", "remove it"),
    "unused refused": (lambda m, x: (F.relu(x), F.silu(x))[0], "SiLU", "ReLU"),
    "the input": (lambda m, x: x, "the input itself", "compute something"),
    "constant output": (lambda m, x: (F.relu(x), torch.ones(2)), "aten.ones", "use Conv2d"),
    "parameter output": (lambda m, x: (F.relu(x), m.w), "an output is a constant", "computed"),
    "dropout that stays": (lambda m, x: F.dropout(x), "in evaluation as well", "self.training"),
    "batch statistics": (
        lambda m, x: F.batch_norm(x, None, None, training=True),
        "statistics of the batch",
        "track_running_stats=True",
    ),
    "indices": (
        lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0],
        "it returns indices",
        "return_indices=False",
    ),
    "avg pool border": (
        lambda m, x: F.avg_pool2d(x, 3, padding=1, count_include_pad=False),
        "count_include_pad=False",
        "no padding",
    ),
    "avg pool ceil": (lambda m, x: F.avg_pool2d(x, 3, ceil_mode=True), "ceil_mode", "divides"),
    "uneven adaptive": (lambda m, x: F.adaptive_avg_pool2d(x, 3), "differ in size", "Pool2d(1)"),
    "span": (
        lambda m, x: F.max_pool2d(F.pad(x, (99, 99, 99, 99)), 1),
        "padded by F.pad",
        "own padding",
    ),
    "pad value": (lambda m, x: F.relu(F.pad(x, (1, 1), value=2.0)), "value 2.0", "zeros"),
    "transposed": (lambda m, x: x.transpose(1, 2), "moves channels", "(N, C, H, W)"),
    "double": (lambda m, x: x.double(), "converts to torch.float64", "float32"),
    "branch on a value": (
        lambda m, x: x if x.sum() > 0 else -x,
        "torch.export cannot trace it",
        "without branches",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, *texts = REFUSED[name]
    with pytest.raises(UnsupportedOperation) as caught:
        from_torch(Functional(function), torch.randn(1, 3, 8, 8))
    assert len(caught.value.items) == 1, str(caught.value)
    for text in texts:
        assert text in str(caught.value)


def test_refused_layers() -> None:
    for layer, text in (
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), "padding_mode 'reflect'"),
        (nn.Conv2d(3, 3, 3, padding=40, dilation=40), "spans 81 positions, more than the 64"),
        (nn.Conv2d(3, 3, 1, stride=16), "stride 16 is more than the 15"),
        (nn.Linear(8, 2), "runs along the last axis of (1, 3, 8, 8)"),
        (nn.BatchNorm2d(3, track_running_stats=False), "statistics of the batch"),
        (nn.LeakyReLU(), "two slopes"),
        (nn.Upsample(scale_factor=2), "resize the frames"),
        (nn.GroupNorm(1, 3), "use BatchNorm2d"),
        (nn.ConvTranspose2d(3, 3, 2), "aten.conv_transpose2d in 0"),
    ):
        with pytest.raises(UnsupportedOperation) as caught:
            side = 32 if isinstance(layer, nn.Conv2d) and layer.stride == (16, 16) else 8
            from_torch(nn.Sequential(layer), torch.randn(1, 3, side, side))
        assert text in str(caught.value)
        assert len(caught.value.items) == 1


def test_linear_over_a_large_map_is_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 65 * 65, 2))
    with pytest.raises(UnsupportedOperation, match="more than 64 positions high or wide"):
        from_torch(flat, torch.randn(1, 3, 65, 65))
    pooled = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(192, 2))
    assert from_torch(pooled, torch.randn(1, 3, 64, 64)).outputs


def test_every_refusal_is_listed_with_its_place() -> None:
    module = nn.Sequential(
        conv(3, 4, 3), nn.SiLU(), conv(4, 4, 3, padding_mode="circular"), nn.GELU(), nn.Softmax(1)
    )
    with pytest.raises(UnsupportedOperation) as caught:
        from_torch(module, torch.randn(1, 3, 8, 8))
    found = [(item.operation, item.source.module) for item in caught.value.items]
    assert found == [
        ("aten.silu", "1"),
        ("aten.pad", "2"),
        ("aten.gelu", "3"),
        ("aten.softmax", "4"),
    ]
    assert str(caught.value).startswith("4 operations of this network cannot run")


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(UnsupportedOperation, match="one tensor argument"):
        from_torch(Two(), torch.randn(1, 3, 8, 8))


def test_state_that_changes_is_refused() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return F.relu(x)

    with pytest.raises(UnsupportedOperation, match="count"):
        from_torch(Counter(), torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float) -> None:
    module = nn.Sequential(conv(3, 4, 3))
    module[0].weight.data[1, 2, 0, 0] = value  # type: ignore[index,union-attr]
    with pytest.raises(ValueError, match=r"0\.weight must be finite, but 1 of its 108 values"):
        from_torch(module, torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    "example", [torch.randn(2, 3, 8, 8), torch.randn(3, 8, 8), torch.zeros(1, 3, 8, 8).int()]
)
def test_wrong_example(example: Tensor) -> None:
    with pytest.raises(ValueError, match=r"example_input must be float32 \(1, C, H, W\), not"):
        from_torch(conv(3, 4, 3), example)


def test_what_is_no_module() -> None:
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, not int"):
        from_torch(3, torch.randn(1, 3, 8, 8))  # type: ignore[arg-type]
