# SPDX-License-Identifier: Apache-2.0
"""The simulation room: programs of loads and stores on the whole top: queues, tokens, errors.

The interpreter is the reference: what it leaves in DDR, and where it stops and why.
"""

from __future__ import annotations

import random
import zlib
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp

from hwgen.arch import isa
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.interpreter import Interpreter, MachineError, Memory
from hwgen.arch.isa import INSTRUCTION_BYTES, Opcode
from hwgen.arch.registers import BY_NAME, ErrorCode
from sim.benches.memory import FaultyMemory, reset
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
CONFIG = AcceleratorConfig.from_dict(PARAMETERS["config"]) if PARAMETERS else AcceleratorConfig()
SEED = PARAMETERS.get("seed", 1)
MEMORY_BYTES = 1 << 16
PROGRAM, INPUT, OUTPUT = 0x1000, 0x4000, 0x8000
TIMEOUT_CYCLES = 20_000


class Machine:
    """The top with its memory and a register master."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.memory: Any = FaultyMemory(dut, "m_axi", MEMORY_BYTES)
        self.registers = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), dut.clk, dut.rst)

    async def read(self, name: str) -> int:
        """Read a register."""
        return await self.registers.read_dword(BY_NAME[name].offset)

    async def write(self, name: str, **fields: int) -> None:
        """Write a register, by fields or by `value`."""
        word = BY_NAME[name].layout.pack(fields)
        await self.registers.write_dword(BY_NAME[name].offset, word)

    async def status(self, name: str = "STATUS") -> dict[str, int]:
        """Read a register's fields."""
        return BY_NAME[name].layout.unpack(await self.read(name))

    async def start(
        self,
        program: bytes,
        length: int | None = None,
        watchdog: int = 3000,
        address: int = PROGRAM,
        base: int = INPUT,
    ) -> None:
        """Write the program and start it."""
        self.memory.write(PROGRAM, program)
        count = len(program) // INSTRUCTION_BYTES if length is None else length
        await self.write("PROGRAM_ADDRESS", value=address)
        await self.write("PROGRAM_LENGTH", value=count)
        await self.write("WATCHDOG", value=watchdog)
        await self.write("IRQ_ENABLE", done=1, error=1)
        await self.write("IRQ_STATUS", done=1, error=1)
        await self.write("BASE1", value=base)
        await self.write("BASE2", value=OUTPUT)
        await self.write("CONTROL", start=1)

    async def wait(self) -> dict[str, int]:
        """Wait for the interrupt; return STATUS."""
        for _ in range(TIMEOUT_CYCLES):
            await RisingEdge(self.dut.clk)
            if int(self.dut.irq.value):
                return await self.status()
        raise AssertionError(f"no interrupt; {await self.status()}")

    async def soft_reset(self) -> None:
        """Reset, and wait until it is done."""
        await self.write("CONTROL", soft_reset=1)
        while (await self.status())["resetting"]:
            await ClockCycles(self.dut.clk, 5)


async def machine(dut: Any, stall: float = 0.0, seed: int = SEED) -> Machine:
    """Reset the top and give it a memory filled with noise."""
    result = Machine(dut)
    await reset(dut)
    rng = random.Random(seed)
    result.memory.write(0, rng.randbytes(MEMORY_BYTES))
    if stall:
        result.memory.stall(rng, stall)
    return result


def random_program(rng: random.Random, memory: bytes, pairs: int) -> bytes:
    """Return loads into the scratchpad and stores of it, in lockstep by tokens, and END."""
    program = b""
    ti, words_in_all = CONFIG.ti, CONFIG.scratchpad_words
    for pair in range(pairs):
        rows, words = rng.randint(1, 4), rng.randint(1, 9)
        place = rng.randrange(words_in_all - 4 * 12)
        row_bytes = rng.randint(1, 80)
        pitch = 8 * rng.randint(0, 12)
        offset = 8 * rng.randrange(1000)
        fetched = -(-row_bytes // 8) * 8
        data = b"".join(memory[INPUT + offset + r * pitch :][:fetched] for r in range(rows))
        program += isa.encode(
            Opcode.LOAD,
            base=1,
            offset_bytes=offset,
            pitch_bytes=pitch,
            row_bytes=row_bytes,
            rows=rows,
            destination=place,
            destination_pitch=12,
            words_per_row=words,
            lead_bytes=rng.choice((0, 0, 3, 30)),
            step_bytes=rng.choice((1, 3, ti, 2 * ti)),
            take_bytes=rng.randint(1, ti),
            pad_value=rng.randint(-128, 127),
            check=1,
            crc32=zlib.crc32(data),
            signal_store=1,
            wait_store=int(pair > 0),
        )
        program += isa.encode(
            Opcode.STORE,
            base=2,
            offset_bytes=8 * rng.randrange(1000),
            pitch_bytes=8 * rng.randint(words, 20),
            rows=rows,
            words_per_row=words,
            source=place,
            source_pitch=12,
            wait_load=1,
            signal_load=1,
        )
    return program + isa.encode(Opcode.END)


def reference(memory: bytes, program: bytes, address: int = PROGRAM, base: int = INPUT) -> bytes:
    """Return what the interpreter leaves in memory."""
    data = np.frombuffer(memory, dtype=np.uint8).copy()
    data[PROGRAM : PROGRAM + len(program)] = np.frombuffer(program, dtype=np.uint8)
    count = len(program) // INSTRUCTION_BYTES
    Interpreter(CONFIG).execute(Memory(data), address, count, {1: base, 2: OUTPUT})
    return data.tobytes()


async def run_and_compare(m: Machine, rng: random.Random, pairs: int) -> None:
    """Run a random program and compare all of DDR and the counters that must be exact."""
    before = m.memory.read(0, MEMORY_BYTES)
    program = random_program(rng, before, pairs)
    expected = reference(before, program)
    await m.start(program)
    status = await m.wait()
    code = await m.status("ERROR")
    assert status["done"] and not status["error"], (status, code, await m.read("ERROR_INSTRUCTION"))
    assert m.memory.read(0, MEMORY_BYTES) == expected
    assert await m.read("INSTRUCTIONS") == 2 * pairs + 1
    stored = sum(
        f["rows"] * f["words_per_row"] * CONFIG.ti
        for op, f in map(isa.decode, _split(program))
        if op == Opcode.STORE
    )
    fetched = len(program) + sum(
        f["rows"] * -(-f["row_bytes"] // 8) * 8
        for op, f in map(isa.decode, _split(program))
        if op == Opcode.LOAD
    )
    assert await m.read("BYTES_WRITTEN") == stored
    assert await m.read("BYTES_READ") == fetched


def _split(program: bytes) -> list[bytes]:
    return [program[i : i + INSTRUCTION_BYTES] for i in range(0, len(program), INSTRUCTION_BYTES)]


async def expect_error(
    m: Machine, program: bytes, code: ErrorCode, queue: int, instruction: int, **start: int
) -> None:
    """Run a program that must stop with this error; then reset and show that the machine works."""
    await m.start(program, **start)
    status = await m.wait()
    assert status["error"] and not status["done"] and not status["running"], status
    error = await m.status("ERROR")
    found = (ErrorCode(error["code"]), error["queue"], await m.read("ERROR_INSTRUCTION"))
    assert found == (code, queue, instruction), found
    m.memory.faults = {}
    await m.soft_reset()
    assert await m.read("STATUS") == 1
    assert await m.read("ERROR") == 0
    await run_and_compare(m, random.Random(SEED), 2)


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.5])
async def programs(dut: Any, stall: float) -> None:
    """Random programs give the interpreter's bytes, with and without stalls."""
    cocotb.log.info("seed %d", SEED)
    m = await machine(dut, stall)
    for repeat in range(3):
        await run_and_compare(m, random.Random(SEED + repeat), 6)


LOAD = dict(base=1, row_bytes=64, rows=1, words_per_row=8, step_bytes=8, take_bytes=8)
STORE = dict(base=2, rows=1, words_per_row=2)
END = isa.encode(Opcode.END)
GOOD = isa.encode(Opcode.LOAD, **LOAD)


def _damaged(program: bytes, byte: int) -> bytes:
    return program[:byte] + bytes([program[byte] ^ 0x10]) + program[byte + 1 :]


def _opcode(number: int) -> bytes:
    body = isa.END.pack({"opcode": number}).to_bytes(60, "little")
    return body + zlib.crc32(body).to_bytes(4, "little")


WRONG = {
    "checksum": (GOOD + _damaged(END, 20) + END, ErrorCode.INSTRUCTION_CHECKSUM, 3, 1),
    "opcode": (GOOD + GOOD + _opcode(9) + END, ErrorCode.BAD_OPCODE, 3, 2),
    "no_end": (GOOD + GOOD, ErrorCode.PROGRAM_OVERRUN, 3, 2),
    "empty": (b"", ErrorCode.PROGRAM_OVERRUN, 3, 0),
    "data": (
        GOOD + isa.encode(Opcode.LOAD, **LOAD, check=1, crc32=1) + END,
        ErrorCode.DATA_CHECKSUM,
        0,
        1,
    ),
    "zero_rows": (isa.encode(Opcode.LOAD, **{**LOAD, "rows": 0}) + END, ErrorCode.BAD_FIELD, 0, 0),
    "unaligned": (
        isa.encode(Opcode.LOAD, **LOAD, offset_bytes=4) + END,
        ErrorCode.BAD_FIELD,
        0,
        0,
    ),
    "unaligned_base": (GOOD + END, ErrorCode.BAD_FIELD, 0, 0),
    "unaligned_program": (GOOD + END, ErrorCode.BAD_FIELD, 3, 0),
    "past_scratchpad": (
        isa.encode(Opcode.LOAD, **LOAD, destination=CONFIG.scratchpad_words - 3) + END,
        ErrorCode.ADDRESS_RANGE,
        0,
        0,
    ),
    "past_taps": (
        isa.encode(Opcode.LOAD, **LOAD, target=2, destination=CONFIG.tap_entries - 3) + END,
        ErrorCode.ADDRESS_RANGE,
        0,
        0,
    ),
    "past_memory": (
        isa.encode(Opcode.LOAD, **LOAD, offset_bytes=(1 << 32) - INPUT - 32) + END,
        ErrorCode.ADDRESS_RANGE,
        0,
        0,
    ),
    "store_source": (
        GOOD + isa.encode(Opcode.STORE, **STORE, source=CONFIG.scratchpad_words - 1) + END,
        ErrorCode.ADDRESS_RANGE,
        2,
        1,
    ),
    "store_words": (
        isa.encode(Opcode.STORE, **{**STORE, "words_per_row": 0}) + END,
        ErrorCode.BAD_FIELD,
        2,
        0,
    ),
    "no_token": (
        GOOD + isa.encode(Opcode.STORE, **STORE, wait_compute=1) + END,
        ErrorCode.NO_PROGRESS,
        2,
        1,
    ),
}
#: Where a program starts, or the base of its loads, when that is what is wrong with it.
STARTS = {"unaligned_base": {"base": INPUT + 4}, "unaligned_program": {"address": PROGRAM + 8}}


@cocotb.test()
@cocotb.parametrize(name=list(WRONG))
async def wrong_program(dut: Any, name: str) -> None:
    """Stop a wrong program with its error; the machine works after a soft reset."""
    m = await machine(dut, 0.2)
    program, code, queue, instruction = WRONG[name]
    watchdog = 200 if code == ErrorCode.NO_PROGRESS else 3000
    start = STARTS.get(name, {})
    _interpreter_agrees(m, program, code, queue, instruction, **start)
    await expect_error(m, program, code, queue, instruction, watchdog=watchdog, **start)


def _interpreter_agrees(
    m: Machine, program: bytes, code: ErrorCode, queue: int, instruction: int, **start: int
) -> None:
    try:
        reference(m.memory.read(0, MEMORY_BYTES), program, **start)
    except MachineError as error:
        found = (error.code, int(error.queue), error.instruction)
        assert found == (code, queue, instruction), found
    else:
        raise AssertionError("the interpreter accepts the program")


@cocotb.test()
async def tokens_overflow(dut: Any) -> None:
    """Find the 256th token that nobody takes to be an error of the one who gives it."""
    m = await machine(dut)
    load = isa.encode(Opcode.LOAD, **{**LOAD, "row_bytes": 8, "words_per_row": 1}, signal_compute=1)
    await expect_error(m, load * 256 + END, ErrorCode.TOKEN_OVERFLOW, 0, 255)


@cocotb.test()
@cocotb.parametrize(response=[AxiResp.SLVERR, AxiResp.DECERR])
async def bus_errors(dut: Any, response: AxiResp) -> None:
    """SLVERR and DECERR of instruction fetch, load and store."""
    m = await machine(dut, 0.3)
    name = response.name
    read, write = ErrorCode[f"READ_{name}"], ErrorCode[f"WRITE_{name}"]
    store = isa.encode(Opcode.STORE, **STORE, wait_load=1)
    program = isa.encode(Opcode.LOAD, **LOAD, signal_store=1) + store + END
    for where, code, queue, instruction in (
        (PROGRAM + 2 * INSTRUCTION_BYTES, read, 3, 2),
        (INPUT + 32, read, 0, 0),
        (OUTPUT + 8, write, 2, 1),
    ):
        if queue == 3:  # nothing but the fetch may fail first
            m.memory.faults = {response: [(where, where + INSTRUCTION_BYTES)]}
            await expect_error(m, GOOD + GOOD + END, code, queue, instruction)
        else:
            m.memory.faults = {response: [(where, where + 8)]}
            await expect_error(m, program, code, queue, instruction)


@cocotb.test()
async def soft_resets(dut: Any) -> None:
    """Soft-reset at any moment of a run: the bus stays legal, the next run is right."""
    m = await machine(dut, 0.4)
    rng = random.Random(SEED)
    for _ in range(8):
        before = m.memory.read(0, MEMORY_BYTES)
        await m.start(random_program(rng, before, 4))
        await ClockCycles(dut.clk, rng.randint(1, 250))
        await m.soft_reset()
        assert await m.read("STATUS") == 1
        assert await m.read("CYCLES_TOTAL") == 0
    await run_and_compare(m, rng, 4)


@cocotb.test()
async def dead_bus(dut: Any) -> None:
    """Take a memory that never answers for NO_PROGRESS; when it answers, a reset recovers."""
    m = await machine(dut)
    m.memory.read_if.r_channel.pause = True
    await m.start(GOOD + END, watchdog=300)
    status = await m.wait()
    assert status["error"] and not status["idle"], status
    assert (await m.status("ERROR"))["code"] == ErrorCode.NO_PROGRESS
    await m.write("CONTROL", start=1)
    assert not (await m.status())["running"]
    m.memory.read_if.r_channel.pause = False
    await m.soft_reset()
    await run_and_compare(m, random.Random(SEED), 2)


@cocotb.test()
async def excess_fetch(dut: Any) -> None:
    """Instructions behind END are fetched ahead and thrown away; DONE waits for them."""
    m = await machine(dut)
    await m.start(GOOD + END + GOOD * 10)
    assert (await m.wait())["done"]
    assert await m.read("INSTRUCTIONS") == 2
    await run_and_compare(m, random.Random(SEED), 2)
