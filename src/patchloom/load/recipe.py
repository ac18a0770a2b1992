"""Recipe: how the patches at some positions become a batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from patchloom.errors import ConfigError
from patchloom.load.reader import Ints, Readable, Reader
from patchloom.load.scales import check_as_sources
from patchloom.load.visit import Addressed, Visit
from patchloom.normalization import Normalization

__all__ = ["Batch", "Recipe", "key_of_array"]

Batch = dict[str, Any]
_KEYS = {"images": "image", "targets": "target"}


def key_of_array(array: str) -> str:
    """What an array is called in a batch: the role that its patches have.

    >>> [key_of_array(name) for name in ("images", "labels", "targets", "targets_edges")]
    ['image', 'labels', 'target', 'targets_edges']
    """
    return _KEYS.get(array, array)


@dataclass(frozen=True, eq=False)
class Recipe:
    """What batches are made of; the same in every process that makes some.

    It pickles without its reader, and a process that was forked makes one of its own.
    """

    patches: Readable
    arrays: tuple[str, ...]
    columns: Mapping[str, str | None] = field(default_factory=dict)
    """Of the manifest, besides, by their keys in a batch; None is the patch's place in it."""
    normalize: Normalization | None = None
    """What images are scaled by, each by the numbers of its own; to float32."""
    transform: Callable[[Batch], Any] | Addressed | None = None
    """What is called with each batch, or with each patch: see `Patches.loader`."""
    fields: tuple[str, ...] | None = None
    """Keys that make up a tuple, in this order, instead of the whole dict."""
    seed: int = 0
    memory: int | None = None
    """Bytes that the reader may hold."""
    by_block: bool = False
    _readers: dict[int, Reader] = field(default_factory=dict, init=False, repr=False)
    _columns: dict[str, npt.NDArray[Any]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        held = self.patches.arrays_held
        if unknown := [name for name in self.arrays if name not in held]:
            raise ConfigError(f"arrays= are some of those of the patches, {held}, got {unknown}")
        if not self.arrays:
            raise ConfigError(f"arrays= is at least one of {held}, got none")
        if self.normalize is not None and "images" in self.arrays:
            check_as_sources([getattr(self.patches, "applied", {})])
        if taken := [name for name in self.columns if name in map(key_of_array, self.arrays)]:
            raise ConfigError(
                f"each key of a batch is one thing, got columns {taken}, which are arrays of it, "
                "too; call them otherwise: columns={'new name': 'column'}, or leave the arrays "
                "out: arrays="
            )
        known = self.patches.column_names if self.columns else ()
        for name in self.columns.values():
            if name is not None and name not in known:
                raise ConfigError(
                    f"columns= are 'position' and some of the manifest's, {[*known]}, got {name!r}"
                )

    @classmethod
    def of(
        cls,
        patches: Readable,
        *,
        arrays: Sequence[str] | str | None,
        normalize: Normalization | str | None,
        columns: Mapping[str, str] | Sequence[str] | str,
        fields: Sequence[str] | None,
        **rest: Any,
    ) -> Recipe:
        """From what a user writes: all arrays by default, and a normalisation by its name."""
        held = patches.arrays_held
        wanted = held if arrays is None else (arrays,) if isinstance(arrays, str) else (*arrays,)
        if isinstance(normalize, str):
            normalize = patches.normalization(normalize)
        return cls(
            patches,
            wanted,
            columns=_keyed(patches, (columns,) if isinstance(columns, str) else columns),
            normalize=normalize,
            fields=None if fields is None else tuple(fields),
            **rest,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}, "_columns": {}}

    @property
    def reader(self) -> Reader:
        """Of this process."""
        # One that a fork left behind has locks and threads of a process that is not here.
        mine = os.getpid()
        if mine not in self._readers:
            self._readers[mine] = self.patches.reader(self.memory, by_block=self.by_block)
        return self._readers[mine]

    def make(self, positions: Ints, epoch: int, visits: Ints) -> Any:
        """One batch.

        Parameters
        ----------
        positions
            int64[n] in the manifest.
        epoch
            Which this is of, for what is drawn.
        visits
            int64[n] numbers of these visits in the epoch.

        Returns
        -------
        dict or tuple
            Of arrays [n, channels, (z,) y, x] and columns [n], or what the transformation makes.
        """
        return self._finished(self.raw(positions), Visit(self.seed, epoch, positions, visits))

    def make_each(self, positions: Ints, epoch: int, visits: Ints) -> list[Any]:
        """The same patches one by one, read together: of arrays [channels, (z,) y, x]."""
        batch = self.raw(positions)
        found = []
        for k in range(len(positions)):
            # Copies: whoever keeps one patch does not keep the others.
            one = {key: value[k : k + 1].copy() for key, value in batch.items()}
            visit = Visit(self.seed, epoch, positions[k : k + 1], visits[k : k + 1])
            found.append(self._finished(one, visit, single=True))
        return found

    def _finished(self, batch: Batch, visit: Visit, single: bool = False) -> Any:
        transform = self.transform
        made: Any = batch
        if isinstance(transform, Addressed):
            made = transform.visited(batch, visit)
        if single:
            made = _first(made)
        if transform is not None and not isinstance(transform, Addressed):
            made = transform(made)
        if self.fields is None:
            return made
        if missing := [name for name in self.fields if name not in made]:
            raise ConfigError(f"fields= are some of the keys {[*made]}, got {missing}")
        return tuple(made[name] for name in self.fields)

    def raw(self, positions: Ints) -> Batch:
        """Pixels and columns of patches, scaled if that is asked for."""
        found = self.reader.read(positions, self.arrays)
        batch: Batch = {key_of_array(name): found[name] for name in self.arrays}
        if self.normalize is not None and "image" in batch:
            batch["image"] = self.normalize.apply(batch["image"], self._ids(positions))
        for key, name in self.columns.items():
            batch[key] = positions if name is None else self._column(name)[positions]
        return batch

    def _ids(self, positions: Ints) -> npt.NDArray[Any] | None:
        assert self.normalize is not None
        if self.normalize.per in ("channel", "all"):
            return None
        return self._column("image_id")[positions]

    def _column(self, name: str) -> npt.NDArray[Any]:
        if name not in self._columns:
            self._columns[name] = self.patches.manifest[name].to_numpy(zero_copy_only=False)
        return self._columns[name]


def _keyed(patches: Readable, columns: Mapping[str, str] | Sequence[str]) -> dict[str, str | None]:
    """Columns by their keys in a batch; None is the place of a patch."""
    named = columns if isinstance(columns, Mapping) else {name: name for name in columns}
    found: dict[str, str | None] = {**named}
    if "position" in found.values() and "position" not in patches.column_names:
        return {key: None if name == "position" else name for key, name in found.items()}
    if found.get("position") == "position":
        raise ConfigError(
            "of a batch 'position' is the place of a patch in the manifest, which has a column of "
            "that name, too; take that by another: columns={'new name': 'position'}"
        )
    return found


def _first(made: Any) -> Any:
    """The first of n, in what is made of arrays [n, ...]."""
    if isinstance(made, Mapping):
        return {key: value[0] for key, value in made.items()}
    if isinstance(made, tuple):
        return getattr(made, "_make", tuple)(_first(value) for value in made)
    return made[0]
