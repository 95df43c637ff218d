# SPDX-License-Identifier: Apache-2.0
"""The back-end room: what hls4ml cannot compute exactly, found before anything is written."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwgen.backends.hls4ml.types import IoType
from hwgen.ir import Graph, IRError, Node, QAdd, QAvgPool, QConv, QInput, QMaxPool

AMARANTH = "try --backend amaranth"
POWER_OF_TWO = "try --scheme power_of_two, or --backend amaranth"
MAX_READERS = 7


def refusals(graph: Graph, io_type: IoType) -> list[tuple[str, str, str]]:
    """Return (node, reason, alternative) for each node that has no exact form in hls4ml.

    `graph` is at the quantized level and verified.
    """
    found: list[tuple[str, str, str]] = []
    for label, names in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        if len(names) != 1:
            reason = f"the network must have one of its {label}, but has {len(names)}"
            found.append((", ".join(names), reason, AMARANTH))
    for node in graph.nodes:
        reason, instead = _scales(graph, node) or _operation(graph, node, io_type) or ("", "")
        readers = len(graph.consumers(node.name))
        if not reason and node.name in graph.outputs and readers:
            reason, instead = "the network's output is read by other nodes as well", AMARANTH
        if not reason and readers > MAX_READERS:
            reason = f"{readers} nodes read it, and hls4ml copies a stream {MAX_READERS} times"
            instead = AMARANTH
        if reason:
            found.append((node.where(), reason, instead))
    return found


def exponents(factor: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return log2 of each factor (0 counts as 1: it scales nothing), or None if one has none."""
    used = np.where(factor > 0, factor, 1)
    exponent = np.frexp(used.astype(np.float64))[1].astype(np.int64) - 1
    return exponent if (np.int64(1) << exponent == used).all() else None


def log2_scale(node: Node) -> int:
    """Exponent of an edge's scale."""
    assert node.type.quant is not None, "a quantized graph has a code on every edge"
    return node.type.quant.scale_log2


def pool_padding_is_zero(node: QMaxPool, lowest_code: int) -> bool:
    """Say whether padding with 0 gives what padding with -128 does."""
    return not any(p for pair in node.padding for p in pair) or lowest_code >= 0


def lowest_code(graph: Graph, name: str) -> int:
    """Return a bound below all codes of a node's result."""
    node = graph[name]
    if isinstance(node, QInput):
        return -128
    lowest = int(node.requantization.lo)  # type: ignore[attr-defined]
    return max(lowest, lowest_code(graph, node.inputs[0])) if isinstance(node, QMaxPool) else lowest


def _scales(graph: Graph, node: Node) -> tuple[str, str] | None:
    quant = node.type.quant
    assert quant is not None, "a quantized graph has a code on every edge"
    try:
        ours = quant.scale_log2
    except IRError:
        return f"its scale {quant.scale:.6g} is no power of two, as ap_fixed needs", POWER_OF_TWO
    if quant.zero_point:
        return f"its zero point is {quant.zero_point}, and ap_fixed has none", POWER_OF_TWO
    if isinstance(node, QInput):
        return None
    requantization = node.requantization  # type: ignore[attr-defined]
    if exponents(requantization.multiplier) is None:
        return "a multiplier is no power of two, as ap_fixed needs", POWER_OF_TWO
    for position, name in enumerate(node.inputs):
        quant = graph[name].type.quant
        assert quant is not None, "a quantized graph has a code on every edge"
        if quant.zero_point or np.frexp(quant.scale)[0] != 0.5:
            return None  # its producer says so
        if position == 0 and not isinstance(node, QAdd):
            continue
        factor = requantization.residual_multiplier if position else requantization.multiplier
        real = factor * 2.0 ** (ours - quant.scale_log2) / 2.0**requantization.shift
        if (real != 1).any():
            return f"the operand {name!r} loses bits before it is added", AMARANTH
    return None


def _operation(graph: Graph, node: Node, io_type: IoType) -> tuple[str, str] | None:
    if isinstance(node, QMaxPool):
        return _max_pool(graph, node, io_type)
    if not isinstance(node, (QInput, QConv, QAvgPool, QAdd)):
        return f"hls4ml has nothing for {node.op}", AMARANTH
    return None


def _max_pool(graph: Graph, node: QMaxPool, io_type: IoType) -> tuple[str, str] | None:
    if node.dilation != (1, 1):
        return f"hls4ml has no max pool with dilation {node.dilation}", AMARANTH
    if any(max(node.padding[axis]) >= node.kernel[axis] for axis in (0, 1)):
        return "a window of the max pool lies in the padding alone", AMARANTH
    trivial = node.kernel == node.stride == (1, 1)
    if io_type == "io_parallel" or trivial:
        return None
    if node.kernel != node.stride:
        reason = f"hls4ml streams no max pool of kernel {node.kernel} and stride {node.stride}"
        return reason + ", only equal ones", "try io_parallel, or " + AMARANTH[4:]
    if not pool_padding_is_zero(node, lowest_code(graph, node.inputs[0])):
        reason = "hls4ml pads a streamed max pool with 0, and its input can be negative"
        return reason, "try io_parallel, or " + AMARANTH[4:]
    return None
