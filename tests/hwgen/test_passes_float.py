# SPDX-License-Identifier: Apache-2.0
"""Room tests: each float pass leaves the function and the zeros, and removes what it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hwgen.frontend import from_torch
from hwgen.ir import Conv2d, Graph, MaxPool, evaluate
from hwgen.passes.fold_batch_norm import fold_batch_norm
from hwgen.passes.linear_to_conv import linear_to_conv
from hwgen.passes.pipeline import to_fused
from tests.support.random_networks import random_network


class Block(nn.Module):
    """A residual block with a projected shortcut, then a pre-activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.b, self.nb = nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.s = nn.Conv2d(3, 5, 1)
        self.pre = nn.BatchNorm2d(5)
        self.l = nn.Linear(5 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.na(self.a(x)))
        y = self.nb(self.b(y)) + self.s(x)
        y = y + torch.relu(self.pre(y))
        return self.l(y.flatten(1))


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes[1:]]


def block(seed: int) -> tuple[Graph, np.ndarray]:
    torch.manual_seed(seed)
    module = Block()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
            nn.init.uniform_(part.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    x = torch.randn(4, 3, 4, 4)
    return from_torch(module, x[:1]), x.numpy()


def check_same(before: Graph, after: Graph, x: np.ndarray) -> None:
    for a, b in zip(before.outputs, after.outputs, strict=True):
        np.testing.assert_allclose(
            evaluate(after, x)[b], evaluate(before, x)[a], rtol=2e-4, atol=2e-4
        )


def test_each_pass_by_itself(seed: int) -> None:
    graph, x = block(seed)
    folded = fold_batch_norm(graph)
    assert "BatchNorm" not in ops(folded)
    alone = folded[graph["batch_norm_2"].name]
    assert isinstance(alone, Conv2d) and alone.groups == 5 and alone.kernel == (1, 1)
    check_same(graph, folded, x)
    converted = linear_to_conv(folded)
    assert not {"Flatten", "Linear"} & set(ops(converted))
    last = converted[converted.outputs[0]]
    assert isinstance(last, Conv2d) and last.weight.shape == (4, 5, 4, 4)
    check_same(graph, converted, x)


def test_adds_and_clamps_fuse(seed: int) -> None:
    graph, x = block(seed)
    fused = to_fused(graph)
    check_same(graph, fused, x)
    assert ops(fused) == ["Conv2d", "Conv2d", "Conv2d", "Conv2d", "Add", "Conv2d"]
    convs = [node for node in fused.nodes if isinstance(node, Conv2d)]
    assert sum(node.residual is not None for node in convs) == 1
    assert sum(node.clamp == (0.0, np.inf) for node in convs) == 2


def test_clamp_that_cannot_fuse_is_a_pool() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.c(x)
            return y, torch.relu(y)

    x = torch.randn(2, 3, 4, 4)
    graph = from_torch(Both(), x[:1])
    fused = to_fused(graph)
    pool = fused[fused.outputs[1]]
    assert isinstance(pool, MaxPool) and pool.kernel == (1, 1) and pool.clamp == (0.0, np.inf)
    check_same(graph, fused, x.numpy())


def test_zeros_survive_folding(rng: np.random.Generator) -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 5), nn.BatchNorm2d(6))
    mask = torch.from_numpy(rng.random((6, 3, 5, 5)) < 0.5)
    module[0].weight.data *= mask  # type: ignore[operator]
    nn.init.normal_(module[1].weight)  # type: ignore[arg-type]
    fused = to_fused(from_torch(module, torch.randn(1, 3, 8, 8)))
    conv = fused[fused.outputs[0]]
    assert isinstance(conv, Conv2d)
    assert np.array_equal(conv.weight == 0, ~mask.numpy())


@pytest.mark.parametrize("number", range(12))
def test_random_networks(number: int, seed: int) -> None:
    network = random_network(seed + number)
    graph = from_torch(network.module, network.example)
    x = network.calibration.numpy()
    with torch.no_grad():
        wanted = network.module(network.calibration).numpy()
    for level in (graph, to_fused(graph)):
        found = evaluate(level, x)[level.outputs[0]].reshape(wanted.shape)
        scale = np.abs(wanted).max() + 1
        np.testing.assert_allclose(found / scale, wanted / scale, atol=1e-4)
