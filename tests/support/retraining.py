# SPDX-License-Identifier: Apache-2.0
"""Retraining that leaves a mark, so that a test sees whether its result is the one that counts."""

from __future__ import annotations

import copy

import torch
from torch import nn

from hwgen.compress.relevance import FineTune


def marking(value: float = 7.0) -> FineTune:
    """Return a ``fine_tune`` that sets the last parameter of a copy."""

    def fine_tune(model: nn.Module) -> nn.Module:
        tuned = copy.deepcopy(model)
        with torch.no_grad():
            list(tuned.parameters())[-1].fill_(value)
        return tuned

    return fine_tune


def mark_of(model: nn.Module) -> float:
    """Return what is there, 0 if it was never set."""
    last = list(model.parameters())[-1].detach()
    return float(last.reshape(-1)[0]) if bool((last == last.reshape(-1)[0]).all()) else 0.0
