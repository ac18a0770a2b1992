"""From points, lists and foreign strategies to the table of places of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel

from patchloom.errors import ConfigError, PatchSizeError, PlanError
from patchloom.image import Image, Ints
from patchloom.patching.config import AnyConfig, FixedConfig, PointsConfig
from patchloom.patching.factory import parse_patching
from patchloom.patching.fixed import FixedPatching
from patchloom.patching.protocol import GridPatching, Patching, is_tile_specs
from patchloom.planning.places import Places
from patchloom.points import Points, first_pixels
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
        if set(patching) != {"name", "fixed_patch_specs"}:
            raise ConfigError(
                "patching 'fixed' has the keys ['name', 'fixed_patch_specs'], got "
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
    spatial, letters = image.axes.spatial, image.axes.sample
    if points.unit == "physical":
        points = points.in_pixels(image.spacing, image.origin)
    missing = [a for a in spatial if a not in points.axes]
    extra = [a for a in points.axes if a not in spatial + letters]
    if missing or extra:
        raise PlanError(
            f"points have the axes of their image, got {points.axes!r} for {image.id!r} with the "
            f"spatial axes {spatial!r}; read them with axes= of these"
        )
    column = [points.axes.index(a) for a in spatial]
    corner = first_pixels(points.position[:, column], size)
    n = image.layout.n_samples
    if points.sample is not None:
        sample = points.sample
    elif letters and letters in points.axes:
        # Planes that are samples: a point lies in the plane that covers it.
        at = [points.axes.index(letters)]
        sample = first_pixels(points.position[:, at], (1,))[:, 0]
    elif n == 1:
        sample = np.zeros(len(points), np.int64)
    else:
        raise PlanError(
            f"points say in which of {n} samples of {image.id!r} they lie; name the column: "
            "read_points(table, sample='column')"
        )
    return corner, np.where((sample >= 0) & (sample < n), sample, -1)


def _listed(images: Sequence[Image], patching: Patching) -> tuple[FixedConfig, Places]:
    """The patches of a strategy, each asked for once."""
    if isinstance(patching, GridPatching) and patching.edge != "shrink":
        return _enumerated(images, patching)
    specs = [patching.get_patch_spec(index) for index in range(patching.n_patches)]
    sizes = sorted({tuple(int(p) for p in spec["patch_size"]) for spec in specs})
    if len(sizes) != 1:
        raise PatchSizeError(
            f"the patches of one plan have one size, got {sizes[:6] or 'no patch'} from "
            f"{type(patching).__name__}; plan the patches of each size apart"
        )
    ndim = len(sizes[0])
    image = np.array([spec["data_idx"] for spec in specs], np.int64)
    sample = np.array([spec["sample_idx"] for spec in specs], np.int64)
    corner = np.array([tuple(spec["coords"]) for spec in specs], np.int64).reshape(-1, ndim)
    columns: dict[str, npt.NDArray[np.int64]] = {}
    spatial = images[0].axes.spatial
    if all(is_tile_specs(spec) for spec in specs):
        for key, name in _TILE_COLUMNS.items():
            table = np.array([tuple(spec[key]) for spec in specs], np.int64)
            columns |= {f"{name}_{a}": table[:, k] for k, a in enumerate(spatial)}
        columns["total_tiles"] = np.array([spec["total_tiles"] for spec in specs], np.int64)
    return _checked(images, sizes[0], Places(image, sample, corner, pa.table(columns)))


_TILE_COLUMNS = {"crop_coords": "crop_start", "crop_size": "crop_size", "stitch_coords": "stitch"}


def _enumerated(images: Sequence[Image], patching: GridPatching) -> tuple[FixedConfig, Places]:
    """The patches of one of our own strategies, image by image."""
    parts = []
    for index, grid in enumerate(patching.grids):
        cells = np.arange(len(patching.counts(index)))
        corner, n = patching.corners(index, cells)
        sample = np.repeat(cells // max(1, grid.n_chunks), n)
        parts.append((np.full(len(corner), index, np.int64), sample, corner))
    image, sample, corner = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _checked(images, patching.patch_size, Places(image, sample, corner, pa.table({})))


def _checked(
    images: Sequence[Image], size: Sequence[int], places: Places
) -> tuple[FixedConfig, Places]:
    """A configuration for places that lie in the plan's images."""
    if len(size) != len(images[0].axes.spatial):
        raise PatchSizeError(
            f"patch_size has one number a spatial axis, got {list(size)} for the axes "
            f"{images[0].axes.spatial!r} of {images[0].id!r}"
        )
    samples = np.array([image.layout.n_samples for image in images])
    known = (places.image >= 0) & (places.image < len(images))
    if not known.all() or not (places.sample < samples[places.image]).all():
        raise PlanError(
            f"a strategy is made over the shapes of the plan's images, got one over other than "
            f"these {len(images)} images; make it over [image.layout.data_shape for image in "
            "images]"
        )
    return FixedConfig(patch_size=list(size)).on(images[0].axes.spatial), places
