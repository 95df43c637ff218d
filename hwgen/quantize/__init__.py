# SPDX-License-Identifier: Apache-2.0
"""The quantization room: fused float graphs become int8 graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwgen.quantize.calibration import Calibration, read_calibration
from hwgen.quantize.observers import MSE, Histogram, MinMax, Percentile, code_for_range
from hwgen.quantize.post_training import (
    QuantizationError,
    calibrate,
    quantize,
    quantize_model,
    quantize_with,
)

if TYPE_CHECKING:
    from hwgen.quantize.aware import (
        FINE_TUNING,
        AwareReport,
        IntegerNetwork,
        fine_tune_quantized,
    )

__all__ = [
    "FINE_TUNING",
    "MSE",
    "AwareReport",
    "Calibration",
    "Histogram",
    "IntegerNetwork",
    "MinMax",
    "Percentile",
    "QuantizationError",
    "calibrate",
    "code_for_range",
    "fine_tune_quantized",
    "quantize",
    "quantize_model",
    "quantize_with",
    "read_calibration",
]


def __getattr__(name: str) -> Any:
    """Import what trains on first use: to quantize, a graph from ONNX needs no training loop."""
    if name in ("FINE_TUNING", "AwareReport", "IntegerNetwork", "fine_tune_quantized"):
        from hwgen.quantize import aware

        return getattr(aware, name)
    raise AttributeError(f"module 'hwgen.quantize' has no attribute {name!r}")
