# SPDX-License-Identifier: Apache-2.0
"""The command line: a network for a back end, and both side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hwgen.cli.console import KINDS, Report, UsageError, errors, table
from hwgen.cli.networks import quantized


def compile_network(arguments: argparse.Namespace) -> Report:
    """Compile a PyTorch or ONNX network into a bundle."""
    from hwgen.backends import program
    from hwgen.boards import load_board

    board = load_board(arguments.board)
    graph, calibration, name = quantized(arguments)
    bundle = program.emit(
        graph,
        board.config,
        name=name,
        labels=calibration.labels,
        batch=arguments.batch,
    )
    bundle.save(arguments.out)
    print(f"{arguments.out}: {bundle.macs:,} MACs, {len(bundle.constants):,} bytes of constants")
    return {"bundle": str(arguments.out), "macs": bundle.macs, "name": name}


def emit(arguments: argparse.Namespace) -> Report:
    """Write the accelerator's Verilog, or a network as an hls4ml project."""
    from hwgen.boards import load_board

    if arguments.backend == "hls4ml":
        return _emit_hls4ml(arguments)
    if arguments.model is not None:
        raise UsageError(
            "the accelerator's Verilog is the same for every network; try shears compile for "
            f"{arguments.model}, or --backend hls4ml"
        )
    from rtl.emit import write_verilog

    board = load_board(arguments.board)
    out = arguments.out or Path("build/shears.v")
    write_verilog(board.config, out)
    lines = len(out.read_text(encoding="utf-8").splitlines())
    print(f"{out}: {lines:,} lines, digest {board.config.digest():016x}")
    return {"verilog": str(out), "lines": lines, "config": board.config.to_dict()}


def _emit_hls4ml(arguments: argparse.Namespace) -> Report:
    """Write an hls4ml project, compile its C++ model, and compare it with the integers."""
    graph, calibration, _ = quantized(arguments)
    images = calibration.images
    project, images = _hls_project(arguments, graph, images, arguments.out or Path("build/hls4ml"))
    found = project.estimate
    table(
        f"{project.folder}: estimates for {project.board.name}, not a vendor's report",
        ("layer", "hls4ml", "reuse", "cycles", "DSP", "BRAM36", "LUT", "FF"),
        [
            (
                row.node,
                row.kind,
                f"{row.reuse}" if row.strategy else "",
                f"{row.cycles:,}",
                f"{row.dsp}",
                f"{row.bram36:g}",
                f"{row.lut:,}",
                f"{row.ff:,}",
            )
            for row in found.layers
        ],
    )
    print(
        f"about {found.cycles:,} cycles an image, one every {found.interval:,}; {found.dsp} DSP, "
        f"{found.bram36:g} BRAM36, {found.lut:,} LUT and {found.ff:,} FF with the FIFOs"
    )
    with errors().status("g++ compiles hls4ml's model"):
        project.compile(images, calibration.labels)
        codes = project.verify(images)
    print(f"{len(images)} images, {codes:,} codes equal to the quantized graph's")
    if project.backend == "VivadoAccelerator":
        print(f"{project.folder / 'bundle.json'}: for host.Hls4mlAccelerator on the board")
    return {
        "project": str(project.folder),
        "images": len(images),
        "mismatches": 0,
        "io_type": project.io_type,
        "backend": project.backend,
        "board": project.board.key,
        "estimate": found.to_dict(),
    }


def _hls_project(
    arguments: argparse.Namespace, graph: Any, images: Any, folder: Path
) -> tuple[Any, Any]:
    """Plan an hls4ml project as the arguments say; return it and the images to compare."""
    from hwgen.backends import hls4ml

    target = arguments.target
    project = hls4ml.emit(
        graph,
        folder,
        io_type=arguments.io,
        backend=arguments.hls,
        board=arguments.board,
        target=int(target) if target.isdecimal() else target,
        limit=arguments.limit / 100,
    )
    return project, images[: arguments.count]


def compare(arguments: argparse.Namespace) -> Report:
    """Put both back ends side by side for one network: cycles, resources, bits."""
    from hwgen.ir import quantize_input
    from sim.compare import compare_backends

    graph, calibration, name = quantized(arguments)
    images = calibration.images
    project, images = _hls_project(arguments, graph, images, arguments.out)
    with errors().status("g++ compiles hls4ml's model, images run through both"):
        codes = quantize_input(graph, images)
        found = compare_backends(graph, project, codes, name, rtl=arguments.rtl)
    board = project.board
    sides = {"amaranth": found.amaranth, "hls4ml": found.hls4ml}
    columns = ("cycles", "interval", *KINDS)
    table(
        f"{name} on {board.name} at {board.accelerator_hz / 1e6:g} MHz: "
        + ("estimates, but for the RTL's cycles" if arguments.rtl else "estimates"),
        ("back end", "bits equal", "cycles", "interval", "DSP", "BRAM36", "LUT", "FF"),
        [
            (key, "yes" if side.equal else "NO", *(f"{getattr(side, c):,g}" for c in columns))
            for key, side in sides.items()
        ],
        words=2,
    )
    against = "RTL and golden model" if arguments.rtl else "golden model"
    print(
        f"{len(images)} images. amaranth: {against}; the accelerator as a whole, for any network; "
        f"resources as Yosys would count. hls4ml: its C++ model, {project.io_type}, "
        f"{project.backend}; this network alone; nothing was synthesised"
    )
    if not found.equal:
        wrong = [key for key, side in sides.items() if not side.equal]
        raise RuntimeError(f"the bits of {', '.join(wrong)} differ from the quantized graph's")
    return {"run": arguments.command, **found.to_dict()}
