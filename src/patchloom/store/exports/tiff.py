"""OME-TIFF files, one a patch: to look at in Fiji, napari or QuPath."""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from patchloom.errors import ConfigError, SourceMissingError
from patchloom.store.exports.contents import Contents, Held, Part
from patchloom.store.exports.format import Format, Objects, numbered
from patchloom.store.exports.png import file_stems

__all__ = ["TiffFormat"]

_OBJECT = re.compile(r"[a-z][a-z0-9_]*/[^/]+_(\d+)\.ome\.tif$")
_KINDS = ("bool", "uint8", "uint16", "uint32", "int8", "int16", "int32", "float32", "float64")


class TiffFormat(Format):
    """Files ``images/IMAGE_ROW.ome.tif``, and so on, with axes, channels and pixel sizes.

    Flags are 0 and 1.
    """

    called: ClassVar[str] = "tiff"

    compression: Literal["zlib", "none"] = "zlib"
    """Lossless in both cases."""

    def check(self, contents: Contents) -> None:
        """OME-TIFF has no whole numbers of 64 bits and no floats of 16."""
        _tifffile()
        for held in contents.arrays:
            if held.dtype.name not in _KINDS:
                raise ConfigError(
                    f"OME-TIFF holds {', '.join(_KINDS)}, but {held.name} are {held.dtype.name}; "
                    "leave them out with arrays=, or take zarr"
                )

    def n_objects(self, contents: Contents, part: int) -> int:
        """A file a patch and array."""
        _, first, stop = contents.rows_of(part)
        return (stop - first) * len(contents.arrays)

    def part_of(self, contents: Contents) -> Callable[[str], int | None]:
        """By the row at its end."""
        return numbered(_OBJECT, contents.rows_per_part)

    def columns(self, contents: Contents, part: Part) -> Mapping[str, pa.Array]:
        """The files, without the folder."""
        return {"file": pa.array([f"{stem}.ome.tif" for stem in file_stems(part)], pa.string())}

    def objects(self, contents: Contents, part: Part) -> Objects:
        """One file after another."""
        tifffile, stems = _tifffile(), file_stems(part)
        ids = part.table["patch_id"].to_pylist()
        images = part.table["image_id"].to_pylist()
        spacing = {i["id"]: _spacing(i) for i in contents.store["images"]}
        for k, patch in part.patches(*contents.arrays):
            for held in contents.arrays:
                pixels = patch[held.name]
                if pixels.dtype.kind == "b":
                    pixels = pixels.astype(np.uint8)
                body = io.BytesIO()
                tifffile.imwrite(
                    body,
                    np.moveaxis(pixels, 0, held.axes.index("y") - 1 if "y" in held.axes else 0),
                    ome=True,
                    photometric="minisblack",
                    compression=None if self.compression == "none" else "zlib",
                    metadata={
                        "axes": _axes(held),
                        # Not by chance: the same bytes each time.
                        "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{held.name}/{ids[k]}")),
                        "Creator": "patchloom",
                        # Pixels of a coarser level are larger.
                        **({} if held.name.startswith("context_") else spacing[images[k]]),
                        **_channels(contents, held),
                    },
                )
                yield f"{held.name}/{stems[k]}.ome.tif", body.getvalue()


def _axes(held: Held) -> str:
    """Channels stand right before y in OME-TIFF files, and z before them."""
    return held.axes[1:].upper().replace("Y", "CY", 1) if "y" in held.axes else held.axes.upper()


def _channels(contents: Contents, held: Held) -> dict[str, Any]:
    if held.name != "images" or len(contents.channels) != held.patch_shape[0]:
        return {}
    return {"Channel": {"Name": list(contents.channels)}}


_UNITS = {
    "micrometer": "µm",
    "nanometer": "nm",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
    "angstrom": "Å",
}


def _spacing(image: Mapping[str, Any]) -> dict[str, Any]:
    """Pixel sizes as OME-XML has them, where they are known."""
    found: dict[str, Any] = {}
    units = image.get("unit") or {}
    for axis, size in (image.get("spacing") or {}).items():
        unit = _UNITS.get(str(units.get(axis)))
        if axis in "xyz" and size and unit is not None:
            found[f"PhysicalSize{axis.upper()}"] = float(size)
            found[f"PhysicalSize{axis.upper()}Unit"] = unit
    return found


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError:
        raise SourceMissingError(
            "TIFF files are made by tifffile, which is not installed; pip install 'patchloom[tiff]'"
        ) from None
    return tifffile
