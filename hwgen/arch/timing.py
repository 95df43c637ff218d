# SPDX-License-Identifier: Apache-2.0
"""The contract room: how many cycles the machine takes, as constants that the RTL must meet.

A test holds them against the latencies of `rtl`'s own blocks. `passes/schedule.py` relies on
`read_after_write_cycles` for correctness, `estimate` on all of them for exactness.
"""

from __future__ import annotations

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import BEAT_BYTES

MEMORY_READ_CYCLES = 3
OPERAND_CYCLES = 1
DSP_CHAIN_LANES = 4
"""Lanes whose products DSP slices add, one slice to the next, a cycle each."""
LUT_PAIR_CYCLES = 4
"""From the operands of two lanes to the sum of their products, made of LUTs."""
TREE_TERMS_PER_CYCLE = 4
ACCUMULATE_CYCLES = 2
REQUANTIZE_CYCLES = 9

MIN_STEP_GAP_CYCLES = 1
"""From one COMPUTE's last step to the next one's first, parameter rows not counted."""


def dsp_chains(config: AcceleratorConfig) -> list[int]:
    """Lanes of each chain of DSP slices: as few chains as can be, the longest first."""
    lanes, _ = config.multiplier_lanes
    chains = -(-lanes // DSP_CHAIN_LANES)
    return [-(-(lanes - i) // chains) for i in range(chains)]


def array_cycles(config: AcceleratorConfig) -> int:
    """Cycles from a word at the array to its sums: operands, products, adder tree.

    The tree takes the sums of chains and pairs of lanes as they come. Its adders have a carry to
    give to each chain, if there are pairs; else one chain is left, and waits a cycle more.
    """
    _, lut_lanes = config.multiplier_lanes
    arriving = [OPERAND_CYCLES + 1 + chain for chain in dsp_chains(config)]
    arriving += [OPERAND_CYCLES + LUT_PAIR_CYCLES] * -(-lut_lanes // 2)
    cycle, terms = min(arriving), 0
    while True:
        terms += arriving.count(cycle)
        if terms == 1 and cycle >= max(arriving):
            return cycle + (lut_lanes == 0)
        terms = -(-terms // TREE_TERMS_PER_CYCLE)
        cycle += 1


def unpacker_slots(config: AcceleratorConfig) -> int:
    """Beats that the unpacker's ring holds: a word covers ti / 8 + 1 at worst."""
    return 1 << (config.ti // BEAT_BYTES + 1).bit_length()


def read_after_write_cycles(config: AcceleratorConfig) -> int:
    """Cycles from a pixel's last step to the first step that may read what it wrote."""
    return (
        MEMORY_READ_CYCLES
        + array_cycles(config)
        + ACCUMULATE_CYCLES
        + REQUANTIZE_CYCLES
        + config.tp
    )


FETCH_START_CYCLES = 2
"""From the start of a run to the first instruction's request."""

INSTRUCTION_BEATS = 8
INSTRUCTIONS_AHEAD = 8
"""Instructions fetched ahead of their dispatch."""

REFILL_CYCLES = 2
"""From an instruction's dispatch to the request of the one that takes its place."""

CHECK_CYCLES = 3
"""From an instruction's last beat to its queue: checksum, decode, hand over."""

QUEUE_CYCLES = 1
"""Through a queue or a token counter."""

READ_REQUEST_CYCLES = 2
"""From a transfer's acceptance to its first burst on the bus."""

READ_RESPONSE_CYCLES = 1
"""From a beat on the bus to its client."""

BURST_OVER_CYCLES = 1
"""From a burst's last beat taken to the next burst that may take its place in flight."""

LOAD_ISSUE_CYCLES = 3
"""From a LOAD's acceptance to its first row's request."""

LOAD_JOBS_AHEAD = 4
"""LOADs whose rows are asked for ahead of their data."""

LOAD_COMPLETE_CYCLES = 3
"""From the cycle in which a LOAD's next row could begin, were there one, to its completion."""

LOAD_TO_LOAD_CYCLES = 2
"""From the cycle in which a LOAD's next row could begin to the first row of the next LOAD."""

RESAMPLE_ISSUE_CYCLES = 7
"""From a resampled LOAD's acceptance to its first source row's request."""

RESAMPLE_ROW_GAP_CYCLES = 1
"""Between two source rows that the resampler takes; one more where a row is one beat."""

LINE_CYCLES = 4
"""From a source row's last beat taken to its line complete."""

LINE_START_CYCLES = 5
"""From a complete line to its first column step."""

LINE_NEXT_CYCLES = 2
"""From a line's last column step to the next line's start."""

LINE_WORDS_AHEAD = 6
"""Words of a line that are read ahead of their pixels' steps."""

PIXEL_CYCLES = 7
"""From a row's last column step to the beat with its pixel, in front of the unpacker."""

COMPUTE_START_CYCLES = 2
"""From a COMPUTE's acceptance by an idle sequencer to its first parameter row."""

INPUT_ADDRESS_CYCLES = 4
"""From a step's issue to its scratchpad read."""

STORE_FIRST_BEAT_CYCLES = 7
"""From a STORE's acceptance to its first beat on the bus."""

STORE_COMPLETE_CYCLES = 1
"""From the last write response to a STORE's completion."""

END_CYCLES = 3
"""From the last completion to DONE."""
