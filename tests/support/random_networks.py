# SPDX-License-Identifier: Apache-2.0
"""The tests room: seeded random small networks within the supported set, as torch modules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class RandomNetwork:
    """A module with an example input and calibration images."""

    module: nn.Module
    example: torch.Tensor
    calibration: torch.Tensor
    seed: int


class _Residual(nn.Module):
    """``act(body(x) + x)`` or ``act(x + body(x))``."""

    def __init__(self, body: nn.Module, act: nn.Module, body_first: bool) -> None:
        super().__init__()
        self.body, self.act, self.body_first = body, act, body_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        y = self.body(x)
        return self.act(y + x if self.body_first else x + y)


def random_network(seed: int, max_layers: int = 6) -> RandomNetwork:
    """Draw a network: kernels 1 to 7, strides, paddings, dilations, odd channels, residuals, pools.

    Some filters have their kernels reduced to a smaller centre, per filter or per group of 16.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    channels = int(rng.choice([1, 2, 3, 3, 5, 17]))
    height, width = (int(v) for v in rng.integers(6, 15, 2))
    example = torch.randn(1, channels, height, width)
    layers: list[nn.Module] = []
    shape = (channels, height, width)
    for _ in range(int(rng.integers(1, max_layers + 1))):
        block = _draw_block(rng, shape)
        out = block.eval()(torch.zeros(1, *shape)).shape[1:]
        if min(out[1:]) < 1:
            continue
        layers.append(block)
        shape = tuple(out)
    layers += _draw_head(rng, shape)
    module = nn.Sequential(*layers)
    _randomize(module, rng)
    calibration = torch.randn(8, channels, height, width)
    return RandomNetwork(module.eval(), example, calibration, seed)


def _draw_block(rng: np.random.Generator, shape: tuple[int, int, int]) -> nn.Module:
    kind = rng.choice(["conv", "conv", "conv", "depthwise", "residual", "residual", "max", "avg"])
    if kind in ("max", "avg") and min(shape[1:]) >= 3:
        kernel = int(rng.integers(2, 4))
        pad = int(rng.integers(0, kernel // 2 + 1))
        stride = int(rng.integers(1, 3))
        return (
            nn.MaxPool2d(kernel, stride, pad)
            if kind == "max"
            else nn.AvgPool2d(kernel, stride, pad)
        )
    if kind == "residual":
        inner = int(rng.choice([shape[0], 16, 7, 20]))
        body: list[nn.Module] = [_draw_conv(rng, shape, shape[0], same=True)]
        if rng.random() < 0.7:
            body = [
                _draw_conv(rng, shape, inner, same=True),
                nn.BatchNorm2d(inner),
                nn.ReLU(),
                _draw_conv(rng, (inner, *shape[1:]), shape[0], same=True),
            ]
        if rng.random() < 0.5:
            body.append(nn.BatchNorm2d(shape[0]))
        return _Residual(nn.Sequential(*body), _draw_act(rng), bool(rng.random() < 0.5))
    if kind == "depthwise":
        conv = _draw_conv(rng, shape, shape[0], groups=shape[0])
        return nn.Sequential(conv, nn.BatchNorm2d(shape[0]), _draw_act(rng))
    out = int(rng.choice([3, 8, 16, 16, 20, 32, 33]))
    groups = 1
    if shape[0] % 2 == 0 and out % 2 == 0 and rng.random() < 0.15:
        groups = 2
    conv = _draw_conv(rng, shape, out, groups=groups)
    if rng.random() < 0.5:
        return nn.Sequential(conv, nn.BatchNorm2d(out), _draw_act(rng))
    return nn.Sequential(conv, _draw_act(rng))


def _draw_act(rng: np.random.Generator) -> nn.Module:
    return [nn.ReLU(), nn.ReLU(), nn.ReLU6(), nn.Identity()][int(rng.integers(4))]


def _draw_conv(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    out: int,
    groups: int = 1,
    same: bool = False,
) -> nn.Conv2d:
    kernel, stride, padding, dilation = [], [], [], []
    for size in shape[1:]:
        k = int(rng.choice([1, 2, 3, 3, 3, 5, 7]))
        d = int(rng.choice([1, 1, 1, 2]))
        if same and k % 2 == 0:
            k = 3
        pad = (k - 1) * d // 2 if same else int(rng.integers(0, (k - 1) * d // 2 + 1))
        if size + 2 * pad < (k - 1) * d + 1:
            k, d, pad = 1, 1, 0
        kernel.append(k)
        dilation.append(d)
        padding.append(pad)
        stride.append(1 if same else int(rng.choice([1, 1, 2, 3])))
    return nn.Conv2d(
        shape[0],
        out,
        tuple(kernel),
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        groups=groups,
        bias=bool(rng.random() < 0.5),
    )


def _draw_head(rng: np.random.Generator, shape: tuple[int, int, int]) -> list[nn.Module]:
    classes = int(rng.integers(1, 20))
    choice = rng.choice(["gap", "flatten", "none"])
    if choice == "gap":
        return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], classes)]
    if choice == "flatten" and np.prod(shape) <= 2000:
        return [nn.Flatten(), nn.Linear(int(np.prod(shape)), classes)]
    return [nn.Conv2d(shape[0], classes, 1)]


def _randomize(module: nn.Module, rng: np.random.Generator) -> None:
    """Give BN real statistics, and some convolutions reduced kernels."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            n = layer.num_features
            layer.running_mean = torch.from_numpy(rng.normal(0, 0.3, n).astype(np.float32))
            layer.running_var = torch.from_numpy(rng.uniform(0.3, 2, n).astype(np.float32))
            layer.weight.data = torch.from_numpy(rng.uniform(0.5, 1.5, n).astype(np.float32))
            layer.bias.data = torch.from_numpy(rng.normal(0, 0.3, n).astype(np.float32))
        if isinstance(layer, nn.Conv2d) and rng.random() < 0.5:
            reduce_kernels(layer, rng)


def reduce_kernels(conv: nn.Conv2d, rng: np.random.Generator) -> None:
    """Zero the border of randomly chosen filters: one pixel all round, or a row or a column."""
    kh, kw = conv.kernel_size
    chosen = torch.from_numpy(rng.random(conv.out_channels) < 0.5)
    mask = torch.zeros(kh, kw)
    y, x = min(1, (kh - 1) // 2), min(1, (kw - 1) // 2)
    if rng.random() < 0.3:
        y = 0
    mask[y : kh - y, x : kw - x] = 1
    conv.weight.data[chosen] *= mask
    if conv.groups == 1 and conv.in_channels > 16 and rng.random() < 0.5:
        conv.weight.data[: conv.out_channels // 2, :16] *= mask
