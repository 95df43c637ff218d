# SPDX-License-Identifier: Apache-2.0
"""The IR room: the rules of each level, checked at each boundary."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hwgen.arch import numerics
from hwgen.ir import nodes as n
from hwgen.ir import quantized as q
from hwgen.ir.graph import Graph
from hwgen.ir.types import IRError, Level

LEVELS: dict[Level, tuple[type[n.Node], ...]] = {
    "float": (
        n.Input,
        n.Conv2d,
        n.BatchNorm,
        n.Clamp,
        n.Linear,
        n.MaxPool,
        n.AvgPool,
        n.Flatten,
        n.Add,
    ),
    "fused": (n.Input, n.Conv2d, n.MaxPool, n.AvgPool, n.Add),
    "quantized": (q.QInput, q.QConv, q.QDepthwise, q.QMaxPool, q.QAvgPool, q.QAdd),
}


def verify(graph: Graph) -> Graph:
    """Check every rule of the graph's level and return the graph.

    Raises
    ------
    IRError
        Naming the first node that breaks a rule, and where it came from.
    """
    if graph.level not in LEVELS:
        raise IRError(f"level must be one of {', '.join(LEVELS)}, not {graph.level!r}")
    allowed = LEVELS[graph.level]
    seen: dict[str, n.Node] = {}
    for node in graph.nodes:
        if type(node) not in allowed:
            names = ", ".join(kind.__name__ for kind in allowed)
            raise IRError(f"{node.where()} may not be in a {graph.level} graph, only {names} may")
        if node.name in seen:
            raise IRError(f"{node.where()} bears a name that is taken")
        missing = [name for name in node.inputs if name not in seen]
        if missing:
            raise IRError(f"{node.where()} reads {missing[0]!r}, which does not come before it")
        try:
            _check_arity(node, graph.level)
            shape = node.infer_shape(*(seen[name].type.shape for name in node.inputs))
            if shape != node.type.shape:
                raise IRError(f"declares the shape {node.type.shape}, but computes {shape}")
            _CHECKS[graph.level](node, tuple(seen[name] for name in node.inputs))
        except IRError as error:
            raise IRError(f"{node.where()}: {error}") from None
        seen[node.name] = node
    for name in (*graph.inputs, *graph.outputs):
        if name not in seen:
            raise IRError(f"the graph's input or output {name!r} does not exist")
    declared = {node.name for node in graph.nodes if isinstance(node, (n.Input, q.QInput))}
    if declared != set(graph.inputs):
        raise IRError(f"inputs must be {sorted(declared)}, not {sorted(graph.inputs)}")
    if not graph.outputs:
        raise IRError("a graph must have an output, but it has none")
    return graph


def _check_arity(node: n.Node, level: Level) -> None:
    if isinstance(node, (n.Input, q.QInput)):
        wanted: tuple[int, ...] = (0,)
    elif isinstance(node, (n.Add, q.QAdd)):
        wanted = (2,)
    elif isinstance(node, (n.Conv2d, q.QConv)) and level != "float":
        wanted = (1, 2)
    else:
        wanted = (1,)
    if len(node.inputs) not in wanted:
        raise IRError(f"must read {' or '.join(map(str, wanted))} nodes, not {len(node.inputs)}")


def _check_float(node: n.Node, inputs: tuple[n.Node, ...]) -> None:
    _check_float_types(node)
    if getattr(node, "clamp", None) is not None:
        raise IRError("a clamp may not be fused at the float level")


def _check_fused(node: n.Node, inputs: tuple[n.Node, ...]) -> None:
    _check_float_types(node)
    clamp = getattr(node, "clamp", None)
    if clamp is not None and not clamp[0] < clamp[1]:
        raise IRError(f"clamp must rise, not {clamp!r}")


def _check_float_types(node: n.Node) -> None:
    if node.type.dtype != "float32" or node.type.quant is not None:
        raise IRError(f"the result must be float32 without a code, not {node.type}")
    for name in ("weight", "bias", "mean", "variance"):
        array = getattr(node, name, None)
        if array is not None and not np.isfinite(array).all():
            raise IRError(f"{name} must be finite, but holds NaN or infinity")


def _check_quantized(node: n.Node, inputs: tuple[n.Node, ...]) -> None:
    if node.type.dtype != "int8" or node.type.quant is None:
        raise IRError(f"the result must be int8 with a code, not {node.type}")
    if isinstance(node, q.QInput):
        return
    requant: q.Requantization = node.requantization  # type: ignore[attr-defined]
    _check_requantization(node, requant)
    source = inputs[0].type.quant
    assert source is not None, "inputs were checked before"
    if isinstance(node, q.QMaxPool):
        if node.type.quant != source:
            raise IRError("a max pool must keep the code of its input")
        if (requant.multiplier != 1).any() or requant.shift.any() or requant.zero_point:
            raise IRError("a max pool's requantization must be the identity")
        return
    if requant.zero_point != node.type.quant.zero_point:
        raise IRError(f"requantizes to zero point {requant.zero_point}, not to {node.type}")
    if (len(inputs) == 2) != (requant.residual_multiplier is not None):
        raise IRError("must have a residual multiplier exactly with a residual")
    if len(inputs) == 2:
        residual = inputs[1].type.quant
        assert residual is not None, "inputs were checked before"
        if requant.residual_zero_point != residual.zero_point:
            raise IRError("must have the residual's own zero point")
    if isinstance(node, q.QConv):
        _check_conv(node, source.zero_point)
    elif isinstance(node, q.QAvgPool):
        if node.bias != -source.zero_point * node.kernel[0] * node.kernel[1]:
            raise IRError("bias must be -zero_point * kh * kw")
    elif isinstance(node, q.QAdd) and node.bias != -source.zero_point:
        raise IRError("bias must be -zero_point of the first operand")


def _check_requantization(node: n.Node, requant: q.Requantization) -> None:
    channels = node.type.shape[0]
    limits = (
        ("multiplier", requant.multiplier, 2**numerics.MULTIPLIER_BITS - 1),
        ("shift", requant.shift, numerics.SHIFT_MAX),
        (
            "residual_multiplier",
            requant.residual_multiplier,
            2**numerics.RESIDUAL_MULTIPLIER_BITS - 1,
        ),
    )
    for name, array, highest in limits:
        if array is None:
            continue
        if array.shape != (channels,):
            raise IRError(f"{name} must have the shape ({channels},), not {array.shape}")
        if array.min() < 0 or array.max() > highest:
            raise IRError(f"{name} must be in 0..{highest}, not {array.min()}..{array.max()}")
    if not -128 <= requant.lo <= requant.hi <= 127:
        raise IRError(f"lo and hi must rise in -128..127, not {requant.lo}..{requant.hi}")


def _check_conv(node: q.QConv, zero_point: int) -> None:
    if node.weight.size and node.weight.min() < -127:
        raise IRError("weights must be in -127..127, not -128")
    magnitude = np.abs(node.weight.astype(np.int64)).reshape(len(node.weight), -1).sum(axis=1)
    # A partial sum starts from the bias and may pass through the extreme of any subset of taps.
    worst = int((128 * magnitude + np.abs(node.bias.astype(np.int64))).max())
    if worst >= 2**31:
        raise IRError(f"the accumulator must stay below 2**31, but can reach {worst}")


_CHECKS: dict[Level, Callable[[n.Node, tuple[n.Node, ...]], None]] = {
    "float": _check_float,
    "fused": _check_fused,
    "quantized": _check_quantized,
}
