# SPDX-License-Identifier: Apache-2.0
"""The simulation room: a serial line's two ends, in every cycle and at rates that are off."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from sim.benches.memory import reset
from sim.benches.signals import Source
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
SEED = PARAMETERS.get("seed", 1)
DIVIDER = PARAMETERS.get("divider", 4)
RECEIVES = PARAMETERS.get("receives", False)
COUNT = 40 if DIVIDER < 8 else 12


def frame(byte: int) -> list[int]:
    """Return a byte's bits on the line."""
    return [0, *(byte >> i & 1 for i in range(8)), 1]


@cocotb.test(skip=RECEIVES)
@cocotb.parametrize(stall=[0.0, 0.9, 0.998])
async def transmitter(dut: Any, stall: float) -> None:
    """Look at the pin: every bit for `DIVIDER` cycles, from the cycle after its byte was taken."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(SEED)
    source = Source(dut, "data", rng, stall)
    source.items.extend(rng.getrandbits(8) for _ in range(COUNT))
    await reset(dut)
    wanted: deque[int] = deque()
    cycles = 0
    while source.items or wanted:
        source.drive()
        await ReadOnly()
        assert int(dut.pin.value) == (wanted.popleft() if wanted else 1)
        assert int(dut.data__ready.value) == (not wanted)
        taken = source.sample()
        if taken is not None:
            wanted.extend(bit for bit in frame(taken) for _ in range(DIVIDER))
        cycles += 1
        await RisingEdge(dut.clk)
    if not stall:
        assert cycles == 10 * DIVIDER * COUNT + 1  # no gap


async def receive(dut: Any, line: list[int]) -> list[tuple[int, int]]:
    """Put a line's levels on the pin, one a cycle; return (byte, error) of what came."""
    found = []
    for level in [*line, *[1] * 3 * DIVIDER]:
        dut.pin.value = level
        await ReadOnly()
        if int(dut.valid.value):
            found.append((int(dut.data.value), int(dut.error.value)))
        await RisingEdge(dut.clk)
    await ReadOnly()
    assert not int(dut.busy.value)
    await RisingEdge(dut.clk)
    return found


def levels(bits: list[int], rate: float, phase: float) -> list[int]:
    """Sample bits that last `rate` cycles each, the first from `phase` cycles on."""
    count = int(len(bits) * rate + phase)
    return [
        bits[min(int((i - phase) / rate), len(bits) - 1)] if i >= phase else 1 for i in range(count)
    ]


@cocotb.test(skip=not RECEIVES)
@cocotb.parametrize(off=[0.0, -0.03, 0.03])
async def receiver(dut: Any, off: float) -> None:
    """Bytes come at rates 3 % off, back to back or with pauses, at any phase of the clock."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(SEED)
    if off and DIVIDER < 8:
        return  # half a cycle of phase is more than that already
    await reset(dut, pin=1)
    for gap in (0, 0, 1, 7):
        sent = [rng.getrandbits(8) for _ in range(COUNT)]
        bits = [bit for byte in sent for bit in (*frame(byte), *[1] * gap)]
        line = levels(bits, DIVIDER * (1 + off), rng.random())
        assert await receive(dut, line) == [(byte, 0) for byte in sent]


@cocotb.test(skip=not RECEIVES)
async def receiver_errors(dut: Any) -> None:
    """Take a spike for nothing, a missing stop bit for an error; work again after a break."""
    await reset(dut, pin=1)
    spike = max(1, DIVIDER // 2 - 2)
    assert await receive(dut, [0] * spike + [1] * 20 * DIVIDER) == []
    broken = [bit for bit in frame(0x35)[:9] for _ in range(DIVIDER)] + [0] * DIVIDER
    found = await receive(dut, broken + [1] * 2 * DIVIDER)
    assert found == [(0x35, 1)]
    assert await receive(dut, [0] * 50 * DIVIDER + [1] * 4) == [(0, 1)]
    good = [bit for bit in frame(0xC5) for _ in range(DIVIDER)]
    assert await receive(dut, good) == [(0xC5, 0)]
