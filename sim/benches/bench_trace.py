# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the trace unit under random instructions of three queues at once."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import cocotb
from cocotb.triggers import RisingEdge

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import Queue
from hwgen.arch.trace import TRACE_RECORD, WAIT_MAX
from rtl.dispatch import Gate
from rtl.layouts import INDEX_BITS
from rtl.trace import Trace
from sim.benches.memory import reset
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
CONFIG = AcceleratorConfig.from_dict(PARAMETERS["config"]) if PARAMETERS else AcceleratorConfig()
SEED = PARAMETERS.get("seed", 1)
ENTRIES = CONFIG.trace_entries
SPACING = {Queue.COMPUTE: 2, Queue.LOAD: 4, Queue.STORE: 4}
PORTS = ("started", "index", "missing", "complete")


class Bench:
    """Starts and completes instructions of all queues, and expects a record of each."""

    def __init__(self, dut: Any, rng: random.Random, first: int) -> None:
        self.dut, self.rng, self.first = dut, rng, first
        self.next_index = 0
        self.waits = {q: [0, 0, 0] for q in Queue}
        self.running: dict[Queue, deque[dict[str, int]]] = {q: deque() for q in Queue}
        self.ended = dict.fromkeys(Queue, -100)
        self.records: list[dict[str, int]] = []
        self.behind = 0
        self.together = 0
        self.cycle = rng.getrandbits(31)

    async def start(self) -> None:
        """Forget what was before."""
        self.dut.first.value = self.first
        self.dut.clear.value = 1
        await RisingEdge(self.dut.clk)
        self.dut.clear.value = 0
        for _ in range(3):
            await RisingEdge(self.dut.clk)

    async def step(self, starting: float, ending: float, waiting: float) -> None:
        """Run a cycle: chances that a queue's head starts, that its oldest ends, that it waits."""
        dut, rng = self.dut, self.rng
        dut.cycle.value = self.cycle
        done = []
        for q in Queue:
            ports = {part: getattr(dut, f"{q.name.lower()}__{part}") for part in PORTS}
            running = self.running[q]
            ends = bool(running) and self.cycle - self.ended[q] >= SPACING[q]
            ends = ends and rng.random() < ending
            starts = len(running) < Gate.RUNNING[q] and rng.random() < starting
            index = self.next_index if starts else rng.getrandbits(INDEX_BITS)
            missing = [not starts and rng.random() < waiting for _ in Queue]
            ports["started"].value, ports["index"].value = int(starts), index
            ports["complete"].value = int(ends)
            ports["missing"].value = sum(bit << i for i, bit in enumerate(missing))
            if ends:
                self.ended[q] = self.cycle
                done.append(running.popleft() | {"end": self.cycle})
            if starts:
                waits = {
                    f"wait_{g.name.lower()}": n for g, n in zip(Queue, self.waits[q], strict=True)
                }
                running.append({"start": self.cycle, "index": index, "queue": int(q), **waits})
                self.next_index += 1
                self.waits[q] = [0, 0, 0]
            for i, bit in enumerate(missing):
                self.waits[q][i] = min(self.waits[q][i] + bit, WAIT_MAX)
        self.together += len(done) == len(Queue)
        for record in done:
            if self.first <= record["index"] < self.first + ENTRIES:
                self.records.append(record)
            self.behind += record["index"] >= self.first + ENTRIES
        self.cycle += 1
        await RisingEdge(dut.clk)

    async def drain(self) -> None:
        """Let everything end, then compare all that can be read."""
        while any(self.running.values()):
            await self.step(0, 1, 0)
        await self.quiet()
        await self.compare()

    async def quiet(self) -> None:
        """Wait until the last record is in the buffer."""
        for q in Queue:
            for part in ("started", "missing", "complete"):
                getattr(self.dut, f"{q.name.lower()}__{part}").value = 0
        for _ in range(Trace.WRITE_CYCLES + 1):
            await RisingEdge(self.dut.clk)

    async def compare(self) -> None:
        """Read every record, in any order of addresses."""
        dut = self.dut
        assert int(dut.count.value) == len(self.records) <= ENTRIES
        assert int(dut.dropped.value) == self.behind
        found = []
        numbers = list(range(len(self.records)))
        for number in self.rng.sample(numbers, len(numbers)):
            dut.address.value = number
            for _ in range(Trace.LATENCY + 1):
                await RisingEdge(dut.clk)
            found.append((number, TRACE_RECORD.unpack(int(dut.record.value))))
        found.sort(key=lambda pair: pair[0])
        got = [record for _, record in found]
        for q in Queue:  # in order of completion within a queue
            mine = [record for record in got if record["queue"] == q]
            assert mine == [record for record in self.records if record["queue"] == q], q.name
        # ... and between queues, but for the cycles that a record waits for its turn
        last = 0
        for record in got:
            assert record["end"] > last - Trace.WRITE_CYCLES
            last = max(last, record["end"])


async def bench(dut: Any, rng: random.Random, first: int) -> Bench:
    """Reset, and begin a run."""
    quiet = {f"{q.name.lower()}__{part}": 0 for q in Queue for part in PORTS}
    await reset(dut, **quiet, clear=0, cycle=0, first=0, address=0)
    made = Bench(dut, rng, first)
    await made.start()
    return made


@cocotb.test()
@cocotb.parametrize(busy=[0.02, 0.3, 1.0])
async def completions_at_once(dut: Any, busy: float) -> None:
    """Everything that completes leaves its record, three in a cycle too."""
    cocotb.log.info("seed %d", SEED)
    made = await bench(dut, random.Random(f"{SEED} {busy}"), 0)
    while made.next_index < ENTRIES - len(Queue):
        await made.step(busy, busy, 0.7)
    await made.drain()
    assert made.behind == 0 and len(made.records) == made.next_index
    assert made.together or busy < 1


@cocotb.test()
@cocotb.parametrize(first=[0, 1, 17, ENTRIES + 5])
async def windows(dut: Any, first: int) -> None:
    """Only the window leaves records; what lies behind it is counted; a new run starts afresh."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(f"{SEED} {first}")
    made = await bench(dut, rng, first)
    while made.next_index < 3 * ENTRIES:
        await made.step(0.3, 0.4, 0.5)
    await made.drain()
    assert made.behind and len(made.records) == ENTRIES
    again = Bench(dut, rng, 3)
    await again.start()
    while again.next_index < 12:
        await again.step(0.3, 0.4, 0.5)
    await again.drain()
    assert not again.behind and len(again.records) == again.next_index - 3


@cocotb.test()
async def forgets_what_runs(dut: Any) -> None:
    """Cut a run short: it leaves nothing behind in the next one's records."""
    rng = random.Random(SEED)
    made = await bench(dut, rng, 0)
    for _ in range(40):
        await made.step(0.6, 0.1, 0.5)
    assert any(made.running.values())
    await made.quiet()
    again = Bench(dut, rng, 0)
    await again.start()
    for _ in range(40):
        await again.step(0.3, 0.3, 0.5)
    await again.drain()


@cocotb.test()
async def too_fast(dut: Any) -> None:
    """Completions faster than the contract are counted, and those that fit are right."""
    made = await bench(dut, random.Random(SEED), 0)
    SPACING.update(dict.fromkeys(Queue, 1))
    try:
        for _ in range(12):
            await made.step(1, 0, 0)
        while any(made.running.values()):
            await made.step(0, 1, 0)
        await made.quiet()
    finally:
        SPACING.update({Queue.COMPUTE: 2, Queue.LOAD: 4, Queue.STORE: 4})
    count, dropped = int(dut.count.value), int(dut.dropped.value)
    assert dropped and count + dropped == made.next_index
    for number in range(count):
        dut.address.value = number
        for _ in range(Trace.LATENCY + 1):
            await RisingEdge(dut.clk)
        assert TRACE_RECORD.unpack(int(dut.record.value)) in made.records


@cocotb.test()
async def long_waits(dut: Any) -> None:
    """Wait longer than the field holds: it stays at its highest value."""
    made = await bench(dut, random.Random(SEED), 0)
    made.waits[Queue.COMPUTE] = [0, WAIT_MAX, 0]
    dut.compute__missing.value = 1 << Queue.COMPUTE
    for _ in range(WAIT_MAX + 9):
        await RisingEdge(dut.clk)
    await made.step(1, 0, 0)
    await made.step(0, 1, 0)
    await made.drain()
    assert any(record["wait_compute"] == WAIT_MAX for record in made.records)
