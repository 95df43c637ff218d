# SPDX-License-Identifier: Apache-2.0
"""The command line: boards, and what of them a configuration takes."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from hwgen.arch.files import write_json
from hwgen.cli.console import KINDS, Report, UsageError, config_text, errors, table
from hwgen.cli.networks import load_model


def boards(arguments: argparse.Namespace) -> Report:
    """List the boards and what each offers."""
    from dataclasses import asdict

    from hwgen.boards import board_names, load_board

    boards = [load_board(name) for name in board_names()]
    table(
        "boards",
        ("board", "part", "flow", "MHz", "DSP", "BRAM36", "LUT", "array"),
        [
            (
                b.key,
                b.part,
                b.flow,
                f"{b.accelerator_hz / 1e6:g}",
                f"{b.budget.dsp}",
                f"{b.budget.bram36}",
                f"{b.budget.lut:,}",
                f"{b.config.tn} x {b.config.ti} x {b.config.tp}",
            )
            for b in boards
        ],
    )
    return {"boards": [asdict(board) for board in boards]}


def resources(arguments: argparse.Namespace) -> Report:
    """Estimate with Yosys what a board's configuration takes of its FPGA, block by block."""
    from hwgen.boards import load_board
    from rtl.resources import estimate_resources, record

    board = load_board(arguments.board)
    with errors().status("Yosys synthesises the whole top; minutes") as status:
        found = estimate_resources(
            board.config,
            board.family,
            cache_dir=arguments.cache,
            progress=lambda step: status.update(f"Yosys: {step}"),
        )
    budget = {kind: getattr(board.budget, kind) for kind in KINDS}
    percent = {kind: 100 * getattr(found, kind) / budget[kind] for kind in KINDS}
    slowest = {name: f"{ns:.2f}" for name, ns in found.logic_ns.items()}
    rows = [
        (name, *(f"{getattr(b, k):,}" for k in KINDS), slowest.get(name, ""))
        for name, b in found.per_block.items()
    ]
    worst = f"{max(found.logic_ns.values()):.2f}" if found.logic_ns else ""
    rows.append(("used", *(f"{getattr(found, kind):,}" for kind in KINDS), worst))
    period = f"{1e9 / board.accelerator_hz:.2f}"
    rows.append((board.part, *(f"{budget[kind]:,}" for kind in KINDS), period))
    rows.append(("percent", *(f"{percent[kind]:.1f}" for kind in KINDS), ""))
    title = f"{board.name}: estimates of {found.yosys}; delays without wires"
    table(title, ("block", *KINDS, "logic ns"), rows)
    print(f"{found.lutram:,} of the LUTs are memory; {len(found.warnings)} unexplained warnings")
    for warning in found.warnings:
        print(f"  {warning}")
    report = {
        "what": "estimates of Yosys, not a vendor's report; docs/decisions.md, section Resources",
        "run": f"shears resources --board {board.key}",
        **found.to_dict(),
        "board": board.key,
        "config": board.config.to_dict(),
        "config_digest": f"{board.config.digest():016x}",
        "limit_percent": arguments.limit,
        "budget": budget,
        "percent": percent,
    }
    if arguments.record:
        report["run"] += f" --record {arguments.record}"
        write_json(arguments.record, record(report, arguments.record))
    over = [f"{percent[k]:.1f} % of {k}" for k in KINDS if percent[k] > arguments.limit]
    if over:
        raise RuntimeError(
            f"{board.key} takes {', '.join(over)}, more than {arguments.limit:g} %, as Yosys "
            "estimates; try a smaller array or shallower buffers"
        )
    return report


def place(arguments: argparse.Namespace) -> Report:
    """Place and route a board's configuration with open tools: clock, paths, bitstream."""
    from hwgen.boards import load_board
    from rtl.place import Target, place_and_route

    board = load_board(arguments.board)
    if board.open_flow is None:
        raise UsageError(
            f"board must have the flow 'open', not {board.flow!r}; try ulx3s-85f, or "
            "shears resources for what this one takes"
        )
    target = Target(**vars(board.open_flow))
    hertz = round(arguments.mhz * 1e6) if arguments.mhz else board.accelerator_hz
    with errors().status("Yosys, nextpnr and ecppack; minutes") as status:
        found = place_and_route(
            board.config,
            target,
            hertz,
            seed=arguments.seed,
            bitstream=arguments.out,
            cache_dir=arguments.cache,
            progress=lambda step: status.update(f"{board.key}: {step}"),
        )
    used = [
        (kind, f"{found.used[kind]:,g}", f"{found.available[kind]:,g}", f"{percent:.1f}")
        for kind in KINDS
        for percent in [100 * found.used[kind] / found.available[kind]]
    ]
    table(f"{board.name}: {config_text(board.config)}", (board.part, "used", "of", "%"), used)
    for clock, mhz in found.fmax_mhz.items():
        print(f"{clock}: {mhz:.1f} MHz, aimed at {found.target_mhz:g}")
    for path in found.critical_paths:
        wires = 100 * path.routing_nanoseconds / path.nanoseconds
        print(f"  {path.nanoseconds:.2f} ns, {wires:.0f} % wires: {' -> '.join(path.blocks)}")
        print(f"  from {path.hops[0].cell} to {path.hops[-1].cell}")
    print(f"{arguments.out}: {found.bitstream_bytes:,} bytes")
    if found.mhz < found.target_mhz:
        raise RuntimeError(
            f"{board.key} reaches {found.mhz:.1f} MHz, less than the {found.target_mhz:g} aimed "
            "at; try another --seed, or a lower accelerator_hz in the board's file"
        )
    return {
        "what": "placed and routed with open tools; docs/decisions.md, section Place and route",
        "run": f"shears place --board {board.key} --seed {arguments.seed}"
        + (f" --mhz {arguments.mhz:g}" if arguments.mhz else "")
        + " --json FILE",
        "board": board.key,
        "config": board.config.to_dict(),
        **found.to_dict(),
    }


def build(arguments: argparse.Namespace) -> Report:
    """Build a board's bitstream: with Vivado for a Zynq, with open tools for an ECP5."""
    from dataclasses import asdict

    from hwgen.boards import load_board
    from rtl import vivado

    board = load_board(arguments.board)
    folder: Path = arguments.out or Path("build") / board.key
    if board.flow == "open":
        return _build_open(arguments, board, folder)
    if board.vivado is None:
        raise UsageError(
            f"{arguments.board} must have a table [vivado]; docs/adding-a-board.md has it"
        )
    target = vivado.Target(
        board=board.key,
        part=board.part,
        clock_hz=board.accelerator_hz,
        registers_address=board.register_address,
        ddr_bytes=board.ddr_bytes,
        budget=asdict(board.budget),
        **vars(board.vivado),
    )
    vivado.write_project(board.config, target, folder, any_version=arguments.any_version)
    command = shlex.join(vivado.vivado_command(arguments.jobs))
    report = {
        "run": f"shears build --board {board.key}",
        "board": board.key,
        "folder": str(folder),
        "digest": f"{board.config.digest():016x}",
        "command": command,
    }
    overlay = vivado.built_overlay(folder)
    if overlay is not None:
        print(f"{folder}: nothing has changed since it was built")
    elif arguments.write_only or vivado.find_vivado() is None:
        oldest, newest = vivado.VIVADO_VERSIONS
        why = "as asked" if arguments.write_only else "there is no vivado on the PATH"
        print(
            f"{folder}: everything that Vivado needs; stopped here, {why}.\n"
            f"With Vivado {oldest} to {newest}, here or where you copy the folder to, run in it:\n"
            f"  {command}\n"
            f"It ends with {vivado.OUTPUT}.bit and {vivado.OUTPUT}.hwh, or with what is wrong."
        )
        return report
    else:
        with errors().status("Vivado; half an hour or more") as status:
            overlay = vivado.run_vivado(
                folder,
                jobs=arguments.jobs,
                timeout_s=60 * arguments.timeout,
                progress=lambda step: status.update(f"Vivado: {step}"),
            )
    table(
        f"{board.name}: {config_text(board.config)}, Vivado {overlay.vivado}",
        (board.part, "used", "of", "%"),
        [
            (kind, f"{used:,g}", f"{limit:,}", f"{100 * used / limit:.1f}")
            for kind, limit in target.budget.items()
            for used in [overlay.used[kind]]
        ],
        words=1,
    )
    print(
        f"{overlay.clock_hz / 1e6:g} MHz with {overlay.setup_slack_ns:.3f} ns to spare; "
        f"{overlay.bit} and {overlay.hwh}"
    )
    return {**report, **asdict(overlay), "bit": str(overlay.bit), "hwh": str(overlay.hwh)}


def _build_open(arguments: argparse.Namespace, board: Any, folder: Path) -> Report:
    """Build the whole design of a board without a processor; print what it takes and reaches."""
    from dataclasses import asdict, replace

    from hwgen.arch.link import LinkConfig
    from rtl import open_flow
    from rtl.place import Target

    if board.soc is None:
        raise UsageError(
            f"{arguments.board} must have a table [soc]; docs/adding-a-board.md has it"
        )
    target = Target(**vars(replace(board.open_flow, constraints=board.soc.constraints)))
    link = LinkConfig(board.accelerator_hz, board.soc.baud, board.ddr_bytes)
    run = f"shears build --board {board.key} --seed {arguments.seed}"
    with errors().status("Yosys, nextpnr and ecppack; twenty minutes") as status:
        built = open_flow.build(
            board.config,
            link,
            target,
            board.oscillator_hz,
            asdict(board.budget),
            folder,
            seed=arguments.seed,
            cache_dir=arguments.cache,
            progress=lambda step: status.update(f"{board.key}: {step}"),
            about={"run": run, "board": board.key},
        )
    found = built.placement
    table(
        f"{board.name}: {config_text(board.config)}, {board.ddr_bytes >> 10} KiB of memory",
        (board.part, "used", "of", "%"),
        [
            (kind, f"{found.used[kind]:,g}", f"{limit:,}", f"{built.percent[kind]:.1f}")
            for kind, limit in asdict(board.budget).items()
        ],
    )
    minutes = sum(found.seconds.values()) / 60
    print(
        f"{found.mhz:.1f} MHz, and {found.target_mhz:g} are needed; {minutes:.1f} minutes of "
        f"{', '.join(found.seconds)}\n"
        f"{built.bit}: {found.bitstream_bytes:,} bytes, sha256 {found.bitstream_sha256}\n"
        f"Load it with one of these, then run networks with --port (docs/ulx3s.md):"
    )
    for command in board.soc.program:
        print(f"  {command.format(bit=built.bit)}")
    return {"folder": str(folder), "bit": str(built.bit), "run": run, **found.to_dict()}


def explore(arguments: argparse.Namespace) -> Report:
    """List the configurations that no other beats for a network on a board."""
    import re

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from hwgen.boards import load_board
    from hwgen.explore import explore, named_model, random_network
    from rtl.resource_model import predict_resources, worst_error

    board = load_board(arguments.board)
    if not re.fullmatch(r"\d+x\d+x\d+", arguments.input):
        raise UsageError(f"--input must be CxHxW, for example 3x32x32, not {arguments.input!r}")
    channels, height, width = map(int, arguments.input.split("x"))
    networks = {}
    for text in arguments.network:
        if Path(text).is_dir():
            raise UsageError(f"{text} is a bundle, compiled already; give the network it came from")
        plain = ":" not in text and not text.endswith(".onnx")
        model = named_model(text, arguments.seed) if plain else load_model(text, None)
        networks[text] = random_network(model, (channels, height, width), arguments.seed)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors()) as bar:
        task = bar.add_task("explore")
        found = explore(
            networks,
            board,
            lambda config: vars(predict_resources(config, board.family)),
            limit_percent=arguments.limit,
            cache_dir=arguments.cache,
            progress=lambda done, total, config: bar.update(
                task, completed=done, total=total, description=config_text(config)
            ),
        )
    front = found.front
    shown = front[: arguments.rows]
    rows = []
    for candidate in shown:
        marks = ["best"] * (candidate is front[0])
        marks += ["default"] * (candidate.config == board.config)
        costs = candidate.costs.values()
        rows.append(
            (
                config_text(candidate.config).split(", ")[0],
                " ".join(marks),
                " ".join(config_text(candidate.config).split(", ")[1:]),
                *(f"{cost.cycles:,}" for cost in costs),
                *(f"{candidate.used[kind]:,g}" for kind in ("dsp", "bram36", "lut")),
                *(f"{cost.bytes_per_frame:,}" for cost in costs),
                *(f"{cost.bytes_per_cycle:.2f}" for cost in costs),
            )
        )
    each = list(networks) if len(networks) > 1 else [""]
    heads = [*(f"{name} cycles".strip() for name in each), "DSP", "BRAM36", "LUT"]
    heads += [
        *(f"{name} DDR bytes".strip() for name in each),
        *(f"{n} B/cycle".strip() for n in each),
    ]
    tried, misfits = len(found.candidates), sum(not c.fits for c in found.candidates)
    table(
        f"{board.name}: {len(front)} of {tried} configurations are on the front",
        ("array", "", "banks, SB, taps", *heads),
        rows,
    )
    error = worst_error(board.family)
    print(
        f"{misfits} had no room for a network, {found.beyond_budget} none on the board "
        f"({arguments.limit:g} %); {found.cached} costs read from {arguments.cache}. LUT and FF "
        f"are predicted, within {error['lut']:g} and {error['ff']:g} % where it was checked."
    )
    if not any(candidate.config == board.config for candidate in front):
        default = found.default
        reasons = [cost.refused for cost in default.costs.values() if cost.refused]
        print(
            f"the board's default, {config_text(board.config)}, is not on the front: "
            + (reasons[0] if reasons else f"{default.cycles:,.0f} cycles, beaten in everything")
        )
    return {
        "run": f"shears explore --board {board.key} "
        + " ".join(f"--network {shlex.quote(text)}" for text in arguments.network)
        + f" --input {arguments.input} --limit {arguments.limit:g} --seed {arguments.seed}",
        "board": board.key,
        "predicted_error_percent": error,
        "default": found.default.to_dict(),
        "front": [candidate.to_dict() for candidate in front],
        "candidates": [candidate.to_dict() for candidate in found.candidates],
        "beyond_budget": found.beyond_budget,
    }
