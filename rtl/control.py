# SPDX-License-Identifier: Apache-2.0
"""The hardware room: starting, stopping, errors, watchdog, interrupt events and counters."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch.isa import BEAT_BYTES
from hwgen.arch.registers import BY_NAME, COUNTERS, QUEUE_NAMES, ErrorCode
from rtl.layouts import INDEX_BITS, error_report, struct_of

_DISPATCHER = QUEUE_NAMES.index("dispatcher")

#: Counter -> (signal of `Control` that it counts, what a count is worth).
COUNTED = {
    "CYCLES_TOTAL": ("active", 1),
    "CYCLES_COMPUTING": ("computing", 1),
    "STEPS": ("step", 1),
    "CYCLES_WAIT_LOAD": ("wait_load", 1),
    "CYCLES_WAIT_STORE": ("wait_store", 1),
    "CYCLES_LOADING": ("loading", 1),
    "CYCLES_STORING": ("storing", 1),
    "BYTES_READ": ("read_beat", BEAT_BYTES),
    "BYTES_WRITTEN": ("write_beat", BEAT_BYTES),
    "INSTRUCTIONS": ("dispatched", 1),
    "CYCLES_WAIT_BANK": ("wait_bank", 1),
}


class Control(wiring.Component):
    """The machine's life: IDLE, RUN, then END or STOP, and RESET from anywhere.

    - A start is taken when idle with a drained bus; the cycle after is the first of RUN. `halt`
      is low in RUN alone and holds the engines in reset; `drain` is its equal for the bus. `clear`
      is high in the cycle before RUN, and in RESET: what is known of the last run is forgotten.
    - END waits for instructions fetched beyond END to be drained; then DONE and its event. A bus
      that never delivers them is NO_PROGRESS of the dispatcher, at the instruction behind END.
    - An error that is reported in RUN counts in the cycle after, also if the run has just finished.
      The first one is kept; of several in one cycle, the first queue's. STOP waits for the bus to
      drain (at most WATCHDOG cycles without a beat, for a bus that never answers); then ERROR and
      its event.
    - A soft reset goes to RESET until the bus is drained, and forgets flags, error and counters.
      IRQ_STATUS keeps its events.

    CYCLES_TOTAL counts the cycles in which STATUS.running is 1: from the one after the write to
    CONTROL took effect to the last one before DONE or ERROR. Every other counter counts in these
    cycles only. When END is dispatched, or the last instruction completes if that is later, in
    cycle c of the run (the first is 0), CYCLES_TOTAL ends at c + `END_CYCLES`.

    The watchdog fires when for WATCHDOG cycles there was no step, no beat in either direction,
    and no instruction dispatched or completed.
    """

    END_CYCLES = 3

    def __init__(self) -> None:
        members: dict[str, Any] = {
            "start": In(1),
            "soft_reset": In(1),
            "watchdog": In(32),
            "status": Out(struct_of(BY_NAME["STATUS"].layout)),
            "error": Out(struct_of(BY_NAME["ERROR"].layout)),
            "error_instruction": Out(32),
            "irq_status_set": Out(struct_of(BY_NAME["IRQ_STATUS"].layout)),
            **{name.lower(): Out(32) for name in COUNTERS},
            "halt": Out(1, init=1),
            "clear": Out(1),
            "bus_idle": In(1),
            "finished": In(1),
            **{f"{name}_error": In(error_report()) for name in QUEUE_NAMES},
            "dispatcher_error_queue": In(2),
            "oldest_queue": In(2),
            "oldest_index": In(INDEX_BITS),
            "completed": In(1),
            **{event: In(1) for event, _ in COUNTED.values() if event != "active"},
        }
        self.active = Signal()
        super().__init__(members)

    def elaborate(self, platform: Any) -> Module:
        """Build a state machine, an error register, a watchdog and the counters."""
        m = Module()
        failed, code = Signal(), Signal(range(max(ErrorCode) + 1))
        queue, index = Signal(2), Signal(INDEX_BITS)
        expired = Signal()
        # The reports come out of the engines' comparisons: a register, before they stop anything.
        reported, kept_code = Signal(), Signal.like(code, reset_less=True)
        kept_queue = Signal.like(queue, reset_less=True)
        kept_index = Signal.like(index, reset_less=True)
        reports = [getattr(self, f"{name}_error") for name in QUEUE_NAMES]
        m.d.sync += reported.eq(Cat(report.valid for report in reports).any() & ~self.halt)
        for number, report in reversed(tuple(enumerate(reports))):
            where = self.dispatcher_error_queue if number == _DISPATCHER else number
            with m.If(report.valid):  # a later assignment wins
                m.d.sync += [
                    kept_code.eq(report.code),
                    kept_queue.eq(where),
                    kept_index.eq(report.index),
                ]
        m.d.comb += [
            failed.eq(reported | expired),
            code.eq(Mux(reported, kept_code, ErrorCode.NO_PROGRESS)),
            queue.eq(Mux(reported, kept_queue, self.oldest_queue)),
            index.eq(Mux(reported, kept_index, self.oldest_index)),
        ]

        done, error = Signal(), Signal()
        clear, keep = self.clear, Signal()
        with m.FSM() as fsm:
            with m.State("IDLE"):
                with m.If(self.start & self.bus_idle):
                    m.d.comb += clear.eq(1)
                    m.d.sync += self.halt.eq(0)
                    m.next = "RUN"
                self._obey_soft_reset(m)
            with m.State("RUN"):
                with m.If(failed):
                    m.d.comb += keep.eq(1)
                    m.d.sync += self.halt.eq(1)
                    m.next = "STOP"
                with m.Elif(self.finished):
                    m.d.sync += self.halt.eq(1)
                    m.next = "END"
                self._obey_soft_reset(m)
            with m.State("END"):
                with m.If(reported):
                    m.d.comb += keep.eq(1)
                    m.next = "STOP"
                with m.Elif(self.bus_idle):
                    m.d.comb += self.irq_status_set.done.eq(1)
                    m.d.sync += done.eq(1)
                    m.next = "IDLE"
                with m.Elif(expired):
                    m.d.comb += [
                        keep.eq(1),
                        code.eq(ErrorCode.NO_PROGRESS),
                        queue.eq(_DISPATCHER),
                        index.eq(self.instructions),
                    ]
                    m.next = "STOP"
                self._obey_soft_reset(m)
            with m.State("STOP"):
                with m.If(self.bus_idle | expired):
                    m.d.comb += self.irq_status_set.error.eq(1)
                    m.d.sync += error.eq(1)
                    m.next = "IDLE"
                self._obey_soft_reset(m)
            with m.State("RESET"):
                m.d.comb += clear.eq(1)
                with m.If(self.bus_idle):
                    m.next = "IDLE"
        with m.If(keep):
            m.d.sync += [
                self.error.code.eq(code),
                self.error.queue.eq(queue),
                self.error_instruction.eq(index),
            ]
        with m.If(clear):
            m.d.sync += [
                done.eq(0),
                error.eq(0),
                self.error.code.eq(ErrorCode.NONE),
                self.error.queue.eq(0),
                self.error_instruction.eq(0),
            ]
        idle, resetting = fsm.ongoing("IDLE"), fsm.ongoing("RESET")
        m.d.comb += [
            self.active.eq(~idle & ~resetting),
            self.status.idle.eq(idle & self.bus_idle),
            self.status.running.eq(self.active),
            self.status.done.eq(done),
            self.status.error.eq(error),
            self.status.resetting.eq(resetting),
        ]

        # Watchdog: the comparison is registered, which makes it a cycle late and quick.
        quiet = Signal(32)
        progress = Cat(
            self.step, self.read_beat, self.write_beat, self.dispatched, self.completed, failed
        ).any()
        with m.If(progress | clear):
            m.d.sync += [quiet.eq(0), expired.eq(0)]
        with m.Else():
            m.d.sync += [
                quiet.eq(quiet + ~expired),
                expired.eq((quiet >= self.watchdog) & self.watchdog.any()),
            ]

        for name, (event, worth) in COUNTED.items():
            counter, shift = getattr(self, name.lower()), worth.bit_length() - 1
            with m.If(clear):
                m.d.sync += counter.eq(0)
            with m.Elif(self.active & getattr(self, event)):
                m.d.sync += counter[shift:].eq(counter[shift:] + 1)
        return m

    def _obey_soft_reset(self, m: Module) -> None:
        """End a state with this: it goes before everything else the state wants."""
        with m.If(self.soft_reset):
            m.d.sync += self.halt.eq(1)
            m.next = "RESET"
