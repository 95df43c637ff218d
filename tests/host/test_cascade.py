# SPDX-License-Identifier: Apache-2.0
"""Room tests: `host.CascadeClassifier` runs as many networks as the rule says, to the same bits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import host
from hwgen.arch.cascade import ALWAYS, NEVER, CascadeRule, confidence_of, run_rule
from hwgen.arch.cascade_bundle import CascadeBundle
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.crop import ordered_box, resize, square_crop
from hwgen.arch.interpreter import GoldenRun
from hwgen.arch.registers import ErrorCode
from hwgen.compress import cascade_logits, compile_cascade, normalise
from hwgen.quantize import quantize_model
from tests.host.fake_device import FakeDevice
from tests.host.small_bundle import CONFIG, expected, linear_bundle

NAMES = ("cat", "dog", "owl")
SIDES = (3, 4, 3)
PLACES = (0, 12, 32)


@pytest.fixture
def weights(rng):
    return [rng.integers(-128, 128, (3, 3, side, side)).astype(np.int8) for side in SIDES]


@pytest.fixture
def boxes(rng):
    return rng.integers(-40, 40, (4, 3, 4, 4)).astype(np.int8)


@pytest.fixture
def device():
    return FakeDevice(CONFIG)


@pytest.fixture
def frames(rng):
    shapes = [(16, 16), (9, 21), (30, 7)] * 8
    return [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]


def bundle_of(weights, rule, boxes=None, labels=NAMES) -> CascadeBundle:
    stages = tuple(
        linear_bundle(weight, f"stage {k}", place, place, scale=1 / 32, labels=labels)
        for k, (weight, place) in enumerate(zip(weights[: rule.stages], PLACES, strict=False))
    )
    predictor = None if boxes is None else linear_bundle(boxes, "predictor", 46, 46, 1 / 64)
    return CascadeBundle("pets", rule, stages, predictor)


def answer(weight, bundle, picture):
    """Compute what a network answers to a picture, without the device."""
    codes = bundle.quantize_input(bundle.preprocess(picture))
    return bundle.dequantize_output(0, expected(weight, codes))


def reference_logits(cascade, weights, pictures):
    """Logits that every stage has for every picture, resized to its side."""
    return [
        np.stack([answer(weight, bundle, resize(p, bundle.input.shape[1])) for p in pictures])
        for weight, bundle in zip(weights, cascade.stages, strict=False)
    ]


def cut(boxes, cascade, frames):
    """Return the crop of every frame, its corner and side, and the box of the predictor."""
    crops, corners, found = [], [], []
    for frame in frames:
        found.append(ordered_box(answer(boxes, cascade.predictor, resize(frame, 4))))
        y0, x0, side = square_crop(found[-1], *frame.shape[:2])
        corners.append((y0, x0, side))
        crops.append(frame[y0 : y0 + side, x0 : x0 + side])
    return crops, corners, found


def halving(cascade, weights, pictures) -> CascadeBundle:
    """Give a cascade thresholds that about half of the images are below, in each stage."""
    running, thresholds, rule = None, [], cascade.rule
    for stage, logits in enumerate(reference_logits(cascade, weights, pictures)):
        running = rule.fuse(stage, running, logits)
        thresholds.append(float(np.median(confidence_of(running, rule.confidence))))
    rule = dataclasses.replace(rule, thresholds=tuple(thresholds[:-1]))
    return dataclasses.replace(cascade, rule=rule)


def network(width: int) -> nn.Module:
    """Three classes from pictures of 8 x 8 pixels."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )


def equal(found, wanted) -> None:
    assert np.array_equal([f.label for f in found], wanted.labels)
    assert np.array_equal([f.stages for f in found], wanted.stages)
    assert np.array_equal([f.confidence for f in found], wanted.confidence)
    assert np.array_equal([f.logits for f in found], wanted.logits)


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("confidence", ["margin", "top1"])
def test_the_host_equals_the_rule(device, weights, frames, stages, confidence) -> None:
    alphas = (0.75, 1.5)[: stages - 1]
    rule = CascadeRule((NEVER,) * (stages - 1), alphas, confidence)
    cascade = halving(bundle_of(weights, rule), weights, frames)
    wanted = run_rule(cascade.rule, reference_logits(cascade, weights, frames))
    assert set(wanted.stages) == set(range(1, stages + 1))
    with host.CascadeClassifier(cascade, device) as classifier:
        assert device.starts == stages
        equal([classifier.run(frame) for frame in frames], wanted)
        assert device.starts == stages + wanted.stages.sum()  # all stay resident
        found = classifier.run_batch(iter(frames))
        equal(found, wanted)
        assert device.starts == stages + 2 * wanted.stages.sum()
    assert not device.allocated
    for one in found:
        ran = SIDES[: one.stages]
        assert one.cycles == sum(100 + side * side for side in ran)
        assert len(one.stage_runs) == one.stages and one.name == NAMES[one.label]
        assert one.predictor_run is one.box is one.crop is None and one.seconds > 0


def test_stages_see_the_crop(device, weights, boxes, frames) -> None:
    cascade = bundle_of(weights, CascadeRule((NEVER,)), boxes)
    crops, corners, found_boxes = cut(boxes, cascade, frames)
    cascade = halving(cascade, weights, crops)
    wanted = run_rule(cascade.rule, reference_logits(cascade, weights, crops))
    with host.CascadeClassifier(cascade, device) as classifier:
        found = classifier.run_batch(frames)
        equal(found, wanted)
        assert device.starts == 3 + len(frames) + wanted.stages.sum()
    assert [one.crop for one in found] == corners
    assert np.array_equal([one.box for one in found], found_boxes)
    for one in found:
        assert one.predictor_run.cycles == 100 + 16
        assert one.cycles == 116 + sum(100 + side * side for side in SIDES[: one.stages])


def test_frames_that_a_glance_is_enough_for_are_not_cropped(device, weights, boxes, frames) -> None:
    cascade = bundle_of(weights, CascadeRule((NEVER,)), boxes)
    cascade = dataclasses.replace(halving(cascade, weights, frames), glances=1)
    glanced = reference_logits(cascade, weights, frames)[0]
    crops, corners, _ = cut(boxes, cascade, frames)
    focused = reference_logits(cascade, weights, crops)[1]
    wanted = run_rule(cascade.rule, [glanced, focused])
    on = int((wanted.stages == 2).sum())
    assert 0 < on < len(frames)
    with host.CascadeClassifier(cascade, device) as classifier:
        found = classifier.run_batch(frames)
        equal(found, wanted)
        assert device.starts == 3 + len(frames) + 2 * on
        equal([classifier.run(frame) for frame in frames], wanted)
    for one, corner in zip(found, corners, strict=True):
        if one.stages == 1:
            assert one.crop is one.box is one.predictor_run is None and one.cycles == 100 + 9
        else:
            assert one.crop == corner and one.cycles == 109 + 116 + 116


def test_what_was_saved_runs(device, weights, boxes, frames, tmp_path) -> None:
    cascade = bundle_of(weights, CascadeRule((0.5, 0.25)), boxes, labels=None)
    loaded = CascadeBundle.load(cascade.save(tmp_path / "pets.cascade"))
    with host.CascadeClassifier(loaded, device) as classifier:
        found = classifier.run_batch(frames)
    with host.CascadeClassifier(cascade, device) as classifier:
        for one, other in zip(found, classifier.run_batch(frames), strict=True):
            assert np.array_equal(one.logits, other.logits) and one.stages == other.stages
            assert one.name == str(one.label)


def test_never_and_always(device, weights, frames) -> None:
    for threshold, stages in ((NEVER, 1), (ALWAYS, 2)):
        with host.CascadeClassifier(
            bundle_of(weights, CascadeRule((threshold,))), device
        ) as classifier:
            assert {found.stages for found in classifier.run_batch(frames)} == {stages}


def test_networks_that_overlap_take_turns_least_often_in_a_batch(device, weights, frames) -> None:
    apart = bundle_of(weights, CascadeRule((ALWAYS,)))
    large = linear_bundle(weights[1], scale=1 / 32, labels=NAMES)
    cascade = dataclasses.replace(apart, stages=(apart.stages[0], large))
    assert apart.resident and not cascade.resident
    wanted = run_rule(cascade.rule, reference_logits(cascade, weights, frames))
    with host.CascadeClassifier(cascade, device) as classifier:
        before = device.starts
        equal(classifier.run_batch(frames), wanted)
        assert device.starts == before + 2 * len(frames) + 2
        before = device.starts
        found = [classifier.run(frame) for frame in frames]
        equal(found, wanted)
        assert device.starts == before + 4 * len(frames)
        for one in found:  # what is loaded anew costs cycles too
            runs = one.stage_runs
            assert all(run.setup_cycles > 0 for run in runs)
            assert one.cycles == sum(run.cycles + run.setup_cycles for run in runs)


def test_compiled_networks(rng, seed) -> None:
    """Networks from the compiler, one behind the other, against the golden model."""
    torch.manual_seed(seed)
    config = AcceleratorConfig(tn=8, ti=8, scratchpad_bank_words=1024, synapse_rows=512)
    x = normalise(rng.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8))
    graphs = [quantize_model(network(width), x[:1], x) for width in (8, 24)]
    cascade = compile_cascade(graphs, CascadeRule((0.5,)), config=config)
    assert cascade.resident
    frames = [rng.integers(0, 256, (12, 10, 3)).astype(np.uint8) for _ in range(16)]
    logits = cascade_logits(graphs, np.stack(frames), [8, 8])  # what thresholds are chosen on
    for bundle, wanted in zip(cascade.stages, logits, strict=True):
        golden = GoldenRun(bundle)
        codes = [bundle.quantize_input(bundle.preprocess(resize(f, 8))) for f in frames]
        found = [bundle.dequantize_output(0, golden.run(c)[0]) for c in codes]
        assert np.array_equal(found, wanted)
    rule = CascadeRule((float(np.median(confidence_of(logits[0]))),), (0.5,))
    cascade = dataclasses.replace(cascade, rule=rule)
    device = FakeDevice(config)
    with host.CascadeClassifier(cascade, device) as classifier:
        wanted = run_rule(cascade.rule, logits)
        equal(classifier.run_batch(frames), wanted)
        assert set(wanted.stages) == {1, 2} and device.starts == 2 + wanted.stages.sum()


@pytest.mark.slow
def test_the_same_on_the_rtl(weights, boxes, frames) -> None:
    from tests.host.rtl_device import RtlDevice

    first = bundle_of(weights, CascadeRule((NEVER,)), boxes)
    with host.CascadeClassifier(first, FakeDevice(CONFIG)) as classifier:
        middle = np.median([one.confidence for one in classifier.run_batch(frames[:8])])
    rule = CascadeRule((float(middle) + 1e-9,), (2.0,))
    cascade = dataclasses.replace(first, rule=rule)
    with host.CascadeClassifier(cascade, FakeDevice(CONFIG)) as classifier:
        wanted = classifier.run_batch(frames[:8])
    assert max(one.stages for one in wanted) > 1
    device = RtlDevice(CONFIG)
    with host.CascadeClassifier(cascade, device) as classifier:
        for one, other in zip(classifier.run_batch(frames[:8]), wanted, strict=True):
            assert np.array_equal(one.logits, other.logits) and one.stages == other.stages
            assert one.crop == other.crop and one.cycles > 0
    assert not device.allocated


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_frames_are_checked(device, weights, frame) -> None:
    with host.CascadeClassifier(bundle_of(weights, CascadeRule((0.5,))), device) as classifier:
        before = device.starts
        with pytest.raises(ValueError, match="a frame must"):
            classifier.run_batch([np.zeros((8, 8, 3), np.uint8), frame])
        with pytest.raises(ValueError, match="at least one frame"):
            classifier.run_batch([])
        assert device.starts == before


def test_errors(device, weights, frames) -> None:
    cascade = bundle_of(weights, CascadeRule((ALWAYS,)))
    with pytest.raises(TypeError, match="must be a CascadeBundle, not Bundle"):
        host.CascadeClassifier(cascade.stages[0], device)
    full = FakeDevice(CONFIG, ddr_bytes=7 * 4096)  # enough for the first network alone
    with pytest.raises(host.AllocationError):
        host.CascadeClassifier(cascade, full)
    assert not full.allocated
    with host.CascadeClassifier(cascade, device) as classifier:
        right = classifier.run(frames[0])
        device.faults.extend([None, ErrorCode.BAD_FIELD])
        with pytest.raises(host.ProgramError):
            classifier.run(frames[0])
        assert np.array_equal(classifier.run(frames[0]).logits, right.logits)
    with pytest.raises(host.AcceleratorClosed):
        classifier.run(frames[0])


def test_a_batch_that_dma_memory_does_not_hold(weights, boxes, frames) -> None:
    """The frames for which there is no room are resized by the host, to the same bits."""
    cascade = bundle_of(weights, CascadeRule((ALWAYS,)), boxes)
    with host.CascadeClassifier(cascade, FakeDevice(CONFIG), resize="host") as classifier:
        wanted = classifier.run_batch(frames)
    device = FakeDevice(CONFIG, ddr_bytes=40 * 4096)
    with host.CascadeClassifier(cascade, device) as classifier:
        assert classifier.resizer == "accelerator"
        for one, other in zip(classifier.run_batch(frames), wanted, strict=True):
            assert np.array_equal(one.logits, other.logits) and one.crop == other.crop
    assert not device.allocated
    with (
        host.CascadeClassifier(cascade, device, resize="accelerator") as classifier,
        pytest.raises(host.AllocationError),
    ):
        classifier.run_batch(frames)
    assert not device.allocated


def test_members_that_cannot_look_at_frames(rng) -> None:
    many = [rng.integers(-128, 128, (3, 5, side, side)).astype(np.int8) for side in SIDES]
    cascade = bundle_of(many, CascadeRule((ALWAYS,)))
    device = FakeDevice(CONFIG)
    with host.CascadeClassifier(cascade, device) as classifier:
        assert classifier.resizer == "host"
        classifier.run(rng.integers(0, 256, (9, 9, 5)).astype(np.uint8))
    with pytest.raises(ValueError, match="at most 4 channels, not 5; try resize='host'"):
        host.CascadeClassifier(cascade, device, resize="accelerator")
    assert not device.allocated
