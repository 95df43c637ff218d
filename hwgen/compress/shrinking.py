# SPDX-License-Identifier: Apache-2.0
"""Compression: compound shrinking of depth, inner width and resolution.

Kong et al., Smart Scissor (ICCAD 2022) and EdgeCompress (TCAD 2023): a network is shrunk along
three dimensions at once, and which one gives next is decided by its contribution, the accuracy
lost for the cost saved, measured again at each step. Grid, random and TPE search over the same
points are the baselines. Every search is an Optuna study, so that it can be killed, restarted and
shared between processes and machines.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import os
import platform
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError
from torch import Tensor, nn

from hwgen.compress.cost import Cost, tap_steps
from hwgen.compress.cropping import resize_all
from hwgen.compress.knobs import check_choice, check_counts
from hwgen.compress.relevance import (
    Statistic,
    keep_most,
    measure_relevance,
    remove_channels,
    trimmable,
)
from hwgen.compress.structure import discover, drop_blocks, identity_blocks
from hwgen.compress.training import Tick, device_of, predict, reestimate_bn

Dimension = Literal["depth", "width", "side"]
Strategy = Literal["contribution", "grid", "random", "tpe"]
Evaluate = Callable[[nn.Module, int], float]
"""From a model and the side of its input in pixels to its accuracy in [0, 1], validation data."""
FineTuneAt = Callable[[nn.Module, int], nn.Module]
"""From a model and the side of its input in pixels to a retrained copy."""

_DIMENSIONS = ("depth", "width", "side")
_STRATEGIES = ("contribution", "grid", "random", "tpe")
_DRAWS = 50  # trials of a study for each point that it may measure: repeats and points too dear
_OPENINGS = 30  # of a storage that other processes are making
_DIGEST = "shears_digest"
_SESSION = uuid.uuid4().hex  # tells this process from an earlier one of the same number


def droppable_blocks(
    model: nn.Module, input_shape: tuple[int, int, int]
) -> dict[str, tuple[str, ...]]:
    """Find the residual blocks that may be left out, by stages.

    Parameters
    ----------
    model
        Not changed.
    input_shape
        (channels, height, width) of one input.

    Returns
    -------
    dict
        From a stage, the shape of its blocks' outputs as "channels x height x width", to the
        paths of the blocks of :func:`~hwgen.compress.structure.identity_blocks` that run once and
        whose input has that shape too; stages and blocks in the order they run. Blocks that change
        the shape, option A's included, are not among them.
    """
    calls: dict[str, list[str | None]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(_: nn.Module, args: tuple[object, ...], result: object) -> None:
            same = isinstance(result, Tensor) and isinstance(args[0], Tensor)
            same = same and result.shape == args[0].shape  # type: ignore[attr-defined]
            shape = "x".join(map(str, result.shape[1:])) if isinstance(result, Tensor) else ""
            calls.setdefault(name, []).append(shape if same else None)

        return hook

    hooks = [
        model.get_submodule(name).register_forward_hook(watch(name))
        for name in identity_blocks(model)
    ]
    try:
        _try_side(model, input_shape)
    finally:
        for hook in hooks:
            hook.remove()
    stages: dict[str, tuple[str, ...]] = {}
    for name, shapes in calls.items():
        if len(shapes) == 1 and shapes[0] is not None:
            stages[shapes[0]] = (*stages.get(shapes[0], ()), name)
    return stages


@torch.no_grad()
def _try_side(model: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """Run zeros of this shape, or say which side the model refuses."""
    was_training = model.training
    model.eval()
    try:
        model(torch.zeros(1, *input_shape, device=device_of(model)))
    except RuntimeError as error:
        raise ValueError(
            f"the model must accept inputs of shape {input_shape!r}: {error}; try other sides, or "
            "dimensions without 'side' for a network that flattens before it pools"
        ) from error
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class ShrinkPoint:
    """One choice along the three dimensions.

    Attributes
    ----------
    depths
        Blocks kept of each stage of :func:`droppable_blocks`, in its order.
    width
        Share in (0, 1] of each inner space's channels that is kept.
    side
        Height and width of the input in pixels.
    """

    depths: tuple[int, ...]
    width: float
    side: int


def shrunk(
    model: nn.Module,
    point: ShrinkPoint,
    images: np.ndarray,
    *,
    align: int = 16,
    statistic: Statistic = "mean_abs",
) -> nn.Module:
    """Build the network of one point (ICCAD 2022, compound shrinking).

    Of each stage the blocks go first whose loss changes the outputs least (mean square, each
    dropped alone from the whole model). Of each inner space, one that nothing but one layer
    writes and no addition ties, the least relevant channels go. Batch norms are estimated anew at
    the point's side, unless the point is the model itself.

    Parameters
    ----------
    model
        Left as it is.
    point
        What is kept.
    images
        (N, side, side, 3) uint8 at the size the model was trained for: calibration.
    align
        Channels kept are a multiple of this, rounded up; a space's own number at most.
    statistic
        Relevance of channels, as in :class:`~hwgen.compress.relevance.RelevanceConfig`.

    Returns
    -------
    torch.nn.Module
        A copy in eval mode, for inputs of ``point.side``.

    Raises
    ------
    ValueError
        If the point or the images do not fit the model.
    UnsupportedStructure
        If the network cannot be followed.
    """
    shrinker = _Shrinker(model, images, align, statistic)
    shrinker.check(point)
    return shrinker.build(point)


class _Shrinker:
    """A model, and in which order its blocks and channels go."""

    def __init__(
        self, model: nn.Module, images: np.ndarray, align: int, statistic: Statistic
    ) -> None:
        if images.ndim != 4 or images.shape[1] != images.shape[2]:
            raise ValueError(
                f"images must be square, (N, side, side, C), not {images.shape!r}; try resize_all"
            )
        self.model = copy.deepcopy(model).eval()
        self.images, self.align = images, align
        self.side = images.shape[1]
        shape = self.input_shape(self.side)
        self.stages = {
            stage: self._least_first(names)
            for stage, names in droppable_blocks(self.model, shape).items()
        }
        structure = discover(self.model, shape)
        scores = measure_relevance(self.model, structure, images, statistic)
        # An addition ties the channels of at least two writers.
        self.scores = {
            space.producers[0]: scores[space.identifier]
            for space in trimmable(structure, scores)
            if len(space.producers) == 1
        }

    @property
    def whole(self) -> ShrinkPoint:
        """The model itself."""
        return ShrinkPoint(tuple(map(len, self.stages.values())), 1.0, self.side)

    def input_shape(self, side: int) -> tuple[int, int, int]:
        return (self.images.shape[3], side, side)

    def _least_first(self, names: Sequence[str]) -> list[str]:
        """Sort blocks by how much the outputs change without each."""
        before = predict(self.model, self.images)
        change = {
            name: float(np.square(predict(drop_blocks(self.model, [name]), self.images) - before)
                        .mean())
            for name in names
        }  # fmt: skip
        return sorted(names, key=change.__getitem__)

    def check(self, point: ShrinkPoint) -> None:
        """Refuse a point that does not fit the model."""
        most = self.whole.depths
        fits = len(point.depths) == len(most)
        if not fits or any(not 0 <= d <= m for d, m in zip(point.depths, most, strict=True)):
            raise ValueError(
                f"depths must be one count for each of the stages {list(self.stages)!r}, at most "
                f"{most!r}, not {point.depths!r}"
            )
        if not 0.0 < point.width <= 1.0:
            raise ValueError(f"width must be in (0, 1], not {point.width!r}; try 0.5")
        _try_side(self.model, self.input_shape(point.side))

    def kept(self, width: float) -> dict[str, np.ndarray]:
        """Return which channels each inner space keeps, by its writer's name."""
        return {
            name: keep_most(score, width * len(score), self.align, 1)
            for name, score in self.scores.items()
        }

    def cut(self, point: ShrinkPoint) -> nn.Module:
        """Return the point's network with the batch norms as they were: enough for its cost."""
        gone: list[str] = []
        for names, depth in zip(self.stages.values(), point.depths, strict=True):
            gone += names[: len(names) - depth]
        small = drop_blocks(self.model, gone)
        if point.width == 1.0:
            return small
        structure = discover(small, self.input_shape(point.side))
        kept = {
            structure.space_of(name).identifier: indices
            for name, indices in self.kept(point.width).items()
            if name in structure.layers
        }
        return remove_channels(small, structure, kept)

    def build(self, point: ShrinkPoint) -> nn.Module:
        """Return the point's network, ready to run."""
        if point == self.whole:
            return copy.deepcopy(self.model)
        images = self.images
        if point.side != self.side:
            images = resize_all(images, point.side)
        return reestimate_bn(self.cut(point), images)


@dataclass(frozen=True)
class ShrinkConfig:
    """Knobs of compound shrinking.

    Attributes
    ----------
    dimensions
        Which of "depth", "width" and "side" move.
    strategy
        "contribution": from the whole model, step by step, the step that saves most for the
        accuracy it loses. "grid" (every point, in an order shuffled by ``seed``), "random", "tpe"
        (Bergstra et al., NIPS 2011): the most accurate of ``trials`` points that meet the target.
    target_saving
        Share of the cost to save, in (0, 1); "contribution" ends there.
    max_loss
        Accuracy that "contribution" may lose, 0.01 is one point; with both, whichever comes first.
    trials
        Points that the whole study measures, for all strategies but "contribution". Points of too
        high a cost are pruned without being measured, and they and repeated draws do not count;
        a study ends after 50 times as many draws of any kind.
    seed
        Of the order or the draws.
    align
        Channels kept are a multiple of this.
    depth_step, width_step
        Blocks of a stage, and share of the channels, that one step takes.
    width_min
        The smallest width, in (0, 1].
    sides
        Input sides allowed besides the images' own, in pixels, smaller than it; None for 7/8, 6/8,
        5/8 and 4/8 of it.
    statistic
        Relevance of channels.
    noise
        Accuracy lost below which losses are taken for equal, so that no small step looks free.
    """

    dimensions: tuple[Dimension, ...] = ("depth", "width", "side")
    strategy: Strategy = "contribution"
    target_saving: float | None = 0.5
    max_loss: float | None = None
    trials: int = 50
    seed: int = 0
    align: int = 16
    depth_step: int = 1
    width_step: float = 0.125
    width_min: float = 0.25
    sides: tuple[int, ...] | None = None
    statistic: Statistic = "mean_abs"
    noise: float = 0.005

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.dimensions or set(self.dimensions) - set(_DIMENSIONS):
            raise ValueError(f"dimensions must be of {_DIMENSIONS!r}, not {self.dimensions!r}")
        if self.strategy not in _STRATEGIES:
            raise ValueError(f"strategy must be one of {_STRATEGIES!r}, not {self.strategy!r}")
        if self.target_saving is not None and not 0.0 < self.target_saving < 1.0:
            raise ValueError(
                f"target_saving must be in (0, 1) or None, not {self.target_saving!r}; try 0.5"
            )
        if self.max_loss is not None and self.max_loss < 0.0:
            raise ValueError(f"max_loss must not be negative, not {self.max_loss!r}")
        if self.strategy != "contribution" and (
            self.target_saving is None or self.max_loss is not None
        ):
            raise ValueError(
                f"{self.strategy!r} must have a target_saving and no max_loss, not "
                f"{self.target_saving!r} and {self.max_loss!r}; try strategy='contribution'"
            )
        if self.target_saving is None and self.max_loss is None:
            raise ValueError("target_saving or max_loss must be given, not None and None; try 0.5")
        check_choice("statistic", self.statistic, Statistic)
        check_counts(trials=self.trials, align=self.align, depth_step=self.depth_step)
        if not (0.0 < self.width_step < 1.0 and 0.0 < self.width_min <= 1.0 and self.noise > 0.0):
            raise ValueError(
                "width_step must be in (0, 1), width_min in (0, 1], and noise above 0, not "
                f"{self.width_step!r}, {self.width_min!r} and {self.noise!r}"
            )


@dataclass(frozen=True)
class ShrinkTrial:
    """One point looked at: its cost, and its accuracy; None if pruned for its cost."""

    point: ShrinkPoint
    cost: float
    accuracy: float | None


@dataclass(frozen=True)
class ShrinkResult:
    """Where a search ended.

    Attributes
    ----------
    point, model, accuracy, cost
        The choice, its network in eval mode, and what was measured of it.
    baseline_cost
        Cost of the whole model.
    history
        Every point that the study looked at, once each, in the study's order.
    path
        The points that "contribution" passed, the whole model and the choice included; for the
        others empty.
    """

    point: ShrinkPoint
    model: nn.Module
    accuracy: float
    cost: float
    baseline_cost: float
    history: tuple[ShrinkTrial, ...]
    path: tuple[ShrinkPoint, ...]

    @property
    def saving(self) -> float:
        """Share of the cost that was saved."""
        return 1.0 - self.cost / self.baseline_cost


def shrink(
    model: nn.Module,
    images: np.ndarray,
    evaluate: Evaluate,
    config: ShrinkConfig | None = None,
    *,
    cost: Cost = tap_steps,
    storage: str | None = None,
    study_name: str = "shrink",
    fine_tune: FineTuneAt | None = None,
    progress: Tick | None = None,
) -> ShrinkResult:
    """Shrink depth, inner width and resolution together (ICCAD 2022; TCAD 2023).

    Every point measured is a trial of an Optuna study: its parameters are the steps down along
    each dimension, its user attributes the point, ``cost`` and ``accuracy``. A point that the study
    holds is never measured again; one that a killed process of this machine left running is done
    again. A study that is killed and restarted ends as it would have ended, given that
    ``evaluate`` and ``fine_tune`` are deterministic. Several processes may work on one study, each
    calling this function; they share all points, and at its end each may measure a point that
    another one is still at.

    Parameters
    ----------
    model
        Left as it is.
    images
        (N, side, side, 3) uint8 of the training data, at the size the model was trained for.
    evaluate
        Measures accuracy in [0, 1] on validation data, resized to the side it is given.
    config
        The knobs.
    cost
        What is to be saved, ``cost(model, (channels, side, side))``; lower with every step.
    storage
        A file, for SQLite; or any Optuna storage URL ("mysql://..."), to share the study between
        machines; None keeps it in memory. A study refuses another model, other images, knobs or
        another cost; that ``evaluate`` and ``fine_tune`` stay the same is the caller's to see to.
    study_name
        Its name in the storage.
    fine_tune
        Retrains each point's network before it is measured, and the one returned once more.
    progress
        Called after each trial: with the points measured of ``trials``; for "contribution" with
        the steps taken of all there are.

    Returns
    -------
    ShrinkResult
        With a target and a max_loss, "contribution" may end short of the target: see its cost.

    Raises
    ------
    ValueError
        If the study belongs to another model, config or data, if the target cannot be reached or
        no trial reached it, if a side does not fit the model, or an accuracy is out of [0, 1].
    UnsupportedStructure
        If the network cannot be followed.
    """
    config = config or ShrinkConfig()
    shrinker = _Shrinker(model, images, config.align, config.statistic)
    digest = _digest(model, images, config, cost, fine_tune is not None)
    with _study(storage, study_name, digest) as study:
        search = _Search(shrinker, config, cost, study, evaluate, fine_tune, progress)
        search.recover()
        path = search.contribution() if config.strategy == "contribution" else ()
        best = path[-1] if path else search.sampled()
        found = search.known()
    points = search.space.point
    measured = found[best]
    assert measured.accuracy is not None
    return ShrinkResult(
        points(best),
        search.network(points(best)).eval(),
        measured.accuracy,
        measured.cost,
        search.baseline,
        tuple(ShrinkTrial(points(notches), *values) for notches, values in found.items()),
        tuple(map(points, path)),
    )


def _digest(
    model: nn.Module, images: np.ndarray, config: ShrinkConfig, cost: Cost, fine_tuned: bool
) -> str:
    """Return what a study must match: weights, images, knobs but ``trials``, the cost's name."""
    knobs = (replace(config, trials=1), getattr(cost, "__qualname__", type(cost)), fine_tuned)
    digest = hashlib.sha256(repr(knobs).encode())
    digest.update(np.ascontiguousarray(images).tobytes())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _study(storage: str | None, name: str, digest: str) -> Iterator[optuna.Study]:
    """Open or make the study, refuse one of another search, and close its storage at the end."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend: optuna.storages.BaseStorage = optuna.storages.InMemoryStorage()
    if storage is not None:
        backend = _database(storage)
    try:
        study = optuna.create_study(
            storage=backend, study_name=name, direction="maximize", load_if_exists=True
        )
        empty = not study.get_trials(deepcopy=False)  # asked first: a digest precedes all trials
        held = study.user_attrs.get(_DIGEST)
        if held is None and empty:
            study.set_user_attr(_DIGEST, digest)
        elif held != digest:
            raise ValueError(
                f"study {name!r} in {storage} must belong to this model, these images and this "
                "config; try another study_name or another storage"
            )
        yield study
    finally:
        if isinstance(backend, optuna.storages.RDBStorage):
            backend.remove_session()
            backend.engine.dispose()


def _database(storage: str) -> optuna.storages.RDBStorage:
    """Open a storage; with SQLite, processes wait up to a minute for each other.

    Optuna makes the tables that it finds missing, one by one; of processes that open a new storage
    at once all but one fail at some table, and try again.
    """
    url = storage if "://" in storage else f"sqlite:///{Path(storage).resolve()}"
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    attempt = 0
    while True:
        attempt += 1
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
        except (DBAPIError, optuna.exceptions.StorageInternalError) as error:
            clash = any(word in str(error).lower() for word in ("already exists", "unique"))
            if not clash or attempt == _OPENINGS:
                raise
            time.sleep(0.1 * attempt * random.random())


Notches = tuple[int, ...]
"""Steps down along each knob of a space; all 0 is the whole model."""


class _Space:
    """The finite set of points: knobs, and how far each goes."""

    def __init__(self, shrinker: _Shrinker, config: ShrinkConfig) -> None:
        whole = shrinker.whole
        self.depth_step = config.depth_step
        self.depths = whole.depths
        self.widths = _widths(shrinker, config) if "width" in config.dimensions else [1.0]
        self.sides = _sides(shrinker, config) if "side" in config.dimensions else [whole.side]
        tops = {
            f"depth {stage}": -(-count // config.depth_step) if "depth" in config.dimensions else 0
            for stage, count in zip(shrinker.stages, whole.depths, strict=True)
        }
        self.tops = {**tops, "width": len(self.widths) - 1, "side": len(self.sides) - 1}
        if not any(self.tops.values()):
            raise ValueError(
                f"the model must have something to shrink along {config.dimensions!r}; try other "
                f"dimensions or align below {config.align}"
            )

    def point(self, notches: Notches) -> ShrinkPoint:
        *depths, width, side = notches
        kept = (max(n - self.depth_step * d, 0) for n, d in zip(self.depths, depths, strict=True))
        return ShrinkPoint(tuple(kept), self.widths[width], self.sides[side])

    def all(self) -> Iterator[Notches]:
        return itertools.product(*(range(top + 1) for top in self.tops.values()))


def _widths(shrinker: _Shrinker, config: ShrinkConfig) -> list[float]:
    """Return the widths allowed, without those that align makes equal to the one before."""
    widths, last = [1.0], {name: len(kept) for name, kept in shrinker.kept(1.0).items()}
    for step in range(1, math.floor((1.0 - config.width_min) / config.width_step + 1e-9) + 1):
        width = 1.0 - step * config.width_step
        sizes = {name: len(kept) for name, kept in shrinker.kept(width).items()}
        if sizes != last:
            widths.append(width)
            last = sizes
    return widths


def _sides(shrinker: _Shrinker, config: ShrinkConfig) -> list[int]:
    """Return the sides allowed, the images' own first, each tried on the model."""
    own = shrinker.side
    smaller = config.sides
    if smaller is None:
        smaller = tuple(own * eighths // 8 for eighths in (7, 6, 5, 4))
    if any(not 0 < side <= own for side in smaller):
        raise ValueError(f"sides must be in 1 .. {own}, the images' own side, not {smaller!r}")
    sides = sorted({own, *smaller}, reverse=True)
    for side in sides:
        _try_side(shrinker.model, shrinker.input_shape(side))
    return sides


class _Measured(NamedTuple):
    """What a finished trial knows; no accuracy if it was pruned."""

    cost: float
    accuracy: float | None


class _Search:
    """One process's work on a study."""

    def __init__(
        self,
        shrinker: _Shrinker,
        config: ShrinkConfig,
        cost: Cost,
        study: optuna.Study,
        evaluate: Evaluate,
        fine_tune: FineTuneAt | None,
        progress: Tick | None,
    ) -> None:
        self.shrinker, self.config, self.cost_function = shrinker, config, cost
        self.study, self.evaluate, self.fine_tune = study, evaluate, fine_tune
        self.progress = progress
        self.space = _Space(shrinker, config)
        self.costs: dict[Notches, float] = {}
        self.start: Notches = (0,) * len(self.space.tops)
        self.baseline = self.cost(self.start)
        self.target = -math.inf
        if config.target_saving is not None:
            self.target = (1.0 - config.target_saving) * self.baseline
            least = self.cost(tuple(self.space.tops.values()))
            if least > self.target:
                raise ValueError(
                    f"target_saving must be at most {1 - least / self.baseline:.3f}, which the "
                    f"smallest point saves, not {config.target_saving!r}; try more dimensions, "
                    "smaller sides or a smaller width_min"
                )

    def cost(self, notches: Notches) -> float:
        """Return a point's cost, counted once a process."""
        if notches not in self.costs:
            point = self.space.point(notches)
            shape = self.shrinker.input_shape(point.side)
            self.costs[notches] = self.cost_function(self.shrinker.cut(point), shape)
        return self.costs[notches]

    def network(self, point: ShrinkPoint) -> nn.Module:
        """Return a point's network, retrained if that is wanted."""
        network = self.shrinker.build(point)
        return network if self.fine_tune is None else self.fine_tune(network, point.side)

    def known(self) -> dict[Notches, _Measured]:
        """Return every point that the study has finished, in its order."""
        found: dict[Notches, _Measured] = {}
        done = (TrialState.COMPLETE, TrialState.PRUNED)
        for trial in self.study.get_trials(deepcopy=False, states=done):
            values = _Measured(trial.user_attrs["cost"], trial.user_attrs["accuracy"])
            found.setdefault(self._notches(trial), values)
        return found

    def _notches(self, trial: FrozenTrial) -> Notches:
        return tuple(trial.params.get(name, -1) for name in self.space.tops)

    def recover(self) -> None:
        """Put the points that killed or failed processes left behind back into the queue."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _is_gone(trial.user_attrs.get("worker")):
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        trials = self.study.get_trials(deepcopy=False)
        lost = [
            t.params for t in trials if t.state == TrialState.FAIL and -1 not in self._notches(t)
        ]
        taken = [
            t.system_attrs.get("fixed_params", t.params)
            for t in trials
            if t.state != TrialState.FAIL
        ]
        for params in lost:
            if params not in taken:
                self.study.enqueue_trial(params)
                taken.append(params)

    def run(self, wanted: Notches | None = None) -> None:
        """Do one trial: the first of the queue, else the point wanted, else one drawn."""
        if wanted is not None and not self.study.get_trials(
            deepcopy=False, states=(TrialState.WAITING,)
        ):
            self.study.enqueue_trial(dict(zip(self.space.tops, wanted, strict=True)))
        trial = self.study.ask()
        try:
            trial.set_user_attr("worker", f"{platform.node()}:{os.getpid()}:{_SESSION}")
            self.study.sampler = self._sampler(trial.number)
            notches = tuple(
                trial.suggest_int(name, 0, top) for name, top in self.space.tops.items()
            )
            cost, accuracy = self.known().get(notches) or self._measure(notches)
            point = self.space.point(notches)
            for name, value in (
                ("cost", cost), ("accuracy", accuracy), ("depths", point.depths),
                ("width", point.width), ("side", point.side),
            ):  # fmt: skip
                trial.set_user_attr(name, value)
        except BaseException:
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        if accuracy is None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, accuracy)

    def _measure(self, notches: Notches) -> _Measured:
        """Build, retrain and evaluate a point; or prune it if a baseline cannot use it."""
        cost, point = self.cost(notches), self.space.point(notches)
        if self.config.strategy != "contribution" and cost > self.target:
            return _Measured(cost, None)
        accuracy = float(self.evaluate(self.network(point), point.side))
        if not 0.0 <= accuracy <= 1.0:
            raise ValueError(
                f"evaluate must return an accuracy in [0, 1], not {accuracy!r} for {point}; try "
                "the share of right answers"
            )
        return _Measured(cost, accuracy)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return a sampler seeded by the trial's place among those that did not fail.

        So a restarted study draws what it would have drawn, and no two processes draw alike.
        """
        failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        place = number - sum(trial.number < number for trial in failed)
        seed = int(np.random.SeedSequence([self.config.seed, place]).generate_state(1)[0])
        if self.config.strategy == "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)

    def _free(self, points: Sequence[Notches]) -> Notches | None:
        """Return the first point not known, best one that no other process is at."""
        known = self.known()
        running = {
            self._notches(trial)
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        }
        todo = [notches for notches in points if notches not in known]
        return next((n for n in todo if n not in running), todo[0] if todo else None)

    def contribution(self) -> tuple[Notches, ...]:
        """Walk down by the best step until the target, the loss or the space ends it."""
        path = [self.start]
        self._measure_all(path)
        floor = -math.inf
        if self.config.max_loss is not None:
            floor = self._accuracy(self.start) - self.config.max_loss
        while self.cost(path[-1]) > self.target:
            now = path[-1]
            steps = [step for knob in range(len(now)) if (step := self._down(now, knob))]
            self._measure_all(steps)
            allowed = [step for step in steps if self._accuracy(step) >= floor]
            if not allowed:
                break
            path.append(max(allowed, key=lambda step: self._worth(now, step)))
            if self.progress is not None:
                self.progress("shrinking", sum(path[-1]), sum(self.space.tops.values()))
        return tuple(path)

    def _measure_all(self, points: Sequence[Notches]) -> None:
        while (wanted := self._free(points)) is not None:
            self.run(wanted)

    def _accuracy(self, notches: Notches) -> float:
        accuracy = self.known()[notches].accuracy
        assert accuracy is not None
        return accuracy

    def _down(self, now: Notches, knob: int) -> Notches | None:
        """Return the next point along one knob that costs less, if there is one."""
        for notch in range(now[knob] + 1, list(self.space.tops.values())[knob] + 1):
            step = (*now[:knob], notch, *now[knob + 1 :])
            if self.cost(step) < self.cost(now):
                return step
        return None

    def _worth(self, now: Notches, step: Notches) -> float:
        """Return a step's contribution: cost saved for accuracy lost."""
        lost = self._accuracy(now) - self._accuracy(step)
        return (self.cost(now) - self.cost(step)) / max(lost, self.config.noise)

    def sampled(self) -> Notches:
        """Measure ``trials`` points and return the most accurate, the cheapest of equals."""
        order: list[Notches] = []
        if self.config.strategy == "grid":
            # Not by GridSampler: it takes a failed trial for a visited point, and ends a study by
            # Study.stop, which ask and tell do not have.
            everything = list(self.space.all())
            shuffled = np.random.default_rng(self.config.seed).permutation(len(everything))
            order = [everything[i] for i in shuffled]
        size = math.prod(top + 1 for top in self.space.tops.values())
        finished = (TrialState.COMPLETE, TrialState.PRUNED)
        while True:
            known = self.known()
            measured = sum(values.accuracy is not None for values in known.values())
            draws = len(self.study.get_trials(deepcopy=False, states=finished))
            if self.progress is not None:
                self.progress("shrinking", measured, self.config.trials)
            if (
                measured >= self.config.trials
                or len(known) == size
                or draws >= _DRAWS * self.config.trials
            ):
                break
            self.run(self._free(order))
        within = {n: v.accuracy for n, v in known.items() if v.accuracy is not None}
        if not within:
            raise ValueError(
                f"no point of {len(known)} met target_saving={self.config.target_saving!r}; try "
                "more trials, a smaller target_saving or strategy='contribution'"
            )
        return max(within, key=lambda notches: (within[notches], -known[notches].cost))


def _is_gone(worker: str | None) -> bool:
    """Say whether the process that a trial names was one of this machine and has ended."""
    if worker is None or os.name != "posix":
        return False  # signal 0 would end a process of another system
    host, pid, session = worker.rsplit(":", 2)
    if host != platform.node():
        return False
    if int(pid) == os.getpid():
        return session != _SESSION
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it runs, under another user
    return False
