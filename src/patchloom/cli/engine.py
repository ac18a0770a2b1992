"""The engine: where Dask runs what a command asks for, by options, environment and profile."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from patchloom.cli.clusters import Workers, check_cluster, running
from patchloom.cli.schedulers import SCHEDULERS, check_scheduler, scheduled
from patchloom.errors import ConfigError

__all__ = ["Engine"]

logger = logging.getLogger("patchloom")


@dataclass(frozen=True)
class Engine:
    """Which scheduler or cluster a command goes to; none leaves it to Dask's configuration."""

    scheduler: str | None = None
    cluster: str | None = None
    workers: Workers | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Of the cluster; there may be credentials among them."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of Dask's configuration."""

    @classmethod
    def asked(
        cls,
        *,
        scheduler: str | None = None,
        cluster: str | None = None,
        workers: str | None = None,
        profile: str | None = None,
        options: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> Engine:
        """What options say, before the environment, before a profile.

        Parameters
        ----------
        scheduler, cluster, workers, profile, options
            As given on the command line.
        environment
            May have ``PATCHLOOM_PROFILE``, ``PATCHLOOM_SCHEDULER``, ``PATCHLOOM_CLUSTER`` and
            ``PATCHLOOM_WORKERS``.

        Raises
        ------
        ConfigError
            If they cannot be meant, or do not go together.
        """
        found = cls()
        name = profile or environment.get("PATCHLOOM_PROFILE")
        if name:
            found = _of_profile(name, environment)
        there, made, many = (
            environment.get(f"PATCHLOOM_{key}") or None
            for key in ("SCHEDULER", "CLUSTER", "WORKERS")
        )
        found = found._with(there, made, many, {}, "in the environment")
        found = found._with(scheduler, cluster, workers, options or {}, "--scheduler and --cluster")
        found._check()
        return found

    def _with(
        self,
        scheduler: str | None,
        cluster: str | None,
        workers: str | int | None,
        options: Mapping[str, Any],
        where: str,
    ) -> Engine:
        """What goes before this; another scheduler or cluster takes the place of the one here."""
        if scheduler is not None and cluster is not None:
            raise ConfigError(
                f"a job runs in one place, but a scheduler ({scheduler!r}) and a cluster "
                f"({cluster!r}) are named ({where}); leave one out"
            )
        many = self.workers if workers is None else Workers.parse(workers)
        if scheduler is not None:
            # The number of workers of a profile's cluster says nothing about a scheduler.
            many = None if workers is None else many
            return Engine(scheduler, None, many, dict(options), self.settings)
        kept = self.options if cluster in (None, self.cluster) else {}
        return Engine(
            self.scheduler if cluster is None else None,
            cluster or self.cluster,
            many,
            {**kept, **options},
            self.settings,
        )

    def _check(self) -> None:
        if self.cluster is not None:
            check_cluster(self.cluster)
            return
        check_scheduler(self.scheduler)
        if self.options:
            raise ConfigError("--cluster-option is of a cluster, but none is named; add --cluster")
        if self.workers is None:
            return
        if self.scheduler not in (None, *SCHEDULERS) or self.workers.adaptive:
            raise ConfigError(
                f"--workers is a number of threads or processes of this machine, or goes with "
                f"--cluster; --scheduler {self.scheduler or 'threads'} has its own, or takes one "
                "number; leave it out, or add --cluster"
            )

    @contextlib.contextmanager
    def started(self, patience: float | None = None) -> Iterator[Any]:
        """Dask set to the engine for a while; a cluster is made, and taken down at the end.

        Parameters
        ----------
        patience
            Seconds to wait for a first worker of a cluster that is made; by default for ever.

        Yields
        ------
        distributed.Client or None
            None where there is no cluster.
        """
        with contextlib.ExitStack() as stack:
            if self.settings or (self.cluster is None and self.workers is not None):
                import dask

                settings = dict(self.settings)
                if self.cluster is None and self.workers is not None:
                    settings["num_workers"] = self.workers.most
                stack.enter_context(dask.config.set(settings))
            if self.cluster is not None:
                logger.debug("a cluster of the kind %s is made", self.cluster)
                entered = running(self.cluster, self.workers, self.options, patience)
                yield stack.enter_context(entered)
            else:
                logger.debug("scheduler: %s", self.scheduler or "as Dask's configuration says")
                yield stack.enter_context(scheduled(self.scheduler))


def _of_profile(name: str, environment: Mapping[str, str]) -> Engine:
    from patchloom.cli.profiles import profiles_file, read_profile

    path = profiles_file(environment)
    found = read_profile(name, path)
    logger.debug("profile %r of %s", name, path)
    start = Engine(settings=found.dask)
    where = f"profile {name!r} of {str(path)!r}"
    return start._with(found.scheduler, found.cluster, found.workers, found.options, where)
