"""Cutting alone: every kept patch in memory, nothing counted, nothing written."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, records
from benchmarks.floor import run_cut as cut_floor
from benchmarks.job import plan_of
from benchmarks.job import run_cut as cut_ours
from benchmarks.workloads import Sources, Workload
from patchloom.run.batches import cut_batches


@dataclass(frozen=True)
class CutRecord:
    """One workload's figures.

    Parameters
    ----------
    workload, n_patches
        What was cut.
    ours_s, floor_s, ratio, spread
        Medians of the wall seconds, their ratio, and the least and greatest within one pair.
    ours_cpu_s, floor_cpu_s
        Medians of the processor seconds.
    runs
        Each run: side, wall and processor seconds, and the cores that others kept busy.
    """

    workload: str
    n_patches: int
    ours_s: float
    floor_s: float
    ratio: float
    spread: tuple[float, float]
    ours_cpu_s: float
    floor_cpu_s: float
    runs: list[dict[str, Any]]


def compare_cuts(
    workloads: Sequence[Workload],
    cache: Path,
    n_pairs: int,
    output: Path | None,
    argv: Sequence[str],
) -> None:
    """Cut by both sides in alternating pairs, after comparing every pixel once."""
    found: list[CutRecord] = []
    for workload in workloads:
        sources = workload.dataset.write(cache)
        n_patches = _check_equal(workload, sources)
        runs: list[dict[str, Any]] = []
        for pair in range(n_pairs):
            order = ("ours", "floor") if pair % 2 == 0 else ("floor", "ours")
            runs += [_timed(side, workload, sources) for side in order]
        ours, floor = ([r for r in runs if r["side"] == side] for side in ("ours", "floor"))
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(ours, floor, strict=True)]
        ours_s, ours_cpu, floor_s, floor_cpu = (
            statistics.median(run[name] for run in side)
            for side in (ours, floor)
            for name in ("seconds", "cpu")
        )
        record = CutRecord(
            workload=workload.name,
            n_patches=n_patches,
            ours_s=ours_s,
            floor_s=floor_s,
            ratio=ours_s / floor_s,
            spread=(min(ratios), max(ratios)),
            ours_cpu_s=ours_cpu,
            floor_cpu_s=floor_cpu,
            runs=runs,
        )
        found.append(record)
        print(
            f"{record.workload:20} {n_patches:7} patches  ours {ours_s:.3f} s  "
            f"floor {floor_s:.3f} s  ratio {record.ratio:.2f} "
            f"({min(ratios):.2f}..{max(ratios):.2f})  cpu ratio {ours_cpu / floor_cpu:.2f}",
            flush=True,
        )
        if output is not None:
            results = [result for r in found for result in _results(r)]
            records.save(output, "whole", argv, results, runs=[asdict(r) for r in found])


def _results(record: CutRecord) -> Iterator[records.Result]:
    """Ours and the floor's."""
    shared: dict[str, Any] = {
        "workload": record.workload,
        "what": "cut",
        "done": record.n_patches,
        "of": record.n_patches,
        "equal": True,
    }
    yield records.Result(
        **shared,
        side=records.OURS,
        seconds=record.ours_s,
        over_floor=record.ratio,
        spread=record.spread,
    )
    yield records.Result(**shared, side=records.FLOOR, seconds=record.floor_s)


def _floor(workload: Workload, sources: Sources) -> Any:
    return cut_floor(
        sources.image,
        sources.mask,
        axes=workload.dataset.axes,
        patch_size=workload.patch_size,
        overlaps=workload.overlaps,
        min_coverage=workload.min_coverage,
    )


def _timed(side: str, workload: Workload, sources: Sources) -> dict[str, Any]:
    gc.collect()
    neighbours, begun = environment.Neighbours(time.process_time), time.process_time()
    found = cut_ours(workload, sources) if side == "ours" else _floor(workload, sources)
    cpu, load = time.process_time() - begun, neighbours.load()
    return {"side": side, "seconds": found[0], "cpu": cpu, "others": load}


def _check_equal(workload: Workload, sources: Sources) -> int:
    """Compare every patch of both sides, matched by first corner; this also warms both."""
    _, starts, patches = _floor(workload, sources)
    row_of = {tuple(start): row for row, start in enumerate(starts.tolist())}
    plan = plan_of(workload, sources)
    corners = np.concatenate([part.corner for part in plan.patches(0, plan.n_patches)])
    n_patches = 0
    for task in range(plan.n_tasks):
        for rows, pixels in cut_batches(plan, plan.runs.shards(task)):
            for row, found in zip(rows.tolist(), pixels["image"], strict=True):
                if not np.array_equal(found, patches[row_of[tuple(corners[row].tolist())]]):
                    raise ValueError(f"the patch at {corners[row].tolist()} differs")
            n_patches += len(rows)
    if n_patches != len(patches):
        raise ValueError(f"patchloom cut {n_patches} patches, the floor {len(patches)}")
    return n_patches
