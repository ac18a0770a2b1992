"""SelectedPatches: some patches of others, as patches of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.errors import ConfigError
from patchloom.load.derived import DerivedPatches
from patchloom.load.patches import Patches
from patchloom.load.reader import Ints, Pixels, Reader
from patchloom.load.scales import summed
from patchloom.randomness import digest, digest_of
from patchloom.summaries.table import Statistics

__all__ = ["SelectedPatches"]


@dataclass(frozen=True, eq=False)
class SelectedPatches(DerivedPatches):
    """Some patches of a store, of live sources or of a merger, in their order.

    What they normalise by are the numbers of the images that they are of: of a split by samples
    those of its own samples.
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
            return cls(whole.whole, whole.positions[found])
        return cls(whole, found)

    @property
    def window(self) -> int:  # type: ignore[override]
        """Blocks that are mixed together: those of the whole."""
        return self.whole.window

    @property
    def memory_to_load(self) -> int | str:  # type: ignore[override]
        """What a loader of the whole holds."""
        return self.whole.memory_to_load

    @property
    def percentiles(self) -> tuple[tuple[float, ...], str]:
        """Those of the whole."""
        return self.whole.percentiles

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
    def column_names(self) -> Sequence[str]:
        """Those of the whole."""
        return self.whole.column_names

    def _identified(self) -> str:
        return digest("some", self.whole.identity, digest_of(self.positions).hex()).hex()

    @property
    def blocks(self) -> Ints:
        """What of each block of the whole is left."""
        return np.unique(np.searchsorted(self.positions, self.whole.blocks))

    @property
    def trails(self) -> Ints:
        """What of each trail of the whole is left."""
        return np.unique(np.searchsorted(self.positions, self.whole.trails))

    def reader(self, memory: int | None = None, *, by_block: bool = False) -> Reader:
        """A reader of the whole, asked for these."""
        return _SelectedReader(self.whole.reader(memory, by_block=by_block), self.positions)

    def summaries(self) -> Statistics:
        """Statistics of the images that they are of: see `PatchStore.summaries`.

        Of each of these images all that the store has counted, also by patches that are not here.

        Raises
        ------
        ConfigError
            If the whole has none.
        """
        return summed([(self.whole, {*self.manifest["image_id"].unique().to_pylist()})])

    @property
    def applied(self) -> dict[str, Any]:
        """What arrays were normalised with when they were written."""
        return dict(getattr(self.whole, "applied", {}))

    def __reduce__(self) -> tuple[Any, ...]:
        # One bit a patch of the whole, without those before the first.
        first, last = (int(self.positions[k]) for k in (0, -1)) if len(self.positions) else (0, -1)
        flags = np.zeros(last + 1 - first, np.bool_)
        flags[self.positions - first] = True
        return _unpacked, (self.whole, first, len(flags), np.packbits(flags).tobytes())


def _unpacked(whole: Patches, first: int, n: int, bits: bytes) -> SelectedPatches:
    flags = np.unpackbits(np.frombuffer(bits, np.uint8), count=n)
    return SelectedPatches(whole, first + np.flatnonzero(flags))


@dataclass(frozen=True, eq=False)
class _SelectedReader:
    """Reads by the positions of a selection."""

    whole: Reader
    positions: Ints

    def read(self, positions: Ints, arrays: Sequence[str]) -> dict[str, Pixels]:
        return self.whole.read(self.positions[positions], arrays)
