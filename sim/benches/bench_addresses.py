# SPDX-License-Identifier: Apache-2.0
"""The simulation room: input and output addresses, a random step every cycle."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from hwgen.arch import isa
from hwgen.arch.config import AcceleratorConfig
from rtl.addresses import InputAddresses, OutputAddresses
from rtl.layouts import ADDRESS_BITS, TAP
from rtl.sequencer import issue_layout
from rtl.tap_buffer import TapBuffer
from sim.benches.memory import reset
from sim.benches.signals import pack, unpack
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
CONFIG = AcceleratorConfig.from_dict(PARAMETERS["config"]) if PARAMETERS else AcceleratorConfig()
SEED = PARAMETERS.get("seed", 1)
COUNT = PARAMETERS.get("count", 0)
ISSUE = issue_layout(CONFIG)


def near(rng: random.Random, edges: list[int], spread: int, low: int, high: int) -> int:
    """Return a value close to one of the edges, or anything legal."""
    if rng.random() < 0.1:
        return rng.randint(low, high)
    return min(max(rng.choice(edges) + rng.randint(-spread, spread), low), high)


def input_step(rng: random.Random) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Return a step's issue and fields, and its tap, close to the edges of input and memory."""
    height, width = (rng.choice([1, 5, 60, 4095]) for _ in range(2))
    tap = {"offset": rng.getrandbits(16), "dy": rng.getrandbits(6), "dx": rng.getrandbits(6)}
    furthest = 4095 * 15 + 127
    stride = rng.choice([0, 1, 2, 15])
    edge = near(rng, [0, CONFIG.scratchpad_words], 20, 0, (1 << 16) - 1)
    issue = {
        "step": int(rng.random() < 0.9),
        "input_base": (edge - tap["offset"]) % (1 << 16),
        "y": near(rng, [-tap["dy"], height - tap["dy"]], 1, -128, furthest),
        "x": near(rng, [-tap["dx"], width - tap["dx"]], 1 + stride, -128, furthest),
        "x_left": rng.choice([1, 2, 3, 4, 4095]),
    }
    fields = {
        "input_height": height,
        "input_width": width,
        "input_pixel_step": rng.choice([0, 1, 5, rng.getrandbits(16)]),
        "stride_x": stride,
    }
    return issue, fields, tap


def input_reads(
    issue: dict[str, int], fields: dict[str, int], tap: dict[str, int]
) -> tuple[dict[int, int], bool]:
    """Return the address of each pixel that is read, and whether one is past the scratchpad."""
    reads, past = {}, False
    for p in range(CONFIG.tp):
        iy, ix = issue["y"] + tap["dy"], issue["x"] + p * fields["stride_x"] + tap["dx"]
        address = (issue["input_base"] + p * fields["input_pixel_step"] + tap["offset"]) % (1 << 16)
        inside = 0 <= iy < fields["input_height"] and 0 <= ix < fields["input_width"]
        if issue["step"] and p < issue["x_left"] and inside:
            if address < CONFIG.scratchpad_words:
                reads[p] = address
            else:
                past = True
    return reads, past


async def inputs(dut: Any) -> None:
    """Address, enable and refusal of every pixel, LATENCY after the step."""
    rng = random.Random(SEED)
    steps = [input_step(rng) for _ in range(COUNT)]
    found = {"read": 0, "outside": 0, "past": 0}
    await reset(dut, issue=0, tap=0)
    for cycle in range(COUNT + InputAddresses.LATENCY):
        noise = rng.getrandbits(len(dut.issue)) & ~(1 << ISSUE["step"].offset)
        if cycle < COUNT:
            issue, fields, _ = steps[cycle]
            word = pack(ISSUE["fields"].shape, fields)
            noise = pack(ISSUE, {**issue, "fields": word})
        dut.issue.value = noise
        tap_of = cycle - TapBuffer.LATENCY
        if 0 <= tap_of < COUNT:
            dut.tap.value = pack(TAP, steps[tap_of][2])
        await ReadOnly()
        due = cycle - InputAddresses.LATENCY
        if due >= 0:
            reads, past = input_reads(*steps[due])
            where, enable = int(dut.address.value), int(dut.enable.value)
            got = {
                p: where >> (ADDRESS_BITS * p) & ((1 << ADDRESS_BITS) - 1)
                for p in range(CONFIG.tp)
                if enable >> p & 1
            }
            assert (got, int(dut.out_of_range.value)) == (reads, past), f"step {due}: {steps[due]}"
            found["read" if reads else "past" if past else "outside"] += 1
        await RisingEdge(dut.clk)
    assert min(found.values()) > COUNT / 25, found


def output_step(rng: random.Random) -> tuple[dict[str, int], dict[str, int]]:
    """Return the issue and the fields of a pixel group's last step."""
    words = CONFIG.scratchpad_words
    issue = {
        "last": 1,
        "done": rng.getrandbits(1),
        "x_left": rng.choice([1, 2, 3, 4, 4095]),
        "output_base": near(rng, [0, words], 12, 0, (1 << 16) - 1),
        "residual_base": near(rng, [0, words], 12, 0, (1 << 16) - 1),
        "index": rng.getrandbits(24),
    }
    fields = {
        field.name: rng.randint(field.minimum, field.maximum)
        for field in isa.COMPUTE.fields
        if field.name not in ("opcode", "lane_block")
    }
    fields["lane_block"] = rng.randrange(CONFIG.ti // CONFIG.tn)
    fields["output_pixel_step"] = rng.choice([0, 1, 5, rng.getrandbits(16)])
    fields["hold"] = int(rng.random() < 0.2)
    return issue, fields


async def outputs(dut: Any) -> None:
    """Give tp words a group, then silence; past the end until the first refusal of a group."""
    rng = random.Random(SEED)
    layout = OutputAddresses(CONFIG).word.shape()
    copied = [name for name, _ in layout if name in isa.COMPUTE.by_name]
    fields_shape = ISSUE["fields"].shape
    expected: dict[int, dict[str, int] | None] = {}
    wait, refused, words = 0, 0, 0
    await reset(dut, issue=0)
    for cycle in range(COUNT):
        noise = rng.getrandbits(len(dut.issue)) & ~(1 << ISSUE["last"].offset)
        if wait == 0:
            wait = CONFIG.tp + rng.choice([0, 0, 1, 3])
            issue, fields = output_step(rng)
            noise = pack(ISSUE, {**issue, "fields": pack(fields_shape, fields)})
            broken = False  # a run ends at a refusal; the adders may wrap behind it
            for p in range(CONFIG.tp):
                here = p * fields["output_pixel_step"]
                output, source = issue["output_base"] + here, issue["residual_base"] + here
                past = output >= CONFIG.scratchpad_words
                past |= bool(fields["residual"]) and source >= CONFIG.scratchpad_words
                exists = p < issue["x_left"] and not fields["hold"]
                word = {
                    "valid": int(exists),
                    "done": int(issue["done"] and p == CONFIG.tp - 1),
                    "output": output,
                    "source": source,
                    "index": issue["index"],
                    **{name: fields[name] for name in copied},
                    "past": int(exists and past),
                }
                expected[cycle + OutputAddresses.LATENCY + p] = None if broken else word
                broken |= exists and past
        wait -= 1
        dut.issue.value = noise
        await ReadOnly()
        got = unpack(layout, int(dut.word.value))
        got["past"] = int(dut.out_of_range.value)
        want = expected.pop(cycle, {"valid": 0, "done": 0})
        if want is None:
            refused += 1
        elif want["valid"]:
            if not want["residual"]:
                got["source"] = want["source"]
            assert got == want, f"cycle {cycle}"
            words += 1
        else:
            assert (got["valid"], got["done"], got["past"]) == (0, want["done"], 0), cycle
        await RisingEdge(dut.clk)
    assert words > COUNT / 6
    assert refused or CONFIG.tp == 1


@cocotb.test()
async def steps(dut: Any) -> None:
    """Run the block that is here."""
    cocotb.log.info("seed %d", SEED)
    await {"input": inputs, "output": outputs}[PARAMETERS["block"]](dut)
