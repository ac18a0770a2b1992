"""Keras: batches as a PyDataset, on any backend."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

from patchloom.errors import ConfigError
from patchloom.load.course import Course

__all__ = ["EpochSetter", "KerasBatches"]


class KerasBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches ``x``, ``(x, y)`` or ``(x, y, sample_weight)`` of an epoch; `epochs` tells which.

    Arrays of four or more axes are images, whose channels are put where Keras expects them.
    """

    def __init__(
        self,
        course: Course,
        x: str | Sequence[str],
        y: str | Sequence[str] | None,
        sample_weight: str | None,
        channels: str | None,
    ) -> None:
        # One worker is none: what Keras' own threads have ready when it has looked at a first
        # batch to build a model, it hands out instead of that batch.
        super().__init__(workers=1, use_multiprocessing=False)
        if channels not in (None, "first", "last"):
            raise ConfigError(f"channels= is 'first' or 'last', got {channels!r}")
        told = keras.config.image_data_format().removeprefix("channels_")
        self._course, self._last = course, (channels or told) == "last"
        self._parts = [part for part in (x, y, sample_weight) if part is not None]
        if sample_weight is not None and y is None:
            raise ConfigError("sample_weight= goes with y=, got none")
        threads = course.threads
        self._pool = ThreadPoolExecutor(threads, "patchloom-load") if threads else None
        self._coming: dict[tuple[int, int], Future[Any]] = {}
        self._ahead, self._last_asked = 1, -1
        self._begun, self._told = False, False
        self.epoch = 0
        """Which epoch batches are of."""

    def __len__(self) -> int:
        return self._course.batching().n_steps

    def __getitem__(self, index: int) -> Any:
        if self._pool is None:
            return self._make(self.epoch, index)
        follows, self._last_asked = index in (0, self._last_asked + 1), index
        coming = range(index, min(index + 1 + self._ahead, len(self)) if follows else index + 1)
        known, self._coming = self._coming, {}
        for k in coming:
            key = self.epoch, k
            found = known.pop(key, None) or self._pool.submit(self._make, *key)
            self._coming[key] = found
        for future in known.values():
            future.cancel()
        made = self._coming.pop((self.epoch, index)).result()
        self._ahead = self._course.ahead([made])
        return made

    def _make(self, epoch: int, index: int) -> Any:
        places = self._course.places(epoch, self._course.batching(), range(index, index + 1))
        [batch] = self._course.make(epoch, [*places])
        made = tuple(self._part(batch, part) for part in self._parts)
        return made if len(made) > 1 else made[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_coming": {}}

    def _part(self, batch: dict[str, Any], names: str | Sequence[str]) -> Any:
        if not isinstance(names, str):
            return {name: self._part(batch, name) for name in names}
        if names not in batch:
            raise ConfigError(
                f"x=, y= and sample_weight= are keys of a batch, {[*batch]}, got {names!r}"
            )
        found = batch[names]
        return np.moveaxis(found, 1, -1) if self._last and np.ndim(found) > 3 else found

    def on_epoch_begin(self) -> None:
        """Keras calls it."""
        self._begun = True

    def on_epoch_end(self) -> None:
        """Keras calls it: the next epoch comes."""
        if self._begun and not self._told:
            self.epoch += 1
        self._begun = False

    def set_epoch(self, epoch: int) -> None:
        """Which epoch batches are of."""
        self.epoch = int(epoch)

    def epochs(self) -> EpochSetter:
        """A callback that tells the epoch: ``fit(data, callbacks=[data.epochs()])``.

        Without it, Keras' look at the first batch of a model that is not built counts as an epoch,
        and ``initial_epoch=`` is not known.
        """
        self._told = True
        return EpochSetter(self)


class EpochSetter(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells batches which epoch Keras is at."""

    def __init__(self, data: KerasBatches) -> None:
        super().__init__()
        self._data = data

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Keras calls it before it asks for the epoch's first batch."""
        self._data.set_epoch(epoch)
