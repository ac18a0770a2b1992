"""OME-Zarr 0.4 and 0.5: axes, one pyramid level, physical scale, channels, label groups.

After the NGFF specification, https://ngff.openmicroscopy.org (0.4 and 0.5). The reader is
lenient where writers differ: it takes the version tag as a hint only, and level paths as they
are written, never as numbers. It is strict where pixels would lie elsewhere than it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from patchloom.errors import AxesError, SourceError
from patchloom.sources.transforms import Transform, compose
from patchloom.sources.zarrs import Node

__all__ = ["SPATIALDATA", "Level", "label_names", "levels_of", "multiscales_of", "ome_of"]

SPATIALDATA = "spatialdata_attrs"
"""The attribute by which SpatialData marks what it wrote."""


@dataclass(frozen=True)
class Level:
    """One resolution of an OME-Zarr image."""

    path: str
    axes: str
    """One letter a dimension."""
    scale: tuple[float, ...]
    """Physical extent of a pixel on each dimension; empty if the metadata tell none."""
    translation: tuple[float, ...]
    """Physical coordinate of the first pixel's centre on each dimension."""
    units: tuple[str, ...]
    channels: tuple[str, ...]


def levels_of(node: Node) -> list[Level]:
    """The resolutions of a group, finest first; empty if it is no OME-Zarr image.

    Raises
    ------
    SourceError
        If the metadata describe several images, or one but contradict themselves or tell of
        something that cannot be honoured.
    """
    found = multiscales_of(node)
    if len(found) > 1:
        raise SourceError(
            f"a group is one OME-Zarr image, but {node.location.shown!r} has {len(found)} "
            f"multiscales, with the levels {[[lv.path for lv in levels] for levels in found]}; "
            "open one level by its path: level=..."
        )
    return found[0] if found else []


def multiscales_of(node: Node) -> list[list[Level]]:
    """The resolutions of each multiscale of a group; empty if it is no OME-Zarr image.

    Raises
    ------
    SourceError
        As `levels_of`; several multiscales are none.
    """
    ome = ome_of(node.attributes)
    shown = node.location.shown
    try:
        omero = ome.get("omero") or {}
        channels = tuple(str(c.get("label", k)) for k, c in enumerate(omero.get("channels") or ()))
        found = [
            _levels(image, channels, f"{shown!r}", _first(node.attributes, image))
            for image in ome.get("multiscales") or ()
        ]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"{shown!r} has OME-Zarr metadata that cannot be read: "
            f"{type(error).__name__}: {error}; mend its multiscales, or open the array inside it"
        ) from error
    paths = [level.path for levels in found for level in levels]
    if any({".", "..", ""} & {*path.replace("\\", "/").split("/")} for path in paths):
        raise SourceError(f"a level's path stays inside its image, got {paths} in {shown!r}")
    for levels in found:
        names = [level.path for level in levels]
        if not names or len(set(names)) < len(names):
            raise SourceError(
                f"an OME-Zarr image lists its levels, each once, got {names} in {shown!r}; mend "
                "its multiscales, or open the array inside it"
            )
    return found


def _first(attributes: Mapping[str, Any], image: Mapping[str, Any]) -> float:
    """Where the centre of the first pixel lies, in pixels, before any transform.

    SpatialData puts the corner of the first pixel at 0, OME-Zarr its centre.
    """
    versions = f"{ome_of(attributes).get('version')} {image.get('version')}"
    return 0.5 if SPATIALDATA in attributes or "spatialdata" in versions else 0.0


def _levels(
    image: Mapping[str, Any], channels: tuple[str, ...], shown: str, first: float
) -> list[Level]:
    if "coordinateSystems" in image:
        raise SourceError(
            f"OME-Zarr is read as of 0.4 and 0.5, but {shown} has the coordinate systems of a "
            "later version; open the array inside it, or write it again as 0.5"
        )
    given = image.get("axes") or _default_axes(image)
    axes = [_axis(item) for item in given]
    units = tuple(
        str(item.get("unit") or "") if isinstance(item, Mapping) else "" for item in given
    )
    spatial = [k for k, axis in enumerate(axes) if axis in "zyx"]
    whole = image.get("coordinateTransformations")
    common = compose(whole, axes, shown)
    centre = Transform((1.0,) * len(axes), tuple(first if a in "zyx" else 0.0 for a in axes))
    found = []
    for dataset in image["datasets"]:
        own = dataset.get("coordinateTransformations")
        transform = common.after(compose(own, axes, shown)).after(centre)
        transform.check(spatial, axes, f"level {dataset['path']!r} of {shown}")
        known = transform if own or whole else Transform((), ())
        found.append(
            Level(
                path=str(dataset["path"]).strip("/"),
                axes="".join(axes),
                scale=known.scale,
                translation=known.translation,
                units=units,
                channels=channels,
            )
        )
    return found


def label_names(attributes: Mapping[str, Any]) -> list[str]:
    """The label images that a ``labels`` group lists."""
    return [str(name) for name in ome_of(attributes).get("labels") or ()]


def ome_of(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where the OME-Zarr metadata stand: under ``ome`` since 0.5, else among all others."""
    inner = attributes.get("ome")
    return inner if isinstance(inner, Mapping) else attributes


def _default_axes(image: Mapping[str, Any]) -> str:
    # Before 0.3 images were always five-dimensional and did not say so.
    return "tczyx"


def _axis(item: Any) -> str:
    name = str(item["name"] if isinstance(item, Mapping) else item).lower()
    kind = item.get("type") if isinstance(item, Mapping) else None
    letter = {"time": "t", "channel": "c"}.get(str(kind), name)
    if len(letter) != 1:
        raise AxesError(
            f"OME-Zarr axes are t, c, z, y, x, got {name!r}; name them yourself: axes='CZYX'"
        )
    return letter
