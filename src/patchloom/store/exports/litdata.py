"""LitData: chunks by its own writer, and the index over them."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from patchloom.errors import SourceMissingError
from patchloom.location import Location
from patchloom.randomness import digest
from patchloom.store.exports.contents import Contents, Part
from patchloom.store.exports.format import Format, Objects, numbered
from patchloom.store.exports.webdataset import record
from patchloom.store.patch_store import PatchStore

__all__ = ["LitdataFormat"]

_OBJECT = re.compile(r"(?:chunk-|parts/)(\d+)(?:-0\.bin|\.json)$")


class LitdataFormat(Format):
    """A chunk a part, and ``index.json``.

    An item is a mapping: the arrays by name, and ``row``, the row of the manifest as JSON text.
    """

    called: ClassVar[str] = "litdata"
    last: ClassVar[tuple[str, ...]] = ("index.json",)

    def check(self, contents: Contents) -> None:
        """Its writer is there."""
        _writer()

    def n_objects(self, contents: Contents, part: int) -> int:
        """The chunk, and what its index says of it."""
        return 2

    def part_of(self, contents: Contents) -> Callable[[str], int | None]:
        """By its number."""
        return numbered(_OBJECT)

    def objects(self, contents: Contents, part: Part) -> Objects:
        """What its writer leaves in a temporary folder."""
        rows = part.table.to_pylist()
        with tempfile.TemporaryDirectory(prefix="patchloom-") as folder:
            # A part is a chunk, short ones too: the number is the same everywhere.
            writer = _writer()(folder, chunk_size=contents.rows_per_part)
            for k, patch in part.patches(*contents.arrays):
                item = {name: np.ascontiguousarray(pixels) for name, pixels in patch.items()}
                writer.add_item(k, {**item, "row": record(rows[k])})
            writer.done()
            [index] = Path(folder).glob("*.index.json")
            told = json.loads(index.read_bytes())
            [chunk] = told["chunks"]
            name = f"chunk-{part.number}-0.bin"
            yield name, Path(folder) / chunk["filename"]
            told["chunks"] = [{**chunk, "filename": name}]
            yield f"parts/{part.number}.json", json.dumps(told, sort_keys=True).encode()

    def closing(
        self, contents: Contents, target: Location, store: PatchStore
    ) -> Iterator[tuple[str, bytes]]:
        """The index over all."""
        names = [f"parts/{k}.json" for k in range(contents.n_parts)]
        with ThreadPoolExecutor(8) as pool:
            told = [json.loads(data or b"") for data in pool.map(target.read, names)]
        chunks = [chunk for one in told for chunk in one["chunks"]]
        whole = {"chunks": chunks, "config": told[0]["config"]}
        # Its reader keeps what it has fetched below this text. Not the time: the same each time.
        parts = (json.dumps(whole, sort_keys=True), *sorted(target.list("manifest").items()))
        whole["updated_at"] = digest(*parts).hex()
        yield "index.json", json.dumps(whole, sort_keys=True).encode()


def _writer() -> Any:
    try:
        from litdata.streaming.writer import BinaryWriter
    except ImportError:
        raise SourceMissingError(
            "chunks of LitData are made by its own writer, which is not installed; "
            "pip install 'patchloom[litdata]'"
        ) from None
    return BinaryWriter
