"""What a manifest says of places and tiles: columns beside those that every patch has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.image import Ints
from patchloom.patching.config import FixedConfig
from patchloom.patching.tiled import TiledPatching
from patchloom.planning.incidence import Patches
from patchloom.planning.plans import Plan

__all__ = ["columns_of", "tile_columns"]


def tile_columns(
    spatial: str, crop: Ints, size: Ints, stitch: Ints, total: npt.ArrayLike
) -> dict[str, Ints]:
    """What is kept of some tiles, by the names of its columns.

    Parameters
    ----------
    spatial
        Axes of the tiles.
    crop, size, stitch
        First kept pixel in pixels of the tile, extent of what is kept, and first kept pixel in
        pixels of the image: int64[n, ndim] each.
    total
        Tiles of the image of each: int, or int64[n].
    """
    return {
        **{
            f"{name}_{a}": table[:, k]
            for name, table in (("crop_start", crop), ("crop_size", size), ("stitch", stitch))
            for k, a in enumerate(spatial)
        },
        "total_tiles": np.broadcast_to(np.asarray(total, np.int64), len(crop)),
    }


def columns_of(plan: Plan, part: Patches) -> pa.Table | None:
    """What a plan knows of some patches of one image besides where they are; None if nothing."""
    total = plan.n_patches_of(part.image)
    if isinstance(plan.patching, TiledPatching):
        context = np.asarray(plan.cut.context, np.int64)
        crop, size, stitch = plan.patching.crops(part.image, part.corner + context)
        return pa.table(tile_columns(plan.spatial, crop + context, size, stitch, total))
    if plan.places is None or part.place is None:
        return None
    table = plan.places.columns.take(pa.array(part.place))
    if not isinstance(plan.config, FixedConfig) or "total_tiles" not in table.column_names:
        return table
    # Under "shift" a tile is not where its strategy has put it: what is kept of it stays.
    moved = plan.places.corner[part.place] - part.corner
    told = {
        f"crop_start_{a}": table[f"crop_start_{a}"].to_numpy() + moved[:, k]
        for k, a in enumerate(plan.spatial)
    }
    told["total_tiles"] = np.full(len(part), total)
    columns = [pa.array(told[n]) if n in told else table[n] for n in table.column_names]
    return pa.table(columns, table.column_names)
