# SPDX-License-Identifier: Apache-2.0
"""The quantization room: changes to a fused graph that leave its function but ease its codes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hwgen.ir import AvgPool, Conv2d, Graph, Node


def pad_divisors(graph: Graph) -> Graph:
    """Make every average pool divide by a power of two.

    A pool over n pixels divides by the next power of two instead, m >= n, and the weights of the
    layers that read it grow by m / n. Before::

        a = AvgPool(x) divisor=49
        y = Conv2d(a) weight=w

    After::

        a = AvgPool(x) divisor=64
        y = Conv2d(a) weight=64/49*w

    Where something other than convolutions reads the pool (or the user does), the pool becomes a
    depthwise convolution of weights 1 / n, which eight bits hold to 0.4 %.
    """
    for name in [node.name for node in graph.nodes if isinstance(node, AvgPool)]:
        pool = graph[name]
        assert isinstance(pool, AvgPool)
        divisor = 1 << (pool.divisor - 1).bit_length()
        if divisor == pool.divisor:
            continue
        factor = divisor / pool.divisor
        changes: dict[str, Node] = {}
        for reader in graph.consumers(name):
            if isinstance(reader, Conv2d) and reader.residual != name:
                changes[reader.name] = reader.updated(weight=reader.weight * np.float64(factor))
        if name in graph.outputs or len(changes) < len(graph.consumers(name)):
            changes = {name: _as_convolution(pool)}
        else:
            bounds = pool.clamp and (pool.clamp[0] / factor, pool.clamp[1] / factor)
            changes[name] = pool.updated(divisor=divisor, clamp=bounds)
        graph = graph.rewrite(changes)
    return graph


def _as_convolution(pool: AvgPool) -> Conv2d:
    channels = pool.type.shape[0]
    return Conv2d(
        name=pool.name,
        inputs=pool.inputs,
        type=pool.type,
        source=pool.source,
        weight=np.full((channels, 1, *pool.kernel), 1 / pool.divisor, np.float32),
        bias=np.zeros(channels, np.float32),
        stride=pool.stride,
        padding=pool.padding,
        groups=channels,
        clamp=pool.clamp,
    )


def equalize(graph: Graph, *, limit: float = 32.0) -> Graph:
    """Balance the ranges of the channels between each convolution and its one reader.

    Cross-layer equalization (Nagel et al., ICCV 2019, section 4.1): for channel i between weights
    w1 and w2, with ranges r1 and r2 over the channel, w1 and its bias are divided by
    ``s = sqrt(r1 * r2) / r2`` and w2 is multiplied by it; ReLU lets positive factors through.
    Convolutions with a residual, a clamp other than ReLU, or several readers keep their weights.
    `s` stays within `limit` of 1.
    """
    for name in [node.name for node in graph.nodes if isinstance(node, Conv2d)]:
        first = graph[name]
        assert isinstance(first, Conv2d)
        second = graph.sole_consumer(name)
        if (
            not isinstance(second, Conv2d)
            or first.residual is not None
            or second.residual == name
            or first.clamp not in (None, (0.0, math.inf))
        ):
            continue
        r1 = np.abs(first.weight).reshape(len(first.weight), -1).max(axis=1)
        r2 = _input_ranges(second)
        used = (r1 > 0) & (r2 > 0)
        s = np.ones(len(r1))
        s[used] = np.clip(np.sqrt(r1[used] / r2[used]), 1 / limit, limit)
        scaled = first.updated(weight=first.weight / s[:, None, None, None], bias=first.bias / s)
        per_group = s.reshape(second.groups, -1)
        factors = np.repeat(per_group, len(second.weight) // second.groups, axis=0)
        weight = second.weight * factors[:, :, None, None]
        graph = graph.rewrite({name: scaled, second.name: second.updated(weight=weight)})
    return graph


def _input_ranges(conv: Conv2d) -> NDArray[np.float32]:
    """Largest |weight| over each input channel, (C,)."""
    per_output = np.abs(conv.weight).max(axis=(2, 3))
    grouped = per_output.reshape(conv.groups, -1, per_output.shape[1])
    return grouped.max(axis=1).reshape(-1)
