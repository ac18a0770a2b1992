"""Folders of images: what lies in one, in the order in which people count."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from patchloom.errors import PatchloomError
from patchloom.location import Location
from patchloom.sources.files import format_of

__all__ = ["images_in", "in_order", "names_in"]

_DIGITS = re.compile(r"([0-9]+)")
_ZARR = {"zarr.json", ".zarray", ".zgroup", ".zattrs"}


def in_order(names: Iterable[str]) -> list[str]:
    """Names sorted as people count: runs of digits by their number.

    >>> in_order(["plane10.png", "plane2.png", "plane1.png"])
    ['plane1.png', 'plane2.png', 'plane10.png']
    """
    return sorted(names, key=_counted)


def _counted(name: str) -> tuple[list[Any], str]:
    """Texts and numbers in turn. Not by int(), which refuses very long ones."""
    parts: list[Any] = list(_DIGITS.split(name))
    parts[1::2] = [(len(n), n) for part in parts[1::2] for n in [part.lstrip("0")]]
    return parts, name


def names_in(location: Location) -> dict[str, bool] | None:
    """Names in a folder, and whether each is a folder; None if it is none, or a Zarr node.

    One listing. A web server has none.
    """
    if location.scheme in ("http", "https"):
        return None
    try:
        fs, root = location.open()
        fs.invalidate_cache(root)
        found = location.ask(lambda: fs.ls(root, detail=True))
    except (OSError, ValueError, PatchloomError, NotImplementedError):
        return None
    own = str(fs._strip_protocol(root)).rstrip("/")
    names = {}
    for entry in found:
        path = str(entry["name"]).rstrip("/")
        if path == own:
            if entry.get("type") == "file":
                return None  # a file lists itself
            continue
        names[path.rsplit("/", 1)[-1]] = entry.get("type") == "directory"
    if not names or _ZARR & set(names):
        return None
    return {name: is_folder for name, is_folder in names.items() if not name.startswith(".")}


def images_in(location: Location) -> list[str] | None:
    """Names of the images in a folder, in order; None if it is no folder of files.

    An image is a file of a known format, or a folder called ``*.zarr``.
    """
    names = names_in(location)
    if names is None:
        return None
    return in_order(
        name
        for name, is_folder in names.items()
        if (name.endswith(".zarr") if is_folder else format_of(location / name) is not None)
    )
