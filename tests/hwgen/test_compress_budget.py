# SPDX-License-Identifier: Apache-2.0
"""Tests: the accuracy budget."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hwgen.compress import (
    ApproximationConfig,
    BudgetConfig,
    KernelConfig,
    TrainConfig,
    accuracy,
    compress_to_budget,
    macs,
    normalise,
    parameters,
    reestimate_bn,
    tap_steps,
    tightest,
    train,
)
from tests.support.retraining import mark_of, marking


def _data(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four classes: which quarter of the frame holds a bright cross."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    images = rng.integers(0, 120, (count, 16, 16, 3))
    for image, label in zip(images, labels, strict=True):
        y, x = 8 * (label // 2), 8 * (label % 2)
        image[y + 3 : y + 5, x : x + 8] += 60
        image[y : y + 8, x + 3 : x + 5] += 60
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 5, 2, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 16, 4),
    )  # fmt: skip
    images, labels = _data(400, 1)
    config = TrainConfig(epochs=4, batch_size=50)
    return train(model, lambda _: (images, labels), config)[0]


VALIDATION = _data(200, 2)
CALIBRATION = _data(50, 1)[0]


def validate(model: nn.Module) -> float:
    return accuracy(model, *VALIDATION)


@pytest.mark.parametrize("cost", [tap_steps, macs, parameters])
def test_the_budget_is_kept_and_cost_is_saved(trained, cost):
    model, report = compress_to_budget(
        trained, CALIBRATION, validate, BudgetConfig(max_loss=0.02), cost=cost
    )
    assert report.baseline_accuracy == validate(trained) > 0.9
    assert validate(model) == report.accuracy >= report.baseline_accuracy - 0.02
    assert cost(model, (3, 16, 16)) == report.cost < report.baseline_cost
    for step in report.steps:
        assert step.accuracy >= report.floor
    costs = [report.baseline_cost, *(step.cost for step in report.steps)]
    assert costs == sorted(costs, reverse=True)


def test_no_step_is_taken_that_the_budget_does_not_allow(trained):
    config = BudgetConfig(max_loss=0.0, rejections=100)

    def fragile(model: nn.Module) -> float:
        same = all(
            a.shape == b.shape and torch.equal(a, b)
            for a, b in zip(model.parameters(), trained.parameters(), strict=True)
        )
        return 1.0 if same else 0.5

    model, report = compress_to_budget(trained, CALIBRATION, fragile, config)
    assert report.steps == [] and report.saving == 0.0
    # Trimming either space, lowering either convolution: each was refused once.
    assert sorted(report.rejected) == [("lower", "0"), ("lower", "3"), ("trim", "0"), ("trim", "3")]
    assert torch.equal(model[0].weight, trained[0].weight)


def test_a_step_that_is_too_long_is_halved(trained):
    def counts(model: nn.Module) -> float:
        return 1.0 if model[0].out_channels >= 28 else 0.0

    config = BudgetConfig(methods=("trim",), units=16, align=1, rejections=1)
    model, report = compress_to_budget(trained, CALIBRATION, counts, config, cost=macs)
    assert model[0].out_channels == 28
    first = next(step for step in report.steps if step.target == "0")
    assert first.units == 4  # 16 and 8 go below 28


def test_the_step_with_the_best_ratio_goes_first(trained):
    def price(model: nn.Module) -> float:
        """Trimming layer 0 costs three points, layer 3 one."""
        lost = 0.03 * (model[0].out_channels < 32) + 0.01 * (model[3].out_channels < 32)
        return 1.0 - lost

    def value(model: nn.Module, input_shape: tuple[int, int, int]) -> float:
        return float(model[0].out_channels + model[3].out_channels)

    config = BudgetConfig(max_loss=0.05, methods=("trim",))
    _, report = compress_to_budget(trained, CALIBRATION, price, config, cost=value)
    assert [step.target for step in report.steps] == ["3", "0"]


def test_retraining_comes_before_the_step_is_judged(trained):
    seen = []

    def retrain(model: nn.Module) -> nn.Module:
        seen.append(model)
        return copy.deepcopy(model)

    config = BudgetConfig(max_loss=0.05, max_steps=2)
    _, report = compress_to_budget(trained, CALIBRATION, validate, config, fine_tune=retrain)
    assert len(seen) >= len(report.steps) == 2


def test_what_is_judged_and_taken_is_the_retrained_network(trained):
    def judge(model: nn.Module) -> float:
        whole = model[0].out_channels == model[3].out_channels == 32
        return 1.0 if whole or mark_of(model) == 7.0 else 0.5

    config = BudgetConfig(methods=("trim",), max_steps=1)
    model, report = compress_to_budget(trained, CALIBRATION, judge, config, fine_tune=marking())
    assert len(report.steps) == 1 and mark_of(model) == 7.0

    def ruined(model: nn.Module) -> float:
        return 0.2 if mark_of(model) == -7.0 else 1.0

    model, report = compress_to_budget(
        trained, CALIBRATION, ruined, config, fine_tune=marking(-7.0)
    )
    assert report.steps == [] and report.rejected
    assert torch.equal(model[0].weight, trained[0].weight) and mark_of(model) == mark_of(trained)


def test_an_interrupted_loop_goes_on_to_the_same_result(trained, tmp_path):
    config = BudgetConfig(max_loss=0.03)
    whole, expected = compress_to_budget(trained, CALIBRATION, validate, config)
    assert len(expected.steps) >= 2
    path = tmp_path / "budget.checkpoint"

    def interrupt(name: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress_to_budget(
            trained, CALIBRATION, validate, config, checkpoint=path, progress=interrupt
        )
    resumed, report = compress_to_budget(trained, CALIBRATION, validate, config, checkpoint=path)
    assert report == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(ValueError, match="must belong to this model, these images and this"):
        other = BudgetConfig(max_loss=0.04)
        compress_to_budget(trained, CALIBRATION, validate, other, checkpoint=path)
    with pytest.raises(ValueError, match="must belong to this model, these images"):
        compress_to_budget(trained, CALIBRATION[:-1], validate, config, checkpoint=path)
    with pytest.raises(ValueError, match="must begin at accuracy and cost 0.2 and"):
        compress_to_budget(trained, CALIBRATION, lambda _: 0.2, config, checkpoint=path)


def test_a_step_longer_than_a_space_takes_what_there_is(trained):
    """Two groups of 16: a step of three takes the one that can go, as a step of one does."""
    found = [
        compress_to_budget(
            trained, CALIBRATION, lambda _: 1.0, BudgetConfig(methods=("trim",), units=units)
        )[1]
        for units in (1, 3)
    ]
    targets = [{step.target for step in report.steps} for report in found]
    assert targets[0] == targets[1] == {"0", "3"}
    assert found[0].cost == found[1].cost < found[0].baseline_cost


@pytest.mark.parametrize("value", [float("nan"), 98.5, -0.1])
def test_what_is_no_accuracy_is_refused(trained, value):
    images, _ = _data(8, 1)
    with pytest.raises(ValueError, match=r"validate must return an accuracy in \[0, 1\], not"):
        compress_to_budget(trained, images, lambda _: value)


def test_the_model_given_keeps_its_mode_and_another_file_is_no_checkpoint(trained, tmp_path):
    images, _ = _data(8, 1)
    model = copy.deepcopy(trained).train()
    knobs = BudgetConfig(max_steps=0)
    compress_to_budget(model, images, lambda _: 1.0, knobs)
    assert model.training
    torch.save(model.state_dict(), tmp_path / "net.pt")
    with pytest.raises(ValueError, match="net.pt must belong to this model"):
        compress_to_budget(model, images, lambda _: 1.0, knobs, checkpoint=tmp_path / "net.pt")


def test_knobs_out_of_range_are_refused():
    for loss in (-0.1, 1.0):
        with pytest.raises(
            ValueError, match=rf"max_loss must be in \[0, 1\), not {loss}; try 0.01"
        ):
            BudgetConfig(max_loss=loss)
    with pytest.raises(ValueError, match="units must be at least 1, not 0"):
        BudgetConfig(units=0)
    with pytest.raises(ValueError, match="statistic must be mean_abs, .* not 'mean'"):
        BudgetConfig(statistic="mean")
    with pytest.raises(ValueError, match="methods must be of .*'approximate'"):
        BudgetConfig(methods=("prune",))


def test_maps_are_made_up_where_they_can_be(trained):
    model = copy.deepcopy(trained)
    with torch.no_grad():  # channels 16 .. 31 of the first layer are those before them once more
        model[0].weight[16:] = model[0].weight[:16]
        for tensor in (*model[1].parameters(), model[1].running_mean, model[1].running_var):
            tensor[16:] = tensor[:16]
    config = BudgetConfig(max_loss=0.0, methods=("approximate",), max_steps=1, align=16)
    small, report = compress_to_budget(model, CALIBRATION, validate, config)
    assert [(step.method, step.target) for step in report.steps] == [("approximate", "0")]
    assert small[0].out_channels == 16
    same = normalise(CALIBRATION)
    # Batch norms are estimated anew on the calibration images, in the comparison as well.
    reference = reestimate_bn(model, CALIBRATION)
    torch.testing.assert_close(small(same), reference(same), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("knobs", "gone"),
    [
        ({"methods": ("trim",)}, 0),
        ({"methods": ("trim",), "statistic": "max"}, 1),
        ({"approximation": ApproximationConfig(importance="relevance")}, 0),
        ({"approximation": ApproximationConfig(importance="relevance", statistic="max")}, 1),
    ],
)
def test_channels_go_by_the_knobs_given(knobs, gone, rng):
    """Channel 0 is bright in few pixels and has the least mean, 1 is a third of 2."""
    images = np.full((8, 16, 16, 3), 128, np.uint8)
    images[:, ::8, ::8, 0] = 255
    ramp = rng.integers(0, 42, (8, 16, 16))
    ramp[0, 0, 0] = 42
    images[..., 1], images[..., 2] = 128 + ramp, 129 + 3 * ramp
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(768, 4))
    with torch.no_grad():
        model[0].weight[..., 0, 0] = torch.eye(3)
        model[0].bias.zero_()
    config = BudgetConfig(**{"methods": ("approximate",), "align": 1, "max_steps": 1, **knobs})
    small, _ = compress_to_budget(model, images, lambda _: 1.0, config, cost=macs)
    left = [channel for channel in range(3) if channel != gone]
    assert torch.equal(small[0].weight[..., 0, 0], torch.eye(3)[left])


def test_kernels_are_lowered_by_the_knobs_given(trained):
    kernels = KernelConfig(ladder=(5, 1), weights="centre_crop")
    config = BudgetConfig(methods=("lower",), align=32, kernels=kernels, max_steps=1)
    small, report = compress_to_budget(trained, CALIBRATION, lambda _: 1.0, config)
    target = report.steps[0].target
    weight = trained.get_submodule(target).weight
    centre = torch.zeros_like(weight)
    middle = weight.shape[2] // 2
    centre[:, :, middle, middle] = weight[:, :, middle, middle]
    assert torch.equal(small.get_submodule(target).weight, centre)


def test_tightest_bisects_to_the_last_level_that_holds():
    tried = []

    def build(level: float) -> nn.Module:
        tried.append(level)
        return nn.Linear(1, 1)

    accuracies = {0.9: 0.99, 0.7: 0.98, 0.5: 0.97, 0.3: 0.91, 0.2: 0.8, 0.1: 0.5, 0.05: 0.2}
    levels = list(accuracies)
    for floor, expected in ((0.9, 0.3), (0.975, 0.7), (0.1, 0.05)):
        tried.clear()
        found = tightest(build, levels, lambda _: accuracies[tried[-1]], floor)
        assert found is not None and found[0] == expected
        assert len(tried) <= 3
    assert tightest(build, levels, lambda _: accuracies[tried[-1]], 0.999) is None
