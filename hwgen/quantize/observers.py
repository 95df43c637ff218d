# SPDX-License-Identifier: Apache-2.0
"""The quantization room: observers choose the range that an edge's int8 code covers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwgen.ir import QuantParams

Scheme = Literal["affine", "power_of_two"]
BINS = 2048


def code_for_range(lo: float, hi: float, scheme: Scheme) -> QuantParams:
    """Return the int8 code covering [lo, hi], which is widened to hold zero.

    Affine: 255 steps over the range, the zero point where zero falls (Jacob et al., CVPR 2018,
    section 2.1); a range that starts at zero gets zero point -128. Power of two: zero point 0 and
    the smallest power-of-two scale that reaches both ends.
    """
    lo, hi = min(float(lo), 0.0), max(float(hi), 0.0)
    if lo == hi:  # an edge that never leaves zero still needs a scale
        return QuantParams(1.0, 0)
    if scheme == "power_of_two":
        steps = max(hi / 127, -lo / 128)
        return QuantParams(2.0 ** int(np.ceil(np.log2(steps) - 1e-9)), 0)
    scale = (hi - lo) / 255
    return QuantParams(scale, int(np.clip(np.floor(-128 - lo / scale + 0.5), -128, 127)))


@dataclass
class Histogram:
    """Values of one edge over the calibration images: their range, then how often each occurs."""

    lo: float = 0.0
    hi: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def widen(self, values: NDArray[np.float32]) -> None:
        """First pass: take in the range."""
        self.lo = min(self.lo, float(values.min()))
        self.hi = max(self.hi, float(values.max()))

    def count(self, values: NDArray[np.float32]) -> None:
        """Second pass: count values in `BINS` bins between `lo` and `hi`."""
        if self.hi > self.lo:
            span = (self.hi - self.lo) * (1 + 1e-6)
            bins = ((values.ravel() - self.lo) * (BINS / span)).astype(np.int64)
            self.counts += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)

    @property
    def centers(self) -> NDArray[np.float64]:
        """Middle of each bin."""
        return self.lo + (np.arange(BINS) + 0.5) * ((self.hi - self.lo) / BINS)


@dataclass(frozen=True)
class MinMax:
    """Cover everything that was seen."""

    def choose(self, seen: Histogram, scheme: Scheme) -> QuantParams:
        """Return the edge's code."""
        return code_for_range(seen.lo, seen.hi, scheme)


@dataclass(frozen=True)
class Percentile:
    """Cover the middle `percent` of what was seen (the rest is clipped, half at each end)."""

    percent: float = 99.99

    def __post_init__(self) -> None:
        """Refuse a share that leaves nothing."""
        if not 50 < self.percent <= 100:
            raise ValueError(f"percent must be in (50, 100], not {self.percent!r}; try 99.99")

    def choose(self, seen: Histogram, scheme: Scheme) -> QuantParams:
        """Return the edge's code."""
        total = seen.counts.sum()
        if not total:
            return code_for_range(seen.lo, seen.hi, scheme)
        below = np.cumsum(seen.counts) / total
        cut = (1 - self.percent / 100) / 2
        width = (seen.hi - seen.lo) / BINS
        first = int(np.searchsorted(below, cut, side="right"))
        last = min(int(np.searchsorted(below, 1 - cut, side="left")), BINS - 1)
        return code_for_range(seen.lo + first * width, seen.lo + (last + 1) * width, scheme)


@dataclass(frozen=True)
class MSE:
    """Take the range with the least mean squared error of the codes over what was seen.

    Both ends shrink in `steps` steps, first together, then each alone (the search of Choukroun et
    al., ICCVW 2019, on a histogram).
    """

    steps: int = 64

    def choose(self, seen: Histogram, scheme: Scheme) -> QuantParams:
        """Return the edge's code."""
        if not seen.counts.any():
            return code_for_range(seen.lo, seen.hi, scheme)
        used = seen.counts > 0
        values, weights = seen.centers[used], seen.counts[used].astype(np.float64)

        def error(code: QuantParams) -> float:
            levels = np.floor(values / code.scale + 0.5) + code.zero_point
            real = (np.clip(levels, -128, 127) - code.zero_point) * code.scale
            return float(((real - values) ** 2) @ weights)

        if scheme == "power_of_two":
            widest = code_for_range(seen.lo, seen.hi, scheme).scale
            return min((QuantParams(widest * 2.0**-k, 0) for k in range(6)), key=error)
        shrink = np.linspace(1.0, 0.2, self.steps)

        def best(pairs: list[tuple[float, float]]) -> tuple[float, float]:
            return min(
                pairs, key=lambda p: error(code_for_range(p[0] * seen.lo, p[1] * seen.hi, scheme))
            )

        low, high = best([(s, s) for s in shrink])
        if seen.lo < 0 < seen.hi:
            low, high = best([(s, high) for s in shrink])
            low, high = best([(low, s) for s in shrink])
        return code_for_range(low * seen.lo, high * seen.hi, scheme)


Observer = MinMax | Percentile | MSE
OBSERVERS: dict[str, Observer] = {"minmax": MinMax(), "percentile": Percentile(), "mse": MSE()}


def observer_named(observer: str | Observer) -> Observer:
    """Return the observer of this name, or the observer itself."""
    if isinstance(observer, str):
        if observer not in OBSERVERS:
            raise ValueError(f"observer must be one of {', '.join(OBSERVERS)}, not {observer!r}")
        return OBSERVERS[observer]
    return observer
