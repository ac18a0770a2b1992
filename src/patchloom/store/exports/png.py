"""PNG files, one a patch: to look at."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.errors import ConfigError
from patchloom.png_file import png_file
from patchloom.store.exports.contents import Contents, Part
from patchloom.store.exports.format import Format, Objects, numbered
from patchloom.store.exports.names import safe_name

__all__ = ["PngFormat", "check_png", "file_stems", "png_bytes"]

_OBJECT = re.compile(r"[a-z][a-z0-9_]*/[^/]+_(\d+)\.png$")
_KINDS = ("bool", "uint8", "uint16")


class PngFormat(Format):
    """Files ``images/IMAGE_ROW.png``, and so on: grey levels as they are, with 8 or 16 bits.

    Three channels of 8 bits without z are red, green and blue. Otherwise channels stand side by
    side, and z-planes one below the other. Flags are 0 and 255. What was normalised to [0, 1] is
    shown with 8 bits.
    """

    called: ClassVar[str] = "png"

    def check(self, contents: Contents) -> None:
        """PNG has whole numbers of 8 and 16 bits."""
        check_png(contents, "png")

    def n_objects(self, contents: Contents, part: int) -> int:
        """A file a patch and array."""
        _, first, stop = contents.rows_of(part)
        return (stop - first) * len(contents.arrays)

    def part_of(self, contents: Contents) -> Callable[[str], int | None]:
        """By the row at its end."""
        return numbered(_OBJECT, contents.rows_per_part)

    def columns(self, contents: Contents, part: Part) -> Mapping[str, pa.Array]:
        """The files, without the folder."""
        return {"file": pa.array([f"{stem}.png" for stem in file_stems(part)], pa.string())}

    def objects(self, contents: Contents, part: Part) -> Objects:
        """One file after another."""
        stems = file_stems(part)
        for k, patch in part.patches(*contents.arrays):
            for held in contents.arrays:
                yield f"{held.name}/{stems[k]}.png", png_bytes(patch[held.name])


def file_stems(part: Part) -> list[str]:
    """Names of the files of a part's rows: the image and the row."""
    images = part.table["image_id"].to_pylist()
    safe = {name: safe_name(name) for name in set(images)}
    return [f"{safe[name]}_{part.first + k:08d}" for k, name in enumerate(images)]


def check_png(contents: Contents, called: str) -> None:
    """Refuse what PNG cannot hold.

    Raises
    ------
    ConfigError
        With the way out.
    """
    for held in contents.arrays:
        name = held.dtype.name
        if name not in _KINDS and not held.shares:
            raise ConfigError(
                f"{called} holds {', '.join(_KINDS)}, but {held.name} are {name}; export images "
                "with normalize='percentile', leave them out with arrays=, or take tiff or zarr"
            )


def png_bytes(patch: npt.NDArray[Any]) -> bytes:
    """A patch [c, (z,) y, x] as a PNG file (W3C Recommendation, third edition).

    Float is taken as a share of white, and clipped.

    >>> png_bytes(np.zeros((1, 2, 3), "uint16"))[1:4]
    b'PNG'
    """
    if patch.dtype.kind == "f":
        patch = np.rint(np.clip(np.nan_to_num(patch), 0, 1) * 255).astype(np.uint8)
    elif patch.dtype.kind == "b":
        patch = patch.astype(np.uint8) * np.uint8(255)
    if patch.ndim == 3 and len(patch) == 3 and patch.dtype.itemsize == 1:
        picture, kind = np.moveaxis(patch, 0, -1), 2
    else:
        # [c, z, y, x] -> [z y, c x]
        whole = patch.reshape(len(patch), -1, *_plane(patch))
        height, width = whole.shape[1] * whole.shape[2], whole.shape[0] * whole.shape[3]
        picture, kind = np.moveaxis(whole, 0, 2).reshape(height, width), 0
    height, width = picture.shape[:2]
    depth = 8 * picture.dtype.itemsize
    rows = np.ascontiguousarray(picture, picture.dtype.newbyteorder(">"))
    rows = rows.reshape(height, -1).view(np.uint8)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 2  # each row as its difference to the one above
    filtered[0, 1:] = rows[0]
    filtered[1:, 1:] = rows[1:] - rows[:-1]
    return png_file(filtered, width, depth, kind, 6)


def _plane(patch: npt.NDArray[Any]) -> tuple[int, int]:
    """Height and width; a patch of one axis is one row."""
    return (1, patch.shape[-1]) if patch.ndim == 2 else (patch.shape[-2], patch.shape[-1])
