"""Run a job again with more images: they are added, and nothing that was there is touched."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import yaml
import zarr
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.cli import main
from patchloom.errors import ChunkError, ExistsError, FingerprintError
from patchloom.planning.subsets import subset
from patchloom.store.additions import additions_of
from tests.runner import __file__ as RUNNER
from tests.servers.s3 import S3Server

PATCHING = {"name": "sequential", "patch_size": [16, 16], "overlaps": [4, 4]}
SHAPES = {"a": (50, 40), "b": (33, 70), "c": (64, 48), "d": (20, 90), "e": (41, 41)}


def pixels(name: str) -> npt.NDArray[np.uint16]:
    return np.random.default_rng(ord(name)).integers(0, 4000, SHAPES[name], np.uint16)


def write(folder: Path, names: str) -> list[str]:
    """Images and their labels on disk."""
    folder.mkdir(exist_ok=True)
    for name in names:
        for path, data in (
            (folder / f"{name}.zarr", pixels(name)),
            (folder / f"{name}.labels.zarr", (pixels(name) // 1000).astype(np.uint8)),
        ):
            array = zarr.create_array(path, shape=data.shape, chunks=(16, 24), dtype=data.dtype)
            array[...] = data
    return [str(folder / f"{name}.zarr") for name in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    write(path, "abcde")
    return path


def planned(folder: Path, names: str, *, labels: bool = False, **how: Any) -> patchloom.Plan:
    images = patchloom.open_images(
        [str(folder / f"{name}.zarr") for name in names],
        labels=str(folder / "{stem}.labels.zarr") if labels else None,
        ids=list(names),
    )
    return patchloom.plan(images, how.pop("patching", PATCHING), **how)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def by_id(store: patchloom.PatchStore, *names: str) -> dict[str, tuple[Any, ...]]:
    """Pixels and columns of each patch, by its id."""
    found = {}
    arrays = [np.asarray(getattr(store, name)[:]) for name in ("images", *names)]
    for row in store.manifest.to_pylist():
        told = {k: v for k, v in sorted(row.items()) if k != "row"}
        shown = [array[row["row"]].tobytes() for array in arrays]
        found[row["patch_id"]] = (json.dumps(told), *shown)
    assert len(found) == store.manifest.num_rows, "an id occurs twice"
    return found


def same_statistics(one: patchloom.PatchStore, other: patchloom.PatchStore) -> None:
    """Bit for bit, image by image."""
    a, b = one.statistics, other.statistics.sel(image=one.statistics.image)
    # The same pixels may have been read elsewhere.
    assert a.assign_attrs(provenance="").identical(b.assign_attrs(provenance=""))


TOLD = ("zarr.json", "objects.parquet")
"""Names of the objects that tell of all others: an append writes them again."""


# -- what is appended, and what stays ---------------------------------------------------


def test_appended_images_are_those_of_a_store_of_all(folder: Path, tmp_path: Path) -> None:
    """Three calls, each with more images: what one call makes of all, and old objects stay."""
    out, whole = tmp_path / "out.zarr", tmp_path / "whole.zarr"
    patchloom.materialize(planned(folder, "bd", labels=True, rows_per_shard=5), out, progress=False)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()}
    # New names come before, between and after old ones, and a default of rows_per_shard differs.
    for names in ("bcd", "abcde"):
        plan = planned(folder, names, labels=True)
        report = patchloom.materialize(plan, out, progress=False)
        assert report.complete
    patchloom.materialize(planned(folder, "abcde", labels=True), whole, progress=False)
    for path, (time, data) in before.items():
        if path.name not in TOLD:
            assert (path.stat().st_mtime_ns, path.read_bytes()) == (time, data)
    store, oracle = patchloom.open_patches(out), patchloom.open_patches(whole)
    assert by_id(store, "labels") == by_id(oracle, "labels")
    same_statistics(store, oracle)
    assert [i["id"] for i in store.attributes["images"]] == list("bdcae")
    assert store.attributes["n_patches"] == oracle.attributes["n_patches"] == len(oracle)
    assert [a.n_images for a in additions_of(store.attributes)] == [2, 1, 2]
    assert [a.first_row % 5 for a in additions_of(store.attributes)] == [0, 0, 0]
    # Once more: nothing to do.
    again = contents(out)
    report = patchloom.materialize(plan, out, progress=False)
    assert (report.n_tasks, report.complete, contents(out) == again) == (0, True, True)


def test_reserved_rows_hold_no_patch(folder: Path, tmp_path: Path) -> None:
    """The rows between two additions: in the arrays, not in the manifest."""
    import xarray

    out = tmp_path / "out.zarr"
    patchloom.materialize(planned(folder, "a", rows_per_shard=5), out, progress=False)
    old = patchloom.open_patches(out)
    n = len(old)
    assert n % 5, "the last shard is to be partial"
    patchloom.materialize(planned(folder, "ab"), out, progress=False)
    store = patchloom.open_patches(out)
    rows = store.manifest["row"].to_numpy()
    reserved = sorted({*range(len(store))} - {*rows.tolist()})
    assert reserved == list(range(n, -(-n // 5) * 5))
    assert (np.diff(rows) > 0).all()
    assert len(rows) == store.attributes["n_patches"] == len(store) - len(reserved)
    assert len(store) == store.images.shape[0] == rows[-1] + 1
    assert not store[reserved[0] : reserved[-1] + 1].any()
    np.testing.assert_array_equal(store[-1], store[int(rows[-1])])
    with pytest.raises(IndexError, match="written"):
        store.pad_mask(reserved)
    assert not store.pad_mask(rows).any()
    view = store.to_xarray()
    assert view.sizes["patch"] == len(rows)
    np.testing.assert_array_equal(view["row"], rows)
    np.testing.assert_array_equal(view["images"][-1], store[-1])
    # Plain readers find all rows, with the consolidated metadata and without.
    plain = xarray.open_zarr(out, chunks=None, consolidated=True, zarr_format=3)
    assert plain.sizes["patch"] == zarr.open_array(out / "images").shape[0] == len(store)
    # What was open before still is what it was.
    assert (len(old), old.images.shape[0], old.manifest.num_rows) == (n, n, n)
    np.testing.assert_array_equal(old[-1], store[n - 1])
    assert len(old.to_xarray()["row"]) == n


STRATEGIES: list[dict[str, Any]] = [
    PATCHING,
    {"name": "sequential", "patch_size": [8, 12]},
    {"name": "random", "patch_size": [16, 16], "n_patches": 11},
    {"name": "chunk_aligned", "patch_size": [7, 9]},
    {"name": "blue_noise", "patch_size": [12, 12], "radius": 12},
]
SELECTIONS: list[dict[str, Any]] = [
    {},
    {"order": "shuffled"},
    {"order": "shuffled", "window": 2},
    {"order": "grouped", "group_by": "image_id"},
    {"order": "grouped", "group_by": "split", "split": {"shares": {"train": 0.5, "val": 0.5}}},
    {"edge": "pad"},
    {"min_coverage": 0.5},
    {"min_coverage": 0.5, "split": {"by": "blocks", "block_size": 24, "guard": 2}},
    {"quota": {"per_image": 5}},
    {"filters": [{"name": "shannon", "threshold": 7.0}]},
]


def in_memory(names: Sequence[str], *, masked: bool) -> list[patchloom.Image]:
    import dask.array as da

    chunks = {name: (8 + ord(name) % 3 * 4, 24) for name in SHAPES}
    masks = {name: (pixels(name) > 1500).astype(np.uint8) for name in SHAPES}
    return patchloom.open_images(
        [da.from_array(pixels(name), chunks=chunks[name]) for name in names],
        mask=[masks[name] for name in names] if masked else None,
        ids=list(names),
    )


@st.composite
def additions(draw: st.DrawFn) -> tuple[list[str], list[int]]:
    """Images in some order, and how many there are at each call."""
    names = draw(st.permutations(list(SHAPES)))
    calls = sorted(draw(st.sets(st.integers(1, len(names)), min_size=2, max_size=3)))
    return names, calls


@settings(max_examples=12)
@given(
    additions(),
    st.sampled_from(STRATEGIES),
    st.sampled_from(SELECTIONS),
    st.integers(4, 11),
    st.randoms(use_true_random=False),
)
def test_any_additions_equal_one_store_of_all(
    split: tuple[list[str], list[int]],
    patching: dict[str, Any],
    selection: dict[str, Any],
    rows: int,
    random: Any,
) -> None:
    """In any order, number and size of calls: the patches, splits and statistics of one call."""
    names, calls = split
    masked = "min_coverage" in selection
    url = f"memory://{uuid.uuid4().hex}"
    for k, n in enumerate(calls):
        some = list(names[:n])
        random.shuffle(some)
        more: dict[str, Any] = {"rows_per_shard": rows} if k == 0 else {}
        plan = patchloom.plan(in_memory(some, masked=masked), patching, **selection, **more)
        patchloom.materialize(plan, f"{url}/out.zarr", progress=False)
    patchloom.materialize(plan, f"{url}/whole.zarr", progress=False)
    store = patchloom.open_patches(f"{url}/out.zarr")
    oracle = patchloom.open_patches(f"{url}/whole.zarr")
    assert by_id(store) == by_id(oracle)
    same_statistics(store, oracle)
    assert len(additions_of(store.attributes)) == len(calls)
    assert store.attributes["rows_per_shard"] == rows


@settings(max_examples=40)
@given(
    st.permutations(list(SHAPES)),
    st.integers(1, 4),
    st.sampled_from(STRATEGIES),
    st.sampled_from(SELECTIONS),
    st.integers(2, 9),
)
def test_a_subset_is_the_plan_of_these_images(
    names: list[str], n: int, patching: dict[str, Any], selection: dict[str, Any], rows: int
) -> None:
    """Bit for bit what planning them alone gives, wherever they stood."""
    masked = "min_coverage" in selection
    plan = patchloom.plan(in_memory(sorted(names), masked=masked), patching, **selection)
    which = [sorted(names).index(name) for name in names[:n]]
    alone = patchloom.plan(
        in_memory(names[:n], masked=masked), patching, rows_per_shard=rows, **selection
    )
    part = subset(plan, which, rows, plan.split)
    assert part.fingerprint == alone.fingerprint
    assert part.n_patches == alone.n_patches


@pytest.mark.parametrize("normalize", [None, "percentile"])
@pytest.mark.parametrize("over", ["patches", "image"])
def test_old_pixels_are_never_read(
    folder: Path, tmp_path: Path, normalize: str | None, over: str
) -> None:
    """Old chunks that nobody can decode any more are no hindrance."""
    sources = tmp_path / "images"
    write(sources, "abc")
    out, whole = tmp_path / "out.zarr", tmp_path / "whole.zarr"
    job: dict[str, Any] = {"normalize": normalize, "over": over, "progress": False}
    patchloom.materialize(planned(sources, "ac", rows_per_shard=5), out, **job)
    for name in "ac":
        for chunk in (sources / f"{name}.zarr" / "c").rglob("*"):
            if chunk.is_file():
                chunk.write_bytes(b"rotten")
    plan = planned(sources, "abc")
    report = patchloom.materialize(plan, out, **job)
    assert report.chunks_needed == subset(plan, [1], 5, None).chunks_needed
    patchloom.materialize(planned(folder, "abc"), whole, **job)
    store, oracle = patchloom.open_patches(out), patchloom.open_patches(whole)
    assert by_id(store) == by_id(oracle)
    same_statistics(store, oracle)
    with pytest.raises(ChunkError):
        patchloom.materialize(planned(sources, "abc"), tmp_path / "new.zarr", **job)


def test_metadata_columns_may_appear(folder: Path, tmp_path: Path) -> None:
    """A column that old images do not have is null for them."""
    out = tmp_path / "out.zarr"
    for names, sample in (("a", None), ("ab", [{}, {"donor": "x", "age": 3}])):
        images = patchloom.open_images(
            [str(folder / f"{n}.zarr") for n in names], ids=list(names), sample=sample
        )
        plan = patchloom.plan(images, PATCHING, rows_per_shard=4)
        patchloom.materialize(plan, out, progress=False)
    rows = patchloom.open_patches(out).manifest.to_pylist()
    assert {(r["image_id"], r["donor"], r["age"]) for r in rows} == {
        ("a", None, None),
        ("b", "x", 3),
    }


def test_images_without_patches_are_added_too(folder: Path, tmp_path: Path) -> None:
    """They have no row; they have statistics of no pixel."""
    out = tmp_path / "out.zarr"
    masks = {"a": np.ones((50, 40)), "b": np.zeros((33, 70)), "c": np.ones((64, 48))}
    for names in ("a", "ab", "abc"):
        images = patchloom.open_images(
            [str(folder / f"{n}.zarr") for n in names],
            mask=[masks[n].astype(np.uint8) for n in names],
            ids=list(names),
        )
        plan = patchloom.plan(images, PATCHING, min_coverage=0.5, rows_per_shard=4)
        report = patchloom.materialize(plan, out, progress=False)
        assert report.complete
    store = patchloom.open_patches(out)
    assert set(store.manifest["image_id"].to_pylist()) == {"a", "c"}
    assert store.statistics["count"].sel(image="b").item() == 0
    assert [a.n_patches for a in additions_of(store.attributes)][1] == 0


# -- what is refused ------------------------------------------------------------------


def test_what_is_no_prefix_is_refused(folder: Path, tmp_path: Path) -> None:
    """The error says what differs and the way out; nothing is touched."""
    out = tmp_path / "out.zarr"
    patchloom.materialize(planned(folder, "bd", rows_per_shard=5), out, progress=False)
    before = contents(out)

    def refused(plan: patchloom.Plan, match: str) -> None:
        with pytest.raises(FingerprintError, match=match) as told:
            patchloom.materialize(plan, out, progress=False)
        assert "another URL" in str(told.value)
        assert contents(out) == before

    refused(planned(folder, "bcde", seed=1), r"another seed \(0 there, 1 here\)")
    refused(planned(folder, "bce"), r"lacks 1 of the 2 .*\['d'\]")
    refused(planned(folder, "ace"), r"lacks 2 of the 2")
    refused(
        planned(folder, "bcd", min_coverage=0.0, edge="pad"),
        r"another job \(edge: 'drop' there",
    )
    refused(planned(folder, "bcd", order="shuffled"), r"another job \(order: 'spatial' there")
    refused(planned(folder, "bcd", quota={"n_patches": 9}), "draws from all images")
    refused(planned(folder, "db", rows_per_shard=5), "another order of the images")
    refused(planned(folder, "bd", rows_per_shard=6), "another rows_per_shard")
    other = tmp_path / "images"
    write(other, "b")
    array = zarr.create_array(other / "d.zarr", shape=(30, 90), chunks=(16, 24), dtype="uint16")
    array[...] = 1
    write(other, "c")
    refused(planned(other, "bcd"), r"another level, axes, shape or type of \['d'\]")
    with pytest.raises(ExistsError, match="resume=True"):
        patchloom.materialize(planned(folder, "bcd"), out, resume=False, progress=False)
    with pytest.raises(FingerprintError, match=r"another job \(percentiles: "):
        patchloom.materialize(planned(folder, "bcd"), out, percentiles=(5,), progress=False)
    assert contents(out) == before


def test_stratified_splits_stay_or_are_refused(folder: Path, tmp_path: Path) -> None:
    """Groups that are dealt out again would move: `keep` holds them, else nothing is added."""
    stratify = {"by": "image", "shares": {"train": 0.5, "val": 0.5}, "stratify": "kind"}

    def plan(names: str, **more: Any) -> patchloom.Plan:
        images = patchloom.open_images(
            [str(folder / f"{n}.zarr") for n in names],
            ids=list(names),
            sample=[{"kind": "x"} for _ in names],
        )
        return patchloom.plan(images, PATCHING, split={**stratify, **more}, rows_per_shard=5)

    first, seen = plan("ab"), set()
    kept = first.splits.assignments()  # type: ignore[union-attr]
    for names in ("abc", "abd", "abe", "abcd", "abde", "abcde"):
        moved = any(plan(names).splits.groups[g] != s for g, s in kept.items())  # type: ignore[union-attr]
        seen.add(moved)
        out = tmp_path / f"{names}.zarr"
        patchloom.materialize(first, out, progress=False)
        if moved:
            with pytest.raises(FingerprintError, match="keep="):
                patchloom.materialize(plan(names), out, progress=False)
        more = plan(names, keep=kept)
        patchloom.materialize(more, out, progress=False)
        rows = patchloom.open_patches(out).manifest.to_pylist()
        told = {row["image_id"]: row["split"] for row in rows}
        assert told == more.splits.assignments()  # type: ignore[union-attr]
        assert {k: told[k] for k in kept} == kept
    out = tmp_path / "abc.zarr"
    held = plan("abc", keep=kept).splits.assignments()  # type: ignore[union-attr]
    patchloom.materialize(plan("abcde", keep=held), out, progress=False)
    assert len(additions_of(patchloom.open_patches(out).attributes)) == 3
    assert True in seen, "some are to move"


# -- interrupted ----------------------------------------------------------------------


def test_killed_at_every_write(folder: Path, tmp_path: Path) -> None:
    """The old store is there until the new one is; the same call ends with the same bytes."""
    base, copies = tmp_path / "base.zarr", tmp_path / "copies"
    copies.mkdir()
    names = [str(folder / f"{name}.zarr") for name in "abc"]
    labels = str(folder / "{stem}.labels.zarr")

    def plan(some: Sequence[str]) -> patchloom.Plan:
        images = patchloom.open_images(list(some), labels=labels)
        return patchloom.plan(images, PATCHING, rows_per_shard=9)

    patchloom.materialize(plan(names[::2]), base, progress=False)
    old = patchloom.open_patches(base)
    arguments = {
        "images": names,
        "labels": labels,
        "patching": PATCHING,
        "rows_per_shard": 9,
        "base": str(base),
        "folder": str(copies),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.killer", json.dumps(arguments)],
        capture_output=True,
        text=True,
        cwd=Path(RUNNER).parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    n = int(done.stdout)
    whole = contents(copies / f"{n:03d}.zarr")
    added = len({k for k in whole if k.startswith("manifest/")}) - old_shards(old)
    # What is coming, four objects a shard, their sizes, two arrays' metadata, the group, and the
    # report.
    assert n == 1 + 4 * added + 1 + 2 + 1 + 1
    ends = []
    for k in range(n):
        out = copies / f"{k:03d}.zarr"
        store = patchloom.open_patches(out)
        assert store.complete
        ends.append(len(store) != len(old))
        if not ends[-1]:
            assert store.manifest.equals(old.manifest)
            assert store.statistics.identical(old.statistics)
            np.testing.assert_array_equal(store[:], old[:])
            np.testing.assert_array_equal(store[-1], old[-1])
            assert len(store.to_xarray()["row"]) == len(old)
        report = patchloom.materialize(plan(names), out, progress=False)
        assert report.complete
        assert contents(out) == whole
    # Only when its last object was written: then the report is what is missing.
    assert ends == [False] * (n - 1) + [True]


def old_shards(store: patchloom.PatchStore) -> int:
    return additions_of(store.attributes)[-1].n_shards


def test_images_may_come_while_an_append_waits(folder: Path, tmp_path: Path) -> None:
    """What was begun is finished first; what nobody finishes any more is cleared away."""
    sources = tmp_path / "images"
    write(sources, "abcd")
    rotten = sources / "b.zarr" / "c" / "0" / "0"
    sound = rotten.read_bytes()
    rotten.write_bytes(b"rotten")
    out, clean = tmp_path / "out.zarr", tmp_path / "clean.zarr"
    for url in (out, clean):
        patchloom.materialize(planned(sources, "a", rows_per_shard=3), url, progress=False)
    before = patchloom.open_patches(out).manifest
    report = patchloom.materialize(planned(sources, "ab"), out, on_error="skip", progress=False)
    assert not report.complete
    first = 3 * additions_of(patchloom.open_patches(out).attributes)[0].n_shards
    [skipped] = report.skipped
    assert min(skipped["rows"]) >= first
    assert not patchloom.open_patches(out).skipped.num_rows
    assert patchloom.open_patches(out).complete
    assert patchloom.open_patches(out).manifest.equals(before)
    # Old images alone: nothing to do, and what was begun stays.
    assert patchloom.materialize(
        planned(sources, "a", rows_per_shard=3), out, progress=False
    ).complete
    begun = contents(out)
    # Without the broken one: its shards are cleared away before others take their numbers.
    patchloom.materialize(planned(sources, "acd"), out, progress=False)
    patchloom.materialize(planned(sources, "acd"), clean, progress=False)
    assert contents(out) == contents(clean)
    # Mended, with one image more: first what was begun, then the rest.
    for name, data in begun.items():
        (tmp_path / "other.zarr" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other.zarr" / name).write_bytes(data)
    rotten.write_bytes(sound)
    report = patchloom.materialize(planned(sources, "abc"), tmp_path / "other.zarr", progress=False)
    store = patchloom.open_patches(tmp_path / "other.zarr")
    assert report.complete
    assert [a.n_images for a in additions_of(store.attributes)] == [1, 1, 1]
    assert [i["id"] for i in store.attributes["images"]] == ["a", "b", "c"]
    patchloom.materialize(planned(sources, "abc"), tmp_path / "whole.zarr", progress=False)
    assert by_id(store) == by_id(patchloom.open_patches(tmp_path / "whole.zarr"))


def test_an_unfinished_store_is_finished_first(folder: Path, tmp_path: Path) -> None:
    """Images come before the first call ended: the bytes of one call after the other."""
    out, whole = tmp_path / "out.zarr", tmp_path / "whole.zarr"
    for url in (out, whole):
        patchloom.materialize(planned(folder, "ac", rows_per_shard=4), url, progress=False)
    patchloom.materialize(planned(folder, "abc"), whole, progress=False)
    document = json.loads((out / "zarr.json").read_text())
    told = document["attributes"]["patchloom"]
    told["complete"] = False
    del told["statistics"]
    (out / "zarr.json").write_text(json.dumps(document, indent=2))
    (out / "manifest" / "00000001.parquet").unlink()
    report = patchloom.materialize(planned(folder, "abc"), out, progress=False)
    assert report.complete
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("shard", [0, 4])
def test_damage_after_an_append_is_repaired(folder: Path, tmp_path: Path, shard: int) -> None:
    """A shard of any addition that is lost is made again, from its own images only."""
    out = tmp_path / "out.zarr"
    patchloom.materialize(planned(folder, "a", rows_per_shard=4), out, progress=False)
    patchloom.materialize(planned(folder, "ab"), out, progress=False)
    before = contents(out)
    (out / "images" / "c" / str(shard) / "0" / "0" / "0").unlink()
    report = patchloom.materialize(planned(folder, "ab"), out, progress=False)
    assert (report.n_shards, report.n_tasks, report.complete) == (1, 1, True)
    assert contents(out) == before


def test_two_clients_append_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Two processes append the same images at once: both end, and nothing differs."""
    out, whole = tmp_path / "out.zarr", tmp_path / "whole.zarr"
    text = (
        "import sys, dask, patchloom\n"
        "dask.config.set(scheduler='synchronous')\n"
        "images = patchloom.open_images(sys.argv[2:])\n"
        f"plan = patchloom.plan(images, {PATCHING!r}, rows_per_shard=2)\n"
        "patchloom.materialize(plan, sys.argv[1], progress=False)\n"
    )
    names = [str(folder / f"{name}.zarr") for name in "abcde"]
    for url in (out, whole):
        plan = patchloom.plan(patchloom.open_images(names[:1]), PATCHING, rows_per_shard=2)
        patchloom.materialize(plan, url, progress=False)
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", text, str(out), *names],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        for _ in range(2)
    ]
    for client in clients:
        _, err = client.communicate(timeout=240)
        assert client.returncode == 0, err
    patchloom.materialize(
        patchloom.plan(patchloom.open_images(names), PATCHING, rows_per_shard=2),
        whole,
        progress=False,
    )
    assert contents(out) == contents(whole)


def test_of_two_that_append_other_images_one_stops(folder: Path, tmp_path: Path) -> None:
    """The one that began first finds the store taken, and overwrites nothing of the other."""
    import dask
    import dask.array as da

    out, clean = tmp_path / "out.zarr", tmp_path / "clean.zarr"
    for url in (out, clean):
        patchloom.materialize(planned(folder, "a", rows_per_shard=3), url, progress=False)
    patchloom.materialize(planned(folder, "ac"), clean, progress=False)

    def slow(block: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
        if not patchloom.open_patches(out).attributes.get("additions"):
            patchloom.materialize(planned(folder, "ac"), out, progress=False)
        return block

    lazy = da.from_array(pixels("b"), chunks=(16, 24)).map_blocks(slow, dtype="uint16", meta=0)
    images = [
        *patchloom.open_images(str(folder / "a.zarr"), ids=["a"]),
        *patchloom.open_images(lazy, ids=["b"]),
    ]
    plan = patchloom.plan(images, PATCHING)
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(ExistsError, match="one call at a time"),
    ):
        patchloom.materialize(plan, out, progress=False)
    assert contents(out) == contents(clean)


def test_a_repair_by_the_old_plan_keeps_what_is_begun(folder: Path, tmp_path: Path) -> None:
    """The job of the old images mends their shard; what was made of new ones is not made again."""
    write(tmp_path / "images", "ab")
    out, chunk = tmp_path / "out.zarr", tmp_path / "images" / "b.zarr" / "c" / "0" / "0"
    old, new = (planned(tmp_path / "images", some, rows_per_shard=4) for some in ("a", "ab"))
    patchloom.materialize(old, out, progress=False)
    good = chunk.read_bytes()
    chunk.write_bytes(b"damaged")
    assert not patchloom.materialize(new, out, on_error="skip", progress=False).complete
    gaps = len(list((out / "manifest").glob("*.partial.parquet")))
    begun = patchloom.open_patches(out).attributes
    (out / "images" / "c" / "0" / "0" / "0" / "0").unlink()
    assert patchloom.materialize(old, out, progress=False).n_shards == 1
    assert patchloom.open_patches(out).attributes == begun
    chunk.write_bytes(good)
    report = patchloom.materialize(new, out, progress=False)
    assert (report.complete, report.n_shards) == (True, gaps)


def test_an_append_that_stopped_before_its_last_write_is_no_damage(
    folder: Path, tmp_path: Path
) -> None:
    """Metadata of the arrays already tell of rows that the group does not count."""
    out = tmp_path / "out.zarr"
    patchloom.materialize(planned(folder, "a", rows_per_shard=4), out, progress=False)
    before = contents(out)
    patchloom.materialize(planned(folder, "ab"), out, progress=False)
    after = contents(out)
    document = json.loads(before["zarr.json"])
    added = json.loads(after["zarr.json"])["attributes"]["patchloom"]
    coming = {k: added["additions"][1][k] for k in ("fingerprint", "n_patches")}
    told = document["attributes"]["patchloom"]
    told |= {"format": 2, "pending": {**coming, "images": added["images"][1:]}}
    (out / "zarr.json").write_text(json.dumps(document, indent=2))
    assert patchloom.verify(out, repair=True, progress=False).ok
    assert patchloom.open_patches(out).complete
    assert patchloom.materialize(planned(folder, "ab"), out, progress=False).n_tasks == 0
    assert contents(out) == after


class Meanwhile(MemoryFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """A store in memory where something happens before some object is read or written."""

    protocol = "meanwhile"
    store: dict[str, Any] = {}  # noqa: RUF012  # fsspec's own way
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    calls: list[Callable[[], object]] = []  # noqa: RUF012
    before = ""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        found: str = super()._strip_protocol(path.replace("meanwhile://", "memory://"))
        return found

    def cat_file(self, path: str, *arguments: Any, **more: Any) -> Any:
        """One read."""
        self._happen(f"read {path}")
        return super().cat_file(path, *arguments, **more)

    def pipe_file(self, path: str, value: bytes, **more: Any) -> Any:
        """One write."""
        self._happen(f"write {path}")
        return super().pipe_file(path, value, **more)

    def _happen(self, what: str) -> None:
        if re.fullmatch(self.before, what):
            calls, self.calls[:] = [*self.calls], []
            for call in calls:
                call()


@pytest.mark.parametrize("names", ["a", "ab"])
def test_a_late_client_takes_nothing_back(folder: Path, names: str) -> None:
    """While one is about to end, another ends the same job and appends more."""
    fsspec.register_implementation("meanwhile", Meanwhile, clobber=True)
    out, clean = (f"meanwhile://{uuid.uuid4().hex}.zarr" for _ in range(2))
    materialize = functools.partial(patchloom.materialize, progress=False)
    for some in ("a", "ab", "abc"):
        materialize(planned(folder, some, rows_per_shard=7), clean)
    for some in {"a", names} - {names}:
        materialize(planned(folder, some, rows_per_shard=7), out)
    Meanwhile.before = "write .*/objects.parquet"
    Meanwhile.calls[:] = [
        functools.partial(materialize, planned(folder, some, rows_per_shard=7), out)
        for some in ("a", "ab", "abc")
    ]
    assert materialize(planned(folder, names, rows_per_shard=7), out).complete
    assert not Meanwhile.calls
    store, oracle = patchloom.open_patches(out), patchloom.open_patches(clean)
    assert store.attributes == oracle.attributes
    assert by_id(store) == by_id(oracle)
    assert patchloom.verify(out, progress=False).ok


def test_a_repair_takes_nothing_back_but_damage(folder: Path) -> None:
    """Images that are appended while a store is checked stay."""
    fsspec.register_implementation("meanwhile", Meanwhile, clobber=True)
    out = f"meanwhile://{uuid.uuid4().hex}.zarr"
    plans = [planned(folder, some, rows_per_shard=7) for some in ("a", "ab")]
    patchloom.materialize(plans[0], out, progress=False)
    fs, root = fsspec.core.url_to_fs(out)
    name = f"{root}/summaries/00000000.parquet"
    fs.pipe_file(name, bytes(fs.size(name)))  # of the same size: no listing tells
    Meanwhile.before = "read .*/summaries/00000000.parquet"
    Meanwhile.calls[:] = [lambda: patchloom.materialize(plans[1], out, progress=False)]
    report = patchloom.verify(out, repair=True, progress=False)
    assert not Meanwhile.calls
    assert report.repaired == (0,)
    assert [i["id"] for i in patchloom.open_patches(out).attributes["images"]] == ["a", "b"]
    again = patchloom.materialize(plans[1], out, progress=False)
    assert (again.complete, again.n_shards) == (True, 1)


# -- elsewhere ------------------------------------------------------------------------


def test_objects_on_s3_keep_their_etags(folder: Path, s3_server: S3Server) -> None:
    """On a real object store no old object but the metadata is written again."""
    import fsspec

    fs = fsspec.filesystem("s3", **s3_server.storage_options)
    out = f"{s3_server.fresh_bucket()}/out.zarr"
    how: dict[str, Any] = {"storage_options": s3_server.storage_options, "progress": False}

    def objects() -> dict[str, tuple[str, str]]:
        fs.invalidate_cache()
        found = fs.find(out, detail=True)
        return {
            name: (info["ETag"], str(info["LastModified"]))
            for name, info in found.items()
            if PurePosixPath(name).name not in TOLD
        }

    patchloom.materialize(planned(folder, "ac", rows_per_shard=5), out, **how)
    before = objects()
    assert patchloom.materialize(planned(folder, "abc"), out, **how).complete
    after = objects()
    assert {name: after[name] for name in before} == before
    assert len(after) > len(before)
    store = patchloom.open_patches(out, storage_options=s3_server.storage_options)
    assert {*store.manifest["image_id"].to_pylist()} == {"a", "b", "c"}


def test_a_job_appends_what_its_glob_finds(tmp_path: Path) -> None:
    """The same job file after more files came: said before, done, and refused without a trace."""
    sources = tmp_path / "images"
    write(sources, "bd")
    job = tmp_path / "job.yaml"
    document = {
        "images": str(sources / "?.zarr"),
        "patching": PATCHING,
        "rows_per_shard": 5,
        "output": str(tmp_path / "out.zarr"),
    }
    job.write_text(yaml.safe_dump(document))

    def call(*words: str) -> Any:
        return CliRunner().invoke(main, [*words[:1], str(job), *words[1:]], catch_exceptions=False)

    assert "appends" not in call("run", "--dry-run").stdout
    assert call("run").exit_code == 0
    assert "appends" not in call("plan").stdout
    write(sources, "c")
    planned_again = json.loads(call("plan", "--json").stdout)
    n = planned_again["n_patches"] - patchloom.open_patches(tmp_path / "out.zarr").manifest.num_rows
    told = f"appends 1 image, {n} patches to {tmp_path / 'out.zarr'}"
    assert planned_again["appends"] == [told]
    assert told in call("run", "--dry-run").stdout
    ran = call("run")
    assert (ran.exit_code, told in ran.stderr) == (0, True)
    assert "nothing was left to do" in call("run").stdout
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "out.zarr")]).stdout
    assert "3 (2 + 1 appended)" in shown
    job.write_text(yaml.safe_dump({**document, "seed": 3}))
    write(sources, "e")
    assert "would be refused" in call("run", "--dry-run").stdout
    refused = call("run")
    assert refused.exit_code == 2
    assert "another seed" in refused.stderr
    assert "Traceback" not in refused.stderr
