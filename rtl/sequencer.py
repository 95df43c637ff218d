# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the sequencer, which walks a COMPUTE's pixels and taps."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch import isa
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import Mode
from hwgen.arch.registers import ErrorCode
from rtl.layouts import ADDRESS_BITS, COMPUTE, INDEX_BITS, error_report, indexed

POINTER_BITS = 15  # 14 address bits and the carry of the longest list
POSITION_BITS = 18  # an int8 origin, 4095 strides of 15 and a tap's 63, signed
WRITE_ADDRESS_BITS = 17  # outputs do not wrap: the first one past 2^16 is refused
COUNT_BITS = isa.COMPUTE.by_name["output_width"].bits


def issue_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Return what the sequencer hands to the pipeline in a cycle.

    `fields` and `index` are the instruction's, and constant from its first parameter row to its
    last step.
    """
    return data.StructLayout(
        {
            "parameter": 1,  # this cycle reads a row of channel parameters ...
            "parameter_last": 1,  # ... and it is the last one
            "step": 1,  # this cycle is a step ...
            "first": 1,  # ... the first of its pixels
            "last": 1,  # ... the last of its pixels
            "done": 1,  # ... the last of the instruction
            "tap_pointer": POINTER_BITS,
            "synapse_pointer": POINTER_BITS,
            "slot": range(config.tn),
            "input_base": ADDRESS_BITS,
            "y": signed(POSITION_BITS),
            "x": signed(POSITION_BITS),
            "x_left": COUNT_BITS,
            "output_base": WRITE_ADDRESS_BITS,
            "residual_base": WRITE_ADDRESS_BITS,
            "fields": COMPUTE,
            "index": INDEX_BITS,
        }
    )


class Sequencer(wiring.Component):
    """Issue one step a cycle: y, then x (tp pixels at once), then taps. Adders, no multiplier.

    An instruction takes ``parameter_rows + pixels * max(tap_count, tp)`` cycles, where pixels =
    ``output_height * ceil(output_width / tp)``; where a pixel has fewer taps than tp, its idle
    cycles come first, so that NFU-3 has tp cycles for every hand-over. The next instruction is
    accepted while one runs, and follows in the cycle after the last step. The first pixel
    waits until `start_delay` cycles after the last step of the instruction before. An instruction
    accepted by an idle sequencer reads its parameters `ACCEPT_TO_PARAMETERS` cycles later.

    Ports: `instruction` (stream), `issue` (see `issue_layout`), `error` (one pulse; nothing is
    issued after it until reset), `stop` (an error was found elsewhere: issue nothing more).
    """

    ACCEPT_TO_PARAMETERS = 2

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            {
                "instruction": In(stream.Signature(indexed(COMPUTE))),
                "issue": Out(issue_layout(config)),
                "error": Out(error_report()),
                "stop": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the counters."""
        m = Module()
        config, tp, rows = self.config, self.config.tp, self.config.parameter_rows
        issue, tp_log2 = self.issue, (tp - 1).bit_length()

        waiting = Signal(self.instruction.payload.shape(), reset_less=True)
        waiting_valid, active, halted = Signal(), Signal(), Signal()
        current = Signal.like(waiting)
        fields, coming = current.fields, waiting.fields

        take, overflow = Signal(), Signal()
        m.d.comb += self.instruction.ready.eq(~waiting_valid)
        with m.If(self.instruction.valid & self.instruction.ready):
            m.d.sync += [waiting.eq(self.instruction.payload), waiting_valid.eq(1)]

        # Where the walk is. Each counter holds what is left after this one, or the next address.
        loading, row_left = Signal(), Signal(range(rows + 1))
        starting = Signal()
        idle_left, idle = Signal(range(max(tp, 2))), Signal(range(max(tp, 2)))
        taps_left, x_left, y_left = (Signal(COUNT_BITS, name=f"{a}_left") for a in "txy")
        tap_pointer, synapse_pointer = (
            Signal(POINTER_BITS, name=name, reset_less=True)
            for name in ("tap_pointer", "synapse_pointer")
        )
        slot = Signal(range(config.tn), reset_less=True)
        since_last = Signal(8, init=255)

        step, last, row_end, done, first = (
            Signal(name=name) for name in ("step", "last", "row_end", "done", "first")
        )
        go = active & ~halted & ~self.stop
        # Compared a cycle ahead: parameter rows come before the first step, so `fields` are there.
        waited = Signal()
        m.d.sync += waited.eq(since_last + 1 >= fields.start_delay)
        may_start = ~starting | waited
        m.d.comb += [
            step.eq(go & ~loading & may_start & (idle_left == 0)),
            last.eq(taps_left == 0),
            row_end.eq(x_left <= tp),
            done.eq(step & last & row_end & (y_left == 1)),
            take.eq((~active | done) & waiting_valid & ~halted & ~self.stop & ~overflow),
            issue.parameter.eq(go & loading),
            issue.parameter_last.eq(go & loading & (row_left == 0)),
            issue.step.eq(step),
            issue.first.eq(step & first),
            issue.last.eq(step & last),
            issue.done.eq(done),
            issue.tap_pointer.eq(tap_pointer),
            issue.synapse_pointer.eq(synapse_pointer),
            issue.slot.eq(slot),
            issue.x_left.eq(x_left),
            issue.fields.eq(fields),
            issue.index.eq(current.index),
        ]

        with m.If(done):
            m.d.sync += since_last.eq(1)
        with m.Elif(since_last != 255):
            m.d.sync += since_last.eq(since_last + 1)

        # Channel parameters, a row a cycle; then to the weights.
        with m.If(go & loading):
            m.d.sync += [
                row_left.eq(row_left - 1),
                loading.eq(row_left != 0),
                synapse_pointer.eq(Mux(row_left == 0, fields.weight_address, synapse_pointer + 1)),
            ]
        with m.If(go & ~loading & may_start):
            m.d.sync += starting.eq(0)
            with m.If(idle_left != 0):
                m.d.sync += idle_left.eq(idle_left - 1)

        # Taps. A depthwise row holds tn of them, a dense row one.
        row_of_slots = slot == config.tn - 1
        with m.If(step):
            m.d.sync += [
                first.eq(last),
                taps_left.eq(taps_left - 1),
                tap_pointer.eq(tap_pointer + 1),
                slot.eq(slot + 1),
            ]
            with m.If((fields.mode == Mode.DENSE) | row_of_slots):
                m.d.sync += synapse_pointer.eq(synapse_pointer + 1)
            with m.If(last):
                m.d.sync += [
                    idle_left.eq(idle),
                    taps_left.eq(fields.tap_count - 1),
                    tap_pointer.eq(fields.tap_address),
                    synapse_pointer.eq(fields.weight_address),
                    slot.eq(0),
                    x_left.eq(x_left - tp),
                ]
                with m.If(row_end):
                    m.d.sync += [x_left.eq(fields.output_width), y_left.eq(y_left - 1)]

        # Addresses and coordinates of pixel (y, x): one adder each, from here or the row's start.
        pixel_end = step & last
        for name, start, steps in (
            ("input", coming.input_start, "input"),
            ("output", coming.output_address, "output"),
            ("residual", coming.residual_address, "output"),
        ):
            bits = len(issue[f"{name}_base"])
            base = Signal(bits, name=f"{name}_base", reset_less=True)
            row = Signal(bits, name=f"{name}_row", reset_less=True)
            pixel_step, row_step = fields[f"{steps}_pixel_step"], fields[f"{steps}_row_step"]
            moved = Mux(row_end, row, base) + Mux(row_end, row_step, pixel_step << tp_log2)
            with m.If(pixel_end):
                m.d.sync += base.eq(moved)
                with m.If(row_end):
                    m.d.sync += row.eq(moved)
            with m.If(take):
                m.d.sync += [base.eq(start), row.eq(start)]
            m.d.comb += issue[f"{name}_base"].eq(base)
        y, x = (Signal(signed(POSITION_BITS), name=name, reset_less=True) for name in "yx")
        m.d.comb += [issue.y.eq(y), issue.x.eq(x)]
        with m.If(pixel_end):
            m.d.sync += x.eq(x + (fields.stride_x << tp_log2))
            with m.If(row_end):
                m.d.sync += [x.eq(fields.origin_x), y.eq(y + fields.stride_y)]

        # Refusals. Only what is used counts: a pointer past the end, a count of zero.
        uses_row = issue.parameter | (step & (fields.mode <= Mode.DEPTHWISE))
        m.d.comb += overflow.eq(
            (step & (tap_pointer >= config.tap_entries))
            | (uses_row & (synapse_pointer >= config.synapse_rows))
        )
        bad = (
            (coming.tap_count == 0)
            | (coming.output_height == 0)
            | (coming.output_width == 0)
            | (coming.lane_block >= config.ti // config.tn)
            | (
                (coming.resume | coming.hold)
                & (
                    (coming.mode != Mode.DENSE)
                    | (coming.output_height != 1)
                    | (coming.output_width > tp)
                )
            )
        )
        m.d.sync += self.error.valid.eq(0)
        with m.If(overflow):
            m.d.sync += [
                halted.eq(1),
                self.error.valid.eq(1),
                self.error.code.eq(ErrorCode.ADDRESS_RANGE),
                self.error.index.eq(current.index),
            ]

        # The next instruction.
        with m.If(done):
            m.d.sync += active.eq(0)
        with m.If(take):
            m.d.sync += [
                waiting_valid.eq(0),
                active.eq(~bad),
                current.eq(waiting),
                loading.eq(1),
                starting.eq(1),
                first.eq(1),
                row_left.eq(rows - 1),
                taps_left.eq(coming.tap_count - 1),
                x_left.eq(coming.output_width),
                y_left.eq(coming.output_height),
                tap_pointer.eq(coming.tap_address),
                synapse_pointer.eq(coming.synapse_address),
                slot.eq(0),
                x.eq(coming.origin_x),
                y.eq(coming.origin_y),
            ]
            if tp > 1:
                short = Mux(coming.tap_count < tp, tp - coming.tap_count, 0)
                m.d.sync += [idle.eq(short), idle_left.eq(short)]
            with m.If(bad):
                m.d.sync += [
                    halted.eq(1),
                    self.error.valid.eq(1),
                    self.error.code.eq(ErrorCode.BAD_FIELD),
                    self.error.index.eq(waiting.index),
                ]
        return m
