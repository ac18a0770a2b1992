"""Surveys of contents: what each candidate of a plan shows, each chunk read once."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchloom.errors import ConfigError, PlanError
from patchloom.image import Image, Reads
from patchloom.location import Location
from patchloom.planning.cells import Cells
from patchloom.planning.identity import patch_ids
from patchloom.planning.image_identity import identity_of
from patchloom.planning.incidence import Patches
from patchloom.planning.plans import Plan
from patchloom.planning.runs import pack_units, shard_rows
from patchloom.randomness import digest
from patchloom.run.centers import check_labels
from patchloom.run.contents import Contents, Counted
from patchloom.run.executing import execute
from patchloom.run.graph import survey_graph
from patchloom.run.parts import listed
from patchloom.run.showing import Look
from patchloom.run.whereabouts import whereabouts
from patchloom.scores import Score, parse_scores

__all__ = ["Survey", "survey", "survey_contents"]

Ints = npt.NDArray[np.int64]
_PIECE = 2**16
"""Most patches of one piece of a survey."""
_PER_TASK = 2
"""Whole pieces that one task looks at, about."""
_LEAST = 1 / 16
"""What a piece is worth at least, however few its patches are."""
_DECODED = 2**22
"""Patches of which all that was found is held while a plan is made; more are decoded anew."""
_TOGETHER = 16
"""Parts that are asked for at the same time."""


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
    _decoded: dict[int, Counted] = field(default_factory=dict, repr=False)

    def piece(self, number: int) -> Counted:
        """What one piece shows.

        Raises
        ------
        PlanError
            If it was kept in a folder and is gone.
        """
        if number in self._decoded:
            return self._decoded[number]
        data = self._found.get(number)
        if data is None and self._kept is not None:
            data = self._kept[0].read(self._kept[1][number])
        found = None if data is None else Counted.from_bytes(data)
        if found is None:
            assert self._kept is not None
            raise PlanError(
                f"the parts of a survey stay until the plan is made, but "
                f"{self._kept[1][number]!r} in {self._kept[0].shown!r} is gone or was changed; "
                "make the same call again"
            )
        if self.plan.n_patches <= _DECODED:
            self._decoded[number] = found
        return found

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
        A folder that keeps what is found of images that do not lie in memory. The same call
        again, also after an interruption or with images added, reads only what is missing.
        Images are known by their place and metadata: empty it if pixels change where they lie.
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
    tables = [_nothing(plan, contents)]
    for parts, counted in found.walk():
        tables.append(pa.table({**_where(plan, found, parts), **counted.scores()}))
    return pa.concat_tables(tables).sort_by("row")


def _nothing(plan: Plan, contents: Contents) -> pa.Table:
    """The columns of a survey without a row."""
    text, whole = pa.string(), pa.int64()
    kinds = {"patch_id": text, "image_id": text, "sample": whole}
    kinds |= {f"start_{a}": whole for a in plan.spatial}
    kinds |= {"split": text, "row": whole}
    names = [score.column for score in contents.scores] + ["coverage"] * contents.coverage
    return pa.schema([*kinds.items(), *((name, pa.float64()) for name in names)]).empty_table()


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
    steps = [_rows_of_piece(plan, index, rows, patch_bytes) for index in range(len(plan.images))]
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
        for (first, stop), rows in zip(pairwise(firsts), steps, strict=True)
        for start in range(first, stop, rows)
    ]
    names, missing = dict[int, str](), [*range(len(pieces))]
    if folder is not None:
        names = _names(laid, contents, pieces)
        there = listed(folder)
        whole = _whole(folder, {k: name for k, name in names.items() if there.get(name)})
        missing = [k for k in missing if k not in whole]
    look = Look(contents, folder, names)
    image_of = laid.cells.image_of(laid.cells.positions_of([start for start, _ in pieces]))
    shares = [(b - a) / steps[i] for (a, b), i in zip(pieces, image_of.tolist(), strict=True)]
    tasks = _tasks({k: pieces[k] for k in missing}, shares)
    graph = survey_graph(laid, look, tasks, uuid.uuid4().hex)
    reads, found = Reads(), dict[int, bytes]()
    for some, counted in execute(graph, progress=progress, label="survey"):
        found |= some
        reads += counted
    return Survey(laid, order, reads, pieces, found, None if folder is None else (folder, names))


def _packed(cells: Cells, units: Ints | None, rows: int) -> Ints:
    """The cells of an aligned plan in an order in which pieces cut no unit, image by image."""
    begins = np.arange(len(cells)) if units is None else units
    order = [np.zeros(0, np.int64)]
    for image, (low, high) in enumerate(pairwise(cells.bounds.tolist())):
        inside = begins[slice(*np.searchsorted(begins, [low, high]).tolist())] - low
        some = pack_units(cells.only(image), inside, rows)
        order.append(low + (np.arange(high - low) if some is None else some))
    return np.concatenate(order)


def _rows_of_piece(plan: Plan, index: int, rows: int, patch_bytes: int) -> int:
    """Rows of an image's pieces: so many that about as much is read as a shard holds."""
    layout = plan.images[index].layout
    low, high = plan.cells.span(index)
    n = int(np.diff(plan.cells.rows_of([low, high]))[0])
    block = math.prod(layout.block_shape()) * plan.images[index].dtype.itemsize
    # Of sparse candidates blocks are more than patches.
    dear = max(1.0, (high - low) * block / max(1, n * patch_bytes))
    return max(1, int(rows / dear))


def _tasks(
    pieces: Mapping[int, tuple[int, int]], shares: Sequence[float]
) -> list[dict[int, tuple[int, int]]]:
    """Consecutive pieces together; a task is worth about two whole ones."""
    found: list[dict[int, tuple[int, int]]] = []
    worth = float(_PER_TASK)
    for number, rows in pieces.items():
        if worth >= _PER_TASK:
            found.append({})
            worth = 0.0
        found[-1][number] = rows
        worth += max(shares[number], _LEAST)
    return found


def _whole(folder: Location, names: Mapping[int, str]) -> set[int]:
    """Which pieces are there and not damaged."""
    with ThreadPoolExecutor(_TOGETHER) as pool:
        read = pool.map(lambda name: folder.read(name), names.values())
        return {
            number
            for number, data in zip(names, read, strict=True)
            if data is not None and Counted.from_bytes(data) is not None
        }


def _names(plan: Plan, contents: Contents, pieces: Sequence[tuple[int, int]]) -> dict[int, str]:
    """The names of all pieces that can be kept: what lies in memory has no place to know it by."""
    found: dict[int, str] = {}
    places: dict[int, str | None] = {}
    for number, (start, stop) in enumerate(pieces):
        parts = plan.patches(start, stop)
        index = parts[0].image
        if index not in places:
            places[index] = _place(plan.images[index], contents)
        place = places[index]
        if place is not None:
            found[number] = _name(plan, contents, place, parts)
    return found


def _place(image: Image, contents: Contents) -> str | None:
    """What an image is, and where the arrays lie that are looked at; None if in memory."""
    arrays = {name: array for name, array in image.cut_arrays.items() if name in contents.arrays}
    if contents.coverage and image.mask is not None:
        arrays["mask"] = image.mask.image
    if not all(array.source.addressable for array in arrays.values()):
        return None
    documents = {
        name: [array.source.to_document(), whereabouts(array.source)]
        for name, array in arrays.items()
    }
    return json.dumps([identity_of(image), documents], sort_keys=True)


def _name(plan: Plan, contents: Contents, place: str, parts: Sequence[Patches]) -> str:
    """A name fixed by all that a piece depends on, whatever else is in the plan."""
    whole = blake2b(digest_size=16)
    cut, asked = plan.cut, [score.to_document() for score in contents.scores]
    settings = (plan.edge, cut.size, cut.context, cut.padding, asked, contents.classes)
    whole.update(digest("contents", 1, *settings, contents.coverage, place))
    for part in parts:
        whole.update(digest(len(part)))
        whole.update(np.ascontiguousarray(part.sample, "<i8").data)
        whole.update(np.ascontiguousarray(part.corner, "<i8").data)
    return f"contents-{whole.hexdigest()}.parquet"
