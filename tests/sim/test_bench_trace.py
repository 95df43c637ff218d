# SPDX-License-Identifier: Apache-2.0
"""The tests room: the trace unit by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwgen.arch import AcceleratorConfig
from rtl.trace import Trace
from sim.runner import run_bench
from tests.support.simulators import each_simulator


@each_simulator
@pytest.mark.parametrize("entries", [64, pytest.param(16, marks=pytest.mark.slow)])
def test_trace(simulator: str, entries: int, seed: int, tmp_path: Path) -> None:
    """Random completions on all three queues, overflow, windows."""
    config = AcceleratorConfig(tn=8, ti=8, trace_entries=entries)
    parameters = {"config": config.to_dict(), "seed": seed}
    run_bench(Trace(config), "sim.benches.bench_trace", simulator, tmp_path, parameters)
