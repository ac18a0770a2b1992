"""Ours beside the installed CAREamics: same arguments, same answers where they are documented."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchloom import patching as ours

theirs = pytest.importorskip("careamics.dataset.patching")


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """Images at least as large as a patch: below that theirs fail or stick out."""
    size = tuple(draw(st.lists(st.integers(3, 9), min_size=2, max_size=3)))
    shapes = [
        (draw(st.integers(1, 2)), 1, *(draw(st.integers(p, 20)) for p in size))
        for _ in range(draw(st.integers(1, 2)))
    ]
    return shapes, size


def specs(patching: Any) -> list[Any]:
    return [patching.get_patch_spec(i) for i in range(patching.n_patches)]


def indices(patching: Any, n: int) -> list[list[int]]:
    return [list(patching.get_patch_indices(i)) for i in range(n)]


@settings(max_examples=25, deadline=None)
@given(layouts(), st.data())
def test_grids_are_the_same(layout: Any, data: st.DataObject) -> None:
    """Sequential, with any overlap: the same patches at the same indices."""
    shapes, size = layout
    overlaps = [data.draw(st.integers(0, p - 1)) for p in size]
    pair = [m.SequentialPatching(shapes, size, overlaps) for m in (ours, theirs)]
    assert specs(pair[0]) == specs(pair[1])
    assert indices(pair[0], len(shapes)) == indices(pair[1], len(shapes))


@settings(max_examples=25, deadline=None)
@given(layouts(), st.data())
def test_tiles_are_the_same(layout: Any, data: st.DataObject) -> None:
    """Tiles, crops and stitches for even overlaps, the only ones that CAREamics admits."""
    shapes, size = layout
    overlaps = [2 * data.draw(st.integers(0, (p - 1) // 2)) for p in size]
    pair = [m.TiledPatching(shapes, size, overlaps) for m in (ours, theirs)]
    assert specs(pair[0]) == specs(pair[1])
    assert indices(pair[0], len(shapes)) == indices(pair[1], len(shapes))
    assert all(theirs.is_tile_specs(spec) for spec in specs(pair[0]))


@settings(max_examples=25, deadline=None)
@given(layouts())
def test_whole_and_fixed_are_the_same(layout: Any) -> None:
    """Whole samples, and a list of specs in any order."""
    shapes, size = layout
    pair = [m.WholeSamplePatching(shapes) for m in (ours, theirs)]
    assert specs(pair[0]) == specs(pair[1])
    listed = specs(ours.SequentialPatching(shapes, size))[::-2]
    both = [m.FixedPatching(listed) for m in (ours, theirs)]
    assert specs(both[0]) == specs(both[1])
    assert indices(both[0], len(shapes)) == indices(both[1], len(shapes))


@settings(max_examples=25, deadline=None)
@given(layouts(), st.integers(0, 2**40))
def test_random_ones_agree_in_what_is_documented(layout: Any, seed: int) -> None:
    """Number of patches, image of each index, and determinism; positions are other draws."""
    shapes, size = layout
    for name in ("RandomPatching", "FixedRandomPatching"):
        mine, other = (getattr(m, name)(shapes, size, seed=seed) for m in (ours, theirs))
        assert mine.n_patches == other.n_patches
        assert indices(mine, len(shapes)) == indices(other, len(shapes))
        assert specs(mine) == specs(getattr(ours, name)(shapes, size, seed=seed))


@settings(max_examples=25, deadline=None)
@given(layouts())
def test_grids_of_strata_agree_where_cells_fit(layout: Any) -> None:
    """Cells are theirs, but for those that stick out of their image."""
    shapes, size = layout
    mine, other = (m.StratifiedPatching(shapes, size, seed=1) for m in (ours, theirs))
    cells, wanted = mine.get_all_grid_coords(), other.get_all_grid_coords()
    assert cells.keys() == wanted.keys()
    for (image, _), found in cells.items():
        shape = shapes[image][2:]
        assert all((np.multiply(c, size) + size <= shape).all() for c in found)
        fits = [tuple(c) for c in wanted[image, _] if (np.multiply(c, size) + size <= shape).all()]
        assert found == fits


def test_cells_stick_out_of_their_image_and_not_of_ours() -> None:
    """127 pixels, patch 64: theirs have four cells, three of which leave the image."""
    for module, n in ((ours, 1), (theirs, 4)):
        strata = module.StratifiedPatching([(1, 1, 127, 127)], (64, 64), seed=1)
        assert len(strata.get_all_grid_coords()[0, 0]) == n


@pytest.mark.parametrize("module", [ours, theirs], ids=["ours", "theirs"])
def test_excluding_changes_the_strategy(module: Any) -> None:
    """Excluded cells are gone from the included ones, and their pixels are never taken."""
    strata = module.StratifiedPatching([(2, 1, 64, 48)], (16, 16), seed=3)
    before = strata.n_patches
    out = [(0, 0), (2, 1)]
    strata.exclude_patches(0, 1, out)
    assert strata.n_patches < before
    left = strata.get_included_grid_coords()
    assert set(left[0, 0]) - set(left[0, 1]) == set(out)
    taken = np.zeros((2, 64, 48), bool)
    for spec in specs(strata):
        y, x = spec["coords"]
        taken[spec["sample_idx"], y : y + 16, x : x + 16] = True
    assert not taken[1, :16, :16].any()
    assert not taken[1, 32:48, 16:32].any()


@pytest.mark.parametrize("module", [ours, theirs], ids=["ours", "theirs"])
def test_errors_are_of_the_same_kind(module: Any) -> None:
    """An index outside is an IndexError, a size of other axes a ValueError."""
    for name in ("RandomPatching", "FixedRandomPatching"):
        strategy = getattr(module, name)([(1, 1, 20, 20)], (8, 8))
        with pytest.raises(IndexError):
            strategy.get_patch_spec(strategy.n_patches)
        with pytest.raises(ValueError, match=r"axes|dimension"):
            getattr(module, name)([(1, 1, 20, 20)], (8, 8, 8))


def test_their_configurations_make_ours() -> None:
    """Their pydantic models, seed included, name the same strategies here."""
    configs = pytest.importorskip("careamics.config.data.patching_strategies")
    shapes = [(1, 1, 64, 64)]
    for config in (
        configs.RandomPatchingConfig(patch_size=[16, 16], seed=5),
        configs.FixedRandomPatchingConfig(patch_size=[16, 16], seed=5),
        configs.StratifiedPatchingConfig(patch_size=[16, 16], seed=5),
        configs.StratifiedPatchingConfig(patch_size=[16, 16]),
        configs.TiledPatchingConfig(patch_size=[16, 16], overlaps=[4, 4]),
        configs.WholePatchingConfig(),
    ):
        mine: Any = ours.create_patching(shapes, config)
        other = theirs.create_patching(shapes, config)
        assert type(mine).__name__ == type(other).__name__
        if getattr(config, "seed", None) is not None:
            assert mine.seed == 5
            assert ours.create_patching(shapes, config, seed=6).seed == 6  # type: ignore[attr-defined]


@given(layouts())
@settings(max_examples=10, deadline=None)
def test_their_specs_are_taken_as_they_are(layout: Any) -> None:
    """What each strategy of theirs answers once can be listed, NumPy integers included."""
    shapes, size = layout
    strata = theirs.StratifiedPatching(shapes, size, seed=1)
    corner = tuple(np.zeros(len(size), np.int64))
    fixed = theirs.FixedPatching(
        [{"data_idx": 0, "sample_idx": 0, "coords": corner, "patch_size": size}]
    )
    for strategy in (strata, fixed, theirs.RandomPatching(shapes, size, seed=1)):
        once = specs(strategy)
        listed = ours.FixedPatching(once)
        assert specs(listed) == once
        assert indices(listed, len(shapes)) == indices(strategy, len(shapes))
