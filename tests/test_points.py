"""Points: every kind of table gives the same ones, and a patch stands where its point says.

Laws: one table is read alike from memory, CSV, Parquet and AnnData, near or far; ids stay as they
are written; what has no place is an error or left out; a patch's first pixel is exact.
"""

from __future__ import annotations

import gzip
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv

from patchloom import Points, read_points
from patchloom.errors import (
    AxesError,
    ConfigError,
    PatchloomError,
    SourceError,
    SourceMissingError,
)
from patchloom.location import Location
from patchloom.points import first_pixels
from patchloom.sources.tables import parquet_table
from tests.servers.http import HttpServer

SLIDES = ["007", "a06", "007", "010", "a06"]
PLACES = np.array([[0.25, 10, 2], [1, 11.5, 3], [2, 12, 4], [3, 13, 5.75], [4, 14, 6]])  # z, y, x
COLUMNS: dict[str, Any] = {
    "slide": SLIDES,
    "z": PLACES[:, 0],
    "y": PLACES[:, 1],
    "x": PLACES[:, 2],
    "kind": ["T", "B", None, "T", "é"],
    "area": [1.5, None, 3.25, 4.5, 5.5],
    "count": [1, 2, 3, 4, 5],
    "good": [True, False, True, True, False],
    "time": [0, 1, 0, 1, 2],
}
TABLE = pa.table(COLUMNS)
CARRIED = ["kind", "area", "count", "good"]
MIXED = pa.table(
    {"y": [1.0], "x": [2.0], "box": [[1, 2]], "raw": [b"b"], "day": pa.array([0], pa.date32())}
)


def write_array(group: zarr.Group, name: str, values: Any) -> None:
    array = np.asarray(values)
    text = array.dtype.kind in "UO"
    made = group.create_array(
        name, shape=array.shape, chunks=(2, *array.shape[1:]), dtype=str if text else array.dtype
    )
    made[...] = array
    made.attrs["encoding-type"] = "string-array" if text else "array"


def write_group(group: zarr.Group, name: str, kind: str, **arrays: Any) -> None:
    inner = group.create_group(name, attributes={"encoding-type": kind})
    for part, values in arrays.items():
        write_array(inner, part, values)


def write_anndata(path: Path, zarr_format: Any) -> Path:
    """The layout of AnnData 0.1.0, written by hand after its specification."""
    root = zarr.create_group(path, zarr_format=zarr_format, attributes={"encoding-type": "anndata"})
    order = ["slide", *CARRIED, "time"]
    obs = root.create_group(
        "obs",
        attributes={"encoding-type": "dataframe", "column-order": order, "_index": "_index"},
    )
    write_array(obs, "_index", [f"cell{k}" for k in range(5)])
    write_group(
        obs,
        "slide",
        "categorical",
        codes=np.array([1, 2, 1, 0, 2], "int8"),
        categories=["010", "007", "a06"],
    )
    write_group(
        obs,
        "kind",
        "nullable-string-array",
        values=["T", "B", "", "T", "é"],
        mask=np.array([0, 0, 1, 0, 0], bool),
    )
    write_array(obs, "area", [1.5, np.nan, 3.25, 4.5, 5.5])
    write_group(obs, "count", "nullable-integer", values=[1, 2, 3, 4, 5], mask=np.zeros(5, bool))
    write_array(obs, "good", COLUMNS["good"])
    write_array(obs, "time", COLUMNS["time"])
    obsm = root.create_group("obsm")
    write_array(obsm, "spatial", PLACES[:, [1, 2, 0]])  # y, x, z
    write_group(obsm, "sparse", "csr_matrix", data=np.ones(5))
    return path


def pandas_table() -> Any:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(COLUMNS)
    return frame.assign(slide=frame["slide"].astype("category"))


def in_csv(folder: Path) -> str:
    csv.write_csv(TABLE, folder / "cells.csv")
    return "cells.csv"


def in_tsv(folder: Path) -> str:
    csv.write_csv(TABLE, folder / "c.tsv", csv.WriteOptions(delimiter="\t"))
    (folder / "cells.tsv.gz").write_bytes(gzip.compress((folder / "c.tsv").read_bytes()))
    return "cells.tsv.gz"


def in_parquet(folder: Path) -> str:
    pq.write_table(TABLE, folder / "cells.parquet", row_group_size=2)
    return "cells.parquet"


STORED = [in_csv, in_tsv, in_parquet]
MEMORY: dict[str, Callable[[], Any]] = {
    "arrow": lambda: TABLE,
    "chunked": lambda: pa.concat_tables([TABLE[:2], TABLE[2:]]),
    "mapping": lambda: COLUMNS,
    "dictionary": lambda: TABLE.set_column(0, "slide", TABLE["slide"].dictionary_encode()),
    "large": lambda: TABLE.set_column(0, "slide", TABLE["slide"].cast(pa.large_string())),
    "stream": lambda: SimpleNamespace(__arrow_c_stream__=TABLE.__arrow_c_stream__),
    "pandas": pandas_table,
}


def check_all(points: Points) -> None:
    """They are those of `COLUMNS`."""
    np.testing.assert_array_equal(points.position, PLACES)
    assert (points.axes, len(points)) == ("zyx", 5)
    assert points.images == ("007", "a06", "010")
    assert points.image is not None
    assert points.sample is not None
    assert [points.images[k] for k in points.image] == SLIDES
    assert points.sample.tolist() == COLUMNS["time"]
    assert points.columns.column_names == CARRIED
    found = points.columns.to_pydict()
    # An empty field of a CSV is an empty text; nothing else tells the two apart.
    found["kind"] = [value or None for value in found["kind"]]
    assert found == {name: list(COLUMNS[name]) for name in CARRIED}
    assert not points.position.flags.writeable


@pytest.mark.parametrize("kind", MEMORY)
def test_tables_in_memory(kind: str) -> None:
    """Whatever holds the columns, the points are the same; the user's arrays stay theirs."""
    check_all(read_points(MEMORY[kind](), image="slide", sample="time"))
    assert PLACES.flags.writeable


@pytest.mark.parametrize("write", STORED)
def test_stored_tables(
    write: Callable[[Path], str], tmp_path: Path, http_server: Callable[[Path], HttpServer]
) -> None:
    """Files are read alike by path and by URL."""
    name = write(tmp_path)
    for url in (str(tmp_path / name), tmp_path / name, http_server(tmp_path).url(name)):
        check_all(read_points(url, image="slide", sample="time"))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_anndata_in_zarr(
    zarr_format: int, tmp_path: Path, http_server: Callable[[Path], HttpServer]
) -> None:
    """Stored AnnData are read without anndata, categories and missing values included."""
    write_anndata(tmp_path / "cells.zarr", zarr_format)
    for url in (tmp_path / "cells.zarr", http_server(tmp_path).url("cells.zarr")):
        check_all(read_points(url, image="slide", sample="time", positions="spatial", axes="yxz"))
    with pytest.raises(SourceError, match=r"there are \['sparse', 'spatial'\]"):
        read_points(tmp_path / "cells.zarr", positions="x_umap", axes="yx")
    with pytest.raises(AxesError, match="positions= may be one of"):
        read_points(tmp_path / "cells.zarr")
    with pytest.raises(SourceError, match="dense array"):
        read_points(tmp_path / "cells.zarr", positions="sparse", axes="yx")
    with pytest.raises(SourceError, match="tables/NAME"):
        read_points(tmp_path / "cells.zarr" / "obsm")


def test_anndata_objects() -> None:
    """Whatever has obs and obsm is one; positions may be an array or a DataFrame."""
    pandas = pytest.importorskip("pandas")
    obs = pandas_table().drop(columns=["z", "y", "x"])
    obsm = {"spatial": PLACES[:, [1, 2, 0]], "frame": pandas.DataFrame(PLACES, columns=[*"zyx"])}
    table = SimpleNamespace(obs=obs, obsm=obsm)
    check_all(read_points(table, image="slide", sample="time", positions="spatial", axes="YXZ"))
    check_all(read_points(table, image="slide", sample="time", positions="frame"))
    flat = read_points(table, positions="spatial", axes={"x": 1, "y": 0})
    np.testing.assert_array_equal(flat.position, PLACES[:, 1:])
    named = SimpleNamespace(obs=obs.rename_axis("cell"), obsm=obsm)
    points = read_points(named, positions="frame", columns=["cell", "kind"])
    assert points.columns["cell"].to_pylist() == [0, 1, 2, 3, 4]


def test_arrays(tmp_path: Path) -> None:
    """Positions without names need the order of their axes, in memory or stored."""
    np.save(tmp_path / "p.npy", PLACES[:, ::-1])
    zarr.create_array(tmp_path / "p.zarr", data=PLACES[:, ::-1])
    backwards = PLACES[:, ::-1]
    for table in (backwards, backwards.tolist(), tmp_path / "p.npy", tmp_path / "p.zarr"):
        points = read_points(table, axes="xyz")
        np.testing.assert_array_equal(points.position, PLACES)
        assert (points.image, points.sample, points.columns.num_columns) == (None, None, 0)
        with pytest.raises(AxesError, match="one letter a column"):
            read_points(table)


def test_partitioned_parquet(tmp_path: Path) -> None:
    """Folders ``image=007`` are a column whose values stay as they are written."""
    for name, rows in (("007", slice(0, 2)), ("008", slice(2, 5))):
        (tmp_path / "cells.parquet" / f"image={name}").mkdir(parents=True)
        pq.write_table(TABLE[rows], tmp_path / "cells.parquet" / f"image={name}" / "0.parquet")
    here = f"memory://{tmp_path.name}.parquet"
    fsspec.filesystem("memory").put(str(tmp_path / "cells.parquet"), here, recursive=True)
    for url in (tmp_path / "cells.parquet", here):
        points = read_points(url, image="image", columns="count")
        assert points.images == ("007", "008")
        assert points.columns.to_pydict() == {"count": [1, 2, 3, 4, 5]}


def test_columns_from_afar_are_those_of_the_disk(tmp_path: Path) -> None:
    """Read without threads of Arrow: types, nulls, dictionaries, row groups, absent columns."""
    kinds = pa.array(["u", None, "v"]).dictionary_encode()
    table = pa.table({"y": [1.5, 2.5, 3.5], "x": [1, None, 3], "kind": kinds})
    (tmp_path / "p.parquet").mkdir()
    pq.write_table(table, tmp_path / "p.parquet" / "0.parquet", row_group_size=2)
    pq.write_table(table.drop_columns("x"), tmp_path / "p.parquet" / "1.parquet")
    here = f"memory://{tmp_path.name}.parquet"
    fsspec.filesystem("memory").put(str(tmp_path / "p.parquet"), here, recursive=True)
    near = parquet_table(Location.of(tmp_path / "p.parquet"), None)
    far = parquet_table(Location.of(here), None)
    assert far.names == near.names == ("y", "x", "kind")
    for names in (far.names, ["kind", "y"], []):
        found, expected = far.fetch(names), near.fetch(names)
        assert list(found) == list(expected)
        for name in names:
            assert found[name].type == expected[name].type
            assert found[name].to_pylist() == expected[name].to_pylist()


def test_names_of_columns() -> None:
    """A mapping says which column is which axis; the rest is carried, or what is asked for."""
    table = {"row": [1, 2], "col": [3, 4], "kind": ["a", "b"], 0: [5, 6]}
    points = read_points(table, axes={"Y": "row", "X": "col"})
    np.testing.assert_array_equal(points.position, [[1, 3], [2, 4]])
    assert points.columns.to_pydict() == {"kind": ["a", "b"], "0": [5, 6]}
    assert read_points(table, axes={"x": 0}).position.tolist() == [[5], [6]]
    kept = read_points(table, axes={"y": "row", "x": "col"}, columns=["row"])
    assert kept.columns.to_pydict() == {"row": [1, 2]}
    assert read_points(table, axes={"x": "col"}, columns=()).columns.num_columns == 0


def test_types_of_columns() -> None:
    """Dates become text; lists and bytes are left out, and refused by name."""
    assert read_points(MIXED).columns.to_pydict() == {"day": ["1970-01-01"]}
    with pytest.raises(SourceError, match=r"\['box'\]"):
        read_points(MIXED, columns=["box", "day"])


def test_missing_places() -> None:
    """A point without a place, an image or a sample is an error, or left out."""
    table = {
        "y": [1.0, np.nan, 3.0, 4.0, 5.0, 6.0],
        "x": [1.0, 2.0, np.inf, 4.0, 5.0, 6.0],
        "image": ["a", "b", "b", None, "", "a"],
        "t": [0, 1, 2, 3, 4, 1],
        "k": range(6),
    }
    with pytest.raises(SourceError, match=r"2 of 6 rows .* rows 1, 2 .*drop_missing"):
        read_points(table)
    with pytest.raises(SourceError, match=r"2 of 6 rows .* rows 3, 4 "):
        read_points({**table, "y": range(6), "x": range(6)}, image="image")
    points = read_points(table, image="image", sample="t", drop_missing=True)
    assert points.columns["k"].to_pylist() == [0, 5]
    assert points.images == ("a",)
    assert points.sample is not None
    assert points.sample.tolist() == [0, 1]
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"y": [1, 2], "x": [1, 2], "t": [1, None]})
    assert len(read_points(frame, sample="t", drop_missing=True)) == 1
    nothing = read_points({"y": [], "x": [], "image": []}, image="image")
    assert (len(nothing), nothing.images, nothing.position.shape) == (0, (), (0, 2))


def test_integer_ids() -> None:
    """Integers become text once; other numbers are no ids."""
    table = {"y": [1, 2], "x": [1, 2], "image": [7, 8]}
    assert read_points(table, image="image").images == ("7", "8")
    with pytest.raises(SourceError, match="text or integers"):
        read_points({**table, "image": [7.0, 8.0]}, image="image")


Y_X: dict[str, Any] = {"y": [1, 2], "x": [1, 2]}


@pytest.mark.parametrize(
    ("table", "options", "error", "words"),
    [
        (Y_X, {"image": "slide"}, SourceError, r"no \['slide'\]; there are \['y', 'x'\]"),
        (Y_X, {"columns": ["kind"]}, SourceError, r"no \['kind'\]"),
        (Y_X, {"axes": "zyx"}, AxesError, r"no \['z'\]"),
        (Y_X, {"axes": "yyx"}, AxesError, "distinct"),
        (Y_X, {"axes": {"c": "x"}}, AxesError, "distinct"),
        (Y_X, {"axes": {"y": "y"}}, AxesError, "none named 'x'"),
        (Y_X, {"axes": {"z": "y", "x": "x"}}, AxesError, "x, yx or zyx"),
        (Y_X, {"positions": "spatial"}, ConfigError, "obsm"),
        (Y_X, {"unit": "mm"}, ConfigError, "physical"),
        ({"row": [1]}, {}, AxesError, r"there are the columns \['row'\]"),
        ({"y": ["a"], "x": [1]}, {}, SourceError, "numbers, but column 'y'"),
        ({"y": [1], "x": [1e300]}, {}, SourceError, "2\\*\\*53"),
        ({"y": [1, 2], "x": [1]}, {}, SourceError, "one value a point"),
        ({**Y_X, "k": [1]}, {}, SourceError, "one value a point"),
        ({**Y_X, "t": [0.5, 1]}, {"sample": "t"}, SourceError, "whole number"),
        ({**Y_X, "t": [-1, 1]}, {"sample": "t"}, SourceError, "whole number"),
        (pa.table([[1], [2]], ["x", "x"]), {}, SourceError, r"\['x'\] stand several times"),
        (np.zeros((2, 2)), {"axes": {"x": 2}}, AxesError, "columns 0 to 1"),
        (np.zeros(4), {"axes": "x"}, SourceError, r"\[n, ndim\]"),
        (np.array([["a", "b"]]), {"axes": "yx"}, SourceError, r"\[n, ndim\]"),
        ([[1, 2], [3]], {"axes": "yx"}, SourceError, "unlike lengths"),
        (7, {}, ConfigError, "got int"),
        (SimpleNamespace(tables={"t": 1}, images={}), {}, ConfigError, r"\.tables\['t'\]"),
    ],
)
def test_mistakes(table: Any, options: Any, error: type[Exception], words: str) -> None:
    """Each says what was got and what there is."""
    with pytest.raises(error, match=words):
        read_points(table, **options)


def test_wrong_files(tmp_path: Path) -> None:
    """What is missing, damaged or no table is named; objects are never unpickled."""
    np.save(tmp_path / "o.npy", np.array([[print, 1]], object), allow_pickle=True)
    (tmp_path / "d.parquet").write_bytes(b"PAR1 broken")
    (tmp_path / "d.csv").write_text("y,x\n1,2\n3\n")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "d.csv.gz").write_bytes(b"no gzip")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(COLUMNS))
    for name in ("o.npy", "d.parquet", "d.csv", "empty.csv", "d.csv.gz", "x.pkl", "cells.h5ad"):
        with pytest.raises(SourceError, match=name.replace(".", r"\.")):
            read_points(tmp_path / name, axes="yx")
    for name in ("no.csv", "no.parquet", "no.npy", "no.zarr", "no"):
        with pytest.raises(SourceMissingError, match=name.replace(".", r"\.")):
            read_points(tmp_path / name, axes="yx")
    with pytest.raises(PatchloomError) as caught:
        read_points("http://user:secret@127.0.0.1:9/cells.csv?token=hidden")
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_pickle_among_codecs_is_refused(tmp_path: Path) -> None:
    """A stored column that asks for the codec ``pickle`` is not read."""
    write_anndata(tmp_path / "cells.zarr", 2)
    head = tmp_path / "cells.zarr" / "obs" / "kind" / "values" / ".zarray"
    document = json.loads(head.read_text())
    document["filters"] = [*document["filters"], {"id": "pickle", "protocol": 5}]
    head.write_text(json.dumps(document))
    with pytest.raises(PatchloomError, match="pickle"):
        read_points(tmp_path / "cells.zarr", positions="spatial", axes="yxz")


def test_physical_units() -> None:
    """Physical positions count from the first pixel's centre, in spacings."""
    points = read_points(Y_X, unit="physical")
    assert points.in_pixels({"y": 0.5, "x": 2}, {"y": -1}).position.tolist() == [[4, 0.5], [6, 1]]
    pixels = points.in_pixels({"y": 1, "x": 1})
    assert pixels.in_pixels({}) is pixels
    for spacing in ({}, {"y": 1.0}, {"y": 1.0, "x": 0.0}):
        with pytest.raises(SourceError, match="spacing"):
            points.in_pixels(spacing)


def test_take_and_pickle() -> None:
    """Some of the points keep all that belongs to them, in any process."""
    points = read_points(TABLE, image="slide", sample="time")
    for rows in ([3, 1], np.array([False, True, False, True, False])):
        some = pickle.loads(pickle.dumps(points.take(rows)))
        order = np.arange(5)[rows]
        np.testing.assert_array_equal(some.position, PLACES[order])
        assert [some.images[k] for k in some.image] == [SLIDES[k] for k in order]
        assert some.columns["count"].to_pylist() == (order + 1).tolist()
    bare = read_points(Y_X)
    assert len(bare.take([1])) == 1
    assert len(bare.take([])) == 0
    assert "2 in one image" in repr(bare)


@given(
    st.lists(
        st.tuples(
            st.floats(-(2.0**52), 2.0**52), st.integers(-10_000, 10_000).map(lambda k: k / 4)
        ),
        max_size=20,
    ),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_first_pixels(places: list[tuple[float, float]], size: tuple[int, int]) -> None:
    """Exact arithmetic: the centre pixel k has k - 1/2 <= place < k + 1/2."""
    position = np.array(places).reshape(-1, 2)
    found = first_pixels(position, size)
    assert found.dtype == np.int64
    expected = [
        [math.floor(Fraction(p) + Fraction(1, 2)) - n // 2 for p, n in zip(row, size, strict=True)]
        for row in places
    ]
    assert found.tolist() == expected


def test_first_pixels_of_what_rounding_would_move() -> None:
    """The number just below a half stays below, and great odd numbers stay what they are."""
    below = np.nextafter(0.5, 0)
    places = [[below], [0.5], [-0.5], [-below], [np.nextafter(-0.5, -1)], [2.0**52 + 1]]
    assert first_pixels(places, [1]).ravel().tolist() == [0, 1, 0, 0, -1, 2**52 + 1]
    for wrong in (np.nan, np.inf, 2.0**53):
        with pytest.raises(SourceError, match="finite"):
            first_pixels([[wrong]], [1])


def test_points_need_no_pandas() -> None:
    """Tables are read where pandas is not installed, and without importing Dask or Zarr."""
    program = """
import sys
class Without:
    def find_spec(name, path, target=None):
        if name.split(".")[0] == "pandas":
            raise ImportError(name)
sys.meta_path.insert(0, Without)
import patchloom
patchloom.read_points({"x": [1], "k": ["a"]})
print([m for m in ("pandas", "anndata", "dask", "zarr") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
