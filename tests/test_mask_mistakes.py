"""Masks of unusual arrays, tables and names: covered as they should be, or refused in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import patchloom
from patchloom.errors import (
    ConfigError,
    IdentityError,
    PatchloomError,
    PlanError,
    SourceError,
    SourceMissingError,
)
from patchloom.location import Location
from patchloom.run.parts import piece_digest
from patchloom.run.thresholds import resolve, resolved
from patchloom.run.whereabouts import whereabouts
from patchloom.sources import thresholds
from patchloom.sources.zarrs import ZarrSource
from tests.test_levels import pyramid
from tests.test_mask_kinds import box, geojson, mask_of, opened, pixels_of, stored
from tests.test_mask_survey import selection_of

PATCHING = {"name": "sequential", "patch_size": 16}


def test_one_table_is_asked_twice() -> None:
    """Each image gets the outlines that it asks for."""
    table = {"y0": [0, 32], "x0": [0, 32], "y1": [16, 48], "x1": [16, 48], "c": ["a", "b"]}
    masks = [{"boxes": table, "where": {"c": name}} for name in "ab"]
    images = patchloom.open_images([np.zeros((48, 48), "uint8")] * 2, mask=masks)
    for image, first in zip(images, (0, 32), strict=True):
        expected = np.zeros((48, 48), bool)
        expected[first : first + 16, first : first + 16] = True
        np.testing.assert_array_equal(pixels_of(image), expected)


@pytest.mark.parametrize("axes", ["TZYX", "ZTYX", "TYXZ", "YXTZ", "XZYT"])
def test_planes_are_mended_in_every_order(axes: str) -> None:
    """Holes and small pieces, however the axes are stored."""
    pixels = np.zeros((2, 3, 20, 20), "uint8")
    pixels[:, :, 4:14, 4:14] = 9
    pixels[0, 1, 7:9, 7:9] = 0
    pixels[1, 2, 18, 18] = 9
    expected = np.zeros(pixels.shape, bool)
    expected[:, :, 4:14, 4:14] = True
    order = ["TZYX".index(a) for a in axes]
    asked = {"auto": "otsu", "fill_holes": True, "min_size": 3}
    image = resolved(opened(pixels.transpose(order), asked, axes=axes))
    np.testing.assert_array_equal(mask_of(image), expected.transpose(order))


def test_labels_have_one_channel() -> None:
    """With classes or without."""
    labels = np.zeros((2, 16, 16), "uint8")
    for more in ({}, {"classes": [1]}):
        with pytest.raises(ConfigError, match="a label image has one channel, got 2"):
            opened(np.zeros((2, 16, 16), "uint8"), {"labels": labels, **more}, axes="CYX")


@pytest.mark.parametrize("foreground", ["bright", "dark", "auto"])
@pytest.mark.parametrize("scale", [1.0, 1e308])
def test_saturation_of_any_floats(foreground: str, scale: float) -> None:
    """What is below 0 counts as 0; what is not finite is never covered."""
    pixels = np.full((20, 20, 3), 0.8)
    pixels[5:15, 5:15] = (0.9, 0.2, 0.9)
    pixels[6, 6] = (0.9, -0.1, 0.9)
    pixels[0, :3] = [(np.nan, 1, 1), (1, np.inf, 1), (1, 1, -np.inf)]
    coloured = np.zeros((20, 20), bool)
    coloured[5:15, 5:15] = True
    expected = coloured if foreground != "dark" else ~coloured
    expected[0, :3] = False
    asked = {"auto": "otsu", "of": "saturation", "foreground": foreground}
    image = resolved(opened(pixels * scale, asked, axes="YXC"))
    np.testing.assert_array_equal(mask_of(image), expected)


@pytest.mark.parametrize("dtype", ["uint64", "int64"])
@pytest.mark.parametrize("base", [0, 2**60, 2**63 - 2**40])
@pytest.mark.parametrize("step", [3, 2**30])
def test_integers_of_64_bits(dtype: str, base: int, step: int) -> None:
    """One channel is told apart exactly, several as floats."""
    bright = np.zeros((20, 20), bool)
    bright[3:9, 4:12] = True
    pixels = bright.astype(dtype) * np.dtype(dtype).type(step) + np.dtype(dtype).type(base)
    image = resolved(opened(pixels, {"auto": "otsu"}))
    np.testing.assert_array_equal(mask_of(image), bright)
    image = resolved(opened(np.stack([pixels, pixels]), {"auto": "otsu"}, axes="CYX"))
    if base and step == 3:
        assert not mask_of(image).any()  # as floats, their sums are one value
    else:
        np.testing.assert_array_equal(mask_of(image), bright)
    top = resolved(opened(~pixels if dtype == "uint64" else pixels, {"auto": "li"}))
    assert pixels_of(top).sum() in (bright.sum(), (~bright).sum())


@pytest.mark.parametrize("method", ["otsu", "triangle", "li", "isodata"])
def test_floats_up_to_the_largest(method: str) -> None:
    """Differences and sums that leave the range."""
    bright = np.zeros((20, 20), bool)
    bright[3:9, 4:12] = True
    pixels = np.where(bright, 1.7e308, -1.7e308)
    image = resolved(opened(pixels, {"auto": method}))
    np.testing.assert_array_equal(mask_of(image), bright)
    pixels[0, 0] = 0  # sums of two are infinite elsewhere, and lie on neither side below
    pixels = np.stack([pixels, pixels])
    pixels[:, 0, 1] = 1
    image = resolved(opened(pixels, {"auto": method}, axes="CYX"))
    assert pixels_of(image)[bright].all()


def test_bins_end_below_the_largest_float() -> None:
    """The value of the last split is finite, and the bins are those of the plain formula."""
    wide = thresholds.Histogram(-1.7e308, 3.4e304, np.ones(10_000, np.int64))
    assert np.isfinite(wide.value(9_998))
    plain = thresholds.Histogram(-0.3, 0.1, np.ones(10, np.int64))
    assert [plain.value(k) for k in range(9)] == [-0.3 + (k + 1) * 0.1 for k in range(9)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "is no JSON"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1%s, 0], [1, 1]]]}' % ("0" * 400), "Overf"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1e300, 0], [1, 1]]]}', "below 1e+100"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1e999, 0], [1, 1]]]}', "below 1e+100"),
    ],
)
def test_geojson_that_is_none(text: str, said: str, tmp_path: Path) -> None:
    """Deep and huge ones are refused in words."""
    file = tmp_path / "a.geojson"
    file.write_text(text)
    with pytest.raises(SourceError) as caught:
        opened(np.zeros((8, 8), "uint8"), {"polygons": str(file)})
    assert said in str(caught.value)


def test_geojson_that_is_deep() -> None:
    """A mapping of itself, too."""
    deep: Any = geojson([box(0, 0, 4, 4)])
    for _ in range(5_000):
        deep = {"type": "FeatureCollection", "features": [deep]}
    with pytest.raises(SourceError, match="RecursionError"):
        opened(np.zeros((8, 8), "uint8"), {"polygons": deep})


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float64", 10**400),
        ("float32", -1.7976931348623157e308),
        ("float16", 1e30),
        ("float32", [0, 1e39]),
    ],
)
def test_missing_data_is_a_value_of_the_floats(dtype: str, value: Any) -> None:
    """What the pixels cannot hold is refused, with what they can."""
    with pytest.raises(ConfigError, match="a value that a pixel can have") as caught:
        opened(np.zeros((8, 8), dtype), {"nodata": value})
    assert repr(float(np.finfo(dtype).max)) in str(caught.value)


def test_missing_data_at_the_end_of_the_range() -> None:
    """The lowest float32 as it is often written, and infinities."""
    pixels = np.zeros((4, 4), "float32")
    pixels[0], pixels[1] = np.finfo("float32").min, np.inf
    for value, row in ((-3.40282347e38, 0), (np.inf, 1)):
        assert pixels_of(opened(pixels, {"nodata": value})).sum(1).tolist() == [
            0 if k == row else 4 for k in range(4)
        ]


def test_mistyped_ids_of_outlines_are_named(tmp_path: Path) -> None:
    """A mapping of documents, files or tables is one of images."""
    one: Any = geojson([box(0, 0, 16, 16)])
    (tmp_path / "a.geojson").write_text(json.dumps(one))
    table = {"y0": [0], "x0": [0], "y1": [4], "x1": [4]}
    pixels = [np.zeros((32, 32), "uint8")] * 2
    file = tmp_path / "a.geojson"
    for mask in (
        {"polygons": {"a": one, "bb": one}},
        {"polygons": {"a": file, "bb": str(file)}},
        {"polygons": {"a": one}},
        {"boxes": {"a": table, "bb": table}},
    ):
        with pytest.raises(IdentityError, match="one entry for each image id"):
            patchloom.open_images(pixels, ids=["a", "b"], mask=mask)
    images = patchloom.open_images(pixels, ids=["a", "b"], mask={"polygons": {"a": one, "b": None}})
    assert [image.mask is None for image in images] == [False, True]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "..", "s3://b/x", "a\\..\\x"])
@pytest.mark.parametrize("role", ["mask", "labels", "target"])
def test_an_id_stays_in_the_folder(name: str, role: str, tmp_path: Path) -> None:
    """No id leads out of the folder of a pattern."""
    np.save(tmp_path / "x.npy", np.zeros((8, 8), "uint8"))
    (tmp_path / "in").mkdir()
    for pattern in (f"{tmp_path}/in/{{stem}}.zarr", "{stem}.zarr"):
        given: dict[str, Any] = {role: pattern}
        with pytest.raises(IdentityError, match="stays in the folder"):
            patchloom.open_images(np.zeros((8, 8), "uint8"), ids=[name], **given)


def test_no_id_is_a_home(tmp_path: Path) -> None:
    """A tilde in front is a folder somewhere else; inside a folder it is a name."""
    for pattern, error in (("{stem}.zarr", IdentityError), (f"{tmp_path}/{{stem}}.zarr", None)):
        with pytest.raises(error or SourceMissingError):
            patchloom.open_images(np.zeros((8, 8), "uint8"), ids=["~/x"], mask=pattern)


# --- What is read, and kept -----------------------------------------------------------------


def test_a_plan_counts_what_thresholds_read(tmp_path: Path) -> None:
    """Each chunk of the level once, or twice where values are no small whole numbers."""
    bright = np.zeros((64, 64), bool)
    bright[16:48, 8:40] = True
    url = pyramid(tmp_path / "p.zarr", np.where(bright, 9, 0)[None].astype("uint16"), (1, 2))
    for pixels, mask, level, times in (
        (url, {"auto": "otsu", "level": 1}, 1, 1),
        (stored(tmp_path / "f.zarr", np.where(bright, 9.5, 0), (16, 16)), {"auto": "li"}, 0, 2),
        (bright.astype("int32") * 2**25, {"auto": "otsu"}, 0, 2),
    ):
        image = opened(pixels, mask)
        found, reads = resolve(image)
        array = image if level == 0 else image.levels[level - 1].image
        assert reads.chunks == times * array.grid.n_chunks
        assert reads.nbytes > 0
        plain = patchloom.plan(found, PATCHING, min_coverage=0.5)
        whole = patchloom.plan(image, PATCHING, min_coverage=0.5)
        assert whole.planning_reads == plain.planning_reads + reads.chunks
        assert whole.fingerprint == plain.fingerprint
        assert resolve(found)[1].chunks == 0


def test_thresholds_are_kept(tmp_path: Path) -> None:
    """In the folder of a survey; what is damaged or else is found anew."""
    rng = np.random.default_rng(0)
    urls, held = [], str(tmp_path / "survey")
    for k in range(3):
        pixels = rng.normal(0, 1, (64, 64)) + np.where(np.arange(64) < 32, 0, 20)
        urls.append(stored(tmp_path / f"{k}.zarr", pixels, (16, 16)))

    def planned(**more: Any) -> patchloom.Plan:
        images = patchloom.open_images(urls, mask={"auto": "otsu", **more})
        return patchloom.plan(images, PATCHING, min_coverage=0.5, survey=held)

    first = planned()
    files = sorted((tmp_path / "survey/thresholds").iterdir())
    assert len(files) == 3
    again = planned()
    assert (first.planning_reads > 0, again.planning_reads) == (True, 0)
    assert again.fingerprint == first.fingerprint
    whole = [file.read_bytes() for file in files]
    other = json.loads(whole[0])
    other["rule"]["threshold"] += 1
    for damaged in (b"", b"{", b"[]", b"[" * 100_000, whole[1], json.dumps(other).encode()):
        files[0].write_bytes(damaged)
        mended = planned()
        assert mended.fingerprint == first.fingerprint
        assert mended.planning_reads == 2 * 16
        assert files[0].read_bytes() == whole[0]
    assert planned(foreground="dark").planning_reads > 0
    assert len([*(tmp_path / "survey/thresholds").iterdir()]) == 6
    image = opened(np.eye(16), {"auto": "otsu"})
    patchloom.plan(image, PATCHING, min_coverage=0.5, survey=held)
    assert len([*(tmp_path / "survey/thresholds").iterdir()]) == 6


def test_a_survey_that_cannot_be_reached(tmp_path: Path) -> None:
    """It is said so, without the options."""
    url = stored(tmp_path / "a.zarr", np.eye(64), (16, 16))
    image = opened(url, {"auto": "otsu"})
    with pytest.raises(PatchloomError) as caught:
        patchloom.plan(
            image, PATCHING, survey="nowhere://me:HUSH@there", storage_options={"key": "HUSH"}
        )
    assert "HUSH" not in str(caught.value)


def test_a_query_is_part_of_a_place(tmp_path: Path) -> None:
    """Masks whose URLs differ in their query alone are two; no secret is told."""
    url = stored(tmp_path / "a.zarr", np.eye(16, dtype="uint8"), (16, 16))
    found = set()
    for kind in ("plain", "derived", "auto"):
        for query in ("", "?version=1&sig=HUSH", "?version=2&sig=HUSH"):
            place = Location(f"memory://b/a.zarr{query}")
            made: Any = {"plain": None, "derived": {"nodata": 0}, "auto": {"auto": "li"}}[kind]
            image = opened(url, made)
            source: Any = replace(cast("ZarrSource", image.source), location=place)
            if image.mask is not None:
                of: Any = image.mask.image.source
                source = of.filled(source)
            where = whereabouts(source)
            found.add(where)
            assert len(where) == 32
            assert "HUSH" not in where
    assert len(found) == 3
    assert whereabouts(opened(np.eye(8), None).source) == ""


def test_pieces_of_masks_are_told_apart_by_their_query(tmp_path: Path) -> None:
    """As pieces of a survey, too."""
    url = stored(tmp_path / "a.zarr", np.eye(16, dtype="uint8"), (16, 16))
    image = opened(url, url)
    names = set()
    for query in ("", "?version=1", "?version=2"):
        assert image.mask is not None
        location = Location(f"memory://b/a.zarr{query}")
        source = replace(cast("ZarrSource", image.mask.image.source), location=location)
        mask = replace(image.mask, image=replace(image.mask.image, source=source))
        other = image.with_role("mask", mask)
        names.add(piece_digest(selection_of([other], PATCHING), 0, other))
    assert len(names) == 3


@pytest.mark.parametrize("kind", ["boxes", "polygons"])
def test_what_images_share_is_saved_once(kind: str, tmp_path: Path) -> None:
    """Outlines of many images are one value, before a plan is saved and after it is loaded."""
    rng = np.random.default_rng(0)
    low = rng.integers(0, 28, (500, 2)).astype(float)
    table: Any = {"y0": low[:, 0], "x0": low[:, 1], "y1": low[:, 0] + 1, "x1": low[:, 1] + 1}
    if kind == "polygons":
        table = geojson(*[[box(y, x, y + 1, x + 1)] for y, x in low])
    own = {"y0": [0], "x0": [0], "y1": [4], "x1": [4]}
    url = stored(tmp_path / "a.zarr", np.zeros((32, 32), "uint8"), (16, 16))

    def planned(n: int) -> patchloom.Plan:
        masks: list[Any] = [{kind: table}] * n + [{"boxes": own}, None]
        ids = [f"i{k}" for k in range(n + 2)]
        images = patchloom.open_images([url] * (n + 2), ids=ids, mask=masks)
        return patchloom.plan(images, PATCHING)

    sizes = []
    for n in (1, 21):
        plan = planned(n)
        plan.save(str(tmp_path / str(n)))
        sizes.append((tmp_path / str(n) / "plan.json").stat().st_size)
        loaded = patchloom.Plan.load(str(tmp_path / str(n)))
        assert loaded.fingerprint == plan.fingerprint
        for images in (plan.images, loaded.images):
            sources: list[Any] = [i.mask.image.source for i in images if i.mask is not None]
            assert len({id(source.held) for source in sources}) == 2
        for before, after in zip(plan.images[:-1], loaded.images, strict=False):
            np.testing.assert_array_equal(pixels_of(after), pixels_of(before))
    assert sizes[1] - sizes[0] < 20 * 5_000 < sizes[0] * 20

    file = tmp_path / "1" / "plan.json"
    document = json.loads(file.read_text())
    names = sorted(document["held"], key=lambda name: len(str(document["held"][name])))
    held = document["held"]
    for wrong in ({}, {names[0]: held[names[1]], names[1]: held[names[0]]}):
        file.write_text(json.dumps({**document, "held": wrong}))
        with pytest.raises(PlanError, match="damaged"):
            patchloom.Plan.load(str(tmp_path / "1"))


def test_outlines_are_not_huge() -> None:
    """Numbers that cannot be computed with are refused in tables, too."""
    table = {"y0": [0], "x0": [0], "y1": [1e308], "x1": [4]}
    with pytest.raises(SourceError, match="below 1e"):
        opened(np.zeros((8, 8), "uint8"), {"boxes": table})
