# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the compute engine against the interpreter, word for word and in time."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge

from hwgen.arch import isa
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import Mode
from hwgen.arch.registers import ErrorCode
from sim.engine import EngineWork, compute_cycles, random_work
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
CONFIG = AcceleratorConfig.from_dict(PARAMETERS["config"]) if PARAMETERS else AcceleratorConfig()
SEEDS = PARAMETERS.get("seeds", [1])
COUNT = PARAMETERS.get("count", 12)


class Driver:
    """Ports of `EngineWithMemories` as coroutines; counts cycles, steps, completions, errors."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.cycle = 0
        self.accepted: list[int] = []
        self.completed: list[tuple[int, int]] = []
        self.errors: list[tuple[int, int]] = []
        self.steps = 0

    async def start(self) -> None:
        """Start the clock and the watch, and reset."""
        dut = self.dut
        for name in ("instruction__valid", "clear", "load__valid", "store__valid"):
            getattr(dut, name).value = 0
        dut.synapse_write__valid.value = 0
        dut.tap_write__valid.value = 0
        dut.rst.value = 1
        Clock(dut.clk, 10, "ns").start()
        for _ in range(3):
            await RisingEdge(dut.clk)
        dut.rst.value = 0
        await RisingEdge(dut.clk)
        cocotb.start_soon(self._watch())

    async def _watch(self) -> None:
        dut = self.dut
        while True:
            await RisingEdge(dut.clk)
            self.cycle += 1
            await ReadOnly()
            if int(dut.instruction__valid.value) and int(dut.instruction__ready.value):
                self.accepted.append(self.cycle)
            if int(dut.complete__valid.value):
                tokens = (
                    int(dut.complete__signal_load.value)
                    + 2 * int(dut.complete__signal_compute.value)
                    + 4 * int(dut.complete__signal_store.value)
                )
                self.completed.append((self.cycle, tokens))
            if int(dut.error__valid.value):
                self.errors.append((int(dut.error__code.value), int(dut.error__index.value)))
            self.steps += int(dut.step.value)

    async def fill(self, work: EngineWork) -> None:
        """Write the three memories."""
        dut = self.dut
        for address, word in enumerate(work.scratchpad):
            dut.load__valid.value = 1
            value = int.from_bytes(word.tobytes(), "little") << CONFIG.scratchpad_address_bits
            dut.load__payload.value = value | address
            await self._accept(dut.load__ready)
        dut.load__valid.value = 0
        for row, slots in enumerate(work.synapse):
            for n, slot in enumerate(slots):
                dut.synapse_write__valid.value = 1
                dut.synapse_write__row.value = row
                dut.synapse_write__slot.value = n
                dut.synapse_write__data.value = int.from_bytes(slot.tobytes(), "little")
                await RisingEdge(dut.clk)
        dut.synapse_write__valid.value = 0
        for address, tap in enumerate(work.taps):
            dut.tap_write__valid.value = 1
            dut.tap_write__address.value = address
            dut.tap_write__data.value = int(tap)
            await RisingEdge(dut.clk)
        dut.tap_write__valid.value = 0

    async def _accept(self, ready: Any) -> None:
        """Wait for the edge at which `ready` is high."""
        while True:
            await ReadOnly()
            taken = int(ready.value)
            await RisingEdge(self.dut.clk)
            if taken:
                return

    async def run(self, computes: list[dict[str, int]], idle: random.Random | None = None) -> None:
        """Offer instructions back to back, or with random gaps."""
        dut = self.dut
        for index, fields in enumerate(computes):
            while idle is not None and idle.random() < 0.7:
                await RisingEdge(dut.clk)
            width = len(dut.instruction__payload)
            body = isa.COMPUTE.pack({"opcode": isa.Opcode.COMPUTE, **fields})
            dut.instruction__payload.value = (index << (width - 24)) | body
            dut.instruction__valid.value = 1
            await self._accept(dut.instruction__ready)
            dut.instruction__valid.value = 0

    async def until_complete(self, count: int, limit: int = 20000) -> None:
        """Wait for `count` completions or an error."""
        for _ in range(limit):
            await RisingEdge(self.dut.clk)
            if len(self.completed) >= count or self.errors:
                return
        raise AssertionError(f"{len(self.completed)} of {count} instructions completed")

    async def dump(self) -> np.ndarray:
        """Read the scratchpad through the store port."""
        dut = self.dut
        words: list[bytes] = []

        async def collect() -> None:
            while len(words) < CONFIG.scratchpad_words:
                await RisingEdge(dut.clk)
                await ReadOnly()
                if int(dut.store_data__valid.value):
                    value = int(dut.store_data__data.value)
                    words.append(value.to_bytes(CONFIG.ti, "little"))

        task = cocotb.start_soon(collect())
        for address in range(CONFIG.scratchpad_words):
            dut.store__valid.value = 1
            dut.store__payload.value = address
            await self._accept(dut.store__ready)
        dut.store__valid.value = 0
        await task
        await RisingEdge(dut.clk)
        return np.frombuffer(b"".join(words), dtype=np.int8).reshape(-1, CONFIG.ti)

    async def clear(self) -> None:
        """Soft reset."""
        self.dut.clear.value = 1
        await RisingEdge(self.dut.clk)
        self.dut.clear.value = 0
        await RisingEdge(self.dut.clk)
        self.accepted, self.completed, self.errors, self.steps = [], [], [], 0


def report(got: np.ndarray, work: EngineWork) -> None:
    """Compare with the interpreter; name the first instruction that may have written wrongly."""
    if np.array_equal(got, work.expected):
        return
    wrong = np.argwhere(got != work.expected)
    raise AssertionError(
        f"{len(wrong)} bytes differ, first at (word, lane) {wrong[0].tolist()}: "
        f"{got[tuple(wrong[0])]} instead of {work.expected[tuple(wrong[0])]}; "
        f"computes {work.computes}"
    )


async def check(driver: Driver, work: EngineWork, idle: random.Random | None = None) -> None:
    """Run and compare contents, steps, tokens and, without idle cycles, time."""
    await driver.clear()
    await driver.fill(work)
    await driver.run(work.computes, idle)
    await driver.until_complete(len(work.computes))
    for _ in range(3):
        await RisingEdge(driver.dut.clk)
    assert not driver.errors, driver.errors
    assert int(driver.dut.busy.value) == 0
    tokens = [
        sum(f.get(f"signal_{q}", 0) << i for i, q in enumerate(("load", "compute", "store")))
        for f in work.computes
    ]
    assert [t for _, t in driver.completed] == tokens
    steps = sum(
        f["tap_count"] * f["output_height"] * -(-f["output_width"] // CONFIG.tp)
        for f in work.computes
    )
    assert driver.steps == steps
    if idle is None:
        taken = driver.completed[-1][0] - driver.accepted[0]
        assert taken == compute_cycles(CONFIG, work.computes)
    report(await driver.dump(), work)


@cocotb.test()
@cocotb.parametrize(mode=list(Mode), dependent=[False, True])
async def each_mode(dut: Any, mode: Mode, dependent: bool) -> None:
    """Random instructions of one mode, back to back."""
    driver = Driver(dut)
    await driver.start()
    for seed in SEEDS:
        await check(driver, random_work(CONFIG, seed, COUNT, (mode,), dependent))


@cocotb.test()
@cocotb.parametrize(stalled=[False, True])
async def mixed(dut: Any, stalled: bool) -> None:
    """Random instructions of all modes with random tokens, back to back and with gaps."""
    driver = Driver(dut)
    await driver.start()
    for seed in SEEDS:
        work = random_work(CONFIG, 1000 + seed, COUNT)
        tokens = random.Random(seed)
        for fields in work.computes:
            for queue in ("load", "compute", "store"):
                fields[f"signal_{queue}"] = tokens.randint(0, 1)
        await check(driver, work, random.Random(seed) if stalled else None)


@cocotb.test()
async def errors(dut: Any) -> None:
    """Each refusal: its code, the instruction's index, once; and good work after the clear."""
    driver = Driver(dut)
    await driver.start()
    bank, words = CONFIG.scratchpad_bank_words, CONFIG.scratchpad_words
    plain = {
        "tap_count": 3, "start_delay": 0, "input_pixel_step": 1, "input_row_step": 3,
        "input_height": 4, "input_width": 4, "stride_y": 1, "stride_x": 1, "output_address": bank,
        "output_pixel_step": 1, "output_row_step": 3, "output_height": 3, "output_width": 3,
        "hi": 127, "lo": -128,
    }  # fmt: skip
    work = random_work(CONFIG, 5, 4)
    work.taps[:3] = 0
    # Neighbouring pixels in one slice can't be read together; with one pixel a step there are none.
    clash = {"input_pixel_step": CONFIG.scratchpad_slices}
    for change, code in (
        *([(clash, ErrorCode.BANK_CONFLICT)] if CONFIG.tp > 1 else []),
        ({"tap_count": 0}, ErrorCode.BAD_FIELD),
        ({"output_height": 0}, ErrorCode.BAD_FIELD),
        ({"output_width": 0}, ErrorCode.BAD_FIELD),
        ({"lane_block": CONFIG.ti // CONFIG.tn}, ErrorCode.BAD_FIELD),
        ({"tap_address": CONFIG.tap_entries - 2}, ErrorCode.ADDRESS_RANGE),
        ({"synapse_address": CONFIG.synapse_rows}, ErrorCode.ADDRESS_RANGE),
        (
            {"weight_address": CONFIG.synapse_rows - 2},
            ErrorCode.ADDRESS_RANGE,
        ),
        ({"input_start": words - 5}, ErrorCode.ADDRESS_RANGE),
        ({"output_address": words - 8}, ErrorCode.ADDRESS_RANGE),
        ({"output_address": 0xFFFF}, ErrorCode.ADDRESS_RANGE),
        ({"output_row_step": 0xFFFF}, ErrorCode.ADDRESS_RANGE),
        ({"residual": 1, "residual_address": words}, ErrorCode.ADDRESS_RANGE),
        (
            {"residual": 1, "residual_address": bank - 9, "tap_count": 1, "output_height": 30,
             "output_width": 30, "output_row_step": 0, "output_pixel_step": 0,
             "input_height": 30, "input_width": 30, "input_row_step": 1},
            ErrorCode.BANK_CONFLICT,
        ),
    ):  # fmt: skip
        await driver.clear()
        await driver.fill(work)
        await driver.run([plain, {**plain, **change}])
        for _ in range(200):
            await RisingEdge(dut.clk)
        assert driver.errors == [(code, 1)], (change, driver.errors)
        steps = driver.steps
        for _ in range(40):
            await RisingEdge(dut.clk)
        assert driver.steps == steps, change
    await check(driver, random_work(CONFIG, 77, COUNT))
