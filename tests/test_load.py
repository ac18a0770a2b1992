"""Batches of a store as NumPy arrays: the pixels of the store, in the order that is said.

Laws: an epoch visits each committed patch once, whatever the order, store and number of ranks; a
batch equals the rows of the store that it names; who resumes gets the exact next batch; an error
comes to whoever asks for the batch, and leaves no thread; nothing that is pickled holds a secret.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr

import patchloom
from patchloom.errors import AccessError, ConfigError, StoreError
from patchloom.load.augment import Augment
from patchloom.load.course import Course
from patchloom.load.order import SHUFFLES
from patchloom.load.patches import Patches
from patchloom.load.sampling import Sampling
from patchloom.load.visit import Visit
from patchloom.store.patch_reader import PatchReader
from tests.held_patches import HeldPatches
from tests.servers.s3 import S3Server
from tests.test_exports import make_store

Batch = dict[str, Any]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> patchloom.PatchStore:
    """Of 32 patches, 5 a shard, with labels and targets."""
    return make_store(str(tmp_path_factory.mktemp("store") / "s.zarr"))


def check(store: patchloom.PatchStore, batches: list[Batch]) -> None:
    """Batches with a key ``"row"`` are the store's rows, each once."""
    rows = np.concatenate([batch["row"] for batch in batches])
    assert sorted(rows.tolist()) == store.manifest["row"].to_pylist()
    for batch in batches:
        for key, array in {"image": "images", "labels": "labels", "target": "targets"}.items():
            if array in store.arrays_held:
                assert batch[key].dtype == store.array(array).dtype
                assert np.array_equal(batch[key], store.read(batch["row"], array))


def same(found: list[Batch], expected: list[Batch]) -> bool:
    """Whether they are the same batches, to the bit."""
    return len(found) == len(expected) and all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
        for a, b in zip(found, expected, strict=True)
    )


# -- what comes ---------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [*SHUFFLES, True, False])
@pytest.mark.parametrize("threads", [0, 3])
def test_an_epoch_is_the_store(
    store: patchloom.PatchStore, shuffle: bool | str, threads: int
) -> None:
    """All arrays of all patches, in any order, made by any number of threads."""
    loader = store.batches(7, shuffle=shuffle, columns="row", threads=threads, window=2)
    batches = list(loader)
    assert [len(batch["row"]) for batch in batches] == [7, 7, 7, 7, 4]
    assert len(loader) == 5
    check(store, batches)
    in_order = np.concatenate([batch["row"] for batch in batches]).tolist() == list(range(32))
    assert in_order == (shuffle in (False, "none"))
    assert same(list(store.batches(7, shuffle=shuffle, columns="row", window=2)), batches)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_share_an_epoch(store: patchloom.PatchStore, world: int) -> None:
    """As many batches on each, and each patch on one of them."""
    ranks = [
        list(store.batches(4, columns="row", seed=5, rank=rank, world=world))
        for rank in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    check(store, [batch for batches in ranks for batch in batches])


def test_epochs_follow_one_another(store: patchloom.PatchStore) -> None:
    """Each in an order of its own: within an iteration, by iterating again, or told."""
    loader = store.batches(8, columns="row", seed=1, epochs=3)
    whole = list(loader)
    assert loader.epoch == 3
    epochs = [whole[k : k + 4] for k in (0, 4, 8)]
    for epoch in epochs:
        check(store, epoch)
    assert not same(epochs[0], epochs[1])
    one = store.batches(8, columns="row", seed=1)
    assert [same(list(one), epoch) for epoch in epochs] == [True] * 3
    one.set_epoch(1)
    assert same(list(one), epochs[1])
    for_ever = iter(store.batches(8, columns="row", seed=1, epochs=None))
    assert same([next(for_ever) for _ in range(12)], whole)
    for_ever.close()


def test_keys_and_columns(store: patchloom.PatchStore) -> None:
    """Arrays that are asked for, columns of the manifest, and tuples of them."""
    [batch] = store.batches(32, arrays="images", columns=["image_id", "dose", "position"])
    assert [*batch] == ["image", "image_id", "dose", "position"]
    table = store.manifest.take(batch["position"])
    assert batch["image_id"].tolist() == table["image_id"].to_pylist()
    assert batch["dose"].tolist() == table["dose"].to_pylist()
    [(target, image)] = store.batches(32, fields=("target", "image"))
    assert target.shape == (32, 1, 16, 16)
    assert image.shape == (32, 2, 16, 16)
    with pytest.raises(ConfigError, match="got \\['labls'\\]"):
        store.batches(4, arrays=["labls"])
    with pytest.raises(ConfigError, match="got 'dosis'"):
        store.batches(4, columns=["dosis"])
    with pytest.raises(ConfigError, match="got \\['mask'\\]"):
        next(iter(store.batches(4, fields=["mask"])))


def test_a_column_takes_no_arrays_place() -> None:
    """Its values would stand where pixels are expected."""
    columns = {"image": [7, 8], "target": ["t", "u"], "position": [9, 9]}
    patches = HeldPatches({"images": np.zeros((2, 1, 1, 1)), "targets": np.ones((2, 1))}, columns)
    for name in ("image", "target"):
        with pytest.raises(ConfigError, match="one thing"):
            patches.batches(2, columns=["image_id", name])
    [batch] = patches.batches(2, arrays="images", columns=["target"], shuffle=False)
    assert batch["target"].tolist() == ["t", "u"]


def test_a_complete_store_is_loaded_without_its_manifest(store: patchloom.PatchStore) -> None:
    """How many patches there are, and where, is in its attributes."""
    again = patchloom.open_patches(store.url)
    next(iter(again.batches(4)))
    assert "manifest" not in vars(again)


def test_images_are_scaled_by_their_own_numbers(store: patchloom.PatchStore) -> None:
    """As `read` does it; by a kind, or numbers that are given."""
    for asked in ("min-max", store.normalization("min-max")):
        [batch] = store.batches(32, normalize=asked, columns="row")
        assert batch["image"].dtype == np.float32
        expected = store.read(batch["row"], normalize=store.normalization("min-max"))
        assert np.array_equal(batch["image"], expected)
        assert batch["labels"].dtype == np.uint8
    with pytest.raises(ConfigError, match="one of"):
        store.batches(4, normalize="median")


# -- other stores -------------------------------------------------------------------------


def test_an_appended_store(tmp_path: Path) -> None:
    """Between what was there and what was added, rows are reserved: no position is theirs."""
    pixels = [np.random.default_rng(k).integers(0, 999, (24, 24), "uint16") for k in range(3)]
    for n in (1, 3):
        images = patchloom.open_images(pixels[:n], ids=[*"abc"][:n])
        plan = patchloom.plan(
            images, {"name": "sequential", "patch_size": [8, 8]}, rows_per_shard=4
        )
        patchloom.materialize(plan, tmp_path / "s.zarr", progress=False)
    store = patchloom.open_patches(tmp_path / "s.zarr")
    assert len(store) > store.n_patches == 27
    assert store.blocks.tolist() == [0, 4, 8, 9, 13, 17, 21, 25, 27]
    assert store.rows_at(np.arange(27)).tolist() == store.manifest["row"].to_pylist()
    check(store, list(store.batches(5, columns="row", window=2)))


def test_a_store_with_gaps(tmp_path: Path) -> None:
    """What could not be read is not visited."""
    data = np.random.default_rng(0).integers(0, 999, (32, 32), "uint16")
    zarr.create_array(str(tmp_path / "a.zarr"), data=data, chunks=(8, 8), compressors=None)
    images = patchloom.open_images(str(tmp_path / "a.zarr"))
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [8, 8]}, rows_per_shard=3)
    (tmp_path / "a.zarr/c/1/1").write_bytes(b"broken")
    patchloom.materialize(plan, tmp_path / "s.zarr", progress=False, on_error="skip")
    store = patchloom.open_patches(tmp_path / "s.zarr")
    assert not store.complete
    assert store.n_patches == store.manifest.num_rows == 15
    assert store.blocks.tolist() == [0, 3, 5, 8, 11, 14, 15]
    check(store, list(store.batches(4, columns="row")))


@pytest.mark.parametrize("codec", ["blosc-zstd", "blosc-lz4", "zstd", "none"])
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "float32"])
def test_codecs_and_types(codec: str, dtype: str, tmp_path: Path) -> None:
    """Any that a store is written with."""
    data = np.random.default_rng(0).integers(0, 2, (40, 40)).astype(dtype)
    plan = patchloom.plan(
        patchloom.open_images(data), {"name": "sequential", "patch_size": [10, 10]}
    )
    patchloom.materialize(plan, tmp_path / "s.zarr", progress=False, codec=codec)
    store = patchloom.open_patches(tmp_path / "s.zarr")
    check(store, list(store.batches(5, columns="row", shuffle="exact")))


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("room", [1, 4, 64])
def test_single_patches_are_made_within_the_memory(
    room: int, threads: int, store: patchloom.PatchStore
) -> None:
    """As many together as their part of it holds twice, whatever is ahead."""
    one = sum(int(np.prod(shape)) * kind.itemsize for shape, kind in store.extents().values())
    course = store.course(None, memory=2 * room * one, threads=threads)
    pieces = []
    make = Course.make

    def counted(self: Course, epoch: int, places: Any) -> list[Any]:
        pieces.append(len(places))
        return make(self, epoch, places)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Course, "make", counted)
        assert len(list(course.run(0, course.batching(), range(32)))) == 32
    assert sum(pieces) == 32
    assert max(pieces) == min(max(1, room // 2), 32 - (2 if threads else 1))


def test_batches_that_grow_are_made_one_by_one() -> None:
    """What is ahead already counts: none is added until there is room again."""
    many = HeldPatches({"images": np.arange(200, dtype="u1").reshape(-1, 1, 1, 1)})
    made: list[int] = []

    def grow(batch: Batch) -> Batch:
        made.append(k := int(batch["image"].max()))
        return {"x": np.zeros(2**10 if k < 100 else 2**20, "u1"), "k": k}

    batches = many.batches(1, shuffle=False, transform=grow, memory=4 * 2**20, threads=4)
    for batch in batches:
        if batch["k"] > 120:
            assert len(made) - batch["k"] - 1 <= 3


# -- where one is -------------------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 1, 3, 4, 5, 7])
def test_resuming_gives_the_exact_next_batch(store: patchloom.PatchStore, done: int) -> None:
    """After any batch, also the last of an epoch; in a loader of its own."""
    made: dict[str, Any] = {"columns": "row", "seed": 3, "epochs": 2}
    loader = store.batches(8, **made)
    batches = iter(loader)
    for _ in range(done):
        next(batches)
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    rest = list(batches)
    again = patchloom.open_patches(store.url).batches(8, **{**made, "threads": 0})
    again.load_state_dict(state)
    assert same(list(again)[: len(rest)], rest)


def test_resuming_on_other_ranks_visits_what_is_left(store: patchloom.PatchStore) -> None:
    """Of two ranks with batches of 3, three with batches of 4."""
    before = [store.batches(3, columns="row", rank=rank, world=2) for rank in range(2)]
    seen = []
    for loader in before:
        batches = iter(loader)
        seen += [next(batches) for _ in range(2)]
        batches.close()
    states = [loader.state_dict() for loader in before]
    assert states[0] == states[1]
    for rank in range(3):
        loader = store.batches(4, columns="row", rank=rank, world=3)
        loader.load_state_dict(states[0])
        seen += list(loader)
    check(store, seen)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"shuffle": False}, {"shuffle": "exact"}, {"window": 2}, {"streams": 3}]
)
def test_a_state_of_another_order_is_refused(
    store: patchloom.PatchStore, other: dict[str, Any]
) -> None:
    """Rather than to go on somewhere."""
    state = store.batches(4, window=3).state_dict()
    with pytest.raises(ConfigError, match="belongs to one order"):
        store.batches(4, **{"window": 3, **other}).load_state_dict(state)


def test_a_state_of_other_patches_is_refused(store: patchloom.PatchStore) -> None:
    """Of as many patches in the same order, of another part, merger, or drawn by other weights."""
    half, n = store.n_patches // 2, store.n_patches
    low, high = store.take(np.arange(half)), store.take(np.arange(half) + n - half)
    pixels = {"images": np.zeros((n, 1, 2, 2), "u1")}
    held = [HeldPatches(pixels, {"x": np.arange(n) + k}) for k in range(2)]
    weights = np.ones((2, n))
    weights[1, -1] = 2
    pairs: list[tuple[Patches, Patches, Any]] = [
        (low, high, {}),
        (patchloom.merge_patches([low, high]), patchloom.merge_patches([high, low]), {}),
        (store, patchloom.merge_patches([low, high]), {"shuffle": "exact"}),
        (held[0], held[1], {}),
    ]
    for one, other, options in pairs:
        state = one.batches(4, **options).state_dict()
        one.batches(5, rank=1, world=3, **options).load_state_dict(state)
        with pytest.raises(ConfigError, match="same part of them"):
            other.batches(4, **options).load_state_dict(state)
    drawn = [store.batches(4, order=store.sampling(one)) for one in weights]
    with pytest.raises(ConfigError, match="order="):
        drawn[1].load_state_dict(drawn[0].state_dict())


def test_a_column_is_not_shadowed(tmp_path: Path) -> None:
    """One that is called as what batches have of their own is refused, and loaded by another."""
    rng = np.random.default_rng(0)
    images = patchloom.open_images(
        [rng.integers(0, 99, (8, 8), dtype="u1") for _ in "ab"],
        ids=["a", "b"],
        sample=[{"position": 7 + k, "image": f"im{k}"} for k in range(2)],
    )
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [4, 4]})
    url = str(tmp_path / "s.zarr")
    patchloom.materialize(plan, url, progress=False)
    store = patchloom.open_patches(url)
    both = patchloom.merge_patches([store, store])
    for patches in (store, store.take(np.arange(1, 8)), both, patchloom.stream(plan)):
        for name in ("position", "image"):
            with pytest.raises(ConfigError, match=f"(?s){name}.*columns=..new name"):
                patches.batches(4, columns=["image_id", name])
        told = {"stage": "position", "file": "image", "k": "row"}
        [batch] = patches.batches(99, columns=told, shuffle=False)
        assert {*batch} == {"image", *told}
        for key, name in told.items():
            assert batch[key].tolist() == patches.manifest[name].to_pylist()
        assert patches.column_names == patches.manifest.column_names
    [batch] = store.batches(99, columns={"stage": "position", "position": "row"})
    assert (batch["stage"] == 7 + batch["position"] // 4).all()


def test_the_place_of_a_patch_has_any_key(store: patchloom.PatchStore) -> None:
    """As long as no column of the manifest has that name."""
    [batch] = store.batches(99, columns={"at": "position"}, arrays="images")
    assert sorted(batch["at"].tolist()) == [*range(32)]
    with pytest.raises(ConfigError, match="some of the manifest's"):
        store.batches(4, columns={"at": "where"})


def test_names_of_columns_need_no_manifest(store: patchloom.PatchStore) -> None:
    """Of a complete store one part tells them."""
    fresh = patchloom.open_patches(store.url)
    fresh.batches(4, columns=["position", "row"])
    assert "manifest" not in vars(fresh)
    assert fresh.column_names == store.manifest.column_names


def test_a_state_without_patches_is_taken(store: patchloom.PatchStore) -> None:
    """It is of an earlier version; what it tells must be right."""
    state = store.batches(4).state_dict()
    old = {name: state[name] for name in ("epoch", "visited", "n", "seed", "order")}
    store.batches(4).load_state_dict(old)
    with pytest.raises(ConfigError, match="window="):
        store.batches(4, shuffle=False).load_state_dict(old)


def test_patches_are_known_where_they_are_sent(store: patchloom.PatchStore) -> None:
    """In any process, and by whoever opens the store anew."""
    for patches in (store, store.where("start_x > 8"), patchloom.merge_patches([store] * 2)):
        assert pickle.loads(pickle.dumps(patches)).identity == patches.identity
    assert patchloom.open_patches(store.url).identity == store.identity


class Many(HeldPatches):
    """Ten million patches that nobody looks at."""

    n_patches = 10**7
    identity = "many"


def test_telling_ten_million_patches_apart_is_quick() -> None:
    """It takes less than a second, once."""
    part = Many({"images": np.zeros((1, 1, 1, 1), "u1")}).take(np.arange(1, Many.n_patches))
    drawn = Sampling(part.n_patches, weights=np.ones(part.n_patches))
    loader = part.batches(64, order=drawn)
    begun = time.process_time()
    loader.state_dict()
    first = time.process_time()
    loader.state_dict()
    assert first - begun < 1
    assert time.process_time() - first < 0.1


def test_what_is_left_in_mid_epoch_begins_anew(store: patchloom.PatchStore) -> None:
    """Unless its state is loaded."""
    loader = store.batches(8, columns="row")
    first = next(iter(loader))
    assert same([next(iter(loader))], [first])
    loader.set_epoch(0)
    assert same([next(iter(loader))], [first])
    with pytest.raises(ConfigError, match="at least 1"):
        next(iter(store.batches(0)))


def test_what_has_no_batch_does_not_go_on_for_ever(store: patchloom.PatchStore) -> None:
    """It says so; a number of epochs is that many of nothing."""
    none = store.where("start_x > 9999")
    for patches, options in ((none, {}), (store, {"drop_last": True})):
        assert list(patches.batches(99, epochs=3, **options)) == []
        with pytest.raises(ConfigError, match="has none"):
            next(iter(patches.batches(99, epochs=None, **options)))


# -- what is done with batches ------------------------------------------------------------


class Drawn:
    """Adds what is drawn by address."""

    def visited(self, batch: Batch, visit: Visit) -> Batch:
        """Of each patch a number."""
        drawn = [
            hash((visit.seed, visit.epoch, *pair)) % 997
            for pair in zip(visit.positions.tolist(), visit.turns.tolist(), strict=True)
        ]
        return {**batch, "drawn": np.array(drawn)}


def test_what_is_drawn_has_an_address(store: patchloom.PatchStore) -> None:
    """The same on any number of threads and ranks, whatever is a batch."""
    found = []
    for size, world, threads in ((8, 1, 0), (5, 1, 3), (3, 2, 1)):
        pairs: dict[int, int] = {}
        for rank in range(world):
            options: dict[str, Any] = {"rank": rank, "world": world, "threads": threads}
            for batch in store.batches(size, columns="row", seed=9, transform=Drawn(), **options):
                pairs.update(zip(batch["row"].tolist(), batch["drawn"].tolist(), strict=True))
        found.append(pairs)
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 32


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_error_comes_in_its_turn_and_leaves_no_thread(
    store: patchloom.PatchStore, threads: int
) -> None:
    """Batches before it are handed out; the error is that of the function."""
    broken = next(iter(store.batches(8, shuffle=False, columns="row")))["row"]
    fail_at = int(broken[-1]) + 1

    def fail(batch: Batch) -> Batch:
        if fail_at in batch["row"]:
            raise ZeroDivisionError("of the user")
        return batch

    before = set(threading.enumerate())
    batches = iter(store.batches(8, shuffle=False, columns="row", transform=fail, threads=threads))
    assert np.array_equal(next(batches)["row"], broken)
    with pytest.raises(ZeroDivisionError, match="of the user"):
        next(batches)
    assert set(threading.enumerate()) == before


def test_leaving_ends_the_threads(store: patchloom.PatchStore) -> None:
    """In mid-epoch."""
    before = set(threading.enumerate())
    batches = iter(store.batches(4, threads=3))
    next(batches)
    batches.close()
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("part", ["pixels", "index", "object", "lie"])
def test_damage_is_told(part: str, store: patchloom.PatchStore, tmp_path: Path) -> None:
    """With the object, or the row, and the way out."""
    shutil.copytree(store.url, tmp_path / "s.zarr")
    shard = tmp_path / "s.zarr/images/c/2/0/0/0"
    data = bytearray(shard.read_bytes())
    if part == "object":
        shard.unlink()
    elif part == "lie":
        [n, *_] = zarr.open_array(f"{tmp_path}/s.zarr/images", mode="r").shards or [0]
        index = np.frombuffer(bytes(data[-16 * n - 4 : -4]), "<u8").copy()
        index[1] = 2**50
        data[-16 * n - 4 :] = index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(
            4, "little"
        )
        shard.write_bytes(data)
    else:
        data[50 if part == "pixels" else -10] ^= 255
        shard.write_bytes(data)
    broken = patchloom.open_patches(tmp_path / "s.zarr")
    told = {
        "pixels": "row 1[0-4] of images",
        "index": "images/c/2",
        "object": "images/c/2.* gone",
        "lie": "row 10 of images.*its index tells of 1,125,899,906,842,624 bytes",
    }
    seen = []
    with pytest.raises(StoreError, match=told[part]) as caught:
        seen += list(broken.batches(5, shuffle=False))
    assert "verify STORE --repair" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


@pytest.mark.parametrize("lost", [1, 7])
def test_a_manifest_that_lost_parts_is_told(
    lost: int, store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """Rather than to give patches the columns of others."""
    shutil.copytree(store.url, tmp_path / "s.zarr")
    for part in sorted((tmp_path / "s.zarr/manifest").iterdir())[-lost:]:
        part.unlink()
    broken = patchloom.open_patches(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="verify STORE --repair"):
        next(iter(broken.batches(4, columns="row")))


def test_workers_see_what_was_seen_of_a_store_whose_job_goes_on(
    store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """Else positions would be those of other patches."""
    shutil.copytree(store.url, tmp_path / "s.zarr")
    attributes = tmp_path / "s.zarr/zarr.json"
    text = attributes.read_text()
    attributes.write_text(text.replace('"complete": true', '"complete": false', 1))
    part = (tmp_path / "s.zarr/manifest/00000003.parquet").rename(tmp_path / "part")
    loader = patchloom.open_patches(tmp_path / "s.zarr").batches(4, columns="row")
    sent = pickle.dumps(loader)
    part.rename(tmp_path / "s.zarr/manifest/00000003.parquet")
    assert same(list(pickle.loads(sent)), list(loader))


# -- remote -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def remote(s3_server: S3Server, store: patchloom.PatchStore) -> patchloom.PatchStore:
    """The same store in a bucket."""
    import fsspec

    options = s3_server.storage_options
    url = f"{s3_server.fresh_bucket()}/s.zarr"
    fs, root = fsspec.url_to_fs(url, **options)
    fs.put(store.url, root, recursive=True)
    return patchloom.open_patches(url, storage_options=options)


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_remote_store_gives_the_same_batches(
    shuffle: str, remote: patchloom.PatchStore, store: patchloom.PatchStore
) -> None:
    """And credentials are in no pickle of what workers get."""
    made: dict[str, Any] = {"shuffle": shuffle, "columns": "row", "seed": 2}
    loader = remote.batches(6, **made)
    assert same(list(loader), list(store.batches(6, **made)))
    secret = remote.location.options["secret"]
    assert secret.encode() not in pickle.dumps(loader)
    again = pickle.loads(pickle.dumps(remote.batches(6, **made)))
    assert same(list(again), list(store.batches(6, **made)))


def test_requests_of_a_remote_store(remote: patchloom.PatchStore) -> None:
    """A shard is few of them: its index once, and what lies together; or all of it, once."""
    n, shards = remote.n_patches, len(remote.blocks) - 1
    straight = remote.reader(by_block=True)
    for k in range(0, n, 5):
        straight.read(np.arange(k, min(k + 5, n)), ["images"])
    assert straight.n_requests <= 2 * shards
    mixed = remote.reader(by_block=True)
    for positions in np.random.default_rng(0).permutation(n).reshape(8, 4):
        mixed.read(positions, ["images"])
    assert mixed.n_requests < n + shards


def test_whole_shards_are_held_within_the_memory(remote: patchloom.PatchStore) -> None:
    """And no more: then ranges are fetched."""
    size = sum(
        len(remote.location.read(f"images/c/{k}/0/0/0") or b"")
        for k in range(len(remote.blocks) - 1)
    )
    for memory in (0, size // 2, 2 * size):
        reader = remote.reader(memory, by_block=True)
        for positions in np.arange(32).reshape(4, 8).T:
            found = reader.read(positions, ["images"])["images"]
            assert np.array_equal(found, remote.read(remote.rows_at(positions)))
            assert held(reader) <= memory


def test_what_comes_fits_besides_what_is_held(store: patchloom.PatchStore) -> None:
    """While blocks give room to the next ones."""
    size = max((Path(store.url) / f"images/c/{k}/0/0/0").stat().st_size for k in range(6))
    with pytest.MonkeyPatch.context() as patch:  # as if it was far away
        patch.setattr("patchloom.store.patch_reader.LocalFileSystem", ())
        reader = store.reader(2 * size, by_block=True)
    most, fetch = [], reader._fetch_whole

    def fetched(name: str, end: int) -> None:
        with reader._lock:
            most.append(sum(map(len, reader._held.values())) + sum(reader._coming.values()))
        fetch(name, end)

    reader._fetch_whole = fetched  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("patchloom.store.patch_reader._GAP", -1)
        for first in (0, 10, 20):
            places = first + np.array([0, 4, 5, 9])
            found = reader.read(places, ["images"])["images"]
            assert np.array_equal(found, store.read(places))
            assert reader._pool is not None
            reader._pool.shutdown(wait=True)
            reader._pool = None
    assert len(most) == 6
    assert max(most) <= 2 * size


@pytest.mark.parametrize("by_block", [True, False])
def test_the_system_is_asked_for_shards_of_a_local_store(
    by_block: bool, store: patchloom.PatchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each and all of it, as far as they fit the memory; nothing is held here."""
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("a system that is not asked")
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr("os.posix_fadvise", lambda *one: asked.append(one[:3]))
    for name, value in (("_GAP", -1), ("_ADVICE", 64), ("_TOGETHER", 1)):
        monkeypatch.setattr(f"patchloom.store.shard_files.{name}", value)
    sizes = [(Path(store.url) / f"images/c/{k}/0/0/0").stat().st_size for k in range(6)]
    for memory in (0, 2 * max(sizes), 6 * max(sizes)):
        asked.clear()
        reader = store.reader(memory, by_block=by_block)
        for places in np.arange(30).reshape(3, 10):
            for _ in range(2):
                found = reader.read(places[::-1], ["images"])["images"]
                assert np.array_equal(found, store.read(places[::-1]))
        assert reader._files is not None
        if reader._files._pool is not None:
            reader._files._pool.shutdown(wait=True)
        fits = memory // max(sizes) if not by_block else 6 if memory else 0
        assert len(asked) >= sum(-(-size // 64) for size in sizes[:fits])
        assert len({*asked}) == len(asked)
        assert not asked or memory
        assert not held(reader)


def test_few_indices_and_files_are_remembered(
    store: patchloom.PatchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is forgotten is read again."""
    for name in ("patch_reader._INDICES", "shard_files._FILES", "shard_files._FEWEST_FILES"):
        monkeypatch.setattr(f"patchloom.store.{name}", 0)
    monkeypatch.setattr("patchloom.store.patch_reader._FEWEST", 1)
    loader = store.batches(7, shuffle="exact", columns="row", memory=0, threads=3)
    check(store, list(loader))


def held(reader: PatchReader) -> int:
    """Bytes of whole shards."""
    with reader._lock:
        return sum(map(len, reader._held.values()))


def _sum_of(patches: patchloom.PatchStore, send: Any) -> None:
    try:
        send.send([int(batch["image"].sum()) for batch in patches.batches(8, shuffle="exact")])
    except BaseException as error:
        send.send(repr(error))


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_processes_of_any_kind_read_a_remote_store(
    method: str, remote: patchloom.PatchStore
) -> None:
    """Also one that was forked from a process that has read, and is reading: it never hangs."""
    batches = iter(remote.batches(8, shuffle="exact", epochs=None, threads=2))
    next(batches)
    expected = [int(b["image"].sum()) for b in remote.batches(8, shuffle="exact")]
    context: Any = multiprocessing.get_context(method)
    receive, send = context.Pipe(False)
    process = context.Process(target=_sum_of, args=(remote, send), daemon=True)
    process.start()
    try:
        assert receive.poll(60), "it hangs"
        assert receive.recv() == expected
    finally:
        process.kill()
        process.join()
        batches.close()


def test_a_bucket_out_of_reach_is_told(remote: patchloom.PatchStore) -> None:
    """By the loader, at its first batch, without the credentials."""
    there = remote.location
    options = {**there.options, "key": "nobody", "secret": "hunter2-hunter2"}
    away = type(remote)(type(there).of(there.url, options), remote.attributes)
    with pytest.raises(AccessError) as caught:
        next(iter(away.batches(4)))
    assert "hunter2" not in str(caught.value)


def test_augmentations_are_transformations_of_loaders(store: patchloom.PatchStore) -> None:
    """All arrays move, by the address of each patch: the same in batches of any size."""
    augment = Augment(flip="yx", turn="yx")
    found = []
    for size, threads in ((32, 0), (5, 3)):
        moved = store.batches(size, columns="row", seed=6, transform=augment, threads=threads)
        batches = list(moved)
        rows = np.concatenate([batch["row"] for batch in batches])
        for key, array in {"image": "images", "labels": "labels", "target": "targets"}.items():
            pixels = np.concatenate([batch[key] for batch in batches])
            found.append(pixels[np.argsort(rows)])
            assert not np.array_equal(found[-1], store.read(np.arange(32), array))
    assert all(np.array_equal(a, b) for a, b in zip(found[:3], found[3:], strict=True))


def test_augmentations_go_by_patch_and_not_by_order(store: patchloom.PatchStore) -> None:
    """Shuffled or not, and as `Augment` says by itself; drawn with replacement by visit too."""
    augment = Augment(flip="yx", turn="yx")
    positions = np.arange(32)
    read = {"image": store.read(store.manifest["row"].to_numpy(), "images")}
    want = augment(read, positions, seed=6)["image"]
    orders: list[dict[str, Any]] = [{"shuffle": kind} for kind in (*SHUFFLES, True, False)]
    orders += [{"streams": 2}, {"order": store.sampling(replacement=False, seed=1)}]
    for how in orders:
        options = {"arrays": "images", "columns": "position", "transform": augment, **how}
        batches = [*store.batches(5, seed=6, **options)]
        found = np.concatenate([batch["image"] for batch in batches])
        where = np.concatenate([batch["position"] for batch in batches])
        assert np.array_equal(found[np.argsort(where)], want), how
    drawn = store.sampling(positions == 7, visits=32, seed=1)
    [batch] = store.batches(32, seed=6, arrays="images", transform=augment, order=drawn)
    assert len(np.unique(batch["image"], axis=0)) > 4
