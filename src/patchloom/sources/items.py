"""Items: what one call of `open_images` names, one after the other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from patchloom.errors import NotAnArrayError, SourceError, SourceMissingError
from patchloom.location import Location
from patchloom.sources.arrays import is_array
from patchloom.sources.datasets import is_dataset, variable_of
from patchloom.sources.files import format_of
from patchloom.sources.folders import images_in, in_order
from patchloom.sources.inside import split_inside

__all__ = ["expanded", "with_array"]

_MAGIC = set("*?[")


def expanded(urls: Any, options: Mapping[str, Any], *, folders: bool) -> list[Any]:
    """What is given, with the images that globs, lists and folders stand for.

    Parameters
    ----------
    urls
        As in `open_images`.
    options
        For fsspec.
    folders
        Whether a folder stands for the images in it.

    Raises
    ------
    SourceMissingError
        If nothing is given, or nothing matches.
    NotAnArrayError
        If a folder holds no image.
    """
    if is_array(urls) or is_dataset(urls):
        return [urls]
    if isinstance(urls, str | os.PathLike):
        text = os.fspath(urls)
        if not text:
            raise SourceMissingError("open_images takes paths, URLs or arrays, got an empty one")
        text, inside = split_inside(text)
        found = _matching(text, options)
        if folders:
            found = [one for name in found for one in _inside_folder(name, options)]
        return found if inside is None else [f"{name}::{inside}" for name in found]
    if isinstance(urls, Sequence):
        found = [entry for item in urls for entry in expanded(item, options, folders=folders)]
        if found:
            return found
    raise SourceMissingError(
        f"open_images takes paths, URLs or arrays, at least one, got {type(urls).__name__}"
        + ("" if isinstance(urls, Sequence) else f" {urls!r}")
    )


def with_array(item: Any, array: str | None) -> Any:
    """An item with the array that ``array=`` names inside it."""
    if is_dataset(item):
        return variable_of(item, array)
    if array is None:
        return item
    if is_array(item) or split_inside(item)[1] is not None:
        what = "an array" if is_array(item) else repr(Location.of(item).shown)
        raise SourceError(
            f"array= names what is opened inside a container, got {array!r} for {what}, which is "
            "no container or says it already; leave array out, or open them apart"
        )
    return f"{item}::{array}"


def _matching(text: str, options: Mapping[str, Any]) -> list[str]:
    """The URLs that a pattern stands for, in the order in which people count; one URL is itself."""
    web = text.startswith(("http://", "https://"))
    magic = _MAGIC - {"?"} if web else _MAGIC
    if not magic & set(text.partition("://")[2] or text) or os.path.exists(text):
        return [text]
    location = Location.of(text, options)
    fs, path = location.open()
    try:
        found = in_order([str(p).rstrip("/") for p in location.ask(lambda: fs.glob(path))])
    except Exception as error:
        raise SourceMissingError(
            f"the folder of {location.shown!r} must be readable, but it is not: "
            f"{location.describe(error)}; check the path and the credentials"
        ) from error
    if not found:
        raise SourceMissingError(
            f"a pattern matches at least one image, but nothing matches {location.shown!r}; "
            "check the path"
        )
    if location.scheme == "file" and "://" not in text:
        return found
    return [fs.unstrip_protocol(p) for p in found]


def _inside_folder(text: str, options: Mapping[str, Any]) -> list[str]:
    """The images in a folder; the URL itself if it is something else."""
    location = Location.of(text, options)
    if ".zarr" in location.shown or format_of(location) is not None:
        return [text]
    names = images_in(location)
    if names == []:
        raise NotAnArrayError(
            f"a folder is opened as the images in it, but none of {location.shown!r} is of a known "
            "format (docs/formats), and it has neither zarr.json nor .zarray nor .zgroup; name a "
            "file, or an array inside"
        )
    return [text] if names is None else [(location / name).url for name in names]
