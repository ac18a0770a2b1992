"""The survey of masks: exact, each chunk decoded once, in tasks, in bounded memory, resumable."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.coverage import Alignment
from patchloom.errors import ChunkError
from patchloom.image import Image, Reads
from patchloom.location import Location
from patchloom.planning.cells import Cells
from patchloom.planning.strategies import patching_of
from patchloom.run import mask_survey, selecting
from patchloom.run.mask_survey import survey_masks
from patchloom.run.parts import load_parts
from patchloom.run.placing import placed
from patchloom.run.selecting import Selection
from tests import oracle
from tests.clusters import local_cluster

RATIOS = [Fraction(r) for r in ("1", "1/3", "3/10", "7/10", "5/2", "4")]


def stored(path: Path, pixels: npt.NDArray[Any], chunks: Sequence[int], **more: Any) -> str:
    """A Zarr array on disk; absent chunks where all is 0."""
    array = zarr.create_array(path, shape=pixels.shape, chunks=tuple(chunks), dtype=pixels.dtype)
    array[...] = pixels
    return str(path)


def blank(path: Path, shape: Sequence[int], chunks: Sequence[int]) -> str:
    """A Zarr array without a chunk."""
    zarr.create_array(path, shape=tuple(shape), chunks=tuple(chunks), dtype="uint8")
    return str(path)


def selection_of(
    images: Sequence[Image],
    config: Any,
    coverage: Fraction = Fraction(1, 2),
    min_pixels: int = 0,
    edge: Any = "drop",
) -> Selection:
    """What `plan` asks for."""
    parsed, places, _ = placed(images, config)
    strategy = patching_of(images, parsed, edge, 0, places)
    return Selection(strategy, parsed, coverage, min_pixels, 0)


def same(a: Sequence[Cells], b: Sequence[Cells]) -> None:
    """All columns are equal, in values and types."""
    for one, other in zip(a, b, strict=True):
        for name in ("bounds", "cell", "kept", "bit", "bits"):
            left, right = getattr(one, name), getattr(other, name)
            assert left.dtype == right.dtype, name
            np.testing.assert_array_equal(left, right)


def needed(image: Image, boxes: Sequence[tuple[int, Sequence[int], Sequence[int]]]) -> int:
    """Chunks of a mask that boxes (sample, low, high) of its image touch, by exact rationals."""
    role = image.mask
    assert role is not None
    array, layout = role.image, role.image.layout
    found: set[tuple[int, ...]] = set()
    for sample, low, high in boxes:
        ranges = []
        for k, letter in enumerate(role.axes):
            axis = image.axes.spatial.index(letter)
            scale, offset = role.alignment.scale[k], role.alignment.offset[k]
            touching = {
                n // layout.space.chunks[k]
                for n in range(layout.space.shape[k])
                if offset + n * scale < high[axis] and offset + (n + 1) * scale > low[axis]
            }
            ranges.append(sorted(touching))
        at = sample if layout.n_samples > 1 else 0
        index = np.unravel_index(at, layout.samples.shape) if layout.samples.shape else ()
        group = [int(i) // c for i, c in zip(index, layout.samples.chunks, strict=True)]
        found |= {(*group, *place) for place in itertools.product(*ranges)}
    assert array.layout.n_channels == 1
    return len(found)


def clipped(
    image: Image, corner: Sequence[int], size: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The part of a patch that lies in its image."""
    rows = list(zip(corner, size, image.layout.space.shape, strict=True))
    return [max(0, c) for c, _, _ in rows], [min(c + p, n) for c, p, n in rows]


def fraction_of(
    image: Image, mask: npt.NDArray[np.bool_], low: Sequence[int], high: Sequence[int]
) -> Fraction:
    """Area of a box under a mask [*axes of the mask], pixel after pixel of the mask."""
    role = image.mask
    assert role is not None
    total, factor = Fraction(0), Fraction(1)
    spans = []
    for axis, letter in enumerate(image.axes.spatial):
        if letter not in role.axes:
            factor *= high[axis] - low[axis]
            continue
        k = role.axes.index(letter)
        scale, offset = role.alignment.scale[k], role.alignment.offset[k]
        begins = [offset + n * scale for n in range(mask.shape[k] + 1)]
        spans.append(
            [
                max(Fraction(0), min(b, Fraction(high[axis])) - max(a, Fraction(low[axis])))
                for a, b in itertools.pairwise(begins)
            ]
        )
    for index in zip(*np.nonzero(mask), strict=True):
        total += math.prod((spans[k][int(n)] for k, n in enumerate(index)), start=Fraction(1))
    return total * factor


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches, steps and pieces so small that every seam is crossed."""
    monkeypatch.setattr(selecting, "_BATCH", 5)
    monkeypatch.setattr(selecting, "_STEP", 20)


@contextmanager
def many_pieces() -> Iterator[None]:
    """Images are cut into as many pieces as can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_survey, "_PIECE_BYTES", 1)
        patch.setattr(mask_survey, "_PIECE_BLOCKS", 1)
        patch.setattr(mask_survey, "_PIECE_CANDIDATES", 2)
        patch.setattr(mask_survey, "_TASK_SECONDS", 0.003)
        yield


@pytest.mark.usefixtures("tiny")
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_kept_equals_brute_force(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every ratio, offset, size, stride, edge and share; each needed chunk is decoded once."""
    ndim = data.draw(st.integers(1, 3), "ndim")
    top = {1: 40, 2: 16, 3: 7}[ndim]
    axes = "zyx"[-ndim:]
    shape = [data.draw(st.integers(3, top)) for _ in range(ndim)]
    size = [data.draw(st.integers(1, min(n, 6))) for n in shape]
    overlaps = [data.draw(st.integers(0, p - 1)) for p in size]
    edge: Any = data.draw(st.sampled_from(["drop", "shift", "pad", "shrink"]), "edge")
    scale = [data.draw(st.sampled_from(RATIOS)) for _ in range(ndim)]
    offset = [
        data.draw(st.sampled_from([Fraction(0), Fraction(-1), Fraction(3, 2)])) for _ in scale
    ]
    flat = ndim == 3 and data.draw(st.booleans(), "flat")
    n_samples = data.draw(st.sampled_from([1, 1, 3]), "samples")
    own = n_samples > 1 and data.draw(st.booleans(), "own samples")
    rng = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    extents = [math.ceil(n / s) for n, s in zip(shape, scale, strict=True)][flat:]
    mask = rng.random([n_samples if own else 1, *extents]) < data.draw(st.sampled_from([0.2, 0.7]))
    folder = tmp_path_factory.mktemp("masks")
    chunks = [data.draw(st.integers(1, max(1, n))) for n in extents]
    mask_axes = ("s" if own else "") + axes[flat:]
    pixels = mask if own else mask[0]
    per = [data.draw(st.integers(1, n_samples))] if own else []
    [opened] = patchloom.open_images(
        stored(folder / "mask.zarr", pixels.astype("uint8"), [*per, *chunks]), axes=mask_axes
    )
    grid = [data.draw(st.integers(1, n)) for n in shape]
    [image] = patchloom.open_images(
        blank(
            folder / "image.zarr",
            [n_samples, *shape],
            [data.draw(st.integers(1, n_samples)), *grid],
        ),
        axes="s" + axes,
    )
    role = patchloom.image.Role(
        opened, Alignment(tuple(scale[flat:]), tuple(offset[flat:])), axes[flat:]
    )
    image = image.with_role("mask", role)
    share = data.draw(st.sampled_from([Fraction(0), Fraction(1, 10), Fraction(1, 2), Fraction(1)]))
    pixels_asked = data.draw(st.sampled_from([0, 1, 3]), "min_pixels")
    config = {"name": "sequential", "patch_size": size, "overlaps": overlaps}
    plan = patchloom.plan(
        image, config, min_coverage=share, min_pixels=pixels_asked, edge=edge, rows_per_shard=1
    )
    want, boxes = Counter[Any](), []
    for sample in range(n_samples):
        for corner in oracle.grid(shape, size, overlaps, edge):
            low, high = clipped(image, corner, size)
            boxes.append((sample, low, high))
            area = fraction_of(image, mask[sample if own else 0], low, high)
            inside = math.prod(b - a for a, b in zip(low, high, strict=True))
            whole = inside if edge == "shrink" else math.prod(size)
            asked: Any = max(share * whole, min(pixels_asked, whole + 1))
            if area >= asked:
                place = low if edge == "shrink" else corner
                want[sample, *place] += 1
    specs = [plan.get_patch_spec(k) for k in range(plan.n_patches)]
    assert Counter((s["sample_idx"], *s["coords"]) for s in specs) == want
    assert sum(plan.rejected.values()) == len(boxes) - len(specs)
    selection = selection_of([image], config, share, pixels_asked, edge)
    parts, out, reads = survey_masks(selection, [image])
    asks = share > 0 or pixels_asked > 0
    assert reads.chunks == (needed(image, boxes) if asks else 0)
    with many_pieces():
        cut, also, _ = survey_masks(selection, [image])
    same(parts, cut)
    assert +out == +also


def masked(folder: Path, n: int, side: int = 64, mask: int = 16) -> list[Image]:
    """Images without a chunk under random masks of 16 chunks."""
    rng = np.random.default_rng(7)
    urls, masks = [], []
    for k in range(n):
        pixels = (rng.random((mask, mask)) < 0.5).astype("uint8")
        if not (folder / f"i{k}.zarr").exists():
            stored(folder / f"m{k}.zarr", pixels, (mask // 4,) * 2)
            blank(folder / f"i{k}.zarr", (side, side), (side // 8,) * 2)
        urls.append(str(folder / f"i{k}.zarr"))
        masks.append(str(folder / f"m{k}.zarr"))
    return patchloom.open_images(urls, mask=masks)


CONFIG = {"name": "sequential", "patch_size": [12, 12], "overlaps": [4, 4]}


def test_schedulers_agree(tmp_path: Path) -> None:
    """One task, many pieces, threads, processes and a cluster find the same cells."""
    images = masked(tmp_path, 5)
    selection = selection_of(images, CONFIG)
    with dask.config.set(scheduler="synchronous"):
        want, rejected, reads = survey_masks(selection, images)
    assert reads.chunks == 5 * 16
    assert sum(len(part) for part in want) > 0
    for scheduler in ("threads", "processes"):
        with dask.config.set(scheduler=scheduler, num_workers=2), many_pieces():
            found, out, _ = survey_masks(
                selection, images, folder=Location(str(tmp_path / scheduler))
            )
        same(want, found)
        assert out == rejected
    with local_cluster(n_workers=2, threads_per_worker=1) as cluster:
        from distributed import Client

        with Client(cluster), many_pieces():
            found, out, _ = survey_masks(selection, images)
            same(want, found)
            assert out == rejected
            # What is in memory is looked at here, and is not sent.
            arrays = patchloom.open_images(
                [np.zeros((64, 64), "uint8")] * 2,
                mask=[np.ones((16, 16), "uint8"), da.ones((16, 16), chunks=5)],
            )
            inside, _, counted = survey_masks(selection_of(arrays, CONFIG), arrays)
    assert [len(part) > 0 for part in inside] == [True, True]
    # No patch reaches the last row and column of the mask, which are chunks of their own.
    assert counted.chunks == 1 + 9


@pytest.mark.parametrize("max_num", [None, 5])
def test_pixels_and_labels_are_read_once(tmp_path: Path, max_num: int | None) -> None:
    """Centre pixels look at the mask and at labels: each chunk of both is decoded once."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, (40, 40)).astype("uint8")
    mask = (rng.random((20, 20)) < 0.8).astype("uint8")
    [image] = patchloom.open_images(
        blank(tmp_path / "i.zarr", (40, 40), (10, 10)),
        mask=stored(tmp_path / "m.zarr", mask, (7, 7)),
        labels=stored(tmp_path / "l.zarr", labels, (16, 16)),
    )
    config = {"name": "pixels", "patch_size": [5, 5], "classes": [1, 2], "max_num": max_num}
    config = {k: v for k, v in config.items() if v is not None}
    selection = selection_of([image], config, Fraction(1, 4), edge="pad")
    for step in (2**21, 9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selecting, "_STEP", step)
            patch.setattr(selecting, "_BATCH", 300)
            parts, _, reads = survey_masks(selection, [image])
        assert reads.chunks == 9 + 9
        plan = patchloom.plan(image, config, min_coverage=0.25, edge="pad")
        same([plan.cells], parts)
    kinds = Counter(
        int(labels[tuple(c + 2 for c in plan.get_patch_spec(k)["coords"])])
        for k in range(plan.n_patches)
    )
    assert set(kinds) == {1, 2}
    assert max_num is None or set(kinds.values()) == {max_num}


def test_a_survey_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Saved parts are not read again, damaged ones are; more images leave them as they are."""
    images = masked(tmp_path, 8)
    selection = selection_of(images, CONFIG)
    folder = Location(str(tmp_path / "survey"))
    with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler="synchronous"):
        patch.setattr(mask_survey, "_TASK_SECONDS", 0.006)
        broken = tmp_path / "m5.zarr" / "c" / "0" / "0"
        data = broken.read_bytes()
        broken.write_bytes(b"no chunk")
        with pytest.raises(ChunkError):
            survey_masks(selection, images, folder=folder)
        broken.write_bytes(data)
        kept = folder.list()
        assert 0 < len(kept) < 8
        want, rejected, all_of_it = survey_masks(selection, images)
        found, out, reads = survey_masks(selection, images, folder=folder)
        same(want, found)
        assert out == rejected
        assert all_of_it.chunks == 8 * 16
        assert 16 <= reads.chunks <= (8 - len(kept)) * 16
        found, out, reads = survey_masks(selection, images, folder=folder)
        same(want, found)
        assert (out, reads) == (rejected, Reads())
    # Grouped in another way, with more images, and in a plan.
    more = masked(tmp_path, 10)
    plan = patchloom.plan(more, CONFIG, min_coverage=0.5, survey=folder.url)
    assert plan.fingerprint == patchloom.plan(more, CONFIG, min_coverage=0.5).fingerprint
    before = set(folder.list())
    found, _, reads = survey_masks(selection_of(more, CONFIG), more, folder=folder)
    assert reads == Reads()
    same(found[:8], want)
    # Another question has other answers.
    _, _, reads = survey_masks(selection_of(images, CONFIG, Fraction(1, 3)), images, folder=folder)
    assert reads.chunks == 8 * 16
    # What is cut short or foreign is looked at again.
    for name in before:
        path = tmp_path / "survey" / name
        path.write_bytes(path.read_bytes()[:-9])
        path.with_name("other.parquet").write_bytes(b"PAR1")
    found, out, reads = survey_masks(selection, images, folder=folder)
    same(want, found)
    assert out == rejected
    assert reads.chunks == 8 * 16


def test_a_damaged_part_is_none(tmp_path: Path) -> None:
    """Whatever byte of a saved part is another one, it says the same or nothing."""
    images = masked(tmp_path, 3)
    folder = Location(str(tmp_path / "survey"))
    survey_masks(selection_of(images, CONFIG), images, folder=folder)
    [name] = folder.list()
    path = tmp_path / "survey" / name
    data, inside = path.read_bytes(), Location(str(path.parent))
    want = load_parts(inside)
    assert len(want) == 3
    lost = 0
    for place in range(0, len(data), 23):
        path.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        found = load_parts(inside)
        lost += not found
        for key, (cells, rejected, reads) in found.items():
            same([cells], [want[key][0]])
            assert (rejected, reads) == want[key][1:]
    assert lost > 10


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """Ten times the image, the same blocks at once."""
    peaks = []
    for rows in (1, 10):
        shape = (256 * rows, 2048)
        path = str(tmp_path / f"m{rows}.zarr")
        zarr.create_array(path, shape=shape, chunks=(64, 64), dtype="uint8", fill_value=1)
        [image] = patchloom.open_images(
            blank(tmp_path / f"i{rows}.zarr", shape, (64, 64)), mask=path
        )
        selection = selection_of([image], {"name": "sequential", "patch_size": [32, 32]})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selecting, "_STEP", 2**15)
            patch.setattr("patchloom.run.blocks.FETCH", 2**16)
            tracemalloc.start()
            parts, _, reads = survey_masks(selection, [image])
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert reads.chunks == math.prod(shape) // 64**2
        assert len(parts[0]) == math.prod(shape) // 64**2
    # The whole mask of the larger one is 5 MiB.
    assert peaks[1] < peaks[0] + 2**20, peaks
