# SPDX-License-Identifier: Apache-2.0
"""The test room: the compute engine's cocotb bench, on both simulators and several shapes."""

from __future__ import annotations

import pytest

from hwgen.arch.config import AcceleratorConfig
from sim.engine import EngineWithMemories
from sim.runner import available_simulators, run_bench

SMALL = {"scratchpad_bank_words": 64, "synapse_rows": 64, "tap_entries": 64}
CASES = [
    pytest.param({"tn": 8, "ti": 8}, "verilator", [1, 2], id="8x8-verilator"),
    pytest.param({"tn": 4, "ti": 8, "tp": 2}, "icarus", [1], id="4x8x2-icarus"),
    *(
        pytest.param(shape, "verilator", [1, 2, 3], id=name, marks=pytest.mark.slow)
        for name, shape in (
            ("16x16", {"tn": 16, "ti": 16}),
            ("4x8x2", {"tn": 4, "ti": 8, "tp": 2}),
            ("8x16x4", {"tn": 8, "ti": 16, "tp": 4}),
            ("4x32", {"tn": 4, "ti": 32}),
        )
    ),
    pytest.param({"tn": 8, "ti": 8}, "icarus", [1], id="8x8-icarus", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("shape", "simulator", "seeds"), CASES)
def test_engine_equals_the_interpreter(shape, simulator, seeds, tmp_path):
    """Scratchpad contents, steps, tokens, cycles and errors, all modes, hazards tight."""
    if simulator not in available_simulators():
        pytest.skip(f"{simulator} is not installed")
    config = AcceleratorConfig(**shape, **SMALL)
    run_bench(
        EngineWithMemories(config),
        "sim.benches.bench_compute",
        simulator,
        tmp_path,
        {"config": config.to_dict(), "seeds": seeds, "count": 6 if simulator == "icarus" else 12},
    )
