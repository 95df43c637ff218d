# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: one row of the compression table, and the file that holds them all."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from hwgen.arch.files import write_json
from hwgen.boards import load_board
from hwgen.compress import cost
from hwgen.compress.training import fastest_precision
from hwgen.datasets import Splits

RESULTS = Path(__file__).parents[1] / "results" / "compression.json"
COMMAND = "make bench-compression DATA=FOLDER"
BOARD = "pynq-z2"


@dataclass(frozen=True)
class Row:
    """One network as it was measured.

    Accuracies are shares of the test split, MACs and parameters those of the whole pipeline,
    cycles those that the compiler's estimate predicts for one image at the board's configuration.
    """

    table: str
    network: str
    data: str
    method: str
    seed: int
    device: str
    epochs: float
    baseline_accuracy: float
    accuracy: float
    int8_accuracy: float
    baseline_macs: float
    macs: float
    baseline_parameters: float
    parameters: float
    baseline_cycles: float
    cycles: float
    note: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What tells a row from the others."""
        return self.table, self.network, self.data, self.method, self.seed

    @property
    def pair(self) -> str:
        """Its network and data, as tables and plots name them."""
        return f"{self.network}, {self.data}"

    @property
    def saved(self) -> tuple[float, float]:
        """Shares of the MACs and of the cycles that are saved."""
        return 1 - self.macs / self.baseline_macs, 1 - self.cycles / self.baseline_cycles

    @property
    def change(self) -> float:
        """Change in accuracy, in points."""
        return 100 * (self.accuracy - self.baseline_accuracy)

    @property
    def origin(self) -> tuple[str, float, str]:
        """Its baseline: machines that differ have trained their own, perhaps as good ones."""
        return self.network, self.baseline_accuracy, self.device


def read() -> list[Row]:
    """Return the rows that are there."""
    if not RESULTS.exists():
        return []
    return [Row(**row) for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]]


def has(table: str, network: str, data: str, method: str, seed: int) -> bool:
    """Tell whether this row has been measured."""
    return (table, network, data, method, seed) in {row.key for row in read()}


def write(row: Row) -> None:
    """Add a row, or replace that of its key and baseline; several processes may do so at once."""
    RESULTS.parent.mkdir(exist_ok=True)
    with FileLock(str(RESULTS.with_suffix(".lock"))):
        rows = {(old.key, old.origin): old for old in [*read(), row]}
        ordered = [asdict(rows[key]) for key in sorted(rows)]
        write_json(RESULTS, {"command": COMMAND, "board": BOARD, "rows": ordered})


def device_name() -> str:
    """Name what trains here, and in which type: the benchmark runs on the CPU."""
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}, {threads} thread, {fastest_precision()})"


def steps() -> cost.Cost:
    """Return the steps of the board's machine as a cost."""
    return cost.for_machine(load_board(BOARD).config)


def costs(model: nn.Module, side: int) -> tuple[float, float, float]:
    """Return MACs, parameters and predicted cycles."""
    shape = (3, side, side)
    return (
        cost.macs(model, shape),
        cost.parameters(model, shape),
        cost.predicted_cycles(model, shape, BOARD),
    )


def frame_cycles(model: nn.Module, side: int, box: int) -> float:
    """Return predicted cycles where the machine resizes a square of a frame to the input."""
    return cost.predicted_cycles(model, (3, side, side), BOARD, (box, box))


def calibration_images(splits: Splits, count: int = 256, seed: int = 0) -> np.ndarray:
    """Return training images to calibrate and to measure relevance with."""
    rng = np.random.default_rng(seed)
    return splits.train.images[rng.choice(len(splits.train), count, replace=False)]
