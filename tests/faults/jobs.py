"""A job from and to an object store, behind a proxy that disturbs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dask
import fsspec
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

import patchloom
from patchloom.planning.plans import Plan
from patchloom.run.reports import RunReport
from tests.servers.proxy import Proxy
from tests.servers.s3 import S3Server

PATCHING = {"name": "sequential", "patch_size": [48, 48], "overlaps": [16, 16]}
SHAPE, ROWS = (2, 256, 384), 16


@dataclass(frozen=True)
class StoredJob:
    """Two images in a bucket, one an object a chunk and one in shards, and a store beside them."""

    server: S3Server
    proxy: Proxy
    bucket: str
    undisturbed: Mapping[str, bytes]
    """What a run writes that goes to the store itself, without the proxy."""
    numbers: Any = field(default_factory=itertools.count)

    @classmethod
    def made(cls, server: S3Server, proxy: Proxy) -> StoredJob:
        """Write the images, and a first store."""
        new = cls(server, proxy, server.fresh_bucket("faults"), {})
        for name, more in (
            ("plain.zarr", {"chunks": (1, 128, 128)}),
            ("sharded.zarr", {"chunks": (1, 64, 64), "shards": (2, 128, 128)}),
        ):
            array = zarr.create_array(
                f"{new.bucket}/{name}",
                storage_options=server.storage_options,
                shape=SHAPE,
                dtype="uint16",
                compressors=[
                    ZstdCodec(checksum=True),
                    *([Crc32cCodec()] if "shards" in more else []),
                ],
                **more,  # type: ignore[arg-type]
            )
            array[...] = np.random.default_rng(len(name)).integers(0, 999, SHAPE, "uint16")
        out = new.fresh()
        new.run(out, options=server.storage_options)
        return cls(server, proxy, new.bucket, new.written(out), new.numbers)

    @property
    def options(self) -> dict[str, Any]:
        """Storage options that go through the proxy."""
        return {**self.server.storage_options, "endpoint_url": self.proxy.endpoint}

    @property
    def filesystem(self) -> Any:
        """The bucket, without the proxy and without memory."""
        return fsspec.filesystem(
            "s3", **self.server.storage_options, use_listings_cache=False, skip_instance_cache=True
        )

    def fresh(self) -> str:
        """The URL of a store that is not there yet."""
        return f"{self.bucket}/out-{next(self.numbers)}.zarr"

    def plan(self, options: Mapping[str, Any] | None = None, *names: str) -> Plan:
        """The plan, opened through the proxy unless told otherwise."""
        urls = [f"{self.bucket}/{name}" for name in names or ("plain.zarr", "sharded.zarr")]
        images = patchloom.open_images(urls, axes="CYX", storage_options=options or self.options)
        return patchloom.plan(images, PATCHING, rows_per_shard=ROWS)

    def run(self, out: str, plan: Plan | None = None, **more: Any) -> RunReport:
        """Plan and write, through the proxy unless told otherwise."""
        options = more.pop("options", self.options)
        plan = plan or self.plan(options)
        with dask.config.set(scheduler="threads", num_workers=more.pop("workers", 4)):
            return patchloom.materialize(plan, out, storage_options=options, progress=False, **more)

    def written(self, out: str) -> dict[str, bytes]:
        """Every object of a store."""
        fs = self.filesystem
        names = fs.find(out)
        skip = len(out.removeprefix("s3://")) + 1
        return {name[skip:]: data for name, data in fs.cat(names).items()}
