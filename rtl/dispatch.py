# SPDX-License-Identifier: Apache-2.0
"""The hardware room: instruction fetch, decoding, the three queues and their tokens."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import crc, stream, wiring
from amaranth.lib.wiring import In, Out

from hwgen.arch import isa
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import BEAT_BYTES, Opcode, Queue
from hwgen.arch.registers import ErrorCode
from rtl.axi import ADDRESS_BITS
from rtl.layouts import INDEX_BITS, completion, error_report, indexed, struct_of
from rtl.streams import READ_BEAT, TRANSFER, StreamFifo

INSTRUCTION_BEATS = isa.INSTRUCTION_BYTES // BEAT_BYTES
TOKEN_BITS = 8
#: An instruction of each queue: its fields, and its index in the program.
PAYLOADS = {queue: indexed(struct_of(isa.LAYOUTS[op])) for op, queue in isa.QUEUE_OF.items()}


class Fetch(wiring.Component):
    """Read the program ahead, check each instruction, hand it to its queue, in order.

    Runs from reset (the top holds it in reset between runs). Up to `BUFFERED_INSTRUCTIONS` are
    asked for ahead of their dispatch, one transfer each. `ended` is high once END came.
    `dispatched` pulses for each instruction handed over, END included. After an error it stops.

    Timing: the first request is up `START_LATENCY` cycle after the first one out of reset; one a
    cycle follows while the buffer has room. The last beat of an instruction that arrives in
    cycle 0 puts it into its queue in cycle `DISPATCH_LATENCY`; instructions whose beats are here
    follow each other every `CYCLES`.
    """

    BUFFERED_INSTRUCTIONS = 8
    START_LATENCY = 1
    CHECK_CYCLES = 3
    DISPATCH_LATENCY = StreamFifo.LATENCY + CHECK_CYCLES
    CYCLES = INSTRUCTION_BEATS + CHECK_CYCLES

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "address": In(ADDRESS_BITS),
                "length": In(32),
                "request": Out(stream.Signature(TRANSFER)),
                "data": In(stream.Signature(READ_BEAT)),
                **{q.name.lower(): Out(stream.Signature(PAYLOADS[q])) for q in Queue},
                "index": Out(INDEX_BITS),
                "dispatched": Out(1),
                "ended": Out(1),
                "error": Out(error_report()),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Build requester, beat buffer, assembly register with its CRC, dispatcher."""
        m = Module()
        self._request(m)
        buffer_beats = self.BUFFERED_INSTRUCTIONS * INSTRUCTION_BEATS
        m.submodules.buffer = buffer = StreamFifo(READ_BEAT, buffer_beats)
        wiring.connect(m, wiring.flipped(self.data), buffer.input)
        m.submodules.checksum = check = crc.Processor(crc.catalog.CRC32_ETHERNET(BEAT_BYTES * 8))

        instruction = Signal(8 * isa.INSTRUCTION_BYTES, reset_less=True)
        count, response = Signal(range(INSTRUCTION_BEATS)), Signal(2)
        beat = buffer.output.payload
        taken, first = Signal(), Signal()
        m.d.sync += [
            check.data.eq(beat.data),
            check.valid.eq(taken),
            check.start.eq(taken & (count == 0)),
        ]
        intact = Signal()
        m.d.comb += first.eq(count == 0)

        with m.FSM():
            with m.State("START"):
                # The requester looks at `address` and `length` in this cycle too.
                m.next = "FILL"
            with m.State("FILL"):
                m.d.comb += [
                    buffer.output.ready.eq(self.index != self.length[:INDEX_BITS]),
                    taken.eq(buffer.output.valid & buffer.output.ready),
                ]
                with m.If(~buffer.output.ready):
                    self._fail(m, ErrorCode.PROGRAM_OVERRUN)
                with m.If(self._bad_start):
                    self._fail(m, self._bad_code)
                with m.If(taken):
                    m.d.sync += [
                        instruction.eq(Cat(instruction[BEAT_BYTES * 8 :], beat.data)),
                        response.eq(beat.response | Mux(first, 0, response)),
                        count.eq(count + 1),
                    ]
                    with m.If(count == INSTRUCTION_BEATS - 1):
                        m.next = "CRC"
            with m.State("CRC"):
                m.next = "CHECK"
            with m.State("CHECK"):
                m.d.sync += intact.eq(check.match_detected)
                with m.If(response[1]):
                    self._fail(m, Mux(response[0], ErrorCode.READ_DECERR, ErrorCode.READ_SLVERR))
                with m.Else():
                    m.next = "DISPATCH"
            with m.State("DISPATCH"):
                with m.If(self.dispatched):
                    m.d.sync += self.index.eq(self.index + 1)
                    m.next = "FILL"
                with m.If(~intact):
                    self._fail(m, ErrorCode.INSTRUCTION_CHECKSUM)
                with m.Else():
                    self._dispatch(m, instruction)
            with m.State("STOPPED"):
                pass
        return m

    def _fail(self, m: Module, code: Any) -> None:
        m.d.comb += [
            self.error.valid.eq(1),
            self.error.code.eq(code),
            self.error.index.eq(self.index),
        ]
        m.next = "STOPPED"

    def _request(self, m: Module) -> None:
        """One transfer an instruction, while the buffer is sure to have room for its beats."""
        address = Signal(ADDRESS_BITS + 1)
        left, started = Signal(INDEX_BITS), Signal()
        ahead = Signal(range(self.BUFFERED_INSTRUCTIONS + 1))
        self._bad_start, self._bad_code = Signal(), Signal(range(max(ErrorCode) + 1))
        m.d.comb += [
            self.request.valid.eq(
                started
                & (left != 0)
                & (ahead != self.BUFFERED_INSTRUCTIONS)
                & ~address[ADDRESS_BITS]
            ),
            self.request.payload.address.eq(address),
            self.request.payload.beats.eq(INSTRUCTION_BEATS),
        ]
        asked = self.request.valid & self.request.ready
        m.d.sync += ahead.eq(ahead + asked - self.dispatched)
        with m.If(asked):
            m.d.sync += [address.eq(address + isa.INSTRUCTION_BYTES), left.eq(left - 1)]
        with m.If(~started):
            m.d.sync += [started.eq(1), address.eq(self.address), left.eq(self.length)]
        # Fetching stops at the end of the address space; it is an error once it is reached.
        misplaced = self.address[: (isa.INSTRUCTION_BYTES - 1).bit_length()].any()
        too_long = self.length[INDEX_BITS:].any()
        wrapped = address[ADDRESS_BITS] & (ahead == 0) & (left != 0)
        m.d.comb += [
            self._bad_start.eq(misplaced | too_long | (started & wrapped)),
            self._bad_code.eq(
                Mux(misplaced | too_long, ErrorCode.BAD_FIELD, ErrorCode.ADDRESS_RANGE)
            ),
        ]

    def _dispatch(self, m: Module, instruction: Signal) -> None:
        header = Signal(struct_of(isa.HEADER))
        m.d.comb += header.eq(instruction)
        with m.Switch(header.opcode):
            for opcode, queue in isa.QUEUE_OF.items():
                output = getattr(self, queue.name.lower())
                m.d.comb += [
                    output.payload.fields.eq(instruction),
                    output.payload.index.eq(self.index),
                ]
                with m.Case(opcode):
                    m.d.comb += [output.valid.eq(1), self.dispatched.eq(output.ready)]
            with m.Case(Opcode.END):
                m.d.comb += self.dispatched.eq(~self.ended)
                m.d.sync += self.ended.eq(1)
                m.next = "STOPPED"
            with m.Default():
                self._fail(m, ErrorCode.BAD_OPCODE)


class Gate(wiring.Component):
    """One queue: holds instructions until their tokens are there, follows them to completion.

    The head starts when every counter that it waits for is above zero; `take` tells which it
    takes in that cycle. `complete` ends the oldest of those that run; `oldest` is its index, or
    the head's when none runs. `running`: at least one does.

    Timing: an instruction put in when all is ready is offered to the engine in the next cycle; a
    token given in cycle 0 counts in cycle `TOKEN_LATENCY`.
    """

    TOKEN_LATENCY = 1
    RUNNING = {Queue.LOAD: 8, Queue.COMPUTE: 64, Queue.STORE: 2}

    def __init__(self, config: AcceleratorConfig, queue: Queue) -> None:
        self.config = config
        self.shape = PAYLOADS[queue]
        self.depth = self.RUNNING[queue]
        super().__init__(
            {
                "input": In(stream.Signature(self.shape)),
                "output": Out(stream.Signature(self.shape)),
                "available": In(len(Queue)),
                "waits": Out(len(Queue)),
                "take": Out(len(Queue)),
                "complete": In(1),
                "blocked": Out(1),
                "busy": Out(1),
                "running": Out(1),
                "oldest": Out(INDEX_BITS),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Build the queue, and a queue of the indices that are running."""
        m = Module()
        m.submodules.queue = queue = StreamFifo(self.shape, self.config.queue_depth)
        m.submodules.running_indices = running = StreamFifo(INDEX_BITS, self.depth)
        wiring.connect(m, wiring.flipped(self.input), queue.input)
        head = queue.output.payload
        waits = Cat(head.fields[f"wait_{q.name.lower()}"] for q in Queue)
        ready, started = Signal(), Signal()
        m.d.comb += [
            self.waits.eq(Mux(queue.output.valid, waits, 0)),
            ready.eq(~(waits & ~self.available).any() & running.input.ready),
            self.output.payload.eq(head),
            self.output.valid.eq(queue.output.valid & ready),
            queue.output.ready.eq(self.output.ready & ready),
            started.eq(self.output.valid & self.output.ready),
            self.take.eq(Mux(started, waits, 0)),
            running.input.valid.eq(started),
            running.input.payload.eq(head.index),
            running.output.ready.eq(self.complete),
            self.blocked.eq(queue.output.valid & ~ready),
            self.running.eq(running.output.valid),
            self.busy.eq(queue.output.valid | running.output.valid),
            self.oldest.eq(Mux(running.output.valid, running.output.payload, head.index)),
        ]
        return m


class Dispatch(wiring.Component):
    """Fetch, three gates and the token counters between every ordered pair of queues.

    A counter holds `TOKEN_BITS` bits; one token too many is TOKEN_OVERFLOW of the giver. `finished`
    is high once END was dispatched and every instruction before it has completed. `<queue>_missing`
    has a bit for each queue whose token the head of that queue waits for. `oldest_*` name
    the oldest instruction that is not completed, for the watchdog; with none it is the dispatcher.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            {
                "address": In(ADDRESS_BITS),
                "length": In(32),
                "request": Out(stream.Signature(TRANSFER)),
                "data": In(stream.Signature(READ_BEAT)),
                **{q.name.lower(): Out(stream.Signature(PAYLOADS[q])) for q in Queue},
                **{f"{q.name.lower()}_complete": In(completion()) for q in Queue},
                **{f"{q.name.lower()}_running": Out(1) for q in Queue},
                **{f"{q.name.lower()}_missing": Out(len(Queue)) for q in Queue},
                "wait_load": Out(1),
                "wait_store": Out(1),
                "dispatched": Out(1),
                "finished": Out(1),
                "error": Out(error_report()),
                "error_queue": Out(2),
                "oldest_queue": Out(2),
                "oldest_index": Out(INDEX_BITS),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Wire fetch and gates to the counters."""
        m = Module()
        m.submodules.fetch = fetch = Fetch(self.config)
        wiring.connect(m, fetch.request, wiring.flipped(self.request))
        wiring.connect(m, wiring.flipped(self.data), fetch.data)
        m.d.comb += [
            fetch.address.eq(self.address),
            fetch.length.eq(self.length),
            self.dispatched.eq(fetch.dispatched),
        ]
        gates, completes = {}, {}
        for q in Queue:
            name = q.name.lower()
            m.submodules[f"gate_{name}"] = gates[q] = gate = Gate(self.config, q)
            completes[q] = complete = getattr(self, f"{name}_complete")
            wiring.connect(m, getattr(fetch, name), gate.input)
            wiring.connect(m, gate.output, wiring.flipped(getattr(self, name)))
            m.d.comb += [
                gate.complete.eq(complete.valid),
                getattr(self, f"{name}_running").eq(gate.running),
                getattr(self, f"{name}_missing").eq(gate.waits & ~gate.available),
            ]
        m.d.comb += [
            self.finished.eq(fetch.ended & ~Cat(g.busy for g in gates.values()).any()),
            self.error.valid.eq(fetch.error.valid),
            self.error.code.eq(fetch.error.code),
            self.error.index.eq(fetch.error.index),
            self.error_queue.eq(len(Queue)),
        ]
        for giver in Queue:
            for taker in Queue:
                self._counter(m, gates, completes, giver, taker)

        waiting = gates[Queue.COMPUTE]
        starved = self.compute_missing & ~waiting.running.replicate(len(Queue))
        m.d.comb += [
            self.wait_load.eq(starved[Queue.LOAD]),
            self.wait_store.eq(starved[Queue.STORE]),
        ]
        self._oldest(m, gates, fetch)
        return m

    def _counter(self, m: Module, gates: dict, completes: dict, giver: Queue, taker: Queue) -> None:
        names = (giver.name.lower(), taker.name.lower())
        tokens = Signal(TOKEN_BITS, name=f"tokens_{names[0]}_to_{names[1]}")
        complete = completes[giver]
        give = complete.valid & getattr(complete, f"signal_{names[1]}")
        take = gates[taker].take[giver]
        m.d.comb += gates[taker].available[giver].eq(tokens != 0)
        m.d.sync += tokens.eq(tokens + give - take)
        with m.If(give & ~take & tokens.all()):
            m.d.comb += [
                self.error.valid.eq(1),
                self.error.code.eq(ErrorCode.TOKEN_OVERFLOW),
                self.error.index.eq(gates[giver].oldest),
                self.error_queue.eq(giver),
            ]

    def _oldest(self, m: Module, gates: dict, fetch: Fetch) -> None:
        """Compare one a cycle; the watchdog's figures need not be quicker than that."""
        candidate = Signal(range(len(Queue)))
        best_queue, best_index = Signal(2), Signal(INDEX_BITS)
        m.d.sync += candidate.eq(Mux(candidate == len(Queue) - 1, 0, candidate + 1))
        with m.Switch(candidate):
            for q in Queue:
                with m.Case(q):
                    start_index = fetch.index if q == 0 else best_index
                    start_queue = len(Queue) if q == 0 else best_queue
                    mine = gates[q].busy & (gates[q].oldest < start_index)
                    m.d.sync += [
                        best_queue.eq(Mux(mine, q, start_queue)),
                        best_index.eq(Mux(mine, gates[q].oldest, start_index)),
                    ]
        with m.If(candidate == 0):
            m.d.sync += [self.oldest_queue.eq(best_queue), self.oldest_index.eq(best_index)]
