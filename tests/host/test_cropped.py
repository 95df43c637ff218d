# SPDX-License-Identifier: Apache-2.0
"""Room tests: `host.CroppedClassifier`, frame to label."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import host
from hwgen.arch.crop import ordered_box, resize, square_crop
from tests.host.fake_device import FakeDevice
from tests.host.small_bundle import CONFIG, expected, linear_bundle

NAMES = ("cat", "dog", "owl")


@pytest.fixture
def weights(rng):
    return (
        rng.integers(-40, 40, (4, 3, 4, 4)).astype(np.int8),
        rng.integers(-128, 128, (3, 3, 5, 5)).astype(np.int8),
    )


@pytest.fixture
def device():
    return FakeDevice(CONFIG)


@pytest.fixture
def bundles(weights):
    return (
        linear_bundle(weights[0], "predictor", scale=1 / 64),
        linear_bundle(weights[1], "classifier", 24, 24, labels=NAMES),
    )


@pytest.fixture
def pair(bundles, device):
    with (
        host.Accelerator(bundles[0], device) as predictor,
        host.Accelerator(bundles[1], device) as classifier,
    ):
        yield predictor, classifier


@pytest.mark.parametrize("shape", [(64, 64), (37, 90), (5, 3)])
@pytest.mark.parametrize("resizer", ["accelerator", "host"])
def test_frame_to_label_equals_the_steps_by_hand(
    pair, weights, device, rng, shape, resizer
) -> None:
    cropped = host.CroppedClassifier(*pair, resize=resizer)
    frame = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    before = device.starts
    found = cropped.run(frame)
    assert device.starts == before + 2  # both stay resident

    def codes(bundle, picture):
        return bundle.quantize_input(bundle.preprocess(picture))

    whole = codes(pair[0].bundle, resize(frame, 4))
    box = ordered_box(expected(weights[0], whole) / np.float32(64))
    y0, x0, side = square_crop(box, *shape)
    assert found.crop == (y0, x0, side)
    np.testing.assert_array_equal(found.box, box)
    part = codes(pair[1].bundle, resize(frame[y0 : y0 + side, x0 : x0 + side], 5))
    logits = expected(weights[1], part) * np.float32(0.5)
    np.testing.assert_array_equal(found.logits, logits)
    assert found.label == int(np.argmax(logits)) and found.name == NAMES[found.label]
    assert found.cycles == (100 + 16) + (100 + 25)
    assert found.seconds >= found.predictor_run.total_seconds + found.classifier_run.total_seconds


@pytest.mark.parametrize(
    ("raw", "box"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
        ([0.3, 0.4, 0.1, 0.2], [0.1, 0.2, 0.3, 0.4]),
        ([-1, -0.5, 2, 1.5], [0, 0, 1, 1]),
        ([2, 0.5, -1, 0.5], [0, 0.5, 1, 0.5]),
    ],
)
def test_boxes_are_clipped_and_ordered(raw, box) -> None:
    np.testing.assert_array_equal(ordered_box(np.float32(raw)), np.float32(box))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_frames_are_checked(pair, frame) -> None:
    with pytest.raises(ValueError, match="a frame must"):
        host.CroppedClassifier(*pair).run(frame)


def test_bundles_are_checked(pair, bundles, weights, device) -> None:
    def using(bundle):
        return host.Accelerator(bundle, device)

    predictor, classifier = pair
    with pytest.raises(ValueError, match=r"4 numbers \(xmin, ymin, xmax, ymax\), not 3"):
        host.CroppedClassifier(classifier, classifier)
    with pytest.raises(ValueError, match="names must hold 3 texts, not 2"):
        host.CroppedClassifier(predictor, classifier, ("a", "b"))
    with using(linear_bundle(weights[1], pictures=False)) as other:
        with pytest.raises(ValueError, match="must take uint8 pictures"):
            host.CroppedClassifier(predictor, other)
    with using(linear_bundle(weights[1][:, :2])) as other:
        with pytest.raises(ValueError, match="equally many channels, not 3 and 2"):
            host.CroppedClassifier(predictor, other)
    flat = dataclasses.replace(bundles[1].input, shape=(3, 4, 5))
    with using(dataclasses.replace(bundles[1], input=flat)) as other:
        with pytest.raises(ValueError, match="must be square, not 4 x 5"):
            host.CroppedClassifier(predictor, other)
    image = dataclasses.replace(bundles[1].outputs[0], vector=False)
    with using(dataclasses.replace(bundles[1], outputs=(image,))) as other:
        with pytest.raises(ValueError, match="a vector"):
            host.CroppedClassifier(predictor, other)


def test_classes_without_labels_are_numbered(bundles, pair, device, rng) -> None:
    plain = dataclasses.replace(bundles[1], labels=None)
    with host.Accelerator(plain, device) as classifier:
        cropped = host.CroppedClassifier(pair[0], classifier)
        found = cropped.run(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8))
    assert found.name == str(found.label)


def small_machine(bundles, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return FakeDevice(config), [dataclasses.replace(b, config=config) for b in bundles]


@pytest.mark.parametrize("shape", [(20, 40), (1100, 12)])
def test_auto_takes_frames_that_the_resampler_cannot(bundles, rng, shape) -> None:
    """Too wide a row, too many steps: the host does what it did before there was a resampler."""
    device, (first, second) = small_machine(bundles, resampler_row_bytes=64)
    picture = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    with (
        host.Accelerator(first, device) as predictor,
        host.Accelerator(second, device) as classifier,
        host.Frame(*shape, 3, device) as frame,
    ):
        frame.write(picture)
        wanted = host.CroppedClassifier(predictor, classifier, resize="host").run(picture)
        cropped = host.CroppedClassifier(predictor, classifier)
        assert cropped.resizer == "accelerator"
        held = len(device.allocated)
        for each in (picture, frame):
            found = cropped.run(each)
            assert found.crop == wanted.crop
            np.testing.assert_array_equal(found.logits, wanted.logits)
        assert len(device.allocated) <= held + 1  # of a crop, a program
        strict = host.CroppedClassifier(predictor, classifier, resize="accelerator")
        with pytest.raises(host.FrameError):
            strict.run(picture)
        strict.close()
        cropped.close()


def test_auto_without_dma_memory(pair, device, rng) -> None:
    picture = rng.integers(0, 256, (30, 30, 3)).astype(np.uint8)
    wanted = host.CroppedClassifier(*pair, resize="host").run(picture)
    rest = device.allocate((len(device.ddr) - sum(device.allocated.values()),), "u1")
    found = host.CroppedClassifier(*pair).run(picture)
    np.testing.assert_array_equal(found.logits, wanted.logits)
    with pytest.raises(host.AllocationError):
        host.CroppedClassifier(*pair, resize="accelerator").run(picture)
    rest.freebuffer()
    with host.Frame(30, 30, 3, device) as frame:
        frame.write(picture)
        rest = device.allocate((len(device.ddr) - sum(device.allocated.values()),), "u1")
        found = host.CroppedClassifier(*pair).run(frame)  # no room for programs
        np.testing.assert_array_equal(found.logits, wanted.logits)
        rest.freebuffer()


def test_auto_with_many_channels(rng) -> None:
    bundles = (
        linear_bundle(rng.integers(-40, 40, (4, 5, 4, 4)).astype(np.int8), "predictor"),
        linear_bundle(rng.integers(-40, 40, (3, 5, 5, 5)).astype(np.int8), "classifier", 30, 30),
    )
    device = FakeDevice(CONFIG)
    with (
        host.Accelerator(bundles[0], device) as predictor,
        host.Accelerator(bundles[1], device) as classifier,
    ):
        cropped = host.CroppedClassifier(predictor, classifier)
        assert cropped.resizer == "host"
        cropped.run(rng.integers(0, 256, (9, 9, 5)).astype(np.uint8))
        with pytest.raises(ValueError, match="at most 4 channels, not 5; try resize='host'"):
            host.CroppedClassifier(predictor, classifier, resize="accelerator")


def test_networks_on_two_devices(bundles, rng) -> None:
    picture = rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)
    with (
        host.Accelerator(bundles[0], FakeDevice(CONFIG)) as predictor,
        host.Accelerator(bundles[1], FakeDevice(CONFIG)) as classifier,
    ):
        cropped = host.CroppedClassifier(predictor, classifier)
        assert cropped.resizer == "host"
        cropped.run(picture)
        with pytest.raises(ValueError, match="must be on one device"):
            host.CroppedClassifier(predictor, classifier, resize="accelerator")
