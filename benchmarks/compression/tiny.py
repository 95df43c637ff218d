# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: Tiny ImageNet's 20 classes, cropping, compound shrinking and a cascade.

The full-frame classifier is ResNet-20 at 64 x 64. Against it, cumulatively: crops of the
foreground by a predictor (learned from true boxes, or from Grad-CAM's of the full-frame classifier
itself), the classifier shrunk along depth, width and resolution, and a cascade: a smaller one
glances at the whole frame before the predictor is asked. Whatever a classifier sees, its teacher
sees the whole frame. Choices are made on held-out training images; costs include the predictor's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.compression import baselines, rows
from benchmarks.compression.data import load
from benchmarks.compression.pipeline import (
    Pipeline,
    cascaded,
    measured,
    stage,
)
from hwgen import models
from hwgen.compress import cost
from hwgen.compress.cropping import (
    PredictorConfig,
    crop_all,
    foreground_boxes,
    jitter_boxes,
    mean_iou,
    predict_boxes,
    resize_all,
    train_on_crops,
    train_predictor,
)
from hwgen.compress.shrinking import ShrinkConfig, shrink
from hwgen.compress.training import (
    Augment,
    Tick,
    TrainConfig,
    accuracy,
    fastest_precision,
    train,
)
from hwgen.datasets import Dataset

TABLE, DATA, NETWORK = "tiny", "tiny-imagenet-20", "ResNet-20"
SIDE = 64
EPOCHS_CROP, EPOCHS_SHRUNK = 10, 22
KINDS = ("true boxes", "Grad-CAM boxes")
PREDICTOR_SIDE = 32
PREDICTOR_TRAINING = TrainConfig(
    epochs=12,
    learning_rate=1e-3,
    loss="giou",
    augment=Augment(flip=True, shift=4),
    precision=fastest_precision(),
)
PREDICTOR_KEEP = 0.75
"""Of the predictor's MACs, what shrinking leaves."""
SIDES = (56, 48, 44, 40, 36, 32)
TARGET = 0.355
"""Of the full-frame classifier's MACs, the shrunk classifier's; the predictor comes on top."""
SMALL, BUDGET = 0.15, 0.5
"""On whole frames, the share of MACs of a cascade's first stage; and the most that a cascade which
is to be accurate may take on the mean."""
HALF = 0.5
"""What "by half" leaves of the classifier's MACs."""
FRUGAL = 0.8
"""Of the last stage alone, predictor included, what other cascades may take on the mean."""
WHOLE = "whole frames"
METHODS = (
    "full frame, trained on",
    *(f"{step}, {kind}" for kind in KINDS for step in ("cropping", "cropping + shrinking")),
    "cropping + shrinking + cascade, true boxes",
    "cropping + shrinking by half + cascade, true boxes",
    f"shrinking, {WHOLE}",
    f"shrinking + cascade, {WHOLE}",
    f"shrinking by half, {WHOLE}",
    f"shrinking by half + cascade, {WHOLE}",
    f"shrinking by half + cascade at 80 % of it, {WHOLE}",
)


def run(method: str, data: Path, cache: Path, seed: int, tick: Tick) -> rows.Row:
    """Measure one row."""
    torch.manual_seed(seed)
    step, _, kind = method.partition(", ")
    bench = _Bench(data, cache, seed, tick, kind)
    if method.startswith("full frame"):
        return bench.row(method, Pipeline([bench.longer()], [SIDE]), EPOCHS_SHRUNK)
    if kind == WHOLE:
        small = bench.shrunk(SMALL)
        if step == "shrinking":
            return bench.row(method, bench.cropping(small), EPOCHS_SHRUNK)
        if step == "shrinking + cascade":
            pipeline = bench.cropping(small, _Shrunk(bench.base, SIDE), budget=BUDGET)
            return bench.row(method, pipeline, EPOCHS_SHRUNK)
        half = bench.shrunk(HALF)
        if step == "shrinking by half":
            return bench.row(method, bench.cropping(half), EPOCHS_SHRUNK)
        budget = FRUGAL * bench.share(half) if step.endswith("at 80 % of it") else None
        return bench.row(method, bench.cropping(small, half, budget=budget), 2 * EPOCHS_SHRUNK)
    if step == "cropping":
        pipeline = bench.cropping(_Shrunk(bench.cropped, SIDE))
        return bench.row(method, pipeline, EPOCHS_CROP, {"held out": bench.by_crop()})
    half = "by half" in step
    epochs, shrunk = EPOCHS_CROP + EPOCHS_SHRUNK, bench.shrunk(HALF if half else TARGET)
    if step == "cropping + shrinking":
        return bench.row(method, bench.cropping(shrunk), epochs)
    glance = _Bench(data, cache, seed, tick, WHOLE).shrunk(SMALL)
    budget = BUDGET if half else FRUGAL * bench.share(shrunk)
    pipeline = bench.cropping(glance, shrunk, budget=budget, glances=1)
    return bench.row(method, pipeline, epochs + EPOCHS_SHRUNK, bench.beside() if half else None)


@dataclass(frozen=True)
class _Shrunk:
    """A shrunk classifier and the side of its input."""

    model: nn.Module
    side: int


@dataclass
class _Bench:
    """Everything that is trained once and kept, of one seed and one kind of boxes."""

    data: Path
    cache: Path
    seed: int
    tick: Tick
    kind: str

    def __post_init__(self) -> None:
        self.splits = load(DATA, self.data)
        self.base = baselines.trained(
            baselines.find(NETWORK, DATA), self.splits, self.data, self.cache, self.seed, self.tick
        )

    def path(self, name: str) -> Path:
        """Return the file of a trained network."""
        kind = WHOLE if name == "longer" else self.kind
        return self.cache / f"tiny-{name}-{kind}-{self.seed}.pt".replace(" ", "-")

    def config(self, epochs: int, **changes: Any) -> TrainConfig:
        """Return the fine-tuning of the classifiers."""
        config = baselines.find(NETWORK, DATA).config
        return replace(config, epochs=epochs, learning_rate=0.03, seed=self.seed, **changes)

    def longer(self) -> nn.Module:
        """Train the full-frame classifier on: more epochs alone are not what cropping is worth."""
        images, labels = self.splits.train.images, self.splits.train.labels
        path = self.path("longer")

        def build() -> tuple[nn.Module, dict[str, Any]]:
            return train(
                self.base,
                lambda _: (images, labels),
                self.config(EPOCHS_SHRUNK),
                teacher=self.base,
                checkpoint=path.with_suffix(".checkpoint"),
                progress=self.tick,
                name=f"{NETWORK}, longer",
            )[0], {}

        return stage(path, self.base, build)[0]

    def boxes_of(self, part: Dataset) -> np.ndarray:
        """Return boxes to learn from, of training or held-out images."""
        if self.kind == "true boxes":
            return _boxes(part)
        return foreground_boxes(self.base, part.images, part.labels)

    @cached_property
    def boxes(self) -> np.ndarray:
        """Boxes of the training images that predictor and classifiers learn from."""
        return self.boxes_of(self.splits.train)

    @cached_property
    def predictor(self) -> nn.Module | None:
        """The foreground predictor: the full-frame classifier's trunk, trained, shrunk, trained."""
        if self.kind == WHOLE:
            return None
        images, held = self.splits.train.images, self.splits.validation
        assert isinstance(self.base, models.ResNet)
        blank = models.with_box_head(self.base, PREDICTOR_SIDE)
        small = resize_all(images[:500], PREDICTOR_SIDE)
        # Without true boxes to learn from there are none to choose by either.
        judge = self.boxes_of(held)

        def trained(name: str, model: nn.Module) -> nn.Module:
            return train_predictor(
                model,
                images,
                self.boxes,
                PredictorConfig(PREDICTOR_SIDE, replace(PREDICTOR_TRAINING, seed=self.seed)),
                checkpoint=self.path(name).with_suffix(".checkpoint"),
                progress=self.tick,
            )[0]

        def evaluate(model: nn.Module, side: int) -> float:
            return mean_iou(predict_boxes(model, held.images, side), judge)

        def build() -> tuple[nn.Module, dict[str, Any]]:
            large = trained("large-predictor", blank)
            found = shrink(
                large,
                small,
                evaluate,
                ShrinkConfig(("depth", "width"), target_saving=1 - PREDICTOR_KEEP),
                cost=cost.macs,
                storage=str(self.path("predictor").with_suffix(".db")),
            )
            return trained("predictor", found.model), {}

        return stage(self.path("predictor"), blank, build)[0]

    def found_in(self, part: Dataset) -> np.ndarray:
        """Return what the predictor finds; whole frames without one."""
        if self.predictor is None:
            return np.tile(np.array([0.0, 0.0, 1.0, 1.0]), (len(part), 1))
        return predict_boxes(self.predictor, part.images, PREDICTOR_SIDE)

    @cached_property
    def found(self) -> np.ndarray:
        """What the predictor finds in the training images."""
        return self.found_in(self.splits.train)

    def drawn(self, epoch: int) -> np.ndarray:
        """Return an epoch's boxes of the training images: predicted, learned from, and whole.

        The whole frames keep the classifier able to answer where the predictor takes all of one.
        """
        if self.predictor is None:
            return self.found
        rng = np.random.default_rng((self.seed, epoch, 2))
        kind = rng.random(len(self.found))[:, None]
        boxes = np.where(kind < 0.4, self.found, self.boxes)
        boxes = np.where(kind < 0.75, boxes, np.array([0.0, 0.0, 1.0, 1.0]))
        return jitter_boxes(boxes, 0.06, rng)

    def taught(self, name: str, model: nn.Module, side: int, config: TrainConfig) -> nn.Module:
        """Train a classifier of crops of this side, or load it; its teacher sees the frames."""
        train_split, path = self.splits.train, self.path(name)

        def build() -> tuple[nn.Module, dict[str, Any]]:
            return train_on_crops(
                model,
                train_split.images,
                train_split.labels,
                self.drawn,
                side,
                config,
                teacher=self.longer(),
                checkpoint=path.with_suffix(".checkpoint"),
                progress=self.tick,
                name=f"{NETWORK}, {name}",
            )[0], {}

        return stage(path, model, build)[0]

    @cached_property
    def cropped(self) -> nn.Module:
        """The full-frame classifier, fine-tuned on crops."""
        if self.predictor is None:
            return self.base
        return self.taught("cropped", self.base, SIDE, self.config(EPOCHS_CROP))

    def shrunk(self, share: float) -> _Shrunk:
        """Shrink the crop classifier until it costs this share of the full-frame one's MACs."""
        held = self.splits.validation
        whole = cost.macs(self.base, (3, SIDE, SIDE))
        boxes = self.found_in(held)

        def evaluate(model: nn.Module, side: int) -> float:
            return accuracy(model, crop_all(held.images, boxes, side), held.labels)

        found = shrink(
            self.cropped,
            crop_all(self.splits.train.images, self.drawn(0), SIDE)[:500],
            evaluate,
            ShrinkConfig(target_saving=1 - share, sides=SIDES),
            cost=cost.macs,
            storage=str(self.path(f"shrunk-{share}").with_suffix(".db")),
            progress=self.tick,
        )
        side = found.point.side
        assert found.baseline_cost == whole
        config = self.config(EPOCHS_SHRUNK, distill_weight=0.5)
        return _Shrunk(self.taught(f"shrunk-{share}", found.model, side, config), side)

    def share(self, classifier: _Shrunk) -> float:
        """Return its MACs, the predictor's included, as a share of the full-frame classifier's."""
        macs = cost.macs(classifier.model, (3, classifier.side, classifier.side))
        if self.predictor is not None:
            macs += cost.macs(self.predictor, (3, PREDICTOR_SIDE, PREDICTOR_SIDE))
        return macs / cost.macs(self.base, (3, SIDE, SIDE))

    def by_crop(self) -> dict[str, float]:
        """Return the crop classifier's accuracy on held-out images, by what it is shown of them."""
        held = self.splits.validation
        crops = {
            "whole frames": held.images,
            "crops by predicted boxes": crop_all(held.images, self.found_in(held), SIDE),
            "crops by true boxes": crop_all(held.images, _boxes(held), SIDE),
        }
        return {name: accuracy(self.cropped, seen, held.labels) for name, seen in crops.items()}

    def beside(self) -> dict[str, str]:
        """Return a note on the full-frame classifier of this very row after as many epochs more."""
        test = self.splits.test
        longer = accuracy(self.longer(), test.images, test.labels)
        return {"note": f"This row's own full-frame classifier, trained on, reaches {longer:.2%}."}

    def row(
        self, method: str, pipeline: Pipeline, epochs: int, more: dict[str, Any] | None = None
    ) -> rows.Row:
        """Measure a pipeline on the test images."""
        key = TABLE, NETWORK, DATA, method
        return measured(key, self.base, pipeline, self.splits, self.seed, epochs, more or {})

    def cropping(
        self, *classifiers: _Shrunk, budget: float | None = None, glances: int = 0
    ) -> Pipeline:
        """Return the pipeline of the predictor, if there is one, and these classifiers.

        A cascade's goal is the last one's accuracy at the least cost; or the best accuracy within a
        ``budget``, a share of the full-frame classifier's MACs.
        """
        pipeline = Pipeline(
            [classifier.model for classifier in classifiers],
            [classifier.side for classifier in classifiers],
            predictor=self.predictor,
            predictor_side=PREDICTOR_SIDE,
            glances=glances,
        )
        if len(classifiers) == 1:
            return pipeline
        whole = cost.macs(self.base, (3, SIDE, SIDE))
        return cascaded(
            pipeline, self.splits.validation, None if budget is None else budget * whole
        )


def _boxes(part: Dataset) -> np.ndarray:
    """Return the true boxes of images that have some."""
    assert part.boxes is not None
    return part.boxes
