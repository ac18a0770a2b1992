"""A real training run through the loader is that on the same batches from arrays in memory.

Losses are equal to 1e-6 for 50 steps, in PyTorch and in Keras on it; a run that stops in mid-epoch
and resumes has the same losses as one that did not stop.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import pytest

import patchloom

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(280)]


def autoencoder() -> Any:
    """A small convolutional network, with the same weights every time."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.ConvTranspose2d(8, 1, 2, stride=2),
    )


def train(batches: Iterable[Any], model: Any = None, optimizer: Any = None) -> list[float]:
    """The loss of each step."""
    model = autoencoder() if model is None else model
    optimizer = optimizer or torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        found = torch.nn.functional.mse_loss(model(batch["image"]), batch["target"] / 4096.0)
        found.backward()
        optimizer.step()
        losses.append(found.item())
    return losses


def in_memory(store: patchloom.PatchStore, steps: int) -> Iterable[Any]:
    """The same batches, cut from whole arrays by plain NumPy."""
    rows = np.arange(store.n_patches)
    images = store.read(rows, normalize=store.normalization("percentile"))
    targets = store.read(rows, "targets").astype(np.int32)
    order = store.batches(8, seed=4, arrays="images", columns="row", epochs=None)
    for batch in islice(order, steps):
        row = batch["row"]
        yield {"image": torch.from_numpy(images[row]), "target": torch.from_numpy(targets[row])}


def dataset(store: patchloom.PatchStore) -> Any:
    return store.to_torch(batch_size=8, seed=4, normalize="percentile")


def forever(loader: Any) -> Iterable[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


@pytest.mark.parametrize("workers", [0, 2])
def test_losses_are_those_of_arrays_in_memory(workers: int, store: patchloom.PatchStore) -> None:
    """For 50 steps, which are five epochs."""
    found = train(islice(forever(dataset(store).loader(num_workers=workers)), 50))
    expected = train(in_memory(store, 50))
    assert len(found) == 50
    assert found[-1] < found[0]
    assert np.allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 1)])
def test_resuming_gives_the_identical_curve(
    before: int, after: int, store: patchloom.PatchStore
) -> None:
    """Stopped in the middle of the third epoch; with another number of workers."""
    whole = train(islice(forever(dataset(store).loader(num_workers=after)), 40))
    model = autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loader = dataset(store).loader(num_workers=before)
    head = train(islice(forever(loader), 24), model, optimizer)
    saved = {
        "model": {k: v.clone() for k, v in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "loader": loader.state_dict(),
    }
    model = autoencoder()
    model.load_state_dict(saved["model"])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    optimizer.load_state_dict(saved["optimizer"])
    loader = dataset(patchloom.open_patches(store.url)).loader(num_workers=after)
    loader.load_state_dict(saved["loader"])
    assert head + train(islice(forever(loader), 16), model, optimizer) == whole


def test_keras_on_torch(store: patchloom.PatchStore) -> None:
    """The losses of its epochs are those of the same batches from memory."""
    keras = pytest.importorskip("keras")
    assert keras.backend.backend() == "torch"

    def model() -> Any:
        keras.utils.set_random_seed(0)
        made = keras.Sequential(
            [
                keras.layers.Input((16, 16, 1)),
                keras.layers.Conv2D(8, 3, padding="same", activation="relu"),
                keras.layers.Conv2D(1, 3, padding="same"),
            ]
        )
        made.compile("adam", "mse")
        return made

    def scaled(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "target": batch["target"] / np.float32(4096)}

    options: dict[str, Any] = {"seed": 4, "normalize": "percentile", "transform": scaled}
    ours = store.to_keras(8, y="target", **options)
    assert len(ours) == 10
    x, y = ours[0]
    assert x.shape == y.shape == (8, 16, 16, 1)
    told = {"shuffle": False, "verbose": 0, "callbacks": [ours.epochs()]}
    history = model().fit(ours, epochs=5, **told).history["loss"]
    expected, plain = [], model()
    loader = store.batches(8, **options)
    for _ in range(5):
        losses, sizes = [], []
        for batch in loader:
            a, b = (np.moveaxis(batch[key], 1, -1) for key in ("image", "target"))
            plain.reset_metrics()
            losses.append(float(plain.train_on_batch(a, b)))
            sizes.append(len(a))
        expected.append(np.average(losses, weights=sizes))
    assert np.allclose(history, expected, rtol=0, atol=1e-6)
    later = store.to_keras(8, y="target", **options)
    resumed = model()
    told = {**told, "callbacks": [later.epochs()]}
    resumed.fit(ours, epochs=2, **{**told, "callbacks": [ours.epochs()]})
    assert resumed.fit(later, initial_epoch=2, epochs=5, **told).history["loss"] == history[2:]
    first = store.to_keras(8, x=["image", "target"], channels="first")
    assert first[9]["image"].shape == (3, 1, 16, 16)
