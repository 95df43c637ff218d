# SPDX-License-Identifier: Apache-2.0
"""Tests: compound shrinking of depth, width and resolution, and its studies."""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState
from torch import nn

from hwgen.compress import discover, load_compressed, macs, predict, shrinking, tap_steps
from hwgen.compress.cropping import resize_all
from hwgen.compress.shrinking import ShrinkConfig, shrink
from hwgen.compress.shrunk import ShrinkPoint, droppable_blocks, shrunk
from hwgen.compress.structure import drop_blocks, identity_blocks
from hwgen.models import ResidualBlock, ResNet, lenet, resnet_cifar

SEED = 3


def _images(count: int = 12, side: int = 16) -> np.ndarray:
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def _settled(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights that are not those of the first day."""
    torch.manual_seed(SEED)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def _small() -> nn.Module:
    torch.manual_seed(SEED)
    return _settled(ResNet(4, (8, 16), (3, 2)))


def _blocks(model: nn.Module) -> int:
    return sum(
        isinstance(module, ResidualBlock) and isinstance(module.shortcut, nn.Identity)
        for module in model.modules()
    )


def _inner(model: nn.Module) -> int:
    """Channels inside the block that changes the shape, which nothing drops."""
    return model.layer2[0].conv1.out_channels


# --- blocks


def test_blocks_that_keep_their_shape_are_found_by_stage():
    # Option A: the first blocks of stages 2 and 3 halve the side, all others add their own input.
    assert droppable_blocks(resnet_cifar(20), (3, 32, 32)) == {
        "16x32x32": ("layer1.0", "layer1.1", "layer1.2"),
        "32x16x16": ("layer2.1", "layer2.2"),
        "64x8x8": ("layer3.1", "layer3.2"),
    }


class Block(nn.Module):
    """A block of one of six forms."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.conv, self.relu = form, nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x):
        y = self.conv(x)
        return {
            "plain": lambda: x + y,
            "post": lambda: self.relu(torch.add(x, y)),
            "pre": lambda: self.relu(x) + y,
            "scaled": lambda: 2 * (x + y),
            "twice": lambda: x + x,
            "none": lambda: self.relu(y),
        }[self.form]()


class Blocks(nn.Module):
    """One of each form; only those that end in an addition of their own input may be dropped."""

    def __init__(self) -> None:
        super().__init__()
        for form in ("plain", "post", "pre", "scaled", "twice", "none"):
            self.add_module(form, Block(form))

    def forward(self, x):
        for block in self.children():
            x = block(x)
        return self.post(x)


def test_only_additions_of_the_untouched_input_at_the_end_count():
    assert identity_blocks(Blocks()) == ("plain", "post")
    # "post" runs twice, and dropping it would drop both.
    assert droppable_blocks(Blocks(), (3, 4, 4)) == {"3x4x4": ("plain",)}


def test_a_stage_of_one_block_is_not_taken_for_the_block():
    assert identity_blocks(ResNet(4, (8, 16), (1, 1))) == ("layer1.0",)


def test_dropping_a_block_without_a_residual_branch_changes_nothing():
    model = _small()
    with torch.no_grad():
        model.layer1[1].bn2.weight.zero_()
        model.layer1[1].bn2.bias.zero_()
    dropped = drop_blocks(model, ["layer1.1"])
    assert isinstance(dropped.layer1[1], nn.Identity) and _blocks(model) == 4
    assert np.array_equal(predict(model, _images()), predict(dropped, _images()))
    assert tap_steps(dropped, (3, 16, 16)) < tap_steps(model, (3, 16, 16))
    with pytest.raises(ValueError, match=r"not 'layer2\.0'; this model has layer1\.0, layer1\.1"):
        drop_blocks(model, ["layer2.0"])


def test_the_block_that_matters_least_goes_first():
    model = _small()
    with torch.no_grad():
        model.layer1[2].bn2.weight.mul_(1e-3)
        model.layer1[2].bn2.bias.mul_(1e-3)
    small = shrunk(model, ShrinkPoint((2, 1), 1.0, 16), _images())
    assert isinstance(small.layer1[2], nn.Identity)
    assert identity_blocks(small) == ("layer1.0", "layer1.1", "layer2.1")


def test_width_takes_inner_channels_by_relevance_and_leaves_tied_ones():
    model = _small()
    useless = [1, 4, 6, 7]
    with torch.no_grad():
        for block in model.layer1:  # these channels are zero behind the ReLU
            block.bn1.weight[useless] = 0
            block.bn1.bias[useless] = -1
    before = {n: m.weight.shape[0] for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    small = shrunk(model, ShrinkPoint((3, 1), 0.5, 16), _images(), align=4)
    for name, module in small.named_modules():
        if isinstance(module, nn.Conv2d):
            inner = name.endswith("conv1") and name != "conv1"
            assert module.out_channels == before[name] // (2 if inner else 1), name
    kept = [i for i in range(8) if i not in useless]
    assert torch.equal(small.layer1[1].conv1.weight, model.layer1[1].conv1.weight[kept])
    wide = shrunk(model, ShrinkPoint((3, 1), 0.3, 16), _images(), align=4)
    assert _inner(wide) == 8  # 4.8 of 16, in whole groups of 4
    assert wide.layer1[0].conv1.out_channels == 4


def test_batch_norms_see_the_new_side():
    model, images = _small(), _images()
    small = shrunk(model, ShrinkPoint((3, 1), 1.0, 8), images)
    with torch.no_grad():
        x = torch.from_numpy(resize_all(images, 8)).permute(0, 3, 1, 2) / 255
        stem = model.conv1((x - 0.5) / 0.25)
    assert torch.allclose(small.bn1.running_mean, stem.mean((0, 2, 3)), atol=1e-5)
    whole = shrunk(model, ShrinkPoint((3, 1), 1.0, 16), images)
    assert torch.equal(whole.bn1.running_mean, model.bn1.running_mean)


def test_a_shrunk_state_goes_back_into_the_whole_model():
    model, images = _small(), _images()
    small = shrunk(model, ShrinkPoint((0, 1), 0.5, 16), images, align=4)
    again = load_compressed(_small(), small.state_dict()).eval()
    assert identity_blocks(again) == ("layer2.1",)
    assert np.array_equal(predict(small, images), predict(again, images))
    state = small.state_dict()
    with pytest.raises(ValueError, match="has no 'elsewhere'"):
        load_compressed(_small(), {**state, "elsewhere.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="state must belong to this model"):
        load_compressed(_small(), {k: v for k, v in state.items() if "layer2.0" not in k})
    with pytest.raises(ValueError, match="state must belong to this model"):
        load_compressed(_small(), {k: v for k, v in state.items() if k != "layer2.1.bn1.bias"})


# --- searches

CONFIG = ShrinkConfig(target_saving=0.6, align=4, width_step=0.25, width_min=0.5, sides=(12, 8))


class Judge:
    """A made-up accuracy of a point: a price for each block, for width and for each pixel row.

    After ``limit`` calls it fails, as a killed process would.
    """

    def __init__(self, block=0.03, width=0.02, side=0.01, limit: int = 10**9) -> None:
        self.prices, self.limit = (block, width, side), limit
        self.seen: list[tuple[int, int, int]] = []

    def __call__(self, model: nn.Module, side: int) -> float:
        if len(self.seen) == self.limit:
            raise KeyboardInterrupt
        self.seen.append((_blocks(model), _inner(model), side))
        block, width, row = self.prices
        lost = block * (4 - _blocks(model)) + width * (16 - _inner(model)) / 4 + row * (16 - side)
        return 0.9 - lost


def test_contribution_takes_the_free_dimension_first_and_meets_the_target():
    judge = Judge(side=0.0)
    result = shrink(_small(), _images(), judge, CONFIG)
    assert [point.side for point in result.path[:3]] == [16, 12, 8]
    assert result.path[0] == ShrinkPoint((3, 1), 1.0, 16) and result.path[-1] == result.point
    assert result.cost == tap_steps(result.model, (3, result.point.side, result.point.side))
    assert result.baseline_cost == tap_steps(_small(), (3, 16, 16))
    assert result.saving >= 0.6
    costs = [t.cost for p in result.path for t in result.history if t.point == p]
    assert costs == sorted(costs, reverse=True) and costs[-2] > 0.4 * result.baseline_cost
    assert len(judge.seen) == len(result.history) == len({t.point for t in result.history})


def test_contribution_prefers_the_step_with_the_best_saving_for_its_loss():
    result = shrink(_small(), _images(), Judge(block=1e-4, width=0.1, side=0.05), CONFIG)
    first = result.path[1]
    assert first.side == 16 and first.width == 1.0 and sum(first.depths) == 3


@pytest.mark.parametrize(("noise", "first"), [(1e-4, (3, 16)), (0.01, (4, 12))])
def test_losses_below_the_noise_are_equal(noise, first):
    """A block saves 1 and costs 0.001; the smaller side saves 4 and costs 0.008."""
    config = ShrinkConfig(dimensions=("depth", "side"), sides=(12,), noise=noise, target_saving=0.1)
    result = shrink(
        _small(), _images(), Judge(block=0.001, side=0.002), config,
        cost=lambda model, shape: _blocks(model) + shape[1] - 11,
    )  # fmt: skip
    assert (sum(result.path[1].depths), result.path[1].side) == first


def test_a_step_takes_as_many_blocks_of_a_stage_as_asked_for():
    config = ShrinkConfig(dimensions=("depth",), strategy="grid", depth_step=2, target_saving=0.1)
    result = shrink(_small(), _images(), Judge(), config)
    points = sorted(trial.point.depths for trial in result.history)
    assert points == [(0, 0), (0, 1), (1, 0), (1, 1), (3, 0), (3, 1)]


TINY = ShrinkConfig(
    dimensions=("width",), align=1, width_step=0.5, width_min=0.5, target_saving=0.2
)


def _tiny() -> nn.Module:
    """Two channels: one is large and the same everywhere, the other one is small and varies."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[1, 0] = 0.1
        model[0].bias.copy_(torch.tensor([10.0, 1.0]))
    return model


@pytest.mark.parametrize(("statistic", "kept"), [("mean_abs", 0), ("std", 1)])
def test_channels_go_by_the_statistic_asked_for(statistic, kept):
    config = replace(TINY, statistic=statistic)
    result = shrink(_tiny(), _images(), lambda model, side: 0.5, config, cost=macs)
    assert torch.equal(result.model[0].bias, _tiny()[0].bias[[kept]])


def test_a_contribution_is_measured_again_at_every_step():
    """Once a block is gone, the next one costs a hundred times what the first did."""

    def judge(model: nn.Module, side: int) -> float:
        gone = 4 - _blocks(model)
        return 0.9 - (0.001 + 0.1 * (gone > 1)) * gone - 0.01 * (16 - side)

    config = ShrinkConfig(target_saving=0.5, dimensions=("depth", "side"), sides=(12, 8))
    result = shrink(_small(), _images(), judge, config)
    steps = [(sum(point.depths), point.side) for point in result.path]
    assert steps[:3] == [(4, 16), (3, 16), (3, 12)]


def test_random_search_is_random_and_so_of_its_seed():
    def points(strategy: str, seed: int) -> list[ShrinkPoint]:
        config = ShrinkConfig(
            strategy=strategy, trials=12, align=4, width_step=0.25, width_min=0.5, sides=(12, 8),
            target_saving=0.5, seed=seed,
        )  # fmt: skip
        found = shrink(_small(), _images(), Judge(), config).history
        return [trial.point for trial in found]

    first = points("random", 0)
    assert first == points("random", 0) and first != points("random", 1)
    assert first != points("grid", 0)[: len(first)] and first != points("tpe", 0)


def test_contribution_stops_before_it_loses_too_much():
    config = ShrinkConfig(target_saving=None, max_loss=0.065, dimensions=("depth",))
    result = shrink(_small(), _images(), Judge(), config)
    assert sum(result.point.depths) == 2 and result.accuracy == pytest.approx(0.84)
    assert result.point.width == 1.0 and result.point.side == 16


def test_the_grid_finds_the_optimum():
    model, images = _small(), _images()
    config = ShrinkConfig(
        strategy="grid", target_saving=0.5, align=4, width_step=0.5, width_min=0.5, sides=(12, 8),
        trials=1000,
    )  # fmt: skip
    judge = Judge()
    result = shrink(model, images, judge, config)
    # 4 x 2 depths, 2 widths, 3 sides; the best within the target by brute force.
    assert len(result.history) == 4 * 2 * 2 * 3
    within = [t for t in result.history if t.cost <= 0.5 * result.baseline_cost]
    assert len(judge.seen) == len(within) < 48
    best = max(0.9 - 0.03 * (4 - sum(t.point.depths)) - 0.02 * (16 - 16 * t.point.width) / 4
               - 0.01 * (16 - t.point.side) for t in within)  # fmt: skip
    assert result.accuracy == pytest.approx(best)
    assert {t.accuracy is None for t in result.history if t not in within} == {True}


@pytest.mark.parametrize("strategy", ["random", "tpe"])
def test_samplers_measure_as_many_points_as_asked_for(strategy):
    config = ShrinkConfig(
        strategy=strategy, trials=12, align=4, width_step=0.25, width_min=0.5, sides=(12, 8)
    )
    judge = Judge()
    result = shrink(_small(), _images(), judge, config)
    assert len(judge.seen) == 12 and result.saving >= 0.5
    assert result.accuracy == max(t.accuracy for t in result.history if t.accuracy is not None)
    assert shrink(_small(), _images(), Judge(), config).history == result.history


def test_retraining_comes_before_the_judgement():
    sides = []

    def fine_tune(model: nn.Module, side: int) -> nn.Module:
        sides.append(side)
        with torch.no_grad():
            model.linear.bias.fill_(7.0)
        return model

    def evaluate(model: nn.Module, side: int) -> float:
        assert side == sides[-1] and model.linear.bias.eq(7.0).all()
        return 0.5

    config = ShrinkConfig(target_saving=0.3, dimensions=("side",), sides=(12, 8))
    model = _small()
    result = shrink(model, _images(), evaluate, config, cost=macs, fine_tune=fine_tune)
    assert sides == [16, 12, 12]  # measured twice, and the one returned
    assert result.model.linear.bias.eq(7.0).all() and not model.linear.bias.eq(7.0).any()


# --- studies


@pytest.mark.parametrize("strategy", ["contribution", "grid", "random", "tpe"])
def test_a_killed_search_goes_on_to_the_same_result(tmp_path, strategy):
    config = ShrinkConfig(
        strategy=strategy, trials=9, align=4, width_step=0.5, width_min=0.5, sides=(12, 8),
        target_saving=0.7 if strategy == "contribution" else 0.4,
    )  # fmt: skip
    images = _images()
    whole = Judge()
    expected = shrink(_small(), images, whole, config)
    path, done = str(tmp_path / "study.db"), []
    for limit in (3, 2):  # killed twice
        judge = Judge(limit=limit)
        with pytest.raises(KeyboardInterrupt):
            shrink(_small(), images, judge, config, storage=path)
        done += judge.seen
    judge = Judge()
    result = shrink(_small(), images, judge, config, storage=path)
    assert done + judge.seen == whole.seen  # in the same order, none of them twice
    assert (result.point, result.history, result.path) == (
        expected.point, expected.history, expected.path,
    )  # fmt: skip
    for name, value in expected.model.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name]), name
    last = Judge(limit=0)
    assert shrink(_small(), images, last, config, storage=path).history == expected.history


def test_a_study_may_be_given_more_trials_and_shares_its_file(tmp_path):
    url = f"sqlite:///{tmp_path}/studies.db"
    knobs = {"strategy": "random", "target_saving": 0.3, "sides": (12, 8), "align": 4}
    few, many = ShrinkConfig(trials=3, **knobs), ShrinkConfig(trials=6, **knobs)
    first, second, other = Judge(), Judge(), Judge()
    shrink(_small(), _images(), first, few, storage=url, study_name="one")
    shrink(_small(), _images(), second, many, storage=url, study_name="one")
    assert (len(first.seen), len(second.seen)) == (3, 3)
    result = shrink(_small(), _images(), other, many, storage=url, study_name="two")
    assert other.seen == first.seen + second.seen and len(optuna.get_all_study_names(url)) == 2
    study = optuna.load_study(study_name="two", storage=url)
    trial = next(t for t in study.trials if t.value == result.accuracy)
    assert trial.user_attrs["cost"] == result.cost and trial.user_attrs["side"] == result.point.side
    study._storage.remove_session()


def test_a_study_of_another_cost_is_refused(tmp_path):
    config = ShrinkConfig(target_saving=0.3, align=4, sides=(12, 8))
    path = tmp_path / "100%? a study#1.db"
    shrink(_small(), _images(), Judge(), config, storage=path, cost=partial(tap_steps, tn=16))
    with pytest.raises(ValueError, match="must belong to this model"):
        shrink(_small(), _images(), Judge(), config, storage=path, cost=partial(tap_steps, tn=4))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_costs_and_sides_may_be_numpys_numbers(tmp_path):
    sides = tuple(np.array([12, 8]))
    config = ShrinkConfig(target_saving=0.3, align=4, sides=sides)
    expected = shrink(_small(), _images(), Judge(), config, cost=macs)
    found = shrink(
        _small(), _images(), Judge(), config, cost=lambda m, s: np.int64(macs(m, s)),
        storage=tmp_path / "study.db",
    )  # fmt: skip
    assert found.history == expected.history


@pytest.mark.parametrize("value", [float("nan"), 0.0, float("inf")])
def test_a_cost_that_nothing_compares_with_is_refused(value):
    config = ShrinkConfig(target_saving=0.3, align=4, sides=(12, 8))
    with pytest.raises(ValueError, match="cost must return a number above 0, not"):
        shrink(_small(), _images(), Judge(), config, cost=lambda m, s: value)


def test_points_are_equal_whatever_holds_their_depths():
    assert ShrinkPoint([3, 1], 1.0, 16) == ShrinkPoint((3, 1), 1.0, 16)


KILLED_WHILE_ASKING = """
import os, sys
import optuna
from tests.hwgen.test_compress_shrinking import Judge, _images, _small
from hwgen.compress.shrinking import ShrinkConfig, shrink

asked, ask = [], optuna.Study.ask

def killed(study):
    trial = ask(study)
    asked.append(trial.number)
    if len(asked) == 3:
        os._exit(9)
    return trial

optuna.Study.ask = killed
config = ShrinkConfig(strategy="random", trials=6, target_saving=0.3, align=4, sides=(12, 8))
shrink(_small(), _images(), Judge(), config, storage=sys.argv[1])
"""


def test_a_kill_between_a_trial_and_its_point_changes_nothing(tmp_path):
    path, root = str(tmp_path / "study.db"), Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED_WHILE_ASKING, path]
    assert subprocess.run(command, cwd=root, check=False).returncode == 9
    config = ShrinkConfig(strategy="random", trials=6, target_saving=0.3, align=4, sides=(12, 8))
    found = shrink(_small(), _images(), Judge(), config, storage=path)
    assert found.history == shrink(_small(), _images(), Judge(), config).history


WORKER = """
import os, sys, time
from pathlib import Path
from tests.hwgen.test_compress_shrinking import Judge, _images, _small
from hwgen.compress.shrinking import ShrinkConfig, shrink

class Killed(Judge):
    def __call__(self, model, side):
        Path(f"{sys.argv[1]}.{sys.argv[2]}").touch()
        while len(list(Path(sys.argv[1]).parent.glob("*.db.*[45]"))) < 2:
            time.sleep(0.02)  # until the other one has a trial too
        if len(self.seen) == int(sys.argv[2]):
            os._exit(9)
        return super().__call__(model, side)

config = ShrinkConfig(strategy="random", trials=16, target_saving=0.3, align=4, sides=(12, 8))
shrink(_small(), _images(), Killed(), config, storage=sys.argv[1])
"""


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("foo://me:secret@there/search", r"not 'foo://me:\*\*\*@there/search': .*dialects:foo"),
        ("{folder}/none/search.db", "none/search.db': .*unable to open"),
        ("://", "not text that is no URL"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_named_without_its_password(tmp_path, storage, message):
    config = ShrinkConfig(target_saving=0.3)
    with pytest.raises(ValueError, match=message) as caught:
        shrink(_small(), _images(), Judge(), config, storage=storage.format(folder=tmp_path))
    assert "secret" not in str(caught.value)


def test_processes_share_a_study_and_redo_what_a_killed_one_left(tmp_path):
    path = str(tmp_path / "study.db")
    root = Path(__file__).parents[2]
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, path, str(limit)], cwd=root)
        for limit in (4, 5)
    ]
    try:
        assert [worker.wait(300) for worker in workers] == [9, 9]
    finally:
        for worker in workers:
            worker.kill()
    study = optuna.load_study(study_name="shrink", storage=f"sqlite:///{path}")
    left = [t.params for t in study.trials if t.state == TrialState.RUNNING]
    shared = {tuple(t.params.items()) for t in study.trials if t.state == TrialState.COMPLETE}
    assert len(left) == 2 and 5 <= len(shared) <= 9
    judge = Judge()
    config = ShrinkConfig(strategy="random", trials=16, target_saving=0.3, align=4, sides=(12, 8))
    result = shrink(_small(), _images(), judge, config, storage=path)
    assert len(judge.seen) == 16 - len(shared)
    assert sum(t.accuracy is not None for t in result.history) == 16
    states = {t.state for t in study.get_trials()}
    assert TrialState.RUNNING not in states and TrialState.WAITING not in states
    redone = [t.params for t in study.trials if t.state == TrialState.COMPLETE]
    assert all(params in redone for params in left)
    study._storage.remove_session()


def test_only_trials_of_this_machine_are_taken_for_dead(monkeypatch):
    study = optuna.create_study(direction="maximize")
    for host in ("elsewhere", platform.node()):
        name = f"{host}:{2**31 - 1}:earlier"  # a process of a number that no system reaches
        study.ask().set_user_attr("worker", name)
    monkeypatch.setattr(shrinking, "open_study", lambda *_: nullcontext(study))
    config = replace(TINY, strategy="random", trials=1)
    shrink(_tiny(), _images(), lambda model, side: 0.5, config, cost=macs)
    assert [trial.state for trial in study.trials[:2]] == [TrialState.RUNNING, TrialState.FAIL]


def test_a_study_of_another_search_is_refused(tmp_path):
    path = str(tmp_path / "study.db")
    shrink(_small(), _images(), Judge(), CONFIG, storage=path)
    other = ShrinkConfig(target_saving=0.5, align=4)
    with pytest.raises(ValueError, match="study 'shrink' in .* must belong to this model"):
        shrink(_small(), _images(), Judge(), other, storage=path)
    changed = _small()
    with torch.no_grad():
        changed.conv1.weight.mul_(2)
    with pytest.raises(ValueError, match="must belong to this model"):
        shrink(changed, _images(), Judge(), CONFIG, storage=path)


# --- errors


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"dimensions": ("height",)}, "dimensions must be of"),
        ({"strategy": "anneal"}, "strategy must be contribution, grid, random or tpe"),
        ({"target_saving": 1.0}, r"target_saving must be in \(0, 1\)"),
        ({"target_saving": None}, "target_saving or max_loss must be given"),
        ({"max_loss": -0.1}, "max_loss must be at least 0"),
        ({"max_loss": float("nan")}, "max_loss must be at least 0, not nan"),
        ({"sides": (12.0,)}, r"sides must be whole pixels, not \(12.0,\)"),
        ({"strategy": "random", "max_loss": 0.0}, "must have a target_saving and no max_loss"),
        ({"trials": 0}, "trials must be at least 1, not 0"),
        ({"statistic": "mean"}, "statistic must be mean_abs, .* not 'mean'"),
        ({"strategy": "tpe", "max_loss": 0.1}, "'tpe' must have a target_saving and no max_loss"),
        ({"width_step": 0.0}, r"width_step must be in \(0, 1\)"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        ShrinkConfig(**knobs)


def test_what_does_not_fit_the_model_is_refused():
    images = _images()
    with pytest.raises(ValueError, match=r"depths must be one count .* at most \(3, 1\)"):
        shrunk(_small(), ShrinkPoint((4, 1), 1.0, 16), images)
    with pytest.raises(ValueError, match=r"width must be in \(0, 1\]"):
        shrunk(_small(), ShrinkPoint((3, 1), 0.0, 16), images)
    with pytest.raises(ValueError, match="images must be square"):
        shrunk(_small(), ShrinkPoint((3, 1), 1.0, 16), images[:, :8])
    with pytest.raises(ValueError, match=r"sides must be in 1 \.\. 16"):
        shrink(_small(), images, Judge(), ShrinkConfig(sides=(32,)))
    with pytest.raises(ValueError, match="must accept inputs of shape .* without 'side'"):
        shrink(lenet(4, 16), images, Judge(), ShrinkConfig(align=4))
    with pytest.raises(ValueError, match="must have something to shrink"):
        shrink(_small(), images, Judge(), ShrinkConfig(dimensions=("width",), align=16))
    with pytest.raises(ValueError, match=r"target_saving must be at most 0\.\d+, which the small"):
        shrink(_small(), images, Judge(), ShrinkConfig(target_saving=0.99))
    with pytest.raises(ValueError, match=r"accuracy in \[0, 1\], not 90\.0"):
        shrink(_small(), images, lambda model, side: 90.0, ShrinkConfig())


def test_a_network_without_blocks_still_has_width():
    config = ShrinkConfig(dimensions=("depth", "width"), align=4, target_saving=0.3)
    model = lenet(4, 16)
    result = shrink(model, _images(), lambda m, side: 0.5, config, cost=macs)
    assert result.point.depths == () and result.point.width < 1.0 and result.saving >= 0.3
    assert (
        discover(result.model, (3, 16, 16)).layers.keys()
        == discover(model, (3, 16, 16)).layers.keys()
    )
