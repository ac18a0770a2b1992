"""From a configuration to a strategy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, cast, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from patchloom.errors import ConfigError
from patchloom.patching.aligned import ChunkAlignedPatching
from patchloom.patching.blue_noise import BlueNoisePatching
from patchloom.patching.config import AnyConfig, PointsTable, Sized
from patchloom.patching.extents import axes_of
from patchloom.patching.pixels import PixelPatching
from patchloom.patching.protocol import Edge, GridPatching
from patchloom.patching.random import FixedRandomPatching, RandomPatching
from patchloom.patching.sequential import SequentialPatching
from patchloom.patching.stratified import StratifiedPatching
from patchloom.patching.strided import StridedPatching
from patchloom.patching.tiled import TiledPatching
from patchloom.patching.whole import WholeSamplePatching

__all__ = ["create_patching", "parse_patching", "placing"]

_MODELS: dict[str, type[BaseModel]] = {
    str(model.model_fields["name"].default): model for model in get_args(AnyConfig)
}
# The keys of a configuration are the arguments of its class.
_STRATEGIES: dict[str, Any] = {
    "sequential": SequentialPatching,
    "grid": StridedPatching,
    "tiled": TiledPatching,
    "chunk_aligned": ChunkAlignedPatching,
    "random": RandomPatching,
    "fixed_random": FixedRandomPatching,
    "stratified": StratifiedPatching,
    "blue_noise": BlueNoisePatching,
    "whole": WholeSamplePatching,
    "pixels": PixelPatching,
}
_PLANNED = ("context", "classes", "max_num")
"""Keys that a plan heeds, not a class."""
_SEEDED = ("random", "fixed_random", "stratified", "blue_noise")


def parse_patching(config: Mapping[str, Any] | BaseModel) -> AnyConfig:
    """A checked configuration from a mapping or a pydantic model (CAREamics' included).

    Raises
    ------
    ConfigError
        Naming the key, what it got and the nearest right key.
    """
    if isinstance(config, get_args(AnyConfig)):
        # Checked already; dumped, it would lose what is never saved.
        return cast(AnyConfig, config)
    given = config.model_dump(exclude_none=True) if isinstance(config, BaseModel) else config
    if not isinstance(given, Mapping):
        raise ConfigError(
            "patching is a mapping such as {'name': 'sequential', 'patch_size': [256, 256]}, got "
            f"{type(config).__name__}"
        )
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}
    name = str(given.get("name"))
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, 1)
        raise ConfigError(
            f"a patching has a name out of {sorted(_MODELS)}, got {given.get('name')!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    try:
        return _adapter().validate_python(given)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentences(error, name))) from None


@cache
def _adapter() -> TypeAdapter[AnyConfig]:
    """What checks configurations; to make it takes longer than to use it."""
    return TypeAdapter(Annotated[AnyConfig, Field(discriminator="name")])


def placing(config: AnyConfig) -> AnyConfig:
    """The same without what only a plan heeds."""
    said = {name: None for name in _PLANNED if name in type(config).model_fields}
    return config.model_copy(update=said)


def create_patching(
    data_shapes: Sequence[Sequence[int]],
    config: Mapping[str, Any] | BaseModel,
    *,
    seed: int | None = None,
    edge: Edge | None = None,
    chunks: Sequence[Sequence[int]] | None = None,
    keys: Sequence[int] | None = None,
    units: Sequence[Sequence[int]] | None = None,
) -> GridPatching:
    """The strategy that a configuration names.

    Parameters
    ----------
    data_shapes
        Shape of each image as ``SC(Z)YX``, in pixels.
    config
        For example ``{"name": "random", "patch_size": [64, 64]}``, or a pydantic model of
        CAREamics; it may say its ``seed``, which `seed` overrules.
    seed, edge, chunks, keys
        See the strategies; `edge` None is each strategy's own default. Without images, the axes
        are those that ``patch_size`` speaks of; one number speaks of y, x.
    units
        Shard extents of each image on its spatial axes, for ``unit: shard``.

    Raises
    ------
    ConfigError
        If the configuration is wrong, says what only a plan heeds (``context``, ``classes``,
        ``max_num``), or asks for shards and none are given.

    Examples
    --------
    >>> create_patching([(1, 1, 64, 64)], {"name": "sequential", "patch_size": [32, 32]}).n_patches
    4
    """
    given = config.model_dump(exclude_none=True) if isinstance(config, BaseModel) else config
    if isinstance(given, Mapping) and "seed" in given:
        # CAREamics' configurations carry the seed; a plan has one of its own.
        seed = given["seed"] if seed is None else seed
        given = {key: value for key, value in given.items() if key != "seed"}
    model = parse_patching(given)
    if isinstance(model, Sized):
        model = model.on(axes_of(data_shapes, model.patch_size, model.spatial_axes))
    if model.name not in _STRATEGIES:
        raise ConfigError(
            f"a strategy of class {model.name!r} is made of a table of places, which a "
            "configuration does not hold; make it with plan, or as a ListedPatching"
        )
    _check_planned(model)
    arguments: dict[str, Any] = {"chunks": chunks, "keys": keys}
    arguments |= model.model_dump(exclude={"name", "spatial_axes", *_PLANNED})
    if arguments.pop("unit", "chunk") == "shard":
        if units is None:
            raise ConfigError(
                f"patching {model.name!r} with unit='shard' needs the extents of shards, got none; "
                "give units=, or say unit='chunk'"
            )
        arguments["units"] = units
    if edge is not None:
        arguments["edge"] = edge
    if model.name in _SEEDED:
        arguments["seed"] = seed
    strategy: GridPatching = _STRATEGIES[model.name](data_shapes, **arguments)
    return strategy


def _check_planned(model: BaseModel) -> None:
    said = {name: getattr(model, name, None) for name in _PLANNED}
    # No context is zeros.
    said["context"] = said["context"] if any(said["context"] or ()) else None
    for name, value in said.items():
        if value is not None:
            raise ConfigError(
                f"a strategy alone does not heed {name!r}, a plan does, got {value!r}; make it "
                f"with plan, or leave {name!r} out"
            )


def _sentences(error: ValidationError, name: str) -> list[str]:
    found = []
    for item in error.errors():
        path = [str(step) for step in item["loc"][1:]] or [str(step) for step in item["loc"]]
        # Below the table of points are keys of its own; below all else, branches of unions.
        inside = path[0] == "points" and len(path) > 1
        key = path[1] if inside else path[0]
        if item["type"] == "extra_forbidden":
            known = list((PointsTable if inside else _MODELS[name]).model_fields)
            near = difflib.get_close_matches(key, known, 1)
            found.append(
                f"{'points of ' if inside else ''}patching {name!r} has the keys {known}, got "
                f"{key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
            continue
        # Options and what holds them may be secret, and so may a URL.
        told = "" if path[0] == "points" else f", got {item.get('input')!r}"
        found.append(f"patching.{'points.' if inside else ''}{key}: {item['msg']}{told}")
    return found
