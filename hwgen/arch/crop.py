# SPDX-License-Identifier: Apache-2.0
"""The contract's crop rule: from a predicted box to the square of pixels a network is shown.

One definition for training, for the host on the board and for hardware, bit for bit. Integers only
after the first line of :func:`square_crops`; the arithmetic in words:

- A box coordinate becomes ``floor(c * 65536 + 1/2)``, limited to 0..65536. Swapped coordinates are
  put in order.
- The side is the smallest of {1/4, 1/2, 3/4, 1} of the frame's shorter side, each rounded up to
  whole pixels, that is no smaller than the box's longer side (the whole shorter side if none is).
- The square is centred on the box's centre, rounded half up to whole pixels, then shifted by the
  least amount that brings it inside the frame.
- Resizing is separable. Each axis has a weight table whose rows sum to exactly 256: an area
  average where the output is smaller than the input, linear interpolation at pixel centres (edges
  held) where it is larger. A pixel is ``(sum_yx wy * wx * p + 32768) >> 16``: one rounding, half
  up.

The rule is that of Smart Scissor (Kong et al., ICCAD 2022, section III: square, regulate, shift).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BOX_ONE = 1 << 16
"""Fixed-point one of a box coordinate."""

WEIGHT_ONE = 1 << 8
"""Fixed-point one of a resize weight: every row of a weight table sums to it."""

SIDE_STEPS = 4
"""The crop's side is one of ``k / SIDE_STEPS`` of the frame's shorter side, k = 1..SIDE_STEPS."""


def crop_sides(frame_height: int, frame_width: int) -> tuple[int, ...]:
    """Return the sides, in pixels and ascending, that a crop of such a frame can have.

    Raises
    ------
    ValueError
        If the frame is less than one pixel high or wide.
    """
    shorter = min(frame_height, frame_width)
    if shorter < 1:
        raise ValueError(
            f"frame must be at least 1 x 1 pixels, not {frame_height!r} x {frame_width!r}"
        )
    return tuple(-(-k * shorter // SIDE_STEPS) for k in range(1, SIDE_STEPS + 1))


def square_crops(boxes: np.ndarray, frame_height: int, frame_width: int) -> np.ndarray:
    """Square, snap and shift many boxes.

    Parameters
    ----------
    boxes
        ``(N, 4)`` real: xmin, ymin, xmax, ymax in [0, 1] of the frame. Values outside are clipped.
    frame_height, frame_width
        Pixels.

    Returns
    -------
    numpy.ndarray
        ``(N, 3)`` int64: y0, x0, side in pixels, always inside the frame.

    Raises
    ------
    ValueError
        If ``boxes`` has another shape or holds NaN or infinities.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have the shape (N, 4), not {boxes.shape!r}")
    if not np.isfinite(boxes).all():
        raise ValueError("boxes must be finite; try looking for NaN in the predictor's output")
    sides = np.array(crop_sides(frame_height, frame_width), dtype=np.int64)
    fixed = np.clip(np.floor(boxes * BOX_ONE + 0.5), 0, BOX_ONE).astype(np.int64)

    frame = np.array([frame_width, frame_height], dtype=np.int64)
    low = np.minimum(fixed[:, :2], fixed[:, 2:]) * frame  # x, y in 1/65536 of a pixel
    high = np.maximum(fixed[:, :2], fixed[:, 2:]) * frame
    longer = (high - low).max(axis=1)
    index = (longer[:, None] > sides[None, :] * BOX_ONE).sum(axis=1)
    side = sides[np.minimum(index, SIDE_STEPS - 1)]

    # low + high is twice the centre, so the corner is (low + high - side) / 2, rounded half up.
    corner = (low + high - side[:, None] * BOX_ONE + BOX_ONE) // (2 * BOX_ONE)
    corner = np.clip(corner, 0, frame - side[:, None])
    return np.stack([corner[:, 1], corner[:, 0], side], axis=1)


def square_crop(box: np.ndarray, frame_height: int, frame_width: int) -> tuple[int, int, int]:
    """Square, snap and shift one box; see :func:`square_crops`.

    Parameters
    ----------
    box
        Four real numbers: xmin, ymin, xmax, ymax in [0, 1] of the frame.
    frame_height, frame_width
        Pixels.

    Returns
    -------
    tuple of int
        y0, x0, side in pixels: ``frame[y0 : y0 + side, x0 : x0 + side]`` is the crop.
    """
    y0, x0, side = square_crops(np.asarray(box).reshape(1, -1), frame_height, frame_width)[0]
    return int(y0), int(x0), int(side)


@lru_cache(maxsize=256)
def resize_weights(source: int, target: int) -> np.ndarray:
    """Return the read-only weight table of one axis: ``(target, source)`` int32, rows sum to 256.

    Area: output i covers ``[i * source, (i + 1) * source)`` and input s ``[s * target,
    (s + 1) * target)`` in units of ``1 / target`` pixel; a weight is the difference of the rounded
    cumulative overlaps, so that a row's sum is exact.
    Linear: output i sits at ``((2 i + 1) * source - target) / (2 * target)``; the fraction times
    256, rounded half up, is the weight of the right-hand neighbour.

    Raises
    ------
    ValueError
        If either length is less than 1.
    """
    if source < 1 or target < 1:
        raise ValueError(f"lengths must be at least 1, not {source!r} and {target!r}")
    table = np.zeros((target, source), dtype=np.int32)
    if target <= source:
        edges = np.arange(source + 1) * target
        for i in range(target):
            overlap = np.clip(edges - i * source, 0, source)  # cumulative, up to each input edge
            rounded = (2 * WEIGHT_ONE * overlap + source) // (2 * source)
            table[i] = np.diff(rounded)
    else:
        for i in range(target):
            left, remainder = divmod((2 * i + 1) * source - target, 2 * target)
            right_weight = (2 * WEIGHT_ONE * remainder + 2 * target) // (4 * target)
            table[i, max(left, 0)] += WEIGHT_ONE - right_weight
            table[i, min(left + 1, source - 1)] += right_weight
    table.flags.writeable = False
    return table


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize to ``size`` x ``size`` with the integer arithmetic of this module.

    Parameters
    ----------
    image
        ``(..., H, W, C)`` uint8; leading axes are a batch.
    size
        Output height and width in pixels.

    Returns
    -------
    numpy.ndarray
        ``(..., size, size, C)`` uint8, a new array.

    Raises
    ------
    ValueError
        If ``image`` is no uint8 array of at least three axes, or ``size`` is less than 1.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim < 3:
        raise ValueError(
            f"image must be uint8 with the axes (..., H, W, C), not {image.dtype} "
            f"with {image.ndim} axes"
        )
    height, width, channels = image.shape[-3:]
    # float32 products are the integers themselves: no term is negative and every partial sum is
    # at most 255 * 65536 < 2**24. A matrix product in integers gives the same bits, ten times
    # slower.
    rows_table = resize_weights(height, size).astype(np.float32)
    columns_table = resize_weights(width, size).astype(np.float32)
    flat = image.reshape(*image.shape[:-2], width * channels).astype(np.float32)
    rows = (rows_table @ flat).reshape(*image.shape[:-3], size, width, channels)
    total = (columns_table @ rows).astype(np.int32)
    half = WEIGHT_ONE * WEIGHT_ONE // 2
    return ((total + half) // (WEIGHT_ONE * WEIGHT_ONE)).astype(np.uint8)


def ordered_box(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Clip a predictor's xmin, ymin, xmax, ymax to [0, 1] and put min before max.

    ``raw`` is (4,) or (N, 4); the result is float32 of the same shape.
    """
    clipped = np.clip(np.asarray(raw, dtype=np.float32), 0, 1)
    low, high = clipped[..., :2], clipped[..., 2:]
    return np.concatenate([np.minimum(low, high), np.maximum(low, high)], axis=-1)
