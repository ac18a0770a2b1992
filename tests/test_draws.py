"""Draws and quotas: exact numbers, equal chances, even spread."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import ConfigError, PlanError
from patchloom.image import Image
from patchloom.planning.draws import Draw, apportion, share_out
from patchloom.planning.quotas import BalanceConfig, QuotaConfig, class_quotas, image_quotas


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_draw_takes_exactly_so_many(data: st.DataObject) -> None:
    """Of each stratum, however its members are mixed and in whatever pieces they pass."""
    available = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=4), label="available")
    taken = [data.draw(st.integers(0, n), label="taken") for n in available]
    strata = np.repeat(np.arange(-1, len(available)), [5, *available])
    strata = np.array(data.draw(st.permutations(strata.tolist()), label="strata"), np.int64)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(strata)), max_size=4), label="cuts"))

    def flags(pieces: list[int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        draw = Draw(
            np.array(available),
            np.array(taken),
            seed=data.draw(st.just(3)),
            keys=range(len(available)),
        )
        return np.concatenate([draw.next(part) for part in np.split(strata, pieces)])

    found = flags(cuts)
    assert not found[strata < 0].any()
    assert [int(found[strata == k].sum()) for k in range(len(available))] == taken
    assert (found == flags([])).all(), "pieces play no part"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.data())
def test_a_draw_is_spread_evenly(n: int, data: st.DataObject) -> None:
    """No stretch of consecutive members gives many more than its share."""
    q = data.draw(st.integers(1, n))
    seed = data.draw(st.integers(0, 99))
    draw = Draw(np.array([n]), np.array([q]), seed=seed, keys=["x"])
    upto = np.concatenate([[0], np.cumsum(draw.next(np.zeros(n, np.int64)))])
    for length in {1, n // 7, n // 3, n} - {0}:
        inside = upto[length:] - upto[:-length]
        # At both ends of a stretch, and where numbering began, one more or less.
        assert inside.max() <= length * q / n + 3
        assert inside.min() >= length * q / n - 3


def test_each_member_has_the_same_chance() -> None:
    """Chi-square over many seeds, where members do not divide evenly."""
    n, q, seeds = 13, 8, 20_000
    times = np.zeros(n)
    for seed in range(seeds):
        draw = Draw(np.array([n]), np.array([q]), seed=seed, keys=["x"])
        times += draw.next(np.zeros(n, np.int64))
    expected = seeds * q / n
    # 32.9: exceeded once in a thousand with 12 degrees of freedom.
    assert ((times - expected) ** 2 / expected).sum() < 32.9


def test_a_draw_of_billions_is_exact() -> None:
    """Products beyond 64 bits: the numbers of members near 2**40."""
    n, q = 2**40 + 12_345, 2**39 - 777
    draw = Draw(np.array([n]), np.array([q]), seed=1, keys=["x"])
    number = np.concatenate([np.arange(4000), n // 2 + np.arange(4000), n - 4000 + np.arange(4000)])
    taken = draw._drawn(0, number)
    begin = draw._begin[0]
    for some in np.split(number, 3):
        place = [(int(k) - begin) % n for k in some]
        # A stretch holds its pick: between two neighbours of a stretch exactly one is taken.
        stretch = np.array([((p + 1) * q + n - 1) // n - 1 for p in place])
        found = taken[np.searchsorted(number, some)]
        whole = np.unique(stretch)[1:-1]
        per = np.array([found[stretch == k].sum() for k in whole])
        assert (per == 1).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(0, 80))
def test_shares_are_as_even_as_can_be(available: list[int], total: int) -> None:
    """Like handing out one by one to whoever has got least and has more."""
    taken = [0] * len(available)
    for _ in range(min(total, sum(available))):
        least = min(
            (k for k in range(len(available)) if taken[k] < available[k]),
            key=lambda k: (taken[k], k),
        )
        taken[least] += 1
    found = share_out(np.array(available), total).tolist()
    assert sorted(found) == sorted(taken)
    assert sum(found) == sum(taken)
    assert all(a <= b for a, b in zip(found, available, strict=True))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.fractions(Fraction(1, 50), 5), min_size=1, max_size=5), st.integers(0, 500))
def test_apportioned_numbers_add_up(shares: list[Fraction], total: int) -> None:
    """Each within one of its exact share."""
    found = apportion(dict(enumerate(shares)), total)
    assert sum(found.values()) == total
    for key, share in enumerate(shares):
        assert abs(found[key] - share * total / sum(shares)) < 1


def images(counts: int, groups: list[str] | None = None) -> list[Image]:
    """Small images, with a group each."""
    arrays = [np.zeros((8, 8), np.uint8)] * counts
    sample = {f"i{k}": {"group": g} for k, g in enumerate(groups)} if groups else None
    return patchloom.open_images(arrays, ids=[f"i{k}" for k in range(counts)], sample=sample)


def test_quotas_of_images() -> None:
    """All limits hold together; the choice of images does not depend on their order."""
    available = np.array([5, 0, 9, 9, 3])
    groups = ["a", "a", "a", "b", "b"]
    some = images(5, groups)
    quota = QuotaConfig(per_image=6, per_group=7, group="group", n_patches=12)
    found = image_quotas(quota, some, available, 0, shared=True)
    assert found.tolist() == [3, 0, 3, 3, 3]
    quota = QuotaConfig(n_images=2)
    found = image_quotas(quota, some, available, 0, shared=True)
    assert np.count_nonzero(found) == 2
    turned = image_quotas(quota, some[::-1], available[::-1], 0, shared=True)
    assert found.tolist() == turned[::-1].tolist()
    assert {tuple(image_quotas(quota, some, available, s, shared=True)) for s in range(40)} != {
        tuple(found)
    }


def test_groups_must_be_known() -> None:
    """Each image has the column, and both are said."""
    with pytest.raises(ConfigError, match="'site'"):
        image_quotas(
            QuotaConfig(per_group=2, group="site"),
            images(2, ["a", "b"]),
            np.array([3, 3]),
            0,
            shared=True,
        )
    with pytest.raises(ConfigError, match="together"):
        image_quotas(QuotaConfig(per_group=2), images(2), np.array([3, 3]), 0, shared=True)


def test_quotas_of_classes() -> None:
    """Exact proportions, the largest total by default, and clear refusals."""
    available = {0: 100, 1: 7, 2: 3}
    assert class_quotas(BalanceConfig(), available, None) == {0: 3, 1: 3, 2: 3}
    assert class_quotas(BalanceConfig(classes=[0, 1]), available, None) == {0: 7, 1: 7}
    shares = BalanceConfig(classes={0: 0.5, 1: 0.3, 2: 0.2})
    assert class_quotas(shares, available, None) == {0: 5, 1: 3, 2: 2}, "10 hold exactly, 15 do not"
    assert class_quotas(shares, available, 15) == {0: 8, 1: 4, 2: 3}
    few = BalanceConfig(classes={1: 0.7, 2: 0.3})
    assert class_quotas(few, {1: 5, 2: 5}, None) == {1: 5, 2: 2}, "no whole numbers hold"
    assert class_quotas(shares, available, 10) == {0: 5, 1: 3, 2: 2}
    assert class_quotas(BalanceConfig(counts={1: 7, 2: 1}), available, None) == {1: 7, 2: 1}
    with pytest.raises(PlanError, match="4 of class 2 of 3"):
        class_quotas(shares, available, 20)
    with pytest.raises(PlanError, match=r"none shows \[9\]"):
        class_quotas(BalanceConfig(classes=[0, 9]), available, None)
    with pytest.raises(PlanError, match="8 of class 1 of 7"):
        class_quotas(BalanceConfig(counts={1: 8}), available, None)
    with pytest.raises(ConfigError, match="add up"):
        class_quotas(BalanceConfig(counts={1: 3}), available, 5)
