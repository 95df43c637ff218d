# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: the data of the compression benchmark, each as three disjoint splits."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from hwgen.datasets import Dataset, Splits, digits_in_photographs

HELD_OUT = 0.1
"""Share of the training images that choices are made by; they are never trained on."""


def load_jpeg(path: Path, split: str) -> Dataset:
    """Load one split of an archive of JPEGs.

    Keys are ``{split}_jpeg``, uint8 bytes of all files in a row; ``{split}_offset``, int64 (N + 1);
    ``{split}_label``, uint8 (N,); and perhaps ``{split}_box``, int16 (N, 4) in inclusive pixels,
    and ``class_name``.
    """
    with np.load(path, allow_pickle=False) as archive:
        data, offset = archive[f"{split}_jpeg"], archive[f"{split}_offset"]
        labels = archive[f"{split}_label"]
        boxes = archive[f"{split}_box"] if f"{split}_box" in archive.files else None
        names = archive["class_name"].tolist() if "class_name" in archive.files else []
    frames = [data[offset[i] : offset[i + 1]].tobytes() for i in range(len(labels))]
    images = np.stack([np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) for f in frames])
    if boxes is not None:
        height, width = images.shape[1:3]
        edges = boxes.astype(np.float32) + np.array([0, 0, 1, 1], np.float32)
        boxes = np.clip(edges / np.array([width, height, width, height], np.float32), 0, 1)
    return Dataset(images, labels.astype(np.int64), boxes, tuple(str(name) for name in names))


@cache
def load(name: str, folder: Path | None) -> Splits:
    """Load the splits of "frames" (bundled), "cifar10-jpeg" or "tiny-imagenet-20".

    Raises
    ------
    FileNotFoundError
        If the data are not in the folder.
    """
    if name == "frames":
        return digits_in_photographs()
    if folder is None or not (folder / f"{name}.npz").is_file():
        raise FileNotFoundError(f"--data must name a folder that holds {name}.npz, not {folder}")
    path = folder / f"{name}.npz"
    train, held_out = load_jpeg(path, "train").split(HELD_OUT, seed=0)
    return Splits(train, held_out, load_jpeg(path, "test" if name.startswith("cifar") else "val"))
