"""export: a patch store as what other trainers read, in parallel, whole objects only."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from patchloom.errors import ConfigError, ExistsError, FingerprintError, StoreError
from patchloom.location import Location
from patchloom.normalization import Normalization
from patchloom.randomness import digest_of
from patchloom.run.executing import execute
from patchloom.run.export_report import ExportReport
from patchloom.run.graph import Graph, Key
from patchloom.run.task_report import TaskReport
from patchloom.store.additions import n_shards_of, rows_of_shard
from patchloom.store.exports.contents import Contents, Held, Part
from patchloom.store.exports.format import Body, Format, Objects
from patchloom.store.exports.formats import format_of
from patchloom.store.exports.reading import ShardReader, read_part
from patchloom.store.exports.selection import Selection
from patchloom.store.manifest import manifest_bytes, part_names
from patchloom.store.patch_store import PatchStore, open_patches
from patchloom.store.schema import PARTIAL, ArraySpec, Codec, as_json, shard_of

__all__ = ["export"]

Ints = npt.NDArray[np.int64]

HEADER = "export.json"
"""The object that says what an export is; written first, and again when it is complete."""
TASKS = 8192
"""Tasks of an export, at most: each makes some parts, one after the other."""
_TOGETHER = 32
"""Objects of a part that are on their way at once."""
_CLASSES = 65_536
"""Values of a column that can tell sections apart, at most."""


def export(
    store: PatchStore | str | os.PathLike[str],
    *,
    to: str,
    output: str | os.PathLike[str],
    where: Mapping[str, Any] | None = None,
    arrays: Sequence[str] | None = None,
    normalize: str | Normalization | None = None,
    per: str = "image",
    percentiles: Sequence[float] | None = None,
    rows: int | None = None,
    partial: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    output_options: Mapping[str, Any] | None = None,
    progress: bool = True,
    **options: Any,
) -> ExportReport:
    """Write the patches of a store in a format that other tools read, on the Dask scheduler set.

    Rows are numbered anew, without gaps, in the order of the store, and made in parts; a part is
    made by one task, which reads whole shards, each once, and writes whole objects, the part's rows
    of the manifest last. Interrupt it at any point and run the same call again: only parts of which
    an object is missing are made again, and all ends byte for byte as if nothing had happened.

    Parameters
    ----------
    store
        A store, or its path or fsspec URL.
    to
        ``"zarr"``, ``"hdf5"``, ``"npy"`` (phenocoder's layout), ``"webdataset"``, ``"litdata"``,
        ``"mds"`` (MosaicML Streaming), ``"tiff"``, ``"png"``, or ``"classes"`` (one array a
        class); see docs/export.md.
    output
        Path or fsspec URL of a folder that is empty or does not exist, or holds this very export.
    where
        Values of columns of the manifest, one or several each: ``{"split": "train"}``. Rows that
        have one of them in each column are exported; by default all.
    arrays
        Some of those of the store: ``"images"``, ``"labels"``, ``"targets"``, ``"weights"``,
        ``"targets_NAME"``, ``"context_N"``; by default all, of ``"classes"`` the images.
    normalize
        A `Normalization`, or the kind of one from the store's statistics, as
        `PatchStore.normalization` takes it; images are then float32. None: pixels as they are
        stored. Nothing but images is ever scaled.
    per, percentiles
        As for `PatchStore.normalization`, where `normalize` is a kind.
    rows
        Patches of a part, by default as many as of a shard of the store. What one task holds
        decoded and encoded at a time grows with it.
    partial
        Whether to export what there is of a store that lacks patches; else it is refused.
    storage_options
        For fsspec, for a store that is given by its URL.
    output_options
        For fsspec, for the output; by default as for the store. Never shown or saved.
    progress
        Whether to show it.
    **options
        Of the format; see docs/export.md.

    Returns
    -------
    ExportReport

    Raises
    ------
    ConfigError
        If the format, an option, a column or a value is wrong, or no patch is meant.
    StoreError
        If the store cannot be read, or is not complete.
    ExistsError
        If something else stands at `output`; it is left untouched.
    WriteError
        If the output cannot be written.

    Examples
    --------
    >>> import numpy as np, patchloom, zarr
    >>> images = patchloom.open_images(np.arange(64, dtype="uint8").reshape(8, 8))
    >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [4, 4]})
    >>> _ = patchloom.materialize(plan, "memory://whole.zarr", progress=False)
    >>> report = patchloom.export(
    ...     "memory://whole.zarr", to="zarr", output="memory://plain.zarr", chunk=2, progress=False
    ... )
    >>> report.n_patches
    4
    >>> zarr.open_group("memory://plain.zarr", mode="r")["images"].chunks
    (2, 1, 4, 4)
    """
    begun = time.perf_counter()
    form = format_of(to, options)
    selection = Selection.of(where)
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise ConfigError(f"rows= is a number of patches from 1 on, got {rows!r}")
    if isinstance(store, PatchStore):
        opened = store
    else:
        opened = open_patches(store, storage_options=storage_options)
    source = opened.location
    target = Location.of(output, source.options if output_options is None else output_options)
    if target.url == source.url or f"{target.url}/".startswith(f"{source.url}/"):
        raise ConfigError(
            f"an export stands beside its store, got {target.shown!r} in {source.shown!r}; give "
            "another place"
        )
    if not opened.complete and not partial:
        raise StoreError(
            f"what is exported is complete, but {opened.url!r} is not; run the same materialize "
            "call again to finish it, or give partial=True for what is there"
        )
    scaling = _scaling(opened, normalize, per, percentiles)
    specs = _specs(opened, arrays, form)
    column = None if form.column is None else str(getattr(form, form.column))
    parts_there = _manifest_parts(opened)
    counting = _Counting(source, selection, column)
    values, counts = _counted(counting, opened, parts_there, progress=progress)
    n_patches = int(counts.sum())
    _check_columns(opened, parts_there)
    if not n_patches:
        why = " with ".join(filter(None, [str(selection), column and f"a value of {column!r}"]))
        raise ConfigError(
            f"an export holds a patch at least, but none of the {opened.attributes['n_patches']:,} "
            f"of {opened.url!r} is there{' where ' if why else ''}{why}; see the columns of "
            "store.manifest"
        )
    rows_per_part = form.rows(rows, int(opened.attributes["rows_per_shard"]), n_patches)
    contents = Contents(
        tuple(_held(spec, opened, scaling) for spec in specs.values()),
        Contents.cut(values, counts.sum(1).tolist(), rows_per_part),
        rows_per_part,
        tuple(opened.attributes["channels"]),
        opened.attributes,
        Location(target.shown).url.rsplit("/", 1)[-1],
    )
    form.check(contents)
    work = _Work(source, target, specs, form, contents, selection, column, scaling)
    header = _header(work, counts, opened)
    found = target.list()
    complete = _check_header(target, header, found)
    missing = _missing(work, found)
    opening = form.opening(contents)
    tasks: list[Any] = []
    if missing or not complete or not {*opening, *form.last} <= {*found}:
        target.remove([name for name in found if PARTIAL.search(name)])
        if found:
            target.abort_uploads()
        target.write(HEADER, as_json({**header, "complete": False}))
        for name, data in opening.items():
            target.write(name, data)
        n_rows = sum(b - a for a, b in (contents.rows_of(part)[1:] for part in missing))
        tasks = execute(
            _graph(work, parts_there, counts, missing),
            progress=progress,
            label=f"export to {to}",
            n_patches=n_rows,
        )
        for name, data in form.closing(contents, target, opened):
            target.write(name, data)
        target.write(HEADER, as_json({**header, "complete": True}))
    return ExportReport(
        url=target.shown,
        to=to,
        n_patches=n_patches,
        of_patches=int(opened.attributes["n_patches"]),
        n_parts=contents.n_parts,
        n_written=len(missing),
        n_tasks=len(tasks),
        bytes_read=sum(task.bytes_read for task in tasks),
        bytes_written=sum(task.bytes_written for task in tasks),
        seconds=time.perf_counter() - begun,
    )


def _scaling(
    store: PatchStore, normalize: Any, per: str, percentiles: Sequence[float] | None
) -> Normalization | None:
    """What images are scaled with."""
    if normalize is None or normalize == "none" or isinstance(normalize, Normalization):
        if percentiles is not None:
            raise ConfigError(
                f"percentiles= belongs to normalize='percentile', got {percentiles!r} without; "
                "give both or none"
            )
        if isinstance(normalize, Normalization) and "images" in store.applied:
            raise ConfigError(
                f"patches are normalised once, but the images of {store.url!r} were when they were "
                "written; export them without normalize="
            )
        if not isinstance(normalize, Normalization):
            return None
        _check_scaling(store, normalize)
        return normalize
    return store.normalization(normalize, per, percentiles=percentiles)


def _check_scaling(store: PatchStore, scaling: Normalization) -> None:
    """Refuse numbers of other channels, or of none of the images, before anything is written."""
    pixel = np.zeros((1, len(store.attributes["channels"]), 1, 1), np.uint8)
    refused = None
    for image in store.attributes["images"]:
        try:
            scaling.apply(pixel, image["id"])
        except ConfigError as error:
            # Of an image that no exported row is of, no numbers are needed.
            refused = error
        else:
            return
    if refused is not None:
        raise refused


def _specs(store: PatchStore, arrays: Sequence[str] | None, form: Format) -> dict[str, ArraySpec]:
    """The arrays that are exported."""
    told = store.attributes
    has = sorted(told["arrays"], key=lambda name: (name != "images", name))
    asked = [arrays] if isinstance(arrays, str) else arrays
    usual = has if form.arrays is None else [name for name in has if name in form.arrays]
    wanted = usual if asked is None else list(asked)
    if unknown := [name for name in wanted if name not in has]:
        raise ConfigError(f"arrays= are some of those of the store, {has}, got {unknown}")
    if not wanted:
        raise ConfigError(f"arrays= is at least one of {has}, got none")
    codec = Codec(told["job"]["codec"])
    made = {}
    for name in has:
        if name in wanted:
            array = store.array(name)
            made[name] = ArraySpec(
                name, array.shape[1:], array.dtype, told["axes"], told["rows_per_shard"], codec
            )
    return made


def _held(spec: ArraySpec, store: PatchStore, scaling: Normalization | None) -> Held:
    """An array as it is exported."""
    mine = scaling if spec.name == "images" else None
    dtype = spec.dtype if mine is None else np.dtype(np.float32)
    applied = mine or store.applied.get(spec.name)
    shares = applied is not None and applied.clip
    return Held(spec.name, spec.patch_shape, dtype, spec.axes, shares)


def _manifest_parts(store: PatchStore) -> dict[int, str]:
    """The objects of the store's manifest, by shard."""
    end = n_shards_of(store.attributes)
    names = [f"manifest/{name}" for name in part_names(store.location.list("manifest"))]
    found = {shard_of(name): name for name in names}
    parts = {
        shard: name for shard, name in sorted(found.items()) if shard is not None and shard < end
    }
    if store.complete and len(parts) < end:
        lost = min({*range(end)} - {*parts})
        raise StoreError(
            f"a complete store has a part of the manifest for each shard, but {store.url!r} lacks "
            f"that of shard {lost}; run the job of the store again, which makes it anew"
        )
    return parts


def _check_columns(store: PatchStore, parts: Mapping[int, str]) -> None:
    """Refuse metadata that are called like what an export adds."""
    for name in [*parts.values()][:1]:
        if taken := sorted({"file", "store_row"} & {*read_part(store.location, name).column_names}):
            raise ConfigError(
                f"an export adds the columns 'file' and 'store_row' to the manifest, but "
                f"{store.url!r} has metadata of the name {taken}; rename them in its job"
            )


# -- how many rows of which shard are meant ------------------------------------------------


@dataclass(frozen=True)
class _Counting:
    """Which rows are counted."""

    source: Location
    selection: Selection
    column: str | None
    """Whose values tell sections apart."""

    def one(self, name: str) -> tuple[dict[Any, int], frozenset[str]]:
        """Rows of a part of the manifest by value; the columns that it lacks."""
        table = read_part(self.source, name)
        lacks = self.selection.missing(table)
        table = self.selection.of_rows(table)
        if self.column is None:
            return {None: table.num_rows}, lacks
        if self.column not in table.column_names:
            return {}, lacks | {self.column}
        column = table[self.column].drop_null()
        if pa.types.is_floating(column.type):
            raise ConfigError(
                f"by= is a column of texts, whole numbers or flags, but {self.column!r} holds "
                f"{column.type}; choose another, or make classes in the job of the store"
            )
        found = pc.value_counts(column).to_pylist()
        return {one["values"]: one["counts"] for one in found}, lacks


def _counted(
    counting: _Counting, store: PatchStore, parts: Mapping[int, str], *, progress: bool
) -> tuple[list[Any], Ints]:
    """The sections' values, and the rows of each of them in each part: int64[sections, parts]."""
    names, told = list(parts.values()), store.attributes
    if store.complete and not counting.selection.columns and counting.column is None:
        bounds = np.array([rows_of_shard(told, shard) for shard in parts], np.int64).reshape(-1, 2)
        return [None], np.diff(bounds, axis=1).T
    step = max(1, -(-len(names) // TASKS))
    token = uuid.uuid4().hex
    name, key = f"patchloom-count-{token}", f"patchloom-selection-{token}"
    pieces = [tuple(names[k : k + step]) for k in range(0, len(names), step)]
    keys: list[Key] = [(name, k) for k in range(len(pieces))]

    def make(some: Sequence[Key]) -> dict[Any, Any]:
        return {one: (_count, key, _Names(pieces[int(one[1])]), []) for one in some}

    graph = Graph({}, keys, {key: counting}, make=make)
    found = execute(graph, progress=progress, label="count rows")
    each = [item for part in found for item in part]
    lacks = frozenset.intersection(*(lack for _, lack in each)) if each else frozenset()
    if lacks:
        known = sorted(read_part(store.location, names[0]).column_names)
        raise ConfigError(
            f"rows are chosen by columns of the manifest, which has {known}, got {sorted(lacks)}"
        )
    values = {value for count, _ in each for value in count}
    if len(values) > _CLASSES:
        raise ConfigError(
            f"by= is a column of at most {_CLASSES:,} classes, but {counting.column!r} has "
            f"{len(values):,} values"
        )
    ordered = sorted(values, key=lambda v: (str(type(v)), v)) if counting.column else [None]
    counts = np.array(
        [[count.get(value, 0) for count, _ in each] for value in ordered], np.int64
    ).reshape(len(ordered), len(each))
    return ordered, counts


@dataclass(frozen=True)
class _Names:
    """What a task counts: an opaque value, so that Dask does not look inside."""

    names: tuple[str, ...]


def _count(counting: _Counting, some: _Names, _: Any) -> list[Any]:
    return [counting.one(name) for name in some.names]


# -- what stands at the output --------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """What every task of an export needs."""

    source: Location
    target: Location
    specs: Mapping[str, ArraySpec]
    form: Format
    contents: Contents
    selection: Selection
    column: str | None
    scaling: Normalization | None

    def of_section(self, section: int) -> Selection:
        """The rows of a section."""
        if self.column is None:
            return self.selection
        return self.selection.with_value(self.column, self.contents.sections[section].value)


def _header(work: _Work, counts: Ints, store: PatchStore) -> dict[str, Any]:
    """What an export is: equal exports have equal headers, wherever they and the store are."""
    from patchloom import __version__

    contents, told = work.contents, store.attributes
    scaling = None if work.scaling is None else work.scaling.to_document()
    return {
        "patchloom_export": 1,
        "to": work.form.called,
        "options": work.form.model_dump(mode="json"),
        "where": work.selection.to_document(),
        "n_patches": contents.n_patches,
        "rows_per_part": contents.rows_per_part,
        "arrays": {
            held.name: {"patch_shape": list(held.patch_shape), "dtype": held.dtype.name}
            for held in contents.arrays
        },
        "axes": told["axes"],
        "channels": list(contents.channels),
        "sections": [[section.value, section.n_patches] for section in contents.sections],
        "normalization": scaling,
        "store": {
            "fingerprint": store.fingerprint,
            "normalize": told["job"]["normalize"],
            "rows": digest_of(counts).hex(),
        },
        "patchloom_version": __version__,
    }


def _check_header(target: Location, header: Mapping[str, Any], found: Mapping[str, int]) -> bool:
    """Whether this very export is complete there.

    Raises
    ------
    ExistsError
        If something else is there.
    """
    data = target.read(HEADER)
    if data is None:
        if others := [name for name in found if not PARTIAL.search(name)]:
            raise ExistsError(
                f"an export goes to a place of its own, but {target.shown!r} holds "
                f"{min(others)!r} and no {HEADER}; give another place, or empty this one; nothing "
                "was touched"
            )
        return False
    try:
        there = json.loads(data)
        complete = bool(there.pop("complete"))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ExistsError(
            f"{HEADER} of {target.shown!r} is not that of an export; give another place; nothing "
            "was touched"
        ) from None
    mine = json.loads(as_json(header))
    if differ := sorted(
        key for key in {*there, *mine} - {"patchloom_version"} if there.get(key) != mine.get(key)
    ):
        raise FingerprintError(
            f"an export is of one store and one set of options, but that at {target.shown!r} has "
            f"other {', '.join(differ)}; give another place, or empty this one; nothing was touched"
        )
    return complete


def _missing(work: _Work, found: Mapping[str, int]) -> list[int]:
    """The parts that are not there whole."""
    contents, form = work.contents, work.form
    there = np.zeros(contents.n_parts, np.int64)
    part_of = form.part_of(contents)
    for name, size in found.items():
        part = part_of(name) if size else None
        if part is not None and part < contents.n_parts:
            there[part] += 1
    return [
        part
        for part in range(contents.n_parts)
        if not found.get(_manifest_name(part)) or there[part] != form.n_objects(contents, part)
    ]


def _manifest_name(part: int) -> str:
    return f"manifest/{part:08d}.parquet"


# -- what a worker does -----------------------------------------------------------------


@dataclass(frozen=True)
class _Recipe:
    """Where the rows of a part come from."""

    number: int
    takes: tuple[tuple[str, int, int], ...]
    """Parts of the store's manifest: how many of the rows meant there to pass over, and to take."""


@dataclass(frozen=True)
class _Some:
    """What one task makes: an opaque value, so that Dask does not look inside."""

    recipes: tuple[_Recipe, ...]


def _graph(work: _Work, there: Mapping[int, str], counts: Ints, missing: Sequence[int]) -> Graph:
    """One task some parts that follow one another."""
    token = uuid.uuid4().hex
    name, work_key = f"patchloom-export-{token}", f"patchloom-work-{token}"
    names = list(there.values())
    ends = np.cumsum(counts, 1)
    step = max(1, -(-len(missing) // TASKS))
    pieces = [missing[k : k + step] for k in range(0, len(missing), step)]
    width = len(str(len(pieces)))
    keys: list[Key] = [(name, f"{k:0{width}}") for k in range(len(pieces))]

    def recipe(part: int) -> _Recipe:
        section, first, stop = work.contents.rows_of(part)
        end = ends[section]
        takes = []
        begins, ends_in = np.searchsorted(end, [first, stop - 1], side="right").tolist()
        for k in range(begins, ends_in + 1):
            begin = int(end[k] - counts[section, k])
            skip = max(0, first - begin)
            take = min(stop, int(end[k])) - begin - skip
            if take > 0:
                takes.append((names[k], skip, take))
        return _Recipe(part, tuple(takes))

    def make(some: Sequence[Key]) -> dict[Any, Any]:
        return {
            key: (_export, work_key, _Some(tuple(map(recipe, pieces[int(key[1])]))), [])
            for key in some
        }

    return Graph({}, keys, {work_key: work}, make=make)


def _export(work: _Work, some: _Some, _: Any) -> TaskReport:
    begun = time.perf_counter()
    reader = ShardReader(work.source, work.specs)
    n_rows = written = 0
    for recipe in some.recipes:
        part = _part(work, recipe, reader)
        n_objects = nbytes = 0
        for size in _written(work.target, work.form.objects(work.contents, part)):
            n_objects, nbytes = n_objects + 1, nbytes + size
        table = part.table
        for name, values in work.form.columns(work.contents, part).items():
            table = table.append_column(name, values)
        # Last: it commits the part.
        data = manifest_bytes(table, {"part": [n_objects, nbytes]})
        work.target.write(_manifest_name(part.number), data)
        n_rows, written = n_rows + len(part), written + nbytes + len(data)
    return TaskReport(
        n_patches=n_rows,
        n_shards=len(some.recipes),
        bytes_read=reader.nbytes,
        requests=reader.n_requests,
        bytes_written=written,
        seconds=time.perf_counter() - begun,
    )


def _part(work: _Work, recipe: _Recipe, reader: ShardReader) -> Part:
    """The rows of a part, and how to get their pixels."""
    section, first, stop = work.contents.rows_of(recipe.number)
    wanted = work.of_section(section)
    tables = [
        wanted.of_rows(read_part(work.source, name)).slice(skip, take)
        for name, skip, take in recipe.takes
    ]
    table = pa.concat_tables(tables, promote_options="permissive")
    if table.num_rows != stop - first:
        raise StoreError(
            f"a store stays as it is while it is exported, but {work.source.shown!r} has other "
            "rows than it had; export it again to another place"
        )
    rows = table["row"].to_numpy().astype(np.int64)
    ids = table["image_id"].to_numpy()
    at = table.column_names.index("row")
    table = table.set_column(at, "row", pa.array(np.arange(first, stop)))
    table = table.append_column("store_row", pa.array(rows))

    def pixels(array: str, start: int, stop: int) -> npt.NDArray[Any]:
        found = reader.read(array, rows[start:stop])
        if array != "images" or work.scaling is None:
            return found
        return work.scaling.apply(found, ids[start:stop])

    return Part(recipe.number, section, first, table, pixels)


def _written(target: Location, objects: Objects) -> Iterator[int]:
    """Write objects, some at once where that saves waiting; the size of each."""

    def write(item: tuple[str, Body]) -> int:
        name, body = item
        if isinstance(body, Path):
            size = body.stat().st_size
            target.upload(name, body)
            return size
        target.write(name, body)
        return len(body)

    # Closed: a format may hold a temporary folder.
    with ThreadPoolExecutor(8) as pool, closing(objects):
        together: list[tuple[str, Body]] = []
        for item in objects:
            if isinstance(item[1], Path):
                # The file is gone when the next one is asked for.
                yield write(item)
                continue
            together.append(item)
            if len(together) == _TOGETHER:
                yield from pool.map(write, together)
                together = []
        yield from pool.map(write, together)
