# SPDX-License-Identifier: Apache-2.0
"""The back-end room: quantized graph -> hls4ml layers whose fixed-point types lose no bit.

Codes become real values: an edge of scale 2**k is an ``ap_fixed`` whose lowest bit is worth 2**k.
The multiplier and shift of a channel, a power of two, go into its weights, sums are as wide as
they must be, and the one rounding and clamp of a node is the assignment to its result type::

    conv  acc -> (acc * m + r * rm) >> s -> clamp      Conv2D, types exact -> Add -> RND, SAT

A clamp that is no type's range (ReLU6) becomes up to three saturations, with an offset between
them: ``min(x, hi)`` is ``saturate(x + 127 - hi) - (127 - hi)``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwgen.arch import numerics
from hwgen.backends.hls4ml.refusal import exponents, log2_scale, lowest_code, pool_padding_is_zero
from hwgen.backends.hls4ml.types import Fixed, HlsError, IoType, Op, Work, exact_type
from hwgen.ir import Graph, Node, QAdd, QAvgPool, QConv, QDepthwise, QInput, QMaxPool
from hwgen.ir.types import Padding, Pair
from hwgen.passes.order_channels import order_channels

#: Parallel convolutions that one layer may become; each has a line buffer of its own.
MAX_GROUPS = 4
#: Taps of an average pool from which columns are added first.
SMALL_WINDOW = 9
_NO_PADDING: Padding = ((0, 0), (0, 0))
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Edge:
    """A node's result: the layer that has it, its type, its codes' range, its shape."""

    op: str
    type: Fixed
    shape: tuple[int, ...]
    lo: int
    hi: int

    @property
    def largest(self) -> int:
        """Largest magnitude of a code."""
        return max(abs(self.lo), abs(self.hi))


@dataclass(frozen=True)
class _Exact:
    """Integers worth ``2**lsb`` each."""

    codes: _Ints
    lsb: int

    @property
    def type(self) -> Fixed:
        return exact_type(self.codes, self.lsb)

    @property
    def real(self) -> NDArray[np.float64]:
        return self.codes * 2.0**self.lsb


def lower(graph: Graph, io_type: IoType) -> tuple[Op, ...]:
    """Return the layers, in order; the last one is the output.

    Channels inside the network are ordered so that filters of one kernel are neighbours
    (`hwgen.passes.order_channels`); the network's input and output keep their order.

    Parameters
    ----------
    graph
        At the quantized level, with nothing in `hwgen.backends.hls4ml.refusal.refusals`.
    """
    orders = order_channels(graph, max(node.type.shape[0] for node in graph.nodes))
    plain = _tied_to(orders, graph, graph.outputs[0])
    kept = {
        name: np.arange(len(order)) if name in plain else np.array(order)
        for name, order in orders.items()
    }
    return _Lowering(graph, io_type, kept).run()


def _tied_to(orders: Mapping[str, tuple[int, ...]], graph: Graph, name: str) -> set[str]:
    """Nodes that share `name`'s order: those that elementwise operations tie to it."""
    found, waiting = {name}, [name]
    while waiting:
        at = waiting.pop()
        neighbours = []
        for node in (graph[at], *graph.consumers(at)):
            if isinstance(node, QInput):
                continue
            tied = node.inputs[1:] if type(node) is QConv else node.inputs
            if node.name == at or at in tied:
                neighbours += [node.name, *tied]
        waiting += [other for other in neighbours if other not in found]
        found.update(neighbours)
    return found


class _Lowering:
    """One run of `lower`."""

    def __init__(self, graph: Graph, io_type: IoType, orders: dict[str, _Ints]) -> None:
        self.graph, self.io_type, self.orders = graph, io_type, orders
        self.ops: list[Op] = []
        self.edges: dict[str, _Edge] = {}

    def run(self) -> tuple[Op, ...]:
        for node in self.graph.nodes:
            try:
                self.edges[node.name] = self._node(node)
            except HlsError as error:
                raise HlsError(f"{node.where()}: {error}") from None
        return tuple(self.ops)

    def _node(self, node: Node) -> _Edge:
        match node:
            case QInput():
                channels, height, width = node.type.shape
                type_ = Fixed(8, log2_scale(node), requantizes=True)
                shape = (height, width, channels)
                op = self._add(node, "InputLayer", (), shape, {"result": type_}, "")
                return _Edge(op.name, type_, shape, -128, 127)
            case QDepthwise():
                return self._depthwise(node)
            case QConv():
                return self._conv(node)
            case QMaxPool():
                return self._max_pool(node)
            case QAvgPool():
                return self._avg_pool(node)
            case QAdd():
                a, b = (self.edges[name] for name in node.inputs)
                return self._finish(node, self._sum(node, a, b))
        raise AssertionError(f"{node.where()} was not refused")

    def _add(
        self,
        node: Node,
        kind: str,
        inputs: tuple[str, ...],
        shape: tuple[int, ...],
        types: dict[str, Fixed],
        suffix: str,
        **more: object,
    ) -> Op:
        clean = re.sub(r"\W", "_", node.name, flags=re.ASCII)
        name = f"n{len(self.ops)}_{clean}{suffix}"
        op = Op(name, kind, inputs, shape, types, node.name, **more)  # type: ignore[arg-type]
        self.ops.append(op)
        return op

    # Requantization.

    def _clamps(self, node: Node) -> list[tuple[int, Fixed]]:
        """Saturations that make the node's clamp: (what is added before, in codes; result type)."""
        requantization = node.requantization  # type: ignore[attr-defined]
        lo, hi, lsb = requantization.lo, requantization.hi, log2_scale(node)
        byte, positive = Fixed(8, lsb, requantizes=True), Fixed(7, lsb, False, True)
        if lo == 0 and hi > 0 and hi & (hi + 1) == 0:
            return [(0, Fixed(hi.bit_length(), lsb, False, True))]
        if (lo, hi) == (-127, 127):
            return [(0, replace(byte, symmetric=True))]
        if lo == ~hi and hi & (hi + 1) == 0 and hi > 0:
            return [(0, Fixed(hi.bit_length() + 1, lsb, requantizes=True))]
        offsets = [127 - hi] if hi < 127 else []
        if lo not in (-128, 0):
            offsets.append(-128 - lo)
        steps = [b - a for a, b in zip([0, *offsets], [*offsets, 0], strict=True)]
        types = [byte] * (len(steps) - 1) + [positive if lo == 0 else byte]
        return list(zip(steps, types, strict=True))

    def _finish(self, node: Node, value: _Edge, done: int = 0) -> _Edge:
        """Requantize an exact value, or make what is left after `done` saturations."""
        stages = self._clamps(node)[done:]
        requantization = node.requantization  # type: ignore[attr-defined]
        for index, (offset, type_) in enumerate(stages):
            if offset:
                value = self._offset(node, value, offset, type_, f"_clamp{index + done}")
            elif value.type != type_:
                attributes = {"activation": "linear", "n_in": int(np.prod(value.shape))}
                op = self._add(
                    node,
                    "Activation",
                    (value.op,),
                    value.shape,
                    {"result": type_},
                    "_round",
                    attributes=attributes,
                )
                value = replace(value, op=op.name, type=type_)
        return replace(value, lo=requantization.lo, hi=requantization.hi)

    def _offset(self, node: Node, x: _Edge, codes: int, type_: Fixed, suffix: str) -> _Edge:
        """Add a constant and assign to `type_`."""
        channels = x.shape[-1]
        bias = _Exact(np.full(channels, codes), log2_scale(node))
        scale = _Exact(np.ones(channels, np.int64), 0)
        op = self._add(
            node,
            "BatchNormalization",
            (x.op,),
            x.shape,
            {"result": type_, "scale": scale.type, "bias": bias.type},
            suffix,
            attributes={"n_in": int(np.prod(x.shape)), "n_filt": channels},
            arrays={"scale": scale.real, "bias": bias.real},
        )
        return replace(x, op=op.name, type=type_)

    def _sum(self, node: Node, a: _Edge, b: _Edge) -> _Edge:
        """Add two edges; rounds and saturates at once where no offset comes before that."""
        shape = (
            a.shape if len(a.shape) == len(b.shape) else (a.shape if len(a.shape) == 3 else b.shape)
        )
        a, b = (self._shaped(node, x, shape) for x in (a, b))
        offset, type_ = self._clamps(node)[0]
        offset = 0 if isinstance(node, QConv) else offset  # a convolution has it in its bias
        if offset:
            type_ = _sum_type(a, b)
        inputs = (a.op, b.op)
        op = self._add(
            node, "Merge", inputs, shape, {"result": type_}, "_add", attributes={"op": "add"}
        )
        return _Edge(op.name, type_, shape, -128, 127)

    # Convolutions.

    def _parameters(self, node: QConv, x: _Edge) -> tuple[_Exact, _Exact, Fixed]:
        """Weights (in the node's layout, channels reordered), biases and the type of sums."""
        requantization, order = node.requantization, self.orders[node.name]
        log2 = exponents(requantization.multiplier)
        assert log2 is not None, "refused before"
        ours, theirs = log2_scale(node), x.type.lsb
        exponent = (log2 - requantization.shift + ours - theirs)[order]
        weight = node.weight[order].astype(np.int64)
        if not isinstance(node, QDepthwise):
            weight = weight[..., self.orders[node.inputs[0]]]
        silent = requantization.multiplier[order] == 0
        weight[silent] = 0
        weights = _scaled(weight, exponent)
        bias = np.where(silent, 0, node.bias[order].astype(np.int64))
        biases = _scaled(bias, exponent + theirs)
        offset = self._clamps(node)[0][0]
        if offset:
            biases = _plus(biases, offset, ours)
        lsb = min(weights.lsb + theirs, biases.lsb)
        products = np.abs(weights.codes).reshape(len(weight), -1).sum(axis=1)
        worst = max(
            (int(p) * x.largest << (weights.lsb + theirs - lsb))
            + (abs(int(b)) << (biases.lsb - lsb))
            for p, b in zip(products, biases.codes, strict=True)
        )
        return weights, biases, Fixed(worst.bit_length() + 1, lsb)

    def _conv(self, node: QConv) -> _Edge:
        x = self.edges[node.inputs[0]]
        weights, biases, accum = self._parameters(node, x)
        residual = node.residual
        result = accum if residual else self._clamps(node)[0][1]
        if node.type.shape[1:] == (1, 1):
            value = self._dense(node, x, weights, biases, accum, result)
        else:
            kernel, padding = _undilated(weights.codes, node.dilation, (1, 2)), node.padding
            parts: list[_Edge] = []
            for rows, box in kernel_groups(kernel, padding):
                (top, bottom), (left, right) = box
                taps = _Exact(kernel[rows, top : bottom + 1, left : right + 1], weights.lsb)
                pads = (
                    (padding[0][0] - top, padding[0][1] - (kernel.shape[1] - 1 - bottom)),
                    (padding[1][0] - left, padding[1][1] - (kernel.shape[2] - 1 - right)),
                )
                own = _Exact(biases.codes[rows], biases.lsb)
                parts.append(self._conv2d(node, x, taps, own, accum, result, pads))
            value = parts[0]
            for part in parts[1:]:
                shape = (*value.shape[:2], value.shape[2] + part.shape[2])
                op = self._add(
                    node,
                    "Concatenate",
                    (value.op, part.op),
                    shape,
                    {"result": result},
                    "_join",
                    attributes={"op": "concatenate3d", "axis": 3},
                )
                value = _Edge(op.name, result, shape, -128, 127)
        if residual:
            value = self._sum(node, value, self.edges[residual])
        return self._finish(node, value, done=1)

    def _conv2d(
        self,
        node: QConv,
        x: _Edge,
        weights: _Exact,
        biases: _Exact,
        accum: Fixed,
        result: Fixed,
        padding: Padding,
    ) -> _Edge:
        """One Conv2D; `weights` (O, kh, kw, I) without dilation."""
        x = self._shaped(node, x, (1, 1, x.shape[-1]) if len(x.shape) == 1 else x.shape)
        if weights.codes.shape[1] == 1 and weights.codes.shape[2] > 1 and node.stride[0] > 1:
            # hls4ml streams a kernel of one row without its stride along y.
            weights, padding = self._second_row(weights, padding)
        x, padding = self._padded(node, x, padding)
        outputs, kh, kw, channels = weights.codes.shape
        window = _window(x, (kh, kw), node.stride, padding)
        shape = (window["out_height"], window["out_width"], outputs)
        types = {"result": result, "weight": weights.type, "bias": biases.type, "accum": accum}
        op = self._add(
            node,
            "Conv2D",
            (x.op,),
            shape,
            types,
            "",
            attributes={
                **window,
                "filt_height": kh,
                "filt_width": kw,
                "n_chan": channels,
                "n_filt": outputs,
                "data_format": "channels_last",
            },
            arrays={
                "weight": np.ascontiguousarray(weights.real.transpose(1, 2, 3, 0)),
                "bias": biases.real,
            },
            work=Work(
                "conv",
                kh * kw * channels,
                outputs,
                kh * kw * channels * outputs,
                x.shape[0] * x.shape[1],
                shape[0] * shape[1],
                weights.type.width,
                x.type.width,
            ),
        )
        return _Edge(op.name, result, shape, -128, 127)

    def _dense(
        self,
        node: QConv,
        x: _Edge,
        weights: _Exact,
        biases: _Exact,
        accum: Fixed,
        result: Fixed,
    ) -> _Edge:
        """Lower a convolution with one output pixel: a matrix product with the whole map."""
        _, height, width = self.graph[node.inputs[0]].type.shape
        outputs, kh, kw, channels = weights.codes.shape
        matrix = np.zeros((height, width, channels, outputs), np.int64)
        for dy in range(kh):
            for dx in range(kw):
                y = dy * node.dilation[0] - node.padding[0][0]
                at = dx * node.dilation[1] - node.padding[1][0]
                if 0 <= y < height and 0 <= at < width:
                    matrix[y, at] = weights.codes[:, dy, dx].T
        flat = self._shaped(node, x, (height * width * channels,))
        n_in = height * width * channels
        real = _Exact(matrix.reshape(n_in, outputs), weights.lsb)
        types = {"result": result, "weight": weights.type, "bias": biases.type, "accum": accum}
        op = self._add(
            node,
            "Dense",
            (flat.op,),
            (outputs,),
            types,
            "",
            attributes={"n_in": n_in, "n_out": outputs},
            arrays={"weight": real.real, "bias": biases.real},
            work=Work(
                "dense",
                n_in,
                outputs,
                n_in * outputs,
                height * width,
                1,
                weights.type.width,
                x.type.width,
            ),
        )
        return _Edge(op.name, result, (outputs,), -128, 127)

    def _depthwise(self, node: QDepthwise) -> _Edge:
        x = self.edges[node.inputs[0]]
        weights, biases, accum = self._parameters(node, x)
        kernel = _Exact(_undilated(weights.codes, node.dilation, (1, 2)), weights.lsb)
        result = accum if node.residual else self._clamps(node)[0][1]
        value = self._lanes(node, x, kernel, biases, accum, result, node.stride, node.padding)
        if node.residual:
            value = self._sum(node, value, self.edges[node.residual])
        return self._finish(node, value, done=1)

    def _lanes(
        self,
        node: QDepthwise | QAvgPool,
        x: _Edge,
        weights: _Exact,
        biases: _Exact,
        accum: Fixed,
        result: Fixed,
        stride: Pair,
        padding: Padding,
        suffix: str = "",
    ) -> _Edge:
        """One DepthwiseConv2D; `weights` (C, kh, kw) without dilation."""
        channels, kh, kw = weights.codes.shape
        types = {"result": result, "bias": biases.type}
        if (kh, kw) == stride == (1, 1) and padding == _NO_PADDING:
            # A factor and an offset a channel need no window; hls4ml drops what has neither.
            if (weights.real == 1).all() and not biases.codes.any():
                if x.type == result:
                    return x
                linear = {"activation": "linear", "n_in": int(np.prod(x.shape))}
                op = self._add(
                    node, "Activation", (x.op,), x.shape, {"result": result}, "", attributes=linear
                )
                return _Edge(op.name, result, x.shape, -128, 127)
            op = self._add(
                node,
                "BatchNormalization",
                (x.op,),
                x.shape,
                {**types, "scale": weights.type},
                "",
                attributes={"n_in": int(np.prod(x.shape)), "n_filt": channels},
                arrays={"scale": weights.real.reshape(-1), "bias": biases.real},
            )
            return _Edge(op.name, result, x.shape, -128, 127)
        x = self._shaped(node, x, (1, 1, channels) if len(x.shape) == 1 else x.shape)
        if kh == 1:
            # hls4ml's streamed depthwise layer has no line buffer for a kernel of one row.
            weights, padding = self._second_row(weights, padding)
            kh = weights.codes.shape[1]
        x, padding = self._padded(node, x, padding)
        window = _window(x, (kh, kw), stride, padding)
        shape = (window["out_height"], window["out_width"], channels)
        magnitudes = np.abs(weights.codes)
        op = self._add(
            node,
            "DepthwiseConv2D",
            (x.op,),
            shape,
            {**types, "weight": weights.type, "accum": accum},
            suffix,
            attributes={
                **window,
                "filt_height": kh,
                "filt_width": kw,
                "n_chan": channels,
                "n_filt": channels,
                "depth_multiplier": 1,
                "data_format": "channels_last",
            },
            arrays={
                "depthwise": np.ascontiguousarray(weights.real.transpose(1, 2, 0)[..., None]),
                "bias": biases.real,
            },
            work=Work(
                "depthwise",
                kh * kw * channels,
                channels,
                kh * kw * channels,
                x.shape[0] * x.shape[1],
                shape[0] * shape[1],
                weights.type.width,
                x.type.width,
                constant=not (magnitudes & (magnitudes - 1)).any(),
            ),
        )
        return _Edge(op.name, result, shape, -128, 127)

    def _second_row(self, weights: _Exact, padding: Padding) -> tuple[_Exact, Padding]:
        """Put a row of zeros below a streamed kernel of one row (O, 1, kw, ...)."""
        if self.io_type == "io_parallel":
            return weights, padding
        codes = np.concatenate([weights.codes, np.zeros_like(weights.codes)], axis=1)
        (top, bottom), columns = padding
        return _Exact(codes, weights.lsb), ((top, bottom + 1), columns)

    # Pools.

    def _max_pool(self, node: QMaxPool) -> _Edge:
        x = self.edges[node.inputs[0]]
        requantization = node.requantization
        clamps = requantization.lo > x.lo or requantization.hi < x.hi
        if node.kernel == node.stride == (1, 1) and node.padding == _NO_PADDING:
            return self._finish(node, x) if clamps else x
        padding = node.padding
        if pool_padding_is_zero(node, lowest_code(self.graph, node.inputs[0])):
            x, padding = self._padded(node, x, padding, always=True)
        offset, first = self._clamps(node)[0]
        direct = clamps and not offset
        result = first if direct else x.type
        window = _window(x, node.kernel, node.stride, padding)
        shape = (window["out_height"], window["out_width"], x.shape[2])
        op = self._add(
            node,
            "MaxPooling2D",
            (x.op,),
            shape,
            {"result": result, "accum": replace(x.type, requantizes=False, symmetric=False)},
            "",
            attributes={
                **window,
                "pool_height": node.kernel[0],
                "pool_width": node.kernel[1],
                "n_filt": x.shape[2],
                "count_pad": False,
                "data_format": "channels_last",
            },
        )
        value = _Edge(op.name, result, shape, x.lo, x.hi)
        return self._finish(node, value, done=int(direct)) if clamps else value

    def _avg_pool(self, node: QAvgPool) -> _Edge:
        x = self.edges[node.inputs[0]]
        channels, height, width = self.graph[node.inputs[0]].type.shape
        requantization = node.requantization
        log2 = exponents(requantization.multiplier)
        assert log2 is not None, "refused before"
        exponent = log2 - requantization.shift + log2_scale(node) - x.type.lsb
        taps = height * width
        whole = node.kernel == (height, width) and node.padding == _NO_PADDING
        offset, first = self._clamps(node)[0]
        if whole and len(x.shape) == 3 and (2.0**-exponent == taps).all() and not offset:
            # hls4ml divides the sum in the sum's own type: it gets the bits of the quotient.
            more = taps.bit_length() - 1
            width_ = (taps * x.largest).bit_length() + 1 + more
            op = self._add(
                node,
                "GlobalAveragePooling2D",
                (x.op,),
                (channels,),
                {"result": first, "accum": Fixed(width_, x.type.lsb - more)},
                "",
                attributes={
                    "in_height": height,
                    "in_width": width,
                    "n_filt": channels,
                    "data_format": "channels_last",
                },
            )
            return self._finish(node, _Edge(op.name, first, (channels,), -128, 127), done=1)
        offset, (kh, kw) = self._clamps(node)[0][0], node.kernel
        stride, padding = node.stride, node.padding
        order = self.orders[node.name]
        largest = x.largest
        if min(kh, kw) > 1 and kh * kw > SMALL_WINDOW:
            # The sum of a window is the sum of its columns' sums: kh + kw terms, not kh * kw.
            largest *= kh
            columns = Fixed(largest.bit_length() + 1, x.type.lsb)
            ones = _Exact(np.ones((channels, kh, 1), np.int64), 0)
            zero = _Exact(np.zeros(channels, np.int64), x.type.lsb)
            rows = (stride[0], 1), (padding[0], (0, 0))
            x = self._lanes(node, x, ones, zero, columns, columns, *rows, "_columns")
            kh, stride, padding = 1, (1, stride[1]), ((0, 0), padding[1])
        weights = _scaled(np.ones((channels, kh, kw), np.int64), exponent[order])
        biases = _Exact(np.full(channels, offset), log2_scale(node))
        lsb = min(weights.lsb + x.type.lsb, biases.lsb)
        worst = int(weights.codes.max()) * kh * kw * largest << (weights.lsb + x.type.lsb - lsb)
        worst += abs(offset) << (biases.lsb - lsb)
        accum = Fixed(worst.bit_length() + 1, lsb)
        value = self._lanes(node, x, weights, biases, accum, first, stride, padding)
        return self._finish(node, value, done=1)

    # Shapes.

    def _shaped(self, node: Node, x: _Edge, shape: tuple[int, ...]) -> _Edge:
        """Reshape where the shape differs."""
        if x.shape == shape:
            return x
        op = self._add(
            node,
            "Reshape",
            (x.op,),
            shape,
            {"result": x.type},
            "_shape",
            attributes={"target_shape": list(shape)},
        )
        return replace(x, op=op.name, shape=shape)

    def _padded(
        self, node: Node, x: _Edge, padding: Padding, always: bool = False
    ) -> tuple[_Edge, Padding]:
        """Pad with zeros in a layer of its own, as streams need it; else leave it to the layer."""
        (top, bottom), (left, right) = padding
        if padding == _NO_PADDING or (self.io_type == "io_parallel" and not always):
            return x, padding
        shape = (x.shape[0] + top + bottom, x.shape[1] + left + right, x.shape[2])
        op = self._add(
            node,
            "ZeroPadding2D",
            (x.op,),
            shape,
            {"result": x.type},
            "_pad",
            attributes={
                "in_height": x.shape[0],
                "in_width": x.shape[1],
                "out_height": shape[0],
                "out_width": shape[1],
                "n_chan": x.shape[2],
                "pad_top": top,
                "pad_bottom": bottom,
                "pad_left": left,
                "pad_right": right,
                "data_format": "channels_last",
            },
        )
        return replace(x, op=op.name, shape=shape, lo=min(x.lo, 0), hi=max(x.hi, 0)), _NO_PADDING


def kernel_groups(
    kernel: _Ints, padding: Padding
) -> list[tuple[slice, tuple[tuple[int, int], tuple[int, int]]]]:
    """Split filters (O, kh, kw, I) into runs of neighbours that fit a smaller kernel.

    Returns
    -------
    (filters, ((first row, last row), (first column, last column))) of each run, at most
    `MAX_GROUPS`. Runs are joined while that costs the fewest multiplications, and down to where
    each boundary saves a tenth of the layer's. A kernel is not cut further than to padding 0:
    what is left of the padding must not be negative.
    """
    boxes = [_box(filter_, padding) for filter_ in kernel != 0]
    known = [box for box in boxes if box is not None]
    if not known:
        known = [_box(np.ones_like(kernel[0], bool), padding) or ((0, 0), (0, 0))]
    runs: list[list] = []
    last = known[0]
    for index, box in enumerate(boxes):
        last = box or last  # a filter without weights fits any kernel
        if runs and runs[-1][1] == last:
            runs[-1][0] = slice(runs[-1][0].start, index + 1)
        else:
            runs.append([slice(index, index + 1), last])
    whole = kernel.shape[1] * kernel.shape[2] * len(kernel)
    while len(runs) > 1:
        costs = [_join(a, b)[2] - _taps(a) - _taps(b) for a, b in zip(runs, runs[1:], strict=False)]
        best = int(np.argmin(costs))
        if len(runs) <= MAX_GROUPS and 10 * costs[best] > whole:
            break
        runs[best : best + 2] = [_join(runs[best], runs[best + 1])[:2]]
    return [(rows, box) for rows, box in runs]


def _box(
    used: NDArray[np.bool_], padding: Padding
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Rows and columns (first, last) of a filter (kh, kw, I) that are used; None if none is."""
    if not used.any():
        return None
    ends = []
    for axis, other in ((0, 1), (1, 0)):
        at = np.flatnonzero(used.any(axis=(other, 2)))
        before, after = padding[axis]
        size = used.shape[axis]
        ends.append((int(min(at[0], before)), int(max(at[-1], size - 1 - after))))
    return ends[0], ends[1]


def _taps(run: list) -> int:
    rows, ((top, bottom), (left, right)) = run[:2]
    return (rows.stop - rows.start) * (bottom - top + 1) * (right - left + 1)


def _join(a: list, b: list) -> list:
    """Return the run that holds both, and its taps."""
    box = tuple((min(p[0], q[0]), max(p[1], q[1])) for p, q in zip(a[1], b[1], strict=True))
    run = [slice(a[0].start, b[0].stop), box]
    return [*run, _taps(run)]


def _scaled(codes: _Ints, exponent: _Ints) -> _Exact:
    """Write ``codes[o] * 2**exponent[o]`` as integers of one lowest bit, the largest there is."""
    flat = codes.reshape(len(codes), -1)
    used = np.bitwise_or.reduce(np.abs(flat), axis=1)
    zeros = np.array([(int(v) & -int(v)).bit_length() - 1 if v else 0 for v in used])
    lowest = (exponent + zeros)[used > 0]
    lsb = int(lowest.min()) if len(lowest) else int(exponent.min())
    shape = (-1, *([1] * (codes.ndim - 1)))
    factor = 2.0 ** np.where(used > 0, exponent - lsb, 0).reshape(shape)
    if np.abs(codes * factor).max(initial=0) >= 2**53:
        raise HlsError(
            "weights or biases of one layer are further apart than 53 bits; look for channels "
            "without any effect and trim them"
        )
    return _Exact((codes * factor).astype(np.int64), lsb)


def _plus(values: _Exact, codes: int, lsb: int) -> _Exact:
    """Add ``codes * 2**lsb`` to each value."""
    low = min(values.lsb, lsb)
    return _Exact((values.codes << (values.lsb - low)) + (codes << (lsb - low)), low)


def _sum_type(a: _Edge, b: _Edge) -> Fixed:
    low = min(a.type.lsb, b.type.lsb)
    worst = sum(max(-x.type.low, x.type.high) << (x.type.lsb - low) for x in (a, b))
    return Fixed(worst.bit_length() + 1, low)


def _undilated(codes: _Ints, dilation: Pair, axes: tuple[int, int]) -> _Ints:
    """Write a dilated kernel with the zeros between its taps."""
    shape = list(codes.shape)
    at: list[slice] = [slice(None)] * codes.ndim
    for axis, step in zip(axes, dilation, strict=True):
        shape[axis] = (shape[axis] - 1) * step + 1
        at[axis] = slice(None, None, step)
    full = np.zeros(shape, np.int64)
    full[tuple(at)] = codes
    return full


def _window(x: _Edge, kernel: Pair, stride: Pair, padding: Padding) -> dict[str, int]:
    """Attributes that hls4ml's windowed layers share."""
    (top, bottom), (left, right) = padding
    height, width = x.shape[:2]
    return {
        "in_height": height,
        "in_width": width,
        "out_height": numerics.output_size(height, kernel[0], stride[0], padding[0], 1),
        "out_width": numerics.output_size(width, kernel[1], stride[1], padding[1], 1),
        "stride_height": stride[0],
        "stride_width": stride[1],
        "pad_top": top,
        "pad_bottom": bottom,
        "pad_left": left,
        "pad_right": right,
    }
