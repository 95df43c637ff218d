# SPDX-License-Identifier: Apache-2.0
"""Compression: telling one run from another, so that no checkpoint is taken for another's."""

from __future__ import annotations

import hashlib

import numpy as np
from torch import Tensor, nn


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by name."""
    held = (*model.named_parameters(), *model.named_buffers())
    return {name: value.detach() for name, value in held}


def digest(*parts: object) -> str:
    """Return SHA-256, as hex, of models (names and values), arrays, bytes, and ``repr`` of others.

    A ``repr`` must be the same in every run: give no objects that show their address.
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            for name, value in tensors(part).items():
                sha.update(name.encode())
                _add(sha, value.cpu().contiguous().numpy())
        elif isinstance(part, np.ndarray):
            _add(sha, np.ascontiguousarray(part))
        else:
            sha.update(part if isinstance(part, bytes) else repr(part).encode())
    return sha.hexdigest()


def _add(sha: hashlib._Hash, array: np.ndarray) -> None:
    sha.update(repr((array.shape, array.dtype.str)).encode())
    sha.update(array.tobytes())
