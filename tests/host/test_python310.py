# SPDX-License-Identifier: Apache-2.0
"""Room tests: the board's Python is 3.10 with numpy 1.21 to 1.26; its files must suit that."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for room in ("host", "hwgen/arch", "notebooks")
    for path in (ROOT / room).rglob("*.py")
    if "data" not in path.parts
)
FILES += [ROOT / "hwgen" / "__init__.py", ROOT / "hwgen" / "profile_report.py"]

_COMPILE = """
import json, sys
assert sys.version_info[:2] == (3, 10), sys.version
for path in json.load(sys.stdin):
    compile(open(path, encoding="utf-8").read(), path, "exec")
"""

_RUN = """
import sys
try:
    import numpy
except ModuleNotFoundError:
    print("no numpy")
else:
    import host
    from hwgen.arch import crop
    box = crop.ordered_box(numpy.float32([0.9, 0.5, 0.1, 2]))
    print(*crop.square_crop(box, 64, 64), crop.resize(numpy.ones((8, 8, 3), numpy.uint8), 3).sum())
"""


def python310() -> str | None:
    """Return a Python 3.10 that runs, from PATH or among pyenv's versions."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which("python3.10"), *pyenv.glob("3.10*/bin/python3.10")]
    for candidate in filter(None, found):
        # pyenv's stand-in on PATH fails where no 3.10 is chosen.
        if subprocess.run([candidate, "-c", ""], capture_output=True, timeout=60).returncode == 0:
            return str(candidate)
    return None


def test_board_files_run_on_python_3_10() -> None:
    """On a real 3.10 if there is one, and by its grammar anyway. No pynq is needed to import."""
    assert len(FILES) >= 10
    for path in FILES:
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                ast.parse("".join(cell["source"]), notebook.name, feature_version=(3, 10))
    interpreter = python310()
    if interpreter is not None:
        paths = json.dumps([str(path) for path in FILES])
        run_in(interpreter, _COMPILE, paths)
        assert run_in(interpreter, _RUN).split() in (["no", "numpy"], ["0", "0", "64", "27"])


def test_board_files_use_numpy_of_1_21() -> None:
    """No name that numpy got later: the tests run on 1.26, PYNQ 3.0 images have 1.21.5."""
    later = {"dtypes", "exceptions", "from_dlpack", "show_runtime"}
    for path in FILES:
        used = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("np", "numpy")
        }
        assert not used & later, path


def run_in(interpreter: str, code: str, stdin: str = "") -> str:
    run = subprocess.run(
        [interpreter, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
