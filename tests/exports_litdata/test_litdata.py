"""What is exported for LitData is read by its StreamingDataset, pixel by pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

import patchloom
from tests.test_exports import contents, export, make_store, manifest

litdata = pytest.importorskip("litdata")

# Of litdata and torch; none is ours to mend.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> patchloom.PatchStore:
    """A store on the disk."""
    return make_store(str(tmp_path_factory.mktemp("store") / "s.zarr"))


def read(folder: Path) -> list[dict[str, Any]]:
    """Every item, in order."""
    dataset = litdata.StreamingDataset(str(folder), shuffle=False)
    return [dataset[k] for k in range(len(dataset))]


@pytest.mark.parametrize("where", [None, {"split": "val"}])
def test_streaming_dataset_reads_it(
    where: Any, store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """All arrays and rows of every patch, parts of unequal length included."""
    out = tmp_path / "out"
    report = export(store, "litdata", out, where=where)
    items = read(out)
    rows = manifest(out)["store_row"].to_pylist()
    assert len(items) == len(rows) == report.n_patches
    for k, (item, row) in enumerate(zip(items, rows, strict=True)):
        assert np.array_equal(item["images"], store[row])
        for name in ("labels", "targets"):
            assert np.array_equal(item[name], store.read([row], name)[0])
        told = store.manifest.slice(row, 1).to_pylist()[0]
        assert json.loads(item["row"]) == {**told, "row": k, "store_row": row}


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "float32"])
def test_types_are_kept(dtype: str, tmp_path: Path) -> None:
    """As they are in the store."""
    store = make_store(str(tmp_path / "s.zarr"), dtype)
    export(store, "litdata", tmp_path / "out")
    items = read(tmp_path / "out")
    assert items[0]["images"].dtype == dtype
    assert np.array_equal([item["images"] for item in items], store[:])


def test_whatever_is_lost_is_made_again(store: patchloom.PatchStore, tmp_path: Path) -> None:
    """With the same bytes, on threads too."""
    out = tmp_path / "out"
    with dask.config.set(scheduler="threads", num_workers=2):
        patchloom.export(store, to="litdata", output=out, progress=False)
    whole = contents(out)
    for name in sorted(whole):
        if name == "export.json":
            continue
        (out / name).unlink()
        assert export(store, "litdata", out).n_written <= 1
        assert contents(out) == whole, name
    export(store, "litdata", "memory://for-litdata")
    assert contents("memory://for-litdata") == whole
