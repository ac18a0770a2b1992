"""Reducing: results that add are added up in the graph, a few at a time, as trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from patchloom.image import Reads
from patchloom.run.counting import Found
from patchloom.run.graph import Key

__all__ = ["FAN", "ROOTS", "added", "tree"]

FAN = 8
"""Results that one task adds up, at most."""
ROOTS = 32
"""Results that the caller adds up, about, of all that belong together."""

Counted = tuple[Found, Reads, Reads]


def tree(
    keys: Sequence[Key], roots: int, name: str, first: int
) -> tuple[dict[Any, Any], list[Key]]:
    """Tasks that add up results, and the keys of the sums.

    Parameters
    ----------
    keys
        Of the results.
    roots
        How many sums are few enough.
    name, first
        Names the tasks: their keys are (name, first), (name, first + 1), ...

    Returns
    -------
    dict, list
        No task if there are so few already.

    >>> layer, sums = tree([("leaf", k) for k in range(20)], 3, "sum", 0)
    >>> len(layer), sums
    (3, [('sum', 0), ('sum', 1), ('sum', 2)])
    """
    layer: dict[Any, Any] = {}
    some = list(keys)
    while len(some) > max(1, roots):
        # Neighbours go together: they are done at about the same time.
        parts = [some[low : low + FAN] for low in range(0, len(some), FAN)]
        some = [(name, first + len(layer) + k) for k in range(len(parts))]
        layer |= {key: (added, part) for key, part in zip(some, parts, strict=True)}
    return layer, some


def added(parts: Sequence[Counted]) -> Counted:
    """The sum of several results."""
    found: Found = {}
    under, reads = Reads(), Reads()
    for some, more, seen in parts:
        for cell, summary in some.items():
            before = found.get(cell)
            found[cell] = summary if before is None else before + summary
        under, reads = under + more, reads + seen
    return found, under, reads
