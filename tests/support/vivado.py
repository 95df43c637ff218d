# SPDX-License-Identifier: Apache-2.0
"""Room tests: Vivado's scripts under tclsh with recording stand-ins, and the design they ask for.

`Scenario` is what a Vivado would find (version, slacks, resources), `run_scripts` runs a project's
``build.tcl`` in it, `Design` is what the recorded commands make, and `handoff` writes it as Vivado
writes a .hwh.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import pytest
from filelock import FileLock

from hwgen.arch.config import AcceleratorConfig
from hwgen.boards import Board
from rtl.emit import write_verilog
from rtl.vivado import DESIGN, OUTPUT, Target, tcl_word, write_project
from tests.support.simulators import SMALL_BOARD

STAND_IN = Path(__file__).with_name("vivado_stand_in.tcl")

#: Pins of the IPs that the design uses: inputs, outputs; interfaces that they serve, drive. From
#: the product guides: PG021 (ps7: UG585), PG247, PG099, PG065, PG164.
IPS: dict[str, tuple[str, str, str, str]] = {
    "processing_system7": (
        "M_AXI_GP0_ACLK S_AXI_HP0_ACLK IRQ_F2P",
        "FCLK_CLK0 FCLK_RESET0_N",
        "S_AXI_HP0",
        "M_AXI_GP0 DDR FIXED_IO",
    ),
    "smartconnect": ("aclk aresetn", "", "S00_AXI", "M00_AXI M01_AXI"),
    "axi_intc": ("s_axi_aclk s_axi_aresetn intr", "irq", "s_axi", ""),
    "clk_wiz": ("clk_in1 resetn", "clk_out1 locked", "", ""),
    "proc_sys_reset": (
        "slowest_sync_clk ext_reset_in dcm_locked",
        "interconnect_aresetn peripheral_aresetn",
        "",
        "",
    ),
    "xlconcat": ("In0", "dout", "", ""),
}
#: Cells of the design, for the stand-ins that look up pins before Python has seen a record.
CELLS = {
    "ps7": "processing_system7",
    "control_bus": "smartconnect",
    "memory_bus": "smartconnect",
    "axi_intc": "axi_intc",
    "clk_wiz": "clk_wiz",
    "system_reset": "proc_sys_reset",
    "xlconcat": "xlconcat",
}
CLOCKS, RESETS = ("aclk", "clk"), ("aresetn", "resetn")


def target_of(board: Board) -> Target:
    """Return what Vivado needs to know of a board, as `shears build` puts it together."""
    assert board.vivado is not None
    return Target(
        board=board.key,
        part=board.part,
        clock_hz=board.accelerator_hz,
        registers_address=board.register_address,
        ddr_bytes=board.ddr_bytes,
        budget=vars(board.budget),
        **vars(board.vivado),
    )


def small_verilog(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the Verilog of `SMALL_BOARD`, written once for all workers of a test run."""
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    path = folder / "small_board.v"
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            write_verilog(SMALL_BOARD, path)
    return path.read_text(encoding="utf-8")


def verilog_ports(text: str, top: str = "shears") -> dict[str, tuple[str, int]]:
    """Return the ports of a module of the emitted Verilog: name -> (direction, width)."""
    body = text[text.index(f"module {top}(") :]
    body = body[: body.index("endmodule")]
    found = re.findall(r"^  (input|output) (?:\[(\d+):0\] )?(\w+);", body, re.MULTILINE)
    return {name: (way, int(high or 0) + 1) for way, high, name in found}


def utilisation(lut: int, ff: int, bram36: float, dsp: int, part: str = "xc7z020") -> str:
    """Return the tables of a report_utilization, shortened, in the form of 2021.2 and later."""
    rows = {"Slice LUTs*": lut, "Slice Registers": ff, "Block RAM Tile": bram36, "DSPs": dsp}
    have = {"xc7z020": (53200, 106400, 140, 220), "xc7z010": (17600, 35200, 60, 80)}[part]
    lines = ["| Site Type | Used | Fixed | Prohibited | Available | Util% |"]
    for (name, used), available in zip(rows.items(), have, strict=True):
        share = 100 * used / available
        lines.append(f"| {name:22} | {used} | 0 | 0 | {available} | {share:.2f} |")
    return "\n".join(lines)


@dataclass
class Scenario:
    """What the stand-ins answer."""

    ports: dict[str, tuple[str, int]]
    version: str = "2022.1"
    setup_slack: str = "0.123"
    hold_slack: str = "0.031"
    made_hz: int = 150_000_000
    report: str = field(default_factory=lambda: utilisation(38_000, 39_000, 117.5, 176))
    progress: dict[str, str] = field(default_factory=dict)
    handoff: str = "<EDKSYSTEM/>"
    inferred: tuple[str, ...] = ("s_axi", "m_axi", "aclk", "aresetn")

    def tcl(self, handoff: Path) -> str:
        """Write it as the variables of vivado_stand_in.tcl."""
        pins, buses = [], []
        for cell, ip in CELLS.items():
            inputs, outputs, served, driven = IPS[ip]
            pins += [f"{cell}/{pin}" for pin in f"{inputs} {outputs}".split()]
            buses += [f"{cell}/{bus}" for bus in f"{served} {driven}".split()]
        pins += [f"accelerator/{name}" for name in self.ports if "_axi_" not in name]
        buses += [f"accelerator/{name}" for name in accelerator_buses(self.ports)]
        known = {
            "pin": pins,
            "interface_pin": buses,
            "interface_port": [],
            "inferred": self.inferred,
            "space": ["ps7/Data", "accelerator/m_axi"],
            "segment": [
                "accelerator/s_axi/reg0",
                "axi_intc/S_AXI/Reg",
                "ps7/S_AXI_HP0/HP0_DDR_LOWOCM",
            ],
            "run": ["synth_1", "impl_1"],
        }
        properties = {
            "clk_wiz/clk_out1,CONFIG.FREQ_HZ": self.made_hz,
            "paths,setup": "slowest" if self.setup_slack else "",
            "paths,hold": "quickest" if self.hold_slack else "",
            "slowest,SLACK": self.setup_slack,
            "quickest,SLACK": self.hold_slack,
        }
        for path in ("slowest", "quickest"):
            properties[f"{path},STARTPOINT_PIN"] = "a_reg/C"
            properties[f"{path},ENDPOINT_PIN"] = "b_reg/D"
        for run in ("synth_1", "impl_1"):
            properties[f"{run},PROGRESS"] = self.progress.get(run, "100%")
            properties[f"{run},STATUS"] = "ERROR" if run in self.progress else "Complete!"
        lines = [f"set version {tcl_word(self.version)}", f"set handoff {tcl_word(handoff)}"]
        lines += [f"set utilisation {tcl_word(self.report)}"]
        lines += [f"array set known {tcl_word(known)}"]
        lines += [f"array set properties {tcl_word(properties)}"]
        return "\n".join(lines) + "\n"


def accelerator_buses(ports: dict[str, tuple[str, int]]) -> list[str]:
    """Return the prefixes of the ports that form AXI buses."""
    return sorted({name[: name.index("_axi_") + 4] for name in ports if "_axi_" in name})


@dataclass
class Run:
    """One run of build.tcl: exit status, what was printed, and the commands as lists of words."""

    status: int
    output: str
    commands: list[list[str]]

    def of(self, name: str) -> list[list[str]]:
        """Return the arguments of each use of a command."""
        return [words[1:] for words in self.commands if words[0] == name]

    def properties(self) -> dict[tuple[str, str], str]:
        """Return what set_property set last: (object, property) -> value."""
        return {(words[2], words[0]): words[1] for words in self.of("set_property")}


def run_scripts(folder: Path, scenario: Scenario, work: Path) -> Run:
    """Run ``build.tcl`` of a project folder; `work` gets the stand-ins' files."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "handoff.hwh").write_text(scenario.handoff, encoding="utf-8")
    (work / "scenario.tcl").write_text(scenario.tcl(work / "handoff.hwh"), encoding="utf-8")
    record = work / "record.jsonl"
    result = subprocess.run(
        ["tclsh", STAND_IN, work / "scenario.tcl", record, folder / "build.tcl", "3"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    commands = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    return Run(result.returncode, result.stdout + result.stderr, commands)


def build_overlay(config: AcceleratorConfig, target: Target, folder: Path, work: Path) -> Path:
    """Build an overlay with the stand-ins, its .hwh made from the recorded design; its .bit."""
    write_project(config, target, folder)
    ports = verilog_ports((folder / "shears.v").read_text(encoding="utf-8"))
    scenario = Scenario(ports, made_hz=target.clock_hz)
    first = run_scripts(folder, scenario, work)
    assert first.status == 0, first.output
    scenario.handoff = handoff(Design(first, ports))
    second = run_scripts(folder, scenario, work)
    assert second.status == 0, second.output
    return folder / f"{OUTPUT}.bit"


@dataclass(frozen=True)
class Address:
    """An assigned range: who sees it, whose segment it is."""

    space: str
    segment: str
    offset: int
    range: int


class Design:
    """The block design that recorded commands made.

    Attributes
    ----------
    cells
        Cell -> VLNV.
    config
        Cell -> its CONFIG values.
    nets
        Driving pin -> the pins that it drives.
    buses
        Driving interface -> the interface that it drives.
    addresses
        What was assigned.
    parameters, registers
        Of the packaged IP: name -> value, and name -> (offset, size, access, text, fields).
    """

    def __init__(self, run: Run, ports: dict[str, tuple[str, int]]) -> None:
        self.ports = ports
        self.cells = {
            words[-1]: words[words.index("-vlnv") + 1] for words in run.of("create_bd_cell")
        }
        properties = run.properties()
        self.config: dict[str, dict[str, str]] = {cell: {} for cell in self.cells}
        for (thing, name), value in properties.items():
            if thing in self.cells and name.startswith("CONFIG."):
                self.config[thing][name[len("CONFIG.") :]] = value
        self.nets: dict[str, set[str]] = {}
        for pins in run.of("connect_bd_net"):
            drivers = [pin for pin in pins if self.direction(pin) == "O"]
            assert len(drivers) == 1, f"a net must have one driver: {pins}"
            self.nets.setdefault(drivers[0], set()).update(set(pins) - set(drivers))
        self.buses: dict[str, str] = {}
        for master, slave in run.of("connect_bd_intf_net"):
            assert master not in self.buses and slave not in self.buses.values()
            self.buses[master] = slave
        self.addresses = []
        for words in run.of("assign_bd_address"):
            options = dict(zip(words[:-2:2], words[1:-2:2], strict=True))
            space = options["-target_address_space"]
            numbers = (int(options[name], 16) for name in ("-offset", "-range"))
            self.addresses.append(Address(space, words[-2], *numbers))
        self.parameters = {
            name: properties[f"{core}/{name}", "value"]
            for name, core in run.of("ipx::add_user_parameter")
        }
        self.registers = {}
        fields = run.of("ipx::add_field")
        for name, block in run.of("ipx::add_register"):
            own = {
                part: tuple(
                    properties[f"{register}/{part}", key]
                    for key in ("bit_offset", "bit_width", "access", "description")
                )
                for part, register in fields
                if register == f"{block}/{name}"
            }
            keys = ("address_offset", "size", "access", "description")
            values = (properties[f"{block}/{name}", key] for key in keys)
            self.registers[name] = (*values, own)

    def pins(self, cell: str) -> dict[str, str]:
        """Return a cell's pins outside of buses: name -> "I" or "O"."""
        if cell == "accelerator":
            letters = {"input": "I", "output": "O"}
            return {n: letters[way] for n, (way, _) in self.ports.items() if "_axi_" not in n}
        inputs, outputs, _, _ = IPS[CELLS[cell]]
        return {**dict.fromkeys(inputs.split(), "I"), **dict.fromkeys(outputs.split(), "O")}

    def interfaces(self, cell: str) -> dict[str, str]:
        """Return a cell's AXI interfaces: name -> "MASTER" or "SLAVE"."""
        if cell == "accelerator":
            kinds = {"s_axi": "SLAVE", "m_axi": "MASTER"}
            return {name: kinds[name] for name in accelerator_buses(self.ports)}
        _, _, served, driven = IPS[CELLS[cell]]
        masters = [name for name in driven.split() if "AXI" in name]
        return {**dict.fromkeys(served.split(), "SLAVE"), **dict.fromkeys(masters, "MASTER")}

    def direction(self, pin: str) -> str:
        """Return "I" or "O" of ``cell/pin``."""
        cell, _, name = pin.partition("/")
        return self.pins(cell)[name]


def handoff(design: Design, registers_block: str = "reg0") -> str:
    """Return the design as a .hwh file, in the form that Vivado 2022.1 gives it."""
    root = ElementTree.Element("EDKSYSTEM", EDWVERSION="1.2", VIVADOVERSION="2022.1")
    add = ElementTree.SubElement
    system = {"ARCH": "zynq", "DEVICE": "7z020", "NAME": DESIGN, "PACKAGE": "clg400"}
    add(root, "SYSTEMINFO", system, SPEEDGRADE="-1")
    add(root, "EXTERNALPORTS")
    add(root, "EXTERNALINTERFACES")
    modules = add(root, "MODULES")
    driver_of = {pin: driver for driver, pins in design.nets.items() for pin in pins}
    for cell, vlnv in design.cells.items():
        _, _, kind, version = vlnv.split(":")
        module = add(
            modules,
            "MODULE",
            FULLNAME=f"/{cell}",
            HWVERSION=version,
            INSTANCE=cell,
            IPTYPE="PERIPHERAL",
            IS_ENABLE="1",
            MODCLASS="PERIPHERAL",
            MODTYPE=kind,
            VLNV=vlnv,
        )
        add(module, "DOCUMENTS")
        parameters = dict(design.config[cell])
        if cell == "accelerator":
            _register_block(module, design, registers_block)
            parameters |= design.parameters
        if cell == "ps7":
            parameters |= _clock_parameters(parameters)
        listed = add(module, "PARAMETERS")
        for name, value in sorted(parameters.items()):
            add(listed, "PARAMETER", NAME=name, VALUE=value)
        ports = add(module, "PORTS")
        for name, way in design.pins(cell).items():
            pin = f"{cell}/{name}"
            driver = pin if way == "O" else driver_of.get(pin)
            port = add(ports, "PORT", DIR=way, NAME=name, SIGIS=_kind_of(name))
            if driver is None or (way == "O" and driver not in design.nets):
                continue
            port.set("SIGNAME", driver.replace("/", "_"))
            others = design.nets[driver] if way == "O" else {driver}
            ends = add(port, "CONNECTIONS")
            for end in sorted(others):
                other, _, other_pin = end.partition("/")
                add(ends, "CONNECTION", INSTANCE=other, PORT=other_pin)
        _buses(module, ports, cell, design)
        _memory_map(module, cell, design)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _kind_of(pin: str) -> str:
    low = pin.lower()
    if any(word in low for word in RESETS) or low.endswith("reset0_n"):
        return "rst"
    return "clk" if any(word in low for word in CLOCKS) else "undef"


def _clock_parameters(parameters: dict[str, str]) -> dict[str, str]:
    """Return what Vivado adds to a PS7 that runs FCLK_CLK0 at 100 MHz from the IO PLL."""
    added = {"PCW_ACT_FPGA0_PERIPHERAL_FREQMHZ": parameters["PCW_FPGA0_PERIPHERAL_FREQMHZ"]}
    for i in range(4):
        added[f"PCW_FPGA_FCLK{i}_ENABLE"] = "1" if i == 0 else "0"
        added[f"PCW_FCLK{i}_PERIPHERAL_CLKSRC"] = "IO PLL"
        added[f"PCW_FCLK{i}_PERIPHERAL_DIVISOR0"] = "10" if i == 0 else "1"
        added[f"PCW_FCLK{i}_PERIPHERAL_DIVISOR1"] = "1"
    return added


def _register_block(module: ElementTree.Element, design: Design, name: str) -> None:
    add = ElementTree.SubElement
    blocks = add(module, "ADDRESSBLOCKS")
    block = add(
        blocks,
        "ADDRESSBLOCK",
        ACCESS="",
        INTERFACE="s_axi",
        NAME=name,
        RANGE="4096",
        USAGE="register",
    )
    registers = add(block, "REGISTERS")
    for register, (offset, size, access, text, fields) in design.registers.items():
        entry = add(registers, "REGISTER", NAME=register)
        facts = {
            "DESCRIPTION": text,
            "ADDRESS_OFFSET": offset,
            "SIZE": size,
            "ACCESS": access,
            "IS_ENABLED": "true",
        }
        for key, value in facts.items():
            add(entry, "PROPERTY", NAME=key, VALUE=value)
        listed = add(entry, "FIELDS")
        for part, (low, bits, part_access, part_text) in fields.items():
            one = add(listed, "FIELD", NAME=part)
            facts = {
                "DESCRIPTION": part_text,
                "ADDRESS_OFFSET": offset,
                "BIT_OFFSET": low,
                "BIT_WIDTH": bits,
                "ACCESS": part_access,
            }
            for key, value in facts.items():
                add(one, "PROPERTY", NAME=key, VALUE=value)


def _buses(
    module: ElementTree.Element, ports: ElementTree.Element, cell: str, design: Design
) -> None:
    """List the AXI interfaces, each with one signal of its own: the parsers need no more."""
    add = ElementTree.SubElement
    listed = add(module, "BUSINTERFACES")
    for name, kind in design.interfaces(cell).items():
        end = f"{cell}/{name}"
        master = end if kind == "MASTER" else None
        for driver, driven in design.buses.items():
            master = driver if driven == end else master
        bus = add(
            listed, "BUSINTERFACE", NAME=name, TYPE=kind, VLNV="xilinx.com:interface:aximm:1.0"
        )
        if master in design.buses:
            bus.set("BUSNAME", str(master).replace("/", "_"))
        signal = f"{name}_arvalid"
        way = "O" if kind == "MASTER" else "I"
        add(ports, "PORT", DIR=way, NAME=signal, SIGIS="undef")
        maps = add(bus, "PORTMAPS")
        add(maps, "PORTMAP", LOGICAL="ARVALID", PHYSICAL=signal)


def _memory_map(module: ElementTree.Element, cell: str, design: Design) -> None:
    add = ElementTree.SubElement
    masters = {"ps7/Data": "M_AXI_GP0", "accelerator/m_axi": "m_axi"}
    slaves = {"axi_intc/S_AXI/Reg": "s_axi"}
    own = [a for a in design.addresses if a.space.partition("/")[0] == cell]
    if not own:
        return
    ranges = add(module, "MEMORYMAP")
    for address in own:
        instance, interface, block = address.segment.split("/")
        add(
            ranges,
            "MEMRANGE",
            ADDRESSBLOCK=block,
            BASENAME="C_BASEADDR",
            BASEVALUE=f"0x{address.offset:08X}",
            HIGHNAME="C_HIGHADDR",
            HIGHVALUE=f"0x{address.offset + address.range - 1:08X}",
            INSTANCE=instance,
            IS_DATA="TRUE",
            IS_INSTRUCTION="TRUE",
            MASTERBUSINTERFACE=masters[address.space],
            MEMTYPE="MEMORY" if instance == "ps7" else "REGISTER",
            SLAVEBUSINTERFACE=slaves.get(address.segment, interface),
        )
