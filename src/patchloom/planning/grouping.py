"""Grouped rows: patches of one value stand together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.errors import ConfigError
from patchloom.planning.cells import Cells
from patchloom.planning.incidence import Patches
from patchloom.planning.rows import Rows

__all__ = ["by_image", "by_patch", "codes_of", "codes_of_column"]

Ints = npt.NDArray[np.int64]


def codes_of(name: str, values: Sequence[Any]) -> Ints:
    """Places of some values in ascending order, what is missing last: int64[n].

    Raises
    ------
    ConfigError
        If values cannot be compared with one another.

    >>> codes_of("well", ["B", None, "A", "B"]).tolist()
    [1, 2, 0, 1]
    """
    known = {v for v in values if not _is_missing(v)}
    try:
        place = {v: k for k, v in enumerate(sorted(known))}
    except TypeError:
        kinds = sorted({type(v).__name__ for v in known})
        raise ConfigError(
            f"group_by= puts values in ascending order, but those of {name!r} are of several "
            f"types: {kinds}; make them one type"
        ) from None
    return np.array([place.get(v, len(known)) for v in values], np.int64)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def by_image(cells: Cells, codes: Ints) -> Rows:
    """Rows by a value of the images: `codes` int64[n_images]."""
    ranks = cells.rows_of(cells.bounds)
    n = np.diff(ranks)
    order = np.argsort(codes, kind="stable")
    order = order[n[order] > 0]
    return Rows.of(ranks[:-1][order], n[order]) if len(order) else Rows.straight(0)


def by_patch(parts: Iterable[Patches], code: Callable[[Patches], npt.NDArray[Any]]) -> Rows:
    """Rows by a value of the patches; memory grows with changes of the value along the curve.

    Parameters
    ----------
    parts
        All patches along the curve, one image each.
    code
        The place of the value of each of some patches in ascending order: int[n].
    """
    begin, codes, n_rows = [], [], 0
    for part in parts:
        values = code(part)
        # Pieces are of one image each.
        change = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
        begin.append(part.rank[change])
        codes.append(values[change].astype(np.int64))
        n_rows = int(part.rank[-1]) + 1
    if not begin:
        return Rows.straight(0)
    first = np.concatenate(begin)
    n = np.diff(np.append(first, n_rows))
    order = np.argsort(np.concatenate(codes), kind="stable")
    return Rows.of(first[order], n[order])


def codes_of_column(name: str, column: pa.ChunkedArray) -> Ints:
    """Like `codes_of`, for a column of a table of places."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    found = column.combine_chunks().dictionary_encode()
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    table = codes_of(name, [*found.dictionary.to_pylist(), None])
    index = found.indices.fill_null(len(table) - 1).to_numpy(zero_copy_only=False)
    places: Ints = table[index.astype(np.int64)]
    return places
