"""What a notebook shows: small, from memory alone, readable in both themes, nothing unescaped."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import patchloom
from patchloom.demo.walk import demo_image
from tests.test_plan_page import read

EVIL = "<script>alert('x')</script>&\""
GRID = {"name": "sequential", "patch_size": [32, 32]}


def things(folder: Path, name: str) -> dict[str, Any]:
    """One of each, made of files that are gone by the time that they are shown."""
    pixels = np.random.default_rng(0).integers(0, 999, (2, 96, 96), np.uint16)
    zarr.create_array(folder / "a.zarr", data=pixels)
    images = patchloom.open_images(
        folder / "a.zarr", axes="cyx", ids=[name], mask=np.ones((96, 96), bool), labels=pixels[0]
    )
    plan = patchloom.plan(images, GRID, order="shuffled", rows_per_shard=2)
    report = patchloom.materialize(plan, folder / "p.zarr", progress=False)
    store = patchloom.open_patches(folder / "p.zarr")
    statistics = store.summaries()
    shutil.rmtree(folder)
    return {
        "Image": images[0],
        "Plan": plan,
        "Statistics": statistics,
        "PatchStore": store,
        "RunReport": report,
    }


@pytest.mark.parametrize("name", ["a", EVIL])
def test_each_shows_itself_without_reading(tmp_path: Path, name: str) -> None:
    """Small, whole, escaped; its colours are its own or those of the notebook."""
    for kind, thing in things(tmp_path / "x", name).items():
        html = thing._repr_html_()
        page = read(html)
        assert "table" in page.tags, kind
        assert len(html) < 40_000, kind
        assert "<script" not in html
        # Ground and ink of a table or text are those of the theme.
        assert not re.search(r"style=\"[^\"]*(?<!-)(color|background)", html), kind
        assert len(repr(thing)) < 2000


def test_a_report_shows_where_tasks_worked(tmp_path: Path) -> None:
    """One bar a task; of a run that did nothing there is none."""
    images = patchloom.open_images(str(demo_image()))
    plan = patchloom.plan(images, GRID, rows_per_shard=16, memory="8 MiB")
    first = patchloom.materialize(plan, tmp_path / "a.zarr", progress=False)
    path = re.search(r'<path fill="#\w+" d="([^"]*)"', first._repr_html_())
    assert path is not None
    assert path[1].count("M") == first.n_tasks > 1
    again = patchloom.materialize(plan, tmp_path / "a.zarr", progress=False)
    assert "<svg" not in again._repr_html_()
    read(again._repr_html_())


def test_completion_lists_what_a_user_may_call(tmp_path: Path) -> None:
    """`dir` has public names alone, and each of them is there."""
    for kind, thing in things(tmp_path / "x", "a").items():
        names = dir(thing)
        assert not [name for name in names if name.startswith("_")], kind
        assert {"Plan": "to_html", "Image": "read"}.get(kind, "to_html") in names or kind in (
            "PatchStore",
        )
        # What is hidden is there as ever.
        assert thing.__class__.__name__ == kind
        assert all(hasattr(type(thing), name) or name in vars(thing) for name in names), kind
    names = dir(patchloom)
    assert not [name for name in names if name.startswith("_") and name != "__version__"]


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    """Opening images reads no pixel, and its pixels are a lazy xarray."""
    [image] = patchloom.open_images(str(demo_image()))
    data = image.data
    assert type(data).__module__.startswith("xarray")
    assert type(data.data).__module__.startswith("dask")
