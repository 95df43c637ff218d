# SPDX-License-Identifier: Apache-2.0
"""Datasets: the bundled frames, and loaders for the user's own pictures."""

from hwgen.datasets.base import Dataset, Splits
from hwgen.datasets.frames import FrameConfig, digits_in_photographs
from hwgen.datasets.loaders import load_cifar10, load_folder, load_npz
from hwgen.datasets.splits import load_splits

__all__ = [
    "Dataset",
    "FrameConfig",
    "Splits",
    "digits_in_photographs",
    "load_cifar10",
    "load_folder",
    "load_npz",
    "load_splits",
]
