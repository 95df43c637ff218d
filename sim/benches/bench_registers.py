# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the register file against the register table, in random order and stalls."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import ISA_VERSION
from hwgen.arch.registers import ADDRESS_SPACE_BYTES, BY_NAME, REGISTERS, Access
from sim.benches.memory import pauses, reset
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
CONFIG = AcceleratorConfig.from_dict(PARAMETERS["config"]) if PARAMETERS else AcceleratorConfig()
SEED = PARAMETERS.get("seed", 1)
FIXED = {
    "ID": BY_NAME["ID"].reset,
    "VERSION": ISA_VERSION,
    "DIGEST_LOW": CONFIG.digest() & 0xFFFFFFFF,
    "DIGEST_HIGH": CONFIG.digest() >> 32,
}


def _mask(register: Any) -> int:
    return (1 << sum(field.bits for field in register.layout.fields)) - 1


async def start(dut: Any, stall: float) -> AxiLiteMaster:
    """Reset with every status input zero, and return a master that stalls."""
    master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "axi_"), dut.clk, dut.rst)
    inputs = {"irq_status_set": 0}
    for register in REGISTERS:
        if register.access is Access.READ and register.name not in FIXED:
            inputs[register.name.lower()] = 0
    await reset(dut, **inputs)
    rng = random.Random(SEED)
    write, read = master.write_if, master.read_if
    for channel in (
        write.aw_channel,
        write.w_channel,
        write.b_channel,
        read.ar_channel,
        read.r_channel,
    ):
        channel.set_pause_generator(pauses(rng.randrange(1 << 30), stall))
    return master


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.6])
async def random_operations(dut: Any, stall: float) -> None:
    """Read, write with any strobes, change inputs, try unmapped addresses, against a model."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(SEED)
    master = await start(dut, stall)
    model = {r.name: r.reset for r in REGISTERS if r.access is Access.READ_WRITE}
    inputs = {r.name: 0 for r in REGISTERS if r.access is Access.READ and r.name not in FIXED}
    mapped = {r.offset for r in REGISTERS}
    for _ in range(300):
        register = rng.choice(REGISTERS)
        kind = rng.choice(("read", "write", "bytes", "input", "unmapped"))
        name = register.name
        if kind == "read":
            answer = await master.read(register.offset, 4)
            value = int.from_bytes(answer.data, "little")
            assert answer.resp == AxiResp.OKAY
            assert value == {**FIXED, **inputs, **model}.get(name, 0), (name, value)
        elif kind in ("write", "bytes"):
            first = rng.randrange(4) if kind == "bytes" else 0
            data = rng.randbytes(rng.randint(1, 4 - first) if kind == "bytes" else 4)
            answer = await master.write(register.offset + first, data)
            assert answer.resp == AxiResp.OKAY
            if name in model:
                old = bytearray(model[name].to_bytes(4, "little"))
                old[first : first + len(data)] = data
                model[name] = int.from_bytes(old, "little") & _mask(register)
        elif kind == "input":
            name = rng.choice(list(inputs))
            inputs[name] = rng.getrandbits(32) & _mask(BY_NAME[name])
            getattr(dut, name.lower()).value = inputs[name]
            await RisingEdge(dut.clk)
        else:
            offset = rng.choice([a for a in range(0, ADDRESS_SPACE_BYTES, 4) if a not in mapped])
            assert (await master.write(offset, b"1234")).resp == AxiResp.SLVERR
            answer = await master.read(offset, 4)
            assert answer.resp == AxiResp.SLVERR and bytes(answer.data) == bytes(4)
    for name, value in model.items():
        assert int(getattr(dut, name.lower()).value) == value, name


@cocotb.test()
async def pulses_and_events(dut: Any) -> None:
    """CONTROL pulses for one cycle; IRQ_STATUS keeps events until a 1 clears them."""
    master = await start(dut, 0.0)
    seen: list[int] = []

    async def watch() -> None:
        while True:
            await RisingEdge(dut.clk)
            await ReadOnly()
            seen.append(int(dut.control.value))

    cocotb.start_soon(watch())
    for value in (1, 2, 3, 0):
        seen.clear()
        await master.write_dword(BY_NAME["CONTROL"].offset, value)
        await RisingEdge(dut.clk)
        assert [v for v in seen if v] == ([value] if value else []), seen
        assert await master.read_dword(BY_NAME["CONTROL"].offset) == 0
    offset = BY_NAME["IRQ_STATUS"].offset
    for events, clear, left in ((3, 1, 2), (1, 2, 1), (0, 1, 0)):
        dut.irq_status_set.value = events
        await RisingEdge(dut.clk)
        dut.irq_status_set.value = 0
        await master.write_dword(offset, clear)
        assert await master.read_dword(offset) == left


@cocotb.test()
@cocotb.parametrize(data_first=[False, True])
async def either_half_first(dut: Any, data_first: bool) -> None:
    """Send the write data long before the address, or long after it."""
    master = await start(dut, 0.0)
    write = master.write_if
    early, late = write.w_channel, write.aw_channel
    if not data_first:
        early, late = late, early
    late.clear_pause_generator()
    late.pause = True
    operation = cocotb.start_soon(master.write_dword(BY_NAME["BASE5"].offset, 0x12345678))
    for _ in range(20):
        await RisingEdge(dut.clk)
    assert not operation.done()
    late.pause = False
    await operation
    assert await master.read_dword(BY_NAME["BASE5"].offset) == 0x12345678
