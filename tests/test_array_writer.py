"""ArrayWriter: what is committed is read back, by any reader, whatever happens after it."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import ConfigError, ExistsError, StoreError, WriteError
from patchloom.location import Location

Pixels = npt.NDArray[Any]
ArrayWriter = patchloom.ArrayWriter

FORMATS: dict[str, dict[str, Any]] = {
    "v3": {"url": "a.zarr"},
    "v3-sharded": {"url": "a.zarr", "chunk": 2},
    "v2": {"url": "a.zarr", "zarr_format": 2},
    "hdf5": {"url": "a.h5"},
}


def pixels(n: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(1, 99, (n, 3, 2)).astype("uint16")


def opened(folder: Path, kind: str, append: bool = False, **more: Any) -> Any:
    options = {**FORMATS[kind], **more}
    url = folder / options.pop("url")
    return ArrayWriter((3, 2), "uint16", 4, url, "set/images", append=append, **options)


def in_zarr(folder: Path) -> Any:
    return zarr.open_group(folder / "a.zarr", mode="r")["set/images"]


def read(folder: Path, kind: str) -> Pixels:
    """By the format's own reader."""
    if kind == "hdf5":
        with h5py.File(folder / "a.h5") as file:
            return np.asarray(file["set/images"][:])
    return np.asarray(in_zarr(folder)[...])


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=15)
@given(steps=st.lists(st.sampled_from([1, 2, 3, 4, 5, 8, 11, "c", "f", "o", "x"]), max_size=12))
def test_a_reader_sees_what_was_committed(
    kind: str, steps: list[int | str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After any writes, flushes, commits, reopenings and writers that were given up."""
    folder = tmp_path_factory.mktemp("writer")
    all_rows, committed, n = pixels(200), -1, 0
    writer = opened(folder, kind, append=True)
    for step in steps:
        if isinstance(step, int):
            writer.write(all_rows[n : n + step])
            n += step
        elif step == "f":
            writer.flush()
        elif step == "x":  # given up: what was not committed is gone
            writer.close()
            n, writer = max(0, committed), opened(folder, kind, append=True)
        else:
            writer.commit()
            committed = n
            if step == "o":
                writer.close()
                writer = opened(folder, kind, append=True)
        assert (writer.n_rows, writer.n_committed) == (n, max(0, committed))
        if committed >= 0:
            np.testing.assert_array_equal(read(folder, kind), all_rows[:committed])
    with writer:
        pass
    np.testing.assert_array_equal(read(folder, kind), all_rows[:n])
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize("kind", FORMATS)
def test_an_exception_leaves_what_was_committed(tmp_path: Path, kind: str) -> None:
    """Rows that were stored since are not seen, and are written again by the next writer."""
    with opened(tmp_path, kind) as writer:
        writer.write(pixels(6))
    with suppress(KeyError), opened(tmp_path, kind, append=True) as writer:
        writer.write(pixels(9, seed=1))
        writer.flush()
        raise KeyError
    np.testing.assert_array_equal(read(tmp_path, kind), pixels(6))
    with opened(tmp_path, kind, append=True) as writer:
        writer.write(np.zeros((3, 3, 2), "uint16"))
    np.testing.assert_array_equal(read(tmp_path, kind)[6:], 0)


KILLED = """
import os, sys, numpy as np, patchloom
options = {options!r}
w = patchloom.ArrayWriter((3, 2), "uint16", 4, {url!r}, "set/images", **options)
w.write(np.full((6, 3, 2), 7, "uint16")); w.commit()
w.write(np.full((9, 3, 2), 8, "uint16")); w.flush()
os._exit(3)
"""


@pytest.mark.parametrize("kind", FORMATS)
def test_a_killed_writer_leaves_what_was_committed(tmp_path: Path, kind: str) -> None:
    options = dict(FORMATS[kind])
    url = str(tmp_path / options.pop("url"))
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(options=options, url=url)], check=False
    )
    assert done.returncode == 3
    np.testing.assert_array_equal(read(tmp_path, kind), np.full((6, 3, 2), 7))
    with opened(tmp_path, kind, append=True) as writer:
        assert writer.n_rows == 6
        writer.write(pixels(5))
    np.testing.assert_array_equal(read(tmp_path, kind)[6:], pixels(5))


@pytest.mark.parametrize("kind", ["v3", "v3-sharded", "v2"])
def test_each_object_is_written_whole_and_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few rows come at a time; the metadata last."""
    names: list[str] = []
    write = Location.write

    def spy(self: Location, name: str, *parts: Any) -> None:
        names.append(name)
        write(self, name, *parts)

    monkeypatch.setattr(Location, "write", spy)
    with opened(tmp_path, kind) as writer:
        for row in pixels(11):
            writer.write(row[None])
    parts = [n for n in names if n[-1].isdigit()]
    assert parts == (
        ["0.0.0", "1.0.0", "2.0.0"] if kind == "v2" else ["c/0/0/0", "c/1/0/0", "c/2/0/0"]
    )
    assert names[-1] in ("zarr.json", ".zarray")
    array = in_zarr(tmp_path)
    assert (array.shards or array.chunks) == (4, 3, 2)
    assert array.chunks[0] == (2 if kind == "v3-sharded" else 4)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_known_length_is_not_exceeded(tmp_path: Path, kind: str) -> None:
    """A call that would is refused before one of its rows is taken; data_tools broke off inside."""
    with opened(tmp_path, kind, length=10) as writer:
        writer.write(pixels(7))
        with pytest.raises(StoreError, match="none of them was taken"):
            writer.write(pixels(4))
        assert writer.n_rows == 7
    with opened(tmp_path, kind, append=True, length=10) as writer:
        writer.write(pixels(10)[7:])
    np.testing.assert_array_equal(read(tmp_path, kind), pixels(10))
    with (
        pytest.raises(StoreError, match="none"),
        opened(tmp_path, kind, append=True, length=10) as writer,
    ):
        writer.write(pixels(1))


def test_arrays_of_others_are_gone_on_with(tmp_path: Path) -> None:
    """In their own pieces, with their codecs, fill value and attributes."""
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array(
        "set/images",
        shape=(5, 3, 2),
        chunks=(2, 3, 1),
        shards=(4, 3, 2),
        dtype=">u2",
        fill_value=9,
        attributes={"who": "me"},
        dimension_names=["n", "y", "x"],
    )[...] = pixels(5)
    with opened(tmp_path, "v3", append=True) as writer:
        writer.write(pixels(6, seed=1))
    np.testing.assert_array_equal(read(tmp_path, "v3"), np.concatenate([pixels(5), pixels(6, 1)]))
    assert zarr.open_array(tmp_path / "a.zarr/set/images", mode="r").attrs["who"] == "me"
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("set/images", data=pixels(5), chunks=(4, 1, 2), maxshape=(None, 3, 2))
        file["other"] = [1, 2]
    with opened(tmp_path, "hdf5", append=True) as writer:
        writer.write(pixels(6, seed=1))
    np.testing.assert_array_equal(read(tmp_path, "hdf5"), read(tmp_path, "v3"))
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["other"][:].tolist() == [1, 2]


@pytest.mark.parametrize("kind", FORMATS)
def test_what_does_not_fit_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    with opened(tmp_path, kind) as writer:
        writer.write(pixels(5))
        for wrong in (pixels(2)[0], pixels(2)[:, :2], np.uint16(3)):
            with pytest.raises(ConfigError, match="rows have the shape"):
                writer.write(wrong)
        with pytest.raises(ConfigError, match=r"\.astype\('uint16'\)"):
            writer.write(pixels(2).astype(float))
        assert writer.n_rows == 5
    with pytest.raises(StoreError, match="closed writer"):
        writer.write(pixels(1))
    with pytest.raises(StoreError, match="closed writer"):
        writer.commit()
    options = {k: v for k, v in FORMATS[kind].items() if k != "url"}
    url = tmp_path / FORMATS[kind]["url"]
    with pytest.raises(ExistsError, match="append=True"):
        opened(tmp_path, kind)
    for shape, dtype, batch in (((3,), "u2", 4), ((3, 2), "u1", 4), ((3, 2), "u2", 6)):
        with pytest.raises(StoreError, match="appended"):
            ArrayWriter(shape, dtype, batch, url, "set/images", append=True, **options)
    with pytest.raises(ExistsError):
        ArrayWriter((3, 2), "u2", 4, url, "set", append=True, **options)
    np.testing.assert_array_equal(read(tmp_path, kind), pixels(5))


@pytest.mark.parametrize("kind", ["v3", "v2"])
def test_a_length_below_what_is_there_is_refused(tmp_path: Path, kind: str) -> None:
    with opened(tmp_path, kind) as writer:
        writer.write(pixels(5))
    with pytest.raises(ConfigError, match="are there already"):
        opened(tmp_path, kind, append=True, length=4)


def test_a_dataset_that_cannot_grow_says_so(tmp_path: Path) -> None:
    with opened(tmp_path, "hdf5", length=10) as writer:
        writer.write(pixels(5))
    with pytest.raises(StoreError, match="room for 10 rows; give length="):
        opened(tmp_path, "hdf5", append=True)
    (tmp_path / "a.h5").unlink()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("set/images", data=pixels(4))
    with pytest.raises(StoreError, match="room for 4 rows"):
        opened(tmp_path, "hdf5", append=True)
    (tmp_path / "a.h5").write_text("no HDF5")
    with pytest.raises(StoreError, match="cannot be read"):
        opened(tmp_path, "hdf5", append=True)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_second_writer_is_noticed(tmp_path: Path, kind: str) -> None:
    """Its rows stay; those of the first are refused."""
    with opened(tmp_path, kind) as writer:
        writer.write(pixels(5))
    first = opened(tmp_path, kind, append=True)
    with opened(tmp_path, kind, append=True) as second:
        second.write(pixels(4, seed=2))
    first.write(pixels(1))
    with pytest.raises(StoreError, match="one writer at a time"):
        first.commit()
    with pytest.raises(StoreError, match="one writer at a time"):
        first.write(pixels(9))
    first.close()
    np.testing.assert_array_equal(read(tmp_path, kind), np.concatenate([pixels(5), pixels(4, 2)]))


def test_a_write_that_failed_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`n_rows` says what was taken, and nothing is written twice or left out."""
    writer = opened(tmp_path, "v3")
    write, calls = Location.write, [0]

    def full(self: Location, name: str, *parts: Any) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise WriteError("the disk is full")
        write(self, name, *parts)

    monkeypatch.setattr(Location, "write", full)
    with writer:
        with pytest.raises(WriteError):
            writer.write(pixels(30))
        writer.write(pixels(30)[writer.n_rows :])
    np.testing.assert_array_equal(read(tmp_path, "v3"), pixels(30))


def test_an_hdf5_copy_that_failed_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file stays as it was committed; the writer says so, and takes no more."""
    with opened(tmp_path, "hdf5") as writer:
        writer.write(pixels(5))
    writer = opened(tmp_path, "hdf5", append=True)
    writer.write(pixels(1))
    before = (tmp_path / "a.h5").read_bytes()

    def full(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(WriteError, match="5 rows that are committed stay"):
        writer.commit()
    monkeypatch.undo()
    with pytest.raises(StoreError, match="open it anew"):
        writer.commit()
    writer.close()
    assert (tmp_path / "a.h5").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.h5"]


def test_consolidated_metadata_are_not_made_wrong(tmp_path: Path) -> None:
    """Their readers would not see the rows."""
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("x", shape=(2,), dtype="u1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are no part of the format yet
        zarr.consolidate_metadata(tmp_path / "a.zarr")
    with pytest.raises(StoreError, match="consolidated"):
        opened(tmp_path, "v3")
    with pytest.raises(StoreError, match="one format"):
        opened(tmp_path, "v2")
    (tmp_path / "a.zarr/zarr.json").write_text("[")
    with pytest.raises(StoreError, match="a JSON object"):
        opened(tmp_path, "v3")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "bcolz"}, "bcolz is not maintained"),
        ({"url": "rows.bcolz"}, "format='zarr'"),
        ({"format": "npy"}, "'zarr' or 'hdf5'"),
        ({"dtype": object}, "numbers or bools"),
        ({"dtype": "nothing"}, "numbers or bools"),
        ({"batch_size": 0}, "batch_size="),
        ({"batch_size": 2.5}, "batch_size="),
        ({"element_shape": (0, 2)}, "element_shape="),
        ({"chunk": 3}, "whole chunks"),
        ({"zarr_format": 2, "chunk": 2}, "no shards"),
        ({"zarr_format": 4}, "zarr_format="),
        ({"array_name": "../up"}, "array_name="),
        ({"array_name": ""}, "array_name="),
        ({"kwargs": {"nothing": 1}}, "zarr.create_array"),
        ({"url": "memory://a.h5"}, "local disk"),
    ],
)
def test_what_cannot_be_written_says_why(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    options: dict[str, Any] = {
        "element_shape": (3, 2),
        "dtype": "u2",
        "batch_size": 4,
        "url": "a.zarr",
        "array_name": "x",
        **change,
    }
    if "://" not in options["url"]:
        options["url"] = tmp_path / options["url"]
    with pytest.raises(ConfigError, match=words):
        ArrayWriter(**options)
    assert not os.listdir(tmp_path)


def test_hdf5_without_h5py_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r"patchloom\[hdf5\]"):
        opened(tmp_path, "hdf5")


def test_rows_are_written_to_an_object_store(s3_server: Any) -> None:
    """And appended there, with a partial last shard."""
    url, options = s3_server.fresh_bucket(), s3_server.storage_options
    for append, rows in ((False, pixels(6)), (True, pixels(7, seed=1))):
        with ArrayWriter(
            (3, 2), "u2", 4, f"{url}/a.zarr", "x", chunk=1, append=append, storage_options=options
        ) as writer:
            writer.write(rows)
    array = zarr.open_array(f"{url}/a.zarr/x", mode="r", storage_options=options)
    expected = np.concatenate([pixels(6), pixels(7, 1)])
    np.testing.assert_array_equal(array[...], expected)
    view = patchloom.ArrayView(array, shuffle=1)
    assert view._pieces[0].rows.step == 1
    np.testing.assert_array_equal(view, expected[view.order])


def test_views_are_copied_by_batches(tmp_path: Path) -> None:
    """A shuffled copy of many sources, whole objects at a time."""
    view = patchloom.ArrayView.concatenate([pixels(9), pixels(8, seed=1)], shuffle=5)
    with opened(tmp_path, "v3-sharded") as writer:
        for batch in view.batches(4):
            writer.write(batch)
    np.testing.assert_array_equal(read(tmp_path, "v3-sharded"), view)
