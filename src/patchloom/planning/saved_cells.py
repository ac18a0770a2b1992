"""Cells as they are saved: what follows from the strategy is left out."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from patchloom.arrow_files import arrow_file
from patchloom.patching.protocol import GridPatching
from patchloom.planning.cells import Cells

__all__ = ["cells_of_bytes", "cells_to_bytes"]


def cells_to_bytes(cells: Cells) -> bytes:
    """As Parquet: steps from cell to cell, and counts of those that keep only some.

    Along the curve steps repeat, so that even many millions take little room.
    """
    columns = cells.columns()
    step = np.diff(columns["cell"].astype(np.int64), prepend=0)
    whole = columns["bit"] < 0
    table = pa.table(
        {
            "image": columns["image"],
            "step": step.astype(np.min_scalar_type(-int(np.abs(step).max(initial=0)) - 1)),
            "kept": np.where(whole, 0, columns["kept"]).astype(columns["kept"].dtype),
            "bit": columns["bit"],
        }
    )
    sink = io.BytesIO()
    table = table.replace_schema_metadata({b"bits": cells.bits.tobytes()})
    pq.write_table(table, sink, compression="zstd", use_dictionary=["image", "kept"])
    return sink.getvalue()


def cells_of_bytes(data: bytes, n_images: int, patching: GridPatching) -> Cells:
    """Inverse of `cells_to_bytes`.

    Parameters
    ----------
    data
        What was saved.
    n_images
        Images of the plan.
    patching
        Its strategy, which knows how many patches the other cells have.
    """
    table = pq.read_table(arrow_file(data))
    image = table["image"].to_numpy()
    cell: npt.NDArray[np.int64] = np.cumsum(table["step"].to_numpy(), dtype=np.int64)
    kept = table["kept"].to_numpy().astype(np.int64)
    bit = table["bit"].to_numpy()
    if (cell < 0).any():
        raise ValueError("cells are numbered from 0")
    whole = bit < 0
    for index in np.unique(image).tolist():
        some = np.flatnonzero(whole & (image == index))
        kept[some] = patching.counts_of(index, cell[some])
    bits = np.frombuffer((table.schema.metadata or {}).get(b"bits", b""), np.uint8)
    columns = {"image": image, "cell": cell, "kept": kept, "bit": bit}
    return Cells.from_columns(columns, bits, n_images)
