"""Stratified patches against weights found pixel by pixel, and patches that stay inside shards."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import patchloom
from patchloom import patching
from patchloom.errors import ConfigError, PatchSizeError, PlanError
from patchloom.testing import STRATEGIES, Geometry
from tests import oracle
from tests.test_patching import OUT, chi_square, geometries, small, specs_of

Floats = npt.NDArray[np.float64]
Cell = tuple[int, ...]
KINDS = ("image", "chunk", "shard")
"""What patches stay inside of."""


def options_of(g: Geometry, kind: str) -> dict[str, Any]:
    """What makes the patches of a strategy stay inside of something."""
    if kind == "image":
        return g.common
    return {"inside_chunks": True, **(g.wide if kind == "chunk" else g.sharded)}


def boxes_of(g: Geometry, kind: str, image: int) -> tuple[int, ...]:
    """Extents of that something."""
    if kind == "image":
        return tuple(max(1, n) for n in g.shapes[image][2:])
    return tuple((g.wide["chunks"] if kind == "chunk" else g.sharded["units"])[image])


def starts(extent: int, size: int, unit: int, pad: bool) -> list[list[int]]:
    """Along one axis, for each box: the first pixels whose patch fits into it, by stepping."""
    if extent < size:
        return [[0]] if pad and extent else [[]]
    return [
        [
            at
            for at in range(begin, min(begin + unit, extent))
            if at + size <= min(begin + unit, extent)
        ]
        for begin in range(0, extent, unit)
    ]


def cells_of(
    shape: Sequence[int], size: Sequence[int], units: Sequence[int], pad: bool = False
) -> dict[Cell, Cell]:
    """First pixel of each cell of the grid."""
    axes = [
        [at for first in starts(n, p, u, pad) for at in first[::p]]
        for n, p, u in zip(shape, size, units, strict=True)
    ]
    index = itertools.product(*(range(len(a)) for a in axes))
    return dict(zip(index, itertools.product(*axes), strict=True))


def box(first: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """The pixels of one patch."""
    return tuple(slice(a, a + p) for a, p in zip(first, size, strict=True))


def expected(
    shape: Sequence[int],
    size: Sequence[int],
    units: Sequence[int],
    out: Sequence[Cell] = (),
    probs: Mapping[Cell, float] | None = None,
    pad: bool = False,
) -> Floats:
    """How often an epoch takes each pixel as the first one of a patch.

    Pixel by pixel: a first pixel that fits into its box weighs 1 / size on each axis, and
    (size - 1) / (2 * size) more at both ends of its box, times the factor that makes all add
    up to a whole number. What a cell weighs goes to those of its first pixels whose patch
    takes no excluded pixel.
    """
    plain, extra = ([np.zeros(n) for n in shape] for _ in range(2))
    names = [np.full(n, -1) for n in shape]
    for axis, (n, p, u) in enumerate(zip(shape, size, units, strict=True)):
        count = 0
        for first in starts(n, p, u, pad):
            for turn, at in enumerate(first):
                plain[axis][at] = 1 if n < p else 1 / p
                names[axis][at] = count + turn // p
            for at in (first[0], first[-1]) if first and n >= p else ():
                extra[axis][at] += (p - 1) / (2 * p)
            count += -(-len(first) // p)
    cells = cells_of(shape, size, units, pad)
    if not cells:
        return np.zeros(shape)
    rank = {cell: k for k, cell in enumerate(cells)}
    share = np.array([0 if c in set(out) else (probs or {}).get(c, 1.0) for c in cells])
    stratum = np.array([rank.get(c, -1) for c in itertools.product(*(a.tolist() for a in names))])
    fits = stratum >= 0
    forbidden = np.zeros(shape, bool)
    for cell in out:
        forbidden[box(cells[cell], size)] = True
    free = np.array([not forbidden[box(at, size)].any() for at in np.ndindex(*shape)])

    def weigh(factor: float) -> Floats:
        axes = [a + factor * b for a, b in zip(plain, extra, strict=True)]
        whole = np.asarray(math.prod(np.ix_(*axes))).ravel()
        wanted = np.bincount(stratum[fits], whole[fits], len(share)) * share
        offered = np.bincount(stratum[fits], (whole * free)[fits], len(share))
        scale = np.divide(wanted, offered, out=np.zeros(len(share)), where=offered > 0)
        found: Floats = np.where(fits, whole * free * scale[stratum], 0).reshape(shape)
        return found

    found = float(weigh(1).sum())
    n = max(1, math.floor(found + 0.5 + 1e-9)) if found > 1e-9 else 0
    low, high = 0.0, 2.0**20
    if not weigh(low).sum() <= n <= weigh(high).sum():
        low = high = 1.0
    while high - low > 1e-14 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if weigh(middle).sum() < n else (low, middle)
    weights = weigh(high)
    return weights * (n / weights.sum()) if n else weights


def covered(first: npt.NDArray[Any], size: Sequence[int]) -> npt.NDArray[Any]:
    """How often each pixel is taken, from how often it is a first one (last axes are space)."""
    for axis, p in enumerate(size, first.ndim - len(size)):
        upto = first.cumsum(axis)
        before = np.zeros_like(upto)
        here = (slice(None),) * axis
        before[(*here, slice(p, None))] = upto[(*here, slice(None, -p))]
        first = upto - before
    return first


def drawn(strategy: patching.StratifiedPatching, samples: int = 1) -> npt.NDArray[np.int64]:
    """How often each pixel of image 0 is the first one of a patch: int64[samples, *space].

    Of several samples of the image, or of all of them together.
    """
    grid = strategy.grids[0]
    corners, counts = strategy.corners(0, np.arange(len(strategy.counts(0))))
    sample = np.repeat(np.arange(len(counts)) // grid.n_chunks, counts) % samples
    shape = (samples, *grid.shape)
    flat = np.ravel_multi_index((sample, *corners.T), shape)
    return np.bincount(flat, minlength=math.prod(shape)).reshape(shape)


@st.composite
def regions(draw: st.DrawFn, cells: Sequence[Cell]) -> tuple[list[Cell], dict[Cell, float]]:
    """Some cells to exclude, and probabilities of some."""
    if not cells:
        return [], {}
    some = st.lists(st.sampled_from(cells), unique=True, max_size=6)
    return draw(some), {cell: draw(st.sampled_from([0.0, 0.25, 1.0])) for cell in draw(some)}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=35, deadline=None)
@given(g=geometries(), data=st.data())
def test_weights_equal_those_of_pixels(kind: str, g: Geometry, data: st.DataObject) -> None:
    """What each chunk weighs, and how many patches there are, is the sum over its pixels."""
    whole = patching.StratifiedPatching(g.shapes, g.size, g.seed, **options_of(g, kind))
    _, _, *shape = g.shapes[0]
    units, pad = boxes_of(g, kind, 0), g.edge in OUT
    cells = cells_of(shape, g.size, units, pad)
    assume(len(cells) <= 300)
    assert whole.get_all_grid_coords()[0, 0] == list(cells)
    assert whole.cell_start(0, list(cells)).tolist() == [list(at) for at in cells.values()]
    out, probs = data.draw(regions(list(cells)))
    whole.exclude_patches(0, 0, out)
    whole.set_region_probs(0, 0, probs)
    weights = expected(shape, g.size, units, out, probs, pad)
    grid = whole.grids[0]
    chunk = grid.flat(grid.chunk_of(np.argwhere(np.ones(shape, bool))))
    upto = np.append(0, np.cumsum(np.bincount(chunk, weights.ravel(), grid.n_chunks)))
    assert np.allclose(whole._weights(0, 0).upto, upto, rtol=0, atol=1e-7)
    assert int(whole.counts(0)[: grid.n_chunks].sum()) == round(weights.sum())


CASES = [
    ((64,), (8,), (20,), (64,), []),
    ((64,), (8,), (20,), (20,), [(1,)]),
    ((31,), (8,), (9,), (18,), []),
    ((43, 37), (8, 7), (16, 11), (43, 37), []),
    ((60, 53), (8, 7), (27, 25), (27, 25), []),
    ((83, 75), (8, 7), (40, 25), (40, 75), [(2, 2), (6, 3)]),
    ((43, 37), (8, 7), (43, 37), (43, 37), [(2, 2), (2, 3)]),
    ((40, 47), (8, 8), (13, 16), (40, 47), [(0, 0), (2, 3)]),
    ((19, 17, 22), (5, 4, 5), (7, 9, 22), (19, 17, 22), []),
    ((30, 26, 34), (5, 4, 5), (17, 13, 17), (17, 13, 17), []),
    ((20, 17, 23), (5, 4, 5), (7, 9, 8), (20, 17, 23), [(1, 1, 2), (3, 3, 3)]),
    ((36, 28, 36), (5, 4, 5), (6, 7, 9), (18, 14, 18), [(1, 1, 1), (4, 3, 5)]),
]


@pytest.mark.parametrize(("shape", "size", "chunks", "units", "out"), CASES)
def test_stratified_expects_all_pixels_equally_often(
    shape: Cell, size: Cell, chunks: Cell, units: Cell, out: list[Cell]
) -> None:
    """Exactly once an epoch far from borders and excluded cells; on average as patches are whole.

    Borders are those of the boxes that patches stay in: the image, its chunks or its shards.
    """
    weights = expected(shape, size, units, out)
    strategy = patching.StratifiedPatching(
        [(1, 1, *shape)], size, inside_chunks=True, chunks=[chunks], units=[units]
    )
    strategy.exclude_patches(0, 0, out)
    n = strategy.n_patches
    assert n == round(weights.sum())
    assert strategy.is_aligned == (chunks == units)
    times = covered(weights, size)
    cells = cells_of(shape, size, units)
    far, reached = np.ones(shape, bool), np.ones(shape, bool)
    for axis, (extent, p, u) in enumerate(zip(shape, size, units, strict=True)):
        at = np.arange(extent)
        stop = np.minimum(at - at % u + u, extent)
        inside = (at % u >= p) & (at < stop - p)
        place = [-1 if a == axis else 1 for a in range(len(shape))]
        far &= inside.reshape(place)
        reached &= (stop - (at - at % u) >= p).reshape(place)
    for cell in out:
        taken = cells[cell]
        assert abs(times[box(taken, size)]).max() < 1e-12
        around = zip(taken, size, strict=True)
        far[tuple(slice(max(0, a - p), a + 2 * p) for a, p in around)] = False
    assert far.any() or len(shape) > 1
    assert abs(times[far] - 1).max(initial=0) < 1e-6
    if not out:
        assert abs(times[reached].mean() - 1) <= 1 / n
        assert abs(times[~reached]).max(initial=0) < 1e-12


@pytest.mark.parametrize(
    ("shape", "size", "chunks", "units"),
    [
        ((1500,), (6,), (45,), (45,)),
        ((87, 53), (5, 4), (13, 11), (87, 53)),
        ((90, 55), (5, 4), (4, 11), (20, 22)),
        ((29, 19, 18), (4, 3, 3), (7, 9, 8), (29, 19, 18)),
        ((30, 17, 24), (4, 3, 3), (15, 12, 12), (15, 12, 12)),
    ],
)
def test_draws_follow_the_weights_of_pixels(
    shape: Cell, size: Cell, chunks: Cell, units: Cell
) -> None:
    """Over 10^6 draws each first pixel comes as often as it weighs, and each region as often as
    its probability says, with cells excluded.
    """
    cells = cells_of(shape, size, units)
    names = list(cells)
    out = [names[k] for k in (0, len(names) // 2, len(names) // 2 + 1)]
    probs = {name: 0.2 + 0.4 * (sum(name) % 3) for name in names[::6]}
    weights = expected(shape, size, units, out, probs)
    samples = math.ceil(10**6 / weights.sum())
    strategy = patching.StratifiedPatching(
        [(samples, 1, *shape)], size, 3, inside_chunks=True, chunks=[chunks], units=[units]
    )
    for sample in range(samples):
        strategy.exclude_patches(0, sample, out)
        strategy.set_region_probs(0, sample, probs)
    assert strategy.n_patches == samples * round(weights.sum()) >= 10**6
    [times] = drawn(strategy)
    assert not times[weights == 0].any()
    assert abs(chi_square(times.ravel(), samples * weights.ravel())) < 5
    scaled = (times - samples * weights)[weights > 0] / np.sqrt(samples * weights[weights > 0])
    assert abs(scaled).max() < 6
    # Cells without a border, and without an excluded one beside them, said plainly.
    began = {c: times[box(at, size)].sum() for c, at in cells.items()}
    inner = []
    for c, at in cells.items():
        ends = [
            a % u == 0 or min(a - a % u + u, n) - a < 2 * p
            for a, p, u, n in zip(at, size, units, shape, strict=True)
        ]
        if not any(ends) and all(
            max(abs(a - b) for a, b in zip(c, o, strict=True)) > 1 for o in out
        ):
            inner.append(c)
    assert inner
    found = np.array([began[c] for c in inner])
    wanted = np.array([probs.get(c, 1.0) * samples for c in inner])
    # Systematic draws vary less than independent ones: at most chi-square's.
    assert ((found - wanted) ** 2 / wanted).sum() < len(inner) + 5 * math.sqrt(2 * len(inner))


def test_one_epoch_is_more_even_than_independent_draws() -> None:
    """Where no chunk cuts a cell, cells take turns: fewer pixels are taken twice, or never."""
    shape, size = (43, 37), (8, 7)
    times = covered(drawn(patching.StratifiedPatching([(4000, 1, *shape)], size, 1), 4000), size)
    far = tuple(slice(p, n - p) for p, n in zip(size, shape, strict=True))
    inner = times[(slice(None), *far)]
    error = np.sqrt(inner.var(0) / len(inner))
    assert (abs(inner.mean(0) - 1) <= 5 * error).all()
    assert inner.var(0).mean() < 0.7


@pytest.mark.parametrize("size", [(1,), (4,), (64,), (5, 3), (64, 64), (4, 3, 5)])
def test_number_of_stratified_patches(size: tuple[int, ...]) -> None:
    """Every pixel once on average, to within one part in the number of patches; never none."""
    rng = np.random.default_rng(2)
    for _ in range(60):
        shape = [int(rng.integers(p, 6 * p + 1)) for p in size]
        n = patching.StratifiedPatching([(1, 1, *shape)], size).n_patches
        assert abs(n * math.prod(size) / math.prod(shape) - 1) <= 1 / n + 1e-12


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=35, deadline=None)
@given(g=geometries(), n=st.integers(0, 12))
def test_validation_shares_no_pixel(kind: str, g: Geometry, n: int) -> None:
    """Train and validation are apart in every epoch, in bounds, and together of one grid."""
    whole = patching.StratifiedPatching(g.shapes, g.size, g.seed, **options_of(g, kind))
    assume(small(whole))
    before = whole.n_patches
    cells = sum(map(len, whole.get_all_grid_coords().values()))
    if n and n >= cells:
        with pytest.raises(PlanError, match=f"{n} of {cells}"):
            patching.create_val_split(whole, n, np.random.default_rng(0))
        return
    train, val = patching.create_val_split(whole, n, np.random.default_rng(g.seed))
    assert val.n_patches == n
    assert whole.n_patches == before
    assert train.n_patches or not cells
    held = [np.zeros((s, *space), bool) for s, _, *space in g.shapes]
    for k in range(n):
        spec = val.get_patch_spec(k)
        part = held[spec["data_idx"]][spec["sample_idx"]][box(spec["coords"], g.size)]
        assert not part.any()
        assert part.shape == g.size or g.edge in OUT
        part[...] = True
    for epoch in range(3):
        later = train.with_epoch(epoch)
        for image, grid in enumerate(later.grids):
            corners, counts = later.corners(image, np.arange(len(later.counts(image))))
            sample = np.repeat(np.arange(len(counts)) // max(1, grid.n_chunks), counts)
            for own, first in zip(sample.tolist(), corners.tolist(), strict=True):
                assert not held[image][own][box(first, g.size)].any()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    ("extent", "chunk", "on_axis"),
    [
        (127, None, 1),
        (150, None, 2),
        (191, None, 2),
        (192, None, 3),
        (127, 100, 1),
        (150, 100, 1),
        (191, 100, 2),
        (192, 128, 3),
    ],
)
def test_cells_of_awkward_sizes(ndim: int, extent: int, chunk: int | None, on_axis: int) -> None:
    """No cell sticks out, and as many as all of them is an error with the numbers."""
    whole = patching.StratifiedPatching(
        [(1, 1, *[extent] * ndim)],
        [64] * ndim,
        inside_chunks=chunk is not None,
        chunks=[[chunk or extent] * ndim],
    )
    cells = on_axis**ndim
    assert len(whole.get_all_grid_coords()[0, 0]) == cells
    with pytest.raises(PlanError, match=f"{cells} of {cells}"):
        patching.create_val_split(whole, cells, np.random.default_rng(0))
    for k in {0, 1, cells // 2, cells - 1} - {cells}:
        train, val = patching.create_val_split(whole, k, np.random.default_rng(k))
        assert train.n_patches
        assert all(max(val.get_patch_spec(i)["coords"]) + 64 <= extent for i in range(k))
        for one, other in itertools.product(range(k), range(train.n_patches)):
            pair = val.get_patch_spec(one)["coords"], train.get_patch_spec(other)["coords"]
            assert max(abs(a - b) for a, b in zip(*pair, strict=True)) >= 64


def test_stratified_regions_and_epochs() -> None:
    """Cells are listed and left out by name, epochs differ, and wrong cells are named."""
    whole = patching.StratifiedPatching([(2, 1, 40, 30)], (10, 10), 9)
    assert len(whole.get_all_grid_coords()[0, 1]) == 12
    assert specs_of(whole, 0) != specs_of(whole.with_epoch(1), 0)
    assert specs_of(whole, 0) == specs_of(whole.with_epoch(1).with_epoch(0), 0)
    later = whole.with_epoch(1)
    later.exclude_patches(0, 1, [(0, 0), (3, 2)])
    later.exclude_patches(0, 1, [(1, 1)])
    assert (3, 2) not in later.get_included_grid_coords()[0, 1]
    assert len(later.get_included_grid_coords()[0, 1]) == 9
    assert len(whole.get_included_grid_coords()[0, 1]) == 12
    with pytest.raises(IndexError, match=r"\(4, 0\)"):
        whole.exclude_patches(0, 0, [(4, 0)])
    with pytest.raises(IndexError, match="sample 2"):
        whole.set_region_probs(0, 2, {(0, 0): 0.5})
    with pytest.raises(PatchSizeError, match=r"1\.5"):
        whole.set_region_probs(0, 0, {(0, 0): 1.5})
    whole.exclude_patches(0, 0, whole.get_all_grid_coords()[0, 0])
    assert {spec["sample_idx"] for spec in specs_of(whole, 0)} == {1}


def test_regions_inside_chunks_have_places() -> None:
    """Cells begin anew in each chunk, and what is left over at its end is none."""
    strata = patching.StratifiedPatching(
        [(1, 1, 25, 23)], (4, 10), inside_chunks=True, chunks=[(10, 23)]
    )
    assert strata.grid_shape(0) == (5, 2)
    assert strata.cell_start(0, [(0, 0), (1, 1), (2, 0), (4, 1)]).tolist() == [
        [0, 0],
        [4, 10],
        [10, 0],
        [20, 10],
    ]
    with pytest.raises(IndexError, match=r"\(5, 0\)"):
        strata.cell_start(0, [(5, 0)])


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_epochs(name: str) -> None:
    """Those that draw draw anew; the others are themselves."""
    g = Geometry(((2, 1, 60, 50),), (6, 5), (0, 0), ((20, 20),), "shift", 1)
    strategy = STRATEGIES[name](g)
    later = strategy.with_epoch(7)
    draws = name.startswith(("random", "stratified", "blue_noise"))
    assert (later is strategy) is not draws
    assert (specs_of(later, 0) != specs_of(strategy, 0)) is draws


def test_a_list_is_the_same_in_every_epoch() -> None:
    """A fixed list has epochs too."""
    listed = patching.FixedPatching([])
    assert listed.with_epoch(3) is listed


@settings(max_examples=40, deadline=None)
@given(g=geometries())
def test_units_are_what_patches_stay_inside_of(g: Geometry) -> None:
    """No patch straddles two; a grid in units of chunks is the grid in chunks of that extent."""
    options, units = g.sharded, g.sharded["units"]
    plain = {"edge": g.edge, "chunks": units}
    one = patching.ChunkAlignedPatching(g.shapes, g.size, g.overlaps, **options)
    other = patching.ChunkAlignedPatching(g.shapes, g.size, g.overlaps, **plain)
    assume(small(one))
    for image in range(len(g.shapes)):
        pair = ({(s["sample_idx"], s["coords"]) for s in specs_of(x, image)} for x in (one, other))
        assert next(pair) == next(pair)
        assert one.left_over(image) == other.left_over(image)
    for kind in (patching.RandomPatching, patching.StratifiedPatching):
        inside: Any = kind(g.shapes, g.size, g.seed, inside_chunks=True, **options)
        cut = any(
            -(-n // c) > -(-n // u)
            for (_, _, *space), row, unit in zip(g.shapes, g.chunks, units, strict=True)
            for n, c, u in zip(space, row, unit, strict=True)
        )
        assert inside.is_aligned is not cut
        for image, unit in enumerate(units):
            cells = np.arange(len(inside.counts(image)))
            first = inside.corners(image, cells)[0]
            last = np.minimum(first + g.size, g.shapes[image][2:]) - 1
            assert (first // unit == last // unit).all()


def test_random_positions_inside_units_are_uniform() -> None:
    """Every position whose patch lies in one unit is as likely as any other."""
    shape, size, chunks, units = (40, 33), (5, 7), (4, 11), (16, 22)
    valid = np.zeros(shape, bool)
    axes = zip(shape, size, units, strict=True)
    valid[np.ix_(*([at for first in starts(*row, False) for at in first] for row in axes))] = True
    strategy = patching.RandomPatching(
        [(1, 1, *shape)],
        size,
        3,
        n_patches=60 * int(valid.sum()),
        inside_chunks=True,
        chunks=[chunks],
        units=[units],
    )
    corners, _ = strategy.corners(0, np.arange(len(strategy.counts(0))))
    times = np.zeros(shape, np.int64)
    np.add.at(times, tuple(corners.T), 1)
    assert not times[~valid].any()
    assert abs(chi_square(times.ravel(), valid.ravel() * 60.0)) < 5


def test_wrong_units_are_named() -> None:
    """Units that cut chunks, hold no patch or are said of nothing are refused with the numbers."""
    shapes, chunks = [(1, 1, 64, 64)], [(16, 16)]
    makes: list[Any] = [
        lambda units: patching.ChunkAlignedPatching(shapes, (20, 8), chunks=chunks, units=units),
        lambda units: patching.RandomPatching(
            shapes, (20, 8), inside_chunks=True, chunks=chunks, units=units
        ),
        lambda units: patching.StratifiedPatching(
            shapes, (20, 8), inside_chunks=True, chunks=chunks, units=units
        ),
    ]
    for make in makes:
        assert make([(32, 16)]).n_patches
        for wrong in ((24, 16), (0, 16), (32,)):
            with pytest.raises(PatchSizeError, match="multiple of the chunks"):
                make([wrong])
        for narrow in (None, [(16, 32)]):
            with pytest.raises(PatchSizeError, match=r"patch_size=\[20, 8\]"):
                make(narrow)
    config = {"name": "chunk_aligned", "patch_size": [8, 8], "unit": "shard"}
    with pytest.raises(ConfigError, match="extents of shards"):
        patching.create_patching(shapes, config, chunks=chunks)
    with pytest.raises(ConfigError, match="inside_chunks"):
        patching.create_patching(shapes, {**config, "name": "random"}, chunks=chunks)
    [image] = patchloom.open_images(np.zeros((64, 64)), ids=["plain"])
    with pytest.raises(ConfigError, match="'plain'"):
        patchloom.plan(image, config)


@pytest.mark.parametrize(
    "config",
    [
        {"name": "chunk_aligned", "patch_size": [4, 10, 12], "unit": "shard"},
        {"name": "chunk_aligned", "patch_size": [3, 8, 9], "unit": "chunk"},
        {
            "name": "random",
            "patch_size": [4, 10, 12],
            "inside_chunks": True,
            "unit": "shard",
            "n_patches": 40,
        },
        {"name": "stratified", "patch_size": [4, 10, 12], "inside_chunks": True, "unit": "shard"},
        {"name": "stratified", "patch_size": [2, 5, 6], "inside_chunks": True},
    ],
    ids=lambda config: f"{config['name']} {config.get('unit')}",
)
def test_shards_are_not_straddled(config: dict[str, Any], tmp_path: Path) -> None:
    """Of a sharded array: the store holds the pixels, and no patch needs two shards (or chunks)."""
    pixels = np.random.default_rng(2).integers(0, 2**16, (2, 7, 64, 60), dtype=np.uint16)
    array = zarr.create_array(
        tmp_path / "in.zarr",
        shape=pixels.shape,
        chunks=(1, 3, 8, 9),
        shards=(2, 6, 16, 27),
        dtype=pixels.dtype,
    )
    array[...] = pixels
    images = patchloom.open_images(str(tmp_path / "in.zarr"), axes="CZYX")
    plan = patchloom.plan(images, config, rows_per_shard=8, seed=3)
    assert plan.n_patches > 10
    chunked = config.get("unit", "chunk") == "chunk"
    assert plan.patching.is_aligned == chunked
    patchloom.materialize(plan, str(tmp_path / "out.zarr"), progress=False)
    group: Any = zarr.open_group(tmp_path / "out.zarr", mode="r")
    stored = group["images"][:]
    source = oracle.canonical(pixels, "czyx")[0]
    straddling = 0
    for row in range(plan.n_patches):
        first, size = plan.get_patch_spec(row)["coords"], plan.patch_size
        assert (stored[row] == oracle.cut(source, first, size)).all()
        for unit, may in (((6, 16, 27), False), ((3, 8, 9), not chunked)):
            rows = zip(first, size, unit, strict=True)
            apart = any(a // u != (a + p - 1) // u for a, p, u in rows)
            assert may or not apart
            straddling += apart
    assert (straddling > 0) is not chunked
    if chunked:
        assert plan.chunk_reads == plan.chunks_needed


def test_what_is_excluded_weighs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk all of whose cells are excluded owns no patch, wherever the draw begins.

    What rounding leaves of so large a chunk is more than what counts as nothing.
    """
    strategy = patching.StratifiedPatching([(1, 1, 9000, 300)], (3, 3), chunks=[(3000, 300)])
    strategy.exclude_patches(0, 0, list(np.ndindex(1000, 100)))
    for offset in (0.0, 1e-10, 1e-9, 0.5):
        monkeypatch.setattr(
            patching.StratifiedPatching, "_offsets", lambda *_, at=offset: np.array([at])
        )
        strategy = strategy.with_epoch(1)
        assert strategy.counts(0)[0] == 0
        corners, _ = strategy.corners(0, np.arange(3))
        assert len(corners) == strategy.n_patches > 0
        assert corners[:, 0].min() >= 3000
    strategy.exclude_patches(0, 0, list(np.ndindex(3000, 100)))
    assert strategy.n_patches == 0


def test_copies_are_excluded_apart() -> None:
    """What is said of a copy is not said of the original; epochs share what samples weigh."""
    strategy = patching.StratifiedPatching([(1, 1, 64, 64)], (16, 16))
    strategy.exclude_patches(0, 0, [(0, 0)])
    n = strategy.n_patches
    later = strategy.with_epoch(3)
    assert later._weights(0, 0) is strategy._weights(0, 0)
    for other in (copy.copy(strategy), later):
        other.exclude_patches(0, 0, [(1, 1), (2, 2)])
        assert (strategy.n_patches, other.n_patches) == (n, n - 2)
        assert len(strategy.get_included_grid_coords()[0, 0]) == 15


@pytest.mark.parametrize("cells", [[(0.5, 1.0)], [(1, 1, 1)], [(1,)], [(1, 1), (1,)]])
def test_cells_are_integers_of_the_axes(cells: Any) -> None:
    """A cell is not cut off or reshaped into another one."""
    strategy = patching.StratifiedPatching([(1, 1, 64, 64)], (16, 16))
    with pytest.raises(PatchSizeError, match="cells"):
        strategy.exclude_patches(0, 0, cells)
    with pytest.raises(PatchSizeError, match="cells"):
        strategy.cell_start(0, cells)
    assert strategy.cell_start(0, []).shape == (0, 2)
    with pytest.raises(PlanError, match="at least 0, got -1"):
        patching.create_val_split(strategy, -1, np.random.default_rng(0))
