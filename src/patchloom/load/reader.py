"""Reader: what turns positions into pixels, in one process; Readable: what makes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.normalization import Normalization

__all__ = ["Ints", "Pixels", "Readable", "Reader"]

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[Any]


class Reader(Protocol):
    """Reads patches by their positions; made once a process, and used by several threads.

    It holds open files, decoded or encoded bytes up to the memory that it was made with, and
    nothing that outlives a fork: a process that was forked makes one of its own.
    """

    def read(self, positions: Ints, arrays: Sequence[str]) -> dict[str, Pixels]:
        """Some patches, in the order asked for.

        Parameters
        ----------
        positions
            int64[n] positions in the manifest, in any order, also more than once.
        arrays
            Names out of `Readable.arrays_held`.

        Returns
        -------
        dict
            Of each array [n, channels, (z,) y, x] in its own dtype; fresh memory, which the
            caller may write to.
        """


class Readable(Protocol):
    """What loaders know of patches: a manifest, and pixels by position in it.

    It holds no open file, and pickles without pixels, manifest or credentials.
    """

    @property
    def arrays_held(self) -> tuple[str, ...]:
        """Names of the arrays: ``"images"``, and what there is of ``"labels"``, ``"targets"``,
        ``"weights"``, ``"targets_NAME"`` and ``"context_N"``.
        """

    @property
    def manifest(self) -> pa.Table:
        """One row a patch; its number is the patch's position."""

    @property
    def column_names(self) -> Sequence[str]:
        """Of the manifest, told without reading all of it where that can be."""

    @property
    def identity(self) -> str:
        """What tells them, position by position, from all others."""

    @property
    def n_patches(self) -> int:
        """Rows of the manifest, told without reading it where that can be."""

    @property
    def blocks(self) -> Ints:
        """Bounds, in positions, of what is decoded or fetched together: int64[k + 1], ascending,
        from 0 to `n_patches`.
        """

    def reader(self, memory: int | None = None, *, by_block: bool = False) -> Reader:
        """A reader for this process.

        Parameters
        ----------
        memory
            Bytes that it may hold between calls; None is a default of its own.
        by_block
            Whether the order stays with a few blocks until it is through with them, so that what
            is fetched or decoded of one should be whole, and held.
        """

    def normalization(self, kind: str, per: str = "image") -> Normalization:
        """What the images can be normalised with, of some kind."""
