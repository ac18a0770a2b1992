"""Sharing: decoded blocks that several legs of a plan need, read once by one process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from patchloom.image import Ints
from patchloom.planning.plans import Plan

__all__ = [
    "Share",
    "SharedBlocks",
    "Visit",
    "alone",
    "legs_from_here",
    "shared_blocks",
    "unshared",
    "visit_to",
]

Pixels = npt.NDArray[Any]
Key = tuple[int, str, int]
"""Position of an image, role of the array, block."""
Decode = Callable[[Ints], list[Pixels]]
Leg = tuple[int, list[int]]
"""Its number, and the shards to write of it."""


@dataclass
class _Entry:
    """A block that several legs need."""

    needs: set[int]
    """Legs that have not left it."""
    pixels: Pixels | None = None
    """None while a task reads it."""
    holders: int = 0
    """Tasks that use it, and count it as theirs."""
    kept_for: int | None = None
    """The leg that it is kept for, if no task holds it."""

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels."""
        return 0 if self.pixels is None else self.pixels.nbytes


@dataclass
class _Place:
    """Where a thread of this process is, or was last."""

    leg: int
    at_work: bool = True


class SharedBlocks:
    """Blocks that several legs need, in one process, over one run of one plan.

    While one task reads such a block, others that want it wait; who fails lets the next one
    try. A block that a task holds is part of that task's memory. One that no task holds is
    kept for the nearest leg that needs it, as long as everything kept fits into what tasks
    leave of their budget: ``n * memory - n_at_work * projected`` bytes, where n tasks at most
    worked at a time. Beyond that, blocks whose leg is farthest are forgotten, and read again.

    It changes how often a block is read, never what is written.

    Parameters
    ----------
    memory
        Bytes that a task may use.
    projected
        Bytes that it uses at most by itself.
    """

    def __init__(self, memory: int, projected: int) -> None:
        self._memory, self._projected = memory, projected
        self._changed = threading.Condition()
        self._entries: dict[Key, _Entry] = {}
        self._kept: dict[int, dict[Key, None]] = {}
        """Blocks that no task holds, by the leg that they are kept for."""
        self._places: list[_Place] = []
        self._done: set[int] = set()
        self.nbytes = 0
        """Bytes of the blocks that no task holds."""
        self.peak = 0
        """Most of them so far."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def capacity(self) -> int:
        """Bytes that may be kept now."""
        at_work = sum(place.at_work for place in self._places)
        return max(0, len(self._places) * self._memory - at_work * self._projected)

    def from_here(self, legs: Sequence[Leg]) -> Sequence[Leg]:
        """The legs of a task (ascending), from the end that is nearest to where this process is.

        What they share with the legs gone through before is then used while it is kept. Who is
        nowhere yet goes down: Dask begins with the last task.
        """
        with self._changed:
            places = [place.leg for place in self._places]
        ends = legs[0][0], legs[-1][0]
        first, last = (min((abs(end - at) for at in places), default=0) for end in ends)
        return legs if first < last else legs[::-1]

    @contextmanager
    def visit(self, leg: int) -> Iterator[Visit]:
        """A task goes through a leg; when it fails, nothing is kept any longer."""
        place = self._enter(leg)
        visit = Visit(self, leg)
        try:
            yield visit
        except BaseException:
            self._exit(place, visit, failed=True)
            raise
        self._exit(place, visit, failed=False)

    def _enter(self, leg: int) -> _Place:
        with self._changed:
            if leg in self._done:  # the plan is gone through once more: every leg is ahead again
                self._done.clear()
            idle = [place for place in self._places if not place.at_work]
            if not idle:
                self._places.append(place := _Place(leg))
                return place
            place = min(idle, key=lambda one: abs(leg - one.leg))
            place.leg, place.at_work = leg, True
            self._shrink()
            return place

    def _exit(self, place: _Place, visit: Visit, failed: bool) -> None:
        with self._changed:
            place.at_work = False
            if not failed:
                self._done.add(visit.leg)
            for key in [*visit.held]:
                self._leave(key, visit)
            # What was kept for this leg is kept for the next that needs it.
            entries = {key: self._entries[key] for key in self._kept.pop(visit.leg, {})}
            self.nbytes -= sum(entry.nbytes for entry in entries.values())
            for key, entry in entries.items():
                self._keep(key, entry)
            if failed:
                self._shrink(0)

    def load(
        self,
        visit: Visit,
        keys: Sequence[Key],
        needs: Sequence[set[int] | None],
        decode: Decode,
    ) -> list[Pixels]:
        """The pixels of some blocks; those that are shared are held by a visit from now on.

        Parameters
        ----------
        visit
            Whose.
        keys, needs
            The blocks, and the legs that need each; None if this one alone does.
        decode
            Reads those at some positions of `keys`.
        """
        found: dict[int, Pixels] = {}
        missing = list(range(len(keys)))
        while missing:
            # Nobody waits before all that was claimed is read: no two wait for one another.
            mine, missing = self._claim(visit, keys, needs, missing, found)
            if mine:
                self._read(visit, keys, needs, mine, decode, found)
        return [found[at] for at in range(len(keys))]

    def _claim(
        self,
        visit: Visit,
        keys: Sequence[Key],
        needs: Sequence[set[int] | None],
        wanted: Sequence[int],
        found: dict[int, Pixels],
    ) -> tuple[list[int], list[int]]:
        """Take what is here and claim what nobody reads; wait while there is neither."""
        with self._changed:
            while True:
                mine, others, before = [], [], len(found)
                for at in wanted:
                    legs, entry = needs[at], self._entries.get(keys[at])
                    if legs is None or entry is None:
                        if legs is not None:
                            self._entries[keys[at]] = _Entry(set(legs))
                        mine.append(at)
                    elif entry.pixels is None:
                        others.append(at)
                    else:
                        self._hold(keys[at], entry, visit)
                        found[at] = entry.pixels
                if mine or len(found) > before:
                    return mine, others
                self._changed.wait()

    def _read(
        self,
        visit: Visit,
        keys: Sequence[Key],
        needs: Sequence[set[int] | None],
        mine: Sequence[int],
        decode: Decode,
        found: dict[int, Pixels],
    ) -> None:
        """Read what was claimed, and tell; if it fails, others may try."""
        claimed = [at for at in mine if needs[at] is not None]
        try:
            found.update(zip(mine, decode(np.asarray(mine, np.int64)), strict=True))
            for at in claimed:
                found[at] = alone(found[at])
        except BaseException:
            with self._changed:
                for at in claimed:
                    del self._entries[keys[at]]
                self._changed.notify_all()
            raise
        with self._changed:
            for at in claimed:
                entry = self._entries[keys[at]]
                entry.pixels = found[at]
                self._hold(keys[at], entry, visit)
            self._changed.notify_all()

    def leave(self, visit: Visit, key: Key) -> None:
        """A visit needs a block no longer."""
        with self._changed:
            self._leave(key, visit)

    def _hold(self, key: Key, entry: _Entry, visit: Visit) -> None:
        if entry.kept_for is not None:
            del self._kept[entry.kept_for][key]
            entry.kept_for = None
            self.nbytes -= entry.nbytes
        if key not in visit.held:
            visit.held.add(key)
            entry.holders += 1

    def _leave(self, key: Key, visit: Visit) -> None:
        entry = self._entries[key]
        visit.held.remove(key)
        entry.holders -= 1
        entry.needs.discard(visit.leg)
        if not entry.holders:
            self._keep(key, entry)

    def _keep(self, key: Key, entry: _Entry) -> None:
        """Keep a block that no task holds for the nearest leg that needs it, if one does."""
        ahead = entry.needs - self._done
        if not ahead:
            del self._entries[key]
            return
        entry.kept_for = min(ahead, key=self._distance)
        self._kept.setdefault(entry.kept_for, {})[key] = None
        self.nbytes += entry.nbytes
        self._shrink()
        self.peak = max(self.peak, self.nbytes)

    def _distance(self, leg: int) -> int:
        """Legs between one and the nearest at which this process is: tasks go along, up or down."""
        return min(abs(leg - place.leg) for place in self._places)

    def _shrink(self, capacity: int | None = None) -> None:
        """Forget blocks, those of the farthest legs first, until the others fit."""
        capacity = self.capacity if capacity is None else capacity
        while self.nbytes > capacity:
            last = max(self._kept, key=self._distance)
            while self._kept[last] and self.nbytes > capacity:
                key, _ = self._kept[last].popitem()
                self.nbytes -= self._entries.pop(key).nbytes
            if not self._kept[last]:
                del self._kept[last]


@dataclass(eq=False)
class Visit:
    """A task at work on one leg."""

    blocks: SharedBlocks
    leg: int
    held: set[Key] = field(default_factory=set)


@dataclass(frozen=True)
class Share:
    """One array of one image, seen by one visit."""

    visit: Visit
    image: int
    role: str
    needs: Mapping[int, set[int]]
    """The legs that need each block, of the blocks that several need."""

    def load(self, blocks: Ints, decode: Decode) -> list[Pixels]:
        """Pixels of some blocks, decoded here only if nobody has them."""
        numbers = blocks.tolist()
        keys = [(self.image, self.role, block) for block in numbers]
        needs = [self.needs.get(block) for block in numbers]
        return self.visit.blocks.load(
            self.visit, keys, needs, lambda positions: decode(blocks[positions])
        )

    def leave(self, block: int) -> None:
        """The task needs a block no longer."""
        key = (self.image, self.role, block)
        if key in self.visit.held:
            self.visit.blocks.leave(self.visit, key)


def alone(pixels: Pixels) -> Pixels:
    """The same, keeping no larger buffer alive, for reading only."""
    root: Any = pixels
    while isinstance(root, np.ndarray) and root.base is not None:
        root = root.base
    nbytes = root.nbytes if isinstance(root, np.ndarray) else memoryview(root).nbytes
    found = pixels.copy() if nbytes > pixels.nbytes else pixels.view()
    found.flags.writeable = False
    return found


_SHARED: WeakKeyDictionary[Plan, SharedBlocks] = WeakKeyDictionary()
_LOCK = threading.Lock()
_OFF = threading.Event()


@contextmanager
def visit_to(
    plan: Plan, leg: int, *, normalized: Collection[str] = (), remote: bool = False
) -> Iterator[Visit | None]:
    """A task of this process at work on a leg; None where it shares no block.

    Tasks share that were handed this very plan, and what they share goes when the plan goes:
    with the graph of a run, or when Dask tells a worker to forget it. A process that is handed a
    copy with each task shares nothing.

    Parameters
    ----------
    plan
        The object that all tasks of a process were handed.
    leg
        Which of its legs.
    normalized
        Roles of the arrays that are written as float32.
    remote
        Whether they go to a store that is not local, and are held twice while they are sent.
    """
    if _OFF.is_set() or not plan.has_common_blocks:
        yield None
        return
    with shared_blocks(plan, normalized=normalized, remote=remote).visit(leg) as visit:
        yield visit


def legs_from_here(
    plan: Plan, shards: Sequence[int], *, normalized: Collection[str] = (), remote: bool = False
) -> Sequence[Leg]:
    """The legs that hold some shards (ascending), in the order in which this process best goes.

    Parameters
    ----------
    plan, normalized, remote
        As for `visit_to`.
    shards
        Those of a task that are to be made.
    """
    legs = plan.runs.legs_of(shards)
    if len(legs) < 2 or _OFF.is_set() or not plan.has_common_blocks:
        return legs
    return shared_blocks(plan, normalized=normalized, remote=remote).from_here(legs)


def shared_blocks(
    plan: Plan, *, normalized: Collection[str] = (), remote: bool = False
) -> SharedBlocks:
    """What this process shares over a plan."""
    projected = plan.peak_memory(normalized=normalized, remote=remote)
    with _LOCK:
        if (found := _SHARED.get(plan)) is None:
            found = _SHARED[plan] = SharedBlocks(plan.memory, projected)
        return found


@contextmanager
def unshared() -> Iterator[None]:
    """In this process every leg reads for itself, which is what a plan counts beforehand."""
    _OFF.set()
    try:
        yield
    finally:
        _OFF.clear()
