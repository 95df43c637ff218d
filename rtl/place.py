# SPDX-License-Identifier: Apache-2.0
"""The hardware room: a design placed and routed on an ECP5, timing and bitstream included.

`place_design` gives Verilog to Yosys (`synth_ecp5`), nextpnr and ecppack: programs that anybody can
install, and whose timing is that of placed cells and routed wires.

`place_and_route` does so with the accelerator alone. Around it stands `wrapper`: its ports,
hundreds of bits, reach the die's edge through one pin each way, so that nothing is optimised away
for want of a reader or a writer, and with a register at each port, so that the wrapper is not what
limits the clock.

The bitstream is a real one, but the wrapper talks to nobody: `rtl.open_flow` takes a board's own
design in its place.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.files import replacing
from rtl.emit import TOP_NAME, emit_verilog
from rtl.resources import verilog_digest
from rtl.tools import ECPPACK, NEXTPNR_ECP5, YOSYS, Progress, ToolError, cached, synthesise

WRAPPER_NAME = "shears_pins"
_MACHINE = "machine"
_FOLD = 4

#: nextpnr's names of what a budget counts, and how much of it one is.
_KINDS = {
    "dsp": ("MULT18X18D", 1.0),
    "bram36": ("DP16KD", 0.5),
    "lut": ("TRELLIS_COMB", 1.0),
    "ff": ("TRELLIS_FF", 1.0),
}


@dataclass(frozen=True)
class Target:
    """The device as nextpnr's options name it, and the pins of `wrapper` (an LPF file's text)."""

    device: str
    package: str
    speed: int
    constraints: str


@dataclass(frozen=True)
class Hop:
    """A step of a path: the block and the cell it ends at, what it is, nanoseconds.

    `kind` is nextpnr's: clk-to-q, logic, routing or setup.
    """

    block: str
    cell: str
    kind: str
    nanoseconds: float


@dataclass(frozen=True)
class CriticalPath:
    """The slowest path between two registers of one clock (or to and from a pin)."""

    begin: str
    end: str
    hops: tuple[Hop, ...]

    @property
    def nanoseconds(self) -> float:
        """What the whole path takes."""
        return sum(hop.nanoseconds for hop in self.hops)

    @property
    def routing_nanoseconds(self) -> float:
        """What of it is wires."""
        return sum(hop.nanoseconds for hop in self.hops if hop.kind == "routing")

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks it goes through, in order, each once as long as it stays there."""
        names = [hop.block for hop in self.hops]
        return tuple(
            name for name, before in zip(names, ["", *names], strict=False) if name != before
        )


@dataclass(frozen=True)
class Placement:
    """A placed and routed configuration.

    Attributes
    ----------
    fmax_mhz
        What each clock could run at; the clock's name is its net's.
    critical_paths
        Of each clock, the slowest.
    used, available
        Of the device, by a budget's kinds (`lut` counts every logic place that is taken, carry
        chains and memory too) and by nextpnr's names.
    bitstream_bytes, bitstream_sha256
        Of the packed, compressed bitstream.
    """

    fmax_mhz: dict[str, float]
    target_mhz: float
    critical_paths: tuple[CriticalPath, ...]
    used: dict[str, float]
    available: dict[str, float]
    bitstream_bytes: int = 0
    bitstream_sha256: str = ""
    verilog_sha256: str = ""
    seed: int = 1
    seconds: dict[str, float] = field(default_factory=dict)
    versions: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()

    @property
    def mhz(self) -> float:
        """Return what the slowest clock could run at."""
        return min(self.fmax_mhz.values())

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold and `from_dict` reads."""
        data = asdict(self)
        for path, plain in zip(self.critical_paths, data["critical_paths"], strict=True):
            plain["blocks"] = list(path.blocks)
            plain["nanoseconds"] = round(path.nanoseconds, 3)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Placement:
        """Read what `to_dict` returned."""
        paths = tuple(
            CriticalPath(p["begin"], p["end"], tuple(Hop(**hop) for hop in p["hops"]))
            for p in data["critical_paths"]
        )
        lists = {name: tuple(data[name]) for name in ("versions", "commands")}
        return cls(**{**data, **lists, "critical_paths": paths})


@dataclass(frozen=True)
class Design:
    """What is placed.

    Attributes
    ----------
    verilog, top
        The whole text, and the name of its top module.
    machine
        Name of the cell in the top whose modules are the blocks that a path is told by.
    module
        Name of that cell's module; those below it are called ``module.block``.
    """

    verilog: str
    top: str
    machine: str
    module: str

    def block_paths(self) -> frozenset[str]:
        """Return the paths of all blocks."""
        return module_paths(self.verilog, self.module)


def place_and_route(
    config: AcceleratorConfig,
    target: Target,
    hertz: int,
    seed: int = 1,
    bitstream: Path | str | None = None,
    cache_dir: Path | str | None = None,
    progress: Progress | None = None,
) -> Placement:
    """Synthesise, place, route and pack a configuration's whole top for an ECP5.

    Takes minutes of one core. With `cache_dir`, the result is kept in a file named by the digest
    of Verilog, script, constraints, options and the programs' versions, and read from there the
    next time. `bitstream` is written whether or not `hertz` was met: look at `Placement.mhz`.

    Raises
    ------
    ToolError
        If a program is missing or fails, as nextpnr does where the design has no room.
    """
    verilog = emit_verilog(config)
    design = Design(
        verilog + wrapper(verilog),
        WRAPPER_NAME,
        f"{_MACHINE}.accelerator",
        f"{TOP_NAME}.accelerator",
    )
    placement, bits = place_design(design, target, hertz, seed, cache_dir, progress)
    if bitstream is not None:
        with replacing(bitstream) as temporary:
            temporary.write_bytes(bits)
    return replace(placement, verilog_sha256=verilog_digest(verilog))


def place_design(
    design: Design,
    target: Target,
    hertz: int,
    seed: int = 1,
    cache_dir: Path | str | None = None,
    progress: Progress | None = None,
    router: str = "router1",
) -> tuple[Placement, bytes]:
    """Synthesise, place, route and pack any design; return what came of it, and the bitstream.

    As `place_and_route`, which see for the cache. `router` is nextpnr's name of one. Raises
    ToolError, which names what there is too much of where the design has no room.
    """
    script = place_script(design.top)
    verilog = without_brackets(design.verilog)
    options = [
        *("--" + target.device, "--package", target.package, "--speed", str(target.speed)),
        *("--freq", f"{hertz / 1e6:g}", "--seed", str(seed), "--timing-allow-fail"),
        *("--json", "shears.json", "--lpf", "shears.lpf", "--textcfg", "shears.config"),
        *("--report", "report.json", "--router", router),
    ]
    pack = ["--compress", "shears.config", "shears.bit"]
    versions = tuple(tool.version() for tool in (YOSYS, NEXTPNR_ECP5, ECPPACK))
    parts = (*versions, script, " ".join(options + pack), target.constraints, verilog)

    def make() -> dict[str, Any]:
        seconds = {}
        with tempfile.TemporaryDirectory(prefix="shears-") as name:
            folder = Path(name)
            (folder / "shears.lpf").write_text(target.constraints, encoding="utf-8")
            steps: dict[str, Callable[[], Any]] = {
                "yosys": lambda: synthesise(verilog, script, folder, progress),
                "nextpnr": lambda: _nextpnr(options, folder, progress),
                "ecppack": lambda: ECPPACK.run(pack, folder),
            }
            for step, run in steps.items():
                start = time.monotonic()
                run()
                seconds[step] = round(time.monotonic() - start, 1)
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            bits = (folder / "shears.bit").read_bytes()
        fmax, paths, used, available = parse_report(report, design.block_paths(), design.machine)
        result = Placement(
            fmax_mhz=fmax,
            target_mhz=hertz / 1e6,
            critical_paths=paths,
            used=used,
            available=available,
            bitstream_bytes=len(bits),
            bitstream_sha256=hashlib.sha256(bits).hexdigest(),
            verilog_sha256=verilog_digest(design.verilog),
            seed=seed,
            seconds=seconds,
            versions=versions,
            commands=(
                next(line for line in script.splitlines() if line.startswith("synth_")),
                " ".join(["nextpnr-ecp5", *options]),
                " ".join(["ecppack", *pack]),
            ),
        )
        return {"placement": result.to_dict(), "bitstream": base64.b64encode(bits).decode()}

    made = cached(cache_dir, "place", parts, make)
    return Placement.from_dict(made["placement"]), base64.b64decode(made["bitstream"])


def without_brackets(verilog: str) -> str:
    """Write ``x<0>`` for names like ``x[0]``, which ABC9 takes for a bit of ``x`` where both exist.

    Amaranth gives them to the elements of an array; see YosysHQ/yosys issue 4349.
    """
    return re.sub(r"\\\S*\[\S*", lambda m: m.group().replace("[", "<").replace("]", ">"), verilog)


def _nextpnr(options: list[str], folder: Path, progress: Progress | None) -> None:
    """Run nextpnr; where the device is too small, say what there is too much of."""
    follow = _follow(progress)
    over: dict[str, str] = {}

    def line(text: str) -> None:
        if match := re.match(r"Info:\s+(\w+):\s*(\d+)/\s*(\d+)\s+\d+%", text):
            name, used, available = match.groups()
            if int(used) > int(available):
                over[name] = f"{used} {name} of {available}"
        if follow is not None:
            follow(text)

    try:
        NEXTPNR_ECP5.run(options, folder, line)
    except ToolError as error:
        if not over:
            raise
        raise ToolError(
            f"the design has no room: it needs {', '.join(over.values())}; try a smaller "
            "accelerator or less memory in the board's file"
        ) from error


def _follow(progress: Progress | None) -> Callable[[str], None] | None:
    """Return what makes short notes of nextpnr's many lines."""
    if progress is None:
        return None

    def line(text: str) -> None:
        if match := re.match(r"Info: +(Packing|Placing|Routing|Running|at iteration) ?(.*)", text):
            progress(" ".join(match.groups()).rstrip(". ")[:70])
        elif match := re.match(r"Info: +iter=(\d+) wires=\d+ overused=(\d+)", text):
            progress("routing, round {}: {} wires taken twice".format(*match.groups()))
        elif match := re.match(r"Info: +(\d+) \| .*\| +(\d+) +\d+ *\|? *(\d*)", text):
            progress(f"routing, {match.group(1)} steps")

    return line


def place_script(top: str = WRAPPER_NAME) -> str:
    """Return the Yosys script that makes `shears.json` of `shears.v`.

    Everything is flattened, as a user's own flow would, and no wire loses its name: what nextpnr
    calls its cells by is what tells the blocks of a path. `resources` must hide names before ABC9,
    which fails on them module by module; on the flat netlist it does not.
    """
    return f"read_verilog shears.v\nsynth_ecp5 -abc9 -top {top} -json shears.json\n"


def wrapper(verilog: str) -> str:
    """Return the Verilog of `shears_pins`: `verilog`'s top with all its ports behind four pins.

    `pin_in` feeds a shift register with a bit for each input; the outputs are registered and folded
    by XOR, four to one a cycle, into `pin_out`. `pin_reset` is registered twice.
    """
    text = re.search(rf"^module {TOP_NAME}\(.*?^endmodule", verilog, re.MULTILINE | re.DOTALL)
    assert text is not None
    ports = re.findall(r"^  (input|output) (?:\[(\d+):0\] )?(\w+);", text.group(), re.MULTILINE)
    widths = {name: int(high or 0) + 1 for _, high, name in ports}
    sides = {
        side: [name for each, _, name in ports if each == side and name not in ("aclk", "aresetn")]
        for side in ("input", "output")
    }
    inputs = sum(widths[name] for name in sides["input"])
    level = sum(widths[name] for name in sides["output"])
    lines = [
        f"module {WRAPPER_NAME}(input pin_clock, input pin_reset, input pin_in, output pin_out);",
        "  reg [1:0] reset = 2'b11;",
        f"  reg [{inputs - 1}:0] given;",
        f"  wire [{level - 1}:0] taken;",
        "  always @(posedge pin_clock) begin",
        "    reset <= {reset[0], pin_reset};",
        f"    given <= {{given[{inputs - 2}:0], pin_in}};",
        "  end",
    ]
    fold, name = ["fold_0 <= taken;"], "fold_0"
    lines.append(f"  reg [{level - 1}:0] fold_0;")
    while level > 1:
        below, size, level = name, level, -(-level // _FOLD)
        name = f"fold_{len(fold)}"
        lines.append(f"  reg [{level - 1}:0] {name};")
        terms = [f"^{below}[{min(size, _FOLD * i + _FOLD) - 1}:{_FOLD * i}]" for i in range(level)]
        fold.append(f"{name} <= {{{', '.join(reversed(terms))}}};")
    lines += ["  always @(posedge pin_clock) begin", *(f"    {text}" for text in fold), "  end"]
    lines.append(f"  assign pin_out = {name}[0];")
    wired = [".aclk(pin_clock)", ".aresetn(~reset[1])"]
    for side, vector in (("input", "given"), ("output", "taken")):
        low = 0
        for port in sides[side]:
            wired.append(f".{port}({vector}[{low + widths[port] - 1}:{low}])")
            low += widths[port]
    lines += [f"  {TOP_NAME} {_MACHINE} (", ",\n".join(f"    {p}" for p in wired), "  );"]
    return "\n".join([*lines, "endmodule", ""])


def module_paths(verilog: str, module: str = f"{TOP_NAME}.accelerator") -> frozenset[str]:
    """Return the paths of all modules below a module, as ``dispatch.fetch``."""
    names = re.findall(r"^module \\?(\S+?) ?\(", verilog, re.MULTILINE)
    top = f"{module}."
    return frozenset(re.sub(r"\$\d+$", "", n).removeprefix(top) for n in names if n.startswith(top))


def block_of(cell: str, paths: Iterable[str], machine: str = f"{_MACHINE}.accelerator") -> str:
    """Return the deepest module of `paths` that a flattened cell's name begins with.

    What belongs to the machine and to none of its modules is ``top``, all else ``pins``.
    """
    top = f"{machine}."
    if not cell.startswith(top):
        return "top" if cell.startswith(machine.partition(".")[0] + ".") else "pins"
    place = cell.removeprefix(top)
    found = [path for path in paths if re.match(re.escape(path) + r"\W", place)]
    return max(found, key=len, default="top")


def parse_report(
    report: Mapping[str, Any], paths: Iterable[str], machine: str = f"{_MACHINE}.accelerator"
) -> tuple[dict[str, float], tuple[CriticalPath, ...], dict[str, float], dict[str, float]]:
    """Return what nextpnr's ``--report`` says: Fmax a clock, paths, used, available.

    Only paths from a clock to itself: those from and to the pins are the wrapper's.
    """
    fmax = {_clock(name): round(each["achieved"], 2) for name, each in report["fmax"].items()}
    known = frozenset(paths)
    critical = []
    for each in report["critical_paths"]:
        if each["from"] != each["to"]:
            continue
        hops = tuple(
            Hop(block_of(cell, known, machine), cell, h["type"], round(h["delay"], 3))
            for h in each["path"]
            for cell in [h["to"]["cell"]]
        )
        critical.append(CriticalPath(_clock(each["from"]), _clock(each["to"]), hops))
    found = report["utilization"]
    used, available = {}, {}
    for kind, (name, size) in _KINDS.items():
        used[kind] = size * found[name]["used"]
        available[kind] = size * found[name]["available"]
    for name, each in found.items():
        if each["used"]:
            used[name], available[name] = each["used"], each["available"]
    return fmax, tuple(critical), used, available


def _clock(name: str) -> str:
    """Return a clock's name without its edge and nextpnr's marks of a global net."""
    return re.sub(r"^(posedge|negedge) |\$glbnet\$|\$TRELLIS_IO_IN$", "", name)
