# SPDX-License-Identifier: Apache-2.0
"""Tests: boxes, crops, the foreground predictor and Grad-CAM."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hwgen.arch import GoldenRun
from hwgen.arch.crop import resize, square_crop
from hwgen.arch.numerics import dequantize
from hwgen.backends import program
from hwgen.boards import load_board
from hwgen.compress import (
    Augment,
    PredictorConfig,
    Resize,
    TrainConfig,
    accuracy,
    cam_boxes,
    crop_all,
    foreground_boxes,
    grad_cam,
    iou,
    jitter_boxes,
    load_boxes,
    macs,
    map_layers,
    mean_iou,
    normalise,
    parameters,
    predict,
    predict_boxes,
    predicted_cycles,
    resize_all,
    save_boxes,
    train_on_crops,
    train_predictor,
)
from hwgen.compress.cropping import BOX_LOSSES
from hwgen.compress.training import CUT_WEIGHT, _loss
from hwgen.ir import evaluate_integer, quantize_input, run_quantized
from hwgen.models import (
    ForegroundPredictor,
    any_net_predictor,
    demo_classifier,
    resnet8,
    with_box_head,
)
from hwgen.quantize import quantize_model

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_iou_by_hand():
    first = np.array([[0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 4, 2], [1, 1, 1, 1]])
    second = np.array([[1, 1, 3, 3], [2, 2, 3, 3], [0, 0, 4, 2], [1, 1, 1, 1]])
    assert np.array_equal(iou(first, second), [1 / 7, 0.0, 1.0, 0.0])


def test_crops_are_those_of_the_contract():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (30, 40, 52, 3)).astype(np.uint8)
    boxes = rng.random((30, 4))
    crops = crop_all(images, boxes, 24)
    for image, box, crop in zip(images, boxes, crops, strict=True):
        y0, x0, side = square_crop(box, 40, 52)
        assert np.array_equal(crop, resize(image[y0 : y0 + side, x0 : x0 + side], 24))


def test_jitter_moves_boxes_by_as_much_as_it_says_and_stays_inside():
    boxes = np.full((5000, 4), 0.5)
    moved = jitter_boxes(boxes, 0.05, np.random.default_rng(2))
    assert abs((moved - boxes).std() - 0.05) < 0.002
    edge = jitter_boxes(np.tile([0.0, 0, 1, 1], (100, 1)), 0.3, np.random.default_rng(2))
    assert edge.min() >= 0 and edge.max() <= 1


class BlobClassifier(nn.Module):
    """Says how red the frame is: class 1's logit is the mean of a ReLU of red."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 2, 4, stride=4), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with torch.no_grad():
            self.features[0].weight.zero_()
            self.features[0].weight[0, 2] = 1.0  # blue
            self.features[0].weight[1, 0] = 1.0  # red
            self.features[0].bias.zero_()

    def forward(self, x):
        return self.pool(self.features(x))


def test_grad_cam_finds_a_planted_blob_and_that_of_the_class_asked_for():
    rng = np.random.default_rng(3)
    corners = rng.integers(0, 9, (20, 2)) * 4  # y, x of a red blob of 16 x 16
    images = np.zeros((20, 64, 64, 3), np.uint8)
    truth = np.empty((20, 4))
    for i, (y, x) in enumerate(corners):
        images[i, y : y + 16, x : x + 16, 0] = 255
        images[i, 48:, 48:, 2] = 255  # blue, for the other class
        truth[i] = np.array([x, y, x + 16, y + 16]) / 64
    model = BlobClassifier()
    boxes = cam_boxes(grad_cam(model, images, np.ones(20, np.int64), "features"))
    assert iou(boxes, truth).min() > 0.6
    other = cam_boxes(grad_cam(model, images, np.zeros(20, np.int64), "features"))
    assert iou(other, np.tile([0.75, 0.75, 1, 1], (20, 1))).min() > 0.6
    # Blobs lie on whole cells, and half of the range is where the enlarged map leaves a cell.
    found = foreground_boxes(model, images, np.ones(20, np.int64))
    assert np.array_equal(found, truth.astype(np.float32))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_grad_cam_refuses_a_layer_without_a_map():
    images = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match=r"layer must have a map .* features.1, not 'pool'"):
        grad_cam(BlobClassifier(), images, np.zeros(1, int), "pool")
    with pytest.raises(ValueError, match="one of features.0, features.1, not 'middle'"):
        grad_cam(BlobClassifier(), images, np.zeros(1, int), "middle")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64 * 64 * 3, 2))
    with pytest.raises(ValueError, match="the model has none"):
        grad_cam(flat, images)


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 2], "must be 0 to 1.* not 0 to 2"), ([0], r"the shape \(2,\)")]
)
def test_grad_cam_refuses_labels_that_are_none_of_the_models(labels, message):
    with pytest.raises(ValueError, match=message):
        grad_cam(BlobClassifier(), np.zeros((2, 64, 64, 3), np.uint8), np.array(labels))


class TwoConvolutions(nn.Module):
    """One ReLU module behind both convolutions, or a ReLU for each."""

    def __init__(self, shared: bool, inplace: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.relu = nn.ReLU(inplace)
        self.last = self.relu if shared else nn.ReLU(inplace)
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(self.last(self.second(self.relu(self.first(x)))).mean((2, 3)))


def test_a_module_that_runs_twice_gives_its_last_map():
    torch.manual_seed(13)
    twice, apart = TwoConvolutions(True).train(), TwoConvolutions(False)
    apart.load_state_dict(twice.state_dict())
    images = np.random.default_rng(13).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)
    assert map_layers(twice, images[0]) == ["first", "second", "relu"]
    assert map_layers(apart, images[0]) == ["first", "relu", "second", "last"]
    maps = grad_cam(twice, images)
    assert np.array_equal(maps, grad_cam(apart, images)) and maps.max() > 0
    assert np.array_equal(maps, grad_cam(apart, images, layer="last"))
    assert not np.array_equal(maps, grad_cam(apart, images, layer="relu"))
    # What the convolution gave is looked at, whether or not an activation then works in place.
    inplace = TwoConvolutions(True, inplace=True)
    inplace.load_state_dict(twice.state_dict())
    before = grad_cam(twice, images, layer="second")
    assert np.array_equal(before, grad_cam(inplace, images, layer="second"))
    assert not np.array_equal(maps, before)
    assert twice.training and all(parameter.grad is None for parameter in twice.parameters())


def test_grad_cam_takes_the_last_map_and_the_models_own_answer_by_itself():
    rng = np.random.default_rng(8)
    images = rng.integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
    model = BlobClassifier()
    assert map_layers(model, images[0]) == ["features.0", "features.1"]
    answers = predict(model, images).argmax(axis=1)
    assert np.array_equal(grad_cam(model, images), grad_cam(model, images, answers, "features.1"))
    names = map_layers(resnet8(), images[0])
    assert names[0] == "conv1" and names[-1] == "layer3.0.relu2"
    boxes = foreground_boxes(model, images, answers, chunk=4)
    assert np.array_equal(boxes, cam_boxes(grad_cam(model, images, answers)))


class Contrast(nn.Module):
    """Class 1 is for red and against blue, class 0 the reverse; its last map lies a pixel right."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU())
        self.moved = nn.Conv2d(2, 2, (1, 3), padding=(0, 1), bias=False)
        with torch.no_grad():
            self.seen[0].weight.zero_()
            self.moved.weight.zero_()
            for channel, colour in enumerate((0, 2)):
                self.seen[0].weight[channel, colour] = 1.0
                self.moved.weight[channel, channel, 0, 0] = 1.0

    def forward(self, x):
        y = self.moved(self.seen(x)).mean((2, 3))
        return y.flip(1) - y


def test_what_speaks_against_a_class_is_not_in_its_map():
    images = np.zeros((2, 4, 8, 3), np.uint8)
    images[:, 1, 2, 0] = images[:, 3, 4, 2] = 255  # fed as 2.0; each gradient is 1/32 of one pixel
    wanted = np.zeros((2, 4, 8), np.float32)
    wanted[0, 1, 3] = wanted[1, 3, 5] = 2 / 32
    assert np.array_equal(grad_cam(Contrast(), images, np.array([1, 0])), wanted)


def test_pseudo_boxes_are_of_the_layer_and_the_split_asked_for():
    images = np.zeros((3, 4, 8, 3), np.uint8)
    images[:, 1, 2, 0], images[:, 1, 3, 0] = 255, 179  # fed as 2.0 and 0.81
    images[:, 2:, 5:, 2] = 255  # the model's own answer is 0
    found = foreground_boxes(Contrast(), images, np.ones(3), layer="seen", split=0.3, chunk=2)
    assert np.array_equal(found, np.tile(np.float32([0.25, 0.25, 0.5, 0.5]), (3, 1)))
    half = foreground_boxes(Contrast(), images, np.ones(3), layer="seen")
    assert np.array_equal(half, np.tile(np.float32([0.25, 0.25, 0.375, 0.5]), (3, 1)))
    last = foreground_boxes(Contrast(), images, np.ones(3), split=0.3)
    assert np.array_equal(last, np.tile(np.float32([0.375, 0.25, 0.625, 0.5]), (3, 1)))


def test_cam_boxes_by_hand():
    maps = np.zeros((2, 4, 8))
    maps[0, 1:3, 2:4] = 1.0
    maps[0, 0, 0] = 0.49
    assert np.array_equal(cam_boxes(maps), np.array([[0.25, 0.25, 0.5, 0.75], [0, 0, 1, 1]], "f4"))
    assert np.array_equal(cam_boxes(maps[:1], 0.4), np.array([[0, 0, 0.5, 0.75]], "f4"))
    with pytest.raises(ValueError, match=r"split must be in \[0, 1\]"):
        cam_boxes(maps, 1.5)


def test_a_predictor_learns_where_a_square_is():
    rng = np.random.default_rng(4)
    low = rng.integers(0, 40, (400, 2))
    boxes = np.concatenate([low, low + 24], axis=1) / 64
    images = rng.integers(0, 40, (400, 64, 64, 3)).astype(np.uint8)
    for image, (x, y) in zip(images, low, strict=True):
        image[y : y + 24, x : x + 24] = 220
    torch.manual_seed(0)
    knobs = PredictorConfig(32, TrainConfig(epochs=10, loss="smooth_l1", batch_size=32))
    held_out = images[300:], boxes[300:]
    model, report = train_predictor(
        ForegroundPredictor(), images[:300], boxes[:300], knobs, validation=held_out
    )
    found = predict_boxes(model, held_out[0], 32)
    assert found.min() >= 0 and found.max() <= 1
    assert report.validation_iou == pytest.approx(iou(found, held_out[1]).mean())
    assert report.validation_iou > 0.6 and report.train_iou > 0.6
    with pytest.raises(ValueError, match="loss must be one of .*weighted_mse"):
        train_predictor(model, images, boxes, PredictorConfig(train=TrainConfig()))
    with pytest.raises(ValueError, match=r"in \[0, 1\] of the frame; try dividing pixels"):
        train_predictor(model, images, boxes * 64, knobs)
    with pytest.raises(ValueError, match=r"shape \(400, 4\), not \(399, 4\)"):
        train_predictor(model, images, boxes[1:], knobs)


def test_crops_from_the_small_tensor_are_those_of_the_resized_frame():
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (8, 64, 64, 3)).astype(np.uint8)
    boxes = rng.random((8, 4))
    small = np.stack([resize(image, 32) for image in images])
    assert np.array_equal(crop_all(images, boxes, 24, small=32), crop_all(small, boxes, 24))
    assert not np.array_equal(crop_all(images, boxes, 24, small=32), crop_all(images, boxes, 24))
    for image, box, crop in zip(small, boxes, crop_all(images, boxes, 24, small=32), strict=True):
        y0, x0, side = square_crop(box, 32, 32)
        assert side in (8, 16, 24, 32)
        assert np.array_equal(crop, resize(image[y0 : y0 + side, x0 : x0 + side], 24))
    with pytest.raises(ValueError, match=r"shape \(8, 4\), not \(7, 4\)"):
        crop_all(images, boxes[:7], 24)
    with pytest.raises(ValueError, match=r"boxes must be finite and in \[0, 1\] of the frame"):
        crop_all(images, boxes * 32, 24)


def test_the_weighted_loss_minds_what_is_cut_off_by_hand():
    target = torch.tensor([[0.2, 0.2, 0.8, 0.8]])
    config = TrainConfig(loss="weighted_mse")
    for edge, inwards in ((0, 1.0), (1, 1.0), (2, -1.0), (3, -1.0)):
        move = torch.zeros(1, 4)
        move[0, edge] = 0.125 * inwards
        cut, spare = (_loss(config, target + sign * move, target) for sign in (1, -1))
        assert spare.item() == pytest.approx(0.125**2 / 4, rel=1e-5)
        assert cut.item() == pytest.approx(CUT_WEIGHT * 0.125**2 / 4, rel=1e-5)


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        ((0.25, 0.25, 0.75, 0.75), 0.0),
        ((0.75, 0.25, 0.25, 0.75), 0.0),  # swapped edges
        ((0.25, 0.25, 0.5, 0.75), 1 - 1 / 2),  # inside: as IoU
        ((0.5, 0.25, 1.0, 0.75), 1 - 1 / 3),  # the hull has nothing beside them
        ((0.5, 0.5, 1.0, 1.0), 1 - (1 / 7 - 2 / 9)),
        ((0.75, 0.75, 1.0, 1.0), 1 - (0 - 4 / 9)),  # touch at a corner
        ((0.75, 0.25, 0.75, 0.75), 1.0),  # empty, at the edge
    ],
)
def test_the_giou_loss_by_hand(box, wanted):
    found = torch.tensor([box], requires_grad=True)
    target = torch.tensor([[0.25, 0.25, 0.75, 0.75]])
    loss, edges = (_loss(TrainConfig(loss=name), found, target) for name in ("giou", "smooth_l1"))
    assert loss.item() == pytest.approx(wanted + 4 * edges.item(), abs=1e-6)
    loss.backward()
    assert torch.isfinite(found.grad).all() and (wanted == 0 or found.grad.any())


@pytest.mark.parametrize("augment", [Augment(flip=True), Augment(shift=5), Augment(True, 5)])
def test_boxes_move_with_their_images(augment):
    rng = np.random.default_rng(6)
    low = rng.integers(8, 30, (50, 2))
    boxes = (np.concatenate([low, low + [[9, 13]]], axis=1) / 48).astype(np.float32)
    images = np.zeros((50, 48, 48, 3), np.uint8)
    for image, (x, y) in zip(images, low, strict=True):
        image[y : y + 13, x : x + 9] = 200
    moved, found = augment.with_boxes(images, boxes, np.random.default_rng(7))
    assert np.array_equal(moved, augment(images, np.random.default_rng(7)))
    assert not np.array_equal(found, boxes)
    for image, box in zip(moved[..., 0], found, strict=True):
        x0, y0, x1, y1 = np.rint(box * 48).astype(int)
        seen = np.zeros((48, 48), np.uint8)
        seen[y0:y1, x0:x1] = 200
        assert np.array_equal(image, seen)


@pytest.mark.parametrize("loss", BOX_LOSSES)
def test_every_loss_and_augmentation_trains_a_predictor(loss):
    rng = np.random.default_rng(9)
    images = rng.integers(0, 256, (24, 32, 32, 3)).astype(np.uint8)
    boxes = np.tile([0.25, 0.25, 0.75, 0.75], (24, 1))
    torch.manual_seed(9)
    knobs = TrainConfig(epochs=12, batch_size=8, loss=loss, augment=Augment(flip=True, shift=2))
    model, report = train_predictor(
        ForegroundPredictor(), images, boxes, PredictorConfig(32, knobs)
    )
    assert report.training.losses[-1] < report.training.losses[0] and report.train_iou > 0
    found = predict_boxes(model, images, 32)
    assert mean_iou(found, boxes) == pytest.approx(report.train_iou)


@pytest.mark.parametrize(
    ("make", "side"),
    [
        (any_net_predictor, 64),
        (lambda: any_net_predictor(0.5, (1, 2, 1), ()), 48),
        (lambda: ForegroundPredictor(64), 64),
        (lambda: with_box_head(resnet8(), 32), 32),
    ],
    ids=["AnyNet", "AnyNet 0.5 of three stages", "light", "ResNet-8's trunk"],
)
def test_predictors_run_on_the_machine(make, side):
    torch.manual_seed(10)
    model = make().eval()
    rng = np.random.default_rng(10)
    images = normalise(rng.integers(0, 256, (8, side, side, 3)).astype(np.uint8))
    graph = quantize_model(model, images[:1], images)
    golden = GoldenRun(program.emit(graph, load_board("pynq-z2").config))
    codes = quantize_input(graph, images[:2].numpy())
    expected = evaluate_integer(graph, codes)[graph.outputs[0]].reshape(2, 4)
    found = np.stack([golden.run(image)[0].reshape(-1) for image in codes])
    assert np.array_equal(found, expected)
    # What the machine finds, as boxes of the frame, is what the quantized network says.
    code = graph[graph.outputs[0]].type.quant
    boxes = dequantize(expected, code.scale, code.zero_point)
    assert np.array_equal(run_quantized(graph, images[:2].numpy()), boxes)


def test_the_papers_predictor_has_their_size_and_any_width():
    torch.manual_seed(14)
    whole = any_net_predictor()
    # Published: bottlenecks of 16, 32, 32, 64 (times 4), two a stage, 256 and 64 before the box.
    stages = [whole.get_submodule(f"stage{i}") for i in (1, 2, 3, 4)]
    assert [stage[-1].expand[0].out_channels for stage in stages] == [64, 128, 128, 256]
    assert [len(stage) for stage in stages] == [2, 2, 2, 2]
    # In their table it takes ResNet-50 (25.56 M parameters, 4.09 G MACs) to 25.9 M and 4.2 G.
    assert round(25.56 + parameters(whole, (3, 224, 224)) / 1e6, 1) == 25.9
    assert round(4.09 + macs(whole, (3, 224, 224)) / 1e9, 1) == 4.2
    for width, channels in ((0.25, 16 * 4), (0.5, 32 * 4), (0.75, 48 * 4), (2.0, 128 * 4)):
        net = any_net_predictor(width).eval()
        assert net.stage4[-1].expand[0].out_channels == channels
        assert net(torch.zeros(2, 3, 40, 72)).shape == (2, 4)
    with pytest.raises(ValueError, match="width must be above 0"):
        any_net_predictor(0.0)
    with pytest.raises(ValueError, match="one to four counts of at least 1"):
        any_net_predictor(depths=(1, 1, 1, 1, 1))


def test_a_predictor_resumes_with_the_same_augmentation_alone(tmp_path):
    rng = np.random.default_rng(13)
    images = rng.integers(0, 256, (16, 32, 32, 3)).astype(np.uint8)
    boxes = np.tile([0.25, 0.25, 0.75, 0.75], (16, 1))
    knobs = TrainConfig(epochs=1, batch_size=8, loss="mse", augment=Augment(flip=True))
    file = tmp_path / "predictor.checkpoint"
    train_predictor(
        ForegroundPredictor(), images, boxes, PredictorConfig(32, knobs), checkpoint=file
    )
    other = PredictorConfig(32, replace(knobs, augment=Augment(shift=1)))
    with pytest.raises(ValueError, match="must belong to this training"):
        train_predictor(ForegroundPredictor(), images, boxes, other, checkpoint=file)


def test_a_box_head_keeps_the_trunk_and_knows_where_things_are():
    torch.manual_seed(11)
    base = resnet8()
    model = with_box_head(base, 32)
    assert torch.equal(model.layer3[0].conv2.weight, base.layer3[0].conv2.weight)
    assert model.linear.in_features == 64 * 4 * 4 and base.linear.out_features == 10


@pytest.mark.parametrize(("own", "side"), [(64, 40), (24, 24), (16, 36)])
def test_resizing_before_a_network_is_the_contracts_but_for_its_rounding(own, side):
    images = np.random.default_rng(14).integers(0, 256, (3, own, own, 4)).astype(np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double()
    small = torch.floor(Resize(own, side, first=1)(pixels) + 0.5)  # 1/256 and 255 are exact
    wanted = resize_all(np.ascontiguousarray(images[..., 1:]), side)
    assert np.array_equal(small.permute(0, 2, 3, 1).numpy(), wanted)


class Onlooker(nn.Module):
    """Answers nothing in particular, and keeps what it was shown while `keep` was a list."""

    keep: list[torch.Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.keep.append(x.detach())
        return self.linear(x.mean(dim=(2, 3)))


class Student(Onlooker):
    keep = []


class Teacher(Onlooker):
    keep = []


def test_a_classifier_sees_crops_and_its_teacher_the_frames_they_were_cut_from():
    rng = np.random.default_rng(15)
    frames, labels = rng.integers(0, 256, (6, 32, 32, 3)).astype(np.uint8), np.arange(6) % 2
    found = rng.random((2, 6, 4))
    Student.keep.clear()
    Teacher.keep.clear()
    knobs = TrainConfig(epochs=2, batch_size=6)
    train_on_crops(
        Student(), frames, labels, lambda epoch: found[epoch], 20, knobs, teacher=Teacher()
    )
    shown = Student.keep[:2]  # then the batch norms are re-estimated
    for epoch, (crop, frame) in enumerate(zip(shown, Teacher.keep, strict=True)):
        order = np.random.default_rng((0, epoch)).permutation(6)
        assert torch.equal(frame, normalise(frames[order]))
        cut = normalise(crop_all(frames, found[epoch], 32)[order])
        assert torch.equal(crop, Resize(32, 20)(cut))
    assert torch.equal(Student.keep[2], normalise(crop_all(frames, found[0], 20)))


def test_without_a_teacher_a_student_sees_what_the_board_cuts():
    rng = np.random.default_rng(15)
    frames, labels = rng.integers(0, 256, (6, 32, 32, 3)).astype(np.uint8), np.arange(6) % 3
    boxes = np.sort(rng.random((6, 2, 2)), axis=1).reshape(6, 4)
    seen = []

    class Student(nn.Linear):
        def forward(self, x):
            seen.append(x)
            return super().forward(x.flatten(1))

    train_on_crops(Student(1200, 3), frames, labels, boxes, 20, TrainConfig(epochs=1, batch_size=6))
    order = np.random.default_rng((0, 0)).permutation(6)
    assert torch.equal(seen[0], normalise(crop_all(frames, boxes, 20)[order]))


def test_predicted_edges_are_put_in_order_as_on_the_board():
    class Swapped(nn.Module):
        def forward(self, x):
            return torch.tensor([[0.6, 0.2, 0.5, 1.9]]).repeat(len(x), 1)

    frames = np.zeros((2, 16, 16, 3), np.uint8)
    found = predict_boxes(Swapped(), frames, 8)
    np.testing.assert_array_equal(found, np.float32([[0.5, 0.2, 0.6, 1.0]] * 2))
    assert mean_iou(found, np.float32([[0.5, 0.2, 0.6, 1.0]] * 2)) == 1.0


def test_a_classifier_of_crops_learns_what_is_in_the_box():
    rng = np.random.default_rng(16)
    frames = rng.integers(0, 100, (160, 32, 32, 3)).astype(np.uint8)
    labels, place = rng.integers(0, 2, 160), rng.integers(0, 16, (160, 2))
    for frame, label, (y, x) in zip(frames, labels, place, strict=True):
        frame[y : y + 16, x : x + 16, label] += 120  # red or green inside, blue anywhere
        frame[rng.integers(0, 32, 200), rng.integers(0, 32, 200), 2] = 255
    boxes = np.concatenate([place[:, ::-1], place[:, ::-1] + 16], axis=1) / 32
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))  # fmt: skip
    before = {name: value.clone() for name, value in net.state_dict().items()}
    knobs = TrainConfig(epochs=6, batch_size=16, learning_rate=2e-2, augment=Augment(flip=True))
    trained, report = train_on_crops(net, frames, labels, boxes, 16, knobs)
    assert accuracy(trained, crop_all(frames, boxes, 16), labels) == 1.0
    assert len(report.losses) == 6
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((4, 32, 24, 3), np.uint8)}, "frames must be square.*resize_all"),
        ({"labels": np.zeros(3, np.int64)}, "targets must be 4, one an image, not 3"),
        ({"boxes": np.zeros((3, 4))}, r"boxes must have the shape \(4, 4\), not \(3, 4\)"),
        ({"boxes": np.tile([4.0, 4, 20, 20], (4, 1))}, r"in \[0, 1\] of the frame; try dividing"),
        ({"config": TrainConfig(loss="giou")}, "loss must be 'cross_entropy'.*not 'giou'"),
    ],
)
def test_what_is_no_training_on_crops_is_refused(change, message):
    given = {
        "frames": np.zeros((4, 32, 32, 3), np.uint8),
        "labels": np.zeros(4, np.int64),
        "boxes": np.tile([0.0, 0, 1, 1], (4, 1)),
        "config": TrainConfig(epochs=1),
    } | change
    with pytest.raises(ValueError, match=message):
        train_on_crops(resnet8(), side=16, **given)


def test_saved_boxes_belong_to_their_images(tmp_path):
    rng = np.random.default_rng(12)
    images = rng.integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    boxes = np.sort(rng.random((5, 2, 2)), axis=1).reshape(5, 4).astype(np.float32)
    save_boxes(tmp_path / "boxes.npz", boxes, images, "Grad-CAM")
    held, source = load_boxes(tmp_path / "boxes.npz", images)
    assert np.array_equal(held, boxes) and source == "Grad-CAM"
    with pytest.raises(ValueError, match="boxes of these 5 images, but they are of 5 others"):
        load_boxes(tmp_path / "boxes.npz", resize_all(images, 12))
    with pytest.raises(ValueError, match=r"shape \(5, 4\)"):
        save_boxes(tmp_path / "boxes.npz", boxes[:4], images, "true")
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        save_boxes(tmp_path / "boxes.npz", boxes * 16, images, "true")
    assert np.array_equal(load_boxes(tmp_path / "boxes.npz", images)[0], boxes)
    assert [path.name for path in tmp_path.iterdir()] == ["boxes.npz"]
    with pytest.raises(ValueError, match="xmin, ymin, xmax, ymax, not .*try adding x to the width"):
        save_boxes(tmp_path / "boxes.npz", boxes[:, [2, 3, 0, 1]], images, "true")
    (tmp_path / "boxes.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="must be a file of save_boxes"):
        load_boxes(tmp_path / "boxes.npz", images)
    np.save(tmp_path / "boxes.npy", boxes)
    with pytest.raises(ValueError, match="must be a file of save_boxes"):
        load_boxes(tmp_path / "boxes.npy", images)


@pytest.mark.parametrize(
    ("boxes", "validation", "message"),
    [
        (np.tile([0.6, 0.6, 0.2, 0.2], (4, 1)), None, "boxes must be xmin, ymin, xmax, ymax"),
        (None, np.tile([0.0, 0, 8, 8], (4, 1)), r"in \[0, 1\] of the frame"),
        (None, np.tile([0.0, 0, 1, 1], (1, 1)), r"shape \(4, 4\), not \(1, 4\)"),
    ],
)
def test_boxes_are_checked_before_a_predictor_is_trained(boxes, validation, message):
    frames, whole = np.zeros((4, 32, 32, 3), np.uint8), np.tile([0.0, 0, 1, 1], (4, 1))
    given = (frames, whole if validation is None else validation)
    with pytest.raises(ValueError, match=message):
        train_predictor(
            ForegroundPredictor(), frames, whole if boxes is None else boxes, validation=given
        )


def test_cycles_of_a_crop_are_those_of_the_committed_run_on_the_rtl():
    """Resizing in the machine is predicted as it was beside the RTL, which takes 1 % more at most.

    Networks and boxes are those of `make bench-frames`.
    """
    measured = {
        (row["network"], row["box"]): row
        for row in json.loads((RESULTS / "frames.json").read_text(encoding="utf-8"))["rows"]
    }
    networks = {"predictor": (ForegroundPredictor(), 32), "classifier": (demo_classifier(), 64)}
    for role, box in (("predictor", 64), ("classifier", 48), ("classifier", 64)):
        network, side = networks[role]
        row = measured[role, f"{box} x {box}"]
        cycles = predicted_cycles(network.eval(), (3, side, side), box=(box, box))
        assert cycles == row["estimated_cycles"]
        assert row["cycles_without"] < cycles <= row["cycles"] <= 1.01 * cycles
    with pytest.raises(ValueError, match="a box must be at most .* pixels wide"):
        predicted_cycles(networks["predictor"][0], (3, 32, 32), box=(64, 5000))


def test_boxes_of_no_number_and_labels_of_other_images_are_refused():
    with pytest.raises(ValueError, match="maps must be finite"):
        cam_boxes(np.full((2, 4, 4), np.nan))
    with pytest.raises(ValueError, match=r"labels must have the shape \(4,\), not \(6,\)"):
        foreground_boxes(
            resnet8(), np.zeros((4, 32, 32, 3), np.uint8), np.zeros(6, np.int64), chunk=2
        )
    with pytest.raises(ValueError, match=r"both must be \(N, 4\), not \(4, 4\) and \(1, 4\)"):
        mean_iou(np.zeros((4, 4)), np.zeros((1, 4)))
