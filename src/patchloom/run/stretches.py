"""Stretches: neighbouring tasks go to one worker of a cluster, where they share blocks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import dask

from patchloom.run.graph import Key

__all__ = ["Stretches", "stretched"]

_WHERE = {"workers", "allow_other_workers", "resources"}
"""Annotations that say which workers may take a task."""


@dataclass(frozen=True)
class Stretches:
    """Which worker each task of a graph is best at: one stretch of tasks a worker."""

    first: tuple[Any, ...]
    """First key of each stretch, ascending."""
    workers: tuple[str, ...]
    """Their addresses."""

    @classmethod
    def of(cls, keys: list[Any], threads: dict[str, int]) -> Stretches:
        """Stretches as long as workers have threads.

        >>> keys = [("write", f"{k}") for k in range(8)]
        >>> Stretches.of(keys, {"a": 1, "b": 3}).first
        (('write', '0'), ('write', '2'))
        """
        total, upto, first, workers = sum(threads.values()), 0, [], []
        for worker, n in sorted(threads.items()):
            begin, end = (len(keys) * k // total for k in (upto, upto + n))
            if begin < end:
                first.append(keys[begin])
                workers.append(worker)
            upto += n
        return cls(tuple(first), tuple(workers))

    def __call__(self, key: Any) -> list[str]:
        """The worker of one key; none for what is no task of ours."""
        if not isinstance(key, tuple) or key[0] != self.first[0][0]:
            return []
        return [self.workers[bisect_right(self.first, key) - 1]]


def stretched(client: Any, keys: Sequence[Key], *, neighbours: bool) -> AbstractContextManager[Any]:
    """Within it, the client deals some tasks out in stretches, where that saves reads.

    It is a wish: an idle worker takes what others have not begun, and what a lost worker should
    have done goes to any other. Who annotates which workers are to take them is left alone.
    """
    told = _WHERE & dask.get_annotations().keys()
    threads = client.nthreads() if neighbours and not told else {}
    if len(threads) < 2:
        return nullcontext()
    workers = Stretches.of(sorted(keys), threads)
    found: AbstractContextManager[Any] = dask.annotate(workers=workers, allow_other_workers=True)
    return found
