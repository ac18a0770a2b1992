"""Masks of every kind, joined to their images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from threading import Lock
from typing import Any

import numpy as np

from patchloom.coverage import Alignment
from patchloom.errors import ConfigError, SourceError
from patchloom.image import Image, Role
from patchloom.location import Location
from patchloom.mask_config import (
    AutoMask,
    BoxesMask,
    LabelsMask,
    MaskConfig,
    NodataMask,
    PolygonsMask,
    parse_mask,
)
from patchloom.sources.automatic import automatic
from patchloom.sources.derived import derived
from patchloom.sources.geojson import polygons_of
from patchloom.sources.outlines import (
    Outlines,
    held_outlines,
    outlined,
    read_outlines,
    stored_outlines,
)
from patchloom.sources.roles import align, named_for, per_image
from patchloom.sources.rules import ClassesRule, NodataRule

__all__ = ["MaskMaker"]

_TABLES = (".csv", ".tsv", ".gz", ".parquet", ".pq")


@dataclass(frozen=True)
class _Item:
    """What is given for the mask of one image."""

    kind: MaskConfig | None
    given: Any

    @classmethod
    def of(cls, item: Any) -> _Item | None:
        kind = parse_mask(item)
        if item is None or kind is None:
            return None if item is None else cls(None, item)
        return cls(kind, getattr(kind, _key(kind)) if _key(kind) else None)


def _key(kind: MaskConfig) -> str:
    """The key under which it names what stands somewhere else, if it does."""
    for model, key in ((LabelsMask, "labels"), (PolygonsMask, "polygons"), (BoxesMask, "boxes")):
        if isinstance(kind, model):
            return key
    return ""


def _is_per_image(parts: Mapping[Any, Any], ids: set[str]) -> bool:
    """Whether its keys are ids of images, perhaps mistyped ones."""
    if {*map(str, parts)} == ids:
        return True
    some = [part for part in parts.values() if part is not None]
    # A column is neither a URL nor a document.
    return (
        "type" not in parts
        and bool(some)
        and all(isinstance(part, str | os.PathLike | Mapping) for part in some)
    )


class MaskMaker:
    """Makes the masks of one call; what several images share is read once."""

    def __init__(
        self,
        open_one: Callable[[Any, Image], Image],
        options: Mapping[str, Any],
        glob: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        self._open, self._options, self._glob = open_one, options, glob
        self._tables: dict[tuple[int | str, str, str], Callable[[str], Outlines]] = {}
        self._lock = Lock()  # several images ask at a time

    def items(self, given: Any, images: Sequence[Image]) -> tuple[list[Any], list[Any]]:
        """What is given for each image, of a kind or opened as it is, in two lists.

        The first has what lies over an image, the second what is made of its own pixels.
        """
        found = self._items(given, images)
        own = [item is not None and isinstance(item.kind, AutoMask | NodataMask) for item in found]
        rows = [*zip(found, own, strict=True)]
        return [None if of else item for item, of in rows], [i if of else None for i, of in rows]

    def _items(self, given: Any, images: Sequence[Image]) -> list[_Item | None]:
        ids = {image.id for image in images}
        if isinstance(given, Mapping) and {*map(str, given)} == ids:
            kind = None  # an image may be called like a kind
        else:
            kind = parse_mask(given)
        if kind is None:
            items = per_image(given, images, "mask", self._glob)
            return [_Item.of(item) for item in items]
        parts = getattr(kind, _key(kind)) if _key(kind) else None
        # A table may be a mapping of columns, and GeoJSON is one.
        whole = isinstance(parts, Mapping) and not _is_per_image(parts, ids)
        if whole and not isinstance(kind, LabelsMask):
            return [_Item(kind, parts)] * len(images)
        found = per_image(parts, images, f"mask={{{_key(kind)!r}: ...}}", self._glob)
        return [None if _key(kind) and part is None else _Item(kind, part) for part in found]

    def role(self, item: _Item, image: Image) -> Role:
        """The mask of one image."""
        config, given = item.kind, named_for(item.given, image)
        if config is None:
            return align(image, self._open(given, image), "mask")
        if isinstance(config, LabelsMask):
            labels = self._open(given, image)
            _check_labels(config, labels)
            rule = ClassesRule(None if config.classes is None else tuple(config.classes))
            return align(image, derived(labels, rule), "mask")
        if isinstance(config, AutoMask):
            return _on(image, automatic(image, config))
        if isinstance(config, NodataMask):
            return _on(image, derived(image, _nodata(config, image)))
        found = self._outlines(config, given, image)
        if not found.n and config.missing == "error":
            asked = f" with {config.where}" if config.where else ""
            raise SourceError(
                f"every image has outlines{asked}, but {image.id!r} has none; missing: empty takes "
                "such an image as covered nowhere"
            )
        return _on(image, outlined(image, found, config.units))

    def _outlines(self, config: PolygonsMask | BoxesMask, given: Any, image: Image) -> Outlines:
        where = config.where
        if isinstance(config, PolygonsMask) and isinstance(given, str):
            location = Location.of(given, self._options)
            if PurePosixPath(location.shown.lower()).suffix not in _TABLES:
                return stored_outlines(location, where)
        table = given if isinstance(given, str) else id(given)
        key = (table, type(config).__name__, json.dumps(where, sort_keys=True))
        with self._lock:
            if key not in self._tables:
                is_held = isinstance(given, Mapping) and "type" in given
                if isinstance(config, PolygonsMask) and is_held:
                    found = held_outlines(polygons_of(given, where, "the mapping"))
                    self._tables[key] = lambda _: found
                else:
                    self._tables[key] = read_outlines(given, config, self._options)
            return self._tables[key](image.id)


def _on(image: Image, mask: Image) -> Role:
    """A mask on the very pixels of its image."""
    axes = mask.axes.spatial
    return Role(mask, Alignment((Fraction(1),) * len(axes), (Fraction(0),) * len(axes)), axes)


def _check_labels(config: LabelsMask, labels: Image) -> None:
    if labels.layout.n_channels != 1:
        raise ConfigError(
            f"a label image has one channel, got {labels.layout.n_channels} for {labels.id!r}; "
            "give the one that has the labels"
        )
    if config.classes is not None and labels.dtype.kind not in "iub":
        raise ConfigError(
            f"classes are those of a label image of integers, got {labels.dtype} for {labels.id!r}"
        )


def _nodata(config: NodataMask, image: Image) -> NodataRule:
    values = [value for value in config.nodata if value != "nan"]
    dtype = image.dtype
    if "nan" in config.nodata and dtype.kind != "f":
        raise ConfigError(
            f"only floats are not a number, got nodata: nan for {image.id!r} of {dtype}"
        )
    bounds = (0, 1) if dtype.kind == "b" else None
    if dtype.kind in "iu":
        bounds = (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    for value in values:
        if bounds is not None and (value % 1 or not bounds[0] <= value <= bounds[1]):
            raise ConfigError(
                f"nodata is a value that a pixel can have, got {value!r} for {image.id!r} of "
                f"{dtype} ({bounds[0]} to {bounds[1]})"
            )
    if bounds is None:
        values = [_float(value, image) for value in values]
    whole: Sequence[float] = [int(v) if bounds is not None else float(v) for v in values]
    return NodataRule(tuple(whole), "nan" in config.nodata, config.channels == "all")


def _float(value: float, image: Image) -> float:
    """A value that pixels of floats can have, up to rounding."""
    dtype = image.dtype
    try:
        found = float(value)
        with np.errstate(over="ignore"):
            held = np.isfinite(np.float64(found).astype(dtype)) or not np.isfinite(found)
    except OverflowError:
        held = False
    if held:
        return found
    most = float(np.finfo(dtype).max)
    # Decimals show any number, however large.
    raise ConfigError(
        f"nodata is a value that a pixel can have, got {Decimal(value):.6g} for {image.id!r} of "
        f"{dtype} ({-most!r} to {most!r})"
    )
