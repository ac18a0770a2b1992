"""The HTTP ``Range`` header, for the servers that answer it themselves."""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class UnsatisfiableRangeError(ValueError):
    """The range holds no byte of the object; the answer is status 416."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The half-open byte range that a ``Range`` header asks for.

    Parameters
    ----------
    header
        ``bytes=2-5``, ``bytes=2-`` or ``bytes=-3`` (the last three bytes). Anything else, also
        several ranges at once, counts as no range: a server may ignore the header.
    size
        The size of the object.

    Returns
    -------
    tuple or None
        ``(start, stop)``, or None for the whole object.

    Raises
    ------
    UnsatisfiableRangeError
        If the range starts behind the end, or is a suffix of no bytes.

    Examples
    --------
    >>> parse_range("bytes=2-5", 100), parse_range("bytes=-3", 100), parse_range("bytes=90-", 95)
    ((2, 6), (97, 100), (90, 95))
    """
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if start >= stop:
        raise UnsatisfiableRangeError(f"{header!r} of an object of {size} bytes")
    return start, stop
