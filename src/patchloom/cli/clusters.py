"""Clusters: Dask clusters of several kinds, made for one command and taken down after it."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import logging
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from patchloom.errors import ConfigError

__all__ = ["KINDS", "Workers", "check_cluster", "running"]

logger = logging.getLogger("patchloom")

KINDS: Mapping[str, tuple[str, str, str]] = {
    "local": ("distributed", "LocalCluster", ""),
    "slurm": ("dask_jobqueue", "SLURMCluster", "hpc"),
    "pbs": ("dask_jobqueue", "PBSCluster", "hpc"),
    "lsf": ("dask_jobqueue", "LSFCluster", "hpc"),
    "sge": ("dask_jobqueue", "SGECluster", "hpc"),
    "htcondor": ("dask_jobqueue", "HTCondorCluster", "hpc"),
    "moab": ("dask_jobqueue", "MoabCluster", "hpc"),
    "oar": ("dask_jobqueue", "OARCluster", "hpc"),
    "kubernetes": ("dask_kubernetes.operator", "KubeCluster", "k8s"),
}
"""Kinds that have a name: module, class and the extra that brings it."""

_LOCAL = "patchloom.cli.local_worker"
"""What workers of this machine run before they start."""
_PATIENCE = 60.0
"""Seconds between two lines about workers that do not come."""


@dataclass(frozen=True)
class Workers:
    """How many workers a cluster has: as many as there is work for, within bounds.

    >>> Workers.parse("2..16")
    Workers(least=2, most=16)
    """

    least: int
    most: int

    @classmethod
    def parse(cls, text: str | int) -> Workers:
        """A number, or two with dots between them.

        Raises
        ------
        ConfigError
            If it is neither.
        """
        low, dots, high = str(text).partition("..")
        if low.isdecimal() and (high.isdecimal() if dots else not high):
            found = cls(int(low), int(high or low))
            if 0 <= found.least <= found.most and found.most >= 1:
                return found
        raise ConfigError(
            f"--workers is a number from 1 on, or a range such as 2..16, got {str(text)!r}"
        )

    @property
    def adaptive(self) -> bool:
        """Whether their number follows the work."""
        return self.least != self.most


def check_cluster(kind: str) -> None:
    """Refuse a cluster that cannot be meant, or whose package is missing, before any work.

    Raises
    ------
    ConfigError
        With the nearest right name, or with what to install.
    """
    if kind not in KINDS and "." not in kind:
        near = difflib.get_close_matches(kind, KINDS, 1)
        raise ConfigError(
            f"--cluster is one of {list(KINDS)}, or the class of a cluster such as "
            f"dask_gateway.GatewayCluster, got {kind!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    module, _, extra = _class_of(kind)
    package = module.split(".")[0]
    if importlib.util.find_spec(package) is None:
        install = f"'patchloom[{extra}]'" if extra else package.replace("_", "-")
        raise ConfigError(
            f"--cluster {kind} needs {package.replace('_', '-')}, which is not installed; "
            f"pip install {install}"
        )


def _class_of(kind: str) -> tuple[str, str, str]:
    if kind in KINDS:
        return KINDS[kind]
    module, _, name = kind.rpartition(".")
    return module, name, ""


@contextlib.contextmanager
def running(
    kind: str, workers: Workers | None, options: Mapping[str, Any], patience: float | None = None
) -> Iterator[Any]:
    """A client of a cluster of its own, which is gone afterwards.

    Parameters
    ----------
    kind
        A name of `KINDS`, or the dotted name of a class.
    workers
        How many; None leaves it to the class.
    options
        Arguments of the class.
    patience
        Seconds until a cluster that gets no worker is given up; by default never, as queues may
        be long.

    Yields
    ------
    distributed.Client

    Raises
    ------
    ConfigError
        If the cluster cannot be made as asked, or no worker came in time.
    """
    from distributed import Client

    check_cluster(kind)
    with contextlib.ExitStack() as stack:
        refusals = stack.enter_context(_refusals())
        cluster = stack.enter_context(_taken_down(_made(kind, workers, options)))
        client = stack.enter_context(Client(cluster))
        if workers is not None and workers.adaptive:
            cluster.adapt(minimum=workers.least, maximum=workers.most)
        elif workers is not None and kind != "local":
            cluster.scale(workers.most)
        link = getattr(cluster, "dashboard_link", None)
        many = "" if workers is None else f" of {_many(workers)}"
        logger.info("cluster %s%s%s", kind, many, f", dashboard {link}" if link else "")
        _await_worker(client, kind, refusals, patience)
        yield client


@contextlib.contextmanager
def _taken_down(cluster: Any) -> Iterator[Any]:
    """A cluster that is closed at the end; where that fails, it hides no other error."""
    nanny = logging.getLogger("distributed.nanny")
    before = nanny.level
    try:
        yield cluster
    finally:
        # That a busy worker has to be killed is no news where it is meant.
        nanny.setLevel(logging.ERROR)
        try:
            cluster.close()
        except Exception as error:  # each kind has errors of its own, also AssertionError
            logger.warning(
                "the cluster could not be taken down (%s); see that none of its jobs is left",
                type(error).__name__,
            )
        nanny.setLevel(before)


@contextlib.contextmanager
def _refusals() -> Iterator[list[BaseException]]:
    """Errors of jobs that could not be submitted, which Dask only logs, with a stack trace."""
    found: list[BaseException] = []

    def keep(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            found.append(error)
        return error is None

    tornado = logging.getLogger("tornado.application")
    tornado.addFilter(keep)
    try:
        yield found
    finally:
        tornado.removeFilter(keep)


def _many(workers: Workers) -> str:
    if workers.adaptive:
        return f"{workers.least} to {workers.most} workers"
    return f"{workers.most} worker{'s' * (workers.most > 1)}"


def _made(kind: str, workers: Workers | None, options: Mapping[str, Any]) -> Any:
    """The cluster, without its workers where these come by another call."""
    from patchloom.location import Location, StorageOptions

    module, name, extra = _class_of(kind)
    given = dict(options)
    if kind == "local":
        import dask

        _check_local(given)
        if workers is not None:
            given.setdefault("n_workers", max(workers.least, 1))
        # Any free port: Dask takes 8787 if not told, with or without bokeh.
        given.setdefault("dashboard_address", ":0")
        if given.get("processes", True):
            own = given.get("preload") or dask.config.get("distributed.worker.preload", [])
            given["preload"] = [_LOCAL, *([own] if isinstance(own, str) else own)]
    elif extra == "hpc" and workers is None and "n_workers" not in given:
        raise ConfigError(f"--cluster {kind} has no workers by itself; give --workers N or N..M")
    if extra == "hpc":
        # Any free port: other users of a login node have Dask's usual one.
        given["scheduler_options"] = {
            "dashboard_address": ":0",
            **given.get("scheduler_options", {}),
        }
    try:
        made = getattr(importlib.import_module(module), name)
        if extra == "hpc":
            _check_submits(kind, made)
        return made(**given)
    except ConfigError:
        raise
    except Exception as error:  # each kind has errors of its own
        # Options may be credentials, which a location leaves out of an error's text.
        said = Location(kind, StorageOptions(options)).describe(error)
        raise ConfigError(
            f"--cluster {kind} could not be made: {said}; its options are the arguments of "
            f"{module}.{name}, as --cluster-option KEY=VALUE or in a profile"
        ) from None


def _check_local(given: Mapping[str, Any]) -> None:
    """Refuse what neither a local cluster nor its workers take: they would die of it, at length."""
    from distributed import LocalCluster, Nanny, Worker
    from distributed.core import Server

    takers = (LocalCluster, Nanny, Worker, Server)
    known = {name for taker in takers for name in inspect.signature(taker).parameters}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(
                f"--cluster local takes what distributed.LocalCluster takes, got {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else "; leave it out")
            )


def _check_submits(kind: str, made: Any) -> None:
    """Refuse a queue whose command this machine does not have, before Dask tries it."""
    words = shlex.split(getattr(made.job_cls, "submit_command", "") or "")
    if words and shutil.which(words[0]) is None:
        raise ConfigError(
            f"--cluster {kind} submits its workers by {words[0]}, which is not on this machine; "
            "run it where you submit jobs, or take another --cluster"
        )


def _await_worker(
    client: Any, kind: str, refusals: list[BaseException], patience: float | None
) -> None:
    """Wait for the first worker, and say so from time to time."""
    begun = told = time.monotonic()
    while True:
        try:
            client.wait_for_workers(1, timeout=1.0)
            return
        except TimeoutError:
            now = time.monotonic()
        if refusals:
            said = " ".join(str(refusals[0]).split())
            raise ConfigError(f"--cluster {kind} cannot start a worker: {said}; mend its options")
        if patience is not None and now - begun >= patience:
            raise ConfigError(
                f"a cluster needs workers, but --cluster {kind} got none within {patience:g} "
                "seconds; look at its queue and at the logs of its workers"
            )
        if now - told >= _PATIENCE:
            told = now
            logger.info("no worker yet after %d s: queues may be long", now - begun)
