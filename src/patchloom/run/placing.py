"""From points, lists and foreign strategies to the table of places of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from patchloom.errors import ConfigError, PatchSizeError, PlanError
from patchloom.image import Image, Ints
from patchloom.patching.config import AnyConfig, FixedConfig, PointsConfig
from patchloom.patching.factory import parse_patching
from patchloom.patching.fixed import FixedPatching
from patchloom.patching.protocol import GridPatching, Patching, is_tile_specs
from patchloom.patching.tiled import TiledPatching
from patchloom.planning.places import Places
from patchloom.points import Points, first_pixels
from patchloom.run.tiles import tile_columns
from patchloom.sources.points import read_points

__all__ = ["placed"]

_ELSEWHERE = "in an image that is not planned"
_NO_SAMPLE = "in a sample that its image has not"


def placed(
    images: Sequence[Image], patching: Any
) -> tuple[AnyConfig, Places | None, dict[str, int]]:
    """What a plan is asked for: its configuration, its places if they are listed, and rejects.

    Parameters
    ----------
    images
        Of the plan.
    patching
        A configuration, or anything that answers CAREamics' three questions.
    """
    spatial = images[0].axes.spatial
    if isinstance(patching, Patching):
        return (*_listed(images, patching), {})
    if isinstance(patching, Mapping) and patching.get("name") == "fixed":
        if set(patching) != {"name", "fixed_patch_specs"} or not isinstance(
            patching["fixed_patch_specs"], Sequence
        ):
            raise ConfigError(
                "patching 'fixed' has the keys ['name', 'fixed_patch_specs'], a list, got "
                f"{sorted(map(str, patching))}"
            )
        return (*_listed(images, FixedPatching(patching["fixed_patch_specs"])), {})
    points = None
    if isinstance(patching, Mapping) and patching.get("name") == "points":
        points = patching.get("points")
        if not isinstance(points, Mapping | BaseModel) or "table" not in dict(points):
            # Not a description of a table but the table itself.
            patching = {k: v for k, v in patching.items() if k != "points"}
    # However it was written, the same is the same plan.
    asked = parse_patching(patching).on(spatial)
    if not isinstance(asked, PointsConfig):
        return asked, None, {}
    config = asked
    if config.points is not None:
        given = config.points.model_dump()
        points = read_points(
            given.pop("table"), **given, storage_options=config.points.storage_options
        )
        config = config.model_copy(update={"points": None})
    elif points is None:
        raise ConfigError(
            "patching 'points' needs its points: from read_points, a table, or the path of one, "
            "as in {'name': 'points', 'patch_size': 64, 'points': 'cells.csv'}"
        )
    if not isinstance(points, Points):
        points = read_points(points)
    places, rejected = _centered(images, points, config.extents(spatial))
    return config, places, rejected


def _centered(
    images: Sequence[Image], points: Points, size: Sequence[int]
) -> tuple[Places, dict[str, int]]:
    """The places of patches centred on points, and how many points lie nowhere."""
    image = _image_of(images, points)
    corner = np.zeros((len(points), len(size)), np.int64)
    sample = np.full(len(points), -1, np.int64)
    for index, one in enumerate(images):
        mine = np.flatnonzero(image == index)
        if len(mine):
            corner[mine], sample[mine] = _within(one, points.take(mine), size)
    good = (image >= 0) & (sample >= 0)
    rejected = {
        _ELSEWHERE: int((image < 0).sum()),
        _NO_SAMPLE: int(((image >= 0) & (sample < 0)).sum()),
    }
    columns = points.columns if points.columns.num_columns else pa.table({})
    if not good.all():
        rows = np.flatnonzero(good)
        image, sample, corner = image[rows], sample[rows], corner[rows]
        columns = columns.take(pa.array(rows)) if columns.num_columns else columns
    return Places(image, sample, corner, columns), {k: n for k, n in rejected.items() if n}


def _image_of(images: Sequence[Image], points: Points) -> Ints:
    """Position of each point's image in the plan, -1 if it has none."""
    if points.image is None:
        if len(images) > 1:
            raise PlanError(
                f"a table of points says in which image each lies, got {len(images)} images and "
                "no such column; name it: read_points(table, image='column')"
            )
        return np.zeros(len(points), np.int64)
    place = {image.id: k for k, image in enumerate(images)}
    codes = np.array([place.get(name, -1) for name in points.images], np.int64)
    if len(codes) and (codes < 0).all():
        raise PlanError(
            f"points name their images by id, got {list(points.images)[:5]} for images called "
            f"{list(place)[:5]}; rename one of them: open_images(..., ids=[...])"
        )
    return codes[points.image] if len(codes) else np.zeros(0, np.int64)


def _within(image: Image, points: Points, size: Sequence[int]) -> tuple[Ints, Ints]:
    """First pixels and flat samples of one image's points; a sample is -1 where it has none."""
    spatial, n = image.axes.spatial, image.layout.n_samples
    # Opened with sample="z", an image has planes along s: a point lies in the one that covers it.
    in_planes = points.axes == f"z{spatial}" and "s" in image.axes.sample
    if points.axes != spatial and not in_planes:
        raise PlanError(
            f"points have the axes of their image, got {points.axes!r} for {image.id!r} with the "
            f"spatial axes {spatial!r}; read them with axes= of these"
        )
    if points.unit == "physical":
        points = points.in_pixels(image.spacing, image.origin)
    place = points.position[:, in_planes:]
    if points.sample is not None:
        sample = points.sample
    elif in_planes and image.shape[image.axes.names.index("s")] == n:
        sample = first_pixels(points.position[:, :1], (1,))[:, 0]
    elif n == 1:
        sample = np.zeros(len(points), np.int64)
    else:
        raise PlanError(
            f"points say in which of {n} samples of {image.id!r} they lie; name the column: "
            "read_points(table, sample='column')"
        )
    return first_pixels(place, size), np.where((sample >= 0) & (sample < n), sample, -1)


def _listed(images: Sequence[Image], patching: Patching) -> tuple[FixedConfig, Places]:
    """The patches of a strategy, each asked for once."""
    if isinstance(patching, GridPatching) and _has_one_size(patching):
        return _enumerated(images, patching)
    specs = [patching.get_patch_spec(index) for index in range(patching.n_patches)]
    sizes: list[tuple[int, ...]] = []
    if specs:
        ndim = np.size(specs[0].get("patch_size", ()))
        sizes = sorted({*map(tuple, _column(specs, "patch_size", ndim).tolist())})
    if len(sizes) != 1:
        raise PatchSizeError(
            f"the patches of one plan have one size, got {sizes[:6] or 'no patch'} from "
            f"{type(patching).__name__}; plan the patches of each size apart"
        )
    config, ndim = _sized(images, sizes[0]), len(sizes[0])
    columns: dict[str, Ints] = {}
    if all(is_tile_specs(spec) for spec in specs):
        parts = [_column(specs, key, ndim) for key in ("crop_coords", "crop_size", "stitch_coords")]
        spatial, total = images[0].axes.spatial, _column(specs, "total_tiles")
        columns = tile_columns(spatial, parts[0], parts[1], parts[2], total)
    places = Places(
        _column(specs, "data_idx"),
        _column(specs, "sample_idx"),
        _column(specs, "coords", ndim),
        pa.table(columns),
    )
    return config, _checked(images, places)


def _has_one_size(patching: GridPatching) -> bool:
    sizes = {patching.size_of(index) for index in range(len(patching.grids))}
    return patching.edge != "shrink" and sizes == {patching.patch_size}


def _column(specs: Sequence[Any], key: str, ndim: int | None = None) -> Ints:
    """One part of all specs: int64[n], or int64[n, ndim]."""
    shape, what = ((), "a whole number") if ndim is None else ((ndim,), f"{ndim} whole numbers")

    def fits(values: Any, n: tuple[int, ...]) -> bool:
        return values.dtype.kind in "iu" and values.shape == (*n, *shape)

    try:
        found = np.array([spec[key] for spec in specs])
        if fits(found, (len(specs),)):
            return found.astype(np.int64)
    except (KeyError, ValueError):
        pass  # a part is missing, or the parts differ in length: say which
    for row, spec in enumerate(specs):
        if key not in spec or not fits(np.array(spec[key]), ()):
            raise PlanError(
                f"the specs of a strategy have {what} as {key!r}, got {spec.get(key)!r} in spec "
                f"{row}; mend it"
            )
    raise PlanError(f"the specs of a strategy have {what} as {key!r}, below 2**63")


def _enumerated(images: Sequence[Image], patching: GridPatching) -> tuple[FixedConfig, Places]:
    """The patches of one of our own strategies, image by image."""
    config, spatial = _sized(images, patching.patch_size), images[0].axes.spatial
    parts, tiles = [], []
    for index, grid in enumerate(patching.grids):
        cells = np.arange(len(patching.counts(index)))
        corner, n = patching.corners(index, cells)
        sample = np.repeat(cells // max(1, grid.n_chunks), n)
        parts.append((np.full(len(corner), index, np.int64), sample, corner))
        if isinstance(patching, TiledPatching):
            crops = patching.crops(index, corner)
            tiles.append(pa.table(tile_columns(spatial, *crops, total=len(corner))))
    image, sample, corner = (np.concatenate(column) for column in zip(*parts, strict=True))
    columns = pa.concat_tables(tiles).combine_chunks() if tiles else pa.table({})
    return config, _checked(images, Places(image, sample, corner, columns))


def _sized(images: Sequence[Image], size: Sequence[int]) -> FixedConfig:
    """The configuration of listed patches."""
    spatial = images[0].axes.spatial
    if len(size) != len(spatial) or min(size) < 1:
        raise PatchSizeError(
            f"patch_size has one number above 0 a spatial axis, got {list(size)} for the axes "
            f"{spatial!r} of {images[0].id!r}"
        )
    return FixedConfig(patch_size=list(size)).on(spatial)


def _checked(images: Sequence[Image], places: Places) -> Places:
    """Places that lie in the plan's images."""
    samples = np.array([image.layout.n_samples for image in images])
    known = (places.image >= 0) & (places.image < len(images)) & (places.sample >= 0)
    known[known] = places.sample[known] < samples[places.image[known]]
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        raise PlanError(
            f"a strategy is made over the shapes of the plan's images, got image "
            f"{places.image[row]}, sample {places.sample[row]} as patch {row} for {len(images)} "
            f"images with {samples.tolist()[:10]} samples; make it over [image.layout.data_shape "
            "for image in images]"
        )
    return places
