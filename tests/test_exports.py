"""What is exported is what the store holds, read by the tools that each format is meant for.

Laws: pixels are identical, rows are those asked for, in the order of the store; a part is made of
whole shards read once and of whole objects; a call that is killed anywhere and made again ends with
the same bytes; nothing is written outside the target; no name from the data becomes a path.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.cli import main
from patchloom.errors import (
    ConfigError,
    ExistsError,
    FingerprintError,
    PatchloomError,
    SourceMissingError,
    StoreError,
    WriteError,
)
from patchloom.run import exporting
from patchloom.store.exports.formats import FORMATS, format_of
from patchloom.store.exports.names import safe_name
from patchloom.store.exports.selection import Selection
from tests.clusters import local_cluster

Pixels = npt.NDArray[Any]
Read = dict[str, list[Pixels]]
"""Patches by array, in the order of rows."""

IDS = ["a", "../up/ç"]
# WebDataset leaves files open.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO name=.*patches-"
    ":pytest.PytestUnraisableExceptionWarning"
)
SPLIT = {"by": "blocks", "block_size": 16, "shares": {"train": 0.5, "val": 0.5}}
DTYPES = ["bool", "uint8", "uint16", "int16", "float32"]
HERE = ["zarr", "hdf5", "npy", "webdataset", "tiff", "png", "classes"]
"""Formats that are tested here; the others have suites of their own."""
WRITERS = {"hdf5": "h5py", "tiff": "tifffile"}
"""What an extra brings."""


def need(to: str) -> None:
    """Skip where what writes a format is not installed."""
    if to in WRITERS:
        pytest.importorskip(WRITERS[to])


def make_store(
    url: str, dtype: str = "uint16", *, size: Any = (16, 16), channels: int = 2, **more: Any
) -> patchloom.PatchStore:
    """A store of 2 images of noise with labels and targets: 32 patches, 5 a shard."""
    rng = np.random.default_rng(0)
    space = (64, 64) if len(size) == 2 else (4, 64, 32)
    axes = "CYX" if len(size) == 2 else "CZYX"

    def noise(kind: str, n: int) -> Pixels:
        drawn = rng.integers(0, 2 if kind == "bool" else 30_000, (n, *space))
        return drawn.astype(kind) if kind != "float32" else (drawn / 7).astype(kind)

    images = patchloom.open_images(
        [noise(dtype, channels) for _ in IDS],
        axes=axes,
        ids=IDS,
        labels=[noise("uint8", 1) for _ in IDS],
        target=[noise("uint16", 1) for _ in IDS],
        sample=[{"dose": 1, "well": "A1"}, {"dose": 20, "well": "B2"}],
    )
    plan = patchloom.plan(
        images,
        {"name": "sequential", "patch_size": list(size)},
        rows_per_shard=5,
        seed=1,
        **{"split": SPLIT, **more},
    )
    patchloom.materialize(plan, url, progress=False)
    return patchloom.open_patches(url)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> patchloom.PatchStore:
    """A store on the disk."""
    return make_store(str(tmp_path_factory.mktemp("store") / "s.zarr"))


def contents(folder: Path | str, options: dict[str, Any] | None = None) -> dict[str, bytes]:
    """All objects below a place."""
    fs, root = fsspec.url_to_fs(str(folder), **(options or {}))
    fs.invalidate_cache()
    skip = len(fs._strip_protocol(root).rstrip("/")) + 1
    return {path[skip:]: fs.cat_file(path) for path in fs.find(root)}


def export(store: Any, to: str, output: Any, **more: Any) -> patchloom.ExportReport:
    need(to)
    with dask.config.set(scheduler="synchronous"):
        return patchloom.export(store, to=to, output=output, progress=False, **more)


# -- readers: each the tool that the format is for -------------------------------------------


def read_zarr(folder: Path) -> Read:
    group = zarr.open_group(folder, mode="r")
    return {name: list(np.asarray(array[:])) for name, array in sorted(group.arrays())}


def read_hdf5(folder: Path) -> Read:
    import h5py

    found: Read = {}
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            for name in file:
                if name != "manifest":
                    found.setdefault(name, []).extend(file[name][:])
    return found


def read_webdataset(folder: Path) -> Read:
    webdataset = pytest.importorskip("webdataset")
    urls = sorted(map(str, folder.glob("patches-*.tar")))
    found: Read = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
        for key in sample:
            if key.endswith(".npy"):
                found.setdefault(key.removesuffix(".npy"), []).append(sample[key])
    return found


def read_tiff(folder: Path) -> Read:
    tifffile = pytest.importorskip("tifffile")
    found: Read = {}
    for path in sorted((folder / "images").iterdir(), key=_number):
        for name in _folders(folder):
            if (beside := folder / name / path.name).exists():
                with tifffile.TiffFile(beside) as file:
                    [series] = file.series
                    pixels = series.asarray()
                    # The reader says which axis is which; those of one index are left out.
                    if "C" not in series.axes:
                        pixels = pixels[None]
                    else:
                        pixels = np.moveaxis(pixels, series.axes.index("C"), 0)
                found.setdefault(name, []).append(pixels)
    return found


def read_png(folder: Path) -> Read:
    image = pytest.importorskip("PIL.Image")
    found: Read = {}
    for path in sorted((folder / "images").iterdir(), key=_number):
        for name in _folders(folder):
            if (beside := folder / name / path.name).exists():
                with image.open(beside) as picture:
                    found.setdefault(name, []).append(np.asarray(picture))
    return found


def _folders(folder: Path) -> list[str]:
    """Those of arrays."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name != "manifest")


def _number(path: Path) -> int:
    return int(path.name.split(".")[0].rsplit("_", 1)[1])


class Loader:
    """Reads a folder as phenocoder's documentation says that its loader and generator do."""

    def __init__(self, datasets: list[str], folder: Path, sample_key: str) -> None:
        pandas = pytest.importorskip("pandas")
        self.stats = pandas.concat(pandas.read_csv(folder / d / "stats.csv") for d in datasets)
        patches = pandas.concat(pandas.read_csv(folder / d / "patches.csv") for d in datasets)
        samples = patches.groupby([sample_key, "dataset"]).count().reset_index()
        samples["split"] = ["train" if k < len(samples) / 2 else "val" for k in range(len(samples))]
        keys = [sample_key, "dataset"]
        self.patches = pandas.merge(patches, samples[[*keys, "split"]], on=keys, how="left")
        self.patches["file_path"] = [
            folder / d / f
            for d, f in zip(self.patches["dataset"], self.patches["file"], strict=True)
        ]
        assert set(self.patches["split"]) <= {"train", "val"}

    def batch(self, paths: Any, dim: tuple[int, ...], n_channels: int) -> Pixels:
        """Channels last, in float64, as the generator makes it."""
        found = np.empty((len(paths), *dim, n_channels))
        for k, path in enumerate(paths):
            found[k] = np.moveaxis(np.load(path), 0, -1)
        return found


def read_npy(folder: Path) -> Read:
    loader = Loader([folder.name], folder.parent, "sample")
    rows = loader.patches.sort_values("id")
    found: Read = {"images": [np.load(path) for path in rows["file_path"]]}
    for name in _folders(folder):
        found[name] = [np.load(folder / name / file) for file in rows["file"]]
    return found


READERS: dict[str, Callable[[Path], Read]] = {
    "zarr": read_zarr,
    "hdf5": read_hdf5,
    "npy": read_npy,
    "webdataset": read_webdataset,
    "tiff": read_tiff,
    "png": read_png,
    "classes": read_zarr,
}


def montage(patch: Pixels) -> Pixels:
    """A patch as a picture, by its description: channels from left to right, z downwards."""
    if patch.dtype == bool:
        patch = patch.astype("uint8") * 255
    if patch.ndim == 3 and len(patch) == 3 and patch.dtype == np.uint8:
        return np.dstack(list(patch))
    return np.hstack([c if c.ndim == 2 else np.vstack(list(c)) for c in patch])


def wanted(store: patchloom.PatchStore, rows: Any, to: str) -> Read:
    """What a reader must find."""
    found: Read = {}
    if to == "classes":
        column = np.array(store.manifest["dose"].to_pylist())
        for value in np.unique(column[rows]).tolist():
            found[f"class_{value}"] = [store[r] for r in rows if column[r] == value]
        return found
    for name in store.attributes["arrays"]:
        pixels = list(store.read(rows, name))
        found[name] = [montage(p) for p in pixels] if to == "png" else pixels
    return found


def assert_same(found: Read, want: Read) -> None:
    assert {*found} == {*want}
    for name, patches in want.items():
        assert len(found[name]) == len(patches), name
        for got, patch in zip(found[name], patches, strict=True):
            assert got.shape == patch.shape, name
            assert np.array_equal(got, patch), name


OPTIONS: dict[str, dict[str, Any]] = {"classes": {"by": "dose"}}


@pytest.mark.parametrize("to", HERE)
def test_a_format_reads_back_identical_pixels(
    to: str, store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """Images, labels and targets of every row, through the tool that the format is for."""
    report = export(store, to, tmp_path / "out", **OPTIONS.get(to, {}))
    assert report.n_patches == 32
    assert_same(READERS[to](tmp_path / "out"), wanted(store, range(32), to))


@pytest.mark.parametrize("to", HERE)
def test_whatever_is_cut_along_is_exported(to: str, tmp_path: Path) -> None:
    """Weights, targets by name and coarser levels stand where labels and targets do."""
    rng = np.random.default_rng(5)
    group = zarr.create_group(tmp_path / "a.ome.zarr")
    datasets = []
    for level in (0, 1):
        pixels = rng.integers(0, 255, (48 >> level, 32 >> level)).astype("uint8")
        group.create_array(str(level), data=pixels, chunks=(16, 16))
        scale = {"type": "scale", "scale": [0.5 * 2**level] * 2}
        datasets.append({"path": str(level), "coordinateTransformations": [scale]})
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "yx"]
    multiscales: Any = [{"axes": axes, "datasets": datasets}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    images = patchloom.open_images(
        tmp_path / "a.ome.zarr",
        targets={"edges": rng.integers(0, 9, (48, 32)).astype("uint16")},
        weights=rng.integers(0, 2, (48, 32)).astype(bool),
        context=[1],
        sample={"dose": 1},
    )
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]}, rows_per_shard=4)
    patchloom.materialize(plan, tmp_path / "s.zarr", progress=False)
    store = patchloom.open_patches(tmp_path / "s.zarr")
    for _ in range(2):
        report = export(store, to, tmp_path / "out", **OPTIONS.get(to, {}))
    assert report.already_done == report.n_parts == 2
    want = wanted(store, range(6), to)
    assert_same(READERS[to](tmp_path / "out"), want)
    if to == "tiff":
        import tifffile

        # Pixels of a coarser level are larger than those of the image.
        for name, says in (("images", True), ("context_1", False)):
            path = next((tmp_path / "out" / name).glob("*.tif"))
            with tifffile.TiffFile(path) as file:
                assert ("PhysicalSizeX" in file.ome_metadata) is says


HOLDS = {
    "png": {"bool", "uint8", "uint16"},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("to", HERE)
def test_types_are_kept_or_refused(to: str, dtype: str, tmp_path: Path) -> None:
    """Each type of pixel, in 2-D and 3-D; what a format cannot hold is refused with a way out."""
    for k, size in enumerate([(16, 16), (2, 16, 16)]):
        store = make_store(str(tmp_path / f"s{k}.zarr"), dtype, size=size, split=None)
        out = tmp_path / f"out{k}"
        if dtype not in HOLDS.get(to, DTYPES):
            with pytest.raises(ConfigError, match=f"images are {dtype}; .* take "):
                export(store, to, out, **OPTIONS.get(to, {}))
            assert not out.exists()
            continue
        export(store, to, out, **OPTIONS.get(to, {}))
        found, want = READERS[to](out), wanted(store, range(32), to)
        assert_same(found, want)
        kept = {p.dtype for p in found["images" if "images" in found else "class_1"]}
        assert kept == {np.dtype("uint8" if (to, dtype) == ("tiff", "bool") else dtype)} or (
            to == "png"
        )


@pytest.mark.parametrize("channels", [1, 3])
def test_three_channels_of_8_bits_are_colours(channels: int, tmp_path: Path) -> None:
    """One is grey."""
    store = make_store(str(tmp_path / "s.zarr"), "uint8", channels=channels)
    export(store, "png", tmp_path / "out", arrays=["images"])
    found = read_png(tmp_path / "out")
    assert found["images"][0].shape == (16, 16) if channels == 1 else (16, 16, 3)
    assert_same(found, {"images": [montage(p) for p in store[:]]})


# -- which rows ---------------------------------------------------------------------------


@pytest.mark.parametrize("to", HERE)
def test_rows_are_those_that_are_meant(
    to: str, store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """By columns of the manifest; numbered anew; the manifest beside them says which they were."""
    split = store.manifest["split"].to_pylist()
    rows = [k for k, name in enumerate(split) if name == "val"]
    assert 0 < len(rows) < 32
    out = tmp_path / "out"
    report = export(store, to, out, where={"split": "val"}, **OPTIONS.get(to, {}))
    assert (report.n_patches, report.of_patches) == (len(rows), 32)
    assert_same(READERS[to](out), wanted(store, rows, to))
    table = manifest(out)
    assert table["store_row"].to_pylist() == sorted(rows)
    if to != "classes":
        assert table["row"].to_pylist() == [*range(len(rows))]
    assert table["patch_id"].to_pylist() == store.manifest["patch_id"].take(rows).to_pylist()


def manifest(out: Path) -> Any:
    import pyarrow.dataset

    parts = sorted((out / "manifest").glob("*.parquet"))
    return pyarrow.dataset.dataset(parts, format="parquet").to_table()


@settings(max_examples=40)
@given(
    where=st.fixed_dictionaries(
        {},
        optional={
            "split": st.sampled_from(["train", "val", ["train", "val"]]),
            "dose": st.sampled_from([1, "20", [1, 20.0], True]),
            "well": st.sampled_from(["A1", ["A1", "B2"], "C3"]),
            "start_y": st.sampled_from([0, "16", [32, 48]]),
        },
    ),
    rows=st.none() | st.integers(1, 40),
)
def test_any_selection_equals_brute_force(
    store: patchloom.PatchStore, where: dict[str, Any], rows: int | None
) -> None:
    """Rows and pixels, for any columns and values, given as text or not, and any size of parts."""

    def meant(row: dict[str, Any]) -> bool:
        for name, values in where.items():
            each = values if isinstance(values, list) else [values]
            if not any(
                str(row[name]) == str(v if isinstance(v, str) else type(row[name])(v)) for v in each
            ):
                return False
        return True

    keep = [row["row"] for row in store.manifest.to_pylist() if meant(row)]
    url = "memory://any-selection"
    fs = fsspec.filesystem("memory")
    if fs.exists("/any-selection"):
        fs.rm("/any-selection", recursive=True)
    if not keep:
        with pytest.raises(ConfigError, match="holds a patch at least, but none of the 32"):
            export(store, "webdataset", url, where=where, rows=rows)
        return
    report = export(store, "webdataset", url, where=where, rows=rows)
    assert report.n_parts == -(-len(keep) // (rows or 5))
    found = []
    for name, data in sorted(contents(url).items()):
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar:
                    if member.name.endswith(".images.npy"):
                        file = tar.extractfile(member)
                        assert file is not None
                        found.append(np.load(io.BytesIO(file.read()), allow_pickle=False))
    assert np.array_equal(found, store.read(keep))


def test_columns_and_values_that_cannot_be_meant_are_named(
    store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """With what there is, before anything is written."""
    out = tmp_path / "out"
    for where, says in (
        ({"spilt": "val"}, r"which has \['coverage', 'dose', .*got \['spilt'\]"),
        ({"dose": "many"}, r"'dose' holds int64 and got 'many'"),
        ({"dose": 3}, r"none of the 32 .* is there where dose = 3"),
        ({"dose": []}, r"several, got \[\] for 'dose'"),
        ({"coverage": math.nan}, r"finite number or flag, .*got nan for 'coverage'"),
        ({"dose": 2**70}, r"'dose' holds int64 and got 1180591620717411303424"),
        ("train", r"mapping of columns"),
    ):
        with pytest.raises(ConfigError, match=says):
            export(store, "zarr", out, where=where)
    for wrong, says in (
        ({"to": "hdf"}, "did you mean 'hdf5'"),
        ({"to": "zarr", "chunks": 3}, "did you mean 'chunk'"),
        ({"to": "zarr", "chunk": 0}, "chunk: .*got 0"),
        ({"to": "zarr", "chunk": 4, "shard": 6}, "multiple of 4"),
        ({"to": "zarr", "shard": 2**40}, "at most 65,536 chunks"),
        ({"to": "zarr", "rows": 7}, "whole objects of 5 patches"),
        ({"to": "zarr", "zarr_format": 2, "shard": 4}, "has no shards"),
        ({"to": "zarr", "rows": 0}, "from 1 on"),
        (
            {"to": "zarr", "arrays": ["masks"]},
            r"\['images', 'labels', 'targets'\], got \['masks'\]",
        ),
        ({"to": "zarr", "arrays": []}, "got none"),
        ({"to": "zarr", "percentiles": (1, 99)}, "belongs to normalize"),
        ({"to": "classes"}, r"got \['class'\]"),
        ({"to": "classes", "by": "coverage"}, "'coverage' holds double"),
        ({"to": "classes", "by": "dose", "arrays": ["images", "labels"]}, "one array of each"),
        ({"to": "npy", "sample_key": "dose"}, r"have \['dose'\]"),
    ):
        with pytest.raises(ConfigError, match=says):
            patchloom.export(store, output=out, progress=False, **wrong)
    assert not out.exists()


# -- whole objects, made once ---------------------------------------------------------------


@pytest.mark.parametrize("to", HERE)
def test_whatever_is_lost_is_made_again_with_the_same_bytes(
    to: str, store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """Any one object, one after the other; only its part is made."""
    out, known = tmp_path / "out", OPTIONS.get(to, {})
    export(store, to, out, **known)
    whole = contents(out)
    assert export(store, to, out, **known).n_written == 0
    for name in sorted(whole)[:: max(1, len(whole) // 12)]:
        (out / name).unlink()
        if name == exporting.HEADER:
            with pytest.raises(ExistsError, match=r"no export\.json"):
                export(store, to, out, **known)
            (out / name).write_bytes(whole[name])
        report = export(store, to, out, **known)
        assert report.n_written <= 1
        assert contents(out) == whole, name


@pytest.mark.parametrize("to", HERE)
def test_killed_at_any_object_it_ends_the_same(
    to: str, store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """Processes that die where they would have given an object its name, first to last."""
    known = OPTIONS.get(to, {})
    export(store, to, tmp_path / "whole", **known)
    whole = contents(tmp_path / "whole")
    at = [*range(0, len(whole), max(1, len(whole) // 3))]
    told = {"store": store.url, "to": to, "options": known, "folder": str(tmp_path), "at": at}
    done = subprocess.run(
        # The last name of the output stands in the tables of some formats.
        [sys.executable, "-m", "tests.export_killer", json.dumps({**told, "name": "whole"})],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for n in at:
        out = tmp_path / str(n) / "whole"
        assert contents(out) != whole
        export(store, to, out, **known)
        assert contents(out) == whole


def test_tasks_grow_with_parts_and_each_shard_is_read_once(
    store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """One task a part; bytes read are those of the shards, and of them alone."""
    root = Path(store.url)
    sizes = {
        k: sum(
            (root / name / "c" / str(k) / "0/0/0").stat().st_size
            for name in ("images", "labels", "targets")
        )
        for k in range(7)
    }
    report = export(store, "npy", tmp_path / "all")
    assert (report.n_tasks, report.n_parts) == (7, 7)
    assert report.bytes_read == sum(sizes.values())
    report = export(store, "hdf5", tmp_path / "one", one_file=True)
    assert (report.n_tasks, report.bytes_read) == (1, sum(sizes.values()))
    rows = store.manifest["row"].to_numpy()[store.manifest["start_y"].to_numpy() == 0]
    needed = {int(r) // 5 for r in rows}
    assert len(needed) < 7
    report = export(store, "hdf5", tmp_path / "some", one_file=True, where={"start_y": 0})
    assert report.bytes_read == sum(sizes[k] for k in needed)


@pytest.mark.parametrize(("to", "how"), [("hdf5", {"one_file": True}), ("zarr", {}), ("npy", {})])
def test_memory_follows_a_shard_not_the_store(
    to: str, how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight times the patches take about the same, also where they go into one file."""
    monkeypatch.setattr("patchloom.store.exports.contents.STEP", 2**17)
    peaks = []
    for side in (256, 724):
        # Few grey levels: what their statistics take is not what is asked here.
        pixels = np.random.default_rng(0).integers(0, 2**10, (8, side, side)).astype("uint16")
        images = patchloom.open_images(pixels, axes="CYX")
        config = {"name": "sequential", "patch_size": [64, 64]}
        plan = patchloom.plan(images, config, rows_per_shard=2, edge="drop")
        patchloom.materialize(plan, tmp_path / f"{side}.zarr", progress=False)
        del pixels, images, plan
        store = patchloom.open_patches(tmp_path / f"{side}.zarr")
        export(store, to, tmp_path / f"warm{side}", arrays=["images"], **how)
        tracemalloc.start()
        report = export(store, to, tmp_path / f"out{side}", arrays=["images"], **how)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert report.n_patches == 121
    # 16 patches are 1 MiB, 121 are 7.6 MiB.
    assert peaks[1] < peaks[0] + 2**19, peaks


@pytest.mark.parametrize(
    ("to", "scheduler"), [*((to, "threads") for to in HERE), ("webdataset", "processes")]
)
def test_every_scheduler_writes_the_same_bytes(
    to: str, scheduler: str, store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """Whatever order tasks run in."""
    known = OPTIONS.get(to, {})
    export(store, to, tmp_path / "a" / "out", **known)
    with dask.config.set(scheduler=scheduler, num_workers=2):
        patchloom.export(store, to=to, output=tmp_path / "b" / "out", progress=False, **known)
    assert contents(tmp_path / "a" / "out") == contents(tmp_path / "b" / "out")


@pytest.mark.parametrize("kind", ["s3", "gcs"])
def test_workers_export_between_object_stores(
    kind: str,
    store: patchloom.PatchStore,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """From worker processes, from and to real servers; the objects of the disk, no secret."""
    server = request.getfixturevalue(f"{kind}_server")
    options, bucket = server.storage_options, server.fresh_bucket()
    fs = fsspec.filesystem(bucket.split("://")[0], **options)
    fs.put(store.url, f"{bucket}/s.zarr", recursive=True)
    with local_cluster(n_workers=2, threads_per_worker=1) as cluster, cluster.get_client():
        for to in ("zarr", "webdataset", "hdf5", "png"):
            need(to)
            here, there = tmp_path / to, f"{bucket}/exports/{to}"
            how: dict[str, Any] = {"to": to, "arrays": ["images"], "where": {"dose": 20}}
            how |= {"output": there, "storage_options": options, "progress": False}
            patchloom.export(f"{bucket}/s.zarr", **how)
            export(store, to, here, arrays=how["arrays"], where=how["where"])
            written = contents(there, options)
            assert written == contents(here)
            # One is lost: it alone is made again.
            name = next(n for n in sorted(written) if n.startswith(("images/", "patches-")))
            fs.rm_file(f"{there}/{name}")
            report = patchloom.export(f"{bucket}/s.zarr", **how)
            assert report.n_written == 1
            assert contents(there, options) == written
            for secret in _secrets(options):
                assert not [n for n, data in written.items() if secret.encode() in data]
                assert secret not in repr(report)


def _secrets(options: Any) -> Iterator[str]:
    for name, value in options.items() if isinstance(options, dict) else ():
        if isinstance(value, dict):
            yield from _secrets(value)
        elif isinstance(value, str) and name in ("key", "secret", "token"):
            yield value


@pytest.mark.parametrize("to", HERE)
def test_memory_holds_what_the_disk_holds(
    to: str, store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """Every format, on threads."""
    known = OPTIONS.get(to, {})
    export(store, to, tmp_path / to, **known)
    patchloom.export(store, to=to, output=f"memory://held/{to}", progress=False, **known)
    assert contents(f"memory://held/{to}") == contents(tmp_path / to)


# -- what stands there already -----------------------------------------------------------------


def test_other_things_are_left_untouched(store: patchloom.PatchStore, tmp_path: Path) -> None:
    """Another folder, another export, the store itself."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ExistsError, match=r"holds 'mine.txt' and no export.json"):
        export(store, "zarr", tmp_path / "full")
    assert contents(tmp_path / "full") == {"mine.txt": b"mine"}
    export(store, "zarr", tmp_path / "out")
    before = contents(tmp_path / "out")
    for more, says in (
        ({"chunk": 5}, "other options"),
        ({"where": {"split": "val"}}, "n_patches"),
        ({"normalize": "min-max"}, "normalization"),
        ({"arrays": ["images"]}, "other arrays"),
    ):
        with pytest.raises(FingerprintError, match=says):
            export(store, "zarr", tmp_path / "out", **more)
    other = make_store(str(tmp_path / "other.zarr"), "uint8")
    with pytest.raises(FingerprintError, match="store"):
        export(other, "zarr", tmp_path / "out")
    with pytest.raises(FingerprintError, match=r"other .*to"):
        export(store, "npy", tmp_path / "out")
    assert contents(tmp_path / "out") == before
    for inside in (store.url, f"{store.url}/export"):
        with pytest.raises(ConfigError, match="beside its store"):
            export(store, "zarr", inside)
    (tmp_path / "out" / "export.json").write_text("[]")
    with pytest.raises(ExistsError, match="not that of an export"):
        export(store, "zarr", tmp_path / "out")


def test_a_store_with_gaps_is_exported_when_asked(tmp_path: Path) -> None:
    """Else it is refused with the way out; a damaged one is refused by name."""
    store = make_store(str(tmp_path / "s.zarr"))
    root = Path(store.url)
    text = (root / "zarr.json").read_text().replace('"complete": true', '"complete": false', 1)
    (root / "zarr.json").write_text(text)
    assert store.manifest.num_rows == 32
    (root / "manifest" / "00000002.parquet").unlink()
    opened = patchloom.open_patches(root)
    with pytest.raises(StoreError, match=r"is not; run the same materialize .* or give partial"):
        export(opened, "hdf5", tmp_path / "out")
    report = export(opened, "hdf5", tmp_path / "out", partial=True)
    assert report.n_patches == 27
    keep = [*range(10), *range(15, 32)]
    assert_same(read_hdf5(tmp_path / "out"), wanted(store, keep, "hdf5"))
    (root / "zarr.json").write_text(text.replace('"complete": false', '"complete": true', 1))
    with pytest.raises(StoreError, match=r"lacks that of shard 2; run the job"):
        export(root, "hdf5", tmp_path / "more")
    shard = root / "images/c/1/0/0/0"
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"row 5 of images .* does not .*verify") as caught:
        export(opened, "png", tmp_path / "more", partial=True)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), StoreError)
    shard.write_bytes(data[:100])
    with pytest.raises(StoreError, match="index that matches"):
        export(opened, "png", tmp_path / "more", partial=True)


def test_a_place_that_cannot_be_written_is_our_error(
    store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """With the object's name, for bytes and for files."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(WriteError, match=r"export\.json"):
        export(store, "zarr", blocked / "out")
    export(store, "hdf5", tmp_path / "out")
    (tmp_path / "out" / "patches-000001.h5").unlink()
    (tmp_path / "out" / "patches-000001.h5").mkdir()
    with pytest.raises(WriteError, match=r"patches-000001.h5"):
        export(store, "hdf5", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.part"))


# -- names ------------------------------------------------------------------------------------


@given(st.lists(st.text(), unique=True))
def test_names_are_safe_and_tell_texts_apart(texts: list[str]) -> None:
    """No separator, no dot, never empty, never too long; different for different texts."""
    made = [safe_name(text) for text in texts]
    assert len({*made}) == len(texts)
    for name in made:
        assert 0 < len(name) <= 120
        assert all(c.isascii() and (c.isalnum() or c in "_-=") for c in name)


@pytest.mark.parametrize("to", HERE)
def test_nothing_is_written_outside_the_target(to: str, tmp_path: Path) -> None:
    """Ids of images and of patches, and classes, that look like paths."""
    store = make_store(str(tmp_path / "s.zarr"))
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = tmp_path / "s.zarr" / "manifest" / "00000000.parquet"
    table = pq.read_table(part)
    at = table.column_names.index("patch_id")
    evil = pa.array([f"../../evil{k}/\\x.y" for k in range(5)])
    pq.write_table(table.set_column(at, "patch_id", evil), part)
    (tmp_path / "in").mkdir()
    outside = contents(tmp_path)
    known = {"by": "image_id"} if to == "classes" else {}
    export(store, to, tmp_path / "in" / "out", **known)
    found = contents(tmp_path)
    assert {n for n in found if not n.startswith("in/out/")} == {*outside}
    assert all(".." not in Path(n).parts for n in found)
    if to == "webdataset":
        with tarfile.open(tmp_path / "in/out/patches-000000.tar") as tar:
            assert all("/" not in n and not n.startswith(".") for n in tar.getnames())
    if to == "classes":
        names = [*zarr.open_group(tmp_path / "in/out", mode="r").array_keys()]
        assert sorted(names) == sorted(f"class_{safe_name(i)}" for i in IDS)


# -- formats in particular ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {"chunk": 2, "shard": 8, "codec": "zstd"},
        {"chunk": 3},
        {"chunk": 1, "shard": 32, "codec": "none", "rows": 32},
        {"zarr_format": 2, "chunk": 4},
        {"zarr_format": 2, "codec": "none"},
        {"zarr_format": 2, "chunk": 40, "codec": "blosc-lz4"},
    ],
)
def test_zarr_has_the_chunks_that_are_asked_for(
    how: dict[str, Any], store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """v2 and v3, any chunk and shard, blank patches too; xarray knows the axes."""
    import xarray

    out = tmp_path / "out"
    export(store, "zarr", out, **how)
    group = zarr.open_group(out, mode="r")
    images = group["images"]
    assert isinstance(images, zarr.Array)
    assert images.metadata.zarr_format == how.get("zarr_format", 3)
    assert images.chunks == (how.get("chunk", 1), 2, 16, 16)
    if how.get("zarr_format", 3) == 3:
        unit = -(-5 // how["chunk"]) * how["chunk"]
        assert images.shards == (how.get("shard", unit), 2, 16, 16)
    assert_same(read_zarr(out), wanted(store, range(32), "zarr"))
    view = xarray.open_zarr(out, chunks=None, consolidated=True)
    assert view["images"].dims == ("patch", "c", "y", "x")
    assert view["labels"].dims == ("patch", "c_labels", "y", "x")
    # As zarr-python itself writes the array.
    again = zarr.create_array(
        tmp_path / "again",
        name="images",
        data=store[:],
        chunks=images.chunks,
        shards=images.shards,
        compressors=images.compressors,
        zarr_format=images.metadata.zarr_format,
        config={"write_empty_chunks": True},
    )
    assert again.shape == images.shape
    own = {
        n
        for n in contents(tmp_path / "again")
        if "/" in n and not n.endswith((".json", ".zarray", ".zattrs"))
    }
    assert {n: contents(out)[n] for n in own} == {n: contents(tmp_path / "again")[n] for n in own}
    assert len(own) >= 1


def test_blank_patches_are_objects_too(tmp_path: Path) -> None:
    """A part whose pixels are all 0 is there like any other, and is not made again."""
    images = patchloom.open_images(np.zeros((64, 64), "uint16"))
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]}, rows_per_shard=4)
    patchloom.materialize(plan, tmp_path / "s.zarr", progress=False)
    for k, how in enumerate([{}, {"zarr_format": 2}]):
        export(tmp_path / "s.zarr", "zarr", tmp_path / f"{k}", **how)
        assert export(tmp_path / "s.zarr", "zarr", tmp_path / f"{k}", **how).n_written == 0
        assert not zarr.open_group(tmp_path / f"{k}", mode="r")["images"][:].any()  # type: ignore[index, union-attr]


@pytest.mark.parametrize("how", [{}, {"one_file": True, "compression": "lzf"}])
def test_hdf5_holds_the_manifest(
    how: dict[str, Any], store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """As datasets of columns, in files of a part each or in one."""
    h5py = pytest.importorskip("h5py")
    out = tmp_path / "out"
    export(store, "hdf5", out, **how)
    files = sorted(out.glob("*.h5"))
    assert len(files) == (1 if how else 7)
    assert_same(read_hdf5(out), wanted(store, range(32), "hdf5"))
    columns: dict[str, list[Any]] = {}
    for path in files:
        with h5py.File(path) as file:
            assert file["images"].chunks == (1, 2, 16, 16)
            assert json.loads(file.attrs["channels"]) == ["0", "1"]
            for name, values in file["manifest"].items():
                read = values.asstr()[:] if values.dtype.kind == "S" else values[:]
                columns.setdefault(name, []).extend(read.tolist())
    told = manifest(out)
    assert {*columns} == {*told.column_names}
    for name, values in columns.items():
        assert values == told[name].to_pylist(), name


def test_hdf5_holds_columns_with_nulls(tmp_path: Path) -> None:
    """Of every type: NaN among numbers and flags, empty among texts."""
    h5py = pytest.importorskip("h5py")
    rows = [{"n": 1, "size": 0.5, "ok": True, "who": "ä"}, {"n": None, "size": None, "ok": None}]
    images = patchloom.open_images([np.ones((16, 16), "uint8")] * 2, ids=["a", "b"], sample=rows)
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]}, rows_per_shard=2)
    patchloom.materialize(plan, tmp_path / "s.zarr", progress=False)
    export(tmp_path / "s.zarr", "hdf5", tmp_path / "out")
    with h5py.File(tmp_path / "out" / "patches-000000.h5") as file:
        columns = file["manifest"]
        for name, want in (("n", [1, np.nan]), ("size", [0.5, np.nan]), ("ok", [1, np.nan])):
            assert np.array_equal(columns[name][:], want, equal_nan=True)
        assert columns["who"].asstr()[:].tolist() == ["ä", ""]


def test_phenocoders_loader_reads_its_layout(store: patchloom.PatchStore, tmp_path: Path) -> None:
    """Splits by sample, batches with channels last, scaled as its generator scales, statistics."""
    out = tmp_path / "sets" / "mine"
    export(store, "npy", out, normalize="percentile")
    loader = Loader(["mine"], tmp_path / "sets", "sample")
    numbers = "mean std percentile_high percentile_low median mad max min"
    assert [*loader.stats.columns] == ["sample_id", "channel", "z", *numbers.split()]
    assert {"y", "x", "z", "sample", "id", "file", "dataset"} <= {*loader.patches.columns}
    assert (loader.patches["dataset"] == "mine").all()
    rows = loader.patches.sort_values("id")
    batch = loader.batch(rows["file_path"], (16, 16), 2)
    for k, row in enumerate(rows.to_dict("records")):
        own = loader.stats[loader.stats["sample_id"] == row["sample"]].sort_values("channel")
        low = own["percentile_low"].to_numpy()[:, None, None]
        high = own["percentile_high"].to_numpy()[:, None, None]
        want = np.clip((store[k].astype("float64") - low) / (high - low), 0, 1)
        assert np.abs(np.moveaxis(batch[k], -1, 0) - want).max() < 1e-6
        told = store.manifest.slice(k, 1).to_pylist()[0]
        assert (row["y"], row["x"]) == (told["start_y"] + 8, told["start_x"] + 8)
        assert (row["sample"], row["dose"]) == (told["image_id"], told["dose"])
    assert np.load(out / rows["file"].iloc[0]).dtype == np.float32


def test_a_z_of_one_plane_is_dropped_for_phenocoder(tmp_path: Path) -> None:
    """Its patches are planes of a stack: [c, y, x], with their z in the table."""
    store = make_store(str(tmp_path / "s.zarr"), size=(1, 16, 16))
    export(store, "npy", tmp_path / "out", arrays=["images"])
    rows = Loader(["out"], tmp_path, "sample").patches.sort_values("id")
    assert np.array_equal([np.load(path) for path in rows["file_path"]], store[:][:, :, 0])
    assert rows["z"].tolist() == store.manifest["start_z"].to_pylist()


def test_tiff_knows_axes_channels_and_sizes(tmp_path: Path) -> None:
    """In OME-XML; the file's identity is fixed by the patch."""
    tifffile = pytest.importorskip("tifffile")
    demo = Path(patchloom.__file__).parent / "demo" / "cardiomyocytes.ome.zarr"
    images = patchloom.open_images(demo, labels="nuclei")
    plan = patchloom.plan(
        images, {"name": "sequential", "patch_size": [128, 128]}, rows_per_shard=4, edge="drop"
    )
    patchloom.materialize(plan, tmp_path / "s.zarr", progress=False)
    store = patchloom.open_patches(tmp_path / "s.zarr")
    export(store, "tiff", tmp_path / "out")
    assert_same(read_tiff(tmp_path / "out"), wanted(store, range(len(store)), "tiff"))
    [first, *_] = sorted((tmp_path / "out" / "images").iterdir())
    with tifffile.TiffFile(first) as file:
        assert file.is_ome
        assert file.series[0].axes == "CYX"
        xml = file.ome_metadata
    for name in store.attributes["channels"]:
        assert f'Name="{name}"' in xml
    size = store.attributes["images"][0]["spacing"]["y"]
    assert f'PhysicalSizeY="{size}"' in xml
    assert 'PhysicalSizeYUnit="µm"' in xml


def test_webdataset_has_a_key_a_patch(store: patchloom.PatchStore, tmp_path: Path) -> None:
    """The id of the patch, its row as JSON, and PNG where asked for."""
    out = tmp_path / "out"
    export(store, "webdataset", out, pixels="png", where={"split": "val"})
    image = pytest.importorskip("PIL.Image")
    rows = manifest(out).to_pylist()
    at = 0
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            for k in range(0, len(names), 4):
                key, row = rows[at]["patch_id"], rows[at]
                kinds = ["images.png", "labels.png", "targets.png", "json"]
                assert names[k : k + 4] == [f"{key}.{kind}" for kind in kinds]
                read = [tar.extractfile(name) for name in names[k : k + 4]]
                bodies = [io.BytesIO(file.read()) for file in read if file is not None]
                assert json.loads(bodies[3].read()) == row
                with image.open(bodies[0]) as picture:
                    assert np.array_equal(np.asarray(picture), montage(store[row["store_row"]]))
                at += 1
    assert at == len(rows)


def test_images_are_normalised_at_export(store: patchloom.PatchStore, tmp_path: Path) -> None:
    """By the store's numbers or by given ones; labels and targets never."""
    scaling = store.normalization("mean-std", per="channel")
    ways: list[dict[str, Any]] = [
        {"normalize": scaling},
        {"normalize": "mean-std", "per": "channel"},
    ]
    for k, way in enumerate(ways):
        export(store, "zarr", tmp_path / f"{k}", **way)
        found = read_zarr(tmp_path / f"{k}")
        assert np.array_equal(found["images"], store.read(range(32), normalize=scaling))
        assert np.array_equal(found["labels"], store.read(range(32), "labels"))
        assert np.array_equal(found["targets"], store.read(range(32), "targets"))
    header = json.loads((tmp_path / "0" / "export.json").read_text())
    assert header["normalization"]["kind"] == "mean-std"
    export(store, "png", tmp_path / "png", normalize="percentile", arrays=["images"])
    shares = store.read(range(32), normalize=store.normalization("percentile"))
    want = [montage(np.rint(p * 255).astype("uint8")) for p in shares]
    with pytest.raises(ConfigError, match="images are float32"):
        export(store, "png", tmp_path / "no", normalize="mean-std")
    assert_same(read_png(tmp_path / "png"), {"images": want})


# -- the command ------------------------------------------------------------------------------


def test_the_command_says_what_it_did(store: patchloom.PatchStore, tmp_path: Path) -> None:
    """The same objects as from Python; mistakes are sentences."""
    out = tmp_path / "cli" / "out"
    words = ["export", store.url, str(out), "--to", "zarr", "--option", "chunk=5"]
    words += ["--where", "split=val", "--where", "dose=1", "--where", "dose=20"]
    words += ["--arrays", "images,labels", "--normalize", "percentile", "--percentiles", "2,98"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "of 32" in done.output
    export(
        store,
        "zarr",
        tmp_path / "out",
        chunk=5,
        where={"split": "val", "dose": ["1", "20"]},
        arrays=["images", "labels"],
        normalize="percentile",
        percentiles=(2, 98),
    )
    assert contents(out) == contents(tmp_path / "out")
    told = CliRunner().invoke(main, [*words, "--json"])
    assert json.loads(told.stdout)["n_written"] == 0
    for more, says in (
        (["--to", "csv"], "to= is one of"),
        (["--to", "zarr", "--option", "chunk"], "NAME=VALUE"),
        (["--to", "zarr", "--option", "rows=3"], "give --rows"),
        (["--to", "zarr", "--option", "percentiles=3"], "give --percentiles"),
        (["--to", "zarr", "--option", "progress=true"], "leave it out"),
        (["--to", "zarr", "--option", "storage_options=1"], "leave it out"),
        (["--to", "zarr", "--option", "chunk=["], "in YAML, got chunk=["),
        (["--to", "zarr", "--where", "split"], "NAME=VALUE"),
    ):
        done = CliRunner().invoke(main, ["export", store.url, str(tmp_path / "x"), *more])
        assert done.exit_code == 2
        assert says in done.output
    assert not (tmp_path / "x").exists()


def test_every_format_is_listed(store: patchloom.PatchStore) -> None:
    """In the command's help and on the page, with all options."""
    help_text = CliRunner().invoke(main, ["export", "--help"]).output.replace("\n", " ")
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    for name in FORMATS:
        assert name in help_text
        assert f"`{name}`" in page
        for option in type(format_of(name, {})).model_fields:
            assert f"`{option}" in page, (name, option)


@pytest.mark.parametrize(("to", "package"), [("litdata", "litdata"), ("mds", "streaming")])
def test_a_writer_that_is_not_installed_is_named(
    to: str, package: str, store: patchloom.PatchStore, tmp_path: Path, monkeypatch: Any
) -> None:
    """With the extra that brings it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SourceMissingError, match=rf"pip install 'patchloom\[{to}\]'") as caught:
        export(store, to, tmp_path / "out")
    assert isinstance(caught.value, PatchloomError)
    assert not (tmp_path / "out").exists()


def test_a_selection_survives_a_pickle() -> None:
    """It travels to workers."""
    some = Selection.of({"split": "train", "dose": [1, 2]})
    assert pickle.loads(pickle.dumps(some)) == some
    assert str(some) == "dose in [1, 2] and split = 'train'"


def test_appended_stores_are_exported_without_reserved_rows(tmp_path: Path) -> None:
    """Rows between additions hold no patch."""
    rng = np.random.default_rng(3)
    pixels = [rng.integers(0, 99, (48, 48)).astype("uint8") for _ in range(2)]
    config = {"name": "sequential", "patch_size": [16, 16]}
    for n in (1, 2):
        images = patchloom.open_images(pixels[:n], ids=["a", "b"][:n])
        plan = patchloom.plan(images, config, rows_per_shard=4)
        patchloom.materialize(plan, tmp_path / "s.zarr", progress=False)
    store = patchloom.open_patches(tmp_path / "s.zarr")
    assert len(store) > 18
    export(store, "zarr", tmp_path / "out")
    rows = store.manifest["row"].to_numpy()
    assert_same(read_zarr(tmp_path / "out"), {"images": list(store.read(rows))})


def test_columns_that_an_export_adds_are_not_taken(tmp_path: Path) -> None:
    """Metadata of the same name are refused before anything is written."""
    images = patchloom.open_images(np.ones((32, 32), "uint8"), sample={"file": "a.tif"})
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]})
    patchloom.materialize(plan, tmp_path / "s.zarr", progress=False)
    with pytest.raises(ConfigError, match=r"metadata of the name \['file'\]"):
        export(tmp_path / "s.zarr", "png", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_copied_export_is_found_complete(store: patchloom.PatchStore, tmp_path: Path) -> None:
    """Nothing in it depends on where it or the store is."""
    export(store, "webdataset", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copytree(store.url, tmp_path / "s2.zarr")
    assert export(tmp_path / "s2.zarr", "webdataset", tmp_path / "b").n_written == 0


def test_numbers_of_other_images_or_channels_are_refused_first(
    store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """The place stays free for a call that is right."""
    images = patchloom.open_images([np.eye(16)] * 2, ids=["a", "c"])
    config = {"name": "sequential", "patch_size": [16, 16]}
    plan = patchloom.plan(images, config)
    patchloom.materialize(plan, tmp_path / "s.zarr", progress=False)
    other = patchloom.open_patches(tmp_path / "s.zarr")
    for one, per, says in ((other, "all", "with 1 channel"), (other, "image", "channel")):
        with pytest.raises(ConfigError, match=says):
            export(store, "zarr", tmp_path / "out", normalize=one.normalization("min-max", per))
        assert not (tmp_path / "out").exists()
    alone = patchloom.plan(patchloom.open_images(np.eye(16), ids=["z"]), config)
    patchloom.materialize(alone, tmp_path / "z.zarr", progress=False)
    scaling = patchloom.open_patches(tmp_path / "z.zarr").normalization("min-max")
    with pytest.raises(ConfigError, match="there are none for"):
        export(other, "zarr", tmp_path / "out", normalize=scaling)
    assert not (tmp_path / "out").exists()
