"""Hdf5Target: rows of an HDF5 dataset, in a file that a crash could leave unreadable.

So they go into a copy of the file, and a commit puts that in its place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from typing import Any

import numpy.typing as npt

from patchloom.arrays.h5py_module import h5py_module
from patchloom.arrays.targets import Wanted
from patchloom.errors import ConfigError, ExistsError, PatchloomError, StoreError, WriteError
from patchloom.location import Location

__all__ = ["Hdf5Target"]

Pixels = npt.NDArray[Any]


class Hdf5Target:
    """A dataset in an HDF5 file on a local disk.

    Parameters
    ----------
    location
        Of the file, which may hold other things: they stay.
    wanted
        The dataset.
    """

    def __init__(self, location: Location, wanted: Wanted) -> None:
        if not location.is_local:
            raise ConfigError(
                f"an HDF5 file is written on a local disk, got {location.shown!r}; write it there "
                "and upload it, or take format='zarr', which any store can hold"
            )
        self._path, self._wanted = location.open()[1], wanted
        self._part: str | None = None
        self._file: Any = None
        self._state = self._state_now()
        self.n_committed = 0
        self._broken = False
        if self._state is not None:
            try:
                with h5py_module().File(self._path, "r") as file:
                    self._check(file)
            except PatchloomError:
                raise
            except OSError as error:
                raise StoreError(
                    f"rows are appended to an HDF5 file, but {self._path!r} cannot be read as one: "
                    f"{location.describe(error)}"
                ) from None
        else:
            h5py_module()

    def _check(self, file: Any) -> None:
        where = f"{self._wanted.name!r} in {self._path!r}"
        if self._wanted.name not in file:
            return
        found = file[self._wanted.name]
        if not isinstance(found, h5py_module().Dataset) or found.file != file or found.is_virtual:
            raise ExistsError(f"a dataset stands where nothing else does, but {where} is there")
        chunks = found.chunks or found.shape or (1,)
        self._wanted.check(where, found.shape, found.dtype, int(chunks[0]))
        if found.chunks is None or (most := found.maxshape[0]) not in (None, self._wanted.length):
            raise StoreError(
                f"rows are appended to a dataset that can grow, but {where} has room for "
                f"{found.shape[0] if found.chunks is None else most:,} rows; give length= as it "
                "was made, or write another dataset"
            )
        self.n_committed = int(found.shape[0])

    def tail(self, start: int) -> Pixels:
        """The committed rows from one on."""
        with h5py_module().File(self._path, "r") as file:
            found: Pixels = file[self._wanted.name][start : self.n_committed]
            return found

    def put(self, start: int, rows: Pixels) -> None:
        """Write a piece into the copy."""
        dataset = self._opened()
        try:
            dataset.resize(start + len(rows), axis=0)
            dataset[start : start + len(rows)] = rows
        except (OSError, RuntimeError) as error:
            raise self._refused(error) from error

    def commit(self, n: int) -> None:
        """Put the copy in the place of the file."""
        dataset = self._opened()
        self._check_alone()
        assert self._part is not None
        try:
            dataset.resize(n, axis=0)
            self._file.close()
            os.replace(self._part, self._path)
        except (OSError, RuntimeError) as error:
            raise self._refused(error) from error
        self._file = self._part = None
        self._state, self.n_committed = self._state_now(), n

    def close(self) -> None:
        """Remove the copy."""
        # What cannot be written cannot be closed, either: it is given up.
        with contextlib.suppress(OSError, RuntimeError):
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):
            if self._part is not None:
                os.remove(self._part)
        self._file = self._part = None

    def _check_alone(self) -> None:
        if self._state_now() != self._state:
            raise StoreError(
                f"a file has one writer at a time, but {self._path!r} was changed by another one; "
                "open it anew with append=True"
            )

    def _opened(self) -> Any:
        """The dataset in the copy, which is made when it is first needed."""
        wanted = self._wanted
        if self._broken:
            raise StoreError(
                f"rows stay in order, but some after the {self.n_committed:,} committed ones of "
                f"{self._path!r} could not be written; open it anew with append=True and write "
                "them again"
            )
        if self._file is None:
            self._check_alone()
            self._part = f"{self._path}.{uuid.uuid4().hex}.part"
            try:
                os.makedirs(os.path.dirname(self._path), exist_ok=True)
                if self._state is not None:
                    shutil.copyfile(self._path, self._part)
                self._file = h5py_module().File(self._part, "a")
            except OSError as error:
                raise self._refused(error) from error
        if wanted.name not in self._file:
            try:
                self._file.create_dataset(
                    wanted.name,
                    (0, *wanted.element_shape),
                    wanted.dtype,
                    maxshape=(wanted.length, *wanted.element_shape),
                    chunks=(wanted.unit, *wanted.element_shape),
                    **{"compression": "lzf", **wanted.options},
                )
            except (TypeError, ValueError) as error:
                raise ConfigError(f"kwargs= are for create_dataset, which says: {error}") from None
        return self._file[wanted.name]

    def _state_now(self) -> tuple[int, int, int] | None:
        if not os.path.exists(self._path):
            return None
        told = os.stat(self._path)
        return told.st_ino, told.st_mtime_ns, told.st_size

    def _refused(self, error: Exception) -> WriteError:
        self._broken = True
        self.close()
        return WriteError(
            f"rows must be writable, but a copy of {self._path!r} was refused ({error}); free "
            f"space or mend the permission: the {self.n_committed:,} rows that are committed stay"
        )
