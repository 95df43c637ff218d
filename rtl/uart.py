# SPDX-License-Identifier: Apache-2.0
"""The hardware room: a serial line, 8 data bits, no parity, one stop bit, lowest bit first."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import cdc, stream, wiring
from amaranth.lib.wiring import In, Out

_BITS = 8


class Transmitter(wiring.Component):
    """Bytes of `data` to `pin`, `divider` cycles a bit.

    A byte taken in cycle 0 has its start bit on the pin from cycle 1 on. The next is taken in the
    last cycle of the stop bit, so bytes may follow each other without a gap. `pin` rests high.
    """

    def __init__(self, divider: int) -> None:
        if divider < 2:
            raise ValueError(f"divider must be 2 or more, not {divider!r}")
        self.divider = divider
        super().__init__({"data": In(stream.Signature(_BITS)), "pin": Out(1, init=1)})

    def elaborate(self, platform: Any) -> Module:
        """Shift out start bit, data and stop bit; what follows them is high."""
        m = Module()
        line = Signal(_BITS + 1, init=-1)
        left = Signal(range(_BITS + 3))
        wait = Signal(range(self.divider))
        over = Signal()
        m.d.comb += [
            over.eq((left == 0) | ((left == 1) & (wait == 0))),
            self.data.ready.eq(over),
            self.pin.eq(line[0]),
        ]
        with m.If(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.Elif(left != 0):
            m.d.sync += [
                left.eq(left - 1),
                line.eq(Cat(line[1:], 1)),
                wait.eq(self.divider - 1),
            ]
        with m.If(self.data.valid & over):
            m.d.sync += [
                line.eq(Cat(0, self.data.payload)),
                left.eq(_BITS + 2),
                wait.eq(self.divider - 1),
            ]
        return m


class Receiver(wiring.Component):
    """Bytes from `pin`, which may change at any time.

    `valid` is high in one cycle for each byte, with `data`; nobody can make it wait. `error` is
    high with `valid` when the stop bit was missing. After that the line must be high before the
    next start bit counts. `busy` is high from a start bit to its stop bit.

    A bit is sampled in its middle, as counted from the falling edge of the start bit; a start bit
    that is high again in its middle was a spike and is forgotten. Tolerates 4 % of a difference in
    rates, less half a cycle in `divider`.
    """

    def __init__(self, divider: int) -> None:
        if divider < 4:
            raise ValueError(f"divider must be 4 or more, not {divider!r}")
        self.divider = divider
        super().__init__(
            {
                "pin": In(1, init=1),
                "valid": Out(1),
                "data": Out(_BITS),
                "error": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Put two registers against metastability, and count to each bit's middle."""
        m = Module()
        pin = Signal(init=1)
        m.submodules.synchronizer = cdc.FFSynchronizer(self.pin, pin, init=1)
        wait = Signal(range(self.divider + 1))
        left = Signal(range(_BITS + 1))
        shift = Signal(_BITS)
        m.d.sync += self.valid.eq(0)
        m.d.comb += self.data.eq(shift)
        with m.If(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.FSM() as fsm:
            with m.State("IDLE"):
                with m.If(~pin):
                    # The synchronizer and this state have cost nothing: all bits are as late.
                    m.d.sync += wait.eq(self.divider // 2 - 1)
                    m.next = "START"
            with m.State("START"):
                with m.If(wait == 0):
                    m.d.sync += [wait.eq(self.divider - 1), left.eq(_BITS)]
                    m.next = "DATA"
                    with m.If(pin):
                        m.next = "IDLE"
            with m.State("DATA"):
                with m.If(wait == 0):
                    m.d.sync += [wait.eq(self.divider - 1), left.eq(left - 1)]
                    with m.If(left == 0):
                        m.d.sync += [self.valid.eq(1), self.error.eq(~pin)]
                        m.next = "IDLE"
                        with m.If(~pin):
                            m.next = "BREAK"
                    with m.Else():
                        m.d.sync += shift.eq(Cat(shift[1:], pin))
            with m.State("BREAK"):
                with m.If(pin):
                    m.next = "IDLE"
        m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))
        return m
