"""GeoJSON: polygons and their properties, after RFC 7946."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from patchloom.errors import ConfigError, SourceError
from patchloom.polygons import Polygons

__all__ = ["LARGEST", "matches", "polygons_of"]

LARGEST = 1e100
"""Coordinates stay below it, so that products of them are finite."""
_NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")


def polygons_of(
    document: bytes | Mapping[str, Any] | Sequence[Any],
    where: Mapping[str, Any] | None,
    what: str,
) -> Polygons:
    """The polygons of a FeatureCollection, a Feature, a list of these, or a geometry.

    Coordinates are (x, y), as RFC 7946 has it; further ones are dropped. Points and lines have no
    area, and are left out.

    Parameters
    ----------
    document
        The text, or what it parses to.
    where
        A value or a list of values for each property that is asked for.
    what
        What errors call it.

    Raises
    ------
    SourceError
        If it is no GeoJSON.
    ConfigError
        If no feature has a property that is asked for.
    """
    if isinstance(document, bytes):
        try:
            document = json.loads(document)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"polygons are GeoJSON, but {what} is no JSON: {error}") from None
    try:
        features = [
            (geometry, properties)
            for geometry, properties in _features(document)
            if geometry["type"] not in _NO_AREA
        ]
        _check_properties(features, where or {}, what)
        polygons = [
            [_ring(ring) for ring in rings]
            for geometry, properties in features
            if all(matches(_property(properties, k), v) for k, v in (where or {}).items())
            for rings in _polygons(geometry)
        ]
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        if isinstance(error, SourceError | ConfigError):
            raise
        raise SourceError(
            f"polygons are GeoJSON (RFC 7946), but {what} is not: {type(error).__name__}: {error}; "
            "give a FeatureCollection, a Feature, or a Polygon or MultiPolygon"
        ) from None
    return Polygons.of_rings(polygons)


def matches(value: Any, wanted: Any) -> bool:
    """Whether a property has the wanted value, or one of them."""
    values = wanted if isinstance(wanted, list | tuple) else [wanted]
    # In Python True is 1; a class is not.
    return any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in values)


def _features(document: Any) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    if isinstance(document, list | tuple):
        for item in document:
            yield from _features(item)
    elif document["type"] == "FeatureCollection":
        yield from _features(document["features"])
    elif document["type"] != "Feature":
        yield document, {}
    elif document["geometry"] is not None:
        yield document["geometry"], document.get("properties") or {}


def _polygons(geometry: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    kind = geometry["type"]
    if kind == "GeometryCollection":
        for inner in geometry["geometries"]:
            yield from _polygons(inner)
    elif kind == "Polygon":
        yield geometry["coordinates"]
    elif kind == "MultiPolygon":
        yield from geometry["coordinates"]
    elif kind not in _NO_AREA:
        raise ValueError(f"a geometry is no {kind!r}")


def _ring(coordinates: Sequence[Sequence[float]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    points = np.asarray([(float(y), float(x)) for x, y, *_ in coordinates], np.float64)
    if not (np.abs(points) < LARGEST).all():
        raise ValueError(f"a coordinate is a number below {LARGEST:g}")
    return points.reshape(-1, 2)


def _property(properties: Any, name: str) -> Any:
    """A property by its name, or by its path with dots; None if there is none."""
    if not isinstance(properties, Mapping):
        return None
    if name in properties:
        return properties[name]
    head, dot, rest = name.partition(".")
    return _property(properties.get(head), rest) if dot else None


def _check_properties(
    features: Sequence[tuple[Any, Mapping[str, Any]]], where: Mapping[str, Any], what: str
) -> None:
    for name in where:
        if features and all(_property(own, name) is None for _, own in features):
            there = sorted({str(key) for _, own in features for key in own})
            raise ConfigError(
                f"where= names properties of the polygons, got {name!r}, but those of {what} have "
                f"{there[:20]}; a dot leads into a property: 'classification.name'"
            )
