# SPDX-License-Identifier: Apache-2.0
"""Compression: what a run of `shears compress` did, as JSON and as one page with pictures."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from hwgen.arch.files import replacing, write_json
from hwgen.compress.cost import kernel_orders, layer_macs, used_taps
from hwgen.compress.inputs import PREPROCESS, Preprocess, shape_of
from hwgen.compress.relevance import measure_relevance, trimmable
from hwgen.compress.structure import Layer, Structure, discover

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COST_NAMES = {
    "cycles": "predicted cycles of one image",
    "steps": "steps of the array for one image",
    "macs": "multiply-accumulates of one image",
    "parameters": "parameters",
}
"""What each cost that may drive a compression counts."""

_INK, _ACCENT, _MUTED, _BLUE = "#1f2933", "#d9480f", "#adb5bd", "#1971c2"
_GOOD, _BAD = "#2b8a3e", "#c92a2a"
_METHODS = {
    "trim": (_BLUE, "o"),
    "lower": (_GOOD, "s"),
    "approximate": ("#7048e8", "D"),
    "slices": ("#e8590c", "^"),
    "fine-tune": (_INK, "P"),
}


@dataclass(frozen=True)
class Figures:
    """One network: accuracies in [0, 1], costs of one image.

    ``int8_test`` is that of the integers which the machine computes, quantized after training.
    """

    validation: float
    test: float
    int8_test: float
    macs: int
    parameters: int
    steps: int
    cycles: int


@dataclass(frozen=True)
class Trial:
    """A network on the way: what was done to the one before it, and where that led.

    Attributes
    ----------
    method, target
        "trim", "lower" or "approximate" and the layer; "slices" and the share of steps kept;
        "fine-tune".
    accuracy, cost
        On the validation split, and by the cost that drives the run.
    taken
        Whether the run went on with it.
    """

    method: str
    target: str
    accuracy: float
    cost: float
    taken: bool


@dataclass(frozen=True)
class LayerRow:
    """A layer before and after.

    Attributes
    ----------
    groups_before, tiles_before
        Groups of output channels and tiles of input channels that the machine cut it into.
    taps
        By group and tile, a character a kernel position, row by row: 1 where it is computed.
    relevance_before, relevance
        Mean activations of the channels that it is the first to write, over their mean; None where
        another layer writes them first or nothing can be trimmed.
    """

    name: str
    kind: str
    kernel: tuple[int, int]
    inputs_before: int
    inputs: int
    outputs_before: int
    outputs: int
    macs_before: int
    macs: int
    groups_before: int
    tiles_before: int
    taps: list[list[str]]
    relevance_before: list[float] | None
    relevance: list[float] | None

    @property
    def used(self) -> float:
        """Share of the kernel positions of the channels left that is computed."""
        bits = "".join(text for group in self.taps for text in group)
        return bits.count("1") / len(bits)


@dataclass(frozen=True)
class CompressionReport:
    """Everything that a run did.

    Attributes
    ----------
    before, after
        The networks.
    floor
        The least accuracy on the validation split that was accepted.
    cost
        What drove the run, one of :data:`COST_NAMES`.
    trials, refused, untried
        Networks on the way, in order; the (method, target) of steps that lost too much; and how
        many other layers' turn did not come, for want of steps or rejections.
    layers
        In the order they run.
    config
        All knobs that were used, the seed among them.
    preprocess
        Mean and std of what both networks are fed.
    board, clock_hz, device
        What cycles are predicted for, and what computed.
    images
        Number in each split.
    seconds
        By stage; what earlier runs took for one that was finished or stopped counts.
    model, weights, data, run
        What was compressed, and the command.
    """

    before: Figures
    after: Figures
    floor: float
    cost: str
    trials: list[Trial]
    refused: list[tuple[str, str]]
    layers: list[LayerRow]
    config: dict[str, Any]
    seed: int
    board: str
    clock_hz: int
    device: str
    images: dict[str, int]
    seconds: dict[str, float]
    preprocess: Preprocess = PREPROCESS
    untried: int = 0
    model: str = ""
    weights: str = ""
    data: str = ""
    run: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def fate(self, trial: Trial) -> str:
        """Return in words what became of a network on the way."""
        if trial.taken:
            return "taken"
        return "not taken" if trial.accuracy < self.floor else "within the budget, not taken"

    @property
    def saved_cycles(self) -> float:
        """Share of the predicted cycles that was saved."""
        return 1.0 - self.after.cycles / self.before.cycles


def layer_rows(
    before: nn.Module,
    after: nn.Module,
    images: np.ndarray,
    tn: int = 16,
    ti: int = 16,
) -> list[LayerRow]:
    """Compare two networks layer by layer.

    Parameters
    ----------
    before, after
        The network and its compressed form, whose layers have the same names.
    images
        (N, H, W, C) uint8 that relevance is measured on.
    tn, ti
        Output channels of a group, input channels of a tile: the machine's.
    """
    old, new = _Side(before, images, tn, ti), _Side(after, images, tn, ti)
    rows = []
    for name, layer in new.structure.layers.items():
        earlier = old.structure.layers[name]
        taps = new.taps(layer)
        groups_before, tiles_before = old.taps(earlier).shape[:2]
        rows.append(
            LayerRow(
                name=name,
                kind=layer.kind,
                kernel=new.kernel(layer),
                inputs_before=old.structure.spaces[earlier.inputs].channels,
                inputs=new.structure.spaces[layer.inputs].channels,
                outputs_before=old.structure.spaces[earlier.outputs].channels,
                outputs=new.structure.spaces[layer.outputs].channels,
                macs_before=old.macs[name],
                macs=new.macs[name],
                groups_before=groups_before,
                tiles_before=tiles_before,
                taps=[
                    ["".join("01"[int(bit)] for bit in tile) for tile in group] for group in taps
                ],
                relevance_before=old.relevance.get(name),
                relevance=new.relevance.get(name),
            )
        )
    return rows


class _Side:
    """What a network's rows are made of."""

    def __init__(self, model: nn.Module, images: np.ndarray, tn: int, ti: int) -> None:
        shape = shape_of(images)
        self.model, self.tn, self.ti = model, tn, ti
        self.structure: Structure = discover(model, shape)
        self.order = kernel_orders(model, self.structure, ti)
        self.macs = layer_macs(model, shape)
        scores = measure_relevance(model, self.structure, images)
        self.relevance = {
            space.producers[0]: [round(float(s), 4) for s in scores[space.identifier]]
            for space in trimmable(self.structure, scores)
        }

    def taps(self, layer: Layer) -> np.ndarray:
        """Return (groups, tiles, positions) bool."""
        taps = used_taps(self.model, self.structure, self.order, layer, self.tn, self.ti)
        return taps.reshape(*taps.shape[:2], -1)

    def kernel(self, layer: Layer) -> tuple[int, int]:
        """Return a layer's kernel; that of a linear layer is the map that was flattened."""
        module = self.model.get_submodule(layer.name)
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            return height, width
        if layer.repeat == 1:
            return 1, 1
        node = next(n for n in self.structure.graph.graph.nodes if str(n.target) == layer.name)
        while len(node.meta["tensor_meta"].shape) != 4:
            node = node.all_input_nodes[0]
        return tuple(node.meta["tensor_meta"].shape[2:])


def write_report(folder: str | Path, report: CompressionReport) -> Path:
    """Write report.json, report.html and the page's pictures as PNGs; return the page's path.

    Each file is the old one or all of the new one. The page needs no other file.
    """
    folder = Path(folder)
    write_json(folder / "report.json", report.to_dict())
    pictures = {}
    for name, draw in (
        ("accuracy", draw_accuracy),
        ("kernels", draw_kernels),
        ("relevance", draw_relevance),
    ):
        path = folder / f"{name}.png"
        with replacing(path) as temporary:
            draw(report).savefig(temporary, dpi=110)
        pictures[name] = base64.b64encode(path.read_bytes()).decode()
    page = folder / "report.html"
    with replacing(page) as temporary:
        temporary.write_text(_page(report, pictures), encoding="utf-8")
    return page


def listed(values: Iterable[float]) -> str:
    """Return numbers as one types them."""
    return ", ".join(f"{value:g}" for value in values)


def summary_rows(report: CompressionReport) -> list[tuple[str, str, str, str]]:
    """Return the table: what, before, after, change."""
    before, after = report.before, report.after
    was, now = (1000 * figures.cycles / report.clock_hz for figures in (before, after))
    rows = []
    for name, old, new in (
        ("accuracy, validation", before.validation, after.validation),
        ("accuracy, test", before.test, after.test),
        ("accuracy, test, int8 as on the chip", before.int8_test, after.int8_test),
    ):
        change = 100 * (new - old)
        rows.append((name, f"{100 * old:.2f} %", f"{100 * new:.2f} %", f"{change:+.2f} points"))
    costs: tuple[tuple[str, float, float, str], ...] = (
        ("predicted cycles", before.cycles, after.cycles, ",.0f"),
        (f"milliseconds at {report.clock_hz / 1e6:g} MHz", was, now, ".3f"),
        ("steps of the array", before.steps, after.steps, ",.0f"),
        ("multiply-accumulates", before.macs, after.macs, ",.0f"),
        ("parameters", before.parameters, after.parameters, ",.0f"),
    )
    for name, old, new, form in costs:
        rows.append((name, format(old, form), format(new, form), f"{100 * (new / old - 1):+.1f} %"))
    return rows


def draw_accuracy(report: CompressionReport) -> Figure:
    """Draw accuracy on the validation split against the cost of every network on the way."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = _figure(8.6, 4.6)
    axes = figure.subplots()
    start = getattr(report.before, report.cost), report.before.validation
    path = [start]
    shown = [start[1], report.floor]
    for trial in report.trials:
        if trial.taken:
            path.append((trial.cost, trial.accuracy))
        if trial.taken or trial.accuracy >= report.floor:
            shown.append(trial.accuracy)
    spread = max(max(shown) - min(shown), 0.005)
    low, high = min(shown) - 0.25 * spread, max(shown) + 0.2 * spread
    axes.set_ylim(100 * low, 100 * high)
    axes.axhline(100 * report.floor, color=_BAD, lw=1.2, ls=(0, (5, 3)), zorder=1)
    axes.plot(*zip(*((x, 100 * y) for x, y in path), strict=True), color=_MUTED, lw=1.0, zorder=1)
    axes.scatter([start[0]], [100 * start[1]], s=70, color=_INK, label="before")
    for method, (color, marker) in _METHODS.items():
        mine = [t for t in report.trials if t.method == method]
        taken = [(t.cost, 100 * t.accuracy) for t in mine if t.taken]
        if taken:
            x, y = zip(*taken, strict=True)
            axes.scatter(x, y, s=34, color=color, marker=marker, label=method, zorder=3)
        # What lost too much stands on the lower edge if it lies below.
        lost = [(t.cost, 100 * max(t.accuracy, low + 0.04 * spread)) for t in mine if not t.taken]
        if lost:
            x, y = zip(*lost, strict=True)
            beyond = any(t.accuracy < low for t in mine if not t.taken)
            axes.scatter(
                x, y, s=34, facecolors="none", edgecolors=color, marker=marker, zorder=2,
                label=f"{method}, not taken" + "\n(on the lower edge: below)" * beyond,
            )  # fmt: skip
    end = getattr(report.after, report.cost), 100 * report.after.validation
    axes.scatter(
        [end[0]], [end[1]], s=230, facecolors="none", edgecolors=_ACCENT, lw=2.0, label="the result"
    )
    axes.annotate(
        f"the budget's floor: {100 * report.floor:.2f} %", (0.99, 100 * report.floor),
        xycoords=("axes fraction", "data"), xytext=(0, -4), textcoords="offset points",
        ha="right", va="top", fontsize=9, color=_BAD,
    )  # fmt: skip
    axes.set_xlabel(COST_NAMES[report.cost])
    axes.set_ylabel("accuracy on validation images, %")
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.margins(x=0.08)
    axes.grid(True, color=_MUTED, lw=0.4, alpha=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9, frameon=False, borderaxespad=0,
        labelspacing=0.9,
    )  # fmt: skip
    return figure


def draw_kernels(report: CompressionReport) -> Figure:
    """Draw which kernel positions of which groups and tiles of channels each layer computes."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    colors = ["white", "#e9ecef", "#ffc9a8", _BLUE]
    palette = np.array([to_rgb(color) for color in colors])

    def draw(axes: Axes, row: LayerRow) -> None:
        # Colours are averaged where positions are smaller than pixels.
        axes.imshow(palette[_kernel_picture(row)], interpolation="antialiased", aspect="equal")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        sizes = "x".join(map(str, row.kernel))
        axes.set_title(
            f"{_short(row.name)}  {sizes}\n"
            f"in {_change(row.inputs_before, row.inputs)}, "
            f"out {_change(row.outputs_before, row.outputs)}",
            fontsize=8, color=_INK,
        )  # fmt: skip

    figure = _panels(report.layers, draw, height=1.75)
    figure.legend(
        handles=[
            Patch(color=colors[3], label="computed"),
            Patch(color=colors[2], label="position left out"),
            Patch(color=colors[1], label="channels gone"),
        ],
        loc="outside lower center", ncols=3, fontsize=9, frameon=False,
    )  # fmt: skip
    figure.suptitle(
        "each square is a kernel: down, groups of output channels; across, tiles of input channels",
        fontsize=10, color=_INK,
    )  # fmt: skip
    return figure


def _kernel_picture(row: LayerRow, position: int = 8, gap: int = 6) -> np.ndarray:
    """Return pixels: 0 between kernels, 1 where channels are gone, 2 left out, 3 computed.

    A kernel's position has ``position`` pixels each way, one of them free; ``gap`` are between
    kernels.
    """
    height, width = (size * position for size in row.kernel)
    groups = max(row.groups_before, len(row.taps))
    tiles = max(row.tiles_before, len(row.taps[0]))
    picture = np.zeros((groups * (height + gap) - gap, tiles * (width + gap) - gap), np.uint8)
    for group in range(groups):
        for tile in range(tiles):
            kernel: np.ndarray = np.ones(row.kernel, np.uint8)
            if group < len(row.taps) and tile < len(row.taps[group]):
                bits = [int(bit) for bit in row.taps[group][tile]]
                kernel = 2 + np.array(bits, np.uint8).reshape(row.kernel)
            block = kernel.repeat(position, axis=0).repeat(position, axis=1)
            block[position - 1 :: position] = block[:, position - 1 :: position] = 0
            y, x = group * (height + gap), tile * (width + gap)
            picture[y : y + height, x : x + width] = block
    return picture


def draw_relevance(report: CompressionReport) -> Figure:
    """Draw how relevant the channels of each layer were before, and are after."""
    from matplotlib.ticker import MaxNLocator

    rows = [row for row in report.layers if row.relevance_before is not None]

    def draw(axes: Axes, row: LayerRow) -> None:
        before, after = row.relevance_before or [], row.relevance or []
        edges = np.linspace(0.0, max([*before, *after, 1e-3]) * 1.001, 17).tolist()
        axes.hist(before, bins=edges, color=_MUTED, label="before")
        axes.hist(after, bins=edges, histtype="step", color=_ACCENT, lw=1.5, label="after")
        axes.set_title(f"{_short(row.name)}\n{_change(len(before), len(after))} channels",
                       fontsize=8, color=_INK)  # fmt: skip
        axes.tick_params(labelsize=7)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.spines[["top", "right"]].set_visible(False)

    if not rows:
        figure = _figure(8.6, 1.0)
        figure.text(0.5, 0.5, "no layer has channels that can be trimmed", ha="center", color=_INK)
        return figure
    figure = _panels(rows, draw, height=1.7)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside upper center", ncols=2, fontsize=9, frameon=False,
    )  # fmt: skip
    figure.supxlabel("relevance: mean activation over the layer's mean", fontsize=9, color=_INK)
    figure.supylabel("channels", fontsize=9, color=_INK)
    return figure


def _panels(
    rows: Sequence[LayerRow], draw: Callable[[Axes, LayerRow], None], height: float
) -> Figure:
    """Draw a panel a row, four beside one another; heights in inches."""
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure = _figure(9.6 if columns == 4 else 2.4 * columns + 2.4, height * lines + 0.9)
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes, row in zip(panels.flat, rows, strict=False):
        draw(axes, row)
    for axes in panels.flat[len(rows) :]:
        axes.axis("off")
    return figure


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches, that no window system knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _change(before: int, after: int) -> str:
    return f"{before}" if before == after else f"{before} \N{RIGHTWARDS ARROW} {after}"


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else f"\N{HORIZONTAL ELLIPSIS}{name[1 - length :]}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Shears: {model}, compressed</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: {ink}; max-width: 66rem; margin: 2rem auto;
       padding: 0 1rem }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
td, th {{ padding: .3rem .8rem; border-bottom: 1px solid #dee2e6; text-align: right }}
td:first-child, th:first-child {{ text-align: left }}
.words td, .words th {{ text-align: left }}
img {{ max-width: 100%; margin: .5rem 0 }}
.good {{ color: {good}; font-weight: 600 }} .bad {{ color: {bad}; font-weight: 600 }}
small {{ color: #495057 }}
</style></head><body>
<h1>{model}, compressed for {board}</h1>
<p>{summary}</p>
<p class="{verdict_class}">{verdict}</p>
{figures}
<p><small>Validation images decided everything; the {test:,} test images were seen once, at the end.
Cycles are those that the compiler's estimate predicts for one image, transfers included; steps are
those of the array alone.</small></p>
<h2>Accuracy against cost</h2>
<img alt="accuracy on validation images of each network on the way, against its cost"
 src="data:image/png;base64,{accuracy}">
<h2>Kernels that are left</h2>
<img alt="kernel positions computed in each layer, by groups and tiles of channels"
 src="data:image/png;base64,{kernels}">
{layers}
<h2>Relevance of channels</h2>
<img alt="histogram of each layer's relevance, before and after"
 src="data:image/png;base64,{relevance}">
<p><small>Channels that an addition ties together count as one layer's, the first that writes
them.</small></p>
<h2>Steps</h2>
{steps}
<p><small>{refused}</small></p>
<h2>What was run</h2>
{details}
</body></html>
"""


def _page(report: CompressionReport, pictures: Mapping[str, str]) -> str:
    """Return the page."""
    before, after = report.before, report.after
    lost = 100 * (before.validation - after.validation)
    kept = after.validation >= report.floor
    steps = [
        (
            f"{number}",
            t.method,
            t.target,
            f"{100 * t.accuracy:.2f} %",
            f"{t.cost:,.0f}",
            report.fate(t),
        )
        for number, t in enumerate(report.trials, 1)
    ]
    details = [
        ("network", " ".join(filter(None, (report.model, report.weights)))),
        ("data", report.data + ": " + ", ".join(f"{n:,} {k}" for k, n in report.images.items())),
        (
            "fed",
            "(pixel / 255 - mean) / std, mean and std: {}; {}".format(
                *map(listed, report.preprocess)
            ),
        ),
        ("board", report.board),
        ("computed on", report.device),
        ("seconds", ", ".join(f"{name} {value:.0f}" for name, value in report.seconds.items())),
        ("seed", str(report.seed)),
        ("command", report.run),
        ("knobs", json.dumps(report.config)),
    ]
    refused = ", ".join(f"{method} {target}" for method, target in report.refused) or "none"
    return _PAGE.format(
        ink=_INK,
        good=_GOOD,
        bad=_BAD,
        model=html.escape(report.model or "the network"),
        board=html.escape(report.board),
        summary=f"{100 * report.saved_cycles:.1f} % fewer predicted cycles, "
        f"{100 * (1 - after.macs / before.macs):.1f} % fewer multiply-accumulates.",
        verdict_class="good" if kept else "bad",
        verdict=(
            "Validation accuracy unchanged,"
            if not lost
            else f"{abs(lost):.2f} points of validation accuracy "
            f"{'lost' if lost > 0 else 'gained'},"
        )
        + f" {100 * (before.validation - report.floor):.2f} allowed.",
        test=report.images["test"],
        figures=_table(("", "before", "after", "change"), summary_rows(report)),
        layers=_table(
            (
                "layer",
                "kind",
                "kernel",
                "inputs",
                "outputs",
                "MACs before",
                "MACs after",
                "saved",
                "positions computed",
            ),
            [
                (
                    row.name,
                    row.kind,
                    "x".join(map(str, row.kernel)),
                    _change(row.inputs_before, row.inputs),
                    _change(row.outputs_before, row.outputs),
                    f"{row.macs_before:,}",
                    f"{row.macs:,}",
                    f"{100 * (1 - row.macs / row.macs_before):.1f} %" if row.macs_before else "",
                    f"{100 * row.used:.1f} %",
                )
                for row in report.layers
            ],
        ),  # fmt: skip
        steps=_table(
            ("", "method", "where", "validation", COST_NAMES[report.cost], ""), steps, "words"
        ),
        refused="Refused, for they would have lost too much or saved nothing: "
        f"{html.escape(refused)}."
        + f" {report.untried} more layers' turn did not come: try more rejections or steps."
        * bool(report.untried),
        details=_table(("", ""), details, "words"),
        **pictures,
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> str:
    """Return a table in HTML."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    top = line(head, "th") if any(head) else ""
    return f'<table class="{style}">{top}{"".join(line(row, "td") for row in rows)}</table>'
