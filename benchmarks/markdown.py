# SPDX-License-Identifier: Apache-2.0
"""The benchmarks room: paragraphs and tables of the pages that the benchmarks write."""

from __future__ import annotations


def text(words: str) -> str:
    """Join a paragraph that is broken into lines in the source."""
    return " ".join(words.split())


def table(head: str, align: str, lines: list[list[str]]) -> str:
    """Return a table; `align` has a character a column, l or r."""
    ruler = "|".join({"l": "---", "r": "---:"}[a] for a in align)
    return "\n".join([f"| {head} |", f"|{ruler}|", *(f"| {' | '.join(line)} |" for line in lines)])
