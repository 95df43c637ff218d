# SPDX-License-Identifier: Apache-2.0
"""The contract room: what generator, hardware and board driver agree on (stdlib + numpy only)."""

from hwgen.arch.bundle import Bundle, BundleError, LayerRecord, Placement, TensorPlacement
from hwgen.arch.cascade import CascadeOutcome, CascadeRule, run_rule
from hwgen.arch.cascade_bundle import CascadeBundle
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.estimate import Estimate, MemoryTiming, estimate
from hwgen.arch.hls_bundle import HlsBundle, StreamTensor
from hwgen.arch.interpreter import GoldenRun, Interpreter, MachineError
from hwgen.arch.trace import Profile, TraceRecord

__all__ = [
    "AcceleratorConfig",
    "Bundle",
    "BundleError",
    "CascadeBundle",
    "CascadeOutcome",
    "CascadeRule",
    "Estimate",
    "GoldenRun",
    "HlsBundle",
    "Interpreter",
    "LayerRecord",
    "MachineError",
    "MemoryTiming",
    "Placement",
    "Profile",
    "StreamTensor",
    "TensorPlacement",
    "TraceRecord",
    "estimate",
    "run_rule",
]
