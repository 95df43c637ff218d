# SPDX-License-Identifier: Apache-2.0
"""The IR room: what an edge of the graph carries, and where a node came from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Shape = tuple[int, int, int]
"""(C, H, W); a vector of F features is (F, 1, 1). The batch is never part of a shape."""
Pair = tuple[int, int]
"""(along y, along x)."""
Padding = tuple[Pair, Pair]
"""((top, bottom), (left, right))."""
Level = Literal["float", "fused", "quantized"]


class IRError(ValueError):
    """A graph that breaks a rule of its level; the message names the node."""


@dataclass(frozen=True)
class Source:
    """Where a node came from, for messages.

    Attributes
    ----------
    module
        Path of the module in the user's network, such as ``layer1.0.conv2`` (may be empty).
    line
        Source line, such as ``net.py:34: y = self.conv2(y)`` (may be empty).
    """

    module: str = ""
    line: str = ""

    def __str__(self) -> str:
        """Return both parts, or an empty text."""
        return " at ".join(part for part in (self.module, self.line) if part)


@dataclass(frozen=True)
class QuantParams:
    """Affine int8 code of an edge: ``real = (code - zero_point) * scale``."""

    scale: float
    zero_point: int = 0

    def __post_init__(self) -> None:
        """Refuse a scale or a zero point that no int8 edge can have."""
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise IRError(f"scale must be finite and positive, not {self.scale!r}")
        if not -128 <= self.zero_point <= 127:
            raise IRError(f"zero_point must be in -128..127, not {self.zero_point!r}")

    @property
    def scale_log2(self) -> int:
        """Exponent of a power-of-two scale; raises `IRError` for any other scale."""
        mantissa, exponent = math.frexp(self.scale)
        if mantissa != 0.5:
            raise IRError(f"scale must be a power of two, not {self.scale!r}")
        return exponent - 1


@dataclass(frozen=True)
class TensorType:
    """Type of an edge: (C, H, W), element type and, at the quantized level, its code."""

    shape: Shape
    dtype: Literal["float32", "int8"] = "float32"
    quant: QuantParams | None = None

    def __str__(self) -> str:
        """Return such as ``int8[16,32,32] * 0.0123 zp -128``."""
        text = f"{self.dtype}[{','.join(map(str, self.shape))}]"
        if self.quant is not None:
            text += f" * {self.quant.scale:.6g} zp {self.quant.zero_point}"
        return text
