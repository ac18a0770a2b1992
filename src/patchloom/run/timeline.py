"""Timeline: which task worked where and when, bounded however many tasks there were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchloom.run.task_report import TaskReport

__all__ = ["MOST_LANES", "MOST_TASKS", "Timeline"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_TASKS = 2_000
"""Tasks that are told one by one; of more, only what they did together in each slice of time."""
MOST_LANES = 256
"""Threads that are told one by one."""

_SLICES = 120
_SLOWEST = 5
_QUANTILES = (0, 0.25, 0.5, 0.75, 0.95, 1)


@dataclass(frozen=True)
class Timeline:
    """What the tasks of a run did in the course of it; times are seconds since the run began.

    >>> a = TaskReport(n_patches=4, began=10.0, seconds=2.0, where="worker a")
    >>> b = TaskReport(n_patches=2, began=11.0, seconds=1.0, where="worker b")
    >>> found = Timeline.of([a, b], begun=10.0, seconds=2.0)
    >>> found.lanes, found.tasks["start"], found.busy[0], found.busy[-1]
    (('worker a', 'worker b'), (0.0, 1.0), 1.0, 2.0)
    """

    seconds: float
    """Of the whole run."""
    n_tasks: int
    n_lanes: int
    """Threads that worked."""
    lanes: tuple[str, ...]
    """Their names; none if there were more than `MOST_LANES`."""
    lane_tasks: tuple[int, ...]
    """Tasks of each lane."""
    lane_seconds: tuple[float, ...]
    """Seconds that each lane was busy."""
    tasks: dict[str, tuple[float, ...]]
    """``lane``, ``start``, ``seconds``, ``patches``, ``retried`` of each task; none if there were
    more than `MOST_TASKS`."""
    busy: tuple[float, ...]
    """Threads at work, on average, in each slice of time."""
    rates: dict[str, tuple[float, ...]]
    """``patches``, ``bytes_read`` and ``bytes_written`` a second in each slice of time."""
    task_seconds: dict[str, float]
    """Quantiles of the time of a task, by name."""
    task_memory: dict[str, float]
    """Quantiles of the bytes that a task held at most, by name."""
    slowest: tuple[dict[str, float | str], ...]
    """The tasks that took longest."""

    @classmethod
    def of(cls, tasks: Sequence[TaskReport], begun: float, seconds: float) -> Timeline:
        """From the reports of tasks.

        Parameters
        ----------
        tasks
            In any order.
        begun
            When the run began, in seconds since 1970.
        seconds
            How long it took.
        """
        took = np.array([task.seconds for task in tasks], np.float64)
        places = [(task.where, task.thread) for task in tasks]
        start = _within(
            np.array([t.began for t in tasks], np.float64) - begun, took, places, seconds
        )
        names, lane = _lanes(places, start)
        few = len(names) <= MOST_LANES
        count = np.bincount(lane, minlength=len(names))
        spent = np.bincount(lane, took, minlength=len(names))
        listed: dict[str, tuple[float, ...]] = {}
        if few and len(tasks) <= MOST_TASKS:
            columns = {
                "lane": lane,
                "start": start.round(4),
                "seconds": took.round(4),
                "patches": [task.n_patches for task in tasks],
                "retried": [task.retried for task in tasks],
            }
            order = np.argsort(start, kind="stable")
            listed = {name: tuple(np.asarray(v)[order].tolist()) for name, v in columns.items()}
        edges = np.linspace(0, max(seconds, 1e-9), _SLICES + 1)
        amounts = {
            "patches": [task.n_patches for task in tasks],
            "bytes_read": [task.bytes_read for task in tasks],
            "bytes_written": [task.bytes_written for task in tasks],
        }
        rates = {
            name: _spread(edges, start, took, np.array(amount, np.float64))
            for name, amount in amounts.items()
        }
        longest = np.argsort(-took, kind="stable")[:_SLOWEST].tolist()
        return cls(
            seconds=seconds,
            n_tasks=len(tasks),
            n_lanes=len(names),
            lanes=tuple(names) if few else (),
            lane_tasks=tuple(count.tolist()) if few else (),
            lane_seconds=tuple(spent.round(4).tolist()) if few else (),
            tasks=listed,
            busy=_spread(edges, start, took, took),
            rates=rates,
            task_seconds=_quantiles(took),
            task_memory=_quantiles(np.array([task.peak_memory for task in tasks], np.float64)),
            slowest=tuple(
                {
                    "where": names[lane[k]],
                    "start": round(float(start[k]), 4),
                    "seconds": round(float(took[k]), 4),
                    "patches": tasks[k].n_patches,
                }
                for k in longest
            ),
        )


def _within(
    start: Floats, took: Floats, places: Sequence[tuple[str, int]], seconds: float
) -> Floats:
    """Begins of tasks, in the time of the run: clocks of workers that are wrong are set right."""
    number = {where: k for k, where in enumerate(dict.fromkeys(where for where, _ in places))}
    worker = np.array([number[where] for where, _ in places], np.int64)
    first = np.full(len(number), np.inf)
    last = np.full(len(number), -np.inf)
    np.minimum.at(first, worker, start)
    np.maximum.at(last, worker, start + took)
    # No task begins before its run, or ends after it: only then is it the clock.
    moved = np.where(first < 0, -first, -np.maximum(last - seconds, 0))
    return np.maximum(start + moved[worker], 0)


def _lanes(places: Sequence[tuple[str, int]], start: Floats) -> tuple[list[str], Ints]:
    """Names of threads, process by process, and the one of each task."""
    first: dict[tuple[str, int], float] = {}
    for place, at in zip(places, start.tolist(), strict=True):
        first[place] = min(at, first.get(place, at))
    ordered = sorted(first, key=lambda place: (_natural(place[0]), first[place]))
    threads: dict[str, int] = {}
    names = []
    alone = {where for where, _ in ordered}
    several = len(ordered) > len(alone)
    for where, _ in ordered:
        threads[where] = threads.get(where, 0) + 1
        thread = f"thread {threads[where]}"
        names.append(thread if len(alone) == 1 else f"{where}, {thread}" if several else where)
    number = {place: k for k, place in enumerate(ordered)}
    return names, np.array([number[place] for place in places], np.int64)


def _natural(name: str) -> tuple[str, int, str]:
    """Sorts ``worker 2`` before ``worker 10``."""
    text, _, last = name.rpartition(" ")
    return (text, int(last), "") if last.isdecimal() else (text, 0, last)


def _spread(edges: Floats, start: Floats, took: Floats, amount: Floats) -> tuple[float, ...]:
    """What is done a second in each slice of time, if each task does its amount evenly."""
    rate = amount / np.maximum(took, 1e-9)
    upto = _sum_until(edges, start, rate) - _sum_until(edges, start + np.maximum(took, 1e-9), rate)
    found = np.maximum(np.diff(upto) / np.diff(edges), 0)
    return tuple(float(f"{v:.6g}") for v in found.tolist())


def _sum_until(when: Floats, at: Floats, rate: Floats) -> Floats:
    """Sum of ``rate * max(0, when - at)`` over all tasks: float64[when]."""
    order = np.argsort(at, kind="stable")
    rates = np.concatenate([[0.0], np.cumsum(rate[order])])
    moments = np.concatenate([[0.0], np.cumsum((rate * at)[order])])
    k = np.searchsorted(at[order], when, side="right")
    found: Floats = when * rates[k] - moments[k]
    return found


def _quantiles(values: Floats) -> dict[str, float]:
    if not len(values):
        return {}
    found = np.quantile(values, _QUANTILES).round(4).tolist()
    names = ("least", "p25", "median", "p75", "p95", "most")
    return dict(zip(names, found, strict=True))
