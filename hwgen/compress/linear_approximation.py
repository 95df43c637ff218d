# SPDX-License-Identifier: Apache-2.0
"""Compression: linear approximation.

Nagaraju & Chandrachoodan, OJCAS 2023: a feature map that is dropped is a ridge least-squares
combination of maps that are kept, all of one space. The combination is *folded* into the weights
of whoever reads the maps, which costs nothing, or is an *explicit* 1x1 convolution behind the
writer that gives all maps back in their old order.

An explicit approximation is a plain ``nn.Conv2d`` with a mark, not a class of its own: torch.fx
takes only the classes of torch.nn as whole, and everybody else shall see an ordinary convolution.
Its weights are frozen, so that copies stay copies while the network is retrained around them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from hwgen.compress.inputs import batches, shape_of
from hwgen.compress.knobs import check_choice, check_counts, check_not_negative
from hwgen.compress.relevance import (
    FineTune,
    OneRetrain,
    Statistic,
    keep_most,
    measure_relevance,
    remove_channels,
)
from hwgen.compress.structure import Space, Structure, discover
from hwgen.compress.training import MASK, reestimate_bn, retrained

Form = Literal["folded", "explicit"]
Importance = Literal["residual", "effect", "relevance"]

APPROXIMATION = "approximation"
"""Name of an explicit approximation inside the ``nn.Sequential`` that it shares with the module
whose maps it completes (there called "maps"), and so the end of its path in a state dict."""

_MARK = "linear_approximation"
_FLOOR = 1e-6
"""Least ridge of the elimination, of maps scaled to unit power: it updates an inverse."""


@dataclass(frozen=True)
class ApproximationConfig:
    """Knobs of linear approximation.

    Attributes
    ----------
    fraction
        Share of each space's channels that is dropped, in [0, 1).
    layers
        Which spaces, each by the name of its first writer; all that can be if None.
    terms
        Kept maps that a dropped one is made of, chosen greedily (orthogonal matching pursuit); all
        of them if None.
    form
        "folded" into the consumers, or "explicit".
    importance
        Which maps are dropped. "residual": again and again the map whose mean square error, given
        those that remain, is the smallest share of its variance. "effect": likewise, the error
        weighted by the power of the weights that read the map. "relevance": the least relevant.
    statistic
        For "relevance".
    align
        Keep a multiple of so many channels (rounded up), because the machine computes whole groups
        of them; 1 drops freely.
    ridge
        Regularisation of the fit, as a share of the kept maps' mean square.
    rows
        Pixels of calibration that the fit uses, drawn at random.
    retrain
        "none", "reestimate_bn" or "fine_tune".
    seed
        Of the draw.

    Raises
    ------
    ValueError
        If a value is out of its range.
    """

    fraction: float = 0.5
    layers: tuple[str, ...] | None = None
    terms: int | None = None
    form: Form = "folded"
    importance: Importance = "residual"
    statistic: Statistic = "mean_abs"
    align: int = 16
    ridge: float = 1e-5
    rows: int = 16384
    retrain: OneRetrain = "reestimate_bn"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.fraction < 1.0:
            raise ValueError(f"fraction must be in [0, 1), not {self.fraction!r}")
        if self.terms is not None and self.terms < 1:
            raise ValueError(f"terms must be at least 1, or None for all, not {self.terms!r}")
        check_choice("form", self.form, Form)
        check_choice("importance", self.importance, Importance)
        check_choice("statistic", self.statistic, Statistic)
        check_choice("retrain", self.retrain, OneRetrain)
        check_not_negative(ridge=self.ridge, seed=self.seed)
        check_counts(align=self.align, rows=self.rows)


@dataclass(frozen=True)
class SpaceReport:
    """What was done to one space.

    Attributes
    ----------
    dropped, kept
        Channels, sorted, int64.
    residual
        (dropped,) float64: mean square error of each dropped map on the calibration data over its
        variance, the mean over those who read it. 0 is exact; without an intercept it may be
        above 1.
    terms
        (dropped,) int64: kept maps that each is made of, the most over those who read it.
    """

    dropped: np.ndarray
    kept: np.ndarray
    residual: np.ndarray
    terms: np.ndarray


@dataclass(frozen=True)
class ApproximationReport:
    """Spaces that lost channels, by the name of their first writer."""

    spaces: dict[str, SpaceReport]


def approximate_maps(
    model: nn.Module,
    images: np.ndarray,
    config: ApproximationConfig,
    fine_tune: FineTune | None = None,
) -> tuple[nn.Module, ApproximationReport]:
    """Drop feature maps and make them of those that are kept (OJCAS 2023).

    Spaces are treated in the order they run, each fitted on the network as it is by then.

    Parameters
    ----------
    model
        Left as it is.
    images
        (N, H, W, 3) uint8 calibration inputs.
    config
        The knobs.
    fine_tune
        Retrains; needed for ``retrain="fine_tune"``.

    Returns
    -------
    tuple
        The copy, in eval mode, and the report.

    Raises
    ------
    ValueError
        If a space named cannot be approximated, or ``fine_tune`` is missing.
    UnsupportedStructure
        If the network cannot be followed.
    """
    if config.retrain == "fine_tune" and fine_tune is None:
        raise ValueError("fine_tune must be given for retrain='fine_tune'; try 'reestimate_bn'")
    input_shape = shape_of(images)
    model = copy.deepcopy(model).eval()
    structure = discover(model, input_shape)
    possible = [s.producers[0] for s in approximable(model, structure, config.form)]
    names = possible if config.layers is None else list(config.layers)
    for name in names:
        _find_space(model, structure, name, config.form, possible)
    report = {}
    for name in names:
        space = structure.space_of(name)
        readers = _readers(model, structure, space, config.form)
        moments = _record(model, structure, space, readers, images, config)
        dropped = _choose(model, structure, space, readers, moments, images, config)
        if len(dropped):
            model, report[name] = _approximate(
                model, structure, space, readers, moments, dropped, config
            )
            structure = discover(model, input_shape)
    if config.retrain != "none" and report:
        model = reestimate_bn(model, images)
    if config.retrain == "fine_tune" and fine_tune is not None:
        model = retrained(fine_tune(model))
    return model.eval(), ApproximationReport(report)


def choose_dropped(
    model: nn.Module,
    structure: Structure,
    space: Space,
    images: np.ndarray,
    config: ApproximationConfig,
) -> np.ndarray:
    """Return the channels of a space that ``config`` would drop: sorted int64, maybe none.

    Parameters are those of :func:`approximate_channels`.
    """
    readers = _readers(model, structure, space, config.form)
    moments = _record(model, structure, space, readers, images, config)
    return _choose(model, structure, space, readers, moments, images, config)


def approximate_channels(
    model: nn.Module,
    structure: Structure,
    space: Space,
    dropped: np.ndarray,
    images: np.ndarray,
    config: ApproximationConfig,
) -> tuple[nn.Module, SpaceReport]:
    """Return a copy without the ``dropped`` channels of one space, and how well they were made up.

    Parameters
    ----------
    model
        Left as it is, but for eval mode.
    structure, space
        Of this very model.
    dropped
        Channels of the space; at least one, and not all.
    images
        (N, H, W, 3) uint8 calibration inputs.
    config
        ``form``, ``terms``, ``ridge``, ``rows`` and ``seed`` count here. Batch norm statistics
        are left to the caller.

    Raises
    ------
    ValueError
        If the space cannot be approximated in this form, or ``dropped`` is not of it.
    """
    _find_space(model, structure, space.producers[0] if space.producers else "", config.form)
    given = np.unique(np.asarray(dropped, np.int64))
    inside = len(given) and given[0] >= 0 and given[-1] < space.channels
    if not inside or not 0 < len(given) == np.size(dropped) < space.channels:
        raise ValueError(
            f"dropped must be different channels below {space.channels}, at least one and not "
            f"all, not {dropped!r}"
        )
    readers = _readers(model, structure, space, config.form)
    moments = _record(model, structure, space, readers, images, config)
    return _approximate(model, structure, space, readers, moments, given, config)


def approximable(model: nn.Module, structure: Structure, form: Form) -> list[Space]:
    """Return the spaces that can lose channels in this form, in the order they run."""
    spaces = {layer.outputs: structure.spaces[layer.outputs] for layer in structure.layers.values()}
    return [space for space in spaces.values() if not _obstacle(model, structure, space, form)]


def _obstacle(model: nn.Module, structure: Structure, space: Space, form: Form) -> str:
    """Return why a space cannot be approximated; empty if it can."""
    if space.frozen or not space.producers or not space.consumers:
        return "its channels are the picture's, the answer's or those of a grouped convolution"
    if space.depthwise:
        return (
            f"the depthwise layers {space.depthwise!r} share it; try trim_by_relevance, which "
            "removes their channels too"
        )
    if form == "folded":
        return ""
    if len(space.producers) > 1:
        return f"additions tie {space.producers!r} together; try form='folded'"
    producer = model.get_submodule(space.producers[0])
    if not isinstance(producer, nn.Conv2d):
        return "an explicit approximation is of a convolution's maps; try form='folded'"
    if is_approximation(producer):
        return "its maps come from an approximation"
    if any(is_approximation(model.get_submodule(name)) for name in space.consumers):
        return "an approximation reads its maps already; try form='folded', which goes into it"
    return ""


def _find_space(
    model: nn.Module,
    structure: Structure,
    name: str,
    form: Form,
    possible: list[str] | None = None,
) -> None:
    """Raise ValueError unless a layer is the first writer of a space that can be approximated."""
    if possible is None:
        possible = [s.producers[0] for s in approximable(model, structure, form)]
    if name in possible:
        return
    why = "it is not the first writer of a space"
    if name in structure.layers:
        space = structure.space_of(name)
        if not space.producers or space.producers[0] == name:
            why = _obstacle(model, structure, space, form)
        elif space.producers:
            why = f"its space goes by the name of its first writer, {space.producers[0]!r}"
    raise ValueError(f"layers must be among {possible!r} for form={form!r}, not {name!r}: {why}")


@dataclass(frozen=True)
class _Reader:
    """Where maps are made up: a graph node, and the layer that takes the coefficients.

    That layer is a consumer if folded, and the writer if explicit.
    """

    layer: str
    node: str
    intercept: bool


def _readers(model: nn.Module, structure: Structure, space: Space, form: Form) -> list[_Reader]:
    """Return the places where the maps of a space are made up."""
    if form == "explicit":
        chain = _chain(structure, space, model)
        return [_Reader(space.producers[0], chain[-1].name, True)]
    sources = {str(n.target): n.all_input_nodes for n in structure.graph.graph.nodes}
    return [
        _Reader(name, sources[name][0].name, _constant(model, structure, name) is not None)
        for name in space.consumers
    ]


def _chain(structure: Structure, space: Space, model: nn.Module) -> list[fx.Node]:
    """Return the nodes from a space's only writer to the one that is approximated behind.

    That is the activation, if batch norms and activations that are modules of their own, used
    once, lead to one; otherwise the last node before that is not so, so that all who read the
    maps come after it.
    """
    nodes = structure.graph.graph.nodes
    uses = Counter(str(node.target) for node in nodes if node.op == "call_module")
    node = next(n for n in nodes if str(n.target) == space.producers[0])
    chain = [node]
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op != "call_module" or uses[str(node.target)] > 1:
            break
        module = model.get_submodule(str(node.target))
        if isinstance(module, nn.ReLU | nn.ReLU6):
            chain.append(node)
            break
        if not isinstance(module, nn.BatchNorm2d):
            break
        chain.append(node)
    return chain


def _constant(model: nn.Module, structure: Structure, name: str) -> tuple[Tensor, float] | None:
    """Return what takes a constant added to all pixels of a layer's inputs, and with which sign.

    A bias, or the mean of the batch norm behind. None if there is neither, or if the layer pads
    its input with zeros, to which the constant is not added.
    """
    module = model.get_submodule(name)
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
        if module.padding != "valid" and any(side != 0 for side in module.padding):
            return None
    if isinstance(module.bias, Tensor):
        return module.bias, 1.0
    norm = structure.layers[name].batch_norm
    mean = model.get_submodule(norm).running_mean if norm is not None else None
    return (mean, -1.0) if isinstance(mean, Tensor) else None


class _Moments:
    """Running first and second moments of a space's maps at one node, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sum = np.zeros(channels)
        self.products = np.zeros((channels, channels))

    def add(self, rows: Tensor) -> None:
        """Count (rows, channels)."""
        rows = rows.double()
        self.count += len(rows)
        self.sum += rows.sum(0).cpu().numpy()
        self.products += (rows.T @ rows).cpu().numpy()

    def gram(self, centred: bool) -> np.ndarray:
        """Return the mean products (channels, channels), about the means or about zero."""
        mean = self.sum / self.count
        return self.products / self.count - centred * np.outer(mean, mean)


@torch.no_grad()
def _record(
    model: nn.Module,
    structure: Structure,
    space: Space,
    readers: list[_Reader],
    images: np.ndarray,
    config: ApproximationConfig,
) -> dict[str, _Moments]:
    """Return the moments of the maps at each reader's node, by the node's name."""
    generator = torch.Generator().manual_seed(config.seed)
    moments = {reader.node: _Moments(space.channels) for reader in readers}
    per_image = -(-config.rows // max(1, len(images)))

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if n.name in moments:
                assert isinstance(result, Tensor)
                # Behind a flatten the channels come first, so this undoes it.
                maps = result.reshape(len(result), space.channels, -1)
                drawn = torch.randperm(maps.shape[2], generator=generator)[:per_image]
                rows = maps[:, :, drawn.to(maps.device)].transpose(1, 2)
                moments[n.name].add(rows.reshape(-1, space.channels))
            return result

    model.eval()
    watch = Watch(structure.graph)
    weight = next(model.parameters())
    for x in batches(model, images):
        watch.run(x.to(weight.dtype))
    return moments


def _choose(
    model: nn.Module,
    structure: Structure,
    space: Space,
    readers: list[_Reader],
    moments: Mapping[str, _Moments],
    images: np.ndarray,
    config: ApproximationConfig,
) -> np.ndarray:
    """Return the channels to drop, sorted."""
    scores = np.zeros(space.channels)
    if config.importance == "relevance":
        found = measure_relevance(model, structure, images, config.statistic)
        scores = found.get(space.identifier, scores)
    kept = keep_most(scores, (1.0 - config.fraction) * space.channels, config.align, 1)
    if config.importance == "relevance":
        return np.setdiff1d(np.arange(space.channels), kept)
    grams: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for reader in readers:
        grams.append(moments[reader.node].gram(reader.intercept))
        if config.importance == "residual":
            variance = np.diag(moments[reader.node].gram(True))
            weights.append(1.0 / np.maximum(variance, _least(variance)))
        else:
            names = space.consumers if config.form == "explicit" else [reader.layer]
            power = np.sum([_reading_power(model, space, name) for name in names], axis=0)
            total = float(power @ np.diag(grams[-1]))
            weights.append(power / max(total, 1e-30))
    order = eliminate(grams, weights, space.channels - len(kept), config.ridge)
    return np.sort(np.array(order, np.int64))


def _least(variance: np.ndarray) -> float:
    """Return below what a variance is that of a dead map."""
    return max(1e-12 * float(variance.max()), 1e-30)


def _reading_power(model: nn.Module, space: Space, name: str) -> np.ndarray:
    """Return the sum of squares of the weights with which a consumer reads each channel."""
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    by_channel = weight.detach().double().reshape(len(weight), space.channels, -1)
    return by_channel.square().sum((0, 2)).cpu().numpy()


def eliminate(
    grams: list[np.ndarray], weights: list[np.ndarray], count: int, ridge: float = 0.0
) -> list[int]:
    """Drop channels one by one, each time the one that those which remain give back best.

    The mean square error of channel j given the others is 1 / (gram^-1)_jj, and dropping a channel
    is a rank-one update of the inverse.

    Parameters
    ----------
    grams
        One (channels, channels) matrix of mean products for each reader.
    weights
        For each reader (channels,), by which a channel's error counts; errors are added up.
    count
        Channels to drop, below the number of them.
    ridge
        As a share of each channel's power; 1e-6 at least.

    Returns
    -------
    list of int
        In the order they were dropped; of equals the first.
    """
    channels = len(grams[0])
    inverses, powers = [], []
    for gram in grams:
        power = np.diag(gram)
        size = np.sqrt(np.where(power > 0, power, 1.0))
        scaled = gram / np.outer(size, size)
        inverses.append(np.linalg.inv(scaled + max(ridge, _FLOOR) * np.eye(channels)))
        powers.append(power)
    left = np.ones(channels, bool)
    order: list[int] = []
    for _ in range(count):
        loss = np.where(left, 0.0, np.inf)
        for inverse, power, weight in zip(inverses, powers, weights, strict=True):
            loss[left] += (weight * power)[left] / np.diag(inverse)[left]
        worst = int(loss.argmin())
        order.append(worst)
        left[worst] = False
        for inverse in inverses:
            inverse -= np.outer(inverse[:, worst], inverse[worst]) / inverse[worst, worst]
    return order


def fit_maps(
    gram: np.ndarray,
    dropped: np.ndarray,
    kept: np.ndarray,
    ridge: float,
    terms: int | None = None,
) -> np.ndarray:
    """Fit dropped maps as combinations of kept ones by ridge least squares (OJCAS 2023).

    Parameters
    ----------
    gram
        (channels, channels) float64 mean products of the maps; centred if there is an intercept.
    dropped, kept
        Channels.
    ridge
        As a share of the kept maps' mean square.
    terms
        At most so many kept maps for each dropped one, found by orthogonal matching pursuit: the
        map that explains most of what is left is added, and all are fitted anew. All if None.

    Returns
    -------
    np.ndarray
        (dropped, kept) float64 coefficients, exact zeros where a map is not used.
    """
    own = gram[np.ix_(kept, kept)]
    own = own + ridge * np.diag(own).mean() * np.eye(len(kept))
    cross = gram[np.ix_(kept, dropped)]
    if terms is None or terms >= len(kept):
        return np.linalg.lstsq(own, cross, rcond=None)[0].T
    result = np.zeros((len(dropped), len(kept)))
    power = np.maximum(np.diag(own), 1e-300)
    for coefficients, target, own_power in zip(
        result, cross.T, np.diag(gram)[dropped], strict=True
    ):
        chosen: list[int] = []
        for _ in range(terms):
            gain = (target - own @ coefficients) ** 2 / power
            gain[chosen] = -1.0
            best = int(gain.argmax())
            if gain[best] <= 1e-15 * own_power:
                break
            chosen.append(best)
            fitted = np.linalg.lstsq(own[np.ix_(chosen, chosen)], target[chosen], rcond=None)
            coefficients[chosen] = fitted[0]
    return result


def _approximate(
    model: nn.Module,
    structure: Structure,
    space: Space,
    readers: list[_Reader],
    moments: Mapping[str, _Moments],
    dropped: np.ndarray,
    config: ApproximationConfig,
) -> tuple[nn.Module, SpaceReport]:
    """Fit the dropped maps for each reader, and take them out of a copy."""
    kept = np.setdiff1d(np.arange(space.channels), dropped)
    model = copy.deepcopy(model)
    residuals, terms = [], []
    for reader in readers:
        at = moments[reader.node]
        gram = at.gram(reader.intercept)
        coefficients = fit_maps(gram, dropped, kept, config.ridge, config.terms)
        mean = at.sum / at.count
        constant = mean[dropped] - coefficients @ mean[kept]
        if not reader.intercept:
            constant[:] = 0.0
        residuals.append(_residual(gram, at.gram(True), coefficients, dropped, kept))
        terms.append((coefficients != 0).sum(axis=1))
        if config.form == "folded":
            _fold(model, structure, reader, space, coefficients, constant, dropped, kept)
    if config.form == "explicit":
        model = _insert(model, structure, space, coefficients, constant, dropped, kept)
    else:
        model = remove_channels(model, structure, {space.identifier: kept})
    report = SpaceReport(dropped, kept, np.mean(residuals, axis=0), np.max(terms, axis=0))
    return model.eval(), report


def _residual(
    gram: np.ndarray,
    covariance: np.ndarray,
    coefficients: np.ndarray,
    dropped: np.ndarray,
    kept: np.ndarray,
) -> np.ndarray:
    """Return each dropped map's mean square error over its variance, (dropped,)."""
    cross = (coefficients * gram[np.ix_(dropped, kept)]).sum(axis=1)
    square = ((coefficients @ gram[np.ix_(kept, kept)]) * coefficients).sum(axis=1)
    error = np.maximum(np.diag(gram)[dropped] - 2 * cross + square, 0.0)
    variance = np.diag(covariance)
    return error / np.maximum(variance[dropped], _least(variance))


@torch.no_grad()
def _fold(
    model: nn.Module,
    structure: Structure,
    reader: _Reader,
    space: Space,
    coefficients: np.ndarray,
    constant: np.ndarray,
    dropped: np.ndarray,
    kept: np.ndarray,
) -> None:
    """Add what a consumer did with the dropped maps to its weights for the kept ones, in place.

    Where that lands on a masked zero of a reduced kernel, the mask opens.
    """
    module = model.get_submodule(reader.layer)
    weight = module.weight
    assert isinstance(weight, Tensor)
    by_channel = weight.detach().double().cpu().reshape(len(weight), space.channels, -1)
    gone = by_channel[:, dropped]
    added = torch.zeros_like(by_channel)
    added[:, kept] = torch.einsum("odp,dk->okp", gone, torch.from_numpy(coefficients))
    weight.add_(added.reshape(weight.shape).to(weight))
    mask = getattr(module, MASK, None)
    if mask is not None:
        mask.copy_(((mask != 0) | (added.reshape(weight.shape) != 0).to(mask.device)).to(mask))
    if reader.intercept:
        taken = _constant(model, structure, reader.layer)
        assert taken is not None
        held, sign = taken
        held.add_(sign * (gone.sum(2) @ torch.from_numpy(constant)).to(held))


def _insert(
    model: nn.Module,
    structure: Structure,
    space: Space,
    coefficients: np.ndarray,
    constant: np.ndarray,
    dropped: np.ndarray,
    kept: np.ndarray,
) -> nn.Module:
    """Return a copy whose writer has only the kept filters, with a 1x1 step that adds the rest."""
    chain = _chain(structure, space, model)
    path = [str(node.target) for node in chain]
    norms = [name for name in path if name in space.batch_norms]
    cut = dataclasses.replace(space, batch_norms=norms, consumers=[])
    alone = dataclasses.replace(structure, spaces={space.identifier: cut})
    model = remove_channels(model, alone, {space.identifier: kept})
    rows = np.zeros((space.channels, len(kept)))
    rows[kept, np.arange(len(kept))] = 1.0
    rows[dropped] = coefficients
    bias = np.zeros(space.channels)
    bias[dropped] = constant
    writer = model.get_submodule(path[0]).weight
    assert isinstance(writer, Tensor)
    step = _blank(*rows.shape)
    with torch.no_grad():
        step.weight.copy_(torch.from_numpy(rows)[:, :, None, None])
        assert step.bias is not None
        step.bias.copy_(torch.from_numpy(bias))
    _wrap(model, path[-1], step.to(writer))
    return model


def _blank(outputs: int, inputs: int) -> nn.Conv2d:
    """Return an explicit approximation whose coefficients are still to be set, frozen."""
    step = nn.Conv2d(inputs, outputs, 1, dtype=torch.float64).requires_grad_(False)
    setattr(step, _MARK, True)
    return step


def _wrap(model: nn.Module, path: str, step: nn.Conv2d) -> None:
    """Put a step behind the module at a path, in place."""
    parent, _, name = path.rpartition(".")
    holder = model.get_submodule(parent)
    pair = OrderedDict([("maps", model.get_submodule(path)), (APPROXIMATION, step)])
    setattr(holder, name, nn.Sequential(pair).train(model.training))


def insert_approximations(model: nn.Module, state: Iterable[str]) -> nn.Module:
    """Return a copy that has the explicit approximations which a state dict's keys speak of.

    Their values are :func:`load_compressed`'s to set:
    ``load_compressed(insert_approximations(model, state), state)``.

    Parameters
    ----------
    model
        The uncompressed network. Left as it is.
    state
        A compressed one's state dict, or its keys.

    Raises
    ------
    ValueError
        If the model lacks a module that is approximated.
    """
    model = copy.deepcopy(model)
    weight = next(model.parameters())
    ending = f".{APPROXIMATION}.weight"
    for path in [key.removesuffix(ending) for key in state if key.endswith(ending)]:
        try:
            held = model.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"state must belong to this model, which has no {path!r}") from error
        if not hasattr(held, APPROXIMATION):
            _wrap(model, path, _blank(1, 1).to(weight))
    return model


def is_approximation(module: nn.Module) -> bool:
    """Return whether a module is an explicit linear approximation."""
    return bool(getattr(module, _MARK, False))


def copies(module: nn.Module) -> np.ndarray:
    """Return which outputs of a module are inputs handed on: (outputs,) bool.

    All False unless it is an explicit approximation; there, the rows with a single weight, of
    exactly 1, and no bias.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    if not is_approximation(module):
        return np.zeros(len(weight), bool)
    rows = weight.detach().flatten(1).cpu().numpy()
    alone = ((rows != 0).sum(axis=1) == 1) & (rows == 1).any(axis=1)
    assert isinstance(module.bias, Tensor)
    return alone & (module.bias.detach().cpu().numpy() == 0)


def approximation_macs(module: nn.Module, pixels: int) -> int:
    """Return the multiply-accumulates of an explicit approximation over so many output pixels.

    A copy costs nothing, any other map as many as it has terms.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    terms = (weight.detach().flatten(1) != 0).sum(1).cpu().numpy()
    return pixels * int(terms[~copies(module)].sum())
