"""PyTorch: patches and batches as datasets, and a DataLoader that knows where it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from patchloom.errors import ConfigError, PatchloomError
from patchloom.load.batching import Batching
from patchloom.load.bookmark import Bookmark
from patchloom.load.course import Course

__all__ = ["OrderSampler", "TorchBatches", "TorchLoader", "TorchPatches", "tensors"]

_WIDER: dict[str, Any] = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}


def tensors(value: Any) -> Any:
    """What is made of arrays as tensors, which share their memory.

    Unsigned integers of 16 and 32 bits, with which PyTorch hardly calculates, become int32 and
    int64. So do those of 64 bits, if they fit. Text becomes a list. All else stays as it is.

    Raises
    ------
    ConfigError
        If a number does not fit.
    """
    if isinstance(value, Mapping):
        return {key: tensors(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return getattr(value, "_make", type(value))(tensors(item) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind not in "biufc":
        return value.tolist()
    if (wider := _WIDER.get(value.dtype.name)) is not None:
        if value.dtype.itemsize == 8 and value.size and value.max() > np.iinfo(wider).max:
            raise ConfigError(
                "of uint64 a tensor is int64, but a value is larger than that holds; "
                "make it another type by transform="
            )
        value = value.astype(wider)
    native = np.asarray(value, value.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def _in_group() -> bool:
    return bool(torch.distributed.is_available() and torch.distributed.is_initialized())


def _clock() -> Any:
    """Epoch and first visit; shared, so that workers that live on are told the next epoch."""
    return torch.zeros(2, dtype=torch.int64).share_memory_()


@contextmanager
def _by_itself() -> Iterator[None]:
    """An error of ours leaves a worker without its cause: of that torch prints all, secrets too."""
    try:
        yield
    except PatchloomError as error:
        if get_worker_info() is None:
            raise
        raise error from None


class _Placed:
    """Where it is: rank and world, and an epoch that workers see change."""

    def __init__(self, course: Course, rank: int | None, world: int | None) -> None:
        if (rank is None) != (world is None):
            raise ConfigError(f"rank= and world= come together, got {rank} and {world}")
        self._course, self._rank, self._world = course, rank, world
        self._clock = _clock()

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned has no group to ask, but a rank that is spawned will have one.
        rank, world = self._place() if _in_group() else (self._rank, self._world)
        return {**self.__dict__, "_rank": rank, "_world": world}

    def _place(self) -> tuple[int, int]:
        if self._rank is not None and self._world is not None:
            return self._rank, self._world
        if _in_group():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def apart(self) -> Any:
        """The same, with an epoch of its own."""
        mine = copy(self)
        mine._clock = _clock()
        return mine

    @property
    def course(self) -> Course:
        """Which batches there are on this rank."""
        return self._course.among(*self._place())

    @property
    def epoch(self) -> int:
        """Which epoch is made next, or is under way."""
        return int(self._clock[0])

    def set_epoch(self, epoch: int) -> None:
        """Make some epoch from its beginning, next; where it is already, stay there."""
        if int(epoch) != self.epoch:
            self.go_to(int(epoch), 0)

    def go_to(self, epoch: int, visited: int) -> None:
        """Make some epoch next, after so many visits of it, over all ranks."""
        self._clock[0], self._clock[1] = epoch, visited


class TorchBatches(_Placed, IterableDataset):  # type: ignore[misc]
    """Batches, or patches one by one, in an order that does not depend on the workers.

    Each of several workers makes every so-many-th batch, and a ``DataLoader`` with
    ``batch_size=None`` hands them out in turn: their order is the same with any number. The epoch
    is the one that `set_epoch` tells, and stays the same until then.
    """

    def __init__(self, course: Course, rank: int | None = None, world: int | None = None) -> None:
        super().__init__(course, rank, world)
        self._made = (0, 0, 0)
        self._loaded: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Batches of an epoch (patches, one by one) on this rank, over all workers."""
        return self.course.batching(int(self._clock[1])).n_steps

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        course = self._course.among(*self._place(), threads=None if info is None else 0)
        epoch, start, done = self.epoch, int(self._clock[1]), 0
        if (state := self._loaded) is not None:
            self._loaded = None
            if state["workers"] != workers:
                raise ConfigError(
                    f"the state of a worker is of use to as many workers, but it was taken with "
                    f"{state['workers']} and there are {workers}; take the state of "
                    "dataset.loader(...), which goes on with any number"
                )
            epoch, start, done = state["epoch"], state["start"], state["made"]
        # Here, not with the first batch: torchdata asks for the state before it.
        self._made = (epoch, start, done)
        return self._run(course, range(worker, course.batching(start).n_steps, workers)[done:])

    def _run(self, course: Course, steps: range) -> Iterator[Any]:
        epoch, start, done = self._made
        batches = course.run(epoch, course.batching(start), steps)
        with _by_itself():
            for made, batch in enumerate(batches, done + 1):
                self._made = (epoch, start, made)
                yield tensors(batch)

    def loader(self, **options: Any) -> TorchLoader:
        """A ``DataLoader`` with a state.

        Parameters
        ----------
        **options
            Of ``torch.utils.data.DataLoader``: ``num_workers``, ``pin_memory``,
            ``multiprocessing_context``, ``prefetch_factor``, ``persistent_workers``.
        """
        return TorchLoader(self, **options)

    def state_dict(self) -> dict[str, Any]:
        """Where this worker is, for torchdata's ``StatefulDataLoader``."""
        info = get_worker_info()
        epoch, start, made = self._made
        return {
            **self._course.state(epoch, start),
            "start": start,
            "made": made,
            "workers": 1 if info is None else info.num_workers,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on, in this worker, after the batch that it made last."""
        self._course.check(state)
        self._loaded = dict(state)


class TorchPatches(_Placed, Dataset):  # type: ignore[misc]
    """Patches by position: ``dataset[i]`` is a dict of tensors; batches of them are read together.

    The order is a sampler's: ``DataLoader(dataset, batch_sampler=dataset.sampler(32))``.
    """

    def __len__(self) -> int:
        return self._course.recipe.patches.n_patches

    def __getitem__(self, position: int) -> Any:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[Any]:
        """Several patches, read together."""
        places = np.asarray(positions, np.int64)
        if ((places < -len(self)) | (places >= len(self))).any():
            raise IndexError(f"positions are in range({len(self)}), got {positions}")
        places = places % max(1, len(self))
        with _by_itself():
            found = self._course.recipe.make_each(places, self.epoch, np.zeros_like(places))
        return [tensors(one) for one in found]

    def sampler(self, batch_size: int | None = None) -> OrderSampler:
        """The order, as a sampler for this rank.

        Parameters
        ----------
        batch_size
            Of what a ``DataLoader`` takes as its ``batch_sampler``; None: for its ``sampler``.
        """
        return OrderSampler(self, batch_size)


class OrderSampler(Sampler):  # type: ignore[misc]
    """Positions in the order of an epoch, or batches of them: one rank's share."""

    def __init__(self, dataset: TorchPatches, batch_size: int | None) -> None:
        self._dataset, self._batch_size = dataset, batch_size

    def _batching(self) -> Batching:
        return replace(self._dataset.course, batch_size=self._batch_size).batching()

    def __len__(self) -> int:
        return self._batching().n_steps

    def __iter__(self) -> Iterator[Any]:
        epoch, order, batching = self._dataset.epoch, self._dataset.course.order, self._batching()
        for step in range(batching.n_steps):
            positions = order.at(epoch, batching.batch(step)).tolist()
            yield from positions if self._batch_size is None else [positions]

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next."""
        self._dataset.set_epoch(epoch)


class TorchLoader(Bookmark):
    """A ``DataLoader`` over `TorchBatches` that knows where it is, with any number of workers.

    Each iteration makes one epoch, the first time 0, then the next one. State counts what was
    handed out, not what workers have made ahead: `load_state_dict` goes on with the exact next
    batch, also with another number of workers or ranks.
    """

    def __init__(self, dataset: Any, **options: Any) -> None:
        if {"batch_size", "batch_sampler", "sampler", "shuffle", "drop_last"} & {*options}:
            raise ConfigError(
                "batches are made by the dataset, so loader() takes no batch_size=, shuffle=, "
                "drop_last= or samplers; give them to to_torch"
            )
        # Apart, for loaders of one dataset are each in an epoch of their own.
        self.dataset = dataset.apart()
        self.torch_loader = DataLoader(self.dataset, batch_size=None, **options)
        """What it iterates over."""

    @property
    def course(self) -> Course:
        """That of the dataset."""
        found: Course = self.dataset.course
        return found

    def _made(self, epoch: int, start: int, batching: Batching) -> Iterable[Any]:
        self.dataset.go_to(epoch, start)
        found: Iterable[Any] = self.torch_loader
        return found

    def __iter__(self) -> Iterator[Any]:
        return self._one_epoch()
