"""Budget: bytes that a loader may hold, as people write them."""

from __future__ import annotations

import re

from patchloom.errors import ConfigError

__all__ = ["MEMORY", "n_bytes"]

MEMORY = "512 MiB"
"""Bytes that a loader holds in one process, unless it is told otherwise."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)


def n_bytes(memory: int | str) -> int:
    """A number of bytes, from one or from text.

    Raises
    ------
    ConfigError
        If it is neither.

    Examples
    --------
    >>> n_bytes("512 MiB"), n_bytes("1.5GB"), n_bytes(7)
    (536870912, 1500000000, 7)
    """
    if isinstance(memory, int) and not isinstance(memory, bool) and memory >= 0:
        return memory
    match = _TEXT.fullmatch(memory) if isinstance(memory, str) else None
    if match is None or (match[3] and not match[2]):
        raise ConfigError(f"memory= is a number of bytes or text like '512 MiB', got {memory!r}")
    unit = match[2].lower()
    return int(float(match[1]) * (_BINARY[unit] if match[3] else _UNITS[unit]))
