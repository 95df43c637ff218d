# SPDX-License-Identifier: Apache-2.0
"""The simulation room: token counters that are full."""

from __future__ import annotations

import random
from typing import Any

import cocotb

from hwgen.arch.isa import Queue
from hwgen.arch.registers import ErrorCode
from rtl.dispatch import TOKEN_BITS
from sim.benches.bench_tokens import SEED, Bench, Instruction
from sim.runner import bench_parameters


@cocotb.test()
async def overflow(dut: Any) -> None:
    """Keep a full counter full when it is given to and taken from at once; refuse one more."""
    rng = random.Random(SEED)
    most = (1 << TOKEN_BITS) - 1
    for pair in bench_parameters()["counters"]:
        giver, taker = map(Queue, pair)
        give: Instruction = (giver, set(), {taker})
        program = [*[give] * (most + 1), (taker, {giver}, set[Queue]()), give]
        bench = Bench(dut, rng, program, 0.0, 0.0)
        await bench.start()
        for _ in range(12 * len(program) + 60):
            # The token too many waits for the cycle in which the taker starts.
            bench.held[giver] = bench.completed == most and not (
                bench.queued[taker] and bench.queued[taker][0] == most + 1
            )
            await bench.cycle()
            if bench.overflow:
                break
        assert bench.overflow == (ErrorCode.TOKEN_OVERFLOW, giver, most + 2)
