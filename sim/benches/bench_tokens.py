# SPDX-License-Identifier: Apache-2.0
"""The simulation room: gates and token counters: programs of every kind of waiting, to the cycle.

The bench is the three engines: it takes instructions and completes them when it likes. A model of
the gates, moved by what is dispatched, says what must be offered in every cycle.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from hwgen.arch import isa
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import INSTRUCTION_BYTES, Opcode, Queue
from hwgen.arch.registers import ErrorCode
from rtl.dispatch import INSTRUCTION_BEATS, PAYLOADS, TOKEN_BITS, Gate
from rtl.streams import READ_BEAT, TRANSFER
from sim.benches.memory import reset
from sim.benches.signals import Sink, Source, pack, unpack
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
CONFIG = AcceleratorConfig.from_dict(PARAMETERS["config"]) if PARAMETERS else AcceleratorConfig()
SEED = PARAMETERS.get("seed", 1)
OPCODES = {queue: opcode for opcode, queue in isa.QUEUE_OF.items()}
NAMES = {q: q.name.lower() for q in Queue}
OLDEST_CYCLES = 2 * len(Queue) + 1  # a round of comparing that saw nothing change
Instruction = tuple[Queue, set[Queue], set[Queue]]  # whose, waits for, signals


def encode(instruction: Instruction) -> bytes:
    """Return the instruction's bytes."""
    queue, waits, signals = instruction
    values = {f"wait_{NAMES[q]}": 1 for q in waits} | {f"signal_{NAMES[q]}": 1 for q in signals}
    return isa.encode(OPCODES[queue], **values)


def random_program(rng: random.Random, count: int) -> list[Instruction]:
    """Return instructions that never wait for ever: each token was given further up."""
    tokens = {(a, b): 0 for a in Queue for b in Queue}
    program = []
    for _ in range(count):
        queue = rng.choice(list(Queue))
        waits = {q for q in Queue if tokens[q, queue] and rng.random() < 0.7}
        signals = {q for q in Queue if rng.random() < 0.4}
        for q in waits:
            tokens[q, queue] -= 1
        for q in signals:
            tokens[queue, q] += 1
        program.append((queue, waits, signals))
    return program


class Bench:
    """Serves the program, models the gates, and plays the engines."""

    def __init__(
        self, dut: Any, rng: random.Random, program: list[Instruction], stall: float, slow: float
    ) -> None:
        self.dut, self.rng, self.slow, self.program = dut, rng, slow, program
        self.data = Source(dut, "data", rng, stall)
        self.sinks = {q: Sink(dut, NAMES[q], rng, stall) for q in Queue}
        self.completes = {
            q: [
                getattr(dut, f"{NAMES[q]}_complete__{name}")
                for name in ("valid", *(f"signal_{NAMES[s]}" for s in Queue))
            ]
            for q in Queue
        }
        self.held = {q: False for q in Queue}  # this engine completes nothing
        self.tokens = {(a, b): 0 for a in Queue for b in Queue}
        self.queued: dict[Queue, deque[int]] = {q: deque() for q in Queue}
        self.running: dict[Queue, deque[int]] = {q: deque() for q in Queue}
        self.dispatched = 0
        self.completed = 0
        self.errors: list[tuple[int, int, int]] = []
        self.overflow: tuple[int, int, int] | None = None
        self.waited = {Queue.LOAD: 0, Queue.STORE: 0}
        self.same = 0
        self.oldest = (-1, -1)

    async def start(self) -> None:
        """Reset."""
        quiet = {f"{NAMES[q]}_complete__valid": 0 for q in Queue}
        quiet |= {f"{NAMES[q]}_complete__signal_{NAMES[s]}": 1 for q in Queue for s in Queue}
        length = len(self.program) + 1
        await reset(self.dut, address=0, length=length, request__ready=1, **quiet)

    def _serve(self) -> None:
        if not int(self.dut.request__valid.value):
            return
        index = unpack(TRANSFER, int(self.dut.request__payload.value))["address"]
        index //= INSTRUCTION_BYTES
        if index == len(self.program):
            data = isa.encode(Opcode.END)
        else:
            data = encode(self.program[index])
        for i in range(INSTRUCTION_BEATS):
            beat = int.from_bytes(data[8 * i : 8 * i + 8], "little")
            self.data.items.append(pack(READ_BEAT, {"data": beat, "response": 0}))

    def _free(self, q: Queue) -> bool:
        """Tell whether the head of a queue has its tokens and a place among those that run."""
        waits = self.program[self.queued[q][0]][1]
        room = len(self.running[q]) < Gate.RUNNING[q]
        return room and all(self.tokens[giver, q] for giver in waits)

    async def cycle(self) -> None:
        """Run a cycle and compare every output."""
        dut, rng = self.dut, self.rng
        completes = {}
        for q in Queue:
            ends = bool(self.running[q]) and not self.held[q] and rng.random() >= self.slow
            valid, *signals = self.completes[q]
            if ends:
                completes[q] = self.running[q][0]
                for s, port in zip(Queue, signals, strict=True):
                    port.value = int(s in self.program[completes[q]][2])
            valid.value = int(ends)  # the signals are left as they are: noise, without it
        self.data.drive()
        for sink in self.sinks.values():
            sink.drive()
        await ReadOnly()
        self._serve()
        self.data.sample()
        started = self._compare_gates()
        self._compare_rest()
        dispatched = int(dut.dispatched.value)

        # The model's cycle: what starts takes its tokens, what completes gives its own.
        overflow = None
        for q, index in completes.items():
            for s in self.program[index][2]:
                takes = s in started and q in self.program[started[s]][1]
                self.tokens[q, s] += 1
                if self.tokens[q, s] == 1 << TOKEN_BITS and not takes:
                    overflow = (ErrorCode.TOKEN_OVERFLOW, q, index)
        for q, index in started.items():
            for giver in self.program[index][1]:
                self.tokens[giver, q] -= 1
            self.running[q].append(self.queued[q].popleft())
        error = None
        if int(dut.error__valid.value):
            fields = ("error__code", "error_queue", "error__index")
            error = tuple(int(getattr(dut, name).value) for name in fields)
        assert error == overflow, (error, overflow)
        self.overflow = self.overflow or overflow
        for q in completes:
            self.running[q].popleft()
            self.completed += 1
        if dispatched:
            if self.dispatched < len(self.program):
                self.queued[self.program[self.dispatched][0]].append(self.dispatched)
            self.dispatched += 1
        await RisingEdge(dut.clk)

    def _compare_gates(self) -> dict[Queue, int]:
        """Insist that exactly what may start is offered; return what starts."""
        started = {}
        for q in Queue:
            offered = bool(self.queued[q]) and self._free(q)
            assert int(self.sinks[q].valid.value) == offered, f"{q.name} {self.queued[q]}"
            waits = self.program[self.queued[q][0]][1] if self.queued[q] else set()
            missing = sum(1 << giver for giver in waits if not self.tokens[giver, q])
            assert int(getattr(self.dut, f"{NAMES[q]}_missing").value) == missing, q.name
            taken = self.sinks[q].sample()
            if taken is not None:
                fields = unpack(PAYLOADS[q], taken)
                started[q] = self.queued[q][0]
                assert fields["index"] == started[q]
                body = encode(self.program[started[q]])[: INSTRUCTION_BYTES - isa.CRC_BYTES]
                assert fields["fields"] == int.from_bytes(body, "little")
            running = int(getattr(self.dut, f"{NAMES[q]}_running").value)
            assert running == bool(self.running[q]), q.name
            assert len(self.queued[q]) <= CONFIG.queue_depth
        return started

    def _compare_rest(self) -> None:
        """Compare `finished`, the starvation of an idle compute engine, and the oldest."""
        dut = self.dut
        busy = [i for q in Queue for i in (*self.running[q], *self.queued[q])]
        finished = self.dispatched == len(self.program) + 1 and not busy
        assert int(dut.finished.value) == finished
        compute = self.queued[Queue.COMPUTE]
        waits = self.program[compute[0]][1] if compute else set()
        for giver, name in ((Queue.LOAD, "wait_load"), (Queue.STORE, "wait_store")):
            starved = giver in waits and not self.tokens[giver, Queue.COMPUTE]
            starved = starved and not self.running[Queue.COMPUTE]
            assert int(getattr(dut, name).value) == starved, name
            self.waited[giver] += starved
        index = min(busy, default=self.dispatched)
        oldest = (self.program[index][0] if busy else len(Queue), index)
        self.same = self.same + 1 if oldest == self.oldest else 0
        self.oldest = oldest
        if self.same > OLDEST_CYCLES:
            assert (int(dut.oldest_queue.value), int(dut.oldest_index.value)) == oldest


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.5], slow=[0.5, 0.98])
async def programs(dut: Any, stall: float, slow: float) -> None:
    """Random programs run to their end, everything in its cycle."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(f"{SEED} {stall} {slow}")
    program = random_program(rng, PARAMETERS["count"])
    bench = Bench(dut, rng, program, stall, slow)
    await bench.start()
    for _ in range(400 * len(program)):
        await bench.cycle()
        if int(dut.finished.value):
            break
    assert bench.completed == len(program)
    for _ in range(2 * OLDEST_CYCLES):
        await bench.cycle()


@cocotb.test()
async def waits_for_ever(dut: Any) -> None:
    """Name the instruction that waits for a token that nobody gives, and hold back those behind."""
    rng = random.Random(SEED)
    for q in Queue:
        for giver in Queue:
            first = [(other, set[Queue](), set[Queue]()) for other in Queue]
            program = [*first, (q, {giver}, set[Queue]()), *first]
            bench = Bench(dut, rng, program, 0.0, 0.3)
            await bench.start()
            for _ in range(110):
                await bench.cycle()
            assert bench.completed == 5 and bench.oldest == (q, 3)
            starved = {g for g, cycles in bench.waited.items() if cycles}
            assert starved == ({giver} if q == Queue.COMPUTE and giver != q else set())
