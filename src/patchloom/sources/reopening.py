"""Reopening: an image opened again by what a store tells of it, where a URL is enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patchloom.errors import SourceError
from patchloom.image import Image, innermost
from patchloom.sources.functions import FunctionSource, LoaderSource
from patchloom.sources.opening import open_images
from patchloom.sources.selected import selected_again
from patchloom.sources.stacks import StackSource

__all__ = ["reading_document", "reopened"]

_READ = {FunctionSource: "function", LoaderSource: "loader", StackSource: "stack"}
_WHAT = {
    "function": "a function that was given as read= reads it",
    "loader": "a loader that was given as read= makes it",
    "stack": "it is a stack of files",
}


def reading_document(image: Image) -> dict[str, str]:
    """What makes an image of its URL, for JSON; nothing if the URL is enough to open it."""
    found = _READ.get(type(innermost(image.source)))
    return {} if found is None else {"read": found}


def reopened(told: Mapping[str, Any], options: Mapping[str, Any]) -> Image | str:
    """The image that a store's attributes tell of, or why it is not to be had by its URL alone.

    Parameters
    ----------
    told
        Its entry of ``images`` in the attributes.
    options
        For fsspec.

    Raises
    ------
    PatchloomError
        If it cannot be opened.
    """
    if not told["uri"]:
        return "the store tells no URL of its source"
    if "windows" in told:
        return "it shows time windows, which a plan knows"
    if "read" in told:
        return f"{_WHAT.get(told['read'], 'more than a URL tells it')}, which a plan knows"
    taken = told.get("selection", {"axes": told["axes"], "picks": {}})
    try:
        found = open_images(
            told["uri"], axes=taken["axes"], level=told["level"], storage_options=options
        )
    except SourceError:
        if told["level"] == 0:
            raise
        # The URL of a Zarr array is that of its level; in a file all levels have the same.
        found = open_images(told["uri"], axes=taken["axes"], storage_options=options)
    if len(found) != 1:
        return f"its URL {told['uri']!r} holds {len(found)} images now"
    image = selected_again(found[0], taken["picks"])
    if list(image.shape) != told["shape"]:
        return f"its source {image.uri!r} has another shape now"
    return image
