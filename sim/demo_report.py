# SPDX-License-Identifier: Apache-2.0
"""The simulation room: what the demo shows a person. Pictures, one table, one page."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from hwgen.arch.files import replacing

_STAGES = (("full_frame", "full frame"), ("cropped", "cropped"), ("compressed", "cropped + cut"))
_INK, _ACCENT, _MUTED, _GOOD, _BAD = "#1f2933", "#d9480f", "#adb5bd", "#2b8a3e", "#c92a2a"


@dataclass(frozen=True)
class Sample:
    """One frame as it went through the accelerator.

    Attributes
    ----------
    frame, seen
        uint8 (H, W, 3): the whole picture, and the crop at the classifier's resolution.
    box
        float (4,) predicted xmin, ymin, xmax, ymax in [0, 1].
    crop
        (y0, x0, side) in pixels.
    label, truth
        Class names.
    """

    frame: NDArray[np.uint8]
    seen: NDArray[np.uint8]
    box: NDArray[np.float32]
    crop: tuple[int, int, int]
    label: str
    truth: str


def rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the table: what, full frame, cropped, cropped + compressed."""
    macs, cycles, accuracy = report["macs"], report["cycles"], report["accuracy"]
    clock = report["clock_hz"]

    def each(values: dict[str, float], form: str) -> tuple[str, str, str]:
        a, b, c = (format(values[key], form) for key, _ in _STAGES)
        return a, b, c

    percent = {
        "full_frame": accuracy["full_frame_float"],
        "cropped": accuracy["cropped_float"],
        "compressed": accuracy["compressed_float"],
    }
    milliseconds = {key: 1000 * cycles[key] / clock for key, _ in _STAGES}
    shown = {key: f"{100 * value:.2f} %" for key, value in percent.items()}
    return [
        ("multiply-accumulates", *each(macs, ",")),
        ("clock cycles (RTL)", *each(cycles, ",")),
        (f"milliseconds at {clock / 1e6:g} MHz", *each(milliseconds, ".3f")),
        ("accuracy, float", shown["full_frame"], shown["cropped"], shown["compressed"]),
        (
            "accuracy, int8",
            f"{100 * accuracy['full_frame_int8']:.2f} %",
            "",
            f"{100 * accuracy['compressed_int8']:.2f} %",
        ),
    ]


def write_pictures(folder: Path, report: dict[str, Any], samples: list[Sample]) -> list[Path]:
    """Draw ``frames.png`` and ``bars.png`` into `folder`; return their paths."""
    return [
        _save(_frames_figure(samples), folder / "frames.png"),
        _save(_bars_figure(report), folder / "bars.png"),
    ]


def _frames_figure(samples: list[Sample], columns: int = 4) -> Figure:
    """Draw pairs: the frame with its box, and what the accelerator saw, with the label."""
    count = -(-len(samples) // columns)
    figure, axes = plt.subplots(
        count, 2 * columns, figsize=(2.6 * columns, 1.62 * count + 0.5), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for index, sample in enumerate(samples):
        row, column = divmod(index, columns)
        left, right = axes[row][2 * column], axes[row][2 * column + 1]
        height, width = sample.frame.shape[:2]
        left.imshow(sample.frame, extent=(0, width, height, 0), interpolation="nearest")
        x0, y0, x1, y1 = sample.box * np.array([width, height, width, height])
        left.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="#ffd43b", lw=1.6))
        top, start, side = sample.crop
        left.add_patch(
            Rectangle((start, top), side, side, fill=False, ec="white", lw=1.0, ls=(0, (3, 2)))
        )
        left.set_xlim(0, width)
        left.set_ylim(height, 0)
        right.imshow(sample.seen, interpolation="nearest")
        right_answer = sample.label == sample.truth
        text = sample.label if right_answer else f"{sample.label}  (is {sample.truth})"
        right.set_title(
            text, fontsize=12, weight="bold", pad=3, color=_GOOD if right_answer else _BAD
        )
    figure.suptitle(
        "frame with predicted box (yellow) and crop (dashed)   |   what the accelerator saw, and "
        "its label",
        fontsize=10,
        color=_INK,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.98), h_pad=0.6, w_pad=0.3)
    return figure


def _bars_figure(report: dict[str, Any]) -> Figure:
    """Draw MACs and cycles before and after; the predictor's share is hatched."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for axis, key, title in (
        (axes[0], "macs", "multiply-accumulates a frame"),
        (axes[1], "cycles", "clock cycles a frame, counted by the RTL"),
    ):
        values = [report[key][stage] for stage, _ in _STAGES]
        predictor = report[key]["predictor"]
        bars = axis.bar(
            [name for _, name in _STAGES], values, color=[_MUTED, "#74c0fc", _ACCENT], width=0.6
        )
        axis.bar(
            [name for _, name in _STAGES][1:],
            [predictor, predictor],
            color="none",
            edgecolor="white",
            hatch="///",
            width=0.6,
            lw=0,
        )
        for bar, value in zip(bars, values, strict=True):
            ratio = "" if value == values[0] else f"\n{values[0] / value:.1f}x fewer"
            axis.annotate(
                f"{value:,}{ratio}",
                (bar.get_x() + bar.get_width() / 2, value),
                ha="center",
                va="bottom",
                fontsize=9,
                color=_INK,
            )
        axis.set_title(title, fontsize=10, color=_INK)
        axis.set_ylim(0, max(values) * 1.22)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.set_yticks([])
    figure.text(0.5, 0.01, "hatched: the predictor's share", ha="center", fontsize=8, color=_INK)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    return figure


def _save(figure: Figure, path: Path) -> Path:
    """Write a PNG whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
    return path


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Shears demo</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: {ink}; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
td, th {{ padding: .35rem .9rem; border-bottom: 1px solid #dee2e6; text-align: right }}
td:first-child, th:first-child {{ text-align: left }}
img {{ max-width: 100%; margin: .5rem 0 }}
.good {{ color: {good}; font-weight: 600 }} .bad {{ color: {bad}; font-weight: 600 }}
small {{ color: #495057 }}
</style></head><body>
<h1>A photograph, cropped and named by the simulated accelerator</h1>
<p>{summary}</p>
<p class="{verdict_class}">{verdict}</p>
<table><tr><th></th><th>full frame</th><th>cropped</th><th>cropped + compressed</th></tr>
{rows}</table>
<p><small>The predictor's cost is included in both cropped columns. Accuracies are over {test:,}
held-out frames.</small></p>
<img alt="frames with boxes, crops and labels" src="data:image/png;base64,{frames}">
<img alt="multiply-accumulates and cycles before and after" src="data:image/png;base64,{bars}">
<h2>What was run</h2><table>{details}</table>
</body></html>
"""


def write_page(folder: Path, report: dict[str, Any], pictures: list[Path]) -> Path:
    """Write ``report.html``, which needs no other file."""
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows(report)
    )
    saved = report["cycles"]["full_frame"] / report["cycles"]["compressed"]
    exact = report["rtl_mismatches"] == 0
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in report["seconds"].items())
    details = [
        (
            "machine",
            " x ".join(str(report["configuration"][n]) for n in ("tn", "ti", "tp"))
            + f" int8 multipliers, {report['board']}",
        ),
        ("MACs busy, predictor and classifier", f"{100 * report['mac_utilisation']:.1f} %"),
        ("simulated cycles a second", f"{report['sim_cycles_per_second']:,.0f}"),
        ("seconds", seconds),
        ("seed", str(report["seed"])),
        ("command", report["command"]),
    ]
    page = _PAGE.format(
        ink=_INK,
        good=_GOOD,
        bad=_BAD,
        summary=f"The accelerator spends {saved:.1f} times fewer cycles on a frame than on the "
        "whole picture with the uncompressed network.",
        verdict_class="good" if exact else "bad",
        verdict=f"{report['frames']} frames ran on the RTL: {report['rtl_mismatches']} differ from "
        "the golden model and the quantized graph, compared code for code.",
        rows=body,
        test=report["test_frames"],
        frames=base64.b64encode(pictures[0].read_bytes()).decode(),
        bars=base64.b64encode(pictures[1].read_bytes()).decode(),
        details="".join(
            f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in details
        ),
    )
    path = folder / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path
