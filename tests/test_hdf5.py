"""HDF5: each box equals h5py's slice, chunks are fetched as ranges, and no name leads out."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import ChunkError, NotAnArrayError, SourceChangedError, SourceError
from patchloom.image import Image
from patchloom.location import Location
from patchloom.sources import hdf5
from patchloom.sources.files import Wanted
from tests import truth

DTYPES = ["bool", "u1", "<u2", ">u2", "<i2", ">i4", "<f4", ">f8", "<i8", "<f2"]
FILTERS: list[dict[str, Any]] = [
    {},
    {"compression": "gzip"},
    {"compression": "gzip", "shuffle": True},
    {"compression": "gzip", "shuffle": True, "fletcher32": True},
    {"fletcher32": True},
    {"shuffle": True},
    {"compression": "lzf", "shuffle": True},
]


def opened(path: Path | str, inside: str | None = None, **wanted: Any) -> Image:
    return hdf5.open_file(Location.of(path), Wanted("image", inside=inside, **wanted))


def saved(path: Path, array: np.ndarray[Any, Any], name: str = "raw", **more: Any) -> Path:
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=array, **more)
    return path


@settings(max_examples=60)
@given(st.data())
def test_every_box_is_the_slice_of_the_dataset(data: st.DataObject) -> None:
    """Any number type, byte order, filters and chunks; chunks that were never written too."""
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    dtype = data.draw(st.sampled_from(DTYPES))
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    filters = data.draw(st.sampled_from(FILTERS))
    chunks = None
    if filters or data.draw(st.booleans()):
        chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    written = tuple(slice(0, data.draw(st.integers(0, n))) for n in shape)
    box = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5"
        with h5py.File(path, "w") as file:
            dataset = file.create_dataset(
                "raw", shape, dtype, chunks=chunks, fillvalue=np.ones((), dtype)[()], **filters
            )
            dataset[written] = array[written]
            expected = dataset[...]
        image = opened(path, axes="tzyx"[-len(shape) :])
        assert image.dtype == array.dtype.newbyteorder("=")
        found = image.read([a for a, _ in box], [b for _, b in box])
        np.testing.assert_array_equal(found, expected[tuple(slice(a, b) for a, b in box)])


def test_what_is_decoded_by_whom(tmp_path: Path) -> None:
    """Common filters need no h5py lock; others, and odd number types, are h5py's work."""
    array = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    hows = {}
    for k, filters in enumerate(FILTERS):
        chunks = (16, 64) if filters else None
        path = saved(tmp_path / f"{k}.h5", array, chunks=chunks, **filters)
        image = opened(path)
        hows[k] = image.source.layout["how"]  # type: ignore[attr-defined]
        np.testing.assert_array_equal(image.read((0, 0), (64, 64)), array)
    assert list(hows.values()) == ["contiguous", *["chunks"] * 5, "h5py"]

    with h5py.File(tmp_path / "odd.h5", "w") as file:
        kind = h5py.h5t.NATIVE_UINT16.copy()
        kind.set_precision(12)
        kind.set_offset(2)
        space = h5py.h5s.create_simple(array.shape)
        dataset = h5py.h5d.create(file.id, b"raw", kind, space)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, array % 4096)
    image = opened(tmp_path / "odd.h5")
    assert image.source.layout["how"] == "h5py"  # type: ignore[attr-defined]
    np.testing.assert_array_equal(image.read((0, 0), (64, 64)), array % 4096)


def test_chunks_are_fetched_in_one_batch_and_the_index_once(tmp_path: Path) -> None:
    """Chunks that lie side by side are one request; a second reader knows where chunks are."""
    array = np.random.default_rng(0).integers(0, 9, (256, 256), np.uint8)
    path = saved(tmp_path / "a.h5", array, chunks=(32, 32), compression="gzip")
    image = opened(path)
    rows = np.stack(np.unravel_index(np.arange(64), (8, 8)), -1)
    first, second = image.source.reader(), image.source.reader()
    first.read(rows[:1])
    found = second.read(rows)
    np.testing.assert_array_equal(found[9], array[32:64, 32:64])
    # One byte that tells the state of the file, and all chunks at once.
    assert (second.reads.requests, second.reads.chunks) == (2, 64)
    assert second.reads.nbytes < path.stat().st_size
    assert first.reads.requests > 2


def test_threads_read_the_same(tmp_path: Path) -> None:
    """Readers of several threads, through both ways of decoding."""
    array = np.random.default_rng(0).integers(0, 999, (128, 128), np.int32)
    for filters in ({"compression": "gzip"}, {"compression": "lzf"}):
        path = saved(tmp_path / f"{filters['compression']}.h5", array, chunks=(8, 128), **filters)
        image = opened(path)
        found: dict[int, Any] = {}

        def read(k: int, image: Image = image, found: dict[int, Any] = found) -> None:
            found[k] = image.read((16 * k, 0), (16 * k + 16, 128))

        threads = [threading.Thread(target=read, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        np.testing.assert_array_equal(np.concatenate([found[k] for k in range(8)]), array)


def test_several_datasets_are_listed_and_one_is_named(tmp_path: Path) -> None:
    """Text, tables, references, numbers without axes and dimension scales are no candidates."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["t0/raw"] = np.ones((4, 5), np.uint8)
        file["names"] = ["a", "b"]
        file["number"] = 3
        file["table"] = np.zeros(3, [("a", "i4")])
        file["x"] = np.arange(5.0)
        file["x"].make_scale("x")
        file["self"] = file  # a group that holds itself
        file["same"] = h5py.SoftLink("/t0/raw")
        file["loop"] = h5py.SoftLink("/loop")
        file["gone"] = h5py.SoftLink("/nothing")
    [image] = patchloom.open_images(path)
    assert (image.shape, image.id, image.uri) == ((4, 5), "a", str(path))
    with h5py.File(path, "a") as file:
        file["t1/raw"] = np.zeros((4, 5), np.uint8)
    with pytest.raises(NotAnArrayError, match=r"holds \['t0/raw', 't1/raw'\]; name one"):
        patchloom.open_images(path)
    assert opened(path, "t1").read((0, 0), (1, 1)) == 0
    for inside in ("same", "/t0/raw", "self/t0/raw", "self/self/same"):
        assert opened(path, inside).read((0, 0), (1, 1)) == 1
    assert opened(path, "/t0/raw").uri == f"{path}::t0/raw"
    for inside in ("t2/raw", "../t0/raw", "t0/raw/deeper", "gone"):
        with pytest.raises(NotAnArrayError, match=r"has no .*it holds \['t0/raw', 't1/raw'\]"):
            opened(path, inside)
    with pytest.raises(NotAnArrayError, match="goes on after 16 links"):
        opened(path, "loop")
    for inside in ("names", "table"):
        with pytest.raises(NotAnArrayError, match="integers, floats or bools"):
            opened(path, inside)
    with pytest.raises(SourceError, match="no levels"):
        patchloom.open_images(path, level=1)


def test_no_name_leads_out_of_the_file(tmp_path: Path) -> None:
    """External links, external storage and virtual datasets are refused, however they are met."""
    secret = saved(tmp_path / "secret.h5", np.ones((4, 4)))
    (tmp_path / "secret.raw").write_bytes(bytes(128))
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["link"] = h5py.ExternalLink(str(secret), "/raw")
        file["soft"] = h5py.SoftLink("/link")
        layout = h5py.VirtualLayout((4, 4), "f8")
        layout[...] = h5py.VirtualSource(str(secret), "raw", (4, 4))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset(
            "outside", (4, 4), "f8", external=[(str(tmp_path / "secret.raw"), 0, 128)]
        )
    for inside, what in [
        ("link", "a link to another file"),
        ("soft", "a link to another file"),
        ("virtual", "a virtual dataset"),
        ("outside", "stored in other files"),
    ]:
        with pytest.raises(NotAnArrayError, match=what):
            opened(path, inside)


def test_attributes_tell_axes_and_pixel_sizes(tmp_path: Path) -> None:
    """Vigra's axistags, HDF5's labels, ``element_size_um``, and CREMI's resolution and offset."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        tagged = file.create_dataset("tagged", (2, 3, 4), "u1")
        tagged.attrs["axistags"] = json.dumps({"axes": [{"key": k} for k in "cyx"]})
        tagged.attrs["element_size_um"] = [0.5, 0.25]
        labelled = file.create_dataset("labelled", (2, 3, 4, 5), "u1")
        for dimension, label in zip(labelled.dims, ("time", "z", "y", "x"), strict=True):
            dimension.label = label
        labelled.attrs["element_size_um"] = [2, 0.5, 0.25]
        cremi = file.create_dataset("cremi", (3, 4, 5), "u1")
        cremi.attrs["resolution"] = (40.0, 4.0, 4.0)
        cremi.attrs["offset"] = (0.0, 8.0, 12.0)
        cremi.attrs["unit"] = "nanometer"
        wrong = file.create_dataset("wrong", (3, 4), "u1")
        wrong.attrs["axistags"] = '{"axes": 3}'
        wrong.attrs["resolution"] = (np.nan, 0.0)
    image = opened(path, "tagged")
    assert (str(image.axes), image.spacing) == ("CYX", {"y": 0.5, "x": 0.25})
    assert image.unit == {"y": "micrometer", "x": "micrometer"}
    image = opened(path, "labelled")
    assert (str(image.axes), image.spacing) == ("TZYX", {"z": 2, "y": 0.5, "x": 0.25})
    image = opened(path, "cremi")
    assert image.spacing == {"z": 40, "y": 4, "x": 4}
    assert (image.origin["x"], image.unit["z"]) == (12, "nanometer")
    assert opened(path, "cremi", axes="TYX").spacing == {"y": 4, "x": 4}
    image = opened(path, "wrong")
    assert (str(image.axes), image.spacing) == ("YX", {})


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    """A chunk that does not inflate, inflates too far, or has another sum, is an error."""
    cases: list[tuple[dict[str, Any], bytes]] = [
        ({"compression": "gzip"}, b"\xff\xff\xff\xff"),
        ({"fletcher32": True}, b"\x01"),
        ({"compression": "lzf"}, b"\xff\xff\xff\xff"),
    ]
    for filters, damage in cases:
        [name] = filters
        path = saved(
            tmp_path / f"{name}{damage[0]}{filters[name]}.h5",
            np.arange(64 * 64).reshape(64, 64),
            chunks=(32, 64),
            **filters,
        )
        image = opened(path)
        with h5py.File(path) as file:
            place = file["raw"].id.get_chunk_info(1).byte_offset
        data = bytearray(path.read_bytes())
        data[place : place + len(damage)] = damage
        path.write_bytes(data)
        np.testing.assert_array_equal(image.read((0, 0), (1, 3)), [[0, 1, 2]])
        with pytest.raises(ChunkError, match=r"chunk \(1, 0\) of '/raw'"):
            image.read((0, 0), (64, 64))


def test_a_chunk_inflates_to_no_more_than_it_has(tmp_path: Path) -> None:
    """A bomb is stopped before it is in memory."""
    import zlib

    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("raw", (64, 64), "u1", chunks=(64, 64), compression="gzip")
        dataset.id.write_direct_chunk((0, 0), zlib.compress(bytes(2**27)))
    with pytest.raises(ChunkError, match="for a chunk of 4,096"):
        opened(path).read((0, 0), (64, 64))


def test_a_file_that_is_written_again_is_noticed(tmp_path: Path) -> None:
    """Another state or shape is refused; a new reader reads the new state."""
    array = np.arange(64.0).reshape(8, 8)
    path = saved(tmp_path / "a.h5", array, chunks=(4, 4), compression="gzip")
    image = opened(path)
    image.read((0, 0), (8, 8))
    reader = image.source.reader()
    reader.read(np.array([[0, 0]]))
    path.unlink()
    saved(path, array + 1, chunks=(4, 4), shuffle=True)
    with pytest.raises(SourceChangedError):
        reader.read(np.array([[0, 0]]))
    path.unlink()
    saved(path, array[:7], chunks=(4, 4), compression="gzip")
    with pytest.raises(ChunkError, match="has now shape"):
        image.read((0, 0), (8, 8))


def test_a_saved_plan_opens_the_dataset_again(tmp_path: Path) -> None:
    """The document of an image is small JSON, and enough to read it."""
    array = np.arange(64 * 64, dtype=np.int16).reshape(64, 64)
    path = saved(tmp_path / "a.h5", array, "deep/raw", chunks=(1, 1), compression="gzip")
    [image] = patchloom.open_images(path)
    text = json.dumps(image.to_document())
    assert len(text) < 1000
    again = Image.from_document(json.loads(text))
    np.testing.assert_array_equal(again.read((3, 4), (7, 9)), array[3:7, 4:9])
    np.testing.assert_array_equal(np.asarray(again.data), array)


def test_the_same_voxels_as_in_zarr(data_set: Callable[[str], Path], tmp_path: Path) -> None:
    """The real volume equals its truth, and its patches those of its twin in Zarr shards."""
    root = data_set("em_fib25")
    [zarr_twin] = patchloom.open_images(root / "raw.zarr")
    path, inside = root / "em.h5", "volumes/raw"
    if not path.exists():  # the small set has only the Zarr
        pixels = zarr_twin.read((0, 0, 0), zarr_twin.shape)
        path = saved(tmp_path / "em.h5", pixels, inside, chunks=(16, 24, 32), compression="gzip")
    for found in truth.all_truths(sets={"em_fib25"}, containers={"hdf5"}):
        if not found.path.exists():
            continue
        image = opened(found.path, found.entry.inner)
        assert (image.shape, image.dtype) == (found.entry.shape, found.entry.dtype)
        assert found.entry.matches(image.read((0, 0, 0), image.shape))
        for patch in found.entry.patches:
            start, stop = [s.start for s in patch.slices], [s.stop for s in patch.slices]
            assert truth.digest(image.read(start, stop)) == patch.sha256
    stores = []
    for k, image in enumerate([opened(path, inside), zarr_twin]):
        plan = patchloom.plan(image, {"name": "sequential", "patch_size": [48, 48, 48]})
        report = patchloom.materialize(plan, tmp_path / f"{k}.zarr", progress=False)
        assert report.chunk_reads == report.chunks_needed
        stores.append(patchloom.open_patches(tmp_path / f"{k}.zarr"))
    for one, two in [[s.manifest.to_pylist() for s in stores]]:
        other = {tuple(r[f"start_{a}"] for a in "zyx"): r["row"] for r in two}
        for row in one:
            twin = other[tuple(row[f"start_{a}"] for a in "zyx")]
            np.testing.assert_array_equal(stores[0][row["row"]], stores[1][twin])
