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
from hwgen.ir.graph import Graph
from hwgen.ir.quantized import QInput
from tests.support.quantized_graphs import conv, tensor_type

BUILD_SECONDS_MOST = 180
CYCLES_PER_SECOND_LEAST = 50_000


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
