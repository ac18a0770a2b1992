"""`patchloom verify`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from patchloom.cli.declaring import command
from patchloom.cli.endings import DAMAGED
from patchloom.cli.loudness import is_quiet
from patchloom.cli.options import engine_options, job_of, json_option, set_option
from patchloom.errors import ConfigError

if TYPE_CHECKING:
    from patchloom.cli.engine import Engine

__all__ = ["verify_command"]


@command("verify")
@click.argument("url", type=click.Path())
@click.option(
    "--job",
    type=click.Path(),
    metavar="JOB.yaml",
    help="Compare with the plan of this job too.",
)
@set_option
@click.option(
    "--sample",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    metavar="N",
    help="Patches to compare with their sources.",
)
@click.option("--repair", is_flag=True, help="Let the next run of the job remake what is damaged.")
@engine_options
@json_option
def verify_command(
    url: str,
    job: str | None,
    changes: Sequence[str],
    sample: int,
    repair: bool,
    engine: Engine,
    as_json: bool,
) -> None:
    """Check every shard of the patch store at URL; exit status 1 if something is damaged."""
    if changes and job is None:
        raise ConfigError("--set is of a job, but none is given; add --job JOB.yaml")
    loaded = None if job is None else job_of(job, changes)
    from patchloom.run.jobs import output_options, plan_of
    from patchloom.run.verifying import verify

    with engine.started():
        planned = None if loaded is None else plan_of(loaded, progress=not is_quiet())
        report = verify(
            url,
            planned,
            sample=sample,
            repair=repair,
            storage_options=None if loaded is None else output_options(loaded),
        )
    click.echo(json.dumps(report.to_dict(), indent=1) if as_json else str(report))
    if report.repaired and not as_json:
        click.echo("The next run of its job makes them again: patchloom run JOB.yaml")
    if not report.ok:
        sys.exit(DAMAGED)
