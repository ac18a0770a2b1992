"""ArrayWriter: rows that come in any number at a time, written in whole chunks or shards."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from operator import index as whole
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from patchloom.arrays.hdf5_target import Hdf5Target
from patchloom.arrays.targets import Target, Wanted
from patchloom.arrays.zarr_target import ZarrTarget
from patchloom.errors import ConfigError, StoreError
from patchloom.location import Location

__all__ = ["ArrayWriter"]

_HDF5 = (".h5", ".hdf5", ".hdf")


class ArrayWriter:
    """Writes rows to one Zarr array or HDF5 dataset; a reader sees what is committed.

    Rows wait in memory until there are `batch_size`, which is what one object (a Zarr chunk or
    shard, an HDF5 chunk) holds. `commit` is what makes rows part of the array, all at once: a
    writer that dies before leaves the array as it was committed last. As a context manager it
    commits at the end, and does not after an exception.

    Parameters
    ----------
    element_shape
        Shape of one row.
    dtype
        Of the pixels: a bool, an integer, a float or a complex number.
    batch_size
        Rows of one stored object. With `append` that of the array.
    url
        The container: a Zarr group at any fsspec URL, or an HDF5 file on a local disk.
    array_name
        The array in it; ``/`` makes groups.
    format
        ``"zarr"`` or ``"hdf5"``; by default what the suffix of `url` says, else Zarr.
    length
        Rows that there will be at most, if known; an HDF5 dataset is made so that it cannot grow
        beyond. More are refused before one of them is taken.
    append
        Go on with an array that stands there; else that is an error. What does not stand there
        is made in any case.
    chunk
        Rows of a Zarr array that are decoded together, of which `batch_size` make a shard; by
        default all, and no shards.
    zarr_format
        3 or 2.
    kwargs
        For `zarr.create_array` or h5py's ``create_dataset``: compression and attributes of a new
        array.
    storage_options
        For fsspec.

    Raises
    ------
    ConfigError
        If an argument is none of these, or h5py is missing.
    ExistsError
        If something stands there already.
    StoreError
        If rows cannot be appended to it.

    Examples
    --------
    >>> with ArrayWriter((2,), "uint8", 3, "memory://rows.zarr", "images") as writer:
    ...     writer.write(np.zeros((4, 2), "uint8"))
    ...     writer.n_rows, writer.n_committed
    (4, 0)
    >>> import zarr
    >>> zarr.open_array("memory://rows.zarr/images").shape
    (4, 2)
    """

    def __init__(
        self,
        element_shape: Sequence[int],
        dtype: npt.DTypeLike,
        batch_size: int,
        url: str | os.PathLike[str],
        array_name: str = "data",
        *,
        format: str | None = None,
        length: int | None = None,
        append: bool = False,
        chunk: int | None = None,
        zarr_format: int = 3,
        kwargs: Mapping[str, Any] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        location = Location.of(url, storage_options)
        kind = _kind(format, location)
        wanted = Wanted(
            name=_name(array_name),
            element_shape=tuple(_count("element_shape", n) for n in element_shape),
            dtype=_number(dtype),
            unit=_count("batch_size", batch_size),
            chunk=_count("chunk", batch_size if chunk is None else chunk),
            length=None if length is None else _count("length", length),
            append=append,
            options=dict(kwargs or {}),
        )
        if wanted.unit % wanted.chunk or (wanted.unit != wanted.chunk and kind == "hdf5"):
            raise ConfigError(
                "a Zarr shard holds whole chunks, and HDF5 has no shards, got "
                f"batch_size={wanted.unit} and chunk={wanted.chunk} for {kind}"
            )
        if zarr_format not in (2, 3) or (zarr_format == 2 and wanted.unit != wanted.chunk):
            raise ConfigError(
                "zarr_format= is 3, or 2, which has no shards, got "
                f"{zarr_format} with batch_size={wanted.unit} and chunk={wanted.chunk}"
            )
        self._target: Target = (
            ZarrTarget(location, wanted, zarr_format)
            if kind == "zarr"
            else Hdf5Target(location, wanted)
        )
        self._wanted, self._shown = wanted, location.shown
        self._closed = False
        self._changed = not self._target.n_committed
        committed = self._target.n_committed
        if wanted.length is not None and committed > wanted.length:
            raise ConfigError(f"length= is {wanted.length}, but {committed} rows are there already")
        self._start = committed - committed % wanted.unit
        self._waiting = committed - self._start
        self._buffer = np.empty((wanted.unit, *wanted.element_shape), wanted.dtype)
        if self._waiting:
            # The last object is written again as a whole, with what it holds now.
            self._buffer[: self._waiting] = self._target.tail(self._start)

    @property
    def n_rows(self) -> int:
        """Rows that were taken, with those that were there before."""
        return self._start + self._waiting

    @property
    def n_committed(self) -> int:
        """Rows that a reader sees."""
        return self._target.n_committed

    def write(self, data: npt.ArrayLike) -> None:
        """Take rows, and store the objects that they fill.

        Parameters
        ----------
        data
            ``[n, *element_shape]`` of the array's dtype, any n.

        Raises
        ------
        StoreError
            If the writer is closed, or there would be more than `length`; none is taken.
        ConfigError
            If shape or dtype are not the array's; none is taken.
        WriteError
            If an object cannot be written. `n_rows` says how many were taken: go on after them.
        """
        self._check_open()
        rows = np.asarray(data)
        wanted = self._wanted
        if rows.shape[1:] != wanted.element_shape or not rows.ndim:
            raise ConfigError(
                f"rows have the shape (n, {', '.join(map(str, wanted.element_shape))}), got "
                f"{rows.shape}; give one row as row[None]"
            )
        if rows.dtype.newbyteorder("=") != wanted.dtype:
            raise ConfigError(
                f"rows are stored as they are, got {rows.dtype} for an array of {wanted.dtype}; "
                f"say how they are rounded, with .astype({wanted.dtype.name!r})"
            )
        if wanted.length is not None and self.n_rows + len(rows) > wanted.length:
            raise StoreError(
                f"length={wanted.length} is the most that there will be, got {len(rows)} more "
                f"rows after {self.n_rows}; none of them was taken"
            )
        at = 0
        while at < len(rows):
            self._put_whole()
            n = min(wanted.unit - self._waiting, len(rows) - at)
            self._buffer[self._waiting : self._waiting + n] = rows[at : at + n]
            self._waiting += n
            self._changed = True
            at += n
        self._put_whole()

    def _put_whole(self) -> None:
        if self._waiting == self._wanted.unit:
            self._target.put(self._start, self._buffer)
            self._start += self._waiting
            self._waiting = 0

    def flush(self) -> None:
        """Store the rows that wait, too, as the beginning of an object; no reader sees them yet.

        The object is written again when there are more: seldom is better.
        """
        self._check_open()
        self._put_whole()
        if self._waiting and self._changed:
            self._target.put(self._start, self._buffer[: self._waiting])

    def commit(self) -> None:
        """Store all rows and make them part of the array.

        Of Zarr it costs one small object more than `flush`; of HDF5 a copy of the file is made
        when the next row after it is stored.

        Raises
        ------
        StoreError
            If another writer has changed the array.
        """
        self.flush()
        if self._changed:
            self._target.commit(self.n_rows)
            self._changed = False

    def close(self) -> None:
        """Forget the rows that are not committed; the writer takes no more."""
        if not self._closed:
            self._closed = True
            self._target.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(
                f"a closed writer takes no rows, and that of {self._wanted.name!r} in "
                f"{self._shown!r} is; open another one with append=True"
            )

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and not self._closed:
                self.commit()
        finally:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.n_rows - self.n_committed:,} not committed"
        return (
            f"<ArrayWriter {self._wanted.name!r} in {self._shown!r} {self.n_rows:,} rows, {state}>"
        )


def _kind(given: str | None, location: Location) -> str:
    suffix = PurePosixPath(location.shown).suffix.lower()
    kind = given if given is not None else "hdf5" if suffix in _HDF5 else suffix.lstrip(".")
    if kind == "bcolz":
        raise ConfigError(
            "bcolz is not maintained since 2018 and does not build on a Python of today; take "
            "format='zarr', whose arrays are chunked, compressed and appended to as its were"
        )
    if given is not None and given not in ("zarr", "hdf5"):
        raise ConfigError(f"format= is 'zarr' or 'hdf5', got {given!r}")
    return kind if kind == "hdf5" else "zarr"


def _name(given: str) -> str:
    parts = given.strip("/").split("/") if isinstance(given, str) else [""]
    if any(part in ("", ".", "..") or part.startswith("__") or "\\" in part for part in parts):
        raise ConfigError(f"array_name= is a name, or names with '/' between them, got {given!r}")
    return "/".join(parts)


def _count(name: str, given: Any) -> int:
    try:
        n = whole(given)
    except TypeError:
        n = 0
    if n < 1 or isinstance(given, bool):
        raise ConfigError(f"{name}= is a whole number of at least 1, got {given!r}")
    return n


def _number(given: npt.DTypeLike) -> np.dtype[Any]:
    try:
        dtype = np.dtype(given)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "biufc":
        raise ConfigError(f"rows are numbers or bools, got dtype {given!r}")
    return dtype.newbyteorder("=")
