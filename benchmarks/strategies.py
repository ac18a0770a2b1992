"""Time and weigh the strategies: plans of huge images, and specs a second, beside their peers.

``python -m benchmarks strategies --help`` lists the options; ``README.md`` says what each number
means. Every measurement is a process of its own; peers run in their own environments.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import environment

PEERS = Path(__file__).parent / "peers"
BUILD_SECONDS, BUILD_MIB = 1.0, 200.0
"""What building a plan may cost."""
RATES = {"stratified": 1e6}
"""Specs a second that are asked for; 5 million of the others."""


@dataclass(frozen=True)
class Image:
    """One image to plan, and how its patches lie.

    Parameters
    ----------
    name
        What the table calls it.
    shape, chunks
        Extents in pixels.
    patch_size, overlaps
        Of the patches.
    n_patches
        Asked of random strategies; None is their default.
    """

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    patch_size: tuple[int, ...]
    overlaps: tuple[int, ...]
    n_patches: int | None = None

    def config(self, strategy: str) -> dict[str, Any]:
        """What `patchloom.plan` is asked for."""
        found: dict[str, Any] = {"name": strategy, "patch_size": list(self.patch_size)}
        if strategy in ("sequential", "tiled", "chunk_aligned"):
            found["overlaps"] = list(self.overlaps)
        if strategy in ("random", "fixed_random") and self.n_patches is not None:
            found["n_patches"] = self.n_patches
        return found


def _cube(chunks: tuple[int, int, int]) -> Image:
    name = f"16,384^3, chunks {'x'.join(map(str, chunks))}"
    return Image(name, (16384,) * 3, chunks, (32,) * 3, (16,) * 3, 10**9)


def _plane(chunk: int) -> Image:
    return Image(f"100,000^2, chunks {chunk}", (100_000,) * 2, (chunk,) * 2, (256,) * 2, (0, 0))


PLANS = (
    *(_plane(chunk) for chunk in (256, 1024)),
    *(_cube(chunks) for chunks in ((128, 128, 128), (64, 128, 128), (64, 64, 64))),
)
"""The plans that are built."""
SPECS = (
    Image("3-D, 27 to 64 a chunk", (2048,) * 3, (64,) * 3, (32,) * 3, (16,) * 3, 64 * 32**3),
    Image("2-D, 4 a chunk", (32768,) * 2, (512,) * 2, (256,) * 2, (0, 0), 4 * 64**2),
)
"""The images whose specs are made."""
CHECK = Image("check", (1000, 777), (256, 256), (64, 64), (16, 16))
"""The image whose specs are compared one by one."""
STRATEGIES = (
    "sequential",
    "tiled",
    "chunk_aligned",
    "random",
    "fixed_random",
    "stratified",
    "blue_noise",
)
CAN = {
    "careamics": ("sequential", "tiled", "random", "fixed_random", "stratified"),
    "zarrdataset": ("sequential", "blue_noise"),
}
"""What each peer can do at all."""


@dataclass(frozen=True)
class Record:
    """One strategy over one image, ours and every peer's.

    Parameters
    ----------
    task
        ``build`` or ``rate``.
    image, strategy
        What was asked.
    ours
        Medians of our runs, and all runs.
    peers
        What each peer answered, or why it was stopped, by name.
    """

    task: str
    image: dict[str, Any]
    strategy: str
    ours: dict[str, Any]
    peers: dict[str, dict[str, Any]]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark of the strategies.

    Parameters
    ----------
    argv
        Arguments after ``strategies``.

    Returns
    -------
    int
        Exit status.
    """
    options = _parser().parse_args(argv)
    strategies = [name for name in options.strategy or STRATEGIES if _known(name)]
    interpreters = {name: getattr(options, f"{name}_python") for name in CAN}
    peers = {name: path for name, path in interpreters.items() if path is not None}
    compared = _compare(peers)
    print(f"specs equal to the peers': {compared or 'no peer given'}", flush=True)
    records: list[Record] = []
    for task, images in (("build", PLANS), ("rate", SPECS)):
        print(f"\n{_HEADERS[task]}", flush=True)
        for image in images:
            for strategy in strategies:
                record = _measure(task, image, strategy, peers, options)
                records.append(record)
                print(_ROWS[task](record), flush=True)
    if options.output is not None:
        environment.save(
            options.output,
            "strategies",
            argv,
            compared=compared,
            records=[asdict(record) for record in records],
            repeats=options.repeats,
            peer_seconds=options.peer_seconds,
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks strategies", description=__doc__)
    parser.add_argument("--strategy", action="append", choices=STRATEGIES, help="may be repeated")
    parser.add_argument("--repeats", type=int, default=5, help="our runs of each case")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one count of specs")
    parser.add_argument(
        "--peer-seconds", type=float, default=30.0, help="after which a peer is stopped"
    )
    for name in CAN:
        parser.add_argument(f"--{name}-python", help=f"interpreter that has {name}")
    parser.add_argument("--output", type=Path, help="JSON file for the records")
    return parser


def _known(strategy: str) -> bool:
    from patchloom.errors import PatchloomError
    from patchloom.patching.factory import parse_patching

    try:
        parse_patching(CHECK.config(strategy))
    except PatchloomError:
        return False
    return True


def _ask(
    peer: str, interpreter: str, request: dict[str, Any], seconds: float | None = None
) -> dict[str, Any]:
    """What a peer answers, in a process of its own."""
    # One core: what is compared is work, not how many cores it keeps.
    alone = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
    command = [interpreter, str(PEERS / f"with_{peer}.py"), json.dumps(request)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | alone,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        # The clock starts when it has imported what it needs, and says so.
        process.stdout.readline()
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return {"stopped": f"not done after {seconds:.0f} s"}
    if process.returncode:
        last = err.decode().strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        return {"stopped": last[0][:200]}
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


@cache
def _ask_once(peer: str, interpreter: str, request: str, seconds: float) -> dict[str, Any]:
    """What a peer answers, asked once for all that are the same to it."""
    return _ask(peer, interpreter, json.loads(request), seconds)


def _compare(peers: dict[str, str]) -> dict[str, int]:
    """Specs found equal, by peer and strategy; what differs ends the benchmark."""
    found = {}
    for peer, strategy in (("careamics", "sequential"), ("careamics", "tiled")):
        if peer in peers:
            request = {**_request("list", CHECK, strategy), "seconds": 0}
            ours = _list("patchloom", sys.executable, request)
            theirs = _list(peer, peers[peer], request)
            if not _alike(ours, theirs):
                raise SystemExit(f"{strategy} differs from {peer}'s: nothing is timed")
            found[f"{peer} {strategy}"] = len(ours)
    if "zarrdataset" in peers:
        image = Image("check", (1024, 768), (256, 256), (64, 64), (0, 0))
        request = _request("list", image, "sequential")
        ours = [spec["coords"] for spec in _list("patchloom", sys.executable, request)]
        if sorted(ours) != sorted(_list("zarrdataset", peers["zarrdataset"], request)):
            raise SystemExit("the grid differs from zarrdataset's: nothing is timed")
        found["zarrdataset sequential"] = len(ours)
    return found


def _list(peer: str, interpreter: str, request: dict[str, Any]) -> list[Any]:
    """All specs of a small image."""
    found = _ask(peer, interpreter, request)
    if "stopped" in found:
        raise SystemExit(f"{peer} did not answer: {found['stopped']}")
    specs: list[Any] = found["specs"]
    return specs


def _alike(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    """The same specs, in any order: every key that both have."""

    def texts(specs: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps({k: spec[k] for k in common}, sort_keys=True) for spec in specs)

    common = ours[0].keys() & theirs[0].keys()
    return {"coords", "patch_size", "sample_idx"} <= common and texts(ours) == texts(theirs)


def _request(task: str, image: Image, strategy: str) -> dict[str, Any]:
    return {
        "task": task,
        "shape": image.shape,
        "chunks": image.chunks,
        "config": image.config(strategy),
    }


def _measure(
    task: str, image: Image, strategy: str, peers: dict[str, str], options: argparse.Namespace
) -> Record:
    request = {
        **_request(task, image, strategy),
        "seconds": options.seconds,
        "repeats": options.repeats,
    }
    ours = _ask("patchloom", sys.executable, request)
    ours["runs"] = {k: ours[k] for k in ("seconds", "cpu_seconds", "rates") if k in ours}
    for key, values in ours["runs"].items():
        ours[key.removesuffix("s") if key == "rates" else key] = statistics.median(values)
    if "loop" in ours:
        ours["loop_rate"] = ours["loop"]["made"] / ours["loop"]["seconds"]
    answers = {}
    for peer, interpreter in peers.items():
        if strategy in CAN[peer]:
            asked = request if peer == "zarrdataset" else {**request, "chunks": None}
            found = {**_ask_once(peer, interpreter, json.dumps(asked), options.peer_seconds)}
            if task == "rate" and "made" in found:
                found["rate"] = found["made"] / found["seconds"]
            answers[peer] = found
    return Record(task, asdict(image), strategy, ours, answers)


_HEADERS = {
    "build": (
        f"{'plan':33} {'strategy':13} {'patches':>13} {'s':>6} {'cpu s':>6} {'MiB':>5}  peers"
    ),
    "rate": f"{'specs':33} {'strategy':13} {'M/s':>6} {'one by one, k/s':>16}  peers",
}


def _build_row(record: Record) -> str:
    ours, name = record.ours, record.image["name"]
    if "stopped" in ours:
        return f"{name:33} {record.strategy:13} {ours['stopped']}"
    missed = ours["seconds"] > BUILD_SECONDS or ours["mib"] > BUILD_MIB
    theirs = (
        f"{peer}: {found.get('stopped') or _times(found['seconds'] / ours['seconds'])}"
        + ("" if "mib" not in found else f" and {found['mib']:.0f} MiB")
        for peer, found in record.peers.items()
    )
    return (
        f"{name:33} {record.strategy:13} {ours['n_patches']:13,} {ours['seconds']:6.2f} "
        f"{ours['cpu_seconds']:6.2f} {ours['mib']:5.0f}  {'; '.join(theirs)}"
        f"{'  (over budget)' if missed else ''}"
    )


def _rate_row(record: Record) -> str:
    ours, name = record.ours, record.image["name"]
    if "stopped" in ours:
        return f"{name:33} {record.strategy:13} {ours['stopped']}"
    missed = ours["rate"] < RATES.get(record.strategy, 5e6)
    theirs = (
        f"{peer}: {found.get('stopped') or _times(ours['rate'] / found['rate'])}"
        for peer, found in record.peers.items()
    )
    return (
        f"{name:33} {record.strategy:13} {ours['rate'] / 1e6:6.1f} "
        f"{ours['loop_rate'] / 1e3:16.1f}  {'; '.join(theirs)}"
        f"{'  (under the goal)' if missed else ''}"
    )


def _times(ratio: float) -> str:
    return f"ratio {ratio:.3g}"


_ROWS = {"build": _build_row, "rate": _rate_row}
