"""Conditions: metadata of patches as one-hot numbers, by categories that training has seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from patchloom.errors import ConfigError
from patchloom.load.expressions import known_column

__all__ = ["Conditions"]

_UNSEEN = ("error", "zeros")
Value = str | int | bool | None


@dataclass(frozen=True)
class Conditions:
    """A one-hot encoder of metadata columns, fitted on the rows of training patches only.

    Each column has one number a category, in the order of the categories; columns follow on each
    other. A missing value is a category of its own if training has seen one.

    Examples
    --------
    >>> table = pa.table({"stain": ["HE", "PAS", "HE"], "day": [3, 1, 1]})
    >>> encoder = Conditions.fit(table, ["stain", "day"])
    >>> encoder.names
    ('stain=HE', 'stain=PAS', 'day=1', 'day=3')
    >>> encoder.encode(table).tolist()
    [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]]
    """

    columns: tuple[str, ...]
    categories: tuple[tuple[Value, ...], ...]
    """Of each column, ascending; None last."""
    unseen: str = "error"
    """What becomes of a value that training has not seen: ``"error"``, or ``"zeros"`` in all
    numbers of its column."""

    def __post_init__(self) -> None:
        if self.unseen not in _UNSEEN:
            raise ConfigError(f"unseen= is one of {_UNSEEN}, got {self.unseen!r}")

    @classmethod
    def fit(cls, train: Any, columns: str | Sequence[str], *, unseen: str = "error") -> Conditions:
        """The encoder of the values that some rows have.

        Parameters
        ----------
        train
            Patches for training, or their manifest. Not those for validation: what only these
            have, is unseen.
        columns
            Of the manifest: text, whole numbers or flags.
        unseen
            ``"error"`` or ``"zeros"``.

        Raises
        ------
        ConfigError
            If a column is unknown or has no categories, such as fractions.
        """
        table = getattr(train, "manifest", train)
        names = (columns,) if isinstance(columns, str) else tuple(columns)
        found = []
        for name in names:
            column = _plain(known_column(table, name), name)
            values = pc.unique(column).to_pylist()
            known = sorted(value for value in values if value is not None)
            found.append((*known, *([None] if None in values else [])))
        return cls(names, tuple(found), unseen)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the numbers: ``column=category``."""
        pairs = zip(self.columns, self.categories, strict=True)
        return tuple(f"{column}={value}" for column, values in pairs for value in values)

    def __len__(self) -> int:
        return sum(map(len, self.categories))

    def encode(self, rows: Any) -> npt.NDArray[np.float32]:
        """The numbers of some rows: float32[n, len(self)].

        Parameters
        ----------
        rows
            Patches, a manifest, or a mapping from columns to their values.

        Raises
        ------
        ConfigError
            If a column is missing, or a value is unseen and that is an error.
        """
        table = getattr(rows, "manifest", rows)
        if isinstance(table, Mapping):
            table = pa.table({name: _listed(table, name) for name in self.columns})
        out = np.zeros((table.num_rows, len(self)), np.float32)
        first = 0
        for name, values in zip(self.columns, self.categories, strict=True):
            column = _plain(known_column(table, name), name)
            code = self._codes(column, name, values)
            seen = np.flatnonzero(code >= 0)
            out[seen, first + code[seen]] = 1
            first += len(values)
        return out

    def _codes(self, column: pa.Array, name: str, values: Sequence[Value]) -> npt.NDArray[np.int64]:
        try:
            nothing = pa.types.is_null(column.type)
            known = pa.array(values, None if nothing else column.type)
            found = pc.index_in(pc.cast(column, known.type), known)
        except (pa.ArrowException, OverflowError, TypeError):
            raise ConfigError(
                f"values of {name!r} are of the kind that was fitted, {list(values)[:5]}, got "
                f"{column.type}"
            ) from None
        code: npt.NDArray[np.int64] = np.asarray(pc.fill_null(found, -1)).astype(np.int64)
        if self.unseen == "error" and (code < 0).any():
            where = int(np.argmax(code < 0))
            raise ConfigError(
                f"each value of {name!r} was seen in training, got {column[where].as_py()!r}, and "
                f"training has {list(values)[:10]}; split so that it has all, or fit with "
                "unseen='zeros'"
            )
        return code

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch with its numbers as ``"condition"``: a ``transform=`` of loaders.

        The batch has the columns: ``batches(32, columns=encoder.columns, transform=encoder)``. Of
        a single patch, whose columns are single values, they are float32[len(self)].
        """
        rows = {name: batch[name] for name in self.columns if name in batch}
        single = not any(isinstance(value, np.ndarray | list | tuple) for value in rows.values())
        found = self.encode({k: [v] for k, v in rows.items()} if single and rows else rows)
        return {**batch, "condition": found[0] if single else found}

    def to_json(self) -> str:
        """As text; `from_json` is the inverse."""
        return json.dumps(
            {
                "columns": self.columns,
                "categories": self.categories,
                "unseen": self.unseen,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Conditions:
        """Inverse of `to_json`.

        Raises
        ------
        ConfigError
            If it is not what `to_json` writes.
        """
        try:
            told = json.loads(text)
            return cls(
                tuple(told["columns"]), tuple(map(tuple, told["categories"])), told["unseen"]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"an encoder is read from what Conditions.to_json writes, got {str(text)[:60]!r} "
                f"({error}); fit it anew"
            ) from None


def _plain(column: pa.ChunkedArray | pa.Array, name: str) -> pa.Array:
    """A column of text, whole numbers or flags, in their widest types."""
    found = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = found.type
    if pa.types.is_dictionary(kind):
        return _plain(pc.cast(found, kind.value_type), name)
    if pa.types.is_integer(kind):
        return pc.cast(found, pa.int64())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pc.cast(found, pa.string())
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return found
    raise ConfigError(
        f"conditions are categories: text, whole numbers or flags, got {kind} in {name!r}; give it "
        "to the network as a number, or put it into classes in the images' metadata"
    )


def _listed(rows: Mapping[str, Any], name: str) -> pa.Array:
    if name not in rows:
        raise ConfigError(
            f"a batch that is encoded has the column {name!r}, got {sorted(rows)}; ask the loader "
            "for it: columns=encoder.columns"
        )
    values = rows[name]
    if np.asarray(values).dtype.kind != "f":
        return pa.array(values.tolist() if isinstance(values, np.ndarray) else list(values))
    # NumPy has whole numbers of which some are missing as fractions.
    found = pa.array(np.asarray(values), from_pandas=True)
    try:
        return pc.cast(found, pa.int64())
    except pa.ArrowInvalid:
        return found
