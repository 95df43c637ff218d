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


@dataclass(frozen=True)
class Budget:
    """Resources of the device: counts of DSP slices, 36 Kbit block RAMs, LUTs, flip-flops."""

    dsp: int
    bram36: int
    lut: int
    ff: int


@dataclass(frozen=True)
class Board:
    """A board: its device, clock, memory, register address and default configuration."""

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
        return _board(path.stem, data)
    except KeyError as error:
        raise BoardError(f"{path} has no entry {error}; compare it with pynq-z2.toml") from error
    except (ValueError, TypeError) as error:
        raise BoardError(f"{path}: {error}") from error


def _board(key: str, data: dict[str, Any]) -> Board:
    return Board(
        key=key,
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
    )
