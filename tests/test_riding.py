"""Statistics that ride on the writing pass, against NumPy over the very pixels that were taken."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from click.testing import CliRunner
from dask.callbacks import Callback
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import ChunkError, ConfigError, FingerprintError
from patchloom.summaries import DISTINCT, METHODS, RELATIVE_ERROR
from tests.clients import contents

Pixels = npt.NDArray[Any]
Q = (0, 1, 37.5, 50, 99.9, 100)
WIDE = ("uint32", "int32", "float32", "float64", "int64")


@pytest.fixture(autouse=True)
def _here() -> Iterator[None]:
    """Tasks run in this thread: small ones, and many examples."""
    with dask.config.set(scheduler="synchronous"):
        yield


# -- the oracle -----------------------------------------------------------------------


def taken(store: patchloom.PatchStore, image: str, shape: tuple[int, ...]) -> Pixels:
    """How many patches of a store take each pixel of an image [sample, z, y, x]: one by one."""
    found = np.zeros(shape, np.int64)
    axes = str(store.attributes["axes"]).replace("c", "")
    for row in store.manifest.to_pylist():
        if row["image_id"] != image:
            continue
        where = tuple(
            slice(max(0, row[f"start_{a}"]), max(0, row[f"start_{a}"] + size))
            for a, size in zip(axes, store.attributes["patch_shape"][1:], strict=True)
        )
        found[row["sample"]][where] += 1
    return found


def numbers(pixels: Pixels, nodata: float | None, method: str) -> dict[str, Any]:
    """What NumPy says of some pixels; those that count several times are there several times."""
    wide = pixels.astype("float64")
    # NaN as nodata says nothing new.
    blank = np.zeros(wide.shape, bool) if nodata is None else wide == nodata
    nans = np.isnan(wide)
    real = wide[~blank & ~nans]
    found = {"count": real.size, "nans": int(nans.sum()), "nodata": int(blank.sum())}
    if not real.size:
        return found
    return found | {
        "percentile": np.percentile(real, Q, method=method),  # type: ignore[call-overload]
        "median": np.median(real),
        "mad": np.median(np.abs(real - np.median(real))),
        "min": real.min(),
        "max": real.max(),
        "mean": math.fsum(real) / real.size,
        "std": real.std(),
    }


def check(found: Any, expected: dict[str, Any], *, bucketed: bool = False) -> None:
    """One image and channel of a Dataset: counts and exact numbers to the last bit."""
    for name in ("count", "nans", "nodata"):
        assert found[name].item() == expected[name], name
    if not expected["count"]:
        assert np.isnan(found["percentile"].values).all()
        return
    for name in ("percentile", "median", "min", "max"):
        np.testing.assert_array_equal(found[name].values, expected[name], err_msg=name)
    # Its bound is that of the buckets around the median, also where finer passes were made.
    off = RELATIVE_ERROR * (2 * abs(expected["median"]) + expected["mad"]) if bucketed else 0
    assert abs(found["mad"].item() - expected["mad"]) <= off
    for name in ("mean", "std"):
        assert found[name].item() == pytest.approx(expected[name], rel=1e-9, abs=1e-9), name


# -- every rule at once ---------------------------------------------------------------


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """Images of any type in any chunks, patches of any kind, and what is asked of them."""
    axes = draw(st.sampled_from(["yx", "cyx", "zyx", "syx", "sczyx"]))
    space = [a for a in "zyx" if a in axes]
    extents = {a: draw(st.integers(1, 2)) for a in "sc"} | {
        a: draw(st.integers(4, 15)) for a in "zyx"
    }
    shape = tuple(extents[a] for a in axes)
    size = [draw(st.integers(1, extents[a])) for a in space]
    name = draw(st.sampled_from(["sequential", "random"]))
    config: dict[str, Any] = {"name": name, "patch_size": size}
    if name == "random":
        config["n_patches"] = draw(st.integers(1, 25))
    else:
        config["overlaps"] = [draw(st.integers(0, p - 1)) for p in size]
    dtype = draw(st.sampled_from(["bool", "uint8", "int8", "uint16", "int16", "float16", *WIDE]))
    return {
        "axes": axes,
        "shape": shape,
        "chunks": tuple(draw(st.integers(1, n)) for n in shape),
        "patching": config,
        "edge": draw(st.sampled_from(["drop", "shift", "pad"])) if name != "random" else "drop",
        "pad_mode": draw(st.sampled_from(["constant", "reflect"])),
        "order": draw(st.sampled_from(["spatial", "shuffled"])),
        "rows_per_shard": draw(st.sampled_from([None, 1, 3])),
        "dtype": dtype,
        "nodata": draw(st.sampled_from([None, 0, 1, "nan" if dtype.startswith("f") else 1])),
        "each": draw(st.sampled_from(["once", "taken"])),
        "method": draw(st.sampled_from(METHODS)),
        "exact": draw(st.booleans()),
        "kind": draw(st.sampled_from(["numpy", "dask", "zarr"])),
        "n_images": draw(st.integers(1, 2)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def drawn(job: dict[str, Any], number: int) -> Any:
    """Pixels of few and of many values, with all that floats can be."""
    rng = np.random.default_rng([job["seed"], number])
    dtype, shape = np.dtype(job["dtype"]), job["shape"]
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind == "f":
        pixels = rng.normal(0, 100, shape).astype(dtype)
        odd = rng.random(shape)
        for k, value in enumerate((np.nan, 0.0, -0.0, 1.0, np.finfo(dtype).tiny, 1e4)):
            pixels[(odd > 0.05 * k) & (odd < 0.05 * k + 0.05)] = value
        return pixels
    info = np.iinfo(dtype)
    low, high = (0, 3) if rng.random() < 0.5 else (max(info.min, -(2**52)), min(info.max, 2**52))
    return rng.integers(low, high, shape, dtype=dtype, endpoint=True)


def given_as(job: dict[str, Any], pixels: Pixels, folder: Path) -> Any:
    """An image as one of the things that people have."""
    if job["kind"] == "numpy":
        return pixels
    if job["kind"] == "dask":
        return da.from_array(pixels, chunks=job["chunks"])
    path = folder / f"{uuid.uuid4().hex}.zarr"
    array = zarr.create_array(path, shape=pixels.shape, dtype=pixels.dtype, chunks=job["chunks"])
    array[...] = pixels
    return path


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(job=jobs())
def test_statistics_are_those_of_numpy(job: dict[str, Any], tmp_path: Path) -> None:
    """Whatever is counted, however often, over whatever patches: 0 differences."""
    arrays = [drawn(job, k) for k in range(job["n_images"])]
    images = patchloom.open_images(
        [given_as(job, pixels, tmp_path) for pixels in arrays],
        axes=job["axes"].upper(),
        ids=[f"i{k}" for k in range(len(arrays))],
        nodata=job["nodata"],
    )
    plan = patchloom.plan(
        images,
        job["patching"],
        edge=job["edge"],
        pad_mode=job["pad_mode"],
        order=job["order"],
        rows_per_shard=job["rows_per_shard"],
        seed=job["seed"] % 1000,
    )
    out = tmp_path / f"{uuid.uuid4().hex}.zarr"
    how = {name: job[name] for name in ("each", "method", "exact")}
    report = patchloom.materialize(plan, out, percentiles=Q, progress=False, **how)
    assert report.survey_reads == 0
    store = patchloom.open_patches(out)
    nodata = None if job["nodata"] is None else float(job["nodata"])
    summed = store.summaries().dataset(Q, method=job["method"])
    for k, pixels in enumerate(arrays):
        whole = pixels
        for letter in "sc":
            if letter not in job["axes"]:
                whole = np.expand_dims(whole, "sc".index(letter))
        times = taken(store, f"i{k}", (whole.shape[0], *whole.shape[2:]))
        if job["each"] == "once":
            times = np.minimum(times, 1)
        for channel in range(whole.shape[1]):
            expected = numbers(np.repeat(whole[:, channel], times.ravel()), nodata, job["method"])
            for table in (store.statistics, summed):
                check(table.isel(image=k, channel=channel), expected)


# -- reads ----------------------------------------------------------------------------

_opened: list[str] = []
_watched: list[str] = []


def _listen(event: str, given: tuple[Any, ...]) -> None:
    if event == "open" and _watched and str(given[0]).startswith(_watched[0]):
        _opened.append(str(given[0]))


sys.addaudithook(_listen)


def opened_by(folder: Path, work: Any) -> list[str]:
    """The chunk files below a folder that this process opens while it works."""
    _opened.clear()
    _watched[:] = [str(folder)]
    try:
        work()
    finally:
        _watched.clear()
    return [name for name in _opened if "/c/" in name]


def stored(path: Path, pixels: Pixels, chunks: tuple[int, ...]) -> Path:
    """A Zarr array of one file a chunk."""
    array = zarr.create_array(path, shape=pixels.shape, dtype=pixels.dtype, chunks=chunks)
    array[...] = pixels
    return path


GRID = {"name": "sequential", "patch_size": [24, 24], "overlaps": [8, 8]}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "bool", "float16"])
def test_small_types_cost_no_read(dtype: str, tmp_path: Path) -> None:
    """Every chunk is opened once, whatever is asked of statistics: the operating system counts."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 100, (2, 96, 80)).astype(dtype)
    path = stored(tmp_path / "source.zarr", pixels, (1, 32, 32))
    plan = patchloom.plan(patchloom.open_images(path, axes="CYX"), GRID)
    for k, (each, exact) in enumerate(itertools.product(("once", "taken"), (False, True))):
        reports: list[patchloom.RunReport] = []

        def work(k: int = k, each: str = each, exact: bool = exact, reports: Any = reports) -> None:
            out = tmp_path / f"{k}.zarr"
            how: dict[str, Any] = {"each": each, "exact": exact, "method": "nearest"}
            reports.append(patchloom.materialize(plan, out, progress=False, **how))

        files = opened_by(path, work)
        assert len(files) == len(set(files)) == plan.chunks_needed == 2 * 9
        assert (reports[0].chunk_reads, reports[0].survey_reads) == (2 * 9, 0)
        assert patchloom.open_patches(tmp_path / f"{k}.zarr").statistics.attrs["exact"]


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of more different values than a summary holds, one of few."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(1)
    for name, mean, scale in (("a", 1, 1), ("b", 0, 1e-3)):
        pixels = rng.normal(mean, scale, (320, 320)).astype("float32")
        assert len(np.unique(pixels)) > DISTINCT
        stored(folder / f"{name}.zarr", pixels, (64, 64))
    stored(folder / "c.zarr", rng.integers(0, 9, (100, 100)).astype("float32"), (64, 64))
    return folder


CUT = {"name": "sequential", "patch_size": [40, 40]}


def planned(folder: Path, names: str, **more: Any) -> patchloom.Plan:
    """A plan of some of the images."""
    images = patchloom.open_images([folder / f"{name}.zarr" for name in names], ids=list(names))
    return patchloom.plan(images, CUT, rows_per_shard=16, **more)


def materialized(plan: patchloom.Plan, out: Path, **more: Any) -> patchloom.RunReport:
    """The report of a run, which is exact if nothing else is said."""
    return patchloom.materialize(
        plan, out, percentiles=Q, progress=False, **{"exact": True, **more}
    )


def truth(folder: Path, name: str, method: str = "linear") -> dict[str, Any]:
    """What NumPy says of the pixels that `CUT` takes of an image."""
    pixels = np.asarray(zarr.open_array(folder / f"{name}.zarr")[:])
    side = len(pixels) // 40 * 40
    return numbers(pixels[:side, :side], None, method)


def test_wide_types_are_read_again_for_exact_numbers(noise: Path, tmp_path: Path) -> None:
    """Passes after the writing one are counted apart, and read only images that need it."""
    plan = planned(noise, "abc")
    bounded = materialized(plan, tmp_path / "bounded.zarr", exact=False)
    assert bounded.survey_reads == 0
    exact = materialized(plan, tmp_path / "exact.zarr")
    assert exact.chunk_reads == bounded.chunk_reads
    passes, rest = divmod(exact.survey_reads, 2 * 25)
    assert 1 <= passes <= 3
    assert rest == 0
    assert exact.bytes_read > bounded.bytes_read
    assert exact.peak_memory <= exact.projected_memory
    store = patchloom.open_patches(tmp_path / "exact.zarr")
    assert store.statistics.attrs["exact"]
    assert store.statistics.attrs["relative_error"] == 0
    for k, name in enumerate("abc"):
        for table in (store.statistics, store.summaries().dataset(Q)):
            found = table.isel(image=k, channel=0)
            check(found, truth(noise, name), bucketed=name != "c")
    loose = patchloom.open_patches(tmp_path / "bounded.zarr").statistics
    assert not loose.attrs["exact"]
    assert 0 < loose.attrs["relative_error"] < 0.01
    for k, name in enumerate("abc"):
        right = truth(noise, name)["percentile"]
        off = np.abs(loose["percentile"].values[k, 0] - right)
        assert (off <= loose.attrs["relative_error"] * np.abs(right)).all()


# -- interrupted runs -----------------------------------------------------------------


class Interrupt(Callback):  # type: ignore[misc]  # Dask is untyped
    """Interrupts the client before the n-th task of a kind."""

    def __init__(self, kind: str, n: int = 0) -> None:
        super().__init__(pretask=self._before)
        self._kind, self._left = kind, n

    def _before(self, key: Any, dsk: Any, state: Any) -> None:
        if isinstance(key, tuple) and str(key[0]).startswith(self._kind):
            if not self._left:
                raise KeyboardInterrupt
            self._left -= 1


@pytest.mark.parametrize("normalize", [None, "percentile"])
@pytest.mark.parametrize("each", ["once", "taken"])
def test_an_interrupted_run_ends_byte_for_byte(
    each: str, normalize: str | None, noise: Path, tmp_path: Path
) -> None:
    """Killed while it writes, between the writing pass and the finer ones, and in these."""
    plan = planned(noise, "ab")
    how = {"each": each, "normalize": normalize}
    materialized(plan, tmp_path / "whole.zarr", **how)
    expected = contents(tmp_path / "whole.zarr")
    n_tasks = 0
    for kind, n in (("patchloom-write", 1), ("patchloom-survey", 0), ("patchloom-survey", 3)):
        out = tmp_path / f"{kind}-{n}.zarr"
        try:
            with Interrupt(kind, n):
                materialized(plan, out, **how)
        except KeyboardInterrupt:
            n_tasks += 1
            assert contents(out) != expected
        report = materialized(plan, out, **how)
        assert report.complete
        assert contents(out) == expected
        again = materialized(plan, out, **how)
        assert (again.n_tasks, again.survey_reads, again.chunk_reads) == (0, 0, 0)
    assert n_tasks >= 2


@pytest.mark.parametrize("begun", ["", pytest.param("a", marks=pytest.mark.slow)])
def test_a_run_killed_at_any_write_ends_the_same(begun: str, noise: Path, tmp_path: Path) -> None:
    """Killed before each object in turn, what passes of their own have counted among them."""
    base = tmp_path / "base.zarr"
    how: dict[str, Any] = {"exact": True, "percentiles": [0, 50, 99]}
    base.mkdir()
    (tmp_path / "copies").mkdir()

    def plan(names: str) -> patchloom.Plan:
        images = patchloom.open_images([str(noise / f"{name}.zarr") for name in names])
        return patchloom.plan(images, CUT, rows_per_shard=64)

    if begun:
        patchloom.materialize(plan(begun), base, progress=False, **how)
    arguments = {
        "images": [str(noise / f"{name}.zarr") for name in "ab"[: 1 + len(begun)]],
        "labels": None,
        "patching": CUT,
        "rows_per_shard": 64,
        "base": str(base),
        "folder": str(tmp_path / "copies"),
        "how": how,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.killer", json.dumps(arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    n = int(done.stdout)
    whole = contents(tmp_path / "copies" / f"{n:03d}.zarr")
    assert [name for name in whole if name.endswith(".whole.parquet")]
    # Array and group, three objects of the shard, sizes, what finer passes found, the group (of a
    # store that grows the array once more), and the report.
    assert n == 9
    for k in range(n):
        out = tmp_path / "copies" / f"{k:03d}.zarr"
        if begun:
            assert patchloom.open_patches(out).statistics.attrs["exact"]
        report = patchloom.materialize(plan("ab"[: 1 + len(begun)]), out, progress=False, **how)
        assert report.complete
        assert contents(out) == whole


def test_finer_passes_wait_for_what_cannot_be_read(noise: Path, tmp_path: Path) -> None:
    """With gaps statistics are bounded and of what could be read; mended, they are exact."""
    folder = tmp_path / "images"
    shutil.copytree(noise, folder)
    plan = planned(folder, "ab")
    materialized(plan, tmp_path / "whole.zarr", on_error="skip")
    chunk = folder / "a.zarr" / "c" / "1" / "1"
    data = chunk.read_bytes()
    chunk.write_bytes(b"broken")
    report = materialized(plan, tmp_path / "out.zarr", on_error="skip")
    assert not report.complete
    assert report.survey_reads == 0
    gappy = patchloom.open_patches(tmp_path / "out.zarr")
    assert not gappy.statistics.attrs["exact"]
    assert 0 < gappy.statistics["count"].sel(image="a").item() < 320 * 320
    assert gappy.summaries().count == int(gappy.statistics["count"].sum())
    chunk.write_bytes(data)
    mended = materialized(plan, tmp_path / "out.zarr", on_error="skip")
    assert mended.complete
    assert mended.survey_reads > 0
    assert contents(tmp_path / "out.zarr") == contents(tmp_path / "whole.zarr")


def test_what_finer_passes_cannot_read_is_told(noise: Path, tmp_path: Path) -> None:
    """The patches are there by then: the error says so, and the next run goes on from there."""
    folder = tmp_path / "images"
    shutil.copytree(noise, folder)
    plan = planned(folder, "a")
    with Interrupt("patchloom-survey"), pytest.raises(KeyboardInterrupt):
        materialized(plan, tmp_path / "out.zarr")
    chunk = folder / "a.zarr" / "c" / "1" / "1"
    data = chunk.read_bytes()
    chunk.write_bytes(b"broken")
    with pytest.raises(ChunkError, match="exact=False"):
        materialized(plan, tmp_path / "out.zarr")
    chunk.write_bytes(data)
    assert materialized(plan, tmp_path / "out.zarr").complete


# -- stores add up --------------------------------------------------------------------


def test_appended_images_are_counted_as_if_they_had_been_there(noise: Path, tmp_path: Path) -> None:
    """An appended store, a store of all, and the sum of two stores tell the same numbers."""
    materialized(planned(noise, "a"), tmp_path / "grown.zarr")
    report = materialized(planned(noise, "abc"), tmp_path / "grown.zarr")
    assert report.survey_reads > 0
    materialized(planned(noise, "abc"), tmp_path / "whole.zarr")
    materialized(planned(noise, "a"), tmp_path / "one.zarr")
    materialized(planned(noise, "bc"), tmp_path / "two.zarr")
    opened = {
        n: patchloom.open_patches(tmp_path / f"{n}.zarr") for n in ("grown", "whole", "one", "two")
    }
    grown, whole = opened["grown"].statistics, opened["whole"].statistics
    for name in whole.data_vars:
        np.testing.assert_array_equal(grown[name].values, whole[name].values)
    tables = [
        store.dataset(Q)
        for store in (
            opened["grown"].summaries(),
            opened["whole"].summaries(),
            opened["one"].summaries() + opened["two"].summaries(),
        )
    ]
    for table in tables:
        assert table["image"].values.tolist() == ["a", "b", "c"]
        for k, name in enumerate("abc"):
            check(table.isel(image=k, channel=0), truth(noise, name), bucketed=name != "c")


def test_stores_add_up_by_columns(tmp_path: Path) -> None:
    """Metadata of the images come along, so that groups span stores; 16 bits are exact."""
    rng = np.random.default_rng(2)
    arrays = {n: rng.integers(0, 2**16, (48, 48)).astype("uint16") for n in "abcd"}
    stains = {"a": "HE", "b": "PAS", "c": "HE", "d": "PAS"}
    parts = []
    for names in ("ab", "cd"):
        images = patchloom.open_images(
            [arrays[n] for n in names],
            ids=list(names),
            sample=[{"stain": stains[n], "dose": float("nan")} for n in names],
        )
        plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]})
        patchloom.materialize(plan, tmp_path / f"{names}.zarr", progress=False)
        parts.append(patchloom.open_patches(tmp_path / f"{names}.zarr").summaries())
    table = (parts[0] + parts[1]).dataset(Q, by="stain")
    for k, stain in enumerate(("HE", "PAS")):
        pooled = np.concatenate([arrays[n].ravel() for n in "abcd" if stains[n] == stain])
        check(table.isel(group=k, channel=0), numbers(pooled, None, "linear"))


# -- other pixels than those of patches -----------------------------------------------


@pytest.mark.parametrize("over", ["mask", "image"])
@pytest.mark.parametrize("normalize", [None, "mean-std"])
def test_other_pixels_take_a_pass_of_their_own(
    over: str, normalize: str | None, noise: Path, tmp_path: Path
) -> None:
    """Pixels under the mask, or all; their summaries are kept beside those of the patches."""
    pixels = np.asarray(zarr.open_array(noise / "a.zarr")[:])
    mask = np.zeros((80, 80), bool)
    mask[10:70, 20:] = True
    under = np.kron(mask, np.ones((4, 4), bool))
    images = patchloom.open_images(noise / "a.zarr", mask=mask, ids=["a"])
    plan = patchloom.plan(images, CUT, min_coverage=0.9, rows_per_shard=4)
    out = tmp_path / "out.zarr"
    report = materialized(plan, out, over=over, normalize=normalize)
    assert report.survey_reads >= 25 - 8
    store = patchloom.open_patches(out)
    expected = numbers(pixels[under] if over == "mask" else pixels, None, "linear")
    wide = over == "image"
    check(store.statistics.isel(image=0, channel=0), expected, bucketed=wide)
    check(store.summaries().dataset(Q).isel(image=0, channel=0), expected, bucketed=wide)
    whole = contents(out)
    assert patchloom.verify(out, plan, progress=False).ok

    # The object that holds them is looked after like any other.
    [name] = store.attributes["summaries"]
    damaged = bytearray(whole[name])
    damaged[len(damaged) // 2] ^= 0xFF
    (out / name).write_bytes(damaged)
    found = patchloom.verify(out, plan, progress=False, repair=True)
    assert [damage.object for damage in found.damage] == [name]
    assert materialized(plan, out, over=over, normalize=normalize).complete
    assert contents(out) == whole
    (out / name).unlink()
    assert materialized(plan, out, over=over, normalize=normalize).complete
    assert contents(out) == whole


def test_padding_never_counts(tmp_path: Path) -> None:
    """A patch that sticks out adds what lies in the image, as often as it is taken."""
    pixels = np.arange(1, 26, dtype="uint8").reshape(5, 5)
    images = patchloom.open_images(pixels)
    config = {"name": "sequential", "patch_size": [4, 4], "overlaps": [2, 2]}
    for mode in ("constant", "reflect"):
        plan = patchloom.plan(images, config, edge="pad", pad_mode=mode)
        out = tmp_path / f"{mode}.zarr"
        patchloom.materialize(plan, out, percentiles=Q, each="taken", progress=False)
        store = patchloom.open_patches(out)
        times = taken(store, images[0].id, (1, 5, 5))
        assert times.max() == 4
        expected = numbers(np.repeat(pixels, times.ravel()), None, "linear")
        check(store.statistics.isel(image=0, channel=0), expected)


# -- nodata ---------------------------------------------------------------------------


def test_nodata_is_what_was_given_or_what_metadata_tell(tmp_path: Path) -> None:
    """A fill value is no nodata value; an attribute that a pixel can have is."""
    pixels = np.zeros((8, 8), "int16")
    path = tmp_path / "plain.zarr"
    zarr.create_array(path, shape=(8, 8), dtype="int16", chunks=(4, 4), fill_value=7)[...] = pixels
    [image] = patchloom.open_images(path)
    assert image.nodata is None
    assert "nodata" not in image.to_document()
    cases: list[tuple[dict[str, Any], float | None]] = [
        ({"_FillValue": -9999}, -9999.0),
        ({"missing_value": 3.0}, 3.0),
        ({"_FillValue": [5]}, 5.0),
        ({"_FillValue": 1e9}, None),
        ({"_FillValue": "nan"}, None),
        ({"_FillValue": {}}, None),
        ({"_FillValue": "AAAAAAAACEA="}, 3.0),
    ]
    for number, (told, found) in enumerate(cases):
        path = tmp_path / f"{number}.zarr"
        array = zarr.create_array(path, shape=(8, 8), dtype="int16", chunks=(4, 4))
        array[...] = pixels
        array.attrs.update(told)
        [image] = patchloom.open_images(path)
        assert image.nodata == found
        [image] = patchloom.open_images(path, nodata=2)
        assert image.nodata == 2.0
    floats = da.zeros((4, 4), dtype="float32")
    [image] = patchloom.open_images(floats, nodata="nan")
    assert image.nodata is not None
    assert math.isnan(image.nodata)
    again = patchloom.open_images([floats, floats], ids=["a", "b"], nodata={"a": 1, "b": None})
    assert [i.nodata for i in again] == [1.0, None]
    tiny = {"name": "sequential", "patch_size": [4, 4]}
    prints = [
        patchloom.plan(patchloom.open_images(pixels, ids=["a"], nodata=value), tiny).fingerprint
        for value in (None, 3)
    ]
    assert prints[0] != prints[1]
    document = json.loads(json.dumps(image.to_document(), allow_nan=False))
    assert math.isnan(type(image).from_document(document).nodata or 0)


@pytest.mark.parametrize("wrong", ["zero", 300, 0.5, True, [1, 2]])
def test_wrong_nodata_is_named(wrong: Any) -> None:
    """What no pixel can have, or what is no number."""
    with pytest.raises(patchloom.errors.PatchloomError, match="nodata="):
        patchloom.open_images(np.zeros((4, 4), "uint8"), nodata=wrong)


# -- settings -------------------------------------------------------------------------


def test_a_store_of_other_statistics_is_refused_in_words(noise: Path, tmp_path: Path) -> None:
    """The error names the setting with both values, or the images."""
    out = tmp_path / "out.zarr"
    images = patchloom.open_images(noise / "c.zarr", ids=["c"])
    plan = patchloom.plan(images, CUT)
    patchloom.materialize(plan, out, progress=False)
    before = contents(out)
    for how, words in (
        ({"each": "taken"}, r"job \(each: 'once' there, 'taken' here\)"),
        ({"exact": True, "method": "lower"}, r"exact: False there, True here; method: 'linear' th"),
        ({"over": "image"}, r"over: 'patches' there, 'image' here"),
    ):
        with pytest.raises(FingerprintError, match=words):
            patchloom.materialize(plan, out, progress=False, **how)
    blank = patchloom.open_images(noise / "c.zarr", ids=["c"], nodata=0)
    with pytest.raises(FingerprintError, match=r"another nodata value of \['c'\]"):
        patchloom.materialize(patchloom.plan(blank, CUT), out, progress=False)
    assert contents(out) == before


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"over": "masks"}, "over="),
        ({"each": "twice"}, "each="),
        ({"method": "cubic"}, "method="),
        ({"exact": "yes"}, "exact="),
        ({"each": "taken", "over": "image"}, "each="),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Before anything is written."""
    plan = patchloom.plan(patchloom.open_images(np.zeros((80, 80), "uint8")), CUT)
    with pytest.raises(ConfigError, match=words):
        patchloom.materialize(plan, tmp_path / "out.zarr", progress=False, **wrong)
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_any_scheduler_writes_the_same(scheduler: str, noise: Path, tmp_path: Path) -> None:
    """Finer passes included: the same bytes."""
    plan = planned(noise, "ac", order="shuffled")
    how = {"each": "taken", "method": "nearest"}
    materialized(plan, tmp_path / "one.zarr", **how)
    with dask.config.set(scheduler=scheduler, num_workers=2):
        report = materialized(plan, tmp_path / "two.zarr", **how)
    assert report.survey_reads > 0
    assert contents(tmp_path / "two.zarr") == contents(tmp_path / "one.zarr")


def test_normalized_patches_are_checked_by_the_same_rules(tmp_path: Path) -> None:
    """What patches were scaled by comes from the statistics: method, nodata and times included."""
    rng = np.random.default_rng(3)
    path = stored(tmp_path / "a.zarr", rng.integers(0, 50, (96, 96)).astype("uint8"), (32, 32))
    plan = patchloom.plan(patchloom.open_images(path, nodata=0), GRID)
    out = tmp_path / "out.zarr"
    how: dict[str, Any] = {"method": "higher", "each": "taken", "normalize": "percentile"}
    patchloom.materialize(plan, out, percentiles=(1, 99.5), progress=False, **how)
    report = patchloom.verify(out, plan, progress=False)
    assert report.ok
    assert report.n_compared == plan.n_patches
    low, high = patchloom.open_patches(out).statistics["percentile"].values[0, 0]
    [image] = plan.images
    corner = image.read((0, 0), (24, 24)).astype("float64")
    wanted = np.clip((corner - low) / (high - low), 0, 1).astype("float32")
    np.testing.assert_array_equal(patchloom.open_patches(out)[0][0], wanted)


def test_a_job_file_asks_for_all_of_it(tmp_path: Path) -> None:
    """Keys of the job reach the store, and the command shows what they are of."""
    from patchloom.cli import main

    pixels = np.random.default_rng(4).integers(0, 9, (60, 60)).astype("uint8")
    stored(tmp_path / "a.zarr", pixels, (32, 32))
    job = {
        "images": str(tmp_path / "a.zarr"),
        "patching": {"name": "sequential", "patch_size": [20, 20], "overlaps": [10, 10]},
        "output": str(tmp_path / "out.zarr"),
        "nodata": 0,
        "each": "taken",
        "exact": True,
        "method": "lower",
        "percentiles": list(Q),
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    told = CliRunner().invoke(main, ["run", str(tmp_path / "job.yaml"), "--json"])
    assert told.exit_code == 0, told.output
    store = patchloom.open_patches(tmp_path / "out.zarr")
    assert store.attributes["images"][0]["nodata"] == 0
    times = taken(store, "a", (1, 60, 60))
    expected = numbers(np.repeat(pixels, times.ravel()), 0, "lower")
    check(store.statistics.isel(image=0, channel=0), expected)
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "out.zarr")]).output
    assert "Statistics over patches, as often as they take it" in shown
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "a.zarr")]).output
    assert "nodata" not in shown
