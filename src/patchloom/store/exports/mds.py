"""MosaicML Streaming: MDS shards by its own writer, and the index over them."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from patchloom.errors import ConfigError, SourceMissingError
from patchloom.location import Location
from patchloom.store.exports.contents import Contents, Held, Part
from patchloom.store.exports.format import Format, Objects, numbered
from patchloom.store.exports.webdataset import record
from patchloom.store.patch_store import PatchStore

__all__ = ["MdsFormat"]

_OBJECT = re.compile(r"(\d{6})/(?:shard\.00000\.mds|index\.json)$")
_MOST = 2**32 - 1


class MdsFormat(Format):
    """A folder a part with one shard and its index, and the index over all.

    Columns are the arrays by name (flags as uint8) and ``row``, the row of the manifest as JSON.
    """

    called: ClassVar[str] = "mds"
    last: ClassVar[tuple[str, ...]] = ("index.json",)

    def check(self, contents: Contents) -> None:
        """A shard is less than 4 GiB, and its writer is there."""
        _writer()
        nbytes = contents.rows_per_part * sum(held.patch_bytes for held in contents.arrays)
        if nbytes >= _MOST - 2**20:
            raise ConfigError(
                f"a shard of MDS holds less than 4 GiB, but {contents.rows_per_part:,} patches are "
                f"{nbytes:,} bytes; give fewer rows= a part"
            )

    def n_objects(self, contents: Contents, part: int) -> int:
        """The shard and its index."""
        return 2

    def part_of(self, contents: Contents) -> Callable[[str], int | None]:
        """By the folder."""
        return numbered(_OBJECT)

    def objects(self, contents: Contents, part: Part) -> Objects:
        """What its writer leaves in a temporary folder."""
        columns = {held.name: _encoding(held) for held in contents.arrays} | {"row": "json"}
        rows = part.table.to_pylist()
        with tempfile.TemporaryDirectory(prefix="patchloom-") as folder:
            out = Path(folder) / "out"
            with _writer()(out=str(out), columns=columns, size_limit=None) as writer:
                for k, patch in part.patches(*contents.arrays):
                    sample = {n: _stored(np.ascontiguousarray(p)) for n, p in patch.items()}
                    writer.write({**sample, "row": json.loads(record(rows[k]))})
            for name in ("shard.00000.mds", "index.json"):
                yield f"{part.number:06d}/{name}", out / name

    def closing(
        self, contents: Contents, target: Location, store: PatchStore
    ) -> Iterator[tuple[str, bytes]]:
        """The index over all: that of each part, with the folder before its names."""
        with ThreadPoolExecutor(8) as pool:
            names = [f"{k:06d}" for k in range(contents.n_parts)]
            found = list(pool.map(lambda name: target.read(f"{name}/index.json"), names))
        shards = []
        for name, data in zip(names, found, strict=True):
            for shard in json.loads(data or b"")["shards"]:
                for key in ("raw_data", "zip_data"):
                    if shard.get(key):
                        shard[key]["basename"] = f"{name}/{shard[key]['basename']}"
                shards.append(shard)
        yield "index.json", json.dumps({"shards": shards, "version": 2}, sort_keys=True).encode()


def _encoding(held: Held) -> str:
    dtype = "uint8" if held.dtype.kind == "b" else held.dtype.name
    return f"ndarray:{dtype}:{','.join(map(str, held.patch_shape))}"


def _stored(pixels: Any) -> Any:
    return pixels.astype(np.uint8) if pixels.dtype.kind == "b" else pixels


def _writer() -> Any:
    try:
        from streaming import MDSWriter
    except ImportError:
        raise SourceMissingError(
            "MDS shards are made by MosaicML Streaming, which is not installed; "
            "pip install 'patchloom[mds]'"
        ) from None
    return MDSWriter
