"""Selection by axis and channel: the same pixels as a NumPy slice, and each chunk decoded once."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import AxesError, ConfigError
from patchloom.planning.plans import Plan
from patchloom.sources.picks import Pick, regular_parts
from patchloom.sources.selected import SelectedSource

PIXELS = np.random.default_rng(0).integers(0, 2**16, (4, 3, 10, 40, 36), dtype="uint16")
LABELS = np.random.default_rng(1).integers(0, 9, (10, 40, 36), dtype="int32")
MASK = np.random.default_rng(2).integers(0, 2, (10, 20, 18)).astype(bool)


def write(path: Path, pixels: npt.NDArray[Any], **options: Any) -> str:
    """An array in a Zarr store."""
    array = zarr.create_array(path, shape=pixels.shape, dtype=pixels.dtype, **options)
    array[...] = pixels
    return str(path)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """PIXELS in chunks that hold one time, two channels and four planes."""
    return write(tmp_path / "cells.zarr", PIXELS, chunks=(1, 2, 4, 16, 9))


def ome(path: Path, pixels: npt.NDArray[Any]) -> str:
    """The last four axes as an OME-Zarr image with spacing, origin and named channels."""
    group: Any = zarr.create_group(path)
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    move = {"type": "translation", "translation": [0.0, 10.0, 0.0, 0.0]}
    levels = []
    for k in range(2):
        data = pixels[..., :: 2**k, :: 2**k]
        array = group.create_array(str(k), shape=data.shape, chunks=(1, 3, 8, 8), dtype="uint16")
        array[...] = data
        scale = {"type": "scale", "scale": [1.0, 2.0, 0.5 * 2**k, 0.5 * 2**k]}
        levels.append({"path": str(k), "coordinateTransformations": [scale, move]})
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": levels}],
        "omero": {"channels": [{"label": n} for n in ("DAPI", "GFP", "RFP")]},
    }
    return str(path)


def picks(extent: int) -> st.SearchStrategy[Any]:
    """Whatever can stand for an axis: an index, a slice, a list."""
    ends = st.none() | st.integers(-extent - 2, extent + 2)
    slices = st.builds(slice, ends, ends, st.none() | st.integers(1, 5))
    lists = st.lists(st.integers(-extent, extent - 1), min_size=1, max_size=4)
    some = slices.filter(lambda s: bool(range(extent)[s]))
    return some | st.integers(-extent, extent - 1) | lists


def numpy_slice(pixels: npt.NDArray[Any], names: str, isel: dict[str, Any]) -> npt.NDArray[Any]:
    """What NumPy takes, one axis at a time from the last."""
    for axis in reversed(range(pixels.ndim)):
        if names[axis] in isel:
            pixels = pixels[(slice(None),) * axis + (isel[names[axis]],)]
    return pixels


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_selection_is_the_numpy_slice(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Any index, slice or list along any axes, stored or in memory, gives the slice's pixels."""
    names = "tczyx"
    chosen = data.draw(st.sets(st.sampled_from("tczyx"), min_size=1))
    isel = {a: data.draw(picks(PIXELS.shape[names.index(a)]), label=a) for a in sorted(chosen)}
    small = PIXELS[:, :, :6, :9, :11]
    isel = {a: data.draw(picks(small.shape[names.index(a)]), label=a) for a in isel}
    chunks = tuple(data.draw(st.integers(-(-n // 3), n)) for n in small.shape)
    path = tmp_path_factory.mktemp("selected") / "a.zarr"
    stored = write(path, small, chunks=chunks)
    expected = numpy_slice(small, names, isel)
    for item in (stored, small, da.from_array(small, chunks=chunks)):
        try:
            [image] = patchloom.open_images(item, axes=names, isel=isel)
        except (AxesError, ConfigError):
            unequal = [k for a in isel if a in "zyx" and isinstance(k := isel[a], list)]
            listed = [[i % small.shape[names.index(a)] for i in isel[a]] for a in isel
                      if isinstance(isel[a], list)]  # fmt: skip
            gone = {a for a in isel if isinstance(isel[a], int)}
            assert (
                unequal
                or "x" in gone
                or "y" in gone
                or any(len(set(some)) < len(some) for some in listed)
            )
            return
        assert image.shape == expected.shape
        np.testing.assert_array_equal(image.read([0] * image.ndim, image.shape), expected)
        np.testing.assert_array_equal(image.data, expected)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_patches_are_those_of_the_slice(data: st.DataObject, tmp_path_factory: Any) -> None:
    """A store of a selection holds the patches of the selected array, with roles cut alike."""
    folder = tmp_path_factory.mktemp("patches")
    ends = {a: data.draw(st.tuples(st.integers(0, 2), st.integers(26, 36))) for a in "yx"}
    isel: dict[str, Any] = {a: slice(*ends[a]) for a in "yx"}
    isel["z"] = data.draw(st.integers(0, 9) | st.sampled_from([slice(1, 9), slice(0, 10, 3)]))
    isel["t"] = data.draw(st.integers(0, 3) | st.lists(st.integers(0, 3), min_size=1, unique=True))
    channels = data.draw(st.lists(st.integers(0, 2), min_size=1, unique=True))
    url = write(folder / "a.zarr", PIXELS, chunks=(2, 2, 4, 16, 9))
    labels = write(folder / "labels.zarr", LABELS, chunks=(4, 8, 8))
    [image] = patchloom.open_images(
        url, axes="TCZYX", isel=isel, channels=channels, labels=labels, mask=MASK[0]
    )
    size = [8, 8] if isinstance(isel["z"], int) else [2, 8, 8]
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": size}, min_coverage=0.25)
    report = patchloom.materialize(plan, str(folder / "out.zarr"), progress=False)
    store = patchloom.open_patches(str(folder / "out.zarr"))
    pixels = numpy_slice(PIXELS[:, channels], "tczyx", isel)
    if isinstance(isel["t"], int):
        pixels = pixels[None]
    shown = numpy_slice(LABELS, "zyx", {a: isel[a] for a in "zyx"})
    mask = np.kron(MASK[0], np.ones((2, 2), bool))[isel["y"], isel["x"]]
    rows = store.manifest.to_pylist()
    assert len(rows) == store.images.shape[0] == plan.n_patches
    for row in rows:
        where = [slice(row[f"start_{a}"], row[f"start_{a}"] + n)
                 for a, n in zip("zyx"[-len(size) :], size, strict=True)]  # fmt: skip
        patch = pixels[(row["sample"], slice(None), *where)]
        np.testing.assert_array_equal(store.images[row["row"]], patch)
        assert store.labels is not None
        np.testing.assert_array_equal(np.asarray(store.labels[row["row"]])[0], shown[tuple(where)])
        assert row["coverage"] == mask[tuple(where[-2:])].mean()
    assert report.read_amplification in (0.0, 1.0)
    if len(rows):
        assert patchloom.verify(str(folder / "out.zarr"), plan).ok


def test_each_chunk_is_decoded_once_for_a_crop_that_begins_inside_one(url: str) -> None:
    """What a plan counts are stored chunks, and a run decodes each of them once."""
    isel = {"t": 2, "z": slice(3, 9), "y": slice(5, 37), "x": slice(1, 33)}
    [image] = patchloom.open_images(url, axes="TCZYX", isel=isel)
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [2, 8, 8]})
    report = patchloom.materialize(plan, "memory://crop.zarr", progress=False)
    # 2 of channels, planes 3 to 8 in 3 chunks, rows 5 to 36 in 3, columns 1 to 32 in 4.
    assert plan.chunks_needed == report.chunks_needed == report.chunk_reads == 2 * 3 * 3 * 4
    assert plan.chunk_reads == report.chunk_reads


def test_parts_keep_to_stored_chunks_where_they_can() -> None:
    """A part of a selection is one chunk's share of it, if these are equal and in order."""
    assert regular_parts(range(16, 64), 8) == (8, True)
    assert regular_parts(range(3, 64, 2), 4) == (1, False)
    assert regular_parts(range(1, 64, 2), 4) == (2, True)
    assert regular_parts(range(3, 7), 8) == (4, True)
    assert regular_parts((0, 2, 1), 1) == (1, True)
    assert regular_parts((0, 4, 1), 4) == (1, False)


def test_a_crop_on_the_grid_reads_what_is_stored(tmp_path: Path) -> None:
    """Chunks and shards stay what they were where a crop begins on them."""
    path = write(tmp_path / "a.zarr", PIXELS[0, 0], chunks=(2, 8, 6), shards=(4, 16, 12))
    [image] = patchloom.open_images(path, axes="ZYX", isel={"z": slice(4, 8), "y": slice(16, 40)})
    assert image.grid.chunks == (2, 8, 6)
    assert image.shards == (4, 16, 12)
    [image] = patchloom.open_images(path, axes="ZYX", isel={"z": slice(2, 8)})
    assert image.grid.chunks == (2, 8, 6)
    assert image.shards is None


def test_physical_units_select_pixels_whose_centres_lie_between(tmp_path: Path) -> None:
    """sel goes by spacing and origin; a number drops the axis; what is left knows where it is."""
    url = ome(tmp_path / "cells.ome.zarr", PIXELS[0])
    [image] = patchloom.open_images(url, sel={"z": (14.0, 22.5), "y": slice(2.0, None)})
    np.testing.assert_array_equal(image.read([0] * 4, image.shape), PIXELS[0, :, 2:7, 4:])
    assert image.origin == {"z": 14.0, "y": 2.0, "x": 0.0}
    [plane] = patchloom.open_images(url, sel={"z": 14.9}, isel={"x": slice(0, 30, 3)})
    np.testing.assert_array_equal(plane.read([0] * 3, plane.shape), PIXELS[0, :, 2, :, 0:30:3])
    assert plane.spacing == {"y": 0.5, "x": 1.5}
    with pytest.raises(ConfigError, match="at least one pixel"):
        patchloom.open_images(url, sel={"z": (40.0, 50.0)})
    with pytest.raises(ConfigError, match="centres of pixels lie from 10 to 28"):
        patchloom.open_images(url, sel={"z": 31.0})
    with pytest.raises(ConfigError, match="channels="):
        patchloom.open_images(url, sel={"c": "DAPI"})


def test_channels_by_name_and_number(tmp_path: Path) -> None:
    """In the order asked for, with their names, for the image and for each role by itself."""
    url = ome(tmp_path / "cells.ome.zarr", PIXELS[0])
    [image] = patchloom.open_images(url, channels=["RFP", 0])
    assert image.channels == ("RFP", "DAPI")
    np.testing.assert_array_equal(image.read([0] * 4, image.shape), PIXELS[0, [2, 0]])
    target = {"from": url, "channels": ["GFP"]}
    [image] = patchloom.open_images(url, channels="DAPI", target=target, mask={**target, "isel": {"z": 3}})  # noqa: E501  # fmt: skip
    assert image.target is not None
    assert image.mask is not None
    assert image.target.image.channels == ("GFP",)
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [5, 8, 8]})
    patchloom.materialize(plan, "memory://named.zarr", progress=False)
    store = patchloom.open_patches("memory://named.zarr")
    assert store.attributes["channels"] == ["DAPI"]
    assert store.targets is not None
    np.testing.assert_array_equal(store.images[0, 0], PIXELS[0, 0, :5, :8, :8])
    np.testing.assert_array_equal(store.targets[0, 0], PIXELS[0, 1, :5, :8, :8])
    with pytest.raises(ConfigError, match=r"names out of \['DAPI', 'GFP', 'RFP'\], got 'Cy5'"):
        patchloom.open_images(url, channels=["Cy5"])
    with pytest.raises(ConfigError, match="'from' at least"):
        patchloom.open_images(url, labels={"from": url, "level": 1})


def test_channels_of_one_chunk_come_in_the_order_asked_for(tmp_path: Path) -> None:
    """All of them, so that what is read is as large as what is stored, but in another order."""
    url = write(tmp_path / "a.zarr", PIXELS[0, :, 0], chunks=(3, 40, 36))
    for channels in ([2, 1, 0], [1, 0, 2], [0, 1, 2]):
        [image] = patchloom.open_images(url, axes="CYX", channels=channels)
        np.testing.assert_array_equal(image.data, PIXELS[0, channels, 0])
        read = image.read((0, 0, 0), image.shape)
        np.testing.assert_array_equal(read, PIXELS[0, channels, 0])


def test_selections_by_image_and_as_text(url: str) -> None:
    """Each image has its own crop, by id or in a list; a job file writes slices as text."""
    isel = {"a": {"y": "0:24", "t": 0}, "b": {"y": "8:40:2", "t": [1, 3]}}
    for form in (isel, [isel["a"], isel["b"]]):
        a, b = patchloom.open_images([url, url], ids=["a", "b"], axes="TCZYX", isel=form)
        np.testing.assert_array_equal(a.data, PIXELS[0, :, :, :24])
        np.testing.assert_array_equal(b.data, PIXELS[[1, 3]][:, :, :, 8:40:2])


def test_levels_and_thresholds_are_of_the_selection(tmp_path: Path) -> None:
    """Coarser levels show the same part; an automatic mask looks at what was taken."""
    url = ome(tmp_path / "cells.ome.zarr", PIXELS[0])
    isel = {"z": 4, "y": slice(8, 40), "x": slice(4, 36)}
    [image] = patchloom.open_images(url, isel=isel, channels=[1], mask={"auto": "otsu"})
    [level] = image.levels
    np.testing.assert_array_equal(level.image.data, PIXELS[0, [1], 4, 8:40:2, 4:36:2])
    assert [float(s) for s in level.alignment.scale] == [2, 2]
    assert [float(o) for o in level.alignment.offset] == [-0.5, -0.5]  # as its translation says
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [8, 8]}, min_coverage=0.01)
    assert plan.images[0].mask is not None
    made = plan.images[0].mask.image
    covered, pixels = made.read([0, 0], made.shape), PIXELS[0, 1, 4, 8:40, 4:36]
    assert pixels[covered].min() > pixels[~covered].max()


def test_plans_of_selections_are_saved_and_differ(url: str, tmp_path: Path) -> None:
    """Another plane is another plan; a saved one is read and cut as it was."""
    grid = {"name": "sequential", "patch_size": [8, 8]}
    plans = []
    for z in (3, 4):
        isel = {"z": z, "t": 0}
        [image] = patchloom.open_images(url, axes="TCZYX", isel=isel, mask={"nodata": 0})
        assert isinstance(image.source, SelectedSource)
        assert pickle.loads(pickle.dumps(image)).source.identity() == image.source.identity()
        plans.append(patchloom.plan(image, grid, min_coverage=0.5))
    assert plans[0].fingerprint != plans[1].fingerprint
    plans[1].save(str(tmp_path / "saved"))
    again = Plan.load(str(tmp_path / "saved"))
    assert again.fingerprint == plans[1].fingerprint
    patchloom.materialize(again, "memory://again.zarr", progress=False)
    store = patchloom.open_patches("memory://again.zarr")
    np.testing.assert_array_equal(store.images[0], PIXELS[0, :, 4, :8, :8])


def test_a_store_tells_what_was_selected(url: str, tmp_path: Path) -> None:
    """So that it is verified against its source without a plan, channels in their order."""
    [image] = patchloom.open_images(url, isel={"t": 1, "y": slice(3, 40)}, channels=[2, 0, 1])
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [5, 8, 8]})
    out = str(tmp_path / "out.zarr")
    patchloom.materialize(plan, out, progress=False)
    report = patchloom.verify(out)
    assert report.ok
    assert report.n_compared > 0
    [told] = patchloom.open_patches(out).attributes["images"]
    assert told["selection"]["picks"]["c"] == {"indices": [2, 0, 1]}
    assert told["selection"]["picks"]["t"] == {"range": [1, 2, 1], "drops": True}


def test_arrays_in_memory_come_back_with_a_saved_plan(tmp_path: Path) -> None:
    """A mask that is made of an array in memory, and selected, is made of it anew."""
    stack = PIXELS[0]
    arguments: dict[str, Any] = {
        "axes": "CZYX", "isel": {"z": 2}, "mask": {"labels": LABELS, "classes": [1, 2]}
    }  # fmt: skip
    [image] = patchloom.open_images(stack, **arguments)
    assert image.mask is not None
    np.testing.assert_array_equal(image.mask.image.data, np.isin(LABELS[2], [1, 2]))
    grid = {"name": "sequential", "patch_size": [8, 8]}
    plan = patchloom.plan(image, grid, min_coverage=0.1)
    plan.save(str(tmp_path / "saved"))
    again = Plan.load(str(tmp_path / "saved"), images=patchloom.open_images(stack, **arguments))
    report = patchloom.materialize(again, "memory://filled.zarr", progress=False)
    assert report.n_patches == plan.n_patches > 0


@pytest.mark.parametrize(
    ("isel", "error", "says"),
    [
        ({"q": 0}, AxesError, "name axes of the image"),
        ({"z": 10}, ConfigError, "from 0 to 9"),
        ({"z": slice(None, None, -1)}, ConfigError, "forward"),
        ({"z": slice(5, 5)}, ConfigError, "at least one"),
        ({"t": []}, ConfigError, "at least one"),
        ({"t": [0, 0]}, ConfigError, "each once"),
        ({"t": True}, ConfigError, "an index, a slice"),
        ({"t": 1.5}, ConfigError, "an index, a slice"),
        ({"t": "last"}, ConfigError, "in text '10:50'"),
        ({"z": [0, 1, 5]}, AxesError, "equal steps"),
        ({"x": 0}, AxesError, "needs the axis x"),
        (3, ConfigError, "a mapping from axes"),
    ],
)
def test_wrong_selections_are_refused(isel: Any, error: type, says: str, url: str) -> None:
    """Each with the law, what was got and the way out."""
    with pytest.raises(error, match=says):
        patchloom.open_images(url, axes="TCZYX", isel=isel)


def test_a_step_needs_roles_on_the_same_pixels(url: str) -> None:
    """A coarser mask cannot follow a step, and says so."""
    with pytest.raises(AxesError, match="a step along y takes mask"):
        patchloom.open_images(
            url, axes="TCZYX", isel={"y": slice(0, 40, 2)}, mask=MASK[0]
        )  # fmt: skip


def test_memory_of_a_selection_is_projected(url: str) -> None:
    """What a reader keeps between chunks counts in the plan's projection."""
    grid = {"name": "sequential", "patch_size": [2, 8, 8]}
    needs = []
    for start in (0, 3):
        [image] = patchloom.open_images(url, axes="TCZYX", isel={"y": slice(start, 38)})
        needs.append(patchloom.plan(image, grid).peak_memory())
    # At most all pixels are kept.
    assert needs[1] - needs[0] >= PIXELS.nbytes
    assert Pick(range(4)).is_whole(4)
