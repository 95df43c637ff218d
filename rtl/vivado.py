# SPDX-License-Identifier: Apache-2.0
"""The hardware room: a folder from which Vivado builds the overlay of a Zynq-7000 board.

The folder holds the Verilog, the scripts of ``rtl/tcl`` as they are, a ``settings.tcl`` that has
everything they depend on, and constraints. Nothing else is needed to build: it may be copied to the
machine that has Vivado.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.files import replacing
from hwgen.arch.isa import ISA_VERSION
from hwgen.arch.package import (
    IP_LIBRARY,
    IP_NAME,
    IP_VENDOR,
    IP_VERSION,
    ip_parameters,
)
from hwgen.arch.registers import ADDRESS_SPACE_BYTES, REGISTERS, Access
from rtl.emit import TOP_NAME, emit_verilog
from rtl.tools import LAST_WORDS, Progress, ToolError

#: Oldest and newest Vivado whose commands and IP versions the scripts use. 2020.1 brought
#: `assign_bd_address -offset -range`; nothing newer than 2024.2 has been looked at.
VIVADO_VERSIONS = ("2020.1", "2024.2")

#: The block design's name; the Verilog's top has the shorter one.
DESIGN = "shears_overlay"
#: The overlay's files: ``shears.bit`` and ``shears.hwh``.
OUTPUT = "shears"
LOG = "vivado.log"
RESULT = "result.json"
SCRIPTS = ("build.tcl", "checks.tcl", "package_ip.tcl", "block_design.tcl")

_TEMPLATES = Path(__file__).parent / "tcl"
_SETTINGS = "settings.tcl"
_CONSTRAINTS = "constraints.xdc"

_ACCESS = {
    Access.READ: "read-only",
    Access.READ_WRITE: "read-write",
    Access.WRITE_PULSE: "write-only",
    Access.WRITE_CLEAR: "read-write",
}

_XDC = """\
# Nothing of the design reaches a pin: DDR and MIO belong to the processing system, whose IP brings
# their places. All clocks derive from FCLK_CLK0, which that IP constrains, through the clock
# wizard, whose IP constrains its output; there is one clock domain, and so no false path.
set_property BITSTREAM.GENERAL.COMPRESS TRUE [current_design]
"""


@dataclass(frozen=True)
class Target:
    """The board, as far as Vivado needs to know it.

    Attributes
    ----------
    board
        Its name, for messages.
    part
        Vivado's name of the device.
    clock_hz, reference_hz
        The accelerator's clock, and FCLK_CLK0, from which a clock wizard makes it.
    registers_address, interrupt_controller_address
        In the range of GP0, multiples of 4096.
    ddr_bytes
        Size of the DDR, from address 0; a power of two.
    budget
        What a design may take at most: ``dsp``, ``bram36``, ``lut``, ``ff``.
    ps7
        Parameters of the processing system.
    """

    board: str
    part: str
    clock_hz: int
    reference_hz: int
    registers_address: int
    interrupt_controller_address: int
    ddr_bytes: int
    budget: Mapping[str, int]
    ps7: Mapping[str, str]


@dataclass(frozen=True)
class Overlay:
    """What Vivado built.

    Attributes
    ----------
    bit, hwh
        The bitstream and its description, which pynq wants side by side.
    vivado
        Version that built it.
    clock_hz
        Clock it was timed at.
    setup_slack_ns, hold_slack_ns
        Worst slacks after routing; not negative.
    used
        Resources after routing, the processing system's buses included, as the report counts.
    """

    bit: Path
    hwh: Path
    vivado: str
    clock_hz: int
    setup_slack_ns: float
    hold_slack_ns: float
    used: dict[str, float]


def tcl_word(value: Any) -> str:
    """Write a value as one word of Tcl; a list or a mapping becomes a Tcl list."""
    if isinstance(value, Mapping):
        value = [item for pair in value.items() for item in pair]
    if isinstance(value, (list, tuple)):
        return "{" + " ".join(map(tcl_word, value)) + "}"
    text = str(value)
    if re.fullmatch(r"[\w.:/+-]+", text):
        return text
    if not re.search(r"[{}\\\n]", text):
        return "{" + text + "}"
    return re.sub(r"([^\w.:/+-])", r"\\\1", text).replace("\\\n", "\\n")


def write_project(
    config: AcceleratorConfig, target: Target, folder: Path | str, *, any_version: bool = False
) -> Path:
    """Write the folder, each file whole or not at all; return the path of ``build.tcl``.

    `any_version` lets the script go on with a Vivado outside of `VIVADO_VERSIONS`.
    """
    folder = Path(folder)
    texts = {
        f"{TOP_NAME}.v": emit_verilog(config),
        _CONSTRAINTS: _XDC,
        **{name: (_TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS},
    }
    settings = _settings(config, target, any_version)
    digest = _digest([settings, *texts.values()])
    texts[_SETTINGS] = settings + f"set inputs_digest {digest}\n"
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder / "build.tcl"


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _settings(config: AcceleratorConfig, target: Target, any_version: bool) -> str:
    """Return the variables that the scripts read, without the digest of all inputs."""
    values = {
        "board": target.board,
        "part": target.part,
        "design": DESIGN,
        "output": OUTPUT,
        "top": TOP_NAME,
        "verilog": f"{TOP_NAME}.v",
        "vivado_versions": VIVADO_VERSIONS,
        "any_version": int(any_version),
        "clock_hz": target.clock_hz,
        "reference_hz": target.reference_hz,
        "registers_address": f"0x{target.registers_address:08X}",
        "registers_bytes": ADDRESS_SPACE_BYTES,
        "interrupt_controller_address": f"0x{target.interrupt_controller_address:08X}",
        "ddr_bytes": target.ddr_bytes,
        "budget": dict(target.budget),
        "ip_vendor": IP_VENDOR,
        "ip_library": IP_LIBRARY,
        "ip_name": IP_NAME,
        "ip_version": IP_VERSION,
        "ip_description": "Int8 convolutional networks as lists of taps; instruction set "
        f"{ISA_VERSION}, configuration {config.digest():016x}",
    }
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        f"# What the scripts beside this file depend on, by shears build --board {target.board}.",
        *(f"set {name} {tcl_word(value)}" for name, value in values.items()),
        _table("ip_parameters", ip_parameters(config).items()),
        _table("ps7_parameters", target.ps7.items()),
        "# name, offset, access, text, fields of name, lowest bit, bits, text",
        _table("registers", [[row] for row in _register_rows()]),
    ]
    return "\n".join(lines) + "\n"


def _table(name: str, rows: Iterable[Iterable[Any]]) -> str:
    body = "".join(f"    {' '.join(map(tcl_word, row))}\n" for row in rows)
    return f"set {name} {{\n{body}}}"


def _register_rows() -> list[list[Any]]:
    rows: list[list[Any]] = []
    for register in REGISTERS:
        fields = [[f.name, low, f.bits, f.doc] for f, low in register.layout.placed()]
        access = _ACCESS[register.access]
        rows.append([register.name, f"0x{register.offset:X}", access, register.doc, fields])
    return rows


def find_vivado() -> Path | None:
    """Return the Vivado on the PATH, or None."""
    found = shutil.which("vivado")
    return Path(found) if found else None


def vivado_command(jobs: int = 2) -> list[str]:
    """Return the words that build the project when they are run in its folder."""
    quiet = ["-mode", "batch", "-notrace", "-log", LOG, "-nojournal"]
    return ["vivado", *quiet, "-source", "build.tcl", "-tclargs", str(jobs)]


def built_overlay(folder: Path | str) -> Overlay | None:
    """Return what a former run built in `folder`, if it came from the inputs that are there now."""
    folder = Path(folder)
    bit, hwh = folder / f"{OUTPUT}.bit", folder / f"{OUTPUT}.hwh"
    result, settings = folder / RESULT, folder / _SETTINGS
    if not all(path.is_file() for path in (bit, hwh, result, settings)):
        return None
    data = json.loads(result.read_text(encoding="utf-8"))
    wanted = re.search(r"^set inputs_digest (\w+)$", settings.read_text(encoding="utf-8"), re.M)
    if wanted is None or data["inputs"] != wanted.group(1):
        return None
    return Overlay(
        bit=bit,
        hwh=hwh,
        vivado=data["vivado"],
        clock_hz=data["clock_hz"],
        setup_slack_ns=data["setup_slack_ns"],
        hold_slack_ns=data["hold_slack_ns"],
        used=data["used"],
    )


def run_vivado(
    folder: Path | str,
    *,
    jobs: int = 2,
    timeout_s: float = 4 * 3600,
    progress: Progress | None = None,
) -> Overlay:
    """Build the project in `folder` with the Vivado on the PATH; half an hour to some hours.

    Parameters
    ----------
    jobs
        Processes that Vivado may start.
    timeout_s
        After so many seconds Vivado and all that it started are killed.
    progress
        Called with the name of each step that begins.

    Raises
    ------
    ToolError
        Without Vivado, when time is up, or when the build fails; the message has what the script
        found wrong, or Vivado's errors. The whole log is in ``vivado.log``.
    """
    folder = Path(folder)
    if find_vivado() is None:
        raise ToolError(
            f"there is no vivado on the PATH; source its settings64.sh, or copy {folder} to a "
            f"machine that has it and run there: {' '.join(vivado_command(jobs))}"
        )
    tail: deque[str] = deque(maxlen=LAST_WORDS)
    errors: list[str] = []

    def line(text: str) -> None:
        tail.append(text)
        if text.startswith("ERROR:"):
            errors.append(text)
        elif progress is not None and (step := re.match(r"shears: (.+)", text)):
            progress(step.group(1))

    status = _run(vivado_command(jobs), folder, timeout_s, line)
    if status is None:
        raise ToolError(
            f"vivado took more than {timeout_s:g} s and was stopped; see {folder / LOG}, or give "
            "it more with --timeout"
        )
    overlay = built_overlay(folder)
    if status or overlay is None:
        said = "".join(errors[-LAST_WORDS:] or tail)
        raise ToolError(f"vivado ended with {status} (log: {folder / LOG}):\n{said}")
    return overlay


def _run(
    command: list[str], folder: Path, timeout_s: float, line: Callable[[str], None]
) -> int | None:
    """Run a command in its own process group; return its status, or None when time was up."""
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        late = threading.Event()

        def stop() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(timeout_s, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for text in process.stdout:
                line(text)
            process.wait()
        except BaseException:  # Ctrl-C too: Vivado's children must not go on
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()
    return None if late.is_set() else process.returncode
