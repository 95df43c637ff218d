# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: what it costs to cut and resize on the way in, on the RTL.

``python -m benchmarks.frames`` (``make bench-frames``) runs the demo's predictor on whole frames
and its classifier on every crop that such a frame can have, on the RTL of a board's configuration,
and writes ``benchmarks/results/frames.json`` and ``docs/results/frames.md``. Weights are random:
cycles do not depend on them. Every logit is compared with the picture resized here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import host
import hwgen
from benchmarks.markdown import table, text
from hwgen import models
from hwgen.arch import Bundle
from hwgen.arch.crop import crop_sides, resize
from hwgen.arch.estimate import MemoryTiming, estimate_cycles
from hwgen.arch.files import replacing, write_json
from hwgen.arch.frames import frame_program
from hwgen.boards import load_board
from sim import SimulatedBoard

RESULTS = Path(__file__).parent / "results" / "frames.json"
PAGE = Path(__file__).parents[1] / "docs" / "results" / "frames.md"
COMMAND = "make bench-frames"
FRAMES = ((64, 64), (240, 320), (480, 640))
PREDICTOR_SIDE, CLASSIFIER_SIDE = 32, 64


def compiled(board: str, seed: int) -> tuple[Bundle, Bundle]:
    """Return predictor and classifier, resident side by side."""
    torch.manual_seed(seed)
    picture = ((0.5,) * 3, (0.25,) * 3)
    images = torch.randn(8, 3, PREDICTOR_SIDE, PREDICTOR_SIDE)
    first = hwgen.compile(
        models.ForegroundPredictor().eval(), images[:1], images, board, preprocess=picture
    )
    images = torch.randn(8, 3, CLASSIFIER_SIDE, CLASSIFIER_SIDE)
    second = hwgen.compile(
        models.demo_classifier().eval(),
        images[:1],
        images,
        board,
        preprocess=picture,
        synapse_row=first.placement.synapse_row + first.placement.synapse_rows,
        tap_entry=first.placement.tap_entry + first.placement.tap_entries,
    )
    return first, second


def measure(board_name: str, seed: int) -> list[dict[str, Any]]:
    """Run every frame and crop; return a row for each."""
    board_file = load_board(board_name)
    bundles = compiled(board_name, seed)
    rng = np.random.default_rng(seed)
    rows = []
    with (
        SimulatedBoard(bundles[0], clock_hz=board_file.accelerator_hz) as board,
        host.Accelerator(bundles[0], board, timeout_s=300) as predictor,
        host.Accelerator(bundles[1], board, timeout_s=300) as classifier,
    ):
        for height, width in FRAMES:
            picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            with host.Frame(height, width, 3, board) as frame:
                frame.write(picture)
                looks = [("predictor", predictor, height, width)]
                looks += [("classifier", classifier, s, s) for s in crop_sides(height, width)]
                for role, accelerator, rows_of_box, columns in looks:
                    y0, x0 = (height - rows_of_box) // 2, (width - columns) // 2 | 1
                    x0 = min(x0, width - columns)
                    found = accelerator.run_box(frame, y0, x0, rows_of_box, columns)
                    assert accelerator.last_run is not None
                    cycles = accelerator.last_run.cycles
                    side = accelerator.bundle.input.shape[1]
                    box = picture[y0 : y0 + rows_of_box, x0 : x0 + columns]
                    wanted = accelerator.run(resize(box, side))
                    plain = accelerator.last_run.cycles
                    if not np.array_equal(found, wanted):
                        raise RuntimeError(f"{role}, {rows_of_box} x {columns}: bits differ")
                    made = frame_program(
                        accelerator.bundle, rows_of_box, columns, frame.pitch_bytes
                    )
                    config, timing = accelerator.bundle.config, MemoryTiming()
                    rows.append(
                        {
                            "frame": f"{width} x {height}",
                            "network": role,
                            "box": f"{columns} x {rows_of_box}",
                            "input": f"{side} x {side}",
                            "cycles_without": plain,
                            "cycles": cycles,
                            "estimated_cycles": estimate_cycles(made.program, config, timing),
                            "milliseconds": 1e3 * cycles / board_file.accelerator_hz,
                        }
                    )
                    print(rows[-1], flush=True)
    return rows


def write_page(result: dict[str, Any]) -> None:
    """Write the page from the results."""
    head = "frame | network | box | input | cycles without | cycles | estimated | ms"
    rows = [
        [
            *(row[name] for name in ("frame", "network", "box", "input")),
            *(f"{row[name]:,}" for name in ("cycles_without", "cycles", "estimated_cycles")),
            f"{row['milliseconds']:.3f}",
        ]
        for row in result["rows"]
    ]
    lines = [
        f"<!-- Generated by `{COMMAND}`; do not edit. -->",
        "",
        "# Crop and resize on the way in",
        "",
        text(
            f"Cycles of one run on the RTL of {result['board']}'s configuration, a memory of 30 "
            "cycles of latency. The predictor sees the whole frame, the classifier each crop that "
            "such a frame can have. Cycles without: the input lies in DDR as codes, somebody else "
            "has resized. Every logit equals the one of the picture resized by "
            "`hwgen.arch.crop.resize`. [How it works](../architecture.md#frames)."
        ),
        "",
        table(head, "llllrrrr", rows),
        "",
    ]
    with replacing(PAGE) as path:
        path.write_text("\n".join(lines), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write results and page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frames")
    parser.add_argument("--board", default="pynq-z2")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    result = {
        "command": COMMAND,
        "board": arguments.board,
        "seed": arguments.seed,
        "rows": measure(arguments.board, arguments.seed),
    }
    write_json(RESULTS, result)
    write_page(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
