# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the sequencer against the instruction set's loop nest, to the cycle."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from hwgen.arch import isa
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import Mode
from hwgen.arch.registers import ErrorCode
from rtl.layouts import COMPUTE, INDEX_BITS, indexed
from rtl.sequencer import WRITE_ADDRESS_BITS, Sequencer, issue_layout
from sim.benches.memory import reset
from sim.benches.signals import Source, pack, unpack
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
CONFIG = AcceleratorConfig.from_dict(PARAMETERS["config"]) if PARAMETERS else AcceleratorConfig()
SEED = PARAMETERS.get("seed", 1)
ISSUE = issue_layout(CONFIG)
FLAGS = ("parameter", "parameter_last", "step", "first", "last", "done")
NEVER = 1 << 60


def random_compute(rng: random.Random, tiny: bool) -> dict[str, int]:
    """Return a legal COMPUTE: small counts, any addresses, steps and positions."""
    f = {field.name: rng.randint(field.minimum, field.maximum) for field in isa.COMPUTE.fields}
    most = 2 if tiny else 7
    f["tap_count"] = rng.randint(1, min(most, CONFIG.tap_entries))
    f["output_height"], f["output_width"] = rng.randint(1, most - 1), rng.randint(1, most)
    f["lane_block"] = rng.randrange(CONFIG.ti // CONFIG.tn)
    one_group = f["output_height"] == 1 and f["output_width"] <= CONFIG.tp
    if f["mode"] != Mode.DENSE or not one_group:
        f["resume"] = f["hold"] = 0
    f["start_delay"] = rng.choice([0, 0, 1, 5, 30, 255])
    f["tap_address"] = rng.randint(0, CONFIG.tap_entries - f["tap_count"])
    f["synapse_address"] = rng.randint(0, CONFIG.synapse_rows - CONFIG.parameter_rows)
    f["weight_address"] = rng.randint(0, CONFIG.synapse_rows - weight_rows(f))
    return f


def weight_rows(f: dict[str, int]) -> int:
    """Return the SB rows of a COMPUTE's weights."""
    taps = f["tap_count"]
    return {Mode.DENSE: taps, Mode.DEPTHWISE: -(-taps // CONFIG.tn)}.get(Mode(f["mode"]), 0)


class Walk:
    """What must be issued, and when, given the cycles in which instructions are accepted."""

    def __init__(self) -> None:
        self.issues: dict[int, dict[str, int]] = {}
        self.error: tuple[int, ErrorCode, int] | None = None
        self.begin = -1
        self.end = -1000
        self.steps = 0

    def ready(self, cycle: int) -> bool:
        """Tell whether an instruction is accepted in a cycle: one waits at most."""
        return cycle >= self.begin

    def accept(self, cycle: int, index: int, f: dict[str, int]) -> None:
        """Add an instruction, as the sequencer's docstring times it."""
        if self.error:
            self.begin = NEVER
            return
        self.begin = max(cycle + Sequencer.ACCEPT_TO_PARAMETERS, self.end + 1)
        counts = (f["tap_count"], f["output_height"], f["output_width"])
        kept = f["resume"] or f["hold"]
        many = f["mode"] != Mode.DENSE or counts[1] > 1 or counts[2] > CONFIG.tp
        if not all(counts) or f["lane_block"] >= CONFIG.ti // CONFIG.tn or (kept and many):
            self.error = self.begin, ErrorCode.BAD_FIELD, index
            return
        shared = {"fields": pack(COMPUTE, f), "index": index}
        first_row = f["synapse_address"]
        for r in range(CONFIG.parameter_rows):
            last = r == CONFIG.parameter_rows - 1
            issue = {"parameter": 1, "parameter_last": int(last), "synapse_pointer": first_row + r}
            if self._issue(self.begin + r, {**issue, **shared}):
                return
        now = max(self.begin + CONFIG.parameter_rows, self.end + f["start_delay"])
        for y in range(f["output_height"]):
            for x in range(0, f["output_width"], CONFIG.tp):
                now += max(0, CONFIG.tp - f["tap_count"])
                for k in range(f["tap_count"]):
                    if self._issue(now, {**self._step(f, y, x, k), **shared}):
                        return
                    self.steps += 1
                    self.end = now
                    now += 1

    def _step(self, f: dict[str, int], y: int, x: int, k: int) -> dict[str, int]:
        """Return a step, as the loop nest in `hwgen.arch.isa` has it."""
        here = y * f["output_row_step"] + x * f["output_pixel_step"]
        there = y * f["input_row_step"] + x * f["input_pixel_step"]
        last = k == f["tap_count"] - 1
        x_left = f["output_width"] - x
        done = last and x_left <= CONFIG.tp and y == f["output_height"] - 1
        writes = 1 << WRITE_ADDRESS_BITS
        step = {
            "step": 1,
            "first": int(k == 0),
            "last": int(last),
            "done": int(done),
            "tap_pointer": f["tap_address"] + k,
            "input_base": (f["input_start"] + there) % (1 << 16),
            "y": f["origin_y"] + y * f["stride_y"],
            "x": f["origin_x"] + x * f["stride_x"],
            "x_left": x_left,
            "output_base": (f["output_address"] + here) % writes,
            "residual_base": (f["residual_address"] + here) % writes,
        }
        weights = f["weight_address"]
        if f["mode"] == Mode.DENSE:
            step["synapse_pointer"] = weights + k
        if f["mode"] == Mode.DEPTHWISE:
            step["synapse_pointer"] = weights + k // CONFIG.tn
            step["slot"] = k % CONFIG.tn
        return step

    def _issue(self, cycle: int, issue: dict[str, int]) -> bool:
        """Issue in a cycle; return whether a pointer is past its memory."""
        self.issues[cycle] = issue
        past = issue.get("tap_pointer", 0) >= CONFIG.tap_entries
        past |= issue.get("synapse_pointer", 0) >= CONFIG.synapse_rows
        if past:
            self.error = cycle + 1, ErrorCode.ADDRESS_RANGE, issue["index"]
        return past


async def compare(
    dut: Any,
    rng: random.Random,
    computes: list[dict[str, int]],
    stall: float,
    stop: int | None = None,
) -> Walk:
    """Run instructions and compare every cycle until all is quiet; `stop` is a cycle."""
    indices = [rng.getrandbits(INDEX_BITS) for _ in computes]
    source, walk = Source(dut, "instruction", rng, stall), Walk()
    payload = indexed(COMPUTE)
    coming = list(zip(indices, computes, strict=True))
    source.items.extend(pack(payload, {"fields": pack(COMPUTE, f), "index": i}) for i, f in coming)
    await reset(dut, stop=0)
    cycle, quiet = 0, 0
    while quiet < 20:
        source.drive()
        stopped = stop is not None and cycle >= stop
        dut.stop.value = int(stopped)
        await ReadOnly()
        silent = stopped or (walk.error is not None and cycle >= walk.error[0])
        if not silent:
            assert int(dut.instruction__ready.value) == walk.ready(cycle), f"cycle {cycle}"
        if source.sample() is not None:
            walk.accept(cycle, *coming.pop(0))
        want = {} if silent else walk.issues.pop(cycle, {})
        got = unpack(ISSUE, int(dut.issue.value))
        want = {name: 0 for name in FLAGS} | want
        assert {name: got[name] for name in want} == want, f"cycle {cycle}"
        error = None
        if int(dut.error__valid.value):
            error = cycle, int(dut.error__code.value), int(dut.error__index.value)
        if walk.error and walk.error[0] == cycle and (stop is None or cycle <= stop):
            assert error == walk.error, error
        else:
            assert error is None, error
        busy = not silent and (bool(walk.issues) or source.items or cycle < walk.begin)
        quiet = 0 if busy else quiet + 1
        await RisingEdge(dut.clk)
        cycle += 1
    return walk


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.95], tiny=[False, True])
async def walks(dut: Any, stall: float, tiny: bool) -> None:
    """Random instructions, one behind the other and with gaps between."""
    cocotb.log.info("seed %d", SEED)
    rng = random.Random(f"{SEED} {stall} {tiny}")
    computes = [random_compute(rng, tiny) for _ in range(PARAMETERS["count"] * (3 if tiny else 1))]
    walk = await compare(dut, rng, computes, stall)
    assert walk.error is None
    assert walk.steps == sum(
        f["output_height"] * -(-f["output_width"] // CONFIG.tp) * f["tap_count"] for f in computes
    )


#: What is wrong with an instruction, and the error.
WRONG = {
    "tap_count": ({"tap_count": 0}, ErrorCode.BAD_FIELD),
    "output_height": ({"output_height": 0}, ErrorCode.BAD_FIELD),
    "output_width": ({"output_width": 0}, ErrorCode.BAD_FIELD),
    "lane_block": ({"lane_block": CONFIG.ti // CONFIG.tn}, ErrorCode.BAD_FIELD),
    "hold": ({"hold": 1, "mode": Mode.DENSE, "output_height": 2}, ErrorCode.BAD_FIELD),
    "resume": ({"resume": 1, "mode": Mode.DEPTHWISE}, ErrorCode.BAD_FIELD),
    "taps": ({"tap_count": 3, "tap_address": CONFIG.tap_entries - 2}, ErrorCode.ADDRESS_RANGE),
    "far_taps": ({"tap_address": (1 << 14) - 1, "tap_count": 9}, ErrorCode.ADDRESS_RANGE),
    "parameters": ({"synapse_address": CONFIG.synapse_rows}, ErrorCode.ADDRESS_RANGE),
    "weights": (
        {
            "mode": Mode.DENSE,
            "tap_count": 3,
            "weight_address": CONFIG.synapse_rows - 2,
        },
        ErrorCode.ADDRESS_RANGE,
    ),
    "lanes": (
        {
            "mode": Mode.DEPTHWISE,
            "tap_count": CONFIG.tn + 1,
            "weight_address": CONFIG.synapse_rows - 1,
        },
        ErrorCode.ADDRESS_RANGE,
    ),
}


@cocotb.test()
@cocotb.parametrize(name=list(WRONG))
@cocotb.parametrize(stall=[0.0, 0.95])
async def refusals(dut: Any, name: str, stall: float) -> None:
    """Stop at a wrong instruction: nothing is issued behind it, of it or of the next ones."""
    rng = random.Random(f"{SEED} {name} {stall}")
    changed, code = WRONG[name]
    computes = [random_compute(rng, tiny=True) for _ in range(6)]
    computes[3] |= {"tap_address": 0, "synapse_address": 0, "weight_address": 0, **changed}
    walk = await compare(dut, rng, computes, stall)
    assert walk.error is not None and walk.error[1] == code, walk.error


@cocotb.test()
async def stops(dut: Any) -> None:
    """`stop` silences the sequencer at once, whatever it does; reset makes it work again."""
    rng = random.Random(SEED)
    for _ in range(10):
        computes = [random_compute(rng, tiny=True) for _ in range(8)]
        await compare(dut, rng, computes, 0.3, stop=rng.randint(0, 60))
    await compare(dut, rng, [random_compute(rng, tiny=True) for _ in range(3)], 0.0)
