# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: what a row runs on each image, and its measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.compression import rows
from hwgen.arch.cascade import CascadeRule, run_rule
from hwgen.arch.crop import square_crops
from hwgen.compress.cascade import (
    CascadeConfig,
    cascade_logits,
    evaluate_cascade,
    fit_cascade,
)
from hwgen.compress.cropping import crop_all, mean_iou, predict_boxes, resize_all
from hwgen.compress.inputs import normalise
from hwgen.compress.structure import load_compressed
from hwgen.compress.training import accuracy, save_atomically
from hwgen.datasets import Dataset, Splits
from hwgen.ir import Graph
from hwgen.quantize import quantize_model

Network = nn.Module | Graph


@dataclass(frozen=True)
class Pipeline:
    """One classifier or a cascade of several, on whole frames or on what a predictor crops.

    Attributes
    ----------
    classifiers, sides
        The networks and the side of the square that each sees.
    rule
        Of a cascade.
    predictor, predictor_side
        Finds the crop; whole frames without one.
    glances
        How many of the first classifiers see whole frames, before the predictor is run.
    """

    classifiers: Sequence[Network]
    sides: Sequence[int]
    rule: CascadeRule | None = None
    predictor: Network | None = None
    predictor_side: int = 32
    glances: int = 0

    def boxes(self, images: np.ndarray) -> np.ndarray:
        """Return the predictor's boxes."""
        assert self.predictor is not None
        return predict_boxes(self.predictor, images, self.predictor_side)

    def seen(self, images: np.ndarray) -> list[np.ndarray]:
        """Return what each classifier sees of these frames."""
        if self.predictor is None:
            return [resized(images, side) for side in self.sides]
        boxes, first = self.boxes(images), self.glances
        whole = [resized(images, side) for side in self.sides[:first]]
        return whole + [crop_all(images, boxes, side) for side in self.sides[first:]]

    def logits(self, images: np.ndarray) -> list[np.ndarray]:
        """Return each classifier's logits for these frames."""
        boxes = None if self.predictor is None else self.boxes(images)
        return cascade_logits(
            self.classifiers, images, self.sides, boxes=boxes, glances=self.glances
        )

    def quantized(self, images: np.ndarray) -> Pipeline:
        """Return the pipeline of integers, calibrated on these frames."""
        predictor = self.predictor
        if predictor is not None:
            predictor = _integers(predictor, resize_all(images, self.predictor_side))
        pairs = zip(self.classifiers, self.seen(images), strict=True)
        return replace(self, predictor=predictor, classifiers=[_integers(*pair) for pair in pairs])

    def costs(self) -> tuple[tuple[float, ...], list[tuple[float, ...]]]:
        """Return MACs, parameters and cycles, of the predictor and of each classifier."""
        head: tuple[float, ...] = (0.0, 0.0, 0.0)
        if isinstance(self.predictor, nn.Module):
            head = rows.costs(self.predictor, self.predictor_side)
        pairs = zip(self.classifiers, self.sides, strict=True)
        return head, [rows.costs(n, side) for n, side in pairs if isinstance(n, nn.Module)]

    def frame_cycles(self, images: np.ndarray, logits: list[np.ndarray]) -> float:
        """Return the mean cycles of an image where the machine crops and resizes too.

        ``logits`` are each classifier's: they tell how far an image goes. Frames are square.
        """
        ends = np.zeros(len(images), np.int64)
        if self.rule is not None:
            ends = run_rule(self.rule, logits).stages - 1
        whole = np.full(len(images), images.shape[1])
        crops, runs = whole, []
        if self.predictor is not None:
            crops = square_crops(self.boxes(images), *images.shape[1:3])[:, 2]
            runs = [(self.predictor, self.predictor_side, whole[ends >= self.glances])]
        for stage, (network, side) in enumerate(zip(self.classifiers, self.sides, strict=True)):
            seen = whole if stage < self.glances else crops
            runs.append((network, side, seen[ends >= stage]))
        total = 0.0
        for network, side, boxes in runs:
            assert isinstance(network, nn.Module)
            for box, count in zip(*np.unique(boxes, return_counts=True), strict=True):
                total += count * rows.frame_cycles(network, side, int(box))
        return total / len(images)


def _integers(network: Network, seen: np.ndarray) -> Graph:
    assert isinstance(network, nn.Module)
    inputs = normalise(seen)
    return quantize_model(network.cpu().eval(), inputs[:1], inputs)


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Resize (N, own, own, C) pictures, if that changes anything."""
    return images if images.shape[1] == side else resize_all(images, side)


def cascaded(
    pipeline: Pipeline,
    held: Dataset,
    target_cost: float | None = None,
    alphas: tuple[float, ...] = CascadeConfig.alphas,
) -> Pipeline:
    """Return the pipeline with a rule that is fitted on held-out images.

    The goal is the last stage's accuracy at the fewest MACs, or the best accuracy at a mean cost.
    """
    logits, (head, each) = pipeline.logits(held.images), pipeline.costs()
    goal = float((logits[-1].argmax(axis=1) == held.labels).mean())
    config = CascadeConfig(
        target_accuracy=goal if target_cost is None else None,
        target_cost=target_cost,
        alphas=alphas,
    )
    macs = [costs[0] for costs in each]
    rule, _ = fit_cascade(logits, held.labels, macs, config, head[0], pipeline.glances)
    return replace(pipeline, rule=rule)


def stage(
    path: Path, base: nn.Module, build: Callable[[], tuple[nn.Module, dict[str, Any]]]
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a finished network, or build and keep it."""
    if not path.exists():
        began = time.perf_counter()
        model, more = build()
        more["seconds"] = round(time.perf_counter() - began)
        save_atomically({"model": model.state_dict(), "more": more}, path)
    held = torch.load(path, weights_only=True)
    return load_compressed(base, held["model"]).eval(), held["more"]


def measured(
    key: tuple[str, str, str, str],
    base: nn.Module,
    pipeline: Pipeline,
    splits: Splits,
    seed: int,
    epochs: float,
    more: dict[str, Any],
) -> rows.Row:
    """Measure a pipeline and its baseline, which sees whole frames, on the test split.

    ``key`` is the row's table, network, data and method. A cascade's MACs and cycles are means over
    the test images.
    """
    test, side = splits.test, splits.test.images.shape[1]
    integers = pipeline.quantized(rows.calibration_images(splits))
    logits, codes = pipeline.logits(test.images), integers.logits(test.images)
    before, (head, each) = rows.costs(base, side), pipeline.costs()
    more = dict(more)
    note = more.pop("note", "")
    if pipeline.predictor is not None:
        assert test.boxes is not None
        more["mean IoU"] = mean_iou(pipeline.boxes(test.images), test.boxes)
        more |= {"predictor MACs": head[0], "sides": list(pipeline.sides)}
    if pipeline.rule is None:
        right, int8 = (float((z[0].argmax(axis=1) == test.labels).mean()) for z in (logits, codes))
        macs, cycles = head[0] + each[0][0], head[2] + each[0][2]
    else:
        by_macs, by_cycles = (
            evaluate_cascade(
                pipeline.rule,
                logits,
                test.labels,
                [costs[i] for costs in each],
                head[i],
                pipeline.glances,
            )
            for i in (0, 2)
        )
        right, macs, cycles = by_macs.accuracy, by_macs.cost, by_cycles.cost
        outcome = evaluate_cascade(pipeline.rule, codes, test.labels, [1.0] * len(each))
        int8 = outcome.accuracy
        more |= {"rule": pipeline.rule.to_dict(), "shares": list(by_macs.shares)}
        more |= {"worst MACs": by_macs.worst_cost, "worst cycles": by_cycles.worst_cost}
        more["stage accuracies"] = list(by_macs.stage_accuracies)
    if pipeline.predictor is not None or any(one != side for one in pipeline.sides):
        more["frame cycles"] = pipeline.frame_cycles(test.images, logits)
        more["baseline frame cycles"] = rows.frame_cycles(base, side, side)
    table, network, data, method = key
    return rows.Row(
        table=table,
        network=network,
        data=data,
        method=method,
        seed=seed,
        device=rows.device_name(),
        epochs=epochs,
        baseline_accuracy=accuracy(base, test.images, test.labels),
        accuracy=right,
        int8_accuracy=int8,
        baseline_macs=before[0],
        macs=macs,
        baseline_parameters=before[1],
        parameters=head[1] + sum(costs[1] for costs in each),
        baseline_cycles=before[2],
        cycles=cycles,
        note=note,
        more=more,
    )
