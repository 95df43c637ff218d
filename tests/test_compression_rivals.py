# SPDX-License-Identifier: Apache-2.0
"""Tests: the criteria of others that relevance trimming is measured against."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.compression import rivals
from hwgen.compress import macs
from hwgen.compress.relevance import measure_relevance
from hwgen.compress.structure import Structure, discover

PLANTED = 5


def _images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3)).astype(np.uint8)


def _two_layers(first: int, second: int, side: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU(),
        nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second), nn.ReLU(),
        nn.Flatten(), nn.Linear(second * side**2, 4),
    ).eval()  # fmt: skip


def _network() -> tuple[nn.Sequential, Structure]:
    model = _two_layers(12, 8, 16)
    return model, discover(model, (3, 16, 16))


def _plant_small_weights(model: nn.Sequential) -> None:
    model[0].weight[PLANTED] *= 1e-3


def _plant_a_mean_filter(model: nn.Sequential) -> None:
    model[0].weight[PLANTED] = model[0].weight[:PLANTED].mean(dim=0)


def _plant_a_small_scale(model: nn.Sequential) -> None:
    model[1].weight[PLANTED] = 1e-3


def _plant_silence(model: nn.Sequential) -> None:
    model[1].bias[PLANTED] = -1e3


CASES = {
    "l1": (rivals.l1, _plant_small_weights),
    "fpgm": (rivals.fpgm, _plant_a_mean_filter),
    "slimming": (rivals.slimming, _plant_a_small_scale),
    "apoz": (rivals.apoz(_images()), _plant_silence),
    "relevance": (rivals.relevance(_images()), _plant_silence),
}


@pytest.mark.parametrize("name", CASES)
def test_the_filter_that_a_criterion_means_is_the_one_trimmed(name):
    score, plant = CASES[name]
    model, structure = _network()
    with torch.no_grad():
        plant(model)
    scores = score(model, structure, structure.space_of("0"))
    assert scores.shape == (12,) and int(scores.argmin()) == PLANTED
    whole = macs(model, (3, 16, 16))
    trimmed = rivals.trim_by(model, _images(), score, macs, 0.9 * whole, align=1)
    kept = [
        i
        for i, filter in enumerate(model[0].weight)
        if any(torch.equal(filter, other) for other in trimmed[0].weight)
    ]
    assert PLANTED not in kept and len(kept) == trimmed[0].out_channels < 12
    assert macs(trimmed, (3, 16, 16)) <= 0.9 * whole


def test_l1_and_fpgm_are_sums_and_distances():
    model, structure = _network()
    flat = model[0].weight.detach().double().reshape(12, -1).numpy()
    space = structure.space_of("0")
    np.testing.assert_allclose(rivals.l1(model, structure, space), np.abs(flat).sum(axis=1))
    distances = np.linalg.norm(flat[:, None] - flat, axis=2).sum(axis=1)
    np.testing.assert_allclose(rivals.fpgm(model, structure, space), distances, rtol=1e-6)


def test_apoz_is_one_less_the_share_of_zeros():
    model, structure = _network()
    space = structure.space_of("0")
    active = measure_relevance(model, structure, _images(), "fraction_active", False)
    score = rivals.apoz(_images())(model, structure, space)
    assert np.array_equal(score, active[space.identifier])


def test_random_scores_differ_by_seed_alone():
    model, structure = _network()
    space = structure.space_of("0")
    first, again, other = (
        rivals.random_scores(seed)(model, structure, space) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_what_a_rival_cannot_do_is_said():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    structure = discover(model, (3, 16, 16))
    with pytest.raises(ValueError, match="must have a batch norm behind .*'0'.*; try l1"):
        rivals.slimming(model, structure, structure.space_of("0"))
    with pytest.raises(ValueError, match="cannot bring the cost down to 1"):
        rivals.trim_by(model, _images(), rivals.l1, macs, 1.0)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, (3, 16)),  # the first layer's small filters alone
        ({"uniform": True}, (5, 10)),  # 5 / 8 of each layer
        ({"align": 4}, (4, 12)),
        ({"align": 4, "uniform": True}, (4, 12)),
    ],
)
def test_depgraph_stops_at_the_first_network_that_meets_the_target(options, left):
    model, target = _planted(), 64 * (5 * 27 + 10 * 5 * 9 + 4 * 10)  # MACs of 5 and 10 filters
    pruned = rivals.depgraph(model, 8, macs, target, last="7", steps=16, **options)
    assert (pruned[0].out_channels, pruned[3].out_channels) == left
    assert pruned[7].out_features == 4 and macs(pruned, (3, 8, 8)) <= target
    assert (model[0].out_channels, model[3].out_channels) == (8, 16)


def test_depgraph_returns_the_first_of_the_cheapest_where_the_target_is_out_of_reach():

    def cost(model: nn.Module, shape: tuple[int, int, int]) -> float:
        return max(4, model[0].out_channels)

    pruned = rivals.depgraph(_planted(), 8, cost, 0.0, last="7", steps=16, uniform=True)
    assert (pruned[0].out_channels, pruned[3].out_channels) == (4, 9)  # 9 / 16 of 8 and 16


def _planted() -> nn.Sequential:
    """Return a network of which 6 of the first layer's 8 filters are small."""
    model = _two_layers(8, 16, 8)
    with torch.no_grad():
        for small in (model[0].weight[:6], model[1].weight[:6], model[3].weight[:, :6]):
            small *= 1e-3
    return model
