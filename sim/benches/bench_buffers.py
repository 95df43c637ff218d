# SPDX-License-Identifier: Apache-2.0
"""The simulation room: SB and the tap buffer under random traffic."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from sim.benches.memory import reset
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
SEED = PARAMETERS.get("seed", 1)
COUNT = PARAMETERS.get("count", 0)


@cocotb.test()
@cocotb.parametrize(busy=[0.3, 1.0])
async def traffic(dut: Any, busy: float) -> None:
    """Read and write at once: a read sees what was written before it, in LATENCY cycles.

    A row is `slots` words; a word is written, a row is read.
    """
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(f"{SEED} {busy}")
    rows, slots, bits = PARAMETERS["rows"], PARAMETERS["slots"], PARAMETERS["bits"]
    row_port = getattr(dut, PARAMETERS["row_port"])
    await reset(dut, read__enable=0, write__valid=0)
    memory = [[0] * slots for _ in range(rows)]
    fill = rows * slots
    expected: deque[int | None] = deque([None] * PARAMETERS["latency"])
    checked = 0
    for cycle in range(fill + COUNT):
        filling = cycle < fill
        row, slot = divmod(cycle, slots) if filling else (rng.randrange(rows), rng.randrange(slots))
        writes, word = filling or rng.random() < busy, rng.getrandbits(bits)
        reads = not filling and rng.random() < busy
        # Half of the reads meet the row that is being written.
        source = row if rng.random() < 0.5 else rng.randrange(rows)
        dut.write__valid.value, row_port.value, dut.write__data.value = int(writes), row, word
        if slots > 1:
            dut.write__slot.value = slot
        dut.read__enable.value, dut.read__address.value = int(reads), source
        joined = sum(value << (bits * i) for i, value in enumerate(memory[source]))
        expected.append(joined if reads else None)
        await ReadOnly()
        due = expected.popleft()
        if due is not None:
            assert int(dut.read__data.value) == due, f"cycle {cycle}"
            checked += 1
        if writes:
            memory[row][slot] = word
        await RisingEdge(dut.clk)
    assert checked > COUNT * busy / 2
