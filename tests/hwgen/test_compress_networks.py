# SPDX-License-Identifier: Apache-2.0
"""Tests: compression of networks as people write them: in place, with views, by other paths."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hwgen.boards import load_board
from hwgen.compress import (
    ApproximationConfig,
    BudgetConfig,
    KernelConfig,
    RelevanceConfig,
    SliceConfig,
    TrainConfig,
    UnsupportedStructure,
    accuracy,
    approximate_maps,
    compress_to_budget,
    discover,
    for_machine,
    grad_cam,
    load_compressed,
    lower_kernels,
    lower_slices,
    macs,
    predict,
    predicted_cycles,
    preprocess_of,
    reestimate_bn,
    tap_steps,
    train,
    trim_by_relevance,
    with_preprocess,
)
from hwgen.compress.identity import digest
from hwgen.compress.inputs import layout_of
from hwgen.compress.kernel_reduction import lower_filters

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 4, 40)
SHAPE = (3, 16, 16)


def _conv(inputs: int, outputs: int, side: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, padding=side // 2)


def _head(channels: int = 16) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)


class Net(nn.Module):
    """Two convolutions with a shortcut round the second, in place or not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inplace = inplace
        self.a, self.b, self.head = _conv(3, 16), _conv(16, 16), nn.Sequential(*_head())

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.a(x), inplace=self.inplace)
        y = self.b(x)
        if self.inplace:
            y += x
            return self.head(y.relu_())
        return self.head((y + x).relu())


@pytest.mark.parametrize("importance", ["relevance", "residual"])
def test_what_works_in_place_is_fitted_as_what_does_not(importance: str) -> None:
    config = KernelConfig(fraction=1.0, importance=importance, retrain="none", align=1)
    found = [lower_kernels(Net(inplace).eval(), IMAGES, config) for inplace in (False, True)]
    for name in ("a", "b"):
        one, other = (report.layers[name].residual for _, report in found)
        assert one == other > 0.0
    assert np.array_equal(predict(found[0][0], IMAGES), predict(found[1][0], IMAGES))


def test_slices_and_grad_cam_of_what_works_in_place() -> None:
    slices, maps = [], []
    for inplace in (False, True):
        config = SliceConfig(keep=0.6, weights="least_squares")
        slices.append(lower_slices(Net(inplace).eval(), IMAGES, config, labels=LABELS)[0])
        maps.append(grad_cam(Net(inplace).eval(), IMAGES, layer="b"))
    assert np.array_equal(predict(slices[0], IMAGES), predict(slices[1], IMAGES))
    assert maps[0].std() > 0 and np.array_equal(maps[0], maps[1])


def _vector(x: Tensor) -> Tensor:
    return x.view(x.size(0), -1)


class Viewing(nn.Module):
    """The tutorials' way into a linear layer, of a map of 8 x 8."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.view = view
        self.conv, self.norm, self.fc = _conv(3, 32), nn.BatchNorm2d(32), nn.Linear(32 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.norm(self.conv(x))), 2)
        return self.fc(x.view(x.size(0), -1) if self.view else x.flatten(1))


class ViewingElsewhere(Viewing):
    """The same by a function."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.norm(self.conv(x))), 2)
        return self.fc(_vector(x))


def test_how_inputs_are_laid_out() -> None:
    assert layout_of(_normed(), None) == torch.channels_last
    for model in (Viewing(True), ViewingElsewhere(True), fx.symbolic_trace(Viewing(True))):
        assert layout_of(_normed(), nn.Sequential(model)) == torch.contiguous_format
        assert predict(model.eval(), IMAGES).shape == (40, 4)


def test_small_pointwise_convolutions_are_trained_where_they_do_not_overrun() -> None:
    """Some CPUs write past a strided one's gradient, below 8 channels that are laid out last."""
    assert layout_of(nn.Conv2d(8, 16, 1), nn.Conv2d(7, 16, 3)) == torch.channels_last
    model = nn.Sequential(_conv(3, 7), nn.ReLU(), nn.Conv2d(7, 16, 1, stride=2), *_head())
    model[2].weight.data = model[2].weight.data.clone(memory_format=torch.channels_last)
    strides = []

    def watch(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        strides.append((inputs[0].stride(), module.weight.stride()))

    model[2].register_forward_pre_hook(watch)
    train(model, lambda _: (IMAGES, LABELS), TrainConfig(epochs=1, batch_size=20))
    assert strides == [((7 * 256, 256, 16, 1), (7, 1, 1, 1))] * 2


def test_a_map_that_is_viewed_as_a_vector_goes_through_every_method() -> None:
    found = []
    for view in (False, True):
        model = Viewing(view).eval()
        config = TrainConfig(epochs=1, batch_size=20)
        tuned, _ = train(model, lambda _: (IMAGES, LABELS), config, teacher=model)
        small, _ = trim_by_relevance(tuned, IMAGES, RelevanceConfig(amount=0.5))
        small, _ = lower_kernels(small, IMAGES, KernelConfig(fraction=1.0))
        small, _ = lower_slices(small, IMAGES, SliceConfig(keep=0.9), labels=LABELS)
        found.append(predict(small, IMAGES))
    assert found[0].std() > 0
    np.testing.assert_allclose(found[0], found[1], rtol=1e-2, atol=1e-3)  # other order of sums


class Aliased(nn.Module):
    """One convolution by two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(_conv(3, 32), nn.ReLU(), *_head(32)[:2])
        self.stem, self.fc = self.features[0], nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def test_a_state_of_a_module_by_two_paths_is_loaded() -> None:
    model = Aliased().eval()
    small, _ = trim_by_relevance(model, IMAGES, RelevanceConfig(amount=0.5))
    again = load_compressed(model, small.state_dict()).eval()
    assert again.stem is again.features[0] and again.stem.out_channels == 16
    assert np.array_equal(predict(again, IMAGES), predict(small, IMAGES))


def _normed() -> nn.Sequential:
    return nn.Sequential(_conv(3, 32), nn.BatchNorm2d(32), nn.ReLU(), *_head(32))


@pytest.mark.parametrize(
    "look",
    [
        lambda m: lower_kernels(m, IMAGES, KernelConfig()),
        lambda m: lower_slices(m, IMAGES, SliceConfig(keep=0.8)),
        lambda m: lower_filters(m, discover(m, SHAPE), "0", np.arange(16), IMAGES, KernelConfig()),
        lambda m: trim_by_relevance(m, IMAGES, RelevanceConfig()),
        lambda m: approximate_maps(m, IMAGES, ApproximationConfig(fraction=0.5)),
        lambda m: reestimate_bn(m, IMAGES),
        lambda m: train(m, lambda _: (IMAGES, LABELS), TrainConfig(epochs=1)),
        lambda m: compress_to_budget(m, IMAGES, lambda _: 1.0, BudgetConfig(max_steps=1)),
        lambda m: accuracy(m, IMAGES, LABELS),
        lambda m: macs(m, SHAPE),
        lambda m: grad_cam(m, IMAGES, layer="0"),
        lambda m: digest(m),
    ],
)
def test_modes_are_left_as_they_are(look) -> None:
    """A model in training stays so, and a batch norm that is held in eval mode there too."""
    model = _normed().train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    look(model)
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_traced_module_keeps_its_mean_and_std() -> None:
    traced = with_preprocess(fx.symbolic_trace(_normed().eval()), 0.1, 0.3)
    given = (0.1,), (0.3,)
    assert preprocess_of(copy.deepcopy(traced)) == given
    assert preprocess_of(trim_by_relevance(traced, IMAGES, RelevanceConfig())[0]) == given


def _spectral(conv: nn.Conv2d) -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(conv)


def _weight_norm(conv: nn.Conv2d) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(conv)


def _pruned(conv: nn.Conv2d) -> nn.Module:
    from torch.nn.utils import prune

    return prune.l1_unstructured(conv, "weight", 0.5)


@pytest.mark.parametrize("computed", [_spectral, _weight_norm, _pruned])
def test_weights_that_are_computed_each_time_are_refused(computed) -> None:
    model = nn.Sequential(computed(_conv(3, 32)), nn.ReLU(), *_head(32))
    with pytest.raises(UnsupportedStructure, match=r"that of '0' is computed .*prune\.remove"):
        trim_by_relevance(model, IMAGES, RelevanceConfig())


def test_other_types_than_float32_are_refused() -> None:
    with pytest.raises(UnsupportedStructure, match=r"not torch\.float64; try model\.float\(\)"):
        discover(_normed().double(), SHAPE)


@pytest.mark.parametrize("amount", [0.75, 0.5, 0.25])
def test_silent_channels_do_not_all_stay_where_they_tie(amount: float) -> None:
    model = nn.Sequential(_conv(3, 32), nn.ReLU(), _conv(32, 32), nn.ReLU(), *_head(32)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[12:], layer.bias[12:] = 0.0, -1.0
            layer.bias[:12] = 1.0
    config = RelevanceConfig(criterion="global_rank", amount=amount, retrain="none")
    _, report = trim_by_relevance(model, IMAGES, config)
    assert report.channels_after == 64 * amount
    heard = [set(range(12)) & set(kept.tolist()) for kept in report.kept.values()]
    assert sum(map(len, heard)) == min(24, 64 * amount)


class Pooling(nn.Module):
    """A pool as a function or as a module."""

    def __init__(self, function: bool, *knobs: int) -> None:
        super().__init__()
        self.a, self.b, self.fc = _conv(3, 64), _conv(64, 64, 1), nn.Linear(64, 4)
        self.pool, self.function, self.knobs = nn.MaxPool2d(*knobs), function, knobs

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.a(x))
        x = functional.max_pool2d(x, *self.knobs) if self.function else self.pool(x)
        return self.fc(functional.relu(self.b(x)).mean((2, 3)))


@pytest.mark.parametrize("knobs", [(3, 1, 1), (3, 2, 1), (2,)])
def test_a_pool_costs_the_same_as_a_function(knobs: tuple[int, ...]) -> None:
    steps = for_machine(load_board("pynq-z2").config)
    one, other = (Pooling(function, *knobs).eval() for function in (False, True))
    assert steps(one, SHAPE) == steps(other, SHAPE)
    assert predicted_cycles(one, SHAPE) == predicted_cycles(other, SHAPE) >= steps(one, SHAPE)


def test_frozen_weights_are_another_run(tmp_path) -> None:
    model, frozen = _normed().eval(), _normed().eval()
    frozen.load_state_dict(model.state_dict())
    frozen[0].requires_grad_(False)
    assert digest(model) != digest(frozen)
    path, config = tmp_path / "budget.checkpoint", BudgetConfig(max_steps=1)
    compress_to_budget(model, IMAGES, lambda _: 1.0, config, checkpoint=path)
    with pytest.raises(ValueError, match="must belong to this model"):
        compress_to_budget(frozen, IMAGES, lambda _: 1.0, config, checkpoint=path)


class Odd(nn.Module):
    """What an addition, an input that nobody reads, and an output that nobody takes come to."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.fc = _conv(3, 16), nn.Linear(64, 4)
        self.other, self.aside = nn.Linear(64, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor, unused: Tensor | None = None) -> Tensor:
        x = functional.adaptive_avg_pool2d(functional.relu(self.conv(x)), 2).flatten(1)
        if self.kind == "of other channels":
            x = x + self.other(x)
        if self.kind == "of itself":
            x = x + x
        aside = self.aside(x)
        return self.fc(x) if self.kind != "of both heads" else self.fc(x) + aside


def test_a_vector_of_maps_and_one_of_numbers_are_not_added() -> None:
    with pytest.raises(UnsupportedStructure, match="an addition must be of two maps"):
        discover(Odd("of other channels"), SHAPE)


@pytest.mark.parametrize("kind", ["of itself", "plain"])
def test_an_input_and_a_head_that_nobody_reads_are_no_obstacle(kind: str) -> None:
    model = Odd(kind).eval()
    small, _ = trim_by_relevance(model, IMAGES, RelevanceConfig(amount=0.5))
    with torch.no_grad():
        lowered, report = lower_slices(small, IMAGES, SliceConfig(keep=0.8), labels=LABELS)
    assert report.cost_after == tap_steps(lowered, SHAPE) <= 0.8 * report.cost_before
    assert predict(lowered, IMAGES).shape == (40, 4)


def test_a_depthwise_convolution_may_end_with_one_channel() -> None:
    depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
    model = nn.Sequential(_conv(3, 32), nn.ReLU(), depthwise, nn.ReLU(), *_head(32)).eval()
    config = RelevanceConfig(amount=0.03, retrain="iterate", rounds=3)
    small, report = trim_by_relevance(model, IMAGES, config, copy.deepcopy)
    assert report.channels_after == 1 and predict(small, IMAGES).shape == (40, 4)


class SideNorm(nn.Module):
    """A batch norm that runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.side = _conv(3, 8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.side(x) if self.training else x


def test_a_batch_norm_that_does_not_run_keeps_its_statistics() -> None:
    model = SideNorm().eval()
    model.side.running_mean.fill_(5.0)
    found = reestimate_bn(model, IMAGES)
    assert torch.equal(found.side.running_mean, model.side.running_mean)
    assert not torch.equal(found.norm.running_mean, model.norm.running_mean)


def test_a_batch_norm_without_statistics_is_no_place_for_a_constant() -> None:
    conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    model = nn.Sequential(
        conv, nn.BatchNorm2d(16, track_running_stats=False), nn.ReLU(), *_head()
    ).eval()
    lowered, report = lower_kernels(model, IMAGES, KernelConfig(fraction=1.0, retrain="none"))
    assert report.layers["0"].sides[0] == (1, 1)
    assert predict(lowered, IMAGES).shape == (40, 4)
