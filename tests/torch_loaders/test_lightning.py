"""Lightning trains over the loader as it is: its epochs are the loader's, each patch once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import patchloom

torch = pytest.importorskip("torch")
lightning = pytest.importorskip("lightning")

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(280)]


class Seen(lightning.LightningModule):  # type: ignore[misc,name-defined]
    """One layer, and the rows that it was given, epoch by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)
        self.rows: dict[int, list[list[int]]] = {}

    def training_step(self, batch: Any, _: int) -> Any:
        """A step."""
        self.rows.setdefault(self.current_epoch, []).append(batch["row"].tolist())
        return torch.nn.functional.mse_loss(self.layer(batch["image"]), batch["image"])

    def configure_optimizers(self) -> Any:
        """Plain descent."""
        return torch.optim.SGD(self.parameters(), 1e-3)


class Counting(lightning.Callback):  # type: ignore[misc,name-defined]
    """Tells the loader which epoch begins."""

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        """By its number."""
        trainer.train_dataloader.set_epoch(trainer.current_epoch)


class Pausing(lightning.Callback):  # type: ignore[misc,name-defined]
    """Keeps the state of all after some steps."""

    def __init__(self, steps: int, path: Path) -> None:
        self.steps, self.path = steps, path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Once."""
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.path)


def fitted(
    loader: Any, path: Path, callbacks: Any = (), most: int | None = None, **more: Any
) -> dict[int, list[list[int]]]:
    """The rows of each epoch of a training of two."""
    trainer = lightning.Trainer(
        max_epochs=2,
        limit_train_batches=most,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
        callbacks=list(callbacks),
    )
    model = Seen()
    trainer.fit(model, loader, **more)
    return model.rows


def expected(store: patchloom.PatchStore) -> dict[int, list[list[int]]]:
    """What NumPy batches are."""
    loader = store.batches(8, seed=4, columns="row")
    return {epoch: [batch["row"].tolist() for batch in loader] for epoch in range(2)}


def made(store: patchloom.PatchStore, workers: int) -> Any:
    dataset: Any = store.to_torch(batch_size=8, seed=4, columns="row", normalize="min-max")
    return dataset.loader(num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_those_of_the_loader(
    workers: int, store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """Two, one after the other, without a callback: each patch once in each."""
    rows = fitted(made(store, workers), tmp_path)
    assert rows == expected(store)
    for batches in rows.values():
        assert sorted(row for batch in batches for row in batch) == list(range(75))


def test_a_checkpoint_in_mid_epoch_is_gone_on_from(
    store: patchloom.PatchStore, tmp_path: Path
) -> None:
    """Lightning keeps the state of the loader: the exact next batch."""
    path = tmp_path / "last.ckpt"
    fitted(made(store, 2), tmp_path, [Pausing(14, path)])
    rest = fitted(made(store, 2), tmp_path, ckpt_path=path)
    assert rest == {1: expected(store)[1][4:]}


def test_epochs_that_are_cut_short_are_told(store: patchloom.PatchStore, tmp_path: Path) -> None:
    """Else one that was left in the middle would begin anew."""
    rows = fitted(made(store, 0), tmp_path, [Counting()], most=3)
    assert rows == {epoch: batches[:3] for epoch, batches in expected(store).items()}
    again = fitted(made(store, 0), tmp_path, most=3)
    assert again[0] == again[1] == rows[0]
