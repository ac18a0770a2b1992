"""Summed: the summaries of a store, added up from its shards, or as a pass of its own left them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from patchloom.errors import AccessError, StoreError
from patchloom.location import Location
from patchloom.store.additions import additions_of
from patchloom.store.schema import summary_name, whole_name
from patchloom.summaries import Summary
from patchloom.summaries.packed import read_summaries

__all__ = ["store_summaries", "summed"]

Found = dict[tuple[int, int], Summary]

_TOGETHER = 64
"""Shards whose summaries are held beside their sum."""


def summed(target: Location, names: Sequence[str]) -> Found:
    """The sum of some objects with summaries by (image, channel); those that are missing add 0.

    Parameters
    ----------
    target
        The store.
    names
        Of the objects.

    Raises
    ------
    AccessError
        If the store does not answer, or refuses.
    StoreError
        If one of them is damaged.
    """

    def read(name: str) -> Found:
        try:
            data = target.read(name)
            return {} if data is None else read_summaries(data)
        except AccessError:
            raise
        except (OSError, ValueError) as error:
            raise StoreError(
                f"every shard has a summary that can be read, but {name} of {target.shown!r} "
                f"has not ({type(error).__name__}); call again with verify=True, which finds and "
                "makes anew all that is damaged"
            ) from error

    found: Found = {}
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(names), _TOGETHER):
            _add(found, pool.map(read, names[start : start + _TOGETHER]))
    return found


def _add(found: Found, parts: Iterable[Found]) -> None:
    for part in parts:
        for key, summary in part.items():
            found[key] = found[key] + summary if key in found else summary


def store_summaries(target: Location, attributes: Mapping[str, Any]) -> Found:
    """What the statistics of a store are made from, by (image, channel).

    Parameters
    ----------
    target, attributes
        The store.

    Raises
    ------
    StoreError
        If an object cannot be read, or the store is of a version that did not keep it.
    """
    apart, over = attributes.get("summaries", {}), attributes["job"]["over"]
    names = []
    for addition in additions_of(attributes):
        whole = whole_name(addition.first_shard)
        if whole in apart:
            names.append(whole)
            continue
        if over != "patches":
            raise StoreError(
                f"summaries over={over!r} are kept beside a store, but the version that made "
                f"{target.shown!r} kept only their numbers (its statistics); survey the images anew"
            )
        first = addition.first_shard
        names += [summary_name(shard) for shard in range(first, first + addition.n_shards)]
    return summed(target, names)
