# SPDX-License-Identifier: Apache-2.0
"""The passes room: fully connected layers become convolutions."""

from __future__ import annotations

from hwgen.ir import Clamp, Conv2d, Flatten, Graph, Linear
from hwgen.ir.types import Shape


def linear_to_conv(graph: Graph) -> Graph:
    """Turn each Linear into a convolution whose kernel covers its whole input.

    Before::

        f = Flatten(x)                        # x: (C, H, W)
        r = Clamp(f)                          # perhaps
        y = Linear(r) weight=(O, C*H*W)

    After::

        r = Clamp(x)
        y = Conv2d(r) weight=(O, C, H, W)     # no padding: one output pixel
    """
    changes: dict[str, Conv2d | Clamp | str] = {}
    shapes: dict[str, Shape] = {}  # of each edge without its flatten
    for node in graph.nodes:
        before = [shapes[name] for name in node.inputs]
        shapes[node.name] = node.type.shape
        if isinstance(node, Flatten):
            shapes[node.name] = before[0]
            changes[node.name] = node.inputs[0]
        elif isinstance(node, Clamp) and before[0] != node.type.shape:
            shapes[node.name] = before[0]
            changes[node.name] = node.updated(type=graph[node.inputs[0]].type)
        elif isinstance(node, Linear):
            changes[node.name] = Conv2d(
                name=node.name,
                inputs=node.inputs,
                type=node.type,
                source=node.source,
                weight=node.weight.reshape(-1, *before[0]),
                bias=node.bias,
            )
    for name, change in changes.items():
        if isinstance(change, Clamp):
            kind = type(change.type)
            changes[name] = change.updated(type=kind(shapes[name]))
    return graph.rewrite(changes)
