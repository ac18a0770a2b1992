"""Strategies: the protocol's laws, an oracle for the grid, and chi-square for chance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchloom import patching
from patchloom.errors import ConfigError, PatchSizeError
from patchloom.patching.protocol import GridPatching
from patchloom.randomness import below, key_of, philox
from tests import oracle


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    """Images of one number of axes, with chunks of any size."""
    ndim = draw(st.integers(1, 3))
    n = draw(st.integers(1, 3))
    spatial = st.lists(st.integers(1, 24), min_size=ndim, max_size=ndim)
    shapes = [(draw(st.integers(1, 3)), 1, *draw(spatial)) for _ in range(n)]
    size = [draw(st.integers(1, 12)) for _ in range(ndim)]
    return {
        "shapes": shapes,
        "size": size,
        "overlaps": [draw(st.integers(0, p - 1)) for p in size],
        "chunks": [[draw(st.integers(1, 30)) for _ in range(ndim)] for _ in shapes],
        "edge": draw(st.sampled_from(["drop", "shift", "pad"])),
        "seed": draw(st.integers(0, 2**63)),
    }


def strategies(g: dict[str, Any]) -> list[GridPatching]:
    """Every strategy over a geometry: the list that all laws run over."""
    common = {"edge": g["edge"], "chunks": g["chunks"]}
    return [
        patching.SequentialPatching(g["shapes"], g["size"], g["overlaps"], **common),
        patching.RandomPatching(g["shapes"], g["size"], g["seed"], n_patches=7, **common),
        patching.RandomPatching(g["shapes"], g["size"], g["seed"], **common).with_epoch(3),
    ]


@settings(max_examples=150, deadline=None)
@given(g=geometries())
def test_laws_of_every_strategy(g: dict[str, Any]) -> None:
    """Indices partition, answers repeat, every patch has one owner, counts equal enumeration."""
    for strategy in strategies(g):
        ranges = [strategy.get_patch_indices(i) for i in range(len(g["shapes"]))]
        assert [i for r in ranges for i in r] == list(range(strategy.n_patches))
        for image, indices in enumerate(ranges):
            grid = strategy.grids[image]
            counts = strategy.counts(image)
            corners, owned = strategy.corners(image, np.arange(len(counts)))
            assert owned.tolist() == counts.tolist()
            cell = np.repeat(np.arange(len(counts)), counts)
            assert (grid.flat(grid.chunk_of(corners)) == cell % grid.n_chunks).all()
            for k, index in enumerate(indices):
                spec = strategy.get_patch_spec(index)
                assert spec == strategy.get_patch_spec(index)
                assert spec["coords"] == tuple(corners[k])
                assert spec["sample_idx"] == cell[k] // grid.n_chunks
                assert spec["data_idx"] == image
                for c, p, n in zip(spec["coords"], g["size"], grid.shape, strict=True):
                    assert 0 <= c < n
                    assert c + p <= n or g["edge"] == "pad"
            # Any cells in any order give the same corners as all of them do.
            if len(counts):
                some = np.random.default_rng(0).permutation(len(counts))[:3]
                part, _ = strategy.corners(image, some)
                whole = np.concatenate([corners[cell == c] for c in some])
                assert part.tolist() == whole.tolist()
        with pytest.raises(IndexError):
            strategy.get_patch_spec(strategy.n_patches)


@settings(max_examples=200, deadline=None)
@given(g=geometries())
def test_grid_equals_stepping(g: dict[str, Any]) -> None:
    """The patches of a grid are those found by stepping, under every edge policy."""
    strategy = patching.SequentialPatching(
        g["shapes"], g["size"], g["overlaps"], edge=g["edge"], chunks=g["chunks"]
    )
    for image, (samples, _, *space) in enumerate(g["shapes"]):
        want = {
            (s, corner)
            for s in range(samples)
            for corner in oracle.grid(space, g["size"], g["overlaps"], g["edge"])
        }
        specs = [strategy.get_patch_spec(i) for i in strategy.get_patch_indices(image)]
        found = [(spec["sample_idx"], spec["coords"]) for spec in specs]
        assert len(found) == len(want)
        assert set(found) == want


@pytest.mark.parametrize("edge", ["shift", "pad"])
def test_grid_covers_every_pixel(edge: str) -> None:
    """Under shift and pad no pixel is left out, for every extent, size and overlap."""
    for extent in range(1, 40):
        for size in range(1, min(extent, 12) + 1):
            for overlap in range(size):
                seen = np.zeros(extent, bool)
                for at in patching.sequential.lattice(extent, size, size - overlap, edge):  # type: ignore[arg-type]
                    seen[at : at + size] = True
                assert seen.all()


def test_bare_sequential_is_as_careamics_has_it() -> None:
    """Without chunks the order is plain C order, and the last patch is shifted inward."""
    strategy = patching.SequentialPatching([(2, 3, 10, 12)], (4, 5), (1, 2))
    coords = [strategy.get_patch_spec(i)["coords"] for i in range(strategy.n_patches)]
    one = [(y, x) for y in (0, 3, 6) for x in (0, 3, 6, 7)]
    assert coords == one + one


def chi_square(counts: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """How many standard deviations a chi-square statistic lies from its mean."""
    good = expected > 0
    statistic = (((counts - expected) ** 2)[good] / expected[good]).sum()
    freedom = int(good.sum()) - 1
    return float((statistic - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize(
    ("shape", "size", "chunks"),
    [((60, 50), (7, 9), (16, 11)), ((20, 18, 22), (5, 4, 6), (7, 9, 8)), ((90,), (10,), (13,))],
)
def test_random_positions_are_uniform(
    shape: tuple[int, ...], size: tuple[int, ...], chunks: tuple[int, ...]
) -> None:
    """Every valid position is as likely as any other, whatever the chunks."""
    valid = [s - p + 1 for s, p in zip(shape, size, strict=True)]
    n = 60 * math.prod(valid)
    strategy = patching.RandomPatching([(1, 1, *shape)], size, 11, n_patches=n, chunks=[chunks])
    corners, _ = strategy.corners(0, np.arange(len(strategy.counts(0))))
    assert len(corners) == n
    drawn = np.ravel_multi_index(tuple(corners.T), valid)
    counts = np.bincount(drawn, minlength=math.prod(valid))
    assert abs(chi_square(counts, np.full(counts.shape, 60.0))) < 5
    cells = strategy.counts(0)
    rooms = [
        np.bincount(np.arange(v) // c, minlength=g)
        for v, c, g in zip(valid, chunks, strategy.grids[0].counts, strict=True)
    ]
    expected = np.asarray(math.prod(np.ix_(*rooms))).ravel() * 60.0
    assert abs(chi_square(cells, expected)) < 5


def test_chance_has_an_address() -> None:
    """Draws follow seed, epoch and image, never the order of calls or the other images."""
    shapes = [(1, 1, 64, 64), (1, 1, 64, 64)]
    keys = [key_of("a"), key_of("b")]
    both = patching.RandomPatching(shapes, (8, 8), 5, n_patches=50, keys=keys)
    alone = patching.RandomPatching(shapes[:1], (8, 8), 5, n_patches=50, keys=keys[1:])
    first = both.corners(0, [0])[0]
    assert (both.corners(1, [0])[0] == alone.corners(0, [0])[0]).all()
    assert (first != both.corners(1, [0])[0]).any()
    assert (first != both.with_epoch(1).corners(0, [0])[0]).any()
    assert (first == both.with_epoch(1).with_epoch(0).corners(0, [0])[0]).all()
    other = patching.RandomPatching(shapes, (8, 8), 6, n_patches=50, keys=keys)
    assert (first != other.corners(0, [0])[0]).any()


def test_philox_equals_the_published_numbers() -> None:
    """Known answers of Philox4x32-10 from the reference implementation (Random123)."""
    words = philox(0, 0, 0, 0, 0)
    assert [int(w) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    full = 2**32 - 1
    words = philox(2**64 - 1, full, full, full, full)
    assert [int(w) for w in words] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    words = philox(0xA4093822 | 0x299F31D0 << 32, 0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert [int(w) for w in words] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_below_stays_below() -> None:
    """The largest word still gives a number inside the interval."""
    words = np.array([0, 2**31, 2**32 - 1], np.uint64)
    assert below(1, words).tolist() == [0, 0, 0]
    assert below(1000, words).tolist() == [0, 500, 999]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "sequentiel", "patch_size": [8, 8]}, "did you mean 'sequential'"),
        ({"name": "sequential", "patch_sise": [8, 8]}, "did you mean 'patch_size'"),
        ({"name": "sequential", "patch_size": [0, 8]}, "patch_size"),
        ({"name": "random", "patch_size": [8, 8], "n_patches": -1}, "n_patches"),
        ({"patch_size": [8, 8]}, "has a name"),
        ("sequential", "mapping"),
    ],
)
def test_wrong_configurations_are_named(config: Any, words: str) -> None:
    """A wrong key, name or value says which, and what is near."""
    with pytest.raises(ConfigError, match=words):
        patching.create_patching([(1, 1, 32, 32)], config)


def test_wrong_sizes_are_named() -> None:
    """Sizes and overlaps that do not fit the axes are refused with the numbers."""
    with pytest.raises(PatchSizeError, match="one number a spatial axis"):
        patching.SequentialPatching([(1, 1, 32, 32)], (8, 8, 8))
    with pytest.raises(PatchSizeError, match="smaller than the patch"):
        patching.SequentialPatching([(1, 1, 32, 32)], (8, 8), (8, 0))
