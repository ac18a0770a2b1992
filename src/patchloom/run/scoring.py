"""Surveys of contents: what each candidate of a plan shows, each chunk read once."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.errors import ConfigError, PlanError
from patchloom.image import Reads
from patchloom.location import Location
from patchloom.planning.cells import Cells
from patchloom.planning.identity import patch_ids
from patchloom.planning.incidence import Patches
from patchloom.planning.plans import Plan, identity_of
from patchloom.planning.runs import pack_units, shard_rows
from patchloom.randomness import digest
from patchloom.run.centers import check_labels
from patchloom.run.contents import Contents, Counted
from patchloom.run.executing import execute
from patchloom.run.graph import survey_graph
from patchloom.run.showing import Look
from patchloom.scores import Score, parse_scores

__all__ = ["Survey", "survey", "survey_contents"]

Ints = npt.NDArray[np.int64]
_PIECE = 2**16
"""Most patches of one piece of a survey."""
_PER_TASK = 64 * 2**20
"""Bytes of patches that one task looks at, about."""


@dataclass(frozen=True, eq=False)
class Survey:
    """What the patches of a plan show, in pieces of consecutive rows of one image each."""

    plan: Plan
    """The same patches in the order in which they were read."""
    order: npt.NDArray[np.int64]
    """Position of each of its cells in the plan that was surveyed."""
    reads: Reads
    """What was read for it; pieces that were there already cost nothing."""
    rows: Sequence[tuple[int, int]]
    """The rows [start, stop) of each piece."""
    _found: Mapping[int, bytes]
    _kept: tuple[Location, Mapping[int, str]] | None

    def piece(self, number: int) -> Counted:
        """What one piece shows.

        Raises
        ------
        PlanError
            If it was kept in a folder and is gone.
        """
        if self._kept is None:
            return Counted.from_bytes(self._found[number])
        folder, names = self._kept
        data = folder.read(names[number])
        if data is None:
            raise PlanError(
                f"the parts of a survey stay until the plan is made, but {names[number]!r} in "
                f"{folder.shown!r} is gone; make the same call again"
            )
        return Counted.from_bytes(data)

    def walk(self) -> Iterator[tuple[list[Patches], Counted]]:
        """The patches of each piece and what they show."""
        for number, (start, stop) in enumerate(self.rows):
            yield self.plan.patches(start, stop), self.piece(number)


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
        rows.append(plan.rows_along(begin + part.row - laid.cells.rows_of(part.cell)))
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
    rows = min(_PIECE, shard_rows(patch_bytes, cells.unit_sizes(units)))
    # Pieces begin anew in each image, so that they are the same whatever else is in the plan.
    order = _packed(cells, units, rows) if plan.is_aligned else np.arange(len(cells))
    laid = replace(
        plan,
        cells=cells.take(order),
        rows_per_shard=rows,
        order="spatial",
        window=None,
        window_rows=0,
        group_by=None,
    )
    firsts = laid.cells.rows_of(laid.cells.bounds).tolist()
    pieces = [
        (start, min(start + rows, stop))
        for first, stop in pairwise(firsts)
        for start in range(first, stop, rows)
    ]
    names, missing = dict[int, str](), [*range(len(pieces))]
    if folder is not None:
        names = {k: _name(laid, contents, *rows) for k, rows in enumerate(pieces)}
        there = folder.list()
        missing = [k for k in missing if not there.get(names[k])]
    look = Look(contents, folder, names)
    tasks = _tasks({k: pieces[k] for k in missing}, max(1, _PER_TASK // max(1, patch_bytes)))
    graph = survey_graph(laid, look, tasks, uuid.uuid4().hex)
    reads, found = Reads(), dict[int, bytes]()
    for some, counted in execute(graph, progress=progress, label="survey"):
        found |= some
        reads.chunks += counted.chunks
        reads.requests += counted.requests
        reads.nbytes += counted.nbytes
    return Survey(laid, order, reads, pieces, found, None if folder is None else (folder, names))


def _packed(cells: Cells, units: Ints | None, rows: int) -> Ints:
    """The cells of an aligned plan in an order in which pieces cut no unit, image by image."""
    begins = np.arange(len(cells)) if units is None else units
    order = [np.zeros(0, np.int64)]
    for image, (low, high) in enumerate(pairwise(cells.bounds.tolist())):
        inside = begins[(begins >= low) & (begins < high)] - low
        some = pack_units(cells.only(image), inside, rows)
        order.append(low + (np.arange(high - low) if some is None else some))
    return np.concatenate(order)


def _tasks(pieces: Mapping[int, tuple[int, int]], rows: int) -> list[dict[int, tuple[int, int]]]:
    """Consecutive pieces together, about so many rows a task."""
    found: list[dict[int, tuple[int, int]]] = []
    n = rows
    for number, (start, stop) in pieces.items():
        if n >= rows:
            found.append({})
            n = 0
        found[-1][number] = (start, stop)
        n += stop - start
    return found


def _name(plan: Plan, contents: Contents, start: int, stop: int) -> str:
    """A name fixed by all that a piece depends on, whatever else is in the plan."""
    whole = blake2b(digest_size=16)
    cut, asked = plan.cut, [score.to_document() for score in contents.scores]
    settings = (plan.edge, cut.size, cut.context, cut.padding, asked, contents.classes)
    whole.update(digest("contents", 1, *settings, contents.coverage))
    for part in plan.patches(start, stop):
        whole.update(digest(identity_of(plan.images[part.image]), len(part)))
        whole.update(np.ascontiguousarray(part.sample, "<i8").data)
        whole.update(np.ascontiguousarray(part.corner, "<i8").data)
    return f"contents-{whole.hexdigest()}.parquet"
