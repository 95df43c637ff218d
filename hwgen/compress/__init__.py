# SPDX-License-Identifier: Apache-2.0
"""Compression: methods that turn a model into a cheaper one, and the costs that judge them."""

from hwgen.compress.budget import BudgetConfig, BudgetReport, Step, compress_to_budget
from hwgen.compress.cost import Cost, macs, parameters, tap_steps
from hwgen.compress.cropping import (
    PredictorConfig,
    PredictorReport,
    cam_boxes,
    crop_all,
    grad_cam,
    iou,
    jitter_boxes,
    predict_boxes,
    resize_all,
    train_predictor,
)
from hwgen.compress.kernel_reduction import KernelConfig, KernelReport, bake, lower_kernels
from hwgen.compress.relevance import RelevanceConfig, RelevanceReport, trim_by_relevance
from hwgen.compress.structure import (
    Layer,
    Space,
    Structure,
    UnsupportedStructure,
    discover,
    load_compressed,
)
from hwgen.compress.training import (
    MEAN,
    STD,
    TrainConfig,
    TrainReport,
    accuracy,
    normalise,
    predict,
    reestimate_bn,
    train,
)

__all__ = [
    "MEAN",
    "STD",
    "BudgetConfig",
    "BudgetReport",
    "Cost",
    "KernelConfig",
    "KernelReport",
    "Layer",
    "PredictorConfig",
    "PredictorReport",
    "RelevanceConfig",
    "RelevanceReport",
    "Space",
    "Step",
    "Structure",
    "TrainConfig",
    "TrainReport",
    "UnsupportedStructure",
    "accuracy",
    "bake",
    "cam_boxes",
    "compress_to_budget",
    "crop_all",
    "discover",
    "grad_cam",
    "iou",
    "jitter_boxes",
    "load_compressed",
    "lower_kernels",
    "macs",
    "normalise",
    "parameters",
    "predict",
    "predict_boxes",
    "reestimate_bn",
    "resize_all",
    "tap_steps",
    "train",
    "train_predictor",
    "trim_by_relevance",
]
