"""A store as a ``tf.data.Dataset``, and in JAX: the batches of NumPy, epoch after epoch."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest

import patchloom
from patchloom.errors import ConfigError

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> patchloom.PatchStore:
    """50 patches of two images, with labels."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 4096, (40, 40), "uint16") for _ in range(2)]
    labels = [(p > 2000).astype("uint8") for p in pixels]
    images = patchloom.open_images(pixels, ids=["a", "b"], labels=labels)
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [8, 8]}, rows_per_shard=8)
    url = str(tmp_path_factory.mktemp("store") / "s.zarr")
    patchloom.materialize(plan, url, progress=False)
    return patchloom.open_patches(url)


def test_batches_are_those_of_numpy(store: patchloom.PatchStore) -> None:
    """In types, values, order and number; each iteration is another epoch, channels go last."""
    options: dict[str, Any] = {"seed": 3, "columns": ["row", "image_id"]}
    data = store.to_tensorflow(16, **options)
    assert data.cardinality().numpy() == len(data) == 4
    loader = store.batches(16, **options)
    orders = []
    for _ in range(2):
        seen = list(zip(data, loader, strict=True))
        for found, expected in seen:
            assert {*found} == {*expected} == {"image", "labels", "row", "image_id"}
            assert found["image"].dtype == tf.uint16
            assert np.array_equal(found["image"][..., 0], expected["image"][:, 0])
            assert np.array_equal(found["labels"][..., 0], expected["labels"][:, 0])
            assert np.array_equal(found["row"], expected["row"])
            assert [i.decode() for i in found["image_id"].numpy()] == [*expected["image_id"]]
        orders.append([row for found, _ in seen for row in found["row"].numpy().tolist()])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1]


def test_an_epoch_is_gone_on_with(store: patchloom.PatchStore) -> None:
    """From the state of the loader, after what TensorFlow has taken."""
    from patchloom.load.tensorflow_data import tensorflow_dataset

    loader = store.batches(16, columns="row")
    taken = [batch["row"].numpy() for batch in tensorflow_dataset(loader).take(2)]
    state = loader.state_dict()
    assert state["visited"] == 32
    again = store.batches(16, columns="row")
    again.load_state_dict(state)
    taken += [batch["row"].numpy() for batch in tensorflow_dataset(again)]
    assert sorted(np.concatenate(taken).tolist()) == list(range(50))


def test_what_is_refused(store: patchloom.PatchStore) -> None:
    with pytest.raises(ConfigError, match="'first' or 'last'"):
        store.to_tensorflow(8, channels="none")
    with pytest.raises(ConfigError, match="without one"):
        store.to_tensorflow(99, drop_last=True)


def test_a_model_is_trained(store: patchloom.PatchStore) -> None:
    """Keras takes tuples; an error in a transformation comes out."""
    keras = tf.keras
    fields = ("image", "image")
    data = store.to_tensorflow(16, fields=fields, normalize="percentile", arrays="images")
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(1, 3, padding="same")])
    model.compile("adam", "mse")
    fitted = model.fit(data, epochs=3, verbose=0)
    assert fitted.history["loss"][-1] < fitted.history["loss"][0]

    def broken(batch: dict[str, Any]) -> dict[str, Any]:
        if 7 in batch["row"]:
            raise ValueError("row seven")
        return batch

    data = store.to_tensorflow(1, transform=broken, columns="row", shuffle=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="row seven"):
        list(data)


def test_jax_takes_batches_as_they_are(store: patchloom.PatchStore) -> None:
    """What the page says to type, of a layer of its own."""
    jax = pytest.importorskip("jax")
    weight = jax.numpy.zeros((1, 1, 3, 3))

    def loss(weight: Any, image: Any) -> Any:
        found = jax.lax.conv(image, weight, (1, 1), "SAME")
        return ((found - image) ** 2).mean()

    step = jax.jit(jax.value_and_grad(loss))
    losses = []
    for batch in store.batches(
        16, arrays="images", normalize="percentile", drop_last=True, epochs=4
    ):
        image = jax.device_put(batch["image"])
        value, slope = step(weight, image)
        weight -= 0.3 * slope
        losses.append(float(value))
    assert losses[-1] < losses[0] / 2
