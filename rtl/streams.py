# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the payloads and the stream plumbing that the system side shares."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Shape, Value
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from rtl.axi import ADDRESS_BITS, BEAT_BYTES_LOG2, DATA_BITS

BEAT_COUNT_BITS = 24 - BEAT_BYTES_LOG2 + 1

#: A transfer of whole beats: first byte's address (a multiple of 8) and how many (1 or more).
TRANSFER = data.StructLayout({"address": ADDRESS_BITS, "beats": BEAT_COUNT_BITS})

#: A beat that was read, with the memory's response to it.
READ_BEAT = data.StructLayout({"data": DATA_BITS, "response": 2})


def scratchpad_word(config: AcceleratorConfig) -> data.StructLayout:
    """Return the payload of the scratchpad's load stream."""
    return data.StructLayout({"address": config.scratchpad_address_bits, "data": 8 * config.ti})


class StreamFifo(wiring.Component):
    """A stream FIFO in distributed RAM: one entry a cycle, `LATENCY` cycle from input to output.

    `level` counts the entries inside.
    """

    LATENCY = 1

    def __init__(self, shape: Any, depth: int) -> None:
        self.depth = depth
        self.bits = Shape.cast(shape).width
        super().__init__(
            {
                "input": In(stream.Signature(shape)),
                "output": Out(stream.Signature(shape)),
                "level": Out(range(depth + 1)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Wrap amaranth's FIFO, whose payload is plain bits."""
        m = Module()
        m.submodules.fifo = inner = fifo.SyncFIFO(width=self.bits, depth=self.depth)
        m.d.comb += [
            inner.w_data.eq(Value.cast(self.input.payload)),
            inner.w_en.eq(self.input.valid),
            self.input.ready.eq(inner.w_rdy),
            Value.cast(self.output.payload).eq(inner.r_data),
            self.output.valid.eq(inner.r_rdy),
            inner.r_en.eq(self.output.ready),
            self.level.eq(inner.level),
        ]
        return m
