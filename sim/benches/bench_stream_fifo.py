# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the stream FIFO with stalls at either end."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from sim.benches.memory import reset
from sim.benches.signals import Sink, Source
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
SEED = PARAMETERS.get("seed", 1)
COUNT = PARAMETERS.get("count", 0)


@cocotb.test()
@cocotb.parametrize(fill=[0.0, 0.6], drain=[0.0, 0.6])
async def fifo(dut: Any, fill: float, drain: float) -> None:
    """Everything comes out once and in order; `level`, and both ends, are exact in every cycle."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(f"{SEED} {fill} {drain}")
    depth = PARAMETERS["depth"]
    source, sink = Source(dut, "input", rng, fill), Sink(dut, "output", rng, drain)
    source.items.extend(rng.getrandbits(len(dut.input__payload)) for _ in range(COUNT))
    await reset(dut)
    held: deque[int] = deque()
    left = COUNT
    for cycle in range(20 * COUNT):
        source.drive()
        sink.drive()
        await ReadOnly()
        state = tuple(int(s.value) for s in (dut.level, dut.input__ready, dut.output__valid))
        assert state == (len(held), len(held) < depth, len(held) > 0), f"cycle {cycle}: {state}"
        put, got = source.sample(), sink.sample()
        if got is not None:
            assert got == held.popleft(), f"cycle {cycle}"
            left -= 1
        if put is not None:
            held.append(put)
        if not left:
            assert fill or drain or cycle == COUNT  # one entry a cycle, LATENCY cycle through
            return
        await RisingEdge(dut.clk)
    raise AssertionError(f"{left} entries never came")
