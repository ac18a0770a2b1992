"""Patches centred on pixels, against brute force: which, of what class, and how many by chance.

Laws: one patch a pixel that mask and labels allow; of `max_num` a uniform random subset, fixed by
seed, image and pixel, and by nothing else: chunks, batches and other images play no part.
"""

from __future__ import annotations

import itertools
import math
import tracemalloc
import uuid
from collections import Counter
from fractions import Fraction
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import ConfigError, PatchSizeError, PlanError
from patchloom.patching import PixelPatching
from patchloom.run import centers, selecting
from tests import oracle

CENTRE = "centre pixel outside the mask or of another class"


def stored(plan: patchloom.Plan) -> patchloom.PatchStore:
    """The plan's store, written on this thread."""
    url = f"memory://{uuid.uuid4().hex}.zarr"
    with dask.config.set(scheduler="synchronous"):
        patchloom.materialize(plan, url, progress=False)
    return patchloom.open_patches(url)


def corner_of(
    pixel: tuple[int, ...], size: tuple[int, ...], shape: tuple[int, ...], edge: str
) -> tuple[int, ...] | None:
    """First pixel of the patch centred on a pixel; None where there is none."""
    found = []
    if edge == "shift" and any(n < p for n, p in zip(shape, size, strict=True)):
        return None
    for at, p, n in zip(pixel, size, shape, strict=True):
        first = at - p // 2
        if edge == "shift":
            first = min(max(first, 0), n - p)
        if edge == "drop" and not 0 <= first <= n - p:
            return None
        found.append(first)
    return tuple(found)


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """A small image with samples, a mask of any resolution, and labels."""
    ndim = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(2, 9 if ndim < 3 else 4)) for _ in range(ndim))
    samples = draw(st.integers(1, 2))
    mask = draw(st.sampled_from(["none", "same", "coarser", "finer", "other"]))
    factor = {"coarser": Fraction(1, 2), "finer": Fraction(2), "other": Fraction(3, 4)}
    return {
        "shape": (samples, *shape),
        "chunks": (draw(st.integers(1, 2)), *(draw(st.integers(1, n)) for n in shape)),
        "size": tuple(draw(st.integers(1, 5)) for _ in range(ndim)),
        "mask": None
        if mask == "none"
        else tuple(max(1, math.ceil(n * factor.get(mask, Fraction(1)))) for n in shape),
        "classes": draw(st.sampled_from([None, [1], [2, 0], [1, 2, 9]])),
        "label_samples": draw(st.booleans()),
        "max_num": draw(st.sampled_from([None, 1, 3, 1000])),
        "edge": draw(st.sampled_from(["drop", "shift", "pad"])),
        "pad_mode": draw(st.sampled_from(["constant", "edge", "reflect", "symmetric"])),
        "context": draw(st.sampled_from([0, 0, 2])),
        "min_coverage": draw(st.sampled_from([0.0, 0.0, 0.5])),
        "rows_per_shard": draw(st.sampled_from([None, 5])),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def opened(job: dict[str, Any]) -> tuple[Any, Any, Any, patchloom.Image]:
    """Pixels, mask, labels [sample, *space] and the image of a job."""
    rng = np.random.default_rng(job["seed"])
    shape, space = job["shape"], "zyx"[4 - len(job["shape"]) :]
    pixels = rng.integers(0, 2**16, shape, dtype=np.uint16)
    labels = rng.integers(0, 3, shape, dtype=np.int16)
    mask = None if job["mask"] is None else rng.random(job["mask"]) < 0.6
    if not job["label_samples"]:
        labels[:] = labels[0]
    [image] = patchloom.open_images(
        da.from_array(pixels, chunks=job["chunks"]),
        axes="s" + space,
        mask=mask,
        labels=labels if job["label_samples"] else labels[0],
    )
    return pixels, mask, labels, image


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(job=jobs())
def test_pixels_become_their_patches(job: dict[str, Any]) -> None:
    """Whose centre is allowed is taken, with its class; of many, as many as asked for."""
    pixels, mask, labels, image = opened(job)
    size, space = job["size"], job["shape"][1:]
    axes = "zyx"[3 - len(space) :]
    asked: dict[str, Any] = {
        "edge": job["edge"],
        "pad_mode": job["pad_mode"],
        "min_coverage": job["min_coverage"],
        "rows_per_shard": job["rows_per_shard"],
        "seed": job["seed"],
    }
    config = {
        "name": "pixels",
        "patch_size": list(size),
        "context": job["context"],
        "classes": job["classes"],
        "max_num": job["max_num"],
    }
    candidates = 0
    rejected: Counter[str] = Counter()
    wanted: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for sample, pixel in itertools.product(range(job["shape"][0]), np.ndindex(*space)):
        corner = corner_of(pixel, size, space, job["edge"])
        if corner is None:
            continue
        candidates += 1
        kind = int(labels[(sample, *pixel)])
        good = job["classes"] is None or kind in job["classes"]
        if mask is not None:
            share = oracle.coverage(mask, space, corner, size)
            if share < Fraction(str(job["min_coverage"])):
                rejected["outside the mask"] += 1
                continue
            good &= oracle.coverage(mask, space, pixel, (1,) * len(space)) >= Fraction(1, 2)
        if not good:
            rejected[CENTRE] += 1
            continue
        wanted.setdefault((sample, corner), []).append(kind if job["classes"] else 0)
    if not candidates:
        with pytest.raises(PatchSizeError):
            patchloom.plan(image, config, **asked)
        return
    plan = patchloom.plan(image, config, **asked)
    available = Counter(kind for kinds in wanted.values() for kind in kinds)
    most = job["max_num"] or math.inf
    n = int(sum(min(most, count) for count in available.values()))
    assert plan.n_patches == n
    beyond = available.total() - n
    assert plan.rejected == +rejected | ({"beyond max_num": beyond} if beyond else {})
    assert plan.n_patches + sum(plan.rejected.values()) == candidates

    store = stored(plan)
    rows = store.manifest.to_pylist()
    assert len({row["patch_id"] for row in rows}) == len(rows) == n
    assert ("class" in store.manifest.column_names) == (job["classes"] is not None and n > 0)
    found: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    context = job["context"]
    cut = tuple(p + 2 * context for p in size)
    for row in rows:
        start = tuple(row[f"start_{a}"] for a in axes)
        corner = tuple(c + context for c in start)
        found.setdefault((row["sample"], corner), []).append(row.get("class", 0))
        shown = oracle.cut(pixels[row["sample"]][None], start, cut, job["pad_mode"])
        np.testing.assert_array_equal(store[row["row"]], shown)
    for place, kinds in found.items():
        # Without replacement: nothing more often than it is there.
        assert not Counter(kinds) - Counter(wanted[place])
    taken = Counter(kind for kinds in found.values() for kind in kinds)
    assert taken == Counter({kind: int(min(most, count)) for kind, count in available.items()})


@pytest.mark.parametrize("classes", [None, [1, 2]])
def test_a_choice_depends_on_seed_image_and_pixel_alone(
    classes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on chunks, batches, patch size, or the images beside it."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (2, 20, 24), dtype="u1")
    labels = rng.integers(0, 4, (2, 20, 24), dtype="u1")

    def taken(seed: int = 5, size: int = 4, beside: int = 0, name: str = "a", **more: Any) -> Any:
        chunked = da.from_array(pixels, chunks=more.get("chunks", (1, 20, 24)))
        images = patchloom.open_images(
            [*[pixels] * beside, chunked],
            ids=[*"xyz"[:beside], name],
            axes="SYX",
            labels=[labels] * (beside + 1),
        )
        config = {"name": "pixels", "patch_size": size, "classes": classes, "max_num": 30}
        plan = patchloom.plan(images, config, edge="pad", seed=seed)
        specs = [plan.get_patch_spec(row) for row in plan.get_patch_indices(beside)]
        half = size // 2
        return {(s["sample_idx"], *(c + half for c in s["coords"])) for s in specs}

    first = taken()
    assert len(first) == 30 * (1 if classes is None else 2)
    for same in ({"chunks": (2, 3, 7)}, {"chunks": (1, 1, 24)}, {"size": 7}, {"beside": 2}):
        assert taken(**same) == first
    monkeypatch.setattr(selecting, "_BATCH", 17)
    monkeypatch.setattr(centers, "_LIMIT", 40)
    assert taken(chunks=(1, 4, 5)) == first
    assert taken(seed=6) != first
    assert taken(name="b") != first


def test_a_choice_is_uniform() -> None:
    """Over many seeds every allowed pixel is taken equally often, and pairs are, too."""
    labels = np.zeros((6, 8), "u1")
    labels[1:4, 2:7] = 1
    labels[5, :] = 2
    [image] = patchloom.open_images(np.zeros((6, 8), "u1"), labels=labels)
    config = {"name": "pixels", "patch_size": 3, "classes": [1, 2], "max_num": 4}
    n = 600
    counts = np.zeros((6, 8))
    pairs: Counter[tuple[int, int]] = Counter()
    for seed in range(n):
        plan = patchloom.plan(image, config, edge="pad", seed=seed)
        [patches] = plan.patches(0, plan.n_patches)
        assert patches.place is not None
        at = np.sort(patches.place)
        counts.ravel()[at] += 1
        pairs.update(itertools.combinations([p for p in at.tolist() if p >= 40], 2))
    assert not counts[labels == 0].any()
    for kind, many in ((1, 15), (2, 8)):
        seen, expected = counts[labels == kind], n * 4 / many
        # Draws without replacement: the variance of a count is that of one Bernoulli.
        statistic = ((seen - expected) ** 2).sum() / (expected * (1 - 4 / many))
        freedom = many - 1
        assert abs(statistic * freedom / many - freedom) < 5 * math.sqrt(2 * freedom)
    assert len(pairs) == 28
    expected = n * 6 / 28
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in pairs.values())


@pytest.mark.parametrize("edge", ["drop", "shift", "pad", "shrink"])
@pytest.mark.parametrize(
    ("shape", "size", "chunks"),
    [((9,), (4,), (2,)), ((5, 7), (3, 2), (2, 5)), ((3, 2, 4), (2, 3, 1), (1, 2, 3))],
)
def test_bare_strategy(edge: Any, shape: Any, size: Any, chunks: Any) -> None:
    """Its places are the centre pixels of its patches, in the same order."""
    strategy = PixelPatching([(2, 1, *shape)], size, edge=edge, chunks=[chunks])
    cells = np.arange(len(strategy.counts(0)))
    corners, counts = strategy.corners(0, cells)
    places = strategy.places(0, cells)
    per_sample = np.split(places, [int(counts[: len(cells) // 2].sum())])
    small = any(n < p for n, p in zip(shape, size, strict=True))
    wanted = {
        np.ravel_multi_index(pixel, shape): corner
        for pixel in np.ndindex(*shape)
        if (corner := corner_of(pixel, size, shape, edge)) is not None
    }
    assert len(wanted) == 0 if small and edge in ("drop", "shift") else wanted
    for part, some in zip(per_sample, np.split(corners, 2), strict=True):
        found = dict(zip(part.tolist(), map(tuple, some.tolist()), strict=True))
        assert len(part) == len(wanted)
        assert found == wanted


def test_a_patch_at_every_pixel_is_mirrored_as_numpy_does() -> None:
    """data_tools' job: every pixel, symmetric at the border; neighbours of one volume."""
    pixels = np.random.default_rng(0).integers(0, 255, (11, 13), dtype="u1")
    [image] = patchloom.open_images(da.from_array(pixels, chunks=(4, 5)))
    mode: Any
    for mode, size in (("symmetric", (5, 4)), ("reflect", (3, 7)), ("constant", (4, 4))):
        plan = patchloom.plan(
            image, {"name": "pixels", "patch_size": size}, edge="pad", pad_mode=mode
        )
        assert plan.n_patches == pixels.size
        store = stored(plan)
        before = [(p // 2, p - 1 - p // 2) for p in size]
        padded = np.pad(pixels, before, mode=mode)
        windows = np.lib.stride_tricks.sliding_window_view(padded, size)
        y = store.manifest["start_y"].to_numpy() + size[0] // 2
        x = store.manifest["start_x"].to_numpy() + size[1] // 2
        np.testing.assert_array_equal(store[:][:, 0], windows[y, x])
        assert len(np.unique(y * 13 + x)) == pixels.size


def test_memory_grows_with_what_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice among many pixels holds a batch, labels of a region, and what it keeps."""
    monkeypatch.setattr(selecting, "_BATCH", 2**12)
    monkeypatch.setattr(centers, "_LIMIT", 2**12)
    n = 700
    labels = da.from_array(np.tile(np.arange(n, dtype="u1") % 3, (n, 1)), chunks=100)
    [image] = patchloom.open_images(da.zeros((n, n), chunks=100, dtype="u1"), labels=labels)
    config = {"name": "pixels", "patch_size": 33, "classes": [1], "max_num": 50}
    with dask.config.set(scheduler="synchronous"):
        patchloom.plan(image, {**config, "max_num": 1}, edge="pad")
        tracemalloc.start()
        plan = patchloom.plan(image, config, edge="pad")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert plan.n_patches == 50
    # One column of all candidates would be as much, and several are looked at.
    assert peak < 8 * n * n
    # One bit a candidate, of the cells that keep some.
    assert plan.cells.bits.nbytes <= 50 * 100 * 100 // 8


def test_mistakes_are_named() -> None:
    """Labels that are missing or have channels, and numbers that are none."""
    image = np.zeros((9, 9), "u1")
    config = {"name": "pixels", "patch_size": 3, "classes": [1]}
    [bare] = patchloom.open_images(image)
    with pytest.raises(PlanError, match="'image-0' has none"):
        patchloom.plan(bare, config)
    wrong: dict[str, Any]
    for wrong in ({"classes": []}, {"max_num": 0}, {"max_num": 2.5}, {"classes": ["a"]}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            patchloom.plan(bare, {**config, **wrong})
