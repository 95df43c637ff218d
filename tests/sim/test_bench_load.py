# SPDX-License-Identifier: Apache-2.0
"""The tests room: the load engine in cocotb."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwgen.arch import AcceleratorConfig
from rtl.load import LoadEngine
from sim.runner import run_bench
from tests.support.simulators import SIMULATORS, simulator_case


@pytest.mark.parametrize(
    ("simulator", "ti"),
    [simulator_case(s, ti, slow=ti != 16) for s in SIMULATORS for ti in (8, 16, 32)],
)
def test_load(simulator: str, ti: int, tmp_path: Path) -> None:
    """Random loads into all three memories, every error, throughput."""
    config = AcceleratorConfig(
        tn=8, ti=ti, scratchpad_bank_words=64, synapse_rows=32, tap_entries=64
    )
    parameters = {"config": config.to_dict(), "seed": 1}
    run_bench(LoadEngine(config), "sim.benches.bench_load", simulator, tmp_path, parameters)
