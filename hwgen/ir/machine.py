# SPDX-License-Identifier: Apache-2.0
"""The IR room: the machine level. Layers as groups of tn output channels, each a list of taps.

`passes/tile.py` makes it, `passes/place.py` says where its tensors lie and in which strips its
layers run, `passes/schedule.py` turns both into instructions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwgen.arch.isa import Mode
from hwgen.ir.types import Shape


@dataclass(frozen=True)
class TensorLayout:
    """How a feature map lies in the scratchpad: tile by tile, each a plane of rows of pixels.

    A tile is `ti` channels, one word a pixel. Neighbouring pixels are neighbouring words, so that
    a step reads tp of them from different slices.

    Attributes
    ----------
    shape
        (C, H, W) of the tensor.
    tiles
        Planes.
    row_words
        Words a row: W, unless x-neighbours are folded into the word.
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
    def height(self) -> int:
        """Rows of the tensor."""
        return self.shape[1]

    @property
    def words(self) -> int:
        """Scratchpad words of the whole map."""
        return self.tiles * self.height * self.row_words


@dataclass(frozen=True)
class InputLoad:
    """How the network's input streams from DDR into words (see isa.LOAD).

    With `fold` above 1 a word holds that many x-neighbours, from every `step`-th pixel on.
    An input of more than `ti` channels lies in DDR tile by tile, as it will in the scratchpad;
    `plane_bytes` is then from one tile to the next, else 0.
    """

    pixel_bytes: int
    pitch_bytes: int
    lead_bytes: int
    step_bytes: int
    take_bytes: int
    words_per_row: int
    fold: int
    step: int
    plane_bytes: int


@dataclass(frozen=True)
class Tap:
    """One step of a group: `dy` rows and `dx` pixels from the origin, in tile `tile`."""

    dy: int
    dx: int
    tile: int


@dataclass(frozen=True, eq=False)
class Group:
    """Up to tn output channels that share one tap list.

    Attributes
    ----------
    taps
        Steps for every output pixel, by rising `dy`.
    parameters
        int8 (parameter_rows, tn, ti): channel parameters as they lie in SB.
    weights
        int8 (rows, tn, ti): weights as they lie in SB; none for pools.
    input_tile, output_tile
        Tile that the group's taps count from, and tile it writes.
    lane_block
        Block of tn lanes of the output word.
    """

    taps: tuple[Tap, ...]
    parameters: NDArray[np.int8]
    weights: NDArray[np.int8]
    input_tile: int
    output_tile: int
    lane_block: int

    @property
    def synapse_rows(self) -> int:
        """SB rows of parameters and weights together."""
        return len(self.parameters) + len(self.weights)


@dataclass(frozen=True, eq=False)
class MachineLayer:
    """One layer as the machine runs it.

    Attributes
    ----------
    name, kind
        Of the node it came from.
    input, residual, output
        Names of tensors; `residual` may be None.
    span
        Input rows from the first tap's to the last tap's, both included.
    macs
        Multiply-accumulates as papers count them, padding's included; kernel slices that are all
        zero are none.
    padding_macs
        Those of `macs` that see padding above or below the input.
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
    span: int
    pad_value: int
    zero_point: int
    lo: int
    hi: int
    residual_zero_point: int
    macs: int
    padding_macs: int

    def input_rows(self, first: int, last: int, height: int) -> tuple[int, int]:
        """Rows [a, b) of an input of `height` rows that output rows [first, last) look at.

        At least one row, also where all that they see is padding.
        """
        low = max(0, min(first * self.stride[0] + self.origin[0], height - 1))
        high = min(height, (last - 1) * self.stride[0] + self.origin[0] + self.span)
        return low, max(high, low + 1)


@dataclass(frozen=True, eq=False)
class MachineGraph:
    """All layers in running order and the layout of every tensor.

    Attributes
    ----------
    input, outputs
        Names of tensors.
    """

    layers: tuple[MachineLayer, ...]
    layouts: dict[str, TensorLayout]
    input: str
    input_load: InputLoad
    input_pad_value: int
    outputs: tuple[str, ...]
