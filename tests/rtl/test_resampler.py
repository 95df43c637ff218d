# SPDX-License-Identifier: Apache-2.0
"""The tests room: the resampler in Amaranth's simulator, its bits and its cycles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from hwgen.arch import AcceleratorConfig, isa, resample, timing
from hwgen.arch.crop import resize
from hwgen.arch.isa import BEAT_BYTES, LoadTarget, Opcode
from rtl.load import LoadEngine
from rtl.load_issuer import LoadIssuer
from rtl.resampler import ColumnBlender, PixelPacker, Resampler, RowBlender

CONFIG = AcceleratorConfig(
    tn=4, ti=8, scratchpad_bank_words=64, synapse_rows=32, tap_entries=64, resampler_row_bytes=128
)


class Run:
    """One job of a resampler alone: a picture goes in, beats come out; the cycles of both."""

    def __init__(self, picture: np.ndarray, size: int, skip: int, codes: np.ndarray) -> None:
        self.picture, self.size, self.skip, self.codes = picture, size, skip, codes
        self.taken: list[int] = []
        self.given: list[int] = []
        self.beats: list[int] = []
        self.bad = False
        height, width, self.channels = picture.shape
        self.rows = resample.resize_steps(height, size)
        self.columns = resample.resize_steps(width, size)
        self.row_beats = -(-(skip + width * self.channels) // BEAT_BYTES)

    def go(self, longest: int = 4000) -> bytes:
        """Simulate; return what the rows hold."""
        self.dut = Resampler(CONFIG)
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-6)
        self.wanted = self.size * -(-self.size * self.channels // BEAT_BYTES)
        self.longest = longest
        simulator.add_testbench(self._bench)
        simulator.run()
        raw = b"".join(beat.to_bytes(BEAT_BYTES, "little") for beat in self.beats)
        rows = np.frombuffer(raw, np.uint8).reshape(self.size, -1)
        return rows[:, : self.size * self.channels].tobytes()

    async def _bench(self, ctx: Any) -> None:
        dut = self.dut
        for place, raw in resample.table_blocks(self.rows, self.columns, self.codes):
            for i in range(0, len(raw), BEAT_BYTES):
                ctx.set(dut.write.valid, 1)
                ctx.set(dut.write.address, place + i // BEAT_BYTES)
                ctx.set(dut.write.data, int.from_bytes(raw[i : i + BEAT_BYTES], "little"))
                await ctx.tick()
        ctx.set(dut.write.valid, 0)
        box = {
            "resample": 1,
            "channels": self.channels,
            "skip": self.skip,
            "source_bytes": self.picture.shape[1] * self.channels,
            "source_beats": self.row_beats,
            "row_steps": len(self.rows),
            "column_steps": len(self.columns),
        }
        ctx.set(dut.box, box)
        ctx.set(dut.row_bytes, self.size * self.channels)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        ctx.set(dut.output.ready, 1)
        fields = resample.unpack_steps(self.rows)
        y = np.cumsum(fields["advance"]) - 1 - fields["previous"]
        rows = list(
            zip(y.tolist(), fields["weight"].tolist(), fields["last"].tolist(), strict=True)
        )
        row = beat = 0
        for cycle in range(self.longest):
            more = row < len(rows)
            ctx.set(dut.rows.valid, more)
            if more:
                ctx.set(dut.rows.payload, {"weight": rows[row][1], "last": rows[row][2]})
            source = beat // self.row_beats
            ctx.set(dut.beats.valid, source < len(rows))
            if source < len(rows):
                raw = bytes(self.skip) + self.picture[rows[source][0]].tobytes() + bytes(BEAT_BYTES)
                at = beat % self.row_beats * BEAT_BYTES
                word = int.from_bytes(raw[at : at + BEAT_BYTES], "little")
                ctx.set(dut.beats.payload, word)
            _, _, announced, taken, given, payload, bad = await ctx.tick().sample(
                dut.rows.ready,
                dut.beats.ready & dut.beats.valid,
                dut.output.valid,
                dut.output.payload,
                dut.bad,
            )
            row += more and announced
            beat += taken
            if taken:
                self.taken.append(cycle)
            if given:
                self.given.append(cycle)
                self.beats.append(payload)
            self.bad |= bool(bad)
            if len(self.beats) == self.wanted or self.bad:
                return


@pytest.mark.parametrize(
    ("height", "width", "size", "channels", "skip"),
    [(9, 14, 6, 3, 5), (4, 3, 7, 2, 0), (1, 1, 3, 4, 7), (8, 8, 8, 1, 1), (12, 30, 5, 4, 0)],
)
def test_it_equals_the_resize(
    height: int, width: int, size: int, channels: int, skip: int, rng: np.random.Generator
) -> None:
    picture = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    codes = rng.integers(0, 256, (channels, 256), dtype=np.uint8)
    run = Run(picture, size, skip, codes)
    found = np.frombuffer(run.go(), np.uint8).reshape(size, size, channels)
    assert not run.bad
    np.testing.assert_array_equal(found, codes[np.arange(channels), resize(picture, size)])


def identity(channels: int) -> np.ndarray:
    return np.tile(np.arange(256, dtype=np.uint8), (channels, 1))


def test_columns_are_the_bound() -> None:
    """A line a `START + steps + RELEASE` cycles, the first one behind its last row's last beat."""
    run = Run(np.ones((8, 16, 4), np.uint8), 8, 0, identity(4))
    run.go()
    steps = len(run.columns)
    lines = [run.given[i] for i in range(3, len(run.given), 4)]
    period = timing.LINE_START_CYCLES + steps - 1 + timing.LINE_NEXT_CYCLES
    assert {b - a for a, b in zip(lines, lines[1:], strict=False)} == {period}
    first = run.taken[run.row_beats - 1] + timing.LINE_CYCLES + timing.LINE_START_CYCLES
    assert lines[0] == first + steps - 1 + timing.PIXEL_CYCLES


def test_rows_are_the_bound() -> None:
    """A beat a cycle, a gap between rows; one more where a row is one beat."""
    run = Run(np.ones((24, 24, 4), np.uint8), 2, 0, identity(4))
    run.go()
    gaps = np.diff(run.taken)
    assert set(gaps.tolist()) == {1, 1 + timing.RESAMPLE_ROW_GAP_CYCLES}
    assert (gaps == 1).sum() == len(run.rows) * (run.row_beats - 1)
    run = Run(np.ones((24, 2, 4), np.uint8), 1, 0, identity(4))
    run.go()
    assert set(np.diff(run.taken).tolist()) == {2 + timing.RESAMPLE_ROW_GAP_CYCLES}


def test_the_contract_has_the_blocks_cycles() -> None:
    assert timing.RESAMPLE_ISSUE_CYCLES == LoadIssuer.RESAMPLE_LATENCY
    assert timing.RESAMPLE_ROW_GAP_CYCLES == RowBlender.ROW_GAP
    assert timing.LINE_CYCLES == RowBlender.LATENCY
    assert timing.LINE_START_CYCLES == ColumnBlender.START_CYCLES
    assert timing.LINE_NEXT_CYCLES == ColumnBlender.NEXT_CYCLES
    assert timing.LINE_WORDS_AHEAD >= ColumnBlender.WORD_FIFO_DEPTH
    assert timing.PIXEL_CYCLES == ColumnBlender.LATENCY + PixelPacker.LATENCY


def test_the_first_row_is_asked_for() -> None:
    """After `RESAMPLE_LATENCY` cycles, and then a row every second cycle."""
    dut = LoadEngine(CONFIG)
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    fields = {
        "opcode": Opcode.LOAD,
        "target": LoadTarget.SCRATCHPAD,
        "rows": 4,
        "row_bytes": 8,
        "words_per_row": 1,
        "step_bytes": 8,
        "take_bytes": 8,
        "resample": 1,
        "channels": 1,
        "source_bytes": 8,
        "row_steps": 4,
        "column_steps": 8,
        "pitch_bytes": 64,
        "offset_bytes": 3,
    }
    asked: list[tuple[int, int]] = []

    async def bench(ctx: Any) -> None:
        # Steps that advance and end a row each: what a table of an equal size has.
        step = resample.STEP.pack({"weight": 256, "advance": 1, "last": 1})
        word = sum(step << 16 * i for i in range(4))
        table = {"opcode": Opcode.LOAD, "target": LoadTarget.RESAMPLER, "rows": 1, "row_bytes": 8}
        ctx.set(dut.instruction.payload.fields, table)
        ctx.set(dut.instruction.valid, 1)
        ctx.set(dut.request.ready, 1)
        await ctx.tick().until(dut.instruction.ready)
        ctx.set(dut.instruction.valid, 0)
        ctx.set(dut.data.payload, {"data": word, "response": 0})
        ctx.set(dut.data.valid, 1)
        await ctx.tick().until(dut.data.ready)
        ctx.set(dut.data.valid, 0)
        await ctx.tick().until(dut.complete.valid)
        for _ in range(5):
            await ctx.tick()
        ctx.set(dut.instruction.payload.fields, fields)
        ctx.set(dut.instruction.valid, 1)
        await ctx.tick().until(dut.instruction.ready)
        ctx.set(dut.instruction.valid, 0)
        for cycle in range(1, 30):
            _, _, valid, transfer = await ctx.tick().sample(dut.request.valid, dut.request.payload)
            if valid:
                asked.append((cycle, transfer.address))

    simulator.add_testbench(bench)
    simulator.run()
    first = LoadIssuer.RESAMPLE_LATENCY
    assert asked == [(first + 2 * i, 64 * i) for i in range(4)]
    assert isa.LOAD.by_name["resample"].bits == 1
