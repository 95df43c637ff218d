# SPDX-License-Identifier: Apache-2.0
"""The hardware room: a row's beats to scratchpad words, with lead, step, take and pad."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch import isa
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import BEAT_BYTES, Queue
from hwgen.arch.registers import ErrorCode
from rtl.axi import BEAT_BYTES_LOG2, DATA_BITS
from rtl.layouts import INDEX_BITS
from rtl.resampler import box_fields
from rtl.streams import BEAT_COUNT_BITS, StreamFifo

_BYTE_COUNT_BITS = isa.LOAD.by_name["row_bytes"].bits
# A position inside a row: row_bytes and words * step both fit 24 bits, plus sign and a lead.
_POSITION_BITS = _BYTE_COUNT_BITS + 2


def word_count_bits(config: AcceleratorConfig) -> int:
    """Bits that count the words of a row: a buffer load has one for each 8 or ti bytes."""
    return _BYTE_COUNT_BITS - BEAT_BYTES_LOG2 + 1


def destination_bits(config: AcceleratorConfig) -> int:
    """Bits of a destination in the target's units (words, SB slots, taps), with a carry."""
    return isa.LOAD.by_name["destination"].bits + (config.tn - 1).bit_length() + 1


def row_job(config: AcceleratorConfig) -> data.StructLayout:
    """Return what the data side needs to know of a LOAD, the same for all targets."""
    box = {"box": data.StructLayout(box_fields(config))} if config.resampler_row_bytes else {}
    return data.StructLayout(
        {
            "error": unsigned(max(ErrorCode).bit_length()),
            "index": INDEX_BITS,
            "signals": len(Queue),
            "target": 2,
            "check": 1,
            "crc32": 32,
            "row_bytes": _BYTE_COUNT_BITS,
            "rows": 16,
            "destination": destination_bits(config),
            "destination_pitch": 16,
            "words": word_count_bits(config),
            "lead": 8,
            "step": 8,
            "take": 8,
            "pad": 8,
            **box,
        }
    )


class Unpacker(wiring.Component):
    """Turns the beats of a row into words: word j is the stream's bytes from j * step on.

    The stream is `lead` pad bytes, the row's bytes, and pad bytes without end; of each word the
    first `take` lanes are filled from it and the others hold the pad. Beats go into a small ring
    of `slots`; a word is emitted when the bytes that it needs are there, and frees what lies in
    front of the next word. Beats that no word needs are swallowed.

    `start` (with `job` steady from then to one cycle after `done`) begins a row; `done` is high
    from the cycle after the row's last beat and last word until the next `start`. `under_way`
    counts words that were emitted and have not left, perhaps of several jobs; each says its target.
    Words leave through a FIFO and the pipeline in front of it never stalls: a word is emitted when
    the FIFO has room for all that are under way.

    Timing: a beat and a word a cycle where step and take allow. A word is emitted the cycle after
    its last beat was taken at the earliest, and is on `words` `WORD_LATENCY` cycles after that
    beat was taken.
    """

    FIFO_DEPTH = 8
    WORD_LATENCY = 5

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        # A word covers ti / 8 + 1 beats at worst, and one more is accepted meanwhile.
        self.slots = 1 << (config.ti // BEAT_BYTES + 1).bit_length()
        self.word = data.StructLayout(
            {"target": 2, "destination": destination_bits(config), "data": 8 * config.ti}
        )
        super().__init__(
            {
                "job": In(row_job(config)),
                "start": In(1),
                "destination": In(destination_bits(config)),
                "beats": In(stream.Signature(DATA_BITS)),
                "words": Out(stream.Signature(self.word)),
                "done": Out(1),
                "under_way": Out(range(self.FIFO_DEPTH + 1)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Control counters, the ring, and three stages: beats, bytes, pad."""
        m = Module()
        config, job = self.config, self.job
        ti = config.ti
        ring = Array(Signal(DATA_BITS, name=f"slot{i}", reset_less=True) for i in range(self.slots))

        # Control. With q the row byte under lane 0: lacking = q + take - bytes here - 1 is
        # negative when the word's bytes are here; crowd = beats held from byte q's on - slots is
        # negative when another beat may come.
        lacking, crowd = Signal(signed(_POSITION_BITS)), Signal(signed(_POSITION_BITS))
        position, remaining = Signal(signed(_POSITION_BITS)), Signal(signed(_POSITION_BITS))
        beats_left, words_left = Signal(BEAT_COUNT_BITS), Signal(word_count_bits(config))
        no_beats, no_words = Signal(init=1), Signal(init=1)
        fill, destination = Signal(range(self.slots)), Signal(destination_bits(config))
        under_way = self.under_way
        accept, emit = Signal(), Signal()
        m.d.comb += [
            emit.eq(~no_words & (lacking[-1] | no_beats) & (under_way != self.FIFO_DEPTH)),
            self.beats.ready.eq(~no_beats & (crowd[-1] | no_words)),
            accept.eq(self.beats.valid & self.beats.ready),
            self.done.eq(no_beats & no_words),
        ]
        moved = Signal(signed(10))
        m.d.comb += moved.eq(Mux(emit, job.step, 0) - Mux(accept, BEAT_BYTES, 0))
        passed = (position[:BEAT_BYTES_LOG2] + job.step) >> BEAT_BYTES_LOG2
        m.d.sync += [
            lacking.eq(lacking + moved),
            crowd.eq(crowd + accept - Mux(emit, passed, 0)),
        ]
        with m.If(accept):
            m.d.sync += [
                ring[fill].eq(self.beats.payload),
                fill.eq(fill + 1),
                beats_left.eq(beats_left - 1),
                no_beats.eq(beats_left == 1),
            ]
        with m.If(emit):
            m.d.sync += [
                position.eq(position + job.step),
                remaining.eq(remaining - job.step),
                destination.eq(destination + 1),
                words_left.eq(words_left - 1),
                no_words.eq(words_left == 1),
            ]
        with m.If(self.start):
            m.d.sync += [
                lacking.eq(job.take - 1 - job.lead),
                crowd.eq(((job.lead + BEAT_BYTES - 1) >> BEAT_BYTES_LOG2) - self.slots),
                position.eq(-job.lead),
                remaining.eq(job.row_bytes + job.lead),
                fill.eq(0),
                destination.eq(self.destination),
                beats_left.eq((job.row_bytes + BEAT_BYTES - 1) >> BEAT_BYTES_LOG2),
                words_left.eq(job.words),
                no_beats.eq(0),
                no_words.eq(0),
            ]

        # Stage 1: the beats that the word covers; which lanes are the row's.
        covered = ti // BEAT_BYTES + 1
        valid1, valid2, valid3 = Signal(), Signal(), Signal()
        where = [
            Signal(destination_bits(config), name=f"where{i}", reset_less=True) for i in (1, 2, 3)
        ]
        beats1 = Signal(covered * DATA_BITS, reset_less=True)
        byte1 = Signal(BEAT_BYTES_LOG2, reset_less=True)
        left1, right1 = (
            Signal(range(ti + 1), reset_less=True),
            Signal(range(ti + 1), reset_less=True),
        )
        slot = position[BEAT_BYTES_LOG2 : BEAT_BYTES_LOG2 + self.slots.bit_length() - 1]
        before = Signal(8)  # of a position in front of the row, which is a lead away at most
        m.d.comb += before.eq(-position)
        m.d.sync += [
            valid1.eq(emit),
            where[0].eq(destination),
            beats1.eq(Cat(ring[(slot + i)[: len(slot)]] for i in range(covered))),
            byte1.eq(position[:BEAT_BYTES_LOG2]),
            left1.eq(Mux(position[-1], Mux(before > ti, ti, before), 0)),
            right1.eq(Mux(remaining[-1], 0, Mux(remaining < job.take, remaining, job.take))),
        ]
        # Stage 2: the bytes.
        word2 = Signal(data.ArrayLayout(8, ti), reset_less=True)
        mask2 = Signal(ti, reset_less=True)
        m.d.sync += [
            valid2.eq(valid1),
            where[1].eq(where[0]),
            word2.eq(beats1.bit_select(byte1 << 3, 8 * ti)),
            mask2.eq(Cat((left1 <= i) & (right1 > i) for i in range(ti))),
        ]
        # Stage 3: the pad.
        word3 = Signal(data.ArrayLayout(8, ti), reset_less=True)
        target3 = Signal(2, reset_less=True)
        m.d.sync += [
            valid3.eq(valid2),
            where[2].eq(where[1]),
            target3.eq(job.target),
            *(word3[i].eq(Mux(mask2[i], word2[i], job.pad)) for i in range(ti)),
        ]
        m.submodules.fifo = fifo = StreamFifo(self.word, self.FIFO_DEPTH)
        wiring.connect(m, fifo.output, wiring.flipped(self.words))
        leave = self.words.valid & self.words.ready
        m.d.comb += [
            fifo.input.valid.eq(valid3),
            fifo.input.payload.target.eq(target3),
            fifo.input.payload.destination.eq(where[2]),
            fifo.input.payload.data.eq(word3),
        ]
        m.d.sync += under_way.eq(under_way + emit - leave)
        return m
