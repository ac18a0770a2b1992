"""Held: what a process has decoded, bounded in bytes.

What was let go makes room first, then what was used least recently.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Counts", "Held"]

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass
class Counts:
    """What was asked for, and what of it was there."""

    hits: int = 0
    """Blocks that were held when a read needed them."""
    misses: int = 0
    """Blocks that were made for a read."""
    peak: int = 0
    """Most bytes that were held, or reserved for what is being made."""


class Held(Generic[Key, Value]):
    """Values by key in at most so many bytes, for several threads.

    Who needs a value that is not there claims it, so that no two make the same; room is reserved
    before it is made. One value that is larger than the memory is made all the same, alone.

    Parameters
    ----------
    memory
        Bytes.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.counts = Counts()
        self._changed = threading.Condition()
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._gone: dict[Key, None] = {}
        self._claimed: set[Key] = set()
        self._held = self._reserved = 0

    def get(self, keys: Iterable[Key]) -> dict[Key, Value]:
        """Those of some values that are held."""
        with self._changed:
            found = {key: self._values[key][0] for key in keys if key in self._values}
            for key in found:
                self._values.move_to_end(key)
                self._gone.pop(key, None)
            self.counts.hits += len(found)
            return found

    def let_go(self, keys: Iterable[Key]) -> None:
        """Say of some values that they make room first; one that is asked for again does not."""
        with self._changed:
            self._gone.update((key, None) for key in keys if key in self._values)

    def claim(self, keys: Sequence[Key], most: int) -> list[Key]:
        """At most so many of some keys whose values are neither held nor being made.

        They are the caller's to make. Waits while all are being made by others; if one is held by
        now, the answer may be empty.
        """
        with self._changed:
            while True:
                free = [key for key in keys if key not in self._claimed]
                mine = [key for key in free if key not in self._values][:most]
                if mine or free:
                    self._claimed.update(mine)
                    return mine
                self._changed.wait()

    @contextmanager
    def making(
        self, keys: Sequence[Key], nbytes: int
    ) -> Iterator[Callable[[Key, Value, int], None]]:
        """Room for the values of some claimed keys while they are made, and how to hand them in.

        Parameters
        ----------
        keys
            From `claim`; given back at the end, made or not.
        nbytes
            Bytes that they take, at most.
        """
        try:
            self._reserve(nbytes)
            try:
                yield self._put
            finally:
                with self._changed:
                    self._reserved -= nbytes
        finally:
            with self._changed:
                self._claimed.difference_update(keys)
                self._shrink(self.memory)
                self._changed.notify_all()

    def _put(self, key: Key, value: Value, nbytes: int) -> None:
        """Hold a value: from the room that was reserved for it."""
        with self._changed:
            self.counts.misses += 1
            self._values[key] = value, nbytes
            self._held += nbytes

    def _reserve(self, nbytes: int) -> None:
        with self._changed:
            while self._reserved and self._reserved + nbytes > self.memory:
                self._changed.wait()
            self._shrink(self.memory - self._reserved - nbytes)
            self._reserved += nbytes
            self.counts.peak = max(self.counts.peak, self._held + self._reserved)

    def _shrink(self, nbytes: int) -> None:
        while self._values and self._held > nbytes:
            key = next(iter(self._gone or self._values))
            self._gone.pop(key, None)
            self._held -= self._values.pop(key)[1]
