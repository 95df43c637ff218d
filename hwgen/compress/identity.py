# SPDX-License-Identifier: Apache-2.0
"""Compression: telling one run from another, so that no checkpoint is taken for another's."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import numpy as np
from torch import Tensor, fx, nn

from hwgen.compress.evaluation import evaluating
from hwgen.compress.inputs import preprocess_of


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by name."""
    held = (*model.named_parameters(), *model.named_buffers())
    return {name: value.detach() for name, value in held}


def form(model: nn.Module) -> str:
    """Return what a model computes apart from its tensors, as text.

    That is its modules with their knobs, what it is fed, which of its parameters are frozen and, if
    torch.fx can follow it, its graph in eval mode.
    """
    steps: list[str] = []
    with evaluating(model), suppress(Exception):  # one that trips is told by its modules alone
        steps = [
            f"{node.op} {getattr(node.target, '__name__', node.target)} {node.args} {node.kwargs}"
            for node in fx.Tracer().trace(model).nodes
        ]
    steps += [f"frozen {name}" for name, held in model.named_parameters() if not held.requires_grad]
    return "\n".join([repr(model), repr(preprocess_of(model)), *steps])


def digest(*parts: object) -> str:
    """Return SHA-256, as hex, of models, arrays, bytes, and ``repr`` of others.

    Models are told by their :func:`form` and by their tensors' names and values.

    A ``repr`` must be the same in every run: give no objects that show their address.
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            sha.update(form(part).encode())
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
