"""Statistics: what was counted of each image and channel, by name, as one value that adds."""

from __future__ import annotations

import importlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from patchloom.counted import channels_of, glance
from patchloom.errors import ConfigError, IdentityError, StoreError
from patchloom.location import Location
from patchloom.public_names import PublicNames
from patchloom.summaries import Summary, quantiles
from patchloom.summaries.asked import (
    check_low_high,
    check_method,
    check_percentiles,
    check_pixels,
    quantiles_of,
)
from patchloom.summaries.outlying import FAR, outliers_of
from patchloom.summaries.saved import read_folder, write_folder
from patchloom.summaries.subjects import (
    Cell,
    Subject,
    all_text,
    groups_of,
    provenance,
    readable,
    united,
)
from patchloom.summaries.tabulated import COUNTS, NUMBERS, assembled, exactness, numbers_of

if TYPE_CHECKING:
    import xarray

__all__ = ["Cell", "Statistics", "Subject"]

_PAGE = "patchloom.run.stats_page"


@dataclass(frozen=True, eq=False)
class Statistics(PublicNames):
    """Summaries of images and channels; with planes or labels, of each of these apart.

    ``a + b`` are the statistics of the pixels of both: of other images, or of other pixels of the
    same ones. It is associative and commutative to the last bit. Nothing can tell whether a pixel
    is in both: what is added twice counts twice.

    >>> import numpy as np
    >>> from patchloom.summaries import summarize
    >>> def one(name, values, **columns):
    ...     cells = {Cell(image=0, channel=0): summarize(np.array(values, np.uint8))}
    ...     return Statistics(cells, [Subject(name, metadata=columns)], ["DAPI"])
    >>> both = one("a", [1, 2, 3], stain="HE") + one("b", [9], stain="HE")
    >>> both
    <Statistics of 2 images, 1 channel, over image, each once: 4 pixels>
    >>> both.dataset((50,), by="stain").percentile.values.tolist()
    [[[2.5]]]
    """

    summaries: Mapping[Cell, Summary]
    """What was counted, in the order of the cells; a cell that is not there has no pixel."""
    images: tuple[Subject, ...]
    """In the order of `Cell.image`; with ids of their own."""
    channels: tuple[str, ...]
    """Names, in the order of `Cell.channel`."""
    over: str = "image"
    """Of which pixels: ``"image"`` (all), ``"mask"`` (those under it), ``"patches"``."""
    each: str = "once"
    """``"taken"`` if a pixel counts as often as patches take it."""
    unit: str = "grey level"
    """Of the pixels."""
    versions: tuple[str, ...] = ()
    """Of patchloom, that counted; by default this one."""

    def __post_init__(self) -> None:
        from patchloom import __version__

        object.__setattr__(self, "images", tuple(self.images))
        object.__setattr__(self, "channels", tuple(map(str, self.channels)))
        object.__setattr__(self, "versions", tuple(self.versions) or (__version__,))
        found = {Cell(*key): summary for key, summary in self.summaries.items()}
        self._check(found)
        object.__setattr__(self, "summaries", {cell: found[cell] for cell in sorted(found)})

    def _check(self, cells: Iterable[Cell]) -> None:
        # Each by itself: what goes together is asked where pixels are counted.
        check_pixels(self.over)
        check_pixels("patches", self.each)
        ids = [subject.id for subject in self.images]
        if len(set(ids)) < len(ids) or len(set(self.channels)) < len(self.channels):
            raise IdentityError(
                f"images and channels have names of their own, got {ids[:5]} and "
                f"{list(self.channels)[:5]}; open images with ids="
            )
        cells = list(cells)
        for cell in cells:
            if not (0 <= cell.image < len(ids) and 0 <= cell.channel < len(self.channels)):
                raise ConfigError(
                    f"a summary is of one of {len(ids)} images and one of {len(self.channels)} "
                    f"channels, got {cell}; count channels and images from 0"
                )
        if len({(cell.plane is None, cell.label is None) for cell in cells}) > 1:
            raise ConfigError(
                "planes, and labels, are told apart in all summaries or in none; make two "
                "Statistics"
            )

    @property
    def planes(self) -> tuple[int, ...]:
        """The z-slices that are told apart, ascending; none if they are not."""
        return tuple(sorted({c.plane for c in self.summaries if c.plane is not None}))

    @property
    def labels(self) -> tuple[int, ...]:
        """The values of the labels that are told apart, ascending; none if they are not."""
        return tuple(sorted({c.label for c in self.summaries if c.label is not None}))

    @property
    def count(self) -> int:
        """Pixels that are numbers, of all channels."""
        return sum(summary.count for summary in self.summaries.values())

    def __repr__(self) -> str:
        sizes = {
            "image": len(self.images),
            "channel": len(self.channels),
            "plane": len(self.planes),
            "label": len(self.labels),
        }
        told = [f"{n:,} {name}{'s' * (n != 1)}" for name, n in sizes.items() if n]
        what = ", ".join([*told, f"over {self.over}", f"each {self.each}"])
        return f"<Statistics of {what}: {self.count:,} pixel{'s' * (self.count != 1)}>"

    def _repr_html_(self) -> str:
        names = [subject.id for subject in self.images]
        rows = {
            "images": f"{len(names):,}",
            "channels": f"{len(self.channels):,}",
            "over": self.over if self.each == "once" else f"{self.over}, each {self.each}",
            "pixels of all channels": f"{self.count:,}",
            **({"slices": f"{len(self.planes):,}"} if self.planes else {}),
            **({"labels": f"{len(self.labels):,}"} if self.labels else {}),
        }
        return glance(rows, channels_of(self.summaries, names, self.channels, (1, 50, 99)))

    def to_html(
        self,
        path: str | os.PathLike[str],
        percentiles: Sequence[float] = (1, 99),
        *,
        method: str = "linear",
        by: str | None = "image",
        title: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a page: histograms of each channel with percentiles, numbers, and outliers.

        Parameters
        ----------
        path
            Path or fsspec URL of one HTML file; what stood there is replaced.
        percentiles, method, by
            As for `dataset`; percentiles are also marked on the histograms.
        title
            Its heading.
        storage_options
            For fsspec.

        Raises
        ------
        ConfigError
            As `dataset`.
        WriteError
            If the target refuses.
        """
        # Pages are made upstairs; by its name, so that imports run downhill.
        importlib.import_module(_PAGE).write_stats_page(
            self,
            path,
            percentiles,
            method=method,
            by=by,
            title=title,
            storage_options=storage_options,
        )

    # -- adding ---------------------------------------------------------------------------

    def __add__(self, other: Statistics) -> Statistics:
        if not isinstance(other, Statistics):
            return NotImplemented
        for name in ("channels", "over", "each", "unit"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ConfigError(
                    f"statistics that are added have the same {name}, got {mine!r} and {theirs!r}; "
                    "survey the images anew, in the same way"
                )
        images = united(self.images, other.images)
        place = {subject.id: k for k, subject in enumerate(images)}
        found: dict[Cell, Summary] = {}
        for part in (self, other):
            for cell, summary in part.summaries.items():
                at = cell._replace(image=place[part.images[cell.image].id])
                found[at] = found[at] + summary if at in found else summary
        versions = tuple(sorted({*self.versions, *other.versions}))
        return replace(self, summaries=found, images=images, versions=versions)

    def select(self, *, image: str | Sequence[str]) -> Statistics:
        """The statistics of some images, in the order of `images`.

        Parameters
        ----------
        image
            Id, or several.

        Raises
        ------
        ConfigError
            If there is no such image.
        """
        wanted = {image} if isinstance(image, str) else set(image)
        kept = [k for k, subject in enumerate(self.images) if subject.id in wanted]
        if len(kept) < len(wanted):
            lost = sorted(wanted - {self.images[k].id for k in kept})
            raise ConfigError(
                f"select(image=) takes ids of images, got {lost[:5]}; there are "
                f"{[subject.id for subject in self.images][:5]} and so on"
            )
        place = {k: n for n, k in enumerate(kept)}
        found = {
            cell._replace(image=place[cell.image]): summary
            for cell, summary in self.summaries.items()
            if cell.image in place
        }
        return replace(self, summaries=found, images=tuple(self.images[k] for k in kept))

    # -- reading --------------------------------------------------------------------------

    def dataset(
        self,
        percentiles: Sequence[float] = (1, 99),
        *,
        method: str = "linear",
        by: str | None = "image",
    ) -> xarray.Dataset:
        """The numbers by image or group, channel, and plane and label where these are told apart.

        Parameters
        ----------
        percentiles
            In percent, from 0 to 100.
        method
            How they lie between pixels, as ``numpy.percentile`` calls it.
        by
            ``"image"``; a metadata column: images that are equal in it are one group; None: all
            images are one group, ``"all"``. The pixels of a group are pooled.

        Returns
        -------
        xarray.Dataset
            Dimensions ``image`` (with `by` another: ``group``), ``channel``, ``z`` with planes,
            ``label`` with labels. Variables ``count``, ``nans``, ``nodata`` in pixels; ``mean``,
            ``std``, ``min``, ``max``, ``median``, ``mad`` and ``percentile`` (with ``quantile`` as
            its last dimension: percent / 100) in grey levels, NaN where there is no pixel.
            Attributes ``over``, ``each``, ``method``, ``by``, ``unit``, ``pooling``, ``exact``
            (whether percentiles and medians are those of the pixels themselves; counts, ``mean``,
            ``std``, ``min`` and ``max`` always are), ``relative_error`` (what these are off by at
            most, relative to the value; 0 if exact), ``mad_exact``, and ``provenance`` (JSON:
            versions of patchloom, and id, URI and level of each image).

        Raises
        ------
        ConfigError
            If `percentiles`, `method` or `by` is none of the above.
        """
        q = check_percentiles(percentiles)
        return self._dataset(q, check_method(method), by, planes=True, labels=True)

    def pooled(
        self,
        percentiles: Sequence[float] = (1, 99),
        *,
        method: str = "linear",
        by: str | None = "image",
    ) -> xarray.Dataset:
        """As `dataset`, with the pixels of all planes pooled: percentiles are those of the volume.

        Parameters
        ----------
        percentiles, method, by
            As for `dataset`.

        Returns
        -------
        xarray.Dataset
            As of `dataset`, without ``z``.

        Raises
        ------
        ConfigError
            As `dataset`.
        """
        q = check_percentiles(percentiles)
        return self._dataset(q, check_method(method), by, planes=False, labels=True)

    def envelope(
        self,
        percentiles: Sequence[float] = (1, 99),
        *,
        method: str = "linear",
        by: str | None = "image",
    ) -> xarray.Dataset:
        """As `pooled`, but the least of the planes' low percentiles and the greatest of their high.

        That is what phenocoder scales by: a range that no slice leaves by more than its own share
        of pixels. One odd slice sets it, and it is no percentile of the volume. All other numbers
        are those of `pooled`.

        Parameters
        ----------
        percentiles
            A low and a high one.
        method, by
            As for `dataset`; of a group, over the planes of all its images.

        Returns
        -------
        xarray.Dataset
            As of `pooled`; the attribute ``pooling`` is ``"envelope"``.

        Raises
        ------
        ConfigError
            If planes are not told apart, or there are not two percentiles; else as `dataset`.
        """
        q = check_low_high(percentiles)
        if self.summaries and not self.planes:
            raise ConfigError(
                "an envelope is taken over planes, but these statistics do not tell them apart; "
                "survey with planes=True, or take pooled()"
            )
        found = self._dataset(q, check_method(method), by, planes=False, labels=True)
        _, group = groups_of(self.images, by)
        index = {label: k for k, label in enumerate(self.labels)}
        ends = np.full(found["percentile"].shape, np.nan)
        for cell, summary in self.summaries.items():
            at: tuple[int, ...] = (group[cell.image], cell.channel)
            at += () if cell.label is None else (index[cell.label],)
            low, high = quantiles.percentiles(summary, q, method)
            ends[*at, 0], ends[*at, 1] = np.fmin(ends[*at, 0], low), np.fmax(ends[*at, 1], high)
        found["percentile"].values[...] = ends
        found.attrs |= {"pooling": "envelope", **exactness(self.summaries.values(), q, method)}
        return found

    def _dataset(
        self, q: tuple[float, ...], method: str, by: str | None, *, planes: bool, labels: bool
    ) -> xarray.Dataset:
        names, group = groups_of(self.images, by)
        coords: dict[str, list[Any]] = {
            "image" if by == "image" else "group": names,
            "channel": list(self.channels),
        }
        if planes and self.planes:
            coords["z"] = list(self.planes)
        if labels and self.labels:
            coords["label"] = list(self.labels)
        index = {
            name: {v: k for k, v in enumerate(coords.get(name, ()))} for name in ("z", "label")
        }
        parts: dict[tuple[int, ...], list[Summary]] = {}
        for cell, summary in self.summaries.items():
            at: tuple[int, ...] = (group[cell.image], cell.channel)
            at += (index["z"][cell.plane],) if "z" in coords else ()
            at += (index["label"][cell.label],) if "label" in coords else ()
            parts.setdefault(at, []).append(summary)
        pooled = {at: quantiles.pooled(some, q, method, median=True) for at, some in parts.items()}
        shape = tuple(map(len, coords.values()))
        columns = {
            name: np.zeros(shape, np.int64) if name in COUNTS else np.full(shape, np.nan)
            for name in NUMBERS
        }
        percentile = np.full((*shape, len(q)), np.nan)
        for place, summary in pooled.items():
            for name, number in numbers_of(summary).items():
                columns[name][place] = number
            percentile[place] = quantiles.percentiles(summary, q, method)
        return assembled(
            coords,
            columns,
            percentile,
            quantiles_of(q),
            {
                "over": self.over,
                "each": self.each,
                "method": method,
                "by": "all" if by is None else by,
                "unit": self.unit,
                "pooling": "pooled",
                **exactness(pooled.values(), q, method),
                "provenance": provenance(self.versions, self.images),
            },
        )

    def outliers(
        self, percentiles: Sequence[float] = (1, 99), *, method: str = "linear", far: float = FAR
    ) -> pa.Table:
        """Images whose median or percentiles lie far from those of the rest, channel by channel.

        Far is more than `far` units from the median over the images. A unit is 1.4826 times the
        median absolute deviation of the images from it (Iglewicz and Hoaglin 1993), but at least a
        tenth of the typical standard deviation of the pixels in one image: see
        `patchloom.summaries.outlying`. Of fewer than 5 images none is far.

        Parameters
        ----------
        percentiles, method
            As for `dataset`.
        far
            Units.

        Returns
        -------
        pyarrow.Table
            One row a number that is far off: ``image``, ``channel``, ``number``, ``value``,
            ``typical``, ``z``.

        Raises
        ------
        ConfigError
            As `dataset`.
        """
        q = check_percentiles(percentiles)
        flat = self._dataset(q, check_method(method), "image", planes=False, labels=False)
        return outliers_of(flat, far=far)

    def table(self, percentiles: Sequence[float] = (1, 99), *, method: str = "linear") -> pa.Table:
        """One row a cell, with the columns of phenocoder's ``stats.csv``.

        Every number is of one channel of one slice. So is ``mad``, the median absolute deviation
        from the slice's own median; phenocoder takes it from the median of all channels and slices
        together, which says how far a channel lies from the others and not how far its pixels
        spread.

        Parameters
        ----------
        percentiles
            The low and the high one.
        method
            As for `dataset`.

        Returns
        -------
        pyarrow.Table
            Columns ``sample_id`` (id of the image), ``channel`` (name; what in either is no
            Unicode, as in names of files, is escaped), ``z`` (null where planes are not told
            apart), ``mean``, ``std``, ``percentile_high``, ``percentile_low``, ``median``, ``mad``,
            ``max``, ``min``, and ``label`` where labels are. The schema's
            metadata has, as JSON below ``statistics``, over what they are and how exact.

        Raises
        ------
        ConfigError
            If there are not two percentiles, or as `dataset`.
        """
        q, method = check_low_high(percentiles), check_method(method)
        cells = list(self.summaries)
        numbers = [numbers_of(summary) for summary in self.summaries.values()]
        ends = np.full((len(cells), 2), np.nan)
        for k, summary in enumerate(self.summaries.values()):
            ends[k] = quantiles.percentiles(summary, q, method)

        def column(name: str) -> pa.Array:
            return pa.array([found[name] for found in numbers], pa.float64())

        columns = {
            "sample_id": _texts(self.images[cell.image].id for cell in cells),
            "channel": _texts(self.channels[cell.channel] for cell in cells),
            "z": pa.array([cell.plane for cell in cells], pa.int64()),
            "mean": column("mean"),
            "std": column("std"),
            "percentile_high": pa.array(ends[:, 1]),
            "percentile_low": pa.array(ends[:, 0]),
            **{name: column(name) for name in ("median", "mad", "max", "min")},
        }
        if self.labels:
            columns["label"] = pa.array([cell.label for cell in cells], pa.int64())
        told = {
            **{name: getattr(self, name) for name in ("over", "each", "unit")},
            "method": method,
            "percentiles": q,
            **exactness(self.summaries.values(), q, method),
        }
        return pa.table(columns).replace_schema_metadata({b"statistics": json.dumps(told)})

    # -- keeping --------------------------------------------------------------------------

    def save_csv(
        self,
        url: str | os.PathLike[str],
        percentiles: Sequence[float] = (1, 99),
        *,
        method: str = "linear",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Write `table` as CSV to any fsspec URL.

        Raises
        ------
        ConfigError
            As `table`.
        WriteError
            If it cannot be written.
        """
        body = io.BytesIO()
        csv.write_csv(self.table(percentiles, method=method), body)
        Location.of(url, storage_options).write("", body.getvalue())

    def save(
        self, url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        """Save as ``statistics.json`` and ``summaries.parquet`` in a folder at any fsspec URL.

        Everything that was counted is kept, so that saved statistics add up with others.

        Raises
        ------
        WriteError
            If it cannot be written.
        """
        document = {
            "images": [subject.to_document() for subject in self.images],
            **{name: getattr(self, name) for name in _TOLD},
        }
        write_folder(Location.of(url, storage_options), document, self.summaries)

    @classmethod
    def open(
        cls, url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None
    ) -> Statistics:
        """Open what `save` wrote.

        Raises
        ------
        SourceMissingError
            If nothing is there.
        StoreError
            If it is something else, damaged, or of a newer format.
        """
        place = Location.of(url, storage_options)
        document, summaries = read_folder(place)
        try:
            texts = [document["over"], document["each"], document["unit"]]
            if not all(map(all_text, (texts, document["channels"], document["versions"]))):
                raise ValueError("a name is no text")
            return cls(
                summaries,
                tuple(map(Subject.from_document, document["images"])),
                **{name: document[name] for name in _TOLD},
            )
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise StoreError(
                f"{place.shown!r} does not hold saved statistics, or damaged ones "
                f"({type(error).__name__}: {error}); save them anew"
            ) from error


_TOLD = ("channels", "over", "each", "unit", "versions")
"""Fields that are saved as they are."""


def _texts(names: Iterable[str]) -> pa.Array:
    """Names as text that Arrow holds; a name of a file may be no Unicode."""
    return pa.array([readable(name) for name in names], pa.string())
