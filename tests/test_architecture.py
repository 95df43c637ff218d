# SPDX-License-Identifier: Apache-2.0
"""Room tests: the arrows between the rooms, and what a board can run."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What runs on the board, whose image carries Python 3.10.
BOARD_FILES = sorted(
    path for room in ("hwgen/arch", "host") for path in (ROOT / room).rglob("*.py")
)
ROOMS = {"hwgen", "rtl", "host", "sim"}


def imports_of(path: Path) -> set[str]:
    """Return the dotted names that a file imports, wherever in it, relative ones made absolute."""
    package = path.relative_to(ROOT).parent.parts
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = [*base, *([node.module] if node.module else [])]
            # `from hwgen import arch` names a module: what follows `import` belongs to the name.
            names |= {".".join([*stem, alias.name]) for alias in node.names}
    return names


def loaded_by(module: str) -> set[str]:
    """Return the top-level packages that importing `module` loads into a fresh interpreter."""
    code = (
        "import sys, json; before = set(sys.modules)\n"
        f"import {module}\n"
        # Cython's bookkeeping sits in sys.modules without a spec: it was never imported.
        "new = [n for n, m in sys.modules.items() if getattr(m, '__spec__', None)]\n"
        "print(json.dumps(sorted(set(new) - before)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return {name.partition(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}


def test_the_host_room_has_no_circles() -> None:
    """Of its modules none imports itself through others, late imports by name included."""
    files = {f"host.{path.stem}": path for path in (ROOT / "host").glob("[!_]*.py")}
    arrows: dict[str, set[str]] = {}
    for name, path in files.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        texts = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        modules = {".".join(imported.split(".")[:2]) for imported in imports_of(path)}
        arrows[name] = (modules | texts) & set(files) - {name}
    assert "host.driver" in arrows["host.ip"] and "host.ip" in arrows["host.overlay"]
    left = dict(arrows)
    while left:
        free = [name for name, needs in left.items() if not needs & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


def test_import_linter_contracts_hold() -> None:
    run = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_importing_host_loads_nothing_that_a_board_lacks() -> None:
    loaded = loaded_by("host")
    assert "host" in loaded
    assert not loaded & {"torch", "amaranth", "hls4ml", "cocotb", "rtl", "sim"}


def test_importing_the_contract_loads_numpy_alone() -> None:
    loaded = loaded_by("hwgen.arch")
    assert loaded - set(sys.stdlib_module_names) <= {"hwgen", "numpy"}


@pytest.mark.parametrize("path", BOARD_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_board_code_is_python_3_10(path: Path) -> None:
    ast.parse(path.read_text(), filename=str(path), feature_version=(3, 10))


def test_the_contract_imports_stdlib_and_numpy_alone() -> None:
    allowed = set(sys.stdlib_module_names) | {"numpy"}
    for path in (ROOT / "hwgen" / "arch").rglob("*.py"):
        for name in imports_of(path):
            assert name.partition(".")[0] in allowed or name.startswith("hwgen.arch"), (path, name)


@pytest.mark.parametrize("room", ["rtl", "host"])
def test_rtl_and_host_see_the_contract_and_themselves_alone(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        for name in imports_of(path):
            other_room = name.partition(".")[0] in ROOMS - {room}
            assert not other_room or name.startswith("hwgen.arch"), (path, name)
