"""OME-Zarr 0.4 and 0.5: axes, one pyramid level, physical scale, channels, label groups.

After the NGFF specification, https://ngff.openmicroscopy.org (0.4 and 0.5). The reader is
lenient where writers differ: it takes the version tag as a hint only, and level paths as they
are written, never as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from patchloom.errors import AxesError, SourceError
from patchloom.sources.zarrs import Node

__all__ = ["Level", "label_names", "levels_of"]


@dataclass(frozen=True)
class Level:
    """One resolution of an OME-Zarr image."""

    path: str
    axes: str
    """One letter a dimension."""
    scale: tuple[float, ...]
    """Physical extent of a pixel on each dimension."""
    translation: tuple[float, ...]
    """Physical coordinate of the first pixel's centre on each dimension."""
    units: tuple[str, ...]
    channels: tuple[str, ...]


def levels_of(node: Node) -> list[Level]:
    """The resolutions of a group, finest first; empty if it is no OME-Zarr image.

    Raises
    ------
    SourceError
        If the metadata describe an image but contradict themselves.
    """
    ome = _ome(node.attributes)
    multiscales = ome.get("multiscales")
    if not multiscales:
        return []
    try:
        image = multiscales[0]
        axes = [_axis(item) for item in image.get("axes") or _default_axes(image)]
        units = tuple(
            str(item.get("unit", "")) if isinstance(item, Mapping) else ""
            for item in image.get("axes") or axes
        )
        ndim = len(axes)
        common = _transform(image.get("coordinateTransformations"), ndim)
        channels = tuple(
            str(c.get("label", k))
            for k, c in enumerate((ome.get("omero") or {}).get("channels", ()))
        )
        found = []
        for dataset in image["datasets"]:
            scale, translation = _transform(dataset.get("coordinateTransformations"), ndim)
            found.append(
                Level(
                    path=str(dataset["path"]).strip("/"),
                    axes="".join(axes),
                    scale=tuple(a * b for a, b in zip(scale, common[0], strict=True)),
                    translation=tuple(
                        t * s + c for t, s, c in zip(translation, common[0], common[1], strict=True)
                    ),
                    units=units,
                    channels=channels,
                )
            )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"{node.location.shown!r} has OME-Zarr metadata that cannot be read: "
            f"{type(error).__name__}: {error}; mend its multiscales, or open the array inside it"
        ) from error
    if any(".." in level.path.split("/") for level in found):
        raise SourceError(
            f"a level's path stays inside its image, got {[lv.path for lv in found]} in "
            f"{node.location.shown!r}"
        )
    return found


def label_names(attributes: Mapping[str, Any]) -> list[str]:
    """The label images that a ``labels`` group lists."""
    return [str(name) for name in _ome(attributes).get("labels") or ()]


def _ome(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
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


def _transform(transforms: Any, ndim: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scale, translation = [1.0] * ndim, [0.0] * ndim
    for item in transforms or ():
        if item.get("type") == "scale" and "scale" in item:
            step = [float(v) for v in item["scale"]]
            scale = [a * b for a, b in zip(scale, step, strict=True)]
            translation = [a * b for a, b in zip(translation, step, strict=True)]
        elif item.get("type") == "translation" and "translation" in item:
            shift = [float(v) for v in item["translation"]]
            translation = [a + b for a, b in zip(translation, shift, strict=True)]
    return tuple(scale), tuple(translation)
