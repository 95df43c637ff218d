# SPDX-License-Identifier: Apache-2.0
"""The simulation room: the whole of Shears on the bundled frames, end to end and checked.

Train (or take from the cache) a full-frame classifier, a foreground predictor, a crop classifier
and its compressed form; quantize and compile them; run test frames through the board's own driver
on the simulated RTL; compare every code with the golden model and the quantized graph; report.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

import host
from hwgen.arch import Bundle, GoldenRun
from hwgen.arch.crop import ordered_box, resize, square_crop
from hwgen.arch.estimate import estimate_cycles
from hwgen.arch.files import write_json
from hwgen.arch.frames import frame_program
from hwgen.backends import program
from hwgen.boards import Board, load_board
from hwgen.compress import crop_all, normalise, predict_boxes, resize_all
from hwgen.demo_training import DemoModels, progress_bars, train_demo
from hwgen.ir import evaluate_integer, run_quantized
from hwgen.ir.graph import Graph
from hwgen.quantize import quantize_model
from sim.board import SimulatedBoard
from sim.demo_report import Sample, rows, write_page, write_pictures

CALIBRATION_FRAMES = 512
PICTURED_FRAMES = 16
CHANNELS = 3
Crop = tuple[int, int, int]


@dataclass(frozen=True)
class Compiled:
    """A network in its last two forms: integers, and a program for the machine."""

    graph: Graph
    bundle: Bundle


def run_demo(
    folder: Path, seed: int = 0, frames: int = 64, board_name: str = "pynq-z2"
) -> dict[str, Any]:
    """Run the demo; write report.json, report.html and PNGs into `folder`; return the report.

    Parameters
    ----------
    folder
        Trained networks are cached in ``folder/cache``, so that a second run is quick.
    frames
        Test frames that go through the RTL, at least 1.

    Raises
    ------
    RuntimeError
        When a code of the RTL differs from the golden model; the report is written first.
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, not {frames!r}")
    folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    @contextmanager
    def timed(name: str, text: str) -> Iterator[None]:
        console.print(f"[bold]{text}[/bold]")
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    with timed("train", "Training the networks (cached after the first run)"), progress_bars() as t:
        models = train_demo(folder / "cache", seed, t)
    board = load_board(board_name)
    with timed("compile", "Quantizing and compiling"):
        nets = compile_demo(models, board)
    with timed("int8_accuracy", f"int8 accuracy on {len(models.splits.test.labels):,} test frames"):
        int8_accuracy = _integer_accuracy(models, nets)
    with timed("build_simulator", "Building the simulated board (cached after the first run)"):
        simulated = SimulatedBoard(nets["predictor"].bundle, clock_hz=board.accelerator_hz)
    with simulated:
        with timed("simulate", f"{frames} frames through the driver on the simulated RTL"):
            samples, mismatches, cycles, crops = _run_frames(models, nets, simulated, frames)
        rate = simulated.sim_cycles_per_second
    seconds["total"] = time.perf_counter() - began
    estimated = _estimate(nets, models.splits.test.images.shape[1], crops)
    report = _report(models, nets, board, cycles, estimated, int8_accuracy)
    report |= {
        "frames": frames,
        "rtl_mismatches": mismatches,
        "sim_cycles_per_second": rate,
        "seconds": seconds,
        "seed": seed,
        "command": "shears " + shlex.join(sys.argv[1:]),
        "trained_from_cache": models.cached,
    }
    write_json(folder / "report.json", report)
    pictures = write_pictures(folder, report, samples)
    page = write_page(folder, report, pictures)
    _print_table(console, report)
    console.print(f"{page}\n{folder / 'report.json'}")
    if mismatches:
        raise RuntimeError(
            f"{mismatches} of {frames} frames differ between the RTL and the golden model"
        )
    return report


def compile_demo(models: DemoModels, board: Board) -> dict[str, Compiled]:
    """Quantize and compile the four networks; predictor and compressed classifier side by side."""
    train = models.splits.train.images[:CALIBRATION_FRAMES]
    boxes = predict_boxes(models.predictor, train, models.predictor_side)
    crops = crop_all(train, boxes, models.crop_side)
    names = models.splits.test.class_names
    nets: dict[str, Compiled] = {}
    for name, module, pictures in (
        ("predictor", models.predictor, resize_all(train, models.predictor_side)),
        ("compressed", models.compressed_classifier, crops),
        ("cropped", models.crop_classifier, crops),
        ("full_frame", models.frame_classifier, train),
    ):
        calibration = normalise(pictures)
        graph = quantize_model(module, calibration[:1], calibration)
        beside = nets["predictor"].bundle.placement if name == "compressed" else None
        bundle = program.emit(
            graph,
            board.config,
            name=name,
            preprocess=((models.mean,) * 3, (models.std,) * 3),
            labels=None if name == "predictor" else names,
            synapse_row=beside.synapse_rows if beside else 0,
            tap_entry=beside.tap_entries if beside else 0,
        )
        nets[name] = Compiled(graph, bundle)
    return nets


def _integer_accuracy(models: DemoModels, nets: dict[str, Compiled]) -> dict[str, float]:
    """Accuracy on every test frame with all networks in integers, by the quantized graphs."""
    test = models.splits.test

    def right(name: str, pictures: NDArray[np.uint8]) -> float:
        logits = run_quantized(nets[name].graph, normalise(pictures).numpy())
        return float(np.mean(logits.argmax(axis=1) == test.labels))

    small = resize_all(test.images, models.predictor_side)
    raw = run_quantized(nets["predictor"].graph, normalise(small).numpy())
    boxes = np.stack([ordered_box(box) for box in raw])
    return {
        "compressed": right("compressed", crop_all(test.images, boxes, models.crop_side)),
        "full_frame": right("full_frame", test.images),
    }


def _run_frames(
    models: DemoModels, nets: dict[str, Compiled], board: SimulatedBoard, count: int
) -> tuple[list[Sample], int, dict[str, int], list[Crop]]:
    """Run `count` test frames; return pictures, how many differ, mean RTL cycles, and crops."""
    test = models.splits.test
    golden = {name: GoldenRun(net.bundle) for name, net in nets.items()}
    samples: list[Sample] = []
    crops: list[Crop] = []
    mismatches = 0
    taken: dict[str, list[int]] = {name: [] for name in nets}
    # How long one run may take on the wall clock of a busy simulating machine.
    patience_s = 300.0
    with (
        host.Accelerator(nets["predictor"].bundle, board, timeout_s=patience_s) as predictor,
        host.Accelerator(nets["compressed"].bundle, board, timeout_s=patience_s) as classifier,
    ):
        pipeline = host.CroppedClassifier(predictor, classifier)
        for index in track(range(count), description="frames on the RTL"):
            frame = test.images[index]
            found = pipeline.run(frame)
            y0, x0, side = found.crop
            seen = resize(frame[y0 : y0 + side, x0 : x0 + side], models.crop_side)
            small = resize(frame, models.predictor_side)
            box_codes = _reference(nets["predictor"], golden["predictor"], small)
            wanted = _reference(nets["compressed"], golden["compressed"], seen)
            box = ordered_box(nets["predictor"].bundle.dequantize_output(0, box_codes))
            same = (
                np.array_equal(box, found.box)
                and square_crop(box, *frame.shape[:2]) == found.crop
                and np.array_equal(
                    nets["compressed"].bundle.dequantize_output(0, wanted), found.logits
                )
            )
            mismatches += not same
            taken["predictor"].append(found.predictor_run.cycles)
            taken["compressed"].append(found.cycles)
            crops.append(found.crop)
            if index < PICTURED_FRAMES:
                truth = test.class_names[test.labels[index]]
                samples.append(Sample(frame, seen, found.box, found.crop, found.name, truth))
    height, width, channels = test.images.shape[1:]
    # The baselines look at the frame in the same way: through the load path.
    for name, side in (("cropped", models.crop_side), ("full_frame", models.frame_side)):
        with (
            host.Accelerator(nets[name].bundle, board, timeout_s=patience_s) as accelerator,
            host.Frame(height, width, channels, board) as place,
        ):
            for frame, (y0, x0, size), ahead in zip(
                test.images[:count], crops, taken["predictor"], strict=True
            ):
                if name == "full_frame":
                    y0, x0, size, ahead = 0, 0, len(frame), 0
                place.write(frame)
                logits = accelerator.run_box(place, y0, x0, size, size)
                part = frame[y0 : y0 + size, x0 : x0 + size]
                wanted = _reference(nets[name], golden[name], resize(part, side))
                mismatches += not np.array_equal(
                    nets[name].bundle.dequantize_output(0, wanted), logits
                )
                record = accelerator.last_run
                assert record is not None
                taken[name].append(ahead + record.cycles)
    return samples, mismatches, {name: _mean(each) for name, each in taken.items()}, crops


def _mean(values: Sequence[float]) -> int:
    return round(sum(values) / len(values))


def _estimate(nets: dict[str, Compiled], side: int, crops: Sequence[Crop]) -> dict[str, int]:
    """Predict the mean cycles of each way to a label, for square frames and these crops of them."""
    pitch = -(-side * CHANNELS // 8) * 8

    def cycles(name: str, size: int) -> int:
        bundle = nets[name].bundle
        return estimate_cycles(frame_program(bundle, size, size, pitch).program, bundle.config)

    sizes = [size for _, _, size in crops]
    by_size = {
        name: {size: cycles(name, size) for size in set(sizes)}
        for name in ("cropped", "compressed")
    }
    first = cycles("predictor", side)
    return {
        "predictor": first,
        "full_frame": cycles("full_frame", side),
        **{name: first + _mean([found[size] for size in sizes]) for name, found in by_size.items()},
    }


def _reference(net: Compiled, golden: GoldenRun, picture: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Codes of the golden model, which must be the quantized graph's."""
    codes = net.bundle.quantize_input(net.bundle.preprocess(picture))
    (result,) = golden.run(codes)
    graph_codes = evaluate_integer(net.graph, codes[None])[net.graph.outputs[0]]
    if not np.array_equal(result, graph_codes.reshape(-1)):
        raise RuntimeError(f"{net.bundle.name}: golden model and quantized graph differ")
    return result


def _report(
    models: DemoModels,
    nets: dict[str, Compiled],
    board: Board,
    cycles: dict[str, int],
    estimated: dict[str, int],
    int8_accuracy: dict[str, float],
) -> dict[str, Any]:
    """Collect the figures; the predictor's cost is in both cropped columns."""
    macs = {name: net.bundle.macs for name, net in nets.items()}
    for name in ("cropped", "compressed"):
        macs[name] += macs["predictor"]
    peak = board.config.macs_per_cycle
    return {
        "accuracy": {
            "full_frame_float": models.accuracies["full_frame"],
            "cropped_float": models.accuracies["cropped"],
            "compressed_float": models.accuracies["compressed"],
            "compressed_int8": int8_accuracy["compressed"],
            "full_frame_int8": int8_accuracy["full_frame"],
        },
        "test_frames": len(models.splits.test.labels),
        "predictor_mean_iou": models.iou,
        "macs": macs,
        "cycles": cycles,
        "estimated_cycles": estimated,
        "mac_utilisation": macs["compressed"] / (peak * cycles["compressed"]),
        "clock_hz": board.accelerator_hz,
        "latency_ms": 1000 * cycles["compressed"] / board.accelerator_hz,
        "board": board.name,
        "configuration": board.config.to_dict(),
        "device": f"torch {torch.__version__}, CPU",
    }


def _print_table(console: Console, report: dict[str, Any]) -> None:
    table = Table(title=f"{report['board']}, {report['frames']} frames on the simulated RTL")
    for column in ("", "full frame", "cropped", "cropped + compressed"):
        table.add_column(column, justify="left" if column == "" else "right")
    for row in rows(report):
        table.add_row(*row)
    table.add_row("frames that differ from the golden model", "", "", str(report["rtl_mismatches"]))
    console.print(table)
