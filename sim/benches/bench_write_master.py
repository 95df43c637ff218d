# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the write master: bursts, order, responses, draining in mid-burst."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge
from cocotbext.axi import AxiResp

from hwgen.arch.config import AcceleratorConfig
from sim.benches.memory import FaultyMemory, reset
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
CONFIG = AcceleratorConfig.from_dict(PARAMETERS["config"]) if PARAMETERS else AcceleratorConfig()
SEED = PARAMETERS.get("seed", 1)
MEMORY_BYTES = 1 << 15
ADDRESS_BITS = 32


class Bench:
    """Feeds transfers and their beats; `model` is what memory must hold."""

    def __init__(self, dut: Any, rng: random.Random, stall: float) -> None:
        self.dut, self.rng, self.stall = dut, rng, stall
        self.memory = FaultyMemory(dut, "axi_", MEMORY_BYTES, sides="write")
        self.model = bytearray(rng.randbytes(MEMORY_BYTES))
        self.memory.write(0, bytes(self.model))
        self.transfers: deque[int] = deque()
        self.beats: deque[int] = deque()
        self.errors: list[str] = []
        self.written = 0

    async def start(self) -> None:
        """Reset and run."""
        await reset(self.dut, request__valid=0, data__valid=0, drain=0)
        self.memory.stall(self.rng, self.stall)
        cocotb.start_soon(self._run())

    def ask(self, address: int, beats: int) -> None:
        """Queue a transfer of random beats."""
        self.transfers.append(address | beats << ADDRESS_BITS)
        data = self.rng.randbytes(8 * beats)
        self.model[address : address + len(data)] = data
        self.beats.extend(int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8))

    async def _run(self) -> None:
        dut = self.dut
        offered = False
        while True:
            asking = bool(self.transfers)
            dut.request__valid.value = int(asking)
            if asking:
                dut.request__payload.value = self.transfers[0]
            offered = bool(self.beats) and (offered or self.rng.random() >= self.stall)
            dut.data__valid.value = int(offered)
            if self.beats:
                dut.data__payload.value = self.beats[0]
            await ReadOnly()
            if int(dut.axi__awvalid.value) and int(dut.axi__awready.value):
                address, beats = int(dut.axi__awaddr.value), int(dut.axi__awlen.value) + 1
                size = 8 * CONFIG.max_burst_beats
                assert address // size == (address + 8 * beats - 1) // size, "boundary"
            self.written += int(dut.beat.value)
            for name in ("slverr", "decerr"):
                if int(getattr(dut, name).value):
                    self.errors.append(name)
            asked = asking and int(dut.request__ready.value)
            taken = offered and int(dut.data__ready.value)
            await RisingEdge(dut.clk)
            if asked:
                self.transfers.popleft()
            if taken:
                self.beats.popleft()
                offered = False

    async def until_idle(self, limit: int = 20_000) -> int:
        """Wait until all was written and answered; return the cycles it took."""
        cycles = 0
        while True:
            await RisingEdge(self.dut.clk)
            cycles += 1
            if not self.transfers and not self.beats and int(self.dut.idle.value):
                return cycles
            assert cycles < limit


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.5])
async def transfers(dut: Any, stall: float) -> None:
    """Random transfers: memory holds them when the master is idle."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(SEED)
    bench = Bench(dut, rng, stall)
    await bench.start()
    total = 0
    for _ in range(30):
        beats = rng.choice((1, 2, 8, rng.randint(1, 80)))
        bench.ask(8 * rng.randrange(MEMORY_BYTES // 8 - beats), beats)
        total += beats
    await bench.until_idle()
    assert bench.memory.read(0, MEMORY_BYTES) == bytes(bench.model)
    assert bench.written == total
    assert not bench.errors


@cocotb.test()
async def responses(dut: Any) -> None:
    """Each bad response is reported once, by its kind."""
    bench = Bench(dut, random.Random(SEED), 0.3)
    await bench.start()
    bench.memory.faults = {AxiResp.SLVERR: [(0, 8)], AxiResp.DECERR: [(0x400, 0x408)]}
    for address in (0, 0x200, 0x400, 0x600):
        bench.ask(address, 3)
    await bench.until_idle()
    assert bench.errors == ["slverr", "decerr"]


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.6])
async def drain(dut: Any, stall: float) -> None:
    """Draining in mid-burst finishes the burst without writing, and then it works as new."""
    rng = random.Random(SEED)
    bench = Bench(dut, rng, stall)
    await bench.start()
    for _ in range(10):
        bench.ask(0, rng.randint(1, 100))
        for _ in range(rng.randint(1, 60)):
            await RisingEdge(dut.clk)
        dut.drain.value = 1
        await bench.until_idle()
        dut.drain.value = 0
        await RisingEdge(dut.clk)
    bench.model[:] = bench.memory.read(0, MEMORY_BYTES)
    bench.ask(8 * 50, 60)
    await bench.until_idle()
    assert bench.memory.read(0, MEMORY_BYTES) == bytes(bench.model)
