# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the accumulators, a step every cycle, and their hand-over to NFU-3."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ReadOnly, RisingEdge

from hwgen.arch.config import AcceleratorConfig
from rtl.layouts import CHANNEL_PARAMETERS
from rtl.pe_array import Accumulators
from sim.benches import bench_datapath
from sim.benches.memory import reset
from sim.benches.signals import pack, unpack
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
CONFIG = AcceleratorConfig.from_dict(PARAMETERS["config"]) if PARAMETERS else AcceleratorConfig()
SEED = PARAMETERS.get("seed", 1)
TREE_BITS = 16 + (CONFIG.ti - 1).bit_length()


def int32(value: int) -> int:
    """Wrap as the accumulators do."""
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def channel(rng: random.Random) -> dict[str, int]:
    """Return the parameters of a channel, a third of the biases extreme."""
    bias = rng.choice([-(1 << 31), (1 << 31) - 1, rng.randrange(-(1 << 31), 1 << 31)])
    return {
        "bias": bias,
        "multiplier": rng.getrandbits(16),
        "shift": rng.randrange(48),
        "residual_multiplier": rng.getrandbits(24),
    }


@cocotb.test()
@cocotb.parametrize(density=[0.1, 0.5, 1.0])
async def steps(dut: Any, density: float) -> None:
    """Every step accumulates; tp pixels follow each `last`, one a cycle, with its parameters."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(f"{SEED} {density}")
    noise = np.random.default_rng(SEED)
    tn, tp = CONFIG.tn, CONFIG.tp
    width = CHANNEL_PARAMETERS.size
    acc = np.zeros((tp, tn), dtype=object)
    expected: dict[int, tuple[list[int], list[dict[str, int]]]] = {}
    parameters = [channel(rng) for _ in range(tn)]
    last, quiet, hand_overs = 0, 0, 0
    await reset(dut, last=0, first=0, clear=0, step=0)

    def draw(first: bool) -> tuple[int, int, int, int]:
        """Return step, dense, clear, first of a cycle."""
        bits = rng.getrandbits(1), int(rng.random() < 0.2), rng.getrandbits(1)
        # Nothing is known of the sums before the first step.
        return (1, bits[0], bits[1], 1) if first else (int(rng.random() < 0.8), *bits)

    def drive(control: tuple[int, int, int, int]) -> None:
        dut.step.value, dut.dense.value, dut.clear.value, dut.first.value = control

    coming = draw(first=True)
    drive(coming)
    await RisingEdge(dut.clk)
    for cycle in range(PARAMETERS["count"]):
        step, dense, clear, first = coming
        # The cycle after `last` still sees its parameters, all but the bias.
        fresh = [channel(rng) for _ in range(tn)]
        if last:
            fresh = [{**p, "bias": f["bias"]} for p, f in zip(parameters, fresh, strict=True)]
        parameters = fresh if last or rng.random() < 0.3 else parameters
        if last:
            for p in range(tp):
                sums = [int(v) for v in acc[p]]
                expected[cycle - 1 + Accumulators.LATENCY + p] = (sums, parameters)
        quiet = 1 if last else quiet + 1
        last = int(quiet >= tp and rng.random() < density)
        coming = draw(first=False)
        drive(coming)  # a cycle ahead of the step
        trees = noise.integers(-(1 << TREE_BITS - 1), 1 << TREE_BITS - 1, (tp, tn))
        lanes = noise.integers(-(1 << 15), 1 << 15, (tp, tn))
        dut.trees.value = bench_datapath.pack(trees, TREE_BITS)
        dut.lanes.value = bench_datapath.pack(lanes, 16)
        dut.last.value = last
        dut.parameters.value = sum(
            pack(CHANNEL_PARAMETERS, p) << (width * n) for n, p in enumerate(parameters)
        )
        await ReadOnly()
        if cycle in expected:
            sums, of_the_step = expected.pop(cycle)
            found = bench_datapath.unpack(int(dut.sums.value), 32, tn)
            assert found == sums, f"cycle {cycle}: {found}, not {sums}"
            word = int(dut.sums_parameters.value)
            for n, want in enumerate(of_the_step):
                got = unpack(CHANNEL_PARAMETERS, word >> (width * n))
                assert {**got, "bias": 0} == {**want, "bias": 0}, f"cycle {cycle}, channel {n}"
            hand_overs += 1
        biases = np.array([p["bias"] for p in parameters], dtype=object)
        start = np.zeros_like(acc) if clear else np.tile(biases, (tp, 1)) if first else acc
        if step:
            acc = np.frompyfunc(int32, 1, 1)(start + (trees if dense else lanes).astype(object))
        await RisingEdge(dut.clk)
    assert hand_overs > PARAMETERS["count"] * density / 8
