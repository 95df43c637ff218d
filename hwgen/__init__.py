# SPDX-License-Identifier: Apache-2.0
"""The generator room: from a PyTorch CNN to a bundle that the accelerator runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwgen.compiler import compile

__all__ = ["compile"]


def __getattr__(name: str) -> Any:
    """Import the compiler on first use: a board that only loads bundles has numpy alone."""
    if name == "compile":
        from hwgen.compiler import compile

        return compile
    raise AttributeError(f"module 'hwgen' has no attribute {name!r}")
