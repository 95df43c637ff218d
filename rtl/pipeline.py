# SPDX-License-Identifier: Apache-2.0
"""The hardware room: values that travel along a pipeline."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import data

FLIP_FLOPS = {"keep": 1, "shreg_extract": "no"}
"""Attributes of a register that Yosys and Vivado must not make a shift-register LUT of."""


class Pipeline:
    """Delay lines of one module, made as far as they are asked for.

    Data are reset-less, so that a long line becomes shift-register LUTs, or stays flip-flops
    without `shift_registers`; `control` bits (valid flags) are reset.
    """

    def __init__(self, m: Module, *, shift_registers: bool = True) -> None:
        self._module = m
        self._attributes = {} if shift_registers else FLIP_FLOPS
        self._lines: dict[int, list] = {}

    def at(
        self, signal: Signal | data.View, cycles: int, *, control: bool = False
    ) -> Signal | data.View:
        """Return `signal` as it was `cycles` cycles ago (0: itself)."""
        line = self._lines.setdefault(id(signal), [signal])
        while len(line) <= cycles:
            before = line[-1]
            name = f"{Value.cast(signal).name}_{len(line)}"
            shape = before.shape()
            after = Signal(shape, name=name, reset_less=not control, attrs=self._attributes)
            self._module.d.sync += after.eq(before)
            line.append(after)
        return line[cycles]
