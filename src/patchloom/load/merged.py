"""MergedPatches: patches of several stores as one."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from patchloom.errors import ConfigError
from patchloom.load.budget import n_bytes
from patchloom.load.derived import DerivedPatches
from patchloom.load.patches import Patches
from patchloom.load.reader import Ints, Pixels, Reader
from patchloom.load.scales import summed
from patchloom.randomness import digest
from patchloom.summaries.table import Statistics

__all__ = ["MergedPatches", "merge_patches"]


def merge_patches(
    parts: Sequence[Patches] | Mapping[str, Patches],
    *,
    arrays: Sequence[str] | None = None,
    column: str = "store",
) -> MergedPatches:
    """The patches of several stores (or of other patches) as one, one after another.

    Parameters
    ----------
    parts
        Stores that are opened, or parts of them; by name, or in a list: then they are called
        ``"0"``, ``"1"`` and so on.
    arrays
        What is held; None: all of them, which must then be the same in each.
    column
        Of the manifest, which says the name of each patch's store.

    Returns
    -------
    MergedPatches

    Raises
    ------
    ConfigError
        If parts hold other arrays, patches of another shape or dtype, other channels or columns of
        another type, or `column` is one of theirs.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> stores = {}
    >>> for name, value in (("healthy", 3), ("sick", 5)):
    ...     images = patchloom.open_images(np.full((4, 4), value, "uint8"), ids=[name])
    ...     plan = patchloom.plan(images, {"name": "sequential", "patch_size": [2, 4]})
    ...     _ = patchloom.materialize(plan, f"memory://{name}.zarr", progress=False)
    ...     stores[name] = patchloom.open_patches(f"memory://{name}.zarr")
    >>> both = patchloom.merge_patches(stores)
    >>> both.n_patches, both.manifest["store"].to_pylist()
    (4, ['healthy', 'healthy', 'sick', 'sick'])
    >>> both.summaries().dataset((50,), by=None)["mean"].item()
    4.0
    """
    named = dict(parts) if isinstance(parts, Mapping) else {str(k): v for k, v in enumerate(parts)}
    if not named:
        raise ConfigError("patches are merged from at least one store, got none")
    wrong = [type(v).__name__ for v in named.values() if not isinstance(v, Patches)]
    if wrong or not all(isinstance(name, str) for name in named):
        raise ConfigError(
            f"what is merged are opened patches, by names that are text, got {wrong or [*named]}; "
            "open stores: patchloom.open_patches(url)"
        )
    held = _held(named, arrays)
    _check_alike(named, held)
    found = MergedPatches(tuple(named), tuple(named.values()), held, column)
    _check_columns(named, column)
    return found


@dataclass(frozen=True, eq=False)
class MergedPatches(DerivedPatches):
    """Patches of several stores: positions go on from one to the next.

    The manifest has the columns of all of them, missing where a store lacks one, and one more that
    names the store. ``row`` is the row in its own store.
    """

    names: tuple[str, ...]
    """Of its parts."""
    parts: tuple[Patches, ...] = field(repr=False)
    held: tuple[str, ...]
    column: str = "store"
    """Of the manifest, with the names."""

    @property
    def arrays_held(self) -> tuple[str, ...]:
        """What was asked for when they were merged."""
        return self.held

    @property
    def window(self) -> int:  # type: ignore[override]
        """The most that one of the parts mixes."""
        return max(part.window for part in self.parts)

    @property
    def memory_to_load(self) -> int:  # type: ignore[override]
        """The most that a loader of one of the parts holds; they share it as they share windows."""
        return max(n_bytes(part.memory_to_load) for part in self.parts)

    @property
    def percentiles(self) -> tuple[tuple[float, ...], str]:
        """Those of the parts, if they have the same."""
        first, *others = {part.percentiles for part in self.parts}
        return super().percentiles if others else first

    @property
    def channels(self) -> tuple[str, ...] | None:
        """Those of the parts."""
        return next((p.channels for p in self.parts if p.channels is not None), None)

    def extents(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Those of the parts."""
        found = next((e for e in (part.extents() for part in self.parts) if e), {})
        return {name: found[name] for name in self.held if name in found}

    @cached_property
    def bounds(self) -> Ints:
        """Where each part begins, and where the last one ends, in positions: int64[k + 1]."""
        return np.cumsum([0, *(part.n_patches for part in self.parts)])

    @cached_property
    def manifest(self) -> pa.Table:
        """The rows of all, with the name of their store."""
        return _joined(self.names, [part.manifest for part in self.parts], self.column)

    @property
    def n_patches(self) -> int:
        """Of all parts."""
        return int(self.bounds[-1])

    @property
    def column_names(self) -> Sequence[str]:
        """Those of the parts, and the one that names them."""
        every = (name for part in self.parts for name in part.column_names)
        return [*dict.fromkeys(every), self.column]

    def _identified(self) -> str:
        return digest("several", *(part.identity for part in self.parts)).hex()

    @cached_property
    def blocks(self) -> Ints:
        """Those of the parts."""
        return self._after_another([part.blocks for part in self.parts])

    @cached_property
    def trails(self) -> Ints:
        """Those of the parts."""
        return self._after_another([part.trails for part in self.parts])

    def _after_another(self, bounds: Sequence[Ints]) -> Ints:
        """Bounds in positions of the parts as bounds in those of all."""
        pairs = zip(bounds, self.bounds[:-1], strict=True)
        ends = [some[1:] + first for some, first in pairs]
        return np.concatenate([[0], *ends]).astype(np.int64)

    def reader(self, memory: int | None = None, *, by_block: bool = False) -> Reader:
        """One reader a part, made when it is first read from; they share the memory."""
        each = None if memory is None else max(1, memory // len(self.parts))
        return _MergedReader(self, each, by_block)

    def summaries(self) -> Statistics:
        """Statistics of the images of all parts as one value: see `PatchStore.summaries`.

        Of a part of a store, those of the images that it has patches of. Parts of one opened store
        count as that store, once.

        Raises
        ------
        ConfigError
            If a part has none, or they do not add: other channels, or other pixels.
        IdentityError
            If two parts call different images by one id.
        """
        return summed(self._wholes())

    def _wholes(self) -> list[tuple[Any, set[str] | None]]:
        """Stores that are parts, as a whole or by some of their images."""
        found: dict[int, tuple[Any, set[str] | None]] = {}
        for part in self.parts:
            whole = getattr(part, "whole", part)
            ids = None if whole is part else {*part.manifest["image_id"].unique().to_pylist()}
            _, known = found.get(id(whole), (whole, set()))
            both = None if ids is None or known is None else known | ids
            found[id(whole)] = whole, both
        return [*found.values()]

    @property
    def applied(self) -> dict[str, Any]:
        """What arrays of some part were normalised with when they were written."""
        return {k: v for part in self.parts for k, v in getattr(part, "applied", {}).items()}

    def __getstate__(self) -> dict[str, Any]:
        derived = ("manifest", "blocks", "trails")
        return {k: v for k, v in self.__dict__.items() if k not in derived}


class _MergedReader:
    """Readers of the parts, by the positions of all."""

    def __init__(self, merged: MergedPatches, memory: int | None, by_block: bool) -> None:
        self._merged, self._memory, self._by_block = merged, memory, by_block
        self._readers: dict[int, Reader] = {}
        self._lock = threading.Lock()

    def _reader(self, part: int) -> Reader:
        with self._lock:
            if part not in self._readers:
                self._readers[part] = self._merged.parts[part].reader(
                    self._memory, by_block=self._by_block
                )
            return self._readers[part]

    def read(self, positions: Ints, arrays: Sequence[str]) -> dict[str, Pixels]:
        bounds = self._merged.bounds
        part = np.searchsorted(bounds, positions, side="right") - 1
        present = np.unique(part).tolist()
        if len(present) < 2:
            k = present[0] if present else 0
            return self._reader(k).read(positions - bounds[k], arrays)
        found: dict[str, Pixels] = {}
        for k in present:
            mine = part == k
            for name, pixels in self._reader(k).read(positions[mine] - bounds[k], arrays).items():
                into = found.setdefault(
                    name, np.empty((len(positions), *pixels.shape[1:]), pixels.dtype)
                )
                into[mine] = pixels
        return found


def _held(named: Mapping[str, Patches], arrays: Sequence[str] | None) -> tuple[str, ...]:
    first, *others = named
    if arrays is None:
        for name in others:
            if {*named[name].arrays_held} != {*named[first].arrays_held}:
                raise ConfigError(
                    f"patches that are merged hold the same arrays, got "
                    f"{list(named[first].arrays_held)} in {first!r} and "
                    f"{list(named[name].arrays_held)} in {name!r}; name those to hold: arrays=[...]"
                )
        return named[first].arrays_held
    for name, part in named.items():
        lacking = sorted({*arrays} - {*part.arrays_held})
        if lacking:
            raise ConfigError(
                f"arrays= are held by all that is merged, got {lacking}, which {name!r} has not: "
                f"it has {list(part.arrays_held)}"
            )
    return tuple(arrays)


def _check_alike(named: Mapping[str, Patches], held: Sequence[str]) -> None:
    """Refuse patches that do not stand in one batch."""
    told = {name: part.extents() for name, part in named.items()}
    full = [name for name in named if told[name]]
    for one, other in pairwise(full):
        for array in held:
            mine, theirs = told[one][array], told[other][array]
            if mine != theirs:
                raise ConfigError(
                    f"patches that are merged have one shape and dtype, got {mine[0]} {mine[1]} in "
                    f"{one!r} and {theirs[0]} {theirs[1]} in {other!r} for {array!r}; make one "
                    "of the stores anew, or leave the array out: arrays=[...]"
                )
    channels = {name: part.channels for name, part in named.items() if part.channels is not None}
    for one, other in pairwise(channels):
        if channels[one] != channels[other]:
            raise ConfigError(
                f"patches that are merged have the same channels, got {list(channels[one] or ())} "
                f"in {one!r} and {list(channels[other] or ())} in {other!r}; open images with "
                "channels="
            )


def _check_columns(named: Mapping[str, Patches], column: str) -> None:
    tables = {name: part.manifest for name, part in named.items()}
    for name, table in tables.items():
        if column in table.column_names:
            raise ConfigError(
                f"the column that names stores is a new one, got {column!r}, which {name!r} has "
                "already; give another: column=..."
            )
    known: dict[str, tuple[str, pa.DataType]] = {}
    for name, table in tables.items():
        for mine in table.schema:
            other, kind = known.setdefault(mine.name, (name, mine.type))
            if not _joins(kind, mine.type):
                raise ConfigError(
                    f"columns of one name have one kind of values, got {kind} in {other!r} and "
                    f"{mine.type} in {name!r} for {mine.name!r}; rename one of them in the images' "
                    "metadata"
                )


def _joins(one: pa.DataType, other: pa.DataType) -> bool:
    try:
        pa.unify_schemas(
            [pa.schema([("a", one)]), pa.schema([("a", other)])], promote_options="permissive"
        )
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return False
    return True


def _joined(names: Sequence[str], tables: Sequence[pa.Table], column: str) -> pa.Table:
    told = [
        table.append_column(column, pa.array([name] * table.num_rows, pa.string()))
        for name, table in zip(names, tables, strict=True)
    ]
    return pa.concat_tables(told, promote_options="permissive")
