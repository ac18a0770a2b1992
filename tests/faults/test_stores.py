"""Rows 11 and 13: a disk that is full, and stores of other versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import patchloom
from patchloom.errors import ExistsError, StoreError
from patchloom.planning.plans import Plan
from patchloom.store.schema import APPENDED, manifest_name
from tests.clients import arguments, contents, finish, start

FROZEN = Path(__file__).parents[1] / "data" / "stores" / "format-1.zarr"
"""Written by version 0.1.0: `python -m tests.faults.test_stores`, once, never again."""


def test_a_full_disk_loses_nothing(
    image: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """A refused write stops the run with our error; with room again it ends the same."""
    out = tmp_path / "out.zarr"
    client = start(arguments(image, out, largest_file=100_000))
    _, err = client.communicate(timeout=120)
    assert client.returncode == 2
    assert "WriteError" in err
    assert "finished shards are kept" in err
    assert "patches of output shards" in err
    assert not list(out.rglob("*.part"))
    finish(arguments(image, out))
    assert contents(out) == undisturbed


def old_pixels() -> tuple[Any, Any]:
    """The image and labels of the frozen store."""
    y, x = np.mgrid[:64, :64]
    return (7 * y + 3 * x).astype("uint16"), (y // 16 + x // 16).astype("uint8")


def old_plan() -> Plan:
    """The plan of the frozen store."""
    pixels, labels = old_pixels()
    images = patchloom.open_images(pixels, ids=["old"], labels=labels)
    config = {"name": "sequential", "patch_size": [16, 16]}
    return patchloom.plan(images, config, rows_per_shard=4)


def test_a_store_of_an_older_version_opens_and_is_resumed(tmp_path: Path) -> None:
    """Its rows are what they were; of a shard that is lost, only that is made anew."""
    out = tmp_path / "old.zarr"
    shutil.copytree(FROZEN, out)
    before = contents(out)
    store, (pixels, labels) = patchloom.open_patches(out), old_pixels()
    assert store.labels is not None
    manifest, whole = store.manifest, [np.asarray(a[:]) for a in (store.images, store.labels)]
    for k, (y, x) in enumerate(
        zip(*(manifest[f"start_{a}"].to_pylist() for a in "yx"), strict=True)
    ):
        np.testing.assert_array_equal(store[k][0], pixels[y : y + 16, x : x + 16])
        np.testing.assert_array_equal(whole[1][k][0], labels[y : y + 16, x : x + 16])
    assert store.statistics.percentile.sel(quantile=0.99).item() == np.percentile(pixels, 99)
    (out / manifest_name(2)).unlink()
    report = patchloom.materialize(old_plan(), out, codec="none", progress=False)
    assert (report.complete, report.n_shards, report.already_done) == (True, 1, 3)
    again = patchloom.open_patches(out)
    assert again.labels is not None
    np.testing.assert_array_equal(again.images[:], whole[0])
    np.testing.assert_array_equal(again.labels[:], whole[1])
    assert again.manifest.equals(manifest)
    assert again.statistics.percentile.equals(store.statistics.percentile)
    assert again.summaries().dataset().percentile.values.tolist() == [
        [np.percentile(pixels, (1, 99)).tolist()]
    ]
    # Parquet says who wrote it, sizes are written down now, statistics and the job tell more; all
    # else is as it was.
    made = {f"{room}/00000002.parquet" for room in ("manifest", "summaries")}
    made |= {"objects.parquet", "zarr.json"}
    after = contents(out)
    assert {n: d for n, d in after.items() if n not in made} == {
        n: d for n, d in before.items() if n not in made
    }


def test_a_store_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    """Neither opened nor written into."""
    out = tmp_path / "new.zarr"
    shutil.copytree(FROZEN, out)
    document = json.loads((out / "zarr.json").read_bytes())
    document["attributes"]["patchloom"]["format"] = APPENDED + 1
    (out / "zarr.json").write_text(json.dumps(document))
    before = contents(out)
    with pytest.raises(StoreError, match=f"got format {APPENDED + 1} .* upgrade patchloom"):
        patchloom.open_patches(out)
    with pytest.raises(ExistsError, match="upgrade patchloom; nothing was touched"):
        patchloom.materialize(old_plan(), out, codec="none", progress=False)
    assert contents(out) == before


if __name__ == "__main__":
    patchloom.materialize(old_plan(), FROZEN, codec="none", progress=False)
