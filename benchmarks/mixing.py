"""How well shuffled plans mix, and what it costs in reads, against window and number of images.

``python -m benchmarks mixing --help`` lists the options; ``README.md`` says what each number
means. Nothing is read or timed: all figures are counts, the same on every machine.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import zarr

import patchloom
from benchmarks import environment

SHARES = (0.05, 0.10, 0.25, 0.50, 1.00)
"""Windows, as shares of the patches."""
IMAGES = (5, 20, 80)
"""Numbers of images."""
PLANS = {
    "aligned": ((16384, 16384), (512, 512), (256, 256), (0, 0)),
    "straddling": ((16384, 16384), (512, 512), (256, 256), (32, 32)),
    "volumes": ((256, 2048, 2048), (64, 64, 64), (64, 64, 64), (16, 16, 16)),
}
"""Shape and chunks of each image, patch size and overlaps."""
ROWS = 64
"""Patches of a shard."""


@dataclass(frozen=True)
class Record:
    """One plan.

    Parameters
    ----------
    plan, n_images, n_patches, n_groups
        What was planned.
    window
        Rows of a window over all rows.
    image, region
        Mean entropy of batches of 64 over that of batches of a random permutation of all rows.
    groups_per_shard
        Distinct groups in a shard of 64, on average.
    amplification
        Decodes of chunks over chunks needed.
    """

    plan: str
    n_images: int
    n_patches: int
    n_groups: int
    window: float
    image: float
    region: float
    groups_per_shard: float
    amplification: float


def main(argv: Sequence[str]) -> int:
    """Run the benchmark of shuffled orders.

    Parameters
    ----------
    argv
        Arguments after ``mixing``.

    Returns
    -------
    int
        Exit status.
    """
    options = _parser().parse_args(argv)
    records: list[Record] = []
    print(_HEADER, flush=True)
    with tempfile.TemporaryDirectory(prefix="patchloom-mixing-") as temporary:
        for name in options.plan or PLANS:
            for n in options.images or IMAGES:
                for share in SHARES:
                    records.append(measure(Path(temporary), name, n, share))
                    print(_row(records[-1]), flush=True)
    if options.output is not None:
        found = [asdict(record) for record in records]
        environment.save(options.output, "mixing", argv, records=found)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks mixing", description=__doc__)
    parser.add_argument("--plan", action="append", choices=tuple(PLANS), help="may be repeated")
    parser.add_argument("--images", action="append", type=int, help="may be repeated")
    parser.add_argument("--output", type=Path, help="JSON file for the records")
    return parser


def measure(folder: Path, name: str, n: int, share: float) -> Record:
    """Plan `n` images without a chunk written, with windows of a share of their patches.

    Parameters
    ----------
    folder
        Gets the images.
    name
        One of `PLANS`.
    n
        Number of images.
    share
        Of all groups, in a window.

    Returns
    -------
    Record
    """
    shape, chunks, size, overlaps = PLANS[name]
    paths = [folder / f"{len(shape)}d-{k:03}.zarr" for k in range(n)]
    for path in paths:
        if not path.exists():
            zarr.create_array(path, shape=shape, chunks=chunks, dtype="uint16")
    images = patchloom.open_images([str(path) for path in paths])
    config = {"name": "sequential", "patch_size": list(size), "overlaps": list(overlaps)}
    # The budget admits any window: what is asked here is what each would do.
    asked: dict[str, Any] = {"order": "shuffled", "rows_per_shard": ROWS, "memory": "4 TiB"}
    n_groups = len(patchloom.plan(images, config, **asked, window=1).groups)
    plan = patchloom.plan(images, config, **asked, window=max(1, round(share * n_groups)))
    found = plan.mixing()
    return Record(
        plan=name,
        n_images=n,
        n_patches=plan.n_patches,
        n_groups=n_groups,
        window=min(1.0, plan.window_rows / plan.n_patches),
        image=found["image"]["relative"],
        region=found["region"]["relative"],
        groups_per_shard=found["groups_per_shard"],
        amplification=plan.chunk_reads / plan.chunks_needed,
    )


_HEADER = (
    f"{'plan':10} {'images':>6} {'patches':>9} {'groups':>7} {'window':>6} {'image':>6} "
    f"{'region':>6} {'groups/shard':>12} {'reads/chunk':>11}"
)


def _row(record: Record) -> str:
    return (
        f"{record.plan:10} {record.n_images:6} {record.n_patches:9,} {record.n_groups:7,} "
        f"{record.window:6.0%} {record.image:6.3f} {record.region:6.3f} "
        f"{record.groups_per_shard:12.1f} {record.amplification:11.2f}"
    )
