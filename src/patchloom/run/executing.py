"""Executing a graph on whatever Dask scheduler is set, with progress.

No scheduler of our own: the one that `dask.config`, a context or an active
``distributed.Client`` chose; Dask's threads by default.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import dask
import dask.threaded
from dask.base import get_scheduler
from dask.callbacks import Callback

from patchloom.run.graph import Graph
from patchloom.run.losses import naming_losses

__all__ = ["execute"]

logger = logging.getLogger("patchloom")


def execute(graph: Graph, *, progress: bool, label: str) -> list[Any]:
    """Compute the results of a graph, in the order of its keys.

    Parameters
    ----------
    graph
        From `run_graph` or `image_graph`.
    progress
        Whether to show it: a bar on a terminal, lines in a log otherwise.
    label
        What to call it.
    """
    if not graph.keys:
        return []
    get = get_scheduler() or dask.threaded.get
    client = getattr(get, "__self__", None)
    with _Progress(len(graph.keys), label, progress) as shown:
        if client is not None and hasattr(client, "scheduler_info"):
            with naming_losses(client):
                return _on_cluster(client, graph, shown.step)
        with _Counting(graph.keys[0][0], shown.step):
            found: list[Any] = list(get(_plain(graph), graph.keys))
        return found


def _plain(graph: Graph) -> Any:
    from dask.optimization import cull

    return cull(dict(graph.dsk), graph.keys)[0]


def _on_cluster(client: Any, graph: Graph, step: Callable[[], None]) -> list[Any]:
    from distributed import as_completed

    futures = client.get(graph.dsk, graph.keys, sync=False)
    try:
        for future in as_completed(futures, raise_errors=False):
            if future.status != "finished":
                future.result()
            step()
        found: list[Any] = client.gather(futures)
    finally:
        # On an error or an interrupt what still waits is of no use: the next run resumes.
        client.cancel(futures)
    return found


class _Counting(Callback):  # type: ignore[misc]  # Dask is untyped
    """Counts finished tasks of one name on a local scheduler."""

    def __init__(self, name: str, step: Callable[[], None]) -> None:
        super().__init__(posttask=self._done)
        self._name = name
        self._step = step

    def _done(self, key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:
        if isinstance(key, tuple) and key[0] == self._name:
            self._step()


class _Progress:
    """A bar on a terminal, a line at each tenth in a log, or nothing."""

    def __init__(self, total: int, label: str, shown: bool) -> None:
        self._total, self._label = total, label
        self._done, self._begun = 0, time.perf_counter()
        self._bar: Any = None
        self._shown = shown
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(label, total=total)

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self) -> None:
        """One task more is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.advance(self._task)
        elif self._shown and self._done * 10 // self._total > (self._done - 1) * 10 // self._total:
            line = (
                f"{self._label}: {self._done} of {self._total} tasks, "
                f"{time.perf_counter() - self._begun:.1f} s"
            )
            if logger.hasHandlers():
                logger.info(line)
            else:
                # Nobody set up logging: a line on stderr is what a person expects.
                print(line, file=sys.stderr)
