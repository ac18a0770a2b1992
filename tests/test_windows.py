"""Time windows: patches of t, t + k, ... as NumPy stacks them, each frame decoded about once."""

from __future__ import annotations

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

PIXELS = np.random.default_rng(0).integers(0, 2**16, (7, 2, 24, 20), dtype="uint16")
GRID = {"name": "sequential", "patch_size": [8, 8]}


def write(path: Path, pixels: npt.NDArray[Any], **options: Any) -> str:
    """An array in a Zarr store."""
    array = zarr.create_array(path, shape=pixels.shape, dtype=pixels.dtype, **options)
    array[...] = pixels
    return str(path)


def stacked(pixels: npt.NDArray[Any], window: int, step: int) -> npt.NDArray[Any]:
    """(t, c, y, x) as windows: for each first frame, channels of it and of those after it."""
    n = len(pixels) - (window - 1) * step
    return np.stack(
        [np.concatenate([pixels[t + k * step] for k in range(window)]) for t in range(n)]
    )


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_windows_are_those_of_numpy(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Stored or in memory, with channels or without, whatever the order of the axes."""
    folder = tmp_path_factory.mktemp("windows")
    window, step = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    has_channel = data.draw(st.booleans())
    pixels = PIXELS if has_channel else PIXELS[:, 0]
    chunks = tuple(data.draw(st.integers(-(-n // 3), n)) for n in pixels.shape)
    expected = stacked(PIXELS if has_channel else PIXELS[:, :1], window, step)
    names = "tcyx" if has_channel else "tyx"
    order = data.draw(st.permutations(names))
    moved = pixels.transpose([names.index(a) for a in order])
    chunks = tuple(chunks[names.index(a)] for a in order)
    time = {"window": window, "step": step}
    stored = write(folder / "a.zarr", moved, chunks=chunks)
    for item in (stored, moved, da.from_array(moved, chunks=chunks)):
        [image] = patchloom.open_images(item, axes="".join(order), time=time)
        shown = image.data.transpose("t", "c", "y", "x")
        np.testing.assert_array_equal(shown, expected)
        read = image.read([0] * image.ndim, image.shape)
        np.testing.assert_array_equal(read, image.data)
        plan = patchloom.plan(image, GRID)
        report = patchloom.materialize(plan, "memory://windows.zarr", progress=False, resume=True)
        store = patchloom.open_patches("memory://windows.zarr")
        for row in store.manifest.to_pylist():
            y, x = row["start_y"], row["start_x"]
            patch = expected[row["sample"], :, y : y + 8, x : x + 8]
            np.testing.assert_array_equal(store.read([row["row"]])[0], patch)
        assert report.chunk_reads <= plan.chunk_reads
        _forget("windows.zarr")


def _forget(name: str) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    for path in (f"/{name}", f"/{name}.report"):
        if fs.exists(path):
            fs.rm(path, recursive=True)


def test_frames_are_decoded_once(tmp_path: Path) -> None:
    """Small frames: a chunk of windows has all of them, so that what they share is read once."""
    url = write(tmp_path / "a.zarr", PIXELS, chunks=(1, 1, 8, 8))
    [image] = patchloom.open_images(url, axes="TCYX", time={"window": 3, "step": 2})
    plan = patchloom.plan(image, GRID)
    report = patchloom.materialize(plan, str(tmp_path / "out.zarr"), progress=False)
    assert plan.chunks_needed == report.chunks_needed == report.chunk_reads == 7 * 2 * 3 * 2
    assert report.read_amplification == 1.0
    assert report.peak_memory <= report.projected_memory
    store = patchloom.open_patches(str(tmp_path / "out.zarr"))
    assert store.attributes["images"][0]["windows"] == {"window": 3, "step": 2}
    assert patchloom.verify(str(tmp_path / "out.zarr"), plan).ok
    alone = patchloom.verify(str(tmp_path / "out.zarr"))
    assert alone.ok
    assert [*alone.not_compared] == ["it shows time windows, which a plan knows"]


def test_frames_of_a_selection_are_counted_as_stored(tmp_path: Path) -> None:
    """What a plan counts and a run decodes are stored chunks, however they are put together."""
    url = write(tmp_path / "a.zarr", PIXELS, chunks=(2, 1, 8, 8))
    [image] = patchloom.open_images(
        url, axes="TCYX", isel={"t": slice(1, 7), "x": slice(3, 19)}, time={"window": 2}
    )
    plan = patchloom.plan(image, GRID)
    report = patchloom.materialize(plan, "memory://selected-windows.zarr", progress=False)
    # Frames 1 to 6 in 4 chunks, 2 channels, rows in 3 chunks, columns 3 to 18 in 3.
    assert plan.chunks_needed == plan.chunk_reads == report.chunk_reads == 4 * 2 * 3 * 3


def test_roles_show_the_first_frame_of_a_window(tmp_path: Path) -> None:
    """Labels and masks that have time go with it; channels tell their frames; plans are saved."""
    labels = np.random.default_rng(1).integers(0, 9, (7, 24, 20), dtype="uint8")
    [image] = patchloom.open_images(
        write(tmp_path / "a.zarr", PIXELS, chunks=(2, 2, 8, 8)),
        axes="TCYX",
        labels=labels,
        mask=write(tmp_path / "mask.zarr", labels > 4, chunks=(3, 9, 9)),
        isel={"t": slice(1, None)},
        time={"window": 2, "step": 1},
    )
    plan = patchloom.plan(image, GRID, min_coverage=0.4)
    plan.save(str(tmp_path / "plan"))
    again = Plan.load(str(tmp_path / "plan"), images=[image])
    assert again.fingerprint == plan.fingerprint
    patchloom.materialize(again, "memory://roles-of-windows.zarr", progress=False)
    store = patchloom.open_patches("memory://roles-of-windows.zarr")
    whole = stacked(PIXELS[1:], 2, 1)
    assert store.manifest.num_rows > 0
    for row in store.manifest.to_pylist():
        where = (slice(row["start_y"], row["start_y"] + 8), slice(row["start_x"], row["start_x"] + 8))  # noqa: E501  # fmt: skip
        frame = labels[1:][row["sample"]][where]
        np.testing.assert_array_equal(store.read([row["row"]], "labels")[0, 0], frame)
        np.testing.assert_array_equal(store[row["row"]], whole[(row["sample"], slice(None), *where)])  # noqa: E501  # fmt: skip
        assert row["coverage"] == (frame > 4).mean()


def test_names_of_channels_tell_the_frame() -> None:
    """With names if the image has some, and without."""
    [image] = patchloom.open_images(PIXELS[:, 0], axes="TYX", time={"window": 2, "step": 3})
    assert image.channels == ("frame@t", "frame@t+3")
    [image] = patchloom.open_images(PIXELS, axes="TCYX", time={"window": 2})
    assert image.channels == ()


@pytest.mark.parametrize(
    ("time", "axes", "error", "says"),
    [
        ({"window": 8}, "TCYX", AxesError, "8 frames 1 apart for 7"),
        ({"window": 0}, "TCYX", ConfigError, "greater than or equal to 1"),
        ({"windows": 2}, "TCYX", ConfigError, "did you mean 'window'"),
        ({"window": 2}, "ZCYX", AxesError, "with an axis t"),
        (3, "TCYX", ConfigError, "a mapping"),
    ],
)
def test_wrong_windows_are_refused(time: Any, axes: str, error: type, says: str) -> None:
    """With the law and the way out."""
    with pytest.raises(error, match=says):
        patchloom.open_images(PIXELS, axes=axes, time=time)
