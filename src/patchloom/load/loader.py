"""Loader: batches in an order, and where one is in it."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from patchloom.errors import ConfigError
from patchloom.load.batching import Batching
from patchloom.load.bookmark import Bookmark
from patchloom.load.course import Course

__all__ = ["Loader"]


class Loader(Bookmark):
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
        self._course = course
        self.epochs = epochs
        """Epochs of one iteration; None goes on for ever."""

    @property
    def course(self) -> Course:
        """Which batches there are, and how they become pixels."""
        return self._course

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

    def _made(self, epoch: int, start: int, batching: Batching) -> Iterable[Any]:
        return self.course.run(epoch, batching, range(batching.n_steps))
