# SPDX-License-Identifier: Apache-2.0
"""The tests room: the demo's networks, whole, on the whole machine under cocotb."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hwgen.arch import AcceleratorConfig, GoldenRun
from hwgen.backends import program
from hwgen.models import ForegroundPredictor, demo_classifier
from hwgen.quantize import quantize_model
from sim import run_bundle_in_cocotb


@pytest.mark.slow
@pytest.mark.parametrize("network", [ForegroundPredictor, demo_classifier])
def test_demo_network(network: type[nn.Module], tmp_path: Path, seed: int) -> None:
    """The default 16 x 16 machine, random stalls on every AXI channel: the golden model's codes."""
    torch.manual_seed(seed)
    model = network().eval()
    images = torch.randn(8, 3, 32, 32)
    graph = quantize_model(model, images[:1], images)
    bundle = program.emit(graph, AcceleratorConfig())
    golden = GoldenRun(bundle)
    result = run_bundle_in_cocotb(bundle, images[:2].numpy(), build_dir=tmp_path, seed=seed % 1000)
    for image, outputs in zip(images[:2], result.outputs, strict=True):
        wanted = golden.run(bundle.quantize_input(image.numpy()))
        for got, want in zip(outputs, wanted, strict=True):
            assert np.array_equal(got, want)
