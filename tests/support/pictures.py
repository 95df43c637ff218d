# SPDX-License-Identifier: Apache-2.0
"""The tests room: a small network that takes pictures."""

from __future__ import annotations

from typing import Any

import torch

import hwgen
from hwgen.arch import AcceleratorConfig, Bundle
from tests.support.simulators import SMALL_BOARD


def network(
    side: int = 24,
    channels: int = 3,
    outputs: int = 5,
    config: AcceleratorConfig = SMALL_BOARD,
    **options: Any,
) -> Bundle:
    """Compile a small network that takes pictures and gives `outputs` numbers."""
    torch.manual_seed(3 + outputs)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(channels, 8, 3, padding=1, stride=2),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, outputs),
    ).eval()
    images = torch.randn(8, channels, side, side)
    means = tuple(0.4 + 0.1 * c for c in range(channels))
    return hwgen.compile(
        model, images[:1], images, config=config, preprocess=(means, (0.25,) * channels), **options
    )
