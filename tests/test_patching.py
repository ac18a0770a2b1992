"""Strategies: the protocol's laws, an oracle for the grid, and chi-square for chance."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from patchloom import patching
from patchloom.errors import ConfigError, PatchSizeError
from patchloom.patching.protocol import EDGES, GridPatching
from patchloom.randomness import below, key_of, philox, poissons
from patchloom.testing import STRATEGIES, Geometry, PatchingLaws, check_laws
from tests import oracle

OUT = ("pad", "shrink")
"""Edge policies that keep what sticks out."""


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Images of one number of axes, with chunks of any size."""
    ndim = draw(st.integers(1, 3))
    n = draw(st.integers(1, 3))
    spatial = st.lists(st.integers(1, 24), min_size=ndim, max_size=ndim)
    size = tuple(draw(st.integers(1, 12)) for _ in range(ndim))
    return Geometry(
        shapes=tuple((draw(st.integers(1, 3)), 1, *draw(spatial)) for _ in range(n)),
        size=size,
        overlaps=tuple(draw(st.integers(0, p - 1)) for p in size),
        chunks=tuple(tuple(draw(st.integers(1, 30)) for _ in range(ndim)) for _ in range(n)),
        edge=draw(st.sampled_from(EDGES)),
        seed=draw(st.integers(0, 2**63)),
    )


def small(strategy: GridPatching) -> bool:
    """Whether looking at every patch one by one takes no time."""
    return strategy.n_patches <= 300


def specs_of(strategy: Any, image: int) -> list[Any]:
    """All specs of one image."""
    return [strategy.get_patch_spec(i) for i in strategy.get_patch_indices(image)]


@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(g=geometries())
def test_laws_of_every_strategy(name: str, g: Geometry) -> None:
    """Indices partition, answers repeat, every patch has one owner, counts equal enumeration."""
    strategy = STRATEGIES[name](g)
    assume(small(strategy))
    sticks_out = True if name == "tiled as CAREamics" else None
    check_laws(strategy, may_stick_out=sticks_out)


@pytest.mark.parametrize("name", [n for n in STRATEGIES if n != "tiled as CAREamics"])
def test_shipped_suite(name: str) -> None:
    """The suite for other people's strategies holds for ours."""

    class Ours(PatchingLaws):
        def strategy(self, geometry: Geometry) -> GridPatching:
            return STRATEGIES[name](geometry)

    Ours().test_laws()
    Ours().test_epochs()


class _Broken(patching.SequentialPatching):
    """Answers one by one what it does not answer all at once."""

    def get_patch_spec(self, index: int) -> patching.PatchSpecs:
        spec = super().get_patch_spec(index)
        return {**spec, "coords": tuple(max(0, c - 1) for c in spec["coords"])}


def test_shipped_suite_finds_a_broken_strategy() -> None:
    """A law that is broken is named."""
    with pytest.raises(AssertionError, match="one by one"):
        check_laws(_Broken([(1, 1, 20)], (4,)))


@settings(max_examples=200, deadline=None)
@given(g=geometries())
def test_grid_equals_stepping(g: Geometry) -> None:
    """The patches of a grid are those found by stepping, under every edge policy."""
    strategy = patching.SequentialPatching(g.shapes, g.size, g.overlaps, **g.common)
    assume(small(strategy))
    for image, (samples, _, *space) in enumerate(g.shapes):
        want = {
            (s, corner)
            for s in range(samples)
            for corner in oracle.grid(space, g.size, g.overlaps, g.edge)
        }
        found = [(spec["sample_idx"], spec["coords"]) for spec in specs_of(strategy, image)]
        assert len(found) == len(want)
        assert set(found) == want


@pytest.mark.parametrize("edge", ["shift", "pad"])
def test_grid_covers_every_pixel(edge: str) -> None:
    """Under shift and pad no pixel is left out, for every extent, size and overlap."""
    for extent in range(1, 40):
        for size in range(1, min(extent, 12) + 1):
            for overlap in range(size):
                seen = np.zeros(extent, bool)
                for at in patching.lattice.lattice(extent, size, size - overlap, edge):  # type: ignore[arg-type]
                    seen[at : at + size] = True
                assert seen.all()


def test_bare_sequential_is_as_careamics_has_it() -> None:
    """Without chunks the order is plain C order, and the last patch is shifted inward."""
    strategy = patching.SequentialPatching([(2, 3, 10, 12)], (4, 5), (1, 2))
    coords = [strategy.get_patch_spec(i)["coords"] for i in range(strategy.n_patches)]
    one = [(y, x) for y in (0, 3, 6) for x in (0, 3, 6, 7)]
    assert coords == one + one


@settings(max_examples=100, deadline=None)
@given(g=geometries())
def test_tiles_equal_stepping(g: Geometry) -> None:
    """Tiles, crops and places are CAREamics', in any number of axes and with any chunks."""
    strategy = patching.TiledPatching(g.shapes, g.size, g.overlaps, chunks=g.chunks)
    assume(small(strategy))
    for image, (samples, _, *space) in enumerate(g.shapes):
        axes = [oracle.tiles(*row) for row in zip(space, g.size, g.overlaps, strict=True)]
        tiles = list(itertools.product(*axes))
        want = {(s, *zip(*tile, strict=True)) for s in range(samples) for tile in tiles}
        specs = specs_of(strategy, image)
        found = [
            (t["sample_idx"], t["coords"], t["crop_coords"], t["crop_size"], t["stitch_coords"])
            for t in specs
        ]
        assert len(found) == len(want)
        assert set(found) == want
        assert all(patching.is_tile_specs(t) for t in specs)
        assert {t["total_tiles"] for t in specs} == {samples * len(tiles)}
        corners, _ = strategy.corners(image, np.arange(len(strategy.counts(image))))
        for column, key in zip(
            strategy.crops(image, corners),
            ("crop_coords", "crop_size", "stitch_coords"),
            strict=True,
        ):
            assert column.tolist() == [list(t[key]) for t in specs]


@pytest.mark.parametrize("size", [1, 2, 5, 8, 13, 16, 32])
def test_crops_tile_every_axis_once(size: int) -> None:
    """For axes 1 to 200 and every overlap, odd ones too, each pixel is kept exactly once."""
    shapes = [(1, 1, n) for n in range(1, 201)]
    for overlap in range(size):
        for edge in (None, "pad"):
            strategy = patching.TiledPatching(shapes, (size,), (overlap,), edge=edge)
            for image, (_, _, extent) in enumerate(shapes):
                corners, _ = strategy.corners(image, [0])
                crop, kept, stitch = strategy.crops(image, corners)
                assert stitch[0, 0] == 0
                assert (stitch[1:] == (stitch + kept)[:-1]).all()
                assert (stitch + kept)[-1, 0] == extent
                assert (kept > 0).all()
                assert (crop >= 0).all()
                assert (crop + kept <= size).all()
                assert (corners + crop == stitch).all()


@settings(max_examples=60, deadline=None)
@given(g=geometries())
def test_crops_put_an_image_together(g: Geometry) -> None:
    """What tiles keep, laid where they say, is the image, each pixel once."""
    strategy = patching.TiledPatching(g.shapes, g.size, g.overlaps, chunks=g.chunks)
    assume(small(strategy))
    for image, (samples, _, *space) in enumerate(g.shapes):
        times = np.zeros((samples, *space), np.int64)
        for tile in specs_of(strategy, image):
            rows = zip(tile["stitch_coords"], tile["crop_size"], strict=True)
            times[(tile["sample_idx"], *(slice(a, a + n) for a, n in rows))] += 1
        assert (times == 1).all()


@settings(max_examples=150, deadline=None)
@given(g=geometries(), shift=st.integers(0, 6))
def test_aligned_grid_equals_stepping(g: Geometry, shift: int) -> None:
    """Patches are those found by stepping through each chunk, and what is left over is true."""
    options = g.wide
    strategy = patching.ChunkAlignedPatching(
        g.shapes, g.size, g.overlaps, shift=[shift] * len(g.size), **options
    )
    assume(small(strategy))
    for image, (samples, _, *space) in enumerate(g.shapes):
        rows = zip(space, g.size, g.overlaps, options["chunks"][image], strict=True)
        axes = [oracle.aligned(*row, shift, g.edge) for row in rows]
        if g.edge not in OUT and any(n < p for n, p in zip(space, g.size, strict=True)):
            axes = [([], n) for n in space]
        want = set(itertools.product(range(samples), itertools.product(*(a for a, _ in axes))))
        specs = specs_of(strategy, image)
        found = [(spec["sample_idx"], spec["coords"]) for spec in specs]
        assert len(found) == len(want)
        assert set(found) == want
        assert strategy.left_over(image) == tuple(left for _, left in axes)
        seen = np.zeros((samples, *space), bool)
        for spec in specs:
            box = zip(spec["coords"], g.size, strict=True)
            seen[(spec["sample_idx"], *(slice(a, a + p) for a, p in box))] = True
        assert strategy.n_left_over(image) == int((~seen).sum())
        fits = g.edge in OUT or all(n >= p for n, p in zip(space, g.size, strict=True))
        if g.edge != "drop" and fits:
            assert seen.all()
    narrow = any(
        0 < n % c < p < n
        for shape, row in zip(g.shapes, options["chunks"], strict=True)
        for n, c, p in zip(shape[2:], row, g.size, strict=True)
    )
    assert strategy.is_aligned or (g.edge == "shift" and narrow)


def test_fixed_random_is_the_first_epoch() -> None:
    """Fixed positions are those of epoch 0, in every epoch and at every call."""
    shapes, size = [(2, 1, 60, 50), (1, 1, 20, 90)], (8, 9)
    fixed = patching.FixedRandomPatching(shapes, size, 4)
    drawn = patching.RandomPatching(shapes, size, 4)
    for image in range(2):
        assert specs_of(fixed, image) == specs_of(drawn, image)
        assert specs_of(fixed.with_epoch(7), image) == specs_of(fixed, image)
        assert specs_of(drawn.with_epoch(7), image) != specs_of(fixed, image)


def test_whole_samples() -> None:
    """One patch a sample, as large as its image; one size for all where they are padded."""
    shapes = [(2, 3, 20, 30), (1, 1, 25, 7), (1, 1, 0, 7)]
    strategy = patching.WholeSamplePatching(shapes, chunks=[(8, 8)] * 3)
    found = [
        (s["data_idx"], s["sample_idx"], s["coords"], s["patch_size"])
        for s in (strategy.get_patch_spec(i) for i in range(strategy.n_patches))
    ]
    assert found == [(0, 0, (0, 0), (20, 30)), (0, 1, (0, 0), (20, 30)), (1, 0, (0, 0), (25, 7))]
    padded = patching.WholeSamplePatching(shapes, edge="pad")
    assert {padded.get_patch_spec(i)["patch_size"] for i in range(3)} == {(25, 30)}
    with pytest.raises(PatchSizeError, match="same spatial axes"):
        patching.WholeSamplePatching([(1, 1, 20), (1, 1, 20, 20)])


@given(images=st.lists(st.integers(0, 4), max_size=30))
def test_fixed_patches_are_the_list(images: list[int]) -> None:
    """Specs come as they were given, and images partition the indices."""
    specs: list[patching.PatchSpecs] = [
        {"data_idx": image, "sample_idx": k, "coords": (k, 2 * k), "patch_size": (k + 1, 3)}
        for k, image in enumerate(images)
    ]
    strategy = patching.FixedPatching(specs)
    assert [strategy.get_patch_spec(i) for i in range(strategy.n_patches)] == specs
    for image in range(5):
        want = [k for k, other in enumerate(images) if other == image]
        assert list(strategy.get_patch_indices(image)) == want
    for outside in (-1, len(specs)):
        with pytest.raises(IndexError):
            strategy.get_patch_spec(outside)
    if specs:
        strategy.get_patch_spec(0)["coords"] = (99, 99)
        assert strategy.get_patch_spec(0) == specs[0]


def test_wrong_alignments_are_named() -> None:
    """A patch that no chunk can hold and a shift that fits no axis are refused."""
    shapes, chunks = [(1, 1, 64, 64)], [(16, 64)]
    for make in (
        lambda: patching.ChunkAlignedPatching(shapes, (17, 8), chunks=chunks),
        lambda: patching.RandomPatching(shapes, (17, 8), inside_chunks=True, chunks=chunks),
    ):
        with pytest.raises(PatchSizeError, match="stays inside a chunk"):
            make()
    with pytest.raises(PatchSizeError, match="shift"):
        patching.ChunkAlignedPatching(shapes, (8, 8), shift=(1,), chunks=chunks)


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


def test_random_positions_inside_chunks_are_uniform() -> None:
    """Every position whose patch lies in one chunk is as likely as any other; no other is drawn."""
    shape, size, chunks = (40, 33), (5, 7), (16, 11)
    valid = np.zeros(shape, bool)
    for y, x in np.ndindex(*shape):
        ends = (y + size[0], x + size[1])
        inside = all(e <= n for e, n in zip(ends, shape, strict=True))
        same = all(a // c == (e - 1) // c for a, e, c in zip((y, x), ends, chunks, strict=True))
        valid[y, x] = inside and same
    strategy = patching.RandomPatching(
        [(1, 1, *shape)],
        size,
        3,
        n_patches=60 * int(valid.sum()),
        inside_chunks=True,
        chunks=[chunks],
    )
    corners, _ = strategy.corners(0, np.arange(len(strategy.counts(0))))
    drawn = np.zeros(shape, np.int64)
    np.add.at(drawn, tuple(corners.T), 1)
    assert not drawn[~valid].any()
    assert abs(chi_square(drawn.ravel(), valid.ravel() * 60.0)) < 5


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
        ({"name": "tiled", "patch_size": [8, 8]}, "overlaps"),
        ({"name": "chunk-aligned", "patch_size": [8, 8]}, "did you mean 'chunk_aligned'"),
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


def test_what_belongs_to_images_is_one_each() -> None:
    """Chunks, units and keys of another number or width, and a fourth axis, are refused."""
    shapes = [(1, 1, 32, 32)]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"chunks": []}, "chunks has one entry an image, got 0 for 1"),
        ({"chunks": [(8, 8), (8, 8)]}, "got 2 for 1"),
        ({"chunks": [(8, 8, 8)]}, r"got \[8, 8, 8\] for an image of \[32, 32\]"),
        ({"keys": [1, 2]}, "keys has one entry an image, got 2 for 1"),
        ({"units": [(8, 8)] * 3, "inside_chunks": True}, "units has one entry an image, got 3"),
        ({"units": [(8, 8)]}, "inside_chunks=True"),
    ]
    for options, words in wrong:
        for make in (patching.RandomPatching, patching.StratifiedPatching):
            with pytest.raises(PatchSizeError, match=words):
                make(shapes, (4, 4), **options)
    with pytest.raises(PatchSizeError, match="at most 3 spatial axes"):
        patching.SequentialPatching([(1, 1, 8, 8, 8, 8)], (4, 4, 4, 4))
    for image in (-1, 1):
        with pytest.raises(IndexError, match=rf"range\(1\), got {image}"):
            patching.SequentialPatching(shapes, (4, 4)).get_patch_indices(image)


@pytest.mark.parametrize("n", [1.5, -1, "2"])
def test_numbers_of_patches_are_whole(n: Any) -> None:
    """Half a patch is refused; NumPy's integers are integers."""
    with pytest.raises(PatchSizeError, match="whole number"):
        patching.RandomPatching([(1, 1, 32, 32)], (4, 4), n_patches=n)
    asked: Any = np.int64(3)
    assert patching.RandomPatching([(1, 1, 32, 32)], (4, 4), n_patches=asked).n_patches == 3


@pytest.mark.parametrize(
    ("key", "value"), [("context", 3), ("context", [0, 1]), ("classes", [0]), ("max_num", 2)]
)
def test_what_only_a_plan_heeds_is_refused(key: str, value: Any) -> None:
    """A class would leave it out without a word; none of it is no mistake."""
    shapes = [(1, 1, 9, 9)]
    with pytest.raises(ConfigError, match=f"{key!r}, a plan does"):
        patching.create_patching(shapes, {"name": "pixels", "patch_size": 3, key: value})
    for none in (0, [0, 0], None):
        config = {"name": "pixels", "patch_size": 3, "context": none}
        assert patching.create_patching(shapes, config).n_patches == 81


def test_few_patches_need_no_chance() -> None:
    """Poisson numbers of rate 0 are as many zeros, of the narrowest type."""
    found = poissons(3, 0.0, [np.array([4, 2]), np.array([1, 1, 0])], 2)
    assert found.dtype == np.uint8
    assert found.tolist() == [0] * 12
