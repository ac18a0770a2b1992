"""LiveReader: patches cut from the sources when they are asked for, chunks decoded about once."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ChunkError, ConfigError, PatchSizeError, SourceChangedError
from patchloom.image import Image, Ints
from patchloom.live.held import Held
from patchloom.live.opened import Opened, is_in_memory
from patchloom.live.pieces import Pieces
from patchloom.live.places import Places
from patchloom.live.stretches import Stretches
from patchloom.live.wake import Stretch, Wake
from patchloom.normalization import Normalization
from patchloom.planning.incidence import Cut
from patchloom.planning.lenses import around
from patchloom.planning.runs import fetch_bytes
from patchloom.run.blocks import batch_blocks, decoded
from patchloom.run.sharing import alone
from patchloom.store.schema import role_of

__all__ = ["LiveReader"]

Pixels = npt.NDArray[Any]
_Name = tuple[int, str, int]
"""Position of an image, role of the array, block."""
_AT_ONCE = 16
"""Held blocks that are looked up together."""
_THREADS = 8
"""Arrays that one read asks a store for at once, where stores are not local."""


@dataclass(frozen=True, eq=False)
class _Some:
    """Patches of one image that are read together."""

    image: int
    which: Ints
    """Their places in the answer: int64[n]."""
    places: Places
    """Of these patches."""


class LiveReader:
    """Reads patches of a plan by position; what it decoded it holds, in bounded memory.

    Parameters
    ----------
    stretches
        Whose positions are read, of their plan's patches.
    memory
        Bytes of decoded chunks, and of places of patches, that it holds.
    scaling
        What arrays are scaled with, by role.
    goes_along
        Whether bands are gone along, so that what lies behind is held no longer.
    """

    def __init__(
        self,
        stretches: Stretches,
        memory: int,
        scaling: dict[str, Normalization] | None = None,
        *,
        goes_along: bool = False,
    ) -> None:
        plan = stretches.plan
        self._plan, self._bounds, self._scaling = plan, stretches.bounds, scaling or {}
        self._trails = stretches.trails
        self._bands = stretches.bands
        self._wake = Wake(plan.images, stretches.bands, plan.cut) if goes_along else None
        self._opened = Opened(memory // 16)
        self._columns = Held[int, Places](memory // 8)
        self._held = Held[_Name, Pixels](memory - memory // 8 - memory // 16)
        self._fetch = fetch_bytes(memory)
        self._seen: dict[tuple[int, str], npt.NDArray[np.bool_]] = {}

    def read(self, positions: Ints, arrays: Sequence[str]) -> dict[str, Pixels]:
        """Some patches, in the order asked for.

        Parameters
        ----------
        positions
            int64[n], in any order.
        arrays
            ``"images"``, ``"labels"`` and so on.

        Returns
        -------
        dict
            Of each array [n, channels, (z,) y, x].

        Raises
        ------
        ConfigError
            If there is no such array or position.
        PatchSizeError
            If the patches are of several sizes, under ``edge="shrink"``.
        ChunkError
            If a chunk cannot be read, naming it and the image.
        """
        positions = np.asarray(positions, np.int64)
        roles = {name: role_of(name) for name in arrays}
        self._check(positions, roles)
        touched = dict[int, Stretch]()
        groups = [*self._grouped(positions, touched)]
        size = self._size(groups)
        out = {name: self._empty(role, len(positions), size) for name, role in roles.items()}
        jobs = [(some, role, out[name]) for some in groups for name, role in roles.items()]
        with self._along(touched.values()):
            self._do(jobs)
        return out

    def report(self) -> dict[str, Any]:
        """What it did so far.

        Returns
        -------
        dict
            ``chunk_reads`` and ``chunks_needed``: decodes of the images' chunks, and distinct ones
            that patches needed; ``role_reads`` and ``roles_needed`` of all other arrays;
            ``read_amplification``, reads over needed ones of the images; ``hits`` and ``misses``
            of what is held, its ``peak_memory`` in bytes; ``bytes_read``, ``requests``.
        """
        reads, needed = self._opened.reads(), {"image": 0, "role": 0}
        for (image, role), seen in list(self._seen.items()):
            array = self._plan.images[image].cut_arrays[role]
            needed["image" if role == "image" else "role"] += array.decodes(np.flatnonzero(seen))
        images = reads["image"].chunks if "image" in reads else 0
        return {
            "chunk_reads": images,
            "chunks_needed": needed["image"],
            "read_amplification": images / needed["image"] if needed["image"] else 1.0,
            "role_reads": sum(r.chunks for role, r in reads.items() if role != "image"),
            "roles_needed": needed["role"],
            "hits": self._held.counts.hits,
            "misses": self._held.counts.misses,
            "peak_memory": self._held.counts.peak + self._columns.counts.peak,
            "bytes_read": sum(r.nbytes for r in reads.values()),
            "requests": sum(r.requests for r in reads.values()),
        }

    # -- what is asked ------------------------------------------------------------------

    def _check(self, positions: Ints, roles: dict[str, str]) -> None:
        n, known = self._plan.n_patches, [*self._plan.images[0].cut_arrays] if roles else []
        unknown = sorted(name for name, role in roles.items() if role not in known)
        if unknown:
            raise ConfigError(
                f"arrays= are what patches are cut from, got {unknown}; there is {known}"
            )
        if len(positions) and not 0 <= positions.min() <= positions.max() < n:
            raise ConfigError(
                f"a position is in range({n}), got {int(positions.min())} to {int(positions.max())}"
            )

    def _grouped(self, positions: Ints, touched: dict[int, Stretch]) -> Iterator[_Some]:
        """The patches of some positions, image by image, and the stretches of bands they are of."""
        stretch = np.searchsorted(self._bounds, positions, side="right") - 1
        order = np.argsort(stretch, kind="stable")
        cuts = np.flatnonzero(np.diff(stretch[order])) + 1
        found: dict[int, list[tuple[Ints, Places]]] = {}
        for which in np.split(order, cuts) if len(order) else []:
            k = int(stretch[which[0]])
            whole = self._places(k)
            if self._wake is not None and 0 in self._bands[whole.image].side:
                touched[k] = self._stretch(k, whole)
            at = positions[which] - self._bounds[k]
            found.setdefault(whole.image, []).append((which, whole.take(at)))
        for image, parts in found.items():
            which = np.concatenate([one for one, _ in parts])
            yield _Some(image, which, Places.join([places for _, places in parts]))

    def _stretch(self, k: int, places: Places) -> Stretch:
        """One stretch, among those of its band."""
        begin, end = self._bounds[k : k + 2].tolist()
        band = int(np.searchsorted(self._trails, begin, side="right")) - 1
        first, stop = self._trails[band : band + 2].tolist()
        sample = int(places.sample[0])
        return Stretch(band, k, places.image, sample, places.chunk, begin == first, end == stop)

    def _places(self, k: int) -> Places:
        """The patches of one stretch."""
        low, high = self._bounds[k : k + 2].tolist()
        while True:
            if found := self._columns.get([k]):
                return found[k]
            if self._columns.claim([k], 1):
                with self._columns.making([k], (high - low) * self._row_bytes) as put:
                    made = Places.of(self._plan, low, high)
                    put(k, made, made.nbytes)
                    return made

    def _size(self, groups: Sequence[_Some]) -> tuple[int, ...]:
        """Extent of the patches."""
        if not groups:
            return self._plan.cut.size
        sizes = np.unique(np.concatenate([np.atleast_2d(s.places.size) for s in groups]), axis=0)
        if len(sizes) > 1:
            raise PatchSizeError(
                f"patches of one batch have one size, got {sizes.tolist()[:4]} from "
                "edge='shrink'; read them one by one (batch_size=1), or plan with edge='pad'"
            )
        return tuple(sizes[0].tolist())

    def _empty(self, role: str, n: int, size: tuple[int, ...]) -> Pixels:
        array = self._plan.images[0].cut_arrays[role]
        dtype = np.dtype(np.float32) if role in self._scaling else array.dtype
        return np.empty((n, array.layout.n_channels, *size), dtype)

    @contextmanager
    def _along(self, touched: Iterable[Stretch]) -> Iterator[None]:
        """While some stretches are read, what they need is not let go."""
        if self._wake is None:
            yield
            return
        read, gone = self._wake.enter(touched)
        self._held.let_go(gone)
        try:
            yield
        finally:
            self._held.let_go(self._wake.leave(read))

    # -- pixels -------------------------------------------------------------------------

    def _do(self, jobs: Sequence[tuple[_Some, str, Pixels]]) -> None:
        """Cut patches, several arrays at once where they are not here."""
        if self._pool is None or len(jobs) < 2:
            for job in jobs:
                self._fill(*job)
        else:
            # All of them, also if one fails: none is left behind at work.
            done = [self._pool.submit(self._fill, *job) for job in jobs]
            wait(done)
            for one in done:
                one.result()

    def _fill(self, some: _Some, role: str, out: Pixels) -> None:
        """Cut some patches of one image out of one of its arrays."""
        image = self._plan.images[some.image]
        array, places = image.cut_arrays[role], some.places
        size = np.atleast_2d(places.size)[0]
        cut = Cut(tuple(size.tolist()), self._plan.cut.context, self._plan.cut.padding)
        corner, cut = around(image, role, places.corner, cut)
        scaling = self._scaling.get(role)
        into = out
        if scaling is not None:
            into = np.empty((len(some.which), *out.shape[1:]), array.dtype)
        rows = some.which if scaling is None else np.arange(len(some.which))
        try:
            self._cut(some.image, role, array, places.sample, corner, cut, into, rows)
        except (ChunkError, SourceChangedError) as error:
            raise type(error)(
                f"{error} (image {image.id!r}, {role}; {len(corner):,} patches of this batch are "
                "of it)"
            ) from error
        if scaling is not None:
            out[some.which] = scaling.apply(into, image.id)

    def _cut(
        self,
        index: int,
        role: str,
        array: Image,
        sample: Ints,
        corner: Ints,
        cut: Cut,
        out: Pixels,
        rows: Ints,
    ) -> None:
        """Put patches of one array, which begin at some pixels, into some rows."""
        layout = array.layout
        sample = layout.own_samples(sample)
        extent = np.asarray(layout.space.shape, np.int64)
        stop = corner + np.asarray(cut.size, np.int64)
        low, high = np.maximum(corner, 0), np.minimum(stop, extent)
        beyond = np.flatnonzero(((corner < 0) | (stop > extent)).any(-1))
        boxes = [out[row] for row in rows.tolist()]
        regions: dict[int, Pixels] = {}
        if len(beyond):
            spans = cut.span(corner[beyond], extent)
            if cut.padding != "constant":
                low[beyond], high[beyond] = spans
            for k in beyond.tolist():
                if cut.padding == "constant":
                    boxes[k][...] = 0
                    at = low[k] - corner[k]
                    inside = tuple(map(slice, at, at + np.maximum(0, high[k] - low[k])))
                    boxes[k] = boxes[k][(slice(None), *inside)]
                else:
                    shape = (layout.n_channels, *(high[k] - low[k]).tolist())
                    boxes[k] = regions[k] = np.empty(shape, array.dtype)
        self._copy((index, role), array, Pieces.of(layout, sample, low, high), boxes)
        for k, region in regions.items():
            rows_of = zip(corner[k].tolist(), stop[k].tolist(), extent.tolist(), low[k].tolist(),
                          strict=True)  # fmt: skip
            place = [cut.source(a, b, n) - first for a, b, n, first in rows_of]
            out[rows[k]] = region[np.ix_(np.arange(layout.n_channels), *place)]

    def _copy(
        self, key: tuple[int, str], array: Image, pieces: Pieces, boxes: Sequence[Pixels]
    ) -> None:
        """Copy all pieces: of blocks that are held first, then of those that are decoded."""
        self._note(key, array, pieces.block)
        waiting = {(*key, block): k for k, block in enumerate(pieces.block.tolist())}
        while waiting:
            names = [*waiting]
            # A few at a time: what another thread pushes out meanwhile is not kept alive for long.
            for low in range(0, len(names), _AT_ONCE):
                for name, block in self._held.get(names[low : low + _AT_ONCE]).items():
                    pieces.copy(waiting.pop(name), block, boxes)
            if not waiting:
                return
            mine = self._held.claim([*waiting], batch_blocks(array, self._fetch))
            for name, block in self._made(mine, key, array):
                pieces.copy(waiting.pop(name), block, boxes)

    def _made(
        self, names: Sequence[_Name], key: tuple[int, str], array: Image
    ) -> list[tuple[_Name, Pixels]]:
        """Decode some blocks, and hold them."""
        if not names:
            return []
        numbers = np.array([number for _, _, number in names], np.int64)
        nbytes = len(names) * math.prod(array.layout.block_shape()) * array.dtype.itemsize
        here = is_in_memory(array)
        with (
            self._held.making(names, 0 if here else nbytes) as put,
            self._opened.reading(key, array) as reader,
        ):
            found = decoded(array, reader, numbers)
            if not here:
                found = [alone(block) for block in found]
            for name, block in zip(names, found, strict=True):
                put(name, block, 0 if here and block.base is not None else block.nbytes)
        return list(zip(names, found, strict=True))

    def _note(self, key: tuple[int, str], array: Image, blocks: Ints) -> None:
        """Remember which blocks were needed."""
        seen = self._seen.get(key)
        if seen is None:
            n = array.layout.samples.n_chunks * array.layout.space.n_chunks
            seen = self._seen.setdefault(key, np.zeros(n, np.bool_))
        seen[blocks] = True

    @cached_property
    def _row_bytes(self) -> int:
        """Bytes of the place of a patch, at most."""
        return 8 * (1 + 2 * len(self._plan.cut.size))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor | None:
        """Threads that ask stores for several arrays at once; None where all are local."""
        uris = {a.uri for image in self._plan.images for a in image.cut_arrays.values()}
        if not any("://" in uri and not uri.startswith(("file:", "memory:")) for uri in uris):
            return None
        return ThreadPoolExecutor(min(_THREADS, 4 * (os.cpu_count() or 1)))
