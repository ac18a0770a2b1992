"""SpatialData: stores that it wrote in both versions, read without it, beside what it says."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import patchloom
from patchloom.errors import ConfigError, NotAnArrayError, SourceError, SourceMissingError
from patchloom.sources.elements import _of_wkb

DATA = Path(__file__).with_name("data") / "spatialdata"
CENTRES: dict[str, dict[str, list[float]]] = json.loads((DATA / "centroids.json").read_text())
CELLS = np.load(DATA / "cells.npy")
SLIDE = np.load(DATA / "slide.npy")
STORES = ["v2.zarr", "v3.zarr"]


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the attributes of a node in place."""
    v3 = path / "zarr.json"
    document = json.loads((v3 if v3.exists() else path / ".zattrs").read_text())
    change(document["attributes"] if v3.exists() else document)
    (v3 if v3.exists() else path / ".zattrs").write_text(json.dumps(document))


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of one of the stores, called a.zarr."""
    return Path(shutil.copytree(DATA / request.param, tmp_path / "a.zarr"))


@pytest.mark.parametrize("name", STORES)
def test_images_and_labels_open_by_name(name: str) -> None:
    """The one image of a store by the store alone; labels as a role by their name."""
    for url in (DATA / name, f"{DATA / name}::images/slide"):
        [image] = patchloom.open_images(url, labels="cells")
        assert image.channels == ("DAPI", "actin")
        np.testing.assert_array_equal(image.data, SLIDE)
        assert image.labels is not None
        np.testing.assert_array_equal(image.labels.image.data, CELLS)
        assert image.spacing == {"y": 0.25, "x": 0.5}
        # Its first pixel begins at (20, 10): SpatialData's 0 is a corner.
        assert image.origin == {"y": 20.125, "x": 10.25}
    [coarse] = patchloom.open_images(DATA / name, level=1, labels="cells")
    assert coarse.spacing == {"y": 0.5, "x": 1.0}
    assert coarse.origin == {"y": 20.25, "x": 10.5}
    assert coarse.labels is not None
    assert [*coarse.labels.alignment.offset] == [0, 0]


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize(
    ("element", "centres", "key"),
    [
        ("points/transcripts", "transcripts", None),
        ("shapes/circles", "circles", "instance_id"),
        ("shapes/regions", "regions", "instance_id"),
        ("tables/table", "cells", "instance"),
        ("tables/spots", "circles", "instance"),
    ],
)
def test_centres_are_those_that_spatialdata_finds(
    name: str, element: str, centres: str, key: str | None
) -> None:
    """Of points, circles, polygons with holes and labels; tables by what they annotate."""
    points = patchloom.read_points(f"{DATA / name}::{element}")
    assert (points.axes, points.unit) == ("yx", "physical")
    told = CENTRES[centres]
    keys = range(len(told)) if key is None else points.columns[key].to_pylist()
    assert sorted(map(str, keys)) == sorted(told)
    np.testing.assert_allclose(points.position, [told[str(k)] for k in keys])
    again = patchloom.read_points(DATA / name / element)
    np.testing.assert_array_equal(again.position, points.position)


@pytest.mark.parametrize("name", STORES)
def test_one_patch_a_cell_with_its_columns(name: str, tmp_path: Path) -> None:
    """The centre pixel of each is in its cell, and the manifest says of which kind it is."""
    images = patchloom.open_images(DATA / name, labels="cells")
    plan = patchloom.plan(
        images,
        {
            "name": "points",
            "patch_size": [5, 5],
            "points": f"{DATA / name}::tables/table",
        },
        edge="pad",
    )
    patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    found = patchloom.open_patches(tmp_path / "out.zarr")
    rows = found.manifest.to_pylist()
    assert {row["instance"]: row["kind"] for row in rows} == {7: "T", 1: "B", 3: "T"}
    for row in rows:
        y, x = row["start_y"] + 2, row["start_x"] + 2
        assert CELLS[y, x] == row["instance"]
        own = np.argwhere(row["instance"] == CELLS)
        np.testing.assert_array_equal([y, x], np.floor(own.mean(0) + 0.5))


def test_other_positions_of_a_table_are_asked_for(store: Path) -> None:
    """Columns of obs stay what `axes` names, and a wrong key of obsm says which there are."""
    with pytest.raises(SourceError, match="names a key of obsm"):
        patchloom.read_points(store / "tables/table", positions="spatial")
    with pytest.raises(SourceError, match=r"no .*'px'"):
        patchloom.read_points(store / "tables/table", axes={"y": "py", "x": "px"})


def test_a_store_is_no_table(store: Path) -> None:
    """Which element is meant has to be said."""
    with pytest.raises(ConfigError, match="::tables/NAME"):
        patchloom.read_points(store)


def test_several_images_are_listed(store: Path) -> None:
    """With the labels; tables are none."""
    shutil.copytree(store / "images/slide", store / "images/other")
    with pytest.raises(NotAnArrayError) as caught:
        patchloom.open_images(store)
    assert "['images/other', 'images/slide', 'labels/cells']" in str(caught.value)
    [image] = patchloom.open_images(store, array="images/other", labels="cells")
    assert image.labels is not None
    [labels] = patchloom.open_images(store, array="labels/cells")
    assert labels.dtype == np.uint16
    with pytest.raises(SourceMissingError, match="nuclei"):
        patchloom.open_images(store, array="images/other", labels="nuclei")


def test_instances_that_are_missing_are_an_error(store: Path) -> None:
    """Unless they are to be left out."""
    element = store / ("labels/cells/s0")
    import zarr

    array = zarr.open_array(element, mode="r+")
    pixels = np.asarray(array[...])
    pixels[pixels == 3] = 0
    array[...] = pixels
    with pytest.raises(SourceError, match=r"1 of 3 rows.*rows 2"):
        patchloom.read_points(store / "tables/table")
    points = patchloom.read_points(store / "tables/table", drop_missing=True)
    assert points.columns["instance"].to_pylist() == [7, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.update(region="gone"), "none called 'gone'"),
        (lambda a: a.update(region="../labels"), "got region='../labels'"),
        (lambda a: a.update(region=None), "got region=None"),
        (lambda a: a.update(region_key="nowhere"), "no columns \\['nowhere'\\]"),
        (lambda a: a.update(instance_key="nowhere"), "no columns \\['nowhere'\\]"),
    ],
)
def test_wrong_annotations_are_refused(store: Path, change: Any, words: str) -> None:
    """A table that is about nothing has no places."""
    edit(store / "tables/table", change)
    with pytest.raises(SourceError, match=words):
        patchloom.read_points(store / "tables/table")


TURNED = {"type": "affine", "affine": [[0, 1, 0], [1, 0, 0]]}


@pytest.mark.parametrize("element", ["points/transcripts", "shapes/circles", "shapes/regions"])
def test_turned_elements_are_refused(store: Path, element: str) -> None:
    """An affine transform is honoured if it only scales and moves."""
    out = {"output": {"name": "global"}}
    straight = {"type": "affine", "affine": [[2, 0, 5], [0, 3, 7]]}
    points = patchloom.read_points(store / element)
    transforms = [{**TURNED, **out}]
    edit(store / element, lambda a: a.update(coordinateTransformations=transforms))
    with pytest.raises(SourceError, match="'affine' of more than that"):
        patchloom.read_points(store / element)
    edit(store / element, lambda a: a.update(coordinateTransformations=[{**straight, **out}]))
    moved = patchloom.read_points(store / element).position
    edit(store / element, lambda a: a.update(coordinateTransformations=[]))
    plain = patchloom.read_points(store / element).position
    np.testing.assert_allclose(moved, plain * [3, 2] + [7, 5])
    assert len(points) == len(plain)


def test_damaged_shapes_are_refused(store: Path) -> None:
    """Lines, noise and files that are no Parquet."""
    path = store / "shapes/circles/shapes.parquet"
    line = struct.pack("<BII4d", 1, 2, 2, 0, 0, 1, 1)
    for geometry in (line, b"\x01\x03\0\0\0\xff\xff\xff\xff", b"", b"\x01"):
        pq.write_table(pa.table({"geometry": pa.array([geometry], pa.binary())}), path)
        with pytest.raises(SourceError, match="well-known binary"):
            patchloom.read_points(store / "shapes/circles")
    path.write_bytes(b"noise")
    with pytest.raises(SourceError, match="GeoParquet"):
        patchloom.read_points(store / "shapes/circles")


# --- Well-known binary ----------------------------------------------------------------------


def polygon(rings: list[np.ndarray[Any, Any]], order: str, width: int, iso: bool) -> bytes:
    """A polygon as PostGIS (flags) or ISO (thousands) writes it, with z and m of any value."""
    flags = {2: 0, 3: 1 << 31, 4: 3 << 30}[width]
    kind = 3 + {2: 0, 3: 1000, 4: 3000}[width] if iso else 3 | flags
    found = struct.pack(f"{order}BII", order == "<", kind, len(rings))
    for ring in rings:
        padded = np.concatenate([ring, np.full((len(ring), width - 2), 9.0)], 1)
        found += struct.pack(f"{order}I", len(ring)) + padded.astype(f"{order}f8").tobytes()
    return found


@given(
    st.tuples(st.integers(-1000, 1000), st.integers(-1000, 1000)),
    st.tuples(st.integers(4, 30), st.integers(4, 30)),
    st.booleans(),
    st.sampled_from("<>"),
    st.sampled_from([2, 3, 4]),
    st.booleans(),
)
def test_centres_of_polygons_are_means_of_their_pixels(
    corner: tuple[int, int],
    size: tuple[int, int],
    hole: bool,
    order: str,
    width: int,
    iso: bool,
) -> None:
    """A box, with a hole or not, in any byte order and dimension, alone and among others."""

    def box(y: int, x: int, h: int, w: int, turn: int) -> np.ndarray[Any, Any]:
        ring = [(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)]
        return np.array(ring[::turn], float)

    inside = np.ones(size, bool)
    rings = [box(*corner, *size, 1)]
    if hole:
        rings.append(box(corner[0] + 1, corner[1] + 1, 2, 1, -1 if iso else 1))
        inside[1:3, 1:2] = False
    y, x = np.nonzero(inside)
    expected = [x.mean() + 0.5 + corner[1], y.mean() + 0.5 + corner[0]]
    one = polygon(rings, order, width, iso)
    many = struct.pack(f"{order}BII", order == "<", 6, 2) + one + one
    point = struct.pack("<BI2d", 1, 1, 3.0, 4.0)
    found = _of_wkb([one, many, None, point])
    np.testing.assert_allclose(found[:2], [expected, expected], rtol=1e-9, atol=1e-9)
    assert np.isnan(found[2]).all()
    assert found[3].tolist() == [3.0, 4.0]
