# SPDX-License-Identifier: Apache-2.0
"""The hardware room: a board without a processor: accelerator, memory and serial link in one clock.

`Soc` is all of it but clock and pins, and what is simulated. `Ecp5Board` puts a PLL, a reset and
the pins of a board around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import (
    Cat,
    ClockDomain,
    ClockSignal,
    Const,
    Instance,
    Module,
    ResetSignal,
    Signal,
)
from amaranth.lib import cdc, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.link import LinkConfig
from rtl.axi import LITE_MEMBERS
from rtl.bridge import Bridge
from rtl.emit import to_verilog
from rtl.memory import BlockMemory, connect_memory
from rtl.top import Accelerator
from rtl.uart import Receiver, Transmitter

SOC_NAME = "shears_soc"
BOARD_NAME = "shears_board"
LEDS = 8

#: VCO and phase detector of an ECP5's PLL (Lattice FPGA-DS-02012, sysCLOCK PLL timing), and the
#: largest divider.
_VCO_HZ = (400_000_000, 800_000_000)
_DETECTOR_HZ = (10_000_000, 400_000_000)
_DIVIDER_MOST = 128


class Soc(wiring.Component):
    """Accelerator, `BlockMemory` and `Bridge`; `serial_in` and `serial_out` are the line's pins.

    The first LEDs: a blink that shows the clock; a run in progress; STATUS.error; a packet on the
    line, and one that was refused (each for `SHOW_BITS` bits of cycles); the last one is lit when
    the design is out of reset.
    """

    BLINK_BITS = 25
    SHOW_BITS = 22

    def __init__(self, config: AcceleratorConfig, link: LinkConfig) -> None:
        self.config, self.link = config, link
        super().__init__(
            {"serial_in": In(1, init=1), "serial_out": Out(1, init=1), "led": Out(LEDS)}
        )

    def elaborate(self, platform: Any) -> Module:
        """Connect pins, bridge, accelerator and memory."""
        m = Module()
        m.submodules.accelerator = accelerator = Accelerator(self.config)
        m.submodules.memory = memory = BlockMemory(self.link.memory_bytes)
        m.submodules.bridge = bridge = Bridge(self.link)
        m.submodules.receiver = receiver = Receiver(self.link.divider)
        m.submodules.transmitter = transmitter = Transmitter(self.link.divider)
        connect_memory(m, accelerator, memory)
        wiring.connect(m, bridge.memory, memory.port)
        wiring.connect(m, bridge.send, transmitter.data)
        for name, member in LITE_MEMBERS.items():
            inner, outer = getattr(accelerator, f"s_axi_{name}"), getattr(bridge.axi, name)
            m.d.comb += inner.eq(outer) if member.flow == Out else outer.eq(inner)
        m.d.comb += [
            receiver.pin.eq(self.serial_in),
            self.serial_out.eq(transmitter.pin),
            bridge.received.valid.eq(receiver.valid),
            bridge.received.data.eq(receiver.data),
            bridge.received.error.eq(receiver.error),
            bridge.received.busy.eq(receiver.busy),
        ]
        blink = Signal(self.BLINK_BITS)
        m.d.sync += blink.eq(blink + 1)
        shown = []
        for name, event in (
            ("packet", bridge.packet),
            ("refused", bridge.packet & bridge.refused),
        ):
            left = Signal(self.SHOW_BITS, name=f"show_{name}")
            with m.If(event):
                m.d.sync += left.eq(-1)
            with m.Elif(left != 0):
                m.d.sync += left.eq(left - 1)
            shown.append(left != 0)
        lit = Signal()
        m.d.sync += lit.eq(1)
        m.d.comb += self.led.eq(
            Cat(blink[-1], bridge.running, bridge.failed, *shown, Const(0, LEDS - 6), lit)
        )
        return m


class SocTop(wiring.Component):
    """`Soc` in a clock domain of `aclk` and the active low, synchronous `aresetn`."""

    def __init__(self, config: AcceleratorConfig, link: LinkConfig) -> None:
        self.soc = Soc(config, link)
        super().__init__({"aclk": In(1), "aresetn": In(1), **dict(self.soc.signature.members)})

    def elaborate(self, platform: Any) -> Module:
        """Make the domain."""
        m = Module()
        m.domains.sync = ClockDomain()
        m.submodules.soc = self.soc
        m.d.comb += [
            ClockSignal("sync").eq(self.aclk),
            ResetSignal("sync").eq(~self.aresetn),
            self.soc.serial_in.eq(self.serial_in),
            self.serial_out.eq(self.soc.serial_out),
            self.led.eq(self.soc.led),
        ]
        return m


@dataclass(frozen=True)
class Ecp5Pll:
    """Dividers of an EHXPLLL: the VCO runs at `multiply` times the oscillator."""

    multiply: int
    divide: int


def find_pll(oscillator_hz: int, clock_hz: int) -> Ecp5Pll:
    """Choose the dividers that make exactly `clock_hz`, with the VCO nearest its range's middle.

    The oscillator goes to the phase detector undivided, and CLKOP, which is fed back, is as fast;
    the clock is CLKOS. So the detector runs as fast as it can.

    Raises
    ------
    ValueError
        When there are none, naming clocks near it that there are.
    """
    least, most = _DETECTOR_HZ
    if not least <= oscillator_hz <= most:
        raise ValueError(
            f"oscillator_hz must be {least} to {most} for an ECP5's PLL, not {oscillator_hz!r}"
        )
    clocks = {}
    middle = sum(_VCO_HZ) // 2
    for multiply in sorted(
        range(1, _DIVIDER_MOST + 1), key=lambda n: -abs(n * oscillator_hz - middle)
    ):
        vco = oscillator_hz * multiply
        if _VCO_HZ[0] <= vco <= _VCO_HZ[1]:
            for divide in range(1, _DIVIDER_MOST + 1):
                if vco % divide == 0:
                    clocks[vco // divide] = Ecp5Pll(multiply, divide)
    if clock_hz not in clocks:
        near = sorted(sorted(clocks, key=lambda hz: abs(hz - clock_hz))[:4])
        raise ValueError(
            f"accelerator_hz must be a clock that the PLL makes of {oscillator_hz} Hz, not "
            f"{clock_hz!r}; try one of {near}"
        )
    return clocks[clock_hz]


class Ecp5Board(wiring.Component):
    """`Soc` on an ECP5: `clock` is the oscillator's pin; the reset ends `RESET_CYCLES` after lock.

    `hold_high` is for a pin of the board that must not fall, as the ULX3S's wifi_gpio0.
    """

    RESET_CYCLES = 255

    def __init__(self, config: AcceleratorConfig, link: LinkConfig, oscillator_hz: int) -> None:
        self.soc = Soc(config, link)
        self.pll = find_pll(oscillator_hz, link.clock_hz)
        members = dict(self.soc.signature.members)
        super().__init__({"clock": In(1), "hold_high": Out(1), **members})

    def elaborate(self, platform: Any) -> Module:
        """PLL, reset, pins."""
        m = Module()
        m.domains.sync = ClockDomain()
        m.domains.reset = ClockDomain(reset_less=True)
        fed_back, made, locked, lock = Signal(), Signal(), Signal(), Signal()
        m.submodules.pll = Instance(
            "EHXPLLL",
            a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8",
            a_MFG_ENABLE_FILTEROPAMP="1",
            a_MFG_GMCREF_SEL="2",
            p_PLLRST_ENA="DISABLED",
            p_INTFB_WAKE="DISABLED",
            p_STDBY_ENABLE="DISABLED",
            p_DPHASE_SOURCE="DISABLED",
            p_OUTDIVIDER_MUXA="DIVA",
            p_OUTDIVIDER_MUXB="DIVB",
            p_CLKI_DIV=1,
            p_CLKFB_DIV=1,
            p_FEEDBK_PATH="CLKOP",
            p_CLKOP_ENABLE="ENABLED",
            p_CLKOP_DIV=self.pll.multiply,
            p_CLKOP_CPHASE=self.pll.multiply - 1,
            p_CLKOP_FPHASE=0,
            p_CLKOS_ENABLE="ENABLED",
            p_CLKOS_DIV=self.pll.divide,
            p_CLKOS_CPHASE=self.pll.divide - 1,
            p_CLKOS_FPHASE=0,
            i_CLKI=self.clock,
            i_CLKFB=fed_back,
            i_RST=Const(0, 1),
            i_STDBY=Const(0, 1),
            i_PHASESEL0=Const(0, 1),
            i_PHASESEL1=Const(0, 1),
            i_PHASEDIR=Const(0, 1),
            i_PHASESTEP=Const(0, 1),
            i_PHASELOADREG=Const(0, 1),
            i_PLLWAKESYNC=Const(0, 1),
            i_ENCLKOP=Const(0, 1),
            i_ENCLKOS=Const(0, 1),
            o_CLKOP=fed_back,
            o_CLKOS=made,
            o_LOCK=locked,
        )
        m.submodules.lock = cdc.FFSynchronizer(locked, lock, o_domain="reset")
        left = Signal(range(self.RESET_CYCLES + 1), init=self.RESET_CYCLES)
        reset = Signal(init=1)
        with m.If(~lock):
            m.d.reset += left.eq(self.RESET_CYCLES)
        with m.Elif(left != 0):
            m.d.reset += left.eq(left - 1)
        m.d.reset += reset.eq(left != 0)
        m.submodules.soc = self.soc
        m.d.comb += [
            ClockSignal("sync").eq(made),
            ClockSignal("reset").eq(made),
            ResetSignal("sync").eq(reset),
            self.hold_high.eq(1),
            self.soc.serial_in.eq(self.serial_in),
            self.serial_out.eq(self.soc.serial_out),
            self.led.eq(self.soc.led),
        ]
        return m


def emit_soc(config: AcceleratorConfig, link: LinkConfig) -> str:
    """Return the Verilog of `SocTop`: one file, top module `shears_soc`."""
    return to_verilog(SocTop(config, link), SOC_NAME, config, vars(link))


def emit_ecp5_board(config: AcceleratorConfig, link: LinkConfig, oscillator_hz: int) -> str:
    """Return the Verilog of `Ecp5Board`: one file, top module `shears_board`.

    Raises
    ------
    ValueError
        When the PLL can't make the clock.
    """
    board = Ecp5Board(config, link, oscillator_hz)
    return to_verilog(board, BOARD_NAME, config, {**vars(link), "oscillator_hz": oscillator_hz})
