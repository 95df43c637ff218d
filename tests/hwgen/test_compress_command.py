# SPDX-License-Identifier: Apache-2.0
"""Tests: `shears compress`, from a network and its data to a report and a bundle."""

from __future__ import annotations

import copy
import json
import math
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.patches import Polygon, Rectangle
from PIL import Image
from torch import nn

from hwgen.arch import Bundle, GoldenRun
from hwgen.boards import load_board
from hwgen.cli import main
from hwgen.compress import (
    ApproximationConfig,
    Augment,
    BudgetConfig,
    CompressionConfig,
    KernelConfig,
    TrainConfig,
    accuracy,
    compress_network,
    for_machine,
    load_compressed,
    macs,
    normalise,
    parameters,
    parse_budget,
    predicted_cycles,
    train,
    with_preprocess,
)
from hwgen.compress.budget import floor_of
from hwgen.compress.pipeline import _Run, cost_named
from hwgen.compress.relevance import FineTune
from hwgen.compress.report import (
    CompressionReport,
    Figures,
    LayerRow,
    Trial,
    _kernel_picture,
    draw_accuracy,
    draw_kernels,
    draw_relevance,
    layer_rows,
    write_report,
)
from hwgen.compress.training import Samples
from hwgen.datasets import Dataset, Splits, load_npz, load_splits
from hwgen.demo_training import progress_bars
from hwgen.quantize import quantize_model, read_calibration
from tests.support.retraining import marking

ROOT = Path(__file__).parents[2]
SHAPE = (3, 16, 16)

MODEL = """
import torch
from torch import nn

def net(classes=4, side=16):
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, 2, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, classes),
    )

def narrow():
    return net(classes=3)

def softmax():
    return nn.Sequential(*net(), nn.Softmax(1))

class Two(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3)), x
"""


def _part(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four classes: which quarter of the frame holds a bright cross."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    images = rng.integers(0, 120, (count, 16, 16, 3))
    for image, label in zip(images, labels, strict=True):
        y, x = 8 * (label // 2), 8 * (label % 2)
        image[y + 3 : y + 5, x : x + 8] += 60
        image[y : y + 8, x + 3 : x + 5] += 60
    return images.astype(np.uint8), labels


def _net() -> nn.Module:
    names: dict[str, object] = {}
    exec(MODEL, names)
    torch.manual_seed(0)
    return names["net"]()  # type: ignore[operator]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model file, trained weights and data."""
    folder = tmp_path_factory.mktemp("compress")
    (folder / "net.py").write_text(MODEL)
    arrays = {}
    for seed, (name, count) in enumerate((("train", 200), ("validation", 100), ("test", 60))):
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = _part(count, seed)
    np.savez(folder / "data.npz", **arrays)
    images, labels = arrays["train_images"], arrays["train_labels"]
    trained, _ = train(_net(), lambda _: (images, labels), TrainConfig(epochs=6, batch_size=25))
    torch.save(trained.state_dict(), folder / "weights.pt")
    return folder


@pytest.fixture(scope="module")
def splits(folder: Path) -> Splits:
    return load_splits(folder / "data.npz")


@pytest.fixture(scope="module")
def trained(folder: Path) -> nn.Module:
    return load_compressed(_net(), torch.load(folder / "weights.pt", weights_only=True)).eval()


QUICK = CompressionConfig(
    max_loss=0.05,
    cost="steps",
    step=TrainConfig(epochs=1, learning_rate=1e-3, batch_size=25),
    step_share=0.5,
    finish=TrainConfig(epochs=1, learning_rate=1e-3, batch_size=25),
    max_steps=2,
    calibration=50,
)


def compress(folder: Path, *options: str, name: str = "net", data: str = "data.npz") -> int:
    """Run `shears compress` with few epochs."""
    return main(
        [
            *("compress", f"{folder / 'net.py'}:{name}", "--data", str(folder / data)),
            *("--out", str(folder / "out"), "--epochs", "1", "--step-epochs", "0.5", *options),
        ]
    )


def test_the_command_compresses_reports_and_hands_on_to_compile(
    folder: Path, splits: Splits, trained: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything that is written agrees, and what is printed to compile it does."""
    weights, result = str(folder / "weights.pt"), folder / "result.json"
    options = ("--weights", weights, "--budget", "5%", "--max-steps", "2")
    assert compress(folder, *options, "--json", str(result)) == 0
    out = folder / "out"
    report = json.loads((out / "report.json").read_text())
    assert report == json.loads(result.read_text())
    compressed = load_compressed(_net(), torch.load(out / "compressed.pt", weights_only=True))
    before, after = report["before"], report["after"]
    for network, figures in ((trained, before), (compressed, after)):
        part = splits.validation
        assert accuracy(network, part.images, part.labels) == figures["validation"]
        assert accuracy(network, splits.test.images, splits.test.labels) == figures["test"]
        assert macs(network, SHAPE) == figures["macs"]
        assert parameters(network, SHAPE) == figures["parameters"]
        assert predicted_cycles(network, SHAPE) == figures["cycles"]
        fed = torch.from_numpy(read_calibration(out / "calibration.npz").images)
        integers = quantize_model(network, fed[:1], fed)
        right = accuracy(integers, splits.test.images, splits.test.labels)
        assert right == figures["int8_test"] > 0.25
    assert after["validation"] >= report["floor"] == floor_of(before["validation"], 0.05)
    assert after["cycles"] < before["cycles"] and after["macs"] < before["macs"]
    assert sum(layer["macs"] for layer in report["layers"]) == after["macs"]
    assert report["cost"] == "cycles" and report["board"] == "pynq-z2" and report["seed"] == 0
    assert report["images"] == {"train": 200, "validation": 100, "test": 60}
    assert report["run"].startswith("shears compress ") and "--budget 5%" in report["run"]
    assert report["trials"][-1]["method"] == "fine-tune"
    assert all(trial["accuracy"] >= report["floor"] for trial in report["trials"] if trial["taken"])

    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and f"{after['cycles']:,}" in page
    assert 'src="/' not in page and "http" not in page
    for name in ("accuracy", "kernels", "relevance"):
        with Image.open(out / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5

    printed = capsys.readouterr().out
    assert f"{before['cycles']:,}" in printed
    command = next(line for line in printed.splitlines() if "shears compile" in line)
    assert main(shlex.split(command)[1:]) == 0
    bundle = Bundle.load(out / "bundle")
    assert bundle.macs < before["macs"] and bundle.labels == tuple("0123")
    assert bundle.mean == (0.5,) * 3 and bundle.std == (0.25,) * 3  # so that it takes pictures


def _same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_an_interrupted_run_ends_the_same(
    splits: Splits, trained: nn.Module, tmp_path: Path
) -> None:
    """Stopped in every stage, it goes on, does no stage twice, and gives the same network."""
    whole, expected = compress_network(trained, splits, tmp_path / "whole", QUICK)
    assert [trial.method for trial in expected.trials if trial.taken]
    stops = ["compression", "retraining", "slices", "fine-tuning", "measuring"]
    began: list[str] = []

    def progress(name: str, done: int, total: int) -> None:
        began.append(name)
        if stops and name.startswith(stops[0]):
            stops.pop(0)
            raise KeyboardInterrupt

    for _ in range(len(stops)):
        with pytest.raises(KeyboardInterrupt):
            compress_network(trained, splits, tmp_path / "parts", QUICK, progress=progress)
    began.clear()
    parts, report = compress_network(trained, splits, tmp_path / "parts", QUICK, progress=progress)
    assert _same(parts, whole) and set(began) == {"measuring"}
    assert replace(report, seconds=expected.seconds) == expected
    other, _ = compress_network(trained, splits, tmp_path / "parts", replace(QUICK, max_steps=0))
    assert not _same(other, whole)  # another config finds nothing of this one's


def test_a_network_is_fed_what_it_was_trained_on(
    folder: Path, trained: nn.Module, splits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    """--mean and --std reach training, figures, calibration and bundle; without, it is told."""
    mean, std = (-1.0, 2.0, 0.3), (0.5, 0.2, 0.9)
    other = copy.deepcopy(trained)
    m, s = (torch.tensor(values)[:, None, None] for values in (mean, std))
    with torch.no_grad():  # first layers that take the other numbers
        offset = other[0].weight * ((0.5 - m) / 0.25)
        other[1].running_mean.add_(offset.sum(dim=(1, 2, 3)))
        other[0].weight.mul_(s / 0.25)
    torch.save(other.state_dict(), folder / "other-mean.pt")
    weights = ("--weights", str(folder / "other-mean.pt"), "--budget", "5%", "--max-steps", "1")
    numbers = ("--mean=-1,2,0.3", "--std", "0.5,0.2,0.9")
    out = folder / "fed"
    assert compress(folder, *weights, *numbers, "--out", str(out)) == 0
    said = capsys.readouterr().err
    assert "with a mean of -1, 2, 0.3 and a std of 0.5, 0.2, 0.9; if it was more" in said
    report = json.loads((out / "report.json").read_text())
    fed = with_preprocess(other, mean, std)
    part = splits.validation
    right = accuracy(fed, part.images, part.labels)
    assert report["before"]["validation"] == right
    assert report["preprocess"] == [list(mean), list(std)]
    held = read_calibration(out / "calibration.npz")
    assert held.preprocess == (mean, std) and held.labels == tuple("0123")
    pictures = normalise(splits.train.images, preprocess=(mean, std)).numpy()
    assert np.array_equal(np.sort(held.images, axis=None), np.sort(pictures, axis=None))
    options = ("--calibration", str(out / "calibration.npz"), "--out", str(out / "bundle"))
    where = ("--weights", str(out / "compressed.pt"))
    assert main(["compile", f"{folder / 'net.py'}:net", *where, *options]) == 0
    bundle = Bundle.load(out / "bundle")
    picture = normalise(part.images[:1], preprocess=(mean, std))[0].numpy()
    assert np.array_equal(bundle.preprocess(part.images[0]), picture)
    capsys.readouterr()
    assert compress(folder, *weights, *numbers[:1]) == 1
    assert "--mean and --std must be given together" in capsys.readouterr().err
    assert compress(folder, *weights, "--mean", "0,5", "--std", "1,b") == 1
    assert "--std must be numbers with commas between" in capsys.readouterr().err


def test_what_was_trained_is_kept_for_another_budget(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network that `--train` made is written, and taken by a run with other knobs."""
    out = folder / "trained"
    common = ("--train", "4", "--max-steps", "0", "--methods", "trim", "--out", str(out))
    assert compress(folder, *common, "--budget", "5%") == 0
    printed = capsys.readouterr()
    assert "original.pt" in printed.out and "finished in an earlier run" not in printed.err
    first = torch.load(out / "original.pt", weights_only=True)
    assert compress(folder, *common, "--budget", "2%") == 0
    assert "training: finished in an earlier run, taken from" in capsys.readouterr().err
    again = torch.load(out / "original.pt", weights_only=True)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert compress(folder, "--weights", str(out / "original.pt"), "--max-steps", "0") == 0


@pytest.mark.parametrize(("right", "count"), [(76, 110), (55, 100), (57, 100), (54, 110), (0, 9)])
def test_a_floor_is_the_share_of_images_that_is_meant(right: int, count: int) -> None:
    for lost in range(right + 1):
        floor = floor_of(right / count, lost / count)
        assert (right - lost) / count >= floor > (right - lost - 1) / count
        assert right - math.ceil(count * floor) == lost


def test_notes_say_what_may_not_be_meant(
    splits: Splits, trained: nn.Module, tmp_path: Path
) -> None:
    def said(model: nn.Module, some: Splits = splits, **knobs: object) -> str:
        lines: list[str] = []
        config = replace(QUICK, **knobs)  # type: ignore[arg-type]
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        compress_network(model, some, folder, config, notes=lines.append)
        return "\n".join(lines)

    plain = said(trained, rejections=1, max_steps=1)
    assert "right on 100.00% of the 100 validation images" in plain
    assert "wrong on 5 of them more" in plain and "smaller losses" not in plain
    assert re.search(r"steps: 1 taken, \d refused; \d+ more layers could be tried", plain)
    assert re.search(r"slices, 0\.\d+ of the array's steps kept: right on \d", plain)
    few = replace(splits, validation=splits.validation.take(slice(0, 20)))
    assert "wrong on 1 of them more; more validation images" in said(trained, few, max_steps=0)
    frozen = copy.deepcopy(trained)
    for layer in (frozen[0], frozen[3], frozen[7]):
        layer.weight.requires_grad_(False)
    whole = tmp_path / "same"
    for model in (frozen, trained):  # what is frozen is another run
        compress_network(model, splits, whole, replace(QUICK, methods=("trim",), max_steps=1))
    assert len(list((whole / "checkpoints").iterdir())) == 2
    lines = said(frozen, max_steps=0)
    assert "3 tensors (0.weight, ...) require no gradient" in lines
    assert "slices: kernels alone cannot leave 0.9 of the array's steps" in lines


def test_the_picture_shows_every_network_within_the_budget(
    splits: Splits, trained: nn.Module, tmp_path: Path
) -> None:
    """Also those that were not taken; what lost too much stands on the lower edge."""
    _, report = compress_network(trained, splits, tmp_path, replace(QUICK, max_steps=0))
    before = replace(report.before, validation=0.9)
    trials = [
        Trial("slices", "keep 0.6", 0.93, 900, False),
        Trial("slices", "keep 0.5", 0.892, 800, True),
        Trial("slices", "keep 0.4", 0.5, 700, False),
    ]
    report = replace(
        report, before=before, after=replace(before, validation=0.9), floor=0.89, trials=trials
    )
    assert [report.fate(trial) for trial in trials] == [
        "within the budget, not taken", "taken", "not taken"
    ]  # fmt: skip
    axes = draw_accuracy(report).axes[0]
    low, high = axes.get_ylim()
    assert low < 89 and high > 93
    ticks = {text.get_text() for text in axes.get_legend().get_texts()}
    assert "slices, not taken\n(on the lower edge: below)" in ticks
    page = write_report(tmp_path / "page", report).read_text()
    assert "Validation accuracy unchanged, 1.00 allowed." in page
    assert "mean and std: 0.5; 0.25" in page and "&quot;retrain&quot;" not in page


def _report() -> CompressionReport:
    """Return a report of a layer that lost a tile of inputs, a group of outputs and a position."""
    return CompressionReport(
        before=Figures(0.9, 0.9, 0.9, macs=5000, parameters=500, steps=1000, cycles=2000),
        after=Figures(0.88, 0.87, 0.86, macs=2000, parameters=200, steps=600, cycles=1500),
        floor=0.87,
        cost="steps",
        trials=[
            Trial("trim", "conv", 0.91, 800, True),
            Trial("slices", "keep 0.5", 0.8, 500, False),
            Trial("trim", "conv", 0.88, 600, True),
        ],
        refused=[],
        layers=[
            LayerRow(
                "conv", "conv", (1, 2), 32, 16, 48, 32, 5000, 2000, groups_before=3,
                tiles_before=2, taps=[["10"], ["11"]], relevance_before=None, relevance=None,
            )
        ],
        config={},
        seed=0,
        board="pynq-z2",
        clock_hz=100_000_000,
        device="CPU",
        images={"train": 3, "validation": 2, "test": 1},
        seconds={},
    )  # fmt: skip


def test_the_kernel_map_tells_what_is_computed_from_what_is_not() -> None:
    report = _report()
    assert _kernel_picture(report.layers[0], position=2, gap=1).tolist() == [
        [3, 0, 2, 0, 0, 1, 0, 1, 0],
        [0] * 9,
        [0] * 9,
        [3, 0, 3, 0, 0, 1, 0, 1, 0],
        [0] * 9,
        [0] * 9,
        [1, 0, 1, 0, 0, 1, 0, 1, 0],
        [0] * 9,
    ]
    figure = draw_kernels(report)
    key = {
        patch.get_label(): patch.get_facecolor()[:3] for patch in figure.legends[0].get_patches()
    }
    shown = figure.axes[0].images[0].get_array()
    names = ("computed", "position left out", "channels gone")
    assert [tuple(shown[0, x]) for x in (0, 8, 22)] == [key[name] for name in names]


def test_the_accuracy_plot_has_every_network_where_it_is() -> None:
    axes = draw_accuracy(_report()).axes[0]
    points = {dots.get_label(): dots.get_offsets().tolist() for dots in axes.collections}
    edge = points.pop("slices, not taken\n(on the lower edge: below)")
    assert points == {
        "before": [[1000, 100 * 0.9]],
        "trim": [[800, 100 * 0.91], [600, 100 * 0.88]],
        "the result": [[600, 100 * 0.88]],
    }
    assert edge[0][0] == 500 and axes.get_ylim()[0] < edge[0][1] < 87
    path = next(line for line in axes.lines if len(line.get_xdata()) == 3)
    assert path.get_xydata().tolist() == points["before"] + points["trim"]


def test_the_pages_tables_have_each_number_in_its_column(tmp_path: Path) -> None:
    text = write_report(tmp_path, _report()).read_text()
    lines = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", text)]
    head = next(line for line in lines if line[0] == "layer")
    layer = dict(zip(head, lines[lines.index(head) + 1], strict=True))
    assert layer == {
        "layer": "conv",
        "kind": "conv",
        "kernel": "1x2",
        "inputs": "32 \N{RIGHTWARDS ARROW} 16",
        "outputs": "48 \N{RIGHTWARDS ARROW} 32",
        "MACs before": "5,000",
        "MACs after": "2,000",
        "saved": "60.0 %",
        "positions computed": "75.0 %",
    }
    assert ["", "before", "after", "change"] in lines
    assert ["steps of the array", "1,000", "600", "-40.0 %"] in lines
    assert ["2", "slices", "keep 0.5", "80.00 %", "500", "not taken"] in lines


def test_without_a_terminal_progress_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as tick:
        for done in (1, 2, 3):
            tick("training", done, 3)
    assert capsys.readouterr().err == "training: 1 of 3\ntraining: 3 of 3\n"


def test_a_stopped_stage_counts_all_of_its_seconds(
    splits: Splits, trained: nn.Module, tmp_path: Path
) -> None:
    config = replace(QUICK, methods=("trim",))
    waited = 0.5

    def progress(name: str, done: int, total: int) -> None:
        if name == "retraining":
            time.sleep(waited)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress_network(trained, splits, tmp_path, config, progress=progress)
    _, report = compress_network(trained, splits, tmp_path, config)
    assert report.seconds["steps"] >= waited
    assert not list(tmp_path.rglob("*.s"))


def test_the_original_is_the_teacher_unless_told_otherwise(
    splits: Splits, trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[object] = []

    def spy(model: nn.Module, *_: object, teacher: object = None, **__: object) -> object:
        teachers.append(teacher)
        return copy.deepcopy(model), None

    monkeypatch.setattr("hwgen.compress.pipeline.train", spy)
    config = replace(QUICK, methods=("trim",), max_steps=1)
    compress_network(trained, splits, tmp_path / "with", config)
    assert teachers and all(isinstance(t, nn.Module) and _same(t, trained) for t in teachers)
    teachers.clear()
    compress_network(trained, splits, tmp_path / "without", replace(config, distill=False))
    assert teachers and not any(teachers)


def test_a_last_fine_tuning_that_ruins_is_not_taken(
    splits: Splits, trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ruin(model: nn.Module, *_: object, **__: object) -> tuple[nn.Module, None]:
        tuned = marking()(model)
        with torch.no_grad():
            list(tuned.parameters())[-1][0] = 1e6  # the first class, whatever it sees
        return tuned, None

    monkeypatch.setattr("hwgen.compress.pipeline.train", ruin)
    config = replace(QUICK, methods=("trim",), max_steps=1, step=TrainConfig(epochs=0))
    model, report = compress_network(trained, splits, tmp_path, config)
    last = report.trials[-1]
    assert last.method == "fine-tune" and not last.taken and last.accuracy == 0.25
    assert accuracy(model, splits.validation.images, splits.validation.labels) >= report.floor


def test_a_last_fine_tuning_that_costs_more_is_not_taken(
    splits: Splits, trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However good it is: here it is the original once more."""
    monkeypatch.setattr("hwgen.compress.pipeline.train", lambda *_, **__: (trained, None))
    lower = copy.deepcopy(trained)
    with torch.no_grad():
        lower.get_submodule("0").weight.zero_()
    run = _Run(trained, splits, tmp_path, QUICK, None, None)
    step = Trial("lower", "0", 0.9, 1.0, True)
    run.trials = [step]
    assert run.finished(trained, lower) is lower
    right, cost = run.validate(trained), run.cost(trained, SHAPE)
    assert run.trials == [step, Trial("fine-tune", "1 epochs", right, cost, False)]


def test_slices_that_save_nothing_are_not_taken(
    splits: Splits, trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwgen.compress.pipeline.lower_slices", lambda *_, **__: (trained, None))
    run = _Run(trained, splits, tmp_path, QUICK, None, None)
    assert run.slices(trained, trained, floor=0.0) is trained
    assert run.trials and not any(trial.taken for trial in run.trials)


def test_steps_have_the_knobs_given_and_their_share_of_the_images(
    splits: Splits, trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[BudgetConfig] = []
    images: list[int] = []

    def retrain(model: nn.Module, samples: Samples, *_: object, **__: object) -> object:
        images.append(len(samples(0)[0]))
        return model, None

    def steps(
        model: nn.Module, _: object, __: object, config: BudgetConfig, **more: FineTune
    ) -> object:
        configs.append(config)
        more["fine_tune"](model)
        raise KeyboardInterrupt

    monkeypatch.setattr("hwgen.compress.pipeline.train", retrain)
    monkeypatch.setattr("hwgen.compress.pipeline.compress_to_budget", steps)
    config = replace(
        QUICK,
        methods=("approximate", "trim", "slices"),
        step_share=0.25,
        max_steps=7,
        rejections=4,
        statistic="max",
        kernels=KernelConfig(ladder=(5, 1), importance="energy"),
        approximation=ApproximationConfig(terms=3, ridge=0.1),
        seed=9,
    )
    with pytest.raises(KeyboardInterrupt):
        compress_network(trained, splits, tmp_path, config)
    assert images == [50]  # of 200
    assert configs == [
        BudgetConfig(
            max_loss=0.05,
            methods=("trim", "approximate"),
            align=16,
            statistic="max",
            kernels=KernelConfig(ladder=(5, 1), importance="energy", seed=9),
            approximation=ApproximationConfig(terms=3, ridge=0.1, seed=9),
            rejections=4,
            max_steps=7,
        )
    ]


def test_every_option_reaches_the_pipeline(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[CompressionConfig] = []

    def spy(_: nn.Module, __: Splits, ___: Path, config: CompressionConfig, **____: object) -> None:
        seen.append(config)
        raise ValueError("seen")

    monkeypatch.setattr("hwgen.compress.compress_network", spy)
    options = (
        "--budget 3% --cost macs --methods trim,slices --board ulx3s-85f --train 2 --step-epochs "
        "0.25 --epochs 7 --learning-rate 0.004 --max-steps 5 --rejections 4 --seed 9 --flip "
        "--shift 2 --no-distill --integer-epochs 3"
    )
    assert compress(folder, *options.split()) == 1 and "seen" in capsys.readouterr().err
    plain, augment = CompressionConfig(), Augment(flip=True, shift=2)
    assert seen == [
        CompressionConfig(
            max_loss=0.03,
            methods=("trim", "slices"),
            cost="macs",
            board="ulx3s-85f",
            learn=replace(plain.learn, epochs=2, augment=augment),
            step=replace(plain.step, epochs=1, learning_rate=0.002, augment=augment),
            step_share=0.25,
            finish=replace(plain.finish, epochs=7, learning_rate=0.004, augment=augment),
            integers=replace(plain.integers, epochs=3, augment=augment),
            distill=False,
            max_steps=5,
            rejections=4,
            seed=9,
        )
    ]


def test_a_costs_name_is_that_cost(trained: nn.Module) -> None:
    board = load_board("pynq-z2")
    wanted = {
        "macs": macs(trained, SHAPE),
        "parameters": parameters(trained, SHAPE),
        "steps": for_machine(board.config)(trained, SHAPE),
        "cycles": predicted_cycles(trained, SHAPE),
    }
    assert len(set(wanted.values())) == 4
    assert {name: cost_named(name, "pynq-z2")(trained, SHAPE) for name in wanted} == wanted


def test_the_histogram_counts_every_channel(
    trained: nn.Module, splits: Splits, tmp_path: Path
) -> None:
    config = replace(QUICK, methods=("trim",), max_steps=1, finish=TrainConfig(epochs=0))
    _, report = compress_network(trained, splits, tmp_path, config)
    shown = [row for row in report.layers if row.relevance_before is not None]
    for axes, row in zip(draw_relevance(report).axes, shown, strict=False):
        before = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        after = [patch for patch in axes.patches if isinstance(patch, Polygon)]
        assert sum(bar.get_height() for bar in before) == row.outputs_before == 32
        heights = after[0].get_xy()[1:-1:2, 1]  # of the steps' outline, one a bin
        assert heights.sum() == row.outputs
    assert sum(row.outputs for row in shown) < 64


@pytest.mark.parametrize("method", ["trim", "lower", "slices"])
def test_each_method_alone_stays_within_the_budget(
    splits: Splits, trained: nn.Module, tmp_path: Path, method: str
) -> None:
    config = replace(QUICK, methods=(method,), max_steps=1)
    model, report = compress_network(trained, splits, tmp_path, config)
    part = splits.validation
    assert accuracy(model, part.images, part.labels) >= report.floor
    assert {t.method for t in report.trials} <= {method, "fine-tune"}
    assert report.after.steps <= report.before.steps


@pytest.mark.parametrize("cost", ["macs", "parameters"])
def test_without_a_budget_nothing_may_be_lost(
    splits: Splits, trained: nn.Module, tmp_path: Path, cost: str
) -> None:
    """max_loss 0, and no retraining: the result is at least as good as what was given."""
    none = TrainConfig(epochs=0)
    config = replace(QUICK, max_loss=0.0, cost=cost, step=none, finish=none, max_steps=1)
    _, report = compress_network(trained, splits, tmp_path, config)
    assert report.after.validation >= report.before.validation
    assert report.floor == floor_of(report.before.validation, 0.0)
    assert getattr(report.after, cost) <= getattr(report.before, cost)


def test_rows_say_what_is_left_of_each_layer(trained: nn.Module, splits: Splits) -> None:
    """Hand-made: a group of outputs without a tap row, a position left out."""
    smaller = load_compressed(trained, trained.state_dict())
    with torch.no_grad():
        smaller.get_submodule("0").weight[:, :, 0, 0] = 0
        smaller.get_submodule("3").weight[:16, :16, 2] = 0
    rows = {row.name: row for row in layer_rows(trained, smaller, splits.train.images[:20])}
    assert rows["0"].taps == [["0" + "1" * 24]] * 2 and rows["0"].kernel == (5, 5)
    assert sorted(rows["3"].taps) == [["1" * 6 + "000", "1" * 9], ["1" * 9, "1" * 9]]
    assert rows["3"].used == 33 / 36 and rows["3"].macs == 33 / 36 * rows["3"].macs_before
    assert rows["7"].kernel == (4, 4) and rows["7"].relevance is None
    assert len(rows["0"].relevance or ()) == 32


@pytest.mark.parametrize(
    ("text", "value"), [("1%", 0.01), ("0.5 %", 0.005), ("0.01", 0.01), ("0", 0.0), ("0%", 0.0)]
)
def test_budgets_are_percent_or_shares(text: str, value: float) -> None:
    assert parse_budget(text) == value


@pytest.mark.parametrize("text", ["abc", "", "%", "1", "-1%", "100%", "nan"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a share of all images such as 1% or 0.01"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--budget", "abc"), "not 'abc'"),
        (("--budget", "1"), "try 1%"),
        (("--rejections", "0"), "rejections must be at least 1, not 0"),
        (("--json", str(ROOT)), "--json must be a file to write, not the folder"),
        (("--methods", "trim,prune"), "methods must be of"),
        (("--board", "pynq-z9"), "board must be one of"),
        (("--step-epochs", "-0.5"), "--step-epochs must be at least 0, not -0.5"),
        (("--data", "nowhere"), "'nowhere' does not exist"),
        (("--data", __file__), "test_compress_command.py must be an .npz, but it is damaged or"),
        (("--device", "cuda:77"), "--device must be 'cpu', or one that torch has here"),
        (("--step-epochs", "inf"), "--step-epochs must be at least 0, not inf"),
        (("--step-epochs", "nan"), "--step-epochs must be at least 0, not nan"),
        (("--out", __file__), "folder must be one that can be written, not"),
        (("--side", "24"), "must give logits for the data's 3 x 24 x 24 images"),
        ((), "must be a trained one"),
    ],
)
def test_errors_are_clear(
    folder: Path, options: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1 and one line; nothing is written."""
    assert compress(folder, "--out", str(folder / "refused"), *options) == 1
    assert text in capsys.readouterr().err
    assert not (folder / "refused").exists()


def test_networks_that_do_not_fit_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compress(folder, name="narrow") == 1
    assert "a logit for each of the data's 4 classes" in capsys.readouterr().err
    assert compress(folder, name="softmax") == 1
    assert "Softmax" in capsys.readouterr().err
    assert main(["compress", "net.onnx", "--data", str(folder / "data.npz")]) == 1
    assert "give the torch.nn.Module that it was exported from" in capsys.readouterr().err
    torch.save({"other.weight": torch.zeros(1)}, folder / "other.pt")
    assert compress(folder, "--weights", str(folder / "other.pt")) == 1
    assert "state must belong to this model" in capsys.readouterr().err
    assert compress(folder, name="Two") == 1
    assert "the model must return one tensor, not tuple" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compress(folder, "--cost", "time")
    assert "invalid choice: 'time'" in capsys.readouterr().err


def test_a_network_file_may_import_its_neighbour_and_hold_a_dataclass(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "neighbour.py").write_text(MODEL)
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from neighbour import net\n\n@dataclass\nclass Knobs:\n    classes: int = 3\n\n"
        "def narrow():\n    return net(Knobs().classes)\n"
    )
    command = ["compress", "--data", str(folder / "data.npz")]
    assert main([*command, f"{tmp_path / 'mine.py'}:narrow"]) == 1
    assert "a logit for each of the data's 4 classes" in capsys.readouterr().err
    (tmp_path / "lost.py").write_text("import nowhere_at_all")
    assert main([*command, f"{tmp_path / 'lost.py'}:net"]) == 1
    (tmp_path / "lazy.py").write_text(
        "def found():\n    from neighbour import narrow\n    return narrow()\n"
        "def lost():\n    import nowhere_at_all\n"
    )
    for name in ("lost", "lazy"):
        if name == "lazy":
            assert main([*command, f"{tmp_path / 'lazy.py'}:lost"]) == 1
        error = capsys.readouterr().err
        assert f"{name}.py cannot be imported: No module named 'nowhere_at_all'" in error
        assert "pip install" not in error
    assert main([*command, f"{tmp_path / 'lazy.py'}:found"]) == 1
    assert "a logit for each of the data's 4 classes" in capsys.readouterr().err


def _splits(**change: object) -> Splits:
    parts = {
        name: _part(count, seed)
        for seed, (name, count) in enumerate((("train", 64), ("validation", 32), ("test", 32)))
    }
    return Splits(**{name: Dataset(*(change.get(name) or part)) for name, part in parts.items()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": (np.zeros((0, 16, 16, 3), np.uint8), np.zeros(0, int))}, "the test split must"),
        ({"test": (np.zeros((8, 32, 32, 3), np.uint8), np.arange(8) % 4)}, "not of 3 x 32 x 32"),
        ({"validation": (_part(8, 1)[0], np.full(8, 7))}, "each of the data's 8 classes"),
        ({"validation": (_part(8, 1)[0], np.full(8, 1))}, "must have images of 2 classes"),
    ],
)
def test_splits_that_do_not_go_together_are_refused_before_any_work(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        compress_network(_net(), _splits(**change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_report_is_told_is_known_and_the_network_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"described must be of \['data', .*, not \['dataset'\]"):
        compress_network(_net(), _splits(), tmp_path / "out", described={"dataset": "x"})
    net = _net().train()
    with pytest.raises(ValueError, match="must be a trained one"):
        compress_network(net, _splits(), tmp_path / "out")
    assert net.training


def test_the_kernel_of_a_linear_layer_is_the_map_that_was_flattened() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 16, 3)).astype(np.uint8)
    assert [row.kernel for row in layer_rows(net, net, images)] == [(3, 3), (2, 8)]


def test_it_says_how_to_go_on_when_stopped(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hwgen.compress.compress_network", stop)
    with pytest.raises(SystemExit) as raised:
        compress(folder)
    assert raised.value.code == 130
    assert "the same command goes on from" in capsys.readouterr().err


def _folders(root: Path, splits: tuple[str, ...], classes: tuple[str, ...], count: int) -> None:
    rng = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")


def test_folders_of_pictures(tmp_path: Path) -> None:
    """Validation is a split of its own, or held out from each class with the seed."""
    _folders(tmp_path / "two", ("train", "test"), ("cat", "dog"), 20)
    splits = load_splits(tmp_path / "two", side=8, seed=1)
    assert splits.train.images.shape == (36, 8, 8, 3) and len(splits.test) == 40
    assert np.bincount(splits.validation.labels).tolist() == [2, 2]
    assert splits.test.class_names == ("cat", "dog")
    again, other = (load_splits(tmp_path / "two", side=8, seed=seed) for seed in (1, 2))
    assert np.array_equal(again.validation.images, splits.validation.images)
    assert not np.array_equal(other.validation.images, splits.validation.images)
    for name in ("validation", "val", "valid"):
        _folders(tmp_path / name, ("train", name, "test"), ("cat",), 2)
        assert [len(part) for part in vars(load_splits(tmp_path / name, 8)).values()] == [2, 2, 2]
    images, labels = _part(8, 0)
    arrays = {f"{split}_{key}": value for split in ("train", "val", "test")
              for key, value in (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(tmp_path / "a.npz", **arrays)
    assert len(load_splits(tmp_path / "a.npz").validation) == len(images)


def test_data_that_does_not_go_together_is_refused(tmp_path: Path) -> None:
    _folders(tmp_path / "none", ("train",), ("cat",), 1)
    with pytest.raises(ValueError, match=r"there is no test among \['train'\]; try moving part"):
        load_splits(tmp_path / "none", side=8)
    _folders(tmp_path / "both", ("train", "val", "valid", "test"), ("cat",), 1)
    with pytest.raises(ValueError, match="must have one validation split, not val and valid"):
        load_splits(tmp_path / "both", side=8)
    _folders(tmp_path / "nested", ("train", "test"), ("cat", "dog"), 1)
    dog = tmp_path / "nested" / "train" / "dog"
    (dog / "images").mkdir()
    (dog / "0.png").rename(dog / "images" / "0.png")
    with pytest.raises(ValueError, match="dog must hold a picture of its class, not none; try"):
        load_splits(tmp_path / "nested", side=8)
    whole = (tmp_path / "none" / "train" / "cat" / "0.png").read_bytes()
    (dog / "0.png").write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"0.png must be a picture: .*; try making it anew"):
        load_splits(tmp_path / "nested", side=8)
    _folders(tmp_path / "few", ("train", "test"), ("cat",), 1)
    with pytest.raises(ValueError, match="side must be given"):
        load_splits(tmp_path / "few")
    with pytest.raises(ValueError, match="are too few"):
        load_splits(tmp_path / "few", side=8)
    (tmp_path / "few" / "test" / "cat").rename(tmp_path / "few" / "test" / "dog")
    with pytest.raises(ValueError, match="must have the classes of train"):
        load_splits(tmp_path / "few", side=8)
    images, labels = _part(8, 0)
    arrays = {"train_images": images, "train_labels": labels}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match="must have the key 'test_images'"):
        load_splits(tmp_path / "a.npz")
    arrays |= {"test_images": images[:, :8], "test_labels": labels}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match="try giving a side"):
        load_splits(tmp_path / "a.npz")
    assert load_npz(tmp_path / "a.npz", "train").num_classes == 4


@pytest.mark.slow
def test_the_command_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains on the bundled frames, and saves cycles within its budget."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"^shears (compress .*)$", text, re.MULTILINE)
    assert command is not None
    assert main(shlex.split(command[1], comments=True)) == 0
    report = json.loads((tmp_path / "build" / "compress" / "report.json").read_text())
    assert report["after"]["validation"] >= report["floor"]
    assert report["after"]["cycles"] < report["before"]["cycles"]


def test_integers_are_trained_and_compiled(
    folder: Path, splits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle is right about as many test images as the report says its integers are."""
    out = folder / "integers"
    options = ("--weights", str(folder / "weights.pt"), "--methods", "trim", "--max-steps", "1")
    assert compress(folder, *options, "--integer-epochs", "2", "--out", str(out)) == 0
    said = capsys.readouterr()
    assert re.search(r"integers: right on .*% .* when quantized, on .*% after \d of 2", said.err)
    assert "bundle (the integers that were trained)" in said.out and "compile" not in said.out
    bundle, test = Bundle.load(out / "bundle"), splits.test
    assert bundle.labels == tuple("0123") and bundle.mean == (0.5,) * 3
    golden, right = GoldenRun(bundle), 0
    for image, label in zip(normalise(test.images).numpy(), test.labels, strict=True):
        (codes,) = golden.run(bundle.quantize_input(image))
        right += int(bundle.dequantize_output(0, codes).argmax()) == label
    after = json.loads((out / "report.json").read_text())["after"]
    assert after["int8_test"] == right / len(test)


def test_interrupted_integers_go_on_and_other_epochs_of_them_redo_nothing_else(
    splits: Splits, trained: nn.Module, tmp_path: Path
) -> None:
    training = replace(QUICK.finish, epochs=2, weight_decay=0.0)
    config = replace(QUICK, methods=("trim",), max_steps=1, integers=training)
    compress_network(trained, splits, tmp_path / "whole", config)
    compress_network(trained, splits, tmp_path / "parts", replace(config, integers=QUICK.integers))
    assert not (tmp_path / "parts" / "bundle").exists()
    began: list[str] = []

    def progress(name: str, done: int, total: int) -> None:
        began.append(name)
        if began.count("integers") == 10:  # in the second epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress_network(trained, splits, tmp_path / "parts", config, progress=progress)
    compress_network(trained, splits, tmp_path / "parts", config, progress=progress)
    assert set(began) == {"integers", "measuring"}
    whole, parts = (Bundle.load(tmp_path / name / "bundle") for name in ("whole", "parts"))
    assert whole.to_files() == parts.to_files()
