# SPDX-License-Identifier: Apache-2.0
"""Tests: every method works where the model lies. They need a GPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from hwgen.compress import (
    ApproximationConfig,
    BudgetConfig,
    KernelConfig,
    RelevanceConfig,
    ShrinkConfig,
    SliceConfig,
    approximate_maps,
    compress_to_budget,
    grad_cam,
    lower_kernels,
    lower_slices,
    macs,
    shrink,
    trim_by_relevance,
)
from hwgen.compress.inputs import device_of
from hwgen.compress.training import predict
from hwgen.models import resnet_cifar

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3)).astype(np.uint8)
EXPLICIT = ApproximationConfig(form="explicit", align=1)
METHODS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "trim": lambda m: trim_by_relevance(m, IMAGES, RelevanceConfig())[0],
    "crop": lambda m: lower_kernels(m, IMAGES, KernelConfig(weights="centre_crop"))[0],
    "energy": lambda m: lower_kernels(m, IMAGES, KernelConfig(importance="energy"))[0],
    "residual": lambda m: lower_kernels(m, IMAGES, KernelConfig(importance="residual"))[0],
    "folded": lambda m: approximate_maps(m, IMAGES, ApproximationConfig(align=1))[0],
    "explicit": lambda m: approximate_maps(m, IMAGES, EXPLICIT)[0],
    "slices": lambda m: lower_slices(m, IMAGES, SliceConfig(weights="least_squares"))[0],
    "shrink": lambda m: shrink(m, IMAGES, lambda *_: 0.5, ShrinkConfig()).model,
    "budget": lambda m: compress_to_budget(
        m, IMAGES, lambda _: 0.5, BudgetConfig(methods=("trim", "lower", "approximate"))
    )[0],
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_gives_the_same_network_on_the_gpu(method):
    torch.manual_seed(0)
    model = resnet_cifar(8).eval()
    expected = METHODS[method](model)
    found = METHODS[method](model.cuda())
    assert device_of(found).type == "cuda"
    assert macs(found, (3, 32, 32)) == macs(expected, (3, 32, 32))
    np.testing.assert_allclose(predict(found, IMAGES), predict(expected, IMAGES), atol=1e-2)


def test_grad_cam_on_the_gpu():
    torch.manual_seed(0)
    model, labels = resnet_cifar(8).eval(), np.zeros(len(IMAGES), np.int64)
    expected = grad_cam(model, IMAGES, labels)
    np.testing.assert_allclose(grad_cam(model.cuda(), IMAGES, labels), expected, atol=1e-3)
