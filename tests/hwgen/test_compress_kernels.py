# SPDX-License-Identifier: Apache-2.0
"""Tests: lower kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hwgen.compress import (
    KernelConfig,
    TrainConfig,
    bake,
    lower_kernels,
    normalise,
    tap_steps,
    train,
)
from hwgen.compress.cost import used_weights
from hwgen.compress.kernel_reduction import lower_filters
from hwgen.compress.structure import discover
from hwgen.compress.training import MASK
from hwgen.models import demo_classifier, lenet, mobilenet_v1, resnet_cifar
from tests.support.retraining import mark_of, marking

CROP = KernelConfig(weights="centre_crop", retrain="none")


def _images(side: int = 32, count: int = 40) -> np.ndarray:
    """Smooth random pictures: neighbours are alike, as in photographs."""
    rng = np.random.default_rng(0)
    small = torch.from_numpy(rng.uniform(0, 255, (count, 3, side // 4, side // 4)))
    large = functional.interpolate(small, size=side, mode="bicubic").clamp(0, 255)
    return large.permute(0, 2, 3, 1).numpy().astype(np.uint8)


def _residual(model: nn.Module, lowered: nn.Module, name: str, images: np.ndarray) -> float:
    """Mean square error of a batch norm's output, the first layer's: what the network sees."""
    x = normalise(images)
    outputs = []
    for network in (model, lowered):
        hook = network.get_submodule(name).register_forward_hook(
            lambda m, i, o: outputs.append(o.detach())
        )
        network.eval()(x)
        hook.remove()
    return float((outputs[0] - outputs[1]).square().mean())


def test_least_squares_beats_the_centre_crop_on_calibration_data():
    torch.manual_seed(0)
    model, images = demo_classifier().eval(), _images()
    found = {}
    for weights in ("centre_crop", "least_squares"):
        config = KernelConfig(
            fraction=1.0, layers=("conv1",), weights=weights, retrain="none", rows=10**6
        )
        lowered, _ = lower_kernels(model, images, config)
        found[weights] = _residual(model, lowered, "bn1", images)
    assert found["least_squares"] < 0.5 * found["centre_crop"]


@pytest.mark.parametrize("bias", [True, False])
def test_a_filter_that_needs_no_more_is_fitted_exactly(bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=bias)
    with torch.no_grad():
        conv.weight[2] *= torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0.0]])
        conv.weight[2, 0, 0, 0] = 1e-20  # not zero, so that there is a rung to go down
    model = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(4, 2, 1))
    config = KernelConfig(
        fraction=0.25, align=1, importance="residual", layers=("0",), retrain="none", ridge=0.0
    )
    lowered, report = lower_kernels(model, _images(), config)
    assert np.array_equal(report.layers["0"].filters, [2])
    assert report.layers["0"].sides == ((1, 1),) and report.layers["0"].residual < 1e-6
    torch.testing.assert_close(lowered[0].weight, conv.weight, rtol=1e-4, atol=1e-5)
    if bias:
        torch.testing.assert_close(lowered[0].bias, conv.bias, rtol=1e-4, atol=1e-4)


def test_the_ladder_goes_down_one_rung_at_a_time_and_stays_centred():
    model = nn.Sequential(nn.Conv2d(3, 4, 7, padding=3), nn.ReLU(), nn.Conv2d(4, 2, (1, 5)))
    config = KernelConfig(**{**CROP.__dict__, "fraction": 1.0, "align": 1})
    for sides in (5, 3, 1):
        model, report = lower_kernels(model, _images(), config)
        expected = torch.zeros(7, 7, dtype=torch.bool)
        edge = (7 - sides) // 2
        expected[edge : 7 - edge, edge : 7 - edge] = True
        assert ((model[0].weight != 0) == expected).all()
        assert report.layers["0"].sides == ((sides, sides),) * 4
    assert ((model[2].weight != 0)[:, :, 0] == torch.tensor([0, 0, 1, 0, 0]).bool()).all()
    assert lower_kernels(model, _images(), config)[1].layers == {}  # nothing left


@pytest.mark.parametrize("importance", ["relevance", "energy", "residual"])
def test_lowered_filters_fill_machine_groups_so_macs_saved_are_steps_saved(importance):
    torch.manual_seed(0)
    model = resnet_cifar(14)
    config = KernelConfig(fraction=0.5, importance=importance, retrain="none")
    lowered, report = lower_kernels(model, _images(), config)
    assert "layer3.1.conv2" in report.layers
    # Stages of 32 and 64 channels: half of 3x3 goes to 1x1 in every convolution but the stem's.
    before, after = tap_steps(model, (3, 32, 32)), tap_steps(lowered, (3, 32, 32))
    saved = sum(
        {32: 256, 64: 64}[conv.out_channels] * 8 * conv.out_channels // 32 * conv.in_channels // 16
        for name, conv in model.named_modules()
        if isinstance(conv, nn.Conv2d) and name in report.layers
    )
    assert before - after == saved > 0
    for layer in report.layers.values():
        assert len(layer.filters) % 16 == 0


def _two_convolutions(first: int, second: int) -> nn.Sequential:
    layers = nn.Conv2d(3, first, 3, padding=1), nn.ReLU(), nn.Conv2d(first, second, 3)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def _masked(model: nn.Module) -> nn.Module:
    """Leave of each filter half of its positions, as slices do; of the first, its corner."""
    rng = np.random.default_rng(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            kept = rng.random((module.out_channels, 1, 3, 3)) < 0.5
            kept[0], kept[0, 0, 0, 0] = False, True
            mask = torch.from_numpy(kept).expand_as(module.weight).to(module.weight)
            module.register_buffer(MASK, mask.clone())
            with torch.no_grad():
                module.weight.mul_(mask)
    return model


@pytest.mark.parametrize("weights", ["centre_crop", "least_squares"])
def test_kernels_that_slices_have_left_are_lowered_where_something_is_left(weights):
    torch.manual_seed(0)
    images = _images(16)
    model = _masked(_two_convolutions(32, 32))
    config = KernelConfig(fraction=1.0, align=1, weights=weights, retrain="none", rows=10**6)
    lowered, report = lower_kernels(model, images, config)
    for name, layer in report.layers.items():
        before, after = used_weights(model, name), used_weights(lowered, name)
        centre = np.arange(9) == 4
        both = (before & centre).any(axis=(1, 2)) & (before & ~centre).any(axis=(1, 2))
        assert layer.filters.tolist() == np.flatnonzero(both).tolist()
        assert np.array_equal(after[both], (before & centre)[both])
        assert np.array_equal(after[~both], before[~both])
    assert list(report.layers) == ["0", "2"]  # of which filter 0 is left alone
    with pytest.raises(ValueError, match=r"not \[0\], of which a mask leaves none"):
        lower_filters(model, discover(model, (3, 16, 16)), "2", np.array([0]), images, config)


def test_the_residual_is_that_of_the_lowered_networks_own_inputs():
    """What a layer lost before is part of it, and is made good where it can be."""
    torch.manual_seed(0)
    images = _images(16)
    model = _masked(_two_convolutions(16, 8))
    config = KernelConfig(fraction=1.0, align=1, retrain="none", rows=10**6)
    lowered, report = lower_kernels(model, images, config)
    for name, end in (("0", 1), ("2", 3)):
        with torch.no_grad():
            want, got = (net[:end](normalise(images)) for net in (model, lowered))
        filters = report.layers[name].filters
        error = (got - want).square().mean(dim=(0, 2, 3)) / want.var(dim=(0, 2, 3), correction=0)
        assert report.layers[name].residual == pytest.approx(float(error[filters].mean()), rel=1e-3)


def test_the_fit_knows_its_ridge_its_pixels_and_their_seed():
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), _images(16, 8)

    def weight(**knobs: float) -> torch.Tensor:
        config = replace(KernelConfig(fraction=1.0, align=1, retrain="none"), **knobs)
        return lower_kernels(model, images, config)[0][0].weight

    assert weight(ridge=1e9).abs().max() < 1e-6 < 1e-2 < weight().abs().max()
    everything = weight(rows=10**6)
    assert torch.equal(everything, weight(rows=8 * 14 * 14))
    assert not torch.equal(weight(rows=64), everything)
    assert not torch.equal(weight(rows=64), weight(rows=64, seed=1))


def test_depthwise_kernels_are_fitted_each_on_its_own_channel():
    torch.manual_seed(0)
    model = mobilenet_v1().eval()
    config = KernelConfig(fraction=1.0, layers=("features.1.0",), rows=10**5, retrain="none")
    lowered, report = lower_kernels(model, _images(), config)
    assert np.array_equal(used_weights(lowered, "features.1.0").any(axis=1).sum(axis=1), np.ones(8))
    assert report.layers["features.1.0"].residual < 1.0


def test_masks_hold_through_training_and_baking_leaves_a_plain_model():
    torch.manual_seed(0)
    images = _images(16, 64)
    labels = np.arange(64) % 10
    lowered, _ = lower_kernels(demo_classifier(), images, CROP)
    before = {k: v.clone() for k, v in lowered.state_dict().items()}
    tuned, _ = train(lowered, lambda _: (images, labels), TrainConfig(epochs=2))
    for name, module in tuned.named_modules():
        if isinstance(module, nn.Conv2d):
            assert np.array_equal(
                used_weights(tuned, name).any(axis=1), used_weights(lowered, name).any(axis=1)
            )
    assert not torch.equal(tuned.conv1.weight, before["conv1.weight"])
    plain = bake(tuned)
    assert not any("mask" in key for key in plain.state_dict())
    exported = torch.export.export(plain.eval(), (normalise(images[:1]),))
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(normalise(images[:1])),
                                   tuned(normalise(images[:1])))  # fmt: skip


def test_the_ladders_last_rung_is_where_kernels_stay():
    """A ladder that ends at 3 takes a 5x5 to 3x3 and leaves a 3x3 alone."""
    model = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    config = replace(CROP, fraction=1.0, align=1, ladder=(7, 5, 3))
    lowered, report = lower_kernels(model, _images(), config)
    assert list(report.layers) == ["0"] and set(report.layers["0"].sides) == {(3, 3)}
    assert torch.equal(lowered[2].weight, model[2].weight)
    assert lower_kernels(lowered, _images(), config)[1].layers == {}
    with pytest.raises(ValueError, match=r"above the ladder's last rung, not \['2'\]; .*\['0'\]"):
        lower_kernels(model, _images(), replace(config, layers=("2",)))


def test_fine_tuning_gets_the_lowered_network():
    seen = []

    def fine_tune(model: nn.Module) -> nn.Module:
        seen.append(used_weights(model, "conv1").any(axis=1).sum())
        return model

    config = KernelConfig(fraction=1.0, layers=("conv1",), retrain="fine_tune")
    model = demo_classifier()
    lowered, _ = lower_kernels(model, _images(), config, fine_tune)
    assert (
        seen
        == [used_weights(lowered, "conv1").any(axis=1).sum()]
        == [used_weights(model, "conv1").any(axis=1).sum() // 9]
    )


def test_what_fine_tuning_returns_is_the_result():
    config = KernelConfig(fraction=1.0, layers=("conv1",), retrain="fine_tune")
    assert mark_of(lower_kernels(demo_classifier(), _images(), config, marking())[0]) == 7.0


@pytest.mark.parametrize(
    ("importance", "statistic", "planted"),
    [
        ("relevance", "mean_abs", 0),  # speaks at few pixels, loudly
        ("relevance", "max", 1),  # whispers everywhere
        ("energy", "mean_abs", 2),  # has next to nothing outside of its centre
    ],
)
def test_the_least_important_filter_is_lowered(importance, statistic, planted):
    conv = nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        conv.weight.fill_(0.5)
        conv.bias.fill_(20.0)
        conv.bias[0] = -100.0
        conv.weight[0] = 3.0
        conv.weight[1], conv.bias[1] = 0.01, 3.0
        conv.weight[2] *= 1e-3
        conv.weight[2, :, 1, 1] = 0.5
    images = np.zeros((4, 16, 16, 3), np.uint8)
    images[:, :3, :3] = 255
    config = KernelConfig(
        fraction=0.25, align=1, layers=("0",), retrain="none", weights="centre_crop",
        importance=importance, statistic=statistic,
    )  # fmt: skip
    model = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    _, report = lower_kernels(model, images, config)
    assert report.layers["0"].filters.tolist() == [planted]


def test_what_cannot_be_lowered_is_refused_by_name():
    with pytest.raises(ValueError, match="must be convolutions .* not \\['fc1'\\]"):
        lower_kernels(lenet(), _images(), KernelConfig(layers=("fc1",)))
    with pytest.raises(ValueError, match="ladder must be odd sides, largest first"):
        KernelConfig(ladder=(3, 5))
    with pytest.raises(ValueError, match="fine_tune must be given"):
        lower_kernels(lenet(), _images(), KernelConfig(retrain="fine_tune"))
    for knob in ("weights", "importance", "statistic", "retrain"):
        with pytest.raises(ValueError, match=f"{knob} must be .*, not 'odd'"):
            KernelConfig(**{knob: "odd"})
    with pytest.raises(ValueError, match="rows must be at least 1, not 0"):
        KernelConfig(rows=0)
