# SPDX-License-Identifier: Apache-2.0
"""The back-end room: quantized graph -> Bundle for the PE array."""

from __future__ import annotations

from collections.abc import Sequence

from hwgen.arch import isa
from hwgen.arch.bundle import Bundle, Placement
from hwgen.arch.config import AcceleratorConfig
from hwgen.ir.graph import Graph
from hwgen.passes.hazards import Instruction
from hwgen.passes.order_channels import order_channels
from hwgen.passes.place import place
from hwgen.passes.schedule import Schedule, schedule
from hwgen.passes.tile import tile


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
        (mean, std) per channel of the pictures in [0, 1] the network was trained on, so that the
        driver can take uint8 pictures.
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
        When `batch` is not 1 or more.
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

    def planned(layer_major: bool) -> tuple[Schedule, int]:
        placed = place(machine, config, batch, layer_major, free.synapse_rows)
        return schedule(machine, placed, graph, config, free), placed.scratch_bytes

    plan, scratch_bytes = planned(layer_major=False)
    if batch > 1 and not plan.resident:
        plan, scratch_bytes = planned(layer_major=True)
    output_bytes = batch * sum(tensor.size_bytes for tensor in plan.outputs)
    mean, std = (None, None) if preprocess is None else preprocess
    return Bundle(
        name=name,
        config=config,
        placement=plan.placement,
        setup=_encode(plan.setup),
        program=_encode(plan.program),
        constants=plan.constants,
        input=plan.input,
        outputs=plan.outputs,
        output_bytes=output_bytes,
        scratch_bytes=scratch_bytes,
        layers=plan.layers,
        batch=batch,
        mean=None if mean is None else tuple(float(v) for v in mean),
        std=None if std is None else tuple(float(v) for v in std),
        labels=None if labels is None else tuple(labels),
        metadata={"resident": plan.resident},
    )


def _encode(program: list[Instruction]) -> bytes:
    return b"".join(isa.encode(i.opcode, **i.fields) for i in program)
