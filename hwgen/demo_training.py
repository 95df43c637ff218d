# SPDX-License-Identifier: Apache-2.0
"""Models: everything the demo learns, from the bundled frames to a compressed crop classifier.

``python -m hwgen.demo_training`` trains (or finds in the cache) the baseline that sees the whole
frame, the foreground predictor, the crop classifier and its compressed copy, and prints what each
of them gets right and costs. Two trainings run side by side, each in a process of its own with
one thread, so that the figures do not depend on the number of cores.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hwgen import datasets, models
from hwgen.arch import crop as crop_rule
from hwgen.arch.files import replacing
from hwgen.compress import (
    budget,
    cost,
    cropping,
    kernel_reduction,
    relevance,
    structure,
    training,
)
from hwgen.compress.budget import BudgetConfig, BudgetReport, Step, compress_to_budget
from hwgen.compress.cropping import (
    PredictorConfig,
    crop_all,
    iou,
    jitter_boxes,
    predict_boxes,
    train_predictor,
)
from hwgen.compress.inputs import MEAN, STD
from hwgen.compress.structure import load_compressed
from hwgen.compress.training import (
    Samples,
    Tick,
    TrainConfig,
    accuracy,
    load_saved,
    save_atomically,
    train,
)
from hwgen.datasets import FrameConfig, Splits, digits_in_photographs, load_npz


@dataclass(frozen=True)
class DemoConfig:
    """What the demo trains.

    Attributes
    ----------
    frames
        The bundled data.
    crop_side
        Height and width that the crop classifier sees.
    predictor
        The predictor and the side that it sees.
    crop, frame
        Training of the crop classifier on jittered true boxes, and of the full-frame baseline.
        The baseline starts from the crop classifier's weights: from scratch it would need several
        times the epochs to get as far.
    jitter
        Error of the boxes in training, as a share of the frame.
    max_loss
        The accuracy budget of the compression, on validation frames.
    retrain, retrain_share, finish
        Training after each step of the compression, the part of the frames that it uses, and
        training at the end.
    """

    frames: FrameConfig = FrameConfig()
    crop_side: int = 32
    predictor: PredictorConfig = PredictorConfig()
    crop: TrainConfig = TrainConfig(epochs=8)
    frame: TrainConfig = TrainConfig(epochs=7)
    jitter: float = 0.04
    max_loss: float = 0.01
    retrain: TrainConfig = TrainConfig(epochs=1, learning_rate=1e-3)
    retrain_share: float = 0.5
    finish: TrainConfig = TrainConfig(epochs=3, learning_rate=1.5e-3)
    seed: int = 0


@dataclass(frozen=True)
class DemoModels:
    """What the demo runs and reports. All networks are in eval mode.

    Attributes
    ----------
    frame_classifier, predictor, crop_classifier, compressed_classifier
        Take ``(pixel / 255 - mean) / std`` as (N, 3, side, side) float32; see the ``_side`` fields.
    splits
        The frames; nothing but :attr:`accuracies` has been measured on ``splits.test``.
    accuracies
        On the test frames: "full_frame", "cropped", "compressed", each in [0, 1].
    validation_accuracies
        Likewise on the validation frames.
    iou
        The predictor's mean on the test frames.
    macs, tap_steps
        "full_frame", "predictor", and "cropped" and "compressed" with the predictor's included.
    compression
        The budget's report.
    seconds
        What each stage took when it was trained, in seconds of one core.
    cached
        Whether everything came from the cache.
    """

    frame_classifier: nn.Module
    predictor: nn.Module
    crop_classifier: nn.Module
    compressed_classifier: nn.Module
    splits: Splits
    accuracies: dict[str, float]
    validation_accuracies: dict[str, float]
    iou: float
    macs: dict[str, float]
    tap_steps: dict[str, float]
    compression: BudgetReport
    seconds: dict[str, float]
    cached: bool
    frame_side: int = 64
    predictor_side: int = 32
    crop_side: int = 32
    mean: float = MEAN
    std: float = STD


def train_demo(
    cache_dir: str | Path,
    seed: int = 0,
    progress: Tick | None = None,
    config: DemoConfig | None = None,
) -> DemoModels:
    """Train the demo's networks, or load those that have been trained.

    Parameters
    ----------
    cache_dir
        Finished networks and checkpoints are kept in a folder in it, named by a digest of the
        config, the seed and the code that trains. An interrupted run goes on from there.
    seed
        Replaces the config's.
    progress
        See :func:`progress_bars`; must bear being called from two threads.
    config
        The defaults of :class:`DemoConfig` if None.
    """
    config = replace(config or DemoConfig(), seed=seed)
    run = _Run(Path(cache_dir) / f"demo-{_digest(config)}", config, progress)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with run.elsewhere("predictor"):
            crop_classifier = run.crop_classifier()
        with run.elsewhere("frame"):
            compressed, report = run.compressed()
        frame_classifier, predictor = run.frame_classifier(), run.predictor()
        return run.measure(frame_classifier, predictor, crop_classifier, compressed, report)
    finally:
        torch.set_num_threads(threads)


def _digest(config: DemoConfig) -> str:
    """Return 16 hexadecimal digits of the config and of the source of everything that trains."""
    digest = hashlib.sha256(repr(config).encode())
    modules = (budget, cost, cropping, kernel_reduction, relevance, structure, training, models)
    files = [Path(str(module.__file__)) for module in (*modules, crop_rule)] + [Path(__file__)]
    files += sorted(Path(str(datasets.__file__)).parent.glob("*.py"))
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@dataclass
class _Run:
    """One training of the demo: its folder, its data, and what has been measured."""

    folder: Path
    config: DemoConfig
    progress: Tick | None
    seconds: dict[str, float] = field(default_factory=dict)
    built: bool = False

    def __post_init__(self) -> None:
        frames = replace(self.config.frames, seed=self.config.seed)
        self.splits = self._frames(frames)
        torch.manual_seed(self.config.seed)
        self.new_classifier = models.demo_classifier(self.splits.train.num_classes)
        self.new_predictor = models.ForegroundPredictor(self.config.predictor.side)

    def _frames(self, config: FrameConfig) -> Splits:
        """Load the frames, or make and keep them."""
        path = self.folder / "frames.npz"
        names = ("train", "validation", "test")
        if not path.exists():
            splits = digits_in_photographs(config)
            arrays: dict[str, Any] = {"class_names": splits.train.class_names}
            for name in names:
                part = getattr(splits, name)
                arrays |= {f"{name}_images": part.images, f"{name}_labels": part.labels}
                arrays[f"{name}_boxes"] = part.boxes
            with replacing(path) as temporary:
                np.savez(temporary, **arrays)
        return Splits(**{name: load_npz(path, name) for name in names})

    @contextmanager
    def elsewhere(self, name: str) -> Iterator[None]:
        """Train the stage ``name`` in another process while the body runs."""
        if (self.folder / f"{name}.pt").exists():
            yield
            return
        root = str(Path(__file__).resolve().parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        with subprocess.Popen(
            [sys.executable, "-m", "hwgen.demo_training", "--stage", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        ) as process:
            errors: list[bytes] = []
            readers = [
                threading.Thread(target=self._relay, args=(process.stdout,)),
                threading.Thread(target=lambda: errors.extend(process.stderr or ())),
            ]
            for reader in readers:
                reader.start()
            try:
                assert process.stdin is not None
                process.stdin.write(pickle.dumps((self.folder, self.config)))
                process.stdin.close()
                yield
                process.wait()
            except BaseException:
                process.kill()
                raise
            finally:
                for reader in readers:
                    reader.join()
        if process.returncode:
            text = b"".join(errors[-20:]).decode(errors="replace")
            raise RuntimeError(f"training of {name} ended with {process.returncode}:\n{text}")
        self.built = True

    def _relay(self, lines: Any) -> None:
        """Pass the other process's progress on."""
        for line in lines:
            name, done, total = line.decode().rstrip("\n").split("\t")
            if self.progress is not None:
                self.progress(name, int(done), int(total))

    def stage(
        self, name: str, blank: nn.Module, build: Callable[[Path], tuple[nn.Module, dict[str, Any]]]
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Load a finished stage, or build it (given a checkpoint file) and keep it."""
        path, checkpoint = self.folder / f"{name}.pt", self.folder / f"{name}.checkpoint"
        if not path.exists():
            began = time.process_time()
            model, record = build(checkpoint)
            seconds = time.process_time() - began
            state = {"model": model.state_dict(), "record": record, "seconds": seconds}
            save_atomically(state, path)
            checkpoint.unlink(missing_ok=True)
            self.built = True
        held = load_saved(path, "a network of an earlier run")
        self.seconds[name] = held["seconds"]
        return load_compressed(blank, held["model"]).eval(), held["record"]

    def seeded(self, knobs: TrainConfig) -> TrainConfig:
        """Return the knobs with the run's seed."""
        return replace(knobs, seed=self.config.seed)

    def predictor(self) -> nn.Module:
        """Train the foreground predictor on true boxes."""
        data, knobs = self.splits.train, self.config.predictor
        boxes = data.boxes
        assert boxes is not None

        def build(checkpoint: Path) -> tuple[nn.Module, dict[str, Any]]:
            config = PredictorConfig(knobs.side, self.seeded(knobs.train))
            model, _ = train_predictor(
                self.new_predictor,
                data.images,
                boxes,
                config,
                checkpoint=checkpoint,
                progress=self.progress,
            )
            return model, {}

        return self.stage("predictor", self.new_predictor, build)[0]

    def crops(self, boxes: np.ndarray, share: float = 1.0) -> Samples:
        """Return training samples: each epoch's crops by freshly jittered boxes.

        With a ``share`` below 1, every epoch has another random part of the frames.
        """
        data, config = self.splits.train, self.config

        def samples(epoch: int) -> tuple[np.ndarray, np.ndarray]:
            rng = np.random.default_rng((config.seed, epoch, 1))
            chosen = rng.permutation(len(data))[: round(share * len(data))]
            jittered = jitter_boxes(boxes[chosen], config.jitter, rng)
            return crop_all(data.images[chosen], jittered, config.crop_side), data.labels[chosen]

        return samples

    def crop_classifier(self) -> nn.Module:
        """Train the crop classifier on jittered true boxes."""
        boxes = self.splits.train.boxes
        assert boxes is not None

        def build(checkpoint: Path) -> tuple[nn.Module, dict[str, Any]]:
            model, _ = train(
                self.new_classifier,
                self.crops(boxes),
                self.seeded(self.config.crop),
                checkpoint=checkpoint,
                progress=self.progress,
                name="crop classifier",
            )
            return model, {}

        return self.stage("crop", self.new_classifier, build)[0]

    def frame_classifier(self) -> nn.Module:
        """Train the baseline on whole frames, from the crop classifier's weights."""
        data = self.splits.train

        def build(checkpoint: Path) -> tuple[nn.Module, dict[str, Any]]:
            model, _ = train(
                self.crop_classifier(),
                lambda _: (data.images, data.labels),
                self.seeded(self.config.frame),
                checkpoint=checkpoint,
                progress=self.progress,
                name="full-frame classifier",
            )
            return model, {}

        return self.stage("frame", self.new_classifier, build)[0]

    def compressed(self) -> tuple[nn.Module, BudgetReport]:
        """Compress the crop classifier under the budget, on crops by predicted boxes."""
        config, splits = self.config, self.splits
        side = config.crop_side
        classifier, predictor = self.crop_classifier(), self.predictor()

        def build(checkpoint: Path) -> tuple[nn.Module, dict[str, Any]]:
            found = predict_boxes(predictor, splits.train.images, config.predictor.side)
            samples, some_samples = self.crops(found), self.crops(found, config.retrain_share)
            held_out = self.cropped(predictor, splits.validation.images)
            rng = np.random.default_rng(config.seed)
            some = rng.choice(len(found), min(512, len(found)), replace=False)
            calibration = crop_all(splits.train.images[some], found[some], side)
            count = iter(range(10**6))

            def retrain(model: nn.Module) -> nn.Module:
                epoch = 1000 + next(count)  # other crops after each step
                knobs = self.seeded(config.retrain)
                return train(model, lambda e: some_samples(epoch + e), knobs, teacher=classifier)[0]

            model, report = compress_to_budget(
                classifier,
                calibration,
                lambda model: accuracy(model, held_out, splits.validation.labels),
                BudgetConfig(max_loss=config.max_loss),
                fine_tune=retrain,
                checkpoint=checkpoint,
                progress=self.progress,
            )
            finished, _ = train(
                model,
                samples,
                self.seeded(config.finish),
                teacher=classifier,
                progress=self.progress,
                name="compressed classifier",
            )
            final = accuracy(finished, held_out, splits.validation.labels)
            if final >= report.accuracy:
                model, report.accuracy = finished, final
            return model, asdict(report)

        model, record = self.stage("compressed", self.new_classifier, build)
        record = dict(record)
        record["steps"] = [Step(**step) for step in record["steps"]]
        return model, BudgetReport(**record)

    def cropped(self, predictor: nn.Module, images: np.ndarray) -> np.ndarray:
        """Return what the crop classifier sees of these frames."""
        boxes = predict_boxes(predictor, images, self.config.predictor.side)
        return crop_all(images, boxes, self.config.crop_side)

    def measure(
        self,
        frame_classifier: nn.Module,
        predictor: nn.Module,
        crop_classifier: nn.Module,
        compressed: nn.Module,
        report: BudgetReport,
    ) -> DemoModels:
        """Measure everything once, and gather it."""
        config, splits = self.config, self.splits
        accuracies = []
        for data in (splits.test, splits.validation):
            crops = self.cropped(predictor, data.images)
            accuracies.append(
                {
                    "full_frame": accuracy(frame_classifier, data.images, data.labels),
                    "cropped": accuracy(crop_classifier, crops, data.labels),
                    "compressed": accuracy(compressed, crops, data.labels),
                }
            )
        assert splits.test.boxes is not None
        boxes = predict_boxes(predictor, splits.test.images, config.predictor.side)
        sides = config.frames.frame_side, config.predictor.side, config.crop_side
        costs = []
        for function in (cost.macs, cost.tap_steps):
            finder = function(predictor, (3, sides[1], sides[1]))
            costs.append(
                {
                    "full_frame": function(frame_classifier, (3, sides[0], sides[0])),
                    "predictor": finder,
                    "cropped": finder + function(crop_classifier, (3, sides[2], sides[2])),
                    "compressed": finder + function(compressed, (3, sides[2], sides[2])),
                }
            )
        return DemoModels(
            frame_classifier=frame_classifier,
            predictor=predictor,
            crop_classifier=crop_classifier,
            compressed_classifier=compressed,
            splits=splits,
            accuracies=accuracies[0],
            validation_accuracies=accuracies[1],
            iou=float(iou(boxes, splits.test.boxes).mean()),
            macs=costs[0],
            tap_steps=costs[1],
            compression=report,
            seconds=dict(self.seconds),
            cached=not self.built,
            frame_side=sides[0],
            predictor_side=sides[1],
            crop_side=sides[2],
        )


@contextmanager
def progress_bars() -> Iterator[Tick]:
    """Show a bar on standard error for each name that the callback is called with.

    Where that is no terminal, a line is written when a name is first heard of, when it is done and
    in between once a minute.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = TextColumn("{task.description:>24}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def tick(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            if done == 1:  # of one more work of this name
                bars.reset(tasks[name], total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield tick


def _lines(every: float = 60.0) -> Tick:
    """Return a callback that writes lines, of each name at most one in so many seconds."""
    last: dict[str, float] = {}

    def tick(name: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if name not in last or now - last[name] >= every or done == total:
            print(f"{name}: {done} of {total}", file=sys.stderr, flush=True)
            last[name] = now

    return tick


def _train_stage(name: str) -> None:
    """Be the other process of :meth:`_Run.elsewhere`: config from stdin, progress to stdout."""

    def tick(name: str, done: int, total: int) -> None:
        print(name, done, total, sep="\t", flush=True)

    folder, config = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(1)
    run = _Run(folder, config, tick)
    {"predictor": run.predictor, "frame": run.frame_classifier}[name]()


def main(arguments: list[str] | None = None) -> None:
    """Train the demo's networks and print a table."""
    parser = argparse.ArgumentParser(description=str(main.__doc__))
    parser.add_argument("--cache", default="build/demo/cache", help="folder of trained networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=("predictor", "frame"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.stage:
        _train_stage(chosen.stage)
        return
    began = time.perf_counter()
    with progress_bars() as tick:
        demo = train_demo(chosen.cache, chosen.seed, tick)
    print(f"{'':12}{'accuracy':>10}{'(validation)':>14}{'MACs':>14}{'tap steps':>12}{'':>8}")
    for name, found in demo.accuracies.items():
        steps = demo.tap_steps[name]
        print(
            f"{name:12}{found:>10.2%}{demo.validation_accuracies[name]:>14.2%}"
            f"{demo.macs[name]:>14,.0f}{steps:>12,.0f}"
            f"{steps / demo.tap_steps['full_frame']:>8.1%}"
        )
    print(f"predictor: mean IoU {demo.iou:.3f}, {demo.tap_steps['predictor']:,.0f} tap steps")
    for step in demo.compression.steps:
        print(f"  {step.method:6}{step.target:18}{step.accuracy:>8.2%}{step.cost:>10,.0f}")
    print(f"refused: {demo.compression.rejected}")
    stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in demo.seconds.items())
    print(f"seconds of one core: {stages}; in all {sum(demo.seconds.values()):.0f}")
    print(f"{time.perf_counter() - began:.0f} s" + (" (from the cache)" if demo.cached else ""))


if __name__ == "__main__":
    main()
