"""PNG files (W3C Recommendation, third edition), with nothing but NumPy and zlib."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

__all__ = ["png_file"]


def png_file(
    filtered: npt.NDArray[np.uint8], width: int, depth: int, kind: int, level: int
) -> bytes:
    r"""A file of rows that are filtered.

    Parameters
    ----------
    filtered
        uint8[height, 1 + bytes of a row]: the filter of each row, then its bytes.
    width
        In pixels.
    depth
        Bits of a sample.
    kind
        Colour type: 0 grey, 2 colours, 6 colours and opacity.
    level
        Of compression, up to 9.

    Examples
    --------
    >>> png_file(np.zeros((2, 4), np.uint8), 3, 8, 0, 6)[:4]
    b'\x89PNG'
    """
    header = struct.pack(">IIBBBBB", width, len(filtered), depth, kind, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(filtered.tobytes(), level)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
