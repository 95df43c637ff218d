# SPDX-License-Identifier: Apache-2.0
"""The IR room: one frozen dataclass an operation of the float and fused levels.

Weights are (O, I / groups, kh, kw) float32 here and arrays are held read-only.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.ir.types import IRError, Padding, Pair, Shape, Source, TensorType

NO_PADDING: Padding = ((0, 0), (0, 0))
MAX_SPAN = 64
"""Largest (kernel - 1) * dilation + 1 along an axis that the machine addresses."""
MAX_STRIDE = 15
"""Largest stride along an axis with more than one output position."""


def window_shape(
    shape: Shape, channels: int, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair
) -> Shape:
    """Return (channels, H_out, W_out) of a window sliding over `shape`; raises `IRError`."""
    sizes = []
    for axis in (0, 1):
        span = (kernel[axis] - 1) * dilation[axis] + 1
        padded = shape[axis + 1] + sum(padding[axis])
        if span > padded:
            raise IRError(
                f"the kernel spans {span} positions along {'yx'[axis]} but the padded input "
                f"has only {padded}"
            )
        sizes.append((padded - span) // stride[axis] + 1)
    return channels, sizes[0], sizes[1]


def frozen_array(value: Any, dtype: Any) -> NDArray[Any]:
    """Return `value` as a read-only, contiguous array, copied if somebody could write to it."""
    array = np.ascontiguousarray(value, dtype=dtype)
    if array.flags.writeable:
        array = array.copy() if array is value or array.base is not None else array
        array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """An operation with one result, which bears the node's name.

    Attributes
    ----------
    name
        Unique in its graph.
    inputs
        Names of the nodes whose results are read, in the operation's own order.
    type
        Of the result.
    source
        Where the node came from in the user's program.
    """

    name: str
    inputs: tuple[str, ...] = ()
    type: TensorType
    source: Source = field(default=Source())

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Shape of the result for these input shapes; `IRError` if they do not fit."""
        raise NotImplementedError

    @property
    def op(self) -> str:
        """Name of the operation."""
        return type(self).__name__

    def describe(self) -> str:
        """Return the attributes as one short text, arrays by their shape."""
        hidden = {f.name for f in dataclasses.fields(Node)}
        parts = []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in hidden or value is None:
                continue
            if isinstance(value, np.ndarray):
                value = f"{value.dtype}{list(value.shape)}"
            parts.append(f"{item.name}={value}")
        return " ".join(parts)

    def updated(self, **changes: Any) -> Any:
        """Return a copy with these fields changed."""
        return dataclasses.replace(self, **changes)

    def where(self) -> str:
        """Return the node's name and source, for messages."""
        return f"{self.op} {self.name!r}" + (f" ({self.source})" if str(self.source) else "")


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Node):
    """An image given by the user."""

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Return the declared shape."""
        return self.type.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv2d(Node):
    """Convolution; at the fused level with an optional residual and clamp behind it.

    ``result = clamp(conv(inputs[0]) + bias + inputs[1])``. Padding is with zeros.

    Attributes
    ----------
    weight
        float32 (O, I / groups, kh, kw).
    bias
        float32 (O,).
    clamp
        (lo, hi) or None; fused level only, as is a second input (the residual).
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    stride: Pair = (1, 1)
    padding: Padding = NO_PADDING
    dilation: Pair = (1, 1)
    groups: int = 1
    clamp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Hold the arrays read-only."""
        object.__setattr__(self, "weight", frozen_array(self.weight, np.float32))
        object.__setattr__(self, "bias", frozen_array(self.bias, np.float32))

    @property
    def kernel(self) -> Pair:
        """(kh, kw)."""
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def residual(self) -> str | None:
        """Name of the residual input, or None."""
        return self.inputs[1] if len(self.inputs) > 1 else None

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Return the result's shape; a residual must have exactly that shape."""
        channels = self.weight.shape[1] * self.groups
        if inputs[0][0] != channels:
            raise IRError(f"the weights want {channels} input channels, not {inputs[0][0]}")
        if self.weight.shape[0] % self.groups or self.bias.shape != self.weight.shape[:1]:
            raise IRError(
                f"weight {self.weight.shape} does not fit bias {self.bias.shape} and "
                f"{self.groups} groups"
            )
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
class BatchNorm(Node):
    """``(x - mean) / sqrt(variance + epsilon) * weight + bias`` a channel (float level)."""

    mean: NDArray[np.float32]
    variance: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        """Hold the arrays read-only."""
        for name in ("mean", "variance", "weight", "bias"):
            object.__setattr__(self, name, frozen_array(getattr(self, name), np.float32))

    def affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (gain, offset) of ``x * gain + offset``, float64 (C,)."""
        gain = self.weight.astype(np.float64) / np.sqrt(
            self.variance.astype(np.float64) + self.epsilon
        )
        return gain, self.bias.astype(np.float64) - self.mean.astype(np.float64) * gain

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Return the input's shape."""
        if inputs[0][0] != len(self.mean):
            raise IRError(f"normalises {len(self.mean)} channels, not {inputs[0][0]}")
        return inputs[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Clamp(Node):
    """``min(max(x, lo), hi)``: ReLU is (0, inf), ReLU6 is (0, 6) (float level)."""

    lo: float
    hi: float

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Return the input's shape."""
        if not self.lo < self.hi:
            raise IRError(f"lo must be below hi, not {self.lo} and {self.hi}")
        return inputs[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Node):
    """``weight @ x + bias`` on an (F, 1, 1) input; weight float32 (O, F) (float level)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Hold the arrays read-only."""
        object.__setattr__(self, "weight", frozen_array(self.weight, np.float32))
        object.__setattr__(self, "bias", frozen_array(self.bias, np.float32))

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Return (O, 1, 1)."""
        if inputs[0] != (self.weight.shape[1], 1, 1):
            raise IRError(f"wants {self.weight.shape[1]} features, not {inputs[0]}")
        if self.bias.shape != self.weight.shape[:1]:
            raise IRError(f"weight {self.weight.shape} does not fit bias {self.bias.shape}")
        return self.weight.shape[0], 1, 1


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Node):
    """Largest value of each window; padding never wins. A 1x1 pool is a bare clamp (fused)."""

    kernel: Pair
    stride: Pair
    padding: Padding = NO_PADDING
    dilation: Pair = (1, 1)
    clamp: tuple[float, float] | None = None

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Return the result's shape."""
        return window_shape(
            inputs[0], inputs[0][0], self.kernel, self.stride, self.padding, self.dilation
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class AvgPool(Node):
    """Sum of each window over `divisor`; padding holds zeros and counts.

    A global average pool has kernel (H, W) and divisor H * W.
    """

    kernel: Pair
    stride: Pair
    padding: Padding = NO_PADDING
    divisor: int
    clamp: tuple[float, float] | None = None

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Return the result's shape."""
        return window_shape(inputs[0], inputs[0][0], self.kernel, self.stride, self.padding, (1, 1))


@dataclass(frozen=True, eq=False, kw_only=True)
class Flatten(Node):
    """(C, H, W) -> (C * H * W, 1, 1), in torch's order (float level)."""

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Return one long vector."""
        return math.prod(inputs[0]), 1, 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Node):
    """``clamp(inputs[0] + inputs[1])``; the clamp at the fused level only."""

    clamp: tuple[float, float] | None = None

    def infer_shape(self, *inputs: Shape) -> Shape:
        """Return the operands' shape, which must be one."""
        if inputs[0] != inputs[1]:
            raise IRError(f"adds {inputs[0]} to {inputs[1]}; both must have one shape")
        return inputs[0]
