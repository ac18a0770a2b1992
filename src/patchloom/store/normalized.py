"""What the patches of a store were normalised with, and what they can be normalised with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from patchloom.errors import StoreError
from patchloom.location import Location
from patchloom.normalization import Normalization
from patchloom.store.additions import n_shards_of
from patchloom.store.manifest import read_summaries
from patchloom.store.schema import summary_name
from patchloom.summaries import Summary

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
    location: Location,
    attributes: Mapping[str, Any],
    kind: str,
    per: str,
    q: Sequence[float],
    columns: Mapping[str, Mapping[str, Any]],
) -> Normalization:
    """From the summaries of all shards, which add up by whatever is asked.

    Parameters
    ----------
    location, attributes
        Of the store.
    kind, per, q
        As for `Normalization.of`.
    columns
        Metadata of the images that have patches, by id.

    Raises
    ------
    ConfigError
        As `Normalization.of`.
    StoreError
        If the store's statistics are not of its patches.
    """
    over = attributes["job"]["over"]
    if over != "patches":
        raise StoreError(
            f"a store keeps what can be pooled of its patches, but the statistics of this one are "
            f"over={over!r}, and by image; take per='image' with its own percentiles "
            f"{attributes['job']['percentiles']}, or Normalization.from_statistics"
        )
    names = [summary_name(shard) for shard in range(n_shards_of(attributes))]
    found: dict[tuple[int, int], Summary] = {}
    with ThreadPoolExecutor(8) as pool:
        for data in pool.map(location.read, names):
            for at, summary in ({} if data is None else read_summaries(data)).items():
                found[at] = found[at] + summary if at in found else summary
    ids = [image["id"] for image in attributes["images"]]
    place = {name: k for k, name in enumerate(columns)}
    found = {(place[ids[i]], c): s for (i, c), s in found.items() if ids[i] in place}
    return Normalization.of(
        kind,
        found,
        [*columns],
        attributes["channels"],
        per=per,
        columns=[*columns.values()],
        q=q,
        method=attributes["job"].get("method", "linear"),
        over=over,
    )
