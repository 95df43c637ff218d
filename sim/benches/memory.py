# SPDX-License-Identifier: Apache-2.0
"""The simulation room: an AXI memory for benches, with seeded stalls and error responses."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from cocotb.clock import Clock
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiBus, AxiRam, AxiReadBus, AxiResp, AxiWriteBus
from cocotbext.axi.axi_ram import AxiRamRead, AxiRamWrite


class BadAddressError(Exception):
    """The address is in a range that answers with an error."""


class FaultyMemory:
    """`size` bytes of memory behind an AXI bus; ranges of it may answer SLVERR or DECERR.

    `faults` maps an AxiResp to a list of (first, last + 1) byte addresses.
    """

    def __init__(self, dut: Any, prefix: str, size: int, *, sides: str = "both") -> None:
        clock, reset = dut.clk, dut.rst
        self.faults: dict[AxiResp, list[tuple[int, int]]] = {}
        self._answer = AxiResp.SLVERR
        self._ram: Any
        if sides == "both":
            self._ram = AxiRam(AxiBus.from_prefix(dut, prefix), clock, reset, size=size)
            self.read_if, self.write_if = self._ram.read_if, self._ram.write_if
        elif sides == "read":
            self._ram = self.read_if = AxiRamRead(
                AxiReadBus.from_prefix(dut, prefix), clock, reset, size=size
            )
            self.write_if = None
        else:
            self._ram = self.write_if = AxiRamWrite(
                AxiWriteBus.from_prefix(dut, prefix), clock, reset, size=size
            )
            self.read_if = None
        for side, name in ((self.read_if, "read"), (self.write_if, "write")):
            if side is not None:
                self._watch(side, name)

    def _watch(self, side: Any, name: str) -> None:
        """Make accesses to faulty ranges fail, with the response of the range."""
        access, channel = getattr(side, f"_{name}"), side.r_channel if name == "read" else None
        channel = channel or side.b_channel
        send, field = channel.send, "rresp" if name == "read" else "bresp"

        async def checked(address: int, argument: Any) -> Any:
            for response, ranges in self.faults.items():
                if any(first <= address < end for first, end in ranges):
                    self._answer = response
                    raise BadAddressError(f"{address:#x}")
            return await access(address, argument)

        async def answered(item: Any) -> None:
            if getattr(item, field) == AxiResp.SLVERR:
                setattr(item, field, self._answer)
            await send(item)

        setattr(side, f"_{name}", checked)
        channel.send = answered

    def write(self, address: int, data: bytes) -> None:
        """Put bytes into the memory."""
        self._ram.write(address, data)

    def read(self, address: int, length: int) -> bytes:
        """Take bytes out of the memory."""
        return bytes(self._ram.read(address, length))

    def stall(self, rng: random.Random, probability: float) -> None:
        """Pause every channel at random from now on."""
        channels = []
        if self.read_if is not None:
            channels += [self.read_if.ar_channel, self.read_if.r_channel]
        if self.write_if is not None:
            channels += [self.write_if.aw_channel, self.write_if.w_channel]
            channels += [self.write_if.b_channel]
        for channel in channels:
            channel.set_pause_generator(pauses(rng.randrange(1 << 30), probability))


def pauses(seed: int, probability: float) -> Iterator[bool]:
    """Yield for each cycle whether a channel pauses."""
    rng = random.Random(seed)
    while True:
        yield rng.random() < probability


async def reset(dut: Any, **inputs: int) -> None:
    """Start the clock, set the inputs, reset for three cycles."""
    for name, value in inputs.items():
        getattr(dut, name).value = value
    dut.rst.value = 1
    Clock(dut.clk, 10, "ns").start()
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    await RisingEdge(dut.clk)
