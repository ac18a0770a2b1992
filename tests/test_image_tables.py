"""Tables of images: a row an image, its roles, its name and what is known of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

import patchloom
from patchloom.errors import IdentityError, SourceError, SourceMissingError

ROWS: dict[str, list[Any]] = {
    "image": ["images/a.npy", "images/b.npy", "images/c.npy"],
    "labels": ["labels/a.npy", None, "labels/c.npy"],
    "id": ["001", "002", "10"],
    "donor": ["x", "y", "x"],
    "age": [3.5, None, 4.0],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k, name in enumerate("abc"):
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir(exist_ok=True)
            np.save(tmp_path / kind / f"{name}.npy", np.full((8, 8), k, np.uint8))
    return tmp_path


def written(folder: Path, rows: dict[str, list[Any]], kind: str) -> Any:
    table = pa.table(rows)
    path = folder / f"table.{kind}"
    if kind == "parquet":
        parquet.write_table(table, path)
    elif kind in ("csv", "tsv"):
        delimiter = "," if kind == "csv" else "\t"
        csv.write_csv(table, path, csv.WriteOptions(delimiter=delimiter))
    else:
        there = {
            name: [v and str(folder / v) for v in values] if name in ("image", "labels") else values
            for name, values in rows.items()
        }
        return pa.table(there) if kind == "arrow" else pd.DataFrame(there)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "arrow", "pandas"])
def test_each_row_is_an_image_with_what_it_says(folder: Path, kind: str) -> None:
    """Ids stay as they are written, an empty role is none, an empty value is left out."""
    images = patchloom.open_images(written(folder, ROWS, kind))
    assert [image.id for image in images] == ["001", "002", "10"]
    assert [image.labels is not None for image in images] == [True, False, True]
    assert [dict(image.metadata) for image in images] == [
        {"donor": "x", "age": 3.5},
        {"donor": "y"},
        {"donor": "x", "age": 4.0},
    ]
    for k, image in enumerate(images):
        assert (image.read((0, 0), (8, 8)) == k).all()
    plan = patchloom.plan(images[::2], {"name": "sequential", "patch_size": [4, 4]})
    patchloom.materialize(plan, folder / "out.zarr", progress=False)
    store = patchloom.open_patches(folder / "out.zarr")
    assert set(store.manifest.column("donor").to_pylist()) == {"x"}


def test_paths_in_a_table_of_a_store_stay_in_it(folder: Path) -> None:
    """What is relative lies beside the table; nothing on this machine is named from elsewhere."""
    fs = fsspec.filesystem("memory")
    for path in ("images/a.npy", "labels/a.npy"):
        fs.pipe(f"/tables/{path}", (folder / path).read_bytes())
    fs.pipe("/tables/good.csv", b"url,labels\nimages/a.npy,memory://tables/labels/a.npy\n")
    [image] = patchloom.open_images("memory://tables/good.csv")
    assert (image.uri, image.labels is not None) == ("memory://tables/images/a.npy", True)
    local = folder / "images" / "a.npy"
    for value in (str(local), f"file://{local}", f"simplecache::file://{local}", "~/a.npy"):
        fs.pipe("/tables/bad.csv", f"url\n{value}\n".encode())
        with pytest.raises(SourceError, match="names nothing on this machine"):
            patchloom.open_images("memory://tables/bad.csv")
    (folder / "here.csv").write_text(f"url\n{local}\n")
    assert patchloom.open_images(folder / "here.csv")[0].id == "a"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("path\na.npy\n", "one column 'image'"),
        ("image,url\na.npy,a.npy\n", "one column 'image'"),
        ("image,image\na.npy,a.npy\n", r"\['image'\] twice"),
        ("image,x\na.npy,1\n,2\n", r"rows \[1\]"),
        ("image,id\nimages/a.npy,\n", r"'id' has one, but rows \[0\]"),
        ("image,mask\nimages/a.npy,3\n", "column 'mask' .* holds paths"),
        ("image\n", "has none"),
        ("image,id\nimages/a.npy,1\nimages/b.npy,1\n", "several are called"),
        ("image\nimages/*.npy\n", "1 rows of .* name 3 images"),
        ("image\nimages\n", "1 rows of .* name 3 images"),
        ("image\nnothing.npy\n", "no file was found"),
        ("", "not what its name says"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(folder: Path, text: str, what: str) -> None:
    (folder / "table.csv").write_text(text)
    with pytest.raises(SourceError, match=what):
        patchloom.open_images(folder / "table.csv")


def test_what_stands_in_a_table_is_not_given_besides(folder: Path) -> None:
    """Other arguments hold for all rows."""
    path = written(folder, ROWS, "csv")
    with pytest.raises(SourceError, match=r"\['labels'\] stand in"):
        patchloom.open_images(path, labels="labels/{stem}.npy")
    images = patchloom.open_images(path, mask=np.ones((8, 8), bool), axes="YX")
    assert all(image.mask is not None for image in images)
    with pytest.raises(SourceMissingError, match="a table must exist"):
        patchloom.open_images(folder / "none.csv")
    with pytest.raises(IdentityError, match="ids= has one name"):
        patchloom.open_images(
            pd.DataFrame({"image": [str(folder / "images/a.npy")]}), ids=["a", "b"]
        )


def test_a_label_group_is_a_bare_word(demo_table: Path) -> None:
    [image] = patchloom.open_images(demo_table)
    assert image.labels is not None
    assert image.labels.image.uri.endswith("labels/nuclei/0")


@pytest.fixture
def demo_table(tmp_path: Path) -> Path:
    demo = Path(patchloom.__file__).parent / "demo" / "cardiomyocytes.ome.zarr"
    (tmp_path / "table.csv").write_text(f"image,labels\n{demo},nuclei\n")
    return tmp_path / "table.csv"
