# SPDX-License-Identifier: Apache-2.0
"""The quantization room: real factors become the machine's multipliers and shifts."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hwgen.arch.numerics import MULTIPLIER_BITS, RESIDUAL_MULTIPLIER_BITS, SHIFT_MAX

MIN_PRECISION_BITS = 8


class PrecisionError(ValueError):
    """Factors so far apart that one shift cannot serve both with `MIN_PRECISION_BITS` bits."""


def choose_multipliers(
    real: NDArray[np.float64], residual: float | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
    """Choose multiplier, shift and residual multiplier a channel, as precise as the widths allow.

    Parameters
    ----------
    real
        Factor of the accumulator, (C,), positive; 0 for a channel whose accumulator is always 0.
    residual
        Factor of the residual, positive, or None.

    Returns
    -------
    multiplier, shift, residual_multiplier
        int64 (C,): ``real = multiplier / 2**shift`` and likewise for the residual, with the
        largest shift (0..47) that leaves both inside their 16 and 24 bits. Factors that are all
        powers of two give powers of two, with the smallest shift that is exact.

    Raises
    ------
    PrecisionError
        When a factor keeps fewer than 8 bits, or is too large.
    """
    rows = [_choose(float(value), residual) for value in real]
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return columns[:, 0], columns[:, 1], None if residual is None else columns[:, 2]


def _choose(real: float, residual: float | None) -> tuple[int, int, int]:
    other = 0.0 if residual is None else residual
    factors = [f for f in (real, other) if f]
    if factors and all(math.frexp(f)[0] == 0.5 for f in factors):
        shift = max(0, *(1 - math.frexp(f)[1] for f in factors))
        found = int(real * 2.0**shift), shift, int(other * 2.0**shift)
        if shift <= SHIFT_MAX and _fits(found):
            return found
    for shift in range(SHIFT_MAX, -1, -1):
        found = round(real * 2.0**shift), shift, round(other * 2.0**shift)
        if _fits(found):
            break
    else:
        raise PrecisionError(
            f"the factors {real:.3g} and {other:.3g} must be below 2**{MULTIPLIER_BITS} and "
            f"2**{RESIDUAL_MULTIPLIER_BITS}"
        )
    for factor, code in ((real, found[0]), (other, found[2])):
        # A residual factor may be tiny: from shift 16 on its error is below 1/500 of a code.
        tiny = factor == other and found[1] >= 16
        if factor and code < 2 ** (MIN_PRECISION_BITS - 1) and not tiny:
            raise PrecisionError(
                f"the factor {factor:.3g} keeps fewer than {MIN_PRECISION_BITS} bits "
                f"(multiplier {code} at shift {found[1]})"
            )
    return found


def _fits(found: tuple[int, int, int]) -> bool:
    return found[0] < 2**MULTIPLIER_BITS and found[2] < 2**RESIDUAL_MULTIPLIER_BITS


def smallest_factor(residual: float | None) -> float:
    """Return the smallest accumulator factor that keeps its bits beside this residual factor.

    Weights whose scale would give less are quantized more coarsely than they could be; they are
    so small against the result that nothing is lost.
    """
    shift = SHIFT_MAX
    while residual and round(residual * 2.0**shift) >= 2**RESIDUAL_MULTIPLIER_BITS:
        shift -= 1
    return 2.0 ** (MIN_PRECISION_BITS - shift)
