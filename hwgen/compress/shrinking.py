# SPDX-License-Identifier: Apache-2.0
"""Compression: compound shrinking of depth, inner width and resolution.

Kong et al., Smart Scissor (ICCAD 2022) and EdgeCompress (TCAD 2023): a network is shrunk along
three dimensions at once, and which one gives next is decided by its contribution, the accuracy
lost for the cost saved, measured again at each step. Grid, random and TPE search over the same
points are the baselines. Every search is an Optuna study, so that it can be killed, restarted and
shared between processes and machines.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from hwgen.compress.cost import Cost, tap_steps
from hwgen.compress.identity import digest
from hwgen.compress.knobs import check_choice, check_counts, check_not_negative
from hwgen.compress.relevance import Statistic
from hwgen.compress.shrunk import Shrinker, ShrinkPoint, try_side
from hwgen.compress.study import is_gone, open_study, this_worker
from hwgen.compress.training import Tick, retrained

Dimension = Literal["depth", "width", "side"]
Strategy = Literal["contribution", "grid", "random", "tpe"]
Evaluate = Callable[[nn.Module, int], float]
"""From a model and the side of its input in pixels to its accuracy in [0, 1], validation data."""
FineTuneAt = Callable[[nn.Module, int], nn.Module]
"""From a model and the side of its input in pixels to a retrained copy."""

_DRAWS = 50  # trials of a study for each point that it may measure: repeats and points too dear


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
        if not self.dimensions or set(self.dimensions) - set(get_args(Dimension)):
            raise ValueError(
                f"dimensions must be of {get_args(Dimension)!r}, not {self.dimensions!r}"
            )
        check_choice("strategy", self.strategy, Strategy)
        if self.target_saving is not None and not 0.0 < self.target_saving < 1.0:
            raise ValueError(
                f"target_saving must be in (0, 1) or None, not {self.target_saving!r}; try 0.5"
            )
        check_not_negative(max_loss=self.max_loss or 0.0, seed=self.seed)
        if self.sides is not None:
            try:
                sides = tuple(operator.index(side) for side in self.sides)
            except TypeError as error:
                raise ValueError(f"sides must be whole pixels, not {self.sides!r}") from error
            object.__setattr__(self, "sides", sides)
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
    storage: str | Path | None = None,
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
    shrinker = Shrinker(model, images, config.align, config.statistic)
    space = _Space(shrinker, config)
    # A cost has no digest of its own; what it says of the largest and the smallest point tells it.
    ends = {end: _priced(shrinker, cost, space.point(end)) for end in (space.whole, space.smallest)}
    knobs = replace(config, trials=1)
    identity = digest(model, images, knobs, list(ends.values()), fine_tune is not None)
    with open_study(storage, study_name, identity) as study:
        search = _Search(shrinker, space, config, cost, ends, study, evaluate, fine_tune, progress)
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


Notches = tuple[int, ...]
"""Steps down along each knob of a space; all 0 is the whole model."""


class _Space:
    """The finite set of points: knobs, and how far each goes."""

    def __init__(self, shrinker: Shrinker, config: ShrinkConfig) -> None:
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
        self.whole: Notches = (0,) * len(self.tops)
        self.smallest: Notches = tuple(self.tops.values())
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


def _widths(shrinker: Shrinker, config: ShrinkConfig) -> list[float]:
    """Return the widths allowed, without those that align makes equal to the one before."""
    widths, last = [1.0], {name: len(kept) for name, kept in shrinker.kept(1.0).items()}
    for step in range(1, math.floor((1.0 - config.width_min) / config.width_step + 1e-9) + 1):
        width = 1.0 - step * config.width_step
        sizes = {name: len(kept) for name, kept in shrinker.kept(width).items()}
        if sizes != last:
            widths.append(width)
            last = sizes
    return widths


def _sides(shrinker: Shrinker, config: ShrinkConfig) -> list[int]:
    """Return the sides allowed, the images' own first, each tried on the model."""
    own = shrinker.side
    smaller = config.sides
    if smaller is None:
        smaller = tuple(own * eighths // 8 for eighths in (7, 6, 5, 4))
    if any(not 0 < side <= own for side in smaller):
        raise ValueError(f"sides must be in 1 .. {own}, the images' own side, not {smaller!r}")
    sides = sorted({own, *smaller}, reverse=True)
    for side in sides:
        try_side(shrinker.model, shrinker.input_shape(side))
    return sides


def _priced(shrinker: Shrinker, cost: Cost, point: ShrinkPoint) -> float:
    """Return a point's cost; refuse one that nothing can be compared with."""
    value = float(cost(shrinker.cut(point), shrinker.input_shape(point.side)))
    if not 0.0 < value < math.inf:
        raise ValueError(f"cost must return a number above 0, not {value!r} for {point}")
    return value


class _Measured(NamedTuple):
    """What a finished trial knows; no accuracy if it was pruned."""

    cost: float
    accuracy: float | None


class _Search:
    """One process's work on a study."""

    def __init__(
        self,
        shrinker: Shrinker,
        space: _Space,
        config: ShrinkConfig,
        cost: Cost,
        costs: dict[Notches, float],
        study: optuna.Study,
        evaluate: Evaluate,
        fine_tune: FineTuneAt | None,
        progress: Tick | None,
    ) -> None:
        self.shrinker, self.config, self.cost_function = shrinker, config, cost
        self.study, self.evaluate, self.fine_tune = study, evaluate, fine_tune
        self.progress = progress
        self.space = space
        self.costs = costs
        self.unborn: set[int] = set()  # trials of which a kill left a number and nothing else
        self.start = space.whole
        self.baseline = self.cost(self.start)
        self.target = -math.inf
        if config.target_saving is not None:
            self.target = (1.0 - config.target_saving) * self.baseline
            least = self.cost(space.smallest)
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
            self.costs[notches] = _priced(self.shrinker, self.cost_function, point)
        return self.costs[notches]

    def network(self, point: ShrinkPoint) -> nn.Module:
        """Return a point's network, retrained if that is wanted."""
        network = self.shrinker.build(point)
        return network if self.fine_tune is None else retrained(self.fine_tune(network, point.side))

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
            worker = trial.user_attrs.get("worker")
            if worker is None:
                self.unborn.add(trial.number)
            elif is_gone(worker):
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
            trial.set_user_attr("worker", this_worker())
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
        except optuna.exceptions.UpdateFinishedTrialError:
            return  # SQLite may give two processes the same trial of the queue: the other was first
        except BaseException:
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise
        if accuracy is None:
            self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            self.study.tell(trial, accuracy, skip_if_finished=True)

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
        lost = self.unborn | {trial.number for trial in failed}
        place = number - sum(other < number for other in lost)
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
