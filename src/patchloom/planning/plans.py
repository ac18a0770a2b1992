"""Plan: which patches to take, in what order and in which shards, as a value."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel

from patchloom.errors import BudgetError, ConfigError, PatchloomError, PlanError, SourceError
from patchloom.image import Image
from patchloom.location import Location
from patchloom.normalization import SCALE
from patchloom.patching.config import AnyConfig
from patchloom.patching.factory import parse_patching
from patchloom.patching.protocol import Edge, GridPatching, PatchSpecs
from patchloom.planning.alike import alike
from patchloom.planning.cells import Cells
from patchloom.planning.decodes import decodes_of
from patchloom.planning.filters import AnyFilter, parse_filters
from patchloom.planning.grouping import by_image, by_patch, codes_of, codes_of_column
from patchloom.planning.groups import DEALING, Groups
from patchloom.planning.held import folded, unfolded
from patchloom.planning.image_identity import identity_of, with_pixels
from patchloom.planning.incidence import Cut, Padding, Patches, joined
from patchloom.planning.kept import Kept
from patchloom.planning.lenses import shown
from patchloom.planning.narrowing import Narrowing
from patchloom.planning.needs import Needs
from patchloom.planning.places import Places
from patchloom.planning.quotas import BalanceConfig, QuotaConfig
from patchloom.planning.rows import Rows, ranges, stretches_of, union
from patchloom.planning.runs import (
    Runs,
    arrange,
    fewer_rows,
    pack_units,
    patches_together,
    shard_layout,
    shard_rows,
    upload_bytes,
    window_rows,
)
from patchloom.planning.saved_cells import cells_of_bytes, cells_to_bytes
from patchloom.planning.split_config import SplitConfig
from patchloom.planning.splits import Splits
from patchloom.planning.strategies import patching_of
from patchloom.public_names import PublicNames
from patchloom.randomness import digest, digest_of
from patchloom.scores import Score, parse_scores

__all__ = ["FORMAT", "Plan"]

FORMAT = 3
"""Version of a saved plan, and of what its fingerprint covers."""

Ints = npt.NDArray[np.int64]
_Model = TypeVar("_Model", bound=BaseModel)
_CANDIDATES = 2**18
"""Candidates that are looked at together where only some are kept."""
_BATCH = 2**20
"""Patches that a pass over a whole plan looks at together."""
_PAGE, _PRICE = "patchloom.run.plan_page", "patchloom.run.pricing"
"""What draws a plan, found by its name: planning itself reads no pixel."""
_MIXING = "patchloom.planning.mixing"
"""What stands above a plan."""


@dataclass(frozen=True, eq=False)
class Plan(PublicNames):
    """What to take: a promise that can be read, saved, compared and priced.

    Rows are numbered from 0 in the order in which they are written. Memory grows with
    chunks, not with patches: corners are computed anew wherever they are needed.
    """

    images: tuple[Image, ...]
    config: AnyConfig
    """The strategy, as it was asked for."""
    cells: Cells = field(repr=False)
    edge: Edge = "drop"
    padding: Padding = "constant"
    """What pixels beyond the image show, as `numpy.pad` names it; constant is 0."""
    min_coverage: Fraction = Fraction(0)
    min_pixels: int = 0
    """Pixels of a patch that its mask must cover."""
    order: str = "spatial"
    """``"spatial"``, ``"grouped"`` or ``"shuffled"``."""
    group_by: str | None = None
    """What grouped rows go by: ``"image_id"``, ``"split"`` or a column."""
    seed: int = 0
    rows_per_shard: int = 1
    """Patches of one output shard; the last one may hold fewer."""
    window: int | None = None
    """Groups that a window of shuffled rows holds, as it was asked for; None: as many as fit."""
    window_rows: int = 0
    """Rows of a window of shuffled rows."""
    memory: int = 2**30
    """Bytes that one task may use."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Candidates that were left out, by reason; they add up with the kept ones."""
    places: Places | None = field(default=None, repr=False)
    """The table of a strategy that takes the patches of one."""
    filters: tuple[AnyFilter, ...] = ()
    """What the pixels of a patch must show."""
    scores: tuple[Score, ...] = ()
    """Numbers that tell what a patch shows; they become columns of the manifest."""
    balance: BalanceConfig | None = None
    classes: tuple[int, ...] = ()
    """The classes that are balanced, from the rarest to the most frequent one."""
    class_counts: Mapping[str, int] = field(default_factory=dict)
    """Kept patches by class, where classes were asked for."""
    quota: QuotaConfig | None = None
    split: SplitConfig | None = None
    split_report: Mapping[str, Any] = field(default_factory=dict)
    """The share that guard bands leave, and how far apart splits are, in pixels."""
    planning_reads: int = 0
    """Chunks of masks, labels and images that were decoded to plan it."""

    def __getstate__(self) -> dict[str, object]:
        # What is derived is derived again: it need not travel, but for what is dear and small.
        runs = {"runs": self.runs} if "runs" in self.__dict__ else {}
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, **runs}

    # -- what it is ---------------------------------------------------------------------

    @cached_property
    def patching(self) -> GridPatching:
        """The strategy over these images, before selection."""
        return patching_of(self.images, self.config, self.edge, self.seed, self.places)

    @cached_property
    def cut(self) -> Cut:
        """What is cut around each corner."""
        proper = self.patching.patch_size
        context = getattr(self.config, "context", None) or (0,) * len(proper)
        size = tuple(p + 2 * c for p, c in zip(proper, context, strict=True))
        return Cut(size, tuple(context), self.padding)

    @cached_property
    def kept(self) -> Kept:
        """Its patches, along the curve."""
        return Kept(self.images, self.patching, self.cells, self.cut)

    @cached_property
    def needs(self) -> Needs:
        """Which blocks its patches need."""
        return Needs(self.kept, self.is_aligned)

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Extent of what is cut on each spatial axis, context included, in pixels."""
        return self.cut.size

    @cached_property
    def is_aligned(self) -> bool:
        """Whether all that any patch needs lies inside its owner chunk."""
        plain = not any(self.cut.context) and not self.cut.is_mirrored
        return plain and self.patching.is_aligned

    @property
    def n_patches(self) -> int:
        """Patches that are kept."""
        return self.cells.n_rows

    @property
    def n_shards(self) -> int:
        """Output shards."""
        return -(-self.n_patches // self.rows_per_shard)

    @cached_property
    def runs(self) -> Runs:
        """How shards are dealt out to tasks."""
        return arrange(
            self.images,
            self.cells,
            self.cut,
            self.rows_per_shard,
            self.memory,
            aligned=self.is_aligned,
            sticks_out=self.patching.may_stick_out or any(self.cut.context),
            order=self.sequence,
        )

    @cached_property
    def groups(self) -> Groups:
        """What a shuffled plan deals out to its windows."""
        return Groups.of(self.images, self.cells, alone=self.is_aligned)

    @cached_property
    def sequence(self) -> Rows:
        """In which order the patches stand."""
        if self.order == "shuffled":
            packed = self.is_aligned
            window = self.window_rows
            return self.groups.rows(self.images, self.cells, self.seed, window, packed=packed)
        if self.order == "grouped":
            return self._grouped()
        return Rows.straight(self.n_patches)

    def _grouped(self) -> Rows:
        name = self.group_by or "image_id"
        known = [image.metadata for image in self.images]
        if name == "image_id":
            return by_image(self.cells, codes_of(name, [image.id for image in self.images]))
        if any(name in metadata for metadata in known):
            return by_image(self.cells, codes_of(name, [row.get(name) for row in known]))
        if name == "split":
            split = codes_of(name, self.split_names)
            return by_patch(self._all_along(), lambda part: split[self.split_of(part)])
        listed = [] if self.places is None else self.places.columns.column_names
        if name in listed:
            assert self.places is not None
            place = codes_of_column(name, self.places.columns[name])
            return by_patch(self._all_along(), lambda part: place[part.place])
        columns = sorted({"image_id", "split", *listed, *(key for row in known for key in row)})
        raise ConfigError(
            f"group_by= names a column that is known before pixels are read, one of {columns}; "
            f"got {name!r}"
        )

    @property
    def n_tasks(self) -> int:
        """Tasks that materialise it; the number of workers plays no part."""
        return len(self.runs)

    @property
    def has_common_blocks(self) -> bool:
        """Whether legs of its tasks may need blocks in common."""
        return len(self.runs.legs) > 2 and not (self.is_aligned and self.sequence.is_straight)

    def peak_memory(self, *, normalized: Collection[str] = (), remote: bool = False) -> int:
        """Bytes that a task holds at most.

        Parameters
        ----------
        normalized
            Roles of the arrays that it writes as float32, ``"image"`` and ``"target"``.
        remote
            Whether it writes to a store that is not local, and so holds what it sends twice.
        """
        peak = self.runs.peak_memory
        if not peak:
            return 0
        rows = self.rows_per_shard
        arrays = [self.images[0].cut_arrays[name] for name in normalized]
        pixels = [math.prod(self.cut.size) * array.layout.n_channels for array in arrays]
        wider = [
            max(0, 4 - array.dtype.itemsize) * n for array, n in zip(arrays, pixels, strict=True)
        ]
        made = self.window_rows if self.order == "shuffled" else rows
        if remote:
            peak += upload_bytes(self.images, self.cut, rows) + rows * max(wider, default=0)
        if arrays:
            # Room in the shards in the making, and beside what is cut together its scaled copy.
            together = patches_together(self.images, self.cells, self.cut, made)
            peak += made * sum(wider) + 4 * together * max(pixels)
            # Of one piece as float64, and which of its pixels are constant.
            peak += 9 * max(SCALE, math.prod(self.cut.size))
        return peak

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type of all images."""
        return self.images[0].dtype

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Shape of one patch: channels, then space."""
        return (self.images[0].layout.n_channels, *self.patch_size)

    @property
    def spatial(self) -> str:
        """The spatial axes, in order."""
        return self.images[0].axes.spatial

    @cached_property
    def fingerprint(self) -> str:
        """128 bits, in hex, fixed by what is asked of which images; no path, no credential.

        Equal on every machine for equal image ids, shapes, dtypes, chunk grids,
        configuration, seed and mask.
        """
        images = [identity_of(image) for image in self.images]
        cells = self.cells
        # The types of the columns follow from their values: equal cells have equal bytes.
        columns = (cells.bounds, cells.cell, cells.kept, cells.bit, cells.bits)
        return digest(
            json.dumps([FORMAT, images, self.settings], sort_keys=True),
            *(digest_of(column).hex() for column in columns),
            *([] if self.places is None else [self.places.digest()]),
            *([f"dealing {DEALING}"] if self.order == "shuffled" else []),
        ).hex()

    # -- patches ------------------------------------------------------------------------

    def get_patch_spec(self, index: int) -> PatchSpecs:
        """The patch of one row.

        Raises
        ------
        IndexError
            If the index is not in ``range(n_patches)``.
        """
        if not 0 <= index < self.n_patches:
            raise IndexError(f"a patch index is in range({self.n_patches}), got {index}")
        [patches] = self.patches(index, index + 1)
        corner, size = patches.corner, self.sizes(patches)
        if self.edge == "shrink":
            corner = np.maximum(corner, 0)
        return PatchSpecs(
            data_idx=patches.image,
            sample_idx=int(patches.sample[0]),
            coords=tuple(corner[0].tolist()),
            patch_size=tuple(size[0].tolist()),
        )

    def get_patch_indices(self, data_idx: int) -> Sequence[int] | Ints:
        """The rows of one image's patches, ascending: a range, or int64[n] if they are apart."""
        low, high = self.cells.first_rows[data_idx : data_idx + 2].tolist()
        sequence = self.sequence
        if sequence.is_straight or low == high:
            return range(low, high)
        rows = np.sort(self.rows_along(np.arange(low, high)))
        first, last = rows[[0, -1]].tolist()
        return range(first, last + 1) if last - first + 1 == len(rows) else rows

    def n_patches_of(self, data_idx: int) -> int:
        """Patches of one image."""
        first = self.cells.first_rows
        return int(first[data_idx + 1] - first[data_idx])

    def patches(self, start: int, stop: int) -> list[Patches]:
        """The patches of rows [start, stop), image by image.

        In shuffled plans they stand along the curve, and `Patches.row` is not ascending.
        """
        if not self.sequence.is_mixed:
            return self.visits(start, stop)
        if start >= stop:
            return []
        sequence = self.sequence
        ranks = sequence.ranks_of(sequence.turns_of_rows(np.arange(start, stop)))
        order = np.argsort(ranks)
        ranks, found = ranks[order], []
        for part in self.along(np.unique(self.cells.positions_of(ranks))):
            place = np.minimum(np.searchsorted(ranks, part.rank), len(ranks) - 1)
            here = np.flatnonzero(ranks[place] == part.rank)
            found.append(replace(part.take(here), row=start + order[place[here]]))
        return found

    def visits(self, start: int, stop: int) -> list[Patches]:
        """The patches of turns [start, stop) in the order in which a task goes, image by image.

        Turns are rows, except that shuffled plans mix the turns of each window.
        """
        if start >= stop:
            return []
        sequence = self.sequence
        if sequence.is_straight:
            low, last = self.cells.positions_of([start, stop - 1]).tolist()
            found = []
            for part in self.along(np.arange(low, last + 1)):
                inside = (part.row >= start) & (part.row < stop)
                found.append(part if inside.all() else part.take(inside))
            return found
        rows = sequence.rows_of(np.arange(start, stop))
        begin, end = sequence.pieces(start, stop)
        low, high = self.cells.positions_of(begin), self.cells.positions_of(end - 1) + 1
        image = self.cells.image_of(low)
        found, upto = [], start
        for some in np.split(np.arange(len(low)), np.flatnonzero(np.diff(image)) + 1):
            n = int((end[some] - begin[some]).sum())
            [part] = self.along(np.unique(ranges(low[some], high[some])))
            turn = sequence.turns_of(part.rank)
            here = np.flatnonzero((turn >= upto) & (turn < upto + n))
            here = here[np.argsort(turn[here], kind="stable")]
            found.append(replace(part.take(here), row=rows[turn[here] - start]))
            upto += n
        return found

    def tour(self, shards: Sequence[int]) -> list[Patches]:
        """What a task goes over that writes some shards (ascending), in its order.

        The patches of these shards, and those of their turns: a block is counted for the shard
        of the first turn that touches it. Both are the same unless some shards of a window of
        a shuffled plan are written without the others.
        """
        rows, sequence = self.rows_per_shard, self.sequence
        if not sequence.is_mixed:
            found = []
            for some in np.split(shards, np.flatnonzero(np.diff(shards) != 1) + 1):
                stop = min((int(some[-1]) + 1) * rows, self.n_patches)
                found += self.visits(int(some[0]) * rows, stop)
            return joined(found)
        wanted = np.zeros(self.n_shards, np.bool_)
        wanted[list(shards)] = True
        found = []
        for window in np.unique(np.asarray(shards) * rows // sequence.window).tolist():
            start = window * sequence.window
            for part in self.visits(start, min(start + sequence.window, self.n_patches)):
                mine = wanted[part.row // rows] | wanted[sequence.turns_of(part.rank) // rows]
                found.append(part if mine.all() else part.take(mine))
        return joined([part for part in found if len(part)])

    def toured(self, shards: Sequence[int] | Ints) -> tuple[Ints, Ints]:
        """The ranks that `tour` goes over for some shards, as ranges [low, high): int64[k] each."""
        rows, sequence, n = self.rows_per_shard, self.sequence, self.n_patches
        begin, end = stretches_of(np.asarray(shards, np.int64))
        pairs = [*zip((begin * rows).tolist(), np.minimum(end * rows, n).tolist(), strict=True)]
        if not sequence.is_mixed:
            found = [sequence.pieces(*pair) for pair in pairs]
            low, high = (np.concatenate(column) for column in zip(*found, strict=True))
            return low, high
        # By row or by turn; whole windows are the same by either.
        found = [
            p for pair in pairs for p in (sequence.ranks_within(*pair), sequence.pieces(*pair))
        ]
        return union(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def owned_by(self, positions: Ints) -> list[Patches]:
        """The patches of some cells (ascending positions in the plan), image by image."""
        parts, sequence = self.along(positions), self.sequence
        if sequence.is_straight:
            return parts
        return [replace(p, row=self.rows_along(p.rank)) for p in parts]

    def rows_along(self, ranks: Ints) -> Ints:
        """The rows of the patches of some numbers along the curve: int64[n]."""
        sequence = self.sequence
        return ranks if sequence.is_straight else sequence.rows_of(sequence.turns_of(ranks))

    def along(self, positions: Ints) -> list[Patches]:
        """Like `owned_by`, but `Patches.row` is the rank: free of cost in every order."""
        return self.kept.along(positions)

    def sizes(self, patches: Patches) -> Ints:
        """Extents of some patches: int64[n, ndim]; only under ``edge="shrink"`` they differ."""
        return self._extents(self.images[patches.image], patches.corner)

    def _extents(self, image: Image, corner: Ints) -> Ints:
        size = np.asarray(self.cut.size, np.int64)
        if self.edge == "shrink":
            extent = np.asarray(image.layout.space.shape, np.int64)
            size = np.minimum(corner + size, extent) - np.maximum(corner, 0)
        return np.broadcast_to(size, corner.shape)

    def distinct_sizes(self) -> list[tuple[int, ...]]:
        """The extents that its patches have, ascending; one unless under ``edge="shrink"``."""
        if self.edge != "shrink":
            return [self.cut.size]
        found = {
            tuple(row) for size, _ in self._weighed() for row in np.unique(size, axis=0).tolist()
        }
        return sorted(found)

    @property
    def n_pixels(self) -> int:
        """Pixels of all patches together, channels apart."""
        return sum(int(size.prod(1) @ n) for size, n in self._weighed())

    def _weighed(self) -> Iterator[tuple[Ints, Ints]]:
        """Extents int64[n, ndim] of patches, and how many patches have each."""
        for index, image in enumerate(self.images):
            kinds = partial(self._extents, image)
            for patches, n in alike(self.kept, index, kinds):
                yield self.sizes(patches), n

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits; a plan without any is training data."""
        return ("train",) if self.splits is None else self.splits.names

    def split_of(self, patches: Patches) -> npt.NDArray[np.int8]:
        """Position in `split_names` of the split of each of some patches: int8[n].

        -1 is of none: it lies in a guard band, or in two splits.
        """
        if self.splits is None:
            return np.zeros(len(patches), np.int8)
        low, high = self.shown(patches)
        return self.splits.of_boxes(patches.image, patches.sample, low, high)

    def shown(self, patches: Patches) -> tuple[Ints, Ints]:
        """The half-open boxes of all pixels of their image that patches show: int64[n, ndim] each.

        With their context, what mirrored padding repeats, and what coarser levels around them show.
        """
        return shown(self.images[patches.image], patches.corner, self.cut)

    @cached_property
    def split_counts(self) -> dict[str, int]:
        """Patches of each split."""
        if self.splits is None:
            return {"train": self.n_patches}
        counts = np.zeros(len(self.split_names), np.int64)
        for index in range(len(self.images)):
            for patches, n in self._alike_in_split(index):
                np.add.at(counts, self.split_of(patches), n)
        return dict(zip(self.split_names, counts.tolist(), strict=True))

    def _alike_in_split(self, index: int) -> Iterator[tuple[Patches, Ints]]:
        """Patches of an image that stand for all of one split, and how many each stands for."""
        image, blocks = self.images[index], None if self.splits is None else self.splits.blocks

        def kinds(corner: Ints) -> Ints:
            if blocks is None:
                return np.zeros_like(corner)
            first, last = blocks.spans(index, *shown(image, corner, self.cut))
            return first << 32 | last - first

        return alike(self.kept, index, kinds)

    @cached_property
    def splits(self) -> Splits | None:
        """The rule of its splits."""
        return None if self.split is None else Splits.of(self.split, self.images, self.seed)

    def chunks_of(self, data_idx: int) -> tuple[Ints, Ints, Ints]:
        """The chunks of an image that own patches, in the plan's order.

        Returns
        -------
        int64[n], int64[n], int64[n, ndim]
            Position of each in the plan, for `owned_by`; flat sample; index of the chunk on
            each spatial axis.

        Examples
        --------
        >>> import numpy as np, patchloom
        >>> images = patchloom.open_images(np.zeros((100, 100), "uint8"))
        >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [32, 32]})
        >>> positions, sample, chunk = plan.chunks_of(0)
        >>> [patches] = plan.owned_by(positions[:1])
        >>> chunk.tolist(), patches.corner[:2].tolist()
        ([[0, 0]], [[0, 0], [0, 32]])
        """
        low, high = self.cells.span(data_idx)
        space = self.images[data_idx].layout.space
        sample, chunk = np.divmod(self.cells.cell[low:high].astype(np.int64), space.n_chunks)
        return np.arange(low, high), sample, space.unflat(chunk)

    def touching(self, image: int, blocks: Ints) -> Ints:
        """Positions of all cells whose patches may extend into some blocks."""
        layout = self.images[image].layout
        space = layout.space
        which, sample = layout.samples_of(blocks)
        flat = (np.asarray(blocks, np.int64) % space.n_chunks)[which]
        cells = np.unique(sample * space.n_chunks + flat)
        for axis, (c, p, back) in enumerate(
            zip(space.chunks, self.cut.size, self.cut.back, strict=True)
        ):
            # A patch extends into later chunks, and with context or mirroring into earlier ones.
            steps = np.arange(-back // c, (c + p - 2) // c + 1)
            stride, n = math.prod(space.counts[axis + 1 :]), space.counts[axis]
            together = max(1, _CANDIDATES // len(steps))
            found = []
            for some in np.split(cells, range(together, len(cells), together)):
                coordinate = some // stride % n
                moved = coordinate[:, None] - steps
                owners = some[:, None] - steps * stride
                found.append(np.unique(owners[(moved >= 0) & (moved < n)]))
            cells = np.unique(np.concatenate(found))
        return self.cells.find(image, cells)

    # -- cost ---------------------------------------------------------------------------

    @cached_property
    def _needed(self) -> list[int]:
        """Distinct stored chunks that the kept patches touch, image by image."""
        pairs = enumerate(self.images)
        return [image.decodes(self.needs.of_image(index)) for index, image in pairs]

    @property
    def chunks_needed(self) -> int:
        """Distinct stored chunks that the kept patches touch, images' only."""
        return sum(self._needed)

    @cached_property
    def _image_reads(self) -> list[int]:
        """Decodes of the images' chunks, image by image."""
        return self._reads("image")

    @property
    def chunk_reads(self) -> int:
        """Chunk decodes that an undisturbed run makes at most: each leg of a task reads for itself.

        Legs that go through one process share what they have in common, as far as memory
        allows, and then there are fewer. Dask makes a chunk of an array in memory once, however
        many tasks need it.
        """
        return sum(self._image_reads)

    @property
    def bytes_decoded(self) -> int:
        """Bytes of the chunks that an undisturbed run decodes, images' only, each chunk whole."""
        return sum(
            n * image.chunk_nbytes for n, image in zip(self._image_reads, self.images, strict=True)
        )

    @cached_property
    def role_reads(self) -> int:
        """Chunk decodes of labels and targets, counted as `chunk_reads` counts the images'."""
        names = {name for image in self.images for name in image.cut_arrays} - {"image"}
        return sum(sum(self._reads(name)) for name in names)

    def _reads(self, name: str) -> list[int]:
        """Chunk decodes of one array of each image."""
        return decodes_of(self.images, self.needs, self.runs, self.sequence, name)

    def walk(self) -> Iterator[Patches]:
        """All patches in row order, a bounded number of one image at a time.

        Of a shuffled plan window by window, and inside a window along the curve.
        """
        sequence = self.sequence
        if sequence.is_straight:
            yield from self._all_along()
            return
        step = sequence.window or _BATCH
        for start in range(0, self.n_patches, step):
            yield from self.visits(start, min(start + step, self.n_patches))

    def _all_along(self) -> Iterator[Patches]:
        """All patches along the curve, a bounded number of one image at a time."""
        for index in range(len(self.images)):
            yield from self.walk_image(index)

    def walk_image(self, index: int) -> Iterator[Patches]:
        """The patches of one image in the order of its cells, a bounded number at a time."""
        yield from self.kept.of_image(index)

    @cached_property
    def _mixed(self) -> dict[str, Any]:
        return self.mixing()

    def mixing(self, batch: int = 64) -> dict[str, Any]:
        """How fair a sample its batches are; see `patchloom.planning.mixing.mixing`."""
        found: dict[str, Any] = importlib.import_module(_MIXING).mixing(self, batch)
        return found

    def cost(self, **how: Any) -> Any:
        """What it costs; see `patchloom.price`, whose arguments it takes.

        Asks stores how large their objects are, and reads no pixel.
        """
        return importlib.import_module(_PRICE).price(self, **how)

    def summary(self, **how: Any) -> dict[str, Any]:
        """What it takes and what it will cost: `figures` and the `cost` on one worker.

        Parameters
        ----------
        **how
            Arguments of `cost`, such as ``workers=8`` or ``prices="prices.yaml"``.

        Returns
        -------
        dict
            What stores that cannot be reached would have told is left out, and ``not_priced``
            says why.
        """
        try:
            cost = self.cost(**how).to_dict()
        except (SourceError, OSError) as error:
            cost = {"not_priced": str(error)}
        return {**cost, **self.figures()}

    def figures(self, *, count: bool = True) -> dict[str, Any]:
        """What it takes, in the words of `RunReport`. Asks no store.

        Parameters
        ----------
        count
            Whether to tell also what may cost as much as looking at each patch: of chunks and
            decodes, splits, and how windows mix.
        """
        return {
            "n_images": len(self.images),
            "n_candidates": self.n_patches + sum(self.rejected.values()),
            "n_patches": self.n_patches,
            "rejected": dict(self.rejected),
            "planning_reads": self.planning_reads,
            **(
                {"split": {"patches": self.split_counts, **self.split_report}}
                if count and self.split
                else {}
            ),
            **({"classes": dict(self.class_counts)} if self.class_counts else {}),
            "n_shards": self.n_shards,
            "rows_per_shard": self.rows_per_shard,
            **({"layout": self._layout} if count else {}),
            "n_tasks": self.n_tasks,
            **(self._counted() if count else {}),
            "bytes_output": self.n_patches * self._patch_bytes,
            "peak_memory": self.runs.peak_memory,
            "memory": self.memory,
            **(self._windows() if count and self.order == "shuffled" else {}),
            "fingerprint": self.fingerprint,
        }

    @property
    def _patch_bytes(self) -> int:
        """Bytes of the image of a patch, as it is stored before compression."""
        return math.prod(self.patch_shape) * self.dtype.itemsize if self.images else 0

    @property
    def _layout(self) -> str:
        sizes = self.cells.unit_sizes(self.cells.unit_begins(self.images))
        return shard_layout(self.rows_per_shard, self._patch_bytes, sizes)

    def _counted(self) -> dict[str, Any]:
        needed, reads = self.chunks_needed, self.chunk_reads
        return {
            "chunks_needed": needed,
            "chunk_reads": reads,
            "role_reads": self.role_reads,
            "read_amplification": reads / needed if needed else 1.0,
        }

    def _windows(self) -> dict[str, Any]:
        """What a window of a shuffled plan holds, how many there are, and how well they mix."""
        rows = min(self.window_rows, self.n_patches)
        groups = min(len(self.groups), max(1, round(rows / max(1.0, self.groups.mean_rows))))
        return {
            "window_groups": groups,
            "window_rows": rows,
            "window_bytes": rows * self._patch_bytes,
            "n_windows": -(-self.n_patches // self.window_rows) if rows else 0,
            "shuffle": self._mixed,
        }

    # -- saving -------------------------------------------------------------------------

    def save(self, url: str, *, storage_options: Mapping[str, Any] | None = None) -> None:
        """Save as ``plan.json`` and ``cells.parquet`` in a folder at any fsspec URL.

        Credentials are not saved, and neither are the pixels of arrays in memory.
        """
        location = Location.of(url, storage_options)
        location.write("cells.parquet", cells_to_bytes(self.cells))
        if self.places is not None:
            location.write("places.parquet", self.places.to_bytes())
        images, held = folded(image.to_document() for image in self.images)
        document = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "rejected": dict(self.rejected),
            "planning_reads": self.planning_reads,
            "split_report": dict(self.split_report),
            "class_counts": dict(self.class_counts),
            "places": self.places is not None,
            "images": images,
            "held": held,
        }
        location.write("plan.json", json.dumps(document, indent=1).encode())

    @classmethod
    def load(
        cls,
        url: str,
        *,
        images: Sequence[Image] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Load a saved plan; opens no image.

        Parameters
        ----------
        url
            Where `save` wrote it.
        images
            The images themselves, for those that were arrays in memory.
        storage_options
            For the plan and its images.

        Raises
        ------
        PlanError
            If nothing is there, it is of a newer format, or it was changed.
        SourceError
            If an array in memory is needed and not given.
        """
        location = Location.of(url, storage_options)
        head, body = location.read("plan.json"), location.read("cells.parquet")
        if head is None or body is None:
            raise PlanError(
                f"a saved plan has plan.json and cells.parquet, but {location.shown!r} has not; "
                "save it there with plan.save(url)"
            )
        try:
            document = json.loads(head)
            version = int(document["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(f"{location.shown}/plan.json is not a saved plan: {error}") from error
        if version != FORMAT:
            raise PlanError(
                f"this version reads plans of format {FORMAT}, got format {version} in "
                f"{location.shown!r}; plan anew"
            )
        try:
            places = location.read("places.parquet") if document["places"] else None
            plan = cls._from_parts(document, body, places, images, storage_options)
        except (LookupError, TypeError, ValueError, pa.ArrowException) as error:
            if isinstance(error, PatchloomError):
                raise
            raise PlanError(
                f"{location.shown!r} is not a saved plan, or a damaged one: "
                f"{type(error).__name__}: {error}; save it anew"
            ) from error
        if plan.fingerprint != document["fingerprint"]:
            raise PlanError(
                f"a saved plan is not edited by hand, but the fingerprint of {location.shown!r} "
                "does not fit its content; save it anew"
            )
        return plan

    @classmethod
    def _from_parts(
        cls,
        document: Mapping[str, Any],
        body: bytes,
        places: bytes | None,
        images: Sequence[Image] | None,
        storage_options: Mapping[str, Any] | None,
    ) -> Plan:
        given = {image.id: image for image in images or ()}
        found = []
        for item in unfolded(document["images"], document.get("held", {})):
            image = Image.from_document(item, storage_options)
            found.append(with_pixels(image, item, given.get(image.id)))
        settings = dict(document["settings"])
        config = parse_patching(settings.pop("patching"))
        listed = None if places is None else Places.from_bytes(places)
        patching = patching_of(found, config, settings["edge"], settings["seed"], listed)
        return cls(
            images=tuple(found),
            config=config,
            cells=cells_of_bytes(body, len(found), patching),
            min_coverage=Fraction(settings.pop("min_coverage")),
            filters=parse_filters(settings.pop("filters")),
            scores=parse_scores(settings.pop("scores")),
            balance=_model(BalanceConfig, settings.pop("balance")),
            classes=tuple(settings.pop("classes")),
            quota=_model(QuotaConfig, settings.pop("quota")),
            split=_model(SplitConfig, settings.pop("split")),
            rejected=document["rejected"],
            planning_reads=document["planning_reads"],
            split_report=document["split_report"],
            class_counts=document["class_counts"],
            places=listed,
            **settings,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, ready for JSON."""
        return {
            "patching": self.config.model_dump(),
            "edge": self.edge,
            "padding": self.padding,
            "min_coverage": str(self.min_coverage),
            "min_pixels": self.min_pixels,
            "order": self.order,
            "seed": self.seed,
            "rows_per_shard": self.rows_per_shard,
            "window": self.window,
            "memory": self.memory,
            "window_rows": self.window_rows,
            "group_by": self.group_by,
            "filters": [item.model_dump() for item in self.filters],
            "scores": [score.to_document() for score in self.scores],
            "balance": None if self.balance is None else self.balance.model_dump(),
            "classes": list(self.classes),
            "quota": None if self.quota is None else self.quota.model_dump(),
            "split": None if self.split is None else self.split.model_dump(),
        }

    def __repr__(self) -> str:
        return (
            f"<Plan {self.n_patches:,} patches of {'x'.join(map(str, self.patch_size))} from "
            f"{len(self.images)} images, {self.n_shards:,} shards, {self.n_tasks:,} tasks, "
            f"{self.fingerprint[:8]}>"
        )

    def _repr_html_(self) -> str:
        shown: str = importlib.import_module(_PAGE).glance(self)
        return shown

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        title: str | None = None,
        cost: Mapping[str, object] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one self-contained HTML page to look at this plan.

        It shows coarse pixels of at most 24 images with mask, chunk grid, patches and what is
        left out; coverage, counts, cost and settings. Reads less than 1 MB of each image, and
        at most 64 MiB where it lies on this machine.

        Parameters
        ----------
        path
            Path or any fsspec URL; what stands there is replaced.
        title
            Its heading.
        cost
            Figures to show as its cost, by name; by default its price on one worker.
        storage_options
            For the path.

        Raises
        ------
        WriteError
            If the target refuses.
        """
        importlib.import_module(_PAGE).write_plan_page(
            self, path, title=title, cost=cost, storage_options=storage_options
        )

    def refine(self, keep: npt.ArrayLike, *, reason: str = "refined") -> Plan:
        """The same plan with only some of its patches; reads nothing.

        Parameters
        ----------
        keep
            Whether to keep each patch, in the order of the rows: bool[n_patches].
        reason
            What to call it in ``summary()["rejected"]``.

        Raises
        ------
        PlanError
            If there is not one flag a patch.
        """
        flags = np.asarray(keep)
        if flags.shape != (self.n_patches,) or flags.dtype != np.bool_:
            raise PlanError(
                f"refine takes one flag a patch (bool[{self.n_patches}]), got "
                f"{flags.dtype}{list(flags.shape)}"
            )
        narrowing = Narrowing(self.images, self.patching, self.cells)
        narrowing.add(flags[self.rows_along(np.arange(self.n_patches))])
        left_out = {reason: int((~flags).sum())} if not flags.all() else {}
        more = {k: self.rejected.get(k, 0) + n for k, n in left_out.items()}
        cells = narrowing.cells()[0]
        # What was told of the classes and splits of all of them is not told of some.
        told: dict[str, Any] = {"class_counts": {}, "split_report": {}}
        found = replace(self, cells=cells, rejected={**self.rejected, **more}, **told)
        return found.laid_out(self.rows_per_shard)

    def laid_out(self, rows_per_shard: int | None) -> Plan:
        """The same patches in shards of so many rows.

        By default near 32 MiB, or the first half, quarter and so on of it, down to a sixteenth,
        that fits into the memory.

        Raises
        ------
        BudgetError
            If one shard does not fit into the memory; of shards that were asked for, it names
            fewer rows that do, if there are.
        """
        units = self.cells.unit_begins(self.images)
        sizes = self.cells.unit_sizes(units)
        rows = rows_per_shard or shard_rows(self._patch_bytes, sizes)
        try:
            return self._in_shards(rows, units)
        except BudgetError as error:
            refused = error
        for fewer in fewer_rows(rows, sizes) if self.window is None else ():
            try:
                found = self._in_shards(fewer, units)
            except BudgetError as error:
                refused = refused if rows_per_shard else error
                continue
            if rows_per_shard is None:
                return found
            raise BudgetError(f"{refused}; rows_per_shard={fewer} fits") from None
        raise refused

    def _in_shards(self, rows: int, units: Ints | None) -> Plan:
        order = None
        if self.is_aligned and self.order == "spatial":
            order = pack_units(self.cells, units, rows)
        cells = self.cells if order is None else self.cells.take(order)
        found = replace(self, cells=cells, rows_per_shard=rows)
        if self.order == "shuffled":
            found = replace(found, window_rows=found._rows_of_window())
        # Dealing out the shards also checks the memory: what cannot fit says so now.
        _ = found.runs
        return found

    def _rows_of_window(self) -> int:
        """Rows of a window of shuffled rows: whole shards."""
        rows, groups = self.rows_per_shard, self.groups
        if self.window is not None:
            if self.window >= len(groups):
                return max(1, self.n_shards) * rows
            return max(1, round(self.window * groups.mean_rows / rows)) * rows
        aligned = self.is_aligned
        return window_rows(
            self.images,
            self.cells,
            self.cut,
            rows,
            self.memory,
            lambda n: groups.rows(self.images, self.cells, self.seed, n, packed=aligned),
            aligned=aligned,
            sticks_out=self.patching.may_stick_out or any(self.cut.context),
        )

    def with_images(self, images: Sequence[Image]) -> Plan:
        """The same plan over other handles of the same images."""
        found = replace(self, images=tuple(images))
        found.__dict__.update({"runs": self.runs} if "runs" in self.__dict__ else {})
        return found


def _model(kind: type[_Model], document: Mapping[str, Any] | None) -> _Model | None:
    return None if document is None else kind.model_validate_json(json.dumps(document))
