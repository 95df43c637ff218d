# SPDX-License-Identifier: Apache-2.0
"""Tests: the networks, and the converter of CIFAR ResNets."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hwgen import models
from hwgen.compress import macs


@pytest.mark.parametrize(
    ("build", "side", "outputs", "mega_macs"),
    [
        (models.resnet8, 32, 10, 12.50),  # MLPerf Tiny
        (lambda: models.resnet_cifar(20), 32, 10, None),
        (lambda: models.lenet(10, 32), 32, 10, None),
        (models.mobilenet_v1, 96, 2, 7.49),  # MLPerf Tiny
        (models.vgg16_bn, 32, 10, 313.2),
        (models.demo_classifier, 64, 10, 7.78),
        (models.ForegroundPredictor, 32, 4, 0.852),
    ],
)
def test_networks_have_the_published_shape_and_cost(build, side, outputs, mega_macs):
    torch.manual_seed(0)
    model = build().eval()
    assert model(torch.zeros(1, 3, side, side)).shape == (1, outputs)
    if mega_macs is not None:
        assert macs(model, (3, side, side)) / 1e6 == pytest.approx(mega_macs, rel=2e-3)


def _published_state(blocks: int) -> dict[str, torch.Tensor]:
    """Make a state dict as it is published: no shortcut has parameters."""
    torch.manual_seed(1)
    model = models.resnet_cifar(6 * blocks + 2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return {k: v for k, v in model.state_dict().items() if ".shortcut." not in k}


def _published_forward(state: dict[str, torch.Tensor], x: torch.Tensor, blocks: int):
    """Compute what the published network does: shortcuts subsample and pad."""

    def norm(name, value):
        keys = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(value, *(state[f"{name}.{key}"] for key in keys))

    x = functional.relu(norm("bn1", functional.conv2d(x, state["conv1.weight"], padding=1)))
    for stage in (1, 2, 3):
        for i in range(blocks):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = functional.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = functional.relu(norm(f"{name}.bn1", y))
            y = norm(f"{name}.bn2", functional.conv2d(y, state[f"{name}.conv2.weight"], padding=1))
            if stride == 2:
                pad = x.shape[1] // 2
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad))
            x = functional.relu(x + y)
    return functional.linear(x.mean(dim=(2, 3)), state["linear.weight"], state["linear.bias"])


def test_converted_resnet_computes_what_the_published_one_does():
    state = _published_state(2)
    model = models.load_resnet_cifar(state).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), _published_forward(state, x, 2), rtol=1e-4, atol=1e-4)


def test_converter_refuses_other_states():
    with pytest.raises(ValueError, match="state must have the keys layer1.0"):
        models.load_resnet_cifar({"fc.weight": torch.zeros(1)})
    state = _published_state(1)
    del state["layer2.0.bn1.weight"]
    with pytest.raises(ValueError, match="missing .*layer2.0.bn1.weight"):
        models.load_resnet_cifar(state)


def test_depths_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="depth must be 6 n"):
        models.resnet_cifar(21)
