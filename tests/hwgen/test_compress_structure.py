# SPDX-License-Identifier: Apache-2.0
"""Tests: what is tied to what in a network, and the costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hwgen.compress import (
    RelevanceConfig,
    UnsupportedStructure,
    discover,
    load_compressed,
    macs,
    tap_steps,
    trim_by_relevance,
)
from hwgen.compress.cost import parameters
from hwgen.compress.structure import identity_blocks
from hwgen.models import demo_classifier, mobilenet_v1, resnet_cifar


class Functional(nn.Module):
    """A residual network written with functions; its batch norm is not named like one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.other = nn.BatchNorm2d(8)
        self.c = nn.Linear(8 * 4, 5)

    def forward(self, x):
        x = functional.relu(self.a(x))
        x = torch.add(x, functional.relu(self.other(self.b(x))))
        x = functional.adaptive_avg_pool2d(x, (2, 2))
        return self.c(x.flatten(1))


def test_functions_are_followed_and_residual_channels_tied():
    structure = discover(Functional(), (3, 8, 8))
    space = structure.space_of("a")
    assert space is structure.space_of("b")
    assert space.producers == ["a", "b"] and space.batch_norms == ["other"]
    assert space.consumers == ["b", "c"] and not space.frozen
    assert len(space.observed) == 2  # both activations
    assert structure.layers["c"].repeat == 4
    assert structure.layers["b"].batch_norm == "other"
    assert structure.space_of("c").frozen and structure.spaces[structure.layers["a"].inputs].frozen


def test_depthwise_layers_share_the_space_of_their_input():
    structure = discover(mobilenet_v1(), (3, 32, 32))
    layer = structure.layers["features.1.0"]
    assert layer.kind == "depthwise" and layer.inputs == layer.outputs
    assert structure.spaces[layer.inputs].producers == ["features.0.0"]


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.gelu = nn.GELU()

    def forward(self, x):
        return torch.sigmoid(self.gelu(self.conv(x)))


def test_every_operation_that_cannot_be_followed_is_listed():
    with pytest.raises(UnsupportedStructure, match=r"(?s)gelu \(GELU\).*sigmoid"):
        discover(Odd(), (3, 8, 8))


def test_a_layer_that_runs_twice_is_refused():
    conv = nn.Conv2d(3, 3, 1)
    with pytest.raises(UnsupportedStructure, match="must be used once"):
        discover(nn.Sequential(conv, conv), (3, 8, 8))


def test_weights_that_are_not_finite_are_refused_by_name():
    model = resnet_cifar(8)
    model.bn1.running_var[3] = float("nan")
    with pytest.raises(ValueError, match="weights must be finite, but 'bn1.running_var' is not"):
        discover(model, (3, 16, 16))


class _Mean(nn.Module):
    def __init__(self, *layers, by):
        super().__init__()
        self.layers, self.by = nn.Sequential(*layers), by

    def forward(self, x):
        return self.by(self.layers(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(
                nn.Conv2d(3, 16, 3), nn.Flatten(), nn.BatchNorm1d(16 * 36), nn.Linear(16 * 36, 4)
            ),
            "a batch norm must come before flatten",
        ),
        (_Mean(nn.Conv2d(3, 16, 3), by=lambda x: x.flatten(2).mean(2)), "flatten"),
        (_Mean(nn.Conv2d(3, 16, 3), by=lambda x: x.mean(1, keepdim=True)), "mean"),
        (_Mean(nn.Conv2d(3, 16, 3), by=lambda x: x.mean((0, 1))), "mean"),
    ],
)
def test_what_mixes_channels_and_places_is_refused(model, message):
    with pytest.raises(UnsupportedStructure, match=message):
        macs(model, (3, 8, 8))


def test_tied_weights_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3))
    model[2].weight = model[0].weight
    with pytest.raises(UnsupportedStructure, match="'2.weight' is '0.weight'; try a copy"):
        discover(model, (3, 8, 8))


def test_a_scaled_input_is_no_shortcut():
    class Block(nn.Module):
        def __init__(self, alpha):
            super().__init__()
            self.conv, self.alpha = nn.Conv2d(3, 3, 3, padding=1), alpha

        def forward(self, x):
            if self.alpha is None:
                return torch.add(self.conv(x), x)
            return torch.add(self.conv(x), x, alpha=self.alpha)

    blocks = nn.Sequential(Block(None), Block(0.5))
    assert identity_blocks(blocks) == ("0",)


def test_a_state_of_a_larger_network_is_refused():
    with pytest.raises(
        ValueError, match=r"'linear.weight' has the shape .*, not .*number of classes"
    ):
        load_compressed(demo_classifier(10), demo_classifier(100).state_dict())


def test_views_are_followed_whatever_says_the_batch():
    class Net(nn.Module):
        def __init__(self, view):
            super().__init__()
            self.conv, self.pool, self.view = nn.Conv2d(3, 32, 3), nn.AdaptiveAvgPool2d(1), view
            self.linear = nn.Linear(32, 4)

        def forward(self, x):
            return self.linear(self.view(self.pool(self.conv(x).relu())))

    plain = discover(Net(lambda x: torch.flatten(x, 1)), (3, 8, 8))
    for view in (
        lambda x: x.view(x.size(0), -1),
        lambda x: x.view(x.shape[0], -1),
        lambda x: torch.reshape(x, (x.shape[0], -1)),
        lambda x: x.squeeze(-1).squeeze(-1),
    ):
        model = Net(view)
        found = discover(model, (3, 8, 8))
        assert found.spaces.keys() == plain.spaces.keys() and found.layers == plain.layers
        trimmed = trim_by_relevance(model, _pictures(8), RelevanceConfig(amount=0.5, align=16))[0]
        assert trimmed.conv.out_channels == trimmed.linear.in_features == 16
        assert trimmed.eval()(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    # A number that is written down is one that channels may not change.
    for view in (
        lambda x: x.view(-1, 32),
        lambda x: x.view([-1, 32]),
        lambda x: torch.reshape(x, [-1, 32]),
        lambda x: x.reshape(shape=(-1, 32)),
    ):
        found = discover(Net(view), (3, 8, 8))
        assert [space.frozen for space in found.spaces.values()] == [True] * 3
    with pytest.raises(UnsupportedStructure, match="a mean and std of its own"):

        class Norm(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Conv2d(3, 4, 3)
                self.register_buffer("mean", torch.ones(3, 1, 1))

            def forward(self, x):
                return self.net(x - self.mean)

        discover(Norm(), (3, 8, 8))


def _pictures(side):
    return np.random.default_rng(0).integers(0, 256, (16, side, side, 3)).astype(np.uint8)


def test_discovery_leaves_the_mode_alone():
    model = demo_classifier().train()
    discover(model, (3, 32, 32))
    assert all(module.training for module in model.modules())


def test_costs_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 32, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                          nn.Linear(32 * 16, 10))  # fmt: skip
    # 16 x 16 to 8 x 8 to 4 x 4: 64 pixels of 25 taps; two groups of outputs; 2 x 2 pool.
    assert macs(model, (3, 16, 16)) == 64 * 25 * 3 * 32 + 512 * 10
    assert parameters(model, (3, 16, 16)) == 25 * 3 * 32 + 32 + 5120 + 10
    assert tap_steps(model, (3, 16, 16)) == 64 * 25 * 2 + 16 * 4 * 2 + 2 * 16
    assert tap_steps(model, (3, 16, 16), tn=32, ti=32) == 64 * 25 + 16 * 4 + 16


def test_zeros_save_steps_only_where_a_whole_group_has_them():
    conv = nn.Conv2d(16, 32, 3, padding=1, bias=False)
    model = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(32, 16, 1))
    full = tap_steps(model, (16, 8, 8))
    outside = torch.ones(3, 3, dtype=torch.bool)
    outside[1, 1] = False
    with torch.no_grad():
        for i in range(0, 30, 2):  # 15 filters, scattered: no group of 16 is whole
            conv.weight[i, :, outside] = 0
    assert tap_steps(model, (16, 8, 8)) == full
    assert macs(model, (16, 8, 8)) == 64 * (16 * (15 + 17 * 9) + 32 * 16)
    with torch.no_grad():
        conv.weight[30, :, outside] = 0
    assert tap_steps(model, (16, 8, 8)) == full - 64 * 8


def test_tied_layers_must_agree_on_which_filters_are_lowered():
    torch.manual_seed(0)

    def steps(second: slice) -> float:
        model = resnet_cifar(8)
        outside = torch.ones(3, 3, dtype=torch.bool)
        outside[1, 1] = False
        with torch.no_grad():
            # The stem and the end of the first block add up: one order for both of them.
            model.conv1.weight[0::2][:, :, outside] = 0
            model.layer1[0].conv2.weight[second][:, :, outside] = 0
        return tap_steps(model, (3, 8, 8), tn=8)

    agreed, crossed = steps(slice(0, None, 2)), steps(slice(0, 8))
    assert agreed < crossed


def test_a_compressed_state_goes_back_into_the_uncompressed_model():
    model = demo_classifier()
    with pytest.raises(ValueError, match="has no 'elsewhere'"):
        load_compressed(model, {"elsewhere.weight": torch.zeros(1)})
    state = dict(model.state_dict())
    del state["linear.bias"]
    with pytest.raises(ValueError, match="state must belong to this model"):
        load_compressed(model, state)
