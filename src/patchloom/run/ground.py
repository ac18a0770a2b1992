"""Ground: which pixels of an image's blocks a survey counts, how often, and under which label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.footprint import labelled, under
from patchloom.image import Image, Ints, Layout, Reads, Role
from patchloom.planning.incidence import touches
from patchloom.planning.plans import Plan
from patchloom.run.blocks import Supplied
from patchloom.run.masks import Walk
from patchloom.run.nearby import lying_under
from patchloom.run.union import layers

__all__ = ["Flags", "Ground", "Question", "boxes_of", "read_under", "walk_over"]

Pixels = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]
_Layers = list[tuple[Flags | None, int]]
"""Which pixels of a block count, None for all, and how often: the sum over all layers."""

_TOGETHER = 2**19
"""Patches that are looked at together, at least those of one block."""


@dataclass(frozen=True)
class Question:
    """What a survey asks of pixels."""

    over: str = "image"
    """``"image"``, ``"mask"`` or ``"patches"``."""
    each: str = "once"
    """Whether a pixel of several patches counts ``"once"``, or as often as it is ``"taken"``."""
    planes: bool = False
    """Whether each plane (z) is counted by itself."""
    labels: bool = False
    """Whether the pixels of each label are."""
    role: str = "image"
    """What is counted: images, or another array on their pixels."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The other arrays that are read."""
        asked = {"mask": self.over == "mask", "labels": self.labels}
        return tuple(name for name, is_asked in asked.items() if is_asked)


def boxes_of(layout: Layout, blocks: Ints) -> tuple[Ints, Ints]:
    """The half-open boxes of blocks, in spatial pixels: int64[n, ndim] each."""
    space = layout.space
    low = space.unflat(np.asarray(blocks) % space.n_chunks) * np.asarray(space.chunks, np.int64)
    return low, np.minimum(low + np.asarray(space.chunks), np.asarray(space.shape, np.int64))


def walk_over(image: Image, role: Role, blocks: Ints) -> Walk:
    """A walk over blocks, one a step, that reads what lies over them in another array."""
    walk = Walk(image, role)
    low, high = boxes_of(image.layout, blocks)
    first, last = walk.touched(low, high)
    position, samples = image.layout.samples_of(blocks)
    begins = np.searchsorted(position, np.arange(len(blocks) + 1))
    for k, (a, b) in enumerate(zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True)):
        n = b - a
        walk.note(
            k, samples[a:b], np.repeat(first[k : k + 1], n, 0), np.repeat(last[k : k + 1], n, 0)
        )
    return walk


def read_under(role: Role, supplied: Supplied | None) -> Role:
    """The role, with the chunks that Dask handed over as its source."""
    if supplied is None:
        return role
    source: Any = supplied
    return replace(role, image=replace(role.image, source=source))


class Ground:
    """The pixels that count in some blocks of one image; entered block by block.

    Parameters
    ----------
    question, image, blocks
        What is asked, and of which blocks: int64[n], in the order in which they come.
    roles
        Mask and labels that are asked for, from `read_under`.
    plan, index
        Whose patches they are, and the image's position in it.
    """

    def __init__(
        self,
        question: Question,
        image: Image,
        blocks: Ints,
        roles: Mapping[str, Role],
        plan: Plan | None,
        index: int,
    ) -> None:
        self._question, self._image, self._blocks = question, image, blocks
        self._roles, self._plan, self._index = roles, plan, index
        self._walks = {name: walk_over(image, role, blocks) for name, role in roles.items()}
        self._low, self._high = boxes_of(image.layout, blocks)
        self._held: dict[int, list[_Layers]] = {}
        self._boxes: dict[int, tuple[Ints, Ints, Ints]] = {}

    @property
    def reads(self) -> Reads:
        """What was read of masks and labels so far."""
        return sum((walk.reads for walk in self._walks.values()), Reads())

    def samples(self, step: int) -> Ints:
        """The samples of a block."""
        return self._image.layout.samples_of(self._blocks[step : step + 1])[1]

    def first(self, step: int) -> Ints:
        """The first pixel of a block on each spatial axis."""
        found: Ints = self._low[step]
        return found

    def reach(self, low: int, high: int) -> int:
        """Up to which step, at most `high`, so few patches lie that they are looked at together."""
        plan = self._plan
        if self._question.over != "patches" or plan is None:
            return high
        while high - low > 1:
            near = plan.touching(self._index, self._around(low, high))
            if int(plan.cells.kept[near].sum(dtype=np.int64)) <= _TOGETHER:
                break
            high = (low + high) // 2
        return high

    def find(self, low: int, high: int) -> list[int]:
        """Those of steps [low, high) in whose blocks any pixel counts."""
        steps = [*range(low, high)]
        if self._question.over == "mask":
            return [step for step in steps if self._find_mask(step)]
        if self._question.over == "patches":
            self._find_patches(low, high)
            return [step for step in steps if step in self._boxes]
        return steps

    def layers(self, step: int, inside: int, sample: int) -> _Layers:
        """The pixels of a block that count, of one of its samples."""
        if self._question.over == "mask":
            return self._held[step][inside]
        if self._question.over == "patches":
            of, low, high = self._boxes[step]
            mine = of == sample
            extent = (self._high[step] - self._low[step]).tolist()
            return [*layers(self._question.each, low[mine], high[mine], extent)]
        return [(None, 1)]

    def labels(self, step: int) -> list[tuple[Pixels, Flags | None]]:
        """The label of each pixel of a block, and where there is one; of each of its samples."""
        walk = self._walks["labels"]
        walk.enter(step)
        found = []
        for pixels, origin, box in self._over("labels", step):
            values, known = labelled(pixels, origin, self._roles["labels"].alignment, *box)
            found.append(
                (
                    self._spread("labels", values),
                    None if known is None else self._spread("labels", known),
                )
            )
        walk.leave(step)
        return found

    def leave(self, step: int) -> None:
        """Forget what was found of a block."""
        self._held.pop(step, None)
        self._boxes.pop(step, None)

    def _find_mask(self, step: int) -> bool:
        walk = self._walks["mask"]
        walk.enter(step)
        found: list[_Layers] = []
        for pixels, origin, box in self._over("mask", step):
            covered = under(pixels != 0, origin, self._roles["mask"].alignment, *box)
            some, every = covered.any(), covered.all()
            where = None if every else self._spread("mask", covered)
            found.append([(where, 1)] if some else [])
        walk.leave(step)
        if not any(found):
            return False
        self._held[step] = found
        return True

    def _over(
        self, name: str, step: int
    ) -> list[tuple[Pixels, list[int], tuple[list[int], list[int]]]]:
        """Pixels of another array over a block with their first, and the box on its axes.

        One for each of the block's samples; the same where one array serves all.
        """
        role, walk = self._roles[name], self._walks[name]
        axes = [self._image.axes.spatial.index(a) for a in role.axes]
        low, high = self._low[step], self._high[step]
        first, last = walk.touched(low[None], high[None])
        window = list(zip(first[0].tolist(), last[0].tolist(), strict=True))
        box = low[axes].tolist(), high[axes].tolist()
        own = walk.samples(self.samples(step)).tolist()
        read = {sample: walk.region(sample, window) for sample in dict.fromkeys(own)}
        return [(read[sample], first[0].tolist(), box) for sample in own]

    def _spread(self, name: str, found: Pixels) -> Pixels:
        """What holds on the axes of another array, on all axes of the image."""
        axes = self._image.axes.spatial
        missing = tuple(k for k, a in enumerate(axes) if a not in self._roles[name].axes)
        if not missing:
            return found
        return np.expand_dims(found, missing)

    def _find_patches(self, low: int, high: int) -> None:
        """The boxes of the patches that reach into some blocks."""
        plan, blocks = self._plan, self._blocks[low:high]
        assert plan is not None
        positions = np.sort(plan.touching(self._index, self._around(low, high)))
        if not len(positions):
            return
        [patches] = plan.along(positions)
        layout = self._image.layout
        sample = layout.own_samples(patches.sample)
        patch, block = touches(layout, sample, patches.corner, plan.cut)
        order = np.argsort(block, kind="stable")
        patch, block = patch[order], block[order]
        begins = np.searchsorted(block, blocks)
        ends = np.searchsorted(block, blocks, side="right")
        size = np.asarray(plan.cut.size, np.int64)
        for k, (a, b) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
            mine, step = patch[a:b], low + k
            first, extent = self._low[step], self._high[step] - self._low[step]
            start = np.clip(patches.corner[mine] - first, 0, extent)
            stop = np.clip(patches.corner[mine] + size - first, 0, extent)
            # What only padding repeats is not taken.
            real = (start < stop).all(-1)
            if real.any():
                self._boxes[step] = sample[mine][real], start[real], stop[real]

    def _around(self, low: int, high: int) -> Ints:
        """The blocks of the plan's image that lie under those of some steps."""
        assert self._plan is not None
        own = self._plan.images[self._index].layout
        blocks = np.sort(self._blocks[low:high])
        return lying_under(own, self._image.layout, blocks, np.arange(own.n_samples))
