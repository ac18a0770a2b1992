"""A pytest plugin: CAREamics' own tests, with our classes in the place of theirs.

It runs in a process of its own, from the root of CAREamics' sources, as ``-p shim``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from patchloom import patching as ours
from patchloom.careamics import EpochPatching


class _Anew:
    """Theirs draw anew when an index is asked for again: ours turn to the next epoch then."""

    _adapter: EpochPatching | None = None
    n_patches: int

    def get_patch_spec(self, index: int) -> Any:
        if not 0 <= index < self.n_patches:
            return super().get_patch_spec(index)  # type: ignore[misc]
        if self._adapter is None:
            self._adapter, self._asked = EpochPatching(self), set[int]()  # type: ignore[arg-type]
        if index in self._asked:
            self._adapter.set_epoch(self._adapter.epoch + 1)
            self._asked.clear()
        self._asked.add(index)
        return self._adapter.get_patch_spec(index)


class _Listed:
    """Some of their tests read all specs from an attribute that ours do not hold."""

    n_patches: int
    get_patch_spec: Callable[[int], Any]

    @property
    def patch_specs(self) -> list[Any]:
        return [self.get_patch_spec(i) for i in range(self.n_patches)]

    tile_specs = patch_specs


class SequentialPatching(_Listed, ours.SequentialPatching):
    """Ours, as their tests use it."""


class TiledPatching(_Listed, ours.TiledPatching):
    """Ours, as their tests use it."""


class RandomPatching(_Anew, ours.RandomPatching):
    """Ours, as their tests use it."""


class StratifiedPatching(_Anew, ours.StratifiedPatching):
    """Ours, as their tests use it."""

    def _forget(self) -> None:
        super()._forget()
        self._adapter = None

    @property
    def image_patching(self) -> list[list[SimpleNamespace]]:
        """One of their tests asks it for the shape of the grid."""
        shapes = [self.grid_shape(image) for image in range(len(self.grids))]
        return [
            [SimpleNamespace(grid_shape=shape)] * self.n_samples(image)
            for image, shape in enumerate(shapes)
        ]


PACKAGE = "careamics.dataset.patching"
OURS: dict[str, Any] = {
    "FixedPatching": ours.FixedPatching,
    "FixedRandomPatching": ours.FixedRandomPatching,
    "RandomPatching": RandomPatching,
    "SequentialPatching": SequentialPatching,
    "StratifiedPatching": StratifiedPatching,
    "TiledPatching": TiledPatching,
    "WholeSamplePatching": ours.WholeSamplePatching,
    "is_tile_specs": ours.is_tile_specs,
}


def replace() -> None:
    """Put ours wherever a module of CAREamics holds theirs."""
    theirs = importlib.import_module(PACKAGE)
    split = importlib.import_module("careamics.dataset.factory.val_split")
    importlib.import_module("careamics.lightning.data.data_module")
    swaps = {id(getattr(theirs, name)): value for name, value in OURS.items()}
    swaps[id(split.create_val_split)] = ours.create_val_split
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "careamics":
            for key, value in list(vars(module).items()):
                if id(value) in swaps:
                    setattr(module, key, swaps[id(value)])


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported."""
    replace()


DIFFERENT = {
    "test_random_patching.py::test_calc_patch_bins": (
        "asserts the private method _calc_bins; n_patches is compared side by side instead"
    ),
    "test_stratified_patching.py::TestStratifiedPatching::test_set_region_probs": (
        "asserts that n_patches falls by 1 - p for each region, as if each gave one patch; ours "
        "weigh a region by the patches that it is expected to give, which differ at a border"
    ),
}
"""Their tests that fail with ours, and why."""

THEIRS = {
    "test_random_patching.py::test_n_patches": "the private function _calc_n_patches",
    "test_random_patching.py::test_random_coords": "the private function _generate_random_coords",
    "test_stratified_patching.py::TestImageStratifiedPatch": "a private class",
    "test_stratified_patching.py::test_boxes_overlap": "the private function _boxes_overlap",
    "test_stratified_patching.py::test_region_bin_packing": "a private function",
}
"""Their tests that call a private part of theirs: they would say nothing of ours."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what would test theirs, and expect what differs to fail."""
    used = set()
    kept, out = [], []
    for item in items:
        if found := [part for part in THEIRS if part in item.nodeid]:
            out.append(item)
        else:
            kept.append(item)
            found = [part for part in DIFFERENT if part in item.nodeid]
            if found:
                item.add_marker(pytest.mark.xfail(reason=DIFFERENT[found[0]], strict=True))
        used |= set(found)
    stale = {*DIFFERENT, *THEIRS} - used
    if stale:
        raise pytest.UsageError(f"no test of theirs is named {sorted(stale)}")
    config.hook.pytest_deselected(items=out)
    items[:] = kept
