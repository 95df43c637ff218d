# SPDX-License-Identifier: Apache-2.0
"""Tests: the training loop."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hwgen.compress import (
    Augment,
    TrainConfig,
    accuracy,
    fastest_precision,
    normalise,
    predict,
    reestimate_bn,
    train,
    with_preprocess,
)
from hwgen.compress.identity import digest
from hwgen.compress.inputs import MEAN, STD
from hwgen.compress.training import load_saved, with_masks


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
    assert epochs == [0, 2, 3] and len(report.losses) == 4  # the first are compared
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(ValueError, match="must belong to this training"):
        train(_model(), rest, TrainConfig(epochs=5), checkpoint=path)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    images, labels = _toy(64)
    config, path = TrainConfig(epochs=2), tmp_path / "training.checkpoint"

    def run(model: nn.Module, teacher: nn.Module | None = None, brighter: int = 0) -> nn.Module:
        seen = images + np.uint8(brighter)
        return train(model, lambda _: (seen, labels), config, teacher=teacher, checkpoint=path)[0]

    teacher = _model()
    first = run(_model(), teacher)
    with pytest.raises(ValueError, match="not to one of another teacher or other images"):
        run(_model())
    with pytest.raises(ValueError, match="not to one of another teacher or other images"):
        run(_model(), teacher, brighter=1)
    other = _model()
    with torch.no_grad():
        other[0].weight[0] *= 1.1
    with pytest.raises(ValueError, match="not to one that began at other weights"):
        run(other, teacher)
    masked = _model()
    with torch.no_grad():
        masked[0].weight[0, 0, 0, 0] = 0.0
    with pytest.raises(ValueError, match="not to one that began at other weights"):
        run(masked, teacher)
    with pytest.raises(ValueError, match="not to one of another network"):
        run(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), teacher)
    with torch.no_grad():
        rounded = _model()
        rounded[0].weight *= 1 + 2**-22  # another machine's last bit
    again = run(rounded, teacher)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_loss_with_a_teacher_is_that_of_hinton():
    images, labels = _toy(16)
    torch.manual_seed(1)
    student = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    config = TrainConfig(
        epochs=1, batch_size=16, label_smoothing=0.0, distill_weight=0.3, distill_temperature=4.0
    )
    _, report = train(student, lambda _: (images, labels), config, teacher=teacher)
    with torch.no_grad():
        y, soft = (network(normalise(images)).double().numpy() for network in (student, teacher))

    def log_softmax(z: np.ndarray) -> np.ndarray:
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    hard = -log_softmax(y)[np.arange(16), labels].mean()
    p, q = log_softmax(soft / 4.0), log_softmax(y / 4.0)
    divergence = (np.exp(p) * (p - q)).sum(axis=1).mean()
    np.testing.assert_allclose(report.losses[0], 0.7 * hard + 0.3 * 16.0 * divergence, rtol=1e-5)


def test_the_loss_with_smoothed_labels_is_that_of_softened_targets():
    images, labels = _toy(16)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    config = TrainConfig(epochs=1, batch_size=16, label_smoothing=0.3)
    _, report = train(model, lambda _: (images, labels), config)
    y = predict(model, images).astype(np.float64)
    logs = y - np.log(np.exp(y).sum(axis=1, keepdims=True))
    wanted = -((0.7 * np.eye(3)[labels] + 0.3 / 3) * logs).sum(axis=1).mean()
    np.testing.assert_allclose(report.losses[0], wanted, rtol=1e-5)


def _constant(*values: float) -> nn.Module:
    """Return a network that says this of black frames, whatever its weights."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, len(values)))
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor(values))
    return with_preprocess(model, 0.0, 1.0)


BLACK = np.zeros((6, 2, 2, 3), np.uint8)


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [("mse", 0.5**2 + 0.25**2 + 0.025**2), ("smooth_l1", 0.475 + 0.225 + 0.025**2 / 0.1)],
)
def test_a_loss_of_boxes_by_hand(loss, wanted):
    """Errors of 0.5, -0.25, 0.025 and 0, of which one is below a twentieth of the frame."""
    config = TrainConfig(epochs=1, batch_size=6, loss=loss)
    model, targets = _constant(1.0, 0.25, 0.525, 0.5), np.full((6, 4), 0.5, np.float32)
    _, report = train(model, lambda _: (BLACK, targets), config)
    assert report.losses == [pytest.approx(wanted / 4, rel=1e-5)]


@pytest.mark.parametrize(("optimizer", "left"), [("adamw", 1 - 0.25), ("sgd", 1 - 1.9 * 0.25)])
def test_weight_decay_shrinks_weights_and_no_biases(optimizer, left):
    """One step of a rate of 0.5 without any gradient; Nesterov's momentum takes 1.9 times it."""
    model, targets = _constant(1.0, 2.0), np.tile(np.float32([1, 2]), (6, 1))
    config = TrainConfig(
        epochs=1, batch_size=6, loss="mse", optimizer=optimizer, learning_rate=0.5, weight_decay=0.5
    )
    trained, report = train(model, lambda _: (BLACK, targets), config)
    assert report.losses == [0.0] and torch.equal(trained[1].bias, model[1].bias)
    torch.testing.assert_close(trained[1].weight, left * model[1].weight)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_rate_warms_up_and_then_follows_a_cosine_to_zero(optimizer):
    images, labels = _toy(20)
    config = TrainConfig(
        epochs=5, batch_size=10, optimizer=optimizer, learning_rate=0.01, warmup=0.2
    )
    rates = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.extend({group["lr"] for group in optimizer.param_groups})
    )
    try:
        train(_model(), lambda _: (images, labels), config)
    finally:
        hook.remove()
    cosine = 0.5 + 0.5 * np.cos(np.pi * np.arange(8) / 8)
    np.testing.assert_allclose(rates, 0.01 * np.array([0.5, 1.0, *cosine]), rtol=1e-12)


@pytest.mark.parametrize("augment", [Augment(flip=True), Augment(shift=2), Augment(cutout=3)])
def test_a_classifier_sees_augmented_images_other_ones_in_each_epoch(augment, rng):
    images, labels = rng.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8), np.arange(16) % 3
    seen = []

    class Onlooker(nn.Linear):
        def forward(self, x):
            seen.append(x)
            return super().forward(x.flatten(1))

    config = TrainConfig(epochs=2, batch_size=8, augment=augment)
    train(Onlooker(192, 3), lambda _: (images, labels), config)
    shown = iter(seen)
    for epoch in range(2):
        draw = np.random.default_rng((0, epoch))
        for index in np.split(draw.permutation(16), 2):
            x = next(shown)
            assert torch.equal(x, normalise(augment(images[index], draw)))
            assert not torch.equal(x, normalise(images[index]))


def test_a_cut_out_square_is_grey_and_nothing_else_changes():
    images = np.random.default_rng(0).integers(0, 100, (50, 12, 12, 3)).astype(np.uint8)
    changed = Augment(cutout=4)(images, np.random.default_rng(1))
    hole = (changed != images).any(axis=3)
    assert (changed[hole] == 128).all()
    assert hole.any(axis=(1, 2)).all() and hole.sum(axis=(1, 2)).max() == 16
    rows, columns = hole.any(axis=2).sum(axis=1), hole.any(axis=1).sum(axis=1)
    assert np.array_equal(rows * columns, hole.sum(axis=(1, 2)))  # cut at the border, but a square


def test_half_precision_leaves_float32_weights():
    images, labels = _toy()
    config = TrainConfig(epochs=8, batch_size=32, learning_rate=2e-2, precision="bfloat16")
    trained, _ = train(_model(), lambda _: (images, labels), config)
    assert accuracy(trained, images, labels) > 0.9
    assert {value.dtype for value in trained.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("capabilities", "wanted"),
    [
        ({"avx512_vnni": True, "avx512_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"neon": True, "bf16": True}, "bfloat16"),
    ],
)
def test_the_fastest_precision_is_what_the_hardware_multiplies(monkeypatch, capabilities, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fastest_precision() == wanted


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"batch_size": 1}, "batch_size must be at least 2, for batch norm, not 1"),
        ({"precision": "float16"}, "precision must be float32 or bfloat16, not 'float16'"),
        ({"optimizer": "adam"}, "optimizer must be adamw or sgd, not 'adam'"),
        ({"loss": "l2"}, "loss must be cross_entropy, .* or giou, not 'l2'"),
        ({"epochs": -1}, "epochs must be at least 0, not -1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, not 0.0"),
        ({"distill_weight": 1.5}, r"distill_weight must be in \[0, 1\], not 1.5"),
        ({"distill_temperature": 0.0}, "distill_temperature must be above 0, not 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, not -1.0"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_knobs_of_a_training_out_of_range_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**knobs)


def test_a_shift_past_the_image_is_refused():
    images, labels = _toy(8)
    config = TrainConfig(epochs=1, augment=Augment(shift=8))
    with pytest.raises(ValueError, match="shift must be less than the images' sides, not 8 .*8 x"):
        train(_model(), lambda _: (images, labels), config)
    with pytest.raises(ValueError, match="shift and cutout must be at least 0 pixels, not -1 and"):
        Augment(shift=-1)


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


@pytest.mark.parametrize("count", [251, 3])
def test_batch_norms_have_the_statistics_of_all_images_each_counted_once(count):
    rng = np.random.default_rng(count)
    images = rng.integers(0, 100, (count, 1, 1, 3)).astype(np.uint8)
    images[-1] = 255  # alone in a last batch it would weigh as much as all others, or be none
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False))
    found = reestimate_bn(model, images)
    pixels = normalise(images).double().numpy()
    np.testing.assert_allclose(found[0].running_mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found[0].running_var, pixels.var(axis=(0, 2, 3), ddof=1), rtol=1e-5)
    assert not found[0].training and torch.equal(model[0].running_mean, torch.zeros(3))


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    images, labels = _toy(20)
    (tmp_path / "notes.txt").write_text("nothing of the kind")
    knobs = TrainConfig(epochs=1, batch_size=8)
    with pytest.raises(ValueError, match=r"notes.txt must be a checkpoint of a training; it is"):
        train(_model(), lambda _: (images, labels), knobs, checkpoint=tmp_path / "notes.txt")


def test_a_checkpoint_of_a_network_that_computes_something_else_is_refused(tmp_path):
    images, labels = _toy(20)
    knobs, file = TrainConfig(epochs=1, batch_size=8), tmp_path / "a.checkpoint"
    train(_model(), lambda _: (images, labels), knobs, checkpoint=file)
    train(_model().eval(), lambda _: (images, labels), knobs, checkpoint=file)  # goes on
    other = _model()
    other[2] = nn.ReLU6()  # has no tensors that could tell
    with pytest.raises(ValueError, match="not to one of another network"):
        train(other, lambda _: (images, labels), knobs, checkpoint=file)


def test_what_a_network_computes_is_its_modules_and_its_graph():
    class Net(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 3), act

        def forward(self, x):
            return self.act(self.conv(x))

    torch.manual_seed(0)
    one = Net(torch.relu)
    other = Net(torch.sigmoid)
    other.load_state_dict(one.state_dict())
    assert digest(one) != digest(other) and digest(one) == digest(copy.deepcopy(one).eval())
    assert one.training


def test_zeros_of_kernels_reduced_elsewhere_stay_zeros():
    images, labels = _toy(20)
    model = _model()
    with torch.no_grad():
        model[0].weight[:, :, 0] = 0.0
    masked = with_masks(model)
    trained, _ = train(masked, lambda _: (images, labels), TrainConfig(epochs=1, batch_size=8))
    assert trained[0].weight[:, :, 0].eq(0).all() and trained[0].weight[:, :, 1].ne(0).all()
    assert not hasattr(model[0], "weight_mask") and not hasattr(masked[5], "weight_mask")


def test_a_frozen_network_is_not_trained():
    images, labels = _toy(20)
    with pytest.raises(ValueError, match=r"none requires a gradient; try model.requires_grad_"):
        train(_model().requires_grad_(False), lambda _: (images, labels), TrainConfig(epochs=1))


@pytest.mark.parametrize("cut", [0, 1, 100, -100, -1])
def test_a_damaged_file_of_tensors_is_named(tmp_path, cut):
    path = tmp_path / "a.checkpoint"
    torch.save(_model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:cut] if cut else b"hello, world")
    with pytest.raises(ValueError, match="a.checkpoint must be weights; it is damaged"):
        load_saved(path, "weights")
    with pytest.raises(FileNotFoundError):
        load_saved(tmp_path / "none", "weights")


def _trained_on(**change):
    images, labels = _toy(20)
    given = {"images": images, "labels": labels, "config": TrainConfig(epochs=1, batch_size=8)}
    given |= change
    return train(
        _model(),
        lambda _: (given["images"], given["labels"]),
        given["config"],
        teacher=given.get("teacher"),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((20, 8, 8, 3))}, "images must be uint8 .* not float64.*0 to 255"),
        ({"images": np.zeros((20, 8, 8), np.uint8)}, r"not uint8 of \(8, 8, 8\)"),
        ({"images": np.zeros((19, 8, 8, 3), np.uint8)}, "targets must be 19, one an image, not 20"),
        ({"labels": np.full(20, -100)}, r"labels must be in 0\.\.2, .*, not in -100\.\.-100"),
        ({"labels": np.full(20, 3)}, r"labels must be in 0\.\.2, the model's classes, not in 3"),
        ({"labels": np.zeros(20)}, "labels must be integers .*, not float64"),
        ({"labels": np.zeros((20, 1), int)}, r"not int64 of \(20, 1\)"),
        ({"teacher": nn.Flatten()}, r"the teacher must have .* \(8, 3\) .*, not \(8, 192\)"),
        (
            {"labels": np.zeros((20, 4)), "config": TrainConfig(epochs=1, loss="mse")},
            r"must give each image \(4,\) numbers, as its target has, not \(3,\)",
        ),
    ],
)
def test_what_does_not_go_together_is_no_training(change, message):
    with pytest.raises(ValueError, match=message):
        _trained_on(**change)


@pytest.mark.parametrize("count", [0, 1])
def test_a_training_needs_two_images(count):
    images, labels = _toy(count)
    with pytest.raises(ValueError, match=f"images must be at least 2, .*, not {count}"):
        _trained_on(images=images, labels=labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_labels_of_any_integers_are_labels(dtype):
    wanted, _ = _trained_on()
    trained, _ = _trained_on(labels=_toy(20)[1].astype(dtype))
    assert torch.equal(trained[0].weight, wanted[0].weight)


def test_accuracy_and_predictions_are_of_images_and_one_label_each():
    images, labels = _toy(20)
    for wrong in (labels[:7], labels[:, None], labels.astype(str)):
        with pytest.raises(ValueError, match=r"labels must be integers of the shape \(20,\)"):
            accuracy(_model(), images, wrong)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.2, the model's classes, not in"):
        accuracy(_model(), images, labels + 1)
    with pytest.raises(ValueError, match=r"must give logits \(N, classes\), not \(20, 8, 1, 1\)"):
        accuracy(_model()[:4], images, labels)
    with pytest.raises(ValueError, match="images must be at least 1, not 0"):
        predict(_model(), images[:0])


def test_an_epochs_images_are_asked_for_once(tmp_path):
    images, labels = _toy(20)
    asked = []

    def samples(epoch):
        asked.append(epoch)
        return images, labels

    knobs = TrainConfig(epochs=3, batch_size=8)
    train(_model(), samples, knobs, checkpoint=tmp_path / "without a suffix")
    assert asked == [0, 1, 2]
