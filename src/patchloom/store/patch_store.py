"""PatchStore: a handle on a store of training patches, without Dask and without the plan."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import zarr
from fsspec.implementations.local import LocalFileSystem

from patchloom.errors import ConfigError, SourceMissingError, StoreError
from patchloom.load.patches import Patches
from patchloom.location import Location
from patchloom.normalization import Normalization, kind_of
from patchloom.randomness import digest
from patchloom.store.additions import additions_of, n_rows_of, n_shards_of
from patchloom.store.checking import specs_of
from patchloom.store.manifest import part_names, read_manifest, read_skipped
from patchloom.store.mixing import mixing
from patchloom.store.normalized import pooled, recorded
from patchloom.store.patch_reader import PatchReader
from patchloom.store.schema import APPENDED, SKIPPED, manifest_name, shard_of
from patchloom.store.statistics_view import from_document
from patchloom.store.summed import store_summaries
from patchloom.summaries.asked import check_percentiles, quantiles_of
from patchloom.summaries.table import Cell, Statistics, Subject
from patchloom.table import html_table

if TYPE_CHECKING:
    import xarray

    from patchloom.arrays.array_view import ArrayView

__all__ = ["PatchStore", "open_patches", "read_attributes"]

_NAMED = 3
"""Images that a notebook names."""

Ints = npt.NDArray[np.int64]


def open_patches(
    url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None
) -> PatchStore:
    """Open a patch store for reading.

    Parameters
    ----------
    url
        Path or fsspec URL that `materialize` wrote to.
    storage_options
        For fsspec.

    Returns
    -------
    PatchStore

    Raises
    ------
    SourceMissingError
        If nothing is there.
    StoreError
        If it is no patch store, or one of a newer format.
    """
    location = Location.of(url, storage_options)
    attributes = read_attributes(location)
    if attributes is None:
        raise SourceMissingError(
            f"a patch store is made by materialize, but there is none at {location.shown!r}; "
            "check the path and the credentials"
        )
    return PatchStore(location, attributes)


def read_attributes(location: Location) -> dict[str, Any] | None:
    """The ``patchloom`` attributes of a store; None if nothing is there.

    Raises
    ------
    StoreError
        If a Zarr group or array that is no patch store is there, or one of a newer format.
    """
    try:
        data = location.read("zarr.json")
    except Exception as error:  # each file system has errors of its own
        raise SourceMissingError(
            f"a store must be readable, but {location.shown!r} is not: "
            f"{location.describe(error)}; check the path and the credentials"
        ) from error
    if data is None:
        return None
    try:
        attributes = json.loads(data)["attributes"]["patchloom"]
        version = int(attributes["format"])
    except (ValueError, KeyError, TypeError):
        raise StoreError(
            f"a patch store has patchloom attributes, but the Zarr node at {location.shown!r} has "
            "none; give another URL"
        ) from None
    if version > APPENDED:
        raise StoreError(
            f"this version reads stores up to format {APPENDED}, got format {version} at "
            f"{location.shown!r}; upgrade patchloom"
        )
    found: dict[str, Any] = attributes
    return found


class PatchStore(Patches):
    """Training patches: pixels, one manifest row each, and statistics.

    ``len(store)`` is the number of rows, ``store[i]`` the pixels of row i, channels first. Rows
    between what was appended and what was there before may be reserved: they hold no patch, show
    the fill value, and ``manifest["row"]`` does not list them.

    It shows the store as it was when it was opened: what is appended meanwhile, it does not.
    """

    def __init__(self, location: Location, attributes: Mapping[str, Any]) -> None:
        self._location = location
        self.attributes = dict(attributes)

    @property
    def url(self) -> str:
        """Where it is, without credentials."""
        return self._location.shown

    @property
    def location(self) -> Location:
        """Where it is, and how to reach it."""
        return self._location

    @property
    def complete(self) -> bool:
        """Whether every shard was written."""
        return bool(self.attributes["complete"])

    @property
    def fingerprint(self) -> str:
        """Of the plan that it was made from; of all its additions, where images were added."""
        return str(self.attributes["fingerprint"])

    def __len__(self) -> int:
        return n_rows_of(self.attributes)

    def __reduce__(self) -> tuple[Any, ...]:
        # Without arrays and manifest: workers open what they need, with credentials of the vault.
        # Of a store whose job goes on, they see the parts that were seen here.
        seen = {} if self.complete else {k: v for k, v in vars(self).items() if k == "_parts"}
        return type(self), (self._location, self.attributes), seen or None

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        if isinstance(index, int | np.integer) and not -len(self) <= index < len(self):
            raise IndexError(f"a row is in range({len(self)}), got {index}")
        return np.asarray(self.images[index])

    @cached_property
    def images(self) -> zarr.Array[Any]:
        """The patches as a Zarr array (patch, c, [z], y, x)."""
        return self._array("images")

    @cached_property
    def labels(self) -> zarr.Array[Any] | None:
        """The label patches, if the plan had labels."""
        return self._array("labels") if "labels" in self.attributes["arrays"] else None

    @cached_property
    def targets(self) -> zarr.Array[Any] | None:
        """The target patches, if the plan had targets."""
        return self._array("targets") if "targets" in self.attributes["arrays"] else None

    @property
    def percentiles(self) -> tuple[tuple[float, ...], str]:
        """Those of its statistics."""
        job = self.attributes["job"]
        return tuple(map(float, job["percentiles"])), str(job.get("method", "linear"))

    @property
    def arrays_held(self) -> tuple[str, ...]:
        """Names of the arrays, ``"images"`` first."""
        names = [str(name) for name in self.attributes["arrays"]]
        return tuple(sorted(names, key=lambda name: (name != "images", name)))

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of the images."""
        return tuple(map(str, self.attributes["channels"]))

    def extents(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of one patch of each array, from metadata."""
        arrays = {name: self.array(name) for name in self.arrays_held}
        return {name: (array.shape[1:], array.dtype) for name, array in arrays.items()}

    @property
    def n_patches(self) -> int:
        """Patches that are written: rows of the manifest."""
        if not self.complete:
            return int(self.manifest.num_rows)
        return sum(addition.n_patches for addition in additions_of(self.attributes))

    def _identified(self) -> str:
        # Of a store whose job goes on, by the parts that were seen.
        parts = [] if self.complete else self._parts
        return digest("store", self.fingerprint, self.n_patches, *parts).hex()

    @cached_property
    def blocks(self) -> Ints:
        """Bounds of shards in positions of the manifest: int64[n_shards + 1]."""
        step = int(self.attributes["rows_per_shard"])
        if not self.complete:
            rows = self.manifest["row"].to_numpy()
            bounds = np.arange(1, n_shards_of(self.attributes)) * step
            return np.array([0, *np.searchsorted(rows, bounds), len(rows)], np.int64)
        sizes = [
            min(step, a.n_patches - k * step)
            for a in additions_of(self.attributes)
            for k in range(a.n_shards)
        ]
        return np.cumsum([0, *sizes], dtype=np.int64)

    def rows_at(self, positions: npt.ArrayLike) -> Ints:
        """Rows of the store at some positions of the manifest: int64[n].

        Parameters
        ----------
        positions
            int64[n] in [0, n_patches).
        """
        index = np.asarray(positions, np.int64)
        if not self.complete:
            found: Ints = self.manifest["row"].to_numpy()[index]
            return found
        added = additions_of(self.attributes)
        first = np.cumsum([0, *(a.n_patches for a in added[:-1])])
        place = np.searchsorted(first, index, side="right") - 1
        rows: Ints = index - first[place] + np.array([a.first_row for a in added])[place]
        return rows

    def reader(self, memory: int | None = None, *, by_block: bool = False) -> PatchReader:
        """What reads patches by position, for one process: see `Patches.reader`."""
        document = json.loads(self._location.read("zarr.json") or b"{}")
        arrays = document["consolidated_metadata"]["metadata"]
        specs = specs_of(self.attributes, arrays)
        return PatchReader(self._location, specs, self.rows_at, memory, by_block=by_block)

    @cached_property
    def manifest(self) -> pa.Table:
        """One row a committed patch, in row order: a pyarrow.Table.

        Columns ``patch_id`` (128 bits in hex), ``image_id``, ``sample``, ``start_z`` (if there
        is z), ``start_y``, ``start_x`` (pixels of the level that was read), ``coverage`` (share
        of the patch under the mask), ``split``, ``row``, and the images' metadata columns.

        Raises
        ------
        StoreError
            If the store has lost a part of it.
        """
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(self._location.read, self._parts))
        found = [part for part in parts if part is not None]
        table = read_manifest(found) if found else _empty(str(self.attributes["axes"]))
        if len(found) < len(parts) or (self.complete and table.num_rows != self.n_patches):
            raise StoreError(
                f"a manifest stays whole while it is read, but parts of that of {self.url!r} are "
                "gone; open the store anew, and if it is complete, find what it lacks with "
                "`patchloom verify STORE --repair`, and run its job again"
            )
        return table

    @cached_property
    def column_names(self) -> Sequence[str]:
        """Of the manifest: what its first parts tell, or all that are there."""
        if not self.complete or "manifest" in self.__dict__:
            return list(self.manifest.column_names)
        first = [manifest_name(a.first_shard) for a in additions_of(self.attributes) if a.n_patches]
        found = [part for part in map(self._location.read, first) if part is not None]
        whole = found and len(found) == len(first)
        return list((read_manifest(found) if whole else self.manifest).column_names)

    @cached_property
    def _parts(self) -> list[str]:
        """The objects of the manifest that are there."""
        # What lies beyond the store's own shards is being appended.
        end = n_shards_of(self.attributes)
        names = [f"manifest/{name}" for name in part_names(self._location.list("manifest"))]
        return [name for name in names if (shard_of(name) or 0) < end]

    @cached_property
    def skipped(self) -> pa.Table:
        """The rows that are missing because something could not be read: a pyarrow.Table.

        Columns ``row``, ``patch_id``, ``image_id``, ``sample``, ``start_z`` (if there is z),
        ``start_y``, ``start_x`` and ``reason``, as the last run that ended has left it. The rows
        stay reserved: arrays show their fill value there, and the manifest does not list them.
        """
        axes = str(self.attributes["axes"]).replace("c", "")
        table = read_skipped(self._location.read(SKIPPED), axes)
        # A later run may have filled some of them, and was then interrupted; others may be of
        # images that are being appended.
        row, written = table["row"].to_numpy(), self.manifest["row"].to_numpy()
        return table.filter(pa.array((row < n_rows_of(self.attributes)) & ~np.isin(row, written)))

    @cached_property
    def statistics(self) -> xarray.Dataset:
        """Statistics over (image, channel, quantile); see `patchloom.statistics`.

        Of a store that lacks rows, they are over the pixels that could be read.

        Raises
        ------
        StoreError
            If no run has ended yet.
        """
        self._check_ended()
        told = self.attributes
        return from_document(told["statistics"], told["patchloom_version"], told["images"])

    def summaries(self) -> Statistics:
        """What `statistics` are made from, as a value that adds up with that of other stores.

        With more than numbers in it: other percentiles, all images or groups of them together.
        Reads one small object a shard, or one where a pass of its own has counted.

        Raises
        ------
        StoreError
            If no run has ended yet, an object cannot be read, or an older version kept none.

        Examples
        --------
        >>> import numpy as np, patchloom
        >>> found = []
        >>> for name, value in (("a", 1), ("b", 3)):
        ...     images = patchloom.open_images(np.full((64, 64), value, "uint8"), ids=[name])
        ...     plan = patchloom.plan(images, {"name": "sequential", "patch_size": [32, 32]})
        ...     _ = patchloom.materialize(plan, f"memory://{name}.zarr", progress=False)
        ...     found.append(patchloom.open_patches(f"memory://{name}.zarr").summaries())
        >>> both = found[0] + found[1]
        >>> both.dataset((50,), by=None)["mean"].item()
        2.0
        """
        told = self.attributes
        self._check_ended()
        names = ("id", "uri", "level", "metadata")
        return Statistics(
            {Cell(*key): s for key, s in store_summaries(self._location, told).items()},
            tuple(Subject(**{k: i[k] for k in names if k in i}) for i in told["images"]),
            told["channels"],
            over=told["job"]["over"],
            each=told["job"].get("each", "once"),
            versions=(told["patchloom_version"],),
        )

    def _check_ended(self) -> None:
        if self.attributes.get("statistics") is None:
            raise StoreError(
                f"statistics are written last, but {self.url!r} is not complete; run the same "
                "materialize call again to finish it"
            )

    def mixing(self, batch: int = 64) -> dict[str, Any]:
        """How fair a sample a batch of consecutive rows is, from the manifest.

        Of each of ``image``, ``region`` (the image, the sample, and the half of each axis that the
        centre of a patch lies in), ``class`` (where the manifest has that column; what is of none
        counts as one) and all of them ``joint``: the mean ``entropy`` of batches in bits, what
        batches of ``independent`` draws and those of a random permutation of all rows
        (``permuted``) have on average, and ``relative``, entropy over permuted.

        Parameters
        ----------
        batch
            Consecutive rows of a batch.

        Returns
        -------
        dict
            Besides ``images_per_shard`` and so on (distinct ones, on average), and ``n_batches``
            measured ``of_batches``. Of a store of more than 262,144 patches the manifest parts of
            up to 64 stretches of shards are read, which then stand for all: then permuted is
            independent, and an order that is not mixed looks better than it is.

        Raises
        ------
        StoreError
            If the store is not complete.

        Examples
        --------
        >>> import numpy as np, patchloom
        >>> images = patchloom.open_images([np.zeros((96, 96), "uint8")] * 2, ids=["a", "b"])
        >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [32, 32]})
        >>> _ = patchloom.materialize(plan, "memory://mixing.zarr", progress=False)
        >>> patchloom.open_patches("memory://mixing.zarr").mixing(batch=9)["image"]["relative"]
        0.0
        """
        found: dict[str, Any] = dict(mixing(self._location, self.attributes, batch))
        return found

    def pad_mask(self, rows: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which pixels of some patches lie outside their image: bool[n, (z,) y, x].

        Parameters
        ----------
        rows
            int[n] rows of the store.

        Raises
        ------
        IndexError
            If a row is not written.

        Examples
        --------
        >>> import numpy as np, patchloom
        >>> images = patchloom.open_images(np.ones((3, 4), "uint8"))
        >>> config = {"name": "sequential", "patch_size": [2, 3]}
        >>> plan = patchloom.plan(images, config, edge="pad")
        >>> _ = patchloom.materialize(plan, "memory://padded.zarr", progress=False)
        >>> patchloom.open_patches("memory://padded.zarr").pad_mask([3])[0].astype(int)
        array([[0, 1, 1],
               [1, 1, 1]])
        """
        index, place = self._places(rows)
        axes = [a for a in str(self.attributes["axes"]) if a != "c"]
        table = self.manifest.take(pa.array(place))
        ids, place = np.unique(table["image_id"].to_numpy(), return_inverse=True)
        found = {image["id"]: image for image in self.attributes["images"]}
        out: npt.NDArray[np.bool_] = np.zeros(
            (len(index), *self.attributes["patch_shape"][1:]), np.bool_
        )
        for k, axis in enumerate(axes):
            extents = [found[i]["shape"][found[i]["axes"].index(axis)] for i in ids.tolist()]
            extent = np.array(extents, np.int64)[place]
            pixel = table[f"start_{axis}"].to_numpy()[:, None] + np.arange(out.shape[k + 1])
            beyond = (pixel < 0) | (pixel >= extent[:, None])
            others = tuple(j + 1 for j in range(len(axes)) if j != k)
            out |= np.expand_dims(beyond, others)
        return out

    @cached_property
    def applied(self) -> dict[str, Normalization]:
        """What the patches of an array (``images``, ``targets``) were normalised with when they
        were written; nothing of an array that holds its source's pixels.

        Its `invert` gives grey levels of the source back.
        """
        return recorded(self.attributes)

    def normalization(
        self, kind: str, per: str = "image", *, percentiles: Sequence[float] | None = None
    ) -> Normalization:
        """What the images can be normalised with when they are read, from the store's statistics.

        Parameters
        ----------
        kind
            ``"percentile"``, ``"mean-std"``, ``"min-max"`` or ``"none"``.
        per
            What has numbers of its own: ``"image"`` (each channel of each image), ``"channel"``
            (each channel of all images together), ``"all"`` (everything together), or a metadata
            column (each channel of each group of images).
        percentiles
            The low and the high end of ``"percentile"``; by default the least and the greatest
            of the store's.

        Returns
        -------
        Normalization
            From attributes that are read already, if it is per image and the percentiles are the
            store's; else from the summaries of all shards.

        Raises
        ------
        ConfigError
            If there is no such kind or column, or statistics are not finite.
        StoreError
            If the images are normalised already, or no run has ended yet.

        Examples
        --------
        >>> import numpy as np, patchloom
        >>> pixels = [np.full((32, 32), 4, "uint8"), np.full((32, 32), 8, "uint8")]
        >>> images = patchloom.open_images(pixels, ids=["a", "b"])
        >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [32, 32]})
        >>> _ = patchloom.materialize(plan, "memory://levels.zarr", progress=False)
        >>> store = patchloom.open_patches("memory://levels.zarr")
        >>> scaling = store.normalization("min-max", per="channel")
        >>> store.read([1, 0], normalize=scaling)[:, 0, 0, 0].tolist()
        [1.0, 0.0]
        """
        kind = kind_of(kind)
        if "images" in self.applied or self.attributes["job"]["normalize"] is not None:
            raise StoreError(
                f"images are normalised once, but those of {self.url!r} were when they were "
                "written; read them as they are, or undo it with store.applied['images'].invert"
            )
        table = self.statistics
        told, method = self.percentiles
        q = told if percentiles is None else percentiles
        ends = quantiles_of(check_percentiles(q))
        if per == "image" and {*ends} <= {*table["quantile"].values.tolist()}:
            return Normalization.from_statistics(table.sel(quantile=ends), kind)
        return pooled(self.summaries(), kind, per, q, method, self._by_image(per))

    def image_ids(self, rows: npt.ArrayLike | None = None) -> npt.NDArray[Any]:
        """The image of each of some patches, or of all that are written: str[n].

        Parameters
        ----------
        rows
            int[n] rows of the store.

        Raises
        ------
        IndexError
            If a row is not written.
        """
        column = self.manifest["image_id"]
        if rows is not None:
            column = column.take(pa.array(self._places(rows)[1]))
        return np.asarray(column.to_numpy(), str)

    def read(
        self,
        rows: npt.ArrayLike,
        array: str = "images",
        *,
        normalize: Normalization | None = None,
    ) -> npt.NDArray[Any]:
        """Some patches, in the order asked for: [n, c, (z,) y, x].

        Parameters
        ----------
        rows
            int[n] rows of the store, in any order, also more than once.
        array
            One of ``attributes["arrays"]``: ``"images"``, ``"labels"``, ``"targets"``,
            ``"weights"``, ``"targets_NAME"`` of a further target, or ``"context_N"`` of a coarser
            level.
        normalize
            From `normalization` or of your own; each patch is scaled by the numbers of its image,
            to float32. Of targets, too; labels are never scaled. None: as they are stored.

        Raises
        ------
        IndexError
            If a row is not written.
        ConfigError
            If there is no such array, or it is not to be normalised.
        """
        self._check_array(array)
        if normalize is not None and not isinstance(normalize, Normalization):
            raise ConfigError(
                f"normalize= takes a Normalization, got {normalize!r}; make one, once, with "
                "store.normalization(kind, per=)"
            )
        never = {"labels": "labels are classes", "weights": "weights are no grey levels"}
        if normalize is not None and (array in never or array in self.applied):
            why = never.get(array, "they were when they were written")
            raise ConfigError(
                f"patches are normalised once, and labels never, got normalize= for {array!r}, but "
                f"{why}; read them without"
            )
        index, place = self._places(rows)
        found = self.array(array)
        if not len(index):
            return np.zeros((0, *found.shape[1:]), found.dtype if normalize is None else np.float32)
        pixels: npt.NDArray[Any] = np.asarray(found.oindex[index])
        if normalize is None:
            return pixels
        ids = self.manifest["image_id"].take(pa.array(place)).to_numpy()
        return normalize.apply(pixels, ids)

    def view(self, array: str = "images", *, split: str | None = None) -> ArrayView:
        """The patches that are written as a NumPy-like view, which reads what it is indexed with.

        Parameters
        ----------
        array
            One of ``attributes["arrays"]``, as for `read`.
        split
            Only those of one split. Row i of the view is row i of the manifest, or of those rows
            of it that are of this split.

        Raises
        ------
        ConfigError
            If there is no such array or split.

        Examples
        --------
        >>> import numpy as np, patchloom
        >>> images = patchloom.open_images(np.arange(36, dtype="uint8").reshape(6, 6))
        >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [3, 3]})
        >>> _ = patchloom.materialize(plan, "memory://viewed.zarr", progress=False)
        >>> view = patchloom.open_patches("memory://viewed.zarr").view().shuffle(5)
        >>> view
        <ArrayView 4 x 1 x 3 x 3 uint8>
        >>> sorted(view[:, 0, 0, 0].tolist())
        [0, 3, 18, 21]
        """
        from patchloom.arrays.array_view import ArrayView

        found = self.array(array)
        rows = self.manifest["row"].to_numpy()
        if split is not None:
            splits = self.manifest["split"].to_numpy(zero_copy_only=False)
            rows = rows[splits == split]
            if not len(rows):
                raise ConfigError(
                    f"a split is one of {sorted(set(splits.tolist()))}, got {split!r}"
                )
        return ArrayView(found, rows=rows)

    def array(self, name: str) -> zarr.Array[Any]:
        """One of ``attributes["arrays"]`` as a Zarr array (patch, c, [z], y, x).

        Raises
        ------
        ConfigError
            If there is no such array.
        """
        self._check_array(name)
        opened = name in ("images", "labels", "targets")
        found: zarr.Array[Any] = getattr(self, name) if opened else self._array(name)
        return found

    def _check_array(self, array: str) -> None:
        if array not in self.attributes["arrays"]:
            raise ConfigError(
                f"this store has the arrays {self.attributes['arrays']}, got {array!r}; plan with "
                "images that have labels or targets to have more"
            )

    def _by_image(self, per: str) -> dict[str, dict[str, Any]]:
        """A metadata column of the images that have patches, by id; nothing of what is none."""
        if per not in self.manifest.column_names:
            return {image["id"]: {} for image in self.attributes["images"]}
        pairs = self.manifest.group_by(["image_id", per]).aggregate([])
        found = {row["image_id"]: {per: row[per]} for row in pairs.to_pylist()}
        if len(found) < pairs.num_rows:
            raise ConfigError(
                f"per= names a column with one value an image, but {per!r} has several; take "
                "'image', 'channel', 'all' or a metadata column of the images"
            )
        return found

    def _places(self, rows: npt.ArrayLike) -> tuple[Ints, Ints]:
        """Rows that are asked for, and their places in the manifest: int64[n] each."""
        given = np.asarray(rows)
        if given.size and given.dtype.kind not in "iu":
            raise IndexError(f"rows are whole numbers, got {given.dtype}")
        index = given.astype(np.int64).reshape(-1)
        written = self.manifest["row"].to_numpy()
        place = np.searchsorted(written, index)
        known = place < len(written)
        known[known] = written[place[known]] == index[known]
        if not known.all():
            raise IndexError(
                f"a row is one of the {len(written)} that are written, got {index[~known][0]}"
            )
        return index, place

    def to_xarray(self) -> xarray.Dataset:
        """The arrays as a lazy xarray.Dataset with the manifest's columns as coordinates.

        Of a store that is not complete, the rows that are there.
        """
        import xarray

        names = sorted(self.attributes["arrays"])
        view: xarray.Dataset = xarray.open_zarr(
            self._store(), chunks=None, consolidated=True, zarr_format=3
        )[names]
        columns = {
            name: ("patch", self.manifest[name].to_numpy(zero_copy_only=False))
            for name in self.manifest.column_names
        }
        if view.sizes["patch"] != self.manifest.num_rows:
            # Reserved rows hold no patch, nor do those that are not written yet.
            view = view.isel(patch=self.manifest["row"].to_numpy())
        return view.assign_coords(columns)

    def _array(self, name: str) -> zarr.Array[Any]:
        found = zarr.open_array(self._store(), path=name, mode="r", zarr_format=3)
        if found.shape[0] == len(self):
            return found
        # Rows were appended since the store was opened.
        shape = [len(self), *found.shape[1:]]
        return zarr.Array.from_dict(found.store_path, {**found.metadata.to_dict(), "shape": shape})

    def _store(self) -> Any:
        from zarr.storage import FsspecStore, LocalStore

        fs, path = self._location.open()
        if isinstance(fs, LocalFileSystem):
            return LocalStore(path, read_only=True)
        return FsspecStore.from_url(
            self._location.url, storage_options=dict(self._location.options), read_only=True
        )

    def _repr_html_(self) -> str:
        told, shape = self.attributes, list(map(str, self.attributes["patch_shape"]))
        images = [str(image["id"]) for image in told["images"][:_NAMED]]
        more = len(told["images"]) - len(images)
        job: Mapping[str, Any] = told["job"]
        rows = {
            "url": self.url,
            "patches": f"{told['n_patches']:,}",
            "complete": "yes" if self.complete else "no: run its job again to finish it",
            "patch": f"{' x '.join(shape)} ({told['axes']})",
            "patches a shard": f"{told['rows_per_shard']:,}",
            "arrays": ", ".join(self.arrays_held),
            "channels": ", ".join(self.channels),
            "images": ", ".join(images) + (f" and {more:,} more" if more else ""),
            "normalised": job.get("normalize") or "no",
            "fingerprint": self.fingerprint,
        }
        return html_table("Patch store", rows)

    def __repr__(self) -> str:
        state = "complete" if self.complete else "not complete"
        shape = "x".join(str(n) for n in self.attributes["patch_shape"])
        n = self.attributes["n_patches"]
        return f"<PatchStore {self.url!r} {n:,} patches of {shape}, {state}>"


def _empty(axes: str) -> pa.Table:
    starts = [(f"start_{a}", pa.int64()) for a in axes if a != "c"]
    columns = [
        ("patch_id", pa.string()),
        ("image_id", pa.string()),
        ("sample", pa.int64()),
        *starts,
        ("coverage", pa.float64()),
        ("split", pa.string()),
        ("row", pa.int64()),
    ]
    return pa.schema(columns).empty_table()
