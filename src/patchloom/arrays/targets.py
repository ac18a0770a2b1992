"""Targets: where rows are written, so that readers see what is committed and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from patchloom.errors import ExistsError, StoreError

__all__ = ["Target", "Wanted"]

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Wanted:
    """An array as its writer asked for it."""

    name: str
    """Path inside the container."""
    element_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    unit: int
    """Rows that are written together."""
    chunk: int
    """Rows that are decoded together."""
    length: int | None
    append: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    """For the library that makes the array."""

    def check(self, where: str, shape: Sequence[int], dtype: np.dtype[Any], unit: int) -> None:
        """Whether rows can be appended to what stands somewhere.

        Raises
        ------
        ExistsError
            If they are not to be.
        StoreError
            If they do not fit.
        """
        if not self.append:
            raise ExistsError(
                f"an array is made once, but {where} has {shape[0]:,} rows; append=True goes on "
                "with it, another name leaves it alone"
            )
        found = (tuple(shape[1:]), dtype.newbyteorder("="))
        if len(shape) < 1 or found != (self.element_shape, self.dtype):
            raise StoreError(
                f"appended rows are like those that are there, got {self.element_shape} of "
                f"{self.dtype} for {where}, which has {found[0]} of {found[1]}"
            )
        if unit != self.unit:
            raise StoreError(
                f"rows are appended in the array's own pieces, got batch_size={self.unit} for "
                f"{where}, which is stored {unit} rows a piece; give batch_size={unit}"
            )


class Target(Protocol):
    """One array that rows are written to."""

    n_committed: int
    """Rows that a reader sees."""

    def tail(self, start: int) -> Pixels:
        """The committed rows from one on."""

    def put(self, start: int, rows: Pixels) -> None:
        """Store one piece, whole or the last one; no reader sees it yet."""

    def commit(self, n: int) -> None:
        """Make the first n rows what a reader sees, at once."""

    def close(self) -> None:
        """Let go of what is not committed."""
