# SPDX-License-Identifier: Apache-2.0
"""The tests room: quantized graphs built by hand, for tests below the front end."""

from __future__ import annotations

import numpy as np

from hwgen.ir.graph import Graph
from hwgen.ir.quantized import (
    QAvgPool,
    QConv,
    QDepthwise,
    QInput,
    QMaxPool,
    Requantization,
)
from hwgen.ir.types import QuantParams, Shape, TensorType


def tensor_type(shape: Shape, zero_point: int = 0) -> TensorType:
    """Type of an int8 edge."""
    return TensorType(shape=shape, dtype="int8", quant=QuantParams(0.1, zero_point))


def requantization(
    rng: np.random.Generator, channels: int, zero_point: int, residual: bool = False
) -> Requantization:
    """Random multipliers and shifts that keep most results inside int8."""
    return Requantization(
        multiplier=rng.integers(1000, 1 << 16, channels),
        shift=rng.integers(21, 25, channels),
        zero_point=zero_point,
        residual_multiplier=rng.integers(0, 1 << 24, channels) if residual else None,
        residual_zero_point=int(rng.integers(-9, 9)) if residual else 0,
    )


def conv(
    rng: np.random.Generator,
    name: str,
    source: Graph | QInput | QConv,
    out: int,
    kernel: int = 3,
    stride: int = 1,
    residual: str | None = None,
    keep: np.ndarray | None = None,
) -> QConv:
    """Return a "same" convolution behind `source`; `keep` (O, kh, kw) masks its kernels."""
    shape = source.type.shape
    weight = rng.integers(-127, 128, (out, kernel, kernel, shape[0])).astype(np.int8)
    if keep is not None:
        weight = weight * keep[..., None].astype(np.int8)
    zero_point = int(rng.integers(-20, 20))
    pad = kernel // 2
    size = tuple((s + 2 * pad - kernel) // stride + 1 for s in shape[1:])
    return QConv(
        name=name,
        inputs=(source.name,) if residual is None else (source.name, residual),
        type=tensor_type((out, size[0], size[1]), zero_point),
        weight=weight,
        bias=rng.integers(-1000, 1000, out),
        weight_scale=np.ones(out),
        stride=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        requantization=requantization(rng, out, zero_point, residual is not None),
    )


def centre_mask(out: int, kernel: int, reduced: np.ndarray) -> np.ndarray:
    """Masks (O, kernel, kernel): the filters `reduced` keep their centre alone."""
    keep = np.ones((out, kernel, kernel), dtype=bool)
    keep[reduced] = False
    keep[reduced, kernel // 2, kernel // 2] = True
    return keep


def every_operation(rng: np.random.Generator, channels: int, height: int, width: int) -> Graph:
    """Return a graph with every operation, a residual that is its own input, two outputs."""
    source = QInput(name="x", type=tensor_type((channels, height, width), -5))
    a = conv(rng, "a", source, 20)
    b = conv(rng, "b", a, 33, keep=centre_mask(33, 3, rng.random(33) < 0.5))
    c = conv(rng, "c", b, 33, kernel=1, residual="b")
    d = QDepthwise(
        name="d",
        inputs=("c",),
        type=tensor_type((33, height, width)),
        weight=rng.integers(-127, 128, (33, 5, 3)).astype(np.int8),
        bias=rng.integers(-99, 99, 33),
        weight_scale=np.ones(33),
        padding=((2, 2), (1, 1)),
        requantization=requantization(rng, 33, 0),
    )
    pooled = (33, height // 2, width // 2)
    m = QMaxPool(
        name="m",
        inputs=("d",),
        type=tensor_type(pooled),
        kernel=(2, 2),
        stride=(2, 2),
        requantization=Requantization(multiplier=np.ones(33), shift=np.zeros(33), lo=-100, hi=90),
    )
    v = QAvgPool(
        name="v",
        inputs=("m",),
        type=tensor_type((33, 1, 1), 7),
        kernel=pooled[1:],
        stride=(1, 1),
        bias=0,
        requantization=requantization(rng, 33, 7),
    )
    f = conv(rng, "f", v, 10, kernel=1)
    return Graph((source, a, b, c, d, m, v, f), ("x",), ("f", "m"), "quantized")
