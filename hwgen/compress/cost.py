# SPDX-License-Identifier: Apache-2.0
"""Compression: what a network costs, in MACs, parameters and steps of the machine.

Every cost has the signature ``cost(model, input_shape) -> float``, so that any of them, and any of
the caller's own, can drive the accuracy budget.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from hwgen.compress.structure import Space, Structure, discover

Cost = Callable[[nn.Module, tuple[int, int, int]], float]


def macs(model: nn.Module, input_shape: tuple[int, int, int]) -> float:
    """Return the multiply-accumulates of one input, counting the kernel positions that are used.

    A filter's position (dy, dx) counts if any of its input channels has a weight other than zero
    there; it then counts for all input channels.
    """
    structure = discover(model, input_shape)
    total = 0
    for layer in structure.layers.values():
        used = _used(model, layer.name)  # (outputs, inputs, positions)
        total += layer.pixels * int(used.any(axis=1).sum()) * used.shape[1]
    return float(total)


def parameters(model: nn.Module, input_shape: tuple[int, int, int]) -> float:
    """Return the weights that must be stored: as :func:`macs`, without the pixels, plus a bias."""
    structure = discover(model, input_shape)
    total = 0
    for layer in structure.layers.values():
        used = _used(model, layer.name)
        total += int(used.any(axis=1).sum()) * used.shape[1] + used.shape[0]
    return float(total)


def tap_steps(
    model: nn.Module, input_shape: tuple[int, int, int], tn: int = 16, ti: int = 16
) -> float:
    """Return the steps of a tn x ti machine that walks lists of taps.

    A convolution takes, for every output pixel and every group of ``tn`` output channels, one step
    for each (dy, dx, tile of ``ti`` input channels) in which any weight of the group is not zero,
    and at least one. Depthwise convolutions and pools take one step a window position and
    group of ``tn`` channels. Channels are grouped as the compiler can: one order a space, shared
    by all layers that are tied by additions, in which channels of equal kernels lie together.
    Start-up, transfers and the folding of a first layer's three channels are not counted.
    """
    structure = discover(model, input_shape)
    order = {
        identifier: kernel_order(model, structure, space)
        for identifier, space in structure.spaces.items()
    }
    total = 0
    for layer in structure.layers.values():
        used = _used(model, layer.name)
        if layer.kind == "depthwise":
            taps = _any_in_groups(used[order[layer.outputs], 0], 0, tn)
        elif layer.kind == "grouped":
            # One group at a time: its filters share their inputs and nothing else.
            groups = _groups(model, layer.name)
            parts = used.reshape(groups, -1, *used.shape[1:])
            taps = np.concatenate(
                [_any_in_groups(_any_in_groups(p, 0, tn), 1, ti).reshape(-1) for p in parts]
            )
            total += layer.pixels * int(taps.sum())
            continue
        else:
            inputs = order[layer.inputs]
            if layer.repeat > 1:
                # Behind a flatten the inputs are channel-major: the tile is of channels, and each
                # of the positions they stood at is a tap.
                used = used.reshape(len(used), -1, layer.repeat)
            taps = used[order[layer.outputs]][:, inputs]
            taps = _any_in_groups(_any_in_groups(taps, 0, tn), 1, ti)
        steps = taps.reshape(len(taps), -1).sum(axis=1)
        total += layer.pixels * int(np.maximum(steps, 1).sum())
    for pool in structure.pools:
        total += pool.pixels * pool.window * -(-pool.channels // tn)
    return float(total)


def kernel_order(model: nn.Module, structure: Structure, space: Space) -> np.ndarray:
    """Return a space's channels sorted so that those of equal kernels in all writers lie together.

    Smallest kernels first; channels of equal kernels keep their order.
    """
    keys = [supports(model, name) for name in space.producers + space.depthwise]
    if not keys or space.channels != len(keys[0]):
        return np.arange(space.channels)
    return np.lexsort([kernel.sum(axis=1) for kernel in keys][::-1])


def channel_units(
    model: nn.Module, space: Space, importance: np.ndarray, align: int
) -> list[np.ndarray]:
    """Return a space's channels in runs of ``align`` that the machine can compute together.

    Channels of equal kernels in all writers lie together, and among them those of equal
    importance; ``align=1`` gives single channels. The least important run comes first.
    """
    keys = [supports(model, name).sum(axis=1) for name in space.producers + space.depthwise]
    order = np.lexsort([importance, *keys[::-1]]) if align > 1 else np.arange(len(importance))
    units = [order[i : i + align] for i in range(0, len(order), align)]
    return sorted(units, key=lambda unit: float(importance[unit].mean()))


def supports(model: nn.Module, name: str) -> np.ndarray:
    """Return which positions each filter of a layer uses: (outputs, positions) bool."""
    return _used(model, name).any(axis=1)


def _groups(model: nn.Module, name: str) -> int:
    """Return a convolution's groups."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module.groups


def _used(model: nn.Module, name: str) -> np.ndarray:
    """Return where a layer's weights are not zero: (outputs, inputs, positions) bool."""
    weight = model.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return (weight.detach() != 0).reshape(weight.shape[0], weight.shape[1], -1).numpy()


def _any_in_groups(used: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Or together runs of ``size`` along an axis; the last run may be short."""
    starts = np.arange(0, used.shape[axis], size)
    return np.logical_or.reduceat(used, starts, axis=axis)
