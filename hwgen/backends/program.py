# SPDX-License-Identifier: Apache-2.0
"""The back-end room: quantized graph -> Bundle for the PE array."""

from __future__ import annotations

from collections.abc import Sequence

from hwgen.arch import isa
from hwgen.arch.bundle import Bundle
from hwgen.arch.config import AcceleratorConfig
from hwgen.ir.graph import Graph
from hwgen.passes.order_channels import order_channels
from hwgen.passes.place import place
from hwgen.passes.schedule import Instruction, schedule
from hwgen.passes.tile import tile


def emit(
    graph: Graph,
    config: AcceleratorConfig,
    name: str = "network",
    preprocess: tuple[Sequence[float], Sequence[float]] | None = None,
    labels: Sequence[str] | None = None,
    synapse_row: int = 0,
    tap_entry: int = 0,
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

    Raises
    ------
    PlacementError
        When the feature maps do not fit the scratchpad.
    CapacityError
        When a group's weights do not fit SB.
    FieldRangeError
        When a dimension exceeds its instruction field.
    """
    orders = order_channels(graph, config.ti)
    machine = place(tile(graph, orders, config), config)
    plan = schedule(machine, graph, config, synapse_row, tap_entry)
    mean, std = (None, None) if preprocess is None else preprocess
    return Bundle(
        name=name,
        config=config,
        placement=plan.placement,
        setup=_encode(plan.setup),
        program=_encode(plan.program),
        constants=bytes(plan.constants),
        input=plan.input,
        outputs=plan.outputs,
        output_bytes=plan.output_bytes,
        scratch_bytes=0,
        layers=plan.layers,
        mean=None if mean is None else tuple(float(v) for v in mean),
        std=None if std is None else tuple(float(v) for v in std),
        labels=None if labels is None else tuple(labels),
        metadata={"resident": plan.resident},
    )


def _encode(program: list[Instruction]) -> bytes:
    return b"".join(isa.encode(i.opcode, **i.fields) for i in program)
