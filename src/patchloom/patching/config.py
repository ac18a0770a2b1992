"""User-written configuration of the strategies (pydantic)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

__all__ = [
    "AnyConfig",
    "BlueNoiseConfig",
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


class ChunkAlignedConfig(_Strict):
    """A grid that begins anew in each chunk, so that no patch straddles."""

    name: Literal["chunk_aligned"] = "chunk_aligned"
    patch_size: Size
    """Extent on each spatial axis ((z,) y, x), at most that of a chunk."""
    overlaps: Pixels | None = None
    """Pixels that neighbours in a chunk share on each spatial axis; none by default."""
    shift: Pixels | None = None
    """Pixels by which the grid moves inside each chunk, at most what is left over there."""


class _Random(_Strict):
    patch_size: Size
    """Extent on each spatial axis ((z,) y, x), in pixels of the level that is read."""
    n_patches: Annotated[int, Field(ge=0)] | None = None
    """Patches drawn from each image; by default as many as tile it once."""
    inside_chunks: bool = False
    """Whether every patch lies inside one chunk."""


class RandomConfig(_Random):
    """Patches at uniform random positions."""

    name: Literal["random"] = "random"


class FixedRandomConfig(_Random):
    """Patches at uniform random positions, the same in every epoch."""

    name: Literal["fixed_random"] = "fixed_random"


class StratifiedConfig(_Strict):
    """About one patch in each cell of a grid, every pixel equally often."""

    name: Literal["stratified"] = "stratified"
    patch_size: Size
    """Extent on each spatial axis ((z,) y, x), in pixels of the level that is read."""


class BlueNoiseConfig(_Strict):
    """Patches at random positions, none too close to another."""

    name: Literal["blue_noise"] = "blue_noise"
    patch_size: Size
    """Extent on each spatial axis ((z,) y, x), in pixels of the level that is read."""
    radius: Size | None = None
    """Minimum distance along each spatial axis, in pixels; by default the patch."""
    allow_overlap: bool = False
    """Whether the distance is Euclidean, so that patches may share pixels."""
    resample_positions: bool = False
    """Whether positions differ from chunk to chunk; else they repeat."""


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
    | BlueNoiseConfig
    | WholeSampleConfig
)
PatchingConfig = Annotated[AnyConfig, Field(discriminator="name")]
