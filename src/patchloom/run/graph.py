"""From a plan to a Dask graph: one task a run, O(tasks), no large object inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from dask.highlevelgraph import HighLevelGraph
from dask.optimization import cull

from patchloom.image import Image, Ints
from patchloom.planning.plans import Plan
from patchloom.planning.rows import union
from patchloom.run.blocks import Supplied, stored_chunks
from patchloom.run.cutting import ArrayKey, Job, write_run
from patchloom.run.faults import noting
from patchloom.run.showing import Look, show_run

__all__ = ["Graph", "Key", "light", "run_graph", "survey_graph"]

Key = tuple[str, int | str]
"""The key of a task: what it does, with a token, and its number."""


@dataclass(frozen=True)
class Graph:
    """Tasks and the keys of their results, in order; made part by part, when they are asked for."""

    given: Any
    """Tasks that stand already: all of them, or what those that `make` makes depend on."""
    keys: Sequence[Key]
    shared: Mapping[str, Any] = field(default_factory=dict)
    """Values that every task takes, by key: sent once, however many parts there are."""
    neighbours: bool = False
    """Whether tasks that follow one another read blocks in common."""
    make: Callable[[Sequence[Key]], dict[Any, Any]] | None = None
    """Makes the tasks of some keys, each with the keys of its blocks last."""

    def part(self, keys: Sequence[Key]) -> dict[Any, Any]:
        """The tasks of some keys and all that they depend on, but for what is shared."""
        made = {} if self.make is None else self.make(keys)
        needs = {block for task in made.values() for block in task[-1]} if made else keys
        below = cull(self._given, list(needs))[0] if needs else {}
        return {key: task for key, task in {**below, **made}.items() if key not in self.shared}

    @property
    def dsk(self) -> dict[Any, Any]:
        """The whole graph."""
        return {**self.shared, **self.part(self.keys)}

    @property
    def weight(self) -> float:
        """Tasks for each result, those that it depends on included, on average."""
        n = len(self.keys)
        return (len(self._given) + (n if self.make is not None else 0)) / n if n else 1.0

    @cached_property
    def _given(self) -> dict[Any, Any]:
        return dict(self.given)


def run_graph(
    plan: Plan,
    job: Job,
    shards: Sequence[int] | Ints,
    token: str,
    *,
    write: Callable[..., Any] = write_run,
) -> Graph:
    """The graph that writes some shards of a plan.

    The plan and the job are each one value of the graph; a task holds the numbers of its
    shards. Arrays that only a Dask graph can read keep their own tasks, and each of ours
    depends on the blocks that it needs.

    Parameters
    ----------
    plan, job
        What to write.
    shards
        Numbers of the shards to write, ascending.
    token
        Makes the keys unique.
    write
        What a task does with the plan, the job, its shards and the blocks handed to it.
    """
    name = f"patchloom-write-{token}"
    plan_key, job_key = f"patchloom-plan-{token}", f"patchloom-job-{token}"
    shared: dict[str, Any] = {
        plan_key: plan.with_images([light(i) for i in plan.images]),
        job_key: job,
    }
    lazies = _lazy_arrays(plan, job)
    wanted = np.asarray(shards, np.int64)
    bounds = np.searchsorted(wanted, plan.runs.bounds)
    tasks = np.flatnonzero(np.diff(bounds)).tolist()
    width = len(str(plan.n_tasks))

    def make(keys: Sequence[Key]) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        # A block that two parts need may be made twice: each part counts it.
        counted: set[Any] = set()
        for key in keys:
            task = int(key[1])
            mine = _numbers(wanted[bounds[task] : bounds[task + 1]])
            # What is not asked for is not gone through.
            ids, blocks = (
                _supplies(plan, plan.toured(mine), lazies, counted) if lazies else _NOTHING
            )
            made[key] = (_write, write, plan_key, job_key, mine, ids, name, blocks)
        return made

    given = HighLevelGraph.from_collections(name, {}, dependencies=list(lazies.values()))
    # Dask goes by the text of keys: neighbours, which share blocks, follow one another.
    keys = [(name, f"{task:0{width}}") for task in tasks]
    return Graph(given, keys, shared, plan.has_common_blocks and not lazies, make)


def _numbers(shards: Ints) -> Sequence[int]:
    """Numbers of shards: a range, which is small, where they follow one another."""
    first, last = int(shards[0]), int(shards[-1])
    return range(first, last + 1) if last - first + 1 == len(shards) else tuple(shards.tolist())


def survey_graph(
    plan: Plan, look: Look, tasks: Sequence[Mapping[int, tuple[int, int]]], token: str
) -> Graph:
    """The graph of a survey of contents: each task looks at some pieces (rows by number)."""
    name, plan_key = f"patchloom-score-{token}", f"patchloom-plan-{token}"
    shared: dict[str, Any] = {plan_key: plan.with_images([light(i) for i in plan.images])}
    layer: dict[Any, Any] = {**shared}
    lazies = _lazy_arrays(plan, look)
    keys: list[tuple[str, int]] = []
    counted: set[Any] = set()
    for task, pieces in enumerate(tasks):
        rows = [plan.sequence.ranks_within(*piece) for piece in pieces.values()] if lazies else []
        columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
        ids, dependencies = _supplies(plan, union(*columns), lazies, counted) if rows else _NOTHING
        # Each task gets only its own names.
        mine = replace(look, names={k: look.names[k] for k in pieces if k in look.names})
        layer[name, task] = (_score, plan_key, _Wrapped(mine, dict(pieces)), ids, dependencies)
        keys.append((name, task))
    graph = HighLevelGraph.from_collections(name, layer, dependencies=list(lazies.values()))
    return Graph(graph, keys, shared)


@dataclass(frozen=True)
class _Wrapped:
    """What a task of a survey does: an opaque value, so that Dask does not look inside."""

    look: Look
    pieces: dict[int, tuple[int, int]]


def _score(plan: Plan, work: _Wrapped, ids: Any, blocks: list[Any]) -> Any:
    return show_run(plan, work.look, work.pieces, _supplied(ids, blocks))


def _write(
    write: Callable[..., Any],
    plan: Plan,
    job: Job,
    shards: Sequence[int],
    ids: Any,
    name: str,
    blocks: Any,
) -> Any:
    with noting(name):
        return write(plan, job, shards, _supplied(ids, blocks))


@dataclass(frozen=True)
class _Ids:
    """Which chunks a task is handed: an opaque value, so that Dask does not look inside."""

    arrays: tuple[ArrayKey, ...]
    chunks: tuple[tuple[tuple[int, ...], ...], ...]
    fresh: tuple[frozenset[tuple[int, ...]], ...]
    """Those that no earlier task is handed: this one counts them."""


_NOTHING: tuple[_Ids, list[Any]] = _Ids((), (), ()), []
"""What a task is handed whose arrays it reads by itself."""


def _supplied(ids: _Ids, blocks: Sequence[Any]) -> Mapping[ArrayKey, Supplied]:
    found: dict[ArrayKey, Supplied] = {}
    at = 0
    for key, chunks, fresh in zip(ids.arrays, ids.chunks, ids.fresh, strict=True):
        mine = blocks[at : at + len(chunks)]
        at += len(chunks)
        pixels = {c: np.asarray(b) for c, b in zip(chunks, mine, strict=True)}
        found[key] = Supplied(pixels, fresh)
    return found


def light(image: Image) -> Image:
    """The image without the pixels that Dask hands over anyway."""
    for name, role in image.roles.items():
        if name != "mask" and not role.image.source.addressable:
            bare = replace(role.image, source=role.image.source.without_pixels())
            image = image.with_role(name, replace(role, image=bare))
    if image.source.addressable:
        return image
    return replace(image, source=image.source.without_pixels())


def _lazy_arrays(plan: Plan, job: Job | Look) -> dict[ArrayKey, Any]:
    """The Dask arrays of everything that a worker cannot read by itself."""
    return {
        (index, name): array.source.lazy(array)
        for index, image in enumerate(plan.images)
        for name, array in job.arrays(image).items()
        if not array.source.addressable
    }


def _supplies(
    plan: Plan,
    ranks: tuple[Ints, Ints],
    lazies: Mapping[ArrayKey, Any],
    counted: set[Any],
) -> tuple[_Ids, list[Any]]:
    """The chunks that patches of a task need of the lazy arrays, and their keys.

    Parameters
    ----------
    plan, ranks
        The patches of some ranges [low, high) of ranks.
    lazies
        The arrays.
    counted
        Chunks that other tasks are handed; these are added.
    """
    arrays: list[ArrayKey] = []
    chunks: list[tuple[tuple[int, ...], ...]] = []
    fresh: list[frozenset[tuple[int, ...]]] = []
    keys: list[Any] = []
    for name in dict.fromkeys(name for _, name in lazies):
        for index, blocks in plan.needs.of_ranks(*ranks, name):
            lazy = lazies.get((index, name))
            if lazy is None:
                continue
            array = plan.images[index].cut_arrays[name]
            rows = [tuple(row) for row in stored_chunks(array, blocks).tolist()]
            arrays.append((index, name))
            chunks.append(tuple(rows))
            # Dask computes a block once however many tasks need it: the first one counts it.
            # Equal arrays share their blocks there; here each image counts its own.
            named = [(index, name, *row) for row in rows]
            fresh.append(
                frozenset(r for r, key in zip(rows, named, strict=True) if key not in counted)
            )
            counted.update(named)
            keys += [(lazy.name, *row) for row in rows]
    return _Ids(tuple(arrays), tuple(chunks), tuple(fresh)), keys
