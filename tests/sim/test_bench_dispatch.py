# SPDX-License-Identifier: Apache-2.0
"""The tests room: programs of loads and stores on the whole top, in cocotb."""

from __future__ import annotations

from pathlib import Path

from hwgen.arch import AcceleratorConfig
from rtl.top import Accelerator
from sim.runner import run_bench
from tests.support.simulators import each_simulator

CONFIG = AcceleratorConfig(
    tn=8, ti=8, scratchpad_bank_words=64, synapse_rows=64, tap_entries=64, max_burst_beats=8
)


@each_simulator
def test_dispatch(simulator: str, tmp_path: Path) -> None:
    """Random programs, every error of the system side, soft resets."""
    parameters = {"config": CONFIG.to_dict(), "seed": 1}
    run_bench(Accelerator(CONFIG), "sim.benches.bench_dispatch", simulator, tmp_path, parameters)
