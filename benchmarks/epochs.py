"""An epoch of the same patches by every side: compared first, then timed in turns.

A side is a process of its own, run by the interpreter of its library (``peers/load_NAME.py``).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import statistics
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec

import patchloom
from benchmarks.peers.batches import STEP, Asked
from benchmarks.records import FLOOR, OURS, Result

PEERS = (
    "xbatcher",
    "zarrdataset",
    "careamics",
    "litdata",
    "mosaicml-streaming",
    "insitubatch",
)
"""What epochs are compared with: names of packages, and of their environments."""
FILES, TOGETHER = "npy files", "npy files, a batch at once"
"""One loose file a patch, which need no environment of their own: as a data set reads them, and
with all requests of a batch under way at once."""
ORDERS = ("sequential", "window", "window, 64 MiB", "shuffled", "uncompressed", "distant", "live")
"""What is measured: orders of the store's patches, shuffled ones that are stored as they are, and
from a distant store, and live."""
RAW = ("litdata", "mosaicml-streaming")
"""Peers whose own formats hold pixels as they are."""
ALONE = ("window", "window, 64 MiB")
"""Of these, what is measured of the floor and of ours alone."""
CANNOT = {
    ("litdata", "live"): "reads its own chunks, not images",
    ("mosaicml-streaming", "live"): "reads its own shards, not images",
    ("insitubatch", "live"): "samples one axis by whole fields; cuts no patches out of an image",
}
CHUNK = 512
"""Pixels of a chunk of the image along each axis."""
SLOW = 10.0
"""A peer whose epoch takes longer than so many seconds is timed once."""
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Epochs:
    """Patches that every side loads, and the right answer.

    Parameters
    ----------
    name
        Of the workload.
    asked
        What every side is told.
    wholes, parts
        How often each seal occurs: of all bytes of a patch, and of one value in
        :data:`~benchmarks.peers.batches.STEP`.
    """

    name: str
    asked: Asked
    wholes: Mapping[int, int]
    parts: Mapping[int, int]

    def wrong(self, found: npt.NDArray[np.int64], whole: bool) -> str | None:
        """What is wrong with the seals of the patches that a side handed out, or None."""
        have, due = Counter(found.tolist()), self.wholes if whole else self.parts
        other = sum(max(0, k - due.get(seal, 0)) for seal, k in have.items())
        if other:
            return f"{other} of {len(found)} patches are none of those asked, or come twice"
        return None


def draw(
    cache: Path,
    name: str,
    rows: int,
    columns: int,
    side: int,
    stride: int,
    *,
    batch: int = 64,
    latency: float = 0.0,
) -> Epochs:
    """Draw an image of blobs under camera noise, patch stores of it, and a twin of Zarr v2.

    Parameters
    ----------
    cache
        Folder that keeps them from run to run.
    name
        Of the workload.
    rows, columns
        Of patches.
    side, stride
        Pixels of a patch along each axis, and how far apart they lie.
    batch
        Patches of a batch.
    latency
        Seconds of a request to a distant store.
    """
    folder = cache / f"epochs-{rows}x{columns}-{side}-{stride}"
    if not folder.exists():
        draft = cache / f".{folder.name}-{os.getpid()}"
        draft.mkdir(parents=True)
        _draw(draft, rows, columns, side, stride)
        draft.rename(folder)
    asked = Asked(
        source=str(folder / "source.zarr"),
        source_v2=str(folder / "source-v2.zarr"),
        store=str(folder / "store.zarr"),
        raw=str(folder / "store-raw.zarr"),
        own=str(folder),
        n=rows * columns,
        side=side,
        stride=stride,
        dtype="uint16",
        batch=batch,
        latency=latency,
    )
    seals = np.load(folder / "seals.npy")
    return Epochs(name, asked, Counter(seals[0].tolist()), Counter(seals[1].tolist()))


def _draw(folder: Path, rows: int, columns: int, side: int, stride: int) -> None:
    source = folder / "source.zarr"
    chance = np.random.default_rng(0)
    shape = stride * (rows - 1) + side, stride * (columns - 1) + side
    zarr.create_group(source)
    layout: dict[str, Any] = {"shape": shape, "chunks": (CHUNK, CHUNK), "dtype": "uint16"}
    image = zarr.create_array(
        source / "0",
        compressors=BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
        dimension_names=("y", "x"),
        **layout,
    )
    twin = zarr.create_array(
        folder / "source-v2.zarr",
        compressors=numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE),
        zarr_format=2,
        **layout,
    )
    wide = -(-shape[1] // 16) * 16
    seals: list[tuple[int, int]] = []
    held = np.empty((0, shape[1]), "uint16")
    top = 0
    for y in range(0, shape[0], CHUNK):
        height = min(CHUNK, shape[0] - y)
        level = chance.gamma(2, 60, (-(-height // 16), wide // 16)).repeat(16, 0)[:height]
        pixels = chance.poisson(level.repeat(16, 1)[:, : shape[1]] + 100).astype("uint16")
        image[y : y + height] = pixels
        twin[y : y + height] = pixels
        held = np.concatenate([held, pixels])
        while top + side <= y + height:
            seals += _seals(held[:side], side, stride)
            held = held[stride:]
            top += stride
    images = patchloom.open_images(source / "0", axes="yx")
    overlap = side - stride
    config = {"name": "sequential", "patch_size": [side] * 2, "overlaps": [overlap] * 2}
    plan = patchloom.plan(images, config, edge="drop")
    patchloom.materialize(plan, folder / "store.zarr", progress=False)
    patchloom.materialize(plan, folder / "store-raw.zarr", codec="none", progress=False)
    np.save(folder / "seals.npy", np.array(seals, np.int64).T)


def _seals(band: npt.NDArray[Any], side: int, stride: int) -> Iterator[tuple[int, int]]:
    """Of the patches of one row, the seal of all bytes, and that of some values."""
    for x in range(0, band.shape[1] - side + 1, stride):
        patch = np.ascontiguousarray(band[:, x : x + side]).reshape(-1)
        yield zlib.crc32(patch.data), zlib.crc32(np.ascontiguousarray(patch[::STEP]).data)


@dataclass
class Side:
    """A process that loads."""

    name: str
    python: str
    folder: Path
    version: str | None = None
    reason: str | None = None
    """Why it cannot go on."""
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def ask(
        self, epochs: Epochs, way: str, seconds: float, *, whole: bool = False
    ) -> dict[str, Any]:
        """One epoch in some way, or what stands in its way: ``cannot``."""
        if self.reason is not None:
            return {"cannot": self.reason}
        told = self.folder / f"{self.name}-{epochs.name}.json".replace(" ", "-")
        if not told.exists():
            own = Path(epochs.asked.own, f"own-{self.name.partition(',')[0]}".replace(" ", "-"))
            told.write_text(json.dumps({**vars(epochs.asked), "own": str(own)}))
        found = self.folder / f"{self.name}-found.npy"
        request = {
            "asked": str(told),
            "way": way,
            "seconds": seconds,
            "whole": whole,
            "found": str(found),
        }
        answer = self._exchange(request, 1.5 * seconds + 60)
        if "done" in answer and (wrong := epochs.wrong(np.load(found), whole)):
            raise ValueError(f"{self.name}, {way} of {epochs.name}: {wrong}")
        return answer

    def _exchange(self, request: Mapping[str, Any], patience: float) -> dict[str, Any]:
        process = self._started()
        if process is None:
            return {"cannot": self.reason}
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = self._heard(patience)
        if answer is None:
            self.stop()
            return {"cannot": f"it did not answer within {patience:.0f} s"}
        return answer

    def _started(self) -> subprocess.Popen[str] | None:
        if self._process is not None:
            return self._process
        script = _HERE / "peers" / f"load_{re.sub('[- ]', '_', self.name.partition(',')[0])}.py"
        with (self.folder / f"{self.name}.log").open("a") as log:
            self._process = subprocess.Popen(
                [self.python, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        hello = self._heard(120)
        if hello is None:
            log_text = (self.folder / f"{self.name}.log").read_text().strip().splitlines()
            self.stop()
            self.reason = f"did not start: {log_text[-1] if log_text else 'no word'}"[:200]
            return None
        self.version = hello["version"]
        return self._process

    def _heard(self, patience: float) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], patience)
        line = self._process.stdout.readline() if ready else ""
        return None if not line else dict(json.loads(line))

    def stop(self) -> None:
        """End the process; the next question starts another one."""
        if self._process is None:
            return
        process, self._process = self._process, None
        # Its standard input ends, and with it the process; both pipes are closed.
        with process, contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def sides(
    folder: Path, environments: Path | None, peers: Sequence[str] = PEERS
) -> Iterator[dict[str, Side]]:
    """The floor, ours, loose files, and peers that have an environment; the others say so.

    Parameters
    ----------
    folder
        Takes what sides keep.
    environments
        Folder of virtual environments by the names in :data:`PEERS`; None for no peers.
    peers
        Which.
    """
    made = {name: Side(name, sys.executable, folder) for name in (FLOOR, OURS, FILES, TOGETHER)}
    for name in peers if environments is not None else ():
        assert environments is not None
        python = environments / name / "bin" / "python"
        made[name] = Side(name, str(python), folder)
        if not python.exists():
            made[name].reason = "not installed here"
    try:
        yield made
    finally:
        for side in made.values():
            side.stop()


def compare(
    epochs: Epochs, order: str, among: Mapping[str, Side], *, rounds: int, seconds: float
) -> list[Result]:
    """Every side's epochs: compared byte by byte, then timed in turns.

    Parameters
    ----------
    epochs
        The patches.
    order
        One of :data:`ORDERS`.
    among
        The sides, ours and the floor with them.
    rounds
        Timed runs of each side; of one whose epoch takes longer than :data:`SLOW`, one.
    seconds
        After which an epoch is stopped.

    Returns
    -------
    list of Result
        The floor's, ours, and the peers'.

    Raises
    ------
    ValueError
        If a side hands out other patches.
    """
    among = {name: side for name, side in among.items() if _takes_part(name, order)}
    ways = dict.fromkeys(among, order)
    if order == "uncompressed":
        ways |= {name: "shuffled" for name in RAW if name in ways}
    if TOGETHER in ways:
        ways[TOGETHER] = "distant, a batch at once"
    if FLOOR in ways:
        ways[FLOOR] = "live" if order == "live" else "store"
    reasons: dict[str, str] = {}
    for name, side in among.items():
        found: dict[str, Any] = {}
        if (name, order) in CANNOT:
            found = {"cannot": CANNOT[name, order]}
        elif name not in (FLOOR, OURS):
            found = side.ask(epochs, "prepare", seconds)
        if "cannot" not in found:
            found = side.ask(epochs, ways[name], seconds, whole=True)
        if "cannot" in found:
            reasons[name] = found["cannot"]
            side.stop()
        elif found["done"] < epochs.asked.n and found["seconds"] < seconds:
            raise ValueError(f"{name}, {order} of {epochs.name}: {found['done']} patches")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in among}
    paired: dict[str, list[float]] = {name: [] for name in among}
    for k in range(rounds):
        turn = [name for name in among if name not in reasons]
        now: dict[str, float] = {}
        for name in turn if k % 2 == 0 else turn[::-1]:
            if name not in (FLOOR, OURS) and runs[name] and runs[name][-1]["seconds"] > SLOW:
                continue
            answer = among[name].ask(epochs, ways[name], seconds)
            if "cannot" in answer:
                reasons[name] = answer["cannot"]
                continue
            runs[name].append(answer)
            now[name] = answer["seconds"] / max(1, answer["done"])
        for name in now:
            base = now.get(FLOOR if name == OURS else OURS)
            if base and name != FLOOR:
                paired[name].append(now[name] / base)
    return [
        _result(epochs, order, side, runs[side.name], paired[side.name], runs, reasons)
        for side in among.values()
    ]


def _takes_part(name: str, order: str) -> bool:
    if name == FLOOR:
        return order not in ("uncompressed", "distant")
    if order == "uncompressed":
        return name in (OURS, *RAW)
    if name in (FILES, TOGETHER):
        return order == "distant" or (name == FILES and order == "shuffled")
    return name == OURS or order not in (*ALONE, "distant")


def _result(
    epochs: Epochs,
    order: str,
    side: Side,
    runs: Sequence[Mapping[str, Any]],
    paired: Sequence[float],
    all_runs: Mapping[str, Sequence[Mapping[str, Any]]],
    reasons: Mapping[str, str],
) -> Result:
    n = epochs.asked.n
    where = f"{order}, {1000 * epochs.asked.latency:g} ms" if order == "distant" else order
    same: dict[str, Any] = {
        "workload": epochs.name if order == "live" else f"{epochs.name}, {where}",
        "what": "live" if order == "live" else "load",
        "side": side.name,
        "version": side.version,
        "of": n,
    }
    if not runs:
        return Result(**same, reason=reasons.get(side.name, "no run"))
    seconds = statistics.median(run["seconds"] for run in runs)
    done = min(run["done"] for run in runs)
    each = seconds / max(1, done)
    bases = {
        name: statistics.median(run["seconds"] / max(1, run["done"]) for run in all_runs[name])
        for name in (FLOOR, OURS)
        if all_runs.get(name)
    }
    return Result(
        **same,
        done=done,
        seconds=seconds,
        spread=(min(paired), max(paired)) if paired else None,
        over_floor=each / bases[FLOOR] if FLOOR in bases and side.name != FLOOR else None,
        over_ours=each / bases[OURS] if OURS in bases and side.name != OURS else None,
        equal=True if done == n else "of those handed out, byte by byte",
        counts={
            "patches_per_s": done / seconds,
            "first_batch_s": statistics.median(run["first"] for run in runs),
            "cpu_s": statistics.median(run["cpu"] for run in runs),
            "peak_mib": max(run["peak_mib"] for run in runs),
            "rounds": len(runs),
            **runs[-1]["counts"],
        },
        reason=None if done == n else f"stopped after {seconds:.0f} s",
    )


HEADER = (
    f"{'workload':28} {'side':20} {'done':>13} {'s':>8} {'/s':>8} {'of floor':>8} "
    f"{'of ours':>8} {'spread':>12} {'first s':>8} {'MiB':>6}"
)


def row(r: Result) -> str:
    """A line of the table."""
    if r.seconds is None:
        return f"{r.workload:28} {r.side:20} {r.reason}"
    floor, ours = (f"{x:.2f}" if x else "" for x in (r.over_floor, r.over_ours))
    spread = "..".join(f"{x:.2f}" for x in r.spread or ())
    done = f"{r.done} of {r.of}"
    return (
        f"{r.workload:28} {r.side:20} {done:>13} {r.seconds:8.3f} {r.counts['patches_per_s']:8.0f} "
        f"{floor:>8} {ours:>8} {spread:>12} {r.counts['first_batch_s']:8.3f} "
        f"{r.counts['peak_mib']:6.0f}"
    )
