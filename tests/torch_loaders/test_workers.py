"""DataLoader workers of every kind hand out what one process does, in the same order.

Laws: the order depends on neither the number of workers nor how they are started; who resumes gets
the exact next batch, also with another number of workers; an error in a worker is raised in the
consumer, as itself; nothing needs a ``worker_init_fn``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import patchloom
from patchloom.errors import ConfigError, PatchloomError
from patchloom.load.visit import Visit

torch = pytest.importorskip("torch")
data = pytest.importorskip("torch.utils.data")

# Of torch: more workers than processors, threads and fork.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(280)]

KINDS = ["fork", "forkserver", "spawn"]
Batch = dict[str, Any]


def rows_of(batches: Any) -> list[list[int]]:
    """The rows of each batch."""
    return [batch["row"].tolist() for batch in batches]


def expected(store: patchloom.PatchStore, epoch: int = 0, **options: Any) -> list[list[int]]:
    """What NumPy batches are."""
    loader = store.batches(8, columns="row", **options)
    loader.set_epoch(epoch)
    return rows_of(loader)


@pytest.fixture
def dataset(store: patchloom.PatchStore) -> Any:
    """Batches of 8 with their rows."""
    return store.to_torch(batch_size=8, columns="row")


@pytest.mark.parametrize("kind", KINDS)
def test_workers_of_any_kind(kind: str, store: patchloom.PatchStore, dataset: Any) -> None:
    """Two epochs, by workers that live on; then from mid-epoch, with others."""
    loader = dataset.loader(
        num_workers=2, multiprocessing_context=kind, persistent_workers=True, prefetch_factor=3
    )
    first = list(loader)
    assert rows_of(first) == expected(store)
    for batch in first:
        assert batch["image"].dtype == torch.int32
        assert np.array_equal(batch["image"].numpy(), store.read(batch["row"].numpy()))
        assert np.array_equal(batch["target"].numpy(), store.read(batch["row"].numpy(), "targets"))
    batches = iter(loader)
    head = rows_of(next(batches) for _ in range(3))
    state = loader.state_dict()
    tail = rows_of(batches)
    assert head + tail == expected(store, epoch=1)
    for workers in (0, 1, 3):
        again = dataset.loader(
            num_workers=workers, multiprocessing_context="fork" if workers else None
        )
        again.load_state_dict(state)
        assert rows_of(again) == tail
        assert again.epoch == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_dataloader(workers: int, store: patchloom.PatchStore, dataset: Any) -> None:
    """Batches, or patches that it collates; the epoch is the one that is set."""
    assert len(dataset) == 10
    for epoch in (0, 0, 2):
        dataset.set_epoch(epoch)
        plain = data.DataLoader(dataset, batch_size=None, num_workers=workers)
        assert rows_of(plain) == expected(store, epoch)
    single = store.to_torch(columns="row")
    one = next(iter(single))
    assert one["image"].shape == (1, 16, 16)
    assert np.array_equal(one["image"].numpy(), store[one["row"]])
    collated = data.DataLoader(single, batch_size=10, num_workers=workers)
    found = [row for batch in collated for row in batch["row"].tolist()]
    assert sorted(found) == list(range(75))
    if not workers:
        assert found == [row for batch in expected(store) for row in batch]


@pytest.mark.parametrize("kind", [None, "fork", "spawn"])
def test_a_map_style_dataset(kind: str | None, store: patchloom.PatchStore) -> None:
    """Patches by position, read together; in our order, or any other."""
    patches = store.to_torch(iterable=False, columns="row")
    assert len(patches) == 75
    assert np.array_equal(patches[-1]["image"].numpy(), store[74])
    for outside in (75, -76):
        with pytest.raises(IndexError):
            patches[outside]
        with pytest.raises(IndexError):
            patches.__getitems__([0, outside])
    last = data.DataLoader(data.Subset(patches, [-1, 3]), 2)
    assert rows_of(last) == [[74, 3]]
    workers = {"num_workers": 2 if kind else 0, "multiprocessing_context": kind}
    ours = data.DataLoader(patches, batch_sampler=patches.sampler(8), **workers)
    assert len(ours) == 10
    batches = list(ours)
    assert rows_of(batches) == expected(store)
    for batch in batches:
        assert np.array_equal(batch["image"].numpy(), store.read(batch["row"].numpy()))
    theirs = data.DataLoader(patches, 8, shuffle=True, **workers)
    assert sorted(row for batch in theirs for row in batch["row"].tolist()) == list(range(75))
    sampler = patches.sampler()
    sampler.set_epoch(1)
    singles = data.DataLoader(patches, 8, sampler=sampler, **workers)
    assert rows_of(singles) == expected(store, epoch=1)


def late(worker: int) -> None:
    """The second worker begins when the first has long begun."""
    time.sleep(worker)


def test_loaders_of_one_dataset_do_not_meet(store: patchloom.PatchStore, dataset: Any) -> None:
    """One begins another epoch while workers of the other start."""
    batches = iter(dataset.loader(num_workers=2, worker_init_fn=late))
    first = rows_of([next(batches)])
    other = dataset.loader()
    other.set_epoch(3)
    assert rows_of([next(iter(other))]) == expected(store, 3)[:1]
    assert first + rows_of(batches) == expected(store)


def fail(batch: Batch) -> Batch:
    """As a function of a user might."""
    if 40 in batch["row"]:
        raise KeyError("of the user")
    return batch


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_reaches_the_consumer(workers: int, store: patchloom.PatchStore) -> None:
    """In its turn: batches before it are handed out."""
    dataset = store.to_torch(batch_size=8, shuffle=False, columns="row", transform=fail)
    batches = iter(dataset.loader(num_workers=workers))
    assert rows_of(next(batches) for _ in range(5)) == expected(store, shuffle=False)[:5]
    with pytest.raises(KeyError, match="of the user"):
        next(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_store_is_told(workers: int, store: patchloom.PatchStore, tmp_path: Any) -> None:
    """By an error of ours, which travels from a worker."""
    import shutil

    shutil.copytree(store.url, tmp_path / "s.zarr")
    (tmp_path / "s.zarr/images/c/3/0/0/0").write_bytes(b"broken")
    broken = patchloom.open_patches(tmp_path / "s.zarr")
    with pytest.raises(PatchloomError, match="verify STORE --repair"):
        list(broken.to_torch(batch_size=8).loader(num_workers=workers))


class Signed(MemoryFileSystem):  # type: ignore[misc]
    """Says its token where it refuses, as signed URLs do."""

    protocol = "signed"
    cachable = False

    def __init__(self, token: str = "", **more: Any) -> None:
        super().__init__(**more)
        self.token = token

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        found: str = MemoryFileSystem._strip_protocol(path.replace("signed://", "memory://"))
        return found

    def cat_file(self, path: str, start: Any = None, end: Any = None, **more: Any) -> Any:
        """All but pixels."""
        if "/c/" in path:
            raise PermissionError(f"403, url='https://host/{path}?X-Signature={self.token}'")
        return super().cat_file(path, start, end, **more)

    def cat_ranges(self, paths: Any, starts: Any, ends: Any, **more: Any) -> Any:
        """None."""
        raise PermissionError(f"403, url='https://host/{paths[0]}?X-Signature={self.token}'")


@pytest.mark.parametrize("iterable", [True, False])
def test_errors_of_workers_tell_no_secret(iterable: bool, store: patchloom.PatchStore) -> None:
    """Though torch sends the traceback with them."""
    fsspec.register_implementation("signed", Signed, clobber=True)
    fsspec.filesystem("memory").put(store.url, "/signed.zarr", recursive=True)
    away = patchloom.open_patches("signed://signed.zarr", storage_options={"token": "hunter2-two"})
    dataset = away.to_torch(iterable=iterable)
    batches = data.DataLoader(dataset, 8, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(PatchloomError, match="within reach") as caught:
        next(iter(batches))
    assert "in _get" in str(caught.value)
    assert "hunter2-two" not in str(caught.value)


class Drawn:
    """Adds what is drawn by address."""

    def visited(self, batch: Batch, visit: Visit) -> Batch:
        """Of each patch a number."""
        drawn = visit.positions * 7 + visit.turns * 3 + visit.epoch + visit.seed
        return {**batch, "drawn": drawn}


def test_what_is_drawn_is_the_same_in_any_worker(store: patchloom.PatchStore) -> None:
    """It goes by patch; and differs from one epoch to the next."""
    dataset = store.to_torch(batch_size=8, seed=3, transform=Drawn())
    epochs = []
    for workers in (0, 1, 2):
        loader = dataset.loader(num_workers=workers)
        epochs.append([[b["drawn"].tolist() for b in loader] for _ in range(2)])
    assert epochs[0] == epochs[1] == epochs[2]
    assert epochs[0][0] != epochs[0][1]


def test_a_draw_is_the_same_by_position_and_in_order(store: patchloom.PatchStore) -> None:
    """Of both styles of dataset: it is of the patch and the epoch."""
    options: dict[str, Any] = {"columns": "position", "seed": 3, "transform": Drawn()}
    batches = list(store.to_torch(batch_size=8, **options))
    by_position = store.to_torch(iterable=False, **options)
    for batch in batches:
        for place, drawn in zip(batch["position"].tolist(), batch["drawn"].tolist(), strict=True):
            assert by_position[place]["drawn"] == drawn


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("style", ["batches", "patches"])
def test_torchdata_resumes_it(workers: int, style: str, store: patchloom.PatchStore) -> None:
    """StatefulDataLoader: the exact next batch, in mid-epoch."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def made() -> Any:
        if style == "batches":
            dataset = store.to_torch(batch_size=8, columns="row")
            return stateful(dataset, batch_size=None, num_workers=workers)
        dataset = store.to_torch(iterable=False, columns="row")
        return stateful(dataset, batch_sampler=dataset.sampler(8), num_workers=workers)

    loader = made()
    batches: Iterator[Batch] = iter(loader)
    assert rows_of(next(batches) for _ in range(3)) == expected(store)[:3]
    state = loader.state_dict()
    assert rows_of(batches) == expected(store)[3:]
    again = made()
    again.load_state_dict(state)
    assert rows_of(again) == expected(store)[3:]


@pytest.mark.parametrize("persistent", [False, True])
def test_torchdata_resumes_what_not_all_workers_have_begun(
    persistent: bool, store: patchloom.PatchStore
) -> None:
    """After one batch of two workers, in an epoch that is not the first."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def made() -> Any:
        dataset = store.to_torch(batch_size=8, columns="row")
        dataset.set_epoch(2)
        return stateful(dataset, batch_size=None, num_workers=2, persistent_workers=persistent)

    loader = made()
    if persistent:
        loader.dataset.set_epoch(1)
        assert rows_of(loader) == expected(store, 1)
        loader.dataset.set_epoch(2)
    batches = iter(loader)
    assert rows_of([next(batches)]) == expected(store, 2)[:1]
    state = loader.state_dict()
    del batches
    again = made()
    again.load_state_dict(state)
    assert rows_of(again) == expected(store, 2)[1:]


class Pair(NamedTuple):
    """What a transformation may hand out."""

    x: Any
    y: Any


def test_types_and_tuples(store: patchloom.PatchStore) -> None:
    """What PyTorch hardly calculates with is widened; tuples stay tuples."""
    from patchloom.load.torch_data import tensors

    kinds = {"uint16": "int32", "uint32": "int64", "uint64": "int64", ">i2": "int16"}
    same = ("bool", "uint8", "int8", "int16", "int64", "float16", "float32", "float64")
    kinds |= {kind: kind for kind in same}
    for kind, told in kinds.items():
        made = tensors({"x": np.array([0, 1], kind)})["x"]
        assert made.dtype == getattr(torch, told)
        assert made.tolist() == [0, 1]
    assert tensors(np.array([2**16 - 1], "uint16")).tolist() == [65535]
    with pytest.raises(ConfigError, match="larger"):
        tensors(np.array([2**63], "uint64"))
    assert tensors(np.array(["a", "b"], object)) == ["a", "b"]
    number = tensors(np.array(3.0))
    assert (number.shape, number.item()) == ((), 3)
    assert tensors(np.arange(6).reshape(2, 3)[::-1].T).tolist() == [[3, 0], [4, 1], [5, 2]]
    pair = tensors(Pair(np.zeros(2), [np.ones(1)]))
    assert isinstance(pair, Pair)
    assert (pair.x.tolist(), pair.y[0].tolist()) == ([0, 0], [1])
    [(x, y)] = store.to_torch(batch_size=75, fields=("image", "target"), normalize="min-max")
    assert x.dtype == torch.float32
    assert y.shape == (75, 1, 16, 16)


def test_what_does_not_go_together_is_refused(store: patchloom.PatchStore) -> None:
    """With the way out."""
    with pytest.raises(ConfigError, match="sampler"):
        store.to_torch(batch_size=8, iterable=False)
    with pytest.raises(ConfigError, match="come together"):
        store.to_torch(batch_size=8, rank=1)
    with pytest.raises(ConfigError, match="to_torch"):
        store.to_torch(batch_size=8).loader(shuffle=True)
