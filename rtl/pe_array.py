# SPDX-License-Identifier: Apache-2.0
"""The hardware room: NFU-1 (multipliers), NFU-2 (adder trees) and the accumulators."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from rtl.layouts import CHANNEL_PARAMETERS, int8_lanes, synapse_row

LEVELS_A_STAGE = 2


def _registered(m: Module, name: str, value: Value) -> Signal:
    """Return `value` one cycle later, in a reset-less register of its own width."""
    register = Signal(value.shape(), name=name, reset_less=True)
    m.d.sync += register.eq(value)
    return register


class PEArray(wiring.Component):
    """tn x ti x tp int8 products a cycle, summed over ti: the array of DianNao's NFU-1 and NFU-2.

    Two products share one 25 x 18 multiplier: ``((b << 16) + a) * c + 0x8000`` holds ``b * c`` in
    its bits 16 and above, exactly, and ``a * c`` with its sign bit inverted in the 16 below. The
    constant is what keeps a negative low product from borrowing of the high one, and costs nothing
    in a DSP48E1's adder. `a` and `b` are neighbouring pixels where tp is even (one packing adder
    an input lane), else the weights of neighbouring output channels.

    Ports: `words` (a word a pixel) and `weights` are sampled every cycle; `sums` follow
    `latency(config)` later, full precision. There is no enable and no reset.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            {
                "words": In(data.ArrayLayout(int8_lanes(config.ti), config.tp)),
                "weights": In(synapse_row(config)),
                "sums": Out(tree_sums(config)),
            }
        )

    @staticmethod
    def latency(config: AcceleratorConfig) -> int:
        """Return operands + product + output + the trees' stages, in cycles."""
        levels = (config.ti - 1).bit_length()
        return 3 + -(-levels // LEVELS_A_STAGE)

    def elaborate(self, platform: object) -> Module:
        """Build packed multipliers and a tree for each output channel and pixel."""
        m = Module()
        tn, ti, tp = self.config.tn, self.config.ti, self.config.tp
        products: dict[tuple[int, int], list[Value]] = {
            (p, n): [] for p in range(tp) for n in range(tn)
        }
        for i in range(ti):
            words = [self.words[p][i] for p in range(tp)]
            weights = [self.weights[n][i] for n in range(tn)]
            if tp % 2 == 0:
                singles = [_registered(m, f"weight_{n}_{i}", weights[n]) for n in range(tn)]
                for p in range(0, tp, 2):
                    packed = self._pack(m, f"words_{p}_{i}", words[p], words[p + 1])
                    for n in range(tn):
                        low, high = self._multiply(m, f"{p}_{n}_{i}", packed, singles[n])
                        products[p, n].append(low)
                        products[p + 1, n].append(high)
            else:
                singles = [_registered(m, f"word_{p}_{i}", words[p]) for p in range(tp)]
                for n in range(0, tn, 2):
                    packed = self._pack(m, f"weights_{n}_{i}", weights[n], weights[n + 1])
                    for p in range(tp):
                        low, high = self._multiply(m, f"{p}_{n}_{i}", packed, singles[p])
                        products[p, n].append(low)
                        products[p, n + 1].append(high)
        for (p, n), terms in products.items():
            m.d.comb += self.sums[p][n].eq(self._tree(m, f"tree_{p}_{n}", terms))
        return m

    @staticmethod
    def _pack(m: Module, name: str, low: Value, high: Value) -> Signal:
        """Cycle 0: two int8 operands, 16 bits apart, as a 25 bit signed number."""
        return _registered(m, name, ((high << 16) + low)[:25].as_signed())

    @staticmethod
    def _multiply(m: Module, name: str, packed: Signal, single: Signal) -> tuple[Value, Value]:
        """Cycle 1: multiply. Cycle 2: add the constant. Return the two products."""
        product = _registered(m, f"product_{name}", (packed * single)[:33].as_signed())
        output = _registered(m, f"output_{name}", (product + 0x8000)[:33].as_signed())
        low = Value.cast(output[:16]) ^ 0x8000
        return low[:16].as_signed(), output[16:32].as_signed()

    @staticmethod
    def _tree(m: Module, name: str, terms: list[Value]) -> Value:
        """Cycle 3 and on: add in pairs, a register every `LEVELS_A_STAGE` levels and at the end."""
        level = 0
        while len(terms) > 1:
            terms = [terms[j] + terms[j + 1] for j in range(0, len(terms), 2)]
            level += 1
            if level % LEVELS_A_STAGE == 0 or len(terms) == 1:
                terms = [_registered(m, f"{name}_{level}_{j}", t) for j, t in enumerate(terms)]
        return terms[0]


def tree_sums(config: AcceleratorConfig) -> data.ArrayLayout:
    """Return the layout of what the trees give: tp pixels of tn sums of ti int16 products."""
    bits = 16 + (config.ti - 1).bit_length()
    return data.ArrayLayout(data.ArrayLayout(signed(bits), config.tn), config.tp)


class Accumulators(wiring.Component):
    """The int32 partial sums of tn channels and tp pixels, and their hand-over to NFU-3.

    Every cycle ``acc = start + term``: `term` comes from the trees when `dense`, else from the
    lanes; `start` is the bias when `first`, nothing when `clear` (the lanes hold a maximum on
    their own), else `acc`. A cycle after `last`, NFU-3 is handed the sums and parameters: the tp
    pixels come one a cycle at `sums`, the first of them two cycles after the step with `last`.
    The array may begin its next pixel in the cycle after `last`. `last` must not come again
    within tp cycles. `parameters` is sampled with the steps, and must hold for the cycle after
    `last` too (its bias need not).
    """

    LATENCY = 2

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        parameters = data.ArrayLayout(CHANNEL_PARAMETERS, config.tn)
        super().__init__(
            {
                "trees": In(tree_sums(config)),
                "lanes": In(data.ArrayLayout(int8_products(config), config.tp)),
                "dense": In(1),
                "clear": In(1),
                "first": In(1),
                "last": In(1),
                "parameters": In(parameters),
                "sums": Out(data.ArrayLayout(signed(32), config.tn)),
                "sums_parameters": Out(parameters),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build an adder a channel and pixel, and the hand-over registers."""
        m = Module()
        tn, tp = self.config.tn, self.config.tp
        last = Signal()
        m.d.sync += last.eq(self.last)
        held = Signal(self.parameters.shape(), reset_less=True)
        with m.If(last):
            m.d.sync += held.eq(self.parameters)
        m.d.comb += self.sums_parameters.eq(held)

        for n in range(tn):
            later: Value | None = None
            for p in reversed(range(tp)):
                # Cycle 0: accumulate.
                acc = Signal(signed(32), name=f"acc_{p}_{n}", reset_less=True)
                kept = Mux(self.first, self.parameters[n].bias, acc)
                term = Mux(self.dense, self.trees[p][n], self.lanes[p][n])
                m.d.sync += acc.eq(Mux(self.clear, 0, kept) + term)
                # Cycle 1: hand over; pixel p moves up each cycle until it is at 0.
                handed = Signal(signed(32), name=f"handed_{p}_{n}", reset_less=True)
                with m.If(last):
                    m.d.sync += handed.eq(acc)
                if later is not None:
                    with m.Else():
                        m.d.sync += handed.eq(later)
                later = handed
            m.d.comb += self.sums[n].eq(later)
        return m


def int8_products(config: AcceleratorConfig) -> data.ArrayLayout:
    """Return the layout of what the lanes give a pixel: tn products of int8."""
    return data.ArrayLayout(signed(16), config.tn)
