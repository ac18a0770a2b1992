"""Weights: how often each patch is drawn, from the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from patchloom.errors import ConfigError
from patchloom.load.expressions import Expression, known_column

__all__ = ["weights_of"]

Floats = npt.NDArray[np.float64]


def weights_of(manifest: pa.Table, weights: Any) -> Floats:
    """The weight of each row of a manifest: float64[n].

    Parameters
    ----------
    manifest
        One row a patch.
    weights
        What the chance of a patch to be drawn is proportional to:

        - n numbers, one a row;
        - the name of a column, ``"class"``: each of its values is drawn as often as any other,
          whatever the number of its patches. What has no value counts as one;
        - a mapping, ``{"class": {"tumour": 3, "stroma": 1}}``: its values are drawn in these
          proportions, None standing for what has no value. Of several columns, weights multiply;
        - an expression that makes a number of each row, ``"1 + 3 * coverage"``.

    Returns
    -------
    float64[n]
        Finite, and none negative.

    Raises
    ------
    ConfigError
        If it is none of these, a value of the column has no weight, or weights are negative,
        missing or all 0.

    Examples
    --------
    >>> table = pa.table({"class": ["a", "a", "a", "b"]})
    >>> (3 * weights_of(table, "class")).tolist()
    [1.0, 1.0, 1.0, 3.0]
    >>> (3 * weights_of(table, {"class": {"a": 1, "b": 0}})).tolist()
    [1.0, 1.0, 1.0, 0.0]
    """
    if isinstance(weights, str) and weights in manifest.column_names:
        found = _shared(manifest, weights, None)
    elif isinstance(weights, str | Expression):
        found = Expression.of(weights).numbers(manifest)
    elif isinstance(weights, Mapping):
        found = np.ones(manifest.num_rows)
        for column, shares in weights.items():
            found *= _shared(manifest, column, shares)
    else:
        found = _column(weights)
    if found.shape != (manifest.num_rows,):
        raise ConfigError(
            f"weights= has one number a patch, got {found.shape} for {manifest.num_rows} patches"
        )
    return checked(found)


def checked(weights: Floats) -> Floats:
    """Weights that can be drawn by.

    Raises
    ------
    ConfigError
        If some are negative, missing or infinite, or all are 0.
    """
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        where = int(np.argmax(bad))
        raise ConfigError(
            f"weights are finite numbers from 0 on, got {weights[where]} for row {where}; give 0 "
            "to what is not to be drawn, or take a part: patches.where(...)"
        )
    if len(weights) and not weights.any():
        raise ConfigError("weights are above 0 for some patches, got 0 for all")
    return weights


def _column(weights: Any) -> Floats:
    try:
        return np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        raise ConfigError(
            "weights= is a column, an expression, a mapping of a column's values, or one number a "
            f"patch, got {weights!r:.60}"
        ) from None


def _shared(manifest: pa.Table, column: Any, shares: Any) -> Floats:
    """What each value of a column gets, divided among its patches."""
    listed = known_column(manifest, column).combine_chunks()
    coded = pc.dictionary_encode(listed, null_encoding="encode")
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.combine_chunks()
    values, codes = coded.dictionary.to_pylist(), coded.indices.to_numpy()
    counts = np.bincount(codes, minlength=len(values))
    if shares is None:
        alike: Floats = (1 / np.maximum(counts, 1))[codes]
        return alike
    if not isinstance(shares, Mapping):
        raise ConfigError(
            f"weights= maps the values of {column!r} to numbers, got {type(shares).__name__}; for "
            f"equal shares give the column: weights={column!r}"
        )
    told, unknown = dict(shares), [value for value in values if value not in shares]
    if unknown:
        raise ConfigError(
            f"each value of {column!r} has a weight, got none for {unknown[:5]}; give 0 to what is "
            "not to be drawn (None: what has no value)"
        )
    each = _column([told[value] for value in values])
    return (checked(each) / np.maximum(counts, 1))[codes] if len(each) else np.zeros(0)
