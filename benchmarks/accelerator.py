# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: whole networks on the RTL, every bit checked, against their bounds.

``python -m benchmarks.accelerator`` (``make bench-accelerator``) compiles each network for the
board's default configuration, runs it on the Verilated top with a memory of 30 cycles of latency
and 8 bytes a cycle each way, compares every code with the quantized graph, and writes
``benchmarks/results/accelerator.json`` and ``docs/results/accelerator.md``. A row is written as
soon as it is measured; a run that was stopped goes on with the rows that are missing, as long as
the configuration, the Verilog and the seed are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import host
import hwgen
import sim
from benchmarks.accelerator_page import page
from benchmarks.networks import NETWORKS, Network, pictures, quantized
from hwgen.arch import Bundle, MemoryTiming, estimate
from hwgen.arch.files import replacing, write_json
from hwgen.arch.isa import BEAT_BYTES
from hwgen.arch.trace import Profile
from hwgen.backends import program
from hwgen.boards import Board, load_board
from hwgen.ir import evaluate_integer
from hwgen.ir.graph import Graph
from hwgen.ir.quantized import QDepthwise
from rtl.emit import emit_verilog

RESULTS = Path(__file__).parent / "results" / "accelerator.json"
PAGE = Path(__file__).parents[1] / "docs" / "results" / "accelerator.md"
COMMAND = "make bench-accelerator"
MEMORY_BYTES = 128 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 where a bit differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator")
    parser.add_argument("--board", default="pynq-z2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder with trained weights; random without")
    parser.add_argument("--only", nargs="*", help="names of networks, e.g. ResNet-8")
    parser.add_argument("--fresh", action="store_true", help="measure every row anew")
    arguments = parser.parse_args(argv)
    board = load_board(arguments.board)
    console = Console()
    report = _started(arguments, board)
    with sim.SimulatedBoard(
        board.config, memory_latency_cycles=board.read_latency_cycles, memory_bytes=MEMORY_BYTES
    ) as simulated:
        for network in NETWORKS:
            known = [row for row in report["rows"] if _key(row) == (network.name, network.batch)]
            if known or (arguments.only and network.name not in arguments.only):
                continue
            row = measure(network, board, simulated, arguments.seed, arguments.data, console)
            report["rows"].append(row)
            order = [(n.name, n.batch) for n in NETWORKS]
            report["rows"].sort(key=lambda row: order.index(_key(row)))
            report["lower_kernels"] = lower_kernels(report["rows"])
            write_json(RESULTS, report)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    with replacing(PAGE) as temporary:
        temporary.write_text(page(report, board), encoding="utf-8")
    console.print(f"{RESULTS}\n{PAGE}")
    return int(any(row["mismatches"] for row in report["rows"]))


def _key(row: dict[str, Any]) -> tuple[str, int]:
    return row["network"], row["batch"]


def _started(arguments: argparse.Namespace, board: Board) -> dict[str, Any]:
    """Return the report to go on with: the stored one if it is of the same machine and seed."""
    config = board.config
    began = time.perf_counter()
    verilog = emit_verilog(config)
    verilog_seconds = round(time.perf_counter() - began, 1)
    what = {
        "command": COMMAND,
        "board": board.key,
        "configuration": config.to_dict(),
        "digest": f"{config.digest():016x}",
        "verilog_sha256": hashlib.sha256(verilog.encode()).hexdigest(),
        "compiler_sha256": _compiler_digest(),
        "clock_hz": board.accelerator_hz,
        "seed": arguments.seed,
        "memory": {
            "read_latency_cycles": board.read_latency_cycles,
            "write_latency_cycles": board.read_latency_cycles,
            "bytes_a_cycle_each_way": BEAT_BYTES,
        },
        "device": f"{platform.machine()} CPU, the RTL simulated by Verilator",
    }
    if RESULTS.is_file() and not arguments.fresh:
        stored = json.loads(RESULTS.read_text(encoding="utf-8"))
        if all(stored.get(key) == value for key, value in what.items()):
            return stored
    return {**what, "verilog_seconds": verilog_seconds, "rows": [], "lower_kernels": {}}


def _compiler_digest() -> str:
    """Digest of the sources that decide what a program is: contract, graphs, passes, back end."""
    total = hashlib.sha256()
    for folder in ("arch", "ir", "passes", "quantize", "backends"):
        for path in sorted((Path(hwgen.__file__).parent / folder).glob("*.py")):
            total.update(path.read_bytes())
    return total.hexdigest()


def measure(
    network: Network,
    board: Board,
    simulated: sim.SimulatedBoard,
    seed: int,
    data: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Compile a network, run one program on the RTL, check it, and say what it took."""
    seconds: dict[str, float] = {}
    title = f"{network.name}, batch {network.batch}"
    with console.status(f"{title}: quantizing") as status:
        began = time.perf_counter()
        graph, weights = quantized(network, seed, data)
        seconds["quantize"] = time.perf_counter() - began
        status.update(f"{title}: compiling")
        began = time.perf_counter()
        bundle = program.emit(graph, board.config, name=network.name, batch=network.batch)
        seconds["compile"] = time.perf_counter() - began
        images = pictures(network.side, network.batch, seed + 1)
        codes = np.stack([bundle.quantize_input(image) for image in images])
        status.update(f"{title}: the quantized graph")
        wanted = evaluate_integer(graph, codes)
        began = time.perf_counter()
        evaluate_integer(graph, codes)
        seconds["integer_graph"] = time.perf_counter() - began
        predicted = estimate(bundle, MemoryTiming(*[board.read_latency_cycles] * 2))
        status.update(f"{title}: the RTL")
        began = time.perf_counter()
        with host.Accelerator(bundle, simulated, timeout_s=3600) as accelerator:
            got = accelerator.run_outputs_int8(codes if network.batch > 1 else codes[0])
            profile = (
                host.profile(accelerator, codes if network.batch > 1 else codes[0])
                if any(isinstance(node, QDepthwise) for node in graph.nodes)
                else None
            )
            assert accelerator.last_run is not None
            counters = accelerator.last_run.counters
        seconds["rtl"] = time.perf_counter() - began
    mismatches = sum(
        int(np.count_nonzero(out.reshape(-1) != wanted[name].reshape(-1)))
        for out, name in zip(got, graph.outputs, strict=True)
    )
    row = _row(network, board, graph, bundle, counters)
    row |= {
        "estimated_cycles": predicted.cycles,
        "estimated_over_cycles": predicted.cycles / counters["CYCLES_TOTAL"] - 1,
        "mismatches": mismatches,
        "weights": weights,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "configuration": board.config.to_dict(),
    }
    if profile is not None:
        row["depthwise"] = depthwise(bundle, profile, board)
    console.print(
        f"{title}: {row['cycles']:,} cycles, {100 * row['mac_utilisation']:.1f} % of the MACs "
        f"busy, {row['cycles'] / row['bound_cycles']:.3f} of its bound, {mismatches} mismatches"
    )
    return row


def _row(
    network: Network, board: Board, graph: Graph, bundle: Bundle, counters: dict[str, int]
) -> dict[str, Any]:
    """Put the counters beside the bounds.

    The compute bound is MACs over multipliers. The DDR bound is the weights once, the pictures and
    the results, at 8 bytes a cycle.
    """
    config, batch, cycles = bundle.config, network.batch, counters["CYCLES_TOTAL"]
    macs = bundle.macs * batch
    done = macs - bundle.padding_macs * batch
    weight_bytes = sum(node.weight.size for node in graph.nodes if hasattr(node, "weight"))
    channels, height, width = bundle.input.shape
    outputs = sum(int(np.prod(tensor.shape)) for tensor in bundle.outputs)
    least_read = weight_bytes + batch * channels * height * width
    compute_bound = macs / config.macs_per_cycle
    ddr_bound = max(least_read, batch * outputs) / BEAT_BYTES
    return {
        "network": network.name,
        "input": f"3 x {network.side} x {network.side}",
        "batch": batch,
        "cycles": cycles,
        "cycles_per_image": cycles / batch,
        "milliseconds_per_image": 1000 * cycles / batch / board.accelerator_hz,
        "macs": macs,
        "macs_done": done,
        "mac_utilisation": done / (config.macs_per_cycle * cycles),
        "nominal_mac_utilisation": macs / (config.macs_per_cycle * cycles),
        "steps": counters["STEPS"],
        "ddr_bytes_read": counters["BYTES_READ"],
        "ddr_bytes_written": counters["BYTES_WRITTEN"],
        "least_ddr_bytes_read": least_read,
        "compute_bound_cycles": compute_bound,
        "ddr_bound_cycles": ddr_bound,
        "bound_cycles": max(compute_bound, ddr_bound),
        "cycles_over_bound": cycles / max(compute_bound, ddr_bound) - 1,
        "cycles_waiting_for_load": counters["CYCLES_WAIT_LOAD"],
        "weights_resident": bundle.metadata["resident"],
        "bar": None if network.bar is None else {network.bar[0]: network.bar[1]},
        "meets_bar": None
        if network.bar is None
        else {"cycles": cycles, "over": cycles / max(compute_bound, ddr_bound)}[network.bar[0]]
        <= network.bar[1],
    }


def depthwise(bundle: Bundle, profile: Profile, board: Board) -> list[dict[str, Any]]:
    """Measure each depthwise layer in the trace, against the steps that its shape takes at best.

    A layer's cycles run from the end of the layer before to its own end, and its bound is taps x
    rows x pairs of pixels x blocks of lanes.
    """
    ends: dict[str, int] = {}
    for record in profile.records:
        if record.opcode == "COMPUTE" and record.layer is not None:
            ends[record.layer] = max(ends.get(record.layer, 0), record.end)
    rows, before = [], 0
    for layer in bundle.layers:
        cycles, before = ends[layer.name] - before, ends[layer.name]
        if layer.kind == "QDepthwise":
            channels, height, width = layer.output_shape
            config = board.config
            bound = layer.steps
            rows.append(
                {
                    "layer": layer.name,
                    "shape": [channels, height, width],
                    "cycles": cycles,
                    "bound_cycles": bound,
                    "cycles_over_bound": cycles / bound - 1,
                    "lanes_busy": layer.macs / (config.tn * config.tp * cycles),
                }
            )
    return rows


def lower_kernels(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare ResNet-20 with its lower kernels to ResNet-20: MACs saved and cycles saved."""
    found = {row["network"]: row for row in rows if row["network"].startswith("ResNet-20")}
    if len(found) < 2:
        return {}
    full, half = found["ResNet-20"], next(r for n, r in found.items() if n != "ResNet-20")
    config = full["configuration"]
    multipliers = config["tn"] * config["ti"] * config["tp"]
    cycles = full["cycles"] - half["cycles"]
    return {
        "macs_removed": 1 - half["macs"] / full["macs"],
        "cycles_saved": cycles,
        "macs_done_saved": full["macs_done"] - half["macs_done"],
        "saved_cycles_of_macs_done": cycles * multipliers / (full["macs_done"] - half["macs_done"]),
        "saved_cycles_of_nominal_macs": cycles * multipliers / (full["macs"] - half["macs"]),
    }


if __name__ == "__main__":
    sys.exit(main())
