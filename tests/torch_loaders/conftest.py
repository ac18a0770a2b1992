"""What these tests share: a store, and Keras on PyTorch."""

from __future__ import annotations

import os

# Before anything imports Keras.
os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import pytest

import patchloom


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> patchloom.PatchStore:
    """75 patches of three images, 8 a shard, with a target: blurred noise, and the noise."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 4096, (80, 80), "uint16") for _ in range(3)]
    blurred = [
        np.mean([np.roll(n, k, axis) for k in (-1, 0, 1) for axis in (0, 1)], 0).astype("uint16")
        for n in noise
    ]
    images = patchloom.open_images(blurred, ids=["a", "b", "c"], target=noise)
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]}, rows_per_shard=8)
    url = str(tmp_path_factory.mktemp("store") / "s.zarr")
    patchloom.materialize(plan, url, progress=False)
    return patchloom.open_patches(url)
