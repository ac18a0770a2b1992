"""Provenance: what a run was done with."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

import dask.multiprocessing
import dask.threaded
from dask.base import get_scheduler
from dask.local import get_sync

__all__ = ["scheduler_name", "versions"]

_PACKAGES = (
    "patchloom",
    "dask",
    "distributed",
    "fsspec",
    "numcodecs",
    "numpy",
    "pyarrow",
    "zarr",
)


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that pixels pass through; those that are there.

    >>> "numpy" in versions()
    True
    """
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def scheduler_name() -> str:
    """Which of Dask's schedulers is set.

    >>> import dask
    >>> with dask.config.set(scheduler="synchronous"):
    ...     scheduler_name()
    'synchronous'
    """
    get = get_scheduler() or dask.threaded.get
    if hasattr(getattr(get, "__self__", None), "scheduler_info"):
        return "distributed"
    known = {
        get_sync: "synchronous",
        dask.threaded.get: "threads",
        dask.multiprocessing.get: "processes",
    }
    return known.get(get, getattr(get, "__name__", "custom"))
