"""OmeTarget: an OME-Zarr image that is written object by object, by many who share no object."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
_LEVEL = "0"
_OBJECT = re.compile(rf"{_LEVEL}/c((?:/\d+)+)")
_KINDS = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


@dataclass(frozen=True)
class OmeTarget:
    """An image of OME-Zarr 0.5 with one level, in whole objects (chunks, or shards of chunks).

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
    spacing: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, float] = field(default_factory=dict)
    unit: Mapping[str, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    """Names; empty if unknown."""

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
        how: list[dict[str, Any]] = [
            {"type": "scale", "scale": [float(self.spacing.get(a, 1.0)) for a in self.axes]}
        ]
        if any(self.origin.values()):
            moved = [float(self.origin.get(a, 0.0)) for a in self.axes]
            how.append({"type": "translation", "translation": moved})
        level = {"path": _LEVEL, "coordinateTransformations": how}
        return {"name": self.name, "axes": axes, "datasets": [level]}

    def _shown(self, name: str) -> dict[str, Any]:
        whole = self.dtype.kind in "iu"
        low = int(np.iinfo(self.dtype).min) if whole else 0
        high = int(np.iinfo(self.dtype).max) if whole else 1
        span = {"min": low, "max": high, "start": low, "end": high}
        return {"label": name, "color": "FFFFFF", "active": True, "window": span}

    @property
    def array_name(self) -> str:
        """Object with the metadata of the array."""
        return f"{_LEVEL}/zarr.json"

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

    # -- parts ------------------------------------------------------------------------------

    def parts_there(self, found: Mapping[str, int]) -> npt.NDArray[np.bool_]:
        """Which parts are whole, by a listing (sizes in bytes by name): bool[n_parts]."""
        counts = ChunkGrid(self.shape, self._outer).counts
        named = (_index_of(name, len(counts)) for name, size in found.items() if size)
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
            name = "/".join([_LEVEL, "c", *(str(at[a]) for a in self.axes)])
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
        return ArraySpec(_LEVEL, shape, self.dtype, self.axes, n, self.codec)


def _index_of(name: str, ndim: int) -> list[int] | None:
    """The place of an object of the array; None of what is none."""
    found = _OBJECT.fullmatch(name)
    index = [] if found is None else [int(n) for n in found[1].split("/")[1:]]
    return index if len(index) == ndim else None


def _padded(pixels: Pixels, shape: tuple[int, ...]) -> Pixels:
    """Pixels with 0 after them, up to a shape."""
    if pixels.shape == shape:
        return pixels
    whole = np.zeros(shape, pixels.dtype)
    whole[tuple(map(slice, pixels.shape))] = pixels
    return whole
