# SPDX-License-Identifier: Apache-2.0
"""The test room: the multipliers made of LUTs against numpy."""

from __future__ import annotations

import numpy as np
from amaranth.hdl import Module, Signal, signed
from amaranth.sim import Simulator

from rtl.multipliers import BOOTH_CYCLES, PAIR_CYCLES, booth_product, pair_sum
from rtl.pipeline import Pipeline

INT8 = np.arange(-128, 128)
SEED = 17


def _results(m: Module, result: Signal, inputs: list[Signal], rows: np.ndarray, cycles: int):
    """Give the inputs a row of values every cycle; return the results."""
    got = []

    async def bench(ctx):
        for cycle in range(len(rows) + cycles):
            if cycle < len(rows):
                for signal, value in zip(inputs, rows[cycle], strict=True):
                    ctx.set(signal, int(value))
            if cycle >= cycles:
                got.append(ctx.get(result))
            await ctx.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return got


def test_every_booth_product():
    """All 65,536 products."""
    m, weight, word = Module(), Signal(signed(8)), Signal(signed(8))
    product = booth_product(m, Pipeline(m), "product", weight, word)
    rows = np.stack(np.meshgrid(INT8, INT8), axis=-1).reshape(-1, 2)
    got = _results(m, product, [weight, word], rows, BOOTH_CYCLES)
    assert np.array_equal(got, rows[:, 0] * rows[:, 1])


def test_every_product_of_a_pair():
    """All 65,536 products of either lane, in an order of its own, and all corners of both."""
    print("seed", SEED)
    m = Module()
    weights, words = (tuple(Signal(signed(8), name=f"{k}{i}") for i in "01") for k in "gw")
    both = Signal(signed(9))
    m.d.comb += both.eq(words[0] + words[1])
    total = pair_sum(m, Pipeline(m), "total", weights, words, both)
    one = np.stack(np.meshgrid(INT8, INT8), axis=-1).reshape(-1, 2)
    other = np.random.default_rng(SEED).permutation(one)
    corners = np.array(np.meshgrid(*[[-128, -127, -1, 0, 1, 127]] * 4)).reshape(4, -1).T
    rows = np.concatenate([np.concatenate([one, other], axis=1), corners])
    got = _results(m, total, [weights[0], words[0], weights[1], words[1]], rows, PAIR_CYCLES)
    assert np.array_equal(got, rows[:, 0] * rows[:, 1] + rows[:, 2] * rows[:, 3])
