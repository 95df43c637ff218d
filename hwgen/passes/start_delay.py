# SPDX-License-Identifier: Apache-2.0
"""The passes room: how long each COMPUTE holds back for what the ones before it write.

Between COMPUTEs there is no scoreboard. The array issues a step a cycle and never stalls, so the
cycle in which a result becomes readable is known here, and `start_delay` holds a layer back just
long enough for what its first steps read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwgen.arch import isa
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.timing import MIN_STEP_GAP_CYCLES, read_after_write_cycles
from hwgen.passes.hazards import Instruction
from hwgen.passes.work import ADDRESS_MODULUS, Window, Work


def set_start_delays(
    works: Sequence[Work], computes: Sequence[Instruction], config: AcceleratorConfig
) -> None:
    """Hold each COMPUTE back until what its first steps read has been written.

    Time is counted in steps as if no COMPUTE ever waited for a token; real waits only move later
    ones further away. `readable[word]` is the first cycle in which a step may read the word.
    """
    distance = read_after_write_cycles(config)
    readable = np.full(config.scratchpad_words, -distance, dtype=np.int64)
    last_step = slot_end = -1
    # A residual is read when its pixel's sums are done, so the last ones while the next COMPUTE
    # already reads its input: those two must not meet in one bank either.
    residual_until = np.full(config.scratchpad_banks, -distance, dtype=np.int64)
    for work, instruction in zip(works, computes, strict=True):
        f = instruction.fields
        interval = max(f["tap_count"], config.tp)
        address, time = _first_reads(f, work, interval, config)
        late = readable[address] - time
        soonest = slot_end + MIN_STEP_GAP_CYCLES + config.parameter_rows
        start = max(soonest, int(late.max(initial=0)))
        for bank in _banks(work.run.input, config):
            start = max(start, int(residual_until[bank]))
        f["start_delay"] = min(start - last_step, isa.COMPUTE.by_name["start_delay"].maximum)
        pairs = -(-f["output_width"] // config.tp)
        count = f["output_height"] * pairs
        slot_end = start + count * interval - 1
        last_step = slot_end - interval + f["tap_count"]
        if f["hold"]:
            continue
        tail = np.arange(max(0, count - distance), count)
        for p in range(config.tp):
            y, x = tail // pairs, tail % pairs * config.tp + p
            keep = x < f["output_width"]
            word = f["output_address"] + y * f["output_row_step"] + x * f["output_pixel_step"]
            done = start + tail * interval + f["tap_count"] - 1
            readable[word[keep]] = done[keep] + distance
        if work.run.residual is not None:
            residual_until[_banks(work.run.residual, config)] = last_step + distance


def _banks(window: Window, config: AcceleratorConfig) -> list[int]:
    """Banks that a window lies in."""
    layout = window.layout
    tiles = min(layout.tiles, max(1, config.scratchpad_words // max(1, window.plane_words)))
    last = min(window.address + tiles * window.plane_words, config.scratchpad_words) - 1
    return list(range(config.bank_of(window.address), config.bank_of(last) + 1))


def _first_reads(
    f: dict[str, int], work: Work, interval: int, config: AcceleratorConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Words read in the first steps, while older writes are under way, and each one's step number.

    A residual is read later than its pixel's first step, and counted as if read then.
    """
    taps = work.code.group.taps[work.range.tap_first : work.range.tap_last]
    offset = work.offsets[work.range.tap_first : work.range.tap_last]
    dy, dx = (np.array([getattr(tap, n) for tap in taps]) for n in ("dy", "dx"))
    pairs = -(-f["output_width"] // config.tp)
    count = min(f["output_height"] * pairs, -(-read_after_write_cycles(config) // interval))
    pixel = np.arange(count)
    words, times = [], []
    for p in range(config.tp):
        y, x = pixel // pairs, pixel % pairs * config.tp + p
        real = x < f["output_width"]
        iy = (f["origin_y"] + y * f["stride_y"])[:, None] + dy
        ix = (f["origin_x"] + x * f["stride_x"])[:, None] + dx
        base = f["input_start"] + y * f["input_row_step"] + x * f["input_pixel_step"]
        address = (base[:, None] + offset) % ADDRESS_MODULUS
        inside = (iy >= 0) & (iy < f["input_height"]) & (ix >= 0) & (ix < f["input_width"])
        inside &= real[:, None]
        time = pixel[:, None] * interval + np.arange(len(taps))
        words.append(address[inside])
        times.append(time[inside])
        if f["residual"]:
            here = y * f["output_row_step"] + x * f["output_pixel_step"]
            words.append((f["residual_address"] + here)[real])
            times.append((pixel * interval)[real])
    return np.concatenate(words), np.concatenate(times)
