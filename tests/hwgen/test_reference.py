# SPDX-License-Identifier: Apache-2.0
"""The tests room: the committed reference pages are those the contract gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwgen.reference import PAGES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(PAGES))
def test_page_is_current(name: str) -> None:
    """If this fails, run `shears docs`."""
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name]().rstrip() + "\n"
