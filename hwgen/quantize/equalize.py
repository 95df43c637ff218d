# SPDX-License-Identifier: Apache-2.0
"""The quantization room: changes to a fused graph that leave its function but ease its codes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hwgen.ir import AvgPool, Conv2d, Graph, MaxPool, Node


def pad_divisors(graph: Graph) -> Graph:
    """Make every average pool divide by a power of two.

    A pool over n pixels divides by the next power of two instead, m >= n, and the weights of the
    layers that read it grow by m / n. Before::

        a = AvgPool(x) divisor=49
        y = Conv2d(a) weight=w

    After::

        a = AvgPool(x) divisor=64
        y = Conv2d(a) weight=64/49*w

    Raises
    ------
    QuantizationError
        Where something other than convolutions reads the pool (or the user does).
    """
    for name in [node.name for node in graph.nodes if isinstance(node, AvgPool)]:
        pool = graph[name]
        assert isinstance(pool, AvgPool)
        divisor = 1 << (pool.divisor - 1).bit_length()
        if divisor == pool.divisor:
            continue
        factor = divisor / pool.divisor
        changes = _scale_readers(graph, name, factor)
        bounds = pool.clamp and (pool.clamp[0] / factor, pool.clamp[1] / factor)
        changes[name] = pool.updated(divisor=divisor, clamp=bounds)
        graph = graph.rewrite(changes)
    return graph


def _scale_readers(graph: Graph, name: str, factor: float) -> dict[str, Node]:
    """Multiply the weights of all readers; through max pools, which commute with a scale."""
    from hwgen.quantize.post_training import QuantizationError

    changes: dict[str, Node] = {}
    for reader in graph.consumers(name):
        if isinstance(reader, Conv2d) and reader.residual != name:
            changes[reader.name] = reader.updated(weight=reader.weight * np.float64(factor))
        elif isinstance(reader, MaxPool) and reader.name not in graph.outputs:
            bounds = reader.clamp and (reader.clamp[0] / factor, reader.clamp[1] / factor)
            changes |= _scale_readers(graph, reader.name, factor)
            changes[reader.name] = reader.updated(clamp=bounds)
        else:
            raise QuantizationError(_not_a_power(graph, name, f"is read by {reader.where()}"))
    if name in graph.outputs:
        raise QuantizationError(_not_a_power(graph, name, "is an output of the network"))
    return changes


def _not_a_power(graph: Graph, name: str, why: str) -> str:
    return (
        f"{graph[name].where()} divides by a number that is no power of two and {why}, so that "
        "no convolution can take the rest of the factor; try scheme='affine', or a pool over "
        "2, 4, 8, ... pixels"
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
