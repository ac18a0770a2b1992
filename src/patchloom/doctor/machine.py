"""What this machine has: memory for the threads of a run, open files, room on a disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from patchloom.doctor.finding import Finding

__all__ = ["disk", "machine"]

_SCARCE = 2**30
"""Bytes on a disk that will not do for long."""
_FILES = 1024
"""Open files that many threads and connections come near to."""


def machine(memory: int | None, threads: int | None) -> Iterator[Finding]:
    """Memory against what a run takes at most, and open files.

    Parameters
    ----------
    memory
        Bytes that one task may use; None for those of Dask's configuration.
    threads
        Tasks of this machine at a time; None for one a CPU, 0 if none run here.
    """
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    from patchloom.run.settings import Settings

    each = memory or Settings.now().memory
    n = CPU_COUNT if threads is None else threads
    told = f"{CPU_COUNT} CPUs, {_shown(MEMORY_LIMIT)} for this process"
    free = _available()
    if free is not None:
        told += f", {_shown(free)} of them free"
    room = MEMORY_LIMIT if free is None else min(MEMORY_LIMIT, free)
    if n and n * each > room:
        yield Finding(
            "warn",
            "memory",
            f"{told}; {n} threads of {_shown(each)} may take {_shown(n * each)}",
            f"run fewer threads (--scheduler threads --workers {max(room // each, 1)}), or plan "
            "with less memory (--set memory=...)",
        )
    else:
        wants = f"; {n} threads take at most {_shown(n * each)}" if n else ""
        yield Finding("ok", "memory", told + wants)
    yield from _files()


def disk(path: str | os.PathLike[str] | None = None) -> Iterator[Finding]:
    """Room on the disk of a path that need not exist yet; by default of temporary files."""
    at = Path(tempfile.gettempdir() if path is None else path).absolute()
    while not at.exists() and at != at.parent:
        at = at.parent
    try:
        found = shutil.disk_usage(at)
    except OSError as error:
        said = f"{str(at)!r} cannot be asked: {error.strerror or error}"
        yield Finding("warn", "disk", said, "look at the disk")
        return
    what = "for temporary files" if path is None else "at the output"
    said = f"{_shown(found.free)} of {_shown(found.total)} free {what}, {str(at)!r}"
    scarce = found.free < _SCARCE
    way = "free some, or take another disk" + (" (TMPDIR)" if path is None else "")
    yield Finding("warn" if scarce else "ok", "disk", said, way if scarce else "")


def _files() -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _FILES:
        said = f"at most {soft:,} may be open at a time"
        yield Finding("warn", "open files", said, f"ulimit -n {min(hard, 65536)}")


def _available() -> int | None:
    """Bytes of memory that nobody uses; None if it cannot be asked for."""
    try:
        import psutil  # Dask's own need
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def _shown(nbytes: float) -> str:
    from dask.utils import format_bytes

    return str(format_bytes(int(nbytes)))
