# SPDX-License-Identifier: Apache-2.0
"""The notebooks: pictures. Frames with boxes, where the cycles went, and what ran when."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from IPython.display import Image
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from host import Prediction
from hwgen.arch.trace import Profile

INK, BLUE, ORANGE, GREEN, GREY = "#1f2933", "#1971c2", "#d9480f", "#2b8a3e", "#adb5bd"
BOX, CROP = "#ffd43b", "#15aabf"
_COLUMNS = 6


def show_frames(frames: Sequence[NDArray[np.uint8]], titles: Sequence[str]) -> Image:
    """Draw pictures in rows of six, each under its title."""
    return _image(_grid(frames, titles)[0])


def show_crops(
    frames: Sequence[NDArray[np.uint8]], found: Sequence[Prediction], titles: Sequence[str]
) -> Image:
    """Draw frames, each with the box that was found (yellow) and the square that was cut out."""
    figure, every = _grid(frames, titles)
    for axes, frame, one in zip(every, frames, found, strict=True):
        height, width = frame.shape[:2]
        xmin, ymin, xmax, ymax = one.box * np.array([width, height, width, height])
        y0, x0, side = one.crop
        _rectangle(axes, x0, y0, side, side, CROP, "--")
        _rectangle(axes, xmin, ymin, xmax - xmin, ymax - ymin, BOX, "-")
    handles = [
        Rectangle((0, 0), 1, 1, fill=False, ec=BOX, lw=2, label="box that was found"),
        Rectangle((0, 0), 1, 1, fill=False, ec=CROP, lw=2, ls="--", label="what was cut out"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncol=2, frameon=True,
                  facecolor=GREY, framealpha=0.35, edgecolor="none")  # fmt: skip
    return _image(figure)


def _image(figure: Figure) -> Image:
    """Return a figure as a notebook shows it, whichever way its matplotlib is set up."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image(data=buffer.getvalue())


def _grid(frames: Sequence[Any], titles: Sequence[str]) -> tuple[Figure, list[Any]]:
    """Draw pictures in rows; return the figure and the axes of each picture."""
    columns = min(_COLUMNS, len(frames))
    rows = -(-len(frames) // columns)
    figure = Figure(figsize=(1.55 * columns, 1.8 * rows + 0.4), layout="constrained")
    every = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
    for axes in every:
        axes.set_axis_off()
    for axes, frame, title in zip(every, frames, titles, strict=False):
        height, width = frame.shape[:2]
        axes.imshow(frame, extent=(0, width, height, 0), interpolation="nearest")
        axes.set_title(title, fontsize=9, color=INK)
    return figure, every[: len(frames)]


def _rectangle(
    axes: Any, x: float, y: float, width: float, height: float, color: str, style: str
) -> None:
    """Outline a rectangle, dark beneath, so that it is seen on any picture."""
    for line, ink, dashes in ((3.2, INK, "-"), (1.8, color, style)):
        patch = Rectangle((x, y), width, height, fill=False, ec=ink, lw=line, ls=dashes)
        patch.set_clip_on(False)
        axes.add_patch(patch)


def show_cycles(rows: Sequence[Any]) -> Image:
    """Draw what each layer's cycles were spent on; rows of `hwgen.profile_report.layer_rows`."""
    parts = (
        ("computing", "computing", BLUE),
        ("wait_load", "waiting for data", ORANGE),
        ("wait_store", "waiting for room to write", GREEN),
        ("other", "other", GREY),
    )
    figure = Figure(figsize=(8.4, 0.32 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(rows))
    for name, label, color in parts:
        # A wait for both counts in both; a bar is cut so that it ends where the layer does.
        room = np.array([row.cycles for row in rows]) - left
        size = np.minimum([getattr(row, name) for row in rows], room)
        if size.any():
            axes.barh(range(len(rows)), size, left=left, color=color, label=label)
        left += size
    axes.set_yticks(range(len(rows)), [row.layer for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("clock cycles")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="lower right", fontsize=8)
    _plain(axes)
    return _image(figure)


def show_timeline(profile: Profile, first: int, last: int) -> Image:
    """Draw which of the three engines worked between two cycles, instruction by instruction."""
    figure = Figure(figsize=(9.6, 2.5), layout="constrained")
    axes = figure.subplots()
    engines = (("LOAD", "load", ORANGE), ("COMPUTE", "compute", BLUE), ("STORE", "store", GREEN))
    for height, (opcode, _, color) in enumerate(engines):
        before = first
        spans = []
        for record in profile.records:
            if record.opcode == opcode:
                begin, end = max(record.start, before), min(record.end, last)
                before = max(before, record.end)
                if begin < end:
                    spans.append((begin, end - begin))
        axes.broken_barh(spans, (height - 0.38, 0.76), color=color, ec="white", lw=0.5)
    axes.set_yticks(range(len(engines)), [name for _, name, _ in engines])
    axes.set_xlim(first, last)
    axes.set_ylim(len(engines) - 0.5, -0.5)
    axes.set_xlabel("clock cycle of the run")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _plain(axes)
    return _image(figure)


def _plain(axes: Any) -> None:
    """Leave out what the eye does not need."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
