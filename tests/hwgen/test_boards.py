# SPDX-License-Identifier: Apache-2.0
"""The tests room: boards as their files describe them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from hwgen.boards import FAMILIES, BoardError, board_names, load_board
from rtl import resources

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", board_names())
def test_every_board_loads(name: str) -> None:
    """Its family is one that can be counted, its budget has room, its flow has what it needs."""
    board = load_board(name)
    assert board.family in FAMILIES and board.family in resources.FAMILIES
    assert all(value > 0 for value in vars(board.budget).values())
    assert board.accelerator_hz > 0 and board.axi_data_bits == 64
    assert (board.open_flow is not None) == (board.flow == "open")


def test_ulx3s() -> None:
    """208 EBR are 104 of 36 Kbit; every pin of the wrapper has a place."""
    board = load_board("ulx3s-85f")
    assert (board.budget.dsp, board.budget.bram36, board.oscillator_hz) == (156, 104, 25_000_000)
    assert board.open_flow is not None
    placed = set(re.findall(r'LOCATE COMP "(\w+)"', board.open_flow.constraints))
    assert placed == {"pin_clock", "pin_reset", "pin_in", "pin_out"}


def changed(folder: Path, old: str, new: str) -> Path:
    """Return a copy of the ULX3S' files with one text of the TOML changed."""
    for path in (ROOT / "boards").glob("ulx3s-85f.*"):
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
    ],
)
def test_faults_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    """With the file's name, what was found, and what is accepted."""
    with pytest.raises(BoardError, match=message):
        load_board(changed(tmp_path, old, new))


def test_unknown_board() -> None:
    """The known ones are named."""
    with pytest.raises(BoardError, match=r"board must be one of .*'pynq-z2', 'ulx3s-85f'"):
        load_board("icebreaker")
