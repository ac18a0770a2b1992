"""Visit: where a draw of chance for some patches has its address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from patchloom.load.reader import Ints

__all__ = ["Addressed", "ByAddress", "Visit"]


@dataclass(frozen=True, eq=False)
class Visit:
    """Patches of one batch: what a random transformation draws by, in whichever worker it runs.

    Of a draw for patch k the address is ``(seed, epoch, positions[k], turns[k])``.
    """

    seed: int
    epoch: int
    positions: Ints
    """In the manifest: int64[n]."""
    turns: Ints
    """int64[n]. Of an order with replacement the number of the visit in its epoch, which tells
    apart those of the same patch; of others 0, so that no draw depends on the order."""


@runtime_checkable
class Addressed(Protocol):
    """A ``transform=`` that draws by address: it is called with the visit, others without."""

    def visited(self, batch: dict[str, Any], visit: Visit) -> dict[str, Any]:
        """A batch anew.

        Parameters
        ----------
        batch
            Of each key [n, channels, (z,) y, x], channels first; may be written to.
        visit
            Of these n patches.
        """


class ByAddress:
    """What is called with positions, seed, epoch and draw, as the ``transform=`` of a loader."""

    def __call__(
        self,
        batch: Mapping[str, Any],
        positions: npt.ArrayLike,
        *,
        seed: int,
        epoch: int = 0,
        draw: npt.ArrayLike = 0,
    ) -> dict[str, Any]:
        """A batch anew, by these addresses."""
        raise NotImplementedError

    def visited(self, batch: dict[str, Any], visit: Visit) -> dict[str, Any]:
        """A batch anew, by the address of its visit."""
        return self(batch, visit.positions, seed=visit.seed, epoch=visit.epoch, draw=visit.turns)
