"""Splitting: patches for training and for validation, told apart by whole samples."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchloom.errors import ConfigError
from patchloom.load.expressions import known_column
from patchloom.load.patches import Patches
from patchloom.load.reader import Ints
from patchloom.randomness import key_of

__all__ = ["PatchSplits", "split_patches"]

_FRACTIONS = {"train": 0.8, "val": 0.2}


@dataclass(frozen=True, eq=False)
class PatchSplits(Mapping[str, Patches]):
    """Patches of each split, by its name; a group of patches lies in one."""

    parts: Mapping[str, Patches] = field(repr=False)
    by: tuple[str, ...]
    """The columns whose values make a group."""
    groups: Mapping[str, str] = field(repr=False)
    """The split of each group, by its value; of several columns by their JSON."""
    counts: Mapping[str, tuple[int, int]]
    """Of each split: groups and patches."""

    def __getitem__(self, split: str) -> Patches:
        if split not in self.parts:
            raise ConfigError(f"a split is one of {[*self.parts]}, got {split!r}")
        return self.parts[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __repr__(self) -> str:
        told = ", ".join(
            f"{name} {patches:,} patches of {groups:,} group{'s' * (groups != 1)}"
            for name, (groups, patches) in self.counts.items()
        )
        return f"<PatchSplits by {', '.join(self.by)}: {told}>"


def split_patches(
    patches: Patches,
    by: str | Sequence[str] = "image_id",
    *,
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
) -> PatchSplits:
    """Patches of each split: those of the plan, or of whole samples that are dealt out here.

    Groups of patches are dealt out whole: as many to each split as its fraction of them, rounded
    such that all are dealt (largest remainders first), which ones being a function of the seed and
    their values. Neither the order of patches nor their number plays a part. What must not move
    when samples are added is split in the plan: ``patchloom.plan(split=...)``.

    Parameters
    ----------
    patches
        To split.
    by
        The column, or columns, that patches of one group are equal in: ``"image_id"``, a
        ``"donor"``. ``"split"``: the splits of the plan, as the manifest names them; then there
        are no fractions.
    fractions
        Of the groups, by the names of the splits; only their proportions count. By default 0.8
        ``train`` and 0.2 ``val``.
    seed
        Fixes what is drawn.

    Returns
    -------
    PatchSplits
        A mapping from names to patches, with ``counts`` and ``groups``.

    Raises
    ------
    ConfigError
        If a column is unknown or has no value in some row, a fraction is not above 0, or there are
        fewer groups than splits.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> images = patchloom.open_images([np.zeros((4, 4), "uint8")] * 5, ids=list("abcde"))
    >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [2, 2]})
    >>> _ = patchloom.materialize(plan, "memory://five.zarr", progress=False)
    >>> parts = split_patches(patchloom.open_patches("memory://five.zarr"), "image_id")
    >>> parts
    <PatchSplits by image_id: train 16 patches of 4 groups, val 4 patches of 1 group>
    >>> sorted({*parts["train"].manifest["image_id"].to_pylist()} | {*parts.groups}) == [*"abcde"]
    True
    """
    columns = (by,) if isinstance(by, str) else tuple(by)
    names, group = _groups(patches.manifest, columns)
    if columns == ("split",):
        if fractions is not None:
            raise ConfigError(
                "by='split' takes the splits of the plan, got fractions= too; leave them out, or "
                "split by a column of samples"
            )
        chosen = {name: name for name in names}
        splits = sorted(names, key=lambda name: (name != "train", name))
    else:
        shares = _shares(_FRACTIONS if fractions is None else fractions)
        splits = [*shares]
        chosen = _dealt(names, columns, shares, seed)
    parts, counts = {}, {}
    for split in splits:
        mine = np.array([chosen[name] == split for name in names], np.bool_)
        parts[split] = patches.take(mine[group] if len(names) else np.zeros(0, np.bool_))
        counts[split] = int(mine.sum()), parts[split].n_patches
    return PatchSplits(parts, columns, chosen, counts)


def _groups(manifest: pa.Table, columns: Sequence[str]) -> tuple[list[str], Ints]:
    """Names of the groups, and the group of each row."""
    if not columns:
        raise ConfigError("by= names at least one column, got none")
    group, values = np.zeros(manifest.num_rows, np.int64), [()]
    for name in columns:
        column = known_column(manifest, name).combine_chunks()
        if column.null_count:
            raise ConfigError(
                f"each patch has a value in the column of its group, got none in {name!r} for "
                f"{column.null_count} of {len(column)}; leave them out: "
                f"patches.where('{name} is not None')"
            )
        coded = pc.dictionary_encode(column)
        if isinstance(coded, pa.ChunkedArray):
            coded = coded.combine_chunks()
        found = coded.dictionary.to_pylist()
        joint = group * len(found) + coded.indices.to_numpy().astype(np.int64)
        kept, group = np.unique(joint, return_inverse=True)
        values = [(*values[k // len(found)], found[k % len(found)]) for k in kept.tolist()]
    told = [v[0] if len(v) == 1 and isinstance(v[0], str) else json.dumps(v) for v in values]
    return told, group


def _shares(fractions: Mapping[str, float]) -> dict[str, Fraction]:
    try:
        found = {str(name): Fraction(str(share)) for name, share in fractions.items()}
    except (ValueError, TypeError, AttributeError):
        found = {}
    if not found or any(share <= 0 for share in found.values()):
        raise ConfigError(
            f"fractions= gives each split a number above 0, got {fractions}; such as "
            "{'train': 0.7, 'val': 0.2, 'test': 0.1}"
        )
    total = sum(found.values())
    return {name: share / total for name, share in found.items()}


def _dealt(
    names: Sequence[str], columns: Sequence[str], shares: Mapping[str, Fraction], seed: int
) -> dict[str, str]:
    """The split of each group."""
    if len(names) < len(shares):
        raise ConfigError(
            f"each split gets a group at least, got {len(names)} groups by {list(columns)} for "
            f"{[*shares]}; split by a finer column, or inside images: "
            "patchloom.plan(split={'by': 'blocks', ...})"
        )
    due = {split: share * len(names) for split, share in shares.items()}
    sizes = {split: max(1, math.floor(share)) for split, share in due.items()}
    while (rest := len(names) - sum(sizes.values())) != 0:
        # What is most below its share gets one more; what is most above it gives one.
        lack = {split: due[split] - sizes[split] for split in sizes}
        some = [s for s in sizes if rest > 0 or sizes[s] > 1]
        split = max(some, key=lambda s: lack[s] if rest > 0 else -lack[s])
        sizes[split] += 1 if rest > 0 else -1
    drawn = sorted(names, key=lambda name: (key_of("load split", seed, *columns, name), name))
    found: dict[str, str] = {}
    for split in sizes:
        found |= dict.fromkeys(drawn[len(found) : len(found) + sizes[split]], split)
    return {name: found[name] for name in names}
