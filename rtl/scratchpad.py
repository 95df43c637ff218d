# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the activation scratchpad (DianNao's NBin and NBout) in banks."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from rtl.layouts import read_port, scratchpad_write


class Scratchpad(wiring.Component):
    """Banks of words of ti int8, each bank with one write and tp read ports.

    A bank is `tp` block RAM copies, written together and read apart: copy p serves NBin's port p,
    and copy 0 serves the residual and the store where NBin leaves it free.

    Ports, all addresses in words over all banks; an address past the last bank is ignored:

    - `read[p]`: NBin. Sampled every cycle, never refused; data LATENCY cycles later.
    - `residual`: as `read`. In the bank that `read[0]` uses in the same cycle it loses, and
      `conflict` is high one cycle later.
    - `store`: a stream of addresses, accepted while copy 0 of the bank is free; `store_data`
      gives the words in order, LATENCY cycles after acceptance.
    - `write`: NBout. Sampled every cycle, never refused. A read of the word sees it from the
      next cycle on; a read in the same cycle sees the word before.
    - `load`: a stream of words, accepted while `write` leaves the bank free.
    """

    LATENCY = 2

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        word, address = unsigned(8 * config.ti), config.scratchpad_address_bits
        load = data.StructLayout({"address": unsigned(address), "data": word})
        super().__init__(
            {
                "read": In(read_port(address, word)).array(config.tp),
                "residual": In(read_port(address, word)),
                "write": In(scratchpad_write(config)),
                "load": In(stream.Signature(load)),
                "store": In(stream.Signature(unsigned(address))),
                "store_data": Out(wiring.Signature({"valid": Out(1), "data": Out(word)})),
                "conflict": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the banks, their arbitration, and a multiplexer a reader."""
        m = Module()
        config = self.config
        blocks, inside = config.ti // config.tn, config.bank_address_bits
        load = self.load.payload
        conflicts, load_free, store_free = [], [], []
        outputs: list[list[Signal]] = [[] for _ in range(config.tp)]

        for b in range(config.scratchpad_banks):

            def here(address: Signal, bank: int = b) -> object:
                return address[inside:] == bank if config.scratchpad_banks > 1 else 1

            # Cycle 0: arbitration. NBin, the residual, the store; NBout, the load.
            reads = [port.enable & here(port.address) for port in self.read]
            residual = self.residual.enable & here(self.residual.address)
            write = self.write.enable & here(self.write.address)
            load_here, store_here = here(load.address), here(self.store.payload)
            free = ~(reads[0] | residual)
            conflicts.append(reads[0] & residual)
            load_free.append(load_here & ~write)
            store_free.append(store_here & free)

            for p, port in enumerate(self.read):
                memory = Memory(shape=unsigned(8 * config.ti), depth=1 << inside, init=[])
                m.submodules[f"bank{b}_copy{p}"] = memory
                writer = memory.write_port(granularity=8 * config.tn)
                reader = memory.read_port()
                m.d.comb += [
                    writer.addr.eq(Mux(write, self.write.address, load.address)),
                    writer.data.eq(Mux(write, self.write.data, load.data)),
                    writer.en.eq(
                        Mux(
                            write,
                            self.write.mask,
                            (self.load.valid & load_here).replicate(blocks),
                        )
                    ),
                    reader.addr.eq(port.address),
                    reader.en.eq(reads[p]),
                ]
                if p == 0:
                    m.d.comb += reader.en.eq(reads[0] | residual | (self.store.valid & store_here))
                    with m.If(~reads[0]):
                        m.d.comb += reader.addr.eq(
                            Mux(residual, self.residual.address, self.store.payload)
                        )
                # Cycle 1: the word; it moves on into the block RAM's output register.
                output = Signal(8 * config.ti, name=f"output{b}_{p}", reset_less=True)
                m.d.sync += output.eq(reader.data)
                outputs[p].append(output)

        stored = Signal()
        m.d.comb += [
            self.load.ready.eq(Cat(load_free).any()),
            self.store.ready.eq(Cat(store_free).any()),
        ]
        m.d.sync += [
            self.conflict.eq(Cat(conflicts).any()),
            stored.eq(self.store.valid & self.store.ready),
            self.store_data.valid.eq(stored),
        ]
        # Cycle 2: each reader picks the bank that it asked.
        for address, word, copy in (
            *((port.address, port.data, p) for p, port in enumerate(self.read)),
            (self.residual.address, self.residual.data, 0),
            (self.store.payload, self.store_data.data, 0),
        ):
            bank = Signal(max(1, len(address) - inside), reset_less=True)
            bank_next = Signal.like(bank, reset_less=True)
            m.d.sync += [bank_next.eq(address[inside:]), bank.eq(bank_next)]
            m.d.comb += word.eq(Array(outputs[copy])[bank])
        return m
