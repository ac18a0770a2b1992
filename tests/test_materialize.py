"""The whole job against the oracle: every patch, every row, every number."""

from __future__ import annotations

import math
import uuid
from fractions import Fraction
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import ConfigError, ExistsError, FingerprintError
from tests import oracle

AXES = ["x", "yx", "xy", "zyx", "cyx", "yxc", "syx", "tcyx", "ysxc", "czyx", "zcxy", "tzyxc"]
DTYPES = ["uint8", "uint16", "int16", "bool", "float32", "int8", "uint32"]


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """An image of any axes, a mask of any resolution, a grid of any size and edge."""
    axes = draw(st.sampled_from(AXES))
    space = [a for a in "zyx" if a in axes]
    extents = {a: draw(st.integers(1, 3)) for a in "stc"}
    extents |= {a: draw(st.integers(3, 17)) for a in "zyx"}
    shape = tuple(extents[a] for a in axes)
    size = [draw(st.integers(1, extents[a])) for a in space]
    overlaps = [draw(st.integers(0, p - 1)) for p in size]
    chunks = tuple(draw(st.integers(1, n)) for n in shape)
    masked = draw(st.booleans())
    mask_shape = tuple(draw(st.integers(max(1, extents[a] - 1), extents[a])) for a in space)
    if draw(st.booleans()):
        factor = draw(st.integers(1, 4))
        mask_shape = tuple(-(-extents[a] // factor) for a in space)
    return {
        "axes": axes,
        "shape": shape,
        "chunks": chunks,
        "size": size,
        "overlaps": overlaps,
        "context": draw(st.sampled_from([[0] * len(space), [0, 2, 1][: len(space)], [3] * 3])),
        "edge": draw(st.sampled_from(["drop", "shift", "pad"])),
        "pad_mode": draw(st.sampled_from(["constant", "edge", "reflect", "symmetric"])),
        "min_pixels": draw(st.sampled_from([0, 0, 3])),
        "mask_shape": mask_shape if masked else None,
        "min_coverage": draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])),
        "dtype": draw(st.sampled_from(DTYPES)),
        "rows_per_shard": draw(st.sampled_from([None, 1, 2, 3, 7])),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "kind": draw(st.sampled_from(["numpy", "dask", "zarr2", "zarr3", "sharded"])),
    }


def pixels(job: dict[str, Any]) -> Any:
    """Random pixels that use the whole range of their type."""
    rng = np.random.default_rng(job["seed"])
    dtype = np.dtype(job["dtype"])
    if dtype.kind == "f":
        return rng.normal(0, 100, job["shape"]).astype(dtype)
    if dtype.kind == "b":
        return rng.random(job["shape"]) < 0.5
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, job["shape"], dtype=dtype, endpoint=True)


def source(job: dict[str, Any], image: npt.NDArray[Any], folder: Path) -> Any:
    """The image as one of the things that people have."""
    if job["kind"] == "numpy":
        return image
    if job["kind"] == "dask":
        return da.from_array(image, chunks=job["chunks"])
    path = folder / f"{uuid.uuid4().hex}.zarr"
    shards = None
    if job["kind"] == "sharded":
        shards = tuple(2 * c for c in job["chunks"])
    array = zarr.create_array(
        path,
        shape=image.shape,
        dtype=image.dtype,
        chunks=job["chunks"],
        shards=shards,
        zarr_format=2 if job["kind"] == "zarr2" else 3,
    )
    array[...] = image
    return path


def expected(
    job: dict[str, Any], image: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None
) -> dict[tuple[int, tuple[int, ...]], Fraction]:
    """Sample and corner of each patch that must be taken -> its coverage."""
    whole = oracle.canonical(image, job["axes"])
    space = whole.shape[2:]
    found = {}
    for sample in range(whole.shape[0]):
        for corner in oracle.grid(space, job["size"], job["overlaps"], job["edge"]):
            field = np.ones(space, np.bool_) if mask is None else mask
            share = oracle.coverage(field, space, corner, job["size"])
            enough = share >= Fraction(str(job["min_coverage"]))
            enough &= share * math.prod(job["size"]) >= job["min_pixels"]
            if mask is None or enough:
                found[sample, corner] = share
    return found


TINY = {
    "axes": "yx",
    "shape": (3, 14),
    "chunks": (1, 1),
    "size": [1, 1],
    "overlaps": [0, 0],
    "context": [0, 0],
    "edge": "drop",
    "pad_mode": "constant",
    "min_pixels": 0,
    "mask_shape": None,
    "min_coverage": 0.0,
    "dtype": "uint8",
    "rows_per_shard": None,
    "seed": 0,
    "kind": "dask",
}
"""Patches of one pixel: what a row costs beside its pixels is most of it."""


MANY_SHARDS = {**TINY, "axes": "czyx", "shape": (1, 3, 3, 8), "chunks": (1, 1, 1, 1)} | {
    "size": [1, 1, 1],
    "overlaps": [0, 0, 0],
    "context": [0, 0, 0],
    "rows_per_shard": 1,
}
"""Shards smaller than what is fetched ahead: several are counted at a time."""


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@example(job=TINY)
@example(job=MANY_SHARDS)
@given(job=jobs())
def test_whole_job_equals_numpy(job: dict[str, Any], tmp_path_factory: Any) -> None:
    """Kept patches, pixels, manifest and statistics equal the brute force, whatever the job."""
    check_whole_job(job, tmp_path_factory.mktemp("job"))


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(job=jobs())
def test_whole_job_equals_numpy_for_long(job: dict[str, Any], tmp_path_factory: Any) -> None:
    """The same over many more jobs."""
    check_whole_job(job, tmp_path_factory.mktemp("job"))


def check_whole_job(job: dict[str, Any], folder: Path) -> None:
    """Materialise a job and compare everything with brute force."""
    image = pixels(job)
    rng = np.random.default_rng(job["seed"] + 1)
    mask = None if job["mask_shape"] is None else rng.random(job["mask_shape"]) < 0.6
    stored = [a for a in job["axes"] if a in "zyx"]
    order = ["".join(a for a in "zyx" if a in stored).index(a) for a in stored]
    [opened] = patchloom.open_images(
        source(job, image, folder),
        axes=job["axes"],
        mask=None if mask is None else mask.transpose(order),
    )
    context = job["context"][: len(stored)]
    plan = patchloom.plan(
        opened,
        {
            "name": "sequential",
            "patch_size": job["size"],
            "overlaps": job["overlaps"],
            "context": context,
        },
        min_coverage=job["min_coverage"],
        min_pixels=job["min_pixels"],
        edge=job["edge"],
        pad_mode=job["pad_mode"],
        rows_per_shard=job["rows_per_shard"],
        memory="4 GiB",
    )
    wanted = expected(job, image, mask)
    assert plan.n_patches == len(wanted)

    url = f"memory://{uuid.uuid4().hex}.zarr"
    with dask.config.set(scheduler="synchronous"):
        report = patchloom.materialize(plan, url, percentiles=(1, 50, 99), progress=False)
    store = patchloom.open_patches(url)
    assert report.n_patches == len(store) == len(wanted)
    assert report.complete
    assert store.complete
    assert report.chunks_needed == plan.summary()["chunks_needed"]
    assert report.chunk_reads == plan.chunks_needed <= plan.summary()["chunk_reads"]
    assert report.peak_memory <= plan.summary()["peak_memory"]

    whole = oracle.canonical(image, job["axes"])
    rows = store.manifest.to_pylist()
    assert [row["row"] for row in rows] == list(range(len(wanted)))
    assert len({row["patch_id"] for row in rows}) == len(rows)
    space = [a for a in "zyx" if a in job["axes"]]
    seen = {}
    size = [p + 2 * c for p, c in zip(job["size"], context, strict=True)]
    boxes = []
    for row in rows:
        corner = tuple(row[f"start_{a}"] for a in space)
        boxes.append((row["sample"], corner))
        proper = tuple(c + k for c, k in zip(corner, context, strict=True))
        seen[row["sample"], proper] = row["coverage"]
        spec = plan.get_patch_spec(row["row"])
        assert (spec["sample_idx"], spec["coords"]) == (row["sample"], corner)
        cut = oracle.cut(whole[row["sample"]], corner, size, job["pad_mode"])
        np.testing.assert_array_equal(store[row["row"]], cut)
    padded = [oracle.outside(corner, size, whole.shape[2:]) for _, corner in boxes]
    if padded:
        np.testing.assert_array_equal(store.pad_mask(range(len(padded))), np.stack(padded))
    assert seen == {key: float(share) for key, share in wanted.items()}

    if not wanted:
        return
    values = oracle.union_pixels(whole, boxes, size)
    table = store.statistics.isel(image=0)
    for channel, flat in enumerate(values):
        wide = flat.astype("float64")
        row = table.isel(channel=channel)
        assert row["count"].item() == flat.size
        np.testing.assert_array_equal(row["percentile"], np.percentile(wide, (1, 50, 99)))
        assert row["min"].item() == wide.min()
        assert row["max"].item() == wide.max()
        assert math.isclose(row["mean"].item(), wide.mean(), rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(row["std"].item(), wide.std(), rel_tol=1e-9, abs_tol=1e-6)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(job=jobs(), n=st.integers(0, 60))
def test_random_patches_equal_numpy_slices(
    job: dict[str, Any], n: int, tmp_path_factory: Any
) -> None:
    """Random patches lie inside, have ids of their own and are the pixels that they name."""
    folder = tmp_path_factory.mktemp("job")
    image = pixels(job)
    [opened] = patchloom.open_images(source(job, image, folder), axes=job["axes"])
    config = {"name": "random", "patch_size": job["size"], "n_patches": n}
    plan = patchloom.plan(opened, config, seed=job["seed"], rows_per_shard=job["rows_per_shard"])
    assert plan.n_patches == n
    url = f"memory://{uuid.uuid4().hex}.zarr"
    with dask.config.set(scheduler="synchronous"):
        report = patchloom.materialize(plan, url, progress=False)
    assert report.chunk_reads == plan.chunks_needed <= plan.summary()["chunk_reads"]
    store = patchloom.open_patches(url)
    whole = oracle.canonical(image, job["axes"])
    space = [a for a in "zyx" if a in job["axes"]]
    taken = []
    for row in store.manifest.to_pylist():
        corner = tuple(row[f"start_{a}"] for a in space)
        limits = zip(corner, job["size"], whole.shape[2:], strict=True)
        assert all(0 <= c <= c + p <= s for c, p, s in limits)
        np.testing.assert_array_equal(
            store[row["row"]], oracle.cut(whole[row["sample"]], corner, job["size"])
        )
        taken.append((row["sample"], corner))
    assert len(set(store.manifest["patch_id"].to_pylist())) == n
    if n:
        values = oracle.union_pixels(whole, taken, job["size"])
        assert store.statistics["count"].values.ravel().tolist() == [v.size for v in values]


@pytest.fixture
def small(tmp_path: Path) -> patchloom.Plan:
    """A plan of 36 patches over a stored image."""
    path = tmp_path / "image.zarr"
    array = zarr.create_array(path, shape=(2, 60, 60), dtype="uint16", chunks=(1, 16, 16))
    array[...] = np.random.default_rng(0).integers(0, 4000, (2, 60, 60), dtype="uint16")
    images = patchloom.open_images(path, axes="CYX")
    return patchloom.plan(images, {"name": "sequential", "patch_size": [10, 10]}, rows_per_shard=5)


def contents(folder: Path) -> dict[str, bytes]:
    """Every object below a folder and its bytes."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_every_scheduler_writes_the_same_bytes(
    scheduler: str, small: patchloom.Plan, tmp_path: Path
) -> None:
    """Same plan, same bytes: one thread, many threads, many processes."""
    with dask.config.set(scheduler="synchronous"):
        patchloom.materialize(small, tmp_path / "first.zarr", progress=False)
    with dask.config.set(scheduler=scheduler, num_workers=2):
        report = patchloom.materialize(small, tmp_path / "second.zarr", progress=False)
    assert report.n_tasks == small.n_tasks
    assert contents(tmp_path / "first.zarr") == contents(tmp_path / "second.zarr")


def test_second_call_does_nothing(small: patchloom.Plan, tmp_path: Path) -> None:
    """A finished store is found finished: no task, no read, no write."""
    patchloom.materialize(small, tmp_path / "out.zarr", progress=False)
    before = contents(tmp_path / "out.zarr")
    report = patchloom.materialize(small, tmp_path / "out.zarr", progress=False)
    assert (report.n_tasks, report.chunk_reads, report.bytes_written) == (0, 0, 0)
    assert report.already_done == small.n_shards
    assert contents(tmp_path / "out.zarr") == before


def test_another_plan_is_refused(small: patchloom.Plan, tmp_path: Path) -> None:
    """A store of another plan, or anything else, is left as it is."""
    out = tmp_path / "out.zarr"
    patchloom.materialize(small, out, progress=False)
    before = contents(out)
    other = patchloom.plan(small.images, {"name": "sequential", "patch_size": [12, 12]})
    with pytest.raises(FingerprintError, match="another URL"):
        patchloom.materialize(other, out, progress=False)
    with pytest.raises(FingerprintError, match="job"):
        patchloom.materialize(small, out, percentiles=(5, 95), progress=False)
    with pytest.raises(ExistsError, match="resume=True"):
        patchloom.materialize(small, out, resume=False, progress=False)
    assert contents(out) == before
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    with pytest.raises(ExistsError, match=r"thesis\.txt"):
        patchloom.materialize(small, taken, progress=False)
    assert contents(taken) == {"thesis.txt": b"mine"}
    with pytest.raises(ExistsError, match="nothing was touched"):
        patchloom.materialize(small, tmp_path / "image.zarr", progress=False)


def test_store_opens_in_plain_zarr_and_xarray(small: patchloom.Plan, tmp_path: Path) -> None:
    """No patchloom is needed to read the pixels."""
    import xarray

    out = tmp_path / "out.zarr"
    patchloom.materialize(small, out, progress=False)
    store = patchloom.open_patches(out)
    plain = zarr.open_group(out, mode="r")
    np.testing.assert_array_equal(plain["images"][...], store[:])  # type: ignore[index]
    assert list(plain) == ["images"]
    view = xarray.open_zarr(out, chunks=None)
    assert view["images"].dims == ("patch", "c", "y", "x")
    np.testing.assert_array_equal(store.to_xarray()["images"], view["images"])
    assert store.to_xarray()["start_x"].dims == ("patch",)


def test_statistics_over_the_image(small: patchloom.Plan, tmp_path: Path) -> None:
    """over="image" counts every pixel, in a pass of its own that the report counts apart."""
    report = patchloom.materialize(small, tmp_path / "out.zarr", over="image", progress=False)
    assert report.survey_reads == 2 * 16
    store = patchloom.open_patches(tmp_path / "out.zarr")
    assert store.statistics["count"].values.tolist() == [[3600, 3600]]
    direct = patchloom.statistics(small.images, (1, 99))
    np.testing.assert_array_equal(store.statistics["percentile"], direct["percentile"])


@pytest.mark.parametrize("kind", ["percentile", "mean-std"])
def test_normalised_patches(kind: str, small: patchloom.Plan, tmp_path: Path) -> None:
    """Asked for, patches are scaled by the statistics of their own channel, as float32."""
    patchloom.materialize(small, tmp_path / "raw.zarr", progress=False)
    patchloom.materialize(small, tmp_path / "out.zarr", normalize=kind, progress=False)
    raw, scaled = (patchloom.open_patches(tmp_path / f"{n}.zarr") for n in ("raw", "out"))
    table = raw.statistics.isel(image=0)
    for channel in range(2):
        row = table.isel(channel=channel)
        flat = raw[:, channel].astype("float64")
        low, high = row["percentile"].values
        want = (
            np.clip((flat - low) / (high - low), 0, 1)
            if kind == "percentile"
            else (flat - row["mean"].item()) / row["std"].item()
        )
        np.testing.assert_allclose(scaled[:, channel], want, atol=1e-6)
    assert scaled.images.dtype == np.float32


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"normalize": "zscore"}, "normalize="),
        ({"over": "mask"}, "over="),
        ({"on_error": "ignore"}, "on_error="),
        ({"codec": "jpeg"}, "codec="),
        ({"percentiles": (1, 101)}, "percent"),
    ],
)
def test_wrong_choices_are_named(
    wrong: dict[str, Any], words: str, small: patchloom.Plan, tmp_path: Path
) -> None:
    """A wrong argument is refused before anything is written."""
    with pytest.raises(ConfigError, match=words):
        patchloom.materialize(small, tmp_path / "out.zarr", progress=False, **wrong)
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize("codec", ["blosc-zstd", "blosc-lz4", "zstd", "none"])
def test_codecs_change_bytes_not_pixels(codec: str, small: patchloom.Plan, tmp_path: Path) -> None:
    """Whatever the codec, zarr-python reads the same pixels."""
    patchloom.materialize(small, tmp_path / "out.zarr", codec=codec, progress=False)
    store = patchloom.open_patches(tmp_path / "out.zarr")
    spec = small.get_patch_spec(7)
    y, x = spec["coords"]
    np.testing.assert_array_equal(store[7], small.images[0].read([0, y, x], [2, y + 10, x + 10]))
    shard = tmp_path / "out.zarr" / "images" / "c" / "0" / "0" / "0" / "0"
    damaged = bytearray(shard.read_bytes())
    damaged[10] ^= 0xFF
    shard.write_bytes(damaged)
    with pytest.raises(Exception, match=r"(?i)checksum|crc"):
        patchloom.open_patches(tmp_path / "out.zarr")[0]


def test_an_empty_plan_makes_an_empty_store(tmp_path: Path) -> None:
    """Nothing under the mask is legal, says why, and can be read back."""
    [image] = patchloom.open_images(np.ones((20, 20), "uint8"), mask=np.zeros((20, 20), bool))
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [5, 5]}, min_coverage=0.5)
    assert plan.n_patches == 0
    assert plan.figures()["rejected"] == {"outside the mask": 16}
    report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    store = patchloom.open_patches(tmp_path / "out.zarr")
    assert (report.n_tasks, len(store), store.complete) == (0, 0, True)
    assert store.images.shape == (0, 1, 5, 5)
    assert store.manifest.num_rows == 0
    assert "patch_id" in store.manifest.column_names


def test_labels_and_target_are_cut_with_the_image(tmp_path: Path) -> None:
    """Rows of labels and targets show the same box as the image's."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (3, 40, 40), dtype="uint8")
    labels = rng.integers(0, 9, (40, 40), dtype="uint32")
    target = rng.random((2, 40, 40)).astype("float32")
    [opened] = patchloom.open_images(image, axes="CYX", labels=labels, target=target)
    plan = patchloom.plan(opened, {"name": "random", "patch_size": [7, 9], "n_patches": 25})
    patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    store = patchloom.open_patches(tmp_path / "out.zarr")
    assert store.labels is not None
    assert store.targets is not None
    for row in store.manifest.to_pylist():
        box = (slice(row["start_y"], row["start_y"] + 7), slice(row["start_x"], row["start_x"] + 9))
        np.testing.assert_array_equal(store[row["row"]], image[(slice(None), *box)])
        np.testing.assert_array_equal(store.labels[row["row"]], labels[None][(slice(None), *box)])
        np.testing.assert_array_equal(store.targets[row["row"]], target[(slice(None), *box)])


def test_metadata_columns_ride_along(tmp_path: Path) -> None:
    """An image's metadata are columns of its rows; reserved names are refused."""
    images = patchloom.open_images(
        [np.zeros((8, 8)), np.ones((8, 8))],
        ids=["a", "b"],
        sample={"a": {"donor": "d1", "day": 3}, "b": {"donor": "d2", "day": 5}},
    )
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [4, 4]})
    patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    table = patchloom.open_patches(tmp_path / "out.zarr").manifest
    assert table["donor"].to_pylist() == ["d1"] * 4 + ["d2"] * 4
    assert table["day"].to_pylist() == [3] * 4 + [5] * 4
    [image] = patchloom.open_images(np.zeros((8, 8)), sample={"row": 1})
    with pytest.raises(ConfigError, match="row"):
        patchloom.plan(image, {"name": "sequential", "patch_size": [4, 4]})


@pytest.mark.parametrize("edge", ["drop", "shift", "pad"])
@pytest.mark.parametrize(
    "config",
    [
        {"name": "tiled", "patch_size": [4, 16, 12], "overlaps": [1, 3, 4]},
        {"name": "chunk_aligned", "patch_size": [2, 7, 9], "shift": [0, 1, 1]},
        {"name": "chunk_aligned", "patch_size": [3, 8, 8], "overlaps": [1, 0, 5]},
        {"name": "fixed_random", "patch_size": [3, 9, 8], "n_patches": 25},
        {"name": "random", "patch_size": [3, 9, 8], "inside_chunks": True},
        {"name": "stratified", "patch_size": [3, 9, 8]},
        {"name": "whole"},
    ],
    ids=lambda config: config["name"],
)
def test_every_strategy_becomes_its_pixels(
    config: dict[str, Any], edge: Any, tmp_path: Path
) -> None:
    """What a strategy places is what the store holds, and aligned patches cost no chunk twice."""
    rng = np.random.default_rng(3)
    whole = config["name"] == "whole"
    shapes = [(7, 40, 33), (7, 20, 52) if edge == "pad" or not whole else (7, 40, 33)]
    arrays = [rng.integers(0, 2**16, shape, dtype=np.uint16) for shape in shapes]
    images = [
        image
        for k, array in enumerate(arrays)
        for image in patchloom.open_images(
            da.from_array(array, chunks=(3, 16, 20)), ids=[str(k)], axes="ZYX"
        )
    ]
    plan = patchloom.plan(images, config, edge=edge, rows_per_shard=16, seed=5)
    assert plan.n_patches
    url = str(tmp_path / "patches.zarr")
    report = patchloom.materialize(plan, url, progress=False)
    found: Any = zarr.open_group(url, mode="r")["images"]
    stored = found[:]
    for row in range(plan.n_patches):
        spec = plan.get_patch_spec(row)
        source = oracle.canonical(arrays[spec["data_idx"]], "zyx")[0]
        want = oracle.cut(source, spec["coords"], spec["patch_size"])
        assert (stored[row] == want).all()
    assert len(stored) == plan.n_patches == report.n_patches
    strategy = plan.patching
    assert plan.n_patches == strategy.n_patches
    if config["name"] == "chunk_aligned" and edge == "drop":
        assert strategy.is_aligned
        assert plan.chunk_reads == plan.chunks_needed
    plan.save(str(tmp_path / "plan"))
    again = patchloom.Plan.load(str(tmp_path / "plan"), images=images)
    assert again.fingerprint == plan.fingerprint
