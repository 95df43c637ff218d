# SPDX-License-Identifier: Apache-2.0
"""The generator room: the `shears` command, which joins generator, hardware, simulation and host.

Rooms are imported by the verb that needs them, so that `shears --help` is quick and a board needs
only what it runs.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hwgen.arch.files import write_json

Report = dict[str, Any]

#: Kinds of a board's budget, in the order of the tables.
_KINDS = ("dsp", "bram36", "lut", "ff")


class UsageError(ValueError):
    """The command line asks for something that does not exist; the message says what does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status (1 after a clear error, 2 for a wrong command line)."""
    arguments = _parser().parse_args(argv)
    arguments.command = shlex.join(["shears", *(sys.argv[1:] if argv is None else argv)])
    try:
        if arguments.json and arguments.json.is_dir():
            raise UsageError(f"--json must be a file to write, not the folder {arguments.json}")
        report = arguments.verb(arguments)
        if arguments.json:
            write_json(arguments.json, report)
    except ImportError as error:
        print(f"shears {arguments.name}: {error}; try pip install 'shears[all]'", file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        print(f"shears {arguments.name}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"shears {arguments.name}: stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shears",
        description="From a PyTorch CNN to a small FPGA: compile, estimate, simulate, emit.",
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], Report]) -> argparse.ArgumentParser:
        text = (run.__doc__ or "").splitlines()[0]
        sub = verbs.add_parser(name, help=text, description=text)
        sub.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
        sub.set_defaults(verb=run, name=name)
        return sub

    sub = verb("compile", _compile)
    sub.add_argument(
        "model",
        help="FILE.py:NAME, package.module:NAME (a module or a function that "
        "returns one) or FILE.onnx",
    )
    sub.add_argument("--weights", type=Path, help="state dict (torch.save) to load")
    sub.add_argument(
        "--calibration",
        type=Path,
        required=True,
        help=".npy or .npz (key 'images') of float32 (N, C, H, W); mean, std and labels in the "
        ".npz go into the bundle",
    )
    sub.add_argument("--board", default="pynq-z2", help="board name or TOML file")
    sub.add_argument("--scheme", default="affine", choices=("affine", "power_of_two"))
    sub.add_argument("--observer", default="mse", choices=("minmax", "percentile", "mse"))
    sub.add_argument("--batch", type=int, default=1, help="images that one run takes")
    sub.add_argument("--out", type=Path, required=True, help="bundle folder to write")

    sub = verb("compress", _compress)
    sub.add_argument(
        "model",
        help="FILE.py:NAME or package.module:NAME: a classifier, or a function that returns one",
    )
    sub.add_argument("--weights", type=Path, help="state dict (torch.save) of the trained network")
    sub.add_argument(
        "--train", type=int, default=0, metavar="EPOCHS", help="train it first, for so many epochs"
    )
    sub.add_argument(
        "--data",
        required=True,
        help="frames (the bundled ones), FILE.npz with train_images, train_labels, ..., or a "
        "folder with {train,val,test}/CLASS/PICTURE or CIFAR-10's python batches",
    )
    sub.add_argument("--side", type=int, help="height and width that all images are resized to")
    sub.add_argument(
        "--mean",
        metavar="R,G,B",
        help="of pixels in [0, 1], as the network was trained: 0.485,0.456,0.406 for torchvision's",
    )
    sub.add_argument(
        "--std", metavar="R,G,B", help="likewise; without both it is fed (pixel / 255 - 0.5) / 0.25"
    )
    sub.add_argument("--budget", default="1%", help="validation accuracy to lose: 1%% or 0.01")
    sub.add_argument("--cost", default="cycles", choices=("cycles", "steps", "macs", "parameters"))
    sub.add_argument("--board", default="pynq-z2", help="board name or TOML file")
    sub.add_argument(
        "--methods", default="trim,lower,approximate,slices", help="which of these, with commas"
    )
    sub.add_argument("--epochs", type=int, default=10, help="of fine-tuning at the end")
    sub.add_argument(
        "--step-epochs",
        type=float,
        default=1.0,
        help="between steps; 0.25 is a quarter of the data",
    )
    sub.add_argument("--max-steps", type=int, default=1000, help="before slices are lowered")
    sub.add_argument(
        "--rejections", type=int, default=3, help="of steps that lose too much, before the last"
    )
    sub.add_argument(
        "--learning-rate",
        type=float,
        default=2e-3,
        help="of fine-tuning, at its peak; half of it between steps; --train has its own",
    )
    sub.add_argument("--flip", action="store_true", help="mirror training images at random")
    sub.add_argument("--shift", type=int, default=0, metavar="PIXELS", help="move them at random")
    sub.add_argument(
        "--no-distill", action="store_true", help="do not learn the original's answers"
    )
    sub.add_argument("--device", default="cpu", help="what trains: cpu, cuda, ...")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument(
        "--out", type=Path, default=Path("build/compress"), help="folder to write, and to go on in"
    )

    sub = verb("estimate", _estimate)
    sub.add_argument("bundle", type=Path)
    sub.add_argument("--board", default="pynq-z2", help="board whose clock and memory to assume")

    sub = verb("run", _run)
    sub.add_argument("bundle", type=Path)
    sub.add_argument("--input", type=Path, help=".npy float32 (N, C, H, W); random if not given")
    sub.add_argument("--count", type=int, default=1, help="random images to run")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--on", choices=("rtl", "interpreter"), default="rtl")
    sub.add_argument("--port", help="run on the board at this serial port (/dev/ttyUSB0, COM3)")

    sub = verb("profile", _profile)
    sub.add_argument("bundle", type=Path)
    sub.add_argument("--board", default="pynq-z2", help="board whose clock and memory to assume")
    sub.add_argument("--seed", type=int, default=0, help="of the random image")
    sub.add_argument("--out", type=Path, default=Path("build/profile"), help="folder to write")

    sub = verb("emit", _emit)
    sub.add_argument("model", nargs="?", help="for hls4ml: as for compile")
    sub.add_argument(
        "--backend",
        default="amaranth",
        choices=("amaranth", "hls4ml"),
        help="amaranth: the accelerator, for any network; hls4ml: one network as an HLS project",
    )
    _hls_arguments(sub)
    sub.add_argument("--board", default="pynq-z2", help="board name or TOML file")
    sub.add_argument(
        "--out", type=Path, help="Verilog file or project folder; build/shears.v, build/hls4ml"
    )

    sub = verb("compare", _compare)
    sub.add_argument("model", help="as for compile")
    _hls_arguments(sub)
    sub.add_argument("--board", default="pynq-z2", help="board name or TOML file")
    sub.add_argument("--rtl", action="store_true", help="run the images on the RTL as well")
    sub.add_argument("--out", type=Path, default=Path("build/compare"), help="folder to write")

    sub = verb("resources", _resources)
    sub.add_argument("--board", default="pynq-z2", help="board name or TOML file")
    sub.add_argument("--limit", type=float, default=85, help="percent of a resource to use at most")
    sub.add_argument("--cache", type=Path, default=Path("build/resources"))
    sub.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="write the result to FILE with what stood there before as `previous`",
    )

    sub = verb("place", _place)
    sub.add_argument("--board", default="ulx3s-85f", help="board name or TOML file, flow 'open'")
    sub.add_argument("--seed", type=int, default=1, help="of the placer")
    sub.add_argument("--mhz", type=float, help="clock to aim at; the board's if not given")
    sub.add_argument(
        "--out", type=Path, default=Path("build/shears.bit"), help="bitstream to write"
    )
    sub.add_argument("--cache", type=Path, default=Path("build/place"))

    sub = verb("build", _build)
    sub.add_argument("--board", default="pynq-z2", help="board name or TOML file")
    sub.add_argument("--out", type=Path, help="folder to write; build/BOARD if not given")
    sub.add_argument("--seed", type=int, default=1, help="of nextpnr's placer (flow 'open')")
    sub.add_argument(
        "--cache", type=Path, default=Path("build/place"), help="finished runs (flow 'open')"
    )
    sub.add_argument("--jobs", type=int, default=2, help="processes that Vivado may start")
    sub.add_argument(
        "--timeout", type=float, default=240, metavar="MINUTES", help="stop Vivado after so many"
    )
    sub.add_argument("--any-version", action="store_true", help="go on with an untried Vivado")
    sub.add_argument("--write-only", action="store_true", help="write the files, run no Vivado")

    sub = verb("selftest", _selftest)
    sub.add_argument("--overlay", metavar="FILE.bit", help="test this board, with this bitstream")
    sub.add_argument("--port", help="test the board at this serial port (/dev/ttyUSB0, COM3)")
    sub.add_argument("--ip", help="name of the accelerator, where the overlay holds several")
    sub.add_argument("--bundle", type=Path, help="simulate this bundle's configuration")
    sub.add_argument("--board", default="pynq-z2", help="board whose configuration to simulate")
    sub.add_argument("--seed", type=int, default=0, help="of all test data")
    sub.add_argument("--timeout", type=float, default=30, metavar="SECONDS", help="for one program")

    sub = verb("package", _package)
    sub.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE", help="folder or cascade")
    sub.add_argument("--board", default="pynq-z2", help="board name or TOML file")
    sub.add_argument(
        "--bitstream", type=Path, metavar="DIR", help="folder of .bit and .hwh; build/BOARD"
    )
    sub.add_argument("--notebooks", type=Path, metavar="DIR", help="folder; notebooks")
    sub.add_argument("--out", type=Path, metavar="FILE.tar.gz", help="build/shears-BOARD.tar.gz")

    sub = verb("explore", _explore)
    sub.add_argument("--board", default="pynq-z2", help="board name or TOML file")
    sub.add_argument(
        "--network",
        action="append",
        required=True,
        metavar="NETWORK",
        help="resnet8, resnet20, mobilenet_v1, ... (random weights), FILE.py:NAME, "
        "package.module:NAME or FILE.onnx; more than one is costed together",
    )
    sub.add_argument("--input", default="3x32x32", metavar="CxHxW", help="not for FILE.onnx")
    sub.add_argument("--limit", type=float, default=85, help="percent of a resource to use at most")
    sub.add_argument("--rows", type=int, default=24, help="rows of the table; --json has all")
    sub.add_argument("--seed", type=int, default=0, help="of random weights and pictures")
    sub.add_argument("--cache", type=Path, default=Path("build/explore"))

    sub = verb("disassemble", _disassemble)
    sub.add_argument("bundle", type=Path)

    verb("boards", _boards)

    sub = verb("docs", _docs)
    sub.add_argument("--out", type=Path, default=Path("docs"))

    sub = verb("demo", _demo)
    sub.add_argument("--out", type=Path, default=Path("build/demo"))
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--frames", type=int, default=64, help="test frames run on the RTL")
    return parser


def _hls_arguments(sub: argparse.ArgumentParser) -> None:
    """Add what the verbs that make an hls4ml project take."""
    sub.add_argument("--weights", type=Path, help="state dict (torch.save) to load")
    sub.add_argument("--calibration", type=Path, help=".npy or .npz, as for compile")
    sub.add_argument("--scheme", default="power_of_two", choices=("affine", "power_of_two"))
    sub.add_argument("--observer", default="mse", choices=("minmax", "percentile", "mse"))
    sub.add_argument("--io", default="io_stream", choices=("io_stream", "io_parallel"))
    sub.add_argument(
        "--hls", default="Vitis", choices=("Vitis", "Vivado", "VivadoAccelerator"), help="its tool"
    )
    sub.add_argument(
        "--target", default="latency", help="latency, resource, or cycles that it may take"
    )
    sub.add_argument("--limit", type=float, default=85, help="percent of a resource to use at most")
    sub.add_argument("--count", type=int, default=32, help="calibration images to compare")


def _compile(arguments: argparse.Namespace) -> Report:
    """Compile a PyTorch or ONNX network into a bundle."""
    from hwgen.backends import program
    from hwgen.boards import load_board

    board = load_board(arguments.board)
    graph, calibration, name = _quantized(arguments)
    bundle = program.emit(
        graph,
        board.config,
        name=name,
        preprocess=calibration.preprocess,
        labels=calibration.labels,
        batch=arguments.batch,
    )
    bundle.save(arguments.out)
    print(f"{arguments.out}: {bundle.macs:,} MACs, {len(bundle.constants):,} bytes of constants")
    return {"bundle": str(arguments.out), "macs": bundle.macs, "name": name}


def _quantized(arguments: argparse.Namespace) -> tuple[Any, Any, str]:
    """Load and quantize a network; return its graph, its `Calibration` and its name."""
    from hwgen.frontend import from_onnx
    from hwgen.passes.pipeline import to_fused
    from hwgen.quantize import quantize, quantize_model, read_calibration

    if arguments.model is None or arguments.calibration is None:
        raise UsageError(
            "a network is needed: FILE.py:NAME, package.module:NAME or FILE.onnx, and images "
            "with --calibration FILE"
        )
    calibration = read_calibration(arguments.calibration)
    images = calibration.images
    model = _load_model(arguments.model, arguments.weights)
    how: dict[str, Any] = {"scheme": arguments.scheme, "observer": arguments.observer}
    if isinstance(model, Path):
        graph = quantize(to_fused(from_onnx(model)), images, **how)
    else:
        import torch

        graph = quantize_model(model, torch.from_numpy(images[:1]), images, **how)
    return graph, calibration, Path(arguments.model.partition(":")[0]).stem


def _load_model(text: str, weights: Path | None) -> Any:
    """Load FILE.py:NAME, package.module:NAME or FILE.onnx."""
    import importlib
    import importlib.util

    if text.endswith(".onnx"):
        return Path(text)
    place, _, name = text.rpartition(":")
    if not place:
        raise UsageError(
            f"MODEL must be FILE.py:NAME, package.module:NAME or FILE.onnx, not {text!r}"
        )
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location(f"shears_model_{Path(place).stem}", place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            raise UsageError(f"there is no file {place!r}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        with _neighbours(place):
            spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise UsageError(f"{error}; give FILE.py:NAME or an installed module") from error
    if not hasattr(module, name):
        names = [held for held in sorted(vars(module)) if not held.startswith("_")]
        raise UsageError(f"{place} has no {name!r}; it has {names}")
    import torch

    model = getattr(module, name)
    if callable(model) and not isinstance(model, torch.nn.Module):
        with _neighbours(place):
            model = model()
    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"{text} must be a torch.nn.Module or a function without arguments that returns one, "
            f"not {type(model).__name__}"
        )
    if weights is not None:
        from hwgen.compress import insert_approximations, load_compressed

        # Of the network as it is, or of its compressed form, which has other shapes.
        state = _state_dict(weights)
        model = load_compressed(insert_approximations(model, state), state)
    return model.eval()


@contextmanager
def _neighbours(place: str) -> Iterator[None]:
    """Let a file of a network import the modules beside it, and name it where an import fails."""
    beside = [str(Path(place).resolve().parent)] if place.endswith(".py") else []
    sys.path[:0] = beside
    try:
        yield
    except ImportError as error:
        raise UsageError(f"{place} cannot be imported: {error}; is it there?") from error
    finally:
        for path in beside:
            sys.path.remove(path)


def _state_dict(path: Path) -> dict[str, Any]:
    """Load a state dict; refuse anything else that torch.save may have written, or another file."""
    import torch

    from hwgen.compress.training import load_saved

    what = f"a state dict, as torch.save(model.state_dict(), {path.name!r}) writes"
    held = load_saved(path, what, "cpu")
    if not isinstance(held, dict):
        raise UsageError(f"{path} must be {what}, not {type(held).__name__}")
    others = [key for key, value in held.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UsageError(
            f"{path} must be {what}, and hold tensors alone, not {others[:5]} too; try saving the "
            "state dict that may be in it by itself"
        )
    return held


def _compress(arguments: argparse.Namespace) -> Report:
    """Compress a trained network within an accuracy budget, and report."""
    import math
    from dataclasses import replace

    import torch

    from hwgen.boards import load_board
    from hwgen.compress import (
        Augment,
        CompressionConfig,
        compress_network,
        parse_budget,
        with_preprocess,
    )
    from hwgen.compress.report import summary_rows
    from hwgen.datasets import load_splits
    from hwgen.demo_training import progress_bars

    augment = Augment(flip=arguments.flip, shift=arguments.shift)
    if not 0.0 <= arguments.step_epochs < math.inf:
        raise UsageError(f"--step-epochs must be at least 0, not {arguments.step_epochs!r}")
    try:
        torch.empty(0, device=arguments.device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        raise UsageError(
            f"--device must be 'cpu', or one that torch has here, such as 'cuda' where there is a "
            f"GPU, not {arguments.device!r}"
        ) from error
    if (arguments.mean is None) != (arguments.std is None):
        raise UsageError("--mean and --std must be given together, or none of them")
    load_board(arguments.board)  # that there is none is told before data are loaded
    plain, whole = CompressionConfig(), math.ceil(arguments.step_epochs)
    rate = arguments.learning_rate
    config = CompressionConfig(
        max_loss=parse_budget(arguments.budget),
        methods=tuple(arguments.methods.split(",")),
        cost=arguments.cost,
        board=arguments.board,
        learn=replace(plain.learn, epochs=arguments.train, augment=augment),
        step=replace(plain.step, epochs=whole, learning_rate=rate / 2, augment=augment),
        step_share=arguments.step_epochs / whole if whole > 0 else 1.0,
        finish=replace(plain.finish, epochs=arguments.epochs, learning_rate=rate, augment=augment),
        distill=not arguments.no_distill,
        max_steps=arguments.max_steps,
        rejections=arguments.rejections,
        seed=arguments.seed,
    )
    torch.manual_seed(arguments.seed)  # a network that is trained from the start
    model = _load_model(arguments.model, arguments.weights)
    if isinstance(model, Path):
        raise UsageError(
            f"MODEL must be a network that can be trained, not {arguments.model!r}: an ONNX file "
            "holds none; give the torch.nn.Module that it was exported from as FILE.py:NAME, and "
            "its --weights"
        )
    if arguments.mean is not None:
        mean, std = (_numbers(f"--{key}", getattr(arguments, key)) for key in ("mean", "std"))
        model = with_preprocess(model, mean, std)
    splits = load_splits(arguments.data, arguments.side, arguments.seed)
    try:
        with progress_bars() as tick:
            _, report = compress_network(
                model.to(arguments.device),
                splits,
                arguments.out,
                config,
                progress=tick,
                notes=lambda line: print(f"shears compress: {line}", file=sys.stderr),
                described={
                    "model": arguments.model,
                    "weights": str(arguments.weights or ""),
                    "data": arguments.data,
                    "run": arguments.command,
                },
            )
    except KeyboardInterrupt:
        print(
            f"shears compress: stopped; the same command goes on from {arguments.out}",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    _table(
        f"{arguments.model}: {100 * report.saved_cycles:.1f} % fewer cycles on {report.board}, "
        f"at most {100 * config.max_loss:g} points lost",
        ("", "before", "after", "change"),
        summary_rows(report),
        words=1,
    )
    out: Path = arguments.out
    command = ("shears", "compile", arguments.model, "--weights", str(out / "compressed.pt"),
               "--calibration", str(out / "calibration.npz"), "--board", arguments.board,
               "--out", str(out / "bundle"))  # fmt: skip
    files = "report.html, report.json, compressed.pt, calibration.npz"
    if arguments.train:
        files += ", original.pt (the network before)"
    print(f"{out}: {files}. To compile:\n  {shlex.join(command)}")
    return report.to_dict()


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """Return the numbers of R,G,B, or the one for all channels."""
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} must be numbers with commas between, such as 0.485,0.456,0.406, not {text!r}"
        ) from None


def _estimate(arguments: argparse.Namespace) -> Report:
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
    _table(
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


def _run(arguments: argparse.Namespace) -> Report:
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


def _device(port: str | None, design: Any, **simulated: Any) -> Any:
    """Return the board at a serial port, or a simulated one."""
    if port:
        import host

        return host.SerialBoard(port)
    import sim

    return sim.SimulatedBoard(design, **simulated)


def _profile(arguments: argparse.Namespace) -> Report:
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
    _table(
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


def _emit(arguments: argparse.Namespace) -> Report:
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
    graph, calibration, _ = _quantized(arguments)
    images = calibration.images
    project, images = _hls_project(arguments, graph, images, arguments.out or Path("build/hls4ml"))
    found = project.estimate
    _table(
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
    with _errors().status("g++ compiles hls4ml's model"):
        project.compile(images)
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


def _compare(arguments: argparse.Namespace) -> Report:
    """Put both back ends side by side for one network: cycles, resources, bits."""
    from hwgen.ir import quantize_input
    from sim.compare import compare_backends

    graph, calibration, name = _quantized(arguments)
    images = calibration.images
    project, images = _hls_project(arguments, graph, images, arguments.out)
    with _errors().status("g++ compiles hls4ml's model, images run through both"):
        codes = quantize_input(graph, images)
        found = compare_backends(graph, project, codes, name, rtl=arguments.rtl)
    board = project.board
    sides = {"amaranth": found.amaranth, "hls4ml": found.hls4ml}
    columns = ("cycles", "interval", *_KINDS)
    _table(
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


def _resources(arguments: argparse.Namespace) -> Report:
    """Estimate with Yosys what a board's configuration takes of its FPGA, block by block."""
    from hwgen.boards import load_board
    from rtl.resources import estimate_resources, record

    board = load_board(arguments.board)
    with _errors().status("Yosys synthesises the whole top; minutes") as status:
        found = estimate_resources(
            board.config,
            board.family,
            cache_dir=arguments.cache,
            progress=lambda step: status.update(f"Yosys: {step}"),
        )
    budget = {kind: getattr(board.budget, kind) for kind in _KINDS}
    percent = {kind: 100 * getattr(found, kind) / budget[kind] for kind in _KINDS}
    slowest = {name: f"{ns:.2f}" for name, ns in found.logic_ns.items()}
    rows = [
        (name, *(f"{getattr(b, k):,}" for k in _KINDS), slowest.get(name, ""))
        for name, b in found.per_block.items()
    ]
    worst = f"{max(found.logic_ns.values()):.2f}" if found.logic_ns else ""
    rows.append(("used", *(f"{getattr(found, kind):,}" for kind in _KINDS), worst))
    period = f"{1e9 / board.accelerator_hz:.2f}"
    rows.append((board.part, *(f"{budget[kind]:,}" for kind in _KINDS), period))
    rows.append(("percent", *(f"{percent[kind]:.1f}" for kind in _KINDS), ""))
    title = f"{board.name}: estimates of {found.yosys}; delays without wires"
    _table(title, ("block", *_KINDS, "logic ns"), rows)
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
    over = [f"{percent[k]:.1f} % of {k}" for k in _KINDS if percent[k] > arguments.limit]
    if over:
        raise RuntimeError(
            f"{board.key} takes {', '.join(over)}, more than {arguments.limit:g} %, as Yosys "
            "estimates; try a smaller array or shallower buffers"
        )
    return report


def _place(arguments: argparse.Namespace) -> Report:
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
    with _errors().status("Yosys, nextpnr and ecppack; minutes") as status:
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
        for kind in _KINDS
        for percent in [100 * found.used[kind] / found.available[kind]]
    ]
    _table(f"{board.name}: {config_text(board.config)}", (board.part, "used", "of", "%"), used)
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


def _build(arguments: argparse.Namespace) -> Report:
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
        with _errors().status("Vivado; half an hour or more") as status:
            overlay = vivado.run_vivado(
                folder,
                jobs=arguments.jobs,
                timeout_s=60 * arguments.timeout,
                progress=lambda step: status.update(f"Vivado: {step}"),
            )
    _table(
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
    with _errors().status("Yosys, nextpnr and ecppack; twenty minutes") as status:
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
    _table(
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


def _selftest(arguments: argparse.Namespace) -> Report:
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


def _package(arguments: argparse.Namespace) -> Report:
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


def _explore(arguments: argparse.Namespace) -> Report:
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
        model = named_model(text, arguments.seed) if plain else _load_model(text, None)
        networks[text] = random_network(model, (channels, height, width), arguments.seed)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_errors()) as bar:
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
    _table(
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


def _disassemble(arguments: argparse.Namespace) -> Report:
    """Print a bundle's programs, one instruction a line."""
    from hwgen.arch import Bundle, isa

    bundle = Bundle.load(arguments.bundle)
    setup, program = isa.disassemble(bundle.setup), isa.disassemble(bundle.program)
    print(f"setup\n{setup}\nprogram\n{program}")
    return {"setup": setup.splitlines(), "program": program.splitlines()}


def _boards(arguments: argparse.Namespace) -> Report:
    """List the boards and what each offers."""
    from dataclasses import asdict

    from hwgen.boards import board_names, load_board

    boards = [load_board(name) for name in board_names()]
    _table(
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


def _docs(arguments: argparse.Namespace) -> Report:
    """Write the reference pages (instruction set, register map) from the contract."""
    from hwgen.reference import write_pages

    pages = write_pages(arguments.out)
    print("\n".join(map(str, pages)))
    return {"pages": [str(page) for page in pages]}


def _demo(arguments: argparse.Namespace) -> Report:
    """Train, compress, compile and run the demo on simulated RTL, and report."""
    from sim.demo import run_demo

    return run_demo(arguments.out, seed=arguments.seed, frames=arguments.frames)


def config_text(config: Any) -> str:
    """Return the numbers of a configuration that one chooses, short."""
    split = "" if config.dsp_lanes >= config.ti else f" ({config.dsp_lanes})"
    return (
        f"{config.tn}x{config.ti}x{config.tp}{split}, {config.scratchpad_banks}x"
        f"{config.scratchpad_bank_words}, {config.synapse_rows}, {config.tap_entries}"
    )


def _errors() -> Any:
    """Return a console on standard error, where progress goes."""
    from rich.console import Console

    return Console(stderr=True)


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 2
) -> None:
    """Print a table that fits the terminal; all but the first `words` columns are numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < words else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
