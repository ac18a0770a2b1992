"""The page of the fault matrix and its tests are one."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_the_page_names_every_row() -> None:
    """Each test of a fault stands on the page, and each one on the page is there."""
    page = (HERE.parents[1] / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = {
        name
        for path in HERE.glob("test_*.py")
        if path != Path(__file__)
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    assert set(re.findall(r"`(test_\w+)`", page)) == rows
