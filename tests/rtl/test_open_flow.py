# SPDX-License-Identifier: Apache-2.0
"""The tests room: an ECP5 board's bitstream: PLL, pins, what fails with numbers, the real build."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from hwgen.arch import AcceleratorConfig
from hwgen.arch.link import LinkConfig
from hwgen.boards import load_board
from hwgen.cli import main
from rtl import open_flow, place
from rtl.place import CriticalPath, Hop, Placement, Target, without_brackets
from rtl.soc import BOARD_NAME, find_pll
from rtl.tools import NEXTPNR_ECP5, ToolError
from tests.rtl.test_place import needs_nextpnr

CONFIG = AcceleratorConfig(
    tn=4, ti=8, scratchpad_bank_words=512, synapse_rows=512, tap_entries=64, resampler_row_bytes=0
)
BOARD = load_board("ulx3s-85f")
LINK = LinkConfig(BOARD.accelerator_hz, 2_000_000, 8192)
BUDGET = asdict(BOARD.budget)
assert BOARD.open_flow is not None and BOARD.soc is not None
TARGET = Target(**vars(replace(BOARD.open_flow, constraints=BOARD.soc.constraints)))
PATH = CriticalPath("c", "c", (Hop("bridge", "soc.bridge.x", "logic", 20.0),))
USED = {"dsp": 10.0, "bram36": 50.0, "lut": 100.0, "ff": 100.0}


@pytest.mark.parametrize(
    ("oscillator", "clock"), [(25e6, 40e6), (25e6, 50e6), (12e6, 48e6), (100e6, 62.5e6)]
)
def test_the_pll_makes_the_clock(oscillator: float, clock: float) -> None:
    """Exactly, with VCO and phase detector in their ranges."""
    pll = find_pll(int(oscillator), int(clock))
    vco = oscillator * pll.multiply
    assert 400e6 <= vco <= 800e6 and vco / pll.divide == clock


def test_a_clock_that_the_pll_cannot_make() -> None:
    with pytest.raises(ValueError, match=r"25000000 Hz, not 41234567; try one of \[\d+"):
        find_pll(25_000_000, 41_234_567)
    with pytest.raises(ValueError, match="oscillator_hz must be 10000000 to"):
        find_pll(8_000_000, 40_000_000)


def test_the_verilog_has_pins_and_pll() -> None:
    """The ports are those that a board's file places, the blocks have their names."""
    design = open_flow.design_of(CONFIG, LINK, 25_000_000)
    text = design.verilog
    head = text[text.index(f"module {BOARD_NAME}(") :].partition(";")[0]
    ports = {"clock", "serial_in", "serial_out", "hold_high", "led"}
    assert set(head.partition("(")[2].rstrip(")").replace(" ", "").split(",")) == ports
    assert "EHXPLLL" in text and ".CLKOP_DIV(32'd24)" in text and ".CLKOS_DIV(32'd15)" in text
    assert "baud = 2000000" in text and "oscillator_hz = 25000000" in text
    blocks = {"bridge", "memory", "receiver", "accelerator.dispatch"}
    assert blocks <= design.block_paths()


def test_every_pin_must_have_a_place() -> None:
    assert BOARD.soc is not None
    text = open_flow.constraints_of(BOARD.soc.constraints, 25_000_000)
    assert text.endswith('FREQUENCY PORT "clock" 25 MHZ;\n')
    fewer = BOARD.soc.constraints.replace('COMP "led[3]"', 'COMP "lamp"')
    with pytest.raises(ValueError, match=r"led\[3\] have no LOCATE"):
        open_flow.constraints_of(fewer, 25_000_000)


def test_names_that_abc9_mistakes() -> None:
    """Brackets inside a name change, those of a range do not."""
    given = "wire [7:0] \\x[0][7] ; assign \\x[0][7]  = \\y [3:0] & z[1];"
    assert without_brackets(given) == (
        "wire [7:0] \\x<0><7> ; assign \\x<0><7>  = \\y [3:0] & z[1];"
    )


def build(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> open_flow.BuiltBoard:
    """Build with a stand-in for the tools, whose result is as `changes` say."""
    good = Placement({"clk": 50.0}, 40.0, (PATH,), USED, {}, seconds={"yosys": 1.0})
    found = replace(good, **changes)
    monkeypatch.setattr(open_flow, "place_design", lambda *_, **__: (found, b"bits"))
    monkeypatch.setattr(open_flow, "emit_ecp5_board", lambda *_: "module shears_board();")
    return open_flow.build(CONFIG, LINK, TARGET, 25_000_000, BUDGET, folder)


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(tmp_path, monkeypatch)
    assert built.bit.read_bytes() == b"bits" and built.percent["dsp"] == pytest.approx(6.41, 0.01)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"shears.bit", "report.json", "shears.v", "shears.lpf"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["digest"] == f"{CONFIG.digest():016x}" and report["fmax_mhz"] == {"clk": 50.0}
    assert report["link"]["baud"] == 2_000_000 and report["budget"] == BUDGET


def test_a_clock_that_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers and the path are in the message, and no bitstream is there."""
    message = "reaches 33.0 MHz, less than the 40 .* slowest path is bridge; try another --seed"
    with pytest.raises(ToolError, match=message):
        build(tmp_path, monkeypatch, fmax_mhz={"clk": 33.0})
    assert not (tmp_path / "shears.bit").exists()


def test_a_budget_that_is_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolError, match="takes 110 bram36 of 104; try a smaller accelerator"):
        build(tmp_path, monkeypatch, used={**USED, "bram36": 110.0})
    assert not (tmp_path / "shears.bit").exists()


def test_a_device_that_is_over_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nextpnr counted before it gave up is what the error tells."""
    lines = [
        "Info: \t      DP16KD:   250/  208   120%\n",
        "Info: \t  MULT18X18D:    96/  156    61%\n",
    ]

    def give_up(self: Any, options: Any, folder: Any, line: Any) -> str:
        for text in lines:
            line(text)
        raise ToolError("nextpnr-ecp5 ended with 255: Unable to place cell")

    monkeypatch.setattr(type(NEXTPNR_ECP5), "run", give_up)
    with pytest.raises(ToolError, match="no room: it needs 250 DP16KD of 208; try a smaller"):
        place._nextpnr([], tmp_path, None)
    lines.clear()
    with pytest.raises(ToolError, match="Unable to place cell"):
        place._nextpnr([], tmp_path, None)


def test_the_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints what the design takes and reaches, and how to load it."""
    good = Placement({"clk": 50.0}, 40.0, (PATH,), USED, {}, 1000, "ab", seconds={"yosys": 60.0})
    monkeypatch.setattr(open_flow, "place_design", lambda *_, **__: (good, b"bits"))
    monkeypatch.setattr(open_flow, "emit_ecp5_board", lambda *_: "module shears_board();")
    out = tmp_path / "out"
    report = tmp_path / "report.json"
    arguments = ["build", "--board", "ulx3s-85f", "--out", str(out), "--json", str(report)]
    assert main(arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "50.0 MHz, and 40 are needed; 1.0 minutes" in printed
    assert "1,000 bytes, sha256 ab" in printed and "openFPGALoader --board ulx3s" in printed
    assert json.loads(report.read_text())["bitstream_bytes"] == 1000
    monkeypatch.setattr(
        open_flow, "place_design", lambda *_, **__: (replace(good, fmax_mhz={"clk": 1.0}), b"")
    )
    assert main(arguments) == 1
    assert "reaches 1.0 MHz" in capsys.readouterr().err


def test_a_board_without_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boards = Path(__file__).parents[2] / "boards"
    for path in boards.glob("ulx3s-85f*"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    file = tmp_path / "ulx3s-85f.toml"
    text = file.read_text(encoding="utf-8")
    first, _, rest = text.partition("[soc]")
    file.write_text(first + rest[rest.index("[accelerator]") :], encoding="utf-8")
    assert main(["build", "--board", str(file)]) == 1
    assert "must have a table [soc]" in capsys.readouterr().err
    assert main(["package", "--board", "ulx3s-85f"]) == 1
    assert "shears run --port" in capsys.readouterr().err


@pytest.mark.slow
@needs_nextpnr
def test_the_boards_bitstream(tmp_path: Path) -> None:
    """The whole of ULX3S' design fits, meets its clock, and is a bitstream for its device."""
    status = main(["build", "--board", "ulx3s-85f", "--out", str(tmp_path)])
    assert status == 0
    bits = (tmp_path / "shears.bit").read_bytes()
    report = json.loads((tmp_path / "report.json").read_text())
    assert hashlib.sha256(bits).hexdigest() == report["bitstream_sha256"]
    assert min(report["fmax_mhz"].values()) >= 40
    assert max(report["percent"].values()) <= 85
