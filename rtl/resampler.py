# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the resampler, a box of a frame to rows of a picture, on the way in.

Rows first, eight bytes a cycle: each source row that comes from DDR is weighted and added to a
line of sums. Then columns, a step a cycle: a complete line is read pixel by pixel, weighted, added
and rounded, while the rows of the next line come in; its last one follows the reader. What leaves
are the network's input codes, as the beats that a LOAD without `resample` would have got from DDR.
`hwgen.arch.resample` has the tables that all this follows.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, ResetInserter, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hwgen.arch import isa, resample
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import BEAT_BYTES
from rtl.axi import BEAT_BYTES_LOG2, DATA_BITS
from rtl.layouts import struct_of
from rtl.streams import StreamFifo

STEP = struct_of(resample.STEP)
#: A source row on its way to its line.
SOURCE_ROW = data.StructLayout({"weight": resample.STEP.by_name["weight"].bits, "last": 1})
STEP_COUNT_BITS = resample.STEPS.bit_length()
SUM_BITS = 16
LINE_BITS = BEAT_BYTES * SUM_BITS
_ROUND_BITS = 16
_CHANNELS = resample.CHANNELS_MOST


def box_fields(config: AcceleratorConfig) -> dict[str, Any]:
    """Return the fields of a job that the resampler needs."""
    longest = config.resampler_row_bytes
    return {
        "resample": 1,
        "channels": _CHANNELS.bit_length(),
        "skip": BEAT_BYTES_LOG2,
        "source_bytes": longest.bit_length(),
        "source_beats": (longest // BEAT_BYTES).bit_length(),
        "row_steps": STEP_COUNT_BITS,
        "column_steps": STEP_COUNT_BITS,
    }


def _write_port(words: int) -> wiring.Signature:
    """Return the port through which a LOAD fills tables, seen from the writer."""
    return wiring.Signature({"valid": Out(1), "address": Out(range(words)), "data": Out(DATA_BITS)})


class StepTables(wiring.Component):
    """Row steps and column steps in one memory, four in a word, and a reader of each.

    `start` of a reader (with `first` and `count`) begins a list, which leaves on its `steps`; the
    list before must have left. The readers share a port, and rows, which are few, go first.

    Timing: a step a cycle, from `LATENCY` cycles after `start` on, but for those that the other
    reader takes.
    """

    FIFO_DEPTH = 8
    LATENCY = 3

    def __init__(self) -> None:
        reader = {
            "start": Out(1),
            "first": Out(range(resample.STEPS)),
            "count": Out(STEP_COUNT_BITS),
            "steps": In(stream.Signature(STEP)),
        }
        super().__init__(
            {
                "write": In(_write_port(2 * resample.STEP_WORDS)),
                "rows": In(wiring.Signature(reader)),
                "columns": In(wiring.Signature(reader)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Build the memory, and of each reader a counter that runs ahead, and a FIFO."""
        m = Module()
        memory = Memory(shape=unsigned(DATA_BITS), depth=2 * resample.STEP_WORDS, init=[])
        m.submodules.memory = memory
        writer, port = memory.write_port(), memory.read_port()
        m.d.comb += [
            writer.en.eq(self.write.valid),
            writer.addr.eq(self.write.address),
            writer.data.eq(self.write.data),
        ]
        lane = Signal(range(resample.STEPS_PER_WORD))
        low = len(lane)
        free: Any = 1
        for number, (name, reader) in enumerate((("rows", self.rows), ("columns", self.columns))):
            m.submodules[name] = fifo = StreamFifo(STEP, self.FIFO_DEPTH)
            wiring.connect(m, fifo.output, wiring.flipped(reader.steps))
            index = Signal(range(resample.STEPS), name=f"{name}_index")
            left = Signal(STEP_COUNT_BITS, name=f"{name}_left")
            issue, read = Signal(name=f"{name}_issue"), Signal(name=f"{name}_read")
            m.d.comb += [
                issue.eq((left != 0) & (fifo.level < self.FIFO_DEPTH - 1) & free),
                fifo.input.valid.eq(read),
                fifo.input.payload.eq(port.data.word_select(lane, resample.STEP.bits)),
            ]
            with m.If(issue):
                m.d.comb += port.addr.eq(Cat(index[low:], Const(number, 1)))
                m.d.sync += lane.eq(index)
            m.d.sync += [
                read.eq(issue),
                index.eq(Mux(reader.start, reader.first, index + issue)),
                left.eq(Mux(reader.start, reader.count, left - issue)),
            ]
            free = ~issue
        return m


class RowBlender(wiring.Component):
    """Adds weighted source rows up to a line of sums, and puts complete lines where they are read.

    `start` begins a job (`row_steps`, `source_beats`, steady to its end). Each of `rows` is a
    source row on `beats` with its weight; the one with `last` completes its line, whose sums go to
    the line memory. `full`: it holds a line, until `begin`, with which the reader begins; while
    `reading`, the words before `words_read` may be overwritten by the next line. `line_data`
    follows `line_address` a cycle later.

    Timing: a beat a cycle, and `ROW_GAP` cycles between rows, one more where a row is one beat:
    what a row wrote must be there before the next one reads it. A line is full `LATENCY` cycles
    after its last beat was taken.
    """

    ROW_GAP = 1
    LATENCY = 4

    def __init__(self, config: AcceleratorConfig) -> None:
        self.depth = config.resampler_row_bytes // BEAT_BYTES
        fields = box_fields(config)
        super().__init__(
            {
                "start": In(1),
                "row_steps": In(fields["row_steps"]),
                "source_beats": In(fields["source_beats"]),
                "rows": In(stream.Signature(SOURCE_ROW)),
                "beats": In(stream.Signature(DATA_BITS)),
                "full": Out(1),
                "begin": In(1),
                "reading": In(1),
                "words_read": In(range(2 * self.depth)),
                "line_address": In(range(self.depth)),
                "line_data": Out(LINE_BITS),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Take rows and beats; then four stages: byte, product, sum, write."""
        m = Module()
        rows_left = Signal(STEP_COUNT_BITS)
        in_row, first, rest = Signal(), Signal(init=1), Signal()
        row = Signal(SOURCE_ROW, reset_less=True)
        opens = Signal(reset_less=True)
        beat = Signal(range(self.depth))
        accept, over, unread, behind = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            self.rows.ready.eq(~in_row & (rows_left != 0) & ~rest),
            # A line is written behind the reader of the line before.
            behind.eq(~unread & (~self.reading | (beat < self.words_read))),
            self.beats.ready.eq(in_row & (~row.last | behind)),
            accept.eq(self.beats.ready & self.beats.valid),
            over.eq(accept & (beat == self.source_beats - 1)),
        ]
        m.d.sync += rest.eq(over & (self.source_beats == 1))
        with m.If(self.rows.valid & self.rows.ready):
            m.d.sync += [
                row.eq(self.rows.payload),
                opens.eq(first),
                first.eq(self.rows.payload.last),
                in_row.eq(1),
                beat.eq(0),
                rows_left.eq(rows_left - 1),
            ]
        with m.If(accept):
            m.d.sync += beat.eq(beat + 1)
        with m.If(over):
            m.d.sync += in_row.eq(0)
        with m.If(self.start):
            m.d.sync += rows_left.eq(self.row_steps)
        with m.If(self.begin):
            m.d.sync += [unread.eq(0), self.full.eq(0)]
        with m.If(over & row.last):
            m.d.sync += unread.eq(1)

        valid = [Signal(name=f"valid{i}") for i in (1, 2, 3)]
        last = [Signal(name=f"last{i}", reset_less=True) for i in (1, 2, 3)]
        closes = [Signal(name=f"closes{i}") for i in (1, 2, 3)]
        starts = [Signal(name=f"starts{i}", reset_less=True) for i in (1, 2)]
        place = [Signal(range(self.depth), name=f"place{i}", reset_less=True) for i in (1, 2, 3)]
        weight = Signal.like(row.weight, reset_less=True)
        bytes1 = Signal(data.ArrayLayout(8, BEAT_BYTES), reset_less=True)
        lanes = data.ArrayLayout(SUM_BITS, BEAT_BYTES)
        products, sums = Signal(lanes, reset_less=True), Signal(lanes, reset_less=True)
        m.d.sync += [
            Cat(valid).eq(Cat(accept, valid)),
            Cat(last).eq(Cat(row.last, last)),
            Cat(closes).eq(Cat(over & row.last, closes)),
            Cat(starts).eq(Cat(opens, starts)),
            place[0].eq(beat),
            place[1].eq(place[0]),
            place[2].eq(place[1]),
            bytes1.eq(self.beats.payload),
            weight.eq(row.weight),
        ]
        # Two bytes share a multiplier: a byte times 256 fits 16 bits, so products do not touch.
        for i in range(0, BEAT_BYTES, 2):
            pair = Cat(bytes1[i], Const(0, SUM_BITS - 8), bytes1[i + 1])
            m.d.sync += Cat(products[i], products[i + 1]).eq(pair * weight)

        m.submodules.sums = memory = Memory(shape=unsigned(LINE_BITS), depth=self.depth, init=[])
        m.submodules.line = line = Memory(
            shape=unsigned(LINE_BITS),
            depth=self.depth,
            init=[],
            attrs={"ram_style": "distributed"},
        )
        writer, reader = memory.write_port(), memory.read_port()
        line_writer, line_reader = line.write_port(), line.read_port()
        held = Signal(lanes)
        m.d.comb += [
            reader.addr.eq(place[0]),
            held.eq(reader.data),
            writer.addr.eq(place[2]),
            writer.data.eq(sums),
            writer.en.eq(valid[2]),
            line_writer.addr.eq(place[2]),
            line_writer.data.eq(sums),
            line_writer.en.eq(valid[2] & last[2]),
            line_reader.addr.eq(self.line_address),
            self.line_data.eq(line_reader.data),
        ]
        m.d.sync += [
            sums[i].eq(products[i] + Mux(starts[1], 0, held[i])) for i in range(BEAT_BYTES)
        ]
        with m.If(closes[2]):
            m.d.sync += self.full.eq(1)
        return m


class PixelPacker(wiring.Component):
    """Pixels to input codes, and codes to beats; a row's last beat is filled up with zeros.

    A pixel (`channels` bytes of `pixel`) may come every cycle; `end` comes with or after a row's
    last pixel, and two cycles before the next row's first. `room` tells that all pixels which
    `ColumnBlender` may have under way find room.

    Timing: a beat is on `beats` `LATENCY` cycles after the pixel that completes it.
    """

    FIFO_DEPTH = 16
    UNDER_WAY_BEATS = 6
    LATENCY = 3

    def __init__(self) -> None:
        super().__init__(
            {
                "write": In(_write_port(_CHANNELS * resample.CODE_WORDS)),
                "channels": In(_CHANNELS.bit_length()),
                "valid": In(1),
                "end": In(1),
                "pixel": In(data.ArrayLayout(8, _CHANNELS)),
                "room": Out(1),
                "beats": Out(stream.Signature(DATA_BITS)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Look up, choose the byte, append, emit."""
        m = Module()
        m.submodules.fifo = fifo = StreamFifo(DATA_BITS, self.FIFO_DEPTH)
        wiring.connect(m, fifo.output, wiring.flipped(self.beats))
        valid, end = Signal(2), Signal(2)
        codes = Signal(data.ArrayLayout(8, _CHANNELS), reset_less=True)
        word_bits = (resample.CODE_WORDS - 1).bit_length()
        m.d.sync += [valid.eq(Cat(self.valid, valid)), end.eq(Cat(self.end, end))]
        for c in range(_CHANNELS):
            memory = Memory(shape=unsigned(DATA_BITS), depth=resample.CODE_WORDS, init=[])
            m.submodules[f"codes{c}"] = memory
            writer, reader = memory.write_port(), memory.read_port()
            lane = Signal(BEAT_BYTES_LOG2, name=f"lane{c}", reset_less=True)
            m.d.comb += [
                writer.en.eq(self.write.valid & (self.write.address[word_bits:] == c)),
                writer.addr.eq(self.write.address),
                writer.data.eq(self.write.data),
                reader.addr.eq(self.pixel[c][BEAT_BYTES_LOG2:]),
            ]
            code = reader.data.word_select(lane, 8)
            m.d.sync += [
                lane.eq(self.pixel[c]),
                codes[c].eq(Mux(self.channels > c, code, 0)),
            ]
        held, count = Signal(8 * (BEAT_BYTES - 1)), Signal(range(BEAT_BYTES))
        wide = Signal(8 * (BEAT_BYTES - 1 + _CHANNELS))
        total, flush, emit = Signal(range(BEAT_BYTES + _CHANNELS)), Signal(), Signal()
        m.d.comb += [
            wide.eq(held | Mux(valid[1], codes.as_value() << (count << 3), 0)),
            total.eq(count + Mux(valid[1], self.channels, 0)),
            emit.eq(total[BEAT_BYTES_LOG2] | (flush & (count != 0))),
            fifo.input.valid.eq(emit),
            fifo.input.payload.eq(wide),
            self.room.eq(fifo.level < self.FIFO_DEPTH - self.UNDER_WAY_BEATS),
        ]
        m.d.sync += [
            flush.eq(end[1]),
            held.eq(Mux(emit, wide >> DATA_BITS, wide)),
            count.eq(Mux(flush, 0, total)),
        ]
        return m


class ColumnBlender(wiring.Component):
    """Reads complete lines and adds their weighted pixels up to the pixels of a row.

    When a line is `full`, it begins: `begin` starts the column table too, whose steps it takes.
    `reading` from the next cycle on, it has read `words_read` words. `valid`, `pixel` and `end` go
    to a `PixelPacker`. `bad`: the steps do not make `row_bytes` bytes out of
    `source_bytes`; the run must stop.

    Timing: the first step of a line is taken `START_CYCLES` cycles after the line is full; a step
    a cycle from there; the next line may begin `NEXT_CYCLES` after the last step. A pixel leaves
    `LATENCY` cycles after its last step.
    """

    START_CYCLES = 5
    NEXT_CYCLES = 2
    LATENCY = 4
    WORD_FIFO_DEPTH = 4

    def __init__(self, config: AcceleratorConfig) -> None:
        self.depth = config.resampler_row_bytes // BEAT_BYTES
        fields = box_fields(config)
        names = ("channels", "skip", "source_bytes", "column_steps")
        super().__init__(
            {
                **{name: In(fields[name]) for name in names},
                "row_bytes": In(isa.LOAD.by_name["row_bytes"].bits),
                "full": In(1),
                "begin": Out(1),
                "reading": Out(1),
                "words_read": Out(range(2 * self.depth)),
                "line_address": Out(range(self.depth)),
                "line_data": In(LINE_BITS),
                "steps": In(stream.Signature(STEP)),
                "room": In(1),
                "valid": Out(1),
                "end": Out(1),
                "pixel": Out(data.ArrayLayout(8, _CHANNELS)),
                "bad": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Run a line: words into a window, steps along it, four stages to the pixel."""
        m = Module()
        running = self.reading
        steps_left, made = Signal(STEP_COUNT_BITS), Signal.like(self.row_bytes)
        step, take = self.steps.payload, Signal()
        last_step = Signal()
        m.d.comb += last_step.eq(take & (steps_left == 1))
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.begin.eq(self.full)
                with m.If(self.full):
                    m.d.sync += [steps_left.eq(self.column_steps), made.eq(0)]
                    m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += running.eq(1)
                with m.If(take):
                    m.d.sync += [
                        steps_left.eq(steps_left - 1),
                        made.eq(made + Mux(step.last, self.channels, 0)),
                    ]
                with m.If(last_step):
                    m.next = "END"
            with m.State("END"):
                with m.If(made != self.row_bytes):
                    m.d.comb += self.bad.eq(1)
                m.next = "IDLE"

        # Words of the line, one more than it has: the last pixel may end with a word.
        m.submodules.words = words = ResetInserter(self.begin)(
            StreamFifo(unsigned(LINE_BITS), self.WORD_FIFO_DEPTH)
        )
        word, read, issue = self.words_read, Signal(), Signal()
        m.d.comb += [
            issue.eq(running & (words.level < self.WORD_FIFO_DEPTH - 1)),
            self.line_address.eq(word),
            words.input.valid.eq(read),
            words.input.payload.eq(self.line_data),
        ]
        m.d.sync += [read.eq(issue), word.eq(Mux(running, word + issue, 0))]

        # The window: two words, and where in the first one the next pixel begins.
        window = [Signal(LINE_BITS, name=f"window{i}", reset_less=True) for i in range(2)]
        here = Signal(2)
        position = Signal(BEAT_BYTES_LOG2)
        moves, further = Signal(), Signal(range(BEAT_BYTES + _CHANNELS))
        shift = Signal()
        m.d.comb += [
            moves.eq(take & step.advance),
            further.eq(position + self.channels),
            shift.eq((moves & further[BEAT_BYTES_LOG2]) | ~here[0]),
            words.output.ready.eq(shift | ~here[1]),
            take.eq(running & self.steps.valid & self.room & (~step.advance | here.all())),
            self.steps.ready.eq(take),
        ]
        with m.If(shift):
            m.d.sync += [window[0].eq(window[1]), here[0].eq(here[1])]
        with m.If(words.output.ready):
            m.d.sync += [window[1].eq(words.output.payload), here[1].eq(words.output.valid)]
        with m.If(moves):
            m.d.sync += position.eq(further)
        with m.If(~running):
            m.d.sync += [here.eq(0), position.eq(self.skip)]

        # What the steps may not do: look in front of the first pixel, or behind the last.
        passed, seen = Signal(self.source_bytes.shape().width + 1), Signal(2)
        beyond = Signal()
        m.d.comb += beyond.eq(passed > self.source_bytes)
        with m.If(moves):
            m.d.sync += [passed.eq(passed + self.channels), seen.eq(Cat(1, seen[0]))]
        with m.If(~running):
            m.d.sync += [passed.eq(0), seen.eq(0)]
        after = Mux(step.advance, Cat(1, seen[0]), seen)
        with m.If(beyond | (take & ~Mux(step.previous, after[1], after[0]))):
            m.d.comb += self.bad.eq(1)

        # Stage 1: the pixels. 2: the one that counts. 3: its product. 4: the sum.
        pixels = data.ArrayLayout(SUM_BITS, _CHANNELS)
        now, before = Signal(pixels, reset_less=True), Signal(pixels, reset_less=True)
        value = Signal(pixels, reset_less=True)
        weight_bits = len(step.weight)
        products = Signal(data.ArrayLayout(SUM_BITS + weight_bits, _CHANNELS), reset_less=True)
        sums = Signal(data.ArrayLayout(SUM_BITS + 8, _CHANNELS), reset_less=True)
        weight = [Signal(weight_bits, name=f"weight{i}", reset_less=True) for i in (1, 2)]
        previous, opens = Signal(reset_less=True), Signal(init=1)
        first = [Signal(name=f"first{i}", reset_less=True) for i in (1, 2, 3)]
        done = [Signal(name=f"done{i}") for i in (1, 2, 3, 4)]
        ends = [Signal(name=f"ends{i}") for i in (1, 2, 3, 4)]
        valid = [Signal(name=f"stage{i}") for i in (1, 2, 3)]
        lanes = Cat(window)
        places = Array(lanes[SUM_BITS * i : SUM_BITS * (i + _CHANNELS)] for i in range(BEAT_BYTES))
        with m.If(moves):
            m.d.sync += [
                before.eq(now),
                now.eq(places[position]),
            ]
        with m.If(take):
            m.d.sync += opens.eq(step.last)
        with m.If(~running):
            m.d.sync += opens.eq(1)
        m.d.sync += [
            Cat(valid).eq(Cat(take, valid)),
            Cat(done).eq(Cat(take & step.last, done)),
            Cat(ends).eq(Cat(last_step, ends)),
            Cat(first).eq(Cat(opens, first)),
            previous.eq(step.previous),
            weight[0].eq(step.weight),
            weight[1].eq(weight[0]),
            value.eq(Mux(previous, before, now)),
            *(products[c].eq(value[c] * weight[1]) for c in range(_CHANNELS)),
        ]
        half = 1 << (_ROUND_BITS - 1)
        with m.If(valid[2]):
            m.d.sync += [
                sums[c].eq(products[c] + Mux(first[2], half, sums[c])) for c in range(_CHANNELS)
            ]
        m.d.comb += [
            self.valid.eq(done[3]),
            self.end.eq(ends[3]),
            *(self.pixel[c].eq(sums[c][_ROUND_BITS:]) for c in range(_CHANNELS)),
        ]
        return m


class Resampler(wiring.Component):
    """Tables, row blender, column blender and packer.

    `start` begins a job (`box` and `row_bytes` steady to its end): `rows` and `beats` are its
    source rows, `output` the beats of the rows made. `row_start`, `row_first` and `row_count` begin
    a list of row steps on `row_steps`, for whoever asks for the source rows. `bad` as of
    `ColumnBlender`.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.blender = RowBlender(config)
        self.columns = ColumnBlender(config)
        super().__init__(
            {
                "write": In(_write_port(resample.TABLE_WORDS)),
                "box": In(data.StructLayout(box_fields(config))),
                "row_bytes": In(self.columns.row_bytes.shape()),
                "start": In(1),
                "row_start": In(1),
                "row_first": In(range(resample.STEPS)),
                "row_count": In(STEP_COUNT_BITS),
                "row_steps": Out(stream.Signature(STEP)),
                "rows": In(stream.Signature(SOURCE_ROW)),
                "beats": In(stream.Signature(DATA_BITS)),
                "output": Out(stream.Signature(DATA_BITS)),
                "bad": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Wire them up."""
        m = Module()
        m.submodules.tables = tables = StepTables()
        m.submodules.rows = blender = self.blender
        m.submodules.columns = columns = self.columns
        m.submodules.packer = packer = PixelPacker()
        wiring.connect(m, tables.rows.steps, wiring.flipped(self.row_steps))
        wiring.connect(m, wiring.flipped(self.rows), blender.rows)
        wiring.connect(m, wiring.flipped(self.beats), blender.beats)
        wiring.connect(m, tables.columns.steps, columns.steps)
        wiring.connect(m, packer.beats, wiring.flipped(self.output))
        box, write = self.box, self.write
        for_codes = write.address >= resample.CODES_AT
        m.d.comb += [
            tables.write.valid.eq(write.valid & ~for_codes),
            tables.write.address.eq(write.address),
            tables.write.data.eq(write.data),
            packer.write.valid.eq(write.valid & for_codes),
            packer.write.address.eq(write.address),
            packer.write.data.eq(write.data),
            tables.rows.start.eq(self.row_start),
            tables.rows.first.eq(self.row_first),
            tables.rows.count.eq(self.row_count),
            tables.columns.start.eq(columns.begin),
            tables.columns.first.eq(0),
            tables.columns.count.eq(box.column_steps),
            blender.start.eq(self.start),
            blender.row_steps.eq(box.row_steps),
            blender.source_beats.eq(box.source_beats),
            *(
                getattr(columns, name).eq(box[name])
                for name in ("channels", "skip", "source_bytes", "column_steps")
            ),
            columns.row_bytes.eq(self.row_bytes),
            columns.full.eq(blender.full),
            columns.line_data.eq(blender.line_data),
            *(
                getattr(blender, name).eq(getattr(columns, name))
                for name in ("begin", "reading", "words_read", "line_address")
            ),
            packer.channels.eq(box.channels),
            packer.valid.eq(columns.valid),
            packer.end.eq(columns.end),
            packer.pixel.eq(columns.pixel),
            columns.room.eq(packer.room),
            self.bad.eq(columns.bad),
        ]
        return m
