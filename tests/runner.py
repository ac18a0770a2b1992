"""A client of its own process, to be killed: ``python -m tests.runner ARGUMENTS-AS-JSON``."""

from __future__ import annotations

import json
import resource
import signal
import sys

import dask

import patchloom


def main(text: str) -> None:
    """Run the whole job on an image; optionally forbid files above a size."""
    given = json.loads(text)
    if given.get("largest_file"):
        # What a full disk does to a write, for a process that may not mount one.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (given["largest_file"],) * 2)
    [image] = patchloom.open_images(
        given["image"], axes="CYX", storage_options=given.get("options")
    )
    plan = patchloom.plan(image, given["patching"], rows_per_shard=given["rows_per_shard"])
    with dask.config.set(scheduler=given.get("scheduler", "threads"), num_workers=2):
        report = patchloom.materialize(
            plan,
            given["out"],
            storage_options=given.get("options"),
            progress=False,
            on_error=given.get("on_error", "raise"),
        )
    print(json.dumps(report.to_dict()))


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except patchloom.PatchloomError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
