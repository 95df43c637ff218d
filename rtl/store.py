# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the store engine, scratchpad to DDR."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import BEAT_BYTES, Queue
from hwgen.arch.registers import BASE_COUNT, ErrorCode
from rtl.axi import ADDRESS_BITS, BEAT_BYTES_LOG2, DATA_BITS
from rtl.dispatch import PAYLOADS
from rtl.layouts import completion, error_report
from rtl.streams import TRANSFER, StreamFifo


class StoreEngine(wiring.Component):
    """STORE as `hwgen.arch.isa` defines it.

    `complete` is high in one cycle, after the memory has answered every burst. Errors: BAD_FIELD
    and ADDRESS_RANGE of the instruction, WRITE_SLVERR and WRITE_DECERR of a response. After an
    error the engine must be reset.

    Words are read from the scratchpad while it is free, as many ahead as the FIFO of
    `FIFO_DEPTH` words takes, and go out lowest byte first.

    Timing, while the scratchpad is free: an instruction accepted in cycle 0 has its first beat
    on the bus in cycle `FIRST_BEAT_LATENCY`; then a beat a cycle, across rows too, as long as
    WriteMaster.OUTSTANDING bursts are enough. `complete` comes `COMPLETE_LATENCY` cycle after
    the last response.
    """

    REQUEST_LATENCY = 3
    FIRST_BEAT_LATENCY = 8
    COMPLETE_LATENCY = 1
    FIFO_DEPTH = 8

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            {
                "instruction": In(stream.Signature(PAYLOADS[Queue.STORE])),
                "bases": In(ADDRESS_BITS).array(BASE_COUNT),
                "scratchpad": Out(stream.Signature(config.scratchpad_address_bits)),
                "word": In(wiring.Signature({"valid": Out(1), "data": Out(8 * config.ti)})),
                "request": Out(stream.Signature(TRANSFER)),
                "data": Out(stream.Signature(DATA_BITS)),
                "bus_idle": In(1),
                "slverr": In(1),
                "decerr": In(1),
                "complete": Out(completion()),
                "error": Out(error_report()),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """IDLE: take it; ADDRESS: add the base; CHECK; ROWS: transfers and words; FLUSH."""
        m = Module()
        instruction = Signal(PAYLOADS[Queue.STORE], reset_less=True)
        f = instruction.fields
        base = Signal(ADDRESS_BITS, reset_less=True)
        address = Signal(ADDRESS_BITS + 1, reset_less=True)
        limit = Signal(ADDRESS_BITS + 1, reset_less=True)
        bad = Signal(reset_less=True)
        word_beats_log2 = (self.config.word_bytes // BEAT_BYTES).bit_length() - 1
        row_beats = f.words_per_row << word_beats_log2
        # Both sides walk the rows: transfers to the bus, and addresses to the scratchpad.
        rows_to_ask, rows_to_read = Signal(16), Signal(16)
        row_source, source = Signal(18), Signal(18)
        words_left = Signal(16)
        under_way = Signal(range(self.FIFO_DEPTH + 1))
        outside, row_outside = Signal(), Signal()
        m.d.comb += [
            self.error.index.eq(instruction.index),
            self.request.payload.address.eq(address),
            self.request.payload.beats.eq(row_beats),
            self.scratchpad.payload.eq(source),
            row_outside.eq(address > limit),
            outside.eq(source >= self.config.scratchpad_words),
        ]
        for q in Queue:
            name = f"signal_{q.name.lower()}"
            m.d.comb += getattr(self.complete, name).eq(f[name])
        read = Signal()
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.instruction.ready.eq(1)
                m.d.sync += [
                    instruction.eq(self.instruction.payload),
                    base.eq(Array(self.bases)[self.instruction.payload.fields.base]),
                ]
                with m.If(self.instruction.valid):
                    m.next = "ADDRESS"
            with m.State("ADDRESS"):
                low = BEAT_BYTES_LOG2
                m.d.sync += [
                    address.eq(base + f.offset_bytes),
                    limit.eq((1 << ADDRESS_BITS) - (row_beats << BEAT_BYTES_LOG2)),
                    bad.eq(
                        (f.rows == 0)
                        | (f.words_per_row == 0)
                        | f.offset_bytes[:low].any()
                        | f.pitch_bytes[:low].any()
                        | base[:low].any()
                    ),
                    rows_to_read.eq(f.rows),
                    words_left.eq(f.words_per_row),
                    row_source.eq(f.source + f.source_pitch),
                    source.eq(f.source),
                ]
                m.next = "CHECK"
            with m.State("CHECK"):
                m.d.sync += rows_to_ask.eq(f.rows)
                m.next = "ROWS"
                with m.If(bad):
                    self._fail(m, ErrorCode.BAD_FIELD)
            with m.State("ROWS"):
                m.d.comb += [
                    self.request.valid.eq((rows_to_ask != 0) & ~row_outside),
                    self.scratchpad.valid.eq(
                        (rows_to_read != 0) & ~outside & (under_way != self.FIFO_DEPTH)
                    ),
                    read.eq(self.scratchpad.valid & self.scratchpad.ready),
                ]
                with m.If(self.request.valid & self.request.ready):
                    m.d.sync += [
                        address.eq(address + f.pitch_bytes),
                        rows_to_ask.eq(rows_to_ask - 1),
                    ]
                with m.If(read):
                    m.d.sync += [source.eq(source + 1), words_left.eq(words_left - 1)]
                    with m.If(words_left == 1):
                        m.d.sync += [
                            source.eq(row_source),
                            row_source.eq(row_source + f.source_pitch),
                            words_left.eq(f.words_per_row),
                            rows_to_read.eq(rows_to_read - 1),
                        ]
                with m.If(((rows_to_ask != 0) & row_outside) | ((rows_to_read != 0) & outside)):
                    self._fail(m, ErrorCode.ADDRESS_RANGE)
                with m.Elif((rows_to_ask == 0) & (rows_to_read == 0) & (under_way == 0)):
                    m.next = "FLUSH"
            with m.State("FLUSH"):
                with m.If(self.bus_idle):
                    m.d.comb += self.complete.valid.eq(1)
                    m.next = "IDLE"
            with m.State("STOPPED"):
                pass
        with m.If(self.slverr | self.decerr):
            m.d.comb += [
                self.error.valid.eq(1),
                self.error.code.eq(
                    Mux(self.decerr, ErrorCode.WRITE_DECERR, ErrorCode.WRITE_SLVERR)
                ),
            ]
        self._serialize(m, under_way, read, word_beats_log2)
        return m

    def _fail(self, m: Module, code: ErrorCode) -> None:
        m.d.comb += [self.error.valid.eq(1), self.error.code.eq(code)]
        m.next = "STOPPED"

    def _serialize(self, m: Module, under_way: Signal, read: Signal, word_beats_log2: int) -> None:
        """Words come at a fixed latency into a FIFO that has room for them; beats leave it."""
        m.submodules.fifo = fifo = StreamFifo(8 * self.config.ti, self.FIFO_DEPTH)
        which = Signal(word_beats_log2) if word_beats_log2 else None
        last = which.all() if which is not None else 1
        beat = fifo.output.payload
        if which is not None:
            beat = beat.word_select(which, DATA_BITS)
            with m.If(self.data.valid & self.data.ready):
                m.d.sync += which.eq(which + 1)
        m.d.comb += [
            fifo.input.valid.eq(self.word.valid),
            fifo.input.payload.eq(self.word.data),
            self.data.valid.eq(fifo.output.valid),
            self.data.payload.eq(beat),
            fifo.output.ready.eq(self.data.ready & last),
        ]
        m.d.sync += under_way.eq(under_way + read - (fifo.output.valid & fifo.output.ready))
