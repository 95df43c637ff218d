# SPDX-License-Identifier: Apache-2.0
"""The test room: NFU-3 against `numerics.requantize`, seeded random and corner values."""

from __future__ import annotations

import random

import numpy as np
import pytest
from amaranth.sim import Simulator

from hwgen.arch import isa, numerics
from rtl.requantizer import Requantizer

LANES = 2
SUMS = (0, 1, -1, (1 << 31) - 1, -(1 << 31), 1 << 17, (1 << 17) - 1, -(1 << 17) - 1)
SHIFTS = (0, 1, 2, 7, 8, 9, 16, 31, 46, 47)


def _word(rng: random.Random) -> dict:
    """Return one word's inputs; corners are as likely as ordinary values."""
    int8 = lambda: rng.choice((-128, -1, 0, 127, rng.randrange(-128, 128)))  # noqa: E731
    lo, hi = sorted((int8(), int8()))
    return {
        "sums": [
            rng.choice((*SUMS, rng.randrange(-(1 << 31), 1 << 31), rng.randrange(-4096, 4096)))
            for _ in range(LANES)
        ],
        "multiplier": [rng.choice((0, 1, 65535, rng.randrange(65536))) for _ in range(LANES)],
        "shift": [rng.choice((*SHIFTS, rng.randrange(48))) for _ in range(LANES)],
        "residual_multiplier": [
            rng.choice((0, 1, (1 << 24) - 1, rng.randrange(1 << 24))) for _ in range(LANES)
        ],
        "residual": [int8() for _ in range(LANES)],
        "has_residual": rng.randrange(2),
        "residual_zero_point": int8(),
        "zero_point": int8(),
        "lo": lo,
        "hi": hi,
    }


def _reference(word: dict) -> list[int]:
    return numerics.requantize(
        np.array(word["sums"]),
        word["multiplier"],
        word["shift"],
        word["zero_point"],
        word["lo"],
        word["hi"],
        np.array(word["residual"]) if word["has_residual"] else None,
        word["residual_zero_point"],
        word["residual_multiplier"],
    ).tolist()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_word_a_cycle_with_everything_changing(seed):
    """Every input, parameters included, differs from one cycle to the next."""
    print("seed", seed)
    rng = random.Random(seed)
    words = [_word(rng) for _ in range(1000)]
    dut = Requantizer(LANES)
    got: list[list[int]] = []

    async def bench(ctx):
        for cycle in range(len(words) + dut.LATENCY):
            if cycle < len(words):
                word = words[cycle]
                for name in ("has_residual", "residual_zero_point", "zero_point", "lo", "hi"):
                    ctx.set(getattr(dut, name), word[name])
                packed = [
                    isa.CHANNEL_PARAMETERS.pack(
                        {
                            name: word[name][n]
                            for name in ("multiplier", "shift", "residual_multiplier")
                        }
                    )
                    for n in range(LANES)
                ]
                bits = len(dut.parameters.as_value()) // LANES
                value = sum(p << (bits * n) for n, p in enumerate(packed))
                ctx.set(dut.parameters.as_value(), value)
                ctx.set(dut.sums, word["sums"])
                ctx.set(dut.residual, word["residual"])
            if cycle >= dut.LATENCY:
                got.append([ctx.get(dut.result[n]) for n in range(LANES)])
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert got == [_reference(word) for word in words]
