"""Zarr arrays, v3 or v2, with chunks of one's own: read by any Zarr, xarray and Dask."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numcodecs
import zarr
from pydantic import PositiveInt
from zarr.codecs import BloscCodec, ZstdCodec
from zarr.storage import MemoryStore

from patchloom.errors import ConfigError
from patchloom.store.exports.contents import Contents, Held, Part
from patchloom.store.exports.format import Format, Objects
from patchloom.store.schema import CODECS, Codec, as_json

__all__ = ["ZarrFormat"]

_MOST = 2**16
"""Chunks of a shard, at most: its index, 16 bytes each, is read whole before any of them."""
_OBJECT = re.compile(r"([^/]+)/(?:c/)?(\d+)[./]")


class ZarrFormat(Format):
    """Arrays ``images``, ``labels`` ... (patch, c, [z], y, x) of a Zarr group, as in the store."""

    called: ClassVar[str] = "zarr"

    zarr_format: Literal[2, 3] = 3
    """Version of Zarr."""
    chunk: PositiveInt = 1
    """Patches that are compressed together."""
    shard: PositiveInt | None = None
    """Patches of an object of Zarr v3, a multiple of `chunk`; by default as many as in the
    store, and at most 65,536 chunks. In Zarr v2 an object is a chunk."""
    codec: Literal["blosc-zstd", "blosc-lz4", "zstd", "none"] = CODECS[0]  # type: ignore[assignment]
    """Compressor, as for `materialize`."""

    def rows(self, asked: int | None, given: int, n_patches: int) -> int:
        """Whole objects."""
        if self.zarr_format == 2:
            if self.shard is not None:
                raise ConfigError(
                    "Zarr v2 has no shards, got shard= with zarr_format=2; choose chunk= alone, "
                    "or zarr_format=3"
                )
            unit = self.chunk
        else:
            unit = self._shard(given)
        if unit % self.chunk:
            raise ConfigError(
                f"a shard holds whole chunks, got shard={unit} and chunk={self.chunk}; give a "
                f"multiple of {self.chunk}"
            )
        if unit // self.chunk > _MOST:
            raise ConfigError(
                f"a shard holds at most {_MOST:,} chunks, got shard={unit:,} and "
                f"chunk={self.chunk}; give a smaller shard= or a larger chunk="
            )
        if asked is not None and asked % unit:
            raise ConfigError(
                f"a part is whole objects of {unit} patches, got rows={asked}; give a multiple"
            )
        return asked or -(-given // unit) * unit

    def _shard(self, given: int) -> int:
        return self.shard or -(-given // self.chunk) * self.chunk

    def _unit(self, contents: Contents) -> int:
        """Patches of one object."""
        if self.zarr_format == 2:
            return self.chunk
        return self._shard(int(contents.store["rows_per_shard"]))

    def path(self, contents: Contents, section: int, held: Held) -> str:
        """Name of an array in the group."""
        return held.name

    def opening(self, contents: Contents) -> Mapping[str, bytes]:
        """The metadata of the group and its arrays."""
        told: dict[str, Any] = {}
        for k, section in enumerate(contents.sections):
            for held in contents.arrays:
                told |= self._documents(contents, k, held, section.n_patches)
        attributes = {"channels": list(contents.channels), "axes": contents.store["axes"]}
        if self.zarr_format == 3:
            documents = {name.removesuffix("/zarr.json"): told[name] for name in sorted(told)}
            group = {
                "zarr_format": 3,
                "node_type": "group",
                "attributes": attributes,
                "consolidated_metadata": {
                    "kind": "inline",
                    "must_understand": False,
                    "metadata": documents,
                },
            }
            return {**{k: as_json(v) for k, v in told.items()}, "zarr.json": as_json(group)}
        told |= {".zgroup": {"zarr_format": 2}, ".zattrs": attributes}
        whole = {"zarr_consolidated_format": 1, "metadata": dict(sorted(told.items()))}
        return {k: as_json(v) for k, v in {**told, ".zmetadata": whole}.items()}

    def _documents(
        self, contents: Contents, section: int, held: Held, n: int
    ) -> dict[str, dict[str, Any]]:
        """The metadata of one array by name, as zarr-python writes it."""
        stored: dict[str, Any] = {}
        path = self.path(contents, section, held)
        self._create(stored, contents, held, path, n)
        found = {}
        for name, buffer in stored.items():
            if name.startswith(f"{path}/"):
                found[name] = json.loads(buffer.to_bytes())
        if self.zarr_format == 2:
            dimensions = {"_ARRAY_DIMENSIONS": _dimensions(held)}
            found[f"{path}/.zattrs"] = dimensions
        return found

    def _create(
        self, stored: dict[str, Any], contents: Contents, held: Held, path: str, n: int
    ) -> zarr.Array[Any]:
        shape = (n, *held.patch_shape)
        known: dict[str, Any] = {
            "name": path,
            "shape": shape,
            "dtype": held.dtype,
            "chunks": (self.chunk, *held.patch_shape),
            "fill_value": False if held.dtype.kind == "b" else 0,
            "zarr_format": self.zarr_format,
            "compressors": self._compressor(held),
            "filters": None,
            "config": {"write_empty_chunks": True},
        }
        if self.zarr_format == 3:
            known["shards"] = (self._unit(contents), *held.patch_shape)
            known["dimension_names"] = _dimensions(held)
        array: zarr.Array[Any] = zarr.create_array(MemoryStore(stored), **known)
        return array

    def _compressor(self, held: Held) -> Any:
        config = Codec(self.codec).config
        if config is None:
            return None
        if self.zarr_format == 2:
            return numcodecs.get_codec(config)
        if config["id"] == "zstd":
            return ZstdCodec(level=config["level"])
        return BloscCodec(
            typesize=held.dtype.itemsize,
            cname=config["cname"],
            clevel=config["clevel"],
            shuffle="bitshuffle",
        )

    def n_objects(self, contents: Contents, part: int) -> int:
        """Whole shards, or chunks of Zarr v2, of every array."""
        _, first, stop = contents.rows_of(part)
        return len(contents.arrays) * -(-(stop - first) // self._unit(contents))

    def part_of(self, contents: Contents) -> Callable[[str], int | None]:
        """By the number of the object and the name of its array."""
        unit = self._unit(contents)
        sections = {
            self.path(contents, k, held): section
            for k, section in enumerate(contents.sections)
            for held in contents.arrays
        }

        def part_of(name: str) -> int | None:
            found = _OBJECT.match(name)
            section = None if found is None else sections.get(found[1])
            if found is None or section is None:
                return None
            row = int(found[2]) * unit
            inside = row < section.n_patches
            return section.first_part + row // contents.rows_per_part if inside else None

        return part_of

    def objects(self, contents: Contents, part: Part) -> Objects:
        """Each object, encoded by zarr-python as of an array that begins with it."""
        unit = self._unit(contents)
        for start in range(0, len(part), unit):
            stop = min(start + unit, len(part))
            for held in contents.arrays:
                stored: dict[str, Any] = {}
                path = self.path(contents, part.section, held)
                array = self._create(stored, contents, held, path, stop - start)
                array[...] = part.pixels(held.name, start, stop)
                number = (part.first + start) // unit
                zeros = ["0"] * len(held.patch_shape)
                if self.zarr_format == 3:
                    tail = "/".join(["c", "0", *zeros]), "/".join(["c", str(number), *zeros])
                else:
                    tail = ".".join(["0", *zeros]), ".".join([str(number), *zeros])
                yield f"{path}/{tail[1]}", stored[f"{path}/{tail[0]}"].to_bytes()


def _dimensions(held: Held) -> list[str]:
    channel = "c" if held.name == "images" else f"c_{held.name}"
    return ["patch", channel, *held.axes[1:]]
