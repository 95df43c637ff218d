# SPDX-License-Identifier: Apache-2.0
"""The hardware room: NFU-3, which turns sums into int8 codes."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from rtl.layouts import CHANNEL_PARAMETERS, int8_lanes
from rtl.pipeline import Pipeline

LOW_BITS = 17
SATURATED_BITS = 10


class Requantizer(wiring.Component):
    """The hardware of `hwgen.arch.numerics.requantize`: one word of `lanes` codes a cycle.

    All inputs are sampled together, every cycle, and may all change every cycle: what later
    stages need travels with the word. `result` follows LATENCY later. `parameters[n].bias` is not
    used. A lane takes three DSP48E1: 17 low bits of the sum, the residual, the 15 high bits, each
    one adding the product before it.

    Ports: `sums` (int32), `parameters`, `residual` (int8, read when `has_residual`) and the scalars
    `residual_zero_point`, `zero_point`, `lo`, `hi` (int8; lo <= hi).
    """

    LATENCY = 9

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(
            {
                "sums": In(data.ArrayLayout(signed(32), lanes)),
                "parameters": In(data.ArrayLayout(CHANNEL_PARAMETERS, lanes)),
                "residual": In(int8_lanes(lanes)),
                "has_residual": In(1),
                "residual_zero_point": In(signed(8)),
                "zero_point": In(signed(8)),
                "lo": In(signed(8)),
                "hi": In(signed(8)),
                "result": Out(int8_lanes(lanes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the lanes."""
        m = Module()
        pipeline = Pipeline(m)
        at = pipeline.at
        parameters = self.parameters
        zero_point, lo, hi = at(self.zero_point, 7), at(self.lo, 8), at(self.hi, 8)

        for n in range(self.lanes):

            def register(name: str, bits: int, lane: int = n) -> Signal:
                return Signal(signed(bits), name=f"{name}_{lane}", reset_less=True)

            low_sum, high_sum = Signal(LOW_BITS, name=f"low_{n}"), register("high", 15)
            multiplier = Signal(16, name=f"multiplier_{n}")
            residual_multiplier = Signal(24, name=f"residual_multiplier_{n}")
            shift = Signal(6, name=f"shift_{n}")
            m.d.comb += [
                Cat(low_sum, high_sum).eq(self.sums[n]),
                multiplier.eq(parameters[n].multiplier),
                residual_multiplier.eq(parameters[n].residual_multiplier),
                shift.eq(parameters[n].shift),
            ]
            low_product, low_total = register("low_product", 34), register("low_total", 34)
            difference = register("difference", 9)
            residual_product = register("residual_product", 33)
            residual_total = register("residual_total", 35)
            high_product, high_total = register("high_product", 31), register("high_total", 32)
            coarse, fine = register("coarse", 50), register("fine", 50)
            saturated, rounded = register("saturated", SATURATED_BITS), register("rounded", 12)
            round_up = Signal(name=f"round_up_{n}", reset_less=True)
            result = register("result", 8)

            # Cycle 0: the low product; the residual's distance from its zero.
            m.d.sync += [
                low_product.eq(low_sum * multiplier),
                difference.eq(
                    Mux(self.has_residual, self.residual[n] - self.residual_zero_point, 0)
                ),
            ]
            # Cycle 1: the residual product.
            m.d.sync += [
                low_total.eq(low_product),
                residual_product.eq(difference * at(residual_multiplier, 1)),
            ]
            # Cycle 2: both together; the high product.
            m.d.sync += [
                residual_total.eq(residual_product + low_total),
                high_product.eq(at(high_sum, 2) * at(multiplier, 2)),
            ]
            # Cycle 3: all three: 49 bits, of which the low ones are done.
            m.d.sync += high_total.eq(high_product + (residual_total >> LOW_BITS))
            total = Cat(at(residual_total, 1)[:LOW_BITS], high_total).as_signed()
            # Cycle 4, 5: shift, with the last bit out kept below the quotient.
            m.d.sync += [
                coarse.eq((total << 1) >> (at(shift, 4)[3:] << 3)),
                fine.eq(coarse >> at(shift, 5)[:3]),
            ]
            # Cycle 6: saturate, so far out that no zero point brings it back.
            quotient, sign = fine[1:], fine[-1]
            above = quotient[SATURATED_BITS - 1 :]
            fits = ~(above.any() ^ above.all())
            limit = Cat((~sign).replicate(SATURATED_BITS - 1), sign)
            m.d.sync += [
                saturated.eq(Mux(fits, quotient[:SATURATED_BITS], limit).as_signed()),
                round_up.eq(fine[0]),
            ]
            # Cycle 7: round half up, add the zero point.
            m.d.sync += rounded.eq(saturated + zero_point + round_up)
            # Cycle 8: clamp.
            with m.If(rounded > hi):
                m.d.sync += result.eq(hi)
            with m.Elif(rounded < lo):
                m.d.sync += result.eq(lo)
            with m.Else():
                m.d.sync += result.eq(rounded)
            m.d.comb += self.result[n].eq(result)
        return m
