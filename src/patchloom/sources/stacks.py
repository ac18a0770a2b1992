"""Stacks: one image out of equal planes, each of them in a file or Zarr array of its own."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.axes import Axes
from patchloom.errors import AxesError, NotAnArrayError, SourceError, SourceMissingError
from patchloom.grid import ChunkGrid
from patchloom.image import ChunkReader, Image, Ints, Reads, Source, made_of, source_of
from patchloom.location import Location
from patchloom.sources.folders import images_in, in_order, names_in
from patchloom.sources.inside import split_inside
from patchloom.sources.lazily import Sliceable

__all__ = ["Stack", "StackSource", "opened_stack", "stacks"]

_ORDER = "stcz"
"""Axes that planes are stacked along, outermost first."""
_NAMES = {"sample": "s", "time": "t", "channel": "c"}
_FIELD = re.compile(r"\{(\w*)\}")
_SHOWN = 10
"""Planes that an error lists."""
_TOGETHER = 16
"""Planes that are opened or read at a time where requests take long."""


@dataclass(frozen=True)
class Stack:
    """Which files are the planes of one image, before one of them is opened."""

    name: str
    axes: str
    """The axes along which they are stacked."""
    extents: tuple[int, ...]
    planes: tuple[Location, ...]
    """Of all indices along these axes, the last one fastest."""
    channels: tuple[str, ...] = ()
    """What the names of files call them; empty if by a number."""
    inside: str | None = None
    """Path of the plane in each file, if they are containers."""


@dataclass(frozen=True)
class StackSource:
    """Planes, each read by its own source."""

    planes: tuple[Source, ...] = field(repr=False)
    extents: tuple[int, ...]
    """Planes along each stacked axis; these axes come first."""
    since: float | None = field(default=None, compare=False)
    """When the run began that reads it, in seconds since 1970; see `reading_since`."""
    names: str = ""
    """Digest of what the files are called: several stacks may lie in one folder."""

    @property
    def addressable(self) -> bool:
        """Whether a worker can read all planes by itself."""
        return all(plane.addressable for plane in self.planes)

    @property
    def held_bytes(self) -> int:
        """What the readers of planes that read at once hold besides the chunks that they give."""
        each = max(int(getattr(plane, "held_bytes", 0)) for plane in self.planes)
        return each * (_TOGETHER if each and _is_remote(self.planes[0]) else 1)

    def reader(self) -> ChunkReader:
        """A reader that asks the planes'."""
        return _StackReader(self)

    def without_pixels(self) -> StackSource:
        """Itself: it holds none."""
        return self

    def identity(self) -> dict[str, Any]:
        """Which files of a folder it is, and which array of each."""
        return {**made_of(self.planes[0]), "names": self.names}

    def to_document(self) -> dict[str, Any]:
        """The extents, and every plane."""
        return {
            "kind": "stack",
            "extents": list(self.extents),
            "names": self.names,
            "planes": [plane.to_document() for plane in self.planes],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], options: Mapping[str, Any]) -> StackSource:
        """Inverse of `to_document`."""
        planes = tuple(source_of(plane, options) for plane in document["planes"])
        return cls(planes, tuple(document["extents"]), names=document["names"])

    def lazy(self, image: Image) -> Any:
        """A Dask array whose chunks are those of the planes."""
        import dask.array as da

        return da.from_array(
            Sliceable(image), chunks=image.grid.chunks, inline_array=True, fancy=False
        )


class _StackReader:
    """Asks a reader of each plane that is needed; those of several planes at a time if remote."""

    def __init__(self, source: StackSource) -> None:
        self._source = source
        self.reads = Reads(codecs="file")

    def read(self, chunks: Ints) -> list[npt.NDArray[Any]]:
        """Read chunks: int64[n, ndim] indices -> arrays in stored axis order."""
        source, rows = self._source, np.asarray(chunks, np.int64)
        n = len(source.extents)
        plane = np.ravel_multi_index(tuple(rows[:, :n].T), source.extents)
        needed = [(int(k), np.flatnonzero(plane == k)) for k in np.unique(plane)]
        found: list[Any] = [None] * len(rows)

        def one(item: tuple[int, Ints]) -> tuple[Ints, Reads, list[Any]]:
            k, of = item
            reader = _since(source.planes[k], source.since).reader()
            pixels = reader.read(rows[of, n:])
            return of, reader.reads, pixels

        for of, reads, pixels in _each(one, needed, source.planes[0]):
            for at, part in zip(of.tolist(), pixels, strict=True):
                found[at] = part.reshape((1,) * n + part.shape)
            self.reads.chunks += reads.chunks
            self.reads.requests += reads.requests
            self.reads.nbytes += reads.nbytes
            self.reads.codecs = reads.codecs
        return found


def _since(source: Source, moment: float | None) -> Source:
    if moment is None or not hasattr(source, "since"):
        return source
    watched: Source = replace(source, since=moment)  # type: ignore[type-var]
    return watched


def _is_remote(where: Any) -> bool:
    """Whether a location, or that of a source, is reached by a network."""
    location = where if isinstance(where, Location) else getattr(where, "location", None)
    return location is not None and not location.is_local


def _each(call: Callable[[Any], Any], items: Sequence[Any], where: Any) -> list[Any]:
    """The result of every item, in order; many at a time where each waits for a network."""
    if len(items) < 2 or not _is_remote(where):
        return [call(item) for item in items]
    with ThreadPoolExecutor(min(_TOGETHER, len(items))) as pool:
        return list(pool.map(call, items))


# --- Which files make a stack ---------------------------------------------------------------


def stacks(urls: Sequence[Any], stack: str, options: Mapping[str, Any]) -> list[Stack]:
    """The stacks of some paths or URLs.

    Parameters
    ----------
    urls
        Files and Zarr arrays are planes of one stack; each folder is a stack of what is in it.
    stack
        One axis along which files are stacked in order, or a pattern of their names with fields
        ``{z}``, ``{c}``, ``{t}`` and ``{s}``.
    options
        For fsspec.

    Raises
    ------
    SourceError
        If the axis or pattern is none, or names do not make a whole stack.
    """
    pattern = _pattern(stack) if "{" in stack else None
    if pattern is None and _NAMES.get(stack, stack) not in tuple(_ORDER):
        raise SourceError(
            "stack= is one of 'z', 'c', 't' and 'sample', or a pattern of file names such as "
            f"'img_z{{z}}_c{{c}}.png', got {stack!r}"
        )
    if not all(isinstance(url, str) for url in urls):
        raise SourceError("stack= makes images of files by their names, and an array has none")
    pairs = [split_inside(url) for url in urls]
    if len({inside for _, inside in pairs}) > 1:
        raise SourceError(
            "a plane is the same array of each file of a stack, but the paths after '::' are "
            f"{sorted({str(inside) for _, inside in pairs})[:_SHOWN]}; give one for all: array=..."
        )
    locations = [Location.of(url, options) for url, _ in pairs]
    found = _of_locations(locations, stack, pattern)
    return [replace(one, inside=pairs[0][1]) for one in found]


def _of_locations(
    locations: Sequence[Location], stack: str, pattern: re.Pattern[str] | None
) -> list[Stack]:
    folders = [_planes_in(location, pattern) for location in locations]
    if all(planes is None for planes in folders):
        parent = PurePosixPath(locations[0].shown).parent.name or locations[0].stem
        return [_arranged(parent, locations, stack, pattern)]
    if any(planes is None for planes in folders):
        files = [one.shown for one, planes in zip(locations, folders, strict=True) if not planes]
        raise SourceError(
            "with stack= a list has planes, or folders of planes, but beside folders there are "
            f"{files[:_SHOWN]}"
        )
    return [
        _arranged(PurePosixPath(one.shown).name, planes or [], stack, pattern)
        for one, planes in zip(locations, folders, strict=True)
    ]


def _planes_in(location: Location, pattern: re.Pattern[str] | None) -> list[Location] | None:
    """The planes in a folder, in order; None if it is no folder of files."""
    if pattern is None:
        names = images_in(location)
    else:
        listed = names_in(location)
        names = None if listed is None else in_order([n for n in listed if pattern.fullmatch(n)])
    return None if names is None else [location / name for name in names]


def _pattern(text: str) -> re.Pattern[str]:
    """A pattern of names as a regular expression: digits where they fit, else any text."""
    fields = _FIELD.findall(text)
    axes = [_NAMES.get(name, name) for name in fields]
    wrong = [name for name, axis in zip(fields, axes, strict=True) if axis not in tuple(_ORDER)]
    if wrong or len(set(axes)) != len(axes) or "/" in text:
        raise SourceError(
            "a pattern of file names has each of the fields {z}, {c}, {t} and {s} at most once, "
            f"and no folder, got {text!r}"
        )
    parts = _FIELD.split(text)
    parts[::2] = [re.escape(part).replace(r"\*", ".*?") for part in parts[::2]]
    parts[1::2] = [f"(?P<{axis}>[0-9]+|.+?)" for axis in axes]
    return re.compile("".join(parts))


def _arranged(
    name: str, planes: Sequence[Location], stack: str, pattern: re.Pattern[str] | None
) -> Stack:
    """Planes in the order of their place in the stack, none of them missing."""
    if not planes:
        raise SourceMissingError(
            f"a stack has planes, but nothing in {name!r} is an image"
            + ("" if pattern is None else f" called like {stack!r}")
            + "; check the folder and the pattern"
        )
    if pattern is None:
        return Stack(name, _NAMES.get(stack, stack), (len(planes),), tuple(planes))
    axes = "".join(axis for axis in _ORDER if axis in pattern.groupindex)
    at: dict[tuple[str, ...], Location] = {}
    for plane in planes:
        own = PurePosixPath(plane.shown).name
        match = pattern.fullmatch(own)
        if match is None:
            raise SourceError(
                f"every plane of a stack is called like its pattern {stack!r}, got {own!r}"
            )
        key = tuple(_unpadded(match[axis]) for axis in axes)
        if key in at:
            other = PurePosixPath(at[key].shown).name
            raise SourceError(
                f"every plane has a place of its own in {stack!r}, but {other!r} and {own!r} have "
                "the same; remove one, or make the pattern tell them apart"
            )
        at[key] = plane
    values = [_values(axis, {key[k] for key in at}) for k, axis in enumerate(axes)]
    missing = [key for key in itertools.product(*values) if key not in at]
    if missing:
        listed = [
            ", ".join(f"{a}={v}" for a, v in zip(axes, key, strict=True))
            for key in missing[:_SHOWN]
        ]
        raise SourceMissingError(
            f"a stack is whole, but of {name!r} as {stack!r} {len(missing):,} planes are missing: "
            f"{listed}; restore them, or leave out what they belong to"
        )
    named = () if "c" not in axes else tuple(values[axes.index("c")])
    return Stack(
        name,
        axes,
        tuple(len(v) for v in values),
        tuple(at[key] for key in itertools.product(*values)),
        named if any(not v.isdigit() for v in named) else (),
    )


def _unpadded(value: str) -> str:
    """A number without zeros in front; anything else as it is."""
    return (value.lstrip("0") or "0") if value.isascii() and value.isdigit() else value


def _values(axis: str, found: set[str]) -> list[str]:
    """The values of a field in order, with those that are missing between numbers."""
    values = in_order(sorted(found))
    numbered = axis != "c" and all(v.isascii() and v.isdigit() and len(v) < 10 for v in values)
    if not numbered or len(values) < 3:
        return values
    numbers = [int(v) for v in values]
    steps = {b - a for a, b in itertools.pairwise(numbers)}
    step = min(steps)
    # A depth in nanometres has steps of its own; only a gap among even steps is a lost plane.
    if any(one % step for one in steps) or (numbers[-1] - numbers[0]) // step > 4 * len(numbers):
        return values
    return [str(v) for v in range(numbers[0], numbers[-1] + 1, step)]


# --- From planes to an image ----------------------------------------------------------------


def opened_stack(stack: Stack, name: str | None, open_plane: Callable[[Location], Image]) -> Image:
    """The image of a stack; every plane is opened, and is like the first one.

    Parameters
    ----------
    stack
        Its planes.
    name
        The id of the image; by default that of the stack.
    open_plane
        Opens one of them.

    Raises
    ------
    AxesError
        If planes have an axis along which they are stacked.
    NotAnArrayError
        If planes differ in axes, shape, type or chunks; those that do are listed.
    """
    first = open_plane(stack.planes[0])
    twice = set(stack.axes) & set(first.axes.names)
    if twice:
        raise AxesError(
            f"planes are stacked along axes that they lack, but {first.uri!r} has the axes "
            f"{first.axes} and is stacked along {sorted(twice)}; name another axis, or its own "
            "ones: axes=..."
        )
    images = [first, *_each(open_plane, stack.planes[1:], stack.planes[0])]
    odd = [image for image in images if _like(image) != _like(first)]
    if odd:
        listed = [f"{image.uri} ({_like(image)})" for image in odd[:_SHOWN]]
        raise NotAnArrayError(
            f"planes of a stack are alike, but {len(odd):,} of {stack.name!r} differ from the "
            f"first one ({_like(first)}): {listed}; open them by themselves, without stack="
        )
    n = len(stack.axes)
    called = "\n".join(plane.stem for plane in stack.planes)
    names = hashlib.sha256(called.encode()).hexdigest()[:16]
    shape = (*stack.extents, *first.shape)
    return replace(
        first,
        id=name or stack.name,
        uri=stack.planes[0].parent.shown,
        axes=Axes(stack.axes + first.axes.names),
        shape=shape,
        grid=ChunkGrid(shape, (1,) * n + first.grid.chunks),
        source=StackSource(tuple(i.source for i in images), stack.extents, names=names),
        shards=None if first.shards is None else (1,) * n + first.shards,
        channels=stack.channels if "c" in stack.axes else first.channels,
        pyramid=None,
    )


def _like(image: Image) -> str:
    return f"{image.axes} {image.shape} {image.dtype} in chunks {image.grid.chunks}"
