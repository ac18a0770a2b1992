"""The patch store's format: names, metadata documents and the codec of the pixels.

A store is a Zarr v3 group::

    zarr.json                   format, provenance, statistics, completion mark
    images/zarr.json            (patch, c, [z], y, x): one patch a chunk, many a shard
    images/c/K/0/0/0            shard K: rows [K * rows_per_shard, (K + 1) * rows_per_shard)
    labels/..., targets/...     the same, where the plan has them; also weights/..., and
                                targets_NAME/... for each further target
    summaries/KKKKKKKK.parquet  what shard K adds to the statistics
    summaries/KKKKKKKK.whole.parquet    what the statistics of the images whose first shard is K are
                                made from, where its shards do not add up to that
    manifest/KKKKKKKK.parquet   one row a patch of shard K; written last: it commits the shard
    manifest/KKKKKKKK.partial.parquet   the same of a shard of which something could not be read
    skipped.parquet             the rows that are missing for that reason
    objects.parquet             sizes of the objects of each shard
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchloom.errors import ConfigError

__all__ = [
    "APPENDED",
    "CODECS",
    "FORMAT",
    "OBJECTS",
    "PARTIAL",
    "SKIPPED",
    "ArraySpec",
    "Codec",
    "array_of",
    "as_json",
    "gap_name",
    "group_document",
    "manifest_name",
    "role_of",
    "shard_name",
    "shard_objects",
    "shard_of",
    "summary_name",
    "whole_name",
]

FORMAT = 1
"""Version of the store format; a store says which one it has."""

SKIPPED = "skipped.parquet"
"""The rows that a run left out, with reasons."""
OBJECTS = "objects.parquet"
"""Sizes of the objects of each shard."""
APPENDED = 2
"""Version of a store that images were added to: a reader that knows only of one plan would err."""

PARTIAL = re.compile(r"\.[0-9a-f]{32}\.part$")
"""What a write that was killed leaves behind on a local disk."""

_SHARD = re.compile(r"(?:[a-z][a-z0-9_]*/c/|manifest/|summaries/)(\d+)")
_NAMES = {"image": "images", "target": "targets"}

_NUMCODECS = {
    "blosc-zstd": {"id": "blosc", "cname": "zstd", "clevel": 1, "shuffle": 2},
    "blosc-lz4": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 2},
    "zstd": {"id": "zstd", "level": 3},
    "none": None,
}
CODECS = tuple(_NUMCODECS)
"""Names that ``codec=`` takes; the first is the default."""


@dataclass(frozen=True)
class Codec:
    """How one patch becomes bytes; a crc32c checksum always comes last."""

    name: str = CODECS[0]

    def __post_init__(self) -> None:
        if self.name not in _NUMCODECS:
            raise ConfigError(f"codec= is one of {list(CODECS)}, got {self.name!r}")

    @property
    def config(self) -> dict[str, Any] | None:
        """The compressor for numcodecs."""
        found = _NUMCODECS[self.name]
        return None if found is None else dict(found)

    def documents(self, dtype: np.dtype[Any]) -> list[dict[str, Any]]:
        """The chain as Zarr v3 metadata."""
        chain: list[dict[str, Any]] = [
            {"name": "bytes", "configuration": {"endian": "little"}}
            if dtype.itemsize > 1
            else {"name": "bytes"}
        ]
        config = self.config
        if config is not None and config["id"] == "blosc":
            chain.append(
                {
                    "name": "blosc",
                    "configuration": {
                        "typesize": dtype.itemsize,
                        "cname": config["cname"],
                        "clevel": config["clevel"],
                        "shuffle": "bitshuffle",
                        "blocksize": 0,
                    },
                }
            )
        elif config is not None:
            level = {"level": config["level"], "checksum": False}
            chain.append({"name": "zstd", "configuration": level})
        return [*chain, {"name": "crc32c"}]


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store: what a row of it is."""

    name: str
    patch_shape: tuple[int, ...]
    """Channels, then space."""
    dtype: np.dtype[Any]
    axes: str
    """Axes of a patch, for example ``"czyx"``."""
    rows_per_shard: int
    codec: Codec

    @property
    def patch_bytes(self) -> int:
        """Bytes of one patch before compression."""
        return int(np.prod(self.patch_shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def dimensions(self) -> list[str]:
        """Names of the array's dimensions; the channels of another array are not the image's."""
        channel = "c" if self.name == "images" else f"c_{self.name}"
        return ["patch", channel, *self.axes[1:]]

    def document(self, n_rows: int) -> dict[str, Any]:
        """``zarr.json`` of the array."""
        inner = [1, *self.patch_shape]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [n_rows, *self.patch_shape],
            "data_type": self.dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [self.rows_per_shard, *self.patch_shape]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": False if self.dtype.kind == "b" else 0,
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": inner,
                        "codecs": self.codec.documents(self.dtype),
                        "index_codecs": [
                            {"name": "bytes", "configuration": {"endian": "little"}},
                            {"name": "crc32c"},
                        ],
                        "index_location": "end",
                    },
                }
            ],
            "dimension_names": self.dimensions,
            "attributes": {},
            "storage_transformers": [],
        }


def group_document(attributes: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """``zarr.json`` of the store, with the metadata of its arrays: opening is one request."""
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"patchloom": dict(attributes)},
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": dict(arrays),
        },
    }


def array_of(role: str) -> str:
    """The array of a store that holds what was cut in some role.

    >>> array_of("image"), array_of("labels"), array_of("targets_edges")
    ('images', 'labels', 'targets_edges')
    """
    return _NAMES.get(role, role)


def role_of(array: str) -> str:
    """Inverse of `array_of`."""
    return {name: role for role, name in _NAMES.items()}.get(array, array)


def shard_name(spec: ArraySpec, shard: int) -> str:
    """Object that holds a shard of an array."""
    return _shard_name(spec.name, shard, len(spec.patch_shape))


def _shard_name(array: str, shard: int, ndim: int) -> str:
    return "/".join([array, "c", str(shard), *("0" for _ in range(ndim))])


def shard_objects(arrays: Mapping[str, int], shard: int) -> dict[str, str]:
    """The objects of a whole shard by what they hold: names of arrays, summary and manifest.

    Parameters
    ----------
    arrays
        Names of the arrays, and the dimensions of a patch of each.
    shard
        Its number.
    """
    return {
        **{name: _shard_name(name, shard, ndim) for name, ndim in arrays.items()},
        "summary": summary_name(shard),
        "manifest": manifest_name(shard),
    }


def manifest_name(shard: int) -> str:
    """Object that commits a shard."""
    return f"manifest/{shard:08d}.parquet"


def gap_name(shard: int) -> str:
    """Object that commits what there is of a shard that lacks rows or counts."""
    return f"manifest/{shard:08d}.partial.parquet"


def summary_name(shard: int) -> str:
    """Object with a shard's part of the statistics."""
    return f"summaries/{shard:08d}.parquet"


def whole_name(first_shard: int) -> str:
    """Object with what the statistics of some images are made from, passes of their own included.

    Parameters
    ----------
    first_shard
        The first one that holds patches of them.
    """
    return f"summaries/{first_shard:08d}.whole.parquet"


def shard_of(name: str) -> int | None:
    """The shard that an object is of; None if it is of none.

    >>> shard_of("images/c/12/0/0/0"), shard_of("manifest/00000012.parquet"), shard_of("zarr.json")
    (12, 12, None)
    """
    found = _SHARD.match(name)
    return int(found[1]) if found else None


def as_json(document: Mapping[str, Any]) -> bytes:
    """A metadata document as it is stored."""
    # Not sorted: Zarr readers and people expect the order above; it is the same every time.
    return json.dumps(document, indent=2, allow_nan=False).encode()
