"""PatchReader: patches of a store by their rows, for a loader that asks for batches."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from fsspec.implementations.local import LocalFileSystem

from patchloom.answers import ask
from patchloom.errors import StoreError
from patchloom.location import Location
from patchloom.retrying import RETRYING
from patchloom.store.recent import Recent
from patchloom.store.schema import ArraySpec, shard_name
from patchloom.store.shard_files import WAY, ShardFiles, unread
from patchloom.store.shards import ABSENT, decoder_into, index_of

__all__ = ["HELD", "PatchReader"]

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[Any]
Index = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

HELD = 256 * 2**20
"""Bytes of encoded shards that a reader holds unless it is told otherwise."""
_SLACK = 64 * 2**10
"""Bytes that an encoded patch may have besides twice its pixels."""
_GAP = 64 * 2**10
"""Ranges of a shard that lie closer than this are fetched as one."""
_INDICES, _FEWEST = 64 * 2**20, 64
"""Bytes of indices of shards that are remembered, and how many at least."""
_FETCHERS = 4
"""Whole shards that are fetched at a time."""


class PatchReader:
    """Reads and decodes the patches that it is asked for, and nothing else of a shard.

    A patch is what is decoded by itself, so each is decoded once however they are mixed. Ranges of
    a shard that lie together are one request, and those of a call are under way together. Where
    they lie apart, as the rest of the shard is needed later, too, all of it is fetched in the
    meantime and held, encoded: of a local store by the system, see `ShardFiles`. What does not fit
    the memory is read in ranges alone.

    Parameters
    ----------
    location, specs
        The store and its arrays.
    rows
        From positions in the manifest to rows of the store.
    memory
        Bytes of encoded shards that are held.
    by_block
        Whether the rest of a shard will be asked for soon, and then no more for long: it makes
        room for others. Else what is held stays.
    """

    def __init__(
        self,
        location: Location,
        specs: Mapping[str, ArraySpec],
        rows: Callable[[Ints], Ints],
        memory: int | None = None,
        *,
        by_block: bool = False,
    ) -> None:
        self._location, self._specs, self._rows = location, specs, rows
        self._decode = {name: decoder_into(spec) for name, spec in specs.items()}
        self._fs, self._root = location.open()
        self._by_block = by_block
        self._memory = HELD if memory is None else memory
        self._files: ShardFiles | None = None
        if isinstance(self._fs, LocalFileSystem):
            self._files = ShardFiles(location, self._root, self._memory, by_block=by_block)
        self._lock = threading.Lock()
        most = max((16 * spec.rows_per_shard for spec in specs.values()), default=1)
        self._indices = Recent[str, Index](lambda: max(_FEWEST, _INDICES // most))
        self._held: OrderedDict[str, Bytes] = OrderedDict()
        self._coming: dict[str, int] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._n_requests = self._nbytes = 0

    @property
    def n_requests(self) -> int:
        """Reads of objects or of ranges of them."""
        return self._n_requests + (self._files.n_requests if self._files is not None else 0)

    @property
    def nbytes(self) -> int:
        """Bytes that were read."""
        return self._nbytes + (self._files.nbytes if self._files is not None else 0)

    def read(self, positions: Ints, arrays: Sequence[str]) -> dict[str, Pixels]:
        """Some patches, in the order asked for: of each array [n, channels, (z,) y, x].

        Raises
        ------
        StoreError
            If one does not decode.
        AccessError
            If the store cannot be reached.
        """
        rows = self._rows(np.asarray(positions, np.int64))
        return {array: self._read(self._specs[array], rows) for array in arrays}

    def _read(self, spec: ArraySpec, rows: Ints) -> Pixels:
        out: Pixels = np.empty((len(rows), *spec.patch_shape), spec.dtype)
        order = np.argsort(rows, kind="stable")
        shards, slots = np.divmod(rows[order], spec.rows_per_shard)
        first = np.flatnonzero(np.diff(shards, prepend=-1)).tolist()
        names = [shard_name(spec, shard) for shard in shards[first].tolist()]
        indices = self._indices_of(spec, names)
        bounds = [*first, len(rows)]
        spans = np.empty((len(rows), 2), np.uint64)
        for name, a, b in zip(names, bounds, bounds[1:], strict=False):
            spans[a:b] = indices[name][slots[a:b]]
        absent = spans[:, 0] == ABSENT
        if absent.any():
            raise self._broken(spec, int(rows[order][absent][0]), "it is not stored")
        begin, length = spans.T.astype(np.int64)
        # Codecs add next to nothing, and a lying index shall take no memory.
        lies = (begin < 0) | (length < 0) | (length > 2 * spec.patch_bytes + _SLACK)
        if lies.any():
            told = f"its index tells of {spans[lies][0, 1]:,} bytes"
            raise self._broken(spec, int(rows[order][lies][0]), told)
        which = np.repeat(np.arange(len(names)), np.diff(bounds))
        places = np.lexsort((begin, which))
        pieces = which[places], begin[places], (begin + length)[places]
        fetched = (
            self._fetched(indices, *pieces)
            if self._files is None
            else self._files.pieces(names, *pieces)
        )
        decode, size, memory = self._decode[spec.name], spec.patch_bytes, _bytes_of(out)
        for place, data in zip(order[places].tolist(), fetched, strict=True):
            try:
                decode(data, memory[place * size : (place + 1) * size])
            except Exception as error:  # each codec has errors of its own
                raise self._broken(spec, int(rows[place]), f"{error}") from None
        return out

    def _broken(self, spec: ArraySpec, row: int, why: str) -> StoreError:
        return StoreError(
            f"each patch of a store decodes, but row {row} of {spec.name} of "
            f"{self._location.shown!r} does not ({why}); {WAY}"
        )

    def _indices_of(self, spec: ArraySpec, names: list[str]) -> dict[str, Index]:
        """Where the rows of some shards lie, in their order; one request each, together."""
        known = {name: self._indices.get(name) for name in names}
        found = {name: index for name, index in known.items() if index is not None}
        new = [name for name in names if name not in found]
        n = 16 * spec.rows_per_shard + 4
        tails = (
            self._get([(name, -n, None) for name in new])
            if self._files is None
            else [self._files.tail(name, n) for name in new]
        )
        for name, data in zip(new, tails, strict=True):
            try:
                found[name] = index_of(data, spec.rows_per_shard)
                self._indices.put(name, found[name])
            except ValueError as error:
                raise StoreError(
                    f"a shard ends with its index, but that of {name} of "
                    f"{self._location.shown!r} is broken ({error}); {WAY}"
                ) from None
        return {name: found[name] for name in names}

    def _fetched(
        self, indices: Mapping[str, Index], which: Ints, begin: Ints, end: Ints
    ) -> Iterator[Bytes]:
        """The bytes of pieces of some objects, which ascend by object and first byte.

        Parameters
        ----------
        indices
            Of each object, by name.
        which, begin, end
            Of each piece the number of its object, its first byte, and its last byte + 1: int64[n].
        """
        names = [*indices]
        with self._lock:
            held = {k: self._held[name] for k, name in enumerate(names) if name in self._held}
            for k in held:
                self._held.move_to_end(names[k])
        # Of each object that is held its bytes; then those of each range that is fetched.
        sources = [*held.values()]
        source, first = np.zeros_like(which), np.zeros_like(begin)
        for at, k in enumerate(held):
            source[which == k] = at
        loose = np.flatnonzero(~np.isin(which, [*held]))
        if len(loose):
            of, low, high = which[loose], begin[loose], end[loose]
            apart = (np.diff(of) > 0) | (low[1:] - high[:-1] > _GAP)
            cuts = np.append(0, np.flatnonzero(apart) + 1)
            owners, stops = of[cuts].tolist(), np.maximum.reduceat(high, cuts)
            touched = sorted({*owners})
            if len(owners) > len(touched):
                self._hold({names[k]: _end_of(indices[names[k]]) for k in touched})
            ranges = zip(owners, low[cuts].tolist(), stops.tolist(), strict=True)
            number = np.cumsum(np.append(False, apart))
            source[loose], first[loose] = len(sources) + number, low[cuts][number]
            sources += self._get([(names[k], a, b) for k, a, b in ranges])
        for k, a, b in zip(
            source.tolist(), (begin - first).tolist(), (end - first).tolist(), strict=True
        ):
            yield sources[k][a:b]

    def _hold(self, ends: dict[str, int]) -> None:
        """Begin to fetch whole objects, of so many bytes, as far as they fit the memory."""
        with self._lock:
            new = {k: v for k, v in ends.items() if k not in self._coming and k not in self._held}
            room = self._memory - sum(self._coming.values())
            held = {name: len(data) for name, data in self._held.items()}
            # Of blocks, what is asked for now is what will be: all of it, or none.
            if self._by_block and room < sum(new.values()) + sum(held.get(k, 0) for k in ends):
                return
            room -= 0 if self._by_block else sum(held.values())
            for name, end in new.items():
                room -= end
                if room < 0:
                    return
                self._coming[name] = end
                self._make_room()
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(_FETCHERS, "patchloom-shard")
                self._pool.submit(self._fetch_whole, name, end)

    def _fetch_whole(self, name: str, end: int) -> None:
        try:
            [data] = self._get([(name, 0, end)])
        except Exception:  # whoever needs it asks for its ranges, and is told
            data = None
        with self._lock:
            self._coming.pop(name)
            if data is not None:
                self._held[name] = data
                self._make_room()

    def _make_room(self) -> None:
        """Give up what was used longest ago, so that what comes fits besides what is held."""
        n = sum(self._coming.values()) + sum(map(len, self._held.values()))
        while self._held and n > self._memory:
            n -= len(self._held.popitem(last=False)[1])

    def _get(self, ranges: Sequence[tuple[str, int, int | None]]) -> list[Bytes]:
        """Ranges of objects that exist, fetched together."""
        if not ranges:
            return []
        asked = [(self._location.inside(self._root, name), a, b) for name, a, b in ranges]
        found: Sequence[Any] = RETRYING.each(lambda items: ask(self._fs, items), asked)
        data: list[Bytes] = []
        for answer, (name, _, _) in zip(found, ranges, strict=True):
            if answer is None or isinstance(answer, Exception):
                raise unread(self._location, name, answer) from answer
            data.append(np.frombuffer(answer.data, np.uint8))
        self._n_requests += len(ranges)
        self._nbytes += sum(map(len, data))
        return data


def _bytes_of(pixels: Pixels) -> memoryview:
    found: memoryview = pixels.reshape(-1).view(np.uint8).data
    return found


def _end_of(index: Index) -> int:
    """Bytes of a shard before its index."""
    ends = index[index[:, 0] != ABSENT].sum(1)
    return int(ends.max(initial=np.uint64(0)))
