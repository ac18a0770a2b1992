"""What lies at the centre pixels of patches: the mask there, and the class of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import PlanError
from patchloom.image import Image, Ints
from patchloom.patching.config import PixelsConfig
from patchloom.randomness import key_of, philox
from patchloom.run.masks import Regions, covered_area, read_region

__all__ = ["Choice", "check_labels", "classes_at", "goes_by_class"]

_LIMIT = 2**23
"""Pixels of labels that are looked at together."""


def check_labels(images: Sequence[Image]) -> None:
    """Refuse classes of images without labels.

    Raises
    ------
    PlanError
        Naming an image without labels, or with labels of several channels.
    """
    for image in images:
        labels = None if image.labels is None else image.labels.image
        if labels is None or labels.layout.n_channels != 1 or labels.dtype.kind not in "biu":
            raise PlanError(
                f"classes= are values of labels, integers with one channel, but {image.id!r} has "
                "none such; open the images with labels="
            )


def classes_at(
    image: Image, sample: Ints, flat: Ints, regions: Regions | None = None
) -> npt.NDArray[Any]:
    """Value of the labels at some pixels.

    Parameters
    ----------
    image
        With labels on its own pixels.
    sample, flat
        Flat sample and pixel of it in C order: int64[n] each.
    regions
        Reads the labels; by default their chunks are read anew.
    """
    assert image.labels is not None
    labels = image.labels.image
    pixel = np.stack(np.unravel_index(flat, image.layout.space.shape), -1).astype(np.int64)
    found = np.zeros(len(flat), labels.dtype)
    which = labels.layout.own_samples(sample)
    for one in np.unique(which):
        for group in _groups(pixel, np.flatnonzero(which == one)):
            low, high = pixel[group].min(0), pixel[group].max(0) + 1
            window = list(zip(low.tolist(), high.tolist(), strict=True))
            if regions is None:
                region = read_region(labels, int(one), window)[0]
            else:
                region = regions(int(one), window)
            found[group] = region[tuple((pixel[group] - low).T)]
    return found


def goes_by_class(config: Any) -> bool:
    """Whether a plan asks for the classes of centre pixels, so that its manifest tells them."""
    return isinstance(config, PixelsConfig) and config.classes is not None


class Choice:
    """Which centre pixels of one image are taken: under its mask, of the classes, at most so many.

    Each candidate has a random word by its address; where there are too many of a class, those
    with the smallest are taken. Memory grows with what is taken.

    Parameters
    ----------
    config
        What is asked for.
    image
        With its labels, and its mask if it has one.
    seed, key
        Fix the random words; `key` is the image's.
    """

    def __init__(self, config: PixelsConfig, image: Image, seed: int, key: int) -> None:
        self._config = config
        self._image = image
        self._key = key_of("pixels", seed, key)
        none = np.zeros(0, np.int64)
        self._taken = (np.zeros(0, np.uint64), none, none)

    @property
    def is_limited(self) -> bool:
        """Whether only so many of each class are taken."""
        return self._config.max_num is not None

    def allowed(
        self,
        sample: Ints,
        flat: Ints,
        mask: Regions | None = None,
        labels: Regions | None = None,
    ) -> tuple[npt.NDArray[np.bool_], Ints]:
        """Whether each centre pixel may be taken, and its class (0 where none is asked).

        Parameters
        ----------
        sample, flat
            Flat sample and pixel of it in C order: int64[n] each.
        mask, labels
            Read the roles; by default their chunks are read anew.
        """
        image, classes = self._image, self._config.classes
        good: npt.NDArray[np.bool_] = np.ones(len(flat), np.bool_)
        if image.mask is not None:
            shape = image.layout.space.shape
            pixel = np.stack(np.unravel_index(flat, shape), -1).astype(np.int64)
            area, whole = covered_area(image, sample, pixel, (1,) * len(shape), mask)
            # A finer mask covers a pixel if it covers half of it.
            good = np.asarray(2 * area >= whole, np.bool_)
        kind = np.zeros(len(flat), np.int64)
        if classes is not None:
            value = classes_at(image, sample, flat, labels)
            kind = value.astype(np.int64)
            # What no int64 holds is no class that can be asked for.
            good &= np.isin(kind, classes) & ((kind < 0) == (value < 0))
        return good, kind

    def offer(self, sample: Ints, flat: Ints, kind: Ints) -> None:
        """Look at more candidates, and keep the smallest words of each class."""
        most = self._config.max_num
        assert most is not None
        words = philox(self._key, flat, flat >> 32, sample)
        word = words[0] << np.uint64(32) | words[1]
        address = sample * int(np.prod(self._image.layout.space.shape)) + flat
        column = [
            np.concatenate([old, new])
            for old, new in zip(self._taken, (word, address, kind), strict=True)
        ]
        order = np.lexsort((column[1], column[0], column[2]))
        kinds = column[2][order]
        begin = np.searchsorted(kinds, kinds)
        order = order[np.arange(len(order)) - begin < most]
        self._taken = (column[0][order], column[1][order], column[2][order])

    def taken(self, sample: Ints, flat: Ints) -> npt.NDArray[np.bool_]:
        """Whether each candidate is among those kept, after all were offered."""
        address = sample * int(np.prod(self._image.layout.space.shape)) + flat
        return np.isin(address, self._taken[1])


def _groups(pixel: Ints, members: Ints) -> list[Ints]:
    """Cut pixels into groups whose bounding box is small enough."""
    span = np.ptp(pixel[members], axis=0) + 1
    if span.prod() <= _LIMIT:
        return [members]
    axis = int(span.argmax())
    middle = pixel[members, axis].min() + span[axis] // 2
    low = pixel[members, axis] < middle
    return _groups(pixel, members[low]) + _groups(pixel, members[~low])
