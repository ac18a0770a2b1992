"""StratifiedPatching: about one patch in each cell of a grid, every pixel taken equally often."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from patchloom.errors import PatchSizeError, PlanError
from patchloom.patching.fixed import FixedPatching
from patchloom.patching.protocol import Edge, GridPatching, Ints, PatchSpecs, turns
from patchloom.randomness import key_of, philox

__all__ = ["StratifiedPatching", "create_val_split"]

Floats = npt.NDArray[np.float64]
_UNIT = 2.0**-32
_FIXED = 2.0**36
"""Weights are summed as integers: sums then do not depend on what is summed together."""
_NOTHING = 1e-9


class _Axis(NamedTuple):
    """One axis of an image, cut into pieces at the borders of strata and of chunks.

    A first pixel weighs ``1 / size``; the first and the last one of the axis weigh more by
    a border extra, which makes up for the patches that would stick out.
    """

    begin: Ints
    stop: Ints
    plain: Floats
    """Weight of each piece without border extras: float64[n]."""
    extra: Floats
    left: Floats
    """The part of `extra` that is the first pixel's."""
    edge: npt.NDArray[np.float64]
    """Weight of the first pixel of a stratum, plain and extra: float64[2, n]; else 0."""
    rest: npt.NDArray[np.float64]
    """Weight of the other first pixels, plain and extra: float64[2, n]."""
    of_stratum: Ints
    """First piece of each stratum, and their number at the end."""
    of_chunk: Ints
    """First piece of each chunk, and their number at the end."""

    @property
    def n_strata(self) -> int:
        return len(self.of_stratum) - 1

    def strata(self) -> tuple[Floats, Floats]:
        """Plain and extra weight of each stratum."""
        return _sums(self.plain, self.of_stratum), _sums(self.extra, self.of_stratum)


@dataclass(frozen=True, eq=False)
class _Weights:
    """What one sample weighs: how many patches, and where their sum lies along the chunks."""

    n: int
    extra: float
    """Factor of the border extras that makes the weights add up to n."""
    upto: Floats
    """Weight of all chunks before each, and n at the end: float64[n_chunks + 1]."""
    special: Ints
    """Strata that are not plain, ascending."""
    blocked: Ints
    """Of these: bit d says that the neighbour at offset d is excluded."""
    factor: Floats
    """Of these: by how much what is allowed of them is weighted."""


class StratifiedPatching(GridPatching):
    """About one patch in each cell of a grid, so that all pixels are taken equally often.

    The image is a grid of cells as large as a patch, and a patch that begins in a cell ends at
    most one cell further. Each cell offers its first pixels with the same weight; the first
    pixels at the border of the image weigh more, as patches cannot stick out. In each epoch
    the cells are drawn systematically: a cell of weight w gives w patches, rounded up or down.
    Over many epochs each pixel farther than one patch from a border is taken once an epoch,
    and all pixels are on average, up to the rounding of the number of patches.

    `exclude_patches` and `set_region_probs` change the strategy; `create_val_split` does not.

    Parameters
    ----------
    data_shapes
        Shape of each image as ``SC(Z)YX``, in pixels.
    patch_size
        Extent on each spatial axis, in pixels.
    seed
        Fixes every position; None is 0.
    epoch
        Another epoch, other positions.
    edge, chunks, keys
        See `GridPatching`. Positions never stick out of an image, except that ``"pad"``
        admits an image smaller than a patch.

    Examples
    --------
    >>> patching = StratifiedPatching([(1, 1, 100, 100)], (25, 25), seed=7)
    >>> patching.n_patches
    16
    >>> patching.exclude_patches(0, 0, [(0, 0), (3, 1)])
    >>> len(patching.get_included_grid_coords()[0, 0])
    14
    """

    repeats: ClassVar[bool] = True

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        seed: int | None = None,
        *,
        epoch: int = 0,
        edge: Edge = "drop",
        chunks: Sequence[Sequence[int]] | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        super().__init__(data_shapes, patch_size, edge=edge, chunks=chunks, keys=keys)
        self.seed = 0 if seed is None else int(seed)
        self.epoch = epoch
        self._excluded: dict[tuple[int, int], frozenset[int]] = {}
        self._probs: dict[tuple[int, int], dict[int, float]] = {}
        self._forget()

    def _forget(self) -> None:
        """Drop what was derived: it belongs to an epoch and to what is excluded."""
        for name in ("_first", "_first_of_cell"):
            self.__dict__.pop(name, None)
        self._axes_of: dict[int, list[_Axis]] = {}
        self._weights_of: dict[tuple[int, int], _Weights] = {}
        self._counts_of: dict[int, Ints] = {}

    def __getstate__(self) -> dict[str, object]:
        derived = ("_first", "_first_of_cell", "_axes_of", "_weights_of", "_counts_of")
        return {k: v for k, v in self.__dict__.items() if k not in derived}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _copy(self) -> Self:
        other = copy(self)
        other._excluded, other._probs = dict(self._excluded), dict(self._probs)
        return other

    def with_epoch(self, epoch: int) -> Self:
        """The same strategy in another epoch."""
        other = self._copy()
        other.epoch = epoch
        return other

    # -- regions ------------------------------------------------------------------------

    def exclude_patches(
        self, data_idx: int, sample_idx: int, grid_coords: Sequence[tuple[int, ...]]
    ) -> None:
        """Never again take a pixel of some cells of the grid; changes the strategy.

        Parameters
        ----------
        data_idx, sample_idx
            Which image, and which sample of it.
        grid_coords
            Cells: cell g holds the pixels from ``g * patch_size`` to ``(g + 1) * patch_size``.

        Raises
        ------
        IndexError
            If the grid has no such cell.
        """
        flat = self._flat(data_idx, sample_idx, grid_coords)
        old = self._excluded.get((data_idx, sample_idx), frozenset())
        self._excluded[data_idx, sample_idx] = old | frozenset(flat.tolist())
        self._forget()

    def set_region_probs(
        self, data_idx: int, sample_idx: int, probs: Mapping[tuple[int, ...], float]
    ) -> None:
        """Weight some cells of the grid by probabilities; changes the strategy.

        Parameters
        ----------
        data_idx, sample_idx
            Which image, and which sample of it.
        probs
            For cells of the grid: by how much the expected number of patches that begin there
            is multiplied, from 0 to 1.

        Raises
        ------
        IndexError
            If the grid has no such cell.
        PatchSizeError
            If a probability is not in [0, 1].
        """
        flat = self._flat(data_idx, sample_idx, list(probs))
        values = [float(v) for v in probs.values()]
        if not all(0 <= v <= 1 for v in values):
            wrong = next(v for v in values if not 0 <= v <= 1)
            raise PatchSizeError(f"a probability is from 0 to 1, got {wrong}")
        old = self._probs.get((data_idx, sample_idx), {})
        self._probs[data_idx, sample_idx] = {**old, **dict(zip(flat.tolist(), values, strict=True))}
        self._forget()

    def get_all_grid_coords(self) -> dict[tuple[int, int], list[tuple[int, ...]]]:
        """All cells of the grid, by image and sample."""
        return {
            (image, sample): list(itertools.product(*(range(n) for n in self.grid_shape(image))))
            for image in range(len(self.grids))
            for sample in range(self.n_samples(image))
        }

    def get_included_grid_coords(self) -> dict[tuple[int, int], list[tuple[int, ...]]]:
        """The cells of the grid that are not excluded, by image and sample."""
        found = self.get_all_grid_coords()
        for where, out in self._excluded.items():
            found[where] = [c for k, c in enumerate(found[where]) if k not in out]
        return found

    def grid_shape(self, image: int) -> tuple[int, ...]:
        """Cells of the grid on each axis; none sticks out of the image."""
        shape = tuple(axis.n_strata for axis in self._axes(image))
        return shape if all(shape) else (0,) * len(shape)

    def _flat(self, image: int, sample: int, grid_coords: Sequence[tuple[int, ...]]) -> Ints:
        if not (0 <= image < len(self.grids) and 0 <= sample < self.n_samples(image)):
            raise IndexError(
                f"an image is in range({len(self.grids)}) and has a sample, got image {image}, "
                f"sample {sample}"
            )
        shape = self.grid_shape(image)
        coords = np.asarray([tuple(c) for c in grid_coords], np.int64).reshape(-1, len(shape))
        outside = ((coords < 0) | (coords >= np.asarray(shape))).any(-1)
        if outside.any():
            raise IndexError(
                f"a cell lies in the grid {shape} of image {image}, got "
                f"{tuple(coords[outside][0].tolist())}"
            )
        flat: Ints = np.asarray(np.ravel_multi_index(tuple(coords.T), shape), np.int64)
        return flat

    # -- weights ------------------------------------------------------------------------

    def _axes(self, image: int) -> list[_Axis]:
        found = self._axes_of.get(image)
        if found is None:
            grid = self.grids[image]
            found = [
                _axis(*row, pad=self.may_stick_out)
                for row in zip(grid.shape, self.patch_size, grid.chunks, strict=True)
            ]
            self._axes_of[image] = found
        return found

    def _weights(self, image: int, sample: int) -> _Weights:
        """What a sample weighs; samples of which nothing was said share one value."""
        said = (image, sample) in self._excluded or (image, sample) in self._probs
        where = (image, sample if said else -1)
        if where not in self._weights_of:
            self._weights_of[where] = self._weigh(*where)
        return self._weights_of[where]

    def _weigh(self, image: int, sample: int) -> _Weights:
        axes, shape = self._axes(image), self.grid_shape(image)
        special, blocked, share = self._special(image, sample, shape)
        index = np.stack(np.unravel_index(special, shape), -1) if len(special) else None
        strata = [axis.strata() for axis in axes]

        def parts(extra: float) -> Floats:
            """Weights of the special strata, before anything was said of them."""
            one = np.ones(len(special))
            for a, (plain, more) in enumerate(strata):
                if index is not None:
                    one *= (plain + extra * more)[index[:, a]]
            return one

        def total(extra: float) -> float:
            whole = math.prod(float((plain + extra * more).sum()) for plain, more in strata)
            return whole - float((parts(extra) * (1 - share)).sum())

        found = total(1.0)
        n = max(1, math.floor(found + 0.5)) if found > _NOTHING and all(shape) else 0
        extra = _solve(total, n) if n else 1.0
        factor = np.zeros(len(special))
        weights = _volume([_sums(a.plain + extra * a.extra, a.of_chunk) for a in axes])
        if index is not None:
            first = np.stack([a.of_stratum[index[:, k]] for k, a in enumerate(axes)], -1)
            last = np.stack([a.of_stratum[index[:, k] + 1] for k, a in enumerate(axes)], -1)
            owner, turn = turns(last - first)
            piece = first[owner] + turn
            before = _masses(axes, piece, extra).prod(-1)
            allowed = _patterns(axes, piece, np.full(len(piece), extra), blocked[owner]).sum(-1)
            room = np.bincount(owner, allowed, len(special))
            wanted = parts(extra) * share
            factor = np.divide(wanted, room, out=factor, where=room > 0)
            begin = np.stack([a.begin[piece[:, k]] for k, a in enumerate(axes)], -1)
            grid = self.grids[image]
            chunk = grid.flat(grid.chunk_of(begin))
            weights += np.bincount(chunk, allowed * factor[owner] - before, grid.n_chunks)
            weights[weights < _NOTHING] = 0
        upto = np.concatenate([[0.0], np.cumsum(weights)])
        upto = upto * (n / upto[-1]) if n else upto * 0
        # Where all are counted, rounding must not lose the last one.
        upto[upto >= upto[-1] - _NOTHING] = n
        return _Weights(n, extra, upto, special, blocked, factor)

    def _special(
        self, image: int, sample: int, shape: tuple[int, ...]
    ) -> tuple[Ints, Ints, Floats]:
        """Strata of which something was said or whose neighbours are excluded."""
        out = np.array(sorted(self._excluded.get((image, sample), ())), np.int64)
        probs = self._probs.get((image, sample), {})
        named = np.array(sorted(probs), np.int64)
        if not len(out) and not len(named):
            none = np.zeros(0, np.int64)
            return none, none, np.zeros(0)
        coords = np.stack(np.unravel_index(out, shape), -1).astype(np.int64)
        near, bits = [named, out], [np.zeros_like(named), np.ones_like(out)]
        for bit, step in list(enumerate(itertools.product((0, 1), repeat=len(shape))))[1:]:
            left = coords - np.asarray(step)
            left = left[(left >= 0).all(-1)]
            near.append(np.ravel_multi_index(tuple(left.T), shape).astype(np.int64))
            bits.append(np.full(len(left), 1 << bit))
        special, place = np.unique(np.concatenate(near), return_inverse=True)
        blocked = np.zeros(len(special), np.int64)
        np.bitwise_or.at(blocked, place, np.concatenate(bits))
        share = np.ones(len(special))
        share[np.searchsorted(special, named)] = [probs[k] for k in named.tolist()]
        share[blocked & 1 > 0] = 0
        return special, blocked, share

    # -- patches ------------------------------------------------------------------------

    def _offsets(self, image: int) -> Floats:
        """Where each sample's systematic draw begins: float64[n_samples], in [0, 1)."""
        key = key_of("stratified offset", self.seed, self.epoch, self.keys[image])
        words = philox(key, np.arange(self.n_samples(image)))[0]
        return np.asarray(words * _UNIT, np.float64)

    def counts(self, image: int) -> Ints:
        """Patches that each cell of an image owns: int64[n_samples * n_chunks]."""
        found = self._counts_of.get(image)
        if found is None:
            n_samples, offsets = self.n_samples(image), self._offsets(image)
            rows = np.empty((n_samples, self.grids[image].n_chunks), np.int64)
            plain = self._weights(image, -1).upto
            said = {s for i, s in (*self._excluded, *self._probs) if i == image}
            rows[:] = np.diff(np.ceil(plain[None] - offsets[:, None]), axis=1)
            for sample in said:
                upto = self._weights(image, sample).upto
                rows[sample] = np.diff(np.ceil(upto - offsets[sample]))
            found = self._counts_of[image] = rows.ravel()
        return found

    def corners(self, image: int, cells: npt.ArrayLike) -> tuple[Ints, Ints]:
        """First pixels of the patches of some cells, and how many each cell owns."""
        cells = np.asarray(cells, np.int64)
        axes, grid, ndim = self._axes(image), self.grids[image], len(self.patch_size)
        counts = self.counts(image)[cells]
        full = cells[counts > 0]
        n = counts[counts > 0]
        sample, chunk = np.divmod(full, max(1, grid.n_chunks))
        index = grid.unflat(chunk)
        # Every piece of every chunk with its weight, as an integer.
        first = np.stack([a.of_chunk[index[:, k]] for k, a in enumerate(axes)], -1)
        last = np.stack([a.of_chunk[index[:, k] + 1] for k, a in enumerate(axes)], -1)
        owner, turn = turns(last - first)
        piece = first[owner] + turn
        names, place = np.unique(sample, return_inverse=True)
        given = [self._weights(image, s) for s in names.tolist()]
        # Most samples share one value.
        weights = list({id(w): w for w in given}.values())
        rank = {id(w): k for k, w in enumerate(weights)}
        group = np.array([rank[id(w)] for w in given], np.int64)[place]
        extra = np.array([w.extra for w in weights])[group][owner]
        mass = np.ones(len(piece))
        for k, a in enumerate(axes):
            mass *= a.plain[piece[:, k]] + extra * a.extra[piece[:, k]]
        blocked = np.zeros(len(piece), np.int64)
        n_strata = math.prod(self.grid_shape(image))
        special = [w.special + k * n_strata for k, w in enumerate(weights)]
        known = np.concatenate([*special, np.zeros(0, np.int64)])
        if len(known):
            stratum = [
                np.searchsorted(a.of_stratum, piece[:, k], "right") - 1 for k, a in enumerate(axes)
            ]
            flat = np.ravel_multi_index(tuple(stratum), self.grid_shape(image))
            flat = flat + group[owner] * n_strata
            at = np.minimum(np.searchsorted(known, flat), len(known) - 1)
            mine = np.flatnonzero(known[at] == flat)
            at = at[mine]
            blocked[mine] = np.concatenate([w.blocked for w in weights])[at]
            allowed = _patterns(axes, piece[mine], extra[mine], blocked[mine]).sum(-1)
            mass[mine] = allowed * np.concatenate([w.factor for w in weights])[at]
        sums = np.cumsum(np.rint(mass * _FIXED).astype(np.int64))
        ends = np.append(0, sums)[np.searchsorted(owner, np.arange(len(full) + 1))]
        # The patches of a cell lie one apart along its weight.
        cell = np.repeat(np.arange(len(full)), n)
        inside = np.arange(len(cell)) - np.repeat(np.cumsum(n) - n, n)
        upto = np.concatenate([*(w.upto for w in weights), np.zeros(0)])
        at = group * (grid.n_chunks + 1) + chunk
        low, high = upto[at], upto[at + 1]
        offset = self._offsets(image)[sample]
        place_of = (np.ceil(low - offset) + offset - low)[cell] + inside
        share = np.clip(place_of / (high - low)[cell], 0, 1)
        room = (ends[1:] - ends[:-1])[cell]
        target = ends[:-1][cell] + np.minimum((share * room).astype(np.int64), room - 1)
        drawn = np.searchsorted(sums, target, "right")
        return self._draw(
            image, axes, piece[drawn], extra[drawn], blocked[drawn], full[cell], inside, ndim
        ), counts

    def _draw(
        self,
        image: int,
        axes: list[_Axis],
        piece: Ints,
        extra: Floats,
        blocked: Ints,
        cell: Ints,
        inside: Ints,
        ndim: int,
    ) -> Ints:
        """A first pixel in each piece, by weight."""
        key = key_of("stratified corner", self.seed, self.epoch, self.keys[image])
        words = philox(key, cell, cell >> 32, inside)
        corners = np.empty((len(piece), ndim), np.int64)
        for k, a in enumerate(axes):
            p, u = piece[:, k], words[k] * _UNIT
            at = u * (a.plain[p] + extra * a.extra[p]) - extra * a.left[p]
            step = np.floor(at * self.patch_size[k]).astype(np.int64)
            corners[:, k] = np.clip(a.begin[p] + step, a.begin[p], a.stop[p] - 1)
        some = np.flatnonzero(blocked)
        if len(some):
            weights = _patterns(axes, piece[some], extra[some], blocked[some])
            upto = np.cumsum(weights, -1)
            target = words[3][some] * _UNIT * upto[:, -1]
            pattern = (upto <= target[:, None]).sum(-1)
            for k, a in enumerate(axes):
                p, u = piece[some, k], words[k][some] * _UNIT
                at = u * (a.rest[0, p] + extra[some] * a.rest[1, p])
                begin = a.begin[p] + (a.edge[0, p] > 0)
                step = np.floor(at * self.patch_size[k]).astype(np.int64)
                free = np.clip(begin + step, begin, a.stop[p] - 1)
                corners[some, k] = np.where(pattern >> k & 1, a.begin[p], free)
        return corners


def create_val_split(
    stratified: StratifiedPatching, n_val_patches: int, rng: np.random.Generator
) -> tuple[StratifiedPatching, FixedPatching]:
    """Fixed validation patches, and a strategy that never takes a pixel of them.

    Parameters
    ----------
    stratified
        What to split; it is not changed.
    n_val_patches
        Cells of its grid that become validation patches.
    rng
        Draws them.

    Returns
    -------
    StratifiedPatching, FixedPatching
        For training and for validation.

    Raises
    ------
    PlanError
        If no training patch would be left.

    Examples
    --------
    >>> whole = StratifiedPatching([(1, 1, 64, 64)], (16, 16))
    >>> train, val = create_val_split(whole, 3, np.random.default_rng(0))
    >>> train.n_patches, val.n_patches, whole.n_patches
    (13, 3, 16)
    """
    cells = [
        (image, sample, coords)
        for (image, sample), found in stratified.get_included_grid_coords().items()
        for coords in found
    ]
    if not 0 <= n_val_patches < max(1, len(cells)):
        raise PlanError(
            f"validation leaves at least one cell of the grid for training, got n_val_patches="
            f"{n_val_patches} of {len(cells)} cells of {list(stratified.patch_size)} pixels; take "
            "fewer, or a smaller patch"
        )
    taken = [cells[k] for k in np.sort(rng.choice(len(cells), n_val_patches, replace=False))]
    train = stratified._copy()
    for (image, sample), group in itertools.groupby(taken, lambda cell: cell[:2]):
        train.exclude_patches(image, sample, [coords for _, _, coords in group])
    if n_val_patches and not train.n_patches:
        raise PlanError(
            f"validation leaves at least one training patch, got n_val_patches={n_val_patches} of "
            f"{len(cells)} cells, the others with probability 0; take fewer"
        )
    specs = [
        PatchSpecs(
            data_idx=image,
            sample_idx=sample,
            coords=tuple(c * p for c, p in zip(coords, stratified.patch_size, strict=True)),
            patch_size=stratified.patch_size,
        )
        for image, sample, coords in taken
    ]
    return train, FixedPatching(specs)


def _axis(extent: int, size: int, chunk: int, *, pad: bool) -> _Axis:
    small = extent < size
    valid = int(pad and extent > 0) if small else extent - size + 1
    cuts = np.unique(np.concatenate([np.arange(0, valid, size), np.arange(0, valid, chunk)]))
    begin = cuts.astype(np.int64)
    stop = np.append(begin[1:], valid)[: len(begin)]
    # A small image has one place, which is a whole cell.
    unit, more = (1.0, 0.0) if small else (1 / size, (size - 1) / (2 * size))
    is_edge, is_first, is_last = begin % size == 0, begin == 0, stop == valid
    single = is_edge & (begin == valid - 1)
    edge = np.stack([is_edge * unit, is_first * more + single * more])
    rest = np.stack([(stop - begin - is_edge) * unit, (is_last & ~single) * more])
    n_strata, n_chunks = -(-valid // size), -(-extent // chunk)
    return _Axis(
        begin=begin,
        stop=stop,
        plain=np.asarray((stop - begin) * unit, np.float64),
        extra=is_first * more + is_last * more,
        left=is_first * more,
        edge=edge,
        rest=rest,
        of_stratum=np.searchsorted(begin, np.arange(n_strata + 1) * size).astype(np.int64),
        of_chunk=np.searchsorted(begin, np.arange(n_chunks + 1) * chunk).astype(np.int64),
    )


def _sums(weights: Floats, first: Ints) -> Floats:
    """Sums over consecutive parts, some of them empty."""
    upto = np.append(0.0, np.cumsum(weights))
    return np.diff(upto[first])


def _masses(axes: Sequence[_Axis], piece: Ints, extra: float) -> Floats:
    return np.stack(
        [a.plain[piece[:, k]] + extra * a.extra[piece[:, k]] for k, a in enumerate(axes)], -1
    )


def _patterns(axes: Sequence[_Axis], piece: Ints, extra: Floats, blocked: Ints) -> Floats:
    """Weight of what is allowed of some pieces: float64[n, 2**ndim].

    Bit k of a pattern says that a patch begins at the first pixel of its stratum on axis k,
    so that it does not reach into the next one there.
    """
    ndim = len(axes)
    found = np.ones((len(piece), 2**ndim))
    for k, a in enumerate(axes):
        p = piece[:, k]
        edge = a.edge[0, p] + extra * a.edge[1, p]
        rest = a.rest[0, p] + extra * a.rest[1, p]
        for pattern in range(2**ndim):
            found[:, pattern] *= edge if pattern >> k & 1 else rest
    steps = list(itertools.product((0, 1), repeat=ndim))
    for pattern in range(2**ndim):
        # It touches the neighbour at a step unless it stays out of it on one axis.
        touched = sum(
            1 << bit
            for bit, step in enumerate(steps)
            if not any(step[k] and pattern >> k & 1 for k in range(ndim))
        )
        found[blocked & touched > 0, pattern] = 0
    return found


def _solve(total: Callable[[float], float], n: int) -> float:
    """The factor of the border extras at which the weights add up to n, or 1 if none does."""
    low, high = 0.0, 1.0
    while total(high) < n and high < 2**20:
        high *= 2
    if total(low) > n or total(high) < n:
        return 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if total(middle) < n else (low, middle)
    return high


def _volume(extents: Sequence[Floats]) -> Floats:
    """Outer product of per-axis weights, raveled in C order."""
    product: Floats = math.prod(np.ix_(*extents), start=np.float64(1)).ravel()
    return product
