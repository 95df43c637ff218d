# SPDX-License-Identifier: Apache-2.0
"""The tests room: the estimate of resources: statistics as read, and a small top synthesised."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hwgen.arch import AcceleratorConfig
from hwgen.boards import load_board
from hwgen.cli import main
from rtl import resources
from rtl.emit import emit_verilog
from rtl.resources import (
    Resources,
    SynthesisError,
    Usage,
    complaints,
    estimate_resources,
    parse_statistics,
    parse_timing,
    record,
    verilog_digest,
)
from rtl.tools import ToolError

ROOT = Path(__file__).parents[2]

CONFIG = AcceleratorConfig(tn=4, ti=8, scratchpad_bank_words=512, synapse_rows=512, tap_entries=64)


def canned(**extra: int) -> dict[str, Any]:
    """Return ``stat -json`` of a top with two blocks, one of which has blocks of its own."""

    def module(**cells: int) -> dict[str, Any]:
        return {"num_cells_by_type": cells}

    return {
        "modules": {
            "\\shears": module(FDRE=1, **{"shears.accelerator": 1}),
            "\\shears.accelerator": module(
                LUT2=3, **{"shears.accelerator.compute": 1, "\\shears.accelerator.load$7": 1}
            ),
            "\\shears.accelerator.compute": module(**{"shears.accelerator.compute.array": 1}),
            "\\shears.accelerator.compute.array": module(DSP48E1=2, CARRY4=5, LUT6=7, FDSE=4),
            "\\shears.accelerator.load$7": module(
                RAMB36E1=2, RAMB18E1=1, RAM32M=3, SRL16E=2, MUXF7=9, INV=1, **extra
            ),
        }
    }


def test_statistics_are_summed_by_block() -> None:
    """18 Kbit are halves, a RAM32M is four LUTs, and a number against clashes is no name."""
    assert parse_statistics(canned()) == {
        "compute": Usage(),
        "compute.array": Usage(dsp=2, lut=7, ff=4, carry=5),
        "load": Usage(bram36=2.5, lut=15, lutram=14),
        "top": Usage(lut=3, ff=1),
    }


def test_delays_are_found() -> None:
    """Each block's slowest path, in ns; a module below a block counts for it."""
    text = """
Latest arrival time in 'shears.accelerator.load$7' is 2665:
Latest arrival time in '\\shears.accelerator.compute.array' is 1310:
Latest arrival time in 'shears' is 127:
"""
    assert parse_timing(text) == {"compute.array": 1.31, "load": 2.665, "top": 0.127}
    assert parse_timing("") == {}


def test_unknown_cell_is_refused() -> None:
    """A cell that nobody counted would make the figures too small."""
    with pytest.raises(SynthesisError, match=r"accelerator\.load\$7 has 2 cells 'URAM288'"):
        parse_statistics(canned(URAM288=2))


def test_unknown_family_is_refused() -> None:
    """The message names the known ones."""
    with pytest.raises(ValueError, match=r"family must be one of \('xc7', 'ecp5'\), not 'ice40'"):
        estimate_resources(CONFIG, family="ice40")


def test_failing_yosys_shows_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verilog that Yosys refuses gives its message, not an empty figure."""
    monkeypatch.setattr(resources, "emit_verilog", lambda config: "module shears(; endmodule\n")
    with pytest.raises(ToolError, match="syntax error"):
        estimate_resources(CONFIG)


@pytest.mark.slow
def test_small_top_is_synthesised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No unexplained warning; DSPs are those of the arithmetic, memories are block RAM; cached."""
    passes: list[str] = []
    result = estimate_resources(CONFIG, cache_dir=tmp_path, progress=passes.append)
    assert not result.warnings
    assert set(result.waived) <= set(resources.SYNTHESIS_WAIVERS)
    assert any("ABC9" in name for name in passes)

    blocks = result.per_block
    assert Usage(*(getattr(result, name) for name in Usage.__dataclass_fields__)) == sum(
        blocks.values(), Usage()
    )
    assert blocks["compute.array"].dsp == CONFIG.tn * CONFIG.ti // 2  # two products a DSP
    assert blocks["scratchpad"].bram36 >= CONFIG.scratchpad_banks
    assert blocks["synapse_buffer"].bram36 >= CONFIG.tn
    assert sum(b.bram36 for b in blocks.values()) == result.bram36
    assert all(re.fullmatch(r"[a-z_.]+", name) for name in blocks)

    def fail(*_: object) -> None:
        raise AssertionError("Yosys ran although the result was kept")

    monkeypatch.setattr(resources, "synthesise", fail)
    assert estimate_resources(CONFIG, cache_dir=tmp_path) == result
    assert Resources.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@pytest.mark.parametrize(("bram36", "status"), [(119, 0), (119.5, 1)])
def test_the_verb_fails_beyond_the_limit(
    bram36: float,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """85 % of the PYNQ-Z2's 140 block RAMs are 119; what is too much is named."""
    usage = Usage(dsp=130, bram36=bram36, lut=20_000, ff=30_000)
    found = Resources(**vars(usage), per_block={"scratchpad": usage}, yosys="Yosys 0")
    monkeypatch.setattr(resources, "estimate_resources", lambda *_, **__: found)
    report = tmp_path / "report.json"
    arguments = ["resources", "--board", "pynq-z2", "--json", str(report)]
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert "scratchpad" in printed.out and "estimates of Yosys" in printed.out
    if status:
        assert "85.4 % of bram36" in printed.err
    else:
        assert json.loads(report.read_text())["percent"]["bram36"] == 85


def test_ecp5_cells_are_counted() -> None:
    """An EBR is half of 36 Kbit, a carry cell is two LUT4, a RAM four and its writers' places."""
    cells = {"MULT18X18D": 2, "DP16KD": 3, "LUT4": 5, "CCU2C": 7, "TRELLIS_DPR16X4": 1, "PFUMX": 9}
    found = parse_statistics({"modules": {"\\shears": {"num_cells_by_type": cells}}})
    assert found["top"] == Usage(dsp=2, bram36=1.5, lut=5 + 14 + 6, lutram=6, carry=7)


def recorded(digest: str = "a" * 64, **changes: Any) -> dict[str, Any]:
    """Return a record whose usage is half of what the budget allows."""
    counts = {"dsp": 100, "bram36": 50, "lut": 20_000, "ff": 10_000, **changes}
    percent = dict.fromkeys(("dsp", "bram36", "lut", "ff"), 40.0)
    return {
        "verilog_sha256": digest,
        **vars(Usage(**counts)),
        "percent": percent,
        "previous": {"verilog_sha256": "b" * 64, **vars(Usage(100, 50, 20_000, 0, 10_000, 0))},
    }


def test_the_record_is_of_todays_verilog() -> None:
    """Other Verilog needs another run, whatever it takes."""
    assert complaints(recorded(), "a" * 64, "") == []
    (text,) = complaints(recorded("c" * 64), "a" * 64, "")
    assert "cccccccccccc" in text and "run make resources" in text


@pytest.mark.parametrize(("lut", "grown"), [(20_600, False), (20_601, True)])
def test_growth_needs_a_reason(lut: int, grown: bool) -> None:
    """3 % are free; more needs the digest and a reason in one line of CHANGELOG.md."""
    found = complaints(recorded(lut=lut), "a" * 64, f"- {'a' * 12}\n- {'d' * 12}: larger ring")
    assert [("lut grew from 20000" in text) for text in found] == [True] * grown
    assert not complaints(recorded(lut=lut), "a" * 64, f"- `{'a' * 12}`: a ring twice as large")


def test_the_limit_holds_whatever_the_changelog_says() -> None:
    """85 % of DSP, BRAM36 and LUT, each by its name."""
    data = recorded()
    data["percent"].update(bram36=85.1, ff=99.0)
    assert complaints(data, "a" * 64, "a" * 12 + ": a reason") == [
        "85.1 % of bram36, more than 85 %"
    ]


def test_a_record_keeps_what_it_replaces(tmp_path: Path) -> None:
    """The same Verilog again leaves `previous` alone; other Verilog moves the totals there."""
    path = tmp_path / "record.json"
    first = record({**vars(Usage(dsp=1)), "verilog_sha256": "1"}, path)
    assert first["previous"] is None
    path.write_text(json.dumps(first))
    second = record({**vars(Usage(dsp=2)), "verilog_sha256": "2"}, path)
    assert second["previous"] == {"verilog_sha256": "1", **vars(Usage(dsp=1))}
    path.write_text(json.dumps(second))
    assert record(second, path)["previous"] == second["previous"]


def test_the_committed_record_stands() -> None:
    """pynq-z2's default fits, has not grown unexplained, and was synthesised as it is today."""
    text = (ROOT / "benchmarks/results/resources.json").read_text(encoding="utf-8")
    digest = verilog_digest(emit_verilog(load_board("pynq-z2").config))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert complaints(json.loads(text), digest, changelog) == []
