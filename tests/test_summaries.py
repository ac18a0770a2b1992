"""Summaries add up to what NumPy says of all pixels at once."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import patchloom
from patchloom.errors import ConfigError, SourceChangedError
from patchloom.summaries import (
    LEAVES,
    METHODS,
    RELATIVE_ERROR,
    Summary,
    Sums,
    Tally,
    percentiles,
    pooled,
    summarize,
    tally_bytes,
    targets,
)
from patchloom.summaries.moments import deviation, power_sums, rounded_sums
from patchloom.summaries.packed import read_summaries, summary_bytes

Q = (0, 0.1, 1, 25, 50, 75, 99, 99.9, 100)
NARROW = ["bool", "uint8", "int8", "uint16", "int16", "float16"]
WIDE = ["uint32", "int32", "uint64", "int64", "float32", "float64"]
USUAL = ("linear", "lower", "higher", "nearest", "midpoint")
FIELDS = [f.name for f in dataclasses.fields(Summary)]


def known(summary: Summary) -> dict[str, str]:
    """All that a summary says, to the last bit and with the signs of zeros."""
    numbers = ("count", "mean", "std", "median", "mad", "error")
    fields = {name: getattr(summary, name) for name in (*FIELDS, *numbers) if name != "sums"}
    found = {k: repr(v.tolist() if isinstance(v, np.ndarray) else v) for k, v in fields.items()}
    return {**found, "sums": repr(summary.exact or summary.sums)}


@contextlib.contextmanager
def few_values(n: int | None) -> Iterator[None]:
    """Let summaries of wide types stay exact up to `n` values only."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("summary", "wide"):
            if n is not None:
                patch.setattr(f"patchloom.summaries.{module}.DISTINCT", n)
        yield


@st.composite
def images(draw: st.DrawFn, dtypes: Sequence[str]) -> npt.NDArray[Any]:
    """Pixels of a type: anything, or what is hard (few values, neighbours, extremes)."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    length = st.integers(1, 80)
    if dtype.kind == "f":
        info = np.finfo(dtype)
        tiny, huge = float(info.smallest_subnormal), float(info.max)
        hard = [0.0, -0.0, tiny, -tiny, 3 * tiny, huge, -huge, math.inf, -math.inf, math.nan, 1.0]
        near = [1 + k * float(info.eps) for k in range(200)]
        kinds = [None, st.sampled_from(hard), st.sampled_from(near)]
    elif dtype.kind == "b":
        kinds = [None]
    else:
        limits = np.iinfo(dtype.str)
        ends = [limits.min, limits.min + 1, 0, 1, limits.max - 1, limits.max]
        around = min(limits.max, 2**53) - 100
        kinds = [None, st.sampled_from(ends), st.integers(around, around + 100)]
        kinds.append(st.integers(max(limits.min, -5), 5))
    return draw(hnp.arrays(dtype, length, elements=draw(st.sampled_from(kinds))))


def parted(data: st.DataObject, n: int) -> list[slice]:
    """`n` things cut anywhere, the pieces in any order."""
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, n), max_size=4))), n]
    return data.draw(st.permutations([slice(*pair) for pair in itertools.pairwise(cuts)]))


def added(data: st.DataObject, parts: list[Summary]) -> Summary:
    """The sum of some summaries, in any grouping."""
    parts = list(parts)
    while len(parts) > 1:
        k = data.draw(st.integers(0, len(parts) - 2))
        parts[k : k + 2] = [parts[k] + parts[k + 1]]
    return parts[0]


def numbers_of(pixels: npt.NDArray[Any], nodata: float | None = None) -> npt.NDArray[np.float64]:
    # Some patterns of NaN are a signal.
    with np.errstate(invalid="ignore"):
        wide = pixels.astype("float64")
    kept: npt.NDArray[np.float64] = wide[~np.isnan(wide)]
    return kept if nodata is None else kept[kept != nodata]


def check_percentiles(
    summary: Summary, wide: npt.NDArray[np.float64], methods: Sequence[str]
) -> None:
    """Those of NumPy; where it has taken infinity from infinity, anything but NaN is better."""
    for method in methods:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            want = np.percentile(wide, Q, method=method)  # type: ignore[call-overload]
        got = percentiles(summary, Q, method)
        np.testing.assert_array_equal(got[~np.isnan(want)], want[~np.isnan(want)])
        assert not np.signbit(got[got == 0]).any()


@settings(max_examples=300, deadline=None)
@given(data=st.data(), few=st.sampled_from([None, 4, 20]))
def test_percentiles_equal_numpy_bit_for_bit(data: st.DataObject, few: int | None) -> None:
    """Any pixels of any type, cut anywhere, added in any order, refined if need be: NumPy's."""
    pixels = data.draw(images(WIDE if few else NARROW + WIDE))
    nodata = data.draw(st.sampled_from([None, 0.0, 1.0, float(pixels[0])]))
    parts = parted(data, len(pixels))
    methods = data.draw(st.lists(st.sampled_from(METHODS), min_size=1, max_size=3, unique=True))
    with few_values(few):
        total = added(data, [summarize(pixels[part], nodata) for part in parts])
        wide = numbers_of(pixels, nodata)
        assert total.count == len(wide)
        assert total.nans == np.count_nonzero(pixels != pixels)
        assert total.count + total.nans + total.nodata == len(pixels)
        if not len(wide):
            assert np.isnan(percentiles(total, Q)).all()
            assert np.isnan([total.mean, total.std, total.median, total.mad]).all()
            return
        assert (total.low, total.high) == (wide.min(), wide.max())
        for method in methods:
            while (wanted := targets(total, Q, method, median=True)) is not None:
                more = []
                for part in parts:
                    tally = Tally(pixels.dtype, nodata, wanted)
                    tally.add(pixels[part])
                    more.append(tally.summary())
                total = total.refined(added(data, more), wanted)
        check_percentiles(total, wide, methods)
        if (np.abs(wide) < 1e300).all():
            assert total.median == np.median(wide)
            if total.exact:
                assert total.mad == np.median(np.abs(wide - np.median(wide)))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), few=st.sampled_from([None, 4, 20]))
def test_sums_are_the_same_to_the_last_bit(data: st.DataObject, few: int | None) -> None:
    """Every field, for any cuts, order and grouping, also as often as pixels are taken."""
    pixels = data.draw(images(WIDE if few else NARROW + WIDE))
    nodata = data.draw(st.sampled_from([None, 1.0, float(pixels[-1])]))
    times = data.draw(hnp.arrays("int64", len(pixels), elements=st.integers(0, 9)))
    with few_values(few):
        whole = summarize(np.repeat(pixels, times), nodata)
        parts = []
        for part in parted(data, len(pixels)):
            tally = Tally(pixels.dtype, nodata)
            tally.add(pixels[part], times[part])
            parts.append(tally.summary())
        assert known(added(data, parts)) == known(whole)
        thrice = Tally(pixels.dtype, nodata)
        thrice.add(pixels, 3)
        once = summarize(pixels, nodata)
        assert known(thrice.summary()) == known(once + once + once)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_refined_summaries_add_in_any_order(data: st.DataObject) -> None:
    """Also if each was refined elsewhere, or not at all, or is of another type."""
    with few_values(6):
        parts = []
        for _ in range(data.draw(st.integers(2, 4))):
            pixels = data.draw(images(WIDE))
            part = summarize(pixels)
            for _ in range(data.draw(st.integers(0, 2))):
                q = data.draw(st.floats(0, 100))
                wanted = targets(part, [q]) or targets(summarize(data.draw(images(WIDE))), [q])
                if wanted is not None and part.exact:
                    part = part.opened(wanted)
                elif wanted is not None:
                    tally = Tally(pixels.dtype, targets=wanted)
                    tally.add(pixels)
                    part = part.refined(tally.summary(), wanted)
            parts.append(part)
        first = known(added(data, parts))
        assert known(added(data, data.draw(st.permutations(parts)))) == first


@settings(max_examples=100, deadline=None)
@given(pixels=images(NARROW + WIDE), often=st.integers(1, 2**40))
def test_moments_are_exact(pixels: npt.NDArray[Any], often: int) -> None:
    """Mean and deviation are those of fractions, rounded once, however many pixels there are."""
    wide = numbers_of(pixels)
    wide = wide[np.isfinite(wide)]
    if not len(wide):
        return
    tally = Tally(np.dtype("float64"))
    tally.add(wide, often)
    exact = [Fraction(v) for v in wide.tolist()]
    mean = sum(exact) / len(exact)
    found = tally.summary()
    assert found.mean == float(mean)
    variance = sum((v - mean) ** 2 for v in exact) / len(exact)
    # A square root of fractions, to 60 digits.
    root = Fraction(math.isqrt(int(variance * 10**800)), 10**400)
    assert abs(Fraction(found.std) - root) <= root * Fraction(1, 2**52) + Fraction(1, 2**1074)


@settings(max_examples=50, deadline=None)
@given(
    data=hnp.arrays("float64", st.integers(0, 200), elements={"allow_nan": False}),
    counts=hnp.arrays("int64", 200, elements=st.integers(0, 2**45)),
)
def test_power_sums_are_exact(data: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> None:
    """All exponents together, counted or not: nothing is lost."""
    values = data[np.isfinite(data)]
    counts = counts[: len(values)]
    exact = [Fraction(v) for v in values.tolist()]
    found = power_sums(values)
    assert found.first == sum(exact) * 2**1074
    assert found.second == sum(v * v for v in exact) * 2**2148
    found = power_sums(values, counts)
    pairs = list(zip(exact, counts.tolist(), strict=True))
    assert found.first == sum(v * n for v, n in pairs) * 2**1074
    assert found.second == sum(v * v * n for v, n in pairs) * 2**2148
    assert Sums.from_text(found.to_text()) == found


@settings(max_examples=50, deadline=None)
@given(
    top=st.sampled_from([300, 2**16, 2**31 - 1, 2**31, 2**53]),
    often=st.sampled_from([1, 2**20, 2**33, 2**45]),
    halves=st.booleans(),
    seed=st.integers(0, 99),
)
def test_sums_of_whole_numbers_are_exact(top: int, often: int, halves: bool, seed: int) -> None:
    """In 64 bits where they hold them, and else as those of any number."""
    rng = np.random.default_rng(seed)
    values = np.unique(rng.integers(-top, top, 50, endpoint=True)).astype(np.float64)
    values[:1] += halves / 2
    counts = rng.integers(0, often, len(values), endpoint=True)
    found = power_sums(values, counts)
    pairs = [(Fraction(v), n) for v, n in zip(values.tolist(), counts.tolist(), strict=True)]
    assert found.first == sum(v * n for v, n in pairs) * 2**1074
    assert found.second == sum(v * v * n for v, n in pairs) * 2**2148


@pytest.mark.parametrize("dtype", WIDE)
def test_large_images_are_counted_in_buckets_and_refined(dtype: str) -> None:
    """Beyond 65,536 values: the same for any cuts, small in memory, exact after few passes."""
    rng = np.random.default_rng(0)
    kind = np.dtype(dtype).kind
    wide = rng.normal(0, 1, 400_000) if kind == "f" else rng.integers(0, 2**31, 400_000)
    pixels = wide.astype(dtype)
    if kind == "f":
        pixels[:50_000] = 0
        pixels[50_000:50_100] = np.nan
    parts = [pixels[:150_000], pixels[150_000:150_007], pixels[150_007:]]
    total = summarize(parts[2]) + (summarize(parts[0]) + summarize(parts[1]))
    assert known(total) == known(summarize(pixels))
    assert not total.exact
    passes = 1
    while (wanted := targets(total, Q, median=True)) is not None:
        tally = Tally(pixels.dtype, targets=wanted)
        for part in parts:
            tally.add(part)
        total = total.refined(tally.summary(), wanted)
        assert tally.nbytes <= LEAVES * 2**20
        passes += 1
    check_percentiles(total, numbers_of(pixels), USUAL)
    assert total.median == np.median(numbers_of(pixels))
    assert passes == 2


def test_float64_needs_more_passes_the_more_pixels_crowd() -> None:
    """Neighbours in the last bits: 44 bits of a bucket, then 27, then 10, then none."""
    rng = np.random.default_rng(0)
    pixels = (1 + rng.integers(0, 2**20, 400_000) * 2.0**-52).astype("float64")
    total, passes = summarize(pixels), 1
    while (wanted := targets(total, (1, 50))) is not None:
        tally = Tally(pixels.dtype, targets=wanted)
        tally.add(pixels)
        total, passes = total.refined(tally.summary(), wanted), passes + 1
    assert passes <= 4
    np.testing.assert_array_equal(percentiles(total, (1, 50)), np.percentile(pixels, (1, 50)))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16"])
@pytest.mark.parametrize("kind", ["noise", "constant", "mixed"])
def test_many_small_integers(dtype: str, kind: str) -> None:
    """An odd number of them, from any address, of a chunk in any order: none is lost or doubled."""
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 2**8, (3, 301, 151)).astype("uint8")
    values = {"noise": noise, "constant": np.full_like(noise, 7), "mixed": noise // 200}[kind]
    pixels = values.view("int8").astype(dtype)
    memory = np.zeros(pixels.nbytes + 1, np.uint8)
    unaligned = np.frombuffer(memory.data, dtype, pixels.size, offset=1).reshape(pixels.shape)
    unaligned[...] = pixels
    tally = Tally(np.dtype(dtype))
    parts = (pixels, unaligned, pixels.T, pixels[:, ::2], pixels.ravel()[1:])
    for part in parts:
        tally.add(part)
        assert tally.nbytes <= tally_bytes(np.dtype(dtype))
    found = tally.summary()
    expected = np.unique(np.concatenate([part.ravel() for part in parts]), return_counts=True)
    np.testing.assert_array_equal(found.values, expected[0].astype("float64"))
    np.testing.assert_array_equal(found.counts, expected[1])


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint64"])
def test_tallies_hold_no_more_than_they_say(dtype: str) -> None:
    """Whatever comes: all bit patterns of a type."""
    patterns = np.random.default_rng(0).integers(0, 2**64, 300_000, dtype="uint64")
    pixels = patterns.astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
    tally = Tally(np.dtype(dtype))
    for start in range(0, len(pixels), 50_000):
        tally.add(pixels[start : start + 50_000])
        most = 10 * 2**20 if dtype == "float64" else tally_bytes(np.dtype(dtype))
        assert tally.nbytes <= most
    check_percentiles_of_buckets(tally.summary(), numbers_of(pixels))


def check_percentiles_of_buckets(summary: Summary, wide: npt.NDArray[np.float64]) -> None:
    """Each pixel that a percentile lies between is off by at most the stated error."""
    assert not summary.exact
    assert summary.error == RELATIVE_ERROR
    for method in ("lower", "higher", "nearest"):
        want = np.percentile(wide, Q, method=method)
        got = percentiles(summary, Q, method)
        finite = np.isfinite(want)
        np.testing.assert_array_equal(got[~finite], want[~finite])
        off = np.abs(got - want)[finite]
        assert (off <= summary.error * np.abs(want[finite]) + 2.0**-1030).all()


def test_pooled_summaries_take_what_exact_ones_know() -> None:
    """An image of few values and one of many: the latter alone is counted again."""
    rng = np.random.default_rng(0)
    few = rng.integers(0, 50_000, 100_000).astype("float32") / 7
    many = rng.normal(3000, 2000, 200_000).astype("float32")
    parts = [summarize(few), summarize(many)]
    assert [part.exact for part in parts] == [True, False]
    wanted = targets(pooled(parts, (1, 99)), (1, 99))
    assert wanted is not None
    tally = Tally(many.dtype, targets=wanted)
    tally.add(many)
    parts[1] = parts[1].refined(tally.summary(), wanted)
    total = pooled(parts, (1, 99))
    assert targets(total, (1, 99)) is None
    both = np.concatenate([few, many]).astype("float64")
    np.testing.assert_array_equal(percentiles(total, (1, 99)), np.percentile(both, (1, 99)))
    # Two exact ones that have too many values together need no pass at all.
    other = summarize(rng.integers(0, 60_000, 100_000).astype("float32") / 11)
    total = pooled([parts[0], other], (1, 99))
    assert not total.exact
    assert targets(total, (1, 99)) is None
    # However many percentiles there are.
    q = range(1, 100)
    total = pooled([summarize(few), other], q)
    assert targets(total, q) is None


def test_targets_of_several_summaries_join() -> None:
    """Of nested leaves the larger; at most so many as a pass may hold."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(5, 1e-3, 400_000)
    total = summarize(pixels)
    one, two = targets(total, (10, 20, 30)), targets(total, (20, 40))
    assert one is not None
    assert two is not None
    both = one | two
    assert len(both) == len(set(one.values) | set(two.values))
    spread = summarize(pixels * rng.random(len(pixels)))
    everything = targets(spread, np.linspace(0, 100, 1001).tolist())
    assert everything is not None
    assert len(everything) == LEAVES
    tally = Tally(pixels.dtype, targets=both)
    tally.add(pixels)
    finer = total.refined(tally.summary(), both)
    assert (finer.count, finer.mean, finer.std) == (total.count, total.mean, total.std)
    again = targets(finer, (10, 20, 30, 40))
    assert again is not None
    assert len(again | both) == len(both)


def test_another_image_in_the_second_pass_is_refused() -> None:
    """Counts that do not fit together are no statistics of anything."""
    pixels = np.random.default_rng(0).normal(5, 1, 100_000)
    total = summarize(pixels)
    wanted = targets(total, (50,))
    assert wanted is not None
    for others in (pixels[:-10_000], pixels[:0], np.append(pixels, pixels)):
        tally = Tally(pixels.dtype, targets=wanted)
        tally.add(others)
        with pytest.raises(SourceChangedError, match="has changed meanwhile"):
            total.refined(tally.summary(), wanted)


def test_what_is_no_number_of_pixels_is_refused() -> None:
    """Methods, types and counts that there are not."""
    some = summarize(np.arange(9, dtype="uint8"))
    with pytest.raises(ConfigError, match="linear, lower"):
        percentiles(some, (50,), "best")
    with pytest.raises(TypeError, match="complex64"):
        Tally(np.dtype("complex64"))
    with pytest.raises(OverflowError, match="fewer than"):
        _ = Summary(np.ones(1), np.array([2**62])) + Summary(np.ones(1), np.array([2**62]))


@pytest.mark.parametrize("dtype", NARROW + WIDE)
def test_huge_counts(dtype: str) -> None:
    """A summary added to itself until it counts 10^13 pixels keeps its digits."""
    pixels = np.array([0, 1, 1, 1] if dtype == "bool" else [3, 5, 5, 100], dtype)
    total = summarize(pixels)
    while total.count < 10**13:
        total = total + total
    n = total.count // 4
    assert total.counts.sum() == 4 * n
    wide = pixels.astype("float64")
    assert total.mean == wide.mean()
    assert math.isclose(total.std, wide.std(), rel_tol=1e-15)
    assert (total.median, total.mad) == (np.median(wide), np.median(abs(wide - np.median(wide))))
    assert percentiles(total, (0, 24, 30, 74, 76, 100)).tolist() == [
        *wide[[0, 0, 1, 2, 3, 3]].tolist()
    ]


def test_a_small_spread_on_a_high_level() -> None:
    """10^12 pixels at 10^9 that differ by 1: the spread is not lost."""
    total = Summary(np.array([1e9, 1e9 + 1]), np.array([10**12, 10**12]))
    assert (total.mean, total.std) == (1e9 + 0.5, 0.5)


def test_infinities_zeros_and_nothing() -> None:
    """One rule each, documented."""
    inf = math.inf
    up = summarize(np.array([1, inf, inf], "float32"))
    assert (up.count, up.high, up.mean) == (3, inf, inf)
    assert math.isnan(up.std)
    assert percentiles(up, (0, 25, 50, 100)).tolist() == [1, inf, inf, inf]
    both = summarize(np.array([-inf, 0, inf]))
    assert math.isnan(both.mean)
    assert percentiles(both, (0, 50, 100)).tolist() == [-inf, 0, inf]
    zeros = summarize(np.array([-0.0, 0.0, -0.0], "float32"))
    assert zeros.values.tolist() == [0]
    assert not np.signbit(zeros.values).any()
    assert (zeros.mean, zeros.std, zeros.mad, zeros.median) == (0, 0, 0, 0)
    flat = summarize(np.full(70_000, 7.25, "float32"))
    assert (flat.mean, flat.std, flat.median, flat.mad) == (7.25, 0, 7.25, 0)


def test_nodata_is_counted_apart() -> None:
    """As the type holds it; a value that no pixel can have leaves nothing out."""
    ints = np.array([0, 0, 1, 5], "uint16")
    assert [summarize(ints, nodata).nodata for nodata in (0, 5.0, 0.5, -1, 70000, None)] == [
        *(2, 1, 0, 0, 0, 0)
    ]
    floats = np.array([0.1, 0.1, np.nan, 2, -3.4028235e38], "float32")
    found = [summarize(floats, v) for v in (0.1, math.nan, -3.4028235e38, 1e300)]
    assert [(f.count, f.nans, f.nodata) for f in found] == [
        *((2, 1, 2), (4, 1, 0), (3, 1, 1), (4, 1, 0))
    ]
    half = summarize(np.array([0.1, 1], "float16"), 0.1)
    assert (half.count, half.nodata) == (1, 1)


def test_byte_order_does_not_matter() -> None:
    """Pixels as big-endian files have them."""
    for dtype in ("uint16", "int16", "float32", "float16"):
        pixels = np.arange(300).astype(dtype)
        swapped = pixels.astype(pixels.dtype.newbyteorder(">"))
        assert known(summarize(swapped)) == known(summarize(pixels))


def test_median_deviation_keeps_its_bound() -> None:
    """In buckets: at most error (2 |median| + mad) off."""
    for shift in (0, 5, -1000):
        pixels = np.random.default_rng(0).normal(shift, 1, 200_000)
        found = summarize(pixels)
        median = np.median(pixels)
        want = np.median(np.abs(pixels - median))
        assert not found.exact
        assert abs(found.mad - want) <= found.error * (2 * abs(median) + want)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_bounded_mode_keeps_its_bound(scale: float) -> None:
    """Beyond 65,536 distinct values percentiles are off by at most the stated width."""
    pixels = np.random.default_rng(0).lognormal(0, 2, 300_000) * scale
    pixels[::3] *= -1
    total = summarize(pixels[:100_000]) + summarize(pixels[100_000:])
    assert not total.exact
    want = np.percentile(pixels, Q)
    got = percentiles(total, Q)
    assert (np.abs(got - want) <= RELATIVE_ERROR * np.abs(want)).all()
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


@settings(max_examples=100, deadline=None)
@given(pixels=images(NARROW + WIDE), few=st.sampled_from([None, 5]))
def test_summaries_survive_storage(pixels: npt.NDArray[Any], few: int | None) -> None:
    """What a shard commits is what comes back, to the last bit."""
    with few_values(few if pixels.dtype.itemsize > 2 else None):
        parts = {
            (0, 0): summarize(pixels, float(pixels[0])),
            (3, 1): summarize(np.arange(300, dtype="float32") / 7),
            (3, 2): Summary.empty(),
        }
        back = read_summaries(summary_bytes(parts))
        assert list(back) == list(parts)
        assert [known(v) for v in back.values()] == [known(v) for v in parts.values()]
        assert known(back[0, 0] + back[3, 1]) == known(parts[0, 0] + parts[3, 1])


def test_summaries_of_older_shards_are_read() -> None:
    """Written when sums were floating point, and there was no nodata."""
    values, counts = np.array([1.0, 2.0, 4.0, 8.0]), np.array([5, 6, 7, 8])
    head = [
        [0, 0, 2, True, 3, (1.0).hex(), (2.0).hex(), (0.0).hex(), (0.0).hex()],
        [0, 1, 2, False, 0, (4.0).hex(), (8.015).hex(), (100.5).hex(), (20.25).hex()],
    ]
    table = pa.table({"value": values.astype("int32"), "count": counts})
    sink = io.BytesIO()
    metadata = {b"summaries": json.dumps(head).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), sink, write_page_checksum=True)
    back = read_summaries(sink.getvalue())
    assert (back[0, 0].exact, back[0, 0].count, back[0, 0].nans, back[0, 0].low) == (True, 11, 3, 1)
    old = back[0, 1]
    assert (old.exact, old.low, old.high, old.mean) == (False, 4.0, 8.015, 100.5 / 15)
    assert math.isclose(old.std, math.sqrt(20.25 / 15), rel_tol=1e-15)
    assert (old + summarize(np.array([6.0]))).count == 16


def test_numbers_that_older_shards_could_not_sum() -> None:
    """Their squares were 0 or infinite, or pixels were: what the buckets know remains."""
    rng = np.random.default_rng(0)
    for scale, squares in ((1e-200, 0.0), (1e200, math.inf)):
        pixels = rng.normal(3, 1, 100_000) * scale
        new = summarize(pixels)
        ends = (new.low, new.high, float(pixels.sum()), squares)
        old = Summary.of_floats(new.values, new.counts, False, 0, *ends)
        for found in (old, old + old, old + new):
            assert math.isclose(found.mean, new.mean, rel_tol=RELATIVE_ERROR)
            assert math.isclose(found.std, new.std, rel_tol=0.01)
    constant = rounded_sums(7 * 0.1, 1e-300, 7)
    assert deviation(constant, 7) < 1e-150
    pixels = rng.normal(3, 1, 100_000)
    pixels[:2] = math.inf, -math.inf
    values, counts = np.unique(pixels[:1000], return_counts=True)
    old = Summary.of_floats(values, counts, True, 0, 0, 0, 0, 0)
    both, want = old + summarize(pixels), summarize(pixels[:1000]) + summarize(pixels)
    assert known(both) == known(want)
    np.testing.assert_array_equal(percentiles(both, (0, 50, 100)), percentiles(want, (0, 50, 100)))
    assert both.mad == want.mad


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
