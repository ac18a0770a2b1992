"""Places: whether sources can be read and outputs be written, from here and by workers."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from patchloom.doctor.finding import Finding
from patchloom.errors import PatchloomError
from patchloom.image import Image
from patchloom.location import Location

__all__ = ["credentials", "output", "read_first", "sources", "store", "try_write", "written_beside"]

_LARGE = 2**28
"""Bytes of a chunk that is not decoded for a try."""


def sources(images: Sequence[Image], *, named: str) -> Iterator[Finding]:
    """What was opened, and whether pixels of the first image and of its roles can be decoded.

    Parameters
    ----------
    images
        From `open_images`.
    named
        What to call them; without secrets.
    """
    first = images[0]
    shapes = {image.shape for image in images}
    some = f"{len(images):,} image{'s' * (len(images) > 1)}"
    alike = " x ".join(map(str, first.shape)) if len(shapes) == 1 else f"{len(shapes)} shapes"
    yield Finding("ok", "source", f"{named}: {some}, {alike} {first.axes} {first.dtype}")
    for name, image in first.cut_arrays.items():
        yield _decoded(image, name if name != "image" else "pixels")
    if (mask := first.roles.get("mask")) is not None:
        yield _decoded(mask.image, "mask")


def store(location: Location) -> Iterator[Finding]:
    """Whether a patch store opens, is whole, and gives its first patch."""
    from patchloom.store.patch_store import open_patches

    try:
        found = open_patches(location.url, storage_options=location.options)
    except PatchloomError as error:
        yield Finding.of_error("store", error)
        return
    said = f"{location.shown}: {len(found):,} patches"
    try:
        if len(found):
            found[0]
    except Exception as error:  # each codec has errors of its own
        way = f"patchloom verify {location.shown} says what is damaged"
        told = f"{said}, but the first one cannot be decoded: {location.describe(error)}"
        yield Finding("fail", "store", told, way)
        return
    if found.complete:
        yield Finding("ok", "store", f"{said}, complete; the first one decodes")
    else:
        way = "run its job again to finish it"
        yield Finding("warn", "store", f"{said}, not complete; the first one decodes", way)


def read_first(image: Image) -> int:
    """Read one pixel of an image, which decodes a chunk.

    Returns
    -------
    int
        Bytes of the chunk.
    """
    n = image.ndim
    image.read((0,) * n, (1,) * n)
    return int(image.chunk_nbytes)


def _decoded(image: Image, what: str) -> Finding:
    if image.chunk_nbytes > _LARGE:
        size = f"{image.chunk_nbytes / 2**20:,.0f} MiB"
        return Finding(
            "warn",
            "source",
            f"{what} of {image.id!r}: what is decoded at once has {size}",
            "chunk or tile the image: each task decodes that much",
        )
    begun = time.perf_counter()
    try:
        nbytes = read_first(image)
    except PatchloomError as error:
        return Finding.of_error("source", error)
    took = 1000 * (time.perf_counter() - begun)
    said = f"a chunk of {nbytes / 1024:,.0f} KiB read and decoded in {took:,.0f} ms"
    return Finding("ok", "source", f"{what} of {image.id!r}: {said}")


def output(target: Location) -> Iterator[Finding]:
    """Whether a store can be written, and what stands there already; nothing is left behind.

    Parameters
    ----------
    target
        Of the store.
    """
    stands = _standing(target)
    try:
        where = written_beside(target)
    except PatchloomError as error:
        yield Finding.of_error("output", error)
        return
    yield Finding("ok", "output", f"{where} can be written; {stands}")


def _standing(target: Location) -> str:
    try:
        if target.read("zarr.json") is None:
            return "a folder is there" if _is_there(target) else "nothing stands there yet"
    except PatchloomError:
        return "whether something stands there is not known"
    return "a store stands there: run goes on with it if it is of the same job"


def _is_there(target: Location) -> bool:
    return target.is_local and os.path.exists(target.open()[1])


def written_beside(target: Location) -> str:
    """Write an object beside a place, and remove it again.

    Returns
    -------
    str
        Where it was: the nearest folder that exists.

    Raises
    ------
    PatchloomError
        If it cannot be written or removed.
    """
    folder = target.parent
    if target.is_local:
        # What does not exist yet is not made for a try.
        while not os.path.exists(folder.url) and folder.url != folder.parent.url:
            folder = folder.parent
    return try_write(folder)


def try_write(folder: Location) -> str:
    """Write an object into a folder, and remove it again; returns what the folder is called."""
    name = f"patchloom-doctor-{uuid.uuid4().hex}"
    try:
        folder.write(name, b"patchloom doctor; may be removed")
    finally:
        with contextlib.suppress(Exception):
            folder.remove([name])
    return folder.shown


def credentials(location: Location) -> Finding | None:
    """How a store is reached: by which options, by their names, or by what the machine has."""
    if location.is_local or location.scheme == "memory":
        return None
    given: dict[str, Any] = dict(location.options)
    if given:
        how = f"by storage options ({', '.join(sorted(given))})"
    else:
        how = "ambient (environment, configuration or role): workers need them too"
    return Finding("ok", "credentials", f"{location.scheme}://: {how}")
