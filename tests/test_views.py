"""ArrayView: NumPy is the oracle, whatever lies beneath, and only what is asked for is read."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import patchloom
from patchloom.arrays.indexing import Asked
from patchloom.errors import ConfigError, NotAnArrayError, PatchloomError, SourceError
from tests.servers.http import HttpServer

Pixels = npt.NDArray[Any]
ArrayView = patchloom.ArrayView

SHAPE = (23, 3, 7)
PIXELS = np.random.default_rng(0).integers(0, 60_000, SHAPE).astype(np.uint16)


class Plain:
    """Anything sliceable: no tuple of slices, no list, no integer."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels, self.asked = pixels, list[slice]()
        self.shape, self.dtype = pixels.shape, pixels.dtype

    def __getitem__(self, index: Any) -> Pixels:
        assert isinstance(index, slice) or all(isinstance(one, slice) for one in index)
        self.asked.append(index if isinstance(index, slice) else index[0])
        found: Pixels = self._pixels[index]
        return found


def _zarr(folder: Path, **kwargs: Any) -> Any:
    array = zarr.create_array(folder, shape=SHAPE, dtype="uint16", **kwargs)
    array[...] = PIXELS
    return array


def _store(folder: Path) -> Any:
    plan = patchloom.plan(
        patchloom.open_images(PIXELS[:, 0]), {"name": "sequential", "patch_size": [1, 7]}
    )
    patchloom.materialize(plan, folder, progress=False)
    return patchloom.open_patches(folder)


SOURCES: dict[str, Callable[[Path], Any]] = {
    "numpy": lambda _: PIXELS,
    "big-endian": lambda _: PIXELS.astype(">u2"),
    "plain": lambda _: Plain(PIXELS),
    "zarr-v3": lambda f: _zarr(f / "a.zarr", chunks=(4, 2, 5)),
    "zarr-v3-sharded": lambda f: _zarr(f / "b.zarr", chunks=(2, 3, 2), shards=(8, 3, 8)),
    "zarr-v2": lambda f: _zarr(f / "c.zarr", chunks=(5, 3, 7), zarr_format=2),
    "image": lambda f: patchloom.open_images(
        str(_zarr(f / "d.zarr", chunks=(4, 2, 5)).store.root), axes="ZYX"
    )[0],
}


class Sources(dict[str, Any]):
    """Shown in one word where a test fails."""

    def __repr__(self) -> str:
        return "sources"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    found = Sources({name: make(folder) for name, make in SOURCES.items()})
    found["zarr-in-memory"] = zarr.create_array(
        {}, shape=SHAPE, dtype="uint16", chunks=(1, 3, 7), shards=(6, 3, 7)
    )
    found["zarr-in-memory"][...] = PIXELS
    np.save(folder / "e.npy", PIXELS)
    found["memmap"] = np.load(folder / "e.npy", mmap_mode="r")
    file = h5py.File(folder / "f.h5", "w")
    found["hdf5"] = file.create_dataset("x", data=PIXELS, chunks=(4, 3, 3), compression="lzf")
    found["hdf5-contiguous"] = file.create_dataset("y", data=PIXELS)
    return found


KINDS = (*SOURCES, "zarr-in-memory", "memmap", "hdf5", "hdf5-contiguous")


@st.composite
def columns(draw: st.DrawFn, extent: int, wrong: bool) -> Any:
    """Arrays, lists and masks for one axis; now and then wrong ones."""
    reach = extent + wrong
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4))
    if not extent:
        shape = (0,)
    found: Any = draw(
        hnp.arrays(
            draw(st.sampled_from([np.int64, np.int8])),
            shape,
            elements=st.integers(-reach, max(-reach, reach - 1)),
        )
    )
    if draw(st.booleans()):
        found = draw(hnp.arrays(np.bool_, (extent + (wrong and draw(st.booleans())),)))
    return found.tolist() if draw(st.booleans()) else found


@st.composite
def indices(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Indices of NumPy's kind into a shape; some of them do not fit."""
    wrong = draw(st.integers(0, 9)) == 0
    if draw(st.integers(0, 9)) == 0:
        return draw(hnp.arrays(np.bool_, shape[: draw(st.integers(0, len(shape)))]))
    items: list[Any] = []
    for extent in shape[: draw(st.integers(0, len(shape)))]:
        reach = extent + wrong
        kinds: list[st.SearchStrategy[Any]] = [
            st.slices(extent),
            st.slices(max(1, extent + 3)),
            columns(extent, wrong),
        ]
        if reach:
            kinds += [st.integers(-reach, reach - 1), st.integers(-reach, reach - 1).map(np.int32)]
        items.append(draw(st.one_of(kinds)))
    for extra in draw(st.lists(st.sampled_from([None, ..., True]), max_size=2)):
        items.insert(draw(st.integers(0, len(items))), extra)
    if wrong and draw(st.booleans()):
        items.append(draw(st.sampled_from([1.0, "a", np.ones(3), slice(None, None, 0), ..., 0])))
    return items[0] if len(items) == 1 and draw(st.booleans()) else tuple(items)


def both(view: Any, pixels: Pixels, index: Any) -> None:
    """The same pixels, shape and type, or the same kind of error."""
    try:
        expected = pixels[index]
    except (IndexError, TypeError, ValueError) as error:
        with pytest.raises(type(error)):
            view[index]
        return
    found = view[index]
    assert type(found) is type(expected)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_an_index_gives_what_it_gives_of_a_numpy_array(
    sources: Sources, kind: str, data: st.DataObject
) -> None:
    """Of any source, of a window and a shuffled order of it, whatever the index."""
    low = data.draw(st.sampled_from([None, 0, 3, -20]))
    high = data.draw(st.sampled_from([None, 23, 17, -2, 100, 2]))
    seed = data.draw(st.sampled_from([None, 0, 7]))
    view = ArrayView(sources[kind], low, high, shuffle=seed)
    pixels = PIXELS[low:high]
    if seed is not None:
        assert sorted(view.order) == list(range(*slice(low, high).indices(len(PIXELS))))
        pixels = PIXELS[view.order]
    assert (view.shape, len(view), view.ndim) == (pixels.shape, len(pixels), 3)
    assert view.dtype == np.uint16
    with pytest.MonkeyPatch.context() as patch:
        # So few bytes at a time that everything is read in several goes.
        together = data.draw(st.sampled_from([1, 100, 2**20]))
        patch.setattr("patchloom.arrays.array_view.TOGETHER", together)
        patch.setattr("patchloom.arrays.rows.TOGETHER", together)
        both(view, pixels, data.draw(indices(view.shape)))


@given(shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5), data=st.data())
def test_an_index_is_taken_apart_as_numpy_takes_it(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    """Of any shape, those without any pixel too."""
    pixels = np.arange(np.prod(shape)).reshape(shape)
    both(ArrayView(pixels), pixels, data.draw(indices(shape)))


@given(n=st.integers(0, 300), seeds=st.lists(st.integers(-5, 2**70), min_size=2, max_size=2))
def test_an_order_is_fixed_by_its_seed_alone(n: int, seeds: list[int]) -> None:
    """A permutation, the same whatever the order was before, on sources of any kind."""
    view = ArrayView(np.arange(n))
    one = view.shuffle(seeds[0])
    np.testing.assert_array_equal(np.sort(one[:]), np.arange(n))
    np.testing.assert_array_equal(one[:], view.shuffle(seeds[1]).shuffle(seeds[0])[:])
    np.testing.assert_array_equal(one[:], ArrayView(np.arange(n), shuffle=seeds[0]))
    np.testing.assert_array_equal(view[:], np.arange(n))


def test_every_order_comes_up_as_often_as_any_other() -> None:
    """Of three rows there are six orders: 600 seeds draw each about 100 times."""
    view = ArrayView(np.arange(3))
    orders = [tuple(view.shuffle(seed)[:].tolist()) for seed in range(600)]
    counts = [orders.count(order) for order in itertools.permutations(range(3))]
    assert sum((count - 100) ** 2 / 100 for count in counts) < 20.5  # chi2, 5 degrees: 0.1 %


def test_orders_do_not_change_between_versions() -> None:
    """The same rows on any machine: they are a part of what a training was."""
    assert ArrayView(np.arange(8)).shuffle(1234)[:].tolist() == [1, 3, 7, 0, 2, 5, 6, 4]


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    maxlen=st.none() | st.integers(0, 6),
    seed=st.none() | st.integers(0, 9),
    data=st.data(),
)
def test_many_sources_are_one_array_with_labels(
    lengths: list[int], maxlen: int | None, seed: int | None, data: st.DataObject
) -> None:
    """Rows and labels belong together; each source gives its rows, at most maxlen, once."""
    arrays = [np.arange(n * 2).reshape(n, 2) + 100 * k for k, n in enumerate(lengths)]
    classes = data.draw(st.lists(st.integers(0, 3), min_size=len(arrays), max_size=len(arrays)))
    view = ArrayView.concatenate(arrays, classes, shuffle=seed, maxlen=maxlen)
    labels = view.get_labels()
    assert (
        len(labels)
        == len(view)
        == sum(min(n, maxlen or 0) if maxlen is not None else n for n in lengths)
    )
    rows = np.asarray(view)
    if seed is None:
        np.testing.assert_array_equal(rows, np.concatenate([a[:maxlen] for a in arrays]))
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)
    np.testing.assert_array_equal(labels, np.array(classes)[rows[:, 0] // 100])
    for k, n in enumerate(lengths):
        assert (rows[:, 0] // 100 == k).sum() == (n if maxlen is None else min(n, maxlen))
    both(view, rows, data.draw(indices(view.shape)))
    nested = ArrayView.concatenate([view, arrays[0]], ["a", "b"])
    assert nested.get_labels().tolist() == ["a"] * len(view) + ["b"] * lengths[0]
    np.testing.assert_array_equal(nested, np.concatenate([rows, arrays[0]]))


@given(data=st.data())
def test_rows_may_be_named(data: st.DataObject) -> None:
    """In any order and more than once; windows and orders of them are of these rows."""
    rows = data.draw(st.lists(st.integers(-23, 22), max_size=30))
    low, high = data.draw(st.tuples(st.integers(0, 9), st.integers(5, 30)))
    view = ArrayView(ArrayView(PIXELS, rows=rows), low, high)
    pixels = PIXELS[np.array(rows, np.int64)][low:high]
    both(view, pixels, data.draw(indices(view.shape)))
    np.testing.assert_array_equal(view.order, np.array(rows, np.int64)[low:high] % 23)
    assert sorted(view.shuffle(3).order) == sorted(view.order)


def test_maxlen_draws_by_the_seed() -> None:
    """Not always the first rows; the same ones for the same seed."""
    arrays = [np.arange(100), np.arange(100) + 100]
    found = [
        set(ArrayView.concatenate(arrays, shuffle=s, maxlen=10)[:].tolist()) for s in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]
    assert max(found[0]) > 150  # of 10 rows among the last hundred


def test_views_share_an_order() -> None:
    """By the same seed, or by taking over the order of another."""
    images, labels = np.arange(60).reshape(30, 2), np.arange(30) * 2
    a = ArrayView.concatenate([images[:10], images[10:]], shuffle=3, maxlen=8)
    b = ArrayView.concatenate([labels[:10], labels[10:]], shuffle=3, maxlen=8)
    np.testing.assert_array_equal(a[:, 0], b)
    c = ArrayView.concatenate([labels[:10], labels[10:]]).ordered_like(a)
    np.testing.assert_array_equal(a[:, 0], c)
    assert len(c) == 16
    with pytest.raises(SourceError, match="same lengths"):
        ArrayView(labels).ordered_like(a)


def test_dtypes_are_promoted_as_numpy_promotes_them() -> None:
    """And rows of another shape are refused: data_tools cut them."""
    view = ArrayView.concatenate([np.zeros((2, 3), "uint8"), np.ones((2, 3), "int16")])
    assert view.dtype == np.concatenate([np.zeros(1, "uint8"), np.zeros(1, "int16")]).dtype
    with pytest.raises(SourceError, match="one shape"):
        ArrayView.concatenate([np.zeros((2, 3)), np.zeros((2, 4))])
    with pytest.raises(SourceError, match="common dtype"):
        ArrayView.concatenate([np.zeros(2, "M8[s]"), np.zeros(2)])
    with pytest.raises(SourceError, match="at least one"):
        ArrayView.concatenate([])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize("rows", [None, 1, 5, 23, 99])
def test_batches_are_all_rows_in_order(
    sources: Sources, kind: str, seed: int | None, rows: int | None
) -> None:
    view = ArrayView(sources[kind], 2, 22, shuffle=seed)
    found = list(view.batches(rows))
    np.testing.assert_array_equal(np.concatenate(found), view[:])
    assert rows is None or [len(f) for f in found[:-1]] == [rows] * (len(found) - 1)
    np.testing.assert_array_equal(np.stack(list(view)), view)


def test_batches_end_where_stored_objects_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that each chunk is decoded once, also of a window that begins within one."""
    monkeypatch.setattr("patchloom.arrays.array_view._BATCH", 1)
    a, b = (zarr.create_array({}, shape=(n, 2), dtype="u1", chunks=(4, 2)) for n in (10, 6))
    view = ArrayView.concatenate([a, b])
    assert [len(f) for f in ArrayView(view, 2, 15).batches()] == [2, 4, 2, 4, 1]
    assert [len(f) for f in view.batches()] == [4, 4, 2, 4, 2]
    assert not list(ArrayView(a, 3, 3).batches())


def test_rows_of_a_chunk_are_asked_for_at_once() -> None:
    """One slice for each chunk or close stretch, never one a row, in any order."""
    source = Plain(np.arange(400 * 20_000, dtype="uint8").reshape(400, 20_000))
    view = ArrayView(source)
    order = np.random.default_rng(1).permutation(400)[:300]
    np.testing.assert_array_equal(view[order], source._pixels[order])
    # Fewer than 4 rows of 20 kB lie between two: read along with them.
    assert len(source.asked) < 10
    source.asked.clear()
    view[[3, 5, 399, 5]]
    assert source.asked == [slice(3, 6), slice(399, 400)]


def test_only_what_is_asked_for_is_fetched(
    tmp_path: Path, http_server: Callable[[Path], HttpServer]
) -> None:
    """Of a sharded array over HTTP: the index and one range a shard, whatever the order."""
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(64, 8, 8), chunks=(1, 8, 8), shards=(16, 8, 8), dtype="u2"
    )
    pixels = np.random.default_rng(0).integers(0, 9999, (64, 8, 8)).astype("u2")
    array[...] = pixels
    server = http_server(tmp_path)
    view = ArrayView(zarr.open_array(server.url("a.zarr"), mode="r"), shuffle=1)
    assert view._pieces[0].rows.step == 1
    server.requests.clear()
    np.testing.assert_array_equal(view[:], pixels[view.order])
    asked = [r for r in server.requests if "/c/" in r.path]
    assert len(asked) == 8  # 64 rows of four shards: of each its index, and one range
    server.requests.clear()
    rows = np.flatnonzero(view.order // 16 == 2)
    np.testing.assert_array_equal(view[rows, 3], pixels[view.order[rows], 3])
    asked = [r for r in server.requests if "/c/" in r.path]
    assert {r.path for r in asked} == {"a.zarr/c/2/0/0"}
    assert len(asked) == 2


def test_a_view_of_a_huge_array_takes_what_is_asked_for() -> None:
    """A petabyte that was never written: making the view, its window and its batches is free."""
    array = zarr.create_array(
        {}, shape=(10**9, 1024, 1024), chunks=(1, 1024, 1024), dtype="u1", fill_value=7
    )
    array[5] = 1
    tracemalloc.start()
    try:
        view = ArrayView(array, 3, -10)
        assert len(view) == 10**9 - 13
        assert view[2, :2, 0].tolist() == [1, 1]
        assert view[[10**8, 2, -1], 0, 0].tolist() == [7, 1, 7]
        assert view[:: 10**8, 5, ::512].shape == (10, 2)
        assert next(view.batches())[1:4, 0, 0].tolist() == [7, 1, 7]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200 * 2**20


def test_points_take_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the product of all their rows, lines and columns: that would be 64 MB here."""
    monkeypatch.setattr("patchloom.arrays.array_view.TOGETHER", 2**20)
    array = zarr.create_array({}, shape=(400, 512, 512), chunks=(1, 512, 512), dtype="u1")
    array[100:110] = (np.arange(10 * 512 * 512) % 251).reshape(10, 512, 512)
    rng = np.random.default_rng(0)
    where = tuple(rng.integers(0, n, 600) for n in (400, 512, 512))
    expected = array.vindex[where]
    view = ArrayView(array)
    tracemalloc.start()
    try:
        found = view[where]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, expected)
    assert found.any()
    assert peak < 16 * 2**20


def test_a_view_holds_no_file_and_travels() -> None:
    view = ArrayView(np.arange(12).reshape(6, 2), 1, shuffle=2)
    again = pickle.loads(pickle.dumps(view))
    np.testing.assert_array_equal(again, view)
    assert repr(again) == "<ArrayView 5 x 2 int64>"


def test_a_view_is_an_array_to_numpy() -> None:
    view = ArrayView(PIXELS, 2, 5)
    np.testing.assert_array_equal(np.asarray(view, np.float32), PIXELS[2:5].astype(np.float32))
    assert np.asarray(view, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="copy=False"):
        np.array(view, copy=False)


def test_a_growing_zarr_array_keeps_its_window(tmp_path: Path) -> None:
    """What is appended is not in the view; what was there stays readable."""
    array = _zarr(tmp_path / "a.zarr", chunks=(4, 3, 7))
    view = ArrayView(array)
    zarr.open_array(tmp_path / "a.zarr", mode="a").append(PIXELS)
    np.testing.assert_array_equal(view[:], PIXELS)
    zarr.open_array(tmp_path / "a.zarr", mode="a").resize((5, 3, 7))
    with pytest.raises(PatchloomError, match="make the view anew"):
        view[:]


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: ArrayView("a.zarr"), NotAnArrayError, "open a path first"),
        (lambda: ArrayView([1, 2]), NotAnArrayError, "make an array of a list"),
        (lambda: ArrayView(np.array(3)), NotAnArrayError, "has rows"),
        (lambda: ArrayView(PIXELS, shuffle=True), ConfigError, "a seed"),
        (lambda: ArrayView(PIXELS).shuffle("a"), ConfigError, "whole number"),  # type: ignore[arg-type]
        (lambda: ArrayView(PIXELS, 1, rows=[2]), ConfigError, "window or rows"),
        (lambda: ArrayView(PIXELS, rows=[0.5]), ConfigError, "whole numbers"),
        (lambda: ArrayView(PIXELS, rows=[23]), IndexError, "extent 23"),
        (lambda: ArrayView.concatenate([PIXELS], [1, 2]), ConfigError, "one class a source"),
        (lambda: ArrayView.concatenate([PIXELS], maxlen=-1), ConfigError, "number of rows"),
        (lambda: next(ArrayView(PIXELS).batches(0)), ConfigError, "at least one row"),
    ],
)
def test_what_is_no_view_says_why(call: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call()


def test_a_store_is_viewed_by_its_written_rows(tmp_path: Path) -> None:
    """Patches, labels with them, and those of one split; rows as the manifest lists them."""
    pixels = np.random.default_rng(0).integers(0, 255, (96, 64)).astype("uint8")
    images = patchloom.open_images(
        pixels, labels=pixels // 16, weights=pixels / 7, targets={"b": pixels + 1}
    )
    plan = patchloom.plan(
        images,
        {"name": "sequential", "patch_size": [16, 16]},
        split={"by": "blocks", "block_size": 16, "guard": 0},
    )
    patchloom.materialize(plan, tmp_path / "s.zarr", progress=False)
    store = patchloom.open_patches(tmp_path / "s.zarr")
    view, stored = store.view(), np.asarray(store.images[:])
    np.testing.assert_array_equal(view, stored)
    seed = 3
    mixed, labels = view.shuffle(seed), store.view("labels").shuffle(seed)
    np.testing.assert_array_equal(mixed[:] // 16, labels)
    for name in ("weights", "targets_b"):
        np.testing.assert_array_equal(store.view(name), store.read(range(len(store)), name))
    names = store.manifest["split"].to_numpy(zero_copy_only=False)
    for name in set(names.tolist()):
        np.testing.assert_array_equal(store.view(split=name), stored[names == name])
    program = (
        "import sys, patchloom; patchloom.open_patches(sys.argv[1]).view().shuffle(1)[:3];"
        "print({'dask', 'distributed', 'patchloom.planning', 'patchloom.run'} & {*sys.modules})"
    )
    run = [sys.executable, "-c", program, str(tmp_path / "s.zarr")]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "set()\n"
    with pytest.raises(ConfigError, match="a split is one of"):
        store.view(split="nothing")
    with pytest.raises(ConfigError, match="has the arrays"):
        store.view("targets")


def test_an_index_is_refused_before_anything_is_read() -> None:
    """What cannot be answered costs no request."""
    source = Plain(PIXELS)
    view = ArrayView(source)
    for index in (([1, 2], [0, 1, 2]), (0, 0, 0, 0), 23, [5, -24], np.ones(22, bool), 1.5):
        with pytest.raises(IndexError):
            view[index]
    assert not source.asked
    assert view[5:5].shape == (0, 3, 7)
    assert not source.asked


def test_what_is_needed_is_no_more_than_what_is_asked() -> None:
    """Ascending, each position once, on the axes behind the rows."""
    asked = Asked.of((slice(None), [2, 0, 2], -1), SHAPE)
    assert [list(need) for need in asked.needed[1:]] == [[0, 2], [6]]
