"""Stores of earlier versions open, read, verify, resume and grow in this one.

Law: `docs/compatibility.md`. Each folder below ``tests/data/stores`` is named after the version
that wrote it, and holds stores of every format that this version wrote, with the digests of what
was in them. Stores are written once, by ``python -m tests.test_compatibility``, at a release, and
never again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import zarr

import patchloom
from patchloom.store.schema import manifest_name

STORES = Path(__file__).parent / "data" / "stores"
VERSIONS = sorted(path for path in STORES.iterdir() if (path / "truth.json").is_file())
SHAPES = {"a": (2, 48, 40), "b": (2, 32, 56), "c": (2, 40, 40)}
ROOT = "memory://frozen"
NORMALIZED: dict[str, Any] = {"normalize": "percentile", "percentiles": (2.0, 98.0)}


def pixels(name: str) -> npt.NDArray[np.uint16]:
    """An image by arithmetic: the same in every version of NumPy."""
    c, y, x = np.indices(SHAPES[name])
    found = (7 * y + 3 * x + 11 * y * x) % 4093 + 500 * c + 100 * ord(name)
    return np.asarray(found, np.uint16)


def parts(name: str) -> dict[str, npt.NDArray[Any]]:
    """What stands beside an image."""
    _, y, x = np.indices(SHAPES[name])
    return {
        "mask": ((y + x) > 20)[0].astype(np.uint8),
        "labels": (y // 16 + x // 16)[0].astype(np.uint8),
        "target": pixels(name)[:1].astype(np.float32) / 8,
    }


def put(names: str) -> pa.Table:
    """Sources in memory, and the table that names them."""
    fs = fsspec.filesystem("memory")
    if fs.exists("/frozen"):
        fs.rm("/frozen", recursive=True)
    for name in names:
        for part, data in {"image": pixels(name), **parts(name)}.items():
            chunks = (*[1] * (data.ndim - 2), 16, 16)
            zarr.create_array(
                f"{ROOT}/{name}.{part}.zarr",
                data=data,
                chunks=chunks,
                dimension_names=["c", "y", "x"][-data.ndim :],
            )
    told = {part: [f"{ROOT}/{n}.{part}.zarr" for n in names] for part in ("image", *parts("a"))}
    return pa.table({"id": [*names], "donor": [f"donor {n}" for n in names], **told})


def planned(names: str) -> Any:
    """The plan of the frozen stores."""
    images = patchloom.open_images(put(names))
    return patchloom.plan(
        images,
        {"name": "sequential", "patch_size": [16, 16]},
        min_coverage=0.25,
        split={"by": "donor"},
        order="shuffled",
        seed=3,
        rows_per_shard=4,
    )


def lose_a_chunk() -> None:
    """Damage one chunk of image a, which then cannot be read."""
    fs = fsspec.filesystem("memory")
    body = fs.cat_file("/frozen/a.image.zarr/c/0/1/1")
    fs.pipe_file("/frozen/a.image.zarr/c/0/1/1", body[: len(body) // 2])


def write(folder: Path) -> None:
    """The stores of this version, and their truth."""
    quiet: dict[str, Any] = {"progress": False}
    patchloom.materialize(planned("ab"), folder / "whole.zarr", **quiet)
    patchloom.materialize(planned("ab"), folder / "appended.zarr", **NORMALIZED, **quiet)
    patchloom.materialize(planned("abc"), folder / "appended.zarr", **NORMALIZED, **quiet)
    plan = planned("ab")
    lose_a_chunk()
    patchloom.materialize(plan, folder / "gaps.zarr", on_error="skip", **quiet)
    truth = {path.name: told(path) for path in sorted(folder.glob("*.zarr"))}
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    for path in folder.glob("*.report"):
        shutil.rmtree(path)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def told(path: Path) -> dict[str, Any]:
    """What a store says of itself, through the reader of this version."""
    store = patchloom.open_patches(path)
    rows = store.manifest.column("row").to_pylist()
    found: dict[str, Any] = {
        "format": store.attributes["format"],
        "complete": store.complete,
        "rows": len(rows),
    }
    group = zarr.open_group(path, mode="r")
    for name in store.attributes["arrays"]:
        read = np.stack([np.asarray(group[name][row]) for row in rows])
        found[name] = [str(read.dtype), digest(np.ascontiguousarray(read).tobytes())]
    table = store.manifest.to_pylist()
    found["manifest"] = digest(json.dumps(table, sort_keys=True).encode())
    statistics = store.statistics
    found["percentile"] = statistics.percentile.values.tolist()
    found["count"] = statistics["count"].values.tolist()
    return found


def stores() -> list[Any]:
    return [
        pytest.param(folder, name, id=f"{folder.name}-{name}")
        for folder in VERSIONS
        for name in json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(("folder", "name"), stores())
def test_stores_of_earlier_versions_read_as_they_were(folder: Path, name: str) -> None:
    """The same pixels, rows and statistics as on the day they were written."""
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    assert told(folder / name) == truth[name]


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_pixels_are_those_of_the_images(folder: Path) -> None:
    """Rows of the plain store equal the slices that the manifest names."""
    store = patchloom.open_patches(folder / "whole.zarr")
    assert store.labels is not None
    for row in store.manifest.to_pylist():
        name, y, x = row["image_id"], row["start_y"], row["start_x"]
        box = (slice(None), slice(y, y + 16), slice(x, x + 16))
        np.testing.assert_array_equal(store[row["row"]], pixels(name)[box])
        np.testing.assert_array_equal(store.labels[row["row"]], parts(name)["labels"][None][box])
        assert row["donor"] == f"donor {name}"


@pytest.mark.parametrize(("folder", "name"), stores())
def test_stores_of_earlier_versions_are_sound(folder: Path, name: str, tmp_path: Path) -> None:
    """They pass the checks of this version, against their sources too."""
    out = tmp_path / name
    shutil.copytree(folder / name, out)
    put("abc")
    report = patchloom.verify(out, progress=False)
    assert report.ok, report.damage
    assert report.n_compared > 0


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_stores_of_earlier_versions_are_finished(folder: Path, tmp_path: Path) -> None:
    """A shard that is lost, and rows that were left out, are made as they would have been."""
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    for name in ("whole.zarr", "gaps.zarr"):
        out = tmp_path / name
        shutil.copytree(folder / name, out)
        if name == "whole.zarr":
            (out / manifest_name(1)).unlink()
        report = patchloom.materialize(planned("ab"), out, progress=False)
        assert report.complete
        assert 0 < report.already_done < report.already_done + report.n_shards
        found = told(out)
        assert found == truth["whole.zarr"]


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_stores_of_earlier_versions_grow(folder: Path, tmp_path: Path) -> None:
    """One more image: old rows stay, and what comes out is what was appended then."""
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    out = tmp_path / "whole.zarr"
    shutil.copytree(folder / "whole.zarr", out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and "c" in p.parts}
    assert patchloom.materialize(planned("abc"), out, progress=False).complete
    found = told(out)
    assert (found["format"], found["complete"]) == (2, True)
    assert found["manifest"] == truth["appended.zarr"]["manifest"]
    assert found["labels"] == truth["appended.zarr"]["labels"]
    assert {p: p.read_bytes() for p in before} == before


if __name__ == "__main__":
    write(STORES / patchloom.__version__)
