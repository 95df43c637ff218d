# SPDX-License-Identifier: Apache-2.0
"""The passes room: residual adds and clamps join the layer in front of them."""

from __future__ import annotations

import math

from hwgen.ir import Add, AvgPool, Clamp, Conv2d, Graph, MaxPool


def fuse(graph: Graph) -> Graph:
    """Bring a graph of convolutions, pools, adds and clamps from the float to the fused level.

    Adds before clamps: the machine adds a residual in front of its clamp, never behind it.
    """
    return _fuse_clamps(_fuse_adds(graph))


def _fuse_adds(graph: Graph) -> Graph:
    """Give a residual add to the convolution that computes one of its operands.

    Before::

        c = Conv2d(x)
        s = Add(c, r)

    After::

        c = Conv2d(x, r)

    The convolution must be read by the add alone. Of two such convolutions the later one takes
    it, because the other's result exists by then. ``x + x`` stays an add.
    """
    for at in [node.name for node in graph.nodes if isinstance(node, Add)]:
        node = graph[at]
        assert isinstance(node, Add)
        order = {other.name: place for place, other in enumerate(graph.nodes)}
        for name in sorted(node.inputs, key=lambda name: -order[name]):
            conv = graph[name]
            other = node.inputs[1 - node.inputs.index(name)]
            if (
                isinstance(conv, Conv2d)
                and conv.residual is None
                and other != name
                and graph.sole_consumer(name) is node
            ):
                fused = conv.updated(inputs=(conv.inputs[0], other))
                graph = graph.rewrite({name: fused, node.name: name})
                break
    return graph


def _fuse_clamps(graph: Graph) -> Graph:
    """Give each clamp to the operation in front of it.

    Before::

        c = Conv2d(x)
        r = Clamp(c) lo=0 hi=inf

    After::

        c = Conv2d(x) clamp=(0, inf)

    The same for pools and adds. Where others read the unclamped result too, and behind the
    graph's input, the clamp becomes a 1x1 max pool with a clamp.
    """
    for at in [node.name for node in graph.nodes if isinstance(node, Clamp)]:
        node = graph[at]
        assert isinstance(node, Clamp)
        before = graph[node.inputs[0]]
        bounds = (node.lo, node.hi)
        if (
            isinstance(before, (Conv2d, MaxPool, AvgPool, Add))
            and graph.sole_consumer(before.name) is node
        ):
            lo, hi = before.clamp or (-math.inf, math.inf)
            # clamp(clamp(x, lo, hi), *bounds) is one clamp whose ends are clamped themselves
            merged = tuple(min(max(end, bounds[0]), bounds[1]) for end in (lo, hi))
            if merged[0] < merged[1]:
                fused = before.updated(clamp=merged)
                graph = graph.rewrite({before.name: fused, node.name: before.name})
                continue
        pool = MaxPool(
            name=node.name,
            inputs=node.inputs,
            type=node.type,
            source=node.source,
            kernel=(1, 1),
            stride=(1, 1),
            clamp=bounds,
        )
        graph = graph.rewrite({node.name: pool})
    return graph.rewrite({}, level="fused")
