# SPDX-License-Identifier: Apache-2.0
"""The tests room: what README and docs tell people to type works as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from hwgen.cli import main
from hwgen.cli.parser import make_parser

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
GENERATED = ("docs/isa.md", "docs/registers.md")  # their Python is pseudo-code
#: tests/host/test_overlay.py runs it with an overlay to load, tests/sim/test_serial_link.py with a
#: simulated port.
ON_BOARD = ("docs/board.md", "docs/ulx3s.md")

NETWORK = """
from torch import nn

model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
)
"""


def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", _text(page), re.MULTILINE | re.DOTALL)


def _commands(page: str) -> list[list[str]]:
    """Arguments of each `shears` line in a page's shell blocks, comments left out."""
    lines = [line for block in _blocks(page, "sh") for line in block.splitlines()]
    split = (shlex.split(line, comments=True) for line in lines)
    return [words[1:] for words in split if words and words[0] == "shears"]


COMMANDS = [(page, command) for page in PAGES for command in _commands(page)]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page not in (*GENERATED, *ON_BOARD) and _blocks(page, "python")],
)
def test_snippets_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's snippets run one after the other, each with what those before it defined."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__snippet__"}
    for number, block in enumerate(_blocks(page, "python"), 1):
        exec(compile(block, f"{page} snippet {number}", "exec"), names)  # as the reader does


@pytest.mark.parametrize(
    ("page", "command"),
    COMMANDS,
    ids=[f"{page}: {' '.join(command)}" for page, command in COMMANDS],
)
def test_command_parses(page: str, command: list[str]) -> None:
    """The CLI knows the verb and every option."""
    assert make_parser().parse_args(command).name == command[0]


def test_every_verb_is_in_the_readme() -> None:
    """A verb that README does not name would not be found."""
    verbs = next(action.choices for action in make_parser()._actions if action.choices)
    assert set(verbs) == {command[0] for command in _commands("README.md")}


def test_commands_on_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """README's verbs that need no simulator run in README's order on a small network."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK, encoding="utf-8")
    np.savez("images.npz", images=rng.normal(size=(8, 3, 20, 20)).astype(np.float32))
    ran, quick = set(), {"compile", "estimate", "disassemble", "run", "package"}
    for command in _commands("README.md"):
        needs_simulator = _needs_simulator(command)
        if command[0] in quick and not needs_simulator:
            assert main(command) == 0, command
            ran.add(command[0])
    assert ran == quick


def _needs_simulator(command: list[str]) -> bool:
    return command[0] in ("profile", "selftest") or (
        command[0] == "run" and "interpreter" not in command
    )


@pytest.mark.slow
def test_commands_on_the_simulated_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """README's verbs that need the simulator run on the same network."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK, encoding="utf-8")
    np.savez("images.npz", images=rng.normal(size=(8, 3, 20, 20)).astype(np.float32))
    ran = [
        command[0]
        for command in _commands("README.md")
        if command[0] == "compile" or _needs_simulator(command)
        if main(command) == 0
    ]
    assert ran == ["compile", "run", "profile", "selftest"]
    written = sorted(path.name for path in Path("build/profile").iterdir())
    assert written == ["profile.json", "roofline.png", "trace.json"]


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page: str) -> None:
    """Links inside the repository name files that exist."""
    here = (ROOT / page).parent
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", _text(page))
    missing = [link for link in links if "://" not in link and not (here / link).exists()]
    assert not missing


def test_troubleshooting_names_every_error() -> None:
    """Each exception that a user can meet has its row; `internal` ones are caught or bases."""
    internal = {"Refusal", "PrecisionError", "DecodeError", "RunStopped"}
    found = set()
    for room in ("hwgen", "host", "rtl", "sim"):
        for path in (ROOT / room).rglob("*.py"):
            if "benches" not in path.parts:
                text = path.read_text(encoding="utf-8")
                found |= set(
                    re.findall(
                        r"^class ([A-Z]\w*)\((?:\w*Error|\w*Exception|RunStopped|"
                        r"WrongHardware)\)",
                        text,
                        re.MULTILINE,
                    )
                )
    assert len(found) > 20
    page = _text("docs/troubleshooting.md")
    assert not [name for name in sorted(found - internal) if f"`{name}`" not in page]
