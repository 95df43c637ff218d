# SPDX-License-Identifier: Apache-2.0
"""Room tests: training through the integers, which are those of the reference at every step."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwgen.arch import AcceleratorConfig
from hwgen.arch.interpreter import GoldenRun
from hwgen.backends import program
from hwgen.compress import TrainConfig, accuracy, normalise, train
from hwgen.compress.training import MASK
from hwgen.frontend import from_torch
from hwgen.ir import Graph, IRError, MaxPool, QConv, QuantParams, evaluate, run_quantized
from hwgen.models import resnet8
from hwgen.passes.pipeline import to_fused
from hwgen.quantize import (
    FINE_TUNING,
    IntegerNetwork,
    Percentile,
    QuantizationError,
    fine_tune_quantized,
    quantize_model,
)
from hwgen.quantize.aware import EXACT_FLOAT32, convolve_exactly
from hwgen.quantize.post_training import prepare
from tests.support.random_networks import random_network

SCHEMES = ("affine", "power_of_two")


class EveryOperation(nn.Module):
    """Residuals on a convolution and alone, pools, depthwise, groups, ReLU6, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.g, self.l = nn.Conv2d(8, 8, 1, groups=2), nn.Linear(8, 3)
        self.max, self.mean = nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.max(torch.relu(self.n(self.a(x))))
        y = torch.relu(self.b(y) + y)
        y = functional.relu6(self.c(y)) + self.mean(y)
        return self.l(torch.relu(self.g(y)).mean((2, 3)))


NETWORKS = {
    "every operation": EveryOperation,
    "sums beyond float32": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2304, 5)
    ),
    "padded average pools": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.AvgPool2d(4, 2, 2), nn.Conv2d(8, 4, 1), nn.AvgPool2d(3)
    ),
    "strides and dilation": lambda: nn.Sequential(
        nn.Conv2d(3, 8, (3, 2), (2, 1), (1, 0), (1, 2)), nn.ReLU6(), nn.Conv2d(8, 4, 2)
    ),
    "ReLU of the input": lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 1)),
}


def integers(
    module: nn.Module, images: Tensor, scheme: str, observer: str = "mse"
) -> IntegerNetwork:
    fused = to_fused(from_torch(module.eval(), images[:1]))
    graph, codes, _ = prepare(fused, images, scheme, observer, False)  # type: ignore[arg-type]
    return IntegerNetwork(graph, codes, scheme)  # type: ignore[arg-type]


def assert_same_integers(a: Graph, b: Graph) -> None:
    assert [node.name for node in a.nodes] == [node.name for node in b.nodes]
    for left, right in zip(a.nodes, b.nodes, strict=True):
        assert left.type == right.type
        if isinstance(left, QConv) and isinstance(right, QConv):
            np.testing.assert_array_equal(left.weight, right.weight)
            np.testing.assert_array_equal(left.bias, right.bias)
            for name in ("multiplier", "shift", "residual_multiplier", "lo", "hi"):
                np.testing.assert_array_equal(
                    getattr(left.requantization, name), getattr(right.requantization, name)
                )


def colours(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes by the brightest colour, which is brighter by a little only."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 128, (count, 8, 8, 3))
    images[np.arange(count), :, :, labels] += 16
    return images.astype(np.uint8), labels


DATA, HELD_OUT = colours(384, 1), colours(300, 2)


def samples(_: int) -> tuple[np.ndarray, np.ndarray]:
    return DATA


def judge(network: nn.Module) -> float:
    return accuracy(network, *HELD_OUT)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """Return a float network that tells the colours apart."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)),
    )
    found, _ = train(model, samples, TrainConfig(epochs=8, batch_size=32, learning_rate=1e-2))
    assert judge(found) > 0.95
    return found


def crude() -> dict[str, Any]:
    """Return how to calibrate badly: by pale pictures, and to codes that clip half of those."""
    pale = 0.7 * normalise(DATA[0][:64]).contiguous()
    return {"calibration": pale, "observer": Percentile(55)}


# The integers


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_forward_pass_is_the_integer_reference(name: str, scheme: str, seed: int) -> None:
    """As calibrated, and with weights anywhere else; in both modes and any memory format."""
    torch.manual_seed(seed)
    x = torch.randn(16, 3, 12, 12)
    network = integers(NETWORKS[name](), x, scheme)
    for moved in (0.0, 0.1, 0.5):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += moved * torch.randn_like(parameter)
        wanted = run_quantized(network.quantized(), 2 * x.numpy())
        for images in (2 * x, 2 * x.contiguous(memory_format=torch.channels_last)):
            for mode in (True, False):
                found = network.train(mode)(images).detach().numpy()
                assert found.dtype == np.float32
                np.testing.assert_array_equal(found, wanted)
        assert moved or wanted.std() > 0


@pytest.mark.parametrize("number", range(8))
def test_random_networks_run_their_integers(number: int, seed: int) -> None:
    network = random_network(seed + number)
    for scheme in SCHEMES:
        found = integers(network.module, network.calibration, scheme)
        wanted = run_quantized(found.quantized(), network.calibration.numpy())
        np.testing.assert_array_equal(found(network.calibration).detach().numpy(), wanted)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_starts_as_post_training_quantization(scheme: str, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(16, 3, 12, 12)
    module = EveryOperation()
    wanted = quantize_model(module, x[:1], x, scheme=scheme)  # type: ignore[arg-type]
    assert_same_integers(integers(module, x, scheme).quantized(), wanted)


@pytest.mark.parametrize("groups", [1, 2])
def test_large_sums_are_exact(groups: int, rng: np.random.Generator) -> None:
    sign = rng.choice([-1, 1], (1, 1200, 1, 1))
    x = sign * rng.integers(128, 256, (2, 1200, 3, 3))
    weight = sign[:, : 1200 // groups] * rng.integers(64, 128, (4, 1200 // groups, 2, 2))

    def convolve(function: Any, dtype: torch.dtype) -> np.ndarray:
        options = {"groups": groups, "stride": 1, "dilation": 1}
        tensors = (torch.tensor(a, dtype=dtype) for a in (x, weight))
        return function(*tensors, **options).numpy()

    found = convolve(lambda a, b, **how: convolve_exactly(a, b, 255, **how), torch.float32)
    np.testing.assert_array_equal(found, convolve(functional.conv2d, torch.float64))
    assert np.abs(found).max() > EXACT_FLOAT32  # float32 could not have held it


def test_other_codes_than_the_calibrated_ones(seed: int) -> None:
    """Zero points at both ends, and scales that clip most of what they see."""
    torch.manual_seed(seed)
    x = torch.randn(8, 3, 12, 12)
    calibrated = integers(EveryOperation(), x, "affine")
    rng = np.random.default_rng(seed)
    codes: dict[str, QuantParams] = {}
    for node in calibrated.graph.nodes:
        scale = calibrated.codes[node.name].scale * float(rng.uniform(0.1, 4))
        drawn = QuantParams(scale, int(rng.choice([-128, -127, -3, 0, 126, 127])))
        codes[node.name] = codes[node.inputs[0]] if isinstance(node, MaxPool) else drawn
    network = IntegerNetwork(calibrated.graph, codes, "affine")
    wanted = run_quantized(network.quantized(), x.numpy())
    np.testing.assert_array_equal(network(x).detach().numpy(), wanted)


# The gradients


@pytest.mark.parametrize("scheme, least", [("affine", 0.9), ("power_of_two", 0.8)])
def test_gradients_are_those_of_the_real_network(scheme: str, least: float, seed: int) -> None:
    """Every parameter has one, and it points where the float network's points."""
    torch.manual_seed(seed)
    x, wanted = torch.randn(64, 3, 12, 12), torch.randn(64, 3)
    module = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 6, 1, groups=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )
    network = integers(module, x, scheme, observer="minmax")
    functional.mse_loss(network(x), wanted).backward()
    functional.mse_loss(module(x), wanted).backward()
    layers = [layer for layer in module if hasattr(layer, "weight")]
    for ours, layer in zip(network.layers, layers, strict=True):
        for name in ("weight", "bias"):
            found = getattr(ours, name).grad / getattr(ours, f"{name}_unit")
            assert torch.isfinite(found).all() and found.abs().max() > 0
            real = getattr(layer, name).grad
            cosine = functional.cosine_similarity(found.flatten(), real.flatten(), dim=0)
            assert cosine > least, (name, layer)
            # In powers of two the pool divides by 32 in place of 25, the weights behind it grow.
            assert 0.6 < found.norm() / real.norm() < 1.6, (name, layer)


def test_nothing_flows_through_a_clamp() -> None:
    """A channel whose every result lies outside of its code has no gradient."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    module[0].bias.data = torch.tensor([-50.0, 0.5])  # type: ignore[union-attr,assignment]
    x = torch.randn(8, 3, 6, 6)
    network = integers(module, x, "affine")
    network(x).sum().backward()
    grad = network.layers[0].weight.grad
    assert isinstance(grad, Tensor)
    assert not grad[0].any() and grad[1].any()


# Fine-tuning


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_badly_quantized_network_gains(trained: nn.Module, scheme: str) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    ticks: list[tuple[str, int, int]] = []
    graph, report = fine_tune_quantized(
        trained,
        samples,
        replace(FINE_TUNING, epochs=3, batch_size=32, learning_rate=3e-3),
        scheme=scheme,  # type: ignore[arg-type]
        validate=judge,
        progress=lambda *tick: ticks.append(tick),
        **crude(),
    )
    assert len(report.accuracies) == 4 and len(report.losses) == 3
    assert report.accuracies[0] < judge(trained) - 0.2  # calibrated badly
    assert max(report.accuracies) > report.accuracies[0] + 0.2
    assert report.accuracies[report.best_epoch] == max(report.accuracies)
    logits = run_quantized(graph, normalise(HELD_OUT[0]).numpy())
    assert (logits.argmax(axis=1) == HELD_OUT[1]).mean() == max(report.accuracies)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert ticks[-1] == ("quantization-aware", 36, 36) and report.seconds > 0


def test_it_never_ends_worse_than_it_began(trained: nn.Module) -> None:
    """A learning rate that destroys the network leaves post-training quantization."""
    images = normalise(DATA[0][:64]).contiguous()
    graph, report = fine_tune_quantized(
        trained,
        samples,
        TrainConfig(epochs=2, learning_rate=3.0, weight_decay=0.0),
        calibration=images,
        validate=judge,
    )
    assert report.best_epoch == 0 and max(report.accuracies[1:]) < report.accuracies[0]
    assert_same_integers(graph, quantize_model(trained, images[:1], images))


def test_of_equal_epochs_the_last_is_kept_and_without_validation_too(trained: nn.Module) -> None:
    config = replace(FINE_TUNING, epochs=1)
    graph, report = fine_tune_quantized(trained, samples, config, validate=lambda _: 1.0)
    assert report.best_epoch == 1 and report.accuracies == [1.0, 1.0]
    last, unjudged = fine_tune_quantized(trained, samples, config)
    assert unjudged.best_epoch == 1 and unjudged.accuracies == []
    assert_same_integers(graph, last)


def test_zeros_of_reduced_kernels_stay(trained: nn.Module) -> None:
    model = copy.deepcopy(trained)
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            mask = torch.zeros_like(layer.weight)
            mask[:, :, 1] = 1
            mask[: len(mask) // 2] = 1  # the other half becomes 1x3
            layer.weight.data *= mask
            layer.register_buffer(MASK, mask)
    config = replace(FINE_TUNING, epochs=1, learning_rate=1e-2)
    graph, _ = fine_tune_quantized(model, samples, config)
    plain = quantize_model(model, normalise(DATA[0][:1]), normalise(DATA[0]))
    masks = [layer.weight_mask.bool().numpy() for layer in model if isinstance(layer, nn.Conv2d)]
    convolutions = [node for node in graph.nodes if isinstance(node, QConv)]
    for node, mask in zip(convolutions, masks, strict=False):
        assert not node.weight[~mask.transpose(0, 2, 3, 1)].any()
        old = plain[node.name]
        assert isinstance(old, QConv) and (node.weight != old.weight).any()


def test_a_teacher_is_followed_where_labels_are_wrong(trained: nn.Module) -> None:
    """The float network itself is the teacher."""
    graph, _ = fine_tune_quantized(
        trained,
        lambda _: (DATA[0], np.zeros_like(DATA[1])),
        replace(FINE_TUNING, epochs=3, batch_size=32, distill_weight=1.0, learning_rate=3e-3),
        **crude(),
    )
    logits = run_quantized(graph, normalise(HELD_OUT[0]).numpy())
    assert (logits.argmax(axis=1) == HELD_OUT[1]).mean() > 0.8


def test_regression_has_no_teacher() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4))
    boxes = np.random.default_rng(0).random((384, 4)).astype(np.float32)
    config = replace(FINE_TUNING, epochs=3, loss="smooth_l1", learning_rate=1e-2)
    _, report = fine_tune_quantized(model, lambda _: (DATA[0], boxes), config)
    assert report.losses[-1] < report.losses[0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_interrupted_run_ends_in_the_same_integers(
    trained: nn.Module, scheme: str, tmp_path: Any
) -> None:
    options: dict[str, Any] = {**crude(), "scheme": scheme, "validate": judge}
    config = replace(FINE_TUNING, epochs=3)
    whole, report = fine_tune_quantized(trained, samples, config, **options)

    def interrupted(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch == 2:
            raise KeyboardInterrupt
        return DATA

    path = tmp_path / "aware.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        fine_tune_quantized(trained, interrupted, config, checkpoint=path, **options)
    epochs: list[int] = []

    def rest(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        epochs.append(epoch)
        return DATA

    resumed, again = fine_tune_quantized(trained, rest, config, checkpoint=path, **options)
    assert epochs == [0, 2]  # the first is compared
    assert (again.accuracies, again.losses) == (report.accuracies, report.losses)
    assert again.best_epoch == report.best_epoch
    assert_same_integers(resumed, whole)
    other = SCHEMES[1 - SCHEMES.index(scheme)]
    with pytest.raises(ValueError, match=f"must be of this network in the scheme '{other}'"):
        fine_tune_quantized(trained, rest, config, checkpoint=path, **{**options, "scheme": other})
    with pytest.raises(ValueError, match="must belong to this training"):
        fine_tune_quantized(trained, rest, FINE_TUNING, checkpoint=path, **options)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_machine_runs_what_was_trained(scheme: str, seed: int) -> None:
    torch.manual_seed(seed)
    graph, _ = fine_tune_quantized(
        resnet8(3, width=4),
        lambda _: (DATA[0][:64], DATA[1][:64]),
        replace(FINE_TUNING, epochs=1),
        scheme=scheme,  # type: ignore[arg-type]
    )
    bundle = program.emit(graph, AcceleratorConfig(tn=4, ti=8))
    golden = GoldenRun(bundle)
    images = normalise(HELD_OUT[0][:3]).contiguous().numpy()
    wanted = run_quantized(graph, images)
    for image, row in zip(images, wanted, strict=True):
        (codes,) = golden.run(bundle.quantize_input(image))
        np.testing.assert_array_equal(bundle.dequantize_output(0, codes).reshape(-1), row)
    assert wanted.std() > 0


# Refusals


def test_refusals(trained: nn.Module) -> None:
    x = normalise(DATA[0][:8]).contiguous()
    unfused = from_torch(trained, x[:1])
    with pytest.raises(IRError, match="must be at the fused level with one input, not float"):
        IntegerNetwork(unfused, {}, "affine")
    with pytest.raises(ValueError, match="validate must return a number, not nan, in epoch 0"):
        fine_tune_quantized(trained, samples, validate=lambda _: float("nan"))
    with pytest.raises(ValueError, match="scheme must be 'affine' or 'power_of_two', not 'int4'"):
        fine_tune_quantized(trained, samples, scheme="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="calibration must hold 4 images or more, not 3"):
        fine_tune_quantized(trained, samples, calibration=x[:3])
    broken = copy.deepcopy(trained)
    broken[0].weight.data.fill_(1e30)  # type: ignore[union-attr,operator]
    with pytest.raises(QuantizationError, match="cannot be brought to int8"):
        fine_tune_quantized(broken, samples)


def test_integers_that_differ_are_never_handed_out(
    trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device whose convolutions round."""
    exact = IntegerNetwork.forward
    monkeypatch.setattr(IntegerNetwork, "forward", lambda self, x: exact(self, x) * 1.001)
    with pytest.raises(RuntimeError, match="must give the integers of its graph, but 24 of 24"):
        fine_tune_quantized(trained, samples, replace(FINE_TUNING, epochs=1))


def test_quantization_alone_loads_no_training() -> None:
    code = "import sys, hwgen.quantize; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'fine_tune'"):
        import hwgen.quantize

        hwgen.quantize.fine_tune  # type: ignore[attr-defined]  # noqa: B018


def test_the_reference_of_these_tests_is_near_the_float_network(trained: nn.Module) -> None:
    """Equal integers would be worth little if they were far from what was trained."""
    x = normalise(DATA[0][:64]).contiguous()
    fused = to_fused(from_torch(trained, x[:1]))
    real = evaluate(fused, x.numpy())[fused.outputs[0]][:, :, 0, 0]
    found = integers(trained, x, "affine")(x).detach().numpy()
    assert np.abs(found - real).max() < 0.1 * np.abs(real).max()
