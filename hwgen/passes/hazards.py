# SPDX-License-Identifier: Apache-2.0
"""The passes room: which jobs of the three queues wait for each other, and by which tokens.

A program is right when it runs job by job in its order; the queues run ahead of each other.
`Hazards` keeps, for every word of the scratchpad, SB row, tap entry and row of DDR, the last job of
each queue that read or wrote it, and so knows for a new job the last job of every *other* queue
that it must not overtake. COMPUTEs among themselves are timed by `start_delay`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import LoadTarget, Opcode, Queue

_NONE = -1


@dataclass
class Instruction:
    """One instruction before encoding."""

    opcode: Opcode
    fields: dict[str, int]


@dataclass(eq=False)
class Job:
    """An instruction of a queue.

    Attributes
    ----------
    number
        Its place in its queue.
    computes_before
        COMPUTEs in front of it in the order of work.
    after
        For another queue the number of the job that must be over before this one starts.
    """

    instruction: Instruction
    queue: Queue
    number: int
    computes_before: int
    after: dict[Queue, int] = field(default_factory=dict)


class _Touched:
    """For every unit of one memory the last job of each queue that read it, and that wrote it."""

    def __init__(self, units: int) -> None:
        self._read = {queue: np.full(units, _NONE) for queue in Queue}
        self._written = {queue: np.full(units, _NONE) for queue in Queue}

    def read(self, job: Job, units: Iterable[slice]) -> None:
        """Note a read, which waits for the writes before it."""
        for part in units:
            _wait(job, self._written, part)
            self._read[job.queue][part] = job.number

    def write(self, job: Job, units: Iterable[slice]) -> None:
        """Note a write, which waits for the reads and writes before it."""
        for part in units:
            _wait(job, self._written, part)
            _wait(job, self._read, part)
            self._written[job.queue][part] = job.number


def _wait(job: Job, last: dict[Queue, NDArray[np.int64]], part: slice) -> None:
    for queue in Queue:
        if queue != job.queue:
            number = int(last[queue][part].max(initial=_NONE))
            if number > job.after.get(queue, _NONE):
                job.after[queue] = number


class Hazards:
    """The machine's memories, as jobs touch them in program order; see the module's docstring."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.scratchpad = _Touched(config.scratchpad_words)
        self.constants = {
            LoadTarget.SYNAPSE: _Touched(config.synapse_rows),
            LoadTarget.TAP: _Touched(config.tap_entries),
        }
        self._ddr: dict[tuple[str, int], _Touched] = {}

    def ddr(self, tensor: str, image: int, rows: int) -> _Touched:
        """Return the DDR of one image's tensor, whose units are its rows, tile by tile."""
        key = tensor, image
        if key not in self._ddr:
            self._ddr[key] = _Touched(rows)
        return self._ddr[key]


def give_tokens(jobs: dict[Queue, list[Job]]) -> None:
    """Set wait and signal bits so that every job starts after those that it must wait for.

    Tokens of one queue for another are taken in the order they are given, so a job that waits for
    job n is sure of all jobs before n: who needs no later one waits for nothing.
    """
    for taker in Queue:
        for giver in Queue:
            waited = _NONE
            for job in jobs[taker]:
                wanted = job.after.get(giver, _NONE)
                if wanted > waited:
                    waited = wanted
                    job.instruction.fields[f"wait_{giver.name.lower()}"] = 1
                    given = jobs[giver][wanted].instruction.fields
                    given[f"signal_{taker.name.lower()}"] = 1
