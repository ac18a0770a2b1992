"""Selection: which rows of a manifest are meant, by what stands in their columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from patchloom.errors import ConfigError

__all__ = ["Selection"]


@dataclass(frozen=True)
class Selection:
    """Rows that have one of some values in each of some columns; without columns, all rows.

    >>> some = Selection.of({"split": ["train", "val"]})
    >>> some.of_rows(pa.table({"split": ["train", "test"], "row": [0, 1]}))["row"].to_pylist()
    [0]
    >>> str(some)
    "split in ['train', 'val']"
    """

    columns: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @classmethod
    def of(cls, where: Mapping[str, Any] | None) -> Selection:
        """From a mapping of columns to a value, or several.

        Raises
        ------
        ConfigError
            If it is none.
        """
        if where is None:
            return cls()
        if not isinstance(where, Mapping):
            raise ConfigError(
                f"where= is a mapping of columns to values, got {where!r}; give for example "
                "{'split': 'train'}"
            )
        found = []
        for name, value in where.items():
            values = tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)
            if not values or not all(map(_may_be_meant, values)):
                raise ConfigError(
                    f"where= gives each column a text, finite number or flag, or several, got "
                    f"{value!r} for {name!r}"
                )
            found.append((str(name), values))
        return cls(tuple(sorted(found, key=lambda item: item[0])))

    def with_value(self, column: str, value: Any) -> Selection:
        """Those of its rows that have a value in one column more."""
        return Selection((*self.columns, (column, (value,))))

    def missing(self, table: pa.Table) -> frozenset[str]:
        """The columns that a table lacks."""
        return frozenset(name for name, _ in self.columns if name not in table.column_names)

    def of_rows(self, table: pa.Table) -> pa.Table:
        """The rows of a table that are meant; a column that it lacks is null everywhere.

        Raises
        ------
        ConfigError
            If a value cannot stand in its column.
        """
        for name, values in self.columns:
            if name not in table.column_names:
                if None not in values:
                    table = table.slice(0, 0)
                continue
            column = table[name]
            wanted = pa.array([_typed(name, v, column.type) for v in values], column.type)
            table = table.filter(pc.is_in(column, value_set=wanted))
        return table

    def __str__(self) -> str:
        parts = [
            f"{name} = {values[0]!r}" if len(values) == 1 else f"{name} in {list(values)}"
            for name, values in self.columns
        ]
        return " and ".join(parts)

    def to_document(self) -> dict[str, list[Any]]:
        """JSON-ready."""
        return {name: list(values) for name, values in self.columns}


def _may_be_meant(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int | bool)


def _typed(name: str, value: Any, kind: pa.DataType) -> Any:
    """A value as its column has it: a number may be given as text."""
    if value is None or pa.types.is_null(kind):
        return None
    try:
        return pa.scalar(value).cast(kind).as_py()
    except (pa.ArrowException, OverflowError) as error:
        raise ConfigError(
            f"where= compares a column with values of its own type, but {name!r} holds {kind} and "
            f"got {value!r} ({error})"
        ) from None
