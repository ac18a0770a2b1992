"""Selected images: part of another image, by axis, read out of its chunks."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.axes import Axes
from patchloom.coverage import Alignment
from patchloom.errors import AxesError
from patchloom.grid import ChunkGrid
from patchloom.image import ChunkReader, Image, Ints, Role, made_of
from patchloom.sources.arrays import ArraySource, regular_chunks
from patchloom.sources.derived import bare
from patchloom.sources.lazily import Sliceable
from patchloom.sources.picks import Pick, Stretch, regular_parts

__all__ = [
    "SelectedPyramid",
    "SelectedSource",
    "chunks_under",
    "follow",
    "resampled",
    "selected",
    "selected_again",
    "selection_document",
]

Pixels = npt.NDArray[Any]
_FETCH = 16 * 2**20
"""Bytes of the other image that are decoded together."""
_KEPT = 64 * 2**20
"""Bytes of decoded chunks that a reader keeps where several of its own lie in one."""

_Part = tuple[int, slice, slice | Ints]
"""A chunk of the other image along one axis, where its pixels go, and which they are."""


@dataclass(frozen=True)
class SelectedSource:
    """Part of an image: its chunks are cut out of the image's when they are read.

    Along each axis a chunk is what the selection takes of one chunk of the image, as long as
    that falls into equal parts; then each chunk of the image is decoded once for the one chunk of
    the selection that it serves. Where it does not (a crop that begins inside a chunk, a step that
    does not divide one), chunks lie across those of the image, and a reader keeps decoded
    ones for its next chunks.
    """

    image: Image
    """Without roles."""
    picks: tuple[Pick, ...]
    """One for each axis of the image."""

    @property
    def addressable(self) -> bool:
        """Whether a worker can read the image by itself."""
        return self.image.source.addressable

    def reader(self) -> ChunkReader:
        """A reader that counts the image's chunks."""
        return _SelectedReader(self)

    def without_pixels(self) -> SelectedSource:
        """A source that only a graph's blocks can serve."""
        return self.filled(self.image.source.without_pixels())

    def filled(self, source: Any) -> SelectedSource:
        """The same selection from the pixels of another source."""
        return replace(self, image=replace(self.image, source=source))

    def identity(self) -> dict[str, Any]:
        """What is taken of which array."""
        return {
            **made_of(self.image.source),
            "selected": {a: p.to_document() for a, p in self.by_axis.items()},
            "shape": list(self.image.shape),
        }

    def to_document(self) -> dict[str, Any]:
        """The image and what is taken of it."""
        return {
            "kind": "selected",
            "image": self.image.to_document(),
            "picks": [pick.to_document() for pick in self.picks],
        }

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], options: Mapping[str, Any]
    ) -> SelectedSource:
        """Inverse of `to_document`."""
        picks = tuple(Pick.from_document(pick) for pick in document["picks"])
        return cls(Image.from_document(document["image"], options), picks)

    def lazy(self, image: Image) -> Any:
        """The selection as Dask, in its chunks."""
        if self.addressable:
            import dask.array as da

            return da.from_array(
                Sliceable(image),
                chunks=image.shards or image.grid.chunks,
                inline_array=True,
                fancy=False,
            )
        return _taken(self.image.source.lazy(self.image), self.picks).rechunk(image.grid.chunks)

    @property
    def by_axis(self) -> dict[str, Pick]:
        """What is not taken whole, by axis of the image."""
        rows = zip(self.image.axes.names, self.picks, self.image.shape, strict=True)
        return {axis: pick for axis, pick, n in rows if not pick.is_whole(n)}

    @cached_property
    def parts(self) -> tuple[tuple[int, bool], ...]:
        """Extent of a chunk along each axis of the image, and whether it lies in one of its."""
        names, chunks = self.image.axes.names, self.image.grid.chunks
        return tuple(map(_chunk, names, self.picks, chunks))

    @property
    def shards(self) -> tuple[int, ...] | None:
        """What the selection takes of a stored object, where it falls into equal parts."""
        if self.image.shards is None:
            return None
        rows = zip(self.picks, self.image.shards, self.parts, strict=True)
        found = [(*regular_parts(p.indices, n), e, is_one) for p, n, (e, is_one) in rows]
        if not all(equal and is_one for _, equal, _, is_one in found):
            return None
        extents = [-(-n // e) * e for n, _, e, _ in found]
        return tuple(n for n, p in zip(extents, self.picks, strict=True) if not p.drops)

    def decodes(self, image: Image, blocks: Ints) -> int:
        """Chunks of the image under some distinct blocks of the selection, each once."""
        axes, layout = image.axes, image.layout
        group, flat = np.divmod(np.asarray(blocks, np.int64), layout.space.n_chunks)
        at = dict(zip(axes.sample, layout.samples.unflat(group).T, strict=True))
        at |= dict(zip(axes.spatial, layout.space.unflat(flat).T, strict=True))
        n, lows, highs = 1, [], []
        for axis, pick, (extent, is_one), chunk in zip(
            self.image.axes.names, self.picks, self.parts, self.image.grid.chunks, strict=True
        ):
            under = np.asarray(pick.indices, np.int64) // chunk
            if axis == "c":
                n = len(np.unique(under))
            elif not pick.drops:
                begin = at[axis] * extent
                last = np.minimum(begin + extent, len(under)) - 1
                # Where parts are chunks, which one it is says the part as well.
                lows.append(at[axis] if is_one else under[begin])
                highs.append(at[axis] if is_one else under[last])
        return n * len(chunks_under(np.stack(lows, -1), np.stack(highs, -1)))

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of one whole chunk of the image."""
        return self.image.chunk_nbytes

    @property
    def held_bytes(self) -> int:
        """What a reader holds besides the chunks that it gives."""
        whole = math.prod(self.image.shape) * self.image.dtype.itemsize
        kept = 0 if all(is_one for _, is_one in self.parts) else _KEPT
        inner = int(getattr(self.image.source, "held_bytes", 0))
        return min(kept, whole) + min(max(_FETCH, self.decoded_bytes), whole) + inner

    @cached_property
    def decoded_bytes(self) -> int:
        """Bytes of the image's chunks under one of the selection's, at most."""
        n = self.image.dtype.itemsize
        for (extent, is_one), pick, c in zip(
            self.parts, self.picks, self.image.grid.chunks, strict=True
        ):
            indices = pick.indices
            n *= c if is_one else (int(extent * _step(indices, c)) // c + 2) * c
        return n


def chunks_under(low: Ints, high: Ints) -> Ints:
    """Distinct chunks of some boxes of chunks, from `low` to `high`, both included: [n, ndim]."""
    widest = (high - low).max(0, initial=0) + 1
    found = []
    for step in np.ndindex(*widest.tolist()):
        there = low + np.asarray(step)
        found.append(there[(there <= high).all(-1)])
    rows = np.concatenate(found)
    counts = (rows.max(0, initial=0) + 1).tolist()
    flat = np.unique(np.ravel_multi_index([*rows.T], counts))
    return np.stack(np.unravel_index(flat, counts), -1).astype(np.int64)


def _chunk(axis: str, pick: Pick, extent: int) -> tuple[int, bool]:
    """Extent of a selection's chunk along an axis, and whether each lies in one of the image's."""
    part, is_one = regular_parts(pick.indices, extent)
    if is_one:
        return part, True
    if axis == "c":
        # A patch takes all channels: they are put together once.
        return len(pick), False
    return min(len(pick), max(1, int(extent / _step(pick.indices, extent)))), False


def _step(indices: range | tuple[int, ...] | Stretch, extent: int) -> Fraction:
    """Pixels of the other array for one of the selection's; of a list, as far as a chunk."""
    if isinstance(indices, range):
        return Fraction(indices.step)
    return 1 / indices.scale if isinstance(indices, Stretch) else Fraction(extent)


def resampled(image: Image, role: Role) -> Role:
    """A role brought to the pixels of its image: under each, the one its middle lies in.

    Parameters
    ----------
    image, role
        The image, and what lies over it at any scale.
    """
    other = role.image
    scale, offset = dict(_by_axis(role, "scale")), dict(_by_axis(role, "offset"))
    picks = []
    for axis, n in zip(other.axes.names, other.shape, strict=True):
        own = range(n)
        if axis not in scale:
            picks.append(Pick(own))
            continue
        extent = image.shape[image.axes.names.index(axis)]
        same = scale[axis] == 1 and offset[axis] == 0 and n == extent
        picks.append(Pick(own if same else Stretch(extent, n, scale[axis], offset[axis])))
    shown: dict[str, Any] = {
        name: {a: v for a, v in getattr(image, name).items() if a in role.axes}
        for name in ("spacing", "origin", "unit")
    }
    n_axes = len(role.axes)
    alike = Alignment((Fraction(1),) * n_axes, (Fraction(0),) * n_axes)
    made = replace(other, pyramid=None, **shown, **_array(other, tuple(picks)))
    return Role(made, alike, role.axes)


def selected(image: Image, picks: Mapping[str, Pick]) -> Image:
    """Part of an image, with the same part of its roles.

    Parameters
    ----------
    image
        With or without roles.
    picks
        What is taken along axes of the image; others stay as they are.

    Raises
    ------
    AxesError
        If no image is left, or a role cannot follow: of other pixels along an axis that is
        taken in steps, or with other sample axes.
    """
    names = image.axes.names
    every = tuple(picks.get(a, Pick(range(n))) for a, n in zip(names, image.shape, strict=True))
    rows = zip(names, every, image.shape, strict=True)
    some = {a: p for a, p, n in rows if not p.is_whole(n)}
    if not some:
        return image
    for axis, pick in some.items():
        if axis in image.axes.spatial and not isinstance(pick.indices, range):
            raise AxesError(
                "indices along an axis of space ascend by equal steps, got "
                f"{[*pick.indices]} along {axis} of {image.id!r}; take a slice, or make the axis "
                f"one of samples: sample={axis!r}"
            )
    axes = Axes("".join(a for a, p in zip(names, every, strict=True) if not p.drops))
    told = {a: some.get(a, Pick(range(1))) for a in image.spacing}
    kept = {a: p.indices for a, p in told.items() if not p.drops and isinstance(p.indices, range)}
    found = replace(
        image,
        axes=axes,
        spacing={a: image.spacing[a] * i.step for a, i in kept.items()},
        origin={a: image.origin.get(a, 0.0) + i.start * image.spacing[a] for a, i in kept.items()},
        unit={a: u for a, u in image.unit.items() if a in kept},
        channels=_channels(image, some.get("c")),
        pyramid=None if image.pyramid is None else SelectedPyramid(bare_with(image), some),
        **_array(image, every),
    )
    own = {a: p for a, p in some.items() if a != "c"}
    for name, role in image.roles.items():
        found = found.with_role(name, follow(role, image, own, name))
    return found


def selection_document(image: Image) -> dict[str, Any]:
    """What an image is of which axes of its array, for JSON; nothing if it is the whole of one."""
    source = image.source
    if not isinstance(source, SelectedSource):
        return {}
    picks = {axis: pick.to_document() for axis, pick in source.by_axis.items()}
    return {"selection": {"axes": source.image.axes.names, "picks": picks}}


def selected_again(image: Image, picks: Mapping[str, Any]) -> Image:
    """The part of an image that `selection_document` told."""
    return selected(image, {axis: Pick.from_document(pick) for axis, pick in picks.items()})


def bare_with(image: Image) -> Image:
    """An image without roles, but with its coarser levels."""
    return replace(bare(image), pyramid=image.pyramid)


def _channels(image: Image, pick: Pick | None) -> tuple[str, ...]:
    if pick is None or not image.channels:
        return image.channels
    return () if pick.drops else tuple(image.channels[k] for k in pick.indices)


def _array(image: Image, picks: tuple[Pick, ...]) -> dict[str, Any]:
    """Shape, grid, shards and source of a selection."""
    shape = tuple(len(p) for p in picks if not p.drops)
    source = image.source
    stretched = any(isinstance(p.indices, Stretch) for p in picks)
    if isinstance(source, ArraySource) and source.array is not None and not stretched:
        array = _taken(source.array, picks)
        names = [a for a, p in zip(image.axes.names, picks, strict=True) if not p.drops]
        chunks = regular_chunks(array, [k for k, a in enumerate(names) if a == "c"])
        array = array.rechunk(chunks) if hasattr(array, "dask") else array
        grid = ChunkGrid(shape, chunks)
        return {"shape": shape, "grid": grid, "shards": None, "source": ArraySource(array, chunks)}
    inner = bare(image)
    if isinstance(source, SelectedSource):
        # One selection of another is one: axes that are gone stay as they are.
        mine = iter(picks)
        picks = tuple(p if p.drops else p.of(next(mine)) for p in source.picks)
        inner = source.image
    own = SelectedSource(inner, picks)
    extents = tuple(e for (e, _), p in zip(own.parts, picks, strict=True) if not p.drops)
    return {"shape": shape, "grid": ChunkGrid(shape, extents), "shards": own.shards, "source": own}


def _taken(array: Any, picks: Sequence[Pick]) -> Any:
    """Part of a NumPy or Dask array."""
    where: list[slice | int] = []
    for pick in picks:
        i = pick.indices
        if pick.drops:
            where.append(i[0])
        else:
            where.append(slice(i.start, i.stop, i.step) if isinstance(i, range) else slice(None))
    array = array[tuple(where)]
    left = [p for p in picks if not p.drops]
    for axis, pick in enumerate(left):
        if not isinstance(pick.indices, range):
            array = array[(slice(None),) * axis + (np.asarray(pick.indices),)]
    return array


def follow(role: Role, image: Image, picks: Mapping[str, Pick], name: str) -> Role:
    """The same part of what lies over an image; `picks` are of the image."""
    other, own = role.image, {}
    scale, offset = dict(_by_axis(role, "scale")), dict(_by_axis(role, "offset"))
    for axis, pick in picks.items():
        if axis in image.axes.sample:
            own.update(_follow_samples(role, image, axis, pick, name))
        elif axis in role.axes:
            n = other.shape[other.axes.names.index(axis)]
            s, o = scale[axis], offset[axis]
            indices = pick.indices
            assert isinstance(indices, range)
            if s == 1 and o == 0 and n == image.shape[image.axes.names.index(axis)]:
                own[axis] = pick
            elif pick.drops:
                # The pixel that the middle of the image's lies in.
                at = math.floor((indices[0] + Fraction(1, 2) - o) / s)
                at = min(max(at, 0), n - 1)
                own[axis] = Pick(range(at, at + 1), drops=True)
            elif indices.step == 1:
                low = min(max(math.floor((indices.start - o) / s), 0), n - 1)
                high = max(low + 1, min(n, math.ceil((indices.stop - o) / s)))
                own[axis] = Pick(range(low, high))
                offset[axis] = o + low * s - indices.start
            else:
                raise AxesError(
                    f"a step along {axis} takes {name} of the image's own pixels with it, but "
                    f"those of {image.id!r} are {float(s):g} x as wide; take a slice without a step"
                )
            if pick.drops:
                del scale[axis], offset[axis]
    alignment = Alignment(tuple(scale.values()), tuple(offset.values()))
    return Role(selected(other, own), alignment, "".join(scale))


def _by_axis(role: Role, name: str) -> Iterator[tuple[str, Fraction]]:
    return zip(role.axes, getattr(role.alignment, name), strict=True)


def _follow_samples(role: Role, image: Image, axis: str, pick: Pick, name: str) -> dict[str, Pick]:
    """What is taken along a sample axis of a role."""
    other, n = role.image, image.shape[image.axes.names.index(axis)]
    extent = other.shape[other.axes.names.index(axis)] if axis in other.axes.names else None
    if other.layout.n_samples == 1:
        return {} if extent is None or not pick.drops else {axis: Pick(range(1), drops=True)}
    if extent != n:
        raise AxesError(
            f"{name} are selected along the sample axes of their image ({image.axes.sample!r}), "
            f"got {other.axes.sample!r} for {image.id!r}; name them alike, for example by "
            "sample="
        )
    return {axis: pick}


@dataclass(frozen=True, eq=False)
class SelectedPyramid:
    """The coarser levels of a selection: the same part of each level of the image."""

    image: Image
    """With its pyramid."""
    picks: Mapping[str, Pick]

    def levels(self, image: Image) -> tuple[Role, ...]:
        """The levels coarser than an opened one, fine to coarse; none that steps leave out."""
        channels = {a: p for a, p in self.picks.items() if a == "c"}
        own = {a: p for a, p in self.picks.items() if a != "c"}
        found = []
        for role in self.image.levels:
            try:
                level = follow(role, self.image, own, "level")
                found.append(replace(level, image=selected(level.image, channels)))
            except AxesError:
                continue
        return tuple(found)

    def to_document(self) -> dict[str, Any]:
        """The image and what is taken of it."""
        return {
            "kind": "selected",
            "image": self.image.to_document(),
            "picks": {axis: pick.to_document() for axis, pick in self.picks.items()},
        }

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], options: Mapping[str, Any]
    ) -> SelectedPyramid:
        """Inverse of `to_document`."""
        picks = {a: Pick.from_document(p) for a, p in document["picks"].items()}
        return cls(Image.from_document(document["image"], options), picks)


class _SelectedReader:
    def __init__(self, source: SelectedSource) -> None:
        self._source = source
        self._reader = source.image.source.reader()
        self.reads = self._reader.reads
        self._keeps = not all(is_one for _, is_one in source.parts)
        self._kept: OrderedDict[tuple[int, ...], Pixels] = OrderedDict()
        self._along: dict[tuple[int, int], list[_Part]] = {}

    def read(self, chunks: Ints) -> list[Pixels]:
        rows = np.asarray(chunks).tolist()
        together = max(1, _FETCH // max(1, self._source.decoded_bytes))
        found: list[Pixels] = []
        for begin in range(0, len(rows), together):
            found += self._some(rows[begin : begin + together])
        return found

    def _some(self, rows: Sequence[Sequence[int]]) -> list[Pixels]:
        parts = [[*itertools.product(*self._parts(row))] for row in rows]
        needed = dict.fromkeys(tuple(k for k, _, _ in part) for some in parts for part in some)
        missing = [key for key in needed if key not in self._kept]
        read = self._reader.read(np.array(missing, np.int64)) if missing else []
        there = {**self._kept, **dict(zip(missing, read, strict=True))}
        found = [self._joined(some, there) for some in parts]
        if self._keeps:
            for key in needed:
                self._kept[key] = there[key]
                self._kept.move_to_end(key)
            over = sum(pixels.nbytes for pixels in self._kept.values()) - _KEPT
            while over > 0:
                over -= self._kept.popitem(last=False)[1].nbytes
        return found

    def _joined(
        self, parts: Sequence[tuple[_Part, ...]], there: Mapping[tuple[int, ...], Pixels]
    ) -> Pixels:
        """One chunk of the selection."""
        picks = self._source.picks
        extents = [max(part[k][1].stop for part in parts) for k in range(len(picks))]
        shape = [n for n, pick in zip(extents, picks, strict=True) if not pick.drops]
        first = there[tuple(k for k, _, _ in parts[0])]
        in_order = len(parts) == 1 and all(isinstance(of, slice) for _, _, of in parts[0])
        if in_order and first.size == math.prod(extents):
            return first.reshape(shape)
        # A copy: a view would hold all that was decoded.
        out = np.empty(extents, first.dtype)
        for part in parts:
            pixels = there[tuple(k for k, _, _ in part)]
            for axis, (_, _, of) in enumerate(part):
                pixels = pixels[(slice(None),) * axis + (of,)]
            out[tuple(into for _, into, _ in part)] = pixels
        return out.reshape(shape)

    def _parts(self, row: Sequence[int]) -> Iterator[list[_Part]]:
        """Along each axis of the image, the chunks under one chunk of the selection."""
        index = iter(row)
        for axis, pick in enumerate(self._source.picks):
            at = 0 if pick.drops else next(index)
            if (axis, at) not in self._along:
                extent, chunk = self._source.parts[axis][0], self._source.image.grid.chunks[axis]
                indices = pick.indices[at * extent : (at + 1) * extent]
                self._along[axis, at] = [*_parts_along(indices, chunk)]
            yield self._along[axis, at]


def _parts_along(indices: Sequence[int] | Ints, chunk: int) -> Iterator[_Part]:
    """Stretches of indices that lie in one chunk, after one another."""
    key, inside = np.divmod(np.asarray(indices, np.int64), chunk)
    begins = np.append(np.flatnonzero(np.diff(key, prepend=-1)), len(key)).tolist()
    for begin, stop in itertools.pairwise(begins):
        some = inside[begin:stop]
        steps = np.unique(np.diff(some)).tolist()
        of: slice | Ints = some
        if len(steps) < 2 and (step := (steps or [1])[0]) > 0:
            # A slice copies faster.
            of = slice(int(some[0]), int(some[-1]) + 1, step)
        yield int(key[begin]), slice(begin, stop), of
