# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: small networks, each method as far as one point of accuracy lets it go.

For every network and method a ladder of compression is bisected on held-out training images
(:func:`hwgen.compress.budget.tightest`): each trial is compressed in rounds and fine-tuned,
from the baseline.
The test split is seen once, by what was chosen.
"""

from __future__ import annotations

from collections.abc import Callable
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
from hwgen.compress.budget import tightest
from hwgen.compress.linear_approximation import ApproximationConfig, approximate_maps
from hwgen.compress.relevance import FineTune
from hwgen.compress.slice_reduction import SliceConfig, UnreachableCost, lower_slices
from hwgen.compress.training import Tick, accuracy, train

TABLE = "small"
MAX_LOSS = 0.01
ROUNDS = 6
EPOCHS = {"frames": (20, 10), "cifar10-jpeg": (10, 8)}
"""Every trial goes down in so many rounds, an epoch after each, and the rest of them at the end.

The second number is ResNet-8's, an epoch of which takes three times as long. An epoch of CIFAR-10
has two and a half times the batches."""
PAIRS = tuple(
    (network, data)
    for network in ("LeNet", "ResNet-8", "demo classifier")
    for data in ("frames", "cifar10-jpeg")
)
LEVELS = {
    "lower kernels": (0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.2),
    "linear approximation": (0.15, 0.25, 0.32, 0.4, 0.48, 0.56, 0.64),
    "all methods": (0.5, 0.42, 0.35, 0.29, 0.24, 0.2, 0.16),
}


def run(
    network: str, data: str, method: str, folder: Path | None, cache: Path, seed: int, tick: Tick
) -> rows.Row:
    """Measure one row."""
    splits = load(data, folder)
    baseline = baselines.find(network, data)
    base = baselines.trained(baseline, splits, folder, cache, seed, tick)
    side = splits.train.images.shape[1]
    images = rows.calibration_images(splits, 1000, seed)
    held = splits.validation
    total = EPOCHS[data][network == "ResNet-8"]
    floor = accuracy(base, held.images, held.labels) - MAX_LOSS
    name = f"{network}-{data}-{method}".replace(" ", "-")

    def tuner(level: float) -> FineTune:
        count = iter(range(1, ROUNDS + 1))

        def fine_tune(model: nn.Module) -> nn.Module:
            number = next(count)
            epochs = total - ROUNDS + 1 if number == ROUNDS else 1
            return train(
                model,
                lambda _: (splits.train.images, splits.train.labels),
                baselines.tuning(baseline.config, epochs, 100 * seed + number),
                teacher=base,
                checkpoint=cache / f"{name}-{level}-{seed}-{number}.checkpoint",
                progress=tick,
                name=f"{network}, {method} {level}",
            )[0]

        return fine_tune

    def build() -> tuple[nn.Module, dict[str, Any]]:
        torch.manual_seed(seed)
        make = MAKERS[method]
        tried: list[tuple[float, float]] = []

        def validate(model: nn.Module) -> float:
            if model is not base:
                tried[-1] = (tried[-1][0], accuracy(model, held.images, held.labels))
            return tried[-1][1]

        def trial(level: float) -> nn.Module:
            tried.append((level, 0.0))
            try:
                return make(base, images, side, level, tuner(level))
            except UnreachableCost:
                return base  # there is no such network: harder than the method can go

        found = tightest(trial, LEVELS[method], validate, floor)
        if found is None:
            raise ValueError(f"{name}: no level of {LEVELS[method]} keeps {floor:.4f}: {tried}")
        return found[1], {"level": found[0], "floor": floor, "tried": tried}

    model, more = stage(cache / f"{name}-{seed}.pt", base, build)
    key = TABLE, network, data, method
    return measured(key, base, Pipeline([model], [side]), splits, seed, total, more)


def _lowered(
    base: nn.Module, images: np.ndarray, side: int, keep: float, fine_tune: FineTune
) -> nn.Module:
    """Lower slices until ``keep`` of the machine's steps are left."""
    steps = cost.for_machine(load_board(rows.BOARD).config)
    knobs = SliceConfig(keep=keep, rounds=ROUNDS)
    return lower_slices(base, images, knobs, cost=steps, fine_tune=fine_tune)[0]


def _approximated(
    base: nn.Module, images: np.ndarray, side: int, fraction: float, fine_tune: FineTune
) -> nn.Module:
    """Drop a share of every space's maps, and fold what stands for them into their readers.

    Single maps, as in the paper: MACs are what it saves; the machine computes 16 at once.
    """
    model = base
    each = 1 - (1 - fraction) ** (1 / ROUNDS)
    knobs = ApproximationConfig(fraction=each, importance="effect", align=1)
    for _ in range(ROUNDS):
        model = fine_tune(approximate_maps(model, images, knobs)[0])
    return model


def _both(
    base: nn.Module, images: np.ndarray, side: int, keep: float, fine_tune: FineTune
) -> nn.Module:
    """Fold maps away in half of the rounds, then lower slices to ``keep`` of the MACs.

    MACs fall with the square of the maps that are left: the maps take 0.6 of the logarithm.
    """
    steps = cost.for_machine(load_board(rows.BOARD).config)
    shape, rounds = (3, side, side), ROUNDS // 2
    knobs = ApproximationConfig(fraction=1 - keep ** (0.3 / rounds), importance="effect", align=1)
    model = base
    for _ in range(rounds):
        model = fine_tune(approximate_maps(model, images, knobs)[0])
    left = min(keep * cost.macs(base, shape) / cost.macs(model, shape), 1.0)
    knobs_of_slices = SliceConfig(keep=left, rounds=ROUNDS - rounds)
    return lower_slices(model, images, knobs_of_slices, cost=steps, fine_tune=fine_tune)[0]


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "lower kernels": _lowered,
    "linear approximation": _approximated,
    "all methods": _both,
}
