# SPDX-License-Identifier: Apache-2.0
"""The simulation room: ends of a stream with seeded stalls, and structs as integers."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from typing import Any

from amaranth.hdl import Shape
from amaranth.lib import data


def pack(layout: data.StructLayout, values: Mapping[str, int]) -> int:
    """Pack a struct's fields, two's complement; fields not given are zero."""
    word = 0
    for name, value in values.items():
        field = layout[name]
        word |= (int(value) & ((1 << field.width) - 1)) << field.offset
    return word


def unpack(layout: data.StructLayout, word: int) -> dict[str, int]:
    """Split a struct into its fields; a field that is itself a struct stays one integer."""
    values = {}
    for name, field in layout:
        value = word >> field.offset & ((1 << field.width) - 1)
        if Shape.cast(field.shape).signed and value >> field.width - 1:
            value -= 1 << field.width
        values[name] = value
    return values


def drive(signal: Any, value: int) -> None:
    """Drive the low bits of `value`, which may be negative."""
    signal.value = value & ((1 << len(signal)) - 1)


class Source:
    """Offers `items` one after the other; an offer stays until it is taken.

    Call `drive` in every cycle before ReadOnly and `sample` after it. Between offers the payload
    is noise.
    """

    def __init__(self, dut: Any, name: str, rng: random.Random, stall: float) -> None:
        self.valid, self.ready, self.payload = (
            getattr(dut, f"{name}__{part}") for part in ("valid", "ready", "payload")
        )
        self.rng, self.stall = rng, stall
        self.items: deque[int] = deque()
        self.offered = False
        self.valid.value = 0

    def drive(self) -> None:
        """Offer the next item, or stall."""
        self.offered = bool(self.items) and (self.offered or self.rng.random() >= self.stall)
        self.valid.value = int(self.offered)
        noise = self.rng.getrandbits(len(self.payload))
        self.payload.value = self.items[0] if self.offered else noise

    def sample(self) -> int | None:
        """Return the item that is taken in this cycle."""
        if not self.offered or not int(self.ready.value):
            return None
        self.offered = False
        return self.items.popleft()


class Sink:
    """Takes what is offered, with stalls, and insists that an offer stays until it is taken."""

    def __init__(self, dut: Any, name: str, rng: random.Random, stall: float) -> None:
        self.valid, self.ready, self.payload = (
            getattr(dut, f"{name}__{part}") for part in ("valid", "ready", "payload")
        )
        self.rng, self.stall = rng, stall
        self.waiting: int | None = None
        self.ready.value = 0

    def drive(self) -> None:
        """Be ready, or stall."""
        self.ready.value = int(self.rng.random() >= self.stall)

    def sample(self) -> int | None:
        """Return the payload that is taken in this cycle."""
        if not int(self.valid.value):
            assert self.waiting is None, "an offer was withdrawn"
            return None
        offer = int(self.payload.value)
        assert self.waiting in (None, offer), "an offer changed before it was taken"
        taken = int(self.ready.value)
        self.waiting = None if taken else offer
        return offer if taken else None
