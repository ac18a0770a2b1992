"""HDF5 files: the arrays of a store as datasets, and the manifest's columns beside them."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.arrays.h5py_module import h5py_module
from patchloom.store.exports.contents import Contents, Part
from patchloom.store.exports.format import Format, Objects, numbered

__all__ = ["Hdf5Format"]

_OBJECT = re.compile(r"patches-(\d+)\.h5$")


class Hdf5Format(Format):
    """Files ``patches-000000.h5`` ..., or one: datasets (patch, c, [z], y, x), a patch a chunk.

    The columns of the manifest are datasets below ``manifest``. A null is NaN in a column of
    numbers, which are float64 then, and empty in one of texts.
    """

    called: ClassVar[str] = "hdf5"

    one_file: bool = False
    """Whether all rows go into one file, made by one task."""
    compression: Literal["gzip", "lzf", "none"] = "gzip"
    """``"gzip"`` is read everywhere, ``"lzf"`` by h5py alone."""

    def rows(self, asked: int | None, given: int, n_patches: int) -> int:
        """A file each."""
        return max(1, n_patches) if self.one_file else asked or given

    def check(self, contents: Contents) -> None:
        """What makes the files is there."""
        h5py_module()

    def _name(self, part: int) -> str:
        return "patches.h5" if self.one_file else f"patches-{part:06d}.h5"

    def n_objects(self, contents: Contents, part: int) -> int:
        """One."""
        return 1

    def part_of(self, contents: Contents) -> Callable[[str], int | None]:
        """By its number."""
        if self.one_file:
            return {self._name(0): 0}.get
        return numbered(_OBJECT)

    def objects(self, contents: Contents, part: Part) -> Objects:
        """A file, made in a temporary folder: HDF5 writes here and there."""
        with tempfile.TemporaryDirectory(prefix="patchloom-") as folder:
            path = Path(folder) / "part.h5"
            self._write(path, contents, part)
            yield self._name(part.number), path

    def _write(self, path: Path, contents: Contents, part: Part) -> None:
        h5py = h5py_module()
        how: dict[str, Any] = {"track_times": False}
        if self.compression != "none":
            how |= {"compression": self.compression, "shuffle": True}
        # The oldest layout: what other programs read. No dates: the same bytes each time.
        with h5py.File(path, "w", libver="earliest") as file:
            file.attrs["axes"] = str(contents.store["axes"])
            file.attrs["channels"] = json.dumps(list(contents.channels))
            made = {
                held.name: file.create_dataset(
                    held.name,
                    (len(part), *held.patch_shape),
                    held.dtype,
                    chunks=(1, *held.patch_shape),
                    fillvalue=0,
                    **how,
                )
                for held in contents.arrays
            }
            for held in contents.arrays:
                for start, stop in part.steps(held):
                    made[held.name][start:stop] = part.pixels(held.name, start, stop)
            columns = file.create_group("manifest")
            for name in part.table.column_names:
                values = _column(part.table[name])
                if values.dtype.kind == "S":
                    values = values.astype(h5py.string_dtype("utf-8", values.dtype.itemsize))
                columns.create_dataset(name, data=values, track_times=False)


def _column(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column as HDF5 holds it: numbers and flags, or UTF-8 of one length."""
    if pa.types.is_null(column.type):
        return np.full(len(column), b"", "S1")
    if pa.types.is_string(column.type):
        texts = [(text or "").encode() for text in column.to_pylist()]
        return np.array(texts, f"S{max(1, *map(len, texts))}" if texts else "S1")
    if pa.types.is_boolean(column.type) and column.null_count:
        column = column.cast(pa.float64())
    return np.asarray(column.to_numpy())
