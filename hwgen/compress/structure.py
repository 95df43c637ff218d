# SPDX-License-Identifier: Apache-2.0
"""Compression: what is tied to what in a network, found by tracing it.

A *space* is a set of channels that must be trimmed and permuted together: everything from the
layers that write them, through batch norms, activations, pooling and residual additions, to the
layers that read them. Spaces are found by torch.fx and union-find, never by names.
"""

from __future__ import annotations

import copy
import math
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional

from hwgen.compress.evaluation import evaluating
from hwgen.compress.identity import tensors
from hwgen.compress.inputs import device_of
from hwgen.compress.training import MASK


class UnsupportedStructure(ValueError):
    """The network holds operations whose channels cannot be followed; the message lists all."""


_OWNERS = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
_ACTIVATION_MODULES = (nn.ReLU, nn.ReLU6)
_TRANSPARENT_MODULES = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)
_ACTIVATIONS: tuple[Any, ...] = (functional.relu, functional.relu6, torch.relu, "relu", "relu_")
_POOLS: tuple[Any, ...] = (functional.max_pool2d, functional.avg_pool2d, torch.max_pool2d)
_TRANSPARENT: tuple[Any, ...] = (
    *_POOLS,
    functional.adaptive_avg_pool2d,
    functional.dropout,
    "contiguous",
)
_ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_FLATTENS: tuple[Any, ...] = (torch.flatten, "flatten")
_VIEWS: tuple[Any, ...] = ("view", "reshape", torch.reshape)
_SQUEEZES: tuple[Any, ...] = ("squeeze", torch.squeeze)


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer.

    Attributes
    ----------
    name
        Its path in the model.
    kind
        "conv", "depthwise", "grouped" or "linear".
    inputs, outputs
        Identifiers of the spaces it reads and writes (equal if depthwise).
    repeat
        Input features a channel of the input space: above 1 behind a flatten.
    batch_norm
        Path of the batch norm that alone reads its output, if any.
    output_shape, pixels
        Shape of the output without the batch axis, and its pixels (1 if linear).
    """

    name: str
    kind: str
    inputs: int
    outputs: int
    repeat: int
    batch_norm: str | None
    output_shape: tuple[int, ...]
    pixels: int


@dataclass
class Space:
    """Channels that are trimmed and permuted together.

    ``frozen`` spaces (the picture's, the answer's, those of grouped convolutions) are not trimmed.
    ``observed`` names the graph nodes at which relevance is measured: activations, or where there
    are none, whatever a consumer reads.
    """

    identifier: int
    channels: int
    producers: list[str] = field(default_factory=list)
    depthwise: list[str] = field(default_factory=list)
    batch_norms: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    observed: list[str] = field(default_factory=list)
    frozen: bool = False


@dataclass(frozen=True)
class Pool:
    """One pooling: output pixels, channels, and window positions of each output."""

    name: str
    output_shape: tuple[int, ...]
    pixels: int
    channels: int
    window: int
    space: int


@dataclass(frozen=True)
class Structure:
    """The layers of a network in the order they run, its spaces and poolings, and its graph."""

    layers: Mapping[str, Layer]
    spaces: Mapping[int, Space]
    pools: tuple[Pool, ...]
    graph: fx.GraphModule

    def space_of(self, layer: str) -> Space:
        """Return the space that a layer writes."""
        return self.spaces[self.layers[layer].outputs]


def discover(model: nn.Module, input_shape: tuple[int, int, int]) -> Structure:
    """Trace a model and find its spaces.

    Parameters
    ----------
    model
        Not changed. Control flow that depends on data cannot be traced.
    input_shape
        (channels, height, width) of one input.

    Raises
    ------
    UnsupportedStructure
        Listing every operation that is not understood.
    ValueError
        If weights are not finite: nothing that is ranked by them would be in any order.
    """
    bad = [name for name, value in tensors(model).items() if not value.isfinite().all()]
    if bad:
        raise ValueError(
            f"weights must be finite, but {', '.join(map(repr, bad[:3]))} "
            f"{'are' if len(bad) > 1 else 'is'} not; try training with a smaller learning rate"
        )
    owners: dict[int, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        first = owners.setdefault(id(weight), name)
        if first != name and name.rpartition(".")[0] not in _aliases(model, first):
            raise UnsupportedStructure(
                f"weights must be a layer's own, but {name!r} is {first!r}; try a copy of them"
            )
    for name, module in model.named_modules():
        if isinstance(module, _OWNERS) and "weight" not in module._parameters:
            raise UnsupportedStructure(
                f"weights must be a layer's own parameters, but that of {name!r} is computed each "
                "time; try torch.nn.utils.parametrize.remove_parametrizations, "
                "torch.nn.utils.remove_weight_norm or torch.nn.utils.prune.remove first"
            )
    types = {weight.dtype for weight in model.parameters()}
    if types - {torch.float32}:
        raise UnsupportedStructure(
            f"weights must be float32, not {', '.join(sorted(map(str, types)))}; try model.float()"
        )
    with evaluating(model):
        try:
            traced = fx.symbolic_trace(model)
        except Exception as error:
            raise UnsupportedStructure(
                f"the model must be traceable by torch.fx: {error}; try removing control flow "
                "that depends on the data"
            ) from error
        with torch.no_grad():
            ShapeProp(traced).propagate(torch.zeros(2, *input_shape, device=device_of(model)))
        return _Walk(model, traced).run()


def _aliases(model: nn.Module, parameter: str) -> set[str]:
    """Return all paths of the module that holds a parameter."""
    return _paths(model, model.get_submodule(parameter.rpartition(".")[0]))


def _paths(model: nn.Module, held: nn.Module) -> set[str]:
    """Return all paths of a module of the model."""
    return {n for n, module in model.named_modules(remove_duplicate=False) if module is held}


class _Walk:
    """One pass over the traced graph."""

    def __init__(self, model: nn.Module, traced: fx.GraphModule) -> None:
        self.modules = dict(model.named_modules())
        self.traced = traced
        self.parent: list[int] = []
        self.size: list[int] = []
        self.frozen: set[int] = set()
        self.space: dict[fx.Node, int] = {}
        self.repeat: dict[fx.Node, int] = {}
        self.problems: list[str] = []
        self.layers: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.norms: list[tuple[str, int]] = []
        self.activations: list[fx.Node] = []
        self.pools: list[dict[str, Any]] = []
        self.seen: set[str] = set()

    def run(self) -> Structure:
        """Walk all nodes, then gather the spaces."""
        for node in self.traced.graph.nodes:
            self._visit(node)
        if self.problems:
            raise UnsupportedStructure(
                "the network's channels cannot be followed through:\n"
                + "\n".join(f"  {problem}" for problem in self.problems)
            )
        return self._gather()

    def _new(self, channels: int) -> int:
        self.parent.append(len(self.parent))
        self.size.append(channels)
        return len(self.parent) - 1

    def _find(self, space: int) -> int:
        while self.parent[space] != space:
            space = self.parent[space]
        return space

    def _visit(self, node: fx.Node) -> None:
        """Give the node's output a space, or note a problem."""
        if node.op == "placeholder" and "tensor_meta" not in node.meta:
            if node.users:
                self._problem(node, "the network must take one input")
            return
        if node.op == "placeholder":
            self._set(node, self._new(_shape(node)[1]))
            self.frozen.add(self.space[node])
            return
        if node.op != "output" and "tensor_meta" not in node.meta:
            return  # x.size(0): a number, which whatever uses it must answer for
        sources = [source for source in node.all_input_nodes if source in self.space]
        if node.op == "output":
            self.frozen.update(self.space[source] for source in sources)
            return
        if node.op == "get_attr" or not sources:
            self._problem(
                node,
                "only a chain of layers from the input is followed; for a mean and std of its own, "
                "give the network without them, and those to with_preprocess or --mean and --std",
            )
            return
        handler = self._handler(node)
        if handler is None:
            self._problem(node, "not among conv, linear, batch norm, ReLU, pooling, flatten, add")
            self._set(node, self.space[sources[0]], self.repeat[sources[0]])
        else:
            handler(node, sources)

    def _handler(self, node: fx.Node) -> Callable[[fx.Node, list[fx.Node]], None] | None:
        """Choose by the node's module or function."""
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            if isinstance(module, nn.Conv2d | nn.Linear):
                return self._layer
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                return self._batch_norm
            if isinstance(module, _ACTIVATION_MODULES):
                return self._activation
            if isinstance(module, _TRANSPARENT_MODULES):
                return self._pass
            if isinstance(module, nn.Flatten) and len(_shape(node)) == 2:
                return self._flatten
            return None
        if node.target in _ACTIVATIONS:
            return self._activation
        if node.target in _ADDITIONS:
            return self._add
        if node.target in _TRANSPARENT:
            return self._pass
        if node.target in (*_FLATTENS, *_VIEWS) and len(_shape(node)) == 2:
            return self._flatten
        if node.target in _SQUEEZES and _shape(node)[:2] == _shape(node.all_input_nodes[0])[:2]:
            return self._squeeze
        if node.target in ("mean", torch.mean) and len(_shape(node)) in (2, 4):
            before = _shape(node.all_input_nodes[0])
            return self._pass if _shape(node)[:2] == before[:2] else None
        return None

    def _set(self, node: fx.Node, space: int, repeat: int = 1) -> None:
        self.space[node] = space
        self.repeat[node] = repeat

    def _problem(self, node: fx.Node, why: str) -> None:
        what = node.target
        if node.op == "call_module":
            what = f"{node.target} ({type(self.modules[str(node.target)]).__name__})"
        self.problems.append(f"{node.name}: {what}: {why}")

    def _pass(self, node: fx.Node, sources: list[fx.Node]) -> None:
        source = sources[0]
        self._set(node, self.space[source], self.repeat[source])
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        before, after = _shape(source), _shape(node)
        size: Any = None
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            size = module.kernel_size
        elif node.target in _POOLS:
            size = node.kwargs["kernel_size"] if len(node.args) < 2 else node.args[1]
        if size is not None:
            window = size * size if isinstance(size, int) else math.prod(size)
        elif len(before) == 4 and before != after:
            window = -(-before[2] * before[3] // _pixels(after))
        else:
            return
        self.pools.append(
            {"name": node.name, "output_shape": after[1:], "pixels": _pixels(after),
             "channels": before[1],
             "window": window, "space": self.space[node]}
        )  # fmt: skip

    def _activation(self, node: fx.Node, sources: list[fx.Node]) -> None:
        self._set(node, self.space[sources[0]], self.repeat[sources[0]])
        if self.repeat[node] == 1:
            self.activations.append(node)

    def _squeeze(self, node: fx.Node, sources: list[fx.Node]) -> None:
        self._set(node, self.space[sources[0]], self.repeat[sources[0]])

    def _flatten(self, node: fx.Node, sources: list[fx.Node]) -> None:
        before = _shape(sources[0])
        named = [value for key, value in node.kwargs.items() if key in ("shape", "size")]
        sizes = [*node.args[1:], *named]
        if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
            sizes = list(sizes[0])
        if node.target in _VIEWS and _shape(node)[1] in sizes:
            # x.view(-1, 512) is of 512 numbers whatever becomes of the channels: they must stay.
            self.frozen.add(self.space[sources[0]])
        self._set(node, self.space[sources[0]], self.repeat[sources[0]] * _pixels(before))

    def _add(self, node: fx.Node, sources: list[fx.Node]) -> None:
        terms = {a for a in (*node.args, *node.kwargs.values()) if isinstance(a, fx.Node)}
        if len(sources) != len(terms) or any(
            _shape(source) != _shape(node) or self.repeat[source] != self.repeat[sources[0]]
            for source in sources
        ):
            self._problem(node, "an addition must be of two maps of the same shape")
            self._set(node, self._new(_shape(node)[1]))
            return
        roots = [self._find(self.space[source]) for source in sources]
        for other in roots[1:]:
            self.parent[other] = roots[0]
        self._set(node, roots[0], self.repeat[sources[0]])

    def _batch_norm(self, node: fx.Node, sources: list[fx.Node]) -> None:
        name = str(node.target)
        if self._again(node):
            return
        source = sources[0]
        self._set(node, self.space[source], self.repeat[source])
        if self.repeat[source] > 1:
            self._problem(node, "a batch norm must come before flatten, or after the next layer")
        self.norms.append((name, self.space[node]))
        if source.op == "call_module" and len(source.users) == 1:
            record = self.layers.get(str(source.target))
            if record is not None:
                record["batch_norm"] = name

    def _again(self, node: fx.Node) -> bool:
        """Note a problem if a layer with weights runs twice."""
        name = str(node.target)
        if name in self.seen:
            self._problem(node, "a layer with weights must be used once, not shared")
            self._set(node, self._new(_shape(node)[1]))
            return True
        self.seen.add(name)
        return False

    def _layer(self, node: fx.Node, sources: list[fx.Node]) -> None:
        if self._again(node):
            return
        name, source = str(node.target), sources[0]
        module = self.modules[name]
        inputs = self.space[source]
        kind = "linear"
        if isinstance(module, nn.Conv2d):
            kind = "conv"
            if module.groups > 1:
                same = module.groups == module.in_channels == module.out_channels
                kind = "depthwise" if same else "grouped"
        outputs = inputs if kind == "depthwise" else self._new(_shape(node)[1])
        if kind == "grouped":
            self.frozen.update((inputs, outputs))
        self._set(node, outputs)
        self.layers[name] = {
            "name": name, "kind": kind, "inputs": inputs, "outputs": outputs,
            "repeat": self.repeat[source], "batch_norm": None,
            "output_shape": _shape(node)[1:], "pixels": _pixels(_shape(node)),
        }  # fmt: skip

    def _gather(self) -> Structure:
        spaces: dict[int, Space] = {}

        def space(identifier: int) -> Space:
            root = self._find(identifier)
            return spaces.setdefault(root, Space(root, self.size[root]))

        layers = OrderedDict()
        for name, record in self.layers.items():
            record["inputs"] = self._find(record["inputs"])
            record["outputs"] = self._find(record["outputs"])
            layers[name] = Layer(**record)
            if record["kind"] == "depthwise":
                space(record["inputs"]).depthwise.append(name)
            else:
                space(record["inputs"]).consumers.append(name)
                space(record["outputs"]).producers.append(name)
        for name, identifier in self.norms:
            space(identifier).batch_norms.append(name)
        for node in self.activations:
            space(self.space[node]).observed.append(node.name)
        readers = {n for n in self.traced.graph.nodes if str(n.target) in layers}
        for node in readers:
            read = space(self.space[node.all_input_nodes[0]])
            if not read.observed and self.repeat[node.all_input_nodes[0]] == 1:
                read.observed.append(node.all_input_nodes[0].name)
        for identifier in self.frozen:
            space(identifier).frozen = True
        pools = tuple(Pool(**{**p, "space": self._find(p["space"])}) for p in self.pools)
        return Structure(layers, spaces, pools, self.traced)


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Return the shape that ShapeProp found."""
    return tuple(node.meta["tensor_meta"].shape)


def _pixels(shape: tuple[int, ...]) -> int:
    """Return height times width; 1 for a vector."""
    return shape[2] * shape[3] if len(shape) == 4 else 1


def load_compressed(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the uncompressed ``model`` that holds a compressed one's state dict.

    Layers take the shapes of the state's tensors, reduced kernels get their masks back, and of
    :func:`identity_blocks` those of which the state has nothing become ``nn.Identity``, so that a
    compressed network is stored as plain tensors and never as a pickle of code.

    Raises
    ------
    ValueError
        If the keys are not those of this model, or a tensor is larger than the model's.
    """
    model = drop_blocks(model, _blocks_without(model, state))
    modules = dict(model.named_modules(remove_duplicate=False))
    for key, value in state.items():
        path, _, attribute = key.rpartition(".")
        module = modules.get(path)
        if module is None:
            raise ValueError(f"state must belong to this model, which has no {path!r}")
        if attribute == MASK:
            module.register_buffer(MASK, value.clone())
            continue
        held = getattr(module, attribute, None)
        # One number is a placeholder: what an explicit approximation was inserted with.
        if (
            isinstance(held, Tensor)
            and held.numel() > 1
            and (
                held.ndim != value.ndim
                or any(more > own for more, own in zip(value.shape, held.shape, strict=True))
            )
        ):
            raise ValueError(
                f"state must belong to this model or a smaller one, whose {key!r} has the shape "
                f"{tuple(held.shape)!r}, not {tuple(value.shape)!r}; try the number of classes "
                "that it was trained for"
            )
        if held is None and attribute == "bias":
            module.bias = nn.Parameter(value.clone())
        elif isinstance(held, nn.Parameter) and held.shape != value.shape:
            setattr(module, attribute, nn.Parameter(value.clone(), held.requires_grad))
        elif isinstance(held, Tensor) and held.shape != value.shape:
            setattr(module, attribute, value.clone())
    for module in modules.values():
        sync_sizes(module)
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ValueError(f"state must belong to this model: {error}") from error
    return model


def identity_blocks(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of the residual blocks that could be left out, in the model's order.

    They are the innermost submodules that end in an addition of their own, unchanged input,
    followed by activations at most: without the block, its input flows on in its output's place.
    Found by tracing each submodule by torch.fx, never by names; one that cannot be traced is none.
    """
    found = [
        name
        for name, module in model.named_modules()
        if name and next(module.children(), None) is not None and _adds_its_input(module)
    ]
    return tuple(n for n in found if not any(other.startswith(f"{n}.") for other in found))


def drop_blocks(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Return a copy of the model with ``nn.Identity`` in the place of these residual blocks.

    Raises
    ------
    ValueError
        If a name is not that of a residual block with an identity shortcut.
    """
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    for name in names:
        if not name or name not in modules or not _adds_its_input(modules[name]):
            raise ValueError(
                f"names must be of residual blocks with an identity shortcut, not {name!r}; "
                f"this model has {', '.join(identity_blocks(model)) or 'none'}"
            )
        for path in _paths(model, modules[name]):
            model.set_submodule(path, nn.Identity())
    return model


def _adds_its_input(module: nn.Module) -> bool:
    """Say whether a module is ``activation(anything + input)``, with or without the activation."""
    try:
        graph = fx.Tracer().trace(module)
    except Exception:  # whatever tracing trips over, the module is then no block that we know
        return False
    inputs = graph.find_nodes(op="placeholder")
    (output,) = graph.find_nodes(op="output")
    parts = dict(module.named_modules())

    def behind(node: Any, kinds: tuple[type, ...], functions: tuple[Any, ...]) -> Any:
        while isinstance(node, fx.Node) and (
            isinstance(parts.get(str(node.target)), kinds) or node.target in functions
        ):
            node = node.args[0]
        return node

    end = behind(output.args[0], _ACTIVATION_MODULES, _ACTIVATIONS)
    if len(inputs) != 1 or not isinstance(end, fx.Node) or end.target not in _ADDITIONS:
        return False
    if end.kwargs:  # alpha scales the input
        return False
    terms = [behind(term, (nn.Identity,), ()) for term in end.all_input_nodes]
    return len(terms) == 2 and terms.count(inputs[0]) == 1


def _blocks_without(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Return the blocks that hold tensors in the model and none in the state."""

    def held(tensors: Mapping[str, Tensor], name: str) -> bool:
        return any(key.startswith(f"{name}.") for key in tensors)

    if model.state_dict().keys() <= state.keys():
        return []
    return [n for n in identity_blocks(model) if held(model.state_dict(), n) and not held(state, n)]


def sync_sizes(module: nn.Module) -> None:
    """Set a layer's declared channel counts from its parameters' shapes."""
    if isinstance(module, nn.Conv2d):
        depthwise = module.groups == module.in_channels == module.out_channels
        depthwise = depthwise and module.groups > 1
        module.out_channels = module.weight.shape[0]
        if depthwise:
            module.groups = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.running_mean is not None:
        module.num_features = len(module.running_mean)
