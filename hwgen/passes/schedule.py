# SPDX-License-Identifier: Apache-2.0
"""The passes room: from the list of work to instructions for the three queues.

Before: runs of COMPUTEs and where everything lies. After: a setup program that fills SB and the tap
buffer, and the program of one image (or of a batch)::

    LOAD first rows of the image  signals compute
    LOAD the rows behind them     signals compute
    COMPUTE layer 1, first rows   waits for the first load
    COMPUTE layer 1, other rows   waits for the second
    COMPUTE ...
    COMPUTE last layer            signals store
    STORE logits                  waits for compute
    END

Jobs are made in an order that would be right one after the other. `passes/hazards.py` finds what
each must really wait for, and LOADs are moved up as far as what they overwrite allows.

What fits SB and the tap buffer stays there, loaded once by the setup program. Where not all of it
does, a part of SB is a ring: a block is loaded ahead of its first COMPUTE, and stays until the ring
comes round to it.

COMPUTEs among themselves are timed by `passes/start_delay.py`.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwgen.arch import isa
from hwgen.arch.bundle import BASE_CONSTANTS, LayerRecord, Placement, TensorPlacement
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import LoadTarget, Mode, Opcode, Queue
from hwgen.ir.graph import Graph
from hwgen.ir.machine import MachineGraph
from hwgen.passes import place
from hwgen.passes.hazards import Hazards, Instruction, Job, give_tokens
from hwgen.passes.start_delay import set_start_delays
from hwgen.passes.work import ADDRESS_MODULUS, Block, Run, Split, Window, Work, WorkList

_MAX_COMPUTES_AHEAD = 128


class CapacityError(ValueError):
    """An on-chip buffer is too small for any part of a group; the message names the layer."""


@dataclass
class Schedule:
    """Everything a bundle holds, not yet encoded."""

    setup: list[Instruction]
    program: list[Instruction]
    constants: bytes
    placement: Placement
    input: TensorPlacement
    outputs: tuple[TensorPlacement, ...]
    layers: tuple[LayerRecord, ...]
    resident_rows: int
    streamed_rows: int
    largest_streamed_rows: int


def schedule(
    graph: MachineGraph,
    placed: place.Placement,
    quantized: Graph,
    config: AcceleratorConfig,
    free: Placement,
    split: Split = Split.ALL,
    resident_rows: int | None = None,
) -> Schedule:
    """Turn a placed machine graph into instructions.

    Parameters
    ----------
    quantized
        The graph it came from, for the scales of inputs and outputs.
    free
        SB rows and tap entries that this network may use; what is outside stays untouched, so that
        several networks can be resident together.
    split
        See `WorkList`.
    resident_rows
        SB rows for weights that stay, where not all of them do; all rows if None.

    Raises
    ------
    CapacityError
        When SB or the tap buffer are too small for two parts of a group.
    """
    _check_capacity(graph, config, free)
    work = WorkList(graph, placed, config, split, free.synapse_rows, free.tap_entries)
    rings, kept = {}, {}
    for blocks, start, size, limit in (
        (work.synapse_blocks, free.synapse_row, free.synapse_rows, resident_rows),
        (work.tap_blocks, free.tap_entry, free.tap_entries, None if resident_rows is None else 0),
    ):
        target = blocks[0].target
        kept[target] = _keep(blocks, start, size, limit)
        rings[target] = _Ring(start + kept[target], size - kept[target])
    used = replace(free, synapse_rows=kept[LoadTarget.SYNAPSE], tap_entries=kept[LoadTarget.TAP])
    streamed = [block for block in (*work.synapse_blocks, *work.tap_blocks) if not block.resident]
    if streamed:
        used = free
    constants, setup = _place_constants(work)
    jobs = _Jobs(graph, placed, config, rings)
    jobs.make(work.runs)
    program = list(jobs.in_program_order())
    return Schedule(
        setup,
        program,
        constants,
        used,
        _input_placement(graph, placed, quantized),
        tuple(_output_placement(graph, placed, quantized, n, config) for n in graph.outputs),
        _records(graph, placed, jobs, program, config),
        kept[LoadTarget.SYNAPSE],
        sum(b.units for b in streamed if b.target == LoadTarget.SYNAPSE),
        max((b.units for b in streamed if b.target == LoadTarget.SYNAPSE), default=0),
    )


def _check_capacity(graph: MachineGraph, config: AcceleratorConfig, free: Placement) -> None:
    """Insist that each group fits the buffers, or two parts of it where it can be cut."""
    for layer in graph.layers:
        for group in layer.groups:
            rows, entries = group.synapse_rows, len(group.taps)
            if layer.mode == Mode.DENSE:
                rows, entries = min(rows, 2 * (config.parameter_rows + 1)), min(entries, 2)
            for what, units, size in (
                ("synapse_rows", rows, free.synapse_rows),
                ("tap_entries", entries, free.tap_entries),
            ):
                if units > size:
                    raise CapacityError(
                        f"a group of layer {layer.name!r} needs {units} of {what}, the machine has "
                        f"{size} free of {getattr(config, what)}; try a configuration with more "
                        f"{what}, or fewer input channels or a smaller kernel in this layer"
                    )


def _keep(blocks: Sequence[Block], start: int, size: int, limit: int | None) -> int:
    """Choose the blocks that stay on chip, from address `start` on; return how many units.

    All of them where they fit. Else the smallest ones, which would only be in the others' way, and
    at most `limit` units more: those first that keep the bus busiest for the array's time, and of
    equal ones such as lie far apart, so that the bus is relieved all along the program.
    """
    if sum(block.units for block in blocks) <= size:
        limit, largest = size, 0
    else:
        limit = size if limit is None else min(limit, size)
        largest = max(block.units for block in blocks)
    kinds: dict[float, list[Block]] = {}
    small, kept = largest // 32, 0
    for block in blocks:
        if largest and block.units <= small and kept + block.units <= size // 16:
            block.address, block.resident = start + kept, True
            kept += block.units
        else:
            kinds.setdefault(block.steps / block.units, []).append(block)
    limit += kept
    for _, equal in sorted(kinds.items()):
        bits = max(1, (len(equal) - 1).bit_length())
        spread = sorted(range(len(equal)), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
        for block in (equal[i] for i in spread) if largest else equal:
            # What is streamed needs room for its largest block.
            if kept + block.units <= min(limit, size - largest):
                block.address, block.resident = start + kept, True
                kept += block.units
    return kept


def _place_constants(work: WorkList) -> tuple[bytes, list[Instruction]]:
    """Lay out all blocks in DDR; return them with the program that loads those that stay."""
    constants, setup = bytearray(), []
    for blocks in (work.synapse_blocks, work.tap_blocks):
        staying = sorted((b for b in blocks if b.resident), key=lambda block: block.address)
        if staying:
            data = b"".join(block.data for block in staying)
            whole = Block(data, blocks[0].target, 0, len(constants), staying[0].address)
            setup.append(_load_block(whole))
        for block in (*staying, *(b for b in blocks if not b.resident)):
            block.offset_bytes = len(constants)
            constants += block.data
    return bytes(constants), [*setup, Instruction(Opcode.END, {})] if setup else []


def _load_block(block: Block) -> Instruction:
    """Load a block of constants, its checksum checked."""
    fields = {
        "target": block.target,
        "base": BASE_CONSTANTS,
        "offset_bytes": block.offset_bytes,
        "row_bytes": len(block.data),
        "rows": 1,
        "destination": block.address,
        "check": 1,
        "crc32": zlib.crc32(block.data),
    }
    return Instruction(Opcode.LOAD, fields)


class _Ring:
    """A buffer whose places are handed out round and round."""

    def __init__(self, first: int, size: int) -> None:
        self._first, self._size, self._next = first, size, 0
        self._blocks: list[Block] = []

    def holds(self, block: Block) -> bool:
        """Tell whether a block is on chip."""
        return block in self._blocks

    def take(self, block: Block) -> None:
        """Give a block the next place; whatever was there is gone."""
        if self._next + block.units > self._size:
            self._next = 0
        block.address = self._first + self._next
        self._next += block.units
        end = block.address + block.units
        self._blocks = [
            b for b in self._blocks if b.address >= end or block.address >= b.address + b.units
        ]
        self._blocks.append(block)


class _Jobs:
    """The jobs of the three queues; `rings` hand out places to blocks that do not stay."""

    def __init__(
        self,
        graph: MachineGraph,
        placed: place.Placement,
        config: AcceleratorConfig,
        rings: dict[LoadTarget, _Ring],
    ) -> None:
        self.graph, self.placed, self.config = graph, placed, config
        self.jobs: dict[Queue, list[Job]] = {queue: [] for queue in Queue}
        self.works: list[Work] = []
        self._hazards = Hazards(config)
        self._picture_rows: dict[int, int] = {}
        self._rings = rings

    def make(self, runs: Sequence[Run]) -> None:
        """Make all jobs: for each run its loads, its COMPUTEs, its stores."""
        for run in runs:
            self._load_run(run)
            for work in run.works:
                self._load_constants(work)
                self._compute(work)
            self._store_run(run)
        computes = [job.instruction for job in self.jobs[Queue.COMPUTE]]
        set_start_delays(self.works, computes, self.config)
        give_tokens(self.jobs)

    def _add(self, opcode: Opcode, fields: dict[str, int]) -> Job:
        queue = isa.QUEUE_OF[opcode]
        mine = self.jobs[queue]
        before = len(self.jobs[Queue.COMPUTE])
        mine.append(Job(Instruction(opcode, fields), queue, len(mine), before))
        return mine[-1]

    def _load_constants(self, work: Work) -> None:
        """Load the blocks of a COMPUTE that are not on chip (any more)."""
        for block in (work.code.block, work.taps):
            if not block.resident and not self._rings[block.target].holds(block):
                self._rings[block.target].take(block)
                job = self._add(Opcode.LOAD, _load_block(block).fields)
                part = slice(block.address, block.address + block.units)
                self._hazards.constants[block.target].write(job, [part])

    def _compute(self, work: Work) -> None:
        run, block = work.run, work.code.block
        job = self._add(Opcode.COMPUTE, _compute_fields(work))
        self.works.append(work)
        constants, scratchpad = self._hazards.constants, self._hazards.scratchpad
        rows = slice(block.address, block.address + block.units)
        constants[LoadTarget.SYNAPSE].read(job, [rows])
        taps = slice(work.taps.address, work.taps.address + work.taps.units)
        constants[LoadTarget.TAP].read(job, [taps])
        low, high = run.layer.input_rows(work.first, work.last, run.input.layout.height)
        tile = work.code.group.output_tile
        here = range(tile, tile + 1)
        seen = run.input_tiles if run.layer.mode == Mode.DENSE else here
        scratchpad.read(job, run.input.words(seen, low, high))
        if run.residual is not None:
            scratchpad.read(job, run.residual.words(here, work.first, work.last))
        scratchpad.write(job, run.output.words(here, work.first, work.last))

    def _load_run(self, run: Run) -> None:
        """Load what a run sees of tensors that come from DDR, and is not there yet."""
        layer, strip = run.layer, run.strip
        low, high = run.input_rows
        if "input" in run.plan.buffers:
            self._load_rows(layer.input, run.image, run.input, run.input_tiles, low, high)
        elif layer.input == self.graph.input:
            self._load_picture(run.image, run.input, high)
        if run.residual is not None and layer.residual is not None:
            if "residual" in run.plan.buffers:
                rows = strip.first, strip.last
                self._load_rows(layer.residual, run.image, run.residual, run.tiles, *rows)
            elif layer.residual == self.graph.input:
                self._load_picture(run.image, run.residual, strip.last)

    def _load_picture(self, image: int, window: Window, high: int) -> None:
        """Load the network's input up to row `high`; it stays on chip."""
        done = self._picture_rows.get(image, 0)
        if high > done:
            tiles = range(window.layout.tiles)
            self._load_rows(self.graph.input, image, window, tiles, done, high)
            self._picture_rows[image] = high
        if high == window.layout.height > done and self.graph.input in self.graph.outputs:
            self._store_rows(self.graph.input, image, window, tiles, 0, high)

    def _load_rows(
        self, name: str, image: int, window: Window, tiles: range, first: int, last: int
    ) -> None:
        """Load rows [first, last) of some tiles of a tensor."""
        ddr, layout, load = self.placed.ddr[name], window.layout, self.graph.input_load
        if name == self.graph.input:
            width = layout.shape[2] * load.pixel_bytes
            packing = {
                "lead_bytes": load.lead_bytes,
                "step_bytes": load.step_bytes,
                "take_bytes": load.take_bytes,
                "pad_value": self.graph.input_pad_value,
            }
        else:
            width = ddr.row_bytes
            packing = {"step_bytes": self.config.ti, "take_bytes": self.config.ti}
        # Rows that lie end to end on both sides are loaded as one, and then tiles are the rows.
        apart = packing.get("lead_bytes", 0) == 0 and packing["take_bytes"] <= packing["step_bytes"]
        dense = apart and width == ddr.row_bytes == layout.row_words * packing["step_bytes"]
        parts = [tiles] if dense else [range(tile, tile + 1) for tile in tiles]
        for part in parts:
            joined = last - first if dense else 1
            fields = {
                "target": LoadTarget.SCRATCHPAD,
                "base": ddr.base,
                "offset_bytes": ddr.at(image, part[0], first),
                "pitch_bytes": ddr.plane_bytes if dense else ddr.row_bytes,
                "row_bytes": joined * width,
                "rows": len(part) if dense else last - first,
                "destination": window.at(part[0], first),
                "destination_pitch": window.plane_words if dense else layout.row_words,
                "words_per_row": joined * layout.row_words,
                **packing,
            }
            if fields["rows"] == 1:
                fields |= {"pitch_bytes": 0, "destination_pitch": 0}
            job = self._add(Opcode.LOAD, fields)
            self._hazards.scratchpad.write(job, window.words(part, first, last))
            rows = self._hazards.ddr(name, image, layout.tiles * layout.height)
            rows.read(
                job, [slice(t * layout.height + first, t * layout.height + last) for t in part]
            )

    def _store_run(self, run: Run) -> None:
        """Store what a run wrote, where its home is DDR; an output when it is whole."""
        name, strip, window = run.layer.output, run.strip, run.output
        if "output" in run.plan.buffers:
            self._store_rows(name, run.image, window, run.tiles, strip.first, strip.last)
        elif name in self.placed.outputs and run.last_of_layer:
            layout = window.layout
            self._store_rows(name, run.image, window, range(layout.tiles), 0, layout.height)

    def _store_rows(
        self, name: str, image: int, window: Window, tiles: range, first: int, last: int
    ) -> None:
        """Store rows [first, last) of some tiles of a tensor."""
        ddr = self.placed.outputs[name] if name in self.placed.outputs else self.placed.ddr[name]
        layout, joined = window.layout, last - first
        if last - first == layout.height == window.rows:
            # Whole tiles lie end to end on both sides.
            fields = {"rows": 1, "words_per_row": len(tiles) * joined * layout.row_words}
        else:
            fields = {
                "rows": len(tiles),
                "words_per_row": joined * layout.row_words,
                "pitch_bytes": ddr.plane_bytes,
                "source_pitch": window.plane_words,
            }
        fields |= {
            "base": ddr.base,
            "offset_bytes": ddr.at(image, tiles[0], first),
            "source": window.at(tiles[0], first),
        }
        job = self._add(Opcode.STORE, fields)
        self._hazards.scratchpad.read(job, window.words(tiles, first, last))
        rows = self._hazards.ddr(name, image, layout.tiles * layout.height)
        rows.write(job, [slice(t * layout.height + first, t * layout.height + last) for t in tiles])

    def in_program_order(self) -> Iterator[Instruction]:
        """Give all instructions: LOADs as early as may be, STOREs right behind their COMPUTE.

        The dispatcher hands out instructions in order: LOADs too far ahead of their COMPUTE would
        fill the load queue and keep the COMPUTEs behind them from being dispatched.
        """
        loads = deque(self.jobs[Queue.LOAD])
        stores = deque(self.jobs[Queue.STORE])
        stored = 0
        ahead: deque[int] = deque()  # COMPUTEs before each LOAD that was moved up
        for number, compute in enumerate(self.jobs[Queue.COMPUTE]):
            while ahead and ahead[0] <= number:
                ahead.popleft()
            while loads:
                load = loads[0]
                early = (
                    len(ahead) < self.config.queue_depth
                    and load.computes_before <= number + _MAX_COMPUTES_AHEAD
                    and load.after.get(Queue.COMPUTE, -1) < number
                    and load.after.get(Queue.STORE, -1) < stored
                )
                if load.computes_before > number:
                    if not early:
                        break
                    ahead.append(load.computes_before)
                yield loads.popleft().instruction
            while stores and stores[0].computes_before <= number:  # an input that is an output
                stored += 1
                yield stores.popleft().instruction
            yield compute.instruction
            while stores and stores[0].computes_before == number + 1:
                stored += 1
                yield stores.popleft().instruction
        for job in (*loads, *stores):
            yield job.instruction
        yield Instruction(Opcode.END, {})


def _compute_fields(work: Work) -> dict[str, int]:
    """Return all fields of a COMPUTE but its start delay and tokens.

    Coordinates count from the first row (and column) that the COMPUTE looks at, or from the padding
    in front of it, so that they are small for rows far down, too.
    """
    run, code = work.run, work.code
    layer, group, into, out = run.layer, code.group, run.input, run.output
    y, x = work.first * layer.stride[0] + layer.origin[0], layer.origin[1]
    width = work.right - work.left
    x += work.left * layer.stride[1]
    _, high = layer.input_rows(work.first, work.last, into.layout.height)
    top, left = max(0, y), max(0, x)
    fields = {
        "mode": layer.mode,
        "residual": int(run.residual is not None and not work.range.hold),
        "resume": int(work.range.resume),
        "hold": int(work.range.hold),
        "tap_address": work.taps.address + work.range.tap_first,
        "tap_count": work.range.tap_last - work.range.tap_first,
        "synapse_address": code.block.address + work.range.parameter_row,
        "weight_address": code.block.address + code.weight_row,
        "input_start": (into.at(group.input_tile, y) + x) % ADDRESS_MODULUS,
        "input_pixel_step": layer.stride[1],
        "input_row_step": layer.stride[0] * into.layout.row_words,
        "input_height": max(high, top + 1) - top,
        "input_width": max(into.layout.width, left + 1) - left,
        "origin_y": y - top,
        "origin_x": x - left,
        # A global pool's stride may exceed the field, and a single output takes no stride.
        "stride_y": layer.stride[0] if work.last - work.first > 1 else 1,
        "stride_x": layer.stride[1] if width > 1 else 1,
        "pad_value": layer.pad_value,
        "output_address": out.at(group.output_tile, work.first) + work.left,
        "output_pixel_step": 1,
        "output_row_step": out.layout.row_words,
        "output_height": work.last - work.first,
        "output_width": width,
        "lane_block": group.lane_block,
        "residual_zero_point": layer.residual_zero_point,
        "zero_point": layer.zero_point,
        "lo": layer.lo,
        "hi": layer.hi,
    }
    if layer.mode == Mode.DENSE:
        fields["weight_address"] += work.range.tap_first
    if fields["residual"]:
        assert run.residual is not None
        fields["residual_address"] = run.residual.at(group.output_tile, work.first) + work.left
    return fields


def _input_placement(
    graph: MachineGraph, placed: place.Placement, quantized: Graph
) -> TensorPlacement:
    load, layout = graph.input_load, graph.layouts[graph.input]
    channels = range(layout.shape[0])
    lanes = [c // load.pixel_bytes * load.plane_bytes + c % load.pixel_bytes for c in channels]
    return _tensor(
        graph.input, layout.shape, placed.ddr[graph.input], quantized, lanes, load.pixel_bytes
    )


def _output_placement(
    graph: MachineGraph,
    placed: place.Placement,
    quantized: Graph,
    name: str,
    config: AcceleratorConfig,
) -> TensorPlacement:
    layout, ddr = graph.layouts[name], placed.outputs[name]
    positions = np.argsort(np.array(layout.order))
    lanes = positions // config.ti * ddr.plane_bytes + positions % config.ti
    return _tensor(name, layout.shape, ddr, quantized, lanes.tolist(), config.word_bytes)


def _tensor(
    name: str,
    shape: tuple[int, int, int],
    ddr: place.DdrTensor,
    quantized: Graph,
    lanes: Sequence[int],
    pixel_bytes: int,
) -> TensorPlacement:
    quant = quantized[name].type.quant
    assert quant is not None
    return TensorPlacement(
        name=name,
        shape=shape,
        scale=quant.scale,
        zero_point=quant.zero_point,
        offset_bytes=ddr.offset_bytes,
        pitch_bytes=ddr.row_bytes,
        size_bytes=ddr.image_bytes,
        pixel_bytes=pixel_bytes,
        lanes=tuple(lanes),
        vector=shape[1:] == (1, 1) and name != quantized.inputs[0],
    )


def _records(
    graph: MachineGraph,
    placed: place.Placement,
    jobs: _Jobs,
    program: Sequence[Instruction],
    config: AcceleratorConfig,
) -> tuple[LayerRecord, ...]:
    """Say which instructions each layer became, for the first image where each has its own."""
    position = {id(instruction): index for index, instruction in enumerate(program)}
    mine: dict[int, list[Instruction]] = {id(layer): [] for layer in graph.layers}
    for job, work in zip(jobs.jobs[Queue.COMPUTE], jobs.works, strict=True):
        if placed.layer_major or work.run.image == 0:
            mine[id(work.run.layer)].append(job.instruction)
    return tuple(
        LayerRecord(
            name=layer.name,
            kind=layer.kind,
            first_instruction=min(position[id(i)] for i in mine[id(layer)]),
            last_instruction=max(position[id(i)] for i in mine[id(layer)]),
            macs=layer.macs,
            padding_macs=layer.padding_macs,
            steps=sum(
                i.fields["tap_count"]
                * i.fields["output_height"]
                * -(-i.fields["output_width"] // config.tp)
                for i in mine[id(layer)]
            ),
            output_shape=graph.layouts[layer.output].shape,
        )
        for layer in graph.layers
    )
