# SPDX-License-Identifier: Apache-2.0
"""The front end room: from an ONNX file to a float graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from os import PathLike, fspath
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference

from hwgen.frontend.builder import NONE, Builder, finite
from hwgen.frontend.errors import Refusal
from hwgen.ir import Graph, Source
from hwgen.ir.types import Padding, Pair, Shape

_SOFTMAX = (
    "it needs exponentials",
    "remove it and apply it to the logits on the host; argmax is unchanged",
)
_INSTEAD = {
    "Softmax": _SOFTMAX,
    "LogSoftmax": _SOFTMAX,
    "Sigmoid": ("it is not piecewise linear", "use Relu or Clip"),
    "LeakyRelu": ("it has two slopes", "use Relu and fine-tune"),
    "PRelu": ("it has two slopes", "use Relu and fine-tune"),
    "Concat": ("concatenation is not placed by the compiler", "add the branches instead"),
    "QuantizeLinear": ("the network is quantized already", "export the float network"),
    "DequantizeLinear": ("the network is quantized already", "export the float network"),
}


def from_onnx(path: str | PathLike[str]) -> Graph:
    """Read an ONNX file into a float graph.

    The input must be one float32 tensor (1, C, H, W); an unnamed or symbolic batch counts as 1.
    Attributes that this importer does not know are refused, not ignored.

    Raises
    ------
    UnsupportedOperation
        Listing every operation that the machine cannot run.
    ValueError
        For a file that is no valid ONNX network, a wrong input, or weights with NaN or infinity.
    """
    try:
        model = onnx.load(fspath(path))
        onnx.checker.check_model(model)
    except FileNotFoundError:
        raise
    except Exception as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{fspath(path)} must be a valid ONNX file: {text[0]}") from error
    return _Importer(model).run()


class _Attributes:
    """A node's attributes, each of which must be asked for."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self._values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

    def take(self, name: str, default: Any = None) -> Any:
        """Return and remove an attribute."""
        value = self._values.pop(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def finish(self) -> None:
        """Refuse attributes nobody asked for."""
        if self._values:
            raise Refusal(f"its attribute {next(iter(self._values))!r} is not known", "remove it")


class _Importer:
    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        constants = {t.name for t in graph.initializer}
        inputs = [i for i in graph.input if i.name not in constants]
        if len(inputs) != 1:
            raise ValueError(f"the network must have one input, not {[i.name for i in inputs]}")
        tensor = inputs[0].type.tensor_type
        sizes = [d.dim_value for d in tensor.shape.dim]
        if len(sizes) != 4 or 0 in sizes[1:] or tensor.elem_type != onnx.TensorProto.FLOAT:
            raise ValueError(
                f"the input {inputs[0].name!r} must be float32 (1, C, H, W) of fixed C, H and W, "
                f"not {sizes} (0 stands for a symbolic size)"
            )
        tensor.shape.dim[0].ClearField("dim_param")
        tensor.shape.dim[0].dim_value = 1
        self.graph = shape_inference.infer_shapes(model).graph
        self.builder = Builder()
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.names = {inputs[0].name: self.builder.input(inputs[0].name, _shape3(sizes))}
        self.input = inputs[0].name
        self.ranks = {
            v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in [*self.graph.input, *self.graph.value_info, *self.graph.output]
        }

    def run(self) -> Graph:
        """Return the float graph."""
        lost: set[str] = set()
        for node in self.graph.node:
            if lost & set(node.input):  # what made the operand was refused
                lost.update(node.output)
                continue
            source = Source(node.name or node.output[0])
            attributes = _Attributes(node)
            try:
                handler = _HANDLERS.get(node.op_type)
                if handler is None or node.domain not in ("", "ai.onnx"):
                    raise Refusal(
                        *_INSTEAD.get(
                            node.op_type,
                            (
                                "no unit of the accelerator computes it",
                                "use Conv, BatchNormalization, Relu, pooling, Gemm and Add",
                            ),
                        )
                    )
                handler(self, node, attributes, source)
                attributes.finish()
            except Refusal as refusal:
                self.builder.refuse(node.op_type, source, refusal)
                self.builder.used.update(self.names[i] for i in node.input if i in self.names)
                for name in node.output:
                    sizes = self.ranks.get(name, [])
                    if 2 <= len(sizes) <= 4 and 0 not in sizes[1:]:
                        self.names[name] = self.builder.placeholder(name, _shape3(sizes))
                    else:
                        lost.add(name)
        outputs = []
        for output in self.graph.output:
            if output.name in self.names:
                outputs.append(self.names[output.name])
            elif output.name not in lost:
                constant = Refusal("an output is a constant", "return only computed tensors")
                self.builder.refuse("output", Source(output.name), constant)
        return self.builder.finish((self.input,), tuple(outputs))

    def read(self, name: str) -> str:
        """Return our name of an activation."""
        if name not in self.names:
            raise Refusal(f"its operand {name!r} is a constant", "fold it into weights or a bias")
        return self.names[name]

    def constant(self, node: onnx.NodeProto, index: int) -> NDArray[Any] | None:
        """Return an operand that must be a constant, or None where it is left out."""
        if index >= len(node.input) or not node.input[index]:
            return None
        name = node.input[index]
        if name not in self.constants:
            raise Refusal(f"its operand {name!r} is computed at run time", "make it a constant")
        array = self.constants[name]
        return finite(name, array) if array.dtype.kind == "f" else array

    def required(self, node: onnx.NodeProto, index: int) -> NDArray[Any]:
        """Return a constant operand that may not be left out."""
        array = self.constant(node, index)
        if array is None:
            raise Refusal(f"its operand {index} is missing", "export the network again")
        return array

    def vector(self, name: str) -> bool:
        """Say whether a tensor is (N, features) and not a map."""
        return len(self.ranks.get(name, [])) == 2

    # operations

    def conv(self, node: onnx.NodeProto, a: _Attributes, source: Source) -> None:
        """Conv."""
        weight = self.required(node, 1)
        if weight.ndim != 4:
            raise Refusal(f"its kernel has {weight.ndim - 2} axes", "use 2-D convolutions")
        a.take("kernel_shape")
        stride, dilation = _pair(a.take("strides")), _pair(a.take("dilations"))
        x = self.read(node.input[0])
        kernel = (weight.shape[2], weight.shape[3])
        padding = _padding(a, self.builder.shape(x), kernel, stride, dilation)
        self.names[node.output[0]] = self.builder.conv(
            node.output[0],
            source,
            x,
            weight,
            self.constant(node, 2),
            stride,
            padding,
            dilation,
            int(a.take("group", 1)),
        )

    def batch_norm(self, node: onnx.NodeProto, a: _Attributes, source: Source) -> None:
        """BatchNormalization."""
        a.take("momentum")
        if a.take("training_mode", 0) or len(node.output) > 1:
            raise Refusal("it is in training mode", "export the network in evaluation mode")
        self.names[node.output[0]] = self.builder.batch_norm(
            node.output[0],
            source,
            self.read(node.input[0]),
            self.required(node, 3),
            self.required(node, 4),
            self.required(node, 1),
            self.required(node, 2),
            a.take("epsilon", 1e-5),
        )

    def clip(self, node: onnx.NodeProto, a: _Attributes, source: Source) -> None:
        """Relu and Clip."""
        lo, hi = (0.0, math.inf) if node.op_type == "Relu" else (-math.inf, math.inf)
        if node.op_type == "Clip":
            first, second = self.constant(node, 1), self.constant(node, 2)
            lo = float(a.take("min", lo)) if first is None else float(first)
            hi = float(a.take("max", hi)) if second is None else float(second)
        x = self.read(node.input[0])
        self.names[node.output[0]] = self.builder.clamp(node.output[0], source, x, lo, hi)

    def gemm(self, node: onnx.NodeProto, a: _Attributes, source: Source) -> None:
        """Gemm."""
        if a.take("transA", 0):
            raise Refusal("it transposes its input", "use transA=0")
        weight = self.required(node, 1) * float(a.take("alpha", 1.0))
        if not a.take("transB", 0):
            weight = weight.T
        beta, bias = float(a.take("beta", 1.0)), self.constant(node, 2)
        if bias is not None:
            bias = np.broadcast_to(bias.reshape(-1) * beta, weight.shape[:1])
        x = self.read(node.input[0])
        self.names[node.output[0]] = self.builder.linear(node.output[0], source, x, weight, bias)

    def matmul(self, node: onnx.NodeProto, a: _Attributes, source: Source) -> None:
        """MatMul of (N, features) by a constant matrix."""
        weight = self.required(node, 1)
        if weight.ndim != 2 or not self.vector(node.input[0]):
            raise Refusal("it does not multiply (N, features) by a matrix", "use Gemm")
        x = self.read(node.input[0])
        self.names[node.output[0]] = self.builder.linear(node.output[0], source, x, weight.T, None)

    def add(self, node: onnx.NodeProto, a: _Attributes, source: Source) -> None:
        """Add of two activations, or of a bias a channel."""
        constant = [i for i in (0, 1) if node.input[i] in self.constants]
        if not constant:
            first, second = self.read(node.input[0]), self.read(node.input[1])
            self.names[node.output[0]] = self.builder.add(node.output[0], source, first, second)
            return
        x = self.read(node.input[1 - constant[0]])
        value = self.required(node, constant[0])
        rank, channels = len(self.ranks[node.output[0]]), self.builder.shape(x)[0]
        wanted = (channels,) if rank == 2 else (channels, 1, 1)
        trimmed = value[0] if value.ndim == rank and value.shape[0] == 1 else value
        if trimmed.shape != wanted:
            raise Refusal(f"it adds a constant {value.shape}", f"add a constant {wanted}")
        zeros = np.zeros(channels, np.float32)
        # A bias is a normalisation that only shifts, and folds like one.
        self.names[node.output[0]] = self.builder.batch_norm(
            node.output[0], source, x, zeros, zeros + 1, None, trimmed.reshape(-1), 0.0
        )

    def max_pool(self, node: onnx.NodeProto, a: _Attributes, source: Source) -> None:
        """MaxPool."""
        if len(node.output) > 1:
            raise Refusal("it returns indices", "return the values only")
        a.take("storage_order")
        kernel, stride = _pair(a.take("kernel_shape")), _pair(a.take("strides"))
        dilation = _pair(a.take("dilations"))
        x = self.read(node.input[0])
        padding = _padding(a, self.builder.shape(x), kernel, stride, dilation)
        self.names[node.output[0]] = self.builder.max_pool(
            node.output[0],
            source,
            x,
            kernel,
            stride,
            padding,
            dilation,
            bool(a.take("ceil_mode", 0)),
        )

    def avg_pool(self, node: onnx.NodeProto, a: _Attributes, source: Source) -> None:
        """AveragePool."""
        kernel, stride = _pair(a.take("kernel_shape")), _pair(a.take("strides"))
        if _pair(a.take("dilations")) != (1, 1):
            raise Refusal("it is dilated", "use an average pool without dilation")
        x = self.read(node.input[0])
        padding = _padding(a, self.builder.shape(x), kernel, stride, (1, 1))
        self.names[node.output[0]] = self.builder.avg_pool(
            node.output[0],
            source,
            x,
            kernel,
            stride,
            padding,
            ceil_mode=bool(a.take("ceil_mode", 0)),
            count_padding=bool(a.take("count_include_pad", 0)),
        )

    def global_avg_pool(self, node: onnx.NodeProto, a: _Attributes, source: Source) -> None:
        """GlobalAveragePool, and ReduceMean over H and W."""
        if node.op_type == "ReduceMean":
            axes = a.take("axes")
            if axes is None:
                axes = self.required(node, 1)
            axes = sorted(int(v) % 4 for v in axes)
            a.take("keepdims")
            a.take("noop_with_empty_axes")
            if axes != [2, 3] or self.vector(node.input[0]):
                raise Refusal(f"it takes the mean over the axes {axes}", "use the axes (2, 3)")
        x = self.read(node.input[0])
        self.names[node.output[0]] = self.builder.adaptive_avg_pool(
            node.output[0], source, x, (1, 1)
        )

    def flatten(self, node: onnx.NodeProto, a: _Attributes, source: Source) -> None:
        """Flatten, Reshape, Squeeze to (N, features)."""
        x = self.read(node.input[0])
        features = math.prod(self.builder.shape(x))
        if node.op_type == "Flatten":
            axis = a.take("axis", 1) % max(len(self.ranks.get(node.input[0], [])), 1)
            sizes = [1, features] if axis == 1 else []
        elif node.op_type == "Reshape":
            a.take("allowzero")
            wanted = [int(v) for v in self.required(node, 1)]
            batch = 1 if wanted[:1] == [0] else wanted[0]
            sizes = [batch, *(features if v == -1 else v for v in wanted[1:])]
            if wanted[:1] == [-1] and wanted[1:] == [features]:
                sizes = [1, features]
        else:
            a.take("axes")
            sizes = self.ranks.get(node.output[0], [])
        if sizes != [1, features]:
            raise Refusal(f"it makes {sizes} of {self.builder.shape(x)}", "flatten to (N, -1)")
        self.names[node.output[0]] = self.builder.flatten(node.output[0], source, x)

    def identity(self, node: onnx.NodeProto, a: _Attributes, source: Source) -> None:
        """Identity and Dropout outside training."""
        a.take("ratio")
        a.take("seed")
        training = self.constant(node, 2) if node.op_type == "Dropout" else None
        if training is not None and bool(training):
            raise Refusal("it is in training mode", "export the network in evaluation mode")
        if node.input[0] in self.constants:
            self.constants[node.output[0]] = self.constants[node.input[0]]
        else:
            self.names[node.output[0]] = self.read(node.input[0])

    def constant_node(self, node: onnx.NodeProto, a: _Attributes, source: Source) -> None:
        """Constant."""
        value = a.take("value")
        if value is None:
            raise Refusal("it is no tensor", "export the constant as a tensor")
        self.constants[node.output[0]] = numpy_helper.to_array(value)


_HANDLERS: dict[str, Callable[[_Importer, onnx.NodeProto, _Attributes, Source], None]] = {
    "Conv": _Importer.conv,
    "BatchNormalization": _Importer.batch_norm,
    "Relu": _Importer.clip,
    "Clip": _Importer.clip,
    "Gemm": _Importer.gemm,
    "MatMul": _Importer.matmul,
    "Add": _Importer.add,
    "MaxPool": _Importer.max_pool,
    "AveragePool": _Importer.avg_pool,
    "GlobalAveragePool": _Importer.global_avg_pool,
    "ReduceMean": _Importer.global_avg_pool,
    "Flatten": _Importer.flatten,
    "Reshape": _Importer.flatten,
    "Squeeze": _Importer.flatten,
    "Dropout": _Importer.identity,
    "Identity": _Importer.identity,
    "Constant": _Importer.constant_node,
}


def _shape3(sizes: list[int]) -> Shape:
    padded = (*sizes[1:], 1, 1)
    return padded[0], padded[1], padded[2]


def _pair(value: Any) -> Pair:
    """Return two values (y, x); ONNX leaves out what is (1, 1)."""
    if value is None:
        return 1, 1
    if len(value) != 2:
        raise Refusal(f"it slides along {len(value)} axes", "use 2-D operations")
    return int(value[0]), int(value[1])


def _padding(a: _Attributes, shape: Shape, kernel: Pair, stride: Pair, dilation: Pair) -> Padding:
    """Take ``pads`` and ``auto_pad``."""
    pads, auto = a.take("pads"), a.take("auto_pad", "NOTSET")
    if auto == "VALID":
        return NONE
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        sides = []
        for axis in (0, 1):
            count = math.ceil(shape[axis + 1] / stride[axis])
            span = (kernel[axis] - 1) * dilation[axis] + 1
            total = max((count - 1) * stride[axis] + span - shape[axis + 1], 0)
            small, large = total // 2, total - total // 2
            sides.append((small, large) if auto == "SAME_UPPER" else (large, small))
        return sides[0], sides[1]
    if auto != "NOTSET":
        raise Refusal(f"auto_pad {auto!r} is not known", "write pads")
    top, left, bottom, right = (int(v) for v in pads or (0, 0, 0, 0))
    return (top, bottom), (left, right)
