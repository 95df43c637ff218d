# SPDX-License-Identifier: Apache-2.0
"""The hardware room: what a configuration takes of an FPGA, as Yosys maps it.

`estimate_resources` gives Yosys the Verilog that `shears emit` writes, whole, and has it run its
complete flow for the family (`synth_xilinx`, `synth_ecp5`), DSP and block RAM inference and ABC9
included. Each block is flattened
in itself and its border is kept (``keep_hierarchy``), so that every cell belongs to a block and the
sum over the blocks is the whole top; nothing is optimised across a border, which errs on the safe
side. There are no pads and no clock buffers: inside a Zynq the ports are wires to the processor.

These are estimates: Vivado packs two small LUTs in one (Yosys' count has every LUT by itself), and
routing has its own demands. Ports of clock and bus, and Vivado's interconnect, are not in them.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hwgen.arch.config import AcceleratorConfig
from rtl.emit import TOP_NAME, emit_verilog
from rtl.tools import YOSYS, ToolError, cached, synthesise

FAMILIES = ("xc7", "ecp5")

#: Yosys' warnings that stay, as regular expressions, each with its reason.
SYNTHESIS_WAIVERS = {
    r"keyword `bit' .*abc9_map\.v": "a name in Yosys' own library, not in the emitted file",
    "^The network is combinational": "ABC9 is given the logic between registers, without them",
    r"unmapped internal cell of type \$scopeinfo": "the name of a flattened module, not logic",
}

# What one cell takes: DSP slices, halves of a block RAM, LUTs, of these LUTs as memory, flip-flops,
# carry chains of four bits. A LUTRAM or shift register is so many LUTs of a SLICEM.
_CELLS: dict[str, dict[str, float]] = {
    "DSP48E1": {"dsp": 1},
    "RAMB36E1": {"bram36": 1},
    "RAMB18E1": {"bram36": 0.5},
    **{f"LUT{n}": {"lut": 1} for n in range(1, 7)},
    "INV": {"lut": 1},
    **{name: {"lut": 1, "lutram": 1} for name in ("SRL16E", "SRLC16E", "SRLC32E")},
    **{name: {"lut": 1, "lutram": 1} for name in ("RAM32X1S", "RAM64X1S")},
    **{name: {"lut": 2, "lutram": 2} for name in ("RAM32X1D", "RAM64X1D", "RAM128X1S")},
    **{name: {"lut": 4, "lutram": 4} for name in ("RAM32M", "RAM64M", "RAM128X1D", "RAM256X1S")},
    **{name: {"ff": 1} for name in ("FDRE", "FDSE", "FDCE", "FDPE")},
    **{f"{name}_1": {"ff": 1} for name in ("FDRE", "FDSE", "FDCE", "FDPE")},
    "CARRY4": {"carry": 1},
    **{name: {} for name in ("MUXF7", "MUXF8", "GND", "VCC", "$scopeinfo")},
    # ECP5: a block RAM has 18 Kbit; a carry cell is two LUT4, a 16 x 4 RAM is four and its two
    # write ports' places; the muxes join LUTs of a slice and take none.
    "MULT18X18D": {"dsp": 1},
    "DP16KD": {"bram36": 0.5},
    "LUT4": {"lut": 1},
    "CCU2C": {"lut": 2, "carry": 1},
    "TRELLIS_DPR16X4": {"lut": 6, "lutram": 6},
    "TRELLIS_FF": {"ff": 1},
    **{name: {} for name in ("PFUMX", "L6MUX21")},
}


class SynthesisError(ToolError):
    """Yosys gave a cell that has no known size."""


@dataclass(frozen=True)
class Usage:
    """Counts: multipliers, 36 Kbit block RAMs (18 Kbit are halves), LUTs of any use, and so on.

    `dsp` are DSP48E1 or MULT18X18D. `lutram` are those of the `lut` that hold memory or shift
    registers; `carry` are CARRY4 or CCU2C.
    """

    dsp: int = 0
    bram36: float = 0
    lut: int = 0
    lutram: int = 0
    ff: int = 0
    carry: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Usage)))


@dataclass(frozen=True)
class Resources(Usage):
    """The whole top's usage, that of each block, and how it was found.

    `logic_ns` is each block's slowest path between registers in the delays of cells alone (LUTs,
    carry chains, shift registers and block RAMs, as Yosys has them for the family; no wires, no
    set-up of the flip-flop behind): on an FPGA wires take about as much again. Empty for families
    that Yosys has no delays of.

    `warnings` are those of Yosys that `SYNTHESIS_WAIVERS` does not explain, `waived` the patterns
    of those that it does.
    """

    per_block: dict[str, Usage] = field(default_factory=dict)
    logic_ns: dict[str, float] = field(default_factory=dict)
    verilog_sha256: str = ""
    yosys: str = ""
    command: str = ""
    seconds: float = 0
    warnings: tuple[str, ...] = ()
    waived: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold and `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Resources:
        """Read what `to_dict` returned."""
        blocks = {name: Usage(**block) for name, block in data["per_block"].items()}
        lists = {name: tuple(data[name]) for name in ("warnings", "waived")}
        return cls(**{**data, **lists, "per_block": blocks})


def estimate_resources(
    config: AcceleratorConfig,
    family: str = "xc7",
    cache_dir: Path | str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Resources:
    """Synthesise a configuration's whole top with Yosys and count what it takes.

    A default configuration takes minutes of one core. With `cache_dir`, the result is kept in a
    file named by the digest of Verilog, script and Yosys' version, and read from there the next
    time. `progress` is called with the name of each pass that begins.

    Raises
    ------
    ValueError
        If `family` is none of `FAMILIES`.
    ToolError
        If there is no Yosys, if it fails, or (`SynthesisError`) if it gives a cell that we cannot
        count.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {FAMILIES}, not {family!r}")
    verilog = emit_verilog(config)
    script, version = synthesis_script(verilog, family), YOSYS.version()

    def make() -> dict[str, Any]:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="shears-") as folder:
            found = synthesise(verilog, script, Path(folder), progress)
            statistics = json.loads(Path(folder, "stat.json").read_text(encoding="utf-8"))
            timing = Path(folder, "timing.txt")
            delays = timing.read_text(encoding="utf-8") if timing.is_file() else ""
        blocks = parse_statistics(statistics)
        result = Resources(
            **asdict(sum(blocks.values(), Usage())),
            per_block=blocks,
            logic_ns=parse_timing(delays),
            verilog_sha256=verilog_digest(verilog),
            yosys=version,
            command="; ".join(line for line in script.splitlines() if "synth_" in line),
            seconds=round(time.monotonic() - start, 1),
            warnings=tuple(
                text for text in found if not any(re.search(p, text) for p in SYNTHESIS_WAIVERS)
            ),
            waived=tuple(p for p in SYNTHESIS_WAIVERS if any(re.search(p, text) for text in found)),
        )
        return result.to_dict()

    return Resources.from_dict(cached(cache_dir, "resources", (version, script, verilog), make))


def record(report: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a report with the totals that it replaces, as `previous`.

    These are those in `path`, if they were of another Verilog; else what was `previous` there.
    `previous` is None where there is no such file.
    """
    kinds = [f.name for f in fields(Usage)]
    previous = None
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before.get("verilog_sha256") == report["verilog_sha256"]:
            previous = before["previous"]
        else:
            totals = {kind: before[kind] for kind in kinds}
            previous = {"verilog_sha256": before.get("verilog_sha256", ""), **totals}
    return {**report, "previous": previous}


def complaints(
    recorded: Mapping[str, Any],
    digest: str,
    changelog: str,
    limit_percent: float = 85,
    growth_percent: float = 3,
) -> list[str]:
    """Return why a record of `record` does not stand for a Verilog text, or should not land.

    Parameters
    ----------
    digest
        `verilog_digest` of what is emitted today.
    changelog
        Its text; a line with the first 12 digits of `digest` and a reason allows growth.
    limit_percent
        Of the budget's DSP, BRAM36 and LUT.
    growth_percent
        Of any kind, over what was recorded before.
    """
    if recorded.get("verilog_sha256") != digest:
        before = recorded.get("verilog_sha256", "")[:12] or "unknown"
        today = f"today's is {digest[:12]}; run make resources (a quarter of an hour)"
        return [f"the record is of Verilog {before}, {today}"]
    found = [
        f"{recorded['percent'][kind]:.1f} % of {kind}, more than {limit_percent:g} %"
        for kind in ("dsp", "bram36", "lut")
        if recorded["percent"][kind] > limit_percent
    ]
    before = recorded["previous"] or {}
    short = digest[:12]
    explained = any(
        len(line.replace(short, "").strip(" -*`:.")) >= 10
        for line in changelog.splitlines()
        if short in line
    )
    for kind in ("dsp", "bram36", "lut", "ff"):
        was, now = before.get(kind, 0), recorded[kind]
        if was and now > was * (1 + growth_percent / 100) and not explained:
            found.append(
                f"{kind} grew from {was:g} to {now:g}, by {100 * (now / was - 1):.1f} %; more "
                f"than {growth_percent:g} % needs a line in CHANGELOG.md with {short} and a reason"
            )
    return found


def verilog_digest(verilog: str) -> str:
    """Return the SHA-256 of an emitted Verilog text, in hexadecimal."""
    return hashlib.sha256(verilog.encode()).hexdigest()


#: Cells with their delays in place of empty ones, and each module's slowest path.
_TIMING = {
    "xc7": "read_verilog -specify -lib +/xilinx/cells_sim.v\ntee -q -o timing.txt sta\n",
}


def parse_timing(text: str) -> dict[str, float]:
    """Return each block's slowest path in ns from what `sta` prints; none from nothing."""
    found: dict[str, float] = {}
    for module, picoseconds in re.findall(r"Latest arrival time in '\\?(\S+?)' is (\d+)", text):
        block = block_name(module) or "top"
        found[block] = max(found.get(block, 0.0), int(picoseconds) / 1000)
    return dict(sorted(found.items()))


def synthesis_script(verilog: str, family: str) -> str:
    """Return the Yosys script that synthesises `shears.v` and writes `stat.json`.

    The blocks are the modules right below the accelerator and right below its compute engine.
    Before ABC9, wires lose their names: it takes bit 0 of a wire `x` for a wire named ``x[0]``, of
    which Amaranth makes many, and ends with a failed assertion (YosysHQ/yosys issue 4349).
    """
    modules = re.findall(r"^module \\?(\S+?) ?\(", verilog, re.MULTILINE)
    kept = " ".join(name for name in modules if block_name(name) == _path(name))
    flow = {
        "xc7": f"synth_xilinx -family {family} -flatten -abc9 -noiopad -noclkbuf",
        "ecp5": "synth_ecp5 -abc9",
    }[family]
    synthesis = f"{flow} -top {TOP_NAME} -run"
    return (
        f"read_verilog shears.v\nhierarchy -check -top {TOP_NAME}\n"
        f"setattr -mod -set keep_hierarchy 1 {kept}\n"
        f"{synthesis} begin:map_luts\nrename -hide w:*\n{synthesis} map_luts:\n"
        "check -mapped\ntee -q -o stat.json stat -json\n" + _TIMING.get(family, "")
    )


def _path(module: str) -> str:
    """Return a module's path below the accelerator; Amaranth's numbers against clashes are cut."""
    return re.sub(r"\$\d+$", "", module).removeprefix(TOP_NAME).removeprefix(".accelerator")[1:]


def block_name(module: str) -> str:
    """Return the block that a module of the emitted Verilog counts for."""
    parts = _path(module).split(".")
    return ".".join(parts[: 2 if parts[0] == "compute" else 1])


def parse_statistics(statistics: Mapping[str, Any]) -> dict[str, Usage]:
    """Return the usage of each block from ``stat -json``; what is above the blocks is ``top``.

    Raises
    ------
    SynthesisError
        For a cell that is neither a module nor of known size.
    """
    modules = {name.lstrip("\\"): module for name, module in statistics["modules"].items()}
    blocks: dict[str, Usage] = {}
    for name, module in modules.items():
        usage = Usage()
        for cell, count in module["num_cells_by_type"].items():
            cell = cell.lstrip("\\")
            if cell in modules:
                continue
            if cell not in _CELLS:
                raise SynthesisError(f"{name} has {count} cells {cell!r}, whose size is not known")
            usage += Usage(**{kind: size * count for kind, size in _CELLS[cell].items()})
        block = block_name(name) or "top"
        blocks[block] = blocks.get(block, Usage()) + usage
    return dict(sorted(blocks.items()))
