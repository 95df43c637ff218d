# SPDX-License-Identifier: Apache-2.0
"""The simulation room: an AXI memory for benches, with seeded stalls and error responses."""

from __future__ import annotations

import random
from collections import deque
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


class LatencyMemory:
    """A memory of fixed timing: a beat a cycle each way, any number of bursts in flight.

    A burst's first beat is on the bus `latency` cycles after its address was accepted, or one
    cycle after the beat before it; its write response `latency` cycles after its last beat.
    """

    def __init__(self, dut: Any, size: int, latency: int) -> None:
        self.dut, self.latency = dut, latency
        self.data = bytearray(size)
        dut.m_axi_rresp.value = dut.m_axi_bresp.value = 0
        dut.m_axi_rid.value = dut.m_axi_bid.value = 0
        dut.m_axi_rvalid.value = dut.m_axi_bvalid.value = 0
        dut.m_axi_arready.value = dut.m_axi_awready.value = dut.m_axi_wready.value = 1

    def write(self, address: int, data: bytes) -> None:
        """Put bytes into the memory."""
        self.data[address : address + len(data)] = data

    def read(self, address: int, length: int) -> bytes:
        """Take bytes out of the memory."""
        return bytes(self.data[address : address + length])

    async def run(self) -> None:
        """Answer for ever."""
        dut, cycle = self.dut, 0
        beats: deque[tuple[int, int, bool]] = deque()  # due, address, last
        bursts: deque[int] = deque()
        answers: deque[int] = deque()
        written = 0
        while True:
            await RisingEdge(dut.clk)
            # Values sampled here are those of the cycle that ends at this edge.
            if int(dut.m_axi_arvalid.value):
                address, count = int(dut.m_axi_araddr.value), int(dut.m_axi_arlen.value) + 1
                due = cycle + self.latency
                beats.extend((due, address + 8 * i, i == count - 1) for i in range(count))
            if int(dut.m_axi_awvalid.value):
                bursts.append(int(dut.m_axi_awaddr.value))
            if int(dut.m_axi_wvalid.value):
                word = int(dut.m_axi_wdata.value).to_bytes(8, "little")
                if int(dut.m_axi_wstrb.value):
                    self.write(bursts[0] + written, word)
                written += 8
                if int(dut.m_axi_wlast.value):
                    bursts.popleft()
                    written = 0
                    answers.append(cycle + self.latency)
            if int(dut.m_axi_rvalid.value) and int(dut.m_axi_rready.value):
                beats.popleft()
            if int(dut.m_axi_bvalid.value) and int(dut.m_axi_bready.value):
                answers.popleft()
            cycle += 1
            ready = bool(beats) and beats[0][0] <= cycle
            dut.m_axi_rvalid.value = int(ready)
            if ready:
                _, address, last = beats[0]
                dut.m_axi_rdata.value = int.from_bytes(self.read(address, 8), "little")
                dut.m_axi_rlast.value = int(last)
            dut.m_axi_bvalid.value = int(bool(answers) and answers[0] <= cycle)
