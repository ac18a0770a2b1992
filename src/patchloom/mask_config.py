"""What a mask is made of, where it is no array: pydantic models, one a kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from patchloom.configs import Strict
from patchloom.errors import ConfigError
from patchloom.location import Location

__all__ = [
    "AutoMask",
    "BoxesMask",
    "LabelsMask",
    "MaskConfig",
    "NodataMask",
    "PolygonsMask",
    "parse_mask",
]

_Given = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                {"type": "object", "additionalProperties": {"type": "string"}},
            ]
        }
    ),
]
"""In Python also arrays and tables."""
_Class = Annotated[int, Field(strict=True)]
_Scalar = str | Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True)] | bool
Where = dict[str, _Scalar | list[_Scalar]]


def _as_list(value: object) -> object:
    values = value if isinstance(value, list | tuple) else [value]
    return ["nan" if isinstance(v, float) and math.isnan(v) else v for v in values]


def _some(values: list[Any]) -> list[Any]:
    if not values:
        raise PydanticCustomError("empty", "Input should be at least one value")
    return values


class _Kind(Strict):
    def __repr_args__(self) -> Any:
        # A URL may carry a user and a password, and a table is long.
        for name, value in super().__repr_args__():
            yield name, _shown(value)


class LabelsMask(_Kind):
    """Where a label image shows given classes."""

    labels: _Given
    """The label image: a URL, a pattern with `{stem}`, the name of an OME-Zarr label group or an
    array; one for each image in a list, or per image id in a mapping."""
    classes: Annotated[list[_Class], AfterValidator(_some)] | None = None
    """The labels that are covered; by default all but 0."""


class _Outlines(_Kind):
    units: Literal["pixel", "physical"] = "pixel"
    """Pixels of the opened level, counted from the edge of the first (the centre of pixel k is at
    k + 0.5), or the physical unit of the image's metadata."""
    where: Where | None = None
    """Which outlines count: a value, or a list of values, for each property (or column). A dot
    leads into a property: `classification.name`."""
    missing: Literal["error", "empty"] = "error"
    """What an image without any such outline is: a mistake, or covered nowhere."""


class PolygonsMask(_Outlines):
    """Where polygons lie."""

    polygons: _Given
    """GeoJSON (path, URL, pattern with `{stem}`), or a table with the columns `polygon_id`, `y`,
    `x` in the order of the vertices, and `image_id` if it is of several images."""


class BoxesMask(_Outlines):
    """Where boxes lie."""

    boxes: _Given
    """A table with the columns `y0`, `x0`, `y1`, `x1`, and `image_id` if it is of several
    images."""


class AutoMask(_Kind):
    """Where an image is brighter (or darker) than a threshold of its own."""

    auto: Literal["otsu", "triangle", "li", "isodata", "percentile"]
    """How the threshold is found, in the histogram of a coarse level."""
    level: Annotated[int, Field(strict=True, ge=0)] | str | None = None
    """The pyramid level to look at, by number or path; by default the finest whose planes have at
    most 4 million pixels."""
    channel: Annotated[int, Field(strict=True, ge=0)] | str | None = None
    """The channel to look at, by number or name; by default the sum of all."""
    of: Literal["brightness", "saturation"] = "brightness"
    """`saturation` is for stained tissue in RGB."""
    foreground: Literal["bright", "dark", "auto"] = "bright"
    """The side that is covered; `auto`: the one that holds less of the image's border."""
    percentile: Annotated[float, Field(ge=0, le=100)] | None = None
    """For `percentile`: the share of pixels, in percent, that is not above the threshold."""
    fill_holes: bool = False
    """Whether holes in the foreground of a plane are covered."""
    min_size: Annotated[int, Field(strict=True, ge=0)] = 0
    """Smaller pieces of foreground are left out; in pixels of the coarse level."""


class NodataMask(_Kind):
    """Where the image has data."""

    nodata: Annotated[
        list[
            Literal["nan"]
            | Annotated[int, Field(strict=True)]
            | Annotated[float, Field(strict=True)]
        ],
        BeforeValidator(_as_list, json_schema_input_type=float | Literal["nan"] | list[Any]),
        AfterValidator(_some),
    ]
    """The value, or values, of pixels without data; `nan` is not a number."""
    channels: Literal["any", "all"] = "any"
    """Whether one channel without data is enough for a pixel to have none, or all must be."""


MaskConfig = LabelsMask | PolygonsMask | BoxesMask | AutoMask | NodataMask
_MODELS: dict[str, type[_Kind]] = {
    "labels": LabelsMask,
    "polygons": PolygonsMask,
    "boxes": BoxesMask,
    "auto": AutoMask,
    "nodata": NodataMask,
}


def parse_mask(given: Any) -> MaskConfig | None:
    """A checked kind of mask, or None if something else was given.

    Raises
    ------
    ConfigError
        If it is a kind with a wrong key or value.
    """
    if isinstance(given, MaskConfig):
        return given
    if not isinstance(given, Mapping):
        return None
    kinds = [name for name in _MODELS if name in given]
    if not kinds:
        return None
    if len(kinds) > 1:
        raise ConfigError(
            f"a mask is of one kind out of {list(_MODELS)}, got {kinds}; give one of them"
        )
    model = _MODELS[kinds[0]]
    try:
        found = model.model_validate(dict(given))
    except ValidationError as error:
        raise ConfigError("; ".join(_sentences(error, kinds[0], model))) from None
    if isinstance(found, AutoMask) and (found.percentile is None) == (found.auto == "percentile"):
        raise ConfigError(
            "a mask has the key 'percentile' if auto is 'percentile', and only then, got "
            f"auto={found.auto!r} and percentile={found.percentile!r}"
        )
    assert isinstance(found, MaskConfig)
    return found


def _sentences(error: ValidationError, kind: str, model: type[BaseModel]) -> list[str]:
    wrong: dict[str, tuple[list[str], Any]] = {}
    found = []
    for item in error.errors(include_url=False, include_context=False):
        key = str(item["loc"][0])
        if item["type"] == "extra_forbidden":
            keys = ", ".join(sorted(model.model_fields))
            found.append(f"unknown key {key!r} in a mask of kind {kind!r}; the keys are {keys}")
        else:
            expected = item["msg"].removeprefix("Input should be ")
            expected = expected.replace("a valid integer", "a whole number").replace("valid ", "")
            wrong.setdefault(key, ([], item["input"]))[0].append(expected)
    for key, (said, value) in wrong.items():
        expected = " or ".join(dict.fromkeys(said))
        found.append(f"{key!r} of a mask of kind {kind!r} should be {expected}, got {value!r}")
    return found


def _shown(value: Any) -> Any:
    if isinstance(value, str) and "://" in value:
        return Location(value).shown
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    return value
