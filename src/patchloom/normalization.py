"""Normalization: what grey levels are moved and scaled by before a network sees them.

Pure NumPy: made from summaries or from a table of statistics, applied when patches are written or
when they are read, and undone on what a network answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError, IdentityError
from patchloom.summaries import Summary, pooled, targets
from patchloom.summaries import percentiles as percentiles_of
from patchloom.summaries.asked import check_percentiles

if TYPE_CHECKING:
    import xarray

__all__ = ["NORMALIZATIONS", "SCALE", "Normalization", "kind_of"]

NORMALIZATIONS = ("percentile", "mean-std", "min-max", "none")
"""Kinds of normalisation."""
SCALE = 2**17
"""Pixels that are scaled together as float64, at least those of one channel of a patch."""

_ALIASES = {"quantile": "percentile", "mean_std": "mean-std", "min_max": "min-max"}
"""The same kinds as CAREamics names them."""
_POOLED = ("channel", "all")
_CLIPPED = ("percentile", "min-max")

Pixels = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Normalization:
    """``(x - shift) / span`` by group of images and channel, clipped to [0, 1] or not.

    A channel is *constant* where its span is 0: all its pixels have one grey level, or its low
    percentile is its high one, or it has no pixel that is a number. It becomes 0, and `constant`
    says so. NaN stays NaN.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> pixels = np.array([[2, 4, 6, 10]], np.uint8)
    >>> images = patchloom.open_images(pixels, ids=["a"])
    >>> scaling = Normalization.from_statistics(patchloom.statistics(images), "min-max")
    >>> scaled = scaling.apply(pixels[None, None], "a")
    >>> scaled.ravel().tolist()
    [0.0, 0.25, 0.5, 1.0]
    >>> scaling.invert(scaled, "a").ravel().tolist()
    [2.0, 4.0, 6.0, 10.0]
    """

    kind: str
    """One of `NORMALIZATIONS`."""
    per: str
    """What has numbers of its own, besides channels: ``"image"``; ``"channel"`` (all images
    together); ``"all"`` (all images and all channels together); or a metadata column."""
    clip: bool
    """Whether what lies beyond 0 and 1 becomes 0 and 1."""
    channels: tuple[str, ...]
    groups: tuple[Any, ...] = field(repr=False)
    """Ids of images, values of the column, or ``("all",)``."""
    shift: Table = field(repr=False)
    """Grey level that becomes 0, by group and channel; finite."""
    span: Table = field(repr=False)
    """Grey levels that become 1 wide, by group and channel; finite, and 0 where constant."""
    members: tuple[tuple[str, int], ...] = field(default=(), repr=False)
    """Ids of images and the positions of their groups, where `per` is a column."""
    percentiles: tuple[float, ...] = ()
    """The low and the high one, in percent, of the kind ``"percentile"``."""
    over: str = "image"
    """What the statistics are of."""
    exact: bool = True
    """Whether they are exact."""

    # -- making one ---------------------------------------------------------------------

    @classmethod
    def of(
        cls,
        kind: str,
        summaries: Mapping[tuple[int, int], Summary],
        images: Sequence[str],
        channels: Sequence[str],
        *,
        per: str = "image",
        columns: Sequence[Mapping[str, Any]] = (),
        q: Sequence[float] = (1, 99),
        method: str = "linear",
        over: str = "image",
    ) -> Normalization:
        """From summaries, which are pooled as `per` says.

        Parameters
        ----------
        kind
            One of `NORMALIZATIONS`. ``"percentile"``: the lowest of `q` becomes 0, the highest 1,
            clipped. ``"min-max"``: the same of the least and the greatest grey level.
            ``"mean-std"``: mean 0 and standard deviation 1. ``"none"``: as it is, as float32.
        summaries
            By positions in `images` and `channels`; of what is missing there are no pixels.
        images, channels
            Ids and names.
        per
            See `Normalization.per`.
        columns
            Metadata of each image.
        q
            In percent, at least two for ``"percentile"``.
        method
            How a percentile between two values is told, as `numpy.percentile` names it.
        over
            What the summaries are of.

        Raises
        ------
        ConfigError
            If there is no such kind or column, there are too few percentiles, or statistics are
            not finite, or bounded so widely that low and high cannot be told apart.
        """
        kind = kind_of(kind)
        ends = _low_high(kind, q)
        groups, place = _grouped(per, images, columns)
        parts: dict[tuple[int, int], list[Summary]] = {}
        for (image, channel), summary in summaries.items():
            parts.setdefault((place[image], 0 if per == "all" else channel), []).append(summary)
        sums = {at: pooled(some, ends, method) for at, some in parts.items()}
        bounded = {at: targets(s, ends, method) is not None for at, s in sums.items()}
        empty = Summary.empty()
        cells, errors = [], []
        for group in range(len(groups)):
            keys = [(group, 0 if per == "all" else c) for c in range(len(channels))]
            cells.append([_cell(kind, sums.get(at, empty), ends, method) for at in keys])
            errors.append([sums[at].error if bounded.get(at) else 0.0 for at in keys])
        _check(kind, groups, channels, cells, errors)
        found = cls(
            kind,
            per,
            kind in _CLIPPED,
            tuple(channels),
            groups,
            *_tables(cells),
            percentiles=ends,
            over=over,
            exact=not any(bounded.values()),
        )
        return found.with_images(images, columns)

    @classmethod
    def from_statistics(
        cls, table: xarray.Dataset, kind: str, *, per: str | None = None
    ) -> Normalization:
        """From a table of statistics, whose rows are groups of images.

        Parameters
        ----------
        table
            From `patchloom.statistics` or `PatchStore.statistics`. Its least and greatest
            quantiles are the ends of ``"percentile"``.
        kind
            See `of`.
        per
            What the table must be by; None takes it as it is.

        Raises
        ------
        ConfigError
            If there is no such kind, the table is by something else than `per` (statistics of
            images cannot be pooled afterwards), has too few quantiles, or numbers that are not
            finite.
        """
        kind = kind_of(kind)
        apart = {"z", "label"} & {*table.dims}
        if apart:
            raise ConfigError(
                f"pixels are normalised by image and channel, but these statistics tell "
                f"{sorted(apart)} apart; take pooled() or envelope() of them"
            )
        by = str(table.attrs.get("by", "image"))
        # All images together, that is; channels are told apart in every table.
        by = "channel" if by == "all" else by
        if per not in (None, by):
            raise ConfigError(
                f"statistics by {by!r} cannot be pooled afterwards to such by {per!r}; make the "
                "table by that (by=), or ask a store for it: store.normalization(kind, per=)"
            )
        quantiles = table["quantile"].values.tolist() if "quantile" in table.coords else []
        ends = _low_high(kind, [float(Fraction(str(v)) * 100) for v in quantiles])
        axis = next((name for name in ("image", "group") if name in table.dims), "group")
        table = table if axis in table.dims else table.expand_dims(axis)
        names = ["count", "mean", "std", "min", "max"]
        columns = [table[name].transpose(axis, "channel").values for name in names]
        if ends:
            places = [quantiles.index(pick(quantiles)) for pick in (min, max)]
            percentile = table["percentile"].transpose("quantile", axis, "channel").values
            columns += [percentile[place] for place in places]
        numbers = np.stack([column.astype(np.float64) for column in columns], -1).tolist()
        cells = [[_ends(kind, *cell) for cell in row] for row in numbers]
        groups = ("all",) if by in _POOLED else tuple(table[axis].values.tolist())
        channels = tuple(str(name) for name in table["channel"].values.tolist())
        error = float(table.attrs.get("relative_error", 0.0)) if ends else 0.0
        errors = [
            [
                error if count and least < greatest else 0.0
                for count, _, _, least, greatest, *_ in row
            ]
            for row in numbers
        ]
        _check(kind, groups, channels, cells, errors)
        return cls(
            kind,
            by,
            kind in _CLIPPED,
            channels,
            groups,
            *_tables(cells),
            percentiles=ends,
            over=str(table.attrs.get("over", "image")),
            exact=not error,
        )

    def with_images(
        self, images: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> Normalization:
        """The same, knowing in which group these images are; of no use but with a column.

        Parameters
        ----------
        images
            Ids.
        columns
            Metadata of each.
        """
        if self.per == "image" or self.per in _POOLED:
            return self
        found = dict(self.members)
        place = {value: k for k, value in enumerate(self.groups)}
        for name, row in zip(images, columns, strict=True):
            if (value := _plain(row.get(self.per))) in place:
                found[name] = place[value]
        return replace(self, members=tuple(found.items()))

    def lacks(self, images: Sequence[str], columns: Sequence[Mapping[str, Any]]) -> list[int]:
        """Positions of the images that it has no numbers for: int[k].

        Parameters
        ----------
        images
            Ids.
        columns
            Metadata of each.
        """
        if self.per in _POOLED:
            return []
        known = {*self.groups}
        names = images if self.per == "image" else [_plain(row.get(self.per)) for row in columns]
        return [k for k, name in enumerate(names) if name not in known]

    def joined(self, other: Normalization) -> Normalization:
        """With the groups of another one that it lacks; its own numbers stay as they are."""
        new = [k for k, name in enumerate(other.groups) if name not in {*self.groups}]
        place = {name: k for k, name in enumerate((*self.groups, *(other.groups[k] for k in new)))}
        theirs = [(name, place[other.groups[k]]) for name, k in other.members]
        return replace(
            self,
            groups=tuple(place),
            shift=(*self.shift, *(other.shift[k] for k in new)),
            span=(*self.span, *(other.span[k] for k in new)),
            members=tuple({**dict(theirs), **dict(self.members)}.items()),
            exact=self.exact and (other.exact or not new),
        )

    # -- using it -----------------------------------------------------------------------

    def knows(self, image: str) -> bool:
        """Whether there are numbers for an image."""
        return self.per in _POOLED or image in self._places

    @property
    def constant(self) -> npt.NDArray[np.bool_]:
        """Which channels are constant: bool[group, channel]."""
        flags: npt.NDArray[np.bool_] = self._span == 0
        return flags

    def apply(self, patches: Pixels, image: Any = None) -> npt.NDArray[np.float32]:
        """Scale patches.

        Parameters
        ----------
        patches
            Any numbers ``[n, channels, *space]``; they stay as they are.
        image
            The id of their image, or n of them, one a patch; of no use where all images have the
            same numbers.

        Returns
        -------
        float32``[n, channels, *space]``
            Computed as float64. NaN stays NaN; what no float32 holds becomes an infinity.

        Raises
        ------
        ConfigError
            If there are no numbers for an image, or not for so many channels.
        """
        shift, span = self._of(patches, image)
        out = np.empty(patches.shape, np.float32)
        with np.errstate(all="ignore"):
            for rows, channel in _pieces(patches.shape):
                scaled = patches[rows, channel].astype(np.float64)
                by = span[rows, channel]
                scaled -= shift[rows, channel]
                # A span of 0 stands for a constant.
                scaled /= np.where(by == 0, 1, by)
                if not by.all():
                    lost = ~np.isnan(scaled)
                    np.copyto(scaled, 0, where=np.logical_and(lost, by == 0, out=lost))
                out[rows, channel] = np.clip(scaled, 0, 1, out=scaled) if self.clip else scaled
        return out

    def invert(self, patches: Pixels, image: Any = None) -> Floats:
        """Back to grey levels, except for what was clipped or constant.

        Of a finite x that was not clipped, ``invert(apply(x))`` is off by at most 2^-23 of
        ``|x - shift|``, 2^-149 of ``span`` and 2^-51 of ``|x| + |shift|``: round it, and of
        integers of up to 16 bits it is x. A constant channel becomes its one grey level.

        Parameters
        ----------
        patches
            Floats ``[n, channels, *space]``, for example what a network made of scaled ones; they
            stay as they are.
        image
            As for `apply`.

        Returns
        -------
        float64``[n, channels, *space]``
        """
        shift, span = self._of(patches, image)
        found = patches.astype(np.float64)
        with np.errstate(all="ignore"):
            found *= span
            found += shift
        return found

    def _of(self, patches: Pixels, image: Any) -> tuple[Floats, Floats]:
        """Shift and span of each patch and channel: float64[n, channels, 1, ...]."""
        if patches.ndim < 2 or patches.shape[1] != len(self.channels):
            raise ConfigError(
                f"patches are [n, channels, *space] with {len(self.channels)} channels here, got "
                f"the shape {patches.shape}; normalise them with numbers of their own channels"
            )
        # As objects: NumPy's own text loses what ends in "\0".
        ids = np.asarray(image, object)
        if len(self.groups) == 1 and (image is None or self.per in _POOLED):
            rows = np.zeros(1, np.int64)
        elif image is None:
            raise ConfigError(
                f"numbers per {self.per!r} differ from image to image, got no image; say which "
                "one patches are of: image=, an id or one id a patch"
            )
        else:
            names, place = np.unique(ids.reshape(-1), return_inverse=True)
            rows = np.array([self._group(str(name)) for name in names.tolist()], np.int64)[place]
        if len(rows) not in (1, len(patches)):
            raise ConfigError(
                f"patches are of one image, or each has its own id, got {len(patches)} patches and "
                f"{len(rows)} ids; give one or as many"
            )
        shape = (len(patches), len(self.channels), *(1,) * (patches.ndim - 2))
        shift, span = (
            np.broadcast_to(t[rows], shape[:2]).reshape(shape) for t in (self._shift, self._span)
        )
        return shift, span

    def _group(self, image: str) -> int:
        if (found := self._places.get(image)) is None:
            raise ConfigError(
                f"an image is normalised by numbers of its own or of its group, but there are none "
                f"for {image!r}; there are for {[*self._places][:5]}"
                f"{' and more' if len(self._places) > 5 else ''}"
            )
        return found

    @cached_property
    def _places(self) -> dict[str, int]:
        if self.per == "image":
            return {str(name): k for k, name in enumerate(self.groups)}
        return dict(self.members)

    @cached_property
    def _shift(self) -> Floats:
        return np.array(self.shift, np.float64).reshape(len(self.groups), len(self.channels))

    @cached_property
    def _span(self) -> Floats:
        return np.array(self.span, np.float64).reshape(len(self.groups), len(self.channels))

    # -- keeping it ---------------------------------------------------------------------

    def to_document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "kind": self.kind,
            "per": self.per,
            "clip": self.clip,
            "percentiles": [*self.percentiles],
            "over": self.over,
            "exact": self.exact,
            "channels": [*self.channels],
            "groups": [*self.groups],
            "shift": [[*row] for row in self.shift],
            "span": [[*row] for row in self.span],
            "constant": self.constant.tolist(),
            "members": dict(self.members),
        }

    @classmethod
    def from_document(cls, found: Mapping[str, Any]) -> Normalization:
        """Inverse of `to_document`.

        >>> same = Normalization.from_document({
        ...     "kind": "mean-std", "per": "channel", "clip": False, "percentiles": [],
        ...     "over": "image", "exact": True, "channels": ["0"], "groups": ["all"],
        ...     "shift": [[4.0]], "span": [[2.0]], "constant": [[False]], "members": {}})
        >>> same.apply(np.array([[[6.0, np.nan]]])).tolist()
        [[[1.0, nan]]]
        """
        shift, span = (tuple(tuple(row) for row in found[name]) for name in ("shift", "span"))
        return cls(
            found["kind"],
            found["per"],
            found["clip"],
            tuple(found["channels"]),
            tuple(found["groups"]),
            shift,
            span,
            members=tuple(found["members"].items()),
            percentiles=tuple(found["percentiles"]),
            over=found["over"],
            exact=found["exact"],
        )


def kind_of(name: str) -> str:
    """A kind by its name, or by that which CAREamics has for it.

    >>> kind_of("quantile")
    'percentile'

    Raises
    ------
    ConfigError
        If there is none.
    """
    kind = _ALIASES.get(name, name)
    if kind not in NORMALIZATIONS:
        raise ConfigError(f"normalize= is None or one of {list(NORMALIZATIONS)}, got {name!r}")
    return kind


def _low_high(kind: str, q: Sequence[float]) -> tuple[float, ...]:
    """The ends of a kind that goes by percentiles; nothing of others."""
    if kind != "percentile":
        return ()
    if len(q) < 2:
        raise ConfigError(
            f"normalize='percentile' needs a low and a high percentile, got {list(q)}"
        )
    q = check_percentiles(q)
    return min(q), max(q)


def _grouped(
    per: str, images: Sequence[str], columns: Sequence[Mapping[str, Any]]
) -> tuple[tuple[Any, ...], list[int]]:
    """The groups of some images, in order of appearance, and of each image its group."""
    if per == "image":
        if len({*images}) < len(images):
            raise IdentityError(
                f"images have ids of their own, got {[*images][:5]}; open them with ids="
            )
        return tuple(images), [*range(len(images))]
    if per in _POOLED:
        return ("all",), [0] * len(images)
    values = [_plain(row.get(per)) for row in columns]
    if None in values or not values:
        known = sorted({name for row in columns for name in row})
        raise ConfigError(
            f"per= is 'image', 'channel', 'all' or a metadata column that all images have, got "
            f"{per!r}; there are {known}: give it with sample="
        )
    place = {value: k for k, value in enumerate(dict.fromkeys(values))}
    return tuple(place), [place[value] for value in values]


def _plain(value: Any) -> Any:
    """A metadata value as JSON has it; NaN is none."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _cell(kind: str, summary: Summary, ends: tuple[float, ...], method: str) -> tuple[float, float]:
    """Shift and span by the numbers of a summary."""
    between = percentiles_of(summary, ends, method).tolist()
    return _ends(
        kind, summary.count, summary.mean, summary.std, summary.low, summary.high, *between
    )


def _ends(
    kind: str,
    count: float,
    mean: float,
    std: float,
    least: float,
    greatest: float,
    *between: float,
) -> tuple[float, float]:
    """Shift and span; no span of what has no contrast, whatever rounding made of its moments."""
    if kind == "none":
        return 0.0, 1.0
    if not count:
        return 0.0, 0.0
    if least == greatest and math.isfinite(least):
        return least, 0.0
    if kind == "mean-std":
        return mean, std
    low, high = (least, greatest) if kind == "min-max" else between
    return low, high - low


def _check(
    kind: str,
    groups: Sequence[Any],
    channels: Sequence[str],
    cells: Sequence[Sequence[tuple[float, float]]],
    errors: Sequence[Sequence[float]],
) -> None:
    """Refuse numbers that are not finite, or that may be noise of their bound."""
    infinite, vague = [], []
    for group, row, bounds in zip(groups, cells, errors, strict=True):
        for channel, (shift, span), error in zip(channels, row, bounds, strict=True):
            where = f"channel {channel!r} of {group!r}"
            if not math.isfinite(shift) or not math.isfinite(span):
                infinite.append(where)
            elif error and span <= 2 * error * max(abs(shift), abs(shift + span)):
                vague.append(where)
    if infinite:
        raise ConfigError(
            f"normalize={kind!r} needs finite statistics, got none for {_some(infinite)}; are "
            "there infinities? store the source's pixels: normalize=None"
        )
    if vague:
        raise ConfigError(
            f"normalize={kind!r} needs a low and a high percentile that can be told apart, but "
            f"those of {_some(vague)} are known to a part of their own value only, and differ by "
            "less; take exact ones (exact=True), or 'mean-std' or 'min-max', which are exact anyway"
        )


def _some(names: Sequence[str]) -> str:
    return " and ".join(names[:3]) + (" and more" if len(names) > 3 else "")


def _tables(cells: Sequence[Sequence[tuple[float, float]]]) -> tuple[Table, Table]:
    """Shifts and spans apart."""
    shift, span = (tuple(tuple(cell[k] for cell in row) for row in cells) for k in (0, 1))
    return shift, span


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[slice, int]]:
    """Patches by channel, in pieces: a wide copy of all would take more memory than the rest."""
    together = max(1, SCALE // max(1, math.prod(shape[2:])))
    for channel in range(shape[1]):
        for low in range(0, shape[0], together):
            yield slice(low, low + together), channel
