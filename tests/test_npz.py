"""NumPy's archives: one array of several, by its name, equal to what NumPy loads."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import patchloom
from patchloom.errors import ChunkError, NotAnArrayError
from patchloom.image import Image
from patchloom.location import Location
from patchloom.sources import npz
from patchloom.sources.files import Wanted

RAW = np.random.default_rng(0).integers(0, 9, (700, 900), np.uint16)
MASK = np.asfortranarray(RAW > 4)


def opened(path: Path, inside: str | None = None) -> Image:
    return npz.open_file(Location.of(path), Wanted("image", inside=inside))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_is_named_or_the_only_one(tmp_path: Path, save: Any) -> None:
    """Stored ones are read in runs of rows, deflated ones as one chunk; both bit for bit."""
    save(tmp_path / "two.npz", raw=RAW, mask=MASK)
    save(tmp_path / "one.npz", RAW.astype(">i2"))
    with pytest.raises(NotAnArrayError, match=r"holds \['mask', 'raw'\]"):
        patchloom.open_images(tmp_path / "two.npz")
    with pytest.raises(NotAnArrayError, match=r"asked for the array '\.\./raw'"):
        opened(tmp_path / "two.npz", "../raw")
    for inside, expected in (("raw", RAW), ("mask.npy", MASK)):
        image = opened(tmp_path / "two.npz", inside)
        assert (image.dtype, image.shape) == (expected.dtype, expected.shape)
        again = Image.from_document(image.to_document())
        np.testing.assert_array_equal(again.read((3, 4), (650, 800)), expected[3:650, 4:800])
    [image] = patchloom.open_images(tmp_path / "one.npz")
    np.testing.assert_array_equal(image.read((0, 0), RAW.shape), RAW)
    assert image.grid.n_chunks == (2 if save is np.savez else 1)


def test_damaged_and_other_archives_are_refused(tmp_path: Path) -> None:
    """Cut off, changed, encrypted, of objects, or compressed in another way."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, raw=RAW)
    image = opened(path)
    good = path.read_bytes()
    middle = len(good) // 2
    path.write_bytes(good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :])
    with pytest.raises(ChunkError, match="does not inflate to what it says"):
        image.read((0, 0), (1, 1))
    for content in (b"", b"PK\x03\x04", good[:-30], good[40:]):
        path.write_bytes(content)
        with pytest.raises(NotAnArrayError):
            opened(path)
    np.savez(path, raw=np.array([{}], object))
    with pytest.raises(NotAnArrayError, match="dtype object"):
        opened(path)
    np.save(tmp_path / "raw.npy", RAW)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.write(tmp_path / "raw.npy", "raw.npy")
    with pytest.raises(NotAnArrayError, match="stored or deflated"):
        opened(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("raw.npy", (tmp_path / "raw.npy").read_bytes()[:5000])
    with pytest.raises(NotAnArrayError, match="holds all of its arrays"):
        opened(path)
