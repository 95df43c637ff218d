# SPDX-License-Identifier: Apache-2.0
"""The simulation room: instruction fetch: order, look-ahead, checks, and their cycles."""

from __future__ import annotations

import random
import zlib
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from hwgen.arch import isa
from hwgen.arch.isa import INSTRUCTION_BYTES, Opcode, Queue
from hwgen.arch.registers import ErrorCode
from rtl.dispatch import INSTRUCTION_BEATS, PAYLOADS, Fetch
from rtl.streams import READ_BEAT, TRANSFER
from sim.benches.memory import reset
from sim.benches.signals import Sink, Source, pack, unpack
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
SEED = PARAMETERS.get("seed", 1)
PROGRAM = 0x12340
END = isa.encode(Opcode.END)
SPACE = 1 << 32


def random_instruction(rng: random.Random) -> tuple[bytes, Queue, int]:
    """Return an instruction with every field random, its queue, and its fields packed."""
    opcode = rng.choice(list(isa.QUEUE_OF))
    fields = isa.LAYOUTS[opcode].fields
    values = {f.name: rng.randint(f.minimum, f.maximum) for f in fields if f.name != "opcode"}
    packed = isa.LAYOUTS[opcode].pack({"opcode": opcode, **values})
    return isa.encode(opcode, **values), isa.QUEUE_OF[opcode], packed


class Bench:
    """Serves requests from a program and keeps what is handed out."""

    def __init__(self, dut: Any, rng: random.Random, stall: float, program: bytes) -> None:
        self.dut, self.program, self.address = dut, program, PROGRAM
        self.length = len(program) // INSTRUCTION_BYTES
        self.requests, self.data = Sink(dut, "request", rng, stall), Source(dut, "data", rng, stall)
        self.queues = {q: Sink(dut, q.name.lower(), rng, stall) for q in Queue}
        self.responses: dict[int, int] = {}  # beat of the program -> response
        self.cycle = 0
        self.asked: list[tuple[int, int]] = []
        self.handed: list[tuple[Queue, int, int]] = []
        self.dispatched: list[int] = []
        self.beats: list[int] = []
        self.errors: list[tuple[int, int]] = []
        self.furthest = 0

    def _serve(self, request: int) -> None:
        transfer = unpack(TRANSFER, request)
        assert transfer["beats"] == INSTRUCTION_BEATS
        self.asked.append((self.cycle, transfer["address"]))
        first = (transfer["address"] - self.address) // 8
        for beat in range(first, first + INSTRUCTION_BEATS):
            data = int.from_bytes(self.program[8 * beat : 8 * beat + 8], "little")
            response = self.responses.get(beat, 0)
            self.data.items.append(pack(READ_BEAT, {"data": data, "response": response}))

    async def run(self, cycles: int) -> None:
        """Reset, then run so many cycles."""
        dut = self.dut
        await reset(dut, address=self.address, length=self.length)
        self.cycle = 1  # cycle 0, the first out of reset, is over
        for _ in range(cycles):
            self.data.drive()
            for sink in (self.requests, *self.queues.values()):
                sink.drive()
            await ReadOnly()
            request = self.requests.sample()
            if request is not None:
                self._serve(request)
            if self.data.sample() is not None:
                self.beats.append(self.cycle)
            taken = {q: word for q, s in self.queues.items() if (word := s.sample()) is not None}
            for q, word in taken.items():
                instruction = unpack(PAYLOADS[q], word)
                self.handed.append((q, instruction["index"], instruction["fields"]))
            if int(dut.dispatched.value):
                assert int(dut.index.value) == len(self.dispatched) and len(taken) <= 1
                self.dispatched.append(self.cycle)
            else:
                assert not taken
            if int(dut.error__valid.value):
                self.errors.append((int(dut.error__code.value), int(dut.error__index.value)))
            ahead = len(self.asked) - len(self.dispatched)
            assert ahead <= Fetch.BUFFERED_INSTRUCTIONS
            self.furthest = max(self.furthest, ahead)
            await RisingEdge(dut.clk)
            self.cycle += 1


def program_of(rng: random.Random, count: int) -> tuple[bytes, list[tuple[Queue, int, int]]]:
    """Return random instructions, and what must be handed over for them."""
    instructions = [random_instruction(rng) for _ in range(count)]
    handed = [(queue, index, fields) for index, (_, queue, fields) in enumerate(instructions)]
    return b"".join(data for data, _, _ in instructions), handed


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.5], behind=[0, 20])
async def programs(dut: Any, stall: float, behind: int) -> None:
    """Hand every instruction to its queue, in order, and read no further ahead than there is room.

    Without stalls everything happens in its cycle.
    """
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(f"{SEED} {stall} {behind}")
    count = PARAMETERS["count"]
    program, handed = program_of(rng, count)
    bench = Bench(dut, rng, stall, program + END + END * behind)
    await bench.run((count + 1) * (40 if stall else Fetch.CYCLES) + 100)
    assert bench.errors == [] and int(dut.ended.value)
    assert bench.handed == handed
    assert len(bench.dispatched) == count + 1
    assert [a for _, a in bench.asked] == [PROGRAM + 64 * i for i in range(len(bench.asked))]
    assert len(bench.asked) == min(bench.length, count + 1 + Fetch.BUFFERED_INSTRUCTIONS)
    assert bench.furthest == Fetch.BUFFERED_INSTRUCTIONS
    if not stall:
        first_requests = [cycle for cycle, _ in bench.asked[: Fetch.BUFFERED_INSTRUCTIONS]]
        assert first_requests == [Fetch.START_LATENCY + i for i in range(len(first_requests))]
        start = bench.beats[INSTRUCTION_BEATS - 1] + Fetch.DISPATCH_LATENCY
        assert bench.dispatched == [start + Fetch.CYCLES * i for i in range(count + 1)]


@cocotb.test()
@cocotb.parametrize(
    name=["bit", "opcode", "zeros", "overrun", "slverr", "decerr", "unaligned", "too_long"]
)
@cocotb.parametrize(at=[0, 5])
async def refusals(dut: Any, name: str, at: int) -> None:
    """Hand over what comes before the error, report it once with its index, and stop."""
    rng = random.Random(f"{SEED} {name} {at}")
    program, handed = program_of(rng, 8)
    place = at * INSTRUCTION_BYTES
    before, wrong = program[:place], program[place : place + INSTRUCTION_BYTES]
    behind = program[place + INSTRUCTION_BYTES :] + END
    codes = {
        "bit": ErrorCode.INSTRUCTION_CHECKSUM,
        "zeros": ErrorCode.INSTRUCTION_CHECKSUM,
        "opcode": ErrorCode.BAD_OPCODE,
        "overrun": ErrorCode.PROGRAM_OVERRUN,
        "slverr": ErrorCode.READ_SLVERR,
        "decerr": ErrorCode.READ_DECERR,
    }
    if name == "bit":
        flipped = int.from_bytes(wrong, "little") ^ 1 << rng.randrange(8 * INSTRUCTION_BYTES)
        wrong = flipped.to_bytes(INSTRUCTION_BYTES, "little")
    elif name == "zeros":
        wrong = bytes(INSTRUCTION_BYTES)
    elif name == "opcode":
        body = (rng.getrandbits(476) << 4 | rng.choice([0, *range(5, 16)])).to_bytes(60, "little")
        wrong = body + zlib.crc32(body).to_bytes(4, "little")
    bench = Bench(dut, rng, 0.3, before + wrong + behind)
    if name == "overrun":
        bench.length = at
    elif name in ("slverr", "decerr"):
        beat = at * INSTRUCTION_BEATS + rng.randrange(INSTRUCTION_BEATS)
        bench.responses[beat] = 2 if name == "slverr" else 3
    elif name == "unaligned":
        bench.address = PROGRAM + 8 * rng.randint(1, 7)
    elif name == "too_long":
        bench.length = 1 << 24
    await bench.run(500)
    stopped = at if name in codes else 0
    assert bench.errors == [(codes.get(name, ErrorCode.BAD_FIELD), stopped)], bench.errors
    assert bench.handed == handed[:stopped]
    assert len(bench.dispatched) == stopped


@cocotb.test()
@cocotb.parametrize(ends=[True, False])
async def end_of_memory(dut: Any, ends: bool) -> None:
    """Let a program end with the address space; refuse one that goes on."""
    rng = random.Random(SEED)
    program, handed = program_of(rng, 3)
    program += END if ends else random_instruction(rng)[0]
    bench = Bench(dut, rng, 0.2, program)
    bench.address, bench.length = SPACE - len(program), 40
    await bench.run(300)
    assert [a for _, a in bench.asked] == [SPACE - 256 + 64 * i for i in range(4)]
    assert bench.handed[:3] == handed
    assert bench.errors == ([] if ends else [(ErrorCode.ADDRESS_RANGE, 4)])
    assert bool(int(dut.ended.value)) == ends
