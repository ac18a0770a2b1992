"""LivePatches: the patches of a plan, read from its sources when they are asked for."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from patchloom.image import Ints
from patchloom.live.live_manifest import manifest
from patchloom.live.live_mixing import mixing
from patchloom.live.live_reader import LiveReader
from patchloom.live.stretches import Stretches, advice
from patchloom.load.order import Order
from patchloom.load.patches import Patches
from patchloom.mixing import Found
from patchloom.normalization import Normalization
from patchloom.planning.plans import Plan
from patchloom.randomness import digest, digest_of
from patchloom.store.schema import array_of, role_of

__all__ = ["LivePatches"]


class LivePatches(Patches):
    """The patches of a plan, as a store of it would hold them, without one.

    Positions go along bands of neighbouring chunks, in grouped plans group by group; the column
    ``row`` of the manifest tells the plan's row. Loaders mix them anew in every epoch.

    Memory grows with chunks, never with patches, unless the manifest is asked for.

    Parameters
    ----------
    plan
        Its patches.
    memory
        Bytes of decoded chunks that one reader holds.
    window
        Blocks that are visited together; by default from 4 to 256, and fewer where 4 cost much.
    scaling
        What arrays are scaled with, by name.
    """

    def __init__(
        self,
        plan: Plan,
        memory: int,
        window: int | None = None,
        scaling: dict[str, Normalization] | None = None,
    ) -> None:
        self.plan = plan
        self.memory = memory
        self.applied: dict[str, Normalization] = dict(scaling or {})
        """What arrays are normalised with when they are read, by name."""
        self._asked = window
        self._stretches = Stretches.of(plan, memory, window)
        self.window = self._stretches.window
        self.memory_to_load = 2 * memory

    @property
    def arrays_held(self) -> tuple[str, ...]:
        """``"images"``, and what the images of the plan have besides."""
        return tuple(array_of(role) for role in self.plan.images[0].cut_arrays)

    @property
    def n_patches(self) -> int:
        """Patches of the plan."""
        return self.plan.n_patches

    def __len__(self) -> int:
        return self.n_patches

    @cached_property
    def manifest(self) -> pa.Table:
        """One row a patch, as a store has it: made when it is first asked for.

        Scores and classes are of pixels, which are read for it: each needed chunk of the images or
        labels about once. Coverage reads the masks.
        """
        return manifest(self.plan, self._unscaled(), self._stretches)

    @cached_property
    def column_names(self) -> list[str]:
        """Of the manifest; scores are taken of one patch."""
        one = manifest(self.plan, self._unscaled(), self._stretches, 1)
        return list(one.column_names)

    def _unscaled(self) -> LiveReader:
        """What scores are of."""
        return LiveReader(self._stretches, self.memory)

    def _identified(self) -> str:
        # Along other bands other patches have these positions.
        order = digest_of(self._stretches.order).hex()
        return digest("live", self.plan.fingerprint, order).hex()

    @property
    def blocks(self) -> Ints:
        """Bounds, in positions, of slabs of neighbouring chunks: int64[k + 1]."""
        return self._stretches.bounds

    @property
    def trails(self) -> Ints:
        """Bounds, in positions, of the bands that slabs follow one another in."""
        return self._stretches.trails

    @property
    def read_amplification(self) -> float:
        """Decodes for each needed chunk in an epoch that goes window by window, estimated."""
        return self._stretches.estimate

    def reader(self, memory: int | None = None, *, by_block: bool = False) -> LiveReader:
        """A reader for this process; what it does, its `report` tells.

        Parameters
        ----------
        memory
            Bytes of decoded chunks that it holds; by default those of these patches.
        by_block
            Whether bands are gone along, as loaders do unless all is mixed: what no later block
            of a band needs makes room first.
        """
        scaling = {role_of(name): found for name, found in self.applied.items()}
        return LiveReader(self._stretches, memory or self.memory, scaling, goes_along=by_block)

    def summary(self) -> dict[str, Any]:
        """What an epoch window by window will cost, before anything is read.

        Returns
        -------
        dict
            ``n_patches``, ``n_blocks``, ``window`` (blocks), ``memory``, ``chunks_needed``,
            ``read_amplification`` (estimated), and ``advice``: None, or which ``memory=`` or
            ``window=`` brings it to 1.1, where it is above.
        """
        return {
            "n_patches": self.n_patches,
            "n_blocks": len(self._stretches),
            "window": self.window,
            "memory": self.memory,
            "chunks_needed": self.plan.chunks_needed,
            "read_amplification": self.read_amplification,
            "advice": advice(self.plan, self.memory, self._asked),
        }

    def mixing(self, batch: int = 64, *, window: int | None = None, seed: int = 0) -> Found:
        """How many images and regions meet in batches that go window by window; reads nothing.

        Parameters
        ----------
        batch
            Patches of a batch.
        window, seed
            As a loader is given them.

        Returns
        -------
        dict
            For ``image``, ``region`` and both ``joint``: ``entropy`` of batches in bits, that of
            ``independent`` draws and of a permutation of all (``permuted``), and ``relative``:
            entropy over permuted. See `Plan.mixing`.

        Examples
        --------
        >>> import numpy as np, patchloom
        >>> images = patchloom.open_images([np.zeros((256, 256), "uint8")] * 2, ids=["a", "b"])
        >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]})
        >>> patchloom.stream(plan).mixing()["image"]["relative"] > 0.98
        True
        """
        order = Order(
            self.n_patches,
            self.blocks,
            seed=seed,
            window=self.window if window is None else window,
            trails=self.trails,
        )
        return mixing(self._stretches, order, batch)

    def __getitem__(self, position: int) -> np.ndarray[Any, np.dtype[Any]]:
        if not -len(self) <= position < len(self):
            raise IndexError(f"a position is in range({len(self)}), got {position}")
        at = np.array([position % len(self)])
        found: np.ndarray[Any, np.dtype[Any]] = self._own.read(at, ["images"])["images"][0]
        return found

    @cached_property
    def _own(self) -> LiveReader:
        return self.reader()

    def __getstate__(self) -> dict[str, object]:
        # What is read or derived stays: another process opens for itself.
        return {
            k: v for k, v in self.__dict__.items() if k not in ("manifest", "column_names", "_own")
        }

    def __repr__(self) -> str:
        shape = "x".join(str(n) for n in self.plan.patch_shape)
        return (
            f"<LivePatches {self.n_patches:,} patches of {shape} from {len(self.plan.images)} "
            f"images, {len(self._stretches):,} blocks, windows of {self.window}>"
        )
