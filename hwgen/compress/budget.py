# SPDX-License-Identifier: Apache-2.0
"""Compression: the accuracy budget.

Nagaraju & Chandrachoodan, OJCAS 2023, section IV: given a loss that the user accepts, take again
and again the step that saves most for the accuracy it loses, measured on validation data that the
final figure never sees; where the last step is too long, bisect it. The steps here are to trim a
group of channels (:mod:`hwgen.compress.relevance`), to make them up from those that stay
(:mod:`hwgen.compress.linear_approximation`), or to lower a group of kernels
(:mod:`hwgen.compress.kernel_reduction`); the cost is any function of the model. A method that has
one knob for the whole network goes through :func:`tightest` instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch import nn

from hwgen.compress.cost import Cost, channel_units, tap_steps
from hwgen.compress.identity import digest
from hwgen.compress.inputs import shape_of
from hwgen.compress.kernel_reduction import (
    KernelConfig,
    kernel_units,
    lower_filters,
    lowerable,
)
from hwgen.compress.knobs import check_choice, check_counts
from hwgen.compress.linear_approximation import (
    ApproximationConfig,
    approximable,
    approximate_channels,
    choose_dropped,
)
from hwgen.compress.relevance import FineTune, Statistic, measure_relevance, remove_channels
from hwgen.compress.structure import Structure, discover, load_compressed
from hwgen.compress.training import Tick, load_saved, reestimate_bn, retrained, save_atomically

Method = Literal["trim", "lower", "approximate"]
Validate = Callable[[nn.Module], float]
"""From a model to its accuracy in [0, 1] on validation data."""


@dataclass(frozen=True)
class BudgetConfig:
    """Knobs of the loop.

    Attributes
    ----------
    max_loss
        Accuracy that may be lost on the validation data: 0.01 is one point.
    methods
        Which kinds of step may be taken.
    units
        Groups that one step takes; a step that loses too much is halved until it is one group.
    align
        Channels of a group: the machine's outputs in parallel, so that what is saved is cycles.
    statistic
        Relevance of channels, for trimming.
    kernels
        How kernels are lowered; its ``fraction``, ``layers``, ``align`` and ``retrain`` are not
        used.
    approximation
        How maps are made up; likewise, and they are always folded into those who read them.
    rejections
        Steps that may fail (each with its retraining) before the loop ends.
    max_steps
        Steps that may be taken.
    """

    max_loss: float = 0.01
    methods: tuple[Method, ...] = ("trim", "lower")
    units: int = 1
    align: int = 16
    statistic: Statistic = "mean_abs"
    kernels: KernelConfig = KernelConfig(importance="residual")
    approximation: ApproximationConfig = ApproximationConfig()
    rejections: int = 3
    max_steps: int = 1000

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.max_loss < 1.0:
            raise ValueError(
                f"max_loss must be in [0, 1), not {self.max_loss!r}; try 0.01 for one point"
            )
        if not self.methods or set(self.methods) - set(get_args(Method)):
            raise ValueError(f"methods must be of {get_args(Method)!r}, not {self.methods!r}")
        check_choice("statistic", self.statistic, Statistic)
        check_counts(units=self.units, align=self.align, rejections=self.rejections)
        if self.max_steps < 0:
            raise ValueError(f"max_steps must be at least 0, not {self.max_steps!r}")


@dataclass(frozen=True)
class Step:
    """A step taken: what was done where, and where that led.

    ``target`` is the layer whose kernels were lowered, or that writes the channels trimmed.
    """

    method: str
    target: str
    units: int
    accuracy: float
    cost: float


@dataclass
class BudgetReport:
    """Where the loop began, each step, and where it ended.

    Accuracies are on the validation data, costs in the unit of the cost function. ``untried``
    counts the layers left whose turn did not come, after the last step or refusal that was allowed.
    """

    baseline_accuracy: float
    baseline_cost: float
    floor: float
    accuracy: float
    cost: float
    steps: list[Step] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    untried: int = 0

    @property
    def saving(self) -> float:
        """Share of the cost that was saved."""
        return 1.0 - self.cost / self.baseline_cost


def compress_to_budget(
    model: nn.Module,
    images: np.ndarray,
    validate: Validate,
    config: BudgetConfig | None = None,
    *,
    cost: Cost = tap_steps,
    fine_tune: FineTune | None = None,
    checkpoint: str | Path | None = None,
    progress: Tick | None = None,
) -> tuple[nn.Module, BudgetReport]:
    """Save as much cost as the accuracy budget allows (OJCAS 2023, section IV).

    Parameters
    ----------
    model
        Left as it is.
    images
        (N, H, W, 3) uint8 of the training data, at the size the model runs on: calibration.
    validate
        Measures accuracy. The result never falls below the baseline's minus ``max_loss`` by it.
    config
        The knobs.
    cost
        What is to be saved: ``cost(model, (channels, height, width))``.
    fine_tune
        Retrains a copy after each step; steps are ranked before, accepted after retraining.
    checkpoint
        A file kept up to date after each step; a run that finds it goes on from there, with the
        same result.
    progress
        Called after each step with the share of the budget's steps that are decided.

    Returns
    -------
    tuple
        The compressed copy in eval mode, and the report.

    Raises
    ------
    ValueError
        If the checkpoint belongs to another model, other images or another config, or began at
        another accuracy or cost.
    """
    loop = _Loop(model, images, validate, config or BudgetConfig(), cost, fine_tune)
    path = Path(checkpoint) if checkpoint is not None else None
    named = getattr(cost, "__qualname__", type(cost))
    identity = digest(model, images, loop.config, named, fine_tune is not None)
    if path is not None and path.exists():
        loop.resume(load_saved(path, "a checkpoint of a budget"), identity, path)
    while loop.advance():
        if path is not None:
            save_atomically(loop.state(identity), path)
        if progress is not None:
            done = len(loop.report.steps) + len(loop.report.rejected)
            progress("compression", done, done + len(loop.scores))
    return loop.model.eval(), loop.report


@dataclass
class _Score:
    """A candidate's saving for accuracy lost, and how many steps had been taken when measured."""

    value: float
    age: int


class _Loop:
    """The state between steps."""

    def __init__(
        self,
        model: nn.Module,
        images: np.ndarray,
        validate: Validate,
        config: BudgetConfig,
        cost: Cost,
        fine_tune: FineTune | None,
    ) -> None:
        self.original = self.model = copy.deepcopy(model).eval()
        self.images, self.validate, self.config = images, validate, config
        self.fine_tune = fine_tune
        self.input_shape = shape_of(images)
        self.cost = cost
        accuracy, start = validate(self.model), cost(self.model, self.input_shape)
        if not 0.0 <= accuracy <= 1.0:
            raise ValueError(
                f"validate must return an accuracy in [0, 1], not {accuracy!r}; try the share of "
                "right answers"
            )
        floor = floor_of(accuracy, config.max_loss)
        self.report = BudgetReport(accuracy, start, floor, accuracy, start)
        self.scores: dict[tuple[str, str], _Score] = {}
        self.measured = False

    def advance(self) -> bool:
        """Take, or refuse, one step; return False when there is none left."""
        if not self.measured:
            self.scores = {key: _Score(np.inf, -1) for key in self._candidates()}
            self.measured = True
        refused = len(self.report.rejected)
        if refused >= self.config.rejections or len(self.report.steps) >= self.config.max_steps:
            self.report.untried = len(
                {key[1] for key, score in self.scores.items() if score.value > 0}
            )
            return False
        key = self._best()
        if key is None:
            return False
        units = self.config.units
        while units >= 1:  # bisect: half of the groups, until it fits
            trial = self._apply(key, units)
            if trial is not None:
                if self.fine_tune is not None:
                    trial = retrained(self.fine_tune(trial))
                accuracy = self.validate(trial)
                if accuracy >= self.report.floor:
                    cost = self.cost(trial, self.input_shape)
                    if cost < self.report.cost:
                        self._accept(key, units, trial, accuracy, cost)
                        return True
            units //= 2
        del self.scores[key]
        self.report.rejected.append(key)
        return True

    def _accept(
        self, key: tuple[str, str], units: int, trial: nn.Module, accuracy: float, cost: float
    ) -> None:
        self.model = trial
        self.report.accuracy = accuracy
        self.report.cost = cost
        self.report.steps.append(Step(*key, units, accuracy, self.report.cost))
        left = set(self._candidates())
        self.scores = {key: score for key, score in self.scores.items() if key in left}

    def _candidates(self) -> list[tuple[str, str]]:
        """Return every (method, target) that still has a group to give."""
        structure = discover(self.model, self.input_shape)
        found: list[tuple[str, str]] = []
        if "trim" in self.config.methods:
            for space in structure.spaces.values():
                if not space.frozen and space.producers and space.channels > self.config.align:
                    found.append(("trim", space.producers[0]))
        if "approximate" in self.config.methods:
            for space in approximable(self.model, structure, "folded"):
                if space.channels > self.config.align:
                    found.append(("approximate", space.producers[0]))
        if "lower" in self.config.methods:
            found += [
                ("lower", name)
                for name in lowerable(self.model, structure, self.config.kernels.ladder)
            ]
        return found

    def _best(self) -> tuple[str, str] | None:
        """Return the candidate with the best ratio.

        Ratios only get worse as the network shrinks, nearly always. So only the one on top is
        measured again, until one that was measured on the present network stays on top.
        """
        now = len(self.report.steps)
        while self.scores:
            key = max(self.scores, key=lambda k: self.scores[k].value)
            score = self.scores[key]
            if score.value <= 0:
                return None
            if score.age == now:
                return key
            self.scores[key] = _Score(self._measure(key), now)
        return None

    def _measure(self, key: tuple[str, str]) -> float:
        """Return cost saved for accuracy lost, without retraining; 0 if nothing is saved."""
        trial = self._apply(key, self.config.units)
        if trial is None:
            return 0.0
        saved = (self.report.cost - self.cost(trial, self.input_shape)) / self.report.baseline_cost
        lost = self.report.accuracy - self.validate(trial)
        # Half a point more or less is noise; it must not make a small step look free.
        return max(saved, 0.0) / max(lost, 0.005)

    def _apply(self, key: tuple[str, str], units: int) -> nn.Module | None:
        """Return a copy with the step taken and batch norms re-estimated; None if impossible."""
        method, target = key
        structure = discover(self.model, self.input_shape)
        if method == "trim":
            trial = self._trim(structure, target, units)
        elif method == "approximate":
            trial = self._approximate(structure, target, units)
        else:
            groups = kernel_units(self.model, structure, target, self.images, self._kernels())
            filters = np.sort(np.concatenate(groups[:units])) if groups else np.array([], int)
            if not len(filters):
                return None
            trial, _ = lower_filters(
                self.model, structure, target, filters, self.images, self._kernels()
            )
        return None if trial is None else reestimate_bn(trial, self.images)

    def _kernels(self) -> KernelConfig:
        return replace(self.config.kernels, align=self.config.align)

    def _approximate(self, structure: Structure, target: str, units: int) -> nn.Module | None:
        space, align = structure.space_of(target), self.config.align
        going = min(units, -(-space.channels // align) - 1) * align
        if going < 1:
            return None
        knobs = replace(
            self.config.approximation,
            fraction=going / space.channels,
            align=align,
            form="folded",
            layers=None,
        )
        dropped = choose_dropped(self.model, structure, space, self.images, knobs)
        if not len(dropped):
            return None
        return approximate_channels(self.model, structure, space, dropped, self.images, knobs)[0]

    def _trim(self, structure: Structure, target: str, units: int) -> nn.Module | None:
        space = structure.space_of(target)
        scores = measure_relevance(self.model, structure, self.images, self.config.statistic)
        if space.identifier not in scores:
            return None
        align = self.config.align
        groups = channel_units(self.model, structure, space, scores[space.identifier], align)
        kept = groups[min(units, len(groups) - 1) :]
        return remove_channels(self.model, structure, {space.identifier: np.concatenate(kept)})

    def state(self, identity: str) -> dict[str, Any]:
        """Return everything that :meth:`resume` needs, as plain values and tensors."""
        return {
            "digest": identity,
            "model": self.model.state_dict(),
            "report": asdict(self.report),
            "scores": [[*key, score.value, score.age] for key, score in self.scores.items()],
        }

    def resume(self, state: dict[str, Any], identity: str, path: Path) -> None:
        """Go on from a saved state."""
        if not isinstance(state, dict) or state.get("digest") != identity:
            raise ValueError(
                f"{path} must belong to this model, these images and this budget, not to others; "
                "try deleting it or naming another file"
            )
        report, now = dict(state["report"]), self.report
        held = report["baseline_accuracy"], report["baseline_cost"]
        if held != (now.baseline_accuracy, now.baseline_cost):
            raise ValueError(
                f"{path} must begin at accuracy and cost {now.baseline_accuracy!r} and "
                f"{now.baseline_cost!r}, as measured now, not at {held[0]!r} and {held[1]!r}, "
                "which other validation data or another cost gave; try deleting it or naming "
                "another file"
            )
        self.model = load_compressed(self.original, state["model"]).eval()
        report["steps"] = [Step(**step) for step in report["steps"]]
        report["rejected"] = [(method, target) for method, target in report["rejected"]]
        self.report = BudgetReport(**report)
        self.scores = {(m, t): _Score(value, age) for m, t, value, age in state["scores"]}
        self.measured = True


def floor_of(accuracy: float, max_loss: float) -> float:
    """Return the least accuracy that a loss allows, less what rounding may add.

    The difference of two rounded shares may lie above the share of images that is meant.
    """
    return accuracy - max_loss - 1e-12


def tightest(
    build: Callable[[float], nn.Module],
    levels: Sequence[float],
    validate: Validate,
    floor: float,
) -> tuple[float, nn.Module] | None:
    """Bisect for the last of ``levels`` whose network is accurate enough (OJCAS 2023, section IV).

    Parameters
    ----------
    build
        From a level to the compressed and retrained network.
    levels
        From the mildest to the hardest; accuracy is taken to fall along them.
    validate
        Measures accuracy.
    floor
        The least accuracy accepted.

    Returns
    -------
    tuple or None
        The level and its network, which was itself measured to be at or above the floor; None if
        no level that was tried is.
    """
    found: tuple[float, nn.Module] | None = None
    low, high = 0, len(levels)
    while low < high:
        middle = (low + high) // 2
        model = build(levels[middle])
        if validate(model) >= floor:
            found, low = (levels[middle], model), middle + 1
        else:
            high = middle
    return found
