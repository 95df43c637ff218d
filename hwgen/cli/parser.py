# SPDX-License-Identifier: Apache-2.0
"""The command line: its verbs and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from hwgen.cli import backends, boards, bundles, compress, project
from hwgen.cli.console import Report


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs; each sets the function that runs it."""
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

    sub = verb("compile", backends.compile_network)
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

    sub = verb("compress", compress.compress)
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
    sub.add_argument(
        "--integer-epochs",
        type=int,
        default=0,
        metavar="EPOCHS",
        help="train the result's int8 integers on, and compile them into a bundle",
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

    sub = verb("estimate", bundles.estimate)
    sub.add_argument("bundle", type=Path)
    sub.add_argument("--board", default="pynq-z2", help="board whose clock and memory to assume")

    sub = verb("run", bundles.run)
    sub.add_argument("bundle", type=Path)
    sub.add_argument("--input", type=Path, help=".npy float32 (N, C, H, W); random if not given")
    sub.add_argument("--count", type=int, default=1, help="random images to run")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--on", choices=("rtl", "interpreter"), default="rtl")
    sub.add_argument("--port", help="run on the board at this serial port (/dev/ttyUSB0, COM3)")

    sub = verb("profile", bundles.profile)
    sub.add_argument("bundle", type=Path)
    sub.add_argument("--board", default="pynq-z2", help="board whose clock and memory to assume")
    sub.add_argument("--seed", type=int, default=0, help="of the random image")
    sub.add_argument("--out", type=Path, default=Path("build/profile"), help="folder to write")

    sub = verb("emit", backends.emit)
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

    sub = verb("compare", backends.compare)
    sub.add_argument("model", help="as for compile")
    _hls_arguments(sub)
    sub.add_argument("--board", default="pynq-z2", help="board name or TOML file")
    sub.add_argument("--rtl", action="store_true", help="run the images on the RTL as well")
    sub.add_argument("--out", type=Path, default=Path("build/compare"), help="folder to write")

    sub = verb("resources", boards.resources)
    sub.add_argument("--board", default="pynq-z2", help="board name or TOML file")
    sub.add_argument("--limit", type=float, default=85, help="percent of a resource to use at most")
    sub.add_argument("--cache", type=Path, default=Path("build/resources"))
    sub.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="write the result to FILE with what stood there before as `previous`",
    )

    sub = verb("place", boards.place)
    sub.add_argument("--board", default="ulx3s-85f", help="board name or TOML file, flow 'open'")
    sub.add_argument("--seed", type=int, default=1, help="of the placer")
    sub.add_argument("--mhz", type=float, help="clock to aim at; the board's if not given")
    sub.add_argument(
        "--out", type=Path, default=Path("build/shears.bit"), help="bitstream to write"
    )
    sub.add_argument("--cache", type=Path, default=Path("build/place"))

    sub = verb("build", boards.build)
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

    sub = verb("selftest", bundles.selftest)
    sub.add_argument("--overlay", metavar="FILE.bit", help="test this board, with this bitstream")
    sub.add_argument("--port", help="test the board at this serial port (/dev/ttyUSB0, COM3)")
    sub.add_argument("--ip", help="name of the accelerator, where the overlay holds several")
    sub.add_argument("--bundle", type=Path, help="simulate this bundle's configuration")
    sub.add_argument("--board", default="pynq-z2", help="board whose configuration to simulate")
    sub.add_argument("--seed", type=int, default=0, help="of all test data")
    sub.add_argument("--timeout", type=float, default=30, metavar="SECONDS", help="for one program")

    sub = verb("package", bundles.package)
    sub.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE", help="folder or cascade")
    sub.add_argument("--board", default="pynq-z2", help="board name or TOML file")
    sub.add_argument(
        "--bitstream", type=Path, metavar="DIR", help="folder of .bit and .hwh; build/BOARD"
    )
    sub.add_argument("--notebooks", type=Path, metavar="DIR", help="folder; notebooks")
    sub.add_argument("--out", type=Path, metavar="FILE.tar.gz", help="build/shears-BOARD.tar.gz")

    sub = verb("explore", boards.explore)
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

    sub = verb("disassemble", bundles.disassemble)
    sub.add_argument("bundle", type=Path)

    verb("boards", boards.boards)

    sub = verb("docs", project.docs)
    sub.add_argument("--out", type=Path, default=Path("docs"))

    sub = verb("demo", project.demo)
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
