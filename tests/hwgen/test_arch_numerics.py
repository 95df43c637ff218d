# SPDX-License-Identifier: Apache-2.0
"""The tests room: the integer arithmetic against Python's unbounded integers and plain loops."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import floor

import numpy as np
import pytest

from hwgen.arch import numerics

SUM_MAX = 2**48 - 1  # what stands in front of the shift has 49 bits signed


def test_round_half_up_shift_at_every_shift() -> None:
    """floor(v / 2**shift + 1/2), at ties, beside them, and at both ends of 49 bits."""
    for shift in range(numerics.SHIFT_MAX + 1):
        tie = (1 << shift) >> 1
        near = {m * tie + d for m in (-3, -2, -1, 0, 1, 2, 3) for d in (-1, 0, 1)}
        values = sorted(near | {SUM_MAX, SUM_MAX - 1, -SUM_MAX, -SUM_MAX - 1})
        found = numerics.round_half_up_shift(np.array(values, np.int64), np.int64(shift))
        exact = [floor(Fraction(v, 2**shift) + Fraction(1, 2)) for v in values]
        assert found.tolist() == exact, shift


@pytest.mark.parametrize("with_residual", [False, True])
def test_requantize(with_residual: bool, rng: np.random.Generator) -> None:
    """Equal to exact arithmetic over corners and random channels; its inputs are left alone."""
    corners = itertools.product((-(2**31), -1, 0, 1, 2**31 - 1), (0, 1, 2**16 - 1), (0, 1, 47))
    channels = [*corners, *rng.integers((-(2**31), 0, 0), (2**31, 2**16, 48), (200, 3)).tolist()]
    acc, multiplier, shift = np.array(channels).T
    acc = np.stack([acc, np.roll(acc, 1)]).astype(np.int32)
    residual = rng.integers(-128, 128, acc.shape).astype(np.int8)
    residual[:, :45] = rng.choice((-128, 127), (2, 45))
    scale = rng.integers(0, 2**24, len(channels))
    extra = (residual, -128, scale) if with_residual else ()
    before = acc.copy(), residual.copy()
    found = numerics.requantize(acc, multiplier, shift, 7, -100, 90, *extra)
    assert found.dtype == np.int8
    assert np.array_equal(acc, before[0]) and np.array_equal(residual, before[1])
    for i, c in np.ndindex(acc.shape):
        total = int(acc[i, c]) * int(multiplier[c])
        if with_residual:
            total += (int(residual[i, c]) + 128) * int(scale[c])
        exact = 7 + floor(Fraction(total, 2 ** int(shift[c])) + Fraction(1, 2))
        assert found[i, c] == min(max(exact, -100), 90), (i, c)


def test_requantize_needs_both_residual_arguments() -> None:
    """A residual without its multiplier is refused."""
    with pytest.raises(ValueError, match="residual_multiplier must be given"):
        numerics.requantize(np.zeros((1, 1)), [1], [0], 0, -128, 127, np.zeros((1, 1)))


def test_normalize_multiplier() -> None:
    """As precise as the bits allow, and refused where they do not reach."""
    for real in (0.75, 1e-3, 3.3e-5, 1000.0, 65535.0):
        multiplier, shift = numerics.normalize_multiplier(real)
        assert 2**15 <= multiplier < 2**16 and 0 <= shift <= numerics.SHIFT_MAX
        assert abs(multiplier / 2.0**shift - real) <= 0.5 / 2.0**shift
    assert numerics.normalize_multiplier(0.0) == (0, numerics.SHIFT_MAX)
    for real in (65536.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a multiplier must be"):
            numerics.normalize_multiplier(real)


def slow_windows(x, kernel, stride, padding, dilation, pad):
    """Yield each output position's window: ((n, y, x), list of (dy, dx, word))."""
    (top, bottom), (left, right) = padding
    count, height, width, channels = x.shape
    out_h = numerics.output_size(height, kernel[0], stride[0], padding[0], dilation[0])
    out_w = numerics.output_size(width, kernel[1], stride[1], padding[1], dilation[1])
    for n, oy, ox in np.ndindex(count, out_h, out_w):
        window = []
        for dy, dx in np.ndindex(*kernel):
            iy = oy * stride[0] - top + dy * dilation[0]
            ix = ox * stride[1] - left + dx * dilation[1]
            inside = 0 <= iy < height and 0 <= ix < width
            word = x[n, iy, ix].tolist() if inside else [pad] * channels
            window.append((dy, dx, word))
        yield (n, oy, ox), window


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
        ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        ((5, 2), (2, 3), ((0, 2), (3, 1)), (1, 2)),
    ],
)
def test_windows_against_loops(kernel, stride, padding, dilation, rng) -> None:
    """Convolutions and pools equal plain loops over Python integers."""
    x = rng.integers(-128, 128, (2, 7, 6, 3)).astype(np.int8)
    dense = rng.integers(-127, 128, (4, *kernel, 3)).astype(np.int8)
    lanes = rng.integers(-127, 128, (3, *kernel)).astype(np.int8)
    bias = rng.integers(-1000, 1000, 4).astype(np.int32)
    found = numerics.conv2d(x, dense, bias, stride, padding, dilation, zero_point=-9)
    depthwise = numerics.depthwise_conv2d(x, lanes, bias[:3], stride, padding, dilation, -9)
    total = numerics.sum_pool2d(x, kernel, stride, padding, bias=11, zero_point=-9)
    for place, window in slow_windows(x, kernel, stride, padding, dilation, -9):
        for o in range(4):
            products = (dense[o, dy, dx].astype(int) @ word for dy, dx, word in window)
            assert found[place][o] == sum(products) + bias[o]
        for c in range(3):
            products = (int(lanes[c, dy, dx]) * word[c] for dy, dx, word in window)
            assert depthwise[place][c] == sum(products) + bias[c]
    best = numerics.max_pool2d(x, kernel, stride, padding, dilation)
    for place, window in slow_windows(x, kernel, stride, padding, dilation, -128):
        assert best[place].tolist() == [max(word[c] for *_, word in window) for c in range(3)]
    for place, window in slow_windows(x, kernel, stride, padding, (1, 1), -9):
        sums = [sum(word[c] for *_, word in window) + 11 for c in range(3)]
        assert total[place].tolist() == sums


def test_a_wide_sum_is_exact_and_an_overflow_is_refused() -> None:
    """Beyond float32's 24 bits sums stay exact; beyond int32 they are an error."""
    x = np.full((1, 1, 1, 4096), -127, np.int8)
    x[..., ::2] = 126
    weight = np.full((1, 1, 1, 4096), -127, np.int8)
    weight[..., ::2] = 127
    assert numerics.exact_float(weight) is np.float64
    exact = 2048 * 127 * (126 + 127)
    assert numerics.conv2d(x, weight, np.array([1], np.int32))[0, 0, 0, 0] == exact + 1
    with pytest.raises(OverflowError, match="must fit 32 bits"):
        numerics.conv2d(x, weight, np.array([2**31 - 1], np.int32))


def test_a_window_larger_than_the_input_is_refused() -> None:
    """The error names both sizes."""
    with pytest.raises(ValueError, match=r"\(3, 3\) window does not fit an input of \(2, 9\)"):
        numerics.max_pool2d(np.zeros((1, 2, 9, 1), np.int8), (3, 3), (1, 1))
