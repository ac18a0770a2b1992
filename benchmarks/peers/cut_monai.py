"""MONAI: the whole image in memory, and its grid of patches or one crop after another."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.transforms import GridPatch, SpatialCrop
from patches import Job, Take, open_array, serve


def cut(job: Job, wanted: Any, take: Take) -> None:
    corners = job.corners[wanted]
    for image in np.unique(corners[:, 0]).tolist():
        pixels = open_array(job.arrays[image], job.storage_options)[...]
        pixels = pixels.reshape(job.n_channels, *pixels.shape[-len(job.patch_size) :])
        here = corners[:, 0] == image
        numbers, listed = wanted[here].tolist(), corners[here, 1:]
        if job.overlaps is None:
            for number, corner in zip(numbers, listed.tolist(), strict=True):
                end = [a + n for a, n in zip(corner, job.patch_size, strict=True)]
                take(number, np.asarray(SpatialCrop(roi_start=corner, roi_end=end)(pixels)))
            continue
        share = 0.0, *(o / n for o, n in zip(job.overlaps, job.patch_size, strict=True))
        made = GridPatch(patch_size=tuple(job.patch_size), overlap=share)(pixels)
        place = dict(
            zip(map(job.at, np.asarray(made.meta["location"]).T), range(len(made)), strict=True)
        )
        patches = made.numpy() if hasattr(made, "numpy") else np.asarray(made)
        for number, corner in zip(numbers, listed, strict=True):
            take(number, patches[place[job.at(corner)]])


if __name__ == "__main__":
    serve("monai", cut)
