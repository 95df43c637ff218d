# SPDX-License-Identifier: Apache-2.0
"""Room tests: what every test shares, which is where its random numbers come from."""

from __future__ import annotations

import zlib

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
