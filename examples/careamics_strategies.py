"""One of our strategies inside a CAREamicsDataset, and one of CAREamics' inside our planner.

Needs ``pip install patchloom careamics``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import zarr
from careamics.config.data.data_config import DataConfig
from careamics.dataset.dataset import CareamicsDataset
from careamics.dataset.image_stack_loader import load_zarrs
from careamics.dataset.patch_constructor import BasicPatchConstr
from careamics.dataset.patch_extractor import PatchExtractor
from careamics.dataset.patching import FixedRandomPatching
from torch.utils.data import DataLoader
from torch.utils.data._utils.collate import default_collate

import patchloom
from patchloom.careamics import EpochPatching
from patchloom.patching import StratifiedPatching

SHAPE, SIZE, CHUNK, EPOCHS = (700, 900), (64, 64), (256, 256), 2


def ours_in_careamics(group: Path) -> list[tuple[int, ...]]:
    """Stratified patches over the chunks of a Zarr; answers where the patches lay."""
    extractor = PatchExtractor(load_zarrs([group], "YX"))
    chunks = [CHUNK] * len(extractor.shapes)
    strategy = StratifiedPatching(extractor.shapes, SIZE, seed=7, chunks=chunks)
    patching = EpochPatching(strategy)
    config = DataConfig(
        mode="training",
        data_type="zarr",
        axes="YX",
        patching={"name": "stratified", "patch_size": SIZE},  # must be said, is not used
        normalization={"name": "mean_std"},
    )
    dataset = CareamicsDataset(config, BasicPatchConstr(patching, extractor))
    loader = DataLoader(
        dataset, 8, shuffle=True, num_workers=2, persistent_workers=True, collate_fn=default_collate
    )
    places: list[tuple[int, ...]] = []
    for epoch in range(EPOCHS):
        patching.set_epoch(epoch)  # other places; without it the same ones again
        for (batch,) in loader:
            # A network would be trained with batch.data: float32[batch, 1, 64, 64].
            places += zip(*(axis.tolist() for axis in batch.region_spec["coords"]), strict=True)
    return places


def theirs_in_our_planner(array: Path, output: Path) -> patchloom.PatchStore:
    """The patches of CAREamics' strategy in a store, each chunk decoded once."""
    images = patchloom.open_images(str(array))
    plan = patchloom.plan(images, FixedRandomPatching([(1, 1, *SHAPE)], SIZE, seed=7))
    patchloom.materialize(plan, str(output), progress=False)
    return patchloom.open_patches(str(output))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        group, pixels = Path(folder, "images.zarr"), np.random.default_rng(0).random(SHAPE, "f4")
        zarr.create_group(group).create_array("raw", data=pixels, chunks=CHUNK)
        places = ours_in_careamics(group)
        print(f"{len(places)} patches in {EPOCHS} epochs, {len(set(places))} places")
        store = theirs_in_our_planner(group / "raw", Path(folder, "train.zarr"))
        print(f"{len(store)} patches in a store")
