# SPDX-License-Identifier: Apache-2.0
"""The contract room: the record that the trace unit keeps of an instruction, and a run's profile.

A record says when its instruction was taken by the engine, when it was complete, and how long it
stood at the head of its queue without a token of each queue. Tokens never go while an instruction
waits for them, so the three waits begin together, in the cycle in which it became the head.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hwgen.arch.fields import Field, Layout
from hwgen.arch.isa import Queue

INDEX_BITS = 24
WAIT_BITS = 18
WAIT_MAX = (1 << WAIT_BITS) - 1
WORD_BITS = 32

TRACE_RECORD = Layout(
    "TRACE_RECORD",
    (
        Field("start", 32, "Cycle of the run in which the engine took it; the first cycle is 0."),
        Field("end", 32, "Cycle of its completion."),
        Field("index", INDEX_BITS, "Its index in the program."),
        Field("queue", 2, "0 load, 1 compute, 2 store."),
        *(
            Field(
                f"wait_{queue.name.lower()}",
                WAIT_BITS,
                "Cycles at the head of its queue without a token of the "
                f"{queue.name.lower()} queue; stays at its highest value.",
            )
            for queue in Queue
        ),
    ),
)

TRACE_WORDS = -(-TRACE_RECORD.bits // WORD_BITS)
"""Registers of 32 bits that hold a record; word i has its bits 32 i + 31 to 32 i."""


@dataclass(frozen=True)
class TraceRecord:
    """An instruction of a run: what it was and when.

    Attributes
    ----------
    index, opcode, layer
        Index in the program, name of the opcode, and the layer whose instructions it is among;
        None for one that lies between layers.
    start, end
        Cycles of the run in which the engine took it and in which it was complete.
    wait_load, wait_compute, wait_store
        Cycles at the head of its queue without a token from there; `WAIT_MAX` is that or more.
    fields
        The decoded instruction.
    """

    index: int
    opcode: str
    layer: str | None
    start: int
    end: int
    wait_load: int
    wait_compute: int
    wait_store: int
    fields: dict[str, int]

    @property
    def head(self) -> int:
        """Cycle in which its waits began; `start` where it never waited.

        An instruction may be taken later than its last token came, where the engine was busy; then
        this is as much later than the true one.
        """
        return self.start - max(self.wait_load, self.wait_compute, self.wait_store)


@dataclass(frozen=True)
class Profile:
    """A program's run, instruction by instruction.

    Attributes
    ----------
    name
        Of the bundle.
    records
        One of each instruction but END, in the program's order.
    counters
        Counter registers after the first run.
    window_cycles
        CYCLES_TOTAL of each run, one a window of the trace buffer. Where they differ, records of
        different windows are that far from being of one run: a real DDR is not deterministic.
    """

    name: str
    records: tuple[TraceRecord, ...]
    counters: dict[str, int]
    window_cycles: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Profile:
        """Rebuild from `to_dict`, or from its JSON."""
        return cls(
            name=data["name"],
            records=tuple(TraceRecord(**record) for record in data["records"]),
            counters=dict(data["counters"]),
            window_cycles=tuple(data["window_cycles"]),
        )
