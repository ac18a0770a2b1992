"""User-written configuration of the strategies (pydantic)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

__all__ = [
    "AnyConfig",
    "ChunkAlignedConfig",
    "FixedRandomConfig",
    "PatchingConfig",
    "RandomConfig",
    "SequentialConfig",
    "StratifiedConfig",
    "TiledConfig",
    "WholeSampleConfig",
]

Size = Annotated[list[PositiveInt], Field(min_length=1, max_length=3)]
Pixels = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=3)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SequentialConfig(_Strict):
    """A grid of patches with overlaps."""

    name: Literal["sequential"] = "sequential"
    patch_size: Size
    """Extent on each spatial axis ((z,) y, x), in pixels of the level that is read."""
    overlaps: Pixels | None = None
    """Pixels that neighbours share on each spatial axis; none by default."""


class TiledConfig(_Strict):
    """Overlapping tiles whose crops put the image together again."""

    name: Literal["tiled"] = "tiled"
    patch_size: Size
    """Extent on each spatial axis ((z,) y, x), in pixels of the level that is read."""
    overlaps: Pixels
    """Pixels that neighbours share on each spatial axis."""


class _Boxed(_Strict):
    """What can be told to keep its patches inside chunks, or inside shards."""

    later: ClassVar[frozenset[str]] = frozenset({"unit"})
    """Keys that came later: left out of a plan where they say nothing new, so that the
    fingerprints of plans that were made without them stay."""

    unit: Literal["chunk", "shard"] = "chunk"
    """What patches stay inside of: a chunk, or a shard, which is many chunks in one object."""

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        new = {k for k in self.later if getattr(self, k) == type(self).model_fields[k].default}
        return {key: value for key, value in dump(self).items() if key not in new}

    @model_validator(mode="after")
    def _unit_is_used(self) -> Self:
        if self.unit == "shard" and not getattr(self, "inside_chunks", True):
            raise ValueError(
                "unit='shard' says what patches stay inside of; say inside_chunks: true with it"
            )
        return self


class ChunkAlignedConfig(_Boxed):
    """A grid that begins anew in each chunk, so that no patch straddles."""

    name: Literal["chunk_aligned"] = "chunk_aligned"
    patch_size: Size
    """Extent on each spatial axis ((z,) y, x), at most that of a chunk (or shard)."""
    overlaps: Pixels | None = None
    """Pixels that neighbours in a chunk share on each spatial axis; none by default."""
    shift: Pixels | None = None
    """Pixels by which the grid moves inside each chunk, at most what is left over there."""


class _Random(_Boxed):
    patch_size: Size
    """Extent on each spatial axis ((z,) y, x), in pixels of the level that is read."""
    n_patches: Annotated[int, Field(ge=0)] | None = None
    """Patches drawn from each image; by default as many as tile it once."""
    inside_chunks: bool = False
    """Whether every patch lies inside one chunk (or shard)."""


class RandomConfig(_Random):
    """Patches at uniform random positions."""

    name: Literal["random"] = "random"


class FixedRandomConfig(_Random):
    """Patches at uniform random positions, the same in every epoch."""

    name: Literal["fixed_random"] = "fixed_random"


class StratifiedConfig(_Boxed):
    """About one patch in each cell of a grid, every pixel equally often."""

    later: ClassVar[frozenset[str]] = frozenset({"unit", "inside_chunks"})
    name: Literal["stratified"] = "stratified"
    patch_size: Size
    """Extent on each spatial axis ((z,) y, x), in pixels of the level that is read."""
    inside_chunks: bool = False
    """Whether every patch lies inside one chunk (or shard), where the grid begins anew."""


class WholeSampleConfig(_Strict):
    """One patch a sample, as large as its image."""

    name: Literal["whole"] = "whole"


AnyConfig = (
    SequentialConfig
    | TiledConfig
    | ChunkAlignedConfig
    | RandomConfig
    | FixedRandomConfig
    | StratifiedConfig
    | WholeSampleConfig
)
PatchingConfig = Annotated[AnyConfig, Field(discriminator="name")]
