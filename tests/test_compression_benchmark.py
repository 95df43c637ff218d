# SPDX-License-Identifier: Apache-2.0
"""Tests: the compression benchmark: what a row counts, and what is not measured twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.compression import __main__ as command
from benchmarks.compression import ablation, cifar, rows
from benchmarks.compression.pipeline import Pipeline, measured, stage
from hwgen.arch.cascade import CascadeRule
from hwgen.compress.training import Tick
from hwgen.datasets import Dataset, Splits

BOX = (0.25, 0.25, 0.75, 0.75)


def _row(method: str, seed: int = 0, accuracy: float = 0.5) -> rows.Row:
    numbers = (1.0, 0.9, accuracy, 0.5, 6.0, 3.0, 60.0, 30.0, 600.0, 300.0)
    return rows.Row("t", "n", "d", method, seed, "CPU", *numbers)


@pytest.fixture
def no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rows go to a file that is not there yet."""
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results" / "compression.json")


def test_a_row_replaces_the_one_of_its_key_alone(no_rows: None) -> None:
    assert rows.read() == []
    for row in (_row("b"), _row("a"), _row("a", seed=1), _row("a", accuracy=0.7)):
        rows.write(row)
    assert rows.read() == [_row("a", accuracy=0.7), _row("a", seed=1), _row("b")]
    rows.write(replace(_row("b"), baseline_accuracy=0.1))  # another machine's
    assert [row.baseline_accuracy for row in rows.read()[2:]] == [0.1, _row("b").baseline_accuracy]
    assert rows.has("t", "n", "d", "a", 1) and not rows.has("t", "n", "d", "b", 1)


def test_the_command_measures_what_is_missing(
    no_rows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows with --fresh; one that fails does not keep the others from being measured."""
    measuring: list[str] = []

    def job(method: str, seed: int) -> command.Job:
        def measure(tick: Tick) -> rows.Row:
            measuring.append(method)
            if method == "bad":
                raise ValueError("it cannot be done")
            return _row(method, seed)

        return ("t", "n", "d", method, seed), measure

    def run(*options: str) -> int:
        measuring.clear()
        return command.main(["--threads", str(torch.get_num_threads()), *options])

    monkeypatch.setattr(command, "write_page", lambda: None)
    monkeypatch.setattr(
        command, "jobs", lambda *found: [job(name, found[2] or 0) for name in ("a", "bad", "b")]
    )
    rows.write(_row("a"))
    assert run() == 1 and measuring == ["bad", "b"]
    assert run("--only", "n, d", "b", "--fresh") == 1 and measuring == ["bad", "b"]
    assert run("--only", "a", "--fresh") == 1 and measuring == ["a", "bad"]
    assert run("--only", "d, b") == 1 and measuring == ["bad"]
    assert run("--seed", "1", "--only", "d, a") == 0 and measuring == ["a"]
    assert rows.read() == [_row("a"), _row("a", seed=1), _row("b")]


def test_the_command_lists_each_row_once_for_each_of_its_seeds() -> None:
    own, fifth = (
        [key for key, _ in command.jobs(Path("data"), Path("cache"), seed)] for seed in (None, 5)
    )
    assert len(own) == len(set(own)) and len(fifth) == len(set(fifth))
    for (network, method), seeds in cifar.SEEDS.items():
        wanted = [(cifar.TABLE, network, cifar.DATA, method, seed) for seed in seeds]
        assert [
            key for key in own if key[:4] == (cifar.TABLE, network, cifar.DATA, method)
        ] == wanted
    assert {key[4] for key in fifth} == {5} and {key[:4] for key in own} <= {k[:4] for k in fifth}
    assert {key[0] for key in own} > {key[0] for key, _ in command.jobs(None, Path("cache"), None)}


def test_a_network_that_is_there_is_not_built_again(tmp_path: Path) -> None:
    built: list[nn.Module] = []

    def build() -> tuple[nn.Module, dict[str, object]]:
        built.append(nn.Linear(2, 3))
        return built[-1], {"kept": 0.5}

    for _ in range(2):
        model, more = stage(tmp_path / "net.pt", nn.Linear(4, 3), build)
        assert len(built) == 1 and torch.equal(model.weight, built[0].weight)
        assert not model.training and more["kept"] == 0.5


def _linear(side: int, weight: float, bias: list[float]) -> nn.Module:
    """Return a network whose first output alone depends on the picture, on how bright it is."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * side**2, len(bias)))
    with torch.no_grad():
        net[1].weight.zero_()[0] = weight
        net[1].bias.copy_(torch.tensor(bias))
    return net.eval()


def _part(count: int) -> Dataset:
    """Return frames: every fourth white and of class 0, the others black, of class 1 or 0."""
    images = np.zeros((count, 16, 16, 3), np.uint8)
    images[::4] = 255
    return Dataset(images, np.arange(count) % 2, np.array([BOX] * count, np.float32))


NETWORKS = {
    "predictor": _linear(8, 0.0, list(BOX)),
    "first": _linear(8, 0.01, [3.85, 0.0]),  # sure of what is white, and that is of class 0
    "last": _linear(8, 0.0, [0.0, 1.0]),
    "base": _linear(16, 0.0, [0.0, 1.0]),
}
COSTS = {"predictor": 1.0, "first": 2.0, "last": 4.0, "base": 8.0}


@pytest.mark.parametrize(
    ("names", "glances", "macs", "parameters", "framed"),
    [
        (["last"], None, 4, 4, 4 * 16),
        (["last"], 0, 1 + 4, 1 + 4, 1 * 16 + 4 * 8),
        (["first", "last"], None, 2 + 0.75 * 4, 2 + 4, (2 + 0.75 * 4) * 16),
        (["first", "last"], 0, 1 + 2 + 0.75 * 4, 1 + 2 + 4, 1 * 16 + (2 + 0.75 * 4) * 8),
        (["first", "last"], 1, 2 + 0.75 * (1 + 4), 1 + 2 + 4, 2 * 16 + 0.75 * (1 * 16 + 4 * 8)),
    ],
)
def test_a_row_counts_all_that_an_image_takes(
    names: list[str],
    glances: int | None,
    macs: float,
    parameters: float,
    framed: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a predictor and with one; crops are 8 wide, frames 16.

    A quarter of the images stops at the first of two networks.
    """
    of = {NETWORKS[name]: cost for name, cost in COSTS.items()}
    monkeypatch.setattr(rows, "costs", lambda net, _: (of[net], 10 * of[net], 100 * of[net]))
    monkeypatch.setattr(rows, "frame_cycles", lambda net, _, box: of[net] * box)
    pipeline = Pipeline(
        classifiers=[NETWORKS[name] for name in names],
        sides=[8] * len(names),
        rule=CascadeRule((0.5,)) if len(names) > 1 else None,
        predictor=None if glances is None else NETWORKS["predictor"],
        predictor_side=8,
        glances=glances or 0,
    )
    splits = Splits(_part(256), _part(8), _part(8))
    row = measured(("t", "n", "d", "m"), NETWORKS["base"], pipeline, splits, 3, 2.0, {"note": "x"})
    assert (row.macs, row.parameters, row.cycles) == (macs, 10 * parameters, 100 * macs)
    assert (row.baseline_macs, row.baseline_parameters, row.baseline_cycles) == (8, 80, 800)
    assert (row.more["frame cycles"], row.more["baseline frame cycles"]) == (framed, 8 * 16)
    assert row.accuracy == row.int8_accuracy == (0.75 if pipeline.rule else 0.5)
    assert row.key == ("t", "n", "d", "m", 3) and row.note == "x"


@pytest.mark.parametrize(
    ("method", "steps", "left"),
    [
        ("all methods", ablation.STEPS, 0.25),
        ("without distillation", ablation.STEPS, 0.25),
        ("without lower kernels", (*ablation.STEPS[:2], "slices"), 0.25),
        ("only slices", ("slices",), 0.25),
        ("only relevance trimming, down to 55%", ("relevance trimming",), 0.55),
        ("all methods, down to 55%", ablation.STEPS, 0.55),
    ],
)
def test_an_ablations_name_says_what_is_done(
    method: str, steps: tuple[str, ...], left: float
) -> None:
    assert method in ablation.METHODS and ablation.chosen_steps(method) == (steps, left)


def test_a_recipe_has_the_rows_that_it_asks_for() -> None:
    recipe = cifar.Recipe("a network", 0.5, "macs", 1)
    plain = cifar.methods(recipe)
    assert plain == ("all methods", "DepGraph at equal MACs", "DepGraph at equal cycles")
    for change, more in (
        ({"uniform": True}, {f"DepGraph, uniform, at equal {by}" for by in ("MACs", "cycles")}),
        ({"cascade": ("another", 0.5)}, {"cascade", "all methods + cascade"}),
        ({"network": "ResNet-20"}, {"all methods, milder"}),
        ({"network": "VGG-16-BN"}, {"all methods, two rounds", "all methods, mostly width"}),
    ):
        assert set(cifar.methods(replace(recipe, **change))) - set(plain) == more
