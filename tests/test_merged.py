"""Parts and mergers of patches: what a loader reads of them is what it reads of the whole."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import ConfigError, IdentityError, StoreError
from patchloom.load.conditions import Conditions
from patchloom.load.merged import merge_patches
from patchloom.load.microsplit import MicroSplit
from patchloom.load.patches import Patches
from tests.held_patches import HeldPatches

RNG = np.random.default_rng(4)


def held(n: int, first: int = 0, **columns: Any) -> HeldPatches:
    pixels = first + np.arange(n).reshape(n, 1, 1, 1)
    step = 3
    bounds = (*range(0, n, step), n) if n else (0, 0)
    return HeldPatches({"images": pixels, "labels": -pixels}, columns, bounds)


def shaped(shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    return {"images": np.zeros(shape, dtype), "labels": np.zeros((1, 1, 1, 1), "i8")}


@st.composite
def parts(draw: st.DrawFn) -> tuple[Patches, list[int]]:
    """Patches of any composition, and the numbers that their pixels show."""
    kind = draw(st.sampled_from(["plain", "some", "both"]))
    n, first = draw(st.integers(0, 9)), draw(st.integers(0, 100)) * 100
    plain, numbers = held(n, first, k=range(n)), [*range(first, first + n)]
    if kind == "plain":
        return plain, numbers
    if kind == "some":
        flags = draw(st.lists(st.booleans(), min_size=n, max_size=n))
        part = plain.take(np.array(flags, np.bool_))
        return part, [v for v, flag in zip(numbers, flags, strict=True) if flag]
    other, more = draw(parts())
    column = f"store {draw(st.uuids())}"
    return merge_patches({"a": plain, "b": other}, column=column), numbers + more


@settings(deadline=None)
@given(parts(), st.data())
def test_any_composition_reads_as_a_list(
    pair: tuple[Patches, list[int]], data: st.DataObject
) -> None:
    """Parts of mergers of parts: pixels by position are those of the list; blocks partition it."""
    patches, numbers = pair
    n = len(numbers)
    assert patches.n_patches == patches.manifest.num_rows == n
    blocks = patches.blocks
    assert (blocks[0], blocks[-1]) == (0, n)
    assert (np.diff(blocks) >= 0).all()
    assert patches.arrays_held == ("images", "labels")
    some = data.draw(st.lists(st.integers(0, n - 1), max_size=12)) if n else []
    again = pickle.loads(pickle.dumps(patches))
    if some:
        for one in (patches, again):
            read = one.reader(10**6).read(np.array(some, np.int64), ["labels", "images"])
            assert read["images"].ravel().tolist() == [numbers[k] for k in some]
            assert read["labels"].ravel().tolist() == [-numbers[k] for k in some]
        flags = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
        left = [v for v, flag in zip(numbers, flags, strict=True) if flag]
        part = patches.take(np.array(flags, np.bool_))
        batches = [*part.batches(3, seed=1, threads=0)]
        assert sorted(int(v) for b in batches for v in b["image"].ravel()) == sorted(left)


def test_where_and_select() -> None:
    patches = held(
        6,
        split=["train", "val"] * 3,
        coverage=[0.1, 0.9, 0.5, None, 0.8, 0.9],
        donor=pa.array(["a", "a", "b", None, "b", "a"]),
    )
    part = patches.where('split == "train" and coverage > 0.2')
    assert part.manifest["coverage"].to_pylist() == [0.5, 0.8]
    assert part.where("coverage > 0.6").reader().read(np.array([0]), ["images"])["images"] == 4
    arrays, rows = patches.select(donor="b")
    assert arrays["images"].ravel().tolist() == [2, 4]
    assert rows["split"].to_pylist() == ["train", "train"]
    arrays, rows = patches.select(["labels"], donor=["a", None], split="val")
    assert {k: v.ravel().tolist() for k, v in arrays.items()} == {"labels": [-1, -3, -5]}
    for wrong in ({"donr": "a"}, {"donor": 3}, {"coverage": "x"}):
        with pytest.raises(ConfigError):
            patches.select(**wrong)
    with pytest.raises(ConfigError, match="some of"):
        patches.select(["masks"], donor="a")


@pytest.mark.parametrize(
    "positions", [[1, 0], [0, 0], [6], [-1], [0.5], [[0]], np.zeros(5, bool), ["a"]]
)
def test_positions_that_cannot_be(positions: Any) -> None:
    with pytest.raises(ConfigError):
        held(6).take(positions)


def test_manifests_are_joined_by_name() -> None:
    """Missing columns are missing values; narrow types are widened."""
    a = held(2, k=pa.array([1, 2], pa.int8()), donor=["x", "y"])
    b = held(1, first=9, k=[0.5], coverage=[0.25])
    table = merge_patches({"a": a, "b": b}).manifest
    assert table["store"].to_pylist() == ["a", "a", "b"]
    assert table["k"].to_pylist() == [1, 2, 0.5]
    assert table["donor"].to_pylist() == ["x", "y", None]
    assert table["coverage"].to_pylist() == [None, None, 0.25]
    assert merge_patches([a, b]).manifest["store"].to_pylist() == ["0", "0", "1"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (HeldPatches({"images": np.zeros((1, 1, 1, 1), int)}), "hold the same arrays"),
        (HeldPatches(shaped((1, 1, 1, 2), "i8")), "one shape and dtype"),
        (HeldPatches(shaped((1, 1, 1, 1), "f4")), "one shape and dtype"),
        (held(1, donor=[1]), "one kind of values, got string in 'a' and int64 in 'b'"),
        (held(1, store=["x"]), "column="),
        (3, "opened patches"),
    ],
)
def test_what_does_not_merge(other: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        merge_patches({"a": held(2, donor=["x", "y"]), "b": other})
    with pytest.raises(ConfigError, match="at least one"):
        merge_patches([])


def test_channels_that_differ() -> None:
    one = HeldPatches({"images": np.zeros((1, 1, 1, 1))}, named=("DAPI",))
    two = HeldPatches({"images": np.zeros((1, 1, 1, 1))}, named=("GFP",))
    with pytest.raises(ConfigError, match="the same channels"):
        merge_patches([one, two])
    assert merge_patches([one, one]).channels == ("DAPI",)


def test_arrays_that_are_held_by_all() -> None:
    few = HeldPatches({"images": np.full((1, 1, 1, 1), 7)})
    both = merge_patches([held(2), few], arrays=["images"])
    assert both.arrays_held == ("images",)
    assert both.reader().read(np.array([2, 0]), ["images"])["images"].ravel().tolist() == [7, 0]
    with pytest.raises(ConfigError, match="are held by all"):
        merge_patches([held(2), few], arrays=["labels"])


# -- of stores --------------------------------------------------------------------------------


def a_store(path: Path, names: str, dtype: str = "uint16", size: int = 32) -> Any:
    pixels = [RNG.integers(0, 255, (2, size, size)).astype(dtype) for _ in names]
    images = patchloom.open_images(
        pixels,
        axes="cyx",
        ids=[*names],
        sample=[{"stain": "HE" if name < "c" else "PAS"} for name in names],
    )
    plan = patchloom.plan(
        images,
        {"name": "sequential", "patch_size": [16, 16]},
        rows_per_shard=3,
        split={"by": "image", "shares": {"train": 0.5, "val": 0.5}},
    )
    patchloom.materialize(plan, str(path), progress=False)
    return patchloom.open_patches(str(path)), dict(zip(names, pixels, strict=True))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("stores")
    one, pixels = a_store(folder / "one.zarr", "ab")
    two, more = a_store(folder / "two.zarr", "cde")
    return {"one": one, "two": two}, {**pixels, **more}


def test_stores_load_as_one(stores: Any) -> None:
    """Every patch once, its pixels those of its row; weighted, split and encoded as one store."""
    named, pixels = stores
    both = patchloom.merge_patches(named)
    assert both.n_patches == 5 * 4
    seen = []
    columns = ["image_id", "start_y", "start_x", "store"]
    for batch in both.batches(6, columns=columns, seed=3):
        for k in range(len(batch["image"])):
            name, y, x = (batch[c][k] for c in columns[:3])
            assert (batch["image"][k] == pixels[name][:, y : y + 16, x : x + 16]).all()
            assert batch["store"][k] == ("one" if name < "c" else "two")
            seen.append((name, y, x))
    assert len({*seen}) == len(seen) == 20
    drawn = both.sampling({"store": {"one": 3, "two": 1}}, visits=4000, seed=1)
    where = [batch["store"] for batch in both.batches(500, order=drawn, columns=["store"])]
    assert abs(np.mean(np.concatenate(where) == "one") - 0.75) < 0.03
    parts = patchloom.split_patches(both, "image_id", fractions={"train": 3, "val": 2})
    encoder = patchloom.Conditions.fit(parts["train"], "stain", unseen="zeros")
    assert isinstance(encoder, Conditions)
    for batch in parts["val"].batches(8, columns=encoder.columns, transform=encoder):
        expected = [[value == one for one in encoder.categories[0]] for value in batch["stain"]]
        assert (batch["condition"] == np.array(expected)).all()
    arrays, rows = both.select(["images"], image_id="d")
    for patch, row in zip(arrays["images"], rows.to_pylist(), strict=True):
        y, x = row["start_y"], row["start_x"]
        assert (patch == pixels["d"][:, y : y + 16, x : x + 16]).all()


def test_statistics_are_those_of_all_pixels(stores: Any) -> None:
    named, pixels = stores
    both = patchloom.merge_patches(named)
    found = both.summaries().dataset((50, 99), by=None)
    every = np.stack([*pixels.values()])
    for c in range(2):
        mine = found.isel(channel=c)
        assert mine["count"].item() == every[:, c].size
        assert mine["mean"].item() == pytest.approx(every[:, c].mean(), rel=1e-15)
        expected = np.percentile(every[:, c], (50, 99))
        assert mine["percentile"].values.ravel().tolist() == expected.tolist()
    scale = both.normalization("min-max", per="channel")
    for batch in both.batches(20, normalize=scale):
        assert batch["image"].dtype == np.float32
        assert (batch["image"].min(), batch["image"].max()) == (0, 1)
    for per in ("image", "all", "stain"):
        for kind in ("percentile", "mean-std"):
            assert both.normalization(kind, per).kind == kind
    batch = next(iter(both.batches(4, normalize="percentile")))
    assert batch["image"].dtype == np.float32
    # Two parts of one store are that store.
    halves = [named["one"].where("start_x == 0"), named["one"].where("start_x > 0")]
    assert patchloom.merge_patches(halves).summaries().count == named["one"].summaries().count


def test_parts_are_scaled_by_their_own_images(stores: Any) -> None:
    """Training patches by training images: what validation looks like plays no part."""
    named, pixels = stores
    both = patchloom.merge_patches(named)
    parts = patchloom.split_patches(both, "image_id", fractions={"train": 3, "val": 2}, seed=2)
    train = parts["train"]
    ids = {*train.manifest["image_id"].to_pylist()}
    every = np.stack([pixels[name] for name in sorted(ids)]).astype(float)
    mean, std = every.mean((0, 2, 3)), every.std((0, 2, 3))
    scale = train.normalization("mean-std", per="channel")
    for batch in parts["val"].batches(
        4, normalize=scale, columns=["image_id", "start_y", "start_x"]
    ):
        for k, name in enumerate(batch["image_id"]):
            y, x = batch["start_y"][k], batch["start_x"][k]
            raw = pixels[name][:, y : y + 16, x : x + 16]
            expected = (raw - mean[:, None, None]) / std[:, None, None]
            np.testing.assert_allclose(batch["image"][k], expected, rtol=1e-5, atol=1e-6)
    one = named["one"].where("image_id == 'a'").summaries()
    assert [image.id for image in one.images] == ["a"]


@pytest.mark.parametrize("per", ["image", "channel"])
def test_parts_are_scaled_by_the_percentiles_of_the_job(per: str, tmp_path: Path) -> None:
    """As the whole is."""
    pixels = [RNG.integers(0, 4000, (32, 32), "uint16") for _ in range(2)]
    images = patchloom.open_images(pixels, ids=["a", "b"])
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]})
    job: dict[str, Any] = {"percentiles": (5, 50, 90.3), "progress": False}
    patchloom.materialize(plan, str(tmp_path / "a.zarr"), **job)
    store = patchloom.open_patches(str(tmp_path / "a.zarr"))
    expected = store.read([0, 1], normalize=store.normalization("percentile", per=per))
    parts: list[Any] = [store.where("start_x > -1"), patchloom.merge_patches([store])]
    for part in parts:
        assert part.percentiles == store.percentiles == ((5, 50, 90.3), "linear")
        found = store.read([0, 1], normalize=part.normalization("percentile", per=per))
        np.testing.assert_array_equal(found, expected)
        other = part.normalization("percentile", per=per, percentiles=(1, 99))
        assert (store.read([0, 1], normalize=other) != expected).any()


def test_images_that_are_normalised_already(tmp_path: Path) -> None:
    images = patchloom.open_images(np.arange(64, dtype="uint8").reshape(8, 8), ids=["a"])
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [4, 4]})
    patchloom.materialize(plan, str(tmp_path / "a.zarr"), normalize="min-max", progress=False)
    store = patchloom.open_patches(str(tmp_path / "a.zarr"))
    scale = store.applied["images"]
    for patches in (store, patchloom.merge_patches([store]), store.where("start_x > 0")):
        with pytest.raises((ConfigError, StoreError), match="normalised once"):
            patches.normalization("min-max")
        with pytest.raises(ConfigError, match="normalised once"):
            patches.batches(4, normalize=scale)
        with pytest.raises(ConfigError, match="normalised once"):
            MicroSplit.multiplexed(patches, normalize=scale)


def test_conditions_of_whole_numbers_of_which_some_are_missing() -> None:
    """Batches hold them as fractions; in batches, and one by one."""
    patches = held(4, day=pa.array([3, None, 1, 3], pa.int64()))
    encoder = Conditions.fit(patches, "day")
    assert encoder.names == ("day=1", "day=3", "day=None")
    expected = [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]]
    options: dict[str, Any] = {"columns": encoder.columns, "transform": encoder, "shuffle": False}
    [batch] = patches.batches(4, **options)
    assert batch["condition"].tolist() == expected
    course = patches.course(None, **options)
    each = [*course.run(0, course.batching(), range(4))]
    assert [one["condition"].tolist() for one in each] == expected
    with pytest.raises(ConfigError, match="categories"):
        encoder.encode({"day": np.array([1.5])})


def test_many_stores_share_files_that_stay_open(tmp_path: Path) -> None:
    """A system has few of them: as many as one store holds open, or a few each."""
    many = [a_store(tmp_path / f"{k}.zarr", name, size=256)[0] for k, name in enumerate("abcd")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("patchloom.store.shard_files._FILES", 40)
        readers = [store.reader() for store in many]
        for _ in range(2):
            for store, reader in zip(many, readers, strict=True):
                reader.read(np.arange(store.n_patches), ["images"])
        n_open = [len(reader._files._files) for reader in readers if reader._files is not None]
    assert len(many[0].blocks) > 40
    assert 16 <= sum(n_open) <= 40


def test_stores_that_do_not_go_together(tmp_path: Path) -> None:
    one, _ = a_store(tmp_path / "one.zarr", "a")
    other, _ = a_store(tmp_path / "other.zarr", "b", "uint8")
    with pytest.raises(ConfigError, match=r"uint16 in '0' and .*uint8 in '1'"):
        patchloom.merge_patches([one, other])
    same, _ = a_store(tmp_path / "same.zarr", "a")
    merged = patchloom.merge_patches([one, same])
    for pooled in (merged.summaries, lambda: merged.normalization("min-max")):
        with pytest.raises(IdentityError, match="several stores have an array 'a'"):
            pooled()
    apart, _ = a_store(tmp_path / "apart.zarr", "b")
    assert patchloom.merge_patches([one, apart]).normalization("min-max").kind == "min-max"
    with pytest.raises(ConfigError, match="has none"):
        held(2).normalization("percentile")
    with pytest.raises(ConfigError, match="of a HeldPatches"):
        merge_patches([held(2)]).summaries()


def test_selections_of_a_store_pickle_without_pixels(stores: Any) -> None:
    named, _ = stores
    part = patchloom.merge_patches(named).where("stain == 'PAS'")
    assert part.manifest.num_rows == 12
    data = pickle.dumps(part)
    assert len(data) < 30_000
    again = pickle.loads(data)
    for a, b in zip(part.batches(5), again.batches(5), strict=True):
        assert (a["image"] == b["image"]).all()


def test_superpositions_of_a_store(stores: Any) -> None:
    """The same batches with and without threads, of channels of training patches only."""
    named, _ = stores
    train = patchloom.merge_patches(named).where("stain == 'PAS'")
    split = MicroSplit.multiplexed(train, alphas=[(0.5, 1), (0, 1)], uncorrelated=0.5)
    told = [
        [*train.batches(5, seed=7, transform=split, threads=threads, columns=["position"])]
        for threads in (0, 3)
    ]
    patches = train.reader().read(np.arange(12), ["images"])["images"]
    for a, b in zip(*told, strict=True):
        assert all((a[key] == b[key]).all() for key in a)
        for k in range(len(a["image"])):
            for c in range(2):
                assert (patches[:, c] == a["target"][k, c]).all((1, 2)).sum() == 1
            summed = (a["alphas"][k][:, None, None] * a["target"][k].astype("f4")).sum(0)
            np.testing.assert_allclose(a["image"][k, 0], summed, rtol=1e-6)
