# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the unpacker: rows of random lead, step, take and pad to words."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import BEAT_BYTES
from rtl.unpacker import Unpacker, row_job
from sim.benches.memory import reset
from sim.benches.signals import Sink, Source, pack, unpack
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
CONFIG = AcceleratorConfig.from_dict(PARAMETERS["config"]) if PARAMETERS else AcceleratorConfig()
SEED = PARAMETERS.get("seed", 1)
JOB = row_job(CONFIG)
WORD = Unpacker(CONFIG).word


def random_job(rng: random.Random) -> dict[str, int]:
    """Return a row of any shape."""
    return {
        "row_bytes": rng.choice([1, 7, 8, 9, rng.randint(1, 120)]),
        "words": rng.choice([1, 2, rng.randint(1, 20)]),
        "lead": rng.choice([0, 0, 1, 7, 8, CONFIG.ti, CONFIG.ti + 1, 255]),
        "step": rng.choice([1, 2, 3, CONFIG.ti - 1, CONFIG.ti, CONFIG.ti + 1, 255]),
        "take": rng.choice([1, CONFIG.ti, rng.randint(1, CONFIG.ti)]),
        "pad": rng.getrandbits(8),
    }


def words_of(row: bytes, job: dict[str, int]) -> list[bytes]:
    """Return the words of a row, as LOAD's loop nest has them."""
    pad, step, take = bytes([job["pad"]]), job["step"], job["take"]
    behind = pad * (job["words"] * step + take)
    stream = pad * job["lead"] + row[: job["row_bytes"]] + behind
    return [
        stream[j * step : j * step + take] + pad * (CONFIG.ti - take) for j in range(job["words"])
    ]


def beats_before(job: dict[str, int], word: int) -> int:
    """Return how many beats must be there before a word can be emitted."""
    end = min(word * job["step"] + job["take"] - job["lead"], job["row_bytes"])
    return max(0, -(-end // BEAT_BYTES))


class Bench:
    """Runs rows; keeps the cycles of its beats and words."""

    def __init__(self, dut: Any, rng: random.Random, stall: float, drain: float) -> None:
        self.dut, self.rng = dut, rng
        self.source, self.sink = Source(dut, "beats", rng, stall), Sink(dut, "words", rng, drain)
        self.cycle = 0
        self.taken: list[int] = []
        self.shown: dict[int, int] = {}
        self.words: list[tuple[int, bytes]] = []

    async def tick(self) -> tuple[int, int]:
        """Run a cycle; return `done` and whether every word has left."""
        self.source.drive()
        self.sink.drive()
        await ReadOnly()
        state = int(self.dut.done.value), int(not int(self.dut.under_way.value))
        if self.source.sample() is not None:
            self.taken.append(self.cycle)
        if int(self.dut.words__valid.value):
            self.shown.setdefault(len(self.words), self.cycle)
        word = self.sink.sample()
        if word is not None:
            fields = unpack(WORD, word)
            data = fields["data"].to_bytes(CONFIG.ti, "little")
            self.words.append((fields["destination"], data))
        await RisingEdge(self.dut.clk)
        self.cycle += 1
        return state

    async def row(self, job: dict[str, int], row: bytes, destination: int) -> int:
        """Start a row and run it until it is done; return the cycle in which it began."""
        self.taken = []
        beats = [row[i : i + BEAT_BYTES] for i in range(0, len(row), BEAT_BYTES)]
        self.source.items.extend(int.from_bytes(beat, "little") for beat in beats)
        self.dut.destination.value, self.dut.start.value = destination, 1
        assert (await self.tick())[0], "a row must be started when the one before it is done"
        assert not self.taken
        self.dut.start.value, self.dut.destination.value = 0, self.rng.getrandbits(8)
        start = self.cycle - 1
        for _ in range(4000):
            done, _ = await self.tick()
            if done:
                return start
        raise AssertionError(f"not done: {job}")

    async def flush(self) -> None:
        """Wait until all words have left."""
        while not (await self.tick())[1]:
            pass


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.6], drain=[0.0, 0.6])
async def rows(dut: Any, stall: float, drain: float) -> None:
    """Several rows a job: every word, its place, and the cycle in which it comes."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(f"{SEED} {stall} {drain}")
    bench = Bench(dut, rng, stall, drain)
    await reset(dut, start=0)
    for number in range(PARAMETERS["count"]):
        job = random_job(rng)
        beats = -(-job["row_bytes"] // BEAT_BYTES)
        dut.job.value = pack(JOB, job)
        expected: list[tuple[int, bytes]] = []
        bench.words, bench.shown = [], {}
        for _ in range(rng.randint(1, 3)):
            row, destination = rng.randbytes(beats * BEAT_BYTES), rng.getrandbits(8)
            before = len(expected)
            start = await bench.row(job, row, destination)
            finish = bench.cycle - 1  # `done` was seen in this cycle
            expected += [(destination + j, word) for j, word in enumerate(words_of(row, job))]
            assert len(bench.taken) == beats and not bench.source.items
            if not drain:
                await bench.flush()
                emitted = start
                for j in range(job["words"]):
                    needed = beats_before(job, j)
                    there = bench.taken[needed - 1] if needed else start
                    emitted = max(emitted, there) + 1
                    shown = bench.shown[before + j]
                    assert shown == emitted - 1 + Unpacker.WORD_LATENCY, (job, j)
                assert finish == max(emitted, bench.taken[-1]) + 1, job
        await bench.flush()
        assert bench.words == expected, f"job {number}: {job}"


@cocotb.test()
@cocotb.parametrize(step=[1, 3, CONFIG.ti, 2 * CONFIG.ti])
async def rate(dut: Any, step: int) -> None:
    """Without stalls it is a word a cycle, or a beat a cycle where the beats are more."""
    rng = random.Random(SEED)
    bench = Bench(dut, rng, 0.0, 0.0)
    await reset(dut, start=0)
    words = 60
    job = {"row_bytes": words * step, "words": words, "step": step, "take": min(step, CONFIG.ti)}
    dut.job.value = pack(JOB, job)
    beats = -(-words * step // BEAT_BYTES)
    start = await bench.row(job, rng.randbytes(beats * BEAT_BYTES), 0)
    most = max(words, beats)
    assert most < bench.cycle - 1 - start <= most + 4, (bench.cycle - start, most)
