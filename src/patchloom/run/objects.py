"""Objects: the sizes of stored objects, from a listing; no object is opened."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchloom.location import Location

__all__ = ["Objects", "object_sizes"]

LISTED = 200_000
"""Objects of a folder that are listed; of more, some are asked for their sizes one by one."""
ASKED = 512
"""Objects that are asked one by one at most."""


@dataclass(frozen=True)
class Objects:
    """Sizes of some objects of one folder."""

    nbytes: npt.NDArray[np.int64]
    """Of each in bytes, -1 where it does not exist: int64[n]."""
    metadata: int
    """Of the array's metadata document."""
    exact: bool
    note: str = ""
    """Why they are not exact."""


def object_sizes(
    location: Location, names: Sequence[str], document: str, n_objects: int
) -> Objects | None:
    """The sizes of some objects of an array.

    Parameters
    ----------
    location
        Folder of the array.
    names
        Names of the objects in it, none twice.
    document
        Name of its metadata document; a listing without it is not trusted.
    n_objects
        Objects that the folder may hold.

    Returns
    -------
    Objects or None
        None where the store does not tell sizes, or the array is not there.
    """
    if n_objects <= LISTED and not location.scheme.startswith("http"):
        found = location.list()
        if found.get(document):
            sizes = np.fromiter((found.get(name, -1) for name in names), np.int64, len(names))
            return Objects(sizes, found[document], True)
    picked = np.unique(np.linspace(0, len(names) - 1, min(len(names), ASKED)).astype(np.int64))
    with ThreadPoolExecutor(16) as pool:
        asked = [document, *(names[k] for k in picked.tolist())]
        told = list(pool.map(lambda name: _size(location, name), asked))
    if any(size is None for size in told) or told[0] == -1:
        return None
    known = np.asarray(told, np.int64)
    if len(picked) == len(names):
        return Objects(known[1:], int(known[0]), True)
    mean = round(float(np.maximum(known[1:], 0).mean()))
    sizes = np.full(len(names), mean, np.int64)
    sizes[picked] = known[1:]
    note = f"sizes of {len(picked):,} of {len(names):,} objects of {location.shown} stand for all"
    return Objects(sizes, int(known[0]), False, note)


def _size(location: Location, name: str) -> int | None:
    """Bytes of one object, -1 where there is none, None where the store does not say."""
    fs, root = location.open()
    try:
        size = location.ask(lambda: fs.info(location.inside(root, name)).get("size"), name)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    return None if size is None else int(size)
