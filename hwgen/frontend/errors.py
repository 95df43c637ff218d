# SPDX-License-Identifier: Apache-2.0
"""The front end room: what is refused, and how that is said."""

from __future__ import annotations

from dataclasses import dataclass

from hwgen.ir import Source


class Refusal(Exception):
    """One operation that cannot be built: the reason, and what to write instead."""

    def __init__(self, reason: str, instead: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.instead = instead


@dataclass(frozen=True)
class Unsupported:
    """One line of `UnsupportedOperation`.

    Attributes
    ----------
    operation
        Such as ``aten.softmax`` or the ONNX operator's name.
    source
        Module path and source line.
    reason
        Why the machine cannot run it.
    instead
        What to write instead.
    """

    operation: str
    source: Source
    reason: str
    instead: str

    def __str__(self) -> str:
        """Return the four parts on three lines."""
        where = self.source.module or "the top-level module"
        line = f"\n    at {self.source.line}" if self.source.line else ""
        return f"{self.operation} in {where}{line}\n    {self.reason}; {self.instead}"


class UnsupportedOperation(ValueError):
    """The network holds operations the machine cannot run; `items` lists every one of them."""

    def __init__(self, items: list[Unsupported]) -> None:
        self.items = tuple(items)
        count = "1 operation" if len(items) == 1 else f"{len(items)} operations"
        listing = "\n".join(f"  {i}. {item}" for i, item in enumerate(items, 1))
        super().__init__(f"{count} of this network cannot run on the accelerator:\n{listing}")
