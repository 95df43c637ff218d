# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the read master: bursts, order, throughput, errors, draining."""

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
CLIENTS = ("fetch", "load")
ADDRESS_BITS, DATA_BITS = 32, 64


class Bench:
    """Two clients with a queue of transfers each, and what came back to each."""

    def __init__(self, dut: Any, rng: random.Random, stall: float) -> None:
        self.dut, self.rng, self.stall = dut, rng, stall
        self.memory = FaultyMemory(dut, "axi_", MEMORY_BYTES, sides="read")
        self.memory.write(0, rng.randbytes(MEMORY_BYTES))
        self.transfers: dict[str, deque[int]] = {c: deque() for c in CLIENTS}
        self.beats: dict[str, list[int]] = {c: [] for c in CLIENTS}
        self.bursts: list[tuple[int, int]] = []
        self.expected: dict[str, list[int]] = {c: [] for c in CLIENTS}

    async def start(self) -> None:
        """Reset and run."""
        zero = {f"{c}_request__valid": 0 for c in CLIENTS} | {
            f"{c}_data__ready": 0 for c in CLIENTS
        }
        await reset(self.dut, **zero, drain=0)
        self.memory.stall(self.rng, self.stall)
        cocotb.start_soon(self._run())

    def ask(self, client: str, address: int, beats: int) -> None:
        """Queue a transfer."""
        self.transfers[client].append(address | beats << ADDRESS_BITS)
        for i in range(beats):
            data = int.from_bytes(self.memory.read(address + 8 * i, 8), "little")
            self.expected[client].append(data)

    async def _run(self) -> None:
        dut = self.dut
        announced = None
        while True:
            shown = {}
            for c in CLIENTS:
                queue = self.transfers[c]
                shown[c] = bool(queue)
                getattr(dut, f"{c}_request__valid").value = int(shown[c])
                if queue:
                    getattr(dut, f"{c}_request__payload").value = queue[0]
                getattr(dut, f"{c}_data__ready").value = int(self.rng.random() >= self.stall)
            await ReadOnly()
            if int(dut.axi__arvalid.value):
                burst = int(dut.axi__araddr.value), int(dut.axi__arlen.value) + 1
                assert announced in (None, burst), "AR changed while it waited"
                announced = burst
                if int(dut.axi__arready.value):
                    self._check(*burst)
                    announced = None
            else:
                assert announced is None, "AR was taken back"
            taken = []
            for c in CLIENTS:
                if shown[c] and int(getattr(dut, f"{c}_request__ready").value):
                    taken.append(c)
                valid = int(getattr(dut, f"{c}_data__valid").value)
                if valid and int(getattr(dut, f"{c}_data__ready").value):
                    self.beats[c].append(int(getattr(dut, f"{c}_data__payload").value))
            await RisingEdge(dut.clk)
            for c in taken:
                self.transfers[c].popleft()

    def _check(self, address: int, beats: int) -> None:
        size = 8 * CONFIG.max_burst_beats
        assert beats <= CONFIG.max_burst_beats
        assert address // size == (address + 8 * beats - 1) // size, "boundary"
        self.bursts.append((address, beats))

    async def until_done(self, limit: int = 30_000) -> int:
        """Wait until all that was asked for came; return the cycles it took."""
        cycles = 0
        while any(len(self.beats[c]) < len(self.expected[c]) for c in CLIENTS):
            await RisingEdge(self.dut.clk)
            cycles += 1
            assert cycles < limit
        return cycles


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.5])
async def transfers(dut: Any, stall: float) -> None:
    """Random transfers of both clients: each gets its bytes in order."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(SEED)
    bench = Bench(dut, rng, stall)
    await bench.start()
    for _ in range(40):
        beats = rng.choice((1, 2, 8, 16, rng.randint(1, 90)))
        bench.ask(rng.choice(CLIENTS), 8 * rng.randrange(MEMORY_BYTES // 8 - beats), beats)
    await bench.until_done()
    assert bench.beats == bench.expected
    for _ in range(3):
        await RisingEdge(dut.clk)
    assert int(dut.idle.value)


@cocotb.test()
async def fetch_goes_first(dut: Any) -> None:
    """Let no long load keep an instruction waiting for longer than what is in flight."""
    bench = Bench(dut, random.Random(SEED), 0.0)
    await bench.start()
    bench.ask("load", 0, 2000)
    for _ in range(60):
        await RisingEdge(dut.clk)
    bench.ask("fetch", 0x4000, 8)
    while len(bench.beats["fetch"]) < 8:
        await RisingEdge(dut.clk)
    assert len(bench.beats["load"]) < 60 + (CONFIG.outstanding_reads + 4) * CONFIG.max_burst_beats
    await bench.until_done()
    assert bench.beats == bench.expected


@cocotb.test()
async def responses(dut: Any) -> None:
    """SLVERR and DECERR arrive with their beat."""
    bench = Bench(dut, random.Random(SEED), 0.3)
    await bench.start()
    bench.memory.faults = {AxiResp.SLVERR: [(16, 24)], AxiResp.DECERR: [(0x100, 0x108)]}
    bench.ask("load", 0, 4)
    bench.ask("load", 0xF8, 3)
    await bench.until_done()
    assert [beat >> DATA_BITS for beat in bench.beats["load"]] == [0, 0, 2, 0, 0, 3, 0]


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.6])
async def drain(dut: Any, stall: float) -> None:
    """Draining at any moment: owed beats are thrown away, then it works as new."""
    rng = random.Random(SEED)
    bench = Bench(dut, rng, stall)
    await bench.start()
    for _ in range(10):
        bench.ask("load", 8 * rng.randrange(100), rng.randint(1, 100))
        bench.ask("fetch", 8 * rng.randrange(100), 8)
        for _ in range(rng.randint(1, 60)):
            await RisingEdge(dut.clk)
        dut.drain.value = 1
        await RisingEdge(dut.clk)
        while not int(dut.idle.value) or any(bench.transfers.values()):
            await RisingEdge(dut.clk)
        for c in CLIENTS:
            bench.beats[c].clear()
            bench.expected[c].clear()
        dut.drain.value = 0
        await RisingEdge(dut.clk)
    bench.ask("load", 64, 40)
    bench.ask("fetch", 128, 8)
    await bench.until_done()
    assert bench.beats == bench.expected
