"""What a plan projects for a task is what the task takes: never less, and not much more."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import pytest
import zarr
from benchmarks.workloads import WORKLOADS

import patchloom

SCALE = 0.25
CASES: dict[str, tuple[str, str, str | None]] = {
    # name: workload or "random", order, normalize (of targets too, where the name says so)
    "aligned": ("w1-aligned", "spatial", None),
    "aligned-normalised": ("w1-aligned", "spatial", "percentile"),
    "aligned-targets-normalised": ("w1-aligned", "spatial", "min-max"),
    "misaligned": ("w1-misaligned", "spatial", None),
    "misaligned-normalised": ("w1-misaligned", "spatial", "percentile"),
    "misaligned-shuffled": ("w1-misaligned", "shuffled", None),
    "misaligned-shuffled-normalised": ("w1-misaligned", "shuffled", "mean-std"),
    "cubes": ("w2", "spatial", None),
    "cubes-normalised": ("w2", "spatial", "percentile"),
    "cubes-shuffled": ("w2", "shuffled", None),
    "random": ("random", "spatial", None),
    "random-shuffled": ("random", "shuffled", None),
}


def _plan(case: str, cache: Path) -> patchloom.Plan:
    name, order, _ = CASES[case]
    workload = WORKLOADS["w1-aligned" if name == "random" else name].scaled(SCALE)
    sources = workload.dataset.write(cache)
    config: dict[str, Any] = {"name": "random", "patch_size": [256, 256]}
    if name != "random":
        size, overlaps = list(workload.patch_size), list(workload.overlaps)
        config = {"name": "sequential", "patch_size": size, "overlaps": overlaps}
    axes = workload.dataset.axes
    target = str(sources.image) if "targets" in case else None
    images = patchloom.open_images(
        [str(sources.image)], mask=str(sources.mask), axes=axes, target=target
    )
    return patchloom.plan(images, config, min_coverage=0.5, edge="drop", order=order, seed=0)


def _watch(peak: list[int], stop: threading.Event) -> None:
    process = psutil.Process()
    while not stop.is_set():
        peak[0] = max(peak[0], process.memory_info().rss)
        time.sleep(0.001)


def measure(cache: Path, out: Path, cases: list[str], traced: bool) -> dict[str, list[int]]:
    """Bytes that `materialize` takes at most beyond what there is, and what was projected.

    By tracemalloc, or else as growth of the resident set, which only a fresh process shows.
    """
    found = {}
    plans = {case: _plan(case, cache) for case in cases}
    with dask.config.set(scheduler="synchronous"):
        # What is imported, compiled and cached on first use is not of the task.
        patchloom.materialize(
            patchloom.plan(
                patchloom.open_images(np.ones((64, 64), "uint16")),
                {"name": "sequential", "patch_size": [32, 32]},
            ),
            out / "first",
            progress=False,
            normalize="percentile",
        )
        for case, plan in plans.items():
            normalize = CASES[case][2]
            peak, stop = [psutil.Process().memory_info().rss], threading.Event()
            begun = peak[0]
            watcher = threading.Thread(target=_watch, args=(peak, stop))
            if traced:
                tracemalloc.start()
            else:
                watcher.start()
            scaled = [name for name in plan.images[0].cut_arrays if normalize is not None]
            report = patchloom.materialize(
                plan,
                out / case,
                progress=False,
                normalize=normalize,
                normalize_targets=normalize if "target" in scaled else None,
            )
            taken = tracemalloc.get_traced_memory()[1] if traced else 0
            tracemalloc.stop()
            stop.set()
            if not traced:
                watcher.join()
                taken = peak[0] - begun
            projected = plan.peak_memory(normalized=scaled)
            assert report.projected_memory == projected
            found[case] = [taken, report.peak_memory, projected]
    return found


def _measured(cache: Path, out: Path, cases: list[str], traced: bool) -> dict[str, list[int]]:
    """`measure` in a process of its own."""
    call = f"measure(Path({str(cache)!r}), Path({str(out)!r}), {cases!r}, {traced})"
    code = (
        "import json; from pathlib import Path; from tests.test_memory import measure\n"
        f"print(json.dumps({call}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[int]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def traced(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    return _measured(cache, tmp_path_factory.mktemp("traced"), list(CASES), True)


@pytest.mark.parametrize("case", CASES)
def test_a_task_takes_what_was_projected(case: str, traced: dict[str, list[int]]) -> None:
    taken, counted, projected = traced[case]
    assert counted <= taken <= projected
    assert projected <= 1.5 * taken


@pytest.mark.parametrize("case", ["misaligned", "cubes-normalised"])
def test_the_system_sees_no_more(case: str, cache: Path, tmp_path: Path) -> None:
    [(taken, _, projected)] = _measured(cache, tmp_path, [case], False).values()
    # Codecs have working memory of their own, and freed pages are not always given back at once.
    assert 0 < taken <= projected + 16 * 2**20


@pytest.mark.parametrize(("memory", "rows", "side"), [(3, 16, 64), (6, 128, 32), (5, 64, 32)])
def test_a_default_window_leaves_room_for_what_is_sent(
    memory: int, rows: int, side: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.zarr"
    # No chunk is written: a plan reads none.
    zarr.create_array(store=path, shape=(3072, 3072), chunks=(256, 256), dtype="uint8")
    plan = patchloom.plan(
        patchloom.open_images(path, axes="yx"),
        {"name": "sequential", "patch_size": [side, side]},
        order="shuffled",
        memory=memory * 2**20,
        rows_per_shard=rows,
    )
    assert plan.rows_per_shard < plan.window_rows < plan.n_patches
    assert plan.peak_memory(remote=True) <= plan.memory


@pytest.mark.parametrize("order", ["spatial", "shuffled"])
def test_an_image_ten_times_as_large_takes_no_more(order: str, tmp_path: Path) -> None:
    needs = []
    for side in (81_920, 259_072):
        path = tmp_path / f"{side}.zarr"
        # No chunk is written: a plan reads none.
        zarr.create_array(store=path, shape=(side, side), chunks=(512, 512), dtype="uint16")
        plan = patchloom.plan(
            patchloom.open_images(path, axes="yx"),
            {"name": "sequential", "patch_size": [192, 192], "overlaps": [32, 32]},
            order=order,
            memory=2**28,
        )
        needs.append([plan.peak_memory(), plan.peak_memory(normalized=["image"])])
    small, large = np.array(needs)
    assert (abs(large - small) <= 0.1 * small).all()


_WHOLE = """
import sys, threading, time
from pathlib import Path
import dask, numpy, psutil, patchloom
url, out = sys.argv[1:]
dask.config.set(scheduler="synchronous")
how = {"name": "sequential", "patch_size": [256, 256]}
first = patchloom.open_images(numpy.zeros((256, 256, 3), "u1"), axes="YXC")
patchloom.materialize(patchloom.plan(first, how), f"{out}/first.zarr", progress=False)
[image] = patchloom.open_images(url)
plan = patchloom.plan(image, how, rows_per_shard=16)
process, peak = psutil.Process(), [0]
before = process.memory_info().rss
def watch():
    while True:
        peak[0] = max(peak[0], process.memory_info().rss)
        time.sleep(0.001)
threading.Thread(target=watch, daemon=True).start()
patchloom.materialize(plan, f"{out}/out.zarr", progress=False)
print(peak[0] - before, plan.peak_memory())
"""


def test_a_picture_that_is_decoded_whole_takes_what_was_projected(tmp_path: Path) -> None:
    """Pillow's own pixels and the bytes of the file are part of it, in a fresh process."""
    from PIL import Image as Picture

    pixels = np.random.default_rng(0).integers(0, 256, (4096, 4096, 3), "u1")
    Picture.fromarray(pixels).save(tmp_path / "a.png", compress_level=1)
    told = subprocess.run(
        [sys.executable, "-c", _WHOLE, str(tmp_path / "a.png"), str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    )
    taken, projected = map(int, told.stdout.split())
    assert taken <= projected
    # What is made of it, or of several, holds no less.
    [image] = patchloom.open_images(str(tmp_path / "a.png"))
    [part] = patchloom.open_images(str(tmp_path / "a.png"), isel={"y": slice(100, None)})
    [stack] = patchloom.open_images([str(tmp_path / "a.png")], stack="z")
    own, of_part, of_stack = (one.source.held_bytes for one in (image, part, stack))  # type: ignore[attr-defined]
    assert own > 2 * pixels.nbytes
    assert of_part >= own
    assert of_stack == own
