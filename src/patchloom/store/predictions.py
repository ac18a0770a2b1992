"""Predictions: what a model says of each tile, written by any process in whole shards."""

from __future__ import annotations

import json
import math
import operator
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import zarr

from patchloom.errors import (
    ConfigError,
    ExistsError,
    FingerprintError,
    SourceMissingError,
    StoreError,
)
from patchloom.location import Location
from patchloom.store.patch_store import PatchStore
from patchloom.store.schema import CODECS, PARTIAL, ArraySpec, Codec, as_json, shard_name
from patchloom.store.shards import ShardBuilder

__all__ = ["Predictions"]

Pixels = npt.NDArray[Any]
_SHARD = 8 * 2**20
"""Bytes of a shard, about, before compression."""
_OBJECT = re.compile(r"c/(\d+)(?:/0)+")
_NAME = "predictions"
FORMAT = 1
"""Version of the attributes."""


class Predictions:
    """One Zarr array (tile, c, [z], y, x), a row a tile, in shards of whole rows.

    Each shard is one object, written by one call of `put` from any process of any machine. What is
    there already is found by a listing: the same program run again goes on where it was stopped.
    Each row is a chunk, so that a tile can be read without the others of its shard.

    Parameters
    ----------
    url
        Path or fsspec URL of the array. It is made if it is missing; else it must be this very one.
    tiles
        What the predictions are of: a `PatchStore` or a `Plan`. A row has the same number in both.
    n_channels
        Channels of a prediction.
    dtype
        Of a prediction.
    size
        Extent of a prediction on each spatial axis: by default that of a tile; or that without its
        context, of a model that gives no prediction of it.
    rows
        Tiles of a shard; by default as many as take about 8 MiB.
    codec
        As for `materialize`.
    storage_options
        For fsspec.

    Raises
    ------
    ConfigError
        If an argument is none of these.
    FingerprintError
        If other predictions, or another Zarr array, stand at `url`.
    ExistsError
        If something else does; it is left untouched.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> images = patchloom.open_images(np.arange(64, dtype="uint8").reshape(8, 8))
    >>> how = {"name": "tiled", "patch_size": [4, 4], "overlaps": [2, 2]}
    >>> plan = patchloom.plan(images, how)
    >>> _ = patchloom.materialize(plan, "memory://tiles.zarr", progress=False)
    >>> store = patchloom.open_patches("memory://tiles.zarr")
    >>> predictions = patchloom.Predictions("memory://said.zarr", store, rows=4)
    >>> for rows in predictions.missing():
    ...     predictions.put(rows, store.images[rows.start : rows.stop] * 2.0)
    >>> predictions.missing(), predictions.array.shape
    ([], (9, 1, 4, 4))
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        tiles: Any,
        n_channels: int = 1,
        dtype: npt.DTypeLike = "float32",
        *,
        size: Sequence[int] | None = None,
        rows: int | None = None,
        codec: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        location = Location.of(url, storage_options)
        n, sizes, fingerprint = _told(tiles)
        kind = _kind(dtype)
        shape = (_count("n_channels", n_channels), *_size(size, sizes))
        nbytes = math.prod(shape) * kind.itemsize
        usual = max(1, min(n, _SHARD // nbytes))
        spec = ArraySpec(
            _NAME,
            shape,
            kind,
            "c" + "zyx"[4 - len(shape) :],
            usual if rows is None else _count("rows", rows),
            Codec(codec or CODECS[0]),
        )
        document = _document(spec, n, fingerprint)
        found = _standing(location)
        if found is None:
            location.write("zarr.json", as_json(document))
        elif found != as_json(document):
            raise FingerprintError(
                f"predictions are of one set of tiles, in one shape, but at {location.shown!r} "
                f"{_differing(found, document)}; give another URL, or the same arguments as "
                "before; nothing was touched"
            )
        self._set(location, document)

    def _set(self, location: Location, document: Mapping[str, Any]) -> None:
        self._location, self._document = location, dict(document)
        shape = [*document["shape"]]
        self.shape: tuple[int, ...] = tuple(shape)
        """Tiles, channels, space."""
        self.dtype: np.dtype[Any] = np.dtype(document["data_type"])
        """Of the pixels."""
        self.rows_per_shard: int = document["chunk_grid"]["configuration"]["chunk_shape"][0]
        """Tiles that are written together."""
        told = document["attributes"]["patchloom"]
        self.fingerprint: str = told["fingerprint"]
        """Of the store or plan of the tiles."""
        self._spec = ArraySpec(
            _NAME,
            self.shape[1:],
            self.dtype,
            "c" + "zyx"[5 - len(shape) :],
            self.rows_per_shard,
            Codec(told["codec"]),
        )

    @classmethod
    def open(
        cls, url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None
    ) -> Self:
        """Those that stand at a URL.

        Raises
        ------
        SourceMissingError
            If nothing is there.
        StoreError
            If it is something else.
        """
        location = Location.of(url, storage_options)
        data = location.read("zarr.json")
        if data is None:
            raise SourceMissingError(
                f"predictions are made by patchloom.Predictions, but none are at "
                f"{location.shown!r}; check the path"
            )
        made = object.__new__(cls)
        try:
            document = json.loads(data)
            if document["attributes"]["patchloom"]["predictions"] > FORMAT:
                raise ValueError("a newer version")
            made._set(location, document)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise StoreError(
                f"predictions are what patchloom.Predictions wrote, but what is at "
                f"{location.shown!r} is not ({error}); open an array of another writer with zarr"
            ) from None
        return made

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def url(self) -> str:
        """Where they are, without credentials."""
        return self._location.shown

    @property
    def location(self) -> Location:
        """Where they are, and how to reach it."""
        return self._location

    @property
    def n_missing(self) -> int:
        """Tiles whose predictions are not there. One listing."""
        return sum(map(len, self.missing()))

    @property
    def array(self) -> zarr.Array[Any]:
        """All of them as a Zarr array: see `to_zarr`.

        Raises
        ------
        StoreError
            If some are missing.
        """
        return self.to_zarr()

    def to_zarr(self, *, partial: bool = False) -> zarr.Array[Any]:
        """The predictions as a Zarr array (tile, c, [z], y, x), to be read.

        Parameters
        ----------
        partial
            Whether to show what there is of predictions some of which are missing: these are 0,
            and `missing` tells their rows. Else they are refused.

        Raises
        ------
        StoreError
            If some are missing, unless `partial`.
        """
        if not partial:
            self.check_whole("to_zarr(partial=True)")
        from fsspec.implementations.local import LocalFileSystem
        from zarr.storage import FsspecStore, LocalStore

        fs, path = self._location.open()
        if isinstance(fs, LocalFileSystem):
            return zarr.open_array(LocalStore(path, read_only=True), mode="r", zarr_format=3)
        options = dict(self._location.options)
        store = FsspecStore.from_url(self._location.url, storage_options=options, read_only=True)
        return zarr.open_array(store, mode="r", zarr_format=3)

    def check_whole(self, otherwise: str) -> None:
        """Refuse predictions some of which are missing.

        Parameters
        ----------
        otherwise
            What takes those that are there.

        Raises
        ------
        StoreError
            If some are.
        """
        if lost := self.missing():
            raise StoreError(
                f"predictions of all tiles are taken together, but {sum(map(len, lost)):,} of "
                f"{len(self):,} are missing at {self.url!r}, from row {lost[0].start} on; put "
                f"those of missing(), or take what is there: {otherwise}"
            )

    def missing(self, rank: int = 0, world: int = 1) -> list[range]:
        """The rows of the shards that are not there, shard by shard. One listing.

        Parameters
        ----------
        rank, world
            Which one this process is, and of how many: each shard is one's. Of a process that does
            all there is, 0 of 1.

        Raises
        ------
        ConfigError
            If there is no such process.
        """
        if not 0 <= operator.index(rank) < operator.index(world):
            raise ConfigError(f"rank= is in range(world), got rank={rank} and world={world}")
        there = {
            int(name[1])
            for path, size in self._location.list().items()
            if size and (name := _OBJECT.fullmatch(path)) is not None
        }
        n = self.rows_per_shard
        shards = range(rank, -(-len(self) // n), world)
        return [range(k * n, min(k * n + n, len(self))) for k in shards if k not in there]

    def put(self, rows: range, predictions: npt.ArrayLike) -> None:
        """Write one whole shard.

        Parameters
        ----------
        rows
            Of one shard, as `missing` gives them.
        predictions
            [len(rows), c, (z,) y, x], of this dtype, of one all of whose values it holds, or floats
            for floats, which are rounded.

        Raises
        ------
        ConfigError
            If they are not.
        WriteError
            If the target refuses the object.
        """
        n = self.rows_per_shard
        number, rest = divmod(rows.start, n)
        if rest or rows != range(rows.start, min(rows.start + n, len(self))) or not len(rows):
            raise ConfigError(
                f"a shard is written whole, {n} rows (the last one those that are left), got "
                f"{rows}; take the rows of missing()"
            )
        pixels = np.asarray(predictions)
        if pixels.shape != (len(rows), *self.shape[1:]):
            raise ConfigError(
                f"the predictions of these rows are of shape {(len(rows), *self.shape[1:])}, got "
                f"{pixels.shape}"
            )
        floats = pixels.dtype.kind == self.dtype.kind == "f"
        if not floats and not np.can_cast(pixels.dtype, self.dtype, "safe"):
            raise ConfigError(
                f"predictions are {self.dtype}, as was said when the array was made, got "
                f"{pixels.dtype}; convert them, or make the array with dtype="
            )
        builder = ShardBuilder(self._spec, len(rows))
        builder.put(np.arange(len(rows)), pixels.astype(self.dtype, copy=False))
        self._location.write(shard_name(self._spec, number)[len(_NAME) + 1 :], *builder.finish())

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape[1:]))
        return f"<Predictions {self.url!r} {len(self):,} tiles of {shape} {self.dtype}>"


def _told(tiles: Any) -> tuple[int, list[tuple[int, ...]], str]:
    """Of a store or a plan: rows, extents of a tile with and without context, fingerprint."""
    if isinstance(tiles, PatchStore):
        shape = tuple(int(n) for n in tiles.attributes["patch_shape"][1:])
        context = tiles.attributes["job"]["patching"].get("context") or [0] * len(shape)
        proper = tuple(n - 2 * int(c) for n, c in zip(shape, context, strict=True))
        return len(tiles), [shape, proper], tiles.fingerprint
    try:
        # A plan, of which a store knows nothing.
        cut = tiles.cut
        return int(tiles.n_patches), [cut.size, cut.proper], str(tiles.fingerprint)
    except AttributeError:
        raise ConfigError(
            f"predictions are of the tiles of a PatchStore or a Plan, got {type(tiles).__name__}; "
            "open the store with open_patches"
        ) from None


def _standing(location: Location) -> bytes | None:
    """The metadata of the array that stands somewhere; None if nothing does."""
    found = location.read("zarr.json")
    if found is None and (others := [n for n in location.list() if not PARTIAL.search(n)]):
        found = location.read("zarr.json")  # another process may have made it meanwhile
        if found is None:
            raise ExistsError(
                f"predictions go to a place of their own, but {location.shown!r} holds "
                f"{sorted(others)[:3]}; give another place, or empty this one; nothing was touched"
            )
    return found


def _kind(dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        kind = np.dtype(dtype).newbyteorder("=")
    except TypeError:
        kind = np.dtype(object)
    if kind.kind not in "biuf" or kind.itemsize > 8:
        raise ConfigError(f"a prediction holds numbers or flags, got dtype={dtype!r}")
    return kind


def _size(given: Any, sizes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The extent of a prediction, of those of a tile."""
    for size in sizes:
        if given is None or np.array_equal(given, size):
            return size
    shown = " or ".join(str([*size]) for size in dict.fromkeys(sizes))
    raise ConfigError(f"a prediction has the extent of its tile, {shown}, got size={given!r}")


def _count(name: str, given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < 1:
        raise ConfigError(f"{name}= is a whole number from 1 on, got {given!r}")
    return int(given)


def _document(spec: ArraySpec, n: int, fingerprint: str) -> dict[str, Any]:
    told = {"predictions": FORMAT, "fingerprint": fingerprint, "codec": spec.codec.name}
    names = ["tile", *spec.axes]
    return {**spec.document(n), "dimension_names": names, "attributes": {"patchloom": told}}


def _differing(found: bytes, wanted: Mapping[str, Any]) -> str:
    try:
        stands = json.loads(found)
        told = stands["attributes"]["patchloom"]
        asked = wanted["attributes"]["patchloom"]
        if told["fingerprint"] != asked["fingerprint"]:
            return "stand those of other tiles"
        names = ("shape", "data_type", "chunk_grid", "codecs")
        return f"stand some with another {[n for n in names if stands[n] != wanted[n]]}"
    except (ValueError, KeyError, TypeError):
        return "stands something else"
