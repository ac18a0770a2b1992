"""Files for Arrow whose bytes are at hand."""

from __future__ import annotations

import pyarrow as pa

__all__ = ["arrow_file"]


def arrow_file(data: bytes) -> pa.BufferReader:
    """A file in memory that Arrow owns, for `pyarrow.parquet.read_table` and its like.

    Of a file or buffer of Python, Arrow's threads let go when they are done, for which they need
    the interpreter: if that is at its end by then, the whole process is aborted ("terminate called
    without an active exception").

    Parameters
    ----------
    data
        What it holds; copied.

    >>> arrow_file(b"abc").read()
    b'abc'
    """
    owned = pa.allocate_buffer(len(data))
    memoryview(owned).cast("B")[:] = data
    return pa.BufferReader(owned)
