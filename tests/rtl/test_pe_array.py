# SPDX-License-Identifier: Apache-2.0
"""The test room: the array, its accumulators and the lanes against numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from amaranth.sim import Simulator

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import Mode
from rtl.lanes import Lanes
from rtl.pe_array import Accumulators, PEArray

SHAPES = [(4, 8, 1), (4, 8, 2), (4, 16, 4)]
ARRAYS = [
    (4, 8, 1, 8),  # chains of DSP slices alone, of packed weights
    (4, 8, 1, 1),
    (8, 8, 2, 3),
    (8, 8, 2, 8),
    (4, 8, 2, 0),  # LUTs alone
    (8, 8, 4, 5),
    (4, 16, 1, 10),
    (4, 32, 1, 17),
    pytest.param(16, 16, 2, 8, marks=pytest.mark.slow),  # the PYNQ-Z2's
]
EXTREMES = [-128, -127, -1, 0, 1, 127]


def _corners(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random int8, a third of them extreme."""
    values = rng.integers(-128, 128, shape)
    extreme = rng.choice(EXTREMES, shape)
    return np.where(rng.random(shape) < 0.33, extreme, values)


def _run(dut, bench) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def _sums(config: AcceleratorConfig, words: np.ndarray, weights: np.ndarray) -> list:
    """Give the array a word a pixel and a row of weights every cycle; return what it sums."""
    dut, latency, got = PEArray(config), PEArray.latency(config), []

    async def bench(ctx):
        for cycle in range(len(words) + latency):
            if cycle < len(words):
                ctx.set(dut.words, words[cycle].tolist())
                ctx.set(dut.weights, weights[cycle].tolist())
            if cycle >= latency:
                got.append(
                    [[ctx.get(dut.sums[p][n]) for n in range(config.tn)] for p in range(config.tp)]
                )
            await ctx.tick()

    _run(dut, bench)
    return got


@pytest.mark.parametrize(("tn", "ti", "tp", "dsp_lanes"), ARRAYS)
def test_products_are_exact(tn, ti, tp, dsp_lanes):
    """Every extreme against every other in all lanes, then random, a new set every cycle."""
    config = AcceleratorConfig(tn=tn, ti=ti, tp=tp, dsp_lanes=dsp_lanes)
    rng = np.random.default_rng(7)
    print("seed 7")
    words, weights = _corners(rng, (100, tp, ti)), _corners(rng, (100, tn, ti))
    for c, (word, weight) in enumerate(itertools.product(EXTREMES, EXTREMES)):
        words[c], weights[c] = word, weight
        # A neighbour that is not extreme must not see what the one it is packed with does.
        words[c + 36, 0], weights[c + 36, 0] = word, weight
    got = _sums(config, words, weights)
    assert np.array_equal(got, np.einsum("cpi,cni->cpn", words, weights))


@pytest.mark.parametrize("dsp_lanes", [0, 3, 4, 8])
@pytest.mark.parametrize("tp", [1, 2])
def test_packed_sums_do_not_touch(tp, dsp_lanes):
    """All lanes of a pixel and channel extreme, and any extreme in its neighbours."""
    config = AcceleratorConfig(tn=4, ti=8, tp=tp, dsp_lanes=dsp_lanes)
    extremes = list(itertools.product([-128, 127, 0, -1], repeat=3))
    words, weights = np.zeros((64, tp, 8), dtype=int), np.zeros((64, 4, 8), dtype=int)
    for c, (low, high, other) in enumerate(extremes):
        (words if tp == 2 else weights)[c, 0], (words if tp == 2 else weights)[c, 1] = low, high
        (weights if tp == 2 else words)[c] = other
    got = _sums(config, words, weights)
    assert np.array_equal(got, np.einsum("cpi,cni->cpn", words, weights))


@pytest.mark.parametrize(("tn", "ti", "tp"), SHAPES)
def test_lanes(tn, ti, tp):
    """Every mode, block and slot; mode and maximum start anew at `first`."""
    config = AcceleratorConfig(tn=tn, ti=ti, tp=tp)
    rng = np.random.default_rng(8)
    print("seed 8")
    count = 200
    words, weights = _corners(rng, (count, tp, ti)), _corners(rng, (count, tn, ti))
    first = rng.random(count) < 0.3
    first[0] = True
    modes = rng.integers(1, 4, count)[np.maximum.accumulate(np.where(first, range(count), 0))]
    slots, blocks = rng.integers(0, tn, count), rng.integers(0, ti // tn, count)
    dut, got, expected, best = Lanes(config), [], [], np.zeros((tp, tn), dtype=int)
    for c in range(count):
        lane = words[c][:, blocks[c] * tn : (blocks[c] + 1) * tn]
        best = lane if first[c] else np.maximum(best, lane)
        product = lane * weights[c, slots[c], :tn]
        expected.append({Mode.DEPTHWISE: product, Mode.MAXIMUM: best, Mode.SUM: lane}[modes[c]])

    async def bench(ctx):
        for cycle in range(-dut.LEAD, count + dut.LATENCY):
            if 0 <= cycle < count:
                ctx.set(dut.words, words[cycle].tolist())
                ctx.set(dut.weights, weights[cycle].tolist())
                ctx.set(dut.first, int(first[cycle]))
            if (ahead := cycle + dut.LEAD) < count:
                ctx.set(dut.mode, Mode(modes[ahead]))
                ctx.set(dut.slot, int(slots[ahead]))
                ctx.set(dut.block, int(blocks[ahead]))
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
        for cycle in range(-dut.LEAD, len(steps) + dut.LATENCY + tp):
            ahead = cycle + dut.LEAD
            ctx.set(dut.step, int(ahead < len(steps)))
            ctx.set(dut.first, int(ahead < len(steps) and steps[ahead][0]))
            ctx.set(dut.dense, ahead % 2)
            ctx.set(dut.last, int(0 <= cycle < len(steps) and steps[cycle][1]))
            term = terms[max(0, min(cycle, len(steps) - 1))].tolist()
            ctx.set(dut.trees if cycle % 2 else dut.lanes, term)
            if cycle in expected:
                got[cycle] = [ctx.get(dut.sums[n]) for n in range(4)]
            await ctx.tick()

    _run(dut, bench)
    assert got == expected
