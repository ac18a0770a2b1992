"""Time patchloom against the floor, in alternating pairs.

``python -m benchmarks --help`` lists the options; ``README.md`` says what each number means.
``python -m benchmarks NAME`` measures something else: ``strategies``, ``planning`` (many images
under masks), ``mixing`` (of shuffled plans), ``scheduling`` (scheduler and client at a petabyte),
``amplification`` (how often chunks are decoded), ``codecs`` (who decodes chunks),
``statistics`` (what counting costs), ``loading`` (of a store, for training), ``live`` (straight
from the sources).
"""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.floor import FloorReport, run_floor
from benchmarks.workloads import LARGE, WORKLOADS, Sources, Workload

OTHERS = (
    "strategies",
    "planning",
    "mixing",
    "scheduling",
    "amplification",
    "codecs",
    "statistics",
    "loading",
    "live",
    "peers",
)
"""Benchmarks with options of their own."""

QUIET = 0.3
"""A run during which others kept more cores busy than this is called disturbed."""


@dataclass(frozen=True)
class Record:
    """One workload's figures, as written to JSON.

    Parameters
    ----------
    workload, scale, scheduler
        What was run.
    ours_s, floor_s
        Medians of the wall seconds.
    ratio
        `ours_s` over `floor_s`.
    spread
        Least and greatest ratio within one pair.
    ours_cpu_s, floor_cpu_s
        Medians of the processor seconds, of workers and their scheduler too.
    counts
        From patchloom's report, `read_amplification` among them.
    patches_equal
        Patches found equal, pixel by pixel, in both stores.
    ours_phases, floor_phases
        Medians of the wall seconds by phase.
    runs
        Seconds of each run and the cores that others kept busy meanwhile, in the order timed.
    versions, machine, command
        What it was measured with and on, and how to measure it again.
    """

    workload: str
    scale: float
    scheduler: str
    ours_s: float
    floor_s: float
    ratio: float
    spread: tuple[float, float]
    ours_cpu_s: float
    floor_cpu_s: float
    counts: dict[str, Any]
    patches_equal: int
    ours_phases: dict[str, float]
    floor_phases: dict[str, float]
    runs: list[dict[str, Any]] = field(repr=False)
    versions: dict[str, str]
    machine: dict[str, Any]
    command: str


@dataclass
class _Side:
    """One of the two that are timed, and its runs so far."""

    name: str
    run: Callable[[Path], Any]
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)

    def time(self, out: Path, own: Callable[[], float]) -> dict[str, Any]:
        """Run once on a clean slate, remove the output, and note the figures."""
        gc.collect()
        neighbours, begun = environment.Neighbours(own), own()
        report = self.run(out)
        cpu, load = own() - begun, neighbours.load()
        shutil.rmtree(out)
        self.seconds.append(report.seconds)
        self.cpu.append(cpu)
        self.phases.append(report.phases)
        return {"side": self.name, "seconds": report.seconds, "cpu": cpu, "others": load}

    def median_phases(self) -> dict[str, float]:
        """Return the median of each phase."""
        return {
            name: statistics.median(phases[name] for phases in self.phases)
            for name in self.phases[0]
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks named on the command line.

    Parameters
    ----------
    argv
        Arguments without the program's name, those of the process by default.

    Returns
    -------
    int
        Exit status.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and arguments[0] in OTHERS:
        return int(import_module(f"benchmarks.{arguments[0]}").main(arguments[1:]))
    options = _parser().parse_args(arguments)
    command = shlex.join(["python", "-m", "benchmarks", *arguments])
    with tempfile.TemporaryDirectory(prefix="patchloom-benchmarks-") as temporary:
        cache = options.cache or Path(temporary) / "cache"
        out = Path(tempfile.mkdtemp(prefix="out-", dir=options.scratch or temporary))
        try:
            workloads = [
                {**WORKLOADS, **LARGE}[name].scaled(options.scale)
                for name in dict.fromkeys(
                    options.workload or (LARGE if options.large else WORKLOADS)
                )
            ]
            if options.cut:
                from benchmarks.cutting import compare_cuts

                compare_cuts(workloads, cache, options.pairs, options.output, command)
            elif options.floor_only:
                _time_floor(workloads, cache, out, options.pairs)
            else:
                _compare(workloads, cache, out, options, command)
        finally:
            shutil.rmtree(out, ignore_errors=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--workload",
        action="append",
        choices=(*WORKLOADS, *LARGE),
        help="may be repeated; default all small ones",
    )
    parser.add_argument("--large", action="store_true", help="all large workloads instead")
    parser.add_argument("--cut", action="store_true", help="cut alone: nothing counted or written")
    parser.add_argument("--pairs", type=int, default=5, help="timed runs of each side")
    parser.add_argument("--scale", type=float, default=1.0, help="shrinks the images' sides")
    parser.add_argument("--scheduler", choices=("threads", "distributed"), default="threads")
    parser.add_argument("--output", type=Path, help="JSON file for the records")
    parser.add_argument("--cache", type=Path, help="keeps the images; default a temporary folder")
    parser.add_argument("--scratch", type=Path, help="takes the output; default a temporary folder")
    parser.add_argument(
        "--floor-only", action="store_true", help="time the floor alone, without patchloom"
    )
    return parser


def _floor(
    workload: Workload, sources: Sources, rows_per_shard: int
) -> Callable[[Path], FloorReport]:
    def run(out: Path) -> FloorReport:
        return run_floor(
            sources.image,
            sources.mask,
            out,
            axes=workload.dataset.axes,
            patch_size=workload.patch_size,
            overlaps=workload.overlaps,
            min_coverage=workload.min_coverage,
            rows_per_shard=rows_per_shard,
        )

    return run


def _time_floor(workloads: Sequence[Workload], cache: Path, out: Path, n_runs: int) -> None:
    """Time the floor without patchloom, at a shard length of about 16 MiB."""
    for workload in workloads:
        sources = workload.dataset.write(cache)
        pixels = 2 * (workload.dataset.shape[0] if workload.dataset.axes[0] == "c" else 1)
        for size in workload.patch_size:
            pixels *= size
        side = _Side("floor", _floor(workload, sources, max(1, 2**24 // pixels)))
        side.time(out / "floor", time.process_time)
        side.seconds.clear()
        side.phases.clear()
        runs = [side.time(out / "floor", time.process_time) for _ in range(n_runs)]
        phases = "  ".join(f"{name} {s:.3f}" for name, s in side.median_phases().items())
        spread = f"{min(side.seconds):.3f}..{max(side.seconds):.3f}"
        print(
            f"{workload.name:20} floor {statistics.median(side.seconds):.3f} s ({spread})  "
            f"{phases}  {_disturbed(runs)}",
            flush=True,
        )


def _compare(
    workloads: Sequence[Workload],
    cache: Path,
    out: Path,
    options: argparse.Namespace,
    command: str,
) -> None:
    from benchmarks.job import engine

    records: list[Record] = []
    print(_HEADER, flush=True)
    for workload in workloads:
        sources = workload.dataset.write(cache)
        with engine(options.scheduler) as own:
            record = _measure(workload, sources, out, own, options, command)
        records.append(record)
        print(_row(record), flush=True)
        if options.output is not None:
            text = json.dumps([asdict(r) for r in records], indent=2, default=str)
            options.output.write_text(text + "\n")


def _measure(
    workload: Workload,
    sources: Sources,
    out: Path,
    own: Callable[[], float],
    options: argparse.Namespace,
    command: str,
) -> Record:
    """Warm both sides, compare what they wrote, then time them in turns."""
    from benchmarks.job import run_job
    from benchmarks.verification import check_equal

    first = run_job(workload, sources, out / "ours")
    floor = _floor(workload, sources, first.rows_per_shard)
    floor(out / "floor")
    equal = check_equal(out / "ours", out / "floor")
    shutil.rmtree(out / "ours")
    shutil.rmtree(out / "floor")

    sides = [_Side("ours", lambda to: run_job(workload, sources, to)), _Side("floor", floor)]
    runs: list[dict[str, Any]] = []
    for pair in range(options.pairs):
        turn = sides if pair % 2 == 0 else sides[::-1]
        runs += [side.time(out / side.name, own) for side in turn]
    ours, base = sides
    ratios = [a / b for a, b in zip(ours.seconds, base.seconds, strict=True)]
    ours_s, floor_s = statistics.median(ours.seconds), statistics.median(base.seconds)
    return Record(
        workload=workload.name,
        scale=options.scale,
        scheduler=options.scheduler,
        ours_s=ours_s,
        floor_s=floor_s,
        ratio=ours_s / floor_s,
        spread=(min(ratios), max(ratios)),
        ours_cpu_s=statistics.median(ours.cpu),
        floor_cpu_s=statistics.median(base.cpu),
        counts=first.counts,
        patches_equal=equal,
        ours_phases=ours.median_phases(),
        floor_phases=base.median_phases(),
        runs=runs,
        versions=environment.versions(),
        machine=environment.machine(),
        command=command,
    )


_HEADER = (
    f"{'workload':20} {'patches':>8} {'ours s':>8} {'floor s':>8} {'ratio':>6} "
    f"{'spread':>12} {'cpu ratio':>9} {'reads/chunk':>11} {'equal':>6}"
)


def _row(record: Record) -> str:
    low, high = record.spread
    spread = f"{low:.2f}..{high:.2f}"
    return (
        f"{record.workload:20} {record.counts['n_patches']:8} {record.ours_s:8.3f} "
        f"{record.floor_s:8.3f} {record.ratio:6.2f} {spread:>12} "
        f"{record.ours_cpu_s / record.floor_cpu_s:9.2f} "
        f"{record.counts['read_amplification']:11.3f} {record.patches_equal:6}  "
        f"{_disturbed(record.runs)}"
    ).rstrip()


def _disturbed(runs: Sequence[dict[str, Any]]) -> str:
    n = sum(run["others"] is not None and run["others"] > QUIET for run in runs)
    return f"({n} of {len(runs)} runs disturbed by others)" if n else ""


if __name__ == "__main__":
    sys.exit(main())
