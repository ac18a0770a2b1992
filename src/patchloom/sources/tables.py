"""Tables of columns: in memory, in CSV and Parquet files, and in AnnData's Zarr layout."""

from __future__ import annotations

import gzip
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.arrow_files import arrow_file
from patchloom.errors import ConfigError, NotAnArrayError, SourceError, SourceMissingError
from patchloom.location import Location
from patchloom.retrying import RETRYING
from patchloom.sources.arrays import is_array
from patchloom.sources.chunks import ZarrReader
from patchloom.sources.inside import split_inside
from patchloom.sources.zarrs import Node, open_node

__all__ = ["Table", "is_text", "located", "open_table", "parquet_table", "stored_frame"]

_TEXT_LIMIT = 2**31 - 1
"""Bytes of text that 32-bit offsets reach."""
_FORMATS = ".csv, .tsv (also .gz), .parquet, .npy and AnnData's Zarr layout"
_UNNAMED = re.compile(r"__index_level_\d+__|__null_dask_index__")
"""Where pandas and Dask put an index without a name into Parquet."""
_ARROW_ERRORS = (pa.ArrowException, TypeError, ValueError, NotImplementedError, OverflowError)


@dataclass(frozen=True)
class Table:
    """Columns by name, read when they are asked for."""

    what: str
    """What errors call it."""
    names: tuple[str, ...]
    fetch: Callable[[Sequence[str]], Mapping[str, Any]]
    """Names -> a pyarrow.ChunkedArray each; those that Arrow cannot hold are left out."""
    places: Table | npt.NDArray[Any] | None = None
    """Where positions are, if not among the columns: another table, or [n, k] without names."""
    keys: tuple[str, ...] = ()
    """The keys of AnnData's obsm."""
    unit: Literal["physical"] | None = None
    """What positions are counted in, where the table tells it."""

    def read(self, names: Sequence[str]) -> dict[str, Any]:
        """Columns of text, numbers and flags, in one Arrow type each; others are left out."""
        found = self.fetch(names)
        return {n: _as_plain(values) for n, values in found.items() if _is_plain(values.type)}


# --- What kind of table it is ---------------------------------------------------------------


def open_table(
    table: Any, positions: str | None, image: str | None, options: Mapping[str, Any] | None
) -> Table:
    """Whatever `read_points` takes, as a table; its columns are read later.

    Parameters
    ----------
    table, positions
        As in `read_points`.
    image
        The column whose values stay as they are written, where text is told from numbers.
    options
        For fsspec.
    """
    if isinstance(table, str | os.PathLike):
        return _open_location(located(table, options), positions, image)
    if hasattr(table, "obsm") and hasattr(table, "obs"):
        return _anndata(table, positions)
    if positions is not None:
        raise ConfigError(
            f"positions= names a key of AnnData's obsm, got {positions!r} for "
            f"{type(table).__name__}; name the columns: axes={{'y': ..., 'x': ...}}"
        )
    if type(table).__module__.startswith("dask.") and hasattr(table, "columns"):
        table = table.compute()
    if _is_frame(table):
        return _frame(table, "the DataFrame")
    if isinstance(table, pa.Table):
        return _arrow(table, "the table")
    if isinstance(table, Mapping):
        return _mapping(table)
    if hasattr(table, "__arrow_c_stream__"):
        return _arrow(pa.table(table), "the table")
    if hasattr(table, "tables") and hasattr(table, "images"):
        raise ConfigError(
            f"read_points takes one table, got a {type(table).__name__}; pass one of its tables: "
            f"{[f'.tables[{key!r}]' for key in table.tables]}"
        )
    if is_array(table) or isinstance(table, Sequence):
        return _matrix(table, "the array")
    raise ConfigError(
        "points come from a DataFrame, a pyarrow Table, a mapping of columns, an array, an AnnData "
        f"object, a path or a URL, got {type(table).__name__}; turn it into one of these"
    )


def located(table: str | os.PathLike[str], options: Mapping[str, Any] | None) -> Location:
    """Where a table is, in a container or not."""
    url, inside = split_inside(os.fspath(table))
    location = Location.of(url, options)
    return location / inside if inside else location


def _is_frame(table: Any) -> bool:
    # By name: pandas is not needed to read points.
    return any(
        kind.__name__ == "DataFrame" and kind.__module__.split(".")[0] == "pandas"
        for kind in type(table).__mro__
    )


def _arrow(table: Any, what: str) -> Table:
    # By position: a name that stands twice is refused later.
    names = tuple(table.column_names)
    return Table(what, names, lambda wanted: {n: table.column(names.index(n)) for n in wanted})


def _frame(frame: Any, what: str) -> Table:
    """A DataFrame; the named levels of its index are columns too."""
    index = frame.index
    levels = {
        str(name): index.get_level_values(k).to_series()
        for k, name in enumerate(index.names)
        if name is not None and name not in frame.columns
    }
    names = tuple(str(name) for name in frame.columns)

    def fetch(wanted: Sequence[str]) -> dict[str, Any]:
        return _converted(
            {n: levels[n] if n in levels else frame.iloc[:, names.index(n)] for n in wanted}
        )

    return Table(what, (*levels, *names), fetch)


def _mapping(table: Mapping[Any, Any]) -> Table:
    columns = {str(name): values for name, values in table.items()}
    return Table(
        "the mapping", tuple(columns), lambda wanted: _converted({n: columns[n] for n in wanted})
    )


def _matrix(values: Any, what: str) -> Table:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise SourceError(
            f"positions are numbers [n, ndim], got rows of unlike lengths in {what}: {error}"
        ) from None
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise SourceError(
            f"positions without names are real numbers [n, ndim], got {array.dtype}"
            f"{list(array.shape)} in {what}; give one row a point"
        )
    return Table(what, (), lambda wanted: {}, array)


def _anndata(table: Any, positions: str | None) -> Table:
    obs = _frame(table.obs, "obs of the AnnData")
    keys = tuple(str(key) for key in table.obsm)
    if positions is None:
        return Table(obs.what, obs.names, obs.fetch, keys=keys)
    if positions not in keys:
        raise _no_such_key(positions, keys)
    values = table.obsm[positions]
    what = f"obsm[{positions!r}]"
    if _is_frame(values):
        return Table(obs.what, obs.names, obs.fetch, _frame(values, what), keys)
    return Table(obs.what, obs.names, obs.fetch, _matrix(values, what).places, keys)


def _no_such_key(positions: str, keys: Sequence[str]) -> SourceError:
    return SourceError(f"positions= names a key of obsm, got {positions!r}; there are {list(keys)}")


# --- Stored tables --------------------------------------------------------------------------


def _open_location(location: Location, positions: str | None, image: str | None) -> Table:
    path = PurePosixPath(location.shown.lower())
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix in (".h5ad", ".h5", ".hdf5"):
        raise SourceError(
            f"points are read from {_FORMATS}; HDF5 is not, got {location.shown!r}; open it with "
            "anndata and pass the object, or convert it: anndata.read_h5ad(...).write_zarr(...)"
        )
    if suffix in (".csv", ".tsv", ".parquet", ".pq", ".npy"):
        if positions is not None:
            raise ConfigError(
                f"positions= names a key of AnnData's obsm, got {positions!r} for "
                f"{location.shown!r}; name the columns: axes={{'y': ..., 'x': ...}}"
            )
        if suffix in (".parquet", ".pq"):
            return parquet_table(location, image)
        data = _bytes(location)
        if suffix == ".npy":
            return _npy(location, data)
        return _csv(location, data, "\t" if suffix == ".tsv" else ",", image)
    return _zarr(location, positions)


def _bytes(location: Location) -> bytes:
    try:
        data = location.read()
        if data is not None and location.shown.lower().endswith(".gz"):
            data = gzip.decompress(data)
    except SourceError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise _unreadable(location, error) from error
    if data is None:
        raise SourceMissingError(
            f"a table must exist and be readable, but no file was found at "
            f"{location.shown!r}; check the path, the credentials and the bucket"
        )
    return data


def _unreadable(location: Location, error: BaseException) -> SourceError:
    if isinstance(error, OSError) and not isinstance(error, pa.ArrowException):
        return SourceMissingError(
            f"a table must exist and be readable, but {location.shown!r} is not: "
            f"{location.describe(error)}; check the path, the credentials and the network"
        )
    return SourceError(
        f"{location.shown!r} is not what its name says it is: {location.describe(error)}; write "
        f"it again (points are read from {_FORMATS})"
    )


def _npy(location: Location, data: bytes) -> Table:
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise SourceError(
            f"an array of points holds numbers and no Python objects, but {location.shown!r} "
            f"cannot be read: {location.describe(error)}; save it with a number type"
        ) from None
    return _matrix(values, repr(location.shown))


def _csv(location: Location, data: bytes, delimiter: str, image: str | None) -> Table:
    from pyarrow import csv

    # An id stays as it is written: 007 is no 7.
    text = {} if image is None else {image: pa.string()}
    try:
        table = csv.read_csv(
            arrow_file(data),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=text),
        )
    except pa.ArrowException as error:
        raise _unreadable(location, error) from None
    return _arrow(table, repr(location.shown))


def parquet_table(location: Location, image: str | None) -> Table:
    """A Parquet file, or a folder of them; the column `image` of folders stays as it is written."""
    import pyarrow.dataset as ds

    fs, path = location.open()

    def opened(partitioning: Any) -> Any:
        return ds.dataset(path, filesystem=fs, format="parquet", partitioning=partitioning)

    try:
        data = RETRYING.call(lambda: opened("hive"))
        parts = getattr(data.partitioning, "schema", None)
        if image is not None and parts is not None and image in parts.names:
            # Folders image=007/: an id stays as it is written.
            index = parts.get_field_index(image)
            schema = parts.set(index, pa.field(image, pa.string()))
            data = opened(ds.partitioning(schema, flavor="hive"))
        schema = data.schema
    except Exception as error:  # each file system has errors of its own
        raise _unreadable(location, error) from error

    def read(wanted: Sequence[str]) -> dict[str, Any]:
        names = [name for name in wanted if _is_plain(schema.field(name).type)]
        try:
            table = RETRYING.call(lambda: _columns(data, names))
        except Exception as error:
            raise _unreadable(location, error) from error
        return {name: table.column(name) for name in names}

    names = tuple(name for name in schema.names if not _UNNAMED.fullmatch(name))
    return Table(repr(location.shown), names, read)


def _columns(data: Any, names: Sequence[str]) -> Any:
    """Columns of a data set; no thread of Arrow takes files of Python (see `arrow_file`)."""
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq
    from pyarrow import fs

    if not isinstance(data.filesystem, fs.PyFileSystem):
        return data.to_table(columns=names)
    fields = [data.schema.field(name) for name in names]
    parts = [pa.schema(fields).empty_table()]
    for fragment in data.get_fragments():
        keys = ds.get_partition_keys(fragment.partition_expression)
        with data.filesystem.open_input_file(fragment.path) as source:
            # Neither ahead nor on many threads: all of it is read by this one.
            file = pq.ParquetFile(source, pre_buffer=False)
            stored = [n for n in names if n in file.schema_arrow.names]
            found = file.read(columns=stored, use_threads=False)
        n = found.num_rows
        columns = [
            found.column(field.name).cast(field.type)
            if field.name in stored
            else pa.repeat(pa.scalar(keys.get(field.name), field.type), n)
            for field in fields
        ]
        parts.append(pa.table(columns, pa.schema(fields)))
    return pa.concat_tables(parts)


def _zarr(location: Location, positions: str | None) -> Table:
    try:
        node = open_node(location)
    except NotAnArrayError as error:
        raise SourceError(
            f"points are read from {_FORMATS}, got {location.shown!r}: {error}"
        ) from None
    if node.array is not None:
        if positions is not None:
            raise ConfigError(
                f"positions= names a key of AnnData's obsm, got {positions!r} for the array "
                f"{location.shown!r}"
            )
        return _matrix(_values(node), repr(location.shown))
    kind = node.attributes.get("encoding-type")
    if kind == "dataframe" and positions is None:
        return stored_frame(node)
    if kind != "anndata":
        raise SourceError(
            f"a Zarr group with points has AnnData's layout (encoding-type 'anndata'), got "
            f"{kind!r} in {location.shown!r}; of a SpatialData store, name a table: "
            f"{location.shown}/tables/NAME"
        )
    obs = stored_frame(open_node(location / "obs"))
    if positions is None:
        return Table(obs.what, obs.names, obs.fetch, keys=_children(location / "obsm"))
    try:
        places = open_node(location / "obsm" / positions)
    except (SourceMissingError, NotAnArrayError):
        raise _no_such_key(positions, _children(location / "obsm")) from None
    if places.array is not None or places.attributes.get("encoding-type") != "dataframe":
        matrix = _matrix(_values(places), repr(places.location.shown)).places
        return Table(obs.what, obs.names, obs.fetch, matrix)
    return Table(obs.what, obs.names, obs.fetch, stored_frame(places))


def _children(location: Location) -> tuple[str, ...]:
    """What stands in a folder, for an error; empty where it cannot be listed."""
    try:
        fs, path = location.open()
        found = {PurePosixPath(str(p).rstrip("/")).name for p in fs.ls(path, detail=False)}
    except Exception:  # it only helps to say what there is
        return ()
    return tuple(sorted(n for n in found if not n.startswith(".") and n != "zarr.json"))


def stored_frame(node: Node) -> Table:
    """AnnData's dataframe: one node a column, in the order of an attribute."""
    shown = node.location.shown
    if node.attributes.get("encoding-type") != "dataframe":
        raise SourceError(
            f"a table in AnnData's layout has encoding-type 'dataframe', got "
            f"{node.attributes.get('encoding-type')!r} in {shown!r}; write it again with anndata"
        )
    names = [str(name) for name in node.attributes.get("column-order", ())]
    index = str(node.attributes.get("_index", "_index"))
    if index != "_index":  # a named index is a column, as in pandas
        names.insert(0, index)

    def read(wanted: Sequence[str]) -> dict[str, Any]:
        found = {name: _stored_column(open_node(node.location / name)) for name in wanted}
        return {name: values for name, values in found.items() if values is not None}

    return Table(repr(shown), tuple(names), read)


def _stored_column(node: Node) -> Any | None:
    """A column as AnnData stores it; None if it is of a kind that points do not carry."""
    kind = node.attributes.get("encoding-type")
    if node.array is not None:
        if "categories" in node.attributes:
            raise SourceError(
                f"{node.location.shown!r} is a categorical column of an AnnData before 0.8; read "
                "it with anndata and write it again"
            )
        return _converted({"": _values(node)}).get("")
    if kind == "categorical":
        codes = _values(open_node(node.location / "codes"))
        values = _values(open_node(node.location / "categories"))
        categories = _converted({"": values})[""].combine_chunks()
        if len(codes) and codes.max() >= len(categories):
            raise SourceError(
                f"codes of a categorical column count its {len(categories)} categories, got "
                f"{codes.max()} in {node.location.shown!r}; write it again"
            )
        indices = pa.array(codes.astype(np.int64), mask=codes < 0)
        return pa.chunked_array([pa.DictionaryArray.from_arrays(indices, categories)])
    if kind in ("nullable-integer", "nullable-boolean", "nullable-string-array"):
        values = _values(open_node(node.location / "values"))
        missing = _values(open_node(node.location / "mask"))
        plain = values.astype(object) if values.dtype.kind in "TO" else values
        return pa.chunked_array([pa.array(plain, mask=missing)])
    return None


def _values(node: Node) -> npt.NDArray[Any]:
    if node.array is None:
        raise SourceError(
            f"an array of AnnData's layout was expected at {node.location.shown!r}, got a group "
            f"({node.attributes.get('encoding-type')!r}); store it as a dense array"
        )
    parsed = node.array.parsed()
    shape = tuple(parsed.shape)
    if 0 in shape:
        return np.empty(shape, parsed.dtype.to_native_dtype())
    reader = ZarrReader(node.location, parsed, shape)
    values: npt.NDArray[Any] = reader.read(np.zeros((1, len(shape)), np.int64))[0]
    return values


# --- Columns --------------------------------------------------------------------------------


def _converted(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Columns as Arrow holds them, NaN as missing; those that it cannot hold are left out."""
    found = {}
    for name, values in columns.items():
        kind = None
        if isinstance(values, np.ndarray) and values.dtype.kind == "T":
            values, kind = values.astype(object), pa.string()
        try:
            array = pa.array(values, kind, from_pandas=True)
            found[name] = array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])
        except _ARROW_ERRORS:
            continue
    return found


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is text, in whatever layout."""
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()
    )


def _is_plain(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    moment = pa.types.is_temporal(kind) and not pa.types.is_duration(kind)
    flag = pa.types.is_boolean(kind) or pa.types.is_null(kind)  # missing throughout
    return bool(number or moment or flag or is_text(kind))


def _as_plain(values: Any) -> Any:
    kind = values.type
    if pa.types.is_dictionary(kind):
        if is_text(kind.value_type):
            return values.cast(pa.dictionary(pa.int32(), pa.string())).unify_dictionaries()
        return _as_plain(values.cast(kind.value_type))
    if pa.types.is_null(kind) or pa.types.is_temporal(kind):
        return values.cast(pa.string())
    if is_text(kind) and values.nbytes < _TEXT_LIMIT:
        return values.cast(pa.string())
    return values
