"""Files for Arrow: its threads hold nothing of Python, which may end before them."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import patchloom
from patchloom.arrow_files import arrow_file


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_a_file_is_what_it_was_made_of(n: int) -> None:
    """To the byte, and without a reference to it."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": range(n)}), sink)
    data = sink.getvalue()
    before = sys.getrefcount(data)
    file = arrow_file(data)
    assert sys.getrefcount(data) == before
    assert pq.read_table(file).column("a").to_pylist() == list(range(n))


def test_arrow_is_handed_no_file_of_python() -> None:
    """Wherever a table is read from bytes."""
    readers = {"read_table", "ParquetFile", "read_csv"}
    for path in Path(patchloom.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in readers:
                assert "BytesIO" not in ast.unparse(node), f"{path}: {ast.unparse(node)}"
