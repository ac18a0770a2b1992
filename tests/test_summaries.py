"""Summaries add up to what NumPy says of all pixels at once."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import patchloom
from patchloom.store.manifest import read_summaries, summary_bytes
from patchloom.summaries import RELATIVE_WIDTH, Summary, percentiles, summarize

Q = (0, 0.1, 1, 25, 50, 75, 99, 99.9, 100)
DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32"]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_percentiles_equal_numpy_bit_for_bit(data: st.DataObject, dtype: str) -> None:
    """Any pixels of any type, cut anywhere, added in any order: NumPy's percentiles."""
    elements: dict[str, Any] = {}
    if np.dtype(dtype).kind == "f":
        elements = {"allow_nan": False, "allow_infinity": False}
    pixels = data.draw(hnp.arrays(dtype, st.integers(1, 60), elements=elements or None))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(pixels)), max_size=3)))
    parts = [summarize(part) for part in np.split(pixels, cuts)]
    parts = data.draw(st.permutations(parts))
    total = Summary.empty()
    for part in parts:
        total = total + part
    wide = pixels.astype("float64")
    assert total.exact
    assert total.count == len(pixels)
    np.testing.assert_array_equal(percentiles(total, Q), np.percentile(wide, Q))
    assert (total.low, total.high) == (wide.min(), wide.max())
    assert math.isclose(total.mean, wide.mean(), rel_tol=1e-12, abs_tol=1e-12)
    assert math.isclose(total.std, wide.std(), rel_tol=1e-9, abs_tol=1e-9)


def test_addition_is_associative_and_commutative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact or not, the order and grouping of parts do not change counts and buckets."""
    for module in ("summary", "wide"):
        monkeypatch.setattr(f"patchloom.summaries.{module}.DISTINCT", 50)
    rng = np.random.default_rng(0)
    parts = [summarize(rng.normal(0, s, n)) for s, n in ((1, 30), (100, 40), (1e-3, 10))]
    sums = []
    for a, b, c in itertools.permutations(parts):
        sums += [(a + b) + c, a + (b + c)]
    first = sums[0]
    assert not first.exact
    for other in sums[1:]:
        np.testing.assert_array_equal(first.values, other.values)
        np.testing.assert_array_equal(first.counts, other.counts)
        assert math.isclose(first.mean, other.mean, rel_tol=1e-12, abs_tol=1e-15)
        assert math.isclose(first.std, other.std, rel_tol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_bounded_mode_keeps_its_bound(scale: float) -> None:
    """Beyond 65,536 distinct values percentiles are off by at most the stated width."""
    pixels = np.random.default_rng(0).lognormal(0, 2, 300_000) * scale
    pixels[::3] *= -1
    total = summarize(pixels[:100_000]) + summarize(pixels[100_000:])
    assert not total.exact
    want = np.percentile(pixels, Q)
    got = percentiles(total, Q)
    assert (np.abs(got - want) <= RELATIVE_WIDTH * np.abs(want)).all()
    assert math.isclose(total.mean, pixels.mean(), rel_tol=1e-9, abs_tol=1e-9 * scale)
    assert math.isclose(total.std, pixels.std(), rel_tol=1e-9)


def test_nan_is_counted_apart() -> None:
    """NaN is left out of every number and counted."""
    total = summarize(np.array([np.nan, 1, 2, np.nan], "float32"))
    assert (total.count, total.nans, total.mean) == (2, 2, 1.5)
    nothing = summarize(np.array([np.nan]))
    assert (nothing.count, nothing.nans) == (0, 1)
    assert math.isnan(nothing.mean)
    assert np.isnan(percentiles(nothing, (50,))).all()


def test_moments_do_not_cancel() -> None:
    """A small spread on a large level keeps its digits; so do billions of pixels."""
    pixels = np.arange(60_000, 60_010, dtype="uint16")
    assert math.isclose(summarize(pixels).std, pixels.astype("float64").std(), rel_tol=1e-12)
    many = Summary(np.array([0.0, 65535.0]), np.array([10**13, 10**13]))
    assert many.mean == 65535 / 2
    assert math.isclose(many.std, 65535 / 2, rel_tol=1e-15)


@given(pixels=hnp.arrays("int16", st.integers(0, 40)))
def test_summaries_survive_storage(pixels: npt.NDArray[np.int16]) -> None:
    """What a shard commits is what comes back."""
    parts = {(0, 0): summarize(pixels), (3, 1): summarize(pixels.astype("float32") / 7)}
    back = read_summaries(summary_bytes(parts))
    assert set(back) == set(parts)
    for key, part in parts.items():
        np.testing.assert_array_equal(back[key].values, part.values)
        np.testing.assert_array_equal(back[key].counts, part.counts)
        assert (back[key].low, back[key].high, back[key].exact) == (part.low, part.high, part.exact)


@pytest.mark.parametrize("axes", ["CYX", "YXC", "TCYX", "SZYXC"])
@pytest.mark.parametrize("kind", ["numpy", "dask"])
def test_statistics_of_whole_images(axes: str, kind: str) -> None:
    """Per image and channel, whatever the order of the axes and the chunks."""
    import dask.array as da

    shape = tuple({"C": 3, "T": 2, "S": 2, "Z": 4, "Y": 9, "X": 11}[a] for a in axes)
    pixels = np.random.default_rng(0).integers(-900, 900, shape, dtype="int16")
    source = (
        pixels if kind == "numpy" else da.from_array(pixels, chunks=(2, 1, 5, 4, 3)[: len(axes)])
    )
    [image] = patchloom.open_images(source, axes=axes)
    table = patchloom.statistics(image, Q)
    assert table["percentile"].dims == ("image", "channel", "quantile")
    assert table["quantile"].values.tolist() == [0, 0.001, 0.01, 0.25, 0.5, 0.75, 0.99, 0.999, 1]
    for channel in range(3):
        flat = np.take(pixels, channel, axes.index("C")).astype("float64")
        row = table.isel(image=0, channel=channel)
        np.testing.assert_array_equal(row["percentile"], np.percentile(flat, Q))
        assert row["count"].item() == flat.size
