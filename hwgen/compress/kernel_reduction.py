# SPDX-License-Identifier: Apache-2.0
"""Compression: lower kernels.

Nagaraju & Chandrachoodan, OJCAS 2023, section III: the filters that matter least get a smaller
kernel, 7 -> 5 -> 3 -> 1. Their weights are the centre of the old ones, or a least-squares fit of
the original pre-activation on calibration inputs.

A lowered kernel is kept at its full size with exact zeros outside of the smaller one, and a mask
buffer that the training loop applies after each step. So the model stays an ordinary Conv2d for
everybody else; the compiler finds the zeros and makes shorter tap lists of them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwgen.compress.cost import channel_units, used_weights
from hwgen.compress.evaluation import evaluating
from hwgen.compress.inputs import batches, shape_of
from hwgen.compress.knobs import check_choice, check_counts, check_not_negative
from hwgen.compress.relevance import FineTune, OneRetrain, Statistic, measure_relevance
from hwgen.compress.structure import Structure, discover
from hwgen.compress.training import MASK, reestimate_bn, retrained

LADDER = (7, 5, 3, 1)
Importance = Literal["relevance", "energy", "residual"]
KernelWeights = Literal["centre_crop", "least_squares"]


@dataclass(frozen=True)
class KernelConfig:
    """Knobs of lower kernels.

    Attributes
    ----------
    fraction
        Share of each layer's filters that go one rung down.
    layers
        Which layers; all that can be lowered if None.
    ladder
        Sides of a kernel, largest first. A kernel between two rungs goes down to the next one; one
        at or below the last stays.
    weights
        "centre_crop" or "least_squares".
    importance
        What a filter has to lose: "relevance" of its activation (the paper's), "energy" of the
        weights outside the smaller kernel, or "residual" of the least-squares fit, both as a share
        of what the filter computes.
    statistic
        For "relevance".
    align
        Filters are lowered in whole groups of so many output channels, the same ones in all layers
        that are tied by additions, so that saved MACs are saved cycles; 1 lowers single filters.
    ridge
        Regularisation of the fit, as a share of the inputs' mean square.
    rows
        Pixels of calibration that the fit uses, drawn at random.
    retrain
        "none", "reestimate_bn" or "fine_tune".
    seed
        Of the draw.
    """

    fraction: float = 0.5
    layers: tuple[str, ...] | None = None
    ladder: tuple[int, ...] = LADDER
    weights: KernelWeights = "least_squares"
    importance: Importance = "relevance"
    statistic: Statistic = "mean_abs"
    align: int = 16
    ridge: float = 1e-5
    rows: int = 16384
    retrain: OneRetrain = "reestimate_bn"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.fraction <= 1.0:
            raise ValueError(f"fraction must be in [0, 1], not {self.fraction!r}")
        check_choice("weights", self.weights, KernelWeights)
        check_choice("importance", self.importance, Importance)
        check_choice("statistic", self.statistic, Statistic)
        check_choice("retrain", self.retrain, OneRetrain)
        odd = self.ladder and all(side > 0 and side % 2 == 1 for side in self.ladder)
        if not odd or list(self.ladder) != sorted(set(self.ladder), reverse=True):
            raise ValueError(f"ladder must be odd sides, largest first, not {self.ladder!r}")
        check_not_negative(ridge=self.ridge, seed=self.seed)
        check_counts(align=self.align, rows=self.rows)


@dataclass(frozen=True)
class LoweredLayer:
    """What was done to one layer.

    Attributes
    ----------
    filters
        Indices of the filters that were lowered.
    sides
        (height, width) of each one's kernel now.
    residual
        Mean square error against the original pre-activation on the calibration data, over its
        variance; nan where weights were cropped without data.
    """

    filters: np.ndarray
    sides: tuple[tuple[int, int], ...]
    residual: float


@dataclass(frozen=True)
class KernelReport:
    """Layers that were lowered, by name."""

    layers: dict[str, LoweredLayer]


def lower_kernels(
    model: nn.Module,
    images: np.ndarray,
    config: KernelConfig,
    fine_tune: FineTune | None = None,
) -> tuple[nn.Module, KernelReport]:
    """Give the least important filters a smaller kernel (OJCAS 2023, section III).

    Layers are lowered in the order they run: each is fitted on what the lowered network feeds it,
    against what the original one computed there, so that earlier errors are made good where
    possible.

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
        The copy with masks, in eval mode, and the report.

    Raises
    ------
    ValueError
        If a layer named cannot be lowered, or ``fine_tune`` is missing.
    """
    if config.retrain == "fine_tune" and fine_tune is None:
        raise ValueError("fine_tune must be given for retrain='fine_tune'; try 'reestimate_bn'")
    original = copy.deepcopy(model).eval()
    model = copy.deepcopy(original)
    structure = discover(model, shape_of(images))
    able = lowerable(model, structure, config.ladder)
    names = able if config.layers is None else list(config.layers)
    unknown = [name for name in names if name not in able]
    if unknown:
        raise ValueError(
            f"layers must be convolutions with a kernel of odd size above the ladder's last rung, "
            f"not {unknown!r}; try of {able!r}"
        )
    report = {}
    for name in names:
        units = kernel_units(model, structure, name, images, config)
        count = int(round(config.fraction * len(units)))
        if count:
            filters = np.sort(np.concatenate(units[:count]))
            report[name] = _lower(model, original, structure, name, filters, images, config)
    if config.retrain != "none" and report:
        model = reestimate_bn(model, images)
    if config.retrain == "fine_tune" and fine_tune is not None:
        model = retrained(fine_tune(model))
    return model.eval(), KernelReport(report)


def lower_filters(
    model: nn.Module,
    structure: Structure,
    name: str,
    filters: np.ndarray,
    images: np.ndarray,
    config: KernelConfig,
) -> tuple[nn.Module, LoweredLayer]:
    """Return a copy in which these filters of one layer are one rung lower, and what was done.

    Batch norm statistics are left to the caller.
    """
    trial = copy.deepcopy(model).eval()
    with evaluating(model):
        return trial, _lower(trial, model, structure, name, filters, images, config)


def lowerable(
    model: nn.Module, structure: Structure, ladder: tuple[int, ...] = LADDER
) -> list[str]:
    """Return the names of the layers that have a filter to lower, in the order they run."""
    names = []
    for layer in structure.layers.values():
        module = model.get_submodule(layer.name)
        if isinstance(module, nn.Conv2d) and all(side % 2 for side in module.kernel_size):
            if _wide(model, layer.name, ladder).any():
                names.append(layer.name)
    return names


def kernel_units(
    model: nn.Module, structure: Structure, name: str, images: np.ndarray, config: KernelConfig
) -> list[np.ndarray]:
    """Return the groups of filters that can go down together, the least important first.

    Groups are runs of ``align`` in the space's order by kernel, so that they are the groups that
    the machine will compute, in this layer and in those tied to it.
    """
    importance = _importance(model, structure, name, images, config)
    if structure.layers[name].kind == "grouped":  # its filters stay where they are
        order = np.argsort(importance, kind="stable")
        units = [order[i : i + config.align] for i in range(0, len(order), config.align)]
    else:
        space = structure.space_of(name)
        units = channel_units(model, structure, space, importance, config.align)
    wide = _wide(model, name, config.ladder)
    units = [unit[wide[unit]] for unit in units if wide[unit].any()]
    return sorted(units, key=lambda unit: float(importance[unit].mean()))


def _importance(
    model: nn.Module, structure: Structure, name: str, images: np.ndarray, config: KernelConfig
) -> np.ndarray:
    """Return each filter's importance, (outputs,)."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    if config.importance == "relevance":
        scores = measure_relevance(model, structure, images, config.statistic)
        space = structure.space_of(name)
        return scores.get(space.identifier, np.zeros(module.out_channels))
    keep = _next_support(model, name, config.ladder)
    if config.importance == "energy":
        squares = module.weight.detach().square().flatten(2).cpu().numpy()
        lost = (squares * ~keep).sum(axis=(1, 2))
        return lost / np.maximum(squares.sum(axis=(1, 2)), 1e-30)
    inputs, targets = _record(model, model, name, images, config)
    everything = np.arange(module.out_channels)
    return fit_kernels(module, inputs, targets, everything, keep, config.ridge)[2]


def _next_support(model: nn.Module, name: str, ladder: tuple[int, ...]) -> np.ndarray:
    """Return what may be used one rung down: (outputs, inputs, positions) bool, in a centred box.

    Weights that a mask holds at zero stay out.
    """
    module, used = model.get_submodule(name), used_weights(model, name)
    assert isinstance(module, nn.Conv2d)
    height, width = module.kernel_size
    boxes = np.zeros((len(used), height, width), bool)
    for box, positions in zip(boxes, used.any(axis=1).reshape(boxes.shape), strict=True):
        sides = []
        for axis, full in ((1, height), (0, width)):
            reached = np.flatnonzero(positions.any(axis=axis))
            half = np.abs(reached - full // 2).max() if len(reached) else 0
            lower = [side for side in ladder if side < 2 * half + 1]
            sides.append(lower[0] if lower else 2 * half + 1)
        y0, x0 = (height - sides[0]) // 2, (width - sides[1]) // 2
        box[y0 : y0 + sides[0], x0 : x0 + sides[1]] = True
    keep = boxes.reshape(len(boxes), 1, -1).repeat(used.shape[1], axis=1)
    mask = getattr(module, MASK, None)
    return keep if mask is None else keep & (mask != 0).flatten(2).cpu().numpy()


def _wide(model: nn.Module, name: str, ladder: tuple[int, ...]) -> np.ndarray:
    """Return which filters can be lowered: there is something to lose, and something is left."""
    used, keep = used_weights(model, name), _next_support(model, name, ladder)
    return (used & ~keep).any(axis=(1, 2)) & (used & keep).any(axis=(1, 2))


def _lower(
    model: nn.Module,
    original: nn.Module,
    structure: Structure,
    name: str,
    filters: np.ndarray,
    images: np.ndarray,
    config: KernelConfig,
) -> LoweredLayer:
    """Lower filters of one layer of ``model`` in place."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    keep = _next_support(model, name, config.ladder)[filters]
    if not keep.any(axis=(1, 2)).all():
        raise ValueError(
            f"filters must have weights that stay one rung down, not "
            f"{filters[~keep.any(axis=(1, 2))].tolist()}, of which a mask leaves none; try those "
            "of kernel_units"
        )
    mask = torch.from_numpy(keep.reshape(-1, *module.weight.shape[1:])).to(module.weight)
    residual = float("nan")
    with torch.no_grad():
        if config.weights == "least_squares":
            residual = refit(model, original, structure, name, filters, keep, images, config)
        if getattr(module, MASK, None) is None:
            module.register_buffer(MASK, torch.ones_like(module.weight))
        held = getattr(module, MASK)
        held[filters] = mask
        module.weight.mul_(held)
    now = keep.any(axis=1).reshape(-1, *module.kernel_size)
    sides = tuple((int(k.any(axis=1).sum()), int(k.any(axis=0).sum())) for k in now)
    return LoweredLayer(filters, sides, residual)


@torch.no_grad()
def refit(
    model: nn.Module,
    original: nn.Module,
    structure: Structure,
    name: str,
    filters: np.ndarray,
    keep: np.ndarray,
    images: np.ndarray,
    config: KernelConfig,
) -> float:
    """Fit filters of one layer of ``model``, in place, to what they compute in ``original``.

    ``keep`` as in :func:`fit_kernels`; returns the mean residual.
    """
    module = model.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    inputs, targets = _record(model, original, name, images, config)
    norm = structure.layers[name].batch_norm
    statistics = norm is not None and model.get_submodule(norm).running_mean is not None
    constant = module.bias is not None or statistics
    weight, bias, errors = fit_kernels(
        module, inputs, targets, filters, keep, config.ridge, constant
    )
    module.weight[filters] = weight.to(module.weight)
    if module.bias is not None:
        module.bias[filters] = bias.to(module.bias)
    elif statistics:
        assert norm is not None
        # A constant added to the pre-activation is a constant taken off the mean.
        mean = model.get_submodule(norm).running_mean
        assert isinstance(mean, Tensor)
        mean[filters] -= bias.to(mean)
    return float(errors.mean())


@torch.no_grad()
def _record(
    model: nn.Module, original: nn.Module, name: str, images: np.ndarray, config: KernelConfig
) -> tuple[Tensor, Tensor]:
    """Return a layer's input columns in ``model`` and its outputs in ``original``.

    Columns are (rows, input channels, positions) and outputs (rows, output channels), at the same
    randomly drawn pixels of the calibration images, on the CPU.
    """
    module = model.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    generator = torch.Generator().manual_seed(config.seed)
    columns: list[Tensor] = []
    outputs: list[Tensor] = []
    caught: dict[str, Tensor] = {}

    def catch_input(_: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        caught["input"] = args[0].clone()  # what comes next may work in place

    def catch_output(_: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        caught["output"] = result.clone()

    hooks = [
        module.register_forward_hook(catch_input),
        original.get_submodule(name).register_forward_hook(catch_output),
    ]
    model.eval()
    try:
        per_image = -(-config.rows // max(1, len(images)))
        for x in batches(model, images):
            model(x)
            original(x)
            pixels = caught["output"].flatten(2)
            drawn = torch.randperm(pixels.shape[2], generator=generator)[:per_image]
            for part in caught["input"].split(8):  # all patches of a batch may be gigabytes
                patches = _patches(module, part)  # (n, channels, positions, pixels)
                columns.append(patches[..., drawn].permute(0, 3, 1, 2).flatten(0, 1))
            outputs.append(pixels[..., drawn].permute(0, 2, 1).flatten(0, 1))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(columns).cpu(), torch.cat(outputs).cpu()


def _patches(module: nn.Conv2d, x: Tensor) -> Tensor:
    """Unfold a convolution's input: (n, channels, kernel positions, output pixels)."""
    if module.padding_mode != "zeros":
        raise ValueError(f"padding_mode must be 'zeros', not {module.padding_mode!r}")
    padding = module.padding
    if isinstance(padding, str):
        sides = []
        for kernel, dilation in zip(module.kernel_size[::-1], module.dilation[::-1], strict=True):
            total = dilation * (kernel - 1) if padding == "same" else 0
            sides += [total // 2, total - total // 2]
        x, padding = functional.pad(x, sides), (0, 0)
    columns = functional.unfold(x, module.kernel_size, module.dilation, padding, module.stride)
    return columns.reshape(x.shape[0], x.shape[1], -1, columns.shape[2])


def fit_kernels(
    module: nn.Conv2d,
    columns: Tensor,
    targets: Tensor,
    filters: np.ndarray,
    keep: np.ndarray,
    ridge: float,
    constant: bool = True,
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Fit smaller kernels by least squares (OJCAS 2023, section III).

    Parameters
    ----------
    module
        The convolution, for its groups and kernel size.
    columns
        (rows, input channels, positions).
    targets
        (rows, output channels) pre-activations to be matched.
    filters
        Output channels to fit.
    keep
        (len(filters), positions) bool: what each may use; or (len(filters), inputs, positions).
    ridge
        As a share of the columns' mean square.
    constant
        Whether an intercept is fitted too; zero if not.

    Returns
    -------
    tuple
        Weights (len(filters), inputs, kh, kw), zero outside of ``keep``; intercepts
        (len(filters),); mean square error of each filter over its target's variance.
    """
    out_per_group = module.out_channels // module.groups
    in_per_group = module.in_channels // module.groups
    positions = columns.shape[2]
    if keep.ndim == 2:
        keep = np.repeat(keep[:, None], in_per_group, axis=1)
    weights = torch.zeros(len(filters), in_per_group * positions, dtype=torch.float64)
    intercepts = torch.zeros(len(filters), dtype=torch.float64)
    residuals = np.zeros(len(filters))
    jobs: dict[tuple[int, bytes], list[int]] = {}
    for i, channel in enumerate(filters):
        jobs.setdefault((int(channel) // out_per_group, keep[i].tobytes()), []).append(i)
    for (group, _), members in jobs.items():
        kept = torch.from_numpy(np.flatnonzero(keep[members[0]]))
        mine = columns[:, group * in_per_group : (group + 1) * in_per_group]
        a = mine.flatten(1)[:, kept].double()
        y = targets[:, torch.as_tensor(filters[members])].double()
        variance = (y - y.mean(0)).square().mean(0).clamp_min(1e-30)
        # Centring both sides is the same as fitting a constant, which stays unregularised.
        a_mean, y_mean = a.mean(0) * constant, y.mean(0) * constant
        a, y = a - a_mean, y - y_mean
        gram = a.T @ a
        gram.diagonal().add_(ridge * float(gram.diagonal().mean()) + 1e-12)
        solution = torch.linalg.solve(gram, a.T @ y)
        error = (a @ solution - y).square().mean(0) / variance
        weights[torch.tensor(members)[:, None], kept] = solution.T
        intercepts[members] = y_mean - a_mean @ solution
        residuals[members] = error.numpy()
    shape = (len(filters), in_per_group, *module.kernel_size)
    return weights.reshape(shape), intercepts, residuals


def bake(model: nn.Module) -> nn.Module:
    """Return a copy without mask buffers: the zeros stay in the weights, nothing else is left."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if getattr(module, MASK, None) is not None:
            delattr(module, MASK)
    return model
