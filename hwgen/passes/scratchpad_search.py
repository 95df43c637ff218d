# SPDX-License-Identifier: Apache-2.0
"""The passes room: a search for addresses of what lives in the scratchpad, by backtracking."""

from __future__ import annotations

from dataclasses import dataclass

from hwgen.arch.config import AcceleratorConfig

_LIMIT = 20_000


@dataclass
class Tenant:
    """A map or a strip buffer to place: alive from layer `birth` to layer `death`, inclusive."""

    name: str
    words: int
    birth: int
    death: int

    def alive_at(self, layer: int) -> bool:
        """Tell whether it lives while a layer runs."""
        return self.birth <= layer <= self.death

    def alive_with(self, other: Tenant) -> bool:
        """Tell whether both live at some time."""
        return self.birth <= other.death and other.birth <= self.death


def search(
    tensors: list[Tenant],
    first: int,
    placed: dict[str, int],
    apart: dict[str, set[str]],
    config: AcceleratorConfig,
    downwards: bool = False,
) -> bool:
    """Place the tensors from number `first` on; return whether it was found how.

    Parameters
    ----------
    placed
        First word of each tensor by its name; those before `first` are in it. Filled in.
    apart
        For a tensor the names of those that must lie in no bank that it lies in.
    downwards
        Try high addresses first.
    """
    return _place_from(first, tensors, placed, apart, config, [_LIMIT], downwards)


def _place_from(
    index: int,
    tensors: list[Tenant],
    placed: dict[str, int],
    apart: dict[str, set[str]],
    config: AcceleratorConfig,
    budget: list[int],
    downwards: bool,
) -> bool:
    """Place tensor `index` and those after it, backtracking; `budget` bounds the tries."""
    if index == len(tensors):
        return True
    tensor = tensors[index]
    others = [t for t in tensors[:index] if t.alive_with(tensor)]
    for address in sorted(_candidates(tensor, others, placed, config), reverse=downwards):
        budget[0] -= 1
        if budget[0] < 0:
            return False
        if _is_free(tensor, address, others, placed, apart, config):
            placed[tensor.name] = address
            if _place_from(index + 1, tensors, placed, apart, config, budget, downwards):
                return True
            del placed[tensor.name]
    return False


def _candidates(
    tensor: Tenant,
    others: list[Tenant],
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
    return [a for a in found if 0 <= a <= config.scratchpad_words - tensor.words]


def _is_free(
    tensor: Tenant,
    address: int,
    others: list[Tenant],
    placed: dict[str, int],
    apart: dict[str, set[str]],
    config: AcceleratorConfig,
) -> bool:
    end = address + tensor.words
    for other in others:
        start, stop = placed[other.name], placed[other.name] + other.words
        if address < stop and start < end:
            return False
        if other.name in apart.get(tensor.name, ()):
            first, last = config.bank_of(address), config.bank_of(end - 1)
            if first <= config.bank_of(stop - 1) and config.bank_of(start) <= last:
                return False
    return True
