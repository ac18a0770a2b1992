"""Cutting, and cutting and writing, beside peers: the same patches, each side in its own process.

``python -m benchmarks peers --help`` lists the options; ``README.md`` says what each number means,
how the peers' environments are made, and what each peer does (``peers/cut_NAME.py``). Nothing is
timed before its patches were found equal to slices of the whole image.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks import environment, records
from benchmarks.asking import Asked, ask
from benchmarks.peers.patches import whole_seal
from benchmarks.records import FLOOR, OURS, Result
from benchmarks.workloads import HUGE, SCENES, WIDE, WORKLOADS, Workload

PROGRAMS = Path(__file__).parent / "peers"
ALL = {**WORKLOADS, **SCENES, **WIDE, HUGE.name: HUGE}
WHATS = ("decode", "cut", "cut+write")
"""What can be asked: every needed chunk decoded, patches in memory, patches written."""
WARM = -1
"""Round of the run before all others, which is only timed of sides that are run once."""
GRACE = 30.0
"""Seconds after its limit in which a side has to say how far it came."""


@dataclass(frozen=True)
class Program:
    """How a side is started.

    Parameters
    ----------
    file
        In ``peers/``.
    environment
        Whose interpreter runs it; None is ours.
    argument
        On its command line.
    """

    file: str
    environment: str | None = None
    argument: str = ""


PEERS = {
    "zarr": Program("cut_zarr.py"),
    "zarrs": Program("cut_zarr.py", "tensorstore", "zarrs"),
    "dask": Program("cut_dask.py"),
    "dask windows": Program("cut_dask.py", None, "windows"),
    "tensorstore": Program("cut_tensorstore.py", "tensorstore"),
    "xbatcher": Program("cut_xbatcher.py", "xbatcher"),
    "careamics": Program("cut_careamics.py", "careamics"),
    "zarrdataset": Program("cut_zarrdataset.py", "zarrdataset"),
    "monai": Program("cut_monai.py", "monai"),
    "torchio": Program("cut_torchio.py", "torchio"),
}
"""Who is compared, by name."""
SIDES = {FLOOR: Program("cut_floor.py"), OURS: Program("cut_patchloom.py"), **PEERS}


@dataclass
class Side:
    """One side's process, started when it is first asked and again after it was stopped."""

    name: str
    interpreter: str
    environment: Mapping[str, str] = field(default_factory=dict)
    version: str | None = None
    _process: subprocess.Popen[str] | None = None
    _reader: threading.Thread | None = None
    _lines: queue.Queue[str] = field(default_factory=queue.Queue)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What the process answers; that it stopped or cannot, if it does not."""
        process = self._running()
        if process is None or process.stdin is None:
            return {"cannot": "its program did not start"}
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            self.close()
            return {"cannot": "its process ended between two runs"}
        answer = self._line(request["seconds"] + GRACE)
        if answer is None:
            died = process.poll()
            self.close()
            if died is not None:
                return {"cannot": f"its process ended with status {died}"}
            return {"stopped": True, "seconds": request["seconds"], "done": 0, "counts": {}}
        if answer.get("stopped"):
            self.close()
        return answer

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and self._reader is not None:
            process.kill()
            process.wait()
            self._reader.join()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(BrokenPipeError):
                    pipe.close()

    def _running(self) -> subprocess.Popen[str] | None:
        if self._process is None:
            program = SIDES[self.name]
            command = [self.interpreter, str(PROGRAMS / program.file)]
            self._process = subprocess.Popen(
                [*command, *filter(None, [program.argument])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=_environment(self.interpreter) | dict(self.environment),
            )
            self._lines = queue.Queue()
            self._reader = threading.Thread(
                target=_read, args=(self._process.stdout, self._lines), daemon=True
            )
            self._reader.start()
            told = self._line(120)
            if told is None:
                self.close()
                return None
            self.version = told["version"]
        return self._process

    def _line(self, seconds: float) -> dict[str, Any] | None:
        """The next line that is an answer; libraries print too."""
        while True:
            try:
                line = self._lines.get(timeout=seconds)
            except queue.Empty:
                return None
            if not line:
                return None
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer


def _read(stream: Any, lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def _environment(interpreter: str) -> dict[str, str]:
    """What a process sees: our own modules only if the interpreter is ours."""
    found = dict(os.environ)
    root = str(Path(__file__).parents[1])
    path = [root, *filter(None, found.pop("PYTHONPATH", "").split(os.pathsep))]
    if interpreter == sys.executable:
        found["PYTHONPATH"] = os.pathsep.join(path)
    return found


@dataclass
class _Runs:
    """One side's runs of one workload."""

    side: Side
    once: float
    equal: bool | str | None = None
    reason: str | None = None
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    is_whole: bool = False
    """Whether some patches were compared byte by byte."""
    is_part: bool = False
    """Whether all patches were compared by one value in a few."""

    @property
    def seconds(self) -> dict[int, float]:
        """Wall seconds by round, of whole runs."""
        return {r: a["seconds"] for r, a in self.answers.items() if not a.get("stopped")}

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to be had from it."""
        if self.reason:
            return True
        return any(a.get("stopped") or a["seconds"] > self.once for a in self.answers.values())


@dataclass(frozen=True)
class Comparison:
    """How sides are compared.

    Parameters
    ----------
    rounds
        Runs of each side, in turns.
    seconds
        After which a run is stopped.
    once
        A peer whose first run took longer is run once.
    scratch
        Folder for what is written.
    requests
        Tells and forgets how many requests came in, where somebody counts.
    """

    rounds: int
    seconds: float
    once: float
    scratch: Path
    requests: Callable[[], int] | None = None

    def compare(
        self, asked: Asked, name: str, what: str, sides: Sequence[Side], show: Callable[[str], None]
    ) -> list[Result]:
        """Check every side, run all of them in turns, and say what came out."""
        job = self.scratch / "job.json"
        job.write_text(json.dumps(asked.job))
        runs = [
            _Runs(side, math.inf if side.name in (FLOOR, OURS) else self.once) for side in sides
        ]
        if what == "cut":
            for run in runs:
                self._check(asked, job, run)
        else:
            for run in runs:
                self._warm(asked, job, what, run)
        for k in range(self.rounds):
            for run in runs if k % 2 == 0 else runs[::-1]:
                if not run.is_over:
                    self._run(asked, job, what, run, k)
        found = [_result(name, what, asked, run, runs) for run in runs]
        for result in found:
            show(_row(result))
        return found

    def _ask(self, job: Path, what: str, run: _Runs, every: int, whole: bool) -> dict[str, Any]:
        return run.side.ask(
            {
                "what": what,
                "job": str(job),
                "every": every,
                "whole": whole,
                "seconds": self.seconds,
                "out": str(self.scratch / "out"),
                "found": str(self.scratch / "found.npy"),
            }
        )

    def _check(self, asked: Asked, job: Path, run: _Runs) -> None:
        """Have some patches cut, which also warms the side, and compare every byte."""
        answer = self._ask(job, "cut", run, asked.every, whole=True)
        if "cannot" in answer:
            run.reason = answer["cannot"]
        elif answer.get("stopped"):
            run.reason = None  # slow, not wrong: it is timed, and compared then
        else:
            found = np.load(self.scratch / "found.npy")
            found = found[found[:, 0] % asked.every == 0]
            self._judge(run, asked, found, whole=True)

    def _warm(self, asked: Asked, job: Path, what: str, run: _Runs) -> None:
        """Run once, compare what came out, and forget the time unless it was long."""
        self._run(asked, job, what, run, WARM)
        if not run.is_over:
            run.answers.clear()

    def _judge(
        self, run: _Runs, asked: Asked, found: Any, *, whole: bool, written: bool = False
    ) -> None:
        """Compare seals, and say of the side all that was compared so far."""
        wrong = asked.wrong(found, whole)
        if wrong:
            run.reason, run.equal = f"wrong: {wrong}", f"differs: {wrong}"
            return
        run.is_whole, run.is_part = run.is_whole or whole, run.is_part or not whole
        run.equal = asked.sentence(whole=run.is_whole, part=run.is_part, written=written)

    def _run(self, asked: Asked, job: Path, what: str, run: _Runs, k: int) -> None:
        if self.requests:
            self.requests()
        neighbours = environment.Neighbours(lambda: 0.0)
        answer = self._ask(job, what, run, 1, whole=False)
        busy = neighbours.load()
        try:
            if "cannot" in answer:
                run.reason = answer["cannot"]
                return
            if self.requests:
                answer["counts"]["requests"] = self.requests()
            if busy is not None and "cpu" in answer:
                answer["others"] = max(0.0, busy - answer["cpu"] / answer["seconds"])
            run.answers[k] = answer
            if answer.get("stopped") or what == "decode":
                return
            found = np.load(self.scratch / "found.npy")
            if what == "cut":
                self._judge(run, asked, found, whole=False)
            elif not run.equal:
                array = self.scratch / "out" / (answer["array"] or "")
                by_rows = answer["array"] is not None
                seals = _written(array, found, asked.every, by_rows)
                self._judge(run, asked, seals, whole=True, written=True)
        finally:
            shutil.rmtree(self.scratch / "out", ignore_errors=True)


def _written(path: Path, found: Any, every: int, by_rows: bool) -> Any:
    """Seals of every so many-th patch of a Zarr array, whose rows `found` names."""
    array: zarr.Array[Any] = zarr.open_array(path, mode="r")
    pairs = found.tolist()
    if array.shape[0] < len(pairs):
        raise ValueError(f"{path} holds {array.shape[0]} patches, {len(pairs)} were written")
    # A side that wrote by itself names the patch of each row; others name patches and seals.
    rows = {patch: row for row, patch in pairs} if by_rows else {patch: patch for patch, _ in pairs}
    return np.array(
        [
            (patch, whole_seal(np.ascontiguousarray(array[row])))
            for patch, row in rows.items()
            if patch % every == 0
        ],
        dtype=np.int64,
    ).reshape(-1, 2)


def _result(name: str, what: str, asked: Asked, run: _Runs, runs: Sequence[_Runs]) -> Result:
    """The figures of one side."""
    base = Result(
        workload=name,
        what=what,
        side=run.side.name,
        version=None if run.side.name == FLOOR else run.side.version,
        of=asked.n_patches,
        equal=run.equal,
        reason=run.reason or "not run",
    )
    if run.reason or not run.answers:
        return base
    by_name = {r.side.name: r.seconds for r in runs}
    last = list(run.answers.values())[-1]
    counts = {
        name: statistics.median(found)
        for name in ("cpu", "others")
        if (found := [a[name] for a in run.answers.values() if name in a])
    }
    base = replace(base, counts={**counts, **last["counts"]})
    if not run.seconds:
        # A bound, not a measurement: it would have taken longer than it was let.
        least = {
            side: last["seconds"] / statistics.median(by_name[side].values())
            for side in (FLOOR, OURS)
            if by_name.get(side)
        }
        return replace(
            base,
            done=last["done"],
            seconds=last["seconds"],
            over_floor=least.get(FLOOR),
            over_ours=least.get(OURS),
            reason=f"stopped at {last['seconds']:.0f} s; ratios are at least these",
        )
    over = {
        side: [s / found.get(k, statistics.median(found.values())) for k, s in run.seconds.items()]
        for side, found in by_name.items()
        if side in (FLOOR, OURS) and side != run.side.name and found
    }
    told = over.get(FLOOR if run.side.name == OURS else OURS) or None
    return replace(
        base,
        done=asked.n_patches,
        reason=None,
        seconds=statistics.median(run.seconds.values()),
        spread=(min(told), max(told)) if told else None,
        over_floor=statistics.median(over[FLOOR]) if over.get(FLOOR) else None,
        over_ours=statistics.median(over[OURS]) if over.get(OURS) else None,
    )


def _row(result: Result) -> str:
    def figure(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    equal = "" if result.equal is None else "equal" if result.equal is True else str(result.equal)
    return (
        f"{result.workload:22} {result.what:10} {result.side:13} "
        f"{result.done:6} of {result.of:6} {figure(result.seconds, '8.3f'):>8} s "
        f"{figure(result.counts.get('cpu'), '7.3f'):>7} cpu "
        f"{figure(result.over_floor, '7.2f'):>7} {figure(result.over_ours, '7.2f'):>7}  "
        f"{result.reason or equal}"
    )


@contextmanager
def _started(
    names: Sequence[str], environments: Path | None, environment: Mapping[str, str]
) -> Iterator[tuple[list[Side], dict[str, str]]]:
    """Sides by name, whose processes end with the block; and why others are absent."""
    sides, absent = [], {}
    for name in names:
        needed = SIDES[name].environment
        interpreter = sys.executable
        if needed is not None:
            if environments is None:
                absent[name] = "no environment was given"
                continue
            interpreter = str(environments / needed / "bin" / "python")
            if not Path(interpreter).exists():
                absent[name] = f"no environment {needed}"
                continue
        sides.append(Side(name, interpreter, environment))
    try:
        yield sides, absent
    finally:
        for side in sides:
            side.close()


def main(argv: Sequence[str]) -> int:
    """Run the comparison.

    Parameters
    ----------
    argv
        Arguments after ``peers``.

    Returns
    -------
    int
        Exit status: 1 when a side's patches were wrong.
    """
    options = _parser().parse_args(argv)
    names = list(dict.fromkeys([FLOOR, OURS, *(options.peer or PEERS)]))
    results: list[Result] = []
    with ExitStack() as stack:
        temporary = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="patchloom-peers-"))
        )
        cache = options.cache or temporary / "cache"
        scratch = Path(tempfile.mkdtemp(prefix="peers-", dir=options.scratch or temporary))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        workloads = [_scaled(ALL[name], options.scale) for name in options.workload or ALL]
        asked = {workload.name: ask(workload, cache) for workload in workloads}
        if options.draw_only:
            return 0
        for place in _places(options, asked, temporary):
            with place as (asked_here, suffix, environment, requests):
                sides, absent = stack.enter_context(
                    _started(names, options.environments, environment)
                )
                comparison = Comparison(
                    options.rounds, options.seconds, options.once, scratch, requests
                )
                for key, question in asked_here.items():
                    for what in options.what or ("cut", "cut+write"):
                        if suffix and what == "cut+write":
                            continue
                        found = comparison.compare(
                            question,
                            f"{key}{suffix}",
                            what,
                            [s for s in sides if _takes_part(s.name, key, what)],
                            lambda row: print(row, flush=True),
                        )
                        found += _absent(absent, f"{key}{suffix}", what, question)
                        results += found
                        if options.output is not None:
                            records.add(options.output, "peers", argv, found)
                for side in sides:
                    side.close()
    return int(any(str(result.equal).startswith("differs") for result in results))


def _scaled(workload: Workload, scale: float) -> Workload:
    return workload if scale == 1 else workload.scaled(scale)


def _takes_part(side: str, workload: str, what: str) -> bool:
    if side in (FLOOR, OURS):
        return side == FLOOR or what != "decode"
    if workload == HUGE.name:
        return False
    return what != "decode" or side in ("zarr", "zarrs", "tensorstore")


def _absent(absent: Mapping[str, str], name: str, what: str, asked: Asked) -> list[Result]:
    return [
        Result(workload=name, what=what, side=side, of=asked.n_patches, reason=reason)
        for side, reason in absent.items()
        if _takes_part(side, name, what)
    ]


Place = tuple[dict[str, Asked], str, Mapping[str, str], "Callable[[], int] | None"]


def _places(options: argparse.Namespace, asked: dict[str, Asked], temporary: Path) -> Iterator[Any]:
    """The local disk, or an S3 server at each latency."""
    if not options.latency:

        @contextmanager
        def here() -> Iterator[Place]:
            yield asked, "", {}, None

        yield here()
        return
    from tests.servers.s3 import serve_s3

    from benchmarks.latency import distant

    with serve_s3(None) as server:
        bucket = server.fresh_bucket()
        away = {key: _uploaded(question, bucket, server) for key, question in asked.items()}
        environment = {k: v for k, v in server.environment.items() if k != "AWS_ENDPOINT_URL"}
        for latency in options.latency:

            @contextmanager
            def there(latency: float = latency) -> Iterator[Place]:
                with distant(server.endpoint, latency) as proxy:
                    given = {**server.storage_options, "endpoint_url": proxy.endpoint}
                    moved = {
                        key: replace(q, job={**q.job, "storage_options": given})
                        for key, q in away.items()
                    }
                    yield moved, f", S3 at {latency:g} ms", environment, proxy.requests

            yield there()


def _uploaded(asked: Asked, bucket: str, server: Any) -> Asked:
    """The same question of an object store."""
    import fsspec

    fs = fsspec.filesystem("s3", **server.storage_options)
    [array] = map(Path, asked.job["arrays"])
    [twin] = map(Path, asked.job["twins"])
    [image] = map(Path, asked.job["images"])
    if image != array:
        raise ValueError(f"{asked.workload} is not compared over S3")
    root = f"{bucket}/{asked.workload}"
    fs.put_file(str(array.parent / "zarr.json"), f"{root}/zarr.json")
    moved = {**asked.job}
    for key, path in (("arrays", array), ("twins", twin), ("mask", asked.job["mask"])):
        if path is not None:
            url = f"{root}/{Path(path).name}"
            _put(fs, Path(path), url)
            moved[key] = url if key == "mask" else [url]
    moved["images"] = moved["arrays"]
    return replace(asked, job=moved)


def _put(fs: Any, folder: Path, url: str) -> None:
    """Upload a folder, its links followed."""
    files = [Path(at, name) for at, _, names in os.walk(folder, followlinks=True) for name in names]
    fs.put([str(f) for f in files], [f"{url}/{f.relative_to(folder)}" for f in files])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks peers", description=__doc__)
    parser.add_argument(
        "--workload", action="append", choices=list(ALL), help="may be repeated; default all"
    )
    parser.add_argument(
        "--what", action="append", choices=WHATS, help="may be repeated; default cut, cut+write"
    )
    parser.add_argument(
        "--peer", action="append", choices=list(PEERS), help="may be repeated; default all"
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side, in turns")
    parser.add_argument("--seconds", type=float, default=120.0, help="after which a run is stopped")
    parser.add_argument(
        "--once", type=float, default=6.0, help="peers whose run takes longer are run once"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="shrinks images, or their number")
    parser.add_argument(
        "--latency",
        type=float,
        action="append",
        help="milliseconds of a request to the tests' S3 server, instead of the disk; repeatable",
    )
    parser.add_argument(
        "--environments", type=Path, help="folder of the peers' environments, by name"
    )
    parser.add_argument("--cache", type=Path, help="keeps images; default a temporary folder")
    parser.add_argument("--scratch", type=Path, help="takes output; default a temporary folder")
    parser.add_argument("--output", type=Path, help="JSON file, to which results are added")
    parser.add_argument("--draw-only", action="store_true", help="fill the cache and end")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
