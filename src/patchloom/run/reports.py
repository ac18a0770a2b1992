"""RunReport: what a run really did, counted where the work happened."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from patchloom.public_names import PublicNames
from patchloom.run.faults import Fault
from patchloom.run.task_report import TaskReport
from patchloom.run.timeline import Timeline
from patchloom.run.timeline_drawing import lanes_glance
from patchloom.run.wording import LONG, worded
from patchloom.table import html_table

if TYPE_CHECKING:
    from patchloom.location import Location
    from patchloom.planning.plans import Plan

__all__ = ["Made", "RunReport"]

_PAGE = "patchloom.run.run_page"
_GLANCE = (
    "url",
    "n_patches",
    "n_shards",
    "already_done",
    "n_tasks",
    "read_amplification",
    "bytes_read",
    "bytes_written",
    "seconds",
    "peak_memory",
    "projected_memory",
    "complete",
    "skipped",
    "faults",
    "shuffle",
)
"""Figures that a notebook shows."""


@dataclass(frozen=True)
class Made:
    """What a run worked on: a report of this process knows it, a saved one does not."""

    plan: Plan
    target: Location
    on_error: str = "raise"


@dataclass(frozen=True)
class RunReport(PublicNames):
    """What a run did, summed over its tasks.

    Counts are of this run alone: a run that finds everything done reads and writes nothing.
    """

    url: str
    n_patches: int
    """Patches written by this run."""
    n_shards: int
    n_tasks: int
    """Tasks of this run; a resumed one has fewer than its plan."""
    chunks_needed: int
    """Distinct chunks of the images that the patches of this run touch, but for shards that
    others had committed: those it did not read for."""
    chunk_reads: int
    """Decodes of the images' chunks that really happened."""
    role_reads: int
    survey_reads: int
    """Decodes by passes of their own: before the writing one (normalisation, statistics over masks
    or images), or after it (exact statistics of wide types)."""
    bytes_read: int
    requests: int
    bytes_written: int
    seconds: float
    peak_memory: int
    """Most bytes that one task held at once, in pixels and encoded patches."""
    projected_memory: int
    """What the plan had projected for it."""
    complete: bool
    already_done: int
    """Shards found finished."""
    n_passed: int = 0
    """Of `n_shards`, those that a task found committed when it came to them: by an execution of
    it that was lost with its counts, or by another client."""
    codec_paths: dict[str, int] = field(default_factory=dict)
    """Decodes of all arrays by who decoded: ``"direct"`` (our calls of the codecs), ``"zarr"``
    (zarr-python, for chains that we do not know), ``"dask"`` (a Dask array's own tasks), ``"none"``
    (nothing to decode)."""
    skipped: tuple[dict[str, Any], ...] = field(default=())
    """What is missing because it could not be read: ``reason``, ``n_patches``, ``n_shards`` and
    some ``rows`` of each reason, most patches first."""
    shuffle: dict[str, Any] | None = None
    """How fair a sample batches of 64 are, where the order is shuffled: `Plan.mixing`, and of
    plans that know classes those of `PatchStore.mixing`."""
    started: str = ""
    """When the run began, in UTC (ISO 8601)."""
    scheduler: str = ""
    """Which of Dask's schedulers it went by: synchronous, threads, processes or distributed."""
    requests_again: int = 0
    """Requests of its tasks to stores that failed for a while and were made again."""
    resident_memory: int = 0
    """Most bytes that a process of its tasks has held since it began, whatever for."""
    faults: tuple[Fault, ...] = ()
    """Tasks that failed and workers that were lost on a cluster, and were made good."""
    phases: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    """What the run was at: ``name``, ``start`` and ``seconds``, both in seconds."""
    timeline: Timeline | None = field(default=None, repr=False)
    """Which task worked where and when; None if there was none."""
    versions: dict[str, str] = field(default_factory=dict, repr=False)
    """Of Python and of the packages that pixels passed through."""
    made: Made | None = field(default=None, repr=False, compare=False)
    """What it worked on."""

    @property
    def read_amplification(self) -> float:
        """Chunk reads over needed chunks; 1.0 is every chunk once."""
        return self.chunk_reads / self.chunks_needed if self.chunks_needed else 1.0

    @classmethod
    def of(cls, tasks: Sequence[TaskReport], **known: Any) -> RunReport:
        """Sum the reports of tasks."""
        totals = {
            name: sum(getattr(task, name) for task in tasks)
            for name in (
                "n_patches",
                "n_shards",
                "n_passed",
                "chunk_reads",
                "role_reads",
                "bytes_read",
                "requests",
                "bytes_written",
            )
        }
        known["requests_again"] = sum(task.retried for task in tasks)
        known["resident_memory"] = max((task.resident for task in tasks), default=0)
        paths: Counter[str] = Counter()
        for task in tasks:
            paths.update(task.codec_paths)
        known["codec_paths"] = dict(sorted(paths.items()))
        peak = max((task.peak_memory for task in tasks), default=0)
        return cls(**totals, peak_memory=peak, n_tasks=len(tasks), **known)

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready; `to_json` tells more."""
        return {k: v for k, v in self.to_document().items() if k not in LONG}

    def to_document(self) -> dict[str, Any]:
        """All that the run recorded, JSON-ready."""
        known = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "made"}
        return {**known, "read_amplification": self.read_amplification}

    def to_json(self, path: str | os.PathLike[str] | None = None, **options: Any) -> str:
        """What a page of the run tells, as JSON: figures, timeline, counts, provenance.

        Parameters
        ----------
        path
            Path or any fsspec URL to write it to; None only returns it.
        options
            As of `to_html`.
        """
        text: str = importlib.import_module(_PAGE).run_json(self, path, **options)
        return text

    def to_html(self, path: str | os.PathLike[str] | None = None, **options: Any) -> str:
        """One self-contained page about the run: asked, done, when and where, how, and what came.

        Reads a dozen patches, the manifest (of a large store a part of it) and the summaries of
        grey levels from the store.

        Parameters
        ----------
        path
            Path or any fsspec URL to write it to, what stands there is replaced; None only
            returns it.
        title
            Its heading.
        job
            Name of the job file, if there is one.
        command
            What to type to do it again, if not ``patchloom run JOB``.
        storage_options
            For the path.

        Returns
        -------
        str
            HTML without scripts that refers to nothing outside itself.

        Raises
        ------
        WriteError
            If the target refuses.

        Examples
        --------
        >>> import numpy as np, patchloom
        >>> images = patchloom.open_images(np.ones((64, 64), "uint8"))
        >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [32, 32]})
        >>> report = patchloom.materialize(plan, "memory://told.zarr", progress=False)
        >>> report.to_html("memory://told.html").startswith("<!doctype html>")
        True
        """
        page: str = importlib.import_module(_PAGE).write_run_page(self, path, **options)
        return page

    def save(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write the page of the run, ``.html``, and beside it the same as ``.json``.

        Parameters
        ----------
        path
            Path or any fsspec URL of the page.
        options
            As of `to_html`.
        """
        name = os.fspath(path)
        self.to_html(name, **options)
        self.to_json(f"{name.removesuffix('.html')}.json", **options)

    def __str__(self) -> str:
        return (
            f"{_n(self.n_patches, 'patch', 'es')} in {_n(self.n_shards, 'shard')} by "
            f"{_n(self.n_tasks, 'task')}, {_n(self.chunk_reads, 'chunk read')} for "
            f"{self.chunks_needed:,} needed ({self.read_amplification:.2f}x), "
            f"{self.bytes_read / 2**20:,.1f} MiB read in {_n(self.requests, 'request')}, "
            f"{self.bytes_written / 2**20:,.1f} MiB written, {self.seconds:.1f} s, "
            f"peak {self.peak_memory / 2**20:,.1f} MiB a task{self._mixed()}"
        )

    def _mixed(self) -> str:
        if not self.shuffle or "joint" not in self.shuffle:
            return ""
        return f", batches mixed {self.shuffle['joint']['relative']:.1%} of a full shuffle"

    def _repr_html_(self) -> str:
        told = self.to_dict()
        rows = {label: text for _, label, text in worded({key: told[key] for key in _GLANCE})}
        drawn = "" if self.timeline is None else lanes_glance(self.timeline)
        return (
            '<div style="display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start">'
            f"{html_table('Run', rows)}{drawn}</div>"
        )


def _plain(value: Any) -> Any:
    """Dataclasses as mappings, all the way down."""
    if isinstance(value, Timeline | Fault):
        return asdict(value)
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _n(count: int, noun: str, plural: str = "s") -> str:
    return f"{count:,} {noun}{'' if count == 1 else plural}"
