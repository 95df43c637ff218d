# SPDX-License-Identifier: Apache-2.0
"""The tests room: the folder for Vivado, its scripts under tclsh, and the design that they make.

The commands of Vivado are stand-ins that record (tests/support/vivado_stand_in.tcl): what is tested
is what the scripts ask for, and what they do when something is wrong. Vivado itself is not here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hwgen.arch.package import IP_VLNV, ip_parameters
from hwgen.arch.registers import ADDRESS_SPACE_BYTES, REGISTERS
from hwgen.boards import board_names, load_board
from hwgen.cli import main
from rtl import vivado
from rtl.tools import ToolError
from tests.support.simulators import SMALL_BOARD
from tests.support.vivado import (
    CELLS,
    IPS,
    STAND_IN,
    Design,
    Run,
    Scenario,
    accelerator_buses,
    run_scripts,
    small_verilog,
    target_of,
    utilisation,
    verilog_ports,
)

ROOT = Path(__file__).parents[2]
ZYNQS = [name for name in board_names() if load_board(name).vivado is not None]

pytestmark = pytest.mark.skipif(
    shutil.which("tclsh") is None, reason="tclsh is missing: apt-get install tcl"
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small configuration for the PYNQ-Z2; tests work on copies."""
    folder = tmp_path_factory.mktemp("vivado") / "project"
    text = {SMALL_BOARD: small_verilog(tmp_path_factory)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vivado, "emit_verilog", text.__getitem__)
        vivado.write_project(SMALL_BOARD, target_of(load_board("pynq-z2")), folder)
    return folder


@pytest.fixture(scope="module")
def ports(project: Path) -> dict[str, tuple[str, int]]:
    return verilog_ports((project / "shears.v").read_text(encoding="utf-8"))


@pytest.fixture
def folder(project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(project, tmp_path / "project"))


@pytest.fixture(scope="module")
def run(
    project: Path, ports: dict[str, tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Return what the scripts ask for when nothing is wrong."""
    work = tmp_path_factory.mktemp("run")
    found = run_scripts(Path(shutil.copytree(project, work / "project")), Scenario(ports), work)
    assert found.status == 0, found.output
    return found


@pytest.fixture(scope="module")
def design(run: Run, ports: dict[str, tuple[str, int]]) -> Design:
    return Design(run, ports)


def test_cells(design: Design) -> None:
    """The accelerator as it is packaged, and Xilinx' IPs around it."""
    assert design.cells["accelerator"] == IP_VLNV
    kinds = {name: vlnv.split(":")[2] for name, vlnv in design.cells.items()}
    assert kinds == {**CELLS, "accelerator": IP_VLNV.split(":")[2]}


def test_every_input_has_one_driver_and_every_bus_two_ends(design: Design) -> None:
    """And outputs that a design may leave open are none of ours."""
    every = {
        f"{cell}/{pin}": way for cell in design.cells for pin, way in design.pins(cell).items()
    }
    driven = [pin for pins in design.nets.values() for pin in pins]
    assert sorted(driven) == sorted(pin for pin, way in every.items() if way == "I")
    assert set(design.nets) == {pin for pin, way in every.items() if way == "O"}
    buses = {f"{c}/{b}" for c in design.cells for b in design.interfaces(c)} - {
        "memory_bus/M01_AXI"
    }
    assert buses | {"ps7/DDR", "ps7/FIXED_IO", "DDR", "FIXED_IO"} == {
        *design.buses,
        *design.buses.values(),
    }


def test_way_of_data(design: Design) -> None:
    """GP0 reaches the registers and the interrupt controller, the accelerator reaches HP0."""
    assert {end: start for start, end in design.buses.items()} == {
        "DDR": "ps7/DDR",
        "FIXED_IO": "ps7/FIXED_IO",
        "control_bus/S00_AXI": "ps7/M_AXI_GP0",
        "accelerator/s_axi": "control_bus/M00_AXI",
        "axi_intc/s_axi": "control_bus/M01_AXI",
        "memory_bus/S00_AXI": "accelerator/m_axi",
        "ps7/S_AXI_HP0": "memory_bus/M00_AXI",
    }
    assert design.config["control_bus"] == {"NUM_SI": "1", "NUM_MI": "2"}
    assert design.config["memory_bus"] == {"NUM_SI": "1", "NUM_MI": "1"}
    for name in ("USE_M_AXI_GP0", "USE_S_AXI_HP0", "USE_FABRIC_INTERRUPT", "IRQ_F2P_INTR"):
        assert design.config["ps7"][f"PCW_{name}"] == "1"
    width = design.ports["m_axi_rdata"][1]
    assert design.config["ps7"]["PCW_S_AXI_HP0_DATA_WIDTH"] == str(width) == "64"


def test_interrupt_goes_through_the_controller_that_pynq_needs(design: Design) -> None:
    assert design.nets["accelerator/irq"] == {"axi_intc/intr"}
    assert design.nets["axi_intc/irq"] == {"xlconcat/In0"}
    assert design.nets["xlconcat/dout"] == {"ps7/IRQ_F2P"}


def test_one_clock_and_its_reset(design: Design) -> None:
    """All that has a clock has the wizard's, and resets are its domain's."""
    clocked = {pin for pin in design.nets["clk_wiz/clk_out1"]}
    clocks = ("aclk", "s_axi_aclk", "slowest_sync_clk", "M_AXI_GP0_ACLK", "S_AXI_HP0_ACLK")
    assert clocked == {
        f"{cell}/{pin}" for cell in design.cells for pin in design.pins(cell) if pin in clocks
    }
    assert design.nets["ps7/FCLK_CLK0"] == {"clk_wiz/clk_in1"}
    assert design.nets["clk_wiz/locked"] == {"system_reset/dcm_locked"}
    resets = (
        design.nets["system_reset/interconnect_aresetn"]
        | design.nets["system_reset/peripheral_aresetn"]
    )
    assert {pin.partition("/")[0] for pin in resets} == {
        pin.partition("/")[0] for pin in clocked
    } - {"ps7", "system_reset"}


def test_addresses(design: Design, run: Run) -> None:
    """They are the board file's, and the register map's size."""
    board = load_board("pynq-z2")
    assert board.vivado is not None
    found = {a.segment: (a.space, a.offset, a.range) for a in design.addresses}
    assert found == {
        "accelerator/s_axi/reg0": ("ps7/Data", board.register_address, ADDRESS_SPACE_BYTES),
        "axi_intc/S_AXI/Reg": ("ps7/Data", board.vivado.interrupt_controller_address, 0x10000),
        "ps7/S_AXI_HP0/HP0_DDR_LOWOCM": ("accelerator/m_axi", 0, board.ddr_bytes),
    }
    properties = run.properties()
    assert properties["core/s_axi/reg0", "range"] == str(ADDRESS_SPACE_BYTES)
    address_bits = design.ports["s_axi_araddr"][1]
    assert 1 << address_bits == ADDRESS_SPACE_BYTES
    assert all(1 << design.ports[f"m_axi_{c}addr"][1] >= board.ddr_bytes for c in ("ar", "aw"))


def test_ip_is_packaged_with_its_registers_and_parameters(design: Design, run: Run) -> None:
    properties = run.properties()
    made = [properties["core", name] for name in ("name", "version")]
    words = run.of("ipx::package_project")[0]
    options = dict(zip(words[::2], words[1::2], strict=False))
    assert [options["-vendor"], options["-library"], *made] == IP_VLNV.split(":")
    assert design.parameters == ip_parameters(SMALL_BOARD)
    assert list(design.registers) == [register.name for register in REGISTERS]
    for register in REGISTERS:
        offset, size, _, text, fields = design.registers[register.name]
        assert (int(offset, 16), size, text) == (register.offset, "32", register.doc)
        assert [(name, int(low), int(bits)) for name, (low, bits, *_) in fields.items()] == [
            (field.name, low, field.bits) for field, low in register.layout.placed()
        ]


def test_buses_of_the_ip(run: Run, ports: dict[str, tuple[str, int]]) -> None:
    """Every port belongs to a bus that Vivado infers by name, or is clock, reset or interrupt."""
    assert accelerator_buses(ports) == ["m_axi", "s_axi"]
    single = {name for name in ports if "_axi_" not in name}
    assert single == {"aclk", "aresetn", "irq"}
    associated = run.of("ipx::associate_bus_interfaces")
    assert ["-busif", "s_axi", "-clock", "aclk", "core"] in associated
    assert ["-busif", "m_axi", "-clock", "aclk", "core"] in associated
    assert ["-clock", "aclk", "-reset", "aresetn", "core"] in associated
    assert run.of("ipx::infer_bus_interface") == [["irq", "xilinx.com:signal:interrupt_rtl:1.0"]]
    properties = run.properties()
    assert properties["bus:irq/SENSITIVITY", "value"] == "LEVEL_HIGH"
    assert properties["bus:aresetn/POLARITY", "value"] == "ACTIVE_LOW"
    burst = properties["bus:m_axi/MAX_BURST_LENGTH", "value"]
    assert burst == str(SMALL_BOARD.max_burst_beats)


def test_a_bus_that_is_not_inferred_is_an_error(
    folder: Path, ports: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    found = run_scripts(folder, Scenario(ports, inferred=("s_axi",)), tmp_path)
    assert found.status and "did not infer the bus m_axi from the ports of shears.v" in found.output


def test_single_ports_are_inferred_where_vivado_did_not(
    folder: Path, ports: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    found = run_scripts(folder, Scenario(ports, inferred=("s_axi", "m_axi")), tmp_path)
    kinds = {"aclk": "clock", "aresetn": "reset", "irq": "interrupt"}
    assert found.of("ipx::infer_bus_interface") == [
        [port, f"xilinx.com:signal:{kind}_rtl:1.0"] for port, kind in kinds.items()
    ]


def test_a_port_that_is_not_in_the_verilog_is_an_error(
    folder: Path, ports: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    """The stand-ins know the ports of the emitted Verilog alone."""
    fewer = {name: port for name, port in ports.items() if name != "irq"}
    found = run_scripts(folder, Scenario(fewer), tmp_path)
    assert found.status and "there is no pin accelerator/irq" in found.output


@pytest.mark.parametrize("name", ZYNQS)
def test_every_zynq_board_by_its_file_alone(
    name: str,
    project: Path,
    ports: dict[str, tuple[str, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Part, clock, DDR, budget and processing system are those of its TOML."""
    board = load_board(name)
    assert board.vivado is not None
    text = (project / "shears.v").read_text(encoding="utf-8")
    monkeypatch.setattr(vivado, "emit_verilog", lambda config: text)
    vivado.write_project(board.config, target_of(board), tmp_path / "project")
    small = board.budget.lut < 20_000
    report = utilisation(9000, 9000, 40, 60, "xc7z010" if small else "xc7z020")
    scenario = Scenario(ports, made_hz=board.accelerator_hz, report=report)
    found = run_scripts(tmp_path / "project", scenario, tmp_path)
    assert found.status == 0, found.output
    design = Design(found, ports)
    assert all(
        words[words.index("-part") + 1] == board.part for words in found.of("create_project")
    )
    assert board.vivado.ps7.items() <= design.config["ps7"].items()
    mhz = float(design.config["clk_wiz"]["CLKOUT1_REQUESTED_OUT_FREQ"])
    assert mhz * 1e6 == board.accelerator_hz
    reference = float(design.config["clk_wiz"]["PRIM_IN_FREQ"])
    assert reference == float(design.config["ps7"]["PCW_FPGA0_PERIPHERAL_FREQMHZ"])
    assert reference * 1e6 == board.vivado.reference_hz
    assert design.addresses[-1].range == board.ddr_bytes
    assert design.parameters == ip_parameters(board.config)


def expect_failure(
    folder: Path, scenario: Scenario, work: Path, *messages: str, steps: tuple[str, ...] = ()
) -> None:
    found = run_scripts(folder, scenario, work)
    assert found.status != 0
    error = re.search(r"^ERROR: shears: (.*)$", found.output, re.MULTILINE)
    assert error is not None, found.output
    for message in messages:
        assert message in error.group(1)
    assert not list(folder.glob("*.bit*")) and not (folder / vivado.RESULT).exists()
    assert [words[0] for words in found.of("launch_runs")] == list(steps)


@pytest.mark.parametrize("version", ["2019.2", "2025.1", "2018.3_AR71948"])
def test_other_versions_are_refused_first(
    version: str, folder: Path, ports: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    scenario = Scenario(ports, version=version)
    expect_failure(folder, scenario, tmp_path, f"must be 2020.1 to 2024.2, not {version}")
    settings = folder / "settings.tcl"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("set any_version 0", "set any_version 1"), encoding="utf-8")
    found = run_scripts(folder, scenario, tmp_path)
    assert found.status == 0 and f"not {version}: going on" in found.output


@pytest.mark.parametrize("version", ["2020.1", "2023.2.1", "2024.1.2", "2024.2"])
def test_supported_versions(
    version: str, folder: Path, ports: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    assert run_scripts(folder, Scenario(ports, version=version), tmp_path).status == 0


def test_a_version_that_cannot_be_read(
    folder: Path, ports: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    scenario = Scenario(ports, version="beta")
    expect_failure(folder, scenario, tmp_path, 'must read like 2024.2, not "beta"')


BOTH = ("synth_1", "impl_1")


@pytest.mark.parametrize(
    ("change", "messages", "steps"),
    [
        (
            {"setup_slack": "-0.217"},
            ("worst setup slack -0.217 ns at 150.0 MHz, from a_reg/C to b_reg/D",),
            BOTH,
        ),
        ({"hold_slack": "-0.004"}, ("worst hold slack -0.004 ns",), BOTH),
        ({"setup_slack": ""}, ("no setup path to check",), BOTH),
        ({"hold_slack": "inf?"}, ('no slack ("inf?")',), BOTH),
        (
            {"report": utilisation(53_201, 39_000, 141, 176)},
            ("after synthesis: 141 of 140 bram36, 53201 of 53200 lut",),
            ("synth_1",),
        ),
        (
            {"report": utilisation(9000, 9000, 40, 60, "xc7z010")},
            ("the device has 80 of dsp, the board file says 220",),
            ("synth_1",),
        ),
        ({"report": "| Site Type | Used |"}, ("has no row for dsp",), ("synth_1",)),
        ({"made_hz": 142_857_000}, ("makes 142.857 MHz in place of 150.000",), ()),
        ({"progress": {"synth_1": "0%"}}, ('synth_1 stopped with "ERROR"',), ("synth_1",)),
        ({"progress": {"impl_1": "40%"}}, ('impl_1 stopped with "ERROR"',), BOTH),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_fails_with_its_numbers(
    change: dict[str, object],
    messages: tuple[str, ...],
    steps: tuple[str, ...],
    folder: Path,
    ports: dict[str, tuple[str, int]],
    tmp_path: Path,
) -> None:
    """Before the next step, and nothing is collected."""
    scenario = replace(Scenario(ports), **change)  # type: ignore[arg-type]
    expect_failure(folder, scenario, tmp_path, *messages, steps=steps)


def test_report_of_older_versions(
    folder: Path, ports: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    """Without the column that 2021.2 brought."""
    report = utilisation(38_000, 39_000, 117.5, 176)
    old = "\n".join(re.sub(r"\| 0 \| 0 \|", "| 0 |", line) for line in report.splitlines())
    assert run_scripts(folder, Scenario(ports, report=old), tmp_path).status == 0
    found = json.loads((folder / vivado.RESULT).read_text(encoding="utf-8"))
    assert found["used"] == {"lut": 38_000, "ff": 39_000, "bram36": 117.5, "dsp": 176}


HANDOFF = '<EDKSYSTEM><PARAMETER NAME="PCW_ACT_FPGA0_PERIPHERAL_FREQMHZ" VALUE="99.5"/></EDKSYSTEM>'


def test_collected_together(
    folder: Path, ports: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    """The .bit and its .hwh replace the former pair; reports are kept."""
    assert vivado.built_overlay(folder) is None
    for suffix in (".bit", ".hwh"):
        (folder / f"shears{suffix}").write_text("old", encoding="utf-8")
    assert run_scripts(folder, Scenario(ports, handoff=HANDOFF), tmp_path).status == 0
    assert (folder / "shears.bit").read_text(encoding="utf-8") == "bitstream"
    # For pynq 4.0, which reads the rate of a Zynq-7000's clock under a Zynq UltraScale+ name.
    assert 'NAME="PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ" VALUE="99.5"' in (
        folder / "shears.hwh"
    ).read_text(encoding="utf-8")
    assert not list(folder.glob("*.new"))
    assert {path.name for path in (folder / "reports").iterdir()} == {
        "timing.rpt",
        "utilization.rpt",
        "utilization_blocks.rpt",
        "utilization_synthesis.rpt",
    }
    overlay = vivado.built_overlay(folder)
    assert overlay is not None
    assert (overlay.vivado, overlay.clock_hz) == ("2022.1", 150_000_000)
    assert (overlay.setup_slack_ns, overlay.hold_slack_ns) == (0.123, 0.031)


def test_another_configuration_is_not_what_was_built(
    folder: Path,
    ports: dict[str, tuple[str, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run_scripts(folder, Scenario(ports), tmp_path).status == 0
    monkeypatch.setattr(vivado, "emit_verilog", lambda config: "another")
    vivado.write_project(SMALL_BOARD, target_of(load_board("pynq-z2")), folder)
    assert vivado.built_overlay(folder) is None


def test_nothing_newer_than_vivados_tcl() -> None:
    """Vivado's interpreter is Tcl 8.5; these came with 8.6."""
    newer = r"\b(lmap|try|throw|coroutine|yield|tailcall|string cat|dict map|dict filter)\b"
    for name in vivado.SCRIPTS:
        code = (ROOT / "rtl" / "tcl" / name).read_text(encoding="utf-8")
        lines = [line for line in code.splitlines() if not line.lstrip().startswith("#")]
        words = re.sub(r'"[^"]*"', "", "\n".join(lines))
        assert not re.findall(newer, words), name


WORDS = ["plain", "", "two words", "a{b", "}", "$x [exit] ;", 'quote"', "back\\slash", "\\", "a\nb"]


def test_tcl_words(tmp_path: Path) -> None:
    """Every text comes back from Tcl as it was, in lists too."""
    script = tmp_path / "words.tcl"
    lines = [f"puts [string length {vivado.tcl_word(word)}]" for word in WORDS]
    nested = vivado.tcl_word({"key": WORDS})
    lines += [f"foreach word [dict get {nested} key] {{ puts [string length $word] }}"]
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = subprocess.run(["tclsh", script], capture_output=True, text=True, check=True)
    assert [int(line) for line in result.stdout.split()] == [len(word) for word in WORDS] * 2


def test_ips_have_the_pins_that_are_used() -> None:
    """The stand-ins' table covers the cells, and no more."""
    assert set(CELLS.values()) == set(IPS)


# The command line, with a program called vivado that runs the scripts under tclsh.


def fake_vivado(folder: Path, body: str) -> None:
    program = folder / "vivado"
    program.write_text(f"#!{sys.executable}\n{body}", encoding="utf-8")
    program.chmod(0o755)


@pytest.fixture
def small_board(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a board file whose Verilog is quick to write; the PATH has no Vivado."""
    text = (project / "shears.v").read_text(encoding="utf-8")
    monkeypatch.setattr(vivado, "emit_verilog", lambda config: text)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return Path(shutil.copy(ROOT / "boards" / "pynq-z2.toml", tmp_path / "mine.toml"))


def test_build_with_vivado(
    small_board: Path,
    ports: dict[str, tuple[str, int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It runs the script, shows what it took, and has nothing to do a second time."""
    (tmp_path / "handoff.hwh").write_text(HANDOFF, encoding="utf-8")
    scenario = tmp_path / "scenario.tcl"
    scenario.write_text(Scenario(ports).tcl(tmp_path / "handoff.hwh"), encoding="utf-8")
    stand_in = ["tclsh", str(STAND_IN), str(scenario), str(tmp_path / "record")]
    fake_vivado(
        tmp_path / "bin",
        "import subprocess, sys\n"
        "assert sys.argv[1:4] == ['-mode', 'batch', '-notrace'], sys.argv\n"
        "script = sys.argv[sys.argv.index('-source') + 1]\n"
        "rest = sys.argv[sys.argv.index('-tclargs') + 1:]\n"
        f"sys.exit(subprocess.call([*{stand_in!r}, script, *rest]))\n",
    )
    out, report = tmp_path / "out", tmp_path / "report.json"
    words = ["build", "--board", str(small_board), "--out", str(out), "--json", str(report)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "38,000" in printed and "150 MHz with 0.123 ns to spare" in printed
    data = json.loads(report.read_text(encoding="utf-8"))
    assert data["bit"] == str(out / "shears.bit") and data["used"]["dsp"] == 176
    assert main(words) == 0
    assert "nothing has changed since it was built" in capsys.readouterr().out
    assert '"launch_runs", "impl_1", "-to_step", "write_bitstream", "-jobs", "2"' in (
        tmp_path / "record"
    ).read_text(encoding="utf-8")


def test_build_tells_what_vivado_said(
    small_board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "ERROR: shears: timing is not met: worst setup slack -0.2 ns"
    fake_vivado(tmp_path / "bin", f"import sys\nprint({said!r})\nprint('bye')\nsys.exit(1)\n")
    assert main(["build", "--board", str(small_board), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "ToolError: vivado ended with 1" in error and "worst setup slack -0.2 ns" in error
    assert "vivado.log" in error


def test_build_ends_in_time(
    small_board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also what Vivado has started."""
    body = "import subprocess, time\nsubprocess.Popen(['sleep', '60'])\ntime.sleep(60)\n"
    fake_vivado(tmp_path / "bin", body)
    words = ["build", "--board", str(small_board), "--out", str(tmp_path / "out")]
    assert main([*words, "--timeout", "0.01"]) == 1
    assert "took more than 0.6 s and was stopped" in capsys.readouterr().err


def test_build_without_vivado(
    small_board: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It stops after writing and says what to run, and where."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    out = tmp_path / "out"
    assert main(["build", "--board", str(small_board), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "there is no vivado on the PATH" in printed and "2020.1 to 2024.2" in printed
    assert " ".join(vivado.vivado_command(2)) in printed
    assert {path.name for path in out.iterdir()} == {
        *vivado.SCRIPTS,
        "settings.tcl",
        "constraints.xdc",
        "shears.v",
    }
    with pytest.raises(ToolError, match="there is no vivado on the PATH; source its settings64"):
        vivado.run_vivado(out)
