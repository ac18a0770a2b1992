"""PatchReader: patches of a store by their rows, for a loader that asks for batches."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
from fsspec.implementations.local import LocalFileSystem

from patchloom.answers import ask
from patchloom.errors import AccessError, StoreError
from patchloom.location import Location
from patchloom.retrying import RETRYING
from patchloom.store.schema import ArraySpec, shard_name
from patchloom.store.shards import ABSENT, decoder_into, index_of

__all__ = ["HELD", "PatchReader"]

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[Any]
Index = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]
Key = TypeVar("Key")
Value = TypeVar("Value")

HELD = 256 * 2**20
"""Bytes of encoded shards that a reader holds unless it is told otherwise."""
_GAP = 64 * 2**10
"""Ranges of a shard that lie closer than this are fetched as one."""
_FILES = 128
"""Files of local stores that stay open in a process: its readers share them."""
_FEWEST_FILES = 4
"""Of each reader."""
_INDICES, _FEWEST = 64 * 2**20, 64
"""Bytes of indices of shards that are remembered, and how many at least."""
_FETCHERS = 4
"""Whole shards that are fetched at a time."""
_WAY = "find it with `patchloom verify STORE --repair`, and run the job of the store again"


class PatchReader:
    """Reads and decodes the patches that it is asked for, and nothing else of a shard.

    A patch is what is decoded by itself, so each is decoded once however they are mixed. Ranges of
    a shard that lie together are one request, and those of a call are under way together. Where
    they lie apart, as the rest of the shard is needed later, too, all of it is fetched in the
    meantime and held, encoded. What does not fit the memory is read in ranges alone.

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
        self._local = isinstance(self._fs, LocalFileSystem)
        self._by_block = by_block
        self._memory = HELD if memory is None else memory
        self._lock = threading.Lock()
        most = max((16 * spec.rows_per_shard for spec in specs.values()), default=1)
        self._indices = _Recent[str, Index](lambda: max(_FEWEST, _INDICES // most))
        self._files = _Recent[str, "_File"](lambda: max(_FEWEST_FILES, _FILES // len(_OPEN)))
        if self._local:
            _OPEN.add(self)
        self._held: OrderedDict[str, Bytes] = OrderedDict()
        self._coming: dict[str, int] = {}
        self._pool: ThreadPoolExecutor | None = None
        self.n_requests = 0
        """Reads of objects or of ranges of them."""
        self.nbytes = 0
        """Bytes that were read."""

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
        shards, slots = np.divmod(rows, spec.rows_per_shard)
        distinct, which = np.unique(shards, return_inverse=True)
        names = [shard_name(spec, shard) for shard in distinct.tolist()]
        indices = self._indices_of(spec, names)
        spans = np.empty((len(rows), 2), np.uint64)
        for k, name in enumerate(names):
            mine = which == k
            spans[mine] = indices[name][slots[mine]]
        absent = spans[:, 0] == ABSENT
        if absent.any():
            raise self._broken(spec, int(rows[absent][0]), "it is not stored")
        begin, length = spans.T.astype(np.int64)
        places = np.lexsort((begin, which))
        pieces = which[places], begin[places], (begin + length)[places]
        decode = self._decode[spec.name]
        for place, data in zip(places.tolist(), self._fetched(indices, *pieces), strict=True):
            try:
                decode(data, out[place])
            except Exception as error:  # each codec has errors of its own
                raise self._broken(spec, int(rows[place]), f"{error}") from None
        return out

    def _broken(self, spec: ArraySpec, row: int, why: str) -> StoreError:
        return StoreError(
            f"each patch of a store decodes, but row {row} of {spec.name} of "
            f"{self._location.shown!r} does not ({why}); {_WAY}"
        )

    def _indices_of(self, spec: ArraySpec, names: list[str]) -> dict[str, Index]:
        """Where the rows of some shards lie, in their order; one request each, together."""
        known = {name: self._indices.get(name) for name in names}
        found = {name: index for name, index in known.items() if index is not None}
        new = [name for name in names if name not in found]
        n = 16 * spec.rows_per_shard + 4
        for name, data in zip(new, self._get([(name, -n, None) for name in new]), strict=True):
            try:
                found[name] = index_of(data, spec.rows_per_shard)
                self._indices.put(name, found[name])
            except ValueError as error:
                raise StoreError(
                    f"a shard ends with its index, but that of {name} of "
                    f"{self._location.shown!r} is broken ({error}); {_WAY}"
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
        found: Sequence[Any]
        if self._local:
            found = [self._caught(*one) for one in ranges]
        else:
            asked = [(self._location.inside(self._root, name), a, b) for name, a, b in ranges]
            found = RETRYING.each(lambda items: ask(self._fs, items), asked)
        data: list[Bytes] = []
        for answer, (name, _, _) in zip(found, ranges, strict=True):
            if isinstance(answer, Exception):
                raise AccessError(
                    f"what a store holds must be within reach, but {name} of "
                    f"{self._location.shown!r} is not: {self._location.describe(answer)}; mend "
                    "the access, and go on from the state of the loader"
                ) from answer
            if answer is None:
                raise StoreError(
                    f"a store has the shards that its manifest tells of, but {name} of "
                    f"{self._location.shown!r} is gone; {_WAY}"
                )
            data.append(answer if self._local else np.frombuffer(answer.data, np.uint8))
        self.n_requests += len(ranges)
        self.nbytes += sum(map(len, data))
        return data

    def _caught(self, name: str, start: int, stop: int | None) -> Bytes | Exception | None:
        try:
            file = self._files.get(name)
            if file is None:
                file = _File(self._location.inside(self._root, name))
                self._files.put(name, file)
            return file.read(start, stop)
        except FileNotFoundError:
            return None
        except OSError as error:
            return error


def _end_of(index: Index) -> int:
    """Bytes of a shard before its index."""
    ends = index[index[:, 0] != ABSENT].sum(1)
    return int(ends.max(initial=np.uint64(0)))


class _File:
    """A file of a local store: many threads read it at once, and it is closed with the last."""

    def __init__(self, path: str) -> None:
        self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._size = os.fstat(self._handle).st_size

    def read(self, start: int, stop: int | None) -> Bytes:
        """Bytes from `start`, which may count from the end, up to `stop`."""
        start = max(0, self._size + start) if start < 0 else start
        # Memory of NumPy's, which for a whole shard is a few large pages, not thousands.
        data = np.empty(max(0, (self._size if stop is None else stop) - start), np.uint8)
        n = 0
        while n < len(data) and (got := os.preadv(self._handle, [data[n:].data], start + n)):
            n += got
        return data[:n]

    def __del__(self) -> None:
        if (handle := getattr(self, "_handle", None)) is not None:
            os.close(handle)


_OPEN: WeakSet[PatchReader] = WeakSet()
"""Readers of local stores in this process."""


class _Recent(Generic[Key, Value]):
    """What was used last, up to a number."""

    def __init__(self, most: Callable[[], int]) -> None:
        self._most, self._lock = most, threading.Lock()
        self._found: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: Key, value: Value) -> None:
        with self._lock:
            self._found[key] = value
            most = self._most()
            while len(self._found) > most:
                self._found.popitem(last=False)
