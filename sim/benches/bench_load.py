# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the load engine against the interpreter, with stalls on every stream."""

from __future__ import annotations

import random
import zlib
from collections import deque
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ReadOnly, RisingEdge

from hwgen.arch import isa, resample
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.interpreter import Interpreter, MachineError, Memory
from hwgen.arch.isa import LoadTarget, Opcode
from hwgen.arch.registers import ErrorCode
from sim.benches.memory import reset
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
CONFIG = AcceleratorConfig.from_dict(PARAMETERS["config"]) if PARAMETERS else AcceleratorConfig()
SEED = PARAMETERS.get("seed", 1)
MEMORY_BYTES = 1 << 14
BASE = 3
TABLES_AT = 0x3000
BASE_ADDRESS = 0x400
FIELD_BITS = sum(field.bits for field in isa.LOAD.fields)


class Bench:
    """Feeds instructions, serves transfers from memory, and keeps what is written."""

    def __init__(self, dut: Any, rng: random.Random, stall: float) -> None:
        self.dut, self.rng, self.stall = dut, rng, stall
        self.memory = np.frombuffer(rng.randbytes(MEMORY_BYTES), dtype=np.uint8).copy()
        self.machine = Interpreter(CONFIG)
        self.instructions: deque[int] = deque()
        self.completed: list[int] = []
        self.error: tuple[int, int] | None = None
        self.bad_beat: tuple[int, int] | None = None
        self.cycle = 0

    def load(self, index: int, **fields: int) -> None:
        """Queue an instruction."""
        values = {"opcode": Opcode.LOAD, "base": BASE, **fields}
        self.instructions.append(isa.LOAD.pack(values) | index << FIELD_BITS)

    async def start(self) -> None:
        """Reset and run the streams."""
        quiet = {f"bases__{i}": 0 for i in range(8)} | {f"bases__{BASE}": BASE_ADDRESS}
        quiet |= {"instruction__valid": 0, "data__valid": 0, "request__ready": 0}
        await reset(self.dut, **quiet, scratchpad__ready=0)
        cocotb.start_soon(self._run())

    def _go(self) -> int:
        return int(self.rng.random() >= self.stall)

    async def _run(self) -> None:
        dut, offered = self.dut, False
        beats: deque[int] = deque()
        while True:
            # Drive this cycle; an offer stays until it is taken.
            dut.request__ready.value = self._go()
            dut.scratchpad__ready.value = self._go()
            shown = bool(self.instructions)
            dut.instruction__valid.value = int(shown)
            if shown:
                dut.instruction__payload.value = self.instructions[0]
            offered = bool(beats) and (offered or bool(self._go()))
            dut.data__valid.value = int(offered)
            if beats:
                dut.data__payload.value = beats[0]
            await ReadOnly()
            taken = offered and int(dut.data__ready.value)
            accepted = shown and int(dut.instruction__ready.value)
            if int(dut.request__valid.value) and int(dut.request__ready.value):
                transfer = int(dut.request__payload.value)
                address, count = transfer & 0xFFFFFFFF, transfer >> 32
                for i in range(count):
                    place = address + 8 * i
                    word = int.from_bytes(self.memory[place : place + 8].tobytes(), "little")
                    bad = self.bad_beat
                    response = bad[1] if bad and bad[0] == place else 0
                    beats.append(word | response << 64)
            self._observe()
            await RisingEdge(dut.clk)
            self.cycle += 1
            if taken:
                beats.popleft()
                offered = False
            if accepted:
                self.instructions.popleft()

    def _observe(self) -> None:
        """Apply the writes of this cycle to our copy of the memories."""
        dut, machine = self.dut, self.machine
        ti = CONFIG.ti
        if int(dut.scratchpad__valid.value) and int(dut.scratchpad__ready.value):
            bits = CONFIG.scratchpad_address_bits
            payload = int(dut.scratchpad__payload.value)
            word = (payload >> bits).to_bytes(ti, "little")
            machine.scratchpad[payload & ((1 << bits) - 1)] = np.frombuffer(word, np.int8)
        if int(dut.synapse__valid.value):
            word = int(dut.synapse__data.value).to_bytes(ti, "little")
            place = int(dut.synapse__row.value), int(dut.synapse__slot.value)
            machine.synapse[place] = np.frombuffer(word, np.int8)
        if int(dut.taps__valid.value):
            machine.taps[int(dut.taps__address.value)] = int(dut.taps__data.value)
        if int(dut.complete__valid.value):
            names = ("load", "compute", "store")
            signals = [int(getattr(dut, f"complete__signal_{n}").value) for n in names]
            self.completed.append(sum(s << i for i, s in enumerate(signals)))
        if int(dut.error__valid.value) and self.error is None:
            self.error = int(dut.error__code.value), int(dut.error__index.value)

    async def until(self, count: int, limit: int = 20_000) -> None:
        """Wait for so many completions, or an error."""
        while len(self.completed) < count and self.error is None:
            await RisingEdge(self.dut.clk)
            limit -= 1
            assert limit, f"{len(self.completed)} of {count} completed"


def random_load(rng: random.Random, memory: np.ndarray) -> dict[str, int]:
    """Return the fields of a legal LOAD, its checksum right."""
    target = rng.choice([t for t in LoadTarget if t != LoadTarget.RESAMPLER])
    f = {"target": target, "rows": 1, "offset_bytes": 8 * rng.randrange(400)}
    for name in ("load", "compute", "store"):
        f[f"signal_{name}"] = rng.randint(0, 1)
    if target == LoadTarget.SCRATCHPAD:
        f |= {
            "rows": rng.randint(1, 5),
            "row_bytes": rng.randint(1, 100),
            "pitch_bytes": 8 * rng.randint(0, 20),
            "words_per_row": rng.randint(1, 14),
            "lead_bytes": rng.choice((0, 0, 1, 7, 8, 60, 255)),
            "step_bytes": rng.choice((1, 2, 3, 5, CONFIG.ti, 3 * CONFIG.ti, 255)),
            "take_bytes": rng.randint(1, CONFIG.ti),
            "pad_value": rng.randint(-128, 127),
            "destination_pitch": rng.randint(0, 20),
        }
        last = (f["rows"] - 1) * f["destination_pitch"] + f["words_per_row"]
        f["destination"] = rng.randint(0, CONFIG.scratchpad_words - last)
    else:
        synapse = target == LoadTarget.SYNAPSE
        unit = CONFIG.synapse_row_bytes if synapse else isa.TAP_BYTES
        count = rng.randint(1, 5)
        f["row_bytes"] = count * unit
        room = CONFIG.synapse_rows if synapse else CONFIG.tap_entries
        f["destination"] = rng.randint(0, room - count)
    fetched = -(-f["row_bytes"] // 8) * 8
    start = BASE_ADDRESS + f["offset_bytes"]
    rows = [start + r * f.get("pitch_bytes", 0) for r in range(f["rows"])]
    f["check"] = rng.randint(0, 1)
    f["crc32"] = zlib.crc32(b"".join(memory[a : a + fetched].tobytes() for a in rows))
    return f


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.5])
async def loads(dut: Any, stall: float) -> None:
    """Random LOADs, many queued at once: every memory as the interpreter leaves it."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(SEED)
    bench = Bench(dut, rng, stall)
    golden = Interpreter(CONFIG)
    await bench.start()
    expected = []
    for index in range(60):
        fields = random_load(rng, bench.memory)
        bench.load(index, **fields)
        complete = {f.name: 0 for f in isa.LOAD.fields} | fields | {"base": BASE}
        registers = [0] * 8
        registers[BASE] = BASE_ADDRESS
        golden._load(Memory(bench.memory), registers, complete)
        names = ("load", "compute", "store")
        expected.append(sum(fields[f"signal_{n}"] << i for i, n in enumerate(names)))
    await bench.until(60)
    assert bench.error is None, bench.error
    assert bench.completed == expected
    assert np.array_equal(bench.machine.scratchpad, golden.scratchpad)
    assert np.array_equal(bench.machine.synapse, golden.synapse)
    mask = (1 << sum(field.bits for field in isa.TAP.fields)) - 1
    assert np.array_equal(bench.machine.taps, golden.taps & np.uint64(mask))


def resized(
    rng: random.Random, memory: np.ndarray, height: int, width: int, size: int, channels: int
) -> list[dict[str, int]]:
    """Return LOADs that resize a random box of the memory: its tables', and then strips of rows."""
    rows, columns = resample.resize_steps(height, size), resample.resize_steps(width, size)
    codes = np.frombuffer(rng.randbytes(channels * resample.CODES), np.uint8)
    place, loads = TABLES_AT, []
    for word, data in resample.table_blocks(rows, columns, codes):
        memory[place : place + len(data)] = np.frombuffer(data, np.uint8)
        loads.append(
            dict(
                target=LoadTarget.RESAMPLER,
                rows=1,
                offset_bytes=place - BASE_ADDRESS,
                row_bytes=len(data),
                destination=word,
                check=1,
                crc32=zlib.crc32(data),
            )
        )
        place += len(data)
    source_bytes = width * channels
    pitch = 8 * rng.randint(0, 20)
    offset = rng.randint(0, TABLES_AT - BASE_ADDRESS - (height - 1) * pitch - source_bytes - 8)
    step, lead = channels * rng.randint(1, 2), channels * rng.randint(0, 1)
    words = min(-(-size * channels // step) + 1, CONFIG.scratchpad_words // size)
    first = 0
    while first < size:
        last = min(size, first + rng.randint(1, size))
        begin, count, pointer = resample.steps_of_outputs(rows, first, last)
        loads.append(
            dict(
                resample=1,
                channels=channels,
                source_bytes=source_bytes,
                first_step=begin,
                row_steps=count,
                column_steps=len(columns),
                offset_bytes=offset + pointer * pitch,
                pitch_bytes=pitch,
                rows=last - first,
                row_bytes=size * channels,
                destination=first * words,
                destination_pitch=words,
                words_per_row=words,
                lead_bytes=lead,
                step_bytes=step,
                take_bytes=min(step + lead, CONFIG.ti),
                pad_value=rng.randint(-128, 127),
            )
        )
        first = last
    return loads


@cocotb.test(skip=not CONFIG.resampler_row_bytes)
@cocotb.parametrize(stall=[0.0, 0.4])
async def resampled(dut: Any, stall: float) -> None:
    """Random boxes, larger and smaller than what they become, among other LOADs."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(SEED)
    bench = Bench(dut, rng, stall)
    await bench.start()
    golden = Interpreter(CONFIG)
    registers = [0] * 8
    registers[BASE] = BASE_ADDRESS
    index = 0
    shapes = [(1, 1, 1), (1, 2, 3), (2, 1, 4), (20, 20, 20), (37, 24, 9), (6, 11, 19), (24, 24, 12)]
    shapes += [(rng.randint(1, 40), rng.randint(1, 20), rng.randint(1, 20)) for _ in range(5)]
    for number, (height, width, size) in enumerate(shapes):
        channels = 1 + number % 4
        width = min(width, (CONFIG.resampler_row_bytes - 7) // channels)
        loads = resized(rng, bench.memory, height, width, size, channels)
        loads.insert(rng.randrange(len(loads) + 1), random_load(rng, bench.memory))
        for fields in loads:
            bench.load(index, **fields)
            complete = {f.name: 0 for f in isa.LOAD.fields} | fields | {"base": BASE}
            golden._load(Memory(bench.memory), registers, complete)
            index += 1
        await bench.until(index, 100_000)  # the tables' place in memory is used again
        assert bench.error is None, (bench.error, height, width, size)
        assert np.array_equal(bench.machine.scratchpad, golden.scratchpad), (height, width, size)


WORDS = dict(rows=1, row_bytes=16, words_per_row=2, step_bytes=8, take_bytes=8)
ROW = CONFIG.synapse_row_bytes
BAD = {
    "rows": ({**WORDS, "rows": 0}, ErrorCode.BAD_FIELD),
    "row_bytes": ({**WORDS, "row_bytes": 0}, ErrorCode.BAD_FIELD),
    "words": ({**WORDS, "words_per_row": 0}, ErrorCode.BAD_FIELD),
    "step": ({**WORDS, "step_bytes": 0}, ErrorCode.BAD_FIELD),
    "take": ({**WORDS, "take_bytes": CONFIG.ti + 1}, ErrorCode.BAD_FIELD),
    "no_take": ({**WORDS, "take_bytes": 0}, ErrorCode.BAD_FIELD),
    "offset": ({**WORDS, "offset_bytes": 12}, ErrorCode.BAD_FIELD),
    "pitch": ({**WORDS, "pitch_bytes": 1}, ErrorCode.BAD_FIELD),
    "synapse_rows": (dict(target=1, rows=2, row_bytes=ROW), ErrorCode.BAD_FIELD),
    "synapse_bytes": (dict(target=1, rows=1, row_bytes=ROW + 8), ErrorCode.BAD_FIELD),
    "tap_bytes": (dict(target=2, rows=1, row_bytes=12), ErrorCode.BAD_FIELD),
    "scratchpad": ({**WORDS, "destination": CONFIG.scratchpad_words - 1}, ErrorCode.ADDRESS_RANGE),
    "far_rows": ({**WORDS, "rows": 9, "destination_pitch": 0xFFFF}, ErrorCode.ADDRESS_RANGE),
    "synapse": (
        dict(target=1, rows=1, row_bytes=2 * ROW, destination=CONFIG.synapse_rows - 1),
        ErrorCode.ADDRESS_RANGE,
    ),
    "taps": (
        dict(target=2, rows=1, row_bytes=16, destination=CONFIG.tap_entries - 1),
        ErrorCode.ADDRESS_RANGE,
    ),
    "checksum": ({**WORDS, "check": 1, "crc32": 5}, ErrorCode.DATA_CHECKSUM),
    "table_bytes": (dict(target=3, rows=1, row_bytes=12), ErrorCode.BAD_FIELD),
}
COLUMN_STEPS = resample.resize_steps(10, 8)
ROW_STEPS = [
    resample.STEP.pack({"weight": 256, **flags})
    for flags in (
        {"advance": 1, "last": 1},
        {"last": 1},
        {"advance": 1},
        {"advance": 1, "previous": 1, "last": 1},
    )
]
BOX = {
    **WORDS,
    "rows": 2,
    "resample": 1,
    "channels": 2,
    "source_bytes": 20,
    "row_steps": 2,
    "column_steps": len(COLUMN_STEPS),
    "pitch_bytes": 24,
}
BAD_BOX: dict[str, dict[str, int]] = {
    "channels": {"channels": 0},
    "many_channels": {"channels": 5},
    "source": {"source_bytes": 0},
    "long_source": {"source_bytes": CONFIG.resampler_row_bytes, "offset_bytes": 1},
    "row_steps": {"row_steps": 0},
    "many_row_steps": {"row_steps": 2, "first_step": resample.STEPS - 1},
    "column_steps": {"column_steps": 0},
    "many_column_steps": {"column_steps": resample.STEPS + 1},
    "box_check": {"check": 1},
    "box_target": {"target": LoadTarget.TAP},
    "no_last_row": {"row_steps": 1},
    "too_many_rows": {"rows": 3},
    "too_few_rows": {"row_steps": 3},
    "row_too_short": {"row_bytes": 8},
    "row_too_long": {"row_bytes": 18},
    "behind_the_source": {"source_bytes": 14},
    "before_the_source": {},
}
BAD_TABLE = {
    "table_words": (
        dict(target=3, rows=1, row_bytes=16, destination=resample.TABLE_WORDS - 1),
        ErrorCode.ADDRESS_RANGE,
    ),
    **{name: ({**BOX, **change}, ErrorCode.BAD_FIELD) for name, change in BAD_BOX.items()},
    "box_range": (
        {**BOX, "rows": 1, "first_step": 3, "row_steps": 1, "pitch_bytes": 1 << 23},
        ErrorCode.ADDRESS_RANGE,
    ),
}


@cocotb.test()
@cocotb.parametrize(name=list(BAD))
async def errors(dut: Any, name: str) -> None:
    """Stop at a wrong LOAD behind a right one: its code and index, and the right one is done."""
    bench = Bench(dut, random.Random(SEED), 0.3)
    await bench.start()
    fields, code = BAD[name]
    bench.load(7, **WORDS)
    bench.load(8, **fields)
    await bench.until(3)
    assert bench.error == (code, 8), bench.error
    assert len(bench.completed) == 1


def model_error(memory: np.ndarray, loads: list[dict[str, int]]) -> ErrorCode | None:
    """Return what stops the golden model in a program of these LOADs, or None."""
    none = {field.name: 0 for field in isa.LOAD.fields if field.name != "opcode"}
    programs = [isa.encode(Opcode.LOAD, **(none | {"base": BASE} | fields)) for fields in loads]
    program = b"".join(programs)
    program += isa.encode(Opcode.END)
    at = len(memory)
    whole = np.concatenate([memory, np.frombuffer(program, np.uint8)])
    try:
        count = len(program) // isa.INSTRUCTION_BYTES
        Interpreter(CONFIG).execute(Memory(whole), at, count, {BASE: BASE_ADDRESS})
    except MachineError as error:
        return error.code
    return None


@cocotb.test(skip=not CONFIG.resampler_row_bytes)
@cocotb.parametrize(name=[None, *BAD_TABLE])
async def box_errors(dut: Any, name: str | None) -> None:
    """Stop at a box that its tables do not fit, or that cannot be; a right one is done.

    So does the golden model.
    """
    bench = Bench(dut, random.Random(SEED), 0.3)
    loads: list[tuple[int, dict[str, int]]] = []
    columns = COLUMN_STEPS.copy()
    if name == "before_the_source":
        columns[0] |= resample.STEP.pack({"previous": 1})
    tables = (
        (np.array(ROW_STEPS, np.uint16), resample.ROW_STEPS_AT),
        (columns, resample.COLUMN_STEPS_AT),
    )
    place = TABLES_AT
    for index, (table, word) in enumerate(tables):
        size = -(-table.nbytes // 8) * 8
        bench.memory[place : place + table.nbytes] = np.frombuffer(table.tobytes(), np.uint8)
        table_load = dict(
            target=LoadTarget.RESAMPLER,
            rows=1,
            offset_bytes=place - BASE_ADDRESS,
            row_bytes=size,
            destination=word,
        )
        loads.append((index, table_load))
        place += size
    fields, code = BAD_TABLE[name] if name else (BOX, None)
    loads.append((8, fields))
    for index, each in loads:
        bench.load(index, **each)
    assert model_error(bench.memory, [each for _, each in loads]) == code
    await bench.start()
    await bench.until(3)
    assert bench.error == (name and (code, 8)), bench.error
    assert len(bench.completed) == (2 if name else 3)


@cocotb.test(skip=bool(CONFIG.resampler_row_bytes))
@cocotb.parametrize(fields=[dict(target=3, rows=1, row_bytes=8), {**BOX}])
async def no_resampler(dut: Any, fields: dict[str, int]) -> None:
    """Refuse to resample on a machine without a resampler."""
    bench = Bench(dut, random.Random(SEED), 0.3)
    await bench.start()
    bench.load(8, **fields)
    await bench.until(1)
    assert bench.error == (ErrorCode.BAD_FIELD, 8), bench.error


@cocotb.test()
@cocotb.parametrize(response=[2, 3])
async def responses(dut: Any, response: int) -> None:
    """SLVERR and DECERR on a beat of the second instruction."""
    bench = Bench(dut, random.Random(SEED), 0.3)
    bench.bad_beat = BASE_ADDRESS + 0x108, response
    await bench.start()
    bench.load(4, **WORDS)
    bench.load(5, **WORDS, offset_bytes=0x100)
    await bench.until(3)
    assert bench.error == (ErrorCode.READ_SLVERR + response - 2, 5), bench.error


@cocotb.test()
async def throughput(dut: Any) -> None:
    """Without stalls a dense row streams a beat a cycle, 3-byte steps a word a cycle."""
    bench = Bench(dut, random.Random(SEED), 0.0)
    await bench.start()
    ti, words = CONFIG.ti, 100
    dense = dict(rows=1, row_bytes=words * ti, words_per_row=words, step_bytes=ti, take_bytes=ti)
    beats = words * ti // 8
    for fields, least in (
        (dense, beats),
        ({**dense, "row_bytes": 3 * words, "step_bytes": 3}, words),
    ):
        await RisingEdge(dut.clk)
        before, done = bench.cycle, len(bench.completed)
        bench.load(0, **fields)
        await bench.until(done + 1)
        assert bench.error is None
        assert bench.cycle - before <= least + 20, (bench.cycle - before, least)
