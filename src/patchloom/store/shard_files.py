"""ShardFiles: shards of a local store, which the page cache of the system holds for us."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from patchloom.errors import AccessError, StoreError
from patchloom.location import Location
from patchloom.store.recent import Recent

__all__ = ["WAY", "ShardFiles", "unread"]

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

WAY = "find it with `patchloom verify STORE --repair`, and run the job of the store again"
"""Out of a store that is broken."""
_FILES = 128
"""Files of local stores that stay open in a process: its readers share them."""
_FEWEST_FILES = 4
"""Of each reader."""
_GAP = 4096
"""Bytes that are read in vain rather than by a call of their own."""
_TOGETHER = 256 * 2**10
"""Bytes that are read by a call where patches are smaller: they stay in a processor's cache."""
_ADVICE = 128 * 2**10
"""Bytes that the system is asked for at a time: of more it may read no more than its read-ahead."""


def unread(location: Location, name: str, error: Exception | None) -> AccessError | StoreError:
    """Why an object of a store is not to be had: it is gone, or out of reach."""
    if error is None:
        return StoreError(
            f"a store has the shards that its manifest tells of, but {name} of "
            f"{location.shown!r} is gone; {WAY}"
        )
    return AccessError(
        f"what a store holds must be within reach, but {name} of {location.shown!r} is not: "
        f"{location.describe(error)}; mend the access, and go on from the state of the loader"
    )


class ShardFiles:
    """Reads pieces of files one after another into the same memory, and holds none of them.

    Where pieces of a file lie apart, as the rest of it is needed later, too, the system is asked
    to read it ahead: a thread does that, for a disk may make it wait.

    Parameters
    ----------
    location, root
        The store, and its path in the file system.
    memory
        Bytes of files that the system is asked for and that may not have been used yet.
    by_block
        Whether the rest of a file will be asked for soon, and then no more for long: it makes
        room for others.
    """

    def __init__(self, location: Location, root: str, memory: int, *, by_block: bool) -> None:
        self._location, self._root = location, root
        self._memory, self._by_block = memory, by_block
        self._files = Recent[str, "_File"](lambda: max(_FEWEST_FILES, _FILES // len(_OPEN)))
        _OPEN.add(self)
        self._lock = threading.Lock()
        self._asked: OrderedDict[str, int] = OrderedDict()
        self._room = memory
        self._pool: ThreadPoolExecutor | None = None
        self.n_requests = 0
        """Reads."""
        self.nbytes = 0
        """Bytes that were read."""

    def tail(self, name: str, n: int) -> Bytes:
        """The last bytes of a file, fewer if it is shorter.

        Raises
        ------
        StoreError
            If it is gone.
        AccessError
            If it cannot be read.
        """
        file = self._open(name)
        data = np.empty(min(n, file.size), np.uint8)
        try:
            got = file.read(data.data, file.size - len(data))
        except OSError as error:
            raise unread(self._location, name, error) from error
        self.n_requests += 1
        self.nbytes += got
        return data[:got]

    def pieces(self, names: Sequence[str], which: Ints, begin: Ints, end: Ints) -> Iterator[Bytes]:
        """Pieces of some files, which ascend by file and first byte.

        Each is good until the next one is asked for. Of a file that ends before, it is shorter.

        Parameters
        ----------
        names
            Of the files.
        which, begin, end
            Of each piece the number of its file, its first byte, and its last byte + 1: int64[n].

        Raises
        ------
        StoreError
            If a file is gone.
        AccessError
            If one cannot be read.
        """
        same, gap = which[1:] == which[:-1], begin[1:] - end[:-1]
        if (same & (gap > _GAP)).any():
            self._read_ahead(names)
        near = [*(same & (gap <= _GAP)).tolist(), False]
        most = max(_TOGETHER, int((end - begin).max(initial=0)))
        memory = np.empty(most, np.uint8)
        view = memory.data
        of, low, high = which.tolist(), begin.tolist(), end.tolist()
        owner, last, n_requests, nbytes = -1, -1, 0, 0
        try:
            while last + 1 < len(of):
                k = last = last + 1
                if of[k] != owner:
                    owner = of[k]
                    file = self._open(names[owner])
                first, stop = low[k], high[k]
                while near[last] and high[last + 1] - first <= most:
                    last += 1
                    stop = max(stop, high[last])
                got = file.read(view[: stop - first], first)
                n_requests += 1
                nbytes += got
                for j in range(k, last + 1):
                    yield memory[low[j] - first : min(high[j] - first, got)]
        except AccessError:
            raise
        except OSError as error:
            raise unread(self._location, names[owner], error) from error
        finally:
            self.n_requests += n_requests
            self.nbytes += nbytes

    def _open(self, name: str) -> _File:
        file = self._files.get(name)
        if file is None:
            try:
                file = _File(self._location.inside(self._root, name))
            except FileNotFoundError:
                raise unread(self._location, name, None) from None
            except OSError as error:
                raise unread(self._location, name, error) from error
            self._files.put(name, file)
        return file

    def _read_ahead(self, names: Sequence[str]) -> None:
        """Ask the system for whole files, as far as they fit the memory."""
        if not hasattr(os, "posix_fadvise"):  # not on every system
            return
        with self._lock:
            new = [name for name in names if name not in self._asked]
            for name in names if self._by_block else ():
                if name in self._asked:
                    self._asked.move_to_end(name)
        if not new or self._room < 0:
            return
        files = {name: self._open(name) for name in new}
        with self._lock:
            coming = {k: file for k, file in files.items() if k not in self._asked}
            if self._by_block:
                # What is asked for now is what will be: all of it, or none.
                needed = sum(file.size for file in coming.values())
                if needed + sum(self._asked.get(name, 0) for name in names) > self._memory:
                    return
            for name, file in coming.items():
                self._room -= file.size
                while self._by_block and self._room < 0:
                    self._room += self._asked.popitem(last=False)[1]
                if self._room < 0:
                    return
                self._asked[name] = file.size
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(1, "patchloom-ahead")
                self._pool.submit(file.ask)


class _File:
    """A file: many threads read it at once, and it is closed with the last."""

    def __init__(self, path: str) -> None:
        self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.size = os.fstat(self._handle).st_size

    def read(self, view: memoryview, start: int) -> int:
        """Fill some memory from a byte on, as far as there are any; how many."""
        n = os.preadv(self._handle, [view], start)
        while 0 < n < len(view) and (more := os.preadv(self._handle, [view[n:]], start + n)):
            n += more
        return n

    def ask(self) -> None:
        """Have the system read all of it, without waiting for it."""
        with contextlib.suppress(OSError):  # it is only a wish
            for start in range(0, self.size, _ADVICE):
                os.posix_fadvise(self._handle, start, _ADVICE, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        if (handle := getattr(self, "_handle", None)) is not None:
            os.close(handle)


_OPEN: WeakSet[Any] = WeakSet()
"""Those of this process."""
