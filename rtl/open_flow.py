# SPDX-License-Identifier: Apache-2.0
"""The hardware room: a bitstream for an ECP5 board without a vendor's tool, from Verilog to `.bit`.

`build` makes the design of `rtl.soc` (accelerator, block memory, serial link, PLL), has Yosys,
nextpnr and ecppack work on it, and writes the bitstream only if it fits and meets its clock. What
was built from the same inputs is not built again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.files import replacing, write_json
from hwgen.arch.link import LinkConfig
from rtl.place import Design, Placement, Target, place_design
from rtl.soc import BOARD_NAME, LEDS, emit_ecp5_board
from rtl.tools import Progress, ToolError

OUTPUT = "shears.bit"
REPORT = "report.json"
VERILOG = "shears.v"
CONSTRAINTS = "shears.lpf"

_ROUTER = "router1"
_PORTS = ("clock", "serial_in", "serial_out", "hold_high", *(f"led[{i}]" for i in range(LEDS)))


@dataclass(frozen=True)
class BuiltBoard:
    """A bitstream, and what is known of it.

    Attributes
    ----------
    bit
        Its path.
    placement
        Clocks, paths, use of the device, size, SHA-256 and times.
    percent
        Of the budget, by kind.
    """

    bit: Path
    placement: Placement
    percent: dict[str, float]


def design_of(config: AcceleratorConfig, link: LinkConfig, oscillator_hz: int) -> Design:
    """Return the whole design of a board.

    Raises
    ------
    ValueError
        When the PLL can't make the link's clock of the oscillator's.
    """
    verilog = emit_ecp5_board(config, link, oscillator_hz)
    return Design(verilog, BOARD_NAME, "soc", f"{BOARD_NAME}.soc")


def constraints_of(text: str, oscillator_hz: int) -> str:
    """Return a board's pins with the oscillator's frequency, from which nextpnr derives the PLL's.

    Raises
    ------
    ValueError
        When a port of the design has no place, naming all that have none.
    """
    placed = set(re.findall(r'^\s*LOCATE\s+COMP\s+"([^"]+)"\s+SITE', text, re.MULTILINE))
    if missing := [name for name in _PORTS if name not in placed]:
        raise ValueError(
            f"the board's constraints must place {', '.join(_PORTS)}; {', '.join(missing)} "
            "have no LOCATE"
        )
    return f'{text}\nFREQUENCY PORT "clock" {oscillator_hz / 1e6:g} MHZ;\n'


def build(
    config: AcceleratorConfig,
    link: LinkConfig,
    target: Target,
    oscillator_hz: int,
    budget: Mapping[str, int],
    folder: Path | str,
    *,
    seed: int = 1,
    cache_dir: Path | str | None = None,
    progress: Progress | None = None,
    about: Mapping[str, Any] | None = None,
) -> BuiltBoard:
    """Build a board's bitstream into `folder`; some twenty minutes of one core.

    Writes ``shears.bit``, ``report.json`` (with `about` in front), the Verilog and the constraints,
    each whole or not at all; the bitstream last but for the report that has its SHA-256.

    Parameters
    ----------
    target
        The device, and the board's pins as LPF text.
    budget
        What the design may take at most: ``dsp``, ``bram36``, ``lut``, ``ff``.
    seed
        Of the placer.
    cache_dir
        Folder of finished runs; without one, nothing is kept.
    progress
        Called with the name of each step that begins.

    Raises
    ------
    ValueError
        When the PLL or the line can't have the clock, or a pin has no place.
    ToolError
        When a program is missing or fails, the design does not fit, or it does not meet the clock;
        the message has the numbers. Then nothing is written but Verilog and constraints.
    """
    folder = Path(folder)
    design = design_of(config, link, oscillator_hz)
    target = replace(target, constraints=constraints_of(target.constraints, oscillator_hz))
    for name, text in ((VERILOG, design.verilog), (CONSTRAINTS, target.constraints)):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    placement, bits = place_design(
        design, target, link.clock_hz, seed, cache_dir, progress, _ROUTER
    )
    percent = {kind: 100 * placement.used[kind] / limit for kind, limit in budget.items()}
    if over := [
        f"{placement.used[kind]:g} {kind} of {budget[kind]}"
        for kind, share in percent.items()
        if share > 100
    ]:
        raise ToolError(
            f"the design takes {', '.join(over)}; try a smaller accelerator or less memory in the "
            "board's file"
        )
    if placement.mhz < placement.target_mhz:
        path = min(placement.critical_paths, key=lambda p: -p.nanoseconds, default=None)
        slowest = f"; the slowest path is {' -> '.join(path.blocks)}" if path else ""
        raise ToolError(
            f"the design reaches {placement.mhz:.1f} MHz, less than the {placement.target_mhz:g} "
            f"of the board's file{slowest}; try another --seed, or a lower accelerator_hz"
        )
    bit = folder / OUTPUT
    with replacing(bit) as temporary:
        temporary.write_bytes(bits)
    write_json(
        folder / REPORT,
        {
            **(about or {}),
            "digest": f"{config.digest():016x}",
            "config": config.to_dict(),
            "link": vars(link),
            "oscillator_hz": oscillator_hz,
            "budget": dict(budget),
            "percent": {kind: round(share, 2) for kind, share in percent.items()},
            **placement.to_dict(),
        },
    )
    return BuiltBoard(bit, placement, percent)
