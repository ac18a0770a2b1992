"""Loader: batches in an order, and where one is in it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import Any

from patchloom.errors import ConfigError
from patchloom.load.course import Course

__all__ = ["Loader"]


class Loader:
    """Batches of NumPy arrays, epoch after epoch; knows where it is, and can be put there.

    Each iteration makes `epochs` epochs, the first time from 0, then from the one that comes next.
    One that is left in mid-epoch makes that epoch anew the next time, unless its state is loaded.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> images = patchloom.open_images(np.arange(36, dtype="uint8").reshape(6, 6))
    >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [2, 2]})
    >>> _ = patchloom.materialize(plan, "memory://loaded.zarr", progress=False)
    >>> loader = patchloom.open_patches("memory://loaded.zarr").batches(4, seed=1)
    >>> batches = iter(loader)
    >>> next(batches)["image"].shape
    (4, 1, 2, 2)
    >>> state = loader.state_dict()
    >>> rest = [batch["image"] for batch in batches]
    >>> loader.load_state_dict(state)
    >>> all(np.array_equal(a, b["image"]) for a, b in zip(rest, loader, strict=True))
    True
    """

    def __init__(self, course: Course, epochs: int | None = 1) -> None:
        self.course = course
        self.epochs = epochs
        """Epochs of one iteration; None goes on for ever."""
        self.epoch = 0
        """Which epoch is under way, or comes next."""
        self._visited = self._start = 0

    def __len__(self) -> int:
        """Batches of one epoch, on each rank."""
        return self.course.batching().n_steps

    def __iter__(self) -> Generator[Any, None, None]:
        if self.epochs is None and not len(self):
            raise ConfigError(
                "a loader that goes on for ever has batches, but an epoch of this one has none "
                f"(of {self.course.order.n} visits); give it more patches, smaller batches or "
                "epochs=1"
            )
        made = 0
        while self.epochs is None or made < self.epochs:
            yield from self._one_epoch()
            made += 1

    def _one_epoch(self) -> Iterator[Any]:
        start, self._start = self._start, 0
        epoch, batching, self._visited = self.epoch, self.course.batching(start), start
        n_steps = batching.n_steps
        for step, batch in enumerate(self.course.run(epoch, batching, range(n_steps))):
            # Before it is handed out: who has the last batch of an epoch is at the next one.
            last = step + 1 == n_steps
            self.epoch, self._visited = epoch + last, 0 if last else batching.visited(step + 1)
            yield batch
        if not n_steps:
            self.epoch, self._visited = epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Go on with the beginning of some epoch; where it is already, stay there."""
        if epoch != self.epoch:
            self.epoch, self._start, self._visited = int(epoch), 0, 0

    def state_dict(self) -> dict[str, int]:
        """Where it is, after the batch that was handed out last: plain numbers.

        Of use as well to a loader with other ranks, threads or another size of batches, in the
        same order.
        """
        return self.course.state(self.epoch, self._visited)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the batch after the one that was the last when the state was taken.

        Raises
        ------
        ConfigError
            If the state is of another order.
        """
        self.course.check(state)
        self.epoch = int(state["epoch"])
        self._start = self._visited = int(state["visited"])
