# SPDX-License-Identifier: Apache-2.0
"""The tests room: the trace of programs on the simulated RTL, and what is made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

import host
import sim
from hwgen.arch import Bundle, MemoryTiming, isa, timing
from hwgen.arch.estimate import _Machine
from hwgen.arch.isa import Opcode, Queue
from hwgen.arch.trace import Profile
from hwgen.backends import program
from hwgen.ir.graph import Graph
from hwgen.ir.quantized import QInput
from hwgen.profile_report import compute_slots, layer_rows
from tests.support.quantized_graphs import conv, every_operation, tensor_type
from tests.support.simulators import SMALL_BOARD as CONFIG


@pytest.fixture(scope="module")
def board() -> Iterator[sim.SimulatedBoard]:
    with sim.SimulatedBoard(CONFIG) as made:
        yield made


def profile(board: sim.SimulatedBoard, bundle: Bundle, rng: np.random.Generator) -> Profile:
    """Profile a random image."""
    channels, height, width = bundle.input.shape
    codes = rng.integers(-128, 128, (height, width, channels)).astype(np.int8)
    with host.Accelerator(bundle, board) as accelerator:
        return host.profile(accelerator, codes)


class Played(_Machine):
    """The estimate's machine, with the cycles in which each instruction started and ended."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle.program, bundle.config, MemoryTiming())
        self.start: dict[int, int] = {}
        self.end: dict[int, int] = {}
        self.play()

    def _load(self, now: int, index: int, f: dict[str, int]) -> None:
        self.start[index] = now
        super()._load(now, index, f)

    def _compute(self, now: int, index: int, f: dict[str, int]) -> None:
        self.start[index] = now
        super()._compute(now, index, f)

    def _store(self, now: int, index: int, f: dict[str, int]) -> None:
        self.start[index] = now
        super()._store(now, index, f)

    def _complete(self, now: int, queue: Queue, index: int) -> None:
        self.end[index] = now
        super()._complete(now, queue, index)


def streamed(rng: np.random.Generator) -> Bundle:
    """Compile a layer whose weights do not fit SB: the array waits for them."""
    source = QInput(name="x", type=tensor_type((64, 3, 3)))
    graph = Graph((source, conv(rng, "c", source, 72)), ("x",), ("c",), "quantized")
    return program.emit(graph, CONFIG)


def every(rng: np.random.Generator) -> Bundle:
    """Compile a network with every operation."""
    return program.emit(every_operation(rng, 3, 6, 5), CONFIG, name="all")


def test_records_agree_with_the_estimate(
    board: sim.SimulatedBoard, rng: np.random.Generator
) -> None:
    """Every COMPUTE starts and ends when the estimate says, up to one shift of the whole chain.

    The first LOAD, of folded pixels, is predicted a cycle late, and moves all behind it. A STORE
    that shares a bank with the array's reads is held up by them, which the estimate leaves out.
    """
    bundle = every(rng)
    found, played = profile(board, bundle, rng), Played(bundle)
    shifts = {"LOAD": set(), "COMPUTE": set(), "STORE": set()}
    for record in found.records:
        shifts[record.opcode] |= {record.end - played.end[record.index]}
        if record.opcode == "COMPUTE":
            shifts[record.opcode] |= {record.start - played.start[record.index]}
    print(shifts)
    assert len(shifts["COMPUTE"]) == 1
    assert all(abs(shift) <= 1 for name in ("LOAD", "COMPUTE") for shift in shifts[name])
    held_up = found.counters["CYCLES_WAIT_BANK"]
    assert all(-1 <= shift <= 1 + held_up for shift in shifts["STORE"])
    (shift,) = shifts["COMPUTE"]
    tail = timing.INPUT_ADDRESS_CYCLES + timing.read_after_write_cycles(CONFIG) - 1
    for record in found.records:
        if record.opcode == "COMPUTE":
            assert record.end == played.compute_end[record.index] + tail + shift


@pytest.mark.parametrize("network", [every, streamed])
def test_times_add_up_to_the_counters(
    board: sim.SimulatedBoard, rng: np.random.Generator, network
) -> None:
    bundle = network(rng)
    found = profile(board, bundle, rng)
    counters, slots = found.counters, compute_slots(found)
    assert sum(slot.computing for slot in slots) == counters["CYCLES_COMPUTING"]
    assert sum(slot.wait_load for slot in slots) == counters["CYCLES_WAIT_LOAD"] > 0
    assert sum(slot.wait_store for slot in slots) == counters["CYCLES_WAIT_STORE"]
    rows = layer_rows(bundle, found)
    assert sum(row.cycles for row in rows) == counters["CYCLES_TOTAL"]
    assert sum(row.macs for row in rows) == bundle.macs - bundle.padding_macs
    moved = sum(row.bytes for row in rows) + len(bundle.program)
    assert moved == counters["BYTES_READ"] + counters["BYTES_WRITTEN"]
    for row in rows:
        assert row.other >= 0
        assert row.cycles == row.computing + row.wait_load + row.wait_store + row.other
    assert {row.layer for row in rows} >= {layer.name for layer in bundle.layers}
    # Loads run one after the other, each waiting for the one before to be taken.
    for queue in ("LOAD", "COMPUTE", "STORE"):
        mine = [record for record in found.records if record.opcode == queue]
        assert all(
            a.start < b.start and a.end < b.end for a, b in zip(mine, mine[1:], strict=False)
        )


def test_a_compute_that_waits_for_a_store(
    board: sim.SimulatedBoard, rng: np.random.Generator
) -> None:
    """What an idle array waits for a store is told from what it waits for a load."""
    bundle = every(rng)
    size = isa.INSTRUCTION_BYTES
    blocks = [bundle.program[i : i + size] for i in range(0, len(bundle.program), size)]
    decoded = [isa.decode(block) for block in blocks]
    first, second, *_ = [i for i, (op, _) in enumerate(decoded) if op is Opcode.COMPUTE]
    for i, change in ((first, {"signal_store": 1}), (second, {"wait_store": 1})):
        fields = {k: v for k, v in decoded[i][1].items() if k != "opcode"}
        blocks[i] = isa.encode(Opcode.COMPUTE, **{**fields, **change})
    # Stores that wait for nothing, of every bank, and one between the first two COMPUTEs.
    sources = [CONFIG.scratchpad_bank_words * (i % CONFIG.scratchpad_banks) for i in range(6)]
    stores = [
        isa.encode(Opcode.STORE, base=2, rows=1, words_per_row=8, source=source, **tokens)
        for source, tokens in (
            *((source, {}) for source in sources),
            (0, {"wait_compute": 1, "signal_compute": 1}),
        )
    ]
    text = b"".join([*blocks[:second], *stores, *blocks[second:]])
    changed = dataclasses.replace(bundle, program=text, layers=())
    found = profile(board, changed, rng)
    slots = compute_slots(found)
    record = next(slot.record for slot in slots if slot.record.fields["wait_store"])
    assert record.index == second + len(stores)
    assert record.wait_store > 0 and record.layer is None
    counters = found.counters
    assert sum(slot.wait_store for slot in slots) == counters["CYCLES_WAIT_STORE"]
    assert sum(slot.wait_load for slot in slots) == counters["CYCLES_WAIT_LOAD"]
    # Some of these stores read the bank that the array reads.
    assert 0 < counters["CYCLES_WAIT_BANK"] <= counters["CYCLES_STORING"]


def test_windows_give_the_whole_program(
    board: sim.SimulatedBoard, rng: np.random.Generator
) -> None:
    """A program longer than the buffer, in three runs that are alike to the cycle."""
    bundle = every(rng)
    load = isa.encode(
        Opcode.LOAD, base=1, rows=1, row_bytes=8, words_per_row=1, step_bytes=8, take_bytes=8,
        destination=CONFIG.scratchpad_words - 1,
    )  # fmt: skip
    many = 2 * CONFIG.trace_entries
    long = dataclasses.replace(bundle, program=many * load + bundle.program, layers=())
    found = profile(board, long, rng)
    assert len(found.window_cycles) == 3 and len(set(found.window_cycles)) == 1
    assert [record.index for record in found.records] == list(range(len(found.records)))
    assert len(found.records) == len(long.program) // isa.INSTRUCTION_BYTES - 1
    loads = [record for record in found.records if record.opcode == "LOAD"][:many]
    gaps = {b.end - a.end for a, b in zip(loads, loads[1:], strict=False)}
    assert min(gaps) > 0 and max(gaps) < 100  # windows meet without a jump
    slots = compute_slots(found)
    assert sum(slot.computing for slot in slots) == found.counters["CYCLES_COMPUTING"]


def test_a_memory_that_stalls(rng: np.random.Generator) -> None:
    """Whatever the bus does, the times add up."""
    bundle = streamed(rng)
    with sim.SimulatedBoard(CONFIG, stall_percent=40, seed=int(rng.integers(1 << 30))) as board:
        found = profile(board, bundle, rng)
    slots = compute_slots(found)
    assert sum(slot.computing for slot in slots) == found.counters["CYCLES_COMPUTING"]
    assert sum(slot.wait_load for slot in slots) == found.counters["CYCLES_WAIT_LOAD"]
