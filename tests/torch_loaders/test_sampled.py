"""Draws, parts, mergers and superpositions in real workers: the same batches however they start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import patchloom
from patchloom import MicroSplit

pytest.importorskip("torch")

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of two stores with two channels, all images but one."""
    stores = {}
    for name, ids in {"one": "ab", "two": "cde"}.items():
        rng = np.random.default_rng(len(name) + len(ids))
        pixels = [rng.integers(0, 200, (2, 64, 64), dtype="uint8") for _ in ids]
        images = patchloom.open_images(pixels, axes="cyx", ids=[*ids])
        config = {"name": "sequential", "patch_size": [16, 16]}
        plan = patchloom.plan(images, config, rows_per_shard=8)
        path: Path = tmp_path_factory.mktemp(name) / "s.zarr"
        patchloom.materialize(plan, str(path), progress=False)
        stores[name] = patchloom.open_patches(str(path))
    return patchloom.merge_patches(stores).where('image_id != "e"')


def loader(part: Any, workers: int, way: str = "forkserver") -> Any:
    split = MicroSplit.multiplexed(part, alphas=[(0, 1)] * 2, uncorrelated=0.5)
    batches = part.to_torch(
        batch_size=6,
        order=part.sampling("store", seed=2),
        columns=["position"],
        transform=split,
        seed=3,
    )
    more = {"multiprocessing_context": way} if workers else {}
    return batches.loader(num_workers=workers, **more)


def told(batches: Any) -> list[Any]:
    return [
        (b["position"].tolist(), b["image"].sum().item(), b["alphas"].tolist()) for b in batches
    ]


def test_draws_are_the_same_however_workers_start(part: Any) -> None:
    expected = told(loader(part, 0))
    assert len(expected) == -(-part.n_patches // 6)
    for way in ("fork", "forkserver", "spawn"):
        assert told(loader(part, 2, way)) == expected, way


def test_draws_go_on_with_another_number_of_workers(part: Any) -> None:
    first = loader(part, 2)
    batches = iter(first)
    _ = [next(batches) for _ in range(3)]
    state = first.state_dict()
    rest = told(batches)
    again = loader(part, 1)
    again.load_state_dict(state)
    assert told(again) == rest
    assert len(rest) > 3


def test_conditions_are_tensors(part: Any) -> None:
    encoder = patchloom.Conditions.fit(part, ["image_id"])
    batches = part.to_torch(
        batch_size=5, columns=encoder.columns, transform=encoder, fields=["image", "condition"]
    )
    for image, condition in batches.loader(num_workers=0):
        assert (len(image), condition.shape[1]) == (len(condition), 4)
        assert (condition.sum(1) == 1).all()
    one = part.to_torch(columns=encoder.columns, transform=encoder)
    assert next(iter(one))["condition"].shape == (4,)
