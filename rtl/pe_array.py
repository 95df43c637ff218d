# SPDX-License-Identifier: Apache-2.0
"""The hardware room: NFU-1 (multipliers), NFU-2 (adder trees) and the accumulators."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch import timing
from hwgen.arch.config import AcceleratorConfig
from rtl.layouts import CHANNEL_PARAMETERS, int8_lanes, synapse_row
from rtl.multipliers import PAIR_CYCLES, add, pair_sum
from rtl.pipeline import FLIP_FLOPS, Pipeline

Operands = list[list[Signal]]
Trees = dict[tuple[int, int], "_Tree"]

PACKING_BITS = 16
HIGH_BITS = 18


class PEArray(wiring.Component):
    """tn x ti x tp int8 products a cycle, summed over ti: the array of DianNao's NFU-1 and NFU-2.

    `config.dsp_lanes` of the ti lanes are made of DSP slices, in chains of up to four. Two products
    share a slice's 25 x 18 multiplier: ``((b << 16) + a) * c``. `a` and `b` are neighbouring pixels
    where tp is even (one packing adder an input lane), else the weights of neighbouring output
    channels. Each slice adds the result of the one before, and the first one -1, so that a chain
    gives ``(high << 16) + low - 1``, with `high` and `low` from -65024 to 65536. ``low - 1`` takes
    17 bits, the highest of which lies on the lowest of `high`. That one is known: it is the parity
    of the products, an AND and an XOR a slice. So we know the sign of ``low - 1`` too, which is
    what `high` lacks.

    The other lanes are made of LUTs, two lanes at a time (`pair_sum`).

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
        """Return operands + products + the trees' stages, in cycles."""
        return timing.array_cycles(config)

    def elaborate(self, platform: object) -> Module:
        """Build chains and pairs of lanes, and a tree for each output channel and pixel."""
        m = Module()
        config = self.config
        words = [_named(m, f"word_{p}", word) for p, word in enumerate(self.words)]
        weights = [_named(m, f"weight_{n}", weight) for n, weight in enumerate(self.weights)]
        trees = {(p, n): _Tree(f"tree_{p}_{n}") for p in range(config.tp) for n in range(config.tn)}

        chained = 0
        for lanes in timing.dsp_chains(config):
            self._chain(m, range(chained, chained + lanes), words, weights, trees)
            chained += lanes
        for i in range(chained, config.ti, 2):
            self._pair(m, range(i, min(i + 2, config.ti)), words, weights, trees)
        for (p, n), tree in trees.items():
            m.d.comb += self.sums[p][n].eq(tree.build(m, self.latency(config)))
        return m

    def _chain(
        self, m: Module, lanes: range, words: Operands, weights: Operands, trees: Trees
    ) -> None:
        """Make the products of up to four lanes in DSP slices, each adding the one before."""
        operands, parities = Pipeline(m), Pipeline(m, shift_registers=False)
        by_pixels = self.config.tp % 2 == 0
        packed, single = (words, weights) if by_pixels else (weights, words)
        totals: dict[tuple[int, int], Value] = {}
        odds: dict[tuple[int, int], Value] = {}
        for k, i in enumerate(lanes):
            parity = [_copy(m, f"parity_{s}_{i}", single[s][i][0]) for s in range(len(single))]
            for j in range(0, len(packed), 2):
                # Cycle k: two operands, 16 bits apart, as a 25 bit number.
                low, high = (parities.at(packed[j + half][i], k) for half in range(2))
                pack = ((high << PACKING_BITS) + low)[: PACKING_BITS + 9].as_signed()
                pack = _registered(m, f"packed_{j}_{i}", pack)
                for s in range(len(single)):
                    # Cycle k + 1: multiply; the parity. Cycle k + 2: add the slice before.
                    name = f"{j}_{s}_{i}"
                    product = _registered(
                        m, f"product_{name}", pack * operands.at(single[s][i], k + 1)
                    )
                    odd = parities.at(packed[j + 1][i], k + 1)[0] & parities.at(parity[s], k + 1)
                    odds[j, s] = _registered(m, f"odd_{name}", odd ^ odds.get((j, s), 0))
                    total = (product + totals.get((j, s), -1))[: PACKING_BITS + HIGH_BITS]
                    totals[j, s] = _registered(m, f"total_{name}", total.as_signed())
        cycle = timing.OPERAND_CYCLES + 1 + len(lanes)
        for (j, s), total in totals.items():
            # The last slice's result: the two sums, each of which lacks a carry.
            low, high = total[:PACKING_BITS], total[PACKING_BITS:]
            negative = high[0] ^ _registered(m, f"odd_{j}_{s}", odds[j, s])
            for half, (term, carry) in enumerate(((Cat(low, negative), C(1)), (high, negative))):
                tree = trees[(j + half, s) if by_pixels else (s, j + half)]
                tree.terms.append((cycle, term.as_signed()))
                tree.carries.append((cycle, carry))

    @staticmethod
    def _pair(m: Module, lanes: range, words: Operands, weights: Operands, trees: Trees) -> None:
        """Make the products of two lanes of LUTs; a lane left over is paired with zeros."""
        lines = Pipeline(m, shift_registers=False)
        zero = Signal(signed(8))

        def pair(row: list[Signal]) -> tuple[Signal, Signal]:
            return row[lanes[0]], row[lanes[1]] if len(lanes) == 2 else zero

        def registered(row: list[Signal]) -> tuple[Signal, Signal]:
            first, second = pair(row)
            return lines.at(first, 1), lines.at(second, 1)

        for p in range(len(words)):
            # Cycle 0: add the two words, for all channels. Cycle 1 and on: multiply.
            first, second = pair(words[p])
            both = _registered(m, f"both_{p}_{lanes[0]}", first + second)
            for n in range(len(weights)):
                name = f"pair_{p}_{n}_{lanes[0]}"
                operands = registered(weights[n]), registered(words[p])
                term = pair_sum(m, lines, name, *operands, both)
                trees[p, n].terms.append((timing.OPERAND_CYCLES + PAIR_CYCLES, term))


class _Tree:
    """An adder tree: terms and carries, with the cycles in which they come."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.terms: list[tuple[int, Value]] = []
        self.carries: list[tuple[int, Value]] = []

    def build(self, m: Module, latency: int) -> Value:
        """Add four terms to one between registers. The sum comes in cycle `latency`."""
        terms: list[Value] = []
        carries: list[Value] = []
        for cycle in range(min(comes for comes, _ in self.terms), latency):
            terms += [term for comes, term in self.terms if comes == cycle]
            carries += [carry for comes, carry in self.carries if comes == cycle]
            if cycle == latency - 1:
                # Carries that no adder is left for: see `timing.array_cycles`.
                terms += [C(0, signed(1))] * len(carries[len(terms) - 1 :])
            step = timing.TREE_TERMS_PER_CYCLE
            terms = [self._add(terms[j : j + step], carries) for j in range(0, len(terms), step)]
            terms, carries = (
                [_registered(m, f"{self.name}_{kind}{cycle}_{j}", v) for j, v in enumerate(values)]
                for kind, values in (("", terms), ("carry", carries))
            )
        assert len(terms) == 1 and not carries
        return terms[0]

    @staticmethod
    def _add(terms: list[Value], carries: list[Value]) -> Value:
        """Add in pairs; each adder takes one of the carries too, if there is any."""
        while len(terms) > 1:
            odd = terms[len(terms) & ~1 :]
            terms = [
                add(a, b, carries.pop(0) if carries else 0)
                for a, b in zip(terms[::2], terms[1::2], strict=False)
            ] + odd
        return terms[0]


def _named(m: Module, name: str, values: data.View) -> list[Signal]:
    """Return the elements of a port's row as signals of their own."""
    signals = [Signal(signed(8), name=f"{name}_{i}") for i in range(len(values))]
    m.d.comb += [signal.eq(value) for signal, value in zip(signals, values, strict=True)]
    return signals


def _copy(m: Module, name: str, bit: Value) -> Signal:
    """Return a bit as a signal of its own, whose registers need not be those of its word."""
    signal = Signal(name=name)
    m.d.comb += signal.eq(bit)
    return signal


def _registered(m: Module, name: str, value: Value) -> Signal:
    """Return `value` one cycle later, in a reset-less register of its own width."""
    register = Signal(value.shape(), name=name, reset_less=True)
    m.d.sync += register.eq(value)
    return register


def tree_sums(config: AcceleratorConfig) -> data.ArrayLayout:
    """Return the layout of what the trees give: tp pixels of tn sums of ti int16 products."""
    bits = 16 + (config.ti - 1).bit_length()
    return data.ArrayLayout(data.ArrayLayout(signed(bits), config.tn), config.tp)


class Accumulators(wiring.Component):
    """The int32 partial sums of tn channels and tp pixels, and their hand-over to NFU-3.

    With every step ``acc = start + term``: `term` comes from the trees when `dense`, else from the
    lanes; `start` is the bias when `first`, nothing when `clear` (the lanes hold a maximum on
    their own), else `acc`. Between steps `acc` stays, so that a sum may go on in a later
    instruction. A cycle after `last`, NFU-3 is handed the sums and parameters: the tp pixels come
    one a cycle at `sums`, the first of them two cycles after the step with `last`. The array may
    begin its next pixel in the cycle after `last`. `last` must not come again within tp cycles.

    `trees`, `lanes`, `last` and `parameters` are sampled with the step, and `parameters` must hold
    for the cycle after `last` too (its bias need not). `step`, `dense`, `clear` and `first` are
    sampled LEAD cycles ahead, so that each channel has registers of its own for them.
    """

    LEAD = 1
    LATENCY = 2

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        parameters = data.ArrayLayout(CHANNEL_PARAMETERS, config.tn)
        super().__init__(
            {
                "trees": In(tree_sums(config)),
                "lanes": In(data.ArrayLayout(int8_products(config), config.tp)),
                "step": In(1),
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
        for n in range(tn):

            def copy(signal: Signal, channel: int = n) -> Signal:
                """Register a control bit for this channel alone: none drives the whole array."""
                own = Signal(name=f"{signal.name}_{channel}", attrs=FLIP_FLOPS)
                m.d.sync += own.eq(signal)
                return own

            # A cycle ahead of the step; `last` with it.
            step, dense, clear, first = map(copy, (self.step, self.dense, self.clear, self.first))
            last = copy(self.last)
            parameters = self.parameters[n]
            held = Signal(CHANNEL_PARAMETERS, name=f"held_{n}", reset_less=True)
            with m.If(last):
                m.d.sync += held.eq(parameters)
            m.d.comb += self.sums_parameters[n].eq(held)
            later: Value | None = None
            for p in reversed(range(tp)):
                # Cycle 0: accumulate.
                acc = Signal(signed(32), name=f"acc_{p}_{n}", reset_less=True)
                kept = Mux(first, parameters.bias, acc)
                term = Mux(dense, self.trees[p][n], self.lanes[p][n])
                with m.If(step):
                    m.d.sync += acc.eq(Mux(clear, 0, kept) + term)
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
