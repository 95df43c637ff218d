# SPDX-License-Identifier: Apache-2.0
"""The front end room: from a torch.nn.Module to a float graph, through torch.export."""

from __future__ import annotations

import copy
import math
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node as FxNode

from hwgen.frontend.builder import NONE, Builder, finite
from hwgen.frontend.errors import Refusal, Unsupported, UnsupportedOperation
from hwgen.ir import Graph, Source
from hwgen.ir.preprocess import given_preprocess
from hwgen.ir.types import Padding, Pair, Shape

_TORCH_FOLDER = os.path.dirname(os.path.abspath(torch.__file__))
_FRAME = re.compile(r'\s*File "(?P<file>.*)", line (?P<line>\d+), in .*')
_NO_MAP = "no unit of the accelerator computes it"
_INSTEAD: dict[str, tuple[str, str]] = {
    # operation: (reason, what to write instead)
    "softmax": (
        "softmax needs exponentials",
        "remove it and apply it to the logits on the host; argmax is unchanged",
    ),
    "log_softmax": (
        "log_softmax needs exponentials",
        "remove it and apply it to the logits on the host; argmax is unchanged",
    ),
    "argmax": ("it returns an index", "return the logits and take the argmax on the host"),
    "sigmoid": (
        "sigmoid is not piecewise linear",
        "at the end remove it and apply it on the host; inside use ReLU6 or Hardtanh",
    ),
    "tanh": ("tanh is not piecewise linear", "use Hardtanh"),
    "gelu": ("GELU is not piecewise linear", "use ReLU"),
    "silu": ("SiLU is not piecewise linear", "use ReLU or ReLU6 and fine-tune"),
    "hardswish": ("Hardswish multiplies two activations", "use ReLU6 and fine-tune"),
    "hardsigmoid": ("Hardsigmoid scales and shifts before it clamps", "use ReLU6"),
    "leaky_relu": ("it has two slopes", "use ReLU and fine-tune"),
    "prelu": ("it has two slopes", "use ReLU and fine-tune"),
    "elu": ("ELU needs exponentials", "use ReLU and fine-tune"),
    "cat": (
        "concatenation is not placed by the compiler",
        "add the branches instead, or compute them by one wider Conv2d",
    ),
    "mul": (_NO_MAP, "fold a constant factor into the weights of the layer before"),
    "div": (_NO_MAP, "fold a constant factor into the weights of the layer before"),
    "sub": (_NO_MAP, "negate the weights before one operand and add"),
    "matmul": ("it multiplies two activations or runs without a layer", "use nn.Linear"),
    "conv1d": ("it has one spatial axis", "use Conv2d with a kernel of height 1"),
    "conv3d": ("it has three spatial axes", "use Conv2d"),
    "conv_transpose2d": (_NO_MAP, "upsample the frames before the network, or use Conv2d"),
    "upsample_nearest2d": (_NO_MAP, "resize the frames before the network"),
    "layer_norm": ("it needs statistics of each image", "use BatchNorm2d"),
    "group_norm": ("it needs statistics of each image", "use BatchNorm2d"),
    "instance_norm": ("it needs statistics of each image", "use BatchNorm2d"),
    "permute": ("it moves channels in memory", "keep the (N, C, H, W) order"),
    "transpose": ("it moves channels in memory", "keep the (N, C, H, W) order"),
    "slice": ("parts of a tensor cannot be read", "compute what is needed by its own layer"),
    "select": ("parts of a tensor cannot be read", "compute what is needed by its own layer"),
    "max_pool2d_with_indices": ("it returns indices", "use return_indices=False"),
    "adaptive_max_pool2d": (_NO_MAP, "use MaxPool2d with an explicit kernel"),
}


def from_torch(module: torch.nn.Module, example_input: torch.Tensor) -> Graph:
    """Read a network into a float graph; `module` is not changed and need not be in eval mode.

    Parameters
    ----------
    module
        Computes one or several tensors from one tensor (N, C, H, W).
    example_input
        float32 (1, C, H, W); its values do not matter.

    Returns
    -------
    Graph
        With the mean and std that :func:`hwgen.compress.with_preprocess` gave the module.

    Raises
    ------
    UnsupportedOperation
        Listing every operation that the machine cannot run.
    ValueError
        For a wrong example input, or weights with NaN or infinity.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")
    if not isinstance(example_input, torch.Tensor):
        raise TypeError(f"example_input must be a tensor, not {type(example_input).__name__}")
    if (
        example_input.dim() != 4
        or example_input.shape[0] != 1
        or 0 in example_input.shape
        or example_input.dtype != torch.float32
    ):
        raise ValueError(
            f"example_input must be float32 (1, C, H, W), not {example_input.dtype} "
            f"{tuple(example_input.shape)}; try x[:1].float()"
        )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            finite(name, tensor.detach().cpu().float().numpy())
    graph = _Importer(_export(module, example_input)).run()
    return replace(graph, preprocess=given_preprocess(module))


def _export(module: torch.nn.Module, example_input: torch.Tensor) -> torch.export.ExportedProgram:
    model = copy.deepcopy(module).cpu().eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(model, (example_input.detach().cpu(),))
    except Exception as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"torch.export cannot trace it ({type(error).__name__}: {text[0]})"
        instead = (
            "write forward(self, x) with one tensor argument and without branches on tensor values"
        )
        name = type(module).__name__
        items = [Unsupported(f"{name}.forward", Source(), reason, instead)]
        raise UnsupportedOperation(items) from error


class _Importer:
    """Walks an exported program once, keeping what every fx node stands for."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.program = program
        self.builder = Builder()
        self.constants: dict[FxNode, tuple[str, np.ndarray[Any, Any]]] = {}
        self.cell: dict[FxNode, int] = {}  # fx nodes that are one tensor share a cell
        self.value: dict[int, tuple[str, Padding]] = {}  # cell -> (our node, zeros around it)
        self.unknown: set[FxNode] = set()  # refused, and without the shape of a feature map
        self.views: list[tuple[int, int]] = []  # cells that share memory but not shape

    def run(self) -> Graph:
        """Return the float graph."""
        inputs = self._placeholders()
        outputs: tuple[str, ...] = ()
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                outputs = self._outputs(node)
            elif node.op != "placeholder":
                self._refuse(node, Refusal(f"{node.op} is not a plain operation", "remove it"))
        return self.builder.finish(inputs, outputs)

    def _placeholders(self) -> tuple[str, ...]:
        signature = self.program.graph_signature
        specs = {s.arg.name: s for s in signature.input_specs}
        tensors = {**self.program.state_dict, **self.program.constants}
        inputs = []
        for node in self.program.graph.nodes:
            if node.op != "placeholder":
                continue
            spec = specs[node.name]
            if spec.kind == InputKind.USER_INPUT:
                name = self.builder.input(node.name, _shape(node) or (1, 1, 1))
                self._bind(node, name)
                inputs.append(name)
            elif spec.target in tensors and isinstance(tensors[spec.target], torch.Tensor):
                array = tensors[spec.target].detach().cpu().numpy()
                self.constants[node] = (str(spec.target), array)
        for out in signature.output_specs:
            if out.kind != OutputKind.USER_OUTPUT:
                item = Refusal(
                    f"it changes its own state {out.target!r} while it runs",
                    "keep forward() free of side effects",
                )
                self.builder.refuse(str(out.kind.name).lower(), Source(), item)
        return tuple(inputs)

    def _outputs(self, node: FxNode) -> tuple[str, ...]:
        names = []
        kinds = [s.kind for s in self.program.graph_signature.output_specs]
        for kind, item in zip(kinds, node.args[0], strict=True):  # type: ignore[arg-type]
            if kind != OutputKind.USER_OUTPUT or item in self.unknown:
                continue
            try:
                if not isinstance(item, FxNode) or item not in self.cell:
                    raise Refusal("an output is a constant", "return only computed tensors")
                names.append(self._read(item))
            except Refusal as refusal:
                self._refuse(item if isinstance(item, FxNode) else node, refusal, "output")
        return tuple(names)

    # what an fx node stands for

    def _bind(self, node: FxNode, name: str, padding: Padding = NONE) -> None:
        self.cell[node] = len(self.value)
        self.value[self.cell[node]] = (name, padding)

    def _read(self, item: Any) -> str:
        """Our name of an fx argument, which must be an unpadded activation."""
        name, padding = self._read_padded(item)
        if padding != NONE:
            raise Refusal(
                "it reads a tensor padded by F.pad or ZeroPad2d",
                "pad in front of Conv2d, MaxPool2d after ReLU, or AvgPool2d only; better, use "
                "their own padding",
            )
        return name

    def _read_padded(self, item: Any) -> tuple[str, Padding]:
        if not isinstance(item, FxNode):
            raise Refusal(f"an operand is the constant {item!r}", "fold it into a bias or weights")
        if item in self.constants:
            raise Refusal(
                f"an operand is the constant {self.constants[item][0]!r}",
                "fold it into a bias or weights",
            )
        if item not in self.cell:
            raise Refusal(f"its operand {item.name!r} is not a feature map", "use plain tensors")
        return self.value[self.cell[item]]

    def _constant(self, item: Any, what: str) -> np.ndarray[Any, Any]:
        if item not in self.constants:
            raise Refusal(f"its {what} is computed at run time", f"make the {what} a parameter")
        name, array = self.constants[item]
        return finite(name, array.astype(np.float64))

    def _maybe_constant(self, item: Any, what: str) -> np.ndarray[Any, Any] | None:
        return None if item is None else self._constant(item, what)

    # operations

    def _call(self, node: FxNode) -> None:
        operation = _operation(node)
        if operation in _IGNORED:
            return
        if any(item in self.unknown for item in node.all_input_nodes):
            self.unknown.add(node)  # what made the operand was refused, and that says it all
            return
        handler = _HANDLERS.get(operation.removesuffix("_"))
        try:
            if handler is None:
                if any(a in self.constants for a in node.all_input_nodes) and not any(
                    a in self.cell for a in node.all_input_nodes
                ):
                    raise Refusal("it computes on weights at run time", "do that before compiling")
                reason, instead = _INSTEAD.get(
                    operation.removesuffix("_"),
                    (_NO_MAP, "use Conv2d, BatchNorm, ReLU, pooling, Linear and residual adds"),
                )
                raise Refusal(reason, instead)
            before = dict(self.cell)
            arguments = _arguments(node)
            handler(self, node, arguments)
            if operation.endswith("_"):
                self._mutate(node, before)
        except Refusal as refusal:
            self._refuse(node, refusal)
            cells = (self.cell[item] for item in node.all_input_nodes if item in self.cell)
            self.builder.used.update(self.value[cell][0] for cell in cells)
            shape = _shape(node)
            if shape is None:
                self.unknown.add(node)
            else:
                self._bind(node, self.builder.placeholder(node.name, shape))

    def _mutate(self, node: FxNode, before: dict[FxNode, int]) -> None:
        """Let the other names of an operand changed in place see the new value."""
        old = before[node.all_input_nodes[0]]
        for pair in self.views:
            if old in pair:
                raise Refusal("it changes a view in place", "use the form that is not in place")
        for other, cell in before.items():
            if cell == old:
                self.cell[other] = self.cell[node]

    def _refuse(self, node: FxNode, refusal: Refusal, operation: str | None = None) -> None:
        name = operation or f"aten.{_operation(node)}"
        self.builder.refuse(name, _source(node), refusal)

    def conv2d(self, node: FxNode, a: dict[str, Any]) -> None:
        """Add a convolution, with any zeros put around its input before."""
        x, around = self._read_padded(a["input"])
        weight = self._constant(a["weight"], "weight")
        bias = self._maybe_constant(a["bias"], "bias")
        stride, dilation = _pair(a["stride"]), _pair(a["dilation"])
        padding = a["padding"]
        if isinstance(padding, str):
            total = [0, 0]
            if padding == "same":
                total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            own = [(t // 2, t - t // 2) for t in total]
        else:
            own = [(p, p) for p in _pair(padding)]
        both = _sum_padding((own[0], own[1]), around)
        self._bind(
            node,
            self.builder.conv(
                node.name,
                _source(node),
                x,
                weight,
                bias,
                stride,
                both,
                dilation,
                int(a["groups"]),
            ),
        )

    def batch_norm(self, node: FxNode, a: dict[str, Any]) -> None:
        """Add a batch normalisation."""
        if a["training"] or a["running_mean"] is None:
            raise Refusal(
                "it normalises with the statistics of the batch",
                "use track_running_stats=True and training=self.training",
            )
        name = self.builder.batch_norm(
            node.name,
            _source(node),
            self._read(a["input"]),
            self._constant(a["running_mean"], "running mean"),
            self._constant(a["running_var"], "running variance"),
            self._maybe_constant(a["weight"], "weight"),
            self._maybe_constant(a["bias"], "bias"),
            a["eps"],
        )
        self._bind(node, name)

    def clamp(self, node: FxNode, a: dict[str, Any]) -> None:
        """Add a clamp for relu, relu6, hardtanh, clamp, clamp_min and clamp_max."""
        operation = _operation(node).removesuffix("_")
        lo = {"relu": 0.0, "relu6": 0.0}.get(operation, a.get("min_val", a.get("min")))
        hi = {"relu": math.inf, "relu6": 6.0}.get(operation, a.get("max_val", a.get("max")))
        if isinstance(lo, FxNode) or isinstance(hi, FxNode):
            raise Refusal("its bounds are tensors", "use numbers")
        lo, hi = -math.inf if lo is None else lo, math.inf if hi is None else hi
        x, around = self._read_padded(a.get("self", a.get("input")))
        if around != NONE and not lo <= 0 <= hi:
            raise Refusal("it changes the zeros of F.pad", "pad after it")
        self._bind(node, self.builder.clamp(node.name, _source(node), x, lo, hi), around)

    def linear(self, node: FxNode, a: dict[str, Any]) -> None:
        """Add a fully connected layer."""
        x = self._read(a["input"])
        if len(_val(a["input"]).shape) != 2:
            raise Refusal(
                f"it runs along the last axis of {tuple(_val(a['input']).shape)}",
                "flatten its input to (N, features) first, or use a 1x1 Conv2d",
            )
        weight = self._constant(a["weight"], "weight")
        bias = self._maybe_constant(a["bias"], "bias")
        self._bind(node, self.builder.linear(node.name, _source(node), x, weight, bias))

    def max_pool2d(self, node: FxNode, a: dict[str, Any]) -> None:
        """Add a max pool."""
        kernel = _pair(a["kernel_size"])
        pad = _pair(a["padding"])
        name = self.builder.max_pool(
            node.name,
            _source(node),
            self._read(a["self"]),
            kernel,
            _pair(a["stride"] or kernel),
            ((pad[0], pad[0]), (pad[1], pad[1])),
            _pair(a["dilation"]),
            bool(a["ceil_mode"]),
        )
        self._bind(node, name)

    def avg_pool2d(self, node: FxNode, a: dict[str, Any]) -> None:
        """Add an average pool."""
        x, around = self._read_padded(a["self"])
        kernel = _pair(a["kernel_size"])
        pad = _pair(a["padding"])
        own: Padding = ((pad[0], pad[0]), (pad[1], pad[1]))
        if around != NONE and (a["ceil_mode"] or (own != NONE and not a["count_include_pad"])):
            raise Refusal("it combines F.pad with its own border rules", "use only one of them")
        name = self.builder.avg_pool(
            node.name,
            _source(node),
            x,
            kernel,
            _pair(a["stride"] or kernel),
            _sum_padding(own, around),
            ceil_mode=bool(a["ceil_mode"]),
            count_padding=bool(a["count_include_pad"]) or around != NONE,
            divisor=a["divisor_override"],
        )
        self._bind(node, name)

    def adaptive_avg_pool2d(self, node: FxNode, a: dict[str, Any]) -> None:
        """Add an adaptive average pool."""
        x = self._read(a["self"])
        shape = self.builder.shape(x)
        size = [s if w is None else w for s, w in zip(shape[1:], a["output_size"], strict=True)]
        name = self.builder.adaptive_avg_pool(node.name, _source(node), x, (size[0], size[1]))
        self._bind(node, name)

    def mean(self, node: FxNode, a: dict[str, Any]) -> None:
        """Add a mean over H and W as a global average pool."""
        x = self._read(a["self"])
        rank = len(_val(a["self"]).shape)
        axes = sorted(d % rank for d in a.get("dim") or range(rank))
        if rank != 4 or axes != [2, 3] or a.get("dtype") not in (None, torch.float32):
            raise Refusal(f"it takes the mean over the axes {axes}", "use the mean over (2, 3)")
        self._bind(node, self.builder.adaptive_avg_pool(node.name, _source(node), x, (1, 1)))

    def reshape(self, node: FxNode, a: dict[str, Any]) -> None:
        """Add a flatten, or nothing where a view changes no element's channel."""
        item = a["self"]
        x = self._read(item)
        shape, want = self.builder.shape(x), tuple(_val(node).shape)
        trimmed = tuple(want[1:]) + (1,) * (4 - len(want))
        if want[:1] == (1,) and want[1:] == (math.prod(shape),):
            name = self.builder.flatten(node.name, _source(node), x)
        elif want[:1] == (1,) and len(want) <= 4 and trimmed == shape:
            name = x
        else:
            raise Refusal(
                f"it makes {want} of {tuple(_val(item).shape)}",
                "only flattening to (N, features) is possible",
            )
        self._bind(node, name)
        self.views.append((self.cell[item], self.cell[node]))

    def identity(self, node: FxNode, a: dict[str, Any]) -> None:
        """Let the result be the operand."""
        item: FxNode = node.all_input_nodes[0]
        if a.get("train") or a.get("training"):
            raise Refusal(
                "it drops activations in evaluation as well",
                "pass training=self.training, or use nn.Dropout",
            )
        if _val(node).dtype != torch.float32:
            raise Refusal(f"it converts to {_val(node).dtype}", "stay in float32")
        self._read_padded(item)
        self.cell[node] = self.cell[item]
        if _operation(node) in ("clone", "contiguous"):  # a copy has its own memory
            self._bind(node, *self.value[self.cell[item]])

    def add(self, node: FxNode, a: dict[str, Any]) -> None:
        """Add a residual."""
        if a.get("alpha", 1) != 1:
            raise Refusal(f"it scales an operand by {a['alpha']}", "fold that into weights")
        first, second = self._read(a["self"]), self._read(a["other"])
        self._bind(node, self.builder.add(node.name, _source(node), first, second))

    def pad(self, node: FxNode, a: dict[str, Any]) -> None:
        """Remember zeros around a tensor for the operation that reads it."""
        x, around = self._read_padded(a["self"])
        amounts = list(a["pad"])
        if a.get("mode", "constant") != "constant" or (a.get("value") or 0) != 0:
            mode = a.get("mode", "constant")
            text = f"padding_mode {mode!r}" if mode != "constant" else f"value {a['value']}"
            raise Refusal(f"it pads with {text}", "pad with zeros (padding_mode='zeros')")
        if any(amounts[4:]) or min(amounts) < 0:
            raise Refusal(f"it pads by {amounts}", "pad H and W by 0 or more")
        amounts += [0] * (4 - len(amounts))
        added = ((amounts[2], amounts[3]), (amounts[0], amounts[1]))
        self._bind(node, x, _sum_padding(around, added))


_IGNORED = {"_assert_tensor_metadata", "_guards_fn"}
_HANDLERS: dict[str, Callable[[_Importer, FxNode, dict[str, Any]], None]] = {
    "conv2d": _Importer.conv2d,
    "batch_norm": _Importer.batch_norm,
    **dict.fromkeys(
        ("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "clip"), _Importer.clamp
    ),
    "linear": _Importer.linear,
    "max_pool2d": _Importer.max_pool2d,
    "avg_pool2d": _Importer.avg_pool2d,
    "adaptive_avg_pool2d": _Importer.adaptive_avg_pool2d,
    "mean": _Importer.mean,
    **dict.fromkeys(
        ("flatten", "view", "reshape", "squeeze", "unsqueeze", "_unsafe_view"), _Importer.reshape
    ),
    **dict.fromkeys(
        (
            "dropout",
            "feature_dropout",
            "alpha_dropout",
            "feature_alpha_dropout",
            "detach",
            "alias",
            "clone",
            "contiguous",
            "to",
            "_to_copy",
            "lift_fresh_copy",
        ),
        _Importer.identity,
    ),
    "add": _Importer.add,
    "pad": _Importer.pad,
    "constant_pad_nd": _Importer.pad,
}


def _operation(node: FxNode) -> str:
    """Name of an fx node's operation without its overload, such as ``relu_``."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[1]
    return str(getattr(target, "__name__", target))


def _arguments(node: FxNode) -> dict[str, Any]:
    """Return every argument by name, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return dict(enumerate(node.args))  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            found[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        else:
            found[argument.name] = argument.default_value
    return found


def _val(node: FxNode) -> torch.Tensor:
    return node.meta["val"]


def _shape(node: FxNode) -> Shape | None:
    """(C, H, W) of a tensor with batch 1; None for anything else."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not 2 <= value.dim() <= 4 or value.shape[0] != 1:
        return None
    shape = (*map(int, value.shape[1:]), 1, 1)
    return shape[0], shape[1], shape[2]


def _pair(value: Any) -> Pair:
    """Return torch's int or list of one or two as (y, x)."""
    if isinstance(value, int):
        return value, value
    items = [int(v) for v in value]
    return (items[0], items[0]) if len(items) == 1 else (items[0], items[1])


def _sum_padding(a: Padding, b: Padding) -> Padding:
    rows, columns = ((x[0] + y[0], x[1] + y[1]) for x, y in zip(a, b, strict=True))
    return rows, columns


def _source(node: FxNode) -> Source:
    """Return the module path, and the innermost source line that is not torch's own."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    module = stack[-1][0] if stack else ""
    lines = (node.stack_trace or "").splitlines()
    found = ""
    for position, text in enumerate(lines):
        frame = _FRAME.match(text)
        if frame is None or frame["file"].startswith(_TORCH_FOLDER):
            continue
        code = lines[position + 1].strip() if position + 1 < len(lines) else ""
        found = f"{frame['file']}:{frame['line']}: {code}"
    return Source(module, found)
