# SPDX-License-Identifier: Apache-2.0
"""The contract room: what generator, hardware and board driver agree on (stdlib + numpy only)."""

from hwgen.arch.bundle import Bundle, BundleError, LayerRecord, Placement, TensorPlacement
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.estimate import Estimate, MemoryTiming, estimate
from hwgen.arch.interpreter import GoldenRun, Interpreter, MachineError
from hwgen.arch.trace import Profile, TraceRecord

__all__ = [
    "AcceleratorConfig",
    "Bundle",
    "BundleError",
    "Estimate",
    "GoldenRun",
    "Interpreter",
    "LayerRecord",
    "MachineError",
    "MemoryTiming",
    "Placement",
    "Profile",
    "TensorPlacement",
    "TraceRecord",
    "estimate",
]
