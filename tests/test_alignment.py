"""Alignment: moved grids by stepping, unit borders by painting, "auto" by trying everything."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.config import load_job
from patchloom.errors import BudgetError, ConfigError, PatchSizeError
from patchloom.grid import ChunkGrid
from patchloom.patching import StridedPatching
from patchloom.patching.lattice import lattice
from patchloom.patching.protocol import EDGES
from patchloom.run.jobs import plan_of
from patchloom.run.sharing import unshared

OUT = ("pad", "shrink")
ALIGNS = ("none", "chunk", "shard", "auto")


def stored(
    folder: Path,
    shape: Sequence[int],
    chunks: Sequence[int],
    shards: Sequence[int] | None = None,
    dtype: str = "uint8",
    seed: int | None = None,
) -> Any:
    """An array in Zarr; without a seed it is blank and holds no chunk."""
    path = folder / f"image-{len([*folder.iterdir()])}.zarr"
    array = zarr.create_array(
        path,
        shape=tuple(shape),
        chunks=tuple(chunks),
        shards=None if shards is None else tuple(shards),
        dtype=dtype,
    )
    if seed is not None:
        array[...] = np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)
    return patchloom.open_images(str(path), ids=["image"])


# -- grids with an offset ---------------------------------------------------------------


def stepping(extent: int, size: int, stride: int, offset: int, edge: str) -> list[int]:
    """First pixels of a grid anchored at `offset`, from what has to be covered at both ends."""
    if extent < size:
        return [0] if edge in OUT else []
    grid = [at for at in range(-size + 1, extent) if (at - offset) % stride == 0]
    found = {at for at in grid if 0 <= at <= extent - size}

    def bare(pixel: int) -> bool:
        return not any(at <= pixel < at + size for at in found)

    if edge == "shift":
        found |= {0} if bare(0) else set()
        found |= {extent - size} if bare(extent - 1) else set()
    elif edge in OUT:
        if bare(0):
            found |= set([at for at in grid if at < 0][-1:])
        if bare(extent - 1):
            found |= set([at for at in grid if at > extent - size][:1])
    return sorted(found)


@pytest.mark.parametrize("edge", EDGES)
def test_moved_grid_equals_stepping(edge: Any) -> None:
    """Every extent, size, stride and offset; what a grid without gaps covers stays covered."""
    for extent, size, stride in itertools.product(
        range(1, 61), (1, 2, 3, 5, 8, 13, 40), (1, 2, 3, 5, 8, 11)
    ):
        for offset in range(stride):
            want = stepping(extent, size, stride, offset, edge)
            found = lattice(extent, size, stride, edge, offset).tolist()
            assert found == want, (extent, size, stride, offset)
            if edge in OUT or (edge == "shift" and extent >= size):
                seen = {p for at in found for p in range(max(at, 0), min(at + size, extent))}
                assert len(seen) == extent or stride > size


def test_left_over_equals_painting() -> None:
    """Pixels that no patch covers, with any offset, edge and gap."""
    rng = np.random.default_rng(5)
    for _ in range(300):
        shape, size = rng.integers(1, 20, 2).tolist(), rng.integers(1, 8, 2).tolist()
        stride = rng.integers(1, 10, 2).tolist()
        grid = StridedPatching(
            [(2, 1, *shape)],
            size,
            stride,
            offset=[int(rng.integers(s)) for s in stride],
            edge=EDGES[int(rng.integers(4))],
            chunks=[rng.integers(1, 9, 2).tolist()],
        )
        seen = np.zeros((2, *shape), bool)
        for index in range(grid.n_patches):
            spec = grid.get_patch_spec(index)
            (y, x), (h, w) = spec["coords"], spec["patch_size"]
            seen[spec["sample_idx"], max(y, 0) : max(0, y + h), max(x, 0) : max(0, x + w)] = True
        assert grid.n_left_over(0) == int((~seen).sum())


def test_an_offset_is_below_the_stride() -> None:
    """Another one is refused with the numbers; the written forms mean the same."""
    with pytest.raises(PatchSizeError, match=r"offset=\[4, 0\] for stride=\[4, 6\]"):
        StridedPatching([(1, 1, 20, 20)], 4, [4, 6], offset=[4, 0])
    image = patchloom.open_images(np.zeros((40, 40), "uint8"))
    forms = [{"y": 3, "x": 3}, [3, 3], 3]
    plans = [
        patchloom.plan(image, {"name": "grid", "patch_size": 8, "offset": form}) for form in forms
    ]
    assert len({plan.fingerprint for plan in plans}) == 1
    assert plans[0].get_patch_spec(0)["coords"] == (3, 3)
    other = patchloom.plan(image, {"name": "grid", "patch_size": 8})
    assert other.fingerprint != plans[0].fingerprint


@pytest.mark.parametrize("edge", ["drop", "shift", "pad"])
def test_moved_grid_becomes_its_pixels(edge: Any, tmp_path: Path) -> None:
    """From a sharded array into a store: patches before the image too, and reads as predicted."""
    images = stored(tmp_path, (50, 43), (8, 10), (24, 20), seed=1)
    pixels = images[0].read((0, 0), (50, 43))
    config = {"name": "grid", "patch_size": [9, 8], "stride": [7, 8], "offset": [5, 3]}
    plan = patchloom.plan(images, config, edge=edge, rows_per_shard=4)
    with unshared():
        report = patchloom.materialize(plan, str(tmp_path / "out.zarr"), progress=False)
    assert (report.n_patches, report.chunk_reads) == (plan.n_patches, plan.chunk_reads)
    padded = np.pad(pixels, 20)
    store = patchloom.open_patches(str(tmp_path / "out.zarr"))
    table = store.manifest.select(["row", "start_y", "start_x"]).to_pydict()
    assert len(table["row"]) == plan.n_patches > 20
    assert (min(table["start_y"]) < 0) == (edge == "pad")
    for row, y, x in zip(table["row"], table["start_y"], table["start_x"], strict=True):
        want = padded[20 + y : 29 + y, 20 + x : 28 + x]
        np.testing.assert_array_equal(store[row].squeeze(), want)


# -- inside chunks and shards -----------------------------------------------------------


def geometry(draw: st.DrawFn) -> dict[str, Any]:
    chunks = [draw(st.integers(3, 9)) for _ in range(2)]
    shards = [c * draw(st.integers(least, 3)) for c, least in zip(chunks, (2, 1), strict=True)]
    shape = [draw(st.integers(1, 30)) for _ in range(2)]
    return {"shape": tuple(shape), "chunks": tuple(chunks), "shards": tuple(shards)}


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory: Any) -> Any:
    """A stored image that lends its source: planning reads nothing of it."""
    return stored(tmp_path_factory.mktemp("lent"), (8, 8), (4, 4))[0]


def like(image: Any, found: dict[str, Any]) -> Any:
    """The image as if it were stored with another shape, in other chunks and shards."""
    grid = ChunkGrid(found["shape"], found["chunks"])
    return replace(image, shape=found["shape"], grid=grid, shards=found["shards"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_patch_crosses_a_unit(data: st.DataObject, somewhere: Any) -> None:
    """Painted: first and last pixel in the image of every patch lie in one chunk, or shard."""
    found = data.draw(st.composite(geometry)())
    unit: Any = data.draw(st.sampled_from(["chunk", "shard"]))
    edge: Any = data.draw(st.sampled_from(EDGES))
    borders = found["chunks" if unit == "chunk" else "shards"]
    size = [data.draw(st.integers(1, b)) for b in borders]
    stride = [data.draw(st.integers(1, p)) for p in size]
    configs: list[dict[str, Any]] = [
        {"name": "sequential", "overlaps": [p - s for p, s in zip(size, stride, strict=True)]},
        {"name": "grid", "stride": stride},
        {"name": "chunk_aligned"},
        {"name": "random", "n_patches": 9},
        {"name": "fixed_random", "n_patches": 9},
        {"name": "stratified"},
    ]
    config = {"patch_size": size, **data.draw(st.sampled_from(configs))}
    # A last unit that is narrower than a patch: the one exception that is documented.
    last = [n % b or b for n, b in zip(found["shape"], borders, strict=True)]
    assume(edge != "shift" or all(n >= p for n, p in zip(last, size, strict=True)))
    assume(edge in OUT or all(n >= p for n, p in zip(found["shape"], size, strict=True)))
    images = like(somewhere, found)
    plan = patchloom.plan(images, config, edge=edge, align=unit)
    unit_of = [np.arange(n) // b for n, b in zip(found["shape"], borders, strict=True)]
    for patches in plan.walk():
        for corner in patches.corner.tolist():
            for axis, (at, n) in enumerate(zip(corner, size, strict=True)):
                inside = unit_of[axis][max(at, 0) : at + n]
                assert len(set(inside.tolist())) == 1, corner
    if config["name"] != "sequential":
        return
    again = {**config, "name": "chunk_aligned", "unit": unit}
    assert plan.fingerprint == patchloom.plan(images, again, edge=edge).fingerprint


@pytest.mark.parametrize("name", ["random", "fixed_random", "stratified"])
def test_random_strategies_stay_inside(name: str, tmp_path: Path) -> None:
    """An alignment is the strategy's own mode, so that the plan says what was done."""
    images = stored(tmp_path, (64, 64), (8, 8), (16, 16))
    config = {"name": name, "patch_size": [8, 8]}
    for unit in ("chunk", "shard"):
        plan = patchloom.plan(images, config, align=unit)
        own = patchloom.plan(images, {**config, "inside_chunks": True, "unit": unit})
        assert plan.fingerprint == own.fingerprint
        assert plan.config == own.config


def test_wrong_alignments_are_named(tmp_path: Path) -> None:
    """Every mistake says what it got and what to do instead."""
    sharded = stored(tmp_path, (64, 64), (8, 8), (16, 16))
    plain = stored(tmp_path, (64, 64), (8, 8))
    square: dict[str, Any] = {"name": "sequential", "patch_size": [8, 8]}
    wrong: list[tuple[Any, dict[str, Any], str, type[Exception], str]] = [
        (sharded, square, "chunks", ConfigError, "one of .*'shard', 'auto'.*got 'chunks'"),
        (plain, square, "shard", ConfigError, "stored in shards, got 'image'.*align='chunk'"),
        (sharded, {**square, "patch_size": 9}, "chunk", PatchSizeError, r"\[9, 9\] for extents"),
        (sharded, {**square, "patch_size": 17}, "shard", PatchSizeError, r"of \[16, 16\]"),
        (sharded, {**square, "name": "blue_noise"}, "chunk", ConfigError, "got 'blue_noise'"),
        (
            sharded,
            {**square, "name": "tiled", "overlaps": 2},
            "shard",
            ConfigError,
            r"\['sequential', 'grid', 'chunk_aligned', .*got 'tiled'",
        ),
        (sharded, {**square, "name": "pixels"}, "auto", ConfigError, "'whole'.*got 'pixels'"),
        (
            sharded,
            {**square, "name": "grid", "stride": 9},
            "chunk",
            ConfigError,
            r"stride=\[9, 9\] for patch_size=\[8, 8\]; .*align='auto'",
        ),
        (
            sharded,
            {**square, "name": "grid", "offset": [1, 0]},
            "auto",
            ConfigError,
            r"offset=\[1, 0\] besides; leave one",
        ),
    ]
    for images, config, align, error, text in wrong:
        with pytest.raises(error, match=text):
            patchloom.plan(images, config, align=align)  # type: ignore[arg-type]
    listed = StridedPatching([(1, 1, 64, 64)], 8)
    with pytest.raises(ConfigError, match="got 'fixed'"):
        patchloom.plan(sharded, listed, align="auto")


# -- the cheapest -----------------------------------------------------------------------


def measured(plan: patchloom.Plan, chunks: Sequence[int]) -> tuple[int, list[int], int]:
    """Chunks that its tasks decode, pixels covered on each axis, chunks if each is cut alone."""
    shape = plan.images[0].shape
    context = np.array(plan.cut.context)
    size = np.array(plan.cut.proper)
    touched, owners = [], []
    seen = [np.zeros(n, bool) for n in shape]
    for low in np.concatenate([patches.corner for patches in plan.walk()]):
        proper = low + context
        for axis, line in enumerate(seen):
            line[max(proper[axis], 0) : proper[axis] + size[axis]] = True
        box = [
            {p // c for p in range(max(a, 0), min(a + n, extent))}
            for a, n, extent, c in zip(low, plan.cut.size, shape, chunks, strict=True)
        ]
        touched.append(set(itertools.product(*box)))
        owners.append(tuple((np.maximum(proper, 0) // np.array(chunks)).tolist()))
    reads = sum(len(set().union(*touched[a:b])) for a, b in plan.runs.rows())
    alone = sum(
        len(set().union(*(t for t, o in zip(touched, owners, strict=True) if o == owner)))
        for owner in set(owners)
    )
    return reads, [int(line.sum()) for line in seen], alone


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_auto_is_the_best_of_all_offsets(data: st.DataObject, somewhere: Any) -> None:
    """Every offset planned, its reads counted by sets: none is better under the stated rule."""
    found = data.draw(st.composite(geometry)())
    edge: Any = data.draw(st.sampled_from(["drop", "shift", "pad"]))
    stride = [data.draw(st.integers(2, 4)) for _ in range(2)]
    size = [data.draw(st.integers(1, 6)) for _ in range(2)]
    context = [data.draw(st.integers(0, 2)) for _ in range(2)]
    assume(all(n >= p for n, p in zip(found["shape"], size, strict=True)))
    images = like(somewhere, found)
    config = {"name": "grid", "patch_size": size, "stride": stride, "context": context}
    rows = data.draw(st.integers(1, 6))
    said: dict[str, Any] = {"edge": edge, "rows_per_shard": rows}
    at_zero = patchloom.plan(images, config, **said)
    reads, pixels, _ = measured(at_zero, found["chunks"])
    assert at_zero.chunk_reads == reads
    best = None
    for offset in itertools.product(*map(range, stride)):
        other = patchloom.plan(images, {**config, "offset": list(offset)}, **said)
        if not other.n_patches:
            continue
        n, covered, alone = measured(other, found["chunks"])
        less = any(a < b for a, b in zip(covered, pixels, strict=True))
        if less or n > reads or other.n_tasks < min(16, at_zero.n_tasks):
            continue
        area = covered[0] * covered[1]
        cost = (Fraction(n, area), -area, alone, offset)
        best = cost if best is None else min(best, cost)
    assert best is not None
    plan = patchloom.plan(images, config, align="auto", **said)
    assert plan.chunk_reads <= at_zero.chunk_reads
    assert tuple(getattr(plan.config, "offset", None) or (0, 0)) == best[-1]
    # A plan of the offset that was found is this plan.
    again = patchloom.plan(images, {**config, "offset": list(best[-1])}, **said)
    assert again.fingerprint == plan.fingerprint


def test_auto_groups_patches_under_its_rule(tmp_path: Path) -> None:
    """Of the shards that are tried none decodes less with as many tasks."""
    images = stored(tmp_path, (3000, 3000), (250, 250), dtype="float64")
    config = {"name": "sequential", "patch_size": [200, 200], "overlaps": [60, 60]}
    plan = patchloom.plan(images, config, align="auto")
    at_zero = patchloom.plan(images, config)
    assert plan.chunk_reads <= at_zero.chunk_reads
    [name] = {plan.config.name, "sequential"} - {"sequential"} or {"sequential"}
    own = config if name == "sequential" else plan.config.model_dump()
    default = patchloom.plan(images, own)
    power = 1 << (default.rows_per_shard.bit_length() - 1)
    tried = [patchloom.plan(images, own, rows_per_shard=r) for r in (power // 2, power, 2 * power)]
    enough = [p for p in (default, *tried) if p.n_tasks >= min(16, at_zero.n_tasks)]
    assert plan.chunk_reads == min(p.chunk_reads for p in enough)
    assert plan.rows_per_shard in {p.rows_per_shard for p in enough}
    assert len({p.chunk_reads for p in (default, *tried)}) > 1


def test_auto_fits_into_the_memory(tmp_path: Path) -> None:
    """Where the default shard does not fit, a smaller one does; where none does, it says so."""
    images = stored(tmp_path, (2048, 2048), (256, 256), dtype="float32")
    config = {"name": "sequential", "patch_size": [128, 128]}
    plan = patchloom.plan(images, config, memory="20 MiB", align="auto")
    assert plan.runs.peak_memory <= 20 * 2**20
    assert plan.n_patches == 256
    with pytest.raises(BudgetError):
        patchloom.plan(images, config, memory="1 MiB", align="auto")
    with pytest.raises(BudgetError):
        patchloom.plan(images, config, memory="20 MiB", align="auto", rows_per_shard=256)


@pytest.mark.parametrize("edge", ["drop", "shift", "pad"])
def test_auto_costs_what_it_says(edge: Any, tmp_path: Path) -> None:
    """Context that reaches over every border: half the reads, counted in both runs."""
    images = stored(tmp_path, (128, 96), (16, 16), (32, 48), dtype="uint16", seed=3)
    config = {"name": "grid", "patch_size": 8, "stride": 16, "context": 4}
    said: dict[str, Any] = {"edge": edge, "rows_per_shard": 2}
    plans = [patchloom.plan(images, config, align=align, **said) for align in ("none", "auto")]
    with unshared():
        counted = [
            patchloom.materialize(plan, str(tmp_path / f"{k}.zarr"), progress=False)
            for k, plan in enumerate(plans)
        ]
    assert [report.chunk_reads for report in counted] == [plan.chunk_reads for plan in plans]
    if edge != "shift":
        # At both ends a shifted grid has one patch more, which would be read again.
        assert plans[1].config.model_dump()["offset"] == [4, 4]
        assert plans[1].chunk_reads == plans[1].chunks_needed < plans[0].chunk_reads
    plans[1].save(str(tmp_path / "plan"))
    assert patchloom.Plan.load(str(tmp_path / "plan")).fingerprint == plans[1].fingerprint


@pytest.mark.parametrize(
    "config",
    [
        {"name": "random", "patch_size": 8},
        {"name": "blue_noise", "patch_size": 8},
        {"name": "tiled", "patch_size": 8, "overlaps": 2},
        {"name": "chunk_aligned", "patch_size": 8},
        {"name": "whole"},
    ],
)
def test_auto_moves_only_grids(config: dict[str, Any], tmp_path: Path) -> None:
    """All other strategies keep their patches."""
    images = stored(tmp_path, (64, 64), (16, 16))
    plans = [patchloom.plan(images, config, align=align) for align in ("none", "auto")]
    specs = [sorted(p.get_patch_spec(i)["coords"] for i in range(p.n_patches)) for p in plans]
    assert specs[0] == specs[1]
    assert plans[0].config == plans[1].config


def test_auto_over_several_images() -> None:
    """One offset for all; an image that is smaller than a patch does not stand in the way."""
    arrays = [np.zeros(shape, "uint8") for shape in ((64, 64), (5, 9), (40, 70))]
    images = patchloom.open_images(arrays)
    config = {"name": "grid", "patch_size": 10, "stride": 6}
    for edge in EDGES:
        at_zero = patchloom.plan(images, config, edge=edge)
        plan = patchloom.plan(images, config, edge=edge, align="auto")
        assert plan.chunk_reads <= at_zero.chunk_reads
        assert plan.n_patches >= at_zero.n_patches


# -- the table --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"name": "sequential", "patch_size": 12, "overlaps": 2},
        {"name": "grid", "patch_size": 8, "stride": 16, "context": 4},
        {"name": "random", "patch_size": 8, "n_patches": 50},
    ],
)
def test_alternatives_are_plans(config: dict[str, Any], tmp_path: Path) -> None:
    """Every number is that of the plan made by itself, with a mask and without."""
    [image] = stored(tmp_path, (100, 90), (16, 16), (48, 32))
    mask = np.zeros((100, 90), bool)
    mask[10:80, 20:70] = True
    masked = patchloom.open_images(image.uri, mask=mask)
    for images, said in (([image], {}), (masked, {"min_coverage": 0.5, "rows_per_shard": 3})):
        table = patchloom.alternatives(images, config, edge="shift", **said)
        assert table.columns()["align"] == list(ALIGNS) == [row.align for row in table]
        for row in table:
            if row.refused:
                with pytest.raises(ConfigError) as error:
                    patchloom.plan(images, config, edge="shift", align=row.align, **said)  # type: ignore[arg-type]
                assert str(error.value) == row.refused
                assert row.n_patches is None
                continue
            plan = patchloom.plan(images, config, edge="shift", align=row.align, **said)  # type: ignore[arg-type]
            summary = plan.summary()
            for name in ("n_patches", "chunks_needed", "chunk_reads", "rows_per_shard", "n_tasks"):
                assert getattr(row, name) == summary[name]
            assert row.read_amplification == summary["read_amplification"]
            assert row.peak_memory == summary["peak_memory"]
            nbytes = summary["chunk_reads"] * 16 * 16
            assert row.bytes_per_pixel == nbytes / summary["bytes_output"]
            assert row.strategy == plan.config.name
            if config["name"] == "random":
                assert row.pixels_left_out is None
                assert row.offset is None
            elif not said:
                seen = np.zeros((100, 90), bool)
                h, w = plan.cut.proper
                for patches in plan.walk():
                    for y, x in (patches.corner + plan.cut.context).tolist():
                        seen[y : y + h, x : x + w] = True
                assert row.pixels_left_out == int((~seen).sum())
        shown = table._repr_html_()
        assert shown.count("<tr>") == 12
        assert "chunk decodes" in shown
        assert str(table).splitlines()[0].split() == ["align", *ALIGNS]
        assert table["auto"].chunk_reads is not None
    with pytest.raises(KeyError, match="got 'bricks'"):
        table["bricks"]
    with pytest.raises(ConfigError, match="leave it out"):
        patchloom.alternatives([image], config, align="auto")
    with pytest.raises(PatchSizeError):
        patchloom.alternatives([image], {"name": "sequential", "patch_size": 200})


def test_job_files_say_align(tmp_path: Path) -> None:
    """The key means what the argument means."""
    images = stored(tmp_path, (64, 64), (16, 16), (32, 32))
    job = tmp_path / "job.yaml"
    job.write_text(
        f"images: {images[0].uri}\noutput: {tmp_path}/out.zarr\nids: [image]\nalign: shard\n"
        "patching: {name: sequential, patch_size: 12}\n"
    )
    plan = plan_of(load_job(job))
    config = {"name": "sequential", "patch_size": 12}
    assert plan.fingerprint == patchloom.plan(images, config, align="shard").fingerprint
    job.write_text(job.read_text().replace("shard", "shards"))
    with pytest.raises(ConfigError, match="line 4: 'align' should be 'none', 'chunk', 'shard'"):
        load_job(job)
