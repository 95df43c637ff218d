# SPDX-License-Identifier: Apache-2.0
"""The hardware room: scratchpad addresses of a step's input words and of a pixel's output word."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from rtl.layouts import ADDRESS_BITS, INDEX_BITS, TAP
from rtl.pipeline import Pipeline
from rtl.sequencer import POSITION_BITS, WRITE_ADDRESS_BITS, issue_layout
from rtl.tap_buffer import TapBuffer


class InputAddresses(wiring.Component):
    """Where each of tp pixels finds the word of a step, and whether it is inside the input.

    Ports: `issue` is sampled every cycle, and `tap` TapBuffer.LATENCY later; `address`, `enable`
    (a pixel and tap inside the input) and `out_of_range` (inside, yet past the scratchpad; not
    enabled) follow LATENCY after `issue`.
    """

    LATENCY = TapBuffer.LATENCY + 2

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            {
                "issue": In(issue_layout(config)),
                "tap": In(TAP),
                "address": Out(data.ArrayLayout(ADDRESS_BITS, config.tp)),
                "enable": Out(config.tp),
                "out_of_range": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build an adder for the address and one a coordinate for each pixel."""
        m = Module()
        # Flip-flops: a shift register's output is late, and comparisons follow.
        at = Pipeline(m, shift_registers=False).at
        issue, words = self.issue, self.config.scratchpad_words
        fields = issue.fields
        step, y = Signal(), Signal(signed(POSITION_BITS))
        height, width = Signal(12), Signal(12)
        m.d.comb += [
            step.eq(issue.step),
            y.eq(issue.y),
            height.eq(fields.input_height),
            width.eq(fields.input_width),
        ]
        iy = Signal(signed(POSITION_BITS), reset_less=True)
        iy_inside = Signal()
        m.d.sync += iy.eq(at(y, 2) + self.tap.dy)
        m.d.comb += iy_inside.eq((iy >= 0) & (iy < at(height, 3)))
        past = Signal(self.config.tp)
        for p in range(self.config.tp):

            def register(name: str, shape: object, pixel: int = p) -> Signal:
                return Signal(shape, name=f"{name}_{pixel}", reset_less=True)

            base, x = register("base", ADDRESS_BITS), register("x", signed(POSITION_BITS))
            exists = register("exists", 1)
            address = register("address", ADDRESS_BITS)
            ix = register("ix", signed(POSITION_BITS))
            # Cycle 0: pixel p's own base. The tap comes a cycle later.
            m.d.sync += [
                base.eq(issue.input_base + _times(fields.input_pixel_step, p)),
                x.eq(issue.x + _times(fields.stride_x, p)),
                exists.eq(issue.x_left > p),
            ]
            # Cycle 2: add the tap.
            m.d.sync += [
                address.eq(at(base, 1) + self.tap.offset),
                ix.eq(at(x, 1) + self.tap.dx),
            ]
            # Cycle 3: is it there?
            inside = (
                at(step, 3, control=True)
                & at(exists, 2)
                & iy_inside
                & (ix >= 0)
                & (ix < at(width, 3))
            )
            m.d.sync += [
                self.enable[p].eq(inside & (address < words)),
                past[p].eq(inside & (address >= words)),
                self.address[p].eq(address),
            ]
        m.d.comb += self.out_of_range.eq(past.any())
        return m


def _times(value: Signal, factor: int) -> object:
    """Return a signal times 0 to 3, without a multiplier."""
    return (value << 1) + value if factor == 3 else value << (factor - 1) if factor else 0


class OutputAddresses(wiring.Component):
    """Where the words of a pixel group go: after `issue.last`, one pixel a cycle, tp of them.

    `word` carries what NFU-3 needs of the instruction, for pixel p LATENCY + p cycles after the
    step with `last`. `valid` pixels exist and are not held; `done` marks the instruction's last
    cycle here. `out_of_range` (with `word`): the output or residual address is past the scratchpad.
    """

    LATENCY = 1

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        issue = issue_layout(config)
        names = (
            "residual", "lane_block", "residual_zero_point", "zero_point", "lo", "hi",
            "signal_load", "signal_compute", "signal_store",
        )  # fmt: skip
        self.copied = names
        super().__init__(
            {
                "issue": In(issue),
                "word": Out(
                    data.StructLayout(
                        {
                            "valid": 1,
                            "done": 1,
                            "output": WRITE_ADDRESS_BITS,
                            "source": WRITE_ADDRESS_BITS,
                            "index": INDEX_BITS,
                            **{name: issue["fields"].shape[name].shape for name in names},
                        }
                    )
                ),
                "out_of_range": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build two adders that step through the pixels."""
        m = Module()
        tp, word, issue = self.config.tp, self.word, self.issue
        left = Signal(range(tp + 1))
        done = Signal()
        pixel_step = Signal(ADDRESS_BITS, reset_less=True)
        exist = Signal(tp)
        with m.If(issue.last):
            m.d.sync += [
                left.eq(tp),
                done.eq(issue.done),
                *(exist[p].eq((issue.x_left > p) & ~issue.fields.hold) for p in range(tp)),
                pixel_step.eq(issue.fields.output_pixel_step),
                word.output.eq(issue.output_base),
                word.source.eq(issue.residual_base),
                word.index.eq(issue.index),
                *(word[name].eq(issue.fields[name]) for name in self.copied),
            ]
        with m.Elif(left != 0):
            m.d.sync += [
                left.eq(left - 1),
                exist.eq(exist >> 1),
                word.output.eq(word.output + pixel_step),
                word.source.eq(word.source + pixel_step),
            ]
        words = self.config.scratchpad_words
        past = (word.output >= words) | (word.residual & (word.source >= words))
        m.d.comb += [
            word.valid.eq(exist[0] & (left != 0)),
            word.done.eq(done & (left == 1)),
            self.out_of_range.eq(word.valid & past),
        ]
        return m
