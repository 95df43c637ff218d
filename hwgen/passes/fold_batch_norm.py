# SPDX-License-Identifier: Apache-2.0
"""The passes room: batch normalisation disappears into convolutions."""

from __future__ import annotations

import numpy as np

from hwgen.ir import BatchNorm, Conv2d, Flatten, Graph, Linear, Node


def fold_batch_norm(graph: Graph) -> Graph:
    """Fold every batch normalisation into the layer before it.

    Before::

        c = Conv2d(x) weight=w bias=b
        n = BatchNorm(c)                      # gain * c + offset

    After::

        c = Conv2d(x) weight=gain*w bias=gain*b+offset

    Likewise behind Linear. Behind anything else, or where others read the convolution too, the
    normalisation becomes a depthwise 1x1 convolution. Behind a flattened map it is folded forward,
    into the Linear that reads it. Weights that are exactly zero stay exactly zero.
    """
    for at in [node.name for node in graph.nodes if isinstance(node, BatchNorm)]:
        node = graph[at]
        assert isinstance(node, BatchNorm)
        before = graph[node.inputs[0]]
        gain, offset = node.affine()
        if isinstance(before, (Conv2d, Linear)) and graph.sole_consumer(before.name) is node:
            weight = before.weight * gain.reshape(-1, *[1] * (before.weight.ndim - 1))
            folded = before.updated(weight=weight, bias=before.bias * gain + offset)
            graph = graph.rewrite({before.name: folded, node.name: before.name})
        elif isinstance(before, Flatten):
            changes: dict[str, Node | str] = {node.name: before.name}
            for reader in graph.consumers(node.name):
                assert isinstance(reader, Linear), "the front end admits nothing else"
                bias = reader.bias + reader.weight.astype(np.float64) @ offset
                changes[reader.name] = reader.updated(weight=reader.weight * gain, bias=bias)
            graph = graph.rewrite(changes)
        else:
            depthwise = Conv2d(
                name=node.name,
                inputs=node.inputs,
                type=node.type,
                source=node.source,
                weight=gain.reshape(-1, 1, 1, 1).astype(np.float32),
                bias=offset.astype(np.float32),
                groups=len(gain),
            )
            graph = graph.rewrite({node.name: depthwise})
    return graph
