# SPDX-License-Identifier: Apache-2.0
"""The tests room: saving, loading and refusing bundles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwgen.arch import AcceleratorConfig, Bundle, BundleError, Placement
from hwgen.backends import program
from tests.support.quantized_graphs import every_operation


@pytest.fixture
def bundle() -> Bundle:
    """Compile a graph with every operation."""
    graph = every_operation(np.random.default_rng(0), 3, 9, 8)
    return program.emit(graph, AcceleratorConfig(), "net", ((0.5,) * 3, (0.25,) * 3), ["a"] * 10)


def test_round_trip(bundle: Bundle, tmp_path: Path) -> None:
    """What is loaded equals what was saved, and a second save replaces the first."""
    folder = bundle.save(tmp_path / "net")
    assert Bundle.load(folder) == bundle
    bundle.save(folder)
    assert Bundle.load(folder) == bundle
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_save_refuses_to_replace_a_stranger(bundle: Bundle, tmp_path: Path) -> None:
    """A folder that is no bundle is left alone."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(BundleError, match="is no bundle; choose another folder"):
        bundle.save(tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"cat"


@pytest.mark.parametrize("name", ["manifest.json", "setup.bin", "program.bin", "constants.bin"])
def test_damage_is_found(bundle: Bundle, tmp_path: Path, name: str) -> None:
    """A flipped bit, a truncated file and a missing file are each refused by name."""
    folder = bundle.save(tmp_path / "net")
    file = folder / name
    good = file.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(good), 20):
        bad = bytearray(good)
        bad[position] ^= 1
        file.write_bytes(bytes(bad))
        with pytest.raises(BundleError, match=r"damaged|manifest"):
            Bundle.load(folder)
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(BundleError, match="damaged"):
        Bundle.load(folder)
    file.unlink()
    with pytest.raises(BundleError, match=r"missing|no manifest"):
        Bundle.load(folder)
    file.write_bytes(good)
    assert Bundle.load(folder) == bundle


def test_input_checks(bundle: Bundle) -> None:
    """Wrong shape, dtype and values are refused, saying what was given."""
    good = np.zeros((3, 9, 8), np.float32)
    assert bundle.quantize_input(good).shape == (9, 8, 3)
    assert bundle.quantize_input(good[None]).shape == (9, 8, 3)
    with pytest.raises(ValueError, match=r"must have shape \(3, 9, 8\).*not \(9, 8, 3\)"):
        bundle.quantize_input(good.transpose(1, 2, 0))
    with pytest.raises(ValueError, match="must be float32, not float64"):
        bundle.quantize_input(good.astype(np.float64))
    bad = good.copy()
    bad[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        bundle.quantize_input(bad)
    with pytest.raises(ValueError, match="codes must be int8"):
        bundle.pack_input(np.zeros((9, 8, 3), np.uint8))


def test_preprocess(bundle: Bundle) -> None:
    """A picture becomes (picture / 255 - mean) / std, channels first."""
    picture = np.full((9, 8, 3), 255, np.uint8)
    assert np.array_equal(bundle.preprocess(picture), np.full((3, 9, 8), 2, np.float32))


def test_placements_overlap_when_either_buffer_does() -> None:
    """Regions that touch do not overlap; regions that share a row do."""
    a = Placement(0, 10, 0, 5)
    assert not a.overlaps(Placement(10, 10, 5, 5))
    assert a.overlaps(Placement(9, 10, 5, 5))
    assert a.overlaps(Placement(10, 10, 4, 5))
