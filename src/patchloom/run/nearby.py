"""Nearby: all patches of a plan that need some blocks, whichever task writes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchloom.image import Layout
from patchloom.planning.incidence import Patches, touches
from patchloom.planning.plans import Plan
from patchloom.planning.rows import ranges

__all__ = ["Nearby", "lying_under"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Nearby:
    """The patches that need some blocks of one array, block after block, in the order of turns."""

    blocks: Ints
    """Ascending: int64[n]."""
    patches: Patches
    turn: Ints
    """Of each of these patches."""
    patch: Ints
    """Positions in `patches`; those from ``begin[k]`` to ``end[k]`` need ``blocks[k]``."""
    begin: Ints
    end: Ints

    @classmethod
    def of(
        cls,
        plan: Plan,
        image: int,
        layout: Layout,
        blocks: Ints,
        samples: Ints,
        known: Patches | None = None,
    ) -> Nearby:
        """Of some blocks of one array over an image.

        Parameters
        ----------
        plan, image
            Whose patches.
        layout
            Of the array.
        blocks
            Ascending: int64[n].
        samples
            Where one array serves all samples of the image: those to look at.
        known
            Patches of the image that are at hand: of a small one often all.
        """
        if known is not None and len(known) == plan.n_patches_of(image):
            patches = known
        else:
            around = lying_under(plan.images[image].layout, layout, blocks, samples)
            [patches] = plan.along(plan.touching(image, around))
        turn = plan.sequence.turns_of(patches.rank)
        sample = layout.own_samples(patches.sample)
        patch, block = touches(layout, sample, patches.corner, plan.cut)
        order = np.lexsort((turn[patch], block))
        patch, block = patch[order], block[order]
        begin = np.searchsorted(block, blocks)
        end = np.searchsorted(block, blocks, side="right")
        return cls(blocks, patches, turn, patch, begin, end)

    def shared(self, plan: Plan) -> dict[int, set[int]]:
        """The blocks that patches of several legs need, and these legs."""
        place = np.repeat(np.arange(len(self.blocks)), self.end - self.begin)
        leg = plan.runs.legs_at(self.turn)[self.patch[ranges(self.begin, self.end)]]
        # Legs follow one another as turns do.
        first = (np.diff(place, prepend=-1) != 0) | (np.diff(leg, prepend=-1) != 0)
        place, leg = place[first], leg[first]
        several = np.bincount(place, minlength=len(self.blocks)) > 1
        found: dict[int, set[int]] = {block: set() for block in self.blocks[several].tolist()}
        some = several[place]
        for block, number in zip(
            self.blocks[place[some]].tolist(), leg[some].tolist(), strict=True
        ):
            found[block].add(number)
        return found


def lying_under(own: Layout, layout: Layout, blocks: Ints, samples: Ints) -> Ints:
    """The blocks of one array that lie under some blocks of another over the same pixels.

    Parameters
    ----------
    own, layout
        Of the one array and of the other.
    blocks
        Of the other, ascending: int64[n].
    samples
        Where the other serves all samples of the one: those to look at.
    """
    if own == layout or not len(blocks):
        return blocks
    index = layout.space.unflat(blocks % layout.space.n_chunks)
    start = index * np.asarray(layout.space.chunks)
    stop = np.minimum(start + np.asarray(layout.space.chunks), np.asarray(layout.space.shape))
    low, high = own.space.chunk_of(start), own.space.chunk_of(stop - 1)
    axes = [np.arange(width) for width in ((high - low).max(0) + 1).tolist()]
    step = np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], -1)
    at = low[:, None] + step
    inside = (at <= high[:, None]).all(-1)
    which = np.nonzero(inside)[0]
    flat = own.space.flat(at[inside])
    if layout.n_samples == 1:
        groups = np.unique(own.groups_of(samples))
        return np.unique(groups[:, None] * own.space.n_chunks + flat)
    position, sample = layout.samples_of(blocks)
    # Each block, with each of its samples, over each block that lies under it.
    groups = own.groups_of(own.own_samples(sample))
    pairs = np.unique(np.stack([position, groups], -1), axis=0)
    order = np.argsort(which, kind="stable")
    begin = np.searchsorted(which[order], pairs[:, 0])
    end = np.searchsorted(which[order], pairs[:, 0], side="right")
    under = flat[order][ranges(begin, end)]
    found: Ints = np.unique(np.repeat(pairs[:, 1], end - begin) * own.space.n_chunks + under)
    return found
