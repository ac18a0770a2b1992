"""Files of microscopes (CZI, ND2, LIF), read by bioio and its plugins, plane by plane.

bioio says what a file holds as a Dask array; a chunk is a block of that. Its plugins open files by
name, so they lie on a disk, and are not made for several threads: one decodes at a time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import AxesError, ChunkError, NotAnArrayError, SourceError
from patchloom.image import ChunkReader, Image, Ints, Reads
from patchloom.location import Location
from patchloom.sources.arrays import check_numeric
from patchloom.sources.files import FileSource, Wanted, package
from patchloom.sources.handles import image_of

__all__ = ["open_file", "reader"]

_FILES = 8
"""Opened files that a process keeps."""
_LOCK = threading.RLock()
_KNOWN: OrderedDict[tuple[str, str, int, int], Any] = OrderedDict()


def open_file(location: Location, wanted: Wanted) -> Image:
    """The image in a file, one scene at one level; no pixel is read.

    Raises
    ------
    NotAnArrayError
        If no plugin reads the file, or it holds several scenes and none is named.
    AxesError
        If pixels have colours and channels.
    SourceError
        If the file is not on a disk, or lacks the level or the scene.
    """
    package("bioio", "bioio", location)
    shown = location.shown
    with _LOCK:
        try:
            opened = _opened(location)
            scenes = [str(name) for name in opened.scenes]
        except SourceError:
            raise
        except Exception as error:  # each plugin has errors of its own
            raise NotAnArrayError(
                f"a file of a microscope is read by bioio with its plugin, but {shown!r} is not: "
                f"{location.describe(error)}; install the plugin (bioio-czi, bioio-nd2, bioio-lif),"
                " or copy the file again"
            ) from error
        scene = _scene(scenes, wanted.inside, shown)
        opened.set_scene(scene)
        level = wanted.level_of(len(opened.resolution_levels), shown)
        try:
            opened.set_resolution_level(level)
            data, order = _regular(opened), str(opened.dims.order).lower()
            names = [str(name) for name in opened.channel_names or ()]
            sizes = opened.physical_pixel_sizes
        except Exception as error:  # each plugin has errors of its own
            raise NotAnArrayError(
                f"what a file tells of its image can be read, but that of {shown!r} cannot: "
                f"{location.describe(error)}; copy it again"
            ) from error
    kept = [k for k, (a, n) in enumerate(zip(order, data.shape, strict=True)) if n > 1 or a in "yx"]
    letters = "".join(order[k] for k in kept)
    if "c" in letters and "s" in letters and wanted.axes is None:
        raise AxesError(
            f"an image has one channel axis, but {shown!r} has colours and channels: {order} of "
            f"{data.shape}; name its axes {letters.upper()} with one of both as another: axes=..."
        )
    axes = wanted.axes_for(letters.replace("s", "c"), len(kept), shown)
    layout = {
        "scene": scene,
        "level": level,
        "shape": list(data.shape),
        "kept": kept,
        "dtype": data.dtype.str,
    }
    image = image_of(
        name=wanted.name,
        uri=shown if wanted.inside is None else f"{shown}::{wanted.inside}",
        axes=axes,
        shape=[data.shape[k] for k in kept],
        dtype=check_numeric(data.dtype, repr(shown)),
        chunks=[data.chunks[k][0] for k in kept],
        source=FileSource(location, "bioio", layout),
        level=level,
        channels=tuple(names) if "c" in letters else (),
    )
    spacing = {a: getattr(sizes, a.upper(), None) for a in axes.spatial}
    if level or not all(v and np.isfinite(v) and v > 0 for v in spacing.values()):
        return image
    found = {a: float(v) for a, v in spacing.items() if v}
    return replace(image, spacing=found, unit=dict.fromkeys(found, "micrometer"))


def reader(source: FileSource) -> ChunkReader:
    """Reads blocks of bioio's Dask array."""
    return _BlockReader(source)


def _opened(location: Location) -> Any:
    """Bioio's object."""
    import bioio

    if not location.is_local:
        raise SourceError(
            f"bioio opens files on a disk, got {location.shown!r}; copy it there, or convert it to "
            "OME-Zarr with bioformats2raw"
        )
    return bioio.BioImage(location.open()[1])


def _regular(opened: Any) -> Any:
    """Its Dask array, in blocks of one size."""
    data = opened.dask_data
    return data.rechunk(tuple(sizes[0] for sizes in data.chunks))


def _scene(scenes: Sequence[str], inside: str | None, shown: str) -> int:
    """Which of the scenes of a file is opened."""
    chosen = [k for k, one in enumerate(scenes) if inside in (None, str(k), one)]
    if len(chosen) == 1:
        return chosen[0]
    if inside is None:
        raise NotAnArrayError(
            f"an image is one array, but {shown!r} holds the scenes {scenes[:20]}; name one by its "
            f"number: {shown}::0"
        )
    raise SourceError(
        f"a scene is named by its number or its name, got {inside!r} for {shown!r}, which holds "
        f"{scenes[:20]}"
    )


class _BlockReader:
    def __init__(self, source: FileSource) -> None:
        self.reads = Reads(codecs="file")
        self._source = source
        self._fetching = source.fetching(self.reads)

    def read(self, chunks: Ints) -> list[npt.NDArray[Any]]:
        """Read chunks: int64[n, ndim] indices -> arrays in stored axis order."""
        found = []
        for row in np.asarray(chunks).tolist():
            with _LOCK:
                found.append(self._one(row))
        return found

    def _one(self, row: Sequence[int]) -> npt.NDArray[Any]:
        layout, location = self._source.layout, self._source.location
        index = [0] * len(layout["shape"])
        for axis, k in zip(layout["kept"], row, strict=True):
            index[axis] = k
        state = self._fetching.state("")
        try:
            data = self._data(state)
            pixels = np.asarray(data.blocks[tuple(index)].compute(scheduler="synchronous"))
            pixels = pixels.reshape([pixels.shape[k] for k in layout["kept"]])
        except Exception as error:  # each plugin has errors of its own
            raise ChunkError(
                f"every chunk that a patch needs must be readable, but block {tuple(row)} of "
                f"{location.shown!r} is not: {location.describe(error)}; copy the file again"
            ) from error
        self.reads.chunks += 1
        self.reads.nbytes += pixels.nbytes
        return pixels

    def _data(self, state: str) -> Any:
        """The Dask array of the file, opened once a process."""
        layout, location = self._source.layout, self._source.location
        key = (location.shown, state, layout["scene"], layout["level"])
        if key not in _KNOWN:
            opened = _opened(location)
            opened.set_scene(layout["scene"])
            opened.set_resolution_level(layout["level"])
            data = _regular(opened)
            if (list(data.shape), data.dtype.str) != (list(layout["shape"]), layout["dtype"]):
                raise self._fetching.changed("", f"is now of shape {data.shape} and {data.dtype}")
            _KNOWN[key] = data
        _KNOWN.move_to_end(key)
        while len(_KNOWN) > _FILES:
            _KNOWN.popitem(last=False)
        return _KNOWN[key]
