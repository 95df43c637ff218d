# SPDX-License-Identifier: Apache-2.0
"""The hardware room: block RAM as the accelerator's memory, with a second way in for the host."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch.isa import BEAT_BYTES
from hwgen.arch.link import MEMORY_BASE
from rtl.axi import (
    ADDRESS_BITS,
    BEAT_BYTES_LOG2,
    BURST_INCR,
    DATA_BITS,
    READ_MEMBERS,
    WRITE_MEMBERS,
    Response,
)
from rtl.streams import StreamFifo

#: What the host's way in looks like, seen from who uses it.
#:
#: A beat is read or written in a cycle with `valid`; there is no waiting. Data that were read are
#: there `BlockMemory.READ_LATENCY` cycles later, for one cycle. Addresses count beats.
PORT_MEMBERS = {
    "valid": Out(1),
    "write": Out(1),
    "address": Out(ADDRESS_BITS - BEAT_BYTES_LOG2),
    "write_data": Out(DATA_BITS),
    "read_data": In(DATA_BITS),
}


class BlockMemory(wiring.Component):
    """`size` bytes of block RAM from `MEMORY_BASE` on: an AXI4 slave, and `port`.

    One read and one write of 8 bytes a cycle. `port` goes first: the bus waits for one cycle.

    Bursts are answered in order, each way by itself. A burst outside the memory gets DECERR in
    every beat; one that is not INCR, not of whole beats or not aligned gets SLVERR. Neither writes
    anything, and what it reads is 0. AXI forbids bursts across 4 KiB, and base and size are
    multiples of that, so that a burst's first address tells.

    Timing: the first beat is on the bus `FIRST_BEAT_LATENCY` cycles after the address was taken,
    then a beat a cycle; the next burst's address is taken with the last beat's read, so that
    bursts follow each other without a gap. A write's response comes one cycle after its last beat.
    """

    READ_LATENCY = 2
    FIRST_BEAT_LATENCY = 4
    FIFO_DEPTH = 8
    RESPONSES = 4

    def __init__(self, size: int) -> None:
        if size < 1 or size % 4096:
            raise ValueError(f"size must be a multiple of 4096, not {size!r}")
        self.size = size
        super().__init__(
            {
                "axi": In(wiring.Signature({**READ_MEMBERS, **WRITE_MEMBERS})),
                "port": In(wiring.Signature(PORT_MEMBERS)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """One read port and one write port, each shared by bus and `port`."""
        m = Module()
        beats = self.size // BEAT_BYTES
        m.submodules.memory = mem = memory.Memory(shape=DATA_BITS, depth=beats, init=[])
        read = mem.read_port()
        write = mem.write_port(granularity=8)
        port = self.port
        m.d.comb += read.en.eq(1)
        self._read(m, read)
        self._write(m, write)
        with m.If(port.valid & ~port.write):
            m.d.comb += read.addr.eq(port.address)
        with m.If(port.valid & port.write):
            m.d.comb += [
                write.addr.eq(port.address),
                write.data.eq(port.write_data),
                write.en.eq((1 << BEAT_BYTES) - 1),
            ]
        # A register behind the block RAMs' slow outputs and the choice between them.
        read_data = Signal(DATA_BITS)
        m.d.sync += read_data.eq(read.data)
        m.d.comb += port.read_data.eq(read_data)
        self._read_data = read_data
        self._answer_reads(m)
        return m

    def _response(self, channel: str) -> Any:
        """Return what a burst is answered with."""
        axi = self.axi
        address, size = getattr(axi, f"{channel}addr"), getattr(axi, f"{channel}size")
        offset = Signal(ADDRESS_BITS, name=f"{channel}_offset")
        self._m.d.comb += offset.eq(address - MEMORY_BASE)
        odd = (
            (size != BEAT_BYTES_LOG2)
            | (getattr(axi, f"{channel}burst") != BURST_INCR)
            | address[:BEAT_BYTES_LOG2].any()
        )
        outside = offset >= self.size
        return Mux(outside, Response.DECERR, Mux(odd, Response.SLVERR, Response.OKAY))

    def _read(self, m: Module, read: Any) -> None:
        """Walk a burst: a read a cycle while the FIFO behind has room for what is under way."""
        self._m = m
        axi = self.axi
        self._tag = tag = data.StructLayout({"id": 1, "response": 2, "last": 1})
        active, left, address = Signal(), Signal(8), Signal(range(self.size // BEAT_BYTES))
        burst_id, response = Signal(1), Signal(2)
        issue, last, room = Signal(), Signal(), Signal()
        under_way = Signal(range(self.FIFO_DEPTH + 1))
        m.d.comb += [
            room.eq(under_way != self.FIFO_DEPTH),
            issue.eq(active & room & ~(self.port.valid & ~self.port.write)),
            last.eq(left == 0),
            axi.arready.eq(~active | (issue & last)),
            read.addr.eq(address),
        ]
        with m.If(issue):
            m.d.sync += [address.eq(address + 1), left.eq(left - 1)]
            with m.If(last):
                m.d.sync += active.eq(0)
        with m.If(axi.arvalid & axi.arready):
            m.d.sync += [
                active.eq(1),
                address.eq(axi.araddr[BEAT_BYTES_LOG2:] - (MEMORY_BASE >> BEAT_BYTES_LOG2)),
                left.eq(axi.arlen),
                burst_id.eq(axi.arid),
                response.eq(self._response("ar")),
            ]
        taken = axi.rvalid & axi.rready
        m.d.sync += under_way.eq(under_way + issue - taken)
        self._issued = [Signal(name=f"issued_{i}") for i in range(self.READ_LATENCY)]
        self._tags = [Signal(tag, name=f"tag_{i}") for i in range(self.READ_LATENCY)]
        m.d.sync += [
            self._issued[0].eq(issue),
            self._tags[0].id.eq(burst_id),
            self._tags[0].response.eq(response),
            self._tags[0].last.eq(last),
        ]
        for i in range(1, self.READ_LATENCY):
            m.d.sync += [
                self._issued[i].eq(self._issued[i - 1]),
                self._tags[i].eq(self._tags[i - 1]),
            ]

    def _answer_reads(self, m: Module) -> None:
        """Collect what was read in a FIFO, for which `under_way` has kept room."""
        axi, tag = self.axi, self._tags[-1]
        shape = data.StructLayout({"data": DATA_BITS, "tag": self._tag})
        m.submodules.reads = reads = StreamFifo(shape, self.FIFO_DEPTH)
        good = tag.response == Response.OKAY
        m.d.comb += [
            reads.input.valid.eq(self._issued[-1]),
            reads.input.payload.data.eq(Mux(good, self._read_data, 0)),
            reads.input.payload.tag.eq(tag),
            axi.rvalid.eq(reads.output.valid),
            axi.rdata.eq(reads.output.payload.data),
            axi.rid.eq(reads.output.payload.tag.id),
            axi.rresp.eq(reads.output.payload.tag.response),
            axi.rlast.eq(reads.output.payload.tag.last),
            reads.output.ready.eq(axi.rready),
        ]

    def _write(self, m: Module, write: Any) -> None:
        """Take a burst's address, then its beats; the response goes through a FIFO."""
        axi = self.axi
        layout = data.StructLayout({"id": 1, "response": 2})
        m.submodules.responses = responses = StreamFifo(layout, self.RESPONSES)
        active, address = Signal(), Signal(range(self.size // BEAT_BYTES))
        burst_id, response, beat = Signal(1), Signal(2), Signal()
        m.d.comb += [
            axi.awready.eq(~active),
            axi.wready.eq(active & responses.input.ready & ~(self.port.valid & self.port.write)),
            beat.eq(axi.wvalid & axi.wready),
            write.addr.eq(address),
            write.data.eq(axi.wdata),
            responses.input.valid.eq(beat & axi.wlast),
            responses.input.payload.id.eq(burst_id),
            responses.input.payload.response.eq(response),
            axi.bvalid.eq(responses.output.valid),
            axi.bid.eq(responses.output.payload.id),
            axi.bresp.eq(responses.output.payload.response),
            responses.output.ready.eq(axi.bready),
        ]
        with m.If(beat & (response == Response.OKAY)):
            m.d.comb += write.en.eq(axi.wstrb)
        with m.If(beat):
            m.d.sync += address.eq(address + 1)
            with m.If(axi.wlast):
                m.d.sync += active.eq(0)
        with m.If(axi.awvalid & axi.awready):
            m.d.sync += [
                active.eq(1),
                address.eq(axi.awaddr[BEAT_BYTES_LOG2:] - (MEMORY_BASE >> BEAT_BYTES_LOG2)),
                burst_id.eq(axi.awid),
                response.eq(self._response("aw")),
            ]


def connect_memory(m: Module, master: Any, slave: BlockMemory, prefix: str = "m_axi") -> None:
    """Join a top's flat AXI master ports to a memory."""
    joins = []
    for name, member in {**READ_MEMBERS, **WRITE_MEMBERS}.items():
        outer, inner = getattr(master, f"{prefix}_{name}"), getattr(slave.axi, name)
        joins.append(inner.eq(outer) if member.flow == Out else outer.eq(inner))
    m.d.comb += joins
