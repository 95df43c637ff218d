# SPDX-License-Identifier: Apache-2.0
"""The IR room: what a graph computes, in float32 (through torch) and in integers (numpy alone)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwgen.arch import numerics
from hwgen.ir import nodes as n
from hwgen.ir import quantized as q
from hwgen.ir.graph import Graph
from hwgen.ir.types import IRError

if TYPE_CHECKING:
    import torch

FloatArray = NDArray[np.float32]
Int8Array = NDArray[np.int8]


def evaluate(graph: Graph, x: ArrayLike, *, batch: int = 64) -> dict[str, FloatArray]:
    """Compute the outputs of a float or fused graph with one input.

    Parameters
    ----------
    x
        float32 (N, C, H, W).
    batch
        Images computed at once.

    Returns
    -------
    {output name: float32 (N, C, H, W)}; a vector of F features is (N, F, 1, 1).
    """
    parts: dict[str, list[FloatArray]] = {name: [] for name in graph.outputs}

    def keep(name: str, value: FloatArray) -> None:
        if name in parts:
            parts[name].append(value)

    visit(graph, x, keep, batch=batch)
    return {name: np.concatenate(values) for name, values in parts.items()}


def visit(
    graph: Graph, x: ArrayLike, callback: Callable[[str, FloatArray], None], *, batch: int = 64
) -> None:
    """Compute every edge of a float or fused graph, calling ``callback(name, value)`` a batch.

    Values are float32 (N, C, H, W) and are dropped as soon as nothing reads them any more.
    """
    import torch

    if graph.level == "quantized":
        raise IRError("a quantized graph computes integers; use evaluate_integer")
    images = _checked(graph, np.asarray(x), "float32")
    last_use = {name: node.name for node in graph.nodes for name in node.inputs}
    with torch.no_grad():
        for start in range(0, len(images), batch):
            values: dict[str, torch.Tensor] = {}
            for node in graph.nodes:
                if isinstance(node, n.Input):
                    values[node.name] = torch.tensor(images[start : start + batch])
                else:
                    values[node.name] = _float_node(node, [values[i] for i in node.inputs])
                callback(node.name, values[node.name].numpy())
                for name in set(node.inputs):
                    if last_use[name] == node.name:
                        del values[name]


def _float_node(node: n.Node, inputs: list[torch.Tensor]) -> torch.Tensor:
    """Compute one float or fused node."""
    import torch
    from torch.nn import functional as F

    def constant(array: NDArray[Any]) -> torch.Tensor:
        return torch.tensor(array)

    x = inputs[0]
    clamp = getattr(node, "clamp", None)
    match node:
        case n.Conv2d():
            x = F.pad(x, (*node.padding[1], *node.padding[0]))
            weight, bias = constant(node.weight), constant(node.bias)
            x = F.conv2d(x, weight, bias, node.stride, 0, node.dilation, node.groups)
            if len(inputs) > 1:
                x = x + inputs[1]
        case n.BatchNorm():
            x = F.batch_norm(
                x,
                constant(node.mean),
                constant(node.variance),
                constant(node.weight),
                constant(node.bias),
                eps=node.epsilon,
            )
        case n.Clamp():
            clamp = (node.lo, node.hi)
        case n.Linear():
            flat = F.linear(x.flatten(1), constant(node.weight), constant(node.bias))
            x = flat[:, :, None, None]
        case n.MaxPool():
            x = F.pad(x, (*node.padding[1], *node.padding[0]), value=float("-inf"))
            x = F.max_pool2d(x, node.kernel, node.stride, 0, node.dilation)
        case n.AvgPool():
            x = F.pad(x, (*node.padding[1], *node.padding[0]))
            x = F.avg_pool2d(x, node.kernel, node.stride, divisor_override=node.divisor)
        case n.Flatten():
            x = x.reshape(len(x), -1, 1, 1)
        case n.Add():
            x = x + inputs[1]
        case _:
            raise IRError(f"{node.where()} cannot be evaluated in float")
    return x if clamp is None else torch.clamp(x, clamp[0], clamp[1])


def evaluate_integer(
    graph: Graph, x: ArrayLike, *, batch: int = 64, keep_all: bool = False
) -> dict[str, Int8Array]:
    """Compute a quantized graph with one input, exactly as the machine does.

    Parameters
    ----------
    x
        int8 codes (N, H, W, C).
    batch
        Images computed at once.
    keep_all
        Return every edge, not only the outputs.

    Returns
    -------
    {name: int8 codes (N, H, W, C)}.
    """
    if graph.level != "quantized":
        raise IRError(f"a {graph.level} graph computes floats; quantize it first")
    images = _checked(graph, np.asarray(x), "int8")
    wanted = [node.name for node in graph.nodes] if keep_all else list(graph.outputs)
    parts: dict[str, list[Int8Array]] = {name: [] for name in wanted}
    last_use = {name: node.name for node in graph.nodes for name in node.inputs}
    for start in range(0, len(images), batch):
        values: dict[str, Int8Array] = {}
        for node in graph.nodes:
            if isinstance(node, q.QInput):
                values[node.name] = images[start : start + batch]
            else:
                values[node.name] = integer_node(
                    node,
                    [values[name] for name in node.inputs],
                    graph[node.inputs[0]].type.quant.zero_point,  # type: ignore[union-attr]
                )
            if node.name in parts:
                parts[node.name].append(values[node.name])
            for name in set(node.inputs):
                if last_use[name] == node.name:
                    del values[name]
    return {name: np.concatenate(codes) for name, codes in parts.items()}


def accumulate(node: n.Node, x: Int8Array, zero_point: int) -> NDArray[np.int32]:
    """Accumulators int32 (N, H, W, C) of a quantized node, before requantization.

    `x` is int8 (N, H, W, C), the node's first input, and `zero_point` that edge's.
    """
    match node:
        case q.QDepthwise():
            convolve = numerics.depthwise_conv2d
        case q.QConv():
            convolve = numerics.conv2d
        case q.QMaxPool():
            pooled = numerics.max_pool2d(x, node.kernel, node.stride, node.padding, node.dilation)
            return pooled.astype(np.int32)
        case q.QAvgPool():
            return numerics.sum_pool2d(
                x, node.kernel, node.stride, node.padding, node.bias, zero_point
            )
        case q.QAdd():
            return x.astype(np.int32) + np.int32(node.bias)
        case _:
            raise IRError(f"{node.where()} cannot be evaluated in integers")
    return convolve(x, node.weight, node.bias, node.stride, node.padding, node.dilation, zero_point)


def integer_node(node: n.Node, inputs: list[Int8Array], zero_point: int) -> Int8Array:
    """Codes int8 (N, H, W, C) of a quantized node from those of its inputs."""
    acc = accumulate(node, inputs[0], zero_point)
    residual = inputs[1] if len(inputs) > 1 else None
    return node.requantization.apply(acc, residual)  # type: ignore[attr-defined]


def run_quantized(graph: Graph, x: ArrayLike, *, batch: int = 64) -> FloatArray:
    """Quantize images, evaluate, and dequantize the first output: the float view of the integers.

    Parameters
    ----------
    x
        float32 (N, C, H, W).

    Returns
    -------
    float32 (N, F) for a vector, else (N, C, H, W).
    """
    codes = quantize_input(graph, x)
    name = graph.outputs[0]
    result = evaluate_integer(graph, codes, batch=batch)[name].transpose(0, 3, 1, 2)
    code = graph[name].type.quant
    assert code is not None, "a quantized graph has a code on every edge"
    real = numerics.dequantize(result, code.scale, code.zero_point)
    return real[:, :, 0, 0] if real.shape[2:] == (1, 1) else real


def quantize_input(graph: Graph, x: ArrayLike) -> Int8Array:
    """Turn float32 (N, C, H, W) images into the int8 (N, H, W, C) codes of the graph's input."""
    code = graph[graph.inputs[0]].type.quant
    if code is None:
        raise IRError(f"a {graph.level} graph has no code for its input; quantize it first")
    images = np.asarray(x).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(numerics.quantize(images, code.scale, code.zero_point))


def _checked(graph: Graph, x: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return `x` if it is a batch for the graph's one input."""
    if len(graph.inputs) != 1:
        raise IRError(f"a graph must have one input to be evaluated, not {len(graph.inputs)}")
    shape = graph[graph.inputs[0]].type.shape
    order = "N, C, H, W"
    if dtype == "int8":
        shape, order = (shape[1], shape[2], shape[0]), "N, H, W, C"
    if x.dtype != np.dtype(dtype) or x.ndim != 4 or x.shape[1:] != shape or not len(x):
        raise ValueError(
            f"x must be {dtype} ({order}) = (N, {', '.join(map(str, shape))}), "
            f"not {x.dtype} {x.shape}"
        )
    return x
