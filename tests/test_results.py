# SPDX-License-Identifier: Apache-2.0
"""The tests room: the numbers on README and docs are those of the committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accelerator_page import page
from benchmarks.backends import _section
from benchmarks.compression import page as compression
from hwgen.boards import load_board

ROOT = Path(__file__).parents[1]


def _results(name: str) -> dict[str, Any]:
    text = (ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_compression_page_is_that_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "PAGE", tmp_path / "compression.md")
    monkeypatch.setattr(compression, "PLOTS", tmp_path / "images")
    compression.write_page()
    written = (tmp_path / "compression.md").read_text(encoding="utf-8")
    assert written == _text("docs/results/compression.md")


def test_the_readmes_compressed_networks_are_those_measured() -> None:
    found: dict[str, dict] = {}
    for row in _results("compression")["rows"]:  # of several seeds the first
        if row["table"] != "ablation":
            found.setdefault(f"{row['network']}, {row['data']}: {row['method']}", row)
    table = re.findall(
        r"^\| ([^|]+: [^|]+) \| ([\d.]+)% -> ([\d.]+)% \| ([\d,]+) -> ([\d,]+) \| ([\d.]+)x \|$",
        _text("README.md"),
        re.MULTILINE,
    )
    assert len(table) == 5
    for name, before, after, cycles, left, ratio in table:
        row = found[name]
        assert f"{100 * row['baseline_accuracy']:.2f}" == before
        assert f"{100 * row['accuracy']:.2f}" == after
        assert f"{row['baseline_cycles']:,.0f}" == cycles
        assert f"{row['cycles']:,.0f}" == left
        assert f"{row['baseline_cycles'] / row['cycles']:.2f}" == ratio


def test_the_readmes_table_is_the_benchmarks() -> None:
    """Cycles, milliseconds and share of MACs of each network at batch 1."""
    report = _results("accelerator")
    rows = {row["network"]: row for row in report["rows"] if row["batch"] == 1}
    table = re.findall(
        r"^\| ([\w .-]+), \d+ x \d+[^|]*\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) % \|$",
        _text("README.md"),
        re.MULTILINE,
    )
    assert len(table) >= 4
    for name, cycles, milliseconds, busy in table:
        row = rows[name]
        assert f"{row['cycles']:,}" == cycles
        assert f"{1e3 * row['cycles'] / report['clock_hz']:.3f}" == milliseconds
        assert f"{100 * row['mac_utilisation']:.1f}" == busy


def test_the_accelerators_page_is_of_its_results() -> None:
    """The page is what the benchmark makes of the numbers."""
    report = _results("accelerator")
    assert _text("docs/results/accelerator.md") == page(report, load_board(report["board"]))


def test_the_table_of_back_ends_is_of_its_results() -> None:
    """The generated part of docs/backends.md is what the benchmark makes of the numbers."""
    assert _section(_results("backends")).strip() in _text("docs/backends.md")
