# SPDX-License-Identifier: Apache-2.0
"""The tests room: tables, traces and plots of profiles made by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwgen.arch import Bundle, LayerRecord, Profile, TraceRecord, isa
from hwgen.arch.isa import Opcode
from hwgen.arch.trace import TRACE_RECORD, WAIT_MAX
from hwgen.profile_report import (
    BETWEEN,
    TAIL,
    _clusters,
    _ranges,
    chrome_trace,
    compute_slots,
    layer_rows,
    owner_of,
    roofline_points,
    write_roofline,
)
from tests.host.small_bundle import CONFIG, linear_bundle

CLOCK_HZ = 50_000_000


def record(index: int, opcode: str, layer: str | None, *times: int, **fields: int) -> TraceRecord:
    """Make a record; `times` are start, end, and the waits for load, compute and store."""
    start, end, *waits = (*times, 0, 0, 0)
    layout = isa.LAYOUTS[Opcode[opcode]]
    values = {field.name: fields.get(field.name, 0) for field in layout.fields}
    return TraceRecord(index, opcode, layer, start, end, *waits[:3], fields=values)


@pytest.fixture
def bundle(rng: np.random.Generator) -> Bundle:
    """Two layers: `a` of instructions 1 to 2, `b` of 4 alone."""
    made = linear_bundle(rng.integers(-9, 9, (3, 3, 4, 4)).astype(np.int8))
    shape = (4, 1, 1)
    layers = (
        LayerRecord("a", "QConv", 1, 2, 6000, 0, 30, shape),
        LayerRecord("b", "QConv", 4, 4, 1000, 0, 10, shape),
    )
    return dataclasses.replace(made, layers=layers)


@pytest.fixture
def profile() -> Profile:
    """Give a LOAD, two COMPUTEs of `a`, a COMPUTE of nobody, a LOAD, one of `b`, a STORE."""
    records = (
        record(0, "LOAD", None, 40, 100, signal_compute=1, rows=3, row_bytes=9),
        record(1, "COMPUTE", "a", 101, 200, 30, wait_load=1),
        record(2, "COMPUTE", "a", 103, 300),
        record(3, "LOAD", None, 90, 380, signal_compute=1, rows=1, row_bytes=64),
        record(4, "COMPUTE", "b", 381, 420, 150, 0, 20, wait_load=1, signal_store=1),
        record(5, "COMPUTE", None, 425, 430),
        record(6, "STORE", None, 421, 460, 0, 99, wait_compute=1, rows=2, words_per_row=5),
    )
    return Profile("net", records, {"CYCLES_TOTAL": 464, "BYTES_READ": 0}, (464,))


def test_record_layout_fills_two_block_rams() -> None:
    """72 bits twice: a wider record would cost a third one."""
    assert TRACE_RECORD.bits <= 144
    assert TRACE_RECORD.by_name["wait_load"].maximum == WAIT_MAX


def test_slots_divide_the_time(profile: Profile) -> None:
    slots = compute_slots(profile)
    assert [s.cycles for s in slots] == [201, 100, 120, 10]
    assert [s.computing for s in slots] == [99, 100, 39, 5]
    # Of 150 cycles that instruction 4 waited, the array was busy until cycle 300.
    assert [s.wait_load for s in slots] == [30, 0, 80, 0]
    assert [s.wait_store for s in slots] == [0, 0, 0, 0]
    assert [s.other for s in slots] == [72, 0, 1, 5]


def test_both_tokens_missing_count_in_both(profile: Profile) -> None:
    late = dataclasses.replace(profile.records[4], wait_store=200)
    changed = (*profile.records[:4], late, *profile.records[5:])
    slot = compute_slots(dataclasses.replace(profile, records=changed))[2]
    assert (slot.wait_load, slot.wait_store, slot.other) == (30, 80, 1)


def test_rows_add_up(bundle: Bundle, profile: Profile) -> None:
    rows = layer_rows(bundle, profile)
    assert [row.layer for row in rows] == ["a", "b", BETWEEN, TAIL]
    assert [row.cycles for row in rows] == [301, 120, 10, 33]
    assert sum(row.cycles for row in rows) == 464
    assert [row.macs for row in rows] == [6000, 1000, 0, 0]
    assert [row.bytes for row in rows] == [3 * 16, 64 + 2 * 5 * CONFIG.word_bytes, 0, 0]
    assert rows[0].macs_busy == 6000 / (CONFIG.macs_per_cycle * 301)


def test_owners_without_tokens(profile: Profile) -> None:
    """A LOAD belongs to the next COMPUTE and a STORE to the last one, where no token tells."""
    quiet = tuple(
        dataclasses.replace(r, fields={**r.fields, "signal_compute": 0, "wait_compute": 0})
        for r in profile.records
    )
    owners = owner_of(dataclasses.replace(profile, records=quiet))
    assert owners == {0: "a", 1: "a", 2: "a", 3: "b", 4: "b", 5: None, 6: None}
    assert owner_of(profile)[6] == "b"


def test_chrome_trace_is_one(profile: Profile) -> None:
    """Check the rules of the trace-event format that Perfetto and chrome://tracing insist on."""
    trace = json.loads(json.dumps(chrome_trace(profile, CLOCK_HZ), allow_nan=False))
    assert trace["displayTimeUnit"] in ("ms", "ns")
    assert set(trace) == {"traceEvents", "displayTimeUnit", "otherData"}
    threads: dict[int, list[dict[str, Any]]] = {}
    named = set()
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str) and isinstance(event["args"], dict)
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            if event["name"] != "thread_sort_index":
                assert isinstance(event["args"]["name"], str)
            named.add((event["name"], event["tid"]))
            continue
        assert event["ph"] == "X" and isinstance(event["cat"], str)
        assert isinstance(event["ts"], (int, float)) and event["ts"] >= 0
        assert isinstance(event["dur"], (int, float)) and event["dur"] >= 0
        threads.setdefault(event["tid"], []).append(event)
    kinds = ("thread_name", "thread_sort_index")
    assert named == {("process_name", 0), *((kind, t) for kind in kinds for t in range(3))}
    assert set(threads) == {0, 1, 2}
    for events in threads.values():  # complete events of a thread must not overlap by halves
        for a, b in zip(events, events[1:], strict=False):
            assert a["ts"] + a["dur"] <= b["ts"] + 1e-9
    microseconds = 1e6 / CLOCK_HZ
    shown = {e["args"]["index"]: e for e in sum(threads.values(), []) if e["cat"] != "wait"}
    assert set(shown) == set(range(7))
    assert shown[2]["name"] == "a" and shown[2]["args"]["start_cycle"] == 103
    assert shown[2]["ts"] == pytest.approx(200 * microseconds)
    assert shown[2]["dur"] == pytest.approx(100 * microseconds)
    assert shown[0]["name"] == "LOAD scratchpad" and shown[0]["args"]["row_bytes"] == 9
    waits = {e["args"]["index"]: e for e in sum(threads.values(), []) if e["cat"] == "wait"}
    assert {i: e["name"] for i, e in waits.items()} == {
        1: "wait for load",
        4: "wait for load and store",
        6: "wait for compute",
    }
    assert waits[4]["dur"] == pytest.approx(81 * microseconds)


def test_roofline(bundle: Bundle, profile: Profile, tmp_path: Path) -> None:
    points, whole = roofline_points(bundle, profile)
    assert [(p.name, p.intensity) for p in points] == [("a", 6000 / 48), ("b", 1000 / 144)]
    assert (whole.intensity, whole.performance) == (7000 / 192, 7000 / 464)
    silent = dataclasses.replace(
        profile, records=tuple(r for r in profile.records if r.opcode == "COMPUTE")
    )
    assert all(math.isinf(point.intensity) for point in roofline_points(bundle, silent)[0])
    for number, each in enumerate((profile, silent)):
        path = write_roofline(tmp_path / f"{number}.png", bundle, each)
        assert path.read_bytes()[:4] == b"\x89PNG"
    assert len(list(tmp_path.iterdir())) == 2


def test_labels_are_joined() -> None:
    assert _ranges([1, 2, 3, 5, 6, 9]) == "1-3, 5, 6, 9"
    assert sorted(_clusters([(0, 0), (50, 0), (5, 0), (9, 0)], 6)) == [[0, 2, 3], [1]]
