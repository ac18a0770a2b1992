"""TensorFlow: the batches of a loader as a tf.data.Dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from patchloom.errors import ConfigError
from patchloom.load.loader import Loader

__all__ = ["counted", "tensorflow_dataset"]


def tensorflow_dataset(loader: Loader, channels: str = "last") -> Any:
    """A ``tf.data.Dataset`` of what a loader hands out; each iteration is its next epoch.

    One batch is made to learn its types.

    Parameters
    ----------
    loader
        From `Patches.batches`. Its state is that of what TensorFlow has taken: the batch that was
        handed out last, unless a ``prefetch`` takes more.
    channels
        Where images have them, which are arrays of four or more axes: ``"first"`` or ``"last"``.

    Returns
    -------
    tf.data.Dataset
        Of dicts, or of tuples with ``fields=``, of tensors [n, ...]; text is ``tf.string``.

    Raises
    ------
    ConfigError
        If `channels` is neither, or an epoch has no batch.
    """
    if channels not in ("first", "last"):
        raise ConfigError(f"channels= is 'first' or 'last', got {channels!r}")
    course = loader.course
    if not len(loader):
        raise ConfigError("a dataset has a batch that tells its types, got an epoch without one")
    [first] = course.make(0, [*course.places(0, course.batching(), range(1))])

    def batches() -> Iterator[Any]:
        for batch in loader:
            yield _made(batch, channels == "last")

    signature = tf.nest.map_structure(_spec, _made(first, channels == "last"))
    return tf.data.Dataset.from_generator(batches, output_signature=signature)


def counted(dataset: Any, loader: Loader) -> Any:
    """The same, which knows how many batches it has: of a loader that is not put in mid-epoch."""
    each = tf.data.INFINITE_CARDINALITY if loader.epochs is None else len(loader) * loader.epochs
    return dataset.apply(tf.data.experimental.assert_cardinality(each))


def _made(value: Any, last: bool) -> Any:
    """A batch as TensorFlow takes it."""
    if isinstance(value, Mapping):
        return {key: _made(item, last) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_made(item, last) for item in value)
    array = np.asarray(value)
    if array.dtype.kind in "OSU":
        return array.astype(object)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return np.moveaxis(array, 1, -1) if last and array.ndim > 3 else array


def _spec(array: Any) -> Any:
    kind = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
    return tf.TensorSpec((None, *array.shape[1:]), kind)
