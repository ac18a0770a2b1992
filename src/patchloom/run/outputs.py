"""Outputs: what stitched images are like: axes, chunks, type and levels, by what was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.blending import Blend
from patchloom.errors import ConfigError
from patchloom.location import Location
from patchloom.run.predicting import Answers
from patchloom.store.ome_target import OmeTarget
from patchloom.store.schema import CODECS, Codec

__all__ = ["Wanted"]

_USUAL = {1: 2**16, 2: 512, 3: 64}
"""Extent of a chunk on each axis, by their number, where those of the source do not suit."""
_SUITS = 2**16, 2**26
"""Bytes of a chunk that suits."""
_LONG = 1.4
"""An axis whose pixels are so many times the smallest waits for the others on the way to coarser
levels: so pixels become cubes."""


@dataclass(frozen=True)
class Wanted:
    """Images as they were asked for; arguments of `stitch`."""

    n_channels: int
    dtype: np.dtype[Any]
    channels: tuple[str, ...]
    """Names, if there are as many."""
    chunks: int | Sequence[int] | None
    shards: int | Sequence[int] | None
    codec: Codec
    levels: int

    @classmethod
    def of(
        cls,
        answers: Answers,
        blend: Blend | None,
        dtype: npt.DTypeLike | None,
        channels: Sequence[str],
        *,
        named: bool,
        chunks: int | Sequence[int] | None,
        shards: int | Sequence[int] | None,
        codec: str | None,
        levels: int,
    ) -> Wanted:
        """What was asked for of some predictions.

        Parameters
        ----------
        answers, blend
            The predictions, and how they are blended.
        channels, named
            Names, and whether there have to be as many as channels.
        dtype, chunks, shards, codec, levels
            As for `stitch`.

        Raises
        ------
        ConfigError
            If they do not go together.
        """
        try:
            given = answers.dtype if dtype is None else np.dtype(dtype).newbyteorder("=")
        except TypeError:
            raise ConfigError(f"dtype= is a type of numbers or flags, got {dtype!r}") from None
        _check_types(answers.dtype, given, blend)
        n_channels = answers.shape[0]
        if named and len(channels) != n_channels:
            raise ConfigError(
                f"channels= names each of {n_channels} channels, got {list(channels)}"
            )
        if isinstance(levels, bool) or not isinstance(levels, int | np.integer) or levels < 1:
            raise ConfigError(f"levels= is a number of resolutions from 1 on, got {levels!r}")
        known = Codec(codec or CODECS[0])
        return cls(n_channels, given, tuple(channels), chunks, shards, known, int(levels))

    def target(self, image: Mapping[str, Any], location: Location) -> OmeTarget:
        """One image.

        Parameters
        ----------
        image
            Its source, as a store tells it.
        location
            Where it goes.
        """
        stored, n_channels = str(image["axes"]), self.n_channels
        extents = dict(zip(stored, map(int, image["shape"]), strict=True))
        samples = "".join(a for a in stored if a in "st")
        space = "".join(a for a in "zyx" if a in stored)
        has_channel = "c" in stored or n_channels > 1
        extents["c"] = n_channels
        chunk = _extents("chunks", self.chunks, space)
        if chunk is None:
            own = dict(zip(stored, image.get("chunks", ()), strict=False))
            chunk = _usual([extents[a] for a in space], [own.get(a) for a in space], self.dtype)
        shard = _extents("shards", self.shards, space)
        if shard is None:
            chunk = tuple(min(c, extents[a]) for c, a in zip(chunk, space, strict=True))
        if shard is not None and any(s % c for s, c in zip(shard, chunk, strict=True)):
            raise ConfigError(
                f"a shard holds whole chunks, got shards={[*shard]} for chunks of {[*chunk]}; give "
                "multiples"
            )
        spacing = dict(image["spacing"])
        plane = "z" if "s" in samples and "z" in spacing and "z" not in stored else "s"
        # Planes that were samples are planes again.
        letters = {"s": plane}
        extents[plane] = extents.get("s", extents.get(plane, 1))
        samples = "".join(letters.get(a, a) for a in samples)
        there = samples + space + ("c" if has_channel else "")
        axes = "".join(a for a in "tsczyx" if a in there)
        inner = dict(zip(space, chunk, strict=True))
        outer = {} if shard is None else dict(zip(space, shard, strict=True)) | {"c": n_channels}
        return OmeTarget(
            location=location,
            name=str(image["id"]),
            axes=axes,
            samples=samples,
            shape=tuple(extents[a] for a in axes),
            chunks=tuple(inner.get(a, 1) for a in axes),
            shards=None if shard is None else tuple(outer.get(a, 1) for a in axes),
            dtype=self.dtype,
            codec=self.codec,
            halved=_halved(self.levels, space, extents, spacing),
            spacing=spacing,
            origin=dict(image.get("origin", {})),
            unit=dict(image.get("unit", {})),
            channels=self.channels if has_channel and len(self.channels) == n_channels else (),
        )


def _check_types(found: np.dtype[Any], wanted: np.dtype[Any], blend: Blend | None) -> None:
    for dtype, what in ((found, "predictions"), (wanted, "dtype=")):
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise ConfigError(f"an image holds numbers or flags, got {what} of {dtype}")
    if blend is not None and found.kind in "iu" and found.itemsize == 8:
        raise ConfigError(
            f"blend= takes means, which whole numbers of 64 bits lose digits in, got {found} and "
            f"blend={blend!r}; leave blend out, or predict floats or fewer bits"
        )


def _halved(
    levels: int, space: str, extents: Mapping[str, int], spacing: Mapping[str, float]
) -> tuple[str, ...]:
    """The axes that are halved for each coarser level."""
    known = all(a in spacing for a in space)
    size = {a: float(spacing[a]) if known else 1.0 for a in space}
    left = {a: extents[a] for a in space}
    found: list[str] = []
    for _ in range(levels - 1):
        least = min((size[a] for a in space if left[a] > 1), default=0.0)
        axes = "".join(a for a in space if left[a] > 1 and size[a] < _LONG * least)
        if not axes:
            raise ConfigError(
                f"a coarser level has fewer pixels, got levels={levels} for an image of "
                f"{[extents[a] for a in space]}; ask for {len(found) + 1} at most"
            )
        size |= {a: 2 * size[a] for a in axes}
        left |= {a: -(-left[a] // 2) for a in axes}
        found.append(axes)
    return tuple(found)


def _extents(name: str, given: Any, space: str) -> tuple[int, ...] | None:
    if given is None:
        return None
    each = [*given] if np.iterable(given) else [given] * len(space)
    whole = all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in each)
    if len(each) != len(space) or not whole or min(each) < 1:
        raise ConfigError(
            f"{name}= is a number of pixels, or one for each axis of {space!r}, got {given!r}"
        )
    return tuple(int(n) for n in each)


def _usual(
    extents: Sequence[int], own: Sequence[int | None], dtype: np.dtype[Any]
) -> tuple[int, ...]:
    """The source's chunks, if they suit."""
    if None not in own:
        found = tuple(min(int(c or 1), n) for c, n in zip(own, extents, strict=True))
        nbytes = math.prod(found) * dtype.itemsize
        if nbytes <= _SUITS[1] and (nbytes >= _SUITS[0] or found == tuple(extents)):
            return found
    return (_USUAL[len(extents)],) * len(extents)
