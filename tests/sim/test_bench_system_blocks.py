# SPDX-License-Identifier: Apache-2.0
"""The tests room: cocotb benches of the blocks between the bus and the engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwgen.arch import AcceleratorConfig
from hwgen.arch.isa import Queue
from rtl.control import Control
from rtl.dispatch import Dispatch, Fetch
from rtl.load_issuer import LoadIssuer
from rtl.unpacker import Unpacker
from sim.runner import run_bench
from tests.support.simulators import each_simulator

TI = pytest.mark.parametrize(
    "ti", [8, pytest.param(16, marks=pytest.mark.slow), pytest.param(32, marks=pytest.mark.slow)]
)


@each_simulator
@TI
def test_unpacker(simulator: str, ti: int, tmp_path: Path) -> None:
    """Rows of any shape, every word in its cycle."""
    config = AcceleratorConfig(tn=8, ti=ti)
    parameters = {"config": config.to_dict(), "seed": 31, "count": 25}
    run_bench(Unpacker(config), "sim.benches.bench_unpacker", simulator, tmp_path, parameters)


@each_simulator
@TI
def test_load_issuer(simulator: str, ti: int, tmp_path: Path) -> None:
    """Rows and jobs of random loads, every refusal, without a resampler."""
    config = AcceleratorConfig(tn=8, ti=ti, resampler_row_bytes=0)
    parameters = {"config": config.to_dict(), "seed": 32, "count": 25}
    run_bench(LoadIssuer(config), "sim.benches.bench_load_issuer", simulator, tmp_path, parameters)


@each_simulator
def test_control(simulator: str, tmp_path: Path) -> None:
    """Every output in every cycle of random lives."""
    parameters = {"seed": 33, "count": 6000}
    run_bench(Control(), "sim.benches.bench_control", simulator, tmp_path, parameters)


@each_simulator
def test_fetch(simulator: str, tmp_path: Path) -> None:
    """Random programs, every refusal, the cycles of each instruction."""
    config = AcceleratorConfig(tn=8, ti=8)
    parameters = {"seed": 34, "count": 20}
    run_bench(Fetch(config), "sim.benches.bench_fetch", simulator, tmp_path, parameters)


@each_simulator
@pytest.mark.parametrize("depth", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_tokens(simulator: str, depth: int, tmp_path: Path) -> None:
    """Random programs of waits and signals, and every wait that never ends."""
    config = AcceleratorConfig(tn=8, ti=8, queue_depth=depth)
    parameters = {"config": config.to_dict(), "seed": 35, "count": 40}
    run_bench(Dispatch(config), "sim.benches.bench_tokens", simulator, tmp_path, parameters)


@pytest.mark.slow
@each_simulator
def test_token_overflow(simulator: str, tmp_path: Path) -> None:
    """Fill a counter until it overflows: every one, or with the slower simulator one."""
    config = AcceleratorConfig(tn=8, ti=8)
    counters = [(giver, taker) for giver in Queue for taker in Queue]
    counters = counters if simulator == "verilator" else counters[1:2]
    parameters = {"config": config.to_dict(), "seed": 36, "counters": counters}
    bench = "sim.benches.bench_token_overflow"
    run_bench(Dispatch(config), bench, simulator, tmp_path, parameters)
