"""Workers: whether those of a cluster are alike, large enough, and see what the client sees."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from patchloom import __version__
from patchloom.doctor.finding import Finding
from patchloom.doctor.installed import version_of
from patchloom.doctor.places import read_first, try_write
from patchloom.errors import PatchloomError
from patchloom.image import Image
from patchloom.location import Location

__all__ = ["workers"]

_ALIKE = ("dask", "distributed", "zarr", "numcodecs", "numpy", "pyarrow", "fsspec", "cloudpickle")
"""Packages whose versions should be those of the client."""


def workers(
    client: Any, memory: int | None, image: Image | None, folder: Location | None
) -> Iterator[Finding]:
    """Look at all workers of a cluster.

    Parameters
    ----------
    client
        A ``distributed.Client``.
    memory
        Bytes that one task may use; None for those of Dask's configuration.
    image
        One that they have to read; None to leave it out.
    folder
        One that they have to write into; None to leave it out.
    """
    from patchloom.run.lending import lending
    from patchloom.run.settings import Settings

    known = client.scheduler_info(n_workers=-1)["workers"]
    address = client.scheduler.address
    if not known:
        said = f"{address} answers, but has no workers"
        yield Finding("fail", "scheduler", said, "start some: dask worker ADDRESS")
        return
    threads = sum(worker["nthreads"] for worker in known.values())
    yield Finding("ok", "scheduler", f"{address}: {len(known)} workers, {threads} threads")
    yield _memory(known, memory or Settings.now().memory)
    try:
        with lending(client):
            told = client.run(_seen, image, folder)
    except Exception as error:  # what a worker without patchloom raises depends on Dask
        said = f"workers cannot run patchloom: {type(error).__name__}: {error}"
        yield Finding("fail", "workers", said, f"install patchloom {__version__} on each of them")
        return
    yield from _versions(told)
    for key, what in (("read", "read the first image"), ("write", "write at the output")):
        failed = {name: seen[key] for name, seen in told.items() if seen[key]}
        if failed:
            name, text = next(iter(failed.items()))
            said = f"{len(failed)} of {len(told)} cannot {what}; {name}: {text}"
            way = "give a URL or a path that every worker sees, and credentials that it has"
            yield Finding("fail", "workers", said, way)
        elif (image if key == "read" else folder) is not None:
            yield Finding("ok", "workers", f"all can {what}")


def _memory(known: Mapping[str, Any], each: int) -> Finding:
    from dask.utils import format_bytes

    least = min(
        (w["memory_limit"] / w["nthreads"] for w in known.values() if w["memory_limit"]), default=0
    )
    if not least:
        return Finding("ok", "workers", "their memory has no limit")
    said = f"{format_bytes(int(least))} a thread; a task takes at most {format_bytes(each)}"
    if least < each:
        way = "give workers more memory or fewer threads, or plan with less (--set memory=...)"
        return Finding("warn", "workers", said, way)
    return Finding("ok", "workers", said)


def _versions(told: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    here = _installed()
    other = Counter(
        (name, seen["versions"].get(name))
        for seen in told.values()
        for name in here
        if seen["versions"].get(name) != here[name]
    )
    if not other:
        yield Finding("ok", "workers", "they have the versions of this process")
    for (name, version), n in sorted(other.items(), key=str):
        yield Finding(
            "fail" if name in ("patchloom", "python") else "warn",
            "workers",
            f"{n} of {len(told)} have {name} {version or 'not at all'}, this process has "
            f"{here[name]}",
            "give workers and client one environment",
        )


def _installed() -> dict[str, str | None]:
    minor = ".".join(platform.python_version_tuple()[:2])
    found = {"patchloom": __version__, "python": minor}
    return {**found, **{name: version_of(name) for name in _ALIKE}}


def _seen(image: Image | None, folder: Location | None) -> dict[str, Any]:
    """What a worker has, and what stops it from reading or writing."""
    return {
        "versions": _installed(),
        "read": "" if image is None else _failure(read_first, image),
        "write": "" if folder is None else _failure(try_write, folder),
    }


def _failure(try_it: Any, *arguments: Any) -> str:
    try:
        try_it(*arguments)
    except PatchloomError as error:
        return str(error)
    return ""
