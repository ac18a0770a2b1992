"""How statistics are made: by any scheduler, in few tasks, of no chunk too many, to real truths."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from dask.callbacks import Callback

import patchloom
from patchloom.coverage import Alignment
from patchloom.errors import ChunkError, ConfigError, PlanError, SourceChangedError
from patchloom.image import Role
from patchloom.run import counting, passes
from patchloom.run.counting import CLASSES, HISTOGRAMS
from patchloom.run.ground import Question
from patchloom.run.passes import survey_graph, survey_tasks
from patchloom.run.reducing import FAN, ROOTS
from patchloom.run.surveying import surveyed
from tests import truth
from tests.clusters import local_cluster
from tests.truth import ArrayTruth

AXES = {1: "x", 2: "yx", 3: "zyx", 4: "szyx", 5: "stzyx"}
GRID = {"name": "sequential", "patch_size": [20, 20], "overlaps": [6, 6]}


def stored(path: Path, pixels: Any, chunks: tuple[int, ...]) -> Path:
    array = zarr.create_array(path, shape=pixels.shape, chunks=chunks, dtype=pixels.dtype)
    array[...] = pixels
    return path


@pytest.fixture
def pixels() -> Any:
    return np.random.default_rng(3).lognormal(4, 2, (2, 300, 250)).astype("float32")


@pytest.mark.parametrize("scheduler", ["threads", "processes", "distributed"])
def test_any_scheduler_gives_the_same_bits(scheduler: str, pixels: Any, tmp_path: Path) -> None:
    """Also where further passes are needed, over images, masks and patches."""
    path = stored(tmp_path / "a.zarr", pixels, (1, 32, 64))
    mask = np.random.default_rng(0).random((150, 125)) < 0.97
    images = patchloom.open_images(path, axes="CYX", mask=mask)
    plan = patchloom.plan(images, GRID, min_coverage=0.9)

    def all_of() -> list[Any]:
        asked: list[dict[str, Any]] = [{}, {"over": "mask"}]
        found = [patchloom.statistics(images, **how) for how in asked]
        return [*found, patchloom.statistics(plan, each="taken")]

    with dask.config.set(scheduler="synchronous"):
        alone = all_of()
    if scheduler == "distributed":
        with local_cluster(n_workers=2, threads_per_worker=2) as cluster, cluster.get_client():
            found = all_of()
    else:
        with dask.config.set(scheduler=scheduler, num_workers=3):
            found = all_of()
    assert all(one.attrs["exact"] for one in alone)
    for one, other in zip(alone, found, strict=True):
        assert one.drop_attrs().identical(other.drop_attrs())


def test_chunks_do_not_matter(pixels: Any, tmp_path: Path) -> None:
    """Sums are the same to the last bit, whoever adds them."""
    tables = [
        patchloom.statistics(
            patchloom.open_images(stored(tmp_path / f"{k}.zarr", pixels, chunks), ids=["a"]),
        ).drop_attrs()
        for k, chunks in enumerate([(1, 300, 250), (2, 7, 50), (1, 64, 64)])
    ]
    assert all(tables[0].identical(other) for other in tables[1:])


def test_wide_types_take_few_passes(pixels: Any, tmp_path: Path) -> None:
    """Exact in two passes of 32 bits; one pass states its error, and keeps it."""
    image = patchloom.open_images(stored(tmp_path / "a.zarr", pixels, (1, 64, 64)), axes="CYX")
    q = (0, 0.1, 1, 50, 99, 99.9, 100)
    found, reads = surveyed(image, q)
    assert reads.chunks == 2 * 2 * 5 * 4
    table = found.dataset(q)
    want = np.percentile(pixels.reshape(2, -1).astype("float64"), q, axis=1).T
    np.testing.assert_array_equal(table["percentile"][0], want)
    np.testing.assert_array_equal(table["median"][0], np.median(pixels.reshape(2, -1), axis=1))
    assert (table.attrs["exact"], table.attrs["relative_error"]) == (True, 0.0)
    bounded, reads = surveyed(image, q, exact=False)
    assert reads.chunks == 2 * 5 * 4
    table = bounded.dataset(q)
    assert not table.attrs["exact"]
    error = np.abs(table["percentile"][0].values - want) / np.abs(want)
    assert 0 < error.max() <= table.attrs["relative_error"]
    np.testing.assert_array_equal(table["mean"], found.dataset(q)["mean"])


@pytest.mark.parametrize("dtype", ["uint32", "int32", "int64", "float64"])
def test_pooled_groups_are_exact_too(dtype: str, tmp_path: Path) -> None:
    """What is asked of groups of images is refined for the group, and planes for the image."""
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 2**30, (2, 190, 200)).astype(dtype) * (k + 1) for k in range(3)]
    images = patchloom.open_images(parts, axes="ZYX")
    q = (1, 30, 99)
    found = patchloom.summarize(images, q, by=None, planes=True)
    wide = [part.astype("float64") for part in parts]
    tables = [
        (found.dataset(q, by=None), [np.concatenate([w[z].ravel() for w in wide]) for z in (0, 1)]),
        (found.pooled(q), [w.ravel() for w in wide]),
        (found.pooled(q, by=None), [np.concatenate(wide, axis=None)]),
        (found.dataset(q), [w[z].ravel() for w in wide for z in (0, 1)]),
    ]
    for table, want in tables:
        assert table.attrs["exact"]
        got = table["percentile"].values.reshape(-1, len(q))
        np.testing.assert_array_equal(got, [np.percentile(w, q) for w in want])


def test_pools_of_few_and_many_values_are_exact() -> None:
    """More percentiles than a pass looks into; what is exact already is read once."""
    rng = np.random.default_rng(0)
    few = rng.integers(0, 50_000, (300, 300)).astype("float32") / 7
    many = rng.normal(3000, 2000, (300, 300)).astype("float32")
    images = patchloom.open_images([few, few * 3, many], axes="YX")
    both = np.concatenate([few, few * 3, many], axis=None).astype("float64")
    for q, n in (((1, 99), 2), (tuple(range(1, 100)), 7)):
        found, reads = surveyed(images, q, by=None)
        assert reads.chunks <= 2 + n
        table = found.dataset(q, by=None)
        assert table.attrs["exact"]
        np.testing.assert_array_equal(table["percentile"][0, 0], np.percentile(both, q))


def test_a_pass_reads_only_what_needs_it(tmp_path: Path) -> None:
    """Images and channels that are exact already are not gone over again."""
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(2, 300, 300)).astype("float32")
    wide[0] = 7
    narrow = np.round(wide * 9).astype("float32")
    urls = [
        stored(tmp_path / f"{name}.zarr", part, (1, 100, 100))
        for name, part in (("wide", wide), ("narrow", narrow))
    ]
    images = [patchloom.open_images(url, axes="CYX")[0] for url in urls]
    _, reads = surveyed(images)
    assert reads.chunks == 2 * 2 * 9 + 9


SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [37, 3], [32, 32.5], [0, 32], [0, 0]]]}
MASKS: dict[str, Any] = {
    "coarse": np.random.default_rng(1).random((6, 7)) < 0.5,
    "fine": np.random.default_rng(1).random((300, 350)) < 0.5,
    "labels": {"labels": np.arange(6000).reshape(60, 100)[:, :70] % 5, "classes": [1, 3]},
    "polygons": {"polygons": SQUARE},
    "boxes": {"boxes": {"y0": [2], "x0": [3.5], "y1": [16], "x1": [48]}},
    "auto": {"auto": "otsu"},
    "nodata": {"nodata": [0, 7]},
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("in_memory", [False, True])
def test_under_a_mask_is_what_patches_of_a_pixel_keep(
    kind: str, in_memory: bool, tmp_path: Path
) -> None:
    """One meaning everywhere: a plan keeps the same pixels with a coverage of one half."""
    pixels = np.random.default_rng(0).integers(0, 99, (60, 70), dtype="uint8")
    source = pixels if in_memory else stored(tmp_path / "a.zarr", pixels, (16, 16))
    images = patchloom.open_images(source, mask=MASKS[kind], ids=["a"])
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [1, 1]}, min_coverage=0.5)
    of_patches = patchloom.statistics(plan, (1, 50, 99)).drop_attrs()
    assert 0 < plan.n_patches == of_patches["count"].item() < pixels.size
    for what in (images, plan):
        table = patchloom.statistics(what, (1, 50, 99), over="mask").drop_attrs()
        assert table.identical(of_patches)


@pytest.mark.parametrize("lazy", [False, True])
def test_no_chunk_outside_a_mask_is_read(lazy: bool, tmp_path: Path) -> None:
    """Those under the mask once; those that patches need once, however many tasks there are."""
    pixels = np.arange(256 * 256, dtype="uint16").reshape(256, 256)
    path = stored(tmp_path / "a.zarr", pixels, (32, 32))
    for chunk in (tmp_path / "a.zarr" / "c" / "7").iterdir():
        chunk.write_bytes(b"broken")
    mask: Any = np.zeros((16, 16), np.uint8)
    mask[2:6, 1:5] = 1
    if not lazy:
        mask = stored(tmp_path / "m.zarr", mask, (5, 5))
    images = patchloom.open_images(path, mask=mask)
    found, reads = surveyed(images, over="mask")
    assert reads.chunks == 6
    table = found.dataset()
    inside = pixels[32:96, 16:80]
    assert (table["min"].item(), table["max"].item()) == (inside.min(), inside.max())
    assert table["count"].item() == 64 * 64
    plan = patchloom.plan(images, GRID, min_coverage=1)
    found, reads = surveyed(plan)
    assert reads.chunks == plan.chunks_needed
    with pytest.raises(ChunkError):
        patchloom.statistics(images)


def test_tasks_are_as_many_as_chunks_fill() -> None:
    """A thousand small images are few tasks; a large one is a tree of bounded width."""
    small = patchloom.open_images([np.zeros((64, 64), "uint8")] * 1000)
    assert len([t for tasks in survey_tasks(Question(), small) for t in tasks]) <= 4
    big = patchloom.open_images(da.zeros((2**18, 2**18), dtype="uint8", chunks=2**13), axes="YX")
    [tasks] = survey_tasks(Question(), big)
    assert len(tasks) == 2**36 // 2**27
    graph = survey_graph(Question(), big, None, None, "t")
    own = {k: v for k, v in graph.dsk.items() if "patchloom" in str(k)}
    sums = [v for v in own.values() if isinstance(v, tuple) and len(v) == 2 and len(v[1]) <= FAN]
    assert len(graph.keys) <= ROOTS
    assert len(own) <= len(tasks) * 1.2 + 2
    assert max(len(v[1]) for v in sums) == FAN


def test_a_task_holds_a_bounded_number_of_histograms() -> None:
    """Deep chunks and many channels are counted part by part."""
    pixels = np.random.default_rng(0).integers(0, 9, (40, 30, 4, 5), dtype="uint8")
    images = patchloom.open_images(pixels, axes="ZCYX")
    for planes in (False, True):
        for tasks in survey_tasks(Question(planes=planes), images):
            for piece in (piece for pieces in tasks for piece in pieces):
                low, high = piece.planes or (0, 1)
                n = (high - low) * (piece.channels[1] - piece.channels[0])
                assert n <= HISTOGRAMS
    table = patchloom.statistics(images, (50,), planes=True)
    want = np.percentile(pixels, 50, axis=(2, 3)).T
    np.testing.assert_array_equal(table["percentile"][0, ..., 0], want)


def test_few_histograms_at_once_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put away as summaries whenever there are too many; also while classes are refined."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, 2, 420, 400)).astype("float32")
    labels = rng.integers(0, 2, (210, 200), dtype="uint8")
    images = patchloom.open_images(da.from_array(pixels, chunks=(2, 2, 210, 150)), axes="ZCYX")
    [image] = images
    [values] = patchloom.open_images(labels, axes="YX")
    role = Role(values, Alignment.of_shapes((420, 400), (210, 200)), "yx")
    image = image.with_role("labels", role)

    def counted() -> Any:
        return patchloom.statistics(image, (1, 50, 99), planes=True, labels=True, by=None)

    many = counted()
    monkeypatch.setattr(counting, "HISTOGRAMS", 3)
    monkeypatch.setattr(passes, "HISTOGRAMS", 3)
    few = counted()
    assert few.drop_attrs().identical(many.drop_attrs())
    assert few.attrs["exact"]
    where = np.kron(labels, np.ones((2, 2), "uint8"))
    for z, channel, value in np.ndindex(2, 2, 2):
        want = np.percentile(pixels[z, channel][where == value].astype("float64"), (1, 50, 99))
        got = few["percentile"].sel(z=z, label=value)[0, channel]
        np.testing.assert_array_equal(got, want)


def test_single_objects_are_no_classes(tmp_path: Path) -> None:
    """More values than a table should have are refused, in one task or in several."""
    values = np.arange(64 * 64, dtype="uint16").reshape(64, 64) // 8
    for chunk in (64, 8):
        labels = stored(tmp_path / f"{chunk}.zarr", values, (chunk, chunk))
        images = patchloom.open_images(np.zeros((64, 64), "uint8"), labels=labels)
        with pytest.raises(ConfigError, match=f"at most {CLASSES} classes"):
            patchloom.statistics(images, labels=True)


def test_what_cannot_be_counted_is_told_first() -> None:
    """Each mistake in words, before anything is read."""
    images = patchloom.open_images(np.zeros((8, 8), "uint8"))
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [4, 4]})
    mistakes: list[tuple[Any, dict[str, Any], str]] = [
        (images, {"over": "mask"}, "mask"),
        (images, {"over": "patches"}, "plan"),
        (images, {"over": "all"}, "over="),
        (images, {"each": "twice"}, "each="),
        (images, {"each": "taken"}, "over='patches'"),
        (plan, {"over": "image", "each": "taken"}, "over='patches'"),
        (images, {"labels": True}, "labels"),
        (images, {"planes": True}, "z axis"),
        (images, {"method": "middle"}, "method="),
        (images, {"by": "stain"}, "by="),
        ("a.zarr", {}, "open_images"),
        (images, {"percentiles": (101,)}, "percent"),
    ]
    for what, how, words in mistakes:
        with pytest.raises(ConfigError, match=words):
            patchloom.statistics(what, **how)
    with pytest.raises(PlanError, match="at least one image"):
        patchloom.statistics([])
    whole = patchloom.statistics(plan, over="image")
    assert (whole["count"].item(), whole.attrs["over"]) == (64, "image")


def test_a_source_that_changes_between_passes_is_refused(tmp_path: Path) -> None:
    """The second pass would count other pixels than the first."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(300, 300)).astype("float32")
    path = stored(tmp_path / "a.zarr", pixels, (100, 100))
    images = patchloom.open_images(path)

    def rewrite(key: Any, *_: Any) -> None:
        if isinstance(key, tuple) and str(key[0]).startswith("patchloom-survey"):
            zarr.open_array(path)[...] = pixels

    with dask.config.set(scheduler="synchronous"), Callback(posttask=rewrite):
        assert not patchloom.statistics(images, exact=False).attrs["exact"]
        with pytest.raises(SourceChangedError, match="written"):
            patchloom.statistics(images)


def test_a_source_that_never_gives_the_same_pixels_is_refused() -> None:
    """No time of writing tells of it, but the counts of each leaf do: passes come to an end."""
    pixels, times = np.random.default_rng(0).normal(size=(300, 300)).astype("float32"), [0]

    def load() -> Any:
        times[0] += 1
        return pixels + times[0]

    lazy = da.from_delayed(dask.delayed(load, pure=False)(), pixels.shape, pixels.dtype)
    images = patchloom.open_images(lazy, axes="YX")
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(SourceChangedError, match="has changed meanwhile"),
    ):
        patchloom.statistics(images)
    assert times == [2]


ZARRS = truth.all_truths(containers={"zarr"})


@pytest.mark.parametrize("found", ZARRS, ids=lambda t: t.id)
def test_truth_of_real_arrays(found: ArrayTruth) -> None:
    """Every readable Zarr array: all numbers, exact, in as few passes as its type needs."""
    entry = found.entry
    axes = AXES[len(entry.shape)]
    image = patchloom.open_images(str(found.path), axes=axes)
    pooled, reads = surveyed(image, (1, 50, 99))
    table = pooled.dataset((1, 50, 99)).isel(image=0, channel=0)
    assert table.attrs["exact"]
    assert reads.chunks % image[0].grid.n_chunks == 0
    assert table["count"].item() + table["nans"].item() == math.prod(entry.shape)
    for name in ("min", "max", "mean", "std"):
        assert math.isclose(table[name].item(), entry.raw[name], rel_tol=1e-6, abs_tol=1e-12), name
    np.testing.assert_allclose(table["percentile"], entry.raw["p1_p50_p99"], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("well", ["A06", "G04"])
def test_nuclei_of_real_organoids(well: str, data_set: Callable[[str], Path]) -> None:
    """As many pixels under the nuclei as an independent count found; by plane, they add up."""
    root = data_set("organoid_confocal")
    level = "s0" if (root / f"{well}.ome.zarr/s0").exists() else "s2"
    [image] = patchloom.open_images(root / f"{well}.ome.zarr", level=level, mask="nuclei")
    assert image.mask is not None
    nuclei = image.mask.image.read([0] * image.mask.image.ndim, image.mask.image.shape) != 0
    known = json.loads((root / "truth.json").read_text()).get("_extra", {}).get(well)
    if known is not None and level == "s0":
        assert known["fg_voxels"] == nuclei.sum()
    by_plane = patchloom.summarize(image, over="mask", planes=True)
    table = by_plane.pooled((1, 50, 99)).isel(image=0)
    assert set(table["count"].values.tolist()) == {int(nuclei.sum())}
    pixels = np.asarray(image.data.values)
    for channel in range(len(pixels)):
        inside = pixels[channel][nuclei.reshape(pixels.shape[1:])].astype("float64")
        np.testing.assert_array_equal(
            table["percentile"][channel], np.percentile(inside, (1, 50, 99))
        )
        assert table["mean"][channel].item() == math.fsum(inside) / len(inside)
    if known is not None and level == "s0":
        empty = [z for z in range(pixels.shape[1]) if z not in by_plane.planes]
        assert empty == known["empty_z_labels"]
