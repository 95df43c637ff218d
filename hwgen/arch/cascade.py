# SPDX-License-Identifier: Apache-2.0
"""The contract's cascade rule: when a small network's answer is enough, and when to ask a larger.

One definition for choosing thresholds and for the host on the board, bit for bit. Networks of
growing cost see the same image, one after the other:

- Stage k's running logits are ``sum_{j <= k} alpha_j * logits_j`` in float64, ``alpha_1 = 1``.
- Their confidence is the margin of the softmax, largest less second largest probability, or its
  largest probability.
- The next stage is run while the confidence is below the stage's threshold; the last stage's
  answer stands. The label is the first of the largest running logits.

The exponential is made here of additions, multiplications and powers of two, and sums run from the
first class to the last, so that no library's rounding can send an image another way on the board
than on the PC.

The rule is that of EdgeCompress (TCAD 2023, dynamic inference).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Confidence = Literal["margin", "top1"]
CONFIDENCES = ("margin", "top1")

NEVER = 0.0
"""A threshold that no confidence is below: the stage's answer always stands."""

ALWAYS = 2.0
"""A threshold that every confidence is below: the next stage is always run."""

_LEAST_EXPONENT = -700.0  # e**-700 is still a normal number, and nothing beside 1
_LOG2_E = 1.44269504088896338700
_LN2_HIGH = 6.93147180369123816490e-01  # its last 32 bits are 0: times a power's number it is exact
_LN2_LOW = 1.90821492927058770002e-10
_TAYLOR = tuple(1.0 / math.factorial(n) for n in range(13, -1, -1))


def _exp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return e**x for x of 0 or less, the same bits everywhere."""
    x = np.maximum(x, _LEAST_EXPONENT)
    power = np.rint(x * _LOG2_E)
    rest = (x - power * _LN2_HIGH) - power * _LN2_LOW
    value = np.full_like(rest, _TAYLOR[0])
    for coefficient in _TAYLOR[1:]:
        value = value * rest + coefficient
    return np.ldexp(value, power.astype(np.int32))


def confidence_of(logits: ArrayLike, kind: Confidence = "margin") -> NDArray[np.float64]:
    """Return how sure the softmax of each row of logits is, (N,) float64 in [0, 1].

    Parameters
    ----------
    logits
        Real (N, classes), at least two classes.
    kind
        "margin": largest less second largest probability; "top1": largest probability.

    Raises
    ------
    ValueError
        For another shape, NaN, infinities or another kind.
    """
    if kind not in CONFIDENCES:
        raise ValueError(f"confidence must be one of {CONFIDENCES!r}, not {kind!r}")
    rows = _rows(logits)
    shares = _exp(rows - rows.max(axis=1, keepdims=True))
    total = np.add.accumulate(shares, axis=1)[:, -1]  # in order, unlike a sum
    if kind == "top1":
        return np.asarray(1.0 / total)
    second = np.partition(shares, -2, axis=1)[:, -2]
    return np.asarray((1.0 - second) / total)


def _rows(logits: ArrayLike) -> NDArray[np.float64]:
    """Return logits as float64 (N, classes), checked."""
    rows = np.ascontiguousarray(logits, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] < 2:
        raise ValueError(
            f"logits must have the shape (N, classes) with at least 2 classes, not {rows.shape!r}"
        )
    if not np.isfinite(rows).all():
        raise ValueError("logits must be finite; try looking for NaN in the networks' outputs")
    return rows


@dataclass(frozen=True)
class CascadeRule:
    """When the next stage is run, and how its logits are added. See the module's docstring.

    Attributes
    ----------
    thresholds
        One for each stage but the last: the next stage is run while the confidence is below it.
        0 (`NEVER`) to 2 (`ALWAYS`).
    alphas
        Weight of each later stage's logits, 0 or more; a single one counts for all of them.
    confidence
        "margin" or "top1".
    """

    thresholds: tuple[float, ...]
    alphas: tuple[float, ...] = (1.0,)
    confidence: Confidence = "margin"

    def __post_init__(self) -> None:
        """Check the ranges; write a single alpha out."""
        thresholds = tuple(map(float, self.thresholds))
        alphas = tuple(map(float, self.alphas))
        if not thresholds or not all(NEVER <= t <= ALWAYS for t in thresholds):
            raise ValueError(
                f"thresholds must be one or more numbers in [{NEVER}, {ALWAYS}], not "
                f"{self.thresholds!r}"
            )
        if len(alphas) == 1:
            alphas *= len(thresholds)
        if len(alphas) != len(thresholds) or not all(0.0 <= a < math.inf for a in alphas):
            raise ValueError(
                f"alphas must be one number of 0 or more, or {len(thresholds)} of them, not "
                f"{self.alphas!r}"
            )
        if self.confidence not in CONFIDENCES:
            raise ValueError(f"confidence must be one of {CONFIDENCES!r}, not {self.confidence!r}")
        object.__setattr__(self, "thresholds", thresholds)
        object.__setattr__(self, "alphas", alphas)

    @property
    def stages(self) -> int:
        """Networks in the cascade."""
        return len(self.thresholds) + 1

    @property
    def reachable(self) -> int:
        """Networks that some image may run: those up to a threshold of 0."""
        return (*self.thresholds, NEVER).index(NEVER) + 1

    def fuse(
        self, stage: int, running: NDArray[np.float64] | None, logits: ArrayLike
    ) -> NDArray[np.float64]:
        """Add the logits (N, classes) of `stage`, counted from 0, to those of the stages before."""
        rows = _rows(logits)
        if stage == 0 or running is None:
            return rows
        if rows.shape != running.shape:
            raise ValueError(
                f"all stages must give logits of one shape, not {running.shape!r} and "
                f"{rows.shape!r}"
            )
        return np.asarray(running + self.alphas[stage - 1] * rows)

    def escalate(self, stage: int, confidence: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which images the stage behind `stage`, counted from 0, must be run for."""
        if stage == self.stages - 1:
            return np.zeros(confidence.shape, dtype=bool)
        return np.asarray(confidence < self.thresholds[stage])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CascadeRule:
        """Rebuild a rule from `to_dict`'s data; raises ValueError as the constructor."""
        return cls(tuple(data["thresholds"]), tuple(data["alphas"]), data["confidence"])


@dataclass(frozen=True)
class CascadeOutcome:
    """What a rule makes of images.

    Attributes
    ----------
    labels
        int64 (N,).
    stages
        int64 (N,): how many networks each image ran, from 1.
    confidence
        float64 (N,), of the running logits that the label comes from.
    logits
        float64 (N, classes), the same.
    """

    labels: NDArray[np.int64]
    stages: NDArray[np.int64]
    confidence: NDArray[np.float64]
    logits: NDArray[np.float64]


def run_rule(rule: CascadeRule, logits_of_stages: Sequence[ArrayLike]) -> CascadeOutcome:
    """Apply a rule to the logits that every stage has for every image.

    Parameters
    ----------
    rule
        The rule.
    logits_of_stages
        For each stage real (N, classes).

    Raises
    ------
    ValueError
        If there are not as many stages as the rule has, or their shapes differ.
    """
    if len(logits_of_stages) != rule.stages:
        raise ValueError(
            f"the rule must get logits of {rule.stages} stages, not {len(logits_of_stages)}"
        )
    running = rule.fuse(0, None, logits_of_stages[0])
    count = len(running)
    stages = np.zeros(count, dtype=np.int64)
    final, confidence = np.empty_like(running), np.empty(count)
    alive = np.ones(count, dtype=bool)
    for stage, logits in enumerate(logits_of_stages):
        running = rule.fuse(stage, running, logits)
        sure = confidence_of(running, rule.confidence)
        stages[alive], final[alive], confidence[alive] = stage + 1, running[alive], sure[alive]
        alive &= rule.escalate(stage, sure)
    return CascadeOutcome(final.argmax(axis=1), stages, confidence, final)
