# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: the uncompressed networks that compression is measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from hwgen import models
from hwgen.compress.inputs import MEAN, STD
from hwgen.compress.structure import load_compressed
from hwgen.compress.training import (
    Augment,
    Tick,
    TrainConfig,
    fastest_precision,
    save_atomically,
    train,
)
from hwgen.datasets import Splits

_CIFAR = Augment(flip=True, shift=4)
_SCRATCH = TrainConfig(
    epochs=15, batch_size=128, learning_rate=4e-3, augment=_CIFAR, precision=fastest_precision()
)


@dataclass(frozen=True)
class Baseline:
    """An uncompressed network and how it is trained.

    Attributes
    ----------
    network, data
        Names, as in the table.
    make
        Returns the module, for a number of classes.
    config
        Its training.
    weights
        File in the data folder that it starts from.
    """

    network: str
    data: str
    make: Callable[[int], nn.Module]
    config: TrainConfig
    weights: str | None = None

    @property
    def name(self) -> str:
        """Name of its stage."""
        return f"{self.network} on {self.data}"


def published(state: dict[str, torch.Tensor], num_classes: int = 10) -> nn.Module:
    """Make a CIFAR ResNet of published weights take our normalisation instead of its own.

    It saw (p - mean_c) / std_c of each channel, ours is (p - MEAN) / STD. The first convolution
    takes up the scale and its batch norm the offset; at the border, where zeros are padded, this
    is not the same, which the fine-tuning that follows makes good.
    """
    model = models.load_resnet_cifar(state)
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    weight, norm = model.conv1.weight, model.bn1
    with torch.no_grad():
        offset = (weight * ((MEAN - mean) / std)[None, :, None, None]).sum(dim=(1, 2, 3))
        norm.running_mean.sub_(offset)
        weight.mul_((STD / std)[None, :, None, None])
    if num_classes != model.linear.out_features:
        model.linear = nn.Linear(model.linear.in_features, num_classes)
    return model


_FRAMES = replace(_SCRATCH, epochs=14, batch_size=64, augment=Augment(shift=2))
_TUNE = replace(_SCRATCH, optimizer="sgd", learning_rate=0.02, weight_decay=5e-4)

BASELINES = (
    Baseline("LeNet", "frames", lambda n: models.lenet(n, 64), _FRAMES),
    Baseline("LeNet", "cifar10-jpeg", lambda n: models.lenet(n, 32), _SCRATCH),
    Baseline("ResNet-8", "frames", models.resnet8, _FRAMES),
    Baseline("ResNet-8", "cifar10-jpeg", models.resnet8, _SCRATCH),
    Baseline("demo classifier", "frames", models.demo_classifier, _FRAMES),
    Baseline("demo classifier", "cifar10-jpeg", models.demo_classifier, _SCRATCH),
    Baseline(
        "ResNet-20",
        "cifar10-jpeg",
        lambda n: models.resnet_cifar(20, n),
        replace(_TUNE, epochs=4),
        "resnet20-cifar10-jpeg.pt",
    ),
    Baseline(
        "ResNet-56",
        "cifar10-jpeg",
        lambda n: models.resnet_cifar(56, n),
        replace(_TUNE, epochs=8, learning_rate=0.03),
        "resnet56-cifar10.pt",
    ),
    Baseline(
        "ResNet-20",
        "tiny-imagenet-20",
        lambda n: models.resnet_cifar(20, n),
        replace(
            _TUNE, epochs=30, learning_rate=0.05, batch_size=64, augment=Augment(flip=True, shift=6)
        ),
        "resnet20-cifar10.pt",
    ),
    Baseline(
        "VGG-16-BN",
        "cifar10-jpeg",
        models.vgg16_bn,
        replace(_SCRATCH, epochs=10, optimizer="sgd", learning_rate=0.05, weight_decay=1e-3),
    ),
)


def trained(
    baseline: Baseline,
    splits: Splits,
    data: Path | None,
    folder: Path,
    seed: int = 0,
    progress: Tick | None = None,
) -> nn.Module:
    """Train a baseline, or load it from `folder`, where an interrupted training goes on too."""
    torch.manual_seed(seed)
    model = baseline.make(splits.train.num_classes)
    path = folder / f"{baseline.name.replace(' ', '-')}-{seed}.pt"
    if path.exists():
        return load_compressed(model, torch.load(path, weights_only=True)).eval()
    if baseline.weights is not None:
        if data is None:
            raise FileNotFoundError(f"{baseline.name} starts from {baseline.weights} in --data")
        state = torch.load(data / baseline.weights, weights_only=True)
        model = published(state, splits.train.num_classes)
    model, _ = train(
        model,
        lambda _: (splits.train.images, splits.train.labels),
        replace(baseline.config, seed=seed),
        checkpoint=path.with_suffix(".checkpoint"),
        progress=progress,
        name=baseline.name,
    )
    save_atomically(model.state_dict(), path)
    return model


def find(network: str, data: str) -> Baseline:
    """Return the baseline of a network on a data set."""
    return next(b for b in BASELINES if (b.network, b.data) == (network, data))


def tuning(config: TrainConfig, epochs: int, seed: int) -> TrainConfig:
    """Return a fine-tuning of a small network that was trained by `config`."""
    return replace(
        config,
        epochs=epochs,
        label_smoothing=0.0,
        distill_weight=0.7,
        distill_temperature=3.0,
        seed=seed,
    )
