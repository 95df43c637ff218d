# SPDX-License-Identifier: Apache-2.0
"""The tests room: the store engine in cocotb."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwgen.arch import AcceleratorConfig
from rtl.store import StoreEngine
from sim.runner import run_bench
from tests.support.simulators import SIMULATORS, simulator_case


@pytest.mark.parametrize(
    ("simulator", "ti"),
    [simulator_case(s, ti, slow=ti != 16) for s in SIMULATORS for ti in (8, 16, 32)],
)
def test_store(simulator: str, ti: int, tmp_path: Path) -> None:
    """Random stores, every error."""
    config = AcceleratorConfig(tn=8, ti=ti, scratchpad_bank_words=64)
    parameters = {"config": config.to_dict(), "seed": 1}
    run_bench(StoreEngine(config), "sim.benches.bench_store", simulator, tmp_path, parameters)
