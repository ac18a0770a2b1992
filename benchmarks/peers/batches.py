"""What all sides share that hand out batches for training: what is asked, the clock, the seals.

Needs NumPy only. A side is a process that is asked line by line, and a file ``load_NAME.py`` that
says how it loads.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

STEP = 997
"""Of a patch one value in so many is compared while the clock runs."""


class CannotError(Exception):
    """Why a side cannot do something at all."""


@dataclass(frozen=True)
class Asked:
    """One epoch: the same patches of every side, each once.

    Parameters
    ----------
    source
        Folder of a Zarr v3 group with the image, array ``0`` of axes y and x.
    source_v2
        A Zarr v2 array of the same pixels and chunks.
    store
        The patch store: Zarr v3, array ``images`` of axes patch, c, y, x.
    raw
        The same patches in a store without compression.
    own
        Folder where a side may keep the patches in a format of its own, made before any clock runs.
    n, side, stride
        Patches, their pixels along y and x, and how far apart they lie in the image.
    dtype
        Of the pixels.
    batch
        Patches of a batch.
    threads
        Processors that a side may keep busy.
    latency
        Seconds that each request to a distant store takes.
    """

    source: str
    source_v2: str
    store: str
    raw: str
    own: str
    n: int
    side: int
    stride: int
    dtype: str
    batch: int
    threads: int = 2
    latency: float = 0.0


Load = Callable[[Asked], Iterable[Any]]
"""Makes what is iterated over, once or epoch after epoch: batches [k, (1,) side, side]."""
COUNTS: dict[str, Any] = {}
"""Figures of the epoch at hand that a side knows by itself."""


def seals(batch: Any, asked: Asked, whole: bool) -> Any:
    """Of each patch a number: of every byte, or of one value in `STEP`, for next to nothing."""
    pixels = np.asarray(batch)
    pixels = pixels.reshape(len(pixels), -1)
    if pixels.shape[1] != asked.side**2:
        raise ValueError(f"a patch has {asked.side**2} pixels, got {pixels.shape[1]}")
    part = pixels if whole else pixels[:, ::STEP]
    part = np.ascontiguousarray(part, asked.dtype)
    return np.array([zlib.crc32(patch) for patch in part], np.int64)


def serve(
    name: str,
    ways: dict[str, Load],
    *,
    package: str | None = None,
    prepare: Callable[[Asked], None] | None = None,
) -> None:
    """Answer requests, one a line, until there are no more.

    Parameters
    ----------
    name
        Of the side.
    ways
        How it loads, by the name of an order or a source. What one returns is iterated over again
        in every run: workers that stay alive do.
    package
        Whose version is told.
    prepare
        Makes what the side keeps in its own format.
    """
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer

    def tell(answer: dict[str, Any]) -> None:
        text = json.dumps(answer, default=lambda value: value.item())
        os.write(out, text.encode() + b"\n")

    tell({"name": name, "version": metadata.version(package or name)})
    made: dict[tuple[str, str], Iterable[Any]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            asked = Asked(**json.loads(Path(request["asked"]).read_text()))
            if request["way"] == "prepare":
                if prepare is not None:
                    prepare(asked)
                answer: dict[str, Any] = {}
            elif request["way"] not in ways:
                raise CannotError("not one of its ways")
            else:
                answer = _run(request, asked, made, ways[request["way"]])
        except CannotError as error:
            answer = {"cannot": str(error)}
        except BaseException as error:
            traceback.print_exc()
            answer = {"cannot": f"{type(error).__name__}: {error}"[:300]}
        tell(answer)


def _run(
    request: dict[str, Any], asked: Asked, made: dict[tuple[str, str], Iterable[Any]], load: Load
) -> dict[str, Any]:
    """One epoch, or as much of it as there is time for."""
    gc.collect()
    _forget_peak()
    COUNTS.clear()
    whole, found = request["whole"], []
    n, first, seconds = 0, 0.0, 0.0
    used = _cpu()
    begun = time.perf_counter()
    key = request["asked"], request["way"]
    batches = made.get(key)
    if batches is None:
        batches = load(asked)
        if not hasattr(batches, "__next__"):
            made[key] = batches
    for batch in batches:
        seconds = time.perf_counter() - begun
        first = first or seconds
        found.append(seals(batch, asked, whole))
        n += len(found[-1])
        if seconds > request["seconds"]:
            break
    if n > asked.n:
        raise ValueError(f"an epoch has {asked.n} patches, got {n}")
    # The end of the epoch belongs to it: threads and files are closed there.
    seconds = time.perf_counter() - begun
    np.save(request["found"], np.concatenate(found) if found else np.empty(0, np.int64))
    return {
        "seconds": seconds,
        "first": first,
        "cpu": _cpu() - used,
        "done": n,
        "peak_mib": _peak() / 2**20,
        "counts": {**COUNTS},
    }


def threaded(make: Callable[[Any], Any], parts: Iterable[Any], threads: int) -> Any:
    """What `make` makes of each part, in order, some ahead, by threads."""
    from collections import deque
    from concurrent.futures import Future, ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        coming: deque[Future[Any]] = deque()
        for part in parts:
            coming.append(pool.submit(make, part))
            if len(coming) > 2 * threads:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def mixed(n: int, batch: int) -> list[list[int]]:
    """All numbers below n in a random order, in batches."""
    order = np.random.default_rng(1).permutation(n)
    return [order[k : k + batch].tolist() for k in range(0, n, batch)]


def stacked(name: str) -> Callable[[Sequence[Any]], Any]:
    """A collate function that keeps one key of each item."""

    def collate(items: Sequence[Any]) -> Any:
        return np.stack([item[name] for item in items])

    return collate


def _cpu() -> float:
    """Processor seconds of this process, of children that ended, and, on Linux, of living ones."""
    told = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found = sum(one.ru_utime + one.ru_stime for one in told)
    tick = os.sysconf("SC_CLK_TCK")
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                found += sum(map(int, fields[11:13])) / tick
    return found


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Most bytes resident since the request came, where the system says so; else ever."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
