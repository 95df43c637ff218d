# SPDX-License-Identifier: Apache-2.0
"""Room tests: what every test shares: its random numbers, and the machine."""

from __future__ import annotations

import fcntl
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, default=0, help="base of every random test's seed (default: 0)"
    )


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption('--seed')} (another one: --seed N)"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Return this test's own 32-bit seed, the same in any order and on any worker, and print it."""
    base = request.config.getoption("--seed")
    value = zlib.crc32(f"{base} {request.node.nodeid}".encode())
    print(f"seed {value} (--seed {base})")  # pytest shows it with a failure
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """Return a generator on this test's seed."""
    return np.random.default_rng(seed)


def _locks(config: pytest.Config) -> Path | None:
    """Return the path, less its ending, of what the workers of one run share; None without any."""
    run = getattr(config, "workerinput", {}).get("testrunuid")
    return run and Path(tempfile.gettempdir(), f"shears-tests-{run}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """Let a test marked ``alone`` wait for those of the other workers, and they for it.

    All tests hold one lock, shared or, alone, exclusive. Who waits for it holds the gate, so that
    others' next tests do not pass by one that waits to be alone.
    """
    if (locks := _locks(item.config)) is None:
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    with open(f"{locks}.lock", "w") as lock:
        with open(f"{locks}.gate", "w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the locks: whoever still holds one is the last, or will find new ones."""
    if (locks := _locks(session.config)) is not None:
        for ending in (".lock", ".gate"):
            locks.with_suffix(ending).unlink(missing_ok=True)
