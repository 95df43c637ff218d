# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the load engine, DDR to scratchpad, SB, tap buffer and resampler tables."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import crc, data, stream, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch import resample
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import LoadTarget, Queue
from hwgen.arch.registers import BASE_COUNT, ErrorCode
from rtl.axi import ADDRESS_BITS, DATA_BITS
from rtl.dispatch import PAYLOADS
from rtl.layouts import INDEX_BITS, TAP, completion, error_report
from rtl.load_issuer import LoadIssuer
from rtl.resampler import SOURCE_ROW, Resampler
from rtl.streams import READ_BEAT, TRANSFER, StreamFifo, scratchpad_word
from rtl.unpacker import Unpacker, destination_bits, row_job


class LoadEngine(wiring.Component):
    """LOAD as `hwgen.arch.isa` defines it.

    `complete` is high in one cycle, after the last word was accepted by its memory. Errors:
    BAD_FIELD and ADDRESS_RANGE of the instruction, READ_SLVERR and READ_DECERR of its beats,
    DATA_CHECKSUM at its end. After an error the engine must be reset.

    Timing, without stalls and with L cycles from `arvalid` to the first beat on the bus: the
    first beat is taken LoadIssuer.REQUEST_LATENCY + ReadMaster.REQUEST_LATENCY + L +
    ReadMaster.RESPONSE_LATENCY cycles after the instruction is accepted. From the start of a
    row, in cycle 0, beats are taken from cycle 1 on, and word j is emitted one cycle after word
    j - 1 or after the last beat that it needs; the next row starts one cycle after the last of
    both. `complete` comes `EMIT_TO_COMPLETE` cycles after the last word is emitted, or
    `BEAT_TO_COMPLETE` after the last beat is taken. The next LOAD does not wait for it: its first
    row starts `RESTART_CYCLES` after another row of this one could have.
    """

    EMIT_TO_COMPLETE = Unpacker.WORD_LATENCY
    BEAT_TO_COMPLETE = 3
    RESTART_CYCLES = 2
    ROWS_AHEAD = 16

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            {
                "instruction": In(stream.Signature(PAYLOADS[Queue.LOAD])),
                "bases": In(ADDRESS_BITS).array(BASE_COUNT),
                "request": Out(stream.Signature(TRANSFER)),
                "data": In(stream.Signature(READ_BEAT)),
                "scratchpad": Out(stream.Signature(scratchpad_word(config))),
                "synapse": Out(
                    wiring.Signature(
                        {
                            "valid": Out(1),
                            "row": Out(config.synapse_address_bits),
                            "slot": Out(range(config.tn)),
                            "data": Out(8 * config.ti),
                        }
                    )
                ),
                "taps": Out(
                    wiring.Signature(
                        {
                            "valid": Out(1),
                            "address": Out(config.tap_address_bits),
                            "data": Out(TAP),
                        }
                    )
                ),
                "complete": Out(completion()),
                "error": Out(error_report()),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Issuer, unpacker, checksum, resampler, and the writer into the memories."""
        m = Module()
        m.submodules.issuer = issuer = LoadIssuer(self.config)
        m.submodules.unpacker = unpacker = Unpacker(self.config)
        wiring.connect(m, wiring.flipped(self.instruction), issuer.instruction)
        wiring.connect(m, issuer.request, wiring.flipped(self.request))
        m.d.comb += [b.eq(mine) for b, mine in zip(issuer.bases, self.bases, strict=True)]

        job = Signal(row_job(self.config), reset_less=True)
        rows_left = Signal(16, reset_less=True)
        destination = Signal(destination_bits(self.config), reset_less=True)
        resampler = self._resampler(m, issuer, unpacker, job)
        m.d.comb += [
            unpacker.job.eq(job),
            unpacker.destination.eq(destination),
            # The weakest error first: a later assignment wins.
            self.error.valid.eq(issuer.error.valid),
            self.error.code.eq(issuer.error.code),
            self.error.index.eq(issuer.error.index),
        ]
        first_row = Signal()
        m.submodules.checksum = check = crc.Processor(crc.catalog.CRC32_ETHERNET(DATA_BITS))
        accepted = self.data.valid & self.data.ready
        m.d.sync += [
            check.data.eq(self.data.payload.data),
            check.valid.eq(accepted),
            check.start.eq(first_row),
        ]
        # A job whose words are on their way to their memory, while the next one may be unpacked.
        closing = Signal(
            data.StructLayout(
                {"valid": 1, "bad": 1, "index": INDEX_BITS, "signals": len(Queue), "left": 8}
            )
        )
        leave = unpacker.words.valid & unpacker.words.ready
        over = closing.valid & (closing.left == 0)
        m.d.sync += closing.left.eq(closing.left - (closing.valid & leave))
        with m.If(over):
            m.d.sync += closing.valid.eq(0)
        with m.FSM():
            with m.State("IDLE"):
                self._take(m, issuer, job, rows_left, destination)
            with m.State("FIRST"):
                m.d.comb += first_row.eq(1)
                with m.If(job.error != ErrorCode.NONE):
                    with m.If(~closing.valid):  # the one before it completes first
                        self._report(m, job, job.error)
                        m.next = "STOPPED"
                with m.Else():
                    self._start_row(m, unpacker, destination, rows_left, job)
                    if resampler is not None:
                        m.d.comb += resampler.start.eq(job.box.resample)
                    m.next = "ROWS"
            with m.State("ROWS"):
                with m.If(unpacker.done):
                    with m.If(rows_left == 0):
                        m.next = "LAST"
                    with m.Else():
                        self._start_row(m, unpacker, destination, rows_left, job)
            with m.State("LAST"):
                with m.If(~closing.valid):
                    m.d.sync += [
                        closing.valid.eq(1),
                        closing.bad.eq(job.check & (check.crc != job.crc32)),
                        closing.index.eq(job.index),
                        closing.signals.eq(job.signals),
                        closing.left.eq(unpacker.under_way - leave),
                    ]
                    m.next = "IDLE"
                    self._take(m, issuer, job, rows_left, destination)
            with m.State("STOPPED"):
                pass
        with m.If(over & closing.bad):
            self._report(m, closing, ErrorCode.DATA_CHECKSUM)
        m.d.comb += self.complete.valid.eq(over & ~closing.bad)
        m.d.comb += [
            getattr(self.complete, f"signal_{q.name.lower()}").eq(closing.signals[q]) for q in Queue
        ]
        response = self.data.payload.response
        with m.If(accepted & response[1]):
            code = Mux(response[0], ErrorCode.READ_DECERR, ErrorCode.READ_SLVERR)
            self._report(m, job, code)
        if resampler is not None:
            with m.If(resampler.bad):
                self._report(m, job, ErrorCode.BAD_FIELD)
        self._write(m, unpacker, resampler, Mux(closing.valid & ~over, closing.index, job.index))
        return m

    def _resampler(
        self, m: Module, issuer: LoadIssuer, unpacker: Unpacker, job: Any
    ) -> Resampler | None:
        """Put the resampler, if there is one, between the bus and the unpacker; return it."""
        source = self.data.payload.data
        if not self.config.resampler_row_bytes:
            m.d.comb += [
                unpacker.beats.valid.eq(self.data.valid),
                unpacker.beats.payload.eq(source),
                self.data.ready.eq(unpacker.beats.ready),
            ]
            return None
        m.submodules.resampler = resampler = Resampler(self.config)
        m.submodules.source_rows = rows = StreamFifo(SOURCE_ROW, self.ROWS_AHEAD)
        wiring.connect(m, issuer.rows, rows.input)
        wiring.connect(m, rows.output, resampler.rows)
        wiring.connect(m, resampler.row_steps, issuer.row_steps)
        mine = job.box.resample
        m.d.comb += [
            resampler.box.eq(job.box),
            resampler.row_bytes.eq(job.row_bytes),
            resampler.row_start.eq(issuer.row_start),
            resampler.row_first.eq(issuer.row_first),
            resampler.row_count.eq(issuer.row_count),
            issuer.complete.eq(self.complete.valid),
            resampler.beats.valid.eq(self.data.valid & mine),
            resampler.beats.payload.eq(source),
            unpacker.beats.valid.eq(Mux(mine, resampler.output.valid, self.data.valid)),
            unpacker.beats.payload.eq(Mux(mine, resampler.output.payload, source)),
            resampler.output.ready.eq(mine & unpacker.beats.ready),
            self.data.ready.eq(Mux(mine, resampler.beats.ready, unpacker.beats.ready)),
        ]
        return resampler

    @staticmethod
    def _take(m: Module, issuer: LoadIssuer, job: Any, rows_left: Any, destination: Any) -> None:
        """Take the next job if there is one."""
        m.d.comb += issuer.job.ready.eq(1)
        with m.If(issuer.job.valid):
            m.d.sync += [
                job.eq(issuer.job.payload),
                rows_left.eq(issuer.job.payload.rows),
                destination.eq(issuer.job.payload.destination),
            ]
            m.next = "FIRST"

    def _report(self, m: Module, job: Any, code: Any) -> None:
        m.d.comb += [
            self.error.valid.eq(1),
            self.error.code.eq(code),
            self.error.index.eq(job.index),
        ]

    @staticmethod
    def _start_row(
        m: Module, unpacker: Unpacker, destination: Any, rows_left: Any, job: Any
    ) -> None:
        m.d.comb += unpacker.start.eq(1)
        m.d.sync += [
            destination.eq(destination + job.destination_pitch),
            rows_left.eq(rows_left - 1),
        ]

    def _write(
        self, m: Module, unpacker: Unpacker, resampler: Resampler | None, index: Any
    ) -> None:
        """Hand words to the memory that they are for; past its end is an error, never a wrap."""
        config, words = self.config, unpacker.words
        place, word = words.payload.destination, words.payload.data
        slot_bits = config.tn.bit_length() - 1
        outside = Signal()
        m.d.comb += [
            self.scratchpad.payload.address.eq(place),
            self.scratchpad.payload.data.eq(word),
            self.synapse.row.eq(place >> slot_bits),
            self.synapse.slot.eq(place),
            self.synapse.data.eq(word),
            self.taps.address.eq(place),
            self.taps.data.eq(word[: TAP.size]),
        ]
        with m.Switch(words.payload.target):
            with m.Case(LoadTarget.SCRATCHPAD):
                m.d.comb += [
                    outside.eq(place >= config.scratchpad_words),
                    self.scratchpad.valid.eq(words.valid & ~outside),
                    words.ready.eq(self.scratchpad.ready),
                ]
            with m.Case(LoadTarget.SYNAPSE):
                m.d.comb += [
                    outside.eq(place >= config.synapse_rows << slot_bits),
                    self.synapse.valid.eq(words.valid & ~outside),
                    words.ready.eq(1),
                ]
            if resampler is not None:
                with m.Case(LoadTarget.RESAMPLER):
                    m.d.comb += [
                        outside.eq(place >= resample.TABLE_WORDS),
                        resampler.write.valid.eq(words.valid & ~outside),
                        words.ready.eq(1),
                    ]
            with m.Default():  # TAP; other targets were refused by the issuer
                m.d.comb += [
                    outside.eq(place >= config.tap_entries),
                    self.taps.valid.eq(words.valid & ~outside),
                    words.ready.eq(1),
                ]
        if resampler is not None:
            m.d.comb += [
                resampler.write.address.eq(place),
                resampler.write.data.eq(word[:DATA_BITS]),
            ]
        with m.If(words.valid & outside):
            m.d.comb += [
                self.error.valid.eq(1),
                self.error.code.eq(ErrorCode.ADDRESS_RANGE),
                self.error.index.eq(index),
            ]
