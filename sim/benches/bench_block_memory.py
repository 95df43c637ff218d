# SPDX-License-Identifier: Apache-2.0
"""The simulation room: block RAM behind AXI and a port, against a list of bytes."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.triggers import Combine, ReadOnly, RisingEdge
from cocotbext.axi import AxiBurstType, AxiBus, AxiMaster, AxiResp

from hwgen.arch.link import MEMORY_BASE
from sim.benches.memory import pauses, reset
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
SEED = PARAMETERS.get("seed", 1)
SIZE = PARAMETERS.get("size", 4096)
FIRST_BEAT = PARAMETERS.get("first_beat", 0)
READ_LATENCY = PARAMETERS.get("read_latency", 0)
PORT_BYTES = SIZE // 4  # the port has this much at the end to itself, the bus the rest


async def start(dut: Any, stall: float, rng: random.Random) -> AxiMaster:
    """Reset, and return a master that stalls."""
    master = AxiMaster(AxiBus.from_prefix(dut, "axi_"), dut.clk, dut.rst)
    await reset(dut, port__valid=0, port__write=0)
    write, read = master.write_if, master.read_if
    channels = (
        write.aw_channel,
        write.w_channel,
        write.b_channel,
        read.ar_channel,
        read.r_channel,
    )
    for channel in channels:
        channel.set_pause_generator(pauses(rng.randrange(1 << 30), stall))
    return master


async def port(dut: Any, write: bool, beat: int, data: int = 0) -> int:
    """Access the memory past the bus."""
    dut.port__valid.value, dut.port__write.value = 1, int(write)
    dut.port__address.value, dut.port__write_data.value = beat, data
    await RisingEdge(dut.clk)
    dut.port__valid.value = 0
    for _ in range(READ_LATENCY - 1):
        await RisingEdge(dut.clk)
    await ReadOnly()
    found = int(dut.port__read_data.value)
    await RisingEdge(dut.clk)
    return found


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.5])
async def bus_and_port(dut: Any, stall: float) -> None:
    """Random bursts both ways while the port reads and writes; every byte where it belongs."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(SEED)
    master = await start(dut, stall, rng)
    model = bytearray(SIZE)
    for beat in range(SIZE // 8):
        word = rng.getrandbits(64)
        model[8 * beat : 8 * beat + 8] = word.to_bytes(8, "little")
        await port(dut, True, beat, word)

    async def writes() -> None:
        ours = random.Random(rng.random())
        for _ in range(30):
            size = ours.randint(1, 300)
            address = ours.randrange(SIZE // 2 - size) & -8
            data = ours.randbytes(size)
            reply = await master.write(MEMORY_BASE + address, data)
            assert reply.resp == AxiResp.OKAY
            model[address : address + size] = data

    async def reads() -> None:
        ours = random.Random(rng.random())
        for _ in range(30):
            size = ours.randint(1, 300)
            address = SIZE // 2 + (ours.randrange(SIZE // 4 - size) & -8)
            reply = await master.read(MEMORY_BASE + address, size)
            assert reply.resp == AxiResp.OKAY
            assert reply.data == bytes(model[address : address + size])

    async def ports() -> None:
        ours = random.Random(rng.random())
        for _ in range(200):
            beat = ours.randrange((SIZE - PORT_BYTES) // 8, SIZE // 8)
            if ours.random() < 0.5:
                word = ours.getrandbits(64)
                await port(dut, True, beat, word)
                model[8 * beat : 8 * beat + 8] = word.to_bytes(8, "little")
            else:
                found = (await port(dut, False, beat)).to_bytes(8, "little")
                assert found == bytes(model[8 * beat : 8 * beat + 8])
            for _ in range(ours.choice((0, 0, 1, 5))):
                await RisingEdge(dut.clk)

    await Combine(*(cocotb.start_soon(task()) for task in (writes, reads, ports)))
    reply = await master.read(MEMORY_BASE, SIZE)
    assert reply.data == bytes(model)


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.5])
async def refusals(dut: Any, stall: float) -> None:
    """Outside is DECERR, an odd burst SLVERR; nothing is written, and the next burst is served."""
    rng = random.Random(SEED)
    master = await start(dut, stall, rng)
    await master.write(MEMORY_BASE, bytes(range(256)))
    for address in (0, MEMORY_BASE - 64, MEMORY_BASE + SIZE, 0xFFFF_FF00):
        assert (await master.read(address, 64)).resp == AxiResp.DECERR
        assert (await master.write(address, bytes(64))).resp == AxiResp.DECERR
        assert (await master.read(MEMORY_BASE, 256)).data == bytes(range(256))
    fixed = {"burst": AxiBurstType.FIXED}
    assert (await master.read(MEMORY_BASE, 16, **fixed)).resp == AxiResp.SLVERR
    assert (await master.write(MEMORY_BASE, bytes(16), **fixed)).resp == AxiResp.SLVERR
    assert (await master.write(MEMORY_BASE, bytes(16), size=2)).resp == AxiResp.SLVERR
    assert (await master.write(MEMORY_BASE + 4, bytes(16))).resp == AxiResp.SLVERR
    assert (await master.read(MEMORY_BASE, 256)).data == bytes(range(256))


@cocotb.test()
async def timing(dut: Any) -> None:
    """Count: the first beat after `FIRST_BEAT_LATENCY`, then a beat a cycle, across bursts too."""
    dut.axi__rready.value = 1
    await reset(dut, port__valid=0, port__write=0, axi__awvalid=0, axi__wvalid=0, axi__arvalid=0)
    asked: list[int] = []
    came: list[tuple[int, int]] = []
    for cycle in range(80):
        dut.axi__arvalid.value = int(len(asked) < 3)
        dut.axi__araddr.value = MEMORY_BASE + 128 * len(asked)
        dut.axi__arlen.value, dut.axi__arsize.value, dut.axi__arburst.value = 15, 3, 1
        await ReadOnly()
        if int(dut.axi__arvalid.value) and int(dut.axi__arready.value):
            asked.append(cycle)
        if int(dut.axi__rvalid.value):
            came.append((cycle, int(dut.axi__rlast.value)))
        await RisingEdge(dut.clk)
    first = asked[0] + FIRST_BEAT
    assert came == [(first + i, int(i % 16 == 15)) for i in range(48)]
