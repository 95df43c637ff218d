# SPDX-License-Identifier: Apache-2.0
"""The tests room: register file and bus masters in cocotb."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwgen.arch import AcceleratorConfig
from rtl.read_master import ReadMaster
from rtl.registers import Registers
from rtl.write_master import WriteMaster
from sim.runner import run_bench
from tests.support.simulators import each_simulator

BLOCKS = {"registers": Registers, "read_master": ReadMaster, "write_master": WriteMaster}


@pytest.mark.parametrize(
    ("block", "burst"),
    [("registers", 16), *((b, n) for b in ("read_master", "write_master") for n in (1, 16))],
)
@each_simulator
def test_bus(simulator: str, block: str, burst: int, tmp_path: Path) -> None:
    """Random operations with random stalls on every channel."""
    config = AcceleratorConfig(
        tn=8, ti=8, scratchpad_bank_words=64, max_burst_beats=burst, outstanding_reads=4
    )
    parameters = {"config": config.to_dict(), "seed": 1}
    run_bench(BLOCKS[block](config), f"sim.benches.bench_{block}", simulator, tmp_path, parameters)
