# SPDX-License-Identifier: Apache-2.0
"""The tests room: the files and names that README and docs mention are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pynq
import pytest

from hwgen.arch import isa

ROOT = Path(__file__).parents[1]
ROOMS = ("hwgen", "rtl", "host", "sim", "boards", "tests", "benchmarks", "notebooks", "docs")
#: Each gives files by their whole path, or, in prose, by the end of it.
GENERATED = ("isa.md", "registers.md")
PAGES = (
    "README.md",
    *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")) if p.name not in GENERATED),
)

_PATH = re.compile(r"([\w-]+(?:/[\w-]+)*\.(?:py|md|toml|tcl|cpp|json|xml))(?::([\w.]+))?")
_FOLDER = re.compile(rf"(?:{'|'.join(ROOMS)})(?:/\w+)*/?")
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?:\(.*\))?")
#: Files that are written or are a user's or a vendor's, and names of Python's, Vivado's and others.
WRITTEN = {"manifest.json", "trace.json", "report.json", "bundle.json", "INSTALL.md"}
WRITTEN |= {"settings.tcl", "design.tcl", "hwgen/_boards"}
FOREIGN = {"net.py", "FILE.py:NAME", "preset.xml", "CONFIG", "board_part", "UserWarning"}
ELSEWHERE = WRITTEN | FOREIGN


def _spans(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return sorted(set(re.findall(r"`([^`\n]+)`", prose)))


@cache
def _files() -> list[Path]:
    found = [path for room in ROOMS for path in (ROOT / room).rglob("*.*") if path.is_file()]
    return [p for p in (*found, *ROOT.glob("*.*")) if "__pycache__" not in p.parts]


@cache
def _words() -> frozenset[str]:
    """Every word in code and data; pages are no evidence."""
    kinds = {".py", ".toml", ".tcl", ".cpp", ".lpf"}
    texts = [p.read_text(encoding="utf-8") for p in _files() if p.suffix in kinds]
    return frozenset(re.findall(r"\w+", " ".join(texts)))


def _found(path: str) -> Path | None:
    """Return the one file whose path is this, or ends so."""
    if (ROOT / path).is_file():
        return ROOT / path
    ends = [file for file in _files() if file.as_posix().endswith(f"/{path}")]
    return ends[0] if ends else None


def _defined(file: Path, name: str) -> bool:
    """Tell whether a module defines a name, or a class in it an attribute."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for part in name.split("."):
        here = {}
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                here[node.name] = node.body
            elif isinstance(node, ast.Assign):
                here |= {t.id: [] for t in node.targets if isinstance(t, ast.Name)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                here[node.target.id] = []
        if part not in here:
            return False
        body = here[part]
    return True


def _in_pynq(names: list[str]) -> bool:
    """Tell whether the installed pynq has a name, without asking it for a device."""
    here: Any = pynq
    for name in names:
        # Properties of a metaclass (Device.active_device) must not run.
        if name in vars(type(here)):
            return True
        if not hasattr(here, name):
            return False
        here = getattr(here, name)
    return True


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_mentions_exists(page: str) -> None:
    """Files, names in files (`file.py:name`), folders, and every other word of code."""
    missing, looked_up = [], 0
    for span in _spans(page):
        if span in ELSEWHERE or span.startswith("build/"):
            continue
        if match := _PATH.fullmatch(span):
            file = _found(match[1])
            good = file is not None and (match[2] is None or _defined(file, match[2]))
        elif span.startswith("pynq."):
            good = _in_pynq(span.partition("(")[0].split(".")[1:])
        elif _FOLDER.fullmatch(span):
            good = (ROOT / span).is_dir()
        elif _NAME.fullmatch(span):
            good = set(span.partition("(")[0].split(".")) <= _words()
        else:
            continue
        looked_up += 1
        if not good:
            missing.append(span)
    assert not missing
    assert looked_up >= 5


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    bare = (re.sub(r"\]\([^)]*\)", "", each).lower() for each in headings)
    return {re.sub(r"[^\w\- ]", "", each).replace(" ", "-") for each in bare}


def test_links_into_pages_lead_to_headings() -> None:
    """What stands behind the # of a link is a heading there."""
    found, missing = 0, []
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for name, anchor in re.findall(r"\]\(([^)#:]*)#([\w-]+)\)", text):
            found += 1
            if anchor not in _anchors(page.parent / name if name else page):
                missing.append((page.name, name, anchor))
    assert not missing
    assert found >= 5


def test_the_check_notices() -> None:
    """What is not there is not found."""
    assert _found("hwgen/passes/tiles.py") is None
    tile = ROOT / "hwgen" / "passes" / "tile.py"
    assert _defined(tile, "_lower") and not _defined(tile, "_raise")
    assert _defined(ROOT / "hwgen" / "arch" / "isa.py", "Mode.MAXIMUM")
    assert "no_such_word_" + "anywhere" not in _words()


def test_a_fifth_mode_needs_a_wider_field() -> None:
    """As docs/adding-an-operation.md says."""
    assert len(isa.Mode) == 1 << isa.COMPUTE.by_name["mode"].bits == 4
