"""The page of statistics: bars are pixels, lines are percentiles, flags follow the rule."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import patchloom
from patchloom.charts import Mark, grey_chart
from patchloom.histogram import Histogram, span_of
from patchloom.run.histograms import MOST_IMAGES, drawn_channels
from patchloom.run.page import page
from patchloom.run.stats_page import stats_page
from patchloom.summaries import Summary, summarize
from patchloom.summaries.table import Cell, Statistics, Subject
from tests.test_plan_page import read

Pixels = np.ndarray[Any, np.dtype[Any]]


def statistics_of(images: Mapping[str, Sequence[Pixels]], channels: Sequence[str]) -> Statistics:
    """Statistics of images as lists of channels."""
    found = {
        Cell(i, c): summarize(np.asarray(pixels))
        for i, planes in enumerate(images.values())
        for c, pixels in enumerate(planes)
    }
    return Statistics(found, tuple(Subject(name) for name in images), tuple(channels))


def bars_of(chart: str) -> list[list[float]]:
    """The heights of both layers of bars, the pale one first."""
    found = []
    for path in re.findall(r'<path fill="[^"]+"[^>]* d="M\d+ (\d+)([^"]*)V\d+z"', chart):
        foot, steps = int(path[0]), path[1]
        found.append([foot - float(y) for y in re.findall(r"V([\d.]+)H", steps)])
    return found


def lines_of(chart: str) -> list[float]:
    """Where the percentiles are marked, as shares of the axis."""
    return [
        (float(x) - 10) / 340 for x in re.findall(r'stroke-dasharray="4 3" d="M([\d.]+) ', chart)
    ]


small = hnp.arrays(np.float64, st.integers(1, 60), elements=st.integers(-50, 300).map(float))
wide = hnp.arrays(
    np.float64,
    st.integers(1, 60),
    elements=st.floats(allow_nan=False, allow_infinity=False, min_value=-1e100, max_value=1e100),
)


@given(pixels=small | wide, data=st.data())
def test_bars_count_pixels(pixels: Pixels, data: st.DataObject) -> None:
    """As numpy.histogram does, and nothing beyond them is lost."""
    lowest, highest = float(pixels.min()), float(pixels.max())
    marks = data.draw(st.lists(st.sampled_from(pixels.tolist()), max_size=3))
    span = span_of(lowest, highest, marks)
    values, counts = np.unique(pixels + 0.0, return_counts=True)
    found = Histogram.of(values, counts, span)
    assert len(found.counts) <= 128
    np.testing.assert_array_equal(found.counts, np.histogram(pixels, found.edges)[0])
    assert found.below == (pixels < found.edges[0]).sum()
    assert found.above == (pixels > found.edges[-1]).sum()
    # The axis shows what is marked.
    assert all(found.edges[0] <= mark <= found.edges[-1] for mark in marks)


@given(pixels=small)
def test_bars_of_whole_numbers_have_no_comb(pixels: Pixels) -> None:
    """Each bar holds equally many integers."""
    span = span_of(float(pixels.min()), float(pixels.max()))
    edges = Histogram.of(*np.unique(pixels, return_counts=True), span).edges
    assert (edges % 1 == 0.5).all()
    assert len(set(np.diff(edges).tolist())) == 1


@given(
    knots=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20, unique=True),
    data=st.data(),
)
def test_a_bucket_is_spread_over_its_bars(knots: list[float], data: st.DataObject) -> None:
    """In proportion to what a bar covers of it; an oracle sums the overlaps one by one."""
    knots.sort()
    near, far = np.array(knots[:-1]), np.array(knots[1:])
    assume((far - near > 1e-3).all())
    counts = np.array(
        data.draw(st.lists(st.integers(0, 99), min_size=len(near), max_size=len(near)))
    )
    low, high = sorted(data.draw(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))))
    span = span_of(low, high)
    found = Histogram.of(near, counts, span, far=far, bins=7)
    for k in range(7):
        a, b = found.edges[k : k + 2]
        share = np.clip(np.minimum(far, b) - np.maximum(near, a), 0, None) / (far - near)
        assert math.isclose(found.counts[k], (share * counts).sum(), rel_tol=1e-6, abs_tol=1e-3)
    assert math.isclose(found.total, counts.sum(), rel_tol=1e-9, abs_tol=1e-6)


@given(
    low=st.floats(allow_nan=False, allow_infinity=False),
    high=st.floats(allow_nan=False, allow_infinity=False),
    marks=st.lists(st.floats(), max_size=4),
)
@example(low=0.0, high=0.0, marks=[])
@example(low=5e-324, high=1e-323, marks=[5e-324, 1e-323])
@example(low=-1.7e308, high=1.7e308, marks=[-1.7e308, 1.7e308])
@example(low=2.0**60, high=2.0**60 + 256, marks=[])
def test_any_axis_can_be_drawn(low: float, high: float, marks: list[float]) -> None:
    """From one end of floats to the other, constant ones and denormals."""
    low, high = min(low, high), max(low, high)
    span = span_of(low, high, marks)
    found = Histogram.of(np.array([low, high]), np.array([1, 1]), span)
    assert (np.diff(found.edges) > 0).all()
    chart = grey_chart(found, "any", [Mark("p1", v) for v in marks], band=(low, high), told=True)
    assert not re.search(
        r"\b(nan|inf)\b",
        re.sub(r"<title>.*?</title>|<text.*?</text>|aria-label=\"[^\"]*\"", "", chart),
    )
    read(chart)


def test_heights_are_counts_and_their_logarithms() -> None:
    """The tallest bar fills the chart; a bar of one pixel beside a million is still seen."""
    counts = np.array([1_000_000, 10, 0, 1, 250_000])
    found = Histogram.of(np.arange(5.0), counts, (0.0, 4.0))
    pale, solid = bars_of(grey_chart(found, "five levels"))
    expected = np.where(counts > 0, np.maximum(96 * counts / counts.max(), 0.5), 0)
    np.testing.assert_allclose(solid, expected, atol=0.06)
    np.testing.assert_allclose(pale, 96 * np.log1p(counts) / np.log1p(1e6), atol=0.06)


def test_lines_stand_at_the_percentiles() -> None:
    """And one line stands for all that are one grey level."""
    pixels = np.random.default_rng(0).integers(0, 200, 999, np.uint8)
    q = np.percentile(pixels.astype(float), (5, 50, 95))
    found = Histogram.of(*np.unique(pixels.astype(float), return_counts=True), (0.0, 199.0))
    marks = [Mark(f"p{k}", v) for k, v in zip((5, 50, 95), q.tolist(), strict=True)]
    chart = grey_chart(found, "noise", [*marks, Mark("mode", float(q[1]))])
    low, high = found.edges[0], found.edges[-1]
    np.testing.assert_allclose(lines_of(chart), (q - low) / (high - low), atol=1e-3)
    assert f"p50, mode {q[1]:,.5g}</text>" in chart
    assert f"p95 {q[2]:,.5g}" in chart.split("aria-label")[1]


def test_labels_cover_no_other() -> None:
    """However near each other their lines are."""
    found = Histogram.of(np.arange(100.0), np.ones(100, int), (0.0, 99.0))
    marks = [Mark(f"p{k}", v) for k, v in enumerate([0.0, 1.0, 1.5, 40.0, 41.0, 98.0, 99.0])]
    chart = grey_chart(found, "close", marks)
    boxes = [
        (float(x), float(y), 6.4 * len(text) / 2)
        for x, y, text in re.findall(r'<text x="([\d.]+)" y="(\d+)"[^>]*>(p\d [^<]+)<', chart)
    ]
    assert len(boxes) == len(marks)
    for k, (x, y, half) in enumerate(boxes):
        assert half - 0.1 <= x <= 360.1 - half
        assert all(y != v or abs(x - u) > half + other for u, v, other in boxes[:k])


def test_a_page_says_the_numbers() -> None:
    """Those of NumPy, in its table and on its lines; each channel of all images and of each."""
    rng = np.random.default_rng(1)
    images = {f"i{k}": [rng.integers(0, 4000, 500, np.uint16) for _ in "ab"] for k in range(3)}
    found = statistics_of(images, ["DAPI", "GFP"])
    reader = read(stats_page(found, (2, 98)))
    [numbers] = [t for name, t in reader.tables.items() if name.startswith("Over all pixels")]
    row = dict(zip(numbers[0], numbers[4], strict=True))
    pixels = images["i1"][1].astype(float)
    low, high = np.percentile(pixels, (2, 98))
    assert (row["image"], row["channel"], row["count"]) == ("i1", "GFP", "500")
    assert [row["p2"], row["p98"]] == [f"{v:,.5g}" if v % 1 else f"{v:,.0f}" for v in (low, high)]
    pooled = np.percentile(np.concatenate([planes[0] for planes in images.values()]), (2, 98))
    [dapi, gfp] = drawn_channels(found, (2, 98))
    assert [mark.value for mark in dapi.whole.marks] == pooled.tolist()
    assert [mark.value for mark in gfp.images[1].marks] == [low, high]
    text = "".join(reader.words)
    assert "All 3 images together" in text
    assert "Channel DAPI by image: no outliers" in text


def test_outliers_are_flagged_and_come_first() -> None:
    """In words, not only by colour, and in the channel where they are."""
    rng = np.random.default_rng(2)
    images = {f"i{k:02}": [rng.poisson(300, 900), rng.poisson(50, 900)] for k in range(40)}
    images["i33"][0] = images["i33"][0] * 3
    found = statistics_of(
        {name: [p.astype(np.uint16) for p in planes] for name, planes in images.items()},
        ["DAPI", "GFP"],
    )
    html = stats_page(found, (5, 95))
    dapi, gfp = re.findall(r"<details.*?</details>", html, re.S)
    figures = re.findall(r"<figure.*?</figure>", dapi, re.S)
    assert len(figures) == MOST_IMAGES
    assert re.search(r"<b>i33</b>.*Outlier: \w+ is [\d,.]+, typical [\d,.]+\.", figures[0])
    assert figures[0].startswith("<figure class=flagged")
    assert "flagged" not in "".join(figures[1:]) + gfp
    assert "24 of 40 are drawn" in dapi
    rows = read(html).tables["Numbers that are far from those of the other images"]
    assert {row[0] for row in rows[1:]} == {"i33"}
    # All others share one axis.
    ticks = {
        tuple(re.findall(r'middle" fill="currentColor">([\d,]+)<', f)[:0:-1]) for f in figures[1:]
    }
    assert len({t[0] for t in ticks}) == 1


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((0,), np.uint8),
        np.full(9, np.nan, np.float32),
        np.full(9, 7, np.uint16),
        np.array([True, False, True]),
        np.array([5e-324, 1e-323, 0.0]),
        np.array([-np.inf, 1.0, 2.0, np.inf, np.nan]),
        np.array([np.inf, np.inf]),
        np.array([-1.7e308, 0.0, 1.7e308]),
        np.array([2**63 - 1, -(2**63)], np.int64),
        np.random.default_rng(3).normal(1000, 5, 90_000).astype(np.float32),
    ],
    ids=["none", "nan", "constant", "bool", "denormal", "infinite", "all", "far", "int64", "float"],
)
def test_any_pixels_have_a_page(pixels: Pixels) -> None:
    """Without a warning; beside images that are usual."""
    usual = np.linspace(0, 1, 50).astype(pixels.dtype)
    found = statistics_of({"odd": [pixels], "usual": [usual]}, ["0"])
    html = stats_page(found, (1, 50, 99))
    assert len(read(html).tables) >= 1
    assert read(found._repr_html_()).words
    assert read(stats_page(found, ())).words
    assert read(stats_page(statistics_of({"odd": [pixels]}, ["0"]))).words


def test_buckets_draw_no_comb() -> None:
    """Buckets wider than bars fill all bars between their ends."""
    pixels = np.random.default_rng(4).uniform(1000, 1100, 200_000).astype(np.float32)
    found = statistics_of({"noise": [pixels]}, ["0"])
    [channel] = drawn_channels(found, (1, 99))
    whole = channel.whole
    bars = Histogram.of(whole.values, whole.counts, whole.span(), far=whole.far)
    truth = np.histogram(pixels, bars.edges)[0]
    inner = slice(8, -8)
    assert not found.dataset().attrs["exact"]
    np.testing.assert_allclose(bars.counts[inner], truth[inner], rtol=0.25)


def test_a_page_escapes_what_others_wrote() -> None:
    """Ids and channel names are text, not markup."""
    evil = "<script>alert('1')</script>\"&"
    rng = np.random.default_rng(5)
    images = {f"{evil}{k}": [rng.poisson(300 * (1 + 9 * (k == 5)), 99)] for k in range(6)}
    found = statistics_of(images, [evil])
    html = stats_page(found, title=evil)
    assert "Outlier" in html
    assert "script" not in read(html).tags
    assert "script" not in read(found._repr_html_()).tags


def test_a_notebook_shows_each_channel() -> None:
    """Its histogram and its percentiles; of many channels the first ones, and it says so."""
    planes = [np.arange(50, dtype=np.uint8) + k for k in range(9)]
    html = statistics_of({"i": planes}, [f"c{k}" for k in range(9)])._repr_html_()
    assert html.count("<svg") == 6
    assert "6 of 9 channels" in html
    assert "p50 24.5</text>" in html
    read(html)


def test_the_page_of_a_store_has_histograms(tmp_path: Path) -> None:
    """From what the store keeps; its bars hold the pixels of the patches."""
    image = np.random.default_rng(6).integers(0, 250, (64, 64), np.uint8)
    plan = patchloom.plan(
        patchloom.open_images(image), {"name": "sequential", "patch_size": [32, 32]}
    )
    url = str(tmp_path / "a.zarr")
    report = patchloom.materialize(plan, url, progress=False)
    html = page(plan, patchloom.open_patches(url), [report.to_dict()])
    [chart] = re.findall(r'<svg class="chart grey".*?</svg>', html, re.S)
    low, high = np.percentile(image.astype(float), (1, 99)).tolist()
    assert f'"Histogram of channel 0, 4,096 pixels, p1 {low:.5g}, p99 {high:.5g}"' in chart
    held = re.findall(r"<title>.*?: ([\d,]+) pixels</title>", chart)
    assert sum(int(n.replace(",", "")) for n in held) == 4096


def test_a_summary_without_a_pixel_is_said() -> None:
    """Not drawn as an empty chart."""
    found = Statistics({Cell(0, 0): Summary.empty()}, (Subject("void"),), ("0",))
    assert "no pixels" in stats_page(found)
