"""User-written configuration of the strategies (pydantic)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic.config import JsonDict

from patchloom.configs import Strict
from patchloom.patching.extents import per_axis

__all__ = [
    "AnyConfig",
    "BlueNoiseConfig",
    "ChunkAlignedConfig",
    "FixedConfig",
    "FixedRandomConfig",
    "GridConfig",
    "PatchingConfig",
    "PixelsConfig",
    "PointsConfig",
    "PointsTable",
    "RandomConfig",
    "SequentialConfig",
    "Sized",
    "StratifiedConfig",
    "TiledConfig",
    "WholeSampleConfig",
]


def _form(value: object) -> str:
    """Which of the three ways numbers of pixels are written in; errors then speak of one."""
    forms: dict[type, str] = {dict: "axes", list: "list", tuple: "list"}
    return forms.get(type(value), "number")


Natural = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[int, Field(strict=True, gt=0)]
_Far = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
_Long = Annotated[int, Field(strict=True, gt=0, lt=2**31)]
Size = Annotated[
    Annotated[_Long, Tag("number")]
    | Annotated[list[_Long], Field(min_length=1, max_length=3), Tag("list")]
    | Annotated[dict[str, _Long], Tag("axes")],
    Discriminator(_form),
]
"""At least one pixel: for all axes, for each in order, or for each by name."""
Pixels = Annotated[
    Annotated[_Far, Tag("number")]
    | Annotated[list[_Far], Field(max_length=3), Tag("list")]
    | Annotated[dict[str, _Far], Tag("axes")],
    Discriminator(_form),
]
"""Pixels, possibly none: for all axes, for each in order, or for each by name."""


class _Strict(Strict):
    def on(self, spatial: str) -> Self:
        """The same with nothing left to be said: one number for each axis of `spatial`."""
        return self


class Sized(_Strict):
    """What all strategies share whose patches have a size."""

    patch_size: Size
    """Extent in pixels of the level that is read: one number for all spatial axes, one for each
    in the order (z,) y, x, or one for each by name, as in `{y: 64, x: 64}`."""
    context: Pixels | None = None
    """Pixels that are read around each patch, on both sides of each axis; none by default."""
    spatial_axes: str | None = None
    """The axes that lists speak of, in their order; along others patches are 1 pixel thick."""

    def extents(self, spatial: str) -> list[int]:
        """Extent of a patch on each axis of `spatial`, in pixels."""
        return per_axis(
            self.patch_size, spatial, name="patch_size", among=self.spatial_axes, rest=1
        )

    def on(self, spatial: str) -> Self:
        """The same with nothing left to be said: one number for each axis of `spatial`."""
        among, size = self.spatial_axes, self.extents(spatial)
        said: dict[str, object] = {"patch_size": size, "spatial_axes": None}
        for name in ("context", "overlaps", "shift", "offset"):
            if name in type(self).model_fields:
                value = getattr(self, name)
                said[name] = per_axis(
                    0 if value is None else value, spatial, name=name, among=among
                )
        for name in ("stride", "radius"):
            if name in type(self).model_fields:
                value = getattr(self, name)
                said[name] = (
                    size
                    if value is None
                    else per_axis(value, spatial, name=name, among=among, rest=1)
                )
        return self.model_copy(update=said)


class SequentialConfig(Sized):
    """A grid of patches with overlaps."""

    name: Literal["sequential"] = "sequential"
    overlaps: Pixels | None = None
    """Pixels that neighbours share on each spatial axis; none by default."""


class GridConfig(Sized):
    """A grid of patches at any distance from each other."""

    name: Literal["grid"] = "grid"
    stride: Size | None = None
    """From one patch to the next on each spatial axis, in pixels; by default the patch size."""
    offset: Pixels | None = None
    """Where the grid is anchored, a pixel below the stride on each spatial axis; 0 by default."""


class TiledConfig(Sized):
    """Overlapping tiles whose crops put the image together again."""

    name: Literal["tiled"] = "tiled"
    overlaps: Pixels
    """Pixels that neighbours share on each spatial axis."""


class _Boxed(Sized):
    """What can be told to keep its patches inside chunks, or inside shards."""

    unit: Literal["chunk", "shard"] = "chunk"
    """What patches stay inside of: a chunk, or a shard, which is many chunks in one object."""

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
    overlaps: Pixels | None = None
    """Pixels that neighbours in a chunk share on each spatial axis; none by default."""
    shift: Pixels | None = None
    """Pixels by which the grid moves inside each chunk, at most what is left over there."""


class _Random(_Boxed):
    n_patches: Natural | None = None
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

    name: Literal["stratified"] = "stratified"
    inside_chunks: bool = False
    """Whether every patch lies inside one chunk (or shard), where the grid begins anew."""


class BlueNoiseConfig(Sized):
    """Patches at random positions, none too close to another."""

    name: Literal["blue_noise"] = "blue_noise"
    radius: Size | None = None
    """Minimum distance along each spatial axis, in pixels; by default the patch."""
    allow_overlap: bool = False
    """Whether the distance is Euclidean, so that patches may share pixels."""
    resample_positions: bool = False
    """Whether positions differ from tile to tile; else they repeat tile after tile."""


class WholeSampleConfig(_Strict):
    """One patch a sample, as large as its image."""

    name: Literal["whole"] = "whole"


class PointsTable(_Strict):
    """Where a table of points is, and which of its columns are what; see `read_points`."""

    table: str
    """Path or URL of a CSV or Parquet file, or of an AnnData or an array in Zarr."""
    image: str | None = None
    """The column with image ids; by default all points lie in one image."""
    axes: str | dict[str, str | int] | None = None
    """Which column is which axis, as in `{y: centroid_row, x: centroid_col}`."""
    columns: list[str] | None = None
    """Columns that ride along in the manifest; by default all with text, numbers or flags."""
    sample: str | None = None
    """The column with the flat sample."""
    positions: str | None = None
    """Of an AnnData: the key of `obsm` that holds the positions."""
    unit: Literal["pixel", "physical"] = "pixel"
    """Pixels of the opened level, or the physical unit of the image's metadata."""
    drop_missing: bool = False
    """Whether points without a finite position are left out; by default they are an error."""
    storage_options: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    """Options of the table's file system (fsspec); never shown or saved."""

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        # A URL may carry a user and a password.
        for name, value in super().__repr_args__():
            if name != "table" or "://" not in value:
                yield name, value


def _as_table(value: object) -> object:
    """A path or URL alone is a table with nothing else to say of it."""
    return {"table": value} if isinstance(value, str) else value


def _or_text(schema: JsonDict) -> None:
    """Tell editors so."""
    choices = schema["anyOf"]
    assert isinstance(choices, list)
    choices.insert(0, {"type": "string"})


class PointsConfig(Sized):
    """Patches centred on the points of a table."""

    name: Literal["points"] = "points"
    points: Annotated[PointsTable | None, BeforeValidator(_as_table)] = Field(
        default=None, json_schema_extra=_or_text
    )
    """The table, or its path or URL; a saved plan holds its places itself."""


class PixelsConfig(Sized):
    """A patch centred on every pixel, or on every one under a mask or of some classes."""

    name: Literal["pixels"] = "pixels"
    classes: Annotated[list[int], Field(min_length=1)] | None = None
    """Values of the labels that a centre pixel may have; by default labels are not asked."""
    max_num: Positive | None = None
    """At most so many patches of each image and class, a seeded random choice; by default all."""


class FixedConfig(Sized):
    """The patches of a list, which a plan holds beside it."""

    name: Literal["fixed"] = "fixed"


_Written = (
    SequentialConfig
    | GridConfig
    | TiledConfig
    | ChunkAlignedConfig
    | RandomConfig
    | FixedRandomConfig
    | StratifiedConfig
    | BlueNoiseConfig
    | WholeSampleConfig
    | PointsConfig
    | PixelsConfig
)
AnyConfig = _Written | FixedConfig
PatchingConfig = Annotated[_Written, Field(discriminator="name")]
"""What people write; a list of patches is given as a value."""
