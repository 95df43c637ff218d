# SPDX-License-Identifier: Apache-2.0
"""Tests: what networks are fed, through everything that feeds them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from hwgen.arch.cascade import CascadeRule
from hwgen.compress import (
    ApproximationConfig,
    CompressionConfig,
    KernelConfig,
    PredictorConfig,
    RelevanceConfig,
    ShrinkConfig,
    SliceConfig,
    TrainConfig,
    accuracy,
    approximate_maps,
    cascade_logits,
    compile_cascade,
    lower_kernels,
    lower_slices,
    normalise,
    preprocess_of,
    shrink,
    train,
    train_on_crops,
    trim_by_relevance,
    with_preprocess,
)
from hwgen.compress.inputs import PREPROCESS, batches
from hwgen.compress.training import predict
from hwgen.frontend import from_torch
from hwgen.ir import run_quantized
from hwgen.models import demo_classifier, resnet_cifar
from hwgen.passes.pipeline import to_fused
from hwgen.quantize import fine_tune_quantized, quantize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (32, 32, 32, 3)).astype(np.uint8)
LABELS = RNG.integers(0, 10, 32)


class Mean(nn.Module):
    """Returns the mean of each channel of what it is fed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


def test_a_network_is_fed_what_it_was_given() -> None:
    plain, fed = Mean(), with_preprocess(Mean(), MEAN, STD)
    pixels = IMAGES.astype(np.float64).mean(axis=(1, 2)) / 255
    np.testing.assert_allclose(predict(plain, IMAGES), (pixels - 0.5) / 0.25, atol=1e-5)
    np.testing.assert_allclose(predict(fed, IMAGES), (pixels - MEAN) / np.array(STD), atol=1e-5)
    assert preprocess_of(plain) == PREPROCESS and preprocess_of(fed) == (MEAN, STD)
    assert preprocess_of(nn.Sequential(nn.ReLU(), fed)) == (MEAN, STD)
    one = with_preprocess(plain, 0.5, 0.25)
    assert torch.equal(next(batches(one, IMAGES)), normalise(IMAGES))
    # Frame and crop side by side in the channels are each treated alike.
    both = normalise(np.concatenate([IMAGES, IMAGES], axis=3), preprocess=(MEAN, STD))
    assert torch.equal(both[:, 3:], both[:, :3])
    assert torch.equal(both[:, :3], normalise(IMAGES, preprocess=(MEAN, STD)))


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5, 0.5), (0.2,)), (math.nan, 1.0), (0.5, 0.0), (0.5, -1.0), ((), ()), (0.5, math.inf)],
)
def test_numbers_that_cannot_be_meant_are_refused(mean: object, std: object) -> None:
    with pytest.raises(ValueError, match="mean and std must be as many finite numbers"):
        with_preprocess(Mean(), mean, std)  # type: ignore[arg-type]


def test_a_graph_is_fed_what_it_was_given() -> None:
    """One from ONNX has no module to ask; what it is given stays with it until the bundle."""
    graph = with_preprocess(
        from_torch(demo_classifier().eval(), torch.zeros(1, 3, 32, 32)), MEAN, STD
    )
    assert preprocess_of(graph) == (MEAN, STD)
    x = normalise(IMAGES, preprocess=(MEAN, STD)).numpy()
    integers = quantize(to_fused(graph), x)
    logits = run_quantized(integers, x)
    assert np.array_equal(predict(integers, IMAGES), logits)
    assert accuracy(integers, IMAGES, LABELS) == (logits.argmax(axis=1) == LABELS).mean()
    bundle = compile_cascade([integers, integers], CascadeRule((0.5,)))
    assert [(stage.mean, stage.std) for stage in bundle.stages] == [(MEAN, STD)] * 2
    with pytest.raises(ValueError, match="mean and std must be as many finite numbers"):
        with_preprocess(graph, MEAN, 0.0)


def test_channels_must_be_those_of_the_numbers() -> None:
    with pytest.raises(
        ValueError,
        match="as many channels as there are means and deviations, 2 and 2",
    ):
        predict(with_preprocess(Mean(), (0.1, 0.2), (1, 1)), IMAGES)


def test_every_method_keeps_it() -> None:
    model = with_preprocess(resnet_cifar(8), MEAN, STD)
    images, quick = IMAGES[:8], TrainConfig(epochs=1, batch_size=8)

    def judged(network: nn.Module, side: int) -> float:
        return accuracy(network, IMAGES[:8, :side, :side], LABELS[:8])

    boxes = np.tile(np.array([0.0, 0.0, 0.5, 0.5]), (8, 1))
    for changed in (
        trim_by_relevance(model, images, RelevanceConfig(amount=0.5))[0],
        lower_kernels(model, images, KernelConfig(fraction=0.5))[0],
        lower_slices(model, images, SliceConfig(keep=0.8))[0],
        approximate_maps(model, images, ApproximationConfig(fraction=0.5, align=1))[0],
        approximate_maps(
            model, images, ApproximationConfig(fraction=0.5, align=1, form="explicit")
        )[0],
        shrink(model, images, judged, ShrinkConfig(("width",), target_saving=0.2)).model,
        train(model, lambda _: (images, LABELS[:8]), quick, teacher=model)[0],
        train_on_crops(model, images, LABELS[:8], boxes, 16, quick, teacher=model)[0],
    ):
        assert preprocess_of(changed) == (MEAN, STD)


def test_relevance_is_measured_on_what_the_network_is_fed() -> None:
    """A filter that is silent for one feeding alone is trimmed for that one."""
    conv = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.bias.copy_(torch.tensor([0.0, -5.0]))  # the second speaks where inputs are large
        conv.weight[0] *= 0.1
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    bright = np.full((4, 4, 4, 3), 200, np.uint8)
    kept = {}
    for std in (1.0, 0.01):
        fed = with_preprocess(model, 0.0, std)
        knobs = RelevanceConfig(amount=0.5, align=1, normalise=False)
        trimmed = trim_by_relevance(fed, bright, knobs)[0]
        kept[std] = trimmed[0].bias.item()
    assert kept == {1.0: 0.0, 0.01: -5.0}


def test_a_teacher_must_be_fed_alike() -> None:
    model, teacher = demo_classifier(), with_preprocess(demo_classifier(), MEAN, STD)
    with pytest.raises(ValueError, match=r"the teacher must be fed as the model is, .*; try with_"):
        train(model, lambda _: (IMAGES, LABELS), TrainConfig(epochs=1), teacher=teacher)
    one, each = with_preprocess(model, 0.5, 0.2), with_preprocess(model, (0.5,) * 3, (0.2,) * 3)
    train(one, lambda _: (IMAGES, LABELS), TrainConfig(epochs=1), teacher=each)


def test_a_checkpoint_of_another_feeding_is_refused(tmp_path) -> None:
    model, config = demo_classifier(), TrainConfig(epochs=1)
    train(model, lambda _: (IMAGES, LABELS), config, checkpoint=tmp_path / "a.pt")
    with pytest.raises(ValueError, match="one of another network"):
        train(with_preprocess(model, MEAN, STD), lambda _: (IMAGES, LABELS), config,
              checkpoint=tmp_path / "a.pt")  # fmt: skip


def test_integers_are_trained_and_run_on_it() -> None:
    """Quantization-aware training and a cascade's bundles are fed as the network is."""
    model = with_preprocess(demo_classifier(), MEAN, STD).eval()
    fed = (MEAN, STD)
    graph, report = fine_tune_quantized(
        model,
        lambda _: (IMAGES, LABELS),
        TrainConfig(epochs=0),
        validate=lambda network: accuracy(network, IMAGES, LABELS),
    )
    x = normalise(IMAGES, preprocess=fed)
    logits = run_quantized(graph, x.numpy())
    assert report.accuracies == [float((logits.argmax(axis=1) == LABELS).mean())]
    assert np.array_equal(cascade_logits([graph], IMAGES)[0], logits)
    rule = CascadeRule((0.5,))
    for networks, how in (
        ([graph, graph], {}),
        ([model, model], {"calibration": [IMAGES, IMAGES]}),
    ):
        bundle = compile_cascade(networks, rule, **how)  # type: ignore[arg-type]
        assert [(stage.mean, stage.std) for stage in bundle.stages] == [fed, fed]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (lambda: RelevanceConfig(criterion="threshold", amount=math.nan), "a finite number, not"),
        (lambda: KernelConfig(ridge=-1.0), "ridge must be at least 0, not -1.0"),
        (lambda: KernelConfig(ladder=()), "ladder must be odd sides, largest first, not ()"),
        (lambda: KernelConfig(ladder=(3, -1)), "ladder must be odd sides, largest first, not (3,"),
        (lambda: KernelConfig(seed=-1), "seed must be at least 0, not -1"),
        (lambda: ApproximationConfig(ridge=math.nan), "ridge must be at least 0, not nan"),
        (lambda: ApproximationConfig(seed=-1), "seed must be at least 0, not -1"),
        (lambda: SliceConfig(seed=-1), "seed must be at least 0, not -1"),
        (lambda: ShrinkConfig(target_saving=0.5, seed=-1), "seed must be at least 0, not -1"),
        (lambda: TrainConfig(weight_decay=math.nan), "weight_decay must be at least 0, not nan"),
        (lambda: PredictorConfig(side=0), "side must be at least 1, not 0"),
        (lambda: CompressionConfig(seed=-1), "seed must be at least 0, not -1"),
    ],
)
def test_knobs_out_of_their_range_are_refused(knobs: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        knobs()
