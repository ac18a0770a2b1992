"""Faults: what went wrong on a cluster while a run went on, and was made good."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dask.base import get_scheduler

from patchloom.errors import PatchloomError
from patchloom.run.worksite import Worksite, worker_here

__all__ = ["Fault", "faults_since", "noting"]

MOST = 1_000
"""Faults that a report tells one by one."""

_TOPIC = "patchloom-faults"
_LENGTH = 400
"""Characters of an error that are kept."""


@dataclass(frozen=True)
class Fault:
    """One thing that went wrong."""

    time: float
    """In seconds since 1970, by the clock of the scheduler."""
    kind: str
    """``"task failed"`` or ``"worker lost"``."""
    where: str
    """The worker."""
    told: str
    """What it said, or what it cost."""


@contextlib.contextmanager
def noting(key: Any) -> Iterator[None]:
    """Within it, an error is noted with the scheduler, which may have the task tried again.

    Only a cluster does so, and keeps such notes; elsewhere the first error ends the run.

    Parameters
    ----------
    key
        What tells the tasks of a run from others.
    """
    try:
        yield
    except Exception as error:
        worker = worker_here()
        if worker is not None:
            # Errors of others may tell what ours are careful not to.
            text = str(error) if isinstance(error, PatchloomError) else ""
            told = f"{type(error).__name__}: {text}".removesuffix(": ")[:_LENGTH]
            note = {"key": str(key), "where": Worksite.here().process, "told": told}
            with contextlib.suppress(Exception):  # a note is no reason for another error
                worker.log_event(_TOPIC, note)
        raise


def faults_since(key: Any, since: float) -> tuple[Fault, ...]:
    """What the scheduler knows of faults of a run, in order; none where no cluster is used.

    Parameters
    ----------
    key
        As it was given to `noting`.
    since
        When the run began, in seconds since 1970.
    """
    client = getattr(get_scheduler(), "__self__", None)
    if client is None or not hasattr(client, "get_events"):
        return ()
    found: list[Fault] = []
    # A scheduler that is busy or gone leaves a report without this, not a run without its end.
    with contextlib.suppress(Exception):
        found += _failed(client.get_events(_TOPIC), str(key), since)
        found += _lost(client.get_events("all"), since)
    return tuple(sorted(found, key=lambda fault: fault.time)[:MOST])


def _failed(events: Iterable[tuple[float, Any]], key: str, since: float) -> Iterator[Fault]:
    for time, event in events:
        if time >= since and event.get("key") == key:
            yield Fault(time, "task failed", str(event["where"]), str(event["told"]))


def _lost(events: Iterable[tuple[float, Any]], since: float) -> Iterator[Fault]:
    for time, event in events:
        if time < since or event.get("action") != "remove-worker" or event.get("expected"):
            continue
        busy, done = (
            len(event.get(name) or ()) for name in ("processing-tasks", "lost-computed-tasks")
        )
        told = f"{busy:,} tasks were begun or waiting there, {done:,} results were lost"
        yield Fault(time, "worker lost", str(event.get("worker", "")), told)
