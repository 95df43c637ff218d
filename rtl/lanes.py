# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the lanes, for depthwise convolution and pooling."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import Mode
from rtl.layouts import int8_lanes, lane_block, synapse_row
from rtl.pe_array import int8_products
from rtl.pipeline import Pipeline


class Lanes(wiring.Component):
    """tn lanes of one block of the word, for each of tp pixels, one step a cycle.

    `terms[p][n]` follows LATENCY after a step was sampled:

    - DEPTHWISE: ``weights[slot][n] * lane[n]``
    - SUM: ``lane[n]``
    - MAXIMUM: the largest ``lane[n]`` of the steps since `first`
    - DENSE: not used

    The multipliers are made of adders on purpose: the DSPs belong to the array and to NFU-3.
    """

    LATENCY = 4

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
        pipeline = Pipeline(m)
        first = pipeline.at(self.first, 1)
        maximum = Signal()
        m.d.comb += maximum.eq(pipeline.at(self.mode, 2) == Mode.MAXIMUM)

        for n in range(tn):
            # Cycle 0: pick the weight; 1 makes a sum of the product.
            weight = Signal(8, name=f"weight_{n}", reset_less=True)
            slots = Array(Value.cast(self.weights[k][n]) for k in range(tn))
            m.d.sync += weight.eq(Mux(self.mode == Mode.SUM, 1, slots[self.slot]))
            for p in range(tp):
                # Cycle 0: pick the lane.
                lane = Signal(signed(8), name=f"lane_{p}_{n}", reset_less=True)
                choices = Array(self.words[p][b * tn + n] for b in range(blocks))
                m.d.sync += lane.eq(choices[self.block])
                # Cycle 1: multiply by each pair of weight bits; find the maximum.
                digits = [
                    Signal(signed(10), name=f"digit_{p}_{n}_{j}", reset_less=True) for j in range(4)
                ]
                for j, digit in enumerate(digits):
                    ones = Mux(weight[2 * j], lane, 0)
                    twos = Mux(weight[2 * j + 1], lane << 1, 0)
                    m.d.sync += digit.eq(ones - twos if j == 3 else ones + twos)
                best = Signal(signed(8), name=f"best_{p}_{n}", reset_less=True)
                with m.If(first | (lane > best)):
                    m.d.sync += best.eq(lane)
                # Cycle 2: add the halves; a maximum takes the place of the low one.
                low = Signal(signed(13), name=f"low_{p}_{n}", reset_less=True)
                high = Signal(signed(13), name=f"high_{p}_{n}", reset_less=True)
                m.d.sync += [
                    low.eq(Mux(maximum, best, digits[0] + (digits[1] << 2))),
                    high.eq(Mux(maximum, 0, digits[2] + (digits[3] << 2))),
                ]
                # Cycle 3: the term.
                term = Signal(signed(16), name=f"term_{p}_{n}", reset_less=True)
                m.d.sync += term.eq(low + (high << 4))
                m.d.comb += self.terms[p][n].eq(term)
        return m
