# SPDX-License-Identifier: Apache-2.0
"""The simulation room: benches, runner, the fast harness and the simulated board."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.board import OutOfDeviceMemoryError, SimulatedBoard
    from sim.harness import Harness, ProtocolViolation, RegisterAccessError, SimulationError
    from sim.network_bench import run_bundle_in_cocotb
    from sim.serial_port import SimulatedSerialPort
    from sim.simulator import BuildError

# Imported on first use: a cocotb bench needs no pynq, and the harness needs no cocotb.
_HOMES = {
    "BuildError": "sim.simulator",
    "Harness": "sim.harness",
    "OutOfDeviceMemoryError": "sim.board",
    "ProtocolViolation": "sim.harness",
    "RegisterAccessError": "sim.harness",
    "SimulatedBoard": "sim.board",
    "SimulatedSerialPort": "sim.serial_port",
    "SimulationError": "sim.harness",
    "run_bundle_in_cocotb": "sim.network_bench",
}

__all__ = [
    "BuildError",
    "Harness",
    "OutOfDeviceMemoryError",
    "ProtocolViolation",
    "RegisterAccessError",
    "SimulatedBoard",
    "SimulatedSerialPort",
    "SimulationError",
    "run_bundle_in_cocotb",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sim' has no attribute {name!r}")
