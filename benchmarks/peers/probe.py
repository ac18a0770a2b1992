"""What all peers share: the clock, the memory and the protocol. Needs only the standard library."""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LIMIT = 6 * 2**30
"""Bytes of address space; what needs more is reported as out of memory."""


def _resident() -> int:
    """Bytes resident now; at their highest where the system does not say."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return _peak()


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def answer(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer the request on the command line, within the memory limit."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    # What is imported is loaded by now: the caller's clock starts here.
    print("ready", flush=True)
    try:
        found = handle(json.loads(sys.argv[1]))
    except MemoryError:
        found = {"stopped": f"out of memory at {LIMIT / 2**30:.0f} GiB"}
    # NumPy's integers are written as numbers.
    print(json.dumps(found, default=lambda value: value.item()))


def build(make: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """Make something once: what it is, and its seconds and MiB over what was there before."""
    before, wall, cpu = _resident(), time.perf_counter(), time.process_time()
    made = make()
    found = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "mib": max(0, _peak() - before) / 2**20,
    }
    return made, found


def rate(batches: Iterator[int], seconds: float) -> dict[str, Any]:
    """Take batches, each the number of specs that it made, until they end or time is up."""
    n, begin, cpu = 0, time.perf_counter(), time.process_time()
    for made in batches:
        n += made
        if time.perf_counter() - begin > seconds:
            break
    wall = time.perf_counter() - begin
    return {"made": n, "seconds": wall, "cpu_seconds": time.process_time() - cpu}


def one_by_one(strategy: Any) -> Iterator[int]:
    """All specs of a CAREamics-like strategy, asked one by one, again and again."""
    n = int(strategy.n_patches)
    for index in itertools.chain.from_iterable(itertools.repeat(range(n))):
        strategy.get_patch_spec(index)
        yield 1
