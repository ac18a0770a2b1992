"""Our filters beside CAREamics': the same patches are kept, but for what is listed here."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from patchloom.planning.filters import parse_filters

theirs = pytest.importorskip("careamics.dataset.patch_filter")
configs = pytest.importorskip("careamics.config.data.patch_filter")

Pixels = npt.NDArray[Any]
CONFIGS = {
    "max": "MaxPatchFilterConfig",
    "mean_std": "MeanStdPatchFilterConfig",
    "shannon": "ShannonPatchFilterConfig",
    "mask": "MaskPatchFilterConfig",
}


def ours(config: Any, pixels: Pixels) -> list[bool]:
    """What ours keep of patches [n, *space]; of a mask, the patches are its own."""
    [found] = parse_filters([config])
    ndim = pixels.ndim - 1
    columns = {s.column: s.of(pixels[:, None]) for s in found.scores(ndim)}
    columns["coverage"] = (pixels != 0).reshape(len(pixels), -1).mean(axis=1)
    return [bool(keeps) for keeps in found.keeps(columns, ndim)]


def kept(config: Any, pixels: Pixels) -> list[bool]:
    """What theirs keep."""
    if config.name == "mask":
        other = theirs.MaskPatchFilter(coverage=config.coverage)
    else:
        other = theirs.create_patch_filter(config)
    # Theirs are given patches with an axis of one channel.
    return [not other.filter_out(patch[None]) for patch in pixels]


@st.composite
def patches(draw: st.DrawFn, ndim: int) -> Pixels:
    """Smooth or not, dark or not: patches on both sides of most thresholds."""
    dtype: Any = draw(st.sampled_from([np.uint8, np.uint16, np.float32]))
    shape = (draw(st.integers(1, 4)), *(draw(st.integers(1, 12)) for _ in range(ndim)))
    few = st.sampled_from([0, 1, 2, 3, 5, 50, 200])
    return draw(hnp.arrays(dtype, shape, elements=few))


LEVELS = st.sampled_from([0, 0.5, 1, 2, 3, 7.25, 50, 199, 200, 201])
SHARES = st.sampled_from([0, 0.1, 0.125, 0.25, 0.3, 0.5, 0.75, 1.0])


def drawn(draw: Any, name: str) -> Any:
    """A configuration of theirs."""
    said: dict[str, Any] = {}
    if name == "max":
        said = {"threshold": draw(LEVELS), "coverage": draw(SHARES)}
    elif name == "mean_std":
        said = {"mean_threshold": draw(LEVELS), "std_threshold": draw(st.none() | LEVELS)}
    elif name == "shannon":
        # Off what entropies of few pixels are: both compute them to 1e-15 or so.
        said = {"threshold": draw(st.sampled_from([0, 0.3217, 0.8765, 1.2345, 2.3456]))}
    else:
        said = {"coverage": draw(SHARES)}
    return getattr(configs, CONFIGS[name])(**said)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", sorted(CONFIGS))
@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_same_patches_are_kept(name: str, ndim: int, data: st.DataObject) -> None:
    """Their configuration as it stands, random patches, equal decisions."""
    config = drawn(data.draw, name)
    pixels = data.draw(patches(ndim))
    assert ours(config, pixels) == kept(config, pixels)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_same_of_patches_as_large_as_real_ones(ndim: int) -> None:
    """64 x 64 and 16 x 32 x 32, with thresholds in the middle of what occurs."""
    rng = np.random.default_rng(ndim)
    shape = (64, 64) if ndim == 2 else (16, 32, 32)
    light = rng.gamma(2, 40, (40, *(1,) * ndim))
    pixels = rng.poisson(light, (40, *shape)).astype(np.uint16)
    spots = rng.random(pixels.shape) < 2e-3 * rng.random((40, *(1,) * ndim))
    pixels[spots] += 300
    wide = pixels.astype(np.float64)
    axes = tuple(range(1, ndim + 1))
    both = configs.MeanStdPatchFilterConfig(
        mean_threshold=float(np.median(wide.mean(axis=axes))),
        std_threshold=float(np.quantile(wide.std(axis=axes), 0.4)) + 1e-6,
    )
    for config in (
        both,
        configs.MaxPatchFilterConfig(threshold=300, coverage=0.5**ndim),
        configs.MaxPatchFilterConfig(threshold=330, coverage=0.6),
        configs.ShannonPatchFilterConfig(threshold=5.5),
    ):
        found = ours(config, pixels)
        assert found == kept(config, pixels)
        assert 0 < sum(found) < len(found), config


def test_names_and_defaults_are_theirs() -> None:
    """But for the share of the rejected that is kept, and coverage in 3-D."""
    [found] = parse_filters([{"name": "max", "threshold": 1}])
    other = configs.MaxPatchFilterConfig(threshold=1)
    assert (other.filtered_patch_prob, found.filtered_patch_prob) == (0.1, 0.0)
    [same] = parse_filters([other])
    assert same.model_dump() == other.model_dump()
    # Theirs are told the number of axes later, by another call.
    assert other.coverage == 0.25
    assert [s.column for s in found.scores(3)] == ["bright"]
    assert [s.column for s in same.scores(3)] == ["bright_25"]


# -- where they differ ----------------------------------------------------------------------


def test_negative_thresholds() -> None:
    """Theirs refuse them, so images of negative mean cannot be filtered; ours take them."""
    config = configs.MeanStdPatchFilterConfig(mean_threshold=-2.0)
    pixels = np.full((2, 4, 4), -1.0, np.float32)
    pixels[1] = -3
    with pytest.raises(ValueError, match="non-negative"):
        theirs.create_patch_filter(config)
    assert ours(config, pixels) == [True, False]


def test_mean_and_std_as_their_code_has_it() -> None:
    """Their class says that both must be below to be removed; their code and ours need one."""
    pixels = np.zeros((1, 4, 4), np.uint8)
    pixels[0, :2] = 20
    config = configs.MeanStdPatchFilterConfig(mean_threshold=15.0, std_threshold=5.0)
    assert pixels.mean() < 15
    assert pixels.std() > 5
    assert ours(config, pixels) == kept(config, pixels) == [False]


def test_zeros_beyond_a_patch() -> None:
    """Where pixels and threshold are negative, theirs see bright zeros beyond the patch."""
    pixels = np.full((1, 8, 8), -10.0, np.float32)
    pixels[0, 0, 0] = -1
    config = configs.MaxPatchFilterConfig(threshold=-2.0, coverage=0.5)
    assert kept(config, pixels) == [True]
    assert ours(config, pixels) == [False]


@pytest.mark.parametrize("name", ["mean_std", "shannon"])
def test_nothing_but_nan(name: str) -> None:
    """Theirs keep a patch of which nothing is known (a mean), ours do not."""
    said = {"mean_threshold": 1.0} if name == "mean_std" else {"threshold": 0.5}
    config = getattr(configs, CONFIGS[name])(**said)
    pixels = np.full((1, 4, 4), np.nan, np.float32)
    assert kept(config, pixels) == [name == "mean_std"]
    assert ours(config, pixels) == [False]


def test_nan_is_left_out() -> None:
    """Theirs take the mean to be NaN, and NaN for one more value; ours look at what is there."""
    pixels = np.zeros((1, 4, 4), np.float32)
    pixels[0, :2] = np.nan
    entropy = configs.ShannonPatchFilterConfig(threshold=0.5)
    assert kept(entropy, pixels) == [True]
    assert ours(entropy, pixels) == [False]
    mean = configs.MeanStdPatchFilterConfig(mean_threshold=1.0)
    assert kept(mean, pixels) == [True]
    assert ours(mean, pixels) == [False]
