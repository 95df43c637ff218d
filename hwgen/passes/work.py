# SPDX-License-Identifier: Apache-2.0
"""The passes room: the work in its order. Runs of strips, and the COMPUTEs of each.

Before: layers, groups, and `passes/place.py`'s plan of chunks and strips. After: a list of runs
(one strip of one chunk of one layer, of one image), each with the windows of the scratchpad that it
sees and its COMPUTEs, which know their blocks of constants::

    layer 1  rows 0..1    group 0  taps 3..8 (row 0, below the padding), taps 0..8 (row 1)
    layer 1  rows 2..7    group 0  taps 0..8
    ...
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hwgen.arch import isa
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import BEAT_BYTES, LoadTarget, Mode
from hwgen.ir.machine import Group, MachineGraph, MachineLayer, TensorLayout
from hwgen.passes.place import (
    LayerPlan,
    Placement,
    Region,
    Strip,
    chunk_tiles,
    input_tiles,
)

ADDRESS_MODULUS = 1 << 16
#: Steps that leaving out the taps of padded rows must save for the row of parameters and the
#: instruction that it costs.
_WORTHWHILE_STEPS = 48
#: Array steps a bus beat of a streamed group, from which on the bus has time for more parameters.
_STEPS_A_BEAT = 1.1


class Split(enum.Enum):
    """Which groups have parameters of their own for rows at the edges."""

    NONE = "none"
    BUSY = "those that keep the array busier than the bus, were they streamed"
    ALL = "all that save steps"


@dataclass(eq=False)
class Block:
    """Constants that COMPUTEs need on chip: their bytes, and where these lie in DDR and on chip.

    `steps` counts the array's steps with them in a program: a block with few steps a unit keeps the
    bus busier than the array. A `resident` block never leaves its address.
    """

    data: bytes
    target: LoadTarget
    units: int
    offset_bytes: int = -1
    address: int = -1
    steps: int = 0
    resident: bool = False


@dataclass(frozen=True)
class RowRange:
    """Output rows [first, last), which walk taps [tap_first, tap_last) of their group's list.

    `parameter_row` is the first of their channel parameters, in rows of the group's SB block. In a
    group of several parts `resume` and `hold` say whether a part goes on with the sums of the one
    before, and keeps its own for the next.
    """

    first: int
    last: int
    tap_first: int
    tap_last: int
    parameter_row: int
    resume: bool = False
    hold: bool = False


@dataclass(frozen=True, eq=False)
class GroupCode:
    """A group's SB block, parameters then weights, and what each range of rows uses of it.

    A group too large for SB is several of them, each with a part of the taps.
    """

    group: Group
    block: Block
    ranges: tuple[RowRange, ...]
    weight_row: int


@dataclass(frozen=True)
class Window:
    """Part of a tensor in the scratchpad: tile `tile`, row `row` at `address`, then its rows."""

    address: int
    rows: int
    row: int
    tile: int
    layout: TensorLayout

    @property
    def plane_words(self) -> int:
        """Words from one tile to the next."""
        return self.rows * self.layout.row_words

    def at(self, tile: int, row: int) -> int:
        """Return the first word of a row."""
        rows = (tile - self.tile) * self.rows + row - self.row
        return self.address + rows * self.layout.row_words

    def words(self, tiles: range, first: int, last: int) -> list[slice]:
        """Return the words of rows [first, last), a slice a tile."""
        return [slice(self.at(tile, first), self.at(tile, last)) for tile in tiles]


@dataclass(frozen=True, eq=False)
class Run:
    """One strip of one chunk of a layer, for one image.

    `tiles` are those of the output (and residual) that the chunk writes, `input_tiles` those that
    it reads.
    """

    layer: MachineLayer
    plan: LayerPlan
    strip: Strip
    image: int
    input: Window
    residual: Window | None
    output: Window
    tiles: range
    input_tiles: range
    last_of_layer: bool
    works: list[Work] = field(default_factory=list)

    @property
    def input_rows(self) -> tuple[int, int]:
        """Rows [a, b) of the input that the strip looks at."""
        return self.layer.input_rows(self.strip.first, self.strip.last, self.input.layout.height)


@dataclass(eq=False)
class Work:
    """One COMPUTE: output rows [first, last) and columns [left, right) of a group."""

    run: Run
    code: GroupCode
    range: RowRange
    first: int
    last: int
    left: int
    right: int
    taps: Block
    offsets: NDArray[np.int64]


class WorkList:
    """All runs of a placed network, and the blocks of constants that they use.

    Parameters
    ----------
    split
        For which groups rows at the upper and lower edge leave out the taps of the padding, at the
        price of parameters of their own.
    synapse_rows, tap_entries
        What there is of them. A group that needs more is cut into parts, whose sums the
        accumulators keep from one to the next, a group of tp pixels after the other.
    """

    def __init__(
        self,
        graph: MachineGraph,
        placed: Placement,
        config: AcceleratorConfig,
        split: Split,
        synapse_rows: int,
        tap_entries: int,
    ) -> None:
        self.graph, self.placed, self.config = graph, placed, config
        # Two parts fit, so that one is loaded while the other computes.
        self._largest_part = min((synapse_rows // 2) - config.parameter_rows, tap_entries // 2)
        self._most_rows = synapse_rows
        self._most_taps = tap_entries
        self._synapse_blocks: dict[bytes, Block] = {}
        self._tap_blocks: dict[bytes, Block] = {}
        self.codes = [self._layer_codes(layer, split) for layer in graph.layers]
        self.runs = list(self._runs())
        for run in self.runs:
            for work in run.works:
                pixels = (work.last - work.first) * -(-(work.right - work.left) // config.tp)
                work.code.block.steps += pixels * (work.range.tap_last - work.range.tap_first)

    @property
    def synapse_blocks(self) -> list[Block]:
        """SB blocks, each once, in the order of their first use."""
        return list(self._synapse_blocks.values())

    @property
    def tap_blocks(self) -> list[Block]:
        """Tap lists, each once."""
        return list(self._tap_blocks.values())

    def _layer_codes(self, layer: MachineLayer, split: Split) -> list[tuple[GroupCode, ...]]:
        """Make each group's SB block, or blocks.

        Output rows at the upper and lower edge see padding through some of their taps. A padded
        tap's product is a constant, so these rows get parameters of their own with that constant
        in the bias, and walk the other taps alone: padding above and below costs no step.
        """
        _, height, width = self.graph.layouts[layer.output].shape
        images = self.placed.images if self.placed.layer_major else 1
        steps_a_tap = -(-width // self.config.tp) * images
        codes = []
        for group in layer.groups:
            if group.synapse_rows > self._most_rows or len(group.taps) > self._most_taps:
                codes.append(tuple(self._parts(group, height)))
                continue
            ranges: tuple[RowRange, ...] = (RowRange(0, height, 0, len(group.taps), 0),)
            parameters = [group.parameters]
            beats = group.synapse_rows * self.config.synapse_row_bytes // BEAT_BYTES
            busy = len(group.taps) * height * steps_a_tap > _STEPS_A_BEAT * beats
            wanted = split == Split.ALL or (split == Split.BUSY and busy)
            if layer.mode == Mode.DENSE and wanted:
                source = self.graph.layouts[layer.input].height
                found = _split_rows(layer, group, height, source, steps_a_tap)
                ranges, parameters = found or (ranges, parameters)
            rows = np.concatenate([*parameters, group.weights])
            weight_row = len(rows) - len(group.weights)
            codes.append((GroupCode(group, self._synapse_block(rows), ranges, weight_row),))
        return codes

    def _synapse_block(self, rows: NDArray[np.int8]) -> Block:
        """Return the block of these rows; pools have the same parameters for every tile."""
        data = rows.tobytes()
        if data not in self._synapse_blocks:
            self._synapse_blocks[data] = Block(data, LoadTarget.SYNAPSE, len(rows))
        return self._synapse_blocks[data]

    def _parts(self, group: Group, height: int) -> Iterator[GroupCode]:
        """Cut a dense group into parts of its taps, each with a copy of the parameters."""
        taps, size = len(group.taps), self._largest_part
        for first in range(0, taps, size):
            last = min(first + size, taps)
            part = replace(group, taps=group.taps[first:last], weights=group.weights[first:last])
            block = self._synapse_block(np.concatenate([part.parameters, part.weights]))
            ranges = (RowRange(0, height, 0, last - first, 0, first > 0, last < taps),)
            yield GroupCode(part, block, ranges, len(part.parameters))

    def _runs(self) -> Iterator[Run]:
        """List the runs in their order, each with its COMPUTEs."""
        for image in range(1 if self.placed.layer_major else self.placed.images):
            before: list[Run] = []
            for index, plan in enumerate(self.placed.plans):
                runs = list(self._layer_runs(index, image))
                if plan.interleaved:
                    runs = _interleaved(before, runs)
                else:
                    yield from before
                before = runs
            yield from before

    def _layer_runs(self, index: int, image: int) -> Iterator[Run]:
        """List one layer's runs: chunks, then strips."""
        layer, plan = self.graph.layers[index], self.placed.plans[index]
        passes = [(chunk, strip) for chunk in plan.chunks for strip in plan.strips]
        for number, (chunk, strip) in enumerate(passes):
            own = strip.image if self.placed.layer_major else image
            over = chunk == plan.chunks[-1] and (
                number + 1 == len(passes) or passes[number + 1][1].image != strip.image
            )
            run = self._run(layer, plan, chunk, strip, own, number, over)
            run.works.extend(self._works(run, self.codes[index][chunk[0] : chunk[1]]))
            yield run

    def _run(
        self,
        layer: MachineLayer,
        plan: LayerPlan,
        chunk: tuple[int, int],
        strip: Strip,
        image: int,
        number: int,
        over: bool,
    ) -> Run:
        tiles = chunk_tiles(layer, chunk)
        height = self.graph.layouts[layer.input].height
        low, _ = layer.input_rows(strip.first, strip.last, height)

        def window(role: str, name: str, row: int, first_tile: int, planes: int) -> Window:
            """Find a tensor's part: in its own region, or in the strip buffer whose turn it is."""
            layout = self.graph.layouts[name]
            buffer: Region | None = plan.buffers.get(role)
            if buffer is None:
                region = self.placed.regions[name]
                address = region.address + image % region.slots * layout.words
                return Window(address, region.rows, 0, 0, layout)
            words = planes * buffer.rows * layout.row_words
            address = buffer.address + number % buffer.slots * words
            return Window(address, buffer.rows, row, first_tile, layout)

        planes = max(len(chunk_tiles(layer, c)) for c in plan.chunks)
        residual = None
        if layer.residual is not None:
            residual = window("residual", layer.residual, strip.first, tiles[0], planes)
        into = self.graph.layouts[layer.input]
        reads = input_tiles(layer, chunk, into)
        most = max(len(input_tiles(layer, c, into)) for c in plan.chunks)
        return Run(
            layer,
            plan,
            strip,
            image,
            window("input", layer.input, low, reads[0], most),
            residual,
            window("output", layer.output, strip.first, tiles[0], planes),
            tiles,
            reads,
            over,
        )

    def _works(self, run: Run, codes: list[tuple[GroupCode, ...]]) -> Iterator[Work]:
        """Cut a run into COMPUTEs: a group, then a range of rows with one tap list.

        Pixels that tp can't read together are computed column by column, and the parts of a group
        for tp pixels at a time.
        """
        width = run.output.layout.shape[2]
        apart = width == 1 or self.config.pixels_apart(run.layer.stride[1])
        for parts in codes:
            taps = [self._taps(code.group, run.input) for code in parts]
            for rows in parts[0].ranges:
                first, last = max(rows.first, run.strip.first), min(rows.last, run.strip.last)
                high, wide = last - first, width if apart else 1
                if len(parts) > 1:
                    high, wide = 1, min(wide, self.config.tp)
                for y in range(first, last, max(1, high)):
                    for x in range(0, width, wide):
                        right = min(x + wide, width)
                        for code, (block, offsets) in zip(parts, taps, strict=True):
                            own = rows if len(parts) == 1 else code.ranges[0]
                            yield Work(run, code, own, y, y + high, x, right, block, offsets)

    def _taps(self, group: Group, window: Window) -> tuple[Block, NDArray[np.int64]]:
        """Turn (dy, dx, tile) into word offsets; equal lists share one block.

        Raises
        ------
        FieldRangeError
            When a kernel reaches further than a tap's fields do.
        """
        taps = np.array([(tap.dy, tap.dx, tap.tile) for tap in group.taps], dtype=np.int64)
        offsets = taps @ np.array([window.layout.row_words, 1, window.plane_words])
        values = {"offset": offsets % ADDRESS_MODULUS, "dy": taps[:, 0], "dx": taps[:, 1]}
        isa.TAP.pack({name: int(column.max()) for name, column in values.items()})
        words = np.zeros(len(taps), dtype="<u8")
        for tap_field, position in isa.TAP.placed():
            words |= values[tap_field.name].astype("<u8") << np.uint64(position)
        data = words.tobytes()
        if data not in self._tap_blocks:
            self._tap_blocks[data] = Block(data, LoadTarget.TAP, len(taps))
        return self._tap_blocks[data], offsets


def _interleaved(makers: list[Run], readers: list[Run]) -> list[Run]:
    """Put each reader behind the maker of its last row, and one more while that row is stored."""
    merged, waiting = [], list(readers)
    for number, maker in enumerate(makers):
        merged.append(maker)
        made = [(run.image, run.strip.last) for run in makers[:number]]
        while waiting and (waiting[0].image, waiting[0].input_rows[1]) <= max(
            made, default=(-1, 0)
        ):
            merged.append(waiting.pop(0))
    return merged + waiting


def _split_rows(
    layer: MachineLayer, group: Group, height: int, source: int, steps_a_tap: int
) -> tuple[tuple[RowRange, ...], list[NDArray[np.int8]]] | None:
    """Cut output rows by the taps that see the input, where that saves enough steps.

    Before, for a 3x3 kernel on 8 rows with padding (9 taps, by rising dy)::

        rows 0..7: taps 0..8

    After::

        row 0: taps 3..8      rows 1..6: taps 0..8      row 7: taps 0..5

    Returns the ranges and each set of parameters once; None where a bias would leave 32 bits.
    """
    dy = np.array([tap.dy for tap in group.taps])
    found: list[tuple[int, int, int, int]] = []
    for y in range(height):
        top = y * layer.stride[0] + layer.origin[0]
        seen = np.flatnonzero((top + dy >= 0) & (top + dy < source))
        low, high = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, len(dy))
        found.append((y, y + 1, low, high))
    found = _merged(found)
    middle = max(found, key=lambda rows: rows[1] - rows[0])
    kept = _merged(
        [
            (first, last, low, high)
            if (first, last, low, high) == middle
            or (len(dy) - high + low) * (last - first) * steps_a_tap >= _WORTHWHILE_STEPS
            else (first, last, 0, len(dy))
            for first, last, low, high in found
        ]
    )
    parameters: list[NDArray[np.int8]] = []
    rows_of: dict[tuple[int, int], int] = {}
    for _, _, low, high in kept:
        if (low, high) not in rows_of:
            own = _with_padding(layer, group, low, high)
            if own is None:
                return None
            rows_of[low, high] = sum(map(len, parameters))
            parameters.append(own)
    return tuple(RowRange(*rows, rows_of[rows[2:]]) for rows in kept), parameters


def _merged(ranges: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Join neighbouring row ranges with the same taps."""
    joined: list[tuple[int, int, int, int]] = []
    for rows in ranges:
        if joined and joined[-1][2:] == rows[2:]:
            joined[-1] = (joined[-1][0], *rows[1:])
        else:
            joined.append(rows)
    return joined


def _with_padding(
    layer: MachineLayer, group: Group, low: int, high: int
) -> NDArray[np.int8] | None:
    """Return the group's parameters with what taps outside [low, high) see added to the bias.

    They see the pad value in every lane. None where a bias would leave 32 bits.
    """
    outside = np.concatenate([group.weights[:low], group.weights[high:]])
    parameters = group.parameters.copy()
    bias_bytes = isa.CHANNEL_PARAMETERS.by_name["bias"].bits // 8  # the first field of a slot
    place = parameters[0, :, :bias_bytes]
    bias = np.ascontiguousarray(place).view("<i4")[:, 0].astype(np.int64)
    bias += layer.pad_value * outside.astype(np.int64).sum(axis=(0, 2))
    if bias.min(initial=0) < -(2**31) or bias.max(initial=0) >= 2**31:
        return None
    place[:] = bias.astype("<i4")[:, None].view(np.int8)
    return parameters
