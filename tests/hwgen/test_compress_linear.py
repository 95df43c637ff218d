# SPDX-License-Identifier: Apache-2.0
"""Tests: linear approximation."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwgen.arch import AcceleratorConfig, GoldenRun
from hwgen.backends import program
from hwgen.cli.networks import load_model
from hwgen.compress import (
    TrainConfig,
    discover,
    load_compressed,
    macs,
    normalise,
    predict,
    train,
)
from hwgen.compress.linear_approximation import (
    ApproximationConfig,
    approximable,
    approximate_channels,
    approximate_maps,
    approximation_macs,
    choose_dropped,
    copies,
    eliminate,
    fit_maps,
    insert_approximations,
    is_approximation,
)
from hwgen.compress.training import MASK
from hwgen.ir import evaluate_integer
from hwgen.models import mobilenet_v1, resnet_cifar
from hwgen.quantize import quantize_model

EXACT = ApproximationConfig(ridge=0.0, align=1, retrain="none")
"""Freely chosen channels, nothing but the fit."""

SIDE = 8
SHAPE = (3, SIDE, SIDE)


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    """Return 16 random pictures; the networks below are seeded by the same test's seed."""
    torch.manual_seed(int(rng.integers(2**31)))
    return rng.integers(0, 256, (16, SIDE, SIDE, 3), dtype=np.uint8)


def _plant(writer: nn.Module, d: int, of: dict[int, float], lift: float = 0.0) -> None:
    """Make a writer's map d a combination of others, all lifted by a bias to stay above 0."""
    with torch.no_grad():
        writer.weight[d] = sum(a * writer.weight[k] for k, a in of.items())
        if writer.bias is not None:
            writer.bias += lift
            writer.bias[d] = sum(a * writer.bias[k] for k, a in of.items())


def _logits(model: nn.Module, images: np.ndarray) -> Tensor:
    """Return the outputs in float64."""
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(normalise(images).double())


def _drop(model, images, writer, dropped, config=EXACT):
    """Approximate channels of the space of a writer, in float64."""
    model = copy.deepcopy(model).double().eval()
    structure = discover(copy.deepcopy(model).float(), SHAPE)
    structure = dataclasses.replace(structure, graph=_retraced(model))
    space = structure.space_of(writer)
    return approximate_channels(model, structure, space, np.array(dropped), images, config)


def _retraced(model: nn.Module) -> torch.fx.GraphModule:
    """Trace again: the structure is found in float32, its graph is to run in float64."""
    return torch.fx.symbolic_trace(model)


def _same(model: nn.Module, found: nn.Module, images: np.ndarray) -> None:
    want, got = _logits(model, images), _logits(found, images)
    assert want.std() > 1e-3  # there is something to compare
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)


def _net(*middle: nn.Module, bias: bool = True, head: nn.Module | None = None) -> nn.Sequential:
    """Return a convolution of 6 maps, ReLU, something, and a reader."""
    last = head or nn.Conv2d(6, 4, 3, padding=1)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.ReLU(), *middle, last)


COMBINATION = {0: 0.75, 3: 0.5}
"""Positive, so that lifted maps stay above zero."""


@pytest.mark.parametrize("form", ["folded", "explicit"])
@pytest.mark.parametrize(
    "middle,head",
    [
        ((), nn.Conv2d(6, 4, 3, padding=1)),
        ((), nn.Conv2d(6, 4, 3, stride=2)),
        ((nn.AvgPool2d(2),), nn.Conv2d(6, 4, 3, padding=1)),
        ((nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(6, 4)),
        ((nn.AvgPool2d(2), nn.Flatten()), nn.Linear(6 * 16, 4)),
    ],
    ids=["padded", "strided", "avg_pool", "linear", "flatten"],
)
def test_an_exact_combination_is_found_and_leaves_the_logits(images, form, middle, head):
    head.reset_parameters()
    model = _net(*middle, head=head)
    _plant(model[0], 2, COMBINATION, lift=20.0)
    config = dataclasses.replace(EXACT, form=form)
    found, report = _drop(model, images, "0", [2], config)
    assert report.dropped.tolist() == [2] and report.kept.tolist() == [0, 1, 3, 4, 5]
    assert report.residual == pytest.approx([0.0], abs=1e-9)
    assert found[0].out_channels == 5 and model[0].out_channels == 6
    assert sum(is_approximation(m) for m in found.modules()) == (form == "explicit")
    _same(model, found, images)


def test_the_coefficients_are_those_planted_and_terms_are_counted(images):
    model = _net(bias=True)
    _plant(model[0], 2, COMBINATION, lift=20.0)
    for terms in (None, 2):
        config = dataclasses.replace(EXACT, form="explicit", terms=terms)
        found, report = _drop(model, images, "0", [2], config)
        step = found[1].approximation
        want = [0.75, 0, 0.5, 0, 0]  # of the kept maps 0, 1, 3, 4, 5
        assert step.weight[2].flatten().tolist() == pytest.approx(want, abs=1e-7)
        assert report.terms.tolist() == [5 if terms is None else 2]
    assert copies(step).tolist() == [True, True, False, True, True, True]
    assert approximation_macs(step, 64) == 2 * 64
    assert approximation_macs(found[2], 64) == 64 * 4 * 6 * 9  # an ordinary convolution's
    assert not copies(found[0]).any()


@pytest.mark.parametrize("form", ["folded", "explicit"])
def test_a_scaled_map_goes_through_relu_and_max_pool(images, form):
    model = _net(nn.MaxPool2d(2))
    _plant(model[0], 4, {1: 2.5})
    found, report = _drop(model, images, "0", [4], dataclasses.replace(EXACT, form=form, terms=1))
    assert report.terms.tolist() == [1]
    _same(model, found, images)


def test_what_is_read_is_fitted_not_what_is_written(images):
    """Behind the pool the fit beats that of the unpooled maps, in what the reader sees."""
    model = _net(nn.MaxPool2d(4), head=nn.Conv2d(6, 4, 1)).double()
    want = _logits(model, images)
    config = dataclasses.replace(EXACT, rows=10**6)
    errors = {}
    for form in ("folded", "explicit"):
        found, _ = _drop(model, images, "0", [3], dataclasses.replace(config, form=form))
        errors[form] = float((_logits(found, images) - want).square().mean())
    assert errors["folded"] < errors["explicit"]


def test_the_residual_is_the_error_over_the_variance(images):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))
    config = dataclasses.replace(EXACT, rows=10**6)
    _, report = _drop(model, images, "0", [1, 4], config)
    with torch.no_grad():
        maps = model[:2](normalise(images)).double().permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    inputs = np.column_stack([maps[:, report.kept], np.ones(len(maps))])
    left = maps[:, [1, 4]] - inputs @ np.linalg.lstsq(inputs, maps[:, [1, 4]], rcond=None)[0]
    want = (left**2).mean(axis=0) / maps[:, [1, 4]].var(axis=0)
    assert report.residual == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_constant_goes_into_the_bias_or_the_batch_norm(images, bias):
    """Map 2 is map 0 plus a constant; only an intercept gives that back exactly."""
    reader = nn.Conv2d(6, 4, 3, bias=bias)
    model = _net(head=nn.Sequential(reader, nn.BatchNorm2d(4)))
    _plant(model[0], 2, {0: 1.0}, lift=20.0)
    with torch.no_grad():
        model[0].bias[2] += 5.0
    found, report = _drop(model, images, "0", [2], dataclasses.replace(EXACT, terms=1))
    assert report.residual == pytest.approx([0.0], abs=1e-9)
    _same(model, found, images)
    reader.padding = (1, 1)  # zeros at the border: no constant there
    _, report = _drop(model, images, "0", [2], dataclasses.replace(EXACT, terms=1))
    assert report.residual[0] > 1e-6


class _Residual(nn.Module):
    """A stem and a block around it, then two readers of the sum and one of the stem's maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 5, 3, padding=1)
        self.outer = nn.Conv2d(5, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.left = nn.Conv2d(6, 4, 1)
        self.right = nn.Conv2d(6, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        y = self.norm(self.outer(functional.relu(self.inner(x))))
        y = functional.relu(x + y)
        return self.left(functional.avg_pool2d(y, 2)) + self.right(functional.max_pool2d(y, 2))


def test_a_residual_group_is_rebuilt_by_each_reader(images):
    model = _Residual().eval()
    with torch.no_grad():
        model.norm.running_mean.uniform_(-1, 1)
        model.norm.weight.uniform_(0.5, 2)
        _plant(model.stem, 3, {1: 2.0})
        _plant(model.outer, 3, {1: 1.0})
        for name, factor in (("weight", 2.0), ("bias", 2.0), ("running_mean", 1.0)):
            held = getattr(model.norm, name)
            held[3] = factor * held[1]
    found, report = _drop(model, images, "stem", [3], dataclasses.replace(EXACT, terms=1))
    assert found.stem.out_channels == found.outer.out_channels == found.norm.num_features == 5
    assert found.inner.in_channels == found.left.in_channels == found.right.in_channels == 5
    assert report.residual == pytest.approx([0.0], abs=1e-9)
    _same(model, found, images)


def test_a_fold_opens_the_mask_where_it_lands(images):
    model = _net()
    _plant(model[0], 2, {0: 1.5})
    mask = torch.ones_like(model[2].weight)
    mask[:, 0, 0] = 0.0
    model[2].register_buffer(MASK, mask)
    with torch.no_grad():
        model[2].weight *= mask
    found, _ = _drop(model, images, "0", [2], dataclasses.replace(EXACT, terms=1))
    assert getattr(found[2], MASK)[:, 0].all()
    _same(model, found, images)


def test_terms_are_few_and_the_more_the_better(rng):
    maps = rng.normal(size=(500, 10)) @ rng.normal(size=(10, 10))
    gram = maps.T @ maps / 500
    kept, dropped = np.arange(8), np.array([8, 9])
    errors = []
    for terms in (1, 3, 5, 8, None):
        found = fit_maps(gram, dropped, kept, 0.0, terms)
        assert (found != 0).sum(axis=1).tolist() == [terms or 8] * 2
        errors.append(((maps[:, dropped] - maps[:, kept] @ found.T) ** 2).mean())
    assert errors == sorted(errors, reverse=True) and errors[3] == pytest.approx(errors[4])
    alone = maps[:, kept].T @ maps[:, dropped] / np.sqrt((maps[:, kept] ** 2).sum(0))[:, None]
    first = fit_maps(gram, dropped, kept, 0.0, 1)
    assert (first != 0).argmax(axis=1).tolist() == np.abs(alone).argmax(axis=0).tolist()


def test_ridge_shrinks_one_coefficient_as_the_formula_says():
    gram = np.array([[4.0, 2.0], [2.0, 3.0]])
    found = fit_maps(gram, np.array([1]), np.array([0]), 0.5)
    assert found.item() == pytest.approx(2.0 / (4.0 + 0.5 * 4.0))


def test_the_ridge_of_the_config_is_that_of_the_fit(images):
    """With one kept map the coefficient is the planted one over 1 + ridge."""
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 1))
    _plant(model[0], 1, {0: 0.5})
    for ridge in (0.0, 0.25):
        config = dataclasses.replace(EXACT, form="explicit", ridge=ridge)
        found, _ = _drop(model, images, "0", [1], config)
        weight = found[1].approximation.weight.flatten().tolist()
        assert weight == pytest.approx([1.0, 0.5 / (1 + ridge)], abs=1e-7)


def test_pixels_are_drawn_by_the_seed_as_many_as_rows(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))

    def folded(**knobs: int) -> Tensor:
        return _drop(model, images, "0", [1], dataclasses.replace(EXACT, **knobs))[0][2].weight

    everything = folded(rows=10**6)
    torch.testing.assert_close(everything, folded(rows=16 * 36, seed=1))
    assert not torch.allclose(folded(rows=64), everything)
    assert not torch.allclose(folded(rows=64), folded(rows=64, seed=1))


def test_elimination_drops_what_is_redundant_and_dead(rng):
    maps = rng.normal(size=(1000, 6))
    maps[:, 4] = maps[:, 0] - 2 * maps[:, 1] + 0.01 * rng.normal(size=1000)
    maps[:, 5] = 0.0
    gram = maps.T @ maps / 1000
    weight = 1.0 / np.maximum(np.diag(gram), 1e-12)
    order = eliminate([gram], [weight], 2)
    assert order[0] == 5 and order[1] in (0, 1, 4)
    # Without a third one of the three, what is left is as good as independent: by hand, the
    # greedy choice is the smallest 1 / (inverse's diagonal) of what is left.
    order = eliminate([gram], [weight], 4)
    left = [c for c in range(6) if c not in order[:2]]
    for expected in order[2:]:
        inverse = np.linalg.inv(gram[np.ix_(left, left)])
        loss = weight[left] / np.diag(inverse)
        assert left[int(loss.argmin())] == expected
        left.remove(expected)


@pytest.mark.parametrize("importance", ["residual", "effect"])
@pytest.mark.parametrize("form", ["folded", "explicit"])
def test_the_planted_map_is_the_one_dropped(images, importance, form):
    model = _net()
    _plant(model[0], 2, {0: 1.5})
    config = dataclasses.replace(EXACT, fraction=1 / 6, importance=importance, form=form)
    found, report = approximate_maps(model, images, config)
    space = report.spaces["0"]
    assert space.dropped.tolist() in ([0], [2])
    assert space.residual == pytest.approx([0.0], abs=1e-6)
    np.testing.assert_allclose(predict(found, images), predict(model, images), atol=1e-4)


def test_effect_prefers_what_nobody_reads(images):
    model = _net()
    with torch.no_grad():
        model[2].weight[:, 3] = 0.0
    structure = discover(model, SHAPE)
    config = dataclasses.replace(EXACT, fraction=1 / 6, importance="effect")
    assert choose_dropped(model, structure, structure.space_of("0"), images, config) == [3]


@pytest.mark.parametrize("statistic, dropped", [("mean_abs", 5), ("std", 1)])
def test_relevance_drops_the_least_by_its_statistic(images, statistic, dropped):
    """Map 5 is as good as silent; map 1 is the loudest, and always the same."""
    model = _net()
    with torch.no_grad():
        model[0].weight[5] *= 1e-2
        model[0].bias[5] = 0.0
        model[0].weight[1] = 0.0
        model[0].bias[1] = 100.0
    config = dataclasses.replace(EXACT, fraction=1 / 6, importance="relevance", statistic=statistic)
    _, report = approximate_maps(model, images, config)
    assert report.spaces["0"].dropped.tolist() == [dropped]


def test_explicit_and_folded_agree_where_both_are_exact(images):
    model = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 6, 3, bias=False),
            norm=nn.BatchNorm2d(6),
            relu=nn.ReLU(),
            pool=nn.AvgPool2d(2),
            reader=nn.Conv2d(6, 4, 3),
        )
    )
    with torch.no_grad():
        model.norm.bias.fill_(30.0)  # the ReLU never cuts
    found = {}
    for form in ("folded", "explicit"):
        config = dataclasses.replace(EXACT, form=form, rows=10**6)
        found[form], report = _drop(model, images, "conv", [1], config)
        assert found[form].conv.out_channels == found[form].norm.num_features == 5
    # Map 1 is not an exact combination, so the fits differ: before and behind the pool.
    assert (_logits(found["folded"], images) != _logits(found["explicit"], images)).any()
    _plant(model.conv, 1, {4: 3.0})
    for form in ("folded", "explicit"):
        config = dataclasses.replace(EXACT, form=form)
        found[form], report = _drop(model, images, "conv", [1], config)
        assert report.residual == pytest.approx([0.0], abs=1e-9)
        _same(model, found[form], images)


def test_without_an_activation_module_the_step_follows_the_last_norm(images):
    model = _Residual().eval()
    _plant(model.inner, 2, {0: -2.0, 1: 1.0})
    found, _ = _drop(model, images, "inner", [2], dataclasses.replace(EXACT, form="explicit"))
    assert is_approximation(found.inner.approximation) and found.inner.maps.out_channels == 4
    _same(model, found, images)


def test_align_keeps_whole_groups(images):
    model = resnet_cifar(8)
    config = ApproximationConfig(fraction=0.6, retrain="none")
    found, report = approximate_maps(model, images, config)
    kept = {name: len(space.kept) for name, space in report.spaces.items()}
    # 16 channels stay whole; 40 % of 32 and 64 are 13 and 26.
    assert set(kept.values()) == {16, 32} and "conv1" not in kept
    assert found.layer2[0].conv2.weight.shape == (16, 16, 3, 3)
    assert found.layer3[0].conv1.weight.shape == (32, 16, 3, 3)
    assert found.linear.weight.shape == (10, 32)
    unchanged, report = approximate_maps(model, images, dataclasses.replace(config, fraction=0.0))
    assert not report.spaces
    assert np.array_equal(predict(unchanged, images), predict(model, images))


def test_batch_norms_are_estimated_and_fine_tuning_keeps_the_copies(images):
    model = resnet_cifar(8)
    labels = np.arange(16) % 10

    def fine_tune(model: nn.Module) -> nn.Module:
        return train(model, lambda _: (images, labels), TrainConfig(epochs=2))[0]

    config = dataclasses.replace(EXACT, form="explicit", terms=3, retrain="fine_tune", ridge=1e-5)
    found, report = approximate_maps(model, images, config, fine_tune)
    steps = [m for m in found.modules() if is_approximation(m)]
    assert len(steps) == len(report.spaces) == 3  # inside of each block; the others are tied
    for step, space in zip(steps, report.spaces.values(), strict=True):
        assert np.flatnonzero(copies(step)).tolist() == space.kept.tolist()
        assert space.terms.max() <= 3
        assert approximation_macs(step, 1) == space.terms.sum()
    first = found.layer1[0].conv1.weight.detach()
    held = model.layer1[0].conv1.weight.detach()[report.spaces["layer1.0.conv1"].kept]
    assert not torch.equal(first, held)
    estimated, _ = approximate_maps(model, images, dataclasses.replace(EXACT, retrain="none"))
    again, _ = approximate_maps(model, images, dataclasses.replace(EXACT, retrain="reestimate_bn"))
    means = [m.linear.weight.sum() + m.layer3[0].bn2.running_mean.sum() for m in (estimated, again)]
    assert means[0] != means[1]


def test_an_explicit_network_is_stored_as_plain_tensors(images, tmp_path):
    model = resnet_cifar(8)
    config = dataclasses.replace(EXACT, form="explicit", ridge=1e-5)
    found, _ = approximate_maps(model, images, config)
    state = found.state_dict()
    back = load_compressed(insert_approximations(model, state), state).eval()
    assert np.array_equal(predict(back, images), predict(found, images))
    assert sum(is_approximation(m) for m in back.modules()) == 3
    assert macs(back, SHAPE) == macs(found, SHAPE)
    torch.save(state, tmp_path / "compressed.pt")
    source = "from hwgen.models import resnet_cifar\ndef net(): return resnet_cifar(8)\n"
    (tmp_path / "net.py").write_text(source, encoding="utf-8")
    again = load_model(f"{tmp_path}/net.py:net", tmp_path / "compressed.pt")
    assert np.array_equal(predict(again, images), predict(found, images))
    # An approximation reads the maps now: dropping more of them folds into it.
    structure = discover(found, SHAPE)
    names = [space.producers[0] for space in approximable(found, structure, "folded")]
    assert "layer1.0.conv1" in names
    assert not approximable(found, structure, "explicit")
    with pytest.raises(ValueError, match="has no 'nowhere'"):
        insert_approximations(model, ["nowhere.approximation.weight"])


def test_the_machine_runs_an_explicit_network(images):
    """Quantized graph and interpreter give the same codes."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    config = ApproximationConfig(form="explicit", layers=("0",), align=8, terms=2)
    found, report = approximate_maps(model, images, config)
    assert len(report.spaces["0"].kept) == 8
    calibration = normalise(images)
    graph = quantize_model(found, calibration[:1], calibration)
    bundle = program.emit(graph, AcceleratorConfig(tn=8, ti=8, synapse_rows=256, tap_entries=512))
    golden = GoldenRun(bundle)
    for image in calibration[:2]:
        codes = bundle.quantize_input(image.numpy())
        want = evaluate_integer(graph, codes[None])[graph.outputs[0]]
        (got,) = golden.run(codes)
        assert np.array_equal(got.reshape(-1), want.reshape(-1)) and want.std() > 0


def test_errors_say_what_to_try(images):
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\), not 1.0"):
        ApproximationConfig(fraction=1.0)
    with pytest.raises(ValueError, match="terms must be at least 1, or None for all, not 0"):
        ApproximationConfig(terms=0)
    for knob in ("form", "importance", "retrain"):
        with pytest.raises(ValueError, match=f"{knob} must be .*, not 'odd'"):
            ApproximationConfig(**{knob: "odd"})
    with pytest.raises(ValueError, match="ridge must be at least 0"):
        ApproximationConfig(ridge=-1.0)
    with pytest.raises(ValueError, match="align must be at least 1, not 0"):
        ApproximationConfig(align=0)
    model = _Residual()
    with pytest.raises(ValueError, match="fine_tune must be given"):
        approximate_maps(model, images, ApproximationConfig(retrain="fine_tune"))
    explicit = dataclasses.replace(EXACT, form="explicit", layers=("stem",))
    with pytest.raises(ValueError, match="tie .* together; try form='folded'"):
        approximate_maps(model, images, explicit)
    for name, why in (
        ("outer", "first writer, 'stem'"),
        ("left", "the answer's"),
        ("nothing", "not the first writer"),
    ):
        with pytest.raises(ValueError, match=f"not {name!r}: .*{why}"):
            approximate_maps(model, images, dataclasses.replace(EXACT, layers=(name,)))
    structure = discover(model, SHAPE)
    for dropped in ([], [0, 0], [6], [-1], list(range(6))):
        with pytest.raises(ValueError, match="dropped must be different channels below 6"):
            approximate_channels(
                model, structure, structure.space_of("stem"), np.array(dropped), images, EXACT
            )


def test_depthwise_spaces_are_refused_or_left_alone(images):
    model = mobilenet_v1(width=0.25)
    structure = discover(model, SHAPE)
    shared = next(space for space in structure.spaces.values() if space.depthwise)
    assert shared not in approximable(model, structure, "folded")
    with pytest.raises(ValueError, match="depthwise layers .* share it; try trim_by_relevance"):
        approximate_channels(model, structure, shared, np.array([0]), images, EXACT)


def test_a_linear_writer_folds_and_is_refused_explicitly(images):
    model = nn.Sequential(
        nn.Conv2d(3, 4, SIDE), nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)
    )
    _plant(model[2], 5, {1: 0.5})
    found, report = _drop(model, images, "2", [5], dataclasses.replace(EXACT, terms=1))
    assert report.residual == pytest.approx([0.0], abs=1e-9)
    _same(model, found, images)
    with pytest.raises(ValueError, match="of a convolution's maps; try form='folded'"):
        _drop(model, images, "2", [5], dataclasses.replace(EXACT, form="explicit"))
