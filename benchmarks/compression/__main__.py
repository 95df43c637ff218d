# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: the compression benchmark.

``python -m benchmarks.compression --data FOLDER`` (``make bench-compression DATA=FOLDER``) trains
and compresses everything, writes each row to ``benchmarks/results/compression.json`` as soon as it
is measured, and ``docs/results/compression.md`` from it. Networks and checkpoints are kept in
``build/compression``: a run that was stopped goes on. Several may run side by side, each with
another ``--only``. Rows and networks that are there are taken as they are: after a change of a
recipe delete the networks, and give ``--fresh``.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.compression import ablation, cifar, criteria, rows, small, tiny
from benchmarks.compression.page import write_page
from hwgen.compress.training import Tick
from hwgen.demo_training import progress_bars

Job = tuple[tuple[str, str, str, str, int], Callable[[Tick], rows.Row]]


def jobs(data: Path | None, cache: Path, only: int | None) -> Iterator[Job]:
    """List every row: its table, network, data, method and seed, and what measures it."""
    seed = only or 0
    for network, source in small.PAIRS:
        if data is None and source != "frames":
            continue
        for method in small.LEVELS:
            key = small.TABLE, network, source, method, seed
            yield key, partial(small.run, network, source, method, data, cache, seed)
    for method in ablation.METHODS:
        key = ablation.TABLE, ablation.NETWORK, ablation.DATA, method, seed
        yield key, partial(ablation.run, method, cache, seed)
    for method in criteria.METHODS:
        key = criteria.TABLE, criteria.NETWORK, criteria.DATA, method, seed
        yield key, partial(criteria.run, method, cache, seed)
    if data is None:
        return
    for recipe in cifar.RECIPES:
        for method in cifar.methods(recipe):
            seeds = cifar.SEEDS.get((recipe.network, method), (0,)) if only is None else (only,)
            for chosen in seeds:
                key = cifar.TABLE, recipe.network, cifar.DATA, method, chosen
                yield key, partial(cifar.run, recipe, method, data, cache, chosen)
    for method in tiny.METHODS:
        key = tiny.TABLE, tiny.NETWORK, tiny.DATA, method, seed
        yield key, partial(tiny.run, method, data, cache, seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing; return 1 if a row failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression")
    parser.add_argument(
        "--data", type=Path, help="folder with the data; the bundled frames without"
    )
    parser.add_argument("--only", nargs="*", help="words that a row's name must hold, all of them")
    parser.add_argument("--seed", type=int, help="of all rows, in place of each one's own")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", type=Path, default=Path("build/compression"))
    parser.add_argument("--fresh", action="store_true", help="measure rows that are there anew")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    console, failed = Console(), 0
    with progress_bars() as tick:
        for key, measure in jobs(arguments.data, arguments.cache, arguments.seed):
            name = ", ".join((*key[:-1], f"seed {key[-1]}"))
            if any(word not in name for word in arguments.only or ()):
                continue
            if rows.has(*key) and not arguments.fresh:
                continue
            try:
                row = measure(tick)
            except (ValueError, FileNotFoundError) as error:
                traceback.print_exc()
                console.print(f"[red]{name}: {error}")
                failed = 1
                continue
            rows.write(row)
            saved = 1 - row.macs / row.baseline_macs, 1 - row.cycles / row.baseline_cycles
            console.print(
                f"{name}: {row.baseline_accuracy:.2%} -> {row.accuracy:.2%} "
                f"(int8 {row.int8_accuracy:.2%}), MACs -{saved[0]:.1%}, cycles -{saved[1]:.1%}"
            )
    write_page()
    return failed


if __name__ == "__main__":
    sys.exit(main())
