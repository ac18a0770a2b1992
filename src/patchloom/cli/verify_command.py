"""`patchloom verify`."""

from __future__ import annotations

import json
import sys

import click

from patchloom.cli.endings import DAMAGED
from patchloom.cli.options import json_option, scheduler_option
from patchloom.cli.schedulers import check_scheduler, scheduled

__all__ = ["verify_command"]


@click.command("verify")
@click.argument("url")
@click.option("--job", metavar="JOB.yaml", help="Compare with the plan of this job too.")
@click.option(
    "--sample",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    metavar="N",
    help="Patches to compare with their sources.",
)
@click.option("--repair", is_flag=True, help="Let the next run of the job remake what is damaged.")
@scheduler_option
@json_option
def verify_command(
    url: str, job: str | None, sample: int, repair: bool, scheduler: str | None, as_json: bool
) -> None:
    """Check every shard of the patch store at URL; exit status 1 if something is damaged."""
    from patchloom.config import load_job

    loaded = None if job is None else load_job(job)
    check_scheduler(scheduler)
    from patchloom.run.jobs import output_options, plan_of
    from patchloom.run.verifying import verify

    with scheduled(scheduler):
        planned = None if loaded is None else plan_of(loaded, progress=not as_json)
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
