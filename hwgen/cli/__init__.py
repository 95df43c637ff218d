# SPDX-License-Identifier: Apache-2.0
"""The generator room: the `shears` command, which joins generator, hardware, simulation and host.

Rooms are imported by the verb that needs them, so that `shears --help` is quick and a board needs
only what it runs.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from hwgen.arch.files import write_json
from hwgen.cli.console import UsageError
from hwgen.cli.parser import make_parser

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status (1 after a clear error, 2 for a wrong command line)."""
    arguments = make_parser().parse_args(argv)
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
