# SPDX-License-Identifier: Apache-2.0
"""The generator room: a profile as a table by layers, as a trace for Perfetto, as a roofline plot.

Everything is derived from `hwgen.arch.trace.Profile`, wherever that was recorded: on a board or
on simulated RTL.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwgen.arch.bundle import Bundle
from hwgen.arch.files import replacing
from hwgen.arch.isa import BEAT_BYTES, LoadTarget, Queue
from hwgen.arch.trace import Profile, TraceRecord

BETWEEN, TAIL = "(between)", "(after)"

_INK, _ACCENT, _MUTED, _BLUE = "#1f2933", "#d9480f", "#adb5bd", "#1971c2"
_QUEUES = tuple(queue.name for queue in Queue)


@dataclass(frozen=True)
class Slot:
    """A COMPUTE's share of the compute engine's time: from the end of the one before to its own.

    Slots lie end to end from cycle 0. Each is `computing`, plus cycles in which the engine was
    empty: without a load token, without a store token (or without both: those count in both), and
    for any other reason, such as an instruction that was not fetched yet.
    """

    record: TraceRecord
    cycles: int
    computing: int
    wait_load: int
    wait_store: int
    other: int


@dataclass(frozen=True)
class LayerRow:
    """What a layer took; `cycles` of all rows add up to CYCLES_TOTAL, the other counts likewise.

    `bytes` are those of the LOADs that feed it and of the STOREs of its results; together with
    the instructions', they add up to BYTES_READ and BYTES_WRITTEN. `macs_busy` is the share of
    the array's multiply-accumulates that were the layer's, those not counted that see padding
    above or below a map.
    """

    layer: str
    kind: str
    cycles: int
    computing: int
    wait_load: int
    wait_store: int
    other: int
    macs: int
    macs_busy: float
    bytes: int


def compute_slots(profile: Profile) -> list[Slot]:
    """Divide the compute engine's time among the COMPUTEs, in the order they ran.

    Sums over all slots: `computing` is CYCLES_COMPUTING, `wait_load` is CYCLES_WAIT_LOAD and
    `wait_store` is CYCLES_WAIT_STORE of the same run, to the cycle, unless a wait was too long
    for its field.
    """
    slots = []
    before = -1  # end of the last one
    for record in _of(profile, "COMPUTE"):
        idle = max(0, record.start - before)

        def waited(cycles: int, since: int = before + 1, record: TraceRecord = record) -> int:
            return max(0, min(record.head + cycles, record.start) - max(record.head, since))

        load, store = waited(record.wait_load), waited(record.wait_store)
        slots.append(
            Slot(
                record=record,
                cycles=record.end - before,
                computing=record.end - before - idle,
                wait_load=load,
                wait_store=store,
                other=idle - max(load, store),
            )
        )
        before = record.end
    return slots


def layer_rows(bundle: Bundle, profile: Profile) -> list[LayerRow]:
    """Add the slots up by layer, in the order the layers ran."""
    slots = compute_slots(profile)
    owners = owner_of(profile)
    traffic: dict[str | None, int] = {}
    for record in profile.records:
        key = owners[record.index]
        traffic[key] = traffic.get(key, 0) + data_bytes(bundle, record)
    known = {layer.name: layer for layer in bundle.layers}
    rows = []
    for name in dict.fromkeys(slot.record.layer for slot in slots):
        mine = [slot for slot in slots if slot.record.layer == name]
        layer = known.get(name) if name is not None else None
        cycles, macs = sum(slot.cycles for slot in mine), layer.useful_macs if layer else 0
        rows.append(
            LayerRow(
                layer=BETWEEN if name is None else name,
                kind=layer.kind if layer else "",
                cycles=cycles,
                computing=sum(slot.computing for slot in mine),
                wait_load=sum(slot.wait_load for slot in mine),
                wait_store=sum(slot.wait_store for slot in mine),
                other=sum(slot.other for slot in mine),
                macs=macs,
                macs_busy=macs / (bundle.config.macs_per_cycle * max(1, cycles)),
                bytes=traffic.pop(name, 0),
            )
        )
    rest = profile.counters["CYCLES_TOTAL"] - sum(row.cycles for row in rows)
    rows.append(
        LayerRow(
            layer=TAIL,
            kind="",
            cycles=rest,
            computing=0,
            wait_load=0,
            wait_store=0,
            other=rest,
            macs=0,
            macs_busy=0.0,
            bytes=sum(traffic.values()),
        )
    )
    return rows


def owner_of(profile: Profile) -> dict[int, str | None]:
    """Return the layer that each instruction works for, by index.

    A LOAD works for the COMPUTE that takes its token, or the token of the LOAD after it; a STORE
    for the COMPUTE whose token it takes, or whose the STORE before it took. Where no token tells,
    it is the next COMPUTE for a LOAD, the last one for a STORE.
    """
    loads, computes, stores = (_of(profile, name) for name in _QUEUES)
    owners: dict[int, str | None] = {record.index: record.layer for record in computes}
    fed = _matched(loads, "signal_compute", computes, "wait_load")
    took = {
        store: compute
        for compute, store in _matched(computes, "signal_store", stores, "wait_compute").items()
    }
    layers, order = dict(owners), [record.index for record in computes]
    taken: int | None = None
    for record in reversed(loads):
        taken = fed.get(record.index, taken)
        if taken is not None and taken > record.index:
            owners[record.index] = layers[taken]
        else:
            after = bisect.bisect(order, record.index)
            owners[record.index] = layers[order[after]] if after < len(order) else None
    given: int | None = None
    for record in stores:
        given = took.get(record.index, given)
        before = bisect.bisect(order, record.index) - 1
        if given is not None:
            owners[record.index] = layers[given]
        else:
            owners[record.index] = layers[order[before]] if before >= 0 else None
    return owners


def _of(profile: Profile, opcode: str) -> list[TraceRecord]:
    return [record for record in profile.records if record.opcode == opcode]


def _matched(
    givers: Iterable[TraceRecord], signal: str, takers: Iterable[TraceRecord], wait: str
) -> dict[int, int]:
    """Return giver's index -> taker's: tokens are taken in the order they are given."""
    gave = [record.index for record in givers if record.fields[signal]]
    took = [record.index for record in takers if record.fields[wait]]
    return dict(zip(gave, took, strict=False))


def data_bytes(bundle: Bundle, record: TraceRecord) -> int:
    """Return the bytes that an instruction moves over the bus, its own fetch not included."""
    f = record.fields
    if record.opcode == "LOAD":
        return f["rows"] * -(-f["row_bytes"] // BEAT_BYTES) * BEAT_BYTES
    if record.opcode == "STORE":
        return f["rows"] * f["words_per_row"] * bundle.config.word_bytes
    return 0


def chrome_trace(profile: Profile, clock_hz: float) -> dict[str, Any]:
    """Return the profile in Chrome's trace-event format, which Perfetto reads too.

    One process, a thread a queue. Each instruction is a complete event ("X") from the later of
    its start and the end of the one before it, so that none overlap in a thread; `args` have its
    own start. While an engine is empty, what its queue's head waits for is an event too.
    Times are microseconds at `clock_hz`.
    """
    process = 1

    def at(cycle: int) -> float:
        return round(1e6 * cycle / clock_hz, 6)

    events: list[dict[str, Any]] = [
        _named("process_name", process, 0, f"{profile.name} on Shears"),
    ]
    for thread, queue in enumerate(_QUEUES):
        events.append(_named("thread_name", process, thread, queue))
        events.append(
            {
                "name": "thread_sort_index",
                "ph": "M",
                "pid": process,
                "tid": thread,
                "args": {"sort_index": thread},
            }
        )
        before = 0
        for record in _of(profile, queue):
            waits = {name.lower(): getattr(record, f"wait_{name.lower()}") for name in _QUEUES}
            since = max(before, record.head)
            if since < record.start:
                longest = " and ".join(name for name, cycles in waits.items() if cycles)
                events.append(
                    {
                        "name": f"wait for {longest}",
                        "cat": "wait",
                        "ph": "X",
                        "ts": at(since),
                        "dur": at(record.start - since),
                        "pid": process,
                        "tid": thread,
                        "args": {"index": record.index, **waits},
                    }
                )
            begin = max(before, record.start)
            events.append(
                {
                    "name": _title(record),
                    "cat": queue.lower(),
                    "ph": "X",
                    "ts": at(begin),
                    "dur": at(record.end - begin),
                    "pid": process,
                    "tid": thread,
                    "args": {
                        "index": record.index,
                        "layer": record.layer,
                        "start_cycle": record.start,
                        "end_cycle": record.end,
                        **{f"wait_{name}_cycles": cycles for name, cycles in waits.items()},
                        **{k: v for k, v in record.fields.items() if v and k != "opcode"},
                    },
                }
            )
            before = record.end
    return {
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": {"clock_hz": clock_hz, "cycles": profile.counters["CYCLES_TOTAL"]},
    }


def _named(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _title(record: TraceRecord) -> str:
    if record.opcode == "COMPUTE" and record.layer is not None:
        return record.layer
    if record.opcode == "LOAD":
        return f"LOAD {LoadTarget(record.fields['target']).name.lower()}"
    return record.opcode


@dataclass(frozen=True)
class Point:
    """A place in the roofline plot: MACs a byte loaded or stored, MACs a cycle.

    `intensity` is infinite where nothing is: weights and maps are on the chip.
    """

    name: str
    intensity: float
    performance: float


def roofline_points(bundle: Bundle, profile: Profile) -> tuple[list[Point], Point]:
    """Return a point a layer that multiplies, and the whole network's.

    A layer may lie above the bus' roof: what it needs is loaded ahead, while others compute.
    """
    rows = layer_rows(bundle, profile)
    macs, moved = sum(row.macs for row in rows), sum(row.bytes for row in rows)
    cycles = profile.counters["CYCLES_TOTAL"]

    def point(name: str, macs: int, moved: int, cycles: int) -> Point:
        return Point(name, macs / moved if moved else math.inf, macs / max(1, cycles))

    layers = [point(row.layer, row.macs, row.bytes, row.cycles) for row in rows if row.macs]
    return layers, point(profile.name, macs, moved, cycles)


def write_roofline(path: Path, bundle: Bundle, profile: Profile) -> Path:
    """Draw the roofline plot, as the suffix says (.png, .svg); whole or not at all.

    The roof is the array's MACs a cycle, or as many as the bus' 8 bytes a cycle feed. Layers are
    numbered, and those that lie together share a label. Layers that neither load nor store stand
    in a band of their own at the right.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    from matplotlib.transforms import Bbox

    points, whole = roofline_points(bundle, profile)
    peak = bundle.config.macs_per_cycle
    ridge = peak / BEAT_BYTES
    xs = [p.intensity for p in (*points, whole) if math.isfinite(p.intensity)] + [ridge]
    low, high = min(xs) / 3, max(xs) * 3
    lowest = min([p.performance for p in (*points, whole) if p.performance], default=1) / 3
    on_chip = any(math.isinf(p.intensity) for p in (*points, whole))
    band = (high / low) ** 0.12 if on_chip else 1.0
    columns = 1 + max(0, len(points) - 1) // 24
    figure = Figure(figsize=(8.6 + 2.3 * (columns - 1), 5.0), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlim=(low, high * band), ylim=(lowest, peak * 2))
    axes.axvspan(high, high * band, color=_MUTED, alpha=0.25, lw=0)
    axes.plot([low, ridge, high * band], [low * BEAT_BYTES, peak, peak], color=_INK, lw=1.6)
    places = [
        (
            p.intensity if math.isfinite(p.intensity) else high * band**0.4,
            max(p.performance, lowest),
        )
        for p in (*points, whole)
    ]
    for some, marker, color, size in (
        (places[:-1], "o", _BLUE, 28),
        (places[-1:], "*", _ACCENT, 150),
    ):
        x, y = [x for x, _ in some], [y for _, y in some]
        axes.scatter(x, y, s=size, color=color, marker=marker, zorder=3)
    ahead = any(p.performance > 1.05 * BEAT_BYTES * p.intensity for p in points)
    note = "\nleft of the bus' roof: loaded while other layers computed" if ahead else ""
    axes.set_xlabel(f"MACs a byte loaded or stored{note}")
    axes.set_ylabel("MACs a cycle")
    for axis, steps in ((axes.xaxis, (1,)), (axes.yaxis, (1, 2, 5))):
        axis.set_major_locator(LogLocator(subs=steps))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{profile.name}: {profile.counters['CYCLES_TOTAL']:,} cycles", fontsize=11)
    axes.grid(True, which="major", color=_MUTED, lw=0.4, alpha=0.7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    words: dict[str, Any] = {"color": _INK, "fontsize": 9}
    axes.text(
        high * band, peak * 1.06, f"array: {peak:,} MACs a cycle", ha="right", va="bottom", **words
    )
    if on_chip:
        axes.text(
            high * band**0.93, lowest * 1.1, "no loads, no stores",
            ha="right", va="bottom", rotation=90, **words,
        )  # fmt: skip
    names = [f"{number:2d}  {_short(p.name)}" for number, p in enumerate(points, 1)]
    _legend(axes, [*names, "\N{BLACK STAR}  whole network"], columns)

    figure.draw_without_rendering()  # from here on, pixels are what they will be
    pixels = axes.transData.transform([*places, (low, low * BEAT_BYTES), (ridge, peak)])
    rise = pixels[-1] - pixels[-2]
    start = max(low, lowest / BEAT_BYTES) * 1.15
    axes.text(
        start, start * BEAT_BYTES * 1.1, f"bus: {BEAT_BYTES} bytes a cycle", ha="left", va="bottom",
        rotation=math.degrees(math.atan2(rise[1], rise[0])), rotation_mode="anchor", **words,
    )  # fmt: skip
    # Labels go below their points, further down where something is already.
    renderer = canvas.get_renderer()
    taken = [
        Bbox.from_extents(x - 10, y - 10, x + 10, y + 10) for x, y in pixels[len(points) :][:1]
    ]
    taken += [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in pixels[: len(points)]]
    for members in _clusters([tuple(pixel) for pixel in pixels[: len(points)]], 18.0):
        right = max(members, key=lambda i: pixels[i][0])
        label = axes.annotate(
            _ranges([i + 1 for i in members]), places[right], xytext=(5, -10),
            textcoords="offset points", fontsize=8, color=_BLUE,
        )  # fmt: skip
        aside = 5
        if label.get_window_extent(renderer).x1 > axes.bbox.x1:
            label.set_horizontalalignment("right")
            aside = -5
        for drop in range(-10, -60, -6):
            label.xyann = (aside, drop)
            box = label.get_window_extent(renderer)
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)
    return path


def _legend(axes: Any, entries: Sequence[str], columns: int) -> None:
    """Put the numbered names beside the plot."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="none", label=entry) for entry in entries]
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), ncol=columns, fontsize=8,
        frameon=False, handlelength=0, handletextpad=0, borderaxespad=0,
    )  # fmt: skip


def _short(name: str, length: int = 26) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}\N{HORIZONTAL ELLIPSIS}"


def _clusters(places: Sequence[tuple[float, ...]], distance: float) -> list[list[int]]:
    """Group the indices of points that are nearer than `distance` to one of their group."""
    groups: list[list[int]] = []
    for index, place in enumerate(places):
        near = [g for g in groups if any(math.dist(place, places[i]) < distance for i in g)]
        groups = [g for g in groups if g not in near]
        groups.append(sorted([index, *(i for g in near for i in g)]))
    return groups


def _ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers as ``1-3, 5``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 2 else ", ".join(map(str, p)) for p in parts)
