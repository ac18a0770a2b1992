"""From a configuration to a strategy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from patchloom.errors import ConfigError
from patchloom.patching.aligned import ChunkAlignedPatching
from patchloom.patching.config import (
    AnyConfig,
    ChunkAlignedConfig,
    PatchingConfig,
    RandomConfig,
    SequentialConfig,
    StratifiedConfig,
    TiledConfig,
    WholeSampleConfig,
)
from patchloom.patching.protocol import Edge, GridPatching
from patchloom.patching.random import FixedRandomPatching, RandomPatching
from patchloom.patching.sequential import SequentialPatching
from patchloom.patching.stratified import StratifiedPatching
from patchloom.patching.tiled import TiledPatching
from patchloom.patching.whole import WholeSamplePatching

__all__ = ["create_patching", "parse_patching"]

_MODELS: dict[str, type[BaseModel]] = {
    str(model.model_fields["name"].default): model for model in get_args(AnyConfig)
}


def parse_patching(config: Mapping[str, Any] | BaseModel) -> AnyConfig:
    """A checked configuration from a mapping or a pydantic model (CAREamics' included).

    Raises
    ------
    ConfigError
        Naming the key, what it got and the nearest right key.
    """
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
    adapter: TypeAdapter[AnyConfig] = TypeAdapter(PatchingConfig)
    try:
        return adapter.validate_python(given)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentences(error, name))) from None


def create_patching(
    data_shapes: Sequence[Sequence[int]],
    config: Mapping[str, Any] | BaseModel,
    *,
    seed: int | None = None,
    edge: Edge | None = None,
    chunks: Sequence[Sequence[int]] | None = None,
    keys: Sequence[int] | None = None,
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
        See the strategies; `edge` None is each strategy's own default.

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
    common: dict[str, Any] = {"chunks": chunks, "keys": keys}
    if edge is not None:
        common["edge"] = edge
    if isinstance(model, WholeSampleConfig):
        return WholeSamplePatching(data_shapes, **common)
    size = model.patch_size
    if isinstance(model, SequentialConfig):
        return SequentialPatching(data_shapes, size, model.overlaps, **common)
    if isinstance(model, TiledConfig):
        return TiledPatching(data_shapes, size, model.overlaps, **common)
    if isinstance(model, ChunkAlignedConfig):
        return ChunkAlignedPatching(data_shapes, size, model.overlaps, shift=model.shift, **common)
    if isinstance(model, StratifiedConfig):
        return StratifiedPatching(data_shapes, size, seed, **common)
    strategy = RandomPatching if isinstance(model, RandomConfig) else FixedRandomPatching
    common |= {"n_patches": model.n_patches, "inside_chunks": model.inside_chunks}
    return strategy(data_shapes, size, seed, **common)


def _sentences(error: ValidationError, name: str) -> list[str]:
    known = list(_MODELS[name].model_fields)
    found = []
    for item in error.errors():
        key = str(item["loc"][1] if len(item["loc"]) > 1 else item["loc"][-1])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, 1)
            found.append(
                f"patching {name!r} has the keys {known}, got {key!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
        else:
            found.append(f"patching.{key}: {item['msg']}, got {item.get('input')!r}")
    return found
