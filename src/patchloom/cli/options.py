"""Options that several commands have, and how their values are read."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import click

from patchloom.cli.clusters import KINDS
from patchloom.cli.schedulers import SCHEDULERS
from patchloom.errors import ConfigError

if TYPE_CHECKING:
    from patchloom.config import Job

__all__ = [
    "engine_options",
    "job_argument",
    "job_of",
    "json_option",
    "pairs",
    "pixels",
    "set_option",
    "values",
]

logger = logging.getLogger("patchloom")

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of tables."
)
"""`as_json` of a command."""


job_argument = click.argument("job", type=click.Path(), metavar="JOB.yaml")
"""`job` of a command; shells complete paths."""


def _job_keys(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    from patchloom.config import Job

    return [f"{key}=" for key in Job.model_fields if key.startswith(begun)]


set_option = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=_job_keys,
    help="Another value of the job, such as 'patching.patch_size=[128,128]'; again for more.",
)
"""`changes` of a command that takes a job, for `job_of`."""


def _profiles(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    from patchloom.cli.profiles import profile_names, profiles_file

    return [name for name in profile_names(profiles_file()) if name.startswith(begun)]


def _one_of(names: Collection[str]) -> Callable[..., list[str]]:
    return lambda _, __, begun: [name for name in names if name.startswith(begun)]


_ENGINE = (
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        shell_complete=_one_of(SCHEDULERS),
        help="Dask cluster (tcp://host:8786), or threads (default), processes or synchronous.",
    ),
    click.option(
        "--cluster",
        metavar="KIND",
        shell_complete=_one_of(KINDS),
        help="Make a Dask cluster for this command: local, slurm, pbs, lsf, sge, kubernetes and "
        "others; see docs/command-line.md.",
    ),
    click.option(
        "--workers", metavar="N|N..M", help="Workers of the cluster, a fixed or adaptive number."
    ),
    click.option(
        "--cluster-option",
        "cluster_options",
        multiple=True,
        metavar="KEY=VALUE",
        help="Of the cluster, such as cores=8; again for more.",
    ),
    click.option(
        "--profile",
        metavar="NAME",
        shell_complete=_profiles,
        help="Scheduler or cluster with its options from ~/.config/patchloom/profiles.yaml.",
    ),
)


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say where Dask runs; the command is handed them as one `engine`."""

    @functools.wraps(function)
    def with_engine(*args: Any, cluster_options: Sequence[str], **given: Any) -> Any:
        from patchloom.cli.engine import Engine

        engine = Engine.asked(
            **{name: given.pop(name) for name in ("scheduler", "cluster", "workers", "profile")},
            options=values("--cluster-option", cluster_options, secret=True),
        )
        return function(*args, engine=engine, **given)

    for option in reversed(_ENGINE):
        with_engine = option(with_engine)
    return with_engine


def job_of(path: str, changes: Sequence[str] = ()) -> Job:
    """The job of a file, with what the environment and ``--set`` say instead.

    Parameters
    ----------
    path
        The file, or its URL.
    changes
        Of `set_option`.

    Raises
    ------
    ConfigError
        If there is a mistake in any of them.
    """
    from patchloom.config import load_job, shown_values
    from patchloom.overrides import Override

    there = Override.of_environment(os.environ)
    for override in there:
        # What nobody sees on the command line is told.
        logger.info("from the environment: %s", override.source)
    given = [Override.parse(text) for text in changes]
    logger.debug("job: %s", shown_values(path) if "://" in path else os.path.abspath(path))
    for override in given:
        logger.debug("%s", override.source)
    return load_job(path, [*there, *given])


def values(option: str, given: Sequence[str], *, secret: bool = False) -> dict[str, Any]:
    """Names and values of an option that takes NAME=VALUE, the value in YAML.

    Parameters
    ----------
    option
        Its name, for messages.
    given
        As typed.
    secret
        Whether values may be credentials, which no message repeats.

    Raises
    ------
    ConfigError
        If one is not that.

    >>> values("--option", ["chunk=16"])
    {'chunk': 16}
    """
    import yaml

    found = {}
    for name, value in pairs(option, given, secret=secret):
        try:
            found[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            got = f"{name}={'...' if secret else value}"
            raise ConfigError(f"{option} takes NAME=VALUE in YAML, got {got}") from None
    return found


def pixels(option: str, given: str | None) -> list[int] | int | None:
    """One number for all axes, or one for each."""
    if given is None:
        return None
    try:
        each = [int(text) for text in given.split(",")]
    except ValueError:
        raise ConfigError(f"{option} takes numbers of pixels, N or N,N, got {given!r}") from None
    return each[0] if len(each) == 1 else each


def pairs(option: str, given: Sequence[str], *, secret: bool = False) -> list[tuple[str, str]]:
    """Names and values of an option that takes NAME=VALUE."""
    for text in given:
        if "=" not in text:
            got = "no '='" if secret else repr(text)
            raise ConfigError(f"{option} takes NAME=VALUE, got {got}")
    return [(name, value) for name, _, value in (text.partition("=") for text in given)]
