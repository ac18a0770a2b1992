"""Pictures for people (PNG, JPEG, BMP, WebP): one file is one plane and one chunk, by Pillow."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ChunkError, NotAnArrayError, PatchloomError
from patchloom.image import ChunkReader, Image, Reads
from patchloom.location import Location
from patchloom.sources.block_file import BlockFile
from patchloom.sources.fetching import Fetching
from patchloom.sources.files import FileSource, Wanted, package, without_levels
from patchloom.sources.handles import image_of
from patchloom.sources.whole_files import WholeReader

__all__ = ["MOST_PIXELS", "open_file", "reader"]

MOST_PIXELS = 2**28
"""Pixels of a plane that is decoded whole: a small file may claim more than any memory holds."""
_PLUGINS = {
    b"\x89PNG\r\n\x1a\n": ("PngImagePlugin", "PngImageFile"),
    b"\xff\xd8\xff": ("JpegImagePlugin", "JpegImageFile"),
    b"BM": ("BmpImagePlugin", "BmpImageFile"),
    b"RIFF": ("WebPImagePlugin", "WebPImageFile"),
}
"""Pillow's classes by the first bytes of their files. Nothing but these is tried."""
_MODES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "1": ("|b1", 1, ()),
    "L": ("|u1", 1, ()),
    "I;16": ("<u2", 1, ()),
    "LA": ("|u1", 2, ("grey", "alpha")),
    "RGB": ("|u1", 3, ("red", "green", "blue")),
    "RGBA": ("|u1", 4, ("red", "green", "blue", "alpha")),
}
"""Type, bands and their names of what Pillow calls modes."""


def open_file(location: Location, wanted: Wanted) -> Image:
    """The plane of a picture; only its head is read."""
    without_levels(location, wanted)
    head = location.head(32)
    fetching = Fetching(location, Reads(), None, in_parts=True)
    with _opened(location, BlockFile(fetching, location.size()), head) as picture:
        mode = _mode(picture, head, location, wanted.role_of is not None)
        stored = picture.mode
        width, height = picture.size
        frames = getattr(picture, "n_frames", 1)
    if frames != 1:
        raise NotAnArrayError(
            f"a picture is one plane, but {location.shown!r} has {frames} frames; save them as "
            "files of their own, and open these with stack="
        )
    if width * height > MOST_PIXELS:
        raise NotAnArrayError(
            f"a picture is decoded whole and has at most {MOST_PIXELS:,} pixels, but "
            f"{location.shown!r} claims {width:,} x {height:,}; convert it to a chunked format, "
            "such as OME-Zarr"
        )
    dtype, bands, names = _MODES[mode]
    shape = (height, width, bands)[: 2 + (bands > 1)]
    # The file, Pillow's own pixels (before and after they are converted), and these as bytes.
    held = max(0, location.size()) + width * height * (4 * (1 + (stored != mode)))
    held += math.prod(shape) * np.dtype(dtype).itemsize
    layout = {"stored": stored, "mode": mode, "shape": list(shape), "held": held}
    return image_of(
        name=wanted.name,
        uri=location.shown,
        axes=wanted.axes_for("yxc" if bands > 1 else "", len(shape), location.shown),
        shape=shape,
        dtype=np.dtype(dtype).newbyteorder("="),
        chunks=shape,
        source=FileSource(location, "pillow", layout),
        channels=names,
    )


def reader(source: FileSource) -> ChunkReader:
    """Reads and decodes the whole file."""
    return WholeReader(source, _plane)


def _plane(source: FileSource, data: bytes | memoryview) -> npt.NDArray[Any]:
    """The plane in a file; Pillow decodes without Python's lock."""
    location, layout = source.location, source.layout
    try:
        with _opened(location, io.BytesIO(data), bytes(data[:32])) as picture:
            if picture.mode != layout["stored"]:
                raise ValueError(f"its mode is {picture.mode!r}, not {layout['stored']!r}")
            if [*picture.size[::-1]] != list(layout["shape"][:2]):
                raise ValueError(f"it has {picture.size[0]} x {picture.size[1]} pixels")
            # Numbers of a palette are taken as they are; only colours are converted.
            mode = layout["mode"]
            converts = mode[:3] == "RGB" and mode != picture.mode
            pixels = np.asarray(picture.convert(mode) if converts else picture)
        pixels = pixels.astype(np.dtype(_MODES[mode][0]).newbyteorder("="), copy=False)
        if list(pixels.shape) != list(layout["shape"]):
            raise ValueError(f"its shape is {pixels.shape}")
    except Exception as error:  # Pillow raises most kinds there are
        raise ChunkError(
            f"a picture decodes to the plane that it was opened as, but {location.shown!r} "
            f"({len(data):,} bytes) does not: {location.describe(error)}; restore the file"
        ) from error
    return pixels


def _opened(location: Location, file: Any, head: bytes) -> Any:
    """Pillow's object, its head read, without its limits: ours is stated in pixels."""
    import importlib

    package("PIL.Image", "png", location)
    found = next((home for magic, home in _PLUGINS.items() if head.startswith(magic)), None)
    if found is None or (found[0].startswith("WebP") and head[8:12] != b"WEBP"):
        raise NotAnArrayError(
            f"a picture is a PNG, JPEG, BMP or WebP file, but {location.shown!r} begins like none "
            "of them; name it by what it is"
        )
    try:
        return getattr(importlib.import_module(f"PIL.{found[0]}"), found[1])(file)
    except PatchloomError:
        raise
    except Exception as error:  # Pillow raises most kinds there are
        raise NotAnArrayError(
            f"the head of a picture can be read, but that of {location.shown!r} cannot: "
            f"{location.describe(error)}; copy it again"
        ) from error


def _mode(picture: Any, head: bytes, location: Location, as_numbers: bool) -> str:
    """What a picture is decoded to: a palette to colours, or to its numbers for a role."""
    mode = str(picture.mode)
    if mode == "P":
        if as_numbers:
            return "L"
        return "RGBA" if "transparency" in picture.info else "RGB"
    # A 16-bit PNG with colours or alpha: Pillow would hand over the upper half of each number.
    is_deep = head.startswith(b"\x89PNG") and head[24] == 16 and head[25] != 0
    if mode.startswith("I;16") and not is_deep:
        return "I;16"
    if is_deep or mode not in _MODES:
        what = "16 bits a colour" if is_deep else f"mode {mode!r}"
        raise NotAnArrayError(
            f"a picture has one of the modes {sorted(_MODES)} or a palette, but {location.shown!r} "
            f"has {what}; convert it, for example to TIFF"
        )
    return mode
