# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: the networks of the accelerator benchmark, quantized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwgen import models
from hwgen.ir.graph import Graph
from hwgen.quantize import quantize_model

CALIBRATION_IMAGES = 8


@dataclass(frozen=True)
class Network:
    """A network of the benchmark.

    Attributes
    ----------
    name, side, batch
        As in the table; the input is 3 x side x side.
    make
        Returns the module, freshly initialised.
    weights
        File of trained weights in the data folder, if there is one.
    bar
        What the benchmark asks of it: most ``cycles``, or most ``over`` its bound.
    """

    name: str
    side: int
    make: Callable[[], nn.Module]
    batch: int = 1
    weights: str | None = None
    bar: tuple[str, float] | None = None
    note: str = ""


def lower_kernels_to_half(model: nn.Module) -> nn.Module:
    """Take half of a CIFAR ResNet's MACs by lower kernels (OJCAS 2023), whole groups of filters.

    The groups of 16 filters with the smallest mean weight go first: 3x3 to 1x1, and 3x3 to 1x3
    where one tile of input channels is all there is, because NFU-3 takes two cycles for the two
    pixels of a step. Weights outside of the smaller kernel become zero, which is all that the
    compiler needs.
    """
    groups: list[tuple[float, int, nn.Conv2d, int]] = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.in_channels > 3:
            for first in range(0, layer.out_channels, 16):
                part = layer.weight.data[first : first + 16]
                groups.append((float(part.abs().mean()), len(groups), layer, first))
    sides = _output_sides(model)
    total = sum(
        layer.weight[0].numel() * layer.out_channels * sides[layer] ** 2
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    )
    removed = 0
    for _, _, layer, first in sorted(groups, key=lambda group: group[:2]):
        if removed >= total / 2:
            break
        mask = torch.zeros(3, 3)
        if layer.in_channels > 16:
            mask[1, 1] = 1
        else:
            mask[1] = 1
        layer.weight.data[first : first + 16] *= mask
        taken = 16 * layer.in_channels * int((mask == 0).sum())
        removed += taken * sides[layer] ** 2
    return model


def _output_sides(model: nn.Module) -> dict[nn.Module, int]:
    """Height of each convolution's output for a 32 x 32 picture."""
    sides: dict[nn.Module, int] = {}
    hooks = [
        layer.register_forward_hook(lambda m, _, y: sides.__setitem__(m, y.shape[2]))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return sides


NETWORKS = (
    Network("ResNet-8", 32, models.resnet8, bar=("cycles", 27_000)),
    Network(
        "ResNet-20",
        32,
        lambda: models.resnet_cifar(20),
        weights="resnet20-cifar10.pt",
        bar=("cycles", 88_000),
    ),
    Network(
        "ResNet-56",
        32,
        lambda: models.resnet_cifar(56),
        weights="resnet56-cifar10.pt",
        bar=("cycles", 275_000),
    ),
    Network("VGG-16-BN", 32, models.vgg16_bn, bar=("over", 1.08)),
    Network("VGG-16-BN", 32, models.vgg16_bn, batch=8, bar=("over", 1.08)),
    Network("MobileNetV1 0.25", 96, models.mobilenet_v1),
    Network("ResNet-18", 224, models.resnet18, bar=("over", 1.10)),
    Network("ResNet-18", 224, models.resnet18, batch=2, bar=("over", 1.10)),
    Network(
        "ResNet-20, half of its MACs removed by lower kernels",
        32,
        lambda: lower_kernels_to_half(models.resnet_cifar(20)),
        weights="resnet20-cifar10.pt",
    ),
)


def quantized(network: Network, seed: int, data: Path | None) -> tuple[Graph, str]:
    """Make, load and quantize a network; return it with a word on its weights.

    Weights come from `data` where the network names a file that is there, else from `seed`. Cycles
    do not depend on them, except where they are zero.
    """
    torch.manual_seed(seed)
    model, source = network.make(), f"random, seed {seed}"
    file = None if data is None or network.weights is None else data / network.weights
    if file is not None and file.is_file():
        model = models.load_resnet_cifar(torch.load(file, weights_only=True))
        source = file.name
        if "lower kernels" in network.name:
            model = lower_kernels_to_half(model)
    images = torch.from_numpy(pictures(network.side, CALIBRATION_IMAGES, seed))
    graph = quantize_model(model.eval(), images[:1], images, observer="minmax")
    return graph, source


def pictures(side: int, count: int, seed: int) -> NDArray[np.float32]:
    """Return `count` random pictures, float32 (count, 3, side, side), normalised."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 3, side, side)).astype(np.float32)
