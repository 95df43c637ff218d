# SPDX-License-Identifier: Apache-2.0
"""Compression: looking at a model without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and at the end each of its modules back into its own.

    Batch norms that somebody holds in eval mode, in a model that is in training, stay there.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
