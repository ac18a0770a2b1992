"""How far a run has come: a bar on a terminal, lines in a log."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

from patchloom.image import Reads
from patchloom.run.settings import Settings
from patchloom.run.task_report import TaskReport

__all__ = ["Progress"]

logger = logging.getLogger("patchloom")

_BAR = 20
"""Columns of a terminal that the bar takes."""


class Progress:
    """Adds up what tasks report as they finish, and shows it.

    Parameters
    ----------
    label
        What to call the run.
    n_tasks
        Its tasks.
    n_patches
        Patches that they write; 0 if they write none.
    settings
        How to show it.
    """

    def __init__(self, label: str, n_tasks: int, n_patches: int, settings: Settings) -> None:
        self._label, self._n_tasks, self._n_patches = label, n_tasks, n_patches
        self._begun = self._told = time.monotonic()
        self._done = self._patches = self._reads = self._owned = self._in = self._out = 0
        self._seconds = settings.seconds
        self._lines = settings.show in ("auto", "lines")
        self._bar: Any = None
        # A terminal that cannot move its cursor would show nothing until the end.
        moves = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        if settings.show == "bar" or (settings.show == "auto" and moves):
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            console = Console(stderr=True, force_terminal=True)
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=_BAR),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(label, total=1.0, text="")
            self._taken = len(label) + _BAR + len("100%") + len(columns)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def share(self) -> float:
        """The part that is done: of the patches where they are known, else of the tasks."""
        if self._n_patches and self._done < self._n_tasks:
            return self._patches / self._n_patches
        return self._done / self._n_tasks

    def step(self, result: Any) -> None:
        """One task more is done."""
        before = self.share
        report = _report(result)
        self._done += 1
        self._patches += report.n_patches
        self._reads += report.chunk_reads
        self._owned += report.chunks_owned
        self._in += report.bytes_read
        self._out += report.bytes_written
        if self._bar is not None:
            room = self._bar.console.width - self._taken
            self._bar.update(self._task, completed=self.share, text=_fitting(self._short(), room))
            return
        now = time.monotonic()
        if self._lines and (
            int(self.share * 10) > int(before * 10) or now - self._told >= self._seconds
        ):
            self._told = now
            _say(f"{self._label}: {self.text()}")

    def text(self) -> str:
        """All figures, in one line."""
        count, rates, times = self._figures()
        return ", ".join((*count, *rates, *times))

    def _short(self) -> list[str]:
        """All figures, what people wait for first."""
        count, rates, times = self._figures()
        return [*count[:1], *times[::-1], *rates, *count[1:]]

    def _figures(self) -> tuple[list[str], list[str], list[str]]:
        """How much is done, how fast it goes, and how long it took and will take."""
        seconds = max(time.monotonic() - self._begun, 1e-9)
        words = [f"{self._done:,} of {self._n_tasks:,} tasks"]
        if self._n_patches:
            words.insert(0, f"{self._patches:,} of {self._n_patches:,} patches")
        rates = [
            f"{name} {nbytes / seconds / 1e6:,.1f} MB/s"
            for name, nbytes in (("read", self._in), ("written", self._out))
            if nbytes
        ]
        if self._owned:
            rates.append(f"{self._reads / self._owned:.2f} reads a chunk")
        times = [_duration(seconds)]
        if 0 < self.share < 1:
            times.append(f"{_duration(seconds * (1 / self.share - 1))} to go")
        return words, rates, times


def _report(result: Any) -> TaskReport:
    """What a task did; surveys give what they found, and what they read for it."""
    if isinstance(result, TaskReport):
        return result
    if isinstance(result, tuple) and isinstance(result[-1], Reads):
        reads = result[-1]
        return TaskReport(chunk_reads=reads.chunks, bytes_read=reads.nbytes)
    return TaskReport()


def _fitting(words: list[str], room: int) -> str:
    """As many words as there is room for in a line, at least the first.

    >>> _fitting(["9 of 10 patches", "5.0 s to go", "45.0 s"], 30)
    '9 of 10 patches, 5.0 s to go'
    """
    while len(words) > 1 and len(", ".join(words)) > room:
        words = words[:-1]
    return ", ".join(words)


def _duration(seconds: float) -> str:
    """Seconds, as a person reads them.

    >>> _duration(7.04), _duration(75), _duration(100_000)
    ('7.0 s', '1:15 min', '27:46 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"


def _say(line: str) -> None:
    if logger.hasHandlers():
        logger.info(line)
    else:
        # Nobody set up logging: a line on stderr is what a person expects.
        print(line, file=sys.stderr)
