# SPDX-License-Identifier: Apache-2.0
"""The contract room: how many cycles the machine takes, as constants that the RTL must meet.

A test holds them against the latencies of `rtl`'s own blocks. `passes/schedule.py` relies on
`read_after_write_cycles` for correctness, `estimate` on all of them for exactness.
"""

from __future__ import annotations

from hwgen.arch.config import AcceleratorConfig

MEMORY_READ_CYCLES = 2
MULTIPLY_CYCLES = 3
TREE_LEVELS_PER_CYCLE = 2
ACCUMULATE_CYCLES = 2
REQUANTIZE_CYCLES = 9

MIN_STEP_GAP_CYCLES = 1
"""From one COMPUTE's last step to the next one's first, parameter rows not counted."""


def array_cycles(config: AcceleratorConfig) -> int:
    """Cycles from a word at the array to its sums: operands, product, output, adder tree."""
    levels = (config.ti - 1).bit_length()
    return MULTIPLY_CYCLES + -(-levels // TREE_LEVELS_PER_CYCLE)


def read_after_write_cycles(config: AcceleratorConfig) -> int:
    """Cycles from a pixel's last step to the first step that may read what it wrote."""
    return (
        MEMORY_READ_CYCLES
        + array_cycles(config)
        + ACCUMULATE_CYCLES
        + REQUANTIZE_CYCLES
        + config.tp
    )
