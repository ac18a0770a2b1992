"""Chain: augmentations one after another, each with a stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from patchloom.errors import ConfigError
from patchloom.load.visit import ByAddress
from patchloom.randomness import key_of

__all__ = ["Chain"]


@dataclass(frozen=True)
class Chain(ByAddress):
    """What is called with a batch, one after another.

    Each has a seed made of the chain's and its place, so that two alike draw independently.

    Parameters
    ----------
    *steps
        `Augment`, an adapter of `hooks`, another chain, or any function with the same arguments.

    Examples
    --------
    >>> import numpy as np
    >>> from patchloom.load.augment import Augment
    >>> both = Chain(Augment(flip="x"), Augment(flip="x"))
    >>> batch = {"images": np.arange(2).reshape(1, 1, 1, 2).repeat(8, 0)}
    >>> both(batch, range(8), seed=0)["images"][:, 0, 0, 0].tolist()
    [0, 1, 0, 1, 0, 0, 0, 1]
    """

    steps: tuple[Callable[..., dict[str, Any]], ...]

    def __init__(self, *steps: Callable[..., dict[str, Any]]) -> None:
        wrong = [step for step in steps if not callable(step)]
        if wrong:
            raise ConfigError(f"the steps of a chain are called with a batch, got {wrong}")
        object.__setattr__(self, "steps", steps)

    def __call__(
        self,
        batch: Mapping[str, Any],
        positions: npt.ArrayLike,
        *,
        seed: int,
        epoch: int = 0,
        draw: npt.ArrayLike = 0,
    ) -> dict[str, Any]:
        """All steps; arguments are those of `Augment`."""
        out = dict(batch)
        for place, step in enumerate(self.steps):
            own = key_of("chain", seed, place)
            out = step(out, positions, seed=own, epoch=epoch, draw=draw)
        return out
