"""MicroSplit: inputs that are superpositions of their targets, with what lies around them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError
from patchloom.load.patches import Patches
from patchloom.load.reader import Ints, Pixels, Reader
from patchloom.load.scales import check_as_sources
from patchloom.load.visit import Addressed, Visit
from patchloom.normalization import Normalization
from patchloom.randomness import key_of, philox

__all__ = ["MicroSplit"]

Batch = dict[str, Any]
_LOW = 2**32 - 1
_ALPHA, _APART, _PRINCIPAL, _PLACE = range(4)
"""What is drawn."""


@dataclass(frozen=True, eq=False)
class MicroSplit:
    """A ``transform=`` of loaders that makes batches for splitting superposed structures.

    ``"target"`` are the channels to tell apart, [n, channels, (z,) y, x]; ``"image"`` is their
    sum, weighted with ``"alphas"`` (float32[n, channels]), and behind it, one channel each, the
    same sum of the coarser levels around the patch, finest first: float32[n, 1 + levels, ...].
    ``"places"`` (int64[n, channels]) are the positions of the patches that channels are from.

    Everything is drawn by address: it is fixed by seed, epoch and position, and by the visit where
    patches are drawn with replacement, in whichever worker a batch is made. Use `multiplexed`,
    `separate` or `paired` to make one.
    """

    sources: tuple[Patches, ...] = field(repr=False)
    """What channels are drawn from: one for all, or one each."""
    ranges: tuple[tuple[float, float], ...] | None = None
    """The least and the greatest weight of each channel; None: one over their number."""
    apart: float = 0.0
    """The chance that the channels of a patch are from places of their own."""
    context: tuple[str, ...] = ()
    """Arrays of coarser levels, finest first."""
    normalize: tuple[Normalization, ...] = ()
    """What channels are scaled by before they are summed, those of all levels alike: one for all
    sources, or one each; none: they are summed as they are."""
    then: Callable[[Batch], Any] | Addressed | None = None
    """Called with what was made: another transformation."""
    mixes: bool = True
    """Whether the input is made; else it is there."""
    principal: int = 0
    """The source that the loader is over."""
    _readers: dict[int, list[Reader]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.normalize:
            check_as_sources([getattr(patches, "applied", {}) for patches in self.sources])

    @classmethod
    def multiplexed(
        cls,
        patches: Patches,
        *,
        alphas: Sequence[tuple[float, float]] | None = None,
        uncorrelated: float = 0.0,
        context: Sequence[str] | None = None,
        normalize: Normalization | None = None,
        then: Callable[[Batch], Any] | Addressed | None = None,
    ) -> MicroSplit:
        """For channels that were acquired together: CAREamics' ``MultiChannelTarget``.

        Parameters
        ----------
        patches
            Those that the loader is over: what channels of other places are drawn from. Of a
            split, so that no pixel of another one is.
        alphas
            Least and greatest weight of each channel, between which it is drawn evenly; None: one
            over the number of channels.
        uncorrelated
            The chance of a patch that its channels are from places of their own: one of them from
            its own, the others from patches drawn evenly.
        context
            Which arrays of coarser levels are put behind the sum; None: all there are.
        normalize
            What channels are scaled by, levels too. Then the loader has no ``normalize=``.
        then
            Called with the batch that was made, such as an augmentation.

        Raises
        ------
        ConfigError
            If an argument is none of these.

        Examples
        --------
        >>> import numpy as np, patchloom
        >>> two = np.stack([np.full((8, 8), 2, "uint8"), np.full((8, 8), 4, "uint8")])
        >>> images = patchloom.open_images(two, axes="cyx")
        >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [4, 4]})
        >>> _ = patchloom.materialize(plan, "memory://channels.zarr", progress=False)
        >>> store = patchloom.open_patches("memory://channels.zarr")
        >>> [batch] = store.batches(4, transform=MicroSplit.multiplexed(store))
        >>> batch["image"].shape, batch["target"].shape, batch["image"].max().item()
        ((4, 1, 4, 4), (4, 2, 4, 4), 3.0)
        """
        return cls(
            (patches,),
            _ranges(alphas),
            _chance(uncorrelated),
            _context([patches], context),
            () if normalize is None else (normalize,),
            then,
        )

    @classmethod
    def separate(
        cls,
        sources: Sequence[Patches],
        *,
        alphas: Sequence[tuple[float, float]] | None = None,
        context: Sequence[str] | None = None,
        normalize: Normalization | Sequence[Normalization] | None = None,
        then: Callable[[Batch], Any] | Addressed | None = None,
    ) -> MicroSplit:
        """For structures that were acquired apart: CAREamics' ``IndependentTargets``.

        Parameters
        ----------
        sources
            Patches of each structure, of one channel each, all of the same shape; their images may
            differ in shape and number. The loader is over the one with the most patches, which is
            `patches` of what is made; of the others patches are drawn evenly.
        alphas, context, then
            As of `multiplexed`.
        normalize
            What channels are scaled by, levels too; one for all, or one each source.

        Raises
        ------
        ConfigError
            If there are fewer than two, their patches differ, or an argument is none of these.
        """
        if len(sources) < 2:
            raise ConfigError(
                f"structures that were acquired apart are at least two, got {len(sources)}; of "
                "channels of one image: MicroSplit.multiplexed"
            )
        told = [source.extents() for source in sources]
        for k, (one, source) in enumerate(zip(told, sources, strict=True)):
            if not source.n_patches:
                raise ConfigError(f"there are patches of each structure, got none in source {k}")
            (shape, dtype), first = one["images"], told[0]["images"]
            if shape[0] != 1 or (shape, dtype) != first:
                raise ConfigError(
                    f"patches of structures have one channel, one shape and one dtype, got {shape} "
                    f"{dtype} in source {k} and {first[0]} {first[1]} in source 0; open with "
                    "channels=[...]"
                )
        scales = (normalize,) if isinstance(normalize, Normalization) else tuple(normalize or ())
        if len(scales) not in (0, 1, len(sources)):
            raise ConfigError(
                f"normalize= is one for all sources or one each, got {len(scales)} for "
                f"{len(sources)}"
            )
        return cls(
            tuple(sources),
            _ranges(alphas),
            1.0,
            _context(sources, context),
            scales,
            then,
            principal=int(np.argmax([source.n_patches for source in sources])),
        )

    @classmethod
    def paired(
        cls,
        patches: Patches,
        *,
        context: Sequence[str] | None = None,
        normalize: Normalization | None = None,
        then: Callable[[Batch], Any] | Addressed | None = None,
    ) -> MicroSplit:
        """For images that show the sum, with targets or (to predict) without: only levels are put
        behind each other. CAREamics' ``PairedInputTarget``, and its prediction data.

        Parameters
        ----------
        patches, context, normalize, then
            As of `multiplexed`; targets are those of the patches, as they are.
        """
        scales = () if normalize is None else (normalize,)
        return cls((patches,), None, 0.0, _context([patches], context), scales, then, mixes=False)

    @property
    def patches(self) -> Patches:
        """What the loader is over: ``split.patches.batches(32, transform=split)``."""
        return self.sources[self.principal]

    def visited(self, batch: Batch, visit: Visit) -> Any:
        """A batch anew: see `Addressed`."""
        levels = ["image", *self.context]
        if missing := [name for name in levels if name not in batch]:
            raise ConfigError(
                f"batches have images and the levels {list(self.context)}, got none of {missing}; "
                "load them: arrays=None, or context=[] here"
            )
        own = self.principal, visit.positions
        stack = {name: self._scaled(batch[name], *own) for name in levels}
        made = {key: value for key, value in batch.items() if key not in levels}
        if self.mixes:
            _check_keys(made)
            stack, places = self._channels(stack, visit)
            alphas = self._alphas(visit, stack["image"].shape[1])
            made |= {"target": stack["image"], "alphas": alphas, "places": places}
            summed = [_summed(stack[name], alphas) for name in levels]
        else:
            summed = [stack[name].astype(np.float32, copy=False) for name in levels]
        made["image"] = np.concatenate(summed, 1)
        if isinstance(self.then, Addressed):
            return self.then.visited(made, visit)
        return made if self.then is None else self.then(made)

    def _channels(self, stack: dict[str, Pixels], visit: Visit) -> tuple[dict[str, Pixels], Ints]:
        """The channels of each patch, from its own place and from others; and the places."""
        n = len(visit.positions)
        count = len(self.sources) if len(self.sources) > 1 else stack["image"].shape[1]
        if self.ranges is not None and len(self.ranges) != count:
            raise ConfigError(
                f"alphas= has a range for each channel, got {len(self.ranges)} for {count}"
            )
        if len(self.sources) > 1:
            found = {name: np.concatenate([pixels] * count, 1) for name, pixels in stack.items()}
            own = np.zeros((n, count), np.bool_)
            own[:, self.principal] = True
        else:
            # Fresh: the same patch may be asked for twice.
            found = {name: pixels.copy() for name, pixels in stack.items()} if self.apart else stack
            together = self._drawn(visit, _APART) >= self.apart
            principal = (self._drawn(visit, _PRINCIPAL) * count).astype(np.int64)
            own = together[:, None] | (principal[:, None] == np.arange(count))
        place = np.repeat(visit.positions[:, None], count, 1)
        for k, source in enumerate(self.sources):
            mine = [k] if len(self.sources) > 1 else [*range(count)]
            asked = [(c, np.flatnonzero(~own[:, c])) for c in mine]
            for c, rows in asked:
                place[rows, c] = self._places(visit, c, source.n_patches)[rows]
            places = [place[rows, c] for c, rows in asked]
            wanted, inverse = np.unique(np.concatenate(places), return_inverse=True)
            if not len(wanted):
                continue
            read = self._reader(k).read(wanted, ["images", *self.context])
            read = {("image" if a == "images" else a): pixels for a, pixels in read.items()}
            for name, pixels in read.items():
                scaled = self._scaled(pixels, k, wanted)
                first = 0
                for c, rows in asked:
                    which = inverse[first : first + len(rows)]
                    found[name][rows, c] = scaled[which, 0 if len(self.sources) > 1 else c]
                    first += len(rows)
        return found, place

    def _places(self, visit: Visit, channel: int, n: int) -> Ints:
        chance = self._drawn(visit, _PLACE, channel)
        return np.minimum((chance * n).astype(np.int64), n - 1)

    def _alphas(self, visit: Visit, count: int) -> npt.NDArray[np.float32]:
        if self.ranges is None:
            return np.full((len(visit.positions), count), 1 / count, np.float32)
        drawn = np.stack([self._drawn(visit, _ALPHA, c) for c in range(count)], 1)
        low, high = np.array(self.ranges, np.float64).T
        alphas: npt.NDArray[np.float32] = (low + drawn * (high - low)).astype(np.float32)
        return alphas

    def _drawn(self, visit: Visit, what: int, channel: int = 0) -> npt.NDArray[np.float64]:
        """A number in [0, 1) for each patch."""
        key = key_of(visit.seed, "microsplit", visit.epoch, what, channel)
        place, turn = visit.positions, visit.turns
        high, low, *_ = philox(key, place & _LOW, place >> 32, turn & _LOW, turn >> 32)
        return ((high << np.uint64(32) | low) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def _scaled(self, pixels: Pixels, source: int, positions: Ints) -> Pixels:
        if not self.normalize:
            return pixels
        scale = self.normalize[source if len(self.normalize) > 1 else 0]
        if scale.per in ("channel", "all"):
            return scale.apply(pixels)
        ids = self.sources[source].manifest["image_id"].to_numpy(zero_copy_only=False)
        return scale.apply(pixels, ids[positions])

    def _reader(self, source: int) -> Reader:
        # One that a fork left behind has locks of a process that is not here.
        mine = os.getpid()
        if mine not in self._readers:
            self._readers[mine] = [patches.reader() for patches in self.sources]
        return self._readers[mine][source]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}


def _check_keys(batch: Batch) -> None:
    """Refuse what would be gone: columns that are called as what is made."""
    made = ("alphas", "places", "target")
    if taken := [key for key in made if key in batch and np.ndim(batch[key]) < 2]:
        raise ConfigError(
            f"each key of a batch is one thing, got columns {taken}, which MicroSplit makes, too; "
            "call them otherwise: columns={'new name': 'column'}"
        )


def _summed(pixels: Pixels, alphas: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The weighted sum of the channels: float32[n, 1, ...]; channel by channel, in order."""
    wide = (slice(None), *[None] * (pixels.ndim - 2))
    found: npt.NDArray[np.float32] = np.zeros((len(pixels), *pixels.shape[2:]), np.float32)
    for c in range(pixels.shape[1]):
        found += pixels[:, c].astype(np.float32) * alphas[:, c][wide]
    return found[:, None]


def _ranges(alphas: Any) -> tuple[tuple[float, float], ...] | None:
    if alphas is None:
        return None
    try:
        found = tuple((float(low), float(high)) for low, high in alphas)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(0 <= low <= high < np.inf for low, high in found):
        raise ConfigError(
            f"alphas= has a range of weights from 0 on for each channel, got {alphas!r:.60}; such "
            "as [(0.5, 1), (0.5, 1)]"
        )
    return found


def _chance(value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"uncorrelated= is a chance from 0 to 1, got {value!r}")
    return float(value)


def _context(sources: Sequence[Patches], context: Sequence[str] | None) -> tuple[str, ...]:
    every = [
        [name for name in source.arrays_held if name.startswith("context_")] for source in sources
    ]
    names = every[0] if context is None else list(context)
    for held in every:
        if lacking := sorted({*names} - {*held}):
            raise ConfigError(
                f"context= are levels that all patches hold, got {lacking}; there are {held}: plan "
                "images that are opened with context=[1, ...]"
            )
    return tuple(sorted(names, key=lambda name: int(name.removeprefix("context_"))))
