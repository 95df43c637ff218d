# SPDX-License-Identifier: Apache-2.0
"""The back-end room: hls4ml's number types, and the layers that a network becomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

IoType = Literal["io_stream", "io_parallel"]
Ints = NDArray[np.int64]


class HlsError(ValueError):
    """What hls4ml cannot take; the message says what, why and what to try."""


class HlsRefusal(HlsError):
    """Nodes that hls4ml cannot compute exactly.

    Attributes
    ----------
    refused
        (node, reason, what to do instead) of each.
    """

    def __init__(self, refused: list[tuple[str, str, str]]) -> None:
        self.refused = tuple(refused)
        lines = [f"  {node}: {reason}; {instead}" for node, reason, instead in refused]
        what = "node" if len(refused) == 1 else "nodes"
        super().__init__(
            f"hls4ml cannot compute {len(refused)} {what} exactly, nothing was written:\n"
            + "\n".join(lines)
        )


class DoesNotFit(HlsError):
    """No legal reuse factors bring the network onto the board."""


class HlsMismatch(HlsError):
    """hls4ml's compiled model gives another bit than the quantized graph."""


@dataclass(frozen=True)
class Fixed:
    """An ``ap_fixed`` or ``ap_ufixed`` whose lowest bit is worth ``2**lsb``.

    `requantizes` makes it round half up (AP_RND) and saturate (AP_SAT) on assignment, as
    `hwgen.arch.numerics.requantize` does. The others hold what is assigned exactly.
    `symmetric` saturates at minus the largest value (AP_SAT_SYM).
    """

    width: int
    lsb: int
    signed: bool = True
    requantizes: bool = False
    symmetric: bool = False

    @property
    def low(self) -> int:
        """Smallest code."""
        if not self.signed:
            return 0
        return -(1 << (self.width - 1)) + int(self.symmetric)

    @property
    def high(self) -> int:
        """Largest code."""
        return (1 << (self.width - int(self.signed))) - 1

    def __str__(self) -> str:
        """Return it as hls4ml's configuration writes it."""
        modes = ""
        if self.requantizes:
            modes = ",RND,SAT_SYM" if self.symmetric else ",RND,SAT"
        return f"{'' if self.signed else 'u'}fixed<{self.width},{self.width + self.lsb}{modes}>"


def exact_type(codes: Ints, lsb: int) -> Fixed:
    """Return the type that holds ``codes * 2**lsb``.

    Three bits at least: hls4ml reads types of one and two bits as binary and ternary weights,
    which have another product.
    """
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    return Fixed(max(3, 1 + (~low).bit_length() if low < 0 else 0, 1 + high.bit_length()), lsb)


@dataclass(frozen=True)
class Work:
    """Multiplications of a layer: a matrix product of n_in x n_out for each of `positions`.

    Attributes
    ----------
    multiplications
        Of one position: n_in * n_out, for depthwise n_in.
    positions_in, positions
        Pixels read (padding included) and pixels written.
    weight_bits, data_bits
        Widths of the operands.
    constant
        All weights are powers of two: wires.
    """

    kind: Literal["conv", "dense", "depthwise"]
    n_in: int
    n_out: int
    multiplications: int
    positions_in: int
    positions: int
    weight_bits: int
    data_bits: int
    constant: bool = False


@dataclass(frozen=True, eq=False)
class Op:
    """One hls4ml layer.

    Attributes
    ----------
    kind
        hls4ml's class name.
    shape
        Of the result as hls4ml sees it: (H, W, C) or (F,).
    types
        "result", and where the layer has them "weight" (or "scale"), "bias" and "accum".
    node
        Name of the quantized graph's node that it came from.
    arrays
        Weights and the like, as float64 that are exact multiples of the type's lowest bit.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    types: dict[str, Fixed]
    node: str
    attributes: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    work: Work | None = None
