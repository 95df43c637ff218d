# SPDX-License-Identifier: Apache-2.0
"""The simulation room: run a whole bundle in cocotb, on either simulator."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwgen.arch.bundle import Bundle
from sim.runner import run_bench, verilog_of
from sim.simulator import compact


@dataclass(frozen=True)
class CocotbRun:
    """What came out: for each image the outputs' int8 codes, and every counter register."""

    outputs: list[tuple[NDArray[np.int8], ...]]
    counters: list[dict[str, int]]


def run_bundle_in_cocotb(
    bundle: Bundle,
    images: NDArray[np.float32],
    simulator: str = "verilator",
    *,
    stall: float = 0.2,
    faults: bool = False,
    build_dir: Path | str | None = None,
    seed: int = 1,
) -> CocotbRun:
    """Run images through a bundle on the RTL, with cocotbext-axi's memory and register master.

    The bench insists on the interpreter's codes and number of steps for each image.

    Parameters
    ----------
    bundle
        The network.
    images
        float32 (N, C, H, W), preprocessed.
    simulator
        One of `sim.runner.SIMULATORS`.
    stall
        Chance that a channel of the memory pauses in a cycle.
    faults
        Run the tests of bus errors as well.
    build_dir
        Folder to build in, kept; by default a temporary one.
    seed
        Of the stalls.

    Raises
    ------
    AssertionError
        When anything differs; the message holds the bench's log.
    """
    from rtl.top import Accelerator

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle.save(folder / "bundle")
        np.save(folder / "images.npy", np.stack([bundle.quantize_input(x) for x in images]))
        run_bench(
            compact(verilog_of(Accelerator(bundle.config))),
            "sim.benches.bench_top",
            simulator,
            folder / "build" if build_dir is None else build_dir,
            {
                "bundle": str(folder / "bundle"),
                "images": str(folder / "images.npy"),
                "results": scratch,
                "stall": stall,
                "faults": faults,
                "seed": seed,
            },
            seed=seed,
        )
        with np.load(folder / "outputs.npz") as data:
            outputs = [
                tuple(data[f"{i}_{k}"] for k in range(len(bundle.outputs)))
                for i in range(len(images))
            ]
        return CocotbRun(outputs, json.loads((folder / "counters.json").read_text()))
