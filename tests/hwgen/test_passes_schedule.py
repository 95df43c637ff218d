# SPDX-License-Identifier: Apache-2.0
"""The tests room: the schedule's timing rules, replayed step by step by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from hwgen.arch import AcceleratorConfig, Bundle, isa, timing
from hwgen.arch.isa import LoadTarget, Opcode
from hwgen.backends import program
from tests.support.quantized_graphs import every_operation


def instructions(data: bytes) -> list[tuple[Opcode, dict[str, int]]]:
    """Decode a program."""
    size = isa.INSTRUCTION_BYTES
    return [isa.decode(data[i : i + size]) for i in range(0, len(data), size)]


def resident_taps(bundle: Bundle) -> dict[int, dict[str, int]]:
    """Tap entries as the setup program loads them."""
    taps = {}
    for opcode, f in instructions(bundle.setup):
        if opcode == Opcode.LOAD and f["target"] == LoadTarget.TAP:
            for i in range(f["row_bytes"] // isa.TAP_BYTES):
                start = f["offset_bytes"] + i * isa.TAP_BYTES
                raw = bundle.constants[start : start + isa.TAP_BYTES]
                taps[f["destination"] + i] = isa.TAP.unpack(int.from_bytes(raw, "little"))
    return taps


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("side", [4, 7])
def test_every_read_sees_its_write(rng: np.random.Generator, side: int, tp: int) -> None:
    """With every COMPUTE as early as `start_delay` lets it, no word is read before it is there.

    Nor does a residual read of one COMPUTE fall into the bank that another one's input is read
    from, in the same cycle.
    """
    config = AcceleratorConfig(tp=tp, scratchpad_bank_words=512)
    bundle = program.emit(every_operation(rng, 3, side, side), config)
    taps = resident_taps(bundle)
    distance = timing.read_after_write_cycles(config)
    residual_stage = timing.array_cycles(config) + timing.ACCUMULATE_CYCLES
    ready: dict[int, int] = {}
    input_banks: dict[int, set[int]] = {}
    residual_banks: dict[int, set[int]] = {}
    last_step, slot_end = -1, -1
    for opcode, f in instructions(bundle.program):
        if opcode != Opcode.COMPUTE:
            continue
        start = max(slot_end + 1 + config.parameter_rows, last_step + f["start_delay"])
        interval = max(f["tap_count"], tp)
        clock = start - interval
        for y in range(f["output_height"]):
            for x0 in range(0, f["output_width"], tp):
                clock += interval
                for x in range(x0, min(x0 + tp, f["output_width"])):
                    base = f["input_start"] + y * f["input_row_step"] + x * f["input_pixel_step"]
                    here = y * f["output_row_step"] + x * f["output_pixel_step"]
                    for k in range(f["tap_count"]):
                        tap = taps[f["tap_address"] + k]
                        iy = f["origin_y"] + y * f["stride_y"] + tap["dy"]
                        ix = f["origin_x"] + x * f["stride_x"] + tap["dx"]
                        if 0 <= iy < f["input_height"] and 0 <= ix < f["input_width"]:
                            word = (base + tap["offset"]) % (1 << 16)
                            assert clock + k >= ready.get(word, 0), (word, clock + k)
                            bank = config.bank_of(word)
                            input_banks.setdefault(clock + k, set()).add(bank)
                    if f["residual"]:
                        word = f["residual_address"] + here
                        when = clock + interval - 1 + residual_stage + x - x0
                        assert when >= ready.get(word, 0)
                        residual_banks.setdefault(when, set()).add(config.bank_of(word))
                    ready[f["output_address"] + here] = clock + f["tap_count"] - 1 + distance
        slot_end = clock + interval - 1
        last_step = clock + f["tap_count"] - 1
    assert residual_banks
    for when, banks in residual_banks.items():
        assert not banks & input_banks.get(when, set())


def test_groups_of_a_layer_do_not_wait(rng: np.random.Generator) -> None:
    """Groups that share an input follow each other at once: only parameter rows lie between."""
    config = AcceleratorConfig(scratchpad_bank_words=1024)
    bundle = program.emit(every_operation(rng, 3, 12, 12), config)
    computes = [f for opcode, f in instructions(bundle.program) if opcode == Opcode.COMPUTE]
    first = bundle.layers[1].first_instruction - 1
    same_layer = computes[first + 1 : bundle.layers[1].last_instruction]
    assert [f["start_delay"] for f in same_layer] == [1 + config.parameter_rows] * len(same_layer)
