# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the load issuer: rows asked for, jobs passed on, refusals."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from hwgen.arch import isa
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import LoadTarget, Opcode, Queue
from hwgen.arch.registers import BASE_COUNT, ErrorCode
from rtl.dispatch import PAYLOADS
from rtl.layouts import INDEX_BITS
from rtl.load_issuer import LoadIssuer
from rtl.streams import TRANSFER
from rtl.unpacker import row_job
from sim.benches.memory import reset
from sim.benches.signals import Sink, Source, pack, unpack
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
CONFIG = AcceleratorConfig.from_dict(PARAMETERS["config"]) if PARAMETERS else AcceleratorConfig()
SEED = PARAMETERS.get("seed", 1)
JOB = row_job(CONFIG)
SPACE = 1 << 32


def random_load(rng: random.Random) -> dict[str, int]:
    """Return a legal LOAD; where its rows lie is another matter."""
    f = {field.name: rng.randint(field.minimum, field.maximum) for field in isa.LOAD.fields}
    targets = [t for t in LoadTarget if t != LoadTarget.RESAMPLER]
    f |= {"opcode": Opcode.LOAD, "target": rng.choice(targets), "rows": 1, "resample": 0}
    f["offset_bytes"] = 8 * rng.getrandbits(26)
    f["pitch_bytes"] = 8 * rng.getrandbits(21)
    if f["target"] == LoadTarget.SCRATCHPAD:
        f["rows"] = rng.randint(1, 6)
        f["row_bytes"] = rng.choice([1, 8, rng.randint(1, 200), rng.randint(1, (1 << 24) - 1)])
        f["take_bytes"] = rng.randint(1, CONFIG.ti)
        f["words_per_row"], f["step_bytes"] = rng.randint(1, 0xFFFF), rng.randint(1, 255)
    else:
        synapse = f["target"] == LoadTarget.SYNAPSE
        unit = CONFIG.synapse_row_bytes if synapse else isa.TAP_BYTES
        f["row_bytes"] = unit * rng.randint(1, 50)
    return f


def transfers(f: dict[str, int], bases: list[int]) -> list[tuple[int, int]]:
    """Return (address, beats) of each row."""
    first = bases[f["base"]] + f["offset_bytes"]
    return [(first + r * f["pitch_bytes"], -(-f["row_bytes"] // 8)) for r in range(f["rows"])]


def job_of(f: dict[str, int], index: int, error: ErrorCode = ErrorCode.NONE) -> dict[str, int]:
    """Return the job of a LOAD: SB in words of ti bytes, a slot each; taps in words of a beat."""
    signals = sum(f[f"signal_{q.name.lower()}"] << q for q in Queue)
    same = ("target", "check", "crc32", "row_bytes", "rows", "destination", "destination_pitch")
    job = {name: f[name] for name in same}
    job |= {"error": error, "index": index, "signals": signals, "pad": f["pad_value"] & 0xFF}
    lead, step, take, words = (
        f[name] for name in ("lead_bytes", "step_bytes", "take_bytes", "words_per_row")
    )
    if f["target"] == LoadTarget.SYNAPSE:
        lead, step, take, words = 0, CONFIG.ti, CONFIG.ti, f["row_bytes"] // CONFIG.ti
        job["destination"] *= CONFIG.tn
    if f["target"] == LoadTarget.TAP:
        lead, step, take, words = 0, isa.TAP_BYTES, isa.TAP_BYTES, f["row_bytes"] // isa.TAP_BYTES
    return job | {"lead": lead, "step": step, "take": take, "words": words}


class Bench:
    """Feeds LOADs and keeps requests, jobs and errors with their cycles."""

    def __init__(self, dut: Any, rng: random.Random, stall: float, jobs: float) -> None:
        self.dut = dut
        self.source = Source(dut, "instruction", rng, stall)
        self.requests, self.jobs = Sink(dut, "request", rng, stall), Sink(dut, "job", rng, jobs)
        self.bases = [8 * rng.getrandbits(28) for _ in range(BASE_COUNT)]
        self.cycle = 0
        self.accepted: list[int] = []
        self.asked: list[tuple[int, tuple[int, int]]] = []
        self.passed: list[dict[str, int]] = []
        self.errors: list[tuple[int, int]] = []

    def load(self, index: int, f: dict[str, int]) -> None:
        """Queue a LOAD."""
        payload = {"fields": isa.LOAD.pack(f), "index": index}
        self.source.items.append(pack(PAYLOADS[Queue.LOAD], payload))

    async def run(self, cycles: int) -> None:
        """Reset, then run so many cycles."""
        await reset(self.dut, **{f"bases__{i}": base for i, base in enumerate(self.bases)})
        for _ in range(cycles):
            for end in (self.source, self.requests, self.jobs):
                end.drive()
            await ReadOnly()
            if self.source.sample() is not None:
                self.accepted.append(self.cycle)
            request, job = self.requests.sample(), self.jobs.sample()
            if request is not None:
                transfer = unpack(TRANSFER, request)
                self.asked.append((self.cycle, (transfer["address"], transfer["beats"])))
            if job is not None:
                self.passed.append(unpack(JOB, job))
            if int(self.dut.error__valid.value):
                report = int(self.dut.error__code.value), int(self.dut.error__index.value)
                self.errors.append(report)
            await RisingEdge(self.dut.clk)
            self.cycle += 1


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.6], jobs=[0.0, 0.8])
async def loads(dut: Any, stall: float, jobs: float) -> None:
    """Every row and every job of random LOADs; without stalls, each in its cycle."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(f"{SEED} {stall} {jobs}")
    bench = Bench(dut, rng, stall, jobs)
    indices = [rng.getrandbits(INDEX_BITS) for _ in range(PARAMETERS["count"])]
    fields = [random_load(rng) for _ in indices]
    for index, f in zip(indices, fields, strict=True):
        bench.load(index, f)
    await bench.run(60 * len(fields))
    assert bench.errors == []
    rows = [transfers(f, bench.bases) for f in fields]
    assert [transfer for _, transfer in bench.asked] == [t for load in rows for t in load]
    assert bench.passed == [job_of(f, i) for f, i in zip(fields, indices, strict=True)]
    if not (stall or jobs):
        first = [a + LoadIssuer.REQUEST_LATENCY for a in bench.accepted]
        want = [c + r for c, load in zip(first, rows, strict=True) for r in range(len(load))]
        assert [cycle for cycle, _ in bench.asked] == want


@cocotb.test()
async def runs_ahead(dut: Any) -> None:
    """Ask for the rows of JOBS instructions, and no more, while nobody takes a job."""
    rng = random.Random(SEED)
    bench = Bench(dut, rng, 0.0, 1.0)
    fields = [random_load(rng) for _ in range(LoadIssuer.JOBS + 3)]
    for index, f in enumerate(fields):
        bench.load(index, f)
    await bench.run(200)
    want = [t for f in fields[: LoadIssuer.JOBS] for t in transfers(f, bench.bases)]
    assert [transfer for _, transfer in bench.asked] == want
    assert bench.passed == [] and bench.errors == []


SYNAPSE, TAP = LoadTarget.SYNAPSE, LoadTarget.TAP
ROW = CONFIG.synapse_row_bytes
WRONG: dict[str, dict[str, int]] = {
    "rows": {"rows": 0},
    "row_bytes": {"row_bytes": 0},
    "words": {"words_per_row": 0},
    "step": {"step_bytes": 0},
    "no_take": {"take_bytes": 0},
    "take": {"take_bytes": CONFIG.ti + 1},
    "offset": {"offset_bytes": 4},
    "pitch": {"pitch_bytes": 1},
    "target": {"target": LoadTarget.RESAMPLER},
    "resample": {"resample": 1},
    "synapse_rows": {"target": SYNAPSE, "rows": 2, "row_bytes": ROW},
    "synapse_bytes": {"target": SYNAPSE, "rows": 1, "row_bytes": ROW + ROW // 2},
    "tap_rows": {"target": TAP, "rows": 2, "row_bytes": 16},
    "tap_bytes": {"target": TAP, "rows": 1, "row_bytes": 12},
}


def good(rng: random.Random) -> dict[str, int]:
    """Return a legal LOAD into the scratchpad."""
    f = random_load(rng)
    while f["target"] != LoadTarget.SCRATCHPAD:
        f = random_load(rng)
    return f


@cocotb.test()
@cocotb.parametrize(name=[*WRONG, "base"])
async def refusals(dut: Any, name: str) -> None:
    """Pass a wrong LOAD on as a job with its error, ask for none of its rows, and stop."""
    rng = random.Random(f"{SEED} {name}")
    bench = Bench(dut, rng, 0.3, 0.3)
    before, behind = good(rng), good(rng)
    wrong = {**good(rng), **WRONG.get(name, {})}
    if name == "base":
        wrong["base"] = (before["base"] + 1) % BASE_COUNT
        bench.bases[wrong["base"]] += 4
    for index, f in enumerate((before, wrong, behind)):
        bench.load(index, f)
    await bench.run(150)
    assert [transfer for _, transfer in bench.asked] == transfers(before, bench.bases)
    assert bench.passed[0] == job_of(before, 0)
    assert [(job["index"], job["error"]) for job in bench.passed[1:]] == [(1, ErrorCode.BAD_FIELD)]
    assert len(bench.accepted) == 2 and bench.errors == []


@cocotb.test()
@cocotb.parametrize(past=[-8, 0, 8, 1 << 20], row=[0, 2])
async def end_of_memory(dut: Any, past: int, row: int) -> None:
    """Let a row end with the address space; refuse a beat further when it is reached."""
    rng = random.Random(f"{SEED} {past} {row}")
    bench = Bench(dut, rng, 0.3, 0.3)
    f = good(rng) | {"rows": row + 1, "row_bytes": 41, "pitch_bytes": 1 << 21, "base": 5}
    bench.bases[5] = SPACE - (1 << 28)
    f["offset_bytes"] = (1 << 28) + past - 48 - row * f["pitch_bytes"]
    bench.load(9, f)
    await bench.run(80)
    fits = past <= 0
    rows = transfers(f, bench.bases)
    assert [transfer for _, transfer in bench.asked] == rows[: row + 1 if fits else row]
    assert bench.errors == ([] if fits else [(ErrorCode.ADDRESS_RANGE, 9)])
