"""What the patches of a store were normalised with, and what they can be normalised with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchloom.normalization import Normalization
from patchloom.summaries.table import Statistics

__all__ = ["pooled", "record", "recorded"]


def record(numbers: Mapping[str, Normalization]) -> dict[str, Any]:
    """What arrays are normalised with, as it stands in the attributes of a store."""
    told = {array: numbers[array].to_document() for array in sorted(numbers)}
    return {"normalization": told} if told else {}


def recorded(attributes: Mapping[str, Any]) -> dict[str, Normalization]:
    """Inverse of `record`."""
    told = attributes.get("normalization", {})
    return {array: Normalization.from_document(found) for array, found in told.items()}


def pooled(
    statistics: Statistics,
    kind: str,
    per: str,
    q: Sequence[float],
    method: str,
    columns: Mapping[str, Mapping[str, Any]],
) -> Normalization:
    """From what the statistics of a store are made from, which adds up by whatever is asked.

    Parameters
    ----------
    statistics
        Of the store.
    kind, per, q, method
        As for `Normalization.of`.
    columns
        Metadata of the images that have patches, by id.
    """
    ids = [image.id for image in statistics.images]
    place = {name: k for k, name in enumerate(columns)}
    found = {
        (place[ids[cell.image]], cell.channel): summary
        for cell, summary in statistics.summaries.items()
        if ids[cell.image] in place
    }
    return Normalization.of(
        kind,
        found,
        [*columns],
        statistics.channels,
        per=per,
        columns=[*columns.values()],
        q=q,
        method=method,
        over=statistics.over,
    )
