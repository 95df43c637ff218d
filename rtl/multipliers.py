# SPDX-License-Identifier: Apache-2.0
"""The hardware room: int8 multipliers made of LUTs, one LUT6 a bit and row.

A row adds one multiple of the words, chosen by weight bits, to the upper bits of the running sum;
those below are done. A bit's LUT6 takes the sum's bit, and five inputs that choose and hold the
multiple's; the carry chain does the rest. Two rows lie between registers, all of them reset-less.

The operands' delay lines belong to the caller's `Pipeline`, so that multipliers which share an
operand share its line.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed

from rtl.pipeline import FLIP_FLOPS, Pipeline

BOOTH_CYCLES = 2
PAIR_CYCLES = 4
ROWS_A_CYCLE = 2


def add(a: Value, b: Value, carry: Value | int = 0) -> Value:
    """Return ``a + b + carry`` of signed operands as one carry chain, a LUT a bit.

    `b` may be any function of up to five inputs: the LUTs hold it. For that `a` must be the operand
    that feeds the carry chain, and Yosys keeps the order of a subtraction only. The carry comes
    out of a bit below the others, ``a - ~b - 1`` being the sum.
    """
    carry = Value.cast(carry)[0]
    return (((a << 1) | carry) - ((~b << 1) | ~carry) >> 1).as_signed()


def booth_product(m: Module, lines: Pipeline, name: str, weight: Signal, word: Signal) -> Signal:
    """Return ``weight * word`` of int8, in a register of 16 bits, BOOTH_CYCLES later.

    Booth's radix 4: row j adds the word times a digit of -2 to 2, which the weight's bits 2j - 1
    to 2j + 1 make.
    """
    running: Value = Const(0, 8)
    for row in range(4):
        cycle, done = row // ROWS_A_CYCLE, 2 * row
        words = lines.at(word, cycle)
        digit = Cat(Const(0, 1), lines.at(weight, cycle))[done : done + 3]
        once, twice = digit[0] ^ digit[1], (digit == 0b011) | (digit == 0b100)
        magnitude = Mux(twice, words << 1, Mux(once, words, 0))
        multiple = Mux(digit[2], ~magnitude, magnitude)
        upper = add(running[done:].as_signed(), multiple, digit[2])
        running = Cat(running[:done], upper[:10])
        if row % ROWS_A_CYCLE == ROWS_A_CYCLE - 1:
            running = _registered(m, f"{name}_{row}", running)
    return running


def pair_sum(
    m: Module,
    lines: Pipeline,
    name: str,
    weights: tuple[Signal, Signal],
    words: tuple[Signal, Signal],
    both: Signal,
) -> Signal:
    """Return ``weights[0] * words[0] + weights[1] * words[1]`` of int8, PAIR_CYCLES later.

    `both` is ``words[0] + words[1]`` of the same cycle, which all who share the words share. Row j
    adds, by bit j of either weight, none of the words, one or both; the last row subtracts. The
    result is in a register of 17 bits.
    """
    running: Value = Const(0, 9)
    for row in range(8):
        cycle = row // ROWS_A_CYCLE
        first, second = (lines.at(weight, cycle)[row] for weight in weights)
        one, other = (lines.at(word, cycle) for word in words)
        multiple = Mux(first, Mux(second, lines.at(both, cycle), one), Mux(second, other, 0))
        upper = running[row:].as_signed()
        upper = add(upper, multiple) if row < 7 else add(upper, ~multiple, 1)
        running = Cat(running[:row], upper[:10])
        if row % ROWS_A_CYCLE == ROWS_A_CYCLE - 1:
            running = _registered(m, f"{name}_{row}", running)
    return running


def _registered(m: Module, name: str, running: Value) -> Signal:
    """Return the running sum a cycle later; its bits that are done wait in flip-flops."""
    register = Signal(signed(len(running)), name=name, reset_less=True, attrs=FLIP_FLOPS)
    m.d.sync += register.eq(running)
    return register
