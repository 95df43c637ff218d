# SPDX-License-Identifier: Apache-2.0
"""The hardware room: a record of each instruction: start, end and what it waited for."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

from amaranth.hdl import Cat, Module, ResetInserter, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import Queue
from hwgen.arch.trace import TRACE_RECORD, WAIT_BITS
from rtl.dispatch import Gate
from rtl.layouts import INDEX_BITS, struct_of
from rtl.streams import StreamFifo

RECORD = struct_of(TRACE_RECORD)
WAITS = tuple(f"wait_{q.name.lower()}" for q in Queue)
#: What is known of an instruction when it starts.
STARTED = data.StructLayout({name: RECORD[name].shape for name in ("start", "index", *WAITS)})
CYCLE_BITS = TRACE_RECORD.by_name["start"].bits


def queue_events() -> wiring.Signature:
    """Return what the trace sees of a queue, in every cycle.

    `missing` has a bit for each queue whose token the head waits for, `started` is high when the
    engine takes the head, whose index is `index`; `complete` ends the oldest that started.
    """
    return wiring.Signature(
        {
            "started": Out(1),
            "index": Out(INDEX_BITS),
            "missing": Out(len(Queue)),
            "complete": Out(1),
        }
    )


class Trace(wiring.Component):
    """Record every instruction of a window of the program, and show the records.

    An instruction leaves a record (`hwgen.arch.trace.TRACE_RECORD`) when it completes, if its index
    is `first` or one of the ``trace_entries - 1`` after it. Records lie in order of completion;
    of those of one cycle the compute queue's comes first, then the load queue's.
    `count` is how many there are. `dropped` counts what completed with an index behind
    the window. It counts too what found the record before it still waiting to be written, which
    cannot happen while a COMPUTE ends at most every second cycle, and a LOAD and a STORE at most
    every fourth; the engines are slower than that.

    Everything is sampled in the same cycle, `cycle` too, which is the stamp of what happens
    in it. An instruction completes in a later cycle than it starts, and at most `Gate.RUNNING`
    of a queue have started and not completed. A record is in the buffer, and counted,
    `WRITE_CYCLES` after its completion at most. `first` must not change during a run.

    `record` shows record number `address`, `LATENCY` cycles after the address. `clear` forgets the
    records and what has started, a cycle later; the machine begins much later than that.
    Nothing here has an output that the machine looks at.
    """

    LATENCY = 2
    WRITE_CYCLES = 9

    def __init__(self, config: AcceleratorConfig) -> None:
        self.entries = config.trace_entries
        super().__init__(
            {
                "clear": In(1),
                "cycle": In(CYCLE_BITS),
                "first": In(INDEX_BITS),
                **{q.name.lower(): In(queue_events()) for q in Queue},
                "count": Out(range(self.entries + 1)),
                "dropped": Out(INDEX_BITS),
                "address": In(range(self.entries)),
                "record": Out(RECORD),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Put all but the reading under a registered reset."""
        outer, m = Module(), Module()
        cleared = Signal()
        outer.d.sync += cleared.eq(self.clear)
        outer.submodules.recorder = ResetInserter(cleared)(m)
        outer.submodules.records = memory = Memory(shape=RECORD, depth=self.entries, init=[])
        writer, reader = memory.write_port(), memory.read_port()
        output = Signal(RECORD, reset_less=True)
        outer.d.comb += [reader.addr.eq(self.address), self.record.eq(output)]
        outer.d.sync += output.eq(reader.data)

        # Cycle 1: events and their stamp. Cycle 2: what ended, one record a queue.
        cycle = Signal(CYCLE_BITS, reset_less=True)
        m.d.sync += cycle.eq(self.cycle)
        ended = {q: self._follow(m, q, cycle) for q in Queue}

        # Cycle 3 and later: one at a time.
        record, valid = Signal(RECORD, reset_less=True), Signal()
        m.d.sync += valid.eq(Cat(waiting for _, waiting, _, _ in ended.values()).any())
        earlier: Any = 0
        for q in (Queue.COMPUTE, Queue.LOAD, Queue.STORE):
            done, waiting, chosen, _ = ended[q]
            m.d.comb += chosen.eq(waiting & ~earlier)
            earlier = earlier | waiting
            with m.If(chosen):
                m.d.sync += record.eq(done)

        # A cycle on: where it lies in the window. And on: into the buffer, if it belongs there.
        offset, kept = Signal(INDEX_BITS + 1, reset_less=True), Signal(RECORD, reset_less=True)
        kept_valid = Signal()
        m.d.sync += [offset.eq(record.index - self.first), kept.eq(record), kept_valid.eq(valid)]
        address_bits = (self.entries - 1).bit_length()
        inside, behind = Signal(), Signal()
        m.d.comb += [
            inside.eq(kept_valid & ~offset[address_bits:].any()),
            behind.eq(kept_valid & ~offset[-1] & offset[address_bits:].any()),
            writer.addr.eq(self.count),
            writer.data.eq(kept),
            writer.en.eq(inside),
        ]
        lost = [overrun for _, _, _, overrun in ended.values()]
        dropping = Signal(range(len(lost) + 2))
        m.d.sync += [
            self.count.eq(self.count + inside),
            dropping.eq(reduce(add, lost, behind)),
            self.dropped.eq(self.dropped + dropping),
        ]
        return outer

    def _follow(self, m: Module, q: Queue, cycle: Signal) -> tuple[Signal, Signal, Signal, Signal]:
        """Follow a queue; return what ended last, whether it waits, its `chosen`, and `lost`."""
        name = q.name.lower()
        events = getattr(self, name)
        seen = {
            part: Signal.like(getattr(events, part), name=f"{name}_{part}")
            for part in events.signature.members
        }
        m.d.sync += [signal.eq(getattr(events, part)) for part, signal in seen.items()]

        running = StreamFifo(STARTED, Gate.RUNNING[q])
        m.submodules[f"running_{name}"] = running
        entry, oldest = running.input.payload, running.output.payload
        for field, missing in zip(WAITS, seen["missing"], strict=True):
            waits = Signal(WAIT_BITS, name=f"{name}_{field}")
            m.d.comb += entry[field].eq(waits)
            with m.If(seen["started"]):
                m.d.sync += waits.eq(0)
            with m.Elif(missing & ~waits.all()):
                m.d.sync += waits.eq(waits + 1)

        done, waiting = Signal(RECORD, name=f"{name}_done", reset_less=True), Signal()
        chosen, lost = Signal(name=f"{name}_chosen"), Signal(name=f"{name}_lost")
        m.d.comb += [
            entry.start.eq(cycle),
            entry.index.eq(seen["index"]),
            running.input.valid.eq(seen["started"]),
            running.output.ready.eq(seen["complete"]),
            lost.eq(seen["complete"] & waiting & ~chosen),
        ]
        with m.If(chosen):
            m.d.sync += waiting.eq(0)
        with m.If(seen["complete"] & ~lost):
            m.d.sync += [waiting.eq(1), done.queue.eq(q), done.end.eq(cycle)]
            m.d.sync += [done[name].eq(oldest[name]) for name, _ in STARTED]
        return done, waiting, chosen, lost
