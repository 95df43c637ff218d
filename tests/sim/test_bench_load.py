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
    ("simulator", "ti", "longest"),
    [
        simulator_case(s, ti, longest, slow=(ti, longest) not in ((16, 128), (8, 0)))
        for s in SIMULATORS
        for ti, longest in ((8, 0), (8, 64), (16, 128), (32, 4096))
    ],
)
def test_load(simulator: str, ti: int, longest: int, tmp_path: Path) -> None:
    """Random loads into all memories, resampled ones, every error, throughput."""
    config = AcceleratorConfig(
        tn=8,
        ti=ti,
        scratchpad_bank_words=64,
        synapse_rows=32,
        tap_entries=64,
        resampler_row_bytes=longest,
    )
    parameters = {"config": config.to_dict(), "seed": 1}
    run_bench(LoadEngine(config), "sim.benches.bench_load", simulator, tmp_path, parameters)
