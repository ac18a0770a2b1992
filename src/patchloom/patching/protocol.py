"""The protocols of a patching strategy, and the index arithmetic that all of ours share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property, reduce
from typing import (
    Any,
    ClassVar,
    Literal,
    Protocol,
    Self,
    TypedDict,
    TypeGuard,
    get_args,
    runtime_checkable,
)

import numpy as np
import numpy.typing as npt

from patchloom.errors import PatchSizeError
from patchloom.grid import ChunkGrid

__all__ = [
    "EDGES",
    "ChunkedPatching",
    "Edge",
    "GridPatching",
    "PatchSpecs",
    "Patching",
    "TileSpecs",
    "is_tile_specs",
]

Edge = Literal["drop", "shift", "pad", "shrink"]
EDGES: tuple[Edge, ...] = get_args(Edge)
Ints = npt.NDArray[np.int64]


class PatchSpecs(TypedDict):
    """One patch, as CAREamics names its parts."""

    data_idx: int
    """Which image."""
    sample_idx: int
    """Which sample of the image."""
    coords: tuple[int, ...]
    """First pixel of the patch on each spatial axis."""
    patch_size: tuple[int, ...]
    """Extent of the patch on each spatial axis, in pixels."""


class TileSpecs(PatchSpecs):
    """One tile, with what of it is kept and where that goes."""

    crop_coords: tuple[int, ...]
    """First pixel that is kept on each spatial axis, in pixels of the tile."""
    crop_size: tuple[int, ...]
    """Extent of what is kept on each spatial axis, in pixels."""
    stitch_coords: tuple[int, ...]
    """Where the kept part goes on each spatial axis, in pixels of the image."""
    total_tiles: int
    """Tiles of the image, all samples together."""


def is_tile_specs(specs: PatchSpecs) -> TypeGuard[TileSpecs]:
    """Whether specs say how to crop and stitch.

    >>> is_tile_specs({"data_idx": 0, "sample_idx": 0, "coords": (0,), "patch_size": (8,)})
    False
    """
    return TileSpecs.__annotations__.keys() <= specs.keys()


@runtime_checkable
class Patching(Protocol):
    """What CAREamics asks of a strategy."""

    @property
    def n_patches(self) -> int:
        """Number of patches; indices run from 0 to it, exclusive."""

    def get_patch_spec(self, index: int) -> Any:
        """The patch of one index."""

    def get_patch_indices(self, data_idx: int) -> Sequence[int]:
        """The indices of one image's patches."""


class ChunkedPatching(Patching, Protocol):
    """What a plan asks besides: whole columns, chunk by chunk.

    A *cell* is one chunk of one sample: cell ``sample * n_chunks + chunk`` (C order) of an
    image owns the patches whose first pixel lies in that chunk.
    """

    patch_size: tuple[int, ...]

    def counts(self, image: int) -> Ints:
        """Patches that each cell of an image owns: int64[n_samples * n_chunks]."""

    def corners(self, image: int, cells: npt.ArrayLike) -> tuple[Ints, Ints]:
        """First pixels of the patches of some cells, and how many each cell owns.

        Parameters
        ----------
        image
            Which image.
        cells
            Cell indices, int[k], in any order.

        Returns
        -------
        int64[n, ndim], int64[k]
            Corners in pixels of the image, cell after cell; patches of each cell.
        """


class GridPatching(ABC):
    """Index arithmetic over `counts` and `corners`: a strategy adds only these two.

    Parameters
    ----------
    data_shapes
        Shape of each image as ``SC(Z)YX``, in pixels.
    patch_size
        Extent on each spatial axis, in pixels.
    edge
        What happens at the border of an image: ``"drop"`` leaves out what does not fit,
        ``"shift"`` moves the last patch inward, ``"pad"`` lets it stick out, ``"shrink"`` cuts
        off what would: patches then have several sizes.
    chunks
        Chunk extents of each image on its spatial axes; by default one chunk is the image.
    keys
        A 64-bit address for each image's randomness; by default its position.
    """

    repeats: ClassVar[bool] = False
    """Whether one box may be taken more than once."""

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        *,
        edge: Edge,
        chunks: Sequence[Sequence[int]] | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        self.patch_size = tuple(int(p) for p in patch_size)
        self.edge: Edge = edge
        self.data_shapes = tuple(tuple(int(s) for s in shape) for shape in data_shapes)
        _check_size(self.patch_size, self.data_shapes)
        if edge not in EDGES:
            raise PatchSizeError(f"an edge policy is one of {list(EDGES)}, got {edge!r}")
        spatial = [shape[2:] for shape in self.data_shapes]
        extents = spatial if chunks is None else [tuple(int(c) for c in row) for row in chunks]
        self.keys = tuple(range(len(spatial)) if keys is None else keys)
        _check_images("chunks", extents, spatial)
        _check_images("keys", self.keys, spatial)
        for shape, row in zip(spatial, extents, strict=True):
            if len(row) != len(shape):
                raise PatchSizeError(
                    f"chunks have one extent a spatial axis, got {list(row)} for an image of "
                    f"{list(shape)} pixels; give {len(shape)}"
                )
        self.grids = tuple(
            ChunkGrid(shape, tuple(max(1, c) for c in row))
            for shape, row in zip(spatial, extents, strict=True)
        )

    @abstractmethod
    def counts(self, image: int) -> Ints:
        """Patches that each cell of an image owns: int64[n_samples * n_chunks]."""

    @abstractmethod
    def corners(self, image: int, cells: npt.ArrayLike) -> tuple[Ints, Ints]:
        """First pixels of the patches of some cells, and how many each cell owns."""

    def places(self, image: int, cells: npt.ArrayLike) -> Ints | None:
        """What the patches of some cells were placed by, where their strategy goes by places.

        A row of its table, or a pixel of a sample (in C order): int64[n], in the order of
        `corners`.
        """
        return None

    def counts_of(self, image: int, cells: npt.ArrayLike) -> npt.NDArray[Any]:
        """Patches that some cells own: int[k] of any width, so that plans of many stay small.

        A plan asks it for some cells after the other: answer it yourself if `counts` is dear.
        """
        return self.counts(image)[np.asarray(cells, np.int64)]

    @property
    def is_aligned(self) -> bool:
        """Whether every patch is known to lie inside its owner chunk."""
        return False

    @property
    def may_stick_out(self) -> bool:
        """Whether the box of a patch may end outside its image."""
        return self.edge in ("pad", "shrink")

    def with_epoch(self, epoch: int) -> Self:
        """The strategy of another epoch: itself, unless its patches are drawn."""
        return self

    def size_of(self, image: int) -> tuple[int, ...]:
        """Extent of the patches of one image, in pixels."""
        return self.patch_size

    def n_samples(self, image: int) -> int:
        """Samples of an image."""
        return self.data_shapes[image][0]

    @cached_property
    def _first(self) -> Ints:
        totals = [int(self.counts(i).sum()) for i in range(len(self.grids))]
        return np.concatenate([[0], np.cumsum(totals, dtype=np.int64)]).astype(np.int64)

    @cached_property
    def _first_of_cell(self) -> dict[int, Ints]:
        return {}

    @property
    def n_patches(self) -> int:
        """Number of patches over all images."""
        return int(self._first[-1])

    def get_patch_indices(self, data_idx: int) -> range:
        """The indices of one image's patches: a range, however many they are.

        Raises
        ------
        IndexError
            If there is no such image.
        """
        if not 0 <= data_idx < len(self.grids):
            raise IndexError(f"an image is in range({len(self.grids)}), got {data_idx}")
        return range(int(self._first[data_idx]), int(self._first[data_idx + 1]))

    def get_patch_spec(self, index: int) -> PatchSpecs:
        """The patch of one index.

        Raises
        ------
        IndexError
            If the index is not in ``range(n_patches)``.
        """
        if not 0 <= index < self.n_patches:
            raise IndexError(f"a patch index is in range({self.n_patches}), got {index}")
        image = self.image_of(index)
        first = self._first_of_cell.get(image)
        if first is None:
            first = np.concatenate([[0], np.cumsum(self.counts(image))]).astype(np.int64)
            self._first_of_cell[image] = first
        inside = index - int(self._first[image])
        cell = int(np.searchsorted(first, inside, side="right")) - 1
        corners, _ = self.corners(image, [cell])
        return self.spec_at(image, cell, corners[inside - int(first[cell])])

    def image_of(self, index: int) -> int:
        """The image of the patch of one index, which is in ``range(n_patches)``."""
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def spec_at(self, image: int, cell: int, corner: Sequence[int] | Ints) -> PatchSpecs:
        """The patch of a cell that begins at a corner, which `corners` answered."""
        low, size = np.asarray(corner, np.int64), np.asarray(self.size_of(image), np.int64)
        if self.edge == "shrink":
            stop = np.minimum(low + size, self.grids[image].shape)
            low = np.maximum(low, 0)
            size = stop - low
        return PatchSpecs(
            data_idx=image,
            sample_idx=cell // max(1, self.grids[image].n_chunks),
            coords=tuple(low.tolist()),
            patch_size=tuple(size.tolist()),
        )

    def _index(self, image: int, cells: npt.ArrayLike) -> list[npt.NDArray[Any]]:
        """Chunk indices of cells, int[k] for each axis."""
        grid, flat = self.grids[image], np.asarray(cells, np.int64)
        if self.n_samples(image) > 1:
            flat = flat % max(1, grid.n_chunks)
        return grid.columns(flat)

    def _split(self, image: int, cells: npt.ArrayLike) -> Ints:
        """Chunk indices of cells: int64[k, ndim]."""
        grid = self.grids[image]
        return grid.unflat(np.asarray(cells, np.int64) % max(1, grid.n_chunks))


def _check_size(patch_size: tuple[int, ...], shapes: Sequence[Sequence[int]]) -> None:
    if not patch_size or any(p < 1 for p in patch_size):
        raise PatchSizeError(
            f"a patch extends at least 1 pixel on each spatial axis, got {patch_size}"
        )
    if len(patch_size) > 3:
        raise PatchSizeError(
            f"a patch has at most 3 spatial axes (z, y, x), got {len(patch_size)} "
            f"({list(patch_size)}); make further axes samples"
        )
    for shape in shapes:
        if len(shape) - 2 != len(patch_size):
            raise PatchSizeError(
                f"patch_size has one number a spatial axis, got {len(patch_size)} "
                f"({list(patch_size)}) for an image with {len(shape) - 2} "
                f"(SC(Z)YX shape {list(shape)}); give as many, or name other axes"
            )


def _check_images(name: str, given: Sequence[object], images: Sequence[object]) -> None:
    if len(given) != len(images):
        raise PatchSizeError(
            f"{name} has one entry an image, got {len(given)} for {len(images)} images"
        )


def check_units(units: Sequence[Sequence[int]] | None, inside_chunks: bool) -> None:
    """Refuse units that nothing stays inside of."""
    if units is not None and not inside_chunks:
        raise PatchSizeError(
            f"units= says what patches stay inside of, got {[list(row) for row in units]} with "
            "inside_chunks=False; say inside_chunks=True with it"
        )


def integers(values: npt.ArrayLike, ndim: int, name: str, way_out: str) -> Ints:
    """A table with one integer a spatial axis in each row: int64[n, ndim], or none of any width.

    Raises
    ------
    PatchSizeError
        If it holds other numbers, or has another width.
    """
    try:
        given = np.asarray(values)
    except ValueError:
        raise PatchSizeError(
            f"{name} have {ndim} integers each, got rows of several lengths; {way_out}"
        ) from None
    if not given.size:
        return np.zeros((0, ndim), np.int64)
    kind = given.dtype.kind
    found = given.astype(np.int64) if kind in "iu" else np.zeros(0, np.int64)
    # What does not fit into int64 would come back negative.
    wrong = given if kind not in "iu" else given[(found < 0) & (kind == "u")]
    if wrong.size:
        raise PatchSizeError(
            f"{name} are integers below 2**63, got {given.dtype} such as {wrong.flat[0]}; {way_out}"
        )
    if found.ndim != 2 or found.shape[1] != ndim:
        raise PatchSizeError(
            f"{name} are a table of {ndim} numbers a row, one a spatial axis, got the shape "
            f"{list(found.shape)}; {way_out}"
        )
    return found


def boxes_of(
    grids: Sequence[ChunkGrid],
    units: Sequence[Sequence[int]] | None,
    size: Sequence[int],
    edge: Edge,
) -> tuple[ChunkGrid, ...]:
    """The boxes that patches stay in, of each image: its chunks, or units of several chunks.

    Parameters
    ----------
    grids
        Chunks of each image.
    units
        Extents of each image's boxes, multiples of its chunks; None for the chunks themselves.
    size, edge
        Of the patches.

    Raises
    ------
    PatchSizeError
        If a unit cuts chunks or no unit can hold a patch, with the sizes and the way out.
    """
    boxes = tuple(grids)
    if units is not None:
        rows = [tuple(int(u) for u in row) for row in units]
        _check_images("units", rows, grids)
        for grid, row in zip(grids, rows, strict=True):
            fits = len(row) == len(grid.shape) and all(
                u > 0 and (u % c == 0 or u >= n)
                for u, c, n in zip(row, grid.chunks, grid.shape, strict=True)
            )
            if not fits:
                raise PatchSizeError(
                    "a unit that patches stay in is a multiple of the chunks on each axis, got "
                    f"units of {list(row)} for chunks of {list(grid.chunks)}; take the extents of "
                    "a shard, or of some whole chunks"
                )
        boxes = tuple(ChunkGrid(g.shape, row) for g, row in zip(grids, rows, strict=True))
    for box in boxes:
        small = any(n < p for n, p in zip(box.shape, size, strict=True))
        if small and edge not in ("pad", "shrink"):
            continue  # The image offers no patch at all.
        if any(c < min(p, n) for n, c, p in zip(box.shape, box.chunks, size, strict=True)):
            raise PatchSizeError(
                "a patch that stays inside a chunk or a shard is at most as large as it, got "
                f"patch_size={list(size)} for extents of {list(box.chunks)}; take a smaller "
                "patch, a larger unit, or a strategy whose patches may straddle"
            )
    return boxes


def are_chunks(boxes: Sequence[ChunkGrid], grids: Sequence[ChunkGrid]) -> bool:
    """Whether boxes of whole chunks hold one chunk each."""
    return all(box.counts == grid.counts for box, grid in zip(boxes, grids, strict=True))


def volume(extents: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Outer product of per-axis numbers, raveled in C order; of their type."""
    product: npt.NDArray[Any] = reduce(np.multiply, np.ix_(*extents)).ravel()
    return product


def ramp(n: Ints) -> Ints:
    """The integers below each of some numbers, one after another.

    >>> ramp(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    ends = np.cumsum(n)
    found = np.arange(ends[-1] if len(ends) else 0, dtype=np.int64)
    found -= np.repeat(ends - n, n)
    return found


def turns(n: Ints) -> tuple[Ints, Ints]:
    """All index tuples below some extents, for many extents at once, each in C order.

    Parameters
    ----------
    n
        Extents, int64[k, ndim].

    Returns
    -------
    int64[m], int64[m, ndim]
        Which extents, and the index tuple.

    >>> turns(np.array([[1, 2], [0, 5], [1, 1]]))[1].tolist()
    [[0, 0], [0, 1], [0, 0]]
    """
    counts = n.prod(-1)
    owner = np.repeat(np.arange(len(counts)), counts)
    inside = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    turn = np.empty((len(owner), n.shape[1]), np.int64)
    for axis in reversed(range(n.shape[1])):
        inside, turn[:, axis] = np.divmod(inside, n[owner, axis])
    return owner, turn
