# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the read half of the AXI4 master, shared by fetch and load engine."""

from __future__ import annotations

import enum
from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from rtl.axi import BEAT_BYTES_LOG2, ReadSignature
from rtl.streams import READ_BEAT, TRANSFER, StreamFifo


class Client(enum.IntEnum):
    """Who reads."""

    FETCH = 0
    LOAD = 1


class ReadMaster(wiring.Component):
    """Cut transfers into bursts, keep several in flight, hand beats to who asked for them.

    A burst is at most `max_burst_beats` long and does not cross a boundary of that size, hence no
    4 KiB boundary. Each client's transfers are served in order; between bursts the instruction
    fetch goes first, because it asks for little and everything waits for it. Beats come back in
    the order of the bursts (one AXI ID) and are routed by a FIFO of owners, `outstanding_reads`
    deep. A client should accept beats without waiting for the other client.

    A beat carries the memory's response; what to make of SLVERR or DECERR is the client's affair,
    since it knows the instruction.

    `drain`: while high, transfers are dropped, beats that are still owed are accepted and thrown
    away, and no burst is issued but one that `arvalid` announces already. `idle`: nothing is owed.
    `beat`: a beat came this cycle.

    Timing: a transfer accepted in cycle 0 has `arvalid` in cycle `REQUEST_LATENCY`; a burst a
    cycle from there. A beat accepted from the bus in cycle 0 is with the client in cycle
    `RESPONSE_LATENCY`, a beat a cycle.
    """

    REQUEST_LATENCY = 2
    RESPONSE_LATENCY = 1

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            {
                "axi": Out(ReadSignature()),
                "fetch_request": In(stream.Signature(TRANSFER)),
                "fetch_data": Out(stream.Signature(READ_BEAT)),
                "load_request": In(stream.Signature(TRANSFER)),
                "load_data": Out(stream.Signature(READ_BEAT)),
                "drain": In(1),
                "idle": Out(1),
                "beat": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Request registers -> burst cutter -> AR register; R -> skid FIFO -> client."""
        m = Module()
        axi, burst = self.axi, self.config.max_burst_beats
        m.submodules.owners = owners = StreamFifo(1, self.config.outstanding_reads)
        m.submodules.beats = beats = StreamFifo(
            data.StructLayout({"beat": READ_BEAT, "last": 1}), 2
        )

        # Cycle 1: a transfer a client; the cutter takes a burst off the front of one of them.
        pending = [Signal(name=f"pending_{c.name.lower()}") for c in Client]
        transfers = [Signal(TRANSFER, name=f"transfer_{c.name.lower()}") for c in Client]
        client = Signal()
        m.d.comb += client.eq(~pending[Client.FETCH])
        current = Signal(TRANSFER)
        m.d.comb += current.eq(Mux(client, transfers[Client.LOAD], transfers[Client.FETCH]))
        to_boundary = Signal(range(burst + 1))
        position = Signal(range(max(burst, 2)))
        length = Signal(range(burst + 1))
        last_burst = Signal()
        offset = current.address[BEAT_BYTES_LOG2:]
        m.d.comb += [
            position.eq(offset & (burst - 1)),
            to_boundary.eq(burst - position),
            last_burst.eq(current.beats <= to_boundary),
            length.eq(Mux(last_burst, current.beats, to_boundary)),
        ]
        issue = Signal()
        m.d.comb += [
            issue.eq(
                (pending[Client.FETCH] | pending[Client.LOAD])
                & (~axi.arvalid | axi.arready)
                & owners.input.ready
                & ~self.drain
            ),
            owners.input.valid.eq(issue),
            owners.input.payload.eq(client),
        ]
        requests = (self.fetch_request, self.load_request)
        for who in Client:
            request, transfer = requests[who], transfers[who]
            mine = issue & (client == who)
            m.d.comb += request.ready.eq(self.drain | ~pending[who] | (mine & last_burst))
            with m.If(mine):
                m.d.sync += [
                    transfer.address.eq(transfer.address + (length << BEAT_BYTES_LOG2)),
                    transfer.beats.eq(transfer.beats - length),
                    pending[who].eq(~last_burst),
                ]
            with m.If(request.valid & request.ready):
                m.d.sync += [transfer.eq(request.payload), pending[who].eq(1)]
            with m.If(self.drain):
                m.d.sync += pending[who].eq(0)

        # Cycle 2: the burst is on the bus.
        with m.If(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        with m.If(issue):
            m.d.sync += [
                axi.arvalid.eq(1),
                axi.araddr.eq(current.address),
                axi.arlen.eq(length - 1),
            ]

        # Responses: a two-deep FIFO cuts the path from a client's ready to `rready`.
        m.d.comb += [
            beats.input.valid.eq(axi.rvalid),
            beats.input.payload.beat.data.eq(axi.rdata),
            beats.input.payload.beat.response.eq(axi.rresp),
            beats.input.payload.last.eq(axi.rlast),
            axi.rready.eq(beats.input.ready),
            self.beat.eq(axi.rvalid & axi.rready),
        ]
        outputs = (self.fetch_data, self.load_data)
        owner = owners.output.payload
        for who in Client:
            m.d.comb += [
                outputs[who].payload.eq(beats.output.payload.beat),
                outputs[who].valid.eq(beats.output.valid & (owner == who) & ~self.drain),
            ]
        m.d.comb += [
            beats.output.ready.eq(
                self.drain | Mux(owner, self.load_data.ready, self.fetch_data.ready)
            ),
            owners.output.ready.eq(
                beats.output.valid & beats.output.ready & beats.output.payload.last
            ),
            self.idle.eq((owners.level == 0) & ~axi.arvalid),
        ]
        return m
