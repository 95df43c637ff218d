# SPDX-License-Identifier: Apache-2.0
"""Tests: the demo's training, on a few frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hwgen.compress import PredictorConfig, TrainConfig, normalise, tap_steps
from hwgen.datasets import FrameConfig
from hwgen.demo_training import DemoConfig, train_demo

TINY = DemoConfig(
    frames=FrameConfig(train=120, validation=60, test=60),
    predictor=PredictorConfig(32, TrainConfig(epochs=1, loss="smooth_l1")),
    crop=TrainConfig(epochs=1),
    frame=TrainConfig(epochs=1),
    retrain=TrainConfig(epochs=1),
    finish=TrainConfig(epochs=1),
    max_loss=0.3,
)


@pytest.mark.slow
def test_the_demo_trains_once_and_then_comes_from_the_cache(tmp_path):
    names = set()
    first = train_demo(tmp_path, 3, lambda name, done, total: names.add(name), TINY)
    assert not first.cached
    assert {"predictor", "crop classifier", "full-frame classifier", "compression"} <= names
    again = train_demo(tmp_path, 3, None, TINY)
    assert again.cached and again.accuracies == first.accuracies
    assert again.compression == first.compression and again.seconds == first.seconds
    for name in ("frame_classifier", "predictor", "crop_classifier", "compressed_classifier"):
        state = getattr(again, name).state_dict()
        for key, value in getattr(first, name).state_dict().items():
            assert torch.equal(value, state[key]), (name, key)
    assert np.array_equal(first.splits.test.images, again.splits.test.images)

    report = first.compression
    assert report.accuracy >= report.floor
    crop = tap_steps(first.compressed_classifier, (3, 32, 32))
    assert first.tap_steps["compressed"] == crop + first.tap_steps["predictor"]
    assert first.tap_steps["compressed"] <= first.tap_steps["cropped"]
    assert first.tap_steps["cropped"] < 0.5 * first.tap_steps["full_frame"]
    images = first.splits.test.images[:2]
    assert first.frame_classifier(normalise(images)).shape == (2, 10)
    assert first.frame_side == images.shape[1]

    other = train_demo(tmp_path, 4, None, TINY)
    assert not other.cached
    assert len(list(tmp_path.iterdir())) == 2


def test_an_error_in_the_other_process_is_told(tmp_path):
    broken = replace(TINY, predictor=PredictorConfig(32, TrainConfig(epochs=1)))
    with pytest.raises(RuntimeError, match="(?s)training of predictor ended with 1.*loss must be"):
        train_demo(tmp_path, 0, None, broken)
