# SPDX-License-Identifier: Apache-2.0
"""The tests room: which simulators run a cocotb bench, and which of them in the quick tests."""

from __future__ import annotations

import pytest

from sim.runner import available_simulators

#: Icarus first, where there is one: it builds at once. `make test-all` runs the others too.
SIMULATORS = sorted(available_simulators())
QUICK_SIMULATOR = SIMULATORS[0]


def simulator_case(simulator: str, *values: object, slow: bool = False) -> object:
    """Return a parameter set; it is slow unless its simulator is the quick one."""
    marks = [pytest.mark.slow] if slow or simulator != QUICK_SIMULATOR else []
    return pytest.param(simulator, *values, marks=marks)


each_simulator = pytest.mark.parametrize("simulator", [simulator_case(s) for s in SIMULATORS])
