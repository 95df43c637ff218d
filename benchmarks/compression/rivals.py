# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: how others choose what to prune, through the same costs and fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from hwgen.compress.cost import Cost
from hwgen.compress.relevance import Statistic, measure_relevance, remove_channels, trimmable
from hwgen.compress.structure import Space, Structure, discover


def depgraph(
    model: nn.Module,
    side: int,
    cost: Cost,
    target: float,
    align: int = 1,
    last: str = "linear",
    steps: int = 400,
    uniform: bool = False,
) -> nn.Module:
    """Prune groups by DepGraph (Fang et al., CVPR 2023) until ``cost`` is at most ``target``.

    Torch-Pruning's group L2 norm, ranked over the whole network or, if ``uniform``, within each
    layer, in small steps, with what is kept a multiple of ``align`` (its ``round_to``). Returns a
    copy: the first to meet the target or, where the pruner comes to its end before, the first of
    the cheapest.
    """
    import torch_pruning as tp

    model = copy.deepcopy(model).eval()
    shape = (3, side, side)
    pruner = tp.pruner.BasePruner(
        model,
        torch.zeros(1, *shape),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=not uniform,
        pruning_ratio=1.0,
        max_pruning_ratio=0.95,
        iterative_steps=steps,
        round_to=align,
        ignored_layers=[model.get_submodule(last)],
    )
    best, least = model, cost(model, shape)
    for _ in range(steps):
        if least <= target:
            break
        before = [parameter.shape for parameter in model.parameters()]
        pruner.step()
        if before == [parameter.shape for parameter in model.parameters()]:
            continue
        reached = cost(model, shape)
        if reached < least:
            best, least = copy.deepcopy(model), reached
    return best


Score = Callable[[nn.Module, Structure, Space], np.ndarray]


def _weights(model: nn.Module, structure: Structure, space: Space) -> list[np.ndarray]:
    names = [*space.producers, *space.depthwise]
    tensors = [model.get_submodule(name).weight.detach() for name in names]
    return [tensor.reshape(len(tensor), -1).double().numpy() for tensor in tensors]


def l1(model: nn.Module, structure: Structure, space: Space) -> np.ndarray:
    """Score filters by the sum of their absolute weights (Li et al., ICLR 2017)."""
    return np.sum([np.abs(w).sum(axis=1) for w in _weights(model, structure, space)], axis=0)


def fpgm(model: nn.Module, structure: Structure, space: Space) -> np.ndarray:
    """Score filters by their distance from all others (He et al., CVPR 2019)."""
    total = np.zeros(space.channels)
    for w in _weights(model, structure, space):
        squares = (w**2).sum(axis=1)
        distance = squares[:, None] + squares - 2 * w @ w.T
        total += np.sqrt(np.maximum(distance, 0)).sum(axis=1)
    return total


def slimming(model: nn.Module, structure: Structure, space: Space) -> np.ndarray:
    """Score channels by their batch norm's scale (Liu et al., ICCV 2017).

    Raises
    ------
    ValueError
        If no batch norm follows.
    """
    if not space.batch_norms:
        raise ValueError(
            f"slimming must have a batch norm behind {space.producers!r}, not none; try l1"
        )
    scales = [model.get_submodule(name).weight.detach().abs() for name in space.batch_norms]
    return torch.stack(scales).sum(dim=0).double().numpy()


def random_scores(seed: int) -> Score:
    """Return scores that mean nothing."""
    rng = np.random.default_rng(seed)
    return lambda model, structure, space: rng.random(space.channels)


def relevance(
    images: np.ndarray, statistic: Statistic = "mean_abs", normalise: bool = True
) -> Score:
    """Score channels as relevance trimming does (Ressi et al., AIxIA 2021)."""

    def score(model: nn.Module, structure: Structure, space: Space) -> np.ndarray:
        scores = measure_relevance(model, structure, images, statistic, normalise)
        return scores[space.identifier]

    return score


def apoz(images: np.ndarray) -> Score:
    """Score channels by the share of activations above zero, 1 - APoZ (Hu et al., 2016)."""
    return relevance(images, "fraction_active", normalise=False)


def trim_by(
    model: nn.Module, images: np.ndarray, score: Score, cost: Cost, target: float, align: int = 16
) -> nn.Module:
    """Trim the same share of every space by a score until ``cost`` is at most ``target``."""
    shape = (3, images.shape[1], images.shape[2])
    structure = discover(model, shape)
    spaces = trimmable(structure, measure_relevance(model, structure, images[:8]))
    scores = {space.identifier: score(model, structure, space) for space in spaces}
    for share in np.arange(1.0, 0.0, -0.02):
        kept = {}
        for space in spaces:
            count = int(np.ceil(share * space.channels / align)) * align
            best = np.argsort(-scores[space.identifier], kind="stable")[:count]
            kept[space.identifier] = np.sort(best)
        trial = remove_channels(model, structure, kept)
        if cost(trial, shape) <= target:
            return trial
    raise ValueError(f"trimming cannot bring the cost down to {target:.0f}")
