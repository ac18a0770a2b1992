"""Image: a small, picklable description of one chunked array and its roles."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from patchloom.axes import Axes
from patchloom.coverage import Alignment
from patchloom.errors import SourceError
from patchloom.grid import ChunkGrid
from patchloom.public_names import PublicNames
from patchloom.table import html_table

if TYPE_CHECKING:
    import xarray

__all__ = [
    "CONTEXT",
    "ROLES",
    "ChunkReader",
    "Image",
    "Layout",
    "Pyramid",
    "Reads",
    "Role",
    "Source",
    "innermost",
    "made_of",
    "source_of",
]

Ints = npt.NDArray[np.int64]

ROLES = ("mask", "labels", "target")
"""What else can lie over the field of an image, besides further arrays of the user's names."""

CONTEXT = "context_"
"""How the names of further arrays begin that are seen around patches: coarser levels, by number."""

# A saved plan names the kind of each source; kinds are found here by name, so that reading a
# plan loads no code that the plan chooses.
_HOMES = {
    "array": ("patchloom.sources.arrays", "ArraySource"),
    "auto": ("patchloom.sources.automatic", "AutoSource"),
    "derived": ("patchloom.sources.derived", "DerivedSource"),
    "file": ("patchloom.sources.files", "FileSource"),
    "function": ("patchloom.sources.functions", "FunctionSource"),
    "loader": ("patchloom.sources.functions", "LoaderSource"),
    "outlines": ("patchloom.sources.outlines", "OutlineSource"),
    "selected": ("patchloom.sources.selected", "SelectedSource"),
    "stack": ("patchloom.sources.stacks", "StackSource"),
    "windowed": ("patchloom.sources.windows", "WindowedSource"),
    "zarr": ("patchloom.sources.zarrs", "ZarrSource"),
}
_PYRAMIDS = {
    "selected": ("patchloom.sources.selected", "SelectedPyramid"),
    "tiff": ("patchloom.sources.tiff", "TiffPyramid"),
    "zarr": ("patchloom.sources.pyramids", "ZarrPyramid"),
}


@dataclass
class Reads:
    """What a reader really did; counted where it happens."""

    chunks: int = 0
    """Chunks decoded; an absent one counts, it was asked for and filled."""
    requests: int = 0
    """Reads sent to the store (files opened, HTTP requests, ranges)."""
    nbytes: int = 0
    """Bytes that came back."""
    codecs: str = "none"
    """Who decodes: ``"direct"`` (our calls of numcodecs), ``"zarr"`` (zarr-python), ``"dask"``,
    ``"file"`` (the package of a file format)."""

    def __add__(self, other: Reads) -> Reads:
        return Reads(
            self.chunks + other.chunks,
            self.requests + other.requests,
            self.nbytes + other.nbytes,
            self.codecs,
        )


class ChunkReader(Protocol):
    """Reads whole chunks; made on the worker, never shipped."""

    reads: Reads

    def read(self, chunks: Ints) -> list[npt.NDArray[Any]]:
        """Decode chunks: int64[n, ndim] indices -> arrays in stored axis order.

        Each array is clipped to the image and in native byte order.
        """


class Source(Protocol):
    """Where an image's chunks come from: a small value that opens on the worker.

    One that makes its pixels itself, or takes one of several arrays, has a method
    ``identity() -> dict`` of JSON values besides: which they are is part of what a plan is about.
    One that makes them of another image has that as ``image``, and ``filled(source)`` is the same
    of the pixels of another source. One whose reader holds pixels besides those that it gives has
    their bytes, at most, as ``held_bytes``.
    """

    def reader(self) -> ChunkReader:
        """A fresh reader."""

    def lazy(self, image: Image) -> Any:
        """A Dask array of the whole image."""

    @property
    def addressable(self) -> bool:
        """Whether a worker can read chunks by itself (else Dask hands them over)."""

    def without_pixels(self) -> Source:
        """The same without what it holds in memory."""

    def to_document(self) -> dict[str, Any]:
        """What it is, for JSON, without credentials; `kind` names its home."""


class Pyramid(Protocol):
    """Where the coarser levels of an image are; small, and opened when they are asked for."""

    def levels(self, image: Image) -> tuple[Role, ...]:
        """The levels coarser than an opened one, fine to coarse."""

    def to_document(self) -> dict[str, Any]:
        """What it is, for JSON, without credentials; `kind` names its home."""


@dataclass(frozen=True)
class Layout:
    """An image seen by a planner: samples, channels and the spatial chunk grid.

    A *block* is one spatial chunk with all its channels and all the samples that are stored
    in the same chunks: the unit that is decoded together. A *cell* is one sample of a block:
    the unit that owns patches.
    """

    samples: ChunkGrid
    """Sample axes, in stored order; zero axes means one sample."""
    channels: ChunkGrid
    """The channel axis; zero axes means one channel."""
    space: ChunkGrid
    """Spatial axes, in the order z, y, x."""

    @property
    def n_samples(self) -> int:
        """Samples in all."""
        return math.prod(self.samples.shape)

    @property
    def n_channels(self) -> int:
        """Channels of a patch."""
        return math.prod(self.channels.shape)

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape as ``SC(Z)YX``."""
        return (self.n_samples, self.n_channels, *self.space.shape)

    @property
    def chunks_per_block(self) -> int:
        """Stored chunks that make up one block."""
        return self.channels.n_chunks

    def block_shape(self) -> tuple[int, ...]:
        """Extent of a whole block: samples, channels, space."""
        samples = math.prod(
            min(c, s) for c, s in zip(self.samples.chunks, self.samples.shape, strict=True)
        )
        space = (min(c, s) for c, s in zip(self.space.chunks, self.space.shape, strict=True))
        return (samples, self.n_channels, *space)

    def blocks_of(self, samples: Ints, chunks: Ints) -> Ints:
        """Flat block of each (flat sample, spatial chunk index[..., ndim])."""
        flat: Ints = self.groups_of(samples) * self.space.n_chunks + self.space.flat(chunks)
        return flat

    def own_samples(self, samples: Ints) -> Ints:
        """The samples of this array that belong to samples of an image over it.

        An array without samples of its own is the same for all.
        """
        return samples if self.n_samples > 1 else np.zeros_like(samples)

    def groups_of(self, samples: Ints) -> Ints:
        """Flat group of each flat sample: those of one group are stored in the same chunks."""
        return self.samples.flat(self.samples.chunk_of(self._sample_index(samples)))

    def samples_of(self, blocks: Ints) -> tuple[Ints, Ints]:
        """All samples stored in each block: (position in `blocks`, flat sample), int64[n] each."""
        groups = self.samples.unflat(np.asarray(blocks, np.int64) // self.space.n_chunks)
        position = np.arange(len(groups), dtype=np.int64)
        flat = np.zeros(len(groups), np.int64)
        for axis, (extent, chunk) in enumerate(
            zip(self.samples.shape, self.samples.chunks, strict=True)
        ):
            start = groups[:, axis] * chunk
            n = np.minimum(start + chunk, extent) - start
            repeat = n[position]
            within = _ramp(repeat)
            flat = np.repeat(flat * extent, repeat) + np.repeat(start[position], repeat) + within
            position = np.repeat(position, repeat)
        return position, flat

    def sample_in_block(self, sample: int) -> int:
        """Position of a sample inside its block."""
        index = self._sample_index(np.asarray(sample))
        group = self.samples.chunk_of(index)
        start, stop = self.samples.box(group.tolist())
        inside = [int(i) - a for i, a in zip(index.tolist(), start, strict=True)]
        extent = [b - a for a, b in zip(start, stop, strict=True)]
        return int(np.ravel_multi_index(inside, extent)) if inside else 0

    def _sample_index(self, samples: Ints) -> Ints:
        if not self.samples.shape:
            return np.zeros((*np.shape(samples), 0), np.int64)
        return np.stack(np.unravel_index(samples, self.samples.shape), -1).astype(np.int64)


@dataclass(frozen=True)
class Role:
    """Another array over the same field: a mask, labels or a target."""

    image: Image
    alignment: Alignment
    """Where its pixels lie on the image's, on the spatial axes they share."""
    axes: str
    """The image's spatial axes that it has; a mask without z holds for every z."""


@dataclass(frozen=True, eq=False)
class Image(PublicNames):
    """One array to take patches from. Holds no open file and no pixel of a stored array.

    Sizes are pixels of the level that was opened.
    """

    id: str
    uri: str
    """Where it came from, without credentials; ``""`` for an array in memory."""
    axes: Axes
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    grid: ChunkGrid
    """The smallest separately decodable units, in stored axis order."""
    source: Source = field(repr=False)
    shards: tuple[int, ...] | None = None
    """Extent of the stored objects where several chunks share one."""
    level: int = 0
    spacing: Mapping[str, float] = field(default_factory=dict)
    """Physical extent of a pixel on each spatial axis (also of planes that are samples); empty if
    unknown."""
    origin: Mapping[str, float] = field(default_factory=dict)
    """Physical coordinate of the first pixel's centre on each spatial axis."""
    unit: Mapping[str, str] = field(default_factory=dict)
    """Physical unit on each spatial axis."""
    channels: tuple[str, ...] = ()
    """Names of the channels; empty if unknown."""
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """One value a column; they ride along in the manifest."""
    mask: Role | None = None
    labels: Role | None = None
    target: Role | None = None
    more: Mapping[str, Role] = field(default_factory=dict)
    """Further arrays that are cut along, by their names in a store: ``weights``, ``targets_NAME``
    of a further target, ``context_N`` of a coarser level that is seen around patches."""
    pyramid: Pyramid | None = field(default=None, repr=False)
    nodata: float | None = None
    """The value of pixels that tell nothing, which statistics leave out; None if every value
    counts. NaN is counted apart in any case."""

    def __getstate__(self) -> dict[str, object]:
        # What is derived is derived again: it need not travel.
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def ndim(self) -> int:
        """Stored dimensions."""
        return len(self.shape)

    @cached_property
    def layout(self) -> Layout:
        """Samples, channels and space of this image."""
        axes = self.axes
        return Layout(
            samples=self.grid.pick(axes.pick(axes.sample)),
            channels=self.grid.pick(axes.pick("c" if axes.has_channel else "")),
            space=self.grid.pick(axes.pick(axes.spatial)),
        )

    @cached_property
    def levels(self) -> tuple[Role, ...]:
        """The coarser levels of a pyramid, fine to coarse; read when first asked for."""
        return () if self.pyramid is None else self.pyramid.levels(self)

    @property
    def roles(self) -> dict[str, Role]:
        """All that lies over it, by name."""
        known = {name: getattr(self, name) for name in ROLES}
        return {**{n: role for n, role in known.items() if role is not None}, **self.more}

    @property
    def cut_arrays(self) -> dict[str, Image]:
        """The arrays that patches are cut from: the image, and all that lies over it but a mask."""
        return {"image": self, **{n: r.image for n, r in self.roles.items() if n != "mask"}}

    def decodes(self, blocks: Ints) -> int:
        """Stored chunks under some distinct blocks of `layout`, each once."""
        # Those of a selection may lie across the chunks that are stored.
        under = getattr(self.source, "decodes", None) if self.source.addressable else None
        return len(blocks) * self.layout.chunks_per_block if under is None else under(self, blocks)

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of pixels of what is decoded at once, if it is whole."""
        inner = getattr(self.source, "chunk_nbytes", None)
        return math.prod(self.grid.chunks) * self.dtype.itemsize if inner is None else inner

    @property
    def data(self) -> xarray.DataArray:
        """The whole image, lazily: an xarray.DataArray over a chunked Dask array."""
        import xarray

        dims = tuple(self.axes.names)
        coords: dict[str, Any] = {}
        if self.channels and self.axes.has_channel:
            coords["c"] = list(self.channels)
        return xarray.DataArray(
            self.source.lazy(self),
            dims=dims,
            coords=coords,
            name=self.id,
            attrs={
                "spacing": dict(self.spacing),
                "origin": dict(self.origin),
                "unit": dict(self.unit),
                "uri": self.uri,
                "level": self.level,
            },
        )

    def read(
        self, start: Sequence[int], stop: Sequence[int], reader: ChunkReader | None = None
    ) -> npt.NDArray[Any]:
        """Exactly the pixels of a box, in stored axis order.

        Parameters
        ----------
        start, stop
            Half-open box in pixels of this level, one number a stored axis.
        reader
            Of its source; by default a fresh one.

        Raises
        ------
        SourceError
            If the box leaves the image.
        """
        bounds = list(zip(start, stop, self.shape, strict=True))
        if any(not 0 <= a <= b <= n for a, b, n in bounds):
            raise SourceError(
                f"a box lies inside its image, got {tuple(start)} to {tuple(stop)} in "
                f"{self.id!r} of shape {self.shape}"
            )
        out = np.zeros([b - a for a, b, _ in bounds], self.dtype)
        if not out.size:
            return out
        low = self.grid.chunk_of(np.asarray(start))
        high = self.grid.chunk_of(np.asarray(stop) - 1)
        ranges = [np.arange(a, b + 1) for a, b in zip(low, high, strict=True)]
        index = np.stack([m.ravel() for m in np.meshgrid(*ranges, indexing="ij")], -1)
        for chunk, pixels in zip(index, (reader or self.source.reader()).read(index), strict=True):
            first, _ = self.grid.box(chunk.tolist())
            into, of = overlap(first, pixels.shape, start, out.shape)
            out[into] = pixels[of]
        return out

    def to_document(self) -> dict[str, Any]:
        """A JSON-ready description without pixels and credentials."""
        roles = {
            name: {
                "image": role.image.to_document(),
                "axes": role.axes,
                "scale": [str(v) for v in role.alignment.scale],
                "offset": [str(v) for v in role.alignment.offset],
            }
            for name, role in self.roles.items()
        }
        return {
            "id": self.id,
            "uri": self.uri,
            "axes": self.axes.names,
            "shape": list(self.shape),
            "dtype": self.dtype.str.replace(">", "<"),
            "chunks": list(self.grid.chunks),
            "shards": None if self.shards is None else list(self.shards),
            "level": self.level,
            "spacing": dict(self.spacing),
            "origin": dict(self.origin),
            "unit": dict(self.unit),
            "channels": list(self.channels),
            "metadata": dict(self.metadata),
            "roles": roles,
            "source": self.source.to_document(),
            "pyramid": None if self.pyramid is None else self.pyramid.to_document(),
            **self.nodata_document(),
        }

    def nodata_document(self) -> dict[str, float | str]:
        """``nodata`` for JSON, as a number or text such as ``"nan"``; nothing if there is none."""
        if self.nodata is None:
            return {}
        return {"nodata": self.nodata if math.isfinite(self.nodata) else str(self.nodata)}

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], options: Mapping[str, Any] | None = None
    ) -> Image:
        """Inverse of `to_document`; opens nothing.

        Parameters
        ----------
        document
            What `to_document` gave.
        options
            Storage options for its sources.
        """
        roles = {
            role: Role(
                cls.from_document(item["image"], options),
                Alignment(
                    tuple(Fraction(v) for v in item["scale"]),
                    tuple(Fraction(v) for v in item["offset"]),
                ),
                item["axes"],
            )
            for role, item in document["roles"].items()
        }
        more = {name: roles.pop(name) for name in [*roles] if name not in ROLES}
        shards, pyramid = document["shards"], document.get("pyramid")
        nodata = document.get("nodata")
        return cls(
            id=document["id"],
            uri=document["uri"],
            axes=Axes(document["axes"]),
            shape=tuple(document["shape"]),
            dtype=np.dtype(document["dtype"]),
            grid=ChunkGrid(tuple(document["shape"]), tuple(document["chunks"])),
            source=source_of(document["source"], options),
            shards=None if shards is None else tuple(shards),
            level=document["level"],
            spacing=document["spacing"],
            origin=document["origin"],
            unit=document["unit"],
            channels=tuple(document["channels"]),
            metadata=document["metadata"],
            pyramid=_restored(_PYRAMIDS, pyramid, options) if pyramid else None,
            nodata=None if nodata is None else float(nodata),
            more=more,
            **roles,
        )

    def with_role(self, name: str, role: Role | None) -> Image:
        """The same image with one role set, or gone: one of `ROLES`, or a further array."""
        if name in ROLES:
            return replace(self, **{name: role})  # type: ignore[arg-type]
        others = {n: r for n, r in self.more.items() if n != name}
        return replace(self, more=others if role is None else {**others, name: role})

    def __repr__(self) -> str:
        extents = " x ".join(f"{a}={n}" for a, n in zip(self.axes.names, self.shape, strict=True))
        roles = "".join(f", {r}" for r in self.roles)
        return f"<Image {self.id!r} {extents} {self.dtype}, level {self.level}{roles}>"

    def _repr_html_(self) -> str:
        rows = {
            "axes": str(self.axes),
            "shape": self.shape,
            "dtype": self.dtype,
            "chunks": self.grid.chunks,
            "shards": self.shards or "-",
            "spacing": ", ".join(
                f"{a} {v:g} {self.unit.get(a, '')}" for a, v in self.spacing.items()
            ),
            "channels": ", ".join(self.channels),
            "nodata": "-" if self.nodata is None else f"{self.nodata:g}",
            "roles": ", ".join(self.roles) or "-",
            "uri": self.uri or "in memory",
        }
        return html_table(f"Image {self.id}", rows)


def innermost(source: Source) -> Source:
    """The source of the pixels that selections, windows and rules are made of."""
    while hasattr(source, "image"):
        source = source.image.source
    return source


def made_of(source: Source) -> dict[str, Any]:
    """What tells the pixels of a source from others of that shape, if it says: see `Source`."""
    identity: dict[str, Any] = getattr(source, "identity", dict)()
    return {"made": identity} if identity else {}


def source_of(document: Mapping[str, Any], options: Mapping[str, Any] | None) -> Any:
    """The source of a document that its `to_document` made; its kind is one that is known.

    Raises
    ------
    SourceError
        If it is not.
    """
    return _restored(_HOMES, document, options)


def _restored(
    homes: Mapping[str, tuple[str, str]],
    document: Mapping[str, Any],
    options: Mapping[str, Any] | None,
) -> Any:
    kind = document["kind"]
    if kind not in homes:
        raise SourceError(f"a source is one of {sorted(homes)}, got {kind!r}")
    module, name = homes[kind]
    return getattr(importlib.import_module(module), name).from_document(document, options or {})


def overlap(
    first: Sequence[int], extent: Sequence[int], start: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where one box lies in another: slices into the other, slices of the one.

    Parameters
    ----------
    first, extent
        The one box: first pixel and extent.
    start, shape
        The other box.
    """
    into, of = [], []
    for f, e, s, n in zip(first, extent, start, shape, strict=True):
        low, high = max(f, s), min(f + e, s + n)
        high = max(low, high)
        into.append(slice(low - s, high - s))
        of.append(slice(low - f, high - f))
    return tuple(into), tuple(of)


def _ramp(counts: Ints) -> Ints:
    """0, 1, ..., n - 1 for each count, one after the other."""
    total = int(counts.sum())
    return np.arange(total, dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
