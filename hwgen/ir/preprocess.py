# SPDX-License-Identifier: Apache-2.0
"""The IR room: what a network is fed, which goes with it from a torch module into its graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Preprocess = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of pixels in [0, 1], one for each channel or one for all."""

ATTRIBUTE = "_shears_preprocess"
"""Of a torch module that :func:`hwgen.compress.with_preprocess` returned."""


def given_preprocess(module: Any) -> Preprocess | None:
    """Return what a torch module, or one inside of it, was given; None if none was."""
    given = (getattr(inner, ATTRIBUTE, None) for inner in module.modules())
    return next((found for found in given if found is not None), None)


def for_channels(preprocess: tuple[Sequence[float], Sequence[float]], channels: int) -> Preprocess:
    """Return a mean and a deviation for each of the channels.

    Raises
    ------
    ValueError
        If they are not one for all, or as many as the channels or a whole part of them, as those of
        pictures that lie side by side are; or if a deviation is not above 0.
    """
    mean, std = (tuple(float(value) for value in values) for values in preprocess)
    count = len(mean)
    if not count or len(std) != count or channels % count:
        raise ValueError(
            f"images must have as many channels as there are means and deviations, {count} and "
            f"{len(std)}, not {channels}; try one of each, or {channels}"
        )
    if not min(std) > 0.0:
        raise ValueError(f"each std must be above 0, not {std!r}; try 1 where there is none")
    return mean * (channels // count), std * (channels // count)
