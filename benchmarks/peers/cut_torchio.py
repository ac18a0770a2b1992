"""TorchIO: the whole image in memory, and the cells of its grid sampler on two threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchio
from patches import CannotError, Job, Take, open_array, serve, two_threads


def cut(job: Job, wanted: Any, take: Take) -> None:
    if job.overlaps is None:
        raise CannotError("its samplers draw their own places; a grid is all that can be asked")
    if any(o % 2 for o in job.overlaps):
        raise CannotError("overlaps of its grid are even")
    flat = 3 - len(job.patch_size)
    size = (*job.patch_size, *(1,) * flat)
    overlaps = (*job.overlaps, *(0,) * flat)
    made: dict[int, Any] = {}
    places: dict[int, dict[tuple[int, ...], int]] = {}

    def sampler(image: int) -> Any:
        if image not in made:
            made.clear()
            pixels = open_array(job.arrays[image], job.storage_options)[...]
            shape = pixels.shape[-len(job.patch_size) :]
            if pixels.dtype == np.uint16:
                pixels = pixels.astype(np.int32)  # it knows no uint16
            pixels = pixels.reshape(job.n_channels, *shape, *(1,) * flat)
            subject = torchio.Subject(image=torchio.ScalarImage(tensor=torch.from_numpy(pixels)))
            grid = torchio.GridSampler(subject, size, overlaps)
            firsts = grid.locations[:, : len(job.patch_size)]
            places[image] = {job.at(first): k for k, first in enumerate(firsts)}
            made[image] = grid
        return made[image]

    def one(number: int, corner: Sequence[int]) -> None:
        grid = sampler(corner[0])
        found = grid[places[corner[0]][job.at(corner[1:])]]
        take(number, found["image"].data.numpy().reshape(job.patch_shape))

    if len(job.arrays) == 1:
        sampler(0)
        two_threads(job, wanted, one)
        return
    for number, corner in zip(wanted.tolist(), job.corners[wanted].tolist(), strict=True):
        one(number, corner)


if __name__ == "__main__":
    serve("torchio", cut)
