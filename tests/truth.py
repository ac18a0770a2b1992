"""What the arrays of the test data hold, as found by readers that know nothing of patchloom.

Each data set is a folder with a ``truth.json`` beside its files. Two roots may hold such folders:
``tests/data``, small and always there, and those named by ``$PATCHLOOM_TEST_DATA`` (several are
separated as in ``$PATH``). Both have the same layout, so one test runs on both::

    for name, path, entry in all_truths(containers={"zarr"}):
        assert entry.matches(zarr.open_array(path, mode="r")[...])
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Container = Literal["zarr", "tiff", "hdf5"]

DATA_VARIABLE = "PATCHLOOM_TEST_DATA"
SHIPPED_ROOT = Path(__file__).with_name("data")
_TIFF_SUFFIXES = {".tif", ".tiff", ".svs"}
_NUMERIC_KINDS = "biufc"


@dataclass(frozen=True, slots=True)
class PatchTruth:
    """A box of an array, and what is in it."""

    slices: tuple[slice, ...]
    sha256: str
    total: float
    """The sum of its values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What one array holds."""

    container: Container
    inner: str
    """The path inside an HDF5 file; empty for other containers."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    sha256: str
    """Of the bytes in C order, little-endian."""
    patches: tuple[PatchTruth, ...]
    agreed: bool
    """False where two trusted decoders differ (lossy JPEG): do not compare bits."""
    raw: Mapping[str, Any] = field(repr=False)
    """The entry as it stands in the file: also ``min``, ``max``, ``mean``, ``p1_p50_p99``, ..."""

    def matches(self, array: npt.ArrayLike) -> bool:
        """Whether an array is the one described, bit for bit (its byte order aside)."""
        values = np.asarray(array)
        native = values.dtype.newbyteorder("=")
        return native == self.dtype and values.shape == self.shape and digest(values) == self.sha256


class ArrayTruth(NamedTuple):
    """One array of the test data."""

    set: str
    """The data set, a folder's name."""
    path: Path
    """The Zarr array's folder, or the TIFF or HDF5 file."""
    entry: Truth

    @property
    def id(self) -> str:
        """A short name for test reports: ``set/path/inside/the/set``."""
        parts = self.path.parts
        name = "/".join(parts[parts.index(self.set) :])
        return f"{name}:{self.entry.inner}" if self.entry.inner else name


def digest(array: npt.ArrayLike) -> str:
    """The SHA-256 of an array's bytes in C order, little-endian."""
    values = np.asarray(array)
    values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def data_roots() -> tuple[Path, ...]:
    """The folders that hold data sets: the shipped one, then those of ``$PATCHLOOM_TEST_DATA``.

    Raises
    ------
    NotADirectoryError
        If the variable names something else than a folder: then nothing would be tested silently.
    """
    extra = tuple(Path(p) for p in os.environ.get(DATA_VARIABLE, "").split(os.pathsep) if p)
    for root in extra:
        if not root.is_dir():
            raise NotADirectoryError(f"${DATA_VARIABLE} names {root}, which is not a folder")
    return (SHIPPED_ROOT, *extra)


def set_names(root: Path) -> tuple[str, ...]:
    """The data sets of a root."""
    return tuple(sorted(path.parent.name for path in root.glob("*/truth.json")))


def truths(root: Path) -> Iterator[ArrayTruth]:
    """Each numeric array of a root that can be read.

    Left out are arrays of strings and objects, and files that are broken on purpose.
    """
    for name in set_names(root):
        folder = root / name
        entries = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        for key, raw in _flat(entries):
            if "sha256_C_le" in raw and np.dtype(raw["dtype"]).kind in _NUMERIC_KINDS:
                file, _, inner = key.partition(":")
                yield ArrayTruth(name, folder / file, _truth(file, inner, raw))


def all_truths(
    *, sets: Collection[str] | None = None, containers: Collection[Container] | None = None
) -> list[ArrayTruth]:
    """The arrays of all roots, ready for ``pytest.mark.parametrize(..., ids=lambda t: t.id)``.

    Parameters
    ----------
    sets
        Only these data sets; by default all.
    containers
        Only arrays in these containers; by default all.
    """
    return [
        truth
        for root in data_roots()
        for truth in truths(root)
        if (sets is None or truth.set in sets)
        and (containers is None or truth.entry.container in containers)
    ]


def _flat(entries: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The entries of a file as (key, entry), whichever of its three shapes it has."""
    if isinstance(entries, list):  # one row an image, which has an image and a label file
        for row in entries:
            name = f"{row['id']}.tif"
            yield f"images/{name}", {**row, "sha256_C_le": row["sha256_image"]}
            # Labels are stored as one plane of instance numbers, also of colour images.
            label = {"shape": row["shape"][:2], "dtype": "uint16"}
            yield f"labels/{name}", {**label, "sha256_C_le": row["sha256_label"]}
        return
    for key, entry in entries.items():
        if key.startswith("_"):  # facts about the set as a whole
            continue
        if "metadata" in entry:
            yield key, {**entry, **(entry.get("truth") or {})}
        else:
            yield key, entry


def _truth(file: str, inner: str, raw: Mapping[str, Any]) -> Truth:
    suffix = Path(file).suffix
    container: Container = "tiff" if suffix in _TIFF_SUFFIXES else "hdf5" if inner else "zarr"
    return Truth(
        container=container,
        inner=inner,
        shape=tuple(raw["shape"]),
        dtype=np.dtype(raw["dtype"]),
        sha256=raw["sha256_C_le"],
        patches=tuple(
            PatchTruth(tuple(slice(*s) for s in patch["slices"]), patch["sha256"], patch["sum"])
            for patch in raw.get("patches", ())
        ),
        agreed="DIFF" not in (raw.get("readers") or ""),
        raw=raw,
    )
