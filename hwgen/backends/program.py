# SPDX-License-Identifier: Apache-2.0
"""The back-end room: quantized graph -> Bundle for the PE array."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from hwgen.arch import isa
from hwgen.arch.bundle import Bundle, Placement
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.estimate import estimate
from hwgen.ir.graph import Graph
from hwgen.ir.preprocess import for_channels
from hwgen.passes.hazards import Instruction
from hwgen.passes.order_channels import order_channels
from hwgen.passes.place import place
from hwgen.passes.schedule import Schedule, schedule
from hwgen.passes.tile import tile
from hwgen.passes.work import Split

_AS_QUICK = 1.0003


def emit(
    graph: Graph,
    config: AcceleratorConfig,
    name: str = "network",
    preprocess: tuple[Sequence[float], Sequence[float]] | None = None,
    labels: Sequence[str] | None = None,
    synapse_row: int = 0,
    tap_entry: int = 0,
    batch: int = 1,
) -> Bundle:
    """Compile a quantized graph for one machine configuration.

    Parameters
    ----------
    graph
        At the quantized level, one input.
    preprocess
        (mean, std) of the pictures in [0, 1] that the network was trained on, one for all channels
        or one for each, so that the driver can take uint8 pictures. By default the graph's own.
    labels
        Class names for the driver to report.
    synapse_row, tap_entry
        First SB row and tap entry to use, to keep several networks resident.
    batch
        Images that one run of the program takes. Where all weights stay on chip, images follow
        each other, and the next one is loaded while one computes. Where weights are streamed,
        each layer runs for all images, so that its weights are fetched once.

    Raises
    ------
    ValueError
        When `batch` is not 1 or more, or mean and std do not fit the channels.
    PlacementError
        When a layer does not fit the scratchpad even in strips of one row.
    CapacityError
        When a group's weights do not fit SB.
    FieldRangeError
        When a dimension exceeds its instruction field.
    """
    if batch < 1:
        raise ValueError(f"batch must be 1 or more, not {batch!r}")
    machine = tile(graph, order_channels(graph, config.ti), config)
    free = Placement(
        synapse_row,
        config.synapse_rows - synapse_row,
        tap_entry,
        config.tap_entries - tap_entry,
    )
    given = graph.preprocess if preprocess is None else preprocess
    channels = graph[graph.inputs[0]].type.shape[0]
    mean, std = (None, None) if given is None else for_channels(given, channels)

    placed_in = functools.cache(
        functools.partial(place, machine, config, batch, synapse_rows=free.synapse_rows)
    )

    def compiled(
        layer_major: bool, split: Split, resident_rows: int | None = None
    ) -> tuple[Bundle, Schedule]:
        placed = placed_in(layer_major=layer_major)
        plan = schedule(machine, placed, graph, config, free, split, resident_rows)
        bundle = Bundle(
            name=name,
            config=config,
            placement=plan.placement,
            setup=_encode(plan.setup),
            program=_encode(plan.program),
            constants=plan.constants,
            input=plan.input,
            outputs=plan.outputs,
            output_bytes=batch * sum(tensor.size_bytes for tensor in plan.outputs),
            scratch_bytes=placed.scratch_bytes,
            layers=plan.layers,
            batch=batch,
            mean=mean,
            std=std,
            labels=None if labels is None else tuple(labels),
            metadata={
                "resident": plan.streamed_rows == 0,
                "resident_rows": plan.resident_rows,
                "layer_major": layer_major and batch > 1,
            },
        )
        return bundle, plan

    return _quickest(compiled, free.synapse_rows, batch)


def _quickest(
    compiled: Callable[..., tuple[Bundle, Schedule]], synapse_rows: int, batch: int
) -> Bundle:
    """Compile in the ways that may pay, and return what is predicted to take the fewest cycles.

    With everything on chip there is no choice. Else: how much of SB should stay and how much be a
    ring; whether rows of padding are worth parameters of their own; whether a batch goes image by
    image or layer by layer. Of those that are as quick the one that reads the least from DDR.
    """
    bundle, plan = compiled(False, Split.ALL)
    if not plan.streamed_rows:
        return bundle
    found = []
    bundle, compact = compiled(False, Split.NONE)
    mostly_kept = compact.streamed_rows < compact.resident_rows
    if batch == 1 or mostly_kept:
        found.append(bundle)
    orders = [batch > 1] if not mostly_kept or batch == 1 else [False, True]
    for layer_major in orders:
        bundle, plan = compiled(layer_major, Split.BUSY, 0)
        found.append(bundle)
        largest = max(1, plan.largest_streamed_rows)
        shares = {synapse_rows % largest, synapse_rows // 2, max(0, synapse_rows - 3 * largest)}
        found += [compiled(layer_major, Split.BUSY, rows)[0] for rows in sorted(shares - {0})]

    predicted = [estimate(bundle) for bundle in found]
    good = _AS_QUICK * min(p.cycles for p in predicted)
    pairs = [(p.bytes_read, i) for i, p in enumerate(predicted) if p.cycles <= good]
    return found[min(pairs)[1]]


def _encode(program: list[Instruction]) -> bytes:
    return b"".join(isa.encode(i.opcode, **i.fields) for i in program)
