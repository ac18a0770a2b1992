"""verify: check a store, every shard of it, and some of its patches against their sources."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from dask.highlevelgraph import HighLevelGraph

from patchloom.errors import ConfigError, FingerprintError, PatchloomError, StoreError
from patchloom.image import Image
from patchloom.location import Location, StorageOptions
from patchloom.normalization import Normalization
from patchloom.planning.identity import box_ids, patch_ids
from patchloom.planning.incidence import Cut
from patchloom.planning.lenses import around, is_context
from patchloom.planning.plans import Plan
from patchloom.run.appending import stages_of
from patchloom.run.executing import execute
from patchloom.run.graph import Graph, light
from patchloom.run.masks import read_region
from patchloom.run.scaling import recorded
from patchloom.run.verify_report import VerifyReport
from patchloom.sources.opening import open_images
from patchloom.sources.selected import selected_again
from patchloom.store.additions import additions_of, n_shards_of
from patchloom.store.checking import Damage, check_metadata, check_shard, specs_of
from patchloom.store.patch_store import open_patches, read_attributes
from patchloom.store.schema import (
    ArraySpec,
    as_json,
    gap_name,
    group_document,
    manifest_name,
    role_of,
    shard_objects,
)

__all__ = ["verify"]

Pixels = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

TASKS = 256
"""Tasks of a check, at most: each takes so many shards, one after the other."""
_OPEN = 32
"""Sources that a task keeps open."""
_DRAWN = 16
"""How often a random strategy may have drawn one box."""
_DIFFERS = "differs from its source"
_NORMALIZES = {"image": "normalize", "target": "normalize_targets"}
"""Settings of a job that say whether an array is normalised."""

_Sources = Callable[[str, str], Image | str]


def verify(
    url: str | os.PathLike[str],
    plan: Plan | None = None,
    *,
    sample: int = 64,
    seed: int = 0,
    repair: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> VerifyReport:
    """Check a patch store, on the Dask scheduler that is set.

    Every object of every committed shard is read once: it is there, is the one that was written
    (size and checksum), its index and each of its patches match their checksums and decode, and it
    holds the rows of its part of the manifest; ids belong to their boxes, and summaries can be
    read. A sample of the patches is compared with the sources. One task takes some shards and
    holds one object at a time.

    Parameters
    ----------
    url
        Path or fsspec URL of the store.
    plan
        The plan of the store; with it all boxes and ids are compared with the plan's, and labels
        and targets of the sample with their sources too.
    sample
        Patches to compare with their sources; 0 for none.
    seed
        Of the sample.
    repair
        Whether to take back the commit of damaged shards, so that the next run of the same job
        makes exactly these again. Else nothing is written.
    storage_options
        For fsspec, for the store.
    source_options
        For fsspec, for sources that are opened by the URL that the store tells; by default as for
        the store.
    progress
        Whether to show it.

    Returns
    -------
    VerifyReport

    Raises
    ------
    SourceMissingError
        If nothing stands at `url`.
    StoreError
        If it is no patch store, or its attributes cannot be read.
    FingerprintError
        If the plan is not the store's.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> images = patchloom.open_images(np.ones((64, 64), "uint8"))
    >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [32, 32]})
    >>> _ = patchloom.materialize(plan, "memory://checked.zarr", progress=False)
    >>> report = patchloom.verify("memory://checked.zarr", plan, progress=False)
    >>> report.ok, report.n_patches
    (True, 4)
    """
    begun = time.perf_counter()
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 0:
        raise ConfigError(f"sample= is a number of patches, 0 for none, got {sample!r}")
    store = open_patches(url, storage_options=storage_options)
    target, attributes = Location.of(url, storage_options), store.attributes
    plans = {} if plan is None else _plans(plan, attributes, target)
    documents = _documents(target)
    damage = check_metadata(target, attributes, documents)
    shards, gaps, missing = _committed(target, attributes)
    if attributes["complete"]:
        damage += [Damage(k, manifest_name(k), "is missing") for k in missing]
    picked = _picked(attributes, sample, seed)
    options = storage_options if source_options is None else source_options
    specs = specs_of(attributes, documents)
    numbers = recorded(attributes)
    work = _Work(target, attributes, specs, plans, StorageOptions(options or {}), numbers)
    results = execute(_graph(work, shards, gaps, picked), progress=progress, label="verify")
    found = [result for part in results for result in part]
    damage += [item for result in found for item in result.damage]
    apart: Counter[str] = Counter()
    for result in found:
        apart.update(result.apart)
    report = VerifyReport(
        url=target.shown,
        complete=store.complete,
        n_shards=len(shards) + len(missing),
        n_checked=len(shards),
        n_partial=len(gaps),
        n_unfinished=0 if attributes["complete"] else len(missing),
        n_patches=sum(result.n_rows for result in found),
        n_objects=sum(result.n_objects for result in found),
        bytes_read=sum(result.nbytes for result in found),
        n_compared=sum(result.n_compared for result in found),
        not_compared=dict(sorted(apart.items())),
        damage=tuple(sorted(damage, key=lambda d: (-1 if d.shard is None else d.shard, d.object))),
        seconds=time.perf_counter() - begun,
    )
    if not repair or report.ok:
        return report
    _take_back(target, report.damage)
    return replace(report, repaired=report.damaged_shards)


def _documents(target: Location) -> dict[str, Any]:
    """The metadata of a store's arrays, as its group tells them."""
    data = target.read("zarr.json")
    try:
        found: dict[str, Any] = json.loads(data or b"")["consolidated_metadata"]["metadata"]
        if {*found} != {*json.loads(data or b"")["attributes"]["patchloom"]["arrays"]}:
            raise KeyError("arrays")
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"the group of a patch store tells of its arrays, but zarr.json of {target.shown!r} "
            f"does not ({error!r}); remove that object and run the job of the store again"
        ) from None
    return found


def _committed(
    target: Location, attributes: Mapping[str, Any]
) -> tuple[list[int], frozenset[int], list[int]]:
    """Shards that are committed, those of them with gaps, and those that are not; one listing."""
    names = {f"manifest/{name}" for name in target.list("manifest")}
    every = range(n_shards_of(attributes))
    gaps = frozenset(k for k in every if gap_name(k) in names)
    there = [k for k in every if k in gaps or manifest_name(k) in names]
    return there, gaps, sorted({*every} - {*there})


def _plans(plan: Plan, attributes: Mapping[str, Any], target: Location) -> dict[int, Plan]:
    """The plan of each addition of a store, by its first row."""
    try:
        stages = stages_of(plan, attributes, target.shown).standing
    except FingerprintError as error:
        raise FingerprintError(f"a store is checked against its own plan: {error}") from None
    return {
        stage.addition.first_row: stage.plan.with_images([light(i) for i in stage.plan.images])
        for stage in stages
    }


def _picked(attributes: Mapping[str, Any], sample: int, seed: int) -> dict[int, list[int]]:
    """The rows of the sample by their shards."""
    n, additions = attributes["n_patches"], additions_of(attributes)
    picked = np.random.default_rng(seed).choice(n, min(sample, n), replace=False)
    # Between additions there are rows without patches.
    ends = np.cumsum([addition.n_patches for addition in additions])
    at = np.searchsorted(ends, picked, side="right")
    past = np.array([a.stop_row for a in additions], np.int64) - ends
    found: dict[int, list[int]] = {}
    for row in sorted((picked + past[at]).tolist()):
        found.setdefault(row // attributes["rows_per_shard"], []).append(row)
    return found


def _take_back(target: Location, damage: Sequence[Damage]) -> None:
    """Take back the commit of damaged shards; readers are told first."""
    # As it is now: images may have been appended while all was checked.
    told = {**(read_attributes(target) or {}), "complete": False}
    target.write("zarr.json", as_json(group_document(told, _documents(target))))
    shards = {d.shard for d in damage if d.shard is not None}
    parts = [name for k in sorted(shards) for name in (manifest_name(k), gap_name(k))]
    own = {d.object for d in damage if d.shard is None} - {"zarr.json"}
    target.remove([*sorted(own), *parts])


# -- what a worker does -----------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """What every task of a check needs."""

    target: Location
    attributes: Mapping[str, Any]
    specs: Mapping[str, ArraySpec]
    plans: Mapping[int, Plan]
    """Of each addition, by its first row; none if the plan was not given."""
    options: StorageOptions
    numbers: Mapping[str, Normalization]
    """What the arrays were normalised with that are, by role."""


@dataclass(frozen=True)
class _Some:
    """What one task checks: an opaque value, so that Dask does not look inside."""

    shards: Sequence[int]
    gaps: frozenset[int]
    picked: Mapping[int, list[int]]


@dataclass(frozen=True)
class _Result:
    """What was found in one shard."""

    n_rows: int
    n_objects: int
    nbytes: int
    n_compared: int
    apart: Mapping[str, int]
    damage: tuple[Damage, ...]


def _graph(
    work: _Work, shards: Sequence[int], gaps: frozenset[int], picked: Mapping[int, list[int]]
) -> Graph:
    token = uuid.uuid4().hex
    name, work_key = f"patchloom-verify-{token}", f"patchloom-store-{token}"
    layer: dict[Any, Any] = {work_key: work}
    step = max(1, -(-len(shards) // TASKS))
    for k, start in enumerate(range(0, len(shards), step)):
        mine = shards[start : start + step]
        some = _Some(mine, gaps.intersection(mine), {s: picked[s] for s in mine if s in picked})
        layer[name, k] = (_check, work_key, some)
    keys = [key for key in layer if key != work_key]
    return Graph(HighLevelGraph.from_collections(name, layer, dependencies=[]), keys)


def _check(work: _Work, some: _Some) -> list[_Result]:
    # Sources are opened once a task, and only those that the sample needs.
    sources = lru_cache(maxsize=_OPEN)(partial(_source, work))
    return [
        _check_one(work, shard, shard in some.gaps, some.picked.get(shard, []), sources)
        for shard in some.shards
    ]


def _check_one(
    work: _Work, shard: int, gap: bool, picked: Sequence[int], sources: _Sources
) -> _Result:
    held: dict[tuple[str, int], Pixels] = {}
    found = check_shard(
        work.target,
        work.attributes,
        work.specs,
        shard,
        gap=gap,
        rows=lambda name, row, pixels: held.update({(name, row): pixels}),
        wanted=frozenset(picked),
    )
    damage, apart, n_compared = list(found.damage), Counter[str](), 0
    if found.table is not None:
        part = gap_name(shard) if gap else manifest_name(shard)
        damage += [Damage(shard, part, what) for what in _boxes(work, shard, found.table)]
        objects = shard_objects({n: len(s.patch_shape) for n, s in work.specs.items()}, shard)
        seen: dict[int, str | None] = {}
        for (name, row), pixels in sorted(held.items(), key=lambda item: item[0]):
            why = _differs(work, found.table, name, row, pixels, sources)
            if why == _DIFFERS:
                damage.append(Damage(shard, objects[name], f"row {row} {why}"))
            if name == "images":
                seen[row] = why
        apart.update(why for why in seen.values() if why not in (None, _DIFFERS))
        n_compared = len(seen) - sum(apart.values())
    n_rows = 0 if found.table is None else found.table.num_rows
    return _Result(n_rows, found.n_objects, found.nbytes, n_compared, dict(apart), tuple(damage))


def _boxes(work: _Work, shard: int, table: pa.Table) -> list[str]:
    """What is wrong with the boxes and ids of a part of the manifest."""
    attributes = work.attributes
    axes = str(attributes["axes"]).replace("c", "")
    names = ("patch_id", "image_id", "sample", *(f"start_{a}" for a in axes))
    if missing := [name for name in names if name not in table.column_names]:
        return [f"lacks the columns {missing}"]
    ids, image_ids = (table[name].to_numpy(zero_copy_only=False) for name in names[:2])
    sample = table["sample"].to_numpy()
    corner = np.stack([table[name].to_numpy() for name in names[3:]], -1)
    bad = np.zeros(table.num_rows, np.bool_)
    if work.plans:
        first = max(k for k in work.plans if k <= shard * attributes["rows_per_shard"])
        row = table["row"].to_numpy() - first
        bad = _unlike_plan(work.plans[first], row, ids, image_ids, sample, corner)
    else:
        size = attributes["patch_shape"][1:]
        levels = {image["id"]: image["level"] for image in attributes["images"]}
        for name in np.unique(image_ids.astype(str)).tolist():
            mine = np.flatnonzero(image_ids == name)
            bad[mine] = name not in levels
            for drawn in range(_DRAWN * (name in levels)):
                again = np.full(len(mine), drawn, np.int64)
                made = box_ids(name, levels[name], size, sample[mine], corner[mine], again)
                mine = mine[np.array(made, object) != ids[mine]]
                if not len(mine):
                    break
            bad[mine] = True
    if not bad.any():
        return []
    wrong = int(table["row"][int(np.flatnonzero(bad)[0])].as_py())
    whose = "the plan's" if work.plans else "those of their ids"
    return [f"{int(bad.sum())} boxes or ids are not {whose}, the first is row {wrong}"]


def _unlike_plan(
    plan: Plan, row: Ints, ids: Pixels, image_ids: Pixels, sample: Ints, corner: Ints
) -> npt.NDArray[np.bool_]:
    """Which rows are not as the plan has them: bool[n]."""
    bad = np.ones(len(row), np.bool_)
    if not len(row):
        return bad
    start = int(row[0]) // plan.rows_per_shard * plan.rows_per_shard
    for part in plan.patches(start, min(start + plan.rows_per_shard, plan.n_patches)):
        part = part.take(np.isin(part.row, row))
        at = np.searchsorted(row, part.row)
        same = (sample[at] == part.sample) & (corner[at] == part.corner).all(-1)
        same &= ids[at] == np.array(patch_ids(plan, part), object)
        bad[at] = ~(same & (image_ids[at] == plan.images[part.image].id))
    return bad


def _differs(
    work: _Work, table: pa.Table, name: str, row: int, pixels: Pixels, sources: _Sources
) -> str | None:
    """Why a stored patch is not known to equal its source; None if it does."""
    at = int(np.searchsorted(table["row"].to_numpy(), row))
    told = table.slice(at, 1).to_pylist()[0]
    source = sources(told["image_id"], name)
    if isinstance(source, str):
        return source
    axes = str(work.attributes["axes"]).replace("c", "")
    corner = np.array([told[f"start_{a}"] for a in axes], np.int64)
    if is_context(name):
        [image, *_] = [i for p in work.plans.values() for i in p.images if i.id == told["image_id"]]
        corner = around(image, name, corner[None], Cut(pixels.shape[1:], (0,) * len(axes)))[0][0]
    extent = np.array(source.layout.space.shape, np.int64)
    low = np.maximum(corner, 0)
    high = np.minimum(corner + np.array(pixels.shape[1:]), extent)
    sample = told["sample"] if source.layout.n_samples > 1 else 0
    # Padding is not compared: what it shows was chosen, not read.
    inside = tuple(slice(a - c, b - c) for a, b, c in zip(low, high, corner, strict=True))
    try:
        found = read_region(source, sample, list(zip(low.tolist(), high.tolist(), strict=True)))
    except (PatchloomError, OSError) as error:
        return f"its source cannot be read: {error}"
    stored = pixels[(slice(None), *inside)]
    role = role_of(name)
    if work.attributes["job"].get(_NORMALIZES.get(role)) is not None:
        scaling = work.numbers.get(role)
        if scaling is None or not scaling.knows(told["image_id"]):
            return "it was normalised, and the store does not tell by which numbers"
        found = scaling.apply(found[None], told["image_id"])[0]
    same = found.dtype == stored.dtype and found.tobytes() == stored.tobytes()
    return None if same else _DIFFERS


def _source(work: _Work, image_id: str, name: str) -> Image | str:
    """The array that patches of one image were cut from, or why it is not to be had."""
    if work.plans:
        same = [i for plan in work.plans.values() for i in plan.images if i.id == image_id]
        if not same:
            return f"the plan has no image {image_id!r}"
        array = same[0].cut_arrays[role_of(name)]
        return array if array.source.addressable else "its source is a Dask array, or in memory"
    [told] = [i for i in work.attributes["images"] if i["id"] == image_id] or [None]
    if name != "images" or told is None or not told["uri"]:
        return "the store tells no URL of its source"
    if "windows" in told:
        return "it shows time windows, which a plan knows"
    if "opened_with" in told:
        return f"it was opened with {told['opened_with']}, which a plan knows"
    try:
        taken = told.get("selection", {"axes": told["axes"], "picks": {}})
        [found] = open_images(
            told["uri"], axes=taken["axes"], level=told["level"], storage_options=work.options
        )
        found = selected_again(found, taken["picks"])
    except (PatchloomError, OSError, ValueError) as error:
        return f"its source cannot be opened: {error}"
    if list(found.shape) != told["shape"]:
        return f"its source {found.uri!r} has another shape now"
    return found
