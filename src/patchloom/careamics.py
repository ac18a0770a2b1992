"""Our strategies inside CAREamics: an epoch that can be set, and specs that are cheap one by one.

Nothing of CAREamics is imported: its datasets ask three questions, and `EpochPatching` answers
them. The other way round nothing is needed: the planner takes any object that answers them.
"""

from __future__ import annotations

import ctypes
import os
from collections import OrderedDict
from collections.abc import Sequence
from multiprocessing import current_process
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawValue
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from patchloom.errors import ConfigError
from patchloom.patching.protocol import GridPatching, Ints, Patching

if TYPE_CHECKING:
    from patchloom.load.patches import Patches

__all__ = ["Constraints", "EpochPatching", "check_constraints"]

_RUN = 1024
"""Patches that are drawn together, where cells are smaller."""
_KEPT = 8_000_000
"""Patches whose places are kept, those asked for last: 16 bytes each in 2-D, 24 in 3-D."""


class Constraints(Protocol):
    """What a model takes: a ``ModelConstraints`` of CAREamics."""

    def validate_spatial_shape(self, shape: Sequence[int]) -> None:
        """Raise ValueError if an extent is none of those that the model takes."""

    def validate_input_channels(self, n_channels: int) -> None:
        """Raise ValueError if inputs have another number of channels."""

    def validate_target_channels(self, n_channels: int) -> None:
        """Raise ValueError if targets have another number of channels."""


def check_constraints(patches: Patches, constraints: Constraints) -> None:
    """Refuse patches that a model does not take: ``model_constraints=`` of CAREamics' factory.

    All patches have one shape, so that is asked once, before a batch is read.

    Parameters
    ----------
    patches
        A store, a part of one, or several.
    constraints
        Of the model.

    Raises
    ------
    ConfigError
        If the model refuses the extent of patches, or their channels or those of their targets.
    """
    for array, (shape, _) in patches.extents().items():
        try:
            if array == "images":
                constraints.validate_spatial_shape(shape[1:])
                constraints.validate_input_channels(shape[0])
            elif array == "targets":
                constraints.validate_target_channels(shape[0])
        except ValueError as error:
            raise ConfigError(
                f"a model takes the patches that it is trained on, but not {array} of shape "
                f"{shape}: {error}; plan with another patch_size or channels="
            ) from error


class EpochPatching:
    """A strategy whose epoch can be set: what a CAREamicsDataset takes as its patching.

    CAREamics' random strategies answer anew on every call. Ours answer by ``(epoch, index)``:
    the same index is the same patch until the epoch is set, on every worker and in every order.

    Set the epoch in the main process before each pass over the loader. The number lies in
    shared memory, so that workers see it however they were started and however long they live
    (``persistent_workers`` included). A daemonic process, which a loader's worker is, follows
    the process that started it. Every other one (a rank of distributed training, say) does so
    until it first asks for `n_patches`; from then on it has an epoch of its own, which its
    workers follow. Copies and what was pickled keep the epoch they had and stand alone.

    A dataset is as long in every epoch. Blue noise is not: where an epoch has fewer patches of
    an image than the strategy that was given, it begins again, and where it has more, the last
    ones are not taken.

    Parameters
    ----------
    strategy
        Any strategy; one without epochs is the same in all. Exclude patches before you wrap it.

    Examples
    --------
    >>> from patchloom.patching import RandomPatching
    >>> patching = EpochPatching(RandomPatching([(1, 1, 100, 100)], (32, 32), seed=7))
    >>> first = patching.get_patch_spec(3)
    >>> patching.set_epoch(1)
    >>> first == patching.get_patch_spec(3)
    False
    >>> patching.set_epoch(0)
    >>> first == patching.get_patch_spec(3)
    True
    """

    def __init__(self, strategy: Patching) -> None:
        self._any_epoch = strategy
        self._share(getattr(strategy, "epoch", 0))

    def _share(self, epoch: int) -> None:
        """Begin an epoch of this process's own."""
        self._epoch = RawValue(ctypes.c_int64, epoch)
        self._owner = os.getpid()
        self._forget()

    def _forget(self) -> None:
        self._now: tuple[int, Patching] | None = None
        self._first: dict[int, Ints] = {}
        self._runs: OrderedDict[tuple[int, int], Ints] = OrderedDict()
        self._n_kept = 0

    def __getstate__(self) -> dict[str, Any]:
        shared = get_spawning_popen() is not None
        return {
            "strategy": self._any_epoch,
            # Only a process that is just being started can be handed shared memory.
            "epoch": self._epoch if shared else self.epoch,
            "owner": self._owner if shared else None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._any_epoch = state["strategy"]
        if state["owner"] is None:
            self._share(state["epoch"])
        else:
            self._epoch, self._owner = state["epoch"], state["owner"]
            self._forget()

    @property
    def epoch(self) -> int:
        """The epoch whose patches are answered."""
        return int(self._epoch.value)

    def set_epoch(self, epoch: int) -> None:
        """Answer the patches of an epoch from now on, on the workers of this process too."""
        if self._owner == os.getpid():
            self._epoch.value = epoch
        else:
            self._share(epoch)

    @property
    def strategy(self) -> Patching:
        """The strategy of the present epoch."""
        epoch = self.epoch
        if self._now is None or self._now[0] != epoch:
            self._forget()
            with_epoch = getattr(self._any_epoch, "with_epoch", None)
            self._now = epoch, with_epoch(epoch) if with_epoch else self._any_epoch
        return self._now[1]

    @property
    def n_patches(self) -> int:
        """Number of patches; the same in every epoch."""
        if self._owner != os.getpid() and not current_process().daemon:
            # A rank of its own: it must not turn the page of the others. Loaders ask for their
            # length before they start workers, which then follow this process.
            self._share(self.epoch)
        return int(self._any_epoch.n_patches)

    def get_patch_indices(self, data_idx: int) -> Sequence[int]:
        """The indices of one image's patches; the same in every epoch."""
        return self._any_epoch.get_patch_indices(data_idx)

    def get_patch_spec(self, index: int) -> Any:
        """The patch of one index in the present epoch.

        Raises
        ------
        IndexError
            If the index is not in ``range(n_patches)``.
        """
        known, strategy = self._any_epoch, self.strategy
        if not isinstance(strategy, GridPatching) or not isinstance(known, GridPatching):
            return strategy.get_patch_spec(index)
        if not 0 <= index < known.n_patches:
            return known.get_patch_spec(index)
        image = known.image_of(index)
        n = len(strategy.get_patch_indices(image))
        if not n:
            return known.get_patch_spec(index)
        inside = (index - known.get_patch_indices(image).start) % n
        first = self._first.get(image)
        if first is None:
            first = np.append(0, np.cumsum(strategy.counts(image))).astype(np.int64)
            self._first[image] = first
        cell = int(np.searchsorted(first, inside, side="right")) - 1
        begin, corners = self._run(strategy, image, int(first[cell]) // _RUN, first)
        return strategy.spec_at(image, cell, corners[inside - begin])

    def _run(self, strategy: GridPatching, image: int, run: int, first: Ints) -> tuple[int, Ints]:
        """Corners of the cells whose first patch lies in a run, and which patch is the first."""
        low, high = np.searchsorted(first[:-1], [run * _RUN, (run + 1) * _RUN])
        corners = self._runs.get((image, run))
        if corners is not None:
            self._runs.move_to_end((image, run))
        else:
            corners, _ = strategy.corners(image, np.arange(low, high))
            self._runs[image, run] = corners
            self._n_kept += len(corners)
            while self._n_kept > _KEPT and len(self._runs) > 1:
                self._n_kept -= len(self._runs.popitem(last=False)[1])
        return int(first[low]), corners
