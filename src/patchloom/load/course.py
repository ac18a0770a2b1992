"""Course: which batches an epoch has, and how they are made; all that a loader is but its place."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from patchloom.errors import ConfigError
from patchloom.load.batching import Batching
from patchloom.load.order import Ordering
from patchloom.load.reader import Ints
from patchloom.load.recipe import Recipe
from patchloom.randomness import key_of

__all__ = ["Course", "default_threads"]

_MOST_THREADS = 8
_TOGETHER = 32
"""Single patches that are read together, at most."""
_PATCHES = (
    "take the same stores, merged in the same order, and the same part of them; of stream() the "
    "same plan, memory= and window="
)
_ORDER = "make the loader with the same shuffle=, seed=, window=, streams= and order="
_TOLD = {"n": _PATCHES, "patches": _PATCHES, "seed": _ORDER, "rule": _ORDER, "order": _ORDER}
"""The way out, by what differs."""
_ASKED = 4096
"""Visits whose positions are asked for at once, at least a batch."""

Places = tuple[Ints, Ints]
"""Visits of a step, and their positions: int64[k] each."""


def default_threads() -> int:
    """Threads that read and decode, unless it is told otherwise: the processors, up to 8."""
    try:
        n = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        n = os.cpu_count() or 1
    return min(_MOST_THREADS, n)


@dataclass(frozen=True, eq=False)
class Course:
    """Batches of an order, on one of several ranks; makes them, ahead if it has threads."""

    recipe: Recipe
    order: Ordering
    batch_size: int | None
    """Patches of a batch; None: each is handed out by itself."""
    rank: int = 0
    world: int = 1
    drop_last: bool = False
    uneven: str = "repeat"
    threads: int = 1
    """That read, decode and transform; 0: it is done when a batch is asked for."""
    memory: int = 0
    """Bytes of batches that may be made ahead; at least one is."""

    def batching(self, start: int = 0) -> Batching:
        """The steps from some visit of an epoch on."""
        return Batching(
            self.order.n,
            1 if self.batch_size is None else self.batch_size,
            start=start,
            rank=self.rank,
            world=self.world,
            drop_last=self.drop_last,
            uneven=self.uneven,
        )

    def among(self, rank: int, world: int, threads: int | None = None) -> Course:
        """The same on another rank."""
        threads = self.threads if threads is None else threads
        return replace(self, rank=rank, world=world, threads=threads)

    def places(self, epoch: int, batching: Batching, steps: range) -> Iterator[Places]:
        """What some steps of an epoch visit, step by step: visits and their positions.

        The order is asked for those of many steps at once: a call of it costs as much as the
        answer of some hundred visits.
        """
        each = max(1, _ASKED // batching.batch_size)
        for k in range(0, len(steps), each):
            visits = [batching.batch(step) for step in steps[k : k + each]]
            found = self.order.at(epoch, np.concatenate(visits))
            bounds = np.cumsum([len(some) for some in visits])[:-1]
            yield from zip(visits, np.split(found, bounds), strict=True)

    def make(self, epoch: int, places: Sequence[Places]) -> list[Any]:
        """What is handed out in some steps of an epoch."""
        once = not getattr(self.order, "replacement", True)
        if self.batch_size is None:
            visits, positions = (np.concatenate(some) for some in zip(*places, strict=True))
            places = [(visits, positions)]
        turns = [np.zeros_like(visits) if once else visits for visits, _ in places]
        made = self.recipe.make if self.batch_size is not None else self.recipe.make_each
        found = [made(at, epoch, t) for (_, at), t in zip(places, turns, strict=True)]
        return found if self.batch_size is not None else found[0]

    def run(self, epoch: int, batching: Batching, steps: range) -> Iterator[Any]:
        """What is handed out in some steps of an epoch, in their order.

        Raises
        ------
        Exception
            What went wrong with a batch, when it is its turn; the threads are gone then.
        """
        rest, each, ahead = self.places(epoch, batching, steps), 1, 1
        if not self.threads:
            while part := [*islice(rest, each)]:
                found = self.make(epoch, part)
                each = self.together(found)
                yield from found
            return
        pool = ThreadPoolExecutor(self.threads, "patchloom-load")
        made: deque[Future[list[Any]]] = deque()
        try:
            while True:
                while len(made) <= ahead and (part := [*islice(rest, each)]):
                    made.append(pool.submit(self.make, epoch, part))
                if not made:
                    return
                found = made.popleft().result()
                each, ahead = self.together(found), self.ahead(found)
                yield from found
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def together(self, made: Sequence[Any]) -> int:
        """How many steps like some that were made are one piece of work: single patches are read
        together, as many as their memory holds twice.
        """
        if self.batch_size is not None:
            return 1
        one = max(1, _bytes_of(made) // max(1, len(made)))
        return max(1, min(_TOGETHER, self.memory // (2 * one)))

    def ahead(self, made: Sequence[Any]) -> int:
        """How many pieces of such steps may be made before they are asked for."""
        piece = self.together(made) * _bytes_of(made) // max(1, len(made))
        return max(1, min(2 * self.threads, self.memory // max(1, piece)))

    def state(self, epoch: int, visited: int) -> dict[str, int]:
        """A place in the order, as plain numbers, with what tells the order from others."""
        return {"epoch": epoch, "visited": visited, **self._identity}

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse a place in another order.

        Raises
        ------
        ConfigError
            If the state is of other patches, another seed or another kind of order.
        """
        for name, mine in self._identity.items():
            # A state of an earlier version does not say of which patches it is.
            if name in ("patches", "rule") and name not in state:
                continue
            if state.get(name) != mine:
                raise ConfigError(
                    "a state belongs to one order of some patches, but this loader has another one "
                    f"({name} is {mine}, the state has {state.get(name)}): {_TOLD[name]}"
                )

    @property
    def _identity(self) -> dict[str, int]:
        n = self.order.n
        some = self.order.at(0, np.linspace(0, max(0, n - 1), min(n, 16)).astype(np.int64))
        # 53 bits: JSON of any reader keeps them.
        return {
            "n": n,
            "patches": key_of("patches", self.recipe.patches.identity) >> 11,
            "seed": self.recipe.seed,
            "rule": key_of("rule", getattr(self.order, "identity", None)) >> 11,
            "order": key_of("order", n, *some.tolist()) >> 11,
        }


def _bytes_of(made: Any) -> int:
    if isinstance(made, Mapping):
        return sum(map(_bytes_of, made.values()))
    if isinstance(made, list | tuple):
        return sum(map(_bytes_of, made))
    return int(getattr(made, "nbytes", 0))
