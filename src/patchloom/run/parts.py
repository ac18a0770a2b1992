"""Parts: finished pieces of a survey of masks, saved so that an interrupted one goes on."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchloom.arrow_files import arrow_file
from patchloom.errors import PlanError
from patchloom.image import Image, Reads
from patchloom.location import Location
from patchloom.patching.listed import ListedPatching
from patchloom.planning.cells import Cells
from patchloom.randomness import digest, digest_of
from patchloom.run.selecting import Selection
from patchloom.run.whereabouts import whereabouts

__all__ = [
    "Found",
    "listed",
    "load_parts",
    "piece_digest",
    "save_parts",
    "settings_digest",
    "unreachable",
]

_FORMAT = 1
"""Version of what a part holds, and of what its name covers."""
_COLUMNS = ("image", "cell", "kept", "bit")
_TOGETHER = 16
"""Parts that are asked for at the same time."""

Found = tuple[Cells, Counter[str], Reads]
"""What a piece keeps, what it leaves out by reason, and what it read."""


def settings_digest(selection: Selection) -> str:
    """What is asked of all images alike, in hex."""
    config = json.dumps(selection.config.model_dump(mode="json"), sort_keys=True)
    asked = (selection.strategy.edge, selection.min_coverage, selection.min_pixels, selection.seed)
    return digest("survey", _FORMAT, config, *selection.strategy.patch_size, *asked).hex()


def piece_digest(selection: Selection, index: int, image: Image) -> str:
    """What determines what a plan keeps of one image besides its settings, in hex.

    The pixels of its roles count by the place and the metadata of their arrays.
    """
    strategy = selection.strategy
    roles: list[Any] = []
    for name in selection.reads(image):
        role = getattr(image, name)
        steps = [str(v) for v in (*role.alignment.scale, *role.alignment.offset)]
        document = role.image.to_document()
        where = whereabouts(role.image.source)
        roles.append([name, role.axes, steps, {k: document[k] for k in _ROLE}, where])
    shape, chunks = strategy.data_shapes[index], strategy.grids[index].chunks
    own = [image.id, image.level, image.axes.names, shape, chunks, image.shards, image.grid.chunks]
    listed = ""
    if isinstance(strategy, ListedPatching):
        n_cells = image.layout.n_samples * image.layout.space.n_chunks
        corner, counts = strategy.corners(index, np.arange(n_cells))
        listed = (digest_of(corner) + digest_of(counts)).hex()
    return digest(json.dumps([own, roles, listed], sort_keys=True)).hex()


_ROLE = ("axes", "shape", "dtype", "chunks", "source")


def save_parts(folder: Location, found: Mapping[str, Found]) -> None:
    """Save some finished pieces by their digests as one Parquet file, whole or not at all."""
    cells = [part for part, _, _ in found.values()]
    joined = Cells.join(cells)
    columns, bits = joined.columns(), joined.bits.tobytes()
    document = {
        "format": _FORMAT,
        "pieces": [
            [name, dict(rejected), [reads.chunks, reads.requests, reads.nbytes]]
            for name, (_, rejected, reads) in found.items()
        ],
    }
    text = json.dumps(document)
    meta = {b"patchloom": text.encode(), b"bits": bits, b"check": _check(text, columns, bits)}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(meta), sink, compression="zstd")
    folder.write(f"{digest(*found).hex()}.parquet", sink.getbuffer())


def listed(folder: Location) -> dict[str, int]:
    """What lies in the folder of a survey.

    Raises
    ------
    PlanError
        If it cannot be reached.
    """
    try:
        return folder.list()
    except Exception as error:  # each file system fails in its own way
        raise unreachable(folder, error) from None


def unreachable(folder: Location, error: Exception) -> PlanError:
    """What to say if the folder of a survey cannot be read."""
    return PlanError(
        f"a survey is kept in a folder that can be reached, but {folder.shown!r} cannot: "
        f"{folder.describe(error)}; give another URL or storage_options"
    )


def load_parts(folder: Location) -> dict[str, Found]:
    """All pieces that are saved in a folder, by their digests; what is damaged is left out."""
    names = [name for name in listed(folder) if name.endswith(".parquet") and "/" not in name]
    found: dict[str, Found] = {}
    with ThreadPoolExecutor(_TOGETHER) as pool:
        for data in pool.map(folder.read, names):
            found.update({} if data is None else _loaded(data))
    return found


def _loaded(data: bytes) -> dict[str, Found]:
    try:
        table = pq.read_table(arrow_file(data))
        meta = table.schema.metadata or {}
        columns = {name: table.column(name).to_numpy() for name in _COLUMNS}
        text, bits = meta[b"patchloom"].decode(), meta[b"bits"]
        if meta[b"check"] != _check(text, columns, bits):
            return {}
        pieces = json.loads(text)["pieces"]
        flags = np.frombuffer(bits, np.uint8)
        joined = Cells.from_columns(columns, flags, len(pieces))
    except Exception:  # a damaged file fails in many ways
        # What lies there is no part of ours any more: its pieces are looked at again.
        return {}
    found = {}
    for k, (name, rejected, reads) in enumerate(pieces):
        part = _taken(joined, *joined.span(k))
        found[name] = (part, Counter(rejected), Reads(*reads))
    return found


def _taken(joined: Cells, low: int, high: int) -> Cells:
    """The cells of one piece as they were before they were joined."""
    columns: dict[str, Any] = {
        "image": np.zeros(high - low, np.int64),
        "cell": joined.cell[low:high],
        "kept": joined.kept[low:high],
        "bit": np.full(high - low, -1),
    }
    bits = np.zeros(0, np.uint8)
    if len(joined.bit):
        begin = joined.bit[low:high].astype(np.int64)
        mixed = begin >= 0
        if mixed.any():
            # Bitmaps lie in the order of their cells, up to those of the next piece.
            after = joined.bit[high:]
            after = after[after >= 0]
            first = int(begin[mixed][0])
            bits = joined.bits[first : int(after[0]) if len(after) else None]
            columns["bit"] = np.where(mixed, begin - first, -1)
    return Cells.from_columns(columns, bits, 1)


def _check(text: str, columns: Mapping[str, Any], bits: bytes) -> bytes:
    parts: Sequence[str] = [digest_of(columns[name]).hex() for name in _COLUMNS]
    return digest(text, *parts, digest_of(np.frombuffer(bits, np.uint8)).hex()).hex().encode()
