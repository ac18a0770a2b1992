"""Worksite: where a task works, and how much memory its process has held."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from typing import Any

__all__ = ["Worksite", "most_resident", "worker_here"]


@dataclass(frozen=True)
class Worksite:
    """The process and the thread that a task works in."""

    process: str
    """Name of the worker of a cluster; of other schedulers the number of the process."""
    thread: int

    @classmethod
    def here(cls) -> Worksite:
        """Those of the caller.

        >>> Worksite.here().thread == threading.get_ident()
        True
        """
        worker = worker_here()
        process = f"process {os.getpid()}" if worker is None else f"worker {worker.name}"
        return cls(process, threading.get_ident())


def worker_here() -> Any | None:
    """The worker of a cluster that the caller's task runs on; None on any other scheduler."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.get_worker()
    except ValueError:  # not in a task of a cluster
        return None


def most_resident() -> int:
    """Most bytes that this process has held in memory since it began; 0 if nothing tells."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return int(found) if sys.platform == "darwin" else int(found) * 1024
