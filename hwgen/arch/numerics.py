# SPDX-License-Identifier: Apache-2.0
"""The contract room: the integer arithmetic, defined once and used by everybody.

Activations and weights are int8, biases and accumulators int32. A layer's result is::

    y = clamp(zero_point + ((acc * multiplier + (r - zero_point_r) * residual_multiplier) >> shift))

with the shift rounding half up (towards plus infinity), a 16 bit unsigned multiplier, a 24 bit
unsigned residual multiplier and a shift of 0 to 47, each one per output channel. The sum in front
of the shift fits 49 bits signed. Images are channel last: (N, H, W, C).

numpy 1.26 and numpy 2 promote differently, so every function casts on entry.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

INT8_MIN = -128
INT8_MAX = 127
BIAS_BITS = 32
MULTIPLIER_BITS = 16
RESIDUAL_MULTIPLIER_BITS = 24
SHIFT_MAX = 47
SHIFT_BITS = 6

Int8Array = NDArray[np.int8]
Int32Array = NDArray[np.int32]
Padding = tuple[tuple[int, int], tuple[int, int]]


def round_half_up_shift(value: NDArray[np.int64], shift: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shift right by `shift` bits (0 or more), rounding half up.

    Equal to ``floor(value / 2**shift + 1/2)``. Half of the divisor is added first, which cannot
    overflow: a sum in front of the shift has 49 bits, half of the largest divisor 46.
    """
    result = value + ((np.int64(1) << shift) >> 1)
    result >>= shift
    return result


def requantize(
    acc: ArrayLike,
    multiplier: ArrayLike,
    shift: ArrayLike,
    zero_point: int,
    lo: int,
    hi: int,
    residual: ArrayLike | None = None,
    residual_zero_point: int = 0,
    residual_multiplier: ArrayLike | None = None,
) -> Int8Array:
    """Turn accumulators into int8 codes, the residual added before the one rounding.

    Parameters
    ----------
    acc
        int32, shape (..., C).
    multiplier, shift, residual_multiplier
        One value a channel, shape (C,): 16 bit unsigned, 0 to 47, 24 bit unsigned.
    zero_point, lo, hi
        Of the result; lo and hi are the clamp (ReLU and ReLU6 live here).
    residual
        int8, same shape as `acc`, or None.

    Returns
    -------
    int8, shape of `acc`.
    """
    total = np.asarray(acc).astype(np.int64)
    total *= np.asarray(multiplier).astype(np.int64)
    if residual is not None:
        if residual_multiplier is None:
            raise ValueError("residual_multiplier must be given with a residual, not None")
        difference = np.asarray(residual).astype(np.int64)
        difference -= int(residual_zero_point)
        difference *= np.asarray(residual_multiplier).astype(np.int64)
        total += difference
    rounded = round_half_up_shift(total, np.asarray(shift).astype(np.int64))
    rounded += int(zero_point)
    return np.clip(rounded, int(lo), int(hi), out=rounded).astype(np.int8)


def quantize(x: ArrayLike, scale: float, zero_point: int) -> Int8Array:
    """Turn float values into int8 codes: ``clip(floor(x / scale + 1/2) + zero_point)``."""
    codes = np.floor(np.asarray(x, dtype=np.float64) / float(scale) + 0.5) + int(zero_point)
    return np.clip(codes, INT8_MIN, INT8_MAX).astype(np.int8)


def dequantize(q: ArrayLike, scale: float, zero_point: int) -> NDArray[np.float32]:
    """Turn int8 codes into float32 values: ``(q - zero_point) * scale``."""
    difference = np.asarray(q).astype(np.int32) - int(zero_point)
    return (difference * np.float64(scale)).astype(np.float32)


def normalize_multiplier(real: float, bits: int = MULTIPLIER_BITS) -> tuple[int, int]:
    """Write a positive real as ``multiplier / 2**shift``, as precisely as `bits` bits allow.

    Returns
    -------
    (multiplier, shift) with multiplier < 2**bits and 0 <= shift <= 47. A real too small for any
    shift becomes a smaller multiplier, at the extreme 0.

    Raises
    ------
    ValueError
        When `real` is negative, not finite, or 2**bits or more.
    """
    if not np.isfinite(real) or real < 0:
        raise ValueError(f"a multiplier must be finite and not negative, not {real!r}")
    if real >= 2**bits - 0.5:
        raise ValueError(
            f"a multiplier must be below 2**{bits}, not {real!r}; the scales of this layer's "
            "input and output are too far apart, try another observer"
        )
    shift = SHIFT_MAX
    while shift > 0 and round(real * 2.0**shift) >= 2**bits:
        shift -= 1
    return round(real * 2.0**shift), shift


def output_size(size: int, kernel: int, stride: int, pad: tuple[int, int], dilation: int) -> int:
    """Output positions of a window along one axis: ``(size + pad - span) // stride + 1``."""
    return (size + pad[0] + pad[1] - dilation * (kernel - 1) - 1) // stride + 1


def _windows(
    x: NDArray,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding,
    dilation: tuple[int, int],
    pad_value: int,
) -> tuple[NDArray, int, int]:
    """Pad (N, H, W, C) with `pad_value`; return it with the output height and width."""
    out_h = output_size(x.shape[1], kernel[0], stride[0], padding[0], dilation[0])
    out_w = output_size(x.shape[2], kernel[1], stride[1], padding[1], dilation[1])
    if out_h < 1 or out_w < 1:
        raise ValueError(f"a {kernel} window does not fit an input of {x.shape[1:3]}")
    if any(p for pair in padding for p in pair):
        x = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=pad_value)
    return x, out_h, out_w


def _tap(
    padded: NDArray,
    dy: int,
    dx: int,
    out_h: int,
    out_w: int,
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> NDArray:
    """Return what kernel position (dy, dx) sees for every output pixel: (N, out_h, out_w, C)."""
    y0, x0 = dy * dilation[0], dx * dilation[1]
    y1, x1 = y0 + (out_h - 1) * stride[0] + 1, x0 + (out_w - 1) * stride[1] + 1
    return padded[:, y0 : y1 : stride[0], x0 : x1 : stride[1], :]


def exact_float(weight: NDArray) -> type:
    """Return the float type in which sums of int8 times `weight` (O, ...) are exact integers.

    A float32 sum is exact while every partial sum stays below 2**24; the worst case is the
    channel's sum of |weight| times 128.
    """
    magnitudes = np.abs(weight.astype(np.int64)).reshape(weight.shape[0], -1).sum(axis=1)
    worst = int(magnitudes.max(initial=0)) * 128
    return np.float32 if worst < 2**24 else np.float64


def conv2d(
    x: Int8Array,
    weight: Int8Array,
    bias: Int32Array,
    stride: tuple[int, int] = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1),
    zero_point: int = 0,
) -> Int32Array:
    """Dense convolution: ``acc = sum(w * x) + bias``; padded positions hold the zero point.

    Parameters
    ----------
    x
        int8 (N, H, W, C).
    weight
        int8 (O, kh, kw, C).
    bias
        int32 (O,), with ``-zero_point * sum(w)`` already inside.

    Returns
    -------
    int32 (N, H_out, W_out, O). Exact: the matrix products run in a float type wide enough.
    """
    out_channels, kh, kw, channels = weight.shape
    real = exact_float(weight)
    padded, out_h, out_w = _windows(x, (kh, kw), stride, padding, dilation, zero_point)
    padded = padded.astype(real)
    matrix: NDArray = weight.astype(real)
    acc: NDArray = np.zeros((x.shape[0] * out_h * out_w, out_channels), dtype=real)
    for dy in range(kh):
        for dx in range(kw):
            if not weight[:, dy, dx].any():
                continue
            seen = _tap(padded, dy, dx, out_h, out_w, stride, dilation).reshape(-1, channels)
            acc += seen @ matrix[:, dy, dx].T
    total = acc.astype(np.int64) + np.asarray(bias).astype(np.int64)
    return _to_int32(total).reshape(x.shape[0], out_h, out_w, out_channels)


def depthwise_conv2d(
    x: Int8Array,
    weight: Int8Array,
    bias: Int32Array,
    stride: tuple[int, int] = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1),
    zero_point: int = 0,
) -> Int32Array:
    """Depthwise convolution: int8 (N, H, W, C) with int8 (C, kh, kw) gives int32, as `conv2d`."""
    _, kh, kw = weight.shape
    padded, out_h, out_w = _windows(x, (kh, kw), stride, padding, dilation, zero_point)
    acc = np.zeros((x.shape[0], out_h, out_w, x.shape[3]), dtype=np.int64)
    for dy in range(kh):
        for dx in range(kw):
            seen = _tap(padded, dy, dx, out_h, out_w, stride, dilation)
            acc += seen.astype(np.int32) * weight[:, dy, dx].astype(np.int32)
    return _to_int32(acc + np.asarray(bias).astype(np.int64))


def max_pool2d(
    x: Int8Array,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1),
) -> Int8Array:
    """Largest code of each window; padded positions hold -128 and so never win."""
    padded, out_h, out_w = _windows(x, kernel, stride, padding, dilation, INT8_MIN)
    best = np.full((x.shape[0], out_h, out_w, x.shape[3]), INT8_MIN, dtype=np.int8)
    for dy in range(kernel[0]):
        for dx in range(kernel[1]):
            seen = _tap(padded, dy, dx, out_h, out_w, stride, dilation)
            best = np.maximum(best, seen).astype(np.int8)
    return best


def sum_pool2d(
    x: Int8Array,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding = ((0, 0), (0, 0)),
    bias: int = 0,
    zero_point: int = 0,
) -> Int32Array:
    """Sum of each window plus `bias` (``-zero_point * kh * kw`` for an average pool), int32."""
    padded, out_h, out_w = _windows(x, kernel, stride, padding, (1, 1), zero_point)
    acc = np.full((x.shape[0], out_h, out_w, x.shape[3]), int(bias), dtype=np.int64)
    for dy in range(kernel[0]):
        for dx in range(kernel[1]):
            acc += _tap(padded, dy, dx, out_h, out_w, stride, (1, 1))
    return _to_int32(acc)


def _to_int32(acc: NDArray[np.int64]) -> Int32Array:
    """Narrow exact sums to int32, refusing what the machine's accumulators could not hold."""
    if acc.size and (acc.min() < -(2**31) or acc.max() >= 2**31):
        raise OverflowError(
            f"an accumulator must fit 32 bits signed, not [{acc.min()}, {acc.max()}]"
        )
    return acc.astype(np.int32)
