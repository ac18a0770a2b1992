"""Outlines that images hold, saved once where several hold the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from patchloom.polygons import Polygons

__all__ = ["folded", "unfolded"]


def folded(documents: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Documents of images, and the outlines that they hold by their digests.

    Parameters
    ----------
    documents
        From `Image.to_document`; taken one by one, and changed.
    """
    found: list[dict[str, Any]] = []
    held: dict[str, Any] = {}
    for document in documents:
        for source in _outlines(document):
            if source["held"] is not None:
                held.setdefault(source["content"], source["held"])
                source["held"] = source["content"]
        found.append(document)
    return found, held


def unfolded(
    documents: Iterable[dict[str, Any]], held: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Inverse of `folded`; what several images hold is one `Polygons`.

    Raises
    ------
    KeyError, ValueError
        If outlines are missing, or are not those of their digest.
    """
    known: dict[str, Polygons] = {}
    for document in documents:
        for source in _outlines(document):
            name = source["held"]
            if isinstance(name, str):
                if name not in known:
                    known[name] = Polygons.from_document(held[name])
                    if known[name].digest() != name:
                        raise ValueError(f"the outlines {name} are others")
                source["held"] = known[name]
        yield document


def _outlines(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for role in document["roles"].values():
        source = role["image"]["source"]
        if source["kind"] == "outlines":
            yield source
