# SPDX-License-Identifier: Apache-2.0
"""Compression: the network of one choice of depth, inner width and resolution.

What compound shrinking (:mod:`hwgen.compress.shrinking`) chooses among.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hwgen.compress.cropping import resize_all
from hwgen.compress.evaluation import evaluating
from hwgen.compress.inputs import device_of
from hwgen.compress.relevance import (
    Statistic,
    keep_most,
    measure_relevance,
    remove_channels,
    trimmable,
)
from hwgen.compress.structure import discover, drop_blocks, identity_blocks
from hwgen.compress.training import predict, reestimate_bn


def droppable_blocks(
    model: nn.Module, input_shape: tuple[int, int, int]
) -> dict[str, tuple[str, ...]]:
    """Find the residual blocks that may be left out, by stages.

    Parameters
    ----------
    model
        Not changed.
    input_shape
        (channels, height, width) of one input.

    Returns
    -------
    dict
        From a stage, the shape of its blocks' outputs as "channels x height x width", to the
        paths of the blocks of :func:`~hwgen.compress.structure.identity_blocks` that run once and
        whose input has that shape too; stages and blocks in the order they run. Blocks that change
        the shape, option A's included, are not among them.
    """
    calls: dict[str, list[str | None]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(_: nn.Module, args: tuple[object, ...], result: object) -> None:
            same = isinstance(result, Tensor) and isinstance(args[0], Tensor)
            same = same and result.shape == args[0].shape  # type: ignore[attr-defined]
            shape = "x".join(map(str, result.shape[1:])) if isinstance(result, Tensor) else ""
            calls.setdefault(name, []).append(shape if same else None)

        return hook

    hooks = [
        model.get_submodule(name).register_forward_hook(watch(name))
        for name in identity_blocks(model)
    ]
    try:
        try_side(model, input_shape)
    finally:
        for hook in hooks:
            hook.remove()
    stages: dict[str, tuple[str, ...]] = {}
    for name, shapes in calls.items():
        if len(shapes) == 1 and shapes[0] is not None:
            stages[shapes[0]] = (*stages.get(shapes[0], ()), name)
    return stages


@torch.no_grad()
def try_side(model: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """Run zeros of this shape, or say which side the model refuses."""
    try:
        with evaluating(model):
            model(torch.zeros(1, *input_shape, device=device_of(model)))
    except RuntimeError as error:
        raise ValueError(
            f"the model must accept inputs of shape {input_shape!r}: {error}; try other sides, or "
            "dimensions without 'side' for a network that flattens before it pools"
        ) from error


@dataclass(frozen=True)
class ShrinkPoint:
    """One choice along the three dimensions.

    Attributes
    ----------
    depths
        Blocks kept of each stage of :func:`droppable_blocks`, in its order.
    width
        Share in (0, 1] of each inner space's channels that is kept.
    side
        Height and width of the input in pixels.
    """

    depths: tuple[int, ...]
    width: float
    side: int

    def __post_init__(self) -> None:
        """Take any sequence of depths, so that equal points are equal."""
        object.__setattr__(self, "depths", tuple(self.depths))


def shrunk(
    model: nn.Module,
    point: ShrinkPoint,
    images: np.ndarray,
    *,
    align: int = 16,
    statistic: Statistic = "mean_abs",
) -> nn.Module:
    """Build the network of one point (ICCAD 2022, compound shrinking).

    Of each stage the blocks go first whose loss changes the outputs least (mean square, each
    dropped alone from the whole model). Of each inner space, one that nothing but one layer
    writes and no addition ties, the least relevant channels go. Batch norms are estimated anew at
    the point's side, unless the point is the model itself.

    Parameters
    ----------
    model
        Left as it is.
    point
        What is kept.
    images
        (N, side, side, 3) uint8 at the size the model was trained for: calibration.
    align
        Channels kept are a multiple of this, rounded up; a space's own number at most.
    statistic
        Relevance of channels, as in :class:`~hwgen.compress.relevance.RelevanceConfig`.

    Returns
    -------
    torch.nn.Module
        A copy in eval mode, for inputs of ``point.side``.

    Raises
    ------
    ValueError
        If the point or the images do not fit the model.
    UnsupportedStructure
        If the network cannot be followed.
    """
    shrinker = Shrinker(model, images, align, statistic)
    shrinker.check(point)
    return shrinker.build(point)


class Shrinker:
    """A model, and in which order its blocks and channels go."""

    def __init__(
        self, model: nn.Module, images: np.ndarray, align: int, statistic: Statistic
    ) -> None:
        if images.ndim != 4 or images.shape[1] != images.shape[2]:
            raise ValueError(
                f"images must be square, (N, side, side, C), not {images.shape!r}; try resize_all"
            )
        self.model = copy.deepcopy(model).eval()
        self.images, self.align = images, align
        self.side = images.shape[1]
        shape = self.input_shape(self.side)
        self.stages = {
            stage: self._least_first(names)
            for stage, names in droppable_blocks(self.model, shape).items()
        }
        structure = discover(self.model, shape)
        scores = measure_relevance(self.model, structure, images, statistic)
        # An addition ties the channels of at least two writers.
        self.scores = {
            space.producers[0]: scores[space.identifier]
            for space in trimmable(structure, scores)
            if len(space.producers) == 1
        }

    @property
    def whole(self) -> ShrinkPoint:
        """The model itself."""
        return ShrinkPoint(tuple(map(len, self.stages.values())), 1.0, self.side)

    def input_shape(self, side: int) -> tuple[int, int, int]:
        """Return the shape of an input of this side."""
        return (self.images.shape[3], side, side)

    def _least_first(self, names: Sequence[str]) -> list[str]:
        """Sort blocks by how much the outputs change without each."""
        before = predict(self.model, self.images)
        change = {
            name: float(np.square(predict(drop_blocks(self.model, [name]), self.images) - before)
                        .mean())
            for name in names
        }  # fmt: skip
        return sorted(names, key=change.__getitem__)

    def check(self, point: ShrinkPoint) -> None:
        """Refuse a point that does not fit the model."""
        most = self.whole.depths
        fits = len(point.depths) == len(most)
        if not fits or any(not 0 <= d <= m for d, m in zip(point.depths, most, strict=True)):
            raise ValueError(
                f"depths must be one count for each of the stages {list(self.stages)!r}, at most "
                f"{most!r}, not {point.depths!r}"
            )
        if not 0.0 < point.width <= 1.0:
            raise ValueError(f"width must be in (0, 1], not {point.width!r}; try 0.5")
        try_side(self.model, self.input_shape(point.side))

    def kept(self, width: float) -> dict[str, np.ndarray]:
        """Return which channels each inner space keeps, by its writer's name."""
        return {
            name: keep_most(score, width * len(score), self.align, 1)
            for name, score in self.scores.items()
        }

    def cut(self, point: ShrinkPoint) -> nn.Module:
        """Return the point's network with the batch norms as they were: enough for its cost."""
        gone: list[str] = []
        for names, depth in zip(self.stages.values(), point.depths, strict=True):
            gone += names[: len(names) - depth]
        small = drop_blocks(self.model, gone)
        if point.width == 1.0:
            return small
        structure = discover(small, self.input_shape(point.side))
        kept = {
            structure.space_of(name).identifier: indices
            for name, indices in self.kept(point.width).items()
            if name in structure.layers
        }
        return remove_channels(small, structure, kept)

    def build(self, point: ShrinkPoint) -> nn.Module:
        """Return the point's network, ready to run."""
        if point == self.whole:
            return copy.deepcopy(self.model)
        images = self.images
        if point.side != self.side:
            images = resize_all(images, point.side)
        return reestimate_bn(self.cut(point), images)
