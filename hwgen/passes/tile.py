# SPDX-License-Identifier: Apache-2.0
"""The passes room: cut layers into groups of tn output channels, each a list of taps.

Before::

    y = QConv(x) weight int8[32,3,3,16]                 (tn = ti = 16)

After, for each group only the (dy, dx, input tile) steps whose weights are not all zero::

    y group 0: taps (0,0,0) (0,1,0) ... (2,2,0)         9 steps a pixel
    y group 1: taps (1,1,0)                             1 step a pixel

A network input of few channels has x-neighbours folded into the word while it is loaded: with 3
channels and 16 lanes, a word holds 5 pixels, and a 3x3 kernel takes 3 steps instead of 9. Where the
stride passes over pixels, so do the words.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hwgen.arch import isa
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.isa import BEAT_BYTES, Mode
from hwgen.ir.graph import Graph
from hwgen.ir.machine import Group, InputLoad, MachineGraph, MachineLayer, Tap, TensorLayout
from hwgen.ir.nodes import Node
from hwgen.ir.quantized import (
    QAdd,
    QAvgPool,
    QConv,
    QDepthwise,
    QInput,
    QMaxPool,
    Requantization,
)

Order = tuple[int, ...]
_UNFOLDED = InputLoad(0, 0, 0, 0, 0, 0, fold=1, step=1, plane_bytes=0)


def tile(graph: Graph, orders: Mapping[str, Order], config: AcceleratorConfig) -> MachineGraph:
    """Lower a quantized graph with chosen channel orders to machine layers, not yet placed."""
    source = graph[graph.inputs[0]]
    load = _input_load(graph, source, config)
    layouts = {source.name: _input_layout(source, load, config)}
    layers: list[MachineLayer] = []
    for node in graph.nodes:
        if isinstance(node, QInput):
            continue
        layouts[node.name] = _layout(node.type.shape, orders[node.name], config)
        inputs = node.inputs
        if len(inputs) == 2 and inputs[0] == inputs[1]:
            # The input and the residual are read at once, so they must lie in two banks.
            layers.append(_copy(inputs[0], layouts, config))
            layouts[layers[-1].output] = layouts[inputs[0]]
            inputs = (inputs[0], layers[-1].output)
        layers.append(_lower(node, inputs, layouts, load, graph, config))
    assert source.type.quant is not None
    return MachineGraph(
        tuple(layers),
        layouts,
        source.name,
        load,
        source.type.quant.zero_point,
        graph.outputs,
    )


def _layout(shape: tuple[int, int, int], order: Order, config: AcceleratorConfig) -> TensorLayout:
    tiles = -(-shape[0] // config.ti)
    return TensorLayout(shape, tiles, shape[2], 0, shape[2], order)


def _input_load(graph: Graph, source: Node, config: AcceleratorConfig) -> InputLoad:
    """Choose how many x-neighbours a word of the network's input holds."""
    channels, _, width = source.type.shape
    consumers = graph.consumers(source.name)
    foldable = source.name not in graph.outputs and all(
        type(node) is QConv and node.dilation[1] == 1 and source.name not in node.inputs[1:]
        for node in consumers
    )
    convs = [node for node in consumers if isinstance(node, QConv)]
    fold, step = 1, 1
    if foldable and convs:
        widest = max(node.kernel[1] for node in convs)
        fold = max(1, min(widest, config.ti // channels))
        if len(convs) == 1 and fold > 1:
            # One word an output pixel: what the stride passes over is in no word of its own.
            step = convs[0].stride[1]
            if fold < widest:
                # Its kernel's later columns must start at a word; at no more columns than before.
                aligned = fold // step * step
                columns = -(-widest // fold)
                fold, step = (
                    (aligned, step)
                    if aligned > 1 and -(-widest // aligned) == columns
                    else (fold, 1)
                )
    if fold == 1:
        take = min(channels, config.ti)
        pitch = _round_up(width * take, BEAT_BYTES)
        plane = pitch * source.type.shape[1] if channels > config.ti else 0
        return InputLoad(take, pitch, 0, take, take, width, 1, 1, plane)
    lead = max(node.padding[1][0] for node in convs)
    words = max(
        (
            (node.type.shape[2] - 1) * node.stride[1]
            + lead
            - node.padding[1][0]
            + (node.kernel[1] - 1) // fold * fold
        )
        // step
        + 1
        for node in convs
    )
    pitch = _round_up(width * channels, BEAT_BYTES)
    return InputLoad(
        channels, pitch, lead * channels, step * channels, fold * channels, words, fold, step, 0
    )


def _input_layout(source: Node, load: InputLoad, config: AcceleratorConfig) -> TensorLayout:
    shape = source.type.shape
    order = tuple(range(shape[0]))
    if load.fold == 1:
        return _layout(shape, order, config)
    lead = load.lead_bytes // load.pixel_bytes
    return TensorLayout(shape, 1, load.words_per_row, lead, load.words_per_row, order)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _copy(
    name: str, layouts: Mapping[str, TensorLayout], config: AcceleratorConfig
) -> MachineLayer:
    """Copy a map to another place, code for code."""
    channels = layouts[name].shape[0]
    identity = Requantization(
        multiplier=np.ones(channels, np.int64), shift=np.zeros(channels, np.int64)
    )
    zeros = np.zeros(channels, np.int64)
    layout = layouts[name]
    groups = _lane_groups(None, [(0, 0)], zeros, identity, layout, config)
    return MachineLayer(
        name=f"{name}.copy",
        kind="copy",
        mode=Mode.SUM,
        input=name,
        residual=None,
        output=f"{name}.copy",
        groups=groups,
        stride=(1, 1),
        origin=(0, 0),
        span=1,
        pad_value=0,
        zero_point=0,
        lo=-128,
        hi=127,
        residual_zero_point=0,
        macs=0,
        padding_macs=0,
    )


def _lower(
    node: Node,
    inputs: tuple[str, ...],
    layouts: Mapping[str, TensorLayout],
    load: InputLoad,
    graph: Graph,
    config: AcceleratorConfig,
) -> MachineLayer:
    """Lower one node."""
    into, out = layouts[inputs[0]], layouts[node.name]
    quant = graph[node.inputs[0]].type.quant
    assert quant is not None
    zero_point_in = quant.zero_point
    pixels = node.type.shape[1] * node.type.shape[2]
    stride, padding, pad_value = (1, 1), ((0, 0), (0, 0)), zero_point_in
    padding_macs = 0
    if isinstance(node, QConv):
        stride, padding = node.stride, node.padding
        requantization = node.requantization
        if isinstance(node, QDepthwise):
            mode = Mode.DEPTHWISE
            window = _window(node.weight.shape[1:], node.dilation)
            weight = node.weight.reshape(node.weight.shape[0], -1)
            used = np.flatnonzero(weight.any(axis=0))
            used = used if len(used) else np.array([0])
            taps = [window[i] for i in used]
            groups = _lane_groups(weight[:, used], taps, node.bias, requantization, out, config)
            macs = int(np.count_nonzero(weight)) * pixels
        else:
            mode = Mode.DENSE
            load = load if inputs[0] in graph.inputs else _UNFOLDED
            stride = stride[0], stride[1] // load.step
            groups, slices = _dense_groups(node, into, out, load, config)
            macs = int(slices.sum()) * pixels
            outside = _rows_of_padding(node, into.height, out.height)
            padding_macs = int(slices @ outside) * node.type.shape[2]
    elif isinstance(node, QMaxPool):
        mode, pad_value = Mode.MAXIMUM, -128
        stride, padding, requantization = node.stride, node.padding, node.requantization
        zeros = np.zeros(node.type.shape[0], np.int64)
        window = _window(node.kernel, node.dilation)
        groups = _lane_groups(None, window, zeros, requantization, out, config)
        macs = 0
    else:
        assert isinstance(node, (QAvgPool, QAdd))
        mode, requantization = Mode.SUM, node.requantization
        window = [(0, 0)]
        if isinstance(node, QAvgPool):
            stride, padding = node.stride, node.padding
            window = _window(node.kernel, (1, 1))
        bias = np.full(node.type.shape[0], node.bias, np.int64)
        groups = _lane_groups(None, window, bias, requantization, out, config)
        macs = 0
    return MachineLayer(
        name=node.name,
        kind=node.op,
        mode=mode,
        input=inputs[0],
        residual=inputs[1] if len(inputs) > 1 else None,
        output=node.name,
        groups=groups,
        stride=stride,
        origin=(-padding[0][0], into.origin_x - padding[1][0]),
        span=1 + max(tap.dy for group in groups for tap in group.taps),
        pad_value=pad_value,
        zero_point=requantization.zero_point,
        lo=requantization.lo,
        hi=requantization.hi,
        residual_zero_point=requantization.residual_zero_point,
        macs=macs,
        padding_macs=padding_macs,
    )


def _window(kernel: tuple[int, ...], dilation: tuple[int, int]) -> list[tuple[int, int]]:
    """List the (dy, dx) of a kernel's positions, rows first."""
    return [
        (dy * dilation[0], dx * dilation[1]) for dy in range(kernel[0]) for dx in range(kernel[1])
    ]


def _dense_groups(
    node: QConv, into: TensorLayout, out: TensorLayout, load: InputLoad, config: AcceleratorConfig
) -> tuple[tuple[Group, ...], NDArray[np.int64]]:
    """Cut a dense convolution; also count the MACs a pixel of each row of its kernel.

    Kernel slices that are all zero are no MACs.
    """
    tn, ti, fold = config.tn, config.ti, load.fold
    kh, kw = node.kernel
    columns = list(range(0, kw, fold))
    # weight[position, dy, column, tile, lane]: channels in position order, folded and padded.
    weight = np.zeros(
        (_round_up(len(out.order), tn), kh, len(columns), into.tiles, ti), dtype=np.int8
    )
    ordered = node.weight[list(out.order)][..., list(into.order)]
    count = len(out.order)
    if fold > 1:
        channels = into.shape[0]
        for c, dx in enumerate(columns):
            lanes = ordered[:, :, dx : dx + fold].reshape(count, kh, -1)
            weight[:count, :, c, 0, : lanes.shape[2]] = lanes
        slices = ordered.any(axis=3).sum(axis=(0, 2)) * channels
    else:
        flat = np.zeros((count, kh, kw, into.tiles * ti), dtype=np.int8)
        flat[..., : ordered.shape[3]] = ordered
        weight[:count] = flat.reshape(count, kh, kw, into.tiles, ti)
        sizes = np.full(into.tiles, ti)
        sizes[-1] = ordered.shape[3] - ti * (into.tiles - 1)
        slices = (weight.any(axis=4) * sizes).sum(axis=(0, 2, 3))
    groups = []
    for first in range(0, weight.shape[0], tn):
        block = weight[first : first + tn]
        used = np.argwhere(block.any(axis=(0, 4)))
        if not len(used):
            used = np.zeros((1, 3), dtype=np.int64)
        taps = []
        for dy, c, t in used.tolist():
            y, x = dy * node.dilation[0], columns[c] // load.step * node.dilation[1]
            taps.append(Tap(y, x, t))
        rows = block[:, used[:, 0], used[:, 1], used[:, 2]].transpose(1, 0, 2)
        parameters = _parameter_rows(node.bias, node.requantization, out.order, first, config)
        groups.append(_group(taps, parameters, rows, 0, first, config))
    return tuple(groups), slices


def _rows_of_padding(node: QConv, source: int, height: int) -> NDArray[np.int64]:
    """For each row of the kernel, the output rows for which it lies above or below the input."""
    top = np.arange(height) * node.stride[0] - node.padding[0][0]
    row = top + np.arange(node.kernel[0])[:, None] * node.dilation[0]
    return ((row < 0) | (row >= source)).sum(axis=1)


def _lane_groups(
    weight: NDArray[np.int8] | None,
    window: list[tuple[int, int]],
    bias: NDArray[np.integer],
    requantization: Requantization,
    out: TensorLayout,
    config: AcceleratorConfig,
) -> tuple[Group, ...]:
    """Cut a layer that works lane by lane; `weight` is (C, taps) for depthwise, else None.

    All groups share one tap list: each counts from its own input tile.
    """
    tn, ti = config.tn, config.ti
    taps = [Tap(y, x, 0) for y, x in window]
    groups = []
    for first in range(0, len(out.order), tn):
        parameters = _parameter_rows(bias, requantization, out.order, first, config)
        rows = np.zeros((0, tn, ti), dtype=np.int8)
        if weight is not None:
            slots = np.zeros((_round_up(len(taps), tn), ti), dtype=np.int8)
            here = list(out.order[first : first + tn])
            slots[: len(taps), : len(here)] = weight[here].T
            rows = slots.reshape(-1, tn, ti)
        groups.append(_group(taps, parameters, rows, first // ti, first, config))
    return tuple(groups)


def _group(
    taps: list[Tap],
    parameters: NDArray[np.int8],
    weights: NDArray[np.int8],
    input_tile: int,
    first: int,
    config: AcceleratorConfig,
) -> Group:
    block = first % config.ti // config.tn
    return Group(tuple(taps), parameters, weights, input_tile, first // config.ti, block)


def _parameter_rows(
    bias: NDArray[np.integer],
    requantization: Requantization,
    order: Order,
    first: int,
    config: AcceleratorConfig,
) -> NDArray[np.int8]:
    """Pack the channel parameters of positions first .. first + tn: int8 (rows, tn, ti)."""
    slot_bytes = config.parameter_rows * config.ti
    packed = np.zeros((config.tn, slot_bytes), dtype=np.uint8)
    for slot, channel in enumerate(order[first : first + config.tn]):
        residual = requantization.residual_multiplier
        word = isa.CHANNEL_PARAMETERS.pack(
            {
                "bias": int(bias[channel]),
                "multiplier": int(requantization.multiplier[channel]),
                "shift": int(requantization.shift[channel]),
                "residual_multiplier": 0 if residual is None else int(residual[channel]),
            }
        )
        packed[slot] = np.frombuffer(word.to_bytes(slot_bytes, "little"), dtype=np.uint8)
    rows = packed.view(np.int8).reshape(config.tn, config.parameter_rows, config.ti)
    return rows.transpose(1, 0, 2)
