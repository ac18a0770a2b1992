"""Statistics in a folder: what they are of as JSON, what was counted as Parquet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from patchloom.errors import SourceMissingError, StoreError
from patchloom.location import Location
from patchloom.summaries import Summary
from patchloom.summaries.packed import read_summaries, summary_bytes

__all__ = ["read_folder", "write_folder"]

FORMAT = 1
_HEAD, _BODY = "statistics.json", "summaries.parquet"


def write_folder(
    target: Location, document: Mapping[str, Any], summaries: Mapping[Any, Summary]
) -> None:
    """Write both objects, the one that names the other last."""
    body = summary_bytes(summaries)
    head = {"format": FORMAT, **document, "sha256": hashlib.sha256(body).hexdigest()}
    target.write(_BODY, body)
    target.write(_HEAD, json.dumps(head, indent=1).encode())


def read_folder(place: Location) -> tuple[dict[str, Any], dict[Any, Summary]]:
    """Inverse of `write_folder`.

    Raises
    ------
    SourceMissingError
        If nothing is there.
    StoreError
        If it is something else, damaged, or of a newer format.
    """
    head, body = place.read(_HEAD), place.read(_BODY)
    if head is None or body is None:
        raise SourceMissingError(
            f"saved statistics are {_HEAD} and {_BODY} in a folder, but {place.shown!r} lacks "
            "them; save them there with Statistics.save(url)"
        )
    try:
        document = json.loads(head)
        version = document["format"]
        if type(version) is not int or version < 1:
            raise ValueError(f"got the format {version!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{place.shown}/{_HEAD} does not hold saved statistics ({type(error).__name__}); "
            "give another URL"
        ) from error
    if version > FORMAT:
        raise StoreError(
            f"this version reads statistics of format {FORMAT}, got format {version} at "
            f"{place.shown!r}; upgrade patchloom"
        )
    if hashlib.sha256(body).hexdigest() != document.get("sha256"):
        raise StoreError(
            f"{_BODY} is what {_HEAD} was written with, but at {place.shown!r} it is not: one of "
            "them is damaged, or of another save; save the statistics anew"
        )
    try:
        return document, read_summaries(body)
    except ValueError as error:
        raise StoreError(
            f"{place.shown}/{_BODY} does not hold summaries of pixels ({error}); save the "
            "statistics anew"
        ) from error
