"""Contents: what is counted in the pixels of each patch while they are at hand."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from patchloom.arrow_files import arrow_file
from patchloom.planning.classes import ClassCounts
from patchloom.planning.incidence import Cut
from patchloom.planning.plans import Plan
from patchloom.randomness import digest, digest_of
from patchloom.scores import Score

__all__ = ["Contents", "Counted", "fraction_column", "named"]

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Contents:
    """What is asked of each patch, of the pixels that are stored, without its context."""

    scores: tuple[Score, ...] = ()
    classes: bool = False
    """Whether the values of its labels are counted."""
    coverage: bool = False
    """Whether the share under its mask is."""

    @classmethod
    def of(cls, plan: Plan) -> Contents:
        """What the manifest of a plan tells."""
        return cls(plan.scores, bool(plan.classes))

    def of_batch(self, plan: Plan, array: str, pixels: Pixels) -> dict[str, Pixels]:
        """What some patches show in one array, by columns of the manifest: [n] each.

        The class is its position in ``plan.classes``; -1 is none of them.
        """
        proper = _proper(pixels, plan.cut)
        if array == "image":
            return {score.column: score.of(proper) for score in self.scores}
        if array != "labels" or not self.classes or plan.balance is None:
            return {}
        counts = ClassCounts.of(proper[:, 0])
        found: dict[str, Pixels] = {"class": counts.assigned(plan.classes, plan.balance)}
        return found | {fraction_column(k): counts.fraction(k) for k in sorted(plan.classes)}

    @property
    def is_asked(self) -> bool:
        """Whether anything is."""
        return bool(self.scores) or self.classes or self.coverage

    @property
    def arrays(self) -> frozenset[str]:
        """The arrays that are read for it."""
        asked = {"image": bool(self.scores), "labels": self.classes}
        return frozenset(name for name, is_asked in asked.items() if is_asked)


@dataclass(eq=False)
class Counted:
    """The contents of the patches of one shard, batch after batch in row order."""

    columns: dict[str, list[Floats]] = field(default_factory=dict)
    """Scores and coverage by the names of their columns."""
    classes: list[ClassCounts] = field(default_factory=list)

    def add(self, contents: Contents, array: str, pixels: Pixels, cut: Cut) -> None:
        """Count the next batch: [n, channels, *space] of one array."""
        proper = _proper(pixels, cut)
        if array == "image":
            for score in contents.scores:
                self.columns.setdefault(score.column, []).append(score.of(proper))
        elif array == "labels" and contents.classes:
            self.classes.append(ClassCounts.of(proper[:, 0]))

    def scores(self) -> dict[str, Floats]:
        """One column a score: float64[n]."""
        return {name: np.concatenate(parts) for name, parts in self.columns.items()}

    def to_bytes(self) -> bytes:
        """As Parquet: one row a patch, classes as lists."""
        columns: dict[str, Any] = dict(self.scores())
        if self.classes:
            counts = ClassCounts.join(self.classes)
            begins = np.searchsorted(counts.patch, np.arange(counts.n + 1))
            for name, values in (("value", counts.value), ("pixels", counts.pixels)):
                columns[f"/{name}"] = pa.ListArray.from_arrays(begins, pa.array(values))
            columns["/volume"] = np.full(counts.n, counts.volume)
        table, sink = pa.table(columns), io.BytesIO()
        table = table.replace_schema_metadata({b"check": _check(table)})
        pq.write_table(table, sink, compression="zstd")
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Counted | None:
        """Inverse of `to_bytes`; None if it is damaged."""
        try:
            table = pq.read_table(arrow_file(data))
            if (table.schema.metadata or {})[b"check"] != _check(table):
                return None
        except Exception:  # a damaged file fails in many ways
            return None
        names = [name for name in table.column_names if not name.startswith("/")]
        found = cls({name: [table[name].to_numpy().astype(np.float64)] for name in names})
        if "/value" in table.column_names and table.num_rows:
            value, pixels = (table[f"/{name}"].combine_chunks() for name in ("value", "pixels"))
            lengths = value.value_lengths().to_numpy()
            found.classes.append(
                ClassCounts(
                    table.num_rows,
                    int(table["/volume"][0].as_py()),
                    np.repeat(np.arange(table.num_rows), lengths),
                    value.flatten().to_numpy(),
                    pixels.flatten().to_numpy(),
                )
            )
        return found


def fraction_column(value: int) -> str:
    """The manifest's column with the share of a class."""
    return f"fraction_{value}"


def named(columns: dict[str, Pixels], plan: Plan) -> dict[str, Any]:
    """What a shard was told, with the classes of balanced plans by their names."""
    if not plan.classes or "class" not in columns:
        return columns
    place = columns["class"]
    values = np.asarray(plan.classes, np.int64)
    return {**columns, "class": pa.array(values[place], mask=place < 0)}


def _proper(pixels: Pixels, cut: Cut) -> Pixels:
    """Patches without their context."""
    inside = tuple(slice(c, c + p) for c, p in zip(cut.context, cut.proper, strict=True))
    proper: Pixels = pixels[(slice(None), slice(None), *inside)]
    return proper


def _check(table: pa.Table) -> bytes:
    """What fixes the values of a piece."""
    whole = blake2b(digest_size=16)
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type):
            whole.update(digest_of(column.value_lengths().to_numpy()))
            column = column.flatten()
        whole.update(digest(name, len(column)))
        whole.update(digest_of(column.to_numpy(zero_copy_only=False)))
    return whole.hexdigest().encode()
