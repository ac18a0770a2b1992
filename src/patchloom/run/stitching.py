"""stitch: predictions of tiles put together into images, in parallel, whole objects only."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.blending import blend_of
from patchloom.errors import (
    BudgetError,
    ConfigError,
    ExistsError,
    FingerprintError,
    StoreError,
)
from patchloom.location import Location
from patchloom.planning.incidence import Cut
from patchloom.planning.plans import Plan
from patchloom.randomness import digest_of
from patchloom.run.answering import answers_of
from patchloom.run.appending import image_documents
from patchloom.run.coarsening import coarsen_graph, coarsening_bytes
from patchloom.run.executing import execute
from patchloom.run.mosaic_graph import mosaic_graph, regions_of
from patchloom.run.mosaics import Job, Mosaic, box_of
from patchloom.run.outputs import Wanted
from patchloom.run.predicting import LiveInputs
from patchloom.run.settings import Settings
from patchloom.run.stitch_report import StitchReport
from patchloom.run.surveying import channel_names
from patchloom.run.tilings import Listing, PlanTiling, cut_of_store
from patchloom.store.exports.names import safe_name
from patchloom.store.ome_target import OmeTarget
from patchloom.store.patch_store import PatchStore, open_patches
from patchloom.store.schema import PARTIAL, as_json

__all__ = ["stitch"]


def stitch(
    tiles: Plan | PatchStore | str | os.PathLike[str],
    predictions: Any,
    output: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    *,
    blend: str | None = None,
    load: Callable[[], Any] | None = None,
    batch: int = 16,
    dtype: npt.DTypeLike | None = None,
    channels: Sequence[str] | None = None,
    chunks: int | Sequence[int] | None = None,
    shards: int | Sequence[int] | None = None,
    codec: str | None = None,
    levels: int = 1,
    model: str | None = None,
    memory: int | str | None = None,
    partial: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    output_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> StitchReport:
    """Put predictions of tiles together into OME-Zarr images, on the Dask scheduler that is set.

    Each image is put together box by box; a box is whole chunks (or shards) of the output, which
    one task writes and no other. Interrupt it at any point and run the same call again: only what
    is missing is made, and the images end byte for byte as if nothing had happened.

    Parameters
    ----------
    tiles
        The tiles: a plan with the strategy ``"tiled"``, or a store of one, or its URL. With `blend`
        patches of any strategy will do.
    predictions
        One row a tile, [n, (c,) (z,) y, x], of a tile's extent or of that without its context: a
        `Predictions`, a Zarr array, an HDF5 dataset, a NumPy or Dask array, a memory map, anything
        with ``shape``, ``dtype`` and slices, or the URL of an array. Or a function that a worker
        calls with tiles [n, c, (z,) y, x] as they are read, and which gives their predictions
        [n, c', (z,) y, x]. It must be one that can be pickled, where workers are other processes.
    output
        Path or URL of the OME-Zarr image; of several images that of a folder of them, in which each
        is called by its id. A mapping from image ids to URLs stitches these images alone.
    blend
        None crops tiles as they say, and every pixel is one of a prediction. ``"hann"`` or
        ``"gaussian"`` takes the mean of all tiles that show a pixel, weighted by `window`.
    load
        Loads the model: then the function is called with tiles and model, the model is loaded once
        a process, and the process makes one batch at a time.
    batch
        Tiles that the function is given at a time, at most.
    dtype
        Of the images; by default of the predictions. Whole numbers are rounded and clipped.
    channels
        Their names; by default the source's, if there are as many.
    chunks
        Extent of a chunk on each spatial axis, or on all; by default the source's, if that makes
        chunks of 64 KiB to 64 MiB, else 512 (2-D) or 64 (3-D).
    shards
        Extent of a stored object that holds several chunks, in whole chunks; None: each chunk is an
        object.
    codec
        As for `materialize`.
    levels
        Resolutions of each image. A further one has means of two pixels along each axis whose
        pixels are not 1.4 times as long as the shortest already: of classes there is no mean.
    model
        What made the predictions, in words: recorded, and other words are refused on a resume.
    memory
        Bytes that one task may hold, as a number or text like ``"2 GiB"``; by default the setting
        ``patchloom.memory`` of Dask. What a function needs is not known, and comes on top.
    partial
        Whether to stitch what there is of a store or of `Predictions` that lack some; else they are
        refused. Pixels over which no tile lies are 0.
    storage_options
        For fsspec, for a store or predictions that are given by their URLs.
    output_options
        For fsspec, for the output; by default `storage_options`. Never shown or saved.
    progress
        Whether to show it.

    Returns
    -------
    StitchReport

    Raises
    ------
    ConfigError
        If an argument is none of these, or predictions do not have a tile's shape.
    PlanError, StoreError
        If the tiles or predictions cannot be stitched, or are not complete.
    FingerprintError
        If predictions are of other tiles, or another stitch stands at the output.
    ExistsError
        If something else stands there; it is left untouched.
    BudgetError
        If one task needs more than `memory`.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> pixels = np.arange(300, dtype="uint16").reshape(15, 20)
    >>> how = {"name": "tiled", "patch_size": [8, 8], "overlaps": [4, 4]}
    >>> plan = patchloom.plan(patchloom.open_images(pixels), how, edge="pad")
    >>> report = patchloom.stitch(plan, lambda tiles: tiles, "memory://same.zarr", progress=False)
    >>> [image] = patchloom.open_images("memory://same.zarr")
    >>> bool((image.data.values == pixels).all()), report.n_empty
    (True, 0)
    """
    begun = time.perf_counter()
    how = blend_of(blend)
    allowed = _bytes_of(memory)
    if model is not None and not isinstance(model, str):
        raise ConfigError(f"model= says in words what made the predictions, got {model!r}")
    told = _Told.of(tiles, storage_options)
    if told.store is not None and not told.store.complete and not partial:
        raise StoreError(
            f"a store that is stitched is complete, but {told.store.url!r} is not; run its "
            "materialize call again, or give partial=True for what is there"
        )
    answers, gone, rows_per_shard = answers_of(
        told.tiles,
        told.cut,
        predictions,
        load=load,
        batch=batch,
        options=storage_options,
        partial=partial,
    )
    wanted = Wanted.of(
        answers,
        how,
        dtype,
        told.names if channels is None else channels,
        named=channels is not None,
        chunks=chunks,
        shards=shards,
        codec=codec,
        levels=levels,
    )
    options = told.options if output_options is None else dict(output_options)
    mosaics, projected = [], 0
    for index, location in _places(told, output, options).items():
        target = wanted.target(told.images[index], location)
        box, needed = box_of(target, answers, told.cut, how, allowed)
        projected = max(projected, needed, coarsening_bytes(target))
        mosaics.append(Mosaic(index, target, box))
    if projected > allowed:
        raise BudgetError(
            f"one task must fit into memory={allowed:,} bytes, but to make one object of the "
            f"output, of {max(m.target.object_bytes for m in mosaics):,} bytes, it holds "
            f"{projected:,}; give smaller chunks= or shards=, a smaller batch=, or more memory="
        )
    job = Job(tuple(mosaics), answers, told.cut, how, gone=gone, rows_per_shard=rows_per_shard)
    listing = None
    if told.plan is not None:
        by_rank = isinstance(answers.inputs, LiveInputs)
        tiling = PlanTiling(told.plan, how is not None, by_rank)
        tiling.check()
        job = replace(job, tiling=tiling)
    else:
        assert told.store is not None
        listing = Listing.of(told.store, whole=how is not None)
    header = {
        "stitch": 1,
        "tiles": told.fingerprint,
        "blend": how,
        "predictions": {
            "shape": list(answers.shape),
            "dtype": answers.dtype.name,
            "by": "array" if answers.ask is None else "function",
        },
        "model": model,
        "levels": wanted.levels,
        "lacks": _lacks(gone, told.store, listing),
    }
    headers = [{**header, "image": told.images[m.image]["id"]} for m in mosaics]
    with ThreadPoolExecutor(8) as pool:
        stands = [*pool.map(_claimed, mosaics, headers)]
    lacks = [*zip(mosaics, headers, stands, strict=True)]
    for mosaic, own, stand in lacks:
        if not stand.complete:
            _open(mosaic.target, own, stand)
    regions = [
        region
        for number, (mosaic, stand) in enumerate(zip(mosaics, stands, strict=True))
        for region in regions_of(number, mosaic, stand.parts[0], listing)
    ]
    done = execute(mosaic_graph(job, regions), progress=progress, label="stitch")
    for level in range(1, wanted.levels):
        ladders = [(m.target.levels, stand) for m, stand in zip(mosaics, stands, strict=True)]
        graph = coarsen_graph(
            [(rungs[level - 1], rungs[level], stand.parts[level]) for rungs, stand in ladders]
        )
        done += execute(graph, progress=progress, label=f"level {level}")
    for mosaic, own, stand in lacks:
        if not stand.complete:
            _write_group(mosaic.target, {**own, "complete": True})
    return StitchReport.of(
        done,
        urls=tuple(mosaic.target.location.shown for mosaic in mosaics),
        n_tiles=_n_tiles(told, listing, mosaics),
        n_parts=sum(level.n_parts for mosaic in mosaics for level in mosaic.target.levels),
        seconds=time.perf_counter() - begun,
        projected_memory=projected,
    )


@dataclass(frozen=True)
class _Told:
    """What is known of the tiles."""

    images: Sequence[Mapping[str, Any]]
    """As a store tells them."""
    tiles: Plan | PatchStore
    cut: Cut
    fingerprint: str
    names: tuple[str, ...]
    """Of the source's channels; empty if unknown."""
    options: Mapping[str, Any]

    @property
    def plan(self) -> Plan | None:
        """The tiles, if they are those of a plan."""
        return self.tiles if isinstance(self.tiles, Plan) else None

    @property
    def store(self) -> PatchStore | None:
        """The tiles, if they are those of a store."""
        return self.tiles if isinstance(self.tiles, PatchStore) else None

    @classmethod
    def of(cls, tiles: Any, options: Mapping[str, Any] | None) -> _Told:
        if isinstance(tiles, Plan):
            return cls(
                image_documents(tiles.images),
                tiles,
                tiles.cut,
                tiles.fingerprint,
                _named(channel_names(tiles.images)),
                dict(options or {}),
            )
        if isinstance(tiles, str | os.PathLike):
            tiles = open_patches(tiles, storage_options=options)
        if not isinstance(tiles, PatchStore):
            raise ConfigError(
                "tiles are those of a Plan, or of a PatchStore or its URL, got "
                f"{type(tiles).__name__}"
            )
        told = tiles.attributes
        return cls(
            told["images"],
            tiles,
            cut_of_store(tiles),
            tiles.fingerprint,
            _named(told["channels"]),
            tiles.location.options,
        )


def _named(names: Sequence[str]) -> tuple[str, ...]:
    """Names of channels; none of what are only their numbers."""
    return () if [*names] == [str(k) for k in range(len(names))] else tuple(names)


def _bytes_of(memory: int | str | None) -> int:
    from dask.utils import parse_bytes

    if memory is None:
        return Settings.now().memory
    try:
        found = int(parse_bytes(memory)) if not isinstance(memory, bool) else 0
    except (ValueError, TypeError, AttributeError):
        found = 0
    if found < 1:
        raise ConfigError(f"memory= is a number of bytes or text like '2 GiB', got {memory!r}")
    return found


# -- what is made ---------------------------------------------------------------------------


def _places(told: _Told, output: Any, options: Mapping[str, Any]) -> dict[int, Location]:
    """Where each image goes, by its position."""
    place = {image["id"]: k for k, image in enumerate(told.images)}
    if isinstance(output, Mapping):
        if unknown := sorted({*map(str, output)} - {*place}):
            raise ConfigError(
                f"output= maps ids of images to URLs, got {unknown[:6]}; the images are "
                f"{sorted(place)[:6]}"
            )
        found = {place[name]: Location.of(url, options) for name, url in output.items()}
    elif not isinstance(output, str | os.PathLike) or not os.fspath(output):
        raise ConfigError(f"output= is a path or URL, or one for each image id, got {output!r}")
    elif len(told.images) == 1:
        found = {0: Location.of(output, options)}
    else:
        folder = Location.of(output, options)
        found = {k: folder / f"{safe_name(name)}.zarr" for name, k in place.items()}
    _check_apart([*found.values()], told.store)
    return dict(sorted(found.items()))


def _check_apart(outputs: Sequence[Location], store: PatchStore | None) -> None:
    """Refuse outputs that would share objects, with one another or with the store of the tiles."""
    places = sorted((f"{output.place}/", output.shown) for output in outputs)
    # What lies in a place follows it at once.
    shared = any(inner.startswith(outer) for (outer, _), (inner, _) in pairwise(places))
    if not places or shared:
        raise ConfigError(
            "each image has an output of its own, none inside another, got "
            f"{[shown for _, shown in places][:6]}"
        )
    if store is not None and any(p.startswith(f"{store.location.place}/") for p, _ in places):
        raise ConfigError(f"images stand beside the store of their tiles, got {store.url!r}")


def _lacks(
    gone: npt.NDArray[np.int64] | None, store: PatchStore | None, listing: Listing | None
) -> str | None:
    """What tells apart images of which other tiles are missing; None if none is."""
    there = None if store is None or store.complete or listing is None else listing.row
    if gone is None and there is None:
        return None
    none = np.zeros(0, np.int64)
    return digest_of(
        np.concatenate(
            [gone if gone is not None else none, [-1], there if there is not None else none]
        )
    ).hex()


def _n_tiles(told: _Told, listing: Listing | None, mosaics: Sequence[Mosaic]) -> int:
    images = [mosaic.image for mosaic in mosaics]
    if listing is not None:
        return int(np.isin(listing.image, images).sum())
    assert told.plan is not None
    return sum(told.plan.n_patches_of(image) for image in images)


# -- what stands at the output ------------------------------------------------------------


@dataclass(frozen=True)
class _Stand:
    """What of an image is there."""

    parts: tuple[npt.NDArray[np.bool_], ...]
    """Which parts are, of each level."""
    complete: bool
    fresh: bool
    """Whether nothing is."""
    left: tuple[str, ...] = ()
    """What killed writers left."""


def _claimed(mosaic: Mosaic, header: Mapping[str, Any]) -> _Stand:
    """What of this very image is there.

    Raises
    ------
    ExistsError
        If something else is.
    """
    target = mosaic.target
    location, found = target.location, target.location.list()
    left = tuple(name for name in found if PARTIAL.search(name))
    data = location.read("zarr.json")
    parts = tuple(np.zeros(level.n_parts, np.bool_) for level in target.levels)
    if data is None:
        if others := sorted({*found} - {*left}):
            raise ExistsError(
                f"an image goes to a place of its own, but {location.shown!r} holds {others[:3]}; "
                "give another place, or empty this one; nothing was touched"
            )
        return _Stand(parts, False, True, left)
    try:
        there = dict(json.loads(data)["attributes"]["patchloom"])
        complete = bool(there.pop("complete"))
        _ = there["stitch"]
    except (ValueError, KeyError, TypeError):
        raise ExistsError(
            f"an image goes to a place of its own, but something that stitch has not made stands "
            f"at {location.shown!r}; give another place; nothing was touched"
        ) from None
    mine = json.loads(as_json(header))
    differs = sorted(k for k in {*there, *mine} if there.get(k) != mine.get(k))
    documents = location.read_all([level.array_name for level in target.levels])
    wanted = [as_json(level.array_document()) for level in target.levels]
    if any(a is not None and a != b for a, b in zip(documents, wanted, strict=True)):
        differs.append("chunks, shape, type or codec")
    if differs:
        raise FingerprintError(
            f"an image is stitched of one set of tiles in one way, but that at {location.shown!r} "
            f"has other {', '.join(differs)}; give another place, or empty this one; nothing was "
            "touched"
        )
    if None not in documents:
        parts = tuple(level.parts_there(found) for level in target.levels)
    return _Stand(parts, complete and all(map(np.all, parts)), False, left)


def _open(target: OmeTarget, header: Mapping[str, Any], stand: _Stand) -> None:
    """Write metadata, and put away what killed writers left."""
    target.location.remove(stand.left)
    if not stand.fresh:
        target.location.abort_uploads()
    _write_group(target, {**header, "complete": False})
    for level in target.levels:
        target.location.write(level.array_name, as_json(level.array_document()))


def _write_group(target: OmeTarget, told: Mapping[str, Any]) -> None:
    target.location.write("zarr.json", as_json(target.group_document(told)))
