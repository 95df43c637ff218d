# SPDX-License-Identifier: Apache-2.0
"""The test room: the array, its accumulators and the lanes against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.sim import Simulator

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import Mode
from rtl.lanes import Lanes
from rtl.pe_array import Accumulators, PEArray

SHAPES = [(4, 8, 1), (4, 8, 2), (4, 16, 4)]


def _corners(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random int8, a third of them extreme."""
    values = rng.integers(-128, 128, shape)
    extreme = rng.choice([-128, -127, -1, 0, 1, 127], shape)
    return np.where(rng.random(shape) < 0.33, extreme, values)


def _run(dut, bench) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize(("tn", "ti", "tp"), SHAPES)
def test_products_are_exact(tn, ti, tp):
    """Random and extreme operands (all -128 too), a new set every cycle."""
    config = AcceleratorConfig(tn=tn, ti=ti, tp=tp)
    rng = np.random.default_rng(7)
    words, weights = _corners(rng, (60, tp, ti)), _corners(rng, (60, tn, ti))
    words[0], weights[0] = -128, -128
    words[1], weights[1] = 127, -128
    dut, latency, got = PEArray(config), PEArray.latency(config), []

    async def bench(ctx):
        for cycle in range(len(words) + latency):
            if cycle < len(words):
                ctx.set(dut.words, words[cycle].tolist())
                ctx.set(dut.weights, weights[cycle].tolist())
            if cycle >= latency:
                got.append([[ctx.get(dut.sums[p][n]) for n in range(tn)] for p in range(tp)])
            await ctx.tick()

    _run(dut, bench)
    assert np.array_equal(got, np.einsum("cpi,cni->cpn", words, weights))


@pytest.mark.parametrize(("tn", "ti", "tp"), SHAPES)
def test_lanes(tn, ti, tp):
    """Every mode, block and slot; the maximum starts anew at `first`."""
    config = AcceleratorConfig(tn=tn, ti=ti, tp=tp)
    rng = np.random.default_rng(8)
    count = 200
    words, weights = _corners(rng, (count, tp, ti)), _corners(rng, (count, tn, ti))
    modes, first = rng.integers(1, 4, count), rng.random(count) < 0.3
    slots, blocks = rng.integers(0, tn, count), rng.integers(0, ti // tn, count)
    modes[0], first[0] = Mode.MAXIMUM, True
    dut, got, expected, best = Lanes(config), [], [], np.zeros((tp, tn), dtype=int)
    for c in range(count):
        lane = words[c][:, blocks[c] * tn : (blocks[c] + 1) * tn]
        best = lane if first[c] else np.maximum(best, lane)
        product = lane * weights[c, slots[c], :tn]
        expected.append({Mode.DEPTHWISE: product, Mode.MAXIMUM: best, Mode.SUM: lane}[modes[c]])

    async def bench(ctx):
        for cycle in range(count + dut.LATENCY):
            if cycle < count:
                ctx.set(dut.words, words[cycle].tolist())
                ctx.set(dut.weights, weights[cycle].tolist())
                ctx.set(dut.mode, Mode(modes[cycle]))
                ctx.set(dut.first, int(first[cycle]))
                ctx.set(dut.slot, int(slots[cycle]))
                ctx.set(dut.block, int(blocks[cycle]))
            if cycle >= dut.LATENCY:
                got.append([[ctx.get(dut.terms[p][n]) for n in range(tn)] for p in range(tp)])
            await ctx.tick()

    _run(dut, bench)
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_accumulators_hand_over_while_the_next_pixel_starts(tp):
    """Pixels of tp steps or more, back to back: tp sums a pixel, in order, one a cycle."""
    config = AcceleratorConfig(tn=4, ti=8, tp=tp)
    rng = np.random.default_rng(9)
    lengths = rng.integers(tp, tp + 4, 20)
    dut, got, expected = Accumulators(config), {}, {}
    steps = [(k == 0, k == length - 1) for length in lengths for k in range(length)]
    terms = rng.integers(-(2**14), 2**14, (len(steps), tp, 4))
    acc = np.zeros((tp, 4), dtype=int)
    for c, (first, last) in enumerate(steps):
        acc = (5 if first else acc) + terms[c]
        if last:
            for p in range(tp):
                expected[c + dut.LATENCY + p] = acc[p].tolist()

    async def bench(ctx):
        for n in range(4):
            ctx.set(dut.parameters[n].bias, 5)
        for cycle in range(len(steps) + dut.LATENCY + tp):
            first, last = steps[cycle] if cycle < len(steps) else (False, False)
            ctx.set(dut.first, int(first))
            ctx.set(dut.last, int(last))
            ctx.set(dut.dense, cycle % 2)
            term = terms[min(cycle, len(steps) - 1)].tolist()
            ctx.set(dut.trees if cycle % 2 else dut.lanes, term)
            if cycle in expected:
                got[cycle] = [ctx.get(dut.sums[n]) for n in range(4)]
            await ctx.tick()

    _run(dut, bench)
    assert got == expected
