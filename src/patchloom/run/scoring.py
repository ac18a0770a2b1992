"""Surveys of contents: what each candidate of a plan shows, each chunk read once."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from patchloom.errors import ConfigError, PlanError
from patchloom.image import Reads
from patchloom.location import Location
from patchloom.planning.identity import patch_ids
from patchloom.planning.incidence import Patches
from patchloom.planning.plans import Plan, identity_of
from patchloom.planning.runs import pack_units, shard_rows
from patchloom.randomness import digest
from patchloom.run.centers import check_labels
from patchloom.run.contents import Contents, Counted
from patchloom.run.cutting import Job
from patchloom.run.executing import execute
from patchloom.run.graph import run_graph
from patchloom.scores import Score, parse_scores

__all__ = ["Survey", "survey", "survey_contents"]

_PART = 2**16
"""Most patches of one part of a survey."""


@dataclass(frozen=True, eq=False)
class Survey:
    """What the patches of a plan show, in parts of whole shards, in the order of their rows."""

    plan: Plan
    """With one shard a part."""
    order: np.ndarray[Any, np.dtype[np.int64]]
    """Position of each of its cells in the plan that was surveyed."""
    reads: Reads
    """What was read for it; parts that were there already cost nothing."""
    _parts: Mapping[int, bytes] | tuple[Location, Mapping[int, str]]

    def part(self, shard: int) -> Counted:
        """What one part holds.

        Raises
        ------
        PlanError
            If it was kept in a folder and is gone.
        """
        if isinstance(self._parts, Mapping):
            return Counted.from_bytes(self._parts[shard])
        folder, names = self._parts
        data = folder.read(names[shard])
        if data is None:
            raise PlanError(
                f"a survey's parts stay until the plan is made, but {names[shard]!r} in "
                f"{folder.shown!r} is gone; make the same call again"
            )
        return Counted.from_bytes(data)

    def walk(self) -> Iterator[tuple[list[Patches], Counted]]:
        """The patches of each part and what they show."""
        plan = self.plan
        for shard in range(plan.n_shards):
            start = shard * plan.rows_per_shard
            stop = min(start + plan.rows_per_shard, plan.n_patches)
            yield plan.patches(start, stop), self.part(shard)


def survey(
    plan: Plan,
    scores: Sequence[str | Mapping[str, Any] | Score] = (),
    *,
    coverage: bool = True,
    url: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> pa.Table:
    """Look at every patch of a plan once, without writing any.

    Change thresholds on the table as often as you like, and take what you want with
    ``plan.refine(keep)``; nothing is read again.

    Parameters
    ----------
    plan
        From `patchloom.plan`.
    scores
        What to compute of each patch: names such as ``"max"``, ``"mean"``, ``"std"``,
        ``"entropy"``, ``"focus"`` or ``"saturation"``; or mappings such as
        ``{"name": "mean", "channel": 1}``.
    coverage
        Whether to add the share of each patch that its mask covers.
    url
        A folder that keeps what is found. The same call again, also after an interruption or
        with images added, reads only what is missing.
    storage_options
        For fsspec, to reach `url`.
    progress
        Whether to show it.

    Returns
    -------
    pyarrow.Table
        One row a patch, in the plan's order: ``patch_id``, ``image_id``, ``sample``,
        ``start_*`` (pixels), ``split``, ``row``, and a column for each score.

    Raises
    ------
    ConfigError
        If a score is unknown.
    ChunkError
        If a chunk cannot be read.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> images = patchloom.open_images(np.arange(64, dtype="uint8").reshape(8, 8))
    >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [4, 4]})
    >>> table = patchloom.survey(plan, ["mean"], progress=False)
    >>> table["mean"].to_pylist()
    [13.5, 17.5, 45.5, 49.5]
    >>> plan.refine(table["mean"].to_numpy() > 15).n_patches
    3
    """
    if not isinstance(plan, Plan):
        raise ConfigError(f"survey takes a Plan, got {type(plan).__name__}; make one with plan")
    folder = None if url is None else Location.of(url, storage_options)
    contents = Contents(parse_scores(scores), coverage=coverage)
    found = survey_contents(plan, contents, folder=folder, progress=progress)
    tables = []
    for parts, counted in found.walk():
        tables.append(pa.table({**_where(plan, found, parts), **counted.scores()}))
    table = pa.concat_tables(tables) if tables else pa.table({})
    return table.sort_by("row") if tables else table


def _where(plan: Plan, found: Survey, parts: Sequence[Patches]) -> dict[str, Any]:
    """Which patches these are, in words of the manifest; rows are those of `plan`."""
    laid = found.plan
    ids: list[str] = []
    images: list[str] = []
    splits: list[str | None] = []
    rows = []
    names = (*plan.split_names, None)
    for part in parts:
        ids += patch_ids(laid, part)
        images += [plan.images[part.image].id] * len(part)
        splits += [names[k] for k in plan.split_of(part).tolist()]
        begin = plan.cells.rows_of(found.order[part.cell])
        rows.append(begin + part.row - laid.cells.rows_of(part.cell))
    corner = np.concatenate([part.corner for part in parts])
    return {
        "patch_id": ids,
        "image_id": images,
        "sample": np.concatenate([part.sample for part in parts]),
        **{f"start_{a}": corner[:, k] for k, a in enumerate(plan.spatial)},
        "split": pa.array(splits, pa.string()),
        "row": np.concatenate(rows),
    }


def survey_contents(
    plan: Plan, contents: Contents, *, folder: Location | None, progress: bool
) -> Survey:
    """Count what the patches of a plan show; see `survey`."""
    if contents.classes:
        check_labels(plan.images)
    cells = plan.cells
    units = cells.unit_begins(plan.images)
    patch_bytes = math.prod(plan.patch_shape) * plan.dtype.itemsize
    rows = min(_PART, shard_rows(patch_bytes, cells.unit_sizes(units)))
    # Laid out as a store would be, so that memory is projected and chunks are read alike.
    order = pack_units(cells, units, rows) if plan.is_aligned else None
    if order is None:
        order = np.arange(len(cells))
    laid = replace(plan, cells=cells.take(order), rows_per_shard=rows)
    shards, names = range(laid.n_shards), dict[int, str]()
    if folder is not None:
        names = {shard: _name(laid, contents, shard) for shard in shards}
        there = folder.list()
        shards = [shard for shard in shards if not there.get(names[shard])]
    job = Job(None, contents=contents, folder=folder, parts=names)
    graph = run_graph(laid, job, shards, uuid.uuid4().hex)
    reads, parts = Reads(), dict[int, bytes]()
    for some, counted in execute(graph, progress=progress, label="survey"):
        parts |= some
        reads.chunks += counted.chunks
        reads.requests += counted.requests
        reads.nbytes += counted.nbytes
    return Survey(laid, order, reads, parts if folder is None else (folder, names))


def _name(plan: Plan, contents: Contents, shard: int) -> str:
    """A name fixed by all that a part depends on, whatever else is in the plan."""
    start = shard * plan.rows_per_shard
    whole = blake2b(digest_size=16)
    cut, asked = plan.cut, [score.to_document() for score in contents.scores]
    settings = (plan.edge, cut.size, cut.context, cut.padding, asked, contents.classes)
    whole.update(digest("contents", 1, *settings, contents.coverage))
    for part in plan.patches(start, min(start + plan.rows_per_shard, plan.n_patches)):
        whole.update(digest(identity_of(plan.images[part.image]), len(part)))
        whole.update(np.ascontiguousarray(part.sample, "<i8").data)
        whole.update(np.ascontiguousarray(part.corner, "<i8").data)
    return f"contents-{whole.hexdigest()}.parquet"
