"""The adapter for CAREamics: every spec is its strategy's, and its epoch reaches the workers."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import re
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patchloom import careamics
from patchloom.careamics import EpochPatching
from patchloom.errors import ConfigError
from patchloom.patching import FixedPatching, RandomPatching
from patchloom.testing import STRATEGIES, Geometry
from tests.held_patches import HeldPatches
from tests.test_patching import geometries, small


def specs(patching: Any) -> list[Any]:
    return [patching.get_patch_spec(i) for i in range(patching.n_patches)]


@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=4, deadline=None)
@given(g=geometries(), epoch=st.integers(0, 2**40))
def test_specs_are_those_of_the_strategy(name: str, g: Geometry, epoch: int) -> None:
    """Runs of cells answer as one by one does, in every epoch and on the way back."""
    strategy: Any = STRATEGIES[name](g)
    assume(small(strategy))
    later = strategy.with_epoch(epoch) if hasattr(strategy, "with_epoch") else strategy
    patching = EpochPatching(strategy)
    before = specs(patching)
    assert before == specs(strategy)
    patching.set_epoch(epoch)
    assert patching.n_patches == strategy.n_patches
    for image in range(len(g.shapes)):
        indices = strategy.get_patch_indices(image)
        assert patching.get_patch_indices(image) == indices
        # Of blue noise an epoch may have more or fewer.
        there = later.get_patch_indices(image)
        for k, index in enumerate(indices):
            expected = later.get_patch_spec(there[k % len(there)]) if there else before[index]
            assert patching.get_patch_spec(index) == expected
    patching.set_epoch(getattr(strategy, "epoch", 0))
    assert specs(patching) == before


def test_many_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """More patches than a run holds, more than are kept, in an order of no kind."""
    monkeypatch.setattr(careamics, "_KEPT", 2**18)
    shape, size = [(2, 1, 1200, 1200)], (2, 2)
    for chunks in (None, [(64, 48)]):
        strategy = RandomPatching(shape, size, 3, chunks=chunks)
        assert strategy.n_patches > 300 * 1024
        patching = EpochPatching(strategy)
        for index in range(0, strategy.n_patches, 997):
            patching.get_patch_spec(index)
        for index in range(5, strategy.n_patches, 49_999):
            assert patching.get_patch_spec(index) == strategy.get_patch_spec(index)


def test_outside_is_refused_and_lists_are_taken() -> None:
    """Any object with the three answers is wrapped; an index outside is an IndexError."""
    spec: Any = {"data_idx": 0, "sample_idx": 0, "coords": (1, 2), "patch_size": (3, 3)}
    patching = EpochPatching(FixedPatching([spec]))
    patching.set_epoch(4)
    assert specs(patching) == [spec]
    for wrapped in (patching, EpochPatching(RandomPatching([(1, 1, 9, 9)], (3, 3)))):
        for index in (-1, wrapped.n_patches):
            with pytest.raises(IndexError):
                wrapped.get_patch_spec(index)


def test_copies_stand_alone() -> None:
    """A copy and what was pickled keep the epoch, and do not follow each other."""
    patching = EpochPatching(RandomPatching([(1, 1, 99, 99)], (9, 9), epoch=2))
    for other in (copy.deepcopy(patching), pickle.loads(pickle.dumps(patching))):
        assert other.epoch == 2
        other.set_epoch(5)
        assert patching.epoch == 2
        assert specs(other) != specs(patching)


def _answer(patching: EpochPatching, pipe: Connection) -> None:
    """What a worker does: it answers while the epoch is set elsewhere."""
    while (epoch := pipe.recv()) is not None:
        if epoch >= 0:
            patching.set_epoch(epoch)
        pipe.send((patching.n_patches, patching.epoch, patching.get_patch_spec(0)))


@pytest.mark.parametrize("daemon", [True, False])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_epoch_reaches_workers(method: str, daemon: bool) -> None:
    """A living worker sees each new epoch; another process has an epoch of its own."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"{method} is not a way to start processes here")
    context: Any = multiprocessing.get_context(method)
    strategy = RandomPatching([(1, 1, 999, 999)], (9, 9))
    patching = EpochPatching(strategy)
    patching.set_epoch(1)
    ours, theirs = context.Pipe()
    worker = context.Process(target=_answer, args=(patching, theirs), daemon=daemon)
    worker.start()
    try:
        for epoch in (1, 2, 7):
            patching.set_epoch(epoch)
            ours.send(-1)
            n, seen, spec = ours.recv()
            want = epoch if daemon else 1
            assert (n, seen) == (patching.n_patches, want)
            assert spec == strategy.with_epoch(want).get_patch_spec(0)
        ours.send(40)
        assert ours.recv()[1] == 40
        assert patching.epoch == 7, "what a process sets is its own"
    finally:
        ours.send(None)
        worker.join()


def test_places_asked_for_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is bounded in patches, and what was just asked for is not drawn anew."""
    drawn = []

    class Counted(RandomPatching):
        def corners(self, image: int, cells: Any) -> Any:
            drawn.append(np.atleast_1d(cells))
            return super().corners(image, cells)

    strategy = Counted([(1, 1, 800, 800)], (4, 4), 3, chunks=[(16, 16)])
    patching = EpochPatching(strategy)
    monkeypatch.setattr(careamics, "_KEPT", 4000)
    for step, index in enumerate(range(0, strategy.n_patches, 500)):
        patching.get_patch_spec(index)
        n = len(drawn)
        patching.get_patch_spec(0)
        assert len(drawn) == n, "the first run is asked for again and again"
        kept = sum(map(len, patching._runs.values()))
        assert kept == patching._n_kept <= 4000, step
    assert len(drawn) > 30


FACTORY = (
    "create_dataset create_microsplit_dataset create_microsplit_pred_dataset create_pred_dataset "
    "create_train_dataset create_train_val_datasets create_val_split_datasets init_patch_extractor "
    "select_image_stack_loader select_patch_extractor_type Loading ImageStackLoading "
    "ReadFuncLoading IndependentTargets MultiChannelTarget PairedInputTarget PredData TrainValData "
    "TrainValSplitData rng in_memory model_constraints multiscale_count alpha_ranges "
    "uncorrelated_channel_prob padding_mode"
)
"""Names and arguments of ``careamics.dataset.factory``, in the version that the page names."""


def test_page_says_what_to_type_for_each_name_of_the_factory() -> None:
    page = Path(__file__).parents[1] / "docs" / "careamics.md"
    rows = re.findall(r"^\| (.+?) \|", page.read_text(encoding="utf-8"), flags=re.M)
    told = {name for row in rows for name in re.findall(r"\w+", row)}
    assert not {*FACTORY.split()} - told


class UpTo:
    """A model that takes even extents and so many channels."""

    def __init__(self, inputs: int, targets: int) -> None:
        self.inputs, self.targets = inputs, targets

    def validate_spatial_shape(self, shape: Any) -> None:
        if any(n % 2 for n in shape):
            raise ValueError(f"odd extent in {shape}")

    def validate_input_channels(self, n_channels: int) -> None:
        if n_channels > self.inputs:
            raise ValueError(f"{n_channels} inputs")

    def validate_target_channels(self, n_channels: int) -> None:
        if n_channels > self.targets:
            raise ValueError(f"{n_channels} targets")


def test_constraints_of_a_model_are_asked_once() -> None:
    def patches(*shape: int, targets: int = 3) -> HeldPatches:
        extents = {"images": shape, "targets": (targets, *shape[1:])}
        return HeldPatches({name: np.zeros((2, *extent)) for name, extent in extents.items()})

    careamics.check_constraints(patches(2, 4, 6), UpTo(2, 3))
    for wrong, said in (
        (patches(2, 4, 5), r"odd extent in \(4, 5\); plan with"),
        (patches(3, 4, 6), "3 inputs"),
        (patches(2, 4, 6, targets=4), r"not targets of shape \(4, 4, 6\): 4 targets"),
    ):
        with pytest.raises(ConfigError, match=said):
            careamics.check_constraints(wrong, UpTo(2, 3))
