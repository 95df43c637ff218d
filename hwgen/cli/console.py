# SPDX-License-Identifier: Apache-2.0
"""The command line: what its verbs print with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Report = dict[str, Any]

KINDS = ("dsp", "bram36", "lut", "ff")
"""Kinds of a board's budget, in the order of the tables."""


class UsageError(ValueError):
    """The command line asks for something that does not exist; the message says what does."""


def config_text(config: Any) -> str:
    """Return the numbers of a configuration that one chooses, short."""
    split = "" if config.dsp_lanes >= config.ti else f" ({config.dsp_lanes})"
    return (
        f"{config.tn}x{config.ti}x{config.tp}{split}, {config.scratchpad_banks}x"
        f"{config.scratchpad_bank_words}, {config.synapse_rows}, {config.tap_entries}"
    )


def errors() -> Any:
    """Return a console on standard error, where progress goes."""
    from rich.console import Console

    return Console(stderr=True)


def table(
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
