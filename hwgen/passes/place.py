# SPDX-License-Identifier: Apache-2.0
"""The passes room: give every feature map a place in the scratchpad.

Before, tensors have sizes and lifetimes; after, each has a first word such that maps alive together
do not overlap, and a layer's input and residual lie in different banks::

    x     0 ..  4095  bank 0            y = conv(x)
    y  4096 ..  8191  bank 1            z = conv(y) + x      x and y in different banks
    z  8192 .. 12287  bank 2
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hwgen.arch.config import AcceleratorConfig
from hwgen.ir.machine import MachineGraph

_SEARCH_LIMIT = 200_000


class PlacementError(ValueError):
    """The feature maps do not fit the scratchpad; the message names the layer and the sizes."""


@dataclass
class _Tensor:
    """A map to place: alive from layer `birth` to layer `death`, both included."""

    name: str
    words: int
    birth: int
    death: int

    def alive_with(self, other: _Tensor) -> bool:
        return self.birth <= other.death and other.birth <= self.death


def place(graph: MachineGraph, config: AcceleratorConfig) -> MachineGraph:
    """Return the graph with `addresses` filled in.

    Raises
    ------
    PlacementError
        When no placement exists (or none was found in a bounded search).
    """
    tensors = _lifetimes(graph)
    apart: dict[str, set[str]] = {tensor.name: set() for tensor in tensors}
    for layer in graph.layers:
        if layer.residual is not None:
            apart[layer.input].add(layer.residual)
            apart[layer.residual].add(layer.input)
    _check_demand(graph, tensors, config)
    placed: dict[str, int] = {}
    budget = [_SEARCH_LIMIT]
    if not _search(tensors, 0, placed, apart, config, budget):
        worst = max(range(len(graph.layers)), key=lambda i: _demand(tensors, i))
        raise PlacementError(
            f"no placement of the feature maps in {config.scratchpad_banks} banks of "
            f"{config.scratchpad_bank_words} words was found; the tightest layer is "
            f"{graph.layers[worst].name!r} with {_demand(tensors, worst)} words alive. "
            "Try more or larger banks, or a smaller input resolution"
        )
    return replace(graph, addresses=placed)


def _lifetimes(graph: MachineGraph) -> list[_Tensor]:
    """List tensors in order of birth; the network's outputs live to the end."""
    tensors = {graph.input: _Tensor(graph.input, graph.layouts[graph.input].words, -1, -1)}
    for index, layer in enumerate(graph.layers):
        for name in (layer.input, layer.residual):
            if name is not None:
                tensors[name].death = index
        words = graph.layouts[layer.output].words
        tensors[layer.output] = _Tensor(layer.output, words, index, index)
    for name in graph.outputs:
        tensors[name].death = len(graph.layers)
    return list(tensors.values())


def _demand(tensors: list[_Tensor], index: int) -> int:
    """Words alive while layer `index` runs."""
    return sum(t.words for t in tensors if t.birth <= index <= t.death)


def _check_demand(graph: MachineGraph, tensors: list[_Tensor], config: AcceleratorConfig) -> None:
    for index, layer in enumerate(graph.layers):
        needed = _demand(tensors, index)
        if needed > config.scratchpad_words:
            alive = ", ".join(f"{t.name} {t.words}" for t in tensors if t.birth <= index <= t.death)
            raise PlacementError(
                f"layer {layer.name!r} needs {needed} scratchpad words ({alive}), the machine "
                f"has {config.scratchpad_words} (scratchpad_banks x scratchpad_bank_words); "
                "try more or larger banks, fewer channels, or a smaller input resolution"
            )


def _search(
    tensors: list[_Tensor],
    index: int,
    placed: dict[str, int],
    apart: dict[str, set[str]],
    config: AcceleratorConfig,
    budget: list[int],
) -> bool:
    """Place tensor `index` and those after it, backtracking; `budget` bounds the tries."""
    if index == len(tensors):
        return True
    tensor = tensors[index]
    others = [t for t in tensors[:index] if t.alive_with(tensor)]
    for address in _candidates(tensor, others, placed, config):
        budget[0] -= 1
        if budget[0] < 0:
            return False
        if _fits(tensor, address, others, placed, apart, config):
            placed[tensor.name] = address
            if _search(tensors, index + 1, placed, apart, config, budget):
                return True
            del placed[tensor.name]
    return False


def _candidates(
    tensor: _Tensor,
    others: list[_Tensor],
    placed: dict[str, int],
    config: AcceleratorConfig,
) -> list[int]:
    """Addresses worth trying: at bank starts, and right behind or in front of living maps."""
    bank = config.scratchpad_bank_words
    found = {b * bank for b in range(config.scratchpad_banks)}
    found.add(config.scratchpad_words - tensor.words)
    for other in others:
        found.add(placed[other.name] + other.words)
        found.add(placed[other.name] - tensor.words)
    return sorted(a for a in found if 0 <= a <= config.scratchpad_words - tensor.words)


def _fits(
    tensor: _Tensor,
    address: int,
    others: list[_Tensor],
    placed: dict[str, int],
    apart: dict[str, set[str]],
    config: AcceleratorConfig,
) -> bool:
    end = address + tensor.words
    for other in others:
        start, stop = placed[other.name], placed[other.name] + other.words
        if address < stop and start < end:
            return False
        if other.name in apart[tensor.name]:
            first, last = config.bank_of(address), config.bank_of(end - 1)
            if first <= config.bank_of(stop - 1) and config.bank_of(start) <= last:
                return False
    return True
