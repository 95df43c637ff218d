# SPDX-License-Identifier: Apache-2.0
"""The generator room: what a board offers, read from ``boards/<name>.toml``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwgen.arch.config import AcceleratorConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDERS = (Path(__file__).parent / "_boards", Path(__file__).parents[1] / "boards")


#: What a budget's kinds are in each family that the tools of `rtl` know.
FAMILIES = {
    "xc7": {"dsp": "DSP48E1", "bram36": "RAMB36E1", "lut": "LUT6", "ff": "flip-flop"},
    "ecp5": {"dsp": "MULT18X18D", "bram36": "two EBR", "lut": "LUT4", "ff": "flip-flop"},
}


@dataclass(frozen=True)
class Budget:
    """Resources of the device: multipliers, block RAMs of 36 Kbit, LUTs, flip-flops.

    `FAMILIES` says what each is in the board's family. `bram36` is one unit in all of them: a
    family whose block RAMs have 18 Kbit (ECP5's EBR) has half as many.
    """

    dsp: int
    bram36: int
    lut: int
    ff: int


@dataclass(frozen=True)
class OpenFlow:
    """How a board of flow ``open`` is placed: nextpnr's names of the device, pins as LPF text."""

    device: str
    package: str
    speed: int
    constraints: str


@dataclass(frozen=True)
class Board:
    """A board: its device, clock, memory, register address and default configuration.

    `oscillator_hz` is 0 where the clock comes from a processor. `open_flow` is None unless the
    board's flow is ``open``.
    """

    key: str
    name: str
    vendor: str
    part: str
    family: str
    flow: str
    accelerator_hz: int
    budget: Budget
    ddr_bytes: int
    axi_data_bits: int
    read_latency_cycles: int
    register_address: int
    config: AcceleratorConfig
    oscillator_hz: int = 0
    open_flow: OpenFlow | None = None


class BoardError(ValueError):
    """There is no such board, or its file lacks something; the message says which and what."""


def board_names() -> list[str]:
    """Names that `load_board` accepts, sorted."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.toml")})


def load_board(name: str | Path) -> Board:
    """Read a board by name (``pynq-z2``) or by the path of a TOML file.

    Raises
    ------
    BoardError
        For an unknown name, naming the known ones, or a file with a missing or unknown entry.
    """
    path = Path(name)
    if path.suffix != ".toml":
        found = [folder / f"{name}.toml" for folder in _FOLDERS]
        path = next((p for p in found if p.is_file()), path)
    if not path.is_file():
        raise BoardError(f"board must be one of {board_names()} or a .toml file, not {name!r}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        return _board(path, data)
    except KeyError as error:
        raise BoardError(f"{path} has no entry {error}; compare it with pynq-z2.toml") from error
    except (ValueError, TypeError) as error:
        raise BoardError(f"{path}: {error}") from error


def _board(path: Path, data: dict[str, Any]) -> Board:
    if data["family"] not in FAMILIES:
        raise ValueError(f"family must be one of {sorted(FAMILIES)}, not {data['family']!r}")
    return Board(
        key=path.stem,
        name=data["name"],
        vendor=data["vendor"],
        part=data["part"],
        family=data["family"],
        flow=data["flow"],
        accelerator_hz=data["clock"]["accelerator_hz"],
        budget=Budget(**data["budget"]),
        ddr_bytes=data["memory"]["ddr_bytes"],
        axi_data_bits=data["memory"]["axi_data_bits"],
        read_latency_cycles=data["memory"]["read_latency_cycles"],
        register_address=data["address"]["registers"],
        config=AcceleratorConfig.from_dict(data["accelerator"]),
        oscillator_hz=data["clock"].get("oscillator_hz", 0),
        open_flow=_open_flow(path, data["open"]) if data["flow"] == "open" else None,
    )


def _open_flow(path: Path, data: dict[str, Any]) -> OpenFlow:
    pins = path.with_name(data["constraints"])
    if not pins.is_file():
        raise ValueError(f"open.constraints must be a file beside {path}, not {pins.name!r}")
    return OpenFlow(
        device=data["device"],
        package=data["package"],
        speed=data["speed"],
        constraints=pins.read_text(encoding="utf-8"),
    )
