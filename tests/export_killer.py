"""Kills exports at writes: ``python -m tests.export_killer ARGUMENTS-AS-JSON``.

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
from patchloom.run.exporting import export
from patchloom.store.exports.formats import format_of

DEAD = 9


def main(text: str) -> None:
    """Kill at each of some writes, each time at a place of its own."""
    given = json.loads(text)
    format_of(given["to"], given["options"])
    for n in given["at"]:
        child = os.fork()
        if not child:
            _die_at(n)
            with dask.config.set(scheduler="synchronous"):
                export(
                    given["store"],
                    to=given["to"],
                    output=Path(given["folder"]) / str(n) / given["name"],
                    progress=False,
                    **given["options"],
                )
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
