"""Strict tools are part of the tests: one command checks everything."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=" ".join,
)
def test_tool_is_content(command: list[str]) -> None:
    """Lint, format and strict types, with the configuration of pyproject.toml."""
    if importlib.util.find_spec(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_file_has_its_own_stores_in_memory() -> None:
    """All tests and doctests of a process share that memory, in any order of files."""
    found: dict[str, set[str]] = {}
    for root in ("src", "tests"):
        for path in (ROOT / root).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            for name in re.findall(r"memory://([\w.-]+\.zarr)", text):
                found.setdefault(name, set()).add(path.name)
    assert found
    assert not {name: files for name, files in found.items() if len(files) > 1}
