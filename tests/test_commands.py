# SPDX-License-Identifier: Apache-2.0
"""The tests room: every command that README, docs and notebooks tell people to type is executed.

A command in a shell block is run here as it stands, on a board file whose machine is small; or it
is in `ELSEWHERE`, with the test that runs it or the stand-in for what no test has (Vivado, a board,
hours). A command that is neither fails. Commands inside sentences must exist, options included.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwgen.boards
from hwgen import deploy
from hwgen.cli import main
from hwgen.cli.parser import make_parser
from rtl import vivado
from tests.support.simulators import SMALL_BOARD
from tests.support.vivado import small_verilog

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")))
SHELL = ("sh", "bash", "console", "shell", "shell-session", "zsh")
#: Languages of blocks: shell, what tests/test_readme.py runs, text, and what only a board runs.
LANGUAGES = {"sh", "python", "", "py"}

#: Commands that are not run here: the test that does, by the file's path and the test's name.
ELSEWHERE = {
    "make demo": "tests/test_commands.py::test_make_does_what_the_pages_say",
    "make test": "tests/test_commands.py::test_make_does_what_the_pages_say",
    "make setup": "tests/test_commands.py::test_make_does_what_the_pages_say",
    "shears demo": "tests/test_commands.py::test_the_demo_gets_its_options",
    "shears compress hwgen.models:demo_classifier --data frames": (
        "tests/hwgen/test_compress_command.py::test_the_command_in_the_readme"
    ),
    "shears compress net.py:model": (
        "tests/hwgen/test_compress_command.py::"
        "test_the_command_compresses_reports_and_hands_on_to_compile"
    ),
    "shears compile net.py:model --weights build/compress/compressed.pt": (
        "tests/hwgen/test_compress_command.py::"
        "test_the_command_compresses_reports_and_hands_on_to_compile"
    ),
    "shears emit net.py:model --backend hls4ml": (
        "tests/hwgen/test_backend_hls4ml.py::test_commands"
    ),
    "shears compare": "tests/hwgen/test_backend_hls4ml.py::test_commands",
    "shears resources": "tests/rtl/test_resources.py::test_the_verb_fails_beyond_the_limit",
    "shears place": "tests/rtl/test_place.py::test_the_verb_fails_below_its_clock",
    "shears explore": "tests/hwgen/test_explore.py::test_the_verb",
    "shears build --board ulx3s-85f": "tests/rtl/test_open_flow.py::test_the_verb",
    "openFPGALoader --board ulx3s": "tests/rtl/test_open_flow.py::test_the_verb",
    "shears compile net.py:model --calibration images.npz --board ulx3s-85f": (
        "tests/sim/test_serial_link.py::test_the_page"
    ),
    "shears selftest --board ulx3s-85f": "tests/sim/test_serial_link.py::test_the_page",
    "shears run build/my-network --port": "tests/sim/test_serial_link.py::test_the_page",
    "vivado -mode batch": "tests/host/test_overlay.py::test_the_pages_command_for_vivado_is_ours",
    "python -m host.selftest": "tests/host/test_overlay.py::test_the_page_about_the_board",
}

NETWORK = """
from torch import nn

model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
)
"""

#: What the two shells have, as this computer can: their environments, a copy over the wire.
BOARD_SHELL = """
set -euo pipefail
source() { case "$1" in .venv/bin/activate|/etc/profile.d/pynq_venv.sh) ;; *) exit 1;; esac; }
scp() { cp "$1" "$HOME/"; cd "$HOME"; }
pip() { "$PYTHON" -m pip "$@" --quiet --disable-pip-version-check --no-compile --target "$SITE"; }
"""


def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def _blocks(text: str) -> list[tuple[str, str]]:
    """Return the fenced blocks of a page: language, content."""
    return re.findall(r"^```([\w-]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _shell(text: str) -> list[str]:
    """Return the commands of a page's shell blocks, without prompts, comments and line breaks."""
    found = []
    for language, block in _blocks(text):
        if language in SHELL:
            lines = block.replace("\\\n", " ").splitlines()
            words = (shlex.split(line.removeprefix("$ "), comments=True) for line in lines)
            found += [" ".join(each) for each in words if each]
    return found


def _spans(text: str) -> list[str]:
    """Return the code inside sentences."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def _elsewhere(command: str) -> str | None:
    """Return the longest entry of `ELSEWHERE` that a command begins with."""
    found = [known for known in ELSEWHERE if f"{command} ".startswith(f"{known} ")]
    return max(found, key=len, default=None)


def _here(command: str) -> bool:
    return _elsewhere(command) is None


COMMANDS = {page: _shell(_text(page)) for page in PAGES}
NOTEBOOKS = {
    path.name: "".join(
        "".join(cell["source"]) + "\n"
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "markdown"
    )
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}


@pytest.fixture
def boards(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Have a pynq-z2 with a small machine, and no Vivado; work in an empty folder."""
    folder = tmp_path / "boards"
    folder.mkdir()
    text = (ROOT / "boards" / "pynq-z2.toml").read_text(encoding="utf-8")
    fields = "\n".join(f"{name} = {value}" for name, value in SMALL_BOARD.to_dict().items())
    file = folder / "pynq-z2.toml"
    file.write_text(f"{text.partition('[accelerator]')[0]}[accelerator]\n{fields}\n")
    rest = text.partition("[accelerator]")[2].partition("\n[")[2]
    if rest:
        file.write_text(f"{file.read_text()}\n[{rest}")
    monkeypatch.setattr(hwgen.boards, "_FOLDERS", (folder,))
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, *more, **how: name != "vivado" and which(name, *more, **how)
    )
    verilog = small_verilog(tmp_path_factory)
    monkeypatch.setattr(vivado, "emit_verilog", lambda config: verilog)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return folder


@pytest.fixture
def network(boards: Path, rng: np.random.Generator) -> None:
    """Put the files there that the pages speak of."""
    Path("net.py").write_text(NETWORK, encoding="utf-8")
    np.savez("images.npz", images=rng.normal(size=(8, 3, 8, 8)).astype(np.float32))


def test_every_block_is_of_a_known_language() -> None:
    """A language that nobody looks at would not be run."""
    assert set(SHELL) & LANGUAGES == {"sh"}
    for page in PAGES:
        assert {language for language, _ in _blocks(_text(page))} <= LANGUAGES, page


@pytest.mark.parametrize("page", [page for page in PAGES if COMMANDS[page]])
def test_every_command_of_shears_parses(page: str) -> None:
    """The CLI knows the verb and every option."""
    for command in COMMANDS[page]:
        words = shlex.split(command)
        if words[0] == "shears":
            assert make_parser().parse_args(words[1:]).name == words[1]


def test_elsewhere_is_of_today() -> None:
    """Each entry is of a command that a page has, and names a test that exists."""
    used = {_elsewhere(command) for commands in COMMANDS.values() for command in commands}
    assert set(ELSEWHERE) - used == set()
    for test in ELSEWHERE.values():
        path, _, name = test.partition("::")
        assert f"\ndef {name}(" in _text(path), test


def test_the_readmes_commands_run(network: None, capsys: pytest.CaptureFixture[str]) -> None:
    """In the README's order, as they stand, except those that are `ELSEWHERE`."""
    commands = [command for command in COMMANDS["README.md"] if _here(command)]
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, (command, capsys.readouterr())
    verbs = {command.split()[1] for command in commands}
    assert verbs >= {"compile", "run", "profile", "emit", "build", "package", "selftest", "boards"}
    assert "0 failed" in capsys.readouterr().out
    assert {path.name for path in Path("build/profile").iterdir()} == {
        "profile.json",
        "roofline.png",
        "trace.json",
    }


def test_the_commands_of_the_page_about_boards_run(network: None) -> None:
    """As they stand on docs/board.md, up to the board's own Python, which has no device here.

    The shell is the board's: `scp` copies into its home folder, `pip` installs beside it.
    """
    page = "docs/board.md"
    home, site = Path("home/xilinx").resolve(), Path("site").resolve()
    (home / "jupyter_notebooks").mkdir(parents=True)
    shell = []
    for command in COMMANDS[page]:
        if command.startswith("shears ") and _here(command):
            assert main(shlex.split(command)[1:]) == 0, command
        elif _here(command):
            shell.append(command.replace("/home/xilinx", str(home)))
    words = "source scp source tar cd sha256sum pip cp"
    assert [line.split()[0] for line in shell] == words.split()
    environment = {**os.environ, "HOME": str(home), "SITE": str(site), "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "-c", BOARD_SHELL + "\n".join(shell)],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (home / "jupyter_notebooks" / "shears-pynq-z2" / "INSTALL.md").is_file()
    assert (site / "host" / "selftest.py").is_file()
    install = (home / "shears-pynq-z2" / "INSTALL.md").read_text(encoding="utf-8")
    assert _shell(install) and set(_shell(install)) <= set(COMMANDS[page])
    assert deploy.NOT_BUILT.split("/")[1] in install


def test_the_other_pages_commands_run(network: None) -> None:
    """What the remaining pages have is run as well."""
    for page in PAGES:
        if page not in ("README.md", "docs/board.md"):
            for command in filter(_here, COMMANDS[page]):
                words = shlex.split(command)
                assert words[0] == "shears", f"nobody runs {command!r} of {page}"
                assert main(words[1:]) == 0, command


def test_the_demo_gets_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains for minutes: `run_demo` is tested where its parts are."""
    seen: list[tuple[Any, ...]] = []

    def run_demo(out: Path, seed: int, frames: int) -> dict[str, Any]:
        seen.append((out, seed, frames))
        return {}

    monkeypatch.setattr("sim.demo.run_demo", run_demo)
    (command,) = (line for line in COMMANDS["README.md"] if line.startswith("shears demo"))
    assert main(shlex.split(command)[1:]) == 0
    assert seen == [(Path("build/demo"), 0, 64)]


# make, and the benchmarks behind it.


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", _text("Makefile"), re.MULTILINE))


@pytest.fixture(scope="module")
def recipes() -> list[list[str]]:
    """Return the commands that make would run for every target, DATA given."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    targets = sorted(_targets() - {"help", "check-tools"})
    done = subprocess.run(
        ["make", "-n", "DATA=folder", "PYTHON=python3", *targets],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [line.split() for line in lines if ".venv/bin/" in line]


def _options_of(module: str) -> set[str]:
    """Return the options that a module's parser has, read from its source."""
    base = ROOT / module.replace(".", "/")
    path = base / "__main__.py" if base.is_dir() else base.with_suffix(".py")
    calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return {
        value.value
        for node in calls
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
        for value in node.args
        if isinstance(value, ast.Constant) and str(value.value).startswith("-")
    }


def test_make_does_what_the_pages_say(recipes: list[list[str]]) -> None:
    """Every recipe's command exists with its options; `make test` is what CI runs."""
    modules, verbs, scripts = set(), set(), []
    for words in recipes:
        at = next(i for i, word in enumerate(words) if word.startswith(".venv/bin/"))
        tool, rest = words[at].removeprefix(".venv/bin/"), words[at + 1 :]
        if tool == "shears":
            verbs.add(make_parser().parse_args(rest).name)
        elif tool == "python" and rest[0] == "-m" and rest[1].startswith("benchmarks."):
            modules.add(rest[1])
            assert {word for word in rest if word.startswith("--")} <= _options_of(rest[1])
        elif tool == "python" and rest[0].endswith(".py"):
            assert (ROOT / rest[0]).is_file()
            scripts.append(rest)
    assert verbs >= {"demo", "place", "resources"} and ["notebooks/execute.py"] in scripts
    assert modules >= {f"benchmarks.{name}" for name in ("accelerator", "backends", "compression")}
    assert ".venv/bin/shears demo --out build/demo" in map(" ".join, recipes)
    assert re.findall(r"^make (?:lint|test)\b", _text(".ci/run"), re.MULTILINE)
    assert "make test 2>&1" in _text(".ci/run")


# Commands inside sentences.


def _known_in_a_sentence(span: str) -> bool | None:
    """Tell whether a command exists; None for what is no command of ours."""
    words = [word for word in span.replace("'", "").split() if not re.match(r"^[A-Z_]+=", word)]
    if not words:
        return None
    if words[0] == "make":
        return set(words[1:]) <= _targets()
    if words[0] in ("shears", ".venv/bin/shears"):
        return len(words) == 1 or _known_verb(words[1:])
    tail = words[1:] if re.fullmatch(r"(\.venv/bin/)?python3?", words[0]) else []
    if tail[:2] == ["-m", "pytest"]:
        return all((ROOT / word).exists() for word in tail if word.startswith("tests"))
    if tail[:1] == ["-m"] and tail[1].partition(".")[0] in ("host", "benchmarks", "hwgen", "sim"):
        return {word for word in tail if word.startswith("--")} <= _options_of(tail[1])
    if words[0] in ("pip", ".venv/bin/pip") and (extra := re.search(r"shears\[([\w,]+)\]", span)):
        table = _text("pyproject.toml").partition("[project.optional-dependencies]")[2]
        extras = re.findall(r"^(\w+) = \[", table.partition("\n[")[0], re.MULTILINE)
        return set(extra[1].split(",")) <= set(extras)
    return None


def _verbs() -> dict[str, argparse.ArgumentParser]:
    return next(action.choices for action in make_parser()._actions if action.choices)  # type: ignore


def _known_verb(words: list[str]) -> bool:
    verb = _verbs().get(words[0])
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    return verb is not None and options <= set(verb._option_string_actions)


def _sentences() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        yield from ((page, span) for span in _spans(_text(page)))
    for name, text in NOTEBOOKS.items():
        assert not [language for language, _ in _blocks(text) if language in SHELL], name
        yield from ((name, span) for span in _spans(text))


def test_commands_inside_sentences_exist() -> None:
    """Verbs, options, targets, modules, paths and extras."""
    found = [(page, span, _known_in_a_sentence(span)) for page, span in _sentences()]
    assert [(page, span) for page, span, known in found if known is False] == []
    assert sum(known is True for *_, known in found) > 40


@pytest.mark.parametrize(
    "span",
    ["make nothing", "shears fly", "shears build --wings", "python -m host.selftest --wings"],
)
def test_a_command_that_does_not_exist_is_noticed(span: str) -> None:
    """The check above is one."""
    assert _known_in_a_sentence(span) is False
