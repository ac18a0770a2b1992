"""alternatives: what a plan would cost with its patches aligned in another way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from typing import Any

from pydantic import BaseModel

from patchloom.errors import ConfigError, PatchloomError
from patchloom.image import Image
from patchloom.patching.lattice import LatticePatching
from patchloom.patching.protocol import Patching
from patchloom.planning.alignment import ALIGNS
from patchloom.planning.plans import Plan
from patchloom.run.drafting import plan

__all__ = ["Alternative", "Alternatives", "alternatives"]

_LABELS = {
    "align": "align",
    "n_patches": "patches",
    "pixels_left_out": "pixels left out",
    "chunks_needed": "chunks needed",
    "chunk_reads": "chunk decodes",
    "read_amplification": "read amplification",
    "bytes_per_pixel": "decoded bytes per patch pixel",
    "strategy": "strategy",
    "offset": "offset",
    "rows_per_shard": "patches a shard",
    "n_tasks": "tasks",
    "peak_memory": "peak memory of a task, bytes",
}


@dataclass(frozen=True)
class Alternative:
    """What a plan costs with one alignment; numbers are None where there is none."""

    align: str
    refused: str = ""
    """Why there is no such plan; empty if there is one."""
    n_patches: int | None = None
    """Patches that are kept."""
    pixels_left_out: int | None = None
    """Pixels of the images that the strategy covers with no patch, before a mask or a filter
    selects (samples counted apart, channels not); None where it draws positions."""
    chunks_needed: int | None = None
    chunk_reads: int | None = None
    read_amplification: float | None = None
    bytes_per_pixel: float | None = None
    """Bytes decoded from the images for each pixel of a patch; channels are no pixels."""
    strategy: str | None = None
    """Name of the strategy that places the patches."""
    offset: tuple[int, ...] | None = None
    """Where the grid is anchored, in pixels; None where a grid begins anew, or there is none."""
    rows_per_shard: int | None = None
    n_tasks: int | None = None
    peak_memory: int | None = None
    """Of the largest task, in bytes."""


@dataclass(frozen=True)
class Alternatives:
    """One row for each alignment, in the order none, chunk, shard, auto."""

    rows: tuple[Alternative, ...]

    def __iter__(self) -> Iterator[Alternative]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, align: str) -> Alternative:
        for row in self.rows:
            if row.align == align:
                return row
        raise KeyError(
            f"an alternative is one of {[row.align for row in self.rows]}, got {align!r}"
        )

    def columns(self) -> dict[str, list[Any]]:
        """The table, column by column."""
        return {f.name: [getattr(row, f.name) for row in self.rows] for f in fields(Alternative)}

    def _cells(self) -> list[list[str]]:
        """One line a number, one column an alignment."""
        return [
            [label, *(_text(getattr(row, name)) for row in self.rows)]
            for name, label in _LABELS.items()
        ]

    def __str__(self) -> str:
        lines = self._cells()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(
                cell.rjust(width) if k else cell.ljust(width)
                for k, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join(text + [f"{row.align}: {row.refused}" for row in self.rows if row.refused])

    def _repr_html_(self) -> str:
        head, *body = self._cells()
        lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
        lines += [
            f"<th>{escape(line[0])}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in line[1:])
            for line in body
        ]
        refused = "".join(
            f"<p>{escape(row.align)}: {escape(row.refused)}</p>" for row in self.rows if row.refused
        )
        table = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<table><caption>Alternatives</caption>{table}</table>{refused}"


def alternatives(
    images: Image | Sequence[Image],
    patching: Mapping[str, Any] | BaseModel | Patching,
    **options: Any,
) -> Alternatives:
    """What a plan would cost with each alignment: a plan is made for each, by `plan` itself.

    Takes as long as four plans, and their masks are read four times; chunk decodes are counted
    over all patches.

    Parameters
    ----------
    images, patching
        See `plan`.
    **options
        Of `plan`, but for ``align``.

    Returns
    -------
    Alternatives
        One row for each alignment; one that the strategy or the images do not admit says why.

    Raises
    ------
    ConfigError
        If ``align`` is among the options.
    PatchloomError
        If there is no plan without alignment.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> images = patchloom.open_images(np.zeros((100, 100), "uint8"))
    >>> found = patchloom.alternatives(images, {"name": "sequential", "patch_size": [32, 32]})
    >>> found["none"].n_patches, found["none"].pixels_left_out, found["shard"].refused[:20]
    (9, 784, "align='shard' is for")
    """
    if "align" in options:
        raise ConfigError(
            f"alternatives are plans with every alignment, got align={options['align']!r}; leave "
            "it out"
        )
    rows = []
    for align in ALIGNS:
        try:
            rows.append(_row(align, plan(images, patching, align=align, **options)))
        except PatchloomError as error:
            if align == "none":
                raise
            rows.append(Alternative(align, refused=str(error)))
    return Alternatives(tuple(rows))


def _row(align: str, found: Plan) -> Alternative:
    strategy, name = found.patching, found.config.name
    left, offset = None, None
    if isinstance(strategy, LatticePatching):
        left = sum(strategy.n_left_over(k) for k in range(len(found.images)))
        if name != "chunk_aligned":
            offset = tuple(getattr(strategy, "offset", (0,) * len(strategy.patch_size)))
    pixels = (
        found.n_pixels if found.edge == "shrink" else found.n_patches * math.prod(found.patch_size)
    )
    needed, reads = found.chunks_needed, found.chunk_reads
    return Alternative(
        align,
        n_patches=found.n_patches,
        pixels_left_out=left,
        chunks_needed=needed,
        chunk_reads=reads,
        read_amplification=reads / needed if needed else 1.0,
        bytes_per_pixel=found.bytes_decoded / pixels if pixels else None,
        strategy=name,
        offset=offset,
        rows_per_shard=found.rows_per_shard,
        n_tasks=found.n_tasks,
        peak_memory=found.runs.peak_memory,
    )


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
