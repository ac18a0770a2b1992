"""Where patches lie: integers only, no pixels, no Dask, no I/O.

A strategy is a pure function of an index. It answers CAREamics' three questions
(`n_patches`, `get_patch_spec`, `get_patch_indices`) and, for whole columns at once, the two
that a chunk-sized plan needs (`counts`, `corners`).
"""

from __future__ import annotations

from patchloom.patching.config import PatchingConfig, RandomConfig, SequentialConfig
from patchloom.patching.factory import create_patching
from patchloom.patching.protocol import ChunkedPatching, Patching, PatchSpecs
from patchloom.patching.random import RandomPatching
from patchloom.patching.sequential import SequentialPatching

__all__ = [
    "ChunkedPatching",
    "PatchSpecs",
    "Patching",
    "PatchingConfig",
    "RandomConfig",
    "RandomPatching",
    "SequentialConfig",
    "SequentialPatching",
    "create_patching",
]
