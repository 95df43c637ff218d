# SPDX-License-Identifier: Apache-2.0
"""Datasets: the one shape that all of the product's data has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


def check_images(images: np.ndarray) -> None:
    """Refuse what is not (N, H, W, C) uint8."""
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(
            f"images must be uint8 of the shape (N, H, W, C), not {images.dtype} of "
            f"{images.shape!r}; try pixels from 0 to 255, with an axis for the colours at the end"
        )


@dataclass(frozen=True)
class Dataset:
    """Labelled pictures, with the box of what each shows where that is known.

    Attributes
    ----------
    images
        ``(N, H, W, C)`` uint8.
    labels
        ``(N,)`` int64, each in ``0 .. len(class_names) - 1``.
    boxes
        ``(N, 4)`` float32: xmin, ymin, xmax, ymax in [0, 1] of the frame; or None.
    class_names
        One name a class.

    Raises
    ------
    ValueError
        If shapes, types or ranges disagree.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what is written above."""
        check_images(self.images)
        if self.labels.shape != (len(self.images),):
            raise ValueError(
                f"labels must have the shape ({len(self.images)},), not {self.labels.shape!r}"
            )
        labels = self.labels.astype(np.int64)
        if not np.array_equal(labels, self.labels):
            raise ValueError(
                f"labels must be whole numbers, not {self.labels.dtype} such as "
                f"{self.labels[labels != self.labels][0]!r}"
            )
        object.__setattr__(self, "labels", labels)
        if not self.class_names:
            count = int(self.labels.max()) + 1 if len(self.labels) else 0
            object.__setattr__(self, "class_names", tuple(str(i) for i in range(count)))
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(
            self.class_names
        ):
            raise ValueError(
                f"labels must be in 0..{len(self.class_names) - 1}, not in "
                f"{self.labels.min()}..{self.labels.max()}; try giving every class a name"
            )
        if self.boxes is not None:
            if self.boxes.shape != (len(self.images), 4):
                raise ValueError(
                    f"boxes must have the shape ({len(self.images)}, 4), not {self.boxes.shape!r}"
                )
            if not (np.isfinite(self.boxes).all() and (np.abs(self.boxes - 0.5) <= 0.5).all()):
                raise ValueError(
                    "boxes must be finite and in [0, 1] of the frame; try dividing pixels by "
                    "the frame's width and height"
                )
            object.__setattr__(self, "boxes", self.boxes.astype(np.float32))

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Number of classes, seen in this split or not."""
        return len(self.class_names)

    def take(self, indices: np.ndarray | slice) -> Dataset:
        """Return the pictures at ``indices``, in that order."""
        boxes = None if self.boxes is None else self.boxes[indices]
        return replace(self, images=self.images[indices], labels=self.labels[indices], boxes=boxes)

    def split(self, fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Split at random into two disjoint parts, the second ``fraction`` of each class.

        Raises
        ------
        ValueError
            If ``fraction`` is not between 0 and 1.
        """
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"fraction must be between 0 and 1, not {fraction!r}")
        order = np.random.default_rng(seed).permutation(len(self))
        rank = np.zeros(len(self))
        for label in np.unique(self.labels):
            members = order[self.labels[order] == label]
            rank[members] = (np.arange(len(members)) + 0.5) / len(members)
        second = rank > 1.0 - fraction
        return self.take(np.flatnonzero(~second)), self.take(np.flatnonzero(second))


@dataclass(frozen=True)
class Splits:
    """Three disjoint parts: to fit, to choose by, and to report once."""

    train: Dataset
    validation: Dataset
    test: Dataset
