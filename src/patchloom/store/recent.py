"""Recent: what was used last, up to a number, for many threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Recent"]

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """What was used last, up to a number.

    Parameters
    ----------
    most
        Tells the number, whenever something is put.

    Examples
    --------
    >>> recent = Recent[str, int](lambda: 2)
    >>> for k, name in enumerate("abc"):
    ...     recent.put(name, k)
    >>> [recent.get(name) for name in "abc"]
    [None, 1, 2]
    """

    def __init__(self, most: Callable[[], int]) -> None:
        self._most, self._lock = most, threading.Lock()
        self._found: OrderedDict[Key, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: Key) -> Value | None:
        """What was put so, unless it was forgotten."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Remember it, and forget what was used longest ago, if there is too much."""
        with self._lock:
            self._found[key] = value
            most = self._most()
            while len(self._found) > most:
                self._found.popitem(last=False)
