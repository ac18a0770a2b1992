"""WebDataset: tar files whose members share a key a patch.

The files are written with Python's own `tarfile`: WebDataset's writer puts the date and the user
into each member, so that the same patches would be other bytes each time.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from patchloom.errors import ConfigError
from patchloom.store.exports.contents import Contents, Part
from patchloom.store.exports.format import Format, Objects, numbered
from patchloom.store.exports.names import safe_name
from patchloom.store.exports.npy import npy_bytes
from patchloom.store.exports.png import check_png, png_bytes

__all__ = ["WebdatasetFormat", "record"]

_OBJECT = re.compile(r"patches-(\d+)\.tar$")


class WebdatasetFormat(Format):
    """Files ``patches-000000.tar`` ...; of each patch ``ID.images.npy``, ``ID.labels.npy``
    (each array that there is) and ``ID.json``, its row of the manifest.
    """

    called: ClassVar[str] = "webdataset"

    pixels: Literal["npy", "png"] = "npy"
    """What patches are stored as; ``"png"`` takes what the format ``png`` takes."""

    def check(self, contents: Contents) -> None:
        """PNG holds not everything."""
        if self.pixels == "png":
            check_png(contents, "webdataset with pixels='png'")

    def n_objects(self, contents: Contents, part: int) -> int:
        """One."""
        return 1

    def part_of(self, contents: Contents) -> Callable[[str], int | None]:
        """By its number."""
        return numbered(_OBJECT)

    def objects(self, contents: Contents, part: Part) -> Objects:
        """A tar file."""
        body = io.BytesIO()
        rows = part.table.to_pylist()
        with tarfile.open(fileobj=body, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for k, patch in part.patches(*contents.arrays):
                key = safe_name(rows[k]["patch_id"])
                for held in contents.arrays:
                    pixels = patch[held.name]
                    data = npy_bytes(pixels) if self.pixels == "npy" else png_bytes(pixels)
                    _add(tar, f"{key}.{held.name}.{self.pixels}", data)
                _add(tar, f"{key}.json", record(rows[k]).encode())
        yield f"patches-{part.number:06d}.tar", body.getbuffer()


def record(row: dict[str, Any]) -> str:
    """A row of the manifest as JSON; what is no number is null."""
    plain = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
    }
    return json.dumps(plain, allow_nan=False, sort_keys=True)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    if len(name) > 100:
        raise ConfigError(f"a name in a tar file has at most 100 characters, got {name!r}")
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
