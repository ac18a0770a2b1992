"""NumPy's files: each chunk is one range of bytes, and what is no such file is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import patchloom
from patchloom.errors import ChunkError, NotAnArrayError, SourceError, SourceMissingError
from patchloom.sources import npy

DTYPES = ["bool", "u1", "<u2", ">u2", "<i2", "<f4", ">f8", "<i8", "<f2"]


def saved(path: Path, array: np.ndarray[Any, Any]) -> str:
    np.save(path, array)
    return str(path)


@given(st.data())
def test_every_box_is_the_slice_of_the_array(data: st.DataObject) -> None:
    """Any dtype, byte order, memory order and shape."""
    import tempfile

    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    dtype = data.draw(st.sampled_from(DTYPES))
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    if data.draw(st.booleans()):
        array = np.asfortranarray(array)
    box = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    axes = "tzyx"[-len(shape) :]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(npy, "_TARGET", data.draw(st.sampled_from([1, 16, 64, 2**20])))
        url = saved(Path(folder) / "a.npy", array)
        [image] = patchloom.open_images(url, axes=axes)
        assert image.dtype == array.dtype.newbyteorder("=")
        found = image.read([a for a, _ in box], [b for _, b in box])
        np.testing.assert_array_equal(found, array[tuple(slice(a, b) for a, b in box)])


def test_runs_of_rows_are_read_once_and_as_one_range(tmp_path: Path) -> None:
    """Rows that lie side by side are one request, of just their bytes."""
    array = np.arange(4096 * 2048, dtype=np.uint16).reshape(4096, 2048)
    [image] = patchloom.open_images(saved(tmp_path / "a.npy", array))
    assert image.grid.chunks == (256, 2048)
    reader = image.source.reader()
    found = reader.read(np.array([[3, 0], [4, 0]]))
    np.testing.assert_array_equal(np.concatenate(found), array[768:1280])
    assert (reader.reads.chunks, reader.reads.requests) == (2, 1)
    assert reader.reads.nbytes == 2 * 2**20


def test_a_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    """The name need not say it."""
    (tmp_path / "pixels").write_bytes(Path(saved(tmp_path / "a.npy", np.ones((3, 4)))).read_bytes())
    [image] = patchloom.open_images(str(tmp_path / "pixels"))
    assert image.shape == (3, 4)


def test_a_role_from_a_file_takes_the_axes_of_its_image(tmp_path: Path) -> None:
    """Labels of an image with channels lie on its plane."""
    pixels = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8)
    labels = saved(tmp_path / "labels.npy", np.arange(64, dtype=np.uint16).reshape(8, 8))
    [image] = patchloom.open_images(
        saved(tmp_path / "image.npy", pixels), axes="CYX", labels=labels
    )
    assert image.labels is not None
    assert image.labels.axes == "yx"
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [4, 4]})
    patchloom.materialize(plan, str(tmp_path / "out.zarr"), progress=False)
    store = patchloom.open_patches(str(tmp_path / "out.zarr"))
    np.testing.assert_array_equal(store[3], pixels[:, 4:, 4:])


def test_a_saved_plan_opens_the_file_again(tmp_path: Path) -> None:
    """The document of an image is enough to read it."""
    array = np.arange(20.0).reshape(4, 5)
    [image] = patchloom.open_images(saved(tmp_path / "a.npy", array))
    again = patchloom.Image.from_document(image.to_document())
    np.testing.assert_array_equal(again.read((0, 0), (4, 5)), array)
    np.testing.assert_array_equal(np.asarray(again.data), array)


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "NumPy's mark"),
        (b"\x93NUMPY\x01\x00", "NumPy's mark"),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr': __import__('os')}", "cannot be read"),
        (b"\x93NUMPY\x01\x00\x05\x00" + b"[" * 5, "cannot be read"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"(" * 9000, "cannot be read"),
        (pickled(), "dtype object"),
    ],
)
def test_what_is_no_array_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    """Nothing of the content is run."""
    (tmp_path / "bad.npy").write_bytes(content)
    with pytest.raises(NotAnArrayError, match=what):
        patchloom.open_images(str(tmp_path / "bad.npy"))


def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    """When it is opened, and when it is cut off later."""
    path = Path(saved(tmp_path / "a.npy", np.ones((64, 64))))
    [image] = patchloom.open_images(str(path))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(NotAnArrayError, match="holds all of its array"):
        patchloom.open_images(str(path))
    with pytest.raises(ChunkError, match="ends before"):
        image.read((0, 0), (64, 64))


def test_a_file_has_no_levels(tmp_path: Path) -> None:
    """And one that is missing is told apart from one that is broken."""
    path = saved(tmp_path / "a.npy", np.ones((4, 4)))
    with pytest.raises(SourceError, match="no levels, got level=1"):
        patchloom.open_images(path, level=1)
    with pytest.raises(SourceMissingError, match="no file was found"):
        patchloom.open_images(str(tmp_path / "none.npy"))
