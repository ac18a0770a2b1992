"""Patches: what can be trained from, wherever its pixels are; a patch is named by its position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from patchloom.errors import ConfigError
from patchloom.load.order import WINDOW, Ordering
from patchloom.load.reader import Ints, Reader
from patchloom.normalization import Normalization

if TYPE_CHECKING:
    from patchloom.load.keras_data import KerasBatches
    from patchloom.load.loader import Loader
    from patchloom.load.torch_data import TorchBatches, TorchPatches

__all__ = ["Patches"]


class Patches(ABC):
    """Patches of a store, of sources read live, or of several of these together.

    A subclass says what it holds and how it is read; loaders are the same for all of them. It
    holds no open file, and pickles without pixels, manifest or credentials, so that workers of
    any kind can have it.
    """

    window: int = WINDOW
    """Blocks that ``shuffle="window"`` mixes together, unless it is asked for others."""

    @property
    @abstractmethod
    def arrays_held(self) -> tuple[str, ...]:
        """Names of the arrays: ``"images"``, and what there is of ``"labels"``, ``"targets"``,
        ``"weights"``, ``"targets_NAME"`` and ``"context_N"``.
        """

    @property
    @abstractmethod
    def manifest(self) -> pa.Table:
        """One row a patch; its number is the patch's position."""

    @property
    @abstractmethod
    def blocks(self) -> Ints:
        """Bounds, in positions, of what is decoded or fetched together: int64[k + 1], ascending,
        from 0 to `n_patches`.
        """

    @abstractmethod
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

    @property
    def n_patches(self) -> int:
        """Rows of the manifest."""
        return int(self.manifest.num_rows)

    def normalization(self, kind: str, per: str = "image") -> Normalization:
        """What the images can be normalised with, of some kind.

        Raises
        ------
        ConfigError
            If there are no statistics.
        """
        raise ConfigError(
            f"normalize={kind!r} takes statistics, and a {type(self).__name__} has none; give a "
            "Normalization: that of a store, or Normalization.from_statistics"
        )

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: bool | str = True,
        seed: int = 0,
        epochs: int | None = 1,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        uneven: str = "repeat",
        arrays: Sequence[str] | None = None,
        columns: Sequence[str] = (),
        normalize: Normalization | str | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        window: int | None = None,
        streams: int = 1,
        order: Ordering | None = None,
        memory: int | str = "512 MiB",
        threads: int | None = None,
    ) -> Loader:
        """Batches of NumPy arrays."""
        raise NotImplementedError

    def batches(self, batch_size: int, **options: Any) -> Loader:
        """The same as `loader`."""
        return self.loader(batch_size, **options)

    def to_torch(
        self,
        *,
        batch_size: int | None = None,
        shuffle: bool | str = True,
        seed: int = 0,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        iterable: bool = True,
        **options: Any,
    ) -> TorchBatches | TorchPatches:
        """A PyTorch dataset."""
        raise NotImplementedError

    def to_keras(
        self,
        batch_size: int = 32,
        *,
        x: str = "image",
        y: str | None = None,
        shuffle: bool | str = True,
        seed: int = 0,
        **options: Any,
    ) -> KerasBatches:
        """A Keras ``PyDataset``."""
        raise NotImplementedError
