# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the store engine: what it reads, asks for and sends, with random stalls."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from hwgen.arch import isa
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import Opcode
from hwgen.arch.registers import ErrorCode
from rtl.scratchpad import Scratchpad
from sim.benches.memory import reset
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
CONFIG = AcceleratorConfig.from_dict(PARAMETERS["config"]) if PARAMETERS else AcceleratorConfig()
SEED = PARAMETERS.get("seed", 1)
BASE, BASE_ADDRESS = 6, 0x1230
FIELD_BITS = sum(field.bits for field in isa.STORE.fields)
ADDRESS_BITS = 32


class Bench:
    """A scratchpad of random words, and a bus that writes down transfers and beats."""

    def __init__(self, dut: Any, rng: random.Random, stall: float) -> None:
        self.dut, self.rng, self.stall = dut, rng, stall
        self.words = [rng.getrandbits(8 * CONFIG.ti) for _ in range(CONFIG.scratchpad_words)]
        self.instructions: deque[int] = deque()
        self.transfers: list[tuple[int, int]] = []
        self.sent: list[int] = []
        self.completed: list[int] = []
        self.error: tuple[int, int] | None = None

    def store(self, index: int, **fields: int) -> None:
        """Queue an instruction."""
        values = {"opcode": Opcode.STORE, "base": BASE, **fields}
        self.instructions.append(isa.STORE.pack(values) | index << FIELD_BITS)

    async def start(self) -> None:
        """Reset and run."""
        quiet = {f"bases__{i}": 0 for i in range(8)} | {f"bases__{BASE}": BASE_ADDRESS}
        quiet |= {"instruction__valid": 0, "scratchpad__ready": 0, "word__valid": 0}
        await reset(self.dut, **quiet, bus_idle=1, slverr=0, decerr=0)
        cocotb.start_soon(self._run())

    async def _run(self) -> None:
        dut = self.dut
        reads: deque[int | None] = deque([None] * (Scratchpad.LATENCY - 1))
        while True:
            shown = bool(self.instructions)
            dut.instruction__valid.value = int(shown)
            if shown:
                dut.instruction__payload.value = self.instructions[0]
            for name in ("scratchpad__ready", "request__ready", "data__ready"):
                getattr(dut, name).value = int(self.rng.random() >= self.stall)
            await ReadOnly()
            accepted = shown and int(dut.instruction__ready.value)
            read = int(dut.scratchpad__valid.value) and int(dut.scratchpad__ready.value)
            reads.append(int(dut.scratchpad__payload.value) if read else None)
            if int(dut.request__valid.value) and int(dut.request__ready.value):
                payload = int(dut.request__payload.value)
                self.transfers.append((payload & 0xFFFFFFFF, payload >> ADDRESS_BITS))
            if int(dut.data__valid.value) and int(dut.data__ready.value):
                self.sent.append(int(dut.data__payload.value))
            if int(dut.complete__valid.value):
                assert int(dut.bus_idle.value)
                names = ("load", "compute", "store")
                signals = [int(getattr(dut, f"complete__signal_{n}").value) for n in names]
                self.completed.append(sum(s << i for i, s in enumerate(signals)))
            if int(dut.error__valid.value) and self.error is None:
                self.error = int(dut.error__code.value), int(dut.error__index.value)
            await RisingEdge(dut.clk)
            place = reads.popleft()
            dut.word__valid.value = int(place is not None)
            if place is not None:
                dut.word__data.value = self.words[place]
            if accepted:
                self.instructions.popleft()

    async def until(self, count: int, limit: int = 20_000) -> None:
        """Wait for so many completions, or an error."""
        while len(self.completed) < count and self.error is None:
            await RisingEdge(self.dut.clk)
            limit -= 1
            assert limit, f"{len(self.completed)} of {count} completed"


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.5])
async def stores(dut: Any, stall: float) -> None:
    """Random STOREs: transfers, beats, their order, and the signals."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(SEED)
    bench = Bench(dut, rng, stall)
    await bench.start()
    transfers, beats, signals = [], [], []
    for index in range(30):
        rows, words, pitch = rng.randint(1, 5), rng.randint(1, 14), rng.randint(0, 20)
        source = rng.randrange(CONFIG.scratchpad_words - 4 * pitch - words)
        offset, step = 8 * rng.randrange(1000), 8 * rng.randrange(1000)
        gives = [rng.randint(0, 1) for _ in range(3)]
        bench.store(
            index,
            rows=rows,
            words_per_row=words,
            source=source,
            source_pitch=pitch,
            offset_bytes=offset,
            pitch_bytes=step,
            signal_load=gives[0],
            signal_compute=gives[1],
            signal_store=gives[2],
        )
        signals.append(sum(g << i for i, g in enumerate(gives)))
        for r in range(rows):
            transfers.append((BASE_ADDRESS + offset + r * step, words * CONFIG.ti // 8))
            for word in bench.words[source + r * pitch :][:words]:
                beats += [word >> 64 * i & (1 << 64) - 1 for i in range(CONFIG.ti // 8)]
    await bench.until(30)
    assert bench.error is None, bench.error
    assert bench.transfers == transfers
    assert bench.sent == beats
    assert bench.completed == signals


ROWS = dict(rows=2, words_per_row=3, pitch_bytes=64, source_pitch=3)
BAD = {
    "rows": ({**ROWS, "rows": 0}, ErrorCode.BAD_FIELD),
    "words": ({**ROWS, "words_per_row": 0}, ErrorCode.BAD_FIELD),
    "offset": ({**ROWS, "offset_bytes": 3}, ErrorCode.BAD_FIELD),
    "pitch": ({**ROWS, "pitch_bytes": 12}, ErrorCode.BAD_FIELD),
    "source": ({**ROWS, "source": CONFIG.scratchpad_words - 2}, ErrorCode.ADDRESS_RANGE),
    "far_rows": ({**ROWS, "source_pitch": 0xFFFF}, ErrorCode.ADDRESS_RANGE),
    "memory": ({**ROWS, "offset_bytes": (1 << 32) - BASE_ADDRESS}, ErrorCode.ADDRESS_RANGE),
}


@cocotb.test()
@cocotb.parametrize(name=list(BAD))
async def errors(dut: Any, name: str) -> None:
    """Stop at a wrong STORE behind a right one."""
    bench = Bench(dut, random.Random(SEED), 0.3)
    await bench.start()
    fields, code = BAD[name]
    bench.store(1, **ROWS)
    bench.store(2, **fields)
    await bench.until(3)
    assert bench.error == (code, 2), bench.error
    assert len(bench.completed) == 1


@cocotb.test()
@cocotb.parametrize(response=["slverr", "decerr"])
async def responses(dut: Any, response: str) -> None:
    """Stop at a bad response; until the bus is idle the instruction is not complete."""
    bench = Bench(dut, random.Random(SEED), 0.0)
    await bench.start()
    dut.bus_idle.value = 0
    bench.store(3, **ROWS)
    for _ in range(60):
        await RisingEdge(dut.clk)
    assert not bench.completed and bench.error is None
    getattr(dut, response).value = 1
    await RisingEdge(dut.clk)
    getattr(dut, response).value = 0
    await bench.until(1)
    assert bench.error == (ErrorCode[f"WRITE_{response.upper()}"], 3)
