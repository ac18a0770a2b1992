"""Our strategies inside a real CAREamicsDataset, its loaders and Lightning; and the example."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import patchloom
from patchloom.careamics import EpochPatching
from patchloom.patching import (
    FixedPatching,
    RandomPatching,
    StratifiedPatching,
    TiledPatching,
    create_val_split,
)

pytest.importorskip("careamics")

from careamics.config.data.data_config import DataConfig
from careamics.dataset.dataset import CareamicsDataset
from careamics.dataset.image_stack_loader import load_arrays
from careamics.dataset.patch_constructor import BasicPatchConstr
from careamics.dataset.patch_extractor import PatchExtractor
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from torch import nn, optim
from torch.utils.data import DataLoader
from torch.utils.data._utils.collate import default_collate

# Of torch, Lightning and multiprocessing; none is ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(200),
]
SHAPE, SIZE = (2, 90, 70), (16, 16)
EXAMPLE = Path(__file__).parents[2] / "examples" / "careamics_strategies.py"


def dataset_of(patching: Any, pixels: Any) -> CareamicsDataset:
    config = DataConfig(
        mode="validating",  # as for training, without augmentations
        data_type="array",
        axes="SYX",
        patching={"name": "fixed_random", "patch_size": SIZE},
        normalization={"name": "none"},
    )
    extractor = PatchExtractor(load_arrays([pixels], "SYX"))
    return CareamicsDataset(config, BasicPatchConstr(patching, extractor))


@pytest.fixture
def pixels() -> Any:
    return np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)


def places(batch: Any) -> list[tuple[int, ...]]:
    spec = batch.region_spec
    columns = [spec["sample_idx"], *spec["coords"]]
    return list(zip(*(column.tolist() for column in columns), strict=True))


def wanted(strategy: Any) -> list[tuple[int, ...]]:
    specs = (strategy.get_patch_spec(i) for i in range(strategy.n_patches))
    return [(spec["sample_idx"], *spec["coords"]) for spec in specs]


def test_patches_are_slices(pixels: Any) -> None:
    """Each strategy of ours gives the pixels that NumPy slices, through their extractor."""
    shapes = [(2, 1, 90, 70)]
    strata = StratifiedPatching(shapes, SIZE, 4)
    train, val = create_val_split(strata, 5, np.random.default_rng(0))
    assert isinstance(val, FixedPatching)
    for strategy in (strata, train, val, TiledPatching(shapes, SIZE, (4, 4))):
        dataset = dataset_of(EpochPatching(strategy), pixels)
        assert len(dataset) == strategy.n_patches
        for index in range(len(dataset)):
            (region,) = dataset[index]
            spec = region.region_spec
            assert spec == strategy.get_patch_spec(index)
            y, x = spec["coords"]
            want = pixels[spec["sample_idx"], y : y + 16, x : x + 16]
            assert np.array_equal(np.asarray(region.data)[0], want)


@pytest.mark.parametrize(
    ("workers", "method", "lasting"),
    [(0, None, False), (2, "fork", False), (2, "fork", True), (2, "spawn", True)],
)
def test_each_epoch_is_that_of_the_strategy(
    pixels: Any, workers: int, method: str | None, lasting: bool
) -> None:
    """Whatever the workers, epoch e of a loader is epoch e of the strategy, each patch once."""
    strategy = RandomPatching([(2, 1, 90, 70)], SIZE, seed=3)
    patching = EpochPatching(strategy)
    loader = DataLoader(
        dataset_of(patching, pixels),
        batch_size=7,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=method,
        persistent_workers=lasting,
        collate_fn=default_collate,
    )
    for epoch in (0, 1, 5, 1):
        patching.set_epoch(epoch)
        seen = [place for (batch,) in loader for place in places(batch)]
        assert sorted(seen) == sorted(wanted(strategy.with_epoch(epoch)))


class _Recorder(LightningModule):  # type: ignore[misc]  # Any where it is not installed
    """Learns nothing, and remembers where each epoch's patches lay."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: dict[int, list[tuple[int, ...]]] = {}

    def training_step(self, batch: Any, _: int) -> Any:
        self.seen.setdefault(self.current_epoch, []).extend(places(batch[0]))
        return self.layer(batch[0].data.mean().reshape(1, 1)).sum() * 0

    def configure_optimizers(self) -> Any:
        return optim.SGD(self.parameters(), 0.1)


def _fit(pixels: Any, folder: Path, epochs: int, resume: str | None) -> _Recorder:
    patching = EpochPatching(RandomPatching([(2, 1, 90, 70)], SIZE, seed=3))

    class Data(LightningDataModule):  # type: ignore[misc]  # as above
        def train_dataloader(self) -> Any:
            # Workers of a resumed run start here; its current_epoch is still one behind.
            patching.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
            return DataLoader(
                dataset_of(patching, pixels),
                7,
                num_workers=1,
                persistent_workers=True,
                collate_fn=default_collate,
            )

    advance = LambdaCallback(
        # Workers were started before this: give them time to run ahead of the epoch.
        on_train_start=lambda *_: time.sleep(1),
        on_train_epoch_start=lambda trainer, _: patching.set_epoch(trainer.current_epoch),
    )
    model = _Recorder()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[advance, ModelCheckpoint(folder, filename="last", enable_version_counter=False)],
    )
    trainer.fit(model, datamodule=Data(), ckpt_path=resume)
    return model


def test_lightning_advances_and_resumes(pixels: Any, tmp_path: Path) -> None:
    """With the callback of the page each epoch differs, and a resumed run goes on as it would."""
    strategy = RandomPatching([(2, 1, 90, 70)], SIZE, seed=3)
    first = _fit(pixels, tmp_path, 2, None)
    later = _fit(pixels, tmp_path, 4, str(tmp_path / "last.ckpt"))
    for epoch, seen in {**first.seen, **later.seen}.items():
        assert seen == wanted(strategy.with_epoch(epoch)), epoch
    assert (sorted(first.seen), sorted(later.seen)) == ([0, 1], [2, 3])


def test_example_runs(tmp_path: Path) -> None:
    """Both directions, as the documentation shows them."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(patchloom.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[-1].endswith("patches in a store")
    assert "2 epochs" in done.stdout
