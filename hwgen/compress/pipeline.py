# SPDX-License-Identifier: Apache-2.0
"""Compression: everything behind `shears compress`, from a network and its data to a report.

The accuracy budget is spent in three stages: steps of trimming, lowering and approximating
(:mod:`hwgen.compress.budget`), then slices of kernels as far as what is left of the budget lets
them go (:mod:`hwgen.compress.slice_reduction`), then fine-tuning; last, if asked for, integers are
trained and compiled. Every stage is kept, so that a run that was stopped goes on, with the same
result.
"""

from __future__ import annotations

import bisect
import copy
import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hwgen.arch.bundle import Bundle
from hwgen.arch.files import replacing
from hwgen.boards import load_board
from hwgen.compress.budget import BudgetConfig, Method, compress_to_budget, floor_of, tightest
from hwgen.compress.cost import Cost, for_machine, macs, parameters, predicted_cycles
from hwgen.compress.identity import digest
from hwgen.compress.inputs import device_of, normalise, preprocess_of, shape_of
from hwgen.compress.kernel_reduction import KernelConfig
from hwgen.compress.knobs import check_choice, check_counts, check_not_negative
from hwgen.compress.linear_approximation import ApproximationConfig
from hwgen.compress.relevance import FineTune, Statistic
from hwgen.compress.report import (
    COST_NAMES,
    CompressionReport,
    Figures,
    Trial,
    layer_rows,
    listed,
    write_report,
)
from hwgen.compress.slice_reduction import SliceConfig, UnreachableCost, lower_slices
from hwgen.compress.structure import load_compressed
from hwgen.compress.training import (
    Samples,
    Tick,
    TrainConfig,
    accuracy,
    load_saved,
    predict,
    save_atomically,
    train,
    with_masks,
)
from hwgen.datasets import Dataset, Splits
from hwgen.ir.graph import Graph
from hwgen.ir.preprocess import for_channels

if TYPE_CHECKING:
    from hwgen.quantize import Calibration

STEP_METHODS: tuple[Method, ...] = ("trim", "lower", "approximate")
METHODS = (*STEP_METHODS, "slices")

KEEPS = (0.9, 0.8, 0.7, 0.6, 0.52, 0.45, 0.39, 0.34, 0.29, 0.25, 0.21, 0.18, 0.15, 0.12, 0.1)
"""Shares of the array's steps that slices may leave, from the mildest."""


@dataclass(frozen=True)
class CompressionConfig:
    """Knobs of a whole compression.

    Attributes
    ----------
    max_loss
        Accuracy that may be lost on the validation split: 0.01 is one point.
    methods
        Of "trim", "lower", "approximate" (steps that the budget chooses among) and "slices".
    cost
        What is to be saved: predicted "cycles" of the board, "steps" of its array (quicker to
        count, without transfers), "macs" or "parameters".
    board
        Name or TOML file.
    learn
        Training of the network before anything is cut; no epochs for one that is trained.
    step, step_share
        Retraining after each step, on a random part of the training images; with no epochs, batch
        norms are re-estimated.
    finish
        Fine-tuning of each network that slices are tried on, and of the result.
    integers
        Training of the result through the machine's own integers
        (:func:`hwgen.quantize.fine_tune_quantized`), which are compiled into a bundle; no epochs
        to quantize after training alone.
    distill
        Whether retraining also learns the answers of the network as it was.
    max_steps, rejections
        Steps that may be taken before slices, and that may be refused, for what they lost after
        their retraining.
    statistic, kernels, approximation, slices
        How channels are judged, kernels lowered, maps approximated and slices lowered. What the
        pipeline decides itself is not used of them: shares, layers, groups, retraining and seeds.
    calibration
        Training images that relevance, importance and the int8 ranges are measured on.
    seed
        Of everything that is drawn; it replaces those of the trainings.
    """

    max_loss: float = 0.01
    methods: tuple[str, ...] = METHODS
    cost: str = "cycles"
    board: str | Path = "pynq-z2"
    learn: TrainConfig = TrainConfig(epochs=0)
    step: TrainConfig = TrainConfig(epochs=1, learning_rate=1e-3)
    step_share: float = 1.0
    finish: TrainConfig = TrainConfig(epochs=10, learning_rate=2e-3)
    integers: TrainConfig = TrainConfig(epochs=0, learning_rate=1e-3, weight_decay=0.0)
    distill: bool = True
    max_steps: int = 1000
    rejections: int = 3
    statistic: Statistic = "mean_abs"
    kernels: KernelConfig = KernelConfig(importance="residual")
    approximation: ApproximationConfig = ApproximationConfig()
    slices: SliceConfig = SliceConfig()
    calibration: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.max_loss < 1.0:
            raise ValueError(f"max_loss must be in [0, 1), not {self.max_loss!r}")
        if not self.methods or set(self.methods) - set(METHODS):
            raise ValueError(f"methods must be of {METHODS!r}, not {self.methods!r}")
        if self.cost not in COST_NAMES:
            raise ValueError(f"cost must be one of {tuple(COST_NAMES)!r}, not {self.cost!r}")
        if not 0.0 < self.step_share <= 1.0:
            raise ValueError(f"step_share must be in (0, 1], not {self.step_share!r}")
        check_choice("statistic", self.statistic, Statistic)
        check_counts(rejections=self.rejections)
        check_not_negative(max_steps=self.max_steps, seed=self.seed)
        if self.calibration < 4:
            raise ValueError(f"calibration must be at least 4 images, not {self.calibration!r}")


def parse_budget(text: str) -> float:
    """Return the loss that ``1%`` or ``0.01`` allows.

    Raises
    ------
    ValueError
        If it is neither, or not in [0, 1).
    """
    number = text.strip()
    try:
        value = float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < 1.0:
        hint = f"; try {number}%" if value >= 1.0 and not number.endswith("%") else ""
        raise ValueError(
            f"budget must be a share of all images such as 1% or 0.01, less than all, "
            f"not {text!r}{hint}"
        )
    return value


def cost_named(name: str, board: str | Path) -> Cost:
    """Return the cost that :attr:`CompressionConfig.cost` names, for a board.

    "cycles" is infinite for a network that cannot be compiled, so that no step leads there.
    """
    if name == "macs":
        return macs
    if name == "parameters":
        return parameters
    if name == "steps":
        return for_machine(load_board(board).config)

    def cycles(model: nn.Module, input_shape: tuple[int, int, int]) -> float:
        try:
            return predicted_cycles(_on_cpu(model), input_shape, board)
        except ValueError:
            return math.inf

    cycles.__qualname__ = f"predicted_cycles on {board}"
    return cycles


_DECIDED = {
    "kernels": ("fraction", "layers", "align", "retrain", "seed"),
    "approximation": ("fraction", "layers", "align", "form", "retrain", "seed"),
    "slices": ("keep", "rounds", "tn", "ti", "seed"),
    "learn": ("seed",),
    "step": ("seed",),
    "finish": ("seed",),
    "integers": ("seed",),
}
"""Knobs of the methods that the pipeline decides itself."""

DESCRIBED = frozenset({"model", "weights", "data", "run"})
"""What a report may be told of where its network and data are from."""


def compress_network(
    model: nn.Module,
    splits: Splits,
    folder: str | Path,
    config: CompressionConfig | None = None,
    *,
    progress: Tick | None = None,
    notes: Callable[[str], None] | None = None,
    described: Mapping[str, str] | None = None,
) -> tuple[nn.Module, CompressionReport]:
    """Compress a classifier within an accuracy budget, and report.

    Parameters
    ----------
    model
        Takes ``(pixel / 255 - 0.5) / 0.25`` as float32 (N, C, H, W), or what
        :func:`~hwgen.compress.inputs.with_preprocess` says; returns (N, classes) logits. Left as it
        is. Trained on the device that it lies on.
    splits
        uint8 images of the size that the model runs on. The validation split decides; the test
        split is seen once, at the end.
    folder
        Gets ``compressed.pt``, the state dict that
        :func:`~hwgen.compress.structure.load_compressed` restores; ``original.pt``, that of the
        network before, if it was trained here; ``calibration.npz``, images for `shears compile`,
        with mean, std and class names; ``bundle``, the compiled network, if its integers were
        trained; ``report.json``, ``report.html`` and its pictures; and ``checkpoints``, in which a
        run with the same arguments goes on. One with others goes on from the trained network alone,
        if what that depends on is the same; one that differs in ``integers``, from the compressed
        one.
    config
        The knobs.
    progress
        Called with what is being done, steps done, steps in all.
    notes
        Called with a line on what was found, and on what may not be meant so.
    described
        ``model``, ``weights``, ``data`` and ``run`` of the report.

    Returns
    -------
    tuple
        The compressed copy in eval mode, on the CPU, whose accuracy on the validation split is at
        least the original's minus ``max_loss``; and the report.

    Raises
    ------
    ValueError
        If model and data do not go together, the model has not learned anything, it cannot be
        compiled for the board, or its channels cannot be followed.
    """
    config = config or CompressionConfig()
    unknown = set(described or ()) - DESCRIBED
    if unknown:
        raise ValueError(f"described must be of {sorted(DESCRIBED)}, not {sorted(unknown)}")
    run = _Run(model, splits, Path(folder), config, progress, notes)
    base = with_masks(run.learned())
    floor = run.floor(base)
    smaller = run.steps(base)
    smaller = run.slices(base, smaller, floor)
    smaller = _on_cpu(run.finished(base, smaller))
    graph = run.integers(base, smaller)
    report = run.report(_on_cpu(base), smaller, graph, floor, dict(described or {}))
    save_atomically(smaller.state_dict(), run.out / "compressed.pt")
    if config.learn.epochs:
        save_atomically(_on_cpu(base).state_dict(), run.out / "original.pt")
    calibration = run.calibration(smaller)
    calibration.save(run.out / "calibration.npz")
    if config.integers.epochs:
        run.compiled(graph, calibration).save(run.out / "bundle")
    write_report(run.out, report)
    return smaller, report


class _Run:
    """One compression: its data and knobs, the folder of its stages, and what has been tried."""

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        out: Path,
        config: CompressionConfig,
        progress: Tick | None,
        notes: Callable[[str], None] | None,
    ) -> None:
        self.model, self.splits = copy.deepcopy(model).eval(), splits
        self.out, self.config = out, config
        self.tick: Tick = progress if progress is not None else lambda name, done, total: None
        self.note: Callable[[str], None] = notes if notes is not None else lambda line: None
        self.board = load_board(config.board)
        self.shape = shape_of(splits.train.images)
        self.cost = cost_named(config.cost, config.board)
        self.array_steps = for_machine(self.board.config)
        self._check()
        rng = np.random.default_rng(config.seed)
        count = min(config.calibration, len(splits.train))
        chosen = rng.choice(len(splits.train), count, replace=False)
        self.images, self.labels = splits.train.images[chosen], splits.train.labels[chosen]
        self.folder, self.learning = (out / "checkpoints" / name for name in self._digests())
        there = next(place for place in (out, *out.resolve().parents) if place.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise ValueError(f"folder must be one that can be written, not {str(out)!r}")
        self.trials: list[Trial] = []
        self.refused: list[tuple[str, str]] = []
        self.untried = 0
        self.seconds: dict[str, float] = {}

    @property
    def parts(self) -> dict[str, Dataset]:
        """The three splits by name."""
        return {name: getattr(self.splits, name) for name in ("train", "validation", "test")}

    def _check(self) -> None:
        """Refuse before any work what cannot be compressed, or not with these images."""
        size = " x ".join(map(str, self.shape))
        for name, split in self.parts.items():
            if not len(split):
                raise ValueError(f"the {name} split must hold an image, not none")
            if shape_of(split.images) != self.shape:
                other = " x ".join(map(str, shape_of(split.images)))
                raise ValueError(
                    f"the {name} split must have images of {size} as train has, not of {other}"
                )
        try:
            outputs = predict(self.model, self.splits.train.images[:2])
        except (RuntimeError, ValueError) as error:
            hint = "another side, or a wrapper that returns the logits alone"
            if "view size is not compatible" in str(error):
                hint = "x.flatten(1) in place of x.view"
            if f"have 1 channels, but got {self.shape[0]}" in str(error):
                hint = "a network of 3 channels, or an .npz with images of (N, H, W, 1)"
            raise ValueError(
                f"the network must give logits for the data's {size} images: {error}; try {hint}"
            ) from error
        classes = max(1 + int(split.labels.max()) for split in self.parts.values())
        if outputs.ndim != 2 or outputs.shape[1] < classes:
            raise ValueError(
                f"the network must return a logit for each of the data's {classes} classes, "
                f"not {outputs.shape[1:]!r}; try a factory with as many"
            )
        macs(self.model, self.shape)  # raises if channels cannot be followed
        predicted_cycles(_on_cpu(self.model), self.shape, self.config.board)

    def _digests(self) -> tuple[str, str]:
        """Return 16 digits of what the result depends on, and of what the first training does.

        That is arguments, device and this room's code; of the training, those that it knows.
        """
        room = Path(__file__).parent
        start: list[object] = [self.config.seed, device_of(self.model).type, self.model]
        start += [self.splits.train.images, self.splits.train.labels]
        code = [room / name for name in ("inputs.py", "training.py")]
        learning = digest(*start, self.config.learn, *(path.read_bytes() for path in code))
        others = replace(self.config, integers=CompressionConfig.integers)
        rest: list[object] = [others, self.board]
        for split in (self.splits.validation, self.splits.test):
            rest += [split.images, split.labels]
        code = sorted(room.glob("*.py"))
        whole = digest(*start, *rest, *(path.read_bytes() for path in code))
        return whole[:16], f"trained-{learning[:16]}"

    def stage(
        self,
        name: str,
        blank: nn.Module,
        build: Callable[[Path], tuple[nn.Module, Any]],
        folder: Path | None = None,
    ) -> tuple[nn.Module, Any]:
        """Load a finished stage, or build it (given a checkpoint file) and keep it."""
        folder = folder or self.folder
        path, checkpoint, spent = (folder / f"{name}{end}" for end in (".pt", ".checkpoint", ".s"))
        if path.exists():
            self.note(f"{name}: finished in an earlier run, taken from {path}")
        else:
            if checkpoint.exists():
                self.note(f"{name}: going on from {checkpoint}")
            before = _seconds(spent)
            began = time.perf_counter()
            try:
                model, record = build(checkpoint)
            finally:
                seconds = before + time.perf_counter() - began
                with suppress(OSError), replacing(spent) as temporary:
                    temporary.write_text(f"{seconds}\n")
            save_atomically(
                {"model": model.state_dict(), "record": record, "seconds": seconds}, path
            )
            for done in (checkpoint, spent):
                done.unlink(missing_ok=True)
        held = load_saved(path, "a network of an earlier run", device_of(self.model))
        self.seconds[name] = held["seconds"]
        return load_compressed(blank, held["model"]).eval(), held["record"]

    def validate(self, model: nn.Module) -> float:
        """Return the accuracy on the validation split."""
        return accuracy(model, self.splits.validation.images, self.splits.validation.labels)

    def samples(self, share: float = 1.0, salt: int = 0) -> Samples:
        """Return training images, or in each epoch another random share of them."""
        data = self.splits.train

        def draw(epoch: int) -> tuple[np.ndarray, np.ndarray]:
            if share >= 1.0:
                return data.images, data.labels
            rng = np.random.default_rng((self.config.seed, salt, epoch))
            chosen = rng.permutation(len(data))[: max(2, math.ceil(share * len(data)))]
            return data.images[chosen], data.labels[chosen]

        return draw

    def tuner(
        self,
        base: nn.Module,
        knobs: TrainConfig,
        name: str,
        checkpoint: Path | None = None,
        share: float = 1.0,
    ) -> FineTune | None:
        """Return what retrains, on a share of the images; None if the knobs have no epochs."""
        if not knobs.epochs:
            return None
        knobs = replace(knobs, seed=self.config.seed)

        def fine_tune(model: nn.Module) -> nn.Module:
            # What is drawn depends on the network and not on how many came before it, so that a
            # run that was stopped draws the same.
            return train(
                model,
                self.samples(share, int(digest(model)[:8], 16)),
                knobs,
                teacher=base if self.config.distill else None,
                checkpoint=checkpoint,
                progress=self.tick,
                name=name,
            )[0]

        return fine_tune

    def learned(self) -> nn.Module:
        """Train the network that was given, if that is asked for."""
        knobs = replace(self.config.learn, seed=self.config.seed)
        if not knobs.epochs:
            return self.model

        def build(checkpoint: Path) -> tuple[nn.Module, None]:
            return train(
                self.model, self.samples(), knobs, checkpoint=checkpoint, progress=self.tick
            )[0], None

        return self.stage("training", self.model, build, self.learning)[0]

    def floor(self, base: nn.Module) -> float:
        """Return the least accuracy accepted; refuse a network that has not learned anything."""
        found = self.validate(base)
        labels = Counter(self.splits.validation.labels.tolist())
        commonest = max(labels.values()) / len(self.splits.validation)
        if len(labels) < 2:
            raise ValueError("the validation split must have images of 2 classes or more, not 1")
        if found <= commonest:
            raise ValueError(
                f"the network must be a trained one, not one that is right on {found:.1%} of the "
                f"validation images where a constant answer is on {commonest:.1%}; give its "
                "weights, or epochs to train it for"
            )
        floor, count = floor_of(found, self.config.max_loss), len(self.splits.validation)
        mean, std = preprocess_of(base)
        self.note(
            f"the network is right on {found:.2%} of the {count:,} validation images, fed (pixel / "
            f"255 - mean) / std with a mean of {listed(mean)} and a std of {listed(std)}; if it "
            "was more in your training, give the mean and std of that"
        )
        right = round(count * found)
        may = right - max(0, math.ceil(count * floor))
        self.note(
            f"it may become wrong on {may:,} of them more"
            + ("; more validation images would tell smaller losses apart" if may < 5 else "")
        )
        still = [name for name, weight in base.named_parameters() if not weight.requires_grad]
        if still:
            self.note(
                f"{len(still)} tensors ({still[0]}, ...) require no gradient: retraining leaves "
                "them as they are, and so do slices; try model.requires_grad_(True)"
            )
        return floor

    def steps(self, base: nn.Module) -> nn.Module:
        """Trim, lower and approximate, step by step, within the budget."""
        methods = tuple(m for m in STEP_METHODS if m in self.config.methods)
        if not methods or not self.config.max_steps:
            return base

        tune = self.tuner(base, self.config.step, "retraining", share=self.config.step_share)

        def build(checkpoint: Path) -> tuple[nn.Module, dict[str, Any]]:
            model, report = compress_to_budget(
                base,
                self.images,
                self.validate,
                BudgetConfig(
                    max_loss=self.config.max_loss,
                    methods=methods,
                    align=self.board.config.tn,
                    statistic=self.config.statistic,
                    kernels=replace(self.config.kernels, seed=self.config.seed),
                    approximation=replace(self.config.approximation, seed=self.config.seed),
                    max_steps=self.config.max_steps,
                    rejections=self.config.rejections,
                ),
                cost=self.cost,
                fine_tune=tune,
                checkpoint=checkpoint,
                progress=self.tick,
            )
            return model, asdict(report)

        model, record = self.stage("steps", base, build)
        for step in record["steps"]:
            method, target, value = step["method"], step["target"], step["accuracy"]
            self.trials.append(Trial(method, target, value, step["cost"], True))
        self.refused = [(method, target) for method, target in record["rejected"]]
        self.untried = record["untried"]
        self.note(
            f"steps: {len(record['steps'])} taken, {len(self.refused)} refused"
            + (f"; {self.untried} more layers could be tried" if self.untried else "")
        )
        return model

    def slices(self, base: nn.Module, model: nn.Module, floor: float) -> nn.Module:
        """Give slices smaller kernels, as far as the budget lets them go."""
        if "slices" not in self.config.methods:
            return model
        tried: list[tuple[float, Trial]] = []
        present = self.cost(model, self.shape)

        def build(keep: float) -> nn.Module:
            name = f"slices-{keep:g}"

            def lower(checkpoint: Path) -> tuple[nn.Module, None]:
                tune = self.tuner(base, self.config.finish, f"slices, keep {keep:g}", checkpoint)
                return self._lowered(model, keep, tune), None

            trial = self.stage(name, base, lower)[0]
            found = self.cost(trial, self.shape)
            tried.append((keep, Trial("slices", f"keep {keep:g}", 0.0, found, False)))
            return trial

        def validate(trial: nn.Module) -> float:
            value, (keep, record) = self.validate(trial), tried[-1]
            tried[-1] = keep, replace(record, accuracy=value)
            self.note(
                f"slices, {keep:g} of the array's steps kept: right on {value:.2%}, "
                f"{COST_NAMES[self.config.cost]}: {record.cost:,.0f}, of {present:,.0f}"
            )
            # What saves nothing is no step, however good it is.
            return value if record.cost < present else -math.inf

        levels = self._keeps(model)
        if not levels:
            self.note(f"slices: kernels alone cannot leave {KEEPS[0]:g} of the array's steps")
        chosen = tightest(build, levels, validate, floor)
        for keep, record in sorted(tried, key=lambda item: -item[0]):
            taken = chosen is not None and keep == chosen[0]
            self.trials.append(replace(record, taken=taken))
        # What was taken is what the run goes on from: it comes last.
        self.trials.sort(key=lambda trial: trial.taken and trial.method == "slices")
        return model if chosen is None else chosen[1]

    def _keeps(self, model: nn.Module) -> tuple[float, ...]:
        """Return the levels that kernels alone can reach."""

        def beyond(keep: float) -> bool:
            try:
                self._lowered(model, keep, None, few=16)
            except UnreachableCost:
                return True
            return False

        return KEEPS[: bisect.bisect_left(KEEPS, True, key=beyond)]

    def _lowered(
        self, model: nn.Module, keep: float, fine_tune: FineTune | None, few: int | None = None
    ) -> nn.Module:
        """Leave ``keep`` of the array's steps; judge taps by ``few`` images or all."""
        machine = self.board.config
        knobs = replace(
            self.config.slices,
            keep=keep,
            rounds=1,
            tn=machine.tn,
            ti=machine.ti,
            seed=self.config.seed,
        )
        return lower_slices(
            model,
            self.images[:few],
            knobs,
            cost=self.array_steps,
            fine_tune=fine_tune,
            labels=self.labels[:few],
        )[0]

    def finished(self, base: nn.Module, model: nn.Module) -> nn.Module:
        """Fine-tune; keep that if it is no worse, and costs no more."""
        if not self.config.finish.epochs or not self.trials:
            return model

        def build(checkpoint: Path) -> tuple[nn.Module, None]:
            tune = self.tuner(base, self.config.finish, "fine-tuning", checkpoint)
            assert tune is not None
            return tune(model), None

        tuned = self.stage("fine-tuning", base, build)[0]
        value, target = self.validate(tuned), f"{self.config.finish.epochs} epochs"
        spent = self.cost(tuned, self.shape)
        better = value >= self.validate(model) and spent <= self.cost(model, self.shape)
        self.trials.append(Trial("fine-tune", target, value, spent, taken=better))
        return tuned if better else model

    def integers(self, base: nn.Module, model: nn.Module) -> Graph:
        """Quantize; train the integers on if that is asked for, and keep the best on validation."""
        from hwgen.quantize import fine_tune_quantized

        knobs = replace(self.config.integers, seed=self.config.seed)
        if not knobs.epochs:
            return self.quantized(model)
        if not self.config.distill:
            knobs = replace(knobs, distill_weight=0.0)
        graph, report = fine_tune_quantized(
            copy.deepcopy(model).to(device_of(self.model)),
            self.samples(),
            knobs,
            calibration=self.inputs(model),
            teacher=base,
            validate=self.validate,
            checkpoint=self.folder / f"integers-{digest(knobs)[:8]}.checkpoint",
            progress=self.tick,
            name="integers",
        )
        before, best = report.accuracies[0], report.accuracies[report.best_epoch]
        self.note(
            f"integers: right on {before:.2%} of the validation images when quantized, on "
            f"{best:.2%} after {report.best_epoch} of {knobs.epochs} epochs"
        )
        return graph

    def quantized(self, model: nn.Module) -> Graph:
        """Quantize after training."""
        from hwgen.quantize import quantize_model

        inputs = self.inputs(model)
        return quantize_model(model, inputs[:1], inputs)

    def inputs(self, model: nn.Module) -> torch.Tensor:
        """Return the calibration images as the network is fed them."""
        return normalise(self.images, preprocess=preprocess_of(model)).contiguous()

    def compiled(self, graph: Graph, fed: Calibration) -> Bundle:
        """Compile the integers for the board."""
        from hwgen.backends import program

        return program.emit(
            graph,
            self.board.config,
            name=type(self.model).__name__,
            preprocess=fed.preprocess,
            labels=fed.labels,
        )

    def calibration(self, model: nn.Module) -> Calibration:
        """Return what `shears compile` takes beside the network."""
        from hwgen.quantize import Calibration

        fed, names = preprocess_of(model), self.splits.train.class_names
        outputs = predict(model, self.splits.train.images[:1]).shape[1]
        return Calibration(
            self.inputs(model).numpy(),
            for_channels(fed, self.shape[0]),
            tuple(names) if len(names) == outputs else None,
        )

    def _knobs(self) -> dict[str, Any]:
        """Return the config as plain values, without what the pipeline decides itself."""
        knobs: dict[str, Any] = json.loads(json.dumps(asdict(self.config), default=str))
        for name, unused in _DECIDED.items():
            knobs[name] = {key: value for key, value in knobs[name].items() if key not in unused}
        return knobs

    def figures(self, model: nn.Module, graph: Graph) -> Figures:
        """Measure one network and its integers; this is where the test split is seen."""
        test = self.splits.test
        return Figures(
            validation=self.validate(model),
            test=accuracy(model, test.images, test.labels),
            int8_test=accuracy(graph, test.images, test.labels),
            macs=round(macs(model, self.shape)),
            parameters=round(parameters(model, self.shape)),
            steps=round(self.array_steps(model, self.shape)),
            cycles=round(predicted_cycles(model, self.shape, self.config.board)),
        )

    def report(
        self,
        base: nn.Module,
        smaller: nn.Module,
        graph: Graph,
        floor: float,
        described: dict[str, str],
    ) -> CompressionReport:
        """Measure both networks and gather what was done."""
        figures = []
        for number, measured in enumerate(((base, self.quantized(base)), (smaller, graph))):
            self.tick("measuring", number, 2)
            figures.append(self.figures(*measured))
        self.tick("measuring", 2, 2)
        machine = self.board.config
        return CompressionReport(
            before=figures[0],
            after=figures[1],
            floor=floor,
            cost=self.config.cost,
            trials=self.trials,
            refused=self.refused,
            untried=self.untried,
            layers=layer_rows(base, smaller, self.images, machine.tn, machine.ti),
            config=self._knobs(),
            preprocess=preprocess_of(base),
            seed=self.config.seed,
            board=self.board.key,
            clock_hz=self.board.accelerator_hz,
            device=_device_name(device_of(self.model)),
            images={name: len(split) for name, split in self.parts.items()},
            seconds=self.seconds,
            **described,
        )


def _on_cpu(model: nn.Module) -> nn.Module:
    """Return the model in eval mode on the CPU; a copy if it lies elsewhere."""
    elsewhere = device_of(model).type != "cpu"
    return (copy.deepcopy(model).cpu() if elsewhere else model).eval()


def _seconds(path: Path) -> float:
    """Return what earlier parts of a stage took; 0 where nothing that can be read says so."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return 0.0


def _device_name(device: torch.device) -> str:
    """Name what trains here."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}), threads: {torch.get_num_threads()}"
