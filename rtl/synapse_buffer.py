# SPDX-License-Identifier: Apache-2.0
"""The hardware room: SB, the synapse buffer."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from rtl.layouts import read_port, synapse_row


class SynapseBuffer(wiring.Component):
    """Rows of tn slots of ti int8, read a row and written a slot at a time.

    - `read`: sampled every cycle; the row comes LATENCY cycles later, from a register.
    - `write`: sampled every cycle, never refused; a read of the row sees it from the next cycle.
    """

    LATENCY = 2

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            {
                "read": In(read_port(config.synapse_address_bits, synapse_row(config))),
                "write": In(
                    wiring.Signature(
                        {
                            "valid": Out(1),
                            "row": Out(config.synapse_address_bits),
                            "slot": Out(range(config.tn)),
                            "data": Out(8 * config.ti),
                        }
                    )
                ),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build one memory a slot, so that writing a slot needs no mask."""
        m = Module()
        for n in range(self.config.tn):
            memory = Memory(
                shape=unsigned(8 * self.config.ti), depth=self.config.synapse_rows, init=[]
            )
            m.submodules[f"slot{n}"] = memory
            writer, reader = memory.write_port(), memory.read_port()
            output = Signal(8 * self.config.ti, name=f"output{n}", reset_less=True)
            m.d.comb += [
                writer.addr.eq(self.write.row),
                writer.data.eq(self.write.data),
                writer.en.eq(self.write.valid & (self.write.slot == n)),
                reader.addr.eq(self.read.address),
                reader.en.eq(self.read.enable),
                self.read.data[n].eq(output),
            ]
            m.d.sync += output.eq(reader.data)
        return m
