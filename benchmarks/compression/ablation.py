# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: every method on and off, one at a time, on one network.

ResNet-8 on the bundled frames, all rows for the same share of steps, as far as a method can go:
what it is worth is the accuracy that it keeps. "only X" reaches the target by X alone; "without X"
by all the others; "with X" adds what "all methods" does not have: compound shrinking takes the
first half of the way, cropping has a predictor whose cost is counted (the teacher sees the whole
frame), and a cascade asks the uncompressed network about images that the compressed one is not sure
of. Every row has the same epochs of fine-tuning; the quantization-aware one has two more, on
integers. Single methods, and all of them, go once more as far as trimming whole groups can alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from benchmarks.compression import baselines, rows
from benchmarks.compression.data import load
from benchmarks.compression.pipeline import (
    Pipeline,
    cascaded,
    measured,
    resized,
    stage,
)
from hwgen import models
from hwgen.compress.cost import Cost
from hwgen.compress.cropping import (
    PredictorConfig,
    Resize,
    crop_all,
    jitter_boxes,
    predict_boxes,
    train_on_crops,
    train_predictor,
)
from hwgen.compress.inputs import normalise
from hwgen.compress.kernel_reduction import KernelConfig, lower_kernels
from hwgen.compress.linear_approximation import ApproximationConfig, approximate_maps
from hwgen.compress.relevance import RelevanceConfig, trim_by_relevance
from hwgen.compress.shrinking import ShrinkConfig, shrink
from hwgen.compress.slice_reduction import SliceConfig, lower_slices
from hwgen.compress.structure import load_compressed
from hwgen.compress.training import Tick, TrainConfig, accuracy, reestimate_bn, train
from hwgen.quantize import fine_tune_quantized

TABLE, NETWORK, DATA = "ablation", "ResNet-8", "frames"
TARGET, MILD = 0.25, 0.55
AT_MILD = f", down to {MILD:.0%}"
SHRINKING, CROPPING, CASCADE = "compound shrinking", "cropping", "a cascade"
CROP_SIDE = 32
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
    f"with {SHRINKING}",
    f"with {CROPPING}",
    f"with {CASCADE}",
    f"all methods{AT_MILD}",
    *(f"only {step}{AT_MILD}" for step in STEPS),
)


def run(method: str, cache: Path, seed: int, tick: Tick) -> rows.Row:
    """Measure one row."""
    bench = _Bench(method, cache, seed, tick)
    accuracies: dict[str, float] = {}
    epochs, side = EPOCHS, bench.side
    if method.endswith(CASCADE):
        pipeline, more = bench.cascade(), {}
    elif method.endswith(QUANTIZED):
        model, more = bench.quantized()
        pipeline, epochs = Pipeline([model], [side]), EPOCHS + QUANTIZED_EPOCHS
        accuracies = {"int8_accuracy": more.pop("int8_accuracy")}
    else:
        build = {f"with {SHRINKING}": bench.shrunk, f"with {CROPPING}": bench.cropped}
        model, more = stage(bench.path, bench.base, build.get(method, bench.stepped))
        predictor = bench.predictor if method.endswith(CROPPING) else None
        pipeline = Pipeline([model], [more.get("side", side)], predictor=predictor)
    key = TABLE, NETWORK, DATA, method
    row = measured(key, bench.base, pipeline, bench.splits, seed, epochs, more)
    return replace(row, **accuracies)


Built = tuple[nn.Module, dict[str, Any]]
"""A network and what is to be said about it."""


@dataclass
class _Bench:
    """The network that is compressed, its data, and one row's way to compress it."""

    method: str
    cache: Path
    seed: int
    tick: Tick

    def __post_init__(self) -> None:
        self.splits = load(DATA, None)
        self.baseline = baselines.find(NETWORK, DATA)
        self.base = baselines.trained(
            self.baseline, self.splits, None, self.cache, self.seed, self.tick
        )
        self.side = self.splits.train.images.shape[1]
        self.whole = rows.steps()(self.base, (3, self.side, self.side))
        self.images = rows.calibration_images(self.splits, 1000, self.seed)

    @property
    def path(self) -> Path:
        """File of the row's network."""
        return self.cache / f"ablation-{self.method.replace(' ', '-')}-{self.seed}.pt"

    @property
    def tuning(self) -> TrainConfig:
        """The fine-tuning that all rows share."""
        return baselines.tuning(self.baseline.config, EPOCHS, self.seed)

    def fine_tune(self, model: nn.Module) -> nn.Module:
        """Train a network on the training images."""
        images, labels = self.splits.train.images, self.splits.train.labels
        alone = self.method == "without distillation"
        return train(
            model,
            lambda _: (images, labels),
            self.tuning,
            teacher=None if alone else self.base,
            checkpoint=self.path.with_suffix(".checkpoint"),
            progress=self.tick,
            name=f"{NETWORK}, {self.method}",
        )[0]

    def stepped(self) -> Built:
        """Apply the steps of the row's name."""
        steps, target = chosen_steps(self.method)
        model, kept = compressed(self.base, self.images, steps, self.whole, target)
        model = self.fine_tune(model)
        return model, {"cost left after each step": kept}

    def shrunk(self) -> Built:
        """Shrink half of the way, then apply all steps."""
        held = self.splits.validation
        found = shrink(
            self.base,
            self.images[:500],
            lambda model, side: accuracy(model, resized(held.images, side), held.labels),
            ShrinkConfig(target_saving=1 - math.sqrt(TARGET)),
            cost=rows.steps(),
            progress=self.tick,
        )
        side = found.point.side
        model, kept = compressed(found.model, resized(self.images, side), STEPS, self.whole)
        tuned = self.fine_tune(nn.Sequential(Resize(self.side, side), model))
        more = {"cost left after each step": kept, "point": asdict(found.point), "side": side}
        return cast(nn.Sequential, tuned)[1], more

    def cropped(self) -> Built:
        """Apply all steps to a network that sees crops; the predictor is counted."""
        images, labels = self.splits.train.images, self.splits.train.labels
        boxes = predict_boxes(self.predictor, images, self.predictor.side)

        def drawn(epoch: int) -> np.ndarray:
            return jitter_boxes(boxes, 0.06, np.random.default_rng((self.seed, epoch)))

        side = self.predictor.side
        left = TARGET - rows.steps()(self.predictor, (3, side, side)) / self.whole
        some = crop_all(images, drawn(0), CROP_SIDE)[:1000]
        model, kept = compressed(reestimate_bn(self.base, some), some, STEPS, self.whole, left)
        model, _ = train_on_crops(
            model,
            images,
            labels,
            drawn,
            CROP_SIDE,
            self.tuning,
            teacher=self.base,
            checkpoint=self.path.with_suffix(".checkpoint"),
            progress=self.tick,
            name=f"{NETWORK}, {self.method}",
        )
        return model, {"cost left after each step": kept, "side": CROP_SIDE}

    @cached_property
    def predictor(self) -> models.ForegroundPredictor:
        """A foreground predictor, trained on true boxes."""
        torch.manual_seed(self.seed)
        path = self.cache / f"ablation-predictor-{self.seed}.pt"
        blank, train_split = models.ForegroundPredictor(), self.splits.train
        config = PredictorConfig()
        config = replace(config, train=replace(config.train, seed=self.seed))

        def build() -> Built:
            assert train_split.boxes is not None
            model, report = train_predictor(
                blank,
                train_split.images,
                train_split.boxes,
                config,
                checkpoint=path.with_suffix(".checkpoint"),
                progress=self.tick,
            )
            return model, {"IoU in training": report.train_iou}

        model, _ = stage(path, blank, build)
        assert isinstance(model, models.ForegroundPredictor)
        return model

    def finished(self) -> nn.Module:
        """Return what "all methods" left."""
        path = self.cache / f"ablation-all-methods-{self.seed}.pt"
        if not path.exists():
            raise FileNotFoundError(f"{path} must be made first, by the row 'all methods'")
        held = torch.load(path, weights_only=True)["model"]
        return load_compressed(self.base, held).eval()

    def cascade(self) -> Pipeline:
        """Return the cheapest cascade that is as accurate on held-out images as its last stage."""
        pipeline = Pipeline([self.finished(), self.base], [self.side, self.side])
        # The compressed network is so much worse that fusing with it may cost more than it gives.
        return cascaded(pipeline, self.splits.validation, alphas=(0.5, 1.0, 2.0, 4.0, 16.0, 64.0))

    def quantized(self) -> Built:
        """Return the network of "all methods", and its accuracy after training as integers."""
        model, held, test = self.finished(), self.splits.validation, self.splits.test
        graph, report = fine_tune_quantized(
            model,
            lambda _: (self.splits.train.images, self.splits.train.labels),
            replace(
                baselines.tuning(self.baseline.config, QUANTIZED_EPOCHS, self.seed),
                learning_rate=2e-4,
                precision="float32",
            ),
            calibration=normalise(rows.calibration_images(self.splits)),
            teacher=self.base,
            validate=lambda network: accuracy(network, held.images, held.labels),
            checkpoint=self.cache / f"ablation-quantized-{self.seed}.checkpoint",
            progress=self.tick,
        )
        right = accuracy(graph, test.images, test.labels)
        return model, {"int8_accuracy": right, "validation": report.accuracies}


def chosen_steps(method: str) -> tuple[tuple[str, ...], float]:
    """Return the methods that a row of the table uses, and the share that they leave."""
    target = MILD if method.endswith(AT_MILD) else TARGET
    method = method.removesuffix(AT_MILD)
    if method.startswith("only "):
        return (method.removeprefix("only "),), target
    return tuple(step for step in STEPS if step != method.removeprefix("without ")), target


def compressed(
    model: nn.Module,
    images: np.ndarray,
    steps: tuple[str, ...],
    whole: float,
    left: float = TARGET,
) -> tuple[nn.Module, dict[str, float]]:
    """Bring a network down to the share ``left`` of ``whole`` by these steps, each in its turn.

    All but the last take an equal ratio, or come as near to it as whole groups allow; the last
    takes what is left.
    """
    shape, by = _shape(images), rows.steps()
    begin = by(model, shape) / whole
    kept: dict[str, float] = {}
    for done, step in enumerate(steps, 1):
        target = begin * (left / begin) ** (done / len(steps)) * whole
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
