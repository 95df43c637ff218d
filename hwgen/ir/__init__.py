# SPDX-License-Identifier: Apache-2.0
"""The IR room: an immutable graph in three levels (float, fused, quantized)."""

from hwgen.ir.evaluate import (
    accumulate,
    evaluate,
    evaluate_integer,
    integer_node,
    quantize_input,
    run_quantized,
    visit,
)
from hwgen.ir.graph import Graph
from hwgen.ir.nodes import (
    MAX_SPAN,
    MAX_STRIDE,
    Add,
    AvgPool,
    BatchNorm,
    Clamp,
    Conv2d,
    Flatten,
    Input,
    Linear,
    MaxPool,
    Node,
)
from hwgen.ir.quantized import (
    QAdd,
    QAvgPool,
    QConv,
    QDepthwise,
    QInput,
    QMaxPool,
    Requantization,
)
from hwgen.ir.types import IRError, QuantParams, Source, TensorType
from hwgen.ir.verify import verify

__all__ = [
    "MAX_SPAN",
    "MAX_STRIDE",
    "Add",
    "AvgPool",
    "BatchNorm",
    "Clamp",
    "Conv2d",
    "Flatten",
    "Graph",
    "IRError",
    "Input",
    "Linear",
    "MaxPool",
    "Node",
    "QAdd",
    "QAvgPool",
    "QConv",
    "QDepthwise",
    "QInput",
    "QMaxPool",
    "QuantParams",
    "Requantization",
    "Source",
    "TensorType",
    "accumulate",
    "evaluate",
    "evaluate_integer",
    "integer_node",
    "quantize_input",
    "run_quantized",
    "verify",
    "visit",
]
