# SPDX-License-Identifier: Apache-2.0
"""The simulation room: a whole bundle on the whole top: set-up, images, bus errors, recovery.

Memory and registers are cocotbext-axi's; the interpreter is the reference. What comes out is
written to the folder that the parameters name, for `sim.network_bench`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, First, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp

from hwgen.arch import isa
from hwgen.arch.bundle import (
    BASE_CONSTANTS,
    BASE_INPUT,
    BASE_OUTPUT,
    BASE_SCRATCH,
    Bundle,
)
from hwgen.arch.interpreter import GoldenRun
from hwgen.arch.isa import ISA_VERSION
from hwgen.arch.registers import BY_NAME, COUNTERS, ID_VALUE, ErrorCode
from sim.benches.memory import FaultyMemory, reset
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
REGION_ALIGNMENT = 4096
RUN_CYCLES_MAX = 5_000_000


class Board:
    """The top with a bundle in its memory, and a register master."""

    def __init__(self, dut: Any, bundle: Bundle, stall: float) -> None:
        self.dut, self.bundle = dut, bundle
        regions: dict[str | int, int] = {
            "setup": len(bundle.setup),
            "program": len(bundle.program),
            BASE_CONSTANTS: len(bundle.constants),
            BASE_INPUT: bundle.input_bytes,
            BASE_OUTPUT: bundle.output_bytes,
            BASE_SCRATCH: bundle.scratch_bytes,
        }
        self.address: dict[str | int, int] = {}
        end = REGION_ALIGNMENT  # address 0 stays unused: a base that was not set is noticed
        for key, size in regions.items():
            self.address[key] = end
            end += -(-size // REGION_ALIGNMENT) * REGION_ALIGNMENT
        self.memory: Any = FaultyMemory(dut, "m_axi", end)
        if stall:
            self.memory.stall(random.Random(PARAMETERS["seed"]), stall)
        self.registers = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), dut.clk, dut.rst)
        for key, data in (
            ("setup", bundle.setup),
            ("program", bundle.program),
            (BASE_CONSTANTS, bundle.constants),
        ):
            self.memory.write(self.address[key], data)

    async def read(self, name: str) -> int:
        """Read a register."""
        return await self.registers.read_dword(BY_NAME[name].offset)

    async def fields(self, name: str) -> dict[str, int]:
        """Read a register's fields."""
        return BY_NAME[name].layout.unpack(await self.read(name))

    async def write(self, name: str, **fields: int) -> None:
        """Write a register, by fields or by `value`."""
        word = BY_NAME[name].layout.pack(fields)
        await self.registers.write_dword(BY_NAME[name].offset, word)

    async def run(self, key: str) -> dict[str, int]:
        """Run the set-up or the image program; return STATUS when the interrupt has come."""
        program = getattr(self.bundle, key)
        await self.write("PROGRAM_ADDRESS", value=self.address[key])
        await self.write("PROGRAM_LENGTH", value=len(program) // isa.INSTRUCTION_BYTES)
        for index in (BASE_CONSTANTS, BASE_INPUT, BASE_OUTPUT, BASE_SCRATCH):
            await self.write(f"BASE{index}", value=self.address[index])
        await self.write("IRQ_ENABLE", done=1, error=1)
        await self.write("IRQ_STATUS", done=1, error=1)
        await ClockCycles(self.dut.clk, 3)  # the line is registered
        assert not int(self.dut.irq.value)
        await self.write("CONTROL", start=1)
        await First(RisingEdge(self.dut.irq), ClockCycles(self.dut.clk, RUN_CYCLES_MAX))
        assert int(self.dut.irq.value), f"no interrupt: {await self.fields('STATUS')}"
        return await self.fields("STATUS")

    async def infer(self, codes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run one image: int8 (H, W, C) to the outputs' int8 codes."""
        self.memory.write(self.address[BASE_INPUT], self.bundle.pack_input(codes).tobytes())
        blank = b"\xa5" * self.bundle.output_bytes
        self.memory.write(self.address[BASE_OUTPUT], blank)
        status = await self.run("program")
        assert status["done"] and not status["error"], (status, await self.fields("ERROR"))
        raw = self.memory.read(self.address[BASE_OUTPUT], self.bundle.output_bytes)
        return self.bundle.unpack_outputs(np.frombuffer(raw, dtype=np.uint8))

    async def counters(self) -> dict[str, int]:
        """Read every counter."""
        return {name: await self.read(name) for name in COUNTERS}


async def board(dut: Any, stall: float) -> Board:
    """Reset the top, put the bundle into its memory, check who it is."""
    result = Board(dut, Bundle.load(PARAMETERS["bundle"]), stall)
    await reset(dut)
    assert await result.read("ID") == ID_VALUE
    assert await result.read("VERSION") == ISA_VERSION
    digest = await result.read("DIGEST_LOW") | await result.read("DIGEST_HIGH") << 32
    assert digest == result.bundle.config.digest()
    return result


@cocotb.test()
async def whole_network(dut: Any) -> None:
    """Every image gives the interpreter's codes, in as many steps."""
    machine = await board(dut, PARAMETERS["stall"])
    golden = GoldenRun(machine.bundle)
    images = np.load(PARAMETERS["images"])
    if machine.bundle.setup:
        assert (await machine.run("setup"))["done"]
    results: dict[str, np.ndarray] = {}
    counters = []
    for i, codes in enumerate(images):
        outputs, wanted = await machine.infer(codes), golden.run(codes)
        counted = await machine.counters()
        for k, (got, want) in enumerate(zip(outputs, wanted, strict=True)):
            assert np.array_equal(got, want), f"image {i}, output {k}: {got} is not {want}"
            results[f"{i}_{k}"] = got
        assert counted["STEPS"] == golden.machine.steps
        assert counted["BYTES_WRITTEN"] >= 8 and counted["CYCLES_TOTAL"] > counted["STEPS"]
        counters.append(counted)
    folder = Path(PARAMETERS["results"])
    np.savez(folder / "outputs.npz", **results)
    (folder / "counters.json").write_text(json.dumps(counters))


@cocotb.test(skip=not PARAMETERS.get("faults"))
@cocotb.parametrize(response=[AxiResp.SLVERR, AxiResp.DECERR])
async def bus_errors(dut: Any, response: AxiResp) -> None:
    """Stop the run with the right code on an error answer; be well after a soft reset."""
    machine = await board(dut, 0.1)
    golden = GoldenRun(machine.bundle)
    codes = np.load(PARAMETERS["images"])[0]
    assert (await machine.run("setup"))["done"]
    for region, side in ((BASE_INPUT, "READ"), (BASE_OUTPUT, "WRITE"), ("program", "READ")):
        first = machine.address[region]
        machine.memory.faults[response] = [(first, first + 8)]
        status = await machine.run("program")
        error = await machine.fields("ERROR")
        assert status["error"] and not status["done"], status
        assert error["code"] == ErrorCode[f"{side}_{response.name}"], error
        machine.memory.faults.clear()
        await machine.write("CONTROL", soft_reset=1)
        while (await machine.fields("STATUS"))["resetting"]:
            await ClockCycles(dut.clk, 5)
        # A soft reset leaves the on-chip memories alone, and with them the constants.
        for got, want in zip(await machine.infer(codes), golden.run(codes), strict=True):
            assert np.array_equal(got, want)
