"""VerifyReport: what a check of a store found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from patchloom.public_names import PublicNames
from patchloom.store.checking import Damage
from patchloom.table import html_table

__all__ = ["VerifyReport"]

_SHOWN = 20
"""Damaged objects that are named in the text of a report."""


@dataclass(frozen=True)
class VerifyReport(PublicNames):
    """What a check of a store found."""

    url: str
    complete: bool
    """What the store says of itself."""
    n_shards: int
    """Shards of the plan."""
    n_checked: int
    """Shards that are committed, and were checked."""
    n_partial: int
    """Of these, those that lack patches which could not be read."""
    n_unfinished: int
    """Shards of a store that is not complete which no run has finished yet."""
    n_patches: int
    """Rows of the manifest."""
    n_objects: int
    bytes_read: int
    """Bytes of the store that were read, sources not counted."""
    n_compared: int
    """Patches that were compared with their source, pixel by pixel."""
    not_compared: Mapping[str, int]
    """Patches of the sample that were not, by reason."""
    damage: tuple[Damage, ...]
    """Everything that is not as it was written, by shard."""
    repaired: tuple[int, ...] = field(default=())
    """Shards that the next run will make again."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damage

    @property
    def damaged_shards(self) -> tuple[int, ...]:
        """Numbers of the damaged shards, ascending."""
        return tuple(sorted({d.shard for d in self.damage if d.shard is not None}))

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return {**asdict(self), "ok": self.ok, "damaged_shards": list(self.damaged_shards)}

    def __str__(self) -> str:
        lines = [
            f"{self.n_checked:,} of {self.n_shards:,} shards checked, {self.n_patches:,} patches, "
            f"{self.n_objects:,} objects, {self.bytes_read / 2**20:,.1f} MiB, "
            f"{self.n_compared:,} patches compared with their source, {self.seconds:.1f} s"
        ]
        lines += [f"{n:,} patches not compared: {why}" for why, n in self.not_compared.items()]
        if self.n_partial:
            lines.append(f"{self.n_partial:,} shards lack patches that could not be read")
        if self.n_unfinished:
            lines.append(f"{self.n_unfinished:,} shards are not written yet")
        if self.ok:
            return "\n".join([*lines, "nothing is damaged"])
        shards = self.damaged_shards
        lines.append(f"{len(self.damage):,} objects of {len(shards):,} shards are damaged:")
        lines += [f"  {damage}" for damage in self.damage[:_SHOWN]]
        lines += [f"  and {len(self.damage) - _SHOWN:,} more"] * (len(self.damage) > _SHOWN)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return html_table("Verify", self.to_dict())
