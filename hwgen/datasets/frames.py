# SPDX-License-Identifier: Apache-2.0
"""Datasets: the bundled frames, handwritten digits somewhere in a photograph.

Offline and quick: scikit-learn's digits (real handwriting, 8 x 8) are put at a random place, size,
angle and colour into random windows of scikit-learn's two sample photographs. Digits and areas of
the photographs are divided among train, validation and test once and for all, whatever the seed:
no digit and no pixel of a photograph is ever seen in two of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwgen.arch.crop import resize
from hwgen.datasets.base import Dataset, Splits

# Each photograph is cut into a grid of tiles, each digit class into shares; the digits are dealt
# out with this seed, which is no user's seed.
_DEAL_SEED = 20211201
_TILE_ROWS, _TILE_COLUMNS = 5, 6
_SHARES = {"train": 0.65, "validation": 0.15, "test": 0.20}
_WINDOW_SIDES = (56, 64, 72, 85)
_INK_VISIBLE = 0.3  # the box is drawn round the pixels with at least this much ink
_CHUNK = 500


@dataclass(frozen=True)
class FrameConfig:
    """What the bundled frames look like.

    Attributes
    ----------
    frame_side
        Height and width in pixels.
    train, validation, test
        Number of frames of each split.
    digit_side
        Smallest and largest side in pixels of the square that the 8 x 8 digit is blown up to.
    rotation_degrees
        Angles are uniform in plus or minus this.
    contrast
        Smallest and largest distance of the ink's brightness from the background's, in [0, 1].
    background_contrast
        The photograph's distance from its own mean colour is multiplied by this, as haze does.
    seed
        Draws everything but the division into splits.
    """

    frame_side: int = 64
    train: int = 9000
    validation: int = 1000
    test: int = 2000
    digit_side: tuple[int, int] = (20, 36)
    rotation_degrees: float = 12.0
    contrast: tuple[float, float] = (0.5, 0.9)
    background_contrast: float = 0.55
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        low, high = self.digit_side
        if not 8 <= low <= high <= self.frame_side:
            raise ValueError(
                f"digit_side must lie in 8..{self.frame_side} (the frame), not {self.digit_side!r}"
            )
        for name in ("train", "validation", "test"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)!r}")


def digits_in_photographs(config: FrameConfig | None = None) -> Splits:
    """Make the bundled frames.

    Parameters
    ----------
    config
        The defaults of :class:`FrameConfig` if None.

    Returns
    -------
    Splits
        Frames ``(N, side, side, 3)`` uint8, labels 0..9, true boxes of the visible ink.
        The same config gives the same bytes.
    """
    config = config or FrameConfig()
    digits, digit_labels, digit_split = _digits()
    tiles, tile_split = _tiles()
    seeds = np.random.SeedSequence(config.seed).spawn(3)
    parts = {}
    for name, seed in zip(_SHARES, seeds, strict=True):
        rng = np.random.default_rng(seed)
        mine = np.flatnonzero(digit_split == name)
        own_tiles = tiles[tile_split == name]
        chosen = _balanced_choice(mine, getattr(config, name), rng)
        images, boxes = [], []
        for start in range(0, len(chosen), _CHUNK):
            index = chosen[start : start + _CHUNK]
            frames, frame_boxes = _compose(digits[index], own_tiles, config, rng)
            images.append(frames)
            boxes.append(frame_boxes)
        parts[name] = Dataset(
            np.concatenate(images), digit_labels[chosen], np.concatenate(boxes), tuple("0123456789")
        )
    return Splits(**parts)


def _balanced_choice(members: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``count`` of ``members``, each as often as any other (give or take one)."""
    rounds = -(-count // len(members))
    return np.concatenate([rng.permutation(members) for _ in range(rounds)])[:count]


def _digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return digits (1797, 8, 8) float32 in [0, 1], labels, and the split each belongs to."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    split = np.empty(len(labels), dtype=object)
    rng = np.random.default_rng(_DEAL_SEED)
    for label in range(10):
        split_members = rng.permutation(np.flatnonzero(labels == label))
        split[split_members] = _deal(len(split_members))
    return (bunch.images / 16.0).astype(np.float32), labels, split


def _tiles() -> tuple[np.ndarray, np.ndarray]:
    """Return the photographs' tiles (T, height, width, 3) uint8 and the split each belongs to."""
    from sklearn.datasets import load_sample_image

    tiles = []
    for name in ("china.jpg", "flower.jpg"):
        photograph = np.asarray(load_sample_image(name))
        height, width = (
            photograph.shape[0] // _TILE_ROWS,
            photograph.shape[1] // _TILE_COLUMNS,
        )
        for row in range(_TILE_ROWS):
            for column in range(_TILE_COLUMNS):
                y, x = row * height, column * width
                tiles.append(photograph[y : y + height, x : x + width])
    stacked = np.stack(tiles)
    # Dealt along the order of roughness, so that each split has its share of sky and of leaves.
    roughness = np.argsort(stacked.std(axis=(1, 2)).mean(axis=1), kind="stable")
    pattern = ("train", "test", "train", "validation", "train", "train", "test", "train")
    split = np.empty(len(tiles), dtype=object)
    split[roughness] = [pattern[i % len(pattern)] for i in range(len(tiles))]
    return stacked, split


def _deal(count: int) -> list[str]:
    """Return ``count`` split names in the shares of ``_SHARES``."""
    train = round(count * _SHARES["train"])
    validation = round(count * _SHARES["validation"])
    return ["train"] * train + ["validation"] * validation + ["test"] * (count - train - validation)


def _backgrounds(tiles: np.ndarray, count: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Cut random windows, mirrored at random: (count, side, side, 3) float32 in [0, 1]."""
    height, width = tiles.shape[1:3]
    tile = rng.integers(len(tiles), size=count)
    window = rng.choice([w for w in _WINDOW_SIDES if w <= min(height, width)], size=count)
    y0 = (rng.random(count) * (height - window + 1)).astype(int)
    x0 = (rng.random(count) * (width - window + 1)).astype(int)
    out = np.empty((count, side, side, 3), np.uint8)
    for w in np.unique(window):
        which = np.flatnonzero(window == w)
        crops = [tiles[tile[i], y0[i] : y0[i] + w, x0[i] : x0[i] + w] for i in which]
        out[which] = resize(np.stack(crops), side)
    mirrored = rng.random(count) < 0.5
    out[mirrored] = out[mirrored, :, ::-1]
    return out.astype(np.float32) / 255.0


def _render_ink(
    digits: np.ndarray,
    centre: np.ndarray,
    digit_side: np.ndarray,
    radians: np.ndarray,
    side: int,
) -> np.ndarray:
    """Draw each digit rotated and enlarged bilinearly: (N, side, side) float32 ink in [0, 1].

    ``centre`` is (N, 2) as y, x in pixels. Each frame pixel is mapped back into the digit.
    """
    count = len(digits)
    padded = np.zeros((count, 12, 12), np.float32)  # two rows of no ink all round
    padded[:, 2:10, 2:10] = digits
    pixel = np.arange(side, dtype=np.float32) + 0.5
    dy = (pixel[None, :] - centre[:, :1]).astype(np.float32)[:, :, None]
    dx = (pixel[None, :] - centre[:, 1:]).astype(np.float32)[:, None, :]
    scale = 8.0 / digit_side
    cosine = (np.cos(radians) * scale).astype(np.float32)[:, None, None]
    sine = (np.sin(radians) * scale).astype(np.float32)[:, None, None]
    # 5.5 is the index of the padded digit's centre.
    row = np.clip(cosine * dy - sine * dx + 5.5, 0, 10.999)
    column = np.clip(sine * dy + cosine * dx + 5.5, 0, 10.999)
    top, left = row.astype(np.int32), column.astype(np.int32)
    row -= top
    column -= left
    index = (np.arange(count, dtype=np.int32) * 144)[:, None, None] + top * 12 + left
    flat = padded.reshape(-1)
    upper = flat[index] * (1 - column) + flat[index + 1] * column
    lower = flat[index + 12] * (1 - column) + flat[index + 13] * column
    return upper * (1 - row) + lower * row


def _compose(
    digits: np.ndarray, tiles: np.ndarray, config: FrameConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Put digits into windows of the tiles; return frames uint8 and boxes float32."""
    count, side = len(digits), config.frame_side
    background = _backgrounds(tiles, count, side, rng)
    mean = background.mean(axis=(1, 2), keepdims=True)
    background = mean + config.background_contrast * (background - mean)
    low, high = config.digit_side
    digit_side = rng.uniform(low, high, count)
    centre = digit_side[:, None] / 2 + rng.random((count, 2)) * (side - digit_side[:, None])
    radians = np.deg2rad(rng.uniform(-1, 1, count) * config.rotation_degrees)
    ink = _render_ink(digits, centre, digit_side, radians, side)

    brightness = (background.mean(axis=3) * ink).sum(axis=(1, 2)) / ink.sum(axis=(1, 2))
    contrast = rng.uniform(*config.contrast, count)
    # Dark on bright and bright on dark, so that there is room for the contrast.
    sign = np.where(brightness < 0.5, 1.0, -1.0)
    tint = rng.uniform(-0.15, 0.15, (count, 3))
    colour = np.clip((brightness + sign * contrast)[:, None] + tint, 0, 1).astype(np.float32)
    opacity = ink * rng.uniform(0.85, 1.0, count).astype(np.float32)[:, None, None]
    frame = background + opacity[..., None] * (colour[:, None, None, :] - background)
    images = np.clip(np.floor(frame * 255 + 0.5), 0, 255).astype(np.uint8)

    visible = ink >= _INK_VISIBLE
    columns, rows = visible.any(axis=1), visible.any(axis=2)
    boxes = np.stack(
        [
            columns.argmax(axis=1),
            rows.argmax(axis=1),
            side - columns[:, ::-1].argmax(axis=1),
            side - rows[:, ::-1].argmax(axis=1),
        ],
        axis=1,
    )
    return images, (boxes / side).astype(np.float32)
