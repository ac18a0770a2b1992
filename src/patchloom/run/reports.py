"""RunReport: what a run really did, counted where the work happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from patchloom.table import html_table

__all__ = ["RunReport", "TaskReport"]


@dataclass(frozen=True)
class TaskReport:
    """What one task did; made on the worker."""

    n_patches: int = 0
    n_shards: int = 0
    chunk_reads: int = 0
    """Decodes of the images' chunks."""
    chunks_owned: int = 0
    """Chunks of the images that belong to its shards (design 007); over all tasks each once."""
    role_reads: int = 0
    """Decodes of chunks of labels and targets."""
    bytes_read: int = 0
    requests: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    peak_memory: int = 0
    """Most bytes of pixels and encoded patches held at once."""
    passed: tuple[int, ...] = ()
    """Shards that it found committed: by an execution that was lost, or by another client."""
    codec_paths: dict[str, int] = field(default_factory=dict)
    """Decodes by who decoded: see `Reads.codecs`."""
    gaps: tuple[int, ...] = ()
    """Shards that lack patches, or in their statistics blocks, that could not be read."""
    skipped: tuple[Any, ...] = ()
    """Tables of the rows that are missing, with reasons."""

    @property
    def n_passed(self) -> int:
        """How many shards it found committed."""
        return len(self.passed)


@dataclass(frozen=True)
class RunReport:
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
        paths: Counter[str] = Counter()
        for task in tasks:
            paths.update(task.codec_paths)
        known["codec_paths"] = dict(sorted(paths.items()))
        peak = max((task.peak_memory for task in tasks), default=0)
        return cls(**totals, peak_memory=peak, n_tasks=len(tasks), **known)

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return {**asdict(self), "read_amplification": self.read_amplification}

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
        return html_table("Run", self.to_dict())


def _n(count: int, noun: str, plural: str = "s") -> str:
    return f"{count:,} {noun}{'' if count == 1 else plural}"
