"""What a TIFF file says of physical space: pixel sizes, units, where it lies, names of channels.

Only what is meant as such counts: OME-XML, ImageJ's description, GeoTIFF's tags, and what slide
scanners write. The plain resolution tags are those of a printer in most files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

__all__ = ["Space", "space_of"]

_UNITS = {
    "nm": "nanometer",
    "nanometre": "nanometer",
    "um": "micrometer",
    "µm": "micrometer",  # micro sign
    "μm": "micrometer",  # Greek mu
    "\\u00b5m": "micrometer",  # as ImageJ writes it
    "micron": "micrometer",
    "microns": "micrometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
    "km": "kilometer",
    "å": "angstrom",
}
"""Other spellings of NGFF's names."""
_NO_UNITS = {"", "pixel", "pixels", "reference frame", "none"}
_CENTIMETER = 3
"""Of the tag ResolutionUnit."""
_IN_CENTIMETERS = ("ndpi", "qpi")
"""Kinds whose resolution tags are those of the scanner."""
_PIXEL_SCALE, _TIE_POINT, _MATRIX, _KEYS = 33550, 33922, 34264, 34735
"""Tags of GeoTIFF 1.1 (OGC 19-008r4)."""


@dataclass(frozen=True)
class Space:
    """Physical space of the finest level; what is not known is missing."""

    spacing: Mapping[str, float] = field(default_factory=dict)
    """Extent of a pixel on z, y, x."""
    origin: Mapping[str, float] = field(default_factory=dict)
    """Coordinate of the first pixel's centre."""
    unit: Mapping[str, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()


def space_of(tif: Any, series: Any, number: int) -> Space:
    """What a file says of one of its images.

    Parameters
    ----------
    tif, series
        A ``tifffile.TiffFile`` and one of its series.
    number
        The number of the series.
    """
    page = series.keyframe
    if series.kind == "ome":
        return _of_ome(tif.ome_metadata, number, len(tif.series))
    if series.kind == "imagej":
        return _of_imagej(tif.imagej_metadata or {}, page)
    if series.kind == "svs":
        found = re.search(r"\bMPP\s*=\s*([0-9.]+)", str(page.description))
        return _square(_positive(found and found[1]), "micrometer")
    if series.kind in _IN_CENTIMETERS and page.resolutionunit == _CENTIMETER:
        x, y = (_positive(n) for n in page.resolution)
        return _plane(y and 1e4 / y, x and 1e4 / x, "micrometer")
    return _of_geotiff(page)


def _of_ome(text: str, number: int, n: int) -> Space:
    images = [e for e in ElementTree.fromstring(text) if _tag(e) == "Image"]
    if len(images) != n:
        return Space()
    pixels = next((e for e in images[number] if _tag(e) == "Pixels"), None)
    if pixels is None:
        return Space()
    spacing, unit = {}, {}
    for axis in "zyx":
        size = _positive(pixels.get(f"PhysicalSize{axis.upper()}"))
        name = _unit(pixels.get(f"PhysicalSize{axis.upper()}Unit", "µm"))
        if size and name:
            spacing[axis], unit[axis] = size, name
    channels = [e for e in pixels if _tag(e) == "Channel"]
    names = tuple(str(e.get("Name") or k) for k, e in enumerate(channels))
    return Space(spacing, {}, unit, names if any(e.get("Name") for e in channels) else ())


def _of_imagej(said: Mapping[str, Any], page: Any) -> Space:
    unit = _unit(said.get("unit"))
    if not unit:
        return Space()
    spacing = {}
    for axis, code in (("y", 283), ("x", 282)):
        value = page.tags.valueof(code)
        parts = list(value) if isinstance(value, Sequence) else []
        if len(parts) == 2 and all(_positive(n) for n in parts):
            spacing[axis] = parts[1] / parts[0]
    if len(spacing) < 2:
        return Space()
    depth = _positive(said.get("spacing"))
    if depth:
        spacing["z"] = depth
    return Space(spacing, {}, dict.fromkeys(spacing, unit))


def _of_geotiff(page: Any) -> Space:
    """Pixel sizes and place of a map that lies square to its pixels.

    Rows go south: y is counted southwards from the equator of the map, so that it grows with
    the rows.
    """
    scale = [float(v) for v in page.tags.valueof(_PIXEL_SCALE) or ()][:2]
    tie = [float(v) for v in page.tags.valueof(_TIE_POINT) or ()]
    matrix = [float(v) for v in page.tags.valueof(_MATRIX) or ()]
    if len(matrix) == 16 and len(scale) != 2:
        # Turned or mirrored maps have no spacing on the axes of their pixels.
        if matrix[1] or matrix[4] or not (matrix[0] > 0 > matrix[5]):
            return Space()
        scale, tie = [matrix[0], -matrix[5]], [0.0, 0.0, 0.0, matrix[3], matrix[7], 0.0]
    if len(scale) != 2 or not all(_positive(v) for v in scale):
        return Space()
    keys = [int(v) for v in page.tags.valueof(_KEYS) or ()]
    told = {k: v for k, place, _, v in zip(*[iter(keys[4:])] * 4, strict=False) if place == 0}
    unit = "degree" if told.get(1024) == 2 else "meter" if told.get(3076) == 9001 else ""
    spacing = {"y": scale[1], "x": scale[0]}
    origin = {}
    if len(tie) == 6 and all(math.isfinite(v) for v in tie):
        half = 0.0 if told.get(1025) == 2 else 0.5  # its points are pixels' centres, or corners
        origin = {
            "y": -tie[4] + (half - tie[1]) * scale[1],
            "x": tie[3] + (half - tie[0]) * scale[0],
        }
    return Space(spacing, origin, dict.fromkeys(spacing, unit) if unit else {})


def _square(size: float | None, unit: str) -> Space:
    return _plane(size, size, unit)


def _plane(y: float | None, x: float | None, unit: str) -> Space:
    if not y or not x:
        return Space()
    return Space({"y": y, "x": x}, {}, {"y": unit, "x": unit})


def _positive(value: Any) -> float | None:
    """A number that a pixel may be wide; else None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _unit(text: Any) -> str:
    """A unit as NGFF calls it; ``""`` if pixels have none."""
    name = str(text or "").strip().lower()
    return "" if name in _NO_UNITS else _UNITS.get(name, name)


def _tag(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]
