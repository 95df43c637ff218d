# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the AXI4-Lite register file, derived from `hwgen.arch.registers`."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import ISA_VERSION
from hwgen.arch.registers import REGISTERS, Access, Register
from rtl.axi import LITE_ADDRESS_BITS, LiteSignature, Response
from rtl.layouts import struct_of

_WORD_BITS = 32


def constants(config: AcceleratorConfig) -> dict[str, int]:
    """Return the registers whose value the configuration fixes."""
    digest = config.digest()
    return {
        "VERSION": ISA_VERSION,
        "DIGEST_LOW": digest & 0xFFFFFFFF,
        "DIGEST_HIGH": digest >> 32,
        **{r.name: r.reset for r in REGISTERS if r.name == "ID"},
    }


class Registers(wiring.Component):
    """AXI4-Lite slave over the register table.

    Each register is a port by its lower-case name, laid out as the table says:

    - READ: an input that is sampled when read (registers that `constants` names have no port);
    - READ_WRITE: an output that holds what was written;
    - WRITE_PULSE: an output whose fields are high for one cycle when a 1 is written to them;
    - WRITE_CLEAR: the output holds the bits, the input `<name>_set` sets them. Setting wins
      over clearing in the same cycle.

    Byte strobes are honoured, also by pulses and clears. Writing a read-only register changes
    nothing and answers OKAY; an address that holds no register answers SLVERR, and reads 0. Write
    address and write data may come in either order. Bits 1:0 of an address are ignored.

    Timing: a write takes effect in the second cycle after both halves came; read data follow the
    address by `READ_LATENCY` cycles. One read and one write are in work at a time.
    """

    READ_LATENCY = 2

    def __init__(self, config: AcceleratorConfig) -> None:
        self.constants = constants(config)
        members: dict[str, Any] = {"axi": In(LiteSignature())}
        for register in REGISTERS:
            name, shape = register.name.lower(), struct_of(register.layout)
            if register.access is Access.READ:
                if register.name not in self.constants:
                    members[name] = In(shape)
            elif register.access is Access.READ_WRITE:
                members[name] = Out(shape, init=register.layout.unpack(register.reset))
            else:
                members[name] = Out(shape)
            if register.access is Access.WRITE_CLEAR:
                members[f"{name}_set"] = In(shape)
        super().__init__(members)

    def _value(self, register: Register) -> Value:
        """Return what reading a register returns."""
        if register.access is Access.WRITE_PULSE:
            return Const(0, _WORD_BITS)
        if register.name in self.constants:
            return Const(self.constants[register.name], _WORD_BITS)
        return Value.cast(getattr(self, register.name.lower()))

    def elaborate(self, platform: Any) -> Module:
        """Two independent one-deep machines, for reads and for writes."""
        m = Module()
        self._read(m)
        self._write(m)
        return m

    def _read(self, m: Module) -> None:
        axi = self.axi
        address, looking = Signal(LITE_ADDRESS_BITS), Signal()
        m.d.comb += axi.arready.eq(~looking & ~axi.rvalid)
        with m.If(axi.arvalid & axi.arready):
            m.d.sync += [address.eq(axi.araddr), looking.eq(1)]
        with m.If(looking):
            m.d.sync += [looking.eq(0), axi.rvalid.eq(1)]
            with m.Switch(address[2:]):
                for register in REGISTERS:
                    with m.Case(register.offset // 4):
                        m.d.sync += [axi.rdata.eq(self._value(register)), axi.rresp.eq(0)]
                with m.Default():
                    m.d.sync += [axi.rdata.eq(0), axi.rresp.eq(Response.SLVERR)]
        with m.If(axi.rvalid & axi.rready):
            m.d.sync += axi.rvalid.eq(0)

    def _write(self, m: Module) -> None:
        axi = self.axi
        address, has_address = Signal(LITE_ADDRESS_BITS), Signal()
        word, strobes, has_word = Signal(_WORD_BITS), Signal(_WORD_BITS // 8), Signal()
        act = Signal()
        m.d.comb += [
            axi.awready.eq(~has_address),
            axi.wready.eq(~has_word),
            act.eq(has_address & has_word & ~axi.bvalid),
        ]
        with m.If(axi.awvalid & axi.awready):
            m.d.sync += [address.eq(axi.awaddr), has_address.eq(1)]
        with m.If(axi.wvalid & axi.wready):
            m.d.sync += [word.eq(axi.wdata), strobes.eq(axi.wstrb), has_word.eq(1)]
        with m.If(axi.bvalid & axi.bready):
            m.d.sync += axi.bvalid.eq(0)
        mask = Signal(_WORD_BITS)
        m.d.comb += mask.eq(Cat(strobe.replicate(8) for strobe in strobes))
        with m.If(act):
            m.d.sync += [has_address.eq(0), has_word.eq(0), axi.bvalid.eq(1)]
            with m.Switch(address[2:]):
                for register in REGISTERS:
                    with m.Case(register.offset // 4):
                        m.d.sync += axi.bresp.eq(Response.OKAY)
                with m.Default():
                    m.d.sync += axi.bresp.eq(Response.SLVERR)
        for register in REGISTERS:
            if register.access is Access.READ:
                continue
            chosen = Signal(name=f"write_{register.name.lower()}")
            m.d.comb += chosen.eq(act & (address[2:] == register.offset // 4))
            value = Value.cast(getattr(self, register.name.lower()))
            if register.access is Access.READ_WRITE:
                with m.If(chosen):
                    m.d.sync += value.eq((value & ~mask) | (word & mask))
            elif register.access is Access.WRITE_PULSE:
                m.d.comb += value.eq(Mux(chosen, word & mask, 0))
            else:
                setter = Value.cast(getattr(self, f"{register.name.lower()}_set"))
                m.d.sync += value.eq((value & ~Mux(chosen, word & mask, 0)) | setter)
