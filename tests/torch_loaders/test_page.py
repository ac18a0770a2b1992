"""The page on training: all its code runs where PyTorch and Keras are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.test_docs import ROOT, blocks

pytest.importorskip("torch")
pytest.importorskip("keras")

pytestmark = pytest.mark.filterwarnings("default")
DEMO = "src/patchloom/demo"


@pytest.mark.parametrize("name", ["training.md"])
def test_code_of_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom."""
    page = ROOT / "docs" / name
    shutil.copytree(ROOT / DEMO, tmp_path / DEMO)
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "page"}
    for block in blocks(page):
        if block.kind in ("python", "py"):
            exec(compile("\n" * block.line + block.text, str(page), "exec"), space)
