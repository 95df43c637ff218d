# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: which channels go, by relevance and by how others choose them.

ResNet-8 on the bundled frames, trimmed to one share of its MACs by each criterion. Everything else
is the same: the share of each space, the baseline, the fine-tuning and its teacher.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.compression import baselines, rivals, rows
from benchmarks.compression.data import load
from benchmarks.compression.pipeline import Pipeline, measured, stage
from hwgen.compress import cost
from hwgen.compress.training import Tick, accuracy, reestimate_bn, train

TABLE, NETWORK, DATA = "criteria", "ResNet-8", "frames"
TARGET, EPOCHS = 0.4, 4
METHODS = ("relevance", "L1", "APoZ", "BN scale", "FPGM", "random", "DepGraph")


def run(method: str, cache: Path, seed: int, tick: Tick) -> rows.Row:
    """Measure one row."""
    splits = load(DATA, None)
    baseline = baselines.find(NETWORK, DATA)
    base = baselines.trained(baseline, splits, None, cache, seed, tick)
    images, side = rows.calibration_images(splits, 1000, seed), splits.train.images.shape[1]
    target = TARGET * cost.macs(base, (3, side, side))
    name, held = f"criteria-{method.replace(' ', '-')}-{seed}", splits.validation

    def build() -> tuple[nn.Module, dict[str, Any]]:
        if method == "DepGraph":
            smaller = rivals.depgraph(base, side, cost.macs, target)
        else:
            score = {
                "relevance": rivals.relevance(images),
                "L1": rivals.l1,
                "APoZ": rivals.apoz(images),
                "BN scale": rivals.slimming,
                "FPGM": rivals.fpgm,
                "random": rivals.random_scores(seed),
            }[method]
            smaller = rivals.trim_by(base, images, score, cost.macs, target, align=1)
        untuned = accuracy(reestimate_bn(smaller, images), held.images, held.labels)
        tuned, _ = train(
            smaller,
            lambda _: (splits.train.images, splits.train.labels),
            baselines.tuning(baseline.config, EPOCHS, seed),
            teacher=base,
            checkpoint=cache / f"{name}.checkpoint",
            progress=tick,
            name=f"{NETWORK}, {method}",
        )
        return tuned, {"untuned": untuned}

    model, more = stage(cache / f"{name}.pt", base, build)
    key = TABLE, NETWORK, DATA, method
    return measured(key, base, Pipeline([model], [side]), splits, seed, EPOCHS, more)
