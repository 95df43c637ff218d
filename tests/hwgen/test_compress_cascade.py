# SPDX-License-Identifier: Apache-2.0
"""Tests: a cascade's cost by hand, its thresholds against brute force, and its export."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from hwgen.arch import AcceleratorConfig, Bundle, CascadeBundle, estimate
from hwgen.arch.bundle import BundleError
from hwgen.arch.cascade import ALWAYS, NEVER, CascadeRule, confidence_of, run_rule
from hwgen.backends import program
from hwgen.compress import (
    CascadeConfig,
    cascade_costs,
    cascade_logits,
    compile_cascade,
    crop_all,
    evaluate_cascade,
    fit_cascade,
    macs,
    normalise,
    predict,
    resize_all,
)
from hwgen.ir.evaluate import run_quantized
from hwgen.models import resnet8
from hwgen.quantize import quantize_model


def noisy_logits(rng, count, qualities, classes=4, levels=None):
    """Logits of networks of growing quality, and the labels; `levels` makes confidences tie."""
    labels = rng.integers(0, classes, count)
    stages = []
    for quality in qualities:
        logits = rng.normal(size=(count, classes))
        logits[np.arange(count), labels] += quality * rng.random(count)
        stages.append(np.round(logits * levels) / levels if levels else logits)
    return [stage.astype(np.float32) for stage in stages], labels


def every_rule(stage_logits, confidence, alphas):
    """Yield rules that make every cut there is: thresholds at each confidence, and above all."""
    values, running = [], None
    free = CascadeRule((NEVER,) * (len(stage_logits) - 1), alphas, confidence)
    for stage, logits in enumerate(stage_logits[:-1]):
        running = free.fuse(stage, running, logits)
        values.append([*np.unique(confidence_of(running, confidence)), ALWAYS])
    for thresholds in itertools.product(*values):
        yield CascadeRule(thresholds, alphas, confidence)


def brute_force(stage_logits, labels, costs, config, predictor_cost=0.0, glances=0):
    """Return the (accuracy, cost) that is best of every rule with every shared alpha, or None."""
    best = None
    for alpha in config.alphas:
        for rule in every_rule(stage_logits, config.confidence, (alpha,)):
            report = evaluate_cascade(rule, stage_logits, labels, costs, predictor_cost, glances)
            if config.target_accuracy is not None:
                met = report.accuracy >= config.target_accuracy
                key = (-report.cost, report.accuracy)
            else:
                met = report.cost <= config.target_cost
                key = (report.accuracy, -report.cost)
            if met and (best is None or key > best[0]):
                best = (key, report)
    return None if best is None else (best[1].accuracy, best[1].cost)


def three_stages():
    """Logits of three stages on four images, their labels, and what a run of each costs."""
    differences = ((4, 1, 1, 0.5), (9, 3, -1, 0.5), (9, 9, 9, -3))
    stages = [np.array([[0.0, d] for d in row]) for row in differences]
    return stages, np.array([1, 1, 1, 1]), [10, 100, 1000]


def test_a_target_is_met_up_to_the_rounding_of_sums() -> None:
    stages, labels = [np.eye(3), np.eye(3)], np.arange(3)
    _, report = fit_cascade(stages, labels, [0.1, 0.2], CascadeConfig(target_cost=0.1))
    assert report.accuracy == 1.0 and report.cost == pytest.approx(0.1, rel=1e-12)


def test_costs_are_of_shapes() -> None:
    with pytest.raises(ValueError, match=r"input_shapes must be of .*, not \(3, 8, 8\); try"):
        cascade_costs([nn.Identity()] * 3, (3, 8, 8), lambda model, shape: 1.0)


def test_cost_by_hand() -> None:
    # Margins are tanh(d / 2) of the logits' difference d: 0.46 for 1, 0.76 for 2, 0.96 for 4.
    stages, labels, costs = three_stages()
    report = evaluate_cascade(CascadeRule((0.9, 0.9)), stages, labels, costs, 5)
    # Fused: 4 stops at once; 1 + 3 stops behind two; 0 and 1 go on to 9 and -2.
    assert report.shares == (0.25, 0.25, 0.5) and report.accuracy == 0.75
    assert report.cost == 5 + 10 + 100 * 3 / 4 + 1000 * 2 / 4
    assert report.worst_cost == 5 + 10 + 100 + 1000
    assert report.stage_accuracies == (1.0, 0.75, 0.75)
    assert report.saving == 1 - 590 / 1005 and report.images == 4
    short = evaluate_cascade(CascadeRule((0.9, NEVER)), stages, labels, costs, 5)
    assert short.worst_cost == 115 and short.cost == 5 + 10 + 75 and short.accuracy == 0.75


@pytest.mark.parametrize(("glances", "reached"), [(0, 1), (1, 3 / 4), (2, 2 / 4)])
def test_images_that_a_glance_is_enough_for_pay_no_predictor(glances, reached) -> None:
    stages, labels, costs = three_stages()
    report = evaluate_cascade(CascadeRule((0.9, 0.9)), stages, labels, costs, 8, glances)
    assert report.shares == (0.25, 0.25, 0.5)
    assert report.cost == 8 * reached + 10 + 100 * 3 / 4 + 1000 * 2 / 4
    assert report.worst_cost == 1118 and report.predictor_cost == 8
    assert report.stage_costs == (10, 100, 1000)
    short = evaluate_cascade(CascadeRule((NEVER, 0.9)), stages, labels, costs, 8, glances)
    assert short.worst_cost == 10 + (0 if glances else 8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("confidence", ["margin", "top1"])
@pytest.mark.parametrize("levels", [None, 2])
def test_two_stages_equal_brute_force(seed, confidence, levels) -> None:
    rng = np.random.default_rng(seed)
    stages, labels = noisy_logits(rng, 40, (2, 4), levels=levels)
    costs, alphas = (100, 700), (0.0, 1.0, 3.0)
    tried = 0
    for target in (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9):
        config = CascadeConfig(target, confidence=confidence, alphas=alphas)
        wanted = brute_force(stages, labels, costs, config, 30)
        if wanted is None:
            with pytest.raises(ValueError, match="target_accuracy must be within reach"):
                fit_cascade(stages, labels, costs, config, 30)
        else:
            rule, report = fit_cascade(stages, labels, costs, config, 30)
            assert (report.accuracy, report.cost) == wanted and report.accuracy >= target
            assert report == evaluate_cascade(rule, stages, labels, costs, 30)
            tried += 1
    for target in (130, 200, 300, 500, 830, 1e9):
        config = CascadeConfig(target_cost=target, confidence=confidence, alphas=alphas)
        rule, report = fit_cascade(stages, labels, costs, config, 30)
        wanted = brute_force(stages, labels, costs, config, 30)
        assert (report.accuracy, report.cost) == wanted and report.cost <= target
    assert tried > 3


@pytest.mark.parametrize("seed", range(3))
def test_three_stages_equal_brute_force(seed) -> None:
    rng = np.random.default_rng(seed)
    stages, labels = noisy_logits(rng, 14, (2, 3, 5))
    costs = (1, 3, 9)
    for knobs in ({"target_accuracy": 0.7}, {"target_cost": 5}, {"target_cost": 2.5}):
        config = CascadeConfig(**knobs, alphas=(0.5, 2.0))
        rule, report = fit_cascade(stages, labels, costs, config)
        assert (report.accuracy, report.cost) == brute_force(stages, labels, costs, config)
        for glances in (1, 2):
            rule, report = fit_cascade(stages, labels, costs, config, 2, glances)
            assert (report.accuracy, report.cost) == brute_force(
                stages, labels, costs, config, 2, glances
            )
            assert report == evaluate_cascade(rule, stages, labels, costs, 2, glances)


def test_a_coarse_grid_is_refined_to_nearly_the_best() -> None:
    rng = np.random.default_rng(3)
    stages, labels = noisy_logits(rng, 300, (2, 3, 5))
    costs = (1.0, 3.0, 9.0)
    for knobs in ({"target_accuracy": 0.72}, {"target_cost": 5.0}):
        exact = fit_cascade(stages, labels, costs, CascadeConfig(**knobs, resolution=300))[1]
        rule, coarse = fit_cascade(stages, labels, costs, CascadeConfig(**knobs, resolution=8))
        assert coarse.accuracy >= 0.72 if "target_accuracy" in knobs else coarse.cost <= 5.0
        if "target_accuracy" in knobs:
            assert exact.cost <= coarse.cost <= 1.02 * exact.cost
        else:
            assert exact.accuracy >= coarse.accuracy >= exact.accuracy - 0.005
        # No threshold alone can be moved to something better.
        for stage in (0, 1):
            for threshold in np.linspace(0, 1, 201):
                moved = list(rule.thresholds)
                moved[stage] = threshold
                other = CascadeRule(tuple(moved), rule.alphas)
                report = evaluate_cascade(other, stages, labels, costs)
                if "target_accuracy" in knobs:
                    assert report.accuracy < 0.72 or report.cost >= coarse.cost
                else:
                    assert report.cost > 5.0 or report.accuracy <= coarse.accuracy


def test_four_stages_and_alphas_of_their_own() -> None:
    rng = np.random.default_rng(4)
    stages, labels = noisy_logits(rng, 200, (1, 2, 3, 5))
    costs, ticks = (1, 2, 4, 8), []
    shared = CascadeConfig(target_cost=6, alphas=(0.5, 2.0), resolution=12)
    own = CascadeConfig(target_cost=6, alphas=(0.5, 2.0), resolution=12, shared_alpha=False)
    together = fit_cascade(stages, labels, costs, shared)[1]
    rule, report = fit_cascade(
        stages, labels, costs, own, progress=lambda *tick: ticks.append(tick)
    )
    assert report.accuracy >= together.accuracy and report.cost <= 6
    assert len(rule.thresholds) == len(rule.alphas) == 3 and set(rule.alphas) <= {0.5, 2.0}
    assert ticks[-1] == ("cascade", 8, 8)


def test_thresholds_lie_between_confidences() -> None:
    """So that no rounding on another machine sends an image of the data another way."""
    rng = np.random.default_rng(5)
    stages, labels = noisy_logits(rng, 300, (2, 6))
    rule, report = fit_cascade(stages, labels, (1, 10), CascadeConfig(target_cost=4.0))
    sure = confidence_of(stages[0])
    below, above = sure[sure < rule.thresholds[0]].max(), sure[sure >= rule.thresholds[0]].min()
    assert rule.thresholds[0] == below + (above - below) / 2
    assert np.array_equal(run_rule(rule, stages).stages, np.where(sure < above, 2, 1))
    assert 0 < report.shares[1] <= 0.3


def test_neighbouring_confidences_are_told_apart() -> None:
    margins = 1.0 + np.arange(2000) * 2.0**-52  # of logits; confidences then differ by some bits
    rows = np.stack([np.zeros(2000), margins], axis=1)
    sure = confidence_of(rows)
    where = np.flatnonzero(sure[1:] == np.nextafter(sure[:-1], 1))[0]
    low, high = rows[where, None], rows[where + 1, None]
    stages = [np.concatenate([low, high]), np.array([[5.0, 0.0], [0.0, 0.0]])]
    rule, report = fit_cascade(stages, np.array([0, 1]), (1, 1), CascadeConfig(1.0))
    assert report.shares == (0.5, 0.5) and rule.thresholds[0] == confidence_of(high)[0]


def test_alphas_of_0_and_1() -> None:
    stages = [np.array([[0.0, 1.0], [0.0, 2.0]]), np.array([[3.0, 0.0], [0.0, 1.0]])]
    labels = np.array([0, 1])
    with pytest.raises(ValueError, match=r"gets 0.5 of these images right, at a cost of 1.0"):
        fit_cascade(stages, labels, (1, 9), CascadeConfig(1.0, alphas=(0.0,)))
    rule, report = fit_cascade(stages, labels, (1, 9), CascadeConfig(1.0, alphas=(0.0, 1.0)))
    assert rule.alphas == (1.0,) and report.shares == (0.5, 0.5) and report.cost == 1 + 9 / 2


def test_a_first_stage_that_is_good_enough_stays_alone() -> None:
    stages, labels = noisy_logits(np.random.default_rng(6), 50, (9, 9))
    # A share that is a difference lies some bits above the one that is reached.
    some = [np.eye(2)[(np.arange(100) >= right).astype(int)] for right in (10, 47)]
    config = CascadeConfig(0.52 - 0.05, alphas=(9.0,))
    assert fit_cascade(some, np.zeros(100, int), (1, 9), config)[1].accuracy == 0.47
    rule, report = fit_cascade(stages, labels, (1, 9), CascadeConfig(0.0))
    assert rule.thresholds == (NEVER,) and report.cost == report.worst_cost == 1


def test_impossible_targets() -> None:
    stages, labels = noisy_logits(np.random.default_rng(7), 50, (1, 2))
    with pytest.raises(ValueError, match=r"not 20.0: the first stage costs 25.0 with the pred"):
        fit_cascade(stages, labels, (20, 90), CascadeConfig(target_cost=20.0), 5)
    with pytest.raises(ValueError, match=r"within reach, not 1.0: the best rule gets 0\.\d+ of"):
        fit_cascade(stages, labels, (20, 90), CascadeConfig(1.0), 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of target_accuracy and target_cost must be given, not None and None"),
        ({"target_accuracy": 0.5, "target_cost": 5}, "one of target_accuracy"),
        ({"target_accuracy": 90}, r"in \[0, 1\], not 90; try 0.9"),
        ({"target_cost": 0}, "target_cost must be above 0"),
        ({"target_cost": 1, "confidence": "entropy"}, "confidence must be one of"),
        ({"target_cost": 1, "alphas": ()}, "alphas must"),
        ({"target_cost": 1, "alphas": (-1,)}, "alphas must"),
        ({"target_cost": 1, "resolution": 1}, "resolution must be at least 2"),
    ],
)
def test_configs_are_checked(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        CascadeConfig(**arguments)


def test_data_are_checked() -> None:
    stages, labels = noisy_logits(np.random.default_rng(8), 10, (1, 2))
    config = CascadeConfig(target_cost=9)

    def refused(message, stages=stages, labels=labels, costs=(1, 2), predictor=0.0, glances=0):
        with pytest.raises(ValueError, match=message):
            fit_cascade(stages, labels, costs, config, predictor, glances)

    refused("at least 2 stages, not 1", stages=stages[:1])
    refused("labels must be integers", labels=labels.astype(float))
    refused("labels must be integers", labels=labels[:0])
    for wrong in (np.full(10, -1), np.full(10, stages[0].shape[1])):
        refused("labels must be in 0.*, the stages' classes", labels=wrong)
    refused(r"shape \(9, classes\) for every stage", labels=labels[:9])
    refused("for every stage", stages=[stages[0], stages[1][:, :3]])
    refused("costs must be 2 numbers above 0", costs=(1, 2, 3))
    refused("costs must", costs=(0, 2))
    refused("predictor_cost must be 0 or more", predictor=-1)
    refused(r"from 0 to 1 \(of 2 stages the last", predictor=1, glances=2)
    refused(r"from 0 to 0 \(without predictor", glances=1)
    refused("finite", stages=[stages[0], stages[1] * np.float32(np.nan)])


def network(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )


def predictor() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))


def test_logits_and_costs_of_models_and_graphs(rng, seed) -> None:
    torch.manual_seed(seed)
    small, large = network(4), network(16)
    images = rng.integers(0, 256, (12, 12, 12, 3)).astype(np.uint8)
    ticks = []
    found = cascade_logits([small, large], images, [8, 12], progress=lambda *t: ticks.append(t))
    assert np.array_equal(found[0], predict(small, resize_all(images, 8)))
    assert np.array_equal(found[1], predict(large, images))
    assert ticks == [("cascade", 1, 2), ("cascade", 2, 2)]
    x = normalise(images)
    graph = quantize_model(large, x[:1], x)
    assert np.array_equal(cascade_logits([graph], images)[0], run_quantized(graph, x.numpy()))
    boxes = np.sort(rng.random((12, 2, 2)), axis=1).reshape(12, 4)
    for glances in (0, 1):
        found = cascade_logits([small, large], images, [8, 5], boxes=boxes, glances=glances)
        seen = [crop_all(images, boxes, side) for side in (8, 5)]
        seen[:glances] = [resize_all(images, 8)][:glances]
        for logits, model, what in zip(found, (small, large), seen, strict=True):
            assert np.array_equal(logits, predict(model, what))
    with pytest.raises(ValueError, match="glances=1 must be given with boxes"):
        cascade_logits([small, large], images, [8, 5], glances=1)
    shapes = [(3, 8, 8), (3, 12, 12)]
    assert cascade_costs([small, large], shapes, macs) == (
        8 * 8 * 9 * 3 * 4 + 4 * 3,
        12 * 12 * 9 * 3 * 16 + 16 * 3,
    )
    assert cascade_costs([small, small], shapes[:1], macs)[1] == macs(small, shapes[0])
    with pytest.raises(ValueError, match="sides must be one for each of 2"):
        cascade_logits([small, large], images, [8])
    with pytest.raises(ValueError, match="input_shapes must be one or 3"):
        cascade_costs([small] * 3, shapes, macs)


def test_export_puts_networks_side_by_side(rng, seed, tmp_path) -> None:
    torch.manual_seed(seed)
    config = AcceleratorConfig(tn=8, ti=8, scratchpad_bank_words=1024, synapse_rows=512)
    pictures = rng.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    x = normalise(pictures)
    large = network(24)
    graph = quantize_model(large, x[:1], x)
    build = functools.partial(
        compile_cascade,
        [network(8), graph],
        CascadeRule((0.5,)),
        [pictures, pictures, None],
        config=config,
        predictor=predictor(),
        name="pets",
        labels=("cat", "dog", "owl"),
    )
    cascade = build()
    assert cascade.resident and cascade.labels == ("cat", "dog", "owl")
    names = [bundle.name for bundle in cascade.members.values()]
    assert names == ["pets predictor", "pets stage 1", "pets stage 2"]
    places = [bundle.placement for bundle in cascade.members.values()]
    for before, after in itertools.pairwise(places):
        assert after.synapse_row == before.synapse_row + before.synapse_rows
        assert after.tap_entry == before.tap_entry + before.tap_entries
    file = cascade.save(tmp_path / "pets.cascade")
    assert CascadeBundle.load(file) == cascade
    with pytest.raises(BundleError, match="pets.cascade is a file, and a bundle is a folder"):
        Bundle.load(file)
    assert build(glances=1).glances == 1 and cascade.glances == 0
    with pytest.raises(ValueError, match="pictures for each of the 2 networks .* not 1 sets"):
        compile_cascade([large, graph], CascadeRule((0.5,)), [pictures], config=config)
    with pytest.raises(ValueError, match="not 0 sets"):
        compile_cascade([large, graph], CascadeRule((0.5,)), config=config)


def test_export_of_what_does_not_fit(rng, seed) -> None:
    """Stages that find no room stream their weights, and the bundle says so."""
    torch.manual_seed(seed)
    config = AcceleratorConfig(tn=8, ti=8, scratchpad_bank_words=1024, synapse_rows=64)
    pictures = rng.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    cascade = compile_cascade(
        [network(8), network(48), network(64)],
        CascadeRule((0.5, 0.5)),
        [pictures] * 3,
        config=config,
    )
    assert not cascade.resident and cascade.stages[0].metadata["resident"]
    for bundle in cascade.stages:
        end = bundle.placement.synapse_row + bundle.placement.synapse_rows
        assert end <= config.synapse_rows


def test_a_stage_takes_everything_where_streaming_through_the_rest_is_slower(seed) -> None:
    """What it costs each time decides, the loading of all that is overwritten included."""
    torch.manual_seed(seed)
    config, x = AcceleratorConfig(synapse_rows=512), torch.randn(4, 3, 32, 32)
    layers = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU()]
    for _ in range(3):  # of 36 rows each
        layers += [nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU()]
    filler = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))
    graphs = [
        quantize_model(net.eval(), x[:1], x, observer="minmax")
        for net in (resnet8(), filler, resnet8())
    ]
    cascade = compile_cascade(graphs, CascadeRule((0.5, 0.5)), config=config)
    one, two, last = cascade.stages
    assert one.metadata["resident"] and two.metadata["resident"] and not cascade.resident
    row = two.placement.synapse_row + two.placement.synapse_rows
    entry = two.placement.tap_entry + two.placement.tap_entries
    assert 0 < config.synapse_rows - row < 72
    behind = program.emit(graphs[2], config, synapse_row=row, tap_entry=entry)
    loads = sum(estimate(bundle).setup_cycles for bundle in cascade.stages)
    assert last.placement.synapse_row == 0 and not behind.metadata["resident"]
    assert estimate(last).cycles + loads < estimate(behind).cycles


def test_how_to_quantize_is_for_models_alone(rng, seed) -> None:
    torch.manual_seed(seed)
    pictures = rng.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    x = normalise(pictures)
    graphs, rule = (
        [quantize_model(net, x[:1], x) for net in (network(4), network(8))],
        CascadeRule((0.5,)),
    )
    with pytest.raises(ValueError, match="scheme, equalization must be given with models"):
        compile_cascade(graphs, rule, scheme="affine", equalization=True)
    with pytest.raises(TypeError, match="glance"):
        compile_cascade(graphs, rule, glance=1)  # type: ignore[call-arg]
    mixed = compile_cascade([network(4), graphs[1]], rule, [pictures, None], scheme="power_of_two")
    assert np.log2(mixed.stages[0].input.scale) % 1 == 0


@pytest.mark.parametrize("channels", [1, 4])
def test_networks_of_other_channels_than_three(rng, seed, channels) -> None:
    torch.manual_seed(seed)
    pictures = rng.integers(0, 256, (8, 8, 8, channels)).astype(np.uint8)
    nets = [
        nn.Sequential(nn.Conv2d(channels, 4, 8), nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)
    ]
    cascade = compile_cascade(nets, CascadeRule((0.5,)), [pictures, pictures])
    assert cascade.stages[0].mean == (0.5,) * channels
    x = normalise(pictures)[0].numpy()
    assert np.array_equal(cascade.stages[0].preprocess(pictures[0]), x)
    graph = quantize_model(nets[0], normalise(pictures)[:1], normalise(pictures))
    config = AcceleratorConfig()
    for wrong, text in (
        (((0.5,) * 3, (0.5,) * 3), "3 and 3, not"),
        (((0.5,), (0.5,) * 2), "1 and 2, not"),
        (((0.5,), (0.0,)), "each std must be above 0"),
    ):
        with pytest.raises(ValueError, match=text):
            program.emit(graph, config, preprocess=wrong)
