"""zarrdataset: its dataset, chunk after chunk, with a sampler that is told where patches lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
import zarrdataset
from patches import Job, Take, serve


class _Listed(zarrdataset.PatchSampler):  # type: ignore[misc]
    """A sampler of its own kind: the listed corners that lie in the chunk at hand."""

    def __init__(self, corners: Any, size: dict[str, int], axes: str) -> None:
        super().__init__(size, stride=dict.fromkeys(axes, 1), spatial_axes=axes)
        self._corners = corners

    def _compute_valid_toplefts(self, chunk_tlbr: Any, mask: Any, patch_size: Any, **_: Any) -> Any:
        low = np.array([chunk_tlbr[a].start or 0 for a in self.spatial_axes])
        high = np.array([chunk_tlbr[a].stop for a in self.spatial_axes])
        inside = ((self._corners >= low) & (self._corners < high)).all(axis=1)
        return self._corners[inside] - low


def cut(job: Job, wanted: Any, take: Take) -> None:
    corners = job.corners[wanted]
    axes = job.axes.upper()
    space = axes.replace("C", "")
    size = dict(zip(space, job.patch_size, strict=True))
    for image in np.unique(corners[:, 0]).tolist():
        here = corners[:, 0] == image
        numbers: dict[tuple[int, ...], list[int]] = {}
        for number, corner in zip(wanted[here].tolist(), corners[here, 1:], strict=True):
            numbers.setdefault(job.at(corner), []).append(number)
        source: Any = job.twins[image]
        if job.storage_options:
            source = zarr.open(source, mode="r", storage_options=job.storage_options)
        specs = zarrdataset.ImagesDatasetSpecs(filenames=source, source_axes=axes, axes=axes)
        sampler = _Listed(corners[here, 1:], size, space)
        dataset = zarrdataset.ZarrDataset([specs], patch_sampler=sampler, return_positions=True)
        for positions, pixels in dataset:
            first = [int(p[0]) for p, axis in zip(positions, axes, strict=True) if axis != "C"]
            take(numbers[job.at(first)].pop(), pixels.reshape(job.patch_shape))


if __name__ == "__main__":
    serve("zarrdataset", cut)
