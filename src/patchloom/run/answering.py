"""Answering: what was given as predictions, as what workers read or ask."""

from __future__ import annotations

import mmap
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchloom.arrays.rows import Read, Rows, rows_of, taken
from patchloom.axes import Axes
from patchloom.errors import AxesError, ConfigError, FingerprintError, SourceError, StoreError
from patchloom.image import Image, Ints
from patchloom.location import Location
from patchloom.planning.incidence import Cut
from patchloom.planning.plans import Plan
from patchloom.run.executing import execute
from patchloom.run.graph import Graph, Key
from patchloom.run.predicting import Answers, Asking, Inputs, LiveInputs, RowInputs
from patchloom.sources.arrays import ArraySource
from patchloom.sources.handles import image_of
from patchloom.sources.inside import split_inside
from patchloom.sources.opening import open_images
from patchloom.store.patch_store import PatchStore
from patchloom.store.predictions import Predictions

__all__ = ["answers_of"]


def answers_of(
    tiles: Plan | PatchStore,
    cut: Cut,
    given: Any,
    *,
    load: Callable[[], Any] | None,
    batch: int,
    options: Mapping[str, Any] | None,
    partial: bool,
) -> tuple[Answers, Ints | None, int]:
    """Predictions as workers have them; shards of them that are missing, and tiles of a shard.

    Parameters
    ----------
    tiles, cut
        What they are of, and what was cut around each corner.
    given, load, batch, partial
        As for `stitch`.
    options
        For fsspec, of a URL.

    Raises
    ------
    ConfigError
        If they do not fit the tiles.
    FingerprintError
        If they are of other tiles.
    StoreError
        If some are missing, unless `partial`.
    """
    if isinstance(batch, bool) or not isinstance(batch, int | np.integer) or batch < 1:
        raise ConfigError(f"batch= is a number of tiles from 1 on, got {batch!r}")
    batch = int(batch)
    if callable(given) and not hasattr(given, "shape"):
        inputs: Inputs
        if isinstance(tiles, Plan):
            inputs = LiveInputs(tiles, batch)
        else:
            inputs = RowInputs(rows_of(tiles.images))
        asking = Asking(given, load, uuid.uuid4().hex, batch)
        shape, dtype = _tried(asking, inputs)
        _check_shape(shape, cut)
        return Answers(inputs, shape, dtype, asking), None, 1
    if load is not None:
        raise ConfigError("load= belongs to a function that is given as predictions, got an array")
    gone = None
    if isinstance(given, str | os.PathLike):
        given = _at(given, options) or given
    per_shard = 1
    if isinstance(given, Predictions):
        _check_tiles(given, tiles)
        if not partial:
            given.check_whole("partial=True")
        lost = given.missing() if partial else []
        per_shard = given.rows_per_shard
        gone = np.array([rows.start // per_shard for rows in lost], np.int64) if lost else None
        given = given.to_zarr(partial=True)
    rows, lazy = _rows(given, len(cut.size), options)
    flat = len(rows.shape) == 1 + len(cut.size)
    read = RowInputs(rows, flat, lazy)
    if len(rows.shape) not in (1 + len(cut.size), 2 + len(cut.size)):
        raise ConfigError(
            f"predictions are [tile, (c,) space], of {len(cut.size)} spatial axes, got shape "
            f"{rows.shape}"
        )
    n_tiles = tiles.n_patches if isinstance(tiles, Plan) else len(tiles)
    if rows.shape[0] != n_tiles:
        raise ConfigError(
            f"predictions have a row for each of {n_tiles:,} tiles, got {rows.shape[0]:,} rows; "
            "give those of these tiles, all of them, in the order of their rows"
        )
    _check_shape(read.shape, cut)
    return Answers(read, read.shape, read.dtype), gone, per_shard


def _check_tiles(given: Predictions, tiles: Plan | PatchStore) -> None:
    if given.fingerprint != tiles.fingerprint:
        raise FingerprintError(
            f"predictions are stitched by the tiles that they are of, but those at {given.url!r} "
            "are of another store or plan; give that one"
        )


def _check_shape(shape: Sequence[int], cut: Cut) -> None:
    sizes = [cut.size] if not any(cut.context) else [cut.size, cut.proper]
    if len(shape) != 1 + len(cut.size) or tuple(shape[1:]) not in sizes or shape[0] < 1:
        shown = " or ".join(f"[c, {', '.join(map(str, size))}]" for size in sizes)
        raise ConfigError(
            f"a prediction has the extent of its tile, {shown}, got {list(shape)}; predict whole "
            "tiles, or scale predictions to them"
        )


def _at(url: str | os.PathLike[str], options: Mapping[str, Any] | None) -> Predictions | None:
    """The predictions that stand at a URL; None if it is something else."""
    head, inside = split_inside(os.fspath(url))
    place = Location.of(head, options) / inside if inside else Location.of(head, options)
    if place.read("zarr.json") is None:
        return None
    try:
        return Predictions.open(place.url, storage_options=options)
    except StoreError:
        return None


def _rows(given: Any, ndim: int, options: Mapping[str, Any] | None) -> tuple[Rows, Image | None]:
    """What reads rows on a worker, and the Dask array behind them if one is."""
    if isinstance(given, str | os.PathLike):
        return rows_of(_opened(os.fspath(given), ndim, options)), None
    given = getattr(given, "data", given) if hasattr(given, "dims") else given
    if hasattr(given, "dask") and hasattr(given, "rechunk"):
        n = max(1, max(given.chunks[0], default=1))
        axes = Axes("s" + ("c" if given.ndim == 2 + ndim else "") + "zyx"[3 - ndim :])
        if len(axes) != given.ndim:
            raise ConfigError(f"predictions are [tile, (c,) space], got shape {given.shape}")
        chunks = (n, *given.shape[1:])
        image = image_of(
            name="predictions",
            uri="",
            axes=axes,
            shape=given.shape,
            dtype=np.dtype(given.dtype).newbyteorder("="),
            chunks=chunks,
            source=ArraySource(given, chunks),
        )
        return rows_of(image), image
    if isinstance(given, np.memmap) and isinstance(given.base, mmap.mmap):
        # Only a whole map says where in its file it begins; what is written to a copy is in none.
        if given.mode != "c" and given.filename and given.flags.c_contiguous:
            return _Mapped(str(given.filename), given.shape, given.dtype.str, given.offset), None
        return rows_of(given), None
    name = getattr(given, "name", None)
    file = getattr(given, "file", None)
    where = getattr(file, "filename", None)
    on_disk = getattr(file, "driver", None) not in ("core", "fileobj")
    if isinstance(name, str) and isinstance(where, str) and on_disk:
        # An HDF5 dataset stays with its process: workers open the file themselves.
        return rows_of(_opened(f"{where}::{name.lstrip('/')}", ndim, options)), None
    return rows_of(given), None


def _opened(url: str, ndim: int, options: Mapping[str, Any] | None) -> Image:
    """The array of rows at a URL."""
    space, shown = "zyx"[3 - ndim :], Location.of(url).shown
    for axes in ("sc" + space, "s" + space):
        try:
            found = open_images(url, axes=axes, storage_options=options)
        except AxesError:
            continue
        if len(found) != 1:
            raise SourceError(
                f"predictions are one array, but {shown!r} holds {len(found)}; name it: "
                "URL::path/inside"
            )
        return found[0]
    raise ConfigError(
        f"predictions are [tile, (c,) space], of {ndim} spatial axes, but the array at {shown!r} "
        "has other dimensions"
    )


@dataclass(frozen=True)
class _Mapped:
    """A memory map that each process makes anew."""

    filename: str
    shape: tuple[int, ...]
    stored: str
    offset: int
    step: int = 1
    unit: int = 1

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.stored).newbyteorder("=")

    def open(self) -> Read:
        made = np.memmap(self.filename, self.stored, "r", self.offset, self.shape)
        return lambda rows, rest: np.asarray(taken(made, (rows, *rest)), self.dtype)


def _tried(asking: Asking, inputs: Inputs) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of a prediction, by one of a blank tile, where the others are made."""
    name = f"patchloom-try-{asking.token}"
    key: Key = (name, 0)
    shape, dtype = inputs.shape, inputs.dtype

    def make(some: Sequence[Key]) -> dict[Any, Any]:
        return {one: (_try, _Trial(asking, shape, dtype), []) for one in some}

    [found] = execute(Graph({}, [key], make=make), progress=False, label="try the model")
    return found[0], np.dtype(found[1])


@dataclass(frozen=True)
class _Trial:
    """A blank tile for a function: an opaque value, so that Dask does not look inside."""

    asking: Asking
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def _try(trial: _Trial, _: Any) -> tuple[tuple[int, ...], str]:
    made = trial.asking(np.zeros((1, *trial.shape), trial.dtype))
    if made.ndim < 2 or made.shape[0] != 1:
        raise ConfigError(
            f"predict gives one prediction a tile, [n, c, space], got shape {made.shape} for one "
            f"tile of {trial.shape}"
        )
    return made.shape[1:], made.dtype.newbyteorder("=").str
