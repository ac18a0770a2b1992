"""Bookmark: where a loader is in its epochs, as its batches are handed out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from patchloom.load.batching import Batching
from patchloom.load.course import Course

__all__ = ["Bookmark"]


class Bookmark(ABC):
    """Epoch and visits of a loader, which can be told, and gone on from."""

    epoch: int = 0
    """Which epoch is under way, or comes next."""
    _visited: int = 0
    _start: int = 0

    @property
    @abstractmethod
    def course(self) -> Course:
        """What the loader goes along."""

    @abstractmethod
    def _made(self, epoch: int, start: int, batching: Batching) -> Iterable[Any]:
        """The batches of an epoch after some visits of it."""

    def __len__(self) -> int:
        """Batches of one epoch, on each rank."""
        return self.course.batching().n_steps

    def _one_epoch(self) -> Iterator[Any]:
        start, self._start = self._start, 0
        epoch, batching, self._visited = self.epoch, self.course.batching(start), start
        n_steps = batching.n_steps
        for step, batch in enumerate(self._made(epoch, start, batching)):
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

        Of use as well to a loader with other ranks, workers, threads or another size of batches,
        in the same order.
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
