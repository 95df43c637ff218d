# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the free-running datapath blocks, a new random input every cycle.

The parameters name the block; each block's inputs and its reference stand in one table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge

from hwgen.arch import isa, numerics
from sim.runner import bench_parameters

PARAMETERS = bench_parameters()
Values = dict[str, Any]


def pack(values: np.ndarray, bits: int) -> int:
    """Pack integers, the first in the lowest bits; two's complement."""
    mask = (1 << bits) - 1
    return sum((int(v) & mask) << (bits * i) for i, v in enumerate(np.ravel(values)))


def unpack(word: int, bits: int, count: int) -> list[int]:
    """Undo `pack` for signed values."""
    fields = [(word >> (bits * i)) & ((1 << bits) - 1) for i in range(count)]
    return [f - (1 << bits) if f >> (bits - 1) else f for f in fields]


def int8(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return random int8 values, a third of them extreme."""
    extreme = rng.choice([-128, -127, -1, 0, 1, 127], shape)
    return np.where(rng.random(shape) < 0.33, extreme, rng.integers(-128, 128, shape))


def array_case(rng: np.random.Generator) -> tuple[Values, Values]:
    """Products, tn x ti x tp of them, summed."""
    tn, ti, tp = (PARAMETERS[name] for name in ("tn", "ti", "tp"))
    words, weights = int8(rng, tp, ti), int8(rng, tn, ti)
    bits = 16 + (ti - 1).bit_length()
    sums = np.einsum("pi,ni->pn", words, weights)
    return {"words": pack(words, 8), "weights": pack(weights, 8)}, {"sums": pack(sums, bits)}


def lanes_case(rng: np.random.Generator) -> tuple[Values, Values]:
    """One step of depthwise, of a sum, or of a maximum's first tap."""
    tn, ti, tp = (PARAMETERS[name] for name in ("tn", "ti", "tp"))
    words, weights = int8(rng, tp, ti), int8(rng, tn, ti)
    mode, slot, block = rng.integers(1, 4), rng.integers(tn), rng.integers(ti // tn)
    lane = words[:, block * tn : (block + 1) * tn]
    terms = lane * weights[slot, :tn] if mode == isa.Mode.DEPTHWISE else lane
    inputs = {
        "words": pack(words, 8),
        "weights": pack(weights, 8),
        "mode": int(mode),
        "first": 1,
        "slot": int(slot),
        "block": int(block),
    }
    return inputs, {"terms": pack(terms, 16)}


def requantizer_case(rng: np.random.Generator) -> tuple[Values, Values]:
    """One word of codes, parameters included."""
    lanes = PARAMETERS["lanes"]
    sums = rng.integers(-(1 << 31), 1 << 31, lanes) >> rng.integers(0, 24, lanes)
    multiplier = rng.choice([0, 1, 65535, int(rng.integers(65536))], lanes)
    residual_multiplier = rng.choice([0, (1 << 24) - 1, int(rng.integers(1 << 24))], lanes)
    shift = rng.integers(0, 48, lanes)
    residual, has_residual = int8(rng, lanes), int(rng.integers(2))
    residual_zero_point, zero_point = (int(v) for v in int8(rng, 2))
    lo, hi = sorted(int(v) for v in int8(rng, 2))
    result = numerics.requantize(
        sums,
        multiplier,
        shift,
        zero_point,
        lo,
        hi,
        residual if has_residual else None,
        residual_zero_point,
        residual_multiplier,
    )
    parameters = [
        isa.CHANNEL_PARAMETERS.pack(
            {
                "multiplier": multiplier[n],
                "shift": shift[n],
                "residual_multiplier": residual_multiplier[n],
            }
        )
        for n in range(lanes)
    ]
    used = sum(field.bits for field in isa.CHANNEL_PARAMETERS.fields)
    inputs = {
        "sums": pack(sums, 32),
        "parameters": sum(word << (used * n) for n, word in enumerate(parameters)),
        "residual": pack(residual, 8),
        "has_residual": has_residual,
        "residual_zero_point": residual_zero_point & 0xFF,
        "zero_point": zero_point & 0xFF,
        "lo": lo & 0xFF,
        "hi": hi & 0xFF,
    }
    return inputs, {"result": pack(result, 8)}


CASES: dict[str, Callable[[np.random.Generator], tuple[Values, Values]]] = {
    "array": array_case,
    "lanes": lanes_case,
    "requantizer": requantizer_case,
}


LEADS = {"lanes": {"mode", "slot", "block"}}
"""Inputs that come Lanes.LEAD cycles ahead of the others."""


@cocotb.test()
async def every_cycle_a_new_input(dut: Any) -> None:
    """Insist that outputs equal the reference, exactly `latency` cycles later, at one a cycle."""
    rng = np.random.default_rng(PARAMETERS["seed"])
    cocotb.log.info("seed %d", PARAMETERS["seed"])
    case, latency = CASES[PARAMETERS["block"]], PARAMETERS["latency"]
    lead, leads = PARAMETERS.get("lead", 0), LEADS.get(PARAMETERS["block"], set())
    pairs = [case(rng) for _ in range(PARAMETERS["count"])]
    for name in pairs[0][0]:
        getattr(dut, name).value = 0
    dut.rst.value = 0
    Clock(dut.clk, 10, "ns").start()
    await RisingEdge(dut.clk)
    for cycle in range(-lead, len(pairs) + latency):
        for name in pairs[0][0]:
            step = cycle + lead if name in leads else cycle
            if 0 <= step < len(pairs):
                signal = getattr(dut, name)
                signal.value = pairs[step][0][name] & ((1 << len(signal)) - 1)
        await ReadOnly()
        if cycle >= latency:
            for name, value in pairs[cycle - latency][1].items():
                got = int(getattr(dut, name).value.to_unsigned())
                assert got == value, f"case {cycle - latency}: {name} {got:x}, not {value:x}"
        await RisingEdge(dut.clk)
