# SPDX-License-Identifier: Apache-2.0
"""Compression: relevance trimming.

Ressi et al., AIxIA 2021, section 3: the relevance of a kernel is a statistic of its activation's
output over a representative data set; the least relevant kernels are removed, each with its batch
norm and the slice of every consumer that read it. Channels tied by residual additions are judged
together and removed together.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from hwgen.compress.evaluation import evaluating
from hwgen.compress.inputs import batches, shape_of
from hwgen.compress.knobs import check_choice, check_counts
from hwgen.compress.structure import Space, Structure, discover, sync_sizes
from hwgen.compress.training import MASK, reestimate_bn, retrained

Statistic = Literal["mean_abs", "max", "rms", "std", "fraction_active"]
Criterion = Literal["threshold", "keep_fraction", "global_rank"]
OneRetrain = Literal["none", "reestimate_bn", "fine_tune"]
Retrain = Literal["none", "reestimate_bn", "fine_tune", "iterate"]
FineTune = Callable[[nn.Module], nn.Module]
"""From a model to a retrained copy of it."""


@dataclass(frozen=True)
class RelevanceConfig:
    """Knobs of relevance trimming.

    Attributes
    ----------
    statistic
        Of a channel's activations over all images and pixels. "fraction_active" is the share above
        zero, 1 - APoZ.
    normalise
        Divide by the mean over the channels of the same space, so that layers compare.
    criterion
        "threshold": trim channels below ``amount``. "keep_fraction": keep this share of each
        space. "global_rank": keep this share of all channels, ranked across spaces.
    amount
        See ``criterion``.
    minimum
        Channels that every space keeps.
    align
        Keep a multiple of so many channels (rounded up), because the machine computes whole groups
        of them; 1 trims freely.
    retrain
        "none"; "reestimate_bn"; "fine_tune" once at the end; or "iterate": trim and fine-tune in
        ``rounds`` rounds.
    rounds
        For "iterate".
    """

    statistic: Statistic = "mean_abs"
    normalise: bool = True
    criterion: Criterion = "keep_fraction"
    amount: float = 0.75
    minimum: int = 1
    align: int = 1
    retrain: Retrain = "reestimate_bn"
    rounds: int = 3

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_choice("statistic", self.statistic, Statistic)
        check_choice("criterion", self.criterion, Criterion)
        check_choice("retrain", self.retrain, Retrain)
        if self.criterion != "threshold" and not 0.0 < self.amount <= 1.0:
            raise ValueError(
                f"amount must be in (0, 1] for {self.criterion!r}, not {self.amount!r}"
            )
        if not math.isfinite(self.amount):
            raise ValueError(f"amount must be a finite number, not {self.amount!r}")
        check_counts(minimum=self.minimum, align=self.align, rounds=self.rounds)


@dataclass(frozen=True)
class RelevanceReport:
    """What was trimmed.

    Attributes
    ----------
    relevance
        Scores before trimming, by the name of a space's first writer.
    kept
        Indices kept, likewise, into the channels that the model came with.
    channels_before, channels_after
        Sums over the spaces that may be trimmed.
    """

    relevance: dict[str, np.ndarray]
    kept: dict[str, np.ndarray]
    channels_before: int
    channels_after: int


def measure_relevance(
    model: nn.Module,
    structure: Structure,
    images: np.ndarray,
    statistic: Statistic = "mean_abs",
    normalise: bool = True,
) -> dict[int, np.ndarray]:
    """Measure each space's channels.

    Where a space is observed at several places (a residual group), the mean over them counts.

    Parameters
    ----------
    model, structure
        The model, and what :func:`~hwgen.compress.structure.discover` found in it.
    images
        (N, H, W, 3) uint8: the representative data.
    statistic, normalise
        As in :class:`RelevanceConfig`.

    Returns
    -------
    dict
        From a space's identifier to (channels,) float64; spaces that nothing observes are left
        out.
    """
    place = {node: space for space in structure.spaces.values() for node in space.observed}
    tally = {node: _Tally() for node in place}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if n.name in tally:
                tally[n.name].add(result)
            return result

    watch = Watch(structure.graph)
    with evaluating(model), torch.no_grad():
        for x in batches(model, images):
            watch.run(x)
    scores: dict[int, np.ndarray] = {}
    for space in structure.spaces.values():
        if not space.observed:
            continue
        values = []
        for node in space.observed:
            value = tally[node].value(statistic)
            if normalise:
                value = value / max(value.mean(), 1e-30)
            values.append(value)
        scores[space.identifier] = np.mean(values, axis=0)
    return scores


class _Tally:
    """Running sums over all axes but the channels'."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, np.ndarray] = {}

    def add(self, value: object) -> None:
        assert isinstance(value, Tensor)
        flat = value.transpose(0, 1).reshape(value.shape[1], -1).double()
        new = {
            "abs": flat.abs().sum(1),
            "sum": flat.sum(1),
            "square": flat.square().sum(1),
            "active": (flat > 0).sum(1),
        }
        for name, more in new.items():
            self.sums[name] = self.sums.get(name, 0.0) + more.cpu().numpy()
        largest = flat.max(1).values.cpu().numpy()
        self.sums["max"] = np.maximum(self.sums.get("max", largest), largest)
        self.count += flat.shape[1]

    def value(self, statistic: str) -> np.ndarray:
        sums, count = self.sums, self.count
        if statistic == "mean_abs":
            return sums["abs"] / count
        if statistic == "max":
            return sums["max"]
        if statistic == "rms":
            return np.sqrt(sums["square"] / count)
        if statistic == "std":
            return np.sqrt(np.maximum(sums["square"] / count - (sums["sum"] / count) ** 2, 0.0))
        if statistic == "fraction_active":
            return sums["active"] / count
        raise ValueError(
            f"statistic must be mean_abs, max, rms, std or fraction_active, not {statistic!r}"
        )


def trimmable(structure: Structure, scores: Iterable[int]) -> list[Space]:
    """Return the spaces that were measured, are not frozen, and that something writes."""
    measured = set(scores)
    return [
        space
        for space in structure.spaces.values()
        if not space.frozen and space.producers and space.identifier in measured
    ]


def remove_channels(
    model: nn.Module, structure: Structure, kept: dict[int, np.ndarray]
) -> nn.Module:
    """Return a copy of the model that has only the ``kept`` channels of the spaces named.

    The arithmetic on what remains is the same: if a removed channel was always zero where it was
    read, the outputs do not change.
    """
    return reorder_channels(model, structure, {space: np.sort(kept[space]) for space in kept})


def reorder_channels(
    model: nn.Module, structure: Structure, order: dict[int, np.ndarray]
) -> nn.Module:
    """Return a copy of the model whose spaces have the channels ``order`` names, in that order.

    A permutation of all channels changes no output but the order of additions in a sum.
    """
    model = copy.deepcopy(model)
    for identifier, indices in order.items():
        space = structure.spaces[identifier]
        keep = torch.as_tensor(np.asarray(indices).copy())
        for name in space.producers + space.batch_norms + space.depthwise:
            _slice(model.get_submodule(name), keep, 0)
        for name in space.consumers:
            repeat = structure.layers[name].repeat
            wide = (keep[:, None] * repeat + torch.arange(repeat)).reshape(-1)
            _slice(model.get_submodule(name), wide, 1)
    for module in model.modules():
        sync_sizes(module)
    return model


def _slice(module: nn.Module, keep: Tensor, axis: int) -> None:
    """Keep these entries of an axis of all the module's own tensors that have it."""
    names = ("weight", MASK) if axis else ("weight", MASK, "bias", "running_mean", "running_var")
    for name in names:
        held = getattr(module, name, None)
        if held is None:
            continue
        sliced = held.detach().index_select(axis, keep.to(held.device)).clone()
        if isinstance(held, nn.Parameter):
            setattr(module, name, nn.Parameter(sliced, held.requires_grad))
        else:
            setattr(module, name, sliced)


def keep_most(scores: np.ndarray, count: float, align: int, minimum: int) -> np.ndarray:
    """Return the sorted indices of the ``count`` largest scores, rounded up to whole groups."""
    count = max(int(np.ceil(count - 1e-9)), minimum)
    count = min(-(-count // align) * align, len(scores))
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def trim_by_relevance(
    model: nn.Module,
    images: np.ndarray,
    config: RelevanceConfig,
    fine_tune: FineTune | None = None,
) -> tuple[nn.Module, RelevanceReport]:
    """Trim the least relevant channels (Ressi et al., AIxIA 2021, section 3).

    Parameters
    ----------
    model
        Left as it is.
    images
        (N, H, W, 3) uint8: representative data, for relevance and batch norm statistics.
    config
        The knobs.
    fine_tune
        Retrains; needed for ``retrain`` "fine_tune" and "iterate".

    Returns
    -------
    tuple
        The trimmed copy in eval mode, and the report.

    Raises
    ------
    ValueError
        If retraining is asked for and ``fine_tune`` is None.
    UnsupportedStructure
        If the network cannot be followed.
    """
    if config.retrain in ("fine_tune", "iterate") and fine_tune is None:
        raise ValueError(
            f"fine_tune must be given for retrain={config.retrain!r}; try 'reestimate_bn'"
        )
    rounds = config.rounds if config.retrain == "iterate" else 1
    input_shape = shape_of(images)
    original: dict[str, np.ndarray] = {}
    first: dict[str, np.ndarray] = {}
    before = 0
    for number in range(1, rounds + 1):
        structure = discover(model, input_shape)
        scores = measure_relevance(model, structure, images, config.statistic, config.normalise)
        spaces = trimmable(structure, scores)
        if number > 1:
            # A depthwise convolution of one channel left is a convolution, of a space of its own.
            spaces = [space for space in spaces if space.producers[0] in first]
        if number == 1:
            before = sum(space.channels for space in spaces)
            first = {space.producers[0]: scores[space.identifier] for space in spaces}
            original = {space.producers[0]: np.arange(space.channels) for space in spaces}
        sizes = {space.producers[0]: len(first[space.producers[0]]) for space in spaces}
        kept = _choose(spaces, scores, sizes, config, number / rounds)
        model = remove_channels(model, structure, kept)
        for space in spaces:
            name = space.producers[0]
            original[name] = original[name][kept[space.identifier]]
        if config.retrain != "none":
            model = reestimate_bn(model, images)
        if fine_tune is not None and config.retrain in ("fine_tune", "iterate"):
            model = retrained(fine_tune(model))
    after = sum(len(indices) for indices in original.values())
    return model.eval(), RelevanceReport(first, original, before, after)


def _choose(
    spaces: list[Space],
    scores: dict[int, np.ndarray],
    sizes: dict[str, int],
    config: RelevanceConfig,
    progress: float,
) -> dict[int, np.ndarray]:
    """Return what each space keeps when ``progress`` of the whole trimming is to be done.

    ``sizes`` are the channels that the spaces had before the first round.
    """
    align, minimum = config.align, config.minimum
    kept = {}
    if config.criterion == "threshold":
        for space in spaces:
            value = scores[space.identifier]
            count = float((value >= config.amount * progress).sum())
            kept[space.identifier] = keep_most(value, count, align, minimum)
        return kept
    share = config.amount**progress
    if config.criterion == "keep_fraction":
        for space in spaces:
            count = share * sizes[space.producers[0]]
            kept[space.identifier] = keep_most(scores[space.identifier], count, align, minimum)
        return kept
    everything = np.concatenate([scores[space.identifier] for space in spaces])
    owner = np.repeat(np.arange(len(spaces)), [space.channels for space in spaces])
    total = int(np.ceil(share * sum(sizes.values()) - 1e-9))
    # Of equals, such as channels that are all silent, no more are kept than there is room for.
    best = owner[np.argsort(-everything, kind="stable")[:total]]
    for place, space in enumerate(spaces):
        count = float((best == place).sum())
        kept[space.identifier] = keep_most(scores[space.identifier], count, align, minimum)
    return kept
