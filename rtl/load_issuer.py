# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the front half of the load engine, which checks LOADs and asks for rows."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch import isa, resample
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import BEAT_BYTES, LoadTarget, Queue
from hwgen.arch.registers import BASE_COUNT, ErrorCode
from rtl.axi import ADDRESS_BITS, BEAT_BYTES_LOG2
from rtl.dispatch import PAYLOADS
from rtl.layouts import error_report
from rtl.resampler import SOURCE_ROW, STEP, STEP_COUNT_BITS
from rtl.streams import BEAT_COUNT_BITS, TRANSFER, StreamFifo
from rtl.unpacker import row_job


class LoadIssuer(wiring.Component):
    """Front half of the load engine: checks a LOAD, asks for its rows, passes a job on.

    It runs ahead of the data: up to `JOBS` instructions may have rows asked for. What is wrong
    with an instruction travels with its job, so that errors are raised in program order; only a
    row past the end of the address space is raised here, and row steps that make another number of
    rows than the instruction says.

    A resampled LOAD's source rows follow its row steps, which come on `row_steps` after
    `row_start`; each is asked for and announced on `rows`. It waits until tables that a LOAD before
    it fills are complete: `complete` counts LOADs that are.

    Timing: an instruction accepted in cycle 0 has its first row on `request` in cycle
    `REQUEST_LATENCY`; a row a cycle. A resampled one has it in cycle `RESAMPLE_LATENCY`, and a row
    every two cycles.
    """

    JOBS = 4
    REQUEST_LATENCY = 3
    RESAMPLE_LATENCY = 7

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        resampling = {
            "row_start": Out(1),
            "row_first": Out(range(resample.STEPS)),
            "row_count": Out(STEP_COUNT_BITS),
            "row_steps": In(stream.Signature(STEP)),
            "rows": Out(stream.Signature(SOURCE_ROW)),
            "complete": In(1),
        }
        super().__init__(
            {
                "instruction": In(stream.Signature(PAYLOADS[Queue.LOAD])),
                "bases": In(ADDRESS_BITS).array(BASE_COUNT),
                "request": Out(stream.Signature(TRANSFER)),
                "job": Out(stream.Signature(row_job(config))),
                "error": Out(error_report()),
                **(resampling if config.resampler_row_bytes else {}),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """IDLE: take it; ADDRESS: add the base; CHECK: pass the job; ROWS: one a cycle."""
        m = Module()
        instruction = Signal(PAYLOADS[Queue.LOAD], reset_less=True)
        f = instruction.fields
        base = Signal(ADDRESS_BITS, reset_less=True)
        address = Signal(ADDRESS_BITS + 1, reset_less=True)
        row_beats = Signal(BEAT_COUNT_BITS, reset_less=True)
        limit = Signal(ADDRESS_BITS + 1, reset_less=True)
        rows_left = Signal(16, reset_less=True)
        bad = Signal(reset_less=True)
        begin = base + f.offset_bytes
        m.submodules.jobs = jobs = StreamFifo(row_job(self.config), self.JOBS)
        wiring.connect(m, jobs.output, wiring.flipped(self.job))
        self._describe(m, instruction, bad, address, jobs.input.payload)
        m.d.comb += [
            self.request.payload.address.eq(address),
            self.request.payload.beats.eq(row_beats),
            self.error.code.eq(ErrorCode.ADDRESS_RANGE),
            self.error.index.eq(instruction.index),
        ]
        filling = Signal()
        if self.config.resampler_row_bytes:
            filling = self._filling(m, f, jobs.input)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.instruction.ready.eq(1)
                chosen = self.instruction.payload.fields.base
                m.d.sync += [
                    instruction.eq(self.instruction.payload),
                    base.eq(Array(self.bases)[chosen]),
                ]
                with m.If(self.instruction.valid):
                    m.next = "ADDRESS"
            with m.State("ADDRESS"):
                m.d.sync += [
                    address.eq(begin),
                    row_beats.eq((f.row_bytes + BEAT_BYTES - 1) >> BEAT_BYTES_LOG2),
                    rows_left.eq(f.rows),
                    bad.eq(self._is_bad(f, base, begin)),
                ]
                m.next = "CHECK"
            with m.State("CHECK"):
                m.d.sync += limit.eq((1 << ADDRESS_BITS) - (row_beats << BEAT_BYTES_LOG2))
                m.d.comb += jobs.input.valid.eq(~(f.resample & filling))
                with m.If(jobs.input.valid & jobs.input.ready):
                    m.next = "ROWS"
                    if self.config.resampler_row_bytes:
                        with m.If(f.resample):
                            m.next = "FRAME"
                    with m.If(bad):
                        m.next = "BAD"
            if self.config.resampler_row_bytes:
                self._resample(m, f, address, rows_left)
            with m.State("ROWS"):
                m.d.comb += [
                    self.error.valid.eq(address > limit),
                    self.request.valid.eq(~self.error.valid),
                ]
                with m.If(self.request.valid & self.request.ready):
                    m.d.sync += [
                        address.eq(address + f.pitch_bytes),
                        rows_left.eq(rows_left - 1),
                    ]
                    with m.If(rows_left == 1):
                        m.next = "IDLE"
                with m.If(self.error.valid):
                    m.next = "BAD"
            with m.State("BAD"):
                pass  # the error, here or behind the jobs before it, stops the run
        return m

    def _filling(self, m: Module, f: Any, job: Any) -> Signal:
        """Return whether a LOAD that fills tables may not be complete."""
        filling, open_jobs = Signal(), Signal(range(self.JOBS + 4))
        pushed = job.valid & job.ready
        m.d.sync += open_jobs.eq(open_jobs + pushed - self.complete)
        with m.If(open_jobs == 0):
            m.d.sync += filling.eq(0)
        with m.If(pushed & (f.target == LoadTarget.RESAMPLER)):
            m.d.sync += filling.eq(1)
        return filling

    def _resample(
        self,
        m: Module,
        f: Any,
        address: Signal,
        rows_left: Signal,
    ) -> None:
        """FRAME, BACK: where its rows are; PICK: a step; ASK: for its row."""
        # The pointer's next row, the one that it is at, and the one before.
        rows = [Signal(ADDRESS_BITS + 1, name=f"row{i}", reset_less=True) for i in range(3)]
        here = Signal(ADDRESS_BITS + 1, reset_less=True)
        beats = Signal(BEAT_COUNT_BITS, reset_less=True)
        steps_left = Signal(STEP_COUNT_BITS, reset_less=True)
        step, row = self.row_steps.payload, Signal(SOURCE_ROW, reset_less=True)
        limit = (1 << ADDRESS_BITS) - (beats << BEAT_BYTES_LOG2)
        wrong, outside = Signal(), Signal()
        last = BEAT_BYTES - 1
        m.d.comb += [
            self.row_first.eq(f.first_step),
            self.row_count.eq(f.row_steps),
            self.rows.payload.eq(row),
        ]
        with m.State("FRAME"):
            m.d.sync += [
                rows[0].eq(address),
                rows[1].eq(address - f.pitch_bytes),
                beats.eq((address[:BEAT_BYTES_LOG2] + f.source_bytes + last) >> BEAT_BYTES_LOG2),
                steps_left.eq(f.row_steps),
            ]
            m.d.comb += self.row_start.eq(1)
            m.next = "BACK"
        with m.State("BACK"):
            m.d.sync += rows[2].eq(rows[1] - f.pitch_bytes)
            m.next = "PICK"
        with m.State("PICK"):
            at = Mux(
                step.advance,
                Mux(step.previous, rows[1], rows[0]),
                Mux(step.previous, rows[2], rows[1]),
            )
            m.d.comb += [
                self.row_steps.ready.eq(steps_left != 0),
                # A step behind the last row's, or rows without one.
                wrong.eq((steps_left == 0) != (rows_left == 0)),
            ]
            m.d.sync += [here.eq(at), row.weight.eq(step.weight), row.last.eq(step.last)]
            with m.If(wrong):
                m.d.comb += [self.error.valid.eq(1), self.error.code.eq(ErrorCode.BAD_FIELD)]
                m.next = "BAD"
            with m.Elif(steps_left == 0):
                m.next = "IDLE"
            with m.Elif(self.row_steps.valid):
                m.d.sync += [steps_left.eq(steps_left - 1), rows_left.eq(rows_left - step.last)]
                with m.If(step.advance):
                    m.d.sync += [
                        rows[0].eq(rows[0] + f.pitch_bytes),
                        Cat(rows[1:]).eq(Cat(rows)),
                    ]
                m.next = "ASK"
        with m.State("ASK"):
            m.d.comb += [
                outside.eq(here > limit),
                self.error.valid.eq(outside),
                self.request.payload.address.eq(here & ~last),
                self.request.payload.beats.eq(beats),
                self.request.valid.eq(~outside & self.rows.ready),
                self.rows.valid.eq(self.request.valid & self.request.ready),
            ]
            with m.If(outside):
                m.next = "BAD"
            with m.Elif(self.rows.valid):
                m.next = "PICK"

    def _is_bad(self, f: Any, base: Any, begin: Any) -> Any:
        """Whether a count is zero, or a size or an alignment is not allowed."""
        low, longest = BEAT_BYTES_LOG2, self.config.resampler_row_bytes
        row = self.config.synapse_row_bytes
        words = (
            (f.words_per_row == 0)
            | (f.step_bytes == 0)
            | (f.take_bytes == 0)
            | (f.take_bytes > self.config.ti)
        )
        box = f.resample & (
            (f.target != LoadTarget.SCRATCHPAD)
            | f.check
            | (f.channels == 0)
            | (f.channels > resample.CHANNELS_MOST)
            | (f.source_bytes == 0)
            | (begin[:low] + f.source_bytes > longest)
            | (f.row_steps == 0)
            | (f.first_step + f.row_steps > resample.STEPS)
            | (f.column_steps == 0)
            | (f.column_steps > resample.STEPS)
        )
        return (
            (f.rows == 0)
            | (f.row_bytes == 0)
            | (~f.resample & (f.offset_bytes[:low].any() | base[:low].any()))
            | f.pitch_bytes[:low].any()
            | (box if longest else f.resample | (f.target == LoadTarget.RESAMPLER))
            | ((f.target == LoadTarget.SCRATCHPAD) & words)
            | ((f.target != LoadTarget.SCRATCHPAD) & (f.rows != 1))
            | ((f.target == LoadTarget.SYNAPSE) & f.row_bytes[: row.bit_length() - 1].any())
            | (
                ((f.target == LoadTarget.TAP) | (f.target == LoadTarget.RESAMPLER))
                & f.row_bytes[:low].any()
            )
        )

    def _describe(
        self, m: Module, instruction: Any, bad: Signal, address: Signal, job: Any
    ) -> None:
        """Describe a buffer load as a row of dense words: of ti bytes for SB, of 8 for taps."""
        f, config = instruction.fields, self.config
        m.d.comb += [
            job.error.eq(Mux(bad, ErrorCode.BAD_FIELD, ErrorCode.NONE)),
            job.index.eq(instruction.index),
            job.signals.eq(Cat(f[f"signal_{q.name.lower()}"] for q in Queue)),
            *(job[name].eq(f[name]) for name in ("target", "check", "crc32", "row_bytes", "rows")),
            job.destination.eq(f.destination),
            job.destination_pitch.eq(f.destination_pitch),
            job.words.eq(f.words_per_row),
            job.lead.eq(f.lead_bytes),
            job.step.eq(f.step_bytes),
            job.take.eq(f.take_bytes),
            job.pad.eq(f.pad_value),
        ]
        with m.If(f.target != LoadTarget.SCRATCHPAD):
            unit = Mux(f.target == LoadTarget.SYNAPSE, config.ti, isa.TAP_BYTES)
            m.d.comb += [job.lead.eq(0), job.step.eq(unit), job.take.eq(unit)]
        with m.If(f.target == LoadTarget.SYNAPSE):
            m.d.comb += [
                job.words.eq(f.row_bytes >> (config.ti.bit_length() - 1)),
                job.destination.eq(f.destination << (config.tn.bit_length() - 1)),
            ]
        with m.If((f.target == LoadTarget.TAP) | (f.target == LoadTarget.RESAMPLER)):
            m.d.comb += job.words.eq(f.row_bytes >> BEAT_BYTES_LOG2)
        if config.resampler_row_bytes:
            skip, last = address[:BEAT_BYTES_LOG2], BEAT_BYTES - 1
            m.d.comb += [
                *(
                    job.box[name].eq(f[name])
                    for name in (
                        "resample",
                        "channels",
                        "source_bytes",
                        "row_steps",
                        "column_steps",
                    )
                ),
                job.box.skip.eq(skip),
                job.box.source_beats.eq((skip + f.source_bytes + last) >> BEAT_BYTES_LOG2),
            ]
