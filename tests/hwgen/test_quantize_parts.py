# SPDX-License-Identifier: Apache-2.0
"""Room tests: observers and multipliers, against what can be derived by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hwgen.quantize.multipliers import PrecisionError, choose_multipliers, smallest_factor
from hwgen.quantize.observers import (
    MSE,
    Histogram,
    MinMax,
    Percentile,
    code_for_range,
    observer_named,
)


def histogram(values: np.ndarray) -> Histogram:
    seen = Histogram()
    for part in np.array_split(values.astype(np.float32), 3):
        seen.widen(part)
    for part in np.array_split(values.astype(np.float32), 3):
        seen.count(part)
    return seen


def test_code_for_range() -> None:
    relu = code_for_range(0.0, 2.55, "affine")
    assert relu.zero_point == -128 and relu.scale == pytest.approx(0.01)
    assert code_for_range(-1.0, 1.0, "affine").zero_point in (-1, 0)
    assert code_for_range(3.0, 5.1, "affine").zero_point == -128  # zero is always inside
    assert code_for_range(-5.1, -3.0, "affine").zero_point == 127
    assert code_for_range(0.0, 127.0, "power_of_two").scale == 1.0
    assert code_for_range(0.0, 127.1, "power_of_two").scale == 2.0
    assert code_for_range(-128.0, 0.0, "power_of_two").scale == 1.0
    assert code_for_range(0.0, 0.0, "affine").scale == 1.0


def test_histogram_counts_everything(rng: np.random.Generator) -> None:
    values = rng.standard_normal(10_000)
    seen = histogram(values)
    assert seen.counts.sum() == 10_000
    assert seen.lo == values.astype(np.float32).min() and seen.hi == values.astype(np.float32).max()
    mean = seen.centers @ seen.counts / 10_000
    assert abs(mean - values.mean()) < (seen.hi - seen.lo) / len(seen.counts)


def test_observers_disagree_about_an_outlier(rng: np.random.Generator) -> None:
    values = np.append(rng.random(100_000), 30.0)  # uniform in [0, 1), and one far away
    seen = histogram(values)
    scale = {
        name: observer.choose(seen, "affine").scale
        for name, observer in (("all", MinMax()), ("some", Percentile()), ("mse", MSE()))
    }
    assert scale["all"] == pytest.approx(30 / 255)
    assert scale["some"] == pytest.approx(1 / 255, rel=0.05)
    assert scale["mse"] < scale["all"]


def test_mse_is_the_best_of_its_candidates(rng: np.random.Generator) -> None:
    values = rng.laplace(size=20_000)
    seen = histogram(values)

    def error(code: object) -> float:
        levels = np.clip(np.floor(values / code.scale + 0.5) + code.zero_point, -128, 127)  # type: ignore[attr-defined]
        return float((((levels - code.zero_point) * code.scale - values) ** 2).mean())  # type: ignore[attr-defined]

    for scheme in ("affine", "power_of_two"):
        best = error(MSE().choose(seen, scheme))  # type: ignore[arg-type]
        assert best <= 1.001 * error(MinMax().choose(seen, scheme))  # type: ignore[arg-type]


def test_observer_names() -> None:
    assert observer_named("minmax") == MinMax()
    assert observer_named(Percentile(99)) == Percentile(99)
    with pytest.raises(ValueError, match=r"percent must be in \(50, 100\], not 40; try 99\.99"):
        Percentile(40)


def test_multipliers_use_every_bit(rng: np.random.Generator) -> None:
    real = 2.0 ** rng.uniform(-25, 10, 1000)
    multiplier, shift, residual = choose_multipliers(real)
    assert residual is None
    assert (multiplier >= 2**15).all() and (multiplier < 2**16).all()
    assert (shift >= 0).all() and (shift <= 47).all()
    assert np.abs(multiplier / 2.0**shift / real - 1).max() <= 2.0**-16


def test_residual_shares_the_shift(rng: np.random.Generator) -> None:
    for residual in 2.0 ** rng.uniform(-3, 3, 50):
        real = np.maximum(2.0 ** rng.uniform(-14, 0, 20), smallest_factor(residual))
        multiplier, shift, other = choose_multipliers(real, residual)
        assert other is not None
        assert multiplier.max() < 2**16 and other.max() < 2**24
        assert multiplier.min() >= 2**7
        assert ((multiplier >= 2**15) | (other >= 2**23)).all()  # one of them is as wide as fits
        assert np.abs(other / 2.0**shift / residual - 1).max() <= 2.0**-8
        assert np.abs(multiplier / 2.0**shift / real - 1).max() <= 2.0**-8


def test_powers_of_two_are_exact() -> None:
    multiplier, shift, residual = choose_multipliers(np.array([2.0**-9, 2.0**-3, 4.0]), 2.0**-4)
    assert residual is not None
    assert multiplier.tolist() == [1, 2, 64]
    assert shift.tolist() == [9, 4, 4]
    assert residual.tolist() == [32, 1, 1]


def test_precision_is_refused() -> None:
    with pytest.raises(PrecisionError, match=r"the factor 3e-06 keeps fewer than 8 bits"):
        choose_multipliers(np.array([3e-6]), 3.0)
    with pytest.raises(PrecisionError, match=r"must be below 2\*\*16 and 2\*\*24"):
        choose_multipliers(np.array([70001.0]))
    multiplier, _, residual = choose_multipliers(np.array([1e-2]), 1e-9)  # too small to matter
    assert residual is not None and multiplier[0] >= 2**15
