# SPDX-License-Identifier: Apache-2.0
"""Tests: relevance trimming."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hwgen.compress import RelevanceConfig, discover, load_compressed, normalise, trim_by_relevance
from hwgen.compress.relevance import measure_relevance, remove_channels
from hwgen.compress.training import reestimate_bn
from hwgen.models import demo_classifier, lenet, mobilenet_v1, resnet_cifar
from tests.support.retraining import mark_of, marking


def _images(side: int = 32, count: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def _shake_norms(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and scales that are no identity."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model.eval()


@pytest.mark.parametrize("statistic", ["mean_abs", "max", "rms", "std", "fraction_active"])
def test_the_planted_irrelevant_filter_is_the_one_trimmed(statistic):
    torch.manual_seed(1)
    model = lenet()
    with torch.no_grad():
        model.conv1.weight[5] *= 1e-3
        model.conv1.bias[5] = -0.1  # its activation is zero nearly always
        model.conv1.bias[:5].clamp_min_(0.3)
        model.conv1.bias[6:].clamp_min_(0.3)
    config = RelevanceConfig(statistic=statistic, amount=15 / 16, retrain="none")
    trimmed, report = trim_by_relevance(model, _images(), config)
    assert set(range(16)) - set(report.kept["conv1"]) == {5}
    assert trimmed.conv1.out_channels == 15 and trimmed.conv2.in_channels == 15
    assert model.conv1.out_channels == 16  # the input is as it was


@pytest.mark.parametrize("build", [demo_classifier, lenet, mobilenet_v1, lambda: resnet_cifar(8)])
def test_trimming_filters_that_are_zero_leaves_the_logits(build):
    torch.manual_seed(2)
    model = _shake_norms(build())
    structure = discover(model, (3, 32, 32))
    kept = {}
    for space in structure.spaces.values():
        if space.frozen:
            continue
        dead = np.array([1, space.channels - 2])
        kept[space.identifier] = np.setdiff1d(np.arange(space.channels), dead)
        with torch.no_grad():
            for name in space.producers + space.depthwise + space.batch_norms:
                module = model.get_submodule(name)
                for value in (module.weight, module.bias):
                    if value is not None:
                        value[dead] = 0
            for name in space.batch_norms:
                model.get_submodule(name).running_mean[dead] = 0
    trimmed = remove_channels(model, structure, kept).eval()
    x = normalise(_images())
    with torch.no_grad():
        torch.testing.assert_close(trimmed(x), model(x), rtol=1e-4, atol=1e-5)
    for identifier, indices in kept.items():
        for name in structure.spaces[identifier].producers:
            assert trimmed.get_submodule(name).weight.shape[0] == len(indices)


def test_a_residual_group_is_trimmed_as_one():
    model = resnet_cifar(20)
    config = RelevanceConfig(amount=0.5, retrain="reestimate_bn")
    trimmed, report = trim_by_relevance(model, _images(), config)
    stem = report.kept["conv1"]
    for block in range(3):
        original = model.layer1[block].conv2.weight
        own = trimmed.layer1[block].conv2.weight
        assert own.shape[0] == 8
        inner = report.kept[f"layer1.{block}.conv1"]
        assert torch.equal(own, original[stem][:, inner])
    assert "layer1.0.conv2" not in report.kept  # the stem's name stands for its group
    assert trimmed(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_whole_machine_groups_are_kept():
    model = demo_classifier()
    config = RelevanceConfig(amount=0.4, align=16, retrain="none")
    trimmed, _ = trim_by_relevance(model, _images(), config)
    counts = [m.out_channels for m in trimmed.modules() if isinstance(m, nn.Conv2d)]
    assert set(counts) == {16, 32}  # 0.4 * 32 and 0.4 * 64, rounded up to groups


@pytest.mark.parametrize("criterion", ["threshold", "global_rank"])
def test_other_criteria_count_as_they_say(criterion):
    model = demo_classifier().eval()
    structure = discover(model, (3, 32, 32))
    scores = measure_relevance(model, structure, _images())
    spaces = [s for s in structure.spaces.values() if not s.frozen]
    amount = 0.7
    config = RelevanceConfig(criterion=criterion, amount=amount, retrain="none")
    _, report = trim_by_relevance(model, _images(), config)
    everything = np.concatenate([scores[s.identifier] for s in spaces])
    limit = amount
    if criterion == "global_rank":
        limit = np.sort(everything)[::-1][int(np.ceil(amount * len(everything) - 1e-9)) - 1]
    for space in spaces:
        expected = np.flatnonzero(scores[space.identifier] >= limit)
        if len(expected):
            assert np.array_equal(report.kept[space.producers[0]], expected)


@pytest.mark.parametrize(
    ("knobs", "loud", "quiet"),
    [
        ({"normalise": True}, [1, 3], [0, 2]),
        ({"normalise": False}, [0, 1, 2, 3], [2]),  # a space keeps one
        ({"normalise": True, "align": 3}, [1, 2, 3], [0, 2, 3]),
        ({"normalise": False, "align": 3}, [0, 1, 2, 3], [0, 2, 3]),
    ],
)
def test_channels_are_ranked_across_spaces_as_measured_or_beside_their_own(knobs, loud, quiet):
    """Half of eight channels, by the constants that two layers put out; in groups if asked for."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    with torch.no_grad():
        for layer, values in ((0, [10.0, 40.0, 20.0, 30.0]), (2, [3.0, 1.0, 4.0, 2.0])):
            model[layer].weight.zero_()
            model[layer].bias.copy_(torch.tensor(values))
        model[2].bias[1] = 1.25  # no score of one layer is one of the other
    config = RelevanceConfig(criterion="global_rank", amount=0.5, retrain="none", **knobs)
    _, report = trim_by_relevance(model, _images(side=4, count=2), config)
    assert {name: kept.tolist() for name, kept in report.kept.items()} == {"0": loud, "2": quiet}


def test_iterating_trims_in_rounds_and_retrains_after_each():
    sizes = []

    def fine_tune(model: nn.Module) -> nn.Module:
        sizes.append(model.layer1[0].conv1.out_channels)
        return copy.deepcopy(model)

    config = RelevanceConfig(amount=0.5, retrain="iterate", rounds=3)
    _, report = trim_by_relevance(demo_classifier(), _images(), config, fine_tune)
    assert len(sizes) == 3 and sizes[0] > sizes[1] > sizes[2] == 16
    assert report.channels_after <= 0.5 * report.channels_before + 3
    with pytest.raises(ValueError, match="fine_tune must be given"):
        trim_by_relevance(demo_classifier(), _images(), config)


def test_a_trimmed_state_loads_into_the_untrimmed_model():
    model = mobilenet_v1()
    trimmed, _ = trim_by_relevance(model, _images(), RelevanceConfig(amount=0.5))
    again = load_compressed(model, trimmed.state_dict()).eval()
    x = normalise(_images())
    with torch.no_grad():
        assert torch.equal(again(x), trimmed(x))


def test_statistics_are_those_of_the_activations():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1)).eval()
    images = _images(side=8, count=7)
    structure = discover(model, (3, 8, 8))
    with torch.no_grad():
        maps = model[1](model[0](normalise(images))).double().numpy()
    flat = maps.transpose(1, 0, 2, 3).reshape(5, -1)
    wanted = {
        "mean_abs": np.abs(flat).mean(axis=1),
        "max": flat.max(axis=1),
        "rms": np.sqrt((flat**2).mean(axis=1)),
        "std": flat.std(axis=1),
        "fraction_active": (flat > 0).mean(axis=1),
    }
    space = structure.space_of("0").identifier
    for statistic, expected in wanted.items():
        plain = measure_relevance(model, structure, images, statistic, normalise=False)[space]
        np.testing.assert_allclose(plain, expected, rtol=1e-6, err_msg=statistic)
        shared = measure_relevance(model, structure, images, statistic)[space]
        np.testing.assert_allclose(shared, expected / expected.mean(), rtol=1e-6)


def test_every_space_keeps_its_minimum():
    model = demo_classifier()
    config = RelevanceConfig(criterion="threshold", amount=1e9, minimum=3, retrain="none")
    trimmed, report = trim_by_relevance(model, _images(), config)
    assert {len(kept) for kept in report.kept.values()} == {3}
    assert trimmed(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_fine_tuning_comes_once_at_the_end():
    seen = []

    def fine_tune(model: nn.Module) -> nn.Module:
        seen.append(model.conv1.out_channels)
        return copy.deepcopy(model)

    config = RelevanceConfig(amount=0.5, retrain="fine_tune", rounds=3)
    trimmed, _ = trim_by_relevance(demo_classifier(), _images(), config, fine_tune)
    assert seen == [trimmed.conv1.out_channels]


@pytest.mark.parametrize("retrain", ["none", "reestimate_bn", "fine_tune", "iterate"])
def test_retraining_is_what_its_mode_says(retrain):
    """Batch norms are left alone or estimated anew; what fine-tuning returned is the result."""
    model = demo_classifier().eval()
    config = RelevanceConfig(amount=0.5, retrain=retrain, rounds=2)
    trimmed, report = trim_by_relevance(model, _images(), config, marking())
    kept = report.kept["conv1"]
    untouched = torch.equal(trimmed.bn1.running_mean, model.bn1.running_mean[kept])
    again = reestimate_bn(trimmed, _images())
    estimated = torch.equal(trimmed.bn1.running_mean, again.bn1.running_mean)
    assert (untouched, estimated) == (retrain == "none", retrain != "none")
    assert (mark_of(trimmed) == 7.0) == (retrain in ("fine_tune", "iterate"))


def test_a_residual_groups_relevance_is_the_mean_over_its_places():
    """The stem's group is seen behind the stem and behind each addition; places that disagree."""
    torch.manual_seed(0)
    model = resnet_cifar(8).eval()
    structure = discover(model, (3, 16, 16))
    space = structure.space_of("conv1")
    assert len(space.observed) >= 2
    whole = measure_relevance(model, structure, _images(16))[space.identifier]
    places = [
        measure_relevance(
            model,
            replace(structure, spaces={0: replace(space, identifier=0, observed=(place,))}),
            _images(16),
        )[0]
        for place in space.observed
    ]
    assert not np.allclose(places[0], places[-1])
    np.testing.assert_allclose(whole, np.mean(places, axis=0), rtol=1e-12)


@pytest.mark.parametrize(("criterion", "amount"), [("threshold", 0.9), ("global_rank", 0.5)])
def test_a_round_goes_its_share_of_the_way(criterion, amount):
    """To a third of the threshold, or to the cube root of the share; the last round all the way."""
    model, sizes = demo_classifier().eval(), []
    structure = discover(model, (3, 32, 32))
    scores = measure_relevance(model, structure, _images())
    spaces = [space for space in structure.spaces.values() if not space.frozen]

    def fine_tune(model: nn.Module) -> nn.Module:
        now = discover(model, (3, 32, 32))
        sizes.append({s.producers[0]: s.channels for s in now.spaces.values() if not s.frozen})
        return copy.deepcopy(model)

    config = RelevanceConfig(criterion=criterion, amount=amount, retrain="iterate", rounds=3)
    _, report = trim_by_relevance(model, _images(), config, fine_tune)
    if criterion == "threshold":
        expected = {
            s.producers[0]: max(int((scores[s.identifier] >= amount / 3).sum()), 1) for s in spaces
        }
        assert sizes[0] == expected
    else:
        total = sum(space.channels for space in spaces)
        assert sum(sizes[0].values()) == int(np.ceil(total * amount ** (1 / 3)))
        assert abs(sum(sizes[-1].values()) - total * amount) <= len(spaces)  # each keeps one
    totals = [sum(size.values()) for size in sizes]
    assert totals == sorted(totals, reverse=True) and totals[0] < 208
    assert sizes[-1] == {name: len(kept) for name, kept in report.kept.items()}


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"amount": 0.0}, r"amount must be in \(0, 1\]"),
        ({"statistic": "mean"}, "statistic must be mean_abs, .* fraction_active, not 'mean'"),
        ({"criterion": "keep"}, "criterion must be .*, not 'keep'"),
        ({"retrain": "finetune"}, "retrain must be none, .* or iterate, not 'finetune'"),
        ({"align": 0}, "align must be at least 1, not 0"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        RelevanceConfig(**knobs)
