"""zarrdataset: its dataset over Zarr v2 arrays, in a DataLoader with two workers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import zarrdataset
from batches import Asked, Load, serve
from torch.utils.data import DataLoader


def _load(shuffle: bool) -> Load:
    """Patches of the image, chunk after chunk, which is how it is meant to be used."""

    def load(asked: Asked) -> Iterable[Any]:
        specs = zarrdataset.ImagesDatasetSpecs(
            filenames=asked.source_v2, source_axes="YX", axes="YX"
        )
        size = dict.fromkeys("YX", asked.side)
        stride = dict.fromkeys("YX", asked.stride)
        sampler = zarrdataset.PatchSampler(size, stride=stride, spatial_axes="YX")
        dataset = zarrdataset.ZarrDataset(
            [specs], patch_sampler=sampler, shuffle=shuffle, draw_same_chunk=shuffle
        )
        loader: Iterable[Any] = DataLoader(
            dataset,
            batch_size=asked.batch,
            num_workers=asked.threads,
            persistent_workers=True,
            worker_init_fn=zarrdataset.zarrdataset_worker_init_fn,
            # Torch of its age makes no tensor of uint16.
            collate_fn=np.stack,
        )
        return loader

    return load


if __name__ == "__main__":
    serve("zarrdataset", {"sequential": _load(False), "shuffled": _load(True), "live": _load(True)})
