"""Make every figure that the project claims, and the page of them: ``python -m benchmarks all``.

Each benchmark is a process of its own with a limit; all together keep to ``--hours``.  Records go
to a folder, one file a benchmark.  What fails, is stopped, or finds no environment says so there.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import environment, page, records

DONE = "done"
ENVIRONMENTS = (
    "careamics",
    "zarrdataset",
    "tensorstore",
    "xbatcher",
    "monai",
    "torchio",
    "litdata",
    "mosaicml-streaming",
    "insitubatch",
)
"""Folders that ``--environments`` has: each peer's own, with the libraries that it needs."""


@dataclass(frozen=True)
class Figure:
    """One benchmark as the page needs it.

    Parameters
    ----------
    name
        Of its record.
    benchmark
        What follows ``python -m benchmarks``.
    options
        What follows that.
    quick
        The same for a smoke test of it; None leaves it out of one.
    minutes
        After which it is stopped; what it has saved by then is kept.
    keeps
        Whether it takes ``--cache``.
    peers
        How it is told of the peers' environments: ``folder`` for all, or an option for each.
    """

    name: str
    benchmark: str
    options: str
    quick: str | None
    minutes: float
    keeps: bool = True
    peers: str | None = None

    def command(
        self, output: Path, cache: Path, environments: Path | None, *, is_quick: bool
    ) -> list[str]:
        """What follows ``python -m benchmarks``."""
        found = [self.benchmark, *shlex.split((self.quick if is_quick else self.options) or "")]
        if self.keeps:
            found += ["--cache", str(cache)]
        if environments is not None and self.peers == "folder":
            found += ["--environments", str(environments)]
        elif environments is not None and self.peers is not None:
            for name in self.peers.split():
                interpreter = environments / name / "bin" / "python"
                found += [f"--{name}-python", str(interpreter)] if interpreter.exists() else []
        return [*found, "--output", str(output)]


FIGURES = (
    Figure("jobs", "whole", "--pairs 5", "--scale 0.125 --pairs 1", 5),
    Figure("large", "whole", "--large --pairs 2", None, 15),
    Figure("large-cluster", "whole", "--large --pairs 2 --scheduler distributed", None, 15),
    Figure("large-cut", "whole", "--large --cut --pairs 2", None, 8),
    Figure(
        "peers",
        "peers",
        "--rounds 3 --what cut --what cut+write --what decode",
        "--scale 0.125 --rounds 1 --seconds 10 --workload w1-misaligned --workload w2",
        35,
        peers="folder",
    ),
    Figure(
        "peers-s3",
        "peers",
        "--rounds 3 --latency 5 --latency 50 --what cut --workload w1-misaligned --workload w2",
        None,
        12,
        peers="folder",
    ),
    Figure("loading", "loading", "", "--patches 1024 --rounds 1 --seconds 10", 10, peers="folder"),
    Figure("live", "live", "", "--scale 0.125 --pairs 1 --seconds 10", 10, peers="folder"),
    Figure(
        "strategies",
        "strategies",
        "--repeats 5 --seconds 1 --peer-seconds 15",
        "--repeats 1 --seconds 0.2 --strategy random",
        15,
        keeps=False,
        peers="careamics zarrdataset",
    ),
    Figure("planning", "planning", "", "--images 100", 6),
    Figure("growth", "growth", "", "--quick", 8),
    Figure("mixing", "mixing", "", "--images 5", 6, keeps=False),
    Figure("amplification", "amplification", "", None, 12),
    Figure(
        "scheduling",
        "scheduling",
        "--tasks 2500 5000 20000 --share-tasks 120",
        "--tasks 500 1000 --share-tasks 16 --repeats 1",
        8,
        keeps=False,
    ),
    Figure("statistics", "statistics", "--repeats 3", "--scale 0.125 --repeats 1", 10),
    Figure("codecs", "codecs", "", "--repeats 1", 3, keeps=False),
    Figure("stitching", "stitching", "", "--side 2048 --rounds 1", 4, keeps=False),
    Figure("augmenting", "augmenting", "", "--times 1", 3, keeps=False),
)
"""Which benchmark makes which record; the page says which table shows which."""
RECORD = "all"
"""Name of the record of the runs themselves."""


@dataclass(frozen=True)
class Run:
    """What became of one benchmark.

    Parameters
    ----------
    name
        Of its record.
    outcome
        ``done``, or why not.
    seconds
        That it took.
    """

    name: str
    outcome: str
    seconds: float = 0.0


def main(argv: Sequence[str]) -> int:
    """Run all benchmarks one after another, and write the page.

    Parameters
    ----------
    argv
        Arguments after ``all``.

    Returns
    -------
    int
        Exit status: 1 if one failed.
    """
    options = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="patchloom-all-") as temporary:
        folder = options.records or (
            Path(temporary) / "records" if options.quick else page.ROOT / page.RESULTS
        )
        folder.mkdir(parents=True, exist_ok=True)
        chosen = [f for f in FIGURES if options.only is None or f.name in options.only]
        if options.list:
            for figure in chosen:
                output = Path(f"{figure.name}.json")
                command = figure.command(output, Path("cache"), None, is_quick=options.quick)
                print(f"{figure.minutes:3.0f} min  python -m benchmarks {shlex.join(command)}")
            return 0
        cache = (options.cache or Path(temporary) / "cache").absolute()
        runs = [*_run(chosen, folder.absolute(), cache, options)]
        found = [asdict(run) for run in runs]
        missing = _missing(options.environments)
        records.save(folder / f"{RECORD}.json", "all", argv, [], runs=found, missing=missing)
        to = ["--to", str(Path(temporary) / "page")] if options.quick else []
        page.main(["--records", str(folder), *to])
    for name in missing:
        print(f"no environment {name}: its peers were not run")
    return int(any(run.outcome.startswith("failed") for run in runs))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks all", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test, in minutes")
    parser.add_argument("--hours", type=float, default=3.0, help="for all together")
    parser.add_argument("--only", action="append", choices=[f.name for f in FIGURES])
    parser.add_argument("--list", action="store_true", help="say what would run")
    parser.add_argument("--cache", type=Path, help="keeps the images; default a temporary folder")
    parser.add_argument("--environments", type=Path, help="folder of the peers' environments")
    parser.add_argument(
        "--records", type=Path, help="default benchmarks/results, or a temporary folder if quick"
    )
    return parser


def _missing(environments: Path | None) -> list[str]:
    """Peers' environments that are not there."""
    return [
        name
        for name in ENVIRONMENTS
        if environments is None or not (environments / name / "bin" / "python").exists()
    ]


def _run(
    figures: Sequence[Figure], folder: Path, cache: Path, options: argparse.Namespace
) -> Iterator[Run]:
    begun = time.monotonic()
    for figure in figures:
        output = folder / f"{figure.name}.json"
        left = 3600 * options.hours - (time.monotonic() - begun)
        if options.quick and figure.quick is None:
            run = Run(figure.name, "left out: it has no quick form")
        elif left < 30:
            run = Run(figure.name, "not begun: no time was left")
        else:
            output.unlink(missing_ok=True)
            argv = figure.command(output, cache, options.environments, is_quick=options.quick)
            print(f"\n== {environment.command(argv[0], argv[1:])}", flush=True)
            run = _one(figure.name, argv, min(left, 60 * figure.minutes))
        if run.outcome != DONE:
            print(f"{figure.name}: {run.outcome}", flush=True)
            if not output.exists():
                records.save(output, figure.benchmark, [], [], reason=run.outcome)
        yield run


def _one(name: str, argv: Sequence[str], seconds: float) -> Run:
    """Run one benchmark with all that it starts, and end it all when its time is up."""
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks", *argv], start_new_session=True)
    try:
        status = process.wait(seconds)
        outcome = DONE if status == 0 else f"failed with status {status}"
    except subprocess.TimeoutExpired:
        outcome = f"stopped after {seconds / 60:.0f} minutes"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return Run(name, outcome, round(time.monotonic() - begun, 1))
