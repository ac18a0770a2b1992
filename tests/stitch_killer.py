"""Kills stitching at writes: ``python -m tests.stitch_killer ARGUMENTS-AS-JSON``.

Each of some forked processes dies where it would have given its n-th object its final name.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import dask

# Imported before the first fork, and not in each.
from patchloom.run.stitching import stitch
from patchloom.store.patch_store import open_patches

DEAD = 9


def main(text: str) -> None:
    """Kill at each of some writes, each time at a place of its own."""
    given = json.loads(text)
    for n in given["at"]:
        child = os.fork()
        if not child:
            _die_at(n)
            store = open_patches(given["store"])
            with dask.config.set(scheduler="synchronous"):
                output = Path(given["folder"]) / str(n)
                stitch(store, store.images, output, progress=False, **given["how"])
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != DEAD:
            sys.exit(f"to be killed at write {n}, it ended with {status}")


def _die_at(n: int) -> None:
    rename, left = os.replace, [n]

    def replace(*paths: Any) -> None:
        if not left[0]:
            os._exit(DEAD)
        left[0] -= 1
        rename(*paths)

    os.replace = replace  # type: ignore[assignment]


if __name__ == "__main__":
    main(sys.argv[1])
