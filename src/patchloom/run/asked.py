"""Asked: what the readers of a run will ask of each array, in which batches."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np

from patchloom.image import Image, Ints, Role
from patchloom.planning.incidence import Patches, touches
from patchloom.planning.lenses import around
from patchloom.planning.plans import Plan
from patchloom.planning.runs import fetch_bytes
from patchloom.run.blocks import arrivals, batch_blocks
from patchloom.run.counting import along_curve, batch_chunks
from patchloom.run.cutting import steps_of
from patchloom.run.ground import Question
from patchloom.run.passes import survey_tasks

__all__ = ["KINDS", "Asked", "Reading", "asked"]

KINDS = ("image", "role", "survey", "mask", "live")
"""Why an array is read: to be cut, by a pass before, for coverage, or live by one epoch."""


@dataclass
class Reading:
    """What readers of one array are asked: for each one its blocks, in order."""

    batch: int
    """Chunks that are asked for together."""
    queues: list[Ints] = field(default_factory=list)


@dataclass
class Asked:
    """One array and what is asked of it, by kind."""

    image: Image
    readings: dict[str, Reading] = field(default_factory=dict)

    def ask(self, kind: str, blocks: Ints, batch: int) -> None:
        """One reader more."""
        self.readings.setdefault(kind, Reading(batch)).queues.append(blocks)

    def blocks(self) -> Ints:
        """All distinct blocks."""
        queues = [queue for reading in self.readings.values() for queue in reading.queues]
        return np.unique(np.concatenate(queues)) if queues else np.zeros(0, np.int64)


def asked(plan: Plan, *, normalized: Collection[str], over: str) -> dict[tuple[int, str], Asked]:
    """What an undisturbed run asks of every array at most: each leg of a task for itself.

    Parameters
    ----------
    plan
        Of all images.
    normalized
        Roles of the arrays that are normalised.
    over
        What statistics are of.
    """
    arrays: dict[tuple[int, str], Asked] = {}
    fetch = fetch_bytes(plan.memory)
    for _, shards in plan.runs.legs_of(range(plan.n_shards)):
        for part in plan.tour(shards):
            image = plan.images[part.image]
            shard = part.row // plan.rows_per_shard
            turn = plan.sequence.turns_of(part.rank)
            step = steps_of(part.cell, turn // plan.rows_per_shard, plan)
            for name, array in image.cut_arrays.items():
                found = arrays.setdefault((part.image, name), Asked(array))
                blocks = _queue(plan, name, array, part, step)
                batch = batch_blocks(array, fetch) * array.layout.chunks_per_block
                found.ask("image" if name == "image" else "role", blocks, batch)
                if name == "target" and name in normalized and over == "patches":
                    found.ask("survey", blocks, batch)
            if image.mask is not None:
                mask = image.mask.image
                found = arrays.setdefault((part.image, "mask"), Asked(mask))
                for blocks in _under_mask(plan, image.mask, part, shard):
                    found.ask("mask", blocks, 2**62)
    for found in arrays.values():
        for kind in {"image", "role"} & {*found.readings}:
            taken = found.readings[kind]
            found.ask("live", np.unique(np.concatenate(taken.queues)), taken.batch)
    if over != "patches" or "image" in normalized:
        _ask_survey(plan, over, "image", arrays)
    if over != "patches" and "target" in normalized:
        _ask_survey(plan, over, "target", arrays)
    return arrays


def _ask_survey(plan: Plan, over: str, role: str, arrays: dict[tuple[int, str], Asked]) -> None:
    """What a pass before asks of the images, or targets; under a mask it asks for less."""
    patches = plan if over == "patches" else None
    every = [image.cut_arrays[role] for image in plan.images]
    for tasks in survey_tasks(Question(over), every, patches):
        for piece in (piece for pieces in tasks for piece in pieces):
            image = every[piece.image]
            found = arrays.setdefault((piece.image, role), Asked(image))
            blocks = along_curve(image, np.asarray(piece.blocks, np.int64))
            if patches is not None:
                blocks = blocks[np.isin(blocks, np.concatenate(found.readings["image"].queues))]
            n = image.layout.chunks_per_block
            found.ask("survey", blocks, max(1, batch_chunks(image) // n) * n)


def _queue(plan: Plan, name: str, array: Image, part: Patches, step: Ints) -> Ints:
    """The blocks of one array that a task reads, in its order."""
    layout = array.layout
    sample = layout.own_samples(part.sample)
    place, cut = around(plan.images[part.image], name, part.corner, plan.cut)
    patch, block = touches(layout, sample, place, cut)
    return arrivals(step[patch], block)[0]


def _under_mask(plan: Plan, role: Role, part: Patches, shard: Ints) -> Iterator[Ints]:
    """The blocks of a mask that the coverage of each shard's patches reads."""
    layout, image = role.image.layout, plan.images[part.image]
    axes = [image.axes.spatial.index(a) for a in role.axes]
    corner = part.corner + np.asarray(plan.cut.context, np.int64)
    extent = np.asarray(image.layout.space.shape, np.int64)
    low = np.maximum(corner, 0)[:, axes]
    high = np.minimum(corner + np.asarray(plan.cut.proper, np.int64), extent)[:, axes]
    sample = layout.own_samples(part.sample)
    order = np.lexsort((sample, shard))
    shard, sample, low, high = shard[order], sample[order], low[order], high[order]
    change = (np.diff(shard, prepend=-1) != 0) | (np.diff(sample, prepend=-1) != 0)
    begins = np.flatnonzero(change)
    lows, highs = np.minimum.reduceat(low, begins), np.maximum.reduceat(high, begins)
    for s, a, b in zip(sample[begins].tolist(), lows.tolist(), highs.tolist(), strict=True):
        window = role.alignment.window(a, b, layout.space.shape)
        if any(first >= last for first, last in window):
            continue
        ranges = [
            np.arange(first // c, (last - 1) // c + 1)
            for (first, last), c in zip(window, layout.space.chunks, strict=True)
        ]
        at = np.stack([m.ravel() for m in np.meshgrid(*ranges, indexing="ij")], -1)
        yield np.unique(layout.blocks_of(np.full(len(at), s), at))
