# SPDX-License-Identifier: Apache-2.0
"""Tests: the crop rule and the integer resize."""

from __future__ import annotations

from math import floor

import numpy as np
import pytest

from hwgen.arch.crop import crop_sides, resize, resize_weights, square_crop, square_crops


@pytest.mark.parametrize("frame", [(64, 64), (48, 100), (37, 23), (480, 640), (1, 5)])
def test_crop_is_a_square_of_an_allowed_side_inside_the_frame_round_the_box(frame):
    height, width = frame
    rng = np.random.default_rng(1)
    boxes = rng.uniform(-0.3, 1.3, (500, 4))
    crops = square_crops(boxes, height, width)
    inside = np.clip(boxes, 0, 1)
    for box, (y0, x0, side) in zip(inside, crops, strict=True):
        assert side in crop_sides(height, width)
        assert 0 <= y0 and y0 + side <= height and 0 <= x0 and x0 + side <= width
        x, y = (box[0] + box[2]) / 2 * width, (box[1] + box[3]) / 2 * height
        # Half a pixel for rounding the corner, as much again for the fixed-point box.
        assert x0 - 0.51 <= x <= x0 + side + 0.51 and y0 - 0.51 <= y <= y0 + side + 0.51


def test_crop_side_is_the_smallest_that_holds_the_box():
    rng = np.random.default_rng(2)
    boxes = np.sort(rng.integers(0, 65, (300, 2, 2)), axis=1).reshape(300, 4) / 64
    for box, (y0, x0, side) in zip(boxes, square_crops(boxes, 64, 64), strict=True):
        longer = max(box[2] - box[0], box[3] - box[1]) * 64
        assert side == next(s for s in (16, 32, 48, 64) if s >= longer)
        # An even side and a whole-pixel box: every pixel of the box is in the crop.
        assert x0 <= box[0] * 64 and box[2] * 64 <= x0 + side
        assert y0 <= box[1] * 64 and box[3] * 64 <= y0 + side


def test_crop_by_hand():
    assert square_crop(np.array([0.25, 0.5, 0.5, 0.75]), 64, 64) == (32, 16, 16)
    assert square_crop(np.array([0.5, 0.75, 0.25, 0.5]), 64, 64) == (32, 16, 16)  # swapped
    assert square_crop(np.array([0.9, 0.9, 1.4, 1.0]), 64, 64) == (48, 48, 16)  # shifted
    assert square_crop(np.array([0, 0, 1, 1]), 48, 100) == (0, 26, 48)  # the whole shorter side


@pytest.mark.parametrize("box", [[0, 0, np.nan, 1], [0, 0, np.inf, 1]])
def test_crop_refuses_what_is_not_finite(box):
    with pytest.raises(ValueError, match="boxes must be finite"):
        square_crop(np.array(box), 64, 64)


def test_crop_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"boxes must have the shape \(N, 4\), not \(2, 3\)"):
        square_crops(np.zeros((2, 3)), 64, 64)
    with pytest.raises(ValueError, match="frame must be at least 1 x 1"):
        square_crop(np.zeros(4), 0, 64)


def _naive_weight(i: int, s: int, source: int, target: int) -> int:
    """One weight of the table, from the definition in words, in Python integers."""
    if target <= source:

        def cumulative(edge: int) -> int:
            overlap = min(max(edge * target - i * source, 0), source)
            return (2 * 256 * overlap + source) // (2 * source)

        return cumulative(s + 1) - cumulative(s)
    position = (2 * i + 1) * source - target
    left = floor(position / (2 * target))
    right_weight = floor((position - left * 2 * target) / (2 * target) * 256 + 0.5)
    weight = 0
    if s == max(left, 0):
        weight += 256 - right_weight
    if s == min(left + 1, source - 1):
        weight += right_weight
    return weight


@pytest.mark.parametrize("shape", [(8, 8), (16, 16), (5, 11), (1, 3), (13, 4)])
@pytest.mark.parametrize("size", [1, 4, 8, 12])
def test_resize_equals_a_naive_loop(shape, size):
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (*shape, 2)).astype(np.uint8)
    expected = np.zeros((size, size, 2), np.uint8)
    for y in range(size):
        rows = [_naive_weight(y, s, shape[0], size) for s in range(shape[0])]
        for x in range(size):
            columns = [_naive_weight(x, s, shape[1], size) for s in range(shape[1])]
            for c in range(2):
                total = sum(
                    rows[i] * columns[j] * int(image[i, j, c])
                    for i in range(shape[0])
                    for j in range(shape[1])
                )
                expected[y, x, c] = (total + 32768) >> 16
    assert np.array_equal(resize(image, size), expected)


@pytest.mark.parametrize("source", [1, 3, 16, 48, 640])
@pytest.mark.parametrize("target", [1, 5, 32, 64])
def test_weights_sum_to_one_and_are_not_negative(source, target):
    table = resize_weights(source, target)
    assert np.array_equal(table.sum(axis=1), np.full(target, 256))
    assert table.min() >= 0


def test_resize_keeps_what_needs_no_resizing_and_flat_images():
    image = np.random.default_rng(4).integers(0, 256, (3, 9, 9, 3)).astype(np.uint8)
    assert np.array_equal(resize(image, 9), image)
    flat = np.full((2, 37, 23, 3), 255, np.uint8)
    assert np.array_equal(resize(flat, 50), np.full((2, 50, 50, 3), 255, np.uint8))
    halved = resize(np.array([[[0], [1]], [[1], [0]]], np.uint8), 1)
    assert halved[0, 0, 0] == 1  # a half rounds up


def test_resize_treats_each_image_of_a_batch_alike():
    images = np.random.default_rng(5).integers(0, 256, (2, 3, 20, 24, 3)).astype(np.uint8)
    whole = resize(images, 7)
    for i in range(2):
        for j in range(3):
            assert np.array_equal(whole[i, j], resize(images[i, j], 7))


def test_resize_refuses_other_types():
    with pytest.raises(ValueError, match="image must be uint8"):
        resize(np.zeros((4, 4, 3), np.float32), 2)
    with pytest.raises(ValueError, match="lengths must be at least 1"):
        resize(np.zeros((4, 4, 3), np.uint8), 0)
