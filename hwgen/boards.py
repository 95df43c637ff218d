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


#: Ways to a bitstream; a board's file has a table of its flow's name.
FLOWS = ("open", "vivado")

#: Apertures of a Zynq-7000's general purpose port GP0 are in this range (UG585, table 4-1).
_GP0 = range(0x4000_0000, 0x8000_0000)
_PAGE_BYTES = 4096


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
class Soc:
    """What `shears build` needs of a board of flow ``open``: a design with memory and serial line.

    Attributes
    ----------
    constraints
        Pins of the design, as LPF text.
    baud
        Bits a second of the serial line.
    program
        Commands that load a bitstream, any of them; ``{bit}`` stands for its path.
    """

    constraints: str
    baud: int
    program: tuple[str, ...]


@dataclass(frozen=True)
class VivadoFlow:
    """How Vivado builds for a Zynq-7000 board.

    Attributes
    ----------
    reference_hz
        FCLK_CLK0, from which a clock wizard makes the accelerator's clock.
    interrupt_controller_address
        Where the AXI interrupt controller is, through which pynq takes interrupts.
    ps7
        Parameters of the processing system (``PCW_...``): its crystal, DDR and pins.
    """

    reference_hz: int
    interrupt_controller_address: int
    ps7: dict[str, str]


@dataclass(frozen=True)
class Board:
    """A board: its device, clock, memory, register address and default configuration.

    `oscillator_hz` is 0 where the clock comes from a processor. `open_flow` is None unless the
    board's flow is ``open``; `vivado` unless it is ``vivado``, and `soc` unless it is ``open``, and
    the file has that table, which only building needs.
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
    vivado: VivadoFlow | None = None
    soc: Soc | None = None


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
    if data["flow"] not in FLOWS:
        raise ValueError(f"flow must be one of {sorted(FLOWS)}, not {data['flow']!r}")
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
        vivado=_vivado_flow(path, data) if data["flow"] == "vivado" and "vivado" in data else None,
        soc=_soc(path, data["soc"]) if data["flow"] == "open" and "soc" in data else None,
    )


def _open_flow(path: Path, data: dict[str, Any]) -> OpenFlow:
    return OpenFlow(
        device=data["device"],
        package=data["package"],
        speed=data["speed"],
        constraints=_beside(path, "open", data),
    )


def _soc(path: Path, data: dict[str, Any]) -> Soc:
    return Soc(
        constraints=_beside(path, "soc", data),
        baud=data["baud"],
        program=tuple(data["program"]),
    )


def _beside(path: Path, table: str, data: dict[str, Any]) -> str:
    """Return the text of a table's file of constraints."""
    pins = path.with_name(data["constraints"])
    if not pins.is_file():
        raise ValueError(f"{table}.constraints must be a file beside {path}, not {pins.name!r}")
    return pins.read_text(encoding="utf-8")


def _vivado_flow(path: Path, data: dict[str, Any]) -> VivadoFlow:
    table = data["vivado"]
    flow = VivadoFlow(
        reference_hz=table["reference_hz"],
        interrupt_controller_address=data["address"]["interrupt_controller"],
        ps7=_ps7(path, table),
    )
    for name in ("registers", "interrupt_controller"):
        address = data["address"][name]
        if address not in _GP0 or address % _PAGE_BYTES:
            raise ValueError(
                f"address.{name} must be a multiple of {_PAGE_BYTES:#x} in GP0's "
                f"{_GP0.start:#x} to {_GP0.stop - 1:#x}, not {address:#x}"
            )
    if data["memory"]["ddr_bytes"].bit_count() != 1:
        raise ValueError(
            "memory.ddr_bytes must be a power of two, as an address range of the block design "
            f"is, not {data['memory']['ddr_bytes']}"
        )
    return flow


def _ps7(path: Path, table: dict[str, Any]) -> dict[str, str]:
    """Return the parameters of a board's own table, over those of the board that it is like."""
    parameters: dict[str, str] = {}
    if like := table.get("ps7_like"):
        base = path.with_name(f"{like}.toml")
        if not base.is_file():
            raise ValueError(f"vivado.ps7_like must name a board beside {path}, not {like!r}")
        parameters |= _ps7(base, tomllib.loads(base.read_text(encoding="utf-8"))["vivado"])
    parameters |= table.get("ps7", {})
    for name, value in parameters.items():
        if not name.startswith("PCW_") or not isinstance(value, str):
            raise ValueError(f'vivado.ps7 must have lines PCW_... = "text", not {name} = {value!r}')
    if not parameters:
        raise ValueError("vivado must have a table ps7, or ps7_like = the name of a board")
    return parameters
