# SPDX-License-Identifier: Apache-2.0
"""The tests room: which simulators run a bench, which of them by default, and a small board."""

from __future__ import annotations

import pytest

from hwgen.arch import AcceleratorConfig
from sim.runner import available_simulators

#: The simulated board of every test that does not need another: it is built once for all of them.
SMALL_BOARD = AcceleratorConfig(
    tn=4, ti=8, scratchpad_bank_words=1024, synapse_rows=1024, tap_entries=1024, max_burst_beats=8
)
#: Icarus first, where there is one: it builds at once. `make test-all` runs the others too.
SIMULATORS = sorted(available_simulators())
QUICK_SIMULATOR = SIMULATORS[0]


def simulator_case(simulator: str, *values: object, slow: bool = False) -> object:
    """Return a parameter set; it is slow unless its simulator is the quick one."""
    marks = [pytest.mark.slow] if slow or simulator != QUICK_SIMULATOR else []
    return pytest.param(simulator, *values, marks=marks)


each_simulator = pytest.mark.parametrize("simulator", [simulator_case(s) for s in SIMULATORS])
