"""Listed patches against brute force: points, lists and strategies of others, read back whole.

Laws: a point is a row or is counted as rejected; a row shows its own point's box and columns;
what is asked for twice is the same plan; what has no place is named.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pyarrow as pa
import pytest
import yaml
import zarr
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import patchloom
from patchloom import patching, read_points
from patchloom.cli import main
from patchloom.config import load_job
from patchloom.errors import ConfigError, PatchSizeError, PlanError, SourceError
from patchloom.patching.config import PointsConfig, PointsTable
from patchloom.planning.places import Places
from tests import oracle

MODES = ["constant", "edge", "reflect", "symmetric"]


def stored(plan: patchloom.Plan, **more: Any) -> patchloom.PatchStore:
    """The plan's store, written on this thread."""
    url = f"memory://{uuid.uuid4().hex}.zarr"
    with dask.config.set(scheduler="synchronous"):
        report = patchloom.materialize(plan, url, progress=False, **more)
    assert report.chunks_needed == plan.chunks_needed
    assert report.chunk_reads == plan.chunks_needed <= plan.chunk_reads
    return patchloom.open_patches(url)


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """Images with samples, and points in, beside and between them."""
    ndim = draw(st.integers(1, 3))
    n_images = draw(st.integers(1, 2))
    size = [draw(st.integers(1, 6)) for _ in range(ndim)]
    samples = draw(st.integers(1, 2))
    shapes = [
        (samples, *(draw(st.integers(3, 12 if ndim < 3 else 7)) for _ in range(ndim)))
        for _ in range(n_images)
    ]
    place = st.integers(-30, 60).map(lambda k: k / 4) | st.floats(-3, 15)
    pool = st.tuples(
        st.sampled_from([*range(n_images), *range(n_images), 7]),
        st.sampled_from([*range(samples), *range(samples), 2]),
        st.tuples(*[place] * ndim),
    )
    distinct = draw(st.lists(pool, min_size=1, max_size=12))
    return {
        "shapes": shapes,
        "chunks": [tuple(draw(st.integers(1, n)) for n in shape) for shape in shapes],
        "size": size,
        # Some stand twice.
        "points": distinct + draw(st.lists(st.sampled_from(distinct), max_size=4)),
        "edge": draw(st.sampled_from(["drop", "shift", "pad", "shrink"])),
        "pad_mode": draw(st.sampled_from(MODES)),
        "context": draw(st.sampled_from([[0] * ndim, [2] * ndim, [0, 1, 3][:ndim]])),
        "masked": draw(st.booleans()),
        "min_coverage": draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        "rows_per_shard": draw(st.sampled_from([None, 1, 3])),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def landed(
    place: Sequence[float], size: Sequence[int], shape: Sequence[int], edge: str
) -> tuple[int, ...] | None:
    """First pixel of the patch of a point, None if it is rejected."""
    first = []
    rows = list(zip(place, size, shape, strict=True))
    if edge == "shift" and any(n < p for _, p, n in rows):
        return None
    for where, p, n in rows:
        at = math.floor(Fraction(where) + Fraction(1, 2)) - p // 2
        low, high = (0, n - p) if edge == "drop" else (1 - p, n - 1)
        if not low <= at <= high:
            return None
        first.append(min(max(at, 0), n - p) if edge == "shift" else at)
    return tuple(first)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(job=jobs())
def test_points_become_their_patches(job: dict[str, Any]) -> None:
    """Rows, pixels, columns, coverage and rejects of any points equal the brute force."""
    rng = np.random.default_rng(job["seed"])
    size, context = job["size"], job["context"]
    ndim = len(size)
    axes = "zyx"[3 - ndim :]
    arrays = [rng.integers(0, 2**16, shape, dtype=np.uint16) for shape in job["shapes"]]
    masks = [rng.random([max(1, n // 2) for n in s[1:]]) < 0.6 for s in job["shapes"]]
    images = patchloom.open_images(
        [da.from_array(a, chunks=c) for a, c in zip(arrays, job["chunks"], strict=True)],
        ids=["a", "b"][: len(arrays)],
        axes="s" + axes,
        mask=masks if job["masked"] else None,
    )
    n = len(job["points"])
    names = {0: "a", 1: "b", 7: "elsewhere"}
    table: dict[str, Any] = {
        "image": [names[i] for i, _, _ in job["points"]],
        "t": [t for _, t, _ in job["points"]],
        **{a: [float(p[k]) for _, _, p in job["points"]] for k, a in enumerate(axes)},
        "tag": list(range(n)),
        "kind": [None if k % 5 == 4 else f"k{k % 3}" for k in range(n)],
        "area": rng.random(n),
    }
    config = {
        "name": "points",
        "patch_size": size,
        "context": context,
        "points": read_points(table, image="image", sample="t"),
    }
    asked = {
        "edge": job["edge"],
        "pad_mode": job["pad_mode"],
        "min_coverage": job["min_coverage"],
        "rows_per_shard": job["rows_per_shard"],
    }

    wanted = {}
    for tag, (index, t, place) in enumerate(job["points"]):
        if index >= len(arrays) or t >= arrays[index].shape[0]:
            continue
        shape = arrays[index].shape[1:]
        corner = landed(place, size, shape, job["edge"])
        if corner is None:
            continue
        field = masks[index] if job["masked"] else np.ones(shape, bool)
        share = oracle.coverage(field, shape, corner, size)
        if job["edge"] == "shrink":
            inside = [
                min(c + p, m) - max(c, 0) for c, p, m in zip(corner, size, shape, strict=True)
            ]
            share *= Fraction(math.prod(size), math.prod(inside))
        if not job["masked"] or share >= Fraction(str(job["min_coverage"])):
            wanted[tag] = (index, t, corner, share)

    in_plan = {names[k] for k in range(len(arrays))} & {*table["image"]}
    small = all(any(m < p for m, p in zip(a.shape[1:], size, strict=True)) for a in arrays)
    if not in_plan or (small and job["edge"] in ("drop", "shift")):
        with pytest.raises((PlanError, PatchSizeError)):
            patchloom.plan(images, config, **asked)
        return
    plan = patchloom.plan(images, config, **asked)
    assert plan.n_patches == len(wanted)
    assert plan.n_patches + sum(plan.rejected.values()) == n == plan.summary()["n_candidates"]
    missing = sum(index >= len(arrays) for index, _, _ in job["points"])
    assert plan.rejected.get("in an image that is not planned", 0) == missing

    url = f"memory://{uuid.uuid4().hex}"
    plan.save(url)
    again = patchloom.Plan.load(url, images=images)
    assert again.fingerprint == plan.fingerprint
    specs = [plan.get_patch_spec(row) for row in range(len(wanted))]
    assert specs == [again.get_patch_spec(row) for row in range(len(wanted))]
    boxes = [
        (index, t, *clipped(corner, size, context, arrays[index].shape[1:], job["edge"]))
        for index, t, corner, _ in wanted.values()
    ]
    found = [(s["data_idx"], s["sample_idx"], s["coords"], s["patch_size"]) for s in specs]
    assert sorted(found) == sorted(boxes)
    cut = tuple(p + 2 * c for p, c in zip(size, context, strict=True))
    if any(s["patch_size"] != cut for s in specs):
        with pytest.raises(PatchSizeError, match="shrink"):
            stored(plan)
        return

    store = stored(again)
    rows = store.manifest.to_pylist()
    assert len({row["patch_id"] for row in rows}) == len(rows)
    assert sorted(row["tag"] for row in rows) == sorted(wanted) if wanted else not rows
    for row in rows:
        index, t, corner, share = wanted[row["tag"]]
        start = tuple(c - k for c, k in zip(corner, context, strict=True))
        assert (row["image_id"], row["sample"]) == (names[index], t)
        assert tuple(row[f"start_{a}"] for a in axes) == start
        assert row["coverage"] == float(share)
        assert row["kind"] == table["kind"][row["tag"]]
        assert row["area"] == table["area"][row["tag"]]
        shown = oracle.cut(arrays[index][t][None], start, cut, job["pad_mode"])
        np.testing.assert_array_equal(store[row["row"]], shown)


def clipped(
    corner: Sequence[int],
    size: Sequence[int],
    context: Sequence[int],
    shape: Sequence[int],
    edge: str,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First pixel and extent of what is cut, context included."""
    first = [c - k for c, k in zip(corner, context, strict=True)]
    stop = [c + p + k for c, p, k in zip(corner, size, context, strict=True)]
    if edge == "shrink":
        first = [max(a, 0) for a in first]
        stop = [min(b, n) for b, n in zip(stop, shape, strict=True)]
    return tuple(first), tuple(b - a for a, b in zip(first, stop, strict=True))


@pytest.fixture
def images() -> list[patchloom.Image]:
    """Two images of different extents, of several chunks."""
    rng = np.random.default_rng(1)
    shapes = [(30, 20), (12, 25)]
    arrays = [da.from_array(rng.integers(0, 255, s, dtype="u1"), chunks=(8, 7)) for s in shapes]
    return patchloom.open_images(arrays, ids=["a", "b"])


CELLS: dict[str, Any] = {
    "y": [5.0, 20.25, 6.0, 6.0],
    "x": [5.0, 10.5, 20.0, 20.0],
    "img": ["a", "a", "b", "b"],
    "kind": ["T", "B", None, "T"],
    "area": [1.5, 2.5, 3.0, 4.0],
    "good": [True, False, None, True],
}


def points_of(images: Any, cells: Any = None, **more: Any) -> patchloom.Plan:
    """A plan of patches of 5 x 4 around cells."""
    points = read_points(CELLS if cells is None else cells, image="img")
    return patchloom.plan(
        images, {"name": "points", "patch_size": [5, 4], "points": points}, **more
    )


def test_fingerprints_are_those_of_the_content(images: Any) -> None:
    """However the table is held; any value of it, or a point moved by a pixel, is another plan."""
    first = points_of(images).fingerprint
    table = pa.table(CELLS)
    coded = table.set_column(3, "kind", table["kind"].dictionary_encode())
    large = table.set_column(3, "kind", table["kind"].cast(pa.large_string()))
    pieces = pa.concat_tables([coded[:1], coded[1:]])
    for same in (table, coded, large, pieces):
        assert points_of(images, same).fingerprint == first
    found = {first}
    for name, row, value in (
        ("y", 0, 6.0),
        ("img", 0, "b"),
        ("kind", 0, "B"),
        ("kind", 2, ""),
        ("area", 1, None),
        ("area", 0, 0.0),
        ("good", 2, False),
    ):
        column = [*CELLS[name]]
        column[row] = value
        found.add(points_of(images, {**CELLS, name: column}).fingerprint)
    found.add(points_of(images, {k: v for k, v in CELLS.items() if k != "good"}).fingerprint)
    renamed = {"better" if k == "good" else k: v for k, v in CELLS.items()}
    found.add(points_of(images, renamed).fingerprint)
    shifted = {**CELLS, "kind": ["TB", "", None, "T"]}
    found |= {points_of(images, t).fingerprint for t in (shifted, {**CELLS, "kind": [None] * 4})}
    assert len(found) == 12


def test_all_ways_of_giving_points_are_one_plan(images: Any, tmp_path: Path) -> None:
    """`read_points`, a table, a path, or a description of a table."""
    from pyarrow import csv

    cells = {name: CELLS[name] for name in ("y", "x")}
    cells["x"] = [5.0, 10.5, 12.0, 12.0]
    csv.write_csv(pa.table(cells), tmp_path / "cells.csv")
    path = str(tmp_path / "cells.csv")
    given = [read_points(cells), cells, path, tmp_path / "cells.csv", {"table": path}]
    given += [PointsTable(table=path), {"table": path, "axes": {"y": "y", "x": "x"}}]
    plans = [
        patchloom.plan(images[:1], {"name": "points", "patch_size": 5, "points": points})
        for points in given
    ]
    model = PointsConfig(patch_size=5, points=PointsTable(table=path))
    plans.append(patchloom.plan(images[:1], model))
    assert plans[0].n_patches == 4
    assert len({plan.fingerprint for plan in plans}) == 1
    assert all(plan.config.points is None for plan in plans)  # type: ignore[union-attr]


def test_metadata_of_every_type_ride_along(images: Any) -> None:
    """Also over many shards, with columns of images beside them."""
    images = patchloom.open_images(
        [image.source.lazy(image) for image in images], ids=["a", "b"], sample={"day": 3}
    )
    table = pa.table(
        {
            **{name: CELLS[name] for name in ("y", "x", "img", "kind", "good")},
            "code": pa.array(CELLS["kind"]).dictionary_encode(),
            "large": pa.array(CELLS["kind"], pa.large_string()),
            "none": pa.nulls(4),
            "count": pa.array([1, 2**63, 3, None], pa.uint64()),
            "small": pa.array([1.5, None, 2.5, 3.5], pa.float32()),
        }
    )
    plan = points_of(images, table, rows_per_shard=1, edge="shift")
    url = f"memory://{uuid.uuid4().hex}"
    plan.save(url)
    store = stored(patchloom.Plan.load(url, images=images))
    assert store.manifest.num_rows == 4
    carried = [name for name in table.column_names if name not in ("y", "x", "img")]
    wanted = sorted(table.select(carried).to_pylist(), key=str)
    assert sorted(store.manifest.select(carried).to_pylist(), key=str) == wanted
    assert store.manifest["day"].to_pylist() == [3] * 4
    with pytest.raises(ConfigError, match="day"):
        points_of(images, {**CELLS, "day": [1] * 4})
    with pytest.raises(ConfigError, match="start_y"):
        points_of(images, {**CELLS, "start_y": [1] * 4})


def test_equal_places_get_ids_of_their_own(images: Any) -> None:
    """The same ids whatever else is planned; shifted onto one box, too."""
    cells: dict[str, Any] = {
        "y": [6.0, 6.0, 0.0, 1.0],
        "x": [20.0, 20.0, 0.0, 1.0],
        "img": ["b"] * 4,
    }
    plan = points_of(images, cells, edge="shift")
    assert plan.n_patches == 4
    rows = stored(plan).manifest.to_pylist()
    assert len({row["patch_id"] for row in rows}) == 4
    boxes = [(row["start_y"], row["start_x"]) for row in rows]
    assert sorted(boxes) == [(0, 0), (0, 0), (4, 18), (4, 18)]
    alone = stored(points_of(images, {k: v[:1] for k, v in cells.items()})).manifest
    assert alone["patch_id"][0].as_py() in {row["patch_id"] for row in rows}


@pytest.mark.parametrize("edge", ["drop", "shift", "pad", "shrink"])
def test_no_points_are_an_empty_plan(images: Any, edge: Any) -> None:
    """With or without columns and images, it is saved, loaded and written."""
    empty: dict[str, Any] = {"y": np.zeros(0), "x": np.zeros(0)}
    bare: dict[str, Any] = {"y": [], "x": []}
    for table in (empty, bare, {**empty, "kind": pa.array([], pa.string())}):
        config = {"name": "points", "patch_size": 5, "points": read_points(table)}
        plan = patchloom.plan(images[:1], config, edge=edge)
        assert plan.n_patches == 0
        assert plan.summary()["n_candidates"] == 0
        url = f"memory://{uuid.uuid4().hex}"
        plan.save(url)
        assert patchloom.Plan.load(url, images=images[:1]).fingerprint == plan.fingerprint
        assert len(stored(plan)) == 0
    plan = points_of(images, {**empty, "img": pa.array([], pa.string())}, edge=edge)
    assert plan.n_patches == 0


def test_images_and_samples_are_found_or_named(images: Any) -> None:
    """What is unknown is counted; where nothing is known, or nothing is said, it is an error."""
    cells = {**CELLS, "img": ["a", "c", "b", "d"]}
    plan = points_of(images, cells)
    assert plan.rejected == {"in an image that is not planned": 2}
    with pytest.raises(PlanError, match=r"\['c'\] for images called \['a', 'b'\]"):
        points_of(images, {**CELLS, "img": ["c"] * 4})
    plain = {name: CELLS[name] for name in ("y", "x")}
    config = {"name": "points", "patch_size": 5, "points": plain}
    with pytest.raises(PlanError, match="image='column'"):
        patchloom.plan(images, config)
    with pytest.raises(ConfigError, match="needs its points"):
        patchloom.plan(images, {"name": "points", "patch_size": 5})
    [many] = patchloom.open_images(np.zeros((3, 9, 9)), axes="TYX")
    with pytest.raises(PlanError, match="sample='column'"):
        patchloom.plan(many, config)
    table = {"y": [4, 4, 4], "x": [4, 4, 4], "t": [0, 2, 3]}
    config["points"] = read_points(table, sample="t")
    plan = patchloom.plan(many, config)
    assert plan.rejected == {"in a sample that its image has not": 1}
    with pytest.raises(PlanError, match="'zyx' for 'image-0' with the spatial axes 'yx'"):
        patchloom.plan(
            many, {"name": "points", "patch_size": 5, "points": {**plain, "z": [0.0] * 4}}
        )
    with pytest.raises(PatchSizeError, match=r"\[5, 5, 5\]"):
        patchloom.plan(images[:1], {"name": "points", "patch_size": [5, 5, 5], "points": plain})


@pytest.mark.parametrize("unit", ["pixel", "physical"])
def test_planes_as_samples(unit: Any, tmp_path: Path) -> None:
    """The z of a point says in which plane it lies, in pixels or in physical units."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 99, (4, 20, 20), dtype="u1")
    step, first = {"z": 2.0, "y": 0.5, "x": 0.25}, {"z": -1.0, "y": 3.0, "x": 0.0}
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    moves = [
        {"type": "scale", "scale": [*step.values()]},
        {"type": "translation", "translation": [*first.values()]},
    ]
    multiscales = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": moves}]}]
    group = zarr.create_group(
        tmp_path / "a.zarr",
        attributes={"ome": {"version": "0.5", "multiscales": multiscales}},
    )
    group.create_array("0", data=pixels, chunks=(2, 8, 8), dimension_names=["z", "y", "x"])
    [planes] = patchloom.open_images(str(tmp_path / "a.zarr"), sample="z")
    [volume] = patchloom.open_images(str(tmp_path / "a.zarr"))
    places = {"z": [0.49, 0.5, 3.4, 3.5, -0.5, -0.51], "y": [10.0] * 6, "x": [8.0] * 6}
    told = {**places}
    if unit == "physical":
        told = {a: [first[a] + v * step[a] for v in values] for a, values in places.items()}
    told["tag"] = [0.0, 1, 2, 3, 4, 5]
    points = read_points(told, unit=unit)
    plan = patchloom.plan(planes, {"name": "points", "patch_size": [5, 4], "points": points})
    assert plan.rejected == {"in a sample that its image has not": 2}
    store = stored(plan)
    rows = {row["tag"]: row for row in store.manifest.to_pylist()}
    assert {tag: row["sample"] for tag, row in rows.items()} == {0: 0, 1: 1, 2: 3, 4: 0}
    for row in rows.values():
        shown = pixels[row["sample"], 8:13, 6:10]
        np.testing.assert_array_equal(store[row["row"]][0], shown)
    # The same points in the volume are patches of one plane's thickness.
    config = {"name": "points", "patch_size": [1, 5, 4], "points": points}
    whole = stored(patchloom.plan(volume, config))
    assert {row["tag"]: row["start_z"] for row in whole.manifest.to_pylist()} == {
        tag: row["sample"] for tag, row in rows.items()
    }


def test_planes_beside_time() -> None:
    """One sample axis is told by z; of two, the table must say which."""
    config = {"name": "points", "patch_size": 3, "points": {"z": [1.0], "y": [4.0], "x": [4.0]}}
    [one] = patchloom.open_images(np.zeros((1, 3, 9, 9)), axes="TZYX", sample="z")
    assert patchloom.plan(one, config).get_patch_spec(0)["sample_idx"] == 1
    [two] = patchloom.open_images(np.zeros((2, 3, 9, 9)), axes="TZYX", sample="z")
    with pytest.raises(PlanError, match="which of 6 samples"):
        patchloom.plan(two, config)


def test_physical_units_need_a_spacing(images: Any) -> None:
    """Without one, the way out is named."""
    points = read_points({name: CELLS[name] for name in ("y", "x")}, unit="physical")
    with pytest.raises(SourceError, match="spacing"):
        patchloom.plan(images[:1], {"name": "points", "patch_size": 5, "points": points})


# --- Lists and strategies -------------------------------------------------------------------


class Foreign:
    """A strategy of somebody else: specs in any order, with CAREamics' three questions."""

    def __init__(self, specs: Sequence[Any]) -> None:
        self.specs = [*specs]
        self.asked = 0

    @property
    def n_patches(self) -> int:
        return len(self.specs)

    def get_patch_spec(self, index: int) -> Any:
        self.asked += 1
        return self.specs[index]

    def get_patch_indices(self, data_idx: int) -> list[int]:
        return [k for k, spec in enumerate(self.specs) if spec["data_idx"] == data_idx]


def spec_at(index: int, coords: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """One patch of 4 x 5."""
    spec = {"data_idx": index, "sample_idx": 0, "coords": coords, "patch_size": (4, 5)}
    return {**spec, **more}


LISTED = [
    spec_at(1, (3, 4)),
    spec_at(0, (0, 0)),
    spec_at(0, (20, 12)),
    spec_at(1, (3, 4)),
    spec_at(0, (28, 1)),
    spec_at(1, (40, 0)),
]


@pytest.mark.parametrize("edge", ["drop", "shift", "pad", "shrink"])
def test_lists_and_foreign_strategies_are_taken(images: Any, edge: Any) -> None:
    """Each patch once, with the plan's edge policy; a list by name is the same plan."""
    strategy = Foreign(LISTED)
    plan = patchloom.plan(images, strategy, edge=edge)
    assert strategy.asked == len(LISTED)
    shapes = [(30, 20), (12, 25)]
    want = []
    for spec in LISTED:
        centre = [c + p // 2 for c, p in zip(spec["coords"], (4, 5), strict=True)]
        shape = shapes[spec["data_idx"]]
        corner = landed(centre, (4, 5), shape, edge)
        if corner is not None:
            want.append((spec["data_idx"], *clipped(corner, (4, 5), (0, 0), shape, edge)))
    specs = [plan.get_patch_spec(row) for row in range(plan.n_patches)]
    found = [(spec["data_idx"], spec["coords"], spec["patch_size"]) for spec in specs]
    assert sorted(found) == sorted(want)
    assert plan.n_patches + sum(plan.rejected.values()) == len(LISTED)
    named = patchloom.plan(images, {"name": "fixed", "fixed_patch_specs": LISTED}, edge=edge)
    fixed = patchloom.plan(images, patching.FixedPatching(LISTED), edge=edge)  # type: ignore[arg-type]
    assert named.fingerprint == fixed.fingerprint == plan.fingerprint
    other = patchloom.plan(images, Foreign(LISTED[::-1]), edge=edge)
    assert other.fingerprint != plan.fingerprint


@pytest.mark.parametrize(
    ("specs", "error", "words"),
    [
        ([], PatchSizeError, "got no patch from Foreign"),
        ([spec_at(0, (0, 0)), spec_at(0, (0, 0), patch_size=(4, 6))], PatchSizeError, "one size"),
        ([spec_at(2, (0, 0))], PlanError, "got image 2, sample 0 as patch 0 for 2 images"),
        ([spec_at(-1, (0, 0))], PlanError, "image -1"),
        ([spec_at(0, (0, 0), sample_idx=1)], PlanError, "sample 1 as patch 0"),
        ([spec_at(0, (0, 0), sample_idx=-1)], PlanError, "sample -1"),
        ([spec_at(0, (0, 0), patch_size=(4,))], PatchSizeError, r"got \[4\] for the axes 'yx'"),
        ([spec_at(0, (0, 0)), spec_at(0, (0, 0, 0))], PlanError, "2 whole numbers as 'coords'"),
        ([spec_at(0, (0, 0)), spec_at(0, (0.5, 0))], PlanError, "in spec 1"),  # type: ignore[arg-type]
        ([{"data_idx": 0, "coords": (0, 0), "patch_size": (4, 5)}], PlanError, "'sample_idx'"),
    ],
)
def test_wrong_specs_are_named(images: Any, specs: Any, error: Any, words: str) -> None:
    """Sizes, images, samples and numbers that do not fit."""
    with pytest.raises(error, match=words):
        patchloom.plan(images, Foreign(specs))


@pytest.mark.parametrize(
    "make",
    [
        lambda s: patching.SequentialPatching(s, (4, 5), (1, 2), edge="pad"),
        lambda s: patching.TiledPatching(s, (4, 5), (1, 2)),
        lambda s: patching.StratifiedPatching(s, (4, 5), 3),
        lambda s: patching.RandomPatching(s, (4, 5), 3),
        lambda s: patching.PixelPatching(s, (4, 5)),
        lambda s: patching.SequentialPatching(s, (4, 5), edge="shrink"),
    ],
)
def test_strategies_of_ours_are_taken_as_objects(images: Any, make: Any) -> None:
    """They are asked all at once, and the plan is that of asking one by one."""
    strategy = make([image.layout.data_shape for image in images])
    specs = [strategy.get_patch_spec(k) for k in range(strategy.n_patches)]
    if strategy.edge == "shrink":
        with pytest.raises(PatchSizeError, match="one size"):
            patchloom.plan(images, strategy)
        return
    plan = patchloom.plan(images, strategy, edge="pad")
    assert plan.fingerprint == patchloom.plan(images, Foreign(specs), edge="pad").fingerprint
    assert plan.n_patches == len(specs)
    store = stored(plan)
    arrays = [image.source.lazy(image).compute() for image in images]
    for row in store.manifest.to_pylist()[::7]:
        at = (row["start_y"], row["start_x"])
        source = arrays["ab".index(row["image_id"])]
        np.testing.assert_array_equal(store[row["row"]], oracle.cut(source[None], at, (4, 5)))


def test_whole_samples_of_several_sizes_are_refused(images: Any) -> None:
    """As an object they must not become patches of the largest extents."""
    shapes = [image.layout.data_shape for image in images]
    with pytest.raises(PatchSizeError, match=r"\(12, 25\), \(30, 20\)"):
        patchloom.plan(images, patching.WholeSamplePatching(shapes), edge="pad")
    padded = patchloom.plan(images, patching.WholeSamplePatching(shapes, edge="pad"), edge="pad")
    assert padded.get_patch_spec(1)["patch_size"] == (30, 25)
    one = patchloom.plan(images[0], patching.WholeSamplePatching(shapes[:1]))
    assert one.get_patch_spec(0)["patch_size"] == (30, 20)
    with pytest.raises(PatchSizeError, match="no patch"):
        patchloom.plan(images, patching.SequentialPatching([], (4, 5)))


def test_places_survive_a_trip() -> None:
    """As Parquet, with columns named like ours, and none at all."""
    numbers = np.arange(3)
    for columns in (
        pa.table({"image": ["a", None, "b"], "/corner0": [1.5, None, 2]}),
        pa.table({}),
    ):
        places = Places(
            numbers, numbers[::-1].copy(), numbers[:, None] * np.array([1, -5]), columns
        )
        again = Places.from_bytes(places.to_bytes())
        assert again.digest() == places.digest()
        assert again.corner.tolist() == places.corner.tolist()
        assert again.columns.to_pydict() == columns.to_pydict()


# --- Job files and secrets ------------------------------------------------------------------


def test_a_job_file_with_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command, with the table's options used, and neither shown nor saved."""
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem
    from pyarrow import csv

    given = []

    class Guarded(MemoryFileSystem):  # type: ignore[misc]  # fsspec is untyped
        protocol = "guarded"
        cachable = False

        def __init__(self, *args: Any, key: str = "", **more: Any) -> None:
            given.append(key)
            super().__init__(*args, **more)

    fsspec.register_implementation("guarded", Guarded, clobber=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 99, (40, 40), dtype="u1")
    for name in ("a", "b"):
        zarr.create_array(tmp_path / f"{name}.zarr", data=pixels, chunks=(16, 16))
    sink = pa.BufferOutputStream()
    csv.write_csv(pa.table(CELLS), sink)
    MemoryFileSystem().pipe_file("/cells.csv", sink.getvalue().to_pybytes())
    table = "guarded://somebody:pass-word@cells.csv"
    monkeypatch.setattr(Guarded, "_strip_protocol", classmethod(lambda *_: "/cells.csv"))
    document = {
        "images": str(tmp_path / "[ab].zarr"),
        "patching": {
            "name": "points",
            "patch_size": {"y": 6, "x": 6},
            "points": {"table": table, "image": "img", "storage_options": {"key": "SECRET"}},
        },
        "output": str(tmp_path / "out.zarr"),
    }
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(document))
    shown = repr(load_job(job))
    told = CliRunner().invoke(main, ["run", str(job), "--json"], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    assert set(given) == {"SECRET"}
    store = patchloom.open_patches(tmp_path / "out.zarr")
    assert store.manifest["kind"].to_pylist().count("T") == 2
    for row in store.manifest.to_pylist():
        y, x = row["start_y"], row["start_x"]
        np.testing.assert_array_equal(store[row["row"]][0], pixels[y : y + 6, x : x + 6])
    plan = patchloom.plan(
        patchloom.open_images(document["images"]),
        load_job(job).patching,
    )
    plan.save(str(tmp_path / "plan"))
    shown += told.output + repr(plan) + repr(plan.config) + plan._repr_html_()
    for file in sorted(tmp_path.rglob("*")):
        if file.is_file() and file != job:
            shown += file.read_bytes().decode("latin-1")
    for secret in ("SECRET", "pass-word"):
        assert secret not in shown


@pytest.mark.parametrize(
    "points",
    [
        {"table": "c.csv", "storage_options": "SECRET"},
        {"table": ["SECRET"]},
        {"image": "img", "storage_options": {"key": "SECRET"}},
        {"table": "c.csv", "unti": "pixel", "storage_options": {"key": "SECRET"}},
        {"table": "c.csv", "unit": 7, "storage_options": {"key": "SECRET"}},
    ],
)
def test_mistakes_beside_secrets(points: Any, images: Any, tmp_path: Path) -> None:
    """Are named without repeating them, in Python and in a job file."""
    config = {"name": "points", "patch_size": 5, "points": points}
    with pytest.raises(ConfigError) as caught:
        patching.create_patching([(1, 1, 9, 9)], config)
    said = str(caught.value)
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({"images": "a", "output": "b", "patching": config}))
    with pytest.raises(ConfigError) as caught:
        load_job(job)
    said += str(caught.value)
    if "table" in points and not isinstance(points["table"], list):
        with pytest.raises(ConfigError) as caught:
            patchloom.plan(images, config)
        said += str(caught.value)
    if not isinstance(points.get("table"), list):
        assert "SECRET" not in said
    if "unti" in points:
        assert said.count("did you mean 'unit'") == 3


TABLES = pytest.mark.parametrize("make", [patching.ListedPatching, patching.CenteredPatching])


@TABLES
@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([(1, 2, 3), (4, 5, 6)], r"shape \[2, 3\]"),
        ([1, 2], r"shape \[2\]"),
        ([(1.5, 2.0)], "got float64 such as 1.5"),
        ([(1, 2), (3,)], "rows of several lengths"),
        (np.full((1, 2), 2**64 - 1, np.uint64), "below 2\\*\\*63"),
    ],
)
def test_tables_are_integers_of_the_axes(make: Any, table: Any, words: str) -> None:
    """What was once reshaped, cut off or wrapped around is named."""
    with pytest.raises(PatchSizeError, match=words):
        make([(1, 1, 20, 20)], (4, 4), table)
    assert make([(1, 1, 20, 20)], (4, 4), []).n_patches == 0


def test_images_of_a_table_are_integers() -> None:
    """Images and samples are not cut off either."""
    shapes = [(2, 1, 20, 20)] * 2
    for column in ({"image": [0.9]}, {"sample": [0.9]}):
        with pytest.raises(PatchSizeError, match="integers"):
            patching.ListedPatching(shapes, (4, 4), [(1, 2)], **column)  # type: ignore[arg-type]


@TABLES
@pytest.mark.parametrize("edge", ["drop", "shift", "pad", "shrink"])
def test_places_far_away_and_images_of_nothing(make: Any, edge: Any) -> None:
    """The largest integers lie outside every image, and no pixel offers no patch."""
    far = 2**63 - 1
    table = [(far, far), (-far, -far), (far - 3, 1), (2, 2)]
    assert make([(1, 1, 20, 20)], (4, 4), table, edge=edge).n_patches == 1
    near = [(y, x) for y in range(-5, 6) for x in range(-5, 6)]
    for shape in ((1, 1, 0, 9), (1, 1, 9, 0), (1, 1, 0, 0)):
        assert make([shape], (4, 4), near, edge=edge).n_patches == 0


@given(
    image=st.lists(st.integers(0, 5), max_size=40),
    n_images=st.integers(6, 8),
)
def test_rows_are_sorted_by_image(image: list[int], n_images: int) -> None:
    """Each image has its own rows, in their order; one without rows has none."""
    corners = [(k % 7, k % 5) for k in range(len(image))]
    listed = patching.ListedPatching([(1, 1, 20, 20)] * n_images, (4, 4), corners, image=image)
    for k in range(n_images):
        rows = [row for row, other in enumerate(image) if other == k]
        assert listed.places(k, [0]).tolist() == rows
    assert patching.ListedPatching([], (4, 4), []).n_patches == 0
