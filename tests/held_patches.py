"""Patches in memory: the least that a loader can be given, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from patchloom.load.patches import Patches
from patchloom.load.reader import Ints, Pixels, Reader


@dataclass(frozen=True, eq=False)
class HeldPatches(Patches):
    """Arrays by name, a row a patch."""

    arrays: dict[str, Pixels]
    rows: dict[str, Any] = field(default_factory=dict)
    bounds: tuple[int, ...] = ()
    named: tuple[str, ...] | None = None

    @property
    def arrays_held(self) -> tuple[str, ...]:
        return tuple(self.arrays)

    @property
    def channels(self) -> tuple[str, ...] | None:
        return self.named

    @property
    def manifest(self) -> pa.Table:
        n = len(next(iter(self.arrays.values())))
        return pa.table({"image_id": ["i"] * n, **self.rows})

    @property
    def blocks(self) -> Ints:
        return np.array(self.bounds or (0, self.n_patches), np.int64)

    def reader(self, memory: int | None = None, *, by_block: bool = False) -> Reader:
        return _HeldReader(self.arrays)


@dataclass(frozen=True)
class _HeldReader:
    arrays: dict[str, Pixels]

    def read(self, positions: Ints, arrays: Sequence[str]) -> dict[str, Pixels]:
        return {name: self.arrays[name][positions] for name in arrays}
