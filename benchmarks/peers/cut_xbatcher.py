"""xbatcher: a generator over a lazily opened array, asked for the kept batches on two threads."""

from __future__ import annotations

import math
import posixpath
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from patches import CannotError, Job, Take, serve, two_threads
from xbatcher import BatchGenerator


def _open(job: Job, image: int) -> Any:
    parent, name = posixpath.split(job.arrays[image])
    group = xr.open_dataset(
        parent,
        engine="zarr",
        consolidated=False,
        mask_and_scale=False,
        cache=False,
        storage_options=job.storage_options or None,
        drop_variables=["mask.zarr", "1", "2"],
    )
    return group[name]


def cut(job: Job, wanted: Any, take: Take) -> None:
    if job.overlaps is None:
        raise CannotError("batches lie on a grid")
    stride = [n - o for n, o in zip(job.patch_size, job.overlaps, strict=True)]
    space = [axis for axis in job.axes if axis != "c"]
    made: dict[int, tuple[Any, tuple[int, ...]]] = {}

    def generator(image: int) -> tuple[Any, tuple[int, ...]]:
        if image not in made:
            batches = BatchGenerator(
                _open(job, image),
                input_dims=dict(zip(space, job.patch_size, strict=True)),
                input_overlap={a: o for a, o in zip(space, job.overlaps or (), strict=True) if o},
            )
            shape = job.shapes[image][len(job.axes) - len(space) :]
            counts = [
                (n - p) // s + 1 for n, p, s in zip(shape, job.patch_size, stride, strict=True)
            ]
            if len(batches) != math.prod(counts):
                raise ValueError(f"{len(batches)} batches, {counts} were expected")
            made[image] = batches, tuple(counts)
        return made[image]

    def one(number: int, corner: Sequence[int]) -> None:
        batches, counts = generator(corner[0])
        at = tuple(a // s for a, s in zip(corner[1:], stride, strict=True))
        found = batches[int(np.ravel_multi_index(at, counts))]
        take(number, found.values.reshape(job.patch_shape))

    generator(0)
    two_threads(job, wanted, one)


warnings.filterwarnings("ignore", message="Object at")  # other arrays beside the image

if __name__ == "__main__":
    serve("xbatcher", cut)
