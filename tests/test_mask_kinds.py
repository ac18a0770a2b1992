"""Masks made of something: every pixel is what an obvious computation says, however it is read.

Laws: a polygon covers the centres inside it, and adjoining ones share none; classes, missing data
and thresholds agree with NumPy on the whole array, for every chunk grid and order of axes; a plan
over such a mask is the plan over its pixels, and is loaded as it was saved.
"""

from __future__ import annotations

import json
import math
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv

import patchloom
from patchloom.config import load_job
from patchloom.errors import (
    ConfigError,
    IdentityError,
    PlanError,
    SourceChangedError,
    SourceError,
    SourceMissingError,
)
from patchloom.image import Image
from patchloom.polygons import Polygons
from patchloom.run.jobs import plan_of
from patchloom.run.thresholds import resolved
from patchloom.sources import thresholds
from patchloom.sources.derived import DerivedSource
from patchloom.sources.rules import ThresholdRule
from tests import oracle
from tests.test_levels import pyramid

Pixels = npt.NDArray[Any]
Ring = list[tuple[Fraction, Fraction]]
PATCHING = {"name": "sequential", "patch_size": [8, 8]}
ORGANOIDS = sorted(Path("tests/data/organoid_confocal").glob("*.ome.zarr"))


# --- Oracles --------------------------------------------------------------------------------


def drawn(polygons: list[list[Ring]], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Even-odd in integers: a ray to the left of each centre crosses an odd number of edges."""
    # In eighths of a pixel everything is whole.
    y, x = (8 * at + 4 for at in np.ogrid[: shape[0], : shape[1]])
    found = np.zeros(shape, bool)
    for rings in polygons:
        odd = np.zeros(shape, bool)
        for ring in rings:
            whole = [(int(8 * a), int(8 * b)) for a, b in ring]
            for (ay, ax), (by, bx) in zip(whole, whole[1:] + whole[:1], strict=True):
                side = ((ax - x) * (by - ay) + (y - ay) * (bx - ax)) * (1 if by > ay else -1)
                odd ^= ((ay <= y) != (by <= y)) & (side <= 0)
        found |= odd
    return found


def pixels_of(image: Image) -> Pixels:
    """All pixels of a mask."""
    assert image.mask is not None
    mask = image.mask.image
    return mask.read((0,) * mask.ndim, mask.shape)


def mask_of(image: Image) -> Pixels:
    """All pixels of a mask, read by chunk, by Dask, and after a round through JSON and pickle."""
    assert image.mask is not None
    mask = image.mask.image
    pixels = pixels_of(image)
    np.testing.assert_array_equal(mask.data.values, pixels)
    again = pickle.loads(pickle.dumps(mask))
    np.testing.assert_array_equal(again.read((0,) * mask.ndim, mask.shape), pixels)
    if mask.source.addressable:
        again = Image.from_document(json.loads(json.dumps(mask.to_document())))
        np.testing.assert_array_equal(again.read((0,) * mask.ndim, mask.shape), pixels)
    return pixels


def opened(pixels: Any, mask: Any, **options: Any) -> Image:
    [image] = patchloom.open_images(pixels, mask=mask, **options)
    return image


def stored(path: Path, pixels: Pixels, chunks: tuple[int, ...]) -> str:
    array = zarr.create_array(path, shape=pixels.shape, chunks=chunks, dtype=pixels.dtype)
    array[...] = pixels
    return str(path)


def geojson(*polygons: list[Ring], **properties: Any) -> dict[str, Any]:
    """One feature a polygon, rings closed as the standard has it, x first."""
    features = [
        {
            "type": "Feature",
            "properties": {name: values[k] for name, values in properties.items()},
            "geometry": {
                "type": "Polygon",
                "coordinates": [
                    [[float(x), float(y)] for y, x in [*ring, *ring[:1]]] for ring in rings
                ],
            },
        }
        for k, rings in enumerate(polygons)
    ]
    return {"type": "FeatureCollection", "features": features}


def box(y0: float, x0: float, y1: float, x1: float) -> Ring:
    a, b, c, d = (Fraction(v) for v in (y0, x0, y1, x1))
    return [(a, b), (a, d), (c, d), (c, b)]


# --- Polygons -------------------------------------------------------------------------------

places = st.integers(-12, 60).map(lambda n: Fraction(n, 4))
rings = st.lists(st.tuples(places, places), min_size=3, max_size=7)
polygons_drawn = st.lists(st.lists(rings, min_size=1, max_size=3), max_size=4)


@settings(max_examples=60, deadline=None)
@given(polygons=polygons_drawn, window=st.tuples(*[st.integers(0, 6)] * 2))
def test_a_pixel_is_covered_if_its_centre_is(
    polygons: list[list[Ring]], window: tuple[int, int]
) -> None:
    """Any rings, self-crossing ones too, in any window."""
    shape = (11, 13)
    found = Polygons.of_rings(
        [[np.array(ring, np.float64) for ring in rings] for rings in polygons]
    )
    expected = drawn(polygons, shape)[window[0] :, window[1] :]
    np.testing.assert_array_equal(found.rasterize(window, shape), expected)


@settings(max_examples=50, deadline=None)
@given(centre=st.tuples(*[st.floats(0.01, 11.99)] * 2), n=st.integers(1, 5), data=st.data())
def test_adjoining_polygons_share_no_pixel(
    centre: tuple[float, float], n: int, data: st.DataObject
) -> None:
    """A fan of triangles around any point covers each pixel of a square once."""
    rim = [(0.0, k * 12 / n) for k in range(n)] + [(k * 12 / n, 12.0) for k in range(n)]
    rim += [(12.0, 12 - k * 12 / n) for k in range(n)] + [(12 - k * 12 / n, 0.0) for k in range(n)]
    times = np.zeros((12, 12), int)
    for a, b in zip(rim, rim[1:] + rim[:1], strict=True):
        corners = data.draw(st.permutations([a, b, centre]))
        times += Polygons.of_rings([[np.array(corners)]]).rasterize((0, 0), (12, 12))
    assert (times == 1).all()


def test_many_edges_are_drawn_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the crossings of a window do not fit together, polygons are drawn in groups."""
    rng = np.random.default_rng(3)
    found = Polygons.of_rings([[rng.uniform(0, 40, (9, 2))] for _ in range(30)])
    whole = found.rasterize((0, 0), (40, 40))
    monkeypatch.setattr("patchloom.polygons._PIECE", 50)
    np.testing.assert_array_equal(found.rasterize((0, 0), (40, 40)), whole)
    again = Polygons.from_document(json.loads(json.dumps(found.to_document())))
    assert again.digest() == found.digest()
    np.testing.assert_array_equal(again.rasterize((3, 5), (40, 40)), whole[3:, 5:])


def test_large_masks_are_drawn_chunk_by_chunk(tmp_path: Path) -> None:
    """Polygons over several chunks of the mask, for an image with z."""
    ring: Ring = [
        (Fraction(100), Fraction(5)),
        (Fraction(2100), Fraction(900)),
        (Fraction(7), Fraction(1290)),
    ]
    image = opened(np.zeros((2, 2200, 1300), "uint8"), {"polygons": geojson([ring])})
    assert image.mask is not None
    assert (image.mask.axes, image.mask.image.shape) == ("yx", (2200, 1300))
    assert image.mask.image.grid.n_chunks == 6
    pixels = pixels_of(image)
    np.testing.assert_array_equal(pixels, drawn([[ring]], (2200, 1300)))
    np.testing.assert_array_equal(image.mask.image.data.values, pixels)


def test_geojson_of_every_form(tmp_path: Path) -> None:
    """Collections, features, geometries; from a mapping, a file, a pattern; holes and parts."""
    hole = [box(2, 3, 20, 25), box(5, 6, 9, 11.5)]
    other = [box(18, 20, 28, 29)]
    expected = drawn([hole, other], (32, 32))
    collection = geojson(hole, other)
    one, two = (f["geometry"]["coordinates"] for f in collection["features"])
    multi = {"type": "MultiPolygon", "coordinates": [one, two]}
    point = {
        "type": "Feature",
        "properties": None,
        "geometry": {"type": "Point", "coordinates": [1, 1]},
    }
    none: Any = {"type": "Feature", "properties": {}, "geometry": None}
    forms = [
        collection,
        multi,
        {"type": "Feature", "properties": {}, "geometry": multi},
        {"type": "FeatureCollection", "features": [*collection["features"], point, none]},
        {
            "type": "GeometryCollection",
            "geometries": [f["geometry"] for f in collection["features"]],
        },
    ]
    pixels = np.zeros((32, 32), "uint8")
    plans = set()
    for k, form in enumerate(forms):
        (tmp_path / f"a{k}.geojson").write_text(json.dumps(form))
        pattern = str(tmp_path / f"{{stem}}{k}.geojson")
        for mask in (form, pattern, str(tmp_path / f"a{k}.geojson")):
            image = opened(pixels, {"polygons": mask}, ids=["a"])
            np.testing.assert_array_equal(pixels_of(image), expected)
            plans.add(patchloom.plan(image, PATCHING, min_coverage=0.5).fingerprint)
    (tmp_path / "list.json").write_text(json.dumps(collection["features"]))
    image = opened(pixels, {"polygons": str(tmp_path / "list.json")}, ids=["a"])
    plans.add(patchloom.plan(image, PATCHING, min_coverage=0.5).fingerprint)
    assert len(plans) == 1


def test_tables_of_polygons_and_boxes(tmp_path: Path) -> None:
    """One table of several images, in every form; each image gets its own."""
    table = pa.table(
        {
            "image_id": ["b", "a", "a", "b", "b", "a", "b", "b", "b", "b"],
            "polygon_id": [1, 1, 1, 1, 1, 1, 2, 2, 2, 2],
            "y": [0.0, 4, 4, 0, 10, 12, 20, 20, 30, 30],
            "x": [0.0, 4, 14, 8, 4, 9, 20, 30, 30, 20],
            "kind": ["T", "T", "T", "T", "T", "T", "B", "B", "B", "B"],
        }
    )
    triangles = {
        "a": [[(4, 4), (4, 14), (12, 9)]],
        "b": [[(0, 0), (0, 8), (10, 4)]],
    }
    square = [(20, 20), (20, 30), (30, 30), (30, 20)]
    pq.write_table(table, tmp_path / "t.parquet")
    csv.write_csv(table, tmp_path / "t.csv")
    frame = pytest.importorskip("pandas").DataFrame(table.to_pydict())
    images = [np.zeros((32, 32), "uint8")] * 2
    for given_ in (table, frame, str(tmp_path / "t.parquet"), tmp_path / "t.csv"):
        for where, more in ((None, [square]), ({"kind": ["T"]}, [])):
            found = patchloom.open_images(
                images, ids=["a", "b"], mask={"polygons": given_, "where": where}
            )
            for image in found:
                own = triangles[image.id] + (more if image.id == "b" else [])
                rings = [[[(Fraction(y), Fraction(x)) for y, x in ring]] for ring in own]
                np.testing.assert_array_equal(pixels_of(image), drawn(rings, (32, 32)))
    boxes = {"y0": [1, 10.5], "x0": [2, 3], "y1": [4, 20], "x1": [8, 9.5]}
    [image] = patchloom.open_images(images[:1], mask={"boxes": boxes})
    expected = drawn([[box(1, 2, 4, 8)], [box(10.5, 3, 20, 9.5)]], (32, 32))
    np.testing.assert_array_equal(mask_of(image), expected)


def test_physical_outlines_lie_where_the_image_does(tmp_path: Path) -> None:
    """The origin is the centre of the first pixel."""
    url = pyramid(tmp_path / "a.zarr", np.zeros((1, 64, 64), "uint8"), (1,))  # 0.5 a pixel
    ring = box(2.75, 4.75, 9.75, 12.75)  # pixels 6 to 20 and 10 to 26 from edge to edge
    image = opened(url, {"polygons": geojson([ring]), "units": "physical"})
    expected = drawn([[box(6, 10, 20, 26)]], (64, 64))
    np.testing.assert_array_equal(mask_of(image), expected)
    with pytest.raises(SourceError, match="has none; give them in pixels"):
        opened(np.zeros((8, 8)), {"polygons": geojson([ring]), "units": "physical"})


def test_a_changed_file_is_no_other_mask(tmp_path: Path) -> None:
    """A plan keeps the name and the digest of a file, and reads it once."""
    file = tmp_path / "p.geojson"
    file.write_text(json.dumps(geojson([box(0, 0, 16, 16)])))
    url = stored(tmp_path / "a.zarr", np.zeros((32, 32), "uint8"), (16, 16))
    image = opened(url, {"polygons": str(file)})
    assert image.mask is not None
    reader = image.mask.image.source.reader()
    for _ in range(2):
        reader.read(np.zeros((1, 2), np.int64))
    assert (reader.reads.chunks, reader.reads.requests) == (0, 1)
    assert reader.reads.nbytes == file.stat().st_size
    plan = patchloom.plan(image, PATCHING, min_coverage=1)
    assert plan.n_patches == 4
    plan.save(str(tmp_path / "plan"))
    assert patchloom.Plan.load(str(tmp_path / "plan")).fingerprint == plan.fingerprint
    file.write_text(json.dumps(geojson([box(0, 0, 16, 17)])))
    loaded = patchloom.Plan.load(str(tmp_path / "plan"))
    from patchloom.sources import outlines

    outlines._loaded.cache_clear()
    with pytest.raises(SourceChangedError, match="was changed"):
        mask_of(loaded.images[0])


# --- Made of pixels -------------------------------------------------------------------------


@st.composite
def arrays(draw: st.DrawFn, dtype: str, names: str) -> tuple[str, Pixels, tuple[int, ...]]:
    """Axes in some order, pixels of few values, and chunks."""
    axes = "".join(draw(st.permutations(names)))
    shape = [draw(st.integers(1, 3 if a in "ctz" else 9)) for a in axes]
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    pixels = rng.integers(0, 4, shape).astype(dtype)
    if dtype[0] == "f":
        pixels[rng.random(shape) < 0.2] = np.nan
    return axes, pixels, tuple(draw(st.integers(1, n)) for n in shape)


def sorted_axes(mask: Image) -> Pixels:
    """Pixels of a mask as t, z, y, x."""
    pixels: Pixels = mask.read((0,) * mask.ndim, mask.shape)
    return pixels.transpose([mask.axes.names.index(a) for a in "tzyx" if a in mask.axes.names])


@settings(max_examples=25, deadline=None)
@given(
    found=st.one_of(*(arrays(d, n) for d in ("uint8", "float32") for n in ("yx", "cyx", "tczyx"))),
    value=st.sampled_from([[0], ["nan"], [1, "nan"], [2, 3]]),
    channels=st.sampled_from(["any", "all"]),
    dask=st.booleans(),
)
def test_missing_data(found: Any, value: list[Any], channels: str, dask: bool) -> None:
    """Every order of axes and grid of chunks, from NumPy and from Dask."""
    import dask.array as da

    axes, pixels, chunks = found
    if pixels.dtype.kind == "u" and "nan" in value:
        value = [0]
    array = da.from_array(pixels, chunks=chunks) if dask else pixels
    image = opened(array, {"nodata": value, "channels": channels}, axes=axes)
    if dask:
        mask_of(image)
    whole = np.moveaxis(pixels, axes.index("c"), 0) if "c" in axes else pixels[None]
    rest = axes.replace("c", "")
    good = np.ones(whole.shape, bool)
    for v in value:
        good &= ~np.isnan(whole) if v == "nan" else whole != v
    expected = np.asarray(good.any(0) if channels == "all" else good.all(0))
    expected = expected.transpose([rest.index(a) for a in "tzyx" if a in rest])
    assert image.mask is not None
    assert image.mask.alignment.is_identity
    np.testing.assert_array_equal(sorted_axes(image.mask.image), expected)


@settings(max_examples=40, deadline=None)
@given(
    classes=st.one_of(st.none(), st.lists(st.integers(0, 4), min_size=1, max_size=3)),
    found=arrays("uint16", "yx"),
    factor=st.integers(1, 3),
)
def test_classes(classes: list[int] | None, found: Any, factor: int) -> None:
    """Labels on coarser pixels: the plan takes what an array of their classes would."""
    _, labels, _ = found
    pixels = np.zeros([n * factor for n in labels.shape], "uint8")
    expected = np.isin(labels, classes) if classes is not None else labels != 0
    image = opened(pixels, {"labels": labels, "classes": classes})
    np.testing.assert_array_equal(pixels_of(image), expected)
    plain = opened(pixels, expected)
    assert image.mask is not None
    assert plain.mask is not None
    assert image.mask.alignment == plain.mask.alignment


@pytest.mark.parametrize("share", [0.3, 0.5, 1])
def test_a_plan_takes_what_the_pixels_say(share: float, tmp_path: Path) -> None:
    """Coverage of made masks against counting, and the coverage that the manifest shows."""
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 3, (48, 40)).astype("uint8")
    pixels[10:30, 5:25] += 100
    labels = np.kron(rng.integers(0, 3, (12, 10)), np.ones((2, 2))).astype("uint16")
    rings = [
        [(Fraction(-3), Fraction(4)), (Fraction(40), Fraction(11)), (Fraction(20), Fraction(39))]
    ]
    kinds: list[tuple[Any, Pixels]] = [
        ({"labels": labels, "classes": [1]}, labels == 1),
        ({"nodata": 0}, pixels != 0),
        ({"polygons": geojson(rings)}, drawn([rings], (48, 40))),
        ({"auto": "otsu"}, pixels > 50),
    ]
    for mask, expected in kinds:
        image = resolved(opened(pixels, mask))
        plan = patchloom.plan(image, PATCHING, min_coverage=share)
        shares = {
            corner: oracle.coverage(expected, pixels.shape, corner, (8, 8))
            for corner in oracle.grid(pixels.shape, (8, 8), (0, 0), "drop")
        }
        wanted = {corner for corner, s in shares.items() if s >= Fraction(str(share))}
        assert {plan.get_patch_spec(k)["coords"] for k in range(plan.n_patches)} == wanted
        assert wanted or share == 1
        again = patchloom.plan(resolved(opened(pixels, mask)), PATCHING, min_coverage=share)
        assert again.fingerprint == plan.fingerprint
        plan.save(str(tmp_path / "plan"))
        # The pixels of arrays are given again; thresholds are not looked for again.
        loaded = patchloom.Plan.load(str(tmp_path / "plan"), images=[opened(pixels, mask)])
        assert loaded.fingerprint == plan.fingerprint
        np.testing.assert_array_equal(mask_of(loaded.images[0]), expected)
        if wanted:
            out = str(tmp_path / f"{mask.keys()}{share}.zarr")
            patchloom.materialize(plan, out, progress=False)
            rows = patchloom.open_patches(out).manifest.to_pylist()
            for row in rows:
                assert row["coverage"] == float(shares[row["start_y"], row["start_x"]])


def test_the_rule_is_part_of_a_plan() -> None:
    """Equal selections by other rules are other plans."""
    pixels = np.zeros((16, 16), "uint8")
    labels = np.ones((16, 16), "uint8")
    masks: list[Any] = [
        {"labels": labels},
        {"labels": labels, "classes": [1]},
        {"labels": labels, "classes": [1, 2]},
        {"nodata": 1},
        {"nodata": 2},
        {"polygons": geojson([box(0, 0, 16, 16)])},
        {"polygons": geojson([box(0, 0, 16, 17)])},
        labels != 0,
    ]
    plans = [patchloom.plan(opened(pixels, m), PATCHING, min_coverage=1) for m in masks]
    assert {plan.n_patches for plan in plans} == {4}
    assert len({plan.fingerprint for plan in plans}) == len(masks)


def test_chunks_are_counted_once(tmp_path: Path) -> None:
    """A reader counts the chunks of the array below, all channels of them."""
    pixels = np.arange(3 * 64 * 64, dtype="uint16").reshape(3, 64, 64)
    url = stored(tmp_path / "a.zarr", pixels, (1, 16, 16))
    image = opened(url, {"nodata": 0}, axes="CYX")
    assert image.mask is not None
    mask = image.mask.image
    assert mask.source.addressable
    reader = mask.source.reader()
    reader.read(mask.grid.unflat(np.arange(mask.grid.n_chunks)))
    assert reader.reads.chunks == 3 * 16
    image = resolved(opened(url, {"auto": "otsu", "channel": 1, "fill_holes": True}, axes="CYX"))
    assert image.mask is not None
    mask = image.mask.image
    assert mask.grid.n_chunks == 1
    reader = mask.source.reader()
    reader.read(np.zeros((1, 2), np.int64))
    assert reader.reads.chunks == 16


@pytest.mark.skipif(not ORGANOIDS, reason="no organoids")
def test_labels_of_a_real_image(tmp_path: Path) -> None:
    """Some nuclei of an organoid, in 3-D, by the name of their label group."""
    for path in ORGANOIDS:
        [plain] = patchloom.open_images(path, mask="nuclei")
        assert plain.mask is not None
        labels = plain.mask.image.read((0,) * plain.mask.image.ndim, plain.mask.image.shape)
        some = np.unique(labels)[1::3].tolist()
        image = opened(path, {"labels": "nuclei", "classes": some})
        assert image.mask is not None
        assert image.mask.alignment == plain.mask.alignment
        np.testing.assert_array_equal(mask_of(image), np.isin(labels, some))
        plan = patchloom.plan(
            image, {"name": "sequential", "patch_size": [8, 32, 32]}, min_pixels=1
        )
        assert plan.n_patches > 0
        plan.save(str(tmp_path / path.stem))
        assert patchloom.Plan.load(str(tmp_path / path.stem)).fingerprint == plan.fingerprint


# --- Thresholds -----------------------------------------------------------------------------

histograms = st.lists(st.integers(0, 40), min_size=0, max_size=30).flatmap(
    lambda middle: st.tuples(st.integers(1, 40), st.just(middle), st.integers(1, 40)).map(
        lambda t: np.array([t[0], *t[1], t[2]], np.int64)
    )
)


def halves(counts: Pixels, k: int) -> tuple[Fraction, Fraction, int, int]:
    """Means and sizes of the two parts."""
    values = [v for v, n in enumerate(counts.tolist()) for _ in range(n)]
    low, high = [v for v in values if v <= k], [v for v in values if v > k]
    return Fraction(sum(low), len(low)), Fraction(sum(high), len(high)), len(low), len(high)


@settings(max_examples=80, deadline=None)
@given(counts=histograms)
def test_thresholds_against_every_split(counts: Pixels) -> None:
    """Otsu's variance is the largest; isodata lies midway; Li's is a fixed point; all split."""
    splits = range(len(counts) - 1)

    def between(k: int) -> Fraction:
        a, b, n, m = halves(counts, k)
        return n * m * (a - b) ** 2

    best = max(between(k) for k in splits)
    assert between(thresholds.otsu(counts)) >= best * (1 - Fraction(1, 10**12))

    k = thresholds.isodata(counts)
    a, b, _, _ = halves(counts, k)
    assert math.floor((a + b) / 2) in (k, k + 1)
    assert math.floor((a + b) / 2) == k or k == len(counts) - 2

    k = thresholds.li(counts)
    a, b, _, _ = halves(counts, k)
    if a > 0 and k < len(counts) - 2:
        assert k <= float(b - a) / (math.log(b) - math.log(a)) + 1e-9 < k + 1 + 2e-9

    for method in (thresholds.otsu, thresholds.triangle, thresholds.li, thresholds.isodata):
        assert method(counts) in splits


def test_triangle_by_hand() -> None:
    """A peak with a long tail on either side: the knee is below the line the most."""
    counts = np.array([100, 60, 8, 5, 4, 3, 2, 1])
    assert thresholds.triangle(counts) == 2
    assert thresholds.triangle(counts[::-1]) == 5


@settings(max_examples=40, deadline=None)
@given(counts=histograms, share=st.integers(0, 100))
def test_percentile(counts: Pixels, share: int) -> None:
    """The share at or below is reached, and not before."""
    k = thresholds.percentile(counts, share)
    total = int(counts.sum())
    assert counts[: k + 1].sum() * 100 >= share * total
    assert k == 0 or counts[:k].sum() * 100 < share * total or counts[:k].sum() == 0


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "int32", "float32"])
@pytest.mark.parametrize("method", ["otsu", "triangle", "li", "isodata"])
def test_two_parts_are_told_apart(dtype: str, method: str) -> None:
    """Of every type: what is clearly brighter is covered, however it is chunked."""
    import dask.array as da

    rng = np.random.default_rng(0)
    bright = np.zeros((60, 50), bool)
    bright[20:40, 10:30] = True
    noise = rng.uniform(0, 20, bright.shape)
    pixels = bright if dtype == "bool" else (noise + np.where(bright, 100, 0)).astype(dtype)
    if dtype == "int16":
        pixels -= 60
    for array in (pixels, da.from_array(pixels, chunks=(17, 20))):
        for mask, expected in (
            ({"auto": method}, bright),
            ({"auto": method, "foreground": "dark"}, ~bright),
            ({"auto": method, "foreground": "auto"}, bright),
        ):
            np.testing.assert_array_equal(pixels_of(resolved(opened(array, mask))), expected)


def test_a_threshold_is_that_of_a_coarse_level(tmp_path: Path) -> None:
    """The level is chosen, or named; channels too; and the mask lies on the level's pixels."""
    pixels = np.zeros((2, 64, 64), "uint16")
    pixels[1, 16:48, 8:40] = 500
    pixels[0] = 7
    url = pyramid(tmp_path / "a.zarr", pixels, (1, 2, 4))
    for level, scale in ((None, 1), (1, 2), (2, 4), ("s4", 4), (0, 1)):
        for channel in (None, 1):
            asked = {"auto": "otsu", "level": level, "channel": channel}
            image = opened(url, asked)
            found = resolved(image)
            assert found.mask is not None
            assert found.mask.alignment.scale == (Fraction(scale),) * 2
            np.testing.assert_array_equal(pixels_of(found), pixels[1, ::scale, ::scale] > 0)
            with pytest.raises(PlanError, match="make the plan first"):
                pixels_of(image)
    [image] = patchloom.open_images(url, mask={"auto": "li"}, level=1)
    found = resolved(pickle.loads(pickle.dumps(Image.from_document(image.to_document()))))
    np.testing.assert_array_equal(pixels_of(found), pixels[1, ::2, ::2] > 0)
    assert resolved(found) is found
    with pytest.raises(ConfigError, match=r"got 5 for 'a', which has \['0 \(2x64x64\)', "):
        resolved(opened(url, {"auto": "otsu", "level": 5}))
    with pytest.raises(ConfigError, match="the opened one or a coarser one"):
        resolved(patchloom.open_images(url, mask={"auto": "li", "level": 0}, level=1)[0])


def test_the_level_is_coarse_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finest of small planes; never a huge one that nobody named."""
    pixels = np.zeros((1, 64, 64), "uint16")
    pixels[0, :20] = 9
    url = pyramid(tmp_path / "a.zarr", pixels, (1, 2, 4))
    monkeypatch.setattr("patchloom.run.thresholds._PLANE", 32 * 32)
    found = resolved(opened(url, {"auto": "otsu"}))
    assert found.mask is not None
    assert found.mask.image.shape == (32, 32)
    monkeypatch.setattr("patchloom.run.thresholds._PLANE", 10)
    found = resolved(opened(url, {"auto": "otsu"}))
    assert found.mask is not None
    assert found.mask.image.shape == (16, 16)
    monkeypatch.setattr("patchloom.run.thresholds._LARGEST", 10)
    with pytest.raises(ConfigError, match="level: 2"):
        resolved(opened(url, {"auto": "otsu"}))


def test_saturation_finds_stained_tissue() -> None:
    """As bright as its surroundings, but coloured; a transparent channel plays no part."""
    tissue = np.zeros((40, 40), bool)
    tissue[5:30, 10:35] = True
    rgba = np.full((40, 40, 4), 200, "uint8")
    rgba[tissue, :3] = (230, 140, 230)
    rgba[..., 3] = np.arange(40)
    for pixels in (rgba, rgba[..., :3]):
        image = opened(pixels, {"auto": "otsu", "of": "saturation"}, axes="YXC")
        np.testing.assert_array_equal(mask_of(resolved(image)), tissue)


def test_holes_and_small_pieces() -> None:
    """Plane by plane: what is enclosed is filled, what is small is left out."""
    pixels = np.zeros((2, 30, 30), "uint8")
    pixels[0, 5:20, 5:20] = 9
    pixels[0, 8:11, 9:12] = 0
    pixels[:, 25, 25:27] = 9
    image = resolved(
        opened(pixels, {"auto": "otsu", "fill_holes": True, "min_size": 3}, axes="ZYX")
    )
    expected = np.zeros(pixels.shape, bool)
    expected[0, 5:20, 5:20] = True
    np.testing.assert_array_equal(mask_of(image), expected)


@pytest.mark.parametrize("side", ["bright", "dark", "auto"])
def test_an_image_of_one_value_has_no_foreground(side: str) -> None:
    """There is nothing to tell apart, not even with pixels that are no number."""
    for pixels in (np.full((9, 9), 3, "uint8"), np.full((9, 9), np.nan, "float32")):
        image = resolved(opened(pixels, {"auto": "otsu", "foreground": side}))
        assert not pixels_of(image).any()
    mixed = np.full((9, 9), np.nan, "float32")
    mixed[2], mixed[3] = 1, 2
    found = pixels_of(resolved(opened(mixed, {"auto": "otsu", "foreground": side})))
    assert found.sum() == 9
    assert not found[np.isnan(mixed)].any()


def test_the_threshold_is_kept() -> None:
    """A value, with its channel: what a plan saves."""
    pixels = np.array([[0, 0, 10, 200, 210]], "uint8")
    image = resolved(opened(np.repeat(pixels, 5, 0), {"auto": "percentile", "percentile": 40}))
    assert image.mask is not None
    source = image.mask.image.source
    assert isinstance(source, DerivedSource)
    assert source.rule == ThresholdRule("brightness", None, 0, True)


# --- How they are given ---------------------------------------------------------------------


def test_kinds_per_image(tmp_path: Path) -> None:
    """For all, in lists, by image id, and inside a kind; an image may be called like a kind."""
    pixels = [np.full((8, 8), k, "uint8") for k in range(3)]
    ids = ["labels", "b", "c"]
    ones = np.ones((8, 8), "uint8")
    for mask, covered in (
        ([{"nodata": 0}, {"nodata": 1}, None], (0, 0, None)),
        ({"labels": {"nodata": 0}, "b": ones, "c": {"labels": ones, "classes": [2]}}, (0, 1, 0)),
        ({"labels": [ones, None, ones * 2], "classes": [1]}, (1, None, 0)),
        ({"labels": {"labels": ones, "b": ones * 2, "c": ones}, "classes": [2]}, (0, 1, 0)),
        ({"nodata": 2}, (1, 1, 0)),
    ):
        images = patchloom.open_images(pixels, ids=ids, mask=mask)
        found = [None if i.mask is None else pixels_of(i).mean() for i in images]
        assert tuple(found) == covered
    with pytest.raises(IdentityError, match="one entry for each image id"):
        patchloom.open_images(pixels, ids=ids, mask={"labels": {"a": ones}})


def test_a_job_with_a_mask(tmp_path: Path) -> None:
    """The same words in YAML; a wrong one names its line and never a secret."""
    pixels = np.zeros((16, 16), "uint8")
    pixels[:8, :8] = 1
    url = stored(tmp_path / "a.zarr", pixels, (8, 8))
    base = (
        f"images: {url}\noutput: {tmp_path}/o.zarr\npatching: {{name: sequential, patch_size: 8}}\n"
    )
    file = tmp_path / "job.yaml"
    (tmp_path / "a.geojson").write_text(json.dumps(geojson([box(0, 0, 16, 8)])))
    for mask, n in (
        ("{nodata: 0}", 1),
        (f"{{polygons: '{tmp_path}/{{stem}}.geojson'}}", 2),
        ("{a: {nodata: 0}}", 1),
    ):
        file.write_text(f"{base}min_coverage: 1.0\nmask: {mask}\n")
        assert plan_of(load_job(file)).n_patches == n
    for mask, said in (
        (
            "{auto: otsu, lvl: 3}",
            "line 4: 'mask' is wrong: unknown key 'lvl' in a mask of kind 'auto'",
        ),
        (
            "{auto: otso}",
            "line 4: 'mask' is wrong: 'auto' of a mask of kind 'auto' should be 'otsu',",
        ),
        ("{a: 5}", "line 4: 'mask.a' should be text, got 5"),
    ):
        file.write_text(f"{base}mask: {mask}\n")
        with pytest.raises(ConfigError) as caught:
            load_job(file)
        assert said in str(caught.value)
    file.write_text(f"{base}mask: {{polygons: ['s3://me:HUSH@b/p.json']}}\n")
    assert "HUSH" not in repr(load_job(file))


@pytest.mark.parametrize(
    ("mask", "error", "said"),
    [
        ({"auto": "otsu", "nodata": 0}, ConfigError, "one kind out of"),
        ({"auto": "otsu", "levl": 0}, ConfigError, "unknown key 'levl'"),
        ({"auto": "percentile"}, ConfigError, "if auto is 'percentile'"),
        ({"auto": "otsu", "percentile": 3}, ConfigError, "and only then"),
        ({"auto": "otsu", "channel": 1}, ConfigError, "from 0 to 0"),
        ({"auto": "otsu", "channel": "DAPI"}, ConfigError, r"a name out of \[\]"),
        ({"auto": "otsu", "of": "saturation"}, ConfigError, "red, green and blue"),
        ({"nodata": 256}, ConfigError, "a value that a pixel can have"),
        ({"nodata": 0.5}, ConfigError, "a value that a pixel can have"),
        ({"nodata": "nan"}, ConfigError, "only floats are not a number"),
        ({"nodata": []}, ConfigError, "at least one value"),
        ({"labels": np.ones((8, 8)), "classes": [1]}, ConfigError, "a label image of integers"),
        ({"labels": np.ones((8, 8), int), "classes": ["a"]}, ConfigError, "a whole number"),
        ({"polygons": "nowhere.geojson"}, SourceMissingError, "no file was found"),
        ({"polygons": {"type": "Circle"}}, SourceError, "no 'Circle'"),
        ({"polygons": {"type": "Polygon"}}, SourceError, "KeyError"),
        ({"polygons": {"y": [1], "x": [1]}}, ConfigError, r"\['polygon_id'\] are missing"),
        ({"boxes": {"y0": [1], "x0": [1], "y1": [0], "x1": [2]}}, SourceError, "a box ends"),
        ({"polygons": geojson()}, SourceError, "'image-0' has none; missing: empty"),
        (
            {"polygons": geojson([box(0, 0, 1, 1)], kind="T"), "where": {"kin": "T"}},
            ConfigError,
            r"got 'kin', but those of the mapping have \['kind'\]",
        ),
        (
            {"polygons": geojson([box(0, 0, 1, 1)], kind="T"), "where": {"kind": "B"}},
            SourceError,
            "every image has outlines with",
        ),
    ],
)
def test_what_is_no_mask_is_refused(mask: Any, error: type[Exception], said: str) -> None:
    """Each error says what is wrong."""
    with pytest.raises(error, match=said):
        opened(np.zeros((8, 8), "uint8"), mask)


def test_an_image_without_outlines_may_be_empty() -> None:
    """If it is said so; classes of QuPath are found by their path."""
    pixels = np.zeros((8, 8), "uint8")
    features = geojson([box(0, 0, 4, 4)], classification=[{"name": "Tumor"}])
    for name, n in (("Tumor", 16), ("Stroma", 0)):
        where = {"classification.name": ["x", name]}
        mask = {"polygons": features, "where": where, "missing": "empty"}
        assert mask_of(opened(pixels, mask)).sum() == n
