"""Filters: what they keep by their words, and the luck of what they reject."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import BaseModel, TypeAdapter
from scipy import ndimage, stats

from patchloom.errors import ConfigError, PlanError
from patchloom.planning.filters import AnyFilter, FilterConfig, lucky, parse_filters, rejections
from patchloom.randomness import key_of
from patchloom.scores import Score

Pixels = npt.NDArray[Any]


def one(**config: Any) -> AnyFilter:
    [found] = parse_filters([config])
    return found


def columns(
    filters: tuple[AnyFilter, ...] | list[AnyFilter], pixels: Pixels, mask: Pixels
) -> dict[str, npt.NDArray[np.float64]]:
    ndim = pixels.ndim - 2
    found = {s.column: s.of(pixels) for f in filters for s in f.scores(ndim)}
    return found | {"coverage": mask.reshape(len(mask), -1).mean(axis=1)}


def entropy(patch: Pixels) -> float:
    _, n = np.unique(patch, return_counts=True)
    return float(-(n / patch.size * np.log2(n / patch.size)).sum())


def kept(config: dict[str, Any], patch: Pixels, mask: Pixels) -> bool:
    """The rule of a filter on one patch [channels, *space], by its words."""
    own, ndim = patch[config.get("ref_channel", 0)], patch.ndim - 1
    name, coverage = config["name"], config.get("coverage")
    coverage = 0.5**ndim if coverage is None else coverage
    if name == "mask":
        return bool(np.count_nonzero(mask) / mask.size >= coverage)
    if name == "max":
        window = [max(1, p // 2) for p in own.shape]
        lit = ndimage.maximum_filter(own, window, mode="nearest")
        enough = np.mean(lit > config["threshold"]) >= coverage
        return bool(enough and own.max() >= config["threshold"])
    if name == "mean_std":
        spread = config.get("std_threshold")
        return bool(
            own.mean() >= config["mean_threshold"] and (spread is None or own.std() >= spread)
        )
    if name == "shannon":
        return bool(entropy(own) >= config["threshold"])
    if name == "saturation":
        level = config.get("level") or np.iinfo(own.dtype).max
        return bool(np.mean(own >= level) <= config["threshold"])
    assert name == "range"
    value = {"max": own.max(), "nodata": np.mean(own == 0), "coverage": mask.mean()}
    found = value[config["score"]]
    return bool(config.get("min", -math.inf) <= found <= config.get("max", math.inf))


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], Pixels, Pixels]:
    """A filter, patches whose scores lie around its threshold, and their masks."""
    space = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 2)), *space)
    dtype: Any = draw(st.sampled_from([np.uint8, np.int16]))
    few = st.sampled_from([0, 1, 2, 3, int(np.iinfo(dtype).max)])
    pixels = draw(hnp.arrays(dtype, shape, elements=few))
    mask = draw(hnp.arrays(np.bool_, (shape[0], *space)))
    share = st.sampled_from([0, 0.1, 0.25, 1 / 3, 0.5, 1])
    level = st.sampled_from([-3.0, 0.5, 1, 2, 2.5, 255])
    config: dict[str, Any] = draw(
        st.one_of(
            st.fixed_dictionaries(
                {"name": st.just("max"), "threshold": level}, optional={"coverage": share}
            ),
            st.fixed_dictionaries(
                {"name": st.just("mean_std"), "mean_threshold": level},
                optional={"std_threshold": level},
            ),
            # No entropy of so few pixels is as round as these.
            st.fixed_dictionaries(
                {"name": st.just("shannon"), "threshold": st.sampled_from([-1, 0.3217, 1.2345])}
            ),
            st.fixed_dictionaries({"name": st.just("mask")}, optional={"coverage": share}),
            st.fixed_dictionaries(
                {"name": st.just("saturation"), "threshold": share},
                optional={"level": st.sampled_from([1, 2.5, 300])},
            ),
            st.fixed_dictionaries(
                {"name": st.just("range"), "score": st.just("max"), "min": level}
            ),
            st.fixed_dictionaries(
                {
                    "name": st.just("range"),
                    "score": st.just("nodata"),
                    "params": st.just({"value": 0}),
                    "max": share,
                }
            ),
            st.fixed_dictionaries(
                {"name": st.just("range"), "score": st.just("coverage"), "max": share}
            ),
        )
    )
    if config["name"] != "mask" and config.get("score") != "coverage":
        config["ref_channel"] = shape[1] - 1
    return config, pixels, mask


@settings(max_examples=60, deadline=None)
@given(cases())
def test_filters_keep_what_their_words_say(case: tuple[dict[str, Any], Pixels, Pixels]) -> None:
    """From columns alone, each decides as its rule does on the pixels of one patch."""
    config, pixels, mask = case
    found = one(**config)
    keeps = found.keeps(columns([found], pixels, mask), pixels.ndim - 2)
    assert keeps.dtype == np.bool_
    wanted = [kept(config, p, m) for p, m in zip(pixels, mask, strict=True)]
    assert keeps.tolist() == wanted


def test_focus_keeps_the_sharp() -> None:
    """A blurred patch falls below a threshold that a sharp one reaches."""
    sharp = np.random.default_rng(3).poisson(50, (32, 32)).astype(np.float32)
    pixels = np.stack([sharp, ndimage.gaussian_filter(sharp, 2)])[:, None]
    score = Score("focus").of(pixels)
    found = one(name="focus", threshold=float(score[0]))
    assert found.keeps({"focus": score}, 2).tolist() == [True, False]


def test_a_threshold_needs_no_other_column() -> None:
    """What is computed depends on what is looked at, not on thresholds."""
    for low, high in (
        ({"name": "max", "threshold": 1}, {"name": "max", "threshold": 9, "coverage": 0.25}),
        ({"name": "shannon", "threshold": 1}, {"name": "shannon", "threshold": 2}),
        (
            {"name": "range", "score": "std", "min": 1},
            {"name": "range", "score": "std", "max": 5, "filtered_patch_prob": 0.5},
        ),
    ):
        assert one(**low).scores(2) == one(**high).scores(2)
    assert one(name="max", threshold=1, coverage=0.25).scores(3)[0].column == "bright_25"
    assert one(name="max", threshold=1, coverage=0.125).scores(3)[0].column == "bright"


def test_no_score_is_rejected() -> None:
    """A patch of which nothing is known passes no filter."""
    nothing = np.full(1, np.nan)
    for found in parse_filters(EVERY):
        cols = {s.column: nothing for s in found.scores(2)} | {"coverage": nothing}
        assert not found.keeps(cols, 2).any()


EVERY: list[dict[str, Any]] = [
    {"name": "max", "threshold": 50},
    {"name": "max", "threshold": 0.5, "coverage": 0.0, "ref_channel": 1},
    {"name": "mean_std", "mean_threshold": -3, "std_threshold": 2.5},
    {"name": "shannon", "threshold": 3, "filtered_patch_prob": 0.1},
    {"name": "mask"},
    {"name": "focus", "threshold": 1e-3},
    {"name": "saturation", "threshold": 0.01, "level": 4095},
    {"name": "range", "score": "nodata", "max": 0, "params": {"value": -1}},
    {"name": "range", "score": "coverage", "min": 0.1, "max": 0.9},
]
REASONS = [
    "filter max: below 50",
    "filter max of channel 1: below 0.5 (coverage 0)",
    "filter mean_std: mean below -3 or std below 2.5",
    "filter shannon: below 3",
    "filter mask: coverage below the default",
    "filter focus: below 0.001",
    "filter saturation: above 0.01 (level 4095)",
    "filter range: nodata above 0 (value -1)",
    "filter range: coverage below 0.1 or above 0.9",
]


def test_reasons_and_a_round_trip() -> None:
    """Each says why it rejects, and comes back from JSON as it was."""
    filters = parse_filters(EVERY)
    assert [f.reason for f in filters] == REASONS
    text = json.dumps([f.model_dump(mode="json") for f in filters])
    assert parse_filters(json.loads(text)) == filters
    assert parse_filters(filters) == filters
    assert TypeAdapter(FilterConfig).json_schema()["discriminator"]["propertyName"] == "name"


class Foreign(BaseModel):
    """A model of another library."""

    name: str = "max"
    ref_channel: int = 0
    filtered_patch_prob: float = 0.1
    threshold: float = 7.0


def test_models_of_others_keep_their_defaults() -> None:
    """What another library's model says by default is said."""
    [found] = parse_filters([Foreign()])
    assert found == one(name="max", threshold=7, filtered_patch_prob=0.1)


@pytest.mark.parametrize(
    ("configs", "says"),
    [
        ({"name": "max", "threshold": 1}, "filters is a list"),
        ("max", "filters is a list"),
        (["max"], r"filters\[0\] is a mapping"),
        ([{"threshold": 1}], "has a name out of"),
        ([{"name": "mask"}, {"name": "shanon"}], r"filters\[1\].*did you mean 'shannon'"),
        ([{"name": "max", "treshold": 1}], "did you mean 'threshold'"),
        ([{"name": "max"}], r"filters\[0\] \(max\).threshold: Field required"),
        ([{"name": "max", "threshold": "1"}], r"threshold: .*got '1'"),
        ([{"name": "max", "threshold": math.nan}], "finite"),
        ([{"name": "max", "threshold": 1, "coverage": 1.5}], "coverage.*got 1.5"),
        ([{"name": "mask", "filtered_patch_prob": 2}], "filtered_patch_prob"),
        ([{"name": "mask", "ref_channel": 1}], "ref_channel"),
        ([{"name": "max", "threshold": 1, "ref_channel": -1}], "ref_channel"),
        ([{"name": "saturation", "threshold": 3}], "less than or equal to 1"),
        ([{"name": "range", "score": "mean"}], "a min, a max or both"),
        ([{"name": "range", "score": "mean", "min": 2, "max": 1}], "min is at most max"),
        ([{"name": "range", "score": "maen", "min": 2}], "did you mean 'mean'"),
        ([{"name": "range", "score": "max", "min": 2, "params": {"x": 1}}], "parameters"),
        ([{"name": "range", "score": "coverage", "min": 0, "ref_channel": 1}], "no channel"),
    ],
)
def test_wrong_filters_are_refused(configs: Any, says: str) -> None:
    """Each error names the filter and the key, what it got, and the way out."""
    with pytest.raises(ConfigError, match=says):
        parse_filters(configs)


# -- luck -----------------------------------------------------------------------------------


def grid(n: int) -> list[npt.NDArray[np.int64]]:
    """n**2 addresses: a sample, y and x, apart like patches."""
    y, x = np.divmod(np.arange(n * n), n)
    return [y * 0, y * 64, x * 64]


def shannons(*shares: float) -> tuple[AnyFilter, ...]:
    return parse_filters(
        [{"name": "shannon", "threshold": 1, "filtered_patch_prob": p} for p in shares]
    )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_luck_is_as_frequent_as_it_is_said(share: float) -> None:
    """Over many addresses, images and seeds, in every part of the image, by chi-square."""
    for seed, image in ((0, "a"), (1, "a"), (0, "b")):
        luck = lucky(shannons(share), seed, key_of(image), grid(200))[:, 0]
        n = luck.reshape(-1, 400).sum(axis=1)
        wanted = np.array([share, 1 - share]) * 400
        chi = (((np.stack([n, 400 - n], 1) - wanted) ** 2) / wanted).sum()
        assert 1e-4 < stats.chi2.sf(chi, len(n)) < 1 - 1e-4


def test_luck_is_independent() -> None:
    """Of filters that look at other things, of equal ones, of seeds and of images."""
    two = parse_filters(
        [
            {"name": "shannon", "threshold": 1, "filtered_patch_prob": 0.5},
            {"name": "shannon", "threshold": 1, "filtered_patch_prob": 0.5},
            {"name": "shannon", "threshold": 1, "filtered_patch_prob": 0.5, "ref_channel": 1},
            {"name": "focus", "threshold": 1, "filtered_patch_prob": 0.5},
            {"name": "range", "score": "std", "min": 1, "filtered_patch_prob": 0.5},
            {"name": "range", "score": "max", "min": 1, "filtered_patch_prob": 0.5},
        ]
    )
    address = grid(100)
    draws = [
        *lucky(two, 0, key_of("a"), address).T,
        lucky(two, 1, key_of("a"), address)[:, 0],
        lucky(two, 0, key_of("b"), address)[:, 0],
        lucky(two, 0, key_of("a"), [address[0] + 1, *address[1:]])[:, 0],
    ]
    for k, first in enumerate(draws):
        for second in draws[:k]:
            n = np.histogram2d(first, second, bins=2)[0]
            assert stats.chi2_contingency(n, correction=False).pvalue > 1e-5


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**63), st.data())
def test_luck_has_an_address(low: float, high: float, seed: int, data: st.DataObject) -> None:
    """It does not depend on thresholds, other filters or what is asked together, and grows."""
    low, high = sorted((low, high))
    address = grid(20)
    less, more = (lucky(shannons(p), seed, 5, address)[:, 0] for p in (low, high))
    assert not (less & ~more).any()
    others = parse_filters(
        [
            {"name": "mask", "filtered_patch_prob": 0.5},
            {"name": "shannon", "threshold": 9, "filtered_patch_prob": high},
        ]
    )
    some = np.array(data.draw(st.lists(st.integers(0, 399), max_size=9)), np.int64)
    again = lucky(others, seed, 5, [column[some] for column in address])
    assert again[:, 1].tolist() == more[some].tolist()


def test_luck_of_none_and_of_all() -> None:
    """0 is never, 1 is always, and what is next to them is next to that."""
    luck = lucky(shannons(0, 1, 2**-64, 1 - 2**-53), 0, 0, grid(50))
    assert luck.all(axis=0).tolist() == [False, True, False, True]
    assert luck.any(axis=0).tolist() == [False, True, False, True]
    with pytest.raises(PlanError, match="one to four"):
        lucky(shannons(0.5), 0, 0, [])


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_rejections_add_up(data: st.DataObject) -> None:
    """The first filter that rejects, unless luck says otherwise: patch by patch."""
    n, filters = data.draw(st.integers(0, 20)), shannons(*([0.5] * data.draw(st.integers(0, 3))))
    scores = data.draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.5, 1, 1.5])))
    luck = data.draw(hnp.arrays(np.bool_, (n, len(filters))))
    found = rejections(filters, {"entropy": scores}, 2, luck)
    for k in range(n):
        out = [f for f in range(len(filters)) if scores[k] < 1 and not luck[k, f]]
        assert found[k] == (out[0] if out else -1)
