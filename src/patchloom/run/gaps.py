"""Gaps: which patches cannot be cut because a block could not be read, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from patchloom.planning.identity import patch_ids
from patchloom.planning.incidence import Patches
from patchloom.planning.plans import Plan

__all__ = ["Losses", "by_reason", "joined_losses", "lost_rows"]

Ints = npt.NDArray[np.int64]

REASONS = 20
"""Reasons that a report tells one by one."""
EXAMPLES = 5
"""Rows that a report gives of each."""


@dataclass(eq=False)
class Losses:
    """What some patches of one image miss."""

    n: int
    """How many patches there are."""
    reasons: list[str] = field(default_factory=list)

    @cached_property
    def why(self) -> Ints:
        """Position of the reason of each in `reasons`, -1 where nothing is missing: int64[n]."""
        return np.full(self.n, -1, np.int64)

    def watch(
        self,
        pairs: Callable[[], tuple[Ints, Ints]],
        missed: Callable[[int], None] | None = None,
    ) -> Callable[[int, str], None]:
        """A function that is told each broken block of one array, with the reason.

        Parameters
        ----------
        pairs
            Gives all pairs of a patch and a block that it needs; asked when the first one breaks.
        missed
            Told the block besides.
        """
        held: list[tuple[Ints, Ints]] = []

        def broken(block: int, reason: str) -> None:
            if not held:
                patch, blocks = pairs()
                order = np.argsort(blocks, kind="stable")
                held.append((patch[order], blocks[order]))
            patch, blocks = held[0]
            hit = patch[slice(*np.searchsorted(blocks, [block, block + 1]).tolist())]
            self.why[hit[self.why[hit] < 0]] = len(self.reasons)
            self.reasons.append(reason)
            if missed is not None:
                missed(block)

        return broken

    def split(self, some: Ints) -> tuple[Ints, Ints]:
        """Positions of patches that can be cut, and of those that cannot."""
        if not self.reasons:
            return some, some[:0]
        lost = self.why[some] >= 0
        return some[~lost], some[lost]

    def told(self, lost: Ints) -> npt.NDArray[Any]:
        """The reasons of some lost patches: str[n] as objects."""
        return np.array(self.reasons, object)[self.why[lost]]


def lost_rows(
    plan: Plan, parts: Sequence[Patches], row: Ints, reasons: npt.NDArray[Any], first_row: int
) -> pa.Table:
    """What a store says of the rows of one shard that it does not have, in row order.

    Parameters
    ----------
    plan, parts
        The plan and the patches of the shard.
    row
        The missing rows: int64[n].
    reasons
        Why: str[n].
    first_row
        Where the plan's rows begin in the store.
    """
    tables = []
    for part in parts:
        mine = part.take(np.isin(part.row, row))
        if not len(mine):
            continue
        corner = {f"start_{a}": mine.corner[:, k] for k, a in enumerate(plan.spatial)}
        columns: Mapping[str, Any] = {
            "row": mine.row + first_row,
            "patch_id": pa.array(patch_ids(plan, mine), pa.string()),
            "image_id": pa.array([plan.images[part.image].id] * len(mine), pa.string()),
            "sample": mine.sample,
            **corner,
        }
        tables.append(pa.table(columns))
    if not tables:
        return pa.table({"row": pa.array([], pa.int64())})
    table = pa.concat_tables(tables).sort_by("row")
    why = reasons[np.argsort(row, kind="stable")]
    return table.append_column("reason", pa.array(why, pa.string()))


def joined_losses(tables: Sequence[pa.Table]) -> pa.Table:
    """The missing rows of several shards, in row order."""
    return pa.concat_tables(tables).sort_by("row")


def by_reason(table: pa.Table, rows_per_shard: int) -> tuple[dict[str, Any], ...]:
    """What a report tells of missing rows: counts by reason, most first, and some rows of each.

    Parameters
    ----------
    table
        With columns ``row`` and ``reason``.
    rows_per_shard
        Patches of a shard.
    """
    coded = pc.dictionary_encode(table["reason"]).combine_chunks()
    why, row = coded.indices.to_numpy(), table["row"].to_numpy()
    counts = np.bincount(why, minlength=len(coded.dictionary))
    order = np.argsort(-counts, kind="stable")
    parts = [(coded.dictionary[k].as_py(), row[why == k]) for k in order[:REASONS].tolist()]
    if rest := order[REASONS:].tolist():
        text = f"{len(rest):,} other reasons, see skipped.parquet"
        parts.append((text, row[np.isin(why, rest)]))
    return tuple(
        {
            "reason": reason,
            "n_patches": len(mine),
            "n_shards": len(np.unique(mine // rows_per_shard)),
            "rows": mine[:EXAMPLES].tolist(),
        }
        for reason, mine in parts
    )
