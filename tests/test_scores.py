"""Scores against plain loops over one patch, and the same bits in whatever batch."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from patchloom.errors import ConfigError, SourceError
from patchloom.scores import SCORES, Score

DTYPES = [
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64", ">u2", ">f4"),
]
Pixels = npt.NDArray[Any]


@st.composite
def batches(draw: st.DrawFn, *, infinite: bool = False, max_side: int = 7) -> Pixels:
    """Patches of any kind, in one to three axes of space, some with NaN."""
    dtype: np.dtype[Any] = np.dtype(draw(st.sampled_from(DTYPES)))
    space = draw(st.lists(st.integers(1, max_side), min_size=1, max_size=3))
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 3)), *space)
    elements: Any = None
    if dtype.kind == "f":
        width = 8 * min(dtype.itemsize, 4)
        top = 60000 if dtype.itemsize == 2 else 2.0**100
        number = st.floats(-top, top, width=width)  # type: ignore[arg-type]
        few = st.sampled_from([0.0, -0.0, 0.5, 1.0, 0.1 if dtype.itemsize > 4 else 0.25])
        odd = [math.nan, math.inf, -math.inf] if infinite else [math.nan]
        elements = draw(st.sampled_from([few, number, few | st.sampled_from(odd)]))
    elif draw(st.booleans()) and dtype.kind in "iu":
        elements = st.integers(0, 3) | st.just(int(np.iinfo(dtype).max))
    return draw(hnp.arrays(dtype, shape, elements=elements))


def scores(dtype: Any, channel: int = 0) -> list[Score]:
    """Every score, with and without what may be said of it."""
    said: dict[str, list[tuple[tuple[str, float], ...]]] = {
        "saturation": [(("level", 1.0),), (("level", 0.3),)],
        "bright": [(), (("coverage", 0.1),), (("coverage", 1.0),)],
        "nodata": [(), (("value", 0.0),), (("value", 0.25),)],
    }
    if np.dtype(dtype).kind != "f":
        said["saturation"].append(())
    return [Score(name, channel, p) for name in SCORES for p in said.get(name, [()])]


# -- the oracle: one patch, plain Python ----------------------------------------------------


def moments(values: list[Any]) -> tuple[float, float]:
    """Mean and variance, exactly and then rounded."""
    whole = [Fraction(v) for v in values]
    mean = sum(whole, Fraction(0)) / len(whole)
    return float(mean), float(sum((v - mean) ** 2 for v in whole) / len(whole))


def share(said: Iterable[bool]) -> float:
    every = list(said)
    return every.count(True) / len(every)


def direct(score: Score, patch: Pixels) -> float:
    """The score of one patch of one channel, by the words of its definition."""
    said: dict[str, Any] = dict(score.params)
    everything = patch.ravel().tolist()
    values = [v for v in everything if not math.isnan(v)]
    if score.name == "nodata":
        return share(v != v or v == said.get("value") for v in everything)
    if not values:
        return math.nan
    if score.name == "max":
        return float(max(values))
    if score.name in ("mean", "std"):
        mean, variance = moments(values)
        return mean if score.name == "mean" else math.sqrt(variance)
    if score.name == "entropy":
        shares = [n / len(values) for n in Counter(values).values()]
        return math.fsum(-p * math.log2(p) for p in shares)
    if score.name == "saturation":
        level = said.get("level", None if patch.dtype.kind == "f" else top(patch.dtype))
        return share(v >= level for v in values)
    if score.name == "focus":
        return focus(patch, moments(values)[0])
    assert score.name == "bright"
    coverage = said.get("coverage", 0.5**patch.ndim)
    lit = sorted(maxima(patch), reverse=True)
    return next(v for k, v in enumerate(lit, 1) if k / len(lit) >= coverage)


def top(dtype: np.dtype[Any]) -> int:
    return 1 if dtype.kind == "b" else int(np.iinfo(dtype).max)


def focus(patch: Pixels, mean: float) -> float:
    thick = [axis for axis in range(patch.ndim) if patch.shape[axis] > 2]
    bent = []
    for index in np.ndindex(patch.shape):
        if not thick or any(index[a] in (0, patch.shape[a] - 1) for a in thick):
            continue
        around = []
        for axis, by in itertools.product(thick, (-1, 1)):
            other = list(index)
            other[axis] += by
            around.append(patch[tuple(other)].item())
        here = patch[index].item()
        if not any(math.isnan(v) for v in (here, *around)):
            bent.append(sum(map(Fraction, around)) - 2 * len(thick) * Fraction(here))
    if not bent:
        return math.nan
    variance = moments(bent)[1]
    if mean == 0:
        return math.inf if variance else 0.0
    return variance / mean**2


def maxima(patch: Pixels) -> list[float]:
    """What each pixel shows through a window of half a patch, inside the patch."""
    found = []
    for index in np.ndindex(patch.shape):
        window = []
        for i, p in zip(index, patch.shape, strict=True):
            w = max(1, p // 2)
            window.append(slice(max(0, i - w // 2), i - w // 2 + w))
        values = [v for v in patch[tuple(window)].ravel().tolist() if not math.isnan(v)]
        found.append(float(max(values, default=-math.inf)))
    return found


# -- the tests ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(batches(), st.data())
def test_scores_are_what_is_said(pixels: Pixels, data: st.DataObject) -> None:
    """Each score of each patch, of all types, axes and channels, equals its definition."""
    channel = data.draw(st.integers(0, pixels.shape[1] - 1))
    for score in scores(pixels.dtype, channel):
        found = score.of(pixels)
        assert found.dtype == np.float64
        assert found.shape == (len(pixels),)
        wanted = [direct(score, patch[channel]) for patch in pixels]
        if score.name == "focus":
            # What is subtracted may be far larger than what is left.
            size = np.abs(np.nan_to_num(pixels[:, channel].astype(float))).max()
            mean = np.abs(Score("mean", channel).of(pixels))
            told = np.isfinite(wanted) & (mean > 1e-6 * size)
            near = 1e-9 * (size / mean[told]) ** 2
            assert (np.abs(found[told] - np.array(wanted)[told]) <= near).all()
            assert np.isnan(found).tolist() == np.isnan(wanted).tolist()
        elif score.name in ("mean", "std", "entropy"):
            size = np.abs(np.nan_to_num(pixels.astype(float))).max()
            np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12 * max(1, size))
        else:
            np.testing.assert_array_equal(found, wanted)


@settings(max_examples=60, deadline=None)
@given(batches(infinite=True, max_side=20), st.data())
def test_same_bits_in_any_batch(pixels: Pixels, data: st.DataObject) -> None:
    """A patch alone, among others, in another order or of a strided view: the same bits."""
    pixels = np.concatenate([pixels] * data.draw(st.integers(1, 40)))
    some = np.array(data.draw(st.lists(st.integers(0, len(pixels) - 1), min_size=1, max_size=9)))
    for score in scores(pixels.dtype):
        whole = score.of(pixels).tobytes()
        alone = [score.of(pixels[k : k + 1]).tobytes() for k in some.tolist()]
        assert b"".join(alone) == np.frombuffer(whole)[some].tobytes()
        assert score.of(pixels[some]).tobytes() == np.frombuffer(whole)[some].tobytes()
        view = np.asfortranarray(np.repeat(pixels, 2, axis=1)[::-1])
        assert score.of(view)[::-1].tobytes() == whole


@pytest.mark.parametrize("dtype", ["uint16", "float32", "float64", "int64"])
def test_same_bits_across_pieces(dtype: str) -> None:
    """Patches large and small, in more of them than are looked at together."""
    rng = np.random.default_rng(1)
    for shape in ((300, 1, 33, 31), (3, 2, 300, 301), (700, 1, 9, 10, 11)):
        pixels = rng.normal(1000, 300, shape).astype(dtype)
        for score in scores(dtype):
            whole = score.of(pixels)
            for k in (0, 1, len(pixels) // 2, len(pixels) - 1):
                assert score.of(pixels[k : k + 1]).tobytes() == whole[k : k + 1].tobytes()


@settings(max_examples=60, deadline=None)
@given(batches(max_side=9), st.floats(0.001, 1), st.data())
def test_bright_tells_every_threshold(pixels: Pixels, coverage: float, data: st.DataObject) -> None:
    """``bright > threshold`` is "enough of the maximum-filtered patch exceeds the threshold"."""
    pixels = pixels.astype(np.float64) if pixels.dtype.itemsize == 8 else pixels
    plain = np.nan_to_num(pixels.astype(np.float64))
    ndim = plain.ndim - 2
    coverage = data.draw(st.sampled_from([coverage, 0.5**ndim, 0.1, 0.25, 1.0]))
    found = Score("bright", 0, (("coverage", coverage),)).of(plain)
    for patch, value in zip(plain[:, 0], found, strict=True):
        window = [max(1, p // 2) for p in patch.shape]
        lit = ndimage.maximum_filter(patch, window, mode="nearest")
        for threshold in {*np.unique(patch).tolist(), -1.0, 0.5}:
            assert (value > threshold) == (np.mean(lit > threshold) >= coverage)


@pytest.mark.parametrize("value", [0, 1, 0.1, 1 / 3, 1e-300, 123456.789])
@pytest.mark.parametrize("shape", [(5,), (7, 9), (3, 5, 7)])
def test_constant_patches(value: float, shape: tuple[int, ...]) -> None:
    """A constant patch has no spread, no information and no focus, exactly."""
    pixels = np.full((3, 1, *shape), value)
    for name in ("std", "entropy", "focus"):
        assert Score(name).of(pixels).tolist() == [0.0] * 3
    assert Score("max").of(pixels).tolist() == [value] * 3
    assert Score("bright").of(pixels).tolist() == [value] * 3


def test_integers_are_averaged_exactly() -> None:
    """The sum of integers is exact, so the mean is the nearest float."""
    pixels = np.random.default_rng(0).integers(0, 2**16, (4, 1, 101, 103)).astype(np.uint16)
    wanted = [sum(p.ravel().tolist()) / p.size for p in pixels]
    assert Score("mean").of(pixels).tolist() == wanted


def test_nothing_but_nan() -> None:
    """A patch of NaN has no score, others are not touched, and infinity has no spread."""
    pixels = np.full((3, 1, 4, 4), np.nan, np.float32)
    pixels[1] = 2
    pixels[2, 0, :, 0] = np.inf
    pixels[2, 0, :, 1:] = 1
    for score in scores(np.float32):
        found = score.of(pixels)
        if score.name == "nodata":
            assert found.tolist() == [1, 0, 0]
        else:
            assert np.isnan(found[0])
            assert not np.isnan(found[1])
    assert np.isnan(Score("std").of(pixels)[2])
    assert Score("mean").of(pixels)[2] == Score("max").of(pixels)[2] == np.inf
    assert Score("std").of(pixels).tobytes()[:8] == np.array(np.nan).tobytes()


def test_twice_the_light_is_not_twice_the_focus() -> None:
    """Focus falls with blur, and does not change with gain."""
    sharp = np.random.default_rng(3).poisson(50, (64, 64)).astype(np.float64)
    blurred = [ndimage.gaussian_filter(sharp, s) for s in (0.5, 1, 2)]
    found = Score("focus").of(np.stack([sharp, *blurred, 4 * sharp])[:, None])
    assert (np.diff(found[:4]) < 0).all()
    assert found[4] == found[0]


def test_thin_axes_are_no_axes() -> None:
    """A slice of one pixel along z has the focus of the slice."""
    pixels = np.random.default_rng(0).integers(0, 255, (2, 1, 8, 9)).astype(np.uint8)
    assert Score("focus").of(pixels[:, :, None]).tolist() == Score("focus").of(pixels).tolist()
    assert np.isnan(Score("focus").of(pixels[..., :2, :2])).all()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint64", "bool"])
@pytest.mark.parametrize("level", [-1e300, -200.5, 0.5, 254.5, 255, 256, 1e300])
def test_levels_out_of_range(dtype: str, level: float) -> None:
    """Levels and values that a type cannot hold are compared as numbers."""
    pixels = np.array([0, 1, 127, 255]).astype(dtype).reshape(1, 1, 4)
    numbers = pixels.ravel().tolist()
    found = Score("saturation", 0, (("level", level),)).of(pixels)
    assert found.tolist() == [sum(v >= level for v in numbers) / 4]
    found = Score("nodata", 0, (("value", level),)).of(pixels)
    assert found.tolist() == [sum(v == level for v in numbers) / 4]


def test_levels_are_not_rounded_to_narrow_floats() -> None:
    """0.1 is not the float32 next to it."""
    pixels = np.full((1, 1, 4), 0.1, np.float32)
    assert Score("saturation", 0, (("level", 0.1),)).of(pixels) == 1.0
    assert Score("saturation", 0, (("level", float(np.float32(0.1))),)).of(pixels) == 1.0
    less = np.nextafter(np.float64(np.float32(0.1)), 1)
    assert Score("saturation", 0, (("level", float(less)),)).of(pixels) == 0.0


COLUMNS = [
    (Score("max"), "max"),
    (Score("std", 2), "std_c2"),
    (Score("bright", 0, (("coverage", 0.5),)), "bright_50"),
    (Score("bright", 1, (("coverage", 0.125),)), "bright_12p5_c1"),
    (Score("bright", 0, (("coverage", 0.07),)), "bright_7"),
    (Score("bright", 0, (("coverage", 1.0),)), "bright_100"),
    (Score("saturation", 0, (("level", 4095.0),)), "saturation_4095"),
    (Score("nodata", 0, (("value", -1.5),)), "nodata_m1p5"),
    (Score("nodata", 0, (("value", -0.0),)), "nodata_0"),
    (Score("nodata", 0, (("value", 1e300),)), "nodata_1e300"),
    (Score("nodata", 0, (("value", 1e-300),)), "nodata_1em300"),
    (Score("nodata", 0, (("value", 1e15),)), "nodata_1000000000000000"),
]


@pytest.mark.parametrize(("score", "column"), COLUMNS, ids=str)
def test_columns(score: Score, column: str) -> None:
    """A column is a plain word."""
    assert score.column == column
    assert score.column.replace("_", "").isalnum()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=9))
def test_distinct_scores_have_distinct_columns(levels: list[float]) -> None:
    """No two parameters are written alike."""
    names = {Score("nodata", 0, (("value", v),)).column for v in levels}
    assert len(names) == len({v + 0.0 for v in levels})
    shares = {abs(v) % 1 for v in levels} - {0.0}
    assert len({Score("bright", 0, (("coverage", v),)).column for v in shares}) == len(shares)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("entropie",), "did you mean 'entropy'"),
        (("max", -1), "channel"),
        (("max", True), "channel"),
        (("max", 0, (("level", 1.0),)), "parameters"),
        (("nodata", 0, (("value", 1.0), ("value", 2.0))), "each once"),
        (("bright", 0, (("coverage", 0.0),)), "above 0"),
        (("bright", 0, (("coverage", 1.5),)), "at most 1"),
        (("saturation", 0, (("level", math.nan),)), "finite"),
    ],
)
def test_wrong_scores_are_refused(arguments: Any, says: str) -> None:
    """Unknown names and parameters out of range are refused with the way out."""
    with pytest.raises(ConfigError, match=says):
        Score(*arguments)


def test_wrong_pixels_are_refused() -> None:
    """No such channel, no such type, no level."""
    with pytest.raises(ConfigError, match="channel 2"):
        Score("mean", 2).of(np.zeros((1, 2, 4), np.uint8))
    with pytest.raises(SourceError, match="complex"):
        Score("mean").of(np.zeros((1, 1, 4), complex))
    with pytest.raises(ConfigError, match="level"):
        Score("saturation").of(np.zeros((1, 1, 4), np.float32))


def test_no_patches() -> None:
    """Nothing has no scores."""
    for score in scores("uint8"):
        assert score.of(np.zeros((0, 1, 4, 4), np.uint8)).shape == (0,)
