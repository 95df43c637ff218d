# SPDX-License-Identifier: Apache-2.0
"""Room tests: a pynq Device whose registers are the RTL's, in Amaranth's own simulator.

Some hundred cycles a second: enough for a layer of a few hundred cycles, without any other tool.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

from amaranth.sim import Simulator

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import BEAT_BYTES
from rtl.axi import Response
from rtl.top import Accelerator
from tests.host.fake_device import DDR_BASE, MemoryDevice


class RtlDevice(MemoryDevice):
    """A board with the RTL of one configuration; time passes while registers are accessed.

    Attributes
    ----------
    read_response, write_response
        What the memory answers inside DDR; outside it is always DECERR.
    cycles
        Clock cycles so far.
    """

    def __init__(self, config: AcceleratorConfig, base_address: int = 0x43C0_0000) -> None:
        super().__init__("rtl", base_address, 1 << 17)
        self.read_response = self.write_response = Response.OKAY
        self.cycles = 0
        self._top = Accelerator(config)
        self._access: tuple[int, int | None] | None = None
        self._answer: int | None = None
        self._simulator = Simulator(self._top)
        self._simulator.add_clock(1e-8)
        self._simulator.add_testbench(self._bus, background=True)

    def read_registers(self, address: int, length: int) -> bytes:
        return struct.pack("<I", self._do(address, None))

    def write_registers(self, address: int, data: bytes) -> None:
        self._do(address, struct.unpack("<I", bytes(data))[0])

    def _do(self, address: int, value: int | None) -> int:
        self._access, self._answer = (address - self.base_address, value), None
        while self._answer is None:
            self._simulator.advance()
        return self._answer

    def _inside(self, address: int) -> bool:
        return 0 <= address - DDR_BASE <= len(self.ddr) - BEAT_BYTES

    def _beat(self, address: int) -> Any:
        return self.ddr[address - DDR_BASE : address - DDR_BASE + BEAT_BYTES]

    def _write_burst(self, address: int, beats: list[tuple[int, int, int]]) -> Response:
        """Store beats of (data, strobes, last)."""
        for number, (data, strobes, _) in enumerate(beats):
            here = address + BEAT_BYTES * number
            if not self._inside(here):
                return Response.DECERR
            for i in range(BEAT_BYTES):
                if strobes >> i & 1:
                    self._beat(here)[i] = data >> 8 * i & 0xFF
        return self.write_response

    async def _bus(self, ctx: Any) -> None:
        """Serve one register access and the memory, a clock cycle each turn."""
        top, get = self._top, ctx.get
        reads: deque[tuple[int, bool]] = deque()
        write_addresses: deque[int] = deque()
        beats: list[tuple[int, int, int]] = []
        responses: deque[Response] = deque()
        for always in ("s_axi_bready", "s_axi_rready", "m_axi_arready", "m_axi_awready"):
            ctx.set(getattr(top, always), 1)
        ctx.set(top.m_axi_wready, 1)
        ctx.set(top.s_axi_wstrb, 0xF)
        while True:
            access, self._access = self._access, None
            if access is not None:
                offset, value = access
                if value is None:
                    ctx.set(top.s_axi_araddr, offset)
                    ctx.set(top.s_axi_arvalid, 1)
                else:
                    ctx.set(top.s_axi_awaddr, offset)
                    ctx.set(top.s_axi_wdata, value)
                    ctx.set(top.s_axi_awvalid, 1)
                    ctx.set(top.s_axi_wvalid, 1)
            ctx.set(top.m_axi_rvalid, bool(reads))
            if reads:
                address, last = reads[0]
                inside = self._inside(address)
                data = int.from_bytes(self._beat(address).tobytes(), "little") if inside else 0
                ctx.set(top.m_axi_rdata, data)
                ctx.set(top.m_axi_rlast, last)
                ctx.set(top.m_axi_rresp, self.read_response if inside else Response.DECERR)
            ctx.set(top.m_axi_bvalid, bool(responses))
            if responses:
                ctx.set(top.m_axi_bresp, responses[0])

            # What is handed over at the coming clock edge.
            read_taken = bool(reads) and get(top.m_axi_rready)
            response_taken = bool(responses) and get(top.m_axi_bready)
            if get(top.m_axi_awvalid):
                write_addresses.append(get(top.m_axi_awaddr))
            if get(top.m_axi_wvalid):
                beats.append((get(top.m_axi_wdata), get(top.m_axi_wstrb), get(top.m_axi_wlast)))
            new_reads = []
            if get(top.m_axi_arvalid):
                first, count = get(top.m_axi_araddr), get(top.m_axi_arlen) + 1
                new_reads = [(first + BEAT_BYTES * i, i == count - 1) for i in range(count)]
            lowered = [
                valid
                for valid, ready in (
                    (top.s_axi_awvalid, top.s_axi_awready),
                    (top.s_axi_wvalid, top.s_axi_wready),
                    (top.s_axi_arvalid, top.s_axi_arready),
                )
                if get(valid) and get(ready)
            ]
            written, answered, answer = (
                get(top.s_axi_bvalid),
                get(top.s_axi_rvalid),
                get(top.s_axi_rdata),
            )
            await ctx.tick()
            self.cycles += 1
            for valid in lowered:
                ctx.set(valid, 0)
            if read_taken:
                reads.popleft()
            reads.extend(new_reads)
            if response_taken:
                responses.popleft()
            if beats and beats[-1][2] and write_addresses:
                responses.append(self._write_burst(write_addresses.popleft(), beats))
                beats = []
            if written or answered:
                self._answer = answer
