"""CAREamics: its extractor over Zarr image stacks, one patch at a time on two threads."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Any

import zarr
from careamics.dataset.image_stack import ZarrImageStack
from careamics.dataset.patch_extractor import PatchExtractor
from patches import Job, Take, serve, two_threads


def cut(job: Job, wanted: Any, take: Take) -> None:
    stacks = []
    for url in job.arrays:
        parent, name = posixpath.split(url)
        group = zarr.open_group(parent, mode="r", storage_options=job.storage_options or None)
        stacks.append(ZarrImageStack(group, name, job.axes.upper()))
    extractor = PatchExtractor(stacks)

    def one(number: int, corner: Sequence[int]) -> None:
        take(number, extractor.extract_patch(corner[0], 0, corner[1:], job.patch_size))

    two_threads(job, wanted, one)


if __name__ == "__main__":
    serve("careamics", cut)
