# SPDX-License-Identifier: Apache-2.0
"""Compression: dynamic inference, a cascade of networks of growing cost.

EdgeCompress (TCAD 2023): a small network sees every image, a larger one only those that the small
one is not sure of, on the same crop or frame; or the first ones glance at the whole frame, and the
foreground predictor crops what goes on (Wang et al., Glance and Focus, NeurIPS 2020). The rule
itself is :mod:`hwgen.arch.cascade`, the host's own; here its thresholds and weights are chosen on
held-out training data, for a target accuracy or a target cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from hwgen.arch.bundle import Bundle
from hwgen.arch.cascade import (
    ALWAYS,
    CONFIDENCES,
    NEVER,
    CascadeRule,
    Confidence,
    confidence_of,
    run_rule,
)
from hwgen.arch.cascade_bundle import CascadeBundle, check_glances
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.estimate import MemoryTiming, estimate
from hwgen.compress.cost import Cost
from hwgen.compress.cropping import crop_all, resize_all
from hwgen.compress.inputs import normalise, preprocess_of
from hwgen.compress.training import Tick, predict
from hwgen.ir.graph import Graph
from hwgen.quantize.observers import Observer, Scheme

_ZOOM = 9
"""Points a threshold, in the finer grids round a good point."""


@dataclass(frozen=True)
class CascadeConfig:
    """Knobs of the choice of thresholds.

    Attributes
    ----------
    target_accuracy
        Share of images in [0, 1] to get right at least, for the least mean cost.
    target_cost
        Mean cost to keep within, predictor included, for the best accuracy. One of the two.
    confidence
        "margin" (largest less second largest softmax probability) or "top1".
    alphas
        Weights of the later stages' logits to choose from.
    shared_alpha
        One weight for all later stages; else every combination is tried.
    resolution
        With n stages, 3 or more: points a threshold of the first grid, which takes
        ``resolution ** (n - 2)`` sweeps. Where no stage has more distinct confidences, the result
        is the best there is.
    starts
        Points of the first grid that are refined.
    """

    target_accuracy: float | None = None
    target_cost: float | None = None
    confidence: Confidence = "margin"
    alphas: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    shared_alpha: bool = True
    resolution: int = 64
    starts: int = 4

    def __post_init__(self) -> None:
        """Check the ranges."""
        if (self.target_accuracy is None) == (self.target_cost is None):
            raise ValueError(
                "one of target_accuracy and target_cost must be given, not "
                f"{self.target_accuracy!r} and {self.target_cost!r}"
            )
        if self.target_accuracy is not None and not 0.0 <= self.target_accuracy <= 1.0:
            raise ValueError(
                f"target_accuracy must be in [0, 1], not {self.target_accuracy!r}; try 0.9"
            )
        if self.target_cost is not None and not self.target_cost > 0.0:
            raise ValueError(f"target_cost must be above 0, not {self.target_cost!r}")
        if self.confidence not in CONFIDENCES:
            raise ValueError(f"confidence must be one of {CONFIDENCES!r}, not {self.confidence!r}")
        if not self.alphas or not all(0.0 <= alpha < np.inf for alpha in self.alphas):
            raise ValueError(f"alphas must be numbers of 0 or more, not {self.alphas!r}")
        if self.resolution < 2 or self.starts < 1:
            raise ValueError(
                "resolution must be at least 2 and starts at least 1, not "
                f"{self.resolution!r} and {self.starts!r}"
            )


@dataclass(frozen=True)
class CascadeReport:
    """What a rule does to a set of images.

    Attributes
    ----------
    accuracy
        Share of images that are right.
    cost
        Expected cost of an image, the mean over them: every stage that was run, and the predictor
        once, if it was.
    worst_cost
        Cost of an image that runs every stage the rule can reach.
    shares
        Share of images that each stage has the last word on.
    stage_accuracies
        Accuracy of each network alone.
    stage_costs, predictor_cost
        As given.
    images
        How many there were.
    """

    accuracy: float
    cost: float
    worst_cost: float
    shares: tuple[float, ...]
    stage_accuracies: tuple[float, ...]
    stage_costs: tuple[float, ...]
    predictor_cost: float
    images: int

    @property
    def saving(self) -> float:
        """Share of the cost saved beside the last network alone, without cascade."""
        return 1.0 - self.cost / (self.predictor_cost + self.stage_costs[-1])


def cascade_costs(
    models: Sequence[nn.Module], input_shapes: Sequence[tuple[int, int, int]], cost: Cost
) -> tuple[float, ...]:
    """Return each stage's cost, by a function of :mod:`hwgen.compress.cost` or one's own.

    ``input_shapes`` has (channels, height, width) for each model, or once for all.
    """
    if any(np.shape(shape) != (3,) for shape in input_shapes):
        raise ValueError(
            f"input_shapes must be of (channels, height, width), not {input_shapes!r}; try "
            "[(3, 32, 32)]"
        )
    shapes = list(input_shapes) * (len(models) if len(input_shapes) == 1 else 1)
    if len(shapes) != len(models):
        raise ValueError(
            f"input_shapes must be one or {len(models)} of them, not {len(input_shapes)}"
        )
    return tuple(cost(model, shape) for model, shape in zip(models, shapes, strict=True))


def cascade_logits(
    networks: Sequence[nn.Module | Graph],
    images: np.ndarray,
    sides: Sequence[int] | None = None,
    *,
    boxes: np.ndarray | None = None,
    glances: int = 0,
    progress: Tick | None = None,
) -> list[np.ndarray]:
    """Run every stage on what it would see of every image.

    Parameters
    ----------
    networks
        Models; or quantized graphs (:func:`hwgen.quantize.quantize_model`), whose logits are those
        of the accelerator, so that the thresholds are chosen on what the board will see.
    images
        (N, H, W, C) uint8 frames.
    sides
        Height and width that each stage runs at, by the contract's resize; default: the images'
        own. The host resizes once, from the frame or its crop to the stage's side.
    boxes, glances
        (N, 4) in [0, 1], as a predictor found them: what stages see is cut out of the frame, but
        for the first ``glances`` of them, as :func:`compile_cascade` and the host have it.
    progress
        Called after each stage.

    Returns
    -------
    list of numpy.ndarray
        For each stage float32 (N, classes).

    Raises
    ------
    ValueError
        If sides or boxes do not fit, or there are glances at the whole frame and no boxes.
    """
    if glances and boxes is None:
        raise ValueError(
            f"glances={glances!r} must be given with boxes: without them all stages see the whole "
            "frame; try boxes=predict_boxes(predictor, images, side)"
        )
    if sides is not None and len(sides) != len(networks):
        raise ValueError(f"sides must be one for each of {len(networks)} stages, not {sides!r}")
    logits = []
    for stage, network in enumerate(networks):
        seen, side = images, images.shape[1] if sides is None else sides[stage]
        if boxes is not None and stage >= glances:
            seen = crop_all(images, boxes, side)
        elif sides is not None and images.shape[1:3] != (side, side):
            seen = resize_all(images, side)
        logits.append(predict(network, seen))
        if progress is not None:
            progress("cascade", stage + 1, len(networks))
    return logits


def evaluate_cascade(
    rule: CascadeRule,
    stage_logits: Sequence[np.ndarray],
    labels: np.ndarray,
    costs: Sequence[float],
    predictor_cost: float = 0.0,
    glances: int = 0,
) -> CascadeReport:
    """Measure a rule on images, such as the test set that its choice never saw.

    Parameters
    ----------
    rule
        From :func:`fit_cascade`.
    stage_logits
        For each stage (N, classes).
    labels
        (N,) integers.
    costs
        Of one run of each stage, in any unit.
    predictor_cost
        Of one run of the foreground predictor; 0 without one.
    glances
        How many of the first stages see the whole frame: only images that go on behind them pay
        for the predictor.

    Raises
    ------
    ValueError
        If there are no images, the lengths do not agree, or no stage is left to see the crop.
    """
    labels = _check(stage_logits, labels, costs, predictor_cost, glances)
    each, always = _charged(costs, predictor_cost, glances)
    outcome = run_rule(rule, stage_logits)
    count = len(labels)
    last = np.bincount(outcome.stages - 1, minlength=rule.stages)
    reached = np.cumsum(last[::-1])[::-1]
    return CascadeReport(
        accuracy=int((outcome.labels == labels).sum()) / count,
        cost=float(_mean_cost(reached[:, None], each, always, count)[0]),
        worst_cost=float(always + sum(each[: rule.reachable])),
        shares=tuple(int(n) / count for n in last),
        stage_accuracies=tuple(
            int((np.argmax(logits, axis=1) == labels).sum()) / count for logits in stage_logits
        ),
        stage_costs=tuple(map(float, costs)),
        predictor_cost=float(predictor_cost),
        images=count,
    )


def _charged(
    costs: Sequence[float], predictor_cost: float, glances: int
) -> tuple[tuple[float, ...], float]:
    """Return each stage's cost, with a predictor's that is run just before it, and every image's.

    A predictor behind glances is part of the stage that first sees its crop.
    """
    if not glances:
        return tuple(costs), predictor_cost
    each = list(costs)
    each[glances] += predictor_cost
    return tuple(each), 0.0


def _mean_cost(
    reached: np.ndarray, costs: Sequence[float], predictor_cost: float, count: int
) -> np.ndarray:
    """Return mean costs (M,) from how many images reach each stage, (stages, M) integers."""
    total = np.zeros(reached.shape[1])
    for images, cost in zip(reached, costs, strict=True):
        total = total + images * float(cost)
    return predictor_cost + total / count


def _check(
    stage_logits: Sequence[np.ndarray],
    labels: np.ndarray,
    costs: Sequence[float],
    predictor_cost: float,
    glances: int,
) -> np.ndarray:
    """Insist that everything is there for the same stages and images; return the labels."""
    labels = np.asarray(labels)
    stages = len(stage_logits)
    if stages < 2:
        raise ValueError(f"a cascade must have at least 2 stages, not {stages}")
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be integers of shape (N,) with N of 1 or more, not {labels.dtype} "
            f"{labels.shape!r}"
        )
    shapes = [np.shape(logits) for logits in stage_logits]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][0] != len(labels):
        raise ValueError(
            f"stage_logits must have the shape ({len(labels)}, classes) for every stage, not "
            f"{shapes!r}"
        )
    classes = shapes[0][1]
    if not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"labels must be in 0..{classes - 1}, the stages' classes, not in "
            f"{labels.min()}..{labels.max()}"
        )
    if len(costs) != stages or not all(0.0 < cost < np.inf for cost in costs):
        raise ValueError(f"costs must be {stages} numbers above 0, not {costs!r}")
    if not 0.0 <= predictor_cost < np.inf:
        raise ValueError(f"predictor_cost must be 0 or more, not {predictor_cost!r}")
    check_glances(glances, stages, predictor_cost > 0)
    return labels


def fit_cascade(
    stage_logits: Sequence[np.ndarray],
    labels: np.ndarray,
    costs: Sequence[float],
    config: CascadeConfig,
    predictor_cost: float = 0.0,
    glances: int = 0,
    *,
    progress: Tick | None = None,
) -> tuple[CascadeRule, CascadeReport]:
    """Choose thresholds and alphas (TCAD 2023, dynamic inference).

    A threshold matters only by which images are below it, so it is a cut in the order of a stage's
    distinct confidences; it is put half-way between two of them. Two stages: all cuts are tried.
    More: all combinations of cuts are, with the last one swept over every confidence, where no
    stage has more than ``resolution`` of them; else those of a grid of evenly spaced ranks, whose
    best points are refined on finer grids down to single ranks. In the end every threshold is
    swept over all its cuts with the others fixed, until none gets better.

    Parameters
    ----------
    stage_logits
        For each stage (N, classes), on held-out training data: images that no stage was trained
        on, and not the test set.
    labels, costs, predictor_cost, glances
        As in :func:`evaluate_cascade`; costs in the unit of ``target_cost``.
    config
        The target and the knobs.
    progress
        Called after each combination of alphas.

    Returns
    -------
    tuple
        The rule, and the report on these images. Among equally good ones: the least cost for a
        target cost, the best accuracy for a target accuracy, then the first alphas.

    Raises
    ------
    ValueError
        If no rule that was found meets the target; the message says what is within reach.
    """
    labels = _check(stage_logits, labels, costs, predictor_cost, glances)
    each, always = _charged(costs, predictor_cost, glances)
    later = len(stage_logits) - 1
    combinations: list[tuple[float, ...]]
    if config.shared_alpha:
        combinations = [(alpha,) * later for alpha in config.alphas]
    else:
        combinations = list(itertools.product(config.alphas, repeat=later))
    best: _Point | None = None
    rule = None
    for done, alphas in enumerate(combinations, 1):
        search = _Search(stage_logits, labels, each, always, alphas, config)
        point = search.best()
        if best is None or point.key > best.key:
            best, rule = point, search.rule(point.cuts)
        if progress is not None:
            progress("cascade", done, len(combinations))
    assert best is not None and rule is not None
    if not best.feasible and config.target_accuracy is not None:
        raise ValueError(
            f"target_accuracy must be within reach, not {config.target_accuracy!r}: the best rule "
            f"gets {best.correct / len(labels)!r} of these images right, at a cost of "
            f"{best.cost!r}; try a lower target, other alphas or a better last stage"
        )
    if not best.feasible:
        head = " with the predictor" if always else ""
        raise ValueError(
            f"target_cost must be within reach, not {config.target_cost!r}: the first stage costs "
            f"{best.cost!r}{head}; try a higher target or a smaller first stage"
        )
    return rule, evaluate_cascade(rule, stage_logits, labels, costs, predictor_cost, glances)


@dataclass(frozen=True)
class _Point:
    """A choice of cuts, one a threshold: the stage's ``cut`` least distinct confidences go on.

    ``key`` sorts points: those that meet the target first, then by what is wanted.
    """

    key: tuple[float, ...]
    cuts: tuple[int, ...]
    feasible: bool
    correct: int
    cost: float


class _Search:
    """The images under one choice of alphas: who is sure, and who is right, at each stage."""

    def __init__(
        self,
        stage_logits: Sequence[np.ndarray],
        labels: np.ndarray,
        costs: Sequence[float],
        predictor_cost: float,
        alphas: tuple[float, ...],
        config: CascadeConfig,
    ) -> None:
        self.costs, self.predictor_cost, self.config = costs, predictor_cost, config
        self.alphas, self.count = alphas, len(labels)
        free = CascadeRule((ALWAYS,) * len(alphas), alphas, config.confidence)
        self.values: list[np.ndarray] = []  # distinct confidences of a stage, ascending
        self.ranks: list[np.ndarray] = []  # of each image's confidence among them
        right, running = [], None
        for stage, logits in enumerate(stage_logits):
            running = free.fuse(stage, running, logits)
            right.append(running.argmax(axis=1) == labels)
            if stage < len(alphas):
                sure = confidence_of(running, config.confidence)
                values, ranks = np.unique(sure, return_inverse=True)
                self.values.append(values)
                self.ranks.append(ranks.reshape(-1))
        self.right = np.stack(right).astype(np.int64)

    def rule(self, cuts: Sequence[int]) -> CascadeRule:
        """Return the rule whose thresholds make these cuts, half-way between two confidences."""
        thresholds = []
        for values, cut in zip(self.values, cuts, strict=True):
            if cut == 0:
                thresholds.append(NEVER)
            elif cut == len(values):
                thresholds.append(ALWAYS)
            else:
                low, high = float(values[cut - 1]), float(values[cut])
                middle = low + (high - low) / 2
                thresholds.append(middle if low < middle <= high else high)
        return CascadeRule(tuple(thresholds), self.alphas, self.config.confidence)

    def best(self) -> _Point:
        """Return the best point that the search finds; see :func:`fit_cascade`."""
        leading = len(self.values) - 1
        grids = [_spread(0, len(v), self.config.resolution + 1) for v in self.values[:leading]]
        found = sorted(self._swept(itertools.product(*grids)), key=_by_key, reverse=True)
        starts = found[: self.config.starts] if leading else found[:1]
        return max((self._descend(self._refine(start, grids)) for start in starts), key=_by_key)

    def _swept(self, leading: Iterable[tuple[int, ...]]) -> Iterator[_Point]:
        """Yield for each choice of all cuts but the last the best last cut."""
        last = len(self.values) - 1
        for cuts in leading:
            yield self._sweep((*cuts, 0), last)

    def _refine(self, point: _Point, grids: list[np.ndarray]) -> _Point:
        """Search ever finer grids round a point, until neighbours are one rank apart."""
        last = len(self.values) - 1
        widths = [int(np.diff(grid).max()) for grid in grids]
        while widths and max(widths) > 1:
            near = [
                _spread(max(0, cut - width), min(len(values), cut + width), _ZOOM)
                for cut, width, values in zip(point.cuts[:last], widths, self.values, strict=False)
            ]
            widths = [int(np.diff(grid).max()) for grid in near]
            point = max([point, *self._swept(itertools.product(*near))], key=_by_key)
        return point

    def _descend(self, point: _Point) -> _Point:
        """Sweep one threshold after the other, until a round makes nothing better."""
        while True:
            before = point
            for stage in range(len(self.values)):
                point = max(point, self._sweep(point.cuts, stage), key=_by_key)
            if point.key <= before.key:
                return point

    def _sweep(self, cuts: tuple[int, ...], stage: int) -> _Point:
        """Return the best of all cuts of one stage, the other stages' fixed."""
        stages = len(self.right)
        # Where each image stops, if it stops before this stage, and if it goes on behind it.
        stop = np.full(self.count, stages - 1)
        for other in range(stages - 2, stage, -1):
            stop[self.ranks[other] >= cuts[other]] = other
        here = np.ones(self.count, dtype=bool)
        early = np.full(self.count, stage)
        for other in range(stage - 1, -1, -1):
            stays = self.ranks[other] >= cuts[other]
            early[stays] = other
            here &= ~stays
        every = np.arange(self.count)
        size = len(self.values[stage])
        ranks, behind = self.ranks[stage][here], stop[here]
        # With every cut, first: nobody goes on.
        gain = self.right[behind, every[here]] - self.right[stage][here]
        correct = int(self.right[early, every].sum()) + _cumulative(ranks, gain, size)
        reached = np.empty((stages, size + 1), dtype=np.int64)
        for k in range(stages):
            if k <= stage:
                reached[k] = int((early >= k).sum())
            else:
                reached[k] = _cumulative(ranks, (behind >= k).astype(np.int64), size)
        cost = _mean_cost(reached, self.costs, self.predictor_cost, self.count)
        return self._choose(cuts, stage, correct, cost)

    def _choose(
        self, cuts: tuple[int, ...], stage: int, correct: np.ndarray, cost: np.ndarray
    ) -> _Point:
        """Return the best of a stage's cuts, by how many are right and the mean cost of each."""
        config = self.config
        if config.target_accuracy is not None:
            # A share that was computed may be some bits above the one that is meant.
            feasible = correct / self.count >= config.target_accuracy - 1e-9
            if feasible.any():
                order = np.lexsort((-correct, cost, ~feasible))
            else:
                order = np.lexsort((cost, -correct))
        else:
            assert config.target_cost is not None
            # A sum of floats may be some bits above the number that was meant.
            feasible = cost <= config.target_cost * (1 + 1e-12)
            if feasible.any():
                order = np.lexsort((cost, -correct, ~feasible))
            else:
                order = np.lexsort((-correct, cost))
        cut = int(order[0])
        right, price, met = int(correct[cut]), float(cost[cut]), bool(feasible[cut])
        cheap_first = met == (config.target_accuracy is not None)
        wanted = (-price, right) if cheap_first else (right, -price)
        chosen = (*cuts[:stage], cut, *cuts[stage + 1 :])
        return _Point((float(met), *wanted), chosen, met, right, price)


def _by_key(point: _Point) -> tuple[float, ...]:
    return point.key


def _spread(low: int, high: int, points: int) -> np.ndarray:
    """Return up to ``points`` integers from low to high, both included, evenly spaced."""
    return np.unique(np.linspace(low, high, min(points, high - low + 1)).round().astype(np.int64))


def _quicker(
    behind: Bundle, alone: Bundle, others: Sequence[Bundle], memory: MemoryTiming
) -> Bundle:
    """Return the one of a network's two bundles that costs less each time.

    The first streams through what others left. The second has everything: its constants and those
    of the others that it takes the place of are loaded anew.
    """
    evicted = [other for other in others if other.placement.overlaps(alone.placement)]
    mine = estimate(alone, memory)
    price = mine.cycles + mine.setup_cycles + sum(estimate(b, memory).setup_cycles for b in evicted)
    return alone if price < estimate(behind, memory).cycles else behind


def _cumulative(ranks: np.ndarray, amounts: np.ndarray, size: int) -> np.ndarray:
    """Return for each cut, 0 to size, the sum of the amounts whose rank is below it, int64."""
    sums = np.zeros(size + 1, dtype=np.int64)
    # bincount sums float64; amounts are -1, 0 or 1, and so exact.
    sums[1:] = np.cumsum(np.bincount(ranks, amounts, size)).astype(np.int64)
    return sums


def compile_cascade(
    networks: Sequence[nn.Module | Graph],
    rule: CascadeRule,
    calibration: Sequence[np.ndarray | None] | None = None,
    board: str | Path = "pynq-z2",
    *,
    config: AcceleratorConfig | None = None,
    predictor: nn.Module | Graph | None = None,
    glances: int = 0,
    name: str = "cascade",
    labels: Sequence[str] | None = None,
    scheme: Scheme | None = None,
    observer: str | Observer | None = None,
    bias_correction: bool | None = None,
    equalization: bool | None = None,
) -> CascadeBundle:
    """Compile every network of a cascade for one board, resident side by side where they fit.

    Each one's constants are placed behind those of the ones before it. One that does not fit there
    streams its weights through what is left, or takes everything for itself where it is quicker so,
    although what it and those before it hold must be loaded anew each time; the bundle's
    ``resident`` says whether that happened.

    Parameters
    ----------
    networks
        The stages, models or quantized graphs.
    rule
        From :func:`fit_cascade`.
    calibration
        For each network, the predictor first where there is one, (N, side, side, 3) uint8
        pictures as it will see them; None for a graph, or for all of them.
    board, config
        As in :func:`hwgen.compile`.
    predictor
        Foreground predictor; without it stages see the whole frame.
    glances
        How many of the first stages see the whole frame all the same, before the predictor is run.
    name, labels
        Of the bundle, and of the classes.
    scheme, observer, bias_correction, equalization
        How models are quantized: see :func:`hwgen.quantize.quantize`.

    Raises
    ------
    ValueError
        If calibration pictures are missing, the networks do not fit together, or it is said how to
        quantize graphs, which are quantized already.
    PlacementError, CapacityError
        As :func:`hwgen.compile`.
    """
    from hwgen.backends import program
    from hwgen.boards import load_board
    from hwgen.passes.schedule import CapacityError
    from hwgen.quantize import quantize_model

    on = load_board(board)
    chosen, memory = config or on.config, MemoryTiming(on.read_latency_cycles)
    everything = [*networks] if predictor is None else [predictor, *networks]
    pictures = [None] * len(everything) if calibration is None else list(calibration)
    if len(pictures) != len(everything) or any(
        p is None and not isinstance(n, Graph) for p, n in zip(pictures, everything, strict=False)
    ):
        raise ValueError(
            f"calibration must hold pictures for each of the {len(everything)} networks (None for "
            f"a graph), not {sum(p is not None for p in pictures)} sets of them"
        )
    how = {
        "scheme": scheme,
        "observer": observer,
        "bias_correction": bias_correction,
        "equalization": equalization,
    }
    quantization: dict[str, Any] = {key: value for key, value in how.items() if value is not None}
    if quantization and all(isinstance(network, Graph) for network in everything):
        raise ValueError(
            f"{', '.join(quantization)} must be given with models to quantize, and all networks "
            "are graphs, which are quantized already; try it where they were made"
        )
    bundles: list[Bundle] = []
    row = entry = 0
    for stage, (network, seen) in enumerate(
        zip(everything, pictures, strict=True), 1 if predictor is None else 0
    ):
        fed = preprocess_of(network)
        if not isinstance(network, Graph):
            assert seen is not None  # checked above
            x = normalise(seen, preprocess=fed)
            network = quantize_model(network, x[:1], x, **quantization)
        options: dict[str, Any] = {
            "name": f"{name} stage {stage}" if stage else f"{name} predictor",
            "preprocess": fed,
            "labels": labels if stage else None,
        }
        try:
            if row >= chosen.synapse_rows or entry >= chosen.tap_entries:
                raise CapacityError("nothing is left")
            bundle = program.emit(network, chosen, **options, synapse_row=row, tap_entry=entry)
            if row and not bundle.metadata["resident"]:
                bundle = _quicker(bundle, program.emit(network, chosen, **options), bundles, memory)
        except CapacityError:
            bundle = program.emit(network, chosen, **options)
        bundles.append(bundle)
        if bundle.metadata["resident"]:
            row = max(row, bundle.placement.synapse_row + bundle.placement.synapse_rows)
            entry = max(entry, bundle.placement.tap_entry + bundle.placement.tap_entries)
    stages = tuple(bundles if predictor is None else bundles[1:])
    head = None if predictor is None else bundles[0]
    return CascadeBundle(name, rule, stages, head, glances)
