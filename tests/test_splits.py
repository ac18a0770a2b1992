"""Splits against brute force: pixels are painted, gaps measured pair by pair.

Laws: no source pixel is in two splits; patches of two splits are a guard apart; adding images
moves none; shares are met; folds partition.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import ConfigError, PlanError
from patchloom.image import Image
from patchloom.planning.distance import split_distance
from patchloom.planning.incidence import Cut
from patchloom.planning.split_blocks import _steps
from patchloom.planning.split_config import SplitConfig, parse_split
from patchloom.planning.splits import Splits
from patchloom.planning.worlds import text_of

Ints = npt.NDArray[np.int64]
[EMPTY] = patchloom.open_images(np.zeros((4, 4), "uint8"))


def an_image(name: str, shape: Sequence[int] = (4, 4), **more: Any) -> Image:
    """An image of some extent, with metadata, spacing, origin or unit."""
    if tuple(shape) == (4, 4):
        return replace(EMPTY, id=name, **more)
    pixels = np.broadcast_to(np.uint8(0), shape)
    [image] = patchloom.open_images(pixels, axes="zyx"[3 - len(shape) :], ids=[name])
    return replace(image, **more)


def split(images: Sequence[Image], seed: int = 0, **config: Any) -> Splits:
    return Splits.of(parse_split(config), images, seed)


def of(splits: Splits, low: Any, high: Any, image: int = 0) -> list[int]:
    low, high = np.array(low, np.int64), np.array(high, np.int64)
    found = splits.of_boxes(image, np.zeros(len(low), np.int64), low, high)
    assert found.dtype == np.int8
    said: list[int] = found.tolist()
    return said


# -- blocks of one image ----------------------------------------------------------------


@st.composite
def block_jobs(draw: st.DrawFn) -> dict[str, Any]:
    ndim = draw(st.integers(1, 3))
    shape = [draw(st.integers(4, {1: 60, 2: 20, 3: 9}[ndim])) for _ in range(ndim)]
    size = [draw(st.integers(1, 4)) for _ in range(ndim)]
    context = [draw(st.integers(0, 2)) for _ in range(ndim)]
    corner = st.tuples(*(st.integers(-p + 1, n - 1) for n, p in zip(shape, size, strict=True)))
    return {
        "shape": shape,
        "cut": Cut(
            tuple(p + 2 * c for p, c in zip(size, context, strict=True)),
            tuple(context),
            draw(st.sampled_from(["constant", "edge", "reflect", "symmetric"])),
        ),
        "corners": np.array(draw(st.lists(corner, min_size=1, max_size=25))) - np.array(context),
        "block": [draw(st.integers(1, 9)) for _ in range(ndim)],
        "guard": [draw(st.integers(0, 3)) for _ in range(ndim)],
        "seed": draw(st.integers(0, 99)),
        "folds": draw(st.sampled_from([None, 3])),
    }


def source_pixels(job: dict[str, Any], corner: Ints) -> Ints:
    """All pixels that a patch shows: their positions are padded as its values would be."""
    flat = np.arange(math.prod(job["shape"])).reshape(job["shape"])
    mode = job["cut"].padding
    more = max(job["shape"]) + max(job["cut"].size)
    options = {"constant_values": -1} if mode == "constant" else {}
    wide = np.pad(flat, more, mode, **options)
    inside = tuple(
        slice(c + more, c + more + p) for c, p in zip(corner, job["cut"].size, strict=True)
    )
    found = np.unique(wide[inside])
    return np.stack(np.unravel_index(found[found >= 0], job["shape"]), -1)


@settings(max_examples=60)
@given(job=block_jobs())
def test_no_pixel_in_two_splits(job: dict[str, Any]) -> None:
    """Painted pixels of two splits are a guard apart, and no patch is left out without need."""
    shape, guard = job["shape"], np.array(job["guard"])
    asked = {"by": "blocks", "block_size": job["block"], "folds": job["folds"]}
    image = an_image("a", shape)
    splits = split([image], job["seed"], guard=job["guard"], **asked)
    plain = split([image], job["seed"], **asked)
    low, high = job["cut"].span(job["corners"], np.array(shape))
    found = of(splits, low, high)
    # A single pixel lies in one block, so this is the split of each block.
    pixels = np.stack([m.ravel() for m in np.indices(shape)], -1)
    owner = np.array(of(plain, pixels, pixels + 1)).reshape(shape)
    assert (owner >= 0).all()
    blocks = pixels // np.array(job["block"])
    for block in np.unique(blocks, axis=0):
        assert len(set(owner.ravel()[(blocks == block).all(-1)].tolist())) == 1
    painted = []
    for k, (corner, a, b) in enumerate(zip(job["corners"], low, high, strict=True)):
        reach = -(-guard // 2)
        wide = tuple(slice(max(0, x - r), y + r) for x, y, r in zip(a, b, reach, strict=True))
        whose = set(owner[wide].ravel().tolist())
        assert found[k] == (whose.pop() if len(whose) == 1 else -1)
        painted += [(found[k], p) for p in source_pixels(job, corner) if found[k] >= 0]
    sets = [np.array([p for k, p in painted if k == s]).reshape(-1, len(shape)) for s in (0, 1)]
    between = np.abs(sets[0][:, None] - sets[1][None])
    assert (between - 1 >= guard).any(-1).all()
    assert (between > 0).any(-1).all()


def test_patch_over_many_blocks_of_one_split() -> None:
    """Neighbouring blocks of one split are as good as one block."""
    image = an_image("a", (200,))
    splits = split([image], by="blocks", block_size=10)
    owner = of(splits, [[k] for k in range(200)], [[k + 1] for k in range(200)])
    [longest] = [[len([*run]) for _, run in itertools.groupby(owner)]]
    begins = np.cumsum([0, *longest[:-1]])
    assert max(longest) > 10
    assert -1 not in of(splits, begins[:, None], (begins + longest)[:, None])
    ends = begins[1:, None]
    assert set(of(splits, ends - 1, ends + 1)) == {-1}


def test_patches_are_split_whatever_is_asked_with_them() -> None:
    """One by one, many at once, and together with some that are very far away."""
    where = {"spacing": {"y": 1.0, "x": 1.0}, "origin": {"y": 0.0, "x": 0.0}}
    image = an_image("a", (60, 60), **where)
    for config in ({"block_size": 7.5, "guard": 3, "world": True}, {"block_size": 9, "guard": 3}):
        splits = split([image], by="blocks", **config)
        low = np.random.default_rng(0).integers(0, 57, (2000, 2))
        found = of(splits, low, low + 3)
        assert {*found} == {-1, 0, 1}
        for k in range(0, 2000, 50):
            assert of(splits, low[k : k + 1], low[k : k + 1] + 3) == found[k : k + 1]
        if "world" in config:
            far = np.concatenate([low, [[10**5, -(10**4)]]])
            assert of(splits, far, far + 3)[:-1] == found
    assert of(splits, low[:0], low[:0]) == []


@settings(max_examples=60)
@given(
    pixel=st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=20),
    slope=st.fractions(Fraction(1, 10**18), 10, max_denominator=10**18).filter(bool)
    | st.sampled_from([Fraction(1, 7), Fraction("0.32499999999999996") / 1024]),
    offset=st.fractions(-(10**5), 10**5, max_denominator=10**18),
)
def test_lookup_is_exact(pixel: list[int], slope: Fraction, offset: Fraction) -> None:
    """Fractions of any denominator are rounded as fractions are."""
    pixel = [k % 300 for k in pixel]
    values = [k * slope + offset for k in pixel]
    column = np.array(pixel)
    assert _steps(column, slope, offset, up=False).tolist() == [math.floor(v) for v in values]
    assert _steps(column, slope, offset, up=True).tolist() == [math.ceil(v) for v in values]


# -- worlds -----------------------------------------------------------------------------

SPACING = [Fraction(k, 4) for k in (1, 2, 3, 4, 6, 8)]
FINE = Fraction(1, 8)
"""Pixels of all spacings begin and end on this raster."""


@st.composite
def world_jobs(draw: st.DrawFn) -> dict[str, Any]:
    ndim = draw(st.integers(1, 2))
    images, boxes = [], []
    for name in "ab":
        shape = [draw(st.integers(4, 30 if ndim == 1 else 10)) for _ in range(ndim)]
        axes = "yx"[2 - ndim :]
        images.append(
            an_image(
                name,
                shape if ndim == 1 or shape != [4, 4] else [4, 5],
                spacing={a: float(draw(st.sampled_from(SPACING))) for a in axes},
                origin={a: draw(st.integers(-40, 40)) / 8 for a in axes},
                unit=dict.fromkeys(axes, "micrometer"),
                metadata={"slide": "s"},
            )
        )
        size = draw(st.integers(1, 3))
        corner = st.tuples(*(st.integers(0, n - size) for n in shape))
        low = np.array(draw(st.lists(corner, min_size=1, max_size=15)))
        boxes.append((low, low + size))
    return {
        "images": images,
        "boxes": boxes,
        "block": draw(st.sampled_from([2.0, 2.9, 3.3, 4.0, 7.5])),
        "guard": draw(st.integers(0, 3)),
        "world": draw(st.sampled_from([True, "slide"])),
        "seed": draw(st.integers(0, 99)),
    }


def physical(image: Image, low: Ints, high: Ints) -> list[tuple[list[Fraction], list[Fraction]]]:
    """Boxes in the coordinates of the world."""

    def at(k: int, a: str) -> Fraction:
        return Fraction(image.origin[a]) + (k - Fraction(1, 2)) * Fraction(image.spacing[a])

    axes = image.axes.spatial
    return [
        (
            [at(int(k), a) for k, a in zip(x, axes, strict=True)],
            [at(int(k), a) for k, a in zip(y, axes, strict=True)],
        )
        for x, y in zip(low, high, strict=True)
    ]


@settings(max_examples=60)
@given(job=world_jobs())
def test_overlapping_files_share_no_point(job: dict[str, Any]) -> None:
    """Two files of one world are painted into one raster that is fine enough for both."""
    images, guard = job["images"], job["guard"]
    splits = split(
        images,
        job["seed"],
        by="blocks",
        block_size=job["block"],
        guard=guard,
        world=job["world"],
    )
    kept: list[tuple[int, tuple[list[Fraction], list[Fraction]]]] = []
    for index, (low, high) in enumerate(job["boxes"]):
        found = of(splits, low, high, index)
        kept += [
            (k, box)
            for k, box in zip(found, physical(images[index], low, high), strict=True)
            if k >= 0
        ]
    raster: dict[tuple[int, ...], int] = {}
    for k, (low, high) in kept:
        ranges = [range(int(a / FINE), int(b / FINE)) for a, b in zip(low, high, strict=True)]
        assert all(r.start * FINE == a for r, a in zip(ranges, low, strict=True))
        for cell in itertools.product(*ranges):
            assert raster.setdefault(cell, k) == k
    axes = images[0].axes.spatial
    widest = [guard * max(Fraction(i.spacing[a]) for i in images) for a in axes]
    for (k, (low, high)), (m, (start, stop)) in itertools.combinations(kept, 2):
        gaps = [max(c - b, a - d) for a, b, c, d in zip(low, high, start, stop, strict=True)]
        assert k == m or any(g >= w for g, w in zip(gaps, widest, strict=True))


@settings(max_examples=60)
@given(job=world_jobs())
def test_block_of_world_by_hand(job: dict[str, Any]) -> None:
    """A box is kept if all corners of the lattice's boxes that it meets say the same."""
    image, block = job["images"][0], Fraction(str(job["block"]))
    low, high = job["boxes"][0]
    splits = split([image], job["seed"], by="blocks", block_size=job["block"], world=True)
    # An image whose pixels are the blocks: it asks for one block at a time.
    axes = image.axes.spatial
    size = float(block)
    coarse = replace(
        image,
        id="blocks",
        spacing=dict.fromkeys(axes, size),
        origin={a: float(block / 2) for a in axes},
    )
    asked = split([coarse], job["seed"], by="blocks", block_size=job["block"], world=True)
    for k, (a, b) in zip(of(splits, low, high), physical(image, low, high), strict=True):
        ranges = [
            range(math.floor(x / block), math.ceil(y / block)) for x, y in zip(a, b, strict=True)
        ]
        cells = np.array([*itertools.product(*ranges)])
        whose = set(of(asked, cells, cells + 1))
        assert -1 not in whose
        assert k == (whose.pop() if len(whose) == 1 else -1)


def placed(name: str, begin: float, **metadata: Any) -> Image:
    """4 x 4 pixels of 0.5 um; the first begins there on both axes."""
    return an_image(
        name,
        spacing={"y": 0.5, "x": 0.5},
        origin={"y": begin + 0.25, "x": begin + 0.25},
        unit={"y": "micrometer", "x": "micrometer"},
        metadata=metadata,
    )


@settings(max_examples=60)
@given(
    begins=st.lists(st.tuples(st.integers(0, 60), st.sampled_from("ab")), min_size=1, max_size=12),
    guard=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_images_that_overlap_across_splits(
    begins: list[tuple[int, str]], guard: int, seed: int
) -> None:
    """An error is raised if and only if two images of one world meet across splits."""
    images = [placed(f"i{k}", b / 4, slide=s) for k, (b, s) in enumerate(begins)]
    where = split(images, seed).assignments()
    meet = [
        (one.id, two.id)
        for (one, (a, s)), (two, (b, t)) in itertools.combinations(
            zip(images, begins, strict=True), 2
        )
        if s == t and where[one.id] != where[two.id] and abs(a - b) < 8 + 2 * guard
    ]
    if not meet:
        assert split(images, seed, world="slide", guard=guard).assignments() == where
        return
    with pytest.raises(PlanError) as caught:
        split(images, seed, world="slide", guard=guard)
    assert any(
        repr(one) in str(caught.value) and repr(two) in str(caught.value) for one, two in meet
    )


def test_many_images_of_one_world() -> None:
    """Thousands of images in a row, of which only two meet."""
    images = [placed(f"i{k}", 2.0 * k) for k in range(3000)]
    keep = {"i1500": "train", "i1501": "val"}
    assert len(split(images, world=True, keep=keep).assignments()) == 3000
    images[1500] = placed("i1500", 3000.25)
    with pytest.raises(PlanError, match="'i1500' is train and 'i1501' is val"):
        split(images, world=True, keep=keep)


# -- stability --------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    names=st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=9, unique=True),
    more=st.lists(st.text("xyz", min_size=1, max_size=3), max_size=9, unique=True),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_added_images_move_none(
    names: list[str], more: list[str], seed: int, data: st.DataObject
) -> None:
    """Whatever is added, and in whatever order, old groups and blocks stay."""

    def of_names(chosen: Sequence[str]) -> list[Image]:
        return [
            placed(n, 2.0 * (int.from_bytes(n.encode()) % 997), donor=n[0], n=len(n))
            for n in chosen
        ]

    old = of_names(names)
    configs: list[dict[str, Any]]
    new = data.draw(st.permutations(old + of_names(more)))
    configs = [
        {"by": "image"},
        {"by": "donor"},
        {"by": ["donor", "n"], "shares": {"a": 1, "b": 1, "c": 2}},
        {"by": "image", "folds": 4, "fold": 2},
    ]
    for config in configs:
        before, after = split(old, seed, **config), split(new, seed, **config)
        assert before.assignments().items() <= after.assignments().items()
        for k, image in enumerate(old):
            assert of(before, [[0, 0]], [[2, 2]], k) == of(
                after, [[0, 0]], [[2, 2]], new.index(image)
            )
    boxes = np.array([*itertools.product(range(3), range(3))])
    configs = [
        {"by": "blocks", "block_size": 2, "guard": 1},
        {"by": "blocks", "block_size": 1.3, "guard": 1, "world": True},
        {"by": "blocks", "block_size": 1.3, "guard": 1, "world": "donor"},
    ]
    for config in configs:
        before, after = split(old, seed, **config), split(new, seed, **config)
        for k, image in enumerate(old):
            assert of(before, boxes, boxes + 2, k) == of(after, boxes, boxes + 2, new.index(image))


def test_coarser_image_widens_the_guard_of_its_world() -> None:
    """Its guard is wider in the world: old patches are left out, and none changes its split."""
    fine = an_image("f", (60, 60), spacing={"y": 1.0, "x": 1.0}, origin={"y": 0.0, "x": 0.0})
    coarse = replace(fine, id="c", spacing={"y": 4.0, "x": 4.0})
    low = np.array([*itertools.product(range(0, 56, 3), range(0, 56, 3))])
    config: dict[str, Any] = {"by": "blocks", "block_size": 20, "guard": 2, "world": True}
    before, after = (
        of(split([fine], **config), low, low + 4),
        of(split([fine, coarse], **config), low, low + 4),
    )
    assert all(b in (a, -1) for a, b in zip(before, after, strict=True))
    assert after.count(-1) > before.count(-1)


def test_split_is_the_same_in_every_process_and_version() -> None:
    """Nothing depends on Python's own hashes, and what was decided once stays decided."""
    program = "import json; from tests.test_splits import pinned; print(json.dumps(pinned()))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == pinned() == PINNED


def pinned() -> list[str]:
    """Some splits, as text."""
    images = [placed(f"i{k}", 2.0 * k, donor=f"d{k % 9}", n=k % 5) for k in range(24)]
    box = np.array([*itertools.product(range(-8, 8, 2), repeat=2)])
    configs: list[dict[str, Any]] = [
        {"by": "image"},
        {"by": "donor", "folds": 3, "fold": 1},
        {"by": ["donor", "n"], "stratify": "n", "shares": {"train": 0.5, "val": 0.5}},
        {"by": "image", "keep": {"i3": "val", "i4": "val"}},
    ]
    said = ["".join(map(str, split(images, 7, **config).of_image)) for config in configs]
    configs = [
        {"by": "blocks", "block_size": 1.0, "world": True},
        {"by": "blocks", "block_size": 1.0, "world": "donor", "shares": {"a": 1, "b": 1}},
    ]
    cut = [of(split(images, 7, **config), box, box + 1, 1) for config in configs]
    return said + ["".join(map(str, found)) for found in cut]


PINNED = [
    "101000100010001000000000",
    "010101000010101000010101",
    "100110111101000001001101",
    "000110100010001000000000",
    "0000000000000001000110010000001000000000000000001000001000000010",
    "0111101100110011011011000000101001010000011111011001011110000100",
]


# -- shares -----------------------------------------------------------------------------


def chi_square(counts: Sequence[int], shares: Sequence[float]) -> float:
    total = sum(counts) / sum(shares)
    return sum((n - s * total) ** 2 / (s * total) for n, s in zip(counts, shares, strict=True))


def test_shares_are_met_on_average() -> None:
    """Of many groups and blocks, each split gets its share as chance has it."""
    shares = {"train": 0.7, "val": 0.2, "test": 0.1}
    images = [an_image(f"image {k}", metadata={"n": k}) for k in range(6000)]
    for by in ("image", "n"):
        splits = split(images, by=by, shares=shares)
        counts = Counter(splits.assignments().values())
        assert chi_square([counts[s] for s in shares], [*shares.values()]) < 14  # p = 0.001
    image = an_image("a", (300, 300), spacing={"y": 1.0, "x": 1.0}, origin={"y": 0.5, "x": 0.5})
    corners = np.array([*itertools.product(range(-150, 150), repeat=2)])
    found = of(
        split([image], by="blocks", block_size=1, world=True, shares=shares), corners, corners + 1
    )
    assert chi_square([found.count(k) for k in range(3)], [*shares.values()]) < 14
    # No pattern along an axis: neighbours agree as often as chance has it.
    grid = np.array(
        of(
            split([image], by="blocks", block_size=1, shares={"a": 1, "b": 1}),
            corners + 150,
            corners + 151,
        )
    ).reshape(300, 300)
    for axis in (0, 1):
        same = int((np.diff(grid, axis=axis) == 0).sum())
        assert chi_square([same, 300 * 299 - same], [1, 1]) < 11


@settings(max_examples=60)
@given(
    strata=st.lists(st.sampled_from("abcd"), min_size=1, max_size=40),
    shares=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    seed=st.integers(0, 99),
)
def test_stratified_shares_are_met_within_rounding(
    strata: list[str], shares: list[int], seed: int
) -> None:
    """In every stratum each split has its share, rounded down or up; two splits also over all."""
    images = [an_image(f"i{k}", metadata={"kind": s}) for k, s in enumerate(strata)]
    named = {f"s{k}": n / 10 for k, n in enumerate(shares)}
    found = split(images, seed, stratify="kind", shares=named).assignments()
    for kind in {*strata}:
        members = [found[i.id] for i in images if i.metadata["kind"] == kind]
        for name, share in zip(named, shares, strict=True):
            due = Fraction(share, sum(shares)) * len(members)
            assert math.floor(due) <= members.count(name) <= math.ceil(due)
    if len(shares) == 2:
        due = Fraction(shares[0], sum(shares)) * len(images)
        assert abs([*found.values()].count("s0") - due) <= Fraction(1, 2)


@settings(max_examples=60)
@given(
    n=st.integers(1, 20),
    more=st.integers(0, 20),
    stratify=st.sampled_from([None, "kind"]),
    seed=st.integers(0, 9),
)
def test_kept_groups_never_move(n: int, more: int, stratify: str | None, seed: int) -> None:
    """What an earlier plan decided stays, and new groups come as close to the shares as can be."""
    images = [an_image(f"i{k}", metadata={"kind": k % 3}) for k in range(n + more)]
    shares = {"train": 0.5, "val": 0.3, "test": 0.2}
    old = split(images[:n], seed, shares=shares, stratify=stratify).assignments()
    keep = {**old, "gone": "test"}
    new = split(images, seed, shares=shares, stratify=stratify, keep=keep).assignments()
    assert old.items() <= new.items()
    assert new.keys() == {i.id for i in images}
    for kind in range(3) if stratify else [None]:
        all_ = [i.id for i in images if kind is None or i.metadata["kind"] == kind]
        for name, share in shares.items():
            due = Fraction(str(share)) * len(all_)
            kept = sum(old.get(i) == name for i in all_)
            got = sum(new[i] == name for i in all_)
            assert got <= max(kept, math.ceil(due))


def test_only_keep_holds_a_stratified_split() -> None:
    """Dealt out anew among more images, some groups move; hashed or kept ones do not."""
    images = [an_image(f"i{k}", metadata={"kind": "a"}) for k in range(40)]
    few, all_ = (split(some, stratify="kind").assignments() for some in (images[:20], images))
    assert not few.items() <= all_.items()
    assert few.items() <= split(images, stratify="kind", keep=few).assignments().items()
    few, all_ = (split(some).assignments() for some in (images[:20], images))
    assert few.items() <= all_.items()


@settings(max_examples=60)
@given(
    n=st.integers(1, 30),
    folds=st.integers(2, 6),
    stratify=st.sampled_from([None, "kind"]),
    seed=st.integers(0, 9),
)
def test_folds_partition(n: int, folds: int, stratify: str | None, seed: int) -> None:
    """Every group, and every block, is val in exactly one fold."""
    images = [an_image(f"i{k}", metadata={"kind": k % 2}) for k in range(n)]
    every = [
        split(images, seed, folds=folds, fold=k, stratify=stratify).assignments()
        for k in range(folds)
    ]
    for image in images:
        assert [one[image.id] for one in every].count("val") == 1
    if stratify:
        for kind in (0, 1):
            members = [i.id for i in images if i.metadata["kind"] == kind]
            sizes = [sum(one[i] == "val" for i in members) for one in every]
            assert max(sizes) - min(sizes) <= 1
    pixels = np.array([*itertools.product(range(4), repeat=2)])
    cut = [
        of(split(images, seed, folds=folds, fold=k, by="blocks", block_size=1), pixels, pixels + 1)
        for k in range(folds)
    ]
    assert (np.array(cut).sum(0) == 1).all()


def test_only_the_ratio_of_shares_counts() -> None:
    """Shares are exact decimals in any order and of any sum."""
    images = [an_image(f"i{k}") for k in range(300)]
    found = [
        split(images, shares=shares).assignments()
        for shares in ({"a": 0.1, "b": 0.3}, {"b": 3, "a": 1}, {"b": 0.75, "a": 0.25})
    ]
    assert found[0] == found[1] == found[2]
    assert parse_split({"shares": {"a": 0.1, "b": 0.3}}).exact_shares == [
        Fraction(1, 4),
        Fraction(3, 4),
    ]


def test_words_are_compared_exactly() -> None:
    """A split holds the words below its bound and no other: the thresholds are exact integers."""
    splits = split([EMPTY], by="blocks", block_size=1, shares={"a": 1, "b": 2, "c": 3})
    assert splits.blocks is not None
    assert splits.blocks.upto.tolist() == [-(-(2**64) // 6), 2**63]


# -- groups -----------------------------------------------------------------------------


def test_values_of_two_types_are_two_groups() -> None:
    """Text that reads like a number is no number; a number is one however NumPy holds it."""
    texts = ["1", "true", '"1"', "[1]", "", "null", "one", "NaN"]
    values: list[object] = [1, True, 1.5, *texts]
    assert len({text_of(v) for v in values}) == len(values)
    assert text_of(np.int64(1)) == text_of(1.0) == text_of(np.float32(1)) == text_of(1) == "1"
    assert text_of("one") == "one"


def test_groups_by_columns() -> None:
    """Images with equal values stay together; their group can be kept by its name."""
    images = [an_image(f"i{k}", metadata={"donor": k % 7, "day": "ab"[k % 2]}) for k in range(60)]
    splits = split(images, by=["donor", "day"])
    assert len(splits.assignments()) == 14
    for k, image in enumerate(images):
        name = json.dumps([str(image.metadata["donor"]), image.metadata["day"]])
        assert splits.names[splits.of_image[k]] == splits.assignments()[name]
    assert split(images, by=["donor"]).assignments() == split(images, by="donor").assignments()
    moved = split(images, by="donor", keep={"3": "val"})
    assert moved.assignments()["3"] == "val"
    assert {moved.of_image[k] for k in range(3, 60, 7)} == {1}


# -- errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"share": {}}, "unknown key 'share' in split; did you mean 'shares'"),
        ({"shares": {"train": 1.0}}, "none has all"),
        ({"shares": {"train": 1.0, "val": 0}}, "shares.val should be greater than 0"),
        ({"shares": {"train": 1.0, "val": math.inf}}, "shares.val"),
        ({"shares": {"train": 1.0, " ": 1}}, "plain text"),
        ({"shares": {"train": 1.0, "a\n": 1}}, "plain text"),
        ({"folds": 1}, "folds should be greater than or equal to 2"),
        ({"folds": 3, "fold": 3}, "fold= is from 0 to 2, got 3"),
        ({"fold": 1}, "say folds= too"),
        ({"folds": 3, "shares": {"a": 1, "b": 1}}, "leave one of them out"),
        ({"folds": 3, "keep": {"a": "val"}}, "keep= is for shares="),
        ({"keep": {"a": "test"}}, r"keep= names the splits \['train', 'val'\], got \['test'\]"),
        ({"by": "blocks"}, "needs block_size="),
        ({"by": "blocks", "block_size": 1.5}, "whole pixels"),
        ({"by": "blocks", "block_size": 0}, "greater than 0"),
        ({"by": "blocks", "block_size": 8, "stratify": "donor"}, "groups of images"),
        ({"by": "blocks", "block_size": 8, "keep": {"a": "val"}}, "groups of images"),
        ({"by": "blocks", "block_size": [8]}, r"block_size= has one number .* got \[8.0\]"),
        ({"by": "blocks", "block_size": {"y": 8, "z": 8}}, "block_size= has one number for each"),
        ({"by": "blocks", "block_size": 8, "guard": [1, 2, 3]}, "one number a spatial axis"),
        ({"by": "blocks", "block_size": 8, "guard": -1}, "guard"),
        ({"by": "image", "block_size": 8}, "is for by='blocks'"),
        ({"by": "image", "guard": 8}, "say by='blocks' or world="),
        ({"by": []}, "at least 1 item"),
        ({"by": ["donor", "donor"]}, "each column once"),
        ({"by": "doner"}, r"is 'image' or 'blocks', got 'doner'; there are \['donor', 'plate'\]"),
        ({"by": "plate"}, r"'plate' is missing in \['b'\]"),
        ({"by": "donor", "stratify": "plate"}, "missing"),
        ({"world": True}, "a spacing and an origin"),
        ({"world": "plate"}, "missing"),
        ({"by": "blocks", "block_size": 8, "world": True}, "'a' has not"),
    ],
)
def test_errors_name_the_way_out(config: dict[str, Any], said: str) -> None:
    images = [
        an_image("a", metadata={"donor": 1, "plate": 1}),
        an_image("b", metadata={"donor": 1, "plate": math.nan}),
    ]
    with pytest.raises((ConfigError, PlanError), match=said):
        split(images, **config)


def test_no_split_from_other_things() -> None:
    with pytest.raises(ConfigError, match="split is a mapping"):
        parse_split("image")  # type: ignore[arg-type]


def test_group_in_two_strata() -> None:
    images = [an_image(f"i{k}", metadata={"donor": "d", "kind": k}) for k in (0, 1)]
    with pytest.raises(PlanError, match="'0' and '1' in the group 'd'"):
        split(images, by="donor", stratify="kind")


def test_units_of_a_world() -> None:
    one, two = placed("a", 0, slide=1), placed("b", 50, slide=2)
    two = replace(two, unit={"y": "nanometer", "x": "nanometer"})
    assert split([one, two], by="blocks", block_size=2, world="slide").blocks is not None
    with pytest.raises(PlanError, match=r"one unit on each axis, got .*'a' and .*'b'"):
        split([one, two], by="blocks", block_size=2, world=True)
    with pytest.raises(PlanError, match="a spacing is above 0"):
        split([replace(one, spacing={"y": 0.0, "x": 1.0})], world=True)


def test_blocks_that_hold_no_patch() -> None:
    """A patch and its guard fit into a block, in pixels or in the unit of the world."""
    image = placed("a", 0)
    for size, fits in (([7, 8], True), ([8, 7], True), ([9, 8], False), ([8, 9], False)):
        for config in (
            {"block_size": 10},
            {"block_size": 5, "world": True},
        ):
            splits = split([image], by="blocks", guard={"y": 2, "x": 2}, **config)
            if fits:
                splits.check([image], [size])
            else:
                with pytest.raises(ConfigError, match="take larger blocks"):
                    splits.check([image], [size])
    split([image]).check([image], [[999, 999]])


def test_configuration_survives_json() -> None:
    """What a plan saves is what it was asked for."""
    for config in (
        {},
        {"folds": 5, "fold": 2, "stratify": "kind"},
        {"by": ["a", "b"], "keep": {"x": "val"}, "seed": 3},
        {"by": "blocks", "block_size": {"y": 2.5, "x": 3}, "guard": [1, 2], "world": "slide"},
    ):
        parsed = parse_split(config)
        assert parse_split(parsed) is parsed
        assert parse_split(json.loads(json.dumps(parsed.model_dump()))) == parsed
    assert SplitConfig.model_json_schema()["properties"]["guard"]["description"]


# -- distance ---------------------------------------------------------------------------


@settings(max_examples=80)
@given(data=st.data())
def test_distance_equals_brute_force(data: st.DataObject) -> None:
    """All pairs, one by one; boxes of several sizes, some of no split."""
    ndim = data.draw(st.integers(1, 3))
    size = st.tuples(*[st.integers(1, 9)] * ndim)
    sizes = data.draw(st.lists(size, min_size=1, max_size=3))
    wide = data.draw(st.sampled_from([8, 60, 10**6]))
    box = st.tuples(st.tuples(*[st.integers(0, wide)] * ndim), st.sampled_from(sizes))
    boxes = data.draw(st.lists(box, min_size=1, max_size=25))
    kinds = data.draw(st.lists(st.integers(-1, 2), min_size=len(boxes), max_size=len(boxes)))
    low = np.array([a for a, _ in boxes])
    high = low + np.array([p for _, p in boxes])
    gaps = [
        max(0, *(int(max(low[j][a] - high[i][a], low[i][a] - high[j][a])) for a in range(ndim)))
        for i, j in itertools.combinations(range(len(boxes)), 2)
        if kinds[i] != kinds[j] and min(kinds[i], kinds[j]) >= 0
    ]
    assert split_distance(low, high, np.array(kinds, np.int8)) == min(gaps, default=None)


def test_distance_of_long_boxes() -> None:
    """The nearest centres are not the nearest boxes: sizes differ from axis to axis."""
    low = np.array([[0, 0], [0, 105], [30, 0]])
    assert split_distance(low, low + np.array([2, 100]), np.array([0, 1, 1], np.int8)) == 5


def test_distance_of_many_patches() -> None:
    """A grid of blocks with a guard between them."""
    image = an_image("a", (4000, 4000))
    splits = split([image], by="blocks", block_size=500, guard=21)
    low = np.random.default_rng(0).integers(0, 4000 - 32, (40_000, 2))
    kinds = splits.of_boxes(0, np.zeros(len(low), np.int64), low, low + 32)
    assert 0.8 < (kinds >= 0).mean() < 1
    assert split_distance(low, low + 32, kinds) == 22  # blocks begin at whole pixels
