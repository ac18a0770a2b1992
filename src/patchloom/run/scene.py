"""Scene: the part of a plan that one picture shows, as columns and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.image import Image
from patchloom.planning.incidence import Patches, touches
from patchloom.planning.plans import Plan
from patchloom.run.masks import covered_area, read_region, volumes

__all__ = [
    "MOST_PATCHES",
    "MOST_PIXELS",
    "MaskView",
    "Scene",
    "decodes_patch_by_patch",
    "scene_of",
]

MOST_PIXELS = 1024
"""Pixels that a picture shows along y and x at most."""

MOST_PATCHES = 4_000
"""Patches that are drawn at most."""

_CELLS = 256
"""Cells whose patches are looked at together."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MaskView:
    """The mask under a scene."""

    covered: npt.NDArray[np.bool_]
    """bool[y, x], in mask pixels."""
    origin: tuple[float, float]
    """Where its first pixel begins (y, x), in pixels of the scene."""
    scale: tuple[float, float]
    """Extent of its pixel (y, x), in pixels of the scene."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One image of a plan (a plane of it, if it has z), from its first pixel on."""

    image: Image
    pixels: npt.NDArray[Any]
    """[c, y, x]"""
    plane: int | None
    """Which z, if the image has z."""
    mask: MaskView | None
    chunk: tuple[int, int]
    """Extent of a chunk (y, x)."""
    needed: npt.NDArray[np.bool_]
    """Whether any kept patch needs each chunk under the scene: bool[y, x], in chunks."""
    patch: tuple[int, int]
    """Extent of a patch (y, x)."""
    corner: Ints
    """First pixel (y, x) of each candidate that reaches into the scene: int64[n, 2]."""
    coverage: npt.NDArray[np.float64]
    """Share of each candidate under the mask: float64[n]."""
    kept: npt.NDArray[np.bool_]
    """Whether the plan takes it: bool[n]."""
    whole: bool
    """Whether these are all the plan's patches: one image, one plane, nothing left out."""

    @property
    def shape(self) -> tuple[int, int]:
        """Extent (y, x), in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]


def scene_of(plan: Plan, index: int = 0) -> Scene:
    """The scene of one image of a plan; reads at most `MOST_PIXELS` squared of it.

    Parameters
    ----------
    plan
        Any plan.
    index
        Which of its images.
    """
    image = plan.images[index]
    space = image.layout.space
    window = _window(space.shape)
    plane = window[0][0] if len(window) == 3 else None
    pixels = read_region(image, 0, window)
    height, width = (b - a for a, b in _plane_of(window, (0, 1)))
    candidates = _candidates(plan, index, window)
    sample = np.zeros(len(candidates), np.int64)
    proper = plan.cut.proper
    area, pixel = covered_area(image, sample, candidates, proper)
    whole = volumes(image, candidates, proper, plan.edge)
    kept = _kept(plan, index, candidates)
    patch, chunk = _last_two(proper), _last_two(space.chunks)
    return Scene(
        image=image,
        pixels=pixels.reshape(len(pixels), height, width),
        plane=plane,
        mask=_mask(image, window),
        chunk=chunk,
        needed=_needed(plan, index, window),
        patch=patch,
        corner=_flat(candidates),
        coverage=np.asarray(area / (whole.astype(area.dtype) * pixel), np.float64),
        kept=kept,
        whole=len(plan.images) == 1 and int(kept.sum()) == plan.n_patches,
    )


def _window(shape: Sequence[int]) -> list[tuple[int, int]]:
    """First and last-but-one pixel on each axis; of z the plane in the middle."""
    window = [(0, min(n, MOST_PIXELS)) for n in shape]
    if len(shape) == 3:
        window[0] = (shape[0] // 2, shape[0] // 2 + 1)
    return window


def _last_two(values: Sequence[int]) -> tuple[int, int]:
    return (1, values[0]) if len(values) == 1 else (values[-2], values[-1])


def _plane_of(
    window: Sequence[tuple[int, int]], line: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The part of a window along y and x; an image without y is a line."""
    return (line, window[0]) if len(window) == 1 else (window[-2], window[-1])


def _flat(corner: Ints) -> Ints:
    if corner.shape[1] == 1:
        return np.concatenate([np.zeros_like(corner), corner], 1)
    return corner[:, -2:]


def _candidates(plan: Plan, index: int, window: Sequence[tuple[int, int]]) -> Ints:
    """Corners of patches of the first sample that reach into the window: int64[n, ndim].

    All candidates, or where these are too many to be drawn, those that the plan takes.
    """
    space = plan.images[index].layout.space
    ranges = [
        np.arange(max(0, (a - size + 1) // c), min(-(-b // c), n))
        for (a, b), size, c, n in zip(
            window, plan.cut.proper, space.chunks, space.counts, strict=True
        )
    ]
    grid = np.stack([m.ravel() for m in np.meshgrid(*ranges, indexing="ij")], -1)
    cells = np.sort(space.flat(grid))
    counts = plan.patching.counts_of(index, cells)
    if counts.sum() <= MOST_PATCHES:
        corners, _ = plan.patching.corners(index, cells[counts > 0])
    else:
        positions = plan.cells.find(index, cells)
        kept = np.cumsum(plan.cells.kept[positions], dtype=np.int64)
        parts = plan.owned_by(positions[kept <= MOST_PATCHES])
        none = np.zeros((0, len(space.shape)), np.int64)
        corners = np.concatenate([none, *(part.corner for part in parts)])
        corners += np.asarray(plan.cut.context, np.int64)
    low = np.array([a for a, _ in window])
    high = np.array([b for _, b in window])
    inside = (corners < high) & (corners + np.array(plan.cut.proper) > low)
    reaching: Ints = corners[inside.all(-1)]
    return reaching


def _kept(plan: Plan, index: int, corners: Ints) -> npt.NDArray[np.bool_]:
    """Which candidates of the first sample the plan takes: it is asked, not computed anew."""
    layout = plan.images[index].layout
    cells = np.unique(layout.space.flat(layout.space.chunk_of(np.maximum(corners, 0))))
    positions = plan.cells.find(index, cells)
    taken = {
        tuple(corner)
        for part in (plan.owned_by(positions) if len(positions) else ())
        for corner in (part.corner + np.asarray(plan.cut.context)).tolist()
    }
    return np.array([tuple(corner) in taken for corner in corners.tolist()], np.bool_)


def _needed(plan: Plan, index: int, window: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Which chunks under a window any kept patch needs: bool[y, x], in chunks."""
    layout = plan.images[index].layout
    space = layout.space
    ranges = [np.arange(a // c, -(-b // c)) for (a, b), c in zip(window, space.chunks, strict=True)]
    # The first sample lies in the first blocks.
    blocks = space.flat(np.stack(np.meshgrid(*ranges, indexing="ij"), -1))
    flags = np.zeros(layout.samples.n_chunks * space.n_chunks, np.bool_)
    positions = plan.touching(index, blocks.ravel())
    for start in range(0, len(positions), _CELLS):
        for part in plan.owned_by(positions[start : start + _CELLS]):
            flags[touches(layout, part.sample, part.corner, plan.cut)[1]] = True
    found = flags[blocks]
    return found.reshape(-1, found.shape[-1])


def _mask(image: Image, window: Sequence[tuple[int, int]]) -> MaskView | None:
    role = image.mask
    if role is None:
        return None
    mine = [window[image.axes.spatial.index(a)] for a in role.axes]
    shape = role.image.layout.space.shape
    inside = role.alignment.window([a for a, _ in mine], [b for _, b in mine], shape)
    if len(inside) == 3:
        # A plane of the image touches one plane of the mask, or two: the first stands for it.
        inside = ((inside[0][0], inside[0][0] + 1), *inside[1:])
    covered = read_region(role.image, 0, inside)[0] != 0
    begins = [
        float(o + a * s - w)
        for o, s, (a, _), (w, _) in zip(
            role.alignment.offset, role.alignment.scale, inside, mine, strict=True
        )
    ]
    scale = [float(s) for s in role.alignment.scale]
    if len(scale) == 1:
        begins, scale = [0.0, *begins], [1.0, *scale]
    height = covered.shape[-2] if covered.ndim > 1 else 1
    return MaskView(covered.reshape(height, -1), (begins[-2], begins[-1]), (scale[-2], scale[-1]))


def decodes_patch_by_patch(plan: Plan) -> int:
    """Chunk decodes if each patch were cut on its own, every chunk that it touches read anew."""
    return sum(_pairs(plan, part) for part in plan.walk())


def _pairs(plan: Plan, part: Patches) -> int:
    layout = plan.images[part.image].layout
    return len(touches(layout, part.sample, part.corner, plan.cut)[0]) * (layout.chunks_per_block)
