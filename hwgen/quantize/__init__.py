# SPDX-License-Identifier: Apache-2.0
"""The quantization room: fused float graphs become int8 graphs."""

from hwgen.quantize.calibration import load_calibration
from hwgen.quantize.observers import MSE, Histogram, MinMax, Percentile, code_for_range
from hwgen.quantize.post_training import (
    QuantizationError,
    calibrate,
    quantize,
    quantize_model,
    quantize_with,
)

__all__ = [
    "MSE",
    "Histogram",
    "MinMax",
    "Percentile",
    "QuantizationError",
    "calibrate",
    "code_for_range",
    "load_calibration",
    "quantize",
    "quantize_model",
    "quantize_with",
]
