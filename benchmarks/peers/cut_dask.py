"""Plain Dask: a delayed slice a patch on threads, and all windows of a sliding view."""

from __future__ import annotations

import sys
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.array.lib.stride_tricks import sliding_window_view
from patches import CannotError, Job, Take, open_array, serve, windows

TOGETHER = 2_000
"""Slices of one `compute`: what Dask does before it begins grows faster than their number."""


def cut(job: Job, wanted: Any, take: Take) -> None:
    corners = job.corners[wanted].tolist()
    arrays: dict[int, Any] = {}

    def one(number: int, pixels: Any) -> int:
        take(number, pixels.reshape(job.patch_shape))
        return number

    with dask.config.set(scheduler="threads", num_workers=job.threads):
        for some in windows(list(zip(wanted.tolist(), corners, strict=True)), TOGETHER):
            tasks = []
            for number, (image, *corner) in some:
                if image not in arrays:
                    zarr = open_array(job.arrays[image], job.storage_options)
                    arrays[image] = da.from_zarr(zarr)
                tasks.append(dask.delayed(one)(number, arrays[image][job.box(corner)]))
            dask.compute(*tasks)


def cut_windows(job: Job, wanted: Any, take: Take) -> None:
    """Every window of the grid is made, since a mask has no place in a view; kept ones count."""
    if job.overlaps is None:
        raise CannotError("sliding windows lie on a grid")
    if len(job.arrays) > 1:
        raise CannotError("a view is of one array")
    space = tuple(i for i, axis in enumerate(job.axes) if axis != "c")
    stride = [n - o for n, o in zip(job.patch_size, job.overlaps, strict=True)]
    corners = job.corners[wanted]
    numbers = dict(zip(map(job.at, corners[:, 1:] // stride), wanted.tolist(), strict=True))
    array = da.from_zarr(open_array(job.arrays[0], job.storage_options))
    view = sliding_window_view(array, tuple(job.patch_size), axis=space)
    steps = [slice(None)] * view.ndim
    for axis, step in zip(space, stride, strict=True):
        steps[axis] = slice(None, None, step)
    view = view[tuple(steps)]
    if job.axes[0] == "c":
        # A patch has all channels.
        view = view.rechunk({0: -1})

    def hand_out(block: Any, block_info: Any = None) -> Any:
        place = block_info[0]["array-location"]
        first = [place[axis][0] for axis in space]
        for index in np.ndindex(*(block.shape[axis] for axis in space)):
            number = numbers.get(job.at(np.add(first, index)))
            if number is not None:
                at = (slice(None), *index) if job.axes[0] == "c" else index
                take(number, block[at].reshape(job.patch_shape))
        return np.zeros((1,) * block.ndim, dtype=np.int8)

    with dask.config.set(scheduler="threads", num_workers=job.threads):
        view.map_blocks(
            hand_out, dtype=np.int8, chunks=tuple((1,) * n for n in view.numblocks)
        ).compute()


if __name__ == "__main__":
    if "windows" in sys.argv:
        serve("dask windows", cut_windows, package="dask")
    else:
        serve("dask", cut)
