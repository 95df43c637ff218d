# SPDX-License-Identifier: Apache-2.0
"""Compression: what a network costs, in MACs, parameters and steps of the machine.

Every cost has the signature ``cost(model, input_shape) -> float``, so that any of them, and any of
the caller's own, can drive the accuracy budget.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hwgen.arch.config import AcceleratorConfig
from hwgen.compress.inputs import preprocess_of
from hwgen.compress.linear_approximation import approximation_macs, is_approximation
from hwgen.compress.structure import Layer, Space, Structure, discover

Cost = Callable[[nn.Module, tuple[int, int, int]], float]

TILE = 16
"""Input channels by which a kernel may differ: the words of the machine's scratchpad."""


def macs(model: nn.Module, input_shape: tuple[int, int, int]) -> float:
    """Return the multiply-accumulates of one input, counting the kernel positions that are used.

    A filter's position (dy, dx) counts for a tile of :data:`TILE` input channels, all of them, if
    any of them has a weight other than zero there. Copies in an explicit linear approximation are
    no multiplications.
    """
    return float(sum(layer_macs(model, input_shape).values()))


def layer_macs(model: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, int]:
    """Return :func:`macs` by layer, in the order they run."""
    structure = discover(model, input_shape)
    order = kernel_orders(model, structure)
    return {
        name: layer.pixels * _weights(model, structure, order, layer)
        for name, layer in structure.layers.items()
    }


def parameters(model: nn.Module, input_shape: tuple[int, int, int]) -> float:
    """Return the weights that must be stored: as :func:`macs`, without the pixels, plus a bias."""
    structure = discover(model, input_shape)
    order = kernel_orders(model, structure)
    total = 0
    for layer in structure.layers.values():
        total += _weights(model, structure, order, layer) + len(used_weights(model, layer.name))
    return float(total)


def _weights(
    model: nn.Module, structure: Structure, order: Mapping[int, np.ndarray], layer: Layer
) -> int:
    """Return the weights of a layer that are multiplied, for one output pixel."""
    module = model.get_submodule(layer.name)
    if is_approximation(module):
        return approximation_macs(module, 1)
    used = used_weights(model, layer.name)
    if layer.kind in ("depthwise", "grouped"):
        return int(used.any(axis=1).sum()) * used.shape[1]
    used = _in_order(used, order[layer.inputs], layer.repeat)
    inputs = used.shape[1]
    sizes = np.full(-(-inputs // TILE), TILE)
    sizes[-1] = inputs - TILE * (len(sizes) - 1)
    return int((_any_in_groups(used, 1, TILE) * sizes[:, None]).sum())


def tap_steps(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    tn: int = 16,
    ti: int = 16,
    tp: int = 1,
    fold: bool = False,
) -> float:
    """Return the steps of a tn x ti x tp machine that walks lists of taps.

    A convolution takes, for every ``tp`` neighbours of an output row and every group of ``tn``
    output channels, one step for each (dy, dx, tile of ``ti`` input channels) in which any weight
    of the group is not zero, and at least ``tp``, which is what NFU-3 takes. Depthwise convolutions
    and pools take one step a window position and group of ``tn`` channels. Channels are grouped as
    the compiler does: one order a space, shared by all layers that are tied by additions, in which
    channels of equal kernels lie together. Start-up and transfers are not counted; with ``fold`` a
    first layer's neighbours share a word, as in the machine.
    """
    structure = discover(model, input_shape)
    order = kernel_orders(model, structure, ti)
    total: float = 0.0
    for layer in structure.layers.values():
        steps = _group_steps(model, structure, order, layer, tn, ti, fold)
        total += _row_groups(layer.output_shape, tp) * int(np.maximum(steps, tp).sum())
    for pool in structure.pools:
        groups = -(-pool.channels // tn)
        total += _row_groups(pool.output_shape, tp) * groups * max(pool.window, tp)
    return total


def _row_groups(shape: tuple[int, ...], tp: int) -> int:
    """Return how often ``tp`` neighbours of a row are computed; 1 for a vector."""
    return shape[1] * -(-shape[2] // tp) if len(shape) == 3 else 1


def _group_steps(
    model: nn.Module,
    structure: Structure,
    order: Mapping[int, np.ndarray],
    layer: Layer,
    tn: int,
    ti: int,
    fold: bool,
) -> np.ndarray:
    """Return the taps that each group of a layer walks, (groups,)."""
    taps = used_taps(model, structure, order, layer, tn, ti)
    dense = layer.kind not in ("depthwise", "grouped")
    if fold and dense and not structure.spaces[layer.inputs].producers:
        module = model.get_submodule(layer.name)
        if isinstance(module, nn.Conv2d) and ti // module.in_channels > 1:
            columns = taps.reshape(*taps.shape[:2], *module.kernel_size)
            neighbours = min(ti // module.in_channels, module.kernel_size[1])
            taps = _any_in_groups(columns, 3, neighbours)
    return taps.reshape(len(taps), -1).sum(axis=1)


def used_taps(
    model: nn.Module,
    structure: Structure,
    order: Mapping[int, np.ndarray],
    layer: Layer,
    tn: int = 16,
    ti: int = 16,
) -> np.ndarray:
    """Return which taps a layer has: (groups of tn outputs, tiles of ti inputs, positions) bool.

    Channels lie in the ``order`` that :func:`kernel_orders` returns. A depthwise layer has one
    tile; the groups of a grouped one follow one another. Positions of a linear layer behind a
    flatten are those that each input channel stood at.
    """
    used = used_weights(model, layer.name)
    if layer.kind == "depthwise":
        return _any_in_groups(used[order[layer.outputs]], 0, tn)
    if layer.kind == "grouped":
        # One group at a time: its filters share their inputs and nothing else.
        parts = used.reshape(_groups(model, layer.name), -1, *used.shape[1:])
        return np.concatenate([_any_in_groups(_any_in_groups(p, 0, tn), 1, ti) for p in parts])
    taps = _in_order(used, order[layer.inputs], layer.repeat)[order[layer.outputs]]
    return _any_in_groups(_any_in_groups(taps, 0, tn), 1, ti)


def _in_order(used: np.ndarray, order: np.ndarray, repeat: int) -> np.ndarray:
    """Sort a layer's inputs: (outputs, inputs, positions).

    Behind a flatten the inputs are channel-major: the tile is of channels, and each of the
    positions they stood at is a tap.
    """
    if repeat > 1:
        used = used.reshape(len(used), -1, repeat)
    return used[:, order]


def for_machine(config: AcceleratorConfig) -> Cost:
    """Return :func:`tap_steps` of a configuration: what drives a search.

    The figure that the compiler and its estimate give is :func:`predicted_cycles`, which takes
    seconds.
    """

    def steps(model: nn.Module, input_shape: tuple[int, int, int]) -> float:
        return tap_steps(model, input_shape, config.tn, config.ti, config.tp, fold=True)

    steps.__qualname__ = f"tap_steps of {config.tn} x {config.ti} x {config.tp}"
    return steps


def predicted_cycles(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    board: str | Path = "pynq-z2",
    box: tuple[int, int] | None = None,
) -> float:
    """Return the cycles that one image will take on a board, transfers and start-up included.

    The network is quantized (on noise: its values change no cycle), compiled, and its program
    played through by :func:`hwgen.arch.estimate`.

    Parameters
    ----------
    model, input_shape
        A network and its (C, H, W).
    board
        Name or TOML file.
    box
        Height and width in pixels of a frame, or of a crop of one, which the machine resizes to
        the network's input on the way in; without it the input lies in memory as codes.

    Raises
    ------
    ValueError
        If the network cannot be compiled for the board, or the resampler cannot resize the box.
    """
    from hwgen.arch import MemoryTiming, estimate
    from hwgen.arch.estimate import estimate_cycles
    from hwgen.arch.frames import frame_program, pitch_of
    from hwgen.boards import load_board
    from hwgen.compiler import compile

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, *input_shape, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        bundle = compile(
            model, noise[:1], noise, board, observer="minmax", preprocess=preprocess_of(model)
        )
    timing = MemoryTiming(load_board(board).read_latency_cycles)
    if box is None:
        return float(estimate(bundle, timing).cycles)
    made = frame_program(bundle, *box, pitch_of(box[1], input_shape[0]))
    return float(estimate_cycles(made.program, bundle.config, timing))


def kernel_orders(model: nn.Module, structure: Structure, ti: int = TILE) -> dict[int, np.ndarray]:
    """Return every space's channels in the order in which the compiler will group them.

    Filters of equal kernels in all of a space's writers lie together, most taps first, and
    otherwise keep their order: what :mod:`hwgen.passes.order_channels` does. Kernels are compared
    by tile of ``ti`` input channels, in the order of the space they come from.
    """
    orders: dict[int, np.ndarray] = {}
    for identifier, space in structure.spaces.items():
        keys = _kernel_keys(model, structure, orders, space, ti)
        orders[identifier] = np.array(sorted(range(space.channels), key=keys.__getitem__))
    return orders


def _kernel_keys(
    model: nn.Module,
    structure: Structure,
    orders: Mapping[int, np.ndarray],
    space: Space,
    ti: int = TILE,
) -> list[tuple[tuple[int, bytes], ...]]:
    """Return for each channel of a space its kernels in all writers, to be compared."""
    used = []
    for name in space.producers:
        layer = structure.layers[name]
        if layer.kind in ("conv", "linear"):
            here = used_weights(model, name)
            inputs = orders.get(layer.inputs, np.arange(here.shape[1] // layer.repeat))
            tiles = _any_in_groups(_in_order(here, inputs, layer.repeat), 1, ti)
            used.append(tiles.swapaxes(1, 2).reshape(space.channels, -1))
    return [
        tuple((-int(kernels[c].sum()), kernels[c].tobytes()) for kernels in used)
        for c in range(space.channels)
    ]


def channel_units(
    model: nn.Module, structure: Structure, space: Space, importance: np.ndarray, align: int
) -> list[np.ndarray]:
    """Return a space's channels in runs of ``align`` that the machine can compute together.

    Channels of equal kernels in all writers lie together, and among them those of equal
    importance; ``align=1`` gives single channels. The least important run comes first.
    """
    order = np.arange(len(importance))
    if align > 1:
        keys = _kernel_keys(model, structure, kernel_orders(model, structure), space)
        order = np.array(sorted(order, key=lambda c: (keys[c], importance[c])))
    units = [order[i : i + align] for i in range(0, len(order), align)]
    return sorted(units, key=lambda unit: float(importance[unit].mean()))


def _groups(model: nn.Module, name: str) -> int:
    """Return a convolution's groups."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module.groups


def used_weights(model: nn.Module, name: str) -> np.ndarray:
    """Return where a layer's weights are not zero: (outputs, inputs, positions) bool."""
    weight = model.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return (weight.detach() != 0).reshape(weight.shape[0], weight.shape[1], -1).cpu().numpy()


def _any_in_groups(used: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Or together runs of ``size`` along an axis; the last run may be short."""
    starts = np.arange(0, used.shape[axis], size)
    return np.logical_or.reduceat(used, starts, axis=axis)
