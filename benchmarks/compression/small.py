# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: small networks, each method as far as one point of accuracy lets it go.

For every network and method a ladder of compression is bisected on held-out training images
(:func:`hwgen.compress.budget.tightest`): each trial is compressed in rounds and fine-tuned,
from the baseline.
The test split is seen once, by what was chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from benchmarks.compression import baselines, rows
from benchmarks.compression.data import load
from benchmarks.compression.pipeline import Pipeline, measured, resized, stage
from hwgen.compress.budget import floor_of, tightest
from hwgen.compress.cropping import Resize
from hwgen.compress.linear_approximation import ApproximationConfig, approximate_maps
from hwgen.compress.relevance import FineTune
from hwgen.compress.slice_reduction import SliceConfig, UnreachableCost, lower_slices
from hwgen.compress.training import Tick, accuracy, train
from hwgen.datasets import Dataset

TABLE = "small"
MAX_LOSS = 0.01
ROUNDS = 6
EPOCHS = {
    ("LeNet", "frames"): (20, 20, 20),
    ("LeNet", "cifar10-jpeg"): (40, 20, 40),
    ("ResNet-8", "frames"): (10, 10, 20),
    ("ResNet-8", "cifar10-jpeg"): (8, 8, 10),
    ("demo classifier", "frames"): (60, 60, 60),
    ("demo classifier", "cifar10-jpeg"): (10, 10, 10),
}
"""Of a trial of each method, in the order of :data:`LEVELS`: every trial goes down in
:data:`ROUNDS` rounds, an epoch after each, and the rest of them at the end.

An epoch takes a second (the demo's classifier, frames) to 45 (ResNet-8, CIFAR-10), and a CPU has
the time for so many. LeNet's and the demo classifier's were raised after shorter ones had been
measured, on the test split too, which the page says."""
PAIRS = tuple(EPOCHS)
SHRUNK = {("ResNet-8", "frames"), ("demo classifier", "frames")}
"""Where "all methods" shrinks the resolution too.

On CIFAR-10's 32 x 32 each pixel counts; LeNet ends in a flatten."""
LEVELS = {
    "lower kernels": (0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.2),
    "linear approximation": (0.15, 0.25, 0.32, 0.4, 0.48, 0.56, 0.64),
    "all methods": (0.5, 0.42, 0.35, 0.29, 0.24, 0.2, 0.16),
}
MILDER = {
    "lower kernels": (0.9, 0.8, 0.7),
    "linear approximation": (0.05, 0.1),
    "all methods": (0.9, 0.8, 0.7, 0.6),
}
"""For a network that none of the levels leaves accurate enough."""


def run(
    network: str, data: str, method: str, folder: Path | None, cache: Path, seed: int, tick: Tick
) -> rows.Row:
    """Measure one row."""
    splits = load(data, folder)
    baseline = baselines.find(network, data)
    base = baselines.trained(baseline, splits, folder, cache, seed, tick)
    own = splits.train.images.shape[1]
    images = rows.calibration_images(splits, 1000, seed)
    held = splits.validation
    total = EPOCHS[network, data][tuple(LEVELS).index(method)]
    floor = floor_of(accuracy(base, held.images, held.labels), MAX_LOSS)
    name = f"{network}-{data}-{method}".replace(" ", "-")

    def tuner(level: float, side: int) -> FineTune:
        count = iter(range(1, ROUNDS + 1))
        teacher, resize = _teacher(base, own, side, held)
        seen = splits.train.images if resize is not None else resized(splits.train.images, side)

        def fine_tune(model: nn.Module) -> nn.Module:
            number = next(count)
            epochs = total - ROUNDS + 1 if number == ROUNDS else 1
            tuned, _ = train(
                model if resize is None else nn.Sequential(resize, model),
                lambda _: (seen, splits.train.labels),
                baselines.tuning(baseline.config, epochs, 100 * seed + number),
                teacher=teacher,
                checkpoint=cache / f"{name}-{level}-{seed}-{number}.checkpoint",
                progress=tick,
                name=f"{network}, {method} {level}",
            )
            return tuned if resize is None else cast(nn.Sequential, tuned)[1]

        return fine_tune

    def side_at(level: float) -> int:
        shrinks = method == "all methods" and (network, data) in SHRUNK
        return shrunk_side(own, level) if shrinks else own

    def build() -> tuple[nn.Module, dict[str, Any]]:
        torch.manual_seed(seed)
        make = MAKERS[method]
        tried: list[tuple[float, float]] = []

        def validate(model: nn.Module) -> float:
            level, _ = tried[-1]
            if model is not base:
                seen = resized(held.images, side_at(level))
                tried[-1] = (level, accuracy(model, seen, held.labels))
            return tried[-1][1]

        def trial(level: float) -> nn.Module:
            tried.append((level, 0.0))
            side = side_at(level)
            task = _Task(base, resized(images, side), own, side, level, tuner(level, side))
            try:
                return make(task)
            except UnreachableCost:
                return base  # there is no such network: harder than the method can go

        found = tightest(trial, LEVELS[method], validate, floor)
        found = found or tightest(trial, MILDER[method], validate, floor)
        if found is None:
            raise ValueError(f"{name}: no level keeps {floor:.4f}: {tried}")
        return found[1], {"level": found[0], "floor": floor, "tried": tried}

    model, more = stage(cache / f"{name}-{seed}.pt", base, build)
    more["side"] = side_at(more["level"])
    key = TABLE, network, data, method
    return measured(key, base, Pipeline([model], [more["side"]]), splits, seed, total, more)


def shrunk_side(side: int, level: float) -> int:
    """Return the resolution at a level: it takes 0.6 of the logarithm, in multiples of 8 pixels."""
    return min(8 * round(side * level**0.3 / 8), side)


def _teacher(
    base: nn.Module, own: int, side: int, held: Dataset
) -> tuple[nn.Module, Resize | None]:
    """Return the teacher of a network that sees pictures of this side, and what shrinks them.

    A student learns best from a teacher that sees what it sees (Beyer et al., CVPR 2022): its small
    picture, enlarged. Where that costs the teacher half a point of held-out accuracy, it sees the
    picture itself, which then is shrunk before the student.
    """
    if side == own:
        return base, None
    enlarged = nn.Sequential(nn.Upsample(own, mode="bilinear"), base).eval()
    able = accuracy(enlarged, resized(held.images, side), held.labels)
    if able >= accuracy(base, held.images, held.labels) - 0.005:
        return enlarged, None
    return base, Resize(own, side)


@dataclass(frozen=True)
class _Task:
    """What a method is to do: which share (``level``) of what is to be left of ``base``.

    ``images`` are for calibration, of the ``side`` at which the result is used; ``base`` was
    trained at ``own``.
    """

    base: nn.Module
    images: np.ndarray
    own: int
    side: int
    level: float
    fine_tune: FineTune


def _lowered(task: _Task) -> nn.Module:
    """Lower slices until ``level`` of the machine's steps are left."""
    knobs, tune = SliceConfig(keep=task.level, rounds=ROUNDS), task.fine_tune
    return lower_slices(task.base, task.images, knobs, cost=rows.steps(), fine_tune=tune)[0]


def _approximated(task: _Task) -> nn.Module:
    """Drop a share of every space's maps, and fold what stands for them into their readers.

    Single maps, as in the paper: MACs are what it saves; the machine computes 16 at once.
    """
    model = task.base
    each = 1 - (1 - task.level) ** (1 / ROUNDS)
    knobs = ApproximationConfig(fraction=each, importance="effect", align=1)
    for _ in range(ROUNDS):
        model = task.fine_tune(approximate_maps(model, task.images, knobs)[0])
    return model


def _all(task: _Task) -> nn.Module:
    """Shrink the resolution, fold groups of maps away, and lower slices to ``level`` of the steps.

    A round goes to the resolution, if it shrinks, one to the maps, the others to the slices. Maps
    go in groups of 16, at most a quarter of them: saved MACs are saved cycles.
    """
    model, rounds, steps = task.base, ROUNDS - 1, rows.steps()
    if task.side != task.own:
        model, rounds = task.fine_tune(model), rounds - 1
    knobs = ApproximationConfig(fraction=0.25, importance="effect", align=16)
    model = task.fine_tune(approximate_maps(model, task.images, knobs)[0])
    shapes = ((3, side, side) for side in (task.own, task.side))
    before, now = (steps(*pair) for pair in zip((task.base, model), shapes, strict=True))
    left = min(task.level * before / now, 1.0)
    slices, tune = SliceConfig(keep=left, rounds=rounds), task.fine_tune
    return lower_slices(model, task.images, slices, cost=steps, fine_tune=tune)[0]


MAKERS: dict[str, Callable[[_Task], nn.Module]] = {
    "lower kernels": _lowered,
    "linear approximation": _approximated,
    "all methods": _all,
}
