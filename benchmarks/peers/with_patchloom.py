"""Our side: plans over empty Zarr arrays, and whole columns of specs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from probe import answer, build, one_by_one, rate

import patchloom
from patchloom.patching.factory import create_patching

_CELLS = 2048
"""Cells of one batch."""


def _images(request: dict[str, Any], folder: str) -> Any:
    path = Path(folder) / "image.zarr"
    zarr.create_array(path, shape=request["shape"], chunks=request["chunks"], dtype="uint16")
    return patchloom.open_images(path, axes="ZYX"[-len(request["shape"]) :])


def _strategy(request: dict[str, Any]) -> Any:
    shape = (1, 1, *request["shape"])
    return create_patching([shape], request["config"], chunks=[request["chunks"]], seed=1)


def _columns(strategy: Any) -> Iterator[int]:
    """The corners of all cells, batch after batch, in a mixed order, again and again."""
    n_cells = strategy.grids[0].n_chunks
    begins = np.random.default_rng(0).permutation(np.arange(0, n_cells, _CELLS))
    while True:
        for low in begins.tolist():
            corners, _ = strategy.corners(0, np.arange(low, min(low + _CELLS, n_cells)))
            yield len(corners)


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    if request["task"] == "build":
        with tempfile.TemporaryDirectory() as folder:
            tiny = np.zeros((16,) * len(request["shape"]), "uint8")
            config = {"name": "sequential", "patch_size": [8] * tiny.ndim}
            # Loads what is imported late; a plan's own memory is asked for, not the libraries'.
            patchloom.plan(patchloom.open_images(tiny), config)
            images = _images(request, folder)
            plan, found = build(lambda: patchloom.plan(images, request["config"], seed=1))
            # What a second plan takes says nothing of memory, but as much of time.
            more = [
                build(lambda: patchloom.plan(images, request["config"], seed=1))[1]
                for _ in range(1, request["repeats"])
            ]
            for key in ("seconds", "cpu_seconds"):
                found[key] = [found[key], *(run[key] for run in more)]
            counts = {
                "n_patches": plan.n_patches,
                "n_tasks": plan.n_tasks,
                "n_cells": len(plan.cells),
            }
            return {**found, **counts}
    strategy = _strategy(request)
    if request["task"] == "list":
        specs = [strategy.get_patch_spec(k) for k in range(strategy.n_patches)]
        return {"specs": specs}
    next(_columns(strategy))
    runs = [rate(_columns(strategy), request["seconds"]) for _ in range(request["repeats"])]
    found = {"rates": [run["made"] / run["seconds"] for run in runs]}
    found["loop"] = rate(one_by_one(strategy), request["seconds"] / 4)
    return {**found, "n_patches": strategy.n_patches}


if __name__ == "__main__":
    answer(_handle)
