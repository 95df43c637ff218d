# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: ResNet-20, ResNet-56 and VGG-16-BN on CIFAR-10's JPEG copy, and DepGraph.

Everybody starts from one baseline and has the same data, epochs and teacher. Each row is one run
of a fixed recipe, measured once on the test split; held-out images, which the published weights
have seen, judge nothing but which blocks or channels compound shrinking drops.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.compression import baselines, rivals, rows
from benchmarks.compression.data import load
from benchmarks.compression.pipeline import Pipeline, measured, stage
from hwgen.arch.cascade import CascadeRule
from hwgen.compress import cost
from hwgen.compress.shrinking import Dimension, ShrinkConfig, shrink
from hwgen.compress.slice_reduction import SliceConfig, lower_slices
from hwgen.compress.structure import load_compressed
from hwgen.compress.training import (
    Augment,
    Tick,
    TrainConfig,
    accuracy,
    fastest_precision,
    train,
)
from hwgen.datasets import Splits

DATA = "cifar10-jpeg"
TABLE = "cifar"


@dataclass(frozen=True)
class Recipe:
    """One network's compression: what is left of which cost, and the fine-tuning.

    Attributes
    ----------
    keep
        Share of the cost that is left.
    by
        "cycles" (steps of the machine) or "macs".
    epochs
        Of fine-tuning in all, for ours and for the rivals.
    shrink, shrunk
        Dimensions of compound shrinking, which comes first and leaves this share of the cost.
    settle
        Epochs after it; slices of kernels follow.
    rounds
        Rounds of the slices' schedule; each but the last is followed by one epoch.
    cascade
        A smaller network, which as "all methods" left it goes before this one, and the margin below
        which this one is asked: uncompressed ("cascade") or not. Fixed, since held-out images that
        have been trained on cannot tell it.
    uniform
        Whether DepGraph is run with one ratio for all layers too.
    """

    network: str
    keep: float
    by: str
    epochs: int
    shrink: tuple[Dimension, ...] = ()
    shrunk: float = 1.0
    settle: int = 2
    rounds: int = 2
    learning_rate: float = 0.03
    cascade: tuple[str, float] | None = None
    uniform: bool = False


RESNET_20 = Recipe("ResNet-20", 0.62, "cycles", 10, uniform=True)
VGG_16 = Recipe("VGG-16-BN", 0.33, "macs", 6, ("width",), 0.6, settle=1, rounds=1, uniform=True)
TWO_ROUNDS = replace(VGG_16, settle=2, rounds=2)
RECIPES = (
    RESNET_20,
    Recipe("ResNet-56", 0.37, "cycles", 10, ("depth",), 0.55, cascade=("ResNet-20", 0.5)),
    VGG_16,
)
VARIANTS = {
    "all methods, milder": replace(RESNET_20, keep=0.7),
    "all methods, two rounds": TWO_ROUNDS,
    "all methods, mostly width": replace(TWO_ROUNDS, shrunk=0.42),
}
"""Other ways with a network: rows beside its "all methods"."""
CASCADES = ("cascade", "all methods + cascade")
UNIFORM_MACS = "DepGraph, uniform, at equal MACs"
UNIFORM_CYCLES = "DepGraph, uniform, at equal cycles"
METHODS = (
    "all methods",
    *VARIANTS,
    "DepGraph at equal MACs",
    UNIFORM_MACS,
    "DepGraph at equal cycles",
    UNIFORM_CYCLES,
    *CASCADES,
)
SEEDS = {
    ("ResNet-20", "all methods"): (0, 1),
    ("ResNet-20", UNIFORM_MACS): (1,),
    ("ResNet-20", UNIFORM_CYCLES): (1,),
    ("VGG-16-BN", "all methods"): (1,),
    ("VGG-16-BN", "all methods, two rounds"): (0, 1, 2),
    ("VGG-16-BN", UNIFORM_MACS): (0, 1, 2),
    ("VGG-16-BN", UNIFORM_CYCLES): (),
    ("VGG-16-BN", "all methods, mostly width"): (1,),
}
"""Of rows that have others than 0 alone."""


def methods(recipe: Recipe) -> tuple[str, ...]:
    """Return the rows of a network."""
    without = {
        *(() if recipe.cascade is not None else CASCADES),
        *(() if recipe.uniform else (UNIFORM_MACS, UNIFORM_CYCLES)),
        *(method for method, other in VARIANTS.items() if other.network != recipe.network),
    }
    return tuple(method for method in METHODS if method not in without)


def ours(found: Iterable[rows.Row]) -> dict[tuple[object, ...], rows.Row]:
    """Return what DepGraph's rows are compared with, by baseline and seed: "all methods".

    Of a baseline and seed without it, the first of its variants.
    """
    names = [method for method in METHODS if method in ("all methods", *VARIANTS)]
    mine = [row for row in found if row.table == TABLE and row.method in names]
    mine.sort(key=lambda row: -names.index(row.method))
    return {(*row.origin, row.seed): row for row in mine}


def run(
    recipe: Recipe, method: str, data: Path, folder: Path, seed: int, tick: Tick | None
) -> rows.Row:
    """Measure one row; all seeds compress one baseline, so rows of several show their own noise."""
    splits = load(DATA, data)

    def baseline(network: str) -> nn.Module:
        found = baselines.find(network, DATA)
        return baselines.trained(found, splits, data, folder, progress=tick)

    base = baseline(recipe.network)
    torch.manual_seed(seed)
    key = TABLE, recipe.network, DATA, method
    if method in CASCADES:
        assert recipe.cascade is not None
        network, margin = recipe.cascade
        classifiers = [_finished(baseline(network), folder, network, seed), base]
        if method != "cascade":
            classifiers[1] = _finished(base, folder, recipe.network, seed)
        pipeline = Pipeline(classifiers, [32, 32], CascadeRule((margin,)))
        first = next(other for other in RECIPES if other.network == network)
        spent = first.epochs + (0 if method == "cascade" else recipe.epochs)
        return measured(key, base, pipeline, splits, seed, spent, {"first": network})
    model, more = stage(
        folder / f"{recipe.network}-{method.replace(' ', '-')}-{seed}.pt",
        base,
        lambda: _compressed(recipe, method, base, splits, folder, seed, tick),
    )
    return measured(key, base, Pipeline([model], [32]), splits, seed, recipe.epochs, more)


def _finished(base: nn.Module, folder: Path, network: str, seed: int) -> nn.Module:
    """Return what "all methods" left of a network."""
    path = folder / f"{network}-all-methods-{seed}.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} must be made first, by the row 'all methods'")
    return load_compressed(base, torch.load(path, weights_only=True)["model"]).eval()


def tuning(recipe: Recipe, epochs: int, seed: int) -> TrainConfig:
    """Return the fine-tuning that all methods share."""
    return TrainConfig(
        epochs=epochs,
        batch_size=128,
        optimizer="sgd",
        learning_rate=recipe.learning_rate,
        weight_decay=5e-4,
        label_smoothing=0.0,
        distill_weight=0.7,
        distill_temperature=3.0,
        augment=Augment(flip=True, shift=4),
        precision=fastest_precision(),
        seed=seed,
    )


def _compressed(
    recipe: Recipe,
    method: str,
    base: nn.Module,
    splits: Splits,
    folder: Path,
    seed: int,
    tick: Tick | None,
) -> tuple[nn.Module, dict[str, Any]]:
    steps = rows.steps()
    shape = (3, 32, 32)
    images = rows.calibration_images(splits, 2000, seed)
    name = f"{recipe.network}-{method.replace(' ', '-')}-{seed}"
    spent = 0

    def tuned(model: nn.Module, epochs: int) -> nn.Module:
        nonlocal spent
        result, _ = train(
            model,
            lambda _: (splits.train.images, splits.train.labels),
            replace(tuning(recipe, epochs, seed), seed=seed + 100 * spent),
            teacher=base,
            checkpoint=folder / f"{name}-{spent}.checkpoint",
            progress=tick,
            name=f"{recipe.network} {method}",
        )
        spent += epochs
        return result

    if not method.startswith("DepGraph"):
        recipe = VARIANTS.get(method, recipe)
        model, chosen = base, steps if recipe.by == "cycles" else cost.macs
        if recipe.shrink:
            some = splits.validation.images[:1000], splits.validation.labels[:1000]
            smaller = shrink(
                base,
                images[:500],
                lambda trial, _: accuracy(trial, *some),
                ShrinkConfig(dimensions=recipe.shrink, target_saving=1 - recipe.shrunk),
                cost=chosen,
                storage=str(folder / f"{name}.db"),
            )
            model = tuned(smaller.model, recipe.settle)
        count = iter(range(1, recipe.rounds + 1))

        def fine_tune(model: nn.Module) -> nn.Module:
            last = next(count) == recipe.rounds
            return tuned(model, recipe.epochs - spent if last else 1)

        left = recipe.keep * chosen(base, shape) / chosen(model, shape)
        knobs = SliceConfig(keep=left, shapes="free", rounds=recipe.rounds)
        model, _ = lower_slices(model, images, knobs, cost=chosen, fine_tune=fine_tune)
        return model, {"recipe": repr(recipe), "knobs": repr(knobs)}
    mine = _finished(base, folder, recipe.network, seed)
    counted = {
        UNIFORM_CYCLES: ("predicted cycles", cost.predicted_cycles, 16),
        "DepGraph at equal cycles": ("of the machine's steps", steps, 16),
    }
    what, by, align = counted.get(method, ("MACs", cost.macs, 1))
    target, uniform = by(mine, shape), method in (UNIFORM_MACS, UNIFORM_CYCLES)
    model = rivals.depgraph(base, 32, by, target, align, uniform=uniform)
    reached, more = by(model, shape), {}
    if reached > target:
        more["note"] = (
            f"DepGraph's cheapest network takes {reached / target - 1:.1%} more {what} than ours: "
            "16 channels, which the machine computes at once, cannot become less"
        )
    return tuned(model, recipe.epochs), more
