"""OME-Zarr written by hand after the published format, in both versions, wrong if asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

VERSIONS = ("0.4", "0.5")


def group(path: Path, version: str, ome: Mapping[str, Any] | None = None, **more: Any) -> Path:
    """A Zarr group with OME metadata as the version keeps them, and other attributes."""
    path.mkdir(parents=True, exist_ok=True)
    if version == "0.5":
        inner = {} if ome is None else {"ome": {"version": "0.5", **ome}}
        document = {"zarr_format": 3, "node_type": "group", "attributes": {**inner, **more}}
        (path / "zarr.json").write_text(json.dumps(document))
        return path
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    if ome is not None or more:
        (path / ".zattrs").write_text(json.dumps({**(ome or {}), **more}))
    return path


def array(path: Path, version: str, pixels: npt.NDArray[Any], **options: Any) -> None:
    """A Zarr array in the format of an OME-Zarr version."""
    options.setdefault("chunks", tuple(min(n, 16) for n in pixels.shape))
    made = zarr.create_array(
        path,
        shape=pixels.shape,
        dtype=pixels.dtype,
        zarr_format=3 if version == "0.5" else 2,
        chunk_key_encoding={"name": "v2" if version == "0.4" else "default", "separator": "/"},
        **options,
    )
    made[...] = pixels


def multiscale(axes: str, scales: Sequence[Sequence[float]] = ((),), **more: Any) -> dict[str, Any]:
    """The metadata of one image with levels 0, 1, ... of the given scales."""
    kinds = {"t": "time", "c": "channel"}
    datasets: list[dict[str, Any]] = []
    for k, scale in enumerate(scales):
        datasets.append({"path": str(k)})
        if scale:
            datasets[-1]["coordinateTransformations"] = [{"type": "scale", "scale": [*scale]}]
    return {
        "axes": [
            {"name": a, "type": kinds.get(a, "space")}
            | ({} if a in kinds else {"unit": "micrometer"})
            for a in axes
        ],
        "datasets": datasets,
        **more,
    }


def image(path: Path, version: str, pixels: npt.NDArray[Any], axes: str = "yx") -> Path:
    """An image with one level, and a spacing of 0.5 on every spatial axis."""
    scale = [0.5 if a in "zyx" else 1.0 for a in axes]
    group(path, version, {"multiscales": [multiscale(axes, [scale])]})
    array(path / "0", version, pixels)
    return path


def plate(
    path: Path, version: str, wells: Mapping[str, int], *, acquisitions: int = 0
) -> dict[str, npt.NDArray[Any]]:
    """A plate with so many fields a well; the pixels of each by its path."""
    rows = sorted({well.split("/")[0] for well in wells})
    columns = sorted({well.split("/")[1] for well in wells}, key=int)
    told: dict[str, Any] = {
        "rows": [{"name": name} for name in rows],
        "columns": [{"name": name} for name in columns],
        "wells": [
            {
                "path": well,
                "rowIndex": rows.index(well.split("/")[0]),
                "columnIndex": columns.index(well.split("/")[1]),
            }
            for well in wells
        ],
    }
    if acquisitions:
        told["acquisitions"] = [{"id": k} for k in range(acquisitions)]
    group(path, version, {"plate": told})
    found = {}
    for number, (well, n) in enumerate(wells.items()):
        group(path / well.split("/")[0], version)
        images: list[dict[str, Any]] = [{"path": str(k)} for k in range(n)]
        if acquisitions:
            images = [{**item, "acquisition": k % acquisitions} for k, item in enumerate(images)]
        group(path / well, version, {"well": {"images": images}})
        for k in range(n):
            pixels = np.full((20, 24), 100 * number + k, "uint16")
            image(path / well / str(k), version, pixels)
            found[f"{well}/{k}"] = pixels
    return found
