"""Patches: what can be trained from, wherever its pixels are; a patch is named by its position."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.errors import ConfigError
from patchloom.load.budget import MEMORY, n_bytes
from patchloom.load.expressions import Expression, equal_rows
from patchloom.load.order import WINDOW, Order, Ordering
from patchloom.load.reader import Ints, Pixels, Reader
from patchloom.load.sampling import Sampling
from patchloom.load.visit import Addressed
from patchloom.load.weights import weights_of
from patchloom.normalization import Normalization
from patchloom.public_names import PublicNames
from patchloom.randomness import digest, digest_of

if TYPE_CHECKING:
    from patchloom.load.course import Course
    from patchloom.load.keras_data import KerasBatches
    from patchloom.load.loader import Loader
    from patchloom.load.torch_data import TorchBatches, TorchPatches

__all__ = ["Patches"]


class Patches(PublicNames, ABC):
    """Patches of a store, of sources read live, or of several of these together.

    A subclass says what it holds and how it is read; loaders are the same for all of them. It
    holds no open file, and pickles without pixels, manifest or credentials, so that workers of
    any kind can have it.
    """

    window: int = WINDOW
    """Blocks that ``shuffle="window"`` mixes together, unless it is asked for others."""
    memory_to_load: int | str = MEMORY
    """Bytes that a loader holds in one process, unless it is asked for others."""

    @property
    def percentiles(self) -> tuple[tuple[float, ...], str]:
        """Ends of ``"percentile"`` unless others are asked for, and how they are found between
        grey levels.
        """
        return (1, 99), "linear"

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

    @property
    def trails(self) -> Ints:
        """Bounds, in positions, of runs of blocks of which each is best visited soon after the one
        before, for they share what is decoded: int64[j + 1], some of `blocks`. By default each
        block is one.
        """
        return self.blocks

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

    @property
    def column_names(self) -> Sequence[str]:
        """Of the manifest, told without reading all of it where that can be."""
        names: list[str] = self.manifest.column_names
        return names

    @property
    def identity(self) -> str:
        """What tells them, position by position, from all others: 128 bits in hex.

        States of loaders hold it. By default it is of the values in the manifest.
        """
        known: str | None = self.__dict__.get("_identity")
        if known is None:
            known = self.__dict__["_identity"] = self._identified()
        return known

    def _identified(self) -> str:
        parts: list[object] = ["rows"]
        for name in self.manifest.column_names:
            # Ids of patches follow from the others, and no two are equal.
            if name != "patch_id":
                coded = self.manifest[name].combine_chunks().dictionary_encode("encode")
                parts += [name, digest_of(coded.indices.to_numpy()).hex()]
                parts += [digest(*coded.dictionary.to_pylist()).hex()]
        return digest(*parts).hex()

    @property
    def channels(self) -> tuple[str, ...] | None:
        """Names of the channels of ``"images"``; None if they are not known."""
        return None

    def extents(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of one patch of each array that is held.

        Where nothing else tells, one patch is read.
        """
        if not self.n_patches:
            return {}
        read = self.reader().read(np.zeros(1, np.int64), self.arrays_held)
        return {name: (pixels.shape[1:], pixels.dtype) for name, pixels in read.items()}

    # -- parts and draws ------------------------------------------------------------------

    def take(self, positions: npt.ArrayLike) -> Patches:
        """Some of them, as patches of their own.

        Parameters
        ----------
        positions
            int64[m], ascending and each once; or bool[n], one a patch.

        Raises
        ------
        ConfigError
            If they are not.
        """
        # By its name, so that imports run downhill.
        selected = importlib.import_module("patchloom.load.selected")
        found: Patches = selected.SelectedPatches.of(self, positions)
        return found

    def where(self, condition: str | Expression) -> Patches:
        """Those that a condition on the manifest takes.

        Parameters
        ----------
        condition
            Such as ``'split == "train" and coverage > 0.8'``: see `Expression`, also for what
            becomes of missing values.

        Raises
        ------
        ConfigError
            If it is no condition, or names a column that the manifest has not.

        Examples
        --------
        >>> import numpy as np, patchloom
        >>> images = patchloom.open_images(np.arange(36, dtype="uint8").reshape(6, 6))
        >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [3, 3]})
        >>> _ = patchloom.materialize(plan, "memory://part.zarr", progress=False)
        >>> part = patchloom.open_patches("memory://part.zarr").where("start_x > 0")
        >>> part.n_patches, part.manifest["start_y"].to_pylist()
        (2, [0, 3])
        """
        return self.take(Expression.of(condition).rows(self.manifest))

    def select(
        self, arrays: Sequence[str] | None = None, /, **columns: Any
    ) -> tuple[dict[str, Pixels], pa.Table]:
        """The pixels and rows of one sample, or of all patches that are equal in some columns.

        Parameters
        ----------
        arrays
            Names out of `arrays_held`; None: all.
        columns
            A value of each column that is asked for, or a list of values; None is a missing one.

        Returns
        -------
        dict, pyarrow.Table
            Of each array [m, channels, (z,) y, x], and the rows of the manifest.

        Raises
        ------
        ConfigError
            If there is no such array or column.

        Examples
        --------
        >>> import numpy as np, patchloom
        >>> pixels = [np.full((4, 4), value, "uint8") for value in (7, 9)]
        >>> images = patchloom.open_images(pixels, ids=["a", "b"])
        >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [2, 4]})
        >>> _ = patchloom.materialize(plan, "memory://two.zarr", progress=False)
        >>> arrays, rows = patchloom.open_patches("memory://two.zarr").select(image_id="b")
        >>> arrays["images"].shape, int(arrays["images"].min()), rows["start_y"].to_pylist()
        ((2, 1, 2, 4), 9, [0, 2])
        """
        names = self.arrays_held if arrays is None else tuple(arrays)
        unknown = sorted({*names} - {*self.arrays_held})
        if unknown:
            raise ConfigError(
                f"arrays that are read are some of {list(self.arrays_held)}, got {unknown}"
            )
        positions = np.flatnonzero(equal_rows(self.manifest, columns)).astype(np.int64)
        return self.reader().read(positions, names), self.manifest.take(pa.array(positions))

    def sampling(
        self,
        weights: Any = None,
        *,
        visits: int | None = None,
        replacement: bool = True,
        seed: int = 0,
    ) -> Sampling:
        """An order that draws by weight: ``loader(32, order=patches.sampling("class"))``.

        Parameters
        ----------
        weights
            One number a patch; a column (``"class"``: all its values as often); a mapping
            (``{"class": {"tumour": 3, "stroma": 1}}``); an expression (``"1 + 3 * coverage"``): see
            `weights_of`. None: all patches alike.
        visits
            Of an epoch; None: as many as patches that can be drawn.
        replacement
            Whether a patch can be drawn again in the same epoch.
        seed
            With the epoch it fixes all draws.

        Raises
        ------
        ConfigError
            If weights are none of these, or too few patches can be drawn.
        """
        found = None if weights is None else weights_of(self.manifest, weights)
        return Sampling(self.n_patches, visits, found, replacement, seed)

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

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool | str = True,
        seed: int = 0,
        epochs: int | None = 1,
        rank: int = 0,
        world: int = 1,
        **options: Any,
    ) -> Loader:
        """Batches of NumPy arrays, to be iterated over.

        Parameters
        ----------
        batch_size
            Patches of a batch.
        shuffle, seed
            See `course`.
        epochs
            How many an iteration makes; None goes on for ever.
        rank, world
            Which of how many processes that share an epoch this one is.
        **options
            Of `course`.

        Returns
        -------
        Loader
            Of dicts of arrays [n, channels, (z,) y, x], in the dtypes of the store: ``"image"``,
            ``"labels"``, ``"target"``, ``"weights"``, ``"targets_NAME"``, ``"context_N"``.

        Raises
        ------
        ConfigError
            If an argument is none of these.

        Examples
        --------
        >>> import numpy as np, patchloom
        >>> images = patchloom.open_images(np.arange(36, dtype="uint8").reshape(6, 6))
        >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [2, 2]})
        >>> _ = patchloom.materialize(plan, "memory://batched.zarr", progress=False)
        >>> store = patchloom.open_patches("memory://batched.zarr")
        >>> [len(batch["image"]) for batch in store.batches(4, epochs=2)]
        [4, 4, 1, 4, 4, 1]
        """
        from patchloom.load.loader import Loader

        if batch_size is None:
            raise ConfigError("batch_size= is a number of patches, got None; take 1, or to_torch")
        course = self.course(batch_size, shuffle=shuffle, seed=seed, **options)
        return Loader(course.among(rank, world), epochs)

    loader = batches

    def course(
        self,
        batch_size: int | None,
        *,
        shuffle: bool | str = True,
        seed: int = 0,
        window: int | None = None,
        streams: int = 1,
        order: Ordering | None = None,
        drop_last: bool = False,
        uneven: str = "repeat",
        arrays: Sequence[str] | str | None = None,
        columns: Mapping[str, str] | Sequence[str] | str = (),
        normalize: Normalization | str | None = None,
        transform: Callable[[dict[str, Any]], Any] | Addressed | None = None,
        fields: Sequence[str] | None = None,
        memory: int | str | None = None,
        threads: int | None = None,
    ) -> Course:
        """What all loaders are made of: which batches there are, and how they become pixels.

        Parameters
        ----------
        batch_size
            Patches of a batch, of each rank; None: they come one by one.
        shuffle
            ``"window"`` or True: blocks (shards of a store) are permuted, and so are the patches
            that each `window` of them hold together. ``"exact"``: a permutation of all.
            ``"none"`` or False: as they stand. Always each patch once.
        seed
            Of the order, and of what a transformation draws.
        window
            Blocks that are mixed together; by default what suits the patches (16 shards).
        streams
            Workers that take batches by turns: each of so many stays with its own blocks. Part of
            the order; of use where a block is costly, as from a remote store with `DataLoader`
            workers: take their number times that of ranks.
        order
            Which patches are visited instead of all that, for example with weights.
        drop_last
            Whether what does not fill a batch on each rank is left out.
        uneven
            ``"repeat"`` or ``"drop"``, where fewer patches are left than there are ranks; see
            `Batching`.
        arrays
            Which of `arrays_held`; by default all.
        columns
            Of the manifest, as further keys [n], or by keys: ``{"key": "column"}``; also
            ``"position"``, the place of the patch in it.
        normalize
            What images are scaled by, to float32, each with the numbers of its own image: a
            `Normalization`, or a kind that `normalization` knows.
        transform
            Called with what is handed out: with a batch as a dict of arrays [n, ...], or where
            patches come one by one with a dict of arrays [channels, (z,) y, x]. One with a method
            ``visited`` draws by address: see `Addressed`.
        fields
            Keys that make up a tuple, which is handed out instead of the dict.
        memory
            Bytes that are held in one process, as a number or text: half of them at most by the
            reader, the rest by batches that are made ahead (at least one). By default 512 MiB; of
            what is read live, what it was made for.
        threads
            That read, decode and transform; by default the processors, up to 8. 0: none.

        Returns
        -------
        Course
        """
        from patchloom.load.course import Course, default_threads
        from patchloom.load.recipe import Recipe

        kind = ("none", "window")[shuffle] if isinstance(shuffle, bool) else shuffle
        by_block = order is None and kind != "exact"
        if order is None:
            order = Order(
                self.n_patches,
                self.blocks,
                seed=seed,
                shuffle=kind,
                window=self.window if window is None else window,
                streams=streams,
                granule=batch_size or 1,
                trails=self.trails,
            )
        half = n_bytes(self.memory_to_load if memory is None else memory) // 2
        recipe = Recipe.of(
            self,
            arrays=arrays,
            columns=columns,
            normalize=normalize,
            transform=transform,
            fields=fields,
            seed=seed,
            memory=half,
            by_block=by_block,
        )
        return Course(
            recipe,
            order,
            batch_size,
            drop_last=drop_last,
            uneven=uneven,
            threads=default_threads() if threads is None else threads,
            memory=half,
        )

    def to_torch(
        self,
        *,
        batch_size: int | None = None,
        shuffle: bool | str = True,
        seed: int = 0,
        transform: Callable[[dict[str, Any]], Any] | Addressed | None = None,
        iterable: bool = True,
        rank: int | None = None,
        world: int | None = None,
        **options: Any,
    ) -> TorchBatches | TorchPatches:
        """A PyTorch dataset; needs the extra ``torch``.

        Parameters
        ----------
        batch_size
            Patches of a batch: a dataset of dicts of tensors [n, ...], for a ``DataLoader`` with
            ``batch_size=None``. None: one dict a patch, ``{"image": ...}`` [channels, ...].
        shuffle, seed, transform
            See `course`. The transformation is given NumPy arrays.
        iterable
            Whether it is an ``IterableDataset``, which knows the order, or a map-style
            ``Dataset`` of patches by position, whose ``sampler()`` does.
        rank, world
            Which of how many processes; by default those of ``torch.distributed``, if that is
            initialised when the dataset is iterated over.
        **options
            Of `course`.

        Returns
        -------
        TorchBatches or TorchPatches
            Its ``loader(num_workers=, pin_memory=, ...)`` is a ``DataLoader`` with a state.

        Raises
        ------
        ConfigError
            If an argument is none of these, or torch is not installed.
        """
        if find_spec("torch") is None:
            raise ConfigError("to_torch needs PyTorch; pip install 'patchloom[torch]'")
        from patchloom.load.torch_data import TorchBatches, TorchPatches

        if batch_size is not None and not iterable:
            raise ConfigError(
                "of a map-style dataset the DataLoader makes batches, got batch_size= with "
                "iterable=False; take DataLoader(dataset, batch_sampler=dataset.sampler(32))"
            )
        course = self.course(batch_size, shuffle=shuffle, seed=seed, transform=transform, **options)
        return (TorchBatches if iterable else TorchPatches)(course, rank, world)

    def to_keras(
        self,
        batch_size: int = 32,
        *,
        x: str | Sequence[str] = "image",
        y: str | Sequence[str] | None = None,
        sample_weight: str | None = None,
        channels: str | None = None,
        shuffle: bool | str = True,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        **options: Any,
    ) -> KerasBatches:
        """A Keras ``PyDataset`` for ``fit``, on any backend; needs the extra ``keras``.

        Parameters
        ----------
        batch_size
            Patches of a batch.
        x, y, sample_weight
            Keys of a batch that are inputs, targets and weights; several make a dict.
        channels
            ``"first"`` or ``"last"``; by default as ``keras.config.image_data_format()`` says.
        shuffle, seed
            See `course`. Give ``shuffle=False`` to ``fit``, which else mixes the batches anew.
        rank, world
            Which of how many processes that share an epoch.
        **options
            Of `course`.

        Returns
        -------
        KerasBatches

        Raises
        ------
        ConfigError
            If an argument is none of these, or Keras is not installed.
        """
        if find_spec("keras") is None:
            raise ConfigError("to_keras needs Keras; pip install 'patchloom[keras]'")
        from patchloom.load.keras_data import KerasBatches

        course = self.course(batch_size, shuffle=shuffle, seed=seed, **options)
        return KerasBatches(course.among(rank, world), x, y, sample_weight, channels)

    def to_tensorflow(
        self,
        batch_size: int = 32,
        *,
        channels: str = "last",
        shuffle: bool | str = True,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        **options: Any,
    ) -> Any:
        """A ``tf.data.Dataset``; needs TensorFlow.

        Parameters
        ----------
        batch_size
            Patches of a batch.
        channels
            Where images have them: ``"last"`` or ``"first"``.
        shuffle, seed, rank, world
            See `batches`.
        **options
            Of `batches`; ``fields=("image", "labels")`` makes what ``fit`` takes.

        Returns
        -------
        tf.data.Dataset
            Each iteration over it is the next epoch. To resume one, make it of a loader, which has
            a state: ``patchloom.load.tensorflow_data.tensorflow_dataset(loader)``.

        Raises
        ------
        ConfigError
            If an argument is none of these, or TensorFlow is not installed.
        """
        if find_spec("tensorflow") is None:
            raise ConfigError("to_tensorflow needs TensorFlow; pip install tensorflow")
        from patchloom.load.tensorflow_data import counted, tensorflow_dataset

        loader = self.batches(
            batch_size, shuffle=shuffle, seed=seed, rank=rank, world=world, **options
        )
        return counted(tensorflow_dataset(loader, channels), loader)
