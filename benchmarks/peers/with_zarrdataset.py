"""zarrdataset's side: the chunks of an empty Zarr array, and the patches of chunk after chunk."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import zarr
import zarrdataset
from probe import answer, build, rate
from zarrdataset._imageloaders import ImageCollection


def _sampler(request: dict[str, Any], axes: str) -> Any:
    config = request["config"]
    size = dict(zip(axes, config["patch_size"], strict=True))
    if config["name"] == "blue_noise":
        return zarrdataset.BlueNoisePatchSampler(size, spatial_axes=axes)
    overlaps = config.get("overlaps") or [0] * len(axes)
    stride = {a: size[a] - o for a, o in zip(axes, overlaps, strict=True)}
    return zarrdataset.PatchSampler(size, stride=stride, spatial_axes=axes)


def _patches(sampler: Any, images: Any, chunks: Any) -> Iterator[int]:
    for chunk in itertools.cycle(chunks):
        yield len(sampler.compute_patches(images, chunk))


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    axes = "ZYX"[-len(request["shape"]) :]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/image.zarr"
        zarr.open(path, mode="w", shape=request["shape"], chunks=request["chunks"], dtype="u2")
        source = {"filename": path, "source_axes": axes, "axes": axes}
        images = ImageCollection({"images": source}, spatial_axes=axes)
        sampler = _sampler(request, axes)
        chunks, found = build(lambda: sampler.compute_chunks(images))
        version = {"version": metadata.version("zarrdataset")}
        if request["task"] == "build":
            return {**found, **version}
        if request["task"] == "list":
            some = [sampler.compute_patches(images, chunk) for chunk in chunks]
            return {"specs": [[int(p[a].start) for a in axes] for part in some for p in part]}
        return {**rate(_patches(sampler, images, chunks), request["seconds"]), **version}


if __name__ == "__main__":
    answer(_handle)
