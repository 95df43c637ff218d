# SPDX-License-Identifier: Apache-2.0
"""The passes room: the ordered list of passes, and why it has this order."""

from __future__ import annotations

from collections.abc import Callable

from hwgen.ir import Graph, verify
from hwgen.passes.fold_batch_norm import fold_batch_norm
from hwgen.passes.fuse import fuse
from hwgen.passes.linear_to_conv import linear_to_conv

FLOAT_PASSES: tuple[Callable[[Graph], Graph], ...] = (
    # First, while every normalisation still follows the layer whose weights absorb it.
    fold_batch_norm,
    # Before fusing, so that only one kind of layer is left to take adds and clamps.
    linear_to_conv,
    # Last: adds and clamps may follow any of the operations that are left.
    fuse,
)


def to_fused(graph: Graph) -> Graph:
    """Bring a verified float graph to the fused level; each pass's result is verified."""
    verify(graph)
    for run in FLOAT_PASSES:
        graph = verify(run(graph))
    return graph
