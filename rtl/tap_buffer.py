# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the buffer of the tap lists."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from rtl.layouts import TAP, read_port


class TapBuffer(wiring.Component):
    """Taps, one a word.

    - `read`: sampled every cycle; the tap comes LATENCY cycles later, from a register.
    - `write`: sampled every cycle, never refused; a read of the tap sees it from the next cycle.
    """

    LATENCY = 2

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            {
                "read": In(read_port(config.tap_address_bits, TAP)),
                "write": In(
                    wiring.Signature(
                        {
                            "valid": Out(1),
                            "address": Out(config.tap_address_bits),
                            "data": Out(TAP),
                        }
                    )
                ),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build one memory and its output register."""
        m = Module()
        m.submodules.taps = memory = Memory(shape=TAP, depth=self.config.tap_entries, init=[])
        writer, reader = memory.write_port(), memory.read_port()
        output = Signal(TAP, reset_less=True)
        m.d.comb += [
            writer.addr.eq(self.write.address),
            writer.data.eq(self.write.data),
            writer.en.eq(self.write.valid),
            reader.addr.eq(self.read.address),
            reader.en.eq(self.read.enable),
            self.read.data.eq(output),
        ]
        m.d.sync += output.eq(reader.data)
        return m
