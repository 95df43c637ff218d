# SPDX-License-Identifier: Apache-2.0
"""The quantization room: calibration images from a file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KEY = "images"


def load_calibration(path: str | Path) -> NDArray[np.float32]:
    """Read float32 (N, C, H, W) from a ``.npy``, or from ``images`` of a ``.npz``.

    Raises
    ------
    ValueError
        When the file holds something else.
    OSError
        When it cannot be read.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                if KEY not in loaded:
                    raise ValueError(f"it must hold {KEY!r}, not {sorted(loaded.files)}")
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
    return np.ascontiguousarray(loaded)
