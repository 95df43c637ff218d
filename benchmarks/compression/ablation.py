# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: every method on and off, one at a time, on one network.

ResNet-8 on the bundled frames, all rows at the same cycles: what a method is worth is the accuracy
that it keeps. "only X" reaches the target by X alone; "without X" by all the others. Every row has
the same epochs of fine-tuning; the quantization-aware one has two more, on integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.compression import baselines, rows
from benchmarks.compression.data import load
from benchmarks.compression.pipeline import Pipeline, measured, stage
from hwgen.boards import load_board
from hwgen.compress import cost
from hwgen.compress.cost import Cost
from hwgen.compress.kernel_reduction import KernelConfig, lower_kernels
from hwgen.compress.linear_approximation import ApproximationConfig, approximate_maps
from hwgen.compress.relevance import RelevanceConfig, trim_by_relevance
from hwgen.compress.slice_reduction import SliceConfig, lower_slices
from hwgen.compress.structure import load_compressed
from hwgen.compress.training import Tick, TrainConfig, accuracy, normalise, train
from hwgen.datasets import Splits
from hwgen.ir import run_quantized
from hwgen.quantize import fine_tune_quantized

TABLE, NETWORK, DATA = "ablation", "ResNet-8", "frames"
TARGET = 0.25
EPOCHS, QUANTIZED_EPOCHS = 6, 2
QUANTIZED = "quantization-aware fine-tuning"
STEPS = ("relevance trimming", "linear approximation", "lower kernels", "slices")
"""In the order that "all methods" applies them."""
METHODS = (
    "all methods",
    *(f"only {step}" for step in STEPS),
    *(f"without {step}" for step in STEPS),
    "without distillation",
    f"with {QUANTIZED}",
)


def run(method: str, cache: Path, seed: int, tick: Tick) -> rows.Row:
    """Measure one row."""
    splits = load(DATA, None)
    baseline = baselines.find(NETWORK, DATA)
    base = baselines.trained(baseline, splits, None, cache, seed, tick)
    name = f"ablation-{method.replace(' ', '-')}-{seed}"

    def fine_tune(model: nn.Module) -> nn.Module:
        return train(
            model,
            lambda _: (splits.train.images, splits.train.labels),
            baselines.tuning(baseline.config, EPOCHS, seed),
            teacher=None if method == "without distillation" else base,
            checkpoint=cache / f"{name}.checkpoint",
            progress=tick,
            name=f"{NETWORK}, {method}",
        )[0]

    def build() -> tuple[nn.Module, dict[str, Any]]:
        images = rows.calibration_images(splits, 1000, seed)
        model, kept = compressed(base, images, chosen_steps(method))
        return fine_tune(model), {"cost left after each step": kept}

    if method.endswith(QUANTIZED):
        model, more = _quantized(base, splits, baseline.config, cache, seed, tick)
    else:
        model, more = stage(cache / f"{name}.pt", base, build)
    accuracies = {}
    if "int8_accuracy" in more:
        accuracies = {"int8_accuracy": more.pop("int8_accuracy")}
    key, side = (TABLE, NETWORK, DATA, method), splits.test.images.shape[1]
    epochs = EPOCHS + (QUANTIZED_EPOCHS if method.endswith(QUANTIZED) else 0)
    row = measured(key, base, Pipeline([model], [side]), splits, seed, epochs, more)
    return replace(row, **accuracies)


def chosen_steps(method: str) -> tuple[str, ...]:
    """Return the methods that a row of the table uses."""
    if method.startswith("only "):
        return (method.removeprefix("only "),)
    return tuple(step for step in STEPS if step != method.removeprefix("without "))


def compressed(
    base: nn.Module, images: np.ndarray, steps: tuple[str, ...]
) -> tuple[nn.Module, dict[str, float]]:
    """Bring the network down to the target by these steps, each in its turn.

    All but the last take an equal ratio, or come as near to it as whole groups allow; the last
    takes what is left.
    """
    shape = _shape(images)
    by = cost.for_machine(load_board(rows.BOARD).config)
    whole, model = by(base, shape), base
    kept: dict[str, float] = {}
    for done, step in enumerate(steps, 1):
        target = TARGET ** (done / len(steps)) * whole
        model = _APPLY[step](model, images, by, target, done == len(steps))
        kept[step] = by(model, shape) / whole
    return model, kept


def _shape(images: np.ndarray) -> tuple[int, int, int]:
    return images.shape[3], images.shape[1], images.shape[2]


def _by_fraction(
    build: Callable[[float], nn.Module],
    by: Cost,
    shape: tuple[int, int, int],
    target: float,
    reach: bool,
) -> nn.Module:
    """Return the mildest of build's networks at or below the target; the hardest if none is.

    Without `reach` it may be the next milder one, if that is nearer to the target.
    """
    low, high = 0, 64
    while low < high:
        middle = (low + high) // 2
        if by(build(middle / 64), shape) <= target:
            high = middle
        else:
            low = middle + 1
    hard = build(min(low, 63) / 64)
    if reach or low == 0:
        return hard
    mild = build((low - 1) / 64)
    ratios = [abs(math.log(by(model, shape) / target)) for model in (mild, hard)]
    return mild if ratios[0] < ratios[1] else hard


def _trimmed(
    model: nn.Module, images: np.ndarray, by: Cost, target: float, reach: bool
) -> nn.Module:
    def build(fraction: float) -> nn.Module:
        knobs = RelevanceConfig(amount=1 - fraction, align=16)
        return trim_by_relevance(model, images, knobs)[0]

    return _by_fraction(build, by, _shape(images), target, reach)


def _approximated(
    model: nn.Module, images: np.ndarray, by: Cost, target: float, reach: bool
) -> nn.Module:
    def build(fraction: float) -> nn.Module:
        knobs = ApproximationConfig(fraction=fraction, importance="effect", align=16)
        return approximate_maps(model, images, knobs)[0]

    return _by_fraction(build, by, _shape(images), target, reach)


def _lowered(
    model: nn.Module, images: np.ndarray, by: Cost, target: float, reach: bool
) -> nn.Module:
    def build(fraction: float) -> nn.Module:
        return lower_kernels(model, images, KernelConfig(fraction=fraction * 64 / 63))[0]

    return _by_fraction(build, by, _shape(images), target, reach)


def _sliced(
    model: nn.Module, images: np.ndarray, by: Cost, target: float, reach: bool
) -> nn.Module:
    left = min(1.0, target / by(model, _shape(images)))
    return lower_slices(model, images, SliceConfig(keep=left), cost=by)[0]


_APPLY: dict[str, Callable[[nn.Module, np.ndarray, Cost, float, bool], nn.Module]] = {
    "relevance trimming": _trimmed,
    "linear approximation": _approximated,
    "lower kernels": _lowered,
    "slices": _sliced,
}


def _quantized(
    base: nn.Module, splits: Splits, config: TrainConfig, cache: Path, seed: int, tick: Tick
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of "all methods", and its int8 accuracy after training as integers."""
    state = torch.load(cache / f"ablation-all-methods-{seed}.pt", weights_only=True)
    model = load_compressed(base, state["model"]).eval()
    held, test = splits.validation, splits.test
    graph, report = fine_tune_quantized(
        model,
        lambda _: (splits.train.images, splits.train.labels),
        replace(
            baselines.tuning(config, QUANTIZED_EPOCHS, seed),
            learning_rate=2e-4,
            precision="float32",
        ),
        calibration=normalise(rows.calibration_images(splits)),
        teacher=base,
        validate=lambda network: accuracy(network, held.images, held.labels),
        checkpoint=cache / f"ablation-quantized-{seed}.checkpoint",
        progress=tick,
    )
    logits = run_quantized(graph, normalise(test.images).numpy())
    right = float((logits.argmax(axis=1) == test.labels).mean())
    return model, {"int8_accuracy": right, "validation": report.accuracies}
