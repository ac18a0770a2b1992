"""Statistics as a value: they group, add, save and tell what NumPy tells of the same pixels."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import statistics as standard
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import patchloom
from patchloom.errors import ConfigError, IdentityError, SourceMissingError, StoreError
from patchloom.store.statistics_view import bars_of, document, from_document, joined
from patchloom.summaries import METHODS, Summary, Tally, summarize, targets
from patchloom.summaries.bars import MOST, Bars
from patchloom.summaries.outlying import AT_LEAST, FAR
from patchloom.summaries.table import Cell, Statistics, Subject
from tests.servers.s3 import S3Server

Pixels = npt.NDArray[Any]
Q = (0, 1, 37.5, 50, 99, 100)
DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "float16", "float32", "float64"]


def table_of(
    pixels: Mapping[str, Pixels],
    columns: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    planes: bool = True,
    **more: Any,
) -> Statistics:
    """Statistics of images [c, z, y, x], by plane or not."""
    found: dict[Cell, Summary] = {}
    for i, image in enumerate(pixels.values()):
        for c, channel in enumerate(image):
            if planes:
                found |= {Cell(i, c, z): summarize(plane) for z, plane in enumerate(channel)}
            else:
                found[Cell(i, c)] = summarize(channel)
    names = tuple(f"c{c}" for c in range(len(next(iter(pixels.values())))))
    subjects = tuple(Subject(name, metadata=(columns or {}).get(name, {})) for name in pixels)
    return Statistics(found, subjects, names, **more)


def elements(dtype: str) -> st.SearchStrategy[float] | None:
    """Numbers of a type, and NaN; of float64 those whose differences do not overflow in NumPy."""
    if not dtype.startswith("float"):
        return None
    if dtype == "float64":
        return st.one_of(st.floats(-1e300, 1e300), st.just(math.nan))
    return st.floats(width=int(dtype[5:]), allow_infinity=False)  # type: ignore[arg-type]


@st.composite
def data_sets(draw: st.DrawFn, dtypes: Sequence[str] = DTYPES) -> dict[str, Pixels]:
    """A few small images of one type and number of channels, called out of order."""
    dtype = draw(st.sampled_from(dtypes))
    channels = draw(st.integers(1, 2))
    names = draw(st.permutations(["b", "a", "d", "c"]))[: draw(st.integers(1, 4))]
    return {
        name: draw(
            hnp.arrays(
                dtype,
                (channels, draw(st.integers(1, 3)), draw(st.integers(1, 4)), 3),
                elements=elements(dtype),
            )
        )
        for name in names
    }


def numbers(pixels: Pixels) -> Pixels:
    """The pixels that are numbers, as float64."""
    wide = pixels.astype("float64").ravel()
    found: Pixels = wide[~np.isnan(wide)]
    return found


def percentile(wide: Pixels, q: Sequence[float], method: str) -> Pixels:
    """NumPy's, by any of its methods."""
    found: Any = np.percentile
    return np.asarray(found(wide, q, method=method))


def check(row: Any, pixels: Pixels, method: str) -> None:
    """One cell of a Dataset says what NumPy says of its pixels."""
    wide = numbers(pixels)
    assert row["count"].item() == wide.size
    assert row["nans"].item() == pixels.size - wide.size
    assert row["nodata"].item() == 0
    if not wide.size:
        told = [row[name].item() for name in ("mean", "std", "min", "max", "median", "mad")]
        assert np.isnan(told).all()
        assert np.isnan(row["percentile"].values).all()
        return
    np.testing.assert_array_equal(row["percentile"], percentile(wide, Q, method))
    assert (row["min"].item(), row["max"].item()) == (wide.min(), wide.max())
    median = np.median(wide)
    assert row["median"].item() == median
    assert row["mad"].item() == np.median(np.abs(wide - median))
    size = np.abs(wide).max()
    with np.errstate(over="ignore", invalid="ignore"):
        # Squares of tiny numbers are 0 to NumPy.
        scale = size if 0 < size < 1e-100 else 1.0
        mean, std = wide.mean(), (wide / scale).std() * scale
    if math.isfinite(mean) and math.isfinite(std):
        assert math.isclose(row["mean"].item(), mean, rel_tol=1e-9, abs_tol=1e-12 * size)
        assert math.isclose(row["std"].item(), std, rel_tol=1e-6, abs_tol=1e-7 * size)


# -- grouping -----------------------------------------------------------------------------------


@settings(max_examples=30)
@given(data=st.data(), pixels=data_sets(), method=st.sampled_from(METHODS))
def test_grouping_is_pooling_the_pixels(
    data: st.DataObject, pixels: dict[str, Pixels], method: str
) -> None:
    """By image, by a metadata column, or all: the numbers of the pixels put together."""
    columns = {name: {"stain": data.draw(st.sampled_from(["HE", "PAS"]))} for name in pixels}
    found = table_of(pixels, columns, planes=data.draw(st.booleans()))
    groups = {
        "image": {name: [name] for name in pixels},
        "stain": {
            stain: [name for name in pixels if columns[name]["stain"] == stain]
            for stain in sorted({row["stain"] for row in columns.values()})
        },
        None: {"all": list(pixels)},
    }
    for by, members in groups.items():
        table = found.pooled(Q, method=method, by=by)
        dim = "image" if by == "image" else "group"
        assert table[dim].values.tolist() == list(members)
        assert table["percentile"].dims == (dim, "channel", "quantile")
        for (k, names), c in itertools.product(
            enumerate(members.values()), range(len(found.channels))
        ):
            together = np.concatenate([pixels[name][c].ravel() for name in names])
            check(table.isel({dim: k, "channel": c}), together, method)


@settings(max_examples=25)
@given(pixels=data_sets(["uint8", "float32"]))
def test_planes_are_told_apart(pixels: dict[str, Pixels]) -> None:
    """With planes a Dataset has them; an image without that plane has no pixel there."""
    table = table_of(pixels).dataset(Q)
    assert table["percentile"].dims == ("image", "channel", "z", "quantile")
    for name, c, z in itertools.product(pixels, range(table.sizes["channel"]), table["z"].values):
        plane = pixels[name][c, z : z + 1]
        check(table.sel(image=name, z=z).isel(channel=c), plane, "linear")


def test_labels_are_told_apart() -> None:
    """Classes have a dimension of their own, and outliers are of all classes together."""
    pixels = {value: np.arange(value, value + 9, dtype="uint8") for value in (0, 7)}
    cells = {Cell(0, 0, None, value): summarize(some) for value, some in pixels.items()}
    found = Statistics(cells, (Subject("a"),), ("c",))
    table = found.dataset(Q)
    assert table["percentile"].dims == ("image", "channel", "label", "quantile")
    for value, some in pixels.items():
        check(table.isel(image=0, channel=0).sel(label=value), some, "linear")
    assert found.labels == (0, 7)
    assert found.table()["label"].to_pylist() == [0, 7]
    assert found.outliers().num_rows == 0
    planes = {
        Cell(0, 0, z, value): summarize(some[z::2])
        for value, some in pixels.items()
        for z in (0, 1)
    }
    ends = Statistics(planes, (Subject("a"),), ("c",)).envelope((0, 100))["percentile"]
    assert ends.dims == ("image", "channel", "label", "quantile")
    assert ends.values.reshape(2, 2).tolist() == [[0, 8], [7, 15]]


@settings(max_examples=25)
@given(pixels=data_sets(), method=st.sampled_from(METHODS))
def test_envelope_is_phenocoders(pixels: dict[str, Pixels], method: str) -> None:
    """The least of the slices' low percentiles, the greatest of their high ones."""
    found = table_of(pixels)
    slices = {
        name: [
            [percentile(numbers(plane), (5, 95), method) for plane in channel]
            if all(numbers(plane).size for plane in channel)
            else []
            for channel in image
        ]
        for name, image in pixels.items()
    }
    everything = found.envelope((5, 95), method=method, by=None)["percentile"]
    for c in range(len(found.channels)):
        for name, rows in slices.items():
            if rows[c]:
                got = found.envelope((5, 95), method=method)["percentile"].sel(image=name)[c]
                want = [min(low for low, _ in rows[c]), max(high for _, high in rows[c])]
                assert got.values.tolist() == want
        if all(rows[c] for rows in slices.values()):
            ends = np.array([end for rows in slices.values() for end in rows[c]])
            assert everything[0, c].values.tolist() == [ends[:, 0].min(), ends[:, 1].max()]


def test_envelope_differs_from_pooled_where_slices_differ() -> None:
    """One bright slice sets the envelope's high end; all other numbers are those of the volume."""
    pixels = np.full((1, 2, 20, 20), 10, np.uint8)
    pixels[0, 1, :, :2] = 200
    found = table_of({"a": pixels})
    pooled, envelope = found.pooled((1, 94)), found.envelope((1, 94))
    assert pooled["percentile"].values.ravel().tolist() == [10, 10]
    assert envelope["percentile"].values.ravel().tolist() == [10, 200]
    assert (pooled.attrs["pooling"], envelope.attrs["pooling"]) == ("pooled", "envelope")
    assert envelope.drop_vars("percentile").equals(pooled.drop_vars("percentile"))


# -- phenocoder's table ---------------------------------------------------------------------------


@settings(max_examples=25)
@given(pixels=data_sets(["uint8", "uint16", "int16"]))
def test_the_csv_row_is_numpys(pixels: dict[str, Pixels]) -> None:
    """Each row of stats.csv: one channel of one slice, to the last bit but for mean and std."""
    found = table_of(pixels)
    found.save_csv("memory://stats/stats.csv", (1, 99))
    with fsspec.open("memory://stats/stats.csv", "rt") as file:
        text = file.read()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert text.splitlines()[0].replace('"', "").split(",") == [
        *("sample_id", "channel", "z", "mean", "std", "percentile_high", "percentile_low"),
        *("median", "mad", "max", "min"),
    ]
    want = [
        (name, f"c{c}", z, plane)
        for name, image in pixels.items()
        for c, channel in enumerate(image)
        for z, plane in enumerate(channel)
    ]
    assert len(rows) == len(want)
    for row, (name, channel, z, plane) in zip(rows, want, strict=True):
        wide = plane.astype("float64")
        assert (row["sample_id"], row["channel"], int(row["z"])) == (name, channel, z)
        assert math.isclose(float(row["mean"]), wide.mean(), rel_tol=1e-12, abs_tol=1e-12)
        assert math.isclose(float(row["std"]), wide.std(), rel_tol=1e-9, abs_tol=1e-9)
        told = [float(row[k]) for k in ("percentile_high", "percentile_low", "median", "mad")]
        low, high = np.percentile(wide, (1, 99))
        median = np.median(wide)
        assert told == [high, low, median, np.median(np.abs(wide - median))]
        assert (float(row["max"]), float(row["min"])) == (wide.max(), wide.min())


def test_the_mad_is_about_the_slices_own_median() -> None:
    """Not about that of all channels together, which says how far channels lie apart."""
    dim, bright = np.full((1, 4, 4), 10, np.uint8), np.full((1, 4, 4), 200, np.uint8)
    pixels = np.stack([dim, bright])
    assert table_of({"a": pixels}).table()["mad"].to_pylist() == [0, 0]
    elsewhere = np.median(np.abs(pixels - np.median(pixels)), axis=(-2, -1))
    assert elsewhere.ravel().tolist() == [95, 95]


# -- adding ---------------------------------------------------------------------------------------


def kept(found: Statistics) -> dict[str, bytes]:
    """Everything that there is to it, as bytes."""
    found.save("memory://kept")
    fs = fsspec.filesystem("memory")
    return {name: fs.cat_file(name) for name in fs.find("/kept")}


@settings(max_examples=25)
@given(data=st.data(), dtype=st.sampled_from(["uint8", "int16", "float32", "float64"]))
def test_addition_is_associative_and_commutative(data: st.DataObject, dtype: str) -> None:
    """To the last byte of what is saved, whichever images and pixels each part has."""
    parts = []
    for version in ("0.1", "0.2", "0.1"):
        names = data.draw(st.permutations(["a", "b", "c"]))[: data.draw(st.integers(0, 3))]
        pixels = {
            name: data.draw(hnp.arrays(dtype, (1, 2, 2, 3), elements=elements(dtype)))
            for name in names
        }
        if pixels:
            parts.append(table_of(pixels, versions=(version,)))
        else:
            parts.append(Statistics({}, (), ("c0",), versions=(version,)))
    sums = []
    for a, b, c in itertools.permutations(parts):
        sums += [kept((a + b) + c), kept(a + (b + c))]
    assert all(other == sums[0] for other in sums)


@settings(max_examples=25)
@given(pixels=data_sets(), data=st.data())
def test_a_sum_is_of_the_pixels_of_both(pixels: dict[str, Pixels], data: st.DataObject) -> None:
    """Halves of images, and other images: the sum says what one survey of all says."""
    whole = table_of(pixels)
    parts = []
    for half in (0, 1):
        some = {name: image[..., half::2] for name, image in pixels.items()}
        names = data.draw(st.permutations(list(some)))
        parts.append(table_of({name: some[name] for name in names}))
    got, want = (parts[0] + parts[1]).dataset(Q), whole.dataset(Q)
    assert got.sel(image=list(pixels)).equals(want)


def test_additions_keep_a_common_order_else_sort() -> None:
    """Images stay in the order that both have them in; else they are in that of their ids."""
    ones = np.ones((1, 1, 1, 1), np.uint8)
    ba, b, a = (table_of(dict.fromkeys(names, ones)) for names in ("ba", "b", "a"))
    assert [s.id for s in (ba + ba).images] == ["b", "a"]
    assert [s.id for s in (b + a).images] == ["a", "b"]
    assert [s.id for s in (ba + a).images] == ["a", "b"]
    assert (ba + a).dataset()["count"].values.ravel().tolist() == [2, 1]
    assert (ba + ba).count == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": ("DAPI",)}, "same channels"),
        ({"over": "patches"}, "same over"),
        ({"each": "taken"}, "same each"),
        ({"unit": "photon"}, "same unit"),
    ],
)
def test_only_the_same_kind_adds(change: Any, message: str) -> None:
    """Numbers over other pixels, or of other channels, are no numbers of both."""
    found = table_of({"a": np.ones((1, 1, 2, 2), np.uint8)})
    with pytest.raises(ConfigError, match=message):
        found + replace(found, **change)


def test_planes_add_with_planes_only() -> None:
    """A volume and slices are not told apart in the same way."""
    pixels = {"a": np.ones((1, 1, 2, 2), np.uint8)}
    with pytest.raises(ConfigError, match="told apart in all summaries or in none"):
        table_of(pixels) + table_of(pixels, planes=False)


@pytest.mark.parametrize("change", [{"uri": "s3://b/other"}, {"level": 1}, {"metadata": {"k": 1}}])
def test_one_id_is_of_one_image(change: Any) -> None:
    """Two images that happen to have one name are not put together."""
    found = table_of({"a": np.ones((1, 1, 2, 2), np.uint8)})
    [subject] = found.images
    with pytest.raises(IdentityError, match="an id of its own"):
        found + replace(found, images=(replace(subject, **change),))


# -- saving ---------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(pixels=data_sets(), name=st.text(max_size=5))
def test_what_is_saved_comes_back(pixels: dict[str, Pixels], name: str) -> None:
    """Bit for bit, with names that would be paths, formulas or markup elsewhere."""
    pixels = {f"../{name}/{key}": image for key, image in pixels.items()}
    columns = {key: {"stain": name, "dose": 0.5, "dead": None} for key in pixels}
    found = table_of(pixels, columns, over="patches", each="taken", unit="photon")
    fs = fsspec.filesystem("memory")
    found.save("memory://there")
    assert sorted(fs.find("/there")) == ["/there/statistics.json", "/there/summaries.parquet"]
    back = Statistics.open("memory://there")
    assert (back.images, back.channels, back.versions) == (
        found.images,
        found.channels,
        found.versions,
    )
    assert back.dataset(Q).identical(found.dataset(Q))
    assert kept(back) == kept(found)


def test_saves_on_a_disk_and_on_s3(tmp_path: Any, s3_server: S3Server) -> None:
    """Any fsspec URL, with its options."""
    found = table_of({"a": np.arange(8, dtype="uint8").reshape(1, 2, 2, 2)})
    options: dict[str, Any] = {"storage_options": s3_server.storage_options}
    for url, more in (
        (tmp_path / "deep" / "er", {}),
        (f"{s3_server.fresh_bucket()}/deep/er", options),
    ):
        found.save(url, **more)
        found.save(url, **more)  # again: what stood there is replaced
        assert Statistics.open(url, **more).dataset(Q).identical(found.dataset(Q))


def test_nothing_else_opens(tmp_path: Any) -> None:
    """Nothing, half of it, another format, damage: one sentence each."""
    found = table_of({"a": np.ones((1, 1, 2, 2), np.uint8)})
    with pytest.raises(SourceMissingError, match="save them there"):
        Statistics.open(tmp_path)
    found.save(tmp_path)
    head, body = tmp_path / "statistics.json", tmp_path / "summaries.parquet"
    told, counted = json.loads(head.read_text()), body.read_bytes()
    body.write_bytes(counted[:-1])
    with pytest.raises(StoreError, match="damaged"):
        Statistics.open(tmp_path)
    body.write_bytes(counted)
    for change, message in (
        ({"format": 99}, "upgrade patchloom"),
        ({"format": None}, "does not hold saved statistics"),
        ({"channels": []}, "damaged"),
        ({"over": "moon"}, "damaged"),
    ):
        head.write_text(json.dumps({**told, **change}))
        with pytest.raises(StoreError, match=message):
            Statistics.open(tmp_path)
    head.write_text("[]")
    with pytest.raises(StoreError, match="does not hold"):
        Statistics.open(tmp_path)


Change = Callable[[list[dict[str, Any]], dict[str, Any]], None]


def resaved(folder: Path, change: Change) -> None:
    """Statistics whose parts agree with one another, with other content."""
    pixels = np.random.default_rng(0).normal(size=(1, 1, 1, 70_000))
    table_of({"a": pixels}).save(folder)
    body = folder / "summaries.parquet"
    table = pq.read_table(body)
    head = json.loads(table.schema.metadata[b"summaries"])
    columns = {name: table[name].to_numpy().copy() for name in table.column_names}
    change(head, columns)
    made = pa.table(columns).replace_schema_metadata({b"summaries": json.dumps(head).encode()})
    pq.write_table(made, body, compression="zstd")
    told = json.loads((folder / "statistics.json").read_text())
    told["sha256"] = hashlib.sha256(body.read_bytes()).hexdigest()
    (folder / "statistics.json").write_text(json.dumps(told))


def of_head(**told: Any) -> Change:
    return lambda head, columns: head[0].update(told)


def of_column(name: str, made: Callable[[Pixels], Any]) -> Change:
    return lambda head, columns: columns.update({name: made(columns[name])})


@pytest.mark.parametrize(
    "change",
    [
        *(of_head(rows=n) for n in (-5, 3, 3.5, True, "3", 10**30)),
        *(of_head(key=key) for key in ([0], [0.5, 0, None, None], ["a", 0, None, None], {"a": 1})),
        *(of_head(nans=n) for n in (-1, 1.5, "x", 10**40)),
        *(of_head(low=v) for v in ("nan", "zz", "0x1p9", "0x1p99999999")),
        *(of_head(sums=v) for v in (["1p40000000000", "1p0"], ["1p4000", "1p0"], ["1p2"], "ab")),
        of_head(exact="no"),
        of_head(exact=True, rows=70_000),
        lambda head, columns: head.append(head[0]),
        *(of_column("count", made) for made in (np.negative, lambda v: v * 0 + 2**62)),
        *(
            of_column("count", made)
            for made in (lambda v: v.astype(float), lambda v: v.astype(str))
        ),
        of_column("count", lambda v: pa.nulls(len(v), pa.int64())),
        *(of_column("value", made) for made in (lambda v: v[::-1], lambda v: v * np.nan)),
        *(of_column("bits", made) for made in (lambda v: v * 0 + 64, lambda v: v.astype("int8"))),
        of_column("count", lambda v: [[1]] * len(v)),
        lambda head, columns: columns.pop("count"),
    ],
)
def test_what_no_pixels_can_have_does_not_open(change: Change, tmp_path: Path) -> None:
    """Whoever wrote it: nothing of it is used, and no number asks for memory or for ever."""
    resaved(tmp_path, change)
    with pytest.raises(StoreError, match="does not hold"):
        Statistics.open(tmp_path)


def test_few_bytes_do_not_become_many(tmp_path: Path) -> None:
    """Rows that compress to nothing are refused by their number, before one is read."""
    n = 2**24 + 1

    def bomb(head: list[dict[str, Any]], columns: dict[str, Any]) -> None:
        head[0]["rows"] = n
        columns.update(value=np.zeros(n), count=np.ones(n, np.int64), bits=np.zeros(n, np.uint8))

    resaved(tmp_path, bomb)
    assert (tmp_path / "summaries.parquet").stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(StoreError, match="does not hold"):
        Statistics.open(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize(
    "head",
    [
        *("[" * 100_000, '{"format": Infinity}', '{"format": 0}', '{"format": true}', "\ud7ff"),
        *(
            {"channels": "0"},
            {"channels": [{}]},
            {"unit": [1]},
            {"versions": 3},
            {"images": {"a": 1}},
        ),
        *(
            {"images": [{"id": "a", "uri": "", "level": 0, "metadata": m}]}
            for m in ("x", {"k": [1]})
        ),
        *({"images": [{"id": i, "uri": "", "level": 0, "metadata": {}}]} for i in (3, ["a"], None)),
        {"images": [{"id": "a", "uri": "", "level": "x", "metadata": {}}]},
    ],
)
def test_a_head_of_something_else_does_not_open(head: Any, tmp_path: Path) -> None:
    """One sentence, whatever stands there."""
    table_of({"a": np.ones((1, 1, 2, 2), np.uint8)}).save(tmp_path)
    place = tmp_path / "statistics.json"
    told = head if isinstance(head, str) else json.dumps({**json.loads(place.read_text()), **head})
    place.write_text(told)
    with pytest.raises(StoreError, match="does not hold"):
        Statistics.open(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        *([[1.7e308, -1.7e308]], [[1.7e308, np.nextafter(1.7e308, 0)]], [[math.inf, -math.inf]]),
        *([[5e-324, 0]], [[2.0**53, 2.0**53 + 2]], [[-1e-310, 1e-310]], [[math.nan]]),
    ],
)
def test_extreme_numbers_are_drawn(values: list[list[float]]) -> None:
    """No number is too large, too small, or too near another for an axis."""
    found = table_of({"a": np.array(values)[:, None, None]})
    assert found._repr_html_()
    flags = table_of({f"{k}": (-1) ** k * np.array(values)[:, None, None] for k in range(6)})
    assert flags.outliers().num_rows in (0, 3, 18)


def test_outliers_tell_close_percentiles_and_infinities() -> None:
    """Each percentile has a name of its own; infinitely far is far, though all others agree."""
    parts = {f"{k}": np.ones((1, 1, 1, 2)) for k in range(6)}
    found = table_of({**parts, "odd": np.full((1, 1, 1, 2), np.inf)})
    flagged = found.outliers((1, 99.99999, 100))
    assert flagged["number"].to_pylist() == ["median", "p1", "p99.99999", "p100"]
    assert set(flagged["image"].to_pylist()) == {"odd"}
    assert set(flagged["z"].to_pylist()) == {math.inf}


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:topsecret@bucket/a.zarr",
        "https://host/a.zarr?X-Amz-Signature=topsecret",
        "simplecache::https://me:topsecret@host/a.zarr#frag",
    ],
)
def test_no_secret_is_told(uri: str) -> None:
    """Neither in the value, nor in what is made of it, nor in errors."""
    pixels = np.ones((1, 1, 2, 2), np.uint8)
    found = Statistics({Cell(0, 0): summarize(pixels)}, (Subject("a", uri),), ("c",))
    table = found.dataset()
    told = [repr(found), repr(found.images), repr(table.attrs), *map(repr, kept(found).values())]
    with pytest.raises(IdentityError) as error:
        found + replace(found, images=(Subject("a", uri.replace("/a.", "/b.")),))
    told.append(str(error.value))
    assert not [text for text in told if "topsecret" in text]
    image = json.loads(table.attrs["provenance"])["images"]["a"]
    assert image["uri"].endswith("/a.zarr")


# -- selecting, telling ---------------------------------------------------------------------------


@settings(max_examples=25)
@given(pixels=data_sets(["uint8"]), data=st.data())
def test_select_is_a_survey_of_some(pixels: dict[str, Pixels], data: st.DataObject) -> None:
    """What is selected is as if the others had never been there."""
    names = data.draw(st.sets(st.sampled_from(list(pixels)), min_size=1))
    some = {name: image for name, image in pixels.items() if name in names}
    found = table_of(pixels).select(image=sorted(names))
    assert kept(found) == kept(table_of(some))
    [one, *_] = some
    assert kept(found.select(image=one)) == kept(table_of({one: some[one]}))


def test_attributes_say_what_the_numbers_are() -> None:
    """Over which pixels, in which unit, how exactly, from where."""
    subject = Subject("a", "s3://b/a.zarr", 2, {"stain": "HE"})
    summary = summarize(np.arange(9, dtype="uint8"))
    found = Statistics({Cell(0, 0): summary}, (subject,), ("c",), over="mask", versions=("9.9",))
    table = found.dataset(method="linear", by="stain")
    told = {k: table.attrs[k] for k in ("over", "each", "method", "by", "unit", "exact")}
    assert told == {
        **{"over": "mask", "each": "once", "method": "linear", "by": "stain"},
        **{"unit": "grey level", "exact": True},
    }
    assert table.attrs["relative_error"] == 0
    assert json.loads(table.attrs["provenance"]) == {
        "patchloom": ["9.9"],
        "images": {"a": {"uri": "s3://b/a.zarr", "level": 2}},
    }
    units = {name: table[name].attrs["units"] for name in table.data_vars}
    assert units.pop("count") == units.pop("nans") == units.pop("nodata") == "pixel"
    assert set(units.values()) == {"grey level"}
    assert all(table[name].attrs["long_name"] for name in table.data_vars)


def test_a_dataset_that_is_not_exact_says_so() -> None:
    """Too many different values for one pass: the bound is stated, and kept."""
    pixels = np.random.default_rng(0).normal(1000, 50, (1, 1, 300, 300))
    found = table_of({"a": pixels}).pooled(Q)
    assert found.attrs["exact"] is found.attrs["mad_exact"] is False
    error = found.attrs["relative_error"]
    assert 0 < error < 0.01
    want = np.percentile(pixels, Q)
    assert (abs(found["percentile"].values.ravel() - want) <= error * abs(want)).all()


def test_refined_summaries_are_exact_where_they_were_refined() -> None:
    """Passes for a volume make its percentiles exact; not those of others, nor the MAD."""
    rng = np.random.default_rng(0)
    pixels = {name: rng.normal(1000, 50, (1, 1, 300, 300)) for name in "ab"}
    found = table_of(pixels, planes=False)
    cells = dict(found.summaries)
    for k, image in enumerate(pixels.values()):
        while (wanted := targets(cells[Cell(k, 0)], Q, median=True)) is not None:
            tally = Tally(image.dtype, targets=wanted)
            tally.add(image)
            cells[Cell(k, 0)] = cells[Cell(k, 0)].refined(tally.summary(), wanted)
    found = replace(found, summaries=cells)
    table = found.dataset(Q)
    assert (table.attrs["exact"], table.attrs["mad_exact"]) == (True, False)
    assert table.attrs["relative_error"] == 0
    for name, image in pixels.items():
        row = table.sel(image=name)[{"channel": 0}]
        np.testing.assert_array_equal(row["percentile"], np.percentile(image, Q))
        assert row["median"].item() == np.median(image)
        mad = np.median(abs(image - np.median(image)))
        assert abs(row["mad"].item() - mad) <= (2 * np.median(image) + mad) / 512
    both = found.dataset(Q, by=None)
    assert both.attrs["exact"] is False
    want = np.percentile(np.concatenate([*pixels.values()]), Q)
    error = both.attrs["relative_error"] * abs(want)
    assert (abs(both["percentile"].values.ravel() - want) <= error).all()
    for q, exact in (((1, 99), True), ((2, 98), False)):
        told = json.loads(found.table(q).schema.metadata[b"statistics"])
        assert (told["percentiles"], told["exact"]) == ([*q], exact)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.dataset((1, 101)), "from 0 to 100"),
        (lambda t: t.dataset(method="spline"), "method= is one of"),
        (lambda t: t.dataset(by="sex"), "metadata column that all images have"),
        (lambda t: t.dataset(by="mixed"), "one type"),
        (lambda t: t.envelope((1, 50, 99)), "a low and a high"),
        (lambda t: t.table((99, 1)), "in that order"),
        (lambda t: t.select(image=["a", "z"]), "there are"),
        (lambda t: replace(t, over="moon"), "over= is one of"),
        (lambda t: replace(t, each="twice"), "each= is one of"),
        (lambda t: replace(t, channels=()), "count channels and images from 0"),
    ],
)
def test_mistakes_say_the_way_out(call: Any, message: str) -> None:
    """One sentence: the law, what it got, the way out."""
    ones = np.ones((1, 1, 2, 2), np.uint8)
    columns = {"a": {"mixed": "x", "sex": math.nan}, "b": {"mixed": 1, "sex": "f"}}
    with pytest.raises(ConfigError, match=message):
        call(table_of({"a": ones, "b": ones}, columns))


def test_an_envelope_needs_planes_and_ids_are_different() -> None:
    """What cannot be told is refused."""
    ones = np.ones((1, 1, 2, 2), np.uint8)
    with pytest.raises(ConfigError, match="planes=True"):
        table_of({"a": ones}, planes=False).envelope()
    with pytest.raises(IdentityError, match="names of their own"):
        Statistics({}, (Subject("a"), Subject("a")), ("c",))


# -- outliers -------------------------------------------------------------------------------------


@given(
    levels=st.lists(st.integers(0, 200), min_size=1, max_size=12),
    noise=st.sampled_from([0, 1, 10]),
)
def test_outliers_follow_the_stated_rule(levels: list[int], noise: int) -> None:
    """Images of a level and some noise: flagged beyond 3.5 units from the images' median."""
    pixels = {
        f"i{k:02}": np.array([[[[v, v + noise, v + 2 * noise]]]], np.uint8)
        for k, v in enumerate(levels)
    }
    rows = table_of(pixels, planes=False).outliers((100,)).to_pylist()
    want = []
    if len(levels) >= AT_LEAST:
        typical = standard.median(levels)
        away = [abs(v - typical) for v in levels]
        own = noise * math.sqrt(2 / 3)
        unit = max(1.482602218505602 * standard.median(away), 0.1 * own)
        unit = unit or math.sqrt(math.pi / 2) * standard.fmean(away)
        want = [f"i{k:02}" for k, v in enumerate(levels) if unit and away[k] / unit > FAR]
    assert [row["image"] for row in rows if row["number"] == "median"] == want
    assert [row["image"] for row in rows if row["number"] == "p100"] == want
    assert [row["image"] for row in rows] == sorted(row["image"] for row in rows)
    for row in rows:
        assert abs(row["z"]) > FAR
        assert (row["z"] > 0) == (row["value"] > row["typical"])


def test_a_single_odd_image_is_found() -> None:
    """Nine alike and one that is bright in one channel; an empty one is nobody's outlier."""
    rng = np.random.default_rng(0)
    pixels = {f"i{k}": rng.integers(0, 100, (2, 1, 30, 30)).astype("uint16") for k in range(9)}
    pixels["odd"] = pixels["i0"] + np.array([0, 5000], np.uint16)[:, None, None, None]
    pixels["void"] = np.zeros((2, 1, 0, 0), np.uint16)
    rows = table_of(pixels).outliers().to_pylist()
    far = [(row["image"], row["channel"], row["number"]) for row in rows]
    assert far == [("odd", "c1", "median"), ("odd", "c1", "p1"), ("odd", "c1", "p99")]
    assert all(row["z"] > 100 for row in rows)


# -- the document of a store ----------------------------------------------------------------------

OLD = {
    "over": "patches",
    "images": ["a", "b"],
    "channels": ["c"],
    "quantiles": [0.01, 0.99],
    "exact": False,
    "count": [[4], [0]],
    "nans": [[1], [2]],
    "mean": [[1.5], [None]],
    "std": [["inf"], [None]],
    "min": [[0.0], [None]],
    "max": [[3.0], [None]],
    "percentile": [[[0.5, 2.5]], [[None, None]]],
}
"""As version 0.1 wrote it."""


def test_old_documents_still_read() -> None:
    """What they do not tell is not there, and stays unknown where newer images join them."""
    table = from_document(OLD)
    assert "median" not in table
    assert table["count"].values.tolist() == [[4], [0]]
    assert math.isinf(table["std"][0, 0].item())
    assert (table.attrs["exact"], table.attrs["relative_error"]) == (False, 1 / 256)
    assert bars_of(OLD) == {}
    new = document({(0, 0): summarize(np.arange(5.0))}, ["n"], ["c"], (1, 99), "patches")
    for both, place in ((joined([OLD, new]), 2), (joined([new, OLD]), 0)):
        found = from_document(json.loads(json.dumps(both, allow_nan=False)))
        assert found["median"].sel(image="n").item() == 2
        assert np.isnan(found["median"].sel(image=["a", "b"])).all()
        assert found["nodata"].values.tolist() == [[0]] * 3
        assert (found.attrs["exact"], found.attrs["relative_error"]) == (False, 1 / 256)
        assert list(bars_of(both)) == [(place, 0)]


@settings(max_examples=30)
@given(pixels=data_sets(), method=st.sampled_from(METHODS))
def test_the_document_is_the_dataset(pixels: dict[str, Pixels], method: str) -> None:
    """Through JSON and back: the same numbers, units and attributes as the value gives."""
    found = table_of(pixels, planes=False)
    told = document(
        {(c.image, c.channel): s for c, s in found.summaries.items()},
        list(pixels),
        found.channels,
        Q,
        "image",
        method=method,
    )
    told = json.loads(json.dumps(told, allow_nan=False))
    images = [{"id": s.id, "uri": s.uri, "level": s.level} for s in found.images]
    assert from_document(told, found.versions[0], images).identical(found.dataset(Q, method=method))
    bars = bars_of(told)
    for cell, summary in found.summaries.items():
        assert bars[cell.image, cell.channel] == Bars.of(summary)


def test_a_store_tells_median_mad_and_bars() -> None:
    """What a run writes is what NumPy says of the pixels, and where they came from."""
    pixels = np.random.default_rng(0).integers(0, 900, (2, 32, 32), dtype="uint16")
    images = patchloom.open_images(pixels, axes="CYX", ids=["a"])
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]})
    patchloom.materialize(plan, "memory://statistics-told.zarr", progress=False)
    store = patchloom.open_patches("memory://statistics-told.zarr")
    for c, channel in enumerate(pixels.astype("float64")):
        row = store.statistics.isel(image=0, channel=c)
        assert row["median"].item() == np.median(channel)
        assert row["mad"].item() == np.median(abs(channel - np.median(channel)))
        bars = bars_of(store.attributes["statistics"])[0, c]
        assert bars.counts == tuple(np.histogram(channel, bars.edges)[0])
        assert sum(bars.counts) + bars.below + bars.above == channel.size
    told = json.loads(store.statistics.attrs["provenance"])["images"]
    assert told == {"a": {"uri": "", "level": 0}}


# -- bars -----------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(
    pixels=st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, st.integers(0, 40))),
    most=st.sampled_from([2, 16, MOST]),
)
def test_bars_count_every_pixel_once(pixels: Pixels, most: int) -> None:
    """Each pixel is in the bar that it lies in, or beyond all; widths are powers of two."""
    bars = Bars.of(summarize(pixels), most)
    wide = numbers(pixels)
    assert len(bars.counts) <= most
    edges = bars.edges
    for low, high, n in zip(edges, edges[1:], bars.counts, strict=False):
        assert n == np.count_nonzero((wide >= low) & (wide < high))
        assert low == bars.first * 2.0**bars.exponent or low > edges[0]
    if bars.counts:
        assert bars.below == np.count_nonzero(wide < edges[0])
        assert bars.above == np.count_nonzero(wide >= edges[-1])
    assert sum(bars.counts) + bars.below + bars.above == wide.size
    if pixels.dtype.kind in "biu":
        assert bars.exponent >= 0
    assert Bars.from_document(json.loads(json.dumps(bars.to_document()))) == replace(
        bars, most=MOST
    )


@given(parts=st.lists(hnp.arrays("float32", st.integers(0, 20)), min_size=3, max_size=3))
def test_bars_add_in_any_order(parts: list[Pixels]) -> None:
    """Widths are powers of two: bars of one are halves of another's, and none is guessed."""
    a, b, c = (Bars.of(summarize(part), 8) for part in parts)
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    whole = (a + b) + c
    assert len(whole.counts) <= 8
    n = sum(numbers(part).size for part in parts)
    assert sum(whole.counts) + whole.below + whole.above == n


def test_one_hot_pixel_does_not_squeeze_all_others() -> None:
    """The bars hold the middle 99.8 %; what lies beyond is counted beside them."""
    pixels = np.random.default_rng(0).integers(0, 200, 100_000).astype("uint16")
    pixels[7] = 65535
    bars = Bars.of(summarize(pixels))
    assert (bars.exponent, bars.above, len(bars.counts)) == (0, 1, 200)
    assert list(bars.counts) == np.bincount(pixels)[:200].tolist()


# -- names ----------------------------------------------------------------------------------------


def test_names_that_are_no_unicode_are_written(tmp_path: Path) -> None:
    """As names of files may be: escaped where text is written, as they are where they are kept."""
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    try:
        xarray.Variable("name", np.array([name])).to_index()
    except UnicodeEncodeError:
        pytest.skip("this xarray makes indexes of pandas, to which all text is UTF-8")
    cells = {Cell(k, 0): summarize(np.full(9, k, np.uint8)) for k in range(2)}
    subjects = [
        Subject(name, metadata={"stain": name}),
        Subject("caf\xe9", metadata={"stain": "b"}),
    ]
    found = Statistics(cells, tuple(subjects), (name,))
    assert found.table((1, 99))["sample_id"].to_pylist() == ["caf\\udce9", "caf\xe9"]
    found.save_csv(tmp_path / "found.csv")
    assert "caf\\udce9" in (tmp_path / "found.csv").read_text("utf-8")
    for by in ("image", "stain", None):
        found.to_html(tmp_path / "found.html", by=by, title=name)
        assert "caf\\udce9" in (tmp_path / "found.html").read_text("utf-8")
    found.save(tmp_path / "saved")
    assert Statistics.open(tmp_path / "saved").images == found.images
    far = [Cell(k, 0) for k in range(12)]
    many = Statistics(
        {cell: summarize(np.full(9, 200 * (cell.image == 11), np.uint8)) for cell in far},
        tuple(Subject(f"{name}{k}") for k in range(12)),
        (name,),
    )
    assert {row["image"] for row in many.outliers((1, 99)).to_pylist()} <= {"caf\\udce911"}
    many.to_html(tmp_path / "many.html")
