"""Standing: what a listing says of the shards of a store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchloom.location import Location
from patchloom.store.manifest import read_sizes, sizes_bytes
from patchloom.store.schema import OBJECTS, gap_name, manifest_name, shard_objects

__all__ = ["Standing", "record_sizes"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Standing:
    """Which shards of a store are there."""

    done: set[int]
    """Committed whole, with objects of the sizes that were recorded."""
    suspect: frozenset[int]
    """Not so, although a part of the manifest stands for them: with gaps, or damaged."""

    @classmethod
    def of(
        cls,
        target: Location,
        found: Mapping[str, int],
        arrays: Mapping[str, int],
        n_shards: int,
        *,
        sized: bool = True,
    ) -> Standing:
        """From one listing, and one object with sizes if it is there.

        Parameters
        ----------
        target, found
            The store and its listing.
        arrays
            Its arrays, and the dimensions of a patch of each.
        n_shards
            Of the plan.
        sized
            Whether to compare with the sizes that an earlier run recorded.
        """
        recorded = read_sizes(target.read(OBJECTS)) if sized and OBJECTS in found else {}
        done, suspect = set(), set()
        for shard in range(n_shards):
            if gap_name(shard) not in found and all(
                found.get(name, 0) > 0 and found[name] == _at(recorded, kind, shard, found[name])
                for kind, name in shard_objects(arrays, shard).items()
            ):
                done.add(shard)
            elif manifest_name(shard) in found or gap_name(shard) in found:
                suspect.add(shard)
        return cls(done, frozenset(suspect))


def _at(recorded: Mapping[str, Ints], kind: str, shard: int, unknown: int) -> int:
    """The recorded size of one object of a shard."""
    sizes = recorded.get(kind)
    known = -1 if sizes is None or shard >= len(sizes) else int(sizes[shard])
    return unknown if known < 0 else known


def record_sizes(
    target: Location,
    found: Mapping[str, int],
    arrays: Mapping[str, int],
    n_shards: int,
    done: Iterable[int],
) -> None:
    """Write down the sizes of the objects of finished shards, so that a listing tells damage."""
    sizes = {kind: np.full(n_shards, -1, np.int64) for kind in shard_objects(arrays, 0)}
    for shard in done:
        for kind, name in shard_objects(arrays, shard).items():
            sizes[kind][shard] = found[name]
    target.write(OBJECTS, sizes_bytes(sizes))
