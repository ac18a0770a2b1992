"""What a figure was measured on: versions, the machine, and how busy others kept it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "patchloom",
    "dask",
    "distributed",
    "zarr",
    "zarrs",
    "numcodecs",
    "numpy",
    "pyarrow",
    "fsspec",
    "numba",
)
"""Packages whose versions go into each record; absent ones are left out."""


def save(path: Path, benchmark: str, argv: Sequence[str], **figures: Any) -> None:
    """Write the figures of a benchmark as JSON, with what they were measured on and how.

    Parameters
    ----------
    path
        The file.
    benchmark, argv
        What followed ``python -m benchmarks``.
    figures
        What was measured, by name.
    """
    document = {
        "benchmark": benchmark,
        **figures,
        "versions": versions(),
        "machine": machine(),
        "command": shlex.join(["python", "-m", "benchmarks", benchmark, *argv]),
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Return the versions of Python and of every installed package in :data:`PACKAGES`."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return processor, usable cores, memory and operating system, and nothing that names it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": cores,
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


class Neighbours:
    """Processor time that others take while something of ours is timed.

    Parameters
    ----------
    own
        Returns the processor seconds that we have used so far, workers and all.

    Notes
    -----
    Counts the kernel's own threads, such as those writing pages back to disk, as others.  Knows
    the machine's total from ``/proc/stat``, and nothing where there is none.
    """

    def __init__(self, own: Callable[[], float]) -> None:
        self._own = own
        self._begin = self._now()

    def _now(self) -> tuple[float, float, float] | None:
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        user, nice, system, _idle, _iowait, irq, softirq, steal = (
            int(field) for field in stat.read_text().split(maxsplit=9)[1:9]
        )
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, self._own()

    def load(self) -> float | None:
        """Return the cores that others kept busy, on average, since this object was made."""
        now = self._now()
        if now is None or self._begin is None:
            return None
        wall, busy, own = (b - a for a, b in zip(self._begin, now, strict=True))
        return max(0.0, (busy - own) / wall)
