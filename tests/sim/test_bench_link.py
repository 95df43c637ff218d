# SPDX-License-Identifier: Apache-2.0
"""The tests room: cocotb benches of a board without a processor: line, link and block memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwgen.arch.link import LinkConfig
from rtl.bridge import Bridge
from rtl.memory import BlockMemory
from rtl.uart import Receiver, Transmitter
from sim.runner import run_bench
from tests.support.simulators import each_simulator

LINK = LinkConfig(clock_hz=1_000_000, baud=250_000, memory_bytes=8192, quiet_cycles=100)


class BusyBridge(Bridge):
    """Looks at STATUS often, so that a bench meets it."""

    POLL_CYCLES = 256


@each_simulator
@pytest.mark.parametrize("divider", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_transmitter(simulator: str, divider: int, tmp_path: Path) -> None:
    """Every bit of every byte in its cycles."""
    parameters = {"divider": divider}
    run_bench(Transmitter(divider), "sim.benches.bench_uart", simulator, tmp_path, parameters)


@each_simulator
@pytest.mark.parametrize("divider", [4, 20, pytest.param(13, marks=pytest.mark.slow)])
def test_receiver(simulator: str, divider: int, tmp_path: Path) -> None:
    """Bytes at rates that are off, spikes and breaks."""
    parameters = {"divider": divider, "receives": True}
    run_bench(Receiver(divider), "sim.benches.bench_uart", simulator, tmp_path, parameters)


@each_simulator
def test_block_memory(simulator: str, tmp_path: Path) -> None:
    """Bus and port at once, every refusal, the cycles of a burst."""
    memory = BlockMemory(4096)
    parameters = {
        "size": memory.size,
        "first_beat": memory.FIRST_BEAT_LATENCY,
        "read_latency": memory.READ_LATENCY,
    }
    run_bench(memory, "sim.benches.bench_block_memory", simulator, tmp_path, parameters)


@each_simulator
def test_bridge(simulator: str, tmp_path: Path) -> None:
    """Random requests and every kind of damage, against the contract."""
    parameters = {
        "link": vars(LINK),
        "read_latency": BlockMemory.READ_LATENCY,
        "poll_cycles": BusyBridge.POLL_CYCLES,
    }
    run_bench(BusyBridge(LINK), "sim.benches.bench_bridge", simulator, tmp_path, parameters)
