# SPDX-License-Identifier: Apache-2.0
"""The command line: the project's own pages and its demo."""

from __future__ import annotations

import argparse

from hwgen.cli.console import Report


def docs(arguments: argparse.Namespace) -> Report:
    """Write the reference pages (instruction set, register map) from the contract."""
    from hwgen.reference import write_pages

    pages = write_pages(arguments.out)
    print("\n".join(map(str, pages)))
    return {"pages": [str(page) for page in pages]}


def demo(arguments: argparse.Namespace) -> Report:
    """Train, compress, compile and run the demo on simulated RTL, and report."""
    from sim.demo import run_demo

    return run_demo(arguments.out, seed=arguments.seed, frames=arguments.frames)
