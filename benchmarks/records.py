"""What a benchmark found: one result for each workload and side, saved as JSON and read again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from benchmarks import environment

OURS, FLOOR = "patchloom", "floor"
"""Sides that are no peer."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One side's work on one workload.

    Parameters
    ----------
    workload
        Its name, such as ``w1-misaligned``, or ``w2, 5 ms``.
    what
        What was done: ``cut``, ``cut+write``, ``load``, ``live``, ``plan`` or another word.
    side
        ``patchloom``, ``floor``, or the name of a peer; after a comma, in which way.
    version
        Of a peer.
    done, of
        Patches that were made, and that were asked; less when the side was stopped.
    seconds
        Median of the wall seconds that ``of`` patches take; ``None`` where nothing was timed.  Of
        a side that was stopped, the seconds of the ``done`` ones.
    spread
        Least and greatest ratio within one pair: of ours over the floor, of a peer over ours.
    over_floor, over_ours
        Ratios of wall seconds; above 1 this side is the slower.  Of a side that was stopped they
        are the least that the ratios can be.
    equal
        Whether the outcome was compared with the floor's (or ours) and found equal; or a sentence
        that says what was compared, or differs by its meaning; ``None`` where nothing was.
    counts
        Numbers that no clock gives: ``decodes``, ``requests``, ``bytes_read``, ``tasks``,
        ``copies``, ``peak_mib`` and others, by name.
    reason
        Why this side cannot do the workload, was stopped, or was not run here.
    command
        The command that measured it; ``None`` in a file that several runs made before each
        result told its own.

    Raises
    ------
    ValueError
        If more is done than was asked, or a side neither has seconds nor says why.

    Examples
    --------
    >>> ours = Result(workload="w2", what="cut", side=OURS, done=888, of=888, seconds=0.5,
    ...     over_floor=0.9, spread=(0.8, 1.0), equal=True, counts={"decodes": 512})
    >>> ours.ratio, ours.is_peer, ours.is_stopped
    (0.9, False, False)
    """

    workload: str
    what: str
    side: str
    version: str | None = None
    done: int = 0
    of: int = 0
    seconds: float | None = None
    spread: tuple[float, float] | None = None
    over_floor: float | None = None
    over_ours: float | None = None
    equal: bool | str | None = None
    counts: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.done <= self.of:
            raise ValueError(
                f"{self._name}: done is a part of what was asked, got {self.done} of {self.of}"
            )
        if self.seconds is None and not self.reason:
            raise ValueError(f"{self._name}: a result without seconds says why in `reason`")

    @property
    def _name(self) -> str:
        return f"{self.side}, {self.what} of {self.workload}"

    @property
    def is_ours(self) -> bool:
        """Whether patchloom did it, in one way or another (``patchloom, window``)."""
        return self._maker == OURS

    @property
    def is_floor(self) -> bool:
        """Whether the floor did it, by one reader or another (``floor, tensorstore``)."""
        return self._maker == FLOOR

    @property
    def is_peer(self) -> bool:
        """Whether another library did it."""
        return not (self.is_ours or self.is_floor)

    @property
    def _maker(self) -> str:
        return self.side.partition(",")[0]

    @property
    def is_stopped(self) -> bool:
        """Whether it began and did not end."""
        return self.seconds is not None and self.done < self.of

    @property
    def ratio(self) -> float | None:
        """What `spread` is of: to the floor for ours, to ours for a peer."""
        return self.over_ours if self.is_peer else self.over_floor


@dataclass(frozen=True)
class Record:
    """What one run of one benchmark found, or several that added to one file.

    Parameters
    ----------
    benchmark
        What followed ``python -m benchmarks``.
    command
        The last one that wrote into the file; each result tells its own.
    machine, versions
        From :mod:`benchmarks.environment`.
    results
        One a workload, thing done, and side.
    figures
        Whatever else is in the file, by name.
    """

    benchmark: str
    command: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    results: tuple[Result, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)


def save(
    path: Path, benchmark: str, argv: Sequence[str], results: Iterable[Result], **figures: Any
) -> None:
    """Write results as JSON, with what they were measured on and how.

    Parameters
    ----------
    path
        The file; its folder is made.
    benchmark, argv
        What followed ``python -m benchmarks``.
    results
        One a workload, thing done, and side.
    figures
        Whatever else the benchmark keeps, by name.
    """
    told = environment.command(benchmark, argv)
    _write(path, benchmark, argv, [replace(result, command=told) for result in results], figures)


def add(path: Path, benchmark: str, argv: Sequence[str], results: Iterable[Result]) -> None:
    """Write results beside those that a file has already, in place of older ones of the same.

    Parameters
    ----------
    path
        The file; it and its folder are made.
    benchmark, argv
        What followed ``python -m benchmarks``.
    results
        One a workload, thing done, and side. Those that stay keep the command that made them.
    """
    told = environment.command(benchmark, argv)
    old = load(path).results if path.exists() else ()
    found = {(r.workload, r.what, r.side): r for r in old}
    found |= {(r.workload, r.what, r.side): replace(r, command=told) for r in results}
    _write(path, benchmark, argv, found.values(), {})


def _write(
    path: Path,
    benchmark: str,
    argv: Sequence[str],
    results: Iterable[Result],
    figures: Mapping[str, Any],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(result) for result in results]
    environment.save(path, benchmark, argv, results=rows, **figures)


def load(path: Path) -> Record:
    """Read what :func:`save` wrote.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Record
        Equal to what was saved, each result with its command.

    Raises
    ------
    ValueError
        If a result has a field that :class:`Result` lacks.
    """
    document = json.loads(path.read_text())
    known = {f.name for f in fields(Record)} - {"figures"}
    return Record(
        benchmark=document["benchmark"],
        command=document["command"],
        machine=document["machine"],
        versions=document["versions"],
        results=tuple(_result(path, row) for row in document["results"]),
        figures={name: value for name, value in document.items() if name not in known},
    )


def _result(path: Path, row: Mapping[str, Any]) -> Result:
    extra = set(row) - {f.name for f in fields(Result)}
    if extra:
        raise ValueError(f"{path}: a result has no {', '.join(sorted(extra))}")
    spread = row.get("spread")
    return Result(**{**row, "spread": None if spread is None else tuple(spread)})
