# SPDX-License-Identifier: Apache-2.0
"""Tests: boxes, crops, the foreground predictor and Grad-CAM."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hwgen.arch.crop import resize, square_crop
from hwgen.compress import (
    PredictorConfig,
    TrainConfig,
    cam_boxes,
    crop_all,
    grad_cam,
    iou,
    jitter_boxes,
    predict_boxes,
    train_predictor,
)
from hwgen.models import ForegroundPredictor


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
    assert all(parameter.grad is None for parameter in model.parameters())


def test_grad_cam_refuses_a_layer_without_a_map():
    with pytest.raises(ValueError, match="layer must have a map"):
        grad_cam(BlobClassifier(), np.zeros((1, 64, 64, 3), np.uint8), np.zeros(1, int), "pool")


def test_cam_boxes_by_hand():
    maps = np.zeros((2, 4, 8))
    maps[0, 1:3, 2:4] = 1.0
    maps[0, 0, 0] = 0.49
    assert np.array_equal(cam_boxes(maps), np.array([[0.25, 0.25, 0.5, 0.75], [0, 0, 1, 1]], "f4"))


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
    with pytest.raises(ValueError, match="loss must be 'smooth_l1' or 'mse'"):
        train_predictor(model, images, boxes, PredictorConfig(train=TrainConfig()))
