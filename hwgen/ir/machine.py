# SPDX-License-Identifier: Apache-2.0
"""The IR room: the machine level. Layers as groups of tn output channels, each a list of taps.

The lowering passes fill it in step by step: `passes/tile.py` makes the layers and layouts,
`passes/place.py` the addresses, `passes/schedule.py` the instructions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwgen.arch.isa import Mode
from hwgen.ir.types import Shape


@dataclass(frozen=True)
class TensorLayout:
    """How a feature map lies in the scratchpad.

    Attributes
    ----------
    shape
        (C, H, W) of the tensor.
    tiles
        Words a pixel.
    row_words
        Words a row: W * tiles, unless x-neighbours are folded into the word.
    origin_x
        Word of a row that holds pixel 0 in its first lanes (folded inputs start with padding).
    width
        Pixel positions of a row that may be read; positions outside see the pad value.
    order
        ``order[position]`` is the logical channel at that channel position.
    """

    shape: Shape
    tiles: int
    row_words: int
    origin_x: int
    width: int
    order: tuple[int, ...]

    @property
    def words(self) -> int:
        """Scratchpad words of the whole map."""
        return self.shape[1] * self.row_words


@dataclass(frozen=True)
class InputLoad:
    """How the network's input streams from DDR into words (see isa.LOAD)."""

    pixel_bytes: int
    pitch_bytes: int
    lead_bytes: int
    step_bytes: int
    take_bytes: int
    words_per_row: int
    fold: int


@dataclass(frozen=True)
class Tap:
    """One step of a group: `dy`, `dx` from the origin and `offset` words from its pixel."""

    dy: int
    dx: int
    offset: int


@dataclass(frozen=True, eq=False)
class Group:
    """Up to tn output channels that share one tap list.

    Attributes
    ----------
    taps
        Steps for every output pixel.
    synapse
        int8 (rows, tn, ti): channel parameters, then weights, as they lie in SB.
    input_offset, output_offset
        Words added to the layer's input and output addresses.
    lane_block
        Block of tn lanes of the output word.
    """

    taps: tuple[Tap, ...]
    synapse: NDArray[np.int8]
    input_offset: int
    output_offset: int
    lane_block: int


@dataclass(frozen=True, eq=False)
class MachineLayer:
    """One layer as the machine runs it: `groups`, one COMPUTE instruction each.

    Attributes
    ----------
    name, kind
        Of the node it came from.
    input, residual, output
        Names of tensors; `residual` may be None.
    macs
        Multiply-accumulates, counting only kernel slices that are not all zero.
    """

    name: str
    kind: str
    mode: Mode
    input: str
    residual: str | None
    output: str
    groups: tuple[Group, ...]
    stride: tuple[int, int]
    origin: tuple[int, int]
    pad_value: int
    zero_point: int
    lo: int
    hi: int
    residual_zero_point: int
    macs: int


@dataclass(frozen=True, eq=False)
class MachineGraph:
    """All layers in running order, the layout of every tensor and where each lies.

    Attributes
    ----------
    input, outputs
        Names of tensors.
    addresses
        First scratchpad word of each tensor; empty until placed.
    """

    layers: tuple[MachineLayer, ...]
    layouts: dict[str, TensorLayout]
    input: str
    input_load: InputLoad
    input_pad_value: int
    outputs: tuple[str, ...]
    addresses: dict[str, int]
