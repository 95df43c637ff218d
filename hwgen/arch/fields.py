# SPDX-License-Identifier: Apache-2.0
"""The contract room: declarative bit layouts, packed and unpacked in one place.

A `Layout` lists its fields from bit 0 upwards. The generator packs with it, the interpreter
unpacks with it and the RTL derives its signal layouts from it; nobody else spells a bit position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One field: `bits` wide, two's complement when `signed`, documented by `doc`."""

    name: str
    bits: int
    doc: str
    signed: bool = False

    @property
    def minimum(self) -> int:
        """Smallest value the field holds."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def maximum(self) -> int:
        """Largest value the field holds."""
        return (1 << (self.bits - self.signed)) - 1


class FieldRangeError(ValueError):
    """A value does not fit its field."""


class Layout:
    """An ordered list of fields, bit 0 first.

    Parameters
    ----------
    name
        Used in messages and documentation.
    fields
        From the least significant bit upwards.
    bits
        Total width. Fields may be fewer bits (the rest is zero), never more.

    Raises
    ------
    ValueError
        When fields repeat a name or are wider than `bits` together.
    """

    def __init__(self, name: str, fields: tuple[Field, ...], bits: int | None = None) -> None:
        used = sum(field.bits for field in fields)
        self.name = name
        self.fields = fields
        self.bits = used if bits is None else bits
        self.by_name = {field.name: field for field in fields}
        if len(self.by_name) != len(fields):
            raise ValueError(f"{name}: field names must be distinct")
        if used > self.bits:
            raise ValueError(f"{name}: fields take {used} bits, the layout has {self.bits}")

    def placed(self) -> Iterator[tuple[Field, int]]:
        """Yield (field, position of its bit 0)."""
        position = 0
        for field in self.fields:
            yield field, position
            position += field.bits

    def pack(self, values: Mapping[str, int]) -> int:
        """Pack into an integer of `bits` bits; fields not given are zero.

        Raises
        ------
        KeyError
            For a name the layout does not have.
        FieldRangeError
            For a value outside its field, naming both.
        """
        unknown = set(values) - set(self.by_name)
        if unknown:
            raise KeyError(f"{self.name} has no field {sorted(unknown)}")
        word = 0
        for field, position in self.placed():
            value = int(values.get(field.name, 0))
            if not field.minimum <= value <= field.maximum:
                raise FieldRangeError(
                    f"{self.name}.{field.name} must be {field.minimum} to {field.maximum} "
                    f"({field.bits} bits), not {value}"
                )
            word |= (value & ((1 << field.bits) - 1)) << position
        return word

    def unpack(self, word: int) -> dict[str, int]:
        """Split an integer into its fields."""
        values = {}
        for field, position in self.placed():
            value = (word >> position) & ((1 << field.bits) - 1)
            if field.signed and value >> (field.bits - 1):
                value -= 1 << field.bits
            values[field.name] = value
        return values
