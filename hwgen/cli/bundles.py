# SPDX-License-Identifier: Apache-2.0
"""The command line: bundles, estimated, run, profiled, tested and packed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hwgen.arch.files import write_json
from hwgen.cli.console import Report, UsageError, table


def estimate(arguments: argparse.Namespace) -> Report:
    """Predict the cycles of a bundle, layer by layer."""
    from hwgen.arch import Bundle, MemoryTiming, estimate
    from hwgen.boards import load_board

    bundle, board = Bundle.load(arguments.bundle), load_board(arguments.board)
    result = estimate(bundle, MemoryTiming(board.read_latency_cycles))
    milliseconds = 1000 * result.cycles / board.accelerator_hz
    rows: list[dict[str, Any]] = []
    for record, cycles in zip(bundle.layers, result.layer_cycles, strict=True):
        peak = bundle.config.macs_per_cycle * max(1, cycles)
        rows.append(
            {
                "layer": record.name,
                "kind": record.kind,
                "macs": record.macs,
                "cycles": cycles,
                "mac_utilisation": record.useful_macs / peak,
            }
        )
    table(
        f"{bundle.name}: {result.cycles:,} cycles, {milliseconds:.3f} ms at "
        f"{board.accelerator_hz / 1e6:g} MHz, set-up {result.setup_cycles:,} cycles once",
        ("layer", "kind", "MACs", "cycles", "MACs busy"),
        [
            (
                r["layer"],
                r["kind"],
                f"{r['macs']:,}",
                f"{r['cycles']:,}",
                f"{100 * r['mac_utilisation']:.1f} %",
            )
            for r in rows
        ],
    )
    return {
        "cycles": result.cycles,
        "setup_cycles": result.setup_cycles,
        "milliseconds": milliseconds,
        "clock_hz": board.accelerator_hz,
        "macs": bundle.macs,
        "layers": rows,
    }


def run(arguments: argparse.Namespace) -> Report:
    """Run images on the simulated RTL, a board or the interpreter, and check every bit."""
    import numpy as np

    from hwgen.arch import Bundle, GoldenRun

    bundle = Bundle.load(arguments.bundle)
    if arguments.input:
        images = np.load(arguments.input).astype(np.float32)
    else:
        rng = np.random.default_rng(arguments.seed)
        images = rng.normal(size=(arguments.count, *bundle.input.shape)).astype(np.float32)
    if len(images) % bundle.batch:
        raise UsageError(
            f"{bundle.name} runs {bundle.batch} images at once, and {len(images)} is no multiple "
            f"of it; try --count {-(-len(images) // bundle.batch) * bundle.batch}"
        )
    golden = GoldenRun(bundle)
    results, mismatches, counters = [], 0, {}
    codes = np.stack([bundle.quantize_input(image) for image in images])
    if bundle.batch > 1:
        batches = codes.reshape(-1, bundle.batch, *codes.shape[1:])
        wanted = [(rows,) for batch in batches for rows in golden.run(batch)[0]]
    else:
        wanted = [(golden.run(one)[0],) for one in codes]
    on = f"the board at {arguments.port}" if arguments.port else f"the {arguments.on}"
    if arguments.port or arguments.on == "rtl":
        import host

        with _device(arguments.port, bundle) as board:
            accelerator = host.Accelerator(bundle, device=board)
            for logits, want in zip(accelerator.run_batch(images), wanted, strict=True):
                expected = bundle.dequantize_output(0, want[0])
                mismatches += int(not np.array_equal(logits, expected))
                results.append(np.asarray(logits).ravel().tolist())
                assert accelerator.last_run is not None
                counters = dict(accelerator.last_run.counters)
    else:
        results = [bundle.dequantize_output(0, want[0]).ravel().tolist() for want in wanted]
    print(f"{len(images)} images on {on}, {mismatches} differ from the golden model")
    if bundle.labels:
        print("labels:", *(bundle.labels[int(np.argmax(row))] for row in results))
    for name, value in counters.items():
        print(f"  {name:18s} {value:,}")
    if mismatches:
        raise RuntimeError(f"{mismatches} of {len(images)} results differ from the golden model")
    return {"logits": results, "mismatches": mismatches, "counters": counters}


def profile(arguments: argparse.Namespace) -> Report:
    """Run a random image on the simulated RTL and show where every cycle goes.

    Writes a trace for Perfetto or chrome://tracing, a roofline plot and the records themselves.
    """
    from dataclasses import asdict

    import numpy as np

    import host
    import sim
    from hwgen.arch import Bundle
    from hwgen.boards import load_board
    from hwgen.profile_report import chrome_trace, layer_rows, write_roofline

    bundle, board = Bundle.load(arguments.bundle), load_board(arguments.board)
    channels, height, width = bundle.input.shape
    rng = np.random.default_rng(arguments.seed)
    codes = rng.integers(-128, 128, (height, width, channels)).astype(np.int8)
    with sim.SimulatedBoard(
        bundle, memory_latency_cycles=board.read_latency_cycles, clock_hz=board.accelerator_hz
    ) as simulated:
        with host.Accelerator(bundle, device=simulated) as accelerator:
            profile = host.profile(accelerator, codes)
    rows, clock = layer_rows(bundle, profile), board.accelerator_hz
    total = profile.counters["CYCLES_TOTAL"]
    table(
        f"{bundle.name}: {total:,} cycles, {1000 * total / clock:.3f} ms at {clock / 1e6:g} MHz, "
        f"{len(profile.records):,} instructions in {len(profile.window_cycles)} run(s)",
        ("layer", "cycles", "computing", "load", "store", "other", "MACs", "busy"),
        [
            (
                row.layer,
                *(
                    f"{getattr(row, name):,}"
                    for name in ("cycles", "computing", "wait_load", "wait_store", "other")
                ),
                f"{row.macs / 1e6:.2f} M",
                f"{100 * row.macs_busy:.1f} %",
            )
            for row in rows
        ],
        words=1,
    )
    print(
        "load, store: cycles the array waited for one; other: for an instruction, mostly\n"
        "cycles in which a busy scratchpad bank held a load or a store up: "
        f"{profile.counters['CYCLES_WAIT_BANK']:,}"
    )
    out: Path = arguments.out
    write_json(out / "trace.json", chrome_trace(profile, clock))
    write_json(out / "profile.json", profile.to_dict())
    write_roofline(out / "roofline.png", bundle, profile)
    print(f"{out}: trace.json (open it in ui.perfetto.dev), roofline.png, profile.json")
    return {
        "name": bundle.name,
        "counters": profile.counters,
        "window_cycles": list(profile.window_cycles),
        "clock_hz": clock,
        "layers": [asdict(row) for row in rows],
        "files": [str(out / name) for name in ("trace.json", "roofline.png", "profile.json")],
    }


def disassemble(arguments: argparse.Namespace) -> Report:
    """Print a bundle's programs, one instruction a line."""
    from hwgen.arch import Bundle, isa

    bundle = Bundle.load(arguments.bundle)
    setup, program = isa.disassemble(bundle.setup), isa.disassemble(bundle.program)
    print(f"setup\n{setup}\nprogram\n{program}")
    return {"setup": setup.splitlines(), "program": program.splitlines()}


def selftest(arguments: argparse.Namespace) -> Report:
    """Test an accelerator line by line: --overlay or --port name a board, else a simulated one."""
    from host.selftest import FAIL, SelfTest, make_selftest, run_and_print

    how = {"seed": arguments.seed, "timeout_s": arguments.timeout}
    if arguments.overlay:
        where = (arguments.overlay, arguments.ip, arguments.bundle, None)
        report = run_and_print(make_selftest(None, *where, **how))
    else:
        from hwgen.arch import Bundle
        from hwgen.boards import load_board

        board = load_board(arguments.board)
        config = Bundle.load(arguments.bundle).config if arguments.bundle else board.config
        simulated = {
            "memory_latency_cycles": board.read_latency_cycles,
            "clock_hz": board.accelerator_hz,
            "register_base": board.register_address,
        }
        with _device(arguments.port, config, **simulated) as device:
            address = device.register_base
            report = run_and_print(SelfTest(config, device, base_address=address, **how))
    failed = [check["name"] for check in report["checks"] if check["status"] == FAIL]
    if failed:
        if arguments.json:  # what failed is what one wants to keep
            write_json(arguments.json, report)
        raise RuntimeError(f"failed: {', '.join(failed)}")
    return report


def package(arguments: argparse.Namespace) -> Report:
    """Pack bundles, overlay and driver into one archive for a board without a network."""
    from hwgen.boards import load_board
    from hwgen.deploy import write_package

    board = load_board(arguments.board)
    if board.flow == "open":
        raise UsageError(
            f"a package is for a board with a processor, which {board.key} is not; load its "
            "bitstream, and run bundles from this computer with shears run --port"
        )
    folder: Path = arguments.bitstream or Path("build") / board.key
    # Without Vivado, `shears build` leaves its folder there without a bitstream.
    built = any(folder.glob("*.bit"))
    found = write_package(
        board,
        arguments.bundles,
        arguments.out or Path("build") / f"shears-{board.key}.tar.gz",
        bitstream=folder if arguments.bitstream or built else None,
        notebooks=arguments.notebooks or Path("notebooks"),
    )
    for name, size in found.files.items():
        print(f"  {size:12,}  {name}")
    print(f"{found.path}: {found.path.stat().st_size:,} bytes, sha256 {found.sha256}")
    if not found.overlay:
        print(f"without a bitstream: {folder} has none; shears build --board {board.key} makes it")
    return {
        "archive": str(found.path),
        "sha256": found.sha256,
        "files": found.files,
        "overlay": found.overlay,
        "digest": f"{found.digest:016x}",
    }


def _device(port: str | None, design: Any, **simulated: Any) -> Any:
    """Return the board at a serial port, or a simulated one."""
    if port:
        import host

        return host.SerialBoard(port)
    import sim

    return sim.SimulatedBoard(design, **simulated)
