# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: the plots of the compression benchmark's page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.compression import small
from benchmarks.compression.rows import Row
from hwgen.arch.files import replacing

COLOURS = (
    *("#0b6e99", "#d1603d", "#5a8f29", "#7a5195", "#8a8a8a", "#b58900"),
    *("#c2185b", "#2f4b7c", "#00a0a0", "#7f5539", "#222222"),
)
MARKS = ("o", "s", "^", "D", "v", "P")  # prime to the colours: 66 pairs before one comes again


def bars(found: list[Row], path: Path) -> None:
    """Draw the MACs and the cycles that each method saves on each network."""
    pairs = sorted({row.pair for row in found})
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = _styled(figure.add_subplot())
    width = 0.8 / len(small.LEVELS)
    for place, method in enumerate(small.LEVELS):
        for row in found:
            if row.method != method:
                continue
            x = pairs.index(row.pair) + (place - 1) * width
            macs, cycles = (100 * share for share in row.saved)
            axes.bar(x, macs, width * 0.9, color=COLOURS[place], alpha=0.45)
            axes.bar(x, cycles, width * 0.45, color=COLOURS[place])
        axes.bar(0, 0, color=COLOURS[place], label=method)
    axes.set_xticks(range(len(pairs)), [pair.replace(", ", "\n") for pair in pairs])
    axes.set_ylabel("saved, %  (wide: MACs, narrow: cycles)")
    axes.set_ylim(0, 100)
    axes.legend(loc="upper center", ncols=3, frameon=False, bbox_to_anchor=(0.5, 1.14))
    _save(figure, path)


def scatter(
    found: list[Row],
    path: Path,
    series: Callable[[Row], str],
    label: Callable[[Row], str] = lambda row: "",
    panel: Callable[[Row], str] = lambda row: "",
) -> None:
    """Draw the change in accuracy against the share of cycles that is left, a plot for each panel.

    Of a series' points with one label, such as seeds, the first is labelled.
    """
    panels = dict.fromkeys(map(panel, found))
    figure = Figure(figsize=(max(10, 4.4 * len(panels)), 4.5), layout="constrained")
    looks = {
        name: {"color": COLOURS[place % len(COLOURS)], "marker": MARKS[place % len(MARKS)]}
        for place, name in enumerate(dict.fromkeys(map(series, found)))
    }
    plots = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, title in zip(map(_styled, plots), panels, strict=True):
        inside = [row for row in found if panel(row) == title]
        points = [(100 * (1 - row.saved[1]), row.change) for row in inside]
        for (x, y), row in zip(points, inside, strict=True):
            axes.scatter(x, y, s=55, zorder=2, **looks[series(row)])
        axes.axhline(0, color="#444444", linewidth=0.8, zorder=1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("cycles left, % of the baseline's")
        axes.set_xlim(0, 1.15 * max(100, *(x for x, _ in points)))
        axes.margins(y=0.15)
        first = {(series(row), label(row)): row for row in reversed(inside)}
        shown = [label(row) * (first[series(row), label(row)] is row) for row in inside]
        _label(axes, [(*point, text) for point, text in zip(points, shown, strict=True)])
    plots[0].set_ylabel("accuracy less the baseline's, points")
    for name, look in looks.items():
        plots[-1].scatter([], [], s=55, label=name, **look)
    if len(panels) > 1:
        figure.legend(frameon=False, loc="outside lower center", ncols=4)
    else:
        plots[0].legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _save(figure, path)


def _label(axes: Any, points: list[tuple[float, float, str]]) -> None:
    """Write beside each point, in the first of four places where nothing is written yet."""
    taken: list[tuple[float, float]] = []  # in points of the page, from the axes' origin
    (start, end), (low, high) = axes.get_xlim(), axes.get_ylim()
    spots = [
        ((x - start) / (end - start) * 460, (y - low) / (high - low) * 290) for x, y, _ in points
    ]
    for (x, y, text_), (left, up) in zip(points, spots, strict=True):
        length = 4.4 * len(text_)
        places = [(6, 5), (6, -11), (-6 - length, 5), (-6 - length, -11)]
        for dx, dy in places:
            here = [(left + dx + step, up + dy) for step in range(0, int(length) + 1, 4)]
            near = [spot for spot in (*taken, *spots) if spot != (left, up)]
            free = all(abs(a - c) > 5 or abs(b - d) > 9 for a, b in here for c, d in near)
            if free:
                break
        else:
            dx, dy = places[0]
            here = []
        taken += here
        axes.annotate(text_, (x, y), (dx, dy), textcoords="offset points", fontsize=8)


def _styled(axes: Any) -> Any:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
