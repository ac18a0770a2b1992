"""How the C library serves the large, short-lived buffers of a task."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any

__all__ = ["keep_pages"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 32 * 2**20


@cache
def _glibc() -> Any | None:
    """The C library, if it is glibc."""
    try:
        library = ctypes.CDLL(None)
        _ = library.gnu_get_libc_version, library.mallopt
    except (OSError, AttributeError, TypeError):
        return None
    return library


@cache
def keep_pages() -> None:
    """Let this process use freed memory again before the system gets it back.

    A task makes and drops a buffer of a megabyte for each chunk and patch, inside codecs too.
    Dask's workers start with ``MALLOC_TRIM_THRESHOLD_`` set, which makes glibc map and unmap
    each of them: page faults then cost half as much again as all the rest. The thresholds set
    here are those that glibc by itself arrives at in a process that frees a block of 32 MiB.
    Who sets ``MALLOC_MMAP_THRESHOLD_`` is left alone.
    """
    library = _glibc()
    if library is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
