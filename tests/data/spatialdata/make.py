# mypy: ignore-errors
"""Write the stores in this folder, and what SpatialData itself says of them.

Run it where spatialdata 0.7 is installed; the tests need neither it nor this file::

    python tests/data/spatialdata/make.py
"""

import json
import shutil
from pathlib import Path

import anndata
import dask.dataframe as dd
import geopandas
import numpy as np
import pandas as pd
import spatialdata
from shapely.geometry import Point, Polygon
from spatialdata import models
from spatialdata._io.format import SpatialDataContainerFormatV01
from spatialdata.transformations import Identity, Scale, Sequence, Translation

HERE = Path(__file__).parent
rng = np.random.default_rng(0)
placed = {
    "global": Sequence([Scale([0.5, 0.25], axes=("x", "y")), Translation([10, 20], ("x", "y"))])
}

pixels = rng.integers(0, 255, (2, 48, 64), dtype="uint8")
image = models.Image2DModel.parse(
    pixels,
    dims=("c", "y", "x"),
    c_coords=["DAPI", "actin"],
    transformations=placed,
    scale_factors=[2],
    chunks=(1, 32, 32),
)
cells = np.zeros((48, 64), "uint16")
cells[4:10, 6:14], cells[20:41, 30:55], cells[43:45, 2:30] = 1, 7, 3
labels = models.Labels2DModel.parse(cells, dims=("y", "x"), transformations=placed, chunks=(32, 32))
table = pd.DataFrame({"x": [12.0, 30.5], "y": [22.0, 25.0], "gene": ["g1", "g2"]})
points = models.PointsModel.parse(
    dd.from_pandas(table, npartitions=1), transformations={"global": Identity()}
)
circles = models.ShapesModel.parse(
    geopandas.GeoDataFrame(
        {"radius": [1.0, 2.0], "geometry": [Point(3, 4), Point(50, 30)]}, index=["s5", "s6"]
    ),
    transformations=placed,
)
outer, hole = [(2, 2), (20, 2), (20, 30), (2, 14)], [(4, 4), (4, 8), (9, 8)]
regions = models.ShapesModel.parse(
    geopandas.GeoDataFrame({"geometry": [Polygon(outer, [hole]), Polygon(hole)]}, index=[5, 6]),
    transformations=placed,
)


def annotated(region, instances):
    """A table with a row an instance."""
    obs = pd.DataFrame(
        {
            "region": pd.Categorical([region] * len(instances)),
            "instance": instances,
            "kind": ["T", "B", "T"][: len(instances)],
        },
        index=[str(k) for k in range(len(instances))],
    )
    found = anndata.AnnData(obs=obs)
    return models.TableModel.parse(
        found, region=region, region_key="region", instance_key="instance"
    )


data = spatialdata.SpatialData(
    images={"slide": image},
    labels={"cells": labels},
    points={"transcripts": points},
    shapes={"circles": circles, "regions": regions},
    tables={
        "table": annotated("cells", [7, 1, 3]),
        "spots": annotated("circles", ["s6", "s5"]),
    },
)
for name, version in (("v2", SpatialDataContainerFormatV01()), ("v3", None)):
    path = HERE / f"{name}.zarr"
    shutil.rmtree(path, ignore_errors=True)
    data.write(path, **({} if version is None else {"sdata_formats": version}))
    for useless in ("layers", "obsp", "varm", "varp", "var", "X", "raw"):
        for found in path.glob(f"tables/*/{useless}"):
            shutil.rmtree(found)

told = {}
for element in ("cells", "circles", "regions", "transcripts"):
    centres = spatialdata.get_centroids(data[element], coordinate_system="global").compute()
    places = centres[["y", "x"]].to_numpy().tolist()
    told[element] = {str(key): place for key, place in zip(centres.index, places, strict=True)}
(HERE / "centroids.json").write_text(json.dumps(told, indent=1) + "\n")
np.save(HERE / "slide.npy", pixels)
np.save(HERE / "cells.npy", cells)
