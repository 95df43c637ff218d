# SPDX-License-Identifier: Apache-2.0
"""Compression: checks that the dataclasses of knobs share."""

from __future__ import annotations

from typing import Any, get_args


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse a value that is none of a ``Literal``'s."""
    allowed = get_args(choices)
    if value not in allowed:
        most, last = ", ".join(allowed[:-1]), allowed[-1]
        raise ValueError(f"{name} must be {most} or {last}, not {value!r}")


def check_counts(**counts: int) -> None:
    """Refuse a number below 1."""
    for name, value in counts.items():
        if not value >= 1:
            raise ValueError(f"{name} must be at least 1, not {value!r}")


def check_not_negative(**values: float) -> None:
    """Refuse a number below 0, and NaN."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, not {value!r}")
