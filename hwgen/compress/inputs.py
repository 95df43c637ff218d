# SPDX-License-Identifier: Apache-2.0
"""Compression: from pictures to what a network is fed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import CodeType, FunctionType
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from hwgen.datasets.base import check_images
from hwgen.ir import Graph
from hwgen.ir.preprocess import ATTRIBUTE, Preprocess, for_channels, given_preprocess

MEAN = 0.5
STD = 0.25
"""Networks are fed ``(pixel / 255 - MEAN) / STD``, unless :func:`with_preprocess` says else."""

PREPROCESS: Preprocess = ((MEAN,), (STD,))

Network = TypeVar("Network", bound=nn.Module | Graph)


def with_preprocess(
    model: Network, mean: Sequence[float] | float, std: Sequence[float] | float
) -> Network:
    """Return a copy that all of this room feeds ``(pixel / 255 - mean) / std``.

    It stays with the network through every method here, and goes into its quantized graph and its
    bundle; a state dict does not hold it. The network itself computes what it did.

    Parameters
    ----------
    model
        A network that was trained so, as with torchvision's ``Normalize(mean, std)``; or the graph
        of one, such as :func:`hwgen.frontend.from_onnx` reads.
    mean, std
        Of pixels in [0, 1]: one for each channel, or one for all.

    Raises
    ------
    ValueError
        If they are not as many, not finite, or a deviation is not above 0.
    """
    pairs = [
        tuple(float(value) for value in np.atleast_1d(np.asarray(values, np.float64)))
        for values in (mean, std)
    ]
    if (
        len(pairs[0]) != len(pairs[1])
        or not all(math.isfinite(value) for value in (*pairs[0], *pairs[1]))
        or min(pairs[1], default=0.0) <= 0.0
    ):
        raise ValueError(
            f"mean and std must be as many finite numbers, each std above 0, of pixels in [0, 1], "
            f"not {mean!r} and {std!r}; try (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225) for a "
            "network of torchvision's, 0 and 1 where only ToTensor was used"
        )
    given = pairs[0], pairs[1]
    if isinstance(model, Graph):
        return replace(model, preprocess=given)
    model = copy.deepcopy(model)
    setattr(model, ATTRIBUTE, given)
    if isinstance(model, fx.GraphModule):  # whose copies keep no other attributes
        model.meta.setdefault("_user_preserved_attributes", {})[ATTRIBUTE] = given
    return model


def preprocess_of(network: nn.Module | Graph) -> Preprocess:
    """Return the mean and deviation that a network, or the one of a graph, was given."""
    given = network.preprocess if isinstance(network, Graph) else given_preprocess(network)
    return given or PREPROCESS


def normalise(
    images: np.ndarray,
    device: torch.device | str = "cpu",
    preprocess: Preprocess = PREPROCESS,
) -> Tensor:
    """Map (N, H, W, C) uint8 to the (N, C, H, W) float32 that the networks take.

    Pictures that lie side by side in the channels are each treated alike. What is returned is what
    a bundle's own ``preprocess`` gives, to the bit.

    Raises
    ------
    ValueError
        If images are anything else: pixels in [0, 1] would be all but black; or if their channels
        are not those of ``preprocess``.
    """
    check_images(images)
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    x = pixels.permute(0, 3, 1, 2).float()
    mean, std = (
        torch.tensor(values, device=x.device)[:, None, None]
        for values in for_channels(preprocess, x.shape[1])
    )
    return ((x / 255.0 - mean) / std).contiguous()


def layout_of(*networks: nn.Module | Graph | None) -> torch.memory_format:
    """Return how the inputs of networks are best laid out: channels last, if all can take that.

    CPUs convolve that fastest; but a map that lies so cannot be viewed as a vector, as
    ``x.view(x.size(0), -1)`` wants it, and some layers overrun (see :func:`overruns`).
    """
    parts = [p for network in networks if isinstance(network, nn.Module) for p in network.modules()]
    barred = any(
        overruns(getattr(part, "weight", None)) or _views(part.forward, set()) for part in parts
    )
    return torch.contiguous_format if barred else torch.channels_last


def overruns(weight: object) -> bool:
    """Tell whether a weight is that of a 1x1 convolution of fewer than 8 channels.

    With a stride and channels last, its gradient is written past the end of its memory on CPUs that
    have AVX2 and no AVX-512 (oneDNN's issue 6035).
    """
    shape = weight.shape if isinstance(weight, Tensor) else ()
    return len(shape) == 4 and shape[1] < 8 and shape[2:] == (1, 1)


def _views(function: Callable[..., object], seen: set[CodeType]) -> bool:
    """Tell whether a function, or a global one that it names, has the word ``view`` in its code.

    It is read, not run or traced: a forward pass may keep what it sees.
    """
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType) or code in seen:
        return False
    seen.add(code)
    held = getattr(function, "__globals__", {})
    called = (held[name] for name in code.co_names if isinstance(held.get(name), FunctionType))
    return "view" in code.co_names or any(_views(other, seen) for other in called)


def batches(
    network: nn.Module | Graph, images: np.ndarray, batch_size: int = 250
) -> Iterator[Tensor]:
    """Yield (n, H, W, C) uint8 images as a network is fed them, in batches, where it lies.

    Raises
    ------
    ValueError
        If there are none.
    """
    if not len(images):
        raise ValueError("images must be at least 1, not 0")
    device, preprocess, layout = device_of(network), preprocess_of(network), layout_of(network)
    for start in range(0, len(images), batch_size):
        x = normalise(images[start : start + batch_size], device, preprocess)
        yield x.contiguous(memory_format=layout)


def shape_of(images: np.ndarray) -> tuple[int, int, int]:
    """Return (C, H, W) of (N, H, W, C) uint8 images; refuse anything else."""
    check_images(images)
    _, height, width, channels = images.shape
    return channels, height, width


def device_of(network: nn.Module | Graph) -> torch.device:
    """Return where a network's parameters lie; the CPU if it has none or is a graph."""
    held = () if isinstance(network, Graph) else network.parameters()
    return next((parameter.device for parameter in held), torch.device("cpu"))
