# SPDX-License-Identifier: Apache-2.0
"""The IR room: one frozen dataclass an operation of the quantized (integer) level.

Arrays are held read-only. Tensors are still typed (C, H, W), but they are computed channel last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwgen.arch import numerics
from hwgen.ir.nodes import NO_PADDING, Node, frozen_array, window_shape
from hwgen.ir.types import IRError, Padding, Pair, Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Requantization:
    """From accumulators (and a residual) to int8 codes, by `hwgen.arch.numerics.requantize`.

    Attributes
    ----------
    multiplier, shift
        int64 (C,): 0..65535 and 0..47.
    zero_point, lo, hi
        Of the result, -128..127.
    residual_multiplier
        int64 (C,), 0..2**24-1, or None without a residual.
    residual_zero_point
        Zero point of the residual's edge.
    """

    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    zero_point: int = 0
    lo: int = numerics.INT8_MIN
    hi: int = numerics.INT8_MAX
    residual_multiplier: NDArray[np.int64] | None = None
    residual_zero_point: int = 0

    def __post_init__(self) -> None:
        """Hold the arrays read-only."""
        for name in ("multiplier", "shift", "residual_multiplier"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, frozen_array(getattr(self, name), np.int64))

    def __str__(self) -> str:
        """Return the ranges of the arrays and the clamp."""
        text = (
            f"[{self.multiplier.min()}..{self.multiplier.max()}"
            f" >> {self.shift.min()}..{self.shift.max()}"
        )
        if self.residual_multiplier is not None:
            low, high = self.residual_multiplier.min(), self.residual_multiplier.max()
            text += f", residual {low}..{high} zp {self.residual_zero_point}"
        return text + f", zp {self.zero_point}, clamp {self.lo}..{self.hi}]"

    def apply(
        self, acc: NDArray[np.int32], residual: NDArray[np.int8] | None = None
    ) -> NDArray[np.int8]:
        """Requantize (…, C) accumulators; `residual` int8 of the same shape where one is used."""
        return numerics.requantize(
            acc,
            self.multiplier,
            self.shift,
            self.zero_point,
            self.lo,
            self.hi,
            residual,
            self.residual_zero_point,
            self.residual_multiplier,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class QInput(Node):
    """int8 codes of an image; ``type.quant`` says how to make them."""

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Return the declared shape."""
        return self.type.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class QConv(Node):
    """Dense convolution, then requantization with the optional residual ``inputs[1]``.

    Attributes
    ----------
    weight
        int8 (O, kh, kw, I), values -127..127. Groups are written out as exact zeros.
    bias
        int32 (O,), with ``-zero_point_in * sum(weight)`` inside.
    weight_scale
        float64 (O,): real weight = code * scale. For reports and other back ends.
    """

    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    weight_scale: NDArray[np.float64]
    stride: Pair = (1, 1)
    padding: Padding = NO_PADDING
    dilation: Pair = (1, 1)
    requantization: Requantization

    def __post_init__(self) -> None:
        """Hold the arrays read-only."""
        object.__setattr__(self, "weight", frozen_array(self.weight, np.int8))
        object.__setattr__(self, "bias", frozen_array(self.bias, np.int32))
        object.__setattr__(self, "weight_scale", frozen_array(self.weight_scale, np.float64))

    @property
    def kernel(self) -> Pair:
        """(kh, kw)."""
        return self.weight.shape[1], self.weight.shape[2]

    @property
    def residual(self) -> str | None:
        """Name of the residual input, or None."""
        return self.inputs[1] if len(self.inputs) > 1 else None

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Return the result's shape; a residual must have exactly that shape."""
        if inputs[0][0] != self.weight.shape[3]:
            raise IRError(f"the weights want {self.weight.shape[3]} channels, not {inputs[0][0]}")
        return self._windowed(inputs)

    def _windowed(self, inputs: tuple[Shape, ...]) -> Shape:
        shape = window_shape(
            inputs[0],
            self.weight.shape[0],
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
        )
        if len(inputs) > 1 and inputs[1] != shape:
            raise IRError(f"the residual must have the shape {shape}, not {inputs[1]}")
        return shape


@dataclass(frozen=True, eq=False, kw_only=True)
class QDepthwise(QConv):
    """Depthwise convolution: as `QConv`, but weight is int8 (C, kh, kw)."""

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Return the result's shape; a residual must have exactly that shape."""
        if inputs[0][0] != self.weight.shape[0]:
            raise IRError(f"the weights want {self.weight.shape[0]} channels, not {inputs[0][0]}")
        return self._windowed(inputs)


@dataclass(frozen=True, eq=False, kw_only=True)
class QMaxPool(Node):
    """Largest code of each window, clamped; the edge's code does not change.

    The requantization is the identity (multiplier 1, shift 0, zero point 0) but for lo and hi.
    Padded positions hold -128 and never win. A 1x1 pool is a bare clamp.
    """

    kernel: Pair
    stride: Pair
    padding: Padding = NO_PADDING
    dilation: Pair = (1, 1)
    requantization: Requantization

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Return the result's shape."""
        return window_shape(
            inputs[0], inputs[0][0], self.kernel, self.stride, self.padding, self.dilation
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class QAvgPool(Node):
    """Sum of each window plus ``bias = -zero_point_in * kh * kw``, then requantization.

    Padded positions hold the input's zero point. The divisor is inside the multiplier.
    """

    kernel: Pair
    stride: Pair
    padding: Padding = NO_PADDING
    bias: int
    requantization: Requantization

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Return the result's shape."""
        return window_shape(inputs[0], inputs[0][0], self.kernel, self.stride, self.padding, (1, 1))


@dataclass(frozen=True, eq=False, kw_only=True)
class QAdd(Node):
    """``requantize(inputs[0] + bias, residual=inputs[1])``, with ``bias = -zero_point`` of [0]."""

    bias: int
    requantization: Requantization

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Return the operands' shape, which must be one."""
        if inputs[0] != inputs[1]:
            raise IRError(f"adds {inputs[0]} to {inputs[1]}; both must have one shape")
        return inputs[0]
