"""Kills a client at every write in turn: ``python -m tests.killer ARGUMENTS-AS-JSON``.

Each time a copy of a store is appended to by a forked process, which dies where it would have
given its n-th object its final name; so each object between two deaths is written whole.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import dask

# Imported before the first fork, and not in each.
from patchloom.run.drafting import plan
from patchloom.run.materializing import materialize
from patchloom.sources.opening import open_images

DEAD = 9


def main(text: str) -> None:
    """Kill, until a process comes to its end; print how many were killed."""
    given = json.loads(text)
    folder = Path(given["folder"])
    n = 0
    while True:
        out = folder / f"{n:03d}.zarr"
        shutil.copytree(given["base"], out)
        child = os.fork()
        if not child:
            _die_at(n)
            _append(given, out)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, DEAD):
            sys.exit(f"killed at write {n}, it ended with {status}")
        if status == 0:
            break
        n += 1
    print(n)


def _die_at(n: int) -> None:
    rename, left = os.replace, [n]

    def replace(*paths: Any) -> None:
        if not left[0]:
            os._exit(DEAD)
        left[0] -= 1
        rename(*paths)

    os.replace = replace  # type: ignore[assignment]


def _append(given: dict[str, Any], out: Path) -> None:
    images = open_images(given["images"], labels=given["labels"])
    planned = plan(images, given["patching"], rows_per_shard=given["rows_per_shard"])
    with dask.config.set(scheduler="synchronous"):
        materialize(planned, out, progress=False, **given.get("how", {}))


if __name__ == "__main__":
    main(sys.argv[1])
