# SPDX-License-Identifier: Apache-2.0
"""Datasets: loaders for the formats that users have."""

from __future__ import annotations

import csv
import pickle
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from hwgen.arch.crop import resize
from hwgen.datasets.base import Dataset

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp"}


def load_folder(folder: str | Path, side: int) -> Dataset:
    """Load ``folder/<class name>/<picture>``.

    Each picture becomes RGB and ``side`` x ``side`` pixels (the aspect ratio is not kept).
    A file ``folder/boxes.csv``, if there is one, gives the boxes of all pictures: rows
    ``<class name>/<picture>,xmin,ymin,xmax,ymax`` in pixels of the file, xmax and ymax exclusive.

    Parameters
    ----------
    folder
        Classes are its sub-folders, in sorted order.
    side
        Height and width of the result in pixels.

    Raises
    ------
    ValueError
        If there is no picture, one cannot be read, or the boxes do not cover every picture.
    """
    from PIL import Image

    folder = Path(folder)
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    box_of = _read_boxes(folder / "boxes.csv")
    images: list[np.ndarray] = []
    labels: list[int] = []
    boxes: list[list[float]] = []
    for label, name in enumerate(names):
        for path in sorted((folder / name).iterdir()):
            if path.suffix.lower() not in SUFFIXES:
                continue
            try:
                with Image.open(path) as opened:
                    picture = np.asarray(opened.convert("RGB"))
            except OSError as error:
                raise ValueError(
                    f"{path} must be a picture: {error}; try making it anew, or leaving it out"
                ) from error
            if box_of is not None:
                key = f"{name}/{path.name}"
                if key not in box_of:
                    raise ValueError(f"boxes.csv must have a row for every picture, not miss {key}")
                height, width = picture.shape[:2]
                scale = np.array([width, height, width, height])
                boxes.append(list(np.array(box_of[key]) / scale))
            images.append(resize(picture, side))
            labels.append(label)
    if not images:
        raise ValueError(
            f"{folder} must hold <class>/<picture> with a suffix of {sorted(SUFFIXES)}; "
            "there is no such file"
        )
    return Dataset(
        np.stack(images),
        np.array(labels, dtype=np.int64),
        np.array(boxes, dtype=np.float32) if box_of is not None else None,
        tuple(names),
    )


def _read_boxes(path: Path) -> dict[str, list[float]] | None:
    """Read ``boxes.csv``; None if there is no such file."""
    if not path.exists():
        return None
    result = {}
    with path.open(newline="") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            try:
                result[row[0]] = [float(value) for value in row[1:5]]
                if len(row) != 5:
                    raise ValueError
            except (ValueError, IndexError):
                raise ValueError(
                    f"{path}:{number} must be 'class/picture,xmin,ymin,xmax,ymax', not {row!r}"
                ) from None
    return result


@contextmanager
def open_npz(path: str | Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Open an ``.npz`` that holds arrays alone.

    Raises
    ------
    ValueError
        If the file is none, or damaged.
    """
    try:
        archive = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} must be an .npz, but it is damaged or of another kind") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} must be an .npz, not a single array; try np.savez")
    with archive:
        try:
            yield archive
        except (BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{path} is damaged: {error}; try making it anew") from error


def load_npz(path: str | Path, split: str | None = None) -> Dataset:
    """Load an ``.npz`` archive.

    Keys: ``images`` (N, H, W, 3) or (N, H, W) uint8, ``labels`` (N,) integers, and if known
    ``boxes`` (N, 4) in [0, 1] and ``class_names`` (classes,) strings. With ``split="train"`` the
    first three are ``train_images``, ``train_labels``, ``train_boxes``, so that one file can hold
    several splits. Nothing pickled is read.

    Raises
    ------
    ValueError
        If a key is missing, naming those that are there.
    """
    prefix = f"{split}_" if split else ""
    with open_npz(path) as archive:
        for key in (f"{prefix}images", f"{prefix}labels"):
            if key not in archive.files:
                raise ValueError(f"{path} must have the key {key!r}, not only {archive.files!r}")
        images = archive[f"{prefix}images"]
        labels = archive[f"{prefix}labels"]
        boxes = archive[f"{prefix}boxes"] if f"{prefix}boxes" in archive.files else None
        names = archive["class_names"].tolist() if "class_names" in archive.files else []
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    return Dataset(images, labels, boxes, tuple(str(name) for name in names))


class _ArraysOnly(pickle.Unpickler):
    """Reads the pickles CIFAR-10 comes in, and refuses any that could run code."""

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return a numpy array's own classes and nothing else."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"a CIFAR-10 batch must hold arrays, not {module}.{name}")
        return super().find_class(module, name)


def load_cifar10(folder: str | Path) -> tuple[Dataset, Dataset]:
    """Load CIFAR-10's python batches: ``data_batch_1`` .. ``data_batch_5`` and ``test_batch``.

    Parameters
    ----------
    folder
        Usually ``cifar-10-batches-py``.

    Returns
    -------
    tuple of Dataset
        Train and test, frames (N, 32, 32, 3), no boxes.

    Raises
    ------
    ValueError
        If a batch is missing or is not what CIFAR-10's are.
    """
    folder = Path(folder)
    meta = folder / "batches.meta"
    names: tuple[str, ...] = ()
    if meta.exists():
        names = tuple(name.decode() for name in _unpickle(meta)[b"label_names"])
    train = [_cifar10_batch(folder / f"data_batch_{i}") for i in range(1, 6)]
    test_images, test_labels = _cifar10_batch(folder / "test_batch")
    images = np.concatenate([batch[0] for batch in train])
    labels = np.concatenate([batch[1] for batch in train])
    return Dataset(images, labels, None, names), Dataset(test_images, test_labels, None, names)


def _unpickle(path: Path) -> dict[bytes, Any]:
    """Read one pickle of plain arrays."""
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file, encoding="bytes").load()
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} must hold the file {path.name}; try the folder cifar-10-batches-py"
        ) from None
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} must be a CIFAR-10 python batch: {error}") from error


def _cifar10_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one batch: (N, 32, 32, 3) uint8 and (N,) int64."""
    batch = _unpickle(path)
    if b"data" not in batch or b"labels" not in batch:
        raise ValueError(f"{path} must have the keys data and labels, not {sorted(batch)!r}")
    pixels = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), np.asarray(
        batch[b"labels"], dtype=np.int64
    )
