# SPDX-License-Identifier: Apache-2.0
"""The tests room: processes killed in the middle of something, and what the next one finds."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import host
from hwgen.arch import Bundle, GoldenRun
from hwgen.arch.registers import BY_NAME
from hwgen.backends import program
from sim import SimulatedBoard
from tests.support.board_server import BoardServer
from tests.support.quantized_graphs import every_operation
from tests.support.simulators import SMALL_BOARD as CONFIG

ROOT = Path(__file__).parents[2]
PROCESS = """
import sys

import numpy as np

import host
from hwgen.arch import Bundle
from tests.support.board_server import RemoteBoard

address, bundle, codes, out = sys.argv[1:]
with host.Accelerator(Bundle.load(bundle), RemoteBoard(address), timeout_s=20) as accelerator:
    for _ in range(2):
        outputs = accelerator.run_outputs_int8(np.load(codes))
np.savez(out, *outputs)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[BoardServer]:
    """Serve one board that needs many looks for a run."""
    with SimulatedBoard(CONFIG, cycles_per_poll=40) as board:
        server = BoardServer(board)
        yield server
        server.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a network with every operation."""
    folder = tmp_path_factory.mktemp("killed") / "bundle"
    program.emit(every_operation(np.random.default_rng(0), 3, 9, 8), CONFIG).save(folder)
    return folder


def test_killed_in_the_middle(
    server: BoardServer,
    bundle: Path,
    tmp_path: Path,
    rng: np.random.Generator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """SIGKILL while setup and image program run, at many moments: what comes next is right.

    What comes next is another process, or in most cases, to be quick, another driver in this one,
    which knows as little of the first: the machine is still at the first one's program, and the
    memory that it writes to is handed out again.
    """
    codes = rng.integers(-128, 128, (9, 8, 3)).astype(np.int8)
    np.save(tmp_path / "codes.npy", codes)
    wanted = GoldenRun(Bundle.load(bundle)).run(codes)
    board = server.board
    running = []

    def start(out: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", PROCESS, server.address, str(bundle),
             str(tmp_path / "codes.npy"), str(tmp_path / out)],
            cwd=ROOT,
        )  # fmt: skip

    def status() -> dict[str, int]:
        offset = BY_NAME["STATUS"].offset
        return BY_NAME["STATUS"].layout.unpack(board.harness.read_register(offset))

    # A whole life first: it counts the accesses, and notes which come while the machine runs.
    server.on_access = lambda number: running.append(number) if status()["running"] else None
    process = start("first.npz")
    assert process.wait(60) == 0 and server.wait_idle(10)
    with np.load(tmp_path / "first.npz") as found:
        assert all(map(np.array_equal, found.values(), wanted))
    life = server.accesses
    assert len(running) > 20

    moments = [running[0], running[len(running) // 3], running[-1]]
    for number, moment in enumerate(moments):
        process = start("never.npz")
        victim = process

        def kill(access: int, moment: int = moment, victim: subprocess.Popen = victim) -> None:
            if access == moment:
                victim.kill()
                victim.wait()

        server.on_access = kill
        assert process.wait(60) == -9 and server.wait_idle(10)
        server.on_access = lambda access: None
        assert not (tmp_path / "never.npz").exists() and board.allocated_bytes == 0
        assert status()["running"], f"access {moment} of {life}"
        if number == 0:
            assert start("next.npz").wait(60) == 0 and server.wait_idle(10)
            with np.load(tmp_path / "next.npz") as found:
                assert all(map(np.array_equal, found.values(), wanted))
            continue
        caplog.clear()
        board.__dict__.pop("_shears_boards", None)  # a driver that knows of none before it
        with caplog.at_level(logging.WARNING, "shears.host"):
            with host.Accelerator(Bundle.load(bundle), board, timeout_s=20) as accelerator:
                outputs = accelerator.run_outputs_int8(codes)
        assert all(map(np.array_equal, outputs, wanted))
        assert accelerator.last_run is not None and accelerator.last_run.attempts == 1
        assert "was left in STATUS" in caplog.text
