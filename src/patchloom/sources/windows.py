"""Time windows: several frames of an image as the channels of one sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.axes import Axes
from patchloom.configs import parsed_as
from patchloom.errors import AxesError
from patchloom.grid import ChunkGrid
from patchloom.image import CONTEXT, ChunkReader, Image, Ints, made_of
from patchloom.sources.derived import bare
from patchloom.sources.lazily import Sliceable
from patchloom.sources.picks import Pick
from patchloom.sources.selected import chunks_under, follow
from patchloom.windows import Windows

__all__ = ["WindowedSource", "windowed", "windows_document"]

_BLOCK = 16 * 2**20
"""Bytes of a chunk of windows, about, where frames are that small."""


@dataclass(frozen=True)
class WindowedSource:
    """Windows over the frames of an image, put together when they are read.

    A chunk has several windows where frames are small, so that of the frames that windows have in
    common few are decoded twice.
    """

    image: Image
    """Without roles."""
    windows: Windows

    @property
    def addressable(self) -> bool:
        """Whether a worker can read the image by itself."""
        return self.image.source.addressable

    def reader(self) -> ChunkReader:
        """A reader that counts the image's chunks."""
        return _WindowedReader(self)

    def without_pixels(self) -> WindowedSource:
        """A source that only a graph's blocks can serve."""
        return self.filled(self.image.source.without_pixels())

    def filled(self, source: Any) -> WindowedSource:
        """The same windows over the pixels of another source."""
        return replace(self, image=replace(self.image, source=source))

    def identity(self) -> dict[str, Any]:
        """Which windows of what."""
        return {
            **made_of(self.image.source),
            "windows": self.windows.model_dump(),
            "shape": list(self.image.shape),
        }

    def to_document(self) -> dict[str, Any]:
        """The image and its windows."""
        return {
            "kind": "windowed",
            "image": self.image.to_document(),
            "windows": self.windows.model_dump(),
        }

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], options: Mapping[str, Any]
    ) -> WindowedSource:
        """Inverse of `to_document`."""
        return cls(Image.from_document(document["image"], options), Windows(**document["windows"]))

    def lazy(self, image: Image) -> Any:
        """The windows as Dask, in their chunks."""
        import dask.array as da

        if self.addressable:
            return da.from_array(
                Sliceable(image), chunks=image.grid.chunks, inline_array=True, fancy=False
            )
        inner = self.image.source.lazy(self.image)
        return self.put_together(inner, da.concatenate).rechunk(image.grid.chunks)

    def put_together(self, frames: Any, concatenate: Any) -> Any:
        """Windows of some frames, all that fit in: NumPy or Dask in the image's axes."""
        names = self.image.axes.names
        at, channel = names.index("t"), names.find("c")
        if channel < 0:
            channel = at + 1
            frames = frames[(slice(None),) * channel + (None,)]
            at = names.index("t")
        n = frames.shape[at] - self.windows.reach
        starts = range(0, self.windows.reach + 1, self.windows.step)
        shifted = [frames[(slice(None),) * at + (slice(k, k + n),)] for k in starts]
        return concatenate(shifted, axis=channel)

    def frames(self, start: list[int], stop: list[int]) -> tuple[list[int], list[int]]:
        """The box of the image under a box of windows, which has all channels."""
        axes = self.image.axes
        if axes.has_channel:
            k = axes.names.index("c")
            start[k], stop[k] = 0, self.image.shape[k]
        else:
            k = axes.names.index("t") + 1
            del start[k], stop[k]
        stop[axes.names.index("t")] += self.windows.reach
        return start, stop

    def decodes(self, image: Image, blocks: Ints) -> int:
        """Chunks of the image under some distinct blocks of windows, each once."""
        axes, layout, inner = image.axes, image.layout, self.image
        group, flat = np.divmod(np.asarray(blocks, np.int64), layout.space.n_chunks)
        at = dict(zip(axes.sample, layout.samples.unflat(group).T, strict=True))
        at |= dict(zip(axes.spatial, layout.space.unflat(flat).T, strict=True))
        n_windows, t = image.grid.chunks[axes.names.index("t")], inner.axes.names.index("t")
        begin = at["t"] * n_windows
        end = np.minimum(begin + n_windows + self.windows.reach, inner.shape[t])
        n_frames, names = inner.grid.chunks[t], axes.sample + axes.spatial
        low = {**at, "t": begin // n_frames}
        high = {**at, "t": (end - 1) // n_frames}
        rows = chunks_under(*(np.stack([side[a] for a in names], -1) for side in (low, high)))
        n = len(axes.sample)
        groups = inner.layout.samples.flat(rows[:, :n]) * inner.layout.space.n_chunks
        return inner.decodes(np.unique(groups + inner.layout.space.flat(rows[:, n:])))

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of one whole chunk of the image."""
        return self.image.chunk_nbytes

    @property
    def held_bytes(self) -> int:
        """What a reader holds besides the chunks that it gives."""
        image = self.image
        t = image.axes.names.index("t")
        size = math.prod(image.grid.chunks) // image.grid.chunks[t]
        n_frames = _windows_of_a_chunk(image, self.windows) + self.windows.reach
        whole = n_frames + 2 * image.grid.chunks[t]
        n = size * whole * image.layout.channels.n_chunks * image.dtype.itemsize
        # The chunks, and their frames side by side.
        return 2 * n + int(getattr(image.source, "held_bytes", 0))


def windowed(image: Image, given: Any) -> Image:
    """Windows over the frames of an image: each is a sample, its frames are channels.

    Roles show the first frame of each window; context levels have windows like their image.

    Parameters
    ----------
    image
        With an axis t.
    given
        A `Windows`, or a mapping of its keys; None changes nothing.

    Raises
    ------
    ConfigError
        If a key or value is wrong.
    AxesError
        If there is no time, or not enough of it.
    """
    windows = parsed_as(Windows, "time", given)
    if windows is None:
        return image
    names = image.axes.names
    if "t" not in names:
        raise AxesError(
            f"time= is for images with an axis t, got {names!r} for {image.id!r}; name it: axes=, "
            "or leave time= out"
        )
    t = names.index("t")
    n = image.shape[t] - windows.reach
    if n < 1:
        raise AxesError(
            f"a window fits into the time of its image, got {windows.window} frames "
            f"{windows.step} apart for {image.shape[t]} of {image.id!r}"
        )
    shape, chunks = [*image.shape], [*image.grid.chunks]
    shape[t], chunks[t] = n, min(n, _windows_of_a_chunk(image, windows))
    if image.axes.has_channel:
        c = names.index("c")
        shape[c] = chunks[c] = shape[c] * windows.window
        axes = image.axes
    else:
        shape.insert(t + 1, windows.window)
        chunks.insert(t + 1, windows.window)
        axes = Axes(names[: t + 1] + "c" + names[t + 1 :])
    found = replace(
        image,
        axes=axes,
        shape=tuple(shape),
        grid=ChunkGrid(tuple(shape), tuple(chunks)),
        shards=None,
        source=WindowedSource(bare(image), windows),
        channels=_names(image, windows),
        pyramid=None,
    )
    for name, role in image.roles.items():
        if name.startswith(CONTEXT):
            role = replace(role, image=windowed(role.image, windows))
        else:
            role = follow(role, image, {"t": Pick(range(n))}, name)
        found = found.with_role(name, role)
    return found


def windows_document(image: Image) -> dict[str, Any]:
    """Which windows an image shows, for JSON; nothing if it shows none."""
    source = image.source
    return {"windows": source.windows.model_dump()} if isinstance(source, WindowedSource) else {}


def _windows_of_a_chunk(image: Image, windows: Windows) -> int:
    """As many as one of 16 MiB has, and no fewer than a stored chunk has frames."""
    t = image.axes.names.index("t")
    extents = zip(image.grid.chunks, image.shape, strict=True)
    size = math.prod(min(c, n) for k, (c, n) in enumerate(extents) if k not in (t,))
    channels = image.layout.channels
    each = size * channels.n_chunks * windows.window * image.dtype.itemsize
    return max(image.grid.chunks[t], _BLOCK // max(1, each))


def _names(image: Image, windows: Windows) -> tuple[str, ...]:
    known = image.channels if image.axes.has_channel else ("frame",)
    steps = [k * windows.step for k in range(windows.window)]
    return tuple(f"{name}@t+{k}" if k else f"{name}@t" for k in steps for name in known)


class _WindowedReader:
    def __init__(self, source: WindowedSource) -> None:
        self._source = source
        self._reader = source.image.source.reader()
        self.reads = self._reader.reads
        image = source.image
        self._grid = windowed(image, source.windows).grid

    def read(self, chunks: Ints) -> list[npt.NDArray[Any]]:
        return [self._one(row) for row in np.asarray(chunks).tolist()]

    def _one(self, row: list[int]) -> npt.NDArray[Any]:
        source, inner = self._source, self._source.image
        start, stop = source.frames(*([*side] for side in self._grid.box(row)))
        frames = inner.read(start, stop, self._reader)
        found: npt.NDArray[Any] = source.put_together(frames, np.concatenate)
        return found
