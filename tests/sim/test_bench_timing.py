# SPDX-License-Identifier: Apache-2.0
"""The tests room: cycles of fetch, load, store and hand-over on the whole top."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwgen.arch import AcceleratorConfig
from rtl.top import Accelerator
from sim.runner import run_bench
from tests.support.simulators import QUICK_SIMULATOR


@pytest.mark.parametrize("ti", [8, pytest.param(16, marks=pytest.mark.slow)])
def test_timing(ti: int, tmp_path: Path) -> None:
    """CYCLES_TOTAL is the sum of the constants, to the cycle."""
    config = AcceleratorConfig(
        tn=8, ti=ti, scratchpad_bank_words=64, synapse_rows=64, tap_entries=64
    )
    parameters = {"config": config.to_dict()}
    run_bench(
        Accelerator(config), "sim.benches.bench_timing", QUICK_SIMULATOR, tmp_path, parameters
    )
