# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the activation scratchpad (DianNao's NBin and NBout) in banks."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from rtl.layouts import read_port, scratchpad_write


class Scratchpad(wiring.Component):
    """Banks of words of ti int8, each bank in `scratchpad_slices` interleaved block RAMs.

    Word a of a bank lies in its slice a modulo their number. A slice has one write and one read
    port. Neighbouring pixels lie in different slices, so tp of them are read at once without a
    second copy of anything.

    Ports, all addresses in words over all banks; an address past the last bank is ignored:

    - `read[p]`: NBin. Sampled every cycle; data LATENCY cycles later. Of two in one slice the
      later one loses, and `clash` is high one cycle later.
    - `residual`: as `read`. In a bank that NBin uses in the same cycle it loses, and `conflict` is
      high one cycle later.
    - `store`: a stream of addresses, accepted while the slice is not read; `store_data` gives the
      words in order, LATENCY cycles after acceptance.
    - `write`: NBout. Sampled every cycle, never refused. A read of the word sees it from the
      next cycle on; a read in the same cycle sees the word before.
    - `load`: a stream of words, accepted while `write` leaves the slice free.
    """

    LATENCY = 3

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
                "clash": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the slices, their arbitration, and a multiplexer a reader."""
        m = Module()
        config = self.config
        blocks, slices, banks = (
            config.ti // config.tn,
            config.scratchpad_slices,
            config.scratchpad_banks,
        )
        low, inside = (slices - 1).bit_length(), config.bank_address_bits
        load = self.load.payload
        conflicts, clashes, load_free, store_free = [], [], [], []
        outputs: list[Signal] = []

        for b in range(banks):

            def in_bank(address: Signal, bank: int = b) -> Value:
                return address[inside:] == bank if banks > 1 else Const(1)

            wants = [port.enable & in_bank(port.address) for port in self.read]
            wants_residual = self.residual.enable & in_bank(self.residual.address)
            conflicts.append(Cat(wants).any() & wants_residual)

            for s in range(slices):

                def here(address: Signal, bank: Value, number: int = s) -> Value:
                    return bank & (address[:low] == number) if low else bank

                # Cycle 0: arbitration. NBin, the residual, the store; NBout, the load.
                reads = [
                    here(port.address, want) for port, want in zip(self.read, wants, strict=True)
                ]
                residual = here(self.residual.address, wants_residual)
                write = here(self.write.address, self.write.enable & in_bank(self.write.address))
                load_here = here(load.address, in_bank(load.address))
                store_here = here(self.store.payload, in_bank(self.store.payload))
                busy = Signal(name=f"busy{b}_{s}")
                m.d.comb += busy.eq(Cat(reads).any() | residual)
                clashes += [reads[p] & reads[q] for p in range(config.tp) for q in range(p)]
                load_free.append(load_here & ~write)
                store_free.append(store_here & ~busy)

                memory = Memory(shape=unsigned(8 * config.ti), depth=1 << (inside - low), init=[])
                m.submodules[f"bank{b}_slice{s}"] = memory
                writer = memory.write_port(granularity=8 * config.tn)
                reader = memory.read_port()
                loads = (self.load.valid & load_here).replicate(blocks)
                m.d.comb += [
                    writer.addr.eq(Mux(write, self.write.address, load.address)[low:]),
                    writer.data.eq(Mux(write, self.write.data, load.data)),
                    writer.en.eq(Mux(write, self.write.mask, loads)),
                    reader.en.eq(busy | (self.store.valid & store_here)),
                    reader.addr.eq(self.store.payload[low:]),
                ]
                with m.If(residual):
                    m.d.comb += reader.addr.eq(self.residual.address[low:])
                for port, mine in reversed(list(zip(self.read, reads, strict=True))):
                    with m.If(mine):
                        m.d.comb += reader.addr.eq(port.address[low:])
                # Cycle 1: the word; it moves on into the block RAM's output register.
                output = Signal(8 * config.ti, name=f"output{b}_{s}", reset_less=True)
                m.d.sync += output.eq(reader.data)
                outputs.append(output)

        stored, stored_next = Signal(), Signal()
        m.d.comb += [
            self.load.ready.eq(Cat(load_free).any()),
            self.store.ready.eq(Cat(store_free).any()),
        ]
        m.d.sync += [
            self.conflict.eq(Cat(conflicts).any()),
            self.clash.eq(Cat(clashes).any()),
            stored.eq(self.store.valid & self.store.ready),
            stored_next.eq(stored),
            self.store_data.valid.eq(stored_next),
        ]
        # Cycle 2: each reader picks the slice that it asked, into a register of its own.
        for name, address, word in (
            *((f"read{p}", port.address, port.data) for p, port in enumerate(self.read)),
            ("residual", self.residual.address, self.residual.data),
            ("store", self.store.payload, self.store_data.data),
        ):
            which = Cat(address[:low], address[inside:])
            chosen = Signal(max(1, len(which)), name=f"{name}_slice", reset_less=True)
            chosen_next = Signal.like(chosen, name=f"{name}_slice_next", reset_less=True)
            picked = Signal(8 * config.ti, name=f"{name}_word", reset_less=True)
            m.d.sync += [
                chosen_next.eq(which),
                chosen.eq(chosen_next),
                picked.eq(Array(outputs)[chosen]),
            ]
            m.d.comb += word.eq(picked)
        return m
