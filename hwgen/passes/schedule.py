# SPDX-License-Identifier: Apache-2.0
"""The passes room: from placed layers to instructions for the three queues.

Before: layers, groups and addresses. After: a setup program that fills SB and the tap buffer, and
the program of one image::

    LOAD image                    signals compute
    COMPUTE layer 1 group 0       waits for the load
    COMPUTE ...
    COMPUTE last layer            signals store
    STORE logits                  waits for compute
    END

Where all groups fit SB, their rows stay resident and the setup program loads them once. Where they
do not, SB and the tap buffer are rings: each group's rows are loaded ahead of its COMPUTE, waiting
only for the COMPUTE that frees the place.

Between COMPUTEs there is no scoreboard. The array issues a step a cycle and never stalls, so the
cycle in which a result becomes readable is known here, and `start_delay` holds a layer back just
long enough for what its first steps read.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwgen.arch import isa
from hwgen.arch.bundle import (
    BASE_CONSTANTS,
    BASE_INPUT,
    BASE_OUTPUT,
    LayerRecord,
    Placement,
    TensorPlacement,
)
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import LoadTarget, Opcode
from hwgen.arch.timing import MIN_STEP_GAP_CYCLES, read_after_write_cycles
from hwgen.ir.graph import Graph
from hwgen.ir.machine import Group, MachineGraph, MachineLayer, Tap, TensorLayout

_ADDRESS_MODULUS = 1 << 16
_MAX_BLOCKS_AHEAD = 128


class CapacityError(ValueError):
    """One group's weights or taps exceed an on-chip buffer; the message names the layer."""


@dataclass
class Instruction:
    """One instruction before encoding."""

    opcode: Opcode
    fields: dict[str, int]


@dataclass
class Schedule:
    """Everything a bundle holds, not yet encoded."""

    setup: list[Instruction]
    program: list[Instruction]
    constants: bytearray
    placement: Placement
    input: TensorPlacement
    outputs: tuple[TensorPlacement, ...]
    output_bytes: int
    layers: tuple[LayerRecord, ...]
    resident: bool


@dataclass
class _Block:
    """Constants that one COMPUTE needs on chip, and where they lie."""

    data: bytes
    target: LoadTarget
    units: int
    address: int = 0


@dataclass
class _Work:
    """One COMPUTE with its layer, group, SB block and tap block."""

    layer: MachineLayer
    group: Group
    synapse: _Block
    taps: _Block
    fields: dict[str, int] = field(default_factory=dict)


def schedule(
    graph: MachineGraph,
    quantized: Graph,
    config: AcceleratorConfig,
    synapse_row: int = 0,
    tap_entry: int = 0,
) -> Schedule:
    """Turn a placed machine graph into instructions.

    Parameters
    ----------
    graph
        With addresses.
    quantized
        The graph it came from, for the scales of inputs and outputs.
    synapse_row, tap_entry
        First SB row and tap entry this network may use: what is below stays untouched, so that
        several networks can be resident together.

    Raises
    ------
    CapacityError
        When a single group does not fit SB or the tap buffer.
    """
    works = _works(graph)
    _check_capacity(works, config, synapse_row, tap_entry)
    rows = sum(work.synapse.units for work in works)
    tap_blocks = list({id(work.taps): work.taps for work in works}.values())
    entries = sum(block.units for block in tap_blocks)
    resident = (
        synapse_row + rows <= config.synapse_rows and tap_entry + entries <= config.tap_entries
    )
    constants = bytearray()
    setup: list[Instruction] = []
    program = [_load_input(graph)]
    compute = [_compute(graph, work) for work in works]
    compute[0].fields["wait_load"] = 1
    if resident:
        setup = _setup(works, tap_blocks, synapse_row, tap_entry, constants)
        placement = Placement(synapse_row, rows, tap_entry, entries)
        emitted = list(compute)
    else:
        placement = Placement(
            synapse_row,
            config.synapse_rows - synapse_row,
            tap_entry,
            config.tap_entries - tap_entry,
        )
        emitted = _stream(works, compute, config, placement, constants)
        # The image comes first in the same queue: whoever waits for constants has it too.
        program[0].fields["signal_compute"] = 0
    for work, instruction in zip(works, compute, strict=True):
        instruction.fields["synapse_address"] = work.synapse.address
        instruction.fields["tap_address"] = work.taps.address
    _set_start_delays(graph, works, compute, config)
    program += emitted
    compute[-1].fields["signal_store"] = 1
    outputs, output_bytes, stores = _outputs(graph, quantized, config)
    stores[0].fields["wait_compute"] = 1
    program += stores
    program.append(Instruction(Opcode.END, {}))
    return Schedule(
        setup,
        program,
        constants,
        placement,
        _input_placement(graph, quantized),
        outputs,
        output_bytes,
        _records(graph, works, compute, program, config),
        resident,
    )


def _works(graph: MachineGraph) -> list[_Work]:
    """One entry a COMPUTE; equal tap lists share one block."""
    blocks: dict[tuple[Tap, ...], _Block] = {}
    works = []
    for layer in graph.layers:
        for group in layer.groups:
            if group.taps not in blocks:
                data = b"".join(_encode_tap(tap) for tap in group.taps)
                blocks[group.taps] = _Block(data, LoadTarget.TAP, len(group.taps))
            synapse = _Block(group.synapse.tobytes(), LoadTarget.SYNAPSE, len(group.synapse))
            works.append(_Work(layer, group, synapse, blocks[group.taps]))
    return works


def _encode_tap(tap: Tap) -> bytes:
    word = isa.TAP.pack({"offset": tap.offset % _ADDRESS_MODULUS, "dy": tap.dy, "dx": tap.dx})
    return word.to_bytes(isa.TAP_BYTES, "little")


def _check_capacity(
    works: list[_Work], config: AcceleratorConfig, synapse_row: int, tap_entry: int
) -> None:
    for work in works:
        for block, first, size, what in (
            (work.synapse, synapse_row, config.synapse_rows, "synapse_rows"),
            (work.taps, tap_entry, config.tap_entries, "tap_entries"),
        ):
            if block.units > size - first:
                raise CapacityError(
                    f"a group of layer {work.layer.name!r} needs {block.units} of {what}, the "
                    f"machine has {size - first} free of {size}; try a configuration with more "
                    f"{what}, or fewer input channels or a smaller kernel in this layer"
                )


def _load_input(graph: MachineGraph) -> Instruction:
    load, layout = graph.input_load, graph.layouts[graph.input]
    _, rows, width = layout.shape
    row_bytes, words = width * load.pixel_bytes, load.words_per_row
    if load.lead_bytes == 0 and row_bytes == load.pitch_bytes == words * load.step_bytes:
        # Without padding the rows lie end to end on both sides: one long row is quicker.
        rows, row_bytes, words = 1, rows * row_bytes, rows * words
    return Instruction(
        Opcode.LOAD,
        {
            "signal_compute": 1,
            "target": LoadTarget.SCRATCHPAD,
            "base": BASE_INPUT,
            "pitch_bytes": load.pitch_bytes,
            "row_bytes": row_bytes,
            "rows": rows,
            "destination": graph.addresses[graph.input],
            "destination_pitch": layout.row_words,
            "words_per_row": words,
            "lead_bytes": load.lead_bytes,
            "step_bytes": load.step_bytes,
            "take_bytes": load.take_bytes,
            "pad_value": graph.input_pad_value,
        },
    )


def _compute(graph: MachineGraph, work: _Work) -> Instruction:
    """All of a COMPUTE but its SB and tap addresses and its start delay."""
    layer, group = work.layer, work.group
    into, out = graph.layouts[layer.input], graph.layouts[layer.output]
    origin_y, origin_x = layer.origin
    start = (
        graph.addresses[layer.input]
        + group.input_offset
        + origin_y * into.row_words
        + origin_x * into.tiles
    )
    fields = {
        "mode": layer.mode,
        "residual": int(layer.residual is not None),
        "tap_count": len(group.taps),
        "input_start": start % _ADDRESS_MODULUS,
        "input_pixel_step": layer.stride[1] * into.tiles,
        "input_row_step": layer.stride[0] * into.row_words,
        "input_height": into.shape[1],
        "input_width": into.width,
        "origin_y": origin_y,
        "origin_x": origin_x,
        # A global pool's stride may exceed the field, and a single output takes no stride.
        "stride_y": layer.stride[0] if out.shape[1] > 1 else 1,
        "stride_x": layer.stride[1] if out.shape[2] > 1 else 1,
        "pad_value": layer.pad_value,
        "output_address": graph.addresses[layer.output] + group.output_offset,
        "output_pixel_step": out.tiles,
        "output_row_step": out.row_words,
        "output_height": out.shape[1],
        "output_width": out.shape[2],
        "lane_block": group.lane_block,
        "residual_zero_point": layer.residual_zero_point,
        "zero_point": layer.zero_point,
        "lo": layer.lo,
        "hi": layer.hi,
    }
    if layer.residual is not None:
        fields["residual_address"] = graph.addresses[layer.residual] + group.output_offset
    return Instruction(Opcode.COMPUTE, fields)


def _load_block(data: bytes, target: LoadTarget, address: int, constants: bytearray) -> Instruction:
    """Append `data` to the constants and load it from there, its checksum checked."""
    offset = len(constants)
    constants += data
    return Instruction(
        Opcode.LOAD,
        {
            "target": target,
            "base": BASE_CONSTANTS,
            "offset_bytes": offset,
            "row_bytes": len(data),
            "rows": 1,
            "destination": address,
            "check": 1,
            "crc32": zlib.crc32(data),
        },
    )


def _setup(
    works: list[_Work],
    tap_blocks: list[_Block],
    synapse_row: int,
    tap_entry: int,
    constants: bytearray,
) -> list[Instruction]:
    """Place every block for good and load each buffer with one LOAD."""
    program = []
    for blocks, first in (
        ([work.synapse for work in works], synapse_row),
        (tap_blocks, tap_entry),
    ):
        address = first
        for block in blocks:
            block.address = address
            address += block.units
        data = b"".join(block.data for block in blocks)
        program.append(_load_block(data, blocks[0].target, first, constants))
    program.append(Instruction(Opcode.END, {}))
    return program


class _Ring:
    """Addresses handed out round and round; tells which earlier COMPUTE must be over first."""

    def __init__(self, first: int, size: int) -> None:
        self._first, self._size, self._next = first, size, 0
        self._blocks: list[tuple[int, int, int]] = []

    def take(self, units: int, user: int) -> tuple[int, int]:
        """Return (address, last COMPUTE that used the place or -1) of a block for `user`."""
        if self._next + units > self._size:
            self._next = 0
        start, self._next = self._next, self._next + units
        over = [b for b in self._blocks if b[0] < start + units and start < b[0] + b[1]]
        self._blocks = [b for b in self._blocks if b not in over]
        self._blocks.append((start, units, user))
        return self._first + start, max((b[2] for b in over), default=-1)

    def touch(self, address: int, user: int) -> None:
        """Note that a later COMPUTE uses a block that is still there."""
        self._blocks = [
            (start, units, user if self._first + start == address else old)
            for start, units, old in self._blocks
        ]

    def holds(self, address: int, units: int) -> bool:
        """Tell whether the block placed at `address` is still whole."""
        return any(self._first + b[0] == address and b[1] == units for b in self._blocks)


def _stream(
    works: list[_Work],
    compute: list[Instruction],
    config: AcceleratorConfig,
    placement: Placement,
    constants: bytearray,
) -> list[Instruction]:
    """Interleave LOADs of each group's constants with the COMPUTEs, tokens included."""
    synapses = _Ring(placement.synapse_row, placement.synapse_rows)
    taps = _Ring(placement.tap_entry, placement.tap_entries)
    on_chip: dict[int, _Block] = {}
    # loads[i]: the LOADs that COMPUTE i needs; after[i]: the COMPUTE that must be over first.
    loads: list[list[Instruction]] = []
    after: list[int] = []
    for index, work in enumerate(works):
        needed: list[Instruction] = []
        address, freed = synapses.take(work.synapse.units, index)
        work.synapse.address = address
        needed.append(_load_block(work.synapse.data, LoadTarget.SYNAPSE, address, constants))
        shared = on_chip.get(id(work.taps))
        if shared is not None and taps.holds(shared.address, shared.units):
            work.taps = shared
            taps.touch(shared.address, index)
        else:
            address, tap_freed = taps.take(work.taps.units, index)
            freed = max(freed, tap_freed)
            placed = _Block(work.taps.data, LoadTarget.TAP, work.taps.units, address)
            on_chip[id(work.taps)] = placed
            work.taps = placed
            needed.append(_load_block(placed.data, LoadTarget.TAP, address, constants))
        loads.append(needed)
        after.append(max(freed, index - _MAX_BLOCKS_AHEAD))
    program: list[Instruction] = []
    waited, emitted = -1, 0
    for index, instruction in enumerate(compute):
        # The dispatcher hands out instructions in order: LOADs too far ahead of their COMPUTE
        # would fill the load queue and keep the COMPUTEs behind them from being dispatched.
        ahead = index + config.queue_depth
        while emitted < min(len(loads), ahead + 1) and after[emitted] < index:
            if after[emitted] > waited:
                waited = after[emitted]
                compute[waited].fields["signal_load"] = 1
                loads[emitted][0].fields["wait_compute"] = 1
            loads[emitted][-1].fields["signal_compute"] = 1
            program += loads[emitted]
            emitted += 1
        instruction.fields["wait_load"] = 1
        program.append(instruction)
    return program


def _set_start_delays(
    graph: MachineGraph,
    works: list[_Work],
    compute: list[Instruction],
    config: AcceleratorConfig,
) -> None:
    """Hold each COMPUTE back until what its first steps read has been written.

    Time is counted in steps as if no COMPUTE ever waited for a token; real waits only move later
    ones further away. `readable[word]` is the first cycle in which a step may read the word.
    """
    distance = read_after_write_cycles(config)
    readable = np.full(config.scratchpad_words, -distance, dtype=np.int64)
    last_step = slot_end = -1
    # A residual is read when its pixel's sums are done, so the last ones while the next COMPUTE
    # already reads its input: those two must not meet in one bank either.
    residual_until = np.full(config.scratchpad_banks, -distance, dtype=np.int64)
    for work, instruction in zip(works, compute, strict=True):
        f = instruction.fields
        interval = max(f["tap_count"], config.tp)
        address, time = _first_reads(f, work.group.taps, interval, config)
        late = readable[address] - time
        soonest = slot_end + MIN_STEP_GAP_CYCLES + config.parameter_rows
        start = max(soonest, int(late.max(initial=0)))
        for bank in _banks(graph, work.layer.input, config):
            start = max(start, int(residual_until[bank]))
        f["start_delay"] = min(start - last_step, isa.COMPUTE.by_name["start_delay"].maximum)
        pairs = -(-f["output_width"] // config.tp)
        count = f["output_height"] * pairs
        tail = np.arange(max(0, count - distance), count)
        for p in range(config.tp):
            y, x = tail // pairs, tail % pairs * config.tp + p
            keep = x < f["output_width"]
            word = f["output_address"] + y * f["output_row_step"] + x * f["output_pixel_step"]
            done = start + tail * interval + f["tap_count"] - 1
            readable[word[keep]] = done[keep] + distance
        slot_end = start + count * interval - 1
        last_step = slot_end - interval + f["tap_count"]
        residual_until[list(_banks(graph, work.layer.residual, config))] = last_step + distance


def _banks(graph: MachineGraph, name: str | None, config: AcceleratorConfig) -> set[int]:
    """Banks that a tensor lies in; none for no tensor."""
    if name is None:
        return set()
    first, words = graph.addresses[name], graph.layouts[name].words
    return set(range(config.bank_of(first), config.bank_of(first + words - 1) + 1))


def _first_reads(
    f: dict[str, int], taps: tuple[Tap, ...], interval: int, config: AcceleratorConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Words read in the first steps, while older writes are under way, and each one's step number.

    A residual is read later than its pixel's first step, and counted as if read then.
    """
    pairs = -(-f["output_width"] // config.tp)
    count = min(f["output_height"] * pairs, -(-read_after_write_cycles(config) // interval))
    pixel = np.arange(count)
    offset, dy, dx = (np.array([getattr(t, n) for t in taps]) for n in ("offset", "dy", "dx"))
    words, times = [], []
    for p in range(config.tp):
        y, x = pixel // pairs, pixel % pairs * config.tp + p
        real = x < f["output_width"]
        iy = (f["origin_y"] + y * f["stride_y"])[:, None] + dy
        ix = (f["origin_x"] + x * f["stride_x"])[:, None] + dx
        base = f["input_start"] + y * f["input_row_step"] + x * f["input_pixel_step"]
        address = (base[:, None] + offset) % _ADDRESS_MODULUS
        inside = (iy >= 0) & (iy < f["input_height"]) & (ix >= 0) & (ix < f["input_width"])
        inside &= real[:, None]
        time = pixel[:, None] * interval + np.arange(len(taps))
        words.append(address[inside])
        times.append(time[inside])
        if f["residual"]:
            here = y * f["output_row_step"] + x * f["output_pixel_step"]
            words.append((f["residual_address"] + here)[real])
            times.append((pixel * interval)[real])
    return np.concatenate(words), np.concatenate(times)


def _input_placement(graph: MachineGraph, quantized: Graph) -> TensorPlacement:
    load, shape = graph.input_load, graph.layouts[graph.input].shape
    quant = quantized[graph.input].type.quant
    assert quant is not None
    return TensorPlacement(
        name=graph.input,
        shape=shape,
        scale=quant.scale,
        zero_point=quant.zero_point,
        offset_bytes=0,
        pitch_bytes=load.pitch_bytes,
        size_bytes=load.pitch_bytes * shape[1],
        pixel_bytes=load.pixel_bytes,
        lanes=tuple(range(shape[0])),
    )


def _outputs(
    graph: MachineGraph, quantized: Graph, config: AcceleratorConfig
) -> tuple[tuple[TensorPlacement, ...], int, list[Instruction]]:
    """Place the network's outputs in DDR as whole words, and store them there."""
    tensors, stores, offset = [], [], 0
    for name in graph.outputs:
        layout, quant = graph.layouts[name], quantized[name].type.quant
        assert quant is not None
        pitch = layout.row_words * config.word_bytes
        size = pitch * layout.shape[1]
        lanes = np.argsort(np.array(layout.order))
        tensors.append(
            TensorPlacement(
                name=name,
                shape=layout.shape,
                scale=quant.scale,
                zero_point=quant.zero_point,
                offset_bytes=offset,
                pitch_bytes=pitch,
                size_bytes=size,
                pixel_bytes=layout.tiles * config.word_bytes,
                lanes=tuple(int(lane) for lane in lanes),
                vector=layout.shape[1:] == (1, 1),
            )
        )
        stores.append(
            Instruction(
                Opcode.STORE,
                {
                    "base": BASE_OUTPUT,
                    "offset_bytes": offset,
                    "rows": 1,
                    "words_per_row": layout.words,
                    "source": graph.addresses[name],
                },
            )
        )
        offset += -(-size // 64) * 64
    return tuple(tensors), offset, stores


def _records(
    graph: MachineGraph,
    works: list[_Work],
    compute: list[Instruction],
    program: list[Instruction],
    config: AcceleratorConfig,
) -> tuple[LayerRecord, ...]:
    """Say which instructions each layer became."""
    position = {id(instruction): index for index, instruction in enumerate(program)}
    records = []
    for layer in graph.layers:
        mine = [i for w, i in zip(works, compute, strict=True) if w.layer is layer]
        out: TensorLayout = graph.layouts[layer.output]
        pairs = out.shape[1] * -(-out.shape[2] // config.tp)
        records.append(
            LayerRecord(
                name=layer.name,
                kind=layer.kind,
                first_instruction=position[id(mine[0])],
                last_instruction=position[id(mine[-1])],
                macs=layer.macs,
                steps=pairs * sum(len(group.taps) for group in layer.groups),
                output_shape=out.shape,
            )
        )
    return tuple(records)
