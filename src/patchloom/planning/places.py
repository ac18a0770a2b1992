"""Places: the table of a plan whose patches were listed, with the columns that ride along."""

from __future__ import annotations

import io
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patchloom.arrow_files import arrow_file
from patchloom.randomness import digest

__all__ = ["Places"]

Ints = npt.NDArray[np.int64]
_OWN = ("image", "sample")


@dataclass(frozen=True, eq=False)
class Places:
    """One row a place."""

    image: Ints
    """Position of its image in the plan: int64[n]."""
    sample: Ints
    """Flat sample of the image: int64[n]."""
    corner: Ints
    """First pixel of the patch proper, before any edge policy: int64[n, ndim]."""
    columns: pa.Table
    """What else is known of each place; becomes columns of the manifest."""

    def __len__(self) -> int:
        return len(self.image)

    def digest(self) -> str:
        """128 bits, in hex, fixed by all values, however Arrow holds them."""
        own = [column.astype("<i8").tobytes() for column in (self.image, self.sample, self.corner)]
        theirs = [(name, _content(self.columns[name])) for name in self.columns.column_names]
        return digest(self.corner.shape, *(blake2b(part).hexdigest() for part in own), theirs).hex()

    def to_bytes(self) -> bytes:
        """As Parquet."""
        sink = io.BytesIO()
        pq.write_table(pa.table(dict(self._named())), sink, compression="zstd")
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Places:
        """Inverse of `to_bytes`."""
        table = pq.read_table(arrow_file(data))
        own = {name: table[f"/{name}"].to_numpy().astype(np.int64) for name in _OWN}
        axes = [name for name in table.column_names if name.startswith("/corner")]
        corner = np.stack([table[name].to_numpy() for name in axes], -1).astype(np.int64)
        rest = [name for name in table.column_names if name.startswith(":")]
        columns = table.select(rest).rename_columns([name[1:] for name in rest])
        return cls(own["image"], own["sample"], corner, columns)

    def _named(self) -> list[tuple[str, Any]]:
        """Our columns begin with a slash and theirs with a colon, so that no names meet."""
        axes = [(f"/corner{k}", self.corner[:, k]) for k in range(self.corner.shape[1])]
        own = [("/image", self.image), ("/sample", self.sample), *axes]
        theirs = [(f":{name}", self.columns[name]) for name in self.columns.column_names]
        return [(name, pa.array(column)) for name, column in own] + theirs


def _content(column: pa.ChunkedArray) -> str:
    """What fixes the values of a column: text, a number or a flag each, or missing."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    kind = "text" if text else str(column.type)
    parts = [column.is_null().to_numpy()]
    if text:
        parts += [pc.fill_null(pc.binary_length(column), 0).to_numpy().astype("<i8")]
        known = column.drop_null().to_pylist()
        parts += [np.frombuffer("".join(known).encode(), np.uint8)]
    elif not pa.types.is_null(column.type):
        values = pc.fill_null(column, False if pa.types.is_boolean(column.type) else 0).to_numpy()
        parts += [values.astype(values.dtype.newbyteorder("<"))]
    whole = blake2b()
    for part in parts:
        whole.update(np.ascontiguousarray(part).tobytes())
    return f"{kind} {whole.hexdigest()}"
