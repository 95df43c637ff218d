# SPDX-License-Identifier: Apache-2.0
"""The test room: the compute engine's cocotb bench, on both simulators and several shapes."""

from __future__ import annotations

import pytest

from hwgen.arch.config import AcceleratorConfig
from sim.engine import EngineWithMemories
from sim.runner import run_bench
from tests.support.simulators import SIMULATORS

SMALL = {"scratchpad_bank_words": 64, "synapse_rows": 64, "tap_entries": 64}
#: Shape, simulator, seeds; the first two are the quick ones.
CASES = [
    ({"tn": 8, "ti": 8}, "verilator", [1, 2]),
    ({"tn": 4, "ti": 8, "tp": 2}, "icarus", [1]),
    ({"tn": 16, "ti": 16}, "verilator", [1, 2, 3]),
    ({"tn": 4, "ti": 8, "tp": 2}, "verilator", [1, 2, 3]),
    ({"tn": 8, "ti": 16, "tp": 4}, "verilator", [1, 2, 3]),
    ({"tn": 4, "ti": 32}, "verilator", [1, 2, 3]),
    ({"tn": 8, "ti": 8}, "icarus", [1]),
]


@pytest.mark.parametrize(
    ("shape", "simulator", "seeds"),
    [
        pytest.param(
            *case,
            marks=[pytest.mark.slow] * (number > 1),
            id=f"{'x'.join(map(str, case[0].values()))}-{case[1]}",
        )
        for number, case in enumerate(CASES)
        if case[1] in SIMULATORS
    ],
)
def test_engine_equals_the_interpreter(shape, simulator, seeds, tmp_path):
    """Scratchpad contents, steps, tokens, cycles and errors, all modes, hazards tight."""
    config = AcceleratorConfig(**shape, **SMALL)
    run_bench(
        EngineWithMemories(config),
        "sim.benches.bench_compute",
        simulator,
        tmp_path,
        {"config": config.to_dict(), "seeds": seeds, "count": 6 if simulator == "icarus" else 12},
    )
