"""SelectedPatches: some patches of others, as patches of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.errors import ConfigError
from patchloom.load.patches import Patches
from patchloom.load.reader import Ints, Pixels, Reader
from patchloom.normalization import Normalization

__all__ = ["SelectedPatches"]


@dataclass(frozen=True, eq=False)
class SelectedPatches(Patches):
    """Some patches of a store, of live sources or of a merger, in their order.

    Statistics, and what they normalise by, are those of all patches that it was taken from.
    """

    whole: Patches
    """What it is part of."""
    positions: Ints = field(repr=False)
    """Of its patches in the whole: int64[m], ascending."""

    @classmethod
    def of(cls, whole: Patches, positions: npt.ArrayLike) -> SelectedPatches:
        """Some patches.

        Parameters
        ----------
        whole
            What is selected from; a selection of a selection is one of the whole.
        positions
            int64[m], ascending and each once; or bool[n], one a patch.

        Raises
        ------
        ConfigError
            If they are not.
        """
        n, given = whole.n_patches, np.asarray(positions)
        if given.dtype == np.bool_:
            if given.shape != (n,):
                raise ConfigError(f"one flag a patch, {n} here, got flags of shape {given.shape}")
            given = np.flatnonzero(given)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise ConfigError(
                f"positions are one column of whole numbers, got {given.dtype} of {given.shape}"
            )
        found = given.astype(np.int64)
        inside = not len(found) or (found[0] >= 0 and found[-1] < n)
        if not inside or (np.diff(found) <= 0).any():
            raise ConfigError(
                f"patches are taken at positions in range({n}), ascending and each once, got "
                f"{found[:8].tolist()}...; in which order and how often they are visited is an "
                "order's: loader(order=...)"
            )
        if isinstance(whole, SelectedPatches):
            whole, found = whole.whole, whole.positions[found]
        return cls(whole, found)

    @property
    def window(self) -> int:  # type: ignore[override]
        """Blocks that are mixed together: those of the whole."""
        return self.whole.window

    @property
    def arrays_held(self) -> tuple[str, ...]:
        """Those of the whole."""
        return self.whole.arrays_held

    @property
    def channels(self) -> tuple[str, ...] | None:
        """Those of the whole."""
        return self.whole.channels

    def extents(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Those of the whole."""
        return self.whole.extents()

    @property
    def manifest(self) -> pa.Table:
        """Their rows."""
        known: pa.Table | None = self.__dict__.get("_manifest")
        if known is None:
            known = self.whole.manifest.take(pa.array(self.positions))
            self.__dict__["_manifest"] = known
        return known

    @property
    def n_patches(self) -> int:
        """How many they are."""
        return len(self.positions)

    @property
    def blocks(self) -> Ints:
        """What of each block of the whole is left."""
        return np.unique(np.searchsorted(self.positions, self.whole.blocks))

    def reader(self, memory: int | None = None, *, by_block: bool = False) -> Reader:
        """A reader of the whole, asked for these."""
        return _SelectedReader(self.whole.reader(memory, by_block=by_block), self.positions)

    def normalization(self, kind: str, per: str = "image") -> Normalization:
        """That of the whole."""
        return self.whole.normalization(kind, per)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_manifest"}


@dataclass(frozen=True, eq=False)
class _SelectedReader:
    """Reads by the positions of a selection."""

    whole: Reader
    positions: Ints

    def read(self, positions: Ints, arrays: Sequence[str]) -> dict[str, Pixels]:
        return self.whole.read(self.positions[positions], arrays)
