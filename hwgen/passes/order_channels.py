# SPDX-License-Identifier: Apache-2.0
"""The passes room: order channels so that filters with the same kernel share a group.

Before, filters with reduced kernels are scattered and every group of tn has to walk the union of
its filters' taps::

    conv: 3x3 1x1 3x3 1x1 | 3x3 1x1 3x3 1x1      both groups walk 9 taps

After, equal kernels are neighbours and each group walks its own::

    conv: 3x3 3x3 3x3 3x3 | 1x1 1x1 1x1 1x1      9 taps and 1 tap

Tensors that an elementwise operation ties together (pools, depthwise, residual adds) share one
order. Consumers' input slices follow when `tile` permutes their weights; the network's outputs are
put back by the host, which reads channel c at the lane that the bundle names.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwgen.ir.graph import Graph
from hwgen.ir.quantized import QConv, QInput


def order_channels(graph: Graph, ti: int) -> dict[str, tuple[int, ...]]:
    """Choose the channel order of every tensor of a quantized graph.

    Parameters
    ----------
    graph
        At the quantized level.
    ti
        Channels of a scratchpad word: kernels are compared slice by slice of that many inputs.

    Returns
    -------
    For each node's name, ``order[position] = channel``. The network's input keeps its own order.
    """
    tied = _tied_tensors(graph)
    orders: dict[str, tuple[int, ...]] = {}
    for node in graph.nodes:
        if node.name in orders:
            continue
        members = tied[node.name]
        channels = node.type.shape[0]
        order = tuple(range(channels))
        if not any(isinstance(graph[name], QInput) for name in members):
            convs = [node for node in map(graph.__getitem__, members) if type(node) is QConv]
            keys = [_supports(conv, orders.get(conv.inputs[0]), ti) for conv in convs]
            order = tuple(
                sorted(range(channels), key=lambda c: tuple(_sort_key(key[c]) for key in keys))
            )
        for name in members:
            orders[name] = order
    return orders


def _tied_tensors(graph: Graph) -> dict[str, list[str]]:
    """Group tensors that must have one channel order; members in topological order."""
    parent = {node.name: node.name for node in graph.nodes}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in graph.nodes:
        elementwise = not isinstance(node, QInput) and type(node) is not QConv
        tied_inputs = node.inputs if elementwise else node.inputs[1:]
        for name in tied_inputs:
            parent[root(name)] = root(node.name)
    members: dict[str, list[str]] = {}
    for node in graph.nodes:
        members.setdefault(root(node.name), []).append(node.name)
    return {node.name: members[root(node.name)] for node in graph.nodes}


def _supports(node: QConv, input_order: tuple[int, ...] | None, ti: int) -> NDArray[np.bool_]:
    """Which (dy, dx, input slice) each filter uses: bool (O, kh * kw * slices)."""
    weight = node.weight
    if input_order is not None:
        weight = weight[..., list(input_order)]
    out, kh, kw, channels = weight.shape
    slices = -(-channels // ti)
    padded = np.zeros((out, kh, kw, slices * ti), dtype=bool)
    padded[..., :channels] = weight != 0
    return padded.reshape(out, kh, kw, slices, ti).any(axis=-1).reshape(out, -1)


def _sort_key(support: NDArray[np.bool_]) -> tuple[int, bytes]:
    """Most taps first, equal supports together."""
    return -int(support.sum()), np.packbits(support).tobytes()
