"""Executing a graph on whatever Dask scheduler is set, with progress.

No scheduler of our own: the one that `dask.config`, a context or an active
``distributed.Client`` chose; Dask's threads by default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import dask
import dask.threaded
from dask.base import get_scheduler
from dask.callbacks import Callback

from patchloom.run.graph import Graph, Key
from patchloom.run.lost_schedulers import naming_the_lost
from patchloom.run.progress import Progress
from patchloom.run.settings import Settings
from patchloom.run.stretches import stretched

__all__ = ["execute"]

_PARTS = 4
"""Parts of what a cluster is given at once: one is handed in as soon as as many are done."""

Step = Callable[[Any], None]


def execute(graph: Graph, *, progress: bool, label: str, n_patches: int = 0) -> list[Any]:
    """Compute the results of a graph, in the order of its keys.

    However many tasks there are, the scheduler knows `Settings.tasks_at_once` of them at most.

    Parameters
    ----------
    graph
        From `run_graph`, for example.
    progress
        Whether to show it: a bar on a terminal, lines in a log otherwise.
    label
        What to call it.
    n_patches
        Patches that the tasks write; 0 if they write none.
    """
    settings = Settings.now()
    if not graph.keys:
        return []
    if not progress:
        settings = replace(settings, show="nothing")
    get = get_scheduler() or dask.threaded.get
    client = getattr(get, "__self__", None)
    with Progress(label, len(graph.keys), n_patches, settings) as shown:
        if client is not None and hasattr(client, "scheduler_info"):
            from patchloom.run.lending import lending

            with naming_the_lost(client), lending(client):
                return _on_cluster(client, graph, settings, shown.step)
        return _here(get, graph, settings, shown.step)


def _parts(graph: Graph, n_tasks: float) -> Iterator[Sequence[Key]]:
    """The keys in pieces of so many tasks, those that they depend on included."""
    n = max(1, math.floor(n_tasks / graph.weight))
    for start in range(0, len(graph.keys), n):
        yield graph.keys[start : start + n]


def _here(get: Callable[..., Any], graph: Graph, settings: Settings, step: Step) -> list[Any]:
    """On a scheduler of this machine: one part after another."""
    found: list[Any] = []
    for keys in _parts(graph, settings.tasks_at_once):
        with _Watching(frozenset(keys), step):
            found += get({**graph.shared, **graph.part(keys)}, list(keys))
    return found


def _on_cluster(client: Any, graph: Graph, settings: Settings, step: Step) -> list[Any]:
    """On a cluster: a part more as soon as there is room for it."""
    from distributed import as_completed

    # What the caller annotates goes before what is configured.
    set_by_caller = dask.get_annotations()
    how = {
        name: value
        for name, value in (("retries", settings.retries), ("priority", settings.priority))
        if name not in set_by_caller
    }

    def submit(dsk: dict[Any, Any], keys: Sequence[Any]) -> list[Any]:
        futures: list[Any] = client.get(dsk, list(keys), sync=False, **how)
        return futures

    # A plan of very many chunks is no mistake; it goes to the scheduler once.
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": 2**60}):
        shared = submit(dict(graph.shared), [*graph.shared]) if graph.shared else []
    known = {future.key: future for future in shared}
    parts = _parts(graph, settings.tasks_at_once / _PARTS)
    finished = as_completed(raise_errors=False)
    live: dict[Any, Any] = {}
    found: dict[Any, Any] = {}
    keys: Sequence[Key] | None = next(parts)
    try:
        while keys or live:
            # One task of ours may need more of others than are handed in at once: it goes alone.
            while keys and (
                not live or (len(live) + len(keys)) * graph.weight <= settings.tasks_at_once
            ):
                with stretched(client, keys, neighbours=graph.neighbours):
                    some = submit({**known, **graph.part(keys)}, keys)
                live |= {future.key: future for future in some}
                finished.update(some)
                keys = next(parts, None)
            done = finished.next_batch()
            for future, result in zip(done, client.gather(done), strict=True):
                # The cluster forgets a task whose future is gone.
                del live[future.key]
                found[future.key] = result
                step(result)
            del done, future
    finally:
        # On an error or an interrupt what still waits is of no use: the next run resumes.
        client.cancel([*live.values()])
    return [found[key] for key in graph.keys]


class _Watching(Callback):  # type: ignore[misc]  # Dask is untyped
    """Hands on the results of some tasks as they finish on a local scheduler."""

    def __init__(self, keys: frozenset[Any], step: Step) -> None:
        super().__init__(posttask=self._done)
        self._keys = keys
        self._step = step

    def _done(self, key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:
        if key in self._keys:
            self._step(result)
