"""Splits: which patches are for training and which for what else, fixed by stable ids."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError, PatchloomError, PlanError
from patchloom.image import Image
from patchloom.patching.extents import per_axis
from patchloom.planning.split_blocks import Blocks
from patchloom.planning.split_config import SplitConfig
from patchloom.planning.worlds import column_of, frames_of, overlapping
from patchloom.randomness import key_of

__all__ = ["Splits"]

Ints = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int8]
_WORDS = 2**64


@dataclass(frozen=True, eq=False)
class Splits:
    """The split of every patch of some images: a function of their ids, never of their order.

    A group (an image, or the images with equal values in some columns) has a 64-bit word that
    is fixed by the seed and its name, and lies in the split whose part of [0, 2**64) holds it:
    other images never move it. `stratify` and `keep` deal groups out instead, so that shares
    are met within rounding; then only what `keep` names is sure to stay when images are added.
    """

    names: tuple[str, ...]
    """The splits."""
    of_image: Positions
    """Position in `names` of each image's split: int8[n_images]; all 0 for blocks."""
    groups: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Split of each group, by its name; empty for blocks."""
    blocks: Blocks | None = field(default=None, repr=False)

    @classmethod
    def of(cls, config: SplitConfig, images: Sequence[Image], seed: int) -> Splits:
        """Decide.

        Parameters
        ----------
        config
            What was asked for.
        images
            All images of the plan; their pixels play no part.
        seed
            The plan's, where the configuration has none.

        Raises
        ------
        ConfigError
            If a column is unknown, or numbers do not fit the axes.
        PlanError
            If a column has no value for some image, a group lies in two strata, an image of a
            world has no physical coordinates, or two that overlap are in different splits.
        """
        seed = seed if config.seed is None else config.seed
        parts, shares = _parts(config)
        split = np.array([config.names.index(name) for name in parts], np.int8)
        if config.is_blocks:
            blocks = _blocks(config, images, seed, shares, split)
            return cls(config.names, np.zeros(len(images), np.int8), blocks=blocks)
        names = _groups(config, images)
        words = {name: key_of("split", seed, json.dumps(config.columns), name) for name in names}
        if config.stratify is None and not config.keep:
            upto = _upto(shares)
            chosen = {name: _part_of(word, upto) for name, word in words.items()}
        else:
            kept = {g: parts.index(s) for g, s in config.keep.items() if g in words}
            chosen = _dealt(_strata(config, images, names), words, shares, kept)
        of_image = split[[chosen[name] for name in names]]
        _check_apart(config, images, of_image)
        groups = {name: parts[part] for name, part in sorted(chosen.items())}
        return cls(config.names, of_image, groups)

    def of_boxes(self, image: int, sample: Ints, low: Ints, high: Ints) -> Positions:
        """The split of some patches of one image.

        Parameters
        ----------
        image
            Which image.
        sample
            Flat sample of each patch, int64[n]; all samples of an image are split alike.
        low, high
            Half-open boxes of all source pixels that each patch needs, context and mirrored
            padding included: int64[n, ndim].

        Returns
        -------
        int8[n]
            Position in `names`; -1 for patches that lie in the guard or across two splits.
        """
        if self.blocks is None:
            return np.full(len(low), self.of_image[image], np.int8)
        return self.blocks.of_boxes(image, low, high)

    def assignments(self) -> dict[str, str]:
        """Split of each group: what ``keep=`` of a later plan takes. Empty for blocks.

        A group is called by its image's id or its value in the column; numbers, flags, several
        columns, and text that reads like these, by their JSON.
        """
        return dict(self.groups)

    def check(self, images: Sequence[Image], sizes: Sequence[Sequence[int]]) -> None:
        """Refuse blocks that can hold no patch.

        Parameters
        ----------
        images
            Those of the plan.
        sizes
            Extent of what a patch of each shows on each spatial axis, in pixels.

        Raises
        ------
        ConfigError
            If a block is smaller than a patch and its guard.
        """
        if self.blocks is None:
            return
        for index, (image, size) in enumerate(zip(images, sizes, strict=True)):
            if self.blocks.too_small(index, size):
                frame, extent = self.blocks.frames[index], self.blocks.size[index]
                need = [
                    float(n * step + 2 * reach)
                    for n, step, reach in zip(size, frame.step, frame.reach, strict=True)
                ]
                raise ConfigError(
                    f"a block holds a patch and its guard ({need} for {list(size)} pixels of "
                    f"{image.id!r}), got block_size {[float(v) for v in extent]}; take larger "
                    "blocks, several times the patch, or a smaller guard"
                )


def _parts(config: SplitConfig) -> tuple[list[str], list[Fraction]]:
    """Name and share of each part of chance: a split, or a fold."""
    shares = config.exact_shares
    if config.folds is not None:
        return ["val" if k == config.fold else "train" for k in range(config.folds)], shares
    # By name: the order in which shares are written plays no part.
    named = sorted(zip(config.names, shares, strict=True))
    return [name for name, _ in named], [share for _, share in named]


def _upto(shares: Sequence[Fraction]) -> list[int]:
    """Below which 64-bit words each part but the last lies."""
    total, found = Fraction(0), []
    for share in shares[:-1]:
        total += share
        found.append(min(math.ceil(total * _WORDS), _WORDS - 1))
    return found


def _part_of(word: int, upto: Sequence[int]) -> int:
    return sum(word >= bound for bound in upto)


# -- groups -----------------------------------------------------------------------------


def _groups(config: SplitConfig, images: Sequence[Image]) -> list[str]:
    """The name of each image's group."""
    columns = [column_of(images, column, "by") for column in config.columns]
    if not columns:
        return [image.id for image in images]
    if len(columns) == 1:
        return columns[0]
    return [json.dumps(values) for values in zip(*columns, strict=True)]


def _strata(
    config: SplitConfig, images: Sequence[Image], names: Sequence[str]
) -> dict[str, list[str]]:
    """The groups of each stratum; one holds all where nothing is stratified."""
    if config.stratify is None:
        return {"": list(dict.fromkeys(names))}
    found: dict[str, str] = {}
    for name, value in zip(names, column_of(images, config.stratify, "stratify"), strict=True):
        if found.setdefault(name, value) != value:
            raise PlanError(
                f"all images of a group have one value in stratify={config.stratify!r}, got "
                f"{found[name]!r} and {value!r} in the group {name!r}; stratify by another column, "
                "or split by the two columns together"
            )
    strata: dict[str, list[str]] = {}
    for name, value in found.items():
        strata.setdefault(value, []).append(name)
    return strata


def _dealt(
    strata: Mapping[str, Sequence[str]],
    words: Mapping[str, int],
    shares: Sequence[Fraction],
    kept: Mapping[str, int],
) -> dict[str, int]:
    """The part of each group such that shares are met in each stratum.

    Each part gets its share of a stratum rounded down or up; which one, is chosen such that
    all strata together come close to the shares as well. Kept groups may tip the scales.
    """
    found, parts = dict(kept), range(len(shares))
    owed = [Fraction(0)] * len(shares)
    for _, members in sorted(strata.items()):
        due = [share * len(members) for share in shares]
        given = [0] * len(shares)
        for name in members:
            if name in kept:
                given[kept[name]] += 1
        owed = [o + d - g for o, d, g in zip(owed, due, given, strict=True)]
        for name in sorted((n for n in members if n not in kept), key=lambda n: (words[n], n)):
            whole = [k for k in parts if given[k] < math.floor(due[k])]
            open_ = whole or [k for k in parts if given[k] < due[k]]
            missing = [d - g for d, g in zip(due, given, strict=True)] if whole else owed
            part = max(open_, key=missing.__getitem__)
            given[part] += 1
            owed[part] -= 1
            found[name] = part
    return found


def _check_apart(config: SplitConfig, images: Sequence[Image], split: Positions) -> None:
    """Refuse images of one world that share pixels (or lie in each other's guard) across splits."""
    if config.world in (None, False):
        return
    frames = frames_of(images, config.world, _guards(config, images))
    pair = overlapping(images, frames, split)
    if pair is not None:
        one, two = (images[k].id for k in pair)
        first, second = (config.names[split[k]] for k in pair)
        raise PlanError(
            f"images that overlap in the world (or lie closer than the guard) are in one split, "
            f"but {one!r} is {first} and {two!r} is {second}; split by a column that they share, "
            "or inside images: by='blocks'"
        )


# -- blocks -----------------------------------------------------------------------------


def _blocks(
    config: SplitConfig,
    images: Sequence[Image],
    seed: int,
    shares: Sequence[Fraction],
    split: Positions,
) -> Blocks:
    frames = frames_of(images, config.world, _guards(config, images))
    keys = {frame.name: key_of("split blocks", seed, frame.name) for frame in frames}
    axes = [image.axes.spatial for image in images]
    size = {spatial: _extents(config.block_size, spatial) for spatial in set(axes)}
    return Blocks(
        tuple(size[spatial] for spatial in axes),
        tuple(frames),
        tuple(keys[frame.name] for frame in frames),
        np.array(_upto(shares), np.uint64),
        split,
    )


def _guards(config: SplitConfig, images: Sequence[Image]) -> list[list[int]]:
    return [per_axis(config.guard, image.axes.spatial, name="guard") for image in images]


def _extents(value: object, spatial: str) -> tuple[Fraction, ...]:
    """Extent of a block on each axis, exactly as it was written."""
    numbers: list[float]
    where: int | list[int] | dict[str, int] = 0
    if isinstance(value, Mapping):
        numbers, where = list(value.values()), {axis: k for k, axis in enumerate(value)}
    elif isinstance(value, Sequence):
        numbers, where = list(value), list(range(len(value)))
    else:
        assert isinstance(value, float)
        numbers = [value]
    try:
        order = per_axis(where, spatial, name="block_size")
    except PatchloomError:
        raise ConfigError(
            f"block_size= has one number for each of the axes {spatial!r}, got {value}; give one "
            "number for all, a list in their order, or one for each axis by name"
        ) from None
    return tuple(Fraction(str(numbers[k])) for k in order)
