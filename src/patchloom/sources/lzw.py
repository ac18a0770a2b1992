"""LZW as TIFF has it: whether a stream names only strings that it has told before.

imagecodecs 2026.3.6 looks strings up that a broken stream never told, in memory that nobody wrote:
now and then that ends the process.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["check_lzw"]

Ints = npt.NDArray[np.int32]

_CLEAR, _END = 256, 257
_FULL = 4096
"""Strings that the table holds."""
_NEXT: Ints = np.minimum(np.arange(2 * _FULL, dtype=np.int32) + _END, _FULL)
"""The string that a code tells of, by how many codes stand between it and the last clear code."""
_WIDTH: Ints = 9 + (_NEXT[:, None] > np.array([510, 1022, 2046])).sum(1, dtype=np.int32)
_MOST: Ints = np.minimum(_NEXT, _FULL - 1)
"""The last code that may stand there; the first one is a byte."""
_MOST[0], _WIDTH[0] = 255, 9
_AT: Ints = np.concatenate([[0], np.cumsum(_WIDTH)]).astype(np.int32)
"""Bits between the last clear code and this one."""
_FEW = 1024
"""Codes that are looked at together at first, twice as many then: clear codes may be many."""


def check_lzw(data: bytes) -> None:
    """Refuse a stream whose codes are of no string that it has told.

    Between two clear codes the width of each code, and how many strings are told before it, follow
    from its place alone, so that many are looked at together.

    Parameters
    ----------
    data
        Codes of 9 to 12 bits, the first bit of a byte first; the width grows one code early.

    Raises
    ------
    ValueError
        If a code is of no string, or bits are packed from the last one of a byte, as before
        TIFF 6.0.

    References
    ----------
    TIFF, revision 6.0, Adobe 1992, section 13.

    >>> check_lzw(bytes.fromhex("8000804020"))
    >>> check_lzw(bytes.fromhex("807fc0"))
    Traceback (most recent call last):
    ...
    ValueError: LZW names a string that it has not told: code 511 where 255 is the last one
    """
    if data[:1] == b"\0" and len(data) > 1 and data[1] & 1:
        raise ValueError("LZW is packed from the last bit of a byte, as before TIFF 6.0")
    some = np.frombuffer(data + b"\0\0", np.uint8).astype(np.int32)
    words = some[:-2] << 16 | some[1:-1] << 8 | some[2:]
    n_bits, start, first = 8 * len(data), 0, 0
    while True:
        if first == _AT.size - 1:
            # Nothing was cleared: codes of 12 bits go on, and all strings are known.
            start, first = start + int(_AT[first] - _AT[_FULL]), _FULL
        last = int(np.searchsorted(_AT, n_bits - start, "right")) - 1
        last = min(last, max(2 * first, _FEW))
        if last <= first:
            return
        width = _WIDTH[first:last]
        byte, bit = np.divmod(_AT[first:last] + (start & 7), 8)
        codes = words[start >> 3 :][byte] >> (24 - bit - width) & ((1 << width) - 1)
        marks = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        told = codes[: marks[0]] if marks.size else codes
        wrong = np.flatnonzero(told > _MOST[first : first + told.size])
        if wrong.size:
            raise ValueError(
                f"LZW names a string that it has not told: code {told[wrong[0]]} where "
                f"{_MOST[first + wrong[0]]} is the last one"
            )
        if not marks.size:
            first = last
        elif codes[marks[0]] == _END:
            return
        else:
            start, first = start + int(_AT[first + marks[0] + 1]), 0
