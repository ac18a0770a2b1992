"""TIFF and its kin: every box is what tifffile reads, and what is broken is refused."""

from __future__ import annotations

import json
import math
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

import patchloom
from patchloom.errors import (
    AxesError,
    ChunkError,
    NotAnArrayError,
    SourceChangedError,
    SourceError,
)
from patchloom.location import Location
from patchloom.sources.files import Wanted, open_file
from tests import truth
from tests.servers.gcs import GcsServer
from tests.servers.http import HttpServer
from tests.servers.s3 import S3Server
from tests.truth import ArrayTruth

Array = np.ndarray[Any, Any]
TIFFS = truth.all_truths(containers={"tiff"})
PATCHING = {"name": "sequential", "patch_size": [96, 96]}


def opened(path: Path | str, **options: Any) -> patchloom.Image:
    """The one image at a path."""
    [image] = patchloom.open_images(path, **options)
    return image


def whole(image: patchloom.Image) -> Array:
    """All pixels of an image."""
    return image.read([0] * image.ndim, image.shape)


def inside(path: Path, name: str | None, **more: Any) -> patchloom.Image:
    """One of several images in a file."""
    return open_file("tiff", Location.of(path), Wanted("image", inside=name, **more))


def pixels(shape: tuple[int, ...], dtype: str) -> Array:
    """Values that are all over the range of a type, each other than its neighbours."""
    rng = np.random.default_rng(math.prod(shape))
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype[-2] == "f":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=np.dtype(dtype), endpoint=True)


LOSSLESS = ["zlib", "lzw", "zstd", "packbits", "lzma"]
KINDS = ["plain", "shaped", "ome", "imagej"]


@st.composite
def written(draw: st.DrawFn, folder: Path) -> tuple[Path, Array]:
    """A file of any layout that tifffile writes, and the array in it."""
    dtype = draw(st.sampled_from(["u1", "u2", "i2", "u4", "i4", "i1", "f2", "f4", "f8", "bool"]))
    kind = draw(st.sampled_from(KINDS))
    if kind == "imagej" and dtype not in ("u1", "u2", "f4"):
        dtype = "u2"
    if kind == "ome" and dtype == "f2":
        dtype = "f4"
    height, width = draw(st.integers(1, 70)), draw(st.integers(2, 70))
    leading = tuple(draw(st.lists(st.integers(2, 3), max_size=2)))
    options: dict[str, Any] = {
        "byteorder": ">" if kind == "imagej" else draw(st.sampled_from("<>")),
        "photometric": "minisblack",
    }
    if kind != "imagej":
        options["bigtiff"] = draw(st.booleans())
    samples = 1 if dtype == "bool" or kind == "imagej" else draw(st.sampled_from([1, 1, 3, 4]))
    planar = draw(st.sampled_from(["contig", "separate"])) if samples > 1 else None
    shape: tuple[int, ...] = (*leading, height, width)
    if samples > 1:
        options["planarconfig"] = planar
        options["photometric"] = "rgb"
        shape = (*shape, samples) if planar == "contig" else (*leading, samples, height, width)
    if dtype != "bool" and kind != "imagej":
        compression = draw(st.sampled_from([None, *LOSSLESS]))
        if compression == "packbits" and dtype[-1] != "1":
            compression = None
        options["compression"] = compression
        if compression in ("zlib", "lzw", "zstd") and dtype != "f2":
            options["predictor"] = draw(st.booleans())
    layout = draw(st.sampled_from(["tiles", "strips", "one"]))
    if layout == "tiles" and kind != "imagej":
        options["tile"] = tuple(16 * draw(st.integers(1, 3)) for _ in range(2))
    elif layout == "strips":
        options["rowsperstrip"] = draw(st.integers(1, height))
    letters = "TZ"[2 - len(leading) :] if kind == "imagej" else "TC"[2 - len(leading) :]
    axes = letters + ("SYX" if planar == "separate" else "YXS" if samples > 1 else "YX")
    if kind == "plain":
        options["metadata"] = None
    elif kind in ("ome", "imagej"):
        options[kind] = True
        options["metadata"] = {"axes": axes}
    array = pixels(shape, dtype)
    path = folder / ("a.ome.tif" if kind == "ome" else "a.tif")
    tifffile.imwrite(path, array, **options)
    return path, array


@given(st.data())
def test_every_box_is_what_tifffile_reads(data: st.DataObject) -> None:
    """Any type, byte order, tiling, compression, predictor, planes of samples and metadata."""
    with tempfile.TemporaryDirectory() as folder:
        path, array = data.draw(written(Path(folder)))
        oracle = tifffile.imread(path).squeeze()
        np.testing.assert_array_equal(oracle.ravel(), array.ravel())
        try:
            image = opened(path)
        except AxesError:  # more dimensions than have a meaning by themselves
            image = opened(path, axes="stzcyx"[-max(2, oracle.ndim) :])
        assert image.dtype == oracle.dtype.newbyteorder("=")
        np.testing.assert_array_equal(whole(image).squeeze(), oracle)
        box = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in image.shape]
        found = image.read([a for a, _ in box], [b for _, b in box])
        expected = oracle.reshape(image.shape)[tuple(slice(*pair) for pair in box)]
        np.testing.assert_array_equal(found, expected)
        again = patchloom.Image.from_document(json.loads(json.dumps(image.to_document())))
        np.testing.assert_array_equal(whole(again).squeeze(), oracle)
