# SPDX-License-Identifier: Apache-2.0
"""The simulation room: CYCLES_TOTAL of loads and stores is what the blocks' constants add up to."""

from __future__ import annotations

from typing import Any

import cocotb
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster

from hwgen.arch import isa
from hwgen.arch.isa import Opcode
from rtl.control import Control
from rtl.dispatch import INSTRUCTION_BEATS, Fetch, Gate
from rtl.load import LoadEngine
from rtl.load_issuer import LoadIssuer
from rtl.read_master import ReadMaster
from rtl.store import StoreEngine
from rtl.streams import StreamFifo
from sim.benches.bench_dispatch import CONFIG, MEMORY_BYTES, Machine
from sim.benches.memory import LatencyMemory, reset

READ = ReadMaster.REQUEST_LATENCY
BEATS_A_WORD = CONFIG.ti // 8


def dispatched(index: int, latency: int) -> int:
    """Cycle in which instruction `index` is dispatched; the first cycle of the run is 0."""
    first = Fetch.START_LATENCY + READ + latency + INSTRUCTION_BEATS - 1
    first += ReadMaster.RESPONSE_LATENCY + Fetch.DISPATCH_LATENCY
    return first + index * Fetch.CYCLES


def accepted(dispatch: int) -> int:
    """Cycle in which an idle engine accepts what was dispatched."""
    return dispatch + StreamFifo.LATENCY


def row_cycles(beats: int, words: int, lead: int, step: int, take: int, row_bytes: int) -> int:
    """Cycles from the start of a row to the start of the next, all its beats being there."""
    emitted = 0
    for j in range(words):
        last_byte = min(j * step + take - lead, row_bytes)
        needed = max(0, -(-last_byte // 8))
        emitted = max(emitted, needed) + 1
    return max(emitted, beats) + 1


def load_complete(first_beat: int, rows: int = 1, **row: int) -> int:
    """Cycle of completion of a load whose first beat is taken in `first_beat`."""
    period = row_cycles(**row)
    last_emit = first_beat - 1 + rows * period - 1
    return last_emit + LoadEngine.EMIT_TO_COMPLETE


def first_beat(accept: int, latency: int) -> int:
    """Cycle in which the first beat of a load is taken."""
    return accept + LoadIssuer.REQUEST_LATENCY + READ + latency + ReadMaster.RESPONSE_LATENCY


def dense(words: int) -> tuple[dict[str, int], dict[str, int]]:
    """Fields of a dense load, and the same for `row_cycles`."""
    ti = CONFIG.ti
    fields = dict(row_bytes=words * ti, words_per_row=words, step_bytes=ti, take_bytes=ti, rows=1)
    row = dict(row_bytes=words * ti, words=words, step=ti, take=ti, lead=0)
    return fields, row | {"beats": words * BEATS_A_WORD}


async def cycles(dut: Any, latency: int, *program: bytes) -> int:
    """Run a program and END behind it; return CYCLES_TOTAL."""
    machine = Machine.__new__(Machine)
    machine.dut, memory = dut, LatencyMemory(dut, MEMORY_BYTES, latency)
    machine.memory = memory
    machine.registers = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), dut.clk, dut.rst)
    await reset(dut)
    cocotb.start_soon(memory.run())
    await machine.start(b"".join(program) + isa.encode(Opcode.END))
    assert (await machine.wait())["done"]
    return await machine.read("CYCLES_TOTAL")


@cocotb.test()
@cocotb.parametrize(latency=[1, 30])
async def empty(dut: Any, latency: int) -> None:
    """END alone."""
    assert await cycles(dut, latency) == dispatched(0, latency) + Control.END_CYCLES


@cocotb.test()
@cocotb.parametrize(latency=[1, 30])
@cocotb.parametrize(words=[8, 60])
async def one_load(dut: Any, latency: int, words: int) -> None:
    """Time a dense load."""
    fields, row = dense(words)
    found = await cycles(dut, latency, isa.encode(Opcode.LOAD, base=1, **fields))
    done = load_complete(first_beat(accepted(dispatched(0, latency)), latency), **row)
    # With a short latency the END's beats come in between, and cost as many cycles.
    between = 0 if latency == 30 else INSTRUCTION_BEATS
    assert done <= found - Control.END_CYCLES <= done + between, (found, done)


@cocotb.test()
async def rows_of_pixels(dut: Any) -> None:
    """Rows that are bound by their words: 3-byte pixels with their neighbours."""
    latency, rows = 30, 4
    fields = dict(row_bytes=96, words_per_row=32, step_bytes=3, take_bytes=8, lead_bytes=3)
    row = dict(row_bytes=96, words=32, step=3, take=8, lead=3, beats=12)
    program = isa.encode(Opcode.LOAD, base=1, pitch_bytes=96, rows=rows, **fields)
    start = first_beat(accepted(dispatched(0, latency)), latency)
    done = load_complete(start, rows, **row)
    assert await cycles(dut, latency, program) == done + Control.END_CYCLES


@cocotb.test()
async def two_loads(dut: Any) -> None:
    """Time two loads: the second's data are there when the first has been unpacked."""
    latency = 30
    fields, row = dense(40)
    program = isa.encode(Opcode.LOAD, base=1, **fields)
    start = first_beat(accepted(dispatched(0, latency)), latency)
    done = load_complete(start + row_cycles(**row) + LoadEngine.RESTART_CYCLES, **row)
    assert await cycles(dut, latency, program, program) == done + Control.END_CYCLES


@cocotb.test()
@cocotb.parametrize(words=[1, 32])
@cocotb.parametrize(latency=[1, 30])
async def one_store(dut: Any, words: int, latency: int) -> None:
    """Time a store."""
    program = isa.encode(Opcode.STORE, base=2, rows=1, words_per_row=words)
    start = accepted(dispatched(0, latency)) + StoreEngine.FIRST_BEAT_LATENCY
    done = start + words * BEATS_A_WORD - 1 + latency + StoreEngine.COMPLETE_LATENCY
    done = max(done, dispatched(1, latency))
    assert await cycles(dut, latency, program) == done + Control.END_CYCLES


@cocotb.test()
async def hand_over(dut: Any) -> None:
    """Time a store that waits for a load's token."""
    latency = 30
    fields, row = dense(8)
    load = isa.encode(Opcode.LOAD, base=1, signal_store=1, **fields)
    store = isa.encode(Opcode.STORE, base=2, rows=1, words_per_row=4, wait_load=1)
    done = load_complete(first_beat(accepted(dispatched(0, latency)), latency), **row)
    start = done + Gate.TOKEN_LATENCY + StoreEngine.FIRST_BEAT_LATENCY
    done = start + 4 * BEATS_A_WORD - 1 + latency + StoreEngine.COMPLETE_LATENCY
    assert await cycles(dut, latency, load, store) == done + Control.END_CYCLES
    await RisingEdge(dut.clk)
