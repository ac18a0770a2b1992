"""TaskReport: what one task did, counted where it worked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["TaskReport"]


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
    began: float = 0.0
    """When it began, in seconds since 1970, by the clock of its worker."""
    where: str = ""
    """The worker or process."""
    thread: int = 0
    """The thread of that."""
    retried: int = 0
    """Requests to stores that failed for a while and were made again."""
    resident: int = 0
    """Most bytes that its process has held since that began, whatever for."""

    @property
    def n_passed(self) -> int:
        """How many shards it found committed."""
        return len(self.passed)
