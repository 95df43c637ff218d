# SPDX-License-Identifier: Apache-2.0
"""The tests room: the emitted Verilog: ports, lint, synthesis, and how it is written."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from hwgen.arch import AcceleratorConfig
from rtl import emit
from rtl.axi import LITE_MEMBERS, READ_MEMBERS, WRITE_MEMBERS
from sim.runner import verilator_environment

CONFIG = AcceleratorConfig(tn=8, ti=8, scratchpad_bank_words=64, synapse_rows=64, tap_entries=64)


@pytest.fixture(scope="module")
def verilog() -> str:
    """Return the Verilog of a small configuration."""
    return emit.emit_verilog(CONFIG)


def test_ports_are_those_that_vivado_infers(verilog: str) -> None:
    """Clock, reset, interrupt and both buses, and nothing else."""
    header = re.search(r"^module shears\((.*?)\);", verilog, re.MULTILINE | re.DOTALL)
    assert header is not None
    ports = {name.strip() for name in header.group(1).split(",")}
    expected = {"aclk", "aresetn", "irq"}
    expected |= {f"s_axi_{name}" for name in LITE_MEMBERS}
    expected |= {f"m_axi_{name}" for name in {**READ_MEMBERS, **WRITE_MEMBERS}}
    assert ports == expected


def test_no_source_attributes(verilog: str) -> None:
    """No path of the machine that wrote it, and the digest on top."""
    assert "src =" not in verilog
    assert "/" not in "".join(re.findall(r'"[^"]*"', verilog))
    assert f"{CONFIG.digest():016x}" in verilog[:400]


def test_verilator_has_no_other_warning(verilog: str, tmp_path: Path) -> None:
    """Lint with every warning on, but for the explained ones."""
    path = tmp_path / "shears.v"
    path.write_text(verilog)
    waivers = [f"-Wno-{name}" for name in emit.LINT_WAIVERS]
    command = ["verilator", "--lint-only", "-Wall", *waivers, "--top-module", "shears", str(path)]
    with verilator_environment():
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and not result.stderr, result.stderr[-3000:]


def test_write_is_whole_or_nothing(
    verilog: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has the whole text; a failure leaves the former file and no other."""
    monkeypatch.setattr(emit, "emit_verilog", lambda config: verilog)
    path = emit.write_verilog(CONFIG, tmp_path / "new" / "shears.v")
    assert path.read_text() == verilog

    def fail(config: AcceleratorConfig) -> str:
        raise RuntimeError("no Verilog")

    monkeypatch.setattr(emit, "emit_verilog", fail)
    with pytest.raises(RuntimeError):
        emit.write_verilog(CONFIG, path)
    assert [p.name for p in path.parent.iterdir()] == ["shears.v"]
    assert path.read_text() == verilog
