# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the write half of the AXI4 master, used by the store engine."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import BEAT_BYTES
from rtl.axi import BEAT_BYTES_LOG2, DATA_BITS, Response, WriteSignature
from rtl.streams import TRANSFER, StreamFifo


class WriteMaster(wiring.Component):
    """Cut transfers into bursts, send their beats, count the responses.

    Bursts obey the same boundary as `ReadMaster`'s. `data` holds the beats of the transfers in
    order, without gaps between transfers. Up to `OUTSTANDING` bursts wait for their response.

    `idle`: no transfer is in work and every burst was answered. `slverr` and `decerr` are high in
    the cycle in which a bad response is accepted. `beat`: a beat was accepted by the bus.

    `drain`: while high, transfers are dropped, bursts already announced are completed with all
    byte strobes off, and their responses are awaited and not reported.

    Timing: a transfer accepted in cycle 0 has `awvalid` in cycle `REQUEST_LATENCY`; its first
    beat can be on the bus in cycle `DATA_LATENCY`; a beat a cycle, a burst without a gap.
    """

    OUTSTANDING = 8
    REQUEST_LATENCY = 2
    DATA_LATENCY = 3

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            {
                "axi": Out(WriteSignature()),
                "request": In(stream.Signature(TRANSFER)),
                "data": In(stream.Signature(DATA_BITS)),
                "drain": In(1),
                "idle": Out(1),
                "beat": Out(1),
                "slverr": Out(1),
                "decerr": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Request register -> burst cutter -> AW register and a FIFO of lengths -> W register."""
        m = Module()
        axi, burst = self.axi, self.config.max_burst_beats
        m.submodules.lengths = lengths = StreamFifo(range(burst + 1), self.OUTSTANDING)

        # Cycle 1: the cutter.
        pending, transfer = Signal(), Signal(TRANSFER)
        to_boundary = Signal(range(burst + 1))
        position = Signal(range(max(burst, 2)))
        length = Signal(range(burst + 1))
        last_burst, issue = Signal(), Signal()
        unanswered = Signal(range(self.OUTSTANDING + 1))
        offset = transfer.address[BEAT_BYTES_LOG2:]
        m.d.comb += [
            position.eq(offset & (burst - 1)),
            to_boundary.eq(burst - position),
            last_burst.eq(transfer.beats <= to_boundary),
            length.eq(Mux(last_burst, transfer.beats, to_boundary)),
            issue.eq(
                pending
                & (~axi.awvalid | axi.awready)
                & (unanswered != self.OUTSTANDING)
                & ~self.drain
            ),
            lengths.input.valid.eq(issue),
            lengths.input.payload.eq(length),
            self.request.ready.eq(self.drain | ~pending | (issue & last_burst)),
        ]
        with m.If(issue):
            m.d.sync += [
                transfer.address.eq(transfer.address + (length << BEAT_BYTES_LOG2)),
                transfer.beats.eq(transfer.beats - length),
                pending.eq(~last_burst),
            ]
        with m.If(self.request.valid & self.request.ready):
            m.d.sync += [transfer.eq(self.request.payload), pending.eq(1)]
        with m.If(self.drain):
            m.d.sync += pending.eq(0)

        # Cycle 2: the burst is announced.
        with m.If(axi.awready):
            m.d.sync += axi.awvalid.eq(0)
        with m.If(issue):
            m.d.sync += [
                axi.awvalid.eq(1),
                axi.awaddr.eq(transfer.address),
                axi.awlen.eq(length - 1),
            ]

        # Beats: `sent` counts those of the burst at the head of the FIFO of lengths.
        sent, last_beat, load_beat = Signal(range(max(burst, 2))), Signal(), Signal()
        m.d.comb += [
            last_beat.eq(sent == lengths.output.payload - 1),
            load_beat.eq(
                lengths.output.valid & (self.data.valid | self.drain) & (~axi.wvalid | axi.wready)
            ),
            self.data.ready.eq(self.drain | load_beat),
            lengths.output.ready.eq(load_beat & last_beat),
            self.beat.eq(axi.wvalid & axi.wready),
        ]
        with m.If(axi.wready):
            m.d.sync += axi.wvalid.eq(0)
        with m.If(load_beat):
            m.d.sync += [
                axi.wvalid.eq(1),
                axi.wdata.eq(self.data.payload),
                axi.wstrb.eq(Mux(self.drain, 0, (1 << BEAT_BYTES) - 1)),
                axi.wlast.eq(last_beat),
                sent.eq(Mux(last_beat, 0, sent + 1)),
            ]

        # Responses.
        answered = Signal()
        m.d.comb += [
            axi.bready.eq(1),
            answered.eq(axi.bvalid & (unanswered != 0)),
            self.slverr.eq(answered & (axi.bresp == Response.SLVERR) & ~self.drain),
            self.decerr.eq(answered & (axi.bresp == Response.DECERR) & ~self.drain),
            self.idle.eq(~pending & (unanswered == 0)),
        ]
        with m.If(issue & ~answered):
            m.d.sync += unanswered.eq(unanswered + 1)
        with m.If(answered & ~issue):
            m.d.sync += unanswered.eq(unanswered - 1)
        return m
