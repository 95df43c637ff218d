# SPDX-License-Identifier: Apache-2.0
"""The test room: the compute engine's cocotb bench, on both simulators and several shapes."""

from __future__ import annotations

import pytest

from hwgen.arch.config import AcceleratorConfig
from sim.engine import EngineWithMemories
from sim.runner import run_bench
from tests.support.simulators import QUICK_SIMULATOR, simulator_case

SMALL = {"scratchpad_bank_words": 64, "synapse_rows": 64, "tap_entries": 64}
SHAPES = {
    "8x8": {"tn": 8, "ti": 8},
    "4x8x2": {"tn": 4, "ti": 8, "tp": 2},
    "4x8x2-three": {"tn": 4, "ti": 8, "tp": 2, "dsp_lanes": 3},
    "16x16": {"tn": 16, "ti": 16},
    "8x16x4": {"tn": 8, "ti": 16, "tp": 4},
    "4x32": {"tn": 4, "ti": 32},
}
CASES = [
    simulator_case(QUICK_SIMULATOR, "4x8x2", [1], 5),
    *(simulator_case("verilator", name, [1, 2, 3], 12, slow=True) for name in SHAPES),
]


@pytest.mark.parametrize(("simulator", "shape", "seeds", "count"), CASES)
def test_engine_equals_the_interpreter(simulator, shape, seeds, count, tmp_path):
    """Scratchpad contents, steps, tokens, cycles and errors, all modes, hazards tight."""
    config = AcceleratorConfig(**SHAPES[shape], **SMALL)
    run_bench(
        EngineWithMemories(config),
        "sim.benches.bench_compute",
        simulator,
        tmp_path,
        {"config": config.to_dict(), "seeds": seeds, "count": count},
    )
