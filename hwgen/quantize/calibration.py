# SPDX-License-Identifier: Apache-2.0
"""The quantization room: calibration images in a file, and what else is known of them."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwgen.arch.files import replacing
from hwgen.ir.preprocess import Preprocess

KEY = "images"


@dataclass(frozen=True)
class Calibration:
    """Images that ranges are measured on, and what makes pictures of uint8 into such.

    Attributes
    ----------
    images
        float32 (N, C, H, W), normalised as in training.
    preprocess
        Mean and std of each of the C channels, of pixels in [0, 1]; or None.
    labels
        A name for each class; or None.
    """

    images: NDArray[np.float32]
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] | None = None

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` that :func:`read_calibration` reads, whole or not at all."""
        held: dict[str, NDArray[np.generic]] = {KEY: self.images}
        if self.preprocess is not None:
            held["mean"], held["std"] = (np.array(values) for values in self.preprocess)
        if self.labels is not None:
            held["labels"] = np.array(self.labels, dtype=np.str_)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **held)


def read_calibration(path: str | Path) -> Calibration:
    """Read a ``.npy``, or a ``.npz`` with ``images`` and maybe ``mean``, ``std`` and ``labels``.

    Raises
    ------
    ValueError
        When the file holds something else, or they do not go together.
    OSError
        When it cannot be read.
    """
    others: dict[str, NDArray[np.generic]] = {}
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                if KEY not in loaded:
                    raise ValueError(f"it must hold {KEY!r}, not {sorted(loaded.files)}")
                others = {key: loaded[key] for key in ("mean", "std", "labels") if key in loaded}
                loaded = loaded[KEY]
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} must be a .npy, or a .npz with {KEY!r}: {error}; try np.save"
        ) from error
    if loaded.ndim != 4 or loaded.dtype != np.float32 or not len(loaded):
        raise ValueError(
            f"{path} must hold float32 (N, C, H, W), not {loaded.dtype} {loaded.shape}; "
            "normalise the images as in training"
        )
    mean, std = (_numbers(path, key, others, loaded.shape[1]) for key in ("mean", "std"))
    if (mean is None) != (std is None) or min(std or (1.0,)) <= 0.0:
        raise ValueError(
            f"{path} must hold both mean and std, each std above 0, or none of them, not "
            f"{mean!r} and {std!r}"
        )
    labels: Sequence[object] | None = None
    if "labels" in others:
        if others["labels"].dtype.kind != "U" or others["labels"].ndim != 1:
            raise ValueError(
                f"{path} must hold labels as text, a name for each class, not "
                f"{others['labels'].dtype} {others['labels'].shape}; try leaving them out"
            )
        labels = others["labels"].tolist()
    return Calibration(
        np.ascontiguousarray(loaded),
        None if mean is None or std is None else (mean, std),
        None if labels is None else tuple(str(label) for label in labels),
    )


def _numbers(
    path: str | Path, key: str, held: dict[str, NDArray[np.generic]], channels: int
) -> tuple[float, ...] | None:
    """Return a number for each channel."""
    if key not in held:
        return None
    values = held[key]
    if values.shape != (channels,) or values.dtype.kind not in "fiu":
        raise ValueError(
            f"{path} must hold {key} as ({channels},) numbers, one for each channel of the images, "
            f"not {values.dtype} {values.shape}"
        )
    return tuple(float(value) for value in values.astype(np.float64))
