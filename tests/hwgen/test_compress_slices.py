# SPDX-License-Identifier: Apache-2.0
"""Generator tests: slices of kernels."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hwgen.arch.config import AcceleratorConfig
from hwgen.compress import macs, tap_steps
from hwgen.compress.cost import for_machine, kernel_orders
from hwgen.compress.inputs import normalise
from hwgen.compress.slice_reduction import (
    SliceConfig,
    UnreachableCost,
    _Form,
    lower_slices,
    sliceable,
    sort_channels,
    tap_importance,
)
from hwgen.compress.structure import discover
from hwgen.compress.training import Augment, TrainConfig, reestimate_bn, train
from hwgen.ir.quantized import QConv
from hwgen.passes.order_channels import order_channels
from hwgen.passes.tile import tile
from hwgen.quantize import quantize_model
from tests.support.retraining import mark_of, marking


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def model():
    """Stem of 16, then 32 and 32 channels: groups and tiles of both numbers."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return net.eval()


def test_sorted_channels_compute_the_same(model, images) -> None:
    model = model.double()
    x = normalise(images).double()
    with torch.no_grad():
        before = model(x)
        after = sort_channels(model.float(), images).double()(x)
    assert not torch.equal(sort_channels(model.float(), images)[3].weight, model[3].weight)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_importance_is_the_squared_sum_of_weight_times_gradient(model, images, rng) -> None:
    labels = rng.integers(0, 4, len(images))
    config = SliceConfig(batch_size=12)
    forms = sliceable(model, discover(model, (3, 16, 16)), config)
    found = tap_importance(model, forms, images, labels, config)
    assert found["3"].shape == (2, 1, 3, 3)
    assert found["6"].shape == (2, 2, 5, 5)
    expected = 0.0
    for part in (slice(0, 12), slice(12, 24)):
        net = copy.deepcopy(model)
        functional.cross_entropy(
            net(normalise(images[part])), torch.from_numpy(labels[part])
        ).backward()
        weight = net[6].weight
        here = (weight * weight.grad).detach()[16:32, 0:16, 2, 3]
        expected += float(here.sum()) ** 2 / 2
    assert found["6"][1, 0, 2, 3] == pytest.approx(expected, rel=1e-4)


def test_a_tap_without_effect_goes_first(model, images) -> None:
    with torch.no_grad():
        model[6].weight[:, :, 0, 4] *= 1e-7
    config = SliceConfig(keep=1 - 1e-6)
    before = tap_steps(model, (3, 16, 16))
    lowered, report = lower_slices(model, images, config)
    gone = np.argwhere(~report.taps["6"])
    assert len(gone) == 1 and gone[0, 2:].tolist() == [0, 4]
    assert before - report.cost_after == 16 * 16


def test_a_rectangle_need_not_be_a_square(model, images) -> None:
    """Slices of which the middle row alone does anything keep that row: 1 x 5."""
    model = sort_channels(model, images)
    with torch.no_grad():  # two slices: all outputs, of the first 16 inputs
        model[6].weight[:, :16, [0, 1, 3, 4]] *= 1e-7
    before = tap_steps(model, (3, 16, 16))
    config = SliceConfig(keep=1 - 2 * 20 * 256 / before, shapes="rectangle")
    _, report = lower_slices(model, images, config)
    assert report.cost_after == before - 2 * 20 * 256
    kernel = np.zeros((5, 5), bool)
    kernel[2] = True
    sliced = [
        (name, taps)
        for name, layer in report.taps.items()
        for taps in layer.reshape(-1, *layer.shape[2:])
        if not taps.all()
    ]
    assert [name for name, _ in sliced] == ["6", "6"]
    assert all(np.array_equal(taps, kernel) for _, taps in sliced)


def test_what_fine_tuning_returns_is_the_result(model, images) -> None:
    assert mark_of(lower_slices(model, images, SliceConfig(keep=0.5), fine_tune=marking())[0]) == 7


@pytest.mark.parametrize("shapes", ["square", "rectangle", "free"])
def test_the_cost_is_met_by_kernels_of_the_shapes(model, images, shapes) -> None:
    keep = 0.4
    lowered, report = lower_slices(model, images, SliceConfig(keep=keep, shapes=shapes))
    assert report.cost_before == tap_steps(model, (3, 16, 16))
    assert report.cost_after == tap_steps(lowered, (3, 16, 16)) <= keep * report.cost_before
    # No more was taken than had to be: the smallest step of these shapes is 24 taps.
    assert report.cost_after > keep * report.cost_before - 25 * 16 * 16
    if shapes == "free":
        return
    for taps in report.taps.values():
        for kernel in taps.reshape(-1, *taps.shape[2:]):
            if not kernel.any():
                continue
            rows, columns = kernel.any(axis=1), kernel.any(axis=0)
            assert kernel.sum() == rows.sum() * columns.sum()
            assert (kernel == kernel[::-1, ::-1]).all()
            if shapes == "square":
                assert rows.sum() == columns.sum()


def test_what_is_saved_in_macs_is_saved_in_steps(model, images) -> None:
    lowered, report = lower_slices(model, images, SliceConfig(keep=0.5, skip=("0", "11")))
    saved = macs(model, (3, 16, 16)) - macs(lowered, (3, 16, 16))
    assert saved == 256 * (report.cost_before - report.cost_after) > 0


def test_the_compiler_finds_every_tap_that_was_taken(model, images) -> None:
    config = AcceleratorConfig()
    x = normalise(images)

    def taps(net: nn.Module) -> int:
        graph = quantize_model(net, x[:1], x, observer="minmax")
        lowered = tile(graph, order_channels(graph, config.ti), config)
        return sum(len(group.taps) for layer in lowered.layers for group in layer.groups)

    lowered, report = lower_slices(model, images, SliceConfig(keep=0.35))
    gone = sum(int((~used).sum()) for used in report.taps.values())
    assert taps(model) - taps(lowered) == gone > 0


@pytest.mark.parametrize("ti", [8, 16])
def test_costs_order_channels_as_the_compiler_does(rng, ti) -> None:
    """Any kernels in slices of 4 channels; a flattened map and a hidden linear layer, too."""
    net = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 40, 3, padding=1),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(40 * 4, 48),
        nn.ReLU(),
        nn.Linear(48, 8),
    )
    for index, slices in {0: (24, 3, 9), 2: (40, 6, 9), 5: (48, 10, 4), 7: (8, 12, 1)}.items():
        kept = np.repeat(rng.random(slices) < 0.4, 4 if index else 1, axis=1)
        weight = net[index].weight
        with torch.no_grad():
            weight.copy_(torch.from_numpy(kept.reshape(weight.shape)))
    x = torch.from_numpy(rng.normal(size=(4, 3, 8, 8))).float()
    graph = quantize_model(net, x[:1], x, observer="minmax")
    found = kernel_orders(net, structure := discover(net, (3, 8, 8)), ti)
    wanted = order_channels(graph, ti)
    convolutions = [node.name for node in graph.nodes if isinstance(node, QConv)]
    for layer, name in zip(structure.layers.values(), convolutions, strict=True):
        assert found[layer.outputs].tolist() == list(wanted[name])


def test_tuning_leaves_the_zeros_and_rounds_reach_the_same_cost(model, images, rng) -> None:
    labels = rng.integers(0, 4, len(images))
    knobs = TrainConfig(epochs=1, batch_size=8, augment=Augment(flip=True, shift=1))
    calls = []

    def fine_tune(net: nn.Module) -> nn.Module:
        calls.append(tap_steps(net, (3, 16, 16)))
        return train(net, lambda _: (images, labels), knobs)[0]

    config = SliceConfig(keep=0.3, rounds=2)
    tuned, report = lower_slices(model, images, config, fine_tune=fine_tune, labels=labels)
    assert len(calls) == 2 and calls[0] > calls[1] == report.cost_after
    assert report.cost_after <= 0.3 * report.cost_before
    assert tap_steps(tuned, (3, 16, 16)) == calls[1]


def test_layers_left_alone(model, images) -> None:
    model[3].weight.requires_grad_(False)
    structure = discover(model, (3, 16, 16))
    assert list(sliceable(model, structure, SliceConfig())) == ["0", "6", "11"]
    assert list(sliceable(model, structure, SliceConfig(shapes="square"))) == ["0", "6"][1:]
    assert list(sliceable(model, structure, SliceConfig(skip=("6", "0", "11")))) == []


def test_forms_of_the_machine_come_back_as_they_went(rng) -> None:
    weight = torch.from_numpy(rng.normal(size=(16, 3, 7, 7)))
    folded = _Form((16, 3, 7, 7), fold=5)
    spread = folded.spread(weight)
    assert spread.shape == (16, 15, 7, 2)
    assert torch.equal(spread[:, 2 * 5 + 3, 4, 0], weight[:, 2, 4, 3])
    assert torch.equal(spread[:, 1 * 5 + 1, 6, 1], weight[:, 1, 6, 6])
    assert torch.equal(folded.gather(spread), weight)
    flat = torch.from_numpy(rng.normal(size=(8, 32 * 4)))
    behind_flatten = _Form((8, 128), repeat=4)
    assert torch.equal(behind_flatten.spread(flat)[:, 5, 2, 0], flat[:, 5 * 4 + 2])
    assert torch.equal(behind_flatten.gather(behind_flatten.spread(flat)), flat)


def test_a_linear_layer_and_the_stem_give_whole_taps(rng) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(4),
        nn.Flatten(), nn.Linear(16 * 16, 32), nn.ReLU(), nn.Linear(32, 4),
    ).eval()  # fmt: skip
    pictures = rng.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    config = AcceleratorConfig()
    cost = for_machine(config)
    # Stem: 5 rows of 5 folded columns; linear: 16 positions for 2 groups; then 2 tiles.
    assert cost(net, (3, 16, 16)) == 256 * 5 + 16 * 16 + 2 * 16 + 2
    lowered, report = lower_slices(net, pictures, SliceConfig(keep=0.6), cost=cost)
    assert report.taps["0"].shape == (1, 1, 5, 1) and report.taps["4"].shape == (2, 1, 16, 1)
    kept = [int(taps.sum()) for taps in report.taps.values()]
    assert report.cost_after == 256 * kept[0] + 16 * 16 + kept[1] + kept[2]
    x = normalise(pictures)

    def taps(model: nn.Module) -> int:
        graph = quantize_model(model, x[:1], x, observer="minmax")
        tiled = tile(graph, order_channels(graph, config.ti), config)
        return sum(len(group.taps) for layer in tiled.layers for group in layer.groups)

    assert taps(net) - taps(lowered) == 5 + 32 + 2 - sum(kept)


def test_what_cannot_be_reached_is_said(model, images) -> None:
    with pytest.raises(ValueError, match=r"keep must be at least 0\.\d+ for kernels of the shapes"):
        lower_slices(model, images, SliceConfig(keep=0.01))
    with pytest.raises(ValueError, match="keep must be in"):
        SliceConfig(keep=0)
    with pytest.raises(ValueError, match="shapes must be"):
        SliceConfig(shapes="round")
    with pytest.raises(ValueError, match="at least 1"):
        SliceConfig(tn=0)


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_least_cost_that_is_named_can_be_reached(model, images, rounds) -> None:
    knobs = {"shapes": "square", "tn": 4, "ti": 4, "rounds": rounds}
    with pytest.raises(UnreachableCost) as caught:
        lower_slices(model, images, SliceConfig(keep=0.01, **knobs))
    least = float(str(caught.value).split("at least ")[1].split()[0])
    lower_slices(model, images, SliceConfig(keep=least, **knobs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(99, int)}, "labels must be integers of the shape"),
        ({"labels": np.zeros(8)}, "labels must be integers of the shape"),
        ({"labels": np.full(8, 77)}, r"labels must be in 0\.\.\d+, the model's classes"),
        ({"images": np.zeros((8, 16, 16), np.uint8)}, "images must be uint8 of the shape"),
        ({"fine_tune": lambda model: (model, "report")}, "must return the retrained .*, not tuple"),
    ],
)
def test_what_slices_cannot_be_lowered_by_is_refused(model, images, change, message) -> None:
    given = {"images": images[:8]} | change
    with pytest.raises(ValueError, match=message):
        lower_slices(model, given.pop("images"), SliceConfig(keep=0.9), **given)


def test_a_frozen_network_has_nothing_to_lower(model, images) -> None:
    frozen = copy.deepcopy(model).requires_grad_(False)
    with pytest.raises(ValueError, match=r"try model.requires_grad_\(True\)"):
        lower_slices(frozen, images, SliceConfig(keep=0.9))


def test_the_machines_steps_know_tp_and_the_folded_picture(model) -> None:
    config = AcceleratorConfig(tp=2)
    # Stem: 3 folded taps; 9 taps twice; 25 x 2 taps twice; pool: 256 window places for 2 groups;
    # linear: 2 tiles, NFU-3 takes 2.
    pairs = 16 * 8
    steps = pairs * 3 + pairs * 2 * 9 + pairs * 2 * 50 + 2 * 256 + 2
    assert for_machine(config)(model, (3, 16, 16)) == steps


def test_least_squares_loses_less_than_cutting_at_the_same_slices(model, images):
    """By the pre-activations of a layer whose inputs are the same, less each channel's mean."""
    whole = sort_channels(reestimate_bn(model, images), images)
    x = normalise(images)
    taps, errors = [], []
    for weights in ("cut", "least_squares"):
        config = SliceConfig(keep=0.9, weights=weights, skip=("0", "6", "11"))
        lowered, report = lower_slices(whole, images, config)
        taps.append(report.taps["3"])
        assert not lowered[3].weight[lowered[3].weight_mask == 0].any()
        with torch.no_grad():
            change = lowered[:4](x) - whole[:4](x)
        errors.append(float(change.var(dim=(0, 2, 3)).mean()))
    assert np.array_equal(*taps) and not taps[0].all()
    assert errors[1] < 0.9 * errors[0], errors


def test_weights_are_cut_or_fitted():
    with pytest.raises(ValueError, match="weights must be cut or least_squares, not 'crop'"):
        SliceConfig(weights="crop")
