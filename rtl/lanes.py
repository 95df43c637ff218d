# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the lanes, for depthwise convolution and pooling."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import Mode
from rtl.layouts import int8_lanes, lane_block, synapse_row
from rtl.multipliers import BOOTH_CYCLES, booth_product
from rtl.pe_array import int8_products
from rtl.pipeline import FLIP_FLOPS, Pipeline


class Lanes(wiring.Component):
    """tn lanes of one block of the word, for each of tp pixels, one step a cycle.

    `words`, `weights` and `first` are sampled with a step; `mode`, `slot` and `block` LEAD cycles
    ahead of it, so that each lane chooses by registers of its own. `terms[p][n]` follows LATENCY
    after the step:

    - DEPTHWISE: ``weights[slot][n] * lane[n]``
    - SUM: ``lane[n]``
    - MAXIMUM: the largest ``lane[n]`` of the steps since `first`, all of them of this mode
    - DENSE: not used

    The multipliers are made of LUTs on purpose: the DSPs belong to the array and to NFU-3.
    """

    LEAD = 1
    LATENCY = 2 + BOOTH_CYCLES

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            {
                "words": In(data.ArrayLayout(int8_lanes(config.ti), config.tp)),
                "weights": In(synapse_row(config)),
                "mode": In(Mode),
                "first": In(1),
                "slot": In(range(config.tn)),
                "block": In(lane_block(config)),
                "terms": Out(data.ArrayLayout(int8_products(config), config.tp)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build tn x tp lanes."""
        m = Module()
        tn, tp, blocks = self.config.tn, self.config.tp, self.config.ti // self.config.tn
        lines = Pipeline(m, shift_registers=False)
        maximum = Signal(reset_less=True)
        m.d.sync += maximum.eq(self.mode == Mode.MAXIMUM)
        # Cycle 1: a maximum that has begun is held, where no lane is larger.
        held = Signal()
        m.d.comb += held.eq(lines.at(maximum, 1) & ~lines.at(self.first, 1))

        def chosen(name: str, choice: Value) -> Signal:
            """Return a lane's own copy of what it chooses by, ahead of the step."""
            copy = Signal(choice.shape(), name=name, reset_less=True, attrs=FLIP_FLOPS)
            m.d.sync += copy.eq(choice)
            return copy

        for n in range(tn):
            slot, block = chosen(f"slot_{n}", self.slot), chosen(f"block_{n}", self.block)
            multiplies = chosen(f"multiplies_{n}", self.mode == Mode.DEPTHWISE)
            # Cycle 0: pick the weight; 1 makes a sum of the product, and passes a maximum.
            weight = Signal(signed(8), name=f"weight_{n}", reset_less=True)
            slots = Array(self.weights[k][n] for k in range(tn))
            m.d.sync += weight.eq(Mux(multiplies, slots[slot], 1))
            for p in range(tp):
                # Cycle 0: pick the lane.
                lane = Signal(signed(8), name=f"lane_{p}_{n}", reset_less=True)
                choices = Array(self.words[p][b * tn + n] for b in range(blocks))
                m.d.sync += lane.eq(choices[block])
                # Cycle 1: the maximum, or the lane itself.
                word = Signal(signed(8), name=f"word_{p}_{n}", reset_less=True)
                with m.If(~held | (lane > word)):
                    m.d.sync += word.eq(lane)
                # Cycle 2, 3: multiply.
                name = f"product_{p}_{n}"
                product = booth_product(m, lines, name, lines.at(weight, 1), word)
                m.d.comb += self.terms[p][n].eq(product)
        return m
