"""Appending: which images of a plan a store has, and which it is yet to be given.

Images are told apart by their ids: where they stand in the plan plays no part, so that a glob
may list new ones between old ones. What the store has must be what the plan would make of these
images alone, by fingerprint; the others become an addition of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchloom.errors import FingerprintError, PatchloomError
from patchloom.image import Image
from patchloom.location import Location
from patchloom.planning.plans import Plan
from patchloom.planning.split_config import SplitConfig
from patchloom.planning.subsets import fixed_split, same_splits, subset
from patchloom.run.surveying import channel_names
from patchloom.sources.reopening import reading_document
from patchloom.sources.selected import selection_document
from patchloom.sources.windows import windows_document
from patchloom.store.additions import Addition, additions_of, fingerprint_of, n_shards_of
from patchloom.store.patch_store import read_attributes
from patchloom.store.schema import APPENDED, PARTIAL, shard_of

__all__ = [
    "Stage",
    "Stages",
    "appended",
    "foreseen",
    "image_documents",
    "leftovers",
    "pending",
    "stages_of",
    "told_of",
]

_SHOWN = 5
"""Ids that an error names."""


@dataclass(frozen=True)
class Stage:
    """One addition of a store, and the plan that makes it."""

    plan: Plan
    addition: Addition

    @property
    def ids(self) -> list[str]:
        """Of its images."""
        return [image.id for image in self.plan.images]


@dataclass(frozen=True)
class Stages:
    """What a call has to see to, in this order."""

    standing: tuple[Stage, ...]
    """Additions that the store has, finished or not."""
    new: tuple[Stage, ...] = ()
    """Additions that it is to be given; the first one may have been begun."""

    @property
    def every(self) -> tuple[Stage, ...]:
        """Both."""
        return (*self.standing, *self.new)


def stages_of(plan: Plan, attributes: Mapping[str, Any] | None, shown: str) -> Stages:
    """Tell the images of a plan that a store has from those that are new. Reads nothing.

    Parameters
    ----------
    plan
        Of all images.
    attributes
        Of the store; None where nothing stands.
    shown
        Where it stands, for errors.

    Raises
    ------
    FingerprintError
        If the store has other images, or other patches of them, than the plan.
    """
    if attributes is None:
        whole = Addition(plan.fingerprint, len(plan.images), plan.n_patches, plan.rows_per_shard)
        return Stages((Stage(plan, whole),))
    place = {image.id: k for k, image in enumerate(plan.images)}
    ids = [image["id"] for image in attributes["images"]]
    begun = attributes.get("pending")
    additions = additions_of(attributes)
    if len(additions) == 1 and place.keys() == {*ids}:
        # Nothing was appended, and nothing is to be.
        if plan.fingerprint != additions[0].fingerprint:
            wrong = _differences(plan, plan, attributes["images"], additions[0], attributes["seed"])
            raise _refused(shown, [*wrong])
        return Stages((Stage(plan, additions[0]),))
    _check_present(place, ids, shown)
    standing = []
    for addition in additions:
        images = attributes["images"][addition.first_image :][: addition.n_images]
        which = [place.pop(image["id"]) for image in images]
        standing.append(_recognised(plan, which, addition, images, attributes, shown))
    last, new = additions[-1], []
    stage = None if begun is None else _begun(plan, place, last, begun)
    if stage is not None:
        new.append(stage)
        last = stage.addition
        place = {name: k for name, k in place.items() if name not in {*stage.ids}}
    if place:
        new.append(_added(plan, [*place.values()], last, attributes, shown))
    return Stages(tuple(standing), tuple(new))


def _check_present(place: Mapping[str, int], ids: Sequence[str], shown: str) -> None:
    missing = [name for name in ids if name not in place]
    if missing:
        raise FingerprintError(
            f"a store is run again with all of its images, and new ones besides, but the plan "
            f"lacks {len(missing):,} of the {len(ids):,} at {shown!r}: {_some(missing)}; plan with "
            "these too, or give another URL; nothing was touched"
        )


def _recognised(
    plan: Plan,
    which: list[int],
    addition: Addition,
    images: Sequence[Mapping[str, Any]],
    attributes: Mapping[str, Any],
    shown: str,
) -> Stage:
    """The stage of an addition that the store has."""
    for split in _splits(plan, which, is_first=addition.first_image == 0):
        part = subset(plan, which, addition.rows_per_shard, split)
        if part.fingerprint != addition.fingerprint:
            continue
        if not same_splits(plan, which, part):
            raise FingerprintError(
                f"the splits of a store stay when images are added, but some of {shown!r} would "
                "move to other ones; plan with keep= in split (what splits.assignments() of the "
                "old plan tells, or the manifest), or give another URL; nothing was touched"
            )
        return Stage(part, addition)
    raise _refused(shown, [*_differences(plan, part, images, addition, attributes["seed"])])


def _splits(plan: Plan, which: list[int], *, is_first: bool) -> Iterator[SplitConfig | None]:
    """How an addition may have been split when it was made."""
    if not is_first:
        yield fixed_split(plan, which)
        return
    yield plan.split
    if plan.split is not None and plan.split.keep:
        # What is kept now was not asked for then.
        yield plan.split.model_copy(update={"keep": {}})


def _begun(
    plan: Plan, place: Mapping[str, int], last: Addition, begun: Mapping[str, Any]
) -> Stage | None:
    """The stage of an addition that was begun, if the plan is one that finishes it."""
    which = [place.get(image["id"], -1) for image in begun["images"]]
    if min(which, default=-1) < 0:
        return None
    part = subset(plan, which, last.rows_per_shard, fixed_split(plan, which))
    if part.fingerprint != begun["fingerprint"]:
        return None
    return Stage(part, last.followed_by(part.fingerprint, len(which), part.n_patches))


def _added(
    plan: Plan, which: list[int], last: Addition, attributes: Mapping[str, Any], shown: str
) -> Stage:
    """The stage of images that are new."""
    part = subset(plan, which, last.rows_per_shard, fixed_split(plan, which))
    theirs, ours = attributes["patch_shape"], [*part.patch_shape]
    wrong = None
    if ours != theirs:
        wrong = f"patches of one shape, but old ones have {theirs} and new ones {ours}"
    elif channel_names(plan.images) != attributes["channels"]:
        wrong = f"images of the same channels, {attributes['channels']}, but new ones have others"
    elif not same_splits(plan, which, part):
        wrong = (
            "images with the splits that they have by themselves, but those of new ones depend "
            "on old ones (guards in one world)"
        )
    if wrong is not None:
        raise FingerprintError(
            f"a store takes {wrong} (at {shown!r}, {len(which):,} images); plan them apart, for a "
            "store of their own at another URL; nothing was touched"
        )
    return Stage(part, last.followed_by(part.fingerprint, len(which), part.n_patches))


def _differences(
    plan: Plan,
    part: Plan,
    images: Sequence[Mapping[str, Any]],
    addition: Addition,
    seed: int,
) -> Iterator[str]:
    """In words, what a plan of the images of an addition has otherwise."""
    if plan.seed != seed:
        yield f"another seed ({seed} there, {plan.seed} here)"
    told = {document["id"]: document for document in images}
    changed = [
        image.id
        for image, document in zip(_in_order(part, images), images, strict=True)
        if not _is_same(image, document)
    ]
    if changed:
        yield f"another level, axes, shape or type of {_some(changed)}"
    elif blank := [k for k, v in _nodata(part).items() if v != told[k].get("nodata")]:
        yield f"another nodata value of {_some(blank)}"
    elif [image.id for image in part.images] != [image["id"] for image in images]:
        yield "another order of the images"
    if part.rows_per_shard != addition.rows_per_shard:
        there, here = addition.rows_per_shard, part.rows_per_shard
        yield f"another rows_per_shard ({there:,} there, {here:,} here)"
    if part.n_patches != addition.n_patches:
        yield (
            f"other patches of these images ({addition.n_patches:,} there, {part.n_patches:,} here)"
        )
    if plan is not part and plan.split is not None and plan.split.stratify:
        yield "or splits that were dealt out anew (keep= in split holds them)"
    drawn = _drawn_together(plan)
    if drawn and plan is not part:
        yield (
            f"a draw from other images ({drawn} draws from all images of a plan together: plan "
            "the new ones apart, for a store of their own)"
        )


def _in_order(part: Plan, images: Sequence[Mapping[str, Any]]) -> list[Image]:
    found = {image.id: image for image in part.images}
    return [found[image["id"]] for image in images]


def _is_same(image: Image, document: Mapping[str, Any]) -> bool:
    own = image_documents([image])[0]
    return all(own[name] == document[name] for name in ("level", "axes", "shape", "dtype"))


def _nodata(part: Plan) -> dict[str, float | str | None]:
    """The nodata values of the images of a plan, as documents have them."""
    return {image.id: image.nodata_document().get("nodata") for image in part.images}


def _drawn_together(plan: Plan) -> str:
    """The settings of a plan that look at all images together."""
    quota = plan.quota
    names = [] if plan.balance is None else ["balance="]
    if quota is not None and (quota.n_patches or quota.n_images or quota.per_group):
        names.append("quota= other than per_image")
    return " and ".join(names)


def _refused(shown: str, wrong: Sequence[str]) -> FingerprintError:
    told = "; ".join(["another fingerprint", *wrong])
    return FingerprintError(
        f"a store belongs to one plan and job, but the one at {shown!r} has {told}. A plan is "
        "fixed by its images with their chunks, masks and metadata, and by all settings: plan as "
        "it was planned, give another URL, or remove it yourself; nothing was touched"
    )


def _some(names: Sequence[str]) -> str:
    return f"{[*names][:_SHOWN]}{' and more' if len(names) > _SHOWN else ''}"


# -- what stands in the attributes --------------------------------------------------------


def image_documents(images: Sequence[Image]) -> list[dict[str, Any]]:
    """Images as they stand in the attributes of a store."""
    return [
        {
            "id": image.id,
            "uri": image.uri,
            "level": image.level,
            "axes": image.axes.names,
            "shape": list(image.shape),
            "dtype": image.dtype.name,
            "chunks": list(image.grid.chunks),
            "spacing": dict(image.spacing),
            "origin": dict(image.origin),
            "unit": dict(image.unit),
            **image.nodata_document(),
            **selection_document(image),
            **windows_document(image),
            **reading_document(image),
            **_columns(image),
        }
        for image in images
    ]


def _columns(image: Image) -> dict[str, Any]:
    """Metadata columns for JSON, without what is no number; nothing if there are none."""
    plain = ((k, v.item() if isinstance(v, np.generic) else v) for k, v in image.metadata.items())
    found = {
        name: value
        for name, value in plain
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }
    return {"metadata": found} if found else {}


def pending(attributes: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """The attributes of a store while an addition is made: the old ones, and what is coming."""
    coming = {
        "fingerprint": stage.addition.fingerprint,
        "n_patches": stage.addition.n_patches,
        "images": image_documents(stage.plan.images),
    }
    return {**attributes, "format": APPENDED, "pending": coming}


def appended(
    attributes: Mapping[str, Any], stage: Stage, statistics: Mapping[str, Any], version: str
) -> dict[str, Any]:
    """The attributes of a store that has an addition more."""
    additions = [*additions_of(attributes), stage.addition]
    kept = {k: v for k, v in attributes.items() if k not in ("pending", "statistics")}
    return {
        **kept,
        "format": APPENDED,
        "patchloom_version": version,
        "fingerprint": fingerprint_of(additions),
        "n_patches": sum(addition.n_patches for addition in additions),
        "images": [*attributes["images"], *image_documents(stage.plan.images)],
        "additions": [addition.to_document() for addition in additions],
        "statistics": statistics,
    }


def leftovers(found: Mapping[str, int], attributes: Mapping[str, Any]) -> list[str]:
    """Objects of an addition that nobody finishes: what commits a shard comes first."""
    first = n_shards_of(attributes)
    names = [
        name
        for name in found
        if not PARTIAL.search(name) and (shard := shard_of(name)) is not None and shard >= first
    ]
    return sorted(names, key=lambda name: not name.startswith("manifest/"))


def foreseen(plan: Plan, target: Location) -> dict[str, Any]:
    """What writing a plan to a place would append to what stands there; reads one object.

    Returns
    -------
    dict
        ``appends`` with a line an addition, or ``refused`` with the reason; else empty.
    """
    try:
        attributes = read_attributes(target)
        stages = stages_of(plan, attributes, target.shown)
    except PatchloomError as error:
        return {"refused": str(error)}
    return {"appends": [told_of(stage, target) for stage in stages.new]} if stages.new else {}


def told_of(stage: Stage, target: Location) -> str:
    """What an addition adds, as a line."""
    n, m = len(stage.plan.images), stage.plan.n_patches
    return (
        f"appends {n:,} image{'' if n == 1 else 's'}, {m:,} patch{'' if m == 1 else 'es'} to "
        f"{target.shown}"
    )
