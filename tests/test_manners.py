"""What a sceptical user tries: outputs that are taken, secrets, wrong arguments, odd inputs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray
import zarr

import patchloom
from patchloom.errors import (
    ConfigError,
    ExistsError,
    IdentityError,
    PatchloomError,
    PlanError,
    SourceError,
    SourceMissingError,
    WriteError,
)
from patchloom.location import Location
from patchloom.sources.arrays import ArraySource

GRID = {"name": "sequential", "patch_size": [8, 8]}


def plan_of(pixels: Any, **options: Any) -> patchloom.Plan:
    return patchloom.plan(patchloom.open_images(pixels, **options), GRID)


def test_somebodys_files_are_never_overwritten(tmp_path: Path) -> None:
    """An array or a picture under names that we use is theirs; our own first step is ours."""
    plan = plan_of(np.zeros((16, 16), "uint8"))
    theirs = tmp_path / "theirs"
    zarr.create_array(theirs / "images", shape=(64, 64), chunks=(8, 8), dtype="uint8")
    before = (theirs / "images" / "zarr.json").read_bytes()
    with pytest.raises(ExistsError, match=r"images/zarr\.json"):
        patchloom.materialize(plan, theirs, progress=False)
    assert (theirs / "images" / "zarr.json").read_bytes() == before
    (tmp_path / "album" / "images").mkdir(parents=True)
    (tmp_path / "album" / "images" / "photo.jpg").write_bytes(b"holiday")
    with pytest.raises(ExistsError, match="photo"):
        patchloom.materialize(plan, tmp_path / "album", progress=False)

    patchloom.materialize(plan, tmp_path / "whole.zarr", progress=False)
    begun = tmp_path / "begun.zarr"
    (begun / "images").mkdir(parents=True)
    document = (tmp_path / "whole.zarr" / "images" / "zarr.json").read_bytes()
    (begun / "images" / "zarr.json").write_bytes(document)
    (begun / "images" / f"zarr.json.{'0' * 32}.part").write_bytes(b"half")
    patchloom.materialize(plan, begun, progress=False)
    for root in (begun, tmp_path / "whole.zarr"):
        names = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
        assert len(names) == 6, names


def test_a_complete_store_that_lost_objects_is_mended(tmp_path: Path) -> None:
    """The same call restores array metadata and shards, to the same bytes."""
    plan = plan_of(np.arange(256, dtype="uint8").reshape(16, 16))
    out = tmp_path / "out.zarr"
    patchloom.materialize(plan, out, progress=False)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for name in ("images/zarr.json", "manifest/00000000.parquet"):
        (out / name).unlink()
        patchloom.materialize(plan, out, progress=False)
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("kind", ["percentile", "mean-std"])
def test_normalising_with_roles_in_memory(kind: str, tmp_path: Path) -> None:
    """The survey before looks at the image alone, whatever else is cut."""
    pixels = np.random.default_rng(0).integers(0, 99, (32, 32), dtype="uint8")
    plan = plan_of(pixels, labels=pixels, target=da.from_array(pixels, chunks=8))
    report = patchloom.materialize(plan, tmp_path / "out.zarr", normalize=kind, progress=False)
    assert report.complete
    assert report.survey_reads == report.chunks_needed


def test_many_small_images_stay_small(tmp_path: Path) -> None:
    """Counts of an image are let go when it is done: memory follows one image, not all."""
    import tracemalloc

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 2**16, (32, 32), dtype="uint16") for _ in range(400)]
    plan = plan_of(images, ids=[f"i{k}" for k in range(400)])
    tracemalloc.start()
    patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6  # 400 dense tables of 16-bit counts are 210 MB
    store = patchloom.open_patches(tmp_path / "out.zarr")
    assert store.statistics["max"].values.ravel().tolist() == [float(i.max()) for i in images]


def test_one_id_an_image_of_a_plan() -> None:
    """Images opened apart can have equal ids; a plan refuses them."""
    pair = patchloom.open_images(np.zeros((16, 16))) + patchloom.open_images(np.ones((16, 16)))
    with pytest.raises(IdentityError, match="image-0"):
        patchloom.plan(pair, GRID)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://KEY:SEC/RET@bucket/a.zarr", "s3://bucket/a.zarr"),
        ("https://u:p@SECRET@host/a.zarr", "https://host/a.zarr"),
        ("https://host/a.zarr?sig=SECRET", "https://host/a.zarr"),
        ("https://host/a.zarr#SECRET", "https://host/a.zarr"),
        ("http://127.0.0.1:9000/a@b.zarr", "http://127.0.0.1:9000/a@b.zarr"),
        ("gs://bucket/a@b.zarr", "gs://bucket/a@b.zarr"),
        ("/data/what?.zarr", "/data/what?.zarr"),
    ],
)
def test_urls_are_shown_without_secrets(url: str, shown: str) -> None:
    """Whatever a password holds, it is not shown; what is no secret is."""
    location = Location.of(url, {"secret": "hunter2hunter2"})
    assert location.shown == shown
    error = OSError(f"cannot reach {url} with hunter2hunter2")
    for text in (repr(location), location.describe(error)):
        assert "SECRET" not in text
        assert "RET@" not in text
        assert "hunter2" not in text


def test_queries_stay_at_the_end() -> None:
    """A token in a URL is sent with every object of it."""
    location = Location.of("https://host/a.zarr?token=T")
    assert (location / "zarr.json").url == "https://host/a.zarr/zarr.json?token=T"
    assert (
        location.inside("https://host/a.zarr?token=T", "c/0") == "https://host/a.zarr/c/0?token=T"
    )


def test_a_target_that_takes_no_writes_is_our_error(tmp_path: Path) -> None:
    """Neither http nor a protocol without writing gives a foreign error."""
    pytest.importorskip("aiohttp")
    plan = plan_of(np.zeros((16, 16), "uint8"))
    with pytest.raises((WriteError, SourceMissingError)) as caught:
        patchloom.materialize(plan, "http://127.0.0.1:9/out.zarr?tok=SECRET", progress=False)
    assert "SECRET" not in str(caught.value)


def test_lazy_inputs_stay_lazy(tmp_path: Path) -> None:
    """An open zarr.Array and a lazy xarray are not read when they are opened."""
    path = tmp_path / "a.zarr"
    array = zarr.create_array(
        path, shape=(64, 64), chunks=(16, 16), dtype="uint16", dimension_names=("y", "x")
    )
    array[...] = np.arange(64 * 64, dtype="uint16").reshape(64, 64)
    group = zarr.create_group(tmp_path / "set.zarr")
    group.create_array(
        "image", shape=(64, 64), chunks=(16, 16), dtype="uint16", dimension_names=("y", "x")
    )[...] = array[...]
    lazy = xarray.open_zarr(tmp_path / "set.zarr", chunks=None, consolidated=False)["image"]
    for given in (array, lazy):
        [image] = patchloom.open_images(given)
        assert isinstance(image.source, ArraySource)
        assert isinstance(image.source.array, da.Array)
        np.testing.assert_array_equal(image.data, array[...])


def test_paths_may_hold_pattern_characters(tmp_path: Path) -> None:
    """What exists as it is written is meant as it is written."""
    path = tmp_path / "a[1] well?.zarr"
    zarr.create_array(path, shape=(8, 8), chunks=(4, 4), dtype="uint8")
    [image] = patchloom.open_images(path)
    assert image.read([0, 0], [8, 8]).shape == (8, 8)


@pytest.mark.parametrize(
    "options",
    [
        {"seed": None},
        {"seed": 1.5},
        {"rows_per_shard": "x"},
        {"rows_per_shard": 2.5},
        {"min_coverage": "1/0"},
        {"memory": 2.5},
    ],
    ids=str,
)
def test_wrong_settings_of_a_plan(options: dict[str, Any]) -> None:
    """Each is our error, with the name of the setting."""
    images = patchloom.open_images(np.zeros((16, 16), "uint8"))
    with pytest.raises(ConfigError, match=next(iter(options))):
        patchloom.plan(images, GRID, **options)
    fine = patchloom.plan(images, GRID, rows_per_shard=np.int64(2), memory=np.int64(2**30))  # type: ignore[arg-type]
    assert fine.fingerprint == patchloom.plan(images, GRID, rows_per_shard=2).fingerprint


def test_wrong_arguments_are_our_errors(tmp_path: Path) -> None:
    """Things of the wrong kind are refused by name, before work."""
    images = patchloom.open_images(np.zeros((16, 16), "uint8"))
    plan = patchloom.plan(images, GRID)
    calls: list[Any] = [
        lambda: patchloom.plan(None, GRID),  # type: ignore[arg-type]
        lambda: patchloom.materialize(images, tmp_path / "o.zarr"),  # type: ignore[arg-type]
        lambda: patchloom.materialize(plan, None),  # type: ignore[arg-type]
        lambda: patchloom.materialize(plan, tmp_path / "o.zarr", percentiles=50),  # type: ignore[arg-type]
        lambda: patchloom.materialize(plan, tmp_path / "o.zarr", percentiles=(1, 1)),
        lambda: patchloom.statistics("a.zarr"),  # type: ignore[arg-type]
        lambda: patchloom.open_images(np.zeros((4, 4)), sample=5),
        lambda: patchloom.open_images(np.zeros((4, 4)), ids="a"),
        lambda: patchloom.open_images(np.zeros((4, 4)), level=3),
        lambda: patchloom.open_images(np.zeros((4, 4), np.longdouble)),
        lambda: patchloom.open_images(""),
        lambda: patchloom.plan(
            patchloom.open_images(
                [np.zeros((16, 16))] * 2, ids=["a", "b"], sample=[{"k": 1}, {"k": "x"}]
            ),
            GRID,
        ),
        lambda: plan_of(np.zeros((16, 16)), sample={"images": 1}),
    ]
    for call in calls:
        with pytest.raises(PatchloomError):
            call()
    unknown = da.from_array(np.arange(9.0), chunks=3)
    with pytest.raises(SourceError, match="compute_chunk_sizes"):
        patchloom.open_images(unknown[unknown > 2])
    assert not (tmp_path / "o.zarr").exists()


def test_damaged_saved_plans_are_refused(tmp_path: Path) -> None:
    """A plan that lacks a part, or has a broken one, is our error."""
    zarr.create_array(tmp_path / "a.zarr", shape=(64, 64), chunks=(16, 16), dtype="uint8")
    plan = patchloom.plan(patchloom.open_images(tmp_path / "a.zarr"), GRID)
    plan.save(str(tmp_path / "plan"))
    (tmp_path / "plan" / "cells.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(PlanError, match="damaged"):
        patchloom.Plan.load(str(tmp_path / "plan"))
    plan.save(str(tmp_path / "plan"))
    head = tmp_path / "plan" / "plan.json"
    document = json.loads(head.read_text())
    del document["images"]
    head.write_text(json.dumps(document))
    with pytest.raises(PlanError, match="damaged"):
        patchloom.Plan.load(str(tmp_path / "plan"))


def test_infinities_are_values(tmp_path: Path) -> None:
    """They are the extremes that they are; normalising by them is refused."""
    pixels = np.array([[1, 2], [3, np.inf]], "float32").repeat(8, 0).repeat(8, 1)
    table = patchloom.statistics(patchloom.open_images(pixels), (0, 50))
    assert table["max"].item() == np.inf
    assert table["percentile"].values.ravel().tolist() == [1.0, 2.5]
    with pytest.raises(ConfigError, match="finite"):
        patchloom.materialize(
            plan_of(pixels), tmp_path / "o.zarr", normalize="mean-std", progress=False
        )


def test_dask_blocks_are_counted_once(tmp_path: Path) -> None:
    """Blocks that several tasks are handed count once, in number and in bytes."""
    pixels = np.random.default_rng(0).integers(0, 99, (64, 64), dtype="uint8")
    images = patchloom.open_images(da.from_array(pixels, chunks=16))
    config = {"name": "sequential", "patch_size": [12, 12], "overlaps": [6, 6]}
    plan = patchloom.plan(images, config, rows_per_shard=5)
    report = patchloom.materialize(plan, tmp_path / "o.zarr", progress=False)
    assert plan.n_tasks > 4
    assert (report.chunk_reads, report.bytes_read) == (16, pixels.nbytes)


def test_no_overlap_written_or_not_is_the_same_plan() -> None:
    """None and zeros are one configuration."""
    images = patchloom.open_images(np.zeros((16, 16), "uint8"))
    other = patchloom.plan(images, {**GRID, "overlaps": [0, 0]})
    assert patchloom.plan(images, GRID).fingerprint == other.fingerprint
    assert pickle.loads(pickle.dumps(other)).fingerprint == other.fingerprint


def test_an_empty_random_plan_says_why() -> None:
    """Zero patches asked for is a reason too."""
    images = patchloom.open_images(np.zeros((16, 16), "uint8"))
    plan = patchloom.plan(images, {"name": "random", "patch_size": [8, 8], "n_patches": 0})
    assert plan.figures()["rejected"]
