"""read_points: tables of places from memory, CSV, Parquet, .npy and AnnData's Zarr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from patchloom.errors import AxesError, ConfigError, SourceError
from patchloom.points import Points
from patchloom.sources.elements import open_element
from patchloom.sources.tables import Table, is_text, open_table

__all__ = ["read_points"]

_SPATIAL = "zyx"

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def read_points(
    table: Any,
    *,
    image: str | None = None,
    axes: str | Mapping[str, str | int] | None = None,
    columns: Sequence[str] | None = None,
    sample: str | None = None,
    positions: str | None = None,
    unit: Literal["pixel", "physical"] = "pixel",
    drop_missing: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Points:
    """Read a table of places in images.

    Parameters
    ----------
    table
        A pandas DataFrame, a pyarrow Table (or whatever speaks Arrow's stream protocol), a
        mapping from names to columns, an array of numbers [n, ndim], an AnnData object, or a
        path or URL (any fsspec protocol) of a ``.csv``, ``.tsv`` (also ``.gz``), ``.parquet``
        (a file or a folder of them) or ``.npy`` file, or of an AnnData or an array in Zarr. Of a
        SpatialData object, the table: ``sdata.tables["table"]``; stored, an element:
        ``x.zarr::tables/NAME``, ``x.zarr::points/NAME`` or ``x.zarr::shapes/NAME``.
    image
        The column with image ids, text or integers; by default all points lie in one image.
    axes
        Which column is which axis. A mapping from z, y, x to a column's name, or its number
        where it has none; or one letter a column. By default the columns named z, y and x;
        positions without names (arrays, `positions`) need it.
    columns
        Metadata columns to carry along; by default all with text, numbers or flags that are not
        used otherwise. Dates and times become text; other types (lists, bytes, ...) are left
        out by default, and refused by name.
    sample
        The column with the flat sample of the image (time, or the planes of ``sample="z"``).
    positions
        AnnData only: the key of ``obsm`` that holds the positions, for example ``"spatial"``; by
        default they are columns of ``obs``.
    unit
        ``"pixel"``: of the opened level, where pixel k's centre is at k. ``"physical"``: the
        unit of the image's metadata, turned into pixels by `Points.in_pixels`. Elements of
        SpatialData tell it themselves: they are physical.
    drop_missing
        Leave out points whose position is missing or not finite, or whose image or sample is
        missing; by default they are an error.
    storage_options
        For fsspec, for example credentials; never shown or saved.

    Returns
    -------
    Points
        In the table's order.

    Raises
    ------
    SourceMissingError
        If nothing readable is there.
    AxesError
        If the columns of the positions are not known.
    SourceError
        If columns are missing, have no value where one is needed, or are of the wrong type.
    ConfigError
        If an argument is.

    Examples
    --------
    >>> cells = {"y": [10.2, 40], "x": [7, 30.5], "slide": [1, 2], "kind": ["T", "B"]}
    >>> points = read_points(cells, image="slide")
    >>> points
    Points(2 in 2 images, axes 'yx' in pixel units, columns ['kind'])
    >>> points.images, points.image.tolist(), points.position.tolist()
    (('1', '2'), [0, 1], [[10.2, 7.0], [40.0, 30.5]])
    """
    if unit not in ("pixel", "physical"):
        raise ConfigError(f"unit= is 'pixel' or 'physical', got {unit!r}")
    found = open_element(table, positions, axes, image, storage_options)
    found = found or open_table(table, positions, image, storage_options)
    _check_names(found)
    letters, where = _find_axes(found, axes)
    inside = [] if found.places is not None else [str(name) for name in where]
    named = [name for name in (image, sample) if name is not None]
    carried = _carried(columns, found, {*named, *inside})
    _require(found, [*named, *carried])
    data = found.read(list(dict.fromkeys([*named, *inside, *carried])))
    if columns is None:
        carried = [name for name in carried if name in data]
    _check_usable(data, [*named, *carried], found.what)
    position = _positions(found, data, where)
    _check_lengths(data, len(position), found.what)
    ids = None if image is None else _ids(data[image], image, found.what)
    samples = None if sample is None else _numbers(data, sample, found.what)
    lacks = {"a finite position": ~np.logical_and.reduce(np.isfinite(position), axis=1)}
    if ids is not None:
        lacks[f"an image id in {image!r}"] = ids.is_null().to_numpy()
    if samples is not None:
        lacks[f"a sample in {sample!r}"] = ~np.isfinite(samples)
    keep = _kept(lacks, found.what, drop_missing)
    codes, images = (None, ()) if ids is None else _coded(ids.filter(pa.array(keep)))
    carry = pa.table({name: data[name] for name in carried})
    points = Points(
        position=position[keep],
        axes=letters,
        columns=carry.filter(pa.array(keep)).combine_chunks() if carried else carry,
        image=codes,
        images=images,
        sample=None if samples is None else _counted(samples[keep], sample, found.what),
        unit=found.unit or unit,
    )
    for array in (points.position, points.image, points.sample):
        if array is not None:
            array.flags.writeable = False
    return points


# --- Columns --------------------------------------------------------------------------------


def _positions(table: Table, columns: Mapping[str, Any], where: Sequence[str | int]) -> Floats:
    """float64[n, ndim], in the order of `where`."""
    places = table.places
    if isinstance(places, np.ndarray):
        return np.asarray(places, np.float64)[:, [int(k) for k in where]]
    names = [str(name) for name in where]
    found, what = columns, table.what
    if places is not None:
        found, what = places.read(names), places.what
    numbers = {name: _numbers(found, name, what) for name in names}
    _check_lengths(numbers, len(numbers[names[-1]]), what)
    return np.stack([numbers[name] for name in names], -1)


def _numbers(columns: Mapping[str, Any], name: str, what: str) -> Floats:
    """A column as float64[n]; NaN where it is missing."""
    values = columns.get(name)
    if values is not None and values.null_count == len(values):
        return np.full(len(values), np.nan)
    kind = None if values is None else values.type
    if values is None or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise SourceError(
            f"positions and samples are numbers, but column {name!r} of {what} is of type "
            f"{kind or 'unknown'}; cast it, or name another one"
        )
    found: Floats = values.cast(pa.float64(), safe=False).to_numpy()
    return found


def _ids(values: Any, name: str, what: str) -> Any:
    """A column of image ids as text; an empty one is missing."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.cast(pa.string())
    elif not (is_text(kind) or pa.types.is_integer(kind)):
        raise SourceError(
            f"image ids are text or integers, but column {name!r} of {what} is {kind}; cast it, "
            "for example .astype('Int64').astype('string')"
        )
    ids = values if is_text(values.type) else values.cast(pa.string())
    empty = pc.fill_null(pc.equal(ids, ""), False).to_numpy()
    # Taken, not chosen: `if_else` of older pyarrow damages the text of sliced columns.
    return ids.take(pa.array(np.arange(len(ids)), mask=empty))


def _coded(ids: Any) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Position of each id among the distinct ones, and these by first appearance."""
    coded = ids.combine_chunks().dictionary_encode()
    return coded.indices.to_numpy().astype(np.int64), tuple(coded.dictionary.to_pylist())


def _counted(values: Floats, name: Any, what: str) -> npt.NDArray[np.int64]:
    wrong = values[~((values >= 0) & (values < 2.0**53) & (values == np.floor(values)))]
    if len(wrong):
        raise SourceError(
            f"a sample is a whole number from 0, got {wrong[0]:g} in column {name!r} of {what}; "
            "number the samples from 0"
        )
    return values.astype(np.int64)


def _kept(lacks: Mapping[str, Flags], what: str, drop_missing: bool) -> Flags:
    for law, lacking in lacks.items():
        if lacking.any() and not drop_missing:
            rows = np.flatnonzero(lacking)
            more = ", ..." if len(rows) > 5 else ""
            raise SourceError(
                f"every point has {law}, but {len(rows):,} of {len(lacking):,} rows of {what} have "
                f"none: rows {', '.join(map(str, rows[:5]))}{more} (counted from 0); mend them, or "
                "leave them out: drop_missing=True"
            )
    keep: Flags = ~np.logical_or.reduce(list(lacks.values()))
    return keep


# --- Names ----------------------------------------------------------------------------------


def _find_axes(
    table: Table, axes: str | Mapping[str, str | int] | None
) -> tuple[str, list[str | int]]:
    """The axes in the order z, y, x, and the column of each."""
    places = table if table.places is None else table.places
    if isinstance(axes, Mapping):
        given: dict[str, str | int] = {str(a).lower(): column for a, column in axes.items()}
    elif isinstance(places, np.ndarray):
        width = places.shape[1]
        if axes is None or len(axes) != width:
            raise AxesError(
                f"positions without names need one letter a column ({width}): "
                f"axes={'zyx'[-width:]!r} if that is their order, got {axes!r}; or take some: "
                "axes={'y': 0, 'x': 1}"
            )
        given = {a: k for k, a in enumerate(axes.lower())}
    elif axes is None:
        given = {a: a for a in _SPATIAL if a in places.names}
    else:
        given = {a: a for a in axes.lower()}
    if (axes is not None and len(given) != len(axes)) or not set(given) <= set(_SPATIAL):
        raise AxesError(f"axes are distinct letters out of 'zyx', got {axes!r}")
    if isinstance(places, np.ndarray):
        wrong = [c for c in given.values() if c not in range(places.shape[1])]
        there = f"columns 0 to {places.shape[1] - 1}"
    else:
        wrong = [c for c in given.values() if str(c) not in places.names]
        there = f"the columns {_some(places.names)}"
    if wrong or "x" not in given:
        keys = f", and positions= may be one of {list(table.keys)}" if table.keys else ""
        what = table.what if isinstance(places, np.ndarray) else places.what
        raise AxesError(
            f"positions are columns for x, y and (in 3-D) z, but {what} has "
            + (f"no {wrong}" if wrong else "none named 'x'")
            + f"; there are {there}{keys}; name them: axes={{'y': ..., 'x': ...}}"
        )
    letters = "".join(a for a in _SPATIAL if a in given)
    return letters, [given[a] for a in letters]


def _carried(columns: Sequence[str] | None, table: Table, used: set[str]) -> list[str]:
    if columns is None:
        return [name for name in table.names if name not in used]
    return [columns] if isinstance(columns, str) else list(dict.fromkeys(map(str, columns)))


def _check_names(table: Table) -> None:
    for part in (table, table.places):
        if isinstance(part, Table) and len(set(part.names)) != len(part.names):
            twice = sorted({name for name in part.names if part.names.count(name) > 1})
            raise SourceError(
                f"a column's name stands once, but {twice} stand several times in {part.what}; "
                "rename them"
            )


def _require(table: Table, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in table.names]
    if missing:
        raise SourceError(
            f"image=, sample= and columns= name columns, but {table.what} has no {missing}; there "
            f"are {_some(table.names)}"
        )


def _check_usable(columns: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    unusable = [name for name in names if name not in columns]
    if unusable:
        raise SourceError(
            f"columns hold text, numbers or flags, but {unusable} of {what} do not; cast them, or "
            "leave them out"
        )


def _check_lengths(columns: Mapping[str, Any], n: int, what: str) -> None:
    wrong = {name: len(values) for name, values in columns.items() if len(values) != n}
    if wrong:
        raise SourceError(
            f"every column has one value a point ({n}), got {wrong} in {what}; repeat or cut them"
        )


def _some(names: Sequence[str]) -> str:
    return repr(list(names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
