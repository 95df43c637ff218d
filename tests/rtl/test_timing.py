# SPDX-License-Identifier: Apache-2.0
"""The tests room: the contract's timing is what the hardware's own latencies add up to."""

from __future__ import annotations

import pytest

from hwgen.arch import AcceleratorConfig, timing
from rtl.compute import ComputeEngine
from rtl.lanes import Lanes
from rtl.multipliers import PAIR_CYCLES
from rtl.pe_array import PEArray


@pytest.mark.parametrize("dsp_lanes", [0, 1, 5, 8, 16, 64])
@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("ti", [8, 16, 32, 64])
def test_read_after_write(ti: int, tp: int, dsp_lanes: int) -> None:
    """The distance the compiler keeps is the distance the pipeline needs."""
    config = AcceleratorConfig(tn=8, ti=ti, tp=tp, dsp_lanes=dsp_lanes, scratchpad_bank_words=512)
    needed = ComputeEngine.step_to_write(config) - ComputeEngine.READ_STAGE
    assert timing.read_after_write_cycles(config) == needed
    assert timing.array_cycles(config) == PEArray.latency(config) >= Lanes.LATENCY
    lanes, _ = config.multiplier_lanes
    assert sum(timing.dsp_chains(config)) == lanes
    assert all(1 <= chain <= timing.DSP_CHAIN_LANES for chain in timing.dsp_chains(config))


def test_multipliers() -> None:
    """The contract has the multipliers' own latency."""
    assert timing.LUT_PAIR_CYCLES == PAIR_CYCLES
