"""Superpositions against sums by hand: what is drawn is fixed by its address, levels move along."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchloom.errors import ConfigError
from patchloom.load.microsplit import MicroSplit
from patchloom.load.visit import Addressed, Visit
from patchloom.normalization import Normalization
from tests.held_patches import HeldPatches


def patches_of(n: int, channels: int, levels: int = 0, first: int = 0) -> HeldPatches:
    """Each pixel tells its array, patch and channel."""
    arrays = {}
    for level, name in enumerate(["images", *(f"context_{k + 1}" for k in range(levels))]):
        base = 1000 * level + 10 * np.arange(first, first + n)[:, None] + np.arange(channels)
        arrays[name] = np.broadcast_to(base[:, :, None, None], (n, channels, 2, 3)).astype("uint16")
    return HeldPatches(arrays)


def batch_of(patches: HeldPatches, positions: Any) -> dict[str, Any]:
    return {
        ("image" if k == "images" else k): v[positions].copy() for k, v in patches.arrays.items()
    }


def made_by(split: MicroSplit, patches: HeldPatches, positions: Sequence[int], **visit: Any) -> Any:
    where = np.array(positions, np.int64)
    told = {"seed": 0, "epoch": 0, "turns": np.arange(len(where)), **visit}
    return split.visited(batch_of(patches, where), Visit(positions=where, **told))


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 12),
    channels=st.integers(1, 4),
    levels=st.integers(0, 2),
    apart=st.sampled_from([0.0, 0.5, 1.0]),
    drawn=st.booleans(),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_multiplexed_by_hand(
    n: int, channels: int, levels: int, apart: float, drawn: bool, seed: int, data: st.DataObject
) -> None:
    """Each target channel is that of some patch; the input is the weighted sum, level by level,
    with the channels of the same places.
    """
    patches = patches_of(n, channels, levels)
    alphas = [(0.25 * c, 1.0 + c) for c in range(channels)] if drawn else None
    split = MicroSplit.multiplexed(patches, alphas=alphas, uncorrelated=apart)
    assert isinstance(split, Addressed)
    positions = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8))
    made = made_by(split, patches, positions, seed=seed)
    target, weights = made["target"], made["alphas"]
    assert target.shape == (len(positions), channels, 2, 3)
    assert made["image"].shape == (len(positions), 1 + levels, 2, 3)
    assert made["image"].dtype == np.float32
    place, channel = np.divmod(target[:, :, 0, 0].astype(int), 10)
    assert (channel == np.arange(channels)).all()
    assert ((place >= 0) & (place < n)).all()
    # One channel at least is from the patch itself.
    assert (place == np.array(positions)[:, None]).any(1).all()
    assert (made["places"] == place).all()
    if apart == 0:
        assert (place == np.array(positions)[:, None]).all()
    if alphas is None:
        assert (weights == np.float32(1 / channels)).all()
    else:
        low, high = np.array(alphas, np.float32).T
        assert ((weights >= low) & (weights <= high)).all()
    for level in range(1 + levels):
        summed = np.zeros(len(positions), np.float32)
        for c in range(channels):
            summed += (1000 * level + 10 * place[:, c] + c).astype(np.float32) * weights[:, c]
        assert (made["image"][:, level] == summed[:, None, None]).all()
    # Patch by patch, in another process, in any order: the same.
    again = pickle.loads(pickle.dumps(split))
    for k in reversed(range(len(positions))):
        one = made_by(again, patches, positions[k : k + 1], seed=seed, turns=np.array([k]))
        assert all((one[key][0] == made[key][k]).all() for key in made)


def test_draws_are_even_and_anew_in_each_epoch() -> None:
    patches = patches_of(6, 3)
    split = MicroSplit.multiplexed(patches, alphas=[(0, 1)] * 3, uncorrelated=0.25)
    positions = np.tile(np.arange(6), 1000)
    made = [made_by(split, patches, positions, epoch=epoch) for epoch in (0, 1)]  # type: ignore[arg-type]
    assert (made[0]["alphas"] != made[1]["alphas"]).mean() > 0.99
    weights = made[0]["alphas"]
    assert abs(weights.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(weights.T) - np.eye(3)).max() < 0.06
    place = made[0]["target"][:, :, 0, 0] // 10
    moved = (place != positions[:, None]).any(1)
    # Of those that are apart, both others are from their own place by chance.
    assert abs(moved.mean() - 0.25 * (1 - 1 / 36)) < 0.02
    stayed = (place == positions[:, None])[moved]
    assert abs(stayed.mean(0) - (1 + 2 * (5 / 35)) / 3).max() < 0.05
    others = place[moved][~stayed]
    assert np.bincount(others, minlength=6).min() > len(others) / 6 * 0.85


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    levels=st.integers(0, 1),
    seed=st.integers(0, 5),
)
def test_separate_by_hand(counts: list[int], levels: int, seed: int) -> None:
    """A channel of each source; one from the patch that is visited, the others from any."""
    firsts = [100 * k for k in range(len(counts))]
    sources = [patches_of(n, 1, levels, f) for n, f in zip(counts, firsts, strict=True)]
    split = MicroSplit.separate(sources)
    principal = counts.index(max(counts))
    assert split.patches is sources[principal]
    positions = [*range(max(counts))] * 2
    made = made_by(split, sources[principal], positions, seed=seed)
    place = made["target"][:, :, 0, 0].astype(int) // 10 - np.array(firsts)
    assert place[:, principal].tolist() == positions
    assert ((place >= 0) & (place < np.array(counts))).all()
    assert (made["places"] == place).all()
    summed = np.zeros(len(positions), np.float32)
    for c, first in enumerate(firsts):
        summed += (1000 * levels + 10 * (place[:, c] + first)).astype(np.float32) * np.float32(
            1 / len(counts)
        )
    np.testing.assert_array_equal(made["image"][:, levels, 1, 1], summed)


def test_partners_are_of_the_same_part() -> None:
    """What a training patch is mixed with is a training patch."""
    whole = patches_of(40, 2)
    train = whole.take(np.arange(0, 40, 2))
    split = MicroSplit.multiplexed(train, uncorrelated=1)
    positions = np.arange(20)
    batch = batch_of(whole, 2 * positions)
    made = split.visited(batch, Visit(0, 0, positions, positions))
    assert (made["target"][:, :, 0, 0] // 10 % 2 == 0).all()
    assert len({*(made["target"][:, :, 0, 0] // 10).ravel().tolist()}) > 12


@pytest.mark.parametrize("name", ["alphas", "places", "target"])
def test_columns_are_not_shadowed(name: str) -> None:
    """Those that are called as what is made are refused."""
    patches = patches_of(4, 2, 0)
    where = np.arange(3)
    batch = {**batch_of(patches, where), name: np.ones(3)}
    with pytest.raises(ConfigError, match=f"{name}.*columns=..new name"):
        MicroSplit.multiplexed(patches).visited(batch, Visit(0, 0, where, where))


def test_paired_and_prediction() -> None:
    patches = patches_of(4, 1, 2)
    split = MicroSplit.paired(patches)
    where = np.array([2, 0])
    batch = {**batch_of(patches, where), "target": np.ones((2, 3, 2, 3)), "position": where}
    made = split.visited(batch, Visit(0, 0, where, where))
    assert made["image"][:, :, 0, 0].tolist() == [[20, 1020, 2020], [0, 1000, 2000]]
    assert {*made} == {"image", "target", "position"}
    assert (made["target"] == 1).all()
    assert made_by(split, patches, [1]).keys() == {"image"}
    some = MicroSplit.paired(patches, context=["context_2"])
    batch = batch_of(patches, where)
    assert some.visited(batch, Visit(0, 0, where, where))["image"].shape[1] == 2


def test_channels_of_all_levels_are_scaled_alike() -> None:
    patches = patches_of(3, 2, 1)
    scale = Normalization(
        "min-max",
        "channel",
        False,
        ("a", "b"),
        ("all",),
        ((10.0, 1.0),),
        ((10.0, 5.0),),
    )
    split = MicroSplit.multiplexed(patches, normalize=scale)
    made = made_by(split, patches, [2])
    assert made["target"][0, :, 0, 0].tolist() == [1.0, 4.0]
    assert made["image"][0, :, 0, 0].tolist() == [2.5, np.float32((101 + 204) / 2)]


def test_what_comes_then() -> None:
    patches = patches_of(3, 2)

    def twice(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "image": 2 * batch["image"]}

    split = MicroSplit.multiplexed(patches, then=twice)
    assert made_by(split, patches, [1])["image"].max() == 21


@pytest.mark.parametrize(
    "make",
    [
        lambda p: MicroSplit.separate([p]),
        lambda p: MicroSplit.separate([p, patches_of(2, 2)]),
        lambda p: MicroSplit.separate([p, HeldPatches({"images": np.zeros((2, 1, 2, 3))})]),
        lambda p: MicroSplit.separate([p, patches_of(0, 1)]),
        lambda p: MicroSplit.multiplexed(p, alphas=[(1, 0)]),
        lambda p: MicroSplit.multiplexed(p, alphas=[1]),  # type: ignore[list-item]
        lambda p: MicroSplit.multiplexed(p, uncorrelated=2),
        lambda p: MicroSplit.multiplexed(p, context=["context_1"]),
        lambda p: made_by(MicroSplit.multiplexed(p, alphas=[(0, 1)] * 2), p, [0]),
        lambda p: MicroSplit.paired(patches_of(2, 1, 1)).visited(
            batch_of(p, [0]), Visit(0, 0, np.array([0]), np.array([0]))
        ),
    ],
)
def test_what_cannot_be(make: Any) -> None:
    with pytest.raises(ConfigError):
        make(patches_of(2, 1))


def pair(batch: dict[str, Any]) -> Any:
    return batch["image"], batch["target"]


def test_tuples_of_single_patches() -> None:
    """What is called with batches may make a tuple of them, of single patches, too."""
    patches = patches_of(5, 2)
    split = MicroSplit.multiplexed(patches, then=pair)
    [(images, targets)] = patches.batches(5, shuffle=False, transform=split)
    course = patches.course(None, shuffle=False, transform=split)
    each = [*course.run(0, course.batching(), range(5))]
    for k, (image, target) in enumerate(each):
        assert (image == images[k]).all()
        assert (target == targets[k]).all()
    assert len(each) == 5
