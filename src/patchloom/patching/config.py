"""User-written configuration of the strategies (pydantic)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

__all__ = ["PatchingConfig", "RandomConfig", "SequentialConfig"]

Size = Annotated[list[PositiveInt], Field(min_length=1, max_length=3)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SequentialConfig(_Strict):
    """A grid of patches with overlaps."""

    name: Literal["sequential"] = "sequential"
    patch_size: Size
    """Extent on each spatial axis ((z,) y, x), in pixels of the level that is read."""
    overlaps: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=3)] | None = None
    """Pixels that neighbours share on each spatial axis; none by default."""


class RandomConfig(_Strict):
    """Patches at uniform random positions."""

    name: Literal["random"] = "random"
    patch_size: Size
    """Extent on each spatial axis ((z,) y, x), in pixels of the level that is read."""
    n_patches: Annotated[int, Field(ge=0)] | None = None
    """Patches drawn from each image; by default as many as tile it once."""


PatchingConfig = Annotated[SequentialConfig | RandomConfig, Field(discriminator="name")]
