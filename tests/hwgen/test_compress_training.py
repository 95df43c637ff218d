# SPDX-License-Identifier: Apache-2.0
"""Tests: the training loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hwgen.compress import TrainConfig, accuracy, normalise, reestimate_bn, train
from hwgen.compress.training import MEAN, STD


def _toy(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Three classes by the brightest colour."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 128, (count, 8, 8, 3))
    images[np.arange(count), :, :, labels] += 100
    return images.astype(np.uint8), labels


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_learns_and_leaves_its_input(optimizer):
    images, labels = _toy()
    model = _model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ticks = []
    trained, report = train(
        model, lambda _: (images, labels),
        TrainConfig(epochs=8, batch_size=32, optimizer=optimizer, learning_rate=2e-2),
        progress=lambda *tick: ticks.append(tick),
    )  # fmt: skip
    assert accuracy(trained, images, labels) > 0.95
    assert report.losses[-1] < report.losses[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert ticks[-1] == ("training", 56, 56)


def test_a_student_follows_its_teacher_even_without_labels():
    images, labels = _toy()
    teacher, _ = train(_model(), lambda _: (images, labels), TrainConfig(epochs=8, batch_size=32))
    wrong = np.zeros_like(labels)
    config = TrainConfig(epochs=10, batch_size=32, learning_rate=1e-2, distill_weight=1.0)
    student, _ = train(_model(), lambda _: (images, wrong), config, teacher=teacher)
    assert accuracy(student, images, labels) > 0.9


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path):
    images, labels = _toy()
    config = TrainConfig(epochs=4, batch_size=32)
    whole, _ = train(_model(), lambda _: (images, labels), config)
    path = tmp_path / "training.checkpoint"

    def interrupted(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch == 2:
            raise KeyboardInterrupt
        return images, labels

    with pytest.raises(KeyboardInterrupt):
        train(_model(), interrupted, config, checkpoint=path)
    epochs = []

    def rest(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        epochs.append(epoch)
        return images, labels

    resumed, report = train(_model(), rest, config, checkpoint=path)
    assert epochs == [2, 3] and len(report.losses) == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(ValueError, match="must belong to this training"):
        train(_model(), rest, TrainConfig(epochs=5), checkpoint=path)


def test_a_loss_that_is_not_finite_stops_the_training():
    images, labels = _toy()
    config = TrainConfig(epochs=3, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(ValueError, match="the loss must be finite"):
        train(_model(), lambda _: (images, labels), config)


def test_reestimated_norms_have_the_statistics_of_the_data():
    images, _ = _toy(300)
    model = _model()
    again = reestimate_bn(model, images[:250])
    with torch.no_grad():
        seen = model[0](normalise(images[:250]))
    torch.testing.assert_close(again[1].running_mean, seen.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(again[1].running_var, seen.var(dim=(0, 2, 3)))
    assert torch.equal(model[1].running_mean, torch.zeros(8)) and again[1].momentum == 0.1


def test_normalise_does_what_the_constants_say():
    image = np.array([[[[0, 128, 255]]]], np.uint8)
    expected = (np.array([0, 128, 255]) / 255 - MEAN) / STD
    np.testing.assert_allclose(normalise(image).reshape(3).numpy(), expected, atol=1e-6)
