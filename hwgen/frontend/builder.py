# SPDX-License-Identifier: Apache-2.0
"""The front end room: builds float nodes from checked attributes, for every importer.

Each method either adds one node or raises `Refusal`. Importers collect the refusals, so that a
user sees all of them at once, and let `placeholder` stand for the results that do not exist.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.frontend.errors import Refusal, Unsupported, UnsupportedOperation
from hwgen.ir import (
    MAX_SPAN,
    MAX_STRIDE,
    Add,
    AvgPool,
    BatchNorm,
    Clamp,
    Conv2d,
    Flatten,
    Graph,
    Input,
    Linear,
    MaxPool,
    Node,
    Source,
    TensorType,
    verify,
)
from hwgen.ir.types import IRError, Padding, Pair, Shape

NONE: Padding = ((0, 0), (0, 0))
Array = NDArray[Any]


def finite(name: str, array: Array) -> Array:
    """Return float32 `array`; `ValueError` naming the tensor if it holds NaN or infinity."""
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(
            f"{name} must be finite, but {bad} of its {array.size} values are NaN or infinite; "
            "the network was probably saved after its training diverged"
        )
    return array.astype(np.float32)


class Builder:
    """Nodes of a float graph under construction."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.placeholders: set[str] = set()
        self.used: set[str] = set()  # results that a refused operation reads
        self.refused: list[Unsupported] = []

    def refuse(self, operation: str, source: Source, refusal: Refusal) -> None:
        """Keep a refusal for `finish`."""
        self.refused.append(Unsupported(operation, source, refusal.reason, refusal.instead))

    def shape(self, name: str) -> Shape:
        """(C, H, W) of a result."""
        return self.nodes[name].type.shape

    def _add(self, kind: type[Node], name: str, source: Source, *inputs: str, **fields: Any) -> str:
        unique, count = name, 1
        while unique in self.nodes:
            unique, count = f"{name}_{count}", count + 1
        unknown = TensorType((0, 0, 0))
        node = kind(name=unique, inputs=inputs, type=unknown, source=source, **fields)
        try:
            shape = node.infer_shape(*(self.shape(i) for i in inputs))
        except IRError as error:
            raise Refusal(str(error), "make the shapes fit") from None
        self.nodes[unique] = node.updated(type=TensorType(shape))
        return unique

    def placeholder(self, name: str, shape: Shape) -> str:
        """Stand in for the result of a refused operation, so that its readers are checked too."""
        name = f"{name}!"
        self.nodes[name] = Input(name=name, type=TensorType(shape))
        self.placeholders.add(name)
        return name

    def input(self, name: str, shape: Shape) -> str:
        """Add the graph's input."""
        self.nodes[name] = Input(name=name, type=TensorType(shape))
        return name

    def conv(
        self,
        name: str,
        source: Source,
        x: str,
        weight: Array,
        bias: Array | None,
        stride: Pair,
        padding: Padding,
        dilation: Pair,
        groups: int,
    ) -> str:
        """Add a convolution; weight (O, I / groups, kh, kw)."""
        _check_window(self.shape(x), weight.shape[2:], stride, padding, dilation)
        if bias is None:
            bias = np.zeros(len(weight), np.float32)
        return self._add(
            Conv2d,
            name,
            source,
            x,
            weight=weight,
            bias=bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )

    def batch_norm(
        self,
        name: str,
        source: Source,
        x: str,
        mean: Array,
        variance: Array,
        weight: Array | None,
        bias: Array | None,
        epsilon: float,
    ) -> str:
        """Add a batch normalisation with its running statistics."""
        if (variance + epsilon <= 0).any():
            raise Refusal("its running variance is not positive", "train it, or reset its state")
        return self._add(
            BatchNorm,
            name,
            source,
            x,
            mean=mean,
            variance=variance,
            weight=np.ones_like(mean) if weight is None else weight,
            bias=np.zeros_like(mean) if bias is None else bias,
            epsilon=float(epsilon),
        )

    def clamp(self, name: str, source: Source, x: str, lo: float, hi: float) -> str:
        """Add a clamp: ReLU, ReLU6, Hardtanh."""
        if not lo < hi:
            raise Refusal(f"its bounds {lo} and {hi} do not rise", "make the lower bound lower")
        return self._add(Clamp, name, source, x, lo=float(lo), hi=float(hi))

    def linear(self, name: str, source: Source, x: str, weight: Array, bias: Array | None) -> str:
        """Add a fully connected layer; weight (O, F)."""
        if self.shape(x)[1:] != (1, 1):
            raise Refusal(
                f"it runs along the last axis of a feature map {self.shape(x)}",
                "flatten its input to (N, features) first, or use a 1x1 Conv2d",
            )
        if bias is None:
            bias = np.zeros(len(weight), np.float32)
        return self._add(Linear, name, source, x, weight=weight, bias=bias)

    def max_pool(
        self,
        name: str,
        source: Source,
        x: str,
        kernel: Pair,
        stride: Pair,
        padding: Padding,
        dilation: Pair,
        ceil_mode: bool,
    ) -> str:
        """Add a max pool; `ceil_mode` becomes padding below and to the right."""
        if ceil_mode:
            padding = _ceil_padding(self.shape(x), kernel, stride, padding, dilation)
        _check_window(self.shape(x), kernel, stride, padding, dilation)
        for axis in (0, 1):
            size, pad = self.shape(x)[axis + 1], padding[axis]
            last = size + sum(pad) - (kernel[axis] - 1) * dilation[axis]
            for start in range(0, last, stride[axis]):
                taps = (start - pad[0] + k * dilation[axis] for k in range(kernel[axis]))
                if not any(0 <= tap < size for tap in taps):
                    raise Refusal("one of its windows holds padding only", "pad less")
        return self._add(
            MaxPool,
            name,
            source,
            x,
            kernel=kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
        )

    def avg_pool(
        self,
        name: str,
        source: Source,
        x: str,
        kernel: Pair,
        stride: Pair,
        padding: Padding,
        *,
        ceil_mode: bool = False,
        count_padding: bool = True,
        divisor: int | None = None,
    ) -> str:
        """Add an average pool."""
        if not count_padding and padding != NONE and divisor is None:
            raise Refusal(
                "count_include_pad=False makes windows at the border divide by fewer pixels",
                "use count_include_pad=True or no padding",
            )
        if ceil_mode and _ceil_padding(self.shape(x), kernel, stride, padding, (1, 1)) != padding:
            raise Refusal(
                "ceil_mode makes windows at the border divide by fewer pixels than others",
                "use ceil_mode=False, or an input size that the stride divides",
            )
        _check_window(self.shape(x), kernel, stride, padding, (1, 1))
        divisor = kernel[0] * kernel[1] if divisor is None else int(divisor)
        if divisor < 1:
            raise Refusal(f"its divisor is {divisor}", "use a positive divisor_override")
        return self._add(
            AvgPool,
            name,
            source,
            x,
            kernel=kernel,
            stride=stride,
            padding=padding,
            divisor=divisor,
        )

    def adaptive_avg_pool(self, name: str, source: Source, x: str, size: Pair) -> str:
        """Add an adaptive average pool whose windows all have one size."""
        kernel = []
        for have, want in zip(self.shape(x)[1:], size, strict=True):
            if want < 1 or have % want:
                raise Refusal(
                    f"windows of an adaptive pool from {self.shape(x)[1:]} to {size} differ in "
                    "size",
                    "use AdaptiveAvgPool2d(1), or an output size that divides the input's",
                )
            kernel.append(have // want)
        pair = (kernel[0], kernel[1])
        return self.avg_pool(name, source, x, pair, pair, NONE)

    def flatten(self, name: str, source: Source, x: str) -> str:
        """Add a flatten to (N, features); nothing for what is a vector already."""
        return x if self.shape(x)[1:] == (1, 1) else self._add(Flatten, name, source, x)

    def add(self, name: str, source: Source, a: str, b: str) -> str:
        """Add the sum of two results."""
        if self.shape(a) != self.shape(b):
            raise Refusal(
                f"it adds {self.shape(a)} to {self.shape(b)}, which needs broadcasting",
                "add feature maps of one shape (project the shortcut with a 1x1 Conv2d)",
            )
        return self._add(Add, name, source, a, b)

    def finish(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Graph:
        """Return the verified graph, or raise `UnsupportedOperation` with every refusal."""
        self._check_uses(outputs)
        if self.refused:
            raise UnsupportedOperation(self.refused)
        graph = Graph(tuple(self.nodes.values()), inputs, outputs)
        return verify(graph)

    def _check_uses(self, outputs: tuple[str, ...]) -> None:
        """Refuse results nobody reads, and flattened maps that do not end in a Linear."""
        readers: dict[str, list[Node]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for name in node.inputs:
                readers[name].append(node)
        for name, node in self.nodes.items():
            if name in self.placeholders:
                continue
            if not readers[name] and name not in outputs and name not in self.used:
                if isinstance(node, Input):
                    refusal = Refusal("the input is never used", "remove it from forward()")
                else:
                    refusal = Refusal("its result is never used", "remove it from forward()")
                self.refuse(node.op, node.source, refusal)
            if isinstance(node, Input) and name in outputs:
                refusal = Refusal("the output is the input itself", "compute something")
                self.refuse(node.op, node.source, refusal)
            if isinstance(node, Flatten):
                self._check_flatten(node, readers, outputs)

    def _check_flatten(
        self, node: Node, readers: dict[str, list[Node]], outputs: tuple[str, ...]
    ) -> None:
        """Refuse a flatten of a map that meets anything but clamps, then a Linear."""
        shape = self.shape(node.inputs[0])
        if max(shape[1:]) > MAX_SPAN:
            refusal = Refusal(
                f"it flattens a map {shape}, more than {MAX_SPAN} positions high or wide",
                "pool the map to fewer positions first",
            )
            self.refuse(node.op, node.source, refusal)
            return
        pending = [node]
        while pending:
            current = pending.pop()
            wrong = [r for r in readers[current.name] if not isinstance(r, (Clamp, Linear))]
            pending += [r for r in readers[current.name] if isinstance(r, Clamp)]
            if isinstance(current, Flatten):
                norms = [r for r in wrong if isinstance(r, BatchNorm)]
                if all(isinstance(c, Linear) for r in norms for c in readers[r.name]):
                    wrong = [r for r in wrong if r not in norms or r.name in outputs]
            if wrong or current.name in outputs:
                what = f"read by {wrong[0].op}" if wrong else "an output of the network"
                refusal = Refusal(
                    f"it flattens a map {shape} and is {what}",
                    "a flattened map may only go (through ReLU) into Linear; pool it to 1x1 "
                    "first, or return the map",
                )
                self.refuse(node.op, node.source, refusal)
                return


def _check_window(
    shape: Shape, kernel: tuple[int, ...], stride: Pair, padding: Padding, dilation: Pair
) -> None:
    for axis in (0, 1):
        span = (kernel[axis] - 1) * dilation[axis] + 1
        if span > MAX_SPAN:
            raise Refusal(
                f"its kernel spans {span} positions, more than the {MAX_SPAN} of the machine",
                "use a smaller kernel or dilation",
            )
        if stride[axis] < 1 or dilation[axis] < 1 or kernel[axis] < 1:
            raise Refusal("kernel, stride and dilation must be 1 or more", "use positive ones")
        if min(padding[axis]) < 0:
            raise Refusal("its padding is negative", "crop the frames before the network")
        several = shape[axis + 1] + sum(padding[axis]) - span >= stride[axis]
        if stride[axis] > MAX_STRIDE and several:
            raise Refusal(
                f"its stride {stride[axis]} is more than the {MAX_STRIDE} of the machine",
                "use a smaller stride, or resize the frames before the network",
            )


def _ceil_padding(
    shape: Shape, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair
) -> Padding:
    """Return the padding with which floor gives torch's ceil_mode size.

    The last window must start inside the input or the padding before it.
    """
    result = []
    for axis in (0, 1):
        size, (before, after) = shape[axis + 1], padding[axis]
        span = (kernel[axis] - 1) * dilation[axis] + 1
        count = math.ceil((size + before + after - span) / stride[axis]) + 1
        if (count - 1) * stride[axis] >= size + before:
            count -= 1
        missing = (count - 1) * stride[axis] + span - size - before - after
        result.append((before, after + max(missing, 0)))
    return result[0], result[1]
