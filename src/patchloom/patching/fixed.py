"""FixedPatching: the patches of a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from patchloom.errors import PlanError
from patchloom.patching.protocol import PatchSpecs

__all__ = ["FixedPatching"]


class FixedPatching:
    """The patches of a list, in its order.

    Parameters
    ----------
    fixed_patch_specs
        Specs of any images, samples and sizes; what they say besides is kept.

    Examples
    --------
    >>> spec = {"data_idx": 1, "sample_idx": 0, "coords": (3, 5), "patch_size": (8, 8)}
    >>> patching = FixedPatching([spec])
    >>> patching.n_patches, patching.get_patch_spec(0)["coords"], len(patching.get_patch_indices(0))
    (1, (3, 5), 0)
    """

    def __init__(self, fixed_patch_specs: Sequence[PatchSpecs]) -> None:
        self.patch_specs = tuple(fixed_patch_specs)
        try:
            images = np.array([int(spec["data_idx"]) for spec in self.patch_specs], np.int64)
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(
                f"every spec of a list has a whole number as 'data_idx', got {error!r}; mend it"
            ) from None
        self._order = np.argsort(images, kind="stable")
        self._images = images[self._order]

    @property
    def n_patches(self) -> int:
        """Length of the list."""
        return len(self.patch_specs)

    def with_epoch(self, epoch: int) -> Self:
        """The same list: its epochs do not differ."""
        return self

    def get_patch_spec(self, index: int) -> Any:
        """The patch of one index, as it was given.

        Raises
        ------
        IndexError
            If the index is not in ``range(n_patches)``.
        """
        if not 0 <= index < self.n_patches:
            raise IndexError(f"a patch index is in range({self.n_patches}), got {index}")
        # A copy: who changes it changes no later answer.
        return {**self.patch_specs[index]}

    def get_patch_indices(self, data_idx: int) -> Sequence[int]:
        """The indices of one image's patches, ascending: a range where they follow each other."""
        low, high = np.searchsorted(self._images, [data_idx, data_idx + 1])
        found: list[int] = self._order[low:high].tolist()
        if found and found[-1] - found[0] + 1 == len(found):
            return range(found[0], found[-1] + 1)
        return found
