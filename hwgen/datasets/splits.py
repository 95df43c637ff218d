# SPDX-License-Identifier: Apache-2.0
"""Datasets: three splits from whatever a command line's --data names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from hwgen.arch.crop import resize
from hwgen.datasets.base import Dataset, Splits
from hwgen.datasets.frames import FrameConfig, digits_in_photographs
from hwgen.datasets.loaders import SUFFIXES, load_cifar10, load_folder, load_npz, open_npz

FRAMES = "frames"
"""Names the bundled data."""

HELD_OUT = 0.1
"""Share of each class of the training images that becomes a validation split where none is."""

_NAMES = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
"""What each split may be called in a folder or an archive."""

_CHUNK = 500


def load_splits(source: str | Path, side: int | None = None, seed: int = 0) -> Splits:
    """Load training, validation and test images.

    Parameters
    ----------
    source
        ``"frames"``: the bundled ones. A file: see :func:`load_npz`, with the splits ``train``,
        ``test`` and maybe ``validation``. A folder: ``{train,validation,test}/<class>/<picture>``,
        see :func:`load_folder`, or the python batches of CIFAR-10. ``validation`` may be called
        ``val`` or ``valid``.
    side
        Height and width that all images are resized to. None leaves them as they are, which a
        folder's pictures of any size do not allow.
    seed
        Of the bundled frames, and of what is held out where there is no validation split:
        :data:`HELD_OUT` of each class of the training images.

    Returns
    -------
    Splits
        uint8 (N, H, W, C) each, of one shape and with one list of class names.

    Raises
    ------
    ValueError
        If there is no such data, a split is missing, or the splits do not go together.
    """
    if side is not None and side < 1:
        raise ValueError(f"side must be at least 1, not {side!r}")
    path = Path(source)
    if str(source) == FRAMES:
        splits = digits_in_photographs(FrameConfig(seed=seed))
        parts = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    elif path.is_dir() and (path / "data_batch_1").exists():
        parts = dict(zip(("train", "test"), load_cifar10(path), strict=True))
    elif path.is_dir():
        parts = _folders(path, side)
    elif path.is_file():
        parts = _archive(path)
    else:
        raise ValueError(
            f"data must be {FRAMES!r} (the bundled frames), an .npz file, a folder with "
            f"train/<class>/<picture> and test/..., or CIFAR-10's python batches; "
            f"{str(source)!r} does not exist"
        )
    if side is not None:
        parts = {name: _resized(part, side) for name, part in parts.items()}
    _check_that_they_match(parts)
    if "validation" not in parts:
        rest, held_out = parts["train"].split(HELD_OUT, seed)
        if not len(held_out):
            raise ValueError(
                f"{source} must have a validation split, or enough training images to hold "
                f"{HELD_OUT:.0%} of a class out; {len(rest)} are too few"
            )
        parts |= {"train": rest, "validation": held_out}
    return Splits(**parts)


def _folders(path: Path, side: int | None) -> dict[str, Dataset]:
    """Load the splits that are there as sub-folders."""
    there = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    names = _named(path, there)
    missing = {"train", "test"} - set(names)
    if missing:
        hint = "; try moving part of train to test" if "train" in names else ""
        raise ValueError(
            f"{path} must hold train/<class>/<picture> and test/<class>/<picture>; there is no "
            f"{' and no '.join(sorted(missing))} among {there}{hint}"
        )
    if side is None:
        raise ValueError("side must be given for a folder's pictures, which may have any size")
    parts = {split: load_folder(path / name, side) for split, name in names.items()}
    train = parts["train"]
    bare = sorted(set(range(train.num_classes)) - set(train.labels.tolist()))
    if bare:
        name = path / names["train"] / train.class_names[bare[0]]
        raise ValueError(
            f"{name} must hold a picture of its class, not none; try moving pictures there out of "
            f"its sub-folders, or a suffix of {sorted(SUFFIXES)}"
        )
    return parts


def _named(path: Path, there: Iterable[str]) -> dict[str, str]:
    """Return what each split that is there is called."""
    names: dict[str, str] = {}
    for split, spellings in _NAMES.items():
        held = [name for name in spellings if name in there]
        if len(held) > 1:
            raise ValueError(f"{path} must have one {split} split, not {' and '.join(held)}")
        if held:
            names[split] = held[0]
    return names


def _archive(path: Path) -> dict[str, Dataset]:
    """Load the splits of an .npz; without names, all of them have as many classes as the most."""
    with open_npz(path) as archive:
        ends = [key.removesuffix("_images") for key in archive.files if key.endswith("_images")]
    names = {"train": "train", "test": "test"} | _named(path, ends)
    parts = {split: load_npz(path, name) for split, name in names.items()}
    most = max((part.class_names for part in parts.values()), key=len)
    return {name: replace(part, class_names=most) for name, part in parts.items()}


def _resized(part: Dataset, side: int) -> Dataset:
    """Resize a split by the contract's rule."""
    if part.images.shape[1:3] == (side, side):
        return part
    chunks = [
        resize(part.images[start : start + _CHUNK], side)
        for start in range(0, len(part.images), _CHUNK)
    ]
    return replace(part, images=np.concatenate(chunks))


def _check_that_they_match(parts: dict[str, Dataset]) -> None:
    """Raise where a split has no image, or images or classes that the training split has not."""
    first = parts["train"]
    for name, part in parts.items():
        if not len(part):
            raise ValueError(f"{name} must hold an image, not none")
        if part.images.shape[1:] != first.images.shape[1:]:
            raise ValueError(
                f"{name} must have images of {first.images.shape[1:]!r} as train has, not of "
                f"{part.images.shape[1:]!r}; try giving a side that all are resized to"
            )
        if part.class_names != first.class_names:
            raise ValueError(
                f"{name} must have the classes of train, {first.class_names!r}, "
                f"not {part.class_names!r}"
            )
