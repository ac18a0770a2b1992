"""Draws by weight, splits at load and conditions, against row by row in NumPy."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchloom.errors import ConfigError
from patchloom.load.conditions import Conditions
from patchloom.load.sampling import Sampling, _waits
from patchloom.load.splitting import split_patches
from patchloom.load.weights import weights_of
from tests.held_patches import HeldPatches

WEIGHTS = st.lists(st.sampled_from([0.0, 0.0, 1.0, 2.5, 1e-3, 1e300]), min_size=1, max_size=30)
VALUES = st.lists(st.none() | st.sampled_from("abc"), min_size=1, max_size=20)


def upto(n: int) -> Any:
    return np.arange(n, dtype=np.int64)


def held(n: int, **columns: Any) -> HeldPatches:
    return HeldPatches({"images": np.arange(n).reshape(n, 1, 1, 1)}, columns)


# -- sampling ---------------------------------------------------------------------------


@given(
    weights=WEIGHTS.filter(any),
    replacement=st.booleans(),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
    data=st.data(),
)
def test_a_draw_depends_on_where_it_is(
    weights: list[float], replacement: bool, seed: int, epoch: int, data: st.DataObject
) -> None:
    """Any visits asked in any batches are those of the whole epoch; what has no weight never is."""
    drawn = Sampling(len(weights), weights=np.array(weights), replacement=replacement, seed=seed)
    whole = drawn.at(epoch, upto(drawn.n))
    assert whole.dtype == np.int64
    assert (np.array(weights)[whole] > 0).all()
    some = np.array(data.draw(st.lists(st.integers(0, drawn.n - 1), max_size=9)), np.int64)
    again = pickle.loads(pickle.dumps(drawn))
    assert again.at(epoch, some).tolist() == whole[some].tolist()
    if not replacement:
        assert sorted(whole.tolist()) == np.flatnonzero(weights).tolist()
        fewer = Sampling(
            len(weights), drawn.n // 2, np.array(weights), replacement=False, seed=seed
        )
        assert fewer.at(epoch, upto(fewer.n)).tolist() == whole[: fewer.n].tolist()


def chi_square(counts: Any, expected: Any) -> float:
    return float((((counts - expected) ** 2) / expected).sum())


@pytest.mark.parametrize("replacement", [True, False])
def test_proportions_are_the_weights(replacement: bool) -> None:
    """Over epochs; without replacement those of the first visit, and of the second given it."""
    weights = np.array([1.0, 0.0, 2.0, 3.0, 4.0])
    drawn = Sampling(5, weights=weights, replacement=replacement, seed=3)
    epochs = np.stack([drawn.at(epoch, upto(2)) for epoch in range(20_000)])
    share = weights / weights.sum()
    first = np.bincount(epochs[:, 0], minlength=5)
    kept = share > 0
    assert chi_square(first[kept], 20_000 * share[kept]) < 25
    pairs = Counter(map(tuple, epochs.tolist()))
    for a in np.flatnonzero(kept).tolist():
        for b in np.flatnonzero(kept).tolist():
            rest = share[b] / (1 - share[a]) if not replacement else share[b]
            expected = 20_000 * share[a] * (rest if replacement or a != b else 0)
            assert abs(pairs[a, b] - expected) <= 6 * math.sqrt(expected) + 1e-9


def test_uniform_draws() -> None:
    drawn = Sampling(7, 70_000)
    counts = np.bincount(drawn.at(0, upto(70_000)), minlength=7)
    assert chi_square(counts, np.full(7, 10_000.0)) < 30
    assert drawn.at(0, upto(9)).tolist() != drawn.at(1, upto(9)).tolist()
    once = Sampling(7, replacement=False)
    assert sorted(once.at(2, upto(7)).tolist()) == [*range(7)]


def test_draws_are_pinned() -> None:
    """On every machine and in every version the same."""
    weights = np.arange(6.0)
    told = [
        Sampling(6, weights=weights, replacement=replacement, seed=11).at(2, upto(5)).tolist()
        for replacement in (True, False)
    ]
    assert told == [[5, 3, 4, 5, 3], [5, 3, 4, 2, 1]]


@given(st.floats(2**-54, 1, exclude_max=True))
def test_waiting_times_are_logarithms(chance: float) -> None:
    """To the last bits, of operations that all machines round alike."""
    found = float(_waits(np.array([chance]))[0])
    assert found >= 0
    assert math.isclose(found, -math.log(chance), rel_tol=4e-16, abs_tol=1e-17)


@pytest.mark.parametrize(
    "weights", [[1, -1], [1, math.nan], [1, math.inf], [0, 0], [1], [[1, 1]], "no", [1, "a"], 3]
)
def test_weights_that_cannot_be(weights: Any) -> None:
    with pytest.raises(ConfigError):
        held(2).sampling(weights)


def test_too_few_to_draw() -> None:
    with pytest.raises(ConfigError, match=r"without replacement .* 3 visits of 2"):
        held(3).sampling([1, 0, 1], visits=3, replacement=False)
    with pytest.raises(ConfigError):
        held(0).sampling(visits=1)
    assert held(0).sampling().at(0, upto(0)).tolist() == []
    assert held(0).sampling([], replacement=False).n == 0


# -- weights ----------------------------------------------------------------------------


@given(VALUES)
def test_values_are_drawn_alike(values: list[str | None]) -> None:
    """The weights of each value's patches add to the same, whatever their number."""
    table = pa.table({"class": pa.array(values, pa.string())})
    found = weights_of(table, "class")
    assert found.tolist() == [1 / values.count(value) for value in values]


@given(VALUES, st.data())
def test_values_are_drawn_in_proportion(values: list[str | None], data: st.DataObject) -> None:
    shares = {v: data.draw(st.integers(1, 9)) for v in {*values}}
    table = pa.table({"class": pa.array(values, pa.string()), "n": [*range(len(values))]})
    found = weights_of(table, {"class": shares})
    for value in {*values}:
        mine = [w for w, v in zip(found, values, strict=True) if v == value]
        assert math.isclose(sum(mine), shares[value])
    both = weights_of(table, {"class": shares, "n": {k: k + 1 for k in range(len(values))}})
    np.testing.assert_allclose(both, found * (np.arange(len(values)) + 1))


def test_weights_by_expression_and_their_errors() -> None:
    patches = held(3, coverage=[0.5, 1.0, 0.0], kind=pa.array(["a", "b", None]))
    assert weights_of(patches.manifest, "1 + 2 * coverage").tolist() == [2, 3, 1]
    with pytest.raises(ConfigError, match=r"got none for \[None\]"):
        patches.sampling({"kind": {"a": 1, "b": 2}})
    with pytest.raises(ConfigError, match="image_id, coverage, kind, got 'knd'"):
        patches.sampling({"knd": {"a": 1}})
    with pytest.raises(ConfigError, match="coverage, kind, got 'covrage'"):
        patches.sampling("covrage")
    with pytest.raises(ConfigError):
        patches.sampling("kind == 'a'")


# -- splits at load -----------------------------------------------------------------------


@settings(deadline=None)
@given(
    groups=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    fractions=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_no_group_lies_in_two_splits(groups: list[int], fractions: list[int], seed: int) -> None:
    """Each patch in one split, each group in one, their numbers within rounding of their shares."""
    names = ["train", "val", "test"][: len(fractions)]
    shares = dict(zip(names, fractions, strict=True))
    patches = held(len(groups), donor=groups)
    n = len({*groups})
    if n < len(names):
        with pytest.raises(ConfigError, match="each split gets a group"):
            split_patches(patches, "donor", fractions=shares, seed=seed)
        return
    parts = split_patches(patches, "donor", fractions=shares, seed=seed)
    assert [*parts] == names
    found = {name: {*parts[name].manifest["donor"].to_pylist()} for name in names}
    assert sum(map(len, found.values())) == n == len({*groups})
    assert sum(part.n_patches for part in parts.values()) == len(groups)
    for name in names:
        assert parts.counts[name] == (len(found[name]), parts[name].n_patches)
        assert abs(len(found[name]) - n * shares[name] / sum(fractions)) < 1 or len(names) > n / 2
    mixed = np.random.default_rng(seed).permutation(groups)
    other = split_patches(held(len(groups), donor=mixed), "donor", fractions=shares, seed=seed)
    assert other.groups == parts.groups


def test_splits_of_the_plan_and_several_columns() -> None:
    patches = held(4, split=["val", "train", "val", "train"], day=[1, 1, 2, 2], donor=[*"abab"])
    parts = split_patches(patches, "split")
    assert {k: v.n_patches for k, v in parts.items()} == {"train": 2, "val": 2}
    joint = split_patches(patches, ["donor", "day"], fractions={"train": 3, "val": 1})
    assert {*joint.groups} == {'["a", 1]', '["b", 1]', '["a", 2]', '["b", 2]'}
    with pytest.raises(ConfigError, match="fractions= too"):
        split_patches(patches, "split", fractions={"train": 1})
    with pytest.raises(ConfigError, match="got 'no'"):
        split_patches(patches, "no")
    with pytest.raises(ConfigError, match="is not None"):
        split_patches(held(2, donor=pa.array([None, "a"])), "donor")
    with pytest.raises(ConfigError, match="a number above 0"):
        split_patches(patches, "donor", fractions={"train": 0})


# -- conditions ---------------------------------------------------------------------------


@given(train=VALUES, other=VALUES, unseen=st.sampled_from(["error", "zeros"]))
def test_conditions_equal_one_hot_by_hand(
    train: list[str | None], other: list[str | None], unseen: str
) -> None:
    table = pa.table({"stain": pa.array(train, pa.string()), "day": [*range(len(train))]})
    encoder = Conditions.fit(table, "stain", unseen=unseen)
    known = sorted({v for v in train if v is not None}) + [None] * (None in train)
    assert encoder.categories == (tuple(known),)
    again = Conditions.from_json(encoder.to_json())
    assert again == encoder
    rows = pa.table({"stain": pa.array(other, pa.string())})
    if unseen == "error" and {*other} - {*known}:
        with pytest.raises(ConfigError, match="was seen in training"):
            again.encode(rows)
        return
    expected = [[float(value == one) for one in known] for value in other]
    found = again.encode(rows)
    assert found.dtype == np.float32
    assert found.tolist() == expected
    batch = again({"stain": np.array(other, object), "image": 1})
    assert batch["condition"].tolist() == expected
    assert batch["image"] == 1
    single = again({"stain": other[0]})["condition"]
    assert single.tolist() == expected[0]


def test_conditions_of_numbers_flags_and_their_errors() -> None:
    patches = held(3, day=pa.array([3, 1, 3], pa.int8()), sick=[True, False, True])
    encoder = Conditions.fit(patches, ["day", "sick"])
    assert encoder.names == ("day=1", "day=3", "sick=False", "sick=True")
    assert encoder.encode({"day": np.array([1]), "sick": np.array([True])}).tolist() == [
        [1, 0, 0, 1]
    ]
    assert len(Conditions.from_json(encoder.to_json()).encode(patches)) == 3
    with pytest.raises(ConfigError, match="are of the kind that was fitted"):
        encoder.encode({"day": ["x"], "sick": [True]})
    with pytest.raises(ConfigError, match="columns=encoder"):
        encoder({"image": 1})
    with pytest.raises(ConfigError, match="are categories"):
        Conditions.fit(pa.table({"a": [0.5]}), "a")
    with pytest.raises(ConfigError, match="unseen="):
        Conditions.fit(patches, "day", unseen="guess")
    with pytest.raises(ConfigError, match="fit it anew"):
        Conditions.from_json("{}")
