# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the board's end of the link, against `hwgen.arch.link`."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteRam

from hwgen.arch import link
from hwgen.arch.link import Command, LinkConfig, Status
from sim.benches.memory import pauses, reset
from sim.benches.signals import Sink
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
SEED = PARAMETERS.get("seed", 1)
CONFIG = LinkConfig(**PARAMETERS["link"]) if PARAMETERS else None
READ_LATENCY = PARAMETERS.get("read_latency", 2)
BYTE_CYCLES = 12  # a line takes 40 at least


class Bench:
    """Gives bytes at a line's pace, takes the answer's, and is the memory."""

    def __init__(self, dut: Any, stall: float) -> None:
        assert CONFIG is not None
        self.dut, self.rng = dut, random.Random(SEED)
        self.registers = AxiLiteRam(
            AxiLiteBus.from_prefix(dut, "axi_"), dut.clk, dut.rst, size=4096
        )
        self.sink = Sink(dut, "send", self.rng, stall)
        self.memory = bytearray(self.rng.randbytes(CONFIG.memory_bytes))
        self.due: list[tuple[int, int]] = []
        self.cycle = 0
        self.packets: list[int] = []

    async def start(self) -> None:
        """Reset with random registers."""
        pins = {"valid": 0, "data": 0, "error": 0, "busy": 0}
        await reset(self.dut, **{f"received__{name}": value for name, value in pins.items()})
        write, read = self.registers.write_if, self.registers.read_if
        for channel in (
            write.aw_channel,
            write.w_channel,
            write.b_channel,
            read.ar_channel,
            read.r_channel,
        ):
            channel.set_pause_generator(pauses(self.rng.randrange(1 << 30), 0.3))
        self.registers.write(0, self.rng.randbytes(4096))

    async def tick(self, byte: int | None = None, error: int = 0, busy: int = 0) -> int | None:
        """Advance a cycle in which a byte may come; return the byte that is sent."""
        dut = self.dut
        dut.received__valid.value = int(byte is not None)
        dut.received__data.value = byte if byte is not None else self.rng.getrandbits(8)
        dut.received__error.value, dut.received__busy.value = error, busy
        data = [beat for due, beat in self.due if due == self.cycle]
        noise = self.rng.getrandbits(64)
        word = self.memory[8 * data[0] : 8 * data[0] + 8] if data else None
        dut.memory__read_data.value = noise if word is None else int.from_bytes(word, "little")
        self.sink.drive()
        await ReadOnly()
        if int(dut.memory__valid.value):
            beat = int(dut.memory__address.value)
            assert 8 * beat < len(self.memory)
            if int(dut.memory__write.value):
                value = int(dut.memory__write_data.value)
                self.memory[8 * beat : 8 * beat + 8] = value.to_bytes(8, "little")
            else:
                self.due.append((self.cycle + READ_LATENCY, beat))
        if int(dut.packet.value):
            self.packets.append(int(dut.refused.value))
        sent = self.sink.sample()
        await RisingEdge(dut.clk)
        self.cycle += 1
        return sent

    async def give(self, data: bytes, errors: tuple[int, ...] = ()) -> None:
        """Let bytes come, as close together as a line does."""
        for index, byte in enumerate(data):
            for _ in range(BYTE_CYCLES - 1):
                assert await self.tick(busy=1) is None
            await self.tick(byte, int(index in errors))

    async def wait(self, cycles: int) -> bytes:
        """Return what is sent in so many cycles of silence."""
        return bytes(b for b in [await self.tick() for _ in range(cycles)] if b is not None)

    async def answer(self, limit: int = 60_000) -> link.Answer:
        """Return the next answer, checked."""
        packet = bytearray()
        for _ in range(limit):
            byte = await self.tick()
            if byte is not None:
                packet.append(byte)
            if len(packet) >= link.ANSWER_BYTES and len(packet) == link.answer_length(
                bytes(packet)
            ):
                return link.parse_answer(bytes(packet))
        raise AssertionError(f"no answer, only {packet.hex(' ')}")


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.8])
async def random_requests(dut: Any, stall: float) -> None:
    """Good ones and refused ones in any order, one after the other, against a model."""
    cocotb.log.info("seed %d", SEED)
    assert CONFIG is not None
    bench = Bench(dut, stall)
    await bench.start()
    rng = bench.rng
    for tag in range(40):
        command = rng.choice([*Command, *Command, 9])
        unit = 8 if command in (Command.READ_MEMORY, Command.WRITE_MEMORY) else 4
        length = link.IDENTITY_BYTES if command == Command.PING else unit * rng.randint(1, 12)
        if command == Command.WRITE_REGISTER:
            length = 4
        size = CONFIG.memory_bytes if unit == 8 else 4096
        address = 0 if command == Command.PING else unit * rng.randrange((size - length) // unit)
        address += link.MEMORY_BASE if unit == 8 else 0
        if rng.random() < 0.2:
            address, length = rng.choice([(address ^ 0x8000_0000, length), (address + 2, length)])
        data = rng.randbytes(length)
        wanted = link.fault_of(command, address, length, CONFIG.memory_bytes)
        await bench.give(link.request(command, tag, address, length, data))
        found = await bench.answer()
        assert (found.command, found.tag, found.status) == (command, tag, wanted or Status.OK)
        offset = address - link.MEMORY_BASE
        if wanted is not None or command in link.WRITES:
            assert found.data == b""
        elif command == Command.PING:
            fields = link.IDENTITY.unpack(int.from_bytes(found.data, "little"))
            assert fields == CONFIG.identity()
        elif command == Command.READ_REGISTERS:
            assert found.data == bytes(bench.registers.read(address, length))
        else:
            assert found.data == bytes(bench.memory[offset : offset + length])
        if wanted is None and command == Command.WRITE_REGISTER:
            assert bytes(bench.registers.read(address, 4)) == data
        if wanted is None and command == Command.WRITE_MEMORY:
            assert bytes(bench.memory[offset : offset + length]) == data
        assert bench.packets.pop() == (wanted is not None)


@cocotb.test()
async def damage(dut: Any) -> None:
    """Any bit of any byte, a byte too few, a stop bit missing: nothing wrong is carried out."""
    assert CONFIG is not None
    bench = Bench(dut, 0.0)
    await bench.start()
    quiet = CONFIG.quiet + 50
    data = bytes(range(16))
    good = link.request(Command.WRITE_MEMORY, 5, link.MEMORY_BASE + 64, 16, data)
    header = link.REQUEST_BYTES + link.CRC_BYTES
    before = bytes(bench.memory)
    for position in range(len(good)):
        flipped = bytearray(good)
        flipped[position] ^= 1 << bench.rng.randrange(8)
        await bench.give(bytes(flipped))
        if position < header:
            assert await bench.wait(quiet) == b"", position
            assert bytes(bench.memory) == before
        else:
            assert (await bench.answer()).status == Status.BAD_CHECKSUM
            assert bytes(bench.memory[:64] + bench.memory[80:]) == before[:64] + before[80:]
            bench.memory[64:80] = before[64:80]
    for count in range(1, len(good)):
        await bench.give(good[:count])
        if count < header:
            assert await bench.wait(quiet) == b""
        else:
            assert (await bench.answer()).status == Status.TRUNCATED
        bench.memory[64:80] = before[64:80]
    for position in (0, 5, header, header + 10, len(good) - 1):
        await bench.give(good, errors=(position,))
        if position < header:
            assert await bench.wait(quiet) == b""
        else:
            assert (await bench.answer()).status == Status.BAD_CHECKSUM
    await bench.give(good)
    assert (await bench.answer()).status == Status.OK
    assert bytes(bench.memory[64:80]) == data


@cocotb.test()
async def polls_status(dut: Any) -> None:
    """Between packets the lamps follow STATUS, also while a byte comes."""
    bench = Bench(dut, 0.0)
    await bench.start()
    period = PARAMETERS["poll_cycles"]
    for running, failed in ((1, 0), (0, 1), (0, 0)):
        bench.registers.write(0x14, bytes([running << 1 | failed << 3, 0, 0, 0]))
        await bench.wait(2 * period)
        assert (int(dut.running.value), int(dut.failed.value)) == (running, failed)
    for shift in range(0, 24):
        await bench.wait(period - 120 + shift)
        await bench.give(link.request(Command.READ_REGISTERS, shift, 0x40, 4))
        assert (await bench.answer()).data == bytes(bench.registers.read(0x40, 4))
