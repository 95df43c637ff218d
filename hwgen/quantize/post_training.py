# SPDX-License-Identifier: Apache-2.0
"""The quantization room: from a fused float graph and a few images to integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwgen.arch import numerics
from hwgen.ir import (
    Add,
    AvgPool,
    Conv2d,
    Graph,
    Input,
    IRError,
    MaxPool,
    Node,
    QAdd,
    QAvgPool,
    QConv,
    QDepthwise,
    QInput,
    QMaxPool,
    QuantParams,
    Requantization,
    TensorType,
    verify,
    visit,
)
from hwgen.quantize.equalize import equalize, pad_divisors
from hwgen.quantize.multipliers import PrecisionError, choose_multipliers, smallest_factor
from hwgen.quantize.observers import Histogram, MinMax, Observer, Scheme, observer_named

if TYPE_CHECKING:
    import torch

MIN_CALIBRATION_IMAGES = 4


class QuantizationError(ValueError):
    """A layer that cannot be brought to int8; the message names it and says what to try."""


def quantize_model(
    module: torch.nn.Module,
    example_input: torch.Tensor,
    calibration: Any,
    *,
    scheme: Scheme = "affine",
    observer: str | Observer = "mse",
    **options: Any,
) -> Graph:
    """Import, fuse and quantize a torch module; see `hwgen.frontend.from_torch` and `quantize`."""
    from hwgen.frontend import from_torch
    from hwgen.passes.pipeline import to_fused

    fused = to_fused(from_torch(module, example_input))
    return quantize(fused, calibration, scheme=scheme, observer=observer, **options)


def quantize(
    graph: Graph,
    calibration: Any,
    *,
    scheme: Scheme = "affine",
    observer: str | Observer = "mse",
    bias_correction: bool = False,
    equalization: bool = False,
) -> Graph:
    """Quantize a fused graph to int8 with post-training calibration.

    Parameters
    ----------
    graph
        At the fused level (`hwgen.passes.pipeline.to_fused`).
    calibration
        float32 (N, C, H, W), array or tensor, N >= 4: images as the network will see them,
        normalised alike. A few hundred do.
    scheme
        ``affine``: any scale, zero points. ``power_of_two``: scales are powers of two and zero
        points 0, so that every multiplier is a power of two.
    observer
        ``minmax``, ``percentile`` or ``mse``, or one of `hwgen.quantize.observers`. The graph's
        outputs always keep all of their range: clipped logits would tie.
    bias_correction
        Take the mean error of the weights' rounding out of the bias (Nagel et al., ICCV 2019,
        section 4.2).
    equalization
        Balance channel ranges between layers first (same paper, section 4.1).

    Raises
    ------
    ValueError
        For calibration images of the wrong shape or type, too few, or with NaN or infinity.
    QuantizationError
        For a layer that int8 cannot hold.
    """
    graph, codes, means = prepare(graph, calibration, scheme, observer, equalization)
    return quantize_with(graph, codes, scheme, means if bias_correction else None)


def prepare(
    graph: Graph,
    calibration: Any,
    scheme: Scheme,
    observer: str | Observer,
    equalization: bool,
) -> tuple[Graph, dict[str, QuantParams], dict[str, NDArray[np.float64]]]:
    """Return what `quantize` gives to `quantize_with`: the eased graph, its codes and means."""
    if graph.level != "fused":
        raise IRError(f"graph must be at the fused level, not {graph.level}; run to_fused")
    if scheme not in ("affine", "power_of_two"):
        raise ValueError(f"scheme must be 'affine' or 'power_of_two', not {scheme!r}")
    images = _checked_calibration(graph, calibration)
    if equalization:
        graph = verify(equalize(graph))
    if scheme == "power_of_two":
        graph = verify(pad_divisors(graph))
    return graph, *calibrate(graph, images, scheme, observer_named(observer))


def _checked_calibration(graph: Graph, calibration: Any) -> NDArray[np.float32]:
    if hasattr(calibration, "detach"):
        calibration = calibration.detach().cpu().numpy()
    images = np.asarray(calibration)
    shape = graph[graph.inputs[0]].type.shape
    if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != shape:
        raise ValueError(
            f"calibration must be float32 (N, {', '.join(map(str, shape))}), "
            f"not {images.dtype} {images.shape}; normalise it like the training images"
        )
    if len(images) < MIN_CALIBRATION_IMAGES:
        raise ValueError(
            f"calibration must hold {MIN_CALIBRATION_IMAGES} images or more, not {len(images)}; "
            "try a few hundred from the training set"
        )
    if not np.isfinite(images).all():
        bad = [i for i, image in enumerate(images) if not np.isfinite(image).all()]
        raise ValueError(
            f"calibration must be finite, but {len(bad)} of its images (the first is number "
            f"{bad[0]}) hold NaN or infinity"
        )
    return images


def calibrate(
    graph: Graph, images: NDArray[np.float32], scheme: Scheme, observer: Observer
) -> tuple[dict[str, QuantParams], dict[str, NDArray[np.float64]]]:
    """Return each edge's code, and its mean value a channel (for bias correction).

    The images, float32 (N, C, H, W), go through the graph twice: for the ranges, then for
    histograms. A max pool keeps the code of what it reads.
    """
    seen = {node.name: Histogram() for node in graph.nodes}
    sums = {node.name: np.zeros(node.type.shape[0]) for node in graph.nodes}

    def widen(name: str, values: NDArray[np.float32]) -> None:
        if not np.isfinite(values).all():
            raise QuantizationError(
                f"{graph[name].where()}: calibration images give NaN or infinity here"
            )
        seen[name].widen(values)
        sums[name] += values.mean(axis=(2, 3), dtype=np.float64).sum(axis=0)

    visit(graph, images, widen)
    if not isinstance(observer, MinMax):
        visit(graph, images, lambda name, values: seen[name].count(values))
    codes: dict[str, QuantParams] = {}
    for node in graph.nodes:
        if isinstance(node, MaxPool):
            codes[node.name] = codes[node.inputs[0]]
        else:
            chosen = MinMax() if node.name in graph.outputs else observer
            codes[node.name] = chosen.choose(seen[node.name], scheme)
    return codes, {name: total / len(images) for name, total in sums.items()}


def quantize_with(
    graph: Graph,
    codes: Mapping[str, QuantParams],
    scheme: Scheme,
    means: Mapping[str, NDArray[np.float64]] | None = None,
) -> Graph:
    """Turn a fused graph into integers, given the code of every edge.

    Calibration and quantization-aware training both end here. `means`, the mean of each edge a
    channel, turns bias correction on.
    """
    nodes: list[Node] = []
    for node in graph.nodes:
        inputs = tuple(codes[name] for name in node.inputs)
        try:
            mean = None if means is None else means[node.inputs[0]] if node.inputs else None
            nodes.append(_quantize_node(node, inputs, codes[node.name], scheme, mean))
        except (PrecisionError, OverflowError) as error:
            raise QuantizationError(
                f"{node.where()} cannot be brought to int8: {error}; look for channels without "
                "any effect, or try another observer or calibration set"
            ) from None
    whole = Graph(tuple(nodes), graph.inputs, graph.outputs, "quantized", graph.preprocess)
    return verify(whole)


def _quantize_node(
    node: Node,
    inputs: tuple[QuantParams, ...],
    code: QuantParams,
    scheme: Scheme,
    mean: NDArray[np.float64] | None,
) -> Node:
    channels = node.type.shape[0]
    common: dict[str, Any] = {
        "name": node.name,
        "inputs": node.inputs,
        "type": TensorType(node.type.shape, "int8", code),
        "source": node.source,
    }
    ones = np.ones(channels)
    match node:
        case Input():
            return QInput(**common)
        case Conv2d():
            return _quantize_conv(node, inputs, code, scheme, mean, common)
        case MaxPool():
            lo, hi = _clamp_codes(node.clamp, code)
            identity = Requantization(
                multiplier=np.ones(channels, np.int64),
                shift=np.zeros(channels, np.int64),
                lo=lo,
                hi=hi,
            )
            return QMaxPool(
                **common,
                kernel=node.kernel,
                stride=node.stride,
                padding=node.padding,
                dilation=node.dilation,
                requantization=identity,
            )
        case AvgPool():
            real = ones * (inputs[0].scale / (node.divisor * code.scale))
            return QAvgPool(
                **common,
                kernel=node.kernel,
                stride=node.stride,
                padding=node.padding,
                bias=-inputs[0].zero_point * node.kernel[0] * node.kernel[1],
                requantization=_requantization(real, code, node.clamp, None),
            )
        case Add():
            real = ones * (inputs[0].scale / code.scale)
            return QAdd(
                **common,
                bias=-inputs[0].zero_point,
                requantization=_requantization(real, code, node.clamp, inputs[1]),
            )
    raise IRError(f"{node.where()} has no integer form")


def _clamp_codes(clamp: tuple[float, float] | None, code: QuantParams) -> tuple[int, int]:
    """Return (lo, hi) as codes of the edge."""
    ends = []
    for real, limit in zip(clamp or (-math.inf, math.inf), (-128, 127), strict=True):
        if math.isinf(real):
            ends.append(limit)
        else:
            ends.append(int(numerics.quantize(real, code.scale, code.zero_point)))
    return ends[0], ends[1]


def _requantization(
    real: NDArray[np.float64],
    code: QuantParams,
    clamp: tuple[float, float] | None,
    residual: QuantParams | None,
) -> Requantization:
    factor = None if residual is None else residual.scale / code.scale
    multiplier, shift, residual_multiplier = choose_multipliers(real, factor)
    lo, hi = _clamp_codes(clamp, code)
    return Requantization(
        multiplier=multiplier,
        shift=shift,
        zero_point=code.zero_point,
        lo=lo,
        hi=hi,
        residual_multiplier=residual_multiplier,
        residual_zero_point=0 if residual is None else residual.zero_point,
    )


def _quantize_conv(
    node: Conv2d,
    inputs: tuple[QuantParams, ...],
    code: QuantParams,
    scheme: Scheme,
    mean: NDArray[np.float64] | None,
    common: dict[str, Any],
) -> Node:
    x = inputs[0]
    residual = inputs[1] if len(inputs) > 1 else None
    weight = node.weight.astype(np.float64)
    flat = weight.reshape(len(weight), -1)
    factor = None if residual is None else residual.scale / code.scale
    scale = _weight_scales(flat, node.bias.astype(np.float64), x, code, factor, scheme)
    levels = np.floor(flat / scale[:, None] + 0.5)
    weight_codes = np.clip(levels, -127, 127).reshape(weight.shape)
    bias = node.bias.astype(np.float64)
    if mean is not None:
        bias = bias - _mean_error(node, weight_codes, scale, mean)
    depthwise = node.groups > 1 and weight.shape[1] == 1 and len(weight) == node.groups
    if depthwise:
        stored = weight_codes[:, 0]
    else:
        stored = _dense(weight_codes, node.groups).transpose(0, 2, 3, 1)
    zero_shift = x.zero_point * weight_codes.reshape(len(weight), -1).sum(axis=1)
    bias_codes = np.floor(bias / (x.scale * scale) + 0.5) - zero_shift
    if np.abs(bias_codes).max() >= 2**31:
        raise OverflowError(f"a bias needs {np.abs(bias_codes).max():.3g}, more than 32 bits")
    real = x.scale * scale / code.scale
    return (QDepthwise if depthwise else QConv)(
        **common,
        weight=stored.astype(np.int8),
        bias=bias_codes.astype(np.int32),
        weight_scale=scale,
        stride=node.stride,
        padding=node.padding,
        dilation=node.dilation,
        requantization=_requantization(real, code, node.clamp, residual),
    )


def _weight_scales(
    flat: NDArray[np.float64],
    bias: NDArray[np.float64],
    x: QuantParams,
    code: QuantParams,
    residual_factor: float | None,
    scheme: Scheme,
) -> NDArray[np.float64]:
    """Return the scale of each output channel: the largest weight is 127.

    Coarser where needed, so that the multiplier keeps its bits beside the residual's and the bias
    fits (half of the) 32 bits.
    """
    scale = np.abs(flat).max(axis=1) / 127
    smallest = smallest_factor(residual_factor) * code.scale / x.scale
    scale = np.maximum(scale, np.maximum(smallest, np.abs(bias) / (x.scale * 2**30)))
    if scheme == "affine":
        return scale
    return 2.0 ** np.ceil(np.log2(scale) - 1e-12)


def _mean_error(
    node: Conv2d,
    weight_codes: NDArray[np.float64],
    scale: NDArray[np.float64],
    mean: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the mean error (O,) that rounded weights cause for inputs of mean (C,)."""
    error = weight_codes * scale[:, None, None, None] - node.weight
    per_group = mean.reshape(node.groups, 1, -1)
    taps = error.sum(axis=(2, 3)).reshape(node.groups, -1, error.shape[1])
    return (taps * per_group).sum(axis=2).reshape(-1)


def _dense(weight: NDArray[np.float64], groups: int) -> NDArray[np.float64]:
    """Write grouped weights (O, I / groups, kh, kw) as (O, I, kh, kw) with exact zeros."""
    if groups == 1:
        return weight
    outputs, inputs, *kernel = weight.shape
    dense = np.zeros((outputs, inputs * groups, *kernel))
    per_group = outputs // groups
    for g in range(groups):
        rows = slice(g * per_group, (g + 1) * per_group)
        dense[rows, g * inputs : (g + 1) * inputs] = weight[rows]
    return dense
