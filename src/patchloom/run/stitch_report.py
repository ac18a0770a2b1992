"""StitchReport: what putting tiles together has done, counted where it happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from patchloom.public_names import PublicNames
from patchloom.run.task_report import TaskReport
from patchloom.table import as_bytes, html_table

__all__ = ["StitchReport", "StitchedTask"]


@dataclass(frozen=True)
class StitchedTask(TaskReport):
    """What one task has put together; `n_patches` counts the tiles that it read."""

    n_empty: int = 0
    """Pixels over which no tile lies, all samples together, channels apart."""


@dataclass(frozen=True)
class StitchReport(PublicNames):
    """What images hold that were stitched, and what this call has done for it."""

    urls: tuple[str, ...]
    """Where they are, without credentials."""
    n_tiles: int
    """Of these images."""
    n_parts: int
    """Spatial boxes that are written together: those of a chunk or shard, in all channels."""
    n_written: int
    """Parts that this call has made; the others were there."""
    n_tasks: int
    tile_reads: int
    """Tiles that were read or predicted: one at a border of tasks by each of them."""
    chunk_reads: int
    """Decodes of the images' chunks, where tiles were cut from them."""
    n_empty: int
    """Pixels of the parts that this call has made over which no tile lies; they are 0."""
    bytes_read: int
    bytes_written: int
    seconds: float
    peak_memory: int
    """Most bytes of pixels that one task held at once."""
    projected_memory: int
    """What had been projected for it, with what codecs and batches take."""

    @classmethod
    def of(cls, tasks: Sequence[StitchedTask], **known: Any) -> StitchReport:
        """Sum the reports of tasks."""
        return cls(
            n_tasks=len(tasks),
            tile_reads=sum(task.n_patches for task in tasks),
            n_written=sum(task.n_shards for task in tasks),
            peak_memory=max((task.peak_memory for task in tasks), default=0),
            **{
                name: sum(getattr(task, name) for task in tasks)
                for name in ("chunk_reads", "n_empty", "bytes_read", "bytes_written")
            },
            **known,
        )

    @property
    def already_done(self) -> int:
        """Parts that were there."""
        return self.n_parts - self.n_written

    @property
    def reads_a_tile(self) -> float:
        """Tile reads over tiles: of a run from the start, how often each was read."""
        return self.tile_reads / self.n_tiles if self.n_tiles else 1.0

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        own = asdict(self)
        own["urls"] = list(self.urls)
        return {**own, "already_done": self.already_done, "reads_a_tile": self.reads_a_tile}

    def rows(self) -> list[tuple[str, str]]:
        """All figures in words."""
        where = f"{self.urls[0]}{f' and {len(self.urls) - 1:,} more' if self.urls[1:] else ''}"
        made = f"{self.n_written:,} of {self.n_parts:,}, by {self.n_tasks:,} tasks"
        return [
            ("written to", where),
            ("tiles", f"{self.n_tiles:,}"),
            ("tile reads", f"{self.tile_reads:,} ({self.reads_a_tile:.2f} a tile)"),
            *([("chunk reads", f"{self.chunk_reads:,}")] if self.chunk_reads else []),
            ("parts made", made),
            *([("pixels without a tile", f"{self.n_empty:,}")] if self.n_empty else []),
            ("read", as_bytes(self.bytes_read)),
            ("written", as_bytes(self.bytes_written)),
            ("time", f"{self.seconds:,.2f} s"),
            ("most memory of a task", as_bytes(self.peak_memory)),
            ("projected", as_bytes(self.projected_memory)),
        ]

    def __str__(self) -> str:
        return ", ".join(f"{label} {text}" for label, text in self.rows())

    def _repr_html_(self) -> str:
        return html_table("Stitch", dict(self.rows()))
