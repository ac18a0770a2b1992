"""OME-Zarr: plates, wells, series, levels and transforms, and what is refused."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import patchloom
from patchloom.errors import (
    IdentityError,
    NotAnArrayError,
    SourceError,
    SourceMissingError,
)
from patchloom.sources.transforms import Transform, compose
from tests import ome
from tests.servers.http import HttpServer

WELLS = {"A/1": 2, "A/2": 1, "B/10": 3}
PIXELS = np.arange(40 * 48, dtype="uint16").reshape(40, 48)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the OME metadata of a group in place."""
    v3 = path / "zarr.json"
    document = json.loads((v3 if v3.exists() else path / ".zattrs").read_text())
    change(document["attributes"]["ome"] if v3.exists() else document)
    (v3 if v3.exists() else path / ".zattrs").write_text(json.dumps(document))


# --- Plates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ome.VERSIONS)
def test_a_plate_gives_one_image_a_field(version: str, tmp_path: Path) -> None:
    """With its own pixels, and where it lies as columns."""
    fields = ome.plate(tmp_path / "plate.ome.zarr", version, WELLS)
    images = patchloom.open_images(tmp_path / "plate.ome.zarr")
    assert [image.id for image in images] == [*fields]
    for image in images:
        well, _, field = image.id.rpartition("/")
        row, column = well.split("/")
        assert image.metadata == {
            "well": well,
            "well_row": row,
            "well_column": column,
            "field": field,
        }
        np.testing.assert_array_equal(image.read([0, 0], [20, 24]), fields[image.id])
        assert image.spacing == {"y": 0.5, "x": 0.5}
    assert pickle.loads(pickle.dumps(images))[0].id == "A/1/0"


@pytest.mark.parametrize("version", ome.VERSIONS)
def test_a_well_gives_its_fields(version: str, tmp_path: Path) -> None:
    """Called as when the plate is opened."""
    fields = ome.plate(tmp_path / "plate.ome.zarr", version, WELLS, acquisitions=2)
    whole = {i.id: i for i in patchloom.open_images(tmp_path / "plate.ome.zarr")}
    images = patchloom.open_images(tmp_path / "plate.ome.zarr" / "B" / "10")
    assert [image.id for image in images] == ["B/10/0", "B/10/1", "B/10/2"]
    for image in images:
        assert image.metadata == whole[image.id].metadata
        np.testing.assert_array_equal(image.data, fields[image.id])
    assert [image.metadata["acquisition"] for image in images] == [0, 1, 0]


def test_a_plate_becomes_patches_with_columns(tmp_path: Path) -> None:
    """The whole walk: wells are columns of the manifest, and what a split goes by."""
    fields = ome.plate(tmp_path / "plate.ome.zarr", "0.5", WELLS)
    images = patchloom.open_images(tmp_path / "plate.ome.zarr", sample={"plate": "p1"})
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [10, 12]})
    patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    store = patchloom.open_patches(tmp_path / "out.zarr")
    rows = store.manifest.to_pylist()
    assert len(rows) == 4 * len(fields)
    for row in rows:
        assert row["image_id"] == f"{row['well']}/{row['field']}"
        assert row["plate"] == "p1"
        assert (store[row["row"]] == fields[row["image_id"]][0, 0]).all()


def test_fields_of_two_plates_have_ids_of_their_own(tmp_path: Path) -> None:
    """Beside others, the plate's name stands before them; ids= names fields as well."""
    for name in ("p1", "p2"):
        ome.plate(tmp_path / f"{name}.ome.zarr", "0.4", {"A/1": 1})
    images = patchloom.open_images(tmp_path / "*.ome.zarr")
    assert [image.id for image in images] == ["p1/A/1/0", "p2/A/1/0"]
    images = patchloom.open_images(tmp_path / "p1.ome.zarr", ids=["only"])
    assert [image.id for image in images] == ["only"]
    with pytest.raises(IdentityError, match="for 1 images"):
        patchloom.open_images(tmp_path / "p1.ome.zarr", ids=["a", "b"])


def test_ids_of_fields_find_masks_by_pattern(tmp_path: Path) -> None:
    """``{stem}`` of a field is a path below a folder; a label group is found in its field."""
    ome.plate(tmp_path / "plate.ome.zarr", "0.5", {"A/1": 2})
    for field in ("0", "1"):
        ome.image(tmp_path / "masks" / "A/1" / field, "0.5", np.ones((20, 24), bool))
        labels = tmp_path / "plate.ome.zarr/A/1" / field / "labels"
        ome.group(labels, "0.5", {"labels": ["nuclei"]})
        ome.image(labels / "nuclei", "0.5", np.full((20, 24), int(field) + 1, "uint8"))
    images = patchloom.open_images(
        tmp_path / "plate.ome.zarr", mask=f"{tmp_path}/masks/{{stem}}", labels="nuclei"
    )
    for k, image in enumerate(images):
        assert image.mask is not None
        assert image.labels is not None
        assert (image.labels.image.read([0, 0], [20, 24]) == k + 1).all()


@pytest.mark.parametrize("version", ome.VERSIONS)
def test_what_a_plate_lists_and_lacks_is_named(version: str, tmp_path: Path) -> None:
    """Wells, fields and arrays alike: an error says which, and how many of how many."""
    path = tmp_path / "plate.ome.zarr"
    ome.plate(path, version, WELLS)
    shutil.rmtree(path / "B/10/1/0")
    with pytest.raises(SourceMissingError, match=r"array.*lacks 1 of 6: \['B/10/1/0'\]"):
        patchloom.open_images(path)
    shutil.rmtree(path / "B/10/1")
    with pytest.raises(SourceMissingError, match=r"image.*lacks 1 of 6: \['B/10/1'\]"):
        patchloom.open_images(path)
    with pytest.raises(SourceMissingError, match=r"image.*lacks 1 of 3: \['1'\]"):
        patchloom.open_images(path / "B/10")
    shutil.rmtree(path / "A")
    with pytest.raises(SourceMissingError, match=r"well.*lacks 2 of 3: \['A/1', 'A/2'\]"):
        patchloom.open_images(path)
    images = patchloom.open_images([path / "B/10/0", path / "B/10/2"])
    assert [image.id for image in images] == ["0", "2"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o: o["plate"].update(wells=[]), "at least one well"),
        (lambda o: o["plate"]["wells"].append(o["plate"]["wells"][0]), "every well once"),
        (lambda o: o["plate"]["wells"][0].update(path="../x"), "by a path below it"),
        (lambda o: o["plate"]["wells"][0].update(path=""), "by a path below it"),
        (lambda o: o["plate"]["wells"][0].update(rowIndex=7), "cannot be read: IndexError"),
        (lambda o: o["plate"]["wells"][0].update(rowIndex=-1), "cannot be read: IndexError"),
        (lambda o: o["plate"].update(wells=3), "cannot be read: TypeError"),
        (lambda o: o["plate"]["wells"][0].pop("path"), "cannot be read: KeyError"),
        (lambda o: o["plate"]["acquisitions"].pop(), "of an acquisition of its plate"),
    ],
)
def test_lies_of_a_plate_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    """Each with a sentence of ours."""
    path = tmp_path / "plate.ome.zarr"
    ome.plate(path, "0.5", WELLS, acquisitions=2)
    edit(path, change)
    with pytest.raises(SourceError, match=words):
        patchloom.open_images(path)


@pytest.mark.parametrize("version", ome.VERSIONS)
def test_a_plate_of_384_wells_is_opened_in_four_batches(
    version: str, tmp_path: Path, http_server: Callable[[Path], HttpServer]
) -> None:
    """One request for each document that stands there, and few for others, over HTTP."""
    wells = [f"{row}/{column}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)]
    path = tmp_path / "plate.ome.zarr"
    ome.plate(path, version, {"A/1": 1})
    for well in wells[1:]:
        shutil.copytree(path / "A/1", path / well)
    edit(path, lambda o: o.update(plate={"wells": [{"path": well} for well in wells]}))
    server = http_server(tmp_path)
    images = patchloom.open_images(server.url("plate.ome.zarr"))
    assert len(images) == 384
    found = [r.path for r in server.requests if r.status == 200]
    assert len(found) == len(set(found))
    # Zarr v2 keeps two documents a node, and a group or an array has but one of them.
    per_node = 1 if version == "0.5" else 2
    assert len(server.requests) <= per_node * (3 * 384) + 4
    assert not any("/c/" in path for path in found)


# --- bioformats2raw -------------------------------------------------------------------------

XML = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
<!-- <Image ID="none"> -->
<Image ID="Image:0" Name="a &lt;Image&gt;"><Pixels ID="Pixels:0"/></Image>
<Image ID="Image:1"><ImageRef ID="x"/></Image>
</OME>"""


def collection(path: Path, version: str, told: str) -> None:
    """Two series as bioformats2raw writes them, told of in one of its ways."""
    ome.group(path, version, {"bioformats2raw.layout": 3})
    names = ["0", "1"] if told != "names" else ["first", "second"]
    for k, name in enumerate(names):
        ome.image(path / name, version, np.full((8, 9), k, "uint8"))
    if told in ("series", "names"):
        ome.group(path / "OME", version, {"series": names})
    elif told == "xml":
        ome.group(path / "OME", version)
        (path / "OME/METADATA.ome.xml").write_text(XML)


@pytest.mark.parametrize("told", ["series", "names", "xml", "nothing"])
@pytest.mark.parametrize("version", ome.VERSIONS)
def test_a_collection_gives_one_image_a_series(version: str, told: str, tmp_path: Path) -> None:
    """As a list names them, else by the OME-XML, else 0, 1, ..."""
    collection(tmp_path / "scan.ome.zarr", version, told)
    images = patchloom.open_images(tmp_path / "scan.ome.zarr")
    names = ["first", "second"] if told == "names" else ["0", "1"]
    assert [image.id for image in images] == [f"scan/{name}" for name in names]
    assert [int(image.read([0, 0], [1, 1]).item()) for image in images] == [0, 1]


def test_wrong_collections_are_refused(tmp_path: Path) -> None:
    """Another layout, a missing series, a path that leads out."""
    path = tmp_path / "scan.ome.zarr"
    collection(path, "0.5", "series")
    shutil.rmtree(path / "1")
    with pytest.raises(SourceMissingError, match=r"lacks 1 of 2: \['1'\]"):
        patchloom.open_images(path)
    edit(path / "OME", lambda o: o.update(series=["0", "../../x"]))
    with pytest.raises(SourceError, match="by a path below it"):
        patchloom.open_images(path)
    edit(path, lambda o: o.update({"bioformats2raw.layout": 4}))
    with pytest.raises(SourceError, match="version 3, got 4"):
        patchloom.open_images(path)
    shutil.rmtree(path / "OME")
    shutil.rmtree(path / "0")
    edit(path, lambda o: o.update({"bioformats2raw.layout": 3}))
    with pytest.raises(SourceMissingError, match="has neither"):
        patchloom.open_images(path)


# --- Levels ---------------------------------------------------------------------------------


def pyramid(path: Path, version: str, **more: Any) -> Path:
    """Two levels with scales."""
    told = ome.multiscale("yx", [(0.5, 0.25), (1.0, 0.5)], **more)
    ome.group(path, version, {"multiscales": [told]})
    ome.array(path / "0", version, PIXELS)
    ome.array(path / "1", version, PIXELS[::2, ::2])
    return path


@pytest.mark.parametrize("version", ome.VERSIONS)
def test_transforms_of_level_and_image_compose(version: str, tmp_path: Path) -> None:
    """First the level's own, in their order, then the image's: as matrices say."""
    path = pyramid(
        tmp_path / "a.ome.zarr",
        version,
        coordinateTransformations=[
            {"type": "scale", "scale": [2, 3]},
            {"type": "translation", "translation": [10, 20]},
        ],
    )
    edit(
        path,
        lambda o: o["multiscales"][0]["datasets"][1]["coordinateTransformations"].append(
            {"type": "translation", "translation": [0.25, 0.125]}
        ),
    )
    [fine] = patchloom.open_images(path)
    [coarse] = patchloom.open_images(path, level=1)
    assert fine.spacing == {"y": 1.0, "x": 0.75}
    assert fine.origin == {"y": 10.0, "x": 20.0}
    assert coarse.spacing == {"y": 2.0, "x": 1.5}
    assert coarse.origin == {"y": 10.5, "x": 20.375}
    assert len(fine.levels) == 1


@pytest.mark.parametrize(
    "scale", [0.0, -1.0, math.nan, math.inf, -math.inf, "NaN"], ids=lambda v: f"{v}"
)
@pytest.mark.parametrize("where", ["datasets", "image"])
def test_a_scale_is_above_0(scale: Any, where: str, tmp_path: Path) -> None:
    """Whether of the level or of the image: a sentence says which axis of which level."""
    path = pyramid(tmp_path / "a.ome.zarr", "0.5")
    wrong = [{"type": "scale", "scale": [1.0, scale]}]

    def change(told: dict[str, Any]) -> None:
        image = told["multiscales"][0]
        place = image["datasets"][1] if where == "datasets" else image
        place["coordinateTransformations"] = wrong

    edit(path, change)
    with pytest.raises(SourceError, match=r"finite and above 0.*along x of level"):
        patchloom.open_images(path)


def test_a_place_is_finite(tmp_path: Path) -> None:
    """A translation of NaN is refused, and a scale of time that nobody uses is not."""
    told = ome.multiscale("tyx", [(0.0, 1.0, 1.0)])
    path = ome.group(tmp_path / "a.zarr", "0.5", {"multiscales": [told]})
    ome.array(path / "0", "0.5", np.zeros((2, 8, 8), "uint8"))
    [image] = patchloom.open_images(path)
    assert image.spacing == {"y": 1.0, "x": 1.0}
    more = {"type": "translation", "translation": [0, math.nan, 0]}
    edit(
        path,
        lambda o: o["multiscales"][0]["datasets"][0]["coordinateTransformations"].append(more),
    )
    with pytest.raises(SourceError, match="translation of nan along y"):
        patchloom.open_images(path)


@pytest.mark.parametrize(
    "transform",
    [
        {"type": "rotation", "rotation": [[0, 1], [1, 0]]},
        {"type": "affine", "affine": [[1, 0.1, 0], [0, 1, 0]]},
        {"type": "mapAxis", "mapAxis": [1, 0]},
        {"type": "scale", "path": "numbers"},
        {"type": "displacements", "path": "field"},
        {"type": "unheard"},
        {"type": "scale", "scale": [1.0]},
        {"type": "scale", "scale": 2.0},
        {"type": "translation", "translation": [1.0, 1.0, 1.0]},
        {"type": "sequence", "transformations": [{"type": "rotation", "rotation": []}]},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["datasets", "image"])
def test_transforms_that_cannot_be_honoured_are_refused(
    transform: dict[str, Any], where: str, tmp_path: Path
) -> None:
    """Never left out in silence; the array itself can be opened."""
    path = pyramid(tmp_path / "a.ome.zarr", "0.4")

    def change(told: dict[str, Any]) -> None:
        image = told["multiscales"][0]
        place = image["datasets"][0] if where == "datasets" else image
        place["coordinateTransformations"] = [transform]

    edit(path, change)
    with pytest.raises(SourceError, match=r"scaled and moved along its axes|one number for each"):
        patchloom.open_images(path)
    [image] = patchloom.open_images(path / "0", axes="YX")
    assert image.spacing == {}


def test_coordinate_systems_of_later_versions_are_refused(tmp_path: Path) -> None:
    """OME-Zarr 0.6 tells places in another way."""
    path = pyramid(tmp_path / "a.ome.zarr", "0.5", coordinateSystems=[{"name": "world"}])
    with pytest.raises(SourceError, match="of a later version"):
        patchloom.open_images(path)


def test_without_transforms_nothing_is_known_of_places(tmp_path: Path) -> None:
    """Before 0.4 images had none: a spacing of 1 would be an invention."""
    told = {"axes": ["y", "x"], "datasets": [{"path": "0"}, {"path": "1"}]}
    path = ome.group(tmp_path / "a.zarr", "0.4", {"multiscales": [told]})
    ome.array(path / "0", "0.4", PIXELS)
    ome.array(path / "1", "0.4", PIXELS[::2, ::2])
    [image] = patchloom.open_images(path, mask=path / "1")
    assert (image.spacing, image.origin, image.unit) == ({}, {}, {})
    assert image.mask is not None
    assert [*image.mask.alignment.scale] == [2, 2]
    assert len(image.levels) == 1


@pytest.mark.parametrize("level", [2, -1, True, "2", "", "0/", 1.0, None], ids=repr)
def test_a_wrong_level_is_an_error(level: Any, tmp_path: Path) -> None:
    """Which says what levels there are; never is another one opened, or all."""
    path = pyramid(tmp_path / "a.ome.zarr", "0.5")
    with pytest.raises(SourceError, match=r"a path out of \['0', '1'\]"):
        patchloom.open_images(path, level=level)


def test_several_multiscales_are_ambiguous(tmp_path: Path) -> None:
    """Unless a level's path says which one is meant."""
    path = pyramid(tmp_path / "a.ome.zarr", "0.5")
    other = ome.multiscale("yx", [(4.0, 4.0)])
    other["datasets"][0]["path"] = "other"
    ome.array(path / "other", "0.5", PIXELS[:5, :6])
    edit(path, lambda o: o["multiscales"].append(other))
    for level in (0, 1, "2"):
        with pytest.raises(SourceError, match=r"2 multiscales.*\['0', '1'\], \['other'\]"):
            patchloom.open_images(path, level=level)
    [image] = patchloom.open_images(path, level="other")
    assert (image.shape, image.spacing) == ((5, 6), {"y": 4.0, "x": 4.0})
    [image] = patchloom.open_images(path, level="1")
    assert image.shape == (20, 24)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["datasets"].reverse(), "numbered from fine to coarse"),
        (lambda m: m["datasets"].append(m["datasets"][0]), "each once"),
        (lambda m: m["datasets"].clear(), "lists its levels"),
        (lambda m: m["datasets"][0].update(path="../0"), "stays inside"),
        (lambda m: m["datasets"][0].update(path=""), "stays inside"),
        (lambda m: m["datasets"][0].pop("path"), "KeyError"),
        (lambda m: m.pop("datasets"), "KeyError"),
        (lambda m: m.update(datasets=7), "TypeError"),
        (lambda m: m["datasets"][0].update(path="nowhere"), "listed in its metadata but is not"),
    ],
)
def test_lies_of_a_multiscale_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    """Each with a sentence of ours."""
    path = pyramid(tmp_path / "a.ome.zarr", "0.5")
    edit(path, lambda o: change(o["multiscales"][0]))
    with pytest.raises(SourceError, match=words):
        patchloom.open_images(path)


def test_a_level_that_is_a_group_is_no_array(tmp_path: Path) -> None:
    """What stands where a level should be is looked at."""
    path = pyramid(tmp_path / "a.ome.zarr", "0.5")
    shutil.rmtree(path / "1")
    ome.group(path / "1", "0.5")
    with pytest.raises(NotAnArrayError, match="is no array"):
        patchloom.open_images(path, level=1)


# --- Transforms -----------------------------------------------------------------------------

NUMBERS = st.floats(-100, 100).filter(lambda v: abs(v) > 1e-3)
STEPS = st.one_of(
    st.builds(lambda a, b: {"type": "scale", "scale": [a, b]}, NUMBERS, NUMBERS),
    st.builds(lambda a, b: {"type": "translation", "translation": [a, b]}, NUMBERS, NUMBERS),
    st.builds(
        lambda a, b, s, t: {"type": "affine", "affine": [[a, 0, s], [0, b, t]]},
        NUMBERS,
        NUMBERS,
        NUMBERS,
        NUMBERS,
    ),
    st.just({"type": "identity"}),
)


def matrix(step: dict[str, Any]) -> np.ndarray[Any, Any]:
    """One step as a matrix of homogeneous coordinates."""
    if step["type"] == "sequence":
        found = np.eye(3)
        for part in step["transformations"]:
            found = matrix(part) @ found
        return found
    found = np.eye(3)
    if step["type"] == "scale":
        found[0, 0], found[1, 1] = step["scale"]
    elif step["type"] == "translation":
        found[:2, 2] = step["translation"]
    elif step["type"] == "affine":
        found[:2] = step["affine"]
    return found


@given(
    st.lists(
        st.one_of(
            STEPS,
            st.builds(
                lambda parts: {"type": "sequence", "transformations": parts},
                st.lists(STEPS, max_size=3),
            ),
        ),
        max_size=4,
    )
)
def test_composed_transforms_are_products_of_matrices(steps: list[dict[str, Any]]) -> None:
    """Whatever their order, kinds and nesting."""
    found = compose(steps, "yx", "here")
    expected = matrix({"type": "sequence", "transformations": steps})
    np.testing.assert_allclose(np.diag(expected)[:2], found.scale)
    np.testing.assert_allclose(expected[:2, 2], found.translation, atol=1e-9)


def test_axes_of_a_transform_are_found_by_name() -> None:
    """Where it names them in another order than the array has."""
    step = {
        "type": "scale",
        "scale": [2.0, 3.0],
        "input": {"name": "xy", "axes": [{"name": "x"}, {"name": "y"}]},
        "output": {"name": "global", "axes": [{"name": "x"}, {"name": "y"}]},
    }
    assert compose([step], "yx", "here") == Transform((3.0, 2.0), (0.0, 0.0))


def test_of_several_coordinate_systems_the_global_one_counts() -> None:
    """As SpatialData names it; several others are ambiguous."""
    steps = [
        {"type": "scale", "scale": [k, k], "output": {"name": name}}
        for k, name in ((2.0, "aligned"), (3.0, "global"), (4.0, "other"))
    ]
    assert compose(steps, "yx", "here").scale == (3.0, 3.0)
    assert compose(steps[:1], "yx", "here").scale == (2.0, 2.0)
    with pytest.raises(SourceError, match=r"'aligned', 'other'"):
        compose(steps[::2], "yx", "here")
