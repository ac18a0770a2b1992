"""OmeTarget: an OME-Zarr image that is written object by object, by many who share no object."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from patchloom.grid import ChunkGrid
from patchloom.location import Location
from patchloom.store.schema import ArraySpec, Codec
from patchloom.store.shards import Bytes, ShardBuilder, encoder

__all__ = ["OmeTarget"]

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[Any]
_OBJECT = re.compile(r"(\d+)/c((?:/\d+)+)")
_KINDS = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


@dataclass(frozen=True)
class OmeTarget:
    """One level of an image of OME-Zarr 0.5, in whole objects (chunks, or shards of chunks).

    A *part* is what is written together: the objects of one spatial box of one sample. Parts are
    numbered sample by sample, in C order of their boxes.
    """

    location: Location
    name: str
    axes: str
    """In the order of OME-Zarr: time and samples, channel, space."""
    samples: str
    """Those of the axes along which each index is a sample, in the order that numbers samples."""
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    """1 on the sample axes."""
    shards: tuple[int, ...] | None
    """Of an object that holds several chunks, in whole chunks; 1 on the sample axes."""
    dtype: np.dtype[Any]
    codec: Codec
    level: int = 0
    halved: tuple[str, ...] = ()
    """For each coarser level of the image the axes that are halved from the one before."""
    spacing: Mapping[str, float] = field(default_factory=dict)
    """Of the finest level, as is all that follows."""
    origin: Mapping[str, float] = field(default_factory=dict)
    unit: Mapping[str, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    """Names; empty if unknown."""

    @property
    def levels(self) -> list[OmeTarget]:
        """Itself, and all levels that are coarser."""
        found = [self]
        for axes in self.halved[self.level :]:
            fine = found[-1]
            shape = [
                -(-n // 2) if a in axes else n for a, n in zip(self.axes, fine.shape, strict=True)
            ]
            found.append(replace(fine, level=fine.level + 1, shape=tuple(shape)))
        return found

    @property
    def path(self) -> str:
        """Of the array in the image."""
        return str(self.level)

    @cached_property
    def space(self) -> str:
        """The axes of a part."""
        return "".join(a for a in self.axes if a in "zyx" and a not in self.samples)

    @cached_property
    def boxes(self) -> ChunkGrid:
        """The spatial boxes of the parts of one sample."""
        return self._grid(self.space)

    @cached_property
    def sample_shape(self) -> tuple[int, ...]:
        """Extents of the sample axes, in their own order."""
        return self._grid(self.samples).shape

    @property
    def n_samples(self) -> int:
        """Samples."""
        return math.prod(self.sample_shape)

    @property
    def n_parts(self) -> int:
        """Parts."""
        return self.n_samples * self.boxes.n_chunks

    @property
    def n_channels(self) -> int:
        """Channels; 1 without the axis."""
        return math.prod(self._grid(self._channel).shape)

    @property
    def object_bytes(self) -> int:
        """Bytes of an object before compression."""
        return math.prod(self._outer) * self.dtype.itemsize

    @property
    def _outer(self) -> tuple[int, ...]:
        return self.shards or self.chunks

    @property
    def _channel(self) -> str:
        return "c" if "c" in self.axes else ""

    def _grid(self, letters: str) -> ChunkGrid:
        return ChunkGrid(self.shape, self._outer).pick([self.axes.index(a) for a in letters])

    # -- metadata -------------------------------------------------------------------------

    def group_document(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """``zarr.json`` of the image.

        Parameters
        ----------
        told
            Our own attributes.
        """
        ome: dict[str, Any] = {"version": "0.5", "multiscales": [self._multiscale()]}
        if self.channels:
            ome["omero"] = {"channels": [self._shown(name) for name in self.channels]}
        return {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {"ome": ome, "patchloom": dict(told)},
        }

    def _multiscale(self) -> dict[str, Any]:
        axes = []
        for a in self.axes:
            kind = {"type": _KINDS[a]} if a in _KINDS else {}
            unit = {"unit": self.unit[a]} if self.unit.get(a) else {}
            axes.append({"name": a, **kind, **unit})
        levels, times = [], dict.fromkeys(self.axes, 1)
        for k in range(len(self.halved) + 1):
            if k:
                times |= {a: 2 * times[a] for a in self.halved[k - 1]}
            how = [*self._transforms(times)]
            levels.append({"path": str(k), "coordinateTransformations": how})
        return {"name": self.name, "axes": axes, "datasets": levels}

    def _transforms(self, times: Mapping[str, int]) -> Iterator[dict[str, Any]]:
        """Where pixels lie that are so many times as large."""
        scale = {a: float(self.spacing.get(a, 1.0)) for a in self.axes}
        yield {"type": "scale", "scale": [scale[a] * times[a] for a in self.axes]}
        # Their centres move.
        moved = [self.origin.get(a, 0.0) + scale[a] * (times[a] - 1) / 2 for a in self.axes]
        if any(moved):
            yield {"type": "translation", "translation": moved}

    def _shown(self, name: str) -> dict[str, Any]:
        whole = self.dtype.kind in "iu"
        low = int(np.iinfo(self.dtype).min) if whole else 0
        high = int(np.iinfo(self.dtype).max) if whole else 1
        span = {"min": low, "max": high, "start": low, "end": high}
        return {"label": name, "color": "FFFFFF", "active": True, "window": span}

    @property
    def array_name(self) -> str:
        """Object with the metadata of the array."""
        return f"{self.path}/zarr.json"

    def array_document(self) -> dict[str, Any]:
        """``zarr.json`` of the array."""
        codecs = self.codec.documents(self.dtype)
        if self.shards is not None:
            inner = {
                "chunk_shape": list(self.chunks),
                "codecs": codecs,
                "index_codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "crc32c"},
                ],
                "index_location": "end",
            }
            codecs = [{"name": "sharding_indexed", "configuration": inner}]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": list(self._outer)},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": False if self.dtype.kind == "b" else 0,
            "codecs": codecs,
            "dimension_names": list(self.axes),
            "attributes": {},
            "storage_transformers": [],
        }

    def box(
        self, sample: int, start: Sequence[int], stop: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """A spatial box of one sample, in all channels: first pixels in the array, and ends."""
        place = [int(n) for n in np.unravel_index(sample, self.sample_shape)]
        low = dict(zip(self.samples + self.space, [*place, *start], strict=True))
        high = dict(zip(self.samples + self.space, [*(n + 1 for n in place), *stop], strict=True))
        low["c"], high["c"] = 0, self.n_channels
        return [low[a] for a in self.axes], [high[a] for a in self.axes]

    # -- parts ------------------------------------------------------------------------------

    def parts_there(self, found: Mapping[str, int]) -> npt.NDArray[np.bool_]:
        """Which parts are whole, by a listing (sizes in bytes by name): bool[n_parts]."""
        counts = ChunkGrid(self.shape, self._outer).counts
        named = (self._index_of(name) for name, size in found.items() if size)
        rows = [row for row in named if row is not None]
        times = np.zeros(self.n_parts, np.int64)
        if rows:
            index = np.array(rows, np.int64)
            index = index[(index < counts).all(1)]
            order = [self.axes.index(a) for a in self.samples + self.space]
            extents = [counts[k] for k in order]
            strides = [math.prod(extents[k + 1 :]) for k in range(len(extents))]
            np.add.at(times, index[:, order] @ np.array(strides, np.int64), 1)
        there: npt.NDArray[np.bool_] = times == self._grid(self._channel).n_chunks
        return there

    def _index_of(self, name: str) -> list[int] | None:
        """The place of an object of the array; None of what is none."""
        found = _OBJECT.fullmatch(name)
        if found is None or found[1] != self.path:
            return None
        index = [int(n) for n in found[2].split("/")[1:]]
        return index if len(index) == len(self.axes) else None

    def write_part(self, sample: int, box: int, pixels: Pixels) -> int:
        """Write the objects of one part, each whole.

        Parameters
        ----------
        sample
            Number of the sample.
        box
            Number of the box.
        pixels
            [channels, *space], clipped to the image.

        Returns
        -------
        int
            Bytes written.

        Raises
        ------
        WriteError
            If the target refuses one.
        """
        place = [int(n) for n in np.unravel_index(sample, self.sample_shape)]
        letters = self.samples + self.space
        at = dict(zip(letters, [*place, *self.boxes.unflat(box).tolist()], strict=True))
        channels, nbytes = self._grid(self._channel), 0
        for k in range(channels.n_chunks):
            at["c"] = k
            low, high = (side[0] for side in channels.box((k,))) if self._channel else (0, 1)
            name = "/".join([self.path, "c", *(str(at[a]) for a in self.axes)])
            parts = [*self._encoded(pixels[low:high])]
            self.location.write(name, *parts)
            nbytes += sum(map(len, parts))
        return nbytes

    def _encoded(self, pixels: Pixels) -> Iterable[Bytes]:
        """One object from what of it lies in the image: [channels, *space]."""
        if self.shards is None:
            body = encoder(self._spec)(_padded(pixels, self._across(self.chunks)))
            return [body, google_crc32c.value(body).to_bytes(4, "little")]
        inner, outer = self._across(self.chunks), self._across(self.shards)
        held = ChunkGrid(outer, inner)
        # The channel stands before space: chunks lie in the shard in this order.
        starts = np.argwhere(np.ones(held.counts, np.bool_)) * np.array(inner)
        inside = (starts < pixels.shape).all(1)

        def chunks() -> Iterator[Pixels]:
            for start in starts[inside].tolist():
                where = tuple(slice(a, a + n) for a, n in zip(start, inner, strict=True))
                yield _padded(pixels[where], inner)

        builder = ShardBuilder(self._spec, held.n_chunks)
        builder.put(np.flatnonzero(inside), chunks())
        return builder.finish(np.flatnonzero(~inside))

    def _across(self, extents: tuple[int, ...]) -> tuple[int, ...]:
        """Extents along the channel and space."""
        channel = extents[self.axes.index("c")] if self._channel else 1
        return (channel, *(extents[self.axes.index(a)] for a in self.space))

    @property
    def _spec(self) -> ArraySpec:
        """A chunk as what a shard builder takes for a row."""
        n = 1
        if self.shards is not None:
            n = math.prod(o // c for o, c in zip(self.shards, self.chunks, strict=True))
        shape = self._across(self.chunks)
        return ArraySpec(self.path, shape, self.dtype, self.axes, n, self.codec)


def _padded(pixels: Pixels, shape: tuple[int, ...]) -> Pixels:
    """Pixels with 0 after them, up to a shape."""
    if pixels.shape == shape:
        return pixels
    whole = np.zeros(shape, pixels.dtype)
    whole[tuple(map(slice, pixels.shape))] = pixels
    return whole
