# SPDX-License-Identifier: Apache-2.0
"""The tests room: the 16 x 16 machine builds and simulates as fast as promised, and is right."""

from __future__ import annotations

import time

import numpy as np
import pytest

import host
import sim
from hwgen.arch.config import AcceleratorConfig
from hwgen.arch.interpreter import GoldenRun
from hwgen.backends import program
from hwgen.boards import load_board
from hwgen.ir.graph import Graph
from hwgen.ir.quantized import QInput
from tests.support.quantized_graphs import conv, tensor_type

BUILD_SECONDS_MOST = 180
CYCLES_PER_SECOND_LEAST = 50_000


REFERENCE_SECONDS = 0.02
"""Of :func:`seconds_of_a_loop`, on a core that must simulate all those cycles: a quick one."""


def seconds_of_a_loop() -> float:
    """Return what a million additions of Python take this core now.

    A throttled virtual machine's takes twice as long, and changes from second to second.
    """
    start, total = time.process_time(), 0
    for number in range(1_000_000):
        total += number
    return time.process_time() - start


@pytest.mark.alone
def test_cycles_a_second(rng: np.random.Generator) -> None:
    """The PYNQ-Z2's whole design runs 50,000 cycles a second or more on one quick core.

    On another core the bar is in proportion to what Python's loop takes there. The best run counts,
    and after one that reaches the bar no other is needed: what slows a core for a while is not the
    harness.
    """
    config = load_board("pynq-z2").config
    nodes: list = [QInput(name="x", type=tensor_type((64, 16, 16)))]
    for name in "abc":
        nodes.append(conv(rng, name, nodes[-1], 64))
    bundle = program.emit(Graph(tuple(nodes), ("x",), ("c",), "quantized"), config)
    codes, reached = np.zeros((16, 16, 64), np.int8), 0.0
    with sim.SimulatedBoard(config) as board, host.Accelerator(bundle, board) as accelerator:
        for _ in range(20):
            loops = [seconds_of_a_loop() for _ in range(3)]
            start = time.process_time()
            accelerator.run_int8(codes)
            seconds = time.process_time() - start
            loops += [seconds_of_a_loop() for _ in range(3)]
            assert accelerator.last_run is not None
            rate, speed = accelerator.last_run.cycles / seconds, REFERENCE_SECONDS / np.mean(loops)
            print(f"{rate:,.0f} cycles a second on a core of speed {speed:.2f}")
            reached = max(reached, rate / speed)
            if reached >= CYCLES_PER_SECOND_LEAST:
                break
    assert reached >= CYCLES_PER_SECOND_LEAST


@pytest.mark.alone
@pytest.mark.slow
def test_default_machine(rng: np.random.Generator) -> None:
    source = QInput(name="x", type=tensor_type((16, 16, 16)))
    first = conv(rng, "a", source, 64)
    graph = Graph((source, first, conv(rng, "b", first, 32)), ("x",), ("b",), "quantized")
    bundle = program.emit(graph, AcceleratorConfig())
    codes = rng.integers(-128, 128, (16, 16, 16)).astype(np.int8)
    with sim.SimulatedBoard(bundle) as board:
        built = board.harness.library_path.with_name("build_seconds").read_text()
        assert float(built) < BUILD_SECONDS_MOST
        accelerator = host.Accelerator(bundle, device=board)
        # Time of this process on a core: the test must hold on a machine that does other things.
        start, cycles = time.process_time(), board.cycles
        got = accelerator.run_int8(codes)
        speed = (board.cycles - cycles) / (time.process_time() - start)
        assert np.array_equal(got, GoldenRun(bundle).run(codes)[0])
        assert accelerator.last_run.cycles > 20_000
        assert speed > CYCLES_PER_SECOND_LEAST, f"{speed:,.0f} cycles a second"
        print(f"{speed:,.0f} cycles a second, built in {built.strip()} s")
