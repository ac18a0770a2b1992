"""Wording: the figures of plans and reports as people read them, on a terminal or a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from patchloom.table import as_bytes

__all__ = ["LONG", "as_bytes", "worded"]

_LABELS = {
    "url": "store",
    "n_images": "images",
    "n_candidates": "candidate patches",
    "n_patches": "patches",
    "rejected": "left out",
    "n_shards": "output shards",
    "rows_per_shard": "patches a shard",
    "layout": "chunks and shards",
    "n_tasks": "tasks",
    "chunks_needed": "distinct chunks needed",
    "chunk_reads": "chunk decodes",
    "role_reads": "label and target decodes",
    "survey_reads": "decodes of other passes",
    "planning_reads": "decodes to plan it",
    "codec_paths": "decodes by codec path",
    "read_amplification": "decodes a needed chunk",
    "bytes_read": "read",
    "requests": "requests",
    "bytes_written": "written",
    "bytes_output": "output before compression",
    "peak_memory": "most memory of a task",
    "projected_memory": "projected memory of a task",
    "memory": "memory allowed",
    "seconds": "time",
    "complete": "complete",
    "already_done": "shards found finished",
    "n_passed": "shards done by others meanwhile",
    "skipped": "skipped",
    "split": "splits",
    "window_groups": "groups of a window",
    "window_rows": "patches of a window",
    "window_bytes": "size of a window",
    "n_windows": "windows",
    "shuffle": "mixed",
    "fingerprint": "fingerprint",
    "started": "began",
    "scheduler": "scheduler",
    "requests_again": "requests tried again",
    "resident_memory": "most memory of a process",
    "faults": "faults that were made good",
}
_BYTES = {
    "window_bytes",
    "bytes_read",
    "bytes_written",
    "bytes_output",
    "peak_memory",
    "projected_memory",
    "memory",
    "resident_memory",
}
LONG = ("phases", "timeline", "versions")
"""Of a report, what is no figure."""
_REASONS = 3
"""Reasons for skipping patches that are told in words; the table of the store has all."""


def worded(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key, label and value of each figure, in words.

    Parameters
    ----------
    figures
        `Plan.figures()` or `RunReport.to_dict()`.

    Examples
    --------
    >>> worded({"n_patches": 1234, "bytes_read": 3 * 2**20, "rejected": {"outside the mask": 7}})
    ... # doctest: +NORMALIZE_WHITESPACE
    [('n_patches', 'patches', '1,234'), ('bytes_read', 'read', '3.0 MiB'),
     ('rejected', 'left out', '7 outside the mask')]
    >>> lost = [{"n_patches": n, "reason": why} for n, why in zip((4, 2, 1, 1), "abcd")]
    >>> worded({"skipped": lost})[0][2]
    '4 patches: a; 2 patches: b; 1 patch: c; 1 patch for other reasons, see skipped.parquet'
    """
    return [
        (key, _LABELS.get(key, key.replace("_", " ")), _text(key, value))
        for key, value in figures.items()
        # Orders that are not shuffled tell nothing of it.
        if key not in LONG and (key != "shuffle" or value is not None)
    ]


def _text(key: str, value: Any) -> str:
    if key in _BYTES:
        return as_bytes(value)
    if key == "seconds":
        return f"{value:,.2f} s" if value < 10 else f"{value:,.0f} s"
    if key == "rejected":
        return ", ".join(f"{n:,} {why}" if n else why for why, n in value.items()) or "none"
    if key == "split":
        return _split(value)
    if key == "shuffle":
        return _mixed(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{n:,} of {name}" for name, n in value.items()) or "none"
    if key == "faults":
        return _faults(value) if value else "none"
    if key == "skipped":
        return _skipped(value) if value else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _split(told: Mapping[str, Any]) -> str:
    parts = [f"{n:,} {name}" for name, n in told["patches"].items()]
    if "kept_fraction" in told:
        parts.append(f"{told['kept_fraction']:.1%} left by guard bands")
    if told.get("smallest_distance") is not None:
        parts.append(f"{told['smallest_distance']:,} pixels apart")
    return ", ".join(parts)


def _mixed(told: Mapping[str, Any]) -> str:
    kinds = ("image", "region", "class")
    parts = [f"{kind} {told[kind]['relative']:.1%}" for kind in kinds if kind in told]
    return f"{', '.join(parts)} of a full shuffle; {told['groups_per_shard']:.0f} groups a shard"


def _faults(told: Sequence[Mapping[str, Any]]) -> str:
    kinds = Counter(str(one["kind"]) for one in told)
    return ", ".join(f"{n:,} x {kind}" for kind, n in kinds.items())


def _skipped(told: Sequence[Mapping[str, Any]]) -> str:
    def patches(n: int) -> str:
        return f"{n:,} patch" if n == 1 else f"{n:,} patches"

    parts = [f"{patches(one['n_patches'])}: {one['reason']}" for one in told[:_REASONS]]
    if more := told[_REASONS:]:
        n = sum(one["n_patches"] for one in more)
        parts.append(f"{patches(n)} for other reasons, see skipped.parquet")
    return "; ".join(parts)
