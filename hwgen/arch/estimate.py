# SPDX-License-Identifier: Apache-2.0
"""The contract room: predicts the cycles of a program, without running it.

The machine's three queues, its fetch, its read channel and its tokens are played through event by
event (an instruction dispatched, a burst on the bus, a COMPUTE over), with the latencies of
`hwgen.arch.timing` and a memory that answers in order at one beat a cycle. The array itself never
waits, so a COMPUTE's duration is arithmetic: parameter rows + pixels x taps.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from hwgen.arch import isa, timing
from hwgen.arch.bundle import Bundle
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import BEAT_BYTES, LoadTarget, Opcode, Queue

_FETCH, _LOAD = 0, 1
_NEVER = 1 << 62


@dataclass(frozen=True)
class MemoryTiming:
    """A memory behind the AXI port: 8 bytes a cycle each way, in order.

    Attributes
    ----------
    read_latency_cycles
        From an accepted read address to the first beat.
    write_latency_cycles
        From a burst's last beat to its response.
    """

    read_latency_cycles: int = 30
    write_latency_cycles: int = 30


@dataclass(frozen=True)
class Estimate:
    """What a bundle will take.

    Attributes
    ----------
    cycles
        CYCLES_TOTAL of one image.
    setup_cycles
        Of the setup program, run once; 0 when there is none.
    steps
        STEPS of one image.
    layer_cycles
        For each of the bundle's layers: from the end of the layer before to its own last step.
    bytes_read, bytes_written
        DDR traffic of one image, instructions included.
    """

    cycles: int
    setup_cycles: int
    steps: int
    layer_cycles: tuple[int, ...]
    bytes_read: int
    bytes_written: int


def estimate(bundle: Bundle, memory: MemoryTiming | None = None) -> Estimate:
    """Predict the cycle counters of a bundle; see `Estimate`."""
    timed = memory or MemoryTiming()
    setup = _Machine(bundle.setup, bundle.config, timed).play() if bundle.setup else 0
    machine = _Machine(bundle.program, bundle.config, timed)
    cycles = machine.play()
    ends = [machine.compute_end[layer.last_instruction] for layer in bundle.layers]
    starts = [machine.compute_begin[bundle.layers[0].first_instruction], *ends[:-1]]
    return Estimate(
        cycles=cycles,
        setup_cycles=setup,
        steps=machine.steps,
        layer_cycles=tuple(end - start for start, end in zip(starts, ends, strict=True)),
        bytes_read=machine.bytes_read,
        bytes_written=machine.bytes_written,
    )


def estimate_cycles(
    program: bytes, config: AcceleratorConfig, memory: MemoryTiming | None = None
) -> int:
    """Predict CYCLES_TOTAL of one program, a `FrameProgram`'s for example."""
    return _Machine(program, config, memory or MemoryTiming()).play()


@dataclass
class _Job:
    """A LOAD whose rows are asked for: how many bursts are still to come, and the row's state."""

    index: int
    fields: dict[str, int]
    rows_left: int


class _Row:
    """A row on its way through the unpacker: beats into a ring, words out of it.

    A beat is taken when the ring has a slot, a word leaves when its bytes are there, at most one
    of each a cycle.
    """

    def __init__(self, f: dict[str, int], config: AcceleratorConfig, begin: int) -> None:
        if f["target"] == LoadTarget.SCRATCHPAD:
            self.words, self.step = f["words_per_row"], f["step_bytes"]
            self.need, self.lead = f["take_bytes"], f["lead_bytes"]
        else:
            unit = config.ti if f["target"] == LoadTarget.SYNAPSE else isa.TAP_BYTES
            self.words, self.step, self.need, self.lead = f["row_bytes"] // unit, unit, unit, 0
        self.beats = -(-f["row_bytes"] // BEAT_BYTES)
        self.slots = timing.unpacker_slots(config)
        self.dense = self.step == self.need >= BEAT_BYTES and self.lead == 0
        self.now = begin
        self.beat = self.word = 0
        self.taken = (begin - 2, begin - 1)

    def take(self, first: int, count: int) -> int:
        """Take `count` beats, the first on the bus at `first`; return when the bus is free."""
        response, bus = timing.READ_RESPONSE_CYCLES, first - 1
        for _ in range(count):
            # Two beats wait between the bus and the unpacker.
            bus = max(bus + 1, self.taken[0] + 1)
            self._advance(bus + response)
            self.taken = (self.taken[1], self.now - 1)
        return bus + 1

    def _advance(self, arrival: int) -> None:
        """Run cycles until the beat that arrives at `arrival` has been taken."""
        if self.dense:
            self.now = max(self.now, arrival) + 1
            self.beat += 1
            return
        while True:
            position = self.word * self.step - self.lead
            room = self.word == self.words or self.beat - position // BEAT_BYTES < self.slots
            accept = room and arrival <= self.now
            self._emit()
            self.now += 1
            if accept:
                self.beat += 1
                return

    def _emit(self) -> None:
        here = BEAT_BYTES * self.beat >= self.word * self.step - self.lead + self.need
        if self.word < self.words and (here or self.beat == self.beats):
            self.word += 1

    def beats_to_words(self) -> int:
        """Return cycles from a row's last beat to its last word, if it had kept up before."""
        behind = self.words * self.step - self.lead - BEAT_BYTES * self.beats
        return 1 + max(0, -(-behind // self.step))

    def finish(self) -> int:
        """Let the last words out; return when the next row may begin."""
        if self.dense:
            return self.now + 2
        while self.word < self.words:
            self._emit()
            self.now += 1
        return self.now + 1


class _Box:
    """Source rows of a resampled LOAD: added up to lines, and lines made into rows.

    Which rows complete a line its tables say, and they are not here: lines are taken to be evenly
    spread over the rows.
    """

    def __init__(self, f: dict[str, int], begin: int) -> None:
        self.fields = f
        self.now = begin
        self.taken = (begin - 2, begin - 1)
        self.row = self.line = 0
        self.columns_begin = self.columns_free = begin - f["column_steps"]
        self.last_row_over = begin

    def take(self, first: int, count: int) -> int:
        """Take `count` beats of a row, as `_Row.take`."""
        response, bus = timing.READ_RESPONSE_CYCLES, first - 1
        for _ in range(count):
            bus = max(bus + 1, self.taken[0] + 1)
            self.now = max(self.now, bus + response) + 1
            self.taken = (self.taken[1], self.now - 1)
        return bus + 1

    def row_over(self, row: _Row) -> None:
        """End a source row; if it completes a line, make that into `row`."""
        f = self.fields
        self.row += 1
        self.now += timing.RESAMPLE_ROW_GAP_CYCLES + (f["source_bytes"] <= BEAT_BYTES)
        if self.row * f["rows"] < (self.line + 1) * f["row_steps"]:
            return
        # A line's last row follows the reader of the line before.
        beats = -(-f["source_bytes"] // BEAT_BYTES)
        behind = f["column_steps"] * max(0, beats - timing.LINE_WORDS_AHEAD) // beats
        late = max(0, self.columns_begin + behind - self.taken[1])
        self.now += late
        self.taken = (self.taken[0] + late, self.taken[1] + late)
        full = self.taken[1] + timing.LINE_CYCLES
        self.columns_begin = max(full, self.columns_free) + timing.LINE_START_CYCLES
        end = self.columns_begin + f["column_steps"] - 1
        self.columns_free = end + timing.LINE_NEXT_CYCLES
        self.line += 1
        last = end + timing.PIXEL_CYCLES
        self.last_row_over = max(self.last_row_over, last + row.beats_to_words()) + 1


@dataclass
class _Transfer:
    """Beats asked for by a client; `accepted` is called in the cycle after it was taken."""

    position: int
    beats: int
    owner: _Job | int
    accepted: Callable[[int], None]
    issuable: int = 0


@dataclass
class _Gate:
    """One queue: instructions dispatched and not started, with the time each arrived."""

    waiting: deque[tuple[int, int]] = field(default_factory=deque)
    inside: int = 0


class _Machine:
    """One program, played event by event; times are cycles since the run began."""

    def __init__(self, program: bytes, config: AcceleratorConfig, memory: MemoryTiming) -> None:
        size = isa.INSTRUCTION_BYTES
        self.decoded = [isa.decode(program[i : i + size]) for i in range(0, len(program), size)]
        self.config, self.memory = config, memory
        self.events: list[tuple[int, int, Callable[[int], None]]] = []
        self._sequence = 0
        self.finish = 0
        # Fetch and dispatch.
        self.requested = self.dispatched = 0
        self.fetched: dict[int, int] = {}
        self.ready_at = 0
        self.ended = False
        # Read channel: each client's transfers, the one being cut into bursts, bursts in flight.
        self.waiting: tuple[deque[_Transfer], deque[_Transfer]] = (deque(), deque())
        self.pending: list[_Transfer | None] = [None, None]
        self.in_flight = 0
        self.next_issue = 0
        self.channel_free = 0
        self.taken = (-2, -1)
        # Queues and tokens.
        self.gates = {queue: _Gate() for queue in Queue}
        self.tokens = {(a, b): 0 for a in Queue for b in Queue}
        self.engine_free = dict.fromkeys(Queue, 0)
        self.next_start = dict.fromkeys(Queue, 0)
        self.next_try = dict.fromkeys(Queue, _NEVER)
        # Load engine.
        self.jobs_open = 0
        self.filling = False
        self.boxes_waiting: list[Callable[[int], None]] = []
        self.row_free = 0
        self.row: _Row | None = None
        self.box: _Box | None = None
        # Compute engine.
        self.sequencer_free = 0
        self.last_step = -(10**6)
        self.compute_begin: dict[int, int] = {}
        self.compute_end: dict[int, int] = {}
        self.write_free = 0
        self.steps = self.bytes_read = self.bytes_written = 0

    def play(self) -> int:
        """Run to the end; return the run's cycles."""
        self.at(timing.FETCH_START_CYCLES, self._request)
        while self.events:
            now, _, action = heapq.heappop(self.events)
            action(now)
        return self.finish + timing.END_CYCLES

    def at(self, time: int, action: Callable[[int], None]) -> None:
        """Schedule `action`; equal times run in the order they were scheduled."""
        self._sequence += 1
        heapq.heappush(self.events, (time, self._sequence, action))

    def _request(self, now: int) -> None:
        """Ask for the next instruction if the buffer has room for it."""
        room = self.requested - self.dispatched < timing.INSTRUCTIONS_AHEAD
        if self.requested == len(self.decoded) or not room or self.waiting[_FETCH]:
            return
        beats = timing.INSTRUCTION_BEATS
        self._ask(
            now, _FETCH, _Transfer(self.requested * beats, beats, self.requested, self._request)
        )
        self.requested += 1

    def _ask(self, now: int, client: int, transfer: _Transfer) -> None:
        self.waiting[client].append(transfer)
        self._accept(now, client)

    def _accept(self, now: int, client: int) -> None:
        """Take a client's next transfer, one at a time."""
        if self.pending[client] is None and self.waiting[client]:
            transfer = self.waiting[client].popleft()
            self.pending[client] = transfer
            transfer.issuable = now + timing.READ_REQUEST_CYCLES - 1
            self.at(transfer.issuable, self._issue)
            self.at(now + 1, transfer.accepted)

    def _issue(self, now: int) -> None:
        """Put the next burst on the bus, instruction fetch first; work out when its beats come."""
        if now < self.next_issue or self.in_flight >= self.config.outstanding_reads:
            return
        for client in (_FETCH, _LOAD):
            transfer = self.pending[client]
            if transfer is not None and transfer.issuable <= now:
                break
        else:
            return
        boundary = self.config.max_burst_beats
        burst = min(transfer.beats, boundary - transfer.position % boundary)
        transfer.position += burst
        transfer.beats -= burst
        self.next_issue = now + 1
        self.in_flight += 1
        self.bytes_read += BEAT_BYTES * burst
        first = max(now + 1 + self.memory.read_latency_cycles, self.channel_free)
        if isinstance(transfer.owner, _Job):
            self._receive(transfer.owner, first, burst, transfer.beats == 0)
        else:
            here = self._fetch_beats(first, burst)
            self.fetched[transfer.owner] = here
            self.at(here, self._dispatch)
        if transfer.beats == 0:
            self.pending[client] = None
            self._accept(now, client)
        self.at(self.taken[1] + timing.BURST_OVER_CYCLES, self._burst_over)
        self.at(now + 1, self._issue)

    def _fetch_beats(self, first: int, count: int) -> int:
        """Take an instruction's beats, perhaps behind beats that a LOAD has not taken yet."""
        bus = first - 1
        for _ in range(count):
            # Two beats wait between the bus and whoever takes them, in order.
            bus = max(bus + 1, self.taken[0] + 1)
            self.taken = self.taken[1], max(bus + timing.READ_RESPONSE_CYCLES, self.taken[1] + 1)
        self.channel_free = bus + 1
        return self.taken[1]

    def _burst_over(self, now: int) -> None:
        self.in_flight -= 1
        self._issue(now)

    def _receive(self, job: _Job, first: int, burst: int, row_over: bool) -> None:
        """Take a LOAD's burst, whose first beat could be on the bus at `first`."""
        if job.fields["resample"]:
            self._receive_box(job, first, burst, row_over)
            return
        if self.row is None:
            begin = max(self.row_free, first + timing.READ_RESPONSE_CYCLES)
            self.row = _Row(job.fields, self.config, begin)
        self.channel_free = self.row.take(first, burst)
        self.taken = self.row.taken
        if not row_over:
            return
        self.row_free = self.row.finish()
        self.row = None
        self._row_over(job)

    def _receive_box(self, job: _Job, first: int, burst: int, row_over: bool) -> None:
        """Take a burst of a resampled LOAD's source row."""
        if self.box is None:
            begin = max(self.row_free, first + timing.READ_RESPONSE_CYCLES)
            self.box = _Box(job.fields, begin)
        self.channel_free = self.box.take(first, burst)
        self.taken = self.box.taken
        if not row_over:
            return
        self.box.row_over(_Row(job.fields, self.config, 0))
        if job.rows_left == 1:
            self.row_free = self.box.last_row_over
            self.box = None
        self._row_over(job)

    def _row_over(self, job: _Job) -> None:
        job.rows_left -= 1
        if job.rows_left == 0:
            complete = self.row_free + timing.LOAD_COMPLETE_CYCLES
            self.row_free += timing.LOAD_TO_LOAD_CYCLES
            self.at(complete, lambda now: self._load_complete(now, job))

    def _load_complete(self, now: int, job: _Job) -> None:
        self.jobs_open -= 1
        if self.boxes_waiting:
            self._ask_boxes(now)
        self._complete(now, Queue.LOAD, job.index)
        self._start(now, Queue.LOAD)

    def _dispatch(self, now: int) -> None:
        """Hand the next instruction to its queue once it is here, checked, and there is room."""
        index = self.dispatched
        if self.ended or index not in self.fetched:
            return
        earliest = max(self.fetched[index] + timing.CHECK_CYCLES, self.ready_at)
        if now < earliest:
            self.at(earliest, self._dispatch)
            return
        opcode, _ = self.decoded[index]
        if opcode == Opcode.END:
            self.ended = True
            self.finish = max(self.finish, now)
            self.dispatched += 1
            return
        queue = isa.QUEUE_OF[opcode]
        gate = self.gates[queue]
        if gate.inside >= self.config.queue_depth:
            return
        gate.inside += 1
        gate.waiting.append((index, now + timing.QUEUE_CYCLES))
        self.dispatched += 1
        self.ready_at = now + timing.INSTRUCTION_BEATS + timing.CHECK_CYCLES
        self._start_at(now + timing.QUEUE_CYCLES, queue)
        self.at(now + timing.REFILL_CYCLES, self._request)
        self.at(self.ready_at, self._dispatch)

    def _start_at(self, time: int, queue: Queue) -> None:
        """Try to start the head of a queue at `time`, unless it will be tried before."""
        if time >= self.next_try[queue]:
            return
        self.next_try[queue] = time

        def try_it(now: int) -> None:
            if self.next_try[queue] == now:
                self.next_try[queue] = _NEVER
            self._start(now, queue)

        self.at(time, try_it)

    def _start(self, now: int, queue: Queue) -> None:
        """Start the head of a queue if its tokens are there and its engine takes it."""
        gate = self.gates[queue]
        if not gate.waiting:
            return
        index, arrived = gate.waiting[0]
        _, f = self.decoded[index]
        earliest = max(arrived, self.engine_free[queue], self.next_start[queue])
        if now < earliest:
            if earliest != _NEVER:
                self._start_at(earliest, queue)
            return
        if queue == Queue.LOAD and self.jobs_open > timing.LOAD_JOBS_AHEAD:
            return
        waits = [giver for giver in Queue if f[f"wait_{giver.name.lower()}"]]
        if any(self.tokens[giver, queue] == 0 for giver in waits):
            return
        for giver in waits:
            self.tokens[giver, queue] -= 1
        gate.waiting.popleft()
        gate.inside -= 1
        self.next_start[queue] = now + 1
        {Queue.LOAD: self._load, Queue.COMPUTE: self._compute, Queue.STORE: self._store}[queue](
            now, index, f
        )
        self.at(now + 1, self._dispatch)
        if self.engine_free[queue] != _NEVER:
            self._start_at(max(now + 1, self.engine_free[queue]), queue)

    def _load(self, now: int, index: int, f: dict[str, int]) -> None:
        """Queue the transfers of every row."""
        job = _Job(index, f, f["row_steps"] if f["resample"] else f["rows"])
        self.jobs_open += 1
        self.engine_free[Queue.LOAD] = _NEVER
        if f["resample"]:
            self.boxes_waiting.append(lambda t: self._ask_row(t, job, 0))
            self._ask_boxes(now)
        else:
            self.filling |= f["target"] == LoadTarget.RESAMPLER
            self.at(now + timing.LOAD_ISSUE_CYCLES, lambda t: self._ask_row(t, job, 0))

    def _ask_boxes(self, now: int) -> None:
        """Ask for a box's rows once the tables that LOADs before it fill are complete."""
        if self.filling and self.jobs_open > 1:
            return
        self.filling = False
        for ask in self.boxes_waiting:
            self.at(now + timing.RESAMPLE_ISSUE_CYCLES, ask)
        self.boxes_waiting.clear()

    def _ask_row(self, now: int, job: _Job, row: int) -> None:
        """Ask for a row; for the next one, or the next LOAD, once this one was taken."""
        f = job.fields
        position = (f["offset_bytes"] + row * f["pitch_bytes"]) // BEAT_BYTES
        size, rows = (
            (f["source_bytes"], f["row_steps"]) if f["resample"] else (f["row_bytes"], f["rows"])
        )
        beats = -(-size // BEAT_BYTES)

        def accepted(then: int) -> None:
            if row + 1 < rows:
                self._ask_row(then, job, row + 1)
            else:
                self.engine_free[Queue.LOAD] = then
                self._start(then, Queue.LOAD)

        self._ask(now, _LOAD, _Transfer(position, beats, job, accepted))

    def _compute(self, now: int, index: int, f: dict[str, int]) -> None:
        """Parameter rows, then pixels x taps steps, then the pipeline's tail."""
        config = self.config
        begin = max(now + timing.COMPUTE_START_CYCLES, self.sequencer_free)
        self.engine_free[Queue.COMPUTE] = begin
        first = max(begin + config.parameter_rows, self.last_step + f["start_delay"])
        pixels = f["output_height"] * -(-f["output_width"] // config.tp)
        interval = max(f["tap_count"], config.tp)
        slot_end = first + pixels * interval
        self.last_step = slot_end - 1
        self.sequencer_free = slot_end
        self.steps += pixels * f["tap_count"]
        self.compute_begin[index], self.compute_end[index] = begin, slot_end
        done = self.last_step + timing.INPUT_ADDRESS_CYCLES + timing.read_after_write_cycles(config)
        self.at(done, lambda t: self._complete(t, Queue.COMPUTE, index))

    def _store(self, now: int, index: int, f: dict[str, int]) -> None:
        """Words to the bus, two beats each at 16 lanes, then the responses."""
        beats = f["rows"] * f["words_per_row"] * self.config.word_bytes // BEAT_BYTES
        self.bytes_written += BEAT_BYTES * beats
        last = now + timing.STORE_FIRST_BEAT_CYCLES + beats - 1
        done = last + self.memory.write_latency_cycles + timing.STORE_COMPLETE_CYCLES
        self.engine_free[Queue.STORE] = done + 1
        self.at(done, lambda t: self._complete(t, Queue.STORE, index))

    def _complete(self, now: int, queue: Queue, index: int) -> None:
        """Give the tokens an instruction signals, a cycle later."""
        self.finish = max(self.finish, now)
        _, f = self.decoded[index]
        for taker in Queue:
            if f[f"signal_{taker.name.lower()}"]:
                self.at(now + timing.QUEUE_CYCLES, self._giver(queue, taker))

    def _giver(self, giver: Queue, taker: Queue) -> Callable[[int], None]:
        def give(now: int) -> None:
            self.tokens[giver, taker] += 1
            self._start(now, taker)

        return give
