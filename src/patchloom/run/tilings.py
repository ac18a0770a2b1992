"""Tilings: which tiles reach into a box of an image, by a plan or by a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from patchloom.errors import PlanError, StoreError
from patchloom.grid import ChunkGrid
from patchloom.image import Ints
from patchloom.planning.incidence import Cut, Patches
from patchloom.planning.plans import Plan
from patchloom.run.tiles import columns_of
from patchloom.store.patch_store import PatchStore

__all__ = ["Arranged", "Listing", "PlanTiling", "Tiles", "cut_of_store"]


@dataclass(frozen=True, eq=False)
class Tiles:
    """Some tiles of one sample, as columns, in the order in which they are put down."""

    row: Ints
    """Row of the plan or store: int64[n]."""
    corner: Ints
    """First pixel of what was cut, context included: int64[n, ndim]."""
    start: Ints
    """First pixel that the tile has a say in: int64[n, ndim]."""
    stop: Ints
    """Where that ends; inside the image: int64[n, ndim]."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, where: npt.NDArray[Any] | slice) -> Tiles:
        """Some of them."""
        return Tiles(self.row[where], self.corner[where], self.start[where], self.stop[where])

    def within(self, start: Sequence[int], stop: Sequence[int]) -> Tiles:
        """Those that have a say inside a box."""
        first, last = np.maximum(self.start, start), np.minimum(self.stop, stop)
        return self.take(np.flatnonzero((first < last).all(1)))


@dataclass(frozen=True, eq=False)
class PlanTiling:
    """The tiles of a plan, found anew wherever they are needed: it is no larger than the plan."""

    plan: Plan
    whole: bool
    """Whether a tile has a say in all that it shows (but for its context), or in its crop."""
    by_rank: bool = False
    """Whether tiles stand along the curve, and not in row order."""

    def check(self) -> None:
        """Refuse patches that put nothing together.

        Raises
        ------
        PlanError
            If they have no crops and need them, or have several sizes.
        """
        plan = self.plan
        if plan.edge == "shrink":
            raise PlanError(
                "tiles that are stitched have one size, got a plan with edge='shrink'; plan with "
                "edge='pad' or leave it out"
            )
        if self.whole or not plan.n_patches:
            return
        [first] = plan.patches(0, 1)
        table = columns_of(plan, first)
        if table is None or "total_tiles" not in table.column_names:
            raise PlanError(
                "without blend= tiles say what is kept of each, but patches of the strategy "
                f"{plan.config.name!r} do not; plan with the strategy 'tiled', or give blend="
            )

    def of_box(self, image: int, sample: int, start: Sequence[int], stop: Sequence[int]) -> Tiles:
        """The tiles of one sample that have a say inside a box.

        Parameters
        ----------
        image
            Position of the image in the plan.
        sample
            Flat sample.
        start, stop
            The box, in pixels.
        """
        layout = self.plan.images[image].layout
        low = layout.space.chunk_of(start)
        high = layout.space.chunk_of(np.asarray(stop) - 1)
        chunks = low + np.argwhere(np.ones(high - low + 1, np.bool_))
        blocks = layout.blocks_of(np.full(len(chunks), sample), chunks)
        positions = self.plan.touching(image, np.unique(blocks))
        ndim = len(low)
        row, rank = np.zeros(0, np.int64), np.zeros(0, np.int64)
        corner = first = last = np.zeros((0, ndim), np.int64)
        if len(positions):
            [part] = self.plan.owned_by(positions)
            part = part.take(part.sample == sample)
            row, rank, corner = part.row, part.rank, part.corner
            first, last = self._said(part)
        order = np.argsort(rank if self.by_rank else row, kind="stable")
        return Tiles(row, corner, first, last).take(order).within(start, stop)

    def _said(self, part: Patches) -> tuple[Ints, Ints]:
        """The boxes that some tiles have a say in."""
        if self.whole:
            extent = self.plan.images[part.image].layout.space.shape
            return _proper(part.corner, self.plan.cut, extent)
        table = columns_of(self.plan, part)
        assert table is not None
        return _crops(table, self.plan.spatial)


@dataclass(frozen=True, eq=False)
class Listing:
    """The tiles of a store, by its manifest: a few numbers a tile, held by the client."""

    row: Ints
    image: Ints
    """Position of the image: int64[n]."""
    sample: Ints
    corner: Ints
    start: Ints
    stop: Ints

    @classmethod
    def of(cls, store: PatchStore, *, whole: bool) -> Listing:
        """The tiles of a store that are there.

        Raises
        ------
        StoreError
            If its patches are no tiles, and need to be.
        """
        told, spatial = store.attributes, str(store.attributes["axes"])[1:]
        table = store.manifest
        if not whole and "total_tiles" not in table.column_names:
            raise StoreError(
                "without blend= tiles say what is kept of each, but the manifest of "
                f"{store.url!r} does not; write a store of a plan with the strategy 'tiled', or "
                "give blend="
            )
        ids = pa.array([image["id"] for image in told["images"]], pa.string())
        image = pc.index_in(table["image_id"].cast(pa.string()), ids).to_numpy()
        corner = np.stack([table[f"start_{a}"].to_numpy() for a in spatial], -1).astype(np.int64)
        if whole:
            extents = np.array([_extent(i, spatial) for i in told["images"]], np.int64)
            start, stop = _proper(corner, cut_of_store(store), extents[image])
        else:
            start, stop = _crops(table, spatial)
        row, sample = (table[name].to_numpy().astype(np.int64) for name in ("row", "sample"))
        return cls(row, image.astype(np.int64), sample, corner, start, stop)

    def arranged(self, image: int, boxes: ChunkGrid) -> Arranged:
        """The tiles of an image by box.

        Parameters
        ----------
        image
            Its position.
        boxes
            Of one sample.
        """
        mine = np.flatnonzero((self.image == image) & (self.stop > self.start).all(1))
        low, high = boxes.chunk_of(self.start[mine]), boxes.chunk_of(self.stop[mine] - 1)
        at, tile = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for step in np.argwhere(np.ones((high - low).max(0, initial=0) + 1, np.bool_)):
            hit = np.flatnonzero((low + step <= high).all(1))
            at.append(self.sample[mine[hit]] * boxes.n_chunks + boxes.flat(low[hit] + step))
            tile.append(mine[hit])
        box, which = np.concatenate(at), np.concatenate(tile)
        by = np.lexsort((self.row[which], box))
        return Arranged(self, boxes, box[by], which[by])


@dataclass(frozen=True, eq=False)
class Arranged:
    """The tiles of one image by the boxes that they reach into."""

    listing: Listing
    boxes: ChunkGrid
    box: Ints
    """Boxes, counted over all samples, ascending: int64[n]."""
    tile: Ints
    """A tile that reaches into each, by its place in the listing: int64[n]."""

    def of_box(self, sample: int, number: int) -> Tiles:
        """The tiles of one sample that have a say inside a box, by its number."""
        at = sample * self.boxes.n_chunks + number
        low, high = np.searchsorted(self.box, [at, at + 1])
        some, known = self.tile[low:high], self.listing
        return Tiles(known.row[some], known.corner[some], known.start[some], known.stop[some])


def cut_of_store(store: PatchStore) -> Cut:
    """What was cut around each corner."""
    told: Mapping[str, Any] = store.attributes
    size = tuple(int(n) for n in told["patch_shape"][1:])
    context = told["job"]["patching"].get("context") or [0] * len(size)
    return Cut(size, tuple(int(n) for n in context))


def _extent(image: Mapping[str, Any], spatial: str) -> list[int]:
    return [image["shape"][image["axes"].index(a)] for a in spatial]


def _proper(corner: Ints, cut: Cut, extent: npt.ArrayLike) -> tuple[Ints, Ints]:
    """Tiles without their context, as far as they lie in the image."""
    first = corner + np.asarray(cut.context, np.int64)
    return np.maximum(first, 0), np.minimum(first + np.asarray(cut.proper), extent)


def _crops(table: pa.Table, spatial: str) -> tuple[Ints, Ints]:
    """What is kept of tiles, by their columns."""
    start, size = (
        np.stack([table[f"{name}_{a}"].to_numpy() for a in spatial], -1).astype(np.int64)
        for name in ("stitch", "crop_size")
    )
    return start, start + size
