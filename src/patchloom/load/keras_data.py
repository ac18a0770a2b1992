"""Keras: batches as a PyDataset, on any backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from patchloom.errors import ConfigError
from patchloom.load.course import Course

__all__ = ["KerasBatches"]


class KerasBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches ``x``, ``(x, y)`` or ``(x, y, sample_weight)`` of an epoch, which ends with Keras'.

    Arrays of four or more axes are images, whose channels are put where Keras expects them.
    """

    def __init__(
        self,
        course: Course,
        x: str | Sequence[str],
        y: str | Sequence[str] | None,
        sample_weight: str | None,
        channels: str | None,
        workers: int,
    ) -> None:
        super().__init__(workers=workers, use_multiprocessing=False, max_queue_size=2 * workers)
        if channels not in (None, "first", "last"):
            raise ConfigError(f"channels= is 'first' or 'last', got {channels!r}")
        told = keras.config.image_data_format().removeprefix("channels_")
        self._course, self._last = course, (channels or told) == "last"
        self._parts = [part for part in (x, y, sample_weight) if part is not None]
        if sample_weight is not None and y is None:
            raise ConfigError("sample_weight= goes with y=, got none")
        self._begun = False
        self.epoch = 0
        """Which epoch batches are of."""

    def __len__(self) -> int:
        return self._course.batching().n_steps

    def __getitem__(self, index: int) -> Any:
        [batch] = self._course.make(self.epoch, self._course.batching(), [index])
        made = tuple(self._part(batch, part) for part in self._parts)
        return made if len(made) > 1 else made[0]

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
        """Keras calls it, before the first epoch too: the next epoch comes."""
        self.epoch, self._begun = self.epoch + self._begun, False

    def set_epoch(self, epoch: int) -> None:
        """Which epoch batches are of: that of ``fit(initial_epoch=)``."""
        self.epoch = int(epoch)
