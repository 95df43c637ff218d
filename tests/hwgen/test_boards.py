# SPDX-License-Identifier: Apache-2.0
"""The tests room: boards as their files describe them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from hwgen.boards import FAMILIES, BoardError, board_names, load_board
from hwgen.cli import main
from rtl import resource_model, resources

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", board_names())
def test_every_board_loads(name: str) -> None:
    """Its family is one that can be counted, its budget has room, its flow has what it needs."""
    board = load_board(name)
    assert board.family in FAMILIES and board.family in resources.FAMILIES
    assert all(value > 0 for value in vars(board.budget).values())
    assert board.accelerator_hz > 0 and board.axi_data_bits == 64
    assert (board.open_flow is not None) == (board.flow == "open")
    assert (board.vivado is not None) == (board.flow == "vivado")


@pytest.mark.parametrize("name", board_names())
def test_every_default_fits(name: str) -> None:
    """As the model of resources predicts, with room for what the model and Vivado add."""
    board = load_board(name)
    used = vars(resource_model.predict_resources(board.config, board.family))
    percent = {kind: 100 * used[kind] / have for kind, have in vars(board.budget).items()}
    assert max(percent.values()) <= 85, percent


@pytest.mark.parametrize(
    ("name", "part", "ddr_mib", "crystal_mhz", "bus"),
    [
        ("pynq-z2", "xc7z020clg400-1", 512, 50, "16 Bit"),
        ("pynq-z1", "xc7z020clg400-1", 512, 50, "16 Bit"),
        ("arty-z7-20", "xc7z020clg400-1", 512, 50, "16 Bit"),
        ("zybo-z7-10", "xc7z010clg400-1", 1024, 33.333333, "32 Bit"),
    ],
)
def test_zynq_boards(name: str, part: str, ddr_mib: int, crystal_mhz: float, bus: str) -> None:
    """By the boards' reference manuals."""
    board = load_board(name)
    assert board.vivado is not None
    assert (board.part, board.ddr_bytes) == (part, ddr_mib << 20)
    ps7 = board.vivado.ps7
    assert float(ps7["PCW_CRYSTAL_PERIPHERAL_FREQMHZ"]) == crystal_mhz
    assert ps7["PCW_UIPARAM_DDR_BUS_WIDTH"] == bus


def test_ulx3s() -> None:
    """208 EBR are 104 of 36 Kbit; every pin of the wrapper has a place."""
    board = load_board("ulx3s-85f")
    assert (board.budget.dsp, board.budget.bram36, board.oscillator_hz) == (156, 104, 25_000_000)
    assert board.open_flow is not None
    placed = set(re.findall(r'LOCATE COMP "(\w+)"', board.open_flow.constraints))
    assert placed == {"pin_clock", "pin_reset", "pin_in", "pin_out"}
    assert board.soc is not None and board.soc.baud == 2_000_000
    assert all("{bit}" in command for command in board.soc.program)
    assert board.ddr_bytes == 192 << 10


def changed(folder: Path, old: str, new: str) -> Path:
    """Return a copy of the ULX3S' files with one text of the TOML changed."""
    for path in (ROOT / "boards").glob("ulx3s-85f*"):
        shutil.copy(path, folder)
    file = folder / "ulx3s-85f.toml"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('family = "ecp5"', 'family = "ice40"', r"family must be one of \['ecp5', 'xc7'\]"),
        ('"ulx3s-85f.lpf"', '"other.lpf"', "open.constraints must be a file beside .*'other.lpf'"),
        ("[open]", "[closed]", "has no entry 'open'; compare it with"),
        ("bram36 = 104", "ebr = 208", "ebr"),
        ('"ulx3s-85f-board.lpf"', '"none.lpf"', "soc.constraints must be a file beside"),
        ("baud", "bauds", "has no entry 'baud'"),
    ],
)
def test_faults_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    """With the file's name, what was found, and what is accepted."""
    with pytest.raises(BoardError, match=message):
        load_board(changed(tmp_path, old, new))


PYNQ_FAULTS = [
    ("registers = 0x43C0_0000", "registers = 0x8000_0000", "address.registers must be a multiple"),
    ("0x4180_0000", "0x4180_0010", "address.interrupt_controller must be .* not 0x41800010"),
    ("536_870_912", "536_870_000", "memory.ddr_bytes must be a power of two"),
    ('ps7_like = "pynq-z2"', 'ps7_like = "pynq-z9"', "must name a board beside .*'pynq-z9'"),
    ('ps7_like = "pynq-z2"', "", "must have a table ps7, or ps7_like"),
    ('ps7_like = "pynq-z2"', "ps7 = { PCW_X = 1 }", r"lines PCW_... = .*, not PCW_X = 1"),
    ('flow = "vivado"', 'flow = "ise"', r"flow must be one of \['open', 'vivado'\], not 'ise'"),
    ("reference_hz", "reference_khz", "has no entry 'reference_hz'"),
]


@pytest.mark.parametrize(("old", "new", "message"), PYNQ_FAULTS)
def test_faults_of_a_zynq_board(tmp_path: Path, old: str, new: str, message: str) -> None:
    """With the file's name, what was found, and what is accepted."""
    shutil.copy(ROOT / "boards" / "pynq-z2.toml", tmp_path)
    text = (ROOT / "boards" / "pynq-z1.toml").read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(BoardError, match=message):
        load_board(file)


def test_a_board_that_is_not_built_needs_no_table_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It can be compiled for; `shears build` says what is missing."""
    text = (ROOT / "boards" / "pynq-z1.toml").read_text(encoding="utf-8")
    file = tmp_path / "mine.toml"
    file.write_text(text[: text.index("[vivado]")], encoding="utf-8")
    assert load_board(file).vivado is None
    assert main(["build", "--board", str(file)]) == 1
    assert "mine.toml must have a table [vivado]" in capsys.readouterr().err


def test_own_parameters_go_over_those_of_a_board_that_is_like(tmp_path: Path) -> None:
    shutil.copy(ROOT / "boards" / "pynq-z2.toml", tmp_path)
    text = (ROOT / "boards" / "pynq-z1.toml").read_text(encoding="utf-8")
    file = tmp_path / "mine.toml"
    added = '\n[vivado.ps7]\nPCW_APU_PERIPHERAL_FREQMHZ = "600"\n'
    file.write_text(text + added, encoding="utf-8")
    mine, like = load_board(file).vivado, load_board("pynq-z2").vivado
    assert mine is not None and like is not None
    assert mine.ps7 == {**like.ps7, "PCW_APU_PERIPHERAL_FREQMHZ": "600"}


def test_unknown_board() -> None:
    """The known ones are named."""
    with pytest.raises(BoardError, match=r"board must be one of .*'pynq-z2', 'ulx3s-85f'"):
        load_board("icebreaker")
