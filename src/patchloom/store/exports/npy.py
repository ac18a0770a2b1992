"""A folder of ``.npy`` files with ``patches.csv`` and ``stats.csv``: phenocoder's data sets."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from patchloom.errors import ConfigError
from patchloom.location import Location
from patchloom.store.exports.contents import Contents, Held, Part
from patchloom.store.exports.format import Format, Objects, numbered
from patchloom.store.exports.names import safe_name
from patchloom.store.exports.reading import read_part
from patchloom.store.manifest import RESERVED
from patchloom.store.patch_store import PatchStore

__all__ = ["NpyFormat", "npy_bytes"]

_OBJECT = re.compile(r"(?:[a-z][a-z0-9_]*/)?[^/]+_(\d+)\.npy$")
_OWN = ("", "y", "x", "z", "id", "file", "dataset", "file_path")
"""Columns of ``patches.csv``, or of what its loader makes of it, besides metadata."""


class NpyFormat(Format):
    """Files ``SAMPLE_ID.npy`` [c, y, x] of the images, and of other arrays in folders of theirs.

    ``patches.csv`` has one row a patch: the centre (``y``, ``x``, ``z``), the image in the column
    of `sample_key`, ``id`` (the row of this export), ``file``, ``dataset`` (the folder's name) and
    metadata. ``stats.csv`` has the statistics of the store. A z axis of one pixel is dropped.
    """

    called: ClassVar[str] = "npy"
    last: ClassVar[tuple[str, ...]] = ("patches.csv", "stats.csv")

    sample_key: str = "sample"
    """Column that names the image, as the loader is told."""

    def check(self, contents: Contents) -> None:
        """Names of columns are not taken."""
        metadata = {k for i in contents.store["images"] for k in i.get("metadata", ())}
        taken = sorted(metadata & {*_OWN, self.sample_key} | {self.sample_key} & {*_OWN})
        if taken:
            raise ConfigError(
                f"the columns {[n for n in _OWN if n]} and sample_key= of patches.csv are its own, "
                f"but metadata or sample_key= have {taken}; rename them, or choose another "
                "sample_key="
            )

    def n_objects(self, contents: Contents, part: int) -> int:
        """A file a patch and array."""
        _, first, stop = contents.rows_of(part)
        return (stop - first) * len(contents.arrays)

    def part_of(self, contents: Contents) -> Callable[[str], int | None]:
        """By the row at its end."""
        return numbered(_OBJECT, contents.rows_per_part)

    def columns(self, contents: Contents, part: Part) -> Mapping[str, pa.Array]:
        """The files."""
        return {"file": pa.array(_files(part), pa.string())}

    def objects(self, contents: Contents, part: Part) -> Objects:
        """One file after another."""
        files = _files(part)
        for k, patch in part.patches(*contents.arrays):
            for held in contents.arrays:
                name = files[k] if held.name == "images" else f"{held.name}/{files[k]}"
                yield name, npy_bytes(_flat(patch[held.name], held))

    def closing(
        self, contents: Contents, target: Location, store: PatchStore
    ) -> Iterator[tuple[str, bytes]]:
        """The two tables."""
        names = [f"manifest/{k:08d}.parquet" for k in range(contents.n_parts)]
        with ThreadPoolExecutor(8) as pool:
            tables = list(pool.map(lambda name: read_part(target, name), names))
        yield (
            "patches.csv",
            self._patches(contents, pa.concat_tables(tables, promote_options="permissive")),
        )
        yield "stats.csv", _stats(contents, store)

    def _patches(self, contents: Contents, table: pa.Table) -> bytes:
        """``patches.csv``."""
        size = dict(zip(contents.store["axes"], contents.store["patch_shape"], strict=True))
        n = table.num_rows
        columns: dict[str, Any] = {"": table["patch_id"]}
        for axis in "yxz":
            start = f"start_{axis}"
            zeros = pa.array(np.zeros(n, np.int64))
            columns[axis] = pc.add(table[start], size[axis] // 2) if axis in size else zeros
        columns[self.sample_key] = table["image_id"]
        for name in table.column_names:
            if name not in RESERVED | {"file", "store_row"} and name not in columns:
                columns[name] = table[name]
        if "class" in table.column_names:
            columns["class"] = table["class"]
        # Not "split": the loader makes a column of that name, and would find two.
        columns["patchloom_split"] = table["split"]
        columns["id"] = table["row"]
        columns["file"] = table["file"]
        columns["dataset"] = pa.array([contents.name] * n, pa.string())
        return _csv(pa.table(columns))


def _files(part: Part) -> list[str]:
    images = part.table["image_id"].to_pylist()
    safe = {name: safe_name(name) for name in set(images)}
    return [f"{safe[name]}_{part.first + k}.npy" for k, name in enumerate(images)]


def _flat(patch: npt.NDArray[Any], held: Held) -> npt.NDArray[Any]:
    """Without a z axis of one pixel."""
    z = held.axes.find("z")
    return patch.squeeze(z) if z > 0 and patch.shape[z] == 1 else patch


def npy_bytes(pixels: npt.NDArray[Any]) -> bytes:
    """An array as a ``.npy`` file."""
    body = io.BytesIO()
    np.lib.format.write_array(body, np.ascontiguousarray(pixels), allow_pickle=False)
    return body.getvalue()


def _stats(contents: Contents, store: PatchStore) -> bytes:
    """``stats.csv``: phenocoder's columns, of what the store's run has counted."""
    q = store.attributes["job"]["percentiles"]
    table = store.summaries().table((min(q), max(q)) if len(q) > 1 else (q[0], 100 - q[0]))
    if "z" not in contents.store["axes"]:
        at = table.column_names.index("z")
        table = table.set_column(at, "z", pa.array(np.zeros(table.num_rows, np.int64)))
    return _csv(table)


def _csv(table: pa.Table) -> bytes:
    body = io.BytesIO()
    csv.write_csv(table, body)
    return body.getvalue()
