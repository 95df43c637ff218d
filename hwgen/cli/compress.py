# SPDX-License-Identifier: Apache-2.0
"""The command line: `shears compress`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from hwgen.cli.console import Report, UsageError, table
from hwgen.cli.networks import load_model


def compress(arguments: argparse.Namespace) -> Report:
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
        integers=replace(plain.integers, epochs=arguments.integer_epochs, augment=augment),
        distill=not arguments.no_distill,
        max_steps=arguments.max_steps,
        rejections=arguments.rejections,
        seed=arguments.seed,
    )
    torch.manual_seed(arguments.seed)  # a network that is trained from the start
    model = load_model(arguments.model, arguments.weights)
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
    table(
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
    if arguments.integer_epochs:
        print(f"{out}: bundle (the integers that were trained), {files}")
        return report.to_dict()
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
