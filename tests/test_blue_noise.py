"""Blue noise: gaps by brute force, density against a textbook, chance over many epochs."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchloom.errors import ConfigError, PatchSizeError
from patchloom.patching import BlueNoisePatching, SequentialPatching, create_patching
from patchloom.randomness import digest
from patchloom.testing import check_laws

Ints = npt.NDArray[np.int64]
LARGEST = {1: (40, 90), 2: (12, 26), 3: (6, 13)}
"""Largest radius, and extent of an image in radii, by the number of axes."""


@st.composite
def patchings(draw: st.DrawFn) -> BlueNoisePatching:
    """Any radius on each axis; chunks from one pixel to more than the image."""
    ndim = draw(st.integers(1, 3))
    most, far = LARGEST[ndim]
    radius = [draw(st.integers(1, most)) for _ in range(ndim)]
    return BlueNoisePatching(
        [(draw(st.integers(1, 2)), 1, *(draw(st.integers(1, far * r + 1)) for r in radius))],
        [draw(st.integers(1, r)) for r in radius],
        draw(st.integers(0, 2**63)),
        radius=radius,
        allow_overlap=draw(st.booleans()),
        resample_positions=draw(st.booleans()),
        epoch=draw(st.integers(0, 3)),
        edge=draw(st.sampled_from(["drop", "shift", "pad"])),
        chunks=[[draw(st.integers(1, draw(st.sampled_from([r, 5 * r, 40 * r])))) for r in radius]],
    )


def everywhere(strategy: BlueNoisePatching, sample: int = 0) -> Ints:
    """All first pixels of one sample of the first image."""
    n = strategy.grids[0].n_chunks
    return strategy.corners(0, np.arange(sample * n, (sample + 1) * n))[0]


def too_close(points: Ints, radius: Sequence[int], euclidean: bool) -> int:
    """Pairs of points less than 1 apart, each axis in its radius, looking at every pair."""
    found, r = 0, np.asarray(radius, object if euclidean else np.int64)
    for k in range(len(points) - 1):
        apart = np.abs(points[k + 1 :] - points[k])
        if not euclidean:
            found += int((apart < r).all(-1).sum())
            continue
        # Whole numbers of any size: no rounding.
        near = apart[(apart < np.asarray(radius)).all(-1)].astype(object)
        one = math.lcm(*radius) ** 2
        found += sum(int(s) < one for s in (near * near * (one // (r * r))).sum(-1))
    return found


@settings(max_examples=80, deadline=None)
@given(strategy=patchings())
def test_gap_over_the_whole_image(strategy: BlueNoisePatching) -> None:
    """No two patches are too close, whatever chunks lie between; counts are what is there."""
    for sample in range(strategy.n_samples(0)):
        points = everywhere(strategy, sample)
        assert too_close(points, strategy.radius, strategy.allow_overlap) == 0
        gap = [math.isqrt(r * r // len(strategy.radius)) for r in strategy.radius]
        assert too_close(points, [max(1, g) for g in gap], False) == 0
    room = np.maximum(np.array(strategy.grids[0].shape) - strategy.patch_size, 0)
    assert ((points >= 0) & (points <= room)).all()


@pytest.mark.parametrize("resample", [False, True])
@pytest.mark.parametrize(
    ("shape", "size", "chunk"),
    [
        ((4000,), (8,), (300,)),
        ((500, 410), (10, 8), (33, 47)),
        ((900, 300), (8, 12), (401, 7)),
        ((110, 20, 65), (6, 5, 6), (30, 64, 7)),
    ],
)
def test_gap_of_many_tiles(
    shape: tuple[int, ...], size: tuple[int, ...], chunk: tuple[int, ...], resample: bool
) -> None:
    """The same on images of many tiles of all kinds, where patches may overlap and not."""
    for overlap in (False, True):
        strategy = BlueNoisePatching(
            [(1, 1, *shape)],
            size,
            5,
            allow_overlap=overlap,
            resample_positions=resample,
            chunks=[chunk],
        )
        points = everywhere(strategy)
        assert len(points) == strategy.n_patches > 300
        assert too_close(points, size, overlap) == 0


def bridson(size: Sequence[float], euclidean: bool, seed: int) -> int:
    """How many points Bridson's algorithm puts into a box, in radii (SIGGRAPH 2007; k = 30)."""
    rng = np.random.default_rng(seed)
    box = np.asarray(size, float)

    def norm(apart: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        square = np.sqrt((apart**2).sum(-1)) if euclidean else np.abs(apart).max(-1)
        return np.asarray(square)

    points = np.empty((int(np.prod(box + 1) * 4), len(box)))
    points[0], n, active = rng.random(len(box)) * box, 1, [0]
    while active:
        turn = int(rng.integers(len(active)))
        thrown = rng.uniform(-2, 2, (60 if euclidean else 40, 30, len(box))).reshape(-1, len(box))
        annulus = thrown[(norm(thrown) >= 1) & (norm(thrown) <= 2)][:30]
        for candidate in points[active[turn]] + annulus:
            inside = (candidate >= 0).all() and (candidate < box).all()
            if inside and norm(points[:n] - candidate).min() >= 1:
                points[n] = candidate
                active.append(n)
                n += 1
                break
        else:
            active.pop(turn)
    return n


@pytest.mark.parametrize("resample", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("radii", "radius", "chunk"),
    [
        ((100,), (16,), (64,)),
        ((3, 5), (16, 16), (64, 64)),
        ((22, 9.5), (16, 12), (40, 25)),
        ((14, 20), (32, 32), (350, 1000)),
        ((5, 6, 4), (6, 6, 6), (64, 20, 16)),
    ],
)
def test_as_many_as_bridson(
    radii: tuple[float, ...],
    radius: tuple[int, ...],
    chunk: tuple[int, ...],
    overlap: bool,
    resample: bool,
) -> None:
    """At least 85 % of the mean count of Bridson's algorithm; in fact not fewer."""
    theirs = float(np.mean([bridson(radii, overlap, seed) for seed in range(2)]))
    shape = [round(a * r) + r - 1 for a, r in zip(radii, radius, strict=True)]
    strategy = BlueNoisePatching(
        [(1, 1, *shape)],
        radius,
        1,
        allow_overlap=overlap,
        resample_positions=resample,
        chunks=[chunk],
    )
    ours = float(np.mean([strategy.with_epoch(e).n_patches for e in range(2)]))
    assert ours >= 0.85 * theirs
    assert ours >= 0.97 * theirs, "more than promised: a sign of what has changed"


@pytest.mark.parametrize(("chunk", "resample"), [(40, True), (150, False), (391, True)])
def test_positions_are_uniform(chunk: int, resample: bool) -> None:
    """Farther than 8 radii from a border all first pixels are taken equally often."""
    strategy = BlueNoisePatching(
        [(1, 1, 803)], (4,), 4, resample_positions=resample, chunks=[(chunk,)]
    )
    epochs = [everywhere(strategy.with_epoch(e)).ravel() for e in range(80)]
    # No longer than a tile: what repeats would count twice.
    seen = np.bincount(np.concatenate(epochs), minlength=800)[340:460]
    for bins in (seen, seen.reshape(-1, 4).sum(-1)):
        # Spread as independent draws would be, or less: points keep apart.
        z = (bins - bins.mean()) / np.sqrt(bins.mean())
        assert np.abs(z).max() < 4.5
        assert (z**2).mean() < 1.4


def test_tiles_of_a_plane_are_uniform() -> None:
    """The same in 2-D, by where a first pixel lies in its chunk and in its tile."""
    strategy = BlueNoisePatching(
        [(1, 1, 305, 305)], (6, 6), 9, chunks=[(50, 50)], resample_positions=True
    )
    seen = []
    for epoch in range(24):
        points = everywhere(strategy.with_epoch(epoch))
        points = points[((points >= 50) & (points < 250)).all(-1)]
        seen.append([np.bincount(column % 50 // 5, minlength=10) for column in points.T])
    bins = np.array(seen, float)
    # Epochs are independent, so their spread is the yardstick.
    error = bins.std(0, ddof=1) / math.sqrt(len(bins))
    assert error.max() < 0.06 * bins.mean()
    assert (np.abs(bins.mean(0) - bins.mean((0, 2))[:, None]) < 4 * error).all()


def test_fresh_or_repeated_positions() -> None:
    """Without `resample_positions` each chunk has the same positions; with it they differ."""
    chunks: dict[str, Any] = {"chunks": [(80, 80)]}
    inner = [(y, x) for y in range(2, 8) for x in range(2, 8)]
    for resample in (False, True):
        strategy = BlueNoisePatching(
            [(2, 1, 800, 800)], (10, 10), 3, resample_positions=resample, **chunks
        )
        flat = [y * 10 + x for y, x in inner] + [100 + y * 10 + x for y, x in inner]
        kinds = {
            tuple(sorted(map(tuple, (strategy.corners(0, [cell])[0] % 80).tolist())))
            for cell in flat
        }
        assert len(kinds) == 1 if not resample else len(kinds) > 20


def test_repeated_positions_repeat_after_whole_chunks() -> None:
    """Chunks smaller than a tile: positions repeat after as many as a tile has."""
    strategy = BlueNoisePatching([(1, 1, 3000)], (10,), 3, chunks=[(150,)])
    points = everywhere(strategy).ravel()
    inner = points[(points >= 900) & (points < 1350)]
    assert (inner + 450).tolist() == points[(points >= 1350) & (points < 1800)].tolist()


def test_samples_images_seeds_and_epochs_differ() -> None:
    """Fresh positions have the image, the sample, the seed and the epoch in their address."""
    shapes = [(2, 1, 300, 300), (1, 1, 300, 300)]

    def drawn(seed: int, epoch: int, image: int, cells: range) -> Any:
        one = BlueNoisePatching(shapes, (8, 8), seed, epoch=epoch, resample_positions=True)
        return one.corners(image, list(cells))[0].tolist()

    whole = [drawn(0, 0, 0, range(1)), drawn(0, 0, 0, range(1, 2)), drawn(0, 0, 1, range(1))]
    whole += [drawn(1, 0, 0, range(1)), drawn(0, 1, 0, range(1))]
    assert len({str(points) for points in whole}) == len(whole)
    assert drawn(0, 0, 0, range(1)) == whole[0]


def test_keys_are_the_images_address() -> None:
    """An image keeps its positions when others are added, as long as it keeps its key."""
    alone = BlueNoisePatching([(1, 1, 99, 99)], (5, 5), keys=[7], resample_positions=True)
    among = BlueNoisePatching(
        [(1, 1, 50, 50), (1, 1, 99, 99)], (5, 5), keys=[3, 7], resample_positions=True
    )
    assert everywhere(alone).tolist() == among.corners(1, [0])[0].tolist()


def test_counts_enumerate_nothing() -> None:
    """Counting half a billion patches takes the memory of the counts of their chunks."""
    shape, chunk = (1, 1, 10**6, 10**6), (5000, 5000)
    strategy = BlueNoisePatching([shape], (32, 32), 0, chunks=[chunk])
    tracemalloc.start()
    try:
        assert strategy.n_patches > 5 * 10**8
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    corners, n = strategy.corners(0, [777])
    assert len(corners) == n[0] == strategy.counts(0)[777]


def test_small_images_under_every_edge_policy() -> None:
    """Only `pad` admits an image smaller than a patch, with one patch where it begins."""
    shapes = [(1, 1, 5, 40), (1, 1, 0, 9), (1, 1, 3, 3)]
    for edge in ("drop", "shift"):
        assert BlueNoisePatching(shapes, (8, 8), edge=edge).n_patches == 0
    padded = BlueNoisePatching(shapes, (8, 8), edge="pad")
    check_laws(padded)
    assert [len(padded.get_patch_indices(i)) > 0 for i in range(3)] == [True, False, True]
    assert padded.corners(2, [0])[0].tolist() == [[0, 0]]
    assert set(padded.corners(0, [0])[0][:, 0].tolist()) == {0}


def test_what_does_not_fit_is_refused() -> None:
    """A radius below the patch only where patches may overlap; one number an axis."""
    with pytest.raises(PatchSizeError, match="allow_overlap=True"):
        BlueNoisePatching([(1, 1, 50, 50)], (8, 8), radius=(8, 7))
    for radius in ((8,), (0, 8)):
        with pytest.raises(PatchSizeError, match="at least 1 on each"):
            BlueNoisePatching([(1, 1, 50, 50)], (8, 8), radius=radius, allow_overlap=True)
    with pytest.raises(ConfigError, match="did you mean 'allow_overlap'"):
        create_patching([(1, 1, 50)], {"name": "blue_noise", "patch_size": [8], "alow_overlap": 1})


def test_by_name() -> None:
    """The configuration says all that the class takes."""
    config = {
        "name": "blue_noise",
        "patch_size": [8, 8],
        "radius": [6, 10],
        "allow_overlap": True,
        "resample_positions": True,
    }
    named = create_patching([(1, 1, 90, 90)], config, seed=3)
    made = BlueNoisePatching(
        [(1, 1, 90, 90)],
        (8, 8),
        3,
        radius=(6, 10),
        allow_overlap=True,
        resample_positions=True,
    )
    assert named.corners(0, [0])[0].tolist() == everywhere(made).tolist()


WRITTEN = {
    (False, False): "66bb52900e953b4f",
    (False, True): "6da19a9410c98c5f",
    (True, False): "f6506b11184a4b0f",
    (True, True): "7a3d2e4217d20dd5",
}
"""Digests of positions by `allow_overlap` and `resample_positions`."""


@pytest.mark.parametrize(("overlap", "resample"), WRITTEN)
def test_positions_are_those_written_down(overlap: bool, resample: bool) -> None:
    """The same on every machine and with every NumPy; another answer breaks old plans."""
    drawn = [
        everywhere(
            BlueNoisePatching(
                [(1, 1, *shape)],
                size,
                11,
                radius=radius,
                allow_overlap=overlap,
                resample_positions=resample,
                epoch=1,
                chunks=[chunk],
            )
        ).tolist()
        for shape, size, radius, chunk in [
            ((3000,), (7,), (9,), (100,)),
            ((400, 300), (7, 6), (9, 6), (64, 193)),
            ((110, 20, 65), (6, 5, 6), (6, 5, 7), (30, 64, 7)),
        ]
    ]
    assert digest(drawn, size=8).hex() == WRITTEN[overlap, resample]


@pytest.mark.parametrize("kind", [BlueNoisePatching, SequentialPatching])
def test_counts_are_those_of_the_image_asked(kind: Any) -> None:
    """Threads that ask for several images at once do not hear of each other's."""
    strategy = kind([(1, 1, 40), (1, 1, 400)], (4,), chunks=[(20,), (40,)])
    want = [strategy.counts(image)[[0, 1]].tolist() for image in (0, 1)]
    assert want[0] != want[1]

    class Forgetful(kind):  # type: ignore[misc]
        @property
        def _last(self) -> Any:
            return self.__dict__.get("_kept")

        @_last.setter
        def _last(self, value: Any) -> None:
            # Another thread is always faster.
            self.__dict__["_kept"] = value and (1 - value[0], value[1] * 0)

    raced = Forgetful([(1, 1, 40), (1, 1, 400)], (4,), chunks=[(20,), (40,)])
    for image in (0, 1):
        assert raced.counts_of(image, [0, 1]).tolist() == want[image]
        raced._last = None
