"""Where patches lie: integers only, no pixels, no Dask, no I/O.

A strategy is a pure function of an index. It answers CAREamics' three questions
(`n_patches`, `get_patch_spec`, `get_patch_indices`) and, for whole columns at once, the two
that a chunk-sized plan needs (`counts`, `corners`).
"""

from __future__ import annotations

from patchloom.patching.aligned import ChunkAlignedPatching
from patchloom.patching.blue_noise import BlueNoisePatching
from patchloom.patching.config import (
    BlueNoiseConfig,
    ChunkAlignedConfig,
    FixedConfig,
    FixedRandomConfig,
    GridConfig,
    PatchingConfig,
    PixelsConfig,
    PointsConfig,
    RandomConfig,
    SequentialConfig,
    StratifiedConfig,
    TiledConfig,
    WholeSampleConfig,
)
from patchloom.patching.factory import create_patching
from patchloom.patching.fixed import FixedPatching
from patchloom.patching.listed import CenteredPatching, ListedPatching
from patchloom.patching.pixels import PixelPatching
from patchloom.patching.protocol import (
    ChunkedPatching,
    Patching,
    PatchSpecs,
    TileSpecs,
    is_tile_specs,
)
from patchloom.patching.random import FixedRandomPatching, RandomPatching
from patchloom.patching.sequential import SequentialPatching
from patchloom.patching.stratified import StratifiedPatching, create_val_split
from patchloom.patching.strided import StridedPatching
from patchloom.patching.tiled import TiledPatching
from patchloom.patching.whole import WholeSamplePatching

__all__ = [
    "BlueNoiseConfig",
    "BlueNoisePatching",
    "CenteredPatching",
    "ChunkAlignedConfig",
    "ChunkAlignedPatching",
    "ChunkedPatching",
    "FixedConfig",
    "FixedPatching",
    "FixedRandomConfig",
    "FixedRandomPatching",
    "GridConfig",
    "ListedPatching",
    "PatchSpecs",
    "Patching",
    "PatchingConfig",
    "PixelPatching",
    "PixelsConfig",
    "PointsConfig",
    "RandomConfig",
    "RandomPatching",
    "SequentialConfig",
    "SequentialPatching",
    "StratifiedConfig",
    "StratifiedPatching",
    "StridedPatching",
    "TileSpecs",
    "TiledConfig",
    "TiledPatching",
    "WholeSampleConfig",
    "WholeSamplePatching",
    "create_patching",
    "create_val_split",
    "is_tile_specs",
]
