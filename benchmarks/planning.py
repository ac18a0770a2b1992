"""Time plans of many images under masks, and how they grow with the number of images.

``python -m benchmarks planning --help`` lists the options; ``README.md`` says what each number
means. Every measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment

IMAGES = (100, 1_000, 10_000)
"""Numbers of images that are planned."""
SIDE, CHUNK, PATCH = 2048, 64, 64
"""Extents of an image in pixels: 1,024 chunks, of which no one is written."""
MASK = 256
"""Extent of its mask: 16 chunks."""
DISTINCT = 64
"""Masks that are drawn; the others are links to them."""


@dataclass(frozen=True)
class Record:
    """One number of images.

    Parameters
    ----------
    n_images, n_chunks, n_patches
        What was planned, and kept.
    open_s, plan_s, again_s
        Seconds to open all images with their masks, to plan them, and to plan them again from
        the parts that the first plan saved.
    keep_s
        Seconds to plan them while parts are saved.
    free_s
        Seconds to plan them without looking at masks.
    reads
        Chunks of masks that were decoded.
    mib
        Most memory of the process, in MiB.
    """

    n_images: int
    n_chunks: int
    n_patches: int
    open_s: float
    plan_s: float
    keep_s: float
    again_s: float
    free_s: float
    reads: int
    mib: float


def main(argv: Sequence[str]) -> int:
    """Run the benchmark of planning.

    Parameters
    ----------
    argv
        Arguments after ``planning``.

    Returns
    -------
    int
        Exit status.
    """
    options = _parser().parse_args(argv)
    records: list[Record] = []
    with tempfile.TemporaryDirectory(prefix="patchloom-planning-") as temporary:
        folder = options.cache or Path(temporary)
        print(_HEADER, flush=True)
        for n in options.images or IMAGES:
            write(folder, n)
            command = [sys.executable, "-m", "benchmarks.planning", str(folder), str(n)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            record = Record(**json.loads(done.stdout.splitlines()[-1]))
            records.append(record)
            print(_row(record), flush=True)
    if options.output is not None:
        found = [asdict(record) for record in records]
        environment.save(options.output, "planning", argv, records=found)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks planning", description=__doc__)
    parser.add_argument("--images", action="append", type=int, help="may be repeated")
    parser.add_argument("--cache", type=Path, help="keeps the images; default a temporary folder")
    parser.add_argument("--output", type=Path, help="JSON file for the records")
    return parser


def write(folder: Path, n: int) -> None:
    """Write images without a chunk, and their masks.

    Parameters
    ----------
    folder
        Gets ``images`` and ``masks``.
    n
        Number of images; what is there stays.
    """
    import zarr

    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for k in range(n):
        image, mask = (folder / kind / f"{k:05}.zarr" for kind in ("images", "masks"))
        if not mask.exists():
            if k < DISTINCT:
                array = zarr.create_array(
                    mask,
                    shape=(MASK, MASK),
                    chunks=(MASK // 4, MASK // 4),
                    dtype="uint8",
                    dimension_names=("y", "x"),
                )
                cells = rng.random((MASK // 16, MASK // 16)) < 0.4
                array[...] = np.kron(cells, np.ones((16, 16), "uint8")).astype("uint8")
            else:
                os.symlink(folder.resolve() / "masks" / f"{k % DISTINCT:05}.zarr", mask)
        if not image.exists():
            zarr.create_array(
                image,
                shape=(SIDE, SIDE),
                chunks=(CHUNK, CHUNK),
                dtype="uint16",
                dimension_names=("y", "x"),
            )


def measure(folder: Path, n: int) -> Record:
    """Plan the first `n` images.

    Parameters
    ----------
    folder
        From `write`.
    n
        Number of images.
    """
    import patchloom
    from patchloom.run.mask_survey import survey_masks
    from patchloom.run.selecting import Selection

    config = {"name": "sequential", "patch_size": [PATCH, PATCH]}
    names = [f"{k:05}.zarr" for k in range(n)]
    begin = time.perf_counter()
    images = patchloom.open_images(
        [str(folder / "images" / name) for name in names],
        mask=[str(folder / "masks" / name) for name in names],
    )
    opened = time.perf_counter() - begin

    def timed(**settings: Any) -> tuple[Any, float]:
        begin = time.perf_counter()
        return patchloom.plan(images, config, **settings), time.perf_counter() - begin

    with tempfile.TemporaryDirectory(dir=folder) as kept:
        free, free_s = timed()
        plan, plan_s = timed(min_coverage=0.5)
        _, keep_s = timed(min_coverage=0.5, survey=kept)
        again, again_s = timed(min_coverage=0.5, survey=kept)
    if again.fingerprint != plan.fingerprint:
        raise SystemExit("the plan from saved parts is another one: nothing is told")
    selection = Selection(plan.patching, plan.config, plan.min_coverage, 0, 0)
    _, _, reads = survey_masks(selection, images)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return Record(
        n_images=n,
        n_chunks=free.n_patches,
        n_patches=plan.n_patches,
        open_s=opened,
        plan_s=plan_s,
        keep_s=keep_s,
        again_s=again_s,
        free_s=free_s,
        reads=reads.chunks,
        mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
    )


_HEADER = (
    f"{'images':>7} {'chunks':>11} {'patches':>10} {'open s':>7} {'plan s':>7} {'kept s':>7} "
    f"{'again s':>7} {'no mask s':>9} {'decodes':>8} {'MiB':>6}"
)


def _row(record: Record) -> str:
    return (
        f"{record.n_images:7,} {record.n_chunks:11,} {record.n_patches:10,} {record.open_s:7.2f} "
        f"{record.plan_s:7.2f} {record.keep_s:7.2f} {record.again_s:7.2f} {record.free_s:9.2f} "
        f"{record.reads:8,} {record.mib:6.0f}"
    )


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Path(sys.argv[1]), int(sys.argv[2])))))
