# SPDX-License-Identifier: Apache-2.0
"""Compression: lower kernels, slice by slice.

Nagaraju & Chandrachoodan, OJCAS 2023, section III, taken to the machine's own unit: a *slice* is
what a group of ``tn`` output channels computes from a tile of ``ti`` input channels, and each of
its kernel positions is one step of the array. So a slice's kernel may shrink by itself: 3x3 to 1x3,
3x1 or 1x1 (``shapes="rectangle"``), by the square ladder, or to any set of positions ("free").

Channels are first sorted by relevance, once and for all spaces, which changes no output. From then
on groups and tiles are runs of neighbours, whatever is lowered later, and the compiler finds them.

With "free", linear layers and a first layer that folds its picture's neighbours take part too, in
the form that the machine gives them (:class:`_Form`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwgen.compress.cost import Cost, tap_steps
from hwgen.compress.inputs import batches, device_of, shape_of
from hwgen.compress.kernel_reduction import KernelConfig, refit
from hwgen.compress.knobs import check_choice, check_counts, check_not_negative
from hwgen.compress.relevance import FineTune, measure_relevance, reorder_channels, trimmable
from hwgen.compress.structure import Layer, Structure, discover
from hwgen.compress.training import MASK, check_logits, labels_of, predict, reestimate_bn, retrained

Shapes = Literal["square", "rectangle", "free"]
SliceWeights = Literal["cut", "least_squares"]


class UnreachableCost(ValueError):
    """So little cost is left by no network that the method can make."""


@dataclass(frozen=True)
class SliceConfig:
    """Knobs of slice reduction.

    Attributes
    ----------
    keep
        Share of the network's cost that is to be left.
    shapes
        Kernels that a slice may have: centred "square" ones, centred "rectangle" ones (1x3 and 3x1
        too), or "free": any positions, or none at all.
    tn, ti
        Output channels of a group, input channels of a tile: the machine's.
    weights
        What is left of a convolution's filters: "cut", their weights as they were; or
        "least_squares", fitted to what the filters computed before the round.
    rounds
        The cost goes down in so many equal ratios, with ``fine_tune`` after each.
    skip
        Layers left alone.
    batch_size
        Images whose gradients are added before they are squared.
    seed
        Of the pixels that "least_squares" is fitted on.
    """

    keep: float = 0.5
    shapes: Shapes = "free"
    tn: int = 16
    ti: int = 16
    weights: SliceWeights = "cut"
    rounds: int = 1
    skip: tuple[str, ...] = ()
    batch_size: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 < self.keep <= 1.0:
            raise ValueError(f"keep must be in (0, 1], not {self.keep!r}")
        check_choice("shapes", self.shapes, Shapes)
        check_choice("weights", self.weights, SliceWeights)
        check_counts(tn=self.tn, ti=self.ti, rounds=self.rounds, batch_size=self.batch_size)
        check_not_negative(seed=self.seed)


@dataclass(frozen=True)
class SliceReport:
    """What was left.

    Attributes
    ----------
    taps
        By layer, (groups, tiles, kernel height, kernel width) bool: positions that are used.
    cost_before, cost_after
        By the cost function.
    """

    taps: dict[str, np.ndarray]
    cost_before: float
    cost_after: float


def lower_slices(
    model: nn.Module,
    images: np.ndarray,
    config: SliceConfig,
    *,
    cost: Cost = tap_steps,
    fine_tune: FineTune | None = None,
    labels: np.ndarray | None = None,
) -> tuple[nn.Module, SliceReport]:
    """Give slices smaller kernels until ``keep`` of the cost is left (OJCAS 2023, section III).

    A tap's importance is Molchanov et al.'s (CVPR 2019, section 3.1): the squared sum, over its
    weights, of weight times gradient of the loss, averaged over batches. Taps go in the order of
    importance per pixel that they are computed for.

    Parameters
    ----------
    model
        Left as it is.
    images
        (N, H, W, 3) uint8 calibration inputs.
    config
        The knobs.
    cost
        What ``keep`` is a share of.
    fine_tune
        Retrains after each round; without it batch norms are re-estimated.
    labels
        (N,) classes; the model's own answers if None.

    Returns
    -------
    tuple
        The copy with masks, in eval mode, and the report.

    Raises
    ------
    UnreachableCost
        If so little cost cannot be reached by lowering kernels alone.
    """
    shape = shape_of(images)
    model = sort_channels(model, images)
    logits = predict(model, images if labels is None else images[:1])  # then for its classes alone
    check_logits(logits)
    answers = logits.argmax(axis=1)
    if labels is not None:
        answers = labels_of(labels, len(images), logits.shape[1])
    before = cost(model, shape)
    for number in range(1, config.rounds + 1):
        share = config.keep ** (number / config.rounds)
        whole = model
        model = _lower_once(model, images, answers, config, cost, share * before, before)
        if config.weights == "least_squares":
            _refit(model, whole, images, config.seed)
        model = reestimate_bn(model, images) if fine_tune is None else retrained(fine_tune(model))
    structure = discover(model, shape)
    taps = {
        name: _used_taps(model.get_submodule(name), form, config)
        for name, form in sliceable(model, structure, config).items()
    }
    return model.eval(), SliceReport(taps, before, cost(model, shape))


def sort_channels(model: nn.Module, images: np.ndarray) -> nn.Module:
    """Return a copy whose channels lie in the order of their relevance; outputs stay the same."""
    structure = discover(model, shape_of(images))
    scores = measure_relevance(model, structure, images)
    order = {
        space.identifier: np.argsort(-scores[space.identifier], kind="stable")
        for space in trimmable(structure, scores)
    }
    return reorder_channels(model, structure, order).eval()


def sliceable(model: nn.Module, structure: Structure, config: SliceConfig) -> dict[str, _Form]:
    """Return the layers whose slices can be lowered, in the order they run, and their forms."""
    forms = {}
    for layer in structure.layers.values():
        module = model.get_submodule(layer.name)
        trained = isinstance(module.weight, Tensor) and module.weight.requires_grad
        if layer.kind not in ("conv", "linear") or layer.name in config.skip or not trained:
            continue
        form = _form(module, layer, structure, config)
        plain = form.fold == form.repeat == 1 and layer.kind == "conv"
        if config.shapes == "free" or (plain and max(form.shape[2:]) > 1):
            forms[layer.name] = form
    return forms


@dataclass(frozen=True)
class _Form:
    """A layer as the machine computes it: a dense convolution.

    Attributes
    ----------
    shape
        Of the layer's own weight.
    fold
        Neighbours of a row that share a word: they are channels then, and the kernel is narrower.
    repeat
        Positions of each input channel of a linear layer behind a flatten: they are its kernel.
    """

    shape: tuple[int, ...]
    fold: int = 1
    repeat: int = 1

    def spread(self, weight: Tensor) -> Tensor:
        """Return a weight as (outputs, inputs, height, width)."""
        if weight.ndim == 2:
            return weight.reshape(len(weight), -1, self.repeat, 1)
        if self.fold == 1:
            return weight
        outputs, inputs, height, width = weight.shape
        full = functional.pad(weight, (0, -width % self.fold))
        columns = full.reshape(outputs, inputs, height, -1, self.fold)
        return columns.permute(0, 1, 4, 2, 3).flatten(1, 2)

    def gather(self, spread: Tensor) -> Tensor:
        """Undo :meth:`spread`."""
        if len(self.shape) == 2 or self.fold == 1:
            return spread.reshape(self.shape)
        outputs, inputs, height, width = self.shape
        columns = spread.reshape(outputs, inputs, self.fold, height, -1).permute(0, 1, 3, 4, 2)
        return columns.flatten(3)[..., :width]


def _form(module: nn.Module, layer: Layer, structure: Structure, config: SliceConfig) -> _Form:
    """Return the form that the machine gives a layer."""
    assert isinstance(module.weight, Tensor)
    shape = tuple(module.weight.shape)
    if not isinstance(module, nn.Conv2d):
        return _Form(shape, repeat=layer.repeat)
    picture = not structure.spaces[layer.inputs].producers
    fold = min(config.ti // shape[1], shape[3]) if picture else 1
    return _Form(shape, fold=max(fold, 1))


def tap_importance(
    model: nn.Module,
    forms: Mapping[str, _Form],
    images: np.ndarray,
    labels: np.ndarray,
    config: SliceConfig,
) -> dict[str, np.ndarray]:
    """Return each tap's importance by layer: (groups, tiles, height, width) float64."""
    model = copy.deepcopy(model).eval()
    weights: dict[str, Tensor] = {}
    totals: dict[str, Tensor] = {}
    for name, form in forms.items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weights[name] = weight
        totals[name] = torch.zeros(_blocks(form.spread(weight), config).shape[:4])
    device = device_of(model)
    target = torch.from_numpy(np.asarray(labels)).to(device)
    count = 0
    for start, x in enumerate(batches(model, images, config.batch_size)):
        model.zero_grad(set_to_none=True)
        first = start * config.batch_size
        with torch.enable_grad():
            functional.cross_entropy(model(x), target[first : first + len(x)]).backward()
        for name, weight in weights.items():
            if weight.grad is None:  # what it computes is not in the logits
                continue
            taken = _blocks(forms[name].spread(weight.detach() * weight.grad), config)
            totals[name] += taken.sum(dim=4).square().cpu()
        count += 1
    return {name: total.double().numpy() / count for name, total in totals.items()}


def _blocks(weight: Tensor, config: SliceConfig) -> Tensor:
    """Cut (outputs, inputs, h, w) into taps: (groups, tiles, h, w, tn x ti), filled with zeros."""
    outputs, inputs, height, width = weight.shape
    groups, tiles = -(-outputs // config.tn), -(-inputs // config.ti)
    full = weight.new_zeros(groups * config.tn, tiles * config.ti, height, width)
    full[:outputs, :inputs] = weight
    cut = full.reshape(groups, config.tn, tiles, config.ti, height, width)
    return cut.permute(0, 2, 4, 5, 1, 3).flatten(4)


def _used_taps(module: nn.Module, form: _Form, config: SliceConfig) -> np.ndarray:
    """Return which taps hold a weight other than zero."""
    assert isinstance(module.weight, Tensor)
    spread = form.spread(module.weight.detach())
    return (_blocks(spread, config) != 0).any(dim=4).cpu().numpy()


def _lower_once(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    config: SliceConfig,
    cost: Cost,
    target: float,
    whole: float,
) -> nn.Module:
    """Mask the least important taps, as few as bring the cost of ``whole`` down to ``target``."""
    shape = shape_of(images)
    structure = discover(model, shape)
    forms = sliceable(model, structure, config)
    if not forms:
        raise UnreachableCost(
            "the model must have a layer that can be lowered; those whose weights require no "
            "gradient are left as they are: try model.requires_grad_(True)"
        )
    importance = tap_importance(model, forms, images, labels, config)
    used = {
        name: _used_taps(model.get_submodule(name), form, config) for name, form in forms.items()
    }
    moves = _moves(used, importance, structure, config)

    def lowered(count: int) -> nn.Module:
        trial = copy.deepcopy(model)
        taps = {name: held.copy() for name, held in used.items()}
        for name, group, tile, gone in moves[:count]:
            taps[name][group, tile] &= ~gone
        for name, form in forms.items():
            _mask_taps(trial.get_submodule(name), form, taps[name], importance[name], config)
        return trial

    if cost(lowered(len(moves)), shape) > target:
        free = "" if config.shapes == "free" else "shapes='free' or "
        least = math.ceil(1000 * cost(lowered(len(moves)), shape) / whole) / 1000
        raise UnreachableCost(
            f"keep must be at least {least:.3f} for kernels of the shapes {config.shapes!r}, "
            f"not {config.keep!r}; try {free}trimming channels first"
        )
    low, high = 0, len(moves)
    while low < high:
        middle = (low + high) // 2
        if cost(lowered(middle), shape) <= target:
            high = middle
        else:
            low = middle + 1
    return lowered(low)


def _refit(model: nn.Module, whole: nn.Module, images: np.ndarray, seed: int) -> None:
    """Fit what is left of each lowered convolution, in place, in the order they run."""
    structure = discover(model, shape_of(images))
    for name, layer in structure.layers.items():
        mask = getattr(model.get_submodule(name), MASK, None)
        if layer.kind == "conv" and mask is not None:
            keep = (mask != 0).flatten(2).cpu().numpy()
            filters = np.flatnonzero(~keep.all(axis=(1, 2)))
            if len(filters):
                knobs = KernelConfig(seed=seed)
                refit(model, whole, structure, name, filters, keep[filters], images, knobs)


_Move = tuple[str, int, int, np.ndarray]


def _moves(
    used: Mapping[str, np.ndarray],
    importance: Mapping[str, np.ndarray],
    structure: Structure,
    config: SliceConfig,
) -> list[_Move]:
    """List what may be taken from each slice, the least important per pixel first.

    A move takes positions away; the moves of one slice come in an order that leaves one of the
    allowed kernels after each.
    """
    scored: list[tuple[float, _Move]] = []
    for name, taps in used.items():
        pixels = structure.layers[name].pixels
        for group, tile in product(*map(range, taps.shape[:2])):
            last = -np.inf
            for gone, score in _ladder(taps[group, tile], importance[name][group, tile], config):
                # Never before the moves that it follows.
                last = max(last, score / (pixels * max(int(gone.sum()), 1)))
                scored.append((last, (name, group, tile, gone)))
    return [move for _, move in sorted(scored, key=lambda item: item[0])]


def _ladder(
    used: np.ndarray, importance: np.ndarray, config: SliceConfig
) -> list[tuple[np.ndarray, float]]:
    """Return the moves of one slice from its kernel down, each with the importance it takes."""
    steps: list[tuple[np.ndarray, float]] = []
    if config.shapes == "free":
        order = np.argsort(np.where(used, importance, np.inf), axis=None, kind="stable")
        for position in order[: int(used.sum())]:
            gone = np.zeros(used.shape, bool)
            gone.flat[position] = True
            steps.append((gone, float(importance.flat[position])))
        return steps
    while used.any():
        smaller = [box for box in _boxes(used.shape, config.shapes) if (box & used).sum()]
        smaller = [box for box in smaller if (used & ~box).any()]
        if not smaller:
            break
        # The kernel that keeps most for the positions it takes away.
        best = min(smaller, key=lambda box: importance[used & ~box].mean())
        gone = used & ~best
        steps.append((gone, float(importance[gone].sum())))
        used = used & best
    return steps


def _boxes(shape: tuple[int, ...], shapes: Shapes) -> list[np.ndarray]:
    """List the centred kernels inside of ``shape``."""
    height, width = shape
    boxes = []
    for h, w in product(range(1, height + 1, 2), range(1, width + 1, 2)):
        if shapes == "square" and h != w:
            continue
        box = np.zeros(shape, bool)
        y, x = (height - h) // 2, (width - w) // 2
        box[y : y + h, x : x + w] = True
        boxes.append(box)
    return boxes


def _mask_taps(
    module: nn.Module,
    form: _Form,
    taps: np.ndarray,
    importance: np.ndarray,
    config: SliceConfig,
) -> None:
    """Put zeros, and a mask that keeps them, where taps are gone; a group keeps one at least."""
    assert isinstance(module.weight, Tensor)
    for group in np.flatnonzero(~taps.any(axis=(1, 2, 3))):
        taps[group].flat[int(importance[group].argmax())] = True
    outputs, inputs = form.spread(module.weight).shape[:2]
    wide = taps.repeat(config.tn, axis=0).repeat(config.ti, axis=1)[:outputs, :inputs]
    mask = form.gather(torch.from_numpy(wide).to(module.weight)).contiguous()
    held = getattr(module, MASK, None)
    if held is None:
        module.register_buffer(MASK, mask)
    else:
        held.mul_(mask)
    with torch.no_grad():
        module.weight.mul_(getattr(module, MASK))
